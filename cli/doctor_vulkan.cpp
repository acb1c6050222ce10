#include "cli/doctor_vulkan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "cli/text.h"

namespace firn::cli {
namespace {

// What is lost without an optional feature.
std::string_view fallback_of(std::string_view feature) {
  if (feature == "VK_EXT_memory_budget") return "heap sizes are taken for budgets";
  if (feature == "VK_EXT_external_memory_host") return "host memory is staged, not imported";
  if (feature == "VK_KHR_external_memory_fd") return "no export of memory";
  if (feature == "VK_KHR_external_semaphore_fd") return "no export of the timeline";
  return "done without";
}

// Whether `device: auto` would take it, in a few words.
std::string standing(const VulkanReport& device) {
  if (!device.usable()) return "CANNOT BE USED";
  if (device.software) return fmt::format("taken only when asked for: device lavapipe or {}", device.index);
  return fmt::format("device auto or {}", device.index);
}

std::string human_limit(const std::string& name, std::uint64_t value) {
  if (name.ends_with("_bytes") || name.ends_with("_range")) return fmt::format("{} {}", name, human_bytes(value));
  return fmt::format("{} {}", name, grouped(value));
}

void add_lines(const VulkanReport& device, std::vector<std::string>& lines) {
  lines.push_back(fmt::format("{}: {} ({}), {}", device.index, device.name, device.type, standing(device)));
  lines.push_back(fmt::format("   driver {}, Vulkan {}, uuid {}", device.driver, device.api_version, device.uuid));
  if (!device.usable())
    lines.push_back(fmt::format("   LACKS {}, which firn needs: update the driver, or use device cpu",
                                fmt::join(device.missing, ", ")));
  for (const auto& [name, there] : device.optional)
    lines.push_back(there ? fmt::format("   uses {}", name)
                          : fmt::format("   missing {}: {}", name, fallback_of(name)));
  if (!device.host_memory.empty()) lines.push_back(fmt::format("   host memory {}", device.host_memory));
  for (const VulkanReport::Heap& heap : device.heaps)
    lines.push_back(fmt::format(
        "   heap {} {}, {}", human_bytes(heap.bytes), heap.device_local ? "device-local" : "host",
        heap.budget_bytes != 0
            ? fmt::format("budget {}, {} in use", human_bytes(heap.budget_bytes), human_bytes(heap.used_bytes))
            : "the driver tells no budget"));
  constexpr std::size_t kPerLine = 3;
  for (std::size_t i = 0; i < device.limits.size(); i += kPerLine) {
    std::vector<std::string> some;
    for (std::size_t j = i; j < std::min(i + kPerLine, device.limits.size()); ++j)
      some.push_back(human_limit(device.limits[j].first, device.limits[j].second));
    lines.push_back(fmt::format("   {}", fmt::join(some, ", ")));
  }
}

}  // namespace

std::vector<std::string> vulkan_lines(const Result<std::vector<VulkanReport>>& devices) {
  if (!devices.ok()) return {"none: " + devices.status().message()};
  std::vector<std::string> lines;
  for (const VulkanReport& device : *devices) add_lines(device, lines);
  return lines;
}

std::vector<std::string> vulkan_summary(const Result<std::vector<VulkanReport>>& devices) {
  if (!devices.ok()) return {"none: " + devices.status().message()};
  std::vector<std::string> lines;
  for (const VulkanReport& device : *devices) {
    std::uint64_t bytes = 0;
    for (const VulkanReport::Heap& heap : device.heaps)
      if (heap.device_local) bytes = std::max(bytes, heap.bytes);
    lines.push_back(fmt::format("{}: {}, {}; {}", device.index, device.name, human_bytes(bytes), standing(device)));
  }
  return lines;
}

nlohmann::ordered_json vulkan_json(const Result<std::vector<VulkanReport>>& devices) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  if (!devices.ok()) return {{"devices", all}, {"why_none", devices.status().message()}};
  for (const VulkanReport& device : *devices) {
    nlohmann::ordered_json heaps = nlohmann::ordered_json::array(), limits, optional;
    for (const VulkanReport::Heap& heap : device.heaps)
      heaps.push_back({{"bytes", heap.bytes},
                       {"budget_bytes", heap.budget_bytes},
                       {"used_bytes", heap.used_bytes},
                       {"device_local", heap.device_local}});
    for (const auto& [name, value] : device.limits) limits[name] = value;
    for (const auto& [name, there] : device.optional) optional[name] = there;
    all.push_back({{"index", device.index},
                   {"name", device.name},
                   {"uuid", device.uuid},
                   {"type", device.type},
                   {"driver", device.driver},
                   {"api_version", device.api_version},
                   {"usable", device.usable()},
                   {"missing", device.missing},
                   {"optional", optional},
                   {"host_memory", device.host_memory},
                   {"heaps", heaps},
                   {"limits", limits}});
  }
  return {{"devices", all}, {"why_none", nullptr}};
}

}  // namespace firn::cli
