// indexed_heap.h: a binary heap of ids with a key each, smallest key on top; an id's key can change and an id can
// leave, in O(log n). Key must have operator<.
#pragma once

#include <cstdint>
#include <new>
#include <utility>
#include <vector>

namespace firn {

// For whoever takes ids out for a moment: without memory to remember one by, it stays, and he looks no further.
template <class Id, class Key>
bool remember(std::vector<std::pair<Id, Key>>& taken, Id id, const Key& key) {
  try {
    taken.emplace_back(id, key);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

template <class Key>
class IndexedHeap {
 public:
  explicit IndexedHeap(std::uint32_t capacity) : places_(capacity, kNowhere) { heap_.reserve(capacity); }
  bool empty() const { return heap_.empty(); }
  std::size_t size() const { return heap_.size(); }
  bool contains(std::uint32_t id) const { return places_[id] != kNowhere; }
  std::uint32_t top() const { return heap_[0].id; }
  const Key& key(std::uint32_t id) const { return heap_[places_[id]].key; }
  void set(std::uint32_t id, const Key& key) {
    if (!contains(id)) {
      heap_.push_back({key, id});
      up(heap_.size() - 1, {key, id});
      return;
    }
    const std::size_t at = places_[id];
    if (key < heap_[at].key) {
      up(at, {key, id});
    } else {
      down(at, {key, id});
    }
  }
  void erase(std::uint32_t id) {
    const std::size_t at = places_[id];
    places_[id] = kNowhere;
    const Node last = heap_.back();
    heap_.pop_back();
    if (at == heap_.size()) return;
    if (last.key < heap_[at].key) {
      up(at, last);
    } else {
      down(at, last);
    }
  }

 private:
  static constexpr std::uint32_t kNowhere = ~0u;
  struct Node {
    Key key;
    std::uint32_t id;
  };
  void put(std::size_t at, const Node& node) {
    heap_[at] = node;
    places_[node.id] = static_cast<std::uint32_t>(at);
  }
  void up(std::size_t at, const Node& node) {
    while (at > 0 && node.key < heap_[(at - 1) / 2].key) {
      put(at, heap_[(at - 1) / 2]);
      at = (at - 1) / 2;
    }
    put(at, node);
  }
  void down(std::size_t at, const Node& node) {
    for (std::size_t child; (child = 2 * at + 1) < heap_.size(); at = child) {
      if (child + 1 < heap_.size() && heap_[child + 1].key < heap_[child].key) ++child;
      if (!(heap_[child].key < node.key)) break;
      put(at, heap_[child]);
    }
    put(at, node);
  }
  std::vector<Node> heap_;
  std::vector<std::uint32_t> places_;
};

}  // namespace firn
