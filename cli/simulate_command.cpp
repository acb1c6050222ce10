// firn simulate: what a deployment would do with a trace. --bookkeeping counts hits without any clock.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "cli/commands.h"
#include "cli/process.h"
#include "cli/simulation.h"
#include "cli/text.h"
#include "sim/advice.h"
#include "sim/bookkeeping.h"
#include "sim/curve.h"
#include "sim/library_run.h"
#include "sim/page.h"
#include "sim/report.h"
#include "sim/sweep.h"

namespace firn::cli {
namespace {

using Json = nlohmann::ordered_json;
using Arguments = SimulationArguments;

// Text on the screen unless JSON is asked for; a page beside either.
int write_page(const Arguments& arguments, const sim::Page& page, const Json& json) {
  return arguments.html.empty()
             ? kExitOk
             : write_text(arguments.html, sim::render(page, json.dump(-1, ' ', false, Json::error_handler_t::replace)));
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

sim::Page page_of(const Arguments& arguments, const sim::BookkeepingOptions& options,
                  const sim::BookkeepingResult& result) {
  const sim::Counts& c = result.counts;
  sim::Page page;
  page.title = fmt::format("{}: hits without a clock", arguments.trace.path);
  page.say = fmt::format("{} requests, {} blocks of {} tokens, policy {}{}.", grouped(c.requests), grouped(c.blocks),
                         result.block_tokens, options.policy, result.complete ? "" : " (stopped early)");
  page.cards = {
      {"prefix_hits", "of the blocks: the leading run, which saves prefill",
       sim::short_share(share(c.prefix_hits, c.blocks))},
      {"token_hits", "of the input tokens", sim::short_share(share(c.hit_tokens, c.input_tokens))},
      {"access_hits", "what object-cache simulators count", sim::short_share(share(c.access_hits, c.blocks))}};
  const auto row = [&](const char* name, std::uint64_t count, const char* id) {
    return sim::PageRow{name, fmt::format("{} ({})", grouped(count), sim::short_share(share(count, c.blocks))), id,
                        share(count, c.blocks)};
  };
  page.bars.push_back({fmt::format("Of {} blocks", grouped(c.blocks)),
                       {row("prefix hits", c.prefix_hits, "prefix"),
                        row("member hits: resident at lookup, wherever", c.member_hits, "member"),
                        row("access hits", c.access_hits, "access")}});
  sim::PageTable tiers{"Tiers", {"tier", "blocks", "hits"}, {}};
  for (std::size_t i = 0; i < options.tier_blocks.size(); ++i)
    tiers.rows.push_back({std::to_string(i + 1), grouped(options.tier_blocks[i]), grouped(c.tier_hits[i])});
  page.tables.push_back(std::move(tiers));
  page.tables.push_back(
      {"Moves",
       {"", "blocks"},
       {{"promotions", grouped(c.promotions)}, {"demotions", grouped(c.demotions)}, {"drops", grouped(c.drops)}}});
  page.settings = {{"policy", options.policy},
                   {"block tokens", std::to_string(result.block_tokens)},
                   {"bad lines passed over", grouped(result.bad_line_count)}};
  page.assumptions = {
      "One pool of equal blocks (or exclusive tiers), requests one at a time in file order, nothing pinned, outputs "
      "left out."};
  return page;
}

// Hits and first tokens of every point; along the last axis whose values are numbers or sizes, as curves too.
sim::Page page_of_sweep(const Arguments& arguments, const std::vector<sim::SweepAxis>& axes, const Json& all) {
  sim::Page page;
  page.title = fmt::format("{}: {} settings beside each other", arguments.trace.path, all["sweep"].size());
  page.say = arguments.bookkeeping
                 ? "Hits without a clock."
                 : fmt::format("{} on {}.", arguments.engine.model.name, arguments.engine.device.name);
  sim::PageTable table{"Every point", {}, {}};
  for (const sim::SweepAxis& axis : axes) table.heads.push_back(axis.key);
  if (arguments.bookkeeping)
    table.heads.insert(table.heads.end(), {"prefix hits", "access hits"});
  else
    table.heads.insert(table.heads.end(),
                       {"input tokens from cache", "first token p50", "p95", "p99", "each token p50", "preemptions"});
  const auto number = [](const std::string& text) -> double {
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc() && end == text.data() + text.size()) return value;
    const Result<std::uint64_t> bytes = parse_bytes(text);
    return bytes.ok() ? static_cast<double>(*bytes) : std::nan("");
  };
  std::size_t along = axes.size();
  for (std::size_t a = 0; a < axes.size(); ++a) {
    bool all_numbers = axes[a].values.size() > 1;
    for (const std::string& value : axes[a].values) all_numbers = all_numbers && !std::isnan(number(value));
    if (all_numbers) along = a;
  }
  std::map<std::string, std::map<double, std::pair<double, double>>> curves;
  for (const Json& row : all["sweep"]) {
    const Json& report = row["report"];
    std::vector<std::string> line;
    std::string others;
    for (std::size_t a = 0; a < axes.size(); ++a) {
      line.push_back(row["point"][axes[a].key].get<std::string>());
      if (a != along) others += (others.empty() ? "" : ", ") + axes[a].key + " " + line.back();
    }
    const double hits = report[arguments.bookkeeping ? "prefix_ratio" : "token_hit_ratio"].get<double>();
    if (along < axes.size())
      curves[others][number(line[along])] = {hits, arguments.bookkeeping ? 0 : report["ttft_s"]["p95"].get<double>()};
    line.push_back(sim::short_share(hits));
    if (arguments.bookkeeping) {
      line.push_back(sim::short_share(report["access_ratio"].get<double>()));
    } else {
      for (const char* key : {"p50", "p95", "p99"})
        line.push_back(sim::short_time(report["ttft_s"][key].get<double>()));
      line.push_back(sim::short_time(report["token_s"]["p50"].get<double>()));
      line.push_back(grouped(report["preemptions"].get<std::uint64_t>()));
    }
    table.rows.push_back(std::move(line));
  }
  page.tables.push_back(std::move(table));
  constexpr std::size_t kMostCurves = 6;
  if (!curves.empty() && curves.size() <= kMostCurves) {
    const bool bytes = axes[along].key.find("budget") != std::string::npos;
    sim::PageChart hits{.title = "Hit rate",
                        .x_name = axes[along].key,
                        .y_name = "share",
                        .x_unit = bytes ? sim::PageUnit::kBytes : sim::PageUnit::kCount,
                        .y_unit = sim::PageUnit::kShare};
    for (const auto& [others, points] : curves)
      for (const auto& [x, y] : points)
        if (std::find(hits.x.begin(), hits.x.end(), x) == hits.x.end()) hits.x.push_back(x);
    std::sort(hits.x.begin(), hits.x.end());
    sim::PageChart first = hits;
    first.title = "Time to the first token, p95", first.y_name = "p95", first.y_unit = sim::PageUnit::kSeconds;
    for (const auto& [others, points] : curves) {
      sim::PageSeries hit{others.empty() ? "hit rate" : others, {}},
          time{others.empty() ? "first token, p95" : others, {}};
      for (const double x : hits.x) {
        const auto at = points.find(x);
        hit.y.push_back(at == points.end() ? std::nan("") : at->second.first);
        time.y.push_back(at == points.end() ? std::nan("") : at->second.second);
      }
      hits.series.push_back(std::move(hit)), first.series.push_back(std::move(time));
    }
    page.charts.push_back(std::move(hits));
    if (!arguments.bookkeeping) page.charts.push_back(std::move(first));
  }
  if (!arguments.bookkeeping) {
    page.settings = {
        {"device", arguments.engine.device.name},
        {"model", arguments.engine.model.name},
        {"pool, host", sim::short_bytes(static_cast<double>(arguments.engine.pool_bytes)) + ", " +
                           sim::short_bytes(static_cast<double>(arguments.engine.host_bytes))},
        {"codec", fmt::format("{}, {}", arguments.engine.codec,
                              arguments.engine.codec_source.empty() ? "assumed" : arguments.engine.codec_source)}};
    page.assumptions = {
        "Efficiencies, overheads, links and prices of the device file; docs/simulate.md says what is modelled."};
  }
  return page;
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
  const Json all = {{"trace", arguments.trace.path}, {"complete", result->complete}, {"sweep", rows}};
  if (const int code = write_page(arguments, page_of_sweep(arguments, axes, all), all); code != kExitOk) return code;
  if (!arguments.json.empty()) return write_json(arguments.json, all);
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
  if (const Status status = arguments.finish_trace(/*required=*/true); !status.ok()) return fail(status);
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
  Json points = Json::array();
  sim::Page page;
  sim::PageChart chart{.title = "Hit ratio at every capacity",
                       .x_name = "blocks",
                       .y_name = "share of the block accesses",
                       .x_unit = sim::PageUnit::kCount,
                       .y_unit = sim::PageUnit::kShare,
                       .log_x = true};
  chart.series = {{"prefix hits", {}}, {"access hits", {}}};
  sim::PageTable table{"In numbers", {"blocks", "prefix hits", "standard error", "access hits", "standard error"}, {}};
  for (const sim::CurvePoint& point : curve->points) {
    points.push_back({{"blocks", point.blocks},
                      {"prefix_ratio", point.prefix_ratio},
                      {"access_ratio", point.access_ratio},
                      {"prefix_error", point.prefix_error},
                      {"access_error", point.access_error}});
    chart.x.push_back(point.blocks);
    chart.series[0].y.push_back(point.prefix_ratio), chart.series[1].y.push_back(point.access_ratio);
    const auto error = [&](double value) { return curve->exact ? std::string("exact") : sim::short_share(value); };
    table.rows.push_back({grouped(point.blocks), sim::short_share(point.prefix_ratio), error(point.prefix_error),
                          sim::short_share(point.access_ratio), error(point.access_error)});
  }
  const Json json = {{"trace", arguments.trace.path},
                     {"policy", options.policy},
                     {"block_tokens", curve->block_tokens},
                     {"requests", curve->requests},
                     {"blocks", curve->accesses},
                     {"distinct_blocks", curve->distinct},
                     {"exact", curve->exact},
                     {"rate", curve->exact ? 1.0 : options.rate},
                     {"samples", curve->exact ? 1u : options.samples},
                     {"complete", curve->complete},
                     {"points", points}};
  page.title = fmt::format("{}: hit ratio against capacity", arguments.trace.path);
  page.say = fmt::format("{} accesses to {} different blocks of {} tokens, policy {}.", grouped(curve->accesses),
                         grouped(curve->distinct), curve->block_tokens, options.policy);
  page.charts = {chart};
  page.tables = {table};
  page.settings = {
      {"policy", options.policy},
      {"requests", grouped(curve->requests)},
      {"how", curve->exact ? "exact: one pass over stack distances"
                           : fmt::format("{} samples of {:.1f} % of the blocks", options.samples, 100 * options.rate)}};
  page.assumptions = {"One pool, requests one at a time in file order, nothing pinned, outputs left out."};
  if (const int code = write_page(arguments, page, json); code != kExitOk) return code;
  if (!arguments.json.empty()) return write_json(arguments.json, json);
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
  if (const Status status = arguments.finish_trace(/*required=*/true); !status.ok()) return fail(status);
  if (const Status status = arguments.fill_engine(/*one_device=*/false); !status.ok()) return fail(status);
  if (!arguments.sweep.empty()) return run_sweep(arguments);
  std::optional<sim::Advice> advice;
  const Result<sim::EngineResult> result = [&]() -> Result<sim::EngineResult> {
    ProgressLine progress;
    const sim::Tick tick = std::ref(progress);
    Result<sim::EngineResult> ran =
        arguments.through_manager
            ? sim::run_through_manager(arguments.trace.path, arguments.trace.options, arguments.engine, tick)
            : sim::run_engine(arguments.trace.path, arguments.trace.options, arguments.engine, tick);
    if (!ran.ok() || !ran->complete || arguments.no_advice || arguments.through_manager || arguments.trace.path == "-")
      return ran;
    sim::AdviceOptions how;
    how.codec_threads = arguments.codec_threads;
    for (const char* name : {"raw", "lossless", "q8"})
      if (const Result<sim::CodecFigures> figures = arguments.codecs.find(name);
          figures.ok() && arguments.codec_figures.empty() && !arguments.codec_assumed)
        how.codecs.push_back(*figures);
    Result<sim::Advice> made =
        sim::advise(arguments.trace.path, arguments.trace.options, arguments.engine, *ran, how, tick);
    if (made.ok()) advice = std::move(*made);  // otherwise it was stopped, and the run itself is whole
    return ran;
  }();
  if (!result.ok()) return fail(result.status());
  const sim::Advice* given = advice ? &*advice : nullptr;
  report_bad_lines(arguments.trace.path, result->bad_line_count, result->bad_lines, result->out_of_order);
  if (!arguments.dump.empty())
    if (const int code = write_text(arguments.dump, result->dump, /*is_private=*/true); code != kExitOk) return code;
  if (!arguments.html.empty())
    if (const int code =
            write_text(arguments.html, sim::report_html(arguments.trace.path, arguments.engine, *result, given));
        code != kExitOk)
      return code;
  if (!arguments.json.empty()) return write_text(arguments.json, sim::report_json(arguments.engine, *result, given));
  fmt::print("{}", sim::report_text(arguments.trace.path, arguments.engine, *result, given));
  return kExitOk;
}

int run_bookkeeping(Arguments& arguments) {
  if (const Status status = arguments.finish_trace(/*required=*/true); !status.ok()) return fail(status);
  if (!arguments.sweep.empty()) return run_sweep(arguments);
  const sim::BookkeepingOptions options = arguments.bookkeeping_options();
  const Result<sim::BookkeepingResult> result = [&] {
    ProgressLine progress;
    return sim::run_bookkeeping(arguments.trace.path, arguments.trace.options, options, std::ref(progress));
  }();
  if (!result.ok()) return fail(result.status());
  report_bad_lines(arguments.trace.path, result->bad_line_count, result->bad_lines, result->out_of_order);
  const Json json = to_json(arguments, options, *result);
  if (const int code = write_page(arguments, page_of(arguments, options, *result), json); code != kExitOk) return code;
  if (!arguments.json.empty()) return write_json(arguments.json, json);
  print_text(options, *result);
  return kExitOk;
}

}  // namespace

void add_simulate_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("simulate", "what a deployment would do with a recorded trace");
  auto arguments = std::make_shared<SimulationArguments>();
  command->add_option("--trace", arguments->trace.path, "trace file: plain, gzip or zstd; - is stdin");
  arguments->add_shared_to(*command);
  command->add_option("--sweep", arguments->sweep, "KEY=VALUE,VALUE,...: a run for each value; several make a product")
      ->type_name("KEY=LIST");
  command->add_option("--sweep-threads", arguments->sweep_threads, "runs at once; as many as processors")
      ->type_name("N");
  command->add_option("--resume", arguments->resume, "keeps a sweep's results there, and goes on from them")
      ->type_name("FILE");
  command->add_flag("--no-advice", arguments->no_advice, "one run, without those that find out what would help");
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
  command
      ->add_option("--dump", arguments->dump,
                   "with --through-manager: write who holds what at the end there, in blocks made small; firn dump "
                   "shows it")
      ->type_name("FILE");
  sim::EngineOptions& engine = arguments->engine;
  command->add_option("--step-tokens", engine.max_step_tokens, "tokens a step computes at most");
  command->add_option("--watermark", engine.watermark, "share of the pool that admission leaves free");
  command->add_flag("--swap", engine.swap, "preempted sequences go to the host and back; else they are computed again");
  command->add_option("--host-policy", engine.host_policy, "of the tiers below the pool; else as --policy");
  command->add_flag("--exclusive", engine.exclusive, "a block is in the pool or in the host tier, never in both");
  command->add_flag("--second-use", engine.admit_second_use, "the host tier takes only blocks that were used twice");
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

}  // namespace firn::cli
