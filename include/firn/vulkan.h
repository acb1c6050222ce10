// vulkan.h: the device in a GPU's memory, through Vulkan compute. This header needs no Vulkan headers; handles travel
// as the pointers that they are on 64-bit systems. docs/vulkan.md is the guide.
//
// Nothing here needs Vulkan at link time: the loader is opened when a function is called. A build without the backend
// has all of these functions, and they say so.
// Threads:  any; each call takes a short lock. Create devices after any fork().
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "firn/device.h"

namespace firn {

// What vulkan_devices() tells of one device.
struct VulkanReport {
  struct Heap {
    std::uint64_t bytes = 0, budget_bytes = 0, used_bytes = 0;  // the last two: 0 where the driver does not tell
    bool device_local = false;
  };
  std::uint32_t index = 0;
  std::string name, uuid, type, driver, api_version;  // type: discrete, integrated, virtual, software, other
  bool software = false;
  std::vector<std::string> missing;                    // floor features that it lacks; empty: firn can use it
  std::vector<std::pair<std::string, bool>> optional;  // and the features that firn uses where they are
  // Of a device that was made: "imported", as a probe proved, or "staged: " and why. Empty where none was made.
  std::string host_memory;
  std::vector<Heap> heaps;
  std::vector<std::pair<std::string, std::uint64_t>> limits;
  bool usable() const { return missing.empty(); }
};

// kUnavailable, with its fix: no loader; no driver; a driver without a device.
FIRN_API Result<std::vector<VulkanReport>> vulkan_devices();

// An engine's own Vulkan objects, which outlive the firn device. The device was created with the floor features of
// docs/vulkan.md on. lock and unlock, if set, surround every use of the queue.
struct VulkanExisting {
  void* get_instance_proc_addr = nullptr;  // PFN_vkGetInstanceProcAddr
  void* instance = nullptr;                // VkInstance
  void* physical_device = nullptr;         // VkPhysicalDevice
  void* device = nullptr;                  // VkDevice
  void* queue = nullptr;                   // VkQueue, of a family with compute
  std::uint32_t queue_family = 0;
  bool exports_fds = false;     // VK_KHR_external_memory_fd and VK_KHR_external_semaphore_fd are on
  bool imports_memory = false;  // VK_EXT_external_memory_host is on
  std::function<void()> lock, unlock;
};

struct VulkanOptions {
  // auto: the best real GPU. lavapipe: a software device. Else an index, a UUID or a part of a name. A software device
  // is taken only when it is asked for.
  std::string device = "auto";
  const VulkanExisting* existing = nullptr;  // then device says nothing
  bool exportable = false;                   // regions and the timeline may be exported as file descriptors
  std::uint64_t reserve_bytes = 0;           // of the budget, left to others; 0: a twentieth, at least 128 MiB
};

class FIRN_API VulkanDevice : public Device {
 public:
  virtual const VulkanReport& report() const = 0;
  // The driver gave the device up. Every later call fails with kIo, every fence has passed, nothing waits.
  virtual bool lost() const = 0;
  // A buffer of the engine on the same VkDevice, made with storage, transfer and device-address usage; stays the
  // engine's, and outlives the region. Give it back with memory().free().
  virtual Result<Region> import_buffer(void* buffer, std::uint64_t bytes) = 0;
  // Host memory as a region, without a copy; address and size are multiples of 4 KiB and more where the driver wants
  // it. kUnavailable: the driver cannot, or proved wrong when it was probed; use a staging region.
  virtual Result<Region> import_host(std::byte* memory, std::uint64_t bytes) = 0;
  // Opaque file descriptors; the caller closes them. kUnavailable: not exportable.
  virtual Result<int> export_region(const Region& region) = 0;
  virtual Result<int> export_timeline() = 0;
};

// kUnavailable, with its fix: as vulkan_devices(); a floor feature is missing; no device of that name.
FIRN_API Result<std::unique_ptr<VulkanDevice>> make_vulkan_device(const VulkanOptions& options = {});

}  // namespace firn
