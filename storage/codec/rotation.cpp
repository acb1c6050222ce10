#include "storage/codec/rotation.h"

#include <cmath>

namespace firn {

Result<KeyRotation> KeyRotation::make(const RotationSpec& spec, std::uint32_t head_dim) {
  KeyRotation rotation;
  rotation.spec_ = spec;
  rotation.head_dim_ = head_dim;
  if (rotation.none()) return rotation;
  const auto wrong = [](const char* what) {
    return Status(Code::kInvalidArgument, std::string("rotation: ") + what + "; such keys can only be stored lossless");
  };
  if (spec.dims > head_dim || spec.dims % 2 != 0 || spec.inverse_frequencies.size() != spec.dims / 2)
    return wrong("dims and inverse_frequencies do not fit a head");
  if (!std::isfinite(spec.attention_factor) || spec.attention_factor == 0 || !std::isfinite(1 / spec.attention_factor))
    return wrong("attention_factor has no inverse");
  for (const float frequency : spec.inverse_frequencies)
    if (!std::isfinite(frequency)) return wrong("an inverse frequency is not finite");
  return rotation;
}

KeyRotation::Angles KeyRotation::angles(std::uint64_t first_position, std::uint32_t token_count) const {
  Angles angles;
  if (none()) return angles;
  for (std::uint32_t token = 0; token < token_count; ++token)
    for (const float frequency : spec_.inverse_frequencies) {
      const double angle = static_cast<double>(first_position + token) * static_cast<double>(frequency);
      angles.cosines.push_back(static_cast<float>(std::cos(angle)));
      angles.sines.push_back(static_cast<float>(std::sin(angle)));
    }
  return angles;
}

void KeyRotation::turn(float* keys, std::uint32_t heads, const float* cosines, const float* sines, float sign,
                       float factor) const {
  const std::uint32_t half = spec_.dims / 2;
  const bool adjacent = spec_.pairing == RotationSpec::Pairing::kAdjacent;
  for (std::uint32_t head = 0; head < heads; ++head, keys += head_dim_)
    for (std::uint32_t i = 0; i < half; ++i) {
      float& a = adjacent ? keys[2 * i] : keys[i];
      float& b = adjacent ? keys[2 * i + 1] : keys[i + half];
      const float c = cosines[i] * factor, s = sines[i] * sign * factor, x = a, y = b;
      a = x * c - y * s;
      b = y * c + x * s;
    }
}

void KeyRotation::undo(float* keys, std::uint32_t heads, const Angles& angles, std::uint32_t token) const {
  if (none()) return;
  const std::size_t at = std::size_t{token} * (spec_.dims / 2);
  turn(keys, heads, &angles.cosines[at], &angles.sines[at], -1.0f, 1.0f / spec_.attention_factor);
}

void KeyRotation::apply(float* keys, std::uint32_t heads, const Angles& angles, std::uint32_t token) const {
  if (none()) return;
  const std::size_t at = std::size_t{token} * (spec_.dims / 2);
  turn(keys, heads, &angles.cosines[at], &angles.sines[at], 1.0f, spec_.attention_factor);
}

}  // namespace firn
