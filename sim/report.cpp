#include "sim/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "sim/page.h"

namespace firn::sim {
namespace {

using Json = nlohmann::ordered_json;

double share(double part, double all) { return all > 0 ? part / all : 0; }
double share(std::uint64_t part, std::uint64_t all) {
  return share(static_cast<double>(part), static_cast<double>(all));
}
// Enough digits to compare, few enough to read; the same text wherever the same number was computed.
double round4(double value) {
  if (value == 0) return 0;
  const double scale = std::pow(10.0, 5 - std::ceil(std::log10(std::abs(value))));
  return std::round(value * scale) / scale;
}

Json to_json(const Percentiles& p) {
  return {{"mean", round4(p.mean)}, {"p50", round4(p.p50)}, {"p90", round4(p.p90)},
          {"p95", round4(p.p95)},   {"p99", round4(p.p99)}, {"max", round4(p.most)}};
}

Json samples_json(const EngineResult& r) {
  Json samples = Json::array();
  for (const Sample& s : r.samples)
    samples.push_back({{"seconds", round4(s.seconds)},
                       {"pool_live", round4(s.pool_live)},
                       {"pool_cached", round4(s.pool_cached)},
                       {"host", round4(s.host)},
                       {"disk", round4(s.disk)},
                       {"waiting", s.waiting},
                       {"running", s.running},
                       {"input_tokens", s.input_tokens},
                       {"hit_tokens", s.hit_tokens},
                       {"first_tokens", s.first_tokens},
                       {"ttft_mean_s", round4(share(s.ttft_sum_s, static_cast<double>(s.first_tokens)))},
                       {"device_busy", round4(share(s.busy_s, s.length_s))},
                       {"host_up_bytes", s.host_up_bytes},
                       {"host_down_bytes", s.host_down_bytes},
                       {"disk_up_bytes", s.disk_up_bytes},
                       {"disk_down_bytes", s.disk_down_bytes}});
  return samples;
}

Json advice_json(const EngineOptions& o, const EngineResult& r, const Advice* advice) {
  const Diagnosis diagnosis = advice != nullptr ? advice->diagnosis : diagnose(o, r);
  Json json = {{"bottleneck", diagnosis.text},
               {"next", advice != nullptr ? advice->next : ""},
               {"overload", diagnosis.overload},
               {"while_waiting",
                {{"device_busy", round4(diagnosis.busy)},
                 {"only_blocks_missing", round4(diagnosis.memory)},
                 {"all_places_taken", round4(diagnosis.places)},
                 {"link_busy", round4(diagnosis.link)}}}};
  if (advice == nullptr) return json;
  Json tried = Json::array();
  for (const Tried& one : advice->tried)
    tried.push_back({{"change", one.change},
                     {"note", one.note},
                     {"complete", one.complete},
                     {"ttft_p50_s", round4(one.ttft_p50)},
                     {"ttft_p95_s", round4(one.ttft_p95)},
                     {"refused", one.refused},
                     {"gains", one.gains}});
  Json what_if = Json::array();
  for (const WhatIf& one : advice->what_if)
    what_if.push_back({{"twice", to_string(one.what)}, {"ttft_p95_s", round4(one.ttft_p95)}, {"gains", one.gains}});
  json["what_if"] = what_if;
  json["tried"] = tried;
  json["objective"] = to_string(advice->objective);
  json["carried_requests_per_s"] = advice->rate.carried ? Json(round4(advice->rate.carried->rate)) : Json();
  json["asked_requests_per_s"] = round4(advice->load.rate * o.time_scale);
  return json;
}

Json make_json(const EngineOptions& o, const EngineResult& r, const Advice* advice) {
  const std::uint64_t tokens = r.hit_tokens_pool + r.hit_tokens_host + r.hit_tokens_disk;
  const std::uint64_t hits = r.hits_pool + r.hits_host + r.hits_disk;
  return {
      {"complete", r.complete},
      {"through_manager", r.through_manager},
      {"device", o.device.name},
      {"model", o.model.name},
      {"policy", o.policy},
      {"host_policy", o.host_policy.empty() ? o.policy : o.host_policy},
      {"exclusive", o.exclusive},
      {"devices", o.device.count},
      {"codec", o.codec},
      {"codec_ratio", o.codec_ratio},
      {"codec_bytes_per_s", o.codec_bytes_per_s},
      {"codec_source", o.codec_source.empty() ? "assumed" : o.codec_source},
      {"block_tokens", r.block_tokens},
      {"block_bytes", r.block_bytes},
      {"pool_blocks", r.pool_blocks},
      {"host_blocks", r.host_blocks},
      {"disk_blocks", r.disk_blocks},
      {"requests", r.requests},
      {"finished", r.finished},
      {"refused", r.refused},
      {"seconds", round4(r.seconds)},
      {"input_tokens", r.input_tokens},
      {"output_tokens", r.output_tokens},
      {"blocks", r.blocks},
      {"hits", {{"pool", r.hits_pool}, {"host", r.hits_host}, {"disk", r.hits_disk}}},
      {"block_hit_ratio", round4(share(hits, r.blocks))},
      {"token_hit_ratio", round4(share(tokens, r.input_tokens))},
      {"token_hits", {{"pool", r.hit_tokens_pool}, {"host", r.hit_tokens_host}, {"disk", r.hit_tokens_disk}}},
      {"misses",
       {{"never_stored", r.miss_never_stored},
        {"evicted", r.miss_evicted},
        {"after_miss", r.miss_after_miss},
        {"recompute_cheaper", r.miss_recompute_cheaper},
        {"tail", r.miss_tail}}},
      {"ttft_s", to_json(r.ttft_s)},
      {"token_s", to_json(r.tpot_s)},
      {"queue_s", to_json(r.queue_s)},
      {"preemptions", r.preemptions},
      {"recomputed_tokens", r.recomputed_tokens},
      {"bytes",
       {{"host_down", r.host_down_bytes},
        {"host_up", r.host_up_bytes},
        {"disk_down", r.disk_down_bytes},
        {"disk_up", r.disk_up_bytes}}},
      {"evictions", {{"pool", r.pool_evictions}, {"host", r.host_evictions}}},
      {"stored_blocks", r.stored_blocks},
      {"stored_read_again", r.stored_read_again},
      {"eviction_age_s", to_json(r.eviction_age_s)},
      {"busy",
       {{"compute", round4(share(r.compute_busy_s, r.seconds))},
        {"prefill", round4(share(r.prefill_s, r.seconds))},
        {"host_up", round4(share(r.host_up_busy_s, r.seconds))},
        {"host_down", round4(share(r.host_down_busy_s, r.seconds))},
        {"waiting_for_memory", round4(share(r.waiting_for_memory_s, r.seconds))}}},
      {"cost", round4(r.cost)},
      {"cost_per_million_tokens", round4(share(r.cost * 1e6, static_cast<double>(r.input_tokens + r.output_tokens)))},
      {"bad_line_count", r.bad_line_count},
      {"advice", advice_json(o, r, advice)},
      {"samples", samples_json(r)}};
}

std::string gib(double bytes) { return fmt::format("{:.1f} GiB", bytes / (1024.0 * 1024 * 1024)); }

// What is in the numbers beside the trace: everything that was set, and what nobody measured.
void fill_settings(Page& page, const EngineOptions& o, const EngineResult& r) {
  const auto set = [&page](const char* key, std::string value) { page.settings.emplace_back(key, std::move(value)); };
  set("device",
      fmt::format("{}: {:.3g} flop/s at {:.0f} % for prompts, {:.3g} GB/s at {:.0f} % for making tokens, {} of memory",
                  o.device.name, o.device.flops, 100 * o.device.prefill_efficiency, o.device.memory_bandwidth / 1e9,
                  100 * o.device.decode_efficiency, short_bytes(static_cast<double>(o.device.memory_bytes))));
  set("links",
      fmt::format("host {:.3g} GB/s, disk {:.3g} GB/s each way", o.device.host_link / 1e9, o.device.disk_link / 1e9));
  set("model", fmt::format("{}: {:.3g} parameters ({:.3g} a token), weights {}, {:.1f} bits each", o.model.name,
                           o.model.parameters, o.model.active_parameters, short_bytes(o.model.weight_bytes),
                           o.model.weight_bits));
  set("keys and values",
      fmt::format("{} bytes a token; blocks of {} tokens", grouped_number(o.model.token_bytes()), r.block_tokens));
  set("memory",
      fmt::format("pool {}, host {}, disk {}", short_bytes(static_cast<double>(o.pool_bytes)),
                  short_bytes(static_cast<double>(o.host_bytes)), short_bytes(static_cast<double>(o.disk_bytes))));
  set("policy", fmt::format("pool {}, below {}{}{}", o.policy, o.host_policy.empty() ? o.policy : o.host_policy,
                            o.exclusive ? ", exclusive" : "", o.admit_second_use ? ", stored at the second use" : ""));
  set("codec", fmt::format("{}: ratio {:.2f}, {:.2g} GB/s, {}", o.codec, o.codec_ratio, o.codec_bytes_per_s / 1e9,
                           o.codec_source.empty() ? "assumed" : o.codec_source));
  set("steps", fmt::format("at most {} tokens and {} sequences; {:.1f} % of the pool kept free by admission",
                           grouped_number(o.max_step_tokens), grouped_number(o.max_sequences), 100 * o.watermark));
  set("arrivals",
      o.time_scale == 1 ? std::string("as recorded") : fmt::format("{:.4g} times as fast as recorded", o.time_scale));
  set("engine", r.through_manager ? "the library's own manager" : "the timing model alone");
  page.assumptions.push_back(
      "Efficiencies, overheads, links at 0.8 of their specification and all prices; the device file says which.");
  page.assumptions.push_back(
      o.codec_source.empty()
          ? "The codec's ratio and speed."
          : "That the codec does with this model what it did where it was measured: " + o.codec_source + ".");
  page.assumptions.push_back(
      "Outputs are not reused, because traces do not name them; windows of layers are charged in full.");
  if (o.device.count > 1)
    page.assumptions.push_back(
        "Devices share a model by tensor parallelism: two sums a layer over the device link, 10 us to begin each.");
}

PageChart over_time(const EngineResult& r, const char* title, const char* y_name, PageUnit unit) {
  PageChart chart{
      .title = title, .x_name = "simulated time", .y_name = y_name, .x_unit = PageUnit::kSeconds, .y_unit = unit};
  for (const Sample& s : r.samples) chart.x.push_back(s.seconds);
  return chart;
}

template <class Value>
void add_series(PageChart& chart, const EngineResult& r, const char* name, const Value& value) {
  PageSeries series{name, {}};
  for (const Sample& s : r.samples) series.y.push_back(static_cast<double>(value(s)));
  chart.series.push_back(std::move(series));
}

void fill_charts(Page& page, const EngineResult& r) {
  const double none = std::numeric_limits<double>::quiet_NaN();
  PageChart hits = over_time(r, "Hit rate: input tokens found in a cache", "share", PageUnit::kShare);
  add_series(hits, r, "of what was admitted in the interval",
             [&](const Sample& s) { return s.input_tokens == 0 ? none : share(s.hit_tokens, s.input_tokens); });
  page.charts.push_back(std::move(hits));
  if (!r.through_manager) {
    PageChart ttft = over_time(r, "Time to the first token", "mean of the interval", PageUnit::kSeconds);
    add_series(ttft, r, "mean of those that came out in the interval", [&](const Sample& s) {
      return s.first_tokens == 0 ? none : s.ttft_sum_s / static_cast<double>(s.first_tokens);
    });
    page.charts.push_back(std::move(ttft));
  }
  PageChart waiting = over_time(r, "Requests that wait for their turn", "requests", PageUnit::kCount);
  add_series(waiting, r, "waiting", [](const Sample& s) { return s.waiting; });
  page.charts.push_back(std::move(waiting));
  PageChart running = over_time(r, "Requests that run", "requests", PageUnit::kCount);
  add_series(running, r, "running", [](const Sample& s) { return s.running; });
  page.charts.push_back(std::move(running));
  PageChart busy = over_time(r, "How busy the device is", "share of the interval", PageUnit::kShare);
  add_series(busy, r, "computing", [](const Sample& s) { return std::min(1.0, share(s.busy_s, s.length_s)); });
  page.charts.push_back(std::move(busy));
  PageChart full = over_time(r, "How full the tiers are", "share of capacity", PageUnit::kShare);
  add_series(full, r, "pool, held", [](const Sample& s) { return s.pool_live; });
  add_series(full, r, "pool, held or cached", [](const Sample& s) { return s.pool_live + s.pool_cached; });
  if (r.host_blocks != 0) add_series(full, r, "host", [](const Sample& s) { return s.host; });
  if (r.disk_blocks != 0) add_series(full, r, "disk", [](const Sample& s) { return s.disk; });
  page.charts.push_back(std::move(full));
  if (r.host_blocks != 0) {
    PageChart link = over_time(r, "Moved between pool and host", "bytes of the interval", PageUnit::kBytes);
    add_series(link, r, "to the host", [](const Sample& s) { return s.host_down_bytes; });
    add_series(link, r, "from the host", [](const Sample& s) { return s.host_up_bytes; });
    page.charts.push_back(std::move(link));
  }
  if (r.disk_blocks != 0) {
    PageChart link = over_time(r, "Moved between host and disk", "bytes of the interval", PageUnit::kBytes);
    add_series(link, r, "to the disk", [](const Sample& s) { return s.disk_down_bytes; });
    add_series(link, r, "from the disk", [](const Sample& s) { return s.disk_up_bytes; });
    page.charts.push_back(std::move(link));
  }
}

void fill_numbers(Page& page, const EngineResult& r) {
  const std::uint64_t hits = r.hit_tokens_pool + r.hit_tokens_host + r.hit_tokens_disk;
  page.cards = {{"token_hit_ratio", "input tokens from cache", short_share(share(hits, r.input_tokens))},
                {"ttft_p50", "first token, p50", short_time(r.ttft_s.p50)},
                {"ttft_p95", "first token, p95", short_time(r.ttft_s.p95)},
                {"queue_p95", "of that in the queue, p95", short_time(r.queue_s.p95)},
                {"token_p50", "each token, p50", short_time(r.tpot_s.p50)},
                {"finished", "requests finished",
                 fmt::format("{} of {}", grouped_number(r.finished), grouped_number(r.requests))},
                {"preemptions", "preemptions", grouped_number(r.preemptions)},
                {"host_down", "to the host", short_bytes(static_cast<double>(r.host_down_bytes))},
                {"host_up", "from the host", short_bytes(static_cast<double>(r.host_up_bytes))},
                {"cost", "dollars a million tokens",
                 fmt::format("{:.3g}", share(r.cost * 1e6, static_cast<double>(r.input_tokens + r.output_tokens)))}};
  const auto blocks = [&r](const std::string& name, std::uint64_t count, const std::string& id) {
    return PageRow{name, fmt::format("{} ({})", grouped_number(count), short_share(share(count, r.blocks))), id,
                   share(count, r.blocks)};
  };
  page.bars.push_back({fmt::format("Where the {} blocks of prompts came from", grouped_number(r.blocks)),
                       {blocks("pool", r.hits_pool, "hits_pool"), blocks("host", r.hits_host, "hits_host"),
                        blocks("disk", r.hits_disk, "hits_disk")}});
  page.bars.push_back(
      {"Why the rest missed",
       {blocks("never computed before, or still being computed", r.miss_never_stored, "miss_never_stored"),
        blocks("computed before, and gone from every tier", r.miss_evicted, "miss_evicted"),
        blocks("here, but behind a block that is not", r.miss_after_miss, "miss_after_miss"),
        blocks("in a lower tier, and quicker to compute than to load", r.miss_recompute_cheaper,
               "miss_recompute_cheaper"),
        blocks("holds the last token, which is always computed", r.miss_tail, "miss_tail")}});
  const auto times = [](const char* title, const Percentiles& p, const std::string& id) {
    PageBars bars{title, {}};
    for (const auto& [name, value] :
         {std::pair{"p50", p.p50}, {"p90", p.p90}, {"p95", p.p95}, {"p99", p.p99}, {"longest", p.most}})
      bars.rows.push_back({name, short_time(value), id + name, share(value, p.most)});
    return bars;
  };
  page.bars.push_back(times("Time to the first token", r.ttft_s, "ttft_row_"));
  page.bars.push_back(times("Time per token after it", r.tpot_s, "tpot_row_"));
  page.bars.push_back(times("Age of evicted blocks, since their last use", r.eviction_age_s, "age_"));
}

}  // namespace

std::string report_json(const EngineOptions& options, const EngineResult& result, const Advice* advice) {
  return make_json(options, result, advice).dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string report_text(const std::string& trace, const EngineOptions& o, const EngineResult& r, const Advice* advice) {
  const Diagnosis diagnosis = advice != nullptr ? advice->diagnosis : diagnose(o, r);
  std::string text;
  const auto line = [&text](const char* name, const std::string& what) {
    text += fmt::format("{:<14}{}\n", name, what);
  };
  text += fmt::format("{} on {}, {}, policy {}{}\n\n", trace, o.device.name, o.model.name, o.policy,
                      r.complete ? "" : " (stopped early: what follows is a part)");
  line("memory", fmt::format("pool {} = {} tokens; host {} = {} tokens", gib(static_cast<double>(o.pool_bytes)),
                             r.pool_blocks * r.block_tokens, gib(static_cast<double>(o.host_bytes)),
                             r.host_blocks * r.block_tokens));
  if (r.host_blocks > 0)  // the manager has no speed of a codec
    line("codec",
         fmt::format("{}: ratio {:.2f}{}, {}", o.codec, o.codec_ratio,
                     r.through_manager ? "" : fmt::format(", {:.2f} GB/s", o.codec_bytes_per_s / 1e9),
                     o.codec_source.empty() ? "assumed (--codec-figures takes measured ones)" : o.codec_source));
  line("requests", fmt::format("{} in {:.1f} min; {} finished, {} refused", grouped_number(r.requests), r.seconds / 60,
                               grouped_number(r.finished), grouped_number(r.refused)));
  line("cache hits",
       fmt::format("{:.1f} % of the input tokens ({:.1f} pool, {:.1f} host, {:.1f} disk)",
                   100 * share(r.hit_tokens_pool + r.hit_tokens_host + r.hit_tokens_disk, r.input_tokens),
                   100 * share(r.hit_tokens_pool, r.input_tokens), 100 * share(r.hit_tokens_host, r.input_tokens),
                   100 * share(r.hit_tokens_disk, r.input_tokens)));
  line("misses",
       fmt::format("{:.1f} % of the blocks never seen, {:.1f} % evicted, {:.1f} % behind one that was, {:.1f} % "
                   "cheaper to compute",
                   100 * share(r.miss_never_stored, r.blocks), 100 * share(r.miss_evicted, r.blocks),
                   100 * share(r.miss_after_miss, r.blocks), 100 * share(r.miss_recompute_cheaper, r.blocks)));
  line("first token", fmt::format("p50 {}, p95 {}, p99 {}; of that in the queue p50 {}, p95 {}",
                                  short_time(r.ttft_s.p50), short_time(r.ttft_s.p95), short_time(r.ttft_s.p99),
                                  short_time(r.queue_s.p50), short_time(r.queue_s.p95)));
  line("each token", fmt::format("p50 {}, p95 {}; {} preemptions", short_time(r.tpot_s.p50), short_time(r.tpot_s.p95),
                                 r.preemptions));
  line("busy",
       fmt::format("device {:.0f} % (prompts {:.0f} %), link down {:.0f} %, up {:.0f} %; memory awaited {:.0f} %",
                   100 * share(r.compute_busy_s, r.seconds), 100 * share(r.prefill_s, r.seconds),
                   100 * share(r.host_down_busy_s, r.seconds), 100 * share(r.host_up_busy_s, r.seconds),
                   100 * share(r.waiting_for_memory_s, r.seconds)));
  line("moved", fmt::format("{} to the host, {} back; {:.0f} % of the stored blocks were read again",
                            gib(static_cast<double>(r.host_down_bytes)), gib(static_cast<double>(r.host_up_bytes)),
                            100 * share(r.stored_read_again, r.stored_blocks)));
  line("cost", fmt::format("{:.3g} dollars a million tokens at {:.2f} an hour, which is assumed",
                           share(r.cost * 1e6, static_cast<double>(r.input_tokens + r.output_tokens)),
                           o.device.price_per_hour));
  text += "\n" + diagnosis.text + "\n";
  if (advice != nullptr && !advice->next.empty()) text += advice->next + "\n";
  return text;
}

std::string report_html(const std::string& trace, const EngineOptions& options, const EngineResult& result,
                        const Advice* advice) {
  Page page;
  page.title = fmt::format("{} on {}, {}", trace, options.device.name, options.model.name);
  page.say = (advice != nullptr ? advice->diagnosis : diagnose(options, result)).text;
  if (advice != nullptr) page.say += " " + advice->next;
  if (!result.complete) page.say = "Stopped early: what follows is a part. " + page.say;
  fill_numbers(page, result);
  fill_charts(page, result);
  if (advice != nullptr && !advice->tried.empty()) {
    PageTable table{"What was tried", {"change", "first token p50", "p95", ""}, {}};
    for (const Tried& one : advice->tried)
      table.rows.push_back({one.change, one.complete ? short_time(one.ttft_p50) : "",
                            one.complete ? short_time(one.ttft_p95) : "",
                            one.gains      ? "helps"
                            : one.complete ? "no help"
                                           : "given up: too many too late"});
    page.tables.push_back(std::move(table));
  }
  fill_settings(page, options, result);
  return render(page, Json{{"trace", trace}, {"report", make_json(options, result, advice)}}.dump(
                          -1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace firn::sim
