// quotas.h: the setting "quotas": what namespaces may have of each tier, for deployments whose tenants are known
// beforehand. One line of text, so that a file, the environment and a flag say it alike.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "firn/retention.h"
#include "firn/status.h"

namespace firn {

inline constexpr std::size_t kMaxQuotas = 1024;
inline constexpr std::size_t kMaxQuotaName = 64;  // longer names, and other characters: Manager::set_quota()

struct NamedQuota {
  std::string name_space;
  NamespaceQuota quota;
};

// "alice device=2GiB..8GiB host=..64GiB; bob device=..4GiB": a floor, a ceiling, or both, of either tier.
Result<std::vector<NamedQuota>> parse_quotas(std::string_view text);

}  // namespace firn
