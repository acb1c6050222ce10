// Every file that a command writes: a disk that is full leaves the old file and an exit code that says so, a kill too,
// and what holds keys, values, prompts or tokens is its owner's alone.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/cli/program.h"

namespace firn::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kOld = "old\t{\"a\":1}\n";  // a line of a sweep's results, too

struct Output {
  const char* what;
  std::string line;  // FILE stands for the output
  bool is_private;   // 0600
};

const std::string kModel = " --model " FIRN_RANDOM_MODEL " ";
const std::string kTexts = "--text examples/texts/opticks.txt --text examples/texts/moby.txt ";

std::vector<Output> outputs() {
  const std::string run = "firn run" + kModel + "--prompt hello --max-tokens 4 --ignore-end --pool-budget 64MiB ";
  const std::string chat = "firn simulate --config configs/consumer-24gb.yaml --workload chat:sessions=4 ";
  const std::string calibrate =
      "firn calibrate" + kModel + kTexts + "--tokens 4096 --window 256 --measure 0 --ratio 8 --stack 1 --threads 1 ";
  return {
      {"tokens of run", run + "--tokens-out FILE", true},
      {"dump of run", run + "--dump FILE", true},
      {"json of simulate", chat + "--json FILE", false},
      {"page of simulate", chat + "--html FILE", false},
      {"state of a sweep", chat + "--sweep host.budget=0,1GiB --resume FILE", false},
      {"plan", "firn plan --device rtx4090 --pool-budget 1GiB --json FILE", false},
      {"converted trace", "firn trace convert tests/data/traces/conversation_2000.jsonl.zst FILE --requests 50", false},
      {"artefact", calibrate + "-o FILE", false},
      {"keys and values", calibrate + "-o \"$PLACE/artefact\" --dump-kv FILE", true},
      {"report of eval",
       "firn eval" + kModel + kTexts +
           "--codecs q8 --context 320 --score 32 --windows 1 --threads 1 --fast --state "
           "\"$PLACE/state\" --json FILE",
       false},
  };
}

class Outputs : public testing::TestWithParam<std::size_t> {
 protected:
  Outputs() : output_(outputs()[GetParam()]) {
    std::string name = (fs::temp_directory_path() / "firn_outputs_XXXXXX").string();
    folder_ = mkdtemp(name.data());
    fs::create_directory(folder_ + "/out");
    fs::create_directory(folder_ + "/place");
    file_ = folder_ + "/out/file";
  }
  ~Outputs() override { fs::remove_all(folder_); }
  Ran write(const std::string& first) const {
    std::string line = output_.line;
    line.replace(line.find("FILE"), 4, file_);
    return run_line(first + "PLACE=" + folder_ + "/place; " + line, /*with_stderr=*/true);
  }
  std::string content() const {
    std::ifstream in(file_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder_ + "/out"), fs::directory_iterator()));
  }
  const Output output_;
  std::string folder_, file_;
};

TEST_P(Outputs, AreOldOrNewAndWhole) {
  std::ofstream(file_) << kOld;
  // No file may grow: the kernel answers as a full disk does.
  const Ran full = write("ulimit -f 0; ");
  EXPECT_EQ(full.exit_code, 6) << full.output;
  EXPECT_NE(full.output.find("cannot be written"), std::string::npos) << full.output;
  EXPECT_EQ(content(), kOld);
  EXPECT_EQ(files(), 1u);
  const Ran ran = write("umask 022; ");
  ASSERT_EQ(ran.exit_code, 0) << ran.output;
  EXPECT_NE(content(), kOld);
  EXPECT_EQ(files(), 1u);
  struct stat found {};
  ASSERT_EQ(stat(file_.c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777u, output_.is_private ? 0600u : 0644u);
}

TEST_P(Outputs, WithoutAPlaceAreRefused) {
  fs::remove(folder_ + "/out");
  const Ran ran = write("");
  EXPECT_EQ(ran.exit_code, 2) << ran.output;
  EXPECT_NE(ran.output.find(file_ + ": cannot be written (No such file or directory)"), std::string::npos)
      << ran.output;
}

INSTANTIATE_TEST_SUITE_P(Cli, Outputs, testing::Range<std::size_t>(0, outputs().size()), [](const auto& named) {
  std::string name = outputs()[named.param].what;
  for (char& c : name) c = c == ' ' ? '_' : c;
  return name;
});

// A trace is read while its copy is written: one that is written over itself is whole.
TEST(TraceCommand, ConvertsATraceOntoItself) {
  const std::string file =
      (fs::temp_directory_path() / ("firn_convert_" + std::to_string(getpid()) + ".jsonl")).string();
  const std::string make =
      "firn trace convert tests/data/traces/conversation_2000.jsonl.zst " + file + " --requests 300";
  ASSERT_EQ(run_line(make, true).exit_code, 0);
  std::ifstream first(file);
  const std::string before{std::istreambuf_iterator<char>(first), {}};
  const Ran ran = run_line("firn trace convert " + file + " " + file, true);
  std::ifstream second(file);
  const std::string after{std::istreambuf_iterator<char>(second), {}};
  fs::remove(file);
  EXPECT_EQ(after, before) << ran.output;
}

}  // namespace
}  // namespace firn::cli
