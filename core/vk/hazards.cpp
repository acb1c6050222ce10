#include "core/vk/hazards.h"

#include <algorithm>

namespace firn::vk {

void RangeSet::add(DeviceAddress begin, std::uint64_t bytes) {
  if (bytes == 0) return;
  const DeviceAddress end = begin + bytes;
  if (!ranges_.empty() && sorted_ && begin >= ranges_.back().begin && begin <= ranges_.back().end) {
    ranges_.back().end = std::max(ranges_.back().end, end);  // blocks of a pool often lie one behind the other
    return;
  }
  sorted_ = sorted_ && (ranges_.empty() || begin > ranges_.back().end);
  ranges_.push_back({begin, end});
  if (ranges_.size() <= kMaxRanges) return;
  normalise();
  if (ranges_.size() <= kMaxRanges / 2) return;
  ranges_.front().end = ranges_.back().end;
  ranges_.resize(1);
}

void RangeSet::add(const RangeSet& other) {
  for (const ByteRange& range : other.ranges()) add(range.begin, range.end - range.begin);
}

void RangeSet::normalise() const {
  if (sorted_) return;
  std::sort(ranges_.begin(), ranges_.end(), [](const ByteRange& a, const ByteRange& b) { return a.begin < b.begin; });
  std::size_t kept = 0;
  for (std::size_t i = 1; i < ranges_.size(); ++i) {
    if (ranges_[i].begin <= ranges_[kept].end) {
      ranges_[kept].end = std::max(ranges_[kept].end, ranges_[i].end);
    } else {
      ranges_[++kept] = ranges_[i];
    }
  }
  ranges_.resize(kept + 1);
  sorted_ = true;
}

std::span<const ByteRange> RangeSet::ranges() const {
  normalise();
  return ranges_;
}

bool RangeSet::overlaps(const RangeSet& other) const {
  const std::span<const ByteRange> a = ranges(), b = other.ranges();
  for (std::size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    if (a[i].begin < b[j].end && b[j].begin < a[i].end) return true;
    a[i].end <= b[j].end ? ++i : ++j;
  }
  return false;
}

std::vector<std::size_t> shuffled_order(std::span<const Access* const> accesses, std::uint64_t seed) {
  const auto conflict = [&](std::size_t a, std::size_t b) {
    Outstanding earlier;
    earlier.add(*accesses[a]);
    return earlier.conflicts(*accesses[b]);
  };
  std::vector<std::size_t> order;
  std::vector<bool> done(accesses.size());
  while (order.size() < accesses.size()) {
    std::vector<std::size_t> ready;
    for (std::size_t i = 0; i < accesses.size(); ++i) {
      bool free = !done[i];
      for (std::size_t j = 0; free && j < i; ++j) free = done[j] || !conflict(j, i);
      if (free) ready.push_back(i);
    }
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    order.push_back(ready[(seed >> 33) % ready.size()]);
    done[order.back()] = true;
  }
  return order;
}

}  // namespace firn::vk
