// simulation.h: what firn simulate and firn plan share: their flags, what becomes of them, how far a run is, and how
// what it says is written.
#pragma once

#include <chrono>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/process.h"
#include "cli/trace_flags.h"
#include "sim/bookkeeping.h"
#include "sim/codec_figures.h"
#include "sim/curve.h"
#include "sim/engine.h"
#include "sim/page.h"

namespace firn::cli {

// One line on a terminal, rewritten a few times a second; nothing where stderr is a file. Also notices Ctrl-C. Of
// several runs one after the other it says which it is.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine();
  bool operator()(const sim::Progress& progress);

 private:
  using Clock = std::chrono::steady_clock;
  void show(const sim::Progress& progress, Clock::time_point now);
  Interruptible interruptible_;
  bool terminal_, any_ = false;
  Clock::time_point start_, shown_;
  std::uint64_t runs_ = 1, last_requests_ = 0;
  double most_ = 0;
};

// --workload and --seed: requests made up, in place of a trace.
struct WorkloadFlags {
  std::string text;
  std::uint64_t seed = 0;
  void add_to(CLI::App& command);
  Status apply(std::string& path) const;
};

struct SimulationArguments {
  TraceFlags trace;
  WorkloadFlags workload;
  SettingFlags settings;
  bool bookkeeping = false, curve = false, curve_sampled = false, through_manager = false, no_advice = false;
  std::string policy = "lru", json, html, dump;
  bool policy_given = false;
  std::uint32_t capacity_blocks = 0;
  std::vector<std::uint32_t> tiers;
  std::vector<std::string> sweep;
  std::size_t sweep_threads = 0;
  std::string resume;
  sim::CurveOptions curve_options;
  // with a clock
  std::string device, model, disk_budget, codec_figures;
  std::vector<std::string> objectives;
  sim::EngineOptions engine;
  std::uint32_t codec_threads = 1, devices = 0;  // 0: one, or as many as are needed
  double rate = 0;                               // requests a second; 0: as recorded
  bool codec_assumed = false;                    // --codec-ratio or --codec-speed
  sim::CodecTable codecs;                        // filled by fill_engine
  std::string read_device, read_model;           // files that were read, if they were files

  void add_shared_to(CLI::App& command);
  // Trace or workload, and its format. example: what the settings file would be simulated with, if neither is given.
  Status finish_trace(bool required);
  // engine, from the settings, the device, the model and the measured figures of the codec. For one device where
  // `one_device`, otherwise for --devices.
  Status fill_engine(bool one_device);
  // No output is an input, and no two are one file.
  Status check_outputs() const;
  sim::BookkeepingOptions bookkeeping_options() const;
};

int write_json(const std::string& where, const nlohmann::ordered_json& json);
int write_text(const std::string& where, const std::string& text, bool is_private = false);
double share(std::uint64_t part, std::uint64_t all);

}  // namespace firn::cli
