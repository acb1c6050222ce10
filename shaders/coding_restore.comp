// coding_restore.comp: a row of scratch back into a slot: mean added, keys rotated to their positions, rounded to the cache's
// type. A workgroup does one token of one layer.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "coding_params.h"
#include "coding.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint kDtype = kF16;
layout(constant_id = 2) const uint kDim = 64;
layout(constant_id = 3) const uint kPairing = kPairingNone;
layout(constant_id = 4) const uint kRotated = 0;  // leading dimensions
layout(constant_id = 5) const uint kUnit = 4;  // bytes of a store: 4, or 2 where rows of halves may begin between words
const uint kHalf = kRotated / 2u;
layout(push_constant) uniform Push { RowsPush p; };

float centred(uvec2 x, uvec2 mean, uint c) {
  return plus(FloatAt(offset_by(x, c * 4u)).value, FloatAt(offset_by(mean, c * 4u)).value);
}

void main() {
  const TransformEntry item =
      TransformEntryAt(element_of(p.items, p.item_base + gl_WorkGroupID.z, kTransformEntryBytes)).value;
  const uint token = gl_WorkGroupID.x, layer = gl_WorkGroupID.y, tokens = item.block_count * kTokensOfBlock;
  if (token >= tokens) return;
  ViewAt view =
      ViewAt(element_of(p.views, item.view + layer * item.block_count + token / kTokensOfBlock, kViewBytes));
  if (is_null(view.k)) return;
  const bool keys = p.values == 0u;
  const uvec2 row = element_of(keys ? view.k : view.v, token % kTokensOfBlock,
                               keys ? view.token_stride : view.v_token_stride);
  const uint head_stride = keys ? view.head_stride : view.v_head_stride;
  const uint width = p.heads * kDim;
  const uvec2 x = offset_by(element_of(p.x, item.row + token, p.layer_count * width * 4u), layer * width * 4u);
  const uvec2 mean = offset_by(p.mean, layer * width * 4u);
  const uint elements = kDtype == kF32 ? 1u : kUnit / 2u;  // of one store
  for (uint unit = gl_LocalInvocationIndex; unit < width / elements; unit += gl_WorkGroupSize.x) {
    uint word = 0u;
    for (uint e = 0u; e < elements; ++e) {
      const uint c = unit * elements + e, d = c % kDim;
      float value = centred(x, mean, c);
      if (kPairing != kPairingNone && d < kRotated) {
        const bool adjacent = kPairing == kPairingAdjacent;
        const bool is_first = adjacent ? d % 2u == 0u : d < kHalf;
        const uint i = adjacent ? d / 2u : d % kHalf;
        const float other = centred(x, mean, c - d + (adjacent ? d ^ 1u : is_first ? d + kHalf : d - kHalf));
        const float cosine = times(FloatAt(element_of(item.turns, token * kHalf + i, 4u)).value, p.factor);
        const float sine = times(FloatAt(element_of(item.turns, (tokens + token) * kHalf + i, 4u)).value, p.factor);
        value =
            is_first ? plus(times(value, cosine), -times(other, sine)) : plus(times(value, cosine), times(other, sine));
      }
      word |= kDtype == kF32 ? floatBitsToUint(value) : short_of(value, kDtype) << (16u * e);
    }
    const uint first = unit * elements;
    const uvec2 to = offset_by(element_of(row, first / kDim, head_stride), first % kDim * element_bytes(kDtype));
    if (kDtype == kF32 || kUnit == 4u) {
      WordAt(to).value = word;
    } else {
      store_half_word(to, word);
    }
  }
}
