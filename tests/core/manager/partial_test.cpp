// Reuse of a part of a block: a prompt that leaves a cached chain in the middle of a block copies what it shares.
#include <gtest/gtest.h>

#include <random>

#include "tests/core/manager/fixture.h"
#include "tests/core/manager/toy_engine.h"

namespace firn::test {
namespace {

class Partial : public testing::Test {
 protected:
  void TearDown() override { EXPECT_EQ(broken(*manager_), ""); }
  static Config settings(std::uint32_t slots) {
    Config config = bookkeeping(slots);
    config.partial_reuse = true;
    return config;
  }
  std::unique_ptr<Manager> manager_ = make_manager(settings(21));
};

TEST_F(Partial, CopiesTheSharedTokensAndLeavesTheSourceAsItIs) {
  const SeqId first = prompt(*manager_, distinct(48, 0));
  const Tokens tokens = joined(first_of(distinct(48, 0), 37), distinct(20, 700));
  const PrefixMatch match = manager_->match_prefix(tokens);
  EXPECT_EQ(match.tokens, 37u);
  EXPECT_EQ(match.tokens_partial, 5u);
  EXPECT_EQ(match.tokens_on_device, 37u);
  EXPECT_EQ(match.recompute_from, 37u);
  EXPECT_EQ(match.first_miss, MissReason::kNeverStored) << "the whole block is missed all the same";
  const auto begun = manager_->begin(tokens);
  ASSERT_TRUE(begun.ok());
  EXPECT_EQ(manager_->token_count(begun->seq), 37u);
  EXPECT_EQ(table(*manager_, begun->seq), (Slots{1, 2, 3})) << "shared until something is written";
  const auto orders = manager_->allocate(begun->seq, 20);
  ASSERT_TRUE(orders.ok());
  ASSERT_EQ(orders->size(), 1u);
  EXPECT_EQ(index(orders->front().from), 3u);
  EXPECT_EQ(orders->front().tokens, 5u);
  EXPECT_NE(orders->front().to, orders->front().from);
  EXPECT_EQ(table(*manager_, begun->seq)[2], index(orders->front().to));
  EXPECT_EQ(table(*manager_, first), (Slots{1, 2, 3}));
  EXPECT_EQ(manager_->match_prefix(joined(distinct(48, 0), {1})).tokens, 48u) << "the source keeps its key";
  ASSERT_OK(manager_->commit(begun->seq, std::span(tokens).subspan(37)));
  EXPECT_EQ(manager_->block_keys(begun->seq), manager_->compute_keys(tokens));
  const Stats stats = manager_->stats();
  EXPECT_EQ(stats.partial_hit_tokens, 5u);
  EXPECT_EQ(stats.prefix_cache_queries, total(stats));
}

TEST_F(Partial, NeverGivesTheLastToken) {
  ASSERT_OK(manager_->free(prompt(*manager_, distinct(48, 0))));
  EXPECT_EQ(manager_->match_prefix(distinct(48, 0)).tokens, 47u);
  EXPECT_EQ(manager_->match_prefix(distinct(33, 0)).tokens, 32u) << "nothing is left to share";
  EXPECT_EQ(manager_->match_prefix(distinct(34, 0)).tokens, 33u);
  EXPECT_EQ(manager_->match_prefix(distinct(1, 0)).tokens, 0u);
}

TEST_F(Partial, TakesTheBlockThatSharesMost) {
  const Tokens common = distinct(16, 0);
  ASSERT_OK(manager_->free(prompt(*manager_, joined(common, joined(distinct(3, 100), distinct(13, 500))))));
  ASSERT_OK(manager_->free(prompt(*manager_, joined(common, joined(distinct(9, 100), distinct(7, 600))))));
  ASSERT_OK(manager_->free(prompt(*manager_, joined(common, joined(distinct(6, 100), distinct(10, 700))))));
  EXPECT_EQ(manager_->match_prefix(joined(common, distinct(20, 100))).tokens, 16u + 9u);
}

TEST_F(Partial, FirstBlocksShareToo) {
  ASSERT_OK(manager_->free(prompt(*manager_, distinct(16, 0))));
  EXPECT_EQ(manager_->match_prefix(joined(distinct(10, 0), distinct(10, 900))).tokens, 10u);
  EXPECT_EQ(manager_->match_prefix(joined(distinct(10, 0), distinct(10, 900)), "another tenant").tokens, 0u)
      << "a namespace is part of every key";
}

TEST_F(Partial, AnEvictedBlockSharesNothing) {
  ASSERT_OK(manager_->free(prompt(*manager_, distinct(32, 0))));
  ASSERT_OK(manager_->free(prompt(*manager_, distinct(20 * 16, 5000))));
  EXPECT_EQ(manager_->match_prefix(joined(distinct(10, 0), distinct(10, 900))).tokens, 0u);
}

TEST_F(Partial, IsOffUnlessAsked) {
  const auto plain = make_manager(bookkeeping(21));
  ASSERT_OK(plain->free(prompt(*plain, distinct(48, 0))));
  EXPECT_EQ(plain->match_prefix(joined(first_of(distinct(48, 0), 37), distinct(9, 700))).tokens, 32u);
}

// Against a plain search: the longest prefix that any cached block of the chain shares.
TEST_F(Partial, AgreesWithAPlainSearchUnderRandomPrompts) {
  std::mt19937 random(7);
  manager_ = make_manager(settings(400));
  std::vector<Tokens> cached;
  for (int round = 0; round < 150; ++round) {
    Tokens tokens;
    const std::uint32_t length = 2 + random() % 60;
    for (std::uint32_t i = 0; i < length; ++i) tokens.push_back(static_cast<TokenId>(i < 8 ? 1 : random() % 2));
    std::uint32_t wanted = 0;
    for (const Tokens& other : cached) {
      std::uint32_t same = 0;
      const std::size_t whole = other.size() / kBlockTokens * kBlockTokens;
      while (same < std::min(whole, tokens.size() - 1) && other[same] == tokens[same]) ++same;
      wanted = std::max(wanted, same);
    }
    ASSERT_EQ(manager_->match_prefix(tokens).tokens, wanted) << "round " << round;
    ASSERT_OK(manager_->free(prompt(*manager_, tokens)));
    ASSERT_EQ(broken(*manager_), "");
    cached.push_back(tokens);
  }
  EXPECT_GT(manager_->stats().partial_hit_tokens, 100u);
}

// The copy is the bytes: what is attended over a partly shared block is what a fresh computation gives, also where the
// source is in a frame of the host tier.
TEST(PartialBytes, AttendGivesTheSameBitsAsComputingAfresh) {
  for (const bool from_host : {false, true}) {
    Config config;
    config.device = "cpu";
    config.threads = 1;
    config.pool.budget_bytes = 32u << 20;
    config.pool.max_step_tokens = 256;
    config.host.budget_bytes = 16u << 20;
    config.mover.worker = false;
    config.partial_reuse = true;
    const auto manager = make_manager(config);
    ToyEngine engine(*manager, 2);
    const Tokens old = distinct(208, 0), tokens = joined(first_of(old, 203), distinct(10, 9000));
    const auto compute = [&](const Tokens& all, const BeginOptions& options) {
      const auto begun = manager->begin(all, options);
      EXPECT_TRUE(begun.ok());
      const std::uint32_t hit = begun->match.tokens, rest = static_cast<std::uint32_t>(all.size()) - hit;
      EXPECT_TRUE(manager->allocate(begun->seq, rest).ok());
      EXPECT_OK(engine.append(begun->seq, all, hit, rest));
      EXPECT_OK(manager->commit(begun->seq, std::span(all).subspan(hit)));
      const auto out = engine.attend(begun->seq, all, static_cast<std::uint32_t>(all.size()) - 4, 4);
      EXPECT_TRUE(out.ok());
      EXPECT_OK(manager->free(begun->seq));
      return std::pair(hit, *out);
    };
    compute(old, {});
    if (from_host) {
      ASSERT_OK(manager->wait_idle());
      ASSERT_TRUE(manager->empty_pool(0xEE).ok());
      EXPECT_EQ(manager->match_prefix(tokens).tokens_on_host, 203u);
    }
    const auto [hit, shared] = compute(tokens, {});
    EXPECT_EQ(hit, 203u);
    BeginOptions fresh;
    fresh.read_cache = false;
    EXPECT_EQ(shared, compute(tokens, fresh).second) << "from host: " << from_host;
    EXPECT_EQ(broken(*manager), "");
  }
}

}  // namespace
}  // namespace firn::test
