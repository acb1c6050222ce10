#include "bench/anchors.h"

#include <algorithm>
#include <cstring>
#include <string>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/anchors.cpp"
// Scalable vectors are left out: their lane count is unknown to the compiler.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace firn::bench {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<std::uint64_t>;
using V = hn::Vec<D>;
constexpr std::size_t kLineBytes = 64;
constexpr std::size_t kRegBytes = HWY_LANES(std::uint64_t) * sizeof(std::uint64_t);
constexpr std::size_t kRegs = kRegBytes < kLineBytes ? kLineBytes / kRegBytes : 1;  // registers of a line
constexpr std::size_t kAhead = 24 * kLineBytes;                                     // asked for early

HWY_INLINE V load(const std::byte* from) { return hn::LoadU(D(), reinterpret_cast<const std::uint64_t*>(from)); }

HWY_INLINE void add_line(const std::byte* from, V (&sums)[kRegs]) {
  for (std::size_t r = 0; r < kRegs; ++r) sums[r] = hn::Add(sums[r], load(from + r * kRegBytes));
}

HWY_INLINE std::uint64_t total(const V (&sums)[kRegs]) {
  V all = sums[0];
  for (std::size_t r = 1; r < kRegs; ++r) all = hn::Add(all, sums[r]);
  return hn::GetLane(hn::SumOfLanes(D(), all));
}

HWY_NOINLINE std::uint64_t Read(const std::byte* from, std::size_t bytes) {
  V sums[2][kRegs];
  for (auto& line : sums)
    for (V& sum : line) sum = hn::Zero(D());
  std::size_t at = 0;
  for (; at + 2 * kLineBytes <= bytes; at += 2 * kLineBytes) {
    hwy::Prefetch(from + std::min(at + kAhead, bytes - 1));
    hwy::Prefetch(from + std::min(at + kAhead + kLineBytes, bytes - 1));
    add_line(from + at, sums[0]);
    add_line(from + at + kLineBytes, sums[1]);
  }
  if (at < bytes) add_line(from + at, sums[0]);
  return total(sums[0]) + total(sums[1]);
}

HWY_NOINLINE std::uint64_t ReadQuarters(const std::byte* from, std::size_t bytes) {
  const std::size_t quarter = bytes / (4 * kLineBytes) * kLineBytes;
  V sums[4][kRegs];
  for (auto& line : sums)
    for (V& sum : line) sum = hn::Zero(D());
  for (std::size_t at = 0; at < quarter; at += kLineBytes)
    for (std::size_t q = 0; q < 4; ++q) {
      hwy::Prefetch(from + q * quarter + std::min(at + kAhead, quarter - 1));
      add_line(from + q * quarter + at, sums[q]);
    }
  std::uint64_t sum = 0;
  for (const auto& line : sums) sum += total(line);
  return sum + Read(from + 4 * quarter, bytes - 4 * quarter);
}

template <bool kStream>
HWY_INLINE void store(V value, std::byte* to) {
  auto* const words = reinterpret_cast<std::uint64_t*>(to);
  if constexpr (kStream) {
    hn::Stream(value, D(), words);
  } else {
    hn::StoreU(value, D(), words);
  }
}

// Aligned stores can be streamed: what lies before the first line is copied apart.
template <bool kStream>
HWY_NOINLINE void Copy(std::byte* to, const std::byte* from, std::size_t bytes) {
  const std::size_t head =
      std::min(bytes, (kLineBytes - reinterpret_cast<std::uintptr_t>(to) % kLineBytes) % kLineBytes);
  std::memcpy(to, from, head);
  std::size_t at = head;
  for (; at + kLineBytes <= bytes; at += kLineBytes) {
    hwy::Prefetch(from + std::min(at + kAhead, bytes - 1));
    for (std::size_t r = 0; r < kRegs; ++r) store<kStream>(load(from + at + r * kRegBytes), to + at + r * kRegBytes);
  }
  std::memcpy(to + at, from + at, bytes - at);
  if (kStream) hwy::FlushStream();
}

template <bool kStream>
HWY_NOINLINE void Fold(std::byte* to, const std::byte* from, std::size_t bytes) {
  for (std::size_t at = 0; at + 2 * kLineBytes <= bytes; at += 2 * kLineBytes) {
    hwy::Prefetch(from + std::min(at + kAhead, bytes - 1));
    hwy::Prefetch(from + std::min(at + kAhead + kLineBytes, bytes - 1));
    for (std::size_t r = 0; r < kRegs; ++r)
      store<kStream>(hn::Xor(load(from + at + 2 * r * kRegBytes), load(from + at + (2 * r + 1) * kRegBytes)),
                     to + at / 2 + r * kRegBytes);
  }
  if (kStream) hwy::FlushStream();
}

void CopyCached(std::byte* to, const std::byte* from, std::size_t bytes) { Copy<false>(to, from, bytes); }
void CopyStreamed(std::byte* to, const std::byte* from, std::size_t bytes) { Copy<true>(to, from, bytes); }
void FoldCached(std::byte* to, const std::byte* from, std::size_t bytes) { Fold<false>(to, from, bytes); }
void FoldStreamed(std::byte* to, const std::byte* from, std::size_t bytes) { Fold<true>(to, from, bytes); }

}  // namespace HWY_NAMESPACE
}  // namespace firn::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace firn::bench {

HWY_EXPORT(Read);
HWY_EXPORT(ReadQuarters);
HWY_EXPORT(CopyCached);
HWY_EXPORT(CopyStreamed);
HWY_EXPORT(FoldCached);
HWY_EXPORT(FoldStreamed);

std::uint64_t read_all(std::size_t way, const std::byte* from, std::size_t bytes) {
  return way == 0 ? HWY_DYNAMIC_DISPATCH(Read)(from, bytes) : HWY_DYNAMIC_DISPATCH(ReadQuarters)(from, bytes);
}

void copy_all(std::size_t way, std::byte* to, const std::byte* from, std::size_t bytes) {
  if (way == 0) {
    std::memcpy(to, from, bytes);
  } else if (way == 1) {
    HWY_DYNAMIC_DISPATCH(CopyCached)(to, from, bytes);
  } else {
    HWY_DYNAMIC_DISPATCH(CopyStreamed)(to, from, bytes);
  }
}

void fold_all(std::size_t way, std::byte* to, const std::byte* from, std::size_t bytes) {
  if (way == 0) {
    HWY_DYNAMIC_DISPATCH(FoldCached)(to, from, bytes);
  } else {
    HWY_DYNAMIC_DISPATCH(FoldStreamed)(to, from, bytes);
  }
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

namespace {
bool beyond = false;
}

void report_share(benchmark::State& state, double share) {
  constexpr double kNoise = 1.05;  // two of the same copy, in turns, differ by as much
  state.counters["share"] = share;
  // The library finds out how often to measure by doing it once, then a few times: medians of so few say nothing.
  constexpr benchmark::IterationCount kLeast = 16;
  if (share <= kNoise || state.iterations() < kLeast) return;
  beyond = true;
  state.SkipWithError(("share " + std::to_string(share) +
                       " of the limit beside it: either the limit is none, or the machine was too busy")
                          .c_str());
}

bool any_beyond_its_limit() { return beyond; }

}  // namespace firn::bench
#endif
