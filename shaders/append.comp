// append.comp: rounds f32 rows of keys and values into block slots. A workgroup does one tensor of one token of one item.
// Rounding is integer arithmetic, because packHalf2x16 may round as the driver likes: the bytes equal the cpu device's.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "addresses.glsl"
#include "kernel_params.h"
#include "rounding.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint kDtype = kF16;
layout(constant_id = 2) const uint kUnit = 4;  // bytes of a store: 4, or 2 where rows of halves may begin between words
layout(push_constant) uniform Push { AppendPush p; };

layout(buffer_reference, scalar, buffer_reference_align = 8) readonly buffer AppendItemAt {
  uvec2 k, v;
  uint token_stride, head_stride, v_token_stride, v_head_stride;
  uint row, token, token_count, padding;
};
const uint kItemBytes = 48;

uint rounded(uint bits) { return kDtype == kF16 ? half_of(bits) : bf16_of(bits); }

void main() {
  AppendItemAt item = AppendItemAt(element_of(p.items, p.item_base + gl_WorkGroupID.x, kItemBytes));
  const uint t = gl_WorkGroupID.y;
  const bool keys = gl_WorkGroupID.z == 0u;
  if (t >= item.token_count) return;
  const uvec2 to = keys ? item.k : item.v;
  if (is_null(to)) return;
  const uint dim = keys ? p.head_dim : p.value_dim;
  const uint elements = kDtype == kF32 ? 1u : kUnit / 2u;  // of one store
  const uint units = dim / elements;
  const uvec2 rows = element_of(keys ? p.k : p.v, item.row + t, p.kv_heads * dim * 4u);
  const uvec2 token = element_of(to, item.token + t, keys ? item.token_stride : item.v_token_stride);
  for (uint i = gl_LocalInvocationIndex; i < p.kv_heads * units; i += gl_WorkGroupSize.x) {
    const uint head = i / units;
    const uint unit = i % units;
    const uvec2 from = offset_by(rows, (head * dim + unit * elements) * 4u);
    const uvec2 at = offset_by(element_of(token, head, keys ? item.head_stride : item.v_head_stride),
                               unit * (kDtype == kF32 ? 4u : kUnit));
    const uint first = WordAt(from).value;
    if (kDtype == kF32) {
      WordAt(at).value = first;
    } else if (kUnit == 4u) {
      WordAt(at).value = rounded(first) | (rounded(WordAt(offset_by(from, 4u)).value) << 16);
    } else {
      store_half_word(at, rounded(first));
    }
  }
}
