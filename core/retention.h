// retention.h: which blocks are kept longer, by whom and until when: priorities, pins, leases and families. Owns these
// and knows nothing of slots, frames and policies: it answers questions about blocks and names those whose answer has
// changed.
//
// Only blocks that somebody has said something about have an entry, so nothing here costs anything until it is used.
// Threads: the manager's lock. Memory: entries, leases and families are charged one by one as they are made.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "firn/ids.h"
#include "firn/ledger.h"
#include "firn/retention.h"
#include "firn/status.h"

namespace firn {

class Retention {
 public:
  struct Counters {
    std::uint64_t priorities_expired = 0, pins_expired = 0, leases_expired = 0;
  };

  explicit Retention(Ledger& ledger) : ledger_(ledger) {}
  bool unused() const { return entries_.empty() && leases_.empty(); }
  bool says_nothing() const { return entries_.empty(); }  // of no block
  // What these need in the metadata budget, that have no entry yet.
  std::uint64_t bytes_for(const std::vector<BlockId>& blocks) const;

  // expires at: 0: never. kNoSpace: the metadata budget; nothing changed.
  Status set_priority(BlockId id, std::uint8_t priority, std::int64_t expires_ns);
  Status pin(BlockId id, std::int64_t until_ns);
  bool unpin(BlockId id);  // false: it was not pinned; leases stay
  Result<LeaseId> acquire(std::string_view owner, std::vector<BlockId> blocks, Instant now, std::int64_t deadline_ns);
  Status renew(LeaseId lease, std::int64_t deadline_ns);
  // Another copy takes over who holds this one, which is about to be forgotten. False: no memory for its entry, or
  // nobody does.
  bool move_hold(BlockId from, BlockId to);
  // Calls changed(block) for each that it held. Nothing here needs memory: what ends, ends.
  template <class Changed>
  bool release(LeaseId lease, Changed changed) {
    const auto found = leases_.find(firn::index(lease));
    if (found == leases_.end()) return false;
    for (const BlockId id : found->second.blocks) {
      const auto held = entries_.find(firn::index(id));
      if (held == entries_.end() || held->second.leases == 0) continue;  // the block was discarded meanwhile
      --held->second.leases;
      settle(id, held->second, /*was_held=*/true);
      changed(id);
    }
    refund(found->second.charge);
    deadlines_.erase({found->second.deadline_ns, found->first});
    leases_.erase(found);
    return true;
  }
  std::vector<LeaseInfo> leases(std::uint64_t block_bytes) const;
  std::uint32_t lease_count() const { return static_cast<std::uint32_t>(leases_.size()); }
  // Blocks with the life of each, so that they may be named when some are gone.
  struct Members {
    std::vector<BlockId> blocks;
    std::vector<std::uint32_t> generations;
  };
  Status make_family(Members members);
  std::size_t family_count() const { return families_.size(); }

  std::uint8_t priority(BlockId id) const {
    const Entry* entry = find(id);
    return entry ? entry->priority : kDefaultPriority;
  }
  std::pair<std::uint8_t, std::int64_t> priority_until(BlockId id) const {
    const Entry* entry = find(id);
    return entry ? std::pair{entry->priority, entry->priority_until} : std::pair{kDefaultPriority, std::int64_t{0}};
  }
  bool held(BlockId id) const {  // pinned or leased
    const Entry* entry = find(id);
    return entry && entry->held();
  }
  std::uint32_t held_count() const { return held_count_; }
  bool any_family() const { return !families_.empty(); }
  // The others of its family; null: it is in none.
  const std::vector<BlockId>* family(BlockId id) const {
    const Entry* entry = find(id);
    if (!entry || entry->family == 0) return nullptr;
    return &families_.at(entry->family).members.blocks;
  }
  template <class Visit>
  void for_each_family(Visit visit) const {
    for (const auto& [number, family] : families_) visit(family.members.blocks);
  }
  // For dump(), unordered: what is pinned and until when; the blocks of each family by its number.
  std::vector<std::pair<BlockId, std::int64_t>> pins() const;
  std::vector<std::pair<std::uint64_t, std::vector<BlockId>>> families() const;
  // What ends at this time or before; whose priority or hold has changed.
  bool due(Instant now) const {
    return (!due_.empty() && due_.begin()->first <= now.ns) ||
           (!deadlines_.empty() && deadlines_.begin()->first <= now.ns);
  }
  template <class Changed>
  void advance(Instant now, Changed changed) {
    while (!deadlines_.empty() && deadlines_.begin()->first <= now.ns) {
      release(LeaseId{deadlines_.begin()->second}, changed);
      ++counters_.leases_expired;
    }
    while (!due_.empty() && due_.begin()->first <= now.ns) {
      const BlockId id{due_.begin()->second};
      end_due(id, now);
      changed(id);
    }
  }
  // The block has lost its key. Its family ends; those who were in it are returned.
  Members forget(BlockId id);
  void clear();  // reset(): pins, priorities and families go, leases there are none
  std::uint64_t charged_bytes() const { return charged_bytes_; }
  const Counters& counters() const { return counters_; }
  // For verify(): empty if sound.
  std::vector<std::string> check() const;

 private:
  struct Entry {
    std::uint8_t priority = kDefaultPriority;
    std::int64_t priority_until = 0, pinned_until = 0;  // 0: for ever; not pinned
    std::uint32_t leases = 0;
    std::uint64_t family = 0;
    std::int64_t due = 0;  // its key in due_; 0: it has none
    Ledger::Charge charge;
    bool held() const { return pinned_until != 0 || leases != 0; }
    bool says_something() const { return held() || priority != kDefaultPriority || family != 0; }
  };
  struct Lease {
    std::string owner;
    std::vector<BlockId> blocks;
    Instant acquired;
    std::int64_t deadline_ns = 0;
    Ledger::Charge charge;
  };
  struct Family {
    Members members;
    Ledger::Charge charge;
  };
  const Entry* find(BlockId id) const {
    if (entries_.empty()) return nullptr;
    const auto found = entries_.find(firn::index(id));
    return found == entries_.end() ? nullptr : &found->second;
  }
  Result<Entry*> entry(BlockId id);
  void settle(BlockId id, Entry& entry, bool was_held);  // after a change; the entry may be gone afterwards
  template <class Change>
  void change(BlockId id, Entry& entry, Change change);  // throws without memory; then nothing has changed
  void end_due(BlockId id, Instant now);
  Members end_family(std::uint64_t family);
  void refund(const Ledger::Charge& charge) { charged_bytes_ -= charge.bytes(); }

  Ledger& ledger_;
  std::unordered_map<std::uint32_t, Entry> entries_;  // by BlockId
  std::map<std::uint64_t, Lease> leases_;
  std::unordered_map<std::uint64_t, Family> families_;
  std::set<std::pair<std::int64_t, std::uint32_t>> due_;        // (when something of an entry ends, block)
  std::set<std::pair<std::int64_t, std::uint64_t>> deadlines_;  // (deadline, lease)
  std::uint64_t next_lease_ = 1, next_family_ = 1, charged_bytes_ = 0;
  std::uint32_t held_count_ = 0;
  Counters counters_;
};

}  // namespace firn
