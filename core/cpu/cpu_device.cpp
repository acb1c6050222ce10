// cpu_device.cpp: the device in host memory.
#include "core/cpu/cpu_kernels.h"
#include "core/cpu/host_memory.h"
#include "core/cpu/host_timeline.h"
#include "firn/device.h"

namespace firn {
namespace {

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(ThreadPool& threads) : kernels_(threads, timeline_) {}
  Memory& memory() override { return memory_; }
  Kernels& kernels() override { return kernels_; }
  Timeline& timeline() override { return timeline_; }

 private:
  cpu::HostMemory memory_;
  cpu::HostTimeline timeline_;
  cpu::CpuKernels kernels_;
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(ThreadPool& threads) { return std::make_unique<CpuDevice>(threads); }

}  // namespace firn
