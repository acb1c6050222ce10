// FaultyTier does what its log says, and nothing else.
#include "storage/tier/faulty_tier.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "firn/ledger.h"

namespace firn {
namespace {

constexpr std::int64_t kPatience = 30'000'000'000;
using Bytes = std::vector<std::byte>;

Bytes content(std::uint64_t key) {
  Bytes bytes(500 + key * 13);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(key * 31 + i * 7 + (i >> 8));
  return bytes;
}

struct Rig {
  explicit Rig(const FaultyTier::Options& options)
      : inner(std::move(HostTier::create({.budget_bytes = 4 << 20}, ledger)).value()), tier(*inner, options) {}
  Done run(Tier& on, Verb verb, std::uint64_t key, std::span<const std::byte> source,
           std::span<std::byte> destination) {
    Op op;
    op.verb = verb, op.key = {key, key}, op.source = source, op.destination = destination;
    Result<Ticket> ticket = on.submit({&op, 1});
    EXPECT_TRUE(ticket.ok());
    Result<std::vector<Done>> done = on.wait(*ticket, kPatience);
    EXPECT_TRUE(done.ok()) << done.status().message();
    return done->front();
  }
  Ledger ledger{0, 4 << 20};
  std::unique_ptr<HostTier> inner;
  FaultyTier tier;
};

const FaultyTier::Rates kEverything{.fail = .1, .delay = .2, .truncate = .1, .flip = .1, .lose = .1};

struct Trace {
  std::vector<FaultyTier::Event> log;
  std::vector<Bytes> got;
};

Trace play(std::uint64_t seed) {
  Rig rig(FaultyTier::Options::all(seed, kEverything));
  Trace trace;
  for (std::uint64_t key = 0; key < 100; ++key) {
    const Bytes bytes = content(key);
    rig.run(rig.tier, Verb::kPut, key, bytes, {});
    Bytes room(bytes.size());
    rig.run(rig.tier, Verb::kGet, key, {}, room);
    rig.run(rig.tier, Verb::kContains, key, {}, {});
    if (key % 3 == 0) rig.run(rig.tier, Verb::kErase, key, {}, {});
    trace.got.push_back(std::move(room));
  }
  trace.log = rig.tier.log();
  return trace;
}

TEST(FaultyTier, RepeatsItselfFromASeed) {
  const Trace a = play(5), b = play(5), c = play(6);
  ASSERT_EQ(a.log.size(), b.log.size());
  for (std::size_t i = 0; i < a.log.size(); ++i) {
    EXPECT_EQ(a.log[i].fault, b.log[i].fault);
    EXPECT_EQ(a.log[i].key, b.log[i].key);
    EXPECT_EQ(a.log[i].detail, b.log[i].detail);
  }
  EXPECT_EQ(a.got, b.got);
  EXPECT_NE(a.got, c.got);
}

TEST(FaultyTier, ChangesBytesOnlyWhereItsLogSaysSo) {
  std::map<Fault, int> seen;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rig rig(FaultyTier::Options::all(seed, kEverything));
    std::size_t read = 0;
    // The faults of the last op, by kind.
    const auto faults = [&] {
      std::map<Fault, std::uint64_t> result;
      for (const std::vector<FaultyTier::Event> log = rig.tier.log(); read < log.size(); ++read) {
        result[log[read].fault] = log[read].detail;
        ++seen[log[read].fault];
      }
      return result;
    };
    for (std::uint64_t key = 0; key < 60; ++key) {
      const Bytes whole = content(key);
      const Done put = rig.run(rig.tier, Verb::kPut, key, whole, {});
      auto fault = faults();
      EXPECT_EQ(put.status.code() == Code::kIo, fault.count(Fault::kFail) != 0);
      if (put.status.ok()) {
        EXPECT_EQ(put.bytes, whole.size()) << "a torn write does not say so";
      }
      // What is in the inner tier, as the log predicts it.
      Bytes stored = whole;
      const bool is_stored = fault.count(Fault::kFail) == 0 && fault.count(Fault::kLose) == 0;
      if (fault.count(Fault::kTruncate) != 0) stored.resize(fault[Fault::kTruncate]);
      if (fault.count(Fault::kFlip) != 0) stored[fault[Fault::kFlip] / 8] ^= std::byte{1} << (fault[Fault::kFlip] % 8);
      Bytes room(whole.size());
      Done got = rig.run(*rig.inner, Verb::kGet, key, {}, room);
      EXPECT_EQ(got.found, is_stored);
      if (got.found) {
        room.resize(got.bytes);
        EXPECT_EQ(room, stored);
      }
      room.assign(whole.size(), std::byte{0});
      got = rig.run(rig.tier, Verb::kGet, key, {}, room);
      fault = faults();
      EXPECT_EQ(got.status.code() == Code::kIo, fault.count(Fault::kFail) != 0);
      EXPECT_EQ(got.status.ok() && got.found,
                is_stored && fault.count(Fault::kFail) == 0 && fault.count(Fault::kLose) == 0);
      if (got.status.ok() && got.found) {
        Bytes expected = stored;
        if (fault.count(Fault::kTruncate) != 0) expected.resize(fault[Fault::kTruncate]);
        if (fault.count(Fault::kFlip) != 0)
          expected[fault[Fault::kFlip] / 8] ^= std::byte{1} << (fault[Fault::kFlip] % 8);
        room.resize(got.bytes);
        EXPECT_EQ(room, expected);
      }
      const Done erased = rig.run(rig.tier, Verb::kErase, key, {}, {});
      fault = faults();
      const bool gone = erased.status.ok() && fault.count(Fault::kLose) == 0;
      EXPECT_EQ(rig.run(*rig.inner, Verb::kContains, key, {}, {}).found, is_stored && !gone);
    }
    EXPECT_TRUE(rig.tier.verify().ok());
  }
  for (const Fault fault : {Fault::kFail, Fault::kDelay, Fault::kTruncate, Fault::kFlip, Fault::kLose})
    EXPECT_GT(seen[fault], 10) << "fault " << static_cast<int>(fault) << " hardly happened";
}

TEST(FaultyTier, DelaysByPollsNotByClock) {
  FaultyTier::Options options = FaultyTier::Options::all(1, {.delay = 1});
  options.delay_polls_max = 5;
  Rig rig(options);
  Op op;
  op.verb = Verb::kContains;
  for (int i = 0; i < 20; ++i) {
    const Result<Ticket> ticket = rig.tier.submit({&op, 1});
    ASSERT_TRUE(ticket.ok());
    const std::uint64_t delay = rig.tier.log().back().detail;
    ASSERT_GE(delay, 1u);
    ASSERT_LE(delay, 5u);
    Done done;
    for (std::uint64_t poll = 1; poll < delay; ++poll) EXPECT_EQ(rig.tier.poll({&done, 1}), 0u) << "poll " << poll;
    EXPECT_EQ(rig.tier.poll({&done, 1}), 1u);
  }
}

TEST(FaultyTier, WithoutRatesIsTheTierItWraps) {
  Rig rig(FaultyTier::Options{});
  for (std::uint64_t key = 0; key < 50; ++key) {
    const Bytes bytes = content(key);
    Bytes room(bytes.size());
    ASSERT_TRUE(rig.run(rig.tier, Verb::kPut, key, bytes, {}).status.ok());
    ASSERT_TRUE(rig.run(rig.tier, Verb::kGet, key, {}, room).found);
    EXPECT_EQ(room, bytes);
  }
  EXPECT_TRUE(rig.tier.log().empty());
  EXPECT_EQ(rig.tier.stats().frames, 50u);
}

}  // namespace
}  // namespace firn
