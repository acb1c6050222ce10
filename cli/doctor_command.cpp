// firn doctor: what there is to work with, what it would be used for, and every problem with its fix. One screen.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "cli/commands.h"
#include "cli/doctor_vulkan.h"
#include "cli/model_shape.h"
#include "cli/text.h"
#include "core/config/checkup.h"

namespace firn::cli {
namespace {

struct Arguments {
  bool json = false, verbose = false;
  std::string root, model = "llama-3.1-8b";
  SettingFlags settings;
};

struct ModelFile {
  std::string path;
  std::uint64_t bytes = 0;  // 0: it is not there
};

ModelFile find_model() {
  ModelFile model{demo_model_path(), 0};
  std::error_code error;
  const std::uintmax_t bytes = std::filesystem::file_size(model.path, error);
  if (!error) model.bytes = bytes;
  return model;
}

std::string origin_of(const LoadedConfig& loaded, std::string_view key) {
  for (const ConfigSetting& setting : loaded.settings)
    if (setting.key == key && setting.origin.kind != ConfigOrigin::Kind::kDefault) return setting.origin.where;
  return "default";
}

void row(std::string_view name, const std::string& text) { fmt::print("{:<11} {}\n", name, text); }

void print_machine(const Machine& machine) {
  row("device", fmt::format("cpu: {}{}", machine.cpu_model.empty() ? "unknown processor" : machine.cpu_model,
                            machine.simd.empty() ? "" : fmt::format(" ({})", fmt::join(machine.simd, " "))));
  row("processors",
      fmt::format("{} usable{}", machine.processors,
                  machine.cpu_quota ? fmt::format(", {:.2g} by the cgroup's quota", *machine.cpu_quota) : ""));
  row("memory",
      fmt::format("{}, {} available", human_bytes(machine.memory_bytes), human_bytes(machine.available_bytes)));
  row("cgroup", machine.cgroup_limit_bytes
                    ? fmt::format("limit {}, {} available ({})", human_bytes(*machine.cgroup_limit_bytes),
                                  human_bytes(*machine.cgroup_available_bytes), machine.cgroup_path)
                    : "no memory limit");
  for (const NumaNode& node : machine.nodes)
    row(fmt::format("NUMA node {}", node.node),
        fmt::format("{}, {} free, {}", human_bytes(node.total_bytes), human_bytes(node.free_bytes),
                    node.cpus.empty() ? "no processors" : "processors " + node.cpus));
  if (machine.nodes.empty()) row("NUMA", "the kernel shows no nodes: everything is local");
  if (!machine.allowed_nodes.empty()) row("cpuset", "memory from nodes " + machine.allowed_nodes);
  row("memlock", machine.memlock_bytes ? human_bytes(*machine.memlock_bytes) : "unlimited");
  row("huge pages", machine.huge_pages.empty() ? "unknown" : machine.huge_pages);
}

void print_budgets(const Machine& machine, const LoadedConfig& loaded, const ModelFile& model) {
  const Config& config = loaded.config;
  const std::string automatic = config.pool.budget_bytes != 0 ? ""
                                                              : fmt::format("; auto: a quarter of {} usable",
                                                                            human_bytes(machine.usable_bytes()));
  if (config.pool.budget_bytes == 0 && config.pool.slots != 0)
    row("pool.budget", fmt::format("what {} slots of the model need (pool.slots)", config.pool.slots));
  else
    row("pool.budget", fmt::format("{} ({}{})", human_bytes(pool_budget_bytes(machine, config)),
                                   origin_of(loaded, "pool.budget"), automatic));
  row("host.budget",
      fmt::format("{} ({})", config.host.budget_bytes == 0 ? "off" : human_bytes(config.host.budget_bytes),
                  origin_of(loaded, "host.budget")));
  row("cache", cache_folder());
  row("demo model", model.bytes != 0 ? fmt::format("{} ({})", model.path, human_bytes(model.bytes))
                                     : model.path + " is not there; ./run build fetches it");
}

constexpr std::uint64_t kSessionTokens = 8192;
constexpr std::size_t kFindingsInShort = 2;  // of five lines each

// What a budget is in a model's terms. Compression is not counted: what it gives is measured, not promised.
std::string in_tokens(std::uint64_t bytes, const sim::ModelShape& model) {
  const std::uint64_t tokens = bytes / std::max<std::uint64_t>(1, model.all_layers_token_bytes());
  return fmt::format("{} tokens of {}: {} session{} of {}", grouped(tokens), model.name,
                     grouped(tokens / kSessionTokens), tokens / kSessionTokens == 1 ? "" : "s",
                     grouped(kSessionTokens));
}

void line(std::string_view name, const std::string& text) {
  fmt::print("{}\n", wrapped(fmt::format("{:<11} {}", name, text), std::string(12, ' ')));
}

// Everything in one screen; --verbose has the rest.
void print_short(const Machine& machine, const Result<std::vector<VulkanReport>>& vulkan, const LoadedConfig& loaded,
                 const ModelFile& file, const sim::ModelShape& model) {
  line("firn", FIRN_VERSION);
  line("processors",
       fmt::format("{} usable{}, {}", machine.processors,
                   machine.cpu_quota ? fmt::format(", {:.2g} by the cgroup's quota", *machine.cpu_quota) : "",
                   machine.cpu_model.empty() ? "unknown" : machine.cpu_model));
  line("memory",
       fmt::format("{}, {} available{}{}", human_bytes(machine.memory_bytes), human_bytes(machine.available_bytes),
                   machine.cgroup_limit_bytes
                       ? fmt::format("; the cgroup's limit {} leaves {}", human_bytes(*machine.cgroup_limit_bytes),
                                     human_bytes(*machine.cgroup_available_bytes))
                       : "",
                   machine.nodes.size() > 1 ? fmt::format("; {} NUMA nodes", machine.nodes.size()) : ""));
  constexpr std::size_t kDevices = 3;
  const std::vector<std::string> devices = vulkan_summary(vulkan);
  for (std::size_t i = 0; i < std::min(devices.size(), kDevices); ++i) line(i == 0 ? "vulkan" : "", devices[i]);
  if (devices.size() > kDevices) line("", fmt::format("and {} more (--verbose)", devices.size() - kDevices));
  const Config& config = loaded.config;
  const std::uint64_t pool = pool_budget_bytes(machine, config), host = config.host.budget_bytes;
  line("pool.budget", fmt::format("{} ({}{})", human_bytes(pool), origin_of(loaded, "pool.budget"),
                                  config.pool.budget_bytes != 0 ? ""
                                                                : fmt::format("; auto: a quarter of {} usable",
                                                                              human_bytes(machine.usable_bytes()))));
  line("", in_tokens(pool, model));
  line("host.budget", fmt::format("{} ({})", host == 0 ? "off" : human_bytes(host), origin_of(loaded, "host.budget")));
  if (host != 0) line("", in_tokens(host, model));
  line("demo model", file.bytes != 0 ? fmt::format("{} ({})", file.path, human_bytes(file.bytes))
                                     : file.path + " is not there; ./run build fetches it");
}

// Another machine's drivers cannot be asked through its files.
Result<std::vector<VulkanReport>> look_for_vulkan(const Arguments& arguments) {
  if (!arguments.root.empty())
    return Status(Code::kUnavailable, "not asked for, because --root is another machine's files");
  FIRN_ASSIGN(std::vector<VulkanReport> devices, vulkan_devices());
  // What a device proves only when it is made.
  for (VulkanReport& device : devices) {
    if (!device.usable()) continue;
    const auto made = make_vulkan_device({.device = device.uuid});
    device.host_memory = made.ok() ? (*made)->report().host_memory : "cannot be made: " + made.status().message();
  }
  return devices;
}

void print_vulkan(const Result<std::vector<VulkanReport>>& devices) {
  std::string_view name = "vulkan";
  for (const std::string& line : vulkan_lines(devices)) row(std::exchange(name, ""), line);
}

// Problems first. Of more than `most`, how many there are.
void print_findings(const std::vector<Finding>& findings, std::size_t most) {
  std::size_t shown = 0;
  for (const Finding::Level level : {Finding::Level::kProblem, Finding::Level::kWarning})
    for (const Finding& finding : findings) {
      if (finding.level != level || shown == most) continue;
      ++shown;
      fmt::print(
          "{}\n{}\n",
          wrapped(fmt::format("\n{}: {}", level == Finding::Level::kProblem ? "PROBLEM" : "warning", finding.what),
                  "  "),
          wrapped("  fix: " + finding.fix, "    "));
    }
  if (shown < findings.size()) fmt::print("\nand {} more: firn doctor --verbose\n", findings.size() - shown);
  if (findings.empty()) fmt::print("\nno problems found\n");
}

template <class T>
nlohmann::ordered_json or_null(const std::optional<T>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
}

nlohmann::ordered_json machine_json(const Machine& machine) {
  nlohmann::ordered_json nodes = nlohmann::ordered_json::array();
  for (const NumaNode& node : machine.nodes)
    nodes.push_back(
        {{"node", node.node}, {"total_bytes", node.total_bytes}, {"free_bytes", node.free_bytes}, {"cpus", node.cpus}});
  return {{"devices", {{{"name", "cpu"}, {"model", machine.cpu_model}, {"simd", machine.simd}}}},
          {"processors", machine.processors},
          {"cpu_quota", or_null(machine.cpu_quota)},
          {"memory_bytes", machine.memory_bytes},
          {"available_bytes", machine.available_bytes},
          {"cgroup_limit_bytes", or_null(machine.cgroup_limit_bytes)},
          {"cgroup_available_bytes", or_null(machine.cgroup_available_bytes)},
          {"usable_bytes", machine.usable_bytes()},
          {"numa_nodes", nodes},
          {"allowed_nodes", machine.allowed_nodes},
          {"memlock_bytes", or_null(machine.memlock_bytes)},
          {"huge_pages", machine.huge_pages}};
}

void print_json(const Machine& machine, const Result<std::vector<VulkanReport>>& vulkan, const LoadedConfig& loaded,
                const ModelFile& model, const sim::ModelShape& shape, const std::vector<Finding>& findings) {
  nlohmann::ordered_json found = nlohmann::ordered_json::array();
  for (const Finding& finding : findings)
    found.push_back({{"level", finding.level == Finding::Level::kProblem ? "problem" : "warning"},
                     {"what", finding.what},
                     {"fix", finding.fix}});
  const nlohmann::ordered_json report{
      {"version", FIRN_VERSION},
      {"machine", machine_json(machine)},
      {"vulkan", vulkan_json(vulkan)},
      {"pool_budget_bytes", pool_budget_bytes(machine, loaded.config)},
      {"host_budget_bytes", loaded.config.host.budget_bytes},
      {"model", {{"name", shape.name}, {"token_bytes", shape.all_layers_token_bytes()}}},
      {"pool_tokens",
       pool_budget_bytes(machine, loaded.config) / std::max<std::uint64_t>(1, shape.all_layers_token_bytes())},
      {"host_tokens", loaded.config.host.budget_bytes / std::max<std::uint64_t>(1, shape.all_layers_token_bytes())},
      {"session_tokens", kSessionTokens},
      {"cache_folder", cache_folder()},
      {"demo_model", {{"path", model.path}, {"bytes", model.bytes}, {"there", model.bytes != 0}}},
      {"findings", found}};
  fmt::print("{}\n", report.dump(2));
}

int run(const Arguments& arguments) {
  const Result<LoadedConfig> loaded = arguments.settings.load();
  if (!loaded.ok()) return fail(loaded.status());
  const Machine machine = inspect_machine(arguments.root);
  const std::vector<Finding> findings = examine(machine, loaded->config);
  const ModelFile model = find_model();
  const Result<std::vector<VulkanReport>> vulkan = look_for_vulkan(arguments);
  const Result<sim::ModelShape> shape = load_model_shape(arguments.model);
  if (!shape.ok()) return fail(shape.status());
  if (arguments.json) {
    print_json(machine, vulkan, *loaded, model, *shape, findings);
  } else if (arguments.verbose) {
    row("firn", FIRN_VERSION);
    print_machine(machine);
    print_vulkan(vulkan);
    print_budgets(machine, *loaded, model);
    row("tokens", "pool: " + in_tokens(pool_budget_bytes(machine, loaded->config), *shape));
    if (loaded->config.host.budget_bytes != 0) row("", "host: " + in_tokens(loaded->config.host.budget_bytes, *shape));
    print_findings(findings, findings.size());
  } else {
    print_short(machine, vulkan, *loaded, model, *shape);
    print_findings(findings, kFindingsInShort);
  }
  for (const Finding& finding : findings)
    if (finding.level == Finding::Level::kProblem) return kExitProblem;
  return kExitOk;
}

}  // namespace

void add_doctor_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("doctor", "devices, memory, limits, budgets; every problem with its fix");
  auto arguments = std::make_shared<Arguments>();
  command->add_flag("--json", arguments->json, "for machines");
  command->add_flag("--verbose", arguments->verbose, "everything: nodes, limits, heaps and features of devices");
  command->add_option("--model", arguments->model, "whose tokens budgets are counted in: a name, config.json or GGUF")
      ->capture_default_str()
      ->type_name("NAME");
  command->add_option("--root", arguments->root, "read /proc and /sys below DIR: another machine's, copied")
      ->type_name("DIR");
  arguments->settings.add_to(*command);
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace firn::cli
