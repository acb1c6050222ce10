// hand_device.h: a device whose work is done when the test says so, and whose memory may refuse.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "firn/device.h"
#include "firn/thread_pool.h"

namespace firn::test {

class HandDevice final : public Device, public Memory, public Kernels, public Timeline {
 public:
  explicit HandDevice(ThreadPool& threads) : cpu_(make_cpu_device(threads)) {}
  Memory& memory() override { return *this; }
  Kernels& kernels() override { return *this; }
  Timeline& timeline() override { return *this; }

  Info info() const override { return cpu_->memory().info(); }
  Result<Region> allocate(RegionUse use, std::uint64_t bytes) override {
    if (refuse_allocation != 0 && --refuse_allocation == 0)
      return Status(Code::kNoSpace, "the device has no memory left");
    ++regions;
    return cpu_->memory().allocate(use, bytes);
  }
  void free(const Region& region) override {
    --regions;
    {
      std::lock_guard lock(mutex_);
      freed_in_use += completed_ < submitted_ && !lost_;
    }
    cpu_->memory().free(region);
  }

  Result<Fence> append(const AppendBatch& batch) override { return submitted(cpu_->kernels().append(batch)); }
  Result<Fence> copy(const CopyBatch& batch) override {
    if (refuse_copy) return Status(Code::kIo, "the device lost the copy");
    return submitted(cpu_->kernels().copy(batch));
  }
  Result<Fence> fill(const Region& region, std::uint64_t offset, std::uint64_t bytes, std::uint8_t value) override {
    return submitted(cpu_->kernels().fill(region, offset, bytes, value));
  }
  Result<Fence> attend(const AttendBatch& batch) override { return submitted(cpu_->kernels().attend(batch)); }

  Fence last() const override {
    std::lock_guard lock(mutex_);
    return {Fence::Kind::kTimeline, 7, submitted_};
  }
  bool passed(const Fence& fence) const override {
    std::lock_guard lock(mutex_);
    return fence.kind == Fence::Kind::kNone || fence.value <= completed_;
  }
  Status wait(const Fence& fence, std::int64_t timeout_ns) override {
    std::unique_lock lock(mutex_);
    const auto done = [&] { return lost_ || fence.kind == Fence::Kind::kNone || fence.value <= completed_; };
    const auto most = std::chrono::nanoseconds(std::min<std::int64_t>(timeout_ns, 60'000'000'000));
    if (!changed_.wait_for(lock, most, done)) return Status(Code::kUnavailable, "the fence has not passed");
    if (lost_) return Status(Code::kIo, "the device is lost");
    return {};
  }

  void complete() {
    std::lock_guard lock(mutex_);
    completed_ = submitted_;
    changed_.notify_all();
  }
  void lose() {
    std::lock_guard lock(mutex_);
    lost_ = true;
    changed_.notify_all();
  }

  int refuse_allocation = 0;  // the n-th from now
  int regions = 0;
  int freed_in_use = 0;  // regions given back before the work on them was done
  bool refuse_copy = false;
  std::atomic<bool> by_hand{false};  // else everything is done at once

 private:
  Result<Fence> submitted(const Result<Fence>& done) {
    if (!done.ok()) return done;
    std::lock_guard lock(mutex_);
    ++submitted_;
    if (!by_hand) completed_ = submitted_;
    return Fence{Fence::Kind::kTimeline, 7, submitted_};
  }

  std::unique_ptr<Device> cpu_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t submitted_ = 0, completed_ = 0;
  bool lost_ = false;
};

}  // namespace firn::test
