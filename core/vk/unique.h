// unique.h: a Vulkan object that is destroyed when its owner is.
#pragma once

#include <memory>
#include <type_traits>

#include "core/vk/api.h"

namespace firn::vk {

template <class Handle, auto Destroy>
struct Deleter {
  using pointer = Handle;
  const DeviceApi* api = nullptr;
  VkDevice device{};
  void operator()(Handle handle) const { (api->*Destroy)(device, handle, nullptr); }
};
template <class Handle, auto Destroy>
using Unique = std::unique_ptr<std::remove_pointer_t<Handle>, Deleter<Handle, Destroy>>;

using UniqueBuffer = Unique<VkBuffer, &DeviceApi::DestroyBuffer>;  // UniqueBuffer buffer(handle, {&api, device});
using UniqueMemory = Unique<VkDeviceMemory, &DeviceApi::FreeMemory>;
using UniqueSemaphore = Unique<VkSemaphore, &DeviceApi::DestroySemaphore>;
using UniqueCommandPool = Unique<VkCommandPool, &DeviceApi::DestroyCommandPool>;
using UniqueShader = Unique<VkShaderModule, &DeviceApi::DestroyShaderModule>;
using UniqueLayout = Unique<VkPipelineLayout, &DeviceApi::DestroyPipelineLayout>;
using UniquePipeline = Unique<VkPipeline, &DeviceApi::DestroyPipeline>;

}  // namespace firn::vk
