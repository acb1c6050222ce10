// factory.cpp: policies by name. docs/policies.md has a page on each.
#include <fmt/format.h>

#include <array>

#include "policy/ranking.h"

namespace firn {
namespace {

struct Entry {
  std::string_view name;
  std::unique_ptr<Ranking> (*make)(std::uint32_t);
};
constexpr std::array kRules = {
    Entry{"lru_tail_first", make_tail_first_ranking},
    Entry{"fifo", make_fifo_ranking},
    Entry{"lfu", make_lfu_ranking},
    Entry{"length_aware", make_length_aware_ranking},
    Entry{"sieve", make_sieve_ranking},
    Entry{"slru", make_slru_ranking},
    Entry{"s3fifo", make_s3fifo_ranking},
    Entry{"s3fifo_fill", make_s3fifo_fill_ranking},
    Entry{"arc", make_arc_ranking},
    Entry{"session", make_session_ranking},
    Entry{"suffix_first", make_suffix_first_ranking},
    Entry{"cost_aware", make_cost_aware_ranking},
    Entry{"priority", make_priority_ranking},
};
constexpr auto kNames = [] {
  std::array<std::string_view, kRules.size() + 1> names{"lru"};
  for (std::size_t i = 0; i < kRules.size(); ++i) names[i + 1] = kRules[i].name;
  return names;
}();

}  // namespace

Result<std::unique_ptr<EvictionPolicy>> make_policy(std::string_view name, std::uint32_t capacity) {
  if (name == "lru") return make_lru_policy(capacity);
  for (const Entry& rule : kRules)
    if (name == rule.name) return make_ranked_policy(name, capacity, rule.make);
  return Status(Code::kInvalidArgument,
                fmt::format("eviction: there is no policy \"{}\"; there are: {}", name, fmt::join(kNames, ", ")));
}

std::span<const std::string_view> policy_names() { return kNames; }

}  // namespace firn
