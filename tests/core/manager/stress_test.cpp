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

void stress(const Config& config, std::uint64_t seed) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  const auto manager = make_manager(config, churn_model());
  ASSERT_TRUE(manager);
  const std::uint64_t metadata = manager->ledger().spent(Budget::kMetadata);
  Churn churn(*manager, seed);
  std::atomic<bool> stop{false};
  std::thread watcher([&] { watch(*manager, stop); });
  churn.run(4, kTurns);
  stop = true;
  watcher.join();
  EXPECT_EQ(churn.problems(), std::vector<std::string>{});
  EXPECT_GT(churn.counts().steps, kTurns);
  EXPECT_GT(churn.counts().reused_tokens, 0u);
  EXPECT_GT(churn.counts().aborted, 0u);

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

TEST(Stress, ThreadsInAPoolWithoutATier) {
  Config config = churn_config();
  config.host.budget_bytes = 0;
  stress(config, 3);
}

}  // namespace
}  // namespace firn::test
