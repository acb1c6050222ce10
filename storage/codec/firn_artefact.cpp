#include "storage/codec/firn_artefact.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "core/base/check.h"
#include "storage/codec/firn_coder.h"

namespace firn {
namespace {

// 2^(i / 16), written out: a library's power may differ in the last bit from another's.
constexpr std::array<float, 16> kSixteenths = {0x1p+0f,        0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f,
                                               0x1.306fe0p+0f, 0x1.3dea64p+0f, 0x1.4bfdaep+0f, 0x1.5ab07ep+0f,
                                               0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f,
                                               0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f};

// Weights multiply and divide: neither may leave the numbers there are.
constexpr float kLeastWeight = 1e-12f, kLargestWeight = 1e12f;

Result<std::vector<float>> take_weights(ArtefactTensors& tensors, const std::string& name, std::uint64_t count) {
  FIRN_ASSIGN(std::vector<float> weights, take_floats(tensors, name, count));
  for (const float weight : weights)
    if (weight < kLeastWeight || weight > kLargestWeight) return corrupt_artefact(name, "has a weight out of bounds");
  return weights;
}

Result<std::vector<std::uint8_t>> take_bytes(ArtefactTensors& tensors, const std::string& name, std::uint64_t count) {
  FIRN_ASSIGN(const std::span<const std::byte> bytes, take_tensor(tensors, name, "U8", {count}));
  std::vector<std::uint8_t> out(count);
  if (count != 0) std::memcpy(out.data(), bytes.data(), count);
  return out;
}

Status read_heads(ArtefactTensors& tensors, const std::string& part, const FirnStack& stack, const KvShape& kv,
                  bool has_mean, bool present, HeadTransform& out) {
  std::uint64_t elements = 0;
  for (const auto& [first, width] : firn_heads(stack, kv)) elements += std::uint64_t{width} * width;
  const std::uint64_t channels = present ? stack.channels : 0;
  FIRN_ASSIGN(out.mean, take_floats(tensors, part + "mean", has_mean ? channels : 0));
  FIRN_ASSIGN(out.weights, take_weights(tensors, part + "weights", channels));
  FIRN_ASSIGN(out.bases, take_halves(tensors, part + "bases", {present ? elements : 0}));
  FIRN_ASSIGN(out.spreads, take_bytes(tensors, part + "spreads", channels));
  return {};
}

}  // namespace

float firn_step(std::uint32_t number) {
  const auto exponent = static_cast<std::int32_t>(number) - 512;
  const auto octave = exponent >> 4;  // towards minus infinity
  return std::ldexp(kSixteenths[static_cast<std::uint32_t>(exponent & 15)], octave);
}

std::uint8_t firn_spread(double spread) {
  const double number = 128 + std::round(8 * std::log2(std::max(spread, 1e-9)));
  return static_cast<std::uint8_t>(std::clamp(number, 0.0, 255.0));
}

std::vector<std::pair<std::uint32_t, std::uint32_t>> firn_heads(const FirnStack& stack, const KvShape& kv) {
  std::vector<std::pair<std::uint32_t, std::uint32_t>> heads;
  std::uint32_t at = 0;
  for (const std::uint32_t width : {kv.head_dim, kv.value_dim})
    for (std::uint32_t i = 0; width != 0 && i < stack.layer_count * kv.kv_heads; ++i, at += width)
      heads.emplace_back(at, width);
  FIRN_CHECK(at == stack.channels);
  return heads;
}

Status read_firn_tensors(ArtefactTensors& tensors, const KvShape& kv, std::uint32_t layer_count,
                         std::uint32_t stack_layers, FirnModel& model) {
  const std::size_t detectors = model.detector_layers.size();
  FIRN_ASSIGN(model.detector_medians, take_floats(tensors, "detector.medians", detectors));
  for (const float median : model.detector_medians)
    if (!(median > 0)) return corrupt_artefact("detector.medians", "are not above 0");
  constexpr std::uint64_t kFrequencies = std::uint64_t{kFirnClasses} * kFirnSymbols;
  FIRN_ASSIGN(const std::span<const std::byte> bytes,
              take_tensor(tensors, "models.frequencies", "U16", {kFrequencies}));
  model.frequencies.resize(kFrequencies);
  std::memcpy(model.frequencies.data(), bytes.data(), bytes.size());
  FIRN_TRY(FirnModels::make(model.frequencies).status().with_context("artefact: models.frequencies"));
  FIRN_ASSIGN(model.centroids, take_floats(tensors, "models.centroids", std::uint64_t{kFirnClasses} * kFirnCentroids));
  for (const float centroid : model.centroids)
    if (std::fabs(centroid) > 0.5f) return corrupt_artefact("models.centroids", "are more than half a step");
  const std::uint32_t step = stack_layers == 0 ? layer_count : stack_layers;
  for (std::uint32_t first = 0; first < layer_count; first += step) {
    FirnStack stack;
    stack.first_layer = first;
    stack.layer_count = std::min(step, layer_count - first);
    stack.key_channels = stack.layer_count * kv.kv_heads * kv.head_dim;
    stack.channels = stack.key_channels + stack.layer_count * kv.kv_heads * kv.value_dim;
    const std::string name = "stack." + std::to_string(first / step) + ".";
    FIRN_ASSIGN(stack.mean, take_floats(tensors, name + "mean", stack.channels));
    FIRN_ASSIGN(stack.weights, take_weights(tensors, name + "weights", stack.channels));
    const auto basis = tensors.find(name + "basis");
    if (basis == tensors.end()) return corrupt_artefact(name + "basis", "is missing");
    if (basis->second.shape.size() != 2 || basis->second.shape[0] > stack.channels)
      return corrupt_artefact(name + "basis", "has more components than channels");
    stack.components = static_cast<std::uint32_t>(basis->second.shape[0]);
    FIRN_ASSIGN(stack.basis, take_halves(tensors, name + "basis", {stack.components, stack.channels}));
    FIRN_ASSIGN(stack.spreads, take_bytes(tensors, name + "spreads", stack.components));
    if (!std::is_sorted(stack.spreads.rbegin(), stack.spreads.rend()))
      return corrupt_artefact(name + "spreads", "do not fall");
    FIRN_TRY(read_heads(tensors, name + "means.", stack, kv, false, true, stack.means));
    FIRN_TRY(read_heads(tensors, name + "sinks.", stack, kv, true, detectors != 0, stack.sinks));
    model.stacks.push_back(std::move(stack));
  }
  return {};
}

}  // namespace firn
