// absent.cpp: what a build without the Vulkan tools says.
#include "firn/vulkan.h"

namespace firn {
namespace {
Status absent() {
  return Status(
      Code::kUnavailable,
      "firn was built without Vulkan: install libvulkan-dev, glslang-tools and spirv-tools and build again with "
      "FIRN_VULKAN=ON, or use device cpu");
}
}  // namespace

Result<std::vector<VulkanReport>> vulkan_devices() { return absent(); }
Result<std::unique_ptr<VulkanDevice>> make_vulkan_device(const VulkanOptions&) { return absent(); }

}  // namespace firn
