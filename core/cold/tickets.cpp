#include "core/cold/tickets.h"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <new>
#include <thread>

#include "core/base/check.h"

namespace firn::cold {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds kPause{50};

// A far future that the clock can still add to.
Clock::time_point after(std::int64_t ns) {
  return Clock::now() + std::chrono::nanoseconds(std::clamp<std::int64_t>(ns, 0, 1'000'000'000'000'000));
}

}  // namespace

Tickets::~Tickets() {
  if (fd_ >= 0) ::close(fd_);
}

std::uint64_t Tickets::metadata_bytes(std::uint32_t max_names, std::uint32_t max_tickets) {
  return std::uint64_t{max_names} * (sizeof(ColdResult) + sizeof(ColdState) + sizeof(Key)) +
         std::uint64_t{max_tickets} * (sizeof(Entry) + 64);
}

Status Tickets::open_event() {
  fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (fd_ < 0) return Status(Code::kIo, fmt::format("eventfd: {}", std::strerror(errno)));
  return {};
}

Result<Ticket> Tickets::open(std::size_t names) {
  if (names == 0 || names > max_names_)
    return Status(Code::kInvalidArgument, fmt::format("{} names in one call; 1 to queue_blocks {}", names, max_names_));
  std::lock_guard lock(mutex_);
  if (names > max_names_ - names_ || entries_.size() >= max_tickets_)
    return Status(Code::kUnavailable,
                  fmt::format("{} names in {} tickets are under way or not collected; queue_blocks is {}, "
                              "queue_tickets {}: poll first",
                              names_, entries_.size(), max_names_, max_tickets_));
  const std::uint64_t id = ++last_;
  Entry& entry = entries_[id];
  entry.done.ticket = Ticket{id};
  entry.names = names;
  names_ += names;
  return Ticket{id};
}

void Tickets::set_job(Ticket ticket, JobId job) {
  std::lock_guard lock(mutex_);
  const auto at = entries_.find(index(ticket));
  if (at != entries_.end() && !at->second.ended) at->second.job = job;
}

JobId Tickets::job(Ticket ticket) const {
  std::lock_guard lock(mutex_);
  const auto at = entries_.find(index(ticket));
  return at == entries_.end() || at->second.ended ? JobId::kNone : at->second.job;
}

void Tickets::drop(Ticket ticket) {
  std::lock_guard lock(mutex_);
  const auto at = entries_.find(index(ticket));
  FIRN_CHECK(at != entries_.end() && !at->second.ended);
  names_ -= at->second.names;
  entries_.erase(at);
}

void Tickets::close(Ticket ticket, std::vector<ColdResult> results) {
  ColdDone done{.ticket = ticket, .status = {}, .found = 0, .results = std::move(results)};
  for (const ColdResult& result : done.results) {
    done.found += result.found;
    if (!done.status.ok() || result.status.ok()) continue;
    try {
      done.status = result.status;
    } catch (const std::bad_alloc&) {
      done.status = Status(result.status.code(), "out of memory");
    }
  }
  std::lock_guard lock(mutex_);
  const auto at = entries_.find(index(ticket));
  FIRN_CHECK(at != entries_.end() && !at->second.ended && at->second.names == done.results.size());
  at->second.done = std::move(done);
  at->second.ended = true;
  ended_.push_back(index(ticket));
  settle_event();
  changed_.notify_all();
}

// Readable while something that nobody waits for has ended.
void Tickets::settle_event() {
  const bool any = std::any_of(ended_.begin(), ended_.end(),
                               [this](std::uint64_t id) { return !entries_.find(id)->second.awaited; });
  eventfd_t value = 0;
  (void)eventfd_read(fd_, &value);
  if (any) (void)eventfd_write(fd_, 1);
}

ColdDone Tickets::take(std::unordered_map<std::uint64_t, Entry>::iterator at) {
  ColdDone done = std::move(at->second.done);
  names_ -= at->second.names;
  entries_.erase(at);
  return done;
}

std::vector<ColdDone> Tickets::poll(std::size_t max) {
  std::vector<ColdDone> out;
  std::lock_guard lock(mutex_);
  out.reserve(std::min(max, ended_.size()));  // before anything is taken
  std::size_t kept = 0;
  for (const std::uint64_t id : ended_) {
    const auto at = entries_.find(id);
    if (out.size() < max && !at->second.awaited)
      out.push_back(take(at));
    else
      ended_[kept++] = id;
  }
  ended_.resize(kept);
  settle_event();
  if (!out.empty()) changed_.notify_all();
  return out;
}

Result<ColdDone> Tickets::wait(Ticket ticket, std::int64_t timeout_ns, const std::function<bool()>& pump) {
  const Clock::time_point deadline = after(timeout_ns);
  std::unique_lock lock(mutex_);
  auto at = entries_.find(index(ticket));
  if (at == entries_.end() || at->second.awaited)
    return Status(Code::kInvalidArgument,
                  fmt::format("nothing to wait for under ticket {}: {}", index(ticket),
                              at == entries_.end() ? "it is none, or was collected" : "another thread waits for it"));
  at->second.awaited = true;
  settle_event();
  for (;;) {
    at = entries_.find(index(ticket));
    if (at->second.ended) break;
    if (Clock::now() >= deadline) {
      at->second.awaited = false;
      return Status(Code::kUnavailable, fmt::format("ticket {} has not ended after {} ns", index(ticket), timeout_ns));
    }
    if (!pump) {
      changed_.wait_until(lock, deadline);
      continue;
    }
    lock.unlock();
    if (!pump()) std::this_thread::sleep_for(kPause);
    lock.lock();
  }
  ended_.erase(std::find(ended_.begin(), ended_.end(), index(ticket)));
  ColdDone done = take(at);
  settle_event();
  changed_.notify_all();
  return done;
}

Status Tickets::wait_idle(std::int64_t timeout_ns, const std::function<bool()>& pump,
                          const std::function<bool()>& idle) {
  const Clock::time_point deadline = after(timeout_ns);
  while (!idle()) {
    if (Clock::now() >= deadline) return Status(Code::kUnavailable, "work is still under way");
    if (!pump || !pump()) std::this_thread::sleep_for(kPause);
  }
  return {};
}

std::uint64_t Tickets::queued_names() const {
  std::lock_guard lock(mutex_);
  return names_;
}

std::uint64_t Tickets::tickets() const {
  std::lock_guard lock(mutex_);
  return entries_.size();
}

Status Tickets::check() const {
  std::lock_guard lock(mutex_);
  std::size_t names = 0, ended = 0;
  for (const auto& [id, entry] : entries_) {
    names += entry.names;
    ended += entry.ended;
  }
  if (names != names_ || ended != ended_.size())
    return Status(Code::kCorrupt, fmt::format("tickets: {} names, {} counted; {} have ended, {} are listed", names,
                                              names_, ended, ended_.size()));
  return {};
}

}  // namespace firn::cold
