// host_memory.h: regions of host memory: anonymous mappings, zeroed by the kernel, on huge pages where it has some.
// Threads:  any; each call takes a short lock.
// Lifetime: outlives its regions' users; what was never freed goes back on destruction.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>

#include "firn/device.h"

namespace firn::cpu {

class HostMemory final : public Memory {
 public:
  HostMemory() = default;
  ~HostMemory() override;
  Info info() const override;
  Result<Region> allocate(RegionUse use, std::uint64_t bytes) override;
  void free(const Region& region) override;

  std::uint64_t region_bytes() const;  // in all living regions
  // For tests of what happens without memory: the n-th allocation from now fails (1: the next); 0: none does.
  void fail_allocation(std::uint64_t countdown);

 private:
  mutable std::mutex mutex_;
  std::map<DeviceAddress, std::uint64_t> regions_;  // address: bytes
  std::uint64_t fail_countdown_ = 0;
};

}  // namespace firn::cpu
