// What every eviction rule owes its caller, whatever its order.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "firn/policy.h"

namespace firn {
namespace {

class EveryPolicy : public testing::TestWithParam<std::string_view> {
 protected:
  std::unique_ptr<EvictionPolicy> make(std::uint32_t capacity) { return make_policy(GetParam(), capacity).value(); }
  static std::vector<BlockId> victims(EvictionPolicy& policy, Need need, const Filter& filter = {}) {
    std::vector<BlockId> out(64);
    out.resize(policy.victims(need, filter, out));
    return out;
  }
  static BlockFacts facts(std::uint32_t id, std::uint64_t bytes = 10, bool copy = false, bool live = false) {
    return {.id = BlockId{id}, .position = id * 16, .bytes = bytes, .live = live, .has_copy = copy, .key_hash = id + 1};
  }
};

TEST_P(EveryPolicy, NamesOnlyCandidatesAndEachOnce) {
  std::mt19937 random(5);
  for (int round = 0; round < 20; ++round) {
    const auto policy = make(40);
    std::set<std::uint32_t> inside;
    for (int step = 0; step < 2000; ++step) {
      const std::uint32_t id = random() % 40;
      const Instant now{step * 1'000'000'000ll};
      switch (random() % 5) {
        case 0:
          policy->on_miss(id + 1, now);
          policy->on_insert(facts(id, 10, random() % 3 == 0, random() % 2 == 0), now);
          inside.insert(id);
          break;
        case 1:
          policy->on_access(BlockId{id}, static_cast<Access>(random() % 4), now);
          break;
        case 2:
          policy->on_remove(BlockId{id});
          inside.erase(id);
          break;
        default: {
          const std::size_t count = 1 + random() % 4;
          const auto odd = [](BlockId block) { return index(block) % 2 == 1; };
          const bool filtered = random() % 2 == 0;
          const std::vector<BlockId> out = victims(*policy, {.count = count}, filtered ? Filter(odd) : Filter());
          std::set<std::uint32_t> seen;
          for (const BlockId block : out) {
            ASSERT_TRUE(inside.count(index(block))) << "not a candidate";
            ASSERT_TRUE(seen.insert(index(block)).second) << "twice";
            ASSERT_TRUE(!filtered || odd(block)) << "vetoed";
          }
          const std::size_t may_go = static_cast<std::size_t>(
              std::count_if(inside.begin(), inside.end(), [&](std::uint32_t i) { return !filtered || i % 2 == 1; }));
          ASSERT_EQ(out.empty(), may_go == 0) << "if somebody may go, somebody goes";
          for (const BlockId block : out) {
            policy->on_remove(block);
            inside.erase(index(block));
          }
        }
      }
      ASSERT_EQ(policy->candidates(), inside.size());
    }
  }
}

TEST_P(EveryPolicy, TakesWhatNobodyReadsBeforeWhatIsRead) {
  const auto policy = make(8);
  policy->on_insert(facts(1, 10, true, true), {});
  policy->on_insert(facts(0), {});
  EXPECT_EQ(victims(*policy, {.count = 2}), (std::vector<BlockId>{BlockId{0}, BlockId{1}}));
}

TEST_P(EveryPolicy, ACopyBelowChangesNoOrder) {
  std::vector<BlockId> orders[2];
  for (const bool copies : {false, true}) {
    const auto policy = make(8);
    for (std::uint32_t id = 0; id < 8; ++id) policy->on_insert(facts(id, 10, copies && id % 2 == 0), {id * 1'000'000});
    if (copies) policy->on_access(BlockId{5}, Access::kCopied, {9'000'000});
    if (copies) policy->on_access(BlockId{2}, Access::kCopyLost, {9'000'000});
    orders[copies] = victims(*policy, {.count = 8});
  }
  EXPECT_EQ(orders[0], orders[1]);
}

TEST_P(EveryPolicy, LooksAtNoMoreThanItIsToldTo) {
  const auto policy = make(64);
  for (std::uint32_t id = 0; id < 64; ++id) policy->on_insert(facts(id), {id * 1'000'000});
  for (const std::size_t look : {0u, 1u, 10u}) {
    std::size_t asked = 0;
    const Filter none = [&](BlockId) { return ++asked == 0; };
    EXPECT_TRUE(victims(*policy, {.count = 1, .look = look}, none).empty());
    EXPECT_LE(asked, look);
  }
}

TEST_P(EveryPolicy, IsDeterministic) {
  std::vector<std::uint32_t> order[2];
  for (auto& out : order) {
    const auto policy = make(30);
    std::mt19937 random(9);
    for (int step = 0; step < 3000; ++step) {
      const std::uint32_t id = random() % 30;
      policy->on_insert(facts(id), {step * 1000});
      if (step % 3 == 0)
        for (const BlockId block : victims(*policy, {.count = 1})) {
          out.push_back(index(block));
          policy->on_remove(block);
        }
    }
  }
  EXPECT_EQ(order[0], order[1]);
}

INSTANTIATE_TEST_SUITE_P(Rules, EveryPolicy, testing::ValuesIn(policy_names().begin(), policy_names().end()),
                         [](const auto& param) { return std::string(param.param); });

std::vector<std::uint32_t> order_of(EvictionPolicy& policy, std::size_t count) {
  std::vector<std::uint32_t> order;
  for (BlockId id; order.size() < count && policy.victims({}, {}, {&id, 1}) == 1;) {
    policy.on_remove(id);
    order.push_back(index(id));
  }
  return order;
}

TEST(SuffixFirst, NeverLeavesAHole) {
  // 0 - 1 - 2 and 1 - 3: the branches go before the trunk, the older one first, although the trunk is older still.
  const auto policy = make_policy("suffix_first", 8).value();
  policy->on_insert({.id = BlockId{0}, .position = 0, .bytes = 1, .key_hash = 1}, {1});
  policy->on_insert({.id = BlockId{1}, .parent = BlockId{0}, .position = 16, .bytes = 1, .key_hash = 2}, {1});
  policy->on_insert({.id = BlockId{2}, .parent = BlockId{1}, .position = 32, .bytes = 1, .key_hash = 3}, {3});
  policy->on_insert({.id = BlockId{3}, .parent = BlockId{1}, .position = 32, .bytes = 1, .key_hash = 4}, {2});
  EXPECT_EQ(order_of(*policy, 4), (std::vector<std::uint32_t>{3, 2, 1, 0}));
}

TEST(CostAware, KeepsWhatCostsMostAByteAndIsUsedMost) {
  const auto policy = make_policy("cost_aware", 8).value();
  policy->on_insert({.id = BlockId{0}, .bytes = 10, .recompute_cost = 10, .key_hash = 1}, {});
  policy->on_insert({.id = BlockId{1}, .bytes = 10, .recompute_cost = 40, .key_hash = 2}, {});
  policy->on_insert({.id = BlockId{2}, .bytes = 40, .recompute_cost = 10, .key_hash = 3}, {});
  policy->on_insert({.id = BlockId{3}, .bytes = 10, .recompute_cost = 10, .key_hash = 4}, {});
  policy->on_access(BlockId{3}, Access::kHit, {});
  EXPECT_EQ(order_of(*policy, 4), (std::vector<std::uint32_t>{2, 0, 3, 1}));
}

TEST(CostAware, ForgetsWhatWasWorthMuchOnce) {
  const auto policy = make_policy("cost_aware", 8).value();
  policy->on_insert({.id = BlockId{0}, .bytes = 1, .recompute_cost = 1, .key_hash = 1}, {});
  for (int i = 0; i < 4; ++i) policy->on_access(BlockId{0}, Access::kHit, {});
  // A stream of blocks used once raises the age by one each; the fifth is as good as five old uses.
  for (std::uint32_t i = 1; i < 8; ++i) {
    policy->on_insert({.id = BlockId{i}, .bytes = 1, .recompute_cost = 1, .key_hash = i + 1}, {});
    const std::vector<std::uint32_t> gone = order_of(*policy, 1);
    if (gone[0] == 0) return;
    ASSERT_EQ(gone[0], i);
  }
  FAIL() << "it stays for ever";
}

TEST(Priority, GoesByTheEnginesMarkAndByLastUseWithinOne) {
  const auto policy = make_policy("priority", 8).value();
  policy->on_insert({.id = BlockId{0}, .bytes = 1, .priority = 80, .key_hash = 1}, {});
  policy->on_insert({.id = BlockId{1}, .bytes = 1, .priority = 35, .key_hash = 2}, {});
  policy->on_insert({.id = BlockId{2}, .bytes = 1, .priority = 35, .key_hash = 3}, {});
  policy->on_insert({.id = BlockId{3}, .bytes = 1, .priority = 0, .key_hash = 4}, {});
  policy->on_access(BlockId{1}, Access::kHit, {});
  EXPECT_EQ(order_of(*policy, 4), (std::vector<std::uint32_t>{3, 2, 1, 0}));
}

}  // namespace
}  // namespace firn
