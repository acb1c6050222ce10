#include "core/config/checkup.h"

#include <gtest/gtest.h>

namespace firn {
namespace {

constexpr std::uint64_t kGiB = 1ull << 30;

Machine good_machine() {
  Machine machine;
  machine.simd = {"avx2", "f16c", "fma"};
  machine.processors = 4;
  machine.memory_bytes = 16 * kGiB;
  machine.available_bytes = 12 * kGiB;
  machine.huge_pages = "madvise";
  machine.nodes = {{.node = 0, .total_bytes = 8 * kGiB, .free_bytes = 6 * kGiB, .cpus = "0-3"},
                   {.node = 1, .total_bytes = 8 * kGiB, .free_bytes = 6 * kGiB, .cpus = ""}};
  return machine;
}

std::vector<Finding> expect_one(const Machine& machine, const Config& config, Finding::Level level) {
  const std::vector<Finding> findings = examine(machine, config);
  EXPECT_EQ(findings.size(), 1u);
  if (findings.size() == 1) {
    EXPECT_EQ(findings[0].level, level) << findings[0].what;
    EXPECT_FALSE(findings[0].fix.empty());
  }
  return findings;
}

TEST(Checkup, AGoodMachineHasNoFindings) { EXPECT_TRUE(examine(good_machine(), Config{}).empty()); }

TEST(Checkup, AutomaticBudgetIsAQuarterOfWhatTheCgroupLeaves) {
  Machine machine = good_machine();
  EXPECT_EQ(pool_budget_bytes(machine, Config{}), 3 * kGiB);
  machine.cgroup_limit_bytes = 4 * kGiB, machine.cgroup_available_bytes = 2 * kGiB;
  EXPECT_EQ(pool_budget_bytes(machine, Config{}), kGiB / 2);
  Config config;
  config.pool.budget_bytes = kGiB;
  EXPECT_EQ(pool_budget_bytes(machine, config), kGiB);
}

TEST(Checkup, BudgetsThatDoNotFitAreAProblem) {
  Config config;
  config.pool.budget_bytes = 8 * kGiB, config.host.budget_bytes = 8 * kGiB;
  expect_one(good_machine(), config, Finding::Level::kProblem);
  Machine machine = good_machine();
  machine.cgroup_limit_bytes = 4 * kGiB, machine.cgroup_available_bytes = 3 * kGiB, machine.cgroup_path = "/here";
  config.host.budget_bytes = 0;
  const auto findings = expect_one(machine, config, Finding::Level::kProblem);
  EXPECT_NE(findings[0].what.find("/here"), std::string::npos);
}

TEST(Checkup, AQuotaBelowTheThreadsIsNamedWithTheNumberToSet) {
  Machine machine = good_machine();
  machine.cpu_quota = 2.5;
  EXPECT_EQ(expect_one(machine, Config{}, Finding::Level::kWarning)[0].fix, "set threads: 2");
  Config config;
  config.threads = 2;
  EXPECT_TRUE(examine(machine, config).empty());
}

TEST(Checkup, SlowProcessorsAndSmallPagesAreWarnings) {
  Machine machine = good_machine();
  machine.simd = {"sse4_2"};
  expect_one(machine, Config{}, Finding::Level::kWarning);
  machine = good_machine();
  machine.huge_pages = "never";
  expect_one(machine, Config{}, Finding::Level::kWarning);
  machine = good_machine();
  machine.available_bytes = 100 << 20;
  expect_one(machine, Config{}, Finding::Level::kWarning);
}

TEST(Checkup, PlacementIsHeldAgainstTheNodesThereAre) {
  Config config;
  config.host.budget_bytes = kGiB, config.host.placement = "node:7";
  EXPECT_EQ(expect_one(good_machine(), config, Finding::Level::kProblem)[0].fix, "nodes there are: 0, 1");
  config.host.placement = "node:1";
  EXPECT_TRUE(examine(good_machine(), config).empty());
  config.host.budget_bytes = 7 * kGiB;
  expect_one(good_machine(), config, Finding::Level::kWarning);
}

}  // namespace
}  // namespace firn
