// Damaged deployments: an error or a good configuration, never a crash. Every shipped file, cut at every byte, and with
// bytes changed from a seed.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "firn/config.h"

namespace firn {
namespace {

std::vector<std::filesystem::path> shipped_files() {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(FIRN_SOURCE_DIR "/configs"))
    if (entry.path().extension() == ".yaml") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

std::string read(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return std::move(text).str();
}

void expect_answer(const std::string& text) {
  const auto loaded = load_config({.file = "damaged.yaml", .text = text});
  if (loaded.ok()) {
    EXPECT_TRUE(validate(loaded->config).ok());
    return;
  }
  EXPECT_EQ(loaded.status().code(), Code::kInvalidArgument);
  EXPECT_FALSE(loaded.status().message().empty());
}

TEST(ShippedConfigs, AllLoadWithoutAWarning) {
  ASSERT_GE(shipped_files().size(), 4u);
  for (const auto& path : shipped_files()) {
    const auto loaded = load_config({.file = path, .text = read(path)});
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    EXPECT_TRUE(loaded->warnings.empty()) << path << ": " << loaded->warnings[0];
  }
}

TEST(HostileConfig, EveryTruncationIsAnswered) {
  for (const auto& path : shipped_files()) {
    const std::string text = read(path);
    for (std::size_t n = 0; n <= text.size(); ++n) expect_answer(text.substr(0, n));
  }
}

TEST(HostileConfig, EveryFlippedByteIsAnswered) {
  std::mt19937_64 random(11);
  constexpr std::string_view kLoaded = ":{}[]&*!|>'\"%@`#-?,\t\n\r \\0~<\x80\xff";
  for (const auto& path : shipped_files()) {
    const std::string text = read(path);
    for (int round = 0; round < 1500; ++round) {
      std::string damaged = text;
      for (std::uint64_t flips = 1 + random() % 4; flips != 0; --flips) {
        char& victim = damaged[random() % damaged.size()];
        victim = random() % 2 == 0 ? kLoaded[random() % kLoaded.size()] : static_cast<char>(random());
      }
      expect_answer(damaged);
    }
  }
}

TEST(HostileConfig, DeepAndWideTextsAreRefused) {
  expect_answer(std::string(100'000, '['));
  expect_answer(std::string(100'000, '{'));
  std::string deep;
  for (int i = 0; i < 400; ++i) deep += std::string(static_cast<std::size_t>(i), ' ') + "a:\n";
  expect_answer(deep);
  expect_answer("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n");
  expect_answer("pool: &p\n  budget: 1MiB\nhost: *p\n");
  expect_answer("a: &a {x: *a}\n");
  expect_answer(std::string(200'000, '-'));
  expect_answer("threads: " + std::string(200'000, '9') + "\n");
  expect_answer("? ? ? ? ? ?");
}

}  // namespace
}  // namespace firn
