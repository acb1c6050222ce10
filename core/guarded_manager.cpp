#include "core/guarded_manager.h"

namespace firn {

PrefixMatch GuardedManager::match_prefix(std::span<const TokenId> tokens, std::string_view name_space,
                                         Fidelity min_fidelity) const {
  return match_prefix(tokens, BeginOptions{.name_space = name_space, .min_fidelity = min_fidelity});
}

PrefixMatch GuardedManager::match_prefix(std::span<const TokenId> tokens, const BeginOptions& options) const {
  if (to_.here()) {
    try {
      return to_->match_prefix(tokens, options);
    } catch (...) {
    }
  }
  PrefixMatch nothing;
  nothing.first_miss = MissReason::kNotRead;
  return nothing;
}

Result<Begun> GuardedManager::begin(std::span<const TokenId> tokens, const BeginOptions& options) {
  return to_.answer([&] { return to_->begin(tokens, options); });
}

Result<StepPlan> GuardedManager::plan_step(std::span<const StepRequest> requests) const {
  return to_.answer([&] { return to_->plan_step(requests); });
}

Result<std::vector<CopyOrder>> GuardedManager::allocate(SeqId seq, std::uint32_t new_tokens, std::uint32_t lookahead) {
  return to_.answer([&] { return to_->allocate(seq, new_tokens, lookahead); });
}

Result<Fence> GuardedManager::append(std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress k,
                                     DeviceAddress v) {
  return to_.answer([&] { return to_->append(layer, rows, k, v); });
}

Result<Fence> GuardedManager::attend(std::uint32_t layer, std::span<const StepRows> rows, const AttendParams& params,
                                     DeviceAddress q, DeviceAddress out) {
  return to_.answer([&] { return to_->attend(layer, rows, params, q, out); });
}

Status GuardedManager::gather(SeqId seq, std::uint32_t layer, std::uint32_t first, std::uint32_t count,
                              std::span<std::byte> k, std::span<std::byte> v) {
  return to_.answer([&] { return to_->gather(seq, layer, first, count, k, v); });
}

Status GuardedManager::commit(SeqId seq, std::span<const TokenId> tokens) {
  return to_.answer([&] { return to_->commit(seq, tokens); });
}

Result<SeqId> GuardedManager::fork(SeqId seq) {
  return to_.answer([&] { return to_->fork(seq); });
}

Status GuardedManager::rewind(SeqId seq, std::uint32_t n) {
  return to_.answer([&] { return to_->rewind(seq, n); });
}

Status GuardedManager::free(SeqId seq, const Fence& fence) {
  return to_.answer([&] { return to_->free(seq, fence); });
}

Status GuardedManager::preempt(SeqId seq, const Fence& fence) {
  return to_.answer([&] { return to_->preempt(seq, fence); });
}

Result<PrefixMatch> GuardedManager::resume(SeqId seq) {
  return to_.answer([&] { return to_->resume(seq); });
}

bool GuardedManager::has_sequence(SeqId seq) const {
  return to_.value([&] { return to_->has_sequence(seq); });
}

std::uint32_t GuardedManager::token_count(SeqId seq) const {
  return to_.value([&] { return to_->token_count(seq); });
}

std::uint32_t GuardedManager::usable_tokens(SeqId seq) const {
  return to_.value([&] { return to_->usable_tokens(seq); });
}

std::vector<SlotId> GuardedManager::block_table(SeqId seq, PageSetId page_set) const {
  return to_.value([&] { return to_->block_table(seq, page_set); });
}

std::vector<Key> GuardedManager::block_keys(SeqId seq) const {
  return to_.value([&] { return to_->block_keys(seq); });
}

std::vector<Key> GuardedManager::compute_keys(std::span<const TokenId> tokens, std::string_view name_space) const {
  return to_.value([&] { return to_->compute_keys(tokens, name_space); });
}

Result<Ticket> GuardedManager::prefetch(SeqId seq) {
  return to_.answer([&] { return to_->prefetch(seq); });
}

bool GuardedManager::done(Ticket ticket) const {
  // Where nothing can be on its way, nothing is.
  return !to_.here() || to_.value([&] { return to_->done(ticket); });
}

Status GuardedManager::cancel(Ticket ticket) {
  return to_.answer([&] { return to_->cancel(ticket); });
}

std::size_t GuardedManager::pump(std::size_t max_jobs) {
  return to_.value([&] { return to_->pump(max_jobs); });
}

Status GuardedManager::wait(Ticket ticket, std::int64_t timeout_ns) {
  return to_.answer([&] { return to_->wait(ticket, timeout_ns); });
}

Status GuardedManager::wait_idle(std::int64_t timeout_ns) {
  return to_.answer([&] { return to_->wait_idle(timeout_ns); });
}

Status GuardedManager::wait_fence(const Fence& fence, std::int64_t timeout_ns) {
  return to_.answer([&] { return to_->wait_fence(fence, timeout_ns); });
}

Result<bool> GuardedManager::fence_passed(const Fence& fence) const {
  return to_.answer([&] { return to_->fence_passed(fence); });
}

Status GuardedManager::wait_room(SeqId seq, std::uint32_t new_tokens, std::int64_t timeout_ns) {
  return to_.answer([&] { return to_->wait_room(seq, new_tokens, timeout_ns); });
}

Result<std::uint32_t> GuardedManager::empty_pool(std::uint8_t poison) {
  return to_.answer([&] { return to_->empty_pool(poison); });
}

Result<DeviceLoss> GuardedManager::replace_device(Device* device) {
  return to_.answer([&] { return to_->replace_device(device); });
}

Result<PoolResize> GuardedManager::resize_pool(std::uint64_t budget_bytes) {
  return to_.answer([&] { return to_->resize_pool(budget_bytes); });
}

Status GuardedManager::reset() {
  return to_.answer([&] { return to_->reset(); });
}

Status GuardedManager::set_retention(SeqId seq, std::span<const RetentionRange> ranges) {
  return to_.answer([&] { return to_->set_retention(seq, ranges); });
}

Result<PinReport> GuardedManager::pin(std::span<const Key> keys, std::int64_t ttl_ns) {
  return to_.answer([&] { return to_->pin(keys, ttl_ns); });
}

std::uint32_t GuardedManager::unpin(std::span<const Key> keys) {
  return to_.value([&] { return to_->unpin(keys); });
}

Result<LeaseId> GuardedManager::acquire_lease(std::string_view owner, std::span<const Key> keys, std::int64_t ttl_ns) {
  return to_.answer([&] { return to_->acquire_lease(owner, keys, ttl_ns); });
}

Status GuardedManager::renew_lease(LeaseId lease, std::int64_t ttl_ns) {
  return to_.answer([&] { return to_->renew_lease(lease, ttl_ns); });
}

bool GuardedManager::release_lease(LeaseId lease) {
  return to_.value([&] { return to_->release_lease(lease); });
}

std::vector<LeaseInfo> GuardedManager::leases() const {
  return to_.value([&] { return to_->leases(); });
}

Status GuardedManager::set_family(std::span<const Key> keys) {
  return to_.answer([&] { return to_->set_family(keys); });
}

Status GuardedManager::set_quota(std::string_view name_space, const NamespaceQuota& quota) {
  return to_.answer([&] { return to_->set_quota(name_space, quota); });
}

NamespaceUsage GuardedManager::usage(std::string_view name_space) const {
  return to_.value([&] { return to_->usage(name_space); });
}

std::uint64_t GuardedManager::namespace_tag(std::string_view name_space) const {
  return to_.value([&] { return to_->namespace_tag(name_space); });
}

Result<EventBatch> GuardedManager::take_events(std::uint64_t since, std::size_t max,
                                               std::optional<std::string_view> name_space) const {
  return to_.answer([&] { return to_->take_events(since, max, name_space); });
}

Result<EventSnapshot> GuardedManager::event_snapshot(std::optional<std::string_view> name_space) const {
  return to_.answer([&] { return to_->event_snapshot(name_space); });
}

Explanation GuardedManager::explain(std::span<const TokenId> tokens, const BeginOptions& options) const {
  try {
    if (to_.here()) return to_->explain(tokens, options);
    Explanation forked;
    forked.text = to_.forked();
    return forked;
  } catch (...) {
    return {};
  }
}

std::vector<BlockState> GuardedManager::block_states(SeqId seq) const {
  return to_.value([&] { return to_->block_states(seq); });
}

std::string GuardedManager::dump() const {
  return to_.value([&] { return to_->dump(); });
}

Stats GuardedManager::stats() const {
  return to_.value([&] { return to_->stats(); });
}

std::vector<NodePlacement> GuardedManager::host_placement() const {
  return to_.value([&] { return to_->host_placement(); });
}

Result<std::uint64_t> GuardedManager::hash_slot(SlotId slot) const {
  return to_.answer([&] { return to_->hash_slot(slot); });
}

Result<BlockView> GuardedManager::slot_view(SlotId slot, std::uint32_t layer) const {
  return to_.answer([&] { return to_->slot_view(slot, layer); });
}

Result<SlotInfo> GuardedManager::slot_info(SlotId slot) const {
  return to_.answer([&] { return to_->slot_info(slot); });
}

std::vector<SlotId> GuardedManager::reuse_order() const {
  return to_.value([&] { return to_->reuse_order(); });
}

Violations GuardedManager::verify() const {
  try {
    if (!to_.here()) return {to_.forked()};
    return to_->verify();
  } catch (...) {
    return Violations(1);  // not checked
  }
}

}  // namespace firn
