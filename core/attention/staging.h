// staging.h: where cold blocks are while somebody reads them: one layer of each, decoded into a region that the host
// writes and the device reads, as many as it holds at once. Owns that region and the fence of its last reader; knows
// frames by their bytes, and nothing of sequences.
// Threads: one user at a time (the manager's attend mutex); place() also needs the manager's lock, decode() does not.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "core/base/owned_region.h"
#include "core/blocks/slot_memory.h"
#include "firn/codec.h"
#include "firn/device.h"
#include "firn/ids.h"
#include "firn/tier.h"

namespace firn {

// One decode of one layer of one frame into staging. The frame is pinned in its tier until this goes.
struct StagedFrame {
  MemoryTier::Pin pin;
  FrameId frame = FrameId::kNone;
  std::array<BlockView, kMaxExtentBlocks> views{};  // by place within the frame; none: not wanted
  FrameLabel label;
  const Codec* codec = nullptr;
  std::uint32_t block_count = 0;
  std::uint32_t wanted = 0;      // blocks decoded
  std::uint32_t generation = 0;  // of the frame
  Status status;                 // decode() sets it
};

class Staging {
 public:
  Staging() = default;
  Staging(OwnedRegion region, std::uint32_t blocks) : region_(std::move(region)), blocks_(blocks) {}
  std::uint32_t blocks() const { return blocks_; }  // of one layer, of whatever page set
  std::uint64_t bytes() const { return region_->bytes; }
  // Another device's memory of the same size; nobody reads this one any more.
  void move_to(OwnedRegion region) {
    region_ = std::move(region);
    read_ = {};
  }
  // Where block number `at` of those that are staged together is, as the device sees it.
  BlockView place(const PageSet& set, std::uint32_t at) const {
    return block_view(set, region_->address + at * (kBlockTokens * set.kv.token_bytes()), 0);
  }
  bool holds(const BlockView& view) const {
    return view.k >= region_->address && view.k - region_->address < region_->bytes;
  }
  BlockView on_host(BlockView view) const {
    const DeviceAddress host = reinterpret_cast<DeviceAddress>(region_->host);
    view.k = host + (view.k - region_->address), view.v = host + (view.v - region_->address);
    return view;
  }
  // One layer of all of them, after what still reads the region has finished. An error is the device's; what a frame
  // came to stands in its status.
  Status decode(Timeline& timeline, const PageSet& set, std::uint32_t layer, std::vector<StagedFrame>& frames,
                ThreadPool* threads);
  void note_read(const Fence& fence) { read_ = fence; }  // the newest attention that reads it

 private:
  OwnedRegion region_;
  std::uint32_t blocks_ = 0;
  Fence read_;
};

}  // namespace firn
