// firn eval: what codecs do to a model's predictions, measured.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/evaluation.h"
#include "cli/process.h"
#include "core/base/file_out.h"

namespace firn::cli {
namespace {

struct EvalFlags {
  std::string model, json;
  std::vector<std::string> texts, artefacts, codecs = {"lossless", "q8", "q4"};
  EvaluationOptions options;
  std::uint32_t windows = 4;
  bool fast = false;
};

void print_table(const std::vector<Evaluation>& results) {
  fmt::print(
      "| codec | bits an element, as served | perplexity, change (95 %) | mean KLD (95 %) | p99 KLD | max KLD | top-1 "
      "(95 %) | "
      "lossless by guard |\n");
  fmt::print("|---|---|---|---|---|---|---|---|\n");
  const auto percent = [](double change) { return 100 * (std::exp(change) - 1); };
  for (const Evaluation& r : results)
    fmt::print(
        "| {} | {:.2f}, {:.2f} | {:.3f}, {:+.2f} % ({:+.2f} to {:+.2f}) | {:.2e} ({:.2e} to {:.2e}) | {:.2e} | {:.2e} "
        "| "
        "{:.2f} % ({:.2f} to {:.2f}) | {} of {} |\n",
        r.codec, r.bits, r.served_bits, r.perplexity(), percent(r.loss - r.exact_loss), percent(r.loss_change_95.low),
        percent(r.loss_change_95.high), r.mean_kld, r.kld_95.low, r.kld_95.high, r.p99_kld, r.max_kld, 100 * r.top1,
        100 * r.top1_95.low, 100 * r.top1_95.high, r.guarded, r.frames);
}

void print_curve(const char* what, const std::vector<AttentionErrors::Sum>& sums) {
  fmt::print("  {:<34}", what);
  for (const AttentionErrors::Sum& sum : sums) fmt::print(" {:.4f}", sum.relative());
  fmt::print("\n");
}

void print_attention(const std::vector<Evaluation>& results) {
  fmt::print(
      "\nInside attention, keys and values of the exact run through the codec, read by that run's queries: logits "
      "(root "
      "mean\nsquare of the change) and outputs of heads (change relative to the output); eighths of the context must "
      "look alike.\n");
  for (const Evaluation& r : results) {
    const AttentionErrors& a = r.attention;
    const double mb = static_cast<double>(a.raw_bytes) / 1e6;
    fmt::print(
        "\n{}: encode {:.2f} s, decode {:.2f} s of one CPU ({:.0f} and {:.0f} MB/s of raw bytes); {} of {} extents "
        "above the bound\n",
        r.codec, a.encode_cpu_s, a.decode_cpu_s, mb / std::max(1e-9, a.encode_cpu_s),
        mb / std::max(1e-9, a.decode_cpu_s), a.guarded, a.extents);
    print_curve("logits by position of the key", a.logits_by_key);
    print_curve("outputs by position of the query", a.outputs_by_query);
    print_curve("logits by layer", a.logits);
    print_curve("outputs by layer", a.outputs);
    print_curve("keys by layer, relative", a.keys);
    print_curve("values by layer, relative", a.values);
  }
}

nlohmann::json curve_json(const std::vector<AttentionErrors::Sum>& sums) {
  nlohmann::json json = nlohmann::json::array();
  for (const AttentionErrors::Sum& sum : sums) json.push_back(sum.relative());
  return json;
}

nlohmann::json row_json(const Evaluation& r) {
  const auto interval = [](Interval i) { return nlohmann::json{i.low, i.high}; };
  const AttentionErrors& a = r.attention;
  return {{"codec", r.codec},
          {"tokens", r.tokens},
          {"bits", r.bits},
          {"served_bits", r.served_bits},
          {"loss", r.loss},
          {"exact_loss", r.exact_loss},
          {"perplexity", r.perplexity()},
          {"exact_perplexity", r.exact_perplexity()},
          {"loss_change_95", interval(r.loss_change_95)},
          {"mean_kld", r.mean_kld},
          {"mean_kld_95", interval(r.kld_95)},
          {"p99_kld", r.p99_kld},
          {"max_kld", r.max_kld},
          {"top1", r.top1},
          {"top1_95", interval(r.top1_95)},
          {"frames", r.frames},
          {"guarded", r.guarded},
          {"seconds", r.seconds},
          {"encode_cpu_s", a.encode_cpu_s},
          {"decode_cpu_s", a.decode_cpu_s},
          {"raw_bytes", a.raw_bytes},
          {"frame_bytes", a.frame_bytes},
          {"logit_error_by_layer", curve_json(a.logits)},
          {"output_error_by_layer", curve_json(a.outputs)},
          {"key_error_by_layer", curve_json(a.keys)},
          {"value_error_by_layer", curve_json(a.values)},
          {"logit_error_by_key_position", curve_json(a.logits_by_key)},
          {"output_error_by_query_position", curve_json(a.outputs_by_query)}};
}

// kvtc and firn once for each artefact of theirs; with several, rows say how many layers a stack has.
Result<std::vector<EvaluatedCodec>> codecs_of(const EvalFlags& flags) {
  std::vector<EvaluatedCodec> codecs;
  for (const std::string& name : flags.codecs) {
    const bool is_firn = name.rfind("firn", 0) == 0;
    if (!is_firn && name.rfind("kvtc", 0) != 0) {
      codecs.push_back({name, "", ""});
      continue;
    }
    if (flags.artefacts.empty())
      return Status(Code::kInvalidArgument, fmt::format("--codecs {}: needs --artefact", name));
    const std::size_t before = codecs.size();
    for (const std::string& path : flags.artefacts) {
      FIRN_ASSIGN(const std::shared_ptr<const Artefact> artefact, load_artefact(path));
      if (describe(*artefact).codec != (is_firn ? CodecId::kFirn : CodecId::kKvtc)) continue;
      const std::uint32_t layers = describe(*artefact).stack_layers;
      const std::string stack = layers == 0 ? "all" : std::to_string(layers);
      codecs.push_back({name, path, flags.artefacts.size() == 1 ? "" : fmt::format("{}, stack {}", name, stack)});
    }
    if (codecs.size() == before)
      return Status(Code::kInvalidArgument, fmt::format("--codecs {}: no --artefact is of that codec", name));
  }
  return codecs;
}

Status run(const EvalFlags& flags) {
  EvaluationOptions options = flags.options;
  options.attention = !flags.fast;
  if (options.state.empty() && !flags.json.empty()) options.state = flags.json + ".part";
  // A bad name is told now, not in an hour.
  if (!flags.json.empty()) FIRN_TRY(FileOut::create(flags.json, Readers::kAnyone).status());
  FIRN_ASSIGN(const std::vector<EvaluatedCodec> codecs, codecs_of(flags));
  FIRN_ASSIGN(const std::unique_ptr<LoadedModel> model, LoadedModel::load(flags.model));
  FIRN_ASSIGN(const auto windows, windows_of(*model, flags.texts, options.context + 1, flags.windows));
  const Interruptible interruptible;
  FIRN_ASSIGN(const std::vector<Evaluation> results, evaluate(*model, windows, codecs, options));
  const std::size_t measured = results.empty() ? 0 : results[0].windows;
  if (measured != windows.size()) fmt::print("Stopped: this is of {} of {} windows.\n", measured, windows.size());
  fmt::print("{} windows of {} tokens, the last {} scored; cold blocks through the codec, sinks and window raw\n\n",
             measured, options.context, options.scored);
  print_table(results);
  if (options.attention) print_attention(results);
  if (measured != windows.size()) {
    tell("firn: interrupted; {}\n", options.state.empty() ? "nothing is kept (--state FILE would)"
                                                          : "the same command goes on from " + options.state);
    return {};
  }
  if (flags.json.empty()) return {};
  nlohmann::json rows = nlohmann::json::array();
  for (const Evaluation& r : results) rows.push_back(row_json(r));
  FIRN_TRY(write_file(flags.json, rows.dump(2) + "\n", Readers::kAnyone));
  if (flags.options.state.empty()) std::remove(options.state.c_str());  // all of it is in the report now
  return {};
}

}  // namespace

void add_eval_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("eval", "measure what codecs do to a model's predictions");
  auto flags = std::make_shared<EvalFlags>();
  command->add_option("--model", flags->model, "GGUF file; the demo's model if left out")->type_name("FILE");
  command->add_option("--text", flags->texts, "text of another kind than the calibration's")
      ->type_name("FILE")
      ->required();
  command
      ->add_option(
          "--codecs", flags->codecs,
          "raw, lossless, q8, q4, q8/q4 (keys/values), q4-plain (no Hadamard transform), kvtc@RATIO, firn@RATIO")
      ->delimiter(',')
      ->type_name("LIST");
  command
      ->add_option("--artefact", flags->artefacts,
                   "of kvtc or firn, as firn calibrate writes it; several: each is measured")
      ->type_name("FILE");
  command->add_option("--context", flags->options.context, "tokens of a window")->check(CLI::Range(256, 1 << 20));
  command->add_option("--score", flags->options.scored, "tokens scored at the end of each")
      ->check(CLI::Range(16, 65536));
  command->add_option("--windows", flags->windows, "windows, at most")->check(CLI::Range(1, 10000));
  command->add_option("--threads", flags->options.threads, "0: one per processor");
  command
      ->add_option("--state", flags->options.state,
                   "remembers what is done, to go on after a kill; with --json, JSON.part if left out")
      ->type_name("FILE");
  command->add_flag("--fast", flags->fast, "leave out what is measured inside attention");
  command->add_option("--json", flags->json, "write the figures there too")->type_name("FILE");
  command->callback([flags, &action] {
    action = [flags] {
      const Status status = flags->options.scored < flags->options.context
                                ? run(*flags)
                                : Status(Code::kInvalidArgument, "--score must be less than --context");
      return status.ok() ? kExitOk : fail(status);
    };
  });
}

}  // namespace firn::cli
