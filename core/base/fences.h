// fences.h: whose a fence is. A caller may hand in any: of another device, made up, or of a kind that nobody here can
// wait for.
#pragma once

#include <cstdint>

#include "firn/device.h"

namespace firn {

// Of no other timeline in this process.
std::uint64_t next_timeline_handle();

// kInvalidArgument says why a timeline that has given out fences up to `last` did not give out this one, or cannot wait
// for its kind.
Status check_fence(const Fence& fence, const Fence& last);

}  // namespace firn
