// verify.cpp: every invariant of the manager, checked from scratch: nothing here trusts a counter.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "core/manager_impl.h"

namespace firn {
namespace {

// What holders say about each block, counted anew.
struct Counted {
  std::uint32_t refs = 0, hot_refs = 0, exact_refs = 0;
};

}  // namespace

Violations ManagerImpl::verify() const {
  Lock lock(mutex_);
  Violations broken = pool_->check_queue();
  const auto fail = [&broken]<class... Args>(fmt::format_string<Args...> text, Args&&... args) {
    broken.push_back(fmt::format(text, std::forward<Args>(args)...));
  };

  // Holders: live sequences, and freed ones whose fence has not passed.
  std::vector<Counted> counted(pool_->block_capacity());
  const auto count = [&](std::span<const Table> tables, std::uint32_t first_hot, bool exact) {
    for (std::uint8_t s = 0; s < tables.size(); ++s)
      for (std::uint32_t i = 0; i < tables[s].blocks.size(); ++i) {
        const BlockId id = tables[s].blocks[i];
        if (id == BlockId::kNone && (windowed_ || i < tables[s].first_held)) continue;
        if (index(id) >= counted.size()) {
          fail("a sequence holds block {}, which does not exist", index(id));
          continue;
        }
        if (index(pool_->block(id).page_set) != s)
          fail("block {}: of page set {}, in a table of page set {}", index(id), index(pool_->block(id).page_set), s);
        if (i < tables[s].first_held) fail("block {}: held behind the window", index(id));
        if (pool_->block(id).position != i)
          fail("block {}: number {} where it was computed, and number {} of a sequence that holds it", index(id),
               std::uint64_t{pool_->block(id).position}, i);
        ++counted[index(id)].refs;
        counted[index(id)].exact_refs += exact;
        counted[index(id)].hot_refs += i < sink_blocks() || i >= first_hot;
      }
  };
  std::uint64_t sequence_bytes = 0, reserved = 0;
  std::vector<std::uint64_t> reserved_in(namespaces_.end()), reserved_shared(namespaces_.end());
  std::set<const HeldExtras*> seen_extras;
  for (const auto& [number, seq] : sequences_) {
    count(seq->tables, seq->hot_first, seq->exact());
    sequence_bytes += seq->charge.bytes() + seq->ranges_charge.bytes();
    reserved += seq->reserved;
    reserved_in[seq->name_space] += seq->reserved_own;
    reserved_shared[seq->shared_space] += seq->reserved_shared;
    if (seq->extras && seen_extras.insert(seq->extras.get()).second) sequence_bytes += seq->extras->charge.bytes();
    if (seq->preempted) {
      // Of all that speaks of blocks nothing is left; its tokens are what resume() asks for.
      if (seq->block_count() != 0) fail("sequence {}: preempted, and holds {} blocks", number, seq->block_count());
      bool clear = seq->hot_first == 0 && seq->lost_from == ~0u && seq->reserved == 0 && seq->last_key.is_zero();
      for (const Table& table : seq->tables)
        clear = clear && table.blocks.empty() && table.first_held == 0 && table.store_next == sink_blocks();
      if (!clear) fail("sequence {}: preempted, and remembers something of its blocks", number);
      continue;
    }
    if (lossy_ && seq->exact())
      for (const BlockId id : seq->tables[0].blocks) {
        if (index(id) >= pool_->block_capacity()) continue;
        const Block& block = pool_->block(id);
        if (block.fidelity != Fidelity::kExact || block.coded)
          fail("block {}: {}, and held by sequence {}, which asked for exact context", index(id),
               to_string(block.fidelity), number);
      }
    if (seq->lost_from != ~0u && seq->lost_from >= seq->block_count())
      fail("sequence {}: lost block {} of {}", number, seq->lost_from, seq->block_count());
    const std::uint32_t wanted = std::min(hot_first(seq->tokens.size()), seq->block_count());
    if (seq->hot_first != wanted)
      fail("sequence {}: its window starts at block {}, but its {} tokens put it at {}", number, seq->hot_first,
           seq->tokens.size(), wanted);
    if (seq->tokens.size() > std::uint64_t{seq->block_count()} * kBlockTokens) {
      fail("sequence {}: {} tokens in {} blocks", number, seq->tokens.size(), seq->block_count());
      continue;
    }
    bool even = true;
    for (std::size_t s = 0; s < seq->tables.size(); ++s) {
      even = even && seq->tables[s].blocks.size() == seq->block_count();
      // What the next token looks at is held.
      const std::uint64_t tokens = seq->tokens.size();
      for (std::uint32_t i = first_needed(layout_.sets[s], tokens); even && i * std::uint64_t{kBlockTokens} < tokens;
           ++i)
        if (seq->tables[s].blocks[i] == BlockId::kNone)
          fail("sequence {}: page set {} gave up block {}, which its next token needs", number, s, i);
    }
    if (!even) {
      fail("sequence {}: its tables differ in length", number);
      continue;
    }
    // The names of its blocks, from its tokens.
    Key key{};
    for (std::uint32_t i = 0; i < seq->committed_blocks(); ++i) {
      key = block_key(*seq, i, key, std::span(seq->tokens).subspan(std::size_t{i} * kBlockTokens, kBlockTokens));
      for (const Table& table : seq->tables) {
        if (index(table.blocks[i]) >= pool_->block_capacity()) continue;
        const Block& block = pool_->block(table.blocks[i]);
        if (block.key != key && !block.lost)
          fail("block {}: its key is not that of its tokens in sequence {}", index(table.blocks[i]), number);
        if (block.full() && block.name_space != space_of(*seq, i))
          fail("block {}: of namespace {}, and sequence {} has it for namespace {}", index(table.blocks[i]),
               block.name_space, number, space_of(*seq, i));
      }
    }
    if (seq->last_key != key) fail("sequence {}: remembers another last key than its tokens have", number);
  }
  for (const Deferred& deferred : deferred_) {
    count(deferred.tables, deferred.hot_first, deferred.exact);
    sequence_bytes += deferred.charge.bytes();
  }

  // Blocks.
  std::uint32_t in_use = 0, candidates = 0, keyed = 0, cold = 0, copied = 0, storing = 0, live_slots = 0;
  std::vector<KeptBack> kept_back(namespaces_.end());
  for (std::uint32_t i = 0; i < pool_->block_capacity(); ++i) {
    const Block& block = pool_->block(BlockId{i});
    if (!block.in_use) {
      if (counted[i].refs != 0) fail("block {}: its record is free, but {} sequences hold it", i, counted[i].refs);
      continue;
    }
    ++in_use;
    candidates += block.candidate;
    cold += block.candidate && block.refs != 0;
    copied += block.candidate && block.refs == 0 && block.frame != FrameId::kNone;
    storing += block.slot != SlotId::kNone && block.in_flight != 0;
    live_slots += block.slot != SlotId::kNone && block.refs != 0;
    keyed += block.full();
    if (block.refs != counted[i].refs) fail("block {}: refs {}, holders {}", i, block.refs, counted[i].refs);
    if (lossy_ && exact_refs_[i] != counted[i].exact_refs)
      fail("block {}: exact_refs {}, holders that asked for exact context {}", i, exact_refs_[i],
           counted[i].exact_refs);
    if (block.hot_refs != counted[i].hot_refs)
      fail("block {}: hot_refs {}, in the windows of {}", i, block.hot_refs, counted[i].hot_refs);
    if (block.slot != SlotId::kNone &&
        (index(block.slot) >= pool_->slot_count() || pool_->owner(block.slot) != BlockId{i}))
      fail("block {}: slot {} belongs to block {}", i, index(block.slot),
           index(block.slot) < pool_->slot_count() ? index(pool_->owner(block.slot)) : ~0u);
    if (block.full()) {
      BlockId other = index_->find(block.key, block.page_set);
      while (other != BlockId::kNone && other != BlockId{i}) other = pool_->block(other).next_duplicate;
      if (other == BlockId::kNone) fail("block {}: its key is not in the index", i);
    }
    if (block.coded && block.fidelity == Fidelity::kExact)
      fail("block {}: has been through the lossy codec, and is called exact", i);
    if (held_exact(BlockId{i}) && block.frame != FrameId::kNone && is_lossy(frames_->frame(block.frame)))
      fail("block {}: held as exact, and frame {} is lossy", i, index(block.frame));
    if (block.frame != FrameId::kNone) {
      if (index(block.frame) >= frames_->capacity() || !frames_->frame(block.frame).in_use ||
          frames_->frame(block.frame).blocks[block.frame_index] != BlockId{i})
        fail("block {}: frame {} does not hold it", i, index(block.frame));
    } else if (block.slot == SlotId::kNone && !block.lost) {
      fail("block {}: neither a slot nor a frame has its bytes", i);
    }
    if (block.refs == 0 && !block.full() && block.in_flight == 0) fail("block {}: nobody holds or finds it", i);
    const bool should = block.slot != SlotId::kNone && block.in_flight == 0 && block.full() &&
                        !retention_->held(BlockId{i}) &&
                        (block.refs == 0 || (block.hot_refs == 0 && block.frame != FrameId::kNone));
    if (block.candidate != should) fail("block {}: {} a candidate for eviction", i, should ? "is not" : "must not be");
    const bool kept = block.candidate && !family_may_go(BlockId{i});
    if (block.kept_by_family != kept) fail("block {}: {} kept by its family", i, kept ? "is not" : "must not be");
    if (block.name_space < kept_back.size()) {
      kept_back[block.name_space].reader += block.candidate && block.refs != 0 && !kept;
      kept_back[block.name_space].family += kept;
    }
  }
  if (cold != cold_slots_ || copied != copied_slots_ || storing != storing_slots_ || live_slots != pool_->live_slots())
    fail("slots: {} cold, {} of no sequence with a copy, {} being stored and {} live, counted {}, {}, {} and {}", cold,
         copied, storing, live_slots, cold_slots_, copied_slots_, storing_slots_, pool_->live_slots());
  KeptBack all_kept_back;
  for (std::size_t i = 0; i < std::max(kept_back.size(), kept_back_.size()); ++i) {
    const KeptBack has = i < kept_back.size() ? kept_back[i] : KeptBack{};
    const KeptBack counts = i < kept_back_.size() ? kept_back_[i] : KeptBack{};
    all_kept_back.reader += has.reader, all_kept_back.family += has.family;
    if (has.reader != counts.reader || has.family != counts.family)
      fail("namespace {}: {} candidates are read and {} kept by families, counted {} and {}", i, has.reader, has.family,
           counts.reader, counts.family);
  }
  if (all_kept_back.reader != all_kept_back_.reader || all_kept_back.family != all_kept_back_.family)
    fail("eviction: {} candidates are read and {} kept by families, counted {} and {}", all_kept_back.reader,
         all_kept_back.family, all_kept_back_.reader, all_kept_back_.family);
  if (in_use != pool_->block_count()) fail("blocks: {} records in use, {} counted", in_use, pool_->block_count());
  if (candidates != slot_policy_->candidates())
    fail("eviction: {} blocks are candidates, the policy knows {}", candidates, slot_policy_->candidates());

  // Index entries lead to blocks with that key.
  std::uint32_t reached = 0, keys = 0;
  index_->for_each([&](BlockId head) {
    ++keys;
    const Key& key = pool_->block(head).key;
    for (BlockId id = head; id != BlockId::kNone; id = pool_->block(id).next_duplicate) {
      ++reached;
      if (!pool_->block(id).in_use || pool_->block(id).key != key || key.is_zero() ||
          pool_->block(id).page_set != pool_->block(head).page_set)
        fail("index: block {} is chained under a key that is not its own", index(id));
      if (reached > keyed + 1) break;
    }
  });
  if (reached != keyed) fail("index: {} blocks reachable, {} have keys", reached, keyed);
  if (keys != index_->key_count() || reached - keys != index_->duplicate_count())
    fail("index: {} keys and {} duplicates, counted {} and {}", keys, reached - keys, index_->key_count(),
         index_->duplicate_count());

  for (const std::string& line : index_->check()) fail("{}", line);

  // Slots: each is the null slot, free, being filled, or one block's.
  std::uint32_t free_slots = 0, loading = 0, bound = 0, absent = 0;
  for (std::uint32_t i = 0; i < pool_->slot_count(); ++i) {
    if (i != 0 && memory_->chunk_count() != 0) {
      const bool chunk = memory_->has_chunk(memory_->chunk_of(SlotId{i}));
      const bool there = pool_->state(SlotId{i}) != BlockPool::SlotState::kAbsent;
      if (chunk && !there) fail("slot {}: its chunk is there, and it is not", i);
      if (!chunk && there) fail("slot {}: its chunk is absent, and it is not: its memory may be gone", i);
    }
    switch (pool_->state(SlotId{i})) {
      case BlockPool::SlotState::kNull:
        if (i != 0) fail("slot {}: claims to be the null slot", i);
        break;
      case BlockPool::SlotState::kFree:
        ++free_slots;
        break;
      case BlockPool::SlotState::kAbsent:
        ++absent;
        break;
      case BlockPool::SlotState::kLoading:
        ++loading;
        break;
      case BlockPool::SlotState::kTaken:
        fail("slot {}: taken and given to nobody", i);
        break;
      case BlockPool::SlotState::kBound: {
        ++bound;
        const BlockId owner = pool_->owner(SlotId{i});
        if (owner == BlockId::kNone || !pool_->block(owner).in_use || pool_->block(owner).slot != SlotId{i})
          fail("slot {}: block {} does not say that it is there", i, index(owner));
        break;
      }
    }
  }
  if (bound != pool_->bound_slots()) fail("slots: {} hold a block, {} counted", bound, pool_->bound_slots());
  if (loading != loading_slots_) fail("slots: {} being filled, {} counted", loading, loading_slots_);
  if (free_slots != pool_->free_slots()) fail("slots: {} free, {} counted", free_slots, pool_->free_slots());
  if (1 + free_slots + loading + bound + absent != pool_->slot_count())
    fail("slots: {} free + {} loading + {} bound + {} absent + null are not {}", free_slots, loading, bound, absent,
         pool_->slot_count());
  if (pool_->slot_total() != pool_->slot_count() - 1 - absent)
    fail("slots: {} are there, {} counted", pool_->slot_count() - 1 - absent, pool_->slot_total());
  if (reserved != reserved_slots_)
    fail("admission: {} slots kept for sequences, {} counted", reserved, reserved_slots_);
  for (std::uint32_t i = 0; i < namespaces_.end(); ++i)
    if (const auto id = static_cast<std::uint16_t>(i); namespaces_.in_use(id)) {
      const Namespace& space = namespaces_[id];
      if (space.reserved != reserved_in[i] || space.reserved_shared != reserved_shared[i])
        fail("namespace {}: {} slots kept for its sequences and {} for others', {} and {} counted", i, reserved_in[i],
             reserved_shared[i], space.reserved, space.reserved_shared);
    }

  // Frames.
  std::uint32_t frames = 0, frame_candidates = 0;
  std::uint64_t raw_bytes = 0;
  for (std::uint32_t i = 0; i < frames_->capacity(); ++i) {
    const Frame& frame = frames_->frame(FrameId{i});
    if (!frame.in_use) continue;
    ++frames;
    frame_candidates += frame.candidate;
    raw_bytes += extent_shape(set_of(frame), frame.block_count).raw_bytes();
    std::uint32_t live = 0, held = 0;
    for (std::uint8_t j = 0; j < frame.block_count; ++j) {
      if (frame.blocks[j] == BlockId::kNone) continue;
      ++held;
      const Block& block = pool_->block(frame.blocks[j]);
      live += block.refs != 0;
      if (!block.in_use || block.frame != FrameId{i} || block.frame_index != j || block.page_set != frame.page_set)
        fail("frame {}: block {} does not say that it is there", i, index(frame.blocks[j]));
      // What is in one frame was computed in a row, and the frame says where.
      if (std::uint64_t{block.position} * kBlockTokens != frame.first_position + j * std::uint64_t{kBlockTokens})
        fail("frame {}: block {} is number {} of its sequence, and place {} of a frame from token {} on", i,
             index(frame.blocks[j]), std::uint64_t{block.position}, j, frame.first_position);
      if (j + 1 == frame.block_count && block.full() && block.key != frame.last_key)
        fail("frame {}: ends in a block of another key than it was stored with", i);
    }
    if (held == 0 && frame.in_flight == 0) fail("frame {}: holds no block", i);
    if (live != frame.live) fail("frame {}: {} live blocks, {} counted", i, live, frame.live);
    if (frame.candidate != (frame.live == 0 && frame.in_flight == 0 && !frame_held(frame)))
      fail("frame {}: {} a candidate for eviction", i, frame.candidate ? "must not be" : "is not");
    if (!host_ || !host_->contains(frame.key)) fail("frame {}: the host tier does not have it", i);
  }
  if (frames != frames_->count()) fail("frames: {} in use, {} counted", frames, frames_->count());
  if (frame_candidates != frame_policy_->candidates())
    fail("host eviction: {} frames are candidates, the policy knows {}", frame_candidates, frame_policy_->candidates());
  if (raw_bytes != host_raw_bytes_) fail("frames: {} raw bytes, {} counted", raw_bytes, host_raw_bytes_);
  // A running job may have published a frame that its blocks do not know yet.
  if (host_ && running_ == 0 && host_->stats().frames != frames + erase_later_.size())
    fail("frames: the host tier has {}, the manager knows {}", host_->stats().frames, frames);

  // What is kept and told.
  for (const std::string& line : retention_->check()) fail("{}", line);
  std::vector<BlockPool::Tally> tallies(namespaces_.end());
  for (std::uint32_t i = 0; i < pool_->block_capacity(); ++i) {
    const Block& block = pool_->block(BlockId{i});
    if (!block.in_use) continue;
    if (!namespaces_.in_use(block.name_space)) {
      fail("block {}: namespace {} does not exist", i, block.name_space);
      continue;
    }
    ++tallies[block.name_space].blocks;
    tallies[block.name_space].slots += block.slot != SlotId::kNone;  // those being filled are counted below
    if (events_->on() && block.full() && events_->told(BlockId{i}) != EventLog::tiers_of(block))
      fail("block {}: told to be in tiers {}, is in {}", i, events_->told(BlockId{i}), EventLog::tiers_of(block));
  }
  for (std::uint32_t i = 1; i < pool_->slot_count(); ++i) {
    if (pool_->state(SlotId{i}) != BlockPool::SlotState::kLoading) continue;
    const std::uint16_t id = pool_->loading_for(SlotId{i});
    if (namespaces_.in_use(id)) {
      ++tallies[id].slots;
    } else {
      fail("slot {}: being filled for namespace {}, which does not exist", i, id);
    }
  }
  std::vector<std::uint64_t> host_bytes(namespaces_.end());
  for (std::uint32_t i = 0; i < frames_->capacity(); ++i) {
    const Frame& frame = frames_->frame(FrameId{i});
    if (!frame.in_use) continue;
    host_bytes[frame.name_space] += frame.bytes;
    for (std::uint8_t j = 0; j < frame.block_count; ++j)
      if (frame.blocks[j] != BlockId::kNone && pool_->block(frame.blocks[j]).name_space != frame.name_space)
        fail("frame {}: block {} is of another namespace", i, index(frame.blocks[j]));
  }
  for (std::uint32_t i = 0; i < namespaces_.end(); ++i) {
    const std::uint16_t id = static_cast<std::uint16_t>(i);
    if (!namespaces_.in_use(id)) continue;
    const BlockPool::Tally& tally = pool_->tally(id);
    if (tally.blocks != tallies[i].blocks || tally.slots != tallies[i].slots)
      fail("namespace {}: {} blocks in {} slots, counted {} in {}", i, tallies[i].blocks, tallies[i].slots,
           tally.blocks, tally.slots);
    if (host_bytes[i] != namespaces_[id].host_bytes)
      fail("namespace {}: {} bytes of frames, counted {}", i, host_bytes[i], namespaces_[id].host_bytes);
  }

  // Queues and ledger.
  for (const Job& job : stores_) {
    BlockId before = BlockId::kNone;
    for (std::uint8_t i = 0; i < job.count; ++i) {
      if (!same_life(job.blocks[i]) || !pool_->block(job.blocks[i].id).in_use) {
        before = BlockId::kNone;
        continue;
      }
      const Block& block = pool_->block(job.blocks[i].id);
      if (i != 0 && before != BlockId::kNone &&
          (block.position != pool_->block(before).position + 1u || block.page_set != pool_->block(before).page_set ||
           block.name_space != pool_->block(before).name_space))
        fail("mover: block {} waits to be stored behind block {}, and does not follow it", index(job.blocks[i].id),
             index(before));
      before = job.blocks[i].id;
    }
  }
  const std::uint32_t over = strict_lossy() ? lossy_pending_ : 0;  // what commit made lossy is queued in any case
  if (stores_.size() > config_.mover.queue + over || loads_.size() > config_.mover.queue)
    fail("mover: {} stores and {} loads wait in queues of {}", stores_.size(), loads_.size(), config_.mover.queue);
  for (const std::string& line : memory_->check()) fail("{}", line);
  const auto spent = [&](Account account, std::uint64_t parts) {
    if (ledger_->spent(account) != parts)
      fail("ledger: {} bytes spent on {}, its parts have {}", ledger_->spent(account), to_string(account), parts);
  };
  spent(Account::kStaging, staging_.bytes() + memory_->transfer_bytes());
  spent(Account::kWorkspace, workspace_->bytes);
  std::size_t small = spare_.size();
  for (const auto& [number, seq] : sequences_) small += seq->small;
  for (const Deferred& deferred : deferred_) small += deferred.small;
  if (small != small_sequences_ || small > kSmallSequences)
    fail("sequences: {} are small, {} counted, room for {} was charged", small, small_sequences_, kSmallSequences);
  spent(Account::kMetadata, fixed_metadata_bytes_ + sequence_bytes + extra_metadata_bytes());
  if (ledger_->spent(Budget::kHost) != fixed_host_bytes_)
    fail("ledger: {} bytes spent of the host budget, {} were taken for the tier", ledger_->spent(Budget::kHost),
         fixed_host_bytes_);
  if (host_)
    if (const Status status = host_->verify(); !status.ok()) fail("{}", status.message());
  for (const Budget budget : {Budget::kDevice, Budget::kHost, Budget::kMetadata})
    if (ledger_->spent(budget) > ledger_->limit(budget))
      fail("ledger: the {} budget of {} bytes is overspent: {}", to_string(budget), ledger_->limit(budget),
           ledger_->spent(budget));
  return broken;
}

}  // namespace firn
