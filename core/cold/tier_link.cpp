#include "core/cold/tier_link.h"

#include <algorithm>
#include <array>

#include "core/base/check.h"
#include "core/base/no_throw.h"

namespace firn::cold {

std::size_t TierLink::submit(std::span<Request> requests, Status* refused) {
  const std::size_t most = std::max<std::size_t>(tier_.capabilities().max_batch, 1);
  std::size_t taken = 0;
  std::lock_guard lock(mutex_);
  while (taken < requests.size()) {
    const std::size_t count = std::min(most, requests.size() - taken);
    // Whatever needs memory comes before the tier is asked; the entry then goes into the map as it is.
    std::unordered_map<std::uint64_t, Batch> entry;
    const Result<Ticket> ticket = no_throw([&]() -> Result<Ticket> {
      std::vector<Op> ops;
      ops.reserve(count);
      for (std::size_t i = 0; i < count; ++i) ops.push_back(requests[taken + i].op);
      entry[0].ends.reserve(count);
      return tier_.submit(ops);
    });
    if (!ticket.ok()) {
      if (refused != nullptr) *refused = ticket.status();
      break;
    }
    auto node = entry.extract(0);
    node.key() = index(*ticket);
    Batch& batch = node.mapped();
    for (std::size_t i = 0; i < count; ++i) batch.ends.push_back(std::move(requests[taken + i].end));
    batch.left = count;
    batches_.insert(std::move(node));
    in_flight_ += static_cast<std::uint32_t>(count);
    taken += count;
  }
  return taken;
}

bool TierLink::poll() {
  std::array<Done, 32> some;
  std::array<End, 32> ends;
  bool any = false;
  for (std::size_t count = some.size(); count == some.size();) {
    {
      std::lock_guard lock(mutex_);
      if (batches_.empty()) return any;
      count = tier_.poll(some);
      for (std::size_t i = 0; i < count; ++i) {
        const auto at = batches_.find(index(some[i].ticket));
        FIRN_CHECK(at != batches_.end() && some[i].op < at->second.ends.size());  // nobody else submits to this tier
        ends[i] = std::move(at->second.ends[some[i].op]);
        if (--at->second.left == 0) batches_.erase(at);
      }
    }
    for (std::size_t i = 0; i < count; ++i) {
      any = true;
      ends[i](some[i]);
      ends[i] = nullptr;
      std::lock_guard lock(mutex_);
      --in_flight_;
    }
  }
  return any;
}

std::uint32_t TierLink::in_flight() const {
  std::lock_guard lock(mutex_);
  return in_flight_;
}

}  // namespace firn::cold
