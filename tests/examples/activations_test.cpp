#include "examples/llama/activations.h"

#include <cmath>

#include "llama_test_util.h"

namespace firn::llama {
namespace {

TEST(Activations, RmsNormDividesByTheRootOfTheMeanSquare) {
  std::vector<float> x = {3, -4, 0, 5, 1, 1, 2, 2, 2};  // squares add up to 64
  const std::vector<float> weight = {1, 2, 1, 1, 1, 1, 1, 1, -1};
  std::vector<float> out(9);
  rms_norm(x, weight, 0, out);
  const double root = 8.0 / 3.0;
  for (std::size_t i = 0; i < 9; ++i) EXPECT_NEAR(out[i], x[i] / root * weight[i], 1e-6) << i;
  rms_norm(x, weight, 0, x);
  EXPECT_EQ(x, out) << "in place";
}

TEST(Activations, RotationTurnsAdjacentPairsByPositionTimesFrequency) {
  const std::vector<float> frequencies = {1.0f, 0.25f};
  std::vector<float> cosines(2), sines(2), head = {1, 0, 0, 2, 7, 8};  // the last pair is not rotated
  fill_rotation(frequencies, 3, cosines, sines);
  rotate(cosines, sines, head.data());
  EXPECT_NEAR(head[0], std::cos(3.0), 1e-6);
  EXPECT_NEAR(head[1], std::sin(3.0), 1e-6);
  EXPECT_NEAR(head[2], -2 * std::sin(0.75), 1e-6);
  EXPECT_NEAR(head[3], 2 * std::cos(0.75), 1e-6);
  EXPECT_EQ(head[4], 7);
  EXPECT_EQ(head[5], 8);
}

TEST(Activations, SwigluIsTheFormulaEvenFarOut) {
  std::vector<float> gate(64), up(64);
  for (std::size_t i = 0; i < 64; ++i) {
    gate[i] = static_cast<float>(i) * 0.4f - 12.0f;
    up[i] = static_cast<float>(i) - 20.0f;
  }
  gate[0] = -1e30f;
  gate[1] = -120.0f;
  gate[2] = 200.0f;
  const std::vector<float> before = gate;
  swiglu(gate, up);
  for (std::size_t i = 0; i < 64; ++i) {
    const double g = before[i], expected = g / (1 + std::exp(-g)) * up[i];
    EXPECT_NEAR(gate[i], expected, 1e-6 * std::max(1.0, std::abs(expected))) << i;
    EXPECT_TRUE(std::isfinite(gate[i])) << i;
  }
}

}  // namespace
}  // namespace firn::llama
