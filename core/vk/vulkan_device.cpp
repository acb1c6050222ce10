#include "core/vk/vulkan_device.h"

#include <algorithm>
#include <cstdlib>

namespace firn::vk {

Result<std::unique_ptr<VulkanDeviceImpl>> VulkanDeviceImpl::create(const VulkanOptions& options, const Hooks& hooks) {
  std::unique_ptr<VulkanDeviceImpl> device(new VulkanDeviceImpl);
  FIRN_ASSIGN(device->context_, Context::create(options, hooks));
  device->memory_ = std::make_unique<DeviceMemory>(*device->context_, options);
  FIRN_ASSIGN(device->queue_, Queue::create(*device->context_, *device->memory_, options.exportable));
  device->kernels_ = std::make_unique<DeviceKernels>(*device->context_, *device->memory_, *device->queue_);
  VulkanDeviceImpl& self = *device;
  self.memory_->set_zero([&self](const Region& region) -> Status {
    FIRN_ASSIGN(const Fence fence, self.kernels_->fill(region, 0, region.bytes, 0));
    return self.queue_->wait(fence, std::numeric_limits<std::int64_t>::max());
  });
  const Status probed = self.probe_import();
  self.context_->report.host_memory = probed.ok() ? "imported" : "staged: " + probed.message();
  self.memory_->set_import_status(probed);
  return device;
}

VulkanDeviceImpl::~VulkanDeviceImpl() {
  // Against creation: the queue waits for what runs, and only then may pipelines and memory go.
  if (queue_) queue_->wait(queue_->last(), 10'000'000'000).ok();
}

Status VulkanDeviceImpl::probe_import() {
  const std::uint64_t alignment = context_->limits.import_alignment;
  if (alignment == 0)
    return Status(Code::kUnavailable, report().name + " cannot import host memory; use a staging region");
  const std::uint64_t bytes = std::max<std::uint64_t>(alignment, 64u << 10);
  const std::unique_ptr<std::byte, decltype(&std::free)> probe(
      static_cast<std::byte*>(std::aligned_alloc(alignment, bytes)), &std::free);
  if (!probe) return Status(Code::kNoSpace, "no memory to probe importing with");
  std::fill_n(probe.get(), bytes, std::byte{1});
  FIRN_ASSIGN(const Region region, memory_->import_host(probe.get(), bytes));
  const auto write = [&]() -> Status {
    // Beginning and end between words, so that a shader writes and not only the driver's fill.
    FIRN_ASSIGN(const Fence fence, kernels_->fill(region, 1, bytes - 2, 0xA5));
    return queue_->wait(fence, 10'000'000'000);
  };
  const Status written = write();
  memory_->free(region);
  FIRN_TRY(written);
  const bool right =
      probe.get()[0] == std::byte{1} && probe.get()[bytes - 1] == std::byte{1} &&
      std::all_of(probe.get() + 1, probe.get() + bytes - 1, [](std::byte b) { return b == std::byte{0xA5}; });
  if (!right)
    return Status(Code::kUnavailable,
                  report().name + " imports host memory but does not write to it; use a staging region");
  return {};
}

}  // namespace firn::vk

namespace firn {

Result<std::vector<VulkanReport>> vulkan_devices() { return vk::Context::reports({}); }

Result<std::unique_ptr<VulkanDevice>> make_vulkan_device(const VulkanOptions& options) {
  FIRN_ASSIGN(std::unique_ptr<vk::VulkanDeviceImpl> device, vk::VulkanDeviceImpl::create(options));
  return std::unique_ptr<VulkanDevice>(std::move(device));
}

}  // namespace firn
