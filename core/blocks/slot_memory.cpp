#include "core/blocks/slot_memory.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "core/base/no_throw.h"

namespace firn {
namespace {

// [head][token][element] as it is stored, [token][head][element] as it was appended.
void copy_rows(const std::byte* from, std::uint32_t token_stride, std::uint32_t head_stride, std::uint32_t heads,
               std::size_t row_bytes, std::uint32_t first, std::uint32_t count, std::byte* to) {
  for (std::uint32_t token = first; token < first + count; ++token)
    for (std::uint32_t head = 0; head < heads; ++head, to += row_bytes)
      std::memcpy(to, from + std::size_t{token} * token_stride + std::size_t{head} * head_stride, row_bytes);
}

// Memory that runs out within a codec is a status like any other, and says nothing of the frame.
void run_encode(const Codec& codec, EncodeJob& job, ThreadPool* threads) {
  const Status status = no_throw([&] {
    codec.encode({&job, 1}, threads);
    return Status();
  });
  if (!status.ok()) job.status = status;
}

void run_decode(const Codec& codec, DecodeJob& job, ThreadPool* threads) {
  const Status status = no_throw([&] {
    codec.decode({&job, 1}, threads);
    return Status();
  });
  if (!status.ok()) job.status = status;
}

// The frame is good; that the device did not take it, for whatever reason, says nothing of the frame.
Status of_device(const Status& status) { return status.ok() ? status : Status(Code::kIo, status.message()); }

}  // namespace

ExtentShape extent_shape(const PageSet& set, std::uint32_t blocks) {
  return {.kv = set.kv, .layer_count = set.layer_count, .block_count = blocks};
}

BlockView block_view(const PageSet& set, DeviceAddress base, std::uint32_t layer) {
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

void copy_block_rows(const KvShape& kv, const BlockView& view, std::uint32_t first, std::uint32_t count, std::byte* k,
                     std::byte* v) {
  copy_rows(reinterpret_cast<const std::byte*>(view.k), view.token_stride, view.head_stride, kv.kv_heads,
            kv.key_bytes() / kv.kv_heads, first, count, k);
  copy_rows(reinterpret_cast<const std::byte*>(view.v), view.v_token_stride, view.v_head_stride, kv.kv_heads,
            kv.value_bytes() / kv.kv_heads, first, count, v);
}

// --- chunks ---

Status SlotMemory::take(std::uint32_t slots) {
  if (!bytes_) return {};
  const std::uint64_t block_bytes = layout_.page_bytes;
  Memory& memory = device_->memory();
  slots_per_chunk_ =
      static_cast<std::uint32_t>(std::min<std::uint64_t>(slots, memory.info().max_region_bytes / block_bytes));
  if (slots_per_chunk_ == 0)
    return Status(Code::kInvalidArgument,
                  fmt::format("a block of {} bytes is larger than the device's largest allocation", block_bytes));
  FIRN_ASSIGN(charge_, ledger_.charge(Account::kPool, slots * block_bytes));
  constexpr std::uint64_t kLeastChunkBytes = 16u << 20;
  for (;;) {
    Status status;
    for (std::uint32_t done = 0; status.ok() && done < slots; done += slots_per_chunk_) {
      const std::uint32_t count = std::min(slots_per_chunk_, slots - done);
      Result<OwnedRegion> region = OwnedRegion::allocate(memory, RegionUse::kPool, count * block_bytes);
      status = region.status();
      if (status.ok()) chunks_.push_back({.region = std::move(region).value(), .slots = count, .charge = {}});
    }
    if (status.code() != Code::kNoSpace || slots_per_chunk_ * block_bytes < 2 * kLeastChunkBytes) return status;
    chunks_.clear();
    slots_per_chunk_ = (slots_per_chunk_ + 1) / 2;
  }
}

void SlotMemory::plan_chunks(std::uint32_t slots_per_chunk, std::uint32_t chunks) {
  slots_per_chunk_ = slots_per_chunk;
  chunks_.resize(chunks);
}

Status SlotMemory::take_chunk(std::uint32_t at) {
  Chunk chunk{.region = {}, .slots = slots_per_chunk_, .charge = {}};
  if (bytes_) {
    const std::uint64_t bytes = slots_per_chunk_ * layout_.page_bytes;
    FIRN_ASSIGN(chunk.charge, ledger_.charge(Account::kPool, bytes));
    FIRN_ASSIGN(chunk.region, OwnedRegion::allocate(device_->memory(), RegionUse::kPool, bytes));
  }
  chunks_[at] = std::move(chunk);
  return {};
}

void SlotMemory::retire_chunk(std::uint32_t at) {
  if (bytes_)
    retired_.push_back({std::move(chunks_[at].region), device_->timeline().last(), std::move(chunks_[at].charge)});
  chunks_[at] = {};
}

bool SlotMemory::free_retired() {
  while (!retired_.empty() && device_->timeline().passed(retired_.front().fence)) retired_.pop_front();
  return retired_.empty();
}

std::uint32_t SlotMemory::chunks_present() const {
  return static_cast<std::uint32_t>(
      std::count_if(chunks_.begin(), chunks_.end(), [](const Chunk& chunk) { return chunk.slots != 0; }));
}

// --- ways in and out ---

Status SlotMemory::take_transfer() {
  const std::uint64_t bytes = kMaxExtentBlocks * layout_.page_bytes;
  FIRN_ASSIGN(transfer_charge_, ledger_.charge(Account::kStaging, bytes));
  FIRN_ASSIGN(transfer_, OwnedRegion::allocate(device_->memory(), RegionUse::kStaging, bytes));
  return {};
}

void SlotMemory::import_arenas(std::span<const std::span<std::byte>> arenas, const Codec& codec) {
  if (!staged() || codec.stored_views(extent_shape(layout_.sets[0], 1), 0).empty()) return;
  // Whole huge pages, so that any driver's alignment is met. A frame that lies across two pieces is staged.
  constexpr std::uint64_t kPiece = 2u << 20;
  Memory& memory = device_->memory();
  const std::uint64_t most = memory.info().max_region_bytes / kPiece * kPiece;
  for (const std::span<std::byte> arena : arenas)
    for (std::uint64_t done = 0; done < arena.size() && most != 0; done += most) {
      const auto region = memory.import_host(arena.data() + done, std::min(most, arena.size() - done));
      if (!region.ok()) break;  // the rest is staged, which is always right
      arenas_.emplace_back(memory, *region);
    }
}

Result<SlotMemory::Replacement> SlotMemory::prepare(Device& next, bool with_transfer) {
  Replacement taken;
  if (with_transfer && !next.memory().info().host_visible) {
    const std::uint64_t bytes = kMaxExtentBlocks * layout_.page_bytes;
    if (transfer_->bytes == 0) {
      FIRN_ASSIGN(taken.transfer_charge, ledger_.charge(Account::kStaging, bytes));
    }
    FIRN_ASSIGN(taken.transfer, OwnedRegion::allocate(next.memory(), RegionUse::kStaging, bytes));
  }
  taken.chunks.resize(chunks_.size());
  for (std::size_t i = 0; i < chunks_.size(); ++i) {
    FIRN_ASSIGN(taken.chunks[i], OwnedRegion::allocate(next.memory(), RegionUse::kPool, chunks_[i].region->bytes));
  }
  return taken;
}

void SlotMemory::move_to(Device& next, Replacement replacement) {
  arenas_.clear();
  retired_.clear();
  for (std::size_t i = 0; i < chunks_.size(); ++i) chunks_[i].region = std::move(replacement.chunks[i]);
  transfer_ = std::move(replacement.transfer);
  if (replacement.transfer_charge.bytes() != 0 || transfer_->bytes == 0)
    transfer_charge_ = std::move(replacement.transfer_charge);
  device_ = &next;
  host_visible_ = next.memory().info().host_visible;
  last_write_ = {};
  busy_.clear();
}

DeviceAddress SlotMemory::address(SlotId slot) const {
  const std::uint32_t at = index(slot) - 1;
  return chunks_[at / slots_per_chunk_].region->address + std::uint64_t{at % slots_per_chunk_} * layout_.page_bytes;
}

std::byte* SlotMemory::host(SlotId slot) const {
  const std::uint32_t at = index(slot) - 1;
  return chunks_[at / slots_per_chunk_].region->host + std::uint64_t{at % slots_per_chunk_} * layout_.page_bytes;
}

// Views [layer][slot]; of no slot, none.
std::vector<BlockView> SlotMemory::host_views(const PageSet& set, std::span<const SlotId> slots) const {
  std::vector<BlockView> views(set.layer_count * slots.size());
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i] == SlotId::kNone) continue;
    const std::byte* base = staged() ? transfer_->host + i * layout_.page_bytes : host(slots[i]);
    for (std::uint32_t layer = 0; layer < set.layer_count; ++layer)
      views[layer * slots.size() + i] = block_view(set, reinterpret_cast<DeviceAddress>(base), layer);
  }
  return views;
}

// Copies slots into the transfer region or back, and waits.
Status SlotMemory::move_transfer(const PageSet& set, std::span<const SlotId> slots, bool gather) const {
  std::vector<CopyItem> items;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i] == SlotId::kNone) continue;
    for (std::uint32_t layer = 0; layer < set.layer_count; ++layer) {
      const BlockView slot = view(set, slots[i], layer);
      const BlockView passing = block_view(set, transfer_->address + i * layout_.page_bytes, layer);
      items.push_back(gather ? CopyItem{slot, passing} : CopyItem{passing, slot});
    }
  }
  FIRN_ASSIGN(const Fence fence, device_->kernels().copy({set.kv, items}));
  return device_->timeline().wait(fence);
}

// Copies slots into the views of a frame, [layer][slot], or back, and waits.
Status SlotMemory::move_direct(const PageSet& set, std::span<const SlotId> slots, std::span<const BlockView> frame,
                               bool gather) {
  std::vector<CopyItem> items;
  for (std::uint32_t layer = 0; layer < set.layer_count; ++layer)
    for (std::size_t i = 0; i < slots.size(); ++i) {
      if (slots[i] == SlotId::kNone) continue;
      const BlockView slot = view(set, slots[i], layer), stored = frame[layer * slots.size() + i];
      items.push_back(gather ? CopyItem{slot, stored} : CopyItem{stored, slot});
    }
  FIRN_ASSIGN(const Fence fence, device_->kernels().copy({set.kv, items}));
  FIRN_TRY(device_->timeline().wait(fence));
  blocks_direct_ += items.size() / set.layer_count;
  return {};
}

DeviceAddress SlotMemory::imported(std::span<const std::byte> bytes) const {
  for (const OwnedRegion& region : arenas_)
    if (bytes.data() >= region->host && bytes.data() + bytes.size() <= region->host + region->bytes)
      return region->address + static_cast<std::uint64_t>(bytes.data() - region->host);
  return 0;
}

void SlotMemory::encode(const Codec& codec, EncodeJob& job, const PageSet& set, std::span<const SlotId> slots,
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
    run_encode(codec, job, threads);
    job.views = {};
    return;
  }
  std::unique_lock transfer(transfer_mutex_, std::defer_lock);
  if (staged()) {
    transfer.lock();
    job.status = move_transfer(set, slots, /*gather=*/true);
    if (!job.status.ok()) return;
  }
  const std::vector<BlockView> views = host_views(set, slots);
  job.views = views;
  run_encode(codec, job, threads);
  job.views = {};
}

void SlotMemory::decode(const Codec& codec, DecodeJob& job, const PageSet& set, std::span<const SlotId> slots,
                        ThreadPool* threads) {
  if (!bytes_) return;
  std::vector<BlockView> stored;
  const DeviceAddress frame = imported(job.frame);
  if (frame != 0) stored = codec.stored_views(job.shape, reinterpret_cast<DeviceAddress>(job.frame.data()));
  if (!stored.empty()) {
    for (std::size_t i = 0; i < stored.size(); ++i)
      if (slots[i % slots.size()] == SlotId::kNone) stored[i] = {};
    job.views = stored;
    run_decode(codec, job, threads);  // compares checksums, and moves nothing
    job.views = {};
    if (job.status.ok())
      job.status = of_device(move_direct(set, slots, codec.stored_views(job.shape, frame), /*gather=*/false));
    return;
  }
  std::unique_lock transfer(transfer_mutex_, std::defer_lock);
  if (staged()) transfer.lock();  // else the host writes past the device's queue: note_left()
  const std::vector<BlockView> views = host_views(set, slots);
  job.views = views;
  run_decode(codec, job, threads);
  job.views = {};
  if (staged() && job.status.ok()) job.status = of_device(move_transfer(set, slots, /*gather=*/false));
}

Status SlotMemory::read_rows(const PageSet& set, SlotId slot, std::uint32_t layer, std::uint32_t first,
                             std::uint32_t count, std::byte* k, std::byte* v) const {
  std::unique_lock transfer(transfer_mutex_, std::defer_lock);
  const std::byte* base = nullptr;
  if (staged()) {
    transfer.lock();
    FIRN_TRY(move_transfer(set, {&slot, 1}, /*gather=*/true));
    base = transfer_->host;
  } else {
    base = host(slot);
  }
  copy_block_rows(set.kv, block_view(set, reinterpret_cast<DeviceAddress>(base), layer), first, count, k, v);
  return {};
}

Result<std::uint64_t> SlotMemory::hash(const PageSet& set, SlotId slot) const {
  if (!staged()) {
    FIRN_TRY(device_->timeline().wait(device_->timeline().last()));
    return XXH3_64bits(host(slot), set.block_bytes());
  }
  std::lock_guard transfer(transfer_mutex_);
  FIRN_TRY(move_transfer(set, {&slot, 1}, /*gather=*/true));
  return XXH3_64bits(transfer_->host, set.block_bytes());
}

// --- work for the device ---

Status SlotMemory::copy(const KvShape& kv, std::span<const CopyItem> items) {
  FIRN_ASSIGN(last_write_, device_->kernels().copy({kv, items}));
  return {};
}

Status SlotMemory::fill(SlotId slot, std::uint8_t value) {
  const Region& region = *chunks_[chunk_of(slot)].region;
  FIRN_ASSIGN(last_write_, device_->kernels().fill(region, address(slot) - region.address, layout_.page_bytes, value));
  return {};
}

// --- what the device may still read ---

void SlotMemory::note_left(SlotId slot) {
  if (!bytes_ || staged() || slot == SlotId::kNone) return;  // nobody but the device writes slots
  const Fence fence = device_->timeline().last();
  if (device_->timeline().passed(fence)) return;
  try {
    busy_.insert_or_assign(index(slot), fence);
  } catch (const std::bad_alloc&) {  // it cannot be remembered, so it is waited for here
    device_->timeline().wait(fence).ok();
  }
}

bool SlotMemory::busy(SlotId slot) {
  const auto found = busy_.find(index(slot));
  if (found == busy_.end()) return false;
  if (!device_->timeline().passed(found->second)) return true;
  busy_.erase(found);
  return false;
}

bool SlotMemory::any_busy() {
  std::erase_if(busy_, [&](const auto& one) { return device_->timeline().passed(one.second); });
  return !busy_.empty();
}

const Fence* SlotMemory::busy_until(SlotId slot) const {
  const auto found = busy_.find(index(slot));
  return found == busy_.end() ? nullptr : &found->second;
}

std::uint64_t SlotMemory::imported_bytes() const {
  std::uint64_t bytes = 0;
  for (const OwnedRegion& region : arenas_) bytes += region->bytes;
  return bytes;
}

std::vector<std::string> SlotMemory::check() const {
  std::vector<std::string> broken;
  std::uint64_t bytes = 0;
  for (std::size_t at = 0; at < chunks_.size(); ++at) {
    bytes += chunks_[at].region->bytes;
    if (bytes_ && chunks_[at].region->bytes != chunks_[at].slots * layout_.page_bytes)
      broken.push_back(fmt::format("slot memory: chunk {} has {} bytes for {} slots of {}", at,
                                   chunks_[at].region->bytes, chunks_[at].slots, layout_.page_bytes));
  }
  for (const Retired& retired : retired_) bytes += retired.region->bytes;
  if (ledger_.spent(Account::kPool) != bytes)
    broken.push_back(fmt::format("ledger: {} bytes spent on {}, its parts have {}", ledger_.spent(Account::kPool),
                                 to_string(Account::kPool), bytes));
  return broken;
}

}  // namespace firn
