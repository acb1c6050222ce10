// coding_dequantise.comp: codes and scales of q8 and q4 back to keys or values of one layer. A workgroup does kRows heads.
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
layout(constant_id = 6) const uint kUnit = 4;  // bytes of a store: 4, or 2 where rows of halves may begin between words
const uint kHeadBlocks = (kDim + 31u) / 32u;
const uint kHeadBytes = (kDim * kBits + 7u) / 8u;
const uint kElements = kRows * kDim;
layout(push_constant) uniform Push { IntegerPush p; };

shared float values[kElements];
shared uvec2 rows[kRows];

void main() {
  const uint thread = gl_LocalInvocationIndex, threads = gl_WorkGroupSize.x;
  const IntegerEntry item = IntegerEntryAt(element_of(p.items, p.item_base + gl_WorkGroupID.x, kIntegerEntryBytes)).value;
  const uint head_count = item.block_count * kTokensOfBlock * p.heads, first = gl_WorkGroupID.y * kRows;
  if (first >= head_count) return;
  for (uint r = thread; r < kRows; r += threads) {
    const uint token = (first + r) / p.heads, head = (first + r) % p.heads;
    ViewAt view = ViewAt(element_of(p.views, item.view + token / kTokensOfBlock, kViewBytes));
    const bool keys = p.values == 0u;
    const uvec2 base = keys ? view.k : view.v;
    const uvec2 row = element_of(element_of(base, token % kTokensOfBlock, keys ? view.token_stride : view.v_token_stride),
                                 head, keys ? view.head_stride : view.v_head_stride);
    rows[r] = is_null(base) || is_null(view.k) ? uvec2(0u) : row;
  }
  const uvec2 codes_at = element_of(element_of(item.payload, head_count, kHeadBlocks * 2u), first, kHeadBytes);
  for (uint i = thread; i < kElements; i += threads) {
    const uint row = i / kDim, e = i % kDim;
    const uvec2 scale_at = offset_by(element_of(item.payload, first + row, kHeadBlocks * 2u), e / 32u * 2u);
    const float scale = half_value(load_half_word(scale_at));
    const uint byte = row * kHeadBytes + (kBits == 8u ? e : e / 2u);
    const uint word = WordAt(offset_by(codes_at, byte / 4u * 4u)).value;
    const int bit = int(byte % 4u * 8u + (kBits == 8u ? 0u : e % 2u * 4u));
    values[i] = times(float(bitfieldExtract(int(word), bit, int(kBits))), scale);  // two's complement
  }
  barrier();
  [[dont_unroll]] for (uint step = 1u; step < kWidth; step *= 2u) {
    for (uint i = thread; i < kElements / 2u; i += threads) {
      const uint at = i / step * 2u * step + i % step;
      const float a = values[at], b = values[at + step];
      values[at] = plus(a, b);
      values[at + step] = plus(a, -b);
    }
    barrier();
  }
  const uint elements = kDtype == kF32 ? 1u : kUnit / 2u;  // of one store
  for (uint i = thread; i < kElements / elements; i += threads) {
    const uint at = i * elements;
    const uvec2 row = rows[at / kDim];
    if (is_null(row)) continue;
    const float first_value = kWidth > 1u ? times(values[at], p.mix_scale) : values[at];
    const uvec2 to = offset_by(row, at % kDim * element_bytes(kDtype));
    if (kDtype == kF32) {
      FloatAt(to).value = first_value;
    } else if (kUnit == 4u) {
      const float second = kWidth > 1u ? times(values[at + 1u], p.mix_scale) : values[at + 1u];
      WordAt(to).value = short_of(first_value, kDtype) | short_of(second, kDtype) << 16;
    } else {
      store_half_word(to, short_of(first_value, kDtype));
    }
  }
}
