// gradients.h: what a model's predictions feel of its cached keys and values: gradients of the log-likelihood of tokens
// by the cache that they attended, by reverse mode, written out layer by layer. For calibration: in plain f32 with the
// machine's linear algebra, where the engine's exact order of sums is not needed.
// Threads:  one caller at a time; products use as many threads as the linear algebra does.
// Memory:   the activations of one call; weights are unpacked one at a time.
// Lifetime: the model outlives it.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "examples/llama/model.h"
#include "firn/status.h"

namespace firn::llama {

// [layer][token][kv_heads * head_dim], keys rotated to their positions, all rounded to f16 as a cache has them.
struct KvCache {
  std::uint32_t tokens = 0;
  std::vector<float> keys, values;
};

class KvGradients {
 public:
  explicit KvGradients(const Model& model) : model_(model) {}

  // Of tokens from position 0 on.
  KvCache cache_of(std::span<const std::int32_t> tokens);
  // Which token is said to follow, given all probabilities after token i.
  using Choose = std::function<std::int32_t(std::size_t i, std::span<const float> probabilities)>;
  struct Gradients {
    double log_likelihood = 0;        // of the chosen tokens
    std::vector<float> keys, values;  // [layer][token of past][width]; of keys before they are rotated
  };
  // Tokens that follow those of past, and what the log-likelihood of the chosen ones after each feels of past. With
  // only_likelihood, nothing else is computed.
  Gradients by_cache(const KvCache& past, std::span<const std::int32_t> tokens, const Choose& choose,
                     bool only_likelihood = false);

 private:
  struct Saved;  // activations of one layer that the way back needs
  void unpack(const char* part, std::uint32_t layer, std::size_t rows, std::size_t columns);
  void product(const float* x, std::size_t count, float* y, bool add);       // y [count][rows] (+)= x W'
  void back_product(const float* y, std::size_t count, float* x, bool add);  // x [count][columns] (+)= y W
  void embed(std::span<const std::int32_t> tokens, std::vector<float>& x) const;
  void rotate(std::vector<float>& rows, std::size_t heads, std::size_t first_position, float sign) const;
  void forward_layer(std::uint32_t layer, const KvCache* past, std::size_t count, std::vector<float>& x, Saved& saved);

  const Model& model_;
  std::vector<float> weights_;  // of the matrix in use, [rows][columns]
  std::size_t rows_ = 0, columns_ = 0;
};

}  // namespace firn::llama
