// queue.h: what kernels want done becomes submissions on one queue, with one timeline semaphore. A kernel call brings
// operations, each with the bytes that it reads and writes; barriers follow from those alone (hazards.h).
//
// Argument tables lie in host-visible blocks that belong to a submission until its value has passed. Both the tables in
// flight and the submissions in flight are bounded: a caller who is too far ahead waits for the oldest.
// Threads:  any; a call records and submits under one lock.
#pragma once

#include <array>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "core/vk/context.h"
#include "core/vk/hazards.h"
#include "core/vk/memory.h"
#include "core/vk/unique.h"

namespace firn::vk {

struct Operation {
  const char* name = "";
  Access access;
  VkPipeline pipeline{};  // null: a fill
  std::array<std::byte, 128> push{};
  std::uint32_t push_bytes = 0;
  std::uint32_t groups[3] = {1, 1, 1};
  VkBuffer fill_buffer{};
  std::uint64_t fill_offset = 0, fill_bytes = 0;
  std::uint32_t fill_value = 0;
  std::uint64_t work_bytes = 0;  // read and written: what its time goes by

  template <class Push>
  void set_push(const Push& params) {
    static_assert(sizeof(Push) <= 128);
    push_bytes = sizeof(Push);
    std::memcpy(push.data(), &params, sizeof(Push));
  }
};

// What one kernel call brings: tables to upload and operations in order.
class Work {
 public:
  DeviceAddress upload(const void* data, std::uint64_t bytes);
  template <class T>
  DeviceAddress upload(std::span<const T> items) {
    return upload(items.data(), items.size_bytes());
  }
  void add(Operation operation) { operations_.push_back(std::move(operation)); }

 private:
  friend class Queue;
  Work(std::byte* map, DeviceAddress address, std::uint64_t bytes, std::vector<Operation>& operations)
      : map_(map), address_(address), bytes_(bytes), operations_(operations) {}
  std::byte* map_;
  DeviceAddress address_;
  std::uint64_t bytes_, used_ = 0;
  std::vector<Operation>& operations_;
};

class Queue final : public Timeline {
 public:
  static Result<std::unique_ptr<Queue>> create(Context& context, DeviceMemory& memory, bool exportable);
  ~Queue() override;

  Fence last() const override;
  bool passed(const Fence& fence) const override;
  Status wait(const Fence& fence, std::int64_t timeout_ns = std::numeric_limits<std::int64_t>::max()) override;

  // Tables take at most table_bytes; fill them and add the operations in build.
  Result<Fence> run(std::uint64_t table_bytes, const std::function<Status(Work&)>& build);
  VkPipelineLayout layout() const { return layout_.get(); }
  std::uint64_t submission_bytes() const { return submission_bytes_; }
  Result<int> export_fd();

  // For tests: leaves out the n-th barrier from now; forgets the ranges that the n-th operation from now writes.
  void break_barrier(std::uint64_t countdown);
  void break_range(std::uint64_t countdown);
  struct Counters {
    std::uint64_t submissions = 0, operations = 0, barriers = 0;
  };
  Counters counters() const;

 private:
  struct Arena {
    Block block;
    std::uint64_t value = 0;  // free when this has passed
  };
  struct Commands {
    UniqueCommandPool pool;
    VkCommandBuffer buffer{};
    std::uint64_t value = 0;
  };
  Queue(Context& context, DeviceMemory& memory) : context_(context), memory_(memory) {}
  Status set_up(bool exportable);
  std::uint64_t reached() const;  // the semaphore's value; everything once the device is lost
  Status wait_value(std::uint64_t value, std::int64_t timeout_ns) const;
  Result<Arena> take_arena(std::uint64_t bytes);
  Result<Commands> take_commands();
  Status flush();  // submits what is open
  Status submit(std::span<const std::size_t> order, std::uint64_t value);
  void record(VkCommandBuffer buffer, Operation& operation);
  void check(const Operation& operation) const;
  Status check(const Fence& fence) const;

  Context& context_;
  DeviceMemory& memory_;
  UniqueLayout layout_;
  UniqueSemaphore semaphore_;
  std::uint64_t handle_ = 0;
  std::uint64_t submission_bytes_ = 0;
  bool exportable_ = false;

  mutable std::mutex mutex_;
  std::uint64_t submitted_ = 0, promised_ = 0;  // values; promised is ahead while operations are held back
  std::vector<Operation> open_;
  std::vector<Arena> open_arenas_;
  std::uint32_t open_calls_ = 0;
  std::deque<Arena> arenas_;  // in use or spare, oldest first
  std::uint64_t arena_bytes_ = 0;
  std::deque<Commands> commands_;
  Outstanding outstanding_, checked_;  // what the recorder knows, and what the check has seen: each on its own
  std::uint64_t skip_barrier_ = 0, drop_range_ = 0, shuffles_ = 0;
  Counters counters_;
};

}  // namespace firn::vk
