// model.h: a llama-family model out of a GGUF file: its numbers, its weights, and what firn must know of it.
// Threads:  const calls from any thread.
// Memory:   the weights are repacked for the products, so they are in memory once more than the page cache has them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "examples/llama/gguf.h"
#include "examples/llama/products.h"
#include "firn/model.h"
#include "firn/status.h"

namespace firn::llama {

struct Geometry {
  std::uint32_t layers = 0, hidden = 0, feed_forward = 0;
  std::uint32_t heads = 0, kv_heads = 0, head_dim = 0, rotated_dims = 0;
  std::uint32_t vocabulary = 0;      // rows of the embedding and the output; files pad them
  std::uint32_t tokens = 0;          // of these, what the tokenizer has: logits are of these alone
  std::uint32_t context_tokens = 0;  // positions the model was trained for
  float rope_base = 0, norm_epsilon = 0;

  std::uint32_t query_width() const { return heads * head_dim; }
  std::uint32_t kv_width() const { return kv_heads * head_dim; }
};

struct Layer {
  std::vector<float> attention_norm, feed_forward_norm;
  Matrix query, key, value, attention_out;
  Matrix gate, up, down;
};

class Model {
 public:
  // kInvalidArgument: not a llama this engine knows; the message names the key or tensor. A file with a tensor that the
  // engine would not use is refused as well: ignoring a bias, say, gives an answer, but not this model's.
  static Result<Model> load(const std::string& path);
  static Result<Model> load(Gguf file);

  const Gguf& file() const { return *file_; }
  const Geometry& geometry() const { return geometry_; }
  const std::vector<Layer>& layers() const { return layers_; }
  const std::vector<float>& output_norm() const { return output_norm_; }
  const Matrix& output() const { return output_; }  // the embedding again where the model ties them
  const std::vector<float>& inverse_frequencies() const { return inverse_frequencies_; }
  std::size_t weight_bytes() const;  // of the packed matrices

  void embed(std::int32_t token, std::span<float> out) const;  // 0 <= token < vocabulary

  // What makes a KV cache of this model different from any other: digest of the whole file, geometry, rotation.
  // KV is kept as f16.
  ModelSpec spec() const;

 private:
  Model() = default;
  Status read_geometry();
  Status read_head_sizes();
  Status check_geometry() const;
  Status read_rotation();
  Status read_layer(std::uint32_t i);
  Result<Matrix> read_matrix(std::string_view name, std::uint32_t rows, std::uint32_t columns);
  Result<std::vector<float>> read_vector(std::string_view name, std::uint32_t size);
  Status check_nothing_is_left() const;

  std::unique_ptr<Gguf> file_;  // on the heap, because tensors and names point into it
  Geometry geometry_;
  Tensor embedding_;
  std::vector<Layer> layers_;
  std::vector<float> output_norm_, inverse_frequencies_;
  Matrix output_;
  std::vector<std::string> used_;  // names of the tensors read so far
};

}  // namespace firn::llama
