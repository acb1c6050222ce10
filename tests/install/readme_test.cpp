// The README shows a program that CI compiles: examples/embed.cpp, line by line.
#include <gtest/gtest.h>

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

}  // namespace
