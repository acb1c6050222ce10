// tier_link.h: what is under way between the cache and one tier below the host's: every op that was submitted, and what
// is to happen when it ends. Memory that an op reads or writes belongs to its End, so it lives until the tier has done
// with it, whatever became of the job that asked.
// Threads: any. Its own lock covers the tier's submit and poll; no other lock is held then, and none while an End runs.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "firn/tier.h"

namespace firn::cold {

class TierLink {
 public:
  using End = std::function<void(const Done&)>;
  struct Request {
    Op op;
    End end;
  };
  static constexpr std::uint64_t kBytes = 128 << 10;  // the map and the Done entries of Tier::kMaxInFlight ops

  explicit TierLink(Tier& tier) : tier_(tier) { batches_.reserve(Tier::kMaxInFlight); }
  TierLink(const TierLink&) = delete;
  TierLink& operator=(const TierLink&) = delete;

  Tier& tier() { return tier_; }
  // How many of them the tier took, from the first on: fewer when too many are under way, it refuses, or memory runs
  // out.
  std::size_t submit(std::span<Request> requests, Status* refused = nullptr);
  // Calls the End of every op that has ended since, none of which throws. False: none had.
  bool poll();
  std::uint32_t in_flight() const;

 private:
  struct Batch {
    std::vector<End> ends;
    std::size_t left = 0;
  };
  Tier& tier_;
  mutable std::mutex mutex_;
  std::unordered_map<std::uint64_t, Batch> batches_;  // by ticket
  std::uint32_t in_flight_ = 0;                       // Ends that have not returned
};

}  // namespace firn::cold
