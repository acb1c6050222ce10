// trace_formats.h: the readers behind TraceReader::open. lines: nothing has been taken from it.
#pragma once

#include "sim/byte_source.h"
#include "sim/trace.h"

namespace firn::sim {

Result<std::unique_ptr<TraceReader>> open_json_lines(const std::string& path, const TraceOptions& options,
                                                     LineSource lines);
Result<std::unique_ptr<TraceReader>> open_csv(const std::string& path, const TraceOptions& options, LineSource lines);
Result<std::unique_ptr<TraceReader>> open_weka(const std::string& path, const TraceOptions& options, LineSource lines);

}  // namespace firn::sim
