// block_pool.h: block records, the slots that hold their raw bytes, and who may have them next.
//
// A block is 16 tokens of one group; its record lives as long as anybody can find or hold it. A slot is a place in
// device memory; a block has one, or none while its bytes are only in a frame. Free slots wait in an intrusive queue:
// slots that held nothing of value come back to its head, so that they are used before a cached block has to go. Cached
// blocks stay in their slots as candidates of the eviction policy until somebody needs the room. Threads: the manager's
// lock. Memory: create() allocates everything; no later call does.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "core/base/check.h"
#include "firn/codec.h"
#include "firn/ids.h"
#include "firn/key.h"
#include "firn/policy.h"

namespace firn {

// One cache line, because a million of them have to fit 96 bytes each, index and policy included.
struct alignas(64) Block {
  Key key;                                  // zero until the block is full and committed; then its bytes never change
  BlockId parent = BlockId::kNone;          // the block before it where it was computed; also links free records
  BlockId next_duplicate = BlockId::kNone;  // PrefixIndex: another block with the same key
  SlotId slot = SlotId::kNone;
  FrameId frame = FrameId::kNone;   // FrameTable: the frame that holds a copy
  std::uint64_t refs : 20 = 0;      // entries of tables of sequences, at most one a sequence
  std::uint64_t hot_refs : 20 = 0;  // of those, in whose sinks or recent window it is
  std::uint64_t position : 24 = 0;  // index within its sequence: first token / kBlockTokens
  std::uint16_t life = 0;           // low bits of BlockPool::generation()
  std::uint16_t name_space = 0;
  PageSetId page_set{0};                     // whose layers its bytes are
  std::uint8_t in_flight = 0;                // mover jobs that read its slot
  std::uint8_t frame_index : 4 = 0;          // which block of its frame it is
  Fidelity fidelity : 2 = Fidelity::kExact;  // of the bytes in its slot, or in its frame if it has no slot
  bool in_use : 1 = false;                   // the record is alive
  bool coded : 1 = false;              // its bytes have been through a lossy codec, and are never coded lossy again
  bool candidate : 1 = false;          // the policy knows it
  bool store_queued : 1 = false;       // some mover job is going to store it
  bool load_queued : 1 = false;        // some mover job is going to load it
  bool release_when_idle : 1 = false;  // dropped while in flight: its slot goes back when the mover is done
  bool lost : 1 = false;               // its only copy did not decode
  // As what the manager counts it while it is a candidate: of a live sequence, or of none and with a copy below.
  bool counted_live : 1 = false;
  bool counted_copied : 1 = false;
  bool kept_by_family : 1 = false;  // a candidate that may not go: a member of its family has to stay
  bool full() const { return !key.is_zero(); }
};
static_assert(sizeof(Block) == 64);
// What refs can count. Sequences that are being freed behind a fence count as sequences. Positions fit, because
// max_sequence_tokens is at most 2^26.
inline constexpr std::uint32_t kMostHolders = (1u << 20) - 1;

class BlockPool {
 public:
  // slot_count includes the null slot 0, which is never handed out. Records are taken from block_count. Slots from
  // `present` on are not there yet: add_slots() brings them. queued: weak references outlive a call, in a queue of
  // moves.
  BlockPool(std::uint32_t slot_count, std::uint32_t block_count, std::uint32_t present = ~0u, bool queued = true);
  static std::uint64_t metadata_bytes(std::uint32_t slot_count, std::uint32_t block_count, bool queued);

  Block& block(BlockId id) { return blocks_[index(id)]; }
  const Block& block(BlockId id) const { return blocks_[index(id)]; }
  // Counts the lives of a record, so that a reference to it may be weak.
  std::uint32_t generation(BlockId id) const {
    return block(id).life | (wraps_.empty() ? 0u : std::uint32_t{wraps_[index(id)]} << 16);
  }
  std::uint32_t block_capacity() const { return static_cast<std::uint32_t>(blocks_.size()); }
  std::uint32_t block_count() const { return block_count_; }
  std::uint32_t slot_count() const { return static_cast<std::uint32_t>(slots_.size()); }
  std::uint32_t slot_total() const { return slot_total_; }  // that are there, the null slot aside
  std::uint32_t free_slots() const { return free_slots_; }
  std::uint32_t bound_slots() const { return bound_slots_; }  // that hold a block
  std::uint32_t live_slots() const { return live_slots_; }    // of those, of a block that a sequence holds
  // The block has its first reference, or has lost its last one.
  void count_live(const Block& record, bool live) {
    if (record.slot != SlotId::kNone) live_slots_ += live ? 1 : -1u;
  }

  bool has_free_record() const { return free_record_ != BlockId::kNone; }
  std::uint32_t free_records() const { return block_capacity() - block_count_; }
  BlockId make_record();         // a fresh record without a slot; has_free_record()
  void drop_record(BlockId id);  // refs, slot, frame and key are gone

  SlotId take_free_slot();  // the head of the queue, or kNone
  void put_free_slot(SlotId slot, bool at_head);
  void bind(SlotId slot, BlockId id);  // a taken slot becomes the block's
  SlotId unbind(BlockId id);           // and back: the slot is the caller's now
  BlockId owner(SlotId slot) const {   // kNone: it has none
    const Slot& at = slots_[index(slot)];
    return linked(at) ? BlockId::kNone : BlockId{at.link};
  }
  // A slot that is being filled for a block which does not have it yet. Its namespace has the slot from now on.
  void set_loading(SlotId slot, BlockId id);
  std::uint16_t loading_for(SlotId slot) const { return static_cast<std::uint16_t>(slots_[index(slot)].previous); }

  // A pool that grows and shrinks: slots come to the tail of the queue, and go when they are free or taken.
  void add_slots(std::uint32_t first, std::uint32_t count);
  void remove_slot(SlotId slot);

  enum class SlotState : std::uint8_t { kNull, kFree, kTaken, kLoading, kBound, kAbsent };
  SlotState state(SlotId slot) const { return slots_[index(slot)].state; }
  std::vector<SlotId> free_order() const;  // the queue from its head
  // What a namespace has: every record and every slot is some namespace's, those on their way to it too.
  struct Tally {
    std::uint32_t blocks = 0, slots = 0;
    bool emptied = false;  // in the list of those that have lost their last record or slot
  };
  void ensure_namespaces(std::uint32_t count) {
    if (tallies_.size() >= count) return;
    if (emptied_.capacity() < count) emptied_.reserve(2 * std::size_t{count});
    tallies_.resize(count);
  }
  void set_namespace(BlockId id, std::uint16_t name_space);  // the record is no candidate
  const Tally& tally(std::uint16_t name_space) const { return tallies_[name_space]; }
  // Calls visit(namespace) for those that have lost their last record or slot since the last call.
  template <class Visit>
  void take_emptied(Visit visit) {
    for (const std::uint16_t name_space : emptied_) {
      tallies_[name_space].emptied = false;
      visit(name_space);
    }
    emptied_.clear();
  }

  // For verify(): walks the queue forwards and backwards; empty if sound.
  std::vector<std::string> check_queue() const;

 private:
  friend struct ManagerTestPeer;
  // A free slot is linked into the queue, whose sentinel is the null slot; one that is bound or being filled has a
  // block.
  struct Slot {
    std::uint32_t link = kNoOwner;    // the slot behind it in the queue, or its block
    std::uint32_t previous : 29 = 0;  // the slot before it in the queue; of one being filled, whose it is: the block
                                      // that it was begun for may be another's by now
    SlotState state : 3 = SlotState::kTaken;
  };
  static_assert(sizeof(Slot) == 8);
  static constexpr std::uint32_t kNoOwner = ~0u;
  Slot& at(SlotId slot) { return slots_[index(slot)]; }
  void count_live_slot(const Block& record, std::uint32_t by) {
    if (record.refs != 0) live_slots_ += by;
  }
  static bool linked(const Slot& slot) { return slot.state == SlotState::kFree || slot.state == SlotState::kNull; }
  void unlink(const Slot& slot);
  void stop_loading(const Slot& slot);  // for the namespace that it was begun for
  void drop_tally(std::uint16_t name_space) {
    Tally& tally = tallies_[name_space];
    if (--tally.blocks == 0 && !std::exchange(tally.emptied, true)) emptied_.push_back(name_space);
  }

  std::vector<Block> blocks_;
  std::vector<std::uint16_t> wraps_;  // high bits of generation(); empty: nobody asks for that long
  std::vector<Slot> slots_;
  BlockId free_record_ = BlockId::kNone;
  std::uint32_t block_count_ = 0, free_slots_ = 0, slot_total_ = 0, bound_slots_ = 0, live_slots_ = 0;
  std::vector<Tally> tallies_ = std::vector<Tally>(1);  // by namespace
  std::vector<std::uint16_t> emptied_;
};

// What every block passes on its way in and out is inline.

inline void BlockPool::unlink(const Slot& slot) {
  slots_[slot.link].previous = slot.previous;
  slots_[slot.previous].link = slot.link;
  --free_slots_;
}

inline BlockId BlockPool::make_record() {
  const BlockId id = free_record_;
  FIRN_CHECK(id != BlockId::kNone);
  Block& record = block(id);
  free_record_ = record.parent;
  const auto life = static_cast<std::uint16_t>(record.life + 1);
  if (life == 0 && !wraps_.empty()) ++wraps_[index(id)];
  record = Block{};
  record.life = life;
  record.in_use = true;
  ++block_count_;
  ++tallies_[0].blocks;
  return id;
}

inline void BlockPool::drop_record(BlockId id) {
  Block& record = block(id);
  FIRN_CHECK(record.in_use && record.refs == 0 && record.slot == SlotId::kNone && record.frame == FrameId::kNone &&
             record.in_flight == 0 && !record.candidate);
  drop_tally(record.name_space);
  const std::uint16_t life = record.life;
  record = Block{};
  record.life = life;
  record.parent = free_record_;
  free_record_ = id;
  --block_count_;
}

inline void BlockPool::set_namespace(BlockId id, std::uint16_t name_space) {
  Block& record = block(id);
  FIRN_CHECK(record.in_use && name_space < tallies_.size());
  if (record.name_space == name_space) return;
  const std::uint32_t slots = record.slot == SlotId::kNone ? 0 : 1;
  tallies_[record.name_space].slots -= slots;
  drop_tally(record.name_space);
  record.name_space = name_space;
  tallies_[name_space].slots += slots;
  ++tallies_[name_space].blocks;
}

inline SlotId BlockPool::take_free_slot() {
  const SlotId slot{slots_[0].link};
  if (slot == SlotId{0}) return SlotId::kNone;
  unlink(at(slot));
  at(slot) = Slot{kNoOwner, 0, SlotState::kTaken};
  return slot;
}

inline void BlockPool::put_free_slot(SlotId slot, bool at_head) {
  Slot& freed = at(slot);
  FIRN_CHECK(freed.state == SlotState::kTaken || freed.state == SlotState::kLoading);
  if (freed.state == SlotState::kLoading) stop_loading(freed);
  const std::uint32_t before = at_head ? 0 : slots_[0].previous;
  const std::uint32_t after = slots_[before].link;
  freed = Slot{after, before, SlotState::kFree};
  slots_[before].link = index(slot);
  slots_[after].previous = index(slot);
  ++free_slots_;
}

inline void BlockPool::bind(SlotId slot, BlockId id) {
  Slot& bound = at(slot);
  FIRN_CHECK((bound.state == SlotState::kTaken || bound.state == SlotState::kLoading) &&
             block(id).slot == SlotId::kNone);
  if (bound.state == SlotState::kLoading) stop_loading(bound);
  bound = Slot{index(id), 0, SlotState::kBound};
  block(id).slot = slot;
  ++bound_slots_;
  count_live_slot(block(id), 1);
  ++tallies_[block(id).name_space].slots;
}

inline SlotId BlockPool::unbind(BlockId id) {
  const SlotId slot = block(id).slot;
  Slot& bound = at(slot);
  FIRN_CHECK(bound.state == SlotState::kBound && bound.link == index(id));
  bound = Slot{kNoOwner, 0, SlotState::kTaken};
  --bound_slots_;
  count_live_slot(block(id), -1u);
  block(id).slot = SlotId::kNone;
  --tallies_[block(id).name_space].slots;
  return slot;
}

}  // namespace firn
