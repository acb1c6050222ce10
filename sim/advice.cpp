#include "sim/advice.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

namespace firn::sim {
namespace {

constexpr double kGib = 1024.0 * 1024 * 1024;
constexpr double kFull = 0.85;  // of the time: then it is what the others wait for

double share(double part, double all) { return all > 0 ? part / all : 0; }
std::string gib(std::uint64_t bytes) {
  const double number = static_cast<double>(bytes) / kGib;
  return number < 10 ? fmt::format("{:.1f} GiB", number) : fmt::format("{:.0f} GiB", number);
}
std::string time(double s) {
  if (s < 1) return fmt::format("{:.0f} ms", s * 1e3);
  return s < 120    ? fmt::format("{:.1f} s", s)
         : s < 7200 ? fmt::format("{:.0f} min", s / 60)
                    : fmt::format("{:.1f} h", s / 3600);
}

// Windows by how many waited in them; where nobody did, by their length.
void weigh(const EngineResult& r, Diagnosis& d) {
  double all = 0;
  for (const Sample& s : r.samples) all += static_cast<double>(s.waiting) * s.length_s;
  const bool waited = all > 0;
  all = 0;
  for (const Sample& s : r.samples) {
    const double weight = waited ? static_cast<double>(s.waiting) : 1;
    all += weight * s.length_s;
    d.busy += weight * s.busy_s;
    d.memory += weight * s.memory_s;
    d.places += weight * s.places_s;
    d.link += weight * std::min(s.link_s, s.length_s);
  }
  for (double* value : {&d.busy, &d.memory, &d.places, &d.link}) *value = std::min(1.0, share(*value, all));
}

}  // namespace

Diagnosis diagnose(const EngineOptions& o, const EngineResult& r) {
  Diagnosis d;
  weigh(r, d);
  const double refused = share(static_cast<double>(r.refused), static_cast<double>(r.requests));
  const double prompts = share(r.prefill_s, r.compute_busy_s);
  // Somebody waits for his turn: a second or more, and that is most of the wait for the first token.
  const bool queue = r.queue_s.p95 > 1 && r.queue_s.p95 > 0.5 * r.ttft_s.p95;
  d.overload = r.queue_s.p50 > 10 && r.queue_s.p50 > 0.5 * r.ttft_s.p50;
  const std::string waits =
      d.overload
          ? fmt::format("Too much load: half of the requests wait {} or longer for their turn, 5 % {} or longer. ",
                        time(r.queue_s.p50), time(r.queue_s.p95))
      : queue ? fmt::format("5 % of the requests wait {} or longer for their turn. ", time(r.queue_s.p95))
              : std::string();
  const std::string when = queue || d.overload ? "While they wait, " : "";
  if (refused > 0.02) {
    d.what = Bottleneck::kLength;
    d.text =
        waits + fmt::format("The pool is too small for {:.0f} % of the requests: they are longer than its {} tokens.",
                            100 * refused, r.pool_blocks * r.block_tokens);
  } else if (d.link > kFull) {
    d.what = Bottleneck::kLink;
    d.text = waits + fmt::format("{}the link to the host is busy {:.0f} % of the time: it is the bottleneck.", when,
                                 100 * d.link);
  } else if (d.memory > 0.5 && (queue || d.overload)) {
    d.what = Bottleneck::kMemory;
    d.text =
        waits + fmt::format(
                    "{}only blocks of the pool are missing {:.0f} % of the time, with the device busy {:.0f} %: pool "
                    "memory is the bottleneck.",
                    when, 100 * d.memory, 100 * d.busy);
  } else if (d.places > 0.5 && (queue || d.overload)) {
    d.what = Bottleneck::kPlaces;
    d.text = waits +
             fmt::format(
                 "{}all {} sequences that may run at once do, {:.0f} % of the time: max_sequences is the bottleneck.",
                 when, o.max_sequences, 100 * d.places);
  } else if (d.busy > kFull) {
    d.what = prompts > 0.5 ? Bottleneck::kPrompts : Bottleneck::kDecoding;
    d.text = waits + (prompts > 0.5
                          ? fmt::format("{}the device is busy {:.0f} % of the time, {:.0f} % of that with prompts: "
                                        "computing them is the bottleneck.",
                                        when, 100 * d.busy, 100 * prompts)
                          : fmt::format("{}the device is busy {:.0f} % of the time, most of that with making tokens: "
                                        "memory bandwidth is the bottleneck.",
                                        when, 100 * d.busy));
  } else {
    d.text = waits + fmt::format("Nothing is saturated: the device is busy {:.0f} % of the time.",
                                 100 * share(r.compute_busy_s, r.seconds));
  }
  if (d.text[0] >= 'a' && d.text[0] <= 'z') d.text[0] = static_cast<char>(d.text[0] - 'a' + 'A');
  return d;
}

namespace {

struct Change {
  std::string name;
  EngineOptions options;
};

std::vector<Change> changes(const EngineOptions& o, const EngineResult& r, const AdviceOptions& how) {
  std::vector<Change> list;
  const auto add = [&](std::string name, const std::function<void(EngineOptions&)>& change) {
    EngineOptions changed = o;
    change(changed);
    if (check_fits(changed).ok()) list.push_back({std::move(name), std::move(changed)});
  };
  // Enough for everything that was ever asked for, and four times what there is.
  const double everything = static_cast<double>(r.miss_never_stored + r.miss_tail + r.stored_blocks) *
                            static_cast<double>(r.block_bytes) / o.codec_ratio;
  const std::uint64_t four = std::max<std::uint64_t>(4 * o.host_bytes, std::uint64_t{16} << 30);
  const auto enough = std::bit_ceil(static_cast<std::uint64_t>(std::clamp(everything, kGib, 0x1p46)));
  if (o.device.host_link > 0) {
    add("host.budget " + gib(four), [&](EngineOptions& c) { c.host_bytes = four; });
    if (enough > four) add("host.budget " + gib(enough), [&](EngineOptions& c) { c.host_bytes = enough; });
  }
  if (const std::uint64_t most = largest_pool(o.device, o.model); most > o.pool_bytes + o.pool_bytes / 20)
    add("pool.budget " + gib(most), [&](EngineOptions& c) { c.pool_bytes = most; });
  add(fmt::format("max_sequences {}", 4 * o.max_sequences), [&](EngineOptions& c) { c.max_sequences *= 4; });
  add(fmt::format("--step-tokens {}", 4 * o.max_step_tokens), [&](EngineOptions& c) { c.max_step_tokens *= 4; });
  for (const CodecFigures& codec : how.codecs)
    if (o.host_bytes > 0 && codec.name != o.codec)
      add(fmt::format("host.codec {}{}", codec.name,
                      codec.kld.value_or(0) > 0 ? fmt::format(" (mean KLD {:.1e})", *codec.kld) : ""),
          [&](EngineOptions& c) {
            c.codec_ratio = codec.ratio;
            c.codec_bytes_per_s = codec.bytes_per_s * how.codec_threads;
          });
  if (o.host_bytes > 0 && !o.admit_second_use)
    add("--second-use", [&](EngineOptions& c) { c.admit_second_use = true; });
  if (o.device.count == 1)
    for (std::uint32_t n = 2; n <= how.most_devices; n *= 2) {
      Result<EngineOptions> several = spread(o, n);
      if (!several.ok()) break;
      several->pool_bytes = std::max(largest_pool(several->device, several->model), o.pool_bytes);
      if (check_fits(*several).ok()) list.push_back({fmt::format("--devices {}", n), *several});
    }
  return list;
}

std::string effect(const EngineResult& before, const Tried& after) {
  return fmt::format("{}: first token p50 {} to {}, p95 {} to {}", after.change, time(before.ttft_s.p50),
                     time(after.ttft_p50), time(before.ttft_s.p95), time(after.ttft_p95));
}

// What can be asked for: a first token within so many seconds for 95 %, for half, or what 95 % have where nobody waits
// for anybody, with half as much again for the queue.
Result<Objective> reachable(const std::string& path, const TraceOptions& trace, const EngineOptions& options,
                            const Load& load, double seconds, const Tick& tick) {
  Objective objective = {true, 95, seconds};
  if (!(load.rate > 0)) return objective;
  EngineOptions alone = options;
  constexpr double kSlow = 1e-4;  // requests a second
  alone.time_scale = std::min(options.time_scale, kSlow / load.rate);
  FIRN_ASSIGN(const EngineResult result, run_engine(path, trace, alone, tick));
  if (!result.complete) return Status(Code::kUnavailable, "stopped");
  if (result.ttft_s.p95 <= seconds) return objective;
  if (result.ttft_s.p50 <= 0.8 * seconds) return Objective{true, 50, seconds};
  const double wanted = 1.5 * result.ttft_s.p95;
  const double step = wanted < 10 ? 1 : wanted < 60 ? 5 : 30;
  objective.seconds = std::ceil(wanted / step) * step;
  return objective;
}

std::string carries(const Advice& a) {
  const std::string what =
      fmt::format("a first token within {} for {} %", time(a.objective.seconds), a.objective.percent);
  if (a.rate.unbounded)
    return fmt::format("It carries more than {:.3g} requests a second with {}.", a.rate.tried_rate, what);
  if (a.rate.carried) return fmt::format("It carries {:.3g} requests a second with {}.", a.rate.carried->rate, what);
  if (a.load.rate > 0) return fmt::format("At no rate is {}: alone, a prompt takes longer.", what);
  return {};
}

}  // namespace

Result<Advice> advise(const std::string& path, const TraceOptions& trace, const EngineOptions& options,
                      const EngineResult& result, const AdviceOptions& how, const Tick& tick) {
  Advice a;
  a.diagnosis = diagnose(options, result);
  FIRN_ASSIGN(a.load, load_of(path, trace));
  FIRN_ASSIGN(a.objective, reachable(path, trace, options, a.load, how.seconds, tick));
  const double asked = a.load.rate * options.time_scale;
  // A change helps if it takes a tenth off the wait that 95 % have at most; a run that no longer can is given up.
  constexpr double kGain = 0.9;
  if (a.diagnosis.what != Bottleneck::kNone || value_of(result, a.objective) > a.objective.seconds) {
    for (Change& change : changes(options, result, how)) {
      change.options.late_ttft_s = kGain * result.ttft_s.p95;
      change.options.late_most = static_cast<std::uint64_t>(std::ceil(0.05 * static_cast<double>(result.requests))) + 1;
      FIRN_ASSIGN(const EngineResult after, run_engine(path, trace, change.options, tick));
      if (!after.complete && !after.too_late) return Status(Code::kUnavailable, "stopped");
      const bool fewer_refused = after.refused < result.refused;
      const bool gains = after.complete && (after.ttft_s.p95 <= kGain * result.ttft_s.p95 || fewer_refused) &&
                         after.refused <= result.refused;
      a.tried.push_back({change.name, after.complete, after.ttft_s.p50, after.ttft_s.p95, gains});
      if (gains && change.name.rfind("--devices", 0) == 0 && value_of(after, a.objective) <= a.objective.seconds)
        break;  // enough
    }
    std::stable_sort(a.tried.begin(), a.tried.end(), [](const Tried& x, const Tried& y) {
      return x.gains != y.gains ? x.gains : x.gains && x.ttft_p95 < y.ttft_p95;
    });
  }
  FIRN_ASSIGN(a.rate, highest_rate(path, trace, options, {a.objective}, a.load, tick));
  std::string useless;
  for (const Tried& tried : a.tried)
    if (!tried.gains) useless += (useless.empty() ? "" : ", ") + tried.change;
  std::size_t said = 0;
  for (const Tried& tried : a.tried)
    if (tried.gains && said++ < 2) a.next += (said == 1 ? "Try " : "; or ") + effect(result, tried);
  if (said > 0) a.next += ". ";
  if (a.tried.empty()) {
    a.next = a.rate.carried && a.rate.carried->rate > asked ? "Try more load. " : "Try another rate. ";
  } else if (said == 0) {
    a.next = "Try less load: ";
  }
  const std::string rate = carries(a);
  if (said == 0 && !a.tried.empty() && !rate.empty()) {
    a.next += std::string(1, static_cast<char>(rate[0] - 'A' + 'a')) + rate.substr(1);
  } else {
    a.next += rate;
  }
  if (asked > 0 && !rate.empty()) a.next += fmt::format(" Here {:.3g} a second come.", asked);
  if (!useless.empty()) a.next += fmt::format(" Tried too, and no help: {}.", useless);
  return a;
}

}  // namespace firn::sim
