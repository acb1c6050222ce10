// firn config: checks a deployment, shows what is in force and where each value came from, prints the schema.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/text.h"

namespace firn::cli {
namespace {

std::string describe(const ConfigOrigin& origin) {
  return origin.kind == ConfigOrigin::Kind::kDefault ? "default" : origin.where;
}

// Aligned YAML: what it prints can be saved as a deployment.
void print_effective(const LoadedConfig& loaded) {
  std::string section;
  for (const ConfigSetting& setting : loaded.settings) {
    const std::size_t dot = setting.key.find('.');
    const std::string parent = dot == std::string::npos ? "" : setting.key.substr(0, dot);
    if (parent != section && !parent.empty()) fmt::print("{}:\n", parent);
    section = parent;
    const std::string name = dot == std::string::npos ? setting.key : "  " + setting.key.substr(dot + 1);
    fmt::print("{:<44}# {}\n", fmt::format("{}: {}", name, setting.value.empty() ? "\"\"" : setting.value),
               describe(setting.origin));
  }
}

void print_effective_json(const LoadedConfig& loaded) {
  nlohmann::ordered_json settings = nlohmann::ordered_json::object();
  for (const ConfigSetting& setting : loaded.settings)
    settings[setting.key] = {
        {"value", setting.value}, {"origin", describe(setting.origin)}, {"description", setting.description}};
  fmt::print("{}\n", nlohmann::ordered_json{{"settings", settings}, {"warnings", loaded.warnings}}.dump(2));
}

struct Arguments {
  std::string check;
  bool effective = false, schema = false, json = false;
  std::string positional;
  SettingFlags settings;
};

int check(const Arguments& arguments) {
  const Result<LoadedConfig> loaded =
      load_config_file(find_shipped(arguments.check, "configs"), arguments.settings.overrides);
  if (!loaded.ok()) {
    // The mistakes are the result that was asked for.
    fmt::print("{}\n", loaded.status().message());
    return exit_code(loaded.status().code());
  }
  for (const std::string& warning : loaded->warnings) fmt::print("{}: warning: {}\n", arguments.check, warning);
  fmt::print("{}: good\n", arguments.check);
  return kExitOk;
}

int run(Arguments& arguments) {
  if (arguments.schema) {
    fmt::print("{}", config_schema_json());
    return kExitOk;
  }
  if (!arguments.check.empty()) return check(arguments);
  if (!arguments.positional.empty()) arguments.settings.file = find_shipped(arguments.positional, "configs");
  const Result<LoadedConfig> loaded = arguments.settings.load();
  if (!loaded.ok()) return fail(loaded.status());
  arguments.json ? print_effective_json(*loaded) : print_effective(*loaded);
  return kExitOk;
}

}  // namespace

void add_config_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("config", "check a deployment file, or show what is in force");
  auto arguments = std::make_shared<Arguments>();
  command->add_option("--check", arguments->check, "report every mistake in FILE")->type_name("FILE");
  command->add_flag("--effective", arguments->effective, "every setting with its value and where it came from");
  command->add_flag("--schema", arguments->schema, "the JSON schema of deployment files");
  command->add_flag("--json", arguments->json, "--effective for machines");
  command->add_option("file", arguments->positional, "deployment file for --effective")->type_name("FILE");
  arguments->settings.add_to(*command);
  command->callback([arguments, &action] {
    if (arguments->check.empty() && !arguments->effective && !arguments->schema)
      throw CLI::RequiredError("one of --check FILE, --effective, --schema");
    action = [arguments] { return run(*arguments); };
  });
}

}  // namespace firn::cli
