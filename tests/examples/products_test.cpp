#include "examples/llama/products.h"

#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "llama_test_util.h"

namespace firn::llama {
namespace {

constexpr TensorType kTypes[] = {TensorType::kF32, TensorType::kF16, TensorType::kQ4_0, TensorType::kQ4_1,
                                 TensorType::kQ8_0};

// A tensor with its bytes. Scales and plain weights are modest numbers, codes are any bits.
struct RandomTensor {
  std::vector<std::byte> bytes;
  Tensor tensor;

  RandomTensor(TensorType type, std::size_t rows, std::size_t columns, std::uint64_t seed) {
    Random random(seed);
    bytes.resize(row_bytes(type, columns) * rows);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.below(256));
    const std::size_t block = row_bytes(type, block_columns(type)), halves = type == TensorType::kQ4_1 ? 2 : 1;
    for (std::size_t at = 0; at < bytes.size(); at += block) {
      if (type == TensorType::kF32) {
        const float value = random.symmetric();
        std::memcpy(&bytes[at], &value, 4);
        continue;
      }
      for (std::size_t h = 0; h < halves; ++h) {  // +-0.25 to 0.5: exponent 13, any mantissa
        const auto half = static_cast<std::uint16_t>(random.below(2) << 15 | 13u << 10 | random.below(1024));
        std::memcpy(&bytes[at + 2 * h], &half, 2);
      }
    }
    tensor.name = "random";
    tensor.type = type;
    tensor.rows = rows;
    tensor.columns = columns;
    tensor.data = bytes;
  }
};

std::vector<float> random_floats(std::size_t count, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = random.symmetric();
  return values;
}

std::vector<float> product(ThreadPool& threads, const Matrix& matrix, std::span<const float> x) {
  const std::size_t tokens = x.size() / matrix.columns();
  std::vector<float> y(tokens * matrix.rows(), NAN);
  const Product one{&matrix, x.data(), y.data()};
  multiply(threads, tokens, {&one, 1});
  return y;
}

TEST(Products, AgreeWithDoublesWithinTheRoundingOfOneChain) {
  ThreadPool threads(2);
  for (const TensorType type : kTypes)
    for (const auto& [rows, columns] : {std::pair<std::size_t, std::size_t>{1, 32}, {31, 64}, {33, 576}, {96, 1536}}) {
      const RandomTensor weights(type, rows, columns, rows * columns);
      LLAMA_ASSERT_OK_AND_ASSIGN(const Matrix matrix, Matrix::pack(weights.tensor));
      const std::vector<float> x = random_floats(7 * columns, 5);
      const std::vector<float> y = product(threads, matrix, x);
      std::vector<float> row(columns);
      for (std::size_t r = 0; r < rows; ++r) {
        dequantise_row(type, weights.tensor.row(r), row);
        for (std::size_t t = 0; t < 7; ++t) {
          double sum = 0, size = 0;
          for (std::size_t k = 0; k < columns; ++k) {
            const double term = static_cast<double>(row[k]) * static_cast<double>(x[t * columns + k]);
            sum += term;
            size += std::abs(term);
          }
          const double bound = static_cast<double>(columns) * std::numeric_limits<float>::epsilon() / 2 * size;
          ASSERT_NEAR(y[t * rows + r], sum, bound) << to_string(type) << " " << rows << "x" << columns << " row " << r;
        }
      }
    }
}

// The instruction sets this machine can run; each test body runs under every one.
std::vector<std::int64_t> targets() {
  std::vector<std::int64_t> found;
  for (std::int64_t left = hwy::SupportedTargets() & HWY_TARGETS; left != 0; left &= left - 1)
    found.push_back(left & -left);
  return found;
}
void use_target(std::int64_t target) {  // 0: back to normal
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

TEST(Products, ATokensBitsDoNotDependOnBatchChunksOrThreads) {
  constexpr std::size_t kTokens = 200, kColumns = 800,
                        kRows = 70;  // more than one expansion and one share, a partial panel
  for (const std::int64_t target : targets())
    for (const TensorType type : kTypes) {
      use_target(target);
      const RandomTensor weights(type, kRows, kColumns, 11);
      LLAMA_ASSERT_OK_AND_ASSIGN(const Matrix matrix, Matrix::pack(weights.tensor));
      const std::vector<float> x = random_floats(kTokens * kColumns, 12);
      ThreadPool one(1), three(3);
      std::vector<float> alone;
      for (std::size_t t = 0; t < kTokens; ++t) {
        const auto y = product(one, matrix, std::span(x).subspan(t * kColumns, kColumns));
        alone.insert(alone.end(), y.begin(), y.end());
      }
      for (const std::size_t batch : {2, 3, 4, 5, 6, 12, 13, 29, 200})
        for (std::size_t start : {std::size_t{0}, std::size_t{1}}) {
          const std::size_t tokens = std::min(batch, kTokens - start);
          const auto y =
              product(batch % 2 == 0 ? three : one, matrix, std::span(x).subspan(start * kColumns, tokens * kColumns));
          ASSERT_EQ(std::memcmp(y.data(), alone.data() + start * kRows, y.size() * sizeof(float)), 0)
              << to_string(type) << ", batch of " << tokens << " from " << start << ", " << hwy::TargetName(target);
        }
    }
  use_target(0);
}

TEST(Products, SeveralAtOnceGiveWhatEachGivesAlone) {
  ThreadPool threads(2);
  const RandomTensor a(TensorType::kQ4_1, 64, 96, 1), b(TensorType::kF32, 33, 96, 2), c(TensorType::kQ8_0, 5, 96, 3);
  std::vector<Matrix> matrices;
  for (const RandomTensor* weights : {&a, &b, &c}) {
    LLAMA_ASSERT_OK_AND_ASSIGN(Matrix matrix, Matrix::pack(weights->tensor));
    matrices.push_back(std::move(matrix));
  }
  for (const std::size_t tokens : {1, 30}) {
    const std::vector<float> x = random_floats(tokens * 96, 4);
    std::vector<std::vector<float>> y;
    std::vector<Product> products;
    for (const Matrix& matrix : matrices) y.emplace_back(tokens * matrix.rows());
    for (std::size_t i = 0; i < 3; ++i) products.push_back({&matrices[i], x.data(), y[i].data()});
    multiply(threads, tokens, products);
    for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(y[i], product(threads, matrices[i], x)) << i;
  }
}

TEST(Products, FusedInstructionSetsOfAnyWidthAgreeBitForBit) {
  const std::int64_t fused = HWY_AVX2 | HWY_AVX3 | HWY_AVX3_DL;
  const RandomTensor weights(TensorType::kQ4_1, 64, 576, 21);
  LLAMA_ASSERT_OK_AND_ASSIGN(const Matrix matrix, Matrix::pack(weights.tensor));
  const std::vector<float> x = random_floats(20 * 576, 22);
  ThreadPool threads(1);
  std::vector<float> first;
  for (const std::int64_t target : targets()) {
    if ((target & fused) == 0) continue;
    use_target(target);
    const auto y = product(threads, matrix, x);
    if (first.empty()) first = y;
    EXPECT_EQ(y, first) << hwy::TargetName(target);
  }
  use_target(0);
  if (first.empty()) GTEST_SKIP() << "no instruction set with fused multiply-add here";
}

TEST(Products, NoTokensIsNoWork) {
  ThreadPool threads(1);
  multiply(threads, 0, {});
  const RandomTensor weights(TensorType::kF32, 2, 32, 1);
  LLAMA_ASSERT_OK_AND_ASSIGN(const Matrix matrix, Matrix::pack(weights.tensor));
  const Product none{&matrix, nullptr, nullptr};
  multiply(threads, 0, {&none, 1});
}

TEST(Products, RefuseColumnsThatAreNoWholeBlock) {
  const RandomTensor weights(TensorType::kF32, 2, 33, 1);
  const Status status = Matrix::pack(weights.tensor).status();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("33 columns"), std::string::npos);
}

}  // namespace
}  // namespace firn::llama
