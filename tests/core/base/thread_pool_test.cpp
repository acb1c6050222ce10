#include "firn/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>
#include <vector>

namespace firn {
namespace {

TEST(ThreadPool, RunsEachIndexExactlyOnce) {
  for (const unsigned size : {1u, 2u, 3u, 8u}) {
    ThreadPool threads(size);
    EXPECT_EQ(threads.size(), size);
    for (const std::size_t count : {0u, 1u, 2u, 7u, 1000u}) {
      std::vector<std::atomic<int>> runs(count);
      threads.parallel_for(count, [&](std::size_t i) { ++runs.at(i); });
      for (std::size_t i = 0; i < count; ++i) ASSERT_EQ(runs[i], 1) << "index " << i << " of " << count;
    }
  }
}

TEST(ThreadPool, HasReturnedOnlyWhenEverythingIsDoneAndSeen) {
  ThreadPool threads(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<int> plain(64);  // not atomic: the pool must order these writes before our reads
    threads.parallel_for(plain.size(), [&](std::size_t i) { plain[i] = round; });
    for (const int value : plain) ASSERT_EQ(value, round);
  }
}

TEST(ThreadPool, AWorkerIndexBelongsToOneThreadAtATime) {
  ThreadPool threads(4);
  std::vector<std::atomic<int>> inside(threads.size());
  std::atomic<bool> shared{false};
  std::vector<std::jthread> callers;
  for (int caller = 0; caller < 3; ++caller)
    callers.emplace_back([&] {
      for (const std::size_t count : {1u, 50u, 1u, 50u})  // 1: runs inline, and still in turn
        threads.parallel_for_worker(count, [&](std::size_t, unsigned worker) {
          if (++inside.at(worker) != 1) shared = true;
          std::this_thread::yield();
          --inside.at(worker);
        });
    });
  callers.clear();
  EXPECT_FALSE(shared);
}

TEST(ThreadPool, OneThreadMeansInOrderOnTheCaller) {
  ThreadPool threads(1);
  std::vector<std::size_t> order;
  threads.parallel_for_worker(5, [&, caller = std::this_thread::get_id()](std::size_t i, unsigned worker) {
    EXPECT_EQ(worker, 0u);
    EXPECT_EQ(std::this_thread::get_id(), caller);
    order.push_back(i);
  });
  EXPECT_EQ(order, (std::vector<std::size_t>{0, 1, 2, 3, 4}));
}

TEST(ThreadPool, ServesManyCallersAndPoolsInsidePools) {
  ThreadPool outer(2), inner(2);
  std::atomic<std::uint64_t> sum{0};
  std::vector<std::jthread> callers;
  for (int caller = 0; caller < 2; ++caller)
    callers.emplace_back([&] {
      for (int round = 0; round < 20; ++round)
        outer.parallel_for(4, [&](std::size_t) { inner.parallel_for(5, [&](std::size_t i) { sum += i; }); });
    });
  callers.clear();
  EXPECT_EQ(sum, 2u * 20 * 4 * (0 + 1 + 2 + 3 + 4));
}

TEST(ThreadPool, ByDefaultTakesTheProcessorsItMayUse) {
  ThreadPool threads;
  EXPECT_GE(threads.size(), 1u);
  std::atomic<int> runs{0};
  threads.parallel_for(10, [&](std::size_t) { ++runs; });
  EXPECT_EQ(runs, 10);
}

}  // namespace
}  // namespace firn
