#include "core/base/coding.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/base/check.h"

namespace firn {
namespace {

template <class... Args>
Status invalid(fmt::format_string<Args...> text, Args&&... args) {
  return Status(Code::kInvalidArgument, fmt::format(text, std::forward<Args>(args)...));
}

Status check_tensor(const KvShape& shape, bool values) {
  if (shape.dtype != Dtype::kF16 && shape.dtype != Dtype::kBf16 && shape.dtype != Dtype::kF32)
    return invalid("dtype {} is none of f16, bf16 and f32", static_cast<int>(shape.dtype));
  if (shape.kv_heads == 0 || shape.kv_heads > kMaxKvHeads)
    return invalid("kv_heads {} is not within 1 to {}", shape.kv_heads, kMaxKvHeads);
  const std::uint32_t dim = coded_dim(shape, values);
  if (dim == 0 || dim > kMaxHeadDim)
    return invalid("{} {} is not within 1 to {}", values ? "value_dim" : "head_dim", dim, kMaxHeadDim);
  return {};
}

// The parts that items of both kinds have.
template <class Item>
Status check_item(const Item& item, std::uint32_t layers, std::span<const BlockView> views, bool values,
                  bool encoding) {
  if (item.block_count == 0 || item.block_count > kMaxExtentBlocks)
    return invalid("block_count {} is not within 1 to {}", item.block_count, kMaxExtentBlocks);
  const std::uint64_t last = item.view + std::uint64_t{layers} * item.block_count;
  if (last > views.size())
    return invalid("views {} to {} do not lie within the batch's {} views", item.view, last, views.size());
  if (item.payload % 4 != 0 || item.sums % 4 != 0) return invalid("payload and sums must be multiples of 4");
  if (encoding && item.sums == 0) return invalid("sums must be set");
  for (std::uint64_t i = item.view; i < last; ++i)
    if ((encoding && views[i].k == 0) || (values && views[i].k != 0 && views[i].v == 0))
      return invalid("view {} has no address", i);
  return {};
}

Status check_stack(const TransformBatch& batch, bool encoding) {
  if (batch.stack == nullptr) return invalid("stack must be set");
  const StackTransform& stack = *batch.stack;
  FIRN_TRY(check_tensor(batch.shape, stack.values));
  if (stack.layer_count == 0 || stack.layer_count > kMaxLayers)
    return invalid("layer_count of the stack {} is not within 1 to {}", stack.layer_count, kMaxLayers);
  const std::uint64_t end = std::uint64_t{batch.first_layer} + batch.layer_count;
  if (batch.layer_count == 0 || end > stack.layer_count)
    return invalid("layers {} to {} do not lie within the stack's {}", batch.first_layer, end, stack.layer_count);
  if (encoding && batch.layer_count != stack.layer_count) return invalid("encode needs all layers of the stack");
  std::uint64_t components = 0;
  for (const CoefficientGroup& group : stack.groups) {
    if (group.size == 0 || group.size > kLargestGroup)
      return invalid("a group of {} components is not within 1 to {}", group.size, kLargestGroup);
    if (group.bits != 0 && group.bits != 2 && group.bits != 4 && group.bits != 8)
      return invalid("a group has {} bits, none of 0, 2, 4 and 8", group.bits);
    components += group.size;
  }
  const std::uint64_t channels =
      std::uint64_t{stack.layer_count} * batch.shape.kv_heads * coded_dim(batch.shape, stack.values);
  if (components > channels) return invalid("groups have {} components, more than {} channels", components, channels);
  const std::uint32_t dim = coded_dim(batch.shape, stack.values);
  if (stack.pairing != RotationSpec::Pairing::kNone &&
      (stack.values || stack.rotated_dims % 2 != 0 || stack.rotated_dims > dim || stack.attention_factor == 0 ||
       !std::isfinite(stack.attention_factor)))
    return invalid("rotation does not fit: {} dims of {}, factor {}", stack.rotated_dims, dim, stack.attention_factor);
  if (!batch.items.empty() &&
      (stack.mean == 0 || batch.scratch == 0 || (components != 0 && (stack.basis == 0 || stack.group_table == 0))))
    return invalid("mean, basis, group_table and scratch must be set");
  if ((stack.mean | stack.group_table | batch.scratch) % 4 != 0 || stack.basis % 2 != 0)
    return invalid("mean, group_table and scratch must be multiples of 4, basis of 2");
  return {};
}

}  // namespace

std::uint32_t component_count(const StackTransform& stack) {
  std::uint32_t components = 0;
  for (const CoefficientGroup& group : stack.groups) components += group.size;
  return components;
}
std::uint32_t slice_count(const StackTransform& stack) {
  return (static_cast<std::uint32_t>(stack.groups.size()) + kGroupsOfSlice - 1) / kGroupsOfSlice;
}
std::uint64_t token_count(const TransformBatch& batch) {
  std::uint64_t tokens = 0;
  for (const TransformItem& item : batch.items) tokens += std::uint64_t{item.block_count} * kBlockTokens;
  return tokens;
}

std::uint64_t CodingKernels::payload_bytes(const IntegerBatch& batch, std::uint32_t block_count) {
  const std::uint32_t dim = coded_dim(batch.shape, batch.values);
  return std::uint64_t{block_count} * kBlockTokens * batch.shape.kv_heads *
         (2 * scales_of_head(dim) + code_bytes_of_head(dim, batch.bits));
}
std::uint64_t CodingKernels::sums_bytes(const IntegerBatch& batch, std::uint32_t block_count) {
  return std::uint64_t{block_count} * kBlockTokens * batch.shape.kv_heads * 2 * sizeof(float);
}

// Shift and scale of a token are 4 bytes a group; codes of a block's 16 tokens fill whole words.
std::uint64_t CodingKernels::payload_bytes(const StackTransform& stack, std::uint32_t block_count) {
  std::uint64_t bytes = 0;
  for (const CoefficientGroup& group : stack.groups)
    if (group.bits != 0) bytes += kBlockTokens * 4 + kBlockTokens * group.size * group.bits / 8;
  return bytes * block_count;
}
std::uint64_t CodingKernels::sums_bytes(const StackTransform& stack, std::uint32_t block_count) {
  const std::uint64_t tokens = std::uint64_t{block_count} * kBlockTokens;
  return (energy_floats(stack, block_count) + slice_count(stack) * tokens * 2) * sizeof(float);
}
std::uint64_t CodingKernels::scratch_bytes(const TransformBatch& batch) {
  const std::uint64_t channels =
      std::uint64_t{batch.layer_count} * batch.shape.kv_heads * coded_dim(batch.shape, batch.stack->values);
  return token_count(batch) * (channels + component_count(*batch.stack)) * sizeof(float);
}

std::vector<std::uint32_t> CodingKernels::group_table(std::span<const CoefficientGroup> groups) {
  std::vector<std::uint32_t> table;
  std::uint32_t component = 0, place = 0;
  for (const CoefficientGroup& group : groups) {
    table.insert(table.end(), {component, group.size, group.bits, place});
    component += group.size;
    if (group.bits != 0) place += kBlockTokens * 4 + kBlockTokens * group.size * group.bits / 8;
  }
  return table;
}

CodingSums CodingKernels::fold(const IntegerBatch& batch, std::uint32_t block_count, std::span<const float> sums) {
  if (sums.size_bytes() != sums_bytes(batch, block_count)) return {false, 0, 0};
  CodingSums out;
  for (std::size_t i = 0; i < sums.size(); i += 2) {
    if (!(sums[i] >= 0) || !std::isfinite(sums[i] + sums[i + 1])) return {false, 0, 0};
    out.error_energy += static_cast<double>(sums[i]);
    out.energy += static_cast<double>(sums[i + 1]);
  }
  return out;
}

// What the basis does not hold is what coefficients lack in energy, because its rows are orthonormal but for rounding.
CodingSums CodingKernels::fold(const StackTransform& stack, std::uint32_t block_count, std::span<const float> sums) {
  if (sums.size_bytes() != sums_bytes(stack, block_count)) return {false, 0, 0};
  const std::size_t slices_at = energy_floats(stack, block_count);
  double energy = 0, kept = 0, lost = 0;
  for (std::size_t i = 0; i < slices_at; ++i) energy += static_cast<double>(sums[i]);
  for (std::size_t i = slices_at; i < sums.size(); i += 2) {
    kept += static_cast<double>(sums[i]);
    lost += static_cast<double>(sums[i + 1]);
  }
  if (!std::isfinite(energy)) return {false, 0, 0};
  if (!std::isfinite(kept + lost)) return {false, 0, energy};
  return {true, std::max(0.0, energy - kept) + lost, energy};
}

Status validate(const IntegerBatch& batch, bool encoding) {
  const auto check = [&]() -> Status {
    FIRN_TRY(check_tensor(batch.shape, batch.values));
    if (batch.bits != 4 && batch.bits != 8) return invalid("bits {} is neither 4 nor 8", batch.bits);
    for (std::size_t i = 0; i < batch.items.size(); ++i) {
      Status status = check_item(batch.items[i], 1, batch.views, batch.values, encoding);
      if (status.ok() && batch.items[i].payload == 0) status = invalid("payload must be set");
      if (!status.ok()) return status.with_context(fmt::format("item {}", i));
    }
    return {};
  };
  return check().with_context(encoding ? "encode" : "decode");
}

Status validate(const TransformBatch& batch, bool encoding) {
  const auto check = [&]() -> Status {
    FIRN_TRY(check_stack(batch, encoding));
    const StackTransform& stack = *batch.stack;
    for (std::size_t i = 0; i < batch.items.size(); ++i) {
      const TransformItem& item = batch.items[i];
      Status status = check_item(item, batch.layer_count, batch.views, stack.values, encoding);
      if (status.ok() && item.payload == 0 && CodingKernels::payload_bytes(stack, 1) != 0)
        status = invalid("payload must be set");
      if (status.ok() && stack.pairing != RotationSpec::Pairing::kNone && (item.turns == 0 || item.turns % 4 != 0))
        status = invalid("turns must be set, to a multiple of 4");
      if (!status.ok()) return status.with_context(fmt::format("item {}", i));
    }
    return {};
  };
  return check().with_context(encoding ? "encode" : "decode");
}

}  // namespace firn
