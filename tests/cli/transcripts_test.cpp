// What people see, word for word. A transcript is commands ("$ firn ...") and what they print, stderr included, with
// the exit code where it is not 0. FIRN_UPDATE_GOLDEN=1 writes them anew.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include "tests/cli/program.h"

namespace firn::cli {
namespace {

std::string read(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return std::move(text).str();
}

std::string replay(const std::string& transcript) {
  std::istringstream lines(transcript);
  std::string replayed;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("#")) replayed += line + "\n";
    if (!line.starts_with("$ ")) continue;
    const Ran ran = run_line(line.substr(2), /*with_stderr=*/true);
    replayed += line + "\n" + ran.output;
    if (ran.exit_code != 0) replayed += "[exit " + std::to_string(ran.exit_code) + "]\n";
    replayed += "\n";
  }
  return replayed;
}

class Transcript : public testing::TestWithParam<const char*> {};

TEST_P(Transcript, IsWhatTheProgramPrints) {
  const std::string path = std::string(FIRN_TEST_GOLDEN) + "/cli/" + GetParam() + ".txt";
  const std::string promised = read(path);
  ASSERT_NE(promised.find("$ firn"), std::string::npos) << path;
  const std::string replayed = replay(promised);
  if (std::getenv("FIRN_UPDATE_GOLDEN") != nullptr) std::ofstream(path, std::ios::binary) << replayed;
  EXPECT_EQ(promised, replayed) << "if this is meant, run the test with FIRN_UPDATE_GOLDEN=1";
}
INSTANTIATE_TEST_SUITE_P(Cli, Transcript, testing::Values("usage", "config", "doctor", "run"),
                         [](const auto& named) { return std::string(named.param); });

}  // namespace
}  // namespace firn::cli
