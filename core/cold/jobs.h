// jobs.h: what the cache does for a ticket, as jobs of the mover. A job works in steps of a bounded batch, asks the
// owners below it (frames, coder) in turn, and closes its ticket exactly once, however it ends.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "core/cold/extent_coder.h"
#include "core/cold/frame_store.h"
#include "core/cold/tickets.h"
#include "firn/cold_cache.h"
#include "storage/mover/mover.h"

namespace firn::cold {

inline constexpr LaneId kStoreLane{0}, kLoadLane{1}, kTierLane{2};

// The counters of ColdStats that jobs and calls add to.
class Tally {
 public:
  template <class F>
  void note(F&& add) {
    std::lock_guard lock(mutex_);
    add(stats_);
  }
  ColdStats read() const {
    std::lock_guard lock(mutex_);
    return stats_;
  }

 private:
  mutable std::mutex mutex_;
  ColdStats stats_;
};

// What jobs work with; all of it outlives them.
struct Rooms {
  FrameStore& frames;
  const ExtentCoder& coder;
  Tickets& tickets;
  Mover& mover;
  Tally& tally;
  Ghosts* offers = nullptr;  // filtered: it was offered once; by frames' lock; null: whatever is offered is stored
  Timeline* timeline = nullptr;
  ThreadPool* threads = nullptr;
  std::vector<std::uint32_t> batch;      // by group: extents coded at once
  std::uint64_t state_batch_bytes = 0;   // of states at once, though one always goes
  std::atomic<bool>* tending = nullptr;  // somebody looks after what is under way in tiers below
};

inline constexpr std::uint32_t kMaxBatch = 16;

// Makes sure that what was begun in tiers below is looked after until it has ended.
void tend(Rooms& rooms);

// The same for a job that waits for them, where nobody does: there was no memory for a job that would.
inline void look_after(Rooms& rooms) {
  if (!rooms.frames.lower().empty() && !rooms.tending->load()) rooms.frames.poll();
}

std::unique_ptr<Mover::Job> make_store_job(Rooms& rooms, Ticket ticket, const ColdRun& run);
std::unique_ptr<Mover::Job> make_load_job(Rooms& rooms, Ticket ticket, const ColdRun& run);
std::unique_ptr<Mover::Job> make_prefetch_job(Rooms& rooms, Ticket ticket, std::span<const Key> keys, ColdKind kind);
std::unique_ptr<Mover::Job> make_state_store_job(Rooms& rooms, Ticket ticket, std::span<const ColdState> states);
std::unique_ptr<Mover::Job> make_state_load_job(Rooms& rooms, Ticket ticket, std::span<const ColdState> states);
std::unique_ptr<Mover::Job> make_probe_job(Rooms& rooms, Ticket ticket, const ColdQuery& query);

}  // namespace firn::cold
