// fifo.cpp: rules that keep candidates in plain lists.
//
// fifo:            first in, first out; a use changes nothing.
// lru_tail_first:  last use decides, and within one pass over a prompt its tail goes before its head. A pass is a run
//                  of uses at ascending positions; when the next one begins, the blocks of the last one are put in
//                  order. A library that frees a sequence from its tail makes every use a pass of its own, which is
//                  then plain LRU, tail first as well.
// slru:            two segments. New blocks enter probation; a use moves to the young end of protected, which holds
//                  at most 4/5 of the candidates and gives its oldest back to probation's young end. Probation goes
//                  first.
#include <algorithm>
#include <new>

#include "policy/id_lists.h"
#include "policy/ranking.h"

namespace firn {
namespace {

void pick_from(const IdLists& lists, std::uint32_t list, Picker& picker) {
  for (std::uint32_t id = lists.front(list); id != IdLists::kNone && picker.wants_more(); id = lists.next(id))
    picker.offer(id);
}

class FifoRanking final : public Ranking {
 public:
  explicit FifoRanking(std::uint32_t capacity) : lists_(capacity, 1) {}
  void insert(std::uint32_t id, const BlockFacts&, bool, Instant) override { lists_.push_back(0, id); }
  void touch(std::uint32_t, Instant) override {}
  void remove(std::uint32_t id, bool) override { lists_.unlink(0, id); }
  void pick(Picker& picker) override { pick_from(lists_, 0, picker); }
  std::unique_ptr<Ranking> clone() const override { return std::make_unique<FifoRanking>(*this); }

 private:
  IdLists lists_;
};

class TailFirstRanking final : public Ranking {
 public:
  explicit TailFirstRanking(std::uint32_t capacity)
      : lists_(capacity, 1), positions_(capacity), passes_(capacity), places_(capacity) {}
  void insert(std::uint32_t id, const BlockFacts& facts, bool, Instant) override {
    positions_[id] = facts.position;
    place(id);
  }
  void touch(std::uint32_t id, Instant) override {
    remove(id, false);
    place(id);
  }
  void remove(std::uint32_t id, bool) override {
    lists_.unlink(0, id);
    passes_[id] = 0;
  }
  void pick(Picker& picker) override { pick_from(lists_, 0, picker); }
  std::unique_ptr<Ranking> clone() const override { return std::make_unique<TailFirstRanking>(*this); }

 private:
  void place(std::uint32_t id) {
    if (positions_[id] <= position_) end_pass();
    lists_.push_back(0, id);
    try {
      pass_.push_back(id);
      passes_[id] = pass_number_;
      places_[id] = static_cast<std::uint32_t>(pass_.size() - 1);
    } catch (const std::bad_alloc&) {  // it stays where it is when the pass ends
      passes_[id] = 0;
    }
    position_ = positions_[id];
  }
  // What is left of the pass moves to the young end, its tail first.
  void end_pass() {
    // A pass of one is in order already; it is all there is in a library that frees from the tail.
    for (std::size_t i = pass_.size() > 1 ? pass_.size() : 0; i-- > 0;) {
      if (passes_[pass_[i]] != pass_number_ || places_[pass_[i]] != i) continue;  // left, or came back later
      lists_.unlink(0, pass_[i]);
      lists_.push_back(0, pass_[i]);
    }
    pass_.clear();
    if (++pass_number_ == 0) pass_number_ = 1;
  }
  IdLists lists_;
  std::vector<std::uint32_t> positions_, passes_, places_;  // passes_: of a candidate's last use, 0: none
  std::vector<std::uint32_t> pass_;                         // the current one, in order; what left it is still in here
  std::uint32_t pass_number_ = 1, position_ = 0;
};

class SlruRanking final : public Ranking {
 public:
  explicit SlruRanking(std::uint32_t capacity) : lists_(capacity, 2), in_protected_(capacity) {}
  void insert(std::uint32_t id, const BlockFacts&, bool returning, Instant) override {
    in_protected_[id] = false;
    lists_.push_back(kProbation, id);
    if (returning) touch(id, {});
  }
  void touch(std::uint32_t id, Instant) override {
    remove(id, false);
    in_protected_[id] = true;
    lists_.push_back(kProtected, id);
    const std::uint32_t all = lists_.size(kProbation) + lists_.size(kProtected);
    while (lists_.size(kProtected) > std::max(1u, all / 5 * 4)) {
      const std::uint32_t oldest = lists_.front(kProtected);
      remove(oldest, false);
      in_protected_[oldest] = false;
      lists_.push_back(kProbation, oldest);
    }
  }
  void remove(std::uint32_t id, bool) override { lists_.unlink(in_protected_[id] ? kProtected : kProbation, id); }
  void pick(Picker& picker) override {
    pick_from(lists_, kProbation, picker);
    pick_from(lists_, kProtected, picker);
  }
  std::unique_ptr<Ranking> clone() const override { return std::make_unique<SlruRanking>(*this); }

 private:
  static constexpr std::uint32_t kProbation = 0, kProtected = 1;
  IdLists lists_;
  std::vector<std::uint8_t> in_protected_;
};

}  // namespace

std::unique_ptr<Ranking> make_fifo_ranking(std::uint32_t capacity) { return std::make_unique<FifoRanking>(capacity); }
std::unique_ptr<Ranking> make_tail_first_ranking(std::uint32_t capacity) {
  return std::make_unique<TailFirstRanking>(capacity);
}
std::unique_ptr<Ranking> make_slru_ranking(std::uint32_t capacity) { return std::make_unique<SlruRanking>(capacity); }

}  // namespace firn
