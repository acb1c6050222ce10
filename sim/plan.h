// plan.h: how much memory is enough, from a few numbers and, with a trace, from runs of the engine.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "sim/capacity.h"
#include "sim/codec_figures.h"
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
struct PlanCodec {  // the same sizes with another codec
  CodecFigures figures;
  std::uint64_t host_tokens = 0, host_sessions = 0;
  std::uint64_t users = 0;  // sessions whose context is kept, in the pool and below it
  bool is_run = false;      // with a trace: what follows
  Percentiles ttft_s;
  double token_hit_ratio = 0;
  double rate = 0;  // with objectives: requests a second that meet them; 0: none
};
struct PlanPoint {  // one run
  std::uint32_t devices = 1;
  std::uint64_t pool_bytes = 0, host_bytes = 0, disk_bytes = 0;
  double price_per_hour = 0;  // whole devices, and these bytes of host and disk; see memory_price
  Percentiles ttft_s, tpot_s;
  double token_hit_ratio = 0;
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
  std::vector<PlanCodec> codecs;
  std::vector<PlanPoint> points;      // with a trace: runs, the cheapest first
  std::optional<PlanPoint> cheapest;  // of those that meet the objectives
  Load load;                          // with a trace
  std::optional<HighestRate> rate;    // with objectives: what the sizes as given carry
};
struct PlanOptions {
  std::vector<Objective> objectives = {};
  CodecTable codecs = {};  // what to compare; none: no comparison
  std::uint32_t codec_threads = 1;
  std::vector<std::uint32_t> devices = {1};  // how many may be taken; the first is what the options are for
};

std::uint64_t break_even_tokens(const EngineOptions& options);
// Dollars an hour: whole devices, host and disk by the device file.
double memory_price(const DeviceSpec& device, std::uint64_t host, std::uint64_t disk);
// trace: empty for numbers only. one: of one device; its pool is used where it fits, beside the largest there is room
// for. Without objectives host sizes are tried at the pool there is.
Result<Plan> make_plan(const std::string& trace, const TraceOptions& trace_options, const EngineOptions& one,
                       const PlanOptions& how, const Tick& tick = {});

}  // namespace firn::sim
