// machine_context.h: what a measurement must say about itself before anybody can compare it.
#pragma once

#include <map>
#include <string>

#include "core/config/machine.h"

namespace firn::bench {

// The commit is not here: a binary does not know what became of its sources. `./run bench` adds it.
inline std::map<std::string, std::string> machine_context() {
  const Machine machine = inspect_machine();
  std::string simd;
  for (const std::string& flag : machine.simd) simd += (simd.empty() ? "" : " ") + flag;
  return {{"device", "cpu"},
          {"cpu", machine.cpu_model},
          {"simd", simd},
          {"processors", std::to_string(machine.processors)},
          {"memory_bytes", std::to_string(machine.memory_bytes)},
          {"numa_nodes", std::to_string(machine.nodes.size())},
          {"huge_pages", machine.huge_pages},
          {"compiler", __VERSION__},
#ifdef NDEBUG
          {"build", "release"}};
#else
          {"build", "debug"}};
#endif
}

}  // namespace firn::bench
