// hazards.h: which bytes operations read and write, and which of them must not meet. Barriers come from here, and so
// does the check that none is missing: validation layers do not see memory that is reached by address, and a software
// driver runs everything in order, so neither would notice.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "firn/device.h"

namespace firn::vk {

struct ByteRange {
  DeviceAddress begin = 0, end = 0;
};

// A set of bytes. Bounded: beyond kMaxRanges pieces it becomes the one range around them, which can only cause a
// barrier too many.
class RangeSet {
 public:
  static constexpr std::size_t kMaxRanges = 2048;
  void add(DeviceAddress begin, std::uint64_t bytes);
  void add(const RangeSet& other);
  bool overlaps(const RangeSet& other) const;
  void clear() { ranges_.clear(), sorted_ = true; }
  bool empty() const { return ranges_.empty(); }
  std::span<const ByteRange> ranges() const;  // ascending and apart

 private:
  void normalise() const;
  mutable std::vector<ByteRange> ranges_;
  mutable bool sorted_ = true;
};

struct Access {
  RangeSet reads, writes;
};

// Everything since the last barrier.
class Outstanding {
 public:
  // Reading what is being written, writing what is being read or written.
  bool conflicts(const Access& access) const {
    return writes_.overlaps(access.reads) || writes_.overlaps(access.writes) || reads_.overlaps(access.writes);
  }
  void add(const Access& access) {
    reads_.add(access.reads);
    writes_.add(access.writes);
  }
  void clear() {
    reads_.clear();
    writes_.clear();
  }

 private:
  RangeSet reads_, writes_;
};

// An order of operations in which each comes after all earlier ones that it conflicts with; seed picks one of many.
std::vector<std::size_t> shuffled_order(std::span<const Access* const> accesses, std::uint64_t seed);

}  // namespace firn::vk
