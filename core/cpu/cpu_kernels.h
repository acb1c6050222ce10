// cpu_kernels.h: the kernels of the cpu backend. A call has finished when it returns.
// Threads:  any thread may call; the pool gives each loop its turn, and a worker's scratch memory belongs to that loop.
// Memory:   scratch is allocated at construction, under 256 KiB a worker; no call allocates.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/cpu/attend_kernel.h"
#include "core/cpu/host_timeline.h"
#include "firn/device.h"
#include "firn/thread_pool.h"

namespace firn::cpu {

class CpuKernels final : public Kernels {
 public:
  CpuKernels(ThreadPool& threads, HostTimeline& timeline);
  Result<Fence> append(const AppendBatch& batch) override;
  Result<Fence> copy(const CopyBatch& batch) override;
  Result<Fence> fill(const Region& region, std::uint64_t offset, std::uint64_t bytes, std::uint8_t value) override;
  Result<Fence> attend(const AttendBatch& batch) override;

 private:
  ThreadPool& threads_;
  HostTimeline& timeline_;
  std::vector<std::unique_ptr<AttendScratch>> scratch_;  // by worker
};

// Cuts a batch into tasks and runs them: attend.cpp.
void attend(const AttendBatch& batch, ThreadPool& threads, const std::vector<std::unique_ptr<AttendScratch>>& scratch);

}  // namespace firn::cpu
