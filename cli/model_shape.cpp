#include "cli/model_shape.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>

#include "examples/llama/gguf.h"

namespace firn::cli {
namespace {

// Families whose layers are attention and feed-forward, as they are counted here; every: with a window, every so many
// layers one sees everything. Of a family that has a window and no rule, all layers are counted in full: an upper
// bound.
struct Family {
  std::string_view name;
  std::uint32_t every = 0;
};
constexpr std::array<Family, 19> kFamilies = {{{"llama"},
                                               {"mistral3"},
                                               {"qwen2"},
                                               {"qwen3"},
                                               {"qwen2moe"},
                                               {"qwen3moe"},
                                               {"gemma"},
                                               {"gemma2", 2},
                                               {"gemma3", 6},
                                               {"phi3"},
                                               {"phimoe"},
                                               {"granite"},
                                               {"granitemoe"},
                                               {"olmo2"},
                                               {"olmoe"},
                                               {"smollm3"},
                                               {"gpt-oss", 2},
                                               {"deepseek2"},
                                               {"glm4moe"}}};

class Reader {
 public:
  explicit Reader(const llama::Gguf& file) : file_(file) {}

  Result<sim::ModelShape> run() {
    FIRN_ASSIGN(const std::string_view name, file_.string_value("general.architecture"));
    const auto family =
        std::find_if(kFamilies.begin(), kFamilies.end(), [&](const Family& f) { return f.name == name; });
    if (family == kFamilies.end()) {
      std::string names;
      for (const Family& known : kFamilies) names += (names.empty() ? "" : ", ") + std::string(known.name);
      return wrong("general.architecture",
                   fmt::format("is \"{}\", which is not understood; known are {}", name.substr(0, 40), names));
    }
    family_ = name;
    FIRN_TRY(refuse_parts());
    sim::ModelShape shape;
    shape.name = file_.name();
    FIRN_TRY(read_heads(shape));
    FIRN_TRY(read_experts(shape));
    FIRN_TRY(read_windows(*family, shape));
    count_weights(shape);
    FIRN_TRY(validate(shape.spec()).with_context(file_.name()));
    return shape;
  }

 private:
  Status wrong(std::string_view key, const std::string& what) const {
    return Status(Code::kInvalidArgument, fmt::format("{}: {} {}", file_.name(), key, what));
  }
  std::string key(std::string_view name) const { return fmt::format("{}.{}", family_, name); }
  Result<std::uint64_t> number(std::string_view name, std::uint64_t most,
                               std::optional<std::uint64_t> otherwise = {}) const {
    const std::string at = key(name);
    if (otherwise && !file_.contains(at)) return *otherwise;
    FIRN_ASSIGN(const std::uint64_t value, file_.unsigned_value(at));
    if (value == 0 || value > most) return wrong(at, fmt::format("is {}: from 1 to {} is expected", value, most));
    return value;
  }
  Status refuse_parts() const {
    if (file_.contains("split.count")) {
      FIRN_ASSIGN(const std::uint64_t parts, file_.unsigned_value("split.count"));
      if (parts > 1)
        return wrong(
            "split.count",
            fmt::format("is {}: the file is one part of a model; join them (llama-gguf-split --merge)", parts));
    }
    for (const std::string_view part :
         {"ssm.state_size", "ssm.conv_kernel", "wkv.head_size", "rwkv.head_count", "shortconv.l_cache"})
      if (file_.contains(key(part))) return wrong(key(part), "is not understood: layers with a state are not counted");
    return {};
  }
  Status read_heads(sim::ModelShape& shape) const {
    constexpr std::uint64_t kMostWidth = 1u << 20;
    FIRN_ASSIGN(const std::uint64_t layers, number("block_count", kMaxLayers));
    FIRN_ASSIGN(const std::uint64_t heads, number("attention.head_count", kMaxKvHeads));
    FIRN_ASSIGN(const std::uint64_t kv_heads, number("attention.head_count_kv", kMaxKvHeads, heads));
    FIRN_ASSIGN(const std::uint64_t hidden, number("embedding_length", kMostWidth));
    FIRN_ASSIGN(const std::uint64_t head_dim, number("attention.key_length", kMaxHeadDim, hidden / heads));
    if (head_dim == 0 || head_dim > kMaxHeadDim)
      return wrong(key("embedding_length"), fmt::format("is {} for {} heads", hidden, heads));
    shape.layers = static_cast<std::uint32_t>(layers);
    shape.heads = static_cast<std::uint32_t>(heads);
    shape.kv_heads = static_cast<std::uint32_t>(kv_heads);
    shape.hidden = static_cast<std::uint32_t>(hidden);
    shape.head_dim = static_cast<std::uint32_t>(head_dim);
    if (!file_.contains(key("attention.kv_lora_rank"))) return {};
    FIRN_ASSIGN(const std::uint64_t rank, number("attention.kv_lora_rank", kMaxHeadDim));
    FIRN_ASSIGN(const std::uint64_t rotated, number("rope.dimension_count", kMaxHeadDim));
    if (rank + rotated > kMaxHeadDim)
      return wrong(key("attention.kv_lora_rank"), "and the rotated dimensions are too many");
    FIRN_ASSIGN(const std::uint64_t made, number("attention.key_length_mla", kMaxHeadDim, head_dim));
    shape.latent_dim = static_cast<std::uint32_t>(rank + rotated);
    shape.head_dim = static_cast<std::uint32_t>(made);
    shape.kv_heads = shape.heads;
    shape.groups = shape.spec().groups;
    return {};
  }
  Status read_experts(sim::ModelShape& shape) const {
    if (!file_.contains(key("expert_count"))) return {};
    FIRN_ASSIGN(const std::uint64_t experts, file_.unsigned_value(key("expert_count")));
    if (experts == 0) return {};
    if (experts > 65536) return wrong(key("expert_count"), fmt::format("is {}", experts));
    FIRN_ASSIGN(const std::uint64_t each, number("expert_used_count", experts));
    shape.experts = static_cast<std::uint32_t>(experts);
    shape.experts_per_token = static_cast<std::uint32_t>(each);
    return {};
  }
  Status read_windows(const Family& family, sim::ModelShape& shape) const {
    if (!file_.contains(key("attention.sliding_window"))) return {};
    FIRN_ASSIGN(const std::uint64_t window, file_.unsigned_value(key("attention.sliding_window")));
    if (window == 0) return {};
    if (window >= (1u << 30)) return wrong(key("attention.sliding_window"), fmt::format("is {}", window));
    FIRN_ASSIGN(const std::uint64_t every,
                number("attention.sliding_window_pattern", kMaxLayers, family.every != 0 ? family.every : 1));
    if (shape.latent_dim != 0)
      return wrong(key("attention.sliding_window"), "is not understood together with latent attention");
    shape.set_windows(static_cast<std::uint32_t>(shape.layers / every), static_cast<std::uint32_t>(window));
    return {};
  }
  // The weights as they are in the file: quantised ones are read in fewer bytes and multiplied all the same.
  void count_weights(sim::ModelShape& shape) const {
    const bool tied = file_.find_tensor("output.weight") == nullptr;
    for (const auto& [name, tensor] : file_.tensors()) {
      const double count = static_cast<double>(tensor.rows) * static_cast<double>(tensor.columns);
      const double bytes = static_cast<double>(tensor.data.size());
      shape.parameters += count;
      shape.weight_bytes += bytes;
      const bool routed = shape.experts != 0 && name.find("_exps.") != std::string_view::npos;
      if (routed) {
        shape.expert_bytes += bytes;
        shape.active_parameters += count * shape.experts_per_token / shape.experts;
      } else if (name == "token_embd.weight") {
        if (tied) shape.head_parameters = count;
        if (!tied) shape.embedding_bytes = bytes;
      } else if (name == "output.weight") {
        shape.head_parameters = count;
      } else {
        shape.active_parameters += count;
      }
    }
    if (shape.parameters > 0) shape.weight_bits = 8 * shape.weight_bytes / shape.parameters;
  }

  const llama::Gguf& file_;
  std::string family_;
};

}  // namespace

Result<sim::ModelShape> shape_of_gguf(std::span<const std::byte> bytes, const std::string& name) {
  FIRN_ASSIGN(const llama::Gguf file, llama::Gguf::parse(bytes, name, llama::GgufUse::kDirectory));
  return Reader(file).run();
}

Result<sim::ModelShape> load_model_shape(const std::string& name) {
  constexpr std::string_view kEnding = ".gguf";
  if (name.size() <= kEnding.size() || name.compare(name.size() - kEnding.size(), kEnding.size(), kEnding) != 0)
    return sim::load_model_shape(name);
  FIRN_ASSIGN(const llama::Gguf file, llama::Gguf::open(name, llama::GgufUse::kDirectory));
  return Reader(file).run();
}

}  // namespace firn::cli
