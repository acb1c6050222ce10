// library_run.h: the timing model through the library itself: a firn Manager over device "none", with the simulation's
// clock as its own, its policies, its mover, its host tier and its books, asked by a VirtualEngine as an engine would.
// Blocks are the library's 16 tokens. The model's blocks are made small, and the budgets with them, so that the tier's
// untouched memory stays small too: counts depend on how many blocks fit, not on their bytes.
#pragma once

#include "sim/engine.h"

namespace firn::sim {

// What run_engine reports, as far as a manager tells: no ages at eviction, no disk tier.
Result<EngineResult> run_through_manager(const std::string& path, const TraceOptions& trace,
                                         const EngineOptions& options, const Tick& tick = {});

}  // namespace firn::sim
