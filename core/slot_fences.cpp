// slot_fences.cpp: which moves may run now, and which slots a load may have: those that the device has done with
// (SlotMemory). Loads stay queued while too few are.
#include "core/manager_impl.h"

namespace firn {

// False sets blocked_on_. Without a worker a job is the caller's own time, so it does not begin what would first have
// to wait for work that somebody else has given the device.
bool ManagerImpl::may_run(const Job& job, bool background) {
  blocked_by_attend_ = false;
  if (job.kind == Job::Kind::kStore && job.lossy && strict_lossy()) {  // it rewrites what somebody may be attending
    blocked_by_attend_ = attending_;
    if (attending_) return false;
    if (!device_->timeline().passed(attended_)) {
      blocked_on_ = attended_;
      return false;
    }
  }
  if (job.kind == Job::Kind::kStore && !device_->timeline().passed(job.fence)) {
    blocked_on_ = job.fence;
    return false;
  }
  if (memory_->staged()) {
    const Fence last = device_->timeline().last();
    if (background || device_->timeline().passed(last)) return true;
    blocked_on_ = last;
    return false;
  }
  return job.kind == Job::Kind::kStore || slots_ready(job.count);
}

// Of the slots that a load may have, enough for it are out of the device's sight, or none is in it.
bool ManagerImpl::slots_ready(std::uint32_t wanted) {
  if (!memory_->any_busy()) return true;
  std::uint32_t ready = 0, busy = 0;
  for (std::uint32_t i = 1; i < pool_->slot_count(); ++i) {
    const BlockPool::SlotState state = pool_->state(SlotId{i});
    bool idle = state == BlockPool::SlotState::kFree;
    if (state == BlockPool::SlotState::kBound) {
      const Block& block = pool_->block(pool_->owner(SlotId{i}));
      idle = block.candidate && block.refs == 0 && block.frame != FrameId::kNone;
    }
    if (!idle) continue;
    const Fence* until = memory_->busy_until(SlotId{i});
    if (until == nullptr) {
      if (++ready == wanted) return true;
    } else if (busy++ == 0 || until->value < blocked_on_.value) {
      blocked_on_ = *until;
    }
  }
  return busy == 0;
}

SlotId ManagerImpl::take_free_idle_slot() {
  for (std::uint32_t left = pool_->free_slots(); left != 0; --left) {
    const SlotId slot = pool_->take_free_slot();
    if (!memory_->busy(slot)) return slot;
    pool_->put_free_slot(slot, /*at_head=*/false);
  }
  return SlotId::kNone;
}

// Decoding a frame into a fresh slot for copy-on-write would wait for the device.
bool ManagerImpl::copy_must_wait(const Sequence& seq) const {
  const std::uint32_t tail = seq.committed_blocks();
  if (!bytes_ || tail >= seq.block_count() || device_->timeline().passed(device_->timeline().last())) return false;
  for (const Table& table : seq.tables)
    if (table.blocks[tail] != BlockId::kNone && pool_->block(table.blocks[tail]).slot == SlotId::kNone) return true;
  return false;
}

}  // namespace firn
