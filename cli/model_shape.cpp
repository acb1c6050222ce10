#include "cli/model_shape.h"

#include <fmt/format.h>

#include "examples/llama/gguf.h"

namespace firn::cli {
namespace {

Result<sim::ModelShape> shape_of_gguf(const std::string& path) {
  FIRN_ASSIGN(const llama::Gguf file, llama::Gguf::open(path));
  FIRN_ASSIGN(const std::string_view family, file.string_value("general.architecture"));
  const auto number = [&](const char* key, std::uint64_t otherwise) -> Result<std::uint64_t> {
    const std::string name = fmt::format("{}.{}", family, key);
    if (otherwise != 0 && !file.contains(name)) return otherwise;
    FIRN_ASSIGN(const std::uint64_t value, file.unsigned_value(name));
    if (value == 0 || value > 1 << 20)
      return Status(Code::kInvalidArgument,
                    fmt::format("{}: {} is {}: from 1 to 1048576 is expected", path, name, value));
    return value;
  };
  FIRN_ASSIGN(const std::uint64_t layers, number("block_count", 0));
  FIRN_ASSIGN(const std::uint64_t heads, number("attention.head_count", 0));
  FIRN_ASSIGN(const std::uint64_t kv_heads, number("attention.head_count_kv", heads));
  FIRN_ASSIGN(const std::uint64_t hidden, number("embedding_length", 0));
  FIRN_ASSIGN(const std::uint64_t head_dim, number("attention.key_length", hidden / heads));
  sim::ModelShape shape;
  shape.name = path;
  shape.layers = static_cast<std::uint32_t>(layers);
  shape.heads = static_cast<std::uint32_t>(heads);
  shape.kv_heads = static_cast<std::uint32_t>(kv_heads);
  shape.head_dim = static_cast<std::uint32_t>(head_dim);
  const std::string window_key = fmt::format("{}.attention.sliding_window", family);
  if (file.contains(window_key)) {
    FIRN_ASSIGN(const std::uint64_t window, number("attention.sliding_window", 0));
    // Every so many layers one sees everything. Of a family that does not say, all do: an upper bound.
    std::uint64_t every = family == "gemma3" ? 6 : family == "gemma2" ? 2 : 1;
    if (const Result<std::uint64_t> said = number("attention.sliding_window_pattern", every); said.ok()) every = *said;
    shape.set_windows(static_cast<std::uint32_t>(layers / every), static_cast<std::uint32_t>(window));
  }
  // The weights as they are in the file: quantised ones are read in fewer bytes and multiplied all the same.
  for (const auto& [name, tensor] : file.tensors()) {
    shape.parameters += static_cast<double>(tensor.rows) * static_cast<double>(tensor.columns);
    shape.weight_bytes += static_cast<double>(tensor.data.size());
  }
  return shape;
}

}  // namespace

Result<sim::ModelShape> load_model_shape(const std::string& name) {
  constexpr std::string_view kEnding = ".gguf";
  if (name.size() > kEnding.size() && name.compare(name.size() - kEnding.size(), kEnding.size(), kEnding) == 0)
    return shape_of_gguf(name);
  return sim::load_model_shape(name);
}

}  // namespace firn::cli
