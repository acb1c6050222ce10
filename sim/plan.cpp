#include "sim/plan.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "sim/trace_info.h"

namespace firn::sim {
namespace {

constexpr std::uint64_t kGib = std::uint64_t{1} << 30;
std::uint64_t whole(double value) { return value > 0 ? static_cast<std::uint64_t>(value) : 0; }

// The memory search. It takes for granted that with a host tier, more memory of any kind never makes the objective
// fail, so that one failure says the same of everything smaller. What it reports was run.
class Search {
 public:
  Search(const std::string& trace, const TraceOptions& trace_options, const std::vector<Objective>& objectives,
         const Tick& tick)
      : trace_(trace), trace_options_(trace_options), objectives_(objectives), tick_(tick) {}

  Result<PlanPoint> run(const EngineOptions& base, std::uint64_t pool, std::uint64_t host, std::uint64_t disk) {
    EngineOptions options = base;
    options.pool_bytes = pool;
    options.host_bytes = host;
    options.disk_bytes = disk;
    FIRN_ASSIGN(const EngineResult result, run_engine(trace_, trace_options_, options, tick_));
    if (!result.complete) return Status(Code::kUnavailable, "plan: stopped");
    const std::uint64_t hits = result.hit_tokens_pool + result.hit_tokens_host + result.hit_tokens_disk;
    points.push_back(
        {base.device.count, pool, host, disk, memory_price(base.device, host, disk), result.ttft_s, result.tpot_s,
         result.input_tokens == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(result.input_tokens),
         result.refused, !objectives_.empty() && meets(result, objectives_) && result.refused == 0});
    const PlanPoint& point = points.back();
    if (point.meets && (!best || point.price_per_hour < best->price_per_hour)) best = point;
    return point;
  }
  // The least host size of `hosts` (rising) that meets the objectives and is cheaper than what is known; by halving.
  Status least_host(const EngineOptions& base, std::uint64_t pool, const std::vector<std::uint64_t>& hosts,
                    std::uint64_t disk) {
    std::size_t from = 0, to = hosts.size();  // those before `from` fail, those from `to` on need not be tried
    while (from < to && !worth(base, hosts[to - 1], disk)) --to;
    bool first = true;  // the largest first: if it fails, all do
    while (from < to) {
      const std::size_t at = first ? to - 1 : from + (to - from) / 2;
      first = false;
      bool meets = false;
      if (!known_to_fail(base.device.count, pool, hosts[at], disk)) {
        FIRN_ASSIGN(const PlanPoint point, run(base, pool, hosts[at], disk));
        meets = point.meets;
      }
      (meets ? to : from) = meets ? at : at + 1;
    }
    return {};
  }

  std::vector<PlanPoint> points;
  std::optional<PlanPoint> best;

 private:
  bool worth(const EngineOptions& base, std::uint64_t host, std::uint64_t disk) const {
    return !best || memory_price(base.device, host, disk) < best->price_per_hour;
  }
  bool known_to_fail(std::uint32_t devices, std::uint64_t pool, std::uint64_t host, std::uint64_t disk) const {
    return std::any_of(points.begin(), points.end(), [&](const PlanPoint& p) {
      return !p.meets && p.devices >= devices && p.pool_bytes >= pool && p.host_bytes >= host && p.disk_bytes >= disk;
    });
  }
  const std::string& trace_;
  const TraceOptions& trace_options_;
  const std::vector<Objective>& objectives_;
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

// What is given, if it fits, and all that fits: a device is rented whole, so a smaller pool costs the same.
std::vector<std::uint64_t> pool_sizes(const EngineOptions& o) {
  std::vector<std::uint64_t> sizes;
  EngineOptions without_host = o;
  without_host.host_bytes = 0;
  if (check_fits(without_host).ok()) sizes.push_back(o.pool_bytes);
  if (const std::uint64_t most = largest_pool(o.device, o.model); most > o.pool_bytes || sizes.empty())
    sizes.push_back(most);
  return sizes;
}

// The host sizes that fit beside a pool: all, unless both lie in the same memory.
std::vector<std::uint64_t> that_fit(EngineOptions o, std::uint64_t pool, const std::vector<std::uint64_t>& hosts) {
  std::vector<std::uint64_t> fitting;
  o.pool_bytes = pool;
  for (const std::uint64_t host : hosts)
    if (o.host_bytes = host, check_fits(o).ok()) fitting.push_back(host);
  return fitting;
}

Status search_sizes(Search& search, const EngineOptions& o, double everything) {
  const std::vector<std::uint64_t> hosts = sizes_up_to(everything, 8);
  std::vector<std::uint64_t> pools;
  for (const std::uint64_t pool : pool_sizes(o))
    if (pool > 0 && !that_fit(o, pool, {0}).empty()) pools.push_back(pool);
  if (pools.empty()) return {};
  std::vector<std::uint64_t> disks = {0};
  if (o.device.disk_link > 0) disks = {0, hosts.back() / 4, hosts.back()};
  // Apart from the rest: a host tier much smaller than the pool can be worse than none, see docs/simulate.md.
  for (const std::uint64_t pool : pools) {
    FIRN_ASSIGN(const PlanPoint alone, search.run(o, pool, 0, 0));
    if (alone.meets) break;
  }
  const std::vector<std::uint64_t> most = that_fit(o, pools.back(), hosts);
  if (most.size() < 2) return {};
  FIRN_ASSIGN(const PlanPoint all, search.run(o, pools.back(), most.back(), disks.back()));
  if (!all.meets) return {};
  for (const std::uint64_t pool : pools) {
    const std::vector<std::uint64_t> fitting = that_fit(o, pool, hosts);
    const std::vector<std::uint64_t> under_host(fitting.begin() + 1, fitting.end());  // the disk lies below a host tier
    for (const std::uint64_t disk : disks) FIRN_TRY(search.least_host(o, pool, disk == 0 ? fitting : under_host, disk));
  }
  return {};
}

PlanTier tier_of(const Plan& plan, const char* name, std::uint64_t bytes, double ratio) {
  const double tokens = static_cast<double>(plan.session_tokens), raw = static_cast<double>(plan.session_bytes);
  const double hot = static_cast<double>(plan.hot_tokens) / tokens;
  const double sessions =
      static_cast<double>(bytes) / (raw * (hot + (1 - hot) / ratio));  // encoded, its hot tokens raw
  return PlanTier{name, bytes, whole(std::min(sessions * tokens, 1e18)), whole(std::min(sessions, 1e18))};
}

void fill_tiers(Plan& plan, const EngineOptions& o) {
  plan.tiers = {tier_of(plan, "pool", o.pool_bytes, 1), tier_of(plan, "host", o.host_bytes, o.codec_ratio)};
  if (o.disk_bytes > 0) plan.tiers.push_back(tier_of(plan, "disk", o.disk_bytes, o.codec_ratio));
}

// The sizes as they are with each codec: who is kept, how long the first token takes, and what it costs in quality.
Status compare_codecs(Plan& plan, const std::string& trace, const TraceOptions& trace_options,
                      const EngineOptions& base, const PlanOptions& how, const Tick& tick) {
  for (const CodecFigures& figures : how.codecs.codecs) {
    PlanCodec row;
    row.figures = figures;
    const PlanTier host = tier_of(plan, "host", base.host_bytes, figures.ratio),
                   disk = tier_of(plan, "disk", base.disk_bytes, figures.ratio);
    row.host_tokens = host.tokens, row.host_sessions = host.sessions;
    row.users = plan.tiers[0].sessions + host.sessions + disk.sessions;
    if (!trace.empty()) {
      EngineOptions o = base;
      o.codec_ratio = figures.ratio;
      o.codec_bytes_per_s = figures.bytes_per_s * how.codec_threads;
      FIRN_ASSIGN(const EngineResult result, run_engine(trace, trace_options, o, tick));
      if (!result.complete) return Status(Code::kUnavailable, "plan: stopped");
      row.is_run = true;
      row.ttft_s = result.ttft_s;
      const std::uint64_t hits = result.hit_tokens_pool + result.hit_tokens_host + result.hit_tokens_disk;
      row.token_hit_ratio =
          result.input_tokens == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(result.input_tokens);
      if (!how.objectives.empty()) {
        FIRN_ASSIGN(const HighestRate rate, highest_rate(trace, trace_options, o, how.objectives, plan.load, tick));
        row.rate = rate.unbounded ? rate.tried_rate : rate.carried ? rate.carried->rate : 0;
      }
    }
    plan.codecs.push_back(std::move(row));
  }
  return {};
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
  const double linear = 2 * o.model.active_parameters / rate;
  // n tokens of prompt: n * linear + n^2 / 2 * attention.
  const double attention = o.model.pair_flops() / rate;
  if (load <= linear) return 1;
  const double n = 2 * (load - linear) / attention;
  constexpr double kMost = 1 << 20;
  return n > kMost ? ~std::uint64_t{0} : static_cast<std::uint64_t>(n) + 1;
}

double memory_price(const DeviceSpec& device, std::uint64_t host, std::uint64_t disk) {
  const auto gib = [](std::uint64_t bytes) { return static_cast<double>(bytes) / static_cast<double>(kGib); };
  return device.price_per_hour + device.host_gib_per_hour * gib(host) + device.disk_gib_per_hour * gib(disk);
}

namespace {

// Blocks of a run are all alike: with windows, a token costs what it costs on average in a typical session.
void charge(EngineOptions& o, std::uint64_t session_tokens) {
  if (o.model.groups.empty() || o.model.latent_dim != 0) return;
  o.model.charged_token_bytes = std::max<std::uint64_t>(1, o.model.sequence_bytes(session_tokens) / session_tokens);
}

}  // namespace

Result<Plan> make_plan(const std::string& trace, const TraceOptions& trace_options, const EngineOptions& one,
                       const PlanOptions& how, const Tick& tick) {
  const std::uint32_t count = how.devices.empty() ? 1 : how.devices.front();
  FIRN_ASSIGN(const EngineOptions options, spread(one, count));
  FIRN_TRY(check_fits(options));
  Plan plan;
  FIRN_TRY(fill_groups(plan, options.model));
  plan.session_tokens = 8192;
  TraceInfo info;
  if (!trace.empty()) {
    FIRN_ASSIGN(info, inspect_trace(trace, trace_options));
    plan.session_tokens = std::max<std::uint64_t>(1, info.input_tokens.p50);
    FIRN_ASSIGN(plan.load, load_of(trace, trace_options));
  }
  plan.session_bytes = options.model.sequence_bytes(plan.session_tokens);
  plan.hot_tokens =
      std::min<std::uint64_t>(plan.session_tokens, std::uint64_t{options.protect_sinks} + options.protect_recent);
  fill_tiers(plan, options);
  EngineOptions base = options;
  charge(base, plan.session_tokens);
  plan.break_even_tokens = break_even_tokens(base);
  FIRN_TRY(compare_codecs(plan, trace, trace_options, base, how, tick));
  if (trace.empty()) return plan;

  const double everything = static_cast<double>(info.distinct_blocks) * info.block_tokens *
                            static_cast<double>(base.model.token_bytes()) / options.codec_ratio;
  Search search(trace, trace_options, how.objectives, tick);
  if (!how.objectives.empty()) {
    for (const std::uint32_t n : how.devices) {
      Result<EngineOptions> several = spread(one, n);
      if (!several.ok()) continue;  // heads that cannot be divided so
      charge(*several, plan.session_tokens);
      if (search.best && several->device.price_per_hour >= search.best->price_per_hour) break;
      FIRN_TRY(search_sizes(search, *several, everything));
    }
    FIRN_ASSIGN(plan.rate, highest_rate(trace, trace_options, base, how.objectives, plan.load, tick));
  } else {
    for (const std::uint64_t host : that_fit(base, base.pool_bytes, sizes_up_to(everything, 6)))
      FIRN_TRY(search.run(base, options.pool_bytes, host, options.disk_bytes).status());
  }
  plan.points = std::move(search.points);
  std::stable_sort(plan.points.begin(), plan.points.end(),
                   [](const PlanPoint& a, const PlanPoint& b) { return a.price_per_hour < b.price_per_hour; });
  plan.cheapest = search.best;
  return plan;
}

}  // namespace firn::sim
