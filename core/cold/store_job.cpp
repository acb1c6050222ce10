// store_job.cpp: blocks and states into frames. A step: choose a batch of extents, make room for each, code them all,
// publish them. Extents are cut here and nowhere else: at multiples of eight blocks of position, and where a block is
// in the cache already.
#include <fmt/format.h>

#include <algorithm>

#include "core/cold/names.h"
#include "core/cold/ticket_job.h"
#include "firn/thread_pool.h"
#include "storage/codec/state_frame.h"

namespace firn::cold {
namespace {

class Storing : public TicketJob {
 public:
  Storing(Rooms& rooms, Ticket ticket, std::size_t names) : TicketJob(rooms, ticket, names) {
    expected_.reserve(names);
  }
  ~Storing() override { Storing::settle(); }
  bool ready() override {
    if (!waits_for_room_) return true;
    look_after(rooms_);
    return rooms_.frames.room_changes() != seen_;
  }

 protected:
  // Look-ups say `pending` of the name until this job has ended.
  void expect(const Lock& lock, ColdKind kind, const Key& key) {
    expected_.push_back(rooms_.frames.expect(lock, kind, key));
  }
  // Room for as many of them as there is now, from the first on. The first that has none says why.
  std::vector<MemoryTier::Reservation> reserve(std::span<const std::size_t> sizes, Status& status) {
    seen_ = rooms_.frames.room_changes();
    std::vector<MemoryTier::Reservation> rooms;
    rooms.reserve(sizes.size());
    for (const std::size_t bytes : sizes) {
      Result<MemoryTier::Reservation> room = rooms_.frames.reserve(bytes);
      if (!room.ok()) {
        status = room.status();
        break;
      }
      rooms.push_back(std::move(*room));
    }
    waits_for_room_ = rooms.empty() && status.code() == Code::kUnavailable;
    return rooms;
  }
  // Before anything is published: room to remember so many more frames.
  void expect_published(std::size_t count) {
    const std::size_t needed = stored_.size() + count;
    if (needed > stored_.capacity()) stored_.reserve(std::max(needed, 2 * stored_.capacity()));
  }
  void published(FrameId frame, std::uint32_t life) { stored_.emplace_back(frame, life); }
  // What came first in a run outlives what came after it.
  void settle_order() {
    const Lock lock = rooms_.frames.lock();
    for (auto at = stored_.rbegin(); at != stored_.rend(); ++at)
      if (rooms_.frames.life(lock, at->first) == at->second) rooms_.frames.renew(lock, at->first);
  }
  std::vector<std::pair<FrameId, std::uint32_t>> stored_;

 private:
  void settle() override {
    if (expected_.empty()) return;
    const Lock lock = rooms_.frames.lock();
    for (const std::uint32_t name : expected_) rooms_.frames.expect_no_more(lock, name);
    expected_.clear();
  }

  std::vector<std::uint32_t> expected_;
  std::uint64_t seen_ = 0;
  bool waits_for_room_ = false;
};

class StoreJob final : public Storing {
 public:
  StoreJob(Rooms& rooms, Ticket ticket, const ColdRun& run)
      : Storing(rooms, ticket, run.keys.size()), run_(run), after_(run.after) {
    const Lock lock = rooms_.frames.lock();
    for (const Key& key : run_.keys) expect(lock, ColdKind::kBlock, key);
  }

  bool ready() override {
    if (after_.kind != Fence::Kind::kNone) {
      if (!rooms_.timeline->passed(after_)) return false;
      // Fences of a lost device pass, and nobody knows what the blocks hold.
      lost_ = rooms_.timeline->wait(after_, 0).code() == Code::kIo;
      after_ = {};
    }
    return Storing::ready();
  }

  bool step() override {
    if (lost_) return fail_all(Status(Code::kIo, "the device is lost"));
    const std::vector<Piece> pieces = choose();
    if (pieces.empty()) {
      settle_order();
      return end();
    }
    std::vector<std::size_t> sizes;
    for (const Piece& piece : pieces) sizes.push_back(rooms_.coder.bound(run_.group, piece.count));
    Status no_room;
    std::vector<MemoryTier::Reservation> room = reserve(sizes, no_room);
    tend(rooms_);
    if (room.empty() && no_room.code() != Code::kUnavailable) {
      refuse(pieces.front(), no_room);
      return false;
    }
    if (!room.empty()) code(pieces, room);
    return false;
  }

 private:
  struct Piece {
    std::uint32_t first = 0, count = 0;
  };

  bool fail_all(const Status& status) {
    for (std::size_t i = 0; i < results_.size(); ++i)
      if (!decided_[i]) decide(i, {.status = status});
    return end();
  }

  bool aligned(std::uint32_t block) const {
    return (run_.first_position / kBlockTokens + block) % kMaxExtentBlocks == 0;
  }

  // The next extents that need storing. Names that are here, or are not admitted, are decided on the way.
  std::vector<Piece> choose() {
    const std::uint32_t most = rooms_.batch[index(run_.group)], count = static_cast<std::uint32_t>(run_.keys.size());
    std::vector<Piece> pieces;
    const Lock lock = rooms_.frames.lock();
    const auto wanted = [&](std::uint32_t i) {
      if (decided_[i]) return false;
      const Key& key = run_.keys[i];
      if (rooms_.frames.table().find(ColdKind::kBlock, key) != NameId::kNone) {
        rooms_.frames.touch(lock, ColdKind::kBlock, key);
        decide(i, {.found = true, .already = true});
        return false;
      }
      if (rooms_.offers != nullptr && rooms_.offers->reason(key) != MissReason::kFiltered) {
        rooms_.offers->remember(key, MissReason::kFiltered);
        decide(i, {.miss = ColdMiss::kFiltered});
        return false;
      }
      return true;
    };
    for (std::uint32_t i = next_; i < count && pieces.size() < most;) {
      if (!wanted(i)) {
        ++i;
        continue;
      }
      rooms_.frames.missed(lock, run_.keys[i]);
      std::uint32_t end = i + 1;
      while (end < count && end - i < kMaxExtentBlocks && !aligned(end) && wanted(end)) ++end;
      pieces.push_back({i, end - i});
      i = end;
    }
    next_ = pieces.empty() ? count : pieces.front().first;
    return pieces;
  }

  void refuse(const Piece& piece, const Status& status) {
    for (std::uint32_t i = piece.first; i < piece.first + piece.count; ++i) decide(i, {.status = status});
    rooms_.tally.note([&](ColdStats& s) { s.refused += piece.count; });
  }

  // As many of the pieces as have room.
  void code(std::span<const Piece> pieces, std::span<MemoryTier::Reservation> room) {
    pieces = pieces.first(room.size());
    std::vector<ExtentCoder::Encode> extents(pieces.size());
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      extents[i].first = pieces[i].first;
      extents[i].count = pieces[i].count;
      extents[i].room = room[i].bytes();
    }
    rooms_.coder.encode(run_, extents);
    std::uint64_t blocks = 0, bytes = 0, guarded = 0;
    const std::size_t before = stored_.size();
    expect_published(extents.size());
    {
      Lock lock = rooms_.frames.lock();
      for (std::size_t i = 0; i < extents.size(); ++i) {
        const ExtentCoder::Encode& extent = extents[i];
        if (!extent.status.ok()) {
          for (std::uint32_t b = 0; b < extent.count; ++b) decide(extent.first + b, {.status = extent.status});
          continue;
        }
        const Result<FrameId> frame = rooms_.frames.publish(lock, std::move(room[i]), facts(extent));
        if (!frame.ok()) {
          refuse({extent.first, extent.count}, frame.status());
          continue;
        }
        for (std::uint32_t b = 0; b < extent.count; ++b)
          decide(extent.first + b,
                 {.found = true, .already = *frame == FrameId::kNone, .fidelity = extent.label.fidelity});
        if (*frame == FrameId::kNone) continue;
        published(*frame, rooms_.frames.life(lock, *frame));
        blocks += extent.count;
        bytes += extent.bytes;
        guarded += extent.guarded;
      }
    }
    rooms_.tally.note([&](ColdStats& s) {
      s.blocks_stored += blocks;
      s.stored_bytes += bytes;
      s.guarded_frames += guarded;
    });
    rooms_.frames.write_through(std::span(stored_).subspan(before));
    tend(rooms_);
  }

  FrameStore::NewFrame facts(const ExtentCoder::Encode& extent) const {
    FrameStore::NewFrame frame;
    frame.key = extent.key;
    frame.label = extent.label;
    frame.kind = ColdKind::kBlock;
    frame.block_count = static_cast<std::uint8_t>(extent.count);
    frame.bytes = extent.bytes;
    frame.raw_bytes = rooms_.coder.shape(run_.group, extent.count).raw_bytes();
    for (std::uint32_t b = 0; b < extent.count; ++b) {
      frame.names[b] = run_.keys[extent.first + b];
      if (!run_.bound.empty() && run_.bound[extent.first + b] != 0)
        frame.bound = static_cast<std::uint8_t>(frame.bound | 1u << b);
    }
    frame.facts = {.parent = stored_.empty() ? FrameId::kNone : stored_.back().first,
                   .position = static_cast<std::uint32_t>(extent.label.first_position),
                   .tokens = extent.count * kBlockTokens,
                   .key_hash = policy_name(run_.keys[extent.first])};
    return frame;
  }

  const ColdRun run_;
  Fence after_;
  bool lost_ = false;
  std::uint32_t next_ = 0;  // everything before it is decided
};

class StateStoreJob final : public Storing {
 public:
  StateStoreJob(Rooms& rooms, Ticket ticket, std::span<const ColdState> states)
      : Storing(rooms, ticket, states.size()), states_(states.begin(), states.end()) {
    const Lock lock = rooms_.frames.lock();
    for (const ColdState& state : states_) expect(lock, ColdKind::kState, state.key);
  }

  bool step() override {
    const std::vector<std::size_t> chosen = choose();
    if (chosen.empty()) return end();
    std::vector<std::size_t> sizes;
    for (const std::size_t i : chosen) sizes.push_back(state_bound(states_[i].bytes.size()));
    Status no_room;
    std::vector<MemoryTier::Reservation> room = reserve(sizes, no_room);
    tend(rooms_);
    if (room.empty() && no_room.code() != Code::kUnavailable) {
      decide(chosen.front(), {.status = no_room});
      rooms_.tally.note([](ColdStats& s) { ++s.refused; });
      return false;
    }
    if (!room.empty()) code(chosen, room);
    return false;
  }

 private:
  std::vector<std::size_t> choose() {
    std::vector<std::size_t> chosen;
    std::uint64_t bytes = 0;
    const Lock lock = rooms_.frames.lock();
    for (; next_ < states_.size() && decided_[next_]; ++next_) {
    }
    for (std::size_t i = next_; i < states_.size() && chosen.size() < kMaxBatch; ++i) {
      if (decided_[i]) continue;
      if (rooms_.frames.touch(lock, ColdKind::kState, states_[i].key)) {
        decide(i, {.found = true, .already = true});
        continue;
      }
      bytes += state_bound(states_[i].bytes.size());
      if (!chosen.empty() && bytes > rooms_.state_batch_bytes) break;
      chosen.push_back(i);
    }
    return chosen;
  }

  void code(std::span<const std::size_t> chosen, std::span<MemoryTier::Reservation> room) {
    chosen = chosen.first(room.size());
    std::vector<std::size_t> sizes(chosen.size());
    const auto write = [&](std::size_t i) {
      const ColdState& state = states_[chosen[i]];
      sizes[i] = write_state(state.key, state.bound, state.bytes, room[i].bytes());
    };
    if (rooms_.threads != nullptr)
      rooms_.threads->parallel_for(chosen.size(), write);
    else
      for (std::size_t i = 0; i < chosen.size(); ++i) write(i);
    std::uint64_t count = 0, bytes = 0;
    const std::size_t before = stored_.size();
    expect_published(chosen.size());
    {
      Lock lock = rooms_.frames.lock();
      for (std::size_t i = 0; i < chosen.size(); ++i) {
        const ColdState& state = states_[chosen[i]];
        FrameStore::NewFrame facts;
        facts.key = state_key(state.key);
        facts.kind = ColdKind::kState;
        facts.names[0] = state.key;
        facts.bound = state.bound ? 1 : 0;
        facts.bytes = sizes[i];
        facts.raw_bytes = state.bytes.size();
        facts.facts.key_hash = policy_name(state.key);
        const Result<FrameId> frame = rooms_.frames.publish(lock, std::move(room[i]), facts);
        if (!frame.ok()) {
          decide(chosen[i], {.status = frame.status()});
          continue;
        }
        decide(chosen[i], {.found = true, .already = *frame == FrameId::kNone});
        if (*frame == FrameId::kNone) continue;
        published(*frame, rooms_.frames.life(lock, *frame));
        ++count;
        bytes += sizes[i];
      }
    }
    rooms_.tally.note([&](ColdStats& s) {
      s.states_stored += count;
      s.stored_bytes += bytes;
    });
    rooms_.frames.write_through(std::span(stored_).subspan(before));
    tend(rooms_);
  }

  const std::vector<ColdState> states_;  // what they point at is the caller's
  std::size_t next_ = 0;
};

// Looks after what is under way in the tiers below, until nothing is.
class TendJob final : public Mover::Job {
 public:
  explicit TendJob(Rooms& rooms) : rooms_(rooms) {}
  bool ready() override {
    rooms_.frames.poll();
    return rooms_.frames.under_way() == 0;
  }
  bool run() override {
    rooms_.tending->store(false);
    // Something may have begun in between, by somebody who saw that we were here.
    return rooms_.frames.under_way() == 0 || rooms_.tending->exchange(true);
  }
  void stop(Mover::Stop) override { rooms_.tending->store(false); }

 private:
  Rooms& rooms_;
};

}  // namespace

void tend(Rooms& rooms) {
  if (rooms.frames.lower().empty() || rooms.frames.under_way() == 0 || rooms.tending->exchange(true)) return;
  try {
    std::unique_ptr<Mover::Job> job = std::make_unique<TendJob>(rooms);
    if (rooms.mover.submit(kTierLane, std::move(job)).ok()) return;
  } catch (const std::bad_alloc&) {  // then whoever waits looks after it
  }
  rooms.tending->store(false);  // or the cache is closing
}

std::unique_ptr<Mover::Job> make_store_job(Rooms& rooms, Ticket ticket, const ColdRun& run) {
  return std::make_unique<StoreJob>(rooms, ticket, run);
}
std::unique_ptr<Mover::Job> make_state_store_job(Rooms& rooms, Ticket ticket, std::span<const ColdState> states) {
  return std::make_unique<StateStoreJob>(rooms, ticket, states);
}

}  // namespace firn::cold
