// context.h: one Vulkan device with its instance and queue, chosen or brought by the engine.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "core/vk/api.h"
#include "core/vk/hooks.h"
#include "firn/vulkan.h"

namespace firn::vk {

inline constexpr std::uint64_t kPageBytes = 4096;

// Limits that bound us, lowered by hooks.
struct Limits {
  std::uint64_t allocation_bytes = 0;  // of one vkAllocateMemory
  std::uint64_t buffer_bytes = 0;      // of one VkBuffer
  std::uint32_t shared_bytes = 0, threads = 0;
  std::uint64_t import_alignment = 0;  // 0: host memory cannot be imported
};

class Context {
 public:
  static Result<std::unique_ptr<Context>> create(const VulkanOptions& options, const Hooks& hooks);
  // Without a device: what there is.
  static Result<std::vector<VulkanReport>> reports(const Hooks& hooks);
  ~Context();

  // Failures of calls that name no better reason. A lost device is noted for good.
  Status check(VkResult result, const char* what);
  void lose() { lost_ = true; }
  bool lost() const { return lost_; }
  static Status lost_status();
  void complain(const std::string& message) const {  // of a violation that tests must not miss
    if (hooks.on_message) hooks.on_message(message);
  }

  InstanceApi instance_api;
  DeviceApi api;
  VkInstance instance{};
  VkPhysicalDevice physical{};
  VkDevice device{};
  VkQueue queue{};
  std::uint32_t family = 0;
  VulkanReport report;
  Limits limits;
  VkPhysicalDeviceMemoryProperties memory{};
  bool unified = false;                            // the host reaches all device memory at no extra cost
  bool has_budget = false;                         // VK_EXT_memory_budget
  bool exports = false, exports_timeline = false;  // opaque file descriptors
  std::function<void()> lock, unlock;              // around the queue
  Hooks hooks;

 private:
  Context() = default;
  Status open_instance();
  Result<std::vector<VkPhysicalDevice>> enumerate() const;
  VulkanReport describe(VkPhysicalDevice candidate, std::uint32_t index) const;
  Status choose(const std::string& wanted);
  Status open_device(const VulkanOptions& options);
  Status adopt(const VulkanExisting& existing);
  void note_limits();

  GlobalApi global_;
  VkDebugUtilsMessengerEXT messenger_{};
  bool owned_ = true;
  std::atomic<bool> lost_ = false;
};

}  // namespace firn::vk
