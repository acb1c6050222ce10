// coding.cpp: batches of coding as dispatches. q8 and q4 take one. kvtc takes three: slots to centred rows, all rows
// times the basis, coefficients to payloads; and back. Barriers follow from the ranges that operations name.
#include "core/base/coding.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/base/check.h"
#include "core/vk/convert.h"
#include "core/vk/kernels.h"
#include "shaders/coding_params.h"

namespace firn::vk {
namespace {

constexpr std::uint32_t kMaxGroups = 65535;  // of one dispatch in one dimension, on every device
constexpr std::uint32_t kThreads = 64;
constexpr std::uint32_t kMostRows = 16;  // heads of a workgroup: divides the heads of a block whatever their number

static_assert(sizeof(IntegerItem) == sizeof(shaders::IntegerEntry) && offsetof(IntegerItem, view) == 16,
              "items are uploaded as they are");
static_assert(kGroupsOfSlice == shaders::kGroupsInSlice && kBlockTokens == shaders::kTokensOfBlock);

std::uint64_t view_bits(const BlockView& view, bool values) {
  return values ? view.v | view.v_token_stride | view.v_head_stride : view.k | view.token_stride | view.head_stride;
}

// What views' addresses, strides and rows are all multiples of; kInvalidArgument if that is less than an element.
Result<std::uint32_t> store_unit(const KvShape& shape, bool values, std::span<const BlockView> views) {
  const std::uint32_t element = bytes_of(shape.dtype);
  std::uint64_t bits = element * coded_dim(shape, values);
  for (const BlockView& view : views)
    if (view.k != 0) bits |= view_bits(view, values);
  if (bits % element != 0)
    return Status(Code::kInvalidArgument,
                  fmt::format("coding: addresses and strides of views must be multiples of {} bytes, the size of an "
                              "element",
                              element));
  return element == 4 || bits % 4 == 0 ? 4 : 2;
}

void add_tensor(RangeSet& ranges, const KvShape& shape, bool values, const BlockView& view) {
  if (view.k == 0) return;
  values ? add_values(ranges, shape, view, 0, kBlockTokens) : add_keys(ranges, shape, view, 0, kBlockTokens);
}

// Rows of a workgroup whose values fit shared memory; 0: not even the four that share no word.
std::uint32_t rows_of_workgroup(const Context& context, std::uint32_t dim) {
  const auto shared_bytes = [&](std::uint32_t rows) { return rows * (dim * 4 + scales_of_head(dim) * 12 + 8); };
  std::uint32_t rows = kMostRows;
  while (rows >= 4 && shared_bytes(rows) > context.limits.shared_bytes) rows /= 2;
  return rows >= 4 ? rows : 0;
}

}  // namespace

Result<Fence> DeviceKernels::code_integers(const IntegerBatch& batch, bool encoding) {
  FIRN_TRY(validate(batch, encoding));
  const std::uint32_t dim = coded_dim(batch.shape, batch.values), rows = rows_of_workgroup(context_, dim);
  if (rows == 0)
    return Status(Code::kUnavailable, fmt::format("coding: heads of {} values do not fit this device's {} bytes of "
                                                  "shared memory; code on the host",
                                                  dim, context_.limits.shared_bytes));
  FIRN_ASSIGN(const std::uint32_t unit, store_unit(batch.shape, batch.values, batch.views));
  const std::uint32_t width = batch.mix ? mixed_width(dim) : 1;
  std::vector<std::uint32_t> constants{kThreads, static_cast<std::uint32_t>(batch.shape.dtype), batch.bits, dim, width,
                                       rows};
  if (!encoding) constants.push_back(unit);
  FIRN_ASSIGN(const VkPipeline code,
              pipeline(encoding ? k_coding_quantise_shader : k_coding_dequantise_shader, constants));
  const std::uint64_t tables = batch.items.size_bytes() + batch.views.size_bytes() + 32;
  return queue_.run(tables, [&](Work& work) -> Status {
    shaders::IntegerPush push{};
    push.items = halves(work.upload(batch.items));
    push.views = halves(work.upload(batch.views));
    push.heads = batch.shape.kv_heads;
    push.values = batch.values ? 1 : 0;
    push.mix_scale = 1.0f / std::sqrt(static_cast<float>(width));
    for (std::size_t first = 0; first < batch.items.size();) {
      Operation operation;
      operation.name = encoding ? "encode, integers" : "decode, integers";
      operation.pipeline = code;
      std::uint32_t blocks = 0;
      std::size_t end = first;
      for (; end < batch.items.size() && end - first < kMaxGroups && operation.work_bytes < queue_.submission_bytes();
           ++end) {
        const IntegerItem& item = batch.items[end];
        const std::uint64_t payload = CodingKernels::payload_bytes(batch, item.block_count);
        for (const BlockView& view : batch.views.subspan(item.view, item.block_count))
          add_tensor(encoding ? operation.access.reads : operation.access.writes, batch.shape, batch.values, view);
        (encoding ? operation.access.writes : operation.access.reads).add(item.payload, payload);
        if (encoding) operation.access.writes.add(item.sums, CodingKernels::sums_bytes(batch, item.block_count));
        operation.work_bytes += 4 * payload;
        blocks = std::max(blocks, item.block_count);
      }
      push.item_base = static_cast<std::uint32_t>(first);
      operation.set_push(push);
      operation.groups[0] = static_cast<std::uint32_t>(end - first);
      operation.groups[1] = blocks * kBlockTokens * batch.shape.kv_heads / rows;
      work.add(std::move(operation));
      first = end;
    }
    return {};
  });
}

Result<Fence> DeviceKernels::encode(const IntegerBatch& batch) { return code_integers(batch, true); }
Result<Fence> DeviceKernels::decode(const IntegerBatch& batch) { return code_integers(batch, false); }

// What the steps of one batch share: tables, and where in scratch things are.
struct DeviceKernels::TransformPlan {
  const TransformBatch& batch;
  const StackTransform& stack;
  std::uint32_t dim, width, components;  // width: channels of one layer
  std::uint32_t unit = 0;
  std::vector<shaders::TransformEntry> entries;
  std::uint64_t rows = 0;                 // tokens of all items
  DeviceAddress x = 0, coefficients = 0;  // [row][channels of the batch's layers], [row][components]
  DeviceAddress items = 0, views = 0;

  std::uint64_t x_stride() const { return std::uint64_t{batch.layer_count} * width; }
  std::uint64_t x_bytes() const { return rows * x_stride() * 4; }
  std::uint64_t coefficient_bytes() const { return rows * components * 4; }
};

namespace {

constexpr std::uint32_t kTile = 16;         // rows and columns of a product's workgroup
constexpr std::uint32_t kMostItems = 1024;  // items of one dispatch: their tokens lie side by side in scratch

}  // namespace

// Slots to rows of scratch (centre) or back (restore), items [first, first + count).
Status DeviceKernels::add_rows_step(Work& work, const TransformPlan& plan, std::size_t first, std::size_t count,
                                    bool encoding) {
  const TransformBatch& batch = plan.batch;
  const StackTransform& stack = plan.stack;
  const bool turned = stack.pairing != RotationSpec::Pairing::kNone && stack.rotated_dims != 0;
  std::vector<std::uint32_t> constants{kThreads, static_cast<std::uint32_t>(batch.shape.dtype), plan.dim,
                                       turned ? static_cast<std::uint32_t>(stack.pairing) : shaders::kPairingNone,
                                       turned ? stack.rotated_dims : 0};
  if (!encoding) constants.push_back(plan.unit);
  Operation operation;
  operation.name = encoding ? "encode, centre" : "decode, restore";
  FIRN_ASSIGN(operation.pipeline, pipeline(encoding ? k_coding_centre_shader : k_coding_restore_shader, constants));
  std::uint32_t tokens = 0;
  RangeSet& slots = encoding ? operation.access.reads : operation.access.writes;
  RangeSet& rows = encoding ? operation.access.writes : operation.access.reads;
  for (const TransformItem& item : batch.items.subspan(first, count)) {
    const std::uint32_t of_item = item.block_count * kBlockTokens;
    for (const BlockView& view : batch.views.subspan(item.view, std::size_t{batch.layer_count} * item.block_count))
      add_tensor(slots, batch.shape, stack.values, view);
    if (turned) operation.access.reads.add(item.turns, std::uint64_t{of_item} * stack.rotated_dims * 4);
    if (encoding) operation.access.writes.add(item.sums, energy_floats(stack, item.block_count) * 4);
    tokens = std::max(tokens, of_item);
  }
  rows.add(plan.x, plan.x_bytes());
  operation.access.reads.add(stack.mean, std::uint64_t{stack.layer_count} * plan.width * 4);
  operation.work_bytes = 2 * plan.x_bytes();
  operation.set_push(shaders::RowsPush{.items = halves(plan.items),
                                       .views = halves(plan.views),
                                       .mean = halves(stack.mean + std::uint64_t{batch.first_layer} * plan.width * 4),
                                       .x = halves(plan.x),
                                       .item_base = static_cast<std::uint32_t>(first),
                                       .heads = batch.shape.kv_heads,
                                       .layer_count = batch.layer_count,
                                       .values = stack.values ? 1u : 0u,
                                       .factor = encoding ? 1.0f / stack.attention_factor : stack.attention_factor});
  operation.groups[0] = tokens;
  operation.groups[1] = batch.layer_count;
  operation.groups[2] = static_cast<std::uint32_t>(count);
  work.add(std::move(operation));
  return {};
}

// All rows of the batch times the basis: in pieces of as many rows as a submission may take.
Status DeviceKernels::add_product_step(Work& work, const TransformPlan& plan, bool encoding) {
  const StackTransform& stack = plan.stack;
  FIRN_ASSIGN(const VkPipeline code, pipeline(k_coding_product_shader, {encoding ? 1u : 0u}));
  const auto channels = static_cast<std::uint32_t>(plan.x_stride());
  const std::uint32_t stack_channels = stack.layer_count * plan.width;
  const std::uint32_t columns = encoding ? plan.components : channels, depth = encoding ? channels : plan.components;
  if (columns == 0) return {};
  const std::uint64_t tile_bytes = std::uint64_t{(columns + kTile - 1) / kTile} * depth * kTile * 6;
  const std::uint64_t most_tiles =
      std::clamp<std::uint64_t>(queue_.submission_bytes() / std::max<std::uint64_t>(1, tile_bytes), 1, kMaxGroups);
  for (std::uint64_t row = 0; row < plan.rows; row += most_tiles * kTile) {
    const auto tiles = static_cast<std::uint32_t>(std::min(most_tiles, (plan.rows - row + kTile - 1) / kTile));
    Operation operation;
    operation.name = encoding ? "encode, product" : "decode, product";
    operation.pipeline = code;
    const DeviceAddress from = encoding ? plan.x : plan.coefficients, to = encoding ? plan.coefficients : plan.x;
    const std::uint64_t count = std::min<std::uint64_t>(tiles * kTile, plan.rows - row);
    if (depth != 0) operation.access.reads.add(from + row * depth * 4, count * depth * 4);
    operation.access.writes.add(to + row * columns * 4, count * columns * 4);
    if (plan.components != 0)
      operation.access.reads.add(stack.basis, std::uint64_t{plan.components} * stack_channels * 2);
    operation.work_bytes = tiles * tile_bytes;
    operation.set_push(shaders::ProductPush{.a = halves(from),
                                            .basis = halves(stack.basis),
                                            .c = halves(to),
                                            .a_stride = depth,
                                            .basis_stride = stack_channels,
                                            .c_stride = columns,
                                            .column = plan.batch.first_layer * plan.width,
                                            .rows = static_cast<std::uint32_t>(plan.rows),
                                            .columns = columns,
                                            .depth = depth,
                                            .row_base = static_cast<std::uint32_t>(row)});
    operation.groups[0] = (columns + kTile - 1) / kTile;
    operation.groups[1] = tiles;
    work.add(std::move(operation));
  }
  return {};
}

// Coefficients to payloads or back, items [first, first + count).
Status DeviceKernels::add_pack_step(Work& work, const TransformPlan& plan, std::size_t first, std::size_t count,
                                    bool encoding) {
  const TransformBatch& batch = plan.batch;
  const StackTransform& stack = plan.stack;
  if (stack.groups.empty()) return {};
  Operation operation;
  operation.name = encoding ? "encode, pack" : "decode, unpack";
  FIRN_ASSIGN(operation.pipeline, pipeline(encoding ? k_coding_pack_shader : k_coding_unpack_shader, {}));
  std::uint32_t blocks = 0;
  for (const TransformItem& item : batch.items.subspan(first, count)) {
    const std::uint64_t payload = CodingKernels::payload_bytes(stack, item.block_count);
    if (payload != 0) (encoding ? operation.access.writes : operation.access.reads).add(item.payload, payload);
    if (encoding) {
      const std::uint64_t before = energy_floats(stack, item.block_count) * 4;
      operation.access.writes.add(item.sums + before, CodingKernels::sums_bytes(stack, item.block_count) - before);
    }
    blocks = std::max(blocks, item.block_count);
  }
  (encoding ? operation.access.reads : operation.access.writes).add(plan.coefficients, plan.coefficient_bytes());
  operation.access.reads.add(stack.group_table, stack.groups.size() * sizeof(shaders::GroupEntry));
  operation.work_bytes = 4 * plan.coefficient_bytes();
  operation.set_push(shaders::PackPush{.items = halves(plan.items),
                                       .groups = halves(stack.group_table),
                                       .coefficients = halves(plan.coefficients),
                                       .item_base = static_cast<std::uint32_t>(first),
                                       .group_count = static_cast<std::uint32_t>(stack.groups.size()),
                                       .stride = plan.components,
                                       .energies_before = stack.layer_count});
  operation.groups[0] = slice_count(stack);
  operation.groups[1] = blocks;
  operation.groups[2] = static_cast<std::uint32_t>(count);
  work.add(std::move(operation));
  return {};
}

Result<Fence> DeviceKernels::code_transform(const TransformBatch& batch, bool encoding) {
  FIRN_TRY(validate(batch, encoding));
  const StackTransform& stack = *batch.stack;
  TransformPlan plan{.batch = batch,
                     .stack = stack,
                     .dim = coded_dim(batch.shape, stack.values),
                     .width = 0,
                     .components = component_count(stack),
                     .entries = {}};
  plan.width = batch.shape.kv_heads * plan.dim;
  FIRN_ASSIGN(plan.unit, store_unit(batch.shape, stack.values, batch.views));
  for (const TransformItem& item : batch.items) {
    plan.entries.push_back({.payload = halves(item.payload),
                            .sums = halves(item.sums),
                            .turns = halves(item.turns),
                            .view = item.view,
                            .block_count = item.block_count,
                            .row = static_cast<std::uint32_t>(plan.rows),
                            .padding = 0});
    plan.rows += item.block_count * kBlockTokens;
  }
  if (plan.rows > ~std::uint32_t{0})
    return Status(Code::kInvalidArgument, fmt::format("coding: {} tokens in one batch; cut it", plan.rows));
  plan.x = batch.scratch;
  plan.coefficients = plan.x + plan.x_bytes();
  const std::uint64_t tables = plan.entries.size() * sizeof(plan.entries[0]) + batch.views.size_bytes() + 32;
  return queue_.run(tables, [&](Work& work) -> Status {
    plan.items = work.upload(std::span<const shaders::TransformEntry>(plan.entries));
    plan.views = work.upload(batch.views);
    const auto for_items = [&](auto step) -> Status {
      for (std::size_t first = 0; first < batch.items.size(); first += kMostItems)
        FIRN_TRY(
            (this->*step)(work, plan, first, std::min<std::size_t>(kMostItems, batch.items.size() - first), encoding));
      return {};
    };
    FIRN_TRY(for_items(encoding ? &DeviceKernels::add_rows_step : &DeviceKernels::add_pack_step));
    FIRN_TRY(add_product_step(work, plan, encoding));
    return for_items(encoding ? &DeviceKernels::add_pack_step : &DeviceKernels::add_rows_step);
  });
}

Result<Fence> DeviceKernels::encode(const TransformBatch& batch) { return code_transform(batch, true); }
Result<Fence> DeviceKernels::decode(const TransformBatch& batch) { return code_transform(batch, false); }

}  // namespace firn::vk
