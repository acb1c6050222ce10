// What all tiers share: bounds, counting, and waiting on top of polling.
#include "firn/tier.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <mutex>
#include <thread>

#include "core/base/check.h"
#include "core/base/no_throw.h"

namespace firn {

std::string_view to_string(Verb verb) {
  switch (verb) {
    case Verb::kPut:
      return "put";
    case Verb::kGet:
      return "get";
    case Verb::kErase:
      return "erase";
    case Verb::kContains:
      return "contains";
  }
  return "unknown";
}

struct Tier::Books {
  // A submitted batch with entries that nobody has taken. op_count 0: an entry came out of do_poll, in another thread,
  // before submit returned here.
  struct Batch {
    Ticket ticket;
    std::uint32_t op_count = 0, taken = 0;
    bool awaited = false;
    std::vector<Verb> verbs;
  };

  mutable std::mutex mutex;  // held while do_poll runs, never while do_submit does: that one copies
  std::vector<Batch> batches;
  std::vector<Done> ended;
  std::uint32_t in_flight = 0;
  Stats counted;

  Batch* find(Ticket ticket) {
    const auto at = std::find_if(batches.begin(), batches.end(), [&](const Batch& b) { return b.ticket == ticket; });
    return at == batches.end() ? nullptr : &*at;
  }
  Batch& find_or_add(Ticket ticket) {
    if (Batch* batch = find(ticket)) return *batch;
    return batches.emplace_back(Batch{.ticket = ticket, .op_count = 0, .taken = 0, .awaited = false, .verbs = {}});
  }
  void drop_if_taken(Batch& batch) {
    if (batch.op_count == 0 || batch.taken < batch.op_count) return;
    std::swap(batch, batches.back());
    batches.pop_back();
  }
  void collect(Tier& tier);
  void count(Verb verb, const Done& done);
  void hand_out(Done& from, Done& to);
};

Tier::Tier() : books_(std::make_unique<Books>()) {}
Tier::~Tier() = default;

namespace {

Status check_op(const Op& op, std::size_t max_frame_bytes) {
  const auto bad = [](std::string what) { return Status(Code::kInvalidArgument, std::move(what)); };
  if (op.deadline_ns < 0) return bad(fmt::format("deadline of {} ns; 0 means the tier's default", op.deadline_ns));
  switch (op.verb) {
    case Verb::kPut:
      if (op.source.empty()) return bad("put of no bytes");
      if (op.source.size() > max_frame_bytes)
        return bad(
            fmt::format("put of {} bytes; the largest frame here is {} bytes", op.source.size(), max_frame_bytes));
      return {};
    case Verb::kGet:
      return op.destination.empty() ? bad("get with no room for the frame; ask contains for its size") : Status{};
    case Verb::kErase:
    case Verb::kContains:
      return {};
  }
  return bad(fmt::format("verb {} does not exist", static_cast<int>(op.verb)));
}

}  // namespace

Result<Ticket> Tier::submit(std::span<const Op> batch) {
  const Capabilities limits = capabilities();
  if (batch.empty() || batch.size() > limits.max_batch)
    return Status(Code::kInvalidArgument,
                  fmt::format("{}: a batch of {} ops; 1 to {} are possible", name(), batch.size(), limits.max_batch));
  for (std::size_t i = 0; i < batch.size(); ++i)
    FIRN_TRY(check_op(batch[i], limits.max_frame_bytes).with_context(fmt::format("{}: op {}", name(), i)));
  const auto op_count = static_cast<std::uint32_t>(batch.size());
  std::vector<Verb> verbs(batch.size());
  std::transform(batch.begin(), batch.end(), verbs.begin(), [](const Op& op) { return op.verb; });
  {
    std::lock_guard lock(books_->mutex);
    // What has been taken is then entered, and ends, without asking for memory.
    books_->batches.reserve(kMaxInFlight);
    books_->ended.reserve(kMaxInFlight);
    if (op_count > kMaxInFlight - books_->in_flight)
      return Status(Code::kUnavailable,
                    fmt::format("{}: {} ops are under way or not collected, {} more would pass {}: poll", name(),
                                books_->in_flight, op_count, kMaxInFlight));
    books_->in_flight += op_count;
  }
  Result<Ticket> ticket = no_throw([&] { return do_submit(batch); });
  std::lock_guard lock(books_->mutex);
  if (!ticket.ok()) {
    books_->in_flight -= op_count;
    return ticket;
  }
  Books::Batch& entry = books_->find_or_add(*ticket);
  entry.op_count = op_count;
  entry.verbs = std::move(verbs);
  return ticket;
}

std::size_t Tier::poll(std::span<Done> out) {
  std::lock_guard lock(books_->mutex);
  books_->collect(*this);
  std::size_t count = 0;
  auto keep = books_->ended.begin();
  for (auto at = books_->ended.begin(); at != books_->ended.end(); ++at) {
    const Books::Batch* batch = books_->find(at->ticket);
    const bool ready = batch->op_count != 0 && !batch->awaited;
    if (count < out.size() && ready) {
      books_->hand_out(*at, out[count++]);
    } else {
      if (keep != at) *keep = std::move(*at);
      ++keep;
    }
  }
  books_->ended.erase(keep, books_->ended.end());
  return count;
}

Result<std::vector<Done>> Tier::wait(Ticket ticket, std::int64_t timeout_ns) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  std::chrono::microseconds pause(1);
  std::unique_lock lock(books_->mutex);
  Books::Batch* batch = books_->find(ticket);
  if (batch == nullptr || batch->taken != 0 || batch->awaited)
    return Status(Code::kInvalidArgument,
                  fmt::format("{}: nothing to wait for under ticket {}: {}", name(), index(ticket),
                              batch == nullptr ? "not submitted here, or all collected"
                              : batch->awaited ? "another thread waits for it"
                                               : "poll has already handed out a part"));
  batch->awaited = true;
  for (;;) {
    books_->collect(*this);
    batch = books_->find(ticket);  // collect and others may have moved it
    const auto ended =
        std::count_if(books_->ended.begin(), books_->ended.end(), [&](const Done& d) { return d.ticket == ticket; });
    if (static_cast<std::uint32_t>(ended) == batch->op_count) break;
    if (timeout_ns <= std::chrono::nanoseconds(Clock::now() - start).count()) {
      batch->awaited = false;
      return Status(Code::kUnavailable, fmt::format("{}: {} of {} ops of ticket {} have ended after {} ns", name(),
                                                    ended, batch->op_count, index(ticket), timeout_ns));
    }
    lock.unlock();
    std::this_thread::sleep_for(pause);  // a store answers in 100 us or more; memory never gets here
    pause = std::min(pause * 2, std::chrono::microseconds(200));
    lock.lock();
  }
  std::vector<Done> result(batch->op_count);
  auto keep = books_->ended.begin();
  for (auto at = books_->ended.begin(); at != books_->ended.end(); ++at) {
    if (at->ticket == ticket) {
      books_->hand_out(*at, result[at->op]);
    } else {
      if (keep != at) *keep = std::move(*at);
      ++keep;
    }
  }
  books_->ended.erase(keep, books_->ended.end());
  return result;
}

void Tier::Books::collect(Tier& tier) {
  std::array<Done, 32> some;
  std::size_t count = 0;
  do {
    count = tier.do_poll(some);
    FIRN_CHECK(count <= some.size() && ended.size() + count <= kMaxInFlight);  // a tier ends each op once
    for (std::size_t i = 0; i < count; ++i) {
      find_or_add(some[i].ticket);
      ended.push_back(std::move(some[i]));
    }
  } while (count == some.size());
}

void Tier::Books::hand_out(Done& from, Done& to) {
  Batch& batch = *find(from.ticket);
  FIRN_CHECK(from.op < batch.op_count);
  count(batch.verbs[from.op], from);
  ++batch.taken;
  --in_flight;
  drop_if_taken(batch);
  to = std::move(from);
}

void Tier::Books::count(Verb verb, const Done& done) {
  const bool ok = done.status.ok();
  if (!ok) ++(done.status.code() == Code::kNoSpace ? counted.refused_no_space : counted.failures);
  switch (verb) {
    case Verb::kPut:
      counted.puts += ok;
      counted.put_bytes += ok ? done.bytes : 0;
      return;
    case Verb::kGet:
      ++counted.gets;
      counted.hits += ok && done.found;
      counted.misses += ok && !done.found;
      counted.get_bytes += ok ? done.bytes : 0;
      return;
    case Verb::kErase:
      counted.erases += ok && done.found;
      return;
    case Verb::kContains:
      return;
  }
}

Tier::Stats Tier::stats() const {
  Stats stats = do_stats();
  std::lock_guard lock(books_->mutex);
  const Stats& counted = books_->counted;
  stats.puts += counted.puts;
  stats.put_bytes += counted.put_bytes;
  stats.gets += counted.gets;
  stats.get_bytes += counted.get_bytes;
  stats.hits += counted.hits;
  stats.misses += counted.misses;
  stats.erases += counted.erases;
  stats.refused_no_space += counted.refused_no_space;
  stats.failures += counted.failures;
  return stats;
}

Status Tier::verify() const {
  {
    std::lock_guard lock(books_->mutex);
    std::uint64_t untaken = 0;
    for (const Books::Batch& batch : books_->batches) untaken += batch.op_count - std::min(batch.taken, batch.op_count);
    if (untaken > books_->in_flight)  // less: a submit is under way in another thread
      return Status(Code::kCorrupt,
                    fmt::format("{}: {} ops in batches, {} in flight", name(), untaken, books_->in_flight));
  }
  return do_verify();
}

// The hands that hold frames: the tier hears of it when one lets go.

MemoryTier::Reservation::Reservation(Reservation&& other) noexcept { *this = std::move(other); }

MemoryTier::Reservation& MemoryTier::Reservation::operator=(Reservation&& other) noexcept {
  if (this == &other) return *this;
  if (tier_ != nullptr) tier_->release_reservation(handle_);
  tier_ = std::exchange(other.tier_, nullptr);
  handle_ = std::exchange(other.handle_, 0);
  bytes_ = std::exchange(other.bytes_, {});
  return *this;
}

MemoryTier::Reservation::~Reservation() {
  if (tier_ != nullptr) tier_->release_reservation(handle_);
}

MemoryTier::Pin::Pin(Pin&& other) noexcept { *this = std::move(other); }

MemoryTier::Pin& MemoryTier::Pin::operator=(Pin&& other) noexcept {
  if (this == &other) return *this;
  if (tier_ != nullptr) tier_->release_pin(handle_);
  tier_ = std::exchange(other.tier_, nullptr);
  handle_ = std::exchange(other.handle_, 0);
  bytes_ = std::exchange(other.bytes_, {});
  return *this;
}

MemoryTier::Pin::~Pin() {
  if (tier_ != nullptr) tier_->release_pin(handle_);
}

MemoryTier::Reservation MemoryTier::make_reservation(std::uint64_t handle, std::span<std::byte> bytes) {
  Reservation reservation;
  reservation.tier_ = this;
  reservation.handle_ = handle;
  reservation.bytes_ = bytes;
  return reservation;
}

MemoryTier::Pin MemoryTier::make_pin(std::uint64_t handle, std::span<const std::byte> bytes) {
  Pin pin;
  pin.tier_ = this;
  pin.handle_ = handle;
  pin.bytes_ = bytes;
  return pin;
}

std::optional<std::uint64_t> MemoryTier::take(Reservation& reservation) {
  if (reservation.tier_ != this) return std::nullopt;
  reservation.tier_ = nullptr;
  reservation.bytes_ = {};
  return std::exchange(reservation.handle_, 0);
}

}  // namespace firn
