// ticket_job.h: what all jobs of a ticket share: results by name, and one way to end.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "core/cold/jobs.h"

namespace firn::cold {

class TicketJob : public Mover::Job {
 public:
  TicketJob(Rooms& rooms, Ticket ticket, std::size_t names)
      : rooms_(rooms), results_(names), decided_(names, false), ticket_(ticket) {}

  void stop(Mover::Stop why) override {
    let_go();
    const bool expired = why == Mover::Stop::kExpired;
    std::uint64_t names = 0;
    for (std::size_t i = 0; i < results_.size(); ++i) {
      if (decided_[i]) continue;
      ++names;
      decide(i, {.miss = ColdMiss::kUnavailable,
                 .status = Status(Code::kUnavailable, expired                          ? "the deadline went by first"
                                                      : why == Mover::Stop::kCancelled ? "cancelled"
                                                                                       : "the cache is closing")});
    }
    rooms_.tally.note([&](ColdStats& s) { (expired ? s.expired : s.cancelled) += names; });
    end();
  }

 protected:
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
  const Ticket ticket_;
};

}  // namespace firn::cold
