// model_shape.h: the few numbers that the simulator wants of a model, from a file.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "sim/hardware.h"

namespace firn::cli {

// A GGUF file by its ending, otherwise what sim::load_model_shape takes. kInvalidArgument names what is not understood.
Result<sim::ModelShape> load_model_shape(const std::string& name);
// The same of a GGUF file in memory.
Result<sim::ModelShape> shape_of_gguf(std::span<const std::byte> bytes, const std::string& name);

}  // namespace firn::cli
