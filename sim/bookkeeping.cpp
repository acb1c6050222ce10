#include "sim/bookkeeping.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/check.h"
#include "policy/ranking.h"

namespace firn::sim {

BlockTier::BlockTier(std::uint32_t capacity, std::unique_ptr<EvictionPolicy> policy)
    : capacity_(capacity), policy_(std::move(policy)), table_(capacity) {
  facts_.reserve(capacity);
}

bool BlockTier::insert(const BlockFacts& facts, Instant now, BlockId& id, BlockFacts& pushed) {
  policy_->on_miss(facts.key_hash, now);
  bool full = false;
  if (table_.size() == capacity_) {
    BlockId victim = BlockId::kNone;
    FIRN_CHECK(policy_->victims({}, {}, {&victim, 1}) == 1);
    pushed = remove(victim);
    full = true;
  }
  if (!free_.empty()) {
    id = free_.back();
    free_.pop_back();
  } else {
    id = BlockId{used_++};
    facts_.emplace_back();
  }
  BlockFacts& kept = facts_[index(id)];
  kept = facts;
  kept.id = id;
  table_.insert(kept.key_hash, index(id));
  policy_->on_insert(kept, now);
  return full;
}

BlockFacts BlockTier::remove(BlockId id) {
  policy_->on_remove(id);
  const BlockFacts& facts = facts_[index(id)];
  table_.erase(facts.key_hash);
  free_.push_back(id);
  return facts;
}

Result<std::unique_ptr<Bookkeeping>> Bookkeeping::create(const BookkeepingOptions& options) {
  auto made = std::unique_ptr<Bookkeeping>(new Bookkeeping(options));
  if (options.tier_blocks.empty())
    return Status(Code::kInvalidArgument, "no tier: give a capacity in blocks, such as --capacity-blocks 10000");
  constexpr std::uint32_t kMost = 1u << 30;
  for (const std::uint32_t blocks : options.tier_blocks) {
    if (blocks == 0 || blocks > kMost)
      return Status(Code::kInvalidArgument, fmt::format("a tier of {} blocks: must be 1 to {}", blocks, kMost));
    if (options.policy == "optimal") {
      if (options.tier_blocks.size() != 1)
        return Status(Code::kInvalidArgument, "\"optimal\" is a bound for one tier; give one capacity");
      Bookkeeping* self = made.get();
      const NextUse next = [self](BlockId) {
        return self->accesses_ < self->next_uses_.size() ? self->next_uses_[self->accesses_] : kNeverUsed;
      };
      made->tiers_.emplace_back(blocks, make_ranked_policy("optimal", blocks, [next](std::uint32_t n) {
                                  return make_optimal_ranking(n, next);
                                }));
      continue;
    }
    FIRN_ASSIGN(std::unique_ptr<EvictionPolicy> policy, make_policy(options.policy, blocks));
    made->tiers_.emplace_back(blocks, std::move(policy));
  }
  made->counts_.tier_hits.resize(options.tier_blocks.size());
  return made;
}

void Bookkeeping::run(const TraceRequest& request) {
  names_ = request.blocks;
  for (std::uint64_t& name : names_) name = cache_name(name);
  // Blocks without names are never asked for again.
  if (names_.empty())
    for (std::uint64_t t = 0; t < request.input_tokens; t += options_.block_tokens)
      names_.push_back(own_name(++fresh_));
  ++counts_.requests;
  counts_.blocks += names_.size();
  counts_.input_tokens += request.input_tokens;
  look_up(request);
  // Time only orders; requests of the same moment come one after the other.
  last_ns_ = std::max(last_ns_ + 1, request.time_ns);
  BlockId parent = BlockId::kNone;
  for (std::size_t i = 0; i < names_.size(); ++i) {
    if (i + 4 < names_.size()) tiers_[0].prefetch(names_[i + 4]);
    parent = access(names_[i], static_cast<std::uint32_t>(i) * options_.block_tokens, parent, {last_ns_});
  }
}

void Bookkeeping::look_up(const TraceRequest& request) {
  std::uint64_t run = 0, members = 0;
  for (std::size_t i = 0; i < names_.size(); ++i) {
    bool here = false;
    for (const BlockTier& tier : tiers_) here = here || tier.find(names_[i]) != BlockId::kNone;
    members += here;
    if (here && run == i) ++run;
  }
  counts_.member_hits += members;
  counts_.prefix_hits += run;
  counts_.hit_tokens += std::min<std::uint64_t>(run * options_.block_tokens, request.input_tokens);
}

BlockId Bookkeeping::access(std::uint64_t name, std::uint32_t position, BlockId parent, Instant now) {
  BlockFacts facts{.parent = parent,
                   .position = position,
                   .bytes = 1,
                   .recompute_cost = static_cast<float>(options_.block_tokens) + 0.001f * static_cast<float>(position),
                   .key_hash = name};
  for (std::size_t i = 0; i < tiers_.size(); ++i) {
    const BlockId id = tiers_[i].find(name);
    if (id == BlockId::kNone) continue;
    ++counts_.access_hits;
    ++counts_.tier_hits[i];
    if (i == 0) {
      tiers_[0].touch(id, now);
      ++accesses_;
      return id;
    }
    ++counts_.promotions;
    tiers_[i].remove(id);
    break;
  }
  const BlockId id = insert_from(facts, now);
  ++accesses_;
  return id;
}

// Into the top; what a tier pushes out goes one down, and the last one drops.
BlockId Bookkeeping::insert_from(const BlockFacts& facts, Instant now) {
  BlockFacts pushed;
  BlockId top = BlockId::kNone;
  bool full = tiers_[0].insert(facts, now, top, pushed);
  for (std::size_t tier = 1; full && tier < tiers_.size(); ++tier) {
    ++counts_.demotions;
    const BlockFacts moving = pushed;
    BlockId id = BlockId::kNone;
    full = tiers_[tier].insert(moving, now, id, pushed);
  }
  counts_.drops += full;
  return top;
}

// Asks every few hundred requests. before: passes over the trace that are done, of so many.
static bool keep_going(const Tick& tick, const TraceReader& reader, std::int64_t time_ns, std::uint64_t before,
                       std::uint64_t passes) {
  constexpr std::uint64_t kTickEvery = 256;
  if (!tick || reader.requests() % kTickEvery != 0) return true;
  const std::uint64_t size = reader.packed_size();
  return tick({reader.requests(), before * size + reader.packed_read(), passes * size, time_ns});
}

Result<std::vector<std::uint64_t>> read_future(const std::string& path, const TraceOptions& trace, const Tick& tick) {
  FIRN_ASSIGN(const std::unique_ptr<TraceReader> reader, TraceReader::open(path, trace));
  NameTable ids;
  std::vector<std::uint64_t> last, next;
  TraceRequest request;
  while (true) {
    FIRN_ASSIGN(const bool more, reader->next(request));
    if (!more) return next;
    if (!keep_going(tick, *reader, request.time_ns, 0, 2))
      return Status(Code::kUnavailable, "stopped while reading ahead");
    if (request.blocks.empty()) {
      const std::uint64_t size = std::max(1u, reader->block_tokens());
      next.resize(next.size() + (request.input_tokens + size - 1) / size, kNeverUsed);
    }
    for (const std::uint64_t name : request.blocks) {
      std::uint32_t id = ids.find(name);
      if (id == NameTable::kEmpty) {
        id = static_cast<std::uint32_t>(last.size());
        ids.insert(name, id);
        last.push_back(next.size());
      } else {
        next[last[id]] = next.size();
        last[id] = next.size();
      }
      next.push_back(kNeverUsed);
    }
  }
}

Result<BookkeepingResult> run_bookkeeping(const std::string& path, const TraceOptions& trace,
                                          BookkeepingOptions options, const Tick& tick) {
  std::vector<std::uint64_t> future;
  if (options.policy == "optimal") {
    FIRN_ASSIGN(future, read_future(path, trace, tick));
  }
  FIRN_ASSIGN(const std::unique_ptr<TraceReader> reader, TraceReader::open(path, trace));
  std::unique_ptr<Bookkeeping> bookkeeping;
  BookkeepingResult result;
  TraceRequest request;
  while (true) {
    FIRN_ASSIGN(const bool more, reader->next(request));
    if (!bookkeeping) {  // the block size is known once a request has been read
      if (reader->block_tokens() != 0) options.block_tokens = reader->block_tokens();
      FIRN_ASSIGN(bookkeeping, Bookkeeping::create(options));
      bookkeeping->set_future(std::move(future));
    }
    if (!more) break;
    bookkeeping->run(request);
    const std::uint64_t passes = options.policy == "optimal" ? 2 : 1;
    if (!keep_going(tick, *reader, request.time_ns, passes - 1, passes)) {
      result.complete = false;
      break;
    }
  }
  result.counts = bookkeeping->counts();
  result.block_tokens = options.block_tokens;
  result.bad_line_count = reader->bad_line_count();
  result.out_of_order = reader->out_of_order();
  result.bad_lines = reader->bad_lines();
  return result;
}

}  // namespace firn::sim
