#include "storage/mover/mover.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "core/base/check.h"

namespace firn {
namespace {

// Nobody tells when a fence passes or a store answers, so threads with jobs that are not ready look this often.
constexpr std::chrono::microseconds kLookAgain{200};
constexpr std::uint32_t kMaxLanes = 16, kMaxCapacity = 1u << 16, kMaxThreads = 64;

std::int64_t steady_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

struct Mover::State {
  enum class Phase : std::uint8_t { kFree, kWaiting, kRunning };
  struct Slot {
    std::unique_ptr<Job> job;
    JobId id = JobId::kNone;
    std::int64_t deadline_ns = 0;
    std::uint8_t priority = 0;
    Phase phase = Phase::kFree;
    bool cancel = false;
  };
  struct Queue {
    Lane lane;
    std::vector<Slot> slots;       // [capacity]
    std::condition_variable work;  // of this lane's threads
    LaneStats counted;
  };

  std::function<std::int64_t()> now_ns;
  mutable std::mutex mutex;  // never held while a job is asked, works or stops
  std::vector<std::unique_ptr<Queue>> queues;
  std::uint64_t last_id = 0;
  std::uint32_t next_lane = 0;  // whose turn it is in pump()
  bool stopping = false;
  bool threaded = false;
  std::vector<std::thread> threads;

  // Takes the next job of a lane that has something to do: ready, cancelled or expired. The lock is let go while jobs
  // are asked. Null: nothing to do. `why` is set where the job has to stop.
  Slot* take(std::unique_lock<std::mutex>& lock, Queue& queue, bool& stop, Stop& why) {
    // Best first; a job that is not ready is passed over this time. Bounded by the lane's capacity.
    std::uint8_t below = 255;
    std::uint64_t after = 0;
    for (;;) {
      Slot* best = nullptr;
      for (Slot& slot : queue.slots) {
        if (slot.phase != Phase::kWaiting) continue;
        const auto id = static_cast<std::uint64_t>(slot.id);
        if (slot.priority > below || (slot.priority == below && id <= after)) continue;  // asked already
        if (best == nullptr || slot.priority > best->priority ||
            (slot.priority == best->priority && slot.id < best->id))
          best = &slot;
      }
      if (best == nullptr) return nullptr;
      below = best->priority;
      after = static_cast<std::uint64_t>(best->id);
      best->phase = Phase::kRunning;
      if (best->cancel || stopping) {
        stop = true;
        why = stopping && !best->cancel ? Stop::kStopped : Stop::kCancelled;
        return best;
      }
      const std::int64_t deadline = best->deadline_ns;
      Job* job = best->job.get();
      lock.unlock();
      const bool expired = deadline != 0 && now_ns() >= deadline;
      const bool ready = !expired && job->ready();
      lock.lock();
      if (best->cancel || expired || ready) {
        stop = best->cancel || !ready;
        why = best->cancel ? Stop::kCancelled : Stop::kExpired;
        return best;
      }
      best->phase = Phase::kWaiting;
    }
  }

  // Works one step of some job of the lane. False: there was none.
  bool work(std::unique_lock<std::mutex>& lock, Queue& queue) {
    bool stop = false;
    Stop why{};
    Slot* slot = take(lock, queue, stop, why);
    if (slot == nullptr) return false;
    ++queue.counted.running;
    Job* job = slot->job.get();
    lock.unlock();
    bool ended = stop;
    if (stop)
      job->stop(why);
    else
      ended = job->run();
    lock.lock();
    --queue.counted.running;
    queue.counted.steps += !stop;
    if (!ended) {
      slot->phase = Phase::kWaiting;
      queue.work.notify_one();
      return true;
    }
    queue.counted.cancelled += stop && why == Stop::kCancelled;
    queue.counted.expired += stop && why == Stop::kExpired;
    ++queue.counted.ended;
    std::unique_ptr<Job> gone = std::move(slot->job);
    *slot = {};
    lock.unlock();
    gone.reset();
    lock.lock();
    return true;
  }

  bool any_waiting(const Queue& queue) const {
    return std::any_of(queue.slots.begin(), queue.slots.end(),
                       [](const Slot& slot) { return slot.phase == Phase::kWaiting; });
  }

  void serve(Queue& queue) {
    std::unique_lock lock(mutex);
    for (;;) {
      if (work(lock, queue)) continue;
      if (any_waiting(queue)) {
        queue.work.wait_for(lock, kLookAgain);
      } else if (stopping) {
        return;
      } else {
        queue.work.wait(lock);
      }
    }
  }
};

std::uint64_t Mover::metadata_bytes(std::span<const Lane> lanes) {
  std::uint64_t bytes = 0;
  for (const Lane& lane : lanes) bytes += sizeof(State::Queue) + std::uint64_t{lane.capacity} * sizeof(State::Slot);
  return bytes;
}

Result<std::unique_ptr<Mover>> Mover::create(Options options) {
  if (options.lanes.empty() || options.lanes.size() > kMaxLanes)
    return Status(Code::kInvalidArgument, fmt::format("mover: {} lanes; 1 to {}", options.lanes.size(), kMaxLanes));
  auto state = std::make_unique<State>();
  for (const Lane& lane : options.lanes) {
    if (lane.capacity == 0 || lane.capacity > kMaxCapacity || lane.threads > kMaxThreads ||
        (options.workers && lane.threads == 0))
      return Status(Code::kInvalidArgument,
                    fmt::format("mover: lane {} of {} jobs and {} threads; 1 to {} and 1 to {}", lane.name,
                                lane.capacity, lane.threads, kMaxCapacity, kMaxThreads));
    auto queue = std::make_unique<State::Queue>();
    queue->lane = lane;
    queue->slots = std::vector<State::Slot>(lane.capacity);
    queue->counted.name = lane.name;
    state->queues.push_back(std::move(queue));
  }
  state->now_ns = options.now_ns ? std::move(options.now_ns) : steady_ns;
  state->threaded = options.workers;
  std::unique_ptr<Mover> mover(new Mover(std::move(state)));  // its destructor joins those that did start
  State* const s = mover->state_.get();
  if (!options.workers) return mover;
  try {
    for (const auto& queue : s->queues)
      for (std::uint32_t i = 0; i < queue->lane.threads; ++i)
        s->threads.emplace_back([s, q = queue.get()] { s->serve(*q); });
  } catch (const std::system_error& error) {
    return Status(Code::kUnavailable, fmt::format("mover: the system refuses a thread ({}): {} have started",
                                                  error.code().message(), s->threads.size()));
  }
  return mover;
}

Mover::Mover(std::unique_ptr<State> state) : state_(std::move(state)) {}

Mover::~Mover() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stopping = true;
    for (const auto& queue : state_->queues) queue->work.notify_all();
  }
  for (std::thread& thread : state_->threads) thread.join();
  std::unique_lock lock(state_->mutex);
  for (const auto& queue : state_->queues)
    while (state_->work(lock, *queue)) {
    }
}

Result<JobId> Mover::submit(LaneId lane, std::unique_ptr<Job>&& job, std::uint8_t priority, std::int64_t deadline_ns) {
  FIRN_CHECK(static_cast<std::size_t>(lane) < state_->queues.size() && job != nullptr);
  State::Queue& queue = *state_->queues[static_cast<std::size_t>(lane)];
  std::lock_guard lock(state_->mutex);
  const auto free = std::find_if(queue.slots.begin(), queue.slots.end(),
                                 [](const State::Slot& slot) { return slot.phase == State::Phase::kFree; });
  if (free == queue.slots.end() || state_->stopping) {
    ++queue.counted.refused;
    return Status(Code::kUnavailable, fmt::format("the {} lane is full: {} jobs are waiting or under way",
                                                  queue.lane.name, queue.slots.size()));
  }
  free->job = std::move(job);
  free->id = JobId{++state_->last_id};
  free->deadline_ns = deadline_ns;
  free->priority = std::min<std::uint8_t>(priority, 254);
  free->phase = State::Phase::kWaiting;
  ++queue.counted.submitted;
  queue.work.notify_one();
  return free->id;
}

bool Mover::cancel(JobId id) {
  std::unique_lock lock(state_->mutex);
  for (const auto& queue : state_->queues)
    for (State::Slot& slot : queue->slots) {
      if (slot.phase == State::Phase::kFree || slot.id != id) continue;
      slot.cancel = true;
      if (slot.phase == State::Phase::kRunning) return true;
      slot.phase = State::Phase::kRunning;  // ours now
      ++queue->counted.running;
      lock.unlock();
      slot.job->stop(Stop::kCancelled);
      lock.lock();
      --queue->counted.running;
      ++queue->counted.cancelled;
      ++queue->counted.ended;
      std::unique_ptr<Job> gone = std::move(slot.job);
      slot = {};
      lock.unlock();
      return true;
    }
  return false;
}

bool Mover::pump() {
  std::unique_lock lock(state_->mutex);
  for (std::size_t i = 0; i < state_->queues.size(); ++i) {
    const std::size_t lane = state_->next_lane;
    state_->next_lane = static_cast<std::uint32_t>((lane + 1) % state_->queues.size());
    if (state_->work(lock, *state_->queues[lane])) return true;
  }
  return false;
}

bool Mover::workers() const { return state_->threaded; }

void Mover::wake() {
  std::lock_guard lock(state_->mutex);
  for (const auto& queue : state_->queues) queue->work.notify_all();
}

std::uint32_t Mover::jobs() const {
  std::lock_guard lock(state_->mutex);
  std::uint32_t count = 0;
  for (const auto& queue : state_->queues)
    for (const State::Slot& slot : queue->slots) count += slot.phase != State::Phase::kFree;
  return count;
}

std::vector<Mover::LaneStats> Mover::stats() const {
  std::lock_guard lock(state_->mutex);
  std::vector<LaneStats> all;
  for (const auto& queue : state_->queues) {
    LaneStats& stats = all.emplace_back(queue->counted);
    for (const State::Slot& slot : queue->slots) stats.waiting += slot.phase == State::Phase::kWaiting;
  }
  return all;
}

Status Mover::check() const {
  std::lock_guard lock(state_->mutex);
  for (const auto& queue : state_->queues) {
    std::uint64_t alive = 0;
    for (const State::Slot& slot : queue->slots) {
      if ((slot.phase == State::Phase::kFree) != (slot.job == nullptr))
        return Status(Code::kCorrupt, fmt::format("mover: lane {}: a slot and its job disagree", queue->lane.name));
      alive += slot.phase != State::Phase::kFree;
    }
    if (queue->counted.submitted != queue->counted.ended + alive)
      return Status(Code::kCorrupt, fmt::format("mover: lane {}: {} submitted, {} ended, {} alive", queue->lane.name,
                                                queue->counted.submitted, queue->counted.ended, alive));
  }
  return {};
}

}  // namespace firn
