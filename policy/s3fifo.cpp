// s3fifo.cpp: S3-FIFO (Yang et al., SOSP'23), in libCacheSim's form. Three queues: small holds a tenth, main the rest,
// and a ghost queue remembers nine tenths of the capacity by name. A new block enters small, one that the ghost queue
// remembers enters main. A use counts up to 3. When
// room is needed and main is over its share (or small is empty), main's oldest goes, unless it was used: then it starts
// again with a use less. Otherwise small's oldest goes and is remembered, unless it was used twice: then it moves to
// main, which may overfill it; the next victim is main's.
// s3fifo_fill is what newer versions of libCacheSim do: until the first eviction, a new block that finds small full
// enters main.
#include <algorithm>
#include <unordered_set>

#include "policy/ghost_queue.h"
#include "policy/id_lists.h"
#include "policy/ranking.h"

namespace firn {
namespace {

class S3FifoRanking final : public Ranking {
 public:
  S3FifoRanking(std::uint32_t capacity, bool fill_main)
      : lists_(capacity, 2),
        small_share_(capacity / 10),
        main_share_(capacity - capacity / 10),
        ghosts_(capacity / 10 * 9 + capacity % 10 * 9 / 10),
        in_main_(capacity),
        uses_(capacity),
        names_(capacity) {
    fill_main_ = fill_main;
  }
  void insert(std::uint32_t id, const BlockFacts& facts, bool returning, Instant) override {
    if (!returning) {
      const bool known = facts.key_hash != 0 && (returning_.erase(facts.key_hash) != 0 || ghosts_.take(facts.key_hash));
      in_main_[id] = known || (fill_main_ && lists_.size(kSmall) >= small_share_);
      uses_[id] = 0;
    } else {
      uses_[id] = std::min<std::uint8_t>(kMostUses, static_cast<std::uint8_t>(uses_[id] + 1));
    }
    names_[id] = facts.key_hash;
    lists_.push_back(in_main_[id], id);
  }
  void touch(std::uint32_t id, Instant) override {
    uses_[id] = std::min<std::uint8_t>(kMostUses, static_cast<std::uint8_t>(uses_[id] + 1));
  }
  void remove(std::uint32_t id, bool evicted) override {
    lists_.unlink(in_main_[id], id);
    if (evicted && !in_main_[id] && names_[id] != 0) ghosts_.push(names_[id]);
  }
  bool wants_coming() const override { return true; }
  void coming(std::uint64_t name) override {
    // Now, not at insertion: the victim's name may push it out. Several may be announced before the first comes.
    if (returning_.size() > main_share_) returning_.clear();  // announced, and never came
    if (ghosts_.take(name)) announce(returning_, name);
  }
  void pick(Picker& picker) override {
    fill_main_ = false;
    // at[]: the next to look at in each queue. What was offered stays linked until it is removed.
    std::uint32_t at[2] = {lists_.front(kSmall), lists_.front(kMain)};
    std::uint32_t main_left = lists_.size(kMain);
    while (picker.wants_more() && (at[kSmall] != IdLists::kNone || at[kMain] != IdLists::kNone)) {
      const std::uint8_t queue = at[kMain] != IdLists::kNone && main_left > main_share_ ? kMain : kSmall;
      if (!pick_one(queue, at, main_left, picker))
        pick_one(static_cast<std::uint8_t>(1 - queue), at, main_left, picker);
    }
  }
  std::unique_ptr<Ranking> clone() const override { return std::make_unique<S3FifoRanking>(*this); }

 private:
  static constexpr std::uint8_t kSmall = 0, kMain = 1, kMostUses = 3;
  // One victim of a queue; promotions from small do not change the queue, even if they overfill main.
  bool pick_one(std::uint8_t queue, std::uint32_t* at, std::uint32_t& main_left, Picker& picker) {
    while (at[queue] != IdLists::kNone && picker.wants_more()) {
      const std::uint32_t id = at[queue];
      at[queue] = lists_.next(id);
      if (queue == kMain && uses_[id] >= 1) {
        --uses_[id];
        requeue(id, at);
      } else if (queue == kSmall && uses_[id] >= 2) {
        uses_[id] = 0;
        requeue(id, at);
        ++main_left;
      } else if (picker.offer(id)) {
        main_left -= queue;
        return true;
      }
    }
    return false;
  }
  void requeue(std::uint32_t id, std::uint32_t* at) {
    lists_.unlink(in_main_[id], id);
    in_main_[id] = kMain;
    lists_.push_back(kMain, id);
    if (at[kMain] == IdLists::kNone) at[kMain] = id;
  }
  IdLists lists_;
  std::uint32_t small_share_ = 0, main_share_ = 0;
  bool fill_main_ = false;
  GhostQueue ghosts_;
  std::unordered_set<std::uint64_t> returning_;
  std::vector<std::uint8_t> in_main_, uses_;
  std::vector<std::uint64_t> names_;
};

}  // namespace

std::unique_ptr<Ranking> make_s3fifo_ranking(std::uint32_t capacity) {
  return std::make_unique<S3FifoRanking>(capacity, false);
}

std::unique_ptr<Ranking> make_s3fifo_fill_ranking(std::uint32_t capacity) {
  return std::make_unique<S3FifoRanking>(capacity, true);
}

}  // namespace firn
