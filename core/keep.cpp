// keep.cpp: what is kept longer than its last use alone would keep it.
#include "core/manager_impl.h"

namespace firn {
namespace {
Status not_yet() { return Status(Code::kUnavailable, "this build does not have this call yet"); }
}  // namespace

PrefixMatch ManagerImpl::match_prefix(std::span<const TokenId> tokens, const BeginOptions& options) const {
  return match_prefix(tokens, options.name_space, options.min_fidelity);
}
Status ManagerImpl::set_retention(SeqId, std::span<const RetentionRange>) { return not_yet(); }
Result<PinReport> ManagerImpl::pin(std::span<const Key>, std::int64_t) { return not_yet(); }
std::uint32_t ManagerImpl::unpin(std::span<const Key>) { return 0; }
Result<LeaseId> ManagerImpl::acquire_lease(std::string_view, std::span<const Key>, std::int64_t) { return not_yet(); }
Status ManagerImpl::renew_lease(LeaseId, std::int64_t) { return not_yet(); }
bool ManagerImpl::release_lease(LeaseId) { return false; }
std::vector<LeaseInfo> ManagerImpl::leases() const { return {}; }
Status ManagerImpl::set_family(std::span<const Key>) { return not_yet(); }
Status ManagerImpl::set_quota(std::string_view, const NamespaceQuota&) { return not_yet(); }
NamespaceUsage ManagerImpl::usage(std::string_view) const { return {}; }
std::uint64_t ManagerImpl::namespace_tag(std::string_view) const { return 0; }
Result<EventBatch> ManagerImpl::take_events(std::uint64_t, std::size_t, std::optional<std::string_view>) const {
  return not_yet();
}
Result<EventSnapshot> ManagerImpl::event_snapshot(std::optional<std::string_view>) const { return not_yet(); }
Explanation ManagerImpl::explain(std::span<const TokenId>, const BeginOptions&) const { return {}; }
std::vector<BlockState> ManagerImpl::block_states(SeqId) const { return {}; }
std::string ManagerImpl::dump() const { return "{}"; }

}  // namespace firn
