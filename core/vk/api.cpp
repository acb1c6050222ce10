#include "core/vk/api.h"

#include <dlfcn.h>
#include <fmt/format.h>

namespace firn::vk {

Result<GlobalApi> open_loader(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr)
    return Status(
        Code::kUnavailable,
        fmt::format("{} is not installed; install the Vulkan loader (Debian: libvulkan1), or use device cpu", library));
  const auto get = reinterpret_cast<PFN_vkGetInstanceProcAddr>(dlsym(handle, "vkGetInstanceProcAddr"));
  if (get == nullptr)
    return Status(Code::kUnavailable,
                  fmt::format("{} is no Vulkan loader: it lacks vkGetInstanceProcAddr; reinstall it", library));
  return load_global(get);
}

GlobalApi load_global(PFN_vkGetInstanceProcAddr get) {
  GlobalApi api;
  api.GetInstanceProcAddr = get;
#define FIRN_VK_LOAD(name) api.name = reinterpret_cast<PFN_vk##name>(get(nullptr, "vk" #name));
  FIRN_VK_GLOBAL(FIRN_VK_LOAD)
#undef FIRN_VK_LOAD
  return api;
}

namespace {
Status lacks(const char* name) {
  return Status(Code::kUnavailable, fmt::format("the Vulkan driver lacks {}; update it, or use device cpu", name));
}
}  // namespace

Result<InstanceApi> load_instance(PFN_vkGetInstanceProcAddr get, VkInstance instance) {
  InstanceApi api;
#define FIRN_VK_LOAD(name) api.name = reinterpret_cast<PFN_vk##name>(get(instance, "vk" #name));
#define FIRN_VK_NEED(name) \
  FIRN_VK_LOAD(name)       \
  if (api.name == nullptr) return lacks("vk" #name);
  FIRN_VK_INSTANCE(FIRN_VK_NEED)
  FIRN_VK_INSTANCE_OPTIONAL(FIRN_VK_LOAD)
#undef FIRN_VK_LOAD
  return api;
}

Result<DeviceApi> load_device(const InstanceApi& instance, VkDevice device) {
  DeviceApi api;
#define FIRN_VK_LOAD(name) api.name = reinterpret_cast<PFN_vk##name>(instance.GetDeviceProcAddr(device, "vk" #name));
  FIRN_VK_DEVICE(FIRN_VK_NEED)
  FIRN_VK_DEVICE_OPTIONAL(FIRN_VK_LOAD)
#undef FIRN_VK_LOAD
#undef FIRN_VK_NEED
  // Core in 1.3, an extension before.
  if (api.CmdPipelineBarrier2 == nullptr) api.CmdPipelineBarrier2 = api.CmdPipelineBarrier2KHR;
  if (api.QueueSubmit2 == nullptr) api.QueueSubmit2 = api.QueueSubmit2KHR;
  if (api.CmdPipelineBarrier2 == nullptr) return lacks("vkCmdPipelineBarrier2");
  if (api.QueueSubmit2 == nullptr) return lacks("vkQueueSubmit2");
  return api;
}

std::string to_string(VkResult result) {
  switch (result) {
    case VK_SUCCESS:
      return "VK_SUCCESS";
    case VK_TIMEOUT:
      return "VK_TIMEOUT";
    case VK_ERROR_OUT_OF_HOST_MEMORY:
      return "VK_ERROR_OUT_OF_HOST_MEMORY";
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
      return "VK_ERROR_OUT_OF_DEVICE_MEMORY";
    case VK_ERROR_INITIALIZATION_FAILED:
      return "VK_ERROR_INITIALIZATION_FAILED";
    case VK_ERROR_DEVICE_LOST:
      return "VK_ERROR_DEVICE_LOST";
    case VK_ERROR_LAYER_NOT_PRESENT:
      return "VK_ERROR_LAYER_NOT_PRESENT";
    case VK_ERROR_EXTENSION_NOT_PRESENT:
      return "VK_ERROR_EXTENSION_NOT_PRESENT";
    case VK_ERROR_FEATURE_NOT_PRESENT:
      return "VK_ERROR_FEATURE_NOT_PRESENT";
    case VK_ERROR_INCOMPATIBLE_DRIVER:
      return "VK_ERROR_INCOMPATIBLE_DRIVER";
    case VK_ERROR_INVALID_EXTERNAL_HANDLE:
      return "VK_ERROR_INVALID_EXTERNAL_HANDLE";
    default:
      return "VkResult " + std::to_string(static_cast<int>(result));
  }
}

}  // namespace firn::vk
