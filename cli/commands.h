// commands.h: the subcommands of `firn`. Each registers its arguments and a function to call; main() calls the one
// chosen. Results go to stdout, everything else to stderr. A command returns its exit code.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "firn/config.h"
#include "firn/status.h"

namespace CLI {
class App;
}

namespace firn::cli {

// Exit codes; `firn --help` lists them. Beyond 2 they follow Code.
inline constexpr int kExitOk = 0, kExitProblem = 1, kExitUsage = 2, kExitNoSpace = 3, kExitUnavailable = 4,
                     kExitCorrupt = 5, kExitIo = 6;

int exit_code(Code code);
int fail(const Status& status);  // prints it to stderr; the code to exit with

using Action = std::function<int()>;
// Adds the command to app and, when it is chosen, sets action.
void add_calibrate_command(CLI::App& app, Action& action);
void add_config_command(CLI::App& app, Action& action);
void add_doctor_command(CLI::App& app, Action& action);
void add_dump_command(CLI::App& app, Action& action);
void add_eval_command(CLI::App& app, Action& action);
void add_run_command(CLI::App& app, Action& action);
void add_demo_command(CLI::App& app, Action& action);
void add_plan_command(CLI::App& app, Action& action);
void add_simulate_command(CLI::App& app, Action& action);
void add_trace_command(CLI::App& app, Action& action);

// Flags that set settings: --config FILE, --set key=value and a flag each for those one changes most.
struct SettingFlags {
  std::string file;
  std::vector<ConfigInput::Override> overrides;
  void add_to(CLI::App& command);
  Result<LoadedConfig> load() const;  // warnings go to stderr
};

}  // namespace firn::cli
