// topology.h: what the host tier asks of the machine about its memory nodes. An interface, so that the policies of
// machines with many nodes are tested on machines with one. Threads: any.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "firn/status.h"

namespace firn {

class Topology {
 public:
  virtual ~Topology() = default;
  // Nodes whose memory this process may use, ascending; never empty. A kernel without NUMA has node 0.
  virtual std::vector<int> nodes() const = 0;
  // The node of the processor that the calling thread is on.
  virtual int local_node() const = 0;
  // Asks that the pages of the range, none touched yet, come from the node while it has any. Preferred, never bound: a
  // bound node that runs full kills the process, a preferred one spills and verification tells.
  // kUnavailable: the kernel does not let us ask (containers).
  virtual Status prefer(std::span<std::byte> range, int node) = 0;
  // Touches every page of the range from a thread that runs on the node: where prefer is not allowed.
  virtual Status touch_from(std::span<std::byte> range, int node) = 0;
  // The node each page is on; negative: not touched yet, or the kernel does not say.
  virtual Status locate(std::span<void* const> pages, std::span<int> nodes) const = 0;
};

Topology& system_topology();

}  // namespace firn
