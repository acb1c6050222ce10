// The host tier beside a copy of the same bytes between buffers like its own (huge pages, touched before).
//
// Frames are visited in random order through working sets of 512 MiB on either side, since cold blocks come from memory
// and go to memory. Tier and copies take turns, frame by frame, so that both see the same machine; "share" is the first
// rate over that of the quickest copy, some of which store past the caches what nobody reads soon, as the tier does.
#include <benchmark/benchmark.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "bench/anchors.h"
#include "core/base/check.h"
#include "firn/tier.h"

namespace firn {
namespace {

constexpr std::size_t kWorkingSet = std::size_t{512} << 20;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Seconds of the one thread that works: busy neighbours take its processor away, but not into this count.
double now() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

class Buffer {
 public:
  explicit Buffer(std::size_t bytes) : bytes_(bytes) {
    void* const raw = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    FIRN_CHECK(raw != MAP_FAILED);
    raw_ = raw;
    start_ = static_cast<std::byte*>(raw) + (kHugePage - reinterpret_cast<std::uintptr_t>(raw) % kHugePage) % kHugePage;
    madvise(start_, bytes, MADV_HUGEPAGE);
    std::uint32_t x = 1;
    for (std::size_t at = 0; at < bytes; at += 4, x = x * 1664525u + 1013904223u) std::memcpy(start_ + at, &x, 4);
  }
  ~Buffer() { munmap(raw_, bytes_ + kHugePage); }
  std::span<std::byte> frame(std::size_t i, std::size_t bytes) const { return {start_ + i * bytes, bytes}; }

 private:
  void* raw_ = nullptr;
  std::byte* start_ = nullptr;
  std::size_t bytes_;
};

FrameKey key_of(std::uint64_t n) { return {n * 0x9e3779b97f4a7c15u, n}; }

struct Rig {
  explicit Rig(std::size_t bytes) : frame_bytes(bytes), order(kWorkingSet / bytes) {
    Result<std::unique_ptr<HostTier>> made = HostTier::create({.budget_bytes = kWorkingSet * 17 / 16}, ledger);
    FIRN_CHECK(made.ok());
    tier = std::move(made).value();
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::shuffle(order.begin(), order.end(), std::mt19937_64(1));
    for (const std::size_t i : order) put(i);  // every page of the tier is touched before anything is timed
  }
  void run(const Op& op) {
    Result<Ticket> ticket = tier->submit({&op, 1});
    FIRN_CHECK(ticket.ok());
    Done done;
    FIRN_CHECK(tier->poll({&done, 1}) == 1 && done.status.ok());
    FIRN_CHECK(op.verb != Verb::kGet || (done.found && done.bytes == frame_bytes));
  }
  void put(std::size_t i) {
    Op op;
    op.verb = Verb::kPut, op.key = key_of(i), op.source = source.frame(i, frame_bytes);
    run(op);
  }
  void get(std::size_t i) {
    Op op;
    op.verb = Verb::kGet, op.key = key_of(i), op.destination = other.frame(i, frame_bytes);
    run(op);
  }
  std::size_t frame_bytes;
  Ledger ledger{0, kWorkingSet * 17 / 16};
  std::unique_ptr<HostTier> tier;
  Buffer source{kWorkingSet}, other{kWorkingSet};
  std::vector<std::size_t> order;
};

// One frame through the tier, the next through each way to copy. What it took counts for the tier alone.
template <class Prepare, class Timed, class Check>
void compare(benchmark::State& state, const Prepare& prepare, const Timed& timed, const Check& check) {
  Rig rig(static_cast<std::size_t>(state.range(0)) << 10);
  const std::size_t count = rig.order.size();
  std::size_t at = 0;
  std::vector<double> ours;
  bench::Anchor<bench::kCopyWays> copies;
  for (auto _ : state) {
    // Far apart: a frame that one of them has just read would be in the cache for another.
    constexpr std::size_t kParts = 2 * bench::kCopyWays + 1;
    const auto visit = [&](std::size_t part) { return rig.order[(at + part * count / kParts) % count]; };
    const std::size_t one = visit(0);
    prepare(rig, one);
    double start = now();
    timed(rig, one);
    ours.push_back(now() - start);
    state.SetIterationTime(ours.back());
    for (std::size_t way = 0; way < bench::kCopyWays; ++way) {
      std::byte* const to = rig.other.frame(visit(2 * way + 1), rig.frame_bytes).data();
      const std::byte* const from = rig.source.frame(visit(2 * way + 2), rig.frame_bytes).data();
      start = now();
      bench::copy_all(way, to, from, rig.frame_bytes);
      benchmark::ClobberMemory();
      copies.add(way, now() - start);
    }
    ++at;
  }
  check(rig);
  const double bytes = static_cast<double>(rig.frame_bytes);
  state.SetBytesProcessed(static_cast<std::int64_t>(static_cast<double>(state.iterations()) * bytes));
  state.counters["GB/s"] = bytes / bench::median(ours) / 1e9;
  state.counters["plain_GB/s"] = bytes / copies.seconds() / 1e9;
  bench::report_share(state, copies.seconds() / bench::median(ours));
}

void BM_TierPut(benchmark::State& state) {
  compare(
      state, [](Rig& rig, std::size_t i) { FIRN_CHECK(rig.tier->erase(key_of(i))); },
      [](Rig& rig, std::size_t i) { rig.put(i); },
      [](Rig& rig) {  // a fast wrong answer is no result
        for (std::size_t i = 0; i < rig.order.size(); ++i) {
          const MemoryTier::Pin pin = rig.tier->find(key_of(i));
          FIRN_CHECK(pin && std::memcmp(pin.bytes().data(), rig.source.frame(i, rig.frame_bytes).data(),
                                        rig.frame_bytes) == 0);
        }
      });
}
BENCHMARK(BM_TierPut)->ArgName("KiB")->RangeMultiplier(2)->Range(64, 2048)->UseManualTime();

void BM_TierGet(benchmark::State& state) {
  compare(
      state, [](Rig&, std::size_t) {}, [](Rig& rig, std::size_t i) { rig.get(i); },
      [](Rig& rig) {
        for (const std::size_t i : rig.order) {
          rig.get(i);
          FIRN_CHECK(std::memcmp(rig.other.frame(i, rig.frame_bytes).data(),
                                 rig.source.frame(i, rig.frame_bytes).data(), rig.frame_bytes) == 0);
        }
      });
}
BENCHMARK(BM_TierGet)->ArgName("KiB")->RangeMultiplier(2)->Range(64, 2048)->UseManualTime();

// The tier's own work for a frame that an encoder writes in place: reserve the bound, publish what was used. Sizes
// vary, so the arena splits and merges; each frame replaces a random old one, erased outside the time.
void BM_TierReservePublish(benchmark::State& state) {
  constexpr std::uint64_t kBudget = 512 << 20;
  Ledger ledger(0, kBudget);
  const std::unique_ptr<HostTier> tier = HostTier::create({.budget_bytes = kBudget}, ledger).value();
  std::mt19937_64 random(1);
  std::vector<std::uint64_t> live;
  std::uint64_t next = 0;
  const auto store = [&](std::size_t bound, std::size_t used) {
    Result<MemoryTier::Reservation> reservation = tier->reserve(bound);
    FIRN_CHECK(reservation.ok());
    FIRN_CHECK(tier->publish(std::move(reservation).value(), key_of(next), used).ok());
    live.push_back(next++);
  };
  while (live.size() < 6000) store(64 << 10, 8192 + random() % 49152);
  constexpr std::size_t kBatch = 256;
  for (auto _ : state) {
    std::size_t used[kBatch];
    for (std::size_t i = 0; i < kBatch; ++i) {
      used[i] = 8192 + random() % 49152;
      std::swap(live[random() % live.size()], live.back());
      FIRN_CHECK(tier->erase(key_of(live.back())));
      live.pop_back();
    }
    const double start = now();
    for (const std::size_t bytes : used) store(64 << 10, bytes);
    state.SetIterationTime(now() - start);
  }
  FIRN_CHECK(tier->verify().ok());
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations() * kBatch));
  state.counters["per_frame"] = benchmark::Counter(static_cast<double>(state.iterations() * kBatch),
                                                   benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK(BM_TierReservePublish)->UseManualTime();

void BM_TierFind(benchmark::State& state) {
  Ledger ledger(0, 64 << 20);
  const std::unique_ptr<HostTier> tier = HostTier::create({.budget_bytes = 64 << 20}, ledger).value();
  for (std::uint64_t i = 0; i < 4000; ++i) FIRN_CHECK(tier->publish(tier->reserve(8192).value(), key_of(i), 8192).ok());
  std::uint64_t i = 0;
  for (auto _ : state) {
    const MemoryTier::Pin pin = tier->find(key_of(i++ % 8000));  // every second one is absent
    benchmark::DoNotOptimize(pin.bytes().data());
  }
}
BENCHMARK(BM_TierFind);

}  // namespace
}  // namespace firn
