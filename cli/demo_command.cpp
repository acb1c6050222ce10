// firn demo: prints what cli/demo.h measured.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/demo.h"
#include "cli/embedded.h"
#include "cli/process.h"
#include "cli/steps.h"
#include "cli/text.h"

namespace firn::cli {
namespace {

struct Arguments {
  std::string model;
  int repeats = 5;
  std::uint32_t document_tokens = 3000;
  std::string second_device = "auto";
  bool json = false, exact_only = false;
  SettingFlags settings;
};

std::string quantity(std::uint64_t number, std::string_view unit) {
  return fmt::format("{} {}{}", grouped(number), unit, number == 1 ? "" : "s");
}

template <class... T>
void say(fmt::format_string<T...> format, T&&... values) {
  fmt::print("{}\n", wrapped(fmt::format(format, std::forward<T>(values)...)));
}

void print_fit(const DemoReport& r) {
  say("{} on {}, {}.", r.model_name, r.device, quantity(r.threads, "thread"));
  say("A token has {} bytes of keys and values, so that there is room", grouped(r.token_bytes));
  const auto row = [&](const char* where, std::uint64_t bytes, std::uint64_t tokens, const char* how) {
    fmt::print("  {:<24} {:>9}: {:>6} tokens {}, {}\n", where, human_bytes(bytes), grouped(tokens), how,
               quantity(tokens / r.prompt_tokens, "session"));
  };
  row("in the pool of", r.pool_bytes, r.pool_tokens, "as they are");
  row("in the host tier of", r.host_bytes, r.host_tokens(), "compressed");
  say("A session here is a document and a question about it: {} tokens.\n", grouped(r.prompt_tokens));
}

void print_story(const DemoReport& r) {
  say("Q: {}\nA: {}\n", r.question, r.answer);
  say("Then {} tokens of other documents took the pool: {} slots were evicted, and all {} free ones overwritten. The "
      "host tier kept {} in {}, without loss ({:.2f}x).",
      grouped(r.other_tokens), grouped(r.slots_evicted), grouped(r.slots_poisoned), human_bytes(r.raw_bytes),
      human_bytes(r.frame_bytes), r.ratio());
  say("Asked again, {} of {} prompt tokens came back from the host tier.", grouped(r.prefix_tokens),
      grouped(r.prompt_tokens));
  if (r.answers_equal && r.blocks_equal == r.blocks_compared)
    say("=> Nothing was lost: all {} blocks have the hash they had before, and all {} tokens of the answer are the "
        "same, one by one, as before and as without a host tier.\n",
        grouped(r.blocks_compared), r.answer_tokens);
  else
    say("=> NOT THE SAME: {} of {} blocks have the hash they had, and the answers {}. This is a bug in firn, please "
        "report it.\n",
        grouped(r.blocks_equal), grouped(r.blocks_compared), r.answers_equal ? "agree" : "differ");
}

void print_row(const char* name, const Way& way) {
  const auto [least, most] = std::minmax_element(way.wall_s.begin(), way.wall_s.end());
  fmt::print("{:<26} {:>9.4f} {:>19} {:>11.4f}\n", name, median(way.wall_s),
             fmt::format("{:.4f} - {:.4f}", *least, *most), median(way.cpu_s));
}

void print_table(const DemoReport& r) {
  say("How long it takes until those {} tokens are there (medians of {}):", grouped(r.prefix_tokens),
      r.recompute.wall_s.size());
  fmt::print("{:<26} {:>9} {:>19} {:>11}\n", "", "seconds", "least - most", "CPU seconds");
  print_row("compute them again", r.recompute);
  print_row("restore from the host tier", r.restore);
  print_row("find them in the pool", r.pool);
  const double times = median(r.recompute.wall_s) / median(r.restore.wall_s);
  say("=> Restoring is {:.3g} times as fast as computing again, and takes {:.3g} times less of the CPU. Decoding goes "
      "on as before: {:.1f} ms a token, then {:.1f} ms.",
      times, median(r.recompute.cpu_s) / median(r.restore.cpu_s), r.decode_first_ms, r.decode_restored_ms);
  const BreakEven even = r.break_even();
  if (even.tokens)
    say("=> It pays for prefixes of {} tokens or more: restoring n tokens takes {:.2f} ms + n x {:.4f} ms, computing "
        "them n x {:.2f} ms.",
        grouped(*even.tokens), 1e3 * even.restore_fixed_s, 1e3 * even.restore_token_s, 1e3 * even.recompute_token_s);
  else
    say("=> IT DOES NOT PAY ON THIS MACHINE, at no length: set host.budget: off.");
  const double without = median(r.recompute.cpu_s) * r.prompt_tokens / r.prefix_tokens;
  say("=> Nothing is gained while all that people come back to fits into the pool ({} tokens here). What it costs: the "
      "first reading took {:.2f} CPU seconds with blocks stored beside it, and would take {:.2f} without.\n",
      grouped(r.pool_tokens), r.first_read.cpu_s, without);
}

// The best of those that change nearly nothing, and the smallest.
void print_lossy_verdict(const LossyReport& r) {
  const LossyRow *careful = nullptr, *smallest = nullptr;
  for (const LossyRow& row : r.rows) {
    if (row.codec == "exact") continue;
    if (row.top1 >= 0.99 && (careful == nullptr || row.ratio() > careful->ratio())) careful = &row;
    if (smallest == nullptr || row.ratio() > smallest->ratio()) smallest = &row;
  }
  if (careful != nullptr)
    say("=> {} takes {:.1f} times less memory and changes {:.1f} % of the model's choices.", careful->codec,
        careful->ratio(), 100 * (1 - careful->top1));
  if (smallest != nullptr && smallest != careful)
    say("=> {} takes {:.1f} times less and changes {:.1f} %: for prompts where that is a good trade, never for others "
        "(min_fidelity: exact).",
        smallest->codec, smallest->ratio(), 100 * (1 - smallest->top1));
}

void print_lossy(const LossyReport& r) {
  if (r.rows.empty()) return;
  say("The same document through codecs that are not exact, and what the model then makes of the {} tokens that follow "
      "it, beside the exact run:",
      grouped(r.scored_tokens));
  fmt::print("{:<9} {:>9} {:>10} {:>6} {:>10} {:>10} {:>8} {:>11}\n", "codec", "seconds", "memory", "ratio", "mean KLD",
             "p99 KLD", "top-1", "changes at");
  for (const LossyRow& row : r.rows) {
    const bool exact = row.codec == "exact";
    fmt::print("{:<9} {:>9.4f} {:>10} {:>6.2f} {:>10} {:>10} {:>8} {:>11}\n", exact ? "lossless" : row.codec,
               median(row.wall_s), human_bytes(row.frame_bytes), row.ratio(),
               exact ? "0" : fmt::format("{:.2e}", row.mean_kld), exact ? "0" : fmt::format("{:.2e}", row.p99_kld),
               exact ? "100 %" : fmt::format("{:.1f} %", 100 * row.top1),
               row.first_differing < 0 ? "never" : std::to_string(row.first_differing + 1));
  }
  say("seconds: of restoring {} tokens. KLD: how far the predicted probabilities move, in nats. top-1: how often the "
      "likeliest token is the same. changes at: the first of the {} tokens where it is another.",
      grouped(r.rows[0].tokens_restored), grouped(r.scored_tokens));
  print_lossy_verdict(r);
  if (r.calibration_s > 0)
    say("(kvtc was calibrated on {} tokens of other texts just now, in {:.0f} s. The next demo finds it in {}.)",
        grouped(r.calibration_tokens), r.calibration_s, r.artefact);
}

nlohmann::ordered_json lossy_json(const LossyReport& r) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const LossyRow& row : r.rows)
    rows.push_back({{"codec", row.codec},
                    {"restore_seconds", median(row.wall_s)},
                    {"restore_cpu_seconds", median(row.cpu_s)},
                    {"tokens_restored", row.tokens_restored},
                    {"frame_bytes", row.frame_bytes},
                    {"raw_bytes", row.raw_bytes},
                    {"ratio", row.ratio()},
                    {"mean_kld", row.mean_kld},
                    {"p99_kld", row.p99_kld},
                    {"top1", row.codec == "exact" ? 1.0 : row.top1},
                    {"first_differing_token", row.first_differing},
                    {"frames_lossy", row.frames_lossy},
                    {"frames_guarded", row.guarded}});
  return {{"document_tokens", r.document_tokens},       {"scored_tokens", r.scored_tokens}, {"artefact", r.artefact},
          {"calibration_tokens", r.calibration_tokens}, {"calibration_s", r.calibration_s}, {"rows", rows}};
}

nlohmann::ordered_json way_json(const Way& way) {
  if (way.wall_s.empty()) return nullptr;  // interrupted before
  return {{"seconds_median", median(way.wall_s)},
          {"cpu_seconds_median", median(way.cpu_s)},
          {"seconds", way.wall_s},
          {"cpu_seconds", way.cpu_s},
          {"tokens_reused", way.tokens_reused},
          {"pool_hits", way.pool_hits},
          {"frames_read", way.frames_read}};
}

void print_json(const DemoReport& r) {
  const bool timed = !r.short_restore.wall_s.empty() && !r.short_recompute.wall_s.empty();
  const BreakEven even = timed ? r.break_even() : BreakEven{};
  const auto ratio = [](const std::vector<double>& a, const std::vector<double>& b) {
    return a.empty() || b.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(median(a) / median(b));
  };
  const std::uint64_t session = std::max<std::uint64_t>(1, r.prompt_tokens);
  const nlohmann::ordered_json report{
      {"model", r.model_name},
      {"device", r.device},
      {"threads", r.threads},
      {"token_bytes", r.token_bytes},
      {"pool", {{"budget_bytes", r.pool_bytes}, {"tokens", r.pool_tokens}, {"sessions", r.pool_tokens / session}}},
      {"host",
       {{"budget_bytes", r.host_bytes},
        {"tokens", r.host_tokens()},
        {"sessions", r.host_tokens() / session},
        {"frame_bytes", r.frame_bytes},
        {"raw_bytes", r.raw_bytes},
        {"ratio", r.ratio()}}},
      {"prompt_tokens", r.prompt_tokens},
      {"prefix_tokens", r.prefix_tokens},
      {"question", r.question},
      {"answer", r.answer},
      {"answer_tokens", r.answer_tokens},
      {"answers_equal", r.answers_equal},
      {"blocks_compared", r.blocks_compared},
      {"blocks_equal", r.blocks_equal},
      {"slots_evicted", r.slots_evicted},
      {"slots_poisoned", r.slots_poisoned},
      {"recompute", way_json(r.recompute)},
      {"restore", way_json(r.restore)},
      {"found_in_pool", way_json(r.pool)},
      {"short_tokens", r.short_tokens},
      {"short_recompute", way_json(r.short_recompute)},
      {"short_restore", way_json(r.short_restore)},
      {"speedup_seconds", ratio(r.recompute.wall_s, r.restore.wall_s)},
      {"speedup_cpu_seconds", ratio(r.recompute.cpu_s, r.restore.cpu_s)},
      {"break_even_tokens", even.tokens ? nlohmann::ordered_json(*even.tokens) : nlohmann::ordered_json(nullptr)},
      {"restore_fixed_s", even.restore_fixed_s},
      {"restore_token_s", even.restore_token_s},
      {"recompute_token_s", even.recompute_token_s},
      {"first_read_s", r.first_read.wall_s},
      {"first_read_cpu_s", r.first_read.cpu_s},
      {"decode_ms_before", r.decode_first_ms},
      {"decode_ms_after", r.decode_restored_ms},
      {"lossy", lossy_json(r.lossy)},
      {"second_device", second_device_json(r.second_device)},
      {"complete", r.complete}};
  fmt::print("{}\n", report.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

// --config replaces the deployment that the program carries; flags and the environment change single settings of
// either.
Result<LoadedConfig> load_settings(const Arguments& arguments) {
  if (!arguments.settings.file.empty()) return arguments.settings.load();
  ConfigInput input{.file = "configs/demo.yaml",
                    .text = kDemoConfig,
                    .environment = firn_environment(),
                    .overrides = arguments.settings.overrides};
  return load_config(input);
}

int run(const Arguments& arguments) {
  const Result<LoadedConfig> loaded = load_settings(arguments);
  if (!loaded.ok()) return fail(loaded.status());
  if (loaded->config.host.budget_bytes == 0)
    return fail(Status(Code::kInvalidArgument, "the demo shows the host tier, and host.budget is off"));
  const Interruptible interruptible;
  DemoReport report;
  const auto print_part = [&](DemoPart part) {
    if (arguments.json) return;
    if (Steps* const steps = Steps::current()) steps->clear_line();
    if (part == DemoPart::kFit) print_fit(report);
    if (part == DemoPart::kStory) print_story(report);
    if (part == DemoPart::kTimes) print_table(report);
    if (part == DemoPart::kSecondDevice) print_second_device(report.second_device);
    if (part == DemoPart::kLossy) print_lossy(report.lossy);
    std::fflush(stdout);  // it is read while the rest is measured
  };
  const auto print_rest = [&] {  // of what was interrupted
    if (arguments.json) print_json(report);
    if (!arguments.json && !report.lossy.rows.empty()) print_lossy(report.lossy);
  };
  const Status status = run_demo({.model = arguments.model,
                                  .config = loaded->config,
                                  .repeats = arguments.repeats,
                                  .document_tokens = arguments.document_tokens,
                                  .second_device = arguments.second_device,
                                  .lossy = !arguments.exact_only,
                                  .on_signal = print_rest},
                                 print_part, report);
  if (!status.ok() && stop_signal() == 0) return fail(status);
  if (!status.ok()) {
    if (report.prompt_tokens != 0) print_rest();
    tell("firn: interrupted before all was measured\n");
    return kExitOk;  // the exit code is the signal's
  }
  if (arguments.json) print_json(report);
  return report.answers_equal && report.blocks_equal == report.blocks_compared && report.second_device.agrees()
             ? kExitOk
             : kExitCorrupt;
}

}  // namespace

void add_demo_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "demo", "ask a question about a document, push it out of the pool, ask again; measure everything");
  auto arguments = std::make_shared<Arguments>();
  command->add_option("--model", arguments->model, "a llama-family GGUF; without it, the demo's model")
      ->type_name("FILE");
  command->add_option("--repeats", arguments->repeats, "measurements of each kind")
      ->capture_default_str()
      ->check(CLI::Range(1, 99));
  command->add_option("--document-tokens", arguments->document_tokens, "how much of the document is read, at least")
      ->capture_default_str()
      ->check(CLI::Range(256, 6000));
  command
      ->add_option("--second-device", arguments->second_device,
                   "where one short question is repeated: auto (lavapipe after cpu, cpu after a GPU), off or a device")
      ->capture_default_str()
      ->type_name("DEVICE");
  command->add_flag("--exact-only", arguments->exact_only, "leave out the codecs that are not exact");
  command->add_flag("--json", arguments->json, "the numbers, for machines");
  arguments->settings.add_to(*command);
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace firn::cli
