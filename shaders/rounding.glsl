// rounding.glsl: f32 to 16-bit floats with integer arithmetic, because packHalf2x16 may round as the driver likes: the bytes
// equal the host's.

// To nearest, ties to even; too large becomes infinity; a NaN keeps its upper payload and is made quiet.
uint half_of(uint bits) {
  const uint sign_bit = (bits >> 16) & 0x8000u;
  const uint magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return sign_bit | 0x7E00u | ((magnitude >> 13) & 0x3FFu);
  if (magnitude >= 0x477FF000u) return sign_bit | 0x7C00u;
  if (magnitude < 0x33000000u) return sign_bit;
  const bool normal = magnitude >= 0x38800000u;
  const uint shift = normal ? 13u : 126u - (magnitude >> 23);
  const uint mantissa = normal ? magnitude - (112u << 23) : (magnitude & 0x7FFFFFu) | 0x800000u;
  const uint kept = mantissa >> shift;
  const uint rest = mantissa & ((1u << shift) - 1u);
  const uint middle = 1u << (shift - 1u);
  const bool up = rest > middle || (rest == middle && (kept & 1u) != 0u);
  return sign_bit | (kept + (up ? 1u : 0u));
}
uint bf16_of(uint bits) {
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (bits >> 16) | 0x40u;
  return (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
}
