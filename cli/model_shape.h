// model_shape.h: what a simulation must know of a model: by name, from a config.json, or from a GGUF file.
#pragma once

#include <string>

#include "sim/hardware.h"

namespace firn::cli {

Result<sim::ModelShape> load_model_shape(const std::string& name);

}  // namespace firn::cli
