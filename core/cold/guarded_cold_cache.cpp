#include "core/cold/guarded_cold_cache.h"

#include "core/base/no_throw.h"

namespace firn::cold {

Result<Key> GuardedColdCache::key(std::string_view name, std::string_view name_space) const {
  return no_throw([&] { return to_->key(name, name_space); });  // takes no lock
}
Result<Ticket> GuardedColdCache::lookup(const ColdQuery& query, std::span<ColdFound> out) {
  return to_.answer([&] { return to_->lookup(query, out); });
}
Result<Ticket> GuardedColdCache::store(const ColdRun& run) {
  return to_.answer([&] { return to_->store(run); });
}
Result<Ticket> GuardedColdCache::load(const ColdRun& run) {
  return to_.answer([&] { return to_->load(run); });
}
Result<Ticket> GuardedColdCache::store_state(std::span<const ColdState> states, std::int64_t deadline_ns) {
  return to_.answer([&] { return to_->store_state(states, deadline_ns); });
}
Result<Ticket> GuardedColdCache::load_state(std::span<const ColdState> states, std::int64_t deadline_ns) {
  return to_.answer([&] { return to_->load_state(states, deadline_ns); });
}
Result<Ticket> GuardedColdCache::prefetch(std::span<const Key> keys, ColdKind kind, std::int64_t deadline_ns) {
  return to_.answer([&] { return to_->prefetch(keys, kind, deadline_ns); });
}
std::uint32_t GuardedColdCache::pin(std::span<const Key> keys, ColdKind kind) {
  return to_.value([&] { return to_->pin(keys, kind); });
}
std::uint32_t GuardedColdCache::unpin(std::span<const Key> keys, ColdKind kind) {
  return to_.value([&] { return to_->unpin(keys, kind); });
}
std::uint32_t GuardedColdCache::touch(std::span<const Key> keys, ColdKind kind) {
  return to_.value([&] { return to_->touch(keys, kind); });
}
std::uint32_t GuardedColdCache::erase(std::span<const Key> keys, ColdKind kind) {
  return to_.value([&] { return to_->erase(keys, kind); });
}
std::vector<ColdDone> GuardedColdCache::poll(std::size_t max) {
  return to_.value([&] { return to_->poll(max); });
}
Result<ColdDone> GuardedColdCache::wait(Ticket ticket, std::int64_t timeout_ns) {
  return to_.answer([&] { return to_->wait(ticket, timeout_ns); });
}
Status GuardedColdCache::wait_idle(std::int64_t timeout_ns) {
  return to_.answer([&] { return to_->wait_idle(timeout_ns); });
}
bool GuardedColdCache::cancel(Ticket ticket) {
  return to_.value([&] { return to_->cancel(ticket); });
}
int GuardedColdCache::event_fd() const { return to_.here() ? to_->event_fd() : -1; }
bool GuardedColdCache::pump() {
  return to_.value([&] { return to_->pump(); });
}
std::uint64_t GuardedColdCache::max_state_bytes() const { return to_->max_state_bytes(); }
ColdStats GuardedColdCache::stats() const {
  return to_.value([&] { return to_->stats(); });
}
Status GuardedColdCache::verify() const {
  return to_.answer([&] { return to_->verify(); });
}

}  // namespace firn::cold
