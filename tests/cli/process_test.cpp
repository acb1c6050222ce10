// What happens to a process from outside: files closed or full, readers that leave, memory that is not there, signals.
// Whatever it is, there is an exit code and, where anything was computed, the result of it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/cli/program.h"

namespace firn::cli {
namespace {

namespace fs = std::filesystem;

const std::string kRun = "firn run --model " FIRN_RANDOM_MODEL " --prompt hello --ignore-end --pool-budget 64MiB ";
// Ends by itself only after hours.
const std::string kEndless =
    "firn run --model " FIRN_RANDOM_MODEL " --prompt hello --ignore-end --pool-budget 64MiB --max-tokens 8000 ";

// One line of each command, quick ones.
std::vector<std::string> quick_lines() {
  return {
      "firn version",
      "firn --version",
      "firn --help",
      "firn help run",
      "firn completion bash",
      "firn config --schema",
      "firn config --effective configs/server-cpu.yaml",
      "firn config --check configs/server-cpu.yaml",
      "ASAN_OPTIONS=detect_leaks=0 firn doctor",
      "firn trace info tests/data/traces/conversation_2000.jsonl.zst --requests 50",
      "firn trace convert tests/data/traces/conversation_2000.jsonl.zst - --requests 50",
      "firn simulate --config configs/consumer-24gb.yaml --workload chat:sessions=4",
      "firn plan --device rtx4090 --pool-budget 1GiB",
      kRun + "--max-tokens 4",
      kRun + "--max-tokens 4 --json",
  };
}

TEST(Process, AStderrThatIsClosedOrFullChangesNothing) {
  for (const std::string& line : quick_lines()) {
    const Ran plain = run_line(line, false);
    for (const char* redirection : {" 2>&-", " 2>/dev/full"}) {
      const Ran ran = run_line(line + redirection, false);
      EXPECT_EQ(ran.exit_code, plain.exit_code) << line << redirection;
      EXPECT_EQ(ran.output.empty(), plain.output.empty()) << line << redirection;
    }
  }
  for (const char* wrong : {"firn frobnicate", "firn run", "firn dump no/such/file", "firn run --colour"})
    for (const char* redirection : {" 2>&-", " 2>/dev/full"})
      EXPECT_EQ(run_line(std::string(wrong) + redirection, false).exit_code, 2) << wrong << redirection;
}

TEST(Process, AStdoutThatIsClosedOrFullIsAFailureToWrite) {
  for (const std::string& line : quick_lines())
    for (const char* redirection : {" >&-", " >/dev/full", " >/dev/full 2>&1", " >&- 2>&- <&-"})
      EXPECT_EQ(run_line(line + redirection, false).exit_code, 6) << line << redirection;
}

// The file that is written must not become stdout because stdout was closed.
TEST(Process, AnOutputDoesNotTakeThePlaceOfAClosedFile) {
  const std::string file = (fs::temp_directory_path() / ("firn_closed_" + std::to_string(getpid()))).string();
  const Ran ran = run_line(kRun + "--max-tokens 4 --json --tokens-out " + file + " >&- 2>&- <&-", false);
  EXPECT_EQ(ran.exit_code, 6);
  std::ifstream in(file);
  std::vector<int> tokens;
  for (int token; in >> token;) tokens.push_back(token);
  EXPECT_TRUE(in.eof());
  EXPECT_EQ(tokens.size(), 4u);
  fs::remove(file);
}

// A process with its own ideas of files, signals and limits. Returns what waitpid() says.
struct Child {
  pid_t pid = -1;
  int out = -1;  // reads its stdout
};
Child start(const std::string& line, const std::function<void()>& before = {}) {
  int pipes[2] = {-1, -1};
  if (pipe2(pipes, O_CLOEXEC) != 0) return {};
  Child child{fork(), pipes[0]};
  if (child.pid == 0) {
    dup2(pipes[1], STDOUT_FILENO);
    if (chdir(FIRN_SOURCE_DIR) != 0) _exit(99);
    setenv("PATH", FIRN_PROGRAM_DIR ":/usr/bin:/bin", 1);
    unsetenv("OPENBLAS_NUM_THREADS");
    const std::string command = "exec " + line + " 2>/dev/null";
    if (before) before();
    execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    _exit(99);
  }
  close(pipes[1]);
  return child;
}
int exit_code_of(const Child& child) {
  int status = 0;
  waitpid(child.pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}
std::string rest_of(const Child& child) {
  std::string text;
  char piece[4096];
  for (ssize_t n; (n = read(child.out, piece, sizeof piece)) > 0;) text.append(piece, static_cast<std::size_t>(n));
  close(child.out);
  return text;
}

TEST(Process, AReaderThatLeavesEndsItWithoutAnAbort) {
  for (const std::string& line : {std::string("firn config --schema"), kRun + "--max-tokens 4", kRun + "--json",
                                  kEndless, std::string("firn --help")}) {
    const Child ignoring = start(line, [] { std::signal(SIGPIPE, SIG_IGN); });
    close(ignoring.out);
    EXPECT_EQ(exit_code_of(ignoring), 6) << line;
    const Child usual = start(line, [] { std::signal(SIGPIPE, SIG_DFL); });
    close(usual.out);
    const int code = exit_code_of(usual);
    EXPECT_TRUE(code == -SIGPIPE || code == 6) << line << ": " << code;  // 6: all was written before it left
  }
}

TEST(Process, ASignalPrintsWhatThereIs) {
  const std::string file = (fs::temp_directory_path() / ("firn_signal_" + std::to_string(getpid()))).string();
  for (const int signal : {SIGINT, SIGTERM}) {
    const Child text = start(kEndless + "--tokens-out " + file);
    char first = 0;
    ASSERT_EQ(read(text.out, &first, 1), 1);  // it has begun to answer
    kill(text.pid, signal);
    const std::string rest = rest_of(text);
    EXPECT_EQ(exit_code_of(text), 128 + signal);
    std::ifstream in(file);
    std::size_t tokens = 0;
    for (int token; in >> token;) ++tokens;
    EXPECT_GT(tokens, 0u);
    EXPECT_LT(tokens, 8000u);
    EXPECT_EQ(rest.back(), '\n');
    fs::remove(file);
  }
}

TEST(Process, AnInterruptedAnswerIsWholeJson) {
  const std::string file = (fs::temp_directory_path() / ("firn_json_" + std::to_string(getpid()))).string();
  const Child child = start("sh -c 'exec " + kEndless + "--json 2>&1 > " + file + "'");
  char first = 0;
  ASSERT_EQ(read(child.out, &first, 1), 1);  // stderr: it has read the prompt
  kill(child.pid, SIGINT);
  rest_of(child);
  EXPECT_EQ(exit_code_of(child), 130);
  std::ifstream in(file);
  const nlohmann::json json = nlohmann::json::parse(in, nullptr, false);
  fs::remove(file);
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json["finish_reason"], "interrupted");
}

// Where there is nothing to print, too.
TEST(Process, EveryLongCommandEndsWith130) {
  const std::string model = " --model " FIRN_RANDOM_MODEL " ";
  const std::string texts = "--text examples/texts/opticks.txt --text examples/texts/moby.txt ";
  const std::string file = (fs::temp_directory_path() / ("firn_130_" + std::to_string(getpid()))).string();
  for (const std::string& line :
       {"firn calibrate" + model + texts + "--tokens 1000000 --window 1024 -o " + file,
        "firn eval" + model + texts + "--codecs q8 --context 8000 --windows 10000 --fast",
        "firn demo" + model + "--repeats 99 --document-tokens 6000 --pool-budget 8MiB --host-budget 64MiB",
        std::string("firn simulate --config configs/consumer-24gb.yaml --workload chat:sessions=1000000"),
        std::string("firn run --model " FIRN_RANDOM_MODEL " --prompt-file - < /dev/zero"),
        "sleep 5 | " + ("timeout --preserve-status -s INT 1 " + kRun + "--prompt-file -")}) {
    const bool piped = line.find(" | ") != std::string::npos;
    const Child child = start(piped ? "sh -c '" + line + "; exit $?'" : "timeout --preserve-status -s INT 1 " + line);
    rest_of(child);
    const int code = exit_code_of(child);
    EXPECT_TRUE(code == 130 || (line.find("zero") != line.npos && code == 2)) << line << ": " << code;
  }
  fs::remove(file);  // whole, where a quick machine had it before the signal
}

#ifndef FIRN_SANITIZED  // sanitizers want terabytes of addresses
TEST(Process, TooLittleMemoryIsAnExitCode) {
  std::size_t done = 0, refused = 0;
  for (const std::string& line :
       {kRun + "--max-tokens 4 --json --host-budget 16MiB", std::string("firn doctor"), std::string("firn version"),
        std::string("firn plan --device rtx4090 --pool-budget 1GiB"),
        std::string("firn trace info tests/data/traces/conversation_2000.jsonl.zst"),
        std::string("firn calibrate --model " FIRN_RANDOM_MODEL
                    " --text examples/texts/opticks.txt --tokens 4096 --window 256 --measure 0 --ratio 8 --stack 1 -o "
                    "/dev/null")})
    for (const rlim_t kib : {20'000u, 40'000u, 60'000u, 90'000u, 120'000u, 180'000u, 260'000u, 400'000u}) {
      const Child child = start("timeout -s KILL 120 " + line, [kib] {
        const rlimit limit{kib * 1024, kib * 1024};
        setrlimit(RLIMIT_AS, &limit);
      });
      rest_of(child);
      const int code = exit_code_of(child);
      // 127: the loader found no room for the libraries.
      EXPECT_TRUE(code == 0 || code == 1 || code == 3 || code == 4 || code == 6 || code == 127)
          << line << " in " << kib << " KiB: " << code;
      (code == 0 ? done : refused) += 1;
    }
  EXPECT_GT(done, 10u);
  EXPECT_GT(refused, 5u);
}
#endif

nlohmann::json json_of(const Ran& ran) {
  nlohmann::json json = nlohmann::json::parse(ran.output, nullptr, false);
  EXPECT_TRUE(json.is_object()) << ran.output;
  return json;
}

// Nothing that was computed is lost because there is no more of it.
TEST(RunCommand, PrintsWhatItHasWhenTheContextOrThePoolIsFull) {
  const std::string file = (fs::temp_directory_path() / ("firn_full_" + std::to_string(getpid()))).string();
  const auto tokens_in = [&] {
    std::ifstream in(file);
    std::vector<int> tokens;
    for (int token; in >> token;) tokens.push_back(token);
    fs::remove(file);
    return nlohmann::json(tokens);
  };
  const std::string end = " --prompt hello --ignore-end --max-tokens 1000 --json --tokens-out " + file;
  Ran ran = run_line("firn run --pool-budget 64MiB --model " FIRN_SMALL_MODEL + end, false);
  EXPECT_EQ(ran.exit_code, 0);
  nlohmann::json json = json_of(ran);
  EXPECT_EQ(json["finish_reason"], "context");
  EXPECT_EQ(json["prompt_tokens"].get<std::size_t>() + json["tokens"].size(), 65u)
      << "the last has no place of its own";
  EXPECT_EQ(tokens_in(), json["tokens"]);

  ran = run_line("firn run --pool-budget 64MiB --set max_sequence_tokens=256 --model " FIRN_RANDOM_MODEL + end, false);
  EXPECT_EQ(ran.exit_code, 0);
  json = json_of(ran);
  EXPECT_EQ(json["finish_reason"], "context");
  EXPECT_EQ(json["prompt_tokens"].get<std::size_t>() + json["tokens"].size(), 257u);
  EXPECT_EQ(tokens_in(), json["tokens"]);

  // The least pool there can be, and nothing below it.
  ran = run_line(
      "firn run --pool-budget 400KiB --set pool.staging=64KiB --set pool.max_step_tokens=32 "
      "--model " FIRN_RANDOM_MODEL +
          end,
      false);
  EXPECT_EQ(ran.exit_code, 3);
  json = json_of(ran);
  EXPECT_EQ(json["finish_reason"], "no_space");
  EXPECT_FALSE(json["finish_message"].get<std::string>().empty());
  EXPECT_GT(json["tokens"].size(), 100u);
  EXPECT_EQ(tokens_in(), json["tokens"]);
}

TEST(RunCommand, NeverChoosesARowThatIsNoToken) {
  const Ran ran = run_line("firn run --pool-budget 64MiB --model " FIRN_SMALL_MODEL
                           " --prompt hello --ignore-end --temperature 50 --top-k 0 --max-tokens 50 --json",
                           true);
  EXPECT_EQ(ran.exit_code, 0) << ran.output;
  EXPECT_EQ(run_line("firn eval --model " FIRN_SMALL_MODEL " --text README.md --context 48", true).exit_code, 2);
}

TEST(RunCommand, TakesAPromptFromAPipe) {
  const nlohmann::json direct = json_of(run_line(kRun + "--max-tokens 8 --json", false));
  const std::string run =
      "firn run --model " FIRN_RANDOM_MODEL " --ignore-end --pool-budget 64MiB --max-tokens 8 --json --prompt-file ";
  EXPECT_EQ(json_of(run_line("printf hello | " + run + "-", false))["tokens"], direct["tokens"]);
  EXPECT_EQ(json_of(run_line("printf hello | " + run + "/dev/stdin", false))["tokens"], direct["tokens"]);
  EXPECT_EQ(json_of(run_line("printf hel | " + run + "- --prompt lo", false))["tokens"], direct["tokens"]);
  EXPECT_EQ(run_line(run + "- < /dev/null", true).exit_code, 2);
  EXPECT_EQ(run_line(run + "tests", true).output, "firn: tests: cannot be read (Is a directory)\n");
}

TEST(Process, AMissingFileIsAWrongArgument) {
  const std::string model = " --model " FIRN_RANDOM_MODEL " ";
  for (const std::string& line :
       {std::string("firn run --model no/such.gguf --prompt x"), "firn run" + model + "--prompt-file no/such.txt",
        "firn run" + model + "--prompt x --config no/such.yaml", std::string("firn demo --model no/such.gguf"),
        std::string("firn dump no/such.json"), std::string("firn config --check no/such.yaml"),
        std::string("firn config --effective no/such.yaml"), std::string("firn doctor --config no/such.yaml"),
        std::string("firn simulate --trace no/such.jsonl"),
        std::string("firn simulate --config no/such.yaml --workload chat:sessions=4"),
        std::string("firn trace info no/such.jsonl"), std::string("firn trace convert no/such.jsonl -"),
        "firn eval" + model + "--text no/such.txt",
        "firn eval" + model + "--text LICENSE --codecs kvtc@8 --artefact no/such",
        "firn calibrate" + model + "--text no/such.txt -o /dev/null",
        std::string("firn calibrate --kv no/such -o /dev/null"),
        std::string("firn plan --pool-budget 1GiB --model no/such.gguf"),
        std::string("firn plan --pool-budget 1GiB --model no/such.json"),
        std::string("firn plan --pool-budget 1GiB --device no/such.yaml")}) {
    const Ran ran = run_line(line, true);
    EXPECT_EQ(ran.exit_code, 2) << line << "\n" << ran.output;
    EXPECT_NE(ran.output.find("no/such"), std::string::npos) << line << "\n" << ran.output;
    for (const char* folder : {"tests", "/"}) {
      std::string of_folder = line;
      const std::size_t at = of_folder.find("no/such"), end = std::min(of_folder.find(' ', at), of_folder.size());
      const Ran wrong = run_line(of_folder.replace(at, end - at, folder), true);
      EXPECT_TRUE(wrong.exit_code == 2 || wrong.exit_code == 5) << of_folder << ": " << wrong.exit_code << wrong.output;
    }
  }
}

TEST(Help, OfEveryCommandIsTheSameByEitherWay) {
  for (const std::string& command : {std::string("run"), std::string("trace convert"), std::string("simulate")}) {
    const Ran one = run_line("firn help " + command, true), other = run_line("firn " + command + " --help", true);
    EXPECT_EQ(one.exit_code, 0);
    EXPECT_NE(one.output.find("Usage: firn " + command), std::string::npos) << one.output;
    EXPECT_EQ(one.output, other.output);
  }
  EXPECT_EQ(run_line("firn help", true).output, run_line("firn --help", true).output);
  EXPECT_EQ(run_line("firn help trac", true).exit_code, 2);
  EXPECT_EQ(run_line("firn --version", true).output, run_line("firn version", true).output);
}

TEST(Completion, OfBashKnowsCommandsOptionsAndFiles) {
  const auto complete = [](const std::string& words, int at) {
    return run_line("bash -c 'source <(firn completion bash); COMP_WORDS=(" + words +
                        "); COMP_CWORD=" + std::to_string(at) + "; _firn; printf \"%s \" \"${COMPREPLY[@]}\"'",
                    true)
        .output;
  };
  EXPECT_EQ(complete("firn si", 1), "simulate ");
  EXPECT_EQ(complete("firn trace c", 2), "convert ");
  EXPECT_EQ(complete("firn run --prompt", 2), "--prompt-file --prompt ");
  EXPECT_EQ(complete("firn run --model CMakeL", 3), "CMakeLists.txt ");
  EXPECT_EQ(complete("firn run --pool-budget CMakeL", 3), " ");
  EXPECT_EQ(complete("firn dump CMakeL", 2), "CMakeLists.txt ");
  for (const char* shell : {"zsh", "fish"}) {
    const std::string check = std::string("command -v ") + shell + " >/dev/null || exit 0; firn completion " + shell +
                              " > /tmp/firn_completion_$$ && " + shell +
                              " -n /tmp/firn_completion_$$; code=$?; rm -f /tmp/firn_completion_$$; exit $code";
    const Ran ran = run_line(check, true);
    EXPECT_EQ(ran.exit_code, 0) << shell << ran.output;
    EXPECT_NE(run_line(std::string("firn completion ") + shell, true).output.find("prompt-file"), std::string::npos);
  }
  EXPECT_EQ(run_line("firn completion csh", true).exit_code, 2);
}

TEST(ManualPage, HasEveryCommandAndIsGoodTroff) {
  const std::string page = run_line("firn help --man", true).output;
  for (const char* part : {".TH FIRN 1", "firn run", "firn trace convert", "\\-\\-tokens\\-out", ".SH EXIT STATUS"})
    EXPECT_NE(page.find(part), std::string::npos) << part;
  const Ran ran = run_line("command -v groff >/dev/null || exit 0; firn help --man | groff -man -Tutf8 -ww -z", true);
  EXPECT_EQ(ran.output, "");
  EXPECT_EQ(ran.exit_code, 0);
}

}  // namespace
}  // namespace firn::cli
