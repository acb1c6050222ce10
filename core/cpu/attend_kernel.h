// attend_kernel.h: attention of some (row, query head) pairs over one split of the keys and values: the arithmetic
// whose bits must not depend on anything else. attend.cpp cuts a batch into such pieces and folds them together.
//
// One path serves decode and prefill. The alternative for prefill, a transposed tile with lanes over tokens, was left
// out: register-blocking rows x tokens over the decode path's layout reaches what prefill needs, and one path cannot
// disagree with itself.
#pragma once

#include <array>
#include <cstdint>

#include "firn/device.h"

namespace firn::cpu {

// The order of a sum is written down for 16 lanes whatever the machine has; wider or narrower registers play 16 lanes.
// Machines that fuse multiply and add thus agree with each other bit by bit.
inline constexpr std::uint32_t kLanesOfSums = 16;
inline constexpr std::uint32_t padded(std::uint32_t dim) {
  return (dim + kLanesOfSums - 1) / kLanesOfSums * kLanesOfSums;
}

inline constexpr std::uint32_t kMaxPairs = 64;
inline constexpr std::uint32_t kPairFloats = 16384;  // bounds pairs x padded dimension: accumulators stay near the core
// Not a power of two: rows 1 KiB apart would share two sets of the first cache.
inline constexpr std::uint32_t kLogitStride = kSplitTokens + kLanesOfSums;

// Pairs of one task. A pair of a key-value head is row * group + i for query head kv_head * group + i, row within the
// batch.
struct PairTile {
  std::uint32_t kv_head_begin = 0, kv_head_end = 0;
  std::uint32_t pair_begin = 0, pair_end = 0;
  std::uint32_t pairs() const { return pair_end - pair_begin; }
  std::uint32_t slots() const { return (kv_head_end - kv_head_begin) * pairs(); }
};
// The most slots a tile may have.
std::uint32_t max_pairs(const KvShape& shape);

// One worker's scratch memory. Slot (kv_head - kv_head_begin) * pairs + (pair - pair_begin) holds a pair's result.
struct AttendScratch {
  alignas(64) std::array<float, kMaxPairs * kLogitStride> logits;
  alignas(64) std::array<float, kPairFloats> values;   // [slot][padded value_dim], weighted by exp(logit - maximum)
  alignas(64) std::array<float, kPairFloats> queries;  // [slot][padded head_dim], where head_dim needs padding
  std::array<float, kMaxPairs> maximum, sum;           // sum 0: the pair sees no token of the split
  std::array<std::uint32_t, kMaxPairs> begin, end;     // tokens of the split that the pair sees
  std::array<const float*, kMaxPairs> query;
};

// What a task does before and after, so that memory is asked for in time. Changes no result.
struct Neighbours {
  const AttendItem* next = nullptr;  // the item the same tile attends next
  bool announced = false;            // this item was the previous call's next
};
// The tile's pairs belong to the item's rows.
void attend_split(const AttendBatch& batch, const AttendItem& item, const PairTile& tile, AttendScratch& scratch,
                  const Neighbours& neighbours = {});
// Adds a partial result to an accumulator: state [value_dim + 2].
void fold(float* state, const float* values, float maximum, float sum, std::uint32_t value_dim);
// What a slot's weights, left by attend_split, come to by block: to [kMassFloats] (core/base/attention.h).
void sum_blocks(const AttendScratch& scratch, std::uint32_t slot, float* to);
// mass[block] += the share that one query head gave to the blocks of a split, by what sum_blocks left and the head's
// final state.
void add_mass(const float* blocks, float maximum, float sum, float* mass);
// Divides by the sum; zeros where nothing was folded.
void finish(const float* state, float* out, std::uint32_t value_dim);

// Rounds an item's rows into its block.
void append_rows(const AppendBatch& batch, const AppendItem& item);

}  // namespace firn::cpu
