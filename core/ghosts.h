// ghosts.h: remembers what was evicted, so that a miss can say so. A direct-mapped table of key fingerprints: bounded,
// forgetful, and wrong only about the reason of a miss, never about the miss.
#pragma once

#include <cstdint>
#include <vector>

#include "firn/key.h"
#include "firn/stats.h"

namespace firn {

class Ghosts {
 public:
  explicit Ghosts(std::uint32_t capacity) : entries_(capacity) {}
  static std::uint64_t metadata_bytes(std::uint32_t capacity) {
    return std::uint64_t{capacity} * sizeof(std::uint32_t);
  }

  void remember(const Key& key, MissReason reason) {
    entries_[slot(key)] = fingerprint(key) | static_cast<std::uint32_t>(reason);
  }
  MissReason reason(const Key& key) const {
    const std::uint32_t entry = entries_[slot(key)];
    if ((entry & kReasonMask) == 0 || ((entry ^ fingerprint(key)) & ~kReasonMask) != 0) return MissReason::kNeverStored;
    return static_cast<MissReason>(entry & kReasonMask);
  }
  void clear() { entries_.assign(entries_.size(), 0); }

 private:
  static constexpr std::uint32_t kReasonMask = 15;
  static_assert(static_cast<std::uint32_t>(MissReason::kCount) <= kReasonMask + 1);
  // 28 bits that the place in the table does not depend on.
  static std::uint32_t fingerprint(const Key& key) {
    std::uint32_t word = 0;
    for (int i = 31; i >= 28; --i) word = word << 8 | key.bytes[static_cast<std::size_t>(i)];
    return word & ~kReasonMask;
  }
  std::size_t slot(const Key& key) const { return KeyHash{}(key) % entries_.size(); }

  std::vector<std::uint32_t> entries_;
};

}  // namespace firn
