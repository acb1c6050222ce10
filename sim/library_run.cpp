#include "sim/library_run.h"

#include <fmt/format.h>

#include <algorithm>

#include "sim/byte_source.h"
#include "sim/replay.h"
#include "sim/virtual_engine.h"

namespace firn::sim {
namespace {

constexpr std::uint32_t kHeadDim = 64;  // 4 KiB a block: large enough that a frame's header is nothing beside it

ModelSpec small_model() {
  ModelSpec model;
  model.name = "simulated";
  model.weights.bytes.fill(1);
  model.groups = {{GroupKind::kFull, 1, {Dtype::kF16, 1, kHeadDim, kHeadDim}, 0}};
  return model;
}

Result<Config> small_config(const EngineOptions& o, const ModelSpec& model) {
  const std::uint64_t real = kBlockTokens * o.model.token_bytes(), small = model.block_bytes();
  Config config;
  config.device = "none";
  config.pool.budget_bytes = (o.pool_bytes / real + 1) * small;
  config.pool.max_step_tokens = o.max_step_tokens;
  if (o.host_bytes != 0) {
    const double share = static_cast<double>(o.host_bytes) / static_cast<double>(real);
    config.host.budget_bytes = std::max<std::uint64_t>(1 << 20, static_cast<std::uint64_t>(share * double(small)));
  }
  config.host.codec = "raw";
  config.host.huge_pages = false;
  config.mover.worker = false;
  config.mover.queue = 65536;
  config.eviction = o.policy;
  config.protect.sinks = o.protect_sinks;
  config.protect.recent = o.protect_recent;
  config.max_sequences = o.max_sequences;
  config.max_sequence_tokens = 1 << 21;
  if (o.disk_bytes != 0 || o.swap || o.exclusive || o.admit_second_use ||
      (!o.host_policy.empty() && o.host_policy != o.policy))
    return Status(Code::kInvalidArgument,
                  "through the manager there are no disk tier, swapping, exclusive tiers, second-use admission and "
                  "separate policies: the library of this version has none of them");
  return config;
}

// Gauges over time, and what moved in between.
class Sampler {
 public:
  Sampler(const Manager& manager, const EngineOptions& options, EngineResult& result, double byte_scale)
      : manager_(manager), o_(options), r_(result), byte_scale_(byte_scale) {}
  void look(std::int64_t now_ns, std::size_t waiting, std::size_t running, double busy_s, bool last) {
    if (!last && now_ns - at_ns_ < interval_ns_) return;
    at_ns_ = now_ns;
    const Stats stats = manager_.stats();
    Sample s;
    s.seconds = static_cast<double>(now_ns) / 1e9;
    const double slots = static_cast<double>(stats.slots_total);
    s.pool_live = static_cast<double>(stats.slots_live) / slots;
    s.pool_cached = static_cast<double>(stats.slots_cached) / slots;
    if (manager_.config().host.budget_bytes != 0)
      s.host = std::min(
          1.0, static_cast<double>(stats.host_frame_bytes) / static_cast<double>(manager_.config().host.budget_bytes));
    s.waiting = waiting;
    s.running = running;
    const auto real = [this](std::uint64_t bytes) {
      return static_cast<std::uint64_t>(static_cast<double>(bytes) * byte_scale_);
    };
    const std::uint64_t up = real(stats.kv_offload_bytes_load), down = real(stats.kv_offload_bytes_store);
    s.host_up_bytes = up - r_.host_up_bytes;
    s.host_down_bytes = down - r_.host_down_bytes;
    r_.host_up_bytes = up;
    r_.host_down_bytes = down;
    s.length_s = s.seconds - last_seconds_;
    last_seconds_ = s.seconds;
    s.input_tokens = (stats.prefix_cache_queries - queries_) * kBlockTokens;
    s.hit_tokens = (stats.prefix_cache_hits - hits_) * kBlockTokens;
    queries_ = stats.prefix_cache_queries, hits_ = stats.prefix_cache_hits;
    s.busy_s = busy_s - busy_s_;
    busy_s_ = busy_s;
    r_.samples.push_back(s);
    if (r_.samples.size() < 2 * std::size_t{o_.samples}) return;
    std::vector<Sample> halved;
    for (std::size_t i = 1; i < r_.samples.size(); i += 2) halved.push_back(merged(r_.samples[i - 1], r_.samples[i]));
    r_.samples = std::move(halved);
    interval_ns_ *= 2;
  }

 private:
  const Manager& manager_;
  const EngineOptions& o_;
  EngineResult& r_;
  double byte_scale_;
  std::int64_t at_ns_ = 0, interval_ns_ = 1'000'000'000;
  std::uint64_t queries_ = 0, hits_ = 0;
  double last_seconds_ = 0, busy_s_ = 0;
};

void take_requests(const Replay& replayed, EngineResult& r) {
  std::vector<float> first, each, queued;
  for (const ReplayedRequest& request : replayed.requests) {
    first.push_back(static_cast<float>(request.first_token_s));
    queued.push_back(static_cast<float>(request.queued_s));
    if (request.output_tokens > 1) each.push_back(static_cast<float>(request.each_token_s));
    r.input_tokens += request.prompt_tokens;
    r.output_tokens += request.output_tokens;
    r.hit_tokens_host += request.hit_tokens_host;
    r.hit_tokens_pool += request.hit_tokens - request.hit_tokens_host;
  }
  r.requests = replayed.arrived;
  r.finished = replayed.requests.size();
  r.refused = replayed.refused;
  r.preemptions = replayed.preempted;
  r.complete = replayed.complete;
  r.ttft_s = percentiles(std::move(first));
  r.tpot_s = percentiles(std::move(each));
  r.queue_s = percentiles(std::move(queued));
}

void take_stats(const Stats& stats, EngineResult& r) {
  const auto missed = [&stats](MissReason reason) { return stats.misses[static_cast<std::size_t>(reason)]; };
  r.blocks = stats.prefix_cache_queries;
  r.hits_pool = stats.hits_device;
  r.hits_host = stats.hits_host;
  r.miss_never_stored = missed(MissReason::kNeverStored);
  r.miss_evicted = missed(MissReason::kEvictedDevice) + missed(MissReason::kEvictedHost);
  r.miss_tail = missed(MissReason::kPartialTail);
  r.miss_after_miss = r.blocks - r.hits_pool - r.hits_host - r.miss_never_stored - r.miss_evicted - r.miss_tail;
  r.pool_evictions = stats.evictions;
  r.host_evictions = stats.host_evictions;
  r.stored_blocks = stats.frames_stored * kMaxExtentBlocks;
}

}  // namespace

Result<EngineResult> run_through_manager(const std::string& path, const TraceOptions& trace,
                                         const EngineOptions& options, const Tick& tick) {
  FIRN_TRY(check_fits(options));
  const ModelSpec model = small_model();
  FIRN_ASSIGN(const Config config, small_config(options, model));
  FIRN_ASSIGN(const std::unique_ptr<TraceReader> reader, TraceReader::open(path, trace));
  VirtualClock clock;
  FIRN_ASSIGN(
      const std::unique_ptr<Manager> manager,
      Manager::create(
          config, model,
          {.threads = nullptr, .device = nullptr, .clock = clock.reader(), .assumed_ratio = options.codec_ratio}));
  EngineResult result;
  result.through_manager = true;
  result.block_tokens = kBlockTokens;
  result.block_bytes = kBlockTokens * options.model.token_bytes();
  result.pool_blocks = manager->stats().slots_total;
  result.host_blocks = static_cast<std::uint64_t>(static_cast<double>(options.host_bytes) * options.codec_ratio /
                                                  static_cast<double>(result.block_bytes));
  VirtualEngine engine(
      *manager, clock,
      {.cost = device_cost(options.device, options.model, result.block_bytes, options.codec_ratio), .one_step = true});
  Sampler sampler(*manager, options, result,
                  static_cast<double>(result.block_bytes) / static_cast<double>(model.block_bytes()));
  ReplayOptions replaying;
  replaying.places = options.max_sequences;
  replaying.by_clock = true;
  replaying.live_tokens_most =
      static_cast<std::uint64_t>((1 - options.watermark) * static_cast<double>(result.pool_blocks * kBlockTokens));
  replaying.time_scale = options.time_scale;
  replaying.decode_first = true;
  replaying.now = clock.reader();
  replaying.wait_until = [&clock](Instant when) { clock.move_to(when); };
  std::uint64_t turns = 0;
  replaying.after_turn = [&](std::size_t waiting, std::size_t running) {
    sampler.look(clock.now().ns, waiting, running, engine.counters().busy_s, /*last=*/false);
    constexpr std::uint64_t kTickEvery = 256;
    const std::uint64_t read = reader->requests(), open = std::min<std::uint64_t>(read, waiting + running);
    return !tick || ++turns % kTickEvery != 0 ||
           tick({read, part_of(reader->packed_read(), read - open, read), reader->packed_size(), clock.now().ns});
  };
  FIRN_TRY(reader->next(replaying.first).status());  // there is one, or that is an error
  replaying.has_first = true;
  replaying.tokens.block_tokens = std::max(1u, reader->block_tokens());
  const std::function<Result<bool>(TraceRequest&)> next = [&reader](TraceRequest& request) {
    return reader->next(request);
  };
  FIRN_ASSIGN(const Replay replayed, replay(engine, *manager, next, replaying));
  sampler.look(clock.now().ns, 0, 0, engine.counters().busy_s, /*last=*/true);
  take_requests(replayed, result);
  take_stats(manager->stats(), result);
  result.dump = manager->dump();
  result.seconds = static_cast<double>(clock.now().ns) / 1e9;
  result.compute_busy_s = engine.counters().busy_s;
  result.prefill_s = engine.counters().prefill_s;
  result.host_down_busy_s = static_cast<double>(result.host_down_bytes) / options.device.host_link;
  result.host_up_busy_s = static_cast<double>(result.host_up_bytes) / options.device.host_link;
  result.cost = options.device.price_per_hour * result.seconds / 3600;
  result.bad_line_count = reader->bad_line_count();
  result.out_of_order = reader->out_of_order();
  result.bad_lines = reader->bad_lines();
  return result;
}

}  // namespace firn::sim
