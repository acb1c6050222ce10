#include "core/block_pool.h"

#include <fmt/format.h>

#include <algorithm>

namespace firn {

BlockPool::BlockPool(std::uint32_t slot_count, std::uint32_t block_count, std::uint32_t present, bool queued)
    : blocks_(block_count), wraps_(queued ? block_count : 0), slots_(slot_count) {
  FIRN_CHECK(slot_count >= 2 && block_count >= 1);
  for (std::uint32_t i = block_count; i-- > 0;) {  // the first record is taken first
    blocks_[i].parent = free_record_;
    free_record_ = BlockId{i};
  }
  FIRN_CHECK(slot_count < 1u << 29);
  slots_[0] = Slot{0, 0, SlotState::kNull};
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

void BlockPool::unlink(const Slot& slot) {
  slots_[slot.link].previous = slot.previous;
  slots_[slot.previous].link = slot.link;
  --free_slots_;
}

void BlockPool::remove_slot(SlotId slot) {
  Slot& removed = at(slot);
  if (removed.state == SlotState::kFree) {
    unlink(removed);
  } else {
    FIRN_CHECK(removed.state == SlotState::kTaken);
  }
  removed = Slot{kNoOwner, 0, SlotState::kAbsent};
  --slot_total_;
}

std::uint64_t BlockPool::metadata_bytes(std::uint32_t slot_count, std::uint32_t block_count, bool queued) {
  return std::uint64_t{slot_count} * sizeof(Slot) +
         std::uint64_t{block_count} * (sizeof(Block) + (queued ? sizeof(std::uint16_t) : 0));
}

BlockId BlockPool::make_record() {
  const BlockId id = free_record_;
  FIRN_CHECK(id != BlockId::kNone);
  Block& record = block(id);
  free_record_ = record.parent;
  const auto life = static_cast<std::uint16_t>(record.life + 1);
  if (life == 0 && !wraps_.empty()) ++wraps_[index(id)];
  record = Block{};
  record.life = life;
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
  const std::uint16_t life = record.life;
  record = Block{};
  record.life = life;
  record.parent = free_record_;
  free_record_ = id;
  --block_count_;
}

SlotId BlockPool::take_free_slot() {
  const SlotId slot{slots_[0].link};
  if (slot == SlotId{0}) return SlotId::kNone;
  unlink(at(slot));
  at(slot) = Slot{kNoOwner, 0, SlotState::kTaken};
  return slot;
}

void BlockPool::put_free_slot(SlotId slot, bool at_head) {
  Slot& freed = at(slot);
  FIRN_CHECK(freed.state == SlotState::kTaken || freed.state == SlotState::kLoading);
  const std::uint32_t before = at_head ? 0 : slots_[0].previous;
  const std::uint32_t after = slots_[before].link;
  freed = Slot{after, before, SlotState::kFree};
  slots_[before].link = index(slot);
  slots_[after].previous = index(slot);
  ++free_slots_;
}

void BlockPool::bind(SlotId slot, BlockId id) {
  Slot& bound = at(slot);
  FIRN_CHECK((bound.state == SlotState::kTaken || bound.state == SlotState::kLoading) &&
             block(id).slot == SlotId::kNone);
  bound = Slot{index(id), 0, SlotState::kBound};
  block(id).slot = slot;
  ++tallies_[block(id).name_space].slots;
}

SlotId BlockPool::unbind(BlockId id) {
  const SlotId slot = block(id).slot;
  Slot& bound = at(slot);
  FIRN_CHECK(bound.state == SlotState::kBound && bound.link == index(id));
  bound = Slot{kNoOwner, 0, SlotState::kTaken};
  block(id).slot = SlotId::kNone;
  --tallies_[block(id).name_space].slots;
  return slot;
}

void BlockPool::set_loading(SlotId slot, BlockId id) {
  FIRN_CHECK(at(slot).state == SlotState::kTaken);
  at(slot) = Slot{index(id), 0, SlotState::kLoading};
}

std::vector<SlotId> BlockPool::free_order() const {
  std::vector<SlotId> order;
  for (std::uint32_t slot = slots_[0].link; slot != 0; slot = slots_[slot].link) order.push_back(SlotId{slot});
  return order;
}

std::vector<std::string> BlockPool::check_queue() const {
  std::vector<std::string> broken;
  std::uint32_t walked = 0;
  std::uint32_t before = 0;
  for (std::uint32_t slot = slots_[0].link; slot != 0; slot = slots_[slot].link) {
    if (slot >= slots_.size()) {
      broken.push_back(fmt::format("free queue: slot {} links outside the pool", before));
      return broken;
    }
    const Slot& queued = slots_[slot];
    if (queued.state != SlotState::kFree) {  // its link is no link
      broken.push_back(fmt::format("free queue: slot {} is queued but not free", slot));
      return broken;
    }
    if (queued.previous != before)
      broken.push_back(fmt::format("free queue: slot {} does not link back to slot {}", slot, before));
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
