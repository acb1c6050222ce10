// forwarding.h: a Manager that passes every call on to another one. Derive from it to listen to an engine's calls, to
// record them, or to let some of them fail in a test; whatever is not overridden goes through unchanged.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "firn/manager.h"

namespace firn {

class ForwardingManager : public Manager {
 public:
  explicit ForwardingManager(Manager& to) : to_(to) {}  // borrowed; outlives this

  PrefixMatch match_prefix(std::span<const TokenId> tokens, std::string_view name_space,
                           Fidelity min_fidelity) const override {
    return to_.match_prefix(tokens, name_space, min_fidelity);
  }
  PrefixMatch match_prefix(std::span<const TokenId> tokens, const BeginOptions& options) const override {
    return to_.match_prefix(tokens, options);
  }
  Result<Begun> begin(std::span<const TokenId> tokens, const BeginOptions& options) override {
    return to_.begin(tokens, options);
  }
  Result<StepPlan> plan_step(std::span<const StepRequest> requests) const override { return to_.plan_step(requests); }
  Result<std::vector<CopyOrder>> allocate(SeqId seq, std::uint32_t new_tokens, std::uint32_t lookahead) override {
    return to_.allocate(seq, new_tokens, lookahead);
  }
  Result<Fence> append(std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress k, DeviceAddress v) override {
    return to_.append(layer, rows, k, v);
  }
  Result<Fence> attend(std::uint32_t layer, std::span<const StepRows> rows, const AttendParams& params, DeviceAddress q,
                       DeviceAddress out) override {
    return to_.attend(layer, rows, params, q, out);
  }
  Status commit(SeqId seq, std::span<const TokenId> tokens) override { return to_.commit(seq, tokens); }
  Result<SeqId> fork(SeqId seq) override { return to_.fork(seq); }
  Status rewind(SeqId seq, std::uint32_t n) override { return to_.rewind(seq, n); }
  Status free(SeqId seq, const Fence& fence) override { return to_.free(seq, fence); }

  Status preempt(SeqId seq, const Fence& fence) override { return to_.preempt(seq, fence); }
  Result<PrefixMatch> resume(SeqId seq) override { return to_.resume(seq); }

  Status gather(SeqId seq, std::uint32_t layer, std::uint32_t first, std::uint32_t count, std::span<std::byte> k,
                std::span<std::byte> v) override {
    return to_.gather(seq, layer, first, count, k, v);
  }
  bool has_sequence(SeqId seq) const override { return to_.has_sequence(seq); }
  std::uint32_t token_count(SeqId seq) const override { return to_.token_count(seq); }
  std::uint32_t usable_tokens(SeqId seq) const override { return to_.usable_tokens(seq); }
  std::vector<SlotId> block_table(SeqId seq, PageSetId page_set) const override {
    return to_.block_table(seq, page_set);
  }
  std::vector<Key> block_keys(SeqId seq) const override { return to_.block_keys(seq); }
  std::vector<Key> compute_keys(std::span<const TokenId> tokens, std::string_view name_space) const override {
    return to_.compute_keys(tokens, name_space);
  }

  Result<Ticket> prefetch(SeqId seq) override { return to_.prefetch(seq); }
  bool done(Ticket ticket) const override { return to_.done(ticket); }
  Status cancel(Ticket ticket) override { return to_.cancel(ticket); }
  std::size_t pump(std::size_t max_jobs) override { return to_.pump(max_jobs); }
  Status wait(Ticket ticket, std::int64_t timeout_ns) override { return to_.wait(ticket, timeout_ns); }
  Status wait_idle(std::int64_t timeout_ns) override { return to_.wait_idle(timeout_ns); }
  Status wait_fence(const Fence& fence, std::int64_t timeout_ns) override { return to_.wait_fence(fence, timeout_ns); }
  Result<bool> fence_passed(const Fence& fence) const override { return to_.fence_passed(fence); }
  Status wait_room(SeqId seq, std::uint32_t new_tokens, std::int64_t timeout_ns) override {
    return to_.wait_room(seq, new_tokens, timeout_ns);
  }
  Result<std::uint32_t> empty_pool(std::uint8_t poison) override { return to_.empty_pool(poison); }
  Result<DeviceLoss> replace_device(Device* device) override { return to_.replace_device(device); }
  Result<PoolResize> resize_pool(std::uint64_t budget_bytes) override { return to_.resize_pool(budget_bytes); }
  Status reset() override { return to_.reset(); }

  Status set_retention(SeqId seq, std::span<const RetentionRange> ranges) override {
    return to_.set_retention(seq, ranges);
  }
  Result<PinReport> pin(std::span<const Key> keys, std::int64_t ttl_ns) override { return to_.pin(keys, ttl_ns); }
  std::uint32_t unpin(std::span<const Key> keys) override { return to_.unpin(keys); }
  Result<LeaseId> acquire_lease(std::string_view owner, std::span<const Key> keys, std::int64_t ttl_ns) override {
    return to_.acquire_lease(owner, keys, ttl_ns);
  }
  Status renew_lease(LeaseId lease, std::int64_t ttl_ns) override { return to_.renew_lease(lease, ttl_ns); }
  bool release_lease(LeaseId lease) override { return to_.release_lease(lease); }
  std::vector<LeaseInfo> leases() const override { return to_.leases(); }
  Status set_family(std::span<const Key> keys) override { return to_.set_family(keys); }
  Status set_quota(std::string_view name_space, const NamespaceQuota& quota) override {
    return to_.set_quota(name_space, quota);
  }
  NamespaceUsage usage(std::string_view name_space) const override { return to_.usage(name_space); }
  std::uint64_t namespace_tag(std::string_view name_space) const override { return to_.namespace_tag(name_space); }

  Result<EventBatch> take_events(std::uint64_t since, std::size_t max,
                                 std::optional<std::string_view> name_space) const override {
    return to_.take_events(since, max, name_space);
  }
  Result<EventSnapshot> event_snapshot(std::optional<std::string_view> name_space) const override {
    return to_.event_snapshot(name_space);
  }
  Explanation explain(std::span<const TokenId> tokens, const BeginOptions& options) const override {
    return to_.explain(tokens, options);
  }
  std::vector<BlockState> block_states(SeqId seq) const override { return to_.block_states(seq); }
  std::string dump() const override { return to_.dump(); }
  Stats stats() const override { return to_.stats(); }
  const Ledger& ledger() const override { return to_.ledger(); }
  const ModelSpec& model() const override { return to_.model(); }
  const PageLayout& layout() const override { return to_.layout(); }
  const Config& config() const override { return to_.config(); }
  Device& device() override { return to_.device(); }
  std::vector<NodePlacement> host_placement() const override { return to_.host_placement(); }
  Result<std::uint64_t> hash_slot(SlotId slot) const override { return to_.hash_slot(slot); }
  Result<SlotInfo> slot_info(SlotId slot) const override { return to_.slot_info(slot); }
  Result<BlockView> slot_view(SlotId slot, std::uint32_t layer) const override { return to_.slot_view(slot, layer); }
  std::vector<SlotId> reuse_order() const override { return to_.reuse_order(); }
  Violations verify() const override { return to_.verify(); }

 private:
  Manager& to_;
};

}  // namespace firn
