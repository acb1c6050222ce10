// extent_views.h: an extent in host memory as calibration keeps it: [layer][keys, values][token][head][element].
#pragma once

#include <cstddef>
#include <vector>

#include "firn/codec.h"

namespace firn {

// Views [layer][block] of a whole extent whose bytes begin at `bytes`.
inline std::vector<BlockView> extent_views(const GroupSpec& group, std::byte* bytes) {
  constexpr std::uint32_t kExtentTokens = kMaxExtentBlocks * kBlockTokens;
  std::vector<BlockView> views;
  const auto k_row = static_cast<std::uint32_t>(group.kv.key_bytes());
  const auto v_row = static_cast<std::uint32_t>(group.kv.value_bytes());
  const std::uint32_t element = bytes_of(group.kv.dtype);
  for (std::uint32_t layer = 0; layer < group.layer_count; ++layer)
    for (std::uint32_t block = 0; block < kMaxExtentBlocks; ++block) {
      std::byte* base = bytes + std::size_t{layer} * kExtentTokens * (k_row + v_row);
      views.push_back(
          {.k = reinterpret_cast<DeviceAddress>(base + block * kBlockTokens * k_row),
           .v = reinterpret_cast<DeviceAddress>(base + kExtentTokens * k_row + block * kBlockTokens * v_row),
           .token_stride = k_row,
           .head_stride = group.kv.head_dim * element,
           .v_token_stride = v_row,
           .v_head_stride = group.kv.value_dim * element});
    }
  return views;
}

}  // namespace firn
