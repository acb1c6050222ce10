// lru.cpp: least recently used, with what an eviction would lose in front.
//
// A candidate is in one of three lists, by what is lost when it goes:
//   1. dead, and the tier below has its bytes: nothing is lost, and nobody is reading it
//   2. live (cold in some sequence), and the tier below has its bytes: the sequence will have to decode it again
//   3. no copy below: its tokens would have to be computed again
// Victims come from list 1, then 2, then 3, each from head to tail. Everything that says "used just now" (an insert, a
// hit, a read) appends to the tail of the candidate's list; a copy that appears or is lost appends to the tail of the
// other one. So within a list the order is that of last use. A sequence is freed from its last block to its first,
// which puts suffixes in front of the prefixes they depend on, without anybody keeping a tree. The lists are doubly
// linked through two arrays indexed by BlockId, so that a block in the middle leaves in O(1), with three sentinels
// behind the last id. 13 bytes per id, allocated once.
#include <limits>
#include <vector>

#include "core/base/check.h"
#include "firn/policy.h"

namespace firn {
namespace {

enum List : std::uint32_t { kDeadWithCopy, kLiveWithCopy, kLastCopy, kLists };

class LruPolicy final : public EvictionPolicy {
 public:
  explicit LruPolicy(std::uint32_t capacity)
      : capacity_(capacity), links_(std::size_t{capacity} + kLists), bytes_(capacity), flags_(capacity) {
    for (std::uint32_t list = 0; list < kLists; ++list) links_[capacity + list] = {capacity + list, capacity + list};
  }

  std::string_view name() const override { return "lru"; }

  // A candidate that is inserted again takes the new facts and counts as just used.
  void on_insert(const BlockFacts& facts, Instant) override {
    const std::uint32_t id = index(facts.id);
    FIRN_CHECK(id < capacity_);
    if (flags_[id] & kCandidate) {
      unlink(id);
    } else {
      ++count_;
    }
    // Frames are far below 4 GiB. A larger claim is cut, so that no victim frees less than was counted for it.
    constexpr std::uint32_t kMost = std::numeric_limits<std::uint32_t>::max();
    bytes_[id] = facts.bytes < kMost ? static_cast<std::uint32_t>(facts.bytes) : kMost;
    flags_[id] = static_cast<std::uint8_t>(kCandidate | (facts.live ? kLive : 0) | (facts.has_copy ? kCopy : 0));
    append(id);
  }

  void on_access(BlockId block, Access access, Instant) override {
    const std::uint32_t id = index(block);
    if (!is_candidate(id)) return;
    const bool had_copy = (flags_[id] & kCopy) != 0;
    if (access == Access::kCopied) {
      if (had_copy) return;  // known: the order stays
      flags_[id] |= kCopy;
    } else if (access == Access::kCopyLost) {
      if (!had_copy) return;
      flags_[id] &= static_cast<std::uint8_t>(~kCopy);
    }
    unlink(id);
    append(id);
  }

  void on_remove(BlockId block) override {
    const std::uint32_t id = index(block);
    if (!is_candidate(id)) return;
    unlink(id);
    flags_[id] = 0;
    --count_;
  }

  std::size_t victims(Need need, const Filter& filter, std::span<BlockId> out) override {
    std::size_t found = 0;
    std::uint64_t freed = 0;
    for (std::uint32_t list = 0; list < kLists; ++list) {
      const std::uint32_t sentinel = capacity_ + list;
      for (std::uint32_t id = links_[sentinel].next; id != sentinel; id = links_[id].next) {
        if (found == out.size() || (found >= need.count && freed >= need.bytes)) return found;
        if (filter && !filter(BlockId{id})) continue;
        out[found++] = BlockId{id};
        freed += bytes_[id];
      }
    }
    return found;
  }

  std::size_t candidates() const override { return count_; }

 private:
  enum Flag : std::uint8_t { kCandidate = 1, kLive = 2, kCopy = 4 };
  struct Link {
    std::uint32_t previous = 0, next = 0;
  };

  bool is_candidate(std::uint32_t id) const { return id < capacity_ && (flags_[id] & kCandidate) != 0; }

  List list_of(std::uint32_t id) const {
    if (!(flags_[id] & kCopy)) return kLastCopy;
    return flags_[id] & kLive ? kLiveWithCopy : kDeadWithCopy;
  }

  void append(std::uint32_t id) {
    const std::uint32_t sentinel = capacity_ + list_of(id);
    const std::uint32_t last = links_[sentinel].previous;
    links_[id] = {last, sentinel};
    links_[last].next = id;
    links_[sentinel].previous = id;
  }

  void unlink(std::uint32_t id) {
    links_[links_[id].previous].next = links_[id].next;
    links_[links_[id].next].previous = links_[id].previous;
  }

  std::uint32_t capacity_ = 0;
  std::size_t count_ = 0;
  std::vector<Link> links_;           // ids, then one sentinel per list
  std::vector<std::uint32_t> bytes_;  // what evicting it frees
  std::vector<std::uint8_t> flags_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lru_policy(std::uint32_t capacity) {
  // The sentinels take three ids, and kNone is none.
  FIRN_CHECK(capacity < std::numeric_limits<std::uint32_t>::max() - kLists);
  return std::make_unique<LruPolicy>(capacity);
}

}  // namespace firn
