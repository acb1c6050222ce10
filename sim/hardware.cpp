#include "sim/hardware.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "firn/config.h"

namespace firn::sim {
namespace {

Status read_number(const YAML::Node& node, const std::string& file, const char* key, bool required, double& value) {
  const YAML::Node found = node[key];
  if (!found) {
    return required ? Status(Code::kInvalidArgument, fmt::format("{}: \"{}\" is missing", file, key)) : Status();
  }
  if (!YAML::convert<double>::decode(found, value) || !(value >= 0) || !std::isfinite(value))
    return Status(Code::kInvalidArgument,
                  fmt::format("{}:{}: \"{}\" must be a number, not negative", file, found.Mark().line + 1, key));
  return {};
}

Result<DeviceSpec> parse_device(const std::string& file) {
  constexpr std::array<std::string_view, 12> kKeys = {"name",
                                                      "flops",
                                                      "memory_bandwidth",
                                                      "memory",
                                                      "prefill_efficiency",
                                                      "decode_efficiency",
                                                      "step_overhead_us",
                                                      "host_link",
                                                      "disk_link",
                                                      "price_per_hour",
                                                      "host_gib_per_hour",
                                                      "disk_gib_per_hour"};
  YAML::Node node;
  try {
    node = YAML::LoadFile(file);
  } catch (const YAML::Exception& error) {  // yaml-cpp speaks in exceptions; they end here
    return Status(Code::kInvalidArgument, fmt::format("{}: {}", file, error.what()));
  }
  if (!node.IsMap()) return Status(Code::kInvalidArgument, file + ": not a device file: keys and values are expected");
  for (const auto& pair : node) {
    const std::string key = pair.first.Scalar();
    if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end())
      return Status(Code::kInvalidArgument, fmt::format("{}:{}: there is no key \"{}\"; there are: {}", file,
                                                        pair.first.Mark().line + 1, key, fmt::join(kKeys, ", ")));
  }
  DeviceSpec device;
  double overhead_us = device.step_overhead_s * 1e6;
  device.name = node["name"] ? node["name"].Scalar() : std::filesystem::path(file).stem().string();
  FIRN_TRY(read_number(node, file, "flops", true, device.flops));
  FIRN_TRY(read_number(node, file, "memory_bandwidth", true, device.memory_bandwidth));
  FIRN_TRY(read_number(node, file, "prefill_efficiency", false, device.prefill_efficiency));
  FIRN_TRY(read_number(node, file, "decode_efficiency", false, device.decode_efficiency));
  FIRN_TRY(read_number(node, file, "step_overhead_us", false, overhead_us));
  FIRN_TRY(read_number(node, file, "host_link", true, device.host_link));
  FIRN_TRY(read_number(node, file, "disk_link", false, device.disk_link));
  FIRN_TRY(read_number(node, file, "price_per_hour", false, device.price_per_hour));
  FIRN_TRY(read_number(node, file, "host_gib_per_hour", false, device.host_gib_per_hour));
  FIRN_TRY(read_number(node, file, "disk_gib_per_hour", false, device.disk_gib_per_hour));
  device.step_overhead_s = overhead_us / 1e6;
  if (device.flops < 1 || device.memory_bandwidth < 1 || device.host_link < 1 || device.prefill_efficiency < 1e-3 ||
      device.decode_efficiency < 1e-3)
    return Status(Code::kInvalidArgument,
                  file + ": flops, memory_bandwidth, host_link and efficiencies must be above 0");
  if (node["memory"]) {
    const Result<std::uint64_t> bytes = parse_bytes(node["memory"].Scalar());
    if (!bytes.ok()) return bytes.status().with_context(file + ": memory");
    device.memory_bytes = *bytes;
  }
  return device;
}

// Shapes as the models' own config.json give them.
const std::array<ModelShape, 4> kModels = {{
    {"llama-3.1-8b", 8.03e9, 16.06e9, 32, 32, 8, 128, 2},
    {"llama-3.1-70b", 70.6e9, 141.2e9, 80, 64, 8, 128, 2},
    {"qwen3-8b", 8.19e9, 16.38e9, 36, 32, 8, 128, 2},
    {"smollm2-135m", 134.5e6, 269e6, 30, 9, 3, 64, 2},
}};

// How many layers see everything: by their list, or by the families' own rule. -1: a kind that is not known.
std::int64_t full_layers(const nlohmann::json& json, std::uint32_t layers, std::string& unknown) {
  if (json.contains("layer_types") && json["layer_types"].is_array()) {
    std::int64_t full = 0;
    for (const nlohmann::json& type : json["layer_types"]) {
      const std::string name = type.is_string() ? type.get<std::string>() : type.dump();
      full += name == "full_attention";
      if (name != "full_attention" && name != "sliding_attention") unknown = name;
    }
    if (json["layer_types"].size() != layers) unknown = "of another number than num_hidden_layers";
    return unknown.empty() ? full : -1;
  }
  const std::string family = json.value("model_type", nlohmann::json("")).dump();
  const auto pattern = [&](std::uint32_t otherwise) {
    const nlohmann::json every = json.value("sliding_window_pattern", nlohmann::json(otherwise));
    return every.is_number_unsigned() && every.get<std::uint32_t>() > 0 ? every.get<std::uint32_t>() : otherwise;
  };
  if (family.find("gemma3") != std::string::npos) return layers / pattern(6);
  if (family.find("gemma2") != std::string::npos) return layers / pattern(2);
  if (json.contains("sliding_window_pattern")) return layers / pattern(1);
  if (!json.value("use_sliding_window", nlohmann::json(true)).is_boolean() ||
      !json.value("use_sliding_window", nlohmann::json(true)).get<bool>())
    return layers;  // Qwen 2: there is a number, and it is not used
  const nlohmann::json first = json.value("max_window_layers", nlohmann::json(0));  // Qwen 2: those before it see all
  return first.is_number_unsigned() ? std::min(layers, first.get<std::uint32_t>()) : 0;
}

Status read_groups(const nlohmann::json& json, const std::string& name, ModelShape& model) {
  if (json.contains("kv_lora_rank"))
    return Status(Code::kInvalidArgument,
                  name + ": latent attention (kv_lora_rank) is not known to the timing model; docs/simulate.md");
  const nlohmann::json window = json.value("sliding_window", nlohmann::json(nullptr));
  std::string unknown;
  const std::int64_t full = full_layers(json, model.layers, unknown);
  if (full < 0) return Status(Code::kInvalidArgument, fmt::format("{}: layer_types: {} is not known", name, unknown));
  if (window.is_number_unsigned() && window.get<std::uint64_t>() > 0 && window.get<std::uint64_t>() < (1u << 30))
    model.set_windows(static_cast<std::uint32_t>(full), window.get<std::uint32_t>());
  return {};
}

}  // namespace

ModelSpec ModelShape::spec() const {
  ModelSpec spec;
  spec.name = name;
  spec.groups = groups;
  const KvShape kv{kv_element_bytes == 4 ? Dtype::kF32 : Dtype::kF16, kv_heads, head_dim, head_dim};
  if (groups.empty()) spec.groups.push_back({GroupKind::kFull, layers, kv, 0, heads});
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
    const std::uint64_t most = (group.window + kBlockTokens - 1) / kBlockTokens * kBlockTokens + kBlockTokens;
    bytes += group.token_bytes() * (group.window == 0 ? tokens : std::min(tokens, most));
  }
  return bytes;
}

Result<DeviceSpec> load_device(const std::string& name, const std::vector<std::string>& folders) {
  std::error_code error;
  if (std::filesystem::is_regular_file(name, error)) return parse_device(name);
  for (const std::string& folder : folders) {
    const std::string file = folder + "/devices/" + name + ".yaml";
    if (std::filesystem::is_regular_file(file, error)) return parse_device(file);
  }
  return Status(Code::kInvalidArgument,
                fmt::format("there is no device \"{}\": neither a file nor devices/{}.yaml in {}", name, name,
                            fmt::join(folders, ", ")));
}

Result<ModelShape> load_model_shape(const std::string& name) {
  std::string names;
  for (const ModelShape& model : kModels) {
    if (model.name == name) return model;
    names += (names.empty() ? "" : ", ") + model.name;
  }
  std::ifstream file(name);
  if (!file)
    return Status(Code::kInvalidArgument,
                  fmt::format("there is no model \"{}\"; known are {}, or give a config.json", name, names));
  nlohmann::json json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (json.is_object() && json.contains("text_config")) json = nlohmann::json(json["text_config"]);
  if (json.is_object() && json.value("model_type", nlohmann::json("")) == "gemma3_text")
    for (const auto& [key, usual] :
         {std::pair{"num_attention_heads", 8}, {"num_key_value_heads", 4}, {"head_dim", 256}, {"vocab_size", 262208}})
      if (!json.contains(key)) json[key] = usual;  // the family's files leave out what is as usual
  const auto number = [&json](const char* key, double otherwise) {
    return json.is_object() && json.contains(key) && json[key].is_number() ? json[key].get<double>() : otherwise;
  };
  ModelShape model;
  model.name = name;
  model.layers = static_cast<std::uint32_t>(number("num_hidden_layers", 0));
  model.heads = static_cast<std::uint32_t>(number("num_attention_heads", 0));
  model.kv_heads = static_cast<std::uint32_t>(number("num_key_value_heads", model.heads));
  const double hidden = number("hidden_size", 0), inner = number("intermediate_size", 0),
               words = number("vocab_size", 0);
  if (model.layers == 0 || model.heads == 0 || hidden <= 0 || model.layers > 1024 || model.heads > 1024)
    return Status(Code::kInvalidArgument,
                  name + ": no config.json of a transformer: num_hidden_layers, num_attention_heads, hidden_size");
  model.head_dim = static_cast<std::uint32_t>(number("head_dim", hidden / model.heads));
  // Attention, gated feed-forward, embeddings and their transpose.
  model.parameters =
      model.layers * (hidden * model.head_dim * (2.0 * model.heads + 2.0 * model.kv_heads) + 3 * hidden * inner) +
      2 * hidden * words;
  model.weight_bytes = 2 * model.parameters;
  FIRN_TRY(read_groups(json, name, model));
  return model;
}

}  // namespace firn::sim
