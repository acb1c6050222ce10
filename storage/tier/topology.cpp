#include "storage/tier/topology.h"

#include <fmt/format.h>
#include <numa.h>
#include <numaif.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>

#include "core/base/check.h"

namespace firn {
namespace {

struct FreeMask {
  void operator()(bitmask* mask) const { numa_bitmask_free(mask); }
};
using Mask = std::unique_ptr<bitmask, FreeMask>;

Status from_errno(const char* call, int error) {
  const bool denied = error == EPERM || error == ENOSYS || error == EACCES;
  return {denied ? Code::kUnavailable : Code::kIo, fmt::format("{}: {}", call, std::strerror(error))};
}

// Linux through libnuma, and through the system calls themselves where libnuma hides the error.
class System final : public Topology {
 public:
  std::vector<int> nodes() const override {
    std::vector<int> result;
    if (has_numa_) {
      const Mask allowed(numa_get_mems_allowed());
      for (int node = 0; node <= numa_max_node(); ++node)
        if (numa_bitmask_isbitset(allowed.get(), static_cast<unsigned>(node)) != 0 &&
            numa_node_size64(node, nullptr) > 0)
          result.push_back(node);
    }
    if (result.empty()) result.push_back(0);
    return result;
  }

  int local_node() const override {
    const int node = has_numa_ ? numa_node_of_cpu(sched_getcpu()) : 0;
    return node < 0 ? 0 : node;
  }

  Status prefer(std::span<std::byte> range, int node) override {
    if (!has_numa_) return {};
    const Mask mask(numa_allocate_nodemask());
    numa_bitmask_setbit(mask.get(), static_cast<unsigned>(node));
    if (mbind(range.data(), range.size(), MPOL_PREFERRED, mask->maskp, mask->size + 1, 0) == 0) return {};
    return from_errno("mbind", errno);
  }

  Status touch_from(std::span<std::byte> range, int node) override {
    int error = 0;
    std::thread toucher([&] {
      if (has_numa_ && numa_run_on_node(node) != 0) error = errno;  // a node without processors: touched from here then
      const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
      for (std::size_t at = 0; at < range.size(); at += page)
        *const_cast<volatile std::byte*>(&range[at]) = std::byte{0};
    });
    toucher.join();
    return error == 0 ? Status() : from_errno("sched_setaffinity", error);
  }

  Status locate(std::span<void* const> pages, std::span<int> nodes) const override {
    FIRN_CHECK(pages.size() == nodes.size());
    std::fill(nodes.begin(), nodes.end(), -1);
    if (!has_numa_) return {};
    // With no target nodes move_pages moves nothing and answers where each page is.
    if (move_pages(0, pages.size(), const_cast<void**>(pages.data()), nullptr, nodes.data(), 0) >= 0) return {};
    return from_errno("move_pages", errno);
  }

 private:
  bool has_numa_ = numa_available() >= 0;
};

}  // namespace

Topology& system_topology() {
  static System system;
  return system;
}

}  // namespace firn
