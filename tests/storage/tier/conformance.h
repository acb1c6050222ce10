// conformance.h: what every tier must do, whatever it stores frames in. A tier's test program includes this once and
// says
//   INSTANTIATE_TEST_SUITE_P(Disk, TierConformance, testing::Values(TierCase{"plain", make_disk}), case_name);
// and, if its frames can be read in place, the same for MemoryTierConformance. Make the tier small (1 to 16 MiB): one
// test fills it. A case with `lossy` may fail and lose ops, but never answer with other bytes.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "firn/tier.h"
#include "tests/storage/tier/frames.h"

namespace firn::conformance {

inline constexpr std::int64_t kPatience = 30'000'000'000;  // ns; a hang becomes a failure, a slow machine does not

struct TierSubject {
  std::unique_ptr<Ledger> ledger;  // members die last to first
  std::unique_ptr<Tier> inner;     // what the tier under test stands on, if anything
  std::unique_ptr<Tier> tier;

  void clear() {
    tier.reset();
    inner.reset();
    ledger.reset();
  }
};
struct TierCase {
  std::string name;
  std::function<TierSubject()> make;
  bool lossy = false;
};
inline std::string case_name(const testing::TestParamInfo<TierCase>& info) { return info.param.name; }
inline void PrintTo(const TierCase& param, std::ostream* out) { *out << param.name; }

inline void expect_consistent(const Tier& tier) {
  const Status status = tier.verify();
  EXPECT_TRUE(status.ok()) << status.message();
  const Tier::Stats stats = tier.stats();
  EXPECT_LE(stats.resident_bytes + stats.metadata_bytes, stats.capacity_bytes);
  EXPECT_LE(stats.pinned_bytes, stats.resident_bytes);
  EXPECT_LE(stats.hits + stats.misses, stats.gets);
  EXPECT_LE(stats.gets, stats.hits + stats.misses + stats.failures);
}

class TierConformance : public testing::TestWithParam<TierCase> {
 protected:
  void SetUp() override {
    subject_ = GetParam().make();
    ASSERT_NE(subject_.tier, nullptr);
  }
  void TearDown() override {
    if (subject_.tier != nullptr) expect_consistent(*subject_.tier);
  }
  Tier& tier() { return *subject_.tier; }
  bool lossy() const { return GetParam().lossy; }
  std::size_t frame_limit() { return std::min<std::size_t>(tier().capabilities().max_frame_bytes, 100'000); }

  std::vector<Done> run(std::span<const Op> batch) {
    Result<Ticket> ticket = tier().submit(batch);
    EXPECT_TRUE(ticket.ok()) << ticket.status().message();
    if (!ticket.ok()) return {};
    Result<std::vector<Done>> done = tier().wait(*ticket, kPatience);
    EXPECT_TRUE(done.ok()) << done.status().message();
    if (!done.ok()) return {};
    EXPECT_EQ(done->size(), batch.size());
    for (std::size_t i = 0; i < done->size(); ++i) {
      EXPECT_EQ((*done)[i].op, i);
      EXPECT_EQ((*done)[i].ticket, *ticket);
    }
    return std::move(done).value();
  }
  Done run(const Op& op) {
    std::vector<Done> done = run(std::span(&op, 1));
    return done.empty() ? Done{} : std::move(done.front());
  }
  // Each returns whether the op did what was asked; without faults, anything else is a failure of the test.
  bool put(std::uint64_t key, std::span<const std::byte> bytes) {
    const Done done = run(put_op(key, bytes));
    if (lossy() && !done.status.ok()) return false;
    EXPECT_TRUE(done.status.ok()) << done.status.message();
    EXPECT_EQ(done.bytes, bytes.size());
    return done.status.ok();
  }
  bool expect_frame(std::uint64_t key, const Bytes& expected) {
    Bytes room(expected.size() + 100, std::byte{0x5a});
    const Done done = run(get_op(key, room));
    if (lossy() && (!done.status.ok() || !done.found)) return false;
    EXPECT_TRUE(done.status.ok()) << done.status.message();
    EXPECT_TRUE(done.found) << "key " << key;
    EXPECT_EQ(done.bytes, expected.size());
    const bool right = done.bytes == expected.size() && same(expected, std::span(room).first(expected.size()));
    EXPECT_TRUE(right) << "key " << key << ": other bytes came back";
    const bool intact = same(std::span(room).subspan(expected.size()), Bytes(100, std::byte{0x5a}));
    EXPECT_TRUE(intact) << "key " << key << ": bytes behind the frame were written";
    return done.found;
  }
  void expect_absent(std::uint64_t key) {
    Bytes room(64, std::byte{0x5a});
    const Done get = run(get_op(key, room)), contains = run(plain_op(Verb::kContains, key));
    EXPECT_TRUE(lossy() || get.status.ok()) << get.status.message();
    EXPECT_FALSE(get.found);
    EXPECT_FALSE(contains.found);
    EXPECT_EQ(room, Bytes(64, std::byte{0x5a})) << "a miss wrote to the destination";
  }
  bool erase(std::uint64_t key) {
    const Done done = run(plain_op(Verb::kErase, key));
    if (!lossy()) {
      EXPECT_TRUE(done.status.ok()) << done.status.message();
    }
    return done.status.ok() && done.found;
  }

  TierSubject subject_;
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(TierConformance);

TEST_P(TierConformance, GivesBackTheBytesItWasGiven) {
  std::mt19937_64 random(1);
  std::vector<std::size_t> sizes = {1, 2, 63, 64, 65, 127, 128, 4095, 4096, 4097, 65'536};
  for (int i = 0; i < 20; ++i) sizes.push_back(1 + random() % frame_limit());
  std::uint64_t key = 0;
  for (const std::size_t bytes : sizes) {
    if (bytes > frame_limit()) continue;
    const Bytes frame = content(++key, bytes);
    if (!put(key, frame)) continue;
    expect_frame(key, frame);
    if (!lossy()) {
      EXPECT_EQ(run(plain_op(Verb::kContains, key)).bytes, bytes);
    }
    erase(key);
  }
}

TEST_P(TierConformance, KeepsManyFramesApart) {
  for (std::uint64_t key = 0; key < 60; ++key) put(key, content(key, 100 + key * 37));
  for (std::uint64_t key = 60; key-- > 0;) expect_frame(key, content(key, 100 + key * 37));
}

TEST_P(TierConformance, TellsKeysApartByEveryBit) {
  const auto bytes_for = [](int bit) { return content(static_cast<std::uint64_t>(bit), 64); };
  const auto key_for = [](int bit) {
    FrameKey key{1, 1};
    (bit < 64 ? key.hi : key.lo) ^= std::uint64_t{1} << (bit % 64);
    return key;
  };
  for (int bit = 0; bit < 128; ++bit) {
    const Bytes frame = bytes_for(bit);
    Op op = put_op(0, frame);
    op.key = key_for(bit);
    run(op);
  }
  for (int bit = 0; bit < 128; ++bit) {
    Bytes room(64);
    Op op = get_op(0, room);
    op.key = key_for(bit);
    const Done done = run(op);
    if (lossy() && !done.found) continue;
    EXPECT_TRUE(done.found);
    EXPECT_EQ(room, bytes_for(bit)) << "bit " << bit;
  }
}

TEST_P(TierConformance, AnswersAbsentKeysWithMisses) {
  expect_absent(7);
  EXPECT_FALSE(erase(7) && !lossy());
  put(8, content(8, 100));
  expect_absent(7);
}

TEST_P(TierConformance, ErasesWhatItIsToldAndNothingElse) {
  for (std::uint64_t key = 0; key < 20; ++key) put(key, content(key, 500));
  for (std::uint64_t key = 0; key < 20; key += 2) {
    if (lossy()) {
      erase(key);
      continue;
    }
    EXPECT_TRUE(erase(key));
    EXPECT_FALSE(erase(key)) << "erased twice";
    expect_absent(key);
  }
  for (std::uint64_t key = 1; key < 20; key += 2) expect_frame(key, content(key, 500));
  if (lossy()) return;
  for (std::uint64_t key = 0; key < 20; key += 2) {
    put(key, content(key, 700, 2));  // the name is free again
    expect_frame(key, content(key, 700, 2));
  }
}

TEST_P(TierConformance, KeepsTheFirstFrameOfAName) {
  const bool first = put(1, content(1, 300));
  const Done again = run(put_op(1, content(1, 300, 2)));
  if (lossy() && !first) return;
  if (!lossy()) {
    EXPECT_TRUE(again.status.ok()) << again.status.message();
  }
  Bytes room(300);
  const Done done = run(get_op(1, room));
  if (lossy() && !done.found) return;
  EXPECT_TRUE(room == content(1, 300) || (lossy() && room == content(1, 300, 2)));
}

TEST_P(TierConformance, AnswersAMixedBatchInOpOrder) {
  const Bytes a = content(1, 1000), b = content(2, 2000), c = content(3, 3000);
  put(1, a);
  put(2, b);
  Bytes room_1(1000), room_9(1000);
  const Op batch[] = {get_op(1, room_1), put_op(3, c), get_op(9, room_9), plain_op(Verb::kErase, 2),
                      plain_op(Verb::kContains, 9)};
  const std::vector<Done> done = run(batch);
  ASSERT_EQ(done.size(), 5u);
  if (lossy()) return;
  for (const Done& entry : done) EXPECT_TRUE(entry.status.ok()) << entry.status.message();
  EXPECT_TRUE(done[0].found);
  EXPECT_EQ(room_1, a);
  EXPECT_EQ(done[1].bytes, 3000u);
  EXPECT_FALSE(done[2].found);
  EXPECT_TRUE(done[3].found);
  EXPECT_FALSE(done[4].found);
  expect_frame(3, c);
  expect_absent(2);
}

TEST_P(TierConformance, TakesAFullBatch) {
  const std::uint32_t count = tier().capabilities().max_batch;
  std::vector<Bytes> frames, rooms(count, Bytes(100));
  std::vector<Op> puts, gets;
  for (std::uint32_t i = 0; i < count; ++i) frames.push_back(content(i, 100));
  for (std::uint32_t i = 0; i < count; ++i) puts.push_back(put_op(i, frames[i])), gets.push_back(get_op(i, rooms[i]));
  run(puts);
  const std::vector<Done> done = run(gets);
  ASSERT_EQ(done.size(), count);
  for (std::uint32_t i = 0; i < count; ++i)
    EXPECT_TRUE(rooms[i] == frames[i] || (lossy() && !(done[i].status.ok() && done[i].found))) << "op " << i;
}

TEST_P(TierConformance, RefusesWhatIsOutOfBoundsAndTakesNothing) {
  const Tier::Capabilities limits = tier().capabilities();
  const Bytes frame = content(1, 100);
  Bytes room(100);
  const auto refused = [&](std::span<const Op> batch, const char* what) {
    const Result<Ticket> ticket = tier().submit(batch);
    ASSERT_FALSE(ticket.ok()) << what;
    EXPECT_EQ(ticket.status().code(), Code::kInvalidArgument) << what;
    EXPECT_FALSE(ticket.status().message().empty());
  };
  refused({}, "empty batch");
  refused(std::vector<Op>(limits.max_batch + 1, plain_op(Verb::kContains, 1)), "batch too large");
  Op op = put_op(1, {});
  refused({&op, 1}, "put of nothing");
  op = put_op(1, {frame.data(), limits.max_frame_bytes + 1});  // only the size is looked at
  refused({&op, 1}, "oversize");
  op = get_op(1, {});
  refused({&op, 1}, "get without room");
  op = put_op(1, frame);
  op.deadline_ns = -1;
  refused({&op, 1}, "negative deadline");
  op = plain_op(static_cast<Verb>(17), 1);
  refused({&op, 1}, "unknown verb");
  const Op good_then_bad[] = {put_op(1, frame), get_op(2, {})};
  refused(good_then_bad, "second op bad");
  expect_absent(1);
  EXPECT_EQ(tier().stats().frames, 0u);
}

TEST_P(TierConformance, LeavesADestinationThatIsTooSmallAlone) {
  if (!put(1, content(1, 1000))) return;
  Bytes room(999, std::byte{0x5a});
  const Done done = run(get_op(1, room));
  if (lossy() && !done.found) return;
  EXPECT_EQ(done.status.code(), Code::kInvalidArgument);
  EXPECT_TRUE(done.found);
  EXPECT_EQ(done.bytes, 1000u) << "so that the caller knows what to bring";
  EXPECT_EQ(room, Bytes(999, std::byte{0x5a}));
  expect_frame(1, content(1, 1000));
}

TEST_P(TierConformance, EndsOpsByTheirDeadlineOneWayOrTheOther) {
  const Bytes frame = content(1, 5000);
  Op op = put_op(1, frame);
  op.deadline_ns = kPatience;
  EXPECT_TRUE(run(op).status.ok() || lossy());
  Bytes room(5000);
  op = get_op(1, room);
  op.deadline_ns = 1;  // cannot be kept by a store, is kept by memory
  const Done done = run(op);
  if (done.status.ok() && done.found) {
    EXPECT_EQ(room, frame);
  } else if (!lossy()) {
    EXPECT_EQ(done.status.code(), Code::kUnavailable) << done.status.message();
  }
  expect_frame(1, frame);
}

TEST_P(TierConformance, NeverExceedsItsBudgetAndLosesNothingWhenFull) {
  const std::size_t bytes = std::min<std::size_t>(frame_limit(), 60'000);
  const std::uint64_t most = tier().stats().capacity_bytes / bytes + 2;
  std::vector<std::uint64_t> stored;
  bool full = false;
  for (std::uint64_t key = 0; key < (lossy() ? 4 : 1) * most && !full; ++key) {
    const Done done = run(put_op(key, content(key, bytes)));
    full = done.status.code() == Code::kNoSpace;
    if (full) {
      EXPECT_FALSE(done.status.message().empty());
    }
    if (!full && !lossy()) {
      EXPECT_TRUE(done.status.ok()) << done.status.message();
    }
    if (done.status.ok()) stored.push_back(key);
    const Tier::Stats stats = tier().stats();
    ASSERT_LE(stats.resident_bytes + stats.metadata_bytes, stats.capacity_bytes);
  }
  ASSERT_TRUE(full) << "more was stored than the tier has room for";
  EXPECT_GT(tier().stats().refused_no_space, 0u);
  expect_absent(1u << 30);
  for (const std::uint64_t key : stored) expect_frame(key, content(key, bytes));
  if (lossy()) return;
  for (int round = 0; round < 3; ++round) {  // room for one made is room for one used
    EXPECT_TRUE(erase(stored[static_cast<std::size_t>(round)]));
    EXPECT_TRUE(put(1000u + static_cast<std::uint64_t>(round), content(9, bytes)));
  }
  for (std::size_t i = 3; i < stored.size(); ++i) expect_frame(stored[i], content(stored[i], bytes));
  for (std::size_t i = 3; i < stored.size(); ++i) EXPECT_TRUE(erase(stored[i]));
  for (std::uint64_t round = 0; round < 3; ++round) EXPECT_TRUE(erase(1000 + round));
  EXPECT_EQ(tier().stats().frames, 0u);
}

TEST_P(TierConformance, HandsOutEachDoneOnceOldestFirst) {
  std::vector<Ticket> tickets;
  for (std::uint64_t i = 0; i < 5; ++i) {
    const Op batch[] = {plain_op(Verb::kContains, i), plain_op(Verb::kContains, i)};
    Result<Ticket> ticket = tier().submit(batch);
    ASSERT_TRUE(ticket.ok());
    tickets.push_back(*ticket);
  }
  ASSERT_TRUE(tier().wait(tickets[2], kPatience).ok()) << "a wait must not lose, nor be lost among, the others";
  EXPECT_EQ(tier().wait(tickets[2], 0).status().code(), Code::kInvalidArgument) << "collected twice";
  std::vector<Done> all;
  Done some[3];
  for (int spins = 0; all.size() < 8 && spins < 1'000'000; ++spins) {
    const std::size_t count = tier().poll(some);
    all.insert(all.end(), some, some + count);
    if (count == 0) std::this_thread::yield();
  }
  ASSERT_EQ(all.size(), 8u);
  EXPECT_EQ(tier().poll(some), 0u);
  std::set<std::pair<Ticket, std::uint32_t>> seen;
  for (const Done& done : all) {
    EXPECT_NE(done.ticket, tickets[2]);
    EXPECT_TRUE(seen.emplace(done.ticket, done.op).second) << "the same Done twice";
  }
  if (tier().capabilities().immediate) {
    EXPECT_TRUE(std::is_sorted(all.begin(), all.end(), [](auto& a, auto& b) { return a.ticket < b.ticket; }));
  }
}

TEST_P(TierConformance, BoundsWhatNobodyCollects) {
  const Op op = plain_op(Verb::kContains, 1);
  std::vector<Ticket> tickets;
  for (std::uint32_t i = 0; i < Tier::kMaxInFlight; ++i) {
    Result<Ticket> ticket = tier().submit({&op, 1});
    ASSERT_TRUE(ticket.ok()) << i << ": " << ticket.status().message();
    tickets.push_back(*ticket);
  }
  EXPECT_EQ(tier().submit({&op, 1}).status().code(), Code::kUnavailable);
  for (const Ticket ticket : tickets) ASSERT_TRUE(tier().wait(ticket, kPatience).ok());
  run(op);
}

TEST_P(TierConformance, CountsWhatItDid) {
  if (lossy()) return;  // counted too, but the numbers depend on the faults
  put(1, content(1, 1000));
  put(2, content(2, 500));
  expect_frame(1, content(1, 1000));
  expect_absent(3);
  erase(2);
  erase(3);
  const Tier::Stats stats = tier().stats();
  EXPECT_EQ(stats.puts, 2u);
  EXPECT_EQ(stats.put_bytes, 1500u);
  EXPECT_EQ(stats.gets, 2u);
  EXPECT_EQ(stats.get_bytes, 1000u);
  EXPECT_EQ(stats.hits, 1u);
  EXPECT_EQ(stats.misses, 1u);
  EXPECT_EQ(stats.erases, 1u);
  EXPECT_EQ(stats.frames, 1u);
  EXPECT_EQ(stats.failures + stats.refused_no_space, 0u);
  EXPECT_GE(stats.resident_bytes, 1000u);
}

// What a tier may hold, given what it answered so far. Without faults: exactly one version, or nothing.
class Model {
 public:
  explicit Model(bool lossy) : lossy_(lossy) {}
  static std::size_t size_of(std::uint64_t key, std::size_t limit) {
    return key % 7 == 0 ? 1 + key : 1 + key * 7919 % limit;
  }
  std::uint64_t next_version(std::uint64_t key) const { return frames_.count(key) != 0 ? frames_.at(key).next : 0; }

  void on_put(std::uint64_t key, const Done& done) {
    if (!done.status.ok()) {
      EXPECT_TRUE(done.status.code() == Code::kNoSpace || lossy_) << done.status.message();
      return;
    }
    Frame& frame = frames_[key];
    if (frame.versions.empty() || lossy_) frame.versions.insert(frame.next);
    frame.present = true;
  }
  void on_erase(std::uint64_t key, const Done& done) {
    if (lossy_) {
      ++frames_[key].next;
      return;
    }
    Frame& frame = frames_[key];
    EXPECT_TRUE(done.status.ok()) << done.status.message();
    EXPECT_EQ(done.found, frame.present) << "key " << key;
    frame.present = false;
    frame.versions.clear();
    ++frame.next;
  }
  void on_contains(std::uint64_t key, const Done& done, std::size_t limit) {
    if (lossy_) return;
    EXPECT_EQ(done.found, frames_[key].present) << "key " << key;
    if (done.found) {
      EXPECT_EQ(done.bytes, size_of(key, limit));
    }
  }
  void on_get(std::uint64_t key, const Done& done, const Bytes& room, std::size_t limit) {
    const Frame& frame = frames_[key];
    if (!lossy_) {
      EXPECT_TRUE(done.status.ok()) << done.status.message();
      EXPECT_EQ(done.found, frame.present) << "key " << key;
    }
    if (!done.status.ok() || !done.found) return;
    ASSERT_EQ(done.bytes, size_of(key, limit));
    const bool known = std::any_of(frame.versions.begin(), frame.versions.end(),
                                   [&](std::uint64_t version) { return room == content(key, done.bytes, version); });
    EXPECT_TRUE(known) << "key " << key << ": bytes that were never put";
  }
  std::uint64_t present() const {
    return static_cast<std::uint64_t>(
        std::count_if(frames_.begin(), frames_.end(), [](const auto& entry) { return entry.second.present; }));
  }

 private:
  struct Frame {
    bool present = false;
    std::set<std::uint64_t> versions;
    std::uint64_t next = 0;
  };
  bool lossy_;
  std::map<std::uint64_t, Frame> frames_;
};

TEST_P(TierConformance, AgreesWithAModelUnderRandomOperations) {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    subject_.clear();  // the old one first: some tiers stand on one file
    subject_ = GetParam().make();
    std::mt19937_64 random(seed);
    Model model(lossy());
    const std::size_t limit = frame_limit();
    for (int step = 0; step < 400 && !HasFailure(); ++step) {
      std::set<std::uint64_t> keys;
      for (std::uint64_t i = 1 + random() % 8; i > 0; --i) keys.insert(random() % 150);
      std::vector<Op> batch;
      std::vector<std::uint64_t> key_at(keys.begin(), keys.end());
      std::vector<Bytes> bytes(keys.size());
      for (std::size_t i = 0; i < key_at.size(); ++i) {
        const std::uint64_t key = key_at[i], dice = random() % 10;
        const std::size_t size = Model::size_of(key, limit);
        if (dice < 5) {
          bytes[i] = content(key, size, model.next_version(key));
          batch.push_back(put_op(key, bytes[i]));
        } else if (dice < 8) {
          bytes[i].resize(size);
          batch.push_back(get_op(key, bytes[i]));
        } else {
          batch.push_back(plain_op(dice == 8 ? Verb::kErase : Verb::kContains, key));
        }
      }
      const std::vector<Done> done = run(batch);
      ASSERT_EQ(done.size(), batch.size());
      for (std::size_t i = 0; i < done.size(); ++i) {
        switch (batch[i].verb) {
          case Verb::kPut:
            model.on_put(key_at[i], done[i]);
            break;
          case Verb::kGet:
            model.on_get(key_at[i], done[i], bytes[i], limit);
            break;
          case Verb::kErase:
            model.on_erase(key_at[i], done[i]);
            break;
          case Verb::kContains:
            model.on_contains(key_at[i], done[i], limit);
            break;
        }
      }
      if (step % 50 == 0) expect_consistent(tier());
      if (!lossy()) {
        ASSERT_EQ(tier().stats().frames, model.present()) << "step " << step;
      }
    }
  }
}

TEST_P(TierConformance, ServesConcurrentReadersAndWriters) {
  constexpr std::uint64_t kKeys = 40;
  std::atomic<std::uint64_t> hits{0};
  const auto work = [&](std::uint64_t seed) {
    std::mt19937_64 random(seed);
    for (int i = 0; i < 300; ++i) {
      const std::uint64_t key = random() % kKeys, dice = random() % 10;
      const std::size_t bytes = 1 + key * 997 % std::min<std::size_t>(frame_limit(), 40'000);
      const Bytes expected = content(key, bytes);
      if (dice < 4) {
        const Done done = run(put_op(key, expected));
        EXPECT_TRUE(done.status.ok() || done.status.code() == Code::kNoSpace || lossy()) << done.status.message();
      } else if (dice < 8) {
        Bytes room(bytes);
        const Done done = run(get_op(key, room));
        EXPECT_TRUE(done.status.ok() || lossy()) << done.status.message();
        if (!done.status.ok() || !done.found) continue;
        ++hits;
        EXPECT_TRUE(same(room, expected)) << "key " << key;
      } else {
        const Done done = run(plain_op(Verb::kErase, key));
        EXPECT_TRUE(done.status.ok() || done.status.code() == Code::kUnavailable || lossy()) << done.status.message();
      }
    }
  };
  std::vector<std::thread> threads;
  for (std::uint64_t seed = 1; seed <= 4; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(hits.load(), 0u);
}

// Tiers whose frames are read in place.
class MemoryTierConformance : public TierConformance {
 protected:
  MemoryTier& memory() { return dynamic_cast<MemoryTier&>(*subject_.tier); }
  void store(std::uint64_t key, const Bytes& frame) {
    Result<MemoryTier::Reservation> reservation = memory().reserve(frame.size());
    ASSERT_TRUE(reservation.ok()) << reservation.status().message();
    std::copy(frame.begin(), frame.end(), reservation->bytes().begin());
    const Status status = memory().publish(std::move(reservation).value(), key_of(key), frame.size());
    ASSERT_TRUE(status.ok()) << status.message();
  }
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(MemoryTierConformance);

TEST_P(MemoryTierConformance, ShowsNothingBeforeItIsWhole) {
  const Bytes frame = content(1, 5000);
  Result<MemoryTier::Reservation> reservation = memory().reserve(8000);
  ASSERT_TRUE(reservation.ok());
  ASSERT_EQ(reservation->bytes().size(), 8000u);
  std::copy(frame.begin(), frame.end(), reservation->bytes().begin());
  EXPECT_FALSE(memory().contains(key_of(1)));
  EXPECT_FALSE(memory().find(key_of(1)));
  EXPECT_FALSE(memory().erase(key_of(1)));
  expect_absent(1);
  EXPECT_EQ(memory().stats().frames, 0u);
  const std::uint64_t before = memory().stats().resident_bytes;
  ASSERT_TRUE(memory().publish(std::move(reservation).value(), key_of(1), 5000).ok());
  EXPECT_TRUE(memory().contains(key_of(1)));
  EXPECT_LE(memory().stats().resident_bytes + 2900, before) << "what was not needed stays reserved";
  const MemoryTier::Pin pin = memory().find(key_of(1));
  ASSERT_TRUE(pin);
  EXPECT_TRUE(same(frame, pin.bytes()));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(pin.bytes().data()) % 64, 0u);
}

TEST_P(MemoryTierConformance, TakesBackEverythingOfAnAbandonedReservation) {
  const Tier::Stats before = memory().stats();
  for (int i = 0; i < 100; ++i) {
    Result<MemoryTier::Reservation> abandoned = memory().reserve(1 + static_cast<std::size_t>(i) * 1000);
    ASSERT_TRUE(abandoned.ok());
    EXPECT_GT(memory().stats().resident_bytes, before.resident_bytes);
  }
  EXPECT_EQ(memory().stats().resident_bytes, before.resident_bytes);
  EXPECT_EQ(memory().stats().largest_free_bytes, before.largest_free_bytes);
}

TEST_P(MemoryTierConformance, PublishKeepsAFrameThatIsAlreadyThere) {
  store(1, content(1, 4000));
  const std::uint64_t before = memory().stats().resident_bytes;
  store(1, content(1, 6000, 2));
  EXPECT_EQ(memory().stats().resident_bytes, before);
  EXPECT_EQ(memory().stats().frames, 1u);
  expect_frame(1, content(1, 4000));
}

TEST_P(MemoryTierConformance, RefusesImpossibleReservationsAndPublications) {
  EXPECT_EQ(memory().reserve(0).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(memory().reserve(memory().capabilities().max_frame_bytes + 1).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(memory().publish({}, key_of(1), 10).code(), Code::kInvalidArgument);
  for (const std::size_t bytes : {0, 101}) {
    Result<MemoryTier::Reservation> reservation = memory().reserve(100);
    ASSERT_TRUE(reservation.ok());
    EXPECT_EQ(memory().publish(std::move(reservation).value(), key_of(1), bytes).code(), Code::kInvalidArgument);
  }
  TierSubject other = GetParam().make();
  Result<MemoryTier::Reservation> foreign = dynamic_cast<MemoryTier&>(*other.tier).reserve(100);
  ASSERT_TRUE(foreign.ok());
  EXPECT_EQ(memory().publish(std::move(foreign).value(), key_of(1), 100).code(), Code::kInvalidArgument);
  EXPECT_EQ(other.tier->stats().resident_bytes, 0u) << "the refused reservation went home";
  EXPECT_EQ(memory().stats().resident_bytes, 0u);
  EXPECT_FALSE(memory().contains(key_of(1)));
}

TEST_P(MemoryTierConformance, APinKeepsAFrameInPlace) {
  const Bytes frame = content(1, 3000);
  store(1, frame);
  MemoryTier::Pin pin = memory().find(key_of(1));
  ASSERT_TRUE(pin);
  const std::byte* const where = pin.bytes().data();
  EXPECT_EQ(memory().stats().pinned_bytes, 3000u);
  EXPECT_FALSE(memory().erase(key_of(1)));
  const Done refused = run(plain_op(Verb::kErase, 1));
  EXPECT_EQ(refused.status.code(), Code::kUnavailable);
  EXPECT_TRUE(refused.found);
  std::mt19937_64 random(3);
  for (std::uint64_t i = 0; i < 300; ++i) {
    store(100 + i, content(i, 1 + random() % 9000));
    if (i >= 20) {
      EXPECT_TRUE(memory().erase(key_of(100 + i - 20)));
    }
  }
  EXPECT_EQ(pin.bytes().data(), where);
  EXPECT_TRUE(same(frame, pin.bytes()));
  MemoryTier::Pin second = memory().find(key_of(1));
  pin = {};
  EXPECT_FALSE(pin);
  EXPECT_FALSE(memory().erase(key_of(1))) << "the second pin still holds";
  second = MemoryTier::Pin();
  EXPECT_EQ(memory().stats().pinned_bytes, 0u);
  EXPECT_TRUE(memory().erase(key_of(1)));
}

TEST_P(MemoryTierConformance, HandsMoveWithoutLettingGo) {
  Result<MemoryTier::Reservation> made = memory().reserve(100);
  ASSERT_TRUE(made.ok());
  MemoryTier::Reservation a = std::move(made).value(), b = std::move(a);
  EXPECT_TRUE(a.bytes().empty());
  MemoryTier::Reservation& alias = b;
  b = std::move(alias);
  EXPECT_EQ(b.bytes().size(), 100u) << "moved onto itself";
  const std::uint64_t one = memory().stats().resident_bytes;
  EXPECT_GT(one, 0u);
  Result<MemoryTier::Reservation> other = memory().reserve(50'000);
  ASSERT_TRUE(other.ok());
  *other = std::move(b);  // the larger one goes back
  EXPECT_EQ(memory().stats().resident_bytes, one);
  ASSERT_TRUE(memory().publish(std::move(other).value(), key_of(1), 100).ok());
  MemoryTier::Pin pin = memory().find(key_of(1)), moved = std::move(pin);
  EXPECT_FALSE(pin);
  EXPECT_TRUE(moved);
  MemoryTier::Pin& moved_alias = moved;
  moved = std::move(moved_alias);
  EXPECT_TRUE(moved);
  EXPECT_EQ(memory().stats().pinned_bytes, 100u);
}

TEST_P(MemoryTierConformance, GrantsTheLargestHoleItReportsAndSaysWhyWhenFull) {
  std::mt19937_64 random(4);
  std::uint64_t key = 0;
  for (;;) {
    const std::size_t bytes = 1 + random() % 30'000;
    Result<MemoryTier::Reservation> reservation = memory().reserve(bytes);
    if (!reservation.ok()) {
      EXPECT_EQ(reservation.status().code(), Code::kNoSpace);
      EXPECT_NE(reservation.status().message().find("largest hole is"), std::string::npos)
          << reservation.status().message();
      EXPECT_NE(reservation.status().message().find("host.budget"), std::string::npos);
      break;
    }
    ASSERT_TRUE(memory().publish(std::move(reservation).value(), key_of(++key), bytes).ok());
  }
  for (std::uint64_t k = 1; k <= key; k += 1 + random() % 3) memory().erase(key_of(k));
  const std::uint64_t largest = memory().stats().largest_free_bytes;
  EXPECT_TRUE(memory().reserve(largest).ok());
}

TEST_P(MemoryTierConformance, ServesConcurrentReservationsAndPins) {
  constexpr std::uint64_t kKeys = 30;
  const auto work = [&](std::uint64_t seed) {
    std::mt19937_64 random(seed);
    for (int i = 0; i < 400; ++i) {
      const std::uint64_t key = random() % kKeys, dice = random() % 8;
      const Bytes expected = content(key, 1 + key * 501);
      if (dice < 3) {
        Result<MemoryTier::Reservation> reservation = memory().reserve(expected.size() + random() % 5000);
        if (!reservation.ok()) continue;
        std::copy(expected.begin(), expected.end(), reservation->bytes().begin());
        if (dice == 0) continue;  // abandoned
        EXPECT_TRUE(memory().publish(std::move(reservation).value(), key_of(key), expected.size()).ok());
      } else if (dice < 6) {
        const MemoryTier::Pin pin = memory().find(key_of(key));
        if (pin) {
          EXPECT_TRUE(same(expected, pin.bytes()));
        }
      } else if (dice == 6) {
        memory().erase(key_of(key));
      } else {
        memory().contains(key_of(key));
      }
    }
  };
  std::vector<std::thread> threads;
  for (std::uint64_t seed = 1; seed <= 4; ++seed) threads.emplace_back(work, seed);
  for (int i = 0; i < 20; ++i) expect_consistent(memory());
  for (std::thread& thread : threads) thread.join();
}

}  // namespace firn::conformance
