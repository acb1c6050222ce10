// firn eval, killed in the middle and started again: what was done is not done twice, and the report is the one of a
// run that nobody killed.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/cli/program.h"

namespace firn::cli {
namespace {

using Json = nlohmann::json;

Json read_json(const std::string& path) {
  std::ifstream in(path);
  return Json::parse(in, nullptr, /*allow_exceptions=*/false);
}

// Without what a clock said.
Json timeless(Json report) {
  for (Json& row : report)
    for (const char* field : {"seconds", "encode_cpu_s", "decode_cpu_s"}) row.erase(field);
  return report;
}

class EvalCommand : public testing::Test {
 protected:
  EvalCommand()
      : folder_(std::filesystem::temp_directory_path() / ("firn_eval_" + std::to_string(getpid()))),
        command_(std::string("firn eval --model " FIRN_RANDOM_MODEL
                             " --text examples/texts/opticks.txt --text examples/texts/moby.txt --codecs q8,q4/q8,q4 "
                             "--context 320 --score 32 --windows 4 --threads 1 ")) {
    std::filesystem::create_directories(folder_);
  }
  ~EvalCommand() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  std::filesystem::path folder_;
  std::string command_;
};

TEST_F(EvalCommand, GoesOnWhereItWasKilled) {
  const std::string state = path("state"), whole = path("whole.json"), resumed = path("resumed.json");
  // Killed as soon as the first pair of codec and window is in the file.
  const Ran killed = run_line(command_ + "--json " + resumed + " --state " + state + " & pid=$!; while [ ! -s " +
                                  state + " ] && kill -0 $pid; do sleep 0.01; done; kill -9 $pid; wait $pid; exit $?",
                              /*with_stderr=*/true);
  ASSERT_EQ(killed.exit_code, 128 + 9) << killed.output;
  const Json done = read_json(state);
  ASSERT_TRUE(done.is_object());
  ASSERT_GE(done.size(), 1u);
  ASSERT_LT(done.size(), 12u) << "it was killed too late: this test would show nothing";
  EXPECT_FALSE(std::filesystem::exists(resumed));

  const Ran again = run_line(command_ + "--json " + resumed + " --state " + state, /*with_stderr=*/true);
  ASSERT_EQ(again.exit_code, 0) << again.output;
  const Json all = read_json(state);
  ASSERT_EQ(all.size(), 12u);
  for (const auto& [unit, result] : done.items())
    EXPECT_EQ(all.value(unit, Json()), result) << unit << " was measured again";  // its seconds would differ

  const Ran reference = run_line(command_ + "--json " + whole, /*with_stderr=*/true);
  ASSERT_EQ(reference.exit_code, 0) << reference.output;
  EXPECT_FALSE(std::filesystem::exists(whole + ".part")) << "the report has it all";
  const Json report = read_json(whole);
  ASSERT_EQ(report.size(), 3u);
  EXPECT_EQ(timeless(read_json(resumed)), timeless(report));
  EXPECT_GT(report[2]["mean_kld"].get<double>(), report[0]["mean_kld"].get<double>());  // q4 above q8
}

// A file of units that was cut off, or is of something else, is no reason to fail.
TEST_F(EvalCommand, StartsAnewFromAFileThatIsNoState) {
  const std::string state = path("state"), json = path("report.json");
  std::ofstream(state) << "{\"q8, 32 of 320";
  const Ran ran = run_line(command_ + "--fast --json " + json + " --state " + state, /*with_stderr=*/true);
  ASSERT_EQ(ran.exit_code, 0) << ran.output;
  EXPECT_EQ(read_json(json).size(), 3u);
  EXPECT_EQ(read_json(state).size(), 12u);
}

// firn is calibrated with gradients, and has what it was asked for: fewer bits at a larger ratio.
TEST_F(EvalCommand, FirnIsCalibratedAndMeasured) {
  const std::string artefact = path("firn.safetensors"), json = path("report.json");
  const std::string calibrate =
      "firn calibrate --codec firn --model " FIRN_RANDOM_MODEL
      " --text examples/texts/persuasion.txt --tokens 4096 --window 512 --gradients 2 --stack 1 --threads 1 ";
  const Ran refused = run_line(calibrate + "--without colours -o " + artefact, /*with_stderr=*/true);
  EXPECT_NE(refused.exit_code, 0);
  EXPECT_NE(refused.output.find("sinks, means and weights"), std::string::npos) << refused.output;
  const Ran made = run_line(calibrate + "--ratio 5,8 --measure 1 -o " + artefact, /*with_stderr=*/true);
  ASSERT_EQ(made.exit_code, 0) << made.output;
  EXPECT_NE(made.output.find("sinks within texts"), std::string::npos) << made.output;
  const Ran ran = run_line("firn eval --model " FIRN_RANDOM_MODEL
                           " --text examples/texts/opticks.txt --codecs firn@5,firn@6,firn@8 --context 640 --score 32 "
                           "--windows 1 --threads 1 --artefact " +
                               artefact + " --json " + json,
                           /*with_stderr=*/true);
  ASSERT_EQ(ran.exit_code, 0) << ran.output;
  const Json report = read_json(json);
  ASSERT_EQ(report.size(), 3u);
  EXPECT_GT(report[0]["bits"].get<double>(), report[1]["bits"].get<double>());
  EXPECT_GT(report[1]["bits"].get<double>(), report[2]["bits"].get<double>());
  const Ran without =
      run_line("firn eval --model " FIRN_RANDOM_MODEL
               " --text examples/texts/opticks.txt --codecs kvtc@8 --context 320 --score 32 --artefact " +
                   artefact,
               /*with_stderr=*/true);
  EXPECT_NE(without.exit_code, 0);
  EXPECT_NE(without.output.find("no --artefact is of that codec"), std::string::npos) << without.output;
}

}  // namespace
}  // namespace firn::cli
