// hand_device.h: a device whose work is done when the test says so, and whose memory may refuse, or be out of the
// host's sight. Lazy, it does nothing before somebody waits: what overtakes its fence then reads or writes the wrong
// bytes.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "firn/device.h"
#include "firn/thread_pool.h"

namespace firn::test {

class HandDevice final : public Device, public Memory, public Kernels, public Timeline {
 public:
  explicit HandDevice(ThreadPool& threads) : cpu_(make_cpu_device(threads)) {}
  Memory& memory() override { return *this; }
  Kernels& kernels() override { return *this; }
  Timeline& timeline() override { return *this; }

  Info info() const override {
    Info info = cpu_->memory().info();
    info.host_visible = !hide_pool;
    return info;
  }
  Result<Region> allocate(RegionUse use, std::uint64_t bytes) override {
    if (refuse_allocation != 0 && --refuse_allocation == 0)
      return Status(Code::kNoSpace, "the device has no memory left");
    Result<Region> region = cpu_->memory().allocate(use, bytes);
    if (!region.ok()) return region;
    ++regions;
    if (hide_pool && use == RegionUse::kPool) region->host = nullptr;
    return region;
  }
  void free(const Region& region) override {
    --regions;
    {
      std::lock_guard lock(mutex_);
      freed_in_use += completed_ < submitted_ && !lost_;
    }
    const auto imported = std::find(imports_.begin(), imports_.end(), region.address);
    if (imported == imports_.end()) return cpu_->memory().free(region);
    imports_.erase(imported);
  }
  // A device whose pool is out of the host's sight reaches the host's memory.
  Result<Region> import_host(std::byte* memory, std::uint64_t bytes) override {
    if (!hide_pool) return Memory::import_host(memory, bytes);
    ++regions;
    imports_.push_back(reinterpret_cast<DeviceAddress>(memory));
    return Region{imports_.back(), bytes, memory};
  }

  Result<Fence> append(const AppendBatch& batch) override {
    return submit([this, batch = AppendBatch(batch), items = copied(batch.items)]() mutable {
      batch.items = items;
      return cpu_->kernels().append(batch);
    });
  }
  Result<Fence> copy(const CopyBatch& batch) override {
    if (on_copy) std::exchange(on_copy, nullptr)();
    if (refuse_copy) return Status(*refuse_copy, "the device did not copy");
    return submit([this, batch = CopyBatch(batch), items = copied(batch.items)]() mutable {
      batch.items = items;
      return cpu_->kernels().copy(batch);
    });
  }
  Result<Fence> fill(const Region& region, std::uint64_t offset, std::uint64_t bytes, std::uint8_t value) override {
    Region seen = region;
    seen.host = reinterpret_cast<std::byte*>(region.address);
    return submit([=, this] { return cpu_->kernels().fill(seen, offset, bytes, value); });
  }
  Result<Fence> attend(const AttendBatch& batch) override {
    return submit(
        [this, batch = AttendBatch(batch), items = copied(batch.items), views = copied(batch.views)]() mutable {
          batch.items = items;
          batch.views = views;
          return cpu_->kernels().attend(batch);
        });
  }

  Fence last() const override {
    std::lock_guard lock(mutex_);
    return {Fence::Kind::kTimeline, 7, submitted_};
  }
  bool passed(const Fence& fence) const override {
    std::lock_guard lock(mutex_);
    return check(fence).ok() && is_done(fence);  // lost: as a Vulkan device says
  }
  Status wait(const Fence& fence, std::int64_t timeout_ns) override {
    std::unique_lock lock(mutex_);
    if (const Status status = check(fence); !status.ok()) return status;
    if (lazy && fence.kind == Fence::Kind::kTimeline && timeout_ns > 0) run_up_to(fence.value);
    const auto done = [&] { return is_done(fence); };
    const auto most = std::chrono::nanoseconds(std::min<std::int64_t>(timeout_ns, 60'000'000'000));
    if (!changed_.wait_for(lock, most, done)) return Status(Code::kUnavailable, "the fence has not passed");
    if (lost_) return Status(Code::kIo, "the device is lost");
    return {};
  }

  void complete() {
    std::lock_guard lock(mutex_);
    run_up_to(submitted_);
    completed_ = submitted_;
    changed_.notify_all();
  }
  // What an engine signals itself, on a timeline of its own that this device knows: external fences of this handle.
  static constexpr std::uint64_t kEngineTimeline = 99;
  void signal(std::uint64_t value) {
    std::lock_guard lock(mutex_);
    signalled_ = value;
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
  std::optional<Code> refuse_copy;
  bool hide_pool = false;            // set before a manager is made
  std::function<void()> on_copy;     // called once, in the middle of whatever copies
  std::atomic<bool> by_hand{false};  // work is done at once, and its fence passes at complete()
  std::atomic<bool> lazy{false};     // work is done when somebody waits for it

 private:
  using Work = std::function<Result<Fence>()>;

  Status check(const Fence& fence) const {
    if (fence.kind == Fence::Kind::kNone || (fence.kind == Fence::Kind::kTimeline && fence.handle == 7) ||
        (fence.kind == Fence::Kind::kExternal && fence.handle == kEngineTimeline))
      return {};
    return Status(Code::kInvalidArgument, "fence: not one of this device");
  }
  bool is_done(const Fence& fence) const {
    if (lost_ || fence.kind == Fence::Kind::kNone) return true;
    return fence.value <= (fence.kind == Fence::Kind::kExternal ? signalled_ : completed_);
  }

  template <class T>
  static std::vector<T> copied(std::span<const T> items) {
    return {items.begin(), items.end()};
  }

  Result<Fence> submit(Work work) {
    if (!lazy) {
      const Result<Fence> done = work();
      if (!done.ok()) return done;
    }
    std::lock_guard lock(mutex_);
    ++submitted_;
    if (lazy) {
      pending_.push_back(std::move(work));
    } else if (!by_hand) {
      completed_ = submitted_;
    }
    return Fence{Fence::Kind::kTimeline, 7, submitted_};
  }

  void run_up_to(std::uint64_t value) {
    for (; !pending_.empty() && completed_ < value; ++completed_) {
      const Result<Fence> done = pending_.front()();
      EXPECT_TRUE(done.ok()) << done.status().message();
      pending_.pop_front();
    }
  }

  std::unique_ptr<Device> cpu_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Work> pending_;  // of a lazy device, not yet done
  std::uint64_t submitted_ = 0, completed_ = 0, signalled_ = 0;
  bool lost_ = false;
  std::vector<DeviceAddress> imports_;
};

}  // namespace firn::test
