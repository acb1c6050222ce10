// mapping.h: a stretch of zeroed private memory straight from the kernel, aligned to huge pages. Untouched pages cost
// nothing; the end is the end, so what is resident never passes what was asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "firn/status.h"

namespace firn {

class Mapping {
 public:
  static constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

  // bytes: a multiple of 4 KiB pages.
  static Result<Mapping> create(std::size_t bytes);
  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  std::span<std::byte> bytes() const { return {start_, bytes_}; }
  void advise_huge_pages() const;  // a wish: kernels without them ignore it

 private:
  std::byte* start_ = nullptr;
  std::size_t bytes_ = 0;
};

// Between these two calls an address sanitizer, where there is one, reports every access to the range.
void forbid_access(std::span<const std::byte> range);
void allow_access(std::span<const std::byte> range);

}  // namespace firn
