// half_reference.h: 16-bit floats by their definition, in double arithmetic: what the kernels' bit tricks must equal.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "firn/model.h"

namespace firn::testing {

// A binary format with mantissa_bits, the smallest normal exponent and the largest.
struct HalfFormat {
  int mantissa_bits, min_exponent, max_exponent;
};
inline constexpr HalfFormat kF16{10, -14, 15}, kBf16{7, -126, 127};

inline double decode(HalfFormat format, std::uint16_t bits) {
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  const int mantissa = bits & ((1 << format.mantissa_bits) - 1);
  const int exponent = (bits & 0x7FFF) >> format.mantissa_bits;
  const int special = 2 * format.max_exponent + 1;
  if (exponent == special)
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, format.min_exponent - format.mantissa_bits);
  return sign *
         std::ldexp(mantissa + (1 << format.mantissa_bits), exponent - 1 + format.min_exponent - format.mantissa_bits);
}

// To nearest, ties to even (the mode of nearbyint). Not for NaN.
inline std::uint16_t encode(HalfFormat format, double value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(value);
  const std::uint16_t infinity = static_cast<std::uint16_t>((2 * format.max_exponent + 1) << format.mantissa_bits);
  if (std::isinf(magnitude)) return sign | infinity;
  if (magnitude == 0) return sign;
  const int exponent = std::max(std::ilogb(magnitude), format.min_exponent);
  const auto steps = static_cast<std::uint32_t>(std::nearbyint(std::ldexp(magnitude, format.mantissa_bits - exponent)));
  // A normal number's leading bit adds one to the exponent field, and so does a mantissa that rounds up to the next
  // power.
  const std::uint32_t bits =
      (static_cast<std::uint32_t>(exponent - format.min_exponent) << format.mantissa_bits) + steps;
  return static_cast<std::uint16_t>(sign | std::min<std::uint32_t>(bits, infinity));
}

inline HalfFormat format_of(Dtype dtype) { return dtype == Dtype::kF16 ? kF16 : kBf16; }

// Writes value as an element of the type; returns what a reader will see.
inline double store(Dtype dtype, double value, std::byte* to) {
  if (dtype == Dtype::kF32) {
    const auto narrow = static_cast<float>(value);
    std::memcpy(to, &narrow, sizeof(narrow));
    return narrow;
  }
  const std::uint16_t bits = encode(format_of(dtype), value);
  std::memcpy(to, &bits, sizeof(bits));
  return decode(format_of(dtype), bits);
}

// All 65,536 values of a format: reference loops read millions of them.
inline const std::vector<double>& decoded(Dtype dtype) {
  const auto all = [](HalfFormat format) {
    std::vector<double> values(0x10000);
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits)
      values[bits] = decode(format, static_cast<std::uint16_t>(bits));
    return values;
  };
  static const std::vector<double> f16 = all(kF16), bf16 = all(kBf16);
  return dtype == Dtype::kF16 ? f16 : bf16;
}

inline double load(Dtype dtype, const std::byte* from) {
  if (dtype == Dtype::kF32) {
    float value = 0;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, from, sizeof(bits));
  return decoded(dtype)[bits];
}

}  // namespace firn::testing
