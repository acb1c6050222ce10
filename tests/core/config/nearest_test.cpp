#include "core/config/nearest.h"

#include <gtest/gtest.h>

#include <vector>

namespace firn {
namespace {

TEST(Nearest, CountsInsertionsDeletionsReplacementsAndSwaps) {
  EXPECT_EQ(edit_distance("", ""), 0u);
  EXPECT_EQ(edit_distance("", "abc"), 3u);
  EXPECT_EQ(edit_distance("budget", "budget"), 0u);
  EXPECT_EQ(edit_distance("bugdet", "budget"), 1u);
  EXPECT_EQ(edit_distance("budge", "budget"), 1u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("codec", "mode"), edit_distance("mode", "codec"));
}

TEST(Nearest, FindsARightNameInTheWrongSection) {
  const std::vector<std::string> keys{"device", "pool.budget", "protect.recent", "host.codec"};
  EXPECT_EQ(nearest("pool.bugdet", keys), "pool.budget");
  EXPECT_EQ(nearest("recent", keys), "protect.recent");
  EXPECT_EQ(nearest("pool.codec", keys), "host.codec");
  EXPECT_EQ(nearest("devise", keys), "device");
  EXPECT_EQ(nearest("x", {}), "");
}

TEST(Nearest, CutsLongWords) {
  const std::string longer(1 << 20, 'x');
  EXPECT_LE(edit_distance(longer, longer), 64u);
}

}  // namespace
}  // namespace firn
