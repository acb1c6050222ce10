// engine.h: an inference engine with a virtual clock: continuous batching with chunked prefill over a pool and a host
// tier (and a disk below it), whose eviction policies are the library's own objects. No bytes move; what moving and
// computing cost comes from a device's and a model's few numbers. docs/simulate.md says what is modelled and what not.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "sim/bookkeeping.h"
#include "sim/hardware.h"
#include "sim/trace.h"

namespace firn::sim {

struct EngineOptions {
  DeviceSpec device;
  ModelShape model;
  std::uint64_t pool_bytes = 0, host_bytes = 0, disk_bytes = 0;
  std::string policy = "lru";       // of the pool...
  std::string host_policy = {};     // ...and of the tiers below; empty: the same
  bool exclusive = false;           // a block is in the pool or in the host tier, stored when the pool pushes it out
  double codec_ratio = 1.0;         // raw bytes by encoded bytes, in the host tier and below
  double codec_bytes_per_s = 10e9;  // of raw bytes, each way; the encoder runs beside the engine
  std::string codec_source = {};    // where both were measured; empty: they are assumed
  std::uint32_t max_step_tokens = 2048;
  std::uint32_t max_sequences = 256;
  double watermark = 0.01;        // share of the pool that admission leaves free
  bool swap = false;              // preempted sequences: to the host and back; false: computed again
  bool admit_second_use = false;  // the host tier takes a block only when it is seen for the second time
  double time_scale = 1.0;        // arrivals this much faster
  std::uint32_t protect_sinks = 4, protect_recent = 128;  // tokens that stay raw; through the manager only
  std::uint32_t samples = 120;                            // of what is kept over time, about
  std::string codec = "raw";                              // its name, for people
  // A run that is made to find out whether it is good enough may end where it no longer can be: after more than so many
  // first tokens, or times per token, that came later than that. 0: it runs to the end.
  double late_ttft_s = 0, late_tpot_s = 0;
  std::uint64_t late_most = ~std::uint64_t{0};
};
// kInvalidArgument with the numbers: weights and pool (and a host tier in the same memory) are more than the device
// has.
Status check_fits(const EngineOptions& options);
// What the device has left beside the weights, a tenth of it kept for everything else; 0: nothing, or not known.
std::uint64_t largest_pool(const DeviceSpec& device, const ModelShape& model);
// The same deployment on `count` of its devices; the pool is the one given, of all of them together.
Result<EngineOptions> spread(const EngineOptions& one, std::uint32_t count);

// One count or time of all requests.
struct Percentiles {
  double mean = 0, p50 = 0, p90 = 0, p95 = 0, p99 = 0, most = 0;
};

struct Sample {  // at the end of an interval of simulated time
  double seconds = 0;
  double pool_live = 0, pool_cached = 0, host = 0, disk = 0;  // shares of their capacity
  std::uint64_t waiting = 0, running = 0;
  std::uint64_t host_up_bytes = 0, host_down_bytes = 0;  // moved in the interval
  std::uint64_t disk_up_bytes = 0, disk_down_bytes = 0;
  // Of the interval: tokens of prompts that were admitted and of those what was found; first tokens that came out and
  // their waits; seconds of computing, of waiting for nothing but blocks, of full places, and of the link that is
  // busier.
  std::uint64_t input_tokens = 0, hit_tokens = 0, first_tokens = 0;
  double ttft_sum_s = 0, length_s = 0, busy_s = 0, memory_s = 0, places_s = 0, link_s = 0;
};
// Two intervals, one after the other, as one.
Sample merged(const Sample& first, const Sample& second);

struct EngineResult {
  bool complete = true;
  bool too_late = false;         // ended by late_most
  std::string dump;              // through the manager: who held what at the end, for firn dump
  bool through_manager = false;  // then after_miss is every block behind the first one that is missing
  std::uint64_t requests = 0, finished = 0, refused = 0, cut_short = 0;  // refused: longer than the pool
  double seconds = 0;                                                    // simulated, to the last token
  std::uint32_t block_tokens = 0;
  std::uint64_t pool_blocks = 0, host_blocks = 0, disk_blocks = 0, block_bytes = 0;
  std::uint64_t input_tokens = 0, output_tokens = 0;
  std::uint64_t blocks = 0;  // of prompts, at first admission
  std::uint64_t hits_pool = 0, hits_host = 0, hits_disk = 0;
  std::uint64_t hit_tokens_pool = 0, hit_tokens_host = 0, hit_tokens_disk = 0;
  std::uint64_t miss_never_stored = 0, miss_evicted = 0, miss_after_miss = 0, miss_recompute_cheaper = 0,
                miss_tail = 0;  // never_stored: or still being computed by somebody; tail: holds the last token
  std::uint64_t preemptions = 0, recomputed_tokens = 0;
  std::uint64_t host_down_bytes = 0, host_up_bytes = 0, disk_down_bytes = 0, disk_up_bytes = 0;
  std::uint64_t pool_evictions = 0, host_evictions = 0, stored_blocks = 0, stored_read_again = 0;
  double compute_busy_s = 0, prefill_s = 0, host_up_busy_s = 0, host_down_busy_s = 0, disk_busy_s = 0;
  double waiting_for_memory_s = 0;  // somebody waited, and only blocks were missing
  double waiting_for_places_s = 0;  // somebody waited, and max_sequences were running
  Percentiles ttft_s, tpot_s, queue_s, eviction_age_s;
  std::vector<Sample> samples;
  double cost = 0;  // dollars, of the whole run
  std::uint64_t bad_line_count = 0, out_of_order = 0;
  std::vector<BadLine> bad_lines;
};

Percentiles percentiles(std::vector<float> values);

Result<EngineResult> run_engine(const std::string& path, const TraceOptions& trace, const EngineOptions& options,
                                const Tick& tick = {});

}  // namespace firn::sim
