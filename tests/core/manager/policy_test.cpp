// The policies inside the manager are the simulator's: on a stream of prompts of one block each, where nothing is held
// while somebody needs room, a manager and the bookkeeping of the same rule hit and miss alike, block by block.
#include <gtest/gtest.h>

#include <random>

#include "sim/bookkeeping.h"
#include "tests/core/manager/fixture.h"

namespace firn::test {
namespace {

constexpr std::uint32_t kBlocks = 24;  // beside the null slot and the one of the prompt's last token

Tokens prompt_of(std::uint32_t name) { return distinct(kBlockTokens + 1, static_cast<TokenId>(name * 100)); }

// Popular names, and scans of names that come once.
std::vector<std::uint32_t> names() {
  std::mt19937 random(3);
  std::vector<std::uint32_t> made;
  std::uint32_t fresh = 1000;
  for (int i = 0; i < 4000; ++i) {
    const std::uint32_t draw = random();
    made.push_back(i % 400 < 60 ? fresh++ : 1 + draw % (1 + (draw >> 8) % 60));
  }
  return made;
}

class PolicyInside : public testing::TestWithParam<const char*> {};

TEST_P(PolicyInside, HitsWhatItHitsInTheSimulator) {
  Config config = bookkeeping(kBlocks + 2);
  config.eviction = GetParam();
  std::int64_t now = 0;
  const auto manager = make_manager(config, small_model(),
                                    {.threads = nullptr, .device = nullptr, .clock = [&now] { return Instant{now}; }});
  ASSERT_NE(manager, nullptr);
  sim::BlockTier tier(kBlocks, make_policy(GetParam(), kBlocks + 2).value());
  std::uint64_t hits = 0, evictions = 0;
  for (const std::uint32_t name : names()) {
    const Tokens tokens = prompt_of(name);
    now += 1'000'000'000;
    const std::uint64_t before = manager->stats().prefix_cache_hits;
    ASSERT_OK(manager->free(prompt(*manager, tokens)));
    const bool hit = manager->stats().prefix_cache_hits != before;
    const std::uint64_t key = policy_name(manager->compute_keys(tokens)[0]);
    const BlockId here = tier.find(key);
    ASSERT_EQ(hit, here != BlockId::kNone) << "prompt " << now;
    hits += hit;
    BlockId id;
    BlockFacts pushed;
    if (hit) {
      tier.touch(here, {now});
    } else {
      evictions += tier.insert({.bytes = 1, .key_hash = key}, {now}, id, pushed);
    }
  }
  EXPECT_GT(hits, 500u);
  EXPECT_EQ(manager->stats().evictions, evictions);
  EXPECT_EQ(broken(*manager), "");
}

// A library takes a block out of its policy while it is held, so queues that a use does not move (fifo, sieve, s3fifo)
// see it come again at their young end; these rules order by use and are exact.
INSTANTIATE_TEST_SUITE_P(Rules, PolicyInside, testing::Values("lru", "lru_tail_first", "lfu", "slru", "arc", "session"),
                         [](const auto& rule) { return std::string(rule.param); });

TEST(PolicyInside, AnEvictedBlockThatReturnsIsRemembered) {
  Config config = bookkeeping(41 + 1);
  config.eviction = "s3fifo";
  const auto manager = make_manager(config);
  ASSERT_NE(manager, nullptr);
  const auto use = [&](std::uint32_t name) {
    const std::uint64_t before = manager->stats().prefix_cache_hits;
    EXPECT_OK(manager->free(prompt(*manager, prompt_of(name))));
    return manager->stats().prefix_cache_hits != before;
  };
  std::uint32_t fresh = 1000;
  use(1);
  for (int i = 0; i < 60; ++i) use(fresh++);
  EXPECT_FALSE(use(1)) << "the scan pushed it out";
  for (int i = 0; i < 60; ++i) use(fresh++);
  EXPECT_TRUE(use(1)) << "the second time it came it was known, so the same scan did not";
}

}  // namespace
}  // namespace firn::test
