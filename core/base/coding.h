// coding.h: what every backend agrees on about coding: the numbers behind payloads and sums, and what a batch must be.
#pragma once

#include <cstdint>

#include "firn/coding.h"

namespace firn {

inline constexpr std::uint32_t kScaledValues = 32;    // of q8 and q4: values that share a scale
inline constexpr std::uint32_t kGroupsOfSlice = 32;   // of kvtc: groups whose errors are summed together
inline constexpr std::uint32_t kLargestGroup = 1024;  // components

constexpr std::uint32_t coded_dim(const KvShape& shape, bool values) {
  return values ? shape.value_dim : shape.head_dim;
}
// Widest power of two that divides a head: what the Hadamard transform works on.
constexpr std::uint32_t mixed_width(std::uint32_t dim) { return dim & (~dim + 1); }
constexpr std::uint32_t scales_of_head(std::uint32_t dim) { return (dim + kScaledValues - 1) / kScaledValues; }
constexpr std::uint32_t code_bytes_of_head(std::uint32_t dim, std::uint32_t bits) { return (dim * bits + 7) / 8; }

// Components up to the last group's end, and slices of groups.
std::uint32_t component_count(const StackTransform& stack);
std::uint32_t slice_count(const StackTransform& stack);
// Floats of sums before those of the slices: the centred values' squares, [layer][token].
constexpr std::uint64_t energy_floats(const StackTransform& stack, std::uint32_t block_count) {
  return std::uint64_t{stack.layer_count} * block_count * kBlockTokens;
}
// Tokens of all items: rows of scratch.
std::uint64_t token_count(const TransformBatch& batch);

// kInvalidArgument: says which number of which item cannot be.
Status validate(const IntegerBatch& batch, bool encoding);
Status validate(const TransformBatch& batch, bool encoding);

}  // namespace firn
