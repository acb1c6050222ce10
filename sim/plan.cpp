#include "sim/plan.h"

#include <algorithm>

#include "sim/trace_info.h"

namespace firn::sim {

std::uint64_t break_even_tokens(const EngineOptions& o) {
  const double token = static_cast<double>(o.model.token_bytes());
  const double load = std::max(token / o.codec_ratio / o.device.host_link, token / o.codec_bytes_per_s);
  const double rate = o.device.flops * o.device.prefill_efficiency;
  const double linear = 2 * o.model.parameters / rate;
  // n tokens of prompt: n * linear + n^2 / 2 * attention.
  const double attention = 4.0 * o.model.layers * o.model.heads * o.model.head_dim / rate;
  if (load <= linear) return 1;
  const double n = 2 * (load - linear) / attention;
  constexpr double kMost = 1 << 20;
  return n > kMost ? ~std::uint64_t{0} : static_cast<std::uint64_t>(n) + 1;
}

Result<Plan> make_plan(const std::string& trace, const TraceOptions& trace_options, const EngineOptions& options,
                       double ttft_p95_s, const Tick& tick) {
  Plan plan;
  plan.token_bytes = options.model.token_bytes();
  plan.pool_tokens = options.pool_bytes / plan.token_bytes;
  const auto host_tokens = [&](double ratio) {
    return static_cast<std::uint64_t>(static_cast<double>(options.host_bytes) * ratio /
                                      static_cast<double>(plan.token_bytes));
  };
  plan.host_tokens = host_tokens(options.codec_ratio);
  for (const double ratio : {1.0, 1.3, 2.0, 4.0, 8.0}) plan.codec_tokens.emplace_back(ratio, host_tokens(ratio));
  plan.session_tokens = 8192;
  plan.break_even_tokens = break_even_tokens(options);
  if (trace.empty()) return plan;

  FIRN_ASSIGN(const TraceInfo info, inspect_trace(trace, trace_options));
  plan.session_tokens = std::max<std::uint64_t>(1, info.input_tokens.p50);
  // Nothing, then doubling from 8 GiB until everything ever referenced fits: more cannot help.
  const double everything = static_cast<double>(info.distinct_blocks * info.block_tokens * plan.token_bytes);
  EngineOptions run = options;
  run.host_bytes = 0;
  for (bool last = false; !last; run.host_bytes = run.host_bytes == 0 ? std::uint64_t{8} << 30 : 2 * run.host_bytes) {
    FIRN_ASSIGN(const EngineResult result, run_engine(trace, trace_options, run, tick));
    if (!result.complete) return Status(Code::kUnavailable, "plan: stopped");
    const std::uint64_t hits = result.hit_tokens_pool + result.hit_tokens_host + result.hit_tokens_disk;
    const bool meets = ttft_p95_s > 0 && result.ttft_s.p95 <= ttft_p95_s && result.refused == 0;
    plan.points.push_back(
        {run.host_bytes, result.ttft_s.p95,
         result.input_tokens == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(result.input_tokens), meets});
    last = meets || static_cast<double>(run.host_bytes) * run.codec_ratio >= everything || plan.points.size() >= 16;
  }
  return plan;
}

}  // namespace firn::sim
