// verdicts.h: keys whose frames did not decode, and how often. After kLoadAttempts failures a key is not stored again
// for kLoadVerdictNs: whoever computes it anew keeps it in the pool or not at all, and does not go round in a circle of
// storing, failing to load and computing again. A direct-mapped table: bounded, and what it forgets is tried again.
// Threads: the manager's lock.
#pragma once

#include <cstdint>
#include <vector>

#include "firn/key.h"
#include "firn/manager.h"

namespace firn {

class Verdicts {
 public:
  static constexpr std::uint32_t kEntries = 1024;
  static constexpr std::uint64_t metadata_bytes() { return kEntries * sizeof(Entry); }

  void failed(const Key& key, Instant now) {
    Entry& entry = at(key);
    if (entry.name != name(key) || entry.until_ns <= now.ns) entry = {name(key), 0, 0};
    ++entry.failures;
    any_ = true;
    entry.until_ns = now.ns + kLoadVerdictNs;
  }
  bool any() const { return any_; }  // else nothing stands, and nobody needs to look at the clock
  bool stands(const Key& key, Instant now) const {
    const Entry& entry = const_cast<Verdicts*>(this)->at(key);
    return entry.failures >= kLoadAttempts && entry.name == name(key) && now.ns < entry.until_ns;
  }
  void clear() {
    entries_.assign(kEntries, {});
    any_ = false;
  }

 private:
  struct Entry {
    std::uint64_t name = 0;
    std::int64_t until_ns = 0;
    std::uint32_t failures = 0;
  };
  static std::uint64_t name(const Key& key) {
    std::uint64_t word = 0;
    for (std::size_t i = 8; i < 16; ++i) word = word << 8 | key.bytes[i];
    return word;
  }
  Entry& at(const Key& key) { return entries_[KeyHash{}(key) % kEntries]; }

  bool any_ = false;
  std::vector<Entry> entries_ = std::vector<Entry>(kEntries);
};

}  // namespace firn
