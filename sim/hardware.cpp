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
  constexpr std::array<std::string_view, 10> kKeys = {"name",
                                                      "flops",
                                                      "memory_bandwidth",
                                                      "memory",
                                                      "prefill_efficiency",
                                                      "decode_efficiency",
                                                      "step_overhead_us",
                                                      "host_link",
                                                      "disk_link",
                                                      "price_per_hour"};
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

}  // namespace

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
  const nlohmann::json json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
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
  return model;
}

}  // namespace firn::sim
