// report.h: what a run says: as JSON for machines, on one screen for people, and as a page with charts. All three are
// made from the same numbers and are the same bytes for the same run. Without advice they say what held the run up, and
// nothing of what would help.
#pragma once

#include <string>

#include "sim/advice.h"
#include "sim/engine.h"

namespace firn::sim {

std::string report_json(const EngineOptions& options, const EngineResult& result, const Advice* advice = nullptr);
std::string report_text(const std::string& trace, const EngineOptions& options, const EngineResult& result,
                        const Advice* advice = nullptr);
// One self-contained page: no network, light and dark, axes and values on hover; the JSON is inside.
std::string report_html(const std::string& trace, const EngineOptions& options, const EngineResult& result,
                        const Advice* advice = nullptr);

}  // namespace firn::sim
