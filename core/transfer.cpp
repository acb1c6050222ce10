// transfer.cpp: between slots and codecs. Where the host reaches the pool, codecs work on the slots themselves. Where
// it does not, one extent at a time passes through the transfer region: gathered by the device and encoded from there,
// or decoded into it and scattered. One extent is the bound: the region is charged to the pool's budget. A codec that
// stores elements as they are (raw) can do without: where the host tier's arenas are imported, the device gathers slots
// straight into the frame that is being written, or scatters them from there, and the host only sums up and compares.
#include <algorithm>

#include "core/base/no_throw.h"
#include "core/manager_impl.h"

namespace firn {

// One layer of a block whose bytes begin at base: [layer][K, then V][head][token][element].
BlockView ManagerImpl::block_view(const PageSet& set, DeviceAddress base, std::uint32_t layer) {
  const KvShape& kv = set.kv;
  base += std::uint64_t{layer} * kBlockTokens * kv.token_bytes();
  const std::uint32_t k_row = kv.head_dim * bytes_of(kv.dtype), v_row = kv.value_dim * bytes_of(kv.dtype);
  return {.k = base,
          .v = base + kBlockTokens * kv.key_bytes(),
          .token_stride = k_row,
          .head_stride = kBlockTokens * k_row,
          .v_token_stride = v_row,
          .v_head_stride = kBlockTokens * v_row};
}

std::byte* ManagerImpl::slot_host(SlotId slot) const {
  const std::uint32_t at = index(slot) - 1;
  return chunks_[at / slots_per_chunk_].region.host + std::uint64_t{at % slots_per_chunk_} * layout_.page_bytes;
}

// Views [layer][slot]; of no slot, none.
std::vector<BlockView> ManagerImpl::host_views(const PageSet& set, std::span<const SlotId> slots) const {
  std::vector<BlockView> views(set.layer_count * slots.size());
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i] == SlotId::kNone) continue;
    const std::byte* base = transfer_.host ? transfer_.host + i * layout_.page_bytes : slot_host(slots[i]);
    for (std::uint32_t layer = 0; layer < set.layer_count; ++layer)
      views[layer * slots.size() + i] = block_view(set, reinterpret_cast<DeviceAddress>(base), layer);
  }
  return views;
}

// Copies slots into the transfer region or back, and waits.
Status ManagerImpl::move_transfer(const PageSet& set, std::span<const SlotId> slots, bool gather) const {
  std::vector<CopyItem> items;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i] == SlotId::kNone) continue;
    for (std::uint32_t layer = 0; layer < set.layer_count; ++layer) {
      const BlockView slot = slot_view(set, slots[i], layer);
      const BlockView staged = block_view(set, transfer_.address + i * layout_.page_bytes, layer);
      items.push_back(gather ? CopyItem{slot, staged} : CopyItem{staged, slot});
    }
  }
  FIRN_ASSIGN(const Fence fence, device_->kernels().copy({set.kv, items}));
  return device_->timeline().wait(fence);
}

// Only where it saves a copy: a pool that the host does not reach, and frames that hold elements as they are. A driver
// pins what it imports, so memory that no kernel would ever touch is left alone.
void ManagerImpl::import_arenas() {
  if (!host_ || !transfer_.host || codec_->stored_views(extent_shape(layout_.sets[0], 1), 0).empty()) return;
  // Whole huge pages, so that any driver's alignment is met. A frame that lies across two pieces is staged.
  constexpr std::uint64_t kPiece = 2u << 20;
  const std::uint64_t most = device_->memory().info().max_region_bytes / kPiece * kPiece;
  for (const std::span<std::byte> arena : host_->arenas())
    for (std::uint64_t done = 0; done < arena.size() && most != 0; done += most) {
      const auto region = device_->memory().import_host(arena.data() + done, std::min(most, arena.size() - done));
      if (!region.ok()) break;  // the rest is staged, which is always right
      arenas_.push_back(*region);
    }
}

void ManagerImpl::give_back_arenas() {
  for (const Region& region : std::exchange(arenas_, {})) device_->memory().free(region);
}

DeviceAddress ManagerImpl::imported(std::span<const std::byte> bytes) const {
  for (const Region& region : arenas_)
    if (bytes.data() >= region.host && bytes.data() + bytes.size() <= region.host + region.bytes)
      return region.address + static_cast<std::uint64_t>(bytes.data() - region.host);
  return 0;
}

// Copies slots into the views of a frame, [layer][slot], or back, and waits.
Status ManagerImpl::move_direct(const PageSet& set, std::span<const SlotId> slots, std::span<const BlockView> frame,
                                bool gather) {
  std::vector<CopyItem> items;
  for (std::uint32_t layer = 0; layer < set.layer_count; ++layer)
    for (std::size_t i = 0; i < slots.size(); ++i) {
      if (slots[i] == SlotId::kNone) continue;
      const BlockView slot = slot_view(set, slots[i], layer), stored = frame[layer * slots.size() + i];
      items.push_back(gather ? CopyItem{slot, stored} : CopyItem{stored, slot});
    }
  FIRN_ASSIGN(const Fence fence, device_->kernels().copy({set.kv, items}));
  FIRN_TRY(device_->timeline().wait(fence));
  blocks_direct_ += items.size() / set.layer_count;
  return {};
}

// Memory that runs out within a codec is a status like any other, and says nothing of the frame.
static void encode_job(const Codec& codec, EncodeJob& job, ThreadPool* threads) {
  const Status status = no_throw([&] {
    codec.encode({&job, 1}, threads);
    return Status();
  });
  if (!status.ok()) job.status = status;
}

static void decode_job(const Codec& codec, DecodeJob& job, ThreadPool* threads) {
  const Status status = no_throw([&] {
    codec.decode({&job, 1}, threads);
    return Status();
  });
  if (!status.ok()) job.status = status;
}

void ManagerImpl::encode_slots(const Codec& codec, EncodeJob& job, const PageSet& set, std::span<const SlotId> slots,
                               ThreadPool* threads) {
  if (!bytes_) {  // as large as it would be
    constexpr std::size_t kLeast = 64;
    const auto bytes = static_cast<std::size_t>(static_cast<double>(codec.bound(job.shape)) / assumed_ratio_);
    job.bytes = std::clamp(bytes, kLeast, job.out.size());
    return;
  }
  std::vector<BlockView> stored;
  if (const DeviceAddress frame = imported(job.out); frame != 0) stored = codec.stored_views(job.shape, frame);
  if (!stored.empty()) {
    job.status = move_direct(set, slots, stored, /*gather=*/true);
    if (!job.status.ok()) return;
    stored = codec.stored_views(job.shape, reinterpret_cast<DeviceAddress>(job.out.data()));
    job.views = stored;
    encode_job(codec, job, threads);
    job.views = {};
    return;
  }
  std::unique_lock transfer(transfer_mutex_, std::defer_lock);
  if (transfer_.host) {
    transfer.lock();
    job.status = move_transfer(set, slots, /*gather=*/true);
    if (!job.status.ok()) return;
  }
  const std::vector<BlockView> views = host_views(set, slots);
  job.views = views;
  encode_job(codec, job, threads);
  job.views = {};
}

// The frame is good; that the device did not take it, for whatever reason, says nothing of the frame.
static Status of_device(const Status& status) { return status.ok() ? status : Status(Code::kIo, status.message()); }

void ManagerImpl::decode_slots(const Codec& codec, DecodeJob& job, const PageSet& set, std::span<const SlotId> slots,
                               ThreadPool* threads) {
  if (!bytes_) return;
  std::vector<BlockView> stored;
  const DeviceAddress frame = imported(job.frame);
  if (frame != 0) stored = codec.stored_views(job.shape, reinterpret_cast<DeviceAddress>(job.frame.data()));
  if (!stored.empty()) {
    for (std::size_t i = 0; i < stored.size(); ++i)
      if (slots[i % slots.size()] == SlotId::kNone) stored[i] = {};
    job.views = stored;
    decode_job(codec, job, threads);  // compares checksums, and moves nothing
    job.views = {};
    if (job.status.ok())
      job.status = of_device(move_direct(set, slots, codec.stored_views(job.shape, frame), /*gather=*/false));
    return;
  }
  std::unique_lock transfer(transfer_mutex_, std::defer_lock);
  if (transfer_.host) transfer.lock();  // else the host writes past the device's queue: slot_fences.cpp
  const std::vector<BlockView> views = host_views(set, slots);
  job.views = views;
  decode_job(codec, job, threads);
  job.views = {};
  if (transfer_.host && job.status.ok()) job.status = of_device(move_transfer(set, slots, /*gather=*/false));
}

}  // namespace firn
