// What a policy says it takes, it does not exceed: the manager charges that much and no more. Every allocation of this
// program is counted.
#include <gtest/gtest.h>
#include <malloc.h>

#include <cstdlib>
#include <new>
#include <random>
#include <string>

#include "firn/policy.h"

namespace {
std::size_t held = 0, peak = 0;
void count(void* p) {
  held += malloc_usable_size(p);
  peak = held > peak ? held : peak;
}
}  // namespace

void* operator new(std::size_t bytes) {
  void* const p = std::malloc(bytes);
  if (!p) throw std::bad_alloc();
  count(p);
  return p;
}
void operator delete(void* p) noexcept {
  held -= malloc_usable_size(p);
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept { operator delete(p); }

namespace firn {
namespace {

class PolicyBytes : public testing::TestWithParam<std::string_view> {};

// Full of candidates of two kinds, with uses, evictions and returns, until every memory of the rule is full too.
std::size_t measured(std::string_view name, std::uint32_t capacity, bool one_size) {
  std::mt19937 random(7);
  const std::size_t before = peak = held;
  const auto policy = make_policy(name, capacity).value();
  std::uint64_t newest = 0;
  for (std::uint32_t i = 0; i < 12 * capacity; ++i) {
    const Instant now{i * 1'000'000ll};
    BlockId id{static_cast<std::uint32_t>(policy->candidates())};
    if (policy->candidates() == capacity) {
      EXPECT_EQ(policy->victims({}, {}, {&id, 1}), 1u);
      policy->on_remove(id);
    }
    const std::uint64_t name_of_block =
        random() % 3 == 0 && newest > capacity ? newest - random() % capacity : ++newest;
    policy->on_miss(name_of_block, now);
    policy->on_insert({.id = id,
                       .parent = index(id) == 0 ? BlockId::kNone : BlockId{index(id) - 1},
                       .position = index(id) % 100 * kBlockTokens,
                       .bytes = one_size ? 100 : 100 + index(id) % 7,
                       .recompute_cost = 1,
                       .live = random() % 4 == 0,
                       .key_hash = name_of_block},
                      now);
    if (random() % 3 == 0)
      policy->on_access(BlockId{static_cast<std::uint32_t>(random() % capacity)}, Access::kHit, now);
  }
  return peak - before;
}

TEST_P(PolicyBytes, AreAsManyAsItSays) {
  for (const std::uint32_t capacity : {1u, 64u, 3000u})
    for (const bool one_size : {true, false}) {
      SCOPED_TRACE(testing::Message() << capacity << " ids" << (one_size ? " of one size" : ""));
      const std::uint64_t said = policy_bytes(GetParam(), capacity, one_size);
      const std::size_t took = measured(GetParam(), capacity, one_size);
      EXPECT_LE(took, said);
      // The claim is a bound, not a guess far above; session's memory of the past is much larger than this many ids.
      if (capacity == 3000 && GetParam() != "session") {
        EXPECT_GE(took, said / 4 * 3);
      }
    }
}
INSTANTIATE_TEST_SUITE_P(Rules, PolicyBytes, testing::ValuesIn(policy_names().begin(), policy_names().end()),
                         [](const auto& param) { return std::string(param.param); });

TEST(PolicyBytes, OfNoPolicyAreNone) { EXPECT_EQ(policy_bytes("clock", 8, true), 0u); }

}  // namespace
}  // namespace firn
