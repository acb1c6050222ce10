// optimal.cpp: Belady's rule: the block whose next use is furthest away goes first. It needs the future, so only a
// simulator that has read the whole trace can have it; there it is the bound that no other policy can pass.
#include "policy/indexed_heap.h"
#include "policy/ranking.h"

namespace firn {
namespace {

class OptimalRanking final : public Ranking {
 public:
  OptimalRanking(std::uint32_t capacity, NextUse next_use) : heap_(capacity), next_use_(std::move(next_use)) {}
  void insert(std::uint32_t id, const BlockFacts&, bool, Instant now) override { touch(id, now); }
  void touch(std::uint32_t id, Instant) override { heap_.set(id, {~next_use_(BlockId{id})}); }
  void remove(std::uint32_t id, bool) override { heap_.erase(id); }
  void pick(Picker& picker) override {
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
  std::unique_ptr<Ranking> clone() const override { return std::make_unique<OptimalRanking>(*this); }

 private:
  struct Rank {
    std::uint64_t nearness;
    bool operator<(const Rank& other) const { return nearness < other.nearness; }
  };
  IndexedHeap<Rank> heap_;
  NextUse next_use_;
};

}  // namespace

std::unique_ptr<Ranking> make_optimal_ranking(std::uint32_t capacity, NextUse next_use) {
  return std::make_unique<OptimalRanking>(capacity, std::move(next_use));
}

}  // namespace firn
