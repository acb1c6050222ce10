// transfer.cpp: between slots and codecs. Where the host reaches the pool, codecs work on the slots themselves. Where
// it does not, one extent at a time passes through the transfer region: gathered by the device and encoded from there,
// or decoded into it and scattered. One extent is the bound: the region is charged to the pool's budget.
#include <algorithm>

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

void ManagerImpl::encode_slots(const Codec& codec, EncodeJob& job, const PageSet& set, std::span<const SlotId> slots,
                               ThreadPool* threads) {
  if (!bytes_) {  // as large as it would be
    constexpr std::size_t kLeast = 64;
    const auto bytes = static_cast<std::size_t>(static_cast<double>(codec.bound(job.shape)) / assumed_ratio_);
    job.bytes = std::clamp(bytes, kLeast, job.out.size());
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
  codec.encode({&job, 1}, threads);
  job.views = {};
}

void ManagerImpl::decode_slots(const Codec& codec, DecodeJob& job, const PageSet& set, std::span<const SlotId> slots,
                               ThreadPool* threads) {
  if (!bytes_) return;
  std::unique_lock transfer(transfer_mutex_, std::defer_lock);
  if (transfer_.host) transfer.lock();  // else the host writes past the device's queue: slot_fences.cpp
  const std::vector<BlockView> views = host_views(set, slots);
  job.views = views;
  codec.decode({&job, 1}, threads);
  job.views = {};
  if (transfer_.host && job.status.ok()) job.status = move_transfer(set, slots, /*gather=*/false);
}

}  // namespace firn
