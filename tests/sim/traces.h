// traces.h: where tests find traces.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace firn::sim {

inline std::string slice(const std::string& name) { return std::string(FIRN_TEST_DATA) + "/traces/" + name; }

// A whole trace, from FIRN_TRACES or from beside the repository; empty if it is not there.
inline std::string whole_trace(const std::string& name) {
  const char* folder = std::getenv("FIRN_TRACES");
  const std::filesystem::path path =
      std::filesystem::path(folder != nullptr ? folder : std::string(FIRN_SOURCE_DIR) + "/../shared/data/traces") /
      name;
  std::error_code error;
  return std::filesystem::exists(path, error) ? path.string() : std::string();
}

}  // namespace firn::sim

#define FIRN_NEED_TRACE(variable, name)                                                               \
  const std::string variable = ::firn::sim::whole_trace(name);                                        \
  if (variable.empty())                                                                               \
  GTEST_SKIP() << "no " << (name)                                                                     \
               << " in FIRN_TRACES or ../shared/data/traces; tests/data/traces/README.md says where " \
               << "it comes from"
