#include "sim/plan.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "sim/trace_info.h"

namespace firn::sim {
namespace {

constexpr std::uint64_t kGib = std::uint64_t{1} << 30;
constexpr double kCodecRatios[] = {1.0, 1.3, 2.0, 4.0, 8.0, 16.0};

std::uint64_t whole(double value) { return value > 0 ? static_cast<std::uint64_t>(value) : 0; }

// The memory search. It takes for granted that with a host tier, more memory of any kind never makes the objective
// fail, so that one failure says the same of everything smaller. What it reports was run.
class Search {
 public:
  Search(const std::string& trace, const TraceOptions& trace_options, const EngineOptions& base, double objective,
         const Tick& tick)
      : trace_(trace), trace_options_(trace_options), base_(base), objective_(objective), tick_(tick) {}

  Result<PlanPoint> run(std::uint64_t pool, std::uint64_t host, std::uint64_t disk) {
    EngineOptions options = base_;
    options.pool_bytes = pool;
    options.host_bytes = host;
    options.disk_bytes = disk;
    FIRN_ASSIGN(const EngineResult result, run_engine(trace_, trace_options_, options, tick_));
    if (!result.complete) return Status(Code::kUnavailable, "plan: stopped");
    const std::uint64_t hits = result.hit_tokens_pool + result.hit_tokens_host + result.hit_tokens_disk;
    points.push_back(
        {pool, host, disk, memory_price(base_.device, pool, host, disk), result.ttft_s.p95,
         result.input_tokens == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(result.input_tokens),
         result.refused, objective_ > 0 && result.ttft_s.p95 <= objective_ && result.refused == 0});
    const PlanPoint& point = points.back();
    if (point.meets && (!best || point.price_per_hour < best->price_per_hour)) best = point;
    return point;
  }
  // The least host size of `hosts` (rising) that meets the objective and is cheaper than what is known; by halving.
  Status least_host(std::uint64_t pool, const std::vector<std::uint64_t>& hosts, std::uint64_t disk) {
    std::size_t from = 0, to = hosts.size();  // those before `from` fail, those from `to` on need not be tried
    while (from < to && !worth(pool, hosts[to - 1], disk)) --to;
    bool first = true;  // the largest first: if it fails, all do
    while (from < to) {
      const std::size_t at = first ? to - 1 : from + (to - from) / 2;
      first = false;
      bool meets = false;
      if (!known_to_fail(pool, hosts[at], disk)) {
        FIRN_ASSIGN(const PlanPoint point, run(pool, hosts[at], disk));
        meets = point.meets;
      }
      (meets ? to : from) = meets ? at : at + 1;
    }
    return {};
  }

  std::vector<PlanPoint> points;
  std::optional<PlanPoint> best;

 private:
  bool worth(std::uint64_t pool, std::uint64_t host, std::uint64_t disk) const {
    return !best || memory_price(base_.device, pool, host, disk) < best->price_per_hour;
  }
  bool known_to_fail(std::uint64_t pool, std::uint64_t host, std::uint64_t disk) const {
    return std::any_of(points.begin(), points.end(), [&](const PlanPoint& p) {
      return !p.meets && p.pool_bytes >= pool && p.host_bytes >= host && p.disk_bytes >= disk;
    });
  }
  const std::string& trace_;
  const TraceOptions& trace_options_;
  const EngineOptions& base_;
  const double objective_;
  const Tick& tick_;
};

// Nothing, then powers of two up to what holds everything that is ever referenced: more cannot help.
std::vector<std::uint64_t> sizes_up_to(double everything, std::uint32_t count) {
  const std::uint64_t most = std::bit_ceil(std::max(kGib, whole(std::min(everything, 0x1p50))));
  std::vector<std::uint64_t> sizes = {0};
  for (std::uint32_t i = count; i-- > 0;)
    if (most >> i >= kGib) sizes.push_back(most >> i);
  return sizes;
}

std::vector<std::uint64_t> pool_sizes(const EngineOptions& o) {
  const double left = 0.9 * static_cast<double>(o.device.memory_bytes) - o.model.weight_bytes;
  const std::uint64_t most = std::max(o.pool_bytes, whole(left));
  std::vector<std::uint64_t> sizes = {o.pool_bytes, most, most / 2, most / 4};
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

Status search_sizes(Search& search, const EngineOptions& o, double everything) {
  const std::vector<std::uint64_t> hosts = sizes_up_to(everything, 8), pools = pool_sizes(o);
  std::vector<std::uint64_t> disks = {0};
  if (o.device.disk_link > 0) disks = {0, hosts.back() / 4, hosts.back()};
  FIRN_ASSIGN(const PlanPoint all, search.run(pools.back(), hosts.back(), disks.back()));
  // Apart from the rest: a host tier much smaller than the pool can be worse than none, see docs/simulate.md.
  for (const std::uint64_t pool : pools) {
    FIRN_ASSIGN(const PlanPoint alone, search.run(pool, 0, 0));
    if (alone.meets) break;
  }
  if (!all.meets) return {};
  const std::vector<std::uint64_t> under_host(hosts.begin() + 1, hosts.end());  // the disk lies below a host tier
  for (const std::uint64_t pool : pools)
    for (const std::uint64_t disk : disks) FIRN_TRY(search.least_host(pool, disk == 0 ? hosts : under_host, disk));
  return {};
}

void fill_tiers(Plan& plan, const EngineOptions& o) {
  const double tokens = static_cast<double>(plan.session_tokens), raw = static_cast<double>(plan.session_bytes);
  const double hot = static_cast<double>(plan.hot_tokens) / tokens;
  const auto session = [&](double ratio) { return raw * (hot + (1 - hot) / ratio); };  // encoded, its hot tokens raw
  const auto tier = [&](const char* name, std::uint64_t bytes, double ratio) {
    const double sessions = static_cast<double>(bytes) / session(ratio);
    return PlanTier{name, bytes, whole(sessions * tokens), whole(sessions)};
  };
  plan.tiers = {tier("pool", o.pool_bytes, 1), tier("host", o.host_bytes, o.codec_ratio)};
  if (o.disk_bytes > 0) plan.tiers.push_back(tier("disk", o.disk_bytes, o.codec_ratio));
  for (const double ratio : kCodecRatios) {
    const PlanTier host = tier("host", o.host_bytes, ratio);
    plan.codecs.push_back({ratio, host.tokens, host.sessions});
  }
}

Status fill_groups(Plan& plan, const ModelShape& model) {
  const ModelSpec spec = model.spec();
  FIRN_ASSIGN(const PageLayout layout, page_layout(spec));
  plan.page_bytes = layout.page_bytes;
  plan.token_bytes = spec.token_bytes();
  for (const GroupSpec& group : spec.groups) plan.groups.push_back({group, 0});
  for (const PageSet& set : layout.sets) ++plan.groups[index(set.group)].page_sets;
  return {};
}

}  // namespace

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

double memory_price(const DeviceSpec& device, std::uint64_t pool, std::uint64_t host, std::uint64_t disk) {
  const auto gib = [](std::uint64_t bytes) { return static_cast<double>(bytes) / static_cast<double>(kGib); };
  const double pool_price = device.memory_bytes == 0 ? 0 : device.price_per_hour / gib(device.memory_bytes) * gib(pool);
  return pool_price + device.host_gib_per_hour * gib(host) + device.disk_gib_per_hour * gib(disk);
}

Result<Plan> make_plan(const std::string& trace, const TraceOptions& trace_options, const EngineOptions& options,
                       double ttft_p95_s, const Tick& tick) {
  Plan plan;
  FIRN_TRY(fill_groups(plan, options.model));
  plan.session_tokens = 8192;
  TraceInfo info;
  if (!trace.empty()) {
    FIRN_ASSIGN(info, inspect_trace(trace, trace_options));
    plan.session_tokens = std::max<std::uint64_t>(1, info.input_tokens.p50);
  }
  plan.session_bytes = options.model.sequence_bytes(plan.session_tokens);
  plan.hot_tokens =
      std::min<std::uint64_t>(plan.session_tokens, std::uint64_t{options.protect_sinks} + options.protect_recent);
  fill_tiers(plan, options);
  EngineOptions base = options;
  // Blocks of a run are all alike: with windows, a token costs what it costs on average in a typical session.
  if (!options.model.groups.empty())
    base.model.charged_token_bytes = std::max<std::uint64_t>(1, plan.session_bytes / plan.session_tokens);
  plan.break_even_tokens = break_even_tokens(base);
  if (trace.empty()) return plan;

  const double everything =
      static_cast<double>(info.distinct_blocks * info.block_tokens * base.model.token_bytes()) / options.codec_ratio;
  Search search(trace, trace_options, base, ttft_p95_s, tick);
  if (ttft_p95_s > 0) {
    FIRN_TRY(search_sizes(search, base, everything));
  } else {
    for (const std::uint64_t host : sizes_up_to(everything, 6))
      FIRN_TRY(search.run(options.pool_bytes, host, options.disk_bytes).status());
  }
  plan.points = std::move(search.points);
  std::stable_sort(plan.points.begin(), plan.points.end(),
                   [](const PlanPoint& a, const PlanPoint& b) { return a.price_per_hour < b.price_per_hour; });
  plan.cheapest = search.best;
  return plan;
}

}  // namespace firn::sim
