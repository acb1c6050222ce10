// fold.comp: folds the partial results of a row's splits in ascending position, and normalises in the last wave. A
// workgroup does one query head of one row; each invocation walks through all splits for its own dimensions.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "addresses.glsl"
#include "kernel_params.h"
#include "fold.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint kValueDim = 64;
layout(push_constant) uniform Push { FoldPush p; };

layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer RangeAt { RowRange value; };
const uint kRangeBytes = 20, kItemBytes = 24;

void main() {
  const uint row = p.row_base + gl_WorkGroupID.x;
  const uint query_head = gl_WorkGroupID.y;
  const uint range_index = WordAt(element_of(p.row_ranges, row, 4u)).value;
  RowRange range = RowRange(row, 1u, 0u, 0u, p.first);
  if (range_index != kNoRange) range = RangeAt(element_of(p.ranges, range_index, kRangeBytes)).value;
  const uint stride = (kValueDim + 2u) * 4u;
  const uvec2 state = element_of(p.state, row * p.query_heads + query_head, stride);
  const bool fresh = range.fresh != 0u;
  const float first_maximum = fresh ? 0.0 : FloatAt(offset_by(state, kValueDim * 4u)).value;
  const float first_sum = fresh ? 0.0 : FloatAt(offset_by(state, kValueDim * 4u + 4u)).value;
  float maximum = first_maximum, sum = first_sum;
  for (uint d = gl_LocalInvocationIndex; d < kValueDim; d += gl_WorkGroupSize.x) {
    maximum = first_maximum;
    sum = first_sum;
    float value = fresh ? 0.0 : FloatAt(offset_by(state, d * 4u)).value;
    [[dont_unroll]] for (uint i = 0; i < range.count; ++i) {
      const uint item = WordAt(element_of(p.order, range.first + i, 4u)).value;
      const uint first = WordAt(element_of(p.first_rows, item, 4u)).value + (row - range.row);
      const uvec2 partial = element_of(p.partials, first * p.query_heads + query_head, stride);
      const float partial_sum = FloatAt(offset_by(partial, kValueDim * 4u + 4u)).value;
      if (untouched(partial_sum)) continue;
      const FoldFactors f =
          fold_factors(maximum, sum, FloatAt(offset_by(partial, kValueDim * 4u)).value, partial_sum);
      value = fold_value(value, FloatAt(offset_by(partial, d * 4u)).value, f);
      maximum = f.maximum;
      sum = f.sum;
    }
    FloatAt(offset_by(state, d * 4u)).value = value;
    if (p.last != 0u)
      FloatAt(element_of(p.out_rows, (row * p.query_heads + query_head) * kValueDim + d, 4u)).value =
          normalised(value, sum);
  }
  // Everybody has read the old maximum and sum before somebody writes the new ones; invocation 0 has dimension 0.
  memoryBarrierBuffer();
  barrier();
  if (gl_LocalInvocationIndex != 0u) return;
  FloatAt(offset_by(state, kValueDim * 4u)).value = maximum;
  FloatAt(offset_by(state, kValueDim * 4u + 4u)).value = sum;
}
