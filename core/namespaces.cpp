#include "core/namespaces.h"

#include <fmt/format.h>

#include <algorithm>

namespace firn {
namespace {

std::uint64_t tag_of(const KeyChain& chain) {
  std::uint64_t tag = 0;
  for (std::size_t i = 0; i < 8; ++i) tag = tag << 8 | chain.root().bytes[i];
  return tag;
}

// The name twice (in the record and in the map), the record, the map's node, and what events keep of a namespace.
constexpr std::uint64_t kRecordBytes = sizeof(Namespace) + 192;

}  // namespace

Result<std::uint16_t> Namespaces::intern(std::string_view name, Ledger& ledger, BlockPool& pool) {
  if (const std::optional<std::uint16_t> known = find(name)) return *known;
  if (name.size() > kMaxBytes || (free_.empty() && all_.size() >= kMaxCount))
    return Status(Code::kInvalidArgument,
                  fmt::format("namespace: at most {} of them at once, of at most {} bytes each; {} are in use",
                              kMaxCount, kMaxBytes, count()));
  FIRN_ASSIGN(Ledger::Charge charge, ledger.charge(Account::kMetadata, kRecordBytes + 2 * name.size()));
  auto space = std::make_unique<Namespace>(name, identity_);
  space->charge = std::move(charge);
  space->serial = next_serial_++;
  space->tag = tag_of(space->chain);
  if (free_.empty()) {  // lists have room for every number: none of them grows when a name goes
    const std::size_t count = all_.size() + 1;
    if (free_.capacity() < count) free_.reserve(2 * count);
    if (idle_.capacity() < count) idle_.reserve(2 * count);
    pool.ensure_namespaces(static_cast<std::uint32_t>(count));
    all_.push_back(nullptr);
    free_.push_back(static_cast<std::uint16_t>(count - 1));
  }
  const std::uint16_t id = free_.back();
  by_name_.emplace(name, id);
  free_.pop_back();
  space->used = ++clock_;
  all_[id] = std::move(space);
  // Until somebody needs it, a name is idle: a call that fails after this leaves nothing behind.
  note_idle(id);
  return id;
}

std::optional<std::uint16_t> Namespaces::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  if (found == by_name_.end()) return std::nullopt;
  return found->second;
}

std::vector<std::uint8_t> Namespaces::idle_longest(std::size_t most) const {
  std::vector<std::pair<std::uint64_t, std::uint16_t>> idle;
  for (std::size_t id = 1; id < all_.size(); ++id)
    if (all_[id] && all_[id]->sequences == 0 && !all_[id]->has_quota)
      idle.emplace_back(all_[id]->used, static_cast<std::uint16_t>(id));
  if (idle.empty()) return {};
  const std::size_t count = std::min(most, idle.size());
  std::nth_element(idle.begin(), idle.begin() + static_cast<std::ptrdiff_t>(count - 1), idle.end());
  std::vector<std::uint8_t> chosen(all_.size());
  for (std::size_t i = 0; i < count; ++i) chosen[idle[i].second] = 1;
  return chosen;
}

std::uint64_t Namespaces::charged_bytes() const {
  std::uint64_t bytes = 0;
  for (const auto& space : all_)
    if (space) bytes += space->charge.bytes();
  return bytes;
}

void Namespaces::set_quota(std::uint16_t id, const NamespaceQuota& quota) {
  Namespace& space = *all_[id];
  const bool has =
      quota.device_floor != 0 || quota.device_ceiling != 0 || quota.host_floor != 0 || quota.host_ceiling != 0;
  if (has && !space.has_quota) quotas_.push_back(id);
  if (!has) std::erase(quotas_, id);
  space.quota = quota;
  space.has_quota = has;
  if (!has) note_idle(id);
}

std::uint64_t Namespaces::tag(std::string_view name) const { return tag_of(KeyChain(identity_, name)); }

}  // namespace firn
