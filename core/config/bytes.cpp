// Sizes as people write them. Integer arithmetic throughout: 0.1 has no exact binary form, and a budget is a promise.
#include <fmt/format.h>

#include <array>
#include <limits>
#include <string>

#include "firn/config.h"

namespace firn {
namespace {

struct Unit {
  std::string_view name;
  std::uint64_t bytes;
};
constexpr std::array<Unit, 9> kUnits{{{"B", 1},
                                      {"KiB", 1ull << 10},
                                      {"MiB", 1ull << 20},
                                      {"GiB", 1ull << 30},
                                      {"TiB", 1ull << 40},
                                      {"kB", 1000},
                                      {"MB", 1000'000},
                                      {"GB", 1000'000'000},
                                      {"TB", 1000'000'000'000}}};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

Status bad_size(std::string_view text, std::string_view why) {
  return Status(Code::kInvalidArgument,
                fmt::format("\"{}\" is not a size: {}; write it like 16MiB or 1.5GiB", text, why));
}

Result<std::uint64_t> unit_bytes(std::string_view text, std::string_view name) {
  for (const Unit& unit : kUnits)
    if (unit.name == name) return unit.bytes;
  if (name.empty()) return bad_size(text, "it has no unit");
  return bad_size(text, fmt::format("there is no unit \"{}\" (B, KiB, MiB, GiB, TiB, or kB, MB, GB, TB)", name));
}

}  // namespace

Result<std::uint64_t> parse_bytes(std::string_view text) {
  // At most nine decimals, so that fraction * unit stays within 128 bits and far from rounding.
  constexpr int kMaxDecimals = 9;
  constexpr std::size_t kMaxText = 40;
  if (text == "0") return std::uint64_t{0};  // nothing is nothing in every unit
  if (text.size() > kMaxText) return bad_size(text.substr(0, kMaxText), "it is too long");
  std::size_t at = 0;
  __extension__ using Wide = unsigned __int128;
  Wide number = 0, scale = 1;
  for (; at < text.size() && is_digit(text[at]); ++at) {
    number = number * 10 + static_cast<unsigned>(text[at] - '0');
    if (number > std::numeric_limits<std::uint64_t>::max()) return bad_size(text, "it is too large");
  }
  if (at == 0) return bad_size(text, "it does not begin with a number");
  if (at < text.size() && text[at] == '.') {
    const std::size_t point = at;
    for (++at; at < text.size() && is_digit(text[at]); ++at) {
      if (at - point > kMaxDecimals) return bad_size(text, "it has more than nine decimals");
      number = number * 10 + static_cast<unsigned>(text[at] - '0');
      scale *= 10;
    }
    if (scale == 1) return bad_size(text, "no digit follows the point");
  }
  while (at < text.size() && text[at] == ' ') ++at;
  FIRN_ASSIGN(const std::uint64_t unit, unit_bytes(text, text.substr(at)));
  const Wide bytes = number * unit / scale;
  if (bytes > std::numeric_limits<std::uint64_t>::max()) return bad_size(text, "it is too large");
  return static_cast<std::uint64_t>(bytes);
}

std::string format_bytes(std::uint64_t bytes) {
  // The largest binary unit that divides it: exact, hence it round trips.
  std::size_t unit = 0;
  for (std::size_t u = 1; u <= 4; ++u)
    if (bytes != 0 && bytes % kUnits[u].bytes == 0) unit = u;
  return fmt::format("{}{}", bytes / kUnits[unit].bytes, kUnits[unit].name);
}

}  // namespace firn
