// coding.glsl: what kernels that code blocks share: elements of any type at any address, and the divisions of a quantiser.
// Vulkan lets a division be off by some units and lets drivers flush small numbers to zero, so divisions and 16-bit floats
// are integer arithmetic here: scales and codes are the host's, bit by bit. kDtype is the including shader's constant.
#include "addresses.glsl"
#include "fold.glsl"
#include "rounding.glsl"

layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer IntegerEntryAt { IntegerEntry value; };
layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer TransformEntryAt { TransformEntry value; };
layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer GroupEntryAt { GroupEntry value; };
const uint kIntegerEntryBytes = 24, kTransformEntryBytes = 40, kGroupEntryBytes = 16;
const uint kInfinite = 0x7F800000u, kMagnitude = 0x7FFFFFFFu, kNotANumber = 0x7FC00000u;

bool is_finite(float value) { return (floatBitsToUint(value) & kInfinite) != kInfinite; }

float half_value(uint half_bits) {
  const uint sign_bit = (half_bits & 0x8000u) << 16, magnitude = half_bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) return uintBitsToFloat(sign_bit | kInfinite | (magnitude & 0x3FFu) << 13);
  if (magnitude < 0x400u)  // subnormal: an integer times 2^-24
    return uintBitsToFloat(sign_bit | floatBitsToUint(times(float(magnitude), 5.9604644775390625e-8)));
  return uintBitsToFloat(sign_bit | ((magnitude << 13) + 0x38000000u));
}
bool half_finite(uint half_bits) { return (half_bits & 0x7C00u) != 0x7C00u; }

// An element of the cache's type.
uint element_bytes(uint dtype) { return dtype == kF32 ? 4u : 2u; }
float load_element(uvec2 row, uint i, uint dtype) {
  if (dtype == kF32) return FloatAt(offset_by(row, i * 4u)).value;
  const uint bits = load_half_word(offset_by(row, i * 2u));
  return dtype == kF16 ? half_value(bits) : uintBitsToFloat(bits << 16);
}
uint short_of(float value, uint dtype) {
  return dtype == kF16 ? half_of(floatBitsToUint(value)) : bf16_of(floatBitsToUint(value));
}

// Bits of value / n, rounded to nearest even, for a finite value of 0 or more and n of 3, 15, 127 or 255. What is far
// below the smallest half becomes 0.
uint divided(uint bits, uint n) {
  const uint exponent = bits >> 23;
  if (exponent <= 16u) return 0u;
  const uint significand = (bits & 0x7FFFFFu) | 0x800000u;
  uint shift = uint(findMSB(n));
  if ((significand << shift) / n < 0x800000u) ++shift;
  const uint quotient = (significand << shift) / n;
  const uint rest = (significand << shift) - quotient * n;
  // n is odd, so there are no ties; a carry out of the significand is the next exponent.
  return ((exponent - shift) << 23) + (quotient - 0x800000u) + (2u * rest > n ? 1u : 0u);
}

// 1 / a finite half, rounded to nearest even; 0 for 0. The smallest half has a reciprocal in f32.
float inverse_of(uint half_bits) {
  const uint magnitude = half_bits & 0x7FFFu;
  if (magnitude == 0u) return 0.0;
  // significand * 2^exponent, 1024 to 2047.
  uint significand = magnitude & 0x3FFu;
  int exponent = int(magnitude >> 10) - 25;
  if (magnitude >= 0x400u) {
    significand |= 0x400u;
  } else {
    const uint shift = 10u - uint(findMSB(significand));
    significand <<= shift;
    exponent = -24 - int(shift);
  }
  const uint sign_bit = (half_bits & 0x8000u) << 16;
  if (significand == 1024u) return uintBitsToFloat(sign_bit | uint(127 - 10 - exponent) << 23);
  // 2^34 / significand has 24 bits; in two steps, because it does not fit a word. A tie would need a power of two.
  const uint rest = (0x80000000u % significand) * 8u;
  const uint quotient = (0x80000000u / significand) * 8u + rest / significand;
  const uint up = 2u * (rest % significand) > significand ? 1u : 0u;
  return uintBitsToFloat(sign_bit | ((uint(127 - 11 - exponent) << 23) + (quotient - 0x800000u) + up));
}

// To the nearest integer, ties to even; |value| is small. Adding and taking away 1.5 * 2^23 rounds.
float round_even(float value) { return plus(plus(value, 12582912.0), -12582912.0); }
