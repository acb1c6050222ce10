// rotation.h: takes the rotary embedding off keys and puts it back. Positions are those the tokens truly have; angles
// are computed in double precision, so that what is taken off is what is put back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "firn/model.h"
#include "firn/status.h"

namespace firn {

class KeyRotation {
 public:
  // kInvalidArgument: it cannot be undone (a factor of zero, say).
  static Result<KeyRotation> make(const RotationSpec& spec, std::uint32_t head_dim);
  bool none() const { return spec_.pairing == RotationSpec::Pairing::kNone; }

  // Cosines and sines of consecutive positions, [token][dims / 2] each.
  struct Angles {
    std::vector<float> cosines, sines;
  };
  Angles angles(std::uint64_t first_position, std::uint32_t token_count) const;
  // One token's keys, [heads][head_dim], in place; token counts from the angles' first.
  void undo(float* keys, std::uint32_t heads, const Angles& angles, std::uint32_t token) const;
  void apply(float* keys, std::uint32_t heads, const Angles& angles, std::uint32_t token) const;

 private:
  void turn(float* keys, std::uint32_t heads, const float* cosines, const float* sines, float sign, float factor) const;
  RotationSpec spec_;
  std::uint32_t head_dim_ = 0;
};

}  // namespace firn
