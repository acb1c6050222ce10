// curve.h: hit ratio against capacity, without a run for every capacity. LRU is a stack policy: one pass over the trace
// gives its counts at every capacity exactly (Mattson's stack distances). Other rules are run small: on a sample of the
// blocks chosen by name, in a pool as much smaller (SHARDS, FAST'15), several samples beside each other, whose spread
// is the error.
#pragma once

#include <string>
#include <vector>

#include "sim/bookkeeping.h"

namespace firn::sim {

struct CurveOptions {
  std::string policy = "lru";
  std::vector<std::uint32_t> capacities =
      {};              // blocks; empty: eight an octave pair from 1,000 up to all different blocks
  double rate = 0.05;  // share of the blocks in a sample
  std::uint32_t samples = 8;
  std::uint64_t seed = 1;
  bool sampled = false;  // LRU too, to see the error
};
struct CurvePoint {
  std::uint32_t blocks = 0;
  double prefix_ratio = 0, access_ratio = 0;  // of block accesses
  double prefix_error = 0, access_error = 0;  // standard error over the samples; 0: exact
};
struct Curve {
  std::uint64_t accesses = 0, distinct = 0, requests = 0;
  std::uint32_t block_tokens = 0;
  bool exact = false, complete = true;
  std::vector<CurvePoint> points;
};
Result<Curve> miss_ratio_curve(const std::string& path, const TraceOptions& trace, const CurveOptions& options,
                               const Tick& tick = {});

}  // namespace firn::sim
