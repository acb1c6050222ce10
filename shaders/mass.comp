// mass.comp: attention mass: what each block was worth to a row, summed over its query heads, from what attend.comp left
// by (row, query head, split) and the rows' final state. One invocation a block; heads ascend, whatever the dispatch.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "addresses.glsl"
#include "kernel_params.h"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint kValueDim = 64;
layout(push_constant) uniform Push { MassPush p; };

void main() {
  const uint block = gl_GlobalInvocationID.x;
  const uint row = p.row_base + gl_WorkGroupID.y;
  if (block >= p.mass_blocks) return;
  float mass = 0.0;
  [[dont_unroll]] for (uint head = 0; head < p.query_heads; ++head) {
    const uint pair = row * p.query_heads + head;
    const uvec2 state = element_of(p.state, pair, (kValueDim + 2u) * 4u);
    const float maximum = FloatAt(offset_by(state, kValueDim * 4u)).value;
    const float sum = FloatAt(offset_by(state, kValueDim * 4u + 4u)).value;
    const uvec2 cell = element_of(p.mass_scratch, pair * p.mass_splits + block / kBlocksOfSplit, kMassBytes);
    const float of_split = FloatAt(offset_by(cell, kBlocksOfSplit * 4u)).value;
    // Nothing was seen; or nobody touched this split, which a maximum of zero above the final one gives away.
    if (floatBitsToUint(sum) == 0u || of_split > maximum) continue;
    mass = fma(FloatAt(offset_by(cell, block % kBlocksOfSplit * 4u)).value, exp(of_split - maximum) / sum, mass);
  }
  FloatAt(element_of(p.mass, row * p.mass_blocks + block, 4u)).value = mass;
}
