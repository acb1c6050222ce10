// mover.h: runs jobs that have to wait for something, in bounded lanes. It knows lanes, priorities, deadlines and
// whether a job is ready, and nothing of what jobs do.
//
// A lane is for one kind of work and has threads of its own, so that a lane whose jobs are stuck (a disk that does not
// answer) stops no other. Within a lane the job of the highest priority that is ready works its next step; among equals
// the one that has waited longest. A job works in steps, so that a long one lets an urgent one in between.
// The same jobs run by the lanes' threads or, where there are none, by pump() in the caller's thread.
// Threads:  any thread may call; jobs are called by one thread at a time, with no lock of the mover held.
// Memory:   create() allocates the queues; no later call does.
// Lifetime: the destructor stops: what has not ended ends as kStopped.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "firn/ids.h"
#include "firn/status.h"

namespace firn {

enum class LaneId : std::uint8_t {};
enum class JobId : std::uint64_t { kNone = 0 };

class Mover {
 public:
  // Why a job ends without (more of) its work.
  enum class Stop : std::uint8_t { kCancelled, kExpired, kStopped };

  class Job {
   public:
    virtual ~Job() = default;
    // May it work its next step now? Asked often; never blocks, never calls the mover.
    virtual bool ready() { return true; }
    // Works a step. True: the job has ended, and is destroyed.
    virtual bool run() = 0;
    // Called instead of the next step, once: the job settles what it has begun, and is destroyed.
    virtual void stop(Stop why) = 0;
  };

  struct Lane {
    std::string name;
    std::uint32_t capacity = 64;  // jobs that have not ended; the next is refused
    std::uint32_t threads = 1;    // steps at once; counts only with workers
  };
  struct Options {
    std::vector<Lane> lanes;               // by LaneId
    bool workers = true;                   // false: pump() does the work
    std::function<std::int64_t()> now_ns;  // empty: the steady clock
  };
  struct LaneStats {
    std::string name;
    std::uint32_t waiting = 0, running = 0;  // gauges
    std::uint64_t submitted = 0, refused = 0, steps = 0, ended = 0, cancelled = 0, expired = 0;
  };

  static Result<std::unique_ptr<Mover>> create(Options options);
  static std::uint64_t metadata_bytes(std::span<const Lane> lanes);
  ~Mover();

  // deadline_ns: by now_ns; 0: none. Checked before each step. kUnavailable: the lane is full; the job is untouched.
  Result<JobId> submit(LaneId lane, std::unique_ptr<Job>&& job, std::uint8_t priority = 0,
                       std::int64_t deadline_ns = 0);
  // Stops a job: now, in the calling thread, if no step of it is running, else before its next step. False: it has
  // ended.
  bool cancel(JobId id);
  // Works one step of a job that is ready, or stops one whose deadline has passed; lanes take turns. False: none was.
  bool pump();
  bool workers() const;
  // Something that jobs wait for has happened: threads that found nothing ready look again.
  void wake();
  std::uint32_t jobs() const;  // that have not ended, in all lanes
  std::vector<LaneStats> stats() const;
  Status check() const;

 private:
  struct State;
  explicit Mover(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace firn
