// faulty_tier.h: a tier that misbehaves on request. Wraps any tier and, from a seed and rates per verb, fails, delays,
// truncates, flips bits and loses; and keeps a log of what it did, so that a test can say what must follow.
// For tests. The same submissions in the same order meet the same faults, whatever threads and clocks do.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "firn/tier.h"

namespace firn {

enum class Fault : std::uint8_t {
  kFail,      // kIo; the wrapped tier never hears of the op
  kDelay,     // ends a number of polls later than it could
  kTruncate,  // put: stores a first part and reports the whole. get: delivers a first part, the rest of it is
              // overwritten
  kFlip,      // put: stores one bit wrong. get: delivers one bit wrong
  kLose,      // reports success and does nothing: a put stored nowhere, a get that misses, an erase that erases nothing
};

class FaultyTier final : public Tier {
 public:
  struct Rates {
    double fail = 0, delay = 0, truncate = 0, flip = 0, lose = 0;  // the four that are not delay exclude each other
  };
  struct Options {
    std::uint64_t seed = 1;
    std::array<Rates, 4> rates;  // by Verb; truncate and flip concern put and get only
    std::uint32_t delay_polls_max = 8;
    static Options all(std::uint64_t seed, const Rates& rates) { return {seed, {rates, rates, rates, rates}, 8}; }
  };
  struct Event {
    Fault fault{};
    Ticket ticket = Ticket::kNone;
    std::uint32_t op = 0;
    Verb verb{};
    FrameKey key;
    std::uint64_t detail =
        0;  // delay: polls; truncate: bytes left; flip: the bit, counted from the first byte's lowest
  };

  // inner outlives this and is submitted to by nobody else.
  FaultyTier(Tier& inner, const Options& options) : inner_(inner), options_(options) {}

  std::string_view name() const override { return "faulty"; }
  Capabilities capabilities() const override;
  std::vector<Event> log() const;

 private:
  struct Pending {
    Op op;
    Done done;                 // ticket and op as the caller knows them
    std::uint64_t random = 0;  // for what is decided when the op has ended
    std::uint32_t delay = 0;
    bool truncate = false, flip = false;
    std::vector<std::byte> changed;  // put: the bytes that are stored instead
    Ticket inner_ticket = Ticket::kNone;
    std::uint32_t inner_op = 0;
  };

  Result<Ticket> do_submit(std::span<const Op> batch) override;
  std::size_t do_poll(std::span<Done> out) override;
  Stats do_stats() const override;
  Status do_verify() const override { return inner_.verify(); }

  bool decide(Pending& pending);
  void spoil_put(Pending& pending);
  void spoil_get(Pending& pending);
  void note(Fault fault, const Pending& pending, std::uint64_t detail);

  Tier& inner_;
  const Options options_;
  mutable std::mutex mutex_;  // also held while the inner tier works: order of submission is order of faults
  std::uint64_t last_ticket_ = 0, ops_ = 0;
  std::vector<Pending> under_way_;
  std::deque<Pending> ended_;  // some still delayed
  std::vector<Event> log_;
};

}  // namespace firn
