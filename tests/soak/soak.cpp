// soak.cpp: two threads live through sequences at random on one manager with a host tier, for minutes. It ends well if
// every answer was right, verify() found nothing at any sample, no reference is left, and memory is flat: the process's
// resident set no more than a few MiB above what it was after the warm-up, the ledger's accounts within their budgets.
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>

#include "tests/core/manager/churn.h"

namespace {

using namespace firn;
using Clock = std::chrono::steady_clock;

std::uint64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  std::uint64_t pages = 0, resident = 0;
  file >> pages >> resident;
  return resident * 4096;
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

int failed(const std::string& what) {
  fmt::print("FAILED: {}\n", what);
  return 1;
}

// What is wrong right now; empty: nothing.
std::string look(const Manager& manager) {
  for (const std::string& line : manager.verify()) return "verify(): " + line;
  for (const Budget budget : {Budget::kDevice, Budget::kHost, Budget::kMetadata})
    if (manager.ledger().spent(budget) > manager.ledger().limit(budget))
      return fmt::format("{}: {} spent of {}", to_string(budget), manager.ledger().spent(budget),
                         manager.ledger().limit(budget));
  const Stats stats = manager.stats();
  std::uint64_t accounted = stats.prefix_cache_hits;
  for (const std::uint64_t count : stats.misses) accounted += count;
  if (accounted != stats.prefix_cache_queries)
    return fmt::format("{} queries, {} hits and misses", stats.prefix_cache_queries, accounted);
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  const double minutes = argc > 1 ? std::atof(argv[1]) : 20;
  if (!(minutes > 0)) return std::fputs("usage: firn_soak [MINUTES]\n", stderr), 2;
  constexpr std::uint32_t kThreads = 2;
  constexpr std::uint64_t kFlatBytes = 8u << 20;
  Config config = test::churn_config();
  config.events.capacity = 512;
  auto created = Manager::create(config, test::churn_model());
  if (!created.ok()) return failed(created.status().message());
  Manager& manager = **created;
  test::Churn churn(manager, 20'261'124, /*keeping=*/true);
  std::atomic<bool> done{false};
  std::thread workers([&] {
    churn.run(kThreads, 0);
    done = true;
  });

  const auto start = Clock::now();
  const double warm_seconds = minutes * 60 * 0.1, step_seconds = std::min(15.0, minutes * 60 / 20);
  std::uint64_t warm_bytes = 0, most_bytes = 0, metadata_most = 0;
  std::string wrong;
  fmt::print("{:>8} {:>10} {:>9} {:>9} {:>9} {:>12} {:>9} {:>11} {:>11}\n", "seconds", "sequences", "aborted",
             "refused", "evicted", "frames made", "RSS MiB", "host bytes", "metadata");
  while (seconds_since(start) < minutes * 60 && !done && wrong.empty()) {
    std::this_thread::sleep_for(std::chrono::duration<double>(step_seconds));
    wrong = look(manager);
    const std::uint64_t now_bytes = resident_bytes();
    if (warm_bytes == 0 && seconds_since(start) >= warm_seconds) warm_bytes = now_bytes;
    if (warm_bytes != 0) most_bytes = std::max(most_bytes, now_bytes);
    metadata_most = std::max(metadata_most, manager.ledger().spent(Budget::kMetadata));
    const Stats stats = manager.stats();
    fmt::print("{:>8.0f} {:>10} {:>9} {:>9} {:>9} {:>12} {:>9.1f} {:>11} {:>11}\n", seconds_since(start),
               churn.counts().sequences.load(), churn.counts().aborted.load(), churn.counts().refused.load(),
               stats.evictions, stats.frames_stored, static_cast<double>(now_bytes) / 1048576.0,
               manager.ledger().spent(Budget::kHost), manager.ledger().spent(Budget::kMetadata));
    std::fflush(stdout);
  }
  churn.stop();
  workers.join();
  for (const std::string& problem : churn.problems()) fmt::print("problem: {}\n", problem);
  if (!churn.problems().empty()) return failed("an answer was wrong");
  if (!wrong.empty()) return failed(wrong);

  if (const Status status = manager.wait_idle(); !status.ok()) return failed(status.message());
  if (!manager.leases().empty()) return failed(fmt::format("{} leases are left", manager.leases().size()));
  const Stats stats = manager.stats();
  if (stats.sequences != 0 || stats.slots_live != 0 || stats.slots_in_flight != 0)
    return failed(fmt::format("{} sequences, {} live slots, {} in flight are left", stats.sequences, stats.slots_live,
                              stats.slots_in_flight));
  if (const Status status = manager.reset(); !status.ok()) return failed(status.message());
  if (manager.stats().blocks != 0 || manager.stats().host_frame_bytes != 0)
    return failed(fmt::format("after reset(): {} blocks, {} bytes of frames", manager.stats().blocks,
                              manager.stats().host_frame_bytes));
  if (const std::string last = look(manager); !last.empty()) return failed(last);
  if (most_bytes > warm_bytes + kFlatBytes)
    return failed(fmt::format("the resident set grew from {} to {} bytes", warm_bytes, most_bytes));
  fmt::print(
      "{:.1f} minutes, {} threads: {} sequences ({} aborted, {} forks, {} rewinds, {} preemptions), {} steps, {} "
      "tokens "
      "reused, {} blocks lost to full tiers.\nEvery attention checked was right, verify() clean at every sample, no "
      "reference left. Resident: {:.1f} MiB after the warm-up, at most {:.1f} since; metadata at most {} bytes.\n",
      seconds_since(start) / 60, kThreads, churn.counts().sequences.load(), churn.counts().aborted.load(),
      churn.counts().forks.load(), churn.counts().rewinds.load(), churn.counts().preemptions.load(),
      churn.counts().steps.load(), churn.counts().reused_tokens.load(), churn.counts().lost.load(),
      static_cast<double>(warm_bytes) / 1048576.0, static_cast<double>(most_bytes) / 1048576.0, metadata_most);
  return 0;
}
