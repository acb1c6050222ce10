// The life of blocks told in small cases, most with a pool of eleven: slot 0 is the null block, 1 to 10 are handed out.
// Slot numbers appear where the order in which slots are taken is the claim; elsewhere only counts and matches do.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "tests/core/manager/fixture.h"

namespace firn::test {
namespace {

class Scenario : public testing::Test {
 protected:
  void TearDown() override {
    if (!manager_) return;
    EXPECT_EQ(broken(*manager_), "");
    const Stats stats = manager_->stats();
    EXPECT_EQ(stats.prefix_cache_queries, total(stats)) << "every queried block is a hit or has one reason";
  }

  // The order in which slots would be taken now, the manager's own being lost in finding out.
  Slots drain() {
    const std::uint32_t count =
        static_cast<std::uint32_t>(manager_->stats().slots_free + manager_->stats().slots_cached);
    const auto begun = manager_->begin(distinct(1, 999'999));
    EXPECT_TRUE(begun.ok());
    EXPECT_TRUE(manager_->allocate(begun->seq, count * kBlockTokens).ok());
    Slots order = table(*manager_, begun->seq);
    EXPECT_OK(manager_->free(begun->seq));
    return order;
  }

  Tokens common_ = distinct(48, 1000);
  std::unique_ptr<Manager> manager_ = make_manager(bookkeeping(11));
};

TEST_F(Scenario, APromptTakesTheFirstSlotsAndNamesItsFullBlocks) {
  const Tokens tokens = distinct(55, 0);
  const SeqId seq = prompt(*manager_, tokens);
  EXPECT_EQ(table(*manager_, seq), (Slots{1, 2, 3, 4}));
  EXPECT_EQ(manager_->block_keys(seq), manager_->compute_keys(tokens));
  EXPECT_EQ(manager_->block_keys(seq).size(), 3u) << "the fourth block is not full";
  EXPECT_EQ(manager_->token_count(seq), 55u);
  EXPECT_EQ(manager_->usable_tokens(seq), 55u);
  const Stats stats = manager_->stats();
  EXPECT_EQ(stats.slots_live, 4u);
  EXPECT_EQ(stats.slots_free, 6u);
  EXPECT_EQ(stats.slots_total, 10u) << "the null slot is nobody's";
  EXPECT_EQ(stats.sequences, 1u);
}

TEST_F(Scenario, ASecondPromptSharesTheFullBlocksOfTheFirst) {
  const SeqId first = prompt(*manager_, joined(common_, distinct(7, 0)));
  const Tokens tokens = joined(common_, distinct(5, 100));
  const PrefixMatch match = manager_->match_prefix(tokens);
  EXPECT_EQ(match.tokens, 48u);
  EXPECT_EQ(match.tokens_on_device, 48u);
  EXPECT_EQ(match.tokens_on_host, 0u);
  EXPECT_EQ(match.first_miss, MissReason::kPartialTail);
  const SeqId second = prompt(*manager_, tokens);
  EXPECT_EQ(table(*manager_, first), (Slots{1, 2, 3, 4}));
  EXPECT_EQ(table(*manager_, second), (Slots{1, 2, 3, 5}));
  EXPECT_EQ(manager_->stats().slots_free, 5u);
  EXPECT_EQ(manager_->stats().slots_live, 5u);
  EXPECT_EQ(manager_->stats().hits_device, 3u);
}

TEST_F(Scenario, FreedUnkeyedBlocksGoToTheHeadAndKeyedOnesBehindTailFirst) {
  const SeqId first = prompt(*manager_, joined(common_, distinct(7, 0)));
  const SeqId second = prompt(*manager_, joined(common_, distinct(5, 100)));
  EXPECT_OK(manager_->free(first));
  EXPECT_EQ(manager_->stats().slots_cached, 0u) << "the second sequence still holds the common blocks";
  EXPECT_OK(manager_->free(second));
  EXPECT_EQ(manager_->stats().slots_cached, 3u);
  EXPECT_EQ(manager_->stats().slots_free, 7u);
  EXPECT_EQ(manager_->match_prefix(joined(common_, {7})).tokens, 48u) << "freed is not evicted";
  EXPECT_EQ(drain(), (Slots{5, 4, 6, 7, 8, 9, 10, 3, 2, 1}));
}

TEST_F(Scenario, AHitPullsCachedBlocksOutOfTheMiddle) {
  EXPECT_OK(manager_->free(prompt(*manager_, joined(common_, distinct(7, 0)))));
  const SeqId other = prompt(*manager_, distinct(20, 5000));
  EXPECT_OK(manager_->free(other));
  const SeqId third = prompt(*manager_, joined(common_, distinct(3, 200)));
  const Slots slots = table(*manager_, third);
  EXPECT_EQ((Slots{slots[0], slots[1], slots[2]}), (Slots{1, 2, 3}));
  EXPECT_EQ(manager_->stats().slots_live, 4u);
  EXPECT_EQ(manager_->stats().slots_cached, 1u) << "the full block of the other sequence";
  EXPECT_EQ(manager_->stats().slots_free, 5u);
}

TEST_F(Scenario, ALongPromptTakesEverySlotInQueueOrderAndForgetsWhatWasThere) {
  const Tokens old = joined(common_, distinct(7, 0));
  EXPECT_OK(manager_->free(prompt(*manager_, old)));
  const Tokens tokens = distinct(160, 9000);
  EXPECT_EQ(manager_->match_prefix(tokens).tokens, 0u);
  EXPECT_EQ(manager_->match_prefix(tokens).first_miss, MissReason::kNeverStored);
  const SeqId seq = prompt(*manager_, tokens);
  EXPECT_EQ(table(*manager_, seq), (Slots{4, 5, 6, 7, 8, 9, 10, 3, 2, 1}));
  const PrefixMatch match = manager_->match_prefix(old);
  EXPECT_EQ(match.tokens, 0u);
  EXPECT_EQ(match.first_miss, MissReason::kEvictedDevice) << "a miss says why";
  EXPECT_EQ(manager_->stats().evictions, 3u);
  EXPECT_EQ(manager_->stats().evictions_with_copy, 0u);
}

TEST_F(Scenario, WhoAsksNotToReadTheCacheComputesAllAndStoresADuplicate) {
  const Tokens tokens = joined(common_, {1});
  const SeqId first = prompt(*manager_, tokens);
  BeginOptions options;
  options.read_cache = false;
  const SeqId second = prompt(*manager_, tokens, options);
  EXPECT_EQ(table(*manager_, first), (Slots{1, 2, 3, 4}));
  EXPECT_EQ(table(*manager_, second), (Slots{5, 6, 7, 8}));
  EXPECT_EQ(manager_->block_keys(first), manager_->block_keys(second));
  EXPECT_EQ(manager_->stats().duplicate_blocks, 3u);
  EXPECT_GE(missed(manager_->stats(), MissReason::kNotRead), 3u);
  const SeqId third = prompt(*manager_, tokens);
  EXPECT_EQ(table(*manager_, third)[0], 1u) << "the earlier duplicate is found first";
  EXPECT_OK(manager_->free(third));
  // The later duplicate stands in when the earlier one goes.
  EXPECT_OK(manager_->rewind(first, 0));
  EXPECT_EQ(manager_->stats().duplicate_blocks, 0u);
  EXPECT_EQ(manager_->match_prefix(tokens).tokens, 48u);
  EXPECT_EQ(table(*manager_, prompt(*manager_, tokens))[0], 5u);
}

TEST_F(Scenario, DecodingTakesASlotOnlyAtABlocksEdgeAndNamesEachBlockOnce) {
  const Tokens tokens = distinct(15, 0);
  const SeqId seq = prompt(*manager_, tokens);
  EXPECT_EQ(table(*manager_, seq), (Slots{1}));
  EXPECT_TRUE(manager_->block_keys(seq).empty());
  decode(*manager_, seq, {15});
  EXPECT_EQ(table(*manager_, seq), (Slots{1}));
  EXPECT_EQ(manager_->block_keys(seq).size(), 1u);
  const Key key = manager_->block_keys(seq)[0];
  decode(*manager_, seq, {16});
  EXPECT_EQ(table(*manager_, seq), (Slots{1, 2}));
  ASSERT_EQ(manager_->block_keys(seq).size(), 1u);
  EXPECT_EQ(manager_->block_keys(seq)[0], key);
  EXPECT_EQ(manager_->stats().duplicate_blocks, 0u);
}

TEST_F(Scenario, TheOrderOfVictimsIsUnkeyedThenOldestTailFirst) {
  const Tokens a = distinct(85, 0), b = distinct(48, 2000);
  const SeqId first = prompt(*manager_, a), second = prompt(*manager_, b);
  EXPECT_OK(manager_->free(first));
  EXPECT_OK(manager_->free(second));
  EXPECT_EQ(drain(), (Slots{6, 10, 5, 4, 3, 2, 1, 9, 8, 7}));
}

TEST_F(Scenario, APromptRevivesAPrefixAndLeavesTheRestInOrder) {
  const Tokens a = distinct(85, 0), b = distinct(48, 2000);
  const SeqId first = prompt(*manager_, a), second = prompt(*manager_, b);
  EXPECT_OK(manager_->free(first));
  EXPECT_OK(manager_->free(second));
  const SeqId third = prompt(*manager_, joined(first_of(a, 32), distinct(3, 7000)));
  EXPECT_EQ(table(*manager_, third), (Slots{1, 2, 6}));
  EXPECT_EQ(manager_->stats().slots_free + manager_->stats().slots_cached, 7u);
  EXPECT_EQ(drain(), (Slots{10, 5, 4, 3, 9, 8, 7}));
}

TEST_F(Scenario, AReusedSlotLosesItsOldNameAndGetsANewOneOnlyWhenFull) {
  const Tokens old = distinct(17, 0);
  EXPECT_OK(manager_->free(prompt(*manager_, old)));
  EXPECT_EQ(manager_->match_prefix(old).tokens, 16u);
  const Tokens tokens = distinct(160, 9000);
  const auto begun = manager_->begin(tokens);
  ASSERT_TRUE(begun.ok());
  ASSERT_TRUE(manager_->allocate(begun->seq, 160).ok());
  EXPECT_EQ(manager_->match_prefix(old).tokens, 0u);
  EXPECT_EQ(manager_->match_prefix(tokens).tokens, 0u) << "allocated is not committed";
  ASSERT_OK(manager_->commit(begun->seq, first_of(tokens, 15)));
  EXPECT_EQ(manager_->match_prefix(tokens).tokens, 0u);
  ASSERT_OK(manager_->commit(begun->seq, std::span(tokens).subspan(15, 1)));
  EXPECT_EQ(manager_->match_prefix(tokens).tokens, 16u);
}

TEST_F(Scenario, APoolOfFiveRefusesTheSixthBlockAndChangesNothing) {
  manager_ = make_manager(bookkeeping(5));
  const SeqId first = prompt(*manager_, distinct(40, 0));
  EXPECT_EQ(table(*manager_, first).size(), 3u);
  EXPECT_OK(manager_->free(first));
  const SeqId second = prompt(*manager_, distinct(64, 5000));
  EXPECT_EQ(table(*manager_, second).size(), 4u);
  const auto third = manager_->begin(distinct(10, 9000));
  ASSERT_TRUE(third.ok());
  const auto refused = manager_->allocate(third->seq, 10);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::kNoSpace);
  EXPECT_TRUE(manager_->block_table(third->seq).empty());
  EXPECT_EQ(manager_->stats().allocations_refused, 1u);
  EXPECT_EQ(broken(*manager_), "");
}

TEST_F(Scenario, APromptThatDoesNotFitIsRefusedWholeThoughItsStartWould) {
  const SeqId first = prompt(*manager_, distinct(96, 0));
  const Tokens tokens = distinct(81, 5000);
  const auto begun = manager_->begin(tokens);
  ASSERT_TRUE(begun.ok());
  EXPECT_EQ(manager_->allocate(begun->seq, 81).status().code(), Code::kNoSpace);
  EXPECT_EQ(manager_->stats().slots_free, 4u);
  EXPECT_TRUE(manager_->allocate(begun->seq, 64).ok()) << "the first chunk alone fits";
  EXPECT_EQ(manager_->stats().slots_free, 0u);
  EXPECT_OK(manager_->free(first));
}

TEST_F(Scenario, LookaheadIsRoomThatCommitsUseLater) {
  const auto begun = manager_->begin(distinct(20, 0));
  ASSERT_TRUE(begun.ok());
  ASSERT_TRUE(manager_->allocate(begun->seq, 10, 30).ok());
  EXPECT_EQ(table(*manager_, begun->seq).size(), 3u);
  ASSERT_OK(manager_->commit(begun->seq, distinct(10, 0)));
  ASSERT_TRUE(manager_->allocate(begun->seq, 38).ok());
  EXPECT_EQ(table(*manager_, begun->seq).size(), 3u) << "10 + 38 tokens fit the three blocks";
}

TEST_F(Scenario, NamespacesDoNotSeeEachOther) {
  const Tokens tokens = joined(common_, {1});
  BeginOptions tenant;
  tenant.name_space = "a";
  const SeqId seq = prompt(*manager_, tokens, tenant);
  EXPECT_EQ(manager_->match_prefix(tokens, "a").tokens, 48u);
  EXPECT_EQ(manager_->match_prefix(tokens, "b").tokens, 0u);
  EXPECT_EQ(manager_->match_prefix(tokens).tokens, 0u);
  EXPECT_EQ(manager_->block_keys(seq), manager_->compute_keys(tokens, "a"));
  EXPECT_NE(manager_->compute_keys(tokens, "a"), manager_->compute_keys(tokens));
  const std::vector<Key> a = manager_->compute_keys(tokens, "a"), b = manager_->compute_keys(tokens, "b");
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NE(a[i], b[i]);
}

TEST_F(Scenario, ResetIsRefusedWhileASequenceLivesAndThenForgetsEverything) {
  const Tokens tokens = joined(common_, {1});
  const SeqId seq = prompt(*manager_, tokens);
  const Status refused = manager_->reset();
  EXPECT_EQ(refused.code(), Code::kUnavailable);
  EXPECT_EQ(manager_->match_prefix(tokens).tokens, 48u) << "a refused reset changes nothing";
  EXPECT_OK(manager_->free(seq));
  EXPECT_OK(manager_->reset());
  EXPECT_EQ(manager_->match_prefix(tokens).tokens, 0u);
  EXPECT_EQ(manager_->stats().slots_free, 10u);
  EXPECT_EQ(manager_->stats().slots_cached, 0u);
  EXPECT_EQ(manager_->stats().blocks, 0u);
}

TEST_F(Scenario, TheLastTokenIsNeverReusedBecauseItsLogitsAreNeeded) {
  const Tokens tokens = distinct(48, 0);
  EXPECT_OK(manager_->free(prompt(*manager_, tokens)));
  const PrefixMatch match = manager_->match_prefix(tokens);
  EXPECT_EQ(match.tokens, 32u) << "48 tokens are cached, but the 48th is the last";
  EXPECT_EQ(match.first_miss, MissReason::kPartialTail);
  EXPECT_EQ(manager_->match_prefix(joined(tokens, {1})).tokens, 48u);
  EXPECT_EQ(manager_->match_prefix({}).tokens, 0u);
  EXPECT_EQ(manager_->match_prefix(first_of(tokens, 1)).tokens, 0u);
  EXPECT_EQ(manager_->match_prefix(first_of(tokens, 16)).tokens, 0u);
  EXPECT_EQ(manager_->match_prefix(first_of(tokens, 17)).tokens, 16u);
}

TEST_F(Scenario, MatchingChangesNothing) {
  EXPECT_OK(manager_->free(prompt(*manager_, joined(common_, {1}))));
  EXPECT_OK(manager_->free(prompt(*manager_, distinct(40, 5000))));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(manager_->match_prefix(joined(common_, {2})).tokens, 48u);
  EXPECT_EQ(manager_->stats().prefix_cache_queries, 7u) << "only begin() counts: 4 blocks, then 3";
  // Slot 6 is the 40-token prompt's partial block, slot 4 the first prompt's until that took it again.
  EXPECT_EQ(drain(), (Slots{6, 7, 8, 9, 10, 3, 2, 1, 5, 4}));
}

TEST_F(Scenario, EveryMissedBlockHasItsReason) {
  EXPECT_OK(manager_->free(prompt(*manager_, common_)));
  ASSERT_EQ(missed(manager_->stats(), MissReason::kNeverStored), 1u);
  EXPECT_EQ(missed(manager_->stats(), MissReason::kAfterMiss), 1u);
  EXPECT_EQ(missed(manager_->stats(), MissReason::kPartialTail), 1u);
  // Two blocks hit, two do not, and a partial one.
  const SeqId seq = prompt(*manager_, joined(first_of(common_, 32), distinct(40, 7000)));
  const Stats stats = manager_->stats();
  EXPECT_EQ(stats.prefix_cache_hits, 2u);
  EXPECT_EQ(missed(stats, MissReason::kNeverStored), 2u);
  EXPECT_EQ(missed(stats, MissReason::kAfterMiss), 2u);
  EXPECT_EQ(missed(stats, MissReason::kPartialTail), 2u);
  EXPECT_OK(manager_->free(seq));
}

TEST_F(Scenario, AForkSharesEverythingAndCopiesTheTailOnItsFirstWrite) {
  const SeqId parent = prompt(*manager_, distinct(40, 0));
  const auto child = manager_->fork(parent);
  ASSERT_TRUE(child.ok()) << child.status().message();
  EXPECT_EQ(table(*manager_, *child), (Slots{1, 2, 3}));
  EXPECT_EQ(manager_->token_count(*child), 40u);
  EXPECT_EQ(manager_->stats().slots_live, 3u);

  const auto orders = manager_->allocate(*child, 1);
  ASSERT_TRUE(orders.ok()) << orders.status().message();
  ASSERT_EQ(orders->size(), 1u);
  EXPECT_EQ(index((*orders)[0].from), 3u);
  EXPECT_EQ(index((*orders)[0].to), 4u);
  EXPECT_EQ((*orders)[0].tokens, 8u);
  EXPECT_EQ(table(*manager_, *child), (Slots{1, 2, 4}));
  EXPECT_EQ(manager_->stats().copy_on_writes, 1u);

  const auto alone = manager_->allocate(parent, 1);
  ASSERT_TRUE(alone.ok());
  EXPECT_TRUE(alone->empty()) << "nobody else holds the tail any more";
  ASSERT_OK(manager_->commit(*child, distinct(8, 500)));
  ASSERT_OK(manager_->commit(parent, distinct(8, 600)));
  EXPECT_EQ(manager_->match_prefix(joined(distinct(40, 0), distinct(9, 500))).tokens, 48u);
  EXPECT_EQ(manager_->match_prefix(joined(distinct(40, 0), distinct(9, 600))).tokens, 48u);
  EXPECT_EQ(manager_->match_prefix(joined(distinct(40, 0), distinct(9, 700))).tokens, 32u);
}

TEST_F(Scenario, AForkAtABlocksEdgeCopiesNothing) {
  const SeqId parent = prompt(*manager_, distinct(32, 0));
  const auto child = manager_->fork(parent);
  ASSERT_TRUE(child.ok());
  const auto orders = manager_->allocate(*child, 1);
  ASSERT_TRUE(orders.ok());
  EXPECT_TRUE(orders->empty());
  EXPECT_EQ(table(*manager_, *child), (Slots{1, 2, 3}));
  EXPECT_EQ(table(*manager_, parent), (Slots{1, 2}));
}

TEST_F(Scenario, ACopyOnWriteThatFindsNoSlotIsRefusedWithoutATrace) {
  const SeqId parent = prompt(*manager_, distinct(152, 0));
  ASSERT_EQ(manager_->stats().slots_free, 0u);
  const auto child = manager_->fork(parent);
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(manager_->allocate(*child, 1).status().code(), Code::kNoSpace);
  EXPECT_EQ(table(*manager_, *child), table(*manager_, parent));
  EXPECT_EQ(manager_->stats().copy_on_writes, 0u);
  EXPECT_OK(manager_->free(parent));
  const auto orders = manager_->allocate(*child, 1);
  ASSERT_TRUE(orders.ok());
  EXPECT_TRUE(orders->empty()) << "the tail is its own now";
}

TEST_F(Scenario, RewoundTokensAreNeverMatchedAgain) {
  const Tokens tokens = distinct(70, 0);
  const SeqId seq = prompt(*manager_, tokens);
  ASSERT_OK(manager_->rewind(seq, 33));
  EXPECT_EQ(manager_->token_count(seq), 33u);
  EXPECT_EQ(manager_->block_keys(seq).size(), 2u);
  EXPECT_EQ(manager_->match_prefix(tokens).tokens, 32u);
  EXPECT_EQ(manager_->stats().slots_live, 3u);
  EXPECT_EQ(manager_->stats().slots_free, 7u) << "dropped blocks are worth nothing and not cached";
  // And the sequence goes on with other tokens.
  ASSERT_TRUE(manager_->allocate(seq, 20).ok());
  ASSERT_OK(manager_->commit(seq, distinct(20, 800)));
  EXPECT_EQ(manager_->match_prefix(joined(first_of(tokens, 33), distinct(20, 800))).tokens, 48u);
  EXPECT_EQ(manager_->match_prefix(tokens).tokens, 32u);
  ASSERT_OK(manager_->rewind(seq, 0));
  EXPECT_TRUE(manager_->block_table(seq).empty());
  EXPECT_EQ(manager_->match_prefix(tokens).tokens, 0u);
}

TEST_F(Scenario, RewindingLeavesWhatAnotherSequenceHolds) {
  const Tokens tokens = distinct(64, 0);
  const SeqId parent = prompt(*manager_, tokens);
  const auto child = manager_->fork(parent);
  ASSERT_TRUE(child.ok());
  ASSERT_OK(manager_->rewind(*child, 20));
  EXPECT_EQ(manager_->match_prefix(joined(tokens, {1})).tokens, 64u);
  EXPECT_EQ(manager_->block_keys(parent).size(), 4u);
  const auto orders = manager_->allocate(*child, 4);
  ASSERT_TRUE(orders.ok());
  ASSERT_EQ(orders->size(), 1u) << "the shared block may not be written";
  EXPECT_EQ(index((*orders)[0].from), 2u);
  EXPECT_EQ((*orders)[0].tokens, 4u);
  ASSERT_OK(manager_->commit(*child, distinct(4, 900)));
  EXPECT_EQ(manager_->match_prefix(joined(tokens, {1})).tokens, 64u);
}

TEST_F(Scenario, EmptyPoolGivesUpWhatNoSequenceNeeds) {
  const Tokens held = distinct(33, 0), dropped = distinct(50, 5000);
  const SeqId seq = prompt(*manager_, held);
  EXPECT_OK(manager_->free(prompt(*manager_, dropped)));
  const auto emptied = manager_->empty_pool(0xa5);
  ASSERT_TRUE(emptied.ok()) << emptied.status().message();
  EXPECT_EQ(manager_->match_prefix(dropped).tokens, 0u) << "without a copy below it is gone";
  EXPECT_EQ(manager_->match_prefix(joined(held, {1})).tokens, 32u);
  EXPECT_EQ(manager_->stats().slots_cached, 0u);
  EXPECT_EQ(manager_->stats().slots_free, 7u);
  EXPECT_EQ(table(*manager_, seq).size(), 3u);
}

TEST_F(Scenario, WrongCallsAreRefusedByNameAndChangeNothing) {
  const Tokens tokens = distinct(20, 0);
  const SeqId seq = prompt(*manager_, tokens);
  const SeqId gone = prompt(*manager_, distinct(5, 7000));
  EXPECT_OK(manager_->free(gone));
  const Stats before = manager_->stats();
  const auto invalid = [](const Status& status) {
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << status.message();
    EXPECT_FALSE(status.message().empty());
  };
  for (const SeqId none : {gone, SeqId::kNone, SeqId{1u << 30}}) {
    invalid(manager_->allocate(none, 1).status());
    invalid(manager_->commit(none, tokens));
    invalid(manager_->fork(none).status());
    invalid(manager_->rewind(none, 0));
    invalid(manager_->free(none));
    invalid(manager_->prefetch(none).status());
    EXPECT_EQ(manager_->token_count(none), 0u);
    EXPECT_EQ(manager_->usable_tokens(none), 0u);
    EXPECT_TRUE(manager_->block_table(none).empty());
    EXPECT_TRUE(manager_->block_keys(none).empty());
  }
  invalid(manager_->begin({}).status());
  invalid(manager_->rewind(seq, 21));
  invalid(manager_->commit(seq, distinct(13, 50)));  // 32 tokens are allocated
  EXPECT_EQ(manager_->token_count(seq), 20u);
  EXPECT_EQ(manager_->stats().slots_live, before.slots_live);
  EXPECT_EQ(manager_->stats().slots_free, before.slots_free);
  EXPECT_EQ(table(*manager_, seq).size(), 2u);
}

TEST_F(Scenario, SequencesAndTheirLengthAreBounded) {
  Config config = bookkeeping(11);
  config.max_sequences = 2;
  config.max_sequence_tokens = 64;
  config.pool.max_step_tokens = 16;
  manager_ = make_manager(config);
  const SeqId first = prompt(*manager_, distinct(10, 0));
  const SeqId second = prompt(*manager_, distinct(10, 100));
  EXPECT_FALSE(manager_->begin(distinct(10, 200)).ok());
  EXPECT_FALSE(manager_->fork(first).ok());
  EXPECT_OK(manager_->free(second));
  EXPECT_EQ(manager_->allocate(first, 55).status().code(), Code::kInvalidArgument);
  EXPECT_TRUE(manager_->allocate(first, 54).ok());
  EXPECT_TRUE(manager_->begin(distinct(10, 200)).ok());
}

TEST_F(Scenario, AStepIsPlannedAgainstWhatIsThere) {
  const SeqId seq = prompt(*manager_, distinct(20, 0));
  const StepRequest few{seq, 30};
  const auto plan = manager_->plan_step(std::span(&few, 1));
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->blocks_needed, 2u) << "50 tokens in 4 blocks, of which it has 2";
  EXPECT_GE(plan->chunk_limit, 30u);
  EXPECT_TRUE(plan->blocked.ok()) << plan->blocked.message();
  ASSERT_TRUE(manager_->allocate(seq, 120).ok());
  const auto other = manager_->begin(distinct(30, 5000));
  ASSERT_TRUE(other.ok());
  ASSERT_TRUE(manager_->allocate(other->seq, 16).ok());
  const StepRequest more{other->seq, 30};
  const auto blocked = manager_->plan_step(std::span(&more, 1));
  ASSERT_TRUE(blocked.ok()) << blocked.status().message();
  EXPECT_LE(blocked->chunk_limit, 16u);
  const SeqId none{1u << 30};
  const StepRequest unknown{none, 1};
  EXPECT_EQ(manager_->plan_step(std::span(&unknown, 1)).status().code(), Code::kInvalidArgument);
}

TEST_F(Scenario, APlanForSeveralSequencesThatFitsIsAllocatedWhole) {
  const SeqId first = prompt(*manager_, distinct(16, 0)), second = prompt(*manager_, distinct(16, 1000));
  const SeqId third = prompt(*manager_, distinct(24, 2000));
  const auto fork = manager_->fork(third);
  ASSERT_TRUE(fork.ok());
  // Five slots of ten are free or can be: one token each takes one for the first two, one to copy the shared tail, none
  // for the other half of the fork.
  const std::vector<StepRequest> requests = {{first, 17}, {second, 17}, {*fork, 8}, {third, 8}};
  const auto plan = manager_->plan_step(requests);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->chunk_limit, 50u);
  for (const StepRequest& request : requests) EXPECT_TRUE(manager_->allocate(request.seq, request.new_tokens).ok());
  EXPECT_EQ(manager_->stats().slots_free, 1u);
  const std::vector<StepRequest> more = {{first, 100}, {second, 17}};
  const auto cut = manager_->plan_step(more);
  ASSERT_TRUE(cut.ok());
  EXPECT_EQ(cut->chunk_limit, 48u + 17u)
      << "the first may fill its three blocks and the last slot, the second its own room";
}

TEST_F(Scenario, ManagersOfDifferentModelsNameTheSameTokensDifferently) {
  const Tokens tokens = distinct(32, 0);
  ModelSpec other = small_model();
  other.weights.bytes.fill(2);
  const auto second = make_manager(bookkeeping(11, other), other);
  ASSERT_TRUE(second);
  EXPECT_NE(manager_->compute_keys(tokens), second->compute_keys(tokens));
  const auto third = make_manager(bookkeeping(11));
  EXPECT_EQ(manager_->compute_keys(tokens), third->compute_keys(tokens));
}

TEST_F(Scenario, EverySlotIsUsedAndNoneTwice) {
  std::vector<SeqId> seqs;
  std::set<std::uint32_t> seen;
  for (int i = 0; i < 10; ++i) {
    seqs.push_back(prompt(*manager_, distinct(16, 1000 * i)));
    for (const std::uint32_t slot : table(*manager_, seqs.back())) EXPECT_TRUE(seen.insert(slot).second);
  }
  EXPECT_EQ(seen.size(), 10u);
  EXPECT_EQ(*seen.begin(), 1u) << "the null slot is never handed out";
  EXPECT_EQ(*seen.rbegin(), 10u);
  EXPECT_DOUBLE_EQ(manager_->stats().kv_cache_usage_perc, 1.0);
}

BeginOptions with_media(std::vector<MediaItem> media) {
  BeginOptions options;
  options.extras.media = std::move(media);
  return options;
}

// Equal placeholder tokens, different pictures: only what lies before them is shared, and each finds its own again.
TEST_F(Scenario, MediaTellEqualTokensApart) {
  const Tokens tokens = distinct(64, 0);
  const BeginOptions cat = with_media({{20, 30, "cat"}}), dog = with_media({{20, 30, "dog"}});
  const SeqId first = prompt(*manager_, tokens, cat);
  EXPECT_EQ(manager_->match_prefix(tokens, cat).tokens, 48u);
  EXPECT_EQ(manager_->match_prefix(tokens, dog).tokens, 16u);
  EXPECT_EQ(manager_->match_prefix(tokens).tokens, 16u);
  EXPECT_EQ(manager_->match_prefix(tokens, with_media({{21, 30, "cat"}})).tokens, 16u) << "elsewhere in its block";
  const KeyChain chain(model_identity(small_model()), {});
  EXPECT_EQ(manager_->block_keys(first), chain.keys(tokens, cat.extras));
  // A fork goes on under the same names, and so does a sequence that was preempted.
  const auto child = manager_->fork(first);
  ASSERT_TRUE(child.ok());
  decode(*manager_, *child, distinct(16, 5000));
  EXPECT_EQ(manager_->block_keys(*child), chain.keys(joined(tokens, distinct(16, 5000)), cat.extras));
  ASSERT_OK(manager_->preempt(first));
  EXPECT_EQ(manager_->resume(first)->tokens, 64u);
  EXPECT_EQ(broken(*manager_), "");
  ASSERT_OK(manager_->free(first));
  EXPECT_EQ(manager_->explain(joined(tokens, {1}), cat).first_miss, 4u);
  EXPECT_EQ(manager_->explain(joined(tokens, {1}), dog).first_miss, 1u);
}

TEST_F(Scenario, AnAdapterOfTheRequestIsInEveryKey) {
  BeginOptions lora;
  lora.extras.adapter = "lora-7";
  prompt(*manager_, common_, lora);
  EXPECT_EQ(manager_->match_prefix(joined(common_, {1}), lora).tokens, 48u);
  EXPECT_EQ(manager_->match_prefix(joined(common_, {1})).tokens, 0u);
}

TEST_F(Scenario, BadExtrasAreRefusedAndLeaveNothing) {
  const auto refused = manager_->begin(common_, with_media({{0, 0, "x"}}));
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.status().message().find("media[0]"), std::string::npos) << refused.status().message();
  EXPECT_EQ(manager_->match_prefix(common_, with_media({{0, 0, "x"}})).tokens, 0u);
  EXPECT_EQ(manager_->stats().sequences, 0u);
}

// vLLM's mode for speculative decoders: the hit is a block shorter.
TEST_F(Scenario, TheLastMatchedBlockCanBeGivenUp) {
  prompt(*manager_, common_);
  BeginOptions options;
  options.drop_last_block = true;
  const PrefixMatch match = manager_->match_prefix(joined(common_, {1}), options);
  EXPECT_EQ(match.tokens, 32u);
  EXPECT_EQ(match.first_miss, MissReason::kNotRead);
  EXPECT_EQ(manager_->match_prefix(distinct(48, 70'000), options).tokens, 0u);
  prompt(*manager_, joined(common_, {1}), options);
}

TEST_F(Scenario, RanksReuseWhatAllOfThemHave) {
  ModelSpec rank0 = small_model(), rank1 = small_model();
  rank0.shard_count = rank1.shard_count = 2;
  rank1.shard_rank = 1;
  const auto first = make_manager(bookkeeping(11), rank0), second = make_manager(bookkeeping(11), rank1);
  prompt(*first, common_);
  prompt(*second, first_of(common_, 32));
  const Tokens tokens = joined(common_, {1});
  EXPECT_NE(first->compute_keys(tokens), second->compute_keys(tokens)) << "a shard's bytes are its own";
  const std::vector<PrefixMatch> ranks = {first->match_prefix(tokens), second->match_prefix(tokens)};
  BeginOptions options;
  options.max_reuse_tokens = tokens_on_all_ranks(ranks);
  EXPECT_EQ(options.max_reuse_tokens, 32u);
  for (const auto& manager : {first.get(), second.get()}) {
    const auto begun = manager->begin(tokens, options);
    ASSERT_TRUE(begun.ok());
    EXPECT_EQ(begun->match.tokens, 32u);
    EXPECT_EQ(manager->stats().prefix_cache_queries, total(manager->stats()));
    EXPECT_EQ(broken(*manager), "");
  }
}

}  // namespace
}  // namespace firn::test
