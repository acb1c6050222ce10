#include "sim/hardware.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "firn/config.h"

namespace firn::sim {
namespace {

constexpr double kMostNumber = 1e18;  // products of two stay far below what a double and 64 bits hold

Status read_number(const YAML::Node& node, const std::string& file, const char* key, bool required, double& value,
                   double least = 0, double most = kMostNumber) {
  const YAML::Node found = node[key];
  if (!found) {
    return required ? Status(Code::kInvalidArgument, fmt::format("{}: \"{}\" is missing", file, key)) : Status();
  }
  if (!YAML::convert<double>::decode(found, value) || !(value >= least && value <= most))
    return Status(Code::kInvalidArgument, fmt::format("{}:{}: \"{}\" must be a number from {:g} to {:g}", file,
                                                      found.Mark().line + 1, key, least, most));
  return {};
}

Result<DeviceSpec> parse_device(const std::string& file) {
  constexpr std::array<std::string_view, 14> kKeys = {"name",
                                                      "flops",
                                                      "memory_bandwidth",
                                                      "memory",
                                                      "shared_memory",
                                                      "prefill_efficiency",
                                                      "decode_efficiency",
                                                      "step_overhead_us",
                                                      "host_link",
                                                      "disk_link",
                                                      "device_link",
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
    const std::string key = pair.first.IsScalar() ? pair.first.Scalar() : "?";
    if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end())
      return Status(Code::kInvalidArgument, fmt::format("{}:{}: there is no key \"{}\"; there are: {}", file,
                                                        pair.first.Mark().line + 1, key, fmt::join(kKeys, ", ")));
  }
  DeviceSpec device;
  double overhead_us = device.step_overhead_s * 1e6;
  device.name =
      node["name"] && node["name"].IsScalar() ? node["name"].Scalar() : std::filesystem::path(file).stem().string();
  FIRN_TRY(read_number(node, file, "flops", true, device.flops, 1));
  FIRN_TRY(read_number(node, file, "memory_bandwidth", true, device.memory_bandwidth, 1));
  FIRN_TRY(read_number(node, file, "prefill_efficiency", false, device.prefill_efficiency, 1e-3, 1));
  FIRN_TRY(read_number(node, file, "decode_efficiency", false, device.decode_efficiency, 1e-3, 1));
  FIRN_TRY(read_number(node, file, "step_overhead_us", false, overhead_us));
  FIRN_TRY(read_number(node, file, "host_link", true, device.host_link, 1));
  FIRN_TRY(read_number(node, file, "disk_link", false, device.disk_link));
  FIRN_TRY(read_number(node, file, "device_link", false, device.device_link));
  FIRN_TRY(read_number(node, file, "price_per_hour", false, device.price_per_hour));
  FIRN_TRY(read_number(node, file, "host_gib_per_hour", false, device.host_gib_per_hour));
  FIRN_TRY(read_number(node, file, "disk_gib_per_hour", false, device.disk_gib_per_hour));
  device.step_overhead_s = overhead_us / 1e6;
  if (!node["memory"])
    return Status(Code::kInvalidArgument, file + ": \"memory\" is missing: whether a model fits depends on it");
  const Result<std::uint64_t> bytes = parse_bytes(node["memory"].Scalar());
  if (!bytes.ok()) return bytes.status().with_context(file + ": memory");
  constexpr std::uint64_t kLeast = std::uint64_t{1} << 20, kMost = std::uint64_t{1} << 50;
  if (*bytes < kLeast || *bytes > kMost)
    return Status(Code::kInvalidArgument,
                  fmt::format("{}:{}: \"memory\" must be 1MiB to 1024TiB", file, node["memory"].Mark().line + 1));
  device.memory_bytes = *bytes;
  if (node["shared_memory"] && !YAML::convert<bool>::decode(node["shared_memory"], device.shared_memory))
    return Status(Code::kInvalidArgument, fmt::format("{}:{}: \"shared_memory\" must be true or false", file,
                                                      node["shared_memory"].Mark().line + 1));
  return device;
}

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

DeviceSpec spread(const DeviceSpec& one, std::uint32_t count) {
  DeviceSpec all = one;
  if (count <= 1) return all;
  const double n = count;
  all.count = count;
  all.name = fmt::format("{} x {}", count, one.name);
  all.flops *= n, all.memory_bandwidth *= n, all.host_link *= n, all.price_per_hour *= n;
  all.memory_bytes *= count;
  return all;
}

}  // namespace firn::sim
