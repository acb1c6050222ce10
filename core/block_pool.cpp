#include "core/block_pool.h"

#include <fmt/format.h>

#include <algorithm>

namespace firn {

BlockPool::BlockPool(std::uint32_t slot_count, std::uint32_t block_count, std::uint32_t present)
    : blocks_(block_count), slots_(slot_count) {
  FIRN_CHECK(slot_count >= 2 && block_count >= 1);
  for (std::uint32_t i = block_count; i-- > 0;) {  // the first record is taken first
    blocks_[i].parent = free_record_;
    free_record_ = BlockId{i};
  }
  slots_[0] = {BlockId::kNone, SlotId{0}, SlotId{0}, SlotState::kNull};
  for (std::uint32_t i = 1; i < slot_count; ++i) slots_[i].state = SlotState::kAbsent;
  add_slots(1, std::min(present, slot_count) - 1);
}

void BlockPool::add_slots(std::uint32_t first, std::uint32_t count) {
  for (std::uint32_t i = first; i < first + count; ++i) {
    FIRN_CHECK(slots_[i].state == SlotState::kAbsent);
    slots_[i].state = SlotState::kTaken;
    put_free_slot(SlotId{i}, /*at_head=*/false);
  }
  slot_total_ += count;
}

void BlockPool::remove_slot(SlotId slot) {
  Slot& removed = slots_[index(slot)];
  if (removed.state == SlotState::kFree) {
    slots_[index(removed.next)].previous = removed.previous;
    slots_[index(removed.previous)].next = removed.next;
    --free_slots_;
  } else {
    FIRN_CHECK(removed.state == SlotState::kTaken);
  }
  removed = {BlockId::kNone, SlotId::kNone, SlotId::kNone, SlotState::kAbsent};
  --slot_total_;
}

std::uint64_t BlockPool::metadata_bytes(std::uint32_t slot_count, std::uint32_t block_count) {
  return std::uint64_t{slot_count} * sizeof(Slot) + std::uint64_t{block_count} * sizeof(Block);
}

BlockId BlockPool::make_record() {
  const BlockId id = free_record_;
  FIRN_CHECK(id != BlockId::kNone);
  Block& record = block(id);
  free_record_ = record.parent;
  const std::uint32_t generation = record.generation + 1;
  record = {};
  record.generation = generation;
  record.in_use = true;
  ++block_count_;
  ++tallies_[0].blocks;
  return id;
}

void BlockPool::set_namespace(BlockId id, std::uint16_t name_space) {
  Block& record = block(id);
  FIRN_CHECK(record.in_use && name_space < tallies_.size());
  if (record.name_space == name_space) return;
  const std::uint32_t slots = record.slot == SlotId::kNone ? 0 : 1;
  tallies_[record.name_space].slots -= slots;
  if (--tallies_[record.name_space].blocks == 0) emptied_.push_back(record.name_space);
  record.name_space = name_space;
  tallies_[name_space].slots += slots;
  ++tallies_[name_space].blocks;
}

void BlockPool::drop_record(BlockId id) {
  Block& record = block(id);
  FIRN_CHECK(record.in_use && record.refs == 0 && record.slot == SlotId::kNone && record.frame == FrameId::kNone &&
             record.in_flight == 0 && !record.candidate);
  if (--tallies_[record.name_space].blocks == 0) emptied_.push_back(record.name_space);
  const std::uint32_t generation = record.generation;
  record = {};
  record.generation = generation;
  record.parent = free_record_;
  free_record_ = id;
  --block_count_;
}

SlotId BlockPool::take_free_slot() {
  const SlotId slot = slots_[0].next;
  if (slot == SlotId{0}) return SlotId::kNone;
  Slot& taken = slots_[index(slot)];
  slots_[index(taken.next)].previous = taken.previous;
  slots_[index(taken.previous)].next = taken.next;
  taken = {BlockId::kNone, SlotId::kNone, SlotId::kNone, SlotState::kTaken};
  --free_slots_;
  return slot;
}

void BlockPool::put_free_slot(SlotId slot, bool at_head) {
  Slot& freed = slots_[index(slot)];
  FIRN_CHECK(freed.state == SlotState::kTaken || freed.state == SlotState::kLoading);
  const SlotId before = at_head ? SlotId{0} : slots_[0].previous;
  const SlotId after = slots_[index(before)].next;
  freed = {BlockId::kNone, after, before, SlotState::kFree};
  slots_[index(before)].next = slot;
  slots_[index(after)].previous = slot;
  ++free_slots_;
}

void BlockPool::bind(SlotId slot, BlockId id) {
  Slot& bound = slots_[index(slot)];
  FIRN_CHECK((bound.state == SlotState::kTaken || bound.state == SlotState::kLoading) &&
             block(id).slot == SlotId::kNone);
  bound.owner = id;
  bound.state = SlotState::kBound;
  block(id).slot = slot;
  ++tallies_[block(id).name_space].slots;
}

SlotId BlockPool::unbind(BlockId id) {
  const SlotId slot = block(id).slot;
  Slot& bound = slots_[index(slot)];
  FIRN_CHECK(bound.state == SlotState::kBound && bound.owner == id);
  bound.owner = BlockId::kNone;
  bound.state = SlotState::kTaken;
  block(id).slot = SlotId::kNone;
  --tallies_[block(id).name_space].slots;
  return slot;
}

void BlockPool::set_loading(SlotId slot, BlockId id) {
  FIRN_CHECK(slots_[index(slot)].state == SlotState::kTaken);
  slots_[index(slot)].owner = id;
  slots_[index(slot)].state = SlotState::kLoading;
}

std::vector<SlotId> BlockPool::free_order() const {
  std::vector<SlotId> order;
  for (SlotId slot = slots_[0].next; slot != SlotId{0}; slot = slots_[index(slot)].next) order.push_back(slot);
  return order;
}

std::vector<std::string> BlockPool::check_queue() const {
  std::vector<std::string> broken;
  std::uint32_t walked = 0;
  SlotId before{0};
  for (SlotId slot = slots_[0].next; slot != SlotId{0}; slot = slots_[index(slot)].next) {
    if (slot == SlotId::kNone || index(slot) >= slots_.size()) {
      broken.push_back(fmt::format("free queue: slot {} links outside the pool", index(before)));
      return broken;
    }
    const Slot& queued = slots_[index(slot)];
    if (queued.state != SlotState::kFree)
      broken.push_back(fmt::format("free queue: slot {} is queued but not free", index(slot)));
    if (queued.previous != before)
      broken.push_back(fmt::format("free queue: slot {} does not link back to slot {}", index(slot), index(before)));
    before = slot;
    if (++walked > slots_.size()) {
      broken.push_back("free queue: a cycle");
      return broken;
    }
  }
  if (slots_[0].previous != before) broken.push_back("free queue: its tail is not its last slot");
  if (walked != free_slots_)
    broken.push_back(fmt::format("free queue: {} slots queued, {} counted", walked, free_slots_));
  return broken;
}

}  // namespace firn
