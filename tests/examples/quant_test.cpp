#include "examples/llama/quant.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "llama_test_util.h"

namespace firn::llama {
namespace {

std::vector<std::byte> bytes(std::initializer_list<unsigned> values) {
  std::vector<std::byte> out;
  for (const unsigned value : values) out.push_back(static_cast<std::byte>(value));
  return out;
}

// f16 bytes: 0x3800 = 0.5, 0xc000 = -2, 0x3c00 = 1.
TEST(Quant, Q41IsScaleTimesNibblePlusMinimumWithLowNibblesFirst) {
  auto block = bytes({0x00, 0x38, 0x00, 0xc0});
  for (unsigned i = 0; i < 16; ++i) block.push_back(static_cast<std::byte>(i | (15 - i) << 4));
  std::vector<float> out(32);
  dequantise_row(TensorType::kQ4_1, block, out);
  for (std::size_t i = 0; i < 16; ++i) {
    EXPECT_EQ(out[i], 0.5f * static_cast<float>(i) - 2.0f) << i;
    EXPECT_EQ(out[16 + i], 0.5f * static_cast<float>(15 - i) - 2.0f) << i;
  }
}

TEST(Quant, Q40IsScaleTimesNibbleLessEight) {
  auto block = bytes({0x00, 0xc0});
  for (unsigned i = 0; i < 16; ++i) block.push_back(static_cast<std::byte>(i | 8u << 4));
  std::vector<float> out(32);
  dequantise_row(TensorType::kQ4_0, block, out);
  for (std::size_t i = 0; i < 16; ++i) {
    EXPECT_EQ(out[i], -2.0f * (static_cast<float>(i) - 8.0f)) << i;
    EXPECT_EQ(out[16 + i], 0.0f) << i;
  }
}

TEST(Quant, Q80IsScaleTimesSignedByteAndRowsAreBlockAfterBlock) {
  std::vector<std::byte> row;
  for (const unsigned scale : {0x38u, 0x3cu}) {  // 0.5, then 1
    row.push_back(std::byte{0});
    row.push_back(static_cast<std::byte>(scale));
    for (int i = 0; i < 32; ++i) row.push_back(static_cast<std::byte>(static_cast<unsigned char>(i * 8 - 128)));
  }
  std::vector<float> out(64);
  dequantise_row(TensorType::kQ8_0, row, out);
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(out[static_cast<std::size_t>(i)], 0.5f * static_cast<float>(i * 8 - 128)) << i;
    EXPECT_EQ(out[static_cast<std::size_t>(32 + i)], static_cast<float>(i * 8 - 128)) << i;
  }
}

TEST(Quant, PlainRowsAreReadAsTheyAre) {
  const float values[] = {1.5f, -0.0f, 3e38f};
  std::vector<std::byte> row(sizeof(values));
  std::memcpy(row.data(), values, sizeof(values));
  std::vector<float> out(3);
  dequantise_row(TensorType::kF32, row, out);
  EXPECT_EQ(std::memcmp(out.data(), values, sizeof(values)), 0);

  out.resize(2);
  dequantise_row(TensorType::kF16, bytes({0x00, 0x38, 0x00, 0xc0}), out);
  EXPECT_EQ(out, (std::vector<float>{0.5f, -2.0f}));
}

TEST(Quant, EveryHalfIsItsFormulasValue) {
  for (std::uint32_t half = 0; half < 65536; ++half) {
    const float value = half_to_float(static_cast<std::uint16_t>(half));
    const int exponent = static_cast<int>(half >> 10 & 31u), mantissa = static_cast<int>(half & 1023u);
    if (exponent == 31 && mantissa != 0) {
      EXPECT_TRUE(std::isnan(value)) << half;
      continue;
    }
    float expected = exponent == 31  ? std::numeric_limits<float>::infinity()
                     : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                     : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
    if ((half & 0x8000u) != 0) expected = -expected;
    EXPECT_EQ(value, expected) << half;
    EXPECT_EQ(std::signbit(value), (half & 0x8000u) != 0) << half;
  }
}

}  // namespace
}  // namespace firn::llama
