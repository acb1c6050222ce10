#include "sim/curve.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "sim/byte_source.h"

namespace firn::sim {
namespace {

// How many different blocks were used after the time of a block's last use: a Fenwick tree over times with a mark at
// each block's last one. Times are renumbered when they run out.
class StackDistances {
 public:
  // Of a block that is not new; 0: it was the last one used.
  std::uint32_t distance(std::uint32_t id) const { return marks_ - sum(times_[id]); }
  bool is_new(std::uint32_t id) const { return id >= times_.size() || times_[id] == 0; }
  void use(std::uint32_t id) {
    if (id >= times_.size()) times_.resize(id + 1);
    if (times_[id] != 0) {
      add(times_[id], -1);
      --marks_;
    }
    if (now_ + 1 >= tree_.size()) renumber();
    times_[id] = ++now_;
    add(now_, 1);
    ++marks_;
  }

 private:
  void add(std::uint32_t at, int what) {
    for (; at < tree_.size(); at += at & (~at + 1)) tree_[at] = static_cast<std::uint32_t>(int(tree_[at]) + what);
  }
  std::uint32_t sum(std::uint32_t to) const {  // marks at times up to and including `to`
    std::uint32_t total = 0;
    for (; to != 0; to -= to & (~to + 1)) total += tree_[to];
    return total;
  }
  void renumber() {
    std::vector<std::pair<std::uint32_t, std::uint32_t>> order;
    for (std::uint32_t id = 0; id < times_.size(); ++id)
      if (times_[id] != 0) order.emplace_back(times_[id], id);
    std::sort(order.begin(), order.end());
    tree_.assign(std::max<std::size_t>(1 << 16, 4 * order.size()), 0);
    now_ = 0;
    for (const auto& [time, id] : order) {
      times_[id] = ++now_;
      add(now_, 1);
    }
  }
  std::vector<std::uint32_t> times_, tree_;
  std::uint32_t now_ = 0, marks_ = 0;
};

// hits[d]: what a pool of more than d blocks hits.
void count_at(std::vector<std::uint64_t>& hits, std::uint32_t distance) {
  if (distance >= hits.size()) hits.resize(distance + std::size_t{1});
  ++hits[distance];
}
std::uint64_t below(const std::vector<std::uint64_t>& hits, std::uint32_t blocks) {
  std::uint64_t total = 0;
  for (std::size_t d = 0; d < std::min<std::size_t>(hits.size(), blocks); ++d) total += hits[d];
  return total;
}

std::vector<std::uint32_t> default_capacities(std::uint64_t distinct) {
  std::vector<std::uint32_t> made;
  for (double blocks = 1000; blocks < static_cast<double>(distinct); blocks *= std::sqrt(2.0))
    made.push_back(static_cast<std::uint32_t>(std::llround(blocks)));
  made.push_back(static_cast<std::uint32_t>(std::max<std::uint64_t>(1, distinct)));
  return made;
}

double ratio(double part, std::uint64_t all) { return all == 0 ? 0 : part / static_cast<double>(all); }

// Sampled requests: of each, the blocks whose name falls into the sample.
struct Samples {
  std::vector<std::vector<TraceRequest>> requests;
  std::vector<std::uint64_t> accesses;
};

class CurveRun {
 public:
  CurveRun(const CurveOptions& options, bool exact) : o_(options), exact_(exact) {
    if (!exact) {
      samples_.requests.resize(options.samples);
      samples_.accesses.resize(options.samples);
    }
  }
  void request(const TraceRequest& request) {
    ++curve_.requests;
    curve_.accesses += request.blocks.size();
    ids_now_.clear();
    for (const std::uint64_t name : request.blocks) {
      std::uint32_t id = ids_.find(name);
      if (id == NameTable::kEmpty) {
        id = static_cast<std::uint32_t>(curve_.distinct++);
        ids_.insert(name, id);
      }
      ids_now_.push_back(id);
    }
    if (exact_)
      measure();
    else
      sample(request);
  }
  // tick: how many of the points are done; false stops.
  Result<Curve> finish(std::uint32_t block_tokens,
                       const std::function<bool(std::size_t done, std::size_t points)>& tick) {
    curve_.block_tokens = block_tokens;
    curve_.exact = exact_;
    std::vector<std::uint32_t> capacities = o_.capacities;
    if (capacities.empty()) capacities = default_capacities(curve_.distinct);
    for (const std::uint32_t blocks : capacities) {
      if (!tick(curve_.points.size(), capacities.size())) {
        curve_.complete = false;
        break;
      }
      if (exact_) {
        curve_.points.push_back({blocks, ratio(double(below(prefix_, blocks)), curve_.accesses),
                                 ratio(double(below(access_, blocks)), curve_.accesses), 0, 0});
      } else {
        FIRN_TRY(estimate(blocks, block_tokens));
      }
    }
    return curve_;
  }

 private:
  void measure() {
    // At lookup: a block is in a leading run in every pool that holds it and all before it.
    std::uint32_t deepest = 0;
    for (const std::uint32_t id : ids_now_) {
      if (stack_.is_new(id)) break;
      deepest = std::max(deepest, stack_.distance(id));
      count_at(prefix_, deepest);
    }
    for (const std::uint32_t id : ids_now_) {
      if (!stack_.is_new(id)) count_at(access_, stack_.distance(id));
      stack_.use(id);
    }
  }
  void sample(const TraceRequest& request) {
    const std::uint64_t limit = o_.rate < 1 ? static_cast<std::uint64_t>(o_.rate * 0x1p64) : ~std::uint64_t{0};
    for (std::uint32_t k = 0; k < o_.samples; ++k) {
      TraceRequest part{.time_ns = request.time_ns, .session = request.session, .turn = request.turn};
      const std::uint64_t salt = mix_name(o_.seed * 977 + k);
      for (const std::uint64_t name : request.blocks)
        if (mix_name(name ^ salt) < limit) part.blocks.push_back(name);
      if (part.blocks.empty()) continue;
      part.input_tokens = static_cast<std::uint32_t>(part.blocks.size());
      samples_.accesses[k] += part.blocks.size();
      samples_.requests[k].push_back(std::move(part));
    }
  }
  Status estimate(std::uint32_t blocks, std::uint32_t block_tokens) {
    const auto small = static_cast<std::uint32_t>(std::max<long long>(1, std::llround(blocks * o_.rate)));
    std::vector<double> prefix, access;
    for (std::uint32_t k = 0; k < o_.samples; ++k) {
      FIRN_ASSIGN(const std::unique_ptr<Bookkeeping> run,
                  Bookkeeping::create({.policy = o_.policy, .tier_blocks = {small}, .block_tokens = block_tokens}));
      for (const TraceRequest& request : samples_.requests[k]) run->run(request);
      // A sample with one much used block more or fewer than its share would be off by that block's uses: what is
      // missed is scaled, and the rest are hits (SHARDS-adj).
      const double expected = o_.rate * static_cast<double>(curve_.accesses);
      const auto adjusted = [&](std::uint64_t hits) {
        const double misses = static_cast<double>(samples_.accesses[k] - hits);
        return std::clamp(1 - misses / std::max(1.0, expected), 0.0, 1.0);
      };
      prefix.push_back(adjusted(run->counts().prefix_hits));
      access.push_back(adjusted(run->counts().access_hits));
    }
    const auto mean_and_error = [](const std::vector<double>& values) {
      double sum = 0, squares = 0;
      for (const double value : values) sum += value;
      const double n = static_cast<double>(values.size()), mean = sum / n;
      for (const double value : values) squares += (value - mean) * (value - mean);
      return std::pair{mean, n > 1 ? std::sqrt(squares / (n - 1) / n) : 0};
    };
    const auto p = mean_and_error(prefix), a = mean_and_error(access);
    curve_.points.push_back({blocks, p.first, a.first, p.second, a.second});
    return {};
  }

  const CurveOptions& o_;
  bool exact_;
  Curve curve_ = {};
  NameTable ids_;
  std::vector<std::uint32_t> ids_now_;
  StackDistances stack_;
  std::vector<std::uint64_t> prefix_, access_;
  Samples samples_;
};

}  // namespace

Result<Curve> miss_ratio_curve(const std::string& path, const TraceOptions& trace, const CurveOptions& options,
                               const Tick& tick) {
  if (!(options.rate > 0 && options.rate <= 1) || options.samples == 0 || options.samples > 64)
    return Status(Code::kInvalidArgument, "curve: a rate above 0 and at most 1, and 1 to 64 samples");
  const bool exact = options.policy == "lru" && !options.sampled;
  if (options.policy == "optimal")
    return Status(Code::kInvalidArgument, "curve: \"optimal\" needs the whole future; run it at each capacity");
  FIRN_TRY(make_policy(options.policy, 1).status());
  FIRN_ASSIGN(const std::unique_ptr<TraceReader> reader, TraceReader::open(path, trace));
  CurveRun run(options, exact);
  TraceRequest request;
  bool complete = true;
  // Samples are run at some capacities afterwards, which takes about as long as reading.
  const auto whole = [&] { return reader->packed_size() * (exact ? 1 : 2); };
  for (;;) {
    FIRN_ASSIGN(const bool more, reader->next(request));
    if (!more) break;
    run.request(request);
    constexpr std::uint64_t kTickEvery = 256;
    if (tick && reader->requests() % kTickEvery == 0 &&
        !tick({reader->requests(), reader->packed_read(), whole(), request.time_ns})) {
      complete = false;
      break;
    }
  }
  const std::uint64_t read = reader->packed_read();
  FIRN_ASSIGN(Curve curve, run.finish(reader->block_tokens(), [&](std::size_t done, std::size_t points) {
    return !tick || !complete ||
           tick({reader->requests(), read + part_of(whole() - read, done, points), whole(), request.time_ns});
  }));
  curve.complete = curve.complete && complete;
  return curve;
}

}  // namespace firn::sim
