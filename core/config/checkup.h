// checkup.h: what `firn doctor` thinks of a machine and a deployment together: every problem with its fix.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config/machine.h"
#include "firn/config.h"

namespace firn {

struct Finding {
  enum class Level : std::uint8_t {
    kProblem,
    kWarning
  } level = Level::kWarning;  // problem: it will not work as configured
  std::string what, fix;
};
std::vector<Finding> examine(const Machine& machine, const Config& config);

// What pool.budget comes to: as configured, or for `auto` a quarter of the memory that may be used now. 0: pool.slots
// and the model decide.
std::uint64_t pool_budget_bytes(const Machine& machine, const Config& config);

}  // namespace firn
