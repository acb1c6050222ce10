// cold_stats.cpp: words and figures of ColdCache.
#include <fmt/format.h>

#include "core/json_text.h"
#include "firn/cold_cache.h"

namespace firn {

std::string_view to_string(ColdWrite write) {
  switch (write) {
    case ColdWrite::kBack:
      return "back";
    case ColdWrite::kThrough:
      return "through";
    case ColdWrite::kNever:
      return "never";
  }
  return "unknown";
}

std::string_view to_string(ColdMiss miss) {
  switch (miss) {
    case ColdMiss::kNone:
      return "none";
    case ColdMiss::kNeverStored:
      return "never_stored";
    case ColdMiss::kEvictedHost:
      return "evicted:host";
    case ColdMiss::kEvictedDisk:
      return "evicted:disk";
    case ColdMiss::kEvictedRemote:
      return "evicted:remote";
    case ColdMiss::kErased:
      return "erased";
    case ColdMiss::kFiltered:
      return "filtered";
    case ColdMiss::kLoadFailed:
      return "load_failed";
    case ColdMiss::kFidelity:
      return "fidelity";
    case ColdMiss::kUnbound:
      return "unbound";
    case ColdMiss::kUnavailable:
      return "unavailable";
    case ColdMiss::kCount:
      break;
  }
  return "unknown";
}

std::vector<StatFigure> figures(const ColdStats& stats) {
  std::vector<StatFigure> all;
  const auto add = [&](std::string name, std::uint64_t value) {
    all.push_back({std::move(name), static_cast<double>(value)});
  };
  const auto by_tier = [&](std::string_view name, const auto& values) {
    for (std::size_t i = 0; i < values.size(); ++i)
      add(fmt::format("{}.{}", name, to_string(static_cast<TierId>(i))), values[i]);
  };
  add("budget_bytes", stats.budget_bytes);
  add("spent_bytes", stats.spent_bytes);
  add("peak_bytes", stats.peak_bytes);
  add("frames", stats.frames);
  add("blocks", stats.blocks);
  add("states", stats.states);
  add("pinned", stats.pinned);
  by_tier("frames_in", stats.frames_in);
  by_tier("bytes_in", stats.bytes_in);
  add("raw_bytes", stats.raw_bytes);
  add("queued_names", stats.queued_names);
  add("tickets", stats.tickets);
  add("queries", stats.queries);
  add("pending", stats.pending);
  by_tier("hits", stats.hits);
  for (std::size_t i = 1; i < stats.misses.size(); ++i)
    add(fmt::format("misses.{}", to_string(static_cast<ColdMiss>(i))), stats.misses[i]);
  add("blocks_stored", stats.blocks_stored);
  add("blocks_loaded", stats.blocks_loaded);
  add("states_stored", stats.states_stored);
  add("states_loaded", stats.states_loaded);
  add("stored_bytes", stats.stored_bytes);
  add("loaded_bytes", stats.loaded_bytes);
  add("refused", stats.refused);
  add("failed_frames", stats.failed_frames);
  add("guarded_frames", stats.guarded_frames);
  by_tier("evictions", stats.evictions);
  add("demoted", stats.demoted);
  add("fetched", stats.fetched);
  add("tier_failures", stats.tier_failures);
  add("cancelled", stats.cancelled);
  add("expired", stats.expired);
  return all;
}

std::string stats_json(const ColdStats& stats) {
  JsonText json(JsonText::Layout::kOneLine);
  json.begin_object();
  for (const StatFigure& figure : figures(stats)) json.field(figure.name, static_cast<std::uint64_t>(figure.value));
  json.end_object();
  return json.take();
}

}  // namespace firn
