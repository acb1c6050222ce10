#include "core/cpu/host_memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "core/base/check.h"
#include "core/config/machine.h"

namespace firn::cpu {
namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint64_t kHugePageBytes = 2 * 1024 * 1024;
constexpr std::uint64_t kReadableBehind = 64;  // promised by Memory::allocate
constexpr std::uint64_t kMaxRegionBytes = std::uint64_t{1} << 46;

constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t to) { return (value + to - 1) / to * to; }
constexpr std::uint64_t mapped_bytes(std::uint64_t bytes) { return round_up(bytes + kReadableBehind, kPageBytes); }

void unmap(std::uint64_t address, std::uint64_t bytes) {
  if (bytes != 0) FIRN_CHECK(munmap(reinterpret_cast<void*>(static_cast<std::uintptr_t>(address)), bytes) == 0);
}

// Maps more than needed and gives back both ends: mmap has no alignment argument.
std::uint64_t map_aligned(std::uint64_t bytes, std::uint64_t alignment) {
  const std::uint64_t slack = alignment > kPageBytes ? alignment : 0;
  void* mapping = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return 0;
  const auto begin = static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(mapping));
  const std::uint64_t address = round_up(begin, alignment);
  unmap(begin, address - begin);
  unmap(address + bytes, begin + slack - address);
  return address;
}

}  // namespace

HostMemory::~HostMemory() {
  for (const auto& [address, bytes] : regions_) unmap(address, mapped_bytes(bytes));
}

Memory::Info HostMemory::info() const {
  return {.name = "cpu",
          .host_visible = true,
          .max_region_bytes = kMaxRegionBytes,
          .budget_bytes = inspect_machine().usable_bytes()};
}

Result<Region> HostMemory::allocate(RegionUse, std::uint64_t bytes) {
  if (bytes == 0 || bytes > kMaxRegionBytes)
    return Status(Code::kInvalidArgument, fmt::format("a region of {} bytes: must be 1 to {}", bytes, kMaxRegionBytes));
  const bool huge = bytes >= kHugePageBytes;
  std::lock_guard lock(mutex_);
  const bool injected = fail_countdown_ != 0 && --fail_countdown_ == 0;
  const std::uint64_t mapped = mapped_bytes(bytes);
  const std::uint64_t address = injected ? 0 : map_aligned(mapped, huge ? kHugePageBytes : kPageBytes);
  if (address == 0)
    return Status(Code::kNoSpace, fmt::format("the system refused {} bytes of memory ({}); lower the budget", bytes,
                                              injected ? "injected failure" : std::strerror(errno)));
  auto* host = reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(address));
  if (huge) madvise(host, mapped, MADV_HUGEPAGE);  // advice: where it is not taken, pages are small
  regions_.emplace(address, bytes);
  return Region{address, bytes, host};
}

void HostMemory::free(const Region& region) {
  std::lock_guard lock(mutex_);
  const auto it = regions_.find(region.address);
  FIRN_CHECK(it != regions_.end() && it->second == region.bytes);  // ours, whole, and not freed before
  unmap(region.address, mapped_bytes(region.bytes));
  regions_.erase(it);
}

std::uint64_t HostMemory::region_bytes() const {
  std::lock_guard lock(mutex_);
  std::uint64_t sum = 0;
  for (const auto& [address, bytes] : regions_) sum += bytes;
  return sum;
}

void HostMemory::fail_allocation(std::uint64_t countdown) {
  std::lock_guard lock(mutex_);
  fail_countdown_ = countdown;
}

}  // namespace firn::cpu
