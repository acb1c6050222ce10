#include "core/config/checkup.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

namespace firn {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;

std::string mib(std::uint64_t bytes) { return fmt::format("{}MiB", bytes / kMiB); }

void check_memory(const Machine& machine, const Config& config, std::vector<Finding>& findings) {
  constexpr std::uint64_t kTight = 256 * kMiB;
  const std::uint64_t usable = machine.usable_bytes(), pool = pool_budget_bytes(machine, config);
  if (usable == 0) return;  // the kernel does not say
  const std::string from = machine.cgroup_available_bytes && *machine.cgroup_available_bytes == usable
                               ? fmt::format("the cgroup's limit of {} ({}) leaves {}",
                                             mib(*machine.cgroup_limit_bytes), machine.cgroup_path, mib(usable))
                               : fmt::format("the machine has {} to give", mib(usable));
  if (pool + config.host.budget_bytes > usable)
    findings.push_back({Finding::Level::kProblem,
                        fmt::format("pool.budget {} and host.budget {} together are more than there is: {}", mib(pool),
                                    mib(config.host.budget_bytes), from),
                        "lower host.budget or pool.budget, or raise the limit"});
  else if (usable < kTight)
    findings.push_back({Finding::Level::kWarning, fmt::format("little memory is left: {}", from),
                        "free some, or raise the limit of the cgroup or container"});
}

void check_processors(const Machine& machine, const Config& config, std::vector<Finding>& findings) {
  const std::uint32_t threads = config.threads != 0 ? config.threads : machine.processors;
  if (machine.cpu_quota && *machine.cpu_quota + 0.01 < threads)
    findings.push_back(
        {Finding::Level::kWarning,
         fmt::format("{} threads would share {:.2g} processors' worth of time (the cgroup's quota), and be "
                     "stopped in the middle of steps",
                     threads, *machine.cpu_quota),
         fmt::format("set threads: {}", std::max(1.0, std::floor(*machine.cpu_quota)))});
  const auto has = [&](const char* flag) {
    return std::find(machine.simd.begin(), machine.simd.end(), flag) != machine.simd.end();
  };
  if (!machine.simd.empty() && !has("avx2") && !has("asimd"))
    findings.push_back({Finding::Level::kWarning,
                        "the processor has neither AVX2 nor NEON: attention runs several times slower",
                        "on a virtual machine, pass the host's processor model through"});
}

void check_huge_pages(const Machine& machine, const Config& config, std::vector<Finding>& findings) {
  if (machine.huge_pages == "never" && config.host.huge_pages)
    findings.push_back(
        {Finding::Level::kWarning, "transparent huge pages are off: the pool and the host tier use small pages",
         "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root), or set host.huge_pages: false"});
}

void check_placement(const Machine& machine, const Config& config, std::vector<Finding>& findings) {
  constexpr std::string_view kNode = "node:";
  const std::string& placement = config.host.placement;
  if (config.host.budget_bytes == 0 || machine.nodes.empty() || !placement.starts_with(kNode)) return;
  int wanted = -1;
  std::from_chars(placement.data() + kNode.size(), placement.data() + placement.size(), wanted);
  std::string there;
  for (const NumaNode& node : machine.nodes) {
    there += fmt::format("{}{}", there.empty() ? "" : ", ", node.node);
    if (node.node != wanted) continue;
    if (node.free_bytes < config.host.budget_bytes)
      findings.push_back({Finding::Level::kWarning,
                          fmt::format("node {} has {} free, less than host.budget {}", wanted, mib(node.free_bytes),
                                      mib(config.host.budget_bytes)),
                          "lower host.budget, or set host.placement: interleave"});
    return;
  }
  findings.push_back({Finding::Level::kProblem,
                      fmt::format("host.placement is node:{}, and there is no such node", wanted),
                      fmt::format("nodes there are: {}", there)});
}

}  // namespace

std::uint64_t pool_budget_bytes(const Machine& machine, const Config& config) {
  if (config.pool.budget_bytes == 0 && config.pool.slots != 0) return 0;  // the model decides
  return config.pool.budget_bytes != 0 ? config.pool.budget_bytes : machine.usable_bytes() / 4;
}

std::vector<Finding> examine(const Machine& machine, const Config& config) {
  std::vector<Finding> findings;
  check_memory(machine, config, findings);
  check_processors(machine, config, findings);
  check_huge_pages(machine, config, findings);
  check_placement(machine, config, findings);
  return findings;
}

}  // namespace firn
