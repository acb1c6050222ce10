#include "tests/cli/program.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>

namespace firn::cli {

Ran run_line(const std::string& line, bool with_stderr) {
  std::string quoted;
  for (const char c : line) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  const std::string command = "cd '" FIRN_SOURCE_DIR "' && env -i PATH='" FIRN_PROGRAM_DIR
                              ":/usr/bin:/bin' HOME=/home/somebody FIRN_CACHE_DIR=/cache sh -c '" +
                              quoted + "'" + (with_stderr ? " 2>&1" : " 2>/dev/null");
  Ran ran;
  std::FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) {
    ADD_FAILURE() << "popen failed: " << command;
    return ran;
  }
  std::array<char, 4096> part;
  for (std::size_t n; (n = std::fread(part.data(), 1, part.size(), pipe)) != 0;) ran.output.append(part.data(), n);
  const int status = pclose(pipe);
  ran.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return ran;
}

}  // namespace firn::cli
