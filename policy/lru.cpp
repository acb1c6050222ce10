// lru.cpp: least recently used.
//
// A candidate is in one of two lists:
//   1. dead: no sequence reads it, so evicting it costs something only if somebody asks for it again
//   2. live (cold in some sequence): evicting it costs a decode in every step from now on
// Victims come from list 1, then 2, each from head to tail. Everything that says "used just now" (an insert, a hit, a
// read) appends to the tail of the candidate's list, so that a list is in order of last use. A sequence is freed from
// its last block to its first, which puts suffixes in front of the prefixes they depend on, without anybody keeping a
// tree. Whether the tier below has a copy does not matter: such a tier keeps what was used last, so that taking blocks
// with a copy first would keep the oldest blocks of all (docs/policies.md has figures).
//
// The lists are doubly linked through one array indexed by BlockId, so that a block in the middle leaves in O(1), with
// two sentinels behind the last id; the two highest bits of a link say which list. 8 bytes per id, allocated once, and
// 4 more from the first candidate on that is of another size than those before it.
#include <algorithm>
#include <limits>
#include <new>
#include <vector>

#include "core/base/check.h"
#include "firn/policy.h"

namespace firn {
namespace {

enum List : std::uint32_t { kDead, kLive, kLists, kNoList };

class LruPolicy final : public EvictionPolicy {
 public:
  explicit LruPolicy(std::uint32_t capacity)
      : capacity_(capacity), links_(std::size_t{capacity} + kLists, Link{0, kNoList, 0}) {
    for (std::uint32_t list = 0; list < kLists; ++list)
      links_[capacity + list] = {capacity + list, list, capacity + list};
  }

  std::string_view name() const override { return "lru"; }

  // A candidate that is inserted again takes the new facts and counts as just used.
  void on_insert(const BlockFacts& facts, Instant) override {
    const std::uint32_t id = index(facts.id);
    if (id >= capacity_) return;
    if (is_candidate(id)) {
      unlink(id);
    } else {
      ++count_;
    }
    set_bytes(id, facts.bytes);
    append(id, facts.live ? kLive : kDead);
  }

  void on_access(BlockId block, Access access, Instant) override {
    const std::uint32_t id = index(block);
    if (!is_candidate(id) || access == Access::kCopied || access == Access::kCopyLost) return;
    unlink(id);
    append(id, links_[id].list);
  }

  void on_remove(BlockId block) override {
    const std::uint32_t id = index(block);
    if (!is_candidate(id)) return;
    unlink(id);
    links_[id].list = kNoList;
    --count_;
  }

  std::size_t victims(Need need, const Filter& filter, std::span<BlockId> out) override {
    std::size_t found = 0, looked = 0;
    std::uint64_t freed = 0;
    for (std::uint32_t list = 0; list < kLists; ++list) {
      const std::uint32_t sentinel = capacity_ + list;
      for (std::uint32_t id = links_[sentinel].next; id != sentinel; id = links_[id].next) {
        if (found == out.size() || (found >= need.count && freed >= need.bytes) || looked++ == need.look) return found;
        if (filter && !filter(BlockId{id})) continue;
        out[found++] = BlockId{id};
        freed += bytes_.empty() ? common_bytes_ : bytes_[id];
      }
    }
    return found;
  }

  std::size_t candidates() const override { return count_; }
  std::unique_ptr<EvictionPolicy> clone() const override { return std::make_unique<LruPolicy>(*this); }

 private:
  struct Link {
    std::uint32_t previous : 30;
    std::uint32_t list : 2;
    std::uint32_t next;
  };
  static_assert(sizeof(Link) == 8, "what policy_bytes() says of lru");

  bool is_candidate(std::uint32_t id) const { return id < capacity_ && links_[id].list != kNoList; }

  // Frames are far below 4 GiB. A larger claim is cut, so that no victim frees less than was counted for it.
  void set_bytes(std::uint32_t id, std::uint64_t claim) {
    constexpr std::uint32_t kMost = std::numeric_limits<std::uint32_t>::max();
    const std::uint32_t bytes = claim < kMost ? static_cast<std::uint32_t>(claim) : kMost;
    if (bytes_.empty()) {
      if (count_ == 1) common_bytes_ = bytes;
      if (bytes == common_bytes_) return;
      try {
        bytes_.assign(capacity_, common_bytes_);
      } catch (const std::bad_alloc&) {  // a victim may free more than is counted for it, never less
        common_bytes_ = std::min(common_bytes_, bytes);
        return;
      }
    }
    bytes_[id] = bytes;
  }

  void append(std::uint32_t id, std::uint32_t list) {
    Link& sentinel = links_[capacity_ + list];
    const std::uint32_t last = sentinel.previous;
    links_[id] = {last, list, capacity_ + list};
    links_[last].next = id;
    sentinel.previous = id;
  }

  void unlink(std::uint32_t id) {
    const Link& link = links_[id];
    links_[link.previous].next = link.next;
    links_[link.next].previous = link.previous;
  }

  std::uint32_t capacity_ = 0;
  std::size_t count_ = 0;
  std::vector<Link> links_;           // ids, then one sentinel per list
  std::uint32_t common_bytes_ = 0;    // what evicting any of them frees...
  std::vector<std::uint32_t> bytes_;  // ...unless this says it of each
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lru_policy(std::uint32_t capacity) {
  if (capacity > kMaxPolicyIds) return nullptr;
  return std::make_unique<LruPolicy>(capacity);
}

}  // namespace firn
