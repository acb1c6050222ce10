// capacity.h: what must hold of a run, and how much load a deployment carries with it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "sim/engine.h"

namespace firn::sim {

// A time that must not be exceeded: to the first token (ttft) or per token after it (tpot), at a percentile.
struct Objective {
  bool first_token = true;
  std::uint32_t percent = 95;  // 50, 90, 95 or 99
  double seconds = 0;
};
// "ttft_p95=2s", "tpot_p50=50ms"; several are separated by commas. kInvalidArgument says what there is.
Result<std::vector<Objective>> parse_objectives(const std::vector<std::string>& texts);
std::string to_string(const Objective& objective);  // as it is written
double value_of(const EngineResult& result, const Objective& objective);
bool meets(const EngineResult& result, const std::vector<Objective>& objectives);

// The load of a trace as it is recorded.
struct Load {
  double rate = 0;  // requests a second; 0: all at once, and no rate can be asked for
  std::uint64_t requests = 0;
};
Result<Load> load_of(const std::string& path, const TraceOptions& trace);

struct Carried {
  double time_scale = 1, rate = 0;  // arrivals this much faster than recorded; requests a second
  EngineResult result;
};
struct HighestRate {
  std::optional<Carried> carried;  // none: not even as slow as was tried
  bool unbounded = false;          // it carries whatever was tried, and more
  double tried_rate = 0;           // the slowest that failed, or the fastest
};
// By doubling and halving the rate and then halving the gap: within 5 %, each rate run, and of three digits. Requests
// that are longer than the pool fail at any rate and are left to the result.
Result<HighestRate> highest_rate(const std::string& path, const TraceOptions& trace, const EngineOptions& options,
                                 const std::vector<Objective>& objectives, const Load& load, const Tick& tick = {});

}  // namespace firn::sim
