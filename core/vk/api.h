// api.h: the Vulkan functions that firn calls, as tables of pointers. No function of this name is linked or defined: an
// engine that firn is linked into has a loader of its own, and a global vkQueueSubmit2 of ours would take its place.
// (volk defines such globals, which is why it is not used.) Everything optional is null where the driver lacks it.
#pragma once

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan_core.h>

#include <string>

#include "firn/status.h"

namespace firn::vk {

// Version 14 of the formatter does not agree with itself about the backslashes.
// clang-format off
#define FIRN_VK_GLOBAL(X) \
  X(CreateInstance)       \
  X(EnumerateInstanceVersion) X(EnumerateInstanceLayerProperties) X(EnumerateInstanceExtensionProperties)

#define FIRN_VK_INSTANCE(X)                                                                                     \
  X(DestroyInstance)                                                                                            \
  X(EnumeratePhysicalDevices)                                                                                   \
  X(GetPhysicalDeviceProperties2)                                                                               \
  X(GetPhysicalDeviceFeatures2) X(GetPhysicalDeviceMemoryProperties2) X(GetPhysicalDeviceQueueFamilyProperties) \
      X(EnumerateDeviceExtensionProperties) X(GetPhysicalDeviceExternalSemaphoreProperties) X(CreateDevice)     \
          X(GetDeviceProcAddr)
#define FIRN_VK_INSTANCE_OPTIONAL(X) X(CreateDebugUtilsMessengerEXT) X(DestroyDebugUtilsMessengerEXT)

#define FIRN_VK_DEVICE(X)                                                                                            \
  X(DestroyDevice)                                                                                                   \
  X(GetDeviceQueue)                                                                                                  \
  X(AllocateMemory)                                                                                                  \
  X(FreeMemory) X(MapMemory) X(CreateBuffer) X(DestroyBuffer) X(GetBufferMemoryRequirements) X(BindBufferMemory)     \
      X(GetBufferDeviceAddress) X(CreateCommandPool) X(DestroyCommandPool) X(ResetCommandPool)                       \
          X(AllocateCommandBuffers) X(BeginCommandBuffer) X(EndCommandBuffer) X(CmdBindPipeline) X(CmdPushConstants) \
              X(CmdDispatch) X(CmdFillBuffer) X(CreateSemaphore) X(DestroySemaphore) X(GetSemaphoreCounterValue)     \
                  X(WaitSemaphores) X(CreateShaderModule) X(DestroyShaderModule) X(CreatePipelineLayout)             \
                      X(DestroyPipelineLayout) X(CreateComputePipelines) X(DestroyPipeline)
#define FIRN_VK_DEVICE_OPTIONAL(X) \
  X(CmdPipelineBarrier2)           \
  X(CmdPipelineBarrier2KHR)        \
  X(QueueSubmit2) X(QueueSubmit2KHR) X(GetMemoryFdKHR) X(GetSemaphoreFdKHR) X(GetMemoryHostPointerPropertiesEXT)

#define FIRN_VK_MEMBER(name) PFN_vk##name name = nullptr;
// clang-format on
struct GlobalApi {
  PFN_vkGetInstanceProcAddr GetInstanceProcAddr = nullptr;
  FIRN_VK_GLOBAL(FIRN_VK_MEMBER)
};
struct InstanceApi {
  FIRN_VK_INSTANCE(FIRN_VK_MEMBER)
  FIRN_VK_INSTANCE_OPTIONAL(FIRN_VK_MEMBER)
};
struct DeviceApi {
  FIRN_VK_DEVICE(FIRN_VK_MEMBER)
  FIRN_VK_DEVICE_OPTIONAL(FIRN_VK_MEMBER)
};
#undef FIRN_VK_MEMBER

// Opens the loader library, which then stays open as long as the process: drivers leave threads and exit handlers.
Result<GlobalApi> open_loader(const std::string& library);
GlobalApi load_global(PFN_vkGetInstanceProcAddr get);
// kUnavailable names the function that a broken driver lacks.
Result<InstanceApi> load_instance(PFN_vkGetInstanceProcAddr get, VkInstance instance);
Result<DeviceApi> load_device(const InstanceApi& api, VkDevice device);

// "VK_ERROR_DEVICE_LOST"
std::string to_string(VkResult result);

}  // namespace firn::vk
