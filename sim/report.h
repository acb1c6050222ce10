// report.h: what a run says: as JSON for machines, on one screen for people, and as a page with charts. All three are
// made from the same numbers and are the same bytes for the same run.
#pragma once

#include <string>

#include "sim/engine.h"

namespace firn::sim {

std::string report_json(const EngineOptions& options, const EngineResult& result);
// The bottleneck and the next thing to try, in one or two sentences.
struct Advice {
  std::string bottleneck, next;
};
Advice advise(const EngineOptions& options, const EngineResult& result);
std::string report_text(const std::string& trace, const EngineOptions& options, const EngineResult& result);
// One self-contained page: no network, light and dark, values on hover; the JSON is inside.
std::string report_html(const std::string& trace, const EngineOptions& options, const EngineResult& result);

}  // namespace firn::sim
