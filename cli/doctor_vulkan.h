// doctor_vulkan.h: the part of `firn doctor` that is about Vulkan: every device with its driver, what firn uses of it
// and what it lacks, heaps, budgets and limits; without Vulkan, why and what mends it.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "firn/vulkan.h"

namespace firn::cli {

// Lines for the report's second column: the first line of a device is at the margin, what it has is indented.
std::vector<std::string> vulkan_summary(const Result<std::vector<VulkanReport>>& devices);  // a line each
std::vector<std::string> vulkan_lines(const Result<std::vector<VulkanReport>>& devices);
nlohmann::ordered_json vulkan_json(const Result<std::vector<VulkanReport>>& devices);

}  // namespace firn::cli
