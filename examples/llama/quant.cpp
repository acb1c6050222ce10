#include "examples/llama/quant.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "examples/llama/check.h"

namespace firn::llama {
namespace {

std::uint16_t load_u16(const std::byte* from) {
  std::uint16_t value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

unsigned nibble(const std::byte* nibbles, std::size_t i) {
  const auto byte = static_cast<unsigned>(nibbles[i % 16]);
  return i < 16 ? byte & 15u : byte >> 4;
}

// The fused form is the meaning: the packed kernels compute scale * nibble + minimum with one rounding as well.
void dequantise_block(TensorType type, const std::byte* block, float* out) {
  const float scale = half_to_float(load_u16(block));
  if (type == TensorType::kQ8_0) {
    for (std::size_t i = 0; i < kQuantBlock; ++i)
      out[i] = scale * static_cast<float>(static_cast<signed char>(block[2 + i]));
  } else if (type == TensorType::kQ4_0) {
    for (std::size_t i = 0; i < kQuantBlock; ++i) out[i] = scale * (static_cast<float>(nibble(block + 2, i)) - 8.0f);
  } else {
    const float minimum = half_to_float(load_u16(block + 2));
    for (std::size_t i = 0; i < kQuantBlock; ++i)
      out[i] = std::fma(scale, static_cast<float>(nibble(block + 4, i)), minimum);
  }
}

}  // namespace

std::string_view to_string(TensorType type) {
  switch (type) {
    case TensorType::kF32:
      return "F32";
    case TensorType::kF16:
      return "F16";
    case TensorType::kQ4_0:
      return "Q4_0";
    case TensorType::kQ4_1:
      return "Q4_1";
    case TensorType::kQ8_0:
      return "Q8_0";
  }
  return "unknown";
}

bool is_supported(TensorType type) { return to_string(type) != "unknown"; }

std::size_t block_columns(TensorType type) {
  return type == TensorType::kF32 || type == TensorType::kF16 ? 1 : kQuantBlock;
}

std::size_t row_bytes(TensorType type, std::size_t columns) {
  LLAMA_CHECK(columns % block_columns(type) == 0);
  switch (type) {
    case TensorType::kF32:
      return columns * 4;
    case TensorType::kF16:
      return columns * 2;
    case TensorType::kQ4_0:
      return columns / kQuantBlock * 18;
    case TensorType::kQ4_1:
      return columns / kQuantBlock * 20;
    case TensorType::kQ8_0:
      return columns / kQuantBlock * 34;
  }
  LLAMA_CHECK(false);
}

float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31u, mantissa = half & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const std::uint32_t wide = exponent == 31 ? 255u : exponent + 112u;  // infinities and NaNs stay what they are
  return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

void dequantise_row(TensorType type, std::span<const std::byte> row, std::span<float> out) {
  LLAMA_CHECK(row.size() == row_bytes(type, out.size()));
  if (type == TensorType::kF32) {
    std::memcpy(out.data(), row.data(), row.size());
  } else if (type == TensorType::kF16) {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = half_to_float(load_u16(row.data() + 2 * i));
  } else {
    const std::size_t block_bytes = row_bytes(type, kQuantBlock);
    for (std::size_t i = 0; i * kQuantBlock < out.size(); ++i)
      dequantise_block(type, row.data() + i * block_bytes, out.data() + i * kQuantBlock);
  }
}

}  // namespace firn::llama
