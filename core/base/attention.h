// attention.h: what every backend agrees on about attend's scratch memory.
//
// Ranges of at most kPartialRows rows (decode, speculation) bring too few rows to keep a device busy, so their splits
// are attended side by side: each leaves a partial result in scratch, and a fold follows. Longer ranges (chunked
// prefill) bring enough rows; their splits are attended one after the other straight into the accumulators, because
// partial results of 256 rows would be larger than the keys and values that were read. The arithmetic is the same
// either way.
#pragma once

#include <cstdint>

#include "firn/device.h"

namespace firn {

inline constexpr std::uint32_t kPartialRows = 8;

constexpr bool leaves_partials(const AttendItem& item) { return item.row_count <= kPartialRows; }
// Floats of one (row, query head) in state and in partials: weighted values, maximum, sum.
constexpr std::uint64_t accumulator_floats(const KvShape& shape) { return std::uint64_t{shape.value_dim} + 2; }
// Partials begin with one u32 an item, the item's first partial row; the rows follow on the next 64-byte boundary.
constexpr std::uint64_t partial_table_bytes(std::uint64_t item_count) { return (item_count * 4 + 63) / 64 * 64; }

// mass_scratch: for each (row, query head, split) the sums of exp(logit - maximum of the split) over the tokens of each
// of the split's blocks, then that maximum. What the rows' final maximum and sum make of them is known only after the
// last wave, when the keys of the first are gone.
inline constexpr std::uint32_t kMassFloats = kSplitTokens / kBlockTokens + 1;
constexpr std::uint32_t mass_splits(std::uint32_t mass_blocks) {
  return mass_blocks / (kSplitTokens / kBlockTokens) + (mass_blocks % (kSplitTokens / kBlockTokens) != 0);
}

// kInvalidArgument: says which number of which item cannot be. Backends call it first, so that a kernel may trust its
// batch.
Status validate(const KvShape& shape);
Status validate(const AppendBatch& batch);
Status validate(const CopyBatch& batch);
Status validate(const AttendBatch& batch);

}  // namespace firn
