// Who is let in, what is kept for whom, who steps aside, and a pool that grows and shrinks while it is used.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "tests/core/manager/fixture.h"
#include "tests/core/manager/test_peer.h"
#include "tests/core/manager/toy_engine.h"

namespace firn::test {
namespace {

BeginOptions whole(Admission admission, std::uint32_t tokens) {
  BeginOptions options;
  options.admission = admission;
  options.expected_tokens = tokens;
  return options;
}

class AdmissionTest : public testing::Test {
 protected:
  void TearDown() override {
    EXPECT_EQ(broken(*manager_), "");
    EXPECT_EQ(manager_->stats().prefix_cache_queries, total(manager_->stats()));
  }
  std::unique_ptr<Manager> manager_ = make_manager(bookkeeping(11));
};

// vLLM's full_sequence_must_fit: room for the chunk, not for the whole prompt.
TEST_F(AdmissionTest, ASequenceThatMustFitIsRefusedWhereOnlyItsFirstChunkHasRoom) {
  const SeqId other = prompt(*manager_, distinct(96, 0));  // 6 of 10
  const Stats before = manager_->stats();
  const auto refused = manager_->begin(distinct(80, 500), whole(Admission::kMustFit, 0));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::kUnavailable);
  EXPECT_EQ(manager_->stats().admissions_refused, 1u);
  EXPECT_EQ(manager_->stats().sequences, before.sequences);
  EXPECT_EQ(manager_->stats().prefix_cache_queries, before.prefix_cache_queries) << "who is not let in asked nothing";
  const auto admitted = manager_->begin(distinct(80, 500));
  ASSERT_TRUE(admitted.ok()) << "without the flag it is let in";
  EXPECT_TRUE(manager_->allocate(admitted->seq, 64).ok());
  ASSERT_OK(manager_->free(other));
}

TEST_F(AdmissionTest, WhatCanNeverFitIsToldSo) {
  const auto refused = manager_->begin(distinct(10, 0), whole(Admission::kMustFit, 176));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::kNoSpace);
  EXPECT_NE(refused.status().message().find("11 slots"), std::string::npos) << refused.status().message();
  EXPECT_TRUE(manager_->begin(distinct(10, 0), whole(Admission::kMustFit, 160)).ok());
}

// The blocks it hits are cached and count as available until they are its own.
TEST_F(AdmissionTest, HitsDoNotCountTwice) {
  ASSERT_OK(manager_->free(prompt(*manager_, distinct(80, 0))));  // 5 cached, 5 free
  const Tokens tokens = joined(distinct(80, 0), distinct(80, 900));
  EXPECT_TRUE(manager_->begin(tokens, whole(Admission::kMustFit, 160)).ok());
  const auto more = manager_->begin(distinct(96, 5000), whole(Admission::kMustFit, 0));
  EXPECT_FALSE(more.ok()) << "five are held now, five are free";
}

TEST_F(AdmissionTest, AReservationIsKeptFromOthersAndTakenByItsOwner) {
  const auto owner = manager_->begin(distinct(20, 0), whole(Admission::kReserve, 112));
  ASSERT_TRUE(owner.ok());
  EXPECT_EQ(manager_->stats().slots_reserved, 7u);
  const auto other = manager_->begin(distinct(64, 800));
  ASSERT_TRUE(other.ok());
  EXPECT_TRUE(manager_->allocate(other->seq, 48).ok());
  EXPECT_FALSE(manager_->allocate(other->seq, 64).ok()) << "a fourth block is the owner's";
  EXPECT_EQ(broken(*manager_), "");
  EXPECT_EQ(manager_->plan_step(std::vector<StepRequest>{{other->seq, 64}})->chunk_limit, 48u);
  EXPECT_TRUE(manager_->allocate(owner->seq, 32).ok());
  EXPECT_EQ(manager_->stats().slots_reserved, 5u);
  ASSERT_OK(manager_->commit(owner->seq, distinct(32, 0)));
  EXPECT_TRUE(manager_->allocate(owner->seq, 80).ok());
  EXPECT_EQ(manager_->stats().slots_reserved, 0u);
  EXPECT_EQ(manager_->stats().slots_free, 0u);
  ASSERT_OK(manager_->free(owner->seq));
  ASSERT_OK(manager_->free(other->seq));
}

TEST_F(AdmissionTest, AReservationEndsWithItsSequence) {
  const auto owner = manager_->begin(distinct(20, 0), whole(Admission::kReserve, 160));
  ASSERT_TRUE(owner.ok());
  const auto other = manager_->begin(distinct(20, 100));
  ASSERT_TRUE(other.ok());
  EXPECT_FALSE(manager_->allocate(other->seq, 20).ok());
  ASSERT_OK(manager_->free(owner->seq));
  EXPECT_EQ(manager_->stats().slots_reserved, 0u);
  EXPECT_TRUE(manager_->allocate(other->seq, 20).ok());
}

// vLLM's watermark: something is scheduled already, and a waiting request would breach it.
TEST_F(AdmissionTest, TheWatermarkStaysAvailableWhileOthersLive) {
  Config config = bookkeeping(11);
  config.watermark_percent = 20;  // 2 of 10
  manager_ = make_manager(config);
  const auto first = manager_->begin(distinct(150, 0));
  ASSERT_TRUE(first.ok()) << "nothing else lives: it may have all";
  ASSERT_TRUE(manager_->allocate(first->seq, 64).ok());
  EXPECT_EQ(manager_->begin(distinct(80, 500)).status().code(), Code::kUnavailable);
  EXPECT_TRUE(manager_->begin(distinct(64, 500)).ok());
}

TEST_F(AdmissionTest, APreemptedSequenceGivesUpItsBlocksAndTakesBackWhatIsLeft) {
  const Tokens tokens = distinct(70, 0);
  const SeqId seq = prompt(*manager_, tokens);
  ASSERT_OK(manager_->preempt(seq));
  EXPECT_EQ(manager_->stats().slots_live, 0u);
  EXPECT_EQ(manager_->stats().slots_cached, 4u);
  EXPECT_EQ(manager_->stats().preemptions, 1u);
  EXPECT_EQ(manager_->token_count(seq), 70u);
  EXPECT_EQ(manager_->usable_tokens(seq), 0u);
  EXPECT_EQ(manager_->allocate(seq, 1).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(manager_->commit(seq, {}).code(), Code::kInvalidArgument);
  EXPECT_EQ(manager_->fork(seq).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(manager_->rewind(seq, 1).code(), Code::kInvalidArgument);
  EXPECT_EQ(manager_->preempt(seq).code(), Code::kInvalidArgument);
  EXPECT_FALSE(manager_->plan_step(std::vector<StepRequest>{{seq, 1}}).ok());
  EXPECT_EQ(broken(*manager_), "");

  const auto back = manager_->resume(seq);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->tokens, 64u);
  EXPECT_EQ(manager_->token_count(seq), 64u);
  ASSERT_TRUE(manager_->allocate(seq, 6).ok());
  ASSERT_OK(manager_->commit(seq, std::span(tokens).subspan(64)));
  EXPECT_EQ(manager_->block_keys(seq), manager_->compute_keys(tokens));

  // A second time, with everything evicted meanwhile.
  ASSERT_OK(manager_->preempt(seq));
  const SeqId other = prompt(*manager_, distinct(160, 9000));
  ASSERT_OK(manager_->free(other));
  EXPECT_EQ(manager_->resume(seq)->tokens, 0u);
  ASSERT_OK(manager_->free(seq));
}

TEST_F(AdmissionTest, AResumedSequenceMayHaveAllOfItsWholeBlocks) {
  const SeqId seq = prompt(*manager_, distinct(64, 0));
  ASSERT_OK(manager_->preempt(seq));
  EXPECT_EQ(manager_->resume(seq)->tokens, 64u) << "its last token was computed; none is needed for logits";
  EXPECT_FALSE(manager_->resume(seq).ok()) << "it is not preempted any more";
}

TEST_F(AdmissionTest, FreeingAPreemptedSequenceIsFine) {
  const SeqId seq = prompt(*manager_, distinct(64, 0));
  ASSERT_OK(manager_->preempt(seq));
  ASSERT_OK(manager_->free(seq));
  EXPECT_EQ(manager_->stats().sequences, 0u);
}

Config elastic(std::uint32_t slots, std::uint32_t most) {
  Config config = bookkeeping(slots);
  config.pool.max_budget_bytes = most * small_model().block_bytes();
  return config;
}
std::uint64_t budget(std::uint32_t slots) { return slots * small_model().block_bytes(); }

Config elastic_with_bytes() {
  Config config;
  config.device = "cpu";
  config.threads = 1;
  config.pool.budget_bytes = 6u << 20;
  config.pool.max_budget_bytes = 16u << 20;
  config.pool.max_step_tokens = 128;
  return config;
}

TEST(Resize, NeedsAPoolThatWasMadeForIt) {
  const auto manager = make_manager(bookkeeping(11));
  const auto status = manager->resize_pool(budget(20)).status();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("pool.max_budget"), std::string::npos);
}

TEST(Resize, GrowsAndShrinksWithinItsLimits) {
  const auto manager = make_manager(elastic(16, 64));
  EXPECT_EQ(manager->stats().slots_total, 16u);
  const auto grown = manager->resize_pool(budget(40));
  ASSERT_TRUE(grown.ok()) << grown.status().message();
  EXPECT_EQ(grown->slots, 40u);
  EXPECT_EQ(manager->stats().slots_free, 40u);
  EXPECT_EQ(manager->resize_pool(budget(65)).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(manager->resize_pool(budget(1)).status().code(), Code::kInvalidArgument);
  const SeqId seq = prompt(*manager, distinct(30 * 16, 0));
  EXPECT_EQ(manager->resize_pool(budget(20)).status().code(), Code::kNoSpace) << "thirty blocks are live";
  EXPECT_EQ(manager->stats().slots_total, 40u) << "and nothing has changed";
  EXPECT_EQ(broken(*manager), "");
  ASSERT_OK(manager->free(seq));
  const auto shrunk = manager->resize_pool(budget(10));
  ASSERT_TRUE(shrunk.ok());
  EXPECT_EQ(shrunk->slots, 10u);
  EXPECT_EQ(manager->stats().slots_total, 10u);
  EXPECT_EQ(manager->match_prefix(joined(distinct(30 * 16, 0), {1})).tokens, 160u) << "the prefix outlives its suffix";
  EXPECT_EQ(shrunk->evicted, 20u);
  EXPECT_EQ(broken(*manager), "");
}

TEST(Resize, MovesWhatLiveSequencesHold) {
  const auto manager = make_manager(elastic(16, 32));
  const SeqId gone = prompt(*manager, distinct(12 * 16, 0));
  const SeqId stays = prompt(*manager, distinct(4 * 16, 9000));
  ASSERT_OK(manager->free(gone));
  const Slots before = table(*manager, stays);
  const auto shrunk = manager->resize_pool(budget(6));
  ASSERT_TRUE(shrunk.ok()) << shrunk.status().message();
  const Slots after = table(*manager, stays);
  for (const SlotMove& move : shrunk->moved) {
    EXPECT_EQ(std::count(after.begin(), after.end(), index(move.from)), 0);
  }
  EXPECT_EQ(manager->match_prefix(joined(distinct(4 * 16, 9000), {1})).tokens, 64u);
  EXPECT_EQ(broken(*manager), "");
  decode(*manager, stays, distinct(20, 70'000));
  ASSERT_OK(manager->free(stays));
}

// With bytes: what a sequence attends is the same before and after its blocks have moved, and memory follows the
// budget.
TEST(Resize, BytesMoveWithTheirBlocks) {
  Config config = elastic_with_bytes();
  config.host.budget_bytes = 16u << 20;
  config.mover.worker = false;
  const auto manager = make_manager(config);
  ToyEngine engine(*manager, 2);
  const Tokens tokens = distinct(128, 0);
  const auto extend = [&](SeqId seq, const Tokens& all, std::uint32_t from, std::uint32_t count) {
    EXPECT_TRUE(manager->allocate(seq, count).ok());
    EXPECT_OK(engine.append(seq, all, from, count));
    EXPECT_OK(manager->commit(seq, std::span(all).subspan(from, count)));
  };
  std::vector<SeqId> fillers;
  const std::uint64_t pool_bytes = manager->stats().pool_bytes;
  // Its blocks lie all over the pool, others between them.
  const SeqId seq = manager->begin(tokens)->seq;
  for (std::uint32_t i = 0; i < 8; ++i) {
    extend(seq, tokens, 16 * i, 16);
    const Tokens filler = distinct(128, static_cast<TokenId>(5000 + 1000 * i));
    fillers.push_back(manager->begin(filler)->seq);
    extend(fillers.back(), filler, 0, 128);
  }
  const auto before = engine.attend(seq, tokens, 100, 28);
  ASSERT_TRUE(before.ok());
  for (const SeqId other : fillers) ASSERT_OK(manager->free(other));
  manager->pump();
  std::size_t moved = 0;
  for (const std::uint64_t size : {3u << 20, 16u << 20, 2u << 20, 9u << 20, 2u << 20}) {
    const auto resized = manager->resize_pool(size);
    ASSERT_TRUE(resized.ok()) << resized.status().message();
    EXPECT_LE(manager->ledger().spent(Budget::kDevice), size);
    EXPECT_EQ(manager->ledger().limit(Budget::kDevice), size);
    const auto after = engine.attend(seq, tokens, 100, 28);
    ASSERT_TRUE(after.ok());
    EXPECT_EQ(*before, *after) << "after " << size;
    moved += resized->moved.size();
    EXPECT_EQ(broken(*manager), "");
  }
  EXPECT_GT(moved, 0u);
  EXPECT_LT(manager->stats().pool_bytes, pool_bytes);
  ASSERT_OK(manager->free(seq));
}

// Memory that is refused for the second of several chunks leaves the pool as it was.
TEST(Resize, AGrowthThatIsRefusedChangesNothing) {
  const auto manager = make_manager(elastic_with_bytes());
  const Stats before = manager->stats();
  ManagerTestPeer::ledger(*manager).fail_charge(2);
  const auto refused = manager->resize_pool(16u << 20);
  EXPECT_EQ(refused.status().code(), Code::kNoSpace);
  EXPECT_NE(refused.status().message().find("stays as it was"), std::string::npos) << refused.status().message();
  EXPECT_EQ(manager->stats().slots_total, before.slots_total);
  EXPECT_EQ(manager->stats().pool_bytes, before.pool_bytes);
  EXPECT_EQ(broken(*manager), "");
  ASSERT_TRUE(manager->resize_pool(16u << 20).ok()) << "and later it goes";
  EXPECT_GT(manager->stats().slots_total, before.slots_total);
  EXPECT_EQ(broken(*manager), "");
}

class ResizeRandom : public testing::TestWithParam<int> {};

TEST_P(ResizeRandom, StaysSoundWhateverHappensBetween) {
  std::mt19937 random(static_cast<unsigned>(GetParam()));
  const auto below = [&](std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); };
  const auto manager = make_manager(elastic(40, 120));
  std::map<std::uint64_t, std::pair<Tokens, bool>> live;  // tokens, preempted
  std::uint32_t resized = 0, refused = 0;
  for (int step = 0; step < 500; ++step) {
    const std::uint32_t what = below(12);
    if (live.empty() || (what < 3 && live.size() < 8)) {
      Tokens tokens;
      for (std::uint32_t i = 0, n = 1 + below(8); i < n; ++i)
        tokens = joined(tokens, distinct(kBlockTokens, static_cast<TokenId>(100 * below(2))));
      tokens.push_back(7);
      BeginOptions options = whole(static_cast<Admission>(below(3)), below(200));
      const auto begun = manager->begin(tokens, options);
      if (!begun.ok()) {
        ASSERT_TRUE(begun.status().code() == Code::kUnavailable || begun.status().code() == Code::kNoSpace);
        continue;
      }
      const std::uint32_t hit = begun->match.tokens;
      live[index(begun->seq)] = {first_of(tokens, hit), false};
      const auto allocated = manager->allocate(begun->seq, static_cast<std::uint32_t>(tokens.size()) - hit);
      if (options.admission != Admission::kAlways) {
        ASSERT_TRUE(allocated.ok()) << "it was let in because it fits: " << allocated.status().message();
      }
      if (!allocated.ok()) continue;
      ASSERT_OK(manager->commit(begun->seq, std::span(tokens).subspan(hit)));
      live[index(begun->seq)].first = tokens;
    } else {
      const auto at = std::next(live.begin(), below(static_cast<std::uint32_t>(live.size())));
      auto& [tokens, preempted] = at->second;
      const SeqId seq{at->first};
      if (what < 5) {
        const Tokens more = distinct(1 + below(30), 3000);
        if (!preempted && manager->allocate(seq, static_cast<std::uint32_t>(more.size())).ok()) {
          ASSERT_OK(manager->commit(seq, more));
          tokens = joined(tokens, more);
        }
      } else if (what < 7) {
        if (preempted) {
          const auto back = manager->resume(seq);
          ASSERT_TRUE(back.ok());
          ASSERT_LE(back->tokens, tokens.size());
          tokens = first_of(tokens, back->tokens);
        } else {
          ASSERT_OK(manager->preempt(seq));
        }
        preempted = !preempted;
      } else if (what < 9) {
        ASSERT_OK(manager->free(seq));
        live.erase(at);
      } else {
        const std::uint64_t slots_before = manager->stats().slots_total;
        const auto done = manager->resize_pool(budget(5 + below(115)));
        ++(done.ok() ? resized : refused);
        if (!done.ok()) {
          ASSERT_EQ(done.status().code(), Code::kNoSpace) << done.status().message();
          ASSERT_EQ(manager->stats().slots_total, slots_before);
        }
      }
    }
    ASSERT_EQ(broken(*manager), "") << "step " << step;
  }
  EXPECT_GT(resized, 10u);
  EXPECT_GT(refused, 0u) << "no shrink was ever too far";
  for (const auto& [number, held] : live) ASSERT_OK(manager->free(SeqId{number}));
  EXPECT_EQ(manager->stats().slots_reserved, 0u);
  EXPECT_OK(manager->reset());
  EXPECT_EQ(manager->stats().slots_free, manager->stats().slots_total);
}

INSTANTIATE_TEST_SUITE_P(Seeds, ResizeRandom, testing::Range(0, 8));

}  // namespace
}  // namespace firn::test
