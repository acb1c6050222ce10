// Many threads on one manager, which cancel and abort at random. Under TSan this is what proves the locking.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/core/manager/churn.h"
#include "tests/core/manager/fixture.h"

namespace firn::test {
namespace {

constexpr std::uint64_t kTurns = 80;

// Whoever looks may look at any time.
void watch(Manager& manager, const std::atomic<bool>& stop) {
  const Tokens prompt = distinct(100, 10'000);
  while (!stop) {
    EXPECT_EQ(broken(manager), "");
    const Stats stats = manager.stats();
    EXPECT_EQ(stats.prefix_cache_queries, total(stats));
    EXPECT_LE(manager.match_prefix(prompt).tokens, 99u);
    manager.explain(prompt);
    manager.dump();
    manager.take_events(0).status().ok();
    manager.ledger().spent(Budget::kHost);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// Each priority in use has a policy, which stays: that memory is no leak.
void touch_priorities(Manager& manager) {
  const SeqId seq = prompt(manager, distinct(96, 500'000));
  std::vector<RetentionRange> ranges;
  for (std::uint32_t i = 0; i <= 4; ++i)
    ranges.push_back({.first = 16 * i, .end = 16 * i + 16, .priority = static_cast<std::uint8_t>(25 * i)});
  EXPECT_OK(manager.set_retention(seq, ranges));
  EXPECT_OK(manager.free(seq));
  EXPECT_OK(manager.wait_idle());
  EXPECT_OK(manager.reset());
}

void stress(const Config& config, std::uint64_t seed, bool keeping = false) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  const auto manager = make_manager(config, churn_model());
  ASSERT_TRUE(manager);
  if (keeping) touch_priorities(*manager);
  const std::uint64_t metadata = manager->ledger().spent(Budget::kMetadata);
  Churn churn(*manager, seed, keeping);
  std::atomic<bool> stop{false};
  std::thread watcher([&] { watch(*manager, stop); });
  churn.run(4, keeping ? kTurns / 2 : kTurns);
  stop = true;
  watcher.join();
  EXPECT_EQ(churn.problems(), std::vector<std::string>{});
  EXPECT_GT(churn.counts().steps, kTurns / 2);
  EXPECT_GT(churn.counts().reused_tokens, 0u);
  EXPECT_GT(churn.counts().aborted, 0u);

  if (keeping) {
    EXPECT_GT(churn.counts().kept, 0u);
    EXPECT_OK(manager->set_quota("other", {}));
    EXPECT_TRUE(manager->leases().empty());
  }

  // Nothing is left of anybody: no sequence, no reference, no byte.
  EXPECT_OK(manager->wait_idle());
  EXPECT_EQ(broken(*manager), "");
  EXPECT_EQ(manager->stats().sequences, 0u);
  EXPECT_EQ(manager->stats().slots_live, 0u);
  EXPECT_EQ(manager->stats().slots_in_flight, 0u);
  EXPECT_OK(manager->reset());
  EXPECT_EQ(manager->stats().blocks, 0u);
  EXPECT_EQ(manager->stats().slots_free, manager->stats().slots_total);
  EXPECT_EQ(manager->stats().host_frame_bytes, 0u);
  EXPECT_LE(manager->ledger().spent(Budget::kMetadata), metadata + 4096);
}

TEST(Stress, ThreadsWithAHostTierAndItsWorker) { stress(churn_config(), 1); }

TEST(Stress, ThreadsThatMoveBlocksThemselves) {
  Config config = churn_config();
  config.mover.worker = false;
  stress(config, 2);
}

TEST(Stress, ThreadsThatPinLeaseAndRankBlocksUnderQuotas) {
  Config config = churn_config();
  config.events.capacity = 512;
  stress(config, 4, /*keeping=*/true);
  config.mover.worker = false;
  config.eviction = "s3fifo";
  stress(config, 5, /*keeping=*/true);
}

TEST(Stress, ThreadsInAPoolWithoutATier) {
  Config config = churn_config();
  config.host.budget_bytes = 0;
  stress(config, 3);
}

}  // namespace
}  // namespace firn::test
