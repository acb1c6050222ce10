// ghost_queue.h: names of blocks that were evicted, in order, without their bytes: what S3-FIFO and ARC remember.
// Bounded by its capacity; a name is a block's key hash.
#pragma once

#include <cstdint>
#include <deque>
#include <new>
#include <unordered_map>
#include <unordered_set>

namespace firn {

// A name that is going to come; without memory it comes as a stranger.
inline void announce(std::unordered_set<std::uint64_t>& returning, std::uint64_t name) {
  try {
    returning.insert(name);
  } catch (const std::bad_alloc&) {
  }
}

class GhostQueue {
 public:
  explicit GhostQueue(std::size_t capacity) : capacity_(capacity) {}
  std::size_t size() const { return stamps_.size(); }
  bool contains(std::uint64_t name) const { return stamps_.count(name) != 0; }
  void push(std::uint64_t name) {
    if (capacity_ == 0) return;
    try {
      order_.push_back({name, ++clock_});
      stamps_[name] = clock_;
      while (stamps_.size() > capacity_) pop();
      // A name that was taken out in the middle leaves its place behind; these never outnumber the names by much.
      if (order_.size() > 2 * capacity_ + 16) compact();
    } catch (const std::bad_alloc&) {  // without memory there are no memories
      stamps_.clear();
      order_.clear();
    }
  }
  bool take(std::uint64_t name) { return stamps_.erase(name) != 0; }
  void pop() {  // the oldest
    while (!order_.empty()) {
      const Place place = order_.front();
      order_.pop_front();
      const auto it = stamps_.find(place.name);
      if (it != stamps_.end() && it->second == place.stamp) {
        stamps_.erase(it);
        return;
      }
    }
  }

 private:
  struct Place {
    std::uint64_t name, stamp;
  };
  void compact() {
    std::deque<Place> kept;
    for (const Place& place : order_) {
      const auto it = stamps_.find(place.name);
      if (it != stamps_.end() && it->second == place.stamp) kept.push_back(place);
    }
    order_.swap(kept);
  }
  std::size_t capacity_ = 0;
  std::uint64_t clock_ = 0;
  std::deque<Place> order_;
  std::unordered_map<std::uint64_t, std::uint64_t> stamps_;
};

}  // namespace firn
