// The range coder of firn: every number comes back, bytes are those that were promised, and whatever bytes there are,
// what comes out is numbers within bounds and a verdict.
#include "storage/codec/firn_coder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>

namespace firn {
namespace {

// Models as a calibration makes them: a double exponential at each class's ratio of spread to step.
std::vector<std::uint16_t> some_frequencies() {
  std::vector<std::uint16_t> frequencies;
  for (std::uint32_t k = 0; k < kFirnClasses; ++k) {
    const double spread = std::exp2((4.0 * k - 24) / 16) / (1u << firn_low_bits(k));
    std::uint32_t sum = 0;
    std::vector<double> shares;
    double all = 0;
    for (std::uint32_t s = 0; s < kFirnSymbols; ++s) {
      shares.push_back(s == 31 ? 1e-4 : std::exp(-std::abs(static_cast<int>(s) - 15) * 1.4 / spread));
      all += shares.back();
    }
    for (const double share : shares) {
      frequencies.push_back(static_cast<std::uint16_t>(1 + std::floor(share / all * ((1 << kFirnTotalBits) - 32))));
      sum += frequencies.back();
    }
    frequencies[k * kFirnSymbols + 15] += static_cast<std::uint16_t>((1u << kFirnTotalBits) - sum);
  }
  return frequencies;
}

const FirnModels& models() {
  static const FirnModels made = FirnModels::make(some_frequencies()).value();
  return made;
}

struct Coded {
  std::uint32_t klass;
  std::int32_t number;
};

std::vector<Coded> some_numbers(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Coded> numbers;
  for (std::size_t i = 0; i < count; ++i) {
    const auto klass = static_cast<std::uint32_t>(random() % kFirnClasses);
    const double spread = std::exp2((4.0 * klass - 24) / 16);
    double sum = 0;
    for (int k = 0; k < 6; ++k) sum += static_cast<double>(random() >> 11) * 0x1p-52 - 1;
    auto number = static_cast<std::int32_t>(std::lround(sum * spread));
    if (random() % 50 == 0)  // far beyond what the class is for
      number = static_cast<std::int32_t>(random() % (2u * kFirnLargest + 1)) - kFirnLargest;
    numbers.push_back({klass, number});
  }
  return numbers;
}

std::vector<std::byte> encoded(const std::vector<Coded>& numbers) {
  FirnEncoder encoder;
  for (std::size_t i = 0; i < numbers.size(); ++i)
    EXPECT_TRUE(encoder.put(i % kFirnStreams, models().of(numbers[i].klass), firn_low_bits(numbers[i].klass),
                            numbers[i].number));
  return encoder.finish();
}

TEST(FirnCoder, EveryNumberComesBack) {
  for (const std::size_t count : {0u, 1u, 3u, 4u, 1000u, 20001u}) {
    const std::vector<Coded> numbers = some_numbers(count, count);
    const std::vector<std::byte> bytes = encoded(numbers);
    Result<FirnDecoder> decoder = FirnDecoder::open(bytes);
    ASSERT_TRUE(decoder.ok()) << decoder.status().message();
    for (std::size_t i = 0; i < count; ++i)
      ASSERT_EQ(decoder->get(i % kFirnStreams, models().of(numbers[i].klass), firn_low_bits(numbers[i].klass)),
                numbers[i].number)
          << i << " of " << count;
    EXPECT_TRUE(decoder->finish().ok()) << count;
  }
}

TEST(FirnCoder, TheLargestNumbersComeBackAndLargerOnesAreRefused) {
  for (std::uint32_t k = 0; k < kFirnClasses; ++k)
    for (const std::int32_t number : {kFirnLargest, -kFirnLargest, 15, -15, 16, -16, -1, 0}) {
      FirnEncoder encoder;
      ASSERT_TRUE(encoder.put(0, models().of(k), firn_low_bits(k), number));
      const std::vector<std::byte> bytes = encoder.finish();
      Result<FirnDecoder> decoder = FirnDecoder::open(bytes);
      ASSERT_TRUE(decoder.ok());
      ASSERT_EQ(decoder->get(0, models().of(k), firn_low_bits(k)), number) << "class " << k;
      ASSERT_TRUE(decoder->finish().ok());
    }
  FirnEncoder encoder;
  EXPECT_FALSE(encoder.put(0, models().of(3), 0, kFirnLargest + 1));
  EXPECT_FALSE(encoder.put(0, models().of(3), 0, -kFirnLargest - 1));
}

// Within a hundredth of the models' own length, and the ends of four streams.
TEST(FirnCoder, LosesNextToNothing) {
  const std::vector<Coded> numbers = some_numbers(40000, 7);
  double bits = 0;
  for (const Coded& n : numbers) {
    const std::uint32_t low = firn_low_bits(n.klass);
    const std::int32_t high = n.number >> low;
    const std::uint32_t symbol = std::abs(high) <= 15 ? static_cast<std::uint32_t>(high + 15) : 31;
    const FirnModels::Class& model = models().of(n.klass);
    bits += low + kFirnTotalBits - std::log2(model.first[symbol + 1] - model.first[symbol]);
    if (symbol == 31) bits += 5 + std::floor(std::log2(2 * (std::abs(high) - 15) + (high < 0 ? 1 : 0)));
  }
  EXPECT_LT(static_cast<double>(encoded(numbers).size()), 1.003 * bits / 8 + 32);
}

TEST(FirnCoder, OddModelsAreCorrupt) {
  const std::vector<std::uint16_t> good = some_frequencies();
  EXPECT_TRUE(FirnModels::make(good).ok());
  EXPECT_EQ(FirnModels::make(std::span(good).first(good.size() - 1)).status().code(), Code::kCorrupt);
  for (const std::size_t at : {std::size_t{0}, good.size() / 2, good.size() - 1})
    for (const int change : {-1, 1, 0}) {
      std::vector<std::uint16_t> broken = good;
      broken[at] = change == 0 ? std::uint16_t{0} : static_cast<std::uint16_t>(broken[at] + change);
      EXPECT_EQ(FirnModels::make(broken).status().code(), Code::kCorrupt) << at;
    }
  std::vector<std::uint16_t> full(good.size(), 0xFFFF);
  EXPECT_EQ(FirnModels::make(full).status().code(), Code::kCorrupt);
}

// Decoding stops after as many numbers as were asked for, whatever the bytes are.
TEST(FirnCoder, DamageIsFoundAndNumbersStayInBounds) {
  const std::vector<Coded> numbers = some_numbers(600, 9);
  const std::vector<std::byte> good = encoded(numbers);
  const auto read = [&](const std::vector<std::byte>& bytes) -> Status {
    FIRN_ASSIGN(FirnDecoder decoder, FirnDecoder::open(bytes));
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      const std::int32_t number =
          decoder.get(i % kFirnStreams, models().of(numbers[i].klass), firn_low_bits(numbers[i].klass));
      EXPECT_TRUE(number >= -kFirnLargest && number <= kFirnLargest);
    }
    return decoder.finish();
  };
  ASSERT_TRUE(read(good).ok());
  for (std::size_t n = 0; n < good.size(); ++n) {
    const std::vector<std::byte> cut(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(n));
    ASSERT_EQ(read(cut).code(), Code::kCorrupt) << n;
  }
  std::mt19937_64 random(10);
  for (int i = 0; i < 10000; ++i) {
    std::vector<std::byte> broken = good;
    const std::size_t at = random() % broken.size();
    broken[at] ^= static_cast<std::byte>(1 + random() % 255);
    ASSERT_EQ(read(broken).code(), Code::kCorrupt) << i << ", seed 10";
  }
  for (int i = 0; i < 2000; ++i) {  // bytes from nowhere
    std::vector<std::byte> noise(random() % 400);
    for (std::byte& byte : noise) byte = static_cast<std::byte>(random());
    if (noise.size() >= 12 && i % 2 == 0)
      for (std::size_t s = 0; s < 3; ++s)
        noise[4 * s] = std::byte{5}, noise[4 * s + 1] = noise[4 * s + 2] = noise[4 * s + 3] = std::byte{0};
    ASSERT_EQ(read(noise).code(), Code::kCorrupt) << i << ", seed 10";
  }
}

}  // namespace
}  // namespace firn
