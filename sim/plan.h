// plan.h: how much memory is enough, from a few numbers and, with a trace, from runs of the engine.
#pragma once

#include <string>
#include <vector>

#include "sim/engine.h"

namespace firn::sim {

struct PlanPoint {
  std::uint64_t host_bytes = 0;
  double ttft_p95_s = 0, token_hit_ratio = 0;
  bool meets = false;
};
struct Plan {
  std::uint64_t token_bytes = 0, pool_tokens = 0, host_tokens = 0;
  std::uint64_t session_tokens = 0;  // of a typical session: the trace's median prompt, or 8,192
  // From this many tokens on, loading a prefix from the host is quicker than computing it; ~0: never below 2^20.
  std::uint64_t break_even_tokens = 0;
  std::vector<std::pair<double, std::uint64_t>> codec_tokens;  // host tokens at assumed codec ratios
  std::vector<PlanPoint> points;                               // with a trace: rising host sizes
};

std::uint64_t break_even_tokens(const EngineOptions& options);
// trace: empty for numbers only. ttft_p95_s: the objective; 0: none.
Result<Plan> make_plan(const std::string& trace, const TraceOptions& trace_options, const EngineOptions& options,
                       double ttft_p95_s, const Tick& tick = {});

}  // namespace firn::sim
