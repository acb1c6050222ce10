// sieve.cpp: SIEVE (Zhang et al., NSDI'24). One queue in order of insertion and a hand that walks from the oldest to
// the youngest and then starts again. A use only sets the block's mark. The hand takes the first block without a mark
// and clears the marks it passes; it stays where it took its victim.
#include "policy/id_lists.h"
#include "policy/ranking.h"

namespace firn {
namespace {

class SieveRanking final : public Ranking {
 public:
  explicit SieveRanking(std::uint32_t capacity) : lists_(capacity, 1), marks_(capacity) {}
  void insert(std::uint32_t id, const BlockFacts&, bool returning, Instant) override {
    marks_[id] = returning;
    lists_.push_back(0, id);
  }
  void touch(std::uint32_t id, Instant) override { marks_[id] = true; }
  void remove(std::uint32_t id, bool) override {
    if (id == hand_) hand_ = lists_.next(id);
    lists_.unlink(0, id);
  }
  void pick(Picker& picker) override {
    // Twice round at most: the first clears marks, the second finds none. The hand stays at the first victim, whose
    // removal moves it on.
    std::uint32_t first = IdLists::kNone, at = hand_;
    for (std::uint64_t steps = 2 * std::uint64_t{lists_.size(0)}; steps > 0 && picker.wants_more(); --steps) {
      if (at == IdLists::kNone) at = lists_.front(0);
      if (at == first) break;  // once round since the first victim: these are all there are
      if (marks_[at]) {
        marks_[at] = false;
      } else if (picker.offer(at) && first == IdLists::kNone) {
        first = at;
      }
      at = lists_.next(at);
    }
    hand_ = first != IdLists::kNone ? first : at;
  }
  std::unique_ptr<Ranking> clone() const override { return std::make_unique<SieveRanking>(*this); }

 private:
  IdLists lists_;
  std::vector<std::uint8_t> marks_;
  std::uint32_t hand_ = IdLists::kNone;
};

}  // namespace

std::unique_ptr<Ranking> make_sieve_ranking(std::uint32_t capacity) { return std::make_unique<SieveRanking>(capacity); }

}  // namespace firn
