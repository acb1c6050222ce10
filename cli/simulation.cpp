#include "cli/simulation.h"

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "cli/embedded.h"
#include "cli/model_shape.h"
#include "cli/text.h"
#include "core/base/file_out.h"
#include "core/config/codec_name.h"
#include "sim/apart.h"
#include "sim/capacity.h"
#include "sim/workload.h"

namespace firn::cli {

ProgressLine::ProgressLine() : terminal_(isatty(STDERR_FILENO) != 0), start_(Clock::now()), shown_(start_) {}

ProgressLine::~ProgressLine() {
  if (terminal_ && any_) tell("\r\033[K");
}

bool ProgressLine::operator()(const sim::Progress& progress) {
  if (progress.requests < last_requests_) {  // another run has begun
    ++runs_;
    start_ = Clock::now();
    most_ = 0;
  }
  last_requests_ = progress.requests;
  const Clock::time_point now = Clock::now();
  if (terminal_ && now - shown_ > std::chrono::milliseconds(200)) show(progress, now);
  return stop_signal() == 0;
}

void ProgressLine::show(const sim::Progress& progress, Clock::time_point now) {
  shown_ = now;
  any_ = true;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  if (progress.packed_size != 0)  // what was used; it never goes back
    most_ = std::max(most_, static_cast<double>(progress.packed_read) / static_cast<double>(progress.packed_size));
  const std::string run = runs_ > 1 ? fmt::format("run {}  ", runs_) : "";
  const std::string left = most_ > 0.01 ? fmt::format(", {:.0f} s to go", seconds * (1 - most_) / most_) : "";
  tell("\r\033[K{}{:3.0f} %  {} requests, simulated {:.1f} min{}", run, 100 * most_, grouped(progress.requests),
       static_cast<double>(progress.time_ns) / 6e10, left);
  std::fflush(stderr);
}

void WorkloadFlags::add_to(CLI::App& command) {
  std::string kinds;
  for (const sim::WorkloadKind& kind : sim::workload_kinds()) {
    kinds += kinds.empty() ? "" : "; ";
    kinds += std::string(kind.name) + ": " + std::string(kind.what);
  }
  command.add_option("--workload", text, "made-up requests in place of a trace, KIND:KEY=VALUE,... (" + kinds + ")")
      ->type_name("KIND");
  command.add_option("--seed", seed, "of the workload")->type_name("N");
}

Status WorkloadFlags::apply(std::string& path) const {
  if (text.empty() != path.empty()) {
    if (!text.empty()) path = std::string(sim::kWorkloadPrefix) + text;
    if (!text.empty() && seed != 0)
      path += (text.find(':') == std::string::npos ? ":" : ",") + fmt::format("seed={}", seed);
    return {};
  }
  return text.empty() ? Status(Code::kInvalidArgument, "give --trace FILE, or --workload KIND")
                      : Status(Code::kInvalidArgument, "--trace or --workload, not both");
}

void SimulationArguments::add_shared_to(CLI::App& command) {
  trace.add_to(command);
  workload.add_to(command);
  command.add_option("--device", device, "configs/devices/NAME.yaml, or a file")->type_name("NAME");
  command.add_option("--devices", devices, "so many of them share the model, by tensor parallelism")
      ->type_name("N")
      ->check(CLI::Range(1, 64));
  command.add_option("--model", model, "llama-3.1-8b and others, a Hugging Face config.json or a GGUF file")
      ->type_name("NAME");
  command.add_option("--disk-budget", disk_budget, "bytes of a disk tier below the host's")->type_name("BYTES");
  CLI::Option* ratio =
      command.add_option("--codec-ratio", engine.codec_ratio, "assumed: raw bytes by encoded bytes below the pool");
  CLI::Option* speed =
      command.add_option("--codec-speed", engine.codec_bytes_per_s, "assumed: raw bytes a second of the codec");
  for (CLI::Option* option : {ratio, speed}) option->each([this](const std::string&) { codec_assumed = true; });
  CLI::Option* figures = command.add_option(
      "--codec-figures", codec_figures,
      "measured: what firn eval --json or ./run bench wrote; the row of host.codec is taken. Without "
      "it, what is shipped in configs/codecs");
  figures->type_name("FILE")->excludes(ratio)->excludes(speed);
  command.add_option("--codec-threads", codec_threads, "cores that decode")->check(CLI::Range(1, 1024));
  CLI::Option* rate_option =
      command.add_option("--rate", rate, "requests a second, in place of the trace's own")->type_name("N");
  CLI::Option* scale = command.add_option("--time-scale", engine.time_scale, "arrivals this many times as fast");
  rate_option->excludes(scale)->check(CLI::PositiveNumber);
  command.add_option("--json", json, "write the result there; - is stdout")->type_name("FILE");
  command.add_option("--html", html, "write a page with charts there")->type_name("FILE");
  settings.add_to(command);
}

namespace {

// A deployment says what it is simulated as in a comment of its own: "# simulate: device=rtx4090 model=llama-3.1-8b".
std::string from_comment(const std::string& file, const std::string& key, const std::string& otherwise) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const std::size_t at = line.find(" " + key + "=");
    if (line.rfind("# simulate:", 0) != 0 || at == std::string::npos) continue;
    const std::size_t from = at + key.size() + 2;
    return line.substr(from, line.find(' ', from) - from);
  }
  return otherwise;
}

std::vector<std::string> folders_of(const std::string& settings) {
  std::vector<std::string> folders = {"configs"};
  const std::size_t slash = settings.rfind('/');
  if (!settings.empty()) folders.insert(folders.begin(), slash == std::string::npos ? "." : settings.substr(0, slash));
  for (const std::string& folder : data_folders()) folders.push_back(folder + "/configs");
  return folders;
}

// What is shipped: from beside the settings or from configs/, else as it was built in.
Result<sim::CodecTable> shipped_codecs(const std::vector<std::string>& folders) {
  for (const std::string& folder : folders) {
    const std::string name = folder + "/codecs/smollm2-135m.yaml";
    std::ifstream in(name, std::ios::binary);
    if (in) return sim::parse_codec_table(std::string(std::istreambuf_iterator<char>(in), {}), name);
  }
  return sim::parse_codec_table(kCodecFigures, "configs/codecs/smollm2-135m.yaml");
}

}  // namespace

Status SimulationArguments::finish_trace(bool required) {
  // The deployment's own example: something to look at that fits it.
  if (trace.path.empty() && workload.text.empty() && !settings.file.empty() && (required || !objectives.empty()))
    workload.text = from_comment(settings.file, "workload", "");
  if (required || !workload.text.empty()) FIRN_TRY(workload.apply(trace.path));
  FIRN_TRY(trace.finish());
  return check_outputs();
}

Status SimulationArguments::check_outputs() const {
  return sim::check_apart({trace.path, settings.file, codec_figures, read_device, read_model},
                          {json, html, dump, resume});
}

sim::BookkeepingOptions SimulationArguments::bookkeeping_options() const {
  sim::BookkeepingOptions options;
  options.policy = policy;
  options.tier_blocks = tiers;
  if (options.tier_blocks.empty() && capacity_blocks != 0) options.tier_blocks.push_back(capacity_blocks);
  return options;
}

Status SimulationArguments::fill_engine(bool one_device) {
  FIRN_ASSIGN(const LoadedConfig loaded, settings.load());
  const Config& config = loaded.config;
  const std::string device_name = device.empty() ? from_comment(settings.file, "device", "rtx4090") : device;
  const std::string model_name = model.empty() ? from_comment(settings.file, "model", "llama-3.1-8b") : model;
  const std::vector<std::string> folders = folders_of(settings.file);
  FIRN_ASSIGN(engine.device, sim::load_device(device_name, folders));
  FIRN_ASSIGN(engine.model, load_model_shape(model_name));
  std::error_code error;
  if (std::filesystem::exists(device_name, error)) read_device = device_name;
  if (std::filesystem::exists(model_name, error)) read_model = model_name;
  FIRN_TRY(check_outputs());
  const std::uint32_t count = devices != 0 ? devices : 1;
  if (count > 1 && !one_device) {
    FIRN_ASSIGN(engine, sim::spread(engine, count));
  }
  engine.pool_bytes = config.pool.budget_bytes;
  if (config.pool.slots != 0) engine.pool_bytes = config.pool.slots * kBlockTokens * engine.model.token_bytes();
  if (engine.pool_bytes == 0 && !one_device) {  // automatic: what the device has left beside the weights
    engine.pool_bytes = sim::largest_pool(engine.device, engine.model);
    if (engine.pool_bytes == 0) {
      FIRN_TRY(sim::check_fits(engine));
      return Status(Code::kInvalidArgument,
                    fmt::format("{} leaves no room for a pool in {}; take more devices (--devices), or another --model",
                                engine.model.name, engine.device.name));
    }
  }
  engine.host_bytes = config.host.budget_bytes;
  if (!disk_budget.empty()) {
    FIRN_ASSIGN(engine.disk_bytes, parse_bytes(disk_budget));
  }
  engine.policy = policy_given ? policy : config.eviction;
  engine.max_sequences = config.max_sequences;
  engine.protect_sinks = config.protect.sinks;
  engine.protect_recent = config.protect.recent;
  engine.codec = codec_name(config.host);
  FIRN_ASSIGN(codecs, shipped_codecs(folders));
  if (!codec_figures.empty()) {
    FIRN_ASSIGN(const sim::CodecFigures figures, sim::load_codec_figures(codec_figures, engine.codec));
    engine.codec_ratio = figures.ratio;
    engine.codec_bytes_per_s = figures.bytes_per_s * codec_threads;
    engine.codec_source = fmt::format("measured: {} of {}", engine.codec, codec_figures);
  } else if (!codec_assumed) {
    FIRN_ASSIGN(const sim::CodecFigures figures, codecs.find(engine.codec));
    engine.codec_ratio = figures.ratio;
    engine.codec_bytes_per_s = figures.bytes_per_s * codec_threads;
    engine.codec_source = codecs.origin();
  }
  if (rate > 0 && !trace.path.empty()) {
    FIRN_ASSIGN(const sim::Load load, sim::load_of(trace.path, trace.options));
    if (!(load.rate > 0))
      return Status(Code::kInvalidArgument,
                    "--rate: all requests of this trace come at once, so they have no rate to change");
    engine.time_scale = rate / load.rate;
  }
  return {};
}

int write_json(const std::string& where, const nlohmann::ordered_json& json) {
  if (where == "-") {
    fmt::print("{}\n", json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
    return kExitOk;
  }
  const Status status = write_file(
      where, json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n", Readers::kAnyone);
  return status.ok() ? kExitOk : fail(status);
}

int write_text(const std::string& where, const std::string& text, bool is_private) {
  if (where == "-") {
    fmt::print("{}", text);
    return kExitOk;
  }
  const Status status = write_file(where, text, is_private ? Readers::kOwner : Readers::kAnyone);
  return status.ok() ? kExitOk : fail(status);
}

double share(std::uint64_t part, std::uint64_t all) {
  return all == 0 ? 0 : static_cast<double>(part) / static_cast<double>(all);
}

}  // namespace firn::cli
