// convert.h: an address as shaders see it.
#pragma once

#include "firn/device.h"
#include "shaders/kernel_params.h"

namespace firn::vk {

inline shaders::uvec2 halves(DeviceAddress address) {
  return {static_cast<std::uint32_t>(address), static_cast<std::uint32_t>(address >> 32)};
}

}  // namespace firn::vk
