// ranked_policy.cpp: an EvictionPolicy out of a rule. Candidates are in one of three rankings by what their eviction
// would lose (see lru.cpp); a ranking is made when its first candidate comes. A block that was a candidate, was held
// and comes back under the same key is told to the rule as used, not as new: otherwise a library that takes blocks out
// of the policy while they are held would never show it a second use.
#include <array>
#include <limits>

#include "core/base/check.h"
#include "policy/ranking.h"

namespace firn {
namespace {

class RankedPolicy final : public EvictionPolicy {
 public:
  RankedPolicy(std::string_view name, std::uint32_t capacity, RankingMaker maker)
      : name_(name),
        capacity_(capacity),
        maker_(std::move(maker)),
        flags_(capacity),
        bytes_(capacity),
        facts_(capacity) {}

  std::string_view name() const override { return name_; }
  std::size_t candidates() const override { return count_; }

  void on_insert(const BlockFacts& facts, Instant now) override {
    const std::uint32_t id = index(facts.id);
    FIRN_CHECK(id < capacity_);
    Kept& kept = facts_[id];
    bool returning = facts.key_hash != 0 && kept.key_hash == facts.key_hash && !(flags_[id] & kEvicted);
    if (flags_[id] & kCandidate) {
      ranking(id).remove(id, /*evicted=*/false);
      returning = true;
    } else {
      ++count_;
    }
    constexpr std::uint32_t kMost = std::numeric_limits<std::uint32_t>::max();
    bytes_[id] = facts.bytes < kMost ? static_cast<std::uint32_t>(facts.bytes) : kMost;
    kept = {facts.key_hash, facts.parent, facts.position, facts.recompute_cost, facts.name_space, facts.priority};
    flags_[id] = static_cast<std::uint8_t>(kCandidate | (facts.live ? kLive : 0) | (facts.has_copy ? kCopy : 0));
    ranking(id).insert(id, facts, returning, now);
  }

  void on_access(BlockId block, Access access, Instant now) override {
    const std::uint32_t id = index(block);
    if (!is_candidate(id)) return;
    flags_[id] &= static_cast<std::uint8_t>(~kNominated);
    if (access == Access::kHit || access == Access::kRead) return ranking(id).touch(id, now);
    const bool copy = access == Access::kCopied;
    if (copy == ((flags_[id] & kCopy) != 0)) return;  // known: the order stays
    ranking(id).remove(id, /*evicted=*/false);
    flags_[id] ^= kCopy;
    ranking(id).insert(id, facts_of(id), /*returning=*/true, now);
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
    if (rankings_[kLastCopy]) rankings_[kLastCopy]->coming(key_hash);
  }
  bool wants_misses() const override { return rankings_[kLastCopy] && rankings_[kLastCopy]->wants_coming(); }

  std::size_t victims(Need need, const Filter& filter, std::span<BlockId> out) override {
    Picker picker(need, filter, out, bytes_);
    for (const std::unique_ptr<Ranking>& ranking : rankings_)
      if (ranking && picker.wants_more()) ranking->pick(picker);
    for (std::size_t i = 0; i < picker.found(); ++i) flags_[index(out[i])] |= kNominated;
    return picker.found();
  }

 private:
  enum Flag : std::uint8_t { kCandidate = 1, kLive = 2, kCopy = 4, kNominated = 8, kEvicted = 16 };
  struct Kept {  // of a candidate's facts, what a change of ranking has to tell again
    std::uint64_t key_hash = 0;
    BlockId parent = BlockId::kNone;
    std::uint32_t position = 0;
    float recompute_cost = 0;
    std::uint32_t name_space = 0;
    std::uint8_t priority = 0;
  };

  static constexpr std::size_t kLastCopy = 2;  // a new block has no copy, so this is where memories are

  bool is_candidate(std::uint32_t id) const { return id < capacity_ && (flags_[id] & kCandidate) != 0; }
  BlockFacts facts_of(std::uint32_t id) const {
    const Kept& kept = facts_[id];
    return {.id = BlockId{id},
            .parent = kept.parent,
            .name_space = kept.name_space,
            .position = kept.position,
            .bytes = bytes_[id],
            .recompute_cost = kept.recompute_cost,
            .priority = kept.priority,
            .live = (flags_[id] & kLive) != 0,
            .has_copy = (flags_[id] & kCopy) != 0,
            .key_hash = kept.key_hash};
  }
  Ranking& ranking(std::uint32_t id) {
    const std::size_t loss = !(flags_[id] & kCopy) ? kLastCopy : flags_[id] & kLive ? 1 : 0;
    if (!rankings_[loss]) rankings_[loss] = maker_(capacity_);
    return *rankings_[loss];
  }

  std::string name_;
  std::uint32_t capacity_ = 0;
  RankingMaker maker_;
  std::size_t count_ = 0;
  std::array<std::unique_ptr<Ranking>, 3> rankings_;
  std::vector<std::uint8_t> flags_;
  std::vector<std::uint32_t> bytes_;
  std::vector<Kept> facts_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_ranked_policy(std::string_view name, std::uint32_t capacity, RankingMaker maker) {
  return std::make_unique<RankedPolicy>(name, capacity, std::move(maker));
}

}  // namespace firn
