// firn_codec.h: keys and values of a few layers in one transform, weighted by what the model's predictions feel of
// them; what all tokens of a frame share sent ahead and finely; tokens that are sinks within a text coded apart; one
// step for everything, static models and a range coder. Layout: docs/frame.md, section 9; why so: docs/codec.md.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "firn/codec.h"
#include "storage/codec/artefact.h"
#include "storage/codec/kvtc_codec.h"
#include "storage/codec/rotation.h"

namespace firn {

// The geometric mean over the detector's layers of value norm / median; norms: one a layer of the detector.
double sink_score(const FirnModel& model, std::span<const double> norms);
inline bool is_sink(const FirnModel& model, double score) {
  return !model.detector_layers.empty() && score < static_cast<double>(model.detector_threshold);
}

// One step, by its number, whatever rates the artefact has. The artefact is of firn.
Result<std::unique_ptr<Codec>> make_firn_codec(std::shared_ptr<const Artefact> artefact, KeyRotation rotation,
                                               std::uint32_t step, ErrorBound bound);
// The step that gives a ratio of raw to frame bytes, and its bounds, between those that were measured.
struct FirnSetting {
  std::uint32_t step = 0;
  ErrorBound bound;
};
// kInvalidArgument: the ratio is below or above what the artefact has; the message lists its range.
Result<FirnSetting> firn_setting(const Artefact& artefact, std::uint32_t ratio);

// Rounds half way and a little less, away from zero: a coefficient's number.
inline constexpr float kFirnRounding = 0.46f;
inline std::int32_t firn_number(float coefficient, float inverse_step) {
  const float magnitude = std::fabs(coefficient) * inverse_step + kFirnRounding;
  const auto number = static_cast<std::int32_t>(std::fmin(magnitude, 16777218.0f));  // beyond kFirnLargest: refused
  return coefficient < 0 ? -number : number;
}

// As decode, and adds to times: entropy_s has the range decoder, unpack_s frame means and sinks.
void decode_firn_timed(const Codec& codec, DecodeJob& job, ThreadPool* threads, KvtcTimes& times);

}  // namespace firn
