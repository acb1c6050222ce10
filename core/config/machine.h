// machine.h: what this process may use of the machine it is on, as the kernel and its cgroups tell it. Automatic
// budgets come from here, and `firn doctor` prints it. Every path hangs on `root`, so that tests bring machines of
// their own.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace firn {

struct NumaNode {
  int node = 0;
  std::uint64_t total_bytes = 0, free_bytes = 0;
  std::string cpus;  // "0-7,16-23"; empty: memory only
};

struct Machine {
  std::string cpu_model;
  std::vector<std::string> simd;                        // of those that our kernels care for
  std::uint32_t processors = 0;                         // in this process's affinity mask, which a cpuset narrows
  std::optional<double> cpu_quota;                      // processors' worth of time the cgroup grants
  std::uint64_t memory_bytes = 0;                       // of the machine
  std::uint64_t available_bytes = 0;                    // of the machine, without swapping
  std::optional<std::uint64_t> cgroup_limit_bytes;      // the tightest of the cgroup and its parents
  std::optional<std::uint64_t> cgroup_available_bytes;  // below that limit; caches it could drop count as available
  std::string cgroup_path;                              // where the limit is written
  std::optional<std::uint64_t> memlock_bytes;           // nothing: unlimited
  std::optional<std::uint64_t> process_limit;           // RLIMIT_NPROC: processes and threads of this user
  std::optional<std::uint64_t> cgroup_process_limit;    // pids.max, the tightest of the cgroup and its parents
  std::uint64_t cgroup_processes = 0;                   // of that cgroup, pids.current
  std::string huge_pages;     // transparent huge pages: always, madvise or never; empty: unknown
  std::string allowed_nodes;  // NUMA nodes of the cpuset, "0-1"; empty: unknown
  std::vector<NumaNode> nodes;

  // What may still be taken: the smaller of machine and cgroup. Budgets that are `auto` are a part of it.
  std::uint64_t usable_bytes() const;
  // For messages: "23.4 GiB, of which 21 GiB are available; the cgroup /sys/fs/cgroup allows 8 GiB, 7 GiB are left".
  std::string memory_text() const;
  std::string process_text() const;  // likewise, of threads
};

Machine inspect_machine(const std::string& root = "");

}  // namespace firn
