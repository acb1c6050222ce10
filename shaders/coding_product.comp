// coding_product.comp: rows times a basis: c = a B. B is the basis' transpose (coefficients of values) or the basis itself
// (values of coefficients). A workgroup does 16 rows by 16 columns; each element of c is one chain over ascending depth,
// whatever the number of rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "coding_params.h"
#include "coding.glsl"

layout(local_size_x = 16, local_size_y = 8) in;
layout(constant_id = 0) const uint kTransposed = 1;
layout(push_constant) uniform Push { ProductPush p; };

const uint kTile = 16u, kPadded = 17u;
shared float a_tile[kTile * kPadded], b_tile[kTile * kPadded];

float basis_at(uint k, uint column) {
  if (k >= p.depth || column >= p.columns) return 0.0;
  const uint component = kTransposed != 0u ? column : k, channel = p.column + (kTransposed != 0u ? k : column);
  return half_value(load_half_word(offset_by(element_of(p.basis, component, p.basis_stride * 2u), channel * 2u)));
}

void main() {
  const uint first_row = p.row_base + gl_WorkGroupID.y * kTile, first_column = gl_WorkGroupID.x * kTile;
  const uint x = gl_LocalInvocationID.x, y = gl_LocalInvocationID.y;
  float upper = 0.0, lower = 0.0;  // rows y and y + 8 of the tile
  [[dont_unroll]] for (uint k = 0u; k < p.depth; k += kTile) {
    for (uint i = gl_LocalInvocationIndex; i < kTile * kTile; i += 128u) {
      const uint slow = i / kTile, fast = i % kTile;  // neighbours read neighbouring memory
      const uint row = first_row + slow, at = k + fast;
      a_tile[slow * kPadded + fast] =
          row < p.rows && at < p.depth ? FloatAt(offset_by(element_of(p.a, row, p.a_stride * 4u), at * 4u)).value : 0.0;
      if (kTransposed != 0u) {
        b_tile[fast * kPadded + slow] = basis_at(k + fast, first_column + slow);
      } else {
        b_tile[slow * kPadded + fast] = basis_at(k + slow, first_column + fast);
      }
    }
    barrier();
    for (uint i = 0u; i < kTile; ++i) {
      const float b = b_tile[i * kPadded + x];
      upper = fma(a_tile[y * kPadded + i], b, upper);
      lower = fma(a_tile[(y + 8u) * kPadded + i], b, lower);
    }
    barrier();
  }
  const uint column = first_column + x;
  if (column >= p.columns) return;
  if (first_row + y < p.rows)
    FloatAt(offset_by(element_of(p.c, first_row + y, p.c_stride * 4u), column * 4u)).value = upper;
  if (first_row + y + 8u < p.rows)
    FloatAt(offset_by(element_of(p.c, first_row + y + 8u, p.c_stride * 4u), column * 4u)).value = lower;
}
