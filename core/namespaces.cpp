#include "core/namespaces.h"

#include <fmt/format.h>

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
  std::uint16_t id = static_cast<std::uint16_t>(all_.size());
  if (free_.empty()) {
    all_.push_back(nullptr);
    pool.ensure_namespaces(static_cast<std::uint32_t>(all_.size()));
  } else {
    id = free_.back();
    free_.pop_back();
  }
  all_[id] = std::move(space);
  by_name_.emplace(name, id);
  // Until somebody needs it, a name is idle: a call that fails after this leaves nothing behind.
  idle_.push_back(id);
  return id;
}

std::optional<std::uint16_t> Namespaces::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  if (found == by_name_.end()) return std::nullopt;
  return found->second;
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
  if (has != space.has_quota) quota_count_ += has ? 1 : -1u;
  space.quota = quota;
  space.has_quota = has;
  if (!has) idle_.push_back(id);
}

std::uint64_t Namespaces::tag(std::string_view name) const { return tag_of(KeyChain(identity_, name)); }

}  // namespace firn
