// copy.comp: copies the first tokens of a block's layer bit by bit, whatever the strides on either side: copy-on-write,
// gather and scatter. A workgroup does one tensor of one token of one item, in units of 16 bytes where everything is
// aligned to them.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "addresses.glsl"
#include "kernel_params.h"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint kUnit = 4;  // 16, 4 or 2 bytes
layout(push_constant) uniform Push { CopyPush p; };

layout(buffer_reference, scalar, buffer_reference_align = 8) readonly buffer CopyItemAt {
  uvec2 from_k, from_v;
  uint from_token_stride, from_head_stride, from_v_token_stride, from_v_head_stride;
  uvec2 to_k, to_v;
  uint to_token_stride, to_head_stride, to_v_token_stride, to_v_head_stride;
  uint token_count, padding;
};
const uint kItemBytes = 72;

void main() {
  CopyItemAt item = CopyItemAt(element_of(p.items, p.item_base + gl_WorkGroupID.x, kItemBytes));
  const uint t = gl_WorkGroupID.y;
  const bool keys = gl_WorkGroupID.z == 0u;
  if (t >= item.token_count) return;
  const uvec2 source = keys ? item.from_k : item.from_v;
  if (is_null(source)) return;
  const uint units = (keys ? p.key_bytes : p.value_bytes) / kUnit;
  const uvec2 from = element_of(source, t, keys ? item.from_token_stride : item.from_v_token_stride);
  const uvec2 to = element_of(keys ? item.to_k : item.to_v, t, keys ? item.to_token_stride : item.to_v_token_stride);
  for (uint i = gl_LocalInvocationIndex; i < p.kv_heads * units; i += gl_WorkGroupSize.x) {
    const uint head = i / units;
    const uint bytes = i % units * kUnit;
    const uvec2 a = offset_by(element_of(from, head, keys ? item.from_head_stride : item.from_v_head_stride), bytes);
    const uvec2 b = offset_by(element_of(to, head, keys ? item.to_head_stride : item.to_v_head_stride), bytes);
    if (kUnit == 16u) {
      QuadAt(b).value = QuadAt(a).value;
    } else if (kUnit == 4u) {
      WordAt(b).value = WordAt(a).value;
    } else {
      store_half_word(b, load_half_word(a));
    }
  }
}
