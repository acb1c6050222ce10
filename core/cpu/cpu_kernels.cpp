#include "core/cpu/cpu_kernels.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/base/attention.h"
#include "core/base/check.h"

namespace firn::cpu {
namespace {

constexpr std::uint64_t kInlineBytes = 64 * 1024;  // less than this is moved by the caller alone
constexpr std::uint64_t kFillBytes = 1024 * 1024;  // one task of a fill
constexpr std::uint64_t kRowsBytes = 64 * 1024;    // items are grouped into tasks of about this size

// Rows of one tensor of one block.
struct Strided {
  std::byte* base;
  std::uint64_t token_stride, head_stride;
};

Strided keys_of(const BlockView& view) {
  return {reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(view.k)), view.token_stride, view.head_stride};
}
Strided values_of(const BlockView& view) {
  return {reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(view.v)), view.v_token_stride, view.v_head_stride};
}

// One row: a few cache lines. A call of memcpy costs as much as the copy here, so whole lines are copied in place.
inline void copy_row(std::byte* to, const std::byte* from, std::uint64_t bytes) {
  constexpr std::uint64_t kLine = 64;
  for (; bytes >= kLine; bytes -= kLine, from += kLine, to += kLine) std::memcpy(to, from, kLine);
  if (bytes != 0) std::memcpy(to, from, bytes);
}

// The longest runs that both sides agree on go in one piece: all tokens, one token's heads, or one row.
void copy_rows(const Strided& to, const Strided& from, std::uint32_t tokens, std::uint32_t heads, std::uint64_t row) {
  if (to.base == from.base) return;  // onto itself: memcpy may not
  const bool heads_touch = heads == 1 || (to.head_stride == row && from.head_stride == row);
  const std::uint64_t token_bytes = heads * row;
  if (heads_touch && (tokens == 1 || (to.token_stride == token_bytes && from.token_stride == token_bytes))) {
    std::memcpy(to.base, from.base, tokens * token_bytes);
    return;
  }
  // [head][token] on both sides: an engine's own layout copied within itself.
  if (!heads_touch && to.token_stride == row && from.token_stride == row) {
    for (std::uint32_t h = 0; h < heads; ++h)
      std::memcpy(to.base + h * to.head_stride, from.base + h * from.head_stride, tokens * row);
    return;
  }
  for (std::uint32_t t = 0; t < tokens; ++t) {
    std::byte* to_token = to.base + t * to.token_stride;
    const std::byte* from_token = from.base + t * from.token_stride;
    if (heads_touch) {
      copy_row(to_token, from_token, token_bytes);
      continue;
    }
    for (std::uint32_t h = 0; h < heads; ++h)
      copy_row(to_token + h * to.head_stride, from_token + h * from.head_stride, row);
  }
}

void copy_item(const KvShape& shape, const CopyItem& item) {
  const std::uint64_t element = bytes_of(shape.dtype);
  if (item.token_count == 0) return;
  if (item.from.k != 0)
    copy_rows(keys_of(item.to), keys_of(item.from), item.token_count, shape.kv_heads, shape.head_dim * element);
  if (item.from.v != 0)
    copy_rows(values_of(item.to), values_of(item.from), item.token_count, shape.kv_heads, shape.value_dim * element);
}

// Runs body(first item, last item) over runs of items that move about kRowsBytes; small batches stay on this thread.
template <class Body>
void for_item_runs(ThreadPool& threads, std::size_t items, std::uint64_t item_bytes, const Body& body) {
  if (items * item_bytes < kInlineBytes || threads.size() == 1) return body(0, items);
  const std::size_t step = std::max<std::uint64_t>(1, kRowsBytes / std::max<std::uint64_t>(1, item_bytes));
  struct Loop {
    const Body& body;
    std::size_t items, step;
  } const loop{body, items, step};
  threads.parallel_for((items + step - 1) / step,
                       [&loop](std::size_t i) { loop.body(i * loop.step, std::min((i + 1) * loop.step, loop.items)); });
}

}  // namespace

CpuKernels::CpuKernels(ThreadPool& threads, HostTimeline& timeline) : threads_(threads), timeline_(timeline) {
  for (unsigned worker = 0; worker < threads.size(); ++worker) scratch_.push_back(std::make_unique<AttendScratch>());
}

Result<Fence> CpuKernels::append(const AppendBatch& batch) {
  FIRN_TRY(validate(batch));
  const auto body = [&batch](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) append_rows(batch, batch.items[i]);
  };
  for_item_runs(threads_, batch.items.size(), kBlockTokens * batch.shape.token_bytes(), body);
  return timeline_.next();
}

Result<Fence> CpuKernels::copy(const CopyBatch& batch) {
  FIRN_TRY(validate(batch));
  const auto body = [&batch](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) copy_item(batch.shape, batch.items[i]);
  };
  for_item_runs(threads_, batch.items.size(), kBlockTokens * batch.shape.token_bytes(), body);
  return timeline_.next();
}

Result<Fence> CpuKernels::fill(const Region& region, std::uint64_t offset, std::uint64_t bytes, std::uint8_t value) {
  if (region.host == nullptr) return Status(Code::kInvalidArgument, "fill: the region has no host pointer");
  if (offset > region.bytes || bytes > region.bytes - offset)
    return Status(Code::kInvalidArgument, "fill: bytes " + std::to_string(offset) + " to " +
                                              std::to_string(offset + bytes) + " do not lie within a region of " +
                                              std::to_string(region.bytes));
  struct Loop {
    std::byte* to;
    std::uint64_t bytes;
    std::uint8_t value;
  } const loop{region.host + offset, bytes, value};
  threads_.parallel_for((bytes + kFillBytes - 1) / kFillBytes, [&loop](std::size_t i) {
    std::memset(loop.to + i * kFillBytes, loop.value, std::min(kFillBytes, loop.bytes - i * kFillBytes));
  });
  return timeline_.next();
}

Result<Fence> CpuKernels::attend(const AttendBatch& batch) {
  FIRN_TRY(validate(batch));
  cpu::attend(batch, threads_, scratch_);
  return timeline_.next();
}

}  // namespace firn::cpu
