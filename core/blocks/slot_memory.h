// slot_memory.h: where the bytes of slots are, and how they get in and out. Owns the pool's memory on its device (in
// chunks, which come and go in a pool that grows), the transfer region, the host tier's arenas as the device reaches
// them, and what the device may still be reading in slots that nobody holds any more. Knows slots by number: whose they
// are is BlockPool's.
//
// Where the host reaches the pool, codecs work on the slots themselves. Where it does not, one extent at a time passes
// through the transfer region: gathered by the device and encoded from there, or decoded into it and scattered. One
// extent is the bound: the region is charged to the pool's budget. A codec that stores elements as they are (raw) can
// do without: where arenas are imported, the device gathers slots straight into the frame that is being written, or
// scatters them from there, and the host only sums up and compares.
//
// The device works in the order in which it was asked: what it writes into a slot for its next owner comes behind the
// attention that still reads the last one. Only the host can overtake it, where it reaches the pool and decodes frames
// straight into slots. So a slot that loses its block, or whose block loses its last reader, remembers the fence after
// everything that was submitted until then.
//
// Threads: the manager's lock, but for encode() and decode(), which run without it on slots that nobody else touches.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/base/owned_region.h"
#include "firn/codec.h"
#include "firn/device.h"
#include "firn/ledger.h"
#include "firn/model.h"

namespace firn {

ExtentShape extent_shape(const PageSet& set, std::uint32_t blocks);
// One layer (within its page set) of a block whose bytes begin at base: [layer][K, then V][head][token][element].
BlockView block_view(const PageSet& set, DeviceAddress base, std::uint32_t layer);
// Rows [first, first + count) of one block, from where the host reaches it: [token][head][element], as they were
// appended.
void copy_block_rows(const KvShape& kv, const BlockView& view, std::uint32_t first, std::uint32_t count, std::byte* k,
                     std::byte* v);

class SlotMemory {
 public:
  // bytes: false: slots are only counted, and a frame is assumed to be smaller than its blocks by assumed_ratio.
  SlotMemory(const PageLayout& layout, Ledger& ledger, Device& device, bool bytes, double assumed_ratio)
      : layout_(layout),
        ledger_(ledger),
        device_(&device),
        bytes_(bytes),
        host_visible_(device.memory().info().host_visible),
        assumed_ratio_(assumed_ratio) {}

  // --- chunks ---
  // All slots of a pool of one size, in chunks as large as the device allows; where it refuses one, all in halves:
  // memory may be in pieces.
  Status take(std::uint32_t slots);
  // Of a pool that grows: so many chunks at most, none of which is there yet.
  void plan_chunks(std::uint32_t slots_per_chunk, std::uint32_t chunks);
  Status take_chunk(std::uint32_t at);
  void drop_chunk(std::uint32_t at) { chunks_[at] = {}; }  // nobody has used it
  void retire_chunk(std::uint32_t at);                     // its memory goes when its last reader has finished
  bool free_retired();                                     // true: nothing waits any more
  std::uint32_t chunk_count() const { return static_cast<std::uint32_t>(chunks_.size()); }
  std::uint32_t chunks_present() const;
  bool has_chunk(std::uint32_t at) const { return chunks_[at].slots != 0; }
  std::uint32_t slots_per_chunk() const { return slots_per_chunk_; }
  std::uint32_t chunk_of(SlotId slot) const { return (index(slot) - 1) / slots_per_chunk_; }

  // --- ways in and out ---
  Status take_transfer();  // for a pool that the host does not reach, of which extents are to be coded
  // Only where it saves a copy: with a transfer region, and a codec that stores elements as they are. A driver pins
  // what it imports, so memory that no kernel would ever touch is left alone.
  void import_arenas(std::span<const std::span<std::byte>> arenas, const Codec& codec);
  // All of it on another device, or none. Nothing changes before move_to().
  struct Replacement {
    std::vector<OwnedRegion> chunks;
    OwnedRegion transfer;
    Ledger::Charge transfer_charge;
  };
  Result<Replacement> prepare(Device& next, bool with_transfer);
  void move_to(Device& next, Replacement replacement);

  bool staged() const { return transfer_->host != nullptr; }  // the host does not reach slots, or is not to
  bool readable() const { return bytes_ && (staged() || host_visible_); }
  DeviceAddress address(SlotId slot) const;
  std::byte* host(SlotId slot) const;  // readable() and not staged()
  BlockView view(const PageSet& set, SlotId slot, std::uint32_t layer) const {
    return block_view(set, address(slot), layer);
  }

  // The job's views are slots, one a block of the extent, kNone: left out. They set its status; that the device did not
  // take a frame is kIo and says nothing of the frame. Without the lock, or under it.
  void encode(const Codec& codec, EncodeJob& job, const PageSet& set, std::span<const SlotId> slots,
              ThreadPool* threads);
  void decode(const Codec& codec, DecodeJob& job, const PageSet& set, std::span<const SlotId> slots,
              ThreadPool* threads);
  // readable().
  Status read_rows(const PageSet& set, SlotId slot, std::uint32_t layer, std::uint32_t first, std::uint32_t count,
                   std::byte* k, std::byte* v) const;
  Result<std::uint64_t> hash(const PageSet& set, SlotId slot) const;  // xxh3 of the block's bytes

  // --- work for the device, behind what it was given before ---
  Status copy(const KvShape& kv, std::span<const CopyItem> items);
  Status fill(SlotId slot, std::uint8_t value);
  void note_write(const Fence& fence) { last_write_ = fence; }
  const Fence& last_write() const { return last_write_; }  // after the newest append, copy or fill

  // --- what the device may still read where the host is going to write ---
  void note_left(SlotId slot);  // its block leaves it, or nobody live holds that block any more
  bool busy(SlotId slot);
  bool any_busy();                             // forgets those that are not
  const Fence* busy_until(SlotId slot) const;  // null: it is not, as far as any_busy() knew

  std::uint64_t transfer_bytes() const { return transfer_->bytes; }
  std::uint64_t imported_bytes() const;
  std::uint64_t blocks_direct() const { return blocks_direct_; }  // moved without the transfer region
  // For verify(): empty if sound.
  std::vector<std::string> check() const;

 private:
  friend struct ManagerTestPeer;
  struct Chunk {
    OwnedRegion region;
    std::uint32_t slots = 0;  // 0: a pool that can grow does not have this one now
    Ledger::Charge charge;    // of a pool that can grow; else one charge is for all
  };
  struct Retired {  // memory of a chunk that something may still read
    OwnedRegion region;
    Fence fence;
    Ledger::Charge charge;
  };
  std::vector<BlockView> host_views(const PageSet& set, std::span<const SlotId> slots) const;
  Status move_transfer(const PageSet& set, std::span<const SlotId> slots, bool gather) const;
  Status move_direct(const PageSet& set, std::span<const SlotId> slots, std::span<const BlockView> frame, bool gather);
  DeviceAddress imported(std::span<const std::byte> bytes) const;  // where the device reaches them; 0: it does not

  const PageLayout& layout_;
  Ledger& ledger_;
  Device* device_;
  bool bytes_;
  bool host_visible_;  // of the device: asking it is not free
  double assumed_ratio_;
  Ledger::Charge charge_;  // of a pool of one size
  std::vector<Chunk> chunks_;
  std::uint32_t slots_per_chunk_ = 0;
  std::deque<Retired> retired_;
  Ledger::Charge transfer_charge_;
  OwnedRegion transfer_;               // of one extent
  mutable std::mutex transfer_mutex_;  // who uses it; taken under the manager's mutex or without it, never before it
  std::vector<OwnedRegion> arenas_;    // of the host tier: the device moves stored blocks itself
  std::atomic<std::uint64_t> blocks_direct_{0};
  Fence last_write_;
  std::unordered_map<std::uint32_t, Fence> busy_;  // by slot; empty while the device is not behind
};

}  // namespace firn
