// unicode.h: the three character classes that the pre-tokenizer's pattern asks about, and strict UTF-8 decoding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace firn::llama {

bool is_letter(std::uint32_t code_point);      // \p{L}
bool is_number(std::uint32_t code_point);      // \p{N}
bool is_whitespace(std::uint32_t code_point);  // \s

inline constexpr std::uint32_t kNotText = ~0u;  // a byte that is not part of valid UTF-8; in no class

struct CodePoint {
  std::uint32_t value = kNotText;
  std::size_t bytes = 1;  // 1 for kNotText, so that a reader always moves on
};
// The code point at the start of text, which is not empty.
CodePoint decode_utf8(std::string_view text);

}  // namespace firn::llama
