// anchors.h: what memory gives to code that does nothing but read or copy, with the widest loads and stores that the
// machine has. They are the limits that measurements stand beside: whatever is quicker than its limit shows that the
// limit was none, so that the benchmark fails.
#pragma once

#include <benchmark/benchmark.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace firn::bench {

// There is more than one way to ask a memory for the same bytes, and which is the quickest differs from machine to
// machine. Each is measured, in turns with what stands beside it, and the quickest counts.
inline constexpr std::size_t kReadWays = 2;  // front to back, and four quarters side by side
inline constexpr std::size_t kCopyWays = 3;  // the C library's memcpy; wide; wide, and stored past the caches
inline constexpr std::size_t kFoldWays = 2;  // wide; wide, and stored past the caches

// Reads each of the bytes once. bytes: a multiple of 64.
std::uint64_t read_all(std::size_t way, const std::byte* from, std::size_t bytes);
void copy_all(std::size_t way, std::byte* to, const std::byte* from, std::size_t bytes);
// Writes half as many bytes as it reads, as rounding to half the width does. bytes: read, a multiple of 128.
void fold_all(std::size_t way, std::byte* to, const std::byte* from, std::size_t bytes);

double median(std::vector<double> values);

// Seconds of each way.
template <std::size_t kWays>
class Anchor {
 public:
  void add(std::size_t way, double seconds) { seconds_[way].push_back(seconds); }
  double seconds() const {  // median of the quickest way
    double least = median(seconds_[0]);
    for (const std::vector<double>& way : seconds_) least = least < median(way) ? least : median(way);
    return least;
  }

 private:
  std::array<std::vector<double>, kWays> seconds_;
};

// Puts "share" among the counters: the measured rate by its limit. Above 1, with 5 % for noise, the benchmark fails,
// and so does the program in the end.
void report_share(benchmark::State& state, double share);
bool any_beyond_its_limit();

}  // namespace firn::bench
