#include "examples/llama/unicode.h"

#include "llama_test_util.h"

namespace firn::llama {
namespace {

TEST(Unicode, KnowsLettersNumbersAndSpacesOfManyScripts) {
  for (const std::uint32_t c :
       {0x41u, 0x7au, 0xaau, 0xe9u, 0x3b1u, 0x416u, 0x5d0u, 0x65e5u, 0xac00u, 0x1d518u, 0x20000u})
    EXPECT_TRUE(is_letter(c)) << std::hex << c;
  for (const std::uint32_t c : {0x30u, 0x39u, 0xb2u, 0xbdu, 0x663u, 0x2167u, 0x1d7d8u})
    EXPECT_TRUE(is_number(c)) << std::hex << c;
  for (const std::uint32_t c : {0x20u, 0x0au, 0x85u, 0xa0u, 0x2003u, 0x3000u})
    EXPECT_TRUE(is_whitespace(c)) << std::hex << c;
  for (const std::uint32_t c :
       {0x2du, 0x40u, 0x5bu, 0x60u, 0x7bu, 0x301u, 0x3001u, 0x1f44du, 0x200bu, 0x10ffffu, kNotText})
    EXPECT_FALSE(is_letter(c) || is_number(c) || is_whitespace(c)) << std::hex << c;
}

TEST(Unicode, ClassesNeverOverlap) {
  for (std::uint32_t c = 0; c <= 0x10ffff; ++c)
    ASSERT_LE(is_letter(c) + is_number(c) + is_whitespace(c), 1) << std::hex << c;
}

TEST(Unicode, DecodesEveryLengthAndRefusesWhatIsNotUtf8) {
  const auto decoded = [](std::string_view text) {
    return std::pair(decode_utf8(text).value, decode_utf8(text).bytes);
  };
  using Pair = std::pair<std::uint32_t, std::size_t>;
  EXPECT_EQ(decoded("A"), Pair(0x41, 1));
  EXPECT_EQ(decoded("\xc3\xa9!"), Pair(0xe9, 2));
  EXPECT_EQ(decoded("\xe6\x97\xa5"), Pair(0x65e5, 3));
  EXPECT_EQ(decoded("\xf0\x9f\x91\x8d"), Pair(0x1f44d, 4));
  for (const std::string_view bad : {"\x80", "\xc0\x80", "\xc3", "\xc3(", "\xe0\x80\x80", "\xed\xa0\x80",
                                     "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xe6\x97"})
    EXPECT_EQ(decoded(bad), Pair(kNotText, 1)) << bad;
}

}  // namespace
}  // namespace firn::llama
