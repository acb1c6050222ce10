// plan.h: how much memory is enough, from a few numbers and, with a trace, from runs of the engine.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "sim/engine.h"

namespace firn::sim {

struct PlanGroup {
  GroupSpec spec;
  std::uint32_t page_sets = 0;  // as the library's page_layout() cuts it
};
struct PlanTier {
  std::string name;  // pool, host, disk
  std::uint64_t bytes = 0, tokens = 0, sessions = 0;
};
struct PlanCodec {
  double ratio = 1;
  std::uint64_t host_tokens = 0, host_sessions = 0;
};
struct PlanPoint {  // one run
  std::uint64_t pool_bytes = 0, host_bytes = 0, disk_bytes = 0;
  double price_per_hour = 0;  // of these bytes; see memory_price
  double ttft_p95_s = 0, token_hit_ratio = 0;
  std::uint64_t refused = 0;  // longer than the pool
  bool meets = false;
};
struct Plan {
  std::vector<PlanGroup> groups;
  std::uint64_t page_bytes = 0;
  std::uint64_t token_bytes = 0;                        // of all layers
  std::uint64_t session_tokens = 0, session_bytes = 0;  // a typical session: the trace's median prompt, or 8,192
  std::uint64_t hot_tokens = 0;                         // of those, sinks and recent window, which no codec touches
  std::vector<PlanTier> tiers;
  // From this many tokens on, loading a prefix from the host is quicker than computing it; ~0: never below 2^20.
  std::uint64_t break_even_tokens = 0;
  std::vector<PlanCodec> codecs;      // at assumed codec ratios
  std::vector<PlanPoint> points;      // with a trace: runs, the cheapest first
  std::optional<PlanPoint> cheapest;  // of those that meet the objective
};

std::uint64_t break_even_tokens(const EngineOptions& options);
// Dollars an hour: device memory at its share of the device's price, host and disk by the device file.
double memory_price(const DeviceSpec& device, std::uint64_t pool, std::uint64_t host, std::uint64_t disk);
// trace: empty for numbers only. ttft_p95_s: the objective, for which pool, host and disk sizes are searched; 0: none,
// and host sizes are tried at the pool there is.
Result<Plan> make_plan(const std::string& trace, const TraceOptions& trace_options, const EngineOptions& options,
                       double ttft_p95_s, const Tick& tick = {});

}  // namespace firn::sim
