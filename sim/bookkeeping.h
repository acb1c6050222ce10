// bookkeeping.h: who would still be there? A trace's blocks pass through one pool or a stack of tiers, one request at a
// time: no clock, no pinning, no bytes. What it counts are integers that others can reproduce exactly; docs/simulate.md
// has the convention word by word.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "firn/policy.h"
#include "sim/name_table.h"
#include "sim/trace.h"

namespace firn::sim {

struct Counts {
  std::uint64_t requests = 0, blocks = 0, input_tokens = 0;
  std::uint64_t access_hits = 0;  // at the moment of each access; of all tiers together
  std::uint64_t member_hits = 0;  // resident at lookup, wherever they stand in the prompt
  std::uint64_t prefix_hits = 0;  // the resident leading run at lookup: what saves prefill
  std::uint64_t hit_tokens = 0;   // min(run * block tokens, input length)
  std::uint64_t promotions = 0, demotions = 0, drops = 0;
  std::vector<std::uint64_t> tier_hits;  // access hits by tier
  auto operator<=>(const Counts&) const = default;
};

struct BookkeepingOptions {
  std::string policy = "lru";                   // of every tier; "optimal" for one tier only
  std::vector<std::uint32_t> tier_blocks = {};  // capacities, the fastest first; 1 or more
  std::uint32_t block_tokens = 512;
};

// One pool of equal blocks under one policy of the library.
class BlockTier {
 public:
  BlockTier(std::uint32_t capacity, std::unique_ptr<EvictionPolicy> policy);
  BlockId find(std::uint64_t name) const { return BlockId{table_.find(name)}; }
  void touch(BlockId id, Instant now) { policy_->on_access(id, Access::kHit, now); }
  // The name is not here. Pushes out a victim first if the tier is full: true, and its facts are in `pushed`.
  bool insert(const BlockFacts& facts, Instant now, BlockId& id, BlockFacts& pushed);
  BlockFacts remove(BlockId id);
  const BlockFacts& facts(BlockId id) const { return facts_[index(id)]; }
  void prefetch(std::uint64_t name) const { table_.prefetch(name); }

 private:
  std::uint32_t capacity_ = 0, used_ = 0;
  std::unique_ptr<EvictionPolicy> policy_;
  NameTable table_;
  std::vector<BlockFacts> facts_;  // key_hash is the name
  std::vector<BlockId> free_;
};

// Runs requests through tiers. Exclusive: a block is in one tier; a hit below moves it to the top, what the top pushes
// out moves one down, and the last tier drops.
class Bookkeeping {
 public:
  static Result<std::unique_ptr<Bookkeeping>> create(const BookkeepingOptions& options);
  void run(const TraceRequest& request);
  const Counts& counts() const { return counts_; }

  // For "optimal": when each access's block is used next, in order of accesses. Set before the first run().
  void set_future(std::vector<std::uint64_t> next_uses) { next_uses_ = std::move(next_uses); }

 private:
  explicit Bookkeeping(const BookkeepingOptions& options) : options_(options) {}
  void look_up(const TraceRequest& request);
  BlockId access(std::uint64_t name, std::uint32_t position, BlockId parent, Instant now);
  BlockId insert_from(const BlockFacts& facts, Instant now);

  BookkeepingOptions options_;
  std::vector<BlockTier> tiers_;
  Counts counts_;
  std::int64_t last_ns_ = -1;
  std::uint64_t fresh_ = 0;  // blocks so far that the trace gives no name
  std::vector<std::uint64_t> names_;
  std::vector<std::uint64_t> next_uses_;
  std::uint64_t accesses_ = 0;
};

// How far a run is; asked for every few hundred requests. false: stop here, the result so far is wanted.
struct Progress {
  // packed_read: of the trace's bytes, those whose requests are done with, not those that were read ahead; a run of
  // several passes or many runs counts the bytes of all of them. packed_size 0: not known.
  std::uint64_t requests = 0, packed_read = 0, packed_size = 0;
  std::int64_t time_ns = 0;  // simulated
};
using Tick = std::function<bool(const Progress&)>;

struct BookkeepingResult {
  Counts counts;
  std::uint32_t block_tokens = 0;
  bool complete = true;  // false: stopped by the tick
  std::uint64_t bad_line_count = 0, out_of_order = 0;
  std::vector<BadLine> bad_lines;
};

// The whole trace. "optimal" reads it twice, and its memory grows with the trace.
Result<BookkeepingResult> run_bookkeeping(const std::string& path, const TraceOptions& trace,
                                          BookkeepingOptions options, const Tick& tick = {});
// next_uses of a trace, for set_future.
Result<std::vector<std::uint64_t>> read_future(const std::string& path, const TraceOptions& trace,
                                               const Tick& tick = {});

}  // namespace firn::sim
