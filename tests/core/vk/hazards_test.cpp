// Which accesses must not meet: pure books, no driver.
#include "core/vk/hazards.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace firn::vk {
namespace {

TEST(RangeSet, OverlapsExactlyWhereSetsOfBytesDo) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    RangeSet a, b;
    std::set<int> in_a, in_b;
    const auto add = [&](RangeSet& ranges, std::set<int>& bytes) {
      const int begin = static_cast<int>(random() % 200), count = static_cast<int>(random() % 6);
      ranges.add(static_cast<DeviceAddress>(begin), static_cast<std::uint64_t>(count));
      for (int i = begin; i < begin + count; ++i) bytes.insert(i);
    };
    for (unsigned i = random() % 9; i != 0; --i) add(a, in_a);
    for (unsigned i = random() % 9; i != 0; --i) add(b, in_b);
    bool common = false;
    for (const int byte : in_a) common = common || in_b.contains(byte);
    ASSERT_EQ(a.overlaps(b), common) << "round " << round;
    ASSERT_EQ(b.overlaps(a), common) << "round " << round;
    std::uint64_t bytes = 0;
    for (const ByteRange& range : a.ranges()) bytes += range.end - range.begin;
    ASSERT_EQ(bytes, in_a.size());
  }
}

TEST(RangeSet, StaysBoundedAndNeverForgetsAByte) {
  RangeSet many;
  for (std::uint64_t i = 0; i < 100'000; ++i) many.add(1'000'000 + (i * 7919 % 100'000) * 100, 10);
  EXPECT_LE(many.ranges().size(), RangeSet::kMaxRanges);
  for (std::uint64_t i = 0; i < 100'000; i += 997) {
    RangeSet one;
    one.add(1'000'000 + i * 100, 1);
    ASSERT_TRUE(many.overlaps(one)) << i;
  }
  RangeSet before;
  before.add(0, 1'000'000);
  EXPECT_FALSE(many.overlaps(before));
}

TEST(Outstanding, ReadersMayMeetAndWritersMayNot) {
  const auto access = [](DeviceAddress read, DeviceAddress written) {
    Access out;
    if (read != 0) out.reads.add(read, 8);
    if (written != 0) out.writes.add(written, 8);
    return out;
  };
  Outstanding outstanding;
  outstanding.add(access(100, 200));
  EXPECT_FALSE(outstanding.conflicts(access(100, 0))) << "read after read";
  EXPECT_TRUE(outstanding.conflicts(access(200, 0))) << "read after write";
  EXPECT_TRUE(outstanding.conflicts(access(0, 100))) << "write after read";
  EXPECT_TRUE(outstanding.conflicts(access(0, 200))) << "write after write";
  EXPECT_FALSE(outstanding.conflicts(access(108, 208))) << "neighbours";
  outstanding.clear();
  EXPECT_FALSE(outstanding.conflicts(access(200, 100)));
}

TEST(ShuffledOrder, MovesWhatMayMoveAndKeepsWhatMayNot) {
  // 0 writes a; 1 reads a and writes b; 2 is alone; 3 reads b.
  std::vector<Access> accesses(4);
  accesses[0].writes.add(100, 4);
  accesses[1].reads.add(100, 4);
  accesses[1].writes.add(200, 4);
  accesses[2].writes.add(300, 4);
  accesses[3].reads.add(200, 4);
  std::vector<const Access*> pointers;
  for (const Access& access : accesses) pointers.push_back(&access);
  std::set<std::vector<std::size_t>> seen;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const std::vector<std::size_t> order = shuffled_order(pointers, seed);
    std::vector<std::size_t> place(4);
    for (std::size_t i = 0; i < 4; ++i) place[order[i]] = i;
    ASSERT_LT(place[0], place[1]);
    ASSERT_LT(place[1], place[3]);
    seen.insert(order);
  }
  EXPECT_EQ(seen.size(), 4u) << "operation 2 may stand in any of four places";
}

}  // namespace
}  // namespace firn::vk
