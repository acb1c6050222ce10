// firn calibrate: one pass of the example engine over text, and an artefact for kvtc or firn out of its keys and
// values.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <utility>

#include "cli/calibration.h"
#include "cli/commands.h"
#include "cli/evaluation.h"
#include "cli/process.h"
#include "cli/sensitivity.h"
#include "cli/text.h"
#include "core/base/file_out.h"
#include "examples/llama/capture.h"
#include "storage/calibration/calibrator.h"
#include "storage/calibration/firn_calibrator.h"
#include "storage/calibration/kv_dump.h"

namespace firn::cli {
namespace {

// Keys and values of one window, [layer][token][width], as they are appended.
struct Captured {
  std::vector<float> keys, values;
};

}  // namespace

Status capture(const LoadedModel& model, const std::vector<std::vector<TokenId>>& windows, std::uint32_t window_tokens,
               std::uint32_t threads, const OnWindow& on_window) {
  const ModelSpec spec = model.model.spec();
  const GroupSpec& group = spec.groups[0];
  const std::size_t k_width = group.kv.kv_heads * group.kv.head_dim, v_width = group.kv.kv_heads * group.kv.value_dim;
  Config config;
  config.device = "cpu";
  config.threads = threads;
  config.pool.budget_bytes = 2 * window_tokens * spec.token_bytes() + (64u << 20);
  FIRN_ASSIGN(Session session, Session::open(model, config));
  Captured captured;
  captured.keys.resize(group.layer_count * window_tokens * k_width);
  captured.values.resize(group.layer_count * window_tokens * v_width);
  llama::ListeningManager listening(
      *session.manager, [&](std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress k, DeviceAddress v) {
        for (const StepRows& part : rows) {  // the cpu device's addresses are the host's
          const std::size_t to = std::size_t{layer} * window_tokens + part.position;
          std::memcpy(&captured.keys[to * k_width], reinterpret_cast<const float*>(k) + part.row * k_width,
                      part.row_count * k_width * sizeof(float));
          std::memcpy(&captured.values[to * v_width], reinterpret_cast<const float*>(v) + part.row * v_width,
                      part.row_count * v_width * sizeof(float));
        }
      });
  llama::Engine engine(model.model, listening, *session.threads);
  engine.stop_when([] { return stop_signal() != 0; });
  Progress progress("capturing keys and values", windows.size() * window_tokens);
  for (const std::vector<TokenId>& window : windows) {
    BeginOptions options;
    options.read_cache = false;
    FIRN_ASSIGN(llama::Sequence sequence, engine.begin(window, options));
    llama::Sequence* sequences[] = {&sequence};
    FIRN_TRY(engine.run(sequences, [&](std::size_t tokens) { progress.add(tokens); }));
    FIRN_TRY(on_window({.first_position = 0, .tokens = window_tokens}, captured.keys, captured.values));
  }
  return {};
}

void shuffle_windows(std::vector<std::vector<TokenId>>& windows) {
  std::mt19937 random(1);
  for (std::size_t i = windows.size(); i > 1; --i) std::swap(windows[i - 1], windows[random() % i]);
}

namespace {

struct CalibrateFlags {
  std::string model, codec = "kvtc", out, kv, dump;
  std::vector<std::string> texts, without;
  std::vector<std::uint32_t> ratios;   // empty: the codec's own
  std::optional<std::uint32_t> stack;  // likewise
  std::uint32_t gradients = 12, tokens = 40000, window = 1024, threads = 0, measured_windows = 2;
};

// The windows of a dump instead, at most as many tokens as were asked for.
Status replay(KvDumpReader& dump, std::uint64_t most_tokens, const OnWindow& on_window) {
  std::vector<float> keys, values;
  std::uint64_t tokens = 0, all = 0;
  for (const KvWindow& window : dump.windows()) all += window.tokens;
  Progress progress("reading keys and values", std::min(all, most_tokens));
  for (std::size_t i = 0; i < dump.windows().size(); ++i) {
    const KvWindow& window = dump.windows()[i];
    if (i != 0 && tokens + window.tokens > most_tokens) break;
    FIRN_TRY(dump.read(i, keys, values));
    FIRN_TRY(on_window(window, keys, values).with_context(fmt::format("window {}", i)));
    tokens += window.tokens;
    progress.add(window.tokens);
  }
  return {};
}

void print_spectra(const std::vector<Spectrum>& spectra) {
  fmt::print("components that hold 50 / 90 / 99 % of the centred energy; share of all energy that the mean holds\n");
  for (const Spectrum& s : spectra)
    fmt::print("{} {} {:>3}: {:>5} / {:>5} / {:>5} of {:>5}, mean {:.0f} %\n", s.values ? "values" : "keys  ",
               s.is_stack ? "stack from layer" : "layer           ", s.first_layer, s.half, s.ninety, s.ninety_nine,
               s.channels, 100 * s.mean_share);
}

// Adds to each rate what serving held-out text through it does to the model's predictions.
Status measure(const LoadedModel& model, const CalibrateFlags& flags, const std::vector<std::vector<TokenId>>& windows,
               Artefact& artefact) {
  std::vector<std::vector<TokenId>> held_out;
  for (std::size_t i = 0; i < windows.size() && held_out.size() < flags.measured_windows; ++i)
    if (is_held_out(i)) held_out.push_back(windows[i]);
  std::vector<EvaluatedCodec> codecs;
  for (const KvtcPlan& plan : artefact.plans)
    codecs.push_back({fmt::format("{}@{}", flags.codec, plan.report.rate), flags.out, ""});
  EvaluationOptions options;
  options.context = flags.window - 1;
  options.threads = flags.threads;
  if (held_out.empty()) return {};
  FIRN_ASSIGN(const std::vector<Evaluation> results, evaluate(model, held_out, codecs, options));
  for (KvtcPlan& plan : artefact.plans)
    for (const Evaluation& result : results) {
      if (result.codec != fmt::format("{}@{}", flags.codec, plan.report.rate)) continue;
      plan.report.measured = true;
      plan.report.measured_tokens = result.tokens;
      plan.report.mean_kld = result.mean_kld;
      plan.report.p99_kld = result.p99_kld;
      plan.report.top1 = result.top1;
    }
  return {};
}

// What is left of each layer's energy in the errors, on held-out text.
void print_layers(const Artefact& artefact) {
  for (const KvtcPlan& plan : artefact.plans)
    for (const bool values : {false, true}) {
      fmt::print("\nrelative error of {} at ratio {}, layer by layer:", values ? "values" : "keys", plan.report.rate);
      for (const double error : values ? plan.report.value_errors : plan.report.key_errors)
        fmt::print(" {:.3f}", error);
    }
  fmt::print("\n");
}

// Either calibrator, as the command runs them.
struct AnyCalibrator {
  std::unique_ptr<Calibrator> kvtc;
  std::unique_ptr<FirnCalibrator> firn;
  Status add_window(const KvWindow& window, const std::vector<float>& keys, const std::vector<float>& values,
                    bool held_out) {
    return kvtc ? kvtc->add_window(window.first_position, window.tokens, keys, values, held_out)
                : firn->add_window(window.first_position, window.tokens, keys, values, held_out);
  }
  Result<Artefact> finish() {
    const auto progress = [](std::string_view what, double share) {
      tell("calibrating: {:>3.0f} %, {}\n", 100 * share, what);
    };
    return kvtc ? kvtc->finish(progress) : firn->finish(progress);
  }
};

Result<AnyCalibrator> make_calibrator(const CalibrateFlags& flags, const ModelSpec& spec, std::string calibrated_on,
                                      ThreadPool& threads) {
  AnyCalibrator made;
  if (flags.codec == "kvtc") {
    CalibrationOptions options;
    options.stack_layers = flags.stack.value_or(0);
    if (!flags.ratios.empty()) options.ratios = flags.ratios;
    options.calibrated_on = std::move(calibrated_on);
    FIRN_ASSIGN(made.kvtc, Calibrator::make(spec, std::move(options), threads));
    return made;
  }
  FirnCalibrationOptions options;
  options.stack_layers = flags.stack.value_or(std::min(options.stack_layers, spec.groups[0].layer_count));
  if (!flags.ratios.empty()) options.ratios = flags.ratios;
  options.calibrated_on = std::move(calibrated_on);
  for (const std::string& part : flags.without) {
    bool* const option = part == "sinks"     ? &options.sinks
                         : part == "means"   ? &options.means
                         : part == "weights" ? &options.weights
                                             : nullptr;
    if (option == nullptr)
      return Status(Code::kInvalidArgument, "--without " + part + ": there are sinks, means and weights");
    *option = false;
  }
  FIRN_ASSIGN(made.firn, FirnCalibrator::make(spec, std::move(options), threads));
  return made;
}

void print_findings(const FirnFindings& found) {
  if (found.detector_layers.empty()) {
    fmt::print("no sinks within texts\n");
    return;
  }
  fmt::print("sinks within texts: {:.2f} % of tokens have {:.0f} % of the sensitivity of layers",
             100 * found.sink_share, 100 * found.sink_sensitivity);
  for (const std::uint32_t layer : found.detector_layers) fmt::print(" {}", layer);
  fmt::print("; value norms below {:.2f} of the median; {} of them learnt from\n", found.threshold, found.sink_rows);
}

Status run(const CalibrateFlags& flags) {
  if (flags.codec != "kvtc" && flags.codec != "firn")
    return Status(Code::kInvalidArgument, "--codec " + flags.codec + ": kvtc and firn are calibrated");
  if (flags.codec == "kvtc" && !flags.without.empty())
    return Status(Code::kInvalidArgument, "--without is of --codec firn");
  if (flags.codec == "firn" && flags.texts.empty())
    return Status(Code::kInvalidArgument, "--codec firn: needs --text, because its weights are gradients of the model");
  const Clock start = Clock::now();
  FIRN_TRY(FileOut::create(flags.out, Readers::kAnyone).status());  // a bad name is told now, not in an hour
  std::unique_ptr<KvDumpReader> dump;
  if (!flags.kv.empty()) {
    FIRN_ASSIGN(dump, KvDumpReader::open(flags.kv));
  }
  // Without text there is nothing to run the model on: the dump says what is to be known of it.
  std::unique_ptr<LoadedModel> model;
  std::vector<std::vector<TokenId>> windows;
  if (!flags.texts.empty()) {
    FIRN_ASSIGN(model, LoadedModel::load(flags.model));
    FIRN_ASSIGN(windows, windows_of(*model, flags.texts, flags.window, flags.tokens / flags.window));
    shuffle_windows(windows);
  }
  const ModelSpec spec = dump ? dump->model() : model->model.spec();
  if (dump && model && spec.weights != model->model.spec().weights)
    return Status(Code::kInvalidArgument, flags.kv + " is of other weights than the model that --text is for");
  ThreadPool threads(flags.threads);
  std::string calibrated_on = flags.kv;
  for (const std::string& file : flags.texts)
    if (!dump) calibrated_on += (calibrated_on.empty() ? "" : ", ") + file;
  FIRN_ASSIGN(AnyCalibrator calibrator, make_calibrator(flags, spec, std::move(calibrated_on), threads));
  if (calibrator.firn) FIRN_TRY(add_sensitivity(*model, windows, flags.gradients, *calibrator.firn));
  std::unique_ptr<KvDumpWriter> writer;
  if (!flags.dump.empty()) {
    const KvWindow window{.first_position = 0, .tokens = flags.window};
    FIRN_ASSIGN(writer, KvDumpWriter::create(flags.dump, spec, std::vector<KvWindow>(windows.size(), window)));
  }
  std::size_t number = 0;
  const OnWindow on_window = [&](const KvWindow& window, const std::vector<float>& keys,
                                 const std::vector<float>& values) -> Status {
    if (writer) FIRN_TRY(writer->add(keys, values));
    return calibrator.add_window(window, keys, values, is_held_out(number++));
  };
  {
    const Interruptible interruptible;  // the linear algebra below ends at once instead: there is nothing of it to show
    FIRN_TRY(dump ? replay(*dump, flags.tokens, on_window)
                  : capture(*model, windows, flags.window, flags.threads, on_window));
  }
  if (writer) FIRN_TRY(writer->close());
  const Clock captured = Clock::now();
  FIRN_ASSIGN(Artefact artefact, calibrator.finish());
  const Clock finished = Clock::now();
  if (calibrator.kvtc)
    print_spectra(calibrator.kvtc->spectra());
  else
    print_findings(calibrator.firn->findings());
  FIRN_TRY(write_file(flags.out, write_artefact(artefact), Readers::kAnyone));
  if (flags.measured_windows != 0 && model) {
    FIRN_TRY(measure(*model, flags, windows, artefact));
    FIRN_TRY(write_file(flags.out, write_artefact(artefact), Readers::kAnyone));
  }
  fmt::print(
      "\n| ratio | bits a token, of | realised ratio | bound of key error | of value error | mean KLD | p99 KLD | "
      "top-1 |\n");
  fmt::print("|---|---|---|---|---|---|---|---|\n");
  for (const KvtcPlan& plan : artefact.plans) {
    const ArtefactRate& r = plan.report;
    fmt::print("| {} | {:.0f} of {:.0f} | {:.2f} | {:.4f} | {:.4f} | {:.2e} | {:.2e} | {:.2f} % |\n", r.rate,
               r.payload_bits, r.target_bits, r.realised_ratio, r.bound.keys, r.bound.values, r.mean_kld, r.p99_kld,
               100 * r.top1);
  }
  print_layers(artefact);
  fmt::print("\n{}: {}, {} tokens; capturing took {:.0f} s, components and bits {:.0f} s, measuring {:.0f} s\n",
             flags.out, human_bytes(artefact.file_bytes), grouped(artefact.tokens), captured.since(start).wall_s,
             finished.since(captured).wall_s, Clock::now().since(finished).wall_s);
  return {};
}

}  // namespace

void add_calibrate_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("calibrate", "learn a model's keys and values for kvtc or firn");
  auto flags = std::make_shared<CalibrateFlags>();
  command->add_option("--model", flags->model, "GGUF file; the demo's model if left out")->type_name("FILE");
  command->add_option("--text", flags->texts, "what to learn from: mixed kinds are best")->type_name("FILE");
  command->add_option("--kv", flags->kv, "keys and values of any engine (docs/codecs.md); --text is for the report")
      ->type_name("FILE");
  command->add_option("--dump-kv", flags->dump, "write the keys and values of --text there, for --kv")
      ->type_name("FILE");
  command->add_option("--codec", flags->codec, "kvtc, or firn, which takes longer and needs fewer bytes");
  command->add_option("--ratio", flags->ratios, "target ratios; firn has all between the least and the largest as well")
      ->delimiter(',')
      ->type_name("LIST");
  command->add_option("--stack", flags->stack, "layers coded together; 0: all, kvtc's default; firn's is 5");
  command->add_option("--gradients", flags->gradients, "of firn: windows that its weights come from")
      ->check(CLI::Range(1, 1000));
  command->add_option("--without", flags->without, "of firn: leave parts out, to measure them: sinks, means, weights")
      ->delimiter(',')
      ->type_name("LIST");
  command->add_option("--tokens", flags->tokens, "tokens of text, at most")->check(CLI::Range(4096, 10'000'000));
  command->add_option("--window", flags->window, "tokens of context at a time")->check(CLI::Range(256, 65536));
  command->add_option("--measure", flags->measured_windows, "held-out windows for the report; 0: none");
  command->add_option("--threads", flags->threads, "0: one per processor");
  command->add_option("-o,--out", flags->out, "the artefact")->type_name("FILE")->required();
  command->callback([flags, &action] {
    action = [flags] {
      const Status status = flags->texts.empty() && flags->kv.empty()
                                ? Status(Code::kInvalidArgument, "--text or --kv must say what to learn from")
                            : !flags->dump.empty() && !flags->kv.empty()
                                ? Status(Code::kInvalidArgument, "--dump-kv needs --text alone")
                                : run(*flags);
      return status.ok() ? kExitOk : fail(status);
    };
  });
}

}  // namespace firn::cli
