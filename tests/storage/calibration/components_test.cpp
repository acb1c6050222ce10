// Principal components: of data made from known directions, and by one method against the other.
#include "storage/calibration/components.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace firn {
namespace {

constexpr std::size_t kChannels = 40, kRows = 900;

std::vector<float> some_rows(float offset) {
  std::mt19937 random(2);
  const auto uniform = [&] { return static_cast<float>(random() % 20001) / 10000.0f - 1.0f; };
  std::vector<float> directions(8 * kChannels), rows(kRows * kChannels);
  for (float& value : directions) value = uniform();
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t d = 0; d < 8; ++d) {
      const float amount = uniform() / static_cast<float>(d + 1);
      for (std::size_t c = 0; c < kChannels; ++c) rows[r * kChannels + c] += amount * directions[d * kChannels + c];
    }
    for (std::size_t c = 0; c < kChannels; ++c) rows[r * kChannels + c] += 0.001f * uniform() + offset;
  }
  return rows;
}

TEST(Components, OfKnownDirectionsHoldAlmostEverything) {
  const std::vector<float> rows = some_rows(100.0f);  // an offset far larger than what is around it
  Covariance covariance(kChannels);
  covariance.add(rows.data(), kChannels, 600);
  covariance.add(rows.data() + 600 * kChannels, kChannels, kRows - 600);
  const std::vector<float> mean = covariance.mean();
  std::vector<double> plain(kChannels * kChannels);
  for (std::size_t a = 0; a < kChannels; ++a)
    for (std::size_t b = 0; b < kChannels; ++b) {
      for (std::size_t r = 0; r < kRows; ++r)
        plain[a * kChannels + b] += (rows[r * kChannels + a] - static_cast<double>(mean[a])) *
                                    (rows[r * kChannels + b] - static_cast<double>(mean[b])) / kRows;
    }
  std::vector<double> matrix = covariance.matrix();
  for (std::size_t i = 0; i < matrix.size(); ++i) ASSERT_NEAR(matrix[i], plain[i], 1e-4);
  double total = 0;
  for (std::size_t c = 0; c < kChannels; ++c) total += matrix[c * kChannels + c];
  const Result<Components> components = principal_components(matrix, kChannels, 8);
  ASSERT_TRUE(components.ok());
  double held = 0;
  for (std::size_t i = 0; i < 8; ++i) {
    held += components->variances[i];
    if (i > 0) {
      EXPECT_LE(components->variances[i], components->variances[i - 1]);
    }
    for (std::size_t j = 0; j <= i; ++j) {
      double dot = 0;
      for (std::size_t c = 0; c < kChannels; ++c)
        dot += static_cast<double>(components->basis[i * kChannels + c]) * components->basis[j * kChannels + c];
      EXPECT_NEAR(dot, i == j ? 1 : 0, 1e-5);
    }
  }
  EXPECT_GT(held, 0.9999 * total);
}

TEST(Components, RandomisedIterationFindsTheSameSpace) {
  const std::vector<float> rows = some_rows(0.0f);
  Covariance covariance(kChannels);
  covariance.add(rows.data(), kChannels, kRows);
  const std::vector<float> mean = covariance.mean();
  std::vector<float> centred = rows;
  for (std::size_t i = 0; i < rows.size(); ++i) centred[i] -= mean[i % kChannels];
  std::vector<double> matrix = covariance.matrix();
  const Result<Components> exact = principal_components(matrix, kChannels, 6);
  const Result<Components> random = randomised_components(centred.data(), kRows, kChannels, 6);
  ASSERT_TRUE(exact.ok() && random.ok());
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_NEAR(random->variances[i], exact->variances[i], 1e-4 * exact->variances[0]);
    double dot = 0;
    for (std::size_t c = 0; c < kChannels; ++c)
      dot += static_cast<double>(exact->basis[i * kChannels + c]) * random->basis[i * kChannels + c];
    EXPECT_NEAR(std::fabs(dot), 1, 1e-3);
  }
}

TEST(Components, AllVariancesSumToTheEnergy) {
  const std::vector<float> rows = some_rows(1.0f);
  Covariance covariance(kChannels);
  covariance.add(rows.data(), kChannels, kRows);
  std::vector<double> matrix = covariance.matrix();
  const Result<std::vector<double>> all = spectrum(matrix, kChannels);
  ASSERT_TRUE(all.ok());
  double sum = 0;
  for (const double variance : *all) sum += variance;
  EXPECT_NEAR(sum, covariance.energy(), 1e-6 * sum);
}

}  // namespace
}  // namespace firn
