// LRU, against a model that keeps its two lists as vectors and searches them.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "firn/policy.h"

namespace firn {
namespace {

constexpr Instant kNow{0};

BlockFacts dead(std::uint32_t id, bool has_copy = false, std::uint64_t bytes = 16) {
  BlockFacts facts;
  facts.id = BlockId{id};
  facts.bytes = bytes;
  facts.has_copy = has_copy;
  return facts;
}

BlockFacts live(std::uint32_t id, std::uint64_t bytes = 16) {
  BlockFacts facts = dead(id, true, bytes);
  facts.live = true;
  return facts;
}

// What victims() says, as plain numbers.
std::vector<std::uint32_t> victims(EvictionPolicy& policy, Need need, const Filter& filter = {},
                                   std::size_t room = 1000) {
  std::vector<BlockId> out(room, BlockId::kNone);
  const std::size_t count = policy.victims(need, filter, out);
  EXPECT_LE(count, room);
  for (std::size_t i = count; i < room; ++i) EXPECT_EQ(out[i], BlockId::kNone) << "wrote behind what it returned";
  std::vector<std::uint32_t> ids;
  for (std::size_t i = 0; i < count; ++i) ids.push_back(index(out[i]));
  return ids;
}

std::vector<std::uint32_t> order(EvictionPolicy& policy) { return victims(policy, {.count = 1000, .bytes = 0}); }

using Ids = std::vector<std::uint32_t>;

TEST(Lru, AFreedSequenceGoesTailFirstSoThatItsPrefixOutlivesIt) {
  const auto policy = make_lru_policy(16);
  for (const std::uint32_t id : {4u, 3u, 2u, 1u}) policy->on_insert(dead(id), kNow);  // a sequence 1 2 3 4, freed
  for (const std::uint32_t id : {6u, 5u}) policy->on_insert(dead(id), kNow);          // then a sequence 5 6
  EXPECT_EQ(order(*policy), (Ids{4, 3, 2, 1, 6, 5}));
  EXPECT_EQ(victims(*policy, {.count = 2, .bytes = 0}), (Ids{4, 3}));
  EXPECT_EQ(policy->candidates(), 6u) << "victims stay candidates until they are removed";
}

TEST(Lru, WhatNobodyReadsGoesFirstWhetherItHasACopyOrNot) {
  const auto policy = make_lru_policy(16);
  policy->on_insert(dead(1, false), kNow);
  policy->on_insert(live(2), kNow);
  policy->on_insert(dead(3, true), kNow);
  policy->on_insert(dead(4, false), kNow);
  policy->on_insert(live(5), kNow);
  policy->on_insert(dead(6, true), kNow);
  EXPECT_EQ(order(*policy), (Ids{1, 3, 4, 6, 2, 5}));
}

TEST(Lru, AHitOrAReadMovesToTheTailOfItsOwnList) {
  const auto policy = make_lru_policy(16);
  for (const std::uint32_t id : {1u, 2u, 3u}) policy->on_insert(dead(id), kNow);
  for (const std::uint32_t id : {4u, 5u}) policy->on_insert(live(id), kNow);
  policy->on_access(BlockId{1}, Access::kHit, kNow);
  policy->on_access(BlockId{4}, Access::kRead, kNow);
  EXPECT_EQ(order(*policy), (Ids{2, 3, 1, 5, 4}));
}

TEST(Lru, ACopyThatAppearsOrIsLostIsNoUse) {
  const auto policy = make_lru_policy(16);
  for (const std::uint32_t id : {1u, 2u, 3u}) policy->on_insert(dead(id, id == 2), kNow);
  policy->on_access(BlockId{1}, Access::kCopied, kNow);
  policy->on_access(BlockId{2}, Access::kCopyLost, kNow);
  EXPECT_EQ(order(*policy), (Ids{1, 2, 3}));
}

TEST(Lru, ABlockThatDiesWhileItIsACandidateChangesItsList) {
  const auto policy = make_lru_policy(16);
  policy->on_insert(live(1), kNow);
  policy->on_insert(live(2), kNow);
  policy->on_insert(dead(1, true), kNow);
  EXPECT_EQ(order(*policy), (Ids{1, 2}));
  EXPECT_EQ(policy->candidates(), 2u);
  policy->on_remove(BlockId{1});
  EXPECT_EQ(order(*policy), (Ids{2}));
}

TEST(Lru, OthersAreIgnored) {
  const auto policy = make_lru_policy(4);
  policy->on_insert(dead(1), kNow);
  for (const Access access : {Access::kHit, Access::kRead, Access::kCopied, Access::kCopyLost}) {
    policy->on_access(BlockId{2}, access, kNow);
    policy->on_access(BlockId{4}, access, kNow);  // beyond the capacity
    policy->on_access(BlockId::kNone, access, kNow);
  }
  for (const BlockId id : {BlockId{2}, BlockId{4}, BlockId::kNone}) policy->on_remove(id);
  EXPECT_EQ(order(*policy), (Ids{1}));
  policy->on_remove(BlockId{1});
  policy->on_remove(BlockId{1});
  EXPECT_EQ(policy->candidates(), 0u);
  EXPECT_TRUE(order(*policy).empty());
}

TEST(Lru, TheFilterIsHonoured) {
  const auto policy = make_lru_policy(16);
  for (std::uint32_t id = 1; id < 9; ++id) policy->on_insert(dead(id, id % 3 == 0), kNow);
  const Filter even = [](BlockId id) { return index(id) % 2 == 0; };
  EXPECT_EQ(victims(*policy, {.count = 3, .bytes = 0}, even), (Ids{2, 4, 6}));
  EXPECT_TRUE(victims(*policy, {.count = 3, .bytes = 0}, [](BlockId) { return false; }).empty());
}

TEST(Lru, ANeedIsACountOrBytesWhicheverIsMore) {
  const auto policy = make_lru_policy(16);
  const std::uint64_t huge = std::uint64_t{1} << 40;
  policy->on_insert(dead(1, true, 100), kNow);
  policy->on_insert(dead(2, true, 50), kNow);
  policy->on_insert(dead(3, true, 200), kNow);
  policy->on_insert(dead(4, true, huge), kNow);
  policy->on_insert(dead(5, true, 1), kNow);
  EXPECT_EQ(victims(*policy, {.count = 1, .bytes = 100}), (Ids{1}));
  EXPECT_EQ(victims(*policy, {.count = 1, .bytes = 101}), (Ids{1, 2}));
  EXPECT_EQ(victims(*policy, {.count = 0, .bytes = 151}), (Ids{1, 2, 3}));
  EXPECT_EQ(victims(*policy, {.count = 3, .bytes = 1}), (Ids{1, 2, 3}));
  EXPECT_EQ(victims(*policy, {.count = 0, .bytes = 351}), (Ids{1, 2, 3, 4}));
  EXPECT_EQ(victims(*policy, {.count = 0, .bytes = huge * 2}).size(), 5u) << "all there are";
  EXPECT_EQ(victims(*policy, {.count = 5, .bytes = 0}, {}, 2), (Ids{1, 2})) << "no more than there is room for";
  EXPECT_TRUE(victims(*policy, {.count = 0, .bytes = 0}).empty());
}

TEST(Lru, NoCapacityIsAnEmptyPolicy) {
  const auto policy = make_lru_policy(0);
  policy->on_remove(BlockId{0});
  EXPECT_TRUE(order(*policy).empty());
  EXPECT_EQ(policy->candidates(), 0u);
}

TEST(MakePolicy, KnowsItsNamesAndListsThemToWhoDoesNot) {
  for (const std::string_view name : policy_names()) {
    const auto policy = make_policy(name, 8);
    ASSERT_TRUE(policy.ok()) << policy.status().message();
    EXPECT_EQ((*policy)->name(), name);
  }
  const auto policy = make_policy("clock", 8);
  ASSERT_FALSE(policy.ok());
  EXPECT_EQ(policy.status().code(), Code::kInvalidArgument);
  EXPECT_NE(policy.status().message().find("clock"), std::string::npos);
  EXPECT_NE(policy.status().message().find("lru"), std::string::npos);
}

// The same promises in the plainest words: two vectors, searched from the front.
class NaiveLru {
 public:
  void insert(const BlockFacts& facts) {
    remove(index(facts.id));
    facts_[index(facts.id)] = facts;
    list(facts).push_back(index(facts.id));
  }
  void access(std::uint32_t id, Access access) {
    const auto found = facts_.find(id);
    if (found == facts_.end()) return;
    if (access == Access::kHit || access == Access::kRead) insert(BlockFacts(found->second));
  }
  void remove(std::uint32_t id) {
    for (auto& ids : lists_) ids.erase(std::remove(ids.begin(), ids.end(), id), ids.end());
    facts_.erase(id);
  }
  std::vector<std::uint32_t> victims(Need need, const Filter& filter, std::size_t room) const {
    std::vector<std::uint32_t> out;
    std::uint64_t freed = 0;
    for (const auto& ids : lists_) {
      for (const std::uint32_t id : ids) {
        if (out.size() >= room || (out.size() >= need.count && freed >= need.bytes)) return out;
        if (filter && !filter(BlockId{id})) continue;
        out.push_back(id);
        freed += facts_.at(id).bytes;
      }
    }
    return out;
  }
  std::size_t size() const { return facts_.size(); }

 private:
  std::vector<std::uint32_t>& list(const BlockFacts& facts) { return lists_[facts.live ? 1 : 0]; }
  std::array<std::vector<std::uint32_t>, 2> lists_;
  std::map<std::uint32_t, BlockFacts> facts_;
};

class LruRandom : public testing::TestWithParam<int> {};

TEST_P(LruRandom, AgreesWithTheNaiveModelAfterEveryOperation) {
  const int seed = GetParam();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(static_cast<std::mt19937::result_type>(seed));
  const auto pick = [&](std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); };
  const std::uint32_t capacity = 1 + pick(64);
  const auto policy = make_lru_policy(capacity);
  NaiveLru naive;
  for (int step = 0; step < 4000; ++step) {
    const std::uint32_t id = pick(capacity);
    switch (pick(4)) {
      case 0: {
        BlockFacts facts = dead(id, pick(2) == 0, pick(1000));
        facts.live = pick(2) == 0;
        policy->on_insert(facts, Instant{step});
        naive.insert(facts);
        break;
      }
      case 1:
      case 2: {
        const auto access = static_cast<Access>(pick(4));
        policy->on_access(BlockId{id}, access, Instant{step});
        naive.access(id, access);
        break;
      }
      default:
        policy->on_remove(BlockId{id});
        naive.remove(id);
    }
    const std::uint32_t modulus = 1 + pick(4);
    const Filter filter = [&](BlockId block) { return index(block) % modulus == 0; };
    const Need need{.count = pick(8), .bytes = pick(4000)};
    const std::size_t room = pick(80);
    ASSERT_EQ(victims(*policy, need, filter, room), naive.victims(need, filter, room)) << "step " << step;
    ASSERT_EQ(order(*policy), naive.victims({.count = 1000, .bytes = 0}, {}, 1000)) << "step " << step;
    ASSERT_EQ(policy->candidates(), naive.size()) << "step " << step;
  }
}
INSTANTIATE_TEST_SUITE_P(Seeds, LruRandom, testing::Range(1, 11));

}  // namespace
}  // namespace firn
