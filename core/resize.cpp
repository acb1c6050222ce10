// resize.cpp: a pool that grows and shrinks while it is used, because the engine around it needs memory or has some to
// spare. Memory moves by whole chunks; everything that could refuse is asked before anything is changed.
#include <fmt/format.h>

#include <algorithm>

#include "core/base/no_throw.h"
#include "core/config/machine.h"
#include "core/manager_impl.h"

namespace firn {

struct ManagerImpl::Leaving {
  std::vector<char> chunk;      // by chunk: it goes
  std::uint32_t bound = 0;      // slots of them that a block is in
  std::uint32_t evictions = 0;  // blocks, wherever they are, that have no room any more
  std::vector<SlotMove> moves;  // all that stay in being
  bool has(const ManagerImpl& manager, SlotId slot) const { return chunk[manager.memory_->chunk_of(slot)] != 0; }
};

Result<PoolResize> ManagerImpl::resize_pool(std::uint64_t budget_bytes) {
  Lock lock(mutex_);
  run_deferred();
  if (!elastic_)
    return Status(Code::kInvalidArgument,
                  "resize_pool: this pool has one size; set pool.max_budget to the most that it may grow to");
  if (budget_bytes > config_.pool.max_budget_bytes)
    return Status(Code::kInvalidArgument,
                  fmt::format("resize_pool: {} are more than pool.max_budget, {}", format_bytes(budget_bytes),
                              format_bytes(config_.pool.max_budget_bytes)));
  const std::uint32_t chunk_slots = memory_->slots_per_chunk();
  const std::uint64_t room = budget_bytes - std::min(budget_bytes, pool_overhead_);
  const auto chunks = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(room / layout_.page_bytes / chunk_slots, memory_->chunk_count()));
  if (std::uint64_t{chunks} * chunk_slots < least_slots_)
    return Status(
        Code::kInvalidArgument,
        fmt::format("resize_pool: {} leave {} slots, by chunks of {}; one sequence needs {}",
                    format_bytes(budget_bytes), std::uint64_t{chunks} * chunk_slots, chunk_slots, least_slots_));
  if (running_steps_ != 0)
    return Status(Code::kUnavailable, "resize_pool: a step is being computed; try again after it");
  const std::uint32_t present = memory_->chunks_present();
  if (chunks > present) FIRN_TRY(check_growth(std::uint64_t{chunks - present} * chunk_slots * layout_.page_bytes));
  if (chunks >= present) {
    FIRN_TRY(ledger_->set_limit(Budget::kDevice, std::max(budget_bytes, ledger_->spent(Budget::kDevice))));
  }
  Result<PoolResize> done = chunks >= present ? grow_pool(chunks - present) : shrink_pool(present - chunks);
  if (done.ok()) {
    config_.pool.budget_bytes = budget_bytes;
    done->budget_bytes = budget_bytes;
    done->slots = pool_->slot_total();
  }
  free_retired();
  moved_.notify_all();
  return done;
}

// As at creation: what the pool has is taken already.
Status ManagerImpl::check_growth(std::uint64_t more) const {
  if (memory_bytes_ != 0) return check_machine(ledger_->spent(Budget::kDevice) + more).with_context("resize_pool");
  if (!bytes_ || device_->memory().info().name != "cpu") return {};
  const Machine machine = inspect_machine();
  if (machine.usable_bytes() == 0 || more <= machine.usable_bytes()) return {};
  return Status(Code::kNoSpace, fmt::format("resize_pool: {} more are asked of a machine with {}; the pool stays as it "
                                            "was",
                                            format_bytes(more), machine.memory_text()));
}

Result<PoolResize> ManagerImpl::grow_pool(std::uint32_t chunks) {
  std::vector<std::uint32_t> taken;
  taken.reserve(chunks);
  for (std::uint32_t at = 0; taken.size() < chunks; ++at) {
    if (memory_->has_chunk(at)) continue;
    if (const Status status = memory_->take_chunk(at); !status.ok()) {
      for (const std::uint32_t back : taken) memory_->drop_chunk(back);
      return status.with_context("resize_pool: the pool stays as it was");
    }
    taken.push_back(at);
  }
  const std::uint32_t chunk_slots = memory_->slots_per_chunk();
  for (const std::uint32_t at : taken) pool_->add_slots(1 + at * chunk_slots, chunk_slots);
  return PoolResize{};
}

// The chunks with the least to move, and whether what has to leave them finds room. Changes nothing.
Status ManagerImpl::plan_leaving(Leaving& leaving, std::uint32_t chunks) const {
  std::vector<std::uint32_t> live(memory_->chunk_count()), order;
  for (std::uint32_t i = 1; i < pool_->slot_count(); ++i) {
    const SlotId slot{i};
    if (pool_->state(slot) == BlockPool::SlotState::kBound)
      live[memory_->chunk_of(slot)] += !pool_->block(pool_->owner(slot)).candidate;
  }
  for (std::uint32_t at = 0; at < memory_->chunk_count(); ++at)
    if (memory_->has_chunk(at)) order.push_back(at);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::uint32_t a, std::uint32_t b) { return live[a] != live[b] ? live[a] < live[b] : a > b; });
  leaving.chunk.resize(memory_->chunk_count());
  for (std::uint32_t i = 0; i < chunks; ++i) leaving.chunk[order[i]] = 1;

  std::uint32_t free_elsewhere = 0, held = 0;
  for (std::uint32_t i = 1; i < pool_->slot_count(); ++i) {
    const SlotId slot{i};
    const BlockPool::SlotState state = pool_->state(slot);
    if (!leaving.has(*this, slot)) {
      free_elsewhere += state == BlockPool::SlotState::kFree;
      continue;
    }
    if (state == BlockPool::SlotState::kLoading)
      return Status(Code::kUnavailable, "resize_pool: blocks are on their way; pump() or wait_idle(), then again");
    if (state != BlockPool::SlotState::kBound) continue;
    const Block& block = pool_->block(pool_->owner(slot));
    if (block.in_flight != 0)
      return Status(Code::kUnavailable, "resize_pool: blocks are on their way; pump() or wait_idle(), then again");
    ++leaving.bound;
    held += !block.candidate;
  }
  leaving.evictions = leaving.bound - std::min(leaving.bound, free_elsewhere);
  // Nobody's floor is given up for this, no family of which a member has to stay, and no room that is kept.
  const Reach may_go = reach(kNewNamespace);
  const std::uint64_t evictable = may_go.slots - pool_->free_slots();
  if (leaving.evictions > evictable)
    return Status(
        Code::kNoSpace,
        fmt::format("resize_pool: {} blocks would have to go or move, {} of them of live sequences or pinned, "
                    "and {} slots elsewhere are free or can be; preempt() or free a sequence first{}",
                    leaving.bound, held, free_elsewhere + evictable,
                    namespaces_.any_quota() ? ", or lower a floor" : ""));
  const std::uint64_t going = std::uint64_t{chunks} * memory_->slots_per_chunk();
  if (spare_slots() < going && reserved_slots_ != 0)
    return Status(Code::kNoSpace, fmt::format("resize_pool: {} slots would go, and {} are kept for sequences (reserve)",
                                              going, reserved_slots_));
  std::uint64_t floors = 0;
  for (std::uint32_t i = 0; i < namespaces_.end(); ++i)
    if (const auto id = static_cast<std::uint16_t>(i); namespaces_.in_use(id))
      floors += namespaces_[id].quota.device_floor;
  if (const std::uint64_t bytes = (pool_->slot_total() - going) * layout_.page_bytes; floors > bytes)
    return Status(Code::kNoSpace, fmt::format("resize_pool: all floors together are {} bytes, and {} would be left; "
                                              "lower one",
                                              floors, bytes));
  return {};
}

Status ManagerImpl::copy_leaving(const Leaving& leaving) {
  if (!bytes_) return {};
  for (std::uint8_t s = 0; s < layout_.sets.size(); ++s) {
    const PageSet& set = layout_.sets[s];
    std::vector<CopyItem> items;
    for (const SlotMove& move : leaving.moves)
      for (std::uint32_t layer = 0; move.page_set == PageSetId{s} && layer < set.layer_count; ++layer)
        items.push_back({memory_->view(set, move.from, layer), memory_->view(set, move.to, layer), kBlockTokens});
    if (!items.empty()) FIRN_TRY(memory_->copy(set.kv, items));
  }
  return {};
}

Result<PoolResize> ManagerImpl::shrink_pool(std::uint32_t chunks) {
  Leaving leaving;
  FIRN_TRY(plan_leaving(leaving, chunks));
  PoolResize done;

  std::vector<SlotId> removed;  // free slots that go
  removed.reserve(std::size_t{chunks} * memory_->slots_per_chunk());
  leaving.moves.reserve(leaving.bound);
  // From here on only the device can refuse, or memory that an eviction or a copy wants, and then the pool has evicted
  // a few blocks and is as large as it was.
  const auto undo = [&](const Status& status) {
    for (const SlotMove& undone : leaving.moves) pool_->put_free_slot(undone.to, /*at_head=*/true);
    for (const SlotId slot : removed) pool_->add_slots(index(slot), 1);
    return status.with_context("resize_pool: the pool keeps its size");
  };
  const auto remove_free = [&] {
    for (std::uint32_t i = 1; i < pool_->slot_count(); ++i) {
      if (pool_->state(SlotId{i}) != BlockPool::SlotState::kFree || !leaving.has(*this, SlotId{i})) continue;
      pool_->remove_slot(SlotId{i});
      removed.push_back(SlotId{i});
    }
  };
  remove_free();
  // The policy's victims go, wherever they are, one after the other: a family goes as one and may leave more room than
  // was asked for, and whoever is still in a leaving slot then moves.
  const std::uint64_t before = counters_.evictions;
  const Status evicted = no_throw([&]() -> Status {
    while (counters_.evictions - before < leaving.evictions) {
      const BlockId victim = choose_slot_victim(kNewNamespace, /*own_only=*/false, {});
      FIRN_CHECK(victim != BlockId::kNone);  // plan_leaving() has counted them
      pool_->put_free_slot(evict_with_family(victim), /*at_head=*/false);
      drop_kin();
    }
    return {};
  });
  if (!evicted.ok()) return undo(evicted);
  remove_free();
  done.evicted = static_cast<std::uint32_t>(counters_.evictions - before);
  for (std::uint32_t i = 1; i < pool_->slot_count(); ++i) {
    const SlotId slot{i};
    if (pool_->state(slot) != BlockPool::SlotState::kBound || !leaving.has(*this, slot)) continue;
    leaving.moves.push_back({slot, pool_->take_free_slot(), pool_->block(pool_->owner(slot)).page_set});
    FIRN_CHECK(leaving.moves.back().to != SlotId::kNone);
  }
  if (const Status status = no_throw([&] { return copy_leaving(leaving); }); !status.ok()) return undo(status);
  for (const SlotMove& moved : leaving.moves) {
    const BlockId id = pool_->owner(moved.from);
    pool_->remove_slot(pool_->unbind(id));
    pool_->bind(moved.to, id);
    if (!slot_serials_.empty()) slot_serials_[index(moved.to)] = slot_serials_[index(moved.from)];
  }
  for (std::uint32_t at = 0; at < memory_->chunk_count(); ++at)
    if (leaving.chunk[at]) memory_->retire_chunk(at);
  done.moved = std::move(leaving.moves);
  return done;
}

// Memory goes back when its last reader has finished, and only then is the budget smaller.
void ManagerImpl::free_retired() {
  if (memory_->free_retired() && elastic_ && ledger_->limit(Budget::kDevice) != config_.pool.budget_bytes)
    ledger_->set_limit(Budget::kDevice, config_.pool.budget_bytes).ok();  // not yet: at the next call
}

}  // namespace firn
