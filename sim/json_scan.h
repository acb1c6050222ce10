// json_scan.h: reads JSON front to back without building a tree. Trace lines have tens of thousands of numbers, and a
// tree of them costs more than the simulation does.
//
// A scanner stands in front of a value; each call takes one value or one structural character and answers false if
// that is not what is there, after which failed() is true and everything answers false.
#pragma once

#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>

#include "sim/trace_names.h"

namespace firn::sim {

class JsonScanner {
 public:
  explicit JsonScanner(std::string_view text) : at_(text.data()), end_(text.data() + text.size()), start_(at_) {}
  bool failed() const { return failed_; }
  std::size_t offset() const { return static_cast<std::size_t>(at_ - start_); }
  bool at_end() {
    skip_space();
    return at_ == end_;
  }
  char peek() {
    skip_space();
    return at_ < end_ ? *at_ : '\0';
  }

  // Members of an object: if (begin_object()) while (next_key(key)) <take the value>;
  bool begin_object() { return take('{') && ((fresh_ = true)); }
  bool next_key(std::string_view& key) { return next_item('}') && string(key) && take(':'); }
  bool begin_array() { return take('[') && ((fresh_ = true)); }
  bool next_element() { return next_item(']'); }

  bool number(double& value) {
    skip_space();
    const auto [rest, error] = std::from_chars(at_, end_, value);
    if (failed_ || error != std::errc()) return fail();
    at_ = rest;
    fresh_ = false;
    return true;
  }
  bool integer(std::uint64_t& value) { return peek() != '-' && whole(value); }
  // A name: a whole number from -2^63 to 2^64 - 1, or a string of hex digits.
  bool name(std::uint64_t& value) {
    if (peek() != '"') return whole(value);
    std::string_view text;
    return string(text) && (parse_hex_name(text, value) || fail());
  }
  // Without its quotes, escapes left as they are: names and ids need none.
  bool string(std::string_view& value) {
    if (!take('"')) return false;
    const char* from = at_;
    while (at_ < end_ && *at_ != '"') at_ += *at_ == '\\' ? 2 : 1;
    if (at_ >= end_) return fail();
    value = std::string_view(from, static_cast<std::size_t>(at_ - from));
    ++at_;
    fresh_ = false;
    return true;
  }
  // Any value, nested at most kMaxDepth deep.
  bool skip(int depth = 0) {
    std::string_view text;
    if (depth > kMaxDepth) return fail();
    switch (peek()) {
      case '{':
        if (!begin_object()) return false;
        while (next_key(text))
          if (!skip(depth + 1)) return false;
        return !failed_;
      case '[':
        if (!begin_array()) return false;
        while (next_element())
          if (!skip(depth + 1)) return false;
        return !failed_;
      case '"':
        return string(text);
      case 't':
        return word("true");
      case 'f':
        return word("false");
      case 'n':
        return word("null");
      default: {
        double value = 0;
        return number(value);
      }
    }
  }

 private:
  static constexpr int kMaxDepth = 64;
  void skip_space() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r')) ++at_;
  }
  bool fail() {
    failed_ = true;
    at_ = at_ > end_ ? end_ : at_;
    return false;
  }
  bool take(char wanted) {
    if (failed_) return false;
    skip_space();
    if (at_ == end_ || *at_ != wanted) return fail();
    ++at_;
    return true;
  }
  bool whole(std::uint64_t& value) {
    skip_space();
    std::string_view rest(at_, static_cast<std::size_t>(end_ - at_));
    if (failed_ || !take_number_name(rest, value)) return fail();
    at_ = rest.data();
    if (at_ < end_ && (*at_ == '.' || *at_ == 'e' || *at_ == 'E')) return fail();
    fresh_ = false;
    return true;
  }
  bool word(std::string_view wanted) {
    if (std::string_view(at_, static_cast<std::size_t>(end_ - at_)).substr(0, wanted.size()) != wanted) return fail();
    at_ += wanted.size();
    fresh_ = false;
    return true;
  }
  // Before the first item nothing, before others a comma; false at the closing character, which is taken.
  bool next_item(char closing) {
    if (failed_) return false;
    skip_space();
    if (at_ < end_ && *at_ == closing) {
      ++at_;
      fresh_ = false;  // what has been closed is an item of what is around it
      return false;
    }
    if (!fresh_ && !take(',')) return false;
    fresh_ = false;
    return true;
  }
  const char* at_;
  const char* end_;
  const char* start_;
  bool failed_ = false;
  bool fresh_ = false;  // right behind an opening bracket
};

}  // namespace firn::sim
