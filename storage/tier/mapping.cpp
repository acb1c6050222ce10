#include "storage/tier/mapping.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#define FIRN_HAS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIRN_HAS_ASAN 1
#endif
#endif
#ifdef FIRN_HAS_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace firn {

// The kernel aligns to 4 KiB only: a huge page more is mapped, and both ends are cut off.
Result<Mapping> Mapping::create(std::size_t bytes) {
  const std::size_t room = bytes + kHugePageBytes;
  void* const raw = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED)
    return Status(Code::kNoSpace,
                  fmt::format("mapping {} bytes of host memory: {}; lower host.budget or raise the limit "
                              "on address space (ulimit -v)",
                              bytes, std::strerror(errno)));
  auto* const begin = static_cast<std::byte*>(raw);
  const std::size_t head = (kHugePageBytes - reinterpret_cast<std::uintptr_t>(raw) % kHugePageBytes) % kHugePageBytes;
  if (head != 0) munmap(begin, head);
  if (room - head - bytes != 0) munmap(begin + head + bytes, room - head - bytes);
  Mapping mapping;
  mapping.start_ = begin + head;
  mapping.bytes_ = bytes;
  return mapping;
}

Mapping::Mapping(Mapping&& other) noexcept
    : start_(std::exchange(other.start_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(start_, other.start_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Mapping::~Mapping() {
  if (start_ == nullptr) return;
  allow_access(bytes());  // the addresses will be somebody else's
  munmap(start_, bytes_);
}

void Mapping::advise_huge_pages() const { madvise(start_, bytes_, MADV_HUGEPAGE); }

#ifdef FIRN_HAS_ASAN
void forbid_access(std::span<const std::byte> range) { ASAN_POISON_MEMORY_REGION(range.data(), range.size()); }
void allow_access(std::span<const std::byte> range) { ASAN_UNPOISON_MEMORY_REGION(range.data(), range.size()); }
#else
void forbid_access(std::span<const std::byte>) {}
void allow_access(std::span<const std::byte>) {}
#endif

}  // namespace firn
