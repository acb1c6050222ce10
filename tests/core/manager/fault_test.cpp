// What goes wrong: no memory, no room below, frames that were damaged, a device that is slow or refuses. Each failure
// leaves the manager as it was, says why, and the next call works.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <thread>

#include "firn/thread_pool.h"
#include "storage/tier/faulty_tier.h"
#include "tests/core/manager/hand_device.h"
#include "tests/core/manager/test_peer.h"
#include "tests/core/manager/toy_engine.h"

namespace firn::test {
namespace {

constexpr std::uint32_t kQueryHeads = 2;

ModelSpec toy_model() {
  ModelSpec model = small_model(2, 1, 32);
  model.groups[0].query_heads = kQueryHeads;
  return model;
}

// Slots for so many blocks, with staging for one split and workspace beside them.
Config tiered(std::uint32_t blocks, std::uint64_t host_bytes, bool worker = false) {
  const ModelSpec model = toy_model();
  Config config;
  config.device = "cpu";
  config.threads = 1;
  config.protect.sinks = 4;
  config.protect.recent = 16;
  config.pool.max_step_tokens = 16;
  config.pool.staging_bytes = kSplitTokens * model.groups[0].kv.token_bytes();
  config.pool.budget_bytes = config.pool.staging_bytes + blocks * model.block_bytes() + (20u << 10);
  config.host.budget_bytes = host_bytes;
  config.host.huge_pages = false;
  config.mover.worker = worker;
  config.max_sequences = 8;
  config.max_sequence_tokens = 8192;
  return config;
}

// Computes what begin() did not find. The first status that is not ok ends it.
Status compute(Manager& manager, ToyEngine& engine, SeqId seq, const Tokens& tokens) {
  for (std::uint32_t at = manager.token_count(seq); at < tokens.size();) {
    const std::uint32_t count = std::min<std::uint32_t>(16, static_cast<std::uint32_t>(tokens.size()) - at);
    auto allocated = manager.allocate(seq, count);
    if (!allocated.ok() && allocated.status().code() == Code::kUnavailable) {
      FIRN_TRY(manager.wait_room(seq, count));
      allocated = manager.allocate(seq, count);
    }
    if (!allocated.ok()) return allocated.status();
    FIRN_TRY(engine.append(seq, tokens, at, count));
    FIRN_TRY(manager.commit(seq, std::span(tokens).subspan(at, count)));
    at += count;
  }
  return {};
}

// What must not change when a call fails.
struct Snapshot {
  explicit Snapshot(const Manager& manager, std::span<const SeqId> seqs) {
    const Stats stats = manager.stats();
    numbers = {stats.slots_free, stats.slots_cached,   stats.slots_live,     stats.blocks,    stats.frames,
               stats.sequences,  stats.metadata_bytes, stats.copy_on_writes, stats.evictions, stats.duplicate_blocks};
    for (const SeqId seq : seqs) {
      tables.push_back(table(manager, seq));
      lengths.push_back(manager.token_count(seq));
    }
  }
  std::vector<std::uint64_t> numbers;
  std::vector<Slots> tables;
  std::vector<std::uint32_t> lengths;
  bool operator==(const Snapshot&) const = default;
};

// --- no memory ---

TEST(NoMemory, EveryChargeOfCreateMayFail) {
  const ModelSpec model = toy_model();
  ThreadPool threads(1);
  HandDevice device(threads);
  const Manager::Environment environment{&threads, &device, {}};
  std::uint64_t charges = 0;
  for (std::uint64_t nth = 1; nth < 100; ++nth) {
    const auto manager = ManagerTestPeer::create_failing(tiered(16, 4u << 20), model, environment, nth);
    if (manager.ok()) {
      EXPECT_EQ(broken(**manager), "");
      break;
    }
    ++charges;
    EXPECT_EQ(manager.status().code(), Code::kNoSpace) << manager.status().message();
    EXPECT_NE(manager.status().message().find("budget"), std::string::npos) << manager.status().message();
    EXPECT_EQ(device.regions, 0) << "charge " << nth << " left a region behind";
  }
  EXPECT_GE(charges, 5u) << "metadata, workspace, staging, pool, and the host tier's";
  EXPECT_LT(charges, 20u) << "and with the last of them it succeeds";
}

TEST(NoMemory, EveryAllocationOfTheDeviceMayBeRefused) {
  const ModelSpec model = toy_model();
  ThreadPool threads(1);
  HandDevice device(threads);
  const Manager::Environment environment{&threads, &device, {}};
  int refused = 0;
  for (int nth = 1; nth < 100; ++nth) {
    device.refuse_allocation = nth;
    {
      const auto manager = Manager::create(tiered(16, 4u << 20), model, environment);
      if (manager.ok()) break;
      ++refused;
      EXPECT_EQ(manager.status().code(), Code::kNoSpace) << manager.status().message();
    }
    EXPECT_EQ(device.regions, 0) << "refusal " << nth << " left a region behind";
  }
  EXPECT_EQ(refused, 3) << "workspace, staging and pool";
  device.refuse_allocation = 0;
  EXPECT_EQ(device.regions, 0);
}

TEST(NoMemory, BudgetsThatHoldNothingAreRefusedByName) {
  const ModelSpec model = toy_model();
  const auto refused = [&](const Config& config, const char* setting) {
    const auto manager = Manager::create(config, model);
    ASSERT_FALSE(manager.ok()) << setting;
    EXPECT_NE(manager.status().message().find(setting), std::string::npos) << manager.status().message();
  };
  Config config = tiered(16, 4u << 20);
  config.pool.budget_bytes = 64u << 10;
  config.protect.recent = 256;
  refused(config, "pool.budget");
  config = tiered(16, 4u << 20);
  config.host.budget_bytes = 64u << 10;
  refused(config, "host.budget");
  config = tiered(16, 4u << 20);
  config.metadata_budget_bytes = 64u << 10;
  refused(config, "metadata.budget");
  config = tiered(16, 4u << 20);
  config.device = "none";
  refused(config, "host.budget");
  config = tiered(16, 4u << 20);
  config.host.placement = "node:1000";
  refused(config, "1000");
}

TEST(NoMemory, AChargeThatFailsLaterChangesNothingAndTheNextCallWorks) {
  const ModelSpec model = toy_model();
  Config config = tiered(40, 4u << 20);
  config.max_sequences = 64;
  const auto manager = make_manager(config, model);
  ASSERT_TRUE(manager);
  ToyEngine engine(*manager, kQueryHeads);
  Ledger& ledger = ManagerTestPeer::ledger(*manager);
  // Some short sequences have room that was charged when the manager was made; those after them have none.
  for (TokenId i = 0; i < 20; ++i) ASSERT_TRUE(manager->begin(distinct(1, 9000 + i)).ok());
  const Tokens tokens = distinct(100, 0);
  const auto begun = manager->begin(tokens);
  ASSERT_TRUE(begun.ok());
  ASSERT_OK(compute(*manager, engine, begun->seq, tokens));
  const std::vector<SeqId> seqs = {begun->seq};

  const auto fails = [&](const char* what, auto call) {
    const Snapshot before(*manager, seqs);
    ledger.fail_charge(1);
    const Status status = call();
    ledger.fail_charge(0);
    EXPECT_EQ(status.code(), Code::kNoSpace) << what << ": " << status.message();
    EXPECT_TRUE(Snapshot(*manager, seqs) == before) << what << " left something behind";
    EXPECT_EQ(broken(*manager), "") << what;
  };
  fails("begin", [&] { return manager->begin(tokens).status(); });
  fails("fork", [&] { return manager->fork(begun->seq).status(); });
  fails("allocate", [&] { return manager->allocate(begun->seq, 400).status(); });

  const auto child = manager->fork(begun->seq);
  ASSERT_TRUE(child.ok()) << child.status().message();
  fails("a copy-on-write that also grows", [&] { return manager->allocate(*child, 400).status(); });
  EXPECT_TRUE(manager->allocate(*child, 400).ok());
  EXPECT_TRUE(manager->begin(tokens).ok());
  EXPECT_EQ(broken(*manager), "");
}

TEST(NoMemory, SequencesThatOutgrowTheMetadataBudgetAreRefused) {
  Config config = bookkeeping(400);
  config.max_sequences = 64;
  {
    const auto probe = make_manager(config);
    ASSERT_TRUE(probe);
    config.metadata_budget_bytes = probe->stats().metadata_bytes + (16u << 10);
  }
  const auto manager = make_manager(config);
  ASSERT_TRUE(manager);
  std::vector<SeqId> seqs;
  Status status;
  while (status.ok() && seqs.size() < 64) {
    const auto begun = manager->begin(distinct(1000, static_cast<TokenId>(1000 * seqs.size())));
    status = begun.status();
    if (begun.ok()) seqs.push_back(begun->seq);
  }
  EXPECT_EQ(status.code(), Code::kNoSpace);
  EXPECT_NE(status.message().find("metadata.budget"), std::string::npos) << status.message();
  EXPECT_GT(seqs.size(), 0u);
  EXPECT_LE(manager->stats().metadata_bytes, config.metadata_budget_bytes);
  EXPECT_OK(manager->free(seqs.back()));
  EXPECT_TRUE(manager->begin(distinct(900, -1000)).ok()) << "what was freed can be had again";
  EXPECT_EQ(broken(*manager), "");
}

TEST(NoMemory, ACopyOnWriteThatTheDeviceRefusesChangesNothing) {
  const ModelSpec model = toy_model();
  ThreadPool threads(1);
  HandDevice device(threads);
  const auto manager = make_manager(tiered(16, 4u << 20), model, {&threads, &device, {}});
  ASSERT_TRUE(manager);
  ToyEngine engine(*manager, kQueryHeads);
  const Tokens tokens = distinct(40, 0);
  const auto begun = manager->begin(tokens);
  ASSERT_TRUE(begun.ok());
  ASSERT_OK(compute(*manager, engine, begun->seq, tokens));
  const auto child = manager->fork(begun->seq);
  ASSERT_TRUE(child.ok());
  const std::vector<SeqId> seqs = {begun->seq, *child};
  const Snapshot before(*manager, seqs);
  device.refuse_copy = Code::kIo;
  EXPECT_EQ(manager->allocate(*child, 20).status().code(), Code::kIo);
  EXPECT_TRUE(Snapshot(*manager, seqs) == before);
  EXPECT_EQ(broken(*manager), "");
  device.refuse_copy.reset();
  EXPECT_TRUE(manager->allocate(*child, 20).ok());
}

TEST(NoMemory, APoolThatCannotGrowStaysAsItWas) {
  ThreadPool threads(1);
  HandDevice device(threads);
  Config config = tiered(40, 4u << 20);
  config.pool.max_budget_bytes = 2 * config.pool.budget_bytes;
  const auto manager = make_manager(config, toy_model(), {&threads, &device, {}});
  ASSERT_TRUE(manager);
  const std::uint64_t limit = manager->ledger().limit(Budget::kDevice), slots = manager->stats().slots_total;
  device.refuse_allocation = 2;
  EXPECT_EQ(manager->resize_pool(config.pool.max_budget_bytes).status().code(), Code::kNoSpace);
  EXPECT_EQ(manager->ledger().limit(Budget::kDevice), limit);
  EXPECT_EQ(manager->stats().slots_total, slots);
  EXPECT_EQ(broken(*manager), "");
  EXPECT_TRUE(manager->resize_pool(config.pool.max_budget_bytes).ok());
  EXPECT_GT(manager->stats().slots_total, slots);
}

// The frame's checksums were good: it is as good as before, and is loaded when the device can.
TEST(NoMemory, AFrameThatTheDeviceDidNotTakeStays) {
  for (const char* codec : {"raw", "lossless"}) {  // copied by the device itself, and through transfer memory
    SCOPED_TRACE(codec);
    ThreadPool threads(1);
    HandDevice device(threads);
    device.hide_pool = true;
    Config config = tiered(40, 4u << 20, /*worker=*/false);
    config.host.codec = codec;
    const auto manager = make_manager(config, toy_model(), {&threads, &device, {}});
    ASSERT_TRUE(manager);
    ToyEngine engine(*manager, kQueryHeads);
    const Tokens tokens = distinct(129, 0);
    const auto first = manager->begin(tokens);
    ASSERT_TRUE(first.ok());
    ASSERT_OK(compute(*manager, engine, first->seq, tokens));
    ASSERT_OK(manager->free(first->seq));
    ASSERT_OK(manager->wait_idle());
    ASSERT_TRUE(manager->empty_pool(0).ok());
    const auto again = manager->begin(tokens);
    ASSERT_TRUE(again.ok());
    ASSERT_EQ(again->match.tokens_on_host, 128u);
    device.refuse_copy = Code::kNoSpace;
    const auto refused = manager->prefetch(again->seq);
    ASSERT_TRUE(refused.ok());
    ASSERT_OK(manager->wait(*refused));
    EXPECT_GT(manager->stats().frames_failed, 0u);
    EXPECT_EQ(manager->stats().load_failures, 0u);
    device.refuse_copy.reset();
    const auto taken = manager->prefetch(again->seq);
    ASSERT_TRUE(taken.ok());
    ASSERT_OK(manager->wait(*taken));
    EXPECT_EQ(manager->match_prefix(tokens).tokens_on_device, 128u);
    EXPECT_EQ(broken(*manager), "");
  }
}

// --- no room below ---

TEST(HostTierTooSmall, ASequenceLongerThanBothIsRefusedAndEarlierOnesAreSound) {
  const ModelSpec model = toy_model();
  for (const bool worker : {false, true}) {
    SCOPED_TRACE(worker ? "worker" : "pump");
    Config config = tiered(12, 192u << 10, worker);
    config.host.codec = "raw";
    const auto manager = make_manager(config, model);
    ASSERT_TRUE(manager);
    ToyEngine engine(*manager, kQueryHeads);
    const Tokens tokens = distinct(4000, 0);
    const auto begun = manager->begin(tokens);
    ASSERT_TRUE(begun.ok());
    const Status status = compute(*manager, engine, begun->seq, tokens);
    EXPECT_EQ(status.code(), Code::kNoSpace) << status.message();
    EXPECT_NE(status.message().find("host.budget"), std::string::npos) << status.message();
    const std::uint32_t committed = manager->token_count(begun->seq);
    EXPECT_GT(committed, 12 * kBlockTokens) << "the host tier held a part";
    EXPECT_LT(committed, 4000u);
    EXPECT_GT(manager->stats().frames_refused, 0u);
    EXPECT_EQ(broken(*manager), "");
    EXPECT_TRUE(engine.attend(begun->seq, tokens, committed - 1, 1).ok());
    EXPECT_OK(manager->free(begun->seq));
    ASSERT_OK(manager->wait_idle());
    const Tokens other = distinct(100, 9000);
    const auto next = manager->begin(other);
    ASSERT_TRUE(next.ok());
    EXPECT_OK(compute(*manager, engine, next->seq, other)) << "room that was freed is room";
    EXPECT_EQ(broken(*manager), "");
  }
}

// Frames far smaller than the tables were sized for: records run out before bytes do.
TEST(HostTierTooSmall, MoreBlocksThanRecordsEvictsFramesAndGoesOn) {
  const ModelSpec model = toy_model();
  const auto manager = make_manager(tiered(24, 8u << 20), model);
  ASSERT_TRUE(manager);
  constexpr int kSequences = 540;
  const std::vector<float> zeros(std::size_t{16} * 32);
  const auto address = reinterpret_cast<DeviceAddress>(zeros.data());
  for (int i = 0; i < kSequences; ++i) {
    const Tokens tokens = distinct(257, 1000 * i);
    const auto begun = manager->begin(tokens);
    ASSERT_TRUE(begun.ok()) << begun.status().message();
    for (std::uint32_t at = 0; at < 257; at += 16) {
      const std::uint32_t count = std::min(16u, 257 - at);
      ASSERT_OK(manager->wait_room(begun->seq, count));
      ASSERT_TRUE(manager->allocate(begun->seq, count).ok());
      const StepRows rows{begun->seq, 0, count, at};
      for (std::uint32_t layer = 0; layer < 2; ++layer)
        ASSERT_TRUE(manager->append(layer, std::span(&rows, 1), address, address).ok());
      ASSERT_OK(manager->commit(begun->seq, std::span(tokens).subspan(at, count)));
    }
    ASSERT_OK(manager->free(begun->seq));
    ASSERT_OK(manager->wait_idle());
    if (i % 20 == 0) {
      ASSERT_EQ(broken(*manager), "") << "sequence " << i;
    }
  }
  const Stats stats = manager->stats();
  EXPECT_GT(stats.host_evictions, 0u);
  EXPECT_EQ(stats.frames_failed, 0u);
  EXPECT_GE(stats.blocks, ManagerTestPeer::pool(*manager).block_capacity() - 16) << "records ran out, not bytes";
  EXPECT_EQ(manager->match_prefix(distinct(257, 1000 * (kSequences - 1))).tokens, 256u) << "the latest is still there";
  int gone = 0, remembered = 0;
  for (int i = 0; i < kSequences; ++i) {
    const PrefixMatch match = manager->match_prefix(distinct(257, 1000 * i));
    gone += match.tokens == 0;
    remembered += match.first_miss == MissReason::kEvictedHost;
  }
  EXPECT_GT(gone, 10);
  EXPECT_GT(remembered, gone / 2);
}

// --- damaged frames ---

class Damaged : public testing::Test {
 protected:
  // A sequence in the host tier and nowhere else.
  void SetUp() override {
    manager_ = make_manager(tiered(40, 4u << 20), toy_model());
    ASSERT_TRUE(manager_);
    engine_.emplace(*manager_, kQueryHeads);
    const auto begun = manager_->begin(tokens_);
    ASSERT_TRUE(begun.ok());
    ASSERT_OK(compute(*manager_, *engine_, begun->seq, tokens_));
    const auto out = engine_->attend(begun->seq, tokens_, 499, 1);
    ASSERT_TRUE(out.ok());
    expected_ = *out;
    ASSERT_OK(manager_->free(begun->seq));
    ASSERT_OK(manager_->wait_idle());
    ASSERT_TRUE(manager_->empty_pool(0x11).ok());
    const auto again = manager_->begin(tokens_);
    ASSERT_TRUE(again.ok());
    ASSERT_EQ(again->match.tokens_on_host, 496u);
    seq_ = again->seq;
  }

  // The engine's way out of kCorrupt, as manager.h gives it.
  void recover() {
    const std::uint32_t usable = manager_->usable_tokens(seq_);
    ASSERT_LT(usable, 496u);
    EXPECT_EQ(manager_->allocate(seq_, 4).status().code(), Code::kCorrupt);
    ASSERT_OK(manager_->rewind(seq_, usable));
    EXPECT_EQ(broken(*manager_), "");
    ASSERT_OK(compute(*manager_, *engine_, seq_, tokens_));
    const auto out = engine_->attend(seq_, tokens_, 499, 1);
    ASSERT_TRUE(out.ok()) << out.status().message();
    EXPECT_EQ(*out, expected_) << "computed again, it is what it was";
    EXPECT_EQ(manager_->usable_tokens(seq_), 500u);
  }

  const Tokens tokens_ = distinct(500, 0);
  std::unique_ptr<Manager> manager_;
  std::optional<ToyEngine> engine_;
  std::vector<float> expected_;
  SeqId seq_ = SeqId::kNone;
};

TEST_F(Damaged, AttendSaysSoAndTheEngineComputesTheRest) {
  ASSERT_GT(ManagerTestPeer::damage_frames(*manager_, 10), 3u);
  Result<std::vector<float>> out = std::vector<float>{};
  // Rows that are allocated: the last committed ones.
  out = engine_->attend(seq_, tokens_, 490, 6);
  ASSERT_FALSE(out.ok());
  EXPECT_EQ(out.status().code(), Code::kCorrupt) << out.status().message();
  EXPECT_NE(out.status().message().find("usable_tokens"), std::string::npos) << out.status().message();
  EXPECT_EQ(broken(*manager_), "");
  EXPECT_GT(manager_->stats().frames_failed, 0u);
  for (int i = 0; i < 20 && !engine_->attend(seq_, tokens_, 490, 6).ok(); ++i) EXPECT_EQ(broken(*manager_), "");
  recover();
}

TEST_F(Damaged, APromotionThatFailsIsAMissWithItsReason) {
  ASSERT_GT(ManagerTestPeer::damage_frames(*manager_, 10), 3u);
  const auto ticket = manager_->prefetch(seq_);
  ASSERT_TRUE(ticket.ok());
  ASSERT_OK(manager_->wait(*ticket));
  EXPECT_EQ(broken(*manager_), "");
  EXPECT_GT(manager_->stats().frames_failed, 0u);
  EXPECT_EQ(manager_->stats().blocks_promoted, 0u) << "no damaged byte reaches a slot that can be found";
  EXPECT_EQ(manager_->usable_tokens(seq_), 0u);
  EXPECT_EQ(manager_->match_prefix(tokens_).tokens, 0u);
  EXPECT_EQ(manager_->match_prefix(tokens_).first_miss, MissReason::kLoadFailed);
  recover();
}

TEST_F(Damaged, AForkOfALostSequenceIsLostInTheSamePlace) {
  ASSERT_GT(ManagerTestPeer::damage_frames(*manager_, 10), 3u);
  const auto ticket = manager_->prefetch(seq_);
  ASSERT_TRUE(ticket.ok());
  ASSERT_OK(manager_->wait(*ticket));
  const auto child = manager_->fork(seq_);
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(manager_->usable_tokens(*child), manager_->usable_tokens(seq_));
  EXPECT_OK(manager_->free(*child));
  EXPECT_EQ(broken(*manager_), "");
  recover();
  EXPECT_OK(manager_->free(seq_));
  ASSERT_OK(manager_->wait_idle());
  EXPECT_EQ(broken(*manager_), "");
}

// Every frame is stored once more, by a tier that cuts, turns bits or loses what it is given; the names of those that
// are not what they were.
std::set<FrameKey> store_faultily(Manager& manager, std::uint64_t seed, const FaultyTier::Rates& rates) {
  MemoryTier& host = ManagerTestPeer::host(manager);
  FaultyTier faulty(host, FaultyTier::Options::all(seed, rates));
  const FrameTable& frames = ManagerTestPeer::frames(manager);
  for (std::uint32_t i = 0; i < frames.capacity(); ++i) {
    if (!frames.frame(FrameId{i}).in_use) continue;
    Op op{.verb = Verb::kPut, .key = frames.frame(FrameId{i}).key, .source = {}, .destination = {}, .deadline_ns = 0};
    std::vector<std::byte> bytes;
    if (const MemoryTier::Pin pin = host.find(op.key)) bytes.assign(pin.bytes().begin(), pin.bytes().end());
    EXPECT_TRUE(host.erase(op.key));
    op.source = bytes;
    const auto ticket = faulty.submit({&op, 1});
    EXPECT_OK(ticket.status());
    EXPECT_OK(faulty.wait(*ticket, 1'000'000'000).status());
  }
  std::set<FrameKey> spoiled;
  for (const FaultyTier::Event& event : faulty.log())
    if (event.fault != Fault::kDelay) spoiled.insert(event.key);
  return spoiled;
}

TEST_F(Damaged, WhatAFaultyTierSpoiledIsLostBlockByBlockAndTheRestIsThere) {
  std::size_t partly = 0;
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    if (seed > 1) {
      manager_.reset();
      SetUp();
    }
    std::vector<FrameKey> frame_of;
    for (const BlockId id : ManagerTestPeer::sequence(*manager_, seq_).tables[0].blocks)
      frame_of.push_back(
          ManagerTestPeer::frames(*manager_).frame(ManagerTestPeer::pool(*manager_).block(id).frame).key);
    ASSERT_EQ(frame_of.size(), 31u);
    const std::set<FrameKey> spoiled =
        store_faultily(*manager_, seed, {.fail = .05, .delay = .2, .truncate = .1, .flip = .1, .lose = .05});
    const auto ticket = manager_->prefetch(seq_);
    ASSERT_TRUE(ticket.ok());
    ASSERT_OK(manager_->wait(*ticket));
    const std::vector<BlockState> states = manager_->block_states(seq_);
    std::uint32_t valid = 0, lost = 0;
    for (std::size_t i = 0; i < frame_of.size(); ++i) {
      const bool bad = spoiled.contains(frame_of[i]);
      EXPECT_EQ(states[i], bad ? BlockState::kLost : BlockState::kResident) << "block " << i;
      lost += bad;
      if (lost == 0) ++valid;
    }
    EXPECT_EQ(manager_->usable_tokens(seq_), valid * kBlockTokens) << "the longest valid prefix";
    EXPECT_EQ(manager_->match_prefix(tokens_).tokens, valid * kBlockTokens);
    EXPECT_EQ(manager_->stats().load_failures, lost);
    EXPECT_EQ(broken(*manager_), "");
    partly += valid != 0 && lost != 0;
    if (lost != 0) recover();
  }
  EXPECT_GT(partly, 3u);
}

TEST_F(Damaged, ATierThatSpoilsEverythingIsNotAskedAgainAndAgain) {
  ASSERT_OK(manager_->free(seq_));
  std::uint64_t stored = 0;
  for (std::uint32_t round = 1; round <= kLoadAttempts + 3; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    store_faultily(*manager_, round, {.flip = 1});
    const auto begun = manager_->begin(tokens_);
    ASSERT_TRUE(begun.ok());
    seq_ = begun->seq;
    EXPECT_EQ(begun->match.tokens, round <= kLoadAttempts ? 496u : 0u) << "a hit that may fail, then none";
    const auto ticket = manager_->prefetch(seq_);
    ASSERT_TRUE(ticket.ok());
    ASSERT_OK(manager_->wait(*ticket));
    ASSERT_OK(manager_->rewind(seq_, manager_->usable_tokens(seq_)));
    ASSERT_OK(compute(*manager_, *engine_, seq_, tokens_));
    ASSERT_OK(manager_->free(seq_));
    ASSERT_OK(manager_->wait_idle());
    const Stats stats = manager_->stats();
    EXPECT_EQ(stats.load_failures, 31u * std::min(round, kLoadAttempts)) << "each block is tried so often, and no more";
    if (round >= kLoadAttempts) {
      EXPECT_EQ(stats.frames, 0u);
      if (stored == 0) stored = stats.frames_stored;
      EXPECT_EQ(stats.frames_stored, stored) << "what cannot be read is not written either";
    }
    ASSERT_TRUE(manager_->empty_pool(0x11).ok());
  }
  EXPECT_EQ(manager_->match_prefix(tokens_).first_miss, MissReason::kFiltered);
  EXPECT_EQ(broken(*manager_), "");
}

// --- cancelling ---

TEST(Cancel, QueuedPromotionsAreDroppedAndMayBeAskedForAgain) {
  const ModelSpec model = toy_model();
  const auto manager = make_manager(tiered(40, 4u << 20), model);
  ASSERT_TRUE(manager);
  ToyEngine engine(*manager, kQueryHeads);
  const Tokens tokens = distinct(400, 0);
  const auto begun = manager->begin(tokens);
  ASSERT_TRUE(begun.ok());
  ASSERT_OK(compute(*manager, engine, begun->seq, tokens));
  ASSERT_OK(manager->free(begun->seq));
  ASSERT_OK(manager->wait_idle());
  ASSERT_TRUE(manager->empty_pool(0).ok());
  const auto again = manager->begin(tokens);
  ASSERT_TRUE(again.ok());

  const auto ticket = manager->prefetch(again->seq);
  ASSERT_TRUE(ticket.ok());
  ASSERT_NE(*ticket, Ticket::kNone);
  EXPECT_FALSE(manager->done(*ticket));
  ASSERT_OK(manager->cancel(*ticket));
  EXPECT_TRUE(manager->done(*ticket));
  ASSERT_OK(manager->cancel(*ticket)) << "cancelling is idempotent";
  ASSERT_OK(manager->cancel(Ticket::kNone));
  EXPECT_EQ(manager->pump(), 0u);
  EXPECT_EQ(manager->stats().blocks_promoted, 0u);
  EXPECT_EQ(broken(*manager), "");

  const auto second = manager->prefetch(again->seq);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(manager->pump(1), 1u) << "one is done, the others are cancelled";
  ASSERT_OK(manager->cancel(*second));
  const std::uint64_t some = manager->stats().blocks_promoted;
  EXPECT_GT(some, 0u);
  const auto third = manager->prefetch(again->seq);
  ASSERT_TRUE(third.ok());
  ASSERT_OK(manager->wait(*third));
  EXPECT_EQ(manager->stats().blocks_promoted, 24u);
  for (const SlotId slot : manager->block_table(again->seq)) EXPECT_NE(slot, SlotId::kNone);
  EXPECT_EQ(*manager->prefetch(again->seq), Ticket::kNone) << "nothing is left to bring";
  EXPECT_EQ(broken(*manager), "");
}

TEST(Cancel, APromotionThatFoundNoSlotMayBeAskedForAgain) {
  const ModelSpec model = toy_model();
  const auto manager = make_manager(tiered(12, 4u << 20), model);
  ASSERT_TRUE(manager);
  ToyEngine engine(*manager, kQueryHeads);
  const Tokens tokens = distinct(150, 0), other = distinct(120, 5000);
  const auto begun = manager->begin(tokens);
  ASSERT_TRUE(begun.ok());
  ASSERT_OK(compute(*manager, engine, begun->seq, tokens));
  ASSERT_OK(manager->free(begun->seq));
  ASSERT_OK(manager->wait_idle());
  ASSERT_TRUE(manager->empty_pool(0).ok());
  const auto again = manager->begin(tokens);
  ASSERT_TRUE(again.ok());
  const auto ticket = manager->prefetch(again->seq);
  ASSERT_TRUE(ticket.ok());
  // Before anything has moved, another sequence takes the slots.
  const auto greedy = manager->begin(other);
  ASSERT_TRUE(greedy.ok());
  ASSERT_TRUE(manager->allocate(greedy->seq, static_cast<std::uint32_t>(manager->stats().slots_free) * 16).ok());
  ASSERT_OK(manager->wait(*ticket));
  EXPECT_EQ(manager->stats().blocks_promoted, 0u);
  EXPECT_EQ(broken(*manager), "");
  ASSERT_OK(manager->free(greedy->seq));
  const auto second = manager->prefetch(again->seq);
  ASSERT_TRUE(second.ok());
  ASSERT_OK(manager->wait(*second));
  EXPECT_EQ(manager->stats().blocks_promoted, 9u);
}

// --- a slow device ---

// One row into layer 0 of the sequence's next token: work for the device that nobody waits for.
Status submit_rows(Manager& manager, SeqId seq) {
  const std::vector<float> row(32);
  const StepRows rows{seq, 0, 1, manager.token_count(seq)};
  const auto address = reinterpret_cast<DeviceAddress>(row.data());
  return manager.append(0, std::span(&rows, 1), address, address).status();
}

class Fences : public testing::Test {
 protected:
  Status append_without_waiting(SeqId seq, const Tokens& tokens) {
    const auto allocated = manager_->allocate(seq, static_cast<std::uint32_t>(tokens.size()));
    if (!allocated.ok()) return allocated.status();
    FIRN_TRY(submit_rows(*manager_, seq));
    return manager_->commit(seq, tokens);
  }

  void make(std::uint32_t blocks, bool worker) {
    manager_ = make_manager(tiered(blocks, 4u << 20, worker), toy_model(), {&threads_, &device_, {}});
    ASSERT_TRUE(manager_);
    engine_.emplace(*manager_, kQueryHeads);
  }

  ThreadPool threads_{1};
  HandDevice device_{threads_};
  std::unique_ptr<Manager> manager_;
  std::optional<ToyEngine> engine_;
};

TEST_F(Fences, SlotsOfAFreedSequenceAreReusedOnlyAfterItsFence) {
  make(10, false);
  const auto usable = static_cast<std::uint32_t>(manager_->stats().slots_total);
  const Tokens tokens = distinct(40, 0);
  const auto begun = manager_->begin(tokens);
  ASSERT_TRUE(begun.ok());
  ASSERT_OK(compute(*manager_, *engine_, begun->seq, tokens));
  const Slots held = table(*manager_, begun->seq);
  device_.by_hand = true;
  const auto other = manager_->begin(distinct(10, 5000));
  ASSERT_TRUE(other.ok());
  ASSERT_TRUE(manager_->allocate(other->seq, 10).ok());
  ASSERT_OK(submit_rows(*manager_, other->seq));
  const Fence fence = device_.last();
  ASSERT_FALSE(device_.passed(fence));
  ASSERT_OK(manager_->free(begun->seq, fence));
  EXPECT_EQ(manager_->token_count(begun->seq), 0u) << "the sequence itself is gone";
  EXPECT_GE(manager_->stats().slots_in_flight, held.size());
  EXPECT_EQ(broken(*manager_), "");

  // Everything else can be had, those three not: not even as victims of eviction.
  ASSERT_TRUE(manager_->allocate(other->seq, (usable - 3) * 16 - 10).ok());
  for (const std::uint32_t slot : table(*manager_, other->seq))
    EXPECT_EQ(std::count(held.begin(), held.end(), slot), 0) << "slot " << slot << " is still being read";
  const auto refused = manager_->allocate(other->seq, (usable - 3) * 16 - 10 + 16);
  EXPECT_EQ(refused.status().code(), Code::kUnavailable) << "later, not never: " << refused.status().message();
  EXPECT_EQ(manager_->wait_room(other->seq, (usable - 2) * 16 - 10, 1'000'000).code(), Code::kUnavailable);
  EXPECT_EQ(manager_->match_prefix(tokens).tokens, 32u) << "its blocks may be found meanwhile";
  EXPECT_EQ(manager_->reset().code(), Code::kUnavailable);

  device_.complete();
  EXPECT_OK(manager_->wait_room(other->seq, (usable - 2) * 16 - 10));
  ASSERT_TRUE(manager_->allocate(other->seq, usable * 16 - 10).ok());
  EXPECT_EQ(manager_->stats().slots_in_flight, 0u);
  EXPECT_EQ(broken(*manager_), "");
}

TEST_F(Fences, WaitRoomWaitsForThePassingOfAFence) {
  for (const bool worker : {false, true}) {
    SCOPED_TRACE(worker ? "worker" : "pump");
    manager_.reset();
    make(8, worker);
    device_.by_hand = true;
    const auto begun = manager_->begin(distinct(200, 0));
    ASSERT_TRUE(begun.ok());
    const auto total = static_cast<std::uint32_t>(manager_->stats().slots_total) * 16;
    ASSERT_TRUE(manager_->allocate(begun->seq, total).ok());
    ASSERT_OK(submit_rows(*manager_, begun->seq));
    ASSERT_OK(manager_->free(begun->seq, device_.last()));
    const auto next = manager_->begin(distinct(200, 5000));
    ASSERT_TRUE(next.ok());
    std::thread later([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      device_.complete();
    });
    EXPECT_OK(manager_->wait_room(next->seq, 100));
    EXPECT_TRUE(manager_->allocate(next->seq, 100).ok());
    later.join();
    EXPECT_EQ(broken(*manager_), "");
  }
}

TEST_F(Fences, NothingIsStoredBeforeItsBytesAreWritten) {
  make(40, false);
  device_.by_hand = true;
  const Tokens tokens = distinct(300, 0);
  const auto begun = manager_->begin(tokens);
  ASSERT_TRUE(begun.ok());
  ASSERT_OK(append_without_waiting(begun->seq, tokens));
  EXPECT_EQ(manager_->pump(), 0u) << "pump() does not wait for the device";
  EXPECT_EQ(manager_->stats().frames_stored, 0u);
  EXPECT_EQ(manager_->wait_idle(1'000'000).code(), Code::kUnavailable);
  EXPECT_EQ(broken(*manager_), "");
  device_.complete();
  EXPECT_GT(manager_->pump(), 0u) << "what waited is still queued";
  EXPECT_GT(manager_->stats().frames_stored, 0u);
  EXPECT_OK(manager_->wait_idle());
  EXPECT_EQ(broken(*manager_), "");
}

TEST_F(Fences, AManagerEndsThoughItsWorkerStillWaitsForTheDevice) {
  for (const bool lost : {false, true}) {
    SCOPED_TRACE(lost ? "lost" : "slow");
    device_.by_hand = false;
    make(40, true);
    device_.by_hand = true;
    const Tokens tokens = distinct(300, 0);
    const auto begun = manager_->begin(tokens);
    ASSERT_TRUE(begun.ok());
    ASSERT_OK(append_without_waiting(begun->seq, tokens));
    EXPECT_EQ(manager_->wait_idle(1'000'000).code(), Code::kUnavailable);
    EXPECT_EQ(manager_->stats().frames_stored, 0u);
    std::thread later([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      lost ? device_.lose() : device_.complete();
    });
    manager_.reset();
    later.join();
    EXPECT_EQ(device_.regions, 0);
    EXPECT_EQ(device_.freed_in_use, 0) << "regions are given back when the device has finished with them, or is lost";
  }
}

// A pool that the host writes into, and slots that attention has been started on and not finished. A load neither waits
// for it nor writes under it.
class SlowReaders : public Fences {
 protected:
  // 112 tokens of a prompt, only in frames.
  void put_below() {
    const auto begun = manager_->begin(stored_);
    ASSERT_TRUE(begun.ok());
    ASSERT_OK(compute(*manager_, *engine_, begun->seq, stored_));
    ASSERT_OK(manager_->free(begun->seq));
    ASSERT_OK(manager_->wait_idle());
    ASSERT_TRUE(manager_->empty_pool(0x77).ok());
  }
  // Starts attention of the last token in every layer, and waits for nothing.
  Status start_attention(SeqId seq, const Tokens& tokens) {
    const auto& kv = manager_->model().groups[0].kv;
    query_.assign(kQueryHeads * kv.head_dim, 0.25f);
    out_.assign(manager_->layout().layer_count * kQueryHeads * kv.value_dim, -1);
    const StepRows rows{seq, 0, 1, static_cast<std::uint32_t>(tokens.size()) - 1};
    for (std::uint32_t layer = 0; layer < manager_->layout().layer_count; ++layer)
      FIRN_TRY(manager_
                   ->attend(layer, {&rows, 1}, {kQueryHeads, 0.5f, 0}, reinterpret_cast<DeviceAddress>(query_.data()),
                            reinterpret_cast<DeviceAddress>(out_.data() + layer * kQueryHeads * kv.value_dim))
                   .status());
    return {};
  }
  // What the attention that was started has to say.
  void expect_attention(SeqId seq, const Tokens& tokens) {
    device_.lazy = false;
    ASSERT_OK(start_attention(seq, tokens));
    expected_ = out_;
    device_.lazy = true;
    ASSERT_OK(start_attention(seq, tokens));
    ASSERT_FALSE(device_.passed(device_.last()));
  }
  void fill_pool(SeqId seq) {
    const auto free = static_cast<std::uint32_t>(manager_->stats().slots_free);
    ASSERT_TRUE(manager_->allocate(seq, free * kBlockTokens).ok());
  }

  const Tokens stored_ = distinct(120, 50'000);
  std::vector<float> query_, out_, expected_;
};

TEST_F(SlowReaders, ALoadKeepsOffTheSlotsThatARewindHasFreed) {
  make(24, false);
  put_below();
  const Tokens tokens = distinct(100, 0);
  const auto reader = manager_->begin(tokens);
  ASSERT_TRUE(reader.ok());
  ASSERT_OK(compute(*manager_, *engine_, reader->seq, tokens));
  const auto filler = manager_->begin(distinct(10, 9000));
  ASSERT_TRUE(filler.ok());
  fill_pool(filler->seq);
  expect_attention(reader->seq, tokens);
  ASSERT_OK(manager_->rewind(reader->seq, 0));  // the only free slots are those that attention reads
  const auto again = manager_->begin(stored_);
  ASSERT_TRUE(again.ok());
  ASSERT_EQ(again->match.tokens_on_host, 112u);
  const auto ticket = manager_->prefetch(again->seq);
  ASSERT_TRUE(ticket.ok());
  ASSERT_FALSE(manager_->done(*ticket));
  EXPECT_EQ(manager_->pump(), 0u) << "pump() does not wait for the device";
  EXPECT_EQ(manager_->stats().blocks_promoted, 0u);
  EXPECT_EQ(out_[0], -1.0f) << "and nobody else has waited";
  EXPECT_EQ(broken(*manager_), "");
  EXPECT_OK(manager_->wait(*ticket)) << "a call that is named so does";
  EXPECT_EQ(out_, expected_);
  EXPECT_GT(manager_->stats().blocks_promoted, 0u);
  EXPECT_EQ(broken(*manager_), "");
}

TEST_F(SlowReaders, ALoadTakesOtherSlotsWhereThereAreSome) {
  make(40, false);
  put_below();
  const Tokens tokens = distinct(100, 0);
  const auto reader = manager_->begin(tokens);
  ASSERT_TRUE(reader.ok());
  ASSERT_OK(compute(*manager_, *engine_, reader->seq, tokens));
  const Slots read = table(*manager_, reader->seq);
  expect_attention(reader->seq, tokens);
  ASSERT_OK(manager_->rewind(reader->seq, 0));
  const auto again = manager_->begin(stored_);
  ASSERT_TRUE(again.ok());
  ASSERT_TRUE(manager_->prefetch(again->seq).ok());
  EXPECT_GT(manager_->pump(), 0u);
  EXPECT_EQ(out_[0], -1.0f) << "nobody has waited";
  for (const std::uint32_t slot : table(*manager_, again->seq))
    if (slot != firn::index(SlotId::kNone)) {
      EXPECT_EQ(std::count(read.begin(), read.end(), slot), 0) << "slot " << slot << " is still being read";
    }
  EXPECT_EQ(manager_->stats().blocks_promoted, 7u);
  device_.complete();
  EXPECT_EQ(out_, expected_);
}

// allocate() takes a cold slot from a live sequence while attention still reads it; what comes after may not be written
// by the host before that attention is done.
TEST_F(SlowReaders, AnEvictedColdSlotOfALiveSequenceIsNotLoadedIntoWhileItIsRead) {
  make(24, false);
  put_below();
  const Tokens tokens = distinct(300, 0);
  const auto reader = manager_->begin(tokens);
  ASSERT_TRUE(reader.ok());
  ASSERT_OK(compute(*manager_, *engine_, reader->seq, tokens));
  ASSERT_OK(manager_->wait_idle());
  const auto cold = manager_->stats().slots_cold;
  ASSERT_GT(cold, 8u);
  expect_attention(reader->seq, tokens);
  const auto greedy = manager_->begin(distinct(10, 9000));
  ASSERT_TRUE(greedy.ok());
  const auto all = static_cast<std::uint32_t>(manager_->stats().slots_free + cold);
  ASSERT_TRUE(manager_->allocate(greedy->seq, all * kBlockTokens).ok());
  ASSERT_OK(manager_->rewind(greedy->seq, 0));  // it has put nothing there, and gives them back
  const auto again = manager_->begin(stored_);
  ASSERT_TRUE(again.ok());
  const auto ticket = manager_->prefetch(again->seq);
  ASSERT_TRUE(ticket.ok());
  EXPECT_EQ(manager_->pump(), 0u);
  EXPECT_EQ(out_[0], -1.0f) << "nobody has waited";
  device_.complete();
  EXPECT_EQ(out_, expected_);
  EXPECT_GT(manager_->pump(), 0u);
  EXPECT_EQ(broken(*manager_), "");
}

TEST_F(Fences, ADeviceThatIsLostDropsWhatWaitsForIt) {
  for (const bool worker : {false, true}) {
    SCOPED_TRACE(worker ? "worker" : "pump");
    HandDevice device(threads_);
    const auto manager = make_manager(tiered(40, 4u << 20, worker), toy_model(), {&threads_, &device, {}});
    ASSERT_TRUE(manager);
    device.by_hand = true;
    const Tokens tokens = distinct(300, 0);
    const auto begun = manager->begin(tokens);
    ASSERT_TRUE(begun.ok());
    ASSERT_TRUE(manager->allocate(begun->seq, 300).ok());
    ASSERT_OK(submit_rows(*manager, begun->seq));
    ASSERT_OK(manager->commit(begun->seq, tokens));
    device.lose();
    const Status status = manager->wait_idle();
    EXPECT_TRUE(status.ok() || status.code() == Code::kIo) << status.message();
    EXPECT_EQ(manager->stats().frames_stored, 0u);
    EXPECT_GT(manager->stats().frames_failed, 0u);
    EXPECT_EQ(broken(*manager), "");
  }
}

// What has a frame below goes on, bit for bit; what has none is computed again, and whoever asks for it hears why.
TEST_F(Fences, AfterADeviceWasLostSequencesGoOnFromTheirFramesOnTheCpu) {
  for (const bool worker : {false, true}) {
    SCOPED_TRACE(worker ? "worker" : "pump");
    HandDevice device(threads_);
    Config config = tiered(40, 4u << 20, worker);
    config.protect.sinks = 0;  // sinks have no frame while a sequence lives
    const auto manager = make_manager(config, toy_model(), {&threads_, &device, {}});
    ASSERT_TRUE(manager);
    ToyEngine engine(*manager, kQueryHeads);
    const Tokens ended = distinct(120, 50'000), alive = distinct(300, 0), fresh = distinct(33, 90'000);
    const auto first = manager->begin(ended);
    ASSERT_TRUE(first.ok());
    ASSERT_OK(compute(*manager, engine, first->seq, ended));
    ASSERT_OK(manager->free(first->seq));
    const auto second = manager->begin(alive), third = manager->begin(fresh);
    ASSERT_TRUE(second.ok() && third.ok());
    ASSERT_OK(compute(*manager, engine, second->seq, alive));
    ASSERT_OK(compute(*manager, engine, third->seq, fresh));
    const auto expected = engine.attend(second->seq, alive, 290, 10);
    ASSERT_TRUE(expected.ok());
    ASSERT_OK(manager->wait_idle());
    EXPECT_EQ(manager->replace_device().status().code(), Code::kInvalidArgument) << "it works";

    device.by_hand = true;
    const auto waiting = manager->begin(distinct(10, 70'000));
    ASSERT_TRUE(waiting.ok());
    ASSERT_TRUE(manager->allocate(waiting->seq, 10).ok());
    ASSERT_OK(submit_rows(*manager, waiting->seq));
    const Fence never = device.last();
    device.lose();
    ASSERT_OK(manager->free(waiting->seq, never));
    EXPECT_EQ(engine.attend(second->seq, alive, 290, 10).status().code(), Code::kIo);
    const auto loss = manager->replace_device();
    ASSERT_TRUE(loss.ok()) << loss.status().message();
    EXPECT_EQ(device.regions, 0) << "everything went back";
    EXPECT_GE(loss->blocks_kept, 16u + 7u);
    EXPECT_GE(loss->blocks_lost, 3u + 2u);
    EXPECT_EQ(loss->sequences_cut, 2u);
    EXPECT_EQ(broken(*manager), "");
    EXPECT_EQ(manager->stats().slots_free, manager->stats().slots_total);

    // The cut ones: what is left is attended from frames, the rest computed again.
    const std::uint32_t left = manager->usable_tokens(second->seq);
    EXPECT_GE(left, 256u);
    EXPECT_LT(left, 300u);
    for (const Status& refused :
         {manager->allocate(second->seq, 1).status(), engine.attend(second->seq, alive, 299, 1).status()}) {
      EXPECT_EQ(refused.code(), Code::kCorrupt);
      EXPECT_NE(refused.message().find("with the device"), std::string::npos) << refused.message();
      EXPECT_NE(refused.message().find("rewind"), std::string::npos) << refused.message();
    }
    ASSERT_OK(manager->rewind(second->seq, left));
    ASSERT_OK(compute(*manager, engine, second->seq, alive));
    const auto again = engine.attend(second->seq, alive, 290, 10);
    ASSERT_TRUE(again.ok()) << again.status().message();
    EXPECT_EQ(*again, *expected);
    EXPECT_EQ(manager->usable_tokens(third->seq), 0u);
    ASSERT_OK(manager->rewind(third->seq, 0));
    ASSERT_OK(manager->free(third->seq, never)) << "a fence of the lost device has passed";
    // The ended one is found as before, and the one that had no frame is not.
    EXPECT_EQ(manager->match_prefix(ended).tokens_on_host, 112u);
    const PrefixMatch gone = manager->match_prefix(fresh);
    EXPECT_EQ(gone.tokens, 0u);
    EXPECT_EQ(gone.first_miss, MissReason::kDeviceLost);
    ASSERT_OK(manager->wait_idle());
    EXPECT_EQ(broken(*manager), "");
  }
}

TEST_F(Fences, ADeviceWithoutRoomReplacesNothing) {
  HandDevice lost(threads_), full(threads_), roomy(threads_);
  roomy.hide_pool = true;
  const auto manager = make_manager(tiered(40, 4u << 20), toy_model(), {&threads_, &lost, {}});
  ASSERT_TRUE(manager);
  ToyEngine engine(*manager, kQueryHeads);
  const Tokens tokens = distinct(120, 0);
  const auto begun = manager->begin(tokens);
  ASSERT_TRUE(begun.ok());
  ASSERT_OK(compute(*manager, engine, begun->seq, tokens));
  ASSERT_OK(manager->free(begun->seq));
  ASSERT_OK(manager->wait_idle());
  lost.lose();
  for (int nth = 1; nth <= 3; ++nth) {
    full.refuse_allocation = nth;
    EXPECT_EQ(manager->replace_device(&full).status().code(), Code::kNoSpace) << nth;
    EXPECT_EQ(full.regions, 0);
  }
  EXPECT_EQ(manager->match_prefix(tokens).tokens_on_device, 112u) << "nothing has changed";
  // One whose pool the host does not reach needs a transfer region besides, for which the budget has no room.
  const Status dear = manager->replace_device(&roomy).status();
  EXPECT_EQ(dear.code(), Code::kNoSpace);
  EXPECT_NE(dear.message().find("pool.budget"), std::string::npos) << dear.message();
  EXPECT_EQ(roomy.regions, 0);
  roomy.hide_pool = false;
  const auto loss = manager->replace_device(&roomy);
  ASSERT_TRUE(loss.ok()) << loss.status().message();
  EXPECT_EQ(loss->blocks_kept, 7u);
  EXPECT_EQ(manager->match_prefix(tokens).tokens_on_host, 112u);
  const auto again = manager->begin(tokens);
  ASSERT_TRUE(again.ok());
  const auto ticket = manager->prefetch(again->seq);
  ASSERT_TRUE(ticket.ok());
  ASSERT_OK(manager->wait(*ticket));
  EXPECT_EQ(manager->stats().blocks_promoted, 7u);
  ASSERT_OK(compute(*manager, engine, again->seq, tokens));
  ASSERT_OK(manager->free(again->seq));
  EXPECT_EQ(broken(*manager), "");
}

// --- in the middle of a move ---

// A pool that the host does not see is copied by the device, and in the middle of that copy, where the manager holds no
// lock, somebody calls.
class Interrupted : public testing::Test {
 protected:
  void SetUp() override {
    device_.hide_pool = true;
    Config config = tiered(60, 4u << 20);
    manager_ = make_manager(config, toy_model(), {&threads_, &device_, {}});
    ASSERT_TRUE(manager_);
    engine_.emplace(*manager_, kQueryHeads);
    const auto begun = manager_->begin(tokens_);
    ASSERT_TRUE(begun.ok());
    seq_ = begun->seq;
    ASSERT_OK(compute(*manager_, *engine_, seq_, tokens_));
    const auto out = engine_->attend(seq_, tokens_, 299, 1);
    ASSERT_TRUE(out.ok());
    expected_ = *out;
  }

  // Everything of the sequence into the host tier and out of the pool.
  void put_below() {
    ASSERT_OK(manager_->free(seq_));
    ASSERT_OK(manager_->wait_idle());
    ASSERT_TRUE(manager_->empty_pool(0x77).ok());
    const auto again = manager_->begin(tokens_);
    ASSERT_TRUE(again.ok());
    ASSERT_EQ(again->match.tokens_on_host, 288u);
    seq_ = again->seq;
  }

  // The same prompt once more reads what it read before.
  void reads_the_same() {
    const auto begun = manager_->begin(tokens_);
    ASSERT_TRUE(begun.ok());
    ASSERT_OK(compute(*manager_, *engine_, begun->seq, tokens_));
    const auto out = engine_->attend(begun->seq, tokens_, 299, 1);
    ASSERT_TRUE(out.ok()) << out.status().message();
    EXPECT_EQ(*out, expected_);
    EXPECT_OK(manager_->free(begun->seq));
  }

  void interrupt(const std::function<void()>& what) {
    called_ = 0;
    device_.on_copy = [this, what] {
      ++called_;
      what();
      EXPECT_EQ(broken(*manager_), "") << "in the middle";
    };
  }
  void after() {
    EXPECT_EQ(called_, 1) << "nothing was interrupted";
    EXPECT_EQ(broken(*manager_), "");
    ASSERT_OK(manager_->wait_idle());
    reads_the_same();
    EXPECT_EQ(broken(*manager_), "");
    EXPECT_EQ(manager_->stats().slots_in_flight, 0u);
  }

  const Tokens tokens_ = distinct(300, 0);
  ThreadPool threads_{1};
  HandDevice device_{threads_};
  std::unique_ptr<Manager> manager_;
  std::optional<ToyEngine> engine_;
  std::vector<float> expected_;
  SeqId seq_ = SeqId::kNone;
  int called_ = 0;
};

TEST_F(Interrupted, BlocksThatAreRewoundWhileTheyAreStoredAreNeverFound) {
  interrupt([&] { ASSERT_OK(manager_->rewind(seq_, 40)); });
  EXPECT_GT(manager_->pump(1), 0u);
  EXPECT_EQ(manager_->match_prefix(tokens_).tokens, 32u);
  EXPECT_EQ(manager_->stats().frames_stored, 0u);
  EXPECT_EQ(manager_->stats().slots_live, 3u);
  EXPECT_EQ(manager_->stats().slots_free, manager_->stats().slots_total - 3);
  ASSERT_OK(compute(*manager_, *engine_, seq_, tokens_));
  after();
}

TEST_F(Interrupted, ARewindIntoABlockThatIsBeingStoredWritesElsewhere) {
  Tokens other = first_of(tokens_, 40);
  interrupt([&] {
    ASSERT_OK(manager_->rewind(seq_, 40));
    // The block of token 40 is being read: the new tokens may not go there.
    const SlotId reading = manager_->block_table(seq_)[2];
    const auto orders = manager_->allocate(seq_, 20);
    ASSERT_TRUE(orders.ok()) << orders.status().message();
    ASSERT_EQ(orders->size(), 1u);
    EXPECT_EQ((*orders)[0].from, reading);
    EXPECT_NE(manager_->block_table(seq_)[2], reading);
    const Tokens fresh = distinct(20, 7000);
    other.insert(other.end(), fresh.begin(), fresh.end());
    for (std::uint32_t at = 40; at < 60; at += 10) {
      ASSERT_OK(engine_->append(seq_, other, at, 10));
      ASSERT_OK(manager_->commit(seq_, std::span(other).subspan(at, 10)));
    }
  });
  EXPECT_GT(manager_->pump(1), 0u);
  ASSERT_EQ(called_, 1);
  const auto begun = manager_->begin(other);
  ASSERT_TRUE(begun.ok());
  EXPECT_EQ(begun->match.tokens, 48u);
  ASSERT_OK(compute(*manager_, *engine_, begun->seq, other));
  const auto a = engine_->attend(begun->seq, other, 59, 1), b = engine_->attend(seq_, other, 59, 1);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(*a, *b);
  after();
}

TEST_F(Interrupted, ASequenceThatIsFreedWhileItIsStored) {
  interrupt([&] { ASSERT_OK(manager_->free(seq_)); });
  EXPECT_GT(manager_->pump(1), 0u);
  EXPECT_GT(manager_->stats().frames_stored, 0u) << "its blocks are cached, and so is their copy";
  EXPECT_EQ(manager_->match_prefix(tokens_).tokens, 288u);
  after();
}

TEST_F(Interrupted, AFullPoolDoesNotTakeWhatIsBeingStored) {
  interrupt([&] {
    ASSERT_OK(manager_->free(seq_));
    const std::uint64_t in_flight = manager_->stats().slots_in_flight;
    EXPECT_GT(in_flight, 0u);
    const auto greedy = manager_->begin(distinct(10, 9000));
    ASSERT_TRUE(greedy.ok());
    const auto all = static_cast<std::uint32_t>(manager_->stats().slots_total);
    EXPECT_EQ(manager_->allocate(greedy->seq, all * 16).status().code(), Code::kUnavailable);
    ASSERT_TRUE(manager_->allocate(greedy->seq, (all - static_cast<std::uint32_t>(in_flight)) * 16).ok());
    ASSERT_OK(manager_->free(greedy->seq));
  });
  EXPECT_GT(manager_->pump(1), 0u);
  after();
}

TEST_F(Interrupted, ASequenceThatIsRewoundWhileItComesBack) {
  put_below();
  const auto ticket = manager_->prefetch(seq_);
  ASSERT_TRUE(ticket.ok());
  interrupt([&] { ASSERT_OK(manager_->rewind(seq_, 10)); });
  ASSERT_OK(manager_->wait(*ticket));
  EXPECT_EQ(manager_->token_count(seq_), 10u);
  EXPECT_EQ(manager_->match_prefix(tokens_).tokens, 0u);
  ASSERT_OK(compute(*manager_, *engine_, seq_, tokens_));
  after();
}

TEST_F(Interrupted, ASequenceThatIsFreedWhileItComesBackAndWhoseSlotsAreWanted) {
  put_below();
  const auto ticket = manager_->prefetch(seq_);
  ASSERT_TRUE(ticket.ok());
  interrupt([&] {
    ASSERT_OK(manager_->free(seq_));
    EXPECT_GT(manager_->stats().slots_in_flight, 0u);
    const auto greedy = manager_->begin(distinct(10, 9000));
    ASSERT_TRUE(greedy.ok());
    ASSERT_TRUE(manager_->allocate(greedy->seq, static_cast<std::uint32_t>(manager_->stats().slots_free) * 16).ok());
    ASSERT_OK(manager_->free(greedy->seq));
  });
  ASSERT_OK(manager_->wait(*ticket));
  after();
}

TEST_F(Interrupted, ATicketThatIsCancelledWhileItRunsEndsWithTheRunningJob) {
  put_below();
  const auto ticket = manager_->prefetch(seq_);
  ASSERT_TRUE(ticket.ok());
  interrupt([&] {
    ASSERT_OK(manager_->cancel(*ticket));
    EXPECT_FALSE(manager_->done(*ticket)) << "one job is running";
  });
  EXPECT_EQ(manager_->pump(), 1u);
  EXPECT_TRUE(manager_->done(*ticket));
  after();
}

}  // namespace
}  // namespace firn::test
