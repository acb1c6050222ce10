#include "firn/status.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "core/base/check.h"

namespace firn {
namespace {

Result<int> half(int value) {
  if (value % 2 != 0) return Status(Code::kInvalidArgument, std::to_string(value) + " is odd");
  return value / 2;
}
Result<int> quarter(int value) {
  FIRN_ASSIGN(const int once, half(value));
  FIRN_ASSIGN(const int twice, half(once));
  return twice;
}
Status check_quarter(int value) {
  FIRN_TRY(quarter(value).status().with_context("quarter of " + std::to_string(value)));
  return {};
}

TEST(Status, AFailureTravelsWithItsReasonAndItsPlace) {
  EXPECT_TRUE(check_quarter(8).ok());
  EXPECT_EQ(check_quarter(8).code(), Code::kOk);
  const Status status = check_quarter(6);
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_EQ(status.message(), "quarter of 6: 3 is odd");
  EXPECT_TRUE(Status().with_context("nothing").ok());
}

TEST(Result, HoldsAValueOrAReason) {
  EXPECT_EQ(quarter(12).value(), 3);
  EXPECT_TRUE(quarter(12).status().ok());
  EXPECT_FALSE(quarter(7).ok());
  Result<std::unique_ptr<int>> owned = std::make_unique<int>(5);
  ASSERT_TRUE(owned.ok());
  const std::unique_ptr<int> taken = std::move(owned).value();
  EXPECT_EQ(*taken, 5);
}

TEST(Status, EveryCodeHasAName) {
  std::vector<std::string_view> names;
  for (const Code code :
       {Code::kOk, Code::kInvalidArgument, Code::kNoSpace, Code::kUnavailable, Code::kCorrupt, Code::kIo}) {
    names.push_back(to_string(code));
    EXPECT_NE(to_string(code), "unknown code");
  }
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::unique(names.begin(), names.end()), names.end());
}

TEST(CheckDeathTest, ABrokenInvariantStopsTheProgramAndSaysWhere) {
  FIRN_CHECK(1 + 1 == 2);
  EXPECT_DEATH(FIRN_CHECK(1 + 1 == 3), "status_test.cpp:[0-9]+: 1 \\+ 1 == 3");
}

}  // namespace
}  // namespace firn
