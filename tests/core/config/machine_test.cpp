#include "core/config/machine.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace firn {
namespace {

// A machine made of files.
class FakeMachine {
 public:
  FakeMachine() {
    root_ = std::filesystem::temp_directory_path() /
            ("firn_machine_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()) + "_" +
             std::to_string(getpid()));
    write("/proc/meminfo", "MemTotal:       1048576 kB\nMemFree: 1 kB\nMemAvailable:    524288 kB\n");
  }
  ~FakeMachine() { std::filesystem::remove_all(root_); }
  void write(const std::string& path, const std::string& text) {
    const std::filesystem::path full = root_ / path.substr(1);
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << text;
  }
  Machine inspect() const { return inspect_machine(root_); }

 private:
  std::filesystem::path root_;
};

constexpr std::uint64_t kMiB = 1 << 20;

TEST(Machine, WithoutACgroupHasWhatTheKernelSays) {
  FakeMachine fake;
  const Machine machine = fake.inspect();
  EXPECT_EQ(machine.memory_bytes, 1024 * kMiB);
  EXPECT_EQ(machine.usable_bytes(), 512 * kMiB);
  EXPECT_FALSE(machine.cgroup_limit_bytes);
}

TEST(Machine, TheTightestCgroupOnThePathCounts) {
  FakeMachine fake;
  fake.write("/proc/self/cgroup", "0::/outer/inner\n");
  fake.write("/sys/fs/cgroup/outer/memory.max", "268435456\n");  // 256 MiB, of which 200 are used
  fake.write("/sys/fs/cgroup/outer/memory.current", "209715200\n");
  fake.write("/sys/fs/cgroup/outer/memory.stat",
             "anon 1\ninactive_file 104857600\n");  // 100 MiB of it could be dropped
  fake.write("/sys/fs/cgroup/outer/inner/memory.max", "max\n");
  fake.write("/sys/fs/cgroup/outer/cpu.max", "150000 100000\n");
  fake.write("/sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n");
  const Machine machine = fake.inspect();
  EXPECT_EQ(machine.cgroup_limit_bytes, 256 * kMiB);
  EXPECT_EQ(machine.cgroup_available_bytes, 156 * kMiB);
  EXPECT_EQ(machine.usable_bytes(), 156 * kMiB);
  EXPECT_EQ(machine.cpu_quota, 1.5);
}

TEST(Machine, InAContainerTheMountIsOursWhateverThePathSays) {
  FakeMachine fake;
  fake.write("/proc/self/cgroup", "0::/system.slice/docker-abc.scope\n");
  fake.write("/sys/fs/cgroup/memory.max", "134217728\n");
  EXPECT_EQ(fake.inspect().usable_bytes(), 128 * kMiB);
}

TEST(Machine, ReadsVersionOneCgroups) {
  FakeMachine fake;
  fake.write("/proc/self/cgroup", "5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n");
  fake.write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");  // no limit
  fake.write("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "67108864\n");
  fake.write("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "100000000\n");  // over it, as after lowering
  fake.write("/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "50000\n");
  fake.write("/sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  fake.write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  const Machine machine = fake.inspect();
  EXPECT_EQ(machine.cgroup_limit_bytes, 64 * kMiB);
  EXPECT_EQ(machine.usable_bytes(), 0u);
  EXPECT_EQ(machine.cpu_quota, 0.5);
}

TEST(Machine, ReadsNodesProcessorsAndLimits) {
  FakeMachine fake;
  fake.write("/proc/cpuinfo", "processor : 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 f16c fma\n");
  fake.write("/proc/self/status", "Name: x\nCpus_allowed_list:\t0-3,8\nMems_allowed_list:\t0-1\n");
  fake.write("/proc/self/limits",
             "Limit  Soft Limit  Hard Limit  Units\nMax locked memory         65536   65536   bytes\n");
  fake.write("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
  fake.write("/sys/devices/system/node/node0/meminfo", "Node 0 MemTotal: 1024 kB\nNode 0 MemFree: 512 kB\n");
  fake.write("/sys/devices/system/node/node0/cpulist", "0-7\n");
  fake.write("/sys/devices/system/node/node2/meminfo", "Node 2 MemTotal: 2048 kB\nNode 2 MemFree: 256 kB\n");
  fake.write("/sys/devices/system/node/node2/cpulist", "\n");
  const Machine machine = fake.inspect();
  EXPECT_EQ(machine.cpu_model, "Some CPU");
  EXPECT_EQ(machine.simd, (std::vector<std::string>{"f16c", "fma", "avx2"}));
  EXPECT_EQ(machine.processors, 5u);
  EXPECT_EQ(machine.allowed_nodes, "0-1");
  EXPECT_EQ(machine.memlock_bytes, 65536u);
  EXPECT_EQ(machine.huge_pages, "madvise");
  ASSERT_EQ(machine.nodes.size(), 2u);
  EXPECT_EQ(machine.nodes[1].node, 2);
  EXPECT_EQ(machine.nodes[1].total_bytes, 2 * kMiB);
  EXPECT_EQ(machine.nodes[1].free_bytes, 256u << 10);
  EXPECT_EQ(machine.nodes[0].cpus, "0-7");
  EXPECT_EQ(machine.nodes[1].cpus, "");
}

TEST(Machine, AnEmptyMachineIsNoCrash) {
  const Machine machine = inspect_machine("/no/such/root");
  EXPECT_EQ(machine.usable_bytes(), 0u);
  EXPECT_TRUE(machine.nodes.empty());
}

TEST(Machine, TheOneWeAreOnHasMemoryAndProcessors) {
  const Machine machine = inspect_machine();
  EXPECT_GT(machine.memory_bytes, 0u);
  EXPECT_GE(machine.processors, 1u);
}

}  // namespace
}  // namespace firn
