// firn simulate: what a deployment would do with a trace. --bookkeeping counts hits without any clock.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/commands.h"
#include "cli/model_shape.h"
#include "cli/process.h"
#include "cli/text.h"
#include "cli/trace_flags.h"
#include "core/base/file_out.h"
#include "sim/apart.h"
#include "sim/bookkeeping.h"
#include "sim/codec_figures.h"
#include "sim/curve.h"
#include "sim/library_run.h"
#include "sim/plan.h"
#include "sim/report.h"
#include "sim/sweep.h"
#include "sim/workload.h"

namespace firn::cli {
namespace {

using Json = nlohmann::ordered_json;

// One line on a terminal, rewritten a few times a second; nothing where stderr is a file. Also notices Ctrl-C.
class ProgressLine {
 public:
  ProgressLine() : terminal_(isatty(STDERR_FILENO) != 0), start_(Clock::now()), shown_(start_) {}
  ~ProgressLine() {
    if (terminal_ && any_) tell("\r\033[K");
  }
  bool operator()(const sim::Progress& progress) {
    const Clock::time_point now = Clock::now();
    if (terminal_ && now - shown_ > std::chrono::milliseconds(200)) show(progress, now);
    return stop_signal() == 0;
  }

 private:
  using Clock = std::chrono::steady_clock;
  void show(const sim::Progress& progress, Clock::time_point now) {
    shown_ = now;
    any_ = true;
    const double seconds = std::chrono::duration<double>(now - start_).count();
    const double done = progress.packed_size == 0
                            ? 0
                            : static_cast<double>(progress.packed_read) / static_cast<double>(progress.packed_size);
    tell("\r\033[K{:3.0f} %  {} requests, {:.0f} a second, simulated {:.1f} min, {:.0f} s to go", 100 * done,
         grouped(progress.requests), static_cast<double>(progress.requests) / seconds,
         static_cast<double>(progress.time_ns) / 6e10, done > 0 ? seconds * (1 - done) / done : 0);
    std::fflush(stderr);
  }
  Interruptible interruptible_;
  bool terminal_, any_ = false;
  Clock::time_point start_, shown_;
};

// --workload and --seed: requests made up, in place of a trace.
struct WorkloadFlags {
  std::string text;
  std::uint64_t seed = 0;
  void add_to(CLI::App& command) {
    std::string kinds;
    for (const sim::WorkloadKind& kind : sim::workload_kinds()) {
      kinds += kinds.empty() ? "" : "; ";
      kinds += std::string(kind.name) + ": " + std::string(kind.what);
    }
    command.add_option("--workload", text, "made-up requests in place of a trace, KIND:KEY=VALUE,... (" + kinds + ")")
        ->type_name("KIND");
    command.add_option("--seed", seed, "of the workload")->type_name("N");
  }
  Status apply(std::string& path) const {
    if (text.empty() != path.empty()) {
      if (!text.empty()) path = std::string(sim::kWorkloadPrefix) + text;
      if (!text.empty() && seed != 0)
        path += (text.find(':') == std::string::npos ? ":" : ",") + fmt::format("seed={}", seed);
      return {};
    }
    return text.empty() ? Status(Code::kInvalidArgument, "give --trace FILE, or --workload KIND")
                        : Status(Code::kInvalidArgument, "--trace or --workload, not both");
  }
};

struct Arguments {
  TraceFlags trace;
  bool bookkeeping = false;
  std::string policy = "lru", json;
  std::uint32_t capacity_blocks = 0;
  std::vector<std::uint32_t> tiers;
  WorkloadFlags workload;
  std::vector<std::string> sweep;
  std::size_t sweep_threads = 0;
  std::string resume;
  bool curve = false, curve_sampled = false;
  sim::CurveOptions curve_options;
  // with a clock
  SettingFlags settings;
  std::string device, model, html, dump, disk_budget, objective, codec_figures;
  sim::EngineOptions engine;
  std::uint32_t codec_threads = 1;
  bool policy_given = false, through_manager = false;
  void add_codec_to(CLI::App& command) {
    CLI::Option* ratio =
        command.add_option("--codec-ratio", engine.codec_ratio, "assumed: raw bytes by encoded bytes below the pool");
    CLI::Option* speed =
        command.add_option("--codec-speed", engine.codec_bytes_per_s, "assumed: raw bytes a second of the codec");
    CLI::Option* figures =
        command.add_option("--codec-figures", codec_figures,
                           "measured: what firn eval --json or ./run bench wrote; the row of host.codec is taken");
    figures->type_name("FILE")->excludes(ratio)->excludes(speed);
    command.add_option("--codec-threads", codec_threads, "with --codec-figures: cores that decode")
        ->check(CLI::Range(1, 1024));
  }
  sim::BookkeepingOptions bookkeeping_options() const {
    sim::BookkeepingOptions options;
    options.policy = policy;
    options.tier_blocks = tiers;
    if (options.tier_blocks.empty() && capacity_blocks != 0) options.tier_blocks.push_back(capacity_blocks);
    return options;
  }
};

double share(std::uint64_t part, std::uint64_t all) {
  return all == 0 ? 0 : static_cast<double>(part) / static_cast<double>(all);
}

Json to_json(const Arguments& arguments, const sim::BookkeepingOptions& options, const sim::BookkeepingResult& result) {
  const sim::Counts& counts = result.counts;
  Json bad = Json::array();
  for (const sim::BadLine& line : result.bad_lines) bad.push_back({{"line", line.line}, {"why", line.why}});
  return {{"trace", arguments.trace.path},
          {"policy", options.policy},
          {"tiers", options.tier_blocks},
          {"block_tokens", result.block_tokens},
          {"complete", result.complete},
          {"requests", counts.requests},
          {"blocks", counts.blocks},
          {"access_hits", counts.access_hits},
          {"member_hits", counts.member_hits},
          {"prefix_hits", counts.prefix_hits},
          {"hit_tokens", counts.hit_tokens},
          {"input_tokens", counts.input_tokens},
          {"promotions", counts.promotions},
          {"demotions", counts.demotions},
          {"drops", counts.drops},
          {"tier_hits", counts.tier_hits},
          {"prefix_ratio", share(counts.prefix_hits, counts.blocks)},
          {"token_ratio", share(counts.hit_tokens, counts.input_tokens)},
          {"access_ratio", share(counts.access_hits, counts.blocks)},
          {"bad_line_count", result.bad_line_count},
          {"bad_lines", bad}};
}

void print_text(const sim::BookkeepingOptions& options, const sim::BookkeepingResult& result) {
  const sim::Counts& counts = result.counts;
  fmt::print("{} requests, {} blocks of {} tokens, policy {}{}\n", grouped(counts.requests), grouped(counts.blocks),
             result.block_tokens, options.policy, result.complete ? "" : " (stopped early)");
  fmt::print("prefix hits   {:>12}  {:6.2f} % of the blocks: the leading run, which saves prefill\n",
             grouped(counts.prefix_hits), 100 * share(counts.prefix_hits, counts.blocks));
  fmt::print("hit tokens    {:>12}  {:6.2f} % of the input tokens\n", grouped(counts.hit_tokens),
             100 * share(counts.hit_tokens, counts.input_tokens));
  fmt::print("member hits   {:>12}  {:6.2f} %: resident at lookup, wherever\n", grouped(counts.member_hits),
             100 * share(counts.member_hits, counts.blocks));
  fmt::print("access hits   {:>12}  {:6.2f} %: what object-cache simulators count\n", grouped(counts.access_hits),
             100 * share(counts.access_hits, counts.blocks));
  for (std::size_t i = 0; options.tier_blocks.size() > 1 && i < options.tier_blocks.size(); ++i)
    fmt::print("tier {}        {:>12}  hits in {} blocks\n", i + 1, grouped(counts.tier_hits[i]),
               grouped(options.tier_blocks[i]));
  fmt::print("moves         {} promotions, {} demotions, {} drops\n", grouped(counts.promotions),
             grouped(counts.demotions), grouped(counts.drops));
}

int write_json(const std::string& where, const Json& json) {
  if (where == "-") {
    fmt::print("{}\n", json.dump(2));
    return kExitOk;
  }
  const Status status = write_file(where, json.dump(2) + "\n", Readers::kAnyone);
  return status.ok() ? kExitOk : fail(status);
}

int write_text(const std::string& where, const std::string& text) {
  if (where == "-") {
    fmt::print("{}", text);
    return kExitOk;
  }
  const Status status = write_file(where, text, Readers::kAnyone);
  return status.ok() ? kExitOk : fail(status);
}

// A deployment says what it is simulated as in a comment of its own: "# simulate: device=rtx4090 model=llama-3.1-8b".
std::string from_comment(const std::string& file, const std::string& key, const std::string& otherwise) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const std::size_t at = line.find(key + "=");
    if (line.rfind("# simulate:", 0) != 0 || at == std::string::npos) continue;
    const std::size_t from = at + key.size() + 1;
    return line.substr(from, line.find(' ', from) - from);
  }
  return otherwise;
}

Status fill_engine(Arguments& arguments) {
  const std::string& file = arguments.settings.file;
  FIRN_ASSIGN(const LoadedConfig loaded, arguments.settings.load());
  const Config& config = loaded.config;
  sim::EngineOptions& engine = arguments.engine;
  const std::string device = arguments.device.empty() ? from_comment(file, "device", "rtx4090") : arguments.device;
  const std::string model = arguments.model.empty() ? from_comment(file, "model", "llama-3.1-8b") : arguments.model;
  const std::size_t slash = file.rfind('/');
  std::vector<std::string> folders = {"configs"};
  if (!file.empty()) folders.insert(folders.begin(), slash == std::string::npos ? "." : file.substr(0, slash));
  for (const std::string& folder : data_folders()) folders.push_back(folder + "/configs");
  FIRN_ASSIGN(engine.device, sim::load_device(device, folders));
  FIRN_ASSIGN(engine.model, load_model_shape(model));
  engine.pool_bytes = config.pool.budget_bytes;
  if (config.pool.slots != 0) engine.pool_bytes = config.pool.slots * kBlockTokens * engine.model.token_bytes();
  if (engine.pool_bytes == 0) {  // automatic: what the device has left beside the weights, a tenth for everything else
    const double left = 0.9 * static_cast<double>(engine.device.memory_bytes) - engine.model.weight_bytes;
    if (left <= 0)
      return Status(Code::kInvalidArgument, fmt::format("{} does not fit into {}; set pool.budget, or another --model",
                                                        engine.model.name, engine.device.name));
    engine.pool_bytes = static_cast<std::uint64_t>(left);
  }
  engine.host_bytes = config.host.budget_bytes;
  if (!arguments.disk_budget.empty()) {
    FIRN_ASSIGN(engine.disk_bytes, parse_bytes(arguments.disk_budget));
  }
  engine.policy = arguments.policy_given ? arguments.policy : config.eviction;
  engine.max_sequences = config.max_sequences;
  engine.protect_sinks = config.protect.sinks;
  engine.protect_recent = config.protect.recent;
  if (!arguments.codec_figures.empty()) {
    // As firn eval names its rows.
    std::string codec = config.host.codec == "kvtc" ? fmt::format("kvtc@{}", config.host.ratio) : config.host.codec;
    if (config.host.value_codec != "same" && config.host.value_codec != codec) codec += "/" + config.host.value_codec;
    if (config.host.hadamard == "none") codec += "-plain";
    FIRN_ASSIGN(const sim::CodecFigures figures, sim::load_codec_figures(arguments.codec_figures, codec));
    engine.codec_ratio = figures.ratio;
    engine.codec_bytes_per_s = figures.bytes_per_s * arguments.codec_threads;
    engine.codec_source = fmt::format("{} of {}", codec, arguments.codec_figures);
  }
  return {};
}

// Every combination of the sweep's values, some at once.
int run_sweep(Arguments& arguments) {
  std::vector<sim::SweepAxis> axes;
  for (const std::string& text : arguments.sweep) {
    const Result<sim::SweepAxis> axis = sim::parse_axis(text);
    if (!axis.ok()) return fail(axis.status());
    axes.push_back(*axis);
  }
  const auto points = arguments.bookkeeping
                          ? sim::bookkeeping_points(arguments.trace.path, arguments.trace.options,
                                                    arguments.bookkeeping_options(), axes)
                          : sim::engine_points(arguments.trace.path, arguments.trace.options, arguments.engine, axes);
  if (!points.ok()) return fail(points.status());
  const std::size_t threads =
      arguments.sweep_threads != 0 ? arguments.sweep_threads : std::max(1u, std::thread::hardware_concurrency());
  const Result<sim::SweepResult> result = [&] {
    ProgressLine progress;
    return sim::run_sweep(*points, threads, arguments.resume, std::ref(progress));
  }();
  if (!result.ok()) return fail(result.status());
  Json rows = Json::array();
  const std::vector<std::vector<std::string>> values = sim::combinations(axes);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (result->lines[i].empty()) continue;
    Json row;
    for (std::size_t a = 0; a < axes.size(); ++a) row["point"][axes[a].key] = values[i][a];
    row["report"] = Json::parse(result->lines[i]);
    rows.push_back(row);
  }
  if (!arguments.json.empty())
    return write_json(arguments.json,
                      {{"trace", arguments.trace.path}, {"complete", result->complete}, {"sweep", rows}});
  for (const Json& row : rows) {
    std::string text;
    for (const auto& [key, value] : row["point"].items()) text += key + "=" + value.get<std::string>() + "  ";
    const Json& report = row["report"];
    if (arguments.bookkeeping) {
      fmt::print("{:<40} {:6.2f} % prefix hits, {:6.2f} % access hits\n", text,
                 100 * report["prefix_ratio"].get<double>(), 100 * report["access_ratio"].get<double>());
    } else {
      fmt::print(
          "{:<40} {:6.2f} % of the input tokens from cache, first token p50 {:.2f} s, p95 {:.2f} s, {} preempted\n",
          text, 100 * report["token_hit_ratio"].get<double>(), report["ttft_s"]["p50"].get<double>(),
          report["ttft_s"]["p95"].get<double>(), report["preemptions"].get<std::uint64_t>());
    }
  }
  if (!result->complete)
    tell("firn: stopped; {} of {} points are done{}\n", rows.size(), values.size(),
         arguments.resume.empty() ? "; with --resume FILE they would be kept" : "");
  return kExitOk;
}

int run_curve(Arguments& arguments) {
  if (const Status status = arguments.workload.apply(arguments.trace.path); !status.ok()) return fail(status);
  if (const Status status = arguments.trace.finish(); !status.ok()) return fail(status);
  sim::CurveOptions options = arguments.curve_options;
  options.policy = arguments.policy;
  options.sampled = arguments.curve_sampled;
  options.capacities = arguments.tiers;
  if (options.capacities.empty() && arguments.capacity_blocks != 0) options.capacities = {arguments.capacity_blocks};
  const Result<sim::Curve> curve = [&] {
    ProgressLine progress;
    return sim::miss_ratio_curve(arguments.trace.path, arguments.trace.options, options, std::ref(progress));
  }();
  if (!curve.ok()) return fail(curve.status());
  if (!arguments.json.empty()) {
    Json points = Json::array();
    for (const sim::CurvePoint& point : curve->points)
      points.push_back({{"blocks", point.blocks},
                        {"prefix_ratio", point.prefix_ratio},
                        {"access_ratio", point.access_ratio},
                        {"prefix_error", point.prefix_error},
                        {"access_error", point.access_error}});
    return write_json(arguments.json, {{"trace", arguments.trace.path},
                                       {"policy", options.policy},
                                       {"block_tokens", curve->block_tokens},
                                       {"requests", curve->requests},
                                       {"blocks", curve->accesses},
                                       {"distinct_blocks", curve->distinct},
                                       {"exact", curve->exact},
                                       {"rate", curve->exact ? 1.0 : options.rate},
                                       {"samples", curve->exact ? 1u : options.samples},
                                       {"complete", curve->complete},
                                       {"points", points}});
  }
  fmt::print("{}, {} accesses to {} different blocks, {}\n", options.policy, grouped(curve->accesses),
             grouped(curve->distinct),
             curve->exact ? "exact (one pass over stack distances)"
                          : fmt::format("estimated from {} samples of {:.1f} % of the blocks", options.samples,
                                        100 * options.rate));
  fmt::print("{:>12} {:>13} {:>13}\n", "blocks", "prefix hits", "access hits");
  for (const sim::CurvePoint& point : curve->points) {
    if (curve->exact)
      fmt::print("{:>12} {:>11.2f} % {:>11.2f} %\n", grouped(point.blocks), 100 * point.prefix_ratio,
                 100 * point.access_ratio);
    else
      fmt::print("{:>12} {:>11.2f} % {:>11.2f} %  standard error {:.2f} and {:.2f}\n", grouped(point.blocks),
                 100 * point.prefix_ratio, 100 * point.access_ratio, 100 * point.prefix_error,
                 100 * point.access_error);
  }
  return kExitOk;
}

int run_engine(Arguments& arguments) {
  if (const Status status = arguments.workload.apply(arguments.trace.path); !status.ok()) return fail(status);
  if (const Status status = arguments.trace.finish(); !status.ok()) return fail(status);
  if (const Status status = fill_engine(arguments); !status.ok()) return fail(status);
  if (!arguments.sweep.empty()) return run_sweep(arguments);
  const Result<sim::EngineResult> result = [&] {
    ProgressLine progress;
    return arguments.through_manager
               ? sim::run_through_manager(arguments.trace.path, arguments.trace.options, arguments.engine,
                                          std::ref(progress))
               : sim::run_engine(arguments.trace.path, arguments.trace.options, arguments.engine, std::ref(progress));
  }();
  if (!result.ok()) return fail(result.status());
  report_bad_lines(arguments.trace.path, result->bad_line_count, result->bad_lines, result->out_of_order);
  if (!arguments.dump.empty())
    if (const int code = write_text(arguments.dump, result->dump); code != kExitOk) return code;
  if (!arguments.html.empty())
    if (const int code = write_text(arguments.html, sim::report_html(arguments.trace.path, arguments.engine, *result));
        code != kExitOk)
      return code;
  if (!arguments.json.empty()) return write_text(arguments.json, sim::report_json(arguments.engine, *result));
  fmt::print("{}", sim::report_text(arguments.trace.path, arguments.engine, *result));
  return kExitOk;
}

// "ttft_p95=2s": seconds, or ms with that unit.
Result<double> parse_objective(const std::string& text) {
  const std::string name = "ttft_p95=";
  double value = 0;
  char unit[3] = {};
  if (text.rfind(name, 0) != 0 || std::sscanf(text.c_str() + name.size(), "%lf%2s", &value, unit) < 1 || !(value > 0))
    return Status(Code::kInvalidArgument, fmt::format("--slo {}: write ttft_p95=2s or ttft_p95=500ms", text));
  return std::string(unit) == "ms" ? value / 1e3 : value;
}

std::string kind_name(GroupKind kind) { return kind == GroupKind::kSlidingWindow ? "sliding_window" : "full"; }

Json to_json(const sim::PlanPoint& point) {
  return {{"pool_bytes", point.pool_bytes}, {"host_bytes", point.host_bytes},
          {"disk_bytes", point.disk_bytes}, {"price_per_hour", point.price_per_hour},
          {"ttft_p95_s", point.ttft_p95_s}, {"token_hit_ratio", point.token_hit_ratio},
          {"refused", point.refused},       {"meets", point.meets}};
}

Json to_json(const sim::EngineOptions& engine, const sim::Plan& plan, double objective) {
  Json groups = Json::array(), tiers = Json::array(), codecs = Json::array(), points = Json::array();
  for (const sim::PlanGroup& group : plan.groups)
    groups.push_back({{"kind", kind_name(group.spec.kind)},
                      {"layers", group.spec.layer_count},
                      {"window", group.spec.window},
                      {"token_bytes", group.spec.token_bytes()},
                      {"page_sets", group.page_sets}});
  for (const sim::PlanTier& tier : plan.tiers)
    tiers.push_back({{"name", tier.name}, {"bytes", tier.bytes}, {"tokens", tier.tokens}, {"sessions", tier.sessions}});
  for (const sim::PlanCodec& codec : plan.codecs)
    codecs.push_back(
        {{"ratio", codec.ratio}, {"host_tokens", codec.host_tokens}, {"host_sessions", codec.host_sessions}});
  for (const sim::PlanPoint& point : plan.points) points.push_back(to_json(point));
  return {{"model", engine.model.name},
          {"device", engine.device.name},
          {"token_bytes", plan.token_bytes},
          {"groups", groups},
          {"page_bytes", plan.page_bytes},
          {"session_tokens", plan.session_tokens},
          {"session_bytes", plan.session_bytes},
          {"hot_tokens", plan.hot_tokens},
          {"tiers", tiers},
          {"break_even_tokens", plan.break_even_tokens},
          {"codec_ratio", engine.codec_ratio},
          {"codec_source", engine.codec_source.empty() ? "assumed" : engine.codec_source},
          {"objective_ttft_p95_s", objective},
          {"prices",
           {{"source", "assumed"},
            {"device_per_hour", engine.device.price_per_hour},
            {"host_gib_per_hour", engine.device.host_gib_per_hour},
            {"disk_gib_per_hour", engine.device.disk_gib_per_hour}}},
          {"codecs", codecs},
          {"cheapest", plan.cheapest ? to_json(*plan.cheapest) : Json()},
          {"points", points}};
}

void print_groups(const sim::EngineOptions& engine, const sim::Plan& plan) {
  fmt::print("{} on {}: {} bytes a token in {} layers, {} KV heads of {}\n", engine.model.name, engine.device.name,
             grouped(plan.token_bytes), engine.model.layers, engine.model.kv_heads, engine.model.head_dim);
  for (const sim::PlanGroup& group : plan.groups)
    fmt::print("  {:>4} layers see {:<24} {:>9} bytes a token, {} page set{} of {}\n", group.spec.layer_count,
               group.spec.window == 0 ? "everything:" : fmt::format("the last {} tokens:", grouped(group.spec.window)),
               grouped(group.spec.token_bytes()), group.page_sets, group.page_sets == 1 ? "" : "s",
               human_bytes(plan.page_bytes));
  fmt::print("A session of {} tokens takes {}.\n", grouped(plan.session_tokens), human_bytes(plan.session_bytes));
}

void print_sizes(const sim::EngineOptions& engine, const sim::Plan& plan, double objective) {
  const auto row = [](const sim::PlanPoint& p) {
    return fmt::format("pool {:>9}, host {:>9}, disk {:>9}: {:5.1f} % from cache, p95 {:8.2f} s, {:.3f} $/h{}",
                       human_bytes(p.pool_bytes), human_bytes(p.host_bytes), human_bytes(p.disk_bytes),
                       100 * p.token_hit_ratio, p.ttft_p95_s, p.price_per_hour, p.meets ? "  meets" : "");
  };
  if (objective == 0) {
    for (const sim::PlanPoint& point : plan.points) fmt::print("{}\n", row(point));
    return;
  }
  fmt::print("Sizes for a first token within {:.2f} s at p95, of {} runs the nearest to what meets it:\n", objective,
             plan.points.size());
  std::vector<sim::PlanPoint> shown = plan.points;  // by price; those about the cheapest that meets
  std::size_t at = 0;
  while (at < shown.size() && plan.cheapest && !shown[at].meets) ++at;
  const std::size_t from = at > 3 ? at - 3 : 0;
  for (std::size_t i = from; i < std::min(shown.size(), from + 5); ++i) fmt::print("  {}\n", row(shown[i]));
  if (plan.cheapest) {
    fmt::print("Cheapest: pool {}, host {}, disk {}, for {:.3f} dollars an hour.\n",
               human_bytes(plan.cheapest->pool_bytes), human_bytes(plan.cheapest->host_bytes),
               human_bytes(plan.cheapest->disk_bytes), plan.cheapest->price_per_hour);
    fmt::print(
        "Prices are assumed: the device {:.2f} an hour, by its memory; a GiB {:.4f} in the host, {:.5f} on disk.\n",
        engine.device.price_per_hour, engine.device.host_gib_per_hour, engine.device.disk_gib_per_hour);
  } else if (plan.points.back().refused > 0) {
    fmt::print(
        "No size meets it: {} requests are longer than any pool beside the weights. Try a device with more "
        "memory.\n",
        grouped(plan.points.back().refused));
  } else {
    fmt::print("No size meets it: the device, not the memory, sets the time. Try a faster one, or two.\n");
  }
}

void print_plan(const sim::EngineOptions& engine, const sim::Plan& plan, double objective) {
  print_groups(engine, plan);
  for (const sim::PlanTier& tier : plan.tiers)
    fmt::print("{} {:<10} {:>13} tokens = {} such sessions{}\n", tier.name, human_bytes(tier.bytes),
               grouped(tier.tokens), grouped(tier.sessions),
               tier.name == "pool"           ? ""
               : engine.codec_source.empty() ? fmt::format(", codec ratio {:.2f} assumed", engine.codec_ratio)
                                             : fmt::format(", codec ratio {:.2f} measured", engine.codec_ratio));
  if (plan.break_even_tokens == ~std::uint64_t{0}) {
    fmt::print("Loading a prefix from the host is never quicker than computing it on this device.\n");
  } else {
    fmt::print("Loading a prefix from the host is quicker than computing it from {} tokens on.\n",
               grouped(plan.break_even_tokens));
  }
  if (engine.host_bytes > 0) {
    fmt::print("With a codec of ratio (assumed; {} hot tokens a session stay raw) the host holds:\n",
               grouped(plan.hot_tokens));
    for (const sim::PlanCodec& codec : plan.codecs)
      fmt::print("  {:4.1f} {:>14} tokens = {} sessions\n", codec.ratio, grouped(codec.host_tokens),
                 grouped(codec.host_sessions));
  }
  if (!plan.points.empty()) print_sizes(engine, plan, objective);
  if (plan.points.empty() && objective > 0)
    fmt::print("Which sizes meet the objective depends on the requests: give --trace FILE or --workload chat.\n");
}

int run_plan(Arguments& arguments) {
  if (!arguments.workload.text.empty())
    if (const Status status = arguments.workload.apply(arguments.trace.path); !status.ok()) return fail(status);
  if (const Status status = arguments.trace.finish(); !status.ok()) return fail(status);
  if (const Status status = fill_engine(arguments); !status.ok()) return fail(status);
  double objective = 0;
  if (!arguments.objective.empty()) {
    const Result<double> parsed = parse_objective(arguments.objective);
    if (!parsed.ok()) return fail(parsed.status());
    objective = *parsed;
  }
  const Result<sim::Plan> plan = [&] {
    ProgressLine progress;
    return sim::make_plan(arguments.trace.path, arguments.trace.options, arguments.engine, objective,
                          std::ref(progress));
  }();
  if (!plan.ok()) return fail(plan.status());
  if (!arguments.json.empty()) return write_json(arguments.json, to_json(arguments.engine, *plan, objective));
  print_plan(arguments.engine, *plan, objective);
  return kExitOk;
}

int run_bookkeeping(Arguments& arguments) {
  if (const Status status = arguments.workload.apply(arguments.trace.path); !status.ok()) return fail(status);
  if (const Status status = arguments.trace.finish(); !status.ok()) return fail(status);
  if (!arguments.sweep.empty()) return run_sweep(arguments);
  const sim::BookkeepingOptions options = arguments.bookkeeping_options();
  const Result<sim::BookkeepingResult> result = [&] {
    ProgressLine progress;
    return sim::run_bookkeeping(arguments.trace.path, arguments.trace.options, options, std::ref(progress));
  }();
  if (!result.ok()) return fail(result.status());
  report_bad_lines(arguments.trace.path, result->bad_line_count, result->bad_lines, result->out_of_order);
  if (!arguments.json.empty()) return write_json(arguments.json, to_json(arguments, options, *result));
  print_text(options, *result);
  return kExitOk;
}

}  // namespace

void add_simulate_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("simulate", "what a deployment would do with a recorded trace");
  auto arguments = std::make_shared<Arguments>();
  command->add_option("--trace", arguments->trace.path, "trace file: plain, gzip or zstd; - is stdin");
  arguments->trace.add_to(*command);
  arguments->workload.add_to(*command);
  command->add_option("--sweep", arguments->sweep, "KEY=VALUE,VALUE,...: a run for each value; several make a product")
      ->type_name("KEY=LIST");
  command->add_option("--sweep-threads", arguments->sweep_threads, "runs at once; as many as processors")
      ->type_name("N");
  command->add_option("--resume", arguments->resume, "keeps a sweep's results there, and goes on from them")
      ->type_name("FILE");
  command->add_flag("--through-manager", arguments->through_manager,
                    "drive the library's own manager, without bytes: its 16-token blocks, mover and host tier");
  command->add_flag("--curve", arguments->curve, "hit ratio at many capacities: exact for lru, else from samples");
  command->add_option("--curve-rate", arguments->curve_options.rate, "share of the blocks in a sample");
  command->add_option("--curve-samples", arguments->curve_options.samples, "samples, whose spread is the error");
  command->add_flag("--curve-sampled", arguments->curve_sampled, "from samples even where exact is possible");
  command->add_flag("--bookkeeping", arguments->bookkeeping, "count hits only: no clock, no bytes, no pinning");
  command->add_option("--policy", arguments->policy, "eviction policy; docs/policies.md lists them")
      ->type_name("NAME")
      ->each([arguments](const std::string&) { arguments->policy_given = true; });
  command->add_option("--capacity-blocks", arguments->capacity_blocks, "blocks of the one tier")->type_name("N");
  command->add_option("--tiers", arguments->tiers, "blocks of each tier, the fastest first: 10000,40000")
      ->delimiter(',')
      ->type_name("N,N");
  command->add_option("--json", arguments->json, "write the result there; - is stdout")->type_name("FILE");
  command->add_option("--html", arguments->html, "write a page with charts there")->type_name("FILE");
  command
      ->add_option("--dump", arguments->dump,
                   "with --through-manager: write who holds what at the end there, in blocks made small; firn dump "
                   "shows it")
      ->type_name("FILE");
  command->add_option("--device", arguments->device, "configs/devices/NAME.yaml, or a file")->type_name("NAME");
  command->add_option("--model", arguments->model, "llama-3.1-8b and others, a Hugging Face config.json or a GGUF file")
      ->type_name("NAME");
  command->add_option("--disk-budget", arguments->disk_budget, "bytes of a disk tier below the host's")
      ->type_name("BYTES");
  sim::EngineOptions& engine = arguments->engine;
  arguments->add_codec_to(*command);
  command->add_option("--step-tokens", engine.max_step_tokens, "tokens a step computes at most");
  command->add_option("--watermark", engine.watermark, "share of the pool that admission leaves free");
  command->add_option("--time-scale", engine.time_scale, "arrivals this many times as fast");
  command->add_flag("--swap", engine.swap, "preempted sequences go to the host and back; else they are computed again");
  command->add_option("--host-policy", engine.host_policy, "of the tiers below the pool; else as --policy");
  command->add_flag("--exclusive", engine.exclusive, "a block is in the pool or in the host tier, never in both");
  command->add_flag("--second-use", engine.admit_second_use, "the host tier takes only blocks that were used twice");
  arguments->settings.add_to(*command);
  command->callback([arguments, &action] {
    if (!arguments->bookkeeping && !arguments->curve && (arguments->capacity_blocks != 0 || !arguments->tiers.empty()))
      throw CLI::RequiredError("--bookkeeping (with --capacity-blocks and --tiers)");
    if (!arguments->dump.empty() && (!arguments->through_manager || !arguments->sweep.empty()))
      throw CLI::RequiredError("--through-manager (with --dump, of one run)");
    action = [arguments] {
      if (arguments->curve) return run_curve(*arguments);
      return arguments->bookkeeping ? run_bookkeeping(*arguments) : run_engine(*arguments);
    };
  });
}

void add_plan_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("plan", "how much memory is enough for a model, a trace and an objective");
  auto arguments = std::make_shared<Arguments>();
  command->add_option("--trace", arguments->trace.path, "trace file; without it, numbers only");
  arguments->trace.add_to(*command);
  arguments->workload.add_to(*command);
  command->add_option("--slo", arguments->objective, "what must hold: ttft_p95=2s")->type_name("NAME=TIME");
  command->add_option("--device", arguments->device, "configs/devices/NAME.yaml, or a file")->type_name("NAME");
  command->add_option("--model", arguments->model, "llama-3.1-8b and others, a Hugging Face config.json or a GGUF file")
      ->type_name("NAME");
  arguments->add_codec_to(*command);
  command->add_option("--disk-budget", arguments->disk_budget, "bytes of a disk tier below the host's")
      ->type_name("BYTES");
  command->add_option("--json", arguments->json, "write the plan there; - is stdout")->type_name("FILE");
  arguments->settings.add_to(*command);
  command->callback([arguments, &action] { action = [arguments] { return run_plan(*arguments); }; });
}

}  // namespace firn::cli
