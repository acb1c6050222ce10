// sensitivity.h: what the example model's predictions feel of cached keys and values, window after window, as the
// calibration of firn wants it.
#pragma once

#include <cstdint>
#include <vector>

#include "cli/session.h"
#include "storage/calibration/firn_calibrator.h"

namespace firn::cli {

// The first `most` windows that are not held out: half of each is cached, the other half is what the model is asked
// about, its answers drawn from its own probabilities (seed 5, so that the same windows give the same artefact).
Status add_sensitivity(const LoadedModel& model, const std::vector<std::vector<TokenId>>& windows, std::uint32_t most,
                       FirnCalibrator& calibrator);

}  // namespace firn::cli
