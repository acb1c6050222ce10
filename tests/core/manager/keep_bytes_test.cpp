// What is kept and told, where there are bytes: a host tier below the pool, frames that go bad, slots that change
// hands.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "firn/thread_pool.h"
#include "tests/core/manager/hand_device.h"
#include "tests/core/manager/test_peer.h"
#include "tests/core/manager/toy_engine.h"

namespace firn::test {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;

ModelSpec toy_model() {
  ModelSpec model = small_model(2, 1, 32);
  model.groups[0].query_heads = 2;
  return model;
}

Config tiered(std::uint32_t blocks) {
  const ModelSpec model = toy_model();
  Config config;
  config.device = "cpu";
  config.threads = 1;
  config.protect.sinks = 0;
  config.protect.recent = 16;
  config.pool.max_step_tokens = 16;
  config.pool.staging_bytes = kSplitTokens * model.groups[0].kv.token_bytes();
  config.pool.budget_bytes = config.pool.staging_bytes + blocks * model.block_bytes() + (20u << 10);
  config.host.budget_bytes = 4u << 20;
  config.host.huge_pages = false;
  config.mover.worker = false;
  config.max_sequences = 8;
  config.max_sequence_tokens = 4096;
  config.events.capacity = 1024;
  return config;
}

class KeepBytes : public testing::Test {
 protected:
  void make(const Config& config, Device* device = nullptr) {
    manager_ =
        make_manager(config, toy_model(), {.threads = nullptr, .device = device, .clock = [this] { return now_; }});
    engine_ = std::make_unique<ToyEngine>(*manager_, 2);
  }
  void TearDown() override {
    if (!manager_) return;
    EXPECT_EQ(broken(*manager_), "");
  }
  Manager& m() { return *manager_; }
  SeqId compute(const Tokens& tokens, std::string_view name = {}) {
    BeginOptions options;
    options.name_space = name;
    const auto begun = m().begin(tokens, options);
    EXPECT_OK(begun.status());
    finish(begun->seq, tokens);
    return begun->seq;
  }
  void finish(SeqId seq, const Tokens& tokens) {
    for (std::uint32_t at = m().token_count(seq); at < tokens.size();) {
      const std::uint32_t count = std::min<std::uint32_t>(16, static_cast<std::uint32_t>(tokens.size()) - at);
      if (!m().allocate(seq, count).ok()) {
        EXPECT_OK(m().wait_room(seq, count));
        EXPECT_OK(m().allocate(seq, count).status());
      }
      EXPECT_OK(engine_->append(seq, tokens, at, count));
      EXPECT_OK(m().commit(seq, std::span(tokens).subspan(at, count)));
      at += count;
    }
  }
  // Stored below, and nowhere else.
  void sink() {
    EXPECT_OK(m().wait_idle());
    EXPECT_OK(m().empty_pool(0).status());
  }

  Instant now_{kSecond};
  std::unique_ptr<Manager> manager_;
  std::unique_ptr<ToyEngine> engine_;
};

TEST_F(KeepBytes, TheLastFullBlockAndGeneratedTokensAreStoredWhenASequenceEnds) {
  make(tiered(16));
  const Tokens tokens = distinct(70, 0);
  const SeqId seq = compute(first_of(tokens, 20));
  finish(seq, tokens);  // generated
  ASSERT_OK(m().free(seq));
  sink();
  EXPECT_EQ(m().stats().ending_stored + m().stats().ending_dropped, 4u);
  EXPECT_EQ(m().stats().ending_dropped, 0u);
  EXPECT_EQ(m().match_prefix(tokens).tokens_on_host, 64u);
}

TEST_F(KeepBytes, EventsTellMovesBetweenTiers) {
  make(tiered(16));
  const Tokens tokens = distinct(33, 0);
  ASSERT_OK(m().free(compute(tokens)));
  sink();
  const auto begun = m().begin(tokens);
  const auto ticket = m().prefetch(begun->seq);
  ASSERT_OK(ticket.status());
  ASSERT_OK(m().wait(*ticket));
  const Key first = m().compute_keys(tokens)[0];
  std::vector<TierSet> story;
  const auto batch = m().take_events(0);
  for (const Event& event : batch->events)
    if (event.block.key == first) story.push_back(event.block.tiers);
  EXPECT_EQ(story, (std::vector<TierSet>{kOnDevice, kOnDevice | kOnHost, kOnHost, kOnDevice | kOnHost}));
}

TEST_F(KeepBytes, ABadFrameIsExplainedAndAfterSomeFailuresNotStoredForAWhile) {
  make(tiered(16));
  const Tokens tokens = distinct(33, 0);
  for (std::uint32_t failures = 1; failures <= kLoadAttempts; ++failures) {
    ASSERT_OK(m().free(compute(tokens)));
    sink();
    ASSERT_EQ(m().match_prefix(tokens).tokens_on_host, 32u) << "stored again: " << failures;
    ASSERT_NE(ManagerTestPeer::damage_frames(m(), 40), 0u);
    const SeqId seq = m().begin(tokens)->seq;
    EXPECT_EQ(m().block_states(seq), (std::vector<BlockState>(2, BlockState::kStored)));
    const auto ticket = m().prefetch(seq);
    ASSERT_OK(m().wait(*ticket));
    EXPECT_EQ(m().block_states(seq)[0], BlockState::kLost);
    EXPECT_EQ(m().usable_tokens(seq), 0u) << "the longest valid prefix";
    EXPECT_EQ(m().explain(tokens).blocks[0].reason, MissReason::kLoadFailed);
    ASSERT_OK(m().rewind(seq, 0));
    ASSERT_OK(m().free(seq));
    EXPECT_EQ(m().stats().load_failures, 2 * failures);
  }
  ASSERT_OK(m().free(compute(tokens)));
  ASSERT_OK(m().wait_idle());
  EXPECT_EQ(m().stats().frames, 0u) << "round and round it does not go";
  EXPECT_EQ(m().stats().stores_filtered, 2u);
  EXPECT_EQ(m().match_prefix(tokens).tokens_on_device, 32u) << "while it is in the pool it is of use";
  sink();
  EXPECT_EQ(m().explain(tokens).blocks[0].reason, MissReason::kFiltered);
  now_.ns += kLoadVerdictNs;
  ASSERT_OK(m().free(compute(tokens)));
  sink();
  EXPECT_EQ(m().match_prefix(tokens).tokens_on_host, 32u) << "the verdict ends";
}

TEST_F(KeepBytes, AFrameThatIsReadWhileItIsDroppedGoesAfterwards) {
  make(tiered(16));
  const Tokens tokens = distinct(33, 0);
  ASSERT_OK(m().free(compute(tokens)));
  sink();
  {
    std::vector<MemoryTier::Pin> pins;
    for (std::uint32_t i = 0; i < ManagerTestPeer::frames(m()).capacity(); ++i)
      if (const Frame& frame = ManagerTestPeer::frames(m()).frame(FrameId{i}); frame.in_use)
        pins.push_back(ManagerTestPeer::host(m()).find(frame.key));
    ASSERT_FALSE(pins.empty());
    ASSERT_OK(m().reset());
    EXPECT_EQ(ManagerTestPeer::host(m()).stats().frames, pins.size()) << "still read";
    EXPECT_EQ(broken(m()), "");
  }
  m().pump();
  EXPECT_EQ(ManagerTestPeer::host(m()).stats().frames, 0u);
}

TEST_F(KeepBytes, PinnedFramesStayBelow) {
  make(tiered(16));
  const Tokens tokens = distinct(33, 0);
  ASSERT_OK(m().free(compute(tokens)));
  sink();
  ASSERT_OK(m().pin(m().compute_keys(tokens), kSecond).status());
  EXPECT_EQ(ManagerTestPeer::frame_policy(m()).candidates(), 0u);
  now_.ns += kSecond;
  m().pump();
  EXPECT_NE(ManagerTestPeer::frame_policy(m()).candidates(), 0u);
}

TEST_F(KeepBytes, AFamilyBelowIsEvictedAsOneAndSkippedAsOne) {
  Config config = tiered(16);
  config.host.budget_bytes = 2u << 20;
  make(config);
  const Tokens one = distinct(17, 0), two = distinct(17, 1000);
  const std::vector<Key> keys{m().compute_keys(one)[0], m().compute_keys(two)[0]};
  ASSERT_OK(m().free(compute(one)));
  ASSERT_OK(m().free(compute(two)));
  sink();
  ASSERT_OK(m().set_family(keys));
  const auto press = [&](std::uint32_t evictions) {
    const std::uint64_t until = m().stats().host_evictions + evictions;
    for (TokenId i = 1; m().stats().host_evictions < until; ++i) {
      ASSERT_LT(i, 400) << "the tier is never full";
      ASSERT_OK(m().free(compute(distinct(129, static_cast<TokenId>(until) * 1'000'000 + 1000 * i))));
      sink();
    }
  };
  ASSERT_OK(m().pin(std::span(keys).first(1), kSecond).status());
  press(64);
  EXPECT_EQ(m().match_prefix(one).tokens + m().match_prefix(two).tokens, 32u) << "one is pinned, so both stay";
  m().unpin(keys);
  for (std::uint32_t i = 0; i < 64 && m().match_prefix(two).tokens != 0; ++i) {
    EXPECT_EQ(m().match_prefix(one).tokens, 16u);
    press(1);
  }
  EXPECT_EQ(m().match_prefix(one).tokens + m().match_prefix(two).tokens, 0u) << "and then both go";
}

TEST_F(KeepBytes, AQueueOfStoresKeepsNoSlotFromWhoNeedsIt) {
  make(tiered(16));
  const std::uint32_t slots = static_cast<std::uint32_t>(m().stats().slots_total);
  const Tokens tokens = distinct(slots * kBlockTokens, 0);
  const auto begun = m().begin(tokens);
  for (std::uint32_t at = 0; at < tokens.size(); at += kBlockTokens) {
    ASSERT_OK(m().allocate(begun->seq, kBlockTokens).status());
    ASSERT_OK(engine_->append(begun->seq, tokens, at, kBlockTokens));
    ASSERT_OK(m().commit(begun->seq, std::span(tokens).subspan(at, kBlockTokens)));
  }
  ASSERT_OK(m().free(begun->seq));
  ASSERT_FALSE(ManagerTestPeer::stores(m()).empty()) << "nothing was moved: nobody pumped";
  const auto other = m().begin(distinct(slots * kBlockTokens, 9000));
  EXPECT_OK(m().allocate(other->seq, slots * kBlockTokens).status());
  EXPECT_EQ(broken(m()), "");
  EXPECT_OK(m().wait_idle());
  EXPECT_EQ(m().match_prefix(joined(tokens, {1})).tokens, 0u) << "what left before it was stored is lost";
}

TEST_F(KeepBytes, ANamespaceAtItsHostCeilingMakesRoomItself) {
  make(tiered(16));
  const Tokens others = distinct(129, 9000);
  ASSERT_OK(m().free(compute(others, "b")));
  sink();
  ASSERT_OK(m().free(compute(distinct(129, 0), "a")));
  sink();
  const std::uint64_t one = m().usage("a").host_bytes;
  ASSERT_GT(one, 0u);
  ASSERT_OK(m().set_quota("a", {.host_ceiling = one + one / 2}));
  for (TokenId first : {1000, 2000, 3000}) {
    ASSERT_OK(m().free(compute(distinct(129, first), "a")));
    sink();
    EXPECT_LE(m().usage("a").host_bytes, one + one / 2);
  }
  EXPECT_EQ(m().match_prefix(others, "b").tokens, 128u) << "and nobody else does";
}

TEST_F(KeepBytes, AHostFloorIsWhatOthersCannotPushANamespaceBelow) {
  Config config = tiered(16);
  config.host.budget_bytes = 2u << 20;
  make(config);
  const Tokens mine = distinct(129, 0);
  ASSERT_OK(m().free(compute(mine, "a")));
  sink();
  ASSERT_EQ(m().match_prefix(mine, "a").tokens_on_host, 128u);
  EXPECT_EQ(m().set_quota("b", {.host_floor = 3u << 20}).code(), Code::kInvalidArgument) << "more than the tier has";
  for (const bool kept : {true, false}) {
    ASSERT_OK(m().set_quota("a", {.host_floor = kept ? m().usage("a").host_bytes : 0}));
    const std::uint64_t evicted = m().stats().host_evictions;
    for (TokenId i = 1; m().stats().host_evictions < evicted + 64; ++i) {
      ASSERT_LT(i, 400) << "the tier is never full";
      ASSERT_OK(m().free(compute(distinct(129, 1'000'000 * (1 + kept) + 1000 * i), "b")));
      sink();
    }
    EXPECT_EQ(m().match_prefix(mine, "a").tokens, kept ? 128u : 0u);
  }
}

TEST_F(KeepBytes, ASlotIsClearedBeforeAnotherNamespaceGetsItAndNotForTheSame) {
  ThreadPool threads(1);
  for (const bool lazy : {false, true}) {
    HandDevice device(threads);
    Config config = tiered(8);
    config.host.budget_bytes = 0;
    config.pool.zero_on_free = true;
    make(config, &device);
    device.lazy = lazy;
    const std::uint32_t slots = static_cast<std::uint32_t>(m().stats().slots_total);
    // A fresh slot has nobody's bytes and is zero: its hash is what a cleared one must have.
    const Tokens mine = distinct(slots * kBlockTokens, 0);
    SeqId seq = compute(mine, "a");
    EXPECT_EQ(m().stats().slots_cleared, 0u);
    ASSERT_OK(m().free(seq));
    seq = compute(distinct(slots * kBlockTokens, 7000), "a");
    EXPECT_EQ(m().stats().slots_cleared, 0u) << "they stay in the namespace";
    ASSERT_OK(m().free(seq));
    const auto begun = m().begin(distinct(slots * kBlockTokens, 3000), {.name_space = "b"});
    ASSERT_OK(m().allocate(begun->seq, slots * kBlockTokens).status());
    EXPECT_EQ(m().stats().slots_cleared, slots);
    // Bytes are there when the device has done what it was asked, in its order: clear, then append.
    ASSERT_OK(engine_->append(begun->seq, distinct(slots * kBlockTokens, 3000), 0, 1));
    ASSERT_OK(m().device().timeline().wait(m().device().timeline().last()));
    const std::vector<SlotId> table = m().block_table(begun->seq);
    ASSERT_EQ(table.size(), slots);
    std::map<std::uint64_t, std::uint32_t> hashes;
    for (const SlotId slot : table) ++hashes[*m().hash_slot(slot)];
    EXPECT_EQ(hashes.size(), 2u) << "one has a token in it, all others are zero";
    EXPECT_EQ(hashes.count(*m().hash_slot(table[1])), 1u);
    EXPECT_EQ(hashes[*m().hash_slot(table[1])], slots - 1);
    ASSERT_OK(m().free(begun->seq));
    EXPECT_EQ(broken(m()), "");
    manager_.reset();
  }
}

}  // namespace
}  // namespace firn::test
