#include "core/block_pool.h"

#include <fmt/format.h>

#include <algorithm>

namespace firn {

BlockPool::BlockPool(std::uint32_t slot_count, std::uint32_t block_count, std::uint32_t present, bool queued)
    : blocks_(block_count), wraps_(queued ? block_count : 0), slots_(slot_count) {
  FIRN_CHECK(slot_count >= 2 && block_count >= 1);
  emptied_.reserve(8);
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

void BlockPool::set_loading(SlotId slot, BlockId id) {
  FIRN_CHECK(at(slot).state == SlotState::kTaken);
  at(slot) = Slot{index(id), block(id).name_space, SlotState::kLoading};
  ++tallies_[block(id).name_space].slots;
}

void BlockPool::stop_loading(const Slot& slot) {
  Tally& tally = tallies_[slot.previous];
  if (--tally.slots == 0 && tally.blocks == 0 && !std::exchange(tally.emptied, true))
    emptied_.push_back(static_cast<std::uint16_t>(slot.previous));
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
