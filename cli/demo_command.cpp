// firn demo: prints what cli/demo.h measured.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/demo.h"
#include "cli/embedded.h"
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

void print_fit(const DemoReport& r) {
  fmt::print("{}: {} bytes of keys and values per token\n", r.model_name, grouped(r.token_bytes));
  fmt::print("  pool  {:>9}: {:>6} tokens raw, {} of {} tokens\n", human_bytes(r.pool_bytes), grouped(r.pool_tokens),
             quantity(r.pool_tokens / r.prompt_tokens, "session"), grouped(r.prompt_tokens));
  fmt::print("  host  {:>9}: {:>6} tokens at the ratio measured below, {} of {} tokens\n", human_bytes(r.host_bytes),
             grouped(r.host_tokens()), quantity(r.host_tokens() / r.prompt_tokens, "session"),
             grouped(r.prompt_tokens));
}

void print_story(const DemoReport& r) {
  fmt::print("\nQ: {}\nA: {}\n\n", r.question, r.answer);
  fmt::print(
      "Then {} tokens of other sequences took the pool ({} slots evicted), and all {} free slots were overwritten.\n",
      grouped(r.other_tokens), grouped(r.slots_evicted), grouped(r.slots_poisoned));
  fmt::print("The host tier holds {} in {} of frames ({:.2f}x, lossless).\n", human_bytes(r.raw_bytes),
             human_bytes(r.frame_bytes), r.ratio());
  fmt::print("Asked again: {} of {} prompt tokens came back from it, {} of {} blocks with the hash they had before,\n",
             grouped(r.prefix_tokens), grouped(r.prompt_tokens), grouped(r.blocks_equal), grouped(r.blocks_compared));
  fmt::print("and the {} tokens of the answer are {}.\n\n", r.answer_tokens,
             r.answers_equal ? "the same, one by one, as before and as without a host tier"
                             : "NOT THE SAME: this is a bug in firn, please report it");
}

void print_row(const char* name, const Way& way) {
  const auto [least, most] = std::minmax_element(way.wall_s.begin(), way.wall_s.end());
  fmt::print("{:<25} {:>9.4f} {:>19} {:>9.4f} {:>8} {:>6} {:>7}\n", name, median(way.wall_s),
             fmt::format("{:.4f} - {:.4f}", *least, *most), median(way.cpu_s), grouped(way.tokens_reused),
             grouped(way.pool_hits), grouped(way.frames_read));
}

void print_table(const DemoReport& r) {
  fmt::print("{:<25} {:>9} {:>19} {:>9} {:>8} {:>6} {:>7}\n", fmt::format("{} tokens", grouped(r.prefix_tokens)),
             "seconds", "least - most", "CPU s", "tokens", "pool", "frames");
  fmt::print("{:<25} {:>9} {:>19} {:>9} {:>8} {:>6} {:>7}\n", fmt::format("(medians of {})", r.recompute.wall_s.size()),
             "", "", "", "reused", "hits", "read");
  print_row("recompute the prefix", r.recompute);
  print_row("restore it from host", r.restore);
  print_row("found in the pool", r.pool);
  fmt::print("\nRecomputing takes {:.3g} times as long as restoring, and {:.3g} times the CPU seconds.\n",
             median(r.recompute.wall_s) / median(r.restore.wall_s),
             median(r.recompute.cpu_s) / median(r.restore.cpu_s));
  fmt::print("Decoding: {:.1f} ms a token before, {:.1f} ms after.\n", r.decode_first_ms, r.decode_restored_ms);
}

// When all this is not worth having.
void print_verdict(const DemoReport& r) {
  const BreakEven even = r.break_even();
  fmt::print("\nRestoring n tokens takes {:.2f} ms + n x {:.4f} ms, recomputing n x {:.2f} ms (short prompts):\n",
             1e3 * even.restore_fixed_s, 1e3 * even.restore_token_s, 1e3 * even.recompute_token_s);
  if (even.tokens)
    fmt::print("  it pays from {} tokens on; below that, recompute.\n", grouped(*even.tokens));
  else
    fmt::print("  IT DOES NOT PAY ON THIS MACHINE, at no length: set host.budget: off.\n");
  fmt::print(
      "Nothing is gained while what people come back to fits into the pool ({} tokens here): it is found there\n"
      "in {:.2f} ms, and the host tier is never read.\n",
      grouped(r.pool_tokens), 1e3 * median(r.pool.wall_s));
  const double press = r.first_read.cpu_s - median(r.recompute.cpu_s) * r.prompt_tokens / r.prefix_tokens;
  fmt::print("What it costs: the first reading, with blocks pressed beside it, took {:.2f} CPU s; without, {:.2f}.\n",
             r.first_read.cpu_s, r.first_read.cpu_s - press);
}

void print_lossy(const LossyReport& r) {
  if (r.rows.empty()) return;
  fmt::print(
      "\nThe same document through codecs that are not exact, and the {} tokens that follow it, against the exact "
      "run:\n",
      grouped(r.scored_tokens));
  if (r.calibration_s > 0)
    fmt::print("(kvtc was calibrated on {} tokens of other texts just now, in {:.0f} s; {} keeps it)\n",
               grouped(r.calibration_tokens), r.calibration_s, r.artefact);
  fmt::print("{:<10} {:>9} {:>9} {:>10} {:>6} {:>10} {:>10} {:>8} {:>15} {:>9}\n", "codec", "seconds", "CPU s",
             "host bytes", "ratio", "mean KLD", "p99 KLD", "top-1", "first differing", "guarded");
  for (const LossyRow& row : r.rows) {
    const bool exact = row.codec == "exact";
    fmt::print("{:<10} {:>9.4f} {:>9.4f} {:>10} {:>6.2f} {:>10} {:>10} {:>8} {:>15} {:>9}\n",
               exact ? "lossless" : row.codec, median(row.wall_s), median(row.cpu_s), human_bytes(row.frame_bytes),
               row.ratio(), exact ? "0" : fmt::format("{:.2e}", row.mean_kld),
               exact ? "0" : fmt::format("{:.2e}", row.p99_kld),
               exact ? "100 %" : fmt::format("{:.1f} %", 100 * row.top1),
               row.first_differing < 0 ? "none" : std::to_string(row.first_differing + 1), row.guarded);
  }
  fmt::print("Seconds are of restoring {} tokens into an empty pool. Sinks and recent window are raw in every row.\n",
             grouped(r.rows[0].tokens_restored));
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
  return {{"seconds_median", median(way.wall_s)},
          {"cpu_seconds_median", median(way.cpu_s)},
          {"seconds", way.wall_s},
          {"cpu_seconds", way.cpu_s},
          {"tokens_reused", way.tokens_reused},
          {"pool_hits", way.pool_hits},
          {"frames_read", way.frames_read}};
}

void print_json(const DemoReport& r) {
  const BreakEven even = r.break_even();
  const nlohmann::ordered_json report{
      {"model", r.model_name},
      {"device", r.device},
      {"threads", r.threads},
      {"token_bytes", r.token_bytes},
      {"pool",
       {{"budget_bytes", r.pool_bytes}, {"tokens", r.pool_tokens}, {"sessions", r.pool_tokens / r.prompt_tokens}}},
      {"host",
       {{"budget_bytes", r.host_bytes},
        {"tokens", r.host_tokens()},
        {"sessions", r.host_tokens() / r.prompt_tokens},
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
      {"speedup_seconds", median(r.recompute.wall_s) / median(r.restore.wall_s)},
      {"speedup_cpu_seconds", median(r.recompute.cpu_s) / median(r.restore.cpu_s)},
      {"break_even_tokens", even.tokens ? nlohmann::ordered_json(*even.tokens) : nlohmann::ordered_json(nullptr)},
      {"restore_fixed_s", even.restore_fixed_s},
      {"restore_token_s", even.restore_token_s},
      {"recompute_token_s", even.recompute_token_s},
      {"first_read_s", r.first_read.wall_s},
      {"first_read_cpu_s", r.first_read.cpu_s},
      {"decode_ms_before", r.decode_first_ms},
      {"decode_ms_after", r.decode_restored_ms},
      {"lossy", lossy_json(r.lossy)},
      {"second_device", second_device_json(r.second_device)}};
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
  const Result<DemoReport> report = run_demo({.model = arguments.model,
                                              .config = loaded->config,
                                              .repeats = arguments.repeats,
                                              .document_tokens = arguments.document_tokens,
                                              .second_device = arguments.second_device,
                                              .lossy = !arguments.exact_only});
  if (!report.ok()) return fail(report.status());
  if (arguments.json) {
    print_json(*report);
  } else {
    print_fit(*report);
    print_story(*report);
    print_table(*report);
    print_verdict(*report);
    print_lossy(report->lossy);
    print_second_device(report->second_device);
  }
  return report->answers_equal && report->blocks_equal == report->blocks_compared && report->second_device.agrees()
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
