// sweep.h: many runs, one report. Each point is run by some thread, its result is one line of text; with a state file
// the lines are kept as they come, and a sweep that was killed goes on where it stopped. The report depends on neither
// the number of threads nor on where it stopped.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "sim/bookkeeping.h"
#include "sim/engine.h"

namespace firn::sim {

struct SweepPoint {
  std::string name;                                        // unique, one line: everything the result depends on
  std::function<Result<std::string>(const Tick&)> result;  // one line
};
struct SweepResult {
  std::vector<std::string> lines;  // one a point, in the points' order; empty: not done
  std::size_t reused = 0, done = 0;
  bool complete = true;
};
// state_file: empty for none. tick: called by one thread at a time; false stops, what is done stays done.
Result<SweepResult> run_sweep(const std::vector<SweepPoint>& points, std::size_t threads, const std::string& state_file,
                              const Tick& tick = {});

// "host.budget=0,8GiB" and others, each with its values.
struct SweepAxis {
  std::string key;
  std::vector<std::string> values;
};
Result<SweepAxis> parse_axis(const std::string& text);
// host.budget, pool.budget, disk.budget, policy, codec-ratio, time-scale, watermark, step-tokens, swap, second-use.
Status set_option(EngineOptions& options, const std::string& key, const std::string& value);
// A point for every combination: the JSON report of that run, on one line.
Result<std::vector<SweepPoint>> engine_points(const std::string& path, const TraceOptions& trace,
                                              const EngineOptions& options, const std::vector<SweepAxis>& axes);
// The same without a clock; axes: policy, capacity-blocks.
Result<std::vector<SweepPoint>> bookkeeping_points(const std::string& path, const TraceOptions& trace,
                                                   const BookkeepingOptions& options,
                                                   const std::vector<SweepAxis>& axes);
// Every combination, the last axis fastest; each as one value an axis.
std::vector<std::vector<std::string>> combinations(const std::vector<SweepAxis>& axes);

}  // namespace firn::sim
