// trace_flags.h: the flags of every command that reads a trace, and what it says about lines it could not read.
#pragma once

#include <string>
#include <vector>

#include "sim/trace.h"

namespace CLI {
class App;
}

namespace firn::cli {

struct TraceFlags {
  std::string path, format = "auto";
  sim::TraceOptions options;
  void add_to(CLI::App& command);  // without the path
  Status finish();                 // after parsing
};

// On stderr: how many lines were passed over, and the first of them with numbers and reasons.
void report_bad_lines(const std::string& path, std::uint64_t count, const std::vector<sim::BadLine>& lines,
                      std::uint64_t out_of_order);

}  // namespace firn::cli
