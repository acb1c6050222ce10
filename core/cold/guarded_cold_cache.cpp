#include "core/cold/guarded_cold_cache.h"

#include "core/base/no_throw.h"

namespace firn::cold {
namespace {

constexpr std::string_view kForked = "this cache was made before fork(); make another one in this process";

}  // namespace

GuardedColdCache::~GuardedColdCache() {
  if (birthplace_.is_here()) return;
  [[maybe_unused]] ColdCache* const left = to_.release();
}

// A call that says how it went.
template <class Call>
auto GuardedColdCache::answer(Call call) const noexcept {
  using Answer = decltype(call());
  return no_throw([&]() -> Answer {
    if (!birthplace_.is_here()) return Status(Code::kUnavailable, std::string(kForked));
    return call();
  });
}

// A call that answers with nothing where it cannot answer.
template <class Call>
auto GuardedColdCache::value(Call call) const noexcept {
  using Value = decltype(call());
  if (birthplace_.is_here()) {
    try {
      return call();
    } catch (...) {
    }
  }
  return Value{};
}

Result<Key> GuardedColdCache::key(std::string_view name, std::string_view name_space) const {
  return no_throw([&] { return to_->key(name, name_space); });  // takes no lock
}
Result<Ticket> GuardedColdCache::lookup(const ColdQuery& query, std::span<ColdFound> out) {
  return answer([&] { return to_->lookup(query, out); });
}
Result<Ticket> GuardedColdCache::store(const ColdRun& run) {
  return answer([&] { return to_->store(run); });
}
Result<Ticket> GuardedColdCache::load(const ColdRun& run) {
  return answer([&] { return to_->load(run); });
}
Result<Ticket> GuardedColdCache::store_state(std::span<const ColdState> states, std::int64_t deadline_ns) {
  return answer([&] { return to_->store_state(states, deadline_ns); });
}
Result<Ticket> GuardedColdCache::load_state(std::span<const ColdState> states, std::int64_t deadline_ns) {
  return answer([&] { return to_->load_state(states, deadline_ns); });
}
Result<Ticket> GuardedColdCache::prefetch(std::span<const Key> keys, ColdKind kind, std::int64_t deadline_ns) {
  return answer([&] { return to_->prefetch(keys, kind, deadline_ns); });
}
std::uint32_t GuardedColdCache::pin(std::span<const Key> keys, ColdKind kind) {
  return value([&] { return to_->pin(keys, kind); });
}
std::uint32_t GuardedColdCache::unpin(std::span<const Key> keys, ColdKind kind) {
  return value([&] { return to_->unpin(keys, kind); });
}
std::uint32_t GuardedColdCache::touch(std::span<const Key> keys, ColdKind kind) {
  return value([&] { return to_->touch(keys, kind); });
}
std::uint32_t GuardedColdCache::erase(std::span<const Key> keys, ColdKind kind) {
  return value([&] { return to_->erase(keys, kind); });
}
std::vector<ColdDone> GuardedColdCache::poll(std::size_t max) {
  return value([&] { return to_->poll(max); });
}
Result<ColdDone> GuardedColdCache::wait(Ticket ticket, std::int64_t timeout_ns) {
  return answer([&] { return to_->wait(ticket, timeout_ns); });
}
Status GuardedColdCache::wait_idle(std::int64_t timeout_ns) {
  return answer([&] { return to_->wait_idle(timeout_ns); });
}
bool GuardedColdCache::cancel(Ticket ticket) {
  return value([&] { return to_->cancel(ticket); });
}
int GuardedColdCache::event_fd() const { return birthplace_.is_here() ? to_->event_fd() : -1; }
bool GuardedColdCache::pump() {
  return value([&] { return to_->pump(); });
}
std::uint64_t GuardedColdCache::max_state_bytes() const { return to_->max_state_bytes(); }
ColdStats GuardedColdCache::stats() const {
  return value([&] { return to_->stats(); });
}
Status GuardedColdCache::verify() const {
  return answer([&] { return to_->verify(); });
}

}  // namespace firn::cold
