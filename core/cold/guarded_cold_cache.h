// guarded_cold_cache.h: what ColdCache::create() gives out: the cache behind the two promises of every public call
// (core/base/guarded.h): no exception leaves, and a child of fork() is told so.
#pragma once

#include <memory>

#include "core/base/guarded.h"
#include "firn/cold_cache.h"

namespace firn::cold {

class GuardedColdCache final : public ColdCache {
 public:
  explicit GuardedColdCache(std::unique_ptr<ColdCache> to) : to_(std::move(to), "cache") {}

  Result<Key> key(std::string_view name, std::string_view name_space) const override;
  Result<Ticket> lookup(const ColdQuery& query, std::span<ColdFound> out) override;
  Result<Ticket> store(const ColdRun& run) override;
  Result<Ticket> load(const ColdRun& run) override;
  Result<Ticket> store_state(std::span<const ColdState> states, std::int64_t deadline_ns) override;
  Result<Ticket> load_state(std::span<const ColdState> states, std::int64_t deadline_ns) override;
  Result<Ticket> prefetch(std::span<const Key> keys, ColdKind kind, std::int64_t deadline_ns) override;
  std::uint32_t pin(std::span<const Key> keys, ColdKind kind) override;
  std::uint32_t unpin(std::span<const Key> keys, ColdKind kind) override;
  std::uint32_t touch(std::span<const Key> keys, ColdKind kind) override;
  std::uint32_t erase(std::span<const Key> keys, ColdKind kind) override;
  std::vector<ColdDone> poll(std::size_t max) override;
  Result<ColdDone> wait(Ticket ticket, std::int64_t timeout_ns) override;
  Status wait_idle(std::int64_t timeout_ns) override;
  bool cancel(Ticket ticket) override;
  int event_fd() const override;
  bool pump() override;
  std::uint64_t max_state_bytes() const override;
  ColdStats stats() const override;
  Status verify() const override;

 private:
  Guarded<ColdCache> to_;
};

}  // namespace firn::cold
