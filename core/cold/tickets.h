// tickets.h: what callers wait for. A ticket is opened for a number of names, closed once with their results, and
// handed out once, by poll() or to the thread that waits for it. Threads: any; a lock of its own, held for moments.
// Memory: bounded by the limits given, charged by the caller.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "firn/cold_cache.h"
#include "storage/mover/mover.h"

namespace firn::cold {

class Tickets {
 public:
  Tickets(std::uint32_t max_names, std::uint32_t max_tickets) : max_names_(max_names), max_tickets_(max_tickets) {
    ended_.reserve(max_tickets);  // a ticket ends without asking for memory
  }
  ~Tickets();
  static std::uint64_t metadata_bytes(std::uint32_t max_names, std::uint32_t max_tickets);
  Status open_event();  // once, before anything else

  // kUnavailable: too many names or tickets are under way or not collected. kInvalidArgument: more than ever fits.
  Result<Ticket> open(std::size_t names);
  void set_job(Ticket ticket, JobId job);
  JobId job(Ticket ticket) const;  // kNone: it has ended, or is none
  void drop(Ticket ticket);        // opened in vain: nobody has seen it
  void close(Ticket ticket, std::vector<ColdResult> results);

  std::vector<ColdDone> poll(std::size_t max);
  // pump: called instead of sleeping; false: nothing could be done. Empty: threads do the work.
  Result<ColdDone> wait(Ticket ticket, std::int64_t timeout_ns, const std::function<bool()>& pump);
  // Until nobody's work is under way.
  Status wait_idle(std::int64_t timeout_ns, const std::function<bool()>& pump, const std::function<bool()>& idle);
  int event_fd() const { return fd_; }
  std::uint64_t queued_names() const;
  std::uint64_t tickets() const;
  Status check() const;

 private:
  struct Entry {
    ColdDone done;
    JobId job = JobId::kNone;
    std::size_t names = 0;
    bool ended = false, awaited = false;
  };
  ColdDone take(std::unordered_map<std::uint64_t, Entry>::iterator at);
  void settle_event();

  const std::uint32_t max_names_, max_tickets_;
  int fd_ = -1;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::unordered_map<std::uint64_t, Entry> entries_;
  std::vector<std::uint64_t> ended_;  // oldest first; [max_tickets]
  std::uint64_t last_ = 0;
  std::size_t names_ = 0;
};

}  // namespace firn::cold
