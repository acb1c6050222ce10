#include "sim/capacity.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>

#include "sim/trace_info.h"

namespace firn::sim {
namespace {

constexpr std::uint32_t kPercents[] = {50, 90, 95, 99};

Result<Objective> parse_objective(const std::string& text) {
  const Status wrong(
      Code::kInvalidArgument,
      fmt::format("--slo {}: write ttft_p95=2s or tpot_p50=50ms: ttft (to the first token) or tpot (each token "
                  "after it), at p50, p90, p95 or p99",
                  text));
  Objective objective;
  if (text.rfind("ttft_p", 0) != 0 && text.rfind("tpot_p", 0) != 0) return wrong;
  objective.first_token = text[1] == 't';
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos) return wrong;
  const std::string percent = text.substr(6, equals - 6);
  objective.percent = 0;
  for (const std::uint32_t known : kPercents)
    if (percent == std::to_string(known)) objective.percent = known;
  double number = 0;
  const auto [rest, error] = std::from_chars(text.data() + equals + 1, text.data() + text.size(), number);
  const std::string unit(rest, static_cast<std::size_t>(text.data() + text.size() - rest));
  const double scale = unit.empty() || unit == "s" ? 1
                       : unit == "ms"              ? 1e-3
                       : unit == "us"              ? 1e-6
                       : unit == "min"             ? 60
                                                   : 0;
  objective.seconds = number * scale;
  if (objective.percent == 0 || error != std::errc() || !(objective.seconds > 0 && objective.seconds <= 1e9))
    return wrong;
  return objective;
}

}  // namespace

Result<std::vector<Objective>> parse_objectives(const std::vector<std::string>& texts) {
  std::vector<Objective> objectives;
  for (const std::string& text : texts)
    for (std::size_t from = 0; from <= text.size();) {
      const std::size_t to = std::min(text.find(',', from), text.size());
      FIRN_ASSIGN(const Objective objective, parse_objective(text.substr(from, to - from)));
      objectives.push_back(objective);
      from = to + 1;
    }
  return objectives;
}

std::string to_string(const Objective& o) {
  const std::string time = o.seconds < 1 ? fmt::format("{:g}ms", o.seconds * 1e3) : fmt::format("{:g}s", o.seconds);
  return fmt::format("{}_p{}={}", o.first_token ? "ttft" : "tpot", o.percent, time);
}

double value_of(const EngineResult& result, const Objective& objective) {
  const Percentiles& p = objective.first_token ? result.ttft_s : result.tpot_s;
  switch (objective.percent) {
    case 50:
      return p.p50;
    case 90:
      return p.p90;
    case 95:
      return p.p95;
    default:
      return p.p99;
  }
}

bool meets(const EngineResult& result, const std::vector<Objective>& objectives) {
  return !result.too_late && std::all_of(objectives.begin(), objectives.end(), [&](const Objective& objective) {
    return value_of(result, objective) <= objective.seconds;
  });
}

Result<Load> load_of(const std::string& path, const TraceOptions& trace) {
  FIRN_ASSIGN(const std::unique_ptr<TraceReader> reader, TraceReader::open(path, trace));
  TraceRequest request;
  Load load;
  std::int64_t last_ns = 0;
  while (true) {
    FIRN_ASSIGN(const bool more, reader->next(request));
    if (!more) break;
    last_ns = request.time_ns;
    ++load.requests;
  }
  if (last_ns > 0) load.rate = static_cast<double>(load.requests) * 1e9 / static_cast<double>(last_ns);
  return load;
}

Result<HighestRate> highest_rate(const std::string& path, const TraceOptions& trace, const EngineOptions& options,
                                 const std::vector<Objective>& objectives, const Load& load, const Tick& tick) {
  HighestRate answer;
  if (!(load.rate > 0) || objectives.empty()) return answer;
  EngineOptions o = options;
  for (const Objective& objective : objectives) {
    double& late = objective.first_token ? o.late_ttft_s : o.late_tpot_s;
    late = std::max(late, objective.seconds);
    const double share = (100.0 - objective.percent) / 100,
                 most = std::ceil(share * static_cast<double>(load.requests)) + 1;
    const auto count = static_cast<std::uint64_t>(most);
    o.late_most = o.late_most == ~std::uint64_t{0} ? count : std::max(o.late_most, count);
  }
  // Rates of three digits, so that what is said can be asked for (--rate) and is what was run.
  const auto near = [&](double scale) { return std::stod(fmt::format("{:.3g}", load.rate * scale)) / load.rate; };
  const auto carries = [&](double scale) -> Result<bool> {
    o.time_scale = scale;
    FIRN_ASSIGN(EngineResult result, run_engine(path, trace, o, tick));
    if (!result.complete && !result.too_late) return Status(Code::kUnavailable, "stopped");
    const double rate = std::stod(fmt::format("{:.3g}", load.rate * scale));
    answer.tried_rate = rate;
    const bool good = meets(result, objectives) && result.finished > 0;
    if (good && (!answer.carried || scale > answer.carried->time_scale))
      answer.carried = Carried{scale, rate, std::move(result)};
    return good;
  };
  constexpr int kDoublings = 12, kHalvings = 14, kSteps = 4;
  constexpr double kMostScale = 1e8;  // a run takes ten times as much at most
  double good = 0, bad = 0;
  double scale = near(options.time_scale);
  FIRN_ASSIGN(bool now, carries(scale));
  for (int i = 0; now && i < kDoublings && scale < kMostScale; ++i) {
    good = scale;
    scale = near(scale * 2);
    FIRN_ASSIGN(now, carries(scale));
  }
  if (now) {
    answer.unbounded = true;
    return answer;
  }
  bad = scale;
  for (int i = 0; good == 0 && i < kHalvings; ++i) {
    scale = near(scale / 2);
    FIRN_ASSIGN(now, carries(scale));
    (now ? good : bad) = scale;
  }
  if (good == 0) return answer;
  for (int i = 0; i < kSteps; ++i) {
    const double middle = near(std::sqrt(good * bad));
    if (middle <= good || middle >= bad) break;
    FIRN_ASSIGN(now, carries(middle));
    (now ? good : bad) = middle;
  }
  return answer;
}

}  // namespace firn::sim
