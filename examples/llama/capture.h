// capture.h: a Manager that tells what is appended to it and passes every call on: how calibration sees an engine's
// keys and values without the engine knowing. Any engine that calls append can be listened to like this.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "firn/manager.h"

namespace firn::llama {

class ListeningManager final : public Manager {
 public:
  using Listener =
      std::function<void(std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress k, DeviceAddress v)>;
  ListeningManager(Manager& manager, Listener listener) : to_(manager), listener_(std::move(listener)) {}

  PrefixMatch match_prefix(std::span<const TokenId> t, std::string_view n, Fidelity f) const override {
    return to_.match_prefix(t, n, f);
  }
  Result<Begun> begin(std::span<const TokenId> t, const BeginOptions& o) override { return to_.begin(t, o); }
  Result<StepPlan> plan_step(std::span<const StepRequest> r) const override { return to_.plan_step(r); }
  Result<std::vector<CopyOrder>> allocate(SeqId s, std::uint32_t n, std::uint32_t l) override {
    return to_.allocate(s, n, l);
  }
  Result<Fence> append(std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress k, DeviceAddress v) override {
    listener_(layer, rows, k, v);
    return to_.append(layer, rows, k, v);
  }
  Result<Fence> attend(std::uint32_t layer, std::span<const StepRows> rows, const AttendParams& p, DeviceAddress q,
                       DeviceAddress out) override {
    return to_.attend(layer, rows, p, q, out);
  }
  Status commit(SeqId s, std::span<const TokenId> t) override { return to_.commit(s, t); }
  Result<SeqId> fork(SeqId s) override { return to_.fork(s); }
  Status rewind(SeqId s, std::uint32_t n) override { return to_.rewind(s, n); }
  Status free(SeqId s, const Fence& f) override { return to_.free(s, f); }
  std::uint32_t token_count(SeqId s) const override { return to_.token_count(s); }
  std::uint32_t usable_tokens(SeqId s) const override { return to_.usable_tokens(s); }
  std::vector<SlotId> block_table(SeqId s) const override { return to_.block_table(s); }
  std::vector<Key> block_keys(SeqId s) const override { return to_.block_keys(s); }
  std::vector<Key> compute_keys(std::span<const TokenId> t, std::string_view n) const override {
    return to_.compute_keys(t, n);
  }
  Result<Ticket> prefetch(SeqId s) override { return to_.prefetch(s); }
  bool done(Ticket t) const override { return to_.done(t); }
  Status cancel(Ticket t) override { return to_.cancel(t); }
  std::size_t pump(std::size_t n) override { return to_.pump(n); }
  Status wait(Ticket t, std::int64_t ns) override { return to_.wait(t, ns); }
  Status wait_idle(std::int64_t ns) override { return to_.wait_idle(ns); }
  Status wait_room(SeqId s, std::uint32_t n, std::int64_t ns) override { return to_.wait_room(s, n, ns); }
  Result<std::uint32_t> empty_pool(std::uint8_t poison) override { return to_.empty_pool(poison); }
  Status reset() override { return to_.reset(); }
  PrefixMatch match_prefix(std::span<const TokenId> t, const BeginOptions& o) const override {
    return to_.match_prefix(t, o);
  }
  Status set_retention(SeqId s, std::span<const RetentionRange> r) override { return to_.set_retention(s, r); }
  Result<PinReport> pin(std::span<const Key> k, std::int64_t ns) override { return to_.pin(k, ns); }
  std::uint32_t unpin(std::span<const Key> k) override { return to_.unpin(k); }
  Result<LeaseId> acquire_lease(std::string_view o, std::span<const Key> k, std::int64_t ns) override {
    return to_.acquire_lease(o, k, ns);
  }
  Status renew_lease(LeaseId l, std::int64_t ns) override { return to_.renew_lease(l, ns); }
  bool release_lease(LeaseId l) override { return to_.release_lease(l); }
  std::vector<LeaseInfo> leases() const override { return to_.leases(); }
  Status set_family(std::span<const Key> k) override { return to_.set_family(k); }
  Status set_quota(std::string_view n, const NamespaceQuota& q) override { return to_.set_quota(n, q); }
  NamespaceUsage usage(std::string_view n) const override { return to_.usage(n); }
  std::uint64_t namespace_tag(std::string_view n) const override { return to_.namespace_tag(n); }
  Result<EventBatch> take_events(std::uint64_t s, std::size_t m, std::optional<std::string_view> n) const override {
    return to_.take_events(s, m, n);
  }
  Result<EventSnapshot> event_snapshot(std::optional<std::string_view> n) const override {
    return to_.event_snapshot(n);
  }
  Explanation explain(std::span<const TokenId> t, const BeginOptions& o) const override { return to_.explain(t, o); }
  std::vector<BlockState> block_states(SeqId s) const override { return to_.block_states(s); }
  std::string dump() const override { return to_.dump(); }
  Stats stats() const override { return to_.stats(); }
  const Ledger& ledger() const override { return to_.ledger(); }
  const ModelSpec& model() const override { return to_.model(); }
  const Config& config() const override { return to_.config(); }
  Device& device() override { return to_.device(); }
  std::vector<NodePlacement> host_placement() const override { return to_.host_placement(); }
  Result<std::uint64_t> hash_slot(SlotId s) const override { return to_.hash_slot(s); }
  Violations verify() const override { return to_.verify(); }

 private:
  Manager& to_;
  Listener listener_;
};

}  // namespace firn::llama
