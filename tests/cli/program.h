// program.h: runs shell lines with `firn` in the PATH, in the source folder, in an environment of nothing else.
#pragma once

#include <string>

namespace firn::cli {

struct Ran {
  std::string output;  // stdout; stderr as well if asked for
  int exit_code = -1;
};
Ran run_line(const std::string& line, bool with_stderr);

}  // namespace firn::cli
