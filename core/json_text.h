// json_text.h: writes JSON as text, front to back. A tree of a library's values is freed by code that itself allocates,
// which is no way to come out of a failure of memory.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <type_traits>

namespace firn {

class JsonText {
 public:
  enum class Layout : std::uint8_t { kLines, kOneLine };
  explicit JsonText(Layout layout = Layout::kLines) : lines_(layout == Layout::kLines) {}
  void begin_object() { open('{'); }
  void begin_array() { open('['); }
  void end_object() { close('}'); }
  void end_array() { close(']'); }
  void key(std::string_view name) {
    separate();
    quoted(name);
    text_ += lines_ ? ": " : ":";
    after_key_ = true;
  }
  template <class Value>
  void value(const Value& value) {
    separate();
    if constexpr (std::is_same_v<Value, bool>) {
      text_ += value ? "true" : "false";
    } else if constexpr (std::is_floating_point_v<Value>) {
      if (std::isfinite(value))
        fmt::format_to(std::back_inserter(text_), "{}", value);
      else
        text_ += "null";
    } else if constexpr (std::is_arithmetic_v<Value>) {
      fmt::format_to(std::back_inserter(text_), "{}", value);
    } else {
      quoted(value);
    }
  }
  template <class Value>
  void field(std::string_view name, const Value& one) {
    key(name);
    value(one);
  }
  std::string take() { return std::move(text_); }

 private:
  void separate() {
    if (after_key_) {
      after_key_ = false;
      return;
    }
    if (depth_ == 0) return;
    if (!fresh_) text_ += ',';
    new_line();
    fresh_ = false;
  }
  void open(char bracket) {
    separate();
    text_ += bracket;
    ++depth_;
    fresh_ = true;
  }
  void close(char bracket) {
    --depth_;
    if (!fresh_) new_line();
    text_ += bracket;
    fresh_ = false;
  }
  // What is no UTF-8 (an owner's name may be any bytes) is written as U+FFFD.
  void quoted(std::string_view raw) {
    text_ += '"';
    for (std::size_t i = 0; i < raw.size();) {
      const auto c = static_cast<unsigned char>(raw[i]);
      if (c == '"' || c == '\\') {
        text_ += '\\';
        text_ += raw[i++];
      } else if (c < 0x20 || c == 0x7f) {
        fmt::format_to(std::back_inserter(text_), "\\u{:04x}", c);
        ++i;
      } else if (c < 0x80) {
        text_ += raw[i++];
      } else {
        const std::size_t bytes = utf8_bytes(raw.substr(i));
        text_ += bytes == 0 ? std::string_view("\xef\xbf\xbd") : raw.substr(i, bytes);
        i += bytes == 0 ? 1 : bytes;
      }
    }
    text_ += '"';
  }
  // Of the character at the front; 0: it is none.
  static std::size_t utf8_bytes(std::string_view raw) {
    const auto at = [&](std::size_t i) { return static_cast<unsigned char>(raw[i]); };
    const std::size_t bytes = at(0) >= 0xf0 && at(0) <= 0xf4 ? 4 : at(0) >= 0xe0 ? 3 : at(0) >= 0xc2 ? 2 : 0;
    if (bytes == 0 || at(0) > 0xf4 || raw.size() < bytes) return 0;
    for (std::size_t i = 1; i < bytes; ++i)
      if ((at(i) & 0xc0) != 0x80) return 0;
    if ((at(0) == 0xe0 && at(1) < 0xa0) || (at(0) == 0xed && at(1) > 0x9f) || (at(0) == 0xf0 && at(1) < 0x90) ||
        (at(0) == 0xf4 && at(1) > 0x8f))
      return 0;
    return bytes;
  }

  void new_line() {
    if (!lines_) return;
    text_ += '\n';
    text_.append(depth_, ' ');
  }

  bool lines_;
  std::string text_;
  std::size_t depth_ = 0;
  bool fresh_ = false, after_key_ = false;
};

}  // namespace firn
