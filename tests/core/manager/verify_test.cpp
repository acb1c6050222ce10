// verify() is what the other tests trust, so here it is put to the test: each invariant is broken by hand, one at a
// time, and verify() has to say which.
#include <gtest/gtest.h>

#include <functional>
#include <optional>

#include "tests/core/manager/hand_device.h"
#include "tests/core/manager/test_peer.h"
#include "tests/core/manager/toy_engine.h"

namespace firn::test {
namespace {

using Peer = ManagerTestPeer;

// A manager with something of everything: a live sequence that is hot at both ends and cold in between, resident and
// not, a fork that shares it, dead cached blocks with and without a copy, duplicates, free slots, frames live and dead.
class Verify : public testing::Test {
 protected:
  void SetUp() override {
    ModelSpec model = small_model(2, 1, 32);
    model.groups[0].query_heads = 2;
    Config config;
    config.device = "cpu";
    config.threads = 1;
    config.protect.sinks = 4;
    config.protect.recent = 16;
    config.pool.max_step_tokens = 256;
    config.pool.staging_bytes = kSplitTokens * model.groups[0].kv.token_bytes();
    config.pool.budget_bytes = 64 * model.block_bytes();
    config.host.budget_bytes = 4u << 20;
    config.host.huge_pages = false;
    config.mover.worker = false;
    manager_ = make_manager(config, model, {&threads_, &device_, {}});
    ASSERT_TRUE(manager_);
    const Tokens tokens = distinct(200, 0);
    ASSERT_OK(manager_->free(computed(tokens)));
    ASSERT_OK(manager_->wait_idle());
    ASSERT_TRUE(manager_->empty_pool(0).ok());
    seq_ = computed(tokens);  // its first blocks are on the host, the last ones in slots
    ASSERT_OK(manager_->wait_idle());
    const auto fork = manager_->fork(seq_);
    ASSERT_TRUE(fork.ok());
    fork_ = *fork;
    ASSERT_OK(manager_->free(computed(distinct(100, 5000))));
    ASSERT_OK(manager_->wait_idle());
    BeginOptions options;
    options.read_cache = false;
    ASSERT_OK(manager_->free(computed(distinct(60, 5000), options)));  // duplicates without a copy
    Peer::stores(*manager_).clear();
    for (std::uint32_t i = 0; i < pool().block_capacity(); ++i) pool().block(BlockId{i}).store_queued = false;
    ASSERT_EQ(broken(*manager_), "");
    const Stats stats = manager_->stats();
    ASSERT_GT(stats.slots_free, 2u);
    ASSERT_GT(stats.slots_cached, 2u);
    ASSERT_GT(stats.duplicate_blocks, 1u);
    ASSERT_GT(stats.frames, 1u);
  }

  SeqId computed(const Tokens& tokens, const BeginOptions& options = {}) {
    const auto begun = manager_->begin(tokens, options);
    EXPECT_TRUE(begun.ok());
    const auto count = static_cast<std::uint32_t>(tokens.size()) - begun->match.tokens;
    EXPECT_TRUE(manager_->allocate(begun->seq, count).ok());
    EXPECT_OK(manager_->commit(begun->seq, std::span(tokens).subspan(begun->match.tokens)));
    return begun->seq;
  }

  // Breaks something, asks, mends it, asks again. names: what has to be in the answer.
  void caught(const char* what, const std::string& names, const std::function<void()>& breaks,
              const std::function<void()>& mends) {
    SCOPED_TRACE(what);
    ASSERT_EQ(broken(*manager_), "") << "not even broken yet";
    breaks();
    const std::string found = broken(*manager_);
    mends();
    EXPECT_NE(found.find(names), std::string::npos) << "verify() says: " << (found.empty() ? "nothing" : found);
    ASSERT_EQ(broken(*manager_), "") << "not mended";
  }

  // The same for one value: it is set and set back.
  template <class T>
  void caught(const char* what, const std::string& names, T& value, T wrong) {
    const T right = value;
    ASSERT_NE(right, wrong) << what;
    caught(
        what, names, [&] { value = wrong; }, [&] { value = right; });
  }

  // For a record with narrow fields.
  template <class Record>
  void caught_in(const char* what, const std::string& names, Record& record,
                 const std::function<void(Record&)>& breaks) {
    const Record right = record;
    caught(
        what, names, [&] { breaks(record); }, [&] { record = right; });
  }
  void caught_in_block(const char* what, const std::string& names, BlockId id,
                       const std::function<void(Block&)>& breaks) {
    caught_in<Block>(what, names, block(id), breaks);
  }

  BlockPool& pool() { return Peer::pool(*manager_); }
  Block& block(BlockId id) { return pool().block(id); }
  // The n-th block of which this is true.
  BlockId first(const std::function<bool(const Block&)>& is, std::uint32_t n = 0) {
    for (std::uint32_t i = 0; i < pool().block_capacity(); ++i)
      if (block(BlockId{i}).in_use && is(block(BlockId{i})) && n-- == 0) return BlockId{i};
    ADD_FAILURE() << "there is no such block";
    return BlockId{0};
  }
  std::uint32_t free_slot(std::uint32_t n = 0) {
    for (std::uint32_t i = 1; i < pool().slot_count(); ++i)
      if (pool().state(SlotId{i}) == BlockPool::SlotState::kFree && n-- == 0) return i;
    ADD_FAILURE() << "there is no free slot";
    return 1;
  }
  Frame& frame(BlockId id) { return Peer::frames(*manager_).frame(block(id).frame); }
  static std::string named(BlockId id) { return "block " + std::to_string(index(id)) + ":"; }

  static bool is_hot(const Block& b) { return b.hot_refs != 0; }
  static bool is_dead(const Block& b) { return b.refs == 0; }
  static bool is_framed(const Block& b) { return b.frame != FrameId::kNone; }
  static bool is_resident(const Block& b) { return b.slot != SlotId::kNone; }
  static bool is_dead_resident(const Block& b) { return is_dead(b) && is_resident(b); }

  ThreadPool threads_{1};
  HandDevice device_{threads_};
  std::unique_ptr<Manager> manager_;
  SeqId seq_ = SeqId::kNone, fork_ = SeqId::kNone;
};

TEST_F(Verify, ReferencesAreCountedAnew) {
  const BlockId held = first(is_hot);
  caught_in_block("one reference too many", named(held) + " refs", held, [](Block& b) { ++b.refs; });
  caught_in_block("one too few", named(held) + " refs", held, [](Block& b) { --b.refs; });
  caught_in_block("a hot reference too many", named(held) + " hot_refs", held, [](Block& b) { ++b.hot_refs; });
  caught_in_block("none", named(held) + " hot_refs", held, [](Block& b) { b.hot_refs = 0; });
  const BlockId dead = first(is_dead_resident);
  caught_in_block("a dead block that claims a holder", named(dead) + " refs", dead, [](Block& b) { b.refs = 1; });
  caught_in_block("and to be hot", named(dead) + " hot_refs", dead, [](Block& b) { b.hot_refs = 1; });
}

TEST_F(Verify, TablesLeadToBlocksThatExist) {
  Sequence& seq = Peer::sequence(*manager_, seq_);
  caught("a table entry beyond the pool", "does not exist", seq.tables[0].blocks[2], BlockId{pool().block_capacity()});
  const BlockId other = first(is_dead_resident);
  caught("a table entry that is another block's", named(other) + " refs", seq.tables[0].blocks[2], other);
  std::uint32_t unused = 0;
  while (block(BlockId{unused}).in_use) ++unused;
  caught("a table entry whose record is free", "its record is free", seq.tables[0].blocks[2], BlockId{unused});
  caught("a window that starts elsewhere", "its window", seq.hot_first, seq.hot_first - 1);
  std::vector<BlockId> cut(seq.tables[0].blocks.begin(), seq.tables[0].blocks.begin() + 3);
  caught(
      "more tokens than blocks", "tokens in 3 blocks", [&] { seq.tables[0].blocks.swap(cut); },
      [&] { seq.tables[0].blocks.swap(cut); });
}

TEST_F(Verify, SlotsAndBlocksAgree) {
  const BlockId a = first(is_resident), b = first(is_resident, 1);
  caught("two blocks in one slot", named(a) + " slot", block(a).slot, block(b).slot);
  caught("a block in a slot beyond the pool", named(a) + " slot", block(a).slot, SlotId{pool().slot_count()});
  caught("a block in the null slot", named(a) + " slot", block(a).slot, SlotId{0});
  Peer::Slot& slot = Peer::slot(*manager_, index(block(a).slot));
  const std::string slot_a = "slot " + std::to_string(index(block(a).slot));
  using Slot = Peer::Slot;
  using State = BlockPool::SlotState;
  const std::uint32_t other = index(b);
  caught_in<Slot>("a slot that names another block", slot_a + ":", slot, [other](Slot& at) { at.link = other; });
  caught_in<Slot>("a slot that names nobody", slot_a, slot, [](Slot& at) { at.link = index(BlockId::kNone); });
  caught_in<Slot>("a slot that lost its block", "taken and given to nobody", slot,
                  [](Slot& at) { at.state = State::kTaken; });
  caught_in<Slot>("a slot that claims to be the null slot", "null slot", slot,
                  [](Slot& at) { at.state = State::kNull; });
  caught_in<Slot>("a slot that claims to be filled", "being filled", slot,
                  [](Slot& at) { at.state = State::kLoading; });
  caught("a load that nobody does", "being filled", Peer::loading_slots(*manager_), 1u);
}

TEST_F(Verify, TheFreeQueueIsWalkedBothWays) {
  using Slot = Peer::Slot;
  using State = BlockPool::SlotState;
  Slot& one = Peer::slot(*manager_, free_slot(1));
  const std::uint32_t self = free_slot(1), beyond = pool().slot_count();
  caught_in<Slot>("a link that skips a slot", "free queue", one,
                  [&](Slot& at) { at.link = Peer::slot(*manager_, at.link).link; });
  caught_in<Slot>("a link back to the wrong slot", "does not link back", one, [&](Slot& at) { at.previous = self; });
  caught_in<Slot>("a link out of the pool", "links outside", one, [&](Slot& at) { at.link = beyond; });
  caught_in<Slot>("a cycle", "free queue", one, [&](Slot& at) { at.link = self; });
  caught_in<Slot>("a queue that ends early", "free queue", one, [](Slot& at) { at.link = 0; });
  caught_in<Slot>("a tail that is not the last", "tail", Peer::slot(*manager_, 0),
                  [&](Slot& at) { at.previous = free_slot(0); });
  caught("a wrong count", "counted", Peer::free_slots(*manager_), Peer::free_slots(*manager_) + 1);
  caught_in<Slot>("a queued slot that is not free", "queued but not free", one,
                  [](Slot& at) { at.state = State::kTaken; });
  // A cached block's slot put into the queue: it would be handed out while its block is found.
  const BlockId cached = first(is_dead_resident);
  caught_in<Slot>("a cached slot that claims to be free", "free", Peer::slot(*manager_, index(block(cached).slot)),
                  [](Slot& at) { at.state = State::kFree; });
}

TEST_F(Verify, TheIndexAndTheBlocksAgreeBothWays) {
  const BlockId keyed = first([](const Block& b) { return b.full() && b.next_duplicate == BlockId::kNone; });
  Key wrong = block(keyed).key;
  wrong.bytes[4] ^= 1;  // its tag
  caught("a block whose key the index does not have", "index", block(keyed).key, wrong);
  const BlockId held = Peer::sequence(*manager_, seq_).tables[0].blocks[3];
  wrong = block(held).key;
  wrong.bytes[31] ^= 1;  // neither its place in the index nor its tag change
  caught("a key that is not that of the tokens", named(held) + " its key", block(held).key, wrong);
  caught("a block that lost its key", "index", block(keyed).key, Key{});
  auto& entries = Peer::entries(*manager_);
  std::size_t used = 0;
  while (entries[used].head == BlockId::kNone) ++used;
  const BlockId head = entries[used].head;
  caught("an entry that is gone", named(head) + " its key is not in the index", entries[used].head, BlockId::kNone);
  const BlockId stranger = first([&](const Block& b) { return b.full() && b.key != block(head).key; });
  caught("an entry that leads to another key's block", "index", entries[used].head, stranger);
  const BlockId first_twin = first([](const Block& b) { return b.next_duplicate != BlockId::kNone; });
  const BlockId twin = block(first_twin).next_duplicate;
  caught("a duplicate that fell off its chain", named(twin) + " its key is not in the index",
         block(first_twin).next_duplicate, BlockId::kNone);
  caught("a stranger in the chain", "not its own", block(twin).next_duplicate, stranger);
  caught("a wrong count of keys", "keys and", Peer::key_count(*manager_), Peer::key_count(*manager_) + 1);
  caught("a wrong count of duplicates", "duplicates", Peer::duplicate_count(*manager_), 0u);
}

TEST_F(Verify, FramesAndBlocksAgreeBothWays) {
  const BlockId a = first(is_framed);
  const BlockId b = first([&](const Block& other) { return is_framed(other) && other.frame != block(a).frame; });
  caught("a block that points at a foreign frame", named(a) + " frame", block(a).frame, block(b).frame);
  caught("a frame out of the table", named(a) + " frame", block(a).frame, FrameId{Peer::frames(*manager_).capacity()});
  caught_in_block("another place within it", "frame", a,
                  [](Block& block_of_it) { block_of_it.frame_index = block_of_it.frame_index == 0 ? 1 : 0; });
  const std::uint8_t at = block(a).frame_index;
  const std::string frame_a = "frame " + std::to_string(index(block(a).frame));
  caught("a frame that holds a foreign block", frame_a, frame(a).blocks[at], b);
  caught("a frame that forgot one", named(a) + " frame", frame(a).blocks[at], BlockId::kNone);
  caught("a frame that is live and says not", frame_a, frame(a).live, static_cast<std::uint16_t>(frame(a).live + 1));
  caught("a frame that is no candidate and should be, or the other way", frame_a, frame(a).candidate,
         !frame(a).candidate);
  caught("a frame whose record is free", named(a) + " frame", frame(a).in_use, false);
  FrameKey elsewhere = frame(a).key;
  ++elsewhere.lo;
  caught("a frame that the tier does not have", "the host tier does not have it", frame(a).key, elsewhere);
  caught("a wrong count", "frames:", Peer::frame_count(*manager_), Peer::frame_count(*manager_) + 1);
  caught("wrong raw bytes", "raw bytes", Peer::host_raw_bytes(*manager_), std::uint64_t{1});
  const BlockId cold = first([](const Block& other) { return is_framed(other) && !is_resident(other); });
  const FrameId had = block(cold).frame;
  const std::uint8_t place = block(cold).frame_index;
  caught(
      "a block whose bytes are nowhere", named(cold) + " neither",
      [&] {
        Peer::frames(*manager_).frame(had).blocks[place] = BlockId::kNone;
        block(cold).frame = FrameId::kNone;
      },
      [&] {
        Peer::frames(*manager_).frame(had).blocks[place] = cold;
        block(cold).frame = had;
      });
}

TEST_F(Verify, FramesOfTheTierAreAllKnown) {
  MemoryTier& host = Peer::host(*manager_);
  const FrameKey key{1, 2};
  caught(
      "a frame in the tier that nobody knows", "the host tier has",
      [&] {
        auto reservation = host.reserve(64);
        ASSERT_TRUE(reservation.ok());
        ASSERT_OK(host.publish(std::move(*reservation), key, 64));
      },
      [&] { EXPECT_TRUE(host.erase(key)); });
}

TEST_F(Verify, CandidatesAreWhoMayGo) {
  EvictionPolicy& policy = Peer::slot_policy(*manager_);
  const BlockId dead = first(is_dead_resident), hot = first(is_hot);
  caught(
      "a dead block that is no candidate", named(dead) + " is not a candidate", [&] { block(dead).candidate = false; },
      [&] { block(dead).candidate = true; });
  caught(
      "a hot block that is one", named(hot) + " must not be a candidate", [&] { block(hot).candidate = true; },
      [&] { block(hot).candidate = false; });
  BlockFacts facts;
  facts.id = hot;
  caught(
      "a candidate that only the policy knows", "the policy knows", [&] { policy.on_insert(facts, {}); },
      [&] { policy.on_remove(hot); });
  facts.id = first([](const Block& b) { return !b.candidate; }, 1);
  EvictionPolicy& frames = Peer::frame_policy(*manager_);
  caught(
      "likewise below", "host eviction", [&] { frames.on_insert(facts, {}); }, [&] { frames.on_remove(facts.id); });
}

TEST_F(Verify, RecordsAreCountedAndNoneIsOrphaned) {
  caught("a wrong count of records", "records in use", Peer::block_count(*manager_), 3u);
  std::uint32_t unused = 0;
  while (block(BlockId{unused}).in_use) ++unused;
  caught(
      "a record that nobody holds or finds", "nobody holds or finds it", [&] { block(BlockId{unused}).in_use = true; },
      [&] { block(BlockId{unused}).in_use = false; });
}

TEST_F(Verify, TheLedgerIsTheSumOfItsParts) {
  Ledger& ledger = Peer::ledger(*manager_);
  for (const Account account : {Account::kMetadata, Account::kHostScratch, Account::kHostFrames}) {
    std::optional<Ledger::Charge> charge;
    caught(
        "bytes that no part has", "ledger",
        [&] {
          auto charged = ledger.charge(account, 16);
          ASSERT_TRUE(charged.ok()) << charged.status().message();
          charge.emplace(std::move(*charged));
        },
        [&] { charge.reset(); });
  }
  Sequence& small = Peer::sequence(*manager_, seq_);
  caught("a sequence whose room was not charged", "small", small.small, false);
  // Those that find no room which was charged already are charged themselves.
  SeqId id = seq_;
  for (int i = 0; i < 20; ++i) id = manager_->begin(distinct(1, 9000)).value().seq;
  Sequence& seq = Peer::sequence(*manager_, id);
  Ledger::Charge lost;
  caught(
      "a sequence that is not charged", "ledger", [&] { std::swap(lost, seq.charge); },
      [&] { std::swap(lost, seq.charge); });
}

TEST_F(Verify, APreemptedSequenceRemembersNothingOfItsBlocks) {
  ASSERT_OK(manager_->preempt(fork_));
  Sequence& seq = Peer::sequence(*manager_, fork_);
  caught("a window", "remembers", seq.hot_first, 3u);
  caught("what was lost", "remembers", seq.lost_from, 2u);
  caught("where storing goes on", "remembers", seq.tables[0].store_next, 9u);
  caught("what slid out", "remembers", seq.tables[0].first_held, 1u);
  caught("a name", "remembers", seq.last_key, block(first([](const Block& b) { return b.full(); })).key);
  std::vector<BlockId> held{Peer::sequence(*manager_, seq_).tables[0].blocks[0]};
  caught(
      "a block", "preempted, and holds", [&] { seq.tables[0].blocks.swap(held); },
      [&] { seq.tables[0].blocks.swap(held); });
}

TEST_F(Verify, WhatIsStoredTogetherWasComputedInARow) {
  const BlockId a = first(is_framed);
  const std::string frame_a = "frame " + std::to_string(index(block(a).frame)) + ":";
  caught("a frame from another place", frame_a, frame(a).first_position, frame(a).first_position + kBlockTokens);
  Key wrong = frame(a).last_key;
  wrong.bytes[0] ^= 1;
  caught("a frame that ends elsewhere", frame_a, frame(a).last_key, wrong);
  const std::vector<BlockId>& blocks = Peer::sequence(*manager_, seq_).tables[0].blocks;
  caught_in_block("a block that is not where it was computed", named(blocks[3]) + " number", blocks[3],
                  [](Block& b) { b.position = 7; });
  const auto ref = [&](BlockId id) { return BlockRef{id, pool().generation(id)}; };
  Job job;
  job.count = 2;
  job.blocks[0] = ref(blocks[3]), job.blocks[1] = ref(blocks[5]);
  caught(
      "a move of blocks that do not follow each other", "does not follow it",
      [&] { Peer::stores(*manager_).push_back(job); }, [&] { Peer::stores(*manager_).pop_back(); });
}

TEST_F(Verify, CandidatesThatAreKeptBackAreCounted) {
  const BlockId dead = first(is_dead_resident);
  caught_in_block("a block that a family seems to keep", named(dead) + " must not be kept", dead,
                  [](Block& b) { b.kept_by_family = true; });
  caught("a count of all", "candidates are read", Peer::kept_by_readers(*manager_),
         Peer::kept_by_readers(*manager_) + 1);
}

TEST_F(Verify, BlocksBehindAFenceHaveHolders) {
  ASSERT_OK(manager_->free(fork_, {Fence::Kind::kTimeline, 7, ~std::uint64_t{0}}));  // far in the future
  std::vector<BlockId>& blocks = Peer::deferred_blocks(*manager_);
  std::vector<BlockId> none;
  caught(
      "a slot given back before its fence", "refs", [&] { blocks.swap(none); }, [&] { blocks.swap(none); });
}

// Pools that grow and shrink, reservations and slots on their way have books of their own.
class VerifyBooks : public testing::Test {
 protected:
  void caught(const char* what, const std::string& names, const std::function<void()>& breaks,
              const std::function<void()>& mends) {
    SCOPED_TRACE(what);
    ASSERT_EQ(broken(*manager_), "") << "not even broken yet";
    breaks();
    const std::string found = broken(*manager_);
    mends();
    EXPECT_NE(found.find(names), std::string::npos) << "verify() says: " << (found.empty() ? "nothing" : found);
    ASSERT_EQ(broken(*manager_), "") << "not mended";
  }
  static Config settings() {
    Config config = bookkeeping(32);
    config.pool.max_budget_bytes = 64 * small_model().block_bytes();
    return config;
  }
  std::unique_ptr<Manager> manager_ = make_manager(settings());
};

TEST_F(VerifyBooks, SlotsAreWhereTheirChunkIs) {
  const SeqId seq = prompt(*manager_, distinct(100, 0));
  const std::uint32_t bound = table(*manager_, seq)[0];
  std::uint32_t chunk = 0;
  const std::string gone = "its chunk is absent";
  for (const std::uint32_t slot : {bound, 32u})  // one that a block is in, and a free one
    caught(
        "a slot whose memory is gone", "slot " + std::to_string(slot) + ": " + gone,
        [&] { chunk = std::exchange(Peer::chunk_slots(*manager_, slot), 0); },
        [&] { Peer::chunk_slots(*manager_, slot) = chunk; });
  caught(
      "memory that nobody uses", "its chunk is there, and it is not", [&] { Peer::chunk_slots(*manager_, 64) = 1; },
      [&] { Peer::chunk_slots(*manager_, 64) = 0; });
}

TEST_F(VerifyBooks, ReservationsAreSummedByNamespace) {
  BeginOptions options{.name_space = "a", .admission = Admission::kReserve, .expected_tokens = 64};
  ASSERT_OK(manager_->begin(Tokens{1}, options).status());
  std::uint32_t& reserved = Peer::reserved_in(*manager_, "a");
  EXPECT_EQ(reserved, 4u);
  caught(
      "slots kept for nobody", "slots kept for its sequences", [&] { ++reserved; }, [&] { --reserved; });
}

TEST_F(VerifyBooks, FamiliesKeepWhatTheyKeep) {
  const Tokens tokens = distinct(48, 0);
  ASSERT_OK(manager_->free(prompt(*manager_, tokens)));
  const std::vector<Key> keys = manager_->compute_keys(tokens);
  ASSERT_OK(manager_->set_family(std::span(keys).first(2)));
  const SeqId reader = manager_->begin(distinct(17, 0))->seq;
  Block& kept = Peer::pool(*manager_).block(BlockId{1});
  ASSERT_TRUE(kept.kept_by_family);
  caught(
      "a block that its family does not keep", "is not kept by its family", [&] { kept.kept_by_family = false; },
      [&] { kept.kept_by_family = true; });
  ASSERT_OK(manager_->free(reader));
  EXPECT_FALSE(kept.kept_by_family);
}

}  // namespace
}  // namespace firn::test
