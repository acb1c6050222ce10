// arc.cpp: ARC (Megiddo and Modha, FAST'03). Two LRU lists: t1 of blocks seen once lately, t2 of blocks seen at least
// twice, each with a ghost list of what it lost, b1 and b2. A return from b1 says that t1 is too small and raises its
// target p by max(1, |b2| / |b1|); one from b2 lowers it by max(1, |b1| / |b2|). The victim is t1's oldest when t1 is
// larger than p (or as large, and the block that needs room comes from b2), else t2's oldest. t1 and b1 together hold
// at most the capacity, all four at most twice that.
// The policy is asked for a victim before it sees the block that needs the room, so the question "does it come from
// b2" is answered by coming(): without it, "no". Several blocks may be announced before the first of them is inserted,
// as a library does that inserts when a sequence ends; what a ghost list said of each waits in returning_.
#include <algorithm>
#include <unordered_set>

#include "policy/ghost_queue.h"
#include "policy/id_lists.h"
#include "policy/ranking.h"

namespace firn {
namespace {

class ArcRanking final : public Ranking {
 public:
  explicit ArcRanking(std::uint32_t capacity)
      : capacity_(capacity),
        lists_(capacity, 2),
        b1_(capacity + 1),
        b2_(2 * std::size_t{capacity} + 1),
        in_t2_(capacity),
        names_(capacity) {}
  void insert(std::uint32_t id, const BlockFacts& facts, bool returning, Instant) override {
    names_[id] = facts.key_hash;
    in_t2_[id] = returning;
    if (!returning && facts.key_hash != 0) {
      adapt(facts.key_hash);  // nothing, if it was announced: it is in no ghost list any more
      in_t2_[id] = returning_.erase(facts.key_hash) != 0 || forget(facts.key_hash);
    }
    lists_.push_back(in_t2_[id], id);
  }
  void touch(std::uint32_t id, Instant) override {
    lists_.unlink(in_t2_[id], id);
    in_t2_[id] = true;
    lists_.push_back(kT2, id);
  }
  void remove(std::uint32_t id, bool evicted) override {
    lists_.unlink(in_t2_[id], id);
    if (!evicted || names_[id] == 0) return;
    if (forget_next_ && !in_t2_[id]) {
      forget_next_ = false;
      return;
    }
    (in_t2_[id] ? b2_ : b1_).push(names_[id]);
  }
  bool wants_coming() const override { return true; }
  void coming(std::uint64_t name) override {
    from_b2_ = b2_.contains(name);
    adapt(name);
    if (returning_.size() > capacity_) returning_.clear();  // announced, and never came
    if (forget(name)) {
      announce(returning_, name);
    } else if (returning_.count(name) == 0) {
      make_ghost_room();
    }
  }
  void pick(Picker& picker) override {
    std::uint32_t at[2] = {lists_.front(kT1), lists_.front(kT2)};
    std::uint32_t t1 = lists_.size(kT1);
    while (picker.wants_more()) {
      bool t2 = !(t1 > 0 && (t1 > target_ || (from_b2_ && t1 == target_)));
      if (forget_next_) t2 = false;
      if (at[t2] == IdLists::kNone) t2 = !t2;
      const std::uint32_t id = at[t2];
      if (id == IdLists::kNone) break;
      at[t2] = lists_.next(id);
      if (picker.offer(id) && !t2) --t1;
    }
    from_b2_ = false;
  }
  std::unique_ptr<Ranking> clone() const override { return std::make_unique<ArcRanking>(*this); }

 private:
  static constexpr std::uint32_t kT1 = 0, kT2 = 1;
  bool forget(std::uint64_t name) {
    const bool in_b1 = b1_.take(name), in_b2 = b2_.take(name);
    return in_b1 || in_b2;
  }
  void adapt(std::uint64_t name) {
    const double b1 = static_cast<double>(b1_.size()), b2 = static_cast<double>(b2_.size());
    if (b1_.contains(name)) {
      target_ = std::min(target_ + std::max(1.0, b2 / b1), static_cast<double>(capacity_));
    } else if (b2_.contains(name)) {
      target_ = std::max(target_ - std::max(1.0, b1 / b2), 0.0);
    }
  }
  // A block nobody remembers comes: the oldest ghost makes room for the next, or t1's oldest goes without a trace.
  void make_ghost_room() {
    const std::size_t l1 = lists_.size(kT1) + b1_.size(), all = l1 + lists_.size(kT2) + b2_.size();
    if (l1 >= capacity_) {
      if (b1_.size() > 0) {
        b1_.pop();
      } else {
        forget_next_ = true;
      }
    } else if (all >= 2 * std::size_t{capacity_}) {
      b2_.pop();
    }
  }
  std::uint32_t capacity_ = 0;
  double target_ = 0;  // p
  bool from_b2_ = false, forget_next_ = false;
  IdLists lists_;
  GhostQueue b1_, b2_;
  std::unordered_set<std::uint64_t> returning_;
  std::vector<std::uint8_t> in_t2_;
  std::vector<std::uint64_t> names_;
};

}  // namespace

std::unique_ptr<Ranking> make_arc_ranking(std::uint32_t capacity) { return std::make_unique<ArcRanking>(capacity); }

}  // namespace firn
