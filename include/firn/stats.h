// stats.h: what a manager did and has. Names stay close to what dashboards know.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "firn/export.h"

namespace firn {

// Why a block of a prompt was not reused. Every missed block has exactly one reason.
enum class MissReason : std::uint8_t {
  kNone,           // it was a hit
  kNeverStored,    // nobody computed it here, or it is older than we remember
  kEvictedDevice,  // it was in the pool, had no copy below, and was evicted
  kEvictedHost,    // its frame was evicted from the host tier
  kAfterMiss,      // its predecessor is missing
  kPartialTail,    // the prompt ends inside this block, or the block holds the last token, which is always computed
  kLoadFailed,     // its frame did not decode
  kNotRead,        // the request asked not to read the cache
  kFidelity,       // what there is of it is less exact than was asked for
  kGroup,          // it is there, but another group of layers cannot go on there: no snapshot, or a window with holes
  kNamespace,      // the namespace without a name has it, and the request did not look there
  kFiltered,       // it was kept out of the tier below on purpose, because its frames did not decode, and left the pool
  kDeviceLost,     // it was in the pool of a device that was lost, and had no copy below
  kIdentity,       // these tokens are here, computed without this request's adapter or media
  kCount,
};
FIRN_API std::string_view to_string(MissReason reason);

struct Stats {
  // Gauges.
  std::uint64_t slots_total = 0, slots_free = 0;  // free: empty, nothing to evict
  std::uint64_t slots_cached = 0;                 // no live sequence holds them; evictable
  std::uint64_t slots_live = 0;                   // held by live sequences...
  std::uint64_t slots_cold = 0;                   // ...of which cold with a copy below, hence evictable
  std::uint64_t slots_reserved = 0;               // kept for sequences that were admitted with a reservation
  std::uint64_t slots_in_flight = 0;              // being read or written by the mover, or behind a fence
  std::uint64_t blocks = 0, frames = 0, sequences = 0, duplicate_blocks = 0;
  std::uint64_t block_bytes = 0, token_bytes = 0;
  std::uint64_t host_frame_bytes = 0, host_raw_bytes = 0;  // encoded, and what they were before
  std::uint64_t host_imported_bytes = 0;                   // of the host tier, that the device reaches itself
  std::uint64_t pool_bytes = 0, staging_bytes = 0, workspace_bytes = 0, metadata_bytes = 0;
  double kv_cache_usage_perc = 0;  // live slots / slots, 0 to 1
  // Counters, in blocks unless named otherwise. queries = hits + sum(misses).
  std::uint64_t prefix_cache_queries = 0, prefix_cache_hits = 0;
  std::array<std::uint64_t, static_cast<std::size_t>(MissReason::kCount)> misses{};
  std::uint64_t hits_device = 0, hits_host = 0;
  std::uint64_t partial_hit_tokens = 0;                  // copied from blocks that prompts left in their middle
  std::uint64_t evictions = 0, evictions_with_copy = 0;  // slots taken back; of those, losing nothing
  std::uint64_t host_evictions = 0;                      // frames
  std::uint64_t frames_stored = 0, frames_refused = 0, frames_failed = 0;
  std::uint64_t frames_lossy = 0;    // of those stored, by a lossy codec
  std::uint64_t frames_guarded = 0;  // stored lossless, because their error was above what the codec was measured with
  std::uint64_t kv_offload_bytes_store = 0, kv_offload_bytes_load = 0;  // encoded bytes written and read
  std::uint64_t blocks_promoted = 0,
                blocks_staged = 0;  // decoded into slots; decoded into staging (per layer / layers)
  std::uint64_t blocks_direct = 0;  // moved by the device between slots and frames in imported host memory
  std::uint64_t frames_read = 0;    // whole frames or single layers of them
  std::uint64_t copy_on_writes = 0, allocations_refused = 0;
  std::uint64_t admissions_refused = 0, preemptions = 0;
  // Of what is kept and told.
  std::uint64_t namespaces = 0, leases = 0, pinned_blocks = 0, pinned_bytes = 0;  // gauges
  std::uint64_t priorities_expired = 0, pins_expired = 0, leases_expired = 0;
  std::uint64_t retention_refused = 0;  // ranges that found no metadata budget for blocks committed later
  std::uint64_t family_evictions = 0;   // blocks that went because another one of their family did
  std::uint64_t load_failures = 0;      // blocks whose frame did not decode
  std::uint64_t stores_filtered = 0;    // blocks not stored because their frames had failed before
  std::uint64_t ending_stored = 0,
                ending_dropped = 0;           // blocks that free() queued for storing; that found no room there
  std::uint64_t slots_cleared = 0;            // zeroed before another namespace got them
  std::uint64_t events = 0, events_lost = 0;  // told; of those, not in the ring any more
  std::uint64_t trace_lines = 0, trace_lines_lost = 0;  // of trace.record: in the file; not written (dump() says why)
};

// Every figure of Stats with its name, "slots_free" or "misses.never_stored", in the order above.
struct StatFigure {
  std::string name;
  double value = 0;
};
FIRN_API std::vector<StatFigure> figures(const Stats& stats);
FIRN_API std::string stats_json(const Stats& stats);  // one object of them

}  // namespace firn
