// guarded_manager.h: what Manager::create() gives out: the manager behind the two promises of every public call
// (core/base/guarded.h): no exception leaves, and a child of fork() is told so. That state is whole when memory has run
// out is the manager's own care (manager_impl.h).
#pragma once

#include <memory>

#include "core/base/guarded.h"
#include "core/manager_impl.h"

namespace firn {

class GuardedManager final : public Manager {
 public:
  explicit GuardedManager(std::unique_ptr<ManagerImpl> to) : to_(std::move(to), "manager") {}
  ManagerImpl& inside() { return *to_; }

  PrefixMatch match_prefix(std::span<const TokenId> tokens, std::string_view name_space,
                           Fidelity min_fidelity) const override;
  PrefixMatch match_prefix(std::span<const TokenId> tokens, const BeginOptions& options) const override;
  Result<Begun> begin(std::span<const TokenId> tokens, const BeginOptions& options) override;
  Result<StepPlan> plan_step(std::span<const StepRequest> requests) const override;
  Result<std::vector<CopyOrder>> allocate(SeqId seq, std::uint32_t new_tokens, std::uint32_t lookahead) override;
  Result<Fence> append(std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress k, DeviceAddress v) override;
  Result<Fence> attend(std::uint32_t layer, std::span<const StepRows> rows, const AttendParams& params, DeviceAddress q,
                       DeviceAddress out) override;
  Status gather(SeqId seq, std::uint32_t layer, std::uint32_t first, std::uint32_t count, std::span<std::byte> k,
                std::span<std::byte> v) override;
  Status commit(SeqId seq, std::span<const TokenId> tokens) override;
  Result<SeqId> fork(SeqId seq) override;
  Status rewind(SeqId seq, std::uint32_t n) override;
  Status free(SeqId seq, const Fence& fence) override;
  Status preempt(SeqId seq, const Fence& fence) override;
  Result<PrefixMatch> resume(SeqId seq) override;
  bool has_sequence(SeqId seq) const override;
  std::uint32_t token_count(SeqId seq) const override;
  std::uint32_t usable_tokens(SeqId seq) const override;
  std::vector<SlotId> block_table(SeqId seq, PageSetId page_set) const override;
  std::vector<Key> block_keys(SeqId seq) const override;
  std::vector<Key> compute_keys(std::span<const TokenId> tokens, std::string_view name_space) const override;
  Result<Ticket> prefetch(SeqId seq) override;
  bool done(Ticket ticket) const override;
  Status cancel(Ticket ticket) override;
  std::size_t pump(std::size_t max_jobs) override;
  Status wait(Ticket ticket, std::int64_t timeout_ns) override;
  Status wait_idle(std::int64_t timeout_ns) override;
  Status wait_fence(const Fence& fence, std::int64_t timeout_ns) override;
  Result<bool> fence_passed(const Fence& fence) const override;
  Status wait_room(SeqId seq, std::uint32_t new_tokens, std::int64_t timeout_ns) override;
  Result<std::uint32_t> empty_pool(std::uint8_t poison) override;
  Result<DeviceLoss> replace_device(Device* device) override;
  Result<PoolResize> resize_pool(std::uint64_t budget_bytes) override;
  Status reset() override;
  Status set_retention(SeqId seq, std::span<const RetentionRange> ranges) override;
  Result<PinReport> pin(std::span<const Key> keys, std::int64_t ttl_ns) override;
  std::uint32_t unpin(std::span<const Key> keys) override;
  Result<LeaseId> acquire_lease(std::string_view owner, std::span<const Key> keys, std::int64_t ttl_ns) override;
  Status renew_lease(LeaseId lease, std::int64_t ttl_ns) override;
  bool release_lease(LeaseId lease) override;
  std::vector<LeaseInfo> leases() const override;
  Status set_family(std::span<const Key> keys) override;
  Status set_quota(std::string_view name_space, const NamespaceQuota& quota) override;
  NamespaceUsage usage(std::string_view name_space) const override;
  std::uint64_t namespace_tag(std::string_view name_space) const override;
  Result<EventBatch> take_events(std::uint64_t since, std::size_t max,
                                 std::optional<std::string_view> name_space) const override;
  Result<EventSnapshot> event_snapshot(std::optional<std::string_view> name_space) const override;
  Explanation explain(std::span<const TokenId> tokens, const BeginOptions& options) const override;
  std::vector<BlockState> block_states(SeqId seq) const override;
  std::string dump() const override;
  Stats stats() const override;
  const Ledger& ledger() const override { return to_->ledger(); }
  const ModelSpec& model() const override { return to_->model(); }
  const PageLayout& layout() const override { return to_->layout(); }
  const Config& config() const override { return to_->config(); }
  Device& device() override { return to_->device(); }
  std::vector<NodePlacement> host_placement() const override;
  Result<std::uint64_t> hash_slot(SlotId slot) const override;
  Result<BlockView> slot_view(SlotId slot, std::uint32_t layer) const override;
  Result<SlotInfo> slot_info(SlotId slot) const override;
  std::vector<SlotId> reuse_order() const override;
  Violations verify() const override;

 private:
  Guarded<ManagerImpl> to_;
};

}  // namespace firn
