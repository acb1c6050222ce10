// attend.cpp: cuts a batch of attention into tasks. Two passes over the pool:
//
//   1. Splits of few rows (decode): a task attends some heads of one split and leaves partial results.
//   2. Tiles of rows: a task takes the rows' items in their order, folds the partial results of pass 1, attends splits
//      of many rows (prefill) itself and folds them at once, and finishes the rows in the last wave.
//   3. Where attention mass is asked for, in the last wave: a task puts one row's together.
//
// How rows, heads and splits are spread over tasks decides who computes, never what: attend_kernel.cpp.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/base/attention.h"
#include "core/base/check.h"
#include "core/cpu/cpu_kernels.h"

namespace firn::cpu {
namespace {

// Below this many bytes of keys and values (or of partial results) waking the other threads costs more than it saves.
constexpr std::uint64_t kInlineBytes = 32 * 1024;

// Items that a task takes one after the other where there are plenty: the next one's memory is asked for early.
constexpr std::uint32_t kMaxItemsATask = 8;

std::uint32_t divide_up(std::uint64_t value, std::uint64_t by) {
  return static_cast<std::uint32_t>((value + by - 1) / by);
}

struct Plan {
  const AttendBatch& batch;
  const std::vector<std::unique_ptr<AttendScratch>>& scratch;
  std::uint32_t group = 0;        // query heads that share a key-value head
  std::uint64_t accumulator = 0;  // floats of a row and query head
  float* state = nullptr;
  std::uint32_t* first_partial = nullptr;  // by item: its first row in partials
  float* partials = nullptr;
  std::uint32_t partial_rows_max = 0;  // the most rows of an item that leaves partials; 0: none does
  std::uint64_t partial_rows = 0;
  bool folds_in_place = false;  // some item does not leave partials
  std::uint64_t kv_bytes = 0;   // read by pass 1
  // Pass 1: tasks are runs of items x head_parts x pair_parts.
  std::uint32_t items_a_task = 1;
  std::uint32_t heads_a_part = 1, head_parts = 0, pairs_a_part = 1, pair_parts = 0;
  // Pass 2: tasks are tiles x kv_heads.
  std::uint32_t pairs_a_tile = 1, tiles = 0;

  float* accumulator_of(float* rows, std::uint64_t row, std::uint32_t query_head) const {
    return rows + (row * batch.query_heads + query_head) * accumulator;
  }
};

template <class T>
T* pointer(DeviceAddress address) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address));
}

void scan_items(Plan& plan) {
  for (std::size_t i = 0; i < plan.batch.items.size(); ++i) {
    const AttendItem& item = plan.batch.items[i];
    if (!leaves_partials(item)) {
      plan.folds_in_place = true;
      continue;
    }
    plan.first_partial[i] = static_cast<std::uint32_t>(plan.partial_rows);
    plan.partial_rows += item.row_count;
    plan.partial_rows_max = std::max(plan.partial_rows_max, item.row_count);
    plan.kv_bytes += item.token_count * plan.batch.shape.token_bytes();
  }
}

Plan make_plan(const AttendBatch& batch, const std::vector<std::unique_ptr<AttendScratch>>& scratch, unsigned threads) {
  Plan plan{.batch = batch, .scratch = scratch};
  const std::uint32_t kv_heads = batch.shape.kv_heads;
  plan.group = batch.query_heads / kv_heads;
  plan.accumulator = accumulator_floats(batch.shape);
  plan.state = pointer<float>(batch.state);
  plan.first_partial = pointer<std::uint32_t>(batch.partials);
  plan.partials = pointer<float>(batch.partials + partial_table_bytes(batch.items.size()));
  scan_items(plan);

  const std::uint32_t most = max_pairs(batch.shape);
  const std::uint64_t wanted = threads == 1 ? 1 : 4 * std::uint64_t{threads};  // tasks, so that late ones even out
  if (plan.partial_rows_max != 0) {
    const std::uint64_t pairs = std::uint64_t{plan.partial_rows_max} * plan.group;
    plan.pairs_a_part = static_cast<std::uint32_t>(std::min<std::uint64_t>(pairs, most));
    plan.pair_parts = divide_up(pairs, plan.pairs_a_part);
    plan.heads_a_part = std::min(kv_heads, most / plan.pairs_a_part);
    const std::uint64_t cells = std::uint64_t{batch.items.size()} * plan.pair_parts;
    while (plan.heads_a_part > 1 && cells * divide_up(kv_heads, plan.heads_a_part) < wanted)
      plan.heads_a_part = (plan.heads_a_part + 1) / 2;
    plan.head_parts = divide_up(kv_heads, plan.heads_a_part);
    const std::uint64_t parts = cells * plan.head_parts;
    plan.items_a_task = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(parts / (2 * wanted), 1, kMaxItemsATask));
  }
  const std::uint64_t pairs = std::uint64_t{batch.row_count} * plan.group;
  const std::uint64_t even = divide_up(pairs * kv_heads, wanted) / 4 * 4;
  plan.pairs_a_tile = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(even, std::min(16u, most), most));
  plan.tiles = divide_up(pairs, plan.pairs_a_tile);
  return plan;
}

// Where the sums by block of a (row, query head, split) are. Only where the batch asks for mass.
float* mass_of(const Plan& plan, std::uint64_t row, std::uint32_t query_head, std::uint32_t split_index) {
  const std::uint64_t splits = mass_splits(plan.batch.mass_blocks);
  return pointer<float>(plan.batch.mass_scratch) +
         ((row * plan.batch.query_heads + query_head) * splits + split_index) * kMassFloats;
}

// The pairs of an item that one part of pass 1 attends; may be none.
PairTile tile_of_part(const Plan& plan, const AttendItem& item, std::uint32_t part) {
  const std::uint32_t item_end = (item.row + item.row_count) * plan.group;
  PairTile tile;
  tile.kv_head_begin = part / plan.pair_parts * plan.heads_a_part;
  tile.kv_head_end = std::min(tile.kv_head_begin + plan.heads_a_part, plan.batch.shape.kv_heads);
  tile.pair_begin = std::min(item.row * plan.group + part % plan.pair_parts * plan.pairs_a_part, item_end);
  tile.pair_end = std::min(tile.pair_begin + plan.pairs_a_part, item_end);
  return tile;
}

void store_partial(const Plan& plan, std::size_t i, const PairTile& tile, const AttendScratch& scratch) {
  const std::uint32_t value_dim = plan.batch.shape.value_dim;
  const std::uint32_t split_index = plan.batch.items[i].split / kSplitTokens;
  std::uint32_t slot = 0;
  for (std::uint32_t head = tile.kv_head_begin; head < tile.kv_head_end; ++head)
    for (std::uint32_t pair = tile.pair_begin; pair < tile.pair_end; ++pair, ++slot) {
      const std::uint64_t row = std::uint64_t{plan.first_partial[i]} + (pair / plan.group - plan.batch.items[i].row);
      const std::uint32_t query_head = head * plan.group + pair % plan.group;
      float* to = plan.accumulator_of(plan.partials, row, query_head);
      std::memcpy(to, scratch.values.data() + std::size_t{slot} * padded(value_dim), value_dim * sizeof(float));
      to[value_dim] = scratch.maximum[slot];
      to[value_dim + 1] = scratch.sum[slot];
      if (plan.batch.mass != 0) sum_blocks(scratch, slot, mass_of(plan, pair / plan.group, query_head, split_index));
    }
}

void attend_partials(const Plan& plan, std::size_t task, AttendScratch& scratch) {
  const std::uint32_t parts = plan.head_parts * plan.pair_parts;
  const auto part = static_cast<std::uint32_t>(task % parts);
  const std::size_t begin = task / parts * plan.items_a_task;
  const std::size_t end = std::min(begin + plan.items_a_task, plan.batch.items.size());
  const std::span<const AttendItem> items = plan.batch.items;
  bool announced = false;
  for (std::size_t i = begin; i < end; ++i) {
    const AttendItem* next = i + 1 < end && leaves_partials(items[i + 1]) ? &items[i + 1] : nullptr;
    const PairTile tile = tile_of_part(plan, items[i], part);
    if (leaves_partials(items[i]) && tile.slots() != 0) {
      attend_split(plan.batch, items[i], tile, scratch, {next, announced});
      store_partial(plan, i, tile, scratch);
      announced = next != nullptr;
    }
  }
}

// Folds one item into the rows of a tile of one key-value head.
void fold_item(const Plan& plan, std::size_t i, const PairTile& tile, AttendScratch& scratch) {
  const AttendItem& item = plan.batch.items[i];
  PairTile part = tile;
  part.pair_begin = std::max(tile.pair_begin, item.row * plan.group);
  part.pair_end = std::min(tile.pair_end, (item.row + item.row_count) * plan.group);
  if (part.pair_begin >= part.pair_end) return;
  const bool partial = leaves_partials(item);
  if (!partial) attend_split(plan.batch, item, part, scratch);

  const std::uint32_t value_dim = plan.batch.shape.value_dim;
  for (std::uint32_t pair = part.pair_begin; pair < part.pair_end; ++pair) {
    const std::uint32_t query_head = tile.kv_head_begin * plan.group + pair % plan.group;
    float* state = plan.accumulator_of(plan.state, pair / plan.group, query_head);
    if (partial) {
      const std::uint64_t row = std::uint64_t{plan.first_partial[i]} + (pair / plan.group - item.row);
      const float* from = plan.accumulator_of(plan.partials, row, query_head);
      fold(state, from, from[value_dim], from[value_dim + 1], value_dim);
    } else {
      const std::uint32_t slot = pair - part.pair_begin;
      fold(state, scratch.values.data() + std::size_t{slot} * padded(value_dim), scratch.maximum[slot],
           scratch.sum[slot], value_dim);
      if (plan.batch.mass != 0)
        sum_blocks(scratch, slot, mass_of(plan, pair / plan.group, query_head, item.split / kSplitTokens));
    }
  }
}

void attend_tile(const Plan& plan, std::size_t task, AttendScratch& scratch) {
  const std::uint32_t kv_heads = plan.batch.shape.kv_heads;
  const std::uint32_t value_dim = plan.batch.shape.value_dim;
  const std::uint64_t pairs = std::uint64_t{plan.batch.row_count} * plan.group;
  PairTile tile;
  tile.kv_head_begin = static_cast<std::uint32_t>(task % kv_heads);
  tile.kv_head_end = tile.kv_head_begin + 1;
  tile.pair_begin = static_cast<std::uint32_t>(task / kv_heads * plan.pairs_a_tile);
  tile.pair_end = static_cast<std::uint32_t>(std::min<std::uint64_t>(tile.pair_begin + plan.pairs_a_tile, pairs));
  const auto state_of = [&](std::uint32_t pair) {
    return plan.accumulator_of(plan.state, pair / plan.group, tile.kv_head_begin * plan.group + pair % plan.group);
  };
  if (plan.batch
          .first)  // sum 0 says that nothing was folded yet; the rest is never read then, but has no secrets to keep
    for (std::uint32_t pair = tile.pair_begin; pair < tile.pair_end; ++pair)
      std::memset(state_of(pair), 0, plan.accumulator * sizeof(float));
  for (std::size_t i = 0; i < plan.batch.items.size(); ++i) fold_item(plan, i, tile, scratch);
  if (!plan.batch.last) return;
  for (std::uint32_t pair = tile.pair_begin; pair < tile.pair_end; ++pair) {
    const std::uint64_t query_head = std::uint64_t{tile.kv_head_begin} * plan.group + pair % plan.group;
    const std::uint64_t row = std::uint64_t{pair / plan.group} * plan.batch.query_heads + query_head;
    finish(state_of(pair), pointer<float>(plan.batch.out) + row * value_dim, value_dim);
  }
}

// Heads ascend within each block, so that no number of tasks changes a sum.
void gather_mass(const Plan& plan, std::size_t row, AttendScratch&) {
  const AttendBatch& batch = plan.batch;
  constexpr std::uint32_t blocks = kSplitTokens / kBlockTokens;
  float* out = pointer<float>(batch.mass) + row * batch.mass_blocks;
  for (std::uint32_t first = 0; first < batch.mass_blocks; first += blocks) {
    float mass[blocks] = {};
    for (std::uint32_t head = 0; head < batch.query_heads; ++head) {
      const float* state = plan.accumulator_of(plan.state, row, head) + batch.shape.value_dim;
      add_mass(mass_of(plan, row, head, first / blocks), state[0], state[1], mass);
    }
    std::memcpy(out + first, mass, std::min(blocks, batch.mass_blocks - first) * sizeof(float));
  }
}

using Task = void (*)(const Plan&, std::size_t, AttendScratch&);

void run(const Plan& plan, ThreadPool& threads, std::size_t count, bool alone, Task task) {
  struct Loop {
    const Plan& plan;
    std::size_t steps;
    Task task;
  } const loop{plan, alone ? count : 1, task};
  // One reference: small enough for std::function to keep without allocating. Alone too the pool gives worker 0's turn.
  threads.parallel_for_worker(alone ? 1 : count, [&loop](std::size_t index, unsigned worker) {
    for (std::size_t i = 0; i < loop.steps; ++i) loop.task(loop.plan, index + i, *loop.plan.scratch[worker]);
  });
}

}  // namespace

void attend(const AttendBatch& batch, ThreadPool& threads, const std::vector<std::unique_ptr<AttendScratch>>& scratch) {
  if (batch.row_count == 0) return;
  const Plan plan = make_plan(batch, scratch, threads.size());
  const std::uint64_t mass_bytes =
      batch.mass != 0 ? Kernels::mass_bytes(batch.query_heads, batch.row_count, batch.mass_blocks) : 0;
  // Splits without an item count as nothing.
  if (mass_bytes != 0 && batch.first) std::memset(pointer<std::byte>(batch.mass_scratch), 0, mass_bytes);
  if (plan.partial_rows_max != 0) {
    const std::size_t runs = divide_up(batch.items.size(), plan.items_a_task);
    const std::size_t count = runs * plan.head_parts * plan.pair_parts;
    run(plan, threads, count, plan.kv_bytes < kInlineBytes, attend_partials);
  }
  const std::uint64_t fold_bytes = (plan.partial_rows + batch.row_count) * batch.query_heads * plan.accumulator * 4;
  run(plan, threads, std::size_t{plan.tiles} * batch.shape.kv_heads,
      !plan.folds_in_place && fold_bytes < 2 * kInlineBytes, attend_tile);
  if (mass_bytes != 0 && batch.last) run(plan, threads, batch.row_count, mass_bytes < kInlineBytes, gather_mass);
}

}  // namespace firn::cpu
