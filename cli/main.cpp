// firn: the command line. Subcommands live in files of their own; this one knows their names and the exit codes.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "cli/commands.h"
#include "cli/help.h"
#include "cli/process.h"
#include "cli/text.h"
#include "core/config/nearest.h"

namespace firn::cli {

int exit_code(Code code) {
  switch (code) {
    case Code::kOk:
      return kExitOk;
    case Code::kInvalidArgument:
      return kExitUsage;
    case Code::kNoSpace:
      return kExitNoSpace;
    case Code::kUnavailable:
      return kExitUnavailable;
    case Code::kCorrupt:
      return kExitCorrupt;
    case Code::kIo:
      return kExitIo;
  }
  return kExitProblem;
}

int fail(const Status& status) {
  tell("firn: {}\n", status.message());
  return exit_code(status.code());
}

void SettingFlags::add_to(CLI::App& command) {
  command
      .add_option_function<std::string>(
          "--config", [this](const std::string& name) { file = find_shipped(name, "configs"); },
          "deployment file, or the name of a shipped one; docs/config.md lists its keys")
      ->type_name("FILE");
  const auto flag = [&](const std::string& name, const std::string& key, const std::string& help) {
    command
        .add_option_function<std::string>(
            name,
            [this, key, name](const std::string& value) {
              overrides.push_back({key, value, name});
            },
            help)
        ->type_name("VALUE");
  };
  // simulate and plan have a --device of their own, which is a price list.
  if (!command.get_option_no_throw("--device"))
    flag("--device", "device", "auto, cpu, lavapipe, or a Vulkan device's index, name or UUID; sets device");
  flag("--pool-budget", "pool.budget", "the pool's bytes, such as 16MiB; sets pool.budget");
  flag("--host-budget", "host.budget", "the host tier's bytes, or off; sets host.budget");
  flag("--threads", "threads", "threads of attention and codecs; sets threads");
  command
      .add_option_function<std::vector<std::string>>(
          "--set",
          [this](const std::vector<std::string>& pairs) {
            for (const std::string& pair : pairs) {
              const std::size_t equals = pair.find('=');
              if (equals == std::string::npos) throw CLI::ValidationError("--set", "write --set key=value");
              overrides.push_back({pair.substr(0, equals), pair.substr(equals + 1), "--set " + pair});
            }
          },
          "any setting, such as host.codec=raw; may be repeated")
      ->type_name("KEY=VALUE");
}

Result<LoadedConfig> SettingFlags::load() const {
  FIRN_ASSIGN(LoadedConfig loaded, load_config_file(file, overrides));
  for (const std::string& warning : loaded.warnings) tell("firn: warning: {}\n", warning);
  return loaded;
}

}  // namespace firn::cli

namespace {

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  return names;
}

int run_firn(int argc, char** argv) {
  CLI::App app("firn: a tiered KV cache for transformer inference", "firn");
  app.require_subcommand(1);
  firn::cli::Action action;
  firn::cli::add_doctor_command(app, action);
  firn::cli::add_demo_command(app, action);
  firn::cli::add_run_command(app, action);
  firn::cli::add_config_command(app, action);
  firn::cli::add_plan_command(app, action);
  firn::cli::add_simulate_command(app, action);
  firn::cli::add_trace_command(app, action);
  firn::cli::add_dump_command(app, action);
  firn::cli::add_calibrate_command(app, action);
  firn::cli::add_eval_command(app, action);
  firn::cli::add_help_commands(app, action);
  const std::vector<std::string> names = command_names(app);
  if (argc > 1 && argv[1][0] != '-' && std::find(names.begin(), names.end(), argv[1]) == names.end()) {
    firn::cli::tell("firn: there is no command \"{}\"; did you mean {}? firn --help lists them\n", argv[1],
                    firn::nearest(argv[1], names));
    return firn::cli::kExitUsage;
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {  // --help comes this way too, as code 0
    return app.exit(error) == 0 ? firn::cli::kExitOk : firn::cli::kExitUsage;
  }
  return action();
}

}  // namespace

int main(int argc, char** argv) {
  return firn::cli::run_process([&] { return run_firn(argc, argv); });
}
