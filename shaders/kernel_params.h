// kernel_params.h: read by C++ and GLSL alike: push constants and the tables that kernels read. Addresses come first in
// each struct, as two 32-bit halves, so that std430 and C++ agree without padding. 64-bit integers are optional in
// Vulkan and are not needed: kernels add 32-bit offsets to addresses with a carry.
#ifdef __cplusplus
#pragma once
#include <cstdint>
namespace firn::shaders {
using uint = std::uint32_t;
struct uvec2 {
  uint x = 0, y = 0;
};
#endif

const uint kF16 = 1, kBf16 = 2, kF32 = 3;  // Dtype
const uint kTokensOfBlock = 16, kTokensOfSplit = 256;
const uint kBlocksOfSplit = kTokensOfSplit / kTokensOfBlock;
const uint kMassBytes = (kBlocksOfSplit + 1u) * 4u;  // of a row, query head and split in mass_scratch
const uint kNoRange = 0xFFFFFFFFu;

struct AppendPush {
  uvec2 k, v;   // f32 rows
  uvec2 items;  // ItemTable
  uint item_base;
  uint kv_heads, head_dim, value_dim;
};

struct CopyPush {
  uvec2 items;
  uint item_base;
  uint kv_heads, key_bytes, value_bytes;  // bytes of one row of one head
};

// The bytes before and behind the words that the driver's own fill can write.
struct FillPush {
  uvec2 head, tail;           // addresses of words
  uint head_mask, tail_mask;  // 0: no such word
  uint value;                 // the byte four times
};

struct AttendPush {
  uvec2 q, state, partials;  // f32
  uvec2 views, items;        // tables of BlockView and AttendItem
  uvec2 first_rows;          // u32 an item: its first row in partials
  uvec2 ranges, order;       // RowRange; u32: items by range, ascending by split
  uvec2 mass_scratch;        // f32, where a shader of its own variant is asked for it
  uint query_heads, kv_heads;
  uint base;  // first item (partial results) or range (folding) of this dispatch
  uint window;
  float scale, soft_cap;
  uint mass_splits;  // of a row and query head in mass_scratch
};

// Rows that share their items.
struct RowRange {
  uint row, row_count;
  uint first, count;  // in order
  uint fresh;         // 1: nothing has been folded into the rows' state yet
};

struct FoldPush {
  uvec2 state, partials, out_rows;
  uvec2 items, first_rows, ranges, order;
  uvec2 row_ranges;  // u32 a row: its range, or kNoRange
  uint query_heads;
  uint row_base;
  uint first, last;
};

struct MassPush {
  uvec2 state, mass_scratch, mass;  // f32
  uint query_heads, mass_blocks, mass_splits;
  uint row_base;
};

#ifdef __cplusplus
static_assert(sizeof(AttendPush) <= 128 && sizeof(FoldPush) <= 128, "all the push-constant space Vulkan promises");
}  // namespace firn::shaders
#endif
