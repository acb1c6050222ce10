// coding_unpack.comp: shifts, scales and packed codes of a block's 16 tokens to coefficients, for up to kGroupsInSlice groups.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "coding_params.h"
#include "coding.glsl"

layout(local_size_x = 128) in;
layout(push_constant) uniform Push { PackPush p; };

uint byte_at(uvec2 base, uint at) { return WordAt(offset_by(base, at / 4u * 4u)).value >> (at % 4u * 8u) & 255u; }

void main() {
  const uint thread = gl_LocalInvocationIndex, slice = gl_WorkGroupID.x, block = gl_WorkGroupID.y;
  const TransformEntry item =
      TransformEntryAt(element_of(p.items, p.item_base + gl_WorkGroupID.z, kTransformEntryBytes)).value;
  if (block >= item.block_count) return;
  const uint tokens = item.block_count * kTokensOfBlock, first_token = block * kTokensOfBlock;
  const uint end = min((slice + 1u) * kGroupsInSlice, p.group_count);
  [[dont_unroll]] for (uint g = slice * kGroupsInSlice; g < end; ++g) {
    const GroupEntry group = GroupEntryAt(element_of(p.groups, g, kGroupEntryBytes)).value;
    const uvec2 payload = element_of(item.payload, group.place, item.block_count);
    const uvec2 codes = offset_by(payload, 4u * tokens + block * 2u * group.size * group.bits);
    for (uint i = thread; i < kTokensOfBlock * group.size; i += 128u) {
      const uint token = first_token + i / group.size;
      float value = 0.0;
      if (group.bits != 0u) {
        const float shift = half_value(byte_at(payload, token) | byte_at(payload, tokens + token) << 8);
        const float scale = half_value(byte_at(payload, 2u * tokens + token) | byte_at(payload, 3u * tokens + token) << 8);
        const uint bit = i * group.bits;
        const uint code = bitfieldExtract(WordAt(offset_by(codes, bit / 32u * 4u)).value, int(bit % 32u), int(group.bits));
        value = plus(shift, times(scale, float(code)));
      }
      FloatAt(offset_by(element_of(p.coefficients, item.row + token, p.stride * 4u),
                        (group.component + i % group.size) * 4u))
          .value = value;
    }
  }
}
