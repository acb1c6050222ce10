// device_loss.cpp: going on after the device was lost: another device takes its place, empty. Blocks with a frame in
// the host tier are what they were, only cold; blocks without one are gone, and every sequence that held one is told so
// as after a frame that did not decode.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/manager_impl.h"

namespace firn {

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
  constexpr std::string_view kUnchanged = "replace_device: nothing has changed, and it may be tried again";
  Result<OwnedRegion> workspace = OwnedRegion::allocate(next_device.memory(), RegionUse::kWorkspace, workspace_->bytes);
  FIRN_TRY(workspace.status().with_context(kUnchanged));
  Result<OwnedRegion> staging = OwnedRegion::allocate(next_device.memory(), RegionUse::kStaging, staging_.bytes());
  FIRN_TRY(staging.status().with_context(kUnchanged));
  Result<SlotMemory::Replacement> slots = memory_->prepare(next_device, /*with_transfer=*/host_ != nullptr);
  FIRN_TRY(slots.status().with_context(kUnchanged));

  for (Deferred& deferred : std::exchange(deferred_, {})) {
    release_blocks(deferred.tables, deferred.hot_first, deferred.exact, deferred.forget);
    small_sequences_ -= deferred.small ? 1 : 0;
  }
  workspace_ = std::move(workspace).value();
  staging_.move_to(std::move(staging).value());
  memory_->move_to(next_device, std::move(slots).value());
  lost_handles_.push_back(device_->timeline().last().handle);
  lost_devices_.push_back(std::exchange(own_device_, std::move(own)));  // the engine may have regions there still
  device_ = &next_device;
  if (host_) memory_->import_arenas(host_->arenas(), *codec_);
  blocked_on_ = attended_ = {};

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
