// apart.h: an input is never an output. Files are told apart by what they are, not by how they are called: hard links,
// links and "./" lead to the same file.
#pragma once

#include <string>
#include <vector>

#include "firn/status.h"

namespace firn::sim {

// kInvalidArgument: an output is one of the inputs, or two outputs are one file. Names that are empty or begin with
// "workload:" are no files; "-" is standard input or output. Pipes and devices may be given twice.
Status check_apart(const std::vector<std::string>& inputs, const std::vector<std::string>& outputs);

}  // namespace firn::sim
