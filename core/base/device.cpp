#include "firn/device.h"

#include <fmt/format.h>

#include <atomic>

#include "core/base/attention.h"
#include "core/base/fences.h"

namespace firn {
namespace {

template <class... Args>
Status invalid(fmt::format_string<Args...> text, Args&&... args) {
  return Status(Code::kInvalidArgument, fmt::format(text, std::forward<Args>(args)...));
}

Status validate(const AttendBatch& batch, const AttendItem& item) {
  const std::uint64_t last_row = std::uint64_t{item.row} + item.row_count;
  if (item.row_count == 0 || last_row > batch.row_count)
    return invalid("rows {} to {} do not lie within the batch's {} rows", item.row, last_row, batch.row_count);
  if (item.split % kSplitTokens != 0) return invalid("split {} is no multiple of {}", item.split, kSplitTokens);
  if (item.token_count == 0 || item.token_count > kSplitTokens)
    return invalid("token_count {} is not within 1 to {}", item.token_count, kSplitTokens);
  const std::uint64_t last_view = item.view + (std::uint64_t{item.token_count} + kBlockTokens - 1) / kBlockTokens;
  if (last_view > batch.views.size())
    return invalid("views {} to {} do not lie within the batch's {} views", item.view, last_view, batch.views.size());
  if (std::uint64_t{item.position} + item.row_count > ~std::uint32_t{0})
    return invalid("position {} with {} rows does not fit 32 bits", item.position, item.row_count);
  const std::uint64_t blocks = (std::uint64_t{item.split} + item.token_count + kBlockTokens - 1) / kBlockTokens;
  if (batch.mass != 0 && blocks > batch.mass_blocks)
    return invalid("tokens up to {} are {} blocks, more than mass_blocks {}",
                   std::uint64_t{item.split} + item.token_count, blocks, batch.mass_blocks);
  return {};
}

Status validate_mass(const AttendBatch& batch) {
  constexpr std::uint64_t kMost = ~std::uint32_t{0};  // kernels count in 32 bits
  const std::uint64_t heads = std::uint64_t{batch.row_count} * batch.query_heads;
  if (heads > kMost || (batch.mass_blocks != 0 && heads > kMost / batch.mass_blocks))
    return invalid("mass_blocks {} times {} rows of {} query heads does not fit 32 bits", batch.mass_blocks,
                   batch.row_count, batch.query_heads);
  constexpr std::uint32_t kMostBlocks = 65535 * 64;  // workgroups of 64 that every device can count
  if (batch.mass_blocks > kMostBlocks) return invalid("mass_blocks {} is more than {}", batch.mass_blocks, kMostBlocks);
  if (batch.mass_scratch == 0 || (batch.mass | batch.mass_scratch) % sizeof(float) != 0)
    return invalid("mass and mass_scratch must be multiples of 4, and mass_scratch be set to {} bytes",
                   Kernels::mass_bytes(batch.query_heads, batch.row_count, batch.mass_blocks));
  return {};
}

}  // namespace

std::uint64_t next_timeline_handle() {
  static std::atomic<std::uint64_t> next{1};
  return next.fetch_add(1, std::memory_order_relaxed);
}

Status check_fence(const Fence& fence, const Fence& last) {
  switch (fence.kind) {
    case Fence::Kind::kNone:
      return {};
    case Fence::Kind::kTimeline:
      if (fence.handle != last.handle)
        return invalid("fence: timeline {} is that of another device or manager, this one is {}", fence.handle,
                       last.handle);
      if (fence.value > last.value)
        return invalid("fence: value {} was not given out yet; the newest is {}", fence.value, last.value);
      return {};
    case Fence::Kind::kExternal:
      return invalid("fence: this device cannot wait for an external one; wait for it yourself, before the call");
  }
  return invalid("fence: kind {} is none of none, timeline and external", static_cast<int>(fence.kind));
}

Result<Region> Memory::import_host(std::byte*, std::uint64_t) {
  return Status(Code::kUnavailable, info().name + " does not import host memory; use a staging region");
}

std::uint64_t Kernels::partial_bytes(const AttendBatch& batch) {
  std::uint64_t rows = 0;
  for (const AttendItem& item : batch.items)
    if (leaves_partials(item)) rows += item.row_count;
  return partial_table_bytes(batch.items.size()) +
         rows * batch.query_heads * accumulator_floats(batch.shape) * sizeof(float);
}

std::uint64_t Kernels::state_bytes(const KvShape& shape, std::uint32_t query_heads, std::uint32_t row_count) {
  return std::uint64_t{row_count} * query_heads * accumulator_floats(shape) * sizeof(float);
}

std::uint64_t Kernels::mass_bytes(std::uint32_t query_heads, std::uint32_t row_count, std::uint32_t mass_blocks) {
  return std::uint64_t{row_count} * query_heads * mass_splits(mass_blocks) * kMassFloats * sizeof(float);
}

Status validate(const KvShape& shape) {
  if (shape.dtype != Dtype::kF16 && shape.dtype != Dtype::kBf16 && shape.dtype != Dtype::kF32)
    return invalid("dtype {} is none of f16, bf16 and f32", static_cast<int>(shape.dtype));
  if (shape.kv_heads == 0 || shape.kv_heads > kMaxKvHeads)
    return invalid("kv_heads {} is not within 1 to {}", shape.kv_heads, kMaxKvHeads);
  if (shape.head_dim == 0 || shape.head_dim > kMaxHeadDim)
    return invalid("head_dim {} is not within 1 to {}", shape.head_dim, kMaxHeadDim);
  if (shape.value_dim == 0 || shape.value_dim > kMaxHeadDim)
    return invalid("value_dim {} is not within 1 to {}", shape.value_dim, kMaxHeadDim);
  return {};
}

Status validate(const AppendBatch& batch) {
  FIRN_TRY(validate(batch.shape).with_context("append"));
  if (!batch.items.empty() && (batch.k == 0 || batch.v == 0)) return invalid("append: k and v must be set");
  for (std::size_t i = 0; i < batch.items.size(); ++i) {
    const AppendItem& item = batch.items[i];
    if (std::uint64_t{item.token} + item.token_count > kBlockTokens)
      return invalid("append: item {}: tokens {} to {} do not fit a block of {}", i, item.token,
                     std::uint64_t{item.token} + item.token_count, kBlockTokens);
  }
  return {};
}

Status validate(const CopyBatch& batch) {
  FIRN_TRY(validate(batch.shape).with_context("copy"));
  for (std::size_t i = 0; i < batch.items.size(); ++i) {
    const CopyItem& item = batch.items[i];
    if (item.token_count > kBlockTokens)
      return invalid("copy: item {}: {} tokens do not fit a block of {}", i, item.token_count, kBlockTokens);
    if ((item.from.k == 0) != (item.to.k == 0) || (item.from.v == 0) != (item.to.v == 0))
      return invalid("copy: item {}: one side has an address that the other lacks", i);
  }
  return {};
}

Status validate(const AttendBatch& batch) {
  FIRN_TRY(validate(batch.shape).with_context("attend"));
  if (batch.query_heads == 0 || batch.query_heads % batch.shape.kv_heads != 0)
    return invalid("attend: query_heads {} is no multiple of kv_heads {}", batch.query_heads, batch.shape.kv_heads);
  if (batch.row_count != 0 && (batch.q == 0 || batch.state == 0 || (batch.last && batch.out == 0)))
    return invalid("attend: q, state and, in the last wave, out must be set");
  if (!batch.items.empty() && batch.partials == 0)
    return invalid("attend: partials must be set to {} bytes", Kernels::partial_bytes(batch));
  if (batch.mass != 0) FIRN_TRY(validate_mass(batch).with_context("attend"));
  for (std::size_t i = 0; i < batch.items.size(); ++i)
    if (Status status = validate(batch, batch.items[i]); !status.ok())
      return status.with_context(fmt::format("attend: item {}", i));
  return {};
}

}  // namespace firn
