// Many threads with one cache and its own workers, over a tier below that misbehaves: every byte that comes back is the
// name's, and everything ends.
#include <poll.h>

#include <atomic>
#include <random>
#include <thread>

#include "storage/mover/mover.h"
#include "storage/tier/faulty_tier.h"
#include "tests/core/cold/cold_engine.h"

namespace firn {
namespace {

TEST(ColdStress, ManyThreadsStoreLoadEraseAndCancelOverATierThatMisbehaves) {
  Ledger ledger(0, std::uint64_t{64} << 20), below_ledger(0, std::uint64_t{64} << 20);
  Result<std::unique_ptr<HostTier>> below =
      HostTier::create({.budget_bytes = 2 << 20, .huge_pages = false, .max_frames = 300}, below_ledger);
  ASSERT_TRUE(below.ok());
  FaultyTier faulty(**below, FaultyTier::Options::all(5, {.fail = 0.05, .delay = 0.3, .truncate = 0.05, .flip = 0.05}));
  ThreadPool pool(2);
  ColdCacheOptions options;
  options.model = cold_model(Dtype::kF16, 2, 1, 16);
  options.budget_bytes = 8 << 20;
  options.max_blocks = 400;
  options.queue_blocks = 1024;
  options.huge_pages = false;
  const auto cache =
      make_cold(options, {.ledger = &ledger, .threads = &pool, .tiers = {{.id = TierId::kDisk, .tier = &faulty}}});
  ASSERT_NE(cache, nullptr);
  constexpr int kThreads = 4, kRounds = 80;
  std::atomic<std::uint64_t> loaded{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      std::mt19937_64 random(static_cast<std::uint64_t>(t) + 1);
      ColdEngine engine(options.model.groups[0], 16);
      for (int round = 0; round < kRounds; ++round) {
        const std::uint64_t name = random() % 40 * 8;
        const Blocks blocks = make_run(engine, 0, 16, name, name * kBlockTokens);
        for (std::uint32_t i = 0; i < 16; ++i) engine.fill(i, name + i);
        Result<Ticket> ticket = cache->store(blocks.run);
        if (ticket.ok()) {
          if (random() % 8 == 0) cache->cancel(*ticket);
          if (!cache->wait(*ticket).ok()) ++wrong;
        }
        engine.poison();
        ticket = cache->load(blocks.run);
        if (ticket.ok()) {
          const Result<ColdDone> done = cache->wait(*ticket);
          for (std::uint32_t i = 0; done.ok() && i < 16; ++i) {
            if (!done->results[i].found) continue;
            ++loaded;
            if (!engine.holds(i, name + i)) ++wrong;
          }
        }
        if (random() % 4 == 0) cache->erase(blocks.keys);
        if (random() % 4 == 0) {
          const std::uint32_t pinned = cache->pin({blocks.keys.data(), 2});
          if (pinned == 2) cache->unpin({blocks.keys.data(), 2});
        }
        if (random() % 8 == 0 && !cache->verify().ok()) ++wrong;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0u);
  EXPECT_GT(loaded, 0u);
  EXPECT_TRUE(cache->wait_idle(std::int64_t{60} * 1'000'000'000).ok());
  EXPECT_TRUE(cache->verify().ok()) << cache->verify().message();
  EXPECT_LE(ledger.peak(Budget::kHost), options.budget_bytes);
}

TEST(ColdStress, AnEventLoopNeedsNoThread) {
  ColdCacheOptions options;
  options.model = cold_model();
  options.budget_bytes = 16 << 20;
  options.huge_pages = false;
  const auto cache = make_cold(options);
  ASSERT_NE(cache, nullptr);
  ColdEngine engine(options.model.groups[0], 64);
  std::vector<Blocks> runs;
  for (std::uint32_t i = 0; i < 8; ++i) runs.push_back(make_run(engine, i * 8, 8, i * 8));
  for (const Blocks& run : runs) ASSERT_TRUE(cache->store(run.run).ok());
  std::size_t done = 0;
  while (done < runs.size()) {
    pollfd poll{.fd = cache->event_fd(), .events = POLLIN, .revents = 0};
    ASSERT_EQ(::poll(&poll, 1, 60'000), 1);
    done += cache->poll().size();
  }
  EXPECT_TRUE(cache->poll().empty());
}

// A lane whose job never becomes ready, or whose step takes for ever, keeps no other lane from working.
TEST(Mover, OneStuckLaneDoesNotStopTheOthers) {
  struct Stuck final : Mover::Job {
    explicit Stuck(std::atomic<bool>& let) : go(let) {}
    bool run() override {
      go.wait(false);
      return true;
    }
    void stop(Mover::Stop) override {}
    std::atomic<bool>& go;
  };
  struct Count final : Mover::Job {
    explicit Count(std::atomic<int>& to) : count(to) {}
    bool run() override {
      ++count;
      count.notify_all();
      return true;
    }
    void stop(Mover::Stop) override { count += 1000; }
    std::atomic<int>& count;
  };
  std::atomic<bool> go{false};
  std::atomic<int> count{0};
  auto mover = Mover::create(
      {.lanes = {{.name = "stuck", .capacity = 2, .threads = 1}, {.name = "free", .capacity = 64, .threads = 1}},
       .workers = true,
       .now_ns = {}});
  ASSERT_TRUE(mover.ok());
  ASSERT_TRUE((*mover)->submit(LaneId{0}, std::make_unique<Stuck>(go)).ok());
  for (int i = 0; i < 10; ++i) ASSERT_TRUE((*mover)->submit(LaneId{1}, std::make_unique<Count>(count)).ok());
  for (int seen = count; seen < 10; seen = count) count.wait(seen);
  EXPECT_EQ(count, 10);
  const Result<JobId> waiting = (*mover)->submit(LaneId{0}, std::make_unique<Count>(count));
  ASSERT_TRUE(waiting.ok());
  EXPECT_EQ((*mover)->submit(LaneId{0}, std::make_unique<Count>(count)).status().code(), Code::kUnavailable);
  EXPECT_TRUE((*mover)->cancel(*waiting));
  EXPECT_EQ(count, 1010);
  EXPECT_TRUE((*mover)->check().ok());
  go = true;
  go.notify_all();
}

}  // namespace
}  // namespace firn
