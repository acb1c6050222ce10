// coming.h: the names that stores under way are to make findable, so that a look-up says `pending` of them and nobody
// computes them once more. A name that two stores bring is here twice.
// Threads: the cache's lock. Memory: the constructor allocates everything; bounded by the names that tickets may have.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "core/base/check.h"
#include "firn/cold_cache.h"
#include "firn/key.h"

namespace firn::cold {

class Coming {
 public:
  explicit Coming(std::uint32_t max_names) : entries_(max_names), buckets_(std::bit_ceil(max_names), kNone) {
    for (std::uint32_t i = max_names; i-- > 0;) {
      entries_[i].next = spare_;
      spare_ = i;
    }
  }
  static std::uint64_t metadata_bytes(std::uint32_t max_names) {
    return std::uint64_t{max_names} * sizeof(Entry) + std::uint64_t{std::bit_ceil(max_names)} * sizeof(std::uint32_t);
  }

  // What to give to remove() when the store has ended, whose caller may have taken its keys away by then.
  std::uint32_t add(ColdKind kind, const Key& key) {
    FIRN_CHECK(spare_ != kNone);  // tickets have no more names
    const std::uint32_t entry = spare_;
    spare_ = entries_[entry].next;
    std::uint32_t& head = buckets_[bucket(kind, key)];
    entries_[entry] = {.key = key, .next = head, .kind = kind};
    head = entry;
    ++count_;
    return entry;
  }
  void remove(std::uint32_t entry) {
    std::uint32_t* link = &buckets_[bucket(entries_[entry].kind, entries_[entry].key)];
    while (*link != entry) {
      FIRN_CHECK(*link != kNone);
      link = &entries_[*link].next;
    }
    *link = entries_[entry].next;
    entries_[entry] = {.key = {}, .next = spare_};
    spare_ = entry;
    --count_;
  }
  bool contains(ColdKind kind, const Key& key) const {
    if (count_ == 0) return false;
    std::uint32_t at = buckets_[bucket(kind, key)];
    while (at != kNone && !is(at, kind, key)) at = entries_[at].next;
    return at != kNone;
  }
  std::uint32_t count() const { return count_; }

 private:
  static constexpr std::uint32_t kNone = ~0u;
  struct Entry {
    Key key;
    std::uint32_t next = kNone;  // in its bucket, or among the spares
    ColdKind kind = ColdKind::kBlock;
  };
  bool is(std::uint32_t entry, ColdKind kind, const Key& key) const {
    return entries_[entry].kind == kind && entries_[entry].key == key;
  }
  std::size_t bucket(ColdKind kind, const Key& key) const {
    const std::uint64_t mixed =
        (static_cast<std::uint64_t>(KeyHash{}(key)) + static_cast<std::uint64_t>(kind)) * 0x9e3779b97f4a7c15u;
    return static_cast<std::size_t>((mixed >> 32) & (buckets_.size() - 1));
  }

  std::vector<Entry> entries_;
  std::vector<std::uint32_t> buckets_;
  std::uint32_t spare_ = kNone, count_ = 0;
};

}  // namespace firn::cold
