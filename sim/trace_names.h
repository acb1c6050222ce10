// trace_names.h: names as traces write them. A name is a pattern of 64 bits, not a count: signed and unsigned numbers
// and hex strings, with or without 0x, are the same patterns. A string of more than 16 hex digits, such as a SHA-256,
// is a hash of its own digits: names only have to be told apart.
#pragma once

#include <cstdint>
#include <string_view>

#include "sim/name_table.h"

namespace firn::sim {

// Of any text, the same in every program and version.
constexpr std::uint64_t hash_text(std::string_view text) {
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a, then spread
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return mix_name(hash);
}

// false: no hex digits, or others among them.
constexpr bool parse_hex_name(std::string_view text, std::uint64_t& name) {
  if (text.size() > 2 && text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) text.remove_prefix(2);
  constexpr std::size_t kDigits = 16;
  std::uint64_t sum = 0, hash = 0;
  for (const char c : text) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) return false;
    sum = sum << 4 | static_cast<std::uint64_t>(digit);
    hash = mix_name(hash ^ static_cast<std::uint64_t>(digit + 1));
  }
  name = text.size() > kDigits ? hash : sum;
  return !text.empty();
}

// A decimal number from -2^63 to 2^64 - 1. Takes it from the front of text; false: there is none, or one beyond that.
constexpr bool take_number_name(std::string_view& text, std::uint64_t& name) {
  const bool negative = !text.empty() && text[0] == '-';
  const std::uint64_t most = negative ? std::uint64_t{1} << 63 : ~std::uint64_t{0};
  std::size_t at = negative;
  std::uint64_t sum = 0;
  for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; ++at) {
    const auto digit = static_cast<std::uint64_t>(text[at] - '0');
    if (sum > (most - digit) / 10) return false;
    sum = sum * 10 + digit;
  }
  if (at == std::size_t{negative}) return false;
  name = negative ? ~sum + 1 : sum;
  text.remove_prefix(at);
  return true;
}

// A field of a table: a decimal number, or hex digits behind 0x.
constexpr bool parse_name(std::string_view text, std::uint64_t& name) {
  if (text.size() > 2 && text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) return parse_hex_name(text, name);
  return take_number_name(text, name) && text.empty();
}

// Of a session; 0 is nobody's.
constexpr std::uint64_t session_name(std::uint64_t name) { return cache_name(name); }

}  // namespace firn::sim
