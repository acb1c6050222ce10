// faulty_manager.h: a Manager that passes every call on, and loses blocks when told to.
#pragma once

#include "firn/manager.h"

namespace firn::llama {

class FaultyManager final : public Manager {
 public:
  explicit FaultyManager(Manager& real) : real_(real) {}

  // The attend call after `calls` more finds the blocks from `usable` tokens on lost, of every sequence.
  void lose_after(int calls, std::uint32_t usable) {
    countdown_ = calls;
    usable_ = usable;
  }
  int losses() const { return losses_; }

  Result<Fence> attend(std::uint32_t layer, std::span<const StepRows> rows, const AttendParams& params, DeviceAddress q,
                       DeviceAddress out) override {
    if (countdown_ >= 0 && countdown_-- == 0) {
      lost_ = true;
      ++losses_;
      return Status(Code::kCorrupt, "a frame did not decode");
    }
    return real_.attend(layer, rows, params, q, out);
  }
  std::uint32_t usable_tokens(SeqId seq) const override {
    return lost_ ? std::min(usable_, real_.usable_tokens(seq)) : real_.usable_tokens(seq);
  }
  Status rewind(SeqId seq, std::uint32_t n) override {
    lost_ = false;
    return real_.rewind(seq, n);
  }

  using Tokens = std::span<const TokenId>;
  PrefixMatch match_prefix(Tokens tokens, std::string_view name, Fidelity least) const override {
    return real_.match_prefix(tokens, name, least);
  }
  Result<Begun> begin(Tokens tokens, const BeginOptions& options) override { return real_.begin(tokens, options); }
  Result<StepPlan> plan_step(std::span<const StepRequest> requests) const override { return real_.plan_step(requests); }
  Result<std::vector<CopyOrder>> allocate(SeqId seq, std::uint32_t n, std::uint32_t lookahead) override {
    return real_.allocate(seq, n, lookahead);
  }
  Result<Fence> append(std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress k, DeviceAddress v) override {
    return real_.append(layer, rows, k, v);
  }
  Status commit(SeqId seq, Tokens tokens) override { return real_.commit(seq, tokens); }
  Result<SeqId> fork(SeqId seq) override { return real_.fork(seq); }
  Status free(SeqId seq, const Fence& fence) override { return real_.free(seq, fence); }
  std::uint32_t token_count(SeqId seq) const override { return real_.token_count(seq); }
  std::vector<SlotId> block_table(SeqId seq) const override { return real_.block_table(seq); }
  std::vector<Key> block_keys(SeqId seq) const override { return real_.block_keys(seq); }
  std::vector<Key> compute_keys(Tokens tokens, std::string_view name) const override {
    return real_.compute_keys(tokens, name);
  }
  Result<Ticket> prefetch(SeqId seq) override { return real_.prefetch(seq); }
  bool done(Ticket ticket) const override { return real_.done(ticket); }
  Status cancel(Ticket ticket) override { return real_.cancel(ticket); }
  std::size_t pump(std::size_t max_jobs) override { return real_.pump(max_jobs); }
  Status wait(Ticket ticket, std::int64_t timeout_ns) override { return real_.wait(ticket, timeout_ns); }
  Status wait_idle(std::int64_t timeout_ns) override { return real_.wait_idle(timeout_ns); }
  Status wait_room(SeqId seq, std::uint32_t n, std::int64_t timeout_ns) override {
    return real_.wait_room(seq, n, timeout_ns);
  }
  Result<std::uint32_t> empty_pool(std::uint8_t poison) override { return real_.empty_pool(poison); }
  Status reset() override { return real_.reset(); }
  PrefixMatch match_prefix(Tokens tokens, const BeginOptions& options) const override {
    return real_.match_prefix(tokens, options);
  }
  Status set_retention(SeqId seq, std::span<const RetentionRange> ranges) override {
    return real_.set_retention(seq, ranges);
  }
  Result<PinReport> pin(std::span<const Key> keys, std::int64_t ttl_ns) override { return real_.pin(keys, ttl_ns); }
  std::uint32_t unpin(std::span<const Key> keys) override { return real_.unpin(keys); }
  Result<LeaseId> acquire_lease(std::string_view owner, std::span<const Key> keys, std::int64_t ttl_ns) override {
    return real_.acquire_lease(owner, keys, ttl_ns);
  }
  Status renew_lease(LeaseId lease, std::int64_t ttl_ns) override { return real_.renew_lease(lease, ttl_ns); }
  bool release_lease(LeaseId lease) override { return real_.release_lease(lease); }
  std::vector<LeaseInfo> leases() const override { return real_.leases(); }
  Status set_family(std::span<const Key> keys) override { return real_.set_family(keys); }
  Status set_quota(std::string_view name, const NamespaceQuota& quota) override { return real_.set_quota(name, quota); }
  NamespaceUsage usage(std::string_view name) const override { return real_.usage(name); }
  std::uint64_t namespace_tag(std::string_view name) const override { return real_.namespace_tag(name); }
  Result<EventBatch> take_events(std::uint64_t since, std::size_t max,
                                 std::optional<std::string_view> name) const override {
    return real_.take_events(since, max, name);
  }
  Result<EventSnapshot> event_snapshot(std::optional<std::string_view> name) const override {
    return real_.event_snapshot(name);
  }
  Explanation explain(Tokens tokens, const BeginOptions& options) const override {
    return real_.explain(tokens, options);
  }
  std::vector<BlockState> block_states(SeqId seq) const override { return real_.block_states(seq); }
  std::string dump() const override { return real_.dump(); }
  Stats stats() const override { return real_.stats(); }
  const Ledger& ledger() const override { return real_.ledger(); }
  const ModelSpec& model() const override { return real_.model(); }
  const Config& config() const override { return real_.config(); }
  Device& device() override { return real_.device(); }
  std::vector<NodePlacement> host_placement() const override { return real_.host_placement(); }
  Result<std::uint64_t> hash_slot(SlotId slot) const override { return real_.hash_slot(slot); }
  Violations verify() const override { return real_.verify(); }

 private:
  Manager& real_;
  int countdown_ = -1, losses_ = 0;
  std::uint32_t usable_ = 0;
  bool lost_ = false;
};

}  // namespace firn::llama
