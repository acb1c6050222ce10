// valued.cpp: rules that give each candidate a value and let the smallest go, by a heap.
//
// suffix_first:  among the blocks that nobody here continues from, the least recently used, the deeper one first: what
// a
//                radix tree does when it evicts leaves. Every resident block is then the end or the middle of a usable
//                prefix, whatever the order of uses.
// cost_aware:    GreedyDual-Size-Frequency (Cherkasova, 1998). The value of a block is age + uses * cost / bytes, where
//                cost is what computing it again takes and age is the value of the last victim, so that what was worth
//                much once does not stay for ever. Uses by age are the estimate of its reuse probability.
// priority:      the engine's own mark (BlockFacts::priority) first, the least recently used within a mark.
#include <algorithm>

#include "policy/indexed_heap.h"
#include "policy/ranking.h"

namespace firn {
namespace {

struct Value {
  double value;
  std::uint64_t order;  // among equals
  bool operator<(const Value& other) const { return value != other.value ? value < other.value : order < other.order; }
};
using Heap = IndexedHeap<Value>;

// Those on top leave until enough are found, and come back.
void pick_smallest(Heap& heap, Picker& picker) {
  std::vector<std::pair<std::uint32_t, Value>> taken;
  while (picker.wants_more() && !heap.empty()) {
    const std::uint32_t id = heap.top();
    picker.offer(id);
    if (!picker.wants_more()) break;
    if (!remember(taken, id, heap.key(id))) break;
    heap.erase(id);
  }
  for (const auto& [id, value] : taken) heap.set(id, value);
}

class SuffixFirstRanking final : public Ranking {
 public:
  explicit SuffixFirstRanking(std::uint32_t capacity) : heap_(capacity), blocks_(capacity) {}
  void insert(std::uint32_t id, const BlockFacts& facts, bool, Instant now) override {
    Block& block = blocks_[id];
    block.here = true;
    block.parent = index(facts.parent) < blocks_.size() && facts.parent != facts.id ? index(facts.parent) : kNone;
    block.position = facts.position;
    if (block.parent != kNone && blocks_[block.parent].children++ == 0 && heap_.contains(block.parent))
      heap_.erase(block.parent);
    use(id, now);
  }
  void touch(std::uint32_t id, Instant now) override { use(id, now); }
  void remove(std::uint32_t id, bool) override {
    Block& block = blocks_[id];
    if (heap_.contains(id)) heap_.erase(id);
    block.here = false;
    if (block.parent == kNone) return;
    Block& parent = blocks_[block.parent];
    if (--parent.children == 0 && parent.here) heap_.set(block.parent, parent.value);
    block.parent = kNone;
  }
  void pick(Picker& picker) override {
    // A leaf that is picked makes a leaf of its parent, which the next call sees; within this call, the rest goes by
    // position from the end.
    pick_smallest(heap_, picker);
    if (!picker.wants_more()) return;
    std::vector<std::uint32_t> others;
    for (std::uint32_t id = 0; id < blocks_.size(); ++id)
      if (blocks_[id].here && !heap_.contains(id)) others.push_back(id);
    std::sort(others.begin(), others.end(), [this](std::uint32_t a, std::uint32_t b) {
      return blocks_[a].position != blocks_[b].position ? blocks_[a].position > blocks_[b].position : a < b;
    });
    for (const std::uint32_t id : others) {
      if (!picker.wants_more()) return;
      picker.offer(id);
    }
  }
  std::unique_ptr<Ranking> clone() const override { return std::make_unique<SuffixFirstRanking>(*this); }

 private:
  static constexpr std::uint32_t kNone = ~0u;
  struct Block {
    Value value{};
    std::uint32_t parent = kNone, children = 0, position = 0;
    bool here = false;
  };
  void use(std::uint32_t id, Instant now) {
    Block& block = blocks_[id];
    // Uses at one moment are one pass over a prompt: of these the deeper goes first.
    block.value = {static_cast<double>(now.ns), ~block.position};
    if (block.children == 0) heap_.set(id, block.value);
  }
  Heap heap_;  // of leaves
  std::vector<Block> blocks_;
};

class CostAwareRanking final : public Ranking {
 public:
  explicit CostAwareRanking(std::uint32_t capacity) : heap_(capacity), worth_(capacity), uses_(capacity) {}
  void insert(std::uint32_t id, const BlockFacts& facts, bool returning, Instant) override {
    worth_[id] = std::max(1e-9, static_cast<double>(facts.recompute_cost)) /
                 static_cast<double>(std::max<std::uint64_t>(1, facts.bytes));
    // The unit is the first block's worth, so that ages and uses are numbers of the same size whatever the model.
    if (unit_ == 0) unit_ = worth_[id];
    uses_[id] = returning ? uses_[id] + 1 : 1;
    place(id);
  }
  void touch(std::uint32_t id, Instant) override {
    ++uses_[id];
    place(id);
  }
  void remove(std::uint32_t id, bool evicted) override {
    if (evicted) age_ = std::max(age_, heap_.key(id).value);
    heap_.erase(id);
  }
  void pick(Picker& picker) override { pick_smallest(heap_, picker); }
  std::unique_ptr<Ranking> clone() const override { return std::make_unique<CostAwareRanking>(*this); }

 private:
  void place(std::uint32_t id) { heap_.set(id, {age_ + uses_[id] * worth_[id] / unit_, ++clock_}); }
  Heap heap_;
  std::vector<double> worth_;
  std::vector<std::uint32_t> uses_;
  double age_ = 0, unit_ = 0;
  std::uint64_t clock_ = 0;
};

class PriorityRanking final : public Ranking {
 public:
  explicit PriorityRanking(std::uint32_t capacity) : heap_(capacity), priorities_(capacity) {}
  void insert(std::uint32_t id, const BlockFacts& facts, bool, Instant) override {
    priorities_[id] = facts.priority;
    touch(id, {});
  }
  void touch(std::uint32_t id, Instant) override { heap_.set(id, {static_cast<double>(priorities_[id]), ++clock_}); }
  void remove(std::uint32_t id, bool) override { heap_.erase(id); }
  void pick(Picker& picker) override { pick_smallest(heap_, picker); }
  std::unique_ptr<Ranking> clone() const override { return std::make_unique<PriorityRanking>(*this); }

 private:
  Heap heap_;
  std::vector<std::uint8_t> priorities_;
  std::uint64_t clock_ = 0;
};

}  // namespace

std::unique_ptr<Ranking> make_suffix_first_ranking(std::uint32_t capacity) {
  return std::make_unique<SuffixFirstRanking>(capacity);
}
std::unique_ptr<Ranking> make_cost_aware_ranking(std::uint32_t capacity) {
  return std::make_unique<CostAwareRanking>(capacity);
}
std::unique_ptr<Ranking> make_priority_ranking(std::uint32_t capacity) {
  return std::make_unique<PriorityRanking>(capacity);
}

}  // namespace firn
