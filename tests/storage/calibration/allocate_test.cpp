// The allocation against trying everything, and its errors against quantising by hand.
#include "storage/calibration/allocate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "storage/codec/kvtc_codec.h"
#include "storage/codec/lossy_kernels.h"

namespace firn {
namespace {

StackErrors random_errors(std::uint32_t components, std::mt19937& random) {
  StackErrors errors;
  errors.components = components;
  const auto real = [&](double most) { return most * static_cast<double>(random() % 10000 + 1) / 10000.0; };
  for (std::uint32_t c = 0; c < components; ++c) errors.dropped.push_back(real(10));
  for (std::size_t s = 0; s < kGroupSizes.size() && kGroupSizes[s] <= components; ++s)
    for (std::size_t b = 0; b < kGroupBits.size(); ++b)
      for (std::uint32_t first = 0; first + kGroupSizes[s] <= components; ++first)
        errors.coded[s][b].push_back(real(kGroupSizes[s] * 4.0 / kGroupBits[b]));
  return errors;
}

// Every way to cut [at, components) into groups that the budget allows.
double try_everything(const StackErrors& errors, std::uint32_t at, std::int64_t budget, double so_far, double best) {
  if (so_far >= best) return best;  // errors only add
  if (at == errors.components) return so_far;
  for (std::size_t s = 0; s < kGroupSizes.size() && at + kGroupSizes[s] <= errors.components; ++s)
    for (std::size_t b = 0; b < kGroupBits.size(); ++b) {
      const std::int64_t left = budget - kGroupSizes[s] * kGroupBits[b] - 32;
      if (left >= 0) best = try_everything(errors, at + kGroupSizes[s], left, so_far + errors.coded[s][b][at], best);
    }
  return try_everything(errors, at + 1, budget, so_far + errors.dropped[at], best);
}

TEST(Allocate, EqualsTryingEverything) {
  std::mt19937 random(3);
  for (int problem = 0; problem < 300; ++problem) {
    const std::uint32_t components = random() % 32 + 1;
    const std::uint32_t budget = random() % (components > 16 ? 150 : 300);
    const StackErrors errors = random_errors(components, random);
    const std::vector<StackPlan> plans = allocate_bits({&errors, 1}, budget);
    ASSERT_EQ(plans.size(), 1u);
    EXPECT_LE(plan_bits(plans[0]), budget);
    EXPECT_LE(plan_components(plans[0]), components);
    const double best = try_everything(errors, 0, budget, 0, 1e30);
    ASSERT_NEAR(planned_error(errors, plans[0]), best, 1e-9)
        << "problem " << problem << ": " << components << " components, " << budget << " bits";
  }
}

TEST(Allocate, StacksShareOneBudgetAndNoGroup) {
  std::mt19937 random(4);
  for (int problem = 0; problem < 100; ++problem) {
    const std::vector<StackErrors> stacks = {random_errors(random() % 16 + 1, random),
                                             random_errors(random() % 16 + 1, random)};
    const std::uint32_t budget = random() % 200;
    const std::vector<StackPlan> plans = allocate_bits(stacks, budget);
    EXPECT_LE(plan_bits(plans[0]) + plan_bits(plans[1]), budget);
    double best = 1e30;
    for (std::uint32_t first = 0; first <= budget; first += 2)
      best = std::min(
          best, try_everything(stacks[0], 0, first, 0, 1e30) + try_everything(stacks[1], 0, budget - first, 0, 1e30));
    ASSERT_NEAR(planned_error(stacks[0], plans[0]) + planned_error(stacks[1], plans[1]), best, 1e-9);
  }
}

TEST(Allocate, ErrorsAreThoseOfQuantisingAndPacking) {
  constexpr std::size_t kTokens = 64, kComponents = 80;
  std::mt19937 random(5);
  std::vector<float> coefficients(kTokens * kComponents);
  for (std::size_t i = 0; i < coefficients.size(); ++i)
    coefficients[i] =
        (static_cast<float>(random() % 2001) - 1000.0f) / static_cast<float>(100 + 50 * (i % kComponents));
  const StackErrors errors = measure_errors(coefficients.data(), kComponents, kTokens, kComponents, nullptr);
  const StackPlan plan = {{.size = 1, .bits = 2},
                          {.size = 16, .bits = 8},
                          {.size = 2, .bits = 0},
                          {.size = 16, .bits = 4},
                          {.size = 16, .bits = 2}};
  std::vector<std::byte> packed(packed_bytes(plan, kTokens));
  std::vector<float> decoded(coefficients.size(), 0.0f), unpacked(coefficients.size(), 0.0f);
  ASSERT_TRUE(pack_coefficients(plan, coefficients.data(), kComponents, kTokens, packed, decoded.data()));
  ASSERT_TRUE(unpack_coefficients(plan, packed, kTokens, kComponents, unpacked.data()).ok());
  EXPECT_EQ(decoded, unpacked);
  EXPECT_EQ(packed.size() * 8, plan_bits(plan) * kTokens);
  const double error = lossy::distance(coefficients.data(), unpacked.data(), coefficients.size()) / kTokens;
  EXPECT_NEAR(planned_error(errors, plan), error, error * 1e-4);
}

TEST(Allocate, MoreBitsNeverHurt) {
  std::mt19937 random(6);
  const StackErrors errors = random_errors(300, random);
  double before = 1e30;
  for (std::uint64_t budget = 0; budget < 3000; budget += 100) {
    const double error = planned_error(errors, allocate_bits({&errors, 1}, budget)[0]);
    EXPECT_LE(error, before + 1e-9);
    before = error;
  }
}

}  // namespace
}  // namespace firn
