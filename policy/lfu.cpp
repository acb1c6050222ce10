// lfu.cpp: least frequently used, and the length-aware form of Mooncake's report.
//
// lfu:           counts uses while a block is here. The smallest count goes first; among equals the one that has had
//                that count for longest.
// length_aware:  the smallest count first; among equals the block furthest from the beginning of its prompt; then the
//                one that has had that count for longest.
// A heap over (count, -position, age) serves both. Counts of blocks that were evicted are forgotten; blocks that were
// only held keep theirs.
#include "policy/indexed_heap.h"
#include "policy/ranking.h"

namespace firn {
namespace {

class FrequencyRanking final : public Ranking {
 public:
  FrequencyRanking(std::uint32_t capacity, bool length_aware)
      : length_aware_(length_aware), heap_(capacity), counts_(capacity) {
    if (length_aware) positions_.resize(capacity);
  }
  void insert(std::uint32_t id, const BlockFacts& facts, bool returning, Instant) override {
    counts_[id] = returning ? counts_[id] + 1 : 1;
    if (length_aware_) positions_[id] = facts.position;
    place(id);
  }
  void touch(std::uint32_t id, Instant) override {
    ++counts_[id];
    place(id);
  }
  void remove(std::uint32_t id, bool) override { heap_.erase(id); }
  void pick(Picker& picker) override {
    // Usually one is wanted and the top is it. Otherwise those on top leave until enough are found, and come back.
    std::vector<std::pair<std::uint32_t, Rank>> taken;
    while (picker.wants_more() && !heap_.empty()) {
      const std::uint32_t id = heap_.top();
      picker.offer(id);
      if (!picker.wants_more()) break;
      if (!remember(taken, id, heap_.key(id))) break;
      heap_.erase(id);
    }
    for (const auto& [id, rank] : taken) heap_.set(id, rank);
  }
  std::unique_ptr<Ranking> clone() const override { return std::make_unique<FrequencyRanking>(*this); }

 private:
  struct Rank {
    std::uint32_t count, from_end;  // from_end: small is far from the beginning
    std::uint64_t age;
    bool operator<(const Rank& other) const {
      if (count != other.count) return count < other.count;
      return from_end != other.from_end ? from_end < other.from_end : age < other.age;
    }
  };
  void place(std::uint32_t id) { heap_.set(id, {counts_[id], length_aware_ ? ~positions_[id] : 0, ++clock_}); }
  bool length_aware_;
  IndexedHeap<Rank> heap_;
  std::vector<std::uint32_t> counts_, positions_;
  std::uint64_t clock_ = 0;
};

}  // namespace

std::unique_ptr<Ranking> make_lfu_ranking(std::uint32_t capacity) {
  return std::make_unique<FrequencyRanking>(capacity, false);
}
std::unique_ptr<Ranking> make_length_aware_ranking(std::uint32_t capacity) {
  return std::make_unique<FrequencyRanking>(capacity, true);
}

}  // namespace firn
