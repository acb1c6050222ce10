#include "examples/llama/unicode.h"

#include <algorithm>
#include <span>

#include "examples/llama/unicode_tables.h"

namespace firn::llama {
namespace {

bool contains(std::span<const CodePointRange> ranges, std::uint32_t code_point) {
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), code_point,
                                      [](std::uint32_t value, const CodePointRange& r) { return value < r.first; });
  return after != ranges.begin() && code_point <= (after - 1)->last;
}

}  // namespace

bool is_letter(std::uint32_t code_point) {
  if (code_point < 128) return (code_point | 32u) >= 'a' && (code_point | 32u) <= 'z';  // nearly all text is this
  return contains(kLetterRanges, code_point);
}

bool is_number(std::uint32_t code_point) {
  if (code_point < 128) return code_point >= '0' && code_point <= '9';
  return contains(kNumberRanges, code_point);
}

bool is_whitespace(std::uint32_t c) {
  return c == ' ' || (c >= 0x09 && c <= 0x0d) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

CodePoint decode_utf8(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < length) return {};
  std::uint32_t value = lead & (0x7fu >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0u) != 0x80u) return {};
    value = value << 6 | (byte(i) & 0x3fu);
  }
  constexpr std::uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = value >= 0xd800 && value < 0xe000;
  if (value < kSmallest[length] || value > 0x10ffff || surrogate) return {};
  return {value, length};
}

}  // namespace firn::llama
