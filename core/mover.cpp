// mover.cpp: what moves between the pool and the host tier, by the worker thread or by pump(), which do the same.
//
// The queues are bounded and hold weak references: a backlog pins nothing, and a job finds out when it starts what of
// its blocks is still there. Storing is two-phase: reserve, encode, publish, and only then does a block have a copy.
// Loading decodes into slots that nobody can see until they are whole.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <utility>

#include "core/base/no_throw.h"
#include "core/manager_impl.h"

namespace firn {
namespace {

// Extents of a sequence: its sinks alone, since they stay exact whatever happens to the rest, then groups of eight
// blocks.
std::uint32_t group_of(std::uint32_t block, std::uint32_t sinks) {
  return block < sinks ? 0 : 1 + (block - sinks) / kMaxExtentBlocks;
}

// Blocks on their way into one extent.
class Piece {
 public:
  bool empty() const { return count_ == 0; }
  std::size_t size() const { return count_; }
  BlockId front() const { return ids_.front(); }
  BlockId back() const { return ids_[count_ - 1]; }
  void push_back(BlockId id) { ids_[count_++] = id; }
  void clear() { count_ = 0; }
  operator std::span<const BlockId>() const { return std::span(ids_).first(count_); }  // NOLINT: it is one

 private:
  std::array<BlockId, kMaxExtentBlocks> ids_{};
  std::size_t count_ = 0;
};

}  // namespace

FrameLabel ManagerImpl::label_of(const Frame& frame) const {
  return {.last_key = frame.last_key,
          .group = GroupId{index(frame.page_set)},
          .first_position = frame.first_position,
          .fidelity = frame.fidelity};
}

std::uint32_t ManagerImpl::pressable(const Sequence& seq, const Table& table) const {
  const std::uint32_t cold = std::min(seq.hot_first, seq.committed_blocks());
  return strict_lossy() && !seq.exact() ? std::min(cold, table.store_next) : cold;
}

// Queues what has gone cold and has no copy yet. While the sequence lives, only whole groups: frames of eight blocks
// compress and move best. When it ends, everything full.
void ManagerImpl::queue_cold(Sequence& seq, bool ending) {
  if (!host_ || seq.preempted)
    return;  // a preempted one has tokens and no blocks: they were queued when it gave them up
  for (Table& table : seq.tables) queue_cold(seq, table, ending);
}

void ManagerImpl::queue_cold(Sequence& seq, Table& table, bool ending) {
  const std::uint32_t sinks = sink_blocks(), full = seq.committed_blocks();
  std::uint32_t limit = full;
  if (!ending) {
    limit = std::min(seq.hot_first, full);
    limit = limit <= sinks ? 0 : sinks + (limit - sinks) / kMaxExtentBlocks * kMaxExtentBlocks;
  }
  Piece piece;
  std::uint32_t i = std::max(table.first_held, ending ? 0 : table.store_next);
  std::uint32_t queued_to = i;  // everything before it is queued, or needs no storing
  // What a live sequence has computed, nobody holds as exact, and no lossy codec has seen.
  const auto lossy = [&](BlockId id) { return !ending && !seq.exact() && may_be_coded(id); };
  bool lossy_piece = false;
  const auto flush = [&] {
    if (!piece.empty() && !queue_piece(piece, lossy_piece)) return false;
    if (ending) counters_.ending_stored += piece.size();
    piece.clear();
    queued_to = i;
    return true;
  };
  bool room = true;
  for (; room && i < limit; ++i) {
    const BlockId id = table.blocks[i];
    if (id == BlockId::kNone) {
      room = flush();
      continue;
    }
    const Block& block = pool_->block(id);
    const std::uint32_t others_hot = block.hot_refs - (is_hot(seq, i) ? 1u : 0u);
    const bool wanted = block.full() && block.slot != SlotId::kNone && block.frame == FrameId::kNone &&
                        !block.store_queued && others_hot == 0;
    // A frame never crosses a group or a known branch, which shows as a change in who shares the block.
    const bool cut =
        !piece.empty() &&
        (block.name_space != pool_->block(piece.back()).name_space || group_of(i, sinks) != group_of(i - 1, sinks) ||
         block.refs != pool_->block(piece.back()).refs || piece.size() == kMaxExtentBlocks || lossy(id) != lossy_piece);
    if (cut || !wanted) room = flush();
    if (room && wanted) {
      lossy_piece = lossy(id);
      piece.push_back(id);
    }
  }
  if (room) room = flush();
  if (ending && !room)  // the queue was full, and nobody comes back for these
    for (const BlockId id : std::span(table.blocks).subspan(queued_to, limit - queued_to))
      counters_.ending_dropped += id != BlockId::kNone && pool_->block(id).slot != SlotId::kNone &&
                                  pool_->block(id).frame == FrameId::kNone && !pool_->block(id).store_queued;
  if (!ending)
    table.store_next = std::max(table.store_next, queued_to);  // a full queue is tried again at the next commit
}

// Somebody needs the room: groups that are only partly cold go now, as smaller frames.
void ManagerImpl::press_cold() {
  if (!host_) return;
  for (const auto& entry : sequences_)
    for (const Table& table : entry.second->tables) press_cold(*entry.second, table);
}

void ManagerImpl::press_cold(const Sequence& seq, const Table& table) {
  const std::uint32_t limit = pressable(seq, table);
  Piece piece;
  const auto lossy = [&](BlockId id) { return !strict_lossy() && !seq.exact() && may_be_coded(id); };
  const auto flush = [&] {
    if (!piece.empty()) queue_piece(piece, lossy(piece.front()));
    piece.clear();
  };
  for (std::uint32_t i = std::max(sink_blocks(), table.first_held); i < limit; ++i) {
    if (table.blocks[i] == BlockId::kNone) {
      flush();
      continue;
    }
    const Block& block = pool_->block(table.blocks[i]);
    const bool wanted = block.full() && block.slot != SlotId::kNone && block.frame == FrameId::kNone &&
                        !block.store_queued && block.hot_refs == 0;
    if (!piece.empty() &&
        (!wanted || block.name_space != pool_->block(piece.back()).name_space ||
         group_of(i, sink_blocks()) != group_of(i - 1, sink_blocks()) ||
         block.refs != pool_->block(piece.back()).refs || lossy(table.blocks[i]) != lossy(piece.back())))
      flush();
    if (wanted) piece.push_back(table.blocks[i]);
  }
  flush();
}

bool ManagerImpl::queue_piece(std::span<const BlockId> blocks, bool lossy) {
  // In strict mode the commit that makes a token lossy is named, so the queue takes what it is given then; attend and
  // begin work it off before anything else.
  if (stores_.size() >= config_.mover.queue && !(lossy && strict_lossy())) return false;
  Job job{.kind = Job::Kind::kStore,
          .count = static_cast<std::uint8_t>(blocks.size()),
          .lossy = lossy,
          .fence =
              lossy && strict_lossy() ? device_->timeline().last() : memory_->last_write()};  // it writes what was read
  for (std::size_t i = 0; i < blocks.size(); ++i) job.blocks[i] = {blocks[i], pool_->generation(blocks[i])};
  try {
    stores_.push_back(job);
  } catch (const std::bad_alloc&) {
    return false;  // as a full queue: it is tried again
  }
  lossy_pending_ += lossy ? 1 : 0;
  for (const BlockId id : blocks) pool_->block(id).store_queued = true;
  work_.notify_one();
  return true;
}

Result<Ticket> ManagerImpl::prefetch(SeqId id) {
  Lock lock(mutex_);
  FIRN_ASSIGN(const Sequence* seq, get_sequence(id, "prefetch"));
  if (!host_) return Ticket::kNone;
  const Ticket ticket{next_ticket_++};
  // Before anything is queued: memory for the ticket is what may be missing.
  std::uint32_t& jobs = open_tickets_[index(ticket)];
  std::uint64_t room = std::min<std::uint64_t>(pool_->free_slots() + copied_slots_, spare_slots());
  const auto queue_frame_of = [&](const std::vector<BlockId>& blocks, std::uint32_t from, std::uint32_t to) {
    for (std::uint32_t i = from; i < to && room != 0 && loads_.size() < config_.mover.queue; ++i) {
      if (blocks[i] == BlockId::kNone) continue;
      const Block& first = pool_->block(blocks[i]);
      if (first.slot != SlotId::kNone || first.frame == FrameId::kNone || first.load_queued) continue;
      Job job{.kind = Job::Kind::kLoad,
              .ticket = ticket,
              .frame = first.frame,
              .frame_generation = frames_->frame(first.frame).generation,
              .fence = {}};
      for (std::uint32_t j = i; j < blocks.size() && job.count < kMaxExtentBlocks && room != 0; ++j) {
        if (blocks[j] == BlockId::kNone) continue;
        Block& block = pool_->block(blocks[j]);
        if (block.frame != job.frame || block.slot != SlotId::kNone || block.load_queued) continue;
        job.blocks[job.count++] = {blocks[j], pool_->generation(blocks[j])};
        --room;
      }
      try {
        loads_.push_back(job);
      } catch (const std::bad_alloc&) {  // as a full queue: they may be asked for again
        room = 0;
        return;
      }
      for (std::uint8_t k = 0; k < job.count; ++k) pool_->block(job.blocks[k].id).load_queued = true;
      ++jobs;
    }
  };
  const std::uint32_t count = seq->block_count();
  const auto queue_range = [&](std::uint32_t from, std::uint32_t to) {
    for (const Table& table : seq->tables) queue_frame_of(table.blocks, from, to);
  };
  queue_range(0, std::min(sink_blocks(), count));
  queue_range(seq->hot_first, count);
  queue_range(0, count);
  if (jobs == 0) {
    open_tickets_.erase(index(ticket));
    return Ticket::kNone;
  }
  work_.notify_one();
  return ticket;
}

bool ManagerImpl::done(Ticket ticket) const {
  Lock lock(mutex_);
  return !open_tickets_.contains(index(ticket));
}

void ManagerImpl::finish(Ticket ticket) {
  const auto open = open_tickets_.find(index(ticket));
  if (open != open_tickets_.end() && --open->second == 0) open_tickets_.erase(open);
}

Status ManagerImpl::cancel(Ticket ticket) {
  Lock lock(mutex_);
  std::erase_if(loads_, [&](const Job& job) {
    if (job.ticket != ticket) return false;
    for (std::uint8_t i = 0; i < job.count; ++i)
      if (same_life(job.blocks[i])) pool_->block(job.blocks[i].id).load_queued = false;
    finish(ticket);
    return true;
  });
  moved_.notify_all();
  return {};
}

bool ManagerImpl::run_one(Lock& lock, bool background) {
  // What the device is still writing or reading stays queued: waiting is for calls named wait_* and for the worker.
  const bool load = !loads_.empty() && may_run(loads_.front(), background);  // first, because somebody waits for it
  if (!load && (stores_.empty() || !may_run(stores_.front(), background))) return false;
  moment_.reset();
  std::deque<Job>& queue = load ? loads_ : stores_;
  const Job job = queue.front();
  queue.pop_front();
  ++running_;
  if (job.kind == Job::Kind::kStore) {
    run_store(lock, job, background);
  } else {
    run_load(lock, job);
  }
  --running_;
  lossy_pending_ -= job.lossy ? 1 : 0;
  finish(job.ticket);
  moved_.notify_all();
  return true;
}

std::size_t ManagerImpl::pump(std::size_t max_jobs) {
  Lock lock(mutex_);
  run_deferred();
  std::size_t done = 0;
  while (done < max_jobs && run_one(lock, /*background=*/false)) ++done;
  return done;
}

void ManagerImpl::worker() {
  constexpr std::int64_t kSliceNs = 20'000'000;
  Lock lock(mutex_);
  while (!stop_) {
    if (run_one(lock, /*background=*/true)) continue;
    if (stores_.empty() && loads_.empty()) {
      work_.wait(lock, [&] { return stop_ || !stores_.empty() || !loads_.empty(); });
    } else {  // in slices: neither loads nor the destructor wait for a device that is slow
      wait_blocked(lock, kSliceNs).ok();
    }
  }
}

// Lets go of the lock. A device that is lost finishes nothing: what waits for it is dropped and counted.
Status ManagerImpl::wait_device(Lock& lock, const Fence& fence, std::int64_t timeout_ns) {
  const Fence waited = fence;  // the queue that it is in may change meanwhile
  Device* const asked = device_;
  lock.unlock();
  Status status = asked->timeline().wait(waited, timeout_ns);
  lock.lock();
  if (status.code() != Code::kIo) return status;
  if (device_ == asked) drop_queued();
  return status;
}

Status ManagerImpl::wait_blocked(Lock& lock, std::int64_t timeout_ns) {
  if (!blocked_by_attend_) return wait_device(lock, blocked_on_, timeout_ns);
  if (moved_.wait_for(lock, std::chrono::nanoseconds(timeout_ns), [&] { return !attending_; })) return {};
  return Status(Code::kUnavailable, "another thread is attending what is to be coded");
}

Status ManagerImpl::settle_lossy(Lock& lock) {
  constexpr std::int64_t kLongestWaitNs = 30'000'000'000;
  if (!strict_lossy()) return {};
  while (lossy_pending_ != 0) {
    if (run_one(lock, /*background=*/false)) continue;
    if (!stores_.empty()) {
      FIRN_TRY(wait_blocked(lock, kLongestWaitNs));
    } else {
      moved_.wait(lock, [&] { return lossy_pending_ == 0 || !stores_.empty(); });  // the worker has the last one
    }
  }
  return {};
}

// By the lossy codec, and by the exact one where the error is above what the codec was measured with. Without the lock.
Status ManagerImpl::encode_extent(const Job& job, FrameLabel& label, std::span<const SlotId> slots,
                                  std::span<std::byte> out, ThreadPool* threads, Stored& stored) {
  const PageSet& set = layout_.sets[index(label.group)];
  const ExtentShape shape = extent_shape(set, static_cast<std::uint32_t>(slots.size()));
  const Fidelity before = label.fidelity;
  EncodeJob encode{.shape = shape, .label = label, .views = {}, .out = out, .bytes = 0, .status = {}};
  if (job.lossy) {
    stored.codec = lossy_.get();
    encode.label.fidelity = label.fidelity = std::max(before, Fidelity::kLossy);
    memory_->encode(*lossy_, encode, set, slots, threads);
    FIRN_TRY(encode.status);
    stored.bytes = encode.bytes;
    const ErrorBound bound = lossy_->error_bound();
    if (encode.key_error <= bound.keys && encode.value_error <= bound.values) {
      if (!strict_lossy()) return {};
      // From this commit on the tokens are what the frame says, wherever they are.
      DecodeJob decode{.frame = out.first(encode.bytes),
                       .shape = shape,
                       .label = label,
                       .layer = 0,
                       .layer_count = shape.layer_count,
                       .views = {},
                       .status = {}};
      memory_->decode(*lossy_, decode, set, slots, threads);
      stored.replaced = true;
      return decode.status;
    }
  }
  stored.codec = codec_.get();
  encode.label.fidelity = label.fidelity = before;
  memory_->encode(*codec_, encode, set, slots, threads);
  stored.bytes = encode.bytes;
  return encode.status;
}

// Room for a frame in the host tier, at the expense of frames that no live sequence needs.
Result<MemoryTier::Reservation> ManagerImpl::reserve_frame(Lock& lock, std::size_t bytes, std::uint16_t name_space) {
  for (;;) {
    sweep_erased();
    lock.unlock();
    Result<MemoryTier::Reservation> reservation = host_->reserve(bytes);
    lock.lock();
    if (reservation.ok() || reservation.status().code() != Code::kNoSpace || !evict_frame(name_space))
      return reservation;
  }
}

void ManagerImpl::run_store(Lock& lock, const Job& queued, bool background) {
  Job job = queued;
  // What is still there of the extent, from its start: blocks may have been evicted or dropped since they were queued.
  std::array<BlockId, kMaxExtentBlocks> ids{};
  std::uint8_t count = 0;
  bool whole = true;
  for (std::uint8_t i = 0; i < job.count; ++i) {
    Block& block = pool_->block(job.blocks[i].id);
    if (!same_life(job.blocks[i]) || !block.in_use) {
      whole = false;
      continue;
    }
    block.store_queued = false;
    whole = whole && block.full() && block.slot != SlotId::kNone && block.frame == FrameId::kNone;
    if (whole) ids[count++] = job.blocks[i].id;
  }
  // Since it was queued somebody may have asked for exact context, or another copy have come back lossy.
  for (std::uint8_t i = 0; i < count; ++i) job.lossy = job.lossy && may_be_coded(ids[i]);
  // Frames of these did not decode, more than once: see verdicts.h. A lossy one has to be made all the same.
  for (std::uint8_t i = 0; i < count && !job.lossy; ++i)
    if (verdicts_.stands(pool_->block(ids[i]).key, clock_())) {
      counters_.stores_filtered += count;
      return;
    }
  if (count == 0) return;
  Fidelity fidelity = Fidelity::kExact;
  for (std::uint8_t i = 0; i < count; ++i) fidelity = std::max(fidelity, pool_->block(ids[i]).fidelity);
  std::array<SlotId, kMaxExtentBlocks> slots{};
  for (std::uint8_t i = 0; i < count; ++i) {
    Block& block = pool_->block(ids[i]);
    storing_slots_ += block.in_flight++ == 0;
    block.store_queued = true;  // and not a second time while this runs
    update_candidate(ids[i]);
    slots[i] = block.slot;
  }
  const Block& last = pool_->block(ids[count - 1]);
  FrameLabel label{.last_key = last.key,
                   .group = GroupId{index(last.page_set)},
                   .first_position = std::uint64_t{pool_->block(ids[0]).position} * kBlockTokens,
                   .fidelity = fidelity};
  const PageSetId page_set = last.page_set;
  const ExtentShape shape = extent_shape(layout_.sets[index(page_set)], count);
  FrameKey key;
  const std::uint16_t name_space = last.name_space;

  Stored stored;
  frame_policy_->on_miss(policy_name(pool_->block(ids[0]).key), clock_());
  Result<MemoryTier::Reservation> reservation = no_throw([&] {
    return reserve_frame(lock, std::max(codec_->bound(shape), lossy_ ? lossy_->bound(shape) : 0), name_space);
  });
  if (!lock.owns_lock()) lock.lock();
  Status status = reservation.status();
  if (reservation.ok()) {
    lock.unlock();
    status = no_throw([&]() -> Status {
      FIRN_TRY(encode_extent(job, label, std::span(slots).first(count), reservation->bytes(),
                             background ? nullptr : threads_, stored));
      key = frame_key(label, count, stored.codec->id(), stored.codec->version(), stored.codec->artefact(),
                      stored.codec->rate());
      return {};
    });
    lock.lock();
    // What we have just written decodes, unless there is no memory for it: then slots are part this, part that, and are
    // said to be lossy.
    FIRN_CHECK(status.ok() || !stored.replaced || status.code() == Code::kNoSpace);
    // Fences of a lost device pass, and nobody knows whether the slots were written.
    if (status.ok() && bytes_ && device_->timeline().wait(job.fence, 0).code() == Code::kIo)
      status = Status(Code::kIo, "the device is lost");
    counters_.frames_guarded += status.ok() && job.lossy && stored.codec == codec_.get();
    if (status.ok())
      status = no_throw([&]() -> Status {
        if (!host_room(name_space, stored.bytes))
          return Status(Code::kNoSpace, "the namespace has as many bytes in the host tier as its ceiling allows");
        while (frames_->full())
          if (!evict_frame(name_space)) return Status(Code::kNoSpace, "every frame record is held by a live sequence");
        // Duplicate blocks are kept, and so are their frames: the second takes a neighbouring name.
        while (host_->contains(key)) ++key.hi;
        return host_->publish(std::move(*reservation), key, stored.bytes);
      });
  }

  bool all_full = true, wanted = false;
  const auto takes = [&](BlockId id) { return stored.codec == codec_.get() || stored.replaced || !held_exact(id); };
  for (std::uint8_t i = 0; i < count; ++i) {
    Block& block = pool_->block(ids[i]);
    storing_slots_ -= --block.in_flight == 0;
    block.store_queued = false;
    wanted = wanted || takes(ids[i]);
    if (stored.replaced) {
      block.coded = true;
      block.fidelity = std::max(block.fidelity, Fidelity::kLossy);
    }
    all_full = all_full && block.full();
  }
  // Rewound while it was being written: nobody may find these bytes. Or all of it was asked for as exact meanwhile.
  if (status.ok() && (!all_full || !wanted)) {
    erase_frame_bytes(key);
    status = Status(Code::kUnavailable, "not wanted any more");
  }
  if (status.ok()) {
    const FrameId id = frames_->make();
    Frame& frame = frames_->frame(id);
    frame.key = key;
    frame.last_key = label.last_key;
    frame.first_position = label.first_position;
    frame.bytes = static_cast<std::uint32_t>(stored.bytes);
    frame.block_count = count;
    frame.page_set = page_set;
    frame.fidelity = label.fidelity;
    frame.codec = stored.codec->id();
    frame.name_space = name_space;
    namespaces_[name_space].host_bytes += stored.bytes;
    for (std::uint8_t i = 0; i < count; ++i) {
      Block& block = pool_->block(ids[i]);
      frame.blocks[i] = takes(ids[i]) ? ids[i] : BlockId::kNone;
      if (frame.blocks[i] == BlockId::kNone) continue;
      block.frame = id;
      block.frame_index = i;
      note_tiers(ids[i]);
      frame.live = static_cast<std::uint16_t>(frame.live + (block.refs != 0));
    }
    update_frame(id);
    host_raw_bytes_ += shape.raw_bytes();
    counters_.kv_offload_bytes_store += stored.bytes;
    ++counters_.frames_stored;
    counters_.frames_lossy += stored.codec == lossy_.get();
  } else if (status.code() == Code::kNoSpace) {
    ++counters_.frames_refused;
  } else if (status.code() != Code::kUnavailable) {
    ++counters_.frames_failed;
  }
  for (std::uint8_t i = count; i-- > 0;) {  // the tail first, as at free()
    Block& block = pool_->block(ids[i]);
    if (block.release_when_idle && block.in_flight == 0) {
      block.release_when_idle = false;
      settle(ids[i]);
    } else {
      update_candidate(ids[i]);
    }
  }
}

void ManagerImpl::run_load(Lock& lock, const Job& job) {
  Frame& frame = frames_->frame(job.frame);
  const bool alive = frame.in_use && frame.generation == job.frame_generation;
  const PageSet& set = set_of(frame);
  std::array<SlotId, kMaxExtentBlocks> slots, targets;  // by block of the job, and of the frame
  slots.fill(SlotId::kNone);
  targets.fill(SlotId::kNone);
  std::uint32_t wanted = 0;
  for (std::uint8_t i = 0; i < job.count; ++i) {
    Block& block = pool_->block(job.blocks[i].id);
    if (!same_life(job.blocks[i])) continue;
    block.load_queued = false;
    if (!alive || block.frame != job.frame || block.slot != SlotId::kNone) continue;
    slots[i] = take_idle_slot(block.name_space);
    if (slots[i] == SlotId::kNone) continue;  // no room: the block may be asked for again
    if (!slot_serials_.empty()) slot_serials_[index(slots[i])] = namespaces_[block.name_space].serial;
    pool_->set_loading(slots[i], job.blocks[i].id);
    ++loading_slots_;
    ++wanted;
    targets[block.frame_index] = slots[i];
  }
  if (wanted == 0) return drop_kin();
  ++frame.in_flight;
  update_frame(job.frame);
  const FrameLabel label = label_of(frame);
  const ExtentShape shape = extent_shape(set, frame.block_count);
  const FrameKey key = frame.key;
  const Codec& codec = codec_for(frame);

  lock.unlock();
  DecodeJob decode{.frame = {},
                   .shape = shape,
                   .label = label,
                   .layer = 0,
                   .layer_count = set.layer_count,
                   .views = {},
                   .status = {}};
  std::uint64_t read = 0;
  // Whatever happens from here on: somebody waits for these slots.
  const Status done = no_throw([&]() -> Status {
    const MemoryTier::Pin pin = host_->find(key);
    if (!pin) return Status(Code::kCorrupt, "the tier has lost the frame");
    decode.frame = pin.bytes();
    read = decode.frame.size();
    memory_->decode(codec, decode, set, std::span(targets).first(shape.block_count), threads_);
    return std::move(decode.status);
  });
  lock.lock();

  --frame.in_flight;
  for (std::uint8_t i = 0; i < job.count; ++i) {
    if (slots[i] == SlotId::kNone) continue;
    --loading_slots_;
    Block& block = pool_->block(job.blocks[i].id);
    const bool still = same_life(job.blocks[i]) && block.in_use && block.frame == job.frame;
    if (done.ok() && still && block.slot == SlotId::kNone) {
      pool_->bind(slots[i], job.blocks[i].id);
      note_tiers(job.blocks[i].id);
      ++counters_.blocks_promoted;
      update_candidate(job.blocks[i].id);
    } else {
      pool_->put_free_slot(slots[i], /*at_head=*/true);
    }
  }
  ++counters_.frames_read;
  counters_.kv_offload_bytes_load += read;
  const bool empty = std::all_of(frame.blocks.begin(), frame.blocks.begin() + frame.block_count,
                                 [](BlockId block) { return block == BlockId::kNone; });
  // The device, or memory to decode with: the frame is as good as before.
  const bool lost = done.code() == Code::kIo || done.code() == Code::kNoSpace;
  counters_.frames_failed += !done.ok();
  if (!done.ok() && !lost) {
    drop_frame(job.frame, MissReason::kLoadFailed);
  } else if (empty) {
    drop_frame(job.frame, MissReason::kNone);
  } else {
    update_frame(job.frame);
  }
  drop_kin();  // of families that made room: not before, they may have been in this very frame
}

template <class Ready>
Status ManagerImpl::wait_until(Lock& lock, std::int64_t timeout_ns, std::string_view what, Ready ready) {
  using std::chrono::steady_clock;
  constexpr auto kFencePoll = std::chrono::milliseconds(5);
  // A far future that the clock can still add to.
  const auto deadline =
      steady_clock::now() + std::chrono::nanoseconds(std::clamp<std::int64_t>(timeout_ns, 0, 1'000'000'000'000'000));
  for (;;) {
    run_deferred();
    if (ready()) return {};
    if (!worker_.joinable() && run_one(lock, /*background=*/false)) continue;
    const std::int64_t left_ns =
        std::chrono::duration_cast<std::chrono::nanoseconds>(deadline - steady_clock::now()).count();
    if (left_ns <= 0) return Status(Code::kUnavailable, fmt::format("{}: {} ms went by", what, timeout_ns / 1'000'000));
    if (worker_.joinable() && moving()) {
      // Nobody tells when a fence passes.
      moved_.wait_until(lock, deferred_.empty() ? deadline : std::min(deadline, steady_clock::now() + kFencePoll));
    } else if (!stores_.empty() || !loads_.empty()) {
      FIRN_TRY(wait_blocked(lock, left_ns).with_context(what));
    } else if (!deferred_.empty() && step_running(deferred_.front().step)) {
      moved_.wait_until(lock, deadline);
    } else if (!deferred_.empty()) {
      FIRN_TRY(wait_device(lock, deferred_.front().fence, left_ns).with_context(what));
    } else {
      return {};  // nothing left that could change the answer
    }
  }
}

Status ManagerImpl::wait(Ticket ticket, std::int64_t timeout_ns) {
  Lock lock(mutex_);
  return wait_until(lock, timeout_ns, "wait", [&] { return !open_tickets_.contains(index(ticket)); });
}

Status ManagerImpl::wait_idle(std::int64_t timeout_ns) {
  Lock lock(mutex_);
  return wait_until(lock, timeout_ns, "wait_idle", [&] { return !moving(); });
}

Status ManagerImpl::wait_room(SeqId id, std::uint32_t new_tokens, std::int64_t timeout_ns) {
  Lock lock(mutex_);
  constexpr std::int64_t kLongestStepWaitNs = 1'000'000'000;
  FIRN_ASSIGN(const Sequence* begun, get_sequence(id, "wait_room"));
  FIRN_TRY(check_length(begun->tokens.size() + std::uint64_t{new_tokens}).with_context("wait_room"));
  // Waiting lets go of the lock, and another thread may end the sequence meanwhile.
  const auto here = [&] { return find_sequence(id) && !find_sequence(id)->preempted; };
  const auto need_of = [&](const Sequence& seq) {
    const std::uint64_t total = seq.tokens.size() + new_tokens;
    return blocks_needed(seq, total, total);
  };
  const auto fits = [&] { return has_room(*find_sequence(id), need_of(*find_sequence(id))); };
  run_deferred();
  if (copy_must_wait(*find_sequence(id)))
    FIRN_TRY(wait_device(lock, device_->timeline().last(), timeout_ns).with_context("wait_room"));
  // Steps of other threads keep cold blocks from being given up, and their own from being copied away.
  if (here() && running_steps_ != 0 &&
      (step_running(find_sequence(id)->step) || need_of(*find_sequence(id)).slots() > pool_->free_slots()))
    moved_.wait_for(lock, std::chrono::nanoseconds(std::clamp<std::int64_t>(timeout_ns, 0, kLongestStepWaitNs)),
                    [&] { return running_steps_ == 0; });
  // Pressing may find blocks in partial groups; when nothing moves any more and it still does not fit, it never will.
  for (int round = 0; round < 3 && here(); ++round) {
    if (fits()) return {};
    press_cold();
    if (!may_free_slots()) break;
    FIRN_TRY(wait_until(lock, timeout_ns, "wait_room", [&] { return !here() || fits() || !may_free_slots(); }));
  }
  FIRN_ASSIGN(const Sequence* seq, get_sequence(id, "wait_room"));
  if (fits()) return {};
  return Status(Code::kNoSpace,
                fmt::format("wait_room: {} tokens need {} slots, {} are available, and live sequences hold "
                            "the others; free a sequence or raise pool.budget or host.budget",
                            new_tokens, need_of(*seq).slots(), available_slots(seq)));
}

Result<std::uint32_t> ManagerImpl::empty_pool(std::uint8_t poison) {
  Lock lock(mutex_);
  run_deferred();
  if (running_steps_ != 0) return Status(Code::kUnavailable, "empty_pool: a step is being computed");
  if (moving()) return Status(Code::kUnavailable, "empty_pool: blocks are on their way; wait_idle() first");
  std::uint32_t emptied = 0;
  for (BlockId victim; (victim = choose_slot_victim(kAnyNamespace, /*own_only=*/false, {})) != BlockId::kNone;) {
    const std::uint32_t free_before = pool_->free_slots();
    pool_->put_free_slot(evict_with_family(victim), /*at_head=*/false);
    drop_kin();
    emptied += pool_->free_slots() - free_before;
  }
  if (!bytes_) return emptied;
  for (std::uint32_t i = 1; i < pool_->slot_count(); ++i) {
    if (pool_->state(SlotId{i}) != BlockPool::SlotState::kFree) continue;
    FIRN_TRY(memory_->fill(SlotId{i}, poison));
    memory_->note_left(SlotId{i});
  }
  return emptied;
}

Status ManagerImpl::reset() {
  Lock lock(mutex_);
  run_deferred();
  if (!sequences_.empty() || !deferred_.empty())
    return Status(Code::kUnavailable,
                  fmt::format("reset: {} sequences are alive", sequences_.size() + deferred_.size()));
  if (moving()) return Status(Code::kUnavailable, "reset: blocks are on their way; wait_idle() first");
  if (retention_->lease_count() != 0)
    return Status(Code::kUnavailable,
                  fmt::format("reset: {} leases are held; leases() lists by whom", retention_->lease_count()));
  release_retention();
  events_->begin_clear();
  BlockId victim;
  while (slot_policy_->victims({}, {}, {&victim, 1}) != 0) pool_->put_free_slot(evict(victim), /*at_head=*/false);
  while (host_ && evict_frame(kAnyNamespace)) {
  }
  events_->end_clear(clock_());
  ghosts_->clear();
  reap_namespaces();
  return {};
}

}  // namespace firn
