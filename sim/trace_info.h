// trace_info.h: what a trace is like: how many, how long, how fast, how much of it comes again.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "firn/status.h"
#include "sim/trace.h"

namespace firn::sim {

// Percentiles of a count, exact (nearest rank).
struct Spread {
  std::uint64_t p10 = 0, p50 = 0, p90 = 0, p99 = 0, most = 0;
  double mean = 0;
};
Spread spread_of(std::vector<std::uint32_t> values);

struct TraceInfo {
  TraceFormat format = TraceFormat::kAuto;
  std::uint32_t block_tokens = 0;
  std::uint64_t requests = 0, sessions = 0;  // sessions: 0 where the trace names none
  double seconds = 0;                        // from the first arrival to the last
  Spread input_tokens, output_tokens;
  std::uint64_t input_tokens_sum = 0, output_tokens_sum = 0;
  std::uint64_t blocks = 0, distinct_blocks = 0, blocks_once = 0;  // accesses, names, names used once
  std::uint64_t prefix_hits = 0, hit_tokens = 0;                   // of a cache without end
  Spread reuse_seconds;                                            // between two uses of a block
  std::uint64_t bad_line_count = 0, out_of_order = 0;
  std::vector<BadLine> bad_lines;
};

// Reads it once. Memory: 4 bytes a request for each length, and 24 a distinct block; reuse times are sampled.
Result<TraceInfo> inspect_trace(const std::string& path, const TraceOptions& options);
// Writes it as Mooncake lines: "csv" of Azure's lengths and Weka's sessions included. How many requests. The output is
// there whole or not at all, and is never the input.
Result<std::uint64_t> convert_trace(const std::string& path, const TraceOptions& options, const std::string& out);

}  // namespace firn::sim
