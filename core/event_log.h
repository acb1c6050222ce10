// event_log.h: the bounded ring behind take_events(), and what it has told so far of each block.
//
// What is told is where a *key* can be found. Several blocks may carry one key, so the log keeps for each block what
// part of its key's tiers it stands for, and tells the difference that a change makes to the whole chain. Numbers of a
// namespace's own stream begin at the time (nanoseconds) of its first event, so that a namespace which ends and comes
// back never gives a number twice and nobody can count what others do.
// Threads: the manager's lock. Memory: open() allocates everything but one small record a namespace, charged there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "core/base/check.h"
#include "core/block_pool.h"
#include "core/prefix_index.h"
#include "firn/events.h"

namespace firn {

class EventLog {
 public:
  // capacity 0: off, and every call below returns at once.
  EventLog(std::uint32_t capacity, std::uint32_t block_count)
      : ring_(capacity), parents_(capacity == 0 ? 0 : block_count), told_(capacity == 0 ? 0 : block_count) {}
  static std::uint64_t metadata_bytes(std::uint32_t capacity, std::uint32_t block_count) {
    return capacity == 0
               ? 0
               : std::uint64_t{capacity} * sizeof(Entry) + std::uint64_t{block_count} * (sizeof(Key) + sizeof(TierSet));
  }
  bool on() const { return !ring_.empty(); }

  // The block has its key and is in the index; after it, changes of its slot or frame; before its key goes.
  void named(const BlockPool& pool, const PrefixIndex& index, BlockId id, const Key& parent, std::uint64_t tag,
             Instant now);
  void changed(const BlockPool& pool, const PrefixIndex& index, BlockId id, std::uint64_t tag, Instant now);
  void forgotten(const BlockPool& pool, const PrefixIndex& index, BlockId id, std::uint64_t tag, Instant now);
  // reset(): between the two nothing is told; afterwards every namespace that had something is told that it is gone.
  void begin_clear() {
    cleared_.reserve(scopes_.size());
    clearing_ = true;
  }
  void end_clear(Instant now);
  // The namespace may have blocks from now on: its record is there before anything is told that may not fail.
  template <class Clock>
  void open(std::uint64_t tag, const Clock& clock) {
    if (on() && !scopes_.contains(tag)) scope(tag, clock());
  }
  void close(std::uint64_t tag) { scopes_.erase(tag); }  // the namespace has no block any more

  EventBatch take(std::uint64_t since, std::size_t max, std::optional<std::uint64_t> tag) const;
  // What can be found now, and the number it is true at. tag_of(namespace number).
  template <class TagOf>
  EventSnapshot snapshot(const BlockPool& pool, const PrefixIndex& index, std::optional<std::uint64_t> tag, Instant now,
                         TagOf tag_of) const {
    EventSnapshot all{.sequence = tag ? scoped_number(*tag, now) : last_, .blocks = {}};
    index.for_each([&](BlockId head) {
      EventBlock block = describe(pool.block(head), head, tag_of(pool.block(head).name_space));
      if (tag && block.name_space != *tag) return;
      block.tiers = tiers(pool, head);
      all.blocks.push_back(block);
    });
    std::stable_sort(all.blocks.begin(), all.blocks.end(),
                     [](const EventBlock& a, const EventBlock& b) { return a.position < b.position; });
    return all;
  }
  std::uint64_t last() const { return last_; }
  std::uint64_t lost() const { return lost_; }
  // For verify(): the tiers told of this block.
  TierSet told(BlockId id) const { return told_[index(id)]; }
  static TierSet tiers_of(const Block& block) {
    return static_cast<TierSet>((block.slot != SlotId::kNone ? kOnDevice : 0) |
                                (block.frame != FrameId::kNone ? kOnHost : 0));
  }

 private:
  struct Entry {
    Event event;
    std::uint64_t scoped = 0;  // its number among the events of its namespace
  };
  struct Scope {
    std::uint64_t last = 0, lost = 0;  // numbers of its own
    std::uint64_t keys = 0;            // told to be here
  };
  TierSet tiers(const BlockPool& pool, BlockId head) const;
  EventBlock describe(const Block& block, BlockId id, std::uint64_t tag) const;
  void tell(const BlockPool& pool, const PrefixIndex& index, BlockId id, TierSet now_here, std::uint64_t tag,
            Instant now);
  void append(EventKind kind, TierSet before, const EventBlock& block, Instant now);
  Scope& scope(std::uint64_t tag, Instant now);
  std::uint64_t scoped_number(std::uint64_t tag, Instant now) const;

  std::vector<Entry> ring_;                 // entry n is at n % size
  std::uint64_t last_ = 0, lost_ = 0;       // newest number; newest number that is not in the ring any more
  std::uint64_t highest_ = 0, passed_ = 0;  // of numbers of namespaces: ever given; ever lost
  std::vector<Key> parents_;                // by block, while it has a key
  std::vector<TierSet> told_;
  std::unordered_map<std::uint64_t, Scope> scopes_;  // by tag
  bool clearing_ = false;
  std::vector<std::uint64_t> cleared_;  // end_clear(): tags
};

}  // namespace firn
