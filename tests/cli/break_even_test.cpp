#include "cli/break_even.h"

#include <gtest/gtest.h>

namespace firn::cli {
namespace {

TEST(BreakEven, IsWhereTheTwoLinesCross) {
  // Restoring: 10 ms and 0.1 ms a token. Recomputing: 1.1 ms a token when short. They cross at 10 tokens.
  const BreakEven even = break_even({100, 0.020, 0.110}, {1100, 0.120, 2.0});
  EXPECT_NEAR(even.restore_fixed_s, 0.010, 1e-9);
  EXPECT_NEAR(even.restore_token_s, 0.0001, 1e-12);
  EXPECT_NEAR(even.recompute_token_s, 0.0011, 1e-12);
  EXPECT_EQ(even.tokens, 16u);  // whole blocks
  EXPECT_EQ(break_even({100, 0.120, 0.110}, {1100, 0.220, 2.0}).tokens, 112u);
}

TEST(BreakEven, SaysWhenRestoringNeverPays) { EXPECT_FALSE(break_even({100, 0.2, 0.1}, {1100, 2.2, 1.5}).tokens); }

TEST(BreakEven, TakesNoiseForZeroAndNotForNegativeTime) {
  const BreakEven even = break_even({100, 0.030, 0.110}, {1100, 0.020, 2.0});
  EXPECT_EQ(even.restore_token_s, 0);
  EXPECT_NEAR(even.restore_fixed_s, 0.030, 1e-9);
  EXPECT_EQ(even.tokens, 32u);
}

TEST(Median, IsTheMiddleOne) {
  const double odd[] = {5, 1, 3}, even[] = {4, 1, 3, 2};
  EXPECT_EQ(median(odd), 3);
  EXPECT_EQ(median(even), 2.5);
}

}  // namespace
}  // namespace firn::cli
