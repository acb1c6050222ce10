// residency.cpp: who is in a slot, who may lose it, and what happens to a block and its frame when they do.
//
// Two rules decide everything. A block is a candidate for eviction when it is full, no mover job reads it, and either
// no live sequence holds it or it is cold in all of them and a frame below has its bytes. A frame is a candidate when
// no live sequence holds any of its blocks. So evicting never takes bytes that somebody is going to attend.
#include <fmt/format.h>

#include "core/manager_impl.h"

namespace firn {

void ManagerImpl::count_candidate(Block& block, bool live, bool copied, bool kept) {
  cold_slots_ += (live ? 1 : 0) - (block.counted_live ? 1 : 0);
  copied_slots_ += (!live && copied ? 1 : 0) - (block.counted_copied ? 1 : 0);
  if (live || kept || block.counted_live || block.kept_by_family) {
    for (KeptBack* back : {&kept_back_[block.name_space], &all_kept_back_}) {
      back->reader += (live && !kept ? 1u : 0u) - (block.counted_live && !block.kept_by_family ? 1u : 0u);
      back->family += (kept ? 1u : 0u) - (block.kept_by_family ? 1u : 0u);
    }
  }
  block.counted_live = live;
  block.counted_copied = !live && copied;
  block.kept_by_family = kept;
}

void ManagerImpl::drop_candidate(BlockId id) {
  Block& block = pool_->block(id);
  if (!block.candidate) return;
  slot_policy_->on_remove(id);
  block.candidate = false;
  count_candidate(block, false, false, false);
}

void ManagerImpl::update_candidate(BlockId id) {
  Block& block = pool_->block(id);
  if (!block.full() && !block.candidate) return;
  const bool live = block.refs != 0, marked = !retention_->says_nothing();
  const bool should = block.slot != SlotId::kNone && block.in_flight == 0 && block.full() &&
                      !(marked && retention_->held(id)) &&
                      (!live || (block.hot_refs == 0 && block.frame != FrameId::kNone));
  drop_candidate(id);
  if (!should) {
    if (marked) update_family(id);
    return;
  }
  block.candidate = true;
  count_candidate(block, live, block.frame != FrameId::kNone, /*kept=*/false);
  slot_policy_->on_insert(
      {.id = id,
       .parent = block.parent,
       .name_space = block.name_space,
       .position = block.position * kBlockTokens,
       .bytes = layout_.page_bytes,
       .recompute_cost = static_cast<float>(kBlockTokens) + 0.001f * static_cast<float>(block.position),
       .priority = marked ? retention_->priority(id) : kDefaultPriority,
       .live = live,
       .has_copy = block.frame != FrameId::kNone,
       .key_hash = policy_name(block.key)},
      moment());
  if (marked) update_family(id);
}

void ManagerImpl::update_family(BlockId id) {
  const std::vector<BlockId>* family = retention_->family(id);
  if (!family) return;
  const bool may_go = family_may_go(id);
  for (const BlockId member : *family) {
    Block& block = pool_->block(member);
    if (block.candidate) count_candidate(block, block.counted_live, block.counted_copied, !may_go);
  }
}

SlotId ManagerImpl::take_slot(std::uint16_t name_space) {
  // At its ceiling a namespace makes room itself, though there may be free slots.
  const std::uint32_t ceiling = ceiling_slots(name_space);
  while (pool_->tally(name_space).slots >= ceiling) {
    const BlockId own = choose_slot_victim(name_space, /*own_only=*/true, {});
    if (own == BlockId::kNone) return SlotId::kNone;
    const SlotId slot = evict_with_family(own);
    drop_kin();
    if (pool_->tally(name_space).slots < ceiling) return slot;
    pool_->put_free_slot(slot, /*at_head=*/false);
  }
  // What its floor hides from others is room for itself alone: where all that they can see is kept for sequences, its
  // own cached blocks make room.
  if (reserved_slots_ != 0 && name_space < namespaces_.end() && namespaces_[name_space].quota.device_floor != 0 &&
      spare_slots() == 0)
    if (const BlockId own = choose_slot_victim(name_space, /*own_only=*/true, {}); own != BlockId::kNone) {
      const SlotId slot = evict_with_family(own);
      drop_kin();
      return slot;
    }
  if (const SlotId slot = pool_->take_free_slot(); slot != SlotId::kNone) return slot;
  const BlockId victim = choose_slot_victim(name_space, /*own_only=*/false, {});
  if (victim == BlockId::kNone) return SlotId::kNone;
  const SlotId slot = evict_with_family(victim);
  drop_kin();
  return slot;
}

SlotId ManagerImpl::take_idle_slot(std::uint16_t name_space) {
  if (pool_->tally(name_space).slots >= ceiling_slots(name_space)) return SlotId::kNone;
  if (spare_slots() == 0) return SlotId::kNone;  // what is kept for somebody is not for promotion
  if (const SlotId slot = take_free_idle_slot(); slot != SlotId::kNone) return slot;
  const Filter idle = [this](BlockId id) {
    const Block& block = pool_->block(id);
    return block.refs == 0 && block.frame != FrameId::kNone && !memory_->busy(block.slot);
  };
  const BlockId victim = choose_slot_victim(name_space, /*own_only=*/false, idle);
  return victim == BlockId::kNone ? SlotId::kNone : evict_with_family(victim);
}

SlotId ManagerImpl::evict(BlockId id) {
  Block& block = pool_->block(id);
  FIRN_CHECK(block.candidate);
  drop_candidate(id);
  ++counters_.evictions;
  if (block.refs != 0) memory_->note_left(block.slot);  // attention that was started may still read it
  const SlotId slot = pool_->unbind(id);
  if (block.frame != FrameId::kNone) {
    ++counters_.evictions_with_copy;
    // What comes back is what the frame says (in strict mode it was that already).
    if (is_lossy(frames_->frame(block.frame))) {
      block.coded = true;
      block.fidelity = std::max(block.fidelity, Fidelity::kLossy);
    }
    note_tiers(id);
  } else {
    forget_key(id, verdicts_.any() && verdicts_.stands(block.key, clock_()) ? MissReason::kFiltered
                                                                            : MissReason::kEvictedDevice);
    pool_->drop_record(id);
  }
  return slot;
}

void ManagerImpl::forget_key(BlockId id, MissReason reason) {
  Block& block = pool_->block(id);
  if (!block.full()) return;
  if (events_->on()) events_->forgotten(*pool_, *index_, id, namespaces_[block.name_space].tag, clock_());
  BlockId heir = BlockId::kNone;
  if (!retention_->says_nothing() && retention_->held(id)) {
    // A pin is of a key: if this copy is discarded and another is left, that one stays.
    BlockId other = index_->find(block.key, block.page_set);
    if (other == id) other = block.next_duplicate;
    if (other != BlockId::kNone) heir = retention_->move_hold(id, other) ? other : BlockId::kNone;
  }
  if (!retention_->unused())
    if (Retention::Members kin = retention_->forget(id); !kin.blocks.empty()) {
      for (const BlockId other : kin.blocks) {
        Block& free = pool_->block(other);  // of its family
        if (free.candidate) count_candidate(free, free.counted_live, free.counted_copied, /*kept=*/false);
      }
      broken_families_.push_back(std::move(kin));  // set_family() has made room for as many as there are
    }
  index_->remove(id);
  if (partial_) partial_->remove(id);
  if (heir != BlockId::kNone) retention_changed(heir);
  if (reason != MissReason::kNone && index_->find(block.key, block.page_set) == BlockId::kNone)
    ghosts_->remember(block.key, reason);
  block.key = {};
}

// Nobody holds it any more: what can be found stays, what cannot goes.
void ManagerImpl::settle(BlockId id) {
  Block& block = pool_->block(id);
  // Most blocks that nobody will find are these: a slot and nothing else.
  if (!block.full() && block.slot != SlotId::kNone && block.frame == FrameId::kNone && block.in_flight == 0 &&
      !block.candidate) {
    pool_->put_free_slot(pool_->unbind(id), /*at_head=*/true);
    return pool_->drop_record(id);
  }
  if (block.full() && (block.slot != SlotId::kNone || block.frame != FrameId::kNone)) {
    update_candidate(id);
    return;
  }
  if (block.in_flight != 0) {
    block.release_when_idle = true;
    return;
  }
  forget_key(id, MissReason::kNone);
  detach_frame(id);
  if (block.candidate) update_candidate(id);
  // Its bytes are worth nothing, so this slot is used before anything that is.
  if (block.slot != SlotId::kNone) pool_->put_free_slot(pool_->unbind(id), /*at_head=*/true);
  pool_->drop_record(id);
}

void ManagerImpl::note_live(BlockId id, bool live) {
  pool_->count_live(pool_->block(id), live);
  const FrameId frame = pool_->block(id).frame;
  if (frame == FrameId::kNone) return;
  frames_->frame(frame).live = static_cast<std::uint16_t>(frames_->frame(frame).live + (live ? 1 : -1));
  update_frame(frame);
}

void ManagerImpl::update_frame(FrameId id) {
  Frame& frame = frames_->frame(id);
  const bool should = frame.live == 0 && frame.in_flight == 0 && !frame_held(frame);
  if (should == frame.candidate) return;
  frame.candidate = should;
  if (!should) {
    frame_policy_->on_remove(frame.policy_id);
    return;
  }
  // One id stands for the whole frame: its first block that is still there. Its copy is the last one as far as tiers
  // go.
  for (std::uint8_t i = 0; i < frame.block_count; ++i)
    if (frame.blocks[i] != BlockId::kNone) {
      frame.policy_id = frame.blocks[i];
      break;
    }
  const Block& first = pool_->block(frame.policy_id);
  frame_policy_->on_insert({.id = frame.policy_id,
                            .parent = first.parent,
                            .name_space = first.name_space,
                            .position = first.position * kBlockTokens,
                            .bytes = frame.bytes,
                            .priority = frame_priority(frame),
                            .key_hash = policy_name(first.key)},
                           moment());
}

void ManagerImpl::detach_frame(BlockId id) {
  Block& block = pool_->block(id);
  if (block.frame == FrameId::kNone) return;
  const FrameId frame_id = block.frame;
  Frame& frame = frames_->frame(frame_id);
  if (frame.candidate) {  // its policy id may be this very block
    frame_policy_->on_remove(frame.policy_id);
    frame.candidate = false;
  }
  if (block.refs != 0) --frame.live;
  frame.blocks[block.frame_index] = BlockId::kNone;
  block.frame = FrameId::kNone;
  note_tiers(id);
  const bool empty = std::all_of(frame.blocks.begin(), frame.blocks.begin() + frame.block_count,
                                 [](BlockId other) { return other == BlockId::kNone; });
  if (!empty) {
    update_frame(frame_id);
  } else if (frame.in_flight == 0) {
    drop_frame(frame_id, MissReason::kNone);
  }  // else the job that reads it drops it
}

bool ManagerImpl::evict_frame(std::uint16_t name_space) {
  expire();
  const BlockId victim = choose_frame_victim(name_space, /*own_only=*/false);
  if (victim == BlockId::kNone) return false;
  ++counters_.host_evictions;
  drop_frame(pool_->block(victim).frame, MissReason::kEvictedHost);
  drop_kin();
  return true;
}

void ManagerImpl::drop_frame(FrameId id, MissReason reason) {
  Frame& frame = frames_->frame(id);
  FIRN_CHECK(frame.in_flight == 0);
  if (frame.candidate) {
    frame_policy_->on_remove(frame.policy_id);
    frame.candidate = false;
  }
  // From the tail, so that what is left of a chain is its beginning.
  for (std::uint8_t i = frame.block_count; i-- > 0;) {
    if (frame.blocks[i] == BlockId::kNone) continue;
    const BlockId block_id = frame.blocks[i];
    Block& block = pool_->block(block_id);
    block.frame = FrameId::kNone;
    if (reason == MissReason::kLoadFailed && block.full()) {
      verdicts_.failed(block.key, clock_());
      ++counters_.load_failures;
    }
    note_tiers(block_id);
    if (block.slot != SlotId::kNone) {
      if (block.candidate && block.refs == 0) {
        slot_policy_->on_access(block_id, Access::kCopyLost, clock_());
        count_candidate(block, false, false, block.kept_by_family);
      }
      if (block.refs != 0) update_candidate(block_id);
    } else if (block.refs == 0) {
      forget_key(block_id, reason);
      pool_->drop_record(block_id);
    } else {
      lose_block(block_id, false);
    }
  }
  host_raw_bytes_ -= extent_shape(set_of(frame), frame.block_count).raw_bytes();
  namespaces_[frame.name_space].host_bytes -= frame.bytes;
  erase_frame_bytes(frame.key);
  frames_->drop(id);
}

// A live sequence holds a block whose only copy is gone. It is never attended nor matched again; the engine is told how
// many tokens are left and computes the rest.
void ManagerImpl::lose_block(BlockId id, bool with_device) {
  Block& block = pool_->block(id);
  block.lost = true;
  forget_key(id, MissReason::kLoadFailed);
  const std::uint32_t at = block.position;  // wherever it is held
  for (auto& [number, seq] : sequences_) {
    const std::vector<BlockId>& blocks = seq->tables[firn::index(block.page_set)].blocks;
    if (at >= blocks.size() || blocks[at] != id || at >= seq->lost_from) continue;
    seq->lost_from = at;
    seq->lost_device = with_device;
  }
}

std::string_view ManagerImpl::why_lost(const Sequence& seq) {
  return seq.lost_device
             ? "with the device, for which replace_device() found no frame in the host tier (sinks and recent "
               "window have none while a sequence lives)"
             : "with a frame that did not decode";
}

bool ManagerImpl::make_record_room(std::uint16_t name_space) {
  while (!pool_->has_free_record())
    if (!host_ || !evict_frame(name_space)) return false;
  return true;
}

Result<SlotInfo> ManagerImpl::slot_info(SlotId slot) const {
  Lock lock(mutex_);
  catch_up();
  if (firn::index(slot) == 0 || firn::index(slot) >= pool_->slot_count())
    return Status(Code::kInvalidArgument, fmt::format("slot_info: there are slots 1 to {}", pool_->slot_count() - 1));
  if (pool_->state(slot) != BlockPool::SlotState::kBound) return SlotInfo{Key{}, 0, PageSetId{0}, true};
  const Block& block = pool_->block(pool_->owner(slot));
  return SlotInfo{block.key, static_cast<std::uint32_t>(block.refs), block.page_set, false};
}

Result<BlockView> ManagerImpl::slot_view(SlotId slot, std::uint32_t layer) const {
  if (!bytes_) return Status(Code::kUnavailable, "slot_view: device none has no bytes");
  if (layer >= layout_.layer_count)
    return Status(Code::kInvalidArgument,
                  fmt::format("slot_view: layer {} of a model with {} layers", layer, layout_.layer_count));
  Lock lock(mutex_);
  if (firn::index(slot) == 0 || firn::index(slot) >= pool_->slot_count() ||
      pool_->state(slot) == BlockPool::SlotState::kAbsent)
    return Status(Code::kInvalidArgument, fmt::format("slot_view: there is no slot {}", firn::index(slot)));
  const PageSetId page_set = set_of_layer(layer);
  if (pool_->state(slot) == BlockPool::SlotState::kBound && pool_->block(pool_->owner(slot)).page_set != page_set)
    return Status(
        Code::kInvalidArgument,
        fmt::format("slot_view: slot {} holds a block of page set {}, layer {} is in page set {}", firn::index(slot),
                    firn::index(pool_->block(pool_->owner(slot)).page_set), layer, firn::index(page_set)));
  const PageSet& set = layout_.sets[firn::index(page_set)];
  return memory_->view(set, slot, layer - set.first_layer);
}

std::vector<SlotId> ManagerImpl::reuse_order() const {
  Lock lock(mutex_);
  catch_up();
  std::vector<SlotId> order = pool_->free_order();
  // One victim after the other, as allocate() asks for them, from a copy: several at once are at most what is wanted,
  // and asking moves the hands of some policies.
  const std::unique_ptr<EvictionPolicy> policy = slot_policy_->clone();
  FIRN_CHECK(policy != nullptr);  // all that make_policy() makes can
  for (BlockId id; policy->victims({}, {}, {&id, 1}) != 0; policy->on_remove(id))
    order.push_back(pool_->block(id).slot);
  return order;
}

}  // namespace firn
