// What is kept longer than its last use, by whom and until when; whose it is; and what a manager tells about it. Time
// is a number that the test sets.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "tests/core/manager/fixture.h"
#include "tests/core/manager/test_peer.h"

namespace firn::test {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;

// A consumer of events, in the plainest words.
struct Consumer {
  std::map<std::pair<Key, std::uint32_t>, TierSet> has;
  std::uint64_t next = 0;
  std::uint64_t applied = 0;
  bool dense = true;

  static std::pair<Key, std::uint32_t> name(const EventBlock& block) { return {block.key, index(block.page_set)}; }
  void resync(const EventSnapshot& snapshot) {
    has.clear();
    for (const EventBlock& block : snapshot.blocks) has[name(block)] = block.tiers;
    next = snapshot.sequence;
  }
  void apply(const EventBatch& batch) {
    for (const Event& event : batch.events) {
      if (dense) {
        EXPECT_EQ(event.sequence, next + 1) << "numbers count up by one";
      } else {
        EXPECT_GT(event.sequence, next) << "a namespace's own may jump when it had nothing";
      }
      next = event.sequence;
      ++applied;
      const auto before = has.find(name(event.block));
      switch (event.kind) {
        case EventKind::kStored:
          EXPECT_EQ(before, has.end());
          EXPECT_NE(event.block.tiers, 0);
          has[name(event.block)] = event.block.tiers;
          break;
        case EventKind::kMoved:
          ASSERT_NE(before, has.end());
          EXPECT_EQ(before->second, event.tiers_before);
          EXPECT_NE(event.block.tiers, event.tiers_before);
          before->second = event.block.tiers;
          break;
        case EventKind::kRemoved:
          ASSERT_NE(before, has.end());
          EXPECT_EQ(event.block.tiers, 0);
          has.erase(before);
          break;
        case EventKind::kCleared:
          has.clear();
          break;
      }
    }
  }
};

class Keep : public testing::Test {
 protected:
  void SetUp() override { make(11); }
  void TearDown() override {
    if (!manager_) return;
    EXPECT_EQ(broken(*manager_), "");
    const Stats stats = manager_->stats();
    EXPECT_EQ(stats.prefix_cache_queries, total(stats)) << "every queried block is a hit or has one reason";
  }
  void make(std::uint32_t slots) {
    Config config = bookkeeping(slots);
    config.events.capacity = 4096;
    config.retention.pin_budget_bytes = 5 * small_model().block_bytes();
    make(config);
  }
  void make(const Config& config) {
    manager_ = make_manager(config, small_model(), {.clock = [this] { return now_; }});
  }
  Manager& m() { return *manager_; }
  // A prompt of whole blocks, freed: cached.
  Tokens cached(TokenId first, std::uint32_t blocks, std::string_view name = {}) {
    const Tokens tokens = distinct(blocks * kBlockTokens, first);
    EXPECT_OK(m().free(prompt(m(), tokens, {.name_space = name})));
    return tokens;
  }
  std::uint32_t found(const Tokens& tokens, std::string_view name = {}) {
    return m().match_prefix(joined(tokens, {1}), name).tokens / kBlockTokens;
  }
  // Takes and gives back so many slots, evicting what has to go.
  Status press(std::uint32_t blocks, TokenId first, std::string_view name = {}) {
    const Tokens tokens = distinct(blocks * kBlockTokens - 1, first);
    const auto begun = m().begin(tokens, {.name_space = name, .read_cache = false});
    if (!begun.ok()) return begun.status();
    const Status status = m().allocate(begun->seq, blocks * kBlockTokens - 1).status();
    EXPECT_OK(m().free(begun->seq));
    return status;
  }

  Instant now_{kSecond};
  std::unique_ptr<Manager> manager_;
};

// --- events ---

TEST_F(Keep, AStoredEventABlockWithItsParentThenRemovedOnesThenOneCleared) {
  const Tokens tokens = cached(0, 3);
  const std::vector<Key> keys = m().compute_keys(tokens);
  auto batch = m().take_events(0);
  ASSERT_OK(batch.status());
  ASSERT_EQ(batch->events.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) {
    const Event& event = batch->events[i];
    EXPECT_EQ(event.sequence, i + 1);
    EXPECT_EQ(event.kind, EventKind::kStored);
    EXPECT_EQ(event.block.key, keys[i]);
    EXPECT_EQ(event.block.parent, i == 0 ? Key{} : keys[i - 1]);
    EXPECT_EQ(event.block.position, i * kBlockTokens);
    EXPECT_EQ(event.block.tokens, kBlockTokens);
    EXPECT_EQ(event.block.tiers, kOnDevice);
    EXPECT_EQ(event.block.name_space, m().namespace_tag({}));
  }
  EXPECT_TRUE(m().take_events(batch->next)->events.empty()) << "taken is taken";
  EXPECT_EQ(m().take_events(0, 2)->events.size(), 2u) << "and others may take them too";
  ASSERT_OK(press(10, 500));  // every slot is used again
  const auto removed = m().take_events(batch->next);
  ASSERT_EQ(removed->events.size(), 3u);
  for (const Event& event : removed->events) EXPECT_EQ(event.kind, EventKind::kRemoved);
  EXPECT_EQ(removed->events[0].block.key, keys[2]) << "the tail goes first";
  cached(900, 2);
  ASSERT_OK(m().reset());
  const auto last = m().take_events(removed->next);
  ASSERT_EQ(last->events.size(), 3u);
  EXPECT_EQ(last->events[2].kind, EventKind::kCleared);
  EXPECT_TRUE(m().event_snapshot()->blocks.empty());
}

TEST_F(Keep, DuplicatesAreOneStoredAndOneRemoved) {
  const Tokens tokens = distinct(16, 0);
  const SeqId first = prompt(m(), tokens);
  const SeqId second = prompt(m(), tokens, {.name_space = {}, .read_cache = false});
  EXPECT_EQ(m().take_events(0)->events.size(), 1u) << "the key could be found already";
  ASSERT_OK(m().rewind(first, 0));
  EXPECT_EQ(m().take_events(0)->events.size(), 1u) << "and still can";
  ASSERT_OK(m().rewind(second, 0));
  EXPECT_EQ(m().take_events(1)->events.at(0).kind, EventKind::kRemoved);
}

TEST_F(Keep, WhoComesTooLateIsToldOfTheGapAndResyncs) {
  Config config = bookkeeping(33);
  config.events.capacity = 16;
  make(config);
  cached(0, 30);
  const auto late = m().take_events(0);
  EXPECT_TRUE(late->gap);
  EXPECT_TRUE(late->events.empty());
  EXPECT_EQ(m().stats().events, 30u);
  EXPECT_EQ(m().stats().events_lost, 14u);
  EXPECT_FALSE(m().take_events(14)->gap);
  EXPECT_EQ(m().take_events(14)->events.size(), 16u);
  EXPECT_TRUE(m().take_events(31)->gap) << "a number from another life";
  Consumer consumer;
  consumer.resync(*m().event_snapshot());
  EXPECT_EQ(consumer.has.size(), 30u);
  EXPECT_EQ(consumer.next, 30u);
  EXPECT_FALSE(m().take_events(consumer.next)->gap);
  const auto off = make_manager(bookkeeping(11));
  EXPECT_EQ(off->take_events(0).status().code(), Code::kUnavailable);
}

TEST_F(Keep, ANamespacesEventsAreItsOwnByNumbersOfTheirOwn) {
  cached(0, 2, "a");
  const std::uint64_t a = m().event_snapshot("a")->sequence;
  cached(100, 3, "b");
  EXPECT_EQ(m().event_snapshot("a")->sequence, a) << "nobody can count what others do";
  EXPECT_EQ(m().event_snapshot("a")->blocks.size(), 2u);
  EXPECT_TRUE(m().take_events(a, 99, "a")->events.empty());
  const auto events = m().take_events(0, 99, "b");
  ASSERT_EQ(events->events.size(), 3u);
  for (const Event& event : events->events) EXPECT_EQ(event.block.name_space, m().namespace_tag("b"));
  EXPECT_EQ(events->events[1].sequence, events->events[0].sequence + 1);
  // A namespace that ends and comes back goes on counting upwards.
  ASSERT_OK(press(10, 900));
  EXPECT_EQ(m().stats().namespaces, 1u);
  const auto gone = m().take_events(a, 99, "a");
  EXPECT_EQ(gone->events.size(), 2u);
  now_.ns += kSecond;
  cached(0, 2, "a");
  const auto back = m().take_events(gone->next, 99, "a");
  EXPECT_TRUE(back->gap || back->events.size() == 2u);
  EXPECT_GT(m().event_snapshot("a")->sequence, gone->next);
}

// Random operations with a host tier are in keep_bytes_test.cpp; these are with namespaces, pins and priorities.
TEST_F(Keep, SnapshotAndEventsAreTheTruthUnderRandomOperations) {
  for (unsigned seed = 1; seed <= 10; ++seed) {
    std::mt19937 random(seed);
    make(24);
    const auto pick = [&](std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); };
    std::vector<SeqId> live;
    std::vector<LeaseId> leases;
    Consumer global;
    std::map<std::string, Consumer> scoped;
    const char* names[] = {"", "a", "b"};
    for (int step = 0; step < 1500 && !HasFailure(); ++step) {
      const std::uint32_t what = pick(100);
      now_.ns += pick(3) * kSecond;
      const std::string name = names[pick(3)];
      const Tokens tokens = distinct(16 * (1 + pick(5)) + pick(16), static_cast<TokenId>(pick(6) * 1000));
      if (what < 35 && live.size() < 6) {
        const auto begun = m().begin(tokens, {.name_space = name, .read_cache = pick(8) != 0});
        ASSERT_OK(begun.status());
        const std::uint32_t rest = static_cast<std::uint32_t>(tokens.size()) - begun->match.tokens;
        if (m().allocate(begun->seq, rest).ok()) {
          ASSERT_OK(m().commit(begun->seq, std::span(tokens).subspan(begun->match.tokens)));
        }
        live.push_back(begun->seq);
      } else if (what < 60 && !live.empty()) {
        const std::size_t which = pick(static_cast<std::uint32_t>(live.size()));
        if (pick(4) == 0) {
          ASSERT_OK(m().rewind(live[which], m().token_count(live[which]) / 2));
        }
        ASSERT_OK(m().free(live[which]));
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(which));
      } else if (what < 70) {
        m().pin(m().compute_keys(tokens, name), (1 + pick(9)) * kSecond).status().ok();
      } else if (what < 75) {
        m().unpin(m().compute_keys(tokens, name));
      } else if (what < 82 && !live.empty()) {
        const RetentionRange range{0, ~0u, static_cast<std::uint8_t>(pick(3) * 30), pick(5) * kSecond};
        ASSERT_OK(m().set_retention(live[pick(static_cast<std::uint32_t>(live.size()))], std::span(&range, 1)));
      } else if (what < 88) {
        const auto lease = m().acquire_lease("somebody", m().compute_keys(tokens, name), (1 + pick(9)) * kSecond);
        if (lease.ok()) leases.push_back(*lease);
      } else if (what < 92 && !leases.empty()) {
        m().release_lease(leases.back());
        leases.pop_back();
      } else if (what < 95) {
        const std::vector<Key> keys = m().compute_keys(tokens, name);
        m().set_family(keys).ok();
      } else if (what == 99 && pick(4) == 0) {
        for (const SeqId seq : live) ASSERT_OK(m().free(seq));
        live.clear();
        m().reset().ok();
      }
      if (pick(5) == 0) {
        const auto batch = m().take_events(global.next, 7);
        batch->gap ? global.resync(*m().event_snapshot()) : global.apply(*batch);
      }
      if (step % 25 == 0) {
        ASSERT_EQ(broken(m()), "") << "seed " << seed << ", step " << step;
        while (true) {
          const auto batch = m().take_events(global.next);
          ASSERT_FALSE(batch->gap);
          if (batch->events.empty()) break;
          global.apply(*batch);
        }
        Consumer truth;
        truth.resync(*m().event_snapshot());
        EXPECT_EQ(global.has, truth.has) << "seed " << seed << ", step " << step;
        for (const char* one : names) {
          Consumer& consumer = scoped[one];
          consumer.dense = false;
          const auto batch = m().take_events(consumer.next, ~std::size_t{0}, one);
          batch->gap ? consumer.resync(*m().event_snapshot(one)) : consumer.apply(*batch);
          truth.resync(*m().event_snapshot(one));
          EXPECT_EQ(consumer.has, truth.has) << one << ", seed " << seed << ", step " << step;
        }
      }
    }
    EXPECT_GT(global.applied, 100u);
  }
}

// --- explain ---

TEST_F(Keep, ExplainSaysForEveryBlockWhatBecomesOfIt) {
  const Tokens tokens = joined(cached(0, 3), distinct(20, 700));
  const Explanation why = m().explain(tokens);
  ASSERT_EQ(why.blocks.size(), 5u);
  EXPECT_EQ(why.first_miss, 3u);
  const std::vector<Key> keys = m().compute_keys(tokens);
  for (std::size_t i = 0; i < keys.size(); ++i) EXPECT_EQ(why.blocks[i].key, keys[i]);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(why.blocks[i].hit());
    EXPECT_EQ(why.blocks[i].tiers, kOnDevice);
  }
  EXPECT_EQ(why.blocks[3].reason, MissReason::kNeverStored);
  EXPECT_EQ(why.blocks[4].reason, MissReason::kPartialTail);
  EXPECT_NE(why.text.find("block 3 at token 48"), std::string::npos) << why.text;
  EXPECT_NE(why.text.find("never_stored"), std::string::npos) << why.text;
  EXPECT_EQ(m().stats().prefix_cache_queries, 3u) << "explaining counts nothing";
  EXPECT_EQ(m().explain({}).blocks.size(), 0u);
}

TEST_F(Keep, EveryReasonThatBookkeepingCanGiveIsExplainedAsBeginCountsIt) {
  const auto reason = [&](const Tokens& tokens, const BeginOptions& options = {}) {
    const Explanation why = m().explain(tokens, options);
    const Stats before = m().stats();
    const auto begun = m().begin(tokens, options);
    EXPECT_OK(begun.status());
    EXPECT_EQ(begun->match.tokens / kBlockTokens, why.first_miss);
    Stats after = m().stats();
    for (const BlockVerdict& verdict : why.blocks)
      --(verdict.hit() ? after.prefix_cache_hits : after.misses[static_cast<std::size_t>(verdict.reason)]);
    EXPECT_EQ(after.prefix_cache_hits, before.prefix_cache_hits);
    EXPECT_EQ(after.misses, before.misses);
    EXPECT_OK(m().free(begun->seq));
    return why.blocks[why.first_miss].reason;
  };
  const Tokens tokens = joined(distinct(48, 0), {1});
  EXPECT_EQ(reason(tokens), MissReason::kNeverStored);
  EXPECT_OK(m().free(prompt(m(), tokens)));
  EXPECT_EQ(reason(tokens), MissReason::kPartialTail);
  EXPECT_EQ(reason(tokens, {.name_space = {}, .read_cache = false}), MissReason::kNotRead);
  EXPECT_EQ(reason(tokens, {.name_space = "tenant"}), MissReason::kNamespace) << "it is in the open, and was not asked";
  EXPECT_EQ(reason(tokens, {.name_space = "tenant", .shared_scope = ""}), MissReason::kPartialTail);
  BeginOptions adapted;
  adapted.extras.adapter = "lora";
  EXPECT_EQ(reason(tokens, adapted), MissReason::kIdentity) << "it is here, of the model as it is";
  adapted.extras = {.adapter = {}, .media = {{20, 8, "cat"}}};
  EXPECT_EQ(reason(tokens, adapted), MissReason::kIdentity);
  EXPECT_EQ(m().match_prefix(tokens, adapted).tokens, 16u) << "up to the picture";
  adapted.name_space = "tenant";
  EXPECT_EQ(reason(tokens, adapted), MissReason::kNamespace) << "its first block has no part of the picture";
  adapted.extras.adapter = "lora";
  EXPECT_EQ(reason(tokens, adapted), MissReason::kNeverStored) << "what others have is not told";
  ASSERT_OK(press(10, 9000));
  EXPECT_EQ(reason(tokens), MissReason::kEvictedDevice);
  EXPECT_EQ(m().explain(tokens).blocks[1].reason, MissReason::kAfterMiss);
  adapted.name_space = {};
  EXPECT_EQ(reason(tokens, adapted), MissReason::kNeverStored) << "and not of the model as it is any more";
}

// --- retention ---

TEST_F(Keep, TheLowestPriorityGoesFirstAndThePolicysOrderHoldsWithinOne) {
  const auto keep = [&](TokenId first, std::uint8_t priority) {
    const Tokens tokens = distinct(32, first);
    const SeqId seq = prompt(m(), tokens);
    const RetentionRange range{.priority = priority};
    EXPECT_OK(m().set_retention(seq, std::span(&range, 1)));
    EXPECT_OK(m().free(seq));
    return tokens;
  };
  const Tokens high = keep(0, 80), low = keep(100, 10), none = keep(200, kDefaultPriority), low_too = keep(300, 10);
  ASSERT_OK(press(3, 900));  // two are free
  EXPECT_EQ(found(low), 1u) << "its tail went first";
  ASSERT_OK(press(5, 900));
  EXPECT_EQ(found(low), 0u);
  EXPECT_EQ(found(low_too), 1u);
  ASSERT_OK(press(8, 900));
  EXPECT_EQ(found(low_too), 0u);
  EXPECT_EQ(found(none), 0u);
  EXPECT_EQ(found(high), 2u);
  ASSERT_OK(press(9, 900));
  EXPECT_EQ(found(high), 1u) << "a priority orders, it does not hold";
}

TEST_F(Keep, APriorityEndsToTheNanosecondAndFallsBackTo35) {
  const Tokens system = distinct(16, 0);
  const SeqId seq = prompt(m(), system);
  const RetentionRange range{.priority = 90, .duration_ns = 10 * kSecond};
  ASSERT_OK(m().set_retention(seq, std::span(&range, 1)));
  ASSERT_OK(m().free(seq));
  now_.ns += 10 * kSecond - 1;
  const Tokens other = cached(100, 1);
  ASSERT_OK(press(9, 900));
  EXPECT_EQ(found(system), 1u);
  EXPECT_EQ(found(other), 0u);
  now_.ns += 1;
  const Tokens later = cached(100, 1);
  ASSERT_OK(press(9, 900));
  EXPECT_EQ(m().stats().priorities_expired, 1u);
  EXPECT_EQ(found(system) + found(later), 1u);
}

TEST_F(Keep, RangesHoldForBlocksThatComeLaterAndTheLastOneCounts) {
  const SeqId seq = prompt(m(), distinct(16, 0));
  const RetentionRange ranges[] = {{.priority = 20}, {.first = 16, .end = 32, .priority = 70}};
  ASSERT_OK(m().set_retention(seq, ranges));
  decode(m(), seq, distinct(32, 16));
  ASSERT_OK(m().free(seq));
  const Tokens other = cached(500, 1);
  ASSERT_OK(press(8, 900));  // 20 before 35 before 70
  EXPECT_EQ(found(other), 1u);
  EXPECT_EQ(found(distinct(48, 0)), 0u);
  const RetentionRange wrong{.first = 5, .end = 5};
  EXPECT_EQ(m().set_retention(seq, {}).code(), Code::kInvalidArgument) << "freed";
  const SeqId again = prompt(m(), distinct(16, 0));
  EXPECT_EQ(m().set_retention(again, std::span(&wrong, 1)).code(), Code::kInvalidArgument);
}

TEST_F(Keep, PinnedBlocksStayUntilTheirTimeAndTheCapHolds) {
  const Tokens tokens = cached(0, 3);
  const std::vector<Key> keys = m().compute_keys(tokens);
  auto report = m().pin(keys, 10 * kSecond);
  ASSERT_OK(report.status());
  EXPECT_EQ(report->pinned, 3u);
  EXPECT_EQ(report->absent, 0u);
  EXPECT_EQ(report->pinned_bytes, 3 * m().stats().block_bytes);
  EXPECT_EQ(m().stats().pinned_blocks, 3u);
  for (int round = 0; round < 3; ++round) ASSERT_OK(press(7, 900 + round));
  EXPECT_EQ(found(tokens), 3u);
  EXPECT_EQ(press(8, 900).code(), Code::kNoSpace) << "and there is no eighth slot";
  EXPECT_EQ(*m().empty_pool(0), 0u);
  const Tokens more = cached(200, 3);
  const auto refused = m().pin(m().compute_keys(more), kSecond);
  EXPECT_EQ(refused.status().code(), Code::kNoSpace) << "the cap is five blocks";
  EXPECT_EQ(m().stats().pinned_blocks, 3u) << "all or nothing";
  EXPECT_EQ(m().pin(m().compute_keys(distinct(16, 77)), kSecond)->absent, 1u);
  EXPECT_EQ(m().pin(keys, 0).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(m().pin(keys, kMaxPinNs + 1).status().code(), Code::kInvalidArgument);
  now_.ns += 10 * kSecond - 1;
  EXPECT_EQ(press(8, 900).code(), Code::kNoSpace);
  now_.ns += 1;
  EXPECT_OK(press(8, 900));
  EXPECT_LT(found(tokens), 3u);
  EXPECT_EQ(m().stats().pins_expired, 3u);
  EXPECT_EQ(m().stats().pinned_blocks, 0u);
}

TEST_F(Keep, ASecondPinExtendsAndUnpinEndsIt) {
  const Tokens tokens = cached(0, 1);
  const std::vector<Key> keys = m().compute_keys(tokens);
  ASSERT_OK(m().pin(keys, 10 * kSecond).status());
  ASSERT_OK(m().pin(keys, 20 * kSecond).status());
  ASSERT_OK(m().pin(keys, 5 * kSecond).status());
  now_.ns += 19 * kSecond;
  ASSERT_OK(press(9, 900));
  EXPECT_EQ(found(tokens), 1u);
  EXPECT_EQ(m().unpin(keys), 1u);
  EXPECT_EQ(m().unpin(keys), 0u);
  ASSERT_OK(press(10, 900));
  EXPECT_EQ(found(tokens), 0u);
}

TEST_F(Keep, AnAllocationIsRefusedCleanlyWhenEverythingIsPinned) {
  make(6);
  const Tokens tokens = cached(0, 5);
  ASSERT_OK(m().pin(m().compute_keys(tokens), kSecond).status());
  const SeqId seq = m().begin(distinct(1, 500))->seq;
  const auto refused = m().allocate(seq, 1);
  EXPECT_EQ(refused.status().code(), Code::kNoSpace);
  EXPECT_NE(refused.status().message().find("5 blocks are pinned"), std::string::npos) << refused.status().message();
  const StepRequest request{seq, 1};
  EXPECT_EQ(m().plan_step(std::span(&request, 1))->chunk_limit, 0u);
  EXPECT_EQ(m().wait_room(seq, 1).code(), Code::kNoSpace);
  EXPECT_EQ(found(tokens), 5u);
  now_.ns += kSecond;
  EXPECT_EQ(m().plan_step(std::span(&request, 1))->chunk_limit, 1u);
  EXPECT_OK(m().allocate(seq, 1).status());
}

TEST_F(Keep, ALeaseNamesItsOwnerHoldsAllOrNothingAndEndsAtItsDeadline) {
  const Tokens tokens = cached(0, 2);
  const std::vector<Key> keys = m().compute_keys(tokens);
  const std::vector<Key> longer = m().compute_keys(distinct(64, 0));
  const auto missing = m().acquire_lease("router", longer, kSecond);
  EXPECT_EQ(missing.status().code(), Code::kUnavailable);
  EXPECT_NE(missing.status().message().find("first 2 are"), std::string::npos) << missing.status().message();
  const auto lease = m().acquire_lease("router", keys, 10 * kSecond);
  ASSERT_OK(lease.status());
  const auto second = m().acquire_lease("prefetcher", std::span(keys).first(1), 60 * kSecond);
  ASSERT_OK(second.status());
  const std::vector<LeaseInfo> list = m().leases();
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].owner, "router");
  EXPECT_EQ(list[0].blocks, 2u);
  EXPECT_EQ(list[0].deadline.ns, now_.ns + 10 * kSecond);
  EXPECT_EQ(list[0].bytes, 2 * m().stats().block_bytes);
  EXPECT_EQ(m().stats().pinned_blocks, 2u) << "each block once";
  EXPECT_EQ(m().reset().code(), Code::kUnavailable);
  ASSERT_OK(press(8, 900));
  EXPECT_EQ(found(tokens), 2u);
  now_.ns += 5 * kSecond;
  ASSERT_OK(m().renew_lease(*lease, 10 * kSecond));
  now_.ns += 10 * kSecond;
  EXPECT_EQ(m().leases().size(), 1u) << "to the nanosecond";
  EXPECT_EQ(m().renew_lease(*lease, kSecond).code(), Code::kUnavailable);
  EXPECT_FALSE(m().release_lease(*lease));
  ASSERT_OK(press(9, 900));
  EXPECT_EQ(found(tokens), 1u) << "the prefetcher still has the first";
  EXPECT_TRUE(m().release_lease(*second));
  EXPECT_EQ(m().stats().leases, 0u);
  EXPECT_EQ(m().stats().leases_expired, 1u);
  ASSERT_OK(press(10, 900));
  EXPECT_EQ(found(tokens), 0u);
  EXPECT_OK(m().reset());
}

TEST_F(Keep, ALeasedBlockThatIsRewoundLeavesItsLease) {
  const SeqId seq = prompt(m(), distinct(32, 0));
  const auto lease = m().acquire_lease("reader", m().block_keys(seq), kSecond);
  ASSERT_OK(lease.status());
  ASSERT_OK(m().rewind(seq, 16));
  EXPECT_EQ(m().leases()[0].blocks, 1u);
  EXPECT_EQ(broken(m()), "");
  EXPECT_TRUE(m().release_lease(*lease));
}

TEST_F(Keep, AFamilyIsEvictedAsOneAndSkippedAsOne) {
  const Tokens one = cached(0, 1), two = cached(100, 1), three = cached(200, 1), other = cached(300, 1);
  std::vector<Key> keys;
  for (const Tokens* tokens : {&one, &two, &three}) keys.push_back(m().compute_keys(*tokens)[0]);
  ASSERT_OK(m().set_family(keys));
  EXPECT_EQ(m().set_family(keys).code(), Code::kInvalidArgument) << "in one already";
  EXPECT_EQ(m().set_family(std::span(keys).first(1)).code(), Code::kInvalidArgument);
  const SeqId reader = prompt(m(), joined(two, {1}));  // holds one of them
  ASSERT_OK(press(6, 900));                            // needs one that may go
  EXPECT_EQ(found(one) + found(three), 2u) << "skipped as one";
  EXPECT_EQ(found(other), 0u);
  EXPECT_EQ(press(7, 900).code(), Code::kNoSpace);
  ASSERT_OK(m().free(reader));
  ASSERT_OK(press(8, 900));  // needs one of them
  EXPECT_EQ(found(one) + found(two) + found(three), 0u) << "evicted as one";
  EXPECT_EQ(m().set_family(keys).code(), Code::kUnavailable) << "not here any more";
}

TEST_F(Keep, WhatRetentionTakesIsChargedAndARefusedChargeChangesNothing) {
  const Tokens tokens = cached(0, 3);
  const std::vector<Key> keys = m().compute_keys(tokens);
  const std::uint64_t before = m().ledger().spent(Account::kMetadata);
  for (std::uint64_t nth = 1; nth <= 3; ++nth) {
    ManagerTestPeer::ledger(m()).fail_charge(nth);
    EXPECT_EQ(m().pin(keys, kSecond).status().code(), Code::kNoSpace);
    EXPECT_EQ(m().stats().pinned_blocks, 0u);
    ManagerTestPeer::ledger(m()).fail_charge(nth);
    EXPECT_EQ(m().acquire_lease("a", keys, kSecond).status().code(), Code::kNoSpace);
    ManagerTestPeer::ledger(m()).fail_charge(nth);
    EXPECT_EQ(m().set_family(keys).code(), Code::kNoSpace);
    EXPECT_EQ(m().ledger().spent(Account::kMetadata), before) << nth;
    EXPECT_EQ(broken(m()), "");
  }
  ASSERT_OK(m().pin(keys, kSecond).status());
  EXPECT_GT(m().ledger().spent(Account::kMetadata), before);
  now_.ns += kSecond;
  EXPECT_OK(press(1, 900));
  EXPECT_EQ(m().ledger().spent(Account::kMetadata), before);
}

// --- namespaces ---

TEST_F(Keep, ASharedScopeIsReadByAllAndWrittenOnlyByWhoSaysSo) {
  const Tokens system = distinct(32, 0);
  const BeginOptions reader{.name_space = "a", .shared_scope = "public"};
  const BeginOptions writer{.name_space = "b", .shared_scope = "public", .shared_tokens = 32, .share = true};
  EXPECT_OK(m().free(prompt(m(), joined(system, distinct(17, 100)), writer)));
  EXPECT_EQ(found(system, "public"), 2u);
  const Tokens mine = joined(system, distinct(17, 500));
  EXPECT_EQ(m().match_prefix(mine, reader).tokens, 32u);
  EXPECT_EQ(m().match_prefix(mine, "a").tokens, 0u) << "who does not ask for the scope does not see it";
  EXPECT_OK(m().free(prompt(m(), mine, reader)));
  EXPECT_EQ(m().match_prefix(mine, reader).tokens, 48u) << "own blocks after the shared ones";
  EXPECT_TRUE(m().explain(mine, reader).blocks[1].shared);
  EXPECT_FALSE(m().explain(mine, reader).blocks[2].shared);
  // What a wrote after the system prompt is a's alone, and so is what b wrote there.
  EXPECT_EQ(m().match_prefix(mine, {.name_space = "b", .shared_scope = "public"}).tokens, 32u);
  EXPECT_EQ(m().match_prefix(mine, "public").tokens, 32u);
  EXPECT_EQ(m().match_prefix(joined(system, distinct(17, 100)), reader).tokens, 32u);
  EXPECT_EQ(m().usage("public").blocks, 2u);
  EXPECT_EQ(m().usage("a").blocks, 1u);
}

TEST_F(Keep, ARewindOutOfTheSharedPartWritesOwnBlocks) {
  const BeginOptions writer{.name_space = "a", .shared_scope = "public", .shared_tokens = 32, .share = true};
  const SeqId seq = prompt(m(), distinct(40, 0), writer);
  ASSERT_OK(m().rewind(seq, 20));
  EXPECT_EQ(broken(m()), "");
  decode(m(), seq, distinct(20, 700));
  EXPECT_EQ(broken(m()), "");
  EXPECT_EQ(m().match_prefix(joined(distinct(20, 0), distinct(13, 700)), "public").tokens, 16u)
      << "what follows the rewind is not public";
  const auto child = m().fork(seq);
  ASSERT_OK(child.status());
  EXPECT_EQ(broken(m()), "");
}

TEST_F(Keep, NeitherOfTwoNamespacesCanTellWhatTheOtherHas) {
  const Tokens secret = distinct(48, 0);
  const auto everything = [&](std::string_view name) {
    std::string text = m().explain(joined(secret, {1}), {.name_space = name}).text;
    text += std::to_string(m().match_prefix(secret, name).tokens) + " ";
    text += std::to_string(m().event_snapshot(name)->blocks.size()) + " ";
    text += std::to_string(m().take_events(0, 99, name)->events.size()) + " ";
    text += std::to_string(m().take_events(0, 99, name)->next) + " ";
    text += std::to_string(m().usage(name).blocks) + std::to_string(m().usage(name).device_bytes);
    text += std::to_string(m().pin(m().compute_keys(secret, name), kSecond)->pinned);
    return text;
  };
  for (const auto& [owner, other] : {std::pair{"a", "b"}, std::pair{"b", "a"}}) {
    make(11);
    const std::string before = everything(other);
    EXPECT_OK(m().free(prompt(m(), secret, {.name_space = owner})));
    EXPECT_EQ(everything(other), before);
    EXPECT_EQ(found(secret, owner), 3u);
    // Their keys have nothing in common either.
    for (const Key& key : m().compute_keys(secret, owner))
      for (const Key& foreign : m().compute_keys(secret, other)) EXPECT_NE(key, foreign);
  }
}

TEST_F(Keep, AFloorIsWhatOthersCannotPushANamespaceBelow) {
  const std::uint64_t block = m().stats().block_bytes;
  ASSERT_OK(m().set_quota("a", {.device_floor = 3 * block}));
  const Tokens mine = cached(0, 5, "a");
  EXPECT_OK(press(7, 900, "b"));
  EXPECT_EQ(found(mine, "a"), 3u);
  EXPECT_EQ(press(8, 900, "b").code(), Code::kNoSpace);
  EXPECT_EQ(found(mine, "a"), 3u);
  EXPECT_OK(press(10, 900, "a")) << "it does not bind its owner";
  EXPECT_EQ(m().set_quota("b", {.device_floor = 8 * block}).code(), Code::kInvalidArgument) << "11 of 10 slots";
  EXPECT_EQ(m().set_quota("b", {.device_floor = 2 * block, .device_ceiling = block}).code(), Code::kInvalidArgument);
}

TEST_F(Keep, ACeilingIsWhatANamespaceCannotExceedWhateverIsFree) {
  const std::uint64_t block = m().stats().block_bytes;
  ASSERT_OK(m().set_quota("a", {.device_ceiling = 4 * block}));
  const Tokens old = cached(0, 3, "a");
  const Tokens others = cached(500, 3, "b");
  const auto begun = m().begin(distinct(80, 300), {.name_space = "a"});
  ASSERT_OK(begun.status());
  const auto refused = m().allocate(begun->seq, 80);
  EXPECT_EQ(refused.status().code(), Code::kNoSpace);
  EXPECT_NE(refused.status().message().find("ceiling"), std::string::npos) << refused.status().message();
  EXPECT_EQ(found(old, "a"), 3u) << "refused whole";
  const StepRequest request{begun->seq, 80};
  EXPECT_EQ(m().plan_step(std::span(&request, 1))->chunk_limit, 64u);
  ASSERT_OK(m().allocate(begun->seq, 64).status());
  EXPECT_EQ(m().usage("a").device_bytes, 4 * block);
  EXPECT_EQ(found(old, "a"), 0u) << "its own cached blocks made room";
  EXPECT_EQ(found(others, "b"), 3u);
  // A new ceiling below what it has: nothing new until it is below.
  ASSERT_OK(m().set_quota("a", {.device_ceiling = 2 * block}));
  EXPECT_EQ(m().allocate(begun->seq, 80).status().code(), Code::kNoSpace);
  ASSERT_OK(m().free(begun->seq));
  EXPECT_OK(press(2, 900, "a"));
  EXPECT_EQ(press(3, 900, "a").code(), Code::kNoSpace);
}

TEST_F(Keep, NamesAreFreedWithTheirLastBlockAndCharged) {
  const std::uint64_t before = m().ledger().spent(Account::kMetadata);
  const std::string name(4000, 'n');
  const SeqId seq = prompt(m(), distinct(20, 0), {.name_space = name});
  EXPECT_GE(m().ledger().spent(Account::kMetadata), before + 4000);
  ASSERT_OK(m().free(seq));
  EXPECT_EQ(m().stats().namespaces, 2u) << "its block is still here";
  ASSERT_OK(press(10, 900));
  EXPECT_EQ(m().stats().namespaces, 1u);
  EXPECT_EQ(m().ledger().spent(Account::kMetadata), before);
  // More of them, one after the other, than there may be at once; and the same number tells old from new.
  for (int i = 0; i < 70'000; ++i) {
    const auto begun = m().begin(distinct(1, 0), {.name_space = std::to_string(i)});
    ASSERT_OK(begun.status());
    ASSERT_OK(m().free(begun->seq));
  }
  EXPECT_EQ(m().stats().namespaces, 1u);
  EXPECT_EQ(m().begin(distinct(1, 0), {.name_space = std::string(4097, 'n')}).status().code(), Code::kInvalidArgument);
  ASSERT_OK(m().set_quota("kept", {.device_ceiling = 1 << 20}));
  ASSERT_OK(press(1, 5));
  EXPECT_EQ(m().stats().namespaces, 2u) << "a quota keeps its name";
  ASSERT_OK(m().set_quota("kept", {}));
  ASSERT_OK(press(1, 5));
  EXPECT_EQ(m().stats().namespaces, 1u);
}

TEST_F(Keep, ADumpSaysWhoHoldsWhatAndNoSecret) {
  const Tokens tokens = cached(0, 2, "tenant-secret");
  ASSERT_OK(m().acquire_lease("router \"7\"", m().compute_keys(tokens, "tenant-secret"), 5 * kSecond).status());
  const std::string text = m().dump();
  EXPECT_EQ(text.find("tenant-secret"), std::string::npos);
  const nlohmann::json all = nlohmann::json::parse(text);
  EXPECT_EQ(all["format"], "firn-dump-1");
  ASSERT_EQ(all["leases"].size(), 1u);
  EXPECT_EQ(all["leases"][0]["owner"], "router \"7\"");
  EXPECT_EQ(all["leases"][0]["left_ns"], 5 * kSecond);
  EXPECT_EQ(all["pinned"]["blocks"], 2);
  EXPECT_TRUE(all["pins"].empty()) << "a lease is no pin";
  EXPECT_TRUE(all["families"].empty());
  EXPECT_EQ(all["namespaces"].size(), 2u);
}

}  // namespace
}  // namespace firn::test
