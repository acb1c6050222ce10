#include "storage/tier/faulty_tier.h"

#include <algorithm>
#include <utility>

#include "core/base/check.h"

namespace firn {
namespace {

// splitmix64: a good 64-bit hash of a counter, so the n-th op's luck depends on n and the seed alone.
std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
double unit(std::uint64_t random) { return static_cast<double>(random >> 11) * 0x1p-53; }

constexpr std::byte kPoison{0xdd};

}  // namespace

Tier::Capabilities FaultyTier::capabilities() const {
  Capabilities result = inner_.capabilities();
  result.addressable = false;
  for (const Rates& rates : options_.rates) result.immediate = result.immediate && rates.delay == 0;
  return result;
}

std::vector<FaultyTier::Event> FaultyTier::log() const {
  std::lock_guard lock(mutex_);
  return log_;
}

void FaultyTier::note(Fault fault, const Pending& pending, std::uint64_t detail) {
  log_.push_back({fault, pending.done.ticket, pending.done.op, pending.op.verb, pending.op.key, detail});
}

// True: the op goes on to the inner tier. False: it has ended here.
bool FaultyTier::decide(Pending& pending) {
  const Rates& rates = options_.rates[static_cast<std::size_t>(pending.op.verb)];
  const std::uint64_t base = mix(options_.seed ^ mix(ops_++));
  pending.random = mix(base + 3);
  if (unit(mix(base + 1)) < rates.delay && options_.delay_polls_max > 0) {
    pending.delay = 1 + static_cast<std::uint32_t>(pending.random % options_.delay_polls_max);
    note(Fault::kDelay, pending, pending.delay);
  }
  const double luck = unit(mix(base + 2));
  const bool has_payload = pending.op.verb == Verb::kPut || pending.op.verb == Verb::kGet;
  double edge = rates.fail;
  if (luck < edge) {
    pending.done.status = Status(Code::kIo, "injected failure");
    note(Fault::kFail, pending, 0);
    return false;
  }
  if (luck < (edge += rates.lose)) {
    pending.done.found = pending.op.verb == Verb::kErase;
    pending.done.bytes = pending.op.source.size();
    note(Fault::kLose, pending, 0);
    return false;
  }
  pending.truncate = luck < (edge += rates.truncate) && has_payload;
  pending.flip = !pending.truncate && luck < edge + rates.flip && has_payload;
  if (pending.op.verb == Verb::kPut && (pending.truncate || pending.flip)) spoil_put(pending);
  return true;
}

void FaultyTier::spoil_put(Pending& pending) {
  std::span<const std::byte>& source = pending.op.source;
  pending.done.bytes = source.size();
  if (pending.truncate && source.size() > 1) {
    const std::size_t left = 1 + pending.random % (source.size() - 1);
    source = source.first(left);
    note(Fault::kTruncate, pending, left);
  } else if (pending.flip) {
    pending.changed.assign(source.begin(), source.end());
    const std::uint64_t bit = pending.random % (source.size() * 8);
    pending.changed[bit / 8] ^= std::byte{1} << (bit % 8);
    source = pending.changed;  // a vector keeps its bytes in place when it is moved
    note(Fault::kFlip, pending, bit);
  }
}

void FaultyTier::spoil_get(Pending& pending) {
  Done& done = pending.done;
  if (!done.status.ok() || !done.found || done.bytes == 0) return;
  const std::span<std::byte> delivered = pending.op.destination.first(done.bytes);
  if (pending.truncate) {
    const std::size_t left = pending.random % done.bytes;
    std::fill(delivered.begin() + static_cast<std::ptrdiff_t>(left), delivered.end(), kPoison);
    done.bytes = left;
    note(Fault::kTruncate, pending, left);
  } else if (pending.flip) {
    const std::uint64_t bit = pending.random % (done.bytes * 8);
    delivered[bit / 8] ^= std::byte{1} << (bit % 8);
    note(Fault::kFlip, pending, bit);
  }
}

Result<Ticket> FaultyTier::do_submit(std::span<const Op> batch) {
  std::lock_guard lock(mutex_);
  const auto ticket = static_cast<Ticket>(last_ticket_ + 1);
  const std::size_t log_before = log_.size();
  std::vector<Pending> passed, kept;
  std::vector<Op> forwarded;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    Pending pending;
    pending.op = batch[i];
    pending.done.ticket = ticket;
    pending.done.op = static_cast<std::uint32_t>(i);
    const bool passes = decide(pending);
    if (passes) {
      pending.inner_op = static_cast<std::uint32_t>(forwarded.size());
      forwarded.push_back(pending.op);
    }
    (passes ? passed : kept).push_back(std::move(pending));
  }
  if (!forwarded.empty()) {
    Result<Ticket> inner = inner_.submit(forwarded);
    if (!inner.ok()) {
      log_.resize(log_before);
      return inner;
    }
    for (Pending& pending : passed) pending.inner_ticket = *inner;
  }
  last_ticket_ = index(ticket);
  std::move(passed.begin(), passed.end(), std::back_inserter(under_way_));
  std::move(kept.begin(), kept.end(), std::back_inserter(ended_));
  return ticket;
}

std::size_t FaultyTier::do_poll(std::span<Done> out) {
  std::lock_guard lock(mutex_);
  std::array<Done, 32> some;
  for (std::size_t count = some.size(); count == some.size();) {
    count = inner_.poll(some);
    for (std::size_t i = 0; i < count; ++i) {
      const auto at = std::find_if(under_way_.begin(), under_way_.end(), [&](const Pending& p) {
        return p.inner_ticket == some[i].ticket && p.inner_op == some[i].op;
      });
      FIRN_CHECK(at != under_way_.end());
      at->done.status = std::move(some[i].status);
      at->done.found = some[i].found;
      at->done.bytes = at->op.verb == Verb::kPut && at->truncate ? at->done.bytes : some[i].bytes;
      if (at->op.verb == Verb::kGet) spoil_get(*at);
      ended_.push_back(std::move(*at));
      under_way_.erase(at);
    }
  }
  std::size_t count = 0;
  std::deque<Pending> later;
  for (Pending& pending : ended_) {
    const bool ready = pending.delay == 0 || --pending.delay == 0;
    if (ready && count < out.size()) {
      out[count++] = std::move(pending.done);
    } else {
      later.push_back(std::move(pending));
    }
  }
  ended_ = std::move(later);
  return count;
}

// Gauges of the inner tier; the counters are this tier's own.
Tier::Stats FaultyTier::do_stats() const {
  const Stats inner = inner_.stats();
  Stats stats;
  stats.capacity_bytes = inner.capacity_bytes;
  stats.resident_bytes = inner.resident_bytes;
  stats.metadata_bytes = inner.metadata_bytes;
  stats.pinned_bytes = inner.pinned_bytes;
  stats.frames = inner.frames;
  stats.largest_free_bytes = inner.largest_free_bytes;
  return stats;
}

}  // namespace firn
