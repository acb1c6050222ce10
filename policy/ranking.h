// ranking.h: what one eviction rule has to say: in which order candidates should go. RankedPolicy makes an
// EvictionPolicy of it: it keeps what every rule needs, and one ranking of dead blocks and one of those that live
// sequences hold, so that a dead block always goes before one that is still read, whatever the rule.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "firn/policy.h"

namespace firn {

// Takes victims until there are enough. A rule offers candidates, best first, while wants_more().
class Picker {
 public:
  Picker(Need need, const Filter& filter, std::span<BlockId> out, std::span<const std::uint32_t> bytes)
      : need_(need), filter_(filter), out_(out), bytes_(bytes) {}
  bool wants_more() const {
    return found_ < out_.size() && (found_ < need_.count || freed_ < need_.bytes) && looked_ < need_.look;
  }
  bool offer(std::uint32_t id) {  // false: vetoed
    ++looked_;
    if (filter_ && !filter_(BlockId{id})) return false;
    out_[found_++] = BlockId{id};
    freed_ += bytes_[id];
    return true;
  }
  std::size_t found() const { return found_; }

 private:
  Need need_;
  const Filter& filter_;
  std::span<BlockId> out_;
  std::span<const std::uint32_t> bytes_;
  std::size_t found_ = 0, looked_ = 0;
  std::uint64_t freed_ = 0;
};

class Ranking {
 public:
  virtual ~Ranking() = default;
  // returning: the same block was a candidate before and was held meanwhile, so this is a use of it and not its birth.
  virtual void insert(std::uint32_t id, const BlockFacts& facts, bool returning, Instant now) = 0;
  virtual void touch(std::uint32_t id, Instant now) = 0;
  virtual void remove(std::uint32_t id, bool evicted) = 0;
  virtual void pick(Picker& picker) = 0;
  virtual void coming(std::uint64_t) {}  // a block of this name is going to be inserted
  virtual bool wants_coming() const { return false; }
  virtual std::unique_ptr<Ranking> clone() const = 0;
};

using RankingMaker = std::function<std::unique_ptr<Ranking>(std::uint32_t capacity)>;
std::unique_ptr<EvictionPolicy> make_ranked_policy(std::string_view name, std::uint32_t capacity, RankingMaker maker);

// The rules; each file opens with its algorithm.
std::unique_ptr<Ranking> make_fifo_ranking(std::uint32_t capacity);
std::unique_ptr<Ranking> make_tail_first_ranking(std::uint32_t capacity);
std::unique_ptr<Ranking> make_lfu_ranking(std::uint32_t capacity);
std::unique_ptr<Ranking> make_length_aware_ranking(std::uint32_t capacity);
std::unique_ptr<Ranking> make_sieve_ranking(std::uint32_t capacity);
std::unique_ptr<Ranking> make_slru_ranking(std::uint32_t capacity);
std::unique_ptr<Ranking> make_s3fifo_ranking(std::uint32_t capacity);
std::unique_ptr<Ranking> make_s3fifo_fill_ranking(std::uint32_t capacity);
std::unique_ptr<Ranking> make_arc_ranking(std::uint32_t capacity);
std::unique_ptr<Ranking> make_session_ranking(std::uint32_t capacity);
std::unique_ptr<Ranking> make_suffix_first_ranking(std::uint32_t capacity);
std::unique_ptr<Ranking> make_cost_aware_ranking(std::uint32_t capacity);
std::unique_ptr<Ranking> make_priority_ranking(std::uint32_t capacity);
// Which access will be the block's next; kNeverUsed: none.
inline constexpr std::uint64_t kNeverUsed = ~std::uint64_t{0};
using NextUse = std::function<std::uint64_t(BlockId)>;
std::unique_ptr<Ranking> make_optimal_ranking(std::uint32_t capacity, NextUse next_use);

}  // namespace firn
