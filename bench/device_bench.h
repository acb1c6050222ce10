// device_bench.h: the benchmarks of a Vulkan device, registered when one is named.
#pragma once

#include <string>

namespace firn::bench {

// False: there is no such device, and stderr says why.
bool register_device_benchmarks(const std::string& name);
void close_device();  // before main returns: drivers do not like to be called from exit handlers

}  // namespace firn::bench
