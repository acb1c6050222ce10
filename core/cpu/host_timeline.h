// host_timeline.h: the timeline of devices whose work is finished when the call returns: it only counts.
#pragma once

#include <atomic>
#include <cstdint>

#include "core/base/check.h"
#include "firn/device.h"

namespace firn::cpu {

class HostTimeline final : public Timeline {
 public:
  Fence next() { return {Fence::Kind::kTimeline, kHandle, count_.fetch_add(1, std::memory_order_acq_rel) + 1}; }
  Fence last() const override { return {Fence::Kind::kTimeline, kHandle, count_.load(std::memory_order_acquire)}; }
  bool passed(const Fence& fence) const override {
    if (fence.kind == Fence::Kind::kTimeline)
      FIRN_CHECK(fence.handle == kHandle &&
                 fence.value <= count_.load(std::memory_order_acquire));  // ours, and given out
    return fence.kind != Fence::Kind::kExternal;
  }
  Status wait(const Fence& fence, std::int64_t) override {
    if (passed(fence)) return {};
    return Status(Code::kInvalidArgument, "external fences cannot be waited for in host memory; wait before the call");
  }

 private:
  static constexpr std::uint64_t kHandle = 1;
  std::atomic<std::uint64_t> count_{0};
};

}  // namespace firn::cpu
