// coding_params.h: read by C++ and GLSL alike: push constants and tables of the kernels that code blocks. As in
// kernel_params.h addresses come first.
#ifdef __cplusplus
#pragma once
#include "shaders/kernel_params.h"
namespace firn::shaders {
#else
#include "kernel_params.h"
#endif

const uint kGroupsInSlice = 32;  // groups that one workgroup packs, and whose errors it sums
const uint kPairingNone = 0, kPairingAdjacent = 1, kPairingHalves = 2;

// IntegerItem as the host lays it out.
struct IntegerEntry {
  uvec2 payload, sums;
  uint view, block_count;
};
struct IntegerPush {
  uvec2 items, views;
  uint item_base;
  uint heads;
  uint values;      // 1: V of each view, 0: K
  float mix_scale;  // what a transformed value is multiplied with
};

// A TransformItem, and where its tokens are in scratch.
struct TransformEntry {
  uvec2 payload, sums, turns;
  uint view, block_count;
  uint row;
  uint padding;
};
struct GroupEntry {
  uint component, size, bits;
  uint place;  // in a payload of one block
};
struct RowsPush {  // slots to rows of scratch and back
  uvec2 items, views, mean, x;
  uint item_base;
  uint heads, layer_count;
  uint values;
  float factor;  // of rotated dimensions
};
struct ProductPush {
  uvec2 a, basis, c;
  uint a_stride, basis_stride, c_stride;  // in elements
  uint column;                            // first channel, of a restore
  uint rows, columns, depth;
  uint row_base;
};
struct PackPush {
  uvec2 items, groups, coefficients;
  uint item_base;
  uint group_count;
  uint stride;           // components
  uint energies_before;  // layers: sums of slices come behind [layer][token]
};

#ifdef __cplusplus
static_assert(sizeof(IntegerEntry) == 24 && sizeof(TransformEntry) == 40 && sizeof(GroupEntry) == 16);
static_assert(sizeof(RowsPush) <= 128 && sizeof(ProductPush) <= 128);
}  // namespace firn::shaders
#endif
