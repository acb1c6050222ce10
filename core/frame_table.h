// frame_table.h: the frames that hold copies of blocks, and which blocks each holds. The bytes are the tier's.
// Threads: the manager's lock. Memory: create() allocates everything.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/base/check.h"
#include "firn/codec.h"
#include "firn/ids.h"
#include "firn/tier.h"

namespace firn {

struct Frame {
  FrameKey key;                      // its name in the tier
  Key last_key;                      // of its label: the key of its last block when it was stored
  std::uint64_t first_position = 0;  // likewise, in tokens
  std::array<BlockId, kMaxExtentBlocks> blocks{};
  std::uint32_t bytes = 0;  // encoded
  std::uint32_t generation = 0;
  FrameId next_free = FrameId::kNone;
  std::uint16_t live = 0;        // blocks of it that live sequences hold: such a frame is not evicted
  std::uint16_t in_flight = 0;   // mover jobs that read it
  std::uint16_t name_space = 0;  // of all its blocks
  std::uint8_t block_count = 0;
  PageSetId page_set{0};
  Fidelity fidelity = Fidelity::kExact;  // of its label
  CodecId codec = CodecId::kLossless;
  bool in_use = false;
  bool candidate = false;              // the host policy knows it...
  BlockId policy_id = BlockId::kNone;  // ...by the id of this block of it
};

class FrameTable {
 public:
  explicit FrameTable(std::uint32_t capacity) : frames_(capacity) {
    for (std::uint32_t i = capacity; i-- > 0;) {
      frames_[i].next_free = free_;
      free_ = FrameId{i};
    }
  }
  static std::uint64_t metadata_bytes(std::uint32_t capacity) { return std::uint64_t{capacity} * sizeof(Frame); }

  Frame& frame(FrameId id) { return frames_[index(id)]; }
  const Frame& frame(FrameId id) const { return frames_[index(id)]; }
  std::uint32_t count() const { return count_; }
  std::uint32_t capacity() const { return static_cast<std::uint32_t>(frames_.size()); }
  bool full() const { return free_ == FrameId::kNone; }

  FrameId make() {
    FIRN_CHECK(!full());
    const FrameId id = free_;
    Frame& made = frame(id);
    free_ = made.next_free;
    const std::uint32_t generation = made.generation + 1;
    made = {};
    made.generation = generation;
    made.in_use = true;
    ++count_;
    return id;
  }
  void drop(FrameId id) {
    Frame& dropped = frame(id);
    FIRN_CHECK(dropped.in_use && dropped.in_flight == 0 && !dropped.candidate);
    dropped.in_use = false;
    dropped.next_free = free_;
    free_ = id;
    --count_;
  }

 private:
  friend struct ManagerTestPeer;
  std::vector<Frame> frames_;
  FrameId free_ = FrameId::kNone;
  std::uint32_t count_ = 0;
};

}  // namespace firn
