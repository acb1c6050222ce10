// workload.h: requests that nobody recorded: made from a few parameters and a seed. A workload is named like a file,
// "workload:chat:sessions=200,rate=0.5,seed=7", and goes wherever a trace goes.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "sim/trace.h"

namespace firn::sim {

struct WorkloadParameter {
  std::string_view name;
  double value;  // default
  std::string_view what;
};
struct WorkloadKind {
  std::string_view name, what;
  std::vector<WorkloadParameter> parameters;
};
// chat, rag, agents, batch.
const std::vector<WorkloadKind>& workload_kinds();

constexpr std::string_view kWorkloadPrefix = "workload:";
bool is_workload(std::string_view path);
// kInvalidArgument names what there is.
Result<std::unique_ptr<TraceReader>> open_workload(const std::string& path, const TraceOptions& options);

}  // namespace firn::sim
