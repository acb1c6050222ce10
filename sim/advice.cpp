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

namespace {

bool somebody_waits(const EngineResult& r) { return r.queue_s.p95 > 1 && r.queue_s.p95 > 0.5 * r.ttft_s.p95; }

std::string waits_text(const EngineResult& r, bool overload) {
  if (overload)
    return fmt::format("Too much load: half of the requests wait {} or longer for their turn, 5 % {} or longer. ",
                       time(r.queue_s.p50), time(r.queue_s.p95));
  return somebody_waits(r) ? fmt::format("5 % of the requests wait {} or longer for their turn. ", time(r.queue_s.p95))
                           : "";
}

std::string fact(Bottleneck what, const Diagnosis& d, const EngineOptions& o, const EngineResult& r) {
  const double prompts = share(r.prefill_s, r.compute_busy_s);
  switch (what) {
    case Bottleneck::kLink:
      return fmt::format("the link to the host is busy {:.0f} % of the time", 100 * d.link);
    case Bottleneck::kMemory:
      return fmt::format("only blocks of the pool are missing {:.0f} % of the time", 100 * d.memory);
    case Bottleneck::kPlaces:
      return fmt::format("all {} sequences that may run at once do, {:.0f} % of the time", o.max_sequences,
                         100 * d.places);
    default:
      return fmt::format("the device is busy {:.0f} % of the time, {:.0f} % of that with prompts", 100 * d.busy,
                         100 * prompts);
  }
}

const char* name_of(Bottleneck what) {
  switch (what) {
    case Bottleneck::kLink:
      return "the link to the host";
    case Bottleneck::kMemory:
      return "pool memory";
    case Bottleneck::kPlaces:
      return "max_sequences";
    case Bottleneck::kPrompts:
      return "the device, with computing prompts,";
    default:
      return "the device, with making tokens,";
  }
}

std::string capital(std::string text) {
  if (!text.empty() && text[0] >= 'a' && text[0] <= 'z') text[0] = static_cast<char>(text[0] - 'a' + 'A');
  return text;
}

}  // namespace

std::string to_string(Bottleneck what) {
  constexpr const char* kNames[] = {"none", "length", "link", "memory", "places", "prompts", "decoding"};
  return kNames[static_cast<std::size_t>(what)];
}

Diagnosis diagnose(const EngineOptions& o, const EngineResult& r) {
  Diagnosis d;
  weigh(r, d);
  const double refused = share(static_cast<double>(r.refused), static_cast<double>(r.requests));
  const bool queue = somebody_waits(r);
  d.overload = r.queue_s.p50 > 10 && r.queue_s.p50 > 0.5 * r.ttft_s.p50;
  d.text = waits_text(r, d.overload);
  const auto limit = [&d](bool is, Bottleneck what) {
    if (is) d.limits.push_back(what);
  };
  limit(d.link > kFull, Bottleneck::kLink);
  limit(d.memory > 0.5 && (queue || d.overload), Bottleneck::kMemory);
  limit(d.places > 0.5 && (queue || d.overload), Bottleneck::kPlaces);
  limit(d.busy > kFull, share(r.prefill_s, r.compute_busy_s) > 0.5 ? Bottleneck::kPrompts : Bottleneck::kDecoding);
  if (!d.limits.empty()) d.what = d.limits.front();
  if (refused > 0.005) {
    d.what = Bottleneck::kLength;
    d.text += fmt::format(
        "The pool is too small for {:.{}f} % of the requests: they are longer than its {} tokens, and "
        "were refused. ",
        100 * refused, refused < 0.1 ? 1 : 0, r.pool_blocks * r.block_tokens);
  }
  std::string facts;
  for (const Bottleneck what : d.limits) facts += (facts.empty() ? "" : "; ") + fact(what, d, o, r);
  if (!facts.empty()) {
    d.text += capital((queue || d.overload ? "while they wait, " : "") + facts) + ".";
    if (d.limits.size() == 1) d.text += fmt::format(" {} is the bottleneck.", capital(name_of(d.limits[0])));
  } else if (d.what == Bottleneck::kNone) {
    d.text += fmt::format("Nothing is saturated: the device is busy {:.0f} % of the time.",
                          100 * share(r.compute_busy_s, r.seconds));
  }
  while (!d.text.empty() && d.text.back() == ' ') d.text.pop_back();
  return d;
}

namespace {

constexpr double kGain = 0.9;  // a change helps if it takes a tenth off the wait that 95 % have at most

// Ends a run that can no longer be better than this by a tenth.
void give_up_late(EngineOptions& o, const EngineResult& than) {
  o.late_ttft_s = kGain * than.ttft_s.p95;
  o.late_most = static_cast<std::uint64_t>(std::ceil(0.05 * static_cast<double>(than.requests))) + 1;
}

EngineOptions twice(EngineOptions o, Bottleneck what) {
  switch (what) {
    case Bottleneck::kLink:
      o.device.host_link *= 2;
      break;
    case Bottleneck::kMemory:
      o.pool_bytes *= 2;
      break;
    case Bottleneck::kPlaces:
      o.max_sequences *= 2;
      break;
    default:
      o.device.flops *= 2, o.device.memory_bandwidth *= 2;
  }
  o.device.memory_bytes = 0;  // not whether it can be had: what it would do
  return o;
}

// What is at its limit is not always what others wait for: twice of each is run, and what gains most is the bottleneck.
Status find_out(const std::string& path, const TraceOptions& trace, const EngineOptions& options,
                const EngineResult& result, const Tick& tick, Advice& a) {
  Diagnosis& d = a.diagnosis;
  if (d.limits.empty() || !(result.ttft_s.p95 > 0)) return {};
  for (const Bottleneck what : d.limits) {
    EngineOptions o = twice(options, what);
    give_up_late(o, result);
    FIRN_ASSIGN(const EngineResult after, run_engine(path, trace, o, tick));
    if (!after.complete && !after.too_late) return Status(Code::kUnavailable, "stopped");
    const bool gains = after.complete && after.ttft_s.p95 <= kGain * result.ttft_s.p95;
    a.what_if.push_back({what, gains ? after.ttft_s.p95 : result.ttft_s.p95, gains});
  }
  std::stable_sort(a.what_if.begin(), a.what_if.end(),
                   [](const WhatIf& x, const WhatIf& y) { return x.ttft_p95 < y.ttft_p95; });
  const WhatIf& best = a.what_if.front();
  if (d.what != Bottleneck::kLength) d.what = best.gains ? best.what : Bottleneck::kNone;
  const std::string only = fmt::format(" {} is the bottleneck.", capital(name_of(d.limits[0])));
  if (d.limits.size() == 1 && d.text.size() > only.size() &&
      d.text.compare(d.text.size() - only.size(), only.size(), only) == 0)
    d.text.resize(d.text.size() - only.size());
  std::string tried;
  for (const WhatIf& one : a.what_if)
    tried += fmt::format("{}{} {}", tried.empty() ? "" : ", ",
                         one.what == Bottleneck::kLink     ? "twice the link"
                         : one.what == Bottleneck::kMemory ? "twice the pool"
                         : one.what == Bottleneck::kPlaces ? "twice the sequences"
                                                           : "a device twice as fast",
                         one.gains ? "would make it " + time(one.ttft_p95) : std::string("would not change it much"));
  d.text += fmt::format(" 95 % have their first token within {}; {}.", time(result.ttft_s.p95), tried);
  if (best.gains) d.text += fmt::format(" So {} is the bottleneck.", name_of(best.what));
  return {};
}

struct Change {
  std::string flags, note;
  EngineOptions options;
};

constexpr std::uint64_t kWholeGib = std::uint64_t{1} << 30;
constexpr std::uint32_t kMostSequences = 1u << 20;  // as max_sequences may be

std::vector<Change> changes(const EngineOptions& o, const EngineResult& r, const AdviceOptions& how) {
  std::vector<Change> list;
  const auto add = [&](std::string flags, const std::function<void(EngineOptions&)>& change, std::string note = "") {
    EngineOptions changed = o;
    change(changed);
    if (check_fits(changed).ok()) list.push_back({std::move(flags), std::move(note), std::move(changed)});
  };
  // Four times and sixteen times what there is, and not more than holds everything that was ever asked for, nor than a
  // host has.
  constexpr std::uint64_t kMostHost = 4096 * kWholeGib;
  const double everything = static_cast<double>(r.miss_never_stored + r.miss_tail + r.stored_blocks) *
                            static_cast<double>(r.block_bytes) / o.codec_ratio;
  const auto enough = std::bit_ceil(static_cast<std::uint64_t>(std::clamp(everything, kGib, 0x1p46)));
  const std::uint64_t least = std::max<std::uint64_t>(o.host_bytes / kWholeGib * kWholeGib, 4 * kWholeGib);
  for (const std::uint64_t times : {4, 16}) {
    const std::uint64_t host = std::min({times * least, enough, kMostHost});
    const std::string flags = fmt::format("--host-budget {}GiB", host / kWholeGib);
    if (host > o.host_bytes && o.device.host_link > 0 && (list.empty() || list.back().flags != flags))
      add(flags, [&](EngineOptions& c) { c.host_bytes = host; });
  }
  if (const std::uint64_t most = largest_pool(o.device, o.model) / kWholeGib * kWholeGib;
      most > o.pool_bytes + o.pool_bytes / 20)
    add(fmt::format("--pool-budget {}GiB", most / kWholeGib), [&](EngineOptions& c) { c.pool_bytes = most; });
  if (o.max_sequences <= kMostSequences / 4)
    add(fmt::format("--set max_sequences={}", 4 * o.max_sequences), [&](EngineOptions& c) { c.max_sequences *= 4; });
  add(fmt::format("--step-tokens {}", 4 * o.max_step_tokens), [&](EngineOptions& c) { c.max_step_tokens *= 4; });
  for (const CodecFigures& codec : how.codecs)
    if (o.host_bytes > 0 && codec.name != o.codec)
      add(
          fmt::format("--set host.codec={}", codec.name),
          [&](EngineOptions& c) {
            c.codec = codec.name;
            c.codec_ratio = codec.ratio;
            c.codec_bytes_per_s = codec.bytes_per_s * how.codec_threads;
          },
          codec.kld.value_or(0) > 0 ? fmt::format("mean KLD {:.1e}", *codec.kld) : "");
  if (o.host_bytes > 0 && !o.admit_second_use)
    add("--second-use", [&](EngineOptions& c) { c.admit_second_use = true; });
  if (o.device.count != 1) return list;
  for (std::uint32_t n = 2; n <= how.most_devices; n *= 2) {
    Result<EngineOptions> several = spread(o, n);
    if (!several.ok()) break;
    const std::uint64_t most = largest_pool(several->device, several->model) / kWholeGib * kWholeGib;
    const bool larger = most > o.pool_bytes;
    if (larger) several->pool_bytes = most;
    if (check_fits(*several).ok())
      list.push_back({fmt::format("--devices {}{}", n,
                                  larger ? fmt::format(" --pool-budget {}GiB", most / kWholeGib) : std::string()),
                      "", *several});
  }
  return list;
}

std::string effect(const EngineResult& before, const Tried& after) {
  const std::string refused =
      before.refused == after.refused ? "" : fmt::format(", refused {} to {}", before.refused, after.refused);
  return fmt::format("{}{}: first token p50 {} to {}, p95 {} to {}{}", after.change,
                     after.note.empty() ? "" : " (" + after.note + ")", time(before.ttft_s.p50), time(after.ttft_p50),
                     time(before.ttft_s.p95), time(after.ttft_p95), refused);
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

std::string carries(const Advice& a, bool refuses) {
  const std::string what = fmt::format("a first token within {} for {} %{}", time(a.objective.seconds),
                                       a.objective.percent, refuses ? " of those that fit" : "");
  if (a.rate.unbounded) return fmt::format("more than {:.3g} requests a second with {}", a.rate.tried_rate, what);
  if (a.rate.carried) return fmt::format("{:.3g} requests a second with {}", a.rate.carried->rate, what);
  return {};
}

Status try_changes(const std::string& path, const TraceOptions& trace, const EngineOptions& options,
                   const EngineResult& result, const AdviceOptions& how, const Tick& tick, Advice& a) {
  for (Change& change : changes(options, result, how)) {
    give_up_late(change.options, result);
    FIRN_ASSIGN(const EngineResult after, run_engine(path, trace, change.options, tick));
    if (!after.complete && !after.too_late) return Status(Code::kUnavailable, "stopped");
    const bool fewer_refused = after.refused < result.refused;
    const bool gains = after.complete && (after.ttft_s.p95 <= kGain * result.ttft_s.p95 || fewer_refused) &&
                       after.refused <= result.refused;
    a.tried.push_back(
        {change.flags, change.note, after.complete, after.ttft_s.p50, after.ttft_s.p95, after.refused, gains});
    if (gains && change.flags.rfind("--devices", 0) == 0 && value_of(after, a.objective) <= a.objective.seconds)
      break;  // enough
  }
  std::stable_sort(a.tried.begin(), a.tried.end(), [](const Tried& x, const Tried& y) {
    return x.gains != y.gains ? x.gains : x.gains && x.ttft_p95 < y.ttft_p95;
  });
  return {};
}

// What to try next: what gains, then how much load is carried, then what was tried for nothing.
std::string next_text(const Advice& a, const EngineOptions& options, const EngineResult& result) {
  std::string useless, text;
  for (const Tried& tried : a.tried)
    if (!tried.gains) useless += (useless.empty() ? "" : ", ") + tried.change;
  std::size_t said = 0;
  for (const Tried& tried : a.tried)
    if (tried.gains && said++ < 2) text += (said == 1 ? "Try " : "; or ") + effect(result, tried);
  if (said > 0) text += ". ";
  const double asked = a.load.rate * options.time_scale;
  const std::string rate = carries(a, result.refused > 0);
  const bool enough = a.rate.unbounded || (a.rate.carried && a.rate.carried->rate >= 0.995 * asked);
  if (asked > 0 && !rate.empty()) {
    text += fmt::format("{} {}; {:.3g} a second come{}",
                        said == 0 && !enough ? "Try less load (--rate): it carries" : "It carries", rate, asked,
                        enough && said == 0 ? ", so there is room for more load." : ".");
  } else if (asked > 0) {
    text += fmt::format("At no rate is a first token there within {} for {} %: alone, a prompt takes longer.",
                        time(a.objective.seconds), a.objective.percent);
  } else {
    text += "All requests come at once, so there is no rate to change.";
  }
  if (!useless.empty()) text += fmt::format(" Tried too, and no help: {}.", useless);
  return text;
}

}  // namespace

Result<Advice> advise(const std::string& path, const TraceOptions& trace, const EngineOptions& options,
                      const EngineResult& result, const AdviceOptions& how, const Tick& tick) {
  Advice a;
  a.diagnosis = diagnose(options, result);
  FIRN_ASSIGN(a.load, load_of(path, trace));
  FIRN_ASSIGN(a.objective, reachable(path, trace, options, a.load, how.seconds, tick));
  FIRN_TRY(find_out(path, trace, options, result, tick, a));
  if (!a.diagnosis.limits.empty() || a.diagnosis.what != Bottleneck::kNone ||
      value_of(result, a.objective) > a.objective.seconds)
    FIRN_TRY(try_changes(path, trace, options, result, how, tick, a));
  FIRN_ASSIGN(a.rate, highest_rate(path, trace, options, {a.objective}, a.load, tick));
  a.next = next_text(a, options, result);
  return a;
}

}  // namespace firn::sim
