// What libfirn.so exports, what its version script lists, and what the header declares.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <string>

namespace {

std::string read(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string output_of(const std::string& command) {
  std::string output;
  FILE* pipe = popen(command.c_str(), "r");
  EXPECT_NE(pipe, nullptr);
  std::array<char, 4096> piece;
  for (std::size_t got; (got = fread(piece.data(), 1, piece.size(), pipe)) != 0;) output.append(piece.data(), got);
  EXPECT_EQ(pclose(pipe), 0) << command;
  return output;
}

std::set<std::string> words(const std::string& text, const std::string& pattern) {
  const std::regex regex(pattern);
  std::set<std::string> found;
  for (std::sregex_iterator at(text.begin(), text.end(), regex), end; at != end; ++at) found.insert((*at)[1]);
  return found;
}

TEST(Symbols, ExportedListedAndDeclaredAreOneList) {
  const std::string symbols =
      output_of(std::string(FIRN_NM) + " -D --defined-only --with-symbol-versions " + FIRN_SHARED_LIBRARY);
  const std::set<std::string> exported = words(symbols, " T (\\w+@@FIRN_\\d+\\.\\d+)\n");
  const std::string map = read(FIRN_SOURCE_DIR "/capi/firn.map");
  std::set<std::string> listed, plain;
  for (std::size_t node = map.find("\nFIRN_"); node != std::string::npos;) {
    const std::size_t next = map.find("\nFIRN_", node + 1);
    const std::string text = map.substr(node + 1, next == std::string::npos ? next : next - node);
    for (const std::string& name : words(text, "\n    (firn_\\w+);")) {
      listed.insert(name + "@@" + text.substr(0, text.find(' ')));
      plain.insert(name);
    }
    node = next;
  }
  const std::set<std::string> declared =
      words(read(FIRN_SOURCE_DIR "/include/firn/firn.h") + read(FIRN_SOURCE_DIR "/include/firn/cold.h"),
            "FIRN_C_API [^;(]*\\b(firn_\\w+)\\(");
  EXPECT_EQ(exported, listed);
  EXPECT_EQ(declared, plain);
  EXPECT_GT(listed.size(), 70u);
}

// Nothing else is a promise: no C++ name, nothing of the libraries we stand on.
TEST(Symbols, NothingElseIsExported) {
  const std::string symbols = output_of(std::string(FIRN_NM) + " -D --defined-only " + FIRN_SHARED_LIBRARY);
  for (const std::string& name : words(symbols, " [A-Za-z] (\\S+)\n"))
    EXPECT_TRUE(name.rfind("firn_", 0) == 0 || name.rfind("FIRN_", 0) == 0) << name;
}

// Names that were there in version 0.1 stay: a program that was linked then must find them.
TEST(Symbols, TheGoldenListOfVersion01IsStillThere) {
  const std::set<std::string> golden = words(read(FIRN_TEST_GOLDEN "/capi/symbols_0.1.txt"), "(firn_\\w+)\n");
  const std::set<std::string> listed = words(read(FIRN_SOURCE_DIR "/capi/firn.map"), "\n    (firn_\\w+);");
  EXPECT_GT(golden.size(), 70u);
  for (const std::string& name : golden) EXPECT_TRUE(listed.count(name)) << name;
}

}  // namespace
