// The README shows a program that CI compiles: examples/embed.cpp, line by line.
#include <gtest/gtest.h>

#include <cctype>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace {

std::string read(const char* path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return std::move(text).str();
}

TEST(Readme, ShowsTheProgramThatIsCompiled) {
  const std::string readme = read(FIRN_SOURCE_DIR "/README.md"), program = read(FIRN_SOURCE_DIR "/examples/embed.cpp");
  const std::string fence = "```cpp\n";
  const std::size_t begin = readme.find(fence);
  ASSERT_NE(begin, std::string::npos);
  const std::size_t end = readme.find("```\n", begin + fence.size());
  ASSERT_NE(end, std::string::npos);
  EXPECT_EQ(readme.substr(begin + fence.size(), end - begin - fence.size()), program);
}

TEST(Readme, PointsToPagesThatExist) {
  std::string readme = read(FIRN_SOURCE_DIR "/README.md");
  // Not in code: a lambda looks like a link.
  for (std::size_t begin; (begin = readme.find("```")) != std::string::npos;)
    readme.erase(begin, readme.find("```", begin + 3) + 3 - begin);
  std::size_t links = 0;
  for (std::size_t at = readme.find("]("); at != std::string::npos; at = readme.find("](", at + 1)) {
    const std::string target = readme.substr(at + 2, readme.find(')', at) - at - 2);
    if (target.starts_with("http") || target.starts_with("#")) continue;
    EXPECT_TRUE(std::ifstream(FIRN_SOURCE_DIR "/" + target).good()) << target;
    ++links;
  }
  EXPECT_GT(links, 3u);
}

// Every `Suite.Name`, `test_name` and `file.c` of docs/behaviours.md is in a file of tests/ or python/tests.
TEST(BehavioursPage, NamesTestsThatExist) {
  std::string sources;
  for (const char* folder : {"/tests", "/python/tests"})
    for (const auto& entry : std::filesystem::recursive_directory_iterator(std::string(FIRN_SOURCE_DIR) + folder))
      if (const std::string kind = entry.path().extension();
          kind == ".cpp" || kind == ".h" || kind == ".py" || kind == ".c")
        sources += entry.path().filename().string() + "\n" + read(entry.path().c_str());
  const std::string page = read(FIRN_SOURCE_DIR "/docs/behaviours.md");
  std::size_t tests = 0;
  std::istringstream lines(page.substr(page.find("## ")));
  for (std::string line; std::getline(lines, line);) {
    const std::size_t last = line.rfind(" | ");
    if (!line.starts_with("|") || last == std::string::npos) continue;
    for (std::size_t at = line.find('`', last); at != std::string::npos; at = line.find('`', at)) {
      const std::size_t end = line.find('`', at + 1);
      ASSERT_NE(end, std::string::npos) << line;
      const std::string name = line.substr(at + 1, end - at - 1);
      at = end + 1;
      const std::size_t dot = name.find('.');
      std::string wanted = name;
      if (name.starts_with("test_")) wanted = "def " + name + "(";
      if (std::isupper(static_cast<unsigned char>(name[0])) && dot != std::string::npos)
        wanted = name.substr(0, dot) + ", " + name.substr(dot + 1) + ")";
      EXPECT_NE(sources.find(wanted), std::string::npos) << name;
      ++tests;
    }
  }
  EXPECT_GT(tests, 100u);
}

}  // namespace
