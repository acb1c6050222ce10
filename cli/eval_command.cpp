// firn eval: what codecs do to a model's predictions, measured.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/evaluation.h"

namespace firn::cli {
namespace {

struct EvalFlags {
  std::string model, artefact, json;
  std::vector<std::string> texts, codecs = {"lossless", "q8", "q4"};
  EvaluationOptions options;
  std::uint32_t windows = 4;
};

Status run(const EvalFlags& flags) {
  FIRN_ASSIGN(const std::unique_ptr<LoadedModel> model, LoadedModel::load(flags.model));
  FIRN_ASSIGN(const auto windows, windows_of(*model, flags.texts, flags.options.context + 1, flags.windows));
  std::vector<EvaluatedCodec> codecs;
  for (const std::string& name : flags.codecs) codecs.push_back({name, flags.artefact});
  FIRN_ASSIGN(const std::vector<Evaluation> results, evaluate(*model, windows, codecs, flags.options));
  fmt::print("{} windows of {} tokens, the last {} scored; cold blocks through the codec, sinks and window raw\n\n",
             windows.size(), flags.options.context, flags.options.scored);
  fmt::print(
      "| codec | bits an element | loss change | mean KLD (95 %) | p99 KLD | max KLD | top-1 | lossless by guard |\n");
  fmt::print("|---|---|---|---|---|---|---|---|\n");
  nlohmann::json rows = nlohmann::json::array();
  for (const Evaluation& r : results) {
    fmt::print("| {} | {:.2f} | {:+.5f} | {:.2e} ({:.2e} to {:.2e}) | {:.2e} | {:.2e} | {:.2f} % | {} of {} |\n",
               r.codec, r.bits, r.loss - r.exact_loss, r.mean_kld, r.low_kld, r.high_kld, r.p99_kld, r.max_kld,
               100 * r.top1, r.guarded, r.frames);
    rows.push_back({{"codec", r.codec},
                    {"tokens", r.tokens},
                    {"bits", r.bits},
                    {"loss", r.loss},
                    {"exact_loss", r.exact_loss},
                    {"mean_kld", r.mean_kld},
                    {"mean_kld_low", r.low_kld},
                    {"mean_kld_high", r.high_kld},
                    {"p99_kld", r.p99_kld},
                    {"max_kld", r.max_kld},
                    {"top1", r.top1},
                    {"frames", r.frames},
                    {"guarded", r.guarded},
                    {"seconds", r.seconds}});
  }
  if (flags.json.empty()) return {};
  std::ofstream out(flags.json);
  out << rows.dump(2) << '\n';
  if (!out.flush()) return Status(Code::kIo, flags.json + " cannot be written");
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
  command->add_option("--codecs", flags->codecs, "raw, lossless, q8, q4, kvtc@RATIO")
      ->delimiter(',')
      ->type_name("LIST");
  command->add_option("--artefact", flags->artefact, "of kvtc, as firn calibrate writes it")->type_name("FILE");
  command->add_option("--context", flags->options.context, "tokens of a window")->check(CLI::Range(256, 1 << 20));
  command->add_option("--score", flags->options.scored, "tokens scored at the end of each")->check(CLI::Range(1, 4096));
  command->add_option("--windows", flags->windows, "windows, at most")->check(CLI::Range(1, 10000));
  command->add_option("--threads", flags->options.threads, "0: one per processor");
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
