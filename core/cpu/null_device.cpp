// null_device.cpp: a device without bytes. It checks what a real one would check, so that a scheduler that passes here
// has made no call that a real device would refuse.
#include <fmt/format.h>

#include <map>
#include <mutex>

#include "core/base/attention.h"
#include "core/base/check.h"
#include "core/cpu/host_timeline.h"
#include "firn/device.h"

namespace firn {
namespace {

constexpr std::uint64_t kAlignment = 2 * 1024 * 1024;
constexpr std::uint64_t kMaxRegionBytes = std::uint64_t{1} << 46;

class NullMemory final : public Memory {
 public:
  Info info() const override {
    return {
        .name = "null", .host_visible = false, .max_region_bytes = kMaxRegionBytes, .budget_bytes = kMaxRegionBytes};
  }
  Result<Region> allocate(RegionUse, std::uint64_t bytes) override {
    if (bytes == 0 || bytes > kMaxRegionBytes)
      return Status(Code::kInvalidArgument,
                    fmt::format("a region of {} bytes: must be 1 to {}", bytes, kMaxRegionBytes));
    std::lock_guard lock(mutex_);
    const Region region{next_, bytes, nullptr};
    next_ += (bytes / kAlignment + 1) * kAlignment;  // never given out again: a stale address stays recognisable
    regions_.emplace(region.address, bytes);
    return region;
  }
  void free(const Region& region) override {
    std::lock_guard lock(mutex_);
    const auto it = regions_.find(region.address);
    FIRN_CHECK(it != regions_.end() && it->second == region.bytes);
    regions_.erase(it);
  }

 private:
  std::mutex mutex_;
  std::map<DeviceAddress, std::uint64_t> regions_;
  DeviceAddress next_ = kAlignment;
};

class NullKernels final : public Kernels {
 public:
  explicit NullKernels(cpu::HostTimeline& timeline) : timeline_(timeline) {}
  Result<Fence> append(const AppendBatch& batch) override { return done(validate(batch)); }
  Result<Fence> copy(const CopyBatch& batch) override { return done(validate(batch)); }
  Result<Fence> fill(const Region& region, std::uint64_t offset, std::uint64_t bytes, std::uint8_t) override {
    return done(offset <= region.bytes && bytes <= region.bytes - offset
                    ? Status()
                    : Status(Code::kInvalidArgument, "fill: the bytes do not lie within the region"));
  }
  Result<Fence> attend(const AttendBatch& batch) override { return done(validate(batch)); }

 private:
  Result<Fence> done(const Status& status) {
    FIRN_TRY(status);
    return timeline_.next();
  }
  cpu::HostTimeline& timeline_;
};

class NullDevice final : public Device {
 public:
  NullDevice() : kernels_(timeline_) {}
  Memory& memory() override { return memory_; }
  Kernels& kernels() override { return kernels_; }
  Timeline& timeline() override { return timeline_; }

 private:
  NullMemory memory_;
  cpu::HostTimeline timeline_;
  NullKernels kernels_;
};

}  // namespace

std::unique_ptr<Device> make_null_device() { return std::make_unique<NullDevice>(); }

}  // namespace firn
