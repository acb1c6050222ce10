// vulkan_device.h: the device's parts put together.
#pragma once

#include <memory>

#include "core/vk/context.h"
#include "core/vk/kernels.h"
#include "core/vk/memory.h"
#include "core/vk/queue.h"

namespace firn::vk {

class VulkanDeviceImpl final : public VulkanDevice {
 public:
  static Result<std::unique_ptr<VulkanDeviceImpl>> create(const VulkanOptions& options, const Hooks& hooks = {});
  ~VulkanDeviceImpl() override;

  DeviceMemory& memory() override { return *memory_; }
  DeviceKernels& kernels() override { return *kernels_; }
  Queue& timeline() override { return *queue_; }
  const VulkanReport& report() const override { return context_->report; }
  bool lost() const override { return context_->lost(); }
  Result<Region> import_buffer(void* buffer, std::uint64_t bytes) override {
    return memory_->import_buffer(static_cast<VkBuffer>(buffer), bytes);
  }
  Result<Region> import_host(std::byte* memory, std::uint64_t bytes) override {
    return memory_->import_host(memory, bytes);
  }
  Result<int> export_region(const Region& region) override { return memory_->export_region(region); }
  Result<int> export_timeline() override { return queue_->export_fd(); }
  Context& context() { return *context_; }

 private:
  VulkanDeviceImpl() = default;
  // Imports a little memory, lets a kernel write to it and looks.
  Status probe_import();

  std::unique_ptr<Context> context_;
  std::unique_ptr<DeviceMemory> memory_;
  std::unique_ptr<Queue> queue_;
  std::unique_ptr<DeviceKernels> kernels_;
};

}  // namespace firn::vk
