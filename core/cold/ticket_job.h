// ticket_job.h: what all jobs of a ticket share: results by name, and one way to end. Memory that runs out in a step
// ends the job: what is decided stays as it is, the rest is kNoSpace, and what the steps held is given back. Ending
// itself needs no memory.
#pragma once

#include <stdexcept>
#include <utility>
#include <vector>

#include "core/base/no_throw.h"
#include "core/cold/jobs.h"

namespace firn::cold {

class TicketJob : public Mover::Job {
 public:
  TicketJob(Rooms& rooms, Ticket ticket, std::size_t names)
      : rooms_(rooms), results_(names), decided_(names, false), ticket_(ticket) {}

  bool run() final {
    try {
      return step();
    } catch (const std::bad_alloc&) {
    } catch (const std::length_error&) {
    }
    end_rest(ColdMiss::kNone, [] { return out_of_memory(); });
    return true;
  }

  void stop(Mover::Stop why) override {
    const bool expired = why == Mover::Stop::kExpired;
    const std::uint64_t names = end_rest(ColdMiss::kUnavailable, [&] {
      return Status(Code::kUnavailable, expired                          ? "the deadline went by first"
                                        : why == Mover::Stop::kCancelled ? "cancelled"
                                                                         : "the cache is closing");
    });
    rooms_.tally.note([&](ColdStats& s) { (expired ? s.expired : s.cancelled) += names; });
  }

 protected:
  // Works one step. True: the job has ended.
  virtual bool step() = 0;
  // Gives back what the steps so far still hold.
  virtual void let_go() {}
  // The job has ended: nobody has to wait for what it was to bring. Before anybody is told.
  virtual void settle() {}
  void decide(std::size_t name, ColdResult result) {
    results_[name] = std::move(result);
    decided_[name] = true;
  }
  // The ticket ends: always the last thing a job does.
  bool end() {
    settle();
    tend(rooms_);
    rooms_.tickets.close(ticket_, std::move(results_));
    return true;
  }

  Rooms& rooms_;
  std::vector<ColdResult> results_;
  std::vector<bool> decided_;

 private:
  // Everything that is not decided ends like this, and the ticket with it. How many names those were.
  template <class Why>
  std::uint64_t end_rest(ColdMiss miss, Why why) {
    let_go();
    std::uint64_t names = 0;
    for (std::size_t i = 0; i < results_.size(); ++i) {
      if (decided_[i]) continue;
      ++names;
      Status status;
      try {
        status = why();
      } catch (const std::bad_alloc&) {
        status = Status(miss == ColdMiss::kNone ? Code::kNoSpace : Code::kUnavailable, "out of memory");
      }
      decide(i, {.miss = miss, .status = std::move(status)});
    }
    end();
    return names;
  }

  const Ticket ticket_;
};

}  // namespace firn::cold
