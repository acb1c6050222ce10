// host_timeline.h: the timeline of devices whose work is finished when the call returns: it only counts.
#pragma once

#include <atomic>
#include <cstdint>

#include "core/base/fences.h"
#include "firn/device.h"

namespace firn::cpu {

class HostTimeline final : public Timeline {
 public:
  Fence next() { return {Fence::Kind::kTimeline, handle_, count_.fetch_add(1, std::memory_order_acq_rel) + 1}; }
  Fence last() const override { return {Fence::Kind::kTimeline, handle_, count_.load(std::memory_order_acquire)}; }
  bool passed(const Fence& fence) const override {
    return fence.kind == Fence::Kind::kNone || (fence.kind == Fence::Kind::kTimeline && fence.handle == handle_ &&
                                                fence.value <= count_.load(std::memory_order_acquire));
  }
  Status wait(const Fence& fence, std::int64_t) override { return check_fence(fence, last()); }

 private:
  const std::uint64_t handle_ = next_timeline_handle();
  std::atomic<std::uint64_t> count_{0};
};

}  // namespace firn::cpu
