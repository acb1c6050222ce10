// device_loss.cpp: going on after the device was lost: another device takes its place, empty. Blocks with a frame in
// the host tier are what they were, only cold; blocks without one are gone, and every sequence that held one is told so
// as after a frame that did not decode.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/manager_impl.h"

namespace firn {

// Memory on the device to come, all of it or none.
struct ManagerImpl::Replacement {
  Memory& memory;
  std::vector<Region> chunks;
  Region workspace, staging, transfer;
  Ledger::Charge transfer_charge;
  bool kept = false;

  explicit Replacement(Memory& on) : memory(on) {}
  ~Replacement() {
    if (kept) return;
    for (const Region& region : chunks)
      if (region.bytes != 0) memory.free(region);
    for (const Region& region : {workspace, staging, transfer})
      if (region.bytes != 0) memory.free(region);
  }
  Status take(RegionUse use, std::uint64_t bytes, Region& out) {
    if (bytes == 0) return {};
    FIRN_ASSIGN(out, memory.allocate(use, bytes));
    return {};
  }
};

Status ManagerImpl::take_replacement(Replacement& next) {
  FIRN_TRY(next.take(RegionUse::kWorkspace, workspace_.bytes, next.workspace));
  FIRN_TRY(next.take(RegionUse::kStaging, staging_.bytes, next.staging));
  if (host_ && !next.memory.info().host_visible) {
    const std::uint64_t bytes = kMaxExtentBlocks * layout_.page_bytes;
    if (transfer_.bytes == 0) {
      FIRN_ASSIGN(next.transfer_charge, ledger_->charge(Account::kStaging, bytes));
    }
    FIRN_TRY(next.take(RegionUse::kStaging, bytes, next.transfer));
  }
  next.chunks.resize(chunks_.size());
  for (std::size_t i = 0; i < chunks_.size(); ++i)
    FIRN_TRY(next.take(RegionUse::kPool, chunks_[i].region.bytes, next.chunks[i]));
  return {};
}

void ManagerImpl::give_back_device() {
  Memory& memory = device_->memory();
  give_back_arenas();
  for (const Retired& retired : retired_) memory.free(retired.region);
  retired_.clear();
  for (const Chunk& chunk : chunks_)
    if (chunk.region.bytes != 0) memory.free(chunk.region);
  for (const Region& region : {workspace_, staging_, transfer_})
    if (region.bytes != 0) memory.free(region);
}

void ManagerImpl::drop_queued() {
  const auto still = [&](const BlockRef& ref) -> Block* { return same_life(ref) ? &pool_->block(ref.id) : nullptr; };
  for (const Job& job : std::exchange(stores_, {})) {
    ++counters_.frames_failed;
    lossy_pending_ -= job.lossy ? 1 : 0;
    for (std::uint8_t i = 0; i < job.count; ++i)
      if (Block* block = still(job.blocks[i])) block->store_queued = false;
  }
  for (const Job& job : std::exchange(loads_, {})) {
    for (std::uint8_t i = 0; i < job.count; ++i)
      if (Block* block = still(job.blocks[i])) block->load_queued = false;
    finish(job.ticket);
  }
  moved_.notify_all();
}

// The block's bytes in its slot are gone. False: that was all there was of it.
bool ManagerImpl::lose_slot(BlockId id) {
  Block& block = pool_->block(id);
  drop_candidate(id);
  pool_->put_free_slot(pool_->unbind(id), /*at_head=*/false);
  if (block.frame != FrameId::kNone) {
    if (is_lossy(frames_->frame(block.frame))) {
      block.coded = true;
      block.fidelity = std::max(block.fidelity, Fidelity::kLossy);
    }
    note_tiers(id);
    return true;
  }
  if (block.refs == 0) {
    forget_key(id, MissReason::kDeviceLost);
    pool_->drop_record(id);
  } else {
    forget_key(id, MissReason::kDeviceLost);
    lose_block(id, true);
  }
  return false;
}

Result<DeviceLoss> ManagerImpl::replace_device(Device* device) {
  Lock lock(mutex_);
  if (!bytes_) return Status(Code::kInvalidArgument, "replace_device: a device without bytes cannot be lost");
  if (device_->timeline().wait(device_->timeline().last(), 0).code() != Code::kIo)
    return Status(Code::kInvalidArgument, "replace_device: the device is not lost, and its pool is not given up");
  drop_queued();
  // Whatever is in the middle of something fails soon: a lost device keeps nobody waiting.
  moved_.wait(lock, [&] { return running_ == 0 && running_steps_ == 0; });
  drop_queued();

  std::unique_ptr<Device> own = device ? nullptr : make_cpu_device(*threads_);
  Device& next_device = device ? *device : *own;
  Replacement next(next_device.memory());
  FIRN_TRY(take_replacement(next).with_context("replace_device: nothing has changed, and it may be tried again"));

  for (Deferred& deferred : std::exchange(deferred_, {})) {
    release_blocks(deferred.tables, deferred.hot_first, deferred.exact, deferred.forget);
    small_sequences_ -= deferred.small ? 1 : 0;
  }
  give_back_device();
  next.kept = true;
  for (std::size_t i = 0; i < chunks_.size(); ++i) chunks_[i].region = next.chunks[i];
  workspace_ = next.workspace;
  staging_ = next.staging;
  transfer_ = next.transfer;
  if (next.transfer_charge.bytes() != 0 || transfer_.bytes == 0) transfer_charge_ = std::move(next.transfer_charge);
  lost_handles_.push_back(device_->timeline().last().handle);
  lost_devices_.push_back(std::exchange(own_device_, std::move(own)));  // the engine may have regions there still
  device_ = &next_device;
  import_arenas();
  last_write_ = staging_read_ = blocked_on_ = attended_ = {};
  busy_slots_.clear();

  DeviceLoss loss;
  for (std::uint32_t i = 1; i < pool_->slot_count(); ++i)
    if (pool_->state(SlotId{i}) == BlockPool::SlotState::kBound)
      ++(lose_slot(pool_->owner(SlotId{i})) ? loss.blocks_kept : loss.blocks_lost);
  drop_kin();
  for (const auto& [number, seq] : sequences_) renew_reservation(*seq);
  for (const auto& [number, seq] : sequences_) loss.sequences_cut += seq->lost_from != ~0u;
  moved_.notify_all();
  return loss;
}

// Fences of a device that is gone have passed.
bool ManagerImpl::of_lost_device(const Fence& fence) const {
  return fence.kind == Fence::Kind::kTimeline && fence.handle != device_->timeline().last().handle &&
         std::find(lost_handles_.begin(), lost_handles_.end(), fence.handle) != lost_handles_.end();
}

Result<bool> ManagerImpl::ask_fence(const Fence& fence) const {
  if (fence.kind == Fence::Kind::kNone || of_lost_device(fence)) return true;
  const Status status = device_->timeline().wait(fence, 0);
  if (status.ok() || status.code() == Code::kIo) return true;  // a device that is lost reads nothing any more
  if (status.code() == Code::kUnavailable) return false;
  return status;
}

Result<bool> ManagerImpl::fence_passed(const Fence& fence) const {
  Lock lock(mutex_);
  Result<bool> passed = ask_fence(fence);
  if (!passed.ok()) return passed.status().with_context("fence_passed");
  return passed;
}

Status ManagerImpl::wait_fence(const Fence& fence, std::int64_t timeout_ns) {
  Device* asked = nullptr;
  {
    Lock lock(mutex_);
    if (of_lost_device(fence)) return {};
    asked = device_;
  }
  return asked->timeline().wait(fence, timeout_ns).with_context("wait_fence");
}

}  // namespace firn
