// attend.cpp: a batch of attention as dispatches.
//
//   1. Splits of few rows (decode): one workgroup for each (item, key-value head, tile of pairs) leaves a partial
//   result.
//   2. Ranges of many rows (prefill): one workgroup for each (tile of pairs, key-value head) walks through its splits.
//   3. One workgroup for each (row, query head) folds the partial results of 1 and finishes the row in the last wave.
//   4. Where attention mass is asked for, in the last wave: one invocation for each (row, block).
//
// Each step is cut where its work would make a submission too long: a driver's watchdog takes a busy GPU for a hung
// one.
#include <algorithm>
#include <unordered_map>

#include "core/base/attention.h"
#include "core/base/check.h"
#include "core/vk/convert.h"
#include "core/vk/kernels.h"

namespace firn::vk {
namespace {

constexpr std::uint32_t kMaxGroups = 65535;
constexpr std::uint32_t kThreads = 128, kFoldThreads = 64, kMassThreads = 64;
constexpr std::uint32_t kMostPairs = 8;  // accumulators of a thread stay in registers: 8 a pair

}  // namespace

struct DeviceKernels::AttendShape {
  std::uint32_t threads, unit, pairs, lanes;
};

// Everything that is uploaded for a batch.
struct DeviceKernels::Plan {
  std::vector<std::uint32_t> first_rows;  // by item
  std::vector<shaders::RowRange> ranges;  // as the folds see them
  std::vector<std::uint32_t> order;       // items by range, ascending by split
  std::vector<std::uint32_t> row_ranges;  // by row
  std::vector<bool> few_rows;             // by range: leaves partial results
  DeviceAddress views = 0, items = 0, first_rows_at = 0, order_at = 0;
  std::uint64_t split_bytes = 0;  // keys and values of one split
  std::uint32_t unit = 0;

  std::uint64_t table_bytes(const AttendBatch& batch) const {
    constexpr std::uint64_t kPadding = 16;
    return batch.views.size_bytes() + batch.items.size_bytes() +
           4 * (first_rows.size() + order.size() + row_ranges.size()) +
           // Folding ranges may be uploaded again for each piece.
           2 * sizeof(shaders::RowRange) * (ranges.size() + order.size()) + kPadding * (8 + 2 * order.size());
  }
};

DeviceKernels::AttendShape DeviceKernels::attend_shape(const AttendBatch& batch, std::uint32_t most_pairs) const {
  const Hooks& hooks = context_.hooks;
  const std::uint32_t element = bytes_of(batch.shape.dtype);
  AttendShape shape{hooks.threads != 0 ? hooks.threads : kThreads, 16, std::clamp(most_pairs, 1u, kMostPairs), 1};
  if (hooks.pairs != 0) shape.pairs = hooks.pairs;
  shape.threads = std::min(shape.threads, context_.limits.threads);
  const auto shared_bytes = [&](std::uint32_t pairs) {
    const std::uint32_t per_unit = 16 / element;
    return 4 * (pairs * batch.shape.head_dim + pairs * kSplitTokens + shape.threads * std::max(per_unit, pairs) +
                pairs * 16 + 6 * pairs + 2 * 2 * kBlockTokens + 4 * kBlockTokens);
  };
  while (shape.pairs > 1 && shared_bytes(shape.pairs) > std::min(context_.limits.shared_bytes, 32u << 10))
    shape.pairs /= 2;
  return shape;
}

Result<VkPipeline> DeviceKernels::attend_pipeline(const AttendBatch& batch, const AttendShape& shape, bool fold) {
  return pipeline(k_attend_shader,
                  {shape.threads, static_cast<std::uint32_t>(batch.shape.dtype), shape.unit, batch.shape.head_dim,
                   batch.shape.value_dim, shape.pairs, shape.lanes, fold ? 1u : 0u, batch.mass != 0 ? 1u : 0u});
}

namespace {

// Lanes that share a key row: as many as make neighbouring threads read 128 neighbouring bytes. A software device reads
// as fast with one, and needs no barriers then. A power of two, at most the units of a row.
std::uint32_t lanes_for(const Context& context, std::uint32_t units, std::uint32_t unit) {
  std::uint32_t wanted = context.hooks.lanes != 0 ? context.hooks.lanes : context.report.software ? 1 : 128 / unit;
  while (wanted > 1 && wanted > units) wanted /= 2;
  return wanted;
}

void add_view(RangeSet& ranges, const KvShape& shape, const BlockView& view, std::uint32_t tokens) {
  if (view.k == 0 || view.v == 0) return;
  add_keys(ranges, shape, view, 0, tokens);
  add_values(ranges, shape, view, 0, tokens);
}

void add_item(RangeSet& ranges, const AttendBatch& batch, const AttendItem& item) {
  for (std::uint32_t done = 0; done < item.token_count; done += kBlockTokens)
    add_view(ranges, batch.shape, batch.views[item.view + done / kBlockTokens],
             std::min(kBlockTokens, item.token_count - done));
}

std::uint64_t query_bytes(const AttendBatch& batch) {
  return std::uint64_t{batch.row_count} * batch.query_heads * batch.shape.head_dim * 4;
}
std::uint64_t all_state_bytes(const AttendBatch& batch) {
  return Kernels::state_bytes(batch.shape, batch.query_heads, batch.row_count);
}

// Attention mass of some rows.
void add_mass_scratch(RangeSet& ranges, const AttendBatch& batch, std::uint32_t row, std::uint32_t row_count) {
  if (batch.mass == 0) return;
  ranges.add(batch.mass_scratch + Kernels::mass_bytes(batch.query_heads, row, batch.mass_blocks),
             Kernels::mass_bytes(batch.query_heads, row_count, batch.mass_blocks));
}

shaders::AttendPush push_of(const AttendBatch& batch) {
  shaders::AttendPush push{};
  push.q = halves(batch.q);
  push.state = halves(batch.state);
  push.partials = halves(batch.partials + partial_table_bytes(batch.items.size()));
  push.query_heads = batch.query_heads;
  push.kv_heads = batch.shape.kv_heads;
  push.window = batch.window;
  push.scale = batch.scale;
  push.soft_cap = batch.soft_cap;
  push.mass_scratch = halves(batch.mass_scratch);
  push.mass_splits = mass_splits(batch.mass_blocks);
  return push;
}

}  // namespace

// 1. Runs of items that leave partial results.
Status DeviceKernels::add_partials(Work& work, const AttendBatch& batch, Plan& plan) {
  const std::uint32_t group = batch.query_heads / batch.shape.kv_heads;
  AttendShape shape = attend_shape(batch, group);
  shape.unit = plan.unit;
  const std::uint32_t units = batch.shape.head_dim * bytes_of(batch.shape.dtype) / shape.unit;
  shape.lanes = lanes_for(context_, units, shape.unit);
  FIRN_ASSIGN(const VkPipeline code, attend_pipeline(batch, shape, false));
  for (std::size_t first = 0; first < batch.items.size();) {
    if (!leaves_partials(batch.items[first])) {
      ++first;
      continue;
    }
    Operation operation;
    operation.name = "attend, splits";
    operation.pipeline = code;
    std::uint32_t tiles = 1;
    std::size_t end = first;
    for (; end < batch.items.size() && end - first < kMaxGroups && leaves_partials(batch.items[end]) &&
           operation.work_bytes < queue_.submission_bytes();
         ++end) {
      const AttendItem& item = batch.items[end];
      const std::uint32_t of_item = (item.row_count * group + shape.pairs - 1) / shape.pairs;
      tiles = std::max(tiles, of_item);
      operation.work_bytes += of_item * plan.split_bytes;
      add_item(operation.access.reads, batch, item);
      add_mass_scratch(operation.access.writes, batch, item.row, item.row_count);
    }
    operation.access.reads.add(batch.q, query_bytes(batch));
    operation.access.writes.add(batch.partials, Kernels::partial_bytes(batch));
    shaders::AttendPush push = push_of(batch);
    push.views = halves(plan.views);
    push.items = halves(plan.items);
    push.first_rows = halves(plan.first_rows_at);
    push.base = static_cast<std::uint32_t>(first);
    operation.set_push(push);
    operation.groups[0] = static_cast<std::uint32_t>(end - first);
    operation.groups[1] = batch.shape.kv_heads;
    operation.groups[2] = tiles;
    work.add(std::move(operation));
    first = end;
  }
  return {};
}

// 2. Each range on its own, in pieces of so many splits as a submission may take.
Status DeviceKernels::add_folding(Work& work, const AttendBatch& batch, Plan& plan) {
  const std::uint32_t group = batch.query_heads / batch.shape.kv_heads;
  AttendShape shape = attend_shape(batch, kMostPairs);
  shape.unit = plan.unit;
  shape.lanes = lanes_for(context_, batch.shape.head_dim * bytes_of(batch.shape.dtype) / shape.unit, shape.unit);
  FIRN_ASSIGN(const VkPipeline code, attend_pipeline(batch, shape, true));
  for (std::size_t r = 0; r < plan.ranges.size(); ++r) {
    if (plan.few_rows[r]) continue;
    shaders::RowRange& range = plan.ranges[r];
    const std::uint32_t tiles = (range.row_count * group + shape.pairs - 1) / shape.pairs;
    const std::uint64_t item_bytes = tiles * plan.split_bytes;
    const auto piece =
        static_cast<std::uint32_t>(std::clamp<std::uint64_t>(queue_.submission_bytes() / item_bytes, 1, range.count));
    for (std::uint32_t done = 0; done < range.count; done += piece) {
      shaders::RowRange part = range;
      part.first += done;
      part.count = std::min(piece, range.count - done);
      part.fresh = batch.first && done == 0 ? 1 : 0;
      Operation operation;
      operation.name = "attend, rows";
      operation.pipeline = code;
      for (std::uint32_t i = 0; i < part.count; ++i)
        add_item(operation.access.reads, batch, batch.items[plan.order[part.first + i]]);
      operation.access.reads.add(batch.q, query_bytes(batch));
      const std::uint64_t row_bytes = Kernels::state_bytes(batch.shape, batch.query_heads, 1);
      operation.access.reads.add(batch.state + range.row * row_bytes, range.row_count * row_bytes);
      operation.access.writes.add(batch.state + range.row * row_bytes, range.row_count * row_bytes);
      add_mass_scratch(operation.access.writes, batch, range.row, range.row_count);
      operation.work_bytes = part.count * item_bytes;
      shaders::AttendPush push = push_of(batch);
      push.views = halves(plan.views);
      push.items = halves(plan.items);
      push.order = halves(plan.order_at);
      push.ranges = halves(work.upload(&part, sizeof(part)));
      operation.set_push(push);
      operation.groups[0] = tiles;
      operation.groups[1] = batch.shape.kv_heads;
      work.add(std::move(operation));
    }
  }
  return {};
}

// 3. All rows, those without an item too.
Status DeviceKernels::add_fold(Work& work, const AttendBatch& batch, Plan& plan) {
  FIRN_ASSIGN(const VkPipeline code, pipeline(k_fold_shader, {kFoldThreads, batch.shape.value_dim}));
  for (std::size_t r = 0; r < plan.ranges.size(); ++r) {
    plan.ranges[r].fresh = plan.few_rows[r] && batch.first ? 1 : 0;
    if (!plan.few_rows[r]) plan.ranges[r].count = 0;  // folded already
  }
  shaders::FoldPush push{};
  push.state = halves(batch.state);
  push.partials = halves(batch.partials + partial_table_bytes(batch.items.size()));
  push.out_rows = halves(batch.out);
  push.items = halves(plan.items);
  push.first_rows = halves(plan.first_rows_at);
  push.order = halves(plan.order_at);
  push.ranges = halves(work.upload(std::span<const shaders::RowRange>(plan.ranges)));
  push.row_ranges = halves(work.upload(std::span<const std::uint32_t>(plan.row_ranges)));
  push.query_heads = batch.query_heads;
  push.first = batch.first ? 1 : 0;
  push.last = batch.last ? 1 : 0;
  for (std::uint32_t row = 0; row < batch.row_count; row += kMaxGroups) {
    const std::uint32_t count = std::min(kMaxGroups, batch.row_count - row);
    Operation operation;
    operation.name = "attend, fold";
    operation.pipeline = code;
    if (!batch.items.empty()) operation.access.reads.add(batch.partials, Kernels::partial_bytes(batch));
    operation.access.reads.add(batch.state, all_state_bytes(batch));
    operation.access.writes.add(batch.state, all_state_bytes(batch));
    if (batch.last)
      operation.access.writes.add(batch.out,
                                  std::uint64_t{batch.row_count} * batch.query_heads * batch.shape.value_dim * 4);
    operation.work_bytes = Kernels::partial_bytes(batch);
    push.row_base = row;
    operation.set_push(push);
    operation.groups[0] = count;
    operation.groups[1] = batch.query_heads;
    work.add(std::move(operation));
  }
  return {};
}

// 4. Before the first wave: splits without an item count as nothing. After the fold of the last wave: the sums.
Status DeviceKernels::clear_mass(Work& work, const AttendBatch& batch) {
  Operation operation;
  operation.name = "attend, clearing mass";
  operation.fill_bytes = Kernels::mass_bytes(batch.query_heads, batch.row_count, batch.mass_blocks);
  const auto place = memory_.find(batch.mass_scratch, operation.fill_bytes);
  if (!place) return Status(Code::kInvalidArgument, "attend: mass_scratch does not lie in a region of this device");
  operation.fill_buffer = place->buffer;
  operation.fill_offset = place->offset;
  operation.work_bytes = operation.fill_bytes;
  add_mass_scratch(operation.access.writes, batch, 0, batch.row_count);
  work.add(std::move(operation));
  return {};
}

Status DeviceKernels::add_mass(Work& work, const AttendBatch& batch) {
  FIRN_ASSIGN(const VkPipeline code, pipeline(k_mass_shader, {kMassThreads, batch.shape.value_dim}));
  shaders::MassPush push{};
  push.state = halves(batch.state);
  push.mass_scratch = halves(batch.mass_scratch);
  push.mass = halves(batch.mass);
  push.query_heads = batch.query_heads;
  push.mass_blocks = batch.mass_blocks;
  push.mass_splits = mass_splits(batch.mass_blocks);
  for (std::uint32_t row = 0; row < batch.row_count; row += kMaxGroups) {
    Operation operation;
    operation.name = "attend, mass";
    operation.pipeline = code;
    operation.groups[0] = (batch.mass_blocks + kMassThreads - 1) / kMassThreads;
    operation.groups[1] = std::min(kMaxGroups, batch.row_count - row);
    operation.access.reads.add(batch.state, all_state_bytes(batch));
    add_mass_scratch(operation.access.reads, batch, row, operation.groups[1]);
    operation.access.writes.add(batch.mass + std::uint64_t{row} * batch.mass_blocks * 4,
                                std::uint64_t{operation.groups[1]} * batch.mass_blocks * 4);
    operation.work_bytes = Kernels::mass_bytes(batch.query_heads, operation.groups[1], batch.mass_blocks);
    push.row_base = row;
    operation.set_push(push);
    work.add(std::move(operation));
  }
  return {};
}

Result<Fence> DeviceKernels::attend(const AttendBatch& batch) {
  FIRN_TRY(validate(batch));
  const KvShape& kv = batch.shape;
  const std::uint32_t element = bytes_of(kv.dtype);
  Plan plan;
  plan.split_bytes = kSplitTokens * kv.token_bytes() / kv.kv_heads * kv.kv_heads;
  std::uint64_t bits = element * (kv.head_dim | kv.value_dim);
  for (const BlockView& view : batch.views) bits |= alignment_bits(view);
  if (bits % element != 0)
    return Status(Code::kInvalidArgument,
                  "attend: addresses and strides of views must be multiples of an element's size");
  plan.unit = bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 2;

  // Items by rows; their order within is the caller's, which ascends.
  plan.row_ranges.assign(batch.row_count, shaders::kNoRange);
  std::vector<std::uint32_t> range_of(batch.items.size());
  bool few = false, many = false;
  std::uint32_t partial_rows = 0;
  for (std::size_t i = 0; i < batch.items.size(); ++i) {
    const AttendItem& item = batch.items[i];
    std::uint32_t& range = plan.row_ranges[item.row];
    if (range == shaders::kNoRange) {
      range = static_cast<std::uint32_t>(plan.ranges.size());
      plan.ranges.push_back({item.row, item.row_count, 0, 0, 0});
      plan.few_rows.push_back(leaves_partials(item));
      (leaves_partials(item) ? few : many) = true;
    }
    range_of[i] = range;
    if (plan.ranges[range].row != item.row || plan.ranges[range].row_count != item.row_count)
      return Status(Code::kInvalidArgument,
                    "attend: item " + std::to_string(i) + ": its rows overlap another item's without being the same");
    ++plan.ranges[range].count;
    plan.first_rows.push_back(partial_rows);
    if (leaves_partials(item)) partial_rows += item.row_count;
  }
  std::uint32_t first = 0;
  for (shaders::RowRange& range : plan.ranges) {
    range.first = first;
    first += range.count;
    for (std::uint32_t row = range.row; row < range.row + range.row_count; ++row) {
      std::uint32_t& of_row = plan.row_ranges[row];
      const auto index = static_cast<std::uint32_t>(&range - plan.ranges.data());
      if (of_row != shaders::kNoRange && of_row != index)
        return Status(Code::kInvalidArgument, "attend: rows of two items overlap without being the same");
      of_row = index;
    }
  }
  plan.order.resize(batch.items.size());
  std::vector<std::uint32_t> filled(plan.ranges.size());
  for (std::size_t i = 0; i < batch.items.size(); ++i)
    plan.order[plan.ranges[range_of[i]].first + filled[range_of[i]]++] = static_cast<std::uint32_t>(i);

  return queue_.run(plan.table_bytes(batch), [&](Work& work) -> Status {
    plan.views = work.upload(batch.views);
    plan.items = work.upload(batch.items);
    plan.first_rows_at = work.upload(std::span<const std::uint32_t>(plan.first_rows));
    plan.order_at = work.upload(std::span<const std::uint32_t>(plan.order));
    const bool mass = batch.mass != 0 && batch.mass_blocks != 0 && batch.row_count != 0;
    if (mass && batch.first) FIRN_TRY(clear_mass(work, batch));
    if (few) FIRN_TRY(add_partials(work, batch, plan));
    if (many) FIRN_TRY(add_folding(work, batch, plan));
    if (batch.row_count != 0) FIRN_TRY(add_fold(work, batch, plan));
    if (mass && batch.last) FIRN_TRY(add_mass(work, batch));
    return {};
  });
}

}  // namespace firn::vk
