// calls.h: what the files of the C interface share: how a call ends, and what a model is. Defined in capi.cpp.
#pragma once

#include "firn/firn.h"
#include "firn/model.h"
#include "firn/status.h"

namespace firn::capi {

// Writes down the sentence of a failure for firn_last_error(); its code.
firn_code report(const Status& status) noexcept;
void remember(const char* message) noexcept;
// Read, not yet validated: what a model may be is for who takes it to say.
Result<ModelSpec> read_model(const firn_model_params* given);

}  // namespace firn::capi
