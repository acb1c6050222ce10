// firn plan: how much memory is enough for a model, a trace and what must hold.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/simulation.h"
#include "cli/text.h"
#include "sim/page.h"
#include "sim/plan.h"

namespace firn::cli {
namespace {

using Json = nlohmann::ordered_json;
using Arguments = SimulationArguments;

std::string kind_name(GroupKind kind) {
  return kind == GroupKind::kSlidingWindow ? "sliding_window" : kind == GroupKind::kLatent ? "latent" : "full";
}

Json to_json(const sim::Percentiles& p) { return {{"p50", p.p50}, {"p90", p.p90}, {"p95", p.p95}, {"p99", p.p99}}; }

Json to_json(const sim::PlanPoint& point) {
  return {{"devices", point.devices},
          {"pool_bytes", point.pool_bytes},
          {"host_bytes", point.host_bytes},
          {"disk_bytes", point.disk_bytes},
          {"price_per_hour", point.price_per_hour},
          {"ttft_p95_s", point.ttft_s.p95},
          {"ttft_s", to_json(point.ttft_s)},
          {"token_s", to_json(point.tpot_s)},
          {"token_hit_ratio", point.token_hit_ratio},
          {"refused", point.refused},
          {"meets", point.meets}};
}

Json to_json(const sim::PlanCodec& row, const std::string& text) {
  const auto measured = [](const std::optional<double>& value) { return value ? Json(*value) : Json(); };
  Json json = {{"codec", row.figures.name},
               {"ratio", row.figures.ratio},
               {"decode_bytes_per_s", row.figures.bytes_per_s},
               {"encode_bytes_per_s", row.figures.encode_bytes_per_s},
               {"kld", measured(row.figures.kld)},
               {"kld_p99", measured(row.figures.kld_p99)},
               {"top1", measured(row.figures.top1)},
               {"measured_on", row.figures.text.empty() ? text : row.figures.text},
               {"host_tokens", row.host_tokens},
               {"host_sessions", row.host_sessions},
               {"users", row.users}};
  if (!row.is_run) return json;
  json["ttft_s"] = to_json(row.ttft_s);
  json["token_hit_ratio"] = row.token_hit_ratio;
  json["requests_per_s"] = row.rate;
  return json;
}

Json to_json(const sim::EngineOptions& engine, const sim::Plan& plan, const sim::PlanOptions& how) {
  Json groups = Json::array(), tiers = Json::array(), codecs = Json::array(), points = Json::array(),
       objectives = Json::array();
  for (const sim::PlanGroup& group : plan.groups)
    groups.push_back({{"kind", kind_name(group.spec.kind)},
                      {"layers", group.spec.layer_count},
                      {"window", group.spec.window},
                      {"token_bytes", group.spec.token_bytes()},
                      {"page_sets", group.page_sets}});
  for (const sim::PlanTier& tier : plan.tiers)
    tiers.push_back({{"name", tier.name}, {"bytes", tier.bytes}, {"tokens", tier.tokens}, {"sessions", tier.sessions}});
  for (const sim::PlanCodec& codec : plan.codecs) codecs.push_back(to_json(codec, how.codecs.text));
  for (const sim::PlanPoint& point : plan.points) points.push_back(to_json(point));
  for (const sim::Objective& objective : how.objectives) objectives.push_back(sim::to_string(objective));
  Json carried;
  if (plan.rate)
    carried = {{"requests_per_s", plan.rate->carried ? Json(plan.rate->carried->rate) : Json()},
               {"more_than_was_tried", plan.rate->unbounded},
               {"asked_requests_per_s", plan.load.rate * engine.time_scale}};
  return {{"model", engine.model.name},
          {"parameters", engine.model.parameters},
          {"active_parameters", engine.model.active_parameters},
          {"weight_bytes", engine.model.weight_bytes},
          {"device", engine.device.name},
          {"devices", how.devices.front()},
          {"token_bytes", plan.token_bytes},
          {"groups", groups},
          {"page_bytes", plan.page_bytes},
          {"session_tokens", plan.session_tokens},
          {"session_bytes", plan.session_bytes},
          {"hot_tokens", plan.hot_tokens},
          {"tiers", tiers},
          {"break_even_tokens", plan.break_even_tokens},
          {"codec", engine.codec},
          {"codec_ratio", engine.codec_ratio},
          {"codec_source", engine.codec_source.empty() ? "assumed" : engine.codec_source},
          {"objectives", objectives},
          {"carried", carried},
          {"prices",
           {{"source", "assumed"},
            {"device_per_hour", engine.device.price_per_hour},
            {"host_gib_per_hour", engine.device.host_gib_per_hour},
            {"disk_gib_per_hour", engine.device.disk_gib_per_hour}}},
          {"codecs", codecs},
          {"cheapest", plan.cheapest ? to_json(*plan.cheapest) : Json()},
          {"points", points}};
}

std::string parameters_text(const sim::ModelShape& model) {
  const std::string experts = model.experts == 0 ? ""
                                                 : fmt::format(" ({:.3g} billion a token: {} of {} experts)",
                                                               (model.active_parameters + model.head_parameters) / 1e9,
                                                               model.experts_per_token, model.experts);
  return fmt::format("{:.3g} billion parameters{}, {} of weights", model.parameters / 1e9, experts,
                     human_bytes(static_cast<std::uint64_t>(model.weight_bytes)));
}

std::string sees(const GroupSpec& group) {
  if (group.kind == GroupKind::kLatent) return "everything, in latent rows:";
  return group.window == 0 ? "everything:" : fmt::format("the last {} tokens:", grouped(group.window));
}

void print_groups(const sim::EngineOptions& engine, const sim::Plan& plan) {
  fmt::print("{} on {}: {}\n", engine.model.name, engine.device.name, parameters_text(engine.model));
  for (const sim::PlanGroup& group : plan.groups)
    fmt::print("  {:>4} layers see {:<24} {:>9} bytes a token, {} page set{} of {}\n", group.spec.layer_count,
               sees(group.spec), grouped(group.spec.token_bytes()), group.page_sets, group.page_sets == 1 ? "" : "s",
               human_bytes(plan.page_bytes));
  fmt::print("A session of {} tokens takes {}.\n", grouped(plan.session_tokens), human_bytes(plan.session_bytes));
}

std::string objectives_text(const sim::PlanOptions& how) {
  std::string text;
  for (const sim::Objective& objective : how.objectives) text += (text.empty() ? "" : ", ") + sim::to_string(objective);
  return text;
}

std::string row(const sim::PlanPoint& p) {
  return fmt::format("{} x pool {:>9}, host {:>9}, disk {:>9}: {:4.1f} % cached, p95 {:>7}, ${:.2f}/h{}", p.devices,
                     human_bytes(p.pool_bytes / p.devices), human_bytes(p.host_bytes), human_bytes(p.disk_bytes),
                     100 * p.token_hit_ratio, sim::short_time(p.ttft_s.p95), p.price_per_hour, p.meets ? " meets" : "");
}

std::string carries_text(const sim::Plan& plan, const sim::EngineOptions& engine, const sim::PlanOptions& how) {
  if (!plan.rate || !(plan.load.rate > 0)) return "";
  const std::string asked = fmt::format("; {:.3g} a second come", plan.load.rate * engine.time_scale);
  if (plan.rate->unbounded)
    return fmt::format("As given it carries more than {:.3g} requests a second with {}{}.", plan.rate->tried_rate,
                       objectives_text(how), asked);
  if (!plan.rate->carried)
    return fmt::format("As given it carries no rate with {}: one prompt alone takes longer.", objectives_text(how));
  return fmt::format("As given it carries {:.3g} requests a second with {}{}.", plan.rate->carried->rate,
                     objectives_text(how), asked);
}

std::string cheapest_text(const sim::Plan& plan) {
  if (plan.cheapest)
    return fmt::format("Cheapest: {} device{}, pool {}, host {}, disk {}, for {:.3f} dollars an hour.",
                       plan.cheapest->devices, plan.cheapest->devices == 1 ? "" : "s",
                       human_bytes(plan.cheapest->pool_bytes), human_bytes(plan.cheapest->host_bytes),
                       human_bytes(plan.cheapest->disk_bytes), plan.cheapest->price_per_hour);
  if (!plan.points.empty() && plan.points.back().refused > 0)
    return fmt::format(
        "No size meets it: {} requests are longer than any pool beside the weights. Try a device with more memory.",
        grouped(plan.points.back().refused));
  return "No size meets it: the device, not the memory, sets the time. Try a faster one, more of them (--devices), or "
         "less load (--rate).";
}

void print_sizes(const sim::EngineOptions& engine, const sim::Plan& plan, const sim::PlanOptions& how) {
  if (how.objectives.empty()) {
    for (const sim::PlanPoint& point : plan.points) fmt::print("{}\n", row(point));
    return;
  }
  fmt::print("Sizes for {}, of {} runs the nearest to what meets it:\n", objectives_text(how), plan.points.size());
  std::size_t at = 0;  // by price; those about the cheapest that meets
  while (at < plan.points.size() && plan.cheapest && !plan.points[at].meets) ++at;
  const std::size_t from = at > 1 ? at - 1 : 0;
  for (std::size_t i = from; i < std::min(plan.points.size(), from + 3); ++i) fmt::print("  {}\n", row(plan.points[i]));
  fmt::print("{}\n", cheapest_text(plan));
  if (plan.cheapest)
    fmt::print("Prices are assumed: a whole device {:.2f} an hour; a GiB {:.4f} in the host, {:.5f} on disk.\n",
               engine.device.price_per_hour / engine.device.count, engine.device.host_gib_per_hour,
               engine.device.disk_gib_per_hour);
  if (const std::string text = carries_text(plan, engine, how); !text.empty()) fmt::print("{}\n", text);
}

std::string quality(const std::optional<double>& value, bool is_share) {
  if (!value) return "?";
  return is_share ? fmt::format("{:.1f} %", 100 * *value) : *value == 0 ? "exact" : fmt::format("{:.1e}", *value);
}

void print_codecs(const sim::Plan& plan, const sim::PlanOptions& how) {
  const bool runs = !plan.codecs.empty() && plan.codecs.front().is_run, rates = runs && !how.objectives.empty();
  fmt::print("{:<9} {:>5} {:>9}{}{} {:>8} {:>7}\n", "codec", "ratio", "users", runs ? "   ttft p50      p95" : "",
             rates ? "  req/s" : "", "mean KLD", "top-1");
  for (const sim::PlanCodec& c : plan.codecs) {
    fmt::print("{:<9} {:>5.2f} {:>9}{}{} {:>8} {:>7}\n", c.figures.name, c.figures.ratio, grouped(c.users),
               runs ? fmt::format("  {:>9} {:>8}", sim::short_time(c.ttft_s.p50), sim::short_time(c.ttft_s.p95)) : "",
               rates ? fmt::format(" {:>6.3g}", c.rate) : "", quality(c.figures.kld, false),
               quality(c.figures.top1, true));
  }
  fmt::print("Users: sessions kept in all tiers ({} hot tokens of each raw). Codecs {}.\n", grouped(plan.hot_tokens),
             how.codecs.origin());
}

void print_plan(const sim::EngineOptions& engine, const sim::Plan& plan, const sim::PlanOptions& how) {
  print_groups(engine, plan);
  for (const sim::PlanTier& tier : plan.tiers)
    if (tier.bytes > 0)
      fmt::print("{} {:<10} {:>13} tokens = {} such sessions{}\n", tier.name, human_bytes(tier.bytes),
                 grouped(tier.tokens), grouped(tier.sessions),
                 tier.name == "pool" ? ""
                                     : fmt::format(", {} at {:.2f}{}", engine.codec, engine.codec_ratio,
                                                   engine.codec_source.empty() ? ", assumed" : ""));
  if (plan.break_even_tokens == ~std::uint64_t{0}) {
    fmt::print("Loading a prefix from the host is never quicker than computing it on this device.\n");
  } else {
    fmt::print("Loading a prefix from the host is quicker than computing it from {} tokens on.\n",
               grouped(plan.break_even_tokens));
  }
  if (engine.host_bytes > 0) print_codecs(plan, how);
  if (!plan.points.empty()) print_sizes(engine, plan, how);
  if (plan.points.empty() && !how.objectives.empty())
    fmt::print("Which sizes meet the objective depends on the requests: give --trace FILE or --workload chat.\n");
}

sim::Page page_of(const Arguments& arguments, const sim::EngineOptions& engine, const sim::Plan& plan,
                  const sim::PlanOptions& how) {
  sim::Page page;
  page.title = fmt::format("Plan: {} on {}", engine.model.name, engine.device.name);
  page.say = fmt::format("{}. A session of {} tokens takes {}.", parameters_text(engine.model),
                         grouped(plan.session_tokens), human_bytes(plan.session_bytes));
  if (!how.objectives.empty() && !plan.points.empty())
    page.say += " " + cheapest_text(plan) + " " + carries_text(plan, engine, how);
  for (const sim::PlanTier& tier : plan.tiers)
    page.cards.push_back({"tier_" + tier.name,
                          fmt::format("sessions in the {} of {}", tier.name, human_bytes(tier.bytes)),
                          grouped(tier.sessions)});
  page.cards.push_back({"break_even", "tokens from which on loading beats computing",
                        plan.break_even_tokens == ~std::uint64_t{0} ? "never" : grouped(plan.break_even_tokens)});
  if (plan.rate && plan.rate->carried)
    page.cards.push_back(
        {"rate", "requests a second it carries as given", fmt::format("{:.3g}", plan.rate->carried->rate)});
  sim::PageTable groups{"Groups of layers", {"layers see", "layers", "bytes a token", "page sets"}, {}};
  for (const sim::PlanGroup& group : plan.groups)
    groups.rows.push_back({sees(group.spec).substr(0, sees(group.spec).size() - 1), grouped(group.spec.layer_count),
                           grouped(group.spec.token_bytes()), grouped(group.page_sets)});
  page.tables.push_back(std::move(groups));
  sim::PageTable codecs{
      "The same sizes with each codec",
      {"codec", "ratio", "users", "first token p50", "p95", "requests/s", "mean KLD", "p99 KLD", "top-1"},
      {}};
  for (const sim::PlanCodec& c : plan.codecs)
    codecs.rows.push_back({c.figures.name, fmt::format("{:.2f}", c.figures.ratio), grouped(c.users),
                           c.is_run ? sim::short_time(c.ttft_s.p50) : "", c.is_run ? sim::short_time(c.ttft_s.p95) : "",
                           c.rate > 0 ? fmt::format("{:.3g}", c.rate) : "", quality(c.figures.kld, false),
                           quality(c.figures.kld_p99, false), quality(c.figures.top1, true)});
  page.tables.push_back(std::move(codecs));
  if (!plan.points.empty()) {
    sim::PageTable sizes{"Every size that was run, the cheapest first",
                         {"devices", "pool of all", "host", "disk", "from cache", "first token p50", "p95", "p99",
                          "each token p50", "p99", "$/h", ""},
                         {}};
    sim::PageChart chart{.title = "First token against price",
                         .x_name = "dollars an hour",
                         .y_name = "p95",
                         .x_unit = sim::PageUnit::kDollars,
                         .y_unit = sim::PageUnit::kSeconds,
                         .dots = true};
    chart.series = {{"meets", {}}, {"does not", {}}};
    for (const sim::PlanPoint& p : plan.points) {
      sizes.rows.push_back({std::to_string(p.devices), human_bytes(p.pool_bytes), human_bytes(p.host_bytes),
                            human_bytes(p.disk_bytes), sim::short_share(p.token_hit_ratio),
                            sim::short_time(p.ttft_s.p50), sim::short_time(p.ttft_s.p95), sim::short_time(p.ttft_s.p99),
                            sim::short_time(p.tpot_s.p50), sim::short_time(p.tpot_s.p99),
                            fmt::format("{:.2f}", p.price_per_hour),
                            p.meets         ? "meets"
                            : p.refused > 0 ? "refuses some"
                                            : ""});
      chart.x.push_back(p.price_per_hour);
      chart.series[0].y.push_back(p.meets ? p.ttft_s.p95 : std::nan(""));
      chart.series[1].y.push_back(p.meets ? std::nan("") : p.ttft_s.p95);
    }
    page.charts.push_back(std::move(chart));
    page.tables.push_back(std::move(sizes));
  }
  page.settings = {{"requests", arguments.trace.path.empty() ? "none: numbers only"
                                                             : fmt::format("{}, {:.3g} a second", arguments.trace.path,
                                                                           plan.load.rate * engine.time_scale)},
                   {"objectives", how.objectives.empty() ? "none" : objectives_text(how)},
                   {"device", fmt::format("{}, {} of memory, {:.2f} dollars an hour", engine.device.name,
                                          human_bytes(engine.device.memory_bytes), engine.device.price_per_hour)},
                   {"pool, host", human_bytes(engine.pool_bytes) + ", " + human_bytes(engine.host_bytes)},
                   {"codec", fmt::format("{}: ratio {:.2f}, {:.2f} GB/s", engine.codec, engine.codec_ratio,
                                         engine.codec_bytes_per_s / 1e9)}};
  page.assumptions = {"All prices; efficiencies, overheads and links of the device file.",
                      "That codecs do with this model what they did where they were measured: " + how.codecs.origin() +
                          ", " + how.codecs.text + ".",
                      "With a host tier, more memory does not hurt: sizes between those that were run are not run.",
                      "For models with windows each token is charged the average of a typical session."};
  return page;
}

// One device, or as many as it takes for the weights; with objectives more of them are tried.
Result<std::vector<std::uint32_t>> device_counts(Arguments& arguments, bool search) {
  sim::EngineOptions& one = arguments.engine;
  if (arguments.devices != 0) return std::vector<std::uint32_t>{arguments.devices};
  std::vector<std::uint32_t> counts;
  Status why;
  for (const std::uint32_t count : {1u, 2u, 4u, 8u}) {
    const Result<sim::EngineOptions> several = sim::spread(one, count);
    if (!several.ok()) continue;
    sim::EngineOptions fits = *several;
    if (fits.pool_bytes == 0) fits.pool_bytes = std::max<std::uint64_t>(1, sim::largest_pool(fits.device, fits.model));
    const Status status = sim::check_fits(fits);
    if (why.ok()) why = status;  // of the fewest
    const bool room = one.pool_bytes != 0 || sim::largest_pool(fits.device, fits.model) > 0;
    if (status.ok() && room) counts.push_back(count);
    if (!counts.empty() && !search) break;
    if (one.pool_bytes != 0 && !status.ok() &&
        one.model.weight_bytes < 0.9 * static_cast<double>(one.device.memory_bytes))
      return status;  // the pool that was asked for does not fit, and the weights would
  }
  if (counts.empty())
    return why.ok() ? Status(Code::kInvalidArgument,
                             fmt::format("{} does not fit on 8 x {}", one.model.name, one.device.name))
                    : why;
  return counts;
}

int run_plan(Arguments& arguments) {
  if (const Status status = arguments.finish_trace(/*required=*/false); !status.ok()) return fail(status);
  sim::PlanOptions how;
  Result<std::vector<sim::Objective>> objectives = sim::parse_objectives(arguments.objectives);
  if (!objectives.ok()) return fail(objectives.status());
  how.objectives = std::move(*objectives);
  if (const Status status = arguments.fill_engine(/*one_device=*/true); !status.ok()) return fail(status);
  how.codecs = arguments.codecs;
  if (arguments.json.empty() && arguments.html.empty()) {  // a screen has 24 lines; and each costs a few runs
    constexpr std::string_view kLeftOut[] = {"kvtc@4", "kvtc@8", "kvtc@32", "firn@48"};
    std::erase_if(how.codecs.codecs, [&](const sim::CodecFigures& codec) {
      return codec.name != arguments.engine.codec &&
             std::find(std::begin(kLeftOut), std::end(kLeftOut), codec.name) != std::end(kLeftOut);
    });
  }
  how.codec_threads = arguments.codec_threads;
  Result<std::vector<std::uint32_t>> counts =
      device_counts(arguments, !how.objectives.empty() && !arguments.trace.path.empty());
  if (!counts.ok()) return fail(counts.status());
  how.devices = std::move(*counts);
  if (arguments.engine.pool_bytes == 0) {
    const Result<sim::EngineOptions> first = sim::spread(arguments.engine, how.devices.front());
    if (!first.ok()) return fail(first.status());
    arguments.engine.pool_bytes = sim::largest_pool(first->device, first->model);
  }
  const Result<sim::Plan> plan = [&] {
    ProgressLine progress;
    return sim::make_plan(arguments.trace.path, arguments.trace.options, arguments.engine, how, std::ref(progress));
  }();
  if (!plan.ok()) return fail(plan.status());
  const Result<sim::EngineOptions> engine = sim::spread(arguments.engine, how.devices.front());
  if (!engine.ok()) return fail(engine.status());
  const Json json = to_json(*engine, *plan, how);
  if (!arguments.html.empty())
    if (const int code =
            write_text(arguments.html, sim::render(page_of(arguments, *engine, *plan, how),
                                                   json.dump(-1, ' ', false, Json::error_handler_t::replace)));
        code != kExitOk)
      return code;
  if (!arguments.json.empty()) return write_json(arguments.json, json);
  print_plan(*engine, *plan, how);
  return kExitOk;
}

}  // namespace

void add_plan_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("plan", "how much memory is enough for a model, a trace and an objective");
  auto arguments = std::make_shared<SimulationArguments>();
  command->add_option("--trace", arguments->trace.path, "trace file; without it, numbers only");
  command
      ->add_option("--slo", arguments->objectives,
                   "what must hold: ttft_p95=2s, or several: ttft_p50=1s,ttft_p99=5s,tpot_p95=60ms (first token, and "
                   "each after it)")
      ->type_name("NAME=TIME");
  arguments->add_shared_to(*command);
  command->callback([arguments, &action] { action = [arguments] { return run_plan(*arguments); }; });
}

}  // namespace firn::cli
