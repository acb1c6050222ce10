// json_value.h: JSON as it was read. Like a library's tree of values, but freed without asking for memory: a reader
// that runs out of it half-way comes out with a Status.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace firn {

class JsonValue {
 public:
  enum class Kind : std::uint8_t { kNull, kBool, kUnsigned, kSigned, kReal, kText, kArray, kObject };
  static constexpr int kMaxDepth = 64;

  // Nothing: it is no JSON, or nested deeper than kMaxDepth. Of a name that an object has twice the last counts.
  static std::optional<JsonValue> parse(std::string_view text);

  Kind kind() const { return kind_; }
  bool is_object() const { return kind_ == Kind::kObject; }
  bool is_array() const { return kind_ == Kind::kArray; }
  bool is_text() const { return kind_ == Kind::kText; }
  bool is_unsigned() const { return kind_ == Kind::kUnsigned; }  // a whole number of 0 or more
  bool is_number() const { return kind_ == Kind::kUnsigned || kind_ == Kind::kSigned || kind_ == Kind::kReal; }
  std::uint64_t as_unsigned() const { return unsigned_; }  // is_unsigned()
  double as_real() const { return real_; }                 // is_number()
  const std::string& as_text() const { return text_; }     // is_text()
  // Of an array, in their order.
  const std::vector<JsonValue>& items() const { return items_; }
  // Of an object, by name: value i has name i.
  const std::vector<std::string>& names() const { return names_; }
  const JsonValue* find(std::string_view name) const;  // null: there is none, or this is no object

 private:
  friend class JsonBuilder;
  Kind kind_ = Kind::kNull;
  std::uint64_t unsigned_ = 0;
  double real_ = 0;
  std::string text_;
  std::vector<JsonValue> items_;
  std::vector<std::string> names_;
};

}  // namespace firn
