// What the base class does for every tier, over a tier whose ops end when the test says so.
#include "firn/tier.h"

#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <mutex>
#include <thread>

namespace firn {
namespace {

class ScriptedTier final : public Tier {
 public:
  std::string_view name() const override { return "scripted"; }
  Capabilities capabilities() const override { return {.max_frame_bytes = 1000, .max_batch = 4}; }

  // Ends the n-th op that is still under way.
  void end(std::size_t at = 0, Status status = {}, bool found = true, std::size_t bytes = 10) {
    std::lock_guard lock(mutex_);
    Done done = under_way_.at(at);
    under_way_.erase(under_way_.begin() + static_cast<std::ptrdiff_t>(at));
    done.status = std::move(status), done.found = found, done.bytes = bytes;
    ended_.push_back(std::move(done));
  }
  Status refuse_next;

 private:
  Result<Ticket> do_submit(std::span<const Op> batch) override {
    if (!refuse_next.ok()) return std::exchange(refuse_next, {});
    std::lock_guard lock(mutex_);
    const auto ticket = static_cast<Ticket>(++tickets_);
    for (std::size_t i = 0; i < batch.size(); ++i) {
      Done done;
      done.ticket = ticket, done.op = static_cast<std::uint32_t>(i);
      under_way_.push_back(done);
    }
    return ticket;
  }
  std::size_t do_poll(std::span<Done> out) override {
    std::lock_guard lock(mutex_);
    std::size_t count = 0;
    for (; count < out.size() && !ended_.empty(); ++count) {
      out[count] = std::move(ended_.front());
      ended_.pop_front();
    }
    return count;
  }
  Stats do_stats() const override { return {}; }

  std::mutex mutex_;
  std::uint64_t tickets_ = 0;
  std::deque<Done> under_way_, ended_;
};

Op op(Verb verb) {
  static std::byte bytes[16];
  Op result;
  result.verb = verb;
  if (verb == Verb::kPut) result.source = bytes;
  if (verb == Verb::kGet) result.destination = bytes;
  return result;
}
Ticket submit(Tier& tier, std::vector<Op> batch) {
  Result<Ticket> ticket = tier.submit(batch);
  EXPECT_TRUE(ticket.ok()) << ticket.status().message();
  return ticket.ok() ? *ticket : Ticket::kNone;
}

TEST(Tier, WaitReturnsInOpOrderWhateverTheOrderOfEnding) {
  ScriptedTier tier;
  const Ticket ticket = submit(tier, {op(Verb::kGet), op(Verb::kPut), op(Verb::kErase)});
  tier.end(2);
  tier.end(0, Status(Code::kIo, "broken"));
  tier.end(0);
  const auto done = tier.wait(ticket, 0);
  ASSERT_TRUE(done.ok());
  for (std::uint32_t i = 0; i < 3; ++i) EXPECT_EQ((*done)[i].op, i);
  EXPECT_EQ((*done)[0].status.code(), Code::kIo);
}

TEST(Tier, ATimedOutWaitLosesNothing) {
  ScriptedTier tier;
  const Ticket first = submit(tier, {op(Verb::kGet), op(Verb::kGet)}), second = submit(tier, {op(Verb::kGet)});
  tier.end(0);
  tier.end(1);  // of second
  EXPECT_EQ(tier.wait(first, 1'000'000).status().code(), Code::kUnavailable);
  EXPECT_TRUE(tier.wait(second, 0).ok());
  tier.end(0);
  const auto done = tier.wait(first, 0);
  ASSERT_TRUE(done.ok()) << done.status().message();
  EXPECT_EQ(done->size(), 2u);
}

TEST(Tier, WaitNeedsATicketWithAllItsEntries) {
  ScriptedTier tier;
  EXPECT_EQ(tier.wait(Ticket::kNone, 0).status().code(), Code::kInvalidArgument);
  const Ticket ticket = submit(tier, {op(Verb::kGet), op(Verb::kGet)});
  tier.end();
  Done one[4];
  EXPECT_EQ(tier.poll(one), 1u);
  EXPECT_EQ(tier.wait(ticket, 0).status().code(), Code::kInvalidArgument) << "poll has handed out a part";
  tier.end();
  EXPECT_EQ(tier.poll(one), 1u);
  EXPECT_EQ(tier.wait(ticket, 0).status().code(), Code::kInvalidArgument);
}

TEST(Tier, PollLeavesATicketToTheThreadThatWaitsForIt) {
  ScriptedTier tier;
  const Ticket awaited = submit(tier, {op(Verb::kGet), op(Verb::kGet)}), other = submit(tier, {op(Verb::kGet)});
  std::atomic<bool> ok{false};
  std::thread waiter([&] { ok = tier.wait(awaited, 30'000'000'000).ok(); });
  // Until the waiter is there: then a second wait is refused. A zero timeout gives the ticket straight back.
  while (tier.wait(awaited, 0).status().code() != Code::kInvalidArgument) std::this_thread::yield();
  tier.end(0);
  tier.end(1);
  Done out[4];
  std::size_t count = 0;
  while ((count = tier.poll(out)) == 0) std::this_thread::yield();
  EXPECT_EQ(count, 1u);
  EXPECT_EQ(out[0].ticket, other);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(tier.poll(out), 0u);
  tier.end(0);
  waiter.join();
  EXPECT_TRUE(ok);
}

TEST(Tier, ARefusedSubmissionTakesNothing) {
  ScriptedTier tier;
  for (std::uint32_t i = 0; i < 2 * Tier::kMaxInFlight; ++i) {
    tier.refuse_next = Status(Code::kUnavailable, "not now");
    const Op one = op(Verb::kGet);
    ASSERT_EQ(tier.submit({&one, 1}).status().message(), "not now");
  }
  submit(tier, {op(Verb::kGet)});
  EXPECT_TRUE(tier.verify().ok());
}

TEST(Tier, CountsByVerbAndOutcomeWhenHandedOut) {
  ScriptedTier tier;
  const Ticket a = submit(tier, {op(Verb::kPut), op(Verb::kPut), op(Verb::kGet), op(Verb::kGet)});
  const Ticket b = submit(tier, {op(Verb::kGet), op(Verb::kErase), op(Verb::kErase), op(Verb::kContains)});
  tier.end(0);                                         // put
  tier.end(0, Status(Code::kNoSpace, "full"));         // put
  tier.end(0, {}, true, 7);                            // get: hit
  tier.end(0, {}, false, 0);                           // get: miss
  tier.end(0, Status(Code::kIo, "broken"), false, 0);  // get
  tier.end(0);                                         // erase
  tier.end(0, {}, false, 0);                           // erase of nothing
  tier.end(0);                                         // contains
  EXPECT_EQ(tier.stats().puts, 0u);
  ASSERT_TRUE(tier.wait(a, 0).ok());
  ASSERT_TRUE(tier.wait(b, 0).ok());
  const Tier::Stats stats = tier.stats();
  EXPECT_EQ(stats.puts, 1u);
  EXPECT_EQ(stats.put_bytes, 10u);
  EXPECT_EQ(stats.refused_no_space, 1u);
  EXPECT_EQ(stats.gets, 3u);
  EXPECT_EQ(stats.get_bytes, 7u);
  EXPECT_EQ(stats.hits, 1u);
  EXPECT_EQ(stats.misses, 1u);
  EXPECT_EQ(stats.failures, 1u);
  EXPECT_EQ(stats.erases, 1u);
}

TEST(Tier, ManyThreadsSubmitAndOneCollects) {
  ScriptedTier tier;
  constexpr int kThreads = 3, kEach = 2000;
  std::atomic<int> running{kThreads};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < kEach;) {
        const Op batch[] = {op(Verb::kContains), op(Verb::kContains)};
        if (const Result<Ticket> ticket = tier.submit(batch); ticket.ok()) {
          tier.end();
          tier.end();
          ++i;
        } else {
          EXPECT_EQ(ticket.status().code(), Code::kUnavailable);
          std::this_thread::yield();
        }
      }
      --running;
    });
  std::size_t collected = 0;
  Done out[16];
  for (;;) {
    const bool last = running == 0;
    const std::size_t count = tier.poll(out);
    collected += count;
    if (last && count == 0) break;
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(collected, static_cast<std::size_t>(2 * kThreads * kEach));
  EXPECT_TRUE(tier.verify().ok());
}

}  // namespace
}  // namespace firn
