// model_config.cpp: a model's shape out of its config.json. Families are known by name, because what is left out of a
// file, and what a number means, is the family's rule. Every number is checked where it is read, and a key that says
// that there is more to the model than is understood here is refused with its name: a wrong size is worse than none.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>

#include "sim/hardware.h"

namespace firn::sim {
namespace {

using Json = nlohmann::json;

// What the families differ in.
struct Family {
  std::string_view name;
  bool tied = false;        // tie_word_embeddings where the file does not say
  bool experts = false;     // may have them
  std::uint32_t every = 0;  // with a window: every so many layers one sees everything; 0: none does
  bool latent = false;
};
constexpr std::array<Family, 25> kFamilies = {{{"llama"},
                                               {"mistral"},
                                               {"mistral3"},
                                               {"ministral3"},
                                               {"mixtral", false, true},
                                               {"qwen2"},
                                               {"qwen3"},
                                               {"qwen2_moe", false, true},
                                               {"qwen3_moe", false, true},
                                               {"gemma", true},
                                               {"gemma2", true, false, 2},
                                               {"gemma3", true, false, 6},
                                               {"gemma3_text", true, false, 6},
                                               {"phi3"},
                                               {"phimoe", false, true},
                                               {"granite"},
                                               {"granitemoe", false, true},
                                               {"olmo2"},
                                               {"olmoe", false, true},
                                               {"smollm3", true},
                                               {"gpt_oss", false, true, 2},
                                               {"deepseek_v2", false, true, 0, true},
                                               {"deepseek_v3", false, true, 0, true},
                                               {"kimi_k2", false, true, 0, true},
                                               {"glm4_moe", false, true}}};

Status wrong(const std::string& file, std::string_view key, const std::string& what) {
  return Status(Code::kInvalidArgument, fmt::format("{}: \"{}\" {}", file, key, what));
}

std::string brief(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

// One object of the file, and its name in messages.
class Object {
 public:
  Object(const Json& json, std::string file) : json_(json), file_(std::move(file)) {}
  const Json& json() const { return json_; }
  const std::string& file() const { return file_; }
  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }

  // A whole number of that range, otherwise a sentence that names the key. Without `otherwise` it must be there.
  Result<std::uint64_t> count(const char* key, std::uint64_t least, std::uint64_t most,
                              std::optional<std::uint64_t> otherwise = {}) const {
    if (!has(key)) {
      if (otherwise) return *otherwise;
      return wrong(file_, key, "is missing");
    }
    const Json& value = json_[key];
    const auto refuse = [&] {
      return wrong(file_, key,
                   fmt::format("is {}: a whole number from {} to {} is expected", brief(value), least, most));
    };
    std::uint64_t number = 0;
    if (value.is_number_unsigned() || (value.is_number_integer() && value.get<std::int64_t>() >= 0)) {
      number = value.get<std::uint64_t>();
    } else if (value.is_number_float()) {  // 4096.0 is how some programs write it
      const double real = value.get<double>();
      if (!(real >= 0 && real <= 0x1p53) || real != std::floor(real)) return refuse();
      number = static_cast<std::uint64_t>(real);
    } else {
      return refuse();
    }
    if (number < least || number > most) return refuse();
    return number;
  }
  Result<bool> flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!json_[key].is_boolean())
      return wrong(file_, key, fmt::format("is {}: true or false is expected", brief(json_[key])));
    return json_[key].get<bool>();
  }
  Result<std::string> word(const char* key, const std::string& otherwise) const {
    if (!has(key)) return otherwise;
    if (!json_[key].is_string())
      return wrong(file_, key, fmt::format("is {}: a string is expected", brief(json_[key])));
    return json_[key].get<std::string>();
  }

 private:
  const Json& json_;
  std::string file_;
};

constexpr std::uint64_t kMostSize = 1u << 20, kMostVocabulary = 1u << 24;

// Keys that say more than a plain transformer, and that are read below or change no size.
constexpr std::string_view kUnderstood[] = {
    "num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok", "experts_per_token",
    "num_experts_per_token", "moe_intermediate_size", "shared_expert_intermediate_size", "n_shared_experts",
    "num_shared_experts", "decoder_sparse_step", "mlp_only_layers", "first_k_dense_replace", "moe_layer_freq",
    "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "qk_head_dim",
    "num_nextn_predict_layers",  // drafts of later tokens: not loaded by an engine that does not use them
    // of training and of rounding
    "norm_topk_prob", "router_aux_loss_coef", "router_jitter_noise", "output_router_logits", "router_logits_to_keep",
    "moe_router_dtype", "aux_loss_alpha", "seq_aux", "router_z_loss_coef", "input_jitter_noise",
    "moe_layer_start_index", "experts_implementation"};
constexpr std::string_view kSuspicious[] = {
    "expert",          "moe",       "mamba",      "ssm",   "lora_rank", "linear_", "state_size", "conv",
    "cross_attention", "recurrent", "rwkv",       "chunk", "altup",     "laurel",  "kv_shared",  "num_nextn",
    "hyena",           "xlstm",     "multi_query"};

Status refuse_unknown(const Object& object) {
  for (const auto& [key, value] : object.json().items()) {
    if (value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
        (value.is_number() && value.get<double>() == 0))
      continue;
    if (value.is_array() && value.empty()) continue;
    if (std::find(std::begin(kUnderstood), std::end(kUnderstood), key) != std::end(kUnderstood)) continue;
    for (const std::string_view part : kSuspicious)
      if (key.find(part) != std::string::npos)
        return wrong(
            object.file(), key,
            fmt::format(
                "({}) is not understood, and it may change the model's size; give a GGUF file of the model instead",
                brief(value)));
  }
  return {};
}

// How many bits a weight takes, and which weights.
struct Bits {
  double most = 16;       // of matrices
  double experts = 16;    // of routed experts
  double others = 16;     // of embeddings, the output matrix, and what is left as it was
  bool attention = true;  // attention is quantised too
};

Result<double> stored_bits(const Object& object) {
  FIRN_ASSIGN(std::string name, object.word("torch_dtype", ""));
  if (name.empty()) {
    FIRN_ASSIGN(name, object.word("dtype", "bfloat16"));
  }
  for (const auto& [word, bits] : {std::pair{"float32", 32.0},
                                   {"float16", 16.0},
                                   {"bfloat16", 16.0},
                                   {"float8_e4m3fn", 8.0},
                                   {"float8_e5m2", 8.0}})
    if (name == word) return bits;
  return wrong(object.file(), "torch_dtype",
               fmt::format("is \"{}\": float32, float16, bfloat16 and float8 are known", name));
}

// A scale of 16 bits, and with an asymmetric code a zero point, to each group of weights.
double grouped_bits(double bits, double group, bool zero) {
  return group > 0 ? bits + (16 + (zero ? bits : 0)) / group : bits;
}

Result<double> group_bits(const Object& config, std::uint64_t bits, bool zero) {
  if (config.has("group_size") && config.json()["group_size"].is_number_integer() &&
      config.json()["group_size"].get<std::int64_t>() == -1)
    return static_cast<double>(bits);  // one scale a row
  FIRN_ASSIGN(const std::uint64_t group, config.count("group_size", 8, 65536, 128));
  return grouped_bits(static_cast<double>(bits), static_cast<double>(group), zero);
}

Result<Bits> read_bits(const Object& object) {
  Bits bits;
  FIRN_ASSIGN(bits.most, stored_bits(object));
  bits.experts = bits.others = bits.most;
  if (!object.has("quantization_config")) return bits;
  const Json& json = object.json()["quantization_config"];
  const Object config(json, object.file() + ": quantization_config");
  if (!json.is_object()) return wrong(object.file(), "quantization_config", "is no object");
  FIRN_ASSIGN(const std::string method, config.word("quant_method", ""));
  if (method == "gptq" || method == "awq" || method == "auto-round" || method == "autoround") {
    FIRN_ASSIGN(const std::uint64_t width, config.count("bits", 2, 8));
    FIRN_ASSIGN(bits.most, group_bits(config, width, true));
    bits.experts = bits.most;
    return bits;
  }
  if (method == "fp8" || method == "fbgemm_fp8") {
    bits.most = bits.experts = 8;
    if (config.has("weight_block_size")) bits.most = bits.experts = 8 + 32.0 / (128 * 128);
    return bits;
  }
  if (method == "mxfp4") {  // of experts; the rest stays as it was
    bits.experts = 4.25;    // 32 weights of 4 bits share a scale of 8
    return bits;
  }
  if (method == "bitsandbytes") {
    FIRN_ASSIGN(const bool four, config.flag("load_in_4bit", false));
    FIRN_ASSIGN(const bool eight, config.flag("load_in_8bit", false));
    FIRN_ASSIGN(const bool twice, config.flag("bnb_4bit_use_double_quant", false));
    if (four == eight)
      return wrong(config.file(), "load_in_4bit", "and load_in_8bit: one of them is expected to be true");
    bits.most = bits.experts = eight ? 8 : twice ? 4 + 8.0 / 64 + 32.0 / (64 * 256) : 4 + 32.0 / 64;
    return bits;
  }
  if (method == "compressed-tensors") {
    if (!config.has("config_groups") || !json["config_groups"].is_object() || json["config_groups"].size() != 1)
      return wrong(config.file(), "config_groups", "must be one group: others are not understood");
    const Json& group = json["config_groups"].begin().value();
    if (!group.is_object() || !group.contains("weights") || !group["weights"].is_object())
      return wrong(config.file(), "config_groups", "has no \"weights\"");
    const Object weights(group["weights"], config.file() + ": weights");
    FIRN_ASSIGN(const std::uint64_t width, weights.count("num_bits", 2, 16));
    FIRN_ASSIGN(const bool symmetric, weights.flag("symmetric", true));
    bits.most = static_cast<double>(width);
    if (weights.has("group_size")) {
      FIRN_ASSIGN(bits.most, group_bits(weights, width, !symmetric));
    }
    bits.experts = bits.most;
    return bits;
  }
  return wrong(
      config.file(), "quant_method",
      fmt::format("is \"{}\": gptq, awq, auto-round, fp8, mxfp4, bitsandbytes and compressed-tensors are known",
                  method));
}

// How many layers see everything: by their list, or by the families' own rule.
Result<std::uint32_t> full_layers(const Object& object, const Family& family, std::uint32_t layers) {
  const Json& json = object.json();
  if (object.has("layer_types")) {
    if (!json["layer_types"].is_array() || json["layer_types"].size() != layers)
      return wrong(object.file(), "layer_types", "is not of num_hidden_layers entries");
    std::uint32_t full = 0;
    for (const Json& type : json["layer_types"]) {
      const std::string name = type.is_string() ? type.get<std::string>() : brief(type);
      full += name == "full_attention";
      if (name != "full_attention" && name != "sliding_attention")
        return wrong(object.file(), "layer_types", fmt::format("has layers of {}, which is not understood", name));
    }
    return full;
  }
  FIRN_ASSIGN(const std::uint64_t every, object.count("sliding_window_pattern", 1, 1024, family.every));
  if (object.has("sliding_window_pattern") || family.every != 0)
    return static_cast<std::uint32_t>(every == 0 ? 0 : layers / every);
  // Qwen 2: there is a number, and it is used only if that is said; those before max_window_layers see everything.
  FIRN_ASSIGN(const bool used, object.flag("use_sliding_window", true));
  if (!used) return layers;
  FIRN_ASSIGN(const std::uint64_t first, object.count("max_window_layers", 0, kMostSize, 0));
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(layers, first));
}

Status read_windows(const Object& object, const Family& family, ModelShape& model) {
  FIRN_ASSIGN(const std::uint32_t full, full_layers(object, family, model.layers));
  FIRN_ASSIGN(const std::uint64_t window, object.count("sliding_window", 0, ~std::uint32_t{0}, 0));
  if (window == 0) {
    if (object.has("layer_types") && full != model.layers)
      return wrong(object.file(), "sliding_window", "is missing, and layer_types has layers with one");
    return {};
  }
  if (window < (1u << 30)) model.set_windows(full, static_cast<std::uint32_t>(window));
  return {};
}

// Layers with routed experts, and what each of them has.
struct Mixture {
  std::uint64_t layers = 0, experts = 0, each = 0, inner = 0, shared_inner = 0;
};

Result<Mixture> read_mixture(const Object& object, const Family& family, std::uint64_t layers, std::uint64_t inner) {
  Mixture m;
  const char* key = nullptr;
  for (const char* name : {"num_local_experts", "num_experts", "n_routed_experts"})
    if (object.has(name)) key = name;
  if (key == nullptr) {
    if (family.experts && family.name != "deepseek_v2" && family.name != "granitemoe")
      return wrong(object.file(),
                   family.latent || family.name == "glm4_moe" ? "n_routed_experts"
                   : family.name == "mixtral" || family.name == "gpt_oss" || family.name == "phimoe"
                       ? "num_local_experts"
                       : "num_experts",
                   "is missing");
    return m;
  }
  FIRN_ASSIGN(m.experts, object.count(key, 0, 65536));
  if (m.experts == 0) return m;
  if (!family.experts)
    return wrong(object.file(), key,
                 fmt::format("is {}, and models of the kind {} are not known to have experts", m.experts, family.name));
  const char* each = object.has("num_experts_per_tok") ? "num_experts_per_tok"
                     : object.has("experts_per_token") ? "experts_per_token"
                                                       : "num_experts_per_tok";
  FIRN_ASSIGN(m.each, object.count(each, 1, m.experts));
  FIRN_ASSIGN(m.inner, object.count("moe_intermediate_size", 1, kMostSize, inner));
  FIRN_ASSIGN(m.shared_inner, object.count("shared_expert_intermediate_size", 0, kMostSize, 0));
  FIRN_ASSIGN(const std::uint64_t shared,
              object.count(object.has("num_shared_experts") ? "num_shared_experts" : "n_shared_experts", 0, 1024, 0));
  if (shared != 0) m.shared_inner = shared * m.inner;
  FIRN_ASSIGN(const std::uint64_t dense_first, object.count("first_k_dense_replace", 0, layers, 0));
  FIRN_ASSIGN(const std::uint64_t every, object.count("moe_layer_freq", 1, layers, 1));
  FIRN_ASSIGN(const std::uint64_t step, object.count("decoder_sparse_step", 1, layers, 1));
  std::vector<bool> dense(layers);
  for (std::uint64_t i = 0; i < layers; ++i) dense[i] = i < dense_first || i % every != 0 || (i + 1) % step != 0;
  if (object.has("mlp_only_layers")) {
    const Json& list = object.json()["mlp_only_layers"];
    if (!list.is_array()) return wrong(object.file(), "mlp_only_layers", "is no list");
    for (const Json& layer : list) {
      if (!layer.is_number_unsigned() || layer.get<std::uint64_t>() >= layers)
        return wrong(object.file(), "mlp_only_layers",
                     fmt::format("has {}: numbers of layers are expected", brief(layer)));
      dense[layer.get<std::uint64_t>()] = true;
    }
  }
  m.layers = static_cast<std::uint64_t>(std::count(dense.begin(), dense.end(), false));
  return m;
}

// Parameters of one layer's attention. Latent: by its own factors.
Result<double> attention_parameters(const Object& object, const Family& family, std::uint64_t hidden,
                                    ModelShape& model) {
  const double h = static_cast<double>(hidden), heads = model.heads;
  if (!family.latent) {
    if (object.has("kv_lora_rank"))
      return wrong(object.file(), "kv_lora_rank",
                   fmt::format("is not understood in models of the kind {}", family.name));
    return h * model.head_dim * (2.0 * model.heads + 2.0 * model.kv_heads);
  }
  FIRN_ASSIGN(const std::uint64_t kv_rank, object.count("kv_lora_rank", 1, kMaxHeadDim));
  FIRN_ASSIGN(const std::uint64_t rope, object.count("qk_rope_head_dim", 1, kMaxHeadDim));
  FIRN_ASSIGN(const std::uint64_t plain, object.count("qk_nope_head_dim", 1, kMaxHeadDim));
  FIRN_ASSIGN(const std::uint64_t value, object.count("v_head_dim", 1, kMaxHeadDim));
  FIRN_ASSIGN(const std::uint64_t q_rank, object.count("q_lora_rank", 0, kMostSize, 0));
  if (kv_rank + rope > kMaxHeadDim)
    return wrong(object.file(), "kv_lora_rank",
                 fmt::format("and qk_rope_head_dim are more than {} together", kMaxHeadDim));
  const double query = static_cast<double>(plain + rope), q = static_cast<double>(q_rank),
               kv = static_cast<double>(kv_rank);
  model.latent_dim = static_cast<std::uint32_t>(kv_rank + rope);
  model.head_dim = static_cast<std::uint32_t>(plain + rope);
  model.kv_heads = model.heads;  // of the keys that are made from the latent rows
  return (q_rank == 0 ? h * heads * query : q * (h + heads * query)) + h * static_cast<double>(model.latent_dim) +
         kv * heads * static_cast<double>(plain + value) + heads * static_cast<double>(value) * h;
}

// Of a tower that turns pictures into tokens: its layers. It lies on the device beside the rest.
Result<double> vision_parameters(const Object& whole) {
  if (!whole.has("vision_config")) return 0.0;
  if (!whole.json()["vision_config"].is_object()) return wrong(whole.file(), "vision_config", "is no object");
  const Object vision(whole.json()["vision_config"], whole.file() + ": vision_config");
  FIRN_ASSIGN(const std::uint64_t layers, vision.count("num_hidden_layers", 1, kMaxLayers));
  FIRN_ASSIGN(const std::uint64_t hidden, vision.count("hidden_size", 1, kMostSize));
  FIRN_ASSIGN(const std::uint64_t inner, vision.count("intermediate_size", 1, kMostSize));
  const double h = static_cast<double>(hidden);
  return static_cast<double>(layers) * (4 * h * h + 2 * h * static_cast<double>(inner));
}

Result<ModelShape> shape_of(const Object& object, const Object& whole, const Family& family) {
  ModelShape model;
  FIRN_TRY(refuse_unknown(object));
  for (const char* key : {"audio_config", "encoder", "decoder", "thinker_config"})
    if (whole.has(key)) return wrong(whole.file(), key, "is not understood: the model has parts that are not counted");
  FIRN_ASSIGN(const std::uint64_t layers, object.count("num_hidden_layers", 1, kMaxLayers));
  FIRN_ASSIGN(const std::uint64_t heads, object.count("num_attention_heads", 1, kMaxKvHeads));
  FIRN_ASSIGN(const std::uint64_t kv_heads, object.count("num_key_value_heads", 1, heads, heads));
  FIRN_ASSIGN(const std::uint64_t hidden, object.count("hidden_size", 1, kMostSize));
  FIRN_ASSIGN(const std::uint64_t head_dim,
              object.count("head_dim", 1, kMaxHeadDim, std::max<std::uint64_t>(1, hidden / heads)));
  FIRN_ASSIGN(const std::uint64_t words, object.count("vocab_size", 1, kMostVocabulary, 0));
  FIRN_ASSIGN(const std::uint64_t inner, object.count("intermediate_size", 1, kMostSize, 0));
  if (head_dim > kMaxHeadDim)
    return wrong(object.file(), "hidden_size",
                 fmt::format("is {} for {} heads: heads of {} at most are known", hidden, heads, kMaxHeadDim));
  model.layers = static_cast<std::uint32_t>(layers);
  model.heads = static_cast<std::uint32_t>(heads);
  model.kv_heads = static_cast<std::uint32_t>(kv_heads);
  model.head_dim = static_cast<std::uint32_t>(head_dim);
  model.hidden = static_cast<std::uint32_t>(hidden);
  FIRN_ASSIGN(const double attention, attention_parameters(object, family, hidden, model));
  FIRN_TRY(read_windows(object, family, model));
  FIRN_ASSIGN(const Mixture mixture, read_mixture(object, family, layers, inner));
  if (mixture.layers < layers && inner == 0) return wrong(object.file(), "intermediate_size", "is missing");
  FIRN_ASSIGN(const Bits bits, read_bits(whole.has("quantization_config") ? whole : object));
  // tie_word_embeddings may stand outside of text_config.
  FIRN_ASSIGN(bool tied, object.flag("tie_word_embeddings", family.tied));
  FIRN_ASSIGN(tied, whole.flag("tie_word_embeddings", tied));
  FIRN_ASSIGN(const double vision, vision_parameters(whole));

  const double h = static_cast<double>(hidden), table = h * static_cast<double>(words);
  const double expert = 3 * h * static_cast<double>(mixture.inner), sparse = static_cast<double>(mixture.layers);
  const double experts = sparse * static_cast<double>(mixture.experts) * expert;
  const double dense =
      static_cast<double>(layers - mixture.layers) * 3 * h * static_cast<double>(inner) +
      sparse * (3 * h * static_cast<double>(mixture.shared_inner) + h * static_cast<double>(mixture.experts));
  const double attentions = attention * static_cast<double>(layers);
  model.experts = static_cast<std::uint32_t>(mixture.layers == 0 ? 0 : mixture.experts);
  model.experts_per_token = static_cast<std::uint32_t>(mixture.layers == 0 ? 0 : mixture.each);
  model.parameters = attentions + dense + experts + (tied ? 1 : 2) * table + vision;
  model.active_parameters = attentions + dense + sparse * static_cast<double>(mixture.each) * expert;
  model.head_parameters = table;
  model.expert_bytes = experts * bits.experts / 8;
  model.embedding_bytes = tied ? 0 : table * bits.others / 8;
  model.weight_bytes =
      model.expert_bytes + (attentions + dense) * bits.most / 8 + ((tied ? 1 : 2) * table + vision) * bits.others / 8;
  model.weight_bits = 8 * model.weight_bytes / model.parameters;
  if (model.latent_dim != 0) {
    if (!model.groups.empty())
      return wrong(object.file(), "sliding_window", "is not understood together with latent attention");
    model.groups = model.spec().groups;
  }
  return model;
}

// Files of their own kind that leave out what is as usual.
void fill_in(Json& json) {
  if (json.value("model_type", Json("")) == "gemma3_text")
    for (const auto& [key, usual] :
         {std::pair{"num_attention_heads", 8}, {"num_key_value_heads", 4}, {"head_dim", 256}, {"vocab_size", 262208}})
      if (!json.contains(key)) json[key] = usual;
}

// Shapes of the models' own config.json.
struct Known {
  std::string_view name, config;
};
constexpr std::array<Known, 5> kModels = {{
    {"llama-3.1-8b",
     R"({"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
      "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 128256})"},
    {"llama-3.1-70b",
     R"({"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
      "num_hidden_layers": 80, "num_key_value_heads": 8, "vocab_size": 128256})"},
    {"llama-3.2-1b",
     R"({"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
      "num_hidden_layers": 16, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": true})"},
    {"qwen3-8b", R"({"model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32,
      "num_hidden_layers": 36, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936})"},
    {"smollm2-135m", R"({"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
      "num_hidden_layers": 30, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": true})"},
}};

}  // namespace

Result<ModelShape> parse_model_config(const std::string& text, const std::string& name) {
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object())
    return Status(Code::kInvalidArgument, name + ": is no JSON object, so no config.json of a model");
  const Object whole(json, name);
  Json inner = json;
  if (json.contains("text_config")) {
    if (!json["text_config"].is_object()) return wrong(name, "text_config", "is no object");
    inner = json["text_config"];
  }
  fill_in(inner);
  const Object object(inner, json.contains("text_config") ? name + ": text_config" : name);
  FIRN_ASSIGN(std::string kind, object.word("model_type", ""));
  if (kind.empty()) {
    FIRN_ASSIGN(kind, whole.word("model_type", ""));
  }
  if (kind.empty()) kind = "llama";  // nothing said: the plainest there is
  std::string names;
  for (const Family& family : kFamilies) {
    names += (names.empty() ? "" : ", ") + std::string(family.name);
    if (family.name != kind) continue;
    FIRN_ASSIGN(ModelShape model, shape_of(object, whole, family));
    model.name = name;
    FIRN_TRY(validate(model.spec()).with_context(name));
    return model;
  }
  return wrong(name, "model_type",
               fmt::format("is \"{}\", which is not understood; known are {}. Give a GGUF file of the model instead",
                           kind.substr(0, 40), names));
}

Result<ModelShape> load_model_shape(const std::string& name) {
  std::string names;
  for (const Known& model : kModels) {
    if (model.name == name) return parse_model_config(std::string(model.config), name);
    names += (names.empty() ? "" : ", ") + std::string(model.name);
  }
  std::ifstream file(name);
  if (!file)
    return Status(Code::kInvalidArgument,
                  fmt::format("there is no model \"{}\"; known are {}, or give a config.json", name, names));
  constexpr std::size_t kMost = std::size_t{16} << 20;  // a config.json has a few KiB; it is not a file of weights
  std::string text;
  char part[65536];
  while (text.size() <= kMost && (file.read(part, sizeof part), file.gcount() > 0))
    text.append(part, static_cast<std::size_t>(file.gcount()));
  if (text.size() > kMost)
    return Status(Code::kInvalidArgument, name + ": is larger than 16 MiB, so no config.json of a model");
  return parse_model_config(text, name);
}

std::uint64_t ModelShape::all_layers_token_bytes() const {
  if (latent_dim != 0) return std::uint64_t{layers} * latent_dim * kv_element_bytes * copies;
  return std::uint64_t{2} * layers * kv_heads * head_dim * kv_element_bytes * copies;
}

double ModelShape::bytes_read(double tokens) const {
  const double read = weight_bytes - embedding_bytes;
  if (experts == 0) return read;
  const double untouched = std::pow(1 - static_cast<double>(experts_per_token) / experts, std::max(1.0, tokens));
  return read - expert_bytes * untouched;
}

ModelSpec ModelShape::spec() const {
  ModelSpec spec;
  spec.name = name.substr(0, 1024);
  spec.groups = groups;
  const Dtype dtype = kv_element_bytes == 4 ? Dtype::kF32 : Dtype::kF16;
  if (groups.empty() && latent_dim != 0)
    spec.groups.push_back({GroupKind::kLatent, layers, {dtype, 1, latent_dim, 0}, 0, heads});
  else if (groups.empty())
    spec.groups.push_back({GroupKind::kFull, layers, {dtype, kv_heads, head_dim, head_dim}, 0, heads});
  return spec;
}

void ModelShape::set_windows(std::uint32_t full_layers, std::uint32_t window) {
  const KvShape kv{kv_element_bytes == 4 ? Dtype::kF32 : Dtype::kF16, kv_heads, head_dim, head_dim};
  groups.clear();
  if (window == 0 || full_layers >= layers) return;
  if (full_layers > 0) groups.push_back({GroupKind::kFull, full_layers, kv, 0, heads});
  groups.push_back({GroupKind::kSlidingWindow, layers - full_layers, kv, window, heads});
}

std::uint64_t ModelShape::sequence_bytes(std::uint64_t tokens) const {
  std::uint64_t bytes = 0;
  for (const GroupSpec& group : spec().groups) {
    // A window that slides within its blocks touches one block more than it fills.
    const std::uint64_t most =
        (group.window + std::uint64_t{kBlockTokens} - 1) / kBlockTokens * kBlockTokens + kBlockTokens;
    bytes += group.token_bytes() * (group.window == 0 ? tokens : std::min(tokens, most));
  }
  return bytes * copies;
}

double sharing_seconds(const DeviceSpec& device, const ModelShape& model, double tokens) {
  if (device.count <= 1) return 0;
  constexpr double kSumSeconds = 10e-6;  // assumed: to begin one, whatever its size
  const double n = device.count, link = device.device_link > 0 ? device.device_link : device.host_link / n;
  const double bytes = 2 * (n - 1) / n * tokens * model.hidden * 2;  // around a ring, in 16 bits
  return 2.0 * model.layers * (kSumSeconds + bytes / link);
}

Result<ModelShape> spread(const ModelShape& model, std::uint32_t count) {
  ModelShape made = model;
  if (count <= 1) return made;
  if (model.heads % count != 0)
    return Status(Code::kInvalidArgument,
                  fmt::format("{}: its {} heads cannot be divided among {} devices", model.name, model.heads, count));
  if (model.latent_dim != 0) {  // every device needs every latent row
    made.copies = count;
    return made;
  }
  if (model.kv_heads % count != 0 && count % model.kv_heads != 0)
    return Status(Code::kInvalidArgument, fmt::format("{}: its {} KV heads cannot be divided among {} devices",
                                                      model.name, model.kv_heads, count));
  made.copies = std::max(1u, count / model.kv_heads);
  return made;
}

}  // namespace firn::sim
