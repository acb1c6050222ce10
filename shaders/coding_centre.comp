// coding_centre.comp: keys or values of one token and layer out of a slot: rotation taken off, mean subtracted, into a row
// of scratch. Leaves the sum of squares, or a NaN if a value is not finite.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "coding_params.h"
#include "coding.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint kDtype = kF16;
layout(constant_id = 2) const uint kDim = 64;
layout(constant_id = 3) const uint kPairing = kPairingNone;
layout(constant_id = 4) const uint kRotated = 0;  // leading dimensions
const uint kHalf = kRotated / 2u;
layout(push_constant) uniform Push { RowsPush p; };

shared float energies[gl_WorkGroupSize.x];
shared uint infinite;

void main() {
  const uint thread = gl_LocalInvocationIndex, threads = gl_WorkGroupSize.x;
  const TransformEntry item =
      TransformEntryAt(element_of(p.items, p.item_base + gl_WorkGroupID.z, kTransformEntryBytes)).value;
  const uint token = gl_WorkGroupID.x, layer = gl_WorkGroupID.y, tokens = item.block_count * kTokensOfBlock;
  if (token >= tokens) return;
  if (thread == 0u) infinite = 0u;
  barrier();
  ViewAt view =
      ViewAt(element_of(p.views, item.view + layer * item.block_count + token / kTokensOfBlock, kViewBytes));
  const bool keys = p.values == 0u;
  const uvec2 row = element_of(keys ? view.k : view.v, token % kTokensOfBlock,
                               keys ? view.token_stride : view.v_token_stride);
  const uint head_stride = keys ? view.head_stride : view.v_head_stride;
  const uint width = p.heads * kDim;
  const uvec2 x = offset_by(element_of(p.x, item.row + token, p.layer_count * width * 4u), layer * width * 4u);
  const uvec2 mean = offset_by(p.mean, layer * width * 4u);
  float energy = 0.0;
  bool finite = true;
  for (uint c = thread; c < width; c += threads) {
    const uvec2 head = element_of(row, c / kDim, head_stride);
    const uint d = c % kDim;
    float value = load_element(head, d, kDtype);
    finite = finite && is_finite(value);
    if (kPairing != kPairingNone && d < kRotated) {
      const bool adjacent = kPairing == kPairingAdjacent;
      const bool is_first = adjacent ? d % 2u == 0u : d < kHalf;
      const uint i = adjacent ? d / 2u : d % kHalf;
      const float other = load_element(head, adjacent ? d ^ 1u : is_first ? d + kHalf : d - kHalf, kDtype);
      const float cosine = times(FloatAt(element_of(item.turns, token * kHalf + i, 4u)).value, p.factor);
      const float sine = times(-FloatAt(element_of(item.turns, (tokens + token) * kHalf + i, 4u)).value, p.factor);
      value = is_first ? plus(times(value, cosine), -times(other, sine)) : plus(times(value, cosine), times(other, sine));
    }
    value = plus(value, -FloatAt(offset_by(mean, c * 4u)).value);
    FloatAt(offset_by(x, c * 4u)).value = value;
    energy = plus(energy, times(value, value));
  }
  energies[thread] = energy;
  if (!finite) atomicOr(infinite, 1u);
  barrier();
  if (thread != 0u) return;
  for (uint i = 1u; i < threads; ++i) energy = plus(energy, energies[i]);
  WordAt(element_of(item.sums, layer * tokens + token, 4u)).value = infinite != 0u ? kNotANumber : floatBitsToUint(energy);
}
