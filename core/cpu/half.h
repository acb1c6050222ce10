// half.h: 16-bit floats without the machine's help: what the vector code must agree with, and uses where it has to.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace firn::cpu {

// Rounds to nearest even; too large becomes infinity; a NaN keeps its upper payload and is made quiet.
constexpr std::uint16_t f16_of(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<std::uint16_t>(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
  if (magnitude >= 0x477FF000u) return static_cast<std::uint16_t>(sign | 0x7C00u);  // 65520 and more
  if (magnitude < 0x33000000u) return static_cast<std::uint16_t>(sign);             // less than half the smallest
  const bool normal = magnitude >= 0x38800000u;
  const std::uint32_t exponent = magnitude >> 23;
  const std::uint32_t shift = normal ? 13 : 126 - exponent;
  const std::uint32_t mantissa = normal ? magnitude - (112u << 23) : (magnitude & 0x7FFFFFu) | 0x800000u;
  const std::uint32_t kept = mantissa >> shift;
  const std::uint32_t rest = mantissa & ((1u << shift) - 1);
  const std::uint32_t half = 1u << (shift - 1);
  const std::uint32_t up = rest > half || (rest == half && (kept & 1u) != 0) ? 1 : 0;
  return static_cast<std::uint16_t>(sign | (kept + up));  // a carry out of the mantissa is the next exponent
}

inline void store_u16(std::byte* to, std::uint16_t value) { std::memcpy(to, &value, sizeof(value)); }

}  // namespace firn::cpu
