// ranked_policy.cpp: an EvictionPolicy out of a rule. Candidates are in one of two rankings, dead ones and those of
// live sequences (see lru.cpp); both rankings are made with the policy. A block that was a candidate, was
// held and comes back under the same key is told to the rule as used, not as new: otherwise a library that takes blocks
// out of the policy while they are held would never show it a second use.
#include <array>
#include <limits>

#include "core/base/check.h"
#include "policy/ranking.h"

namespace firn {
namespace {

class RankedPolicy final : public EvictionPolicy {
 public:
  RankedPolicy(std::string_view name, std::uint32_t capacity, const RankingMaker& maker)
      : name_(name), capacity_(capacity), flags_(capacity), bytes_(capacity), names_(capacity) {
    for (std::unique_ptr<Ranking>& ranking : rankings_) ranking = maker(capacity);  // not when memory may be short
  }
  RankedPolicy(const RankedPolicy& other)
      : name_(other.name_),
        capacity_(other.capacity_),
        count_(other.count_),
        any_dead_(other.any_dead_),
        flags_(other.flags_),
        bytes_(other.bytes_),
        names_(other.names_) {
    for (std::size_t i = 0; i < rankings_.size(); ++i) rankings_[i] = other.rankings_[i]->clone();
  }

  std::string_view name() const override { return name_; }
  std::size_t candidates() const override { return count_; }
  std::unique_ptr<EvictionPolicy> clone() const override { return std::make_unique<RankedPolicy>(*this); }

  void on_insert(const BlockFacts& facts, Instant now) override {
    const std::uint32_t id = index(facts.id);
    if (id >= capacity_) return;
    bool returning = facts.key_hash != 0 && names_[id] == facts.key_hash && !(flags_[id] & kEvicted);
    if (flags_[id] & kCandidate) {
      ranking(id).remove(id, /*evicted=*/false);
      returning = true;
    } else {
      ++count_;
    }
    constexpr std::uint32_t kMost = std::numeric_limits<std::uint32_t>::max();
    bytes_[id] = facts.bytes < kMost ? static_cast<std::uint32_t>(facts.bytes) : kMost;
    names_[id] = facts.key_hash;
    flags_[id] = static_cast<std::uint8_t>(kCandidate | (facts.live ? kLive : 0));
    any_dead_ = any_dead_ || !facts.live;
    ranking(id).insert(id, facts, returning, now);
  }

  void on_access(BlockId block, Access access, Instant now) override {
    const std::uint32_t id = index(block);
    if (!is_candidate(id)) return;
    flags_[id] &= static_cast<std::uint8_t>(~kNominated);
    if (access == Access::kHit || access == Access::kRead) ranking(id).touch(id, now);
  }

  void on_remove(BlockId block) override {
    const std::uint32_t id = index(block);
    if (!is_candidate(id)) return;
    const bool evicted = (flags_[id] & kNominated) != 0;
    ranking(id).remove(id, evicted);
    flags_[id] = evicted ? kEvicted : 0;
    --count_;
  }

  void on_miss(std::uint64_t key_hash, Instant) override {
    if (any_dead_) rankings_[kDead]->coming(key_hash);
  }
  bool wants_misses() const override { return any_dead_ && rankings_[kDead]->wants_coming(); }

  std::size_t victims(Need need, const Filter& filter, std::span<BlockId> out) override {
    Picker picker(need, filter, out, bytes_);
    for (const std::unique_ptr<Ranking>& ranking : rankings_)
      if (picker.wants_more()) ranking->pick(picker);
    for (std::size_t i = 0; i < picker.found(); ++i) flags_[index(out[i])] |= kNominated;
    return picker.found();
  }

 private:
  enum Flag : std::uint8_t { kCandidate = 1, kLive = 2, kNominated = 4, kEvicted = 8 };
  static constexpr std::size_t kDead = 0;  // most blocks come here, so this is where memories are

  bool is_candidate(std::uint32_t id) const { return id < capacity_ && (flags_[id] & kCandidate) != 0; }
  Ranking& ranking(std::uint32_t id) { return *rankings_[flags_[id] & kLive ? 1 : kDead]; }

  std::string name_;
  std::uint32_t capacity_ = 0;
  std::size_t count_ = 0;
  std::array<std::unique_ptr<Ranking>, 2> rankings_;
  bool any_dead_ = false;  // there has been a dead candidate: before that nothing is remembered
  std::vector<std::uint8_t> flags_;
  std::vector<std::uint32_t> bytes_;
  std::vector<std::uint64_t> names_;  // of each id's last candidate
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_ranked_policy(std::string_view name, std::uint32_t capacity, RankingMaker maker) {
  return std::make_unique<RankedPolicy>(name, capacity, maker);
}

}  // namespace firn
