#include "core/config/codec_name.h"

#include <fmt/format.h>

#include <charconv>

namespace firn {
namespace {

bool is_integer(std::string_view codec) { return codec == "q8" || codec == "q4"; }
bool has_ratio(std::string_view codec) { return codec == "kvtc" || codec == "firn"; }

struct Suffix {
  std::string_view text, hadamard;
};
constexpr Suffix kSuffixes[] = {{"-plain", "none"}, {"-keys", "keys"}, {"-values", "values"}};

}  // namespace

std::string codec_name(const Config::Host& host) {
  if (has_ratio(host.codec)) return fmt::format("{}@{}", host.codec, host.ratio);
  if (!is_integer(host.codec)) return host.codec;
  std::string name = host.codec;
  if (host.value_codec != "same" && host.value_codec != host.codec) name += "/" + host.value_codec;
  for (const Suffix& suffix : kSuffixes)
    if (host.hadamard == suffix.hadamard) name += suffix.text;
  return name;
}

Status set_codec(std::string_view name, Config::Host& host) {
  const auto wrong = [&](const std::string& why) {
    return Status(Code::kInvalidArgument, fmt::format("codec {}: {}", name, why));
  };
  std::string_view rest = name;
  host.value_codec = "same", host.hadamard = "both";
  for (const Suffix& suffix : kSuffixes)
    if (rest.ends_with(suffix.text)) {
      host.hadamard = suffix.hadamard;
      rest.remove_suffix(suffix.text.size());
      break;
    }
  const std::size_t at = rest.find_first_of("@/");
  host.codec = rest.substr(0, at);
  if (host.hadamard != "both" && !is_integer(host.codec)) return wrong("only q8 and q4 have a transform to be without");
  if (at == std::string_view::npos) {
    if (has_ratio(host.codec)) return wrong(fmt::format("{}@RATIO is expected", host.codec));
    return {};
  }
  const std::string_view more = rest.substr(at + 1);
  if (rest[at] == '/') {
    if (!is_integer(host.codec)) return wrong("only q8 and q4 code keys and values apart");
    host.value_codec = more;
    return {};
  }
  if (!has_ratio(host.codec)) return wrong("only kvtc and firn have a ratio");
  const auto [end, error] = std::from_chars(more.data(), more.data() + more.size(), host.ratio);
  if (error != std::errc() || end != more.data() + more.size() || more.empty() || host.ratio < 2 || host.ratio > 1024)
    return wrong(fmt::format("'{}' is no ratio: a whole number from 2 to 1024 is expected", more.substr(0, 40)));
  return {};
}

}  // namespace firn
