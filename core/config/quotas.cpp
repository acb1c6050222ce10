#include "core/config/quotas.h"

#include <fmt/format.h>

#include <algorithm>

#include "firn/config.h"

namespace firn {
namespace {

constexpr std::string_view kForm = "write NAME device=FLOOR..CEILING host=FLOOR..CEILING; NAME ...";

Status invalid(std::string what) { return Status(Code::kInvalidArgument, std::move(what)); }

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(' ');
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(' ') - first + 1);
}

// Up to the separator, which is taken away too.
std::string_view take(std::string_view& text, char separator) {
  const std::size_t end = std::min(text.find(separator), text.size());
  const std::string_view taken = text.substr(0, end);
  text.remove_prefix(std::min(text.size(), end + 1));
  return trimmed(taken);
}

bool is_name(std::string_view text) {
  constexpr std::string_view kCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:@/-";
  return !text.empty() && text.size() <= kMaxQuotaName && text.find_first_not_of(kCharacters) == std::string_view::npos;
}

// One end of a range; empty: none.
Result<std::uint64_t> parse_end(std::string_view name, std::string_view text) {
  if (text.empty()) return std::uint64_t{0};
  const Result<std::uint64_t> bytes = parse_bytes(text);
  if (!bytes.ok()) return invalid(fmt::format("{}: {}", name, bytes.status().message()));
  if (*bytes == 0) return invalid(fmt::format("{}: 0 bytes are no quota; leave that end out", name));
  return *bytes;
}

Status parse_range(std::string_view name, std::string_view word, NamespaceQuota& quota) {
  std::string_view range = word;
  const std::string_view tier = take(range, '=');
  const bool on_device = tier == "device";
  const std::size_t dots = range.find("..");
  if ((!on_device && tier != "host") || dots == std::string_view::npos || range.size() == 2)
    return invalid(fmt::format("{}: \"{}\" is no range; {}", name, word.substr(0, 80), kForm));
  std::uint64_t& floor = on_device ? quota.device_floor : quota.host_floor;
  std::uint64_t& ceiling = on_device ? quota.device_ceiling : quota.host_ceiling;
  if (floor != 0 || ceiling != 0) return invalid(fmt::format("{}: {} is here a second time; keep one", name, tier));
  FIRN_ASSIGN(floor, parse_end(name, range.substr(0, dots)));
  FIRN_ASSIGN(ceiling, parse_end(name, range.substr(dots + 2)));
  if (ceiling != 0 && floor > ceiling)
    return invalid(
        fmt::format("{}: the floor {} is above the ceiling {}", name, format_bytes(floor), format_bytes(ceiling)));
  return {};
}

}  // namespace

Result<std::vector<NamedQuota>> parse_quotas(std::string_view text) {
  std::vector<NamedQuota> quotas;
  while (!trimmed(text).empty()) {
    std::string_view entry = take(text, ';');
    NamedQuota made;
    made.name_space = take(entry, ' ');
    if (!is_name(made.name_space))
      return invalid(
          fmt::format("\"{}\" is no name of a namespace for this line (1 to {} letters, digits or ._:@/-); {}",
                      made.name_space.substr(0, 80), kMaxQuotaName, kForm));
    if (std::any_of(quotas.begin(), quotas.end(),
                    [&](const NamedQuota& one) { return one.name_space == made.name_space; }))
      return invalid(fmt::format("{} is here a second time; keep one", made.name_space));
    if (trimmed(entry).empty()) return invalid(fmt::format("{} has no range; {}", made.name_space, kForm));
    while (!trimmed(entry).empty()) {
      entry = trimmed(entry);
      FIRN_TRY(parse_range(made.name_space, take(entry, ' '), made.quota));
    }
    quotas.push_back(std::move(made));
    if (quotas.size() > kMaxQuotas) return invalid(fmt::format("more than {} namespaces", kMaxQuotas));
  }
  return quotas;
}

}  // namespace firn
