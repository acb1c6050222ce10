// toy_cache.h: keys and values of a model that does not exist: a few directions shared by all heads and layers, channel
// offsets, noise, and a rotary embedding. Small enough to calibrate in milliseconds.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "firn/thread_pool.h"
#include "storage/calibration/calibrator.h"
#include "tests/storage/codec/extents.h"

namespace firn::test {

inline ModelSpec toy_model(std::uint32_t layers = 4, RotationSpec::Pairing pairing = RotationSpec::Pairing::kAdjacent) {
  ModelSpec model;
  model.name = "toy";
  model.weights.bytes[0] = 7;
  GroupSpec group;
  group.layer_count = layers;
  group.kv = {.dtype = Dtype::kF16, .kv_heads = 2, .head_dim = 32, .value_dim = 32};
  model.groups = {group};
  model.rotation.pairing = pairing;
  if (pairing != RotationSpec::Pairing::kNone) {
    model.rotation.dims = 16;  // half of a head
    for (int i = 0; i < 8; ++i)
      model.rotation.inverse_frequencies.push_back(std::pow(1e-4f, static_cast<float>(i) / 8));
  }
  return model;
}

class ToyCache {
 public:
  static constexpr std::size_t kDirections = 24;
  explicit ToyCache(const ModelSpec& model, std::uint64_t seed = 1) : model_(model), random_(seed) {
    std::mt19937_64 fixed(99);  // the model: the same for every text
    for (auto* mixing : {&mix_[0], &mix_[1]}) {
      mixing->resize(kDirections * channels());
      for (float& value : *mixing) value = normal(fixed);
    }
    offset_.resize(channels());
    for (float& value : offset_) value = 3 * normal(fixed);
  }
  struct Window {
    std::uint64_t first_position = 0;
    std::uint32_t tokens = 0;
    std::vector<float> keys, values;  // [layer][token][width]
  };
  // foreign: directions the calibration has never seen.
  Window window(std::uint64_t first_position, std::uint32_t tokens, bool foreign = false) {
    const KvShape& kv = model_.groups[0].kv;
    const std::size_t w = width(), layers = model_.groups[0].layer_count;
    Window out{first_position, tokens, std::vector<float>(layers * tokens * w),
               std::vector<float>(layers * tokens * w)};
    for (std::uint32_t t = 0; t < tokens; ++t)
      for (int tensor : {0, 1}) {
        std::vector<float> x(channels());
        for (std::size_t i = 0; i < kDirections; ++i) {
          const float amount = normal(random_) / std::sqrt(static_cast<float>(i + 1));
          for (std::size_t c = 0; c < channels(); ++c)
            x[c] += amount * mix_[tensor][i * channels() + (foreign ? (c * 37 + i) % channels() : c)];
        }
        for (std::size_t c = 0; c < channels(); ++c)
          x[c] = 0.2f * x[c] + 0.01f * normal(random_) + (tensor == 0 ? offset_[c] : 0);
        for (std::size_t layer = 0; layer < layers; ++layer) {
          float* row = &(tensor == 0 ? out.keys : out.values)[(layer * tokens + t) * w];
          std::copy_n(&x[layer * w], w, row);
          if (tensor == 0) rotate(row, kv, first_position + t);
        }
      }
    return out;
  }
  std::size_t width() const { return std::size_t{model_.groups[0].kv.kv_heads} * model_.groups[0].kv.head_dim; }

 private:
  std::size_t channels() const { return model_.groups[0].layer_count * width(); }
  static float normal(std::mt19937_64& random) {
    float sum = -6;
    for (int i = 0; i < 12; ++i) sum += static_cast<float>(random() >> 40) / 16777216.0f;
    return sum;
  }
  // Written here anew, and not with the code under test.
  void rotate(float* row, const KvShape& kv, std::uint64_t position) const {
    const RotationSpec& r = model_.rotation;
    for (std::uint32_t head = 0; head < kv.kv_heads; ++head)
      for (std::uint32_t i = 0; i < r.dims / 2; ++i) {
        const bool adjacent = r.pairing == RotationSpec::Pairing::kAdjacent;
        float& a = row[head * kv.head_dim + (adjacent ? 2 * i : i)];
        float& b = row[head * kv.head_dim + (adjacent ? 2 * i + 1 : i + r.dims / 2)];
        const double angle = static_cast<double>(position) * static_cast<double>(r.inverse_frequencies[i]);
        const double c = std::cos(angle), s = std::sin(angle), f = static_cast<double>(r.attention_factor), x = a,
                     y = b;
        a = static_cast<float>(f * (x * c - y * s));
        b = static_cast<float>(f * (x * s + y * c));
      }
  }
  ModelSpec model_;
  std::mt19937_64 random_;
  std::vector<float> mix_[2], offset_;
};

inline ExtentShape toy_shape(const ModelSpec& model, std::uint32_t blocks) {
  return {.kv = model.groups[0].kv, .layer_count = model.groups[0].layer_count, .block_count = blocks};
}

// A window as an extent of whole blocks.
inline Extent toy_extent(const ModelSpec& model, const ToyCache::Window& window, Layout layout = Layout::kPacked) {
  const ExtentShape shape = toy_shape(model, window.tokens / kBlockTokens);
  const std::size_t w = window.keys.size() / shape.layer_count / window.tokens;
  Bytes bytes(shape.raw_bytes());
  std::byte* at = bytes.data();
  for (std::uint32_t layer = 0; layer < shape.layer_count; ++layer)
    for (const std::vector<float>* tensor : {&window.keys, &window.values})
      for (std::size_t i = 0; i < window.tokens * w; ++i, at += bytes_of(shape.kv.dtype))
        put_element(shape.kv.dtype, (*tensor)[layer * window.tokens * w + i], at);
  Extent extent(shape, layout);
  extent.set_bytes(bytes);
  return extent;
}

inline Artefact toy_artefact(const ModelSpec& model, std::vector<std::uint32_t> ratios = {4, 8},
                             std::uint32_t stack_layers = 0, std::size_t max_gram = kMaxGram) {
  ThreadPool threads(2);
  auto calibrator = Calibrator::make(
      model,
      {.stack_layers = stack_layers, .ratios = std::move(ratios), .max_gram = max_gram, .calibrated_on = "toy text"},
      threads);
  EXPECT_TRUE(calibrator.ok()) << calibrator.status().message();
  ToyCache cache(model);
  for (int i = 0; i < 6; ++i) {
    const ToyCache::Window window = cache.window(0, 256 + 16);
    EXPECT_TRUE((*calibrator)->add_window(0, window.tokens, window.keys, window.values, i % 3 == 2).ok());
  }
  Result<Artefact> artefact = (*calibrator)->finish({});
  EXPECT_TRUE(artefact.ok()) << artefact.status().message();
  return std::move(artefact).value();
}

inline std::shared_ptr<const Artefact> loaded(Artefact artefact) {
  const Result<std::shared_ptr<const Artefact>> parsed = parse_artefact(write_artefact(artefact));
  EXPECT_TRUE(parsed.ok()) << parsed.status().message();
  return *parsed;
}

}  // namespace firn::test
