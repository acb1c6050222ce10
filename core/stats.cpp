// stats.cpp: the figures of Stats by name. A test holds this list to the header.
#include "firn/stats.h"

#include <fmt/format.h>

#include <cmath>
#include <iterator>

namespace firn {
namespace {

template <class Visit>
void for_each_figure(const Stats& stats, Visit visit) {
#define FIRN_FIGURE(name) visit(std::string(#name), static_cast<double>(stats.name))
  FIRN_FIGURE(slots_total);
  FIRN_FIGURE(slots_free);
  FIRN_FIGURE(slots_cached);
  FIRN_FIGURE(slots_live);
  FIRN_FIGURE(slots_cold);
  FIRN_FIGURE(slots_reserved);
  FIRN_FIGURE(slots_in_flight);
  FIRN_FIGURE(blocks);
  FIRN_FIGURE(frames);
  FIRN_FIGURE(sequences);
  FIRN_FIGURE(duplicate_blocks);
  FIRN_FIGURE(block_bytes);
  FIRN_FIGURE(token_bytes);
  FIRN_FIGURE(host_frame_bytes);
  FIRN_FIGURE(host_raw_bytes);
  FIRN_FIGURE(host_imported_bytes);
  FIRN_FIGURE(pool_bytes);
  FIRN_FIGURE(staging_bytes);
  FIRN_FIGURE(workspace_bytes);
  FIRN_FIGURE(metadata_bytes);
  FIRN_FIGURE(kv_cache_usage_perc);
  FIRN_FIGURE(prefix_cache_queries);
  FIRN_FIGURE(prefix_cache_hits);
  for (std::size_t reason = 1; reason < stats.misses.size(); ++reason)
    visit(fmt::format("misses.{}", to_string(static_cast<MissReason>(reason))),
          static_cast<double>(stats.misses[reason]));
  FIRN_FIGURE(hits_device);
  FIRN_FIGURE(hits_host);
  FIRN_FIGURE(partial_hit_tokens);
  FIRN_FIGURE(evictions);
  FIRN_FIGURE(evictions_with_copy);
  FIRN_FIGURE(host_evictions);
  FIRN_FIGURE(frames_stored);
  FIRN_FIGURE(frames_refused);
  FIRN_FIGURE(frames_failed);
  FIRN_FIGURE(frames_lossy);
  FIRN_FIGURE(frames_guarded);
  FIRN_FIGURE(kv_offload_bytes_store);
  FIRN_FIGURE(kv_offload_bytes_load);
  FIRN_FIGURE(blocks_promoted);
  FIRN_FIGURE(blocks_staged);
  FIRN_FIGURE(blocks_direct);
  FIRN_FIGURE(frames_read);
  FIRN_FIGURE(copy_on_writes);
  FIRN_FIGURE(allocations_refused);
  FIRN_FIGURE(admissions_refused);
  FIRN_FIGURE(preemptions);
  FIRN_FIGURE(namespaces);
  FIRN_FIGURE(leases);
  FIRN_FIGURE(pinned_blocks);
  FIRN_FIGURE(pinned_bytes);
  FIRN_FIGURE(priorities_expired);
  FIRN_FIGURE(pins_expired);
  FIRN_FIGURE(leases_expired);
  FIRN_FIGURE(retention_refused);
  FIRN_FIGURE(family_evictions);
  FIRN_FIGURE(load_failures);
  FIRN_FIGURE(stores_filtered);
  FIRN_FIGURE(ending_stored);
  FIRN_FIGURE(ending_dropped);
  FIRN_FIGURE(slots_cleared);
  FIRN_FIGURE(events);
  FIRN_FIGURE(events_lost);
  FIRN_FIGURE(trace_lines);
  FIRN_FIGURE(trace_lines_lost);
#undef FIRN_FIGURE
}

}  // namespace

std::vector<StatFigure> figures(const Stats& stats) {
  std::vector<StatFigure> all;
  for_each_figure(stats, [&](std::string name, double value) { all.push_back({std::move(name), value}); });
  return all;
}

std::string stats_json(const Stats& stats) {
  std::string json;
  for_each_figure(stats, [&](const std::string& name, double value) {
    const bool whole = value == std::floor(value) && value < 9e15;
    json += json.empty() ? "{" : ", ";
    json += whole ? fmt::format("\"{}\": {:.0f}", name, value) : fmt::format("\"{}\": {}", name, value);
  });
  return json + "}";
}

}  // namespace firn
