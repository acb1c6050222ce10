// factory.cpp: policies by name. docs/policies.md has a page on each.
#include <fmt/format.h>

#include <array>

#include "policy/ranking.h"

namespace firn {
namespace {

struct Entry {
  std::string_view name;
  std::unique_ptr<Ranking> (*make)(std::uint32_t);
  std::uint32_t bytes_per_id;     // of two rankings, and of what both have in common
  std::uint32_t fixed_bytes = 0;  // beside it
};
// What session remembers of the past has a bound of its own, whatever the capacity.
constexpr std::uint32_t kSessionFixedBytes = 8u << 20;
constexpr std::uint64_t kObjectBytes = 1024;
constexpr std::array kRules = {
    Entry{"lru_tail_first", make_tail_first_ranking, 60},
    Entry{"fifo", make_fifo_ranking, 32},
    Entry{"lfu", make_lfu_ranking, 84},
    Entry{"length_aware", make_length_aware_ranking, 92},
    Entry{"sieve", make_sieve_ranking, 34},
    Entry{"slru", make_slru_ranking, 34},
    Entry{"s3fifo", make_s3fifo_ranking, 176},
    Entry{"s3fifo_fill", make_s3fifo_fill_ranking, 176},
    Entry{"arc", make_arc_ranking, 300},
    Entry{"session", make_session_ranking, 420, kSessionFixedBytes},
    Entry{"suffix_first", make_suffix_first_ranking, 140},
    Entry{"cost_aware", make_cost_aware_ranking, 100},
    Entry{"priority", make_priority_ranking, 76},
};
constexpr auto kNames = [] {
  std::array<std::string_view, kRules.size() + 1> names{"lru"};
  for (std::size_t i = 0; i < kRules.size(); ++i) names[i + 1] = kRules[i].name;
  return names;
}();

}  // namespace

Result<std::unique_ptr<EvictionPolicy>> make_policy(std::string_view name, std::uint32_t capacity) {
  if (capacity > kMaxPolicyIds)
    return Status(Code::kInvalidArgument,
                  fmt::format("eviction: capacity {}: at most {} ids are supported", capacity, kMaxPolicyIds));
  if (name == "lru") return make_lru_policy(capacity);
  for (const Entry& rule : kRules)
    if (name == rule.name) return make_ranked_policy(name, capacity, rule.make);
  return Status(Code::kInvalidArgument,
                fmt::format("eviction: there is no policy \"{}\"; there are: {}", name, fmt::join(kNames, ", ")));
}

std::uint64_t policy_bytes(std::string_view name, std::uint32_t capacity, bool one_size) {
  if (name == "lru") return std::uint64_t{capacity} * (one_size ? 8 : 12) + kObjectBytes;
  for (const Entry& rule : kRules)
    if (name == rule.name) return std::uint64_t{capacity} * rule.bytes_per_id + rule.fixed_bytes + 4 * kObjectBytes;
  return 0;
}

std::span<const std::string_view> policy_names() { return kNames; }

}  // namespace firn
