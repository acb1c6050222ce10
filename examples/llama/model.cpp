#include "examples/llama/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "examples/llama/check.h"
#include "firn/key.h"

namespace firn::llama {
namespace {

// Everything that is later multiplied or allocated stays far from overflow. No llama comes near.
constexpr std::uint64_t kMaxWidth = 1 << 16, kMaxFeedForward = 1 << 18, kMaxHeads = 1024, kMaxContext = 1 << 24;

Result<std::uint32_t> read_count(const Gguf& file, std::string_view key, std::uint64_t most) {
  FIRN_ASSIGN(const std::uint64_t value, file.unsigned_value(key));
  if (value < 1 || value > most)
    return Status(Code::kInvalidArgument, fmt::format("{}: {} is {}; 1 to {}", file.name(), key, value, most));
  return static_cast<std::uint32_t>(value);
}

// The key's value, or fallback where the file leaves it out.
Result<std::uint32_t> read_count_or(const Gguf& file, std::string_view key, std::uint64_t most,
                                    std::uint32_t fallback) {
  if (!file.contains(key)) return fallback;
  return read_count(file, key, most);
}

}  // namespace

Result<Model> Model::load(const std::string& path) {
  FIRN_ASSIGN(Gguf file, Gguf::open(path));
  return load(std::move(file));
}

Result<Model> Model::load(Gguf file) {
  Model model;
  model.file_ = std::make_unique<Gguf>(std::move(file));
  FIRN_TRY(model.read_geometry());
  const Geometry& g = model.geometry_;
  FIRN_TRY(model.read_rotation());
  for (std::uint32_t i = 0; i < g.layers; ++i) FIRN_TRY(model.read_layer(i));
  FIRN_ASSIGN(model.output_norm_, model.read_vector("output_norm.weight", g.hidden));
  const bool tied = model.file_->find_tensor("output.weight") == nullptr;
  FIRN_ASSIGN(model.output_, model.read_matrix(tied ? "token_embd.weight" : "output.weight", g.vocabulary, g.hidden));
  FIRN_ASSIGN(model.embedding_, model.file_->get_tensor("token_embd.weight", g.vocabulary, g.hidden));
  model.used_.push_back("token_embd.weight");
  FIRN_TRY(model.check_nothing_is_left());
  return model;
}

Status Model::read_geometry() {
  FIRN_ASSIGN(const auto architecture, file_->string_value("general.architecture"));
  if (architecture != "llama")
    return Status(Code::kInvalidArgument,
                  fmt::format("{}: architecture '{}'; this engine knows 'llama'", file_->name(), architecture));
  Geometry& g = geometry_;
  FIRN_ASSIGN(g.layers, read_count(*file_, "llama.block_count", kMaxLayers));
  FIRN_ASSIGN(g.hidden, read_count(*file_, "llama.embedding_length", kMaxWidth));
  FIRN_ASSIGN(g.feed_forward, read_count(*file_, "llama.feed_forward_length", kMaxFeedForward));
  FIRN_ASSIGN(g.context_tokens, read_count(*file_, "llama.context_length", kMaxContext));
  FIRN_ASSIGN(const double epsilon, file_->real_value("llama.attention.layer_norm_rms_epsilon"));
  if (!(epsilon > 1e-30 && epsilon < 1))
    return Status(Code::kInvalidArgument,
                  fmt::format("{}: llama.attention.layer_norm_rms_epsilon is {}; more than 1e-30, less than 1",
                              file_->name(), epsilon));
  g.norm_epsilon = static_cast<float>(epsilon);
  const Tensor* embedding = file_->find_tensor("token_embd.weight");
  if (embedding == nullptr)
    return Status(Code::kInvalidArgument, fmt::format("{}: the tensor 'token_embd.weight' is missing", file_->name()));
  g.vocabulary = static_cast<std::uint32_t>(std::min<std::size_t>(embedding->rows, kMaxGgufDimension));
  g.tokens = g.vocabulary;
  if (file_->contains("tokenizer.ggml.tokens")) {
    FIRN_ASSIGN(const auto spellings, file_->string_array("tokenizer.ggml.tokens"));
    if (spellings.empty() || spellings.size() > g.vocabulary)
      return Status(Code::kCorrupt, fmt::format("{}: {} tokens in 'tokenizer.ggml.tokens', and {} rows in "
                                                "'token_embd.weight'; each token needs one",
                                                file_->name(), spellings.size(), g.vocabulary));
    g.tokens = static_cast<std::uint32_t>(spellings.size());
  }
  FIRN_TRY(read_head_sizes());
  return check_geometry();
}

Status Model::read_head_sizes() {
  Geometry& g = geometry_;
  FIRN_ASSIGN(g.heads, read_count(*file_, "llama.attention.head_count", kMaxHeads));
  FIRN_ASSIGN(g.kv_heads, read_count_or(*file_, "llama.attention.head_count_kv", kMaxHeads, g.heads));
  FIRN_ASSIGN(g.head_dim, read_count_or(*file_, "llama.attention.key_length", kMaxHeadDim, g.hidden / g.heads));
  FIRN_ASSIGN(const auto value_dim, read_count_or(*file_, "llama.attention.value_length", kMaxHeadDim, g.head_dim));
  FIRN_ASSIGN(g.rotated_dims, read_count_or(*file_, "llama.rope.dimension_count", kMaxHeadDim, g.head_dim));
  if (value_dim != g.head_dim)
    return Status(Code::kInvalidArgument,
                  fmt::format("{}: keys have {} elements but values {}; this engine wants equal", file_->name(),
                              g.head_dim, value_dim));
  return {};
}

Status Model::check_geometry() const {
  const Geometry& g = geometry_;
  const auto refuse = [&](std::string_view why) {
    return Status(Code::kInvalidArgument, fmt::format("{}: {}", file_->name(), why));
  };
  if (g.head_dim == 0 || g.head_dim > kMaxHeadDim || g.query_width() > kMaxWidth)
    return refuse(fmt::format("{} heads of {} elements in a width of {}", g.heads, g.head_dim, g.hidden));
  if (g.kv_heads > g.heads || g.heads % g.kv_heads != 0)
    return refuse(fmt::format("{} query heads cannot share {} key heads evenly", g.heads, g.kv_heads));
  if (g.rotated_dims > g.head_dim || g.rotated_dims % 2 != 0)
    return refuse(fmt::format("{} rotated dimensions of {}; an even number of them", g.rotated_dims, g.head_dim));
  if (file_->contains("llama.rope.scaling.type")) {
    FIRN_ASSIGN(const auto scaling, file_->string_value("llama.rope.scaling.type"));
    if (scaling != "none") return refuse(fmt::format("rotation scaling '{}'; this engine knows 'none'", scaling));
  }
  return {};
}

Status Model::read_rotation() {
  FIRN_ASSIGN(const double base, file_->contains("llama.rope.freq_base") ? file_->real_value("llama.rope.freq_base")
                                                                         : Result<double>(10000.0));
  if (!(base >= 1 && base <= 1e12))
    return Status(Code::kInvalidArgument,
                  fmt::format("{}: llama.rope.freq_base is {}; 1 to 1e12", file_->name(), base));
  geometry_.rope_base = static_cast<float>(base);
  const std::uint32_t pairs = geometry_.rotated_dims / 2;
  std::vector<float> factors(pairs, 1.0f);  // Llama 3.1 stretches some frequencies and says how in a tensor
  if (file_->find_tensor("rope_freqs.weight") != nullptr) {
    FIRN_ASSIGN(factors, read_vector("rope_freqs.weight", pairs));
  }
  for (std::uint32_t i = 0; i < pairs; ++i) {
    const double turn = std::pow(base, -2.0 * i / geometry_.rotated_dims) / static_cast<double>(factors[i]);
    if (!(std::abs(turn) <= 1e30))  // a float holds it
      return Status(Code::kCorrupt, fmt::format("{}: rope_freqs.weight[{}] is {}", file_->name(), i, factors[i]));
    inverse_frequencies_.push_back(static_cast<float>(turn));
  }
  return {};
}

Status Model::read_layer(std::uint32_t i) {
  const Geometry& g = geometry_;
  const auto name = [i](std::string_view part) { return fmt::format("blk.{}.{}.weight", i, part); };
  Layer layer;
  FIRN_ASSIGN(layer.attention_norm, read_vector(name("attn_norm"), g.hidden));
  FIRN_ASSIGN(layer.query, read_matrix(name("attn_q"), g.query_width(), g.hidden));
  FIRN_ASSIGN(layer.key, read_matrix(name("attn_k"), g.kv_width(), g.hidden));
  FIRN_ASSIGN(layer.value, read_matrix(name("attn_v"), g.kv_width(), g.hidden));
  FIRN_ASSIGN(layer.attention_out, read_matrix(name("attn_output"), g.hidden, g.query_width()));
  FIRN_ASSIGN(layer.feed_forward_norm, read_vector(name("ffn_norm"), g.hidden));
  FIRN_ASSIGN(layer.gate, read_matrix(name("ffn_gate"), g.feed_forward, g.hidden));
  FIRN_ASSIGN(layer.up, read_matrix(name("ffn_up"), g.feed_forward, g.hidden));
  FIRN_ASSIGN(layer.down, read_matrix(name("ffn_down"), g.hidden, g.feed_forward));
  layers_.push_back(std::move(layer));
  return {};
}

Result<Matrix> Model::read_matrix(std::string_view name, std::uint32_t rows, std::uint32_t columns) {
  FIRN_ASSIGN(const Tensor tensor, file_->get_tensor(name, rows, columns));
  used_.emplace_back(name);
  Result<Matrix> packed = Matrix::pack(tensor);
  if (!packed.ok()) return packed.status().with_context(file_->name());
  return packed;
}

Result<std::vector<float>> Model::read_vector(std::string_view name, std::uint32_t size) {
  FIRN_ASSIGN(const Tensor tensor, file_->get_tensor(name, 1, size));
  used_.emplace_back(name);
  std::vector<float> values(size);
  dequantise_row(tensor.type, tensor.data, values);
  return values;
}

Status Model::check_nothing_is_left() const {
  std::vector<std::string_view> used(used_.begin(), used_.end());
  std::sort(used.begin(), used.end());
  for (const auto& [name, tensor] : file_->tensors())
    if (!std::binary_search(used.begin(), used.end(), name))
      return Status(
          Code::kInvalidArgument,
          fmt::format("{}: tensor '{}' has no place in a plain llama; this is another model", file_->name(), name));
  return {};
}

std::size_t Model::weight_bytes() const {
  std::size_t bytes = output_.bytes();
  for (const Layer& layer : layers_)
    for (const Matrix* matrix :
         {&layer.query, &layer.key, &layer.value, &layer.attention_out, &layer.gate, &layer.up, &layer.down})
      bytes += matrix->bytes();
  return bytes;
}

void Model::embed(std::int32_t token, std::span<float> out) const {
  LLAMA_CHECK(token >= 0 && static_cast<std::uint32_t>(token) < geometry_.vocabulary);
  dequantise_row(embedding_.type, embedding_.row(static_cast<std::size_t>(token)), out);
}

ModelSpec Model::spec() const {
  Hasher hasher;
  hasher.update(file_->bytes());
  ModelSpec spec;
  spec.name = file_->contains("general.name") && file_->string_value("general.name").ok()
                  ? std::string(*file_->string_value("general.name"))
                  : file_->name();
  spec.weights = hasher.finish();
  GroupSpec group;
  group.layer_count = geometry_.layers;
  group.kv = {Dtype::kF16, geometry_.kv_heads, geometry_.head_dim, geometry_.head_dim};
  spec.groups.push_back(group);
  spec.rotation.pairing = RotationSpec::Pairing::kAdjacent;
  spec.rotation.dims = geometry_.rotated_dims;
  spec.rotation.inverse_frequencies = inverse_frequencies_;
  return spec;
}

}  // namespace firn::llama
