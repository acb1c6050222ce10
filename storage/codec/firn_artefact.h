// firn_artefact.h: what the codec firn learnt of a model. Part of an Artefact; its tensors are in docs/codecs.md.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "firn/model.h"
#include "firn/status.h"
#include "storage/codec/artefact_tensors.h"

namespace firn {

// A transform within each head: orthonormal, of channels that were weighted before. No component is ever left out
// because it was small when it was calibrated.
struct HeadTransform {
  std::vector<float> mean;            // [channels]; of frame means it is zero, and empty
  std::vector<float> weights;         // [channels]
  std::vector<std::uint16_t> bases;   // f16, head after head: [dim][dim], components by falling energy
  std::vector<std::uint8_t> spreads;  // [channels], as FirnStack has them
  bool empty() const { return weights.empty(); }
};

// Consecutive layers, keys and values together. Channels: keys of the first layer, of the second, ..., then values.
struct FirnStack {
  std::uint32_t first_layer = 0, layer_count = 0;
  std::uint32_t key_channels = 0, channels = 0, components = 0;
  std::vector<float> mean, weights;   // [channels]; coefficients = basis (weights * (values - mean))
  std::vector<std::uint16_t> basis;   // f16 [components][channels], by falling spread
  std::vector<std::uint8_t> spreads;  // of each component, 128 + 8 log2, rounded
  HeadTransform means;                // of frame means
  HeadTransform sinks;                // of tokens that are sinks within a text; empty where the model has none
};

// What one step was measured to do.
struct FirnRate {
  std::uint32_t step = 0;  // its number; the rate of a frame
};

struct FirnModel {
  std::uint32_t exact_tokens = 0;  // the first of a text, that are like no others
  std::string sensitivity;         // how the weights were found, for people
  // The sinks among the others: the geometric mean, over these layers, of a token's value norm by the median is less
  // than the threshold. No layers: this model has no such tokens.
  std::vector<std::uint32_t> detector_layers;
  std::vector<float> detector_medians;
  float detector_threshold = 0;
  std::int32_t mean_step = 0, sink_step = 0;  // added to a step's number
  std::vector<FirnStack> stacks;
  std::vector<std::uint16_t> frequencies;  // [class][symbol]
  std::vector<float> centroids;            // [class][magnitude 1 to 4]: what is added to the magnitude
  std::vector<FirnRate> rates;             // of the artefact's plans
};

// Steps have numbers, and sixteen of them make a factor of two: 2^((number - 512) / 16), the same on every machine.
inline constexpr std::uint32_t kFirnFirstStep = 256, kFirnLastStep = 768;
inline constexpr std::int32_t kMaxFirnStepOffset = 256;
float firn_step(std::uint32_t number);
// Spread / step in sixteenths of an octave.
constexpr std::int32_t firn_ratio(std::uint8_t spread, std::uint32_t step) {
  return 2 * (static_cast<std::int32_t>(spread) - 128) - (static_cast<std::int32_t>(step) - 512);
}
std::uint8_t firn_spread(double spread);

// Heads of a stack in the order of its channels: first channel and width of each.
std::vector<std::pair<std::uint32_t, std::uint32_t>> firn_heads(const FirnStack& stack, const KvShape& kv);

// Tensors of a file to stacks and models; everything is checked. model.detector_layers and the numbers are set before.
Status read_firn_tensors(ArtefactTensors& tensors, const KvShape& kv, std::uint32_t layer_count,
                         std::uint32_t stack_layers, FirnModel& model);
// Hears every tensor in order: name, type, shape, bytes.
template <class F>
void for_each_firn_tensor(const FirnModel& model, F&& add) {
  using Shape = std::vector<std::uint64_t>;
  add("detector.medians", "F32", Shape{model.detector_medians.size()}, model.detector_medians.data(),
      model.detector_medians.size() * 4);
  add("models.frequencies", "U16", Shape{model.frequencies.size()}, model.frequencies.data(),
      model.frequencies.size() * 2);
  add("models.centroids", "F32", Shape{model.centroids.size()}, model.centroids.data(), model.centroids.size() * 4);
  for (std::size_t i = 0; i < model.stacks.size(); ++i) {
    const FirnStack& s = model.stacks[i];
    const std::string stack = "stack." + std::to_string(i) + ".";
    add(stack + "mean", "F32", Shape{s.mean.size()}, s.mean.data(), s.mean.size() * 4);
    add(stack + "weights", "F32", Shape{s.weights.size()}, s.weights.data(), s.weights.size() * 4);
    add(stack + "basis", "F16", Shape{s.components, s.channels}, s.basis.data(), s.basis.size() * 2);
    add(stack + "spreads", "U8", Shape{s.spreads.size()}, s.spreads.data(), s.spreads.size());
    for (const HeadTransform* t : {&s.means, &s.sinks}) {
      const std::string part = stack + (t == &s.means ? "means." : "sinks.");
      add(part + "mean", "F32", Shape{t->mean.size()}, t->mean.data(), t->mean.size() * 4);
      add(part + "weights", "F32", Shape{t->weights.size()}, t->weights.data(), t->weights.size() * 4);
      add(part + "bases", "F16", Shape{t->bases.size()}, t->bases.data(), t->bases.size() * 2);
      add(part + "spreads", "U8", Shape{t->spreads.size()}, t->spreads.data(), t->spreads.size());
    }
  }
}

}  // namespace firn
