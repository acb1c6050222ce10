// coding_quantise.comp: q8 and q4 of one layer's keys or values: each head is transformed, each block of 32 values gets a
// scale and codes. A workgroup does kRows heads, a multiple of 4, so that it writes whole words and shares none.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "coding_params.h"
#include "coding.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint kDtype = kF16;
layout(constant_id = 2) const uint kBits = 8;
layout(constant_id = 3) const uint kDim = 64;
layout(constant_id = 4) const uint kWidth = 64;  // of the transform; 1: none
layout(constant_id = 5) const uint kRows = 4;
const uint kHeadBlocks = (kDim + 31u) / 32u;
const uint kHeadBytes = (kDim * kBits + 7u) / 8u;
const uint kBlocks = kRows * kHeadBlocks, kElements = kRows * kDim;
layout(push_constant) uniform Push { IntegerPush p; };

shared float values[kElements];  // then codes
shared float errors[kBlocks], energies[kBlocks];
shared uint scales[kBlocks];
shared uvec2 rows[kRows];

// One block: scale and codes. The error of one that has no scale is -1.
void quantise(uint block) {
  const uint first = block / kHeadBlocks * kDim + block % kHeadBlocks * 32u;
  const uint end = first + min(32u, kDim - block % kHeadBlocks * 32u);
  float top = values[first], energy = 0.0;
  bool finite = true;
  for (uint i = first; i < end; ++i) {
    const float value = values[i];
    finite = finite && is_finite(value);
    if (abs(value) > abs(top)) top = value;
    energy = plus(energy, times(value, value));
  }
  const uint top_bits = floatBitsToUint(top), magnitude = top_bits & kMagnitude;
  uint scale;
  if (kBits == 8u) {
    scale = half_of(divided(magnitude, 127u));
  } else {  // top / -8: 4 bits have one more code below zero, and the largest magnitude takes it
    scale = half_of((magnitude >= 0x02000000u ? magnitude - 0x01800000u : 0u) | (~top_bits & 0x80000000u));
  }
  scales[block] = scale;
  if (!finite || !half_finite(scale)) {
    errors[block] = -1.0;
    energies[block] = 0.0;
    return;
  }
  const float width = half_value(scale), inverse = inverse_of(scale);
  const float least = kBits == 8u ? -127.0 : -8.0, most = kBits == 8u ? 127.0 : 7.0;
  float error = 0.0;
  for (uint i = first; i < end; ++i) {
    const float value = values[i];
    const float code = round_even(min(max(times(value, inverse), least), most));
    const float d = plus(value, -times(code, width));
    error = plus(error, times(d, d));
    values[i] = code;
  }
  errors[block] = error;
  energies[block] = energy;
}

uint code_byte(uint at) {
  const uint row = at / kHeadBytes * kDim, within = at % kHeadBytes;
  if (kBits == 8u) return uint(int(values[row + within])) & 255u;
  const uint low = uint(int(values[row + 2u * within])) & 15u;
  const uint high = 2u * within + 1u < kDim ? uint(int(values[row + 2u * within + 1u])) & 15u : 0u;
  return low | high << 4;
}

void main() {
  const uint thread = gl_LocalInvocationIndex, threads = gl_WorkGroupSize.x;
  const IntegerEntry item = IntegerEntryAt(element_of(p.items, p.item_base + gl_WorkGroupID.x, kIntegerEntryBytes)).value;
  const uint head_count = item.block_count * kTokensOfBlock * p.heads, first = gl_WorkGroupID.y * kRows;
  if (first >= head_count) return;
  for (uint r = thread; r < kRows; r += threads) {
    const uint token = (first + r) / p.heads, head = (first + r) % p.heads;
    ViewAt view = ViewAt(element_of(p.views, item.view + token / kTokensOfBlock, kViewBytes));
    const bool keys = p.values == 0u;
    rows[r] = element_of(element_of(keys ? view.k : view.v, token % kTokensOfBlock,
                                    keys ? view.token_stride : view.v_token_stride),
                         head, keys ? view.head_stride : view.v_head_stride);
  }
  barrier();
  for (uint i = thread; i < kElements; i += threads) values[i] = load_element(rows[i / kDim], i % kDim, kDtype);
  barrier();
  // Heads are a multiple of kWidth long, so that all of them are one run of transforms.
  [[dont_unroll]] for (uint step = 1u; step < kWidth; step *= 2u) {
    for (uint i = thread; i < kElements / 2u; i += threads) {
      const uint at = i / step * 2u * step + i % step;
      const float a = values[at], b = values[at + step];
      values[at] = plus(a, b);
      values[at + step] = plus(a, -b);
    }
    barrier();
  }
  if (kWidth > 1u) {
    for (uint i = thread; i < kElements; i += threads) values[i] = times(values[i], p.mix_scale);
    barrier();
  }
  for (uint b = thread; b < kBlocks; b += threads) quantise(b);
  barrier();
  const uvec2 scales_at = element_of(item.payload, first, kHeadBlocks * 2u);
  for (uint i = thread; i < kBlocks / 2u; i += threads)
    WordAt(offset_by(scales_at, i * 4u)).value = scales[2u * i] | scales[2u * i + 1u] << 16;
  const uvec2 codes_at = element_of(element_of(item.payload, head_count, kHeadBlocks * 2u), first, kHeadBytes);
  for (uint i = thread; i < kRows * kHeadBytes / 4u; i += threads)
    WordAt(offset_by(codes_at, i * 4u)).value = code_byte(4u * i) | code_byte(4u * i + 1u) << 8 |
                                                code_byte(4u * i + 2u) << 16 | code_byte(4u * i + 3u) << 24;
  for (uint r = thread; r < kRows; r += threads) {
    float error = 0.0, energy = 0.0;
    bool scaled = true;
    for (uint b = r * kHeadBlocks; b < (r + 1u) * kHeadBlocks; ++b) {
      scaled = scaled && errors[b] >= 0.0;
      error = plus(error, errors[b]);
      energy = plus(energy, energies[b]);
    }
    const uvec2 at = element_of(item.sums, first + r, 8u);
    FloatAt(at).value = scaled ? error : -1.0;
    FloatAt(offset_by(at, 4u)).value = scaled ? energy : 0.0;
  }
}
