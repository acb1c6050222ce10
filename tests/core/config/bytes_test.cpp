#include <gtest/gtest.h>

#include <random>

#include "firn/config.h"

namespace firn {
namespace {

TEST(Bytes, ReadsSizesAsPeopleWriteThem) {
  const std::pair<const char*, std::uint64_t> cases[] = {{"16MiB", 16ull << 20},
                                                         {"1.5GiB", 3ull << 29},
                                                         {"4096B", 4096},
                                                         {"1kB", 1000},
                                                         {"2 GB", 2'000'000'000},
                                                         {"0", 0},
                                                         {"0B", 0},
                                                         {"0.5KiB", 512},
                                                         {"1TiB", 1ull << 40},
                                                         {"16777215TiB", 16777215ull << 40},
                                                         {"18446744073709551615B", ~0ull}};
  for (const auto& [text, bytes] : cases) {
    const auto parsed = parse_bytes(text);
    ASSERT_TRUE(parsed.ok()) << text << ": " << parsed.status().message();
    EXPECT_EQ(*parsed, bytes) << text;
  }
}

TEST(Bytes, RefusesWhatIsNotASizeAndSaysHowToWriteOne) {
  for (const char* text : {"", "16", "16M", "16mib", "16 KB", "-1MiB", "MiB", "1.MiB", ".5MiB", "1e3B", "16MiB ",
                           " 16MiB", "1,5GiB", "1.0000000001GiB", "18446744073709551616B", "16777216TiB", "1.5.5MiB",
                           "0x10B", "99999999999999999999999999999999999999999B"}) {
    const auto parsed = parse_bytes(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(parsed.status().code(), Code::kInvalidArgument);
    EXPECT_NE(parsed.status().message().find("16MiB"), std::string::npos) << parsed.status().message();
  }
}

TEST(Bytes, WritesWhatItCanReadBack) {
  EXPECT_EQ(format_bytes(16ull << 20), "16MiB");
  EXPECT_EQ(format_bytes(3ull << 29), "1536MiB");
  EXPECT_EQ(format_bytes(1000), "1000B");
  EXPECT_EQ(format_bytes(0), "0B");
  std::mt19937_64 random(7);
  for (int i = 0; i < 10'000; ++i) {
    const std::uint64_t bytes = random() >> (random() % 64) << (random() % 8);
    const auto back = parse_bytes(format_bytes(bytes));
    ASSERT_TRUE(back.ok()) << bytes;
    ASSERT_EQ(*back, bytes);
  }
}

}  // namespace
}  // namespace firn
