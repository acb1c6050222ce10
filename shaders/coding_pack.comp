// coding_pack.comp: coefficients of a block's 16 tokens to shifts, scales and packed codes, for up to kGroupsInSlice groups.
// 16 tokens fill whole words of every part of a payload, so that no two workgroups share one. Leaves per token the squares
// of the coefficients and of what coding changes, or NaNs if a shift or scale is no finite half.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "coding_params.h"
#include "coding.glsl"

layout(local_size_x = 128) in;
layout(push_constant) uniform Push { PackPush p; };

const uint kLanes = 8u;  // of a token
shared float lows[128], highs[128];
shared uint infinite[kTokensOfBlock];
shared uint shifts[kTokensOfBlock], scales[kTokensOfBlock];

float coefficient(uint first_row, uint token, uint component) {
  return FloatAt(offset_by(element_of(p.coefficients, first_row + token, p.stride * 4u), component * 4u)).value;
}

float code_of(float value, uint token, float most) {
  const float scaled = times(plus(value, -half_value(shifts[token])), inverse_of(scales[token]));
  return round_even(scaled < 0.0 ? 0.0 : scaled > most ? most : scaled);
}

void main() {
  const uint thread = gl_LocalInvocationIndex, token = thread / kLanes, lane = thread % kLanes;
  const uint slice = gl_WorkGroupID.x, block = gl_WorkGroupID.y;
  const TransformEntry item =
      TransformEntryAt(element_of(p.items, p.item_base + gl_WorkGroupID.z, kTransformEntryBytes)).value;
  if (block >= item.block_count) return;
  const uint tokens = item.block_count * kTokensOfBlock, first_row = item.row + block * kTokensOfBlock;
  float energy = 0.0, distance = 0.0;
  if (lane == 0u) infinite[token] = 0u;
  const uint end = min((slice + 1u) * kGroupsInSlice, p.group_count);
  [[dont_unroll]] for (uint g = slice * kGroupsInSlice; g < end; ++g) {
    const GroupEntry group = GroupEntryAt(element_of(p.groups, g, kGroupEntryBytes)).value;
    barrier();  // the group before is done with shared memory
    if (group.bits == 0u) {
      for (uint c = lane; c < group.size; c += kLanes) {
        const float value = coefficient(first_row, token, group.component + c);
        energy = plus(energy, times(value, value));
        distance = plus(distance, times(value, value));
      }
      continue;
    }
    float low = coefficient(first_row, token, group.component), high = low;
    bool finite = is_finite(low);
    for (uint c = lane; c < group.size; c += kLanes) {
      const float value = coefficient(first_row, token, group.component + c);
      finite = finite && is_finite(value);
      low = value < low ? value : low;
      high = value > high ? value : high;
    }
    lows[thread] = low;
    highs[thread] = high;
    if (!finite) atomicOr(infinite[token], 1u);
    barrier();
    const uint steps = (1u << group.bits) - 1u;
    if (lane == 0u) {
      for (uint i = 1u; i < kLanes; ++i) {
        low = lows[thread + i] < low ? lows[thread + i] : low;
        high = highs[thread + i] > high ? highs[thread + i] : high;
      }
      const uint shift = half_of(floatBitsToUint(low));
      uint scale = 0u;
      if (infinite[token] == 0u && half_finite(shift)) {
        const float range = plus(high, -half_value(shift));
        if (range > 0.0) scale = half_of(divided(floatBitsToUint(range), steps));
      }
      if (!half_finite(shift) || !half_finite(scale)) infinite[token] = 1u;
      shifts[token] = shift;
      scales[token] = scale;
    }
    barrier();
    for (uint c = lane; c < group.size; c += kLanes) {
      const float value = coefficient(first_row, token, group.component + c);
      const float code = code_of(value, token, float(steps));
      const float d = plus(value, -plus(half_value(shifts[token]), times(half_value(scales[token]), code)));
      energy = plus(energy, times(value, value));
      distance = plus(distance, times(d, d));
    }
    // Low bytes of shifts, high bytes, then those of scales: four tokens a word.
    const uvec2 payload = element_of(item.payload, group.place, item.block_count);
    if (thread < 16u) {
      const uint plane = thread / 4u, byte = plane % 2u * 8u;
      uint word = 0u;
      for (uint i = 0u; i < 4u; ++i) {
        const uint t = thread % 4u * 4u + i;
        word |= ((plane < 2u ? shifts[t] : scales[t]) >> byte & 255u) << (8u * i);
      }
      WordAt(offset_by(payload, plane * tokens + block * kTokensOfBlock + thread % 4u * 4u)).value = word;
    }
    const uvec2 codes = offset_by(payload, 4u * tokens + block * 2u * group.size * group.bits);
    const uint codes_of_word = 32u / group.bits;
    for (uint w = thread; w < group.size * group.bits / 2u; w += 128u) {
      uint word = 0u;
      for (uint i = 0u; i < codes_of_word; ++i) {
        const uint at = w * codes_of_word + i, t = at / group.size;
        const float value = coefficient(first_row, t, group.component + at % group.size);
        word |= uint(code_of(value, t, float(steps))) << (i * group.bits);
      }
      WordAt(offset_by(codes, w * 4u)).value = word;
    }
  }
  barrier();
  lows[thread] = energy;
  highs[thread] = distance;
  barrier();
  if (lane != 0u) return;
  for (uint i = 1u; i < kLanes; ++i) {
    energy = plus(energy, lows[thread + i]);
    distance = plus(distance, highs[thread + i]);
  }
  const bool told = infinite[token] == 0u;
  const uvec2 sums = element_of(offset_by(item.sums, p.energies_before * tokens * 4u),
                                slice * tokens + block * kTokensOfBlock + token, 8u);
  WordAt(sums).value = told ? floatBitsToUint(energy) : kNotANumber;
  WordAt(offset_by(sums, 4u)).value = told ? floatBitsToUint(distance) : kNotANumber;
}
