// arc.cpp: ARC (Megiddo and Modha, FAST'03). Two LRU lists: t1 of blocks seen once lately, t2 of blocks seen at least
// twice, each with a ghost list of what it lost, b1 and b2. A return from b1 says that t1 is too small and raises its
// target p by max(1, |b2| / |b1|); one from b2 lowers it by max(1, |b1| / |b2|). The victim is t1's oldest when t1 is
// larger than p (or as large, and the block that needs room comes from b2), else t2's oldest. t1 and b1 together hold
// at most the capacity, all four at most twice that.
// The policy is asked for a victim before it sees the block that needs the room, so the question "does it come from
// b2" is answered by coming(): without it, "no".
#include <algorithm>

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
      if (facts.key_hash != coming_) adapt(facts.key_hash);
      const bool in_b1 = b1_.take(facts.key_hash), in_b2 = b2_.take(facts.key_hash);  // both forget it
      in_t2_[id] = in_b1 || in_b2;
    }
    coming_ = 0;
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
  void coming(std::uint64_t name) override {
    coming_ = name;
    from_b2_ = b2_.contains(name);
    adapt(name);
    if (!b1_.contains(name) && !from_b2_) make_ghost_room();
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

 private:
  static constexpr std::uint32_t kT1 = 0, kT2 = 1;
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
  std::uint64_t coming_ = 0;
  bool from_b2_ = false, forget_next_ = false;
  IdLists lists_;
  GhostQueue b1_, b2_;
  std::vector<std::uint8_t> in_t2_;
  std::vector<std::uint64_t> names_;
};

}  // namespace

std::unique_ptr<Ranking> make_arc_ranking(std::uint32_t capacity) { return std::make_unique<ArcRanking>(capacity); }

}  // namespace firn
