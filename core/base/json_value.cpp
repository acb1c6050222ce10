#include "core/base/json_value.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

namespace firn {

// What the parser calls, value by value. Returning false ends it.
class JsonBuilder {
 public:
  using Json = nlohmann::json;
  bool null() { return add({}); }
  bool boolean(bool value) {
    JsonValue one;
    one.kind_ = JsonValue::Kind::kBool;
    one.unsigned_ = value;
    return add(std::move(one));
  }
  bool number_integer(Json::number_integer_t value) {
    JsonValue one;
    one.kind_ = JsonValue::Kind::kSigned;
    one.real_ = static_cast<double>(value);
    return add(std::move(one));
  }
  bool number_unsigned(Json::number_unsigned_t value) {
    JsonValue one;
    one.kind_ = JsonValue::Kind::kUnsigned;
    one.unsigned_ = value;
    one.real_ = static_cast<double>(value);
    return add(std::move(one));
  }
  bool number_float(Json::number_float_t value, const std::string&) {
    JsonValue one;
    one.kind_ = JsonValue::Kind::kReal;
    one.real_ = value;
    return add(std::move(one));
  }
  bool string(std::string& value) {
    JsonValue one;
    one.kind_ = JsonValue::Kind::kText;
    one.text_ = std::move(value);
    return add(std::move(one));
  }
  bool binary(Json::binary_t&) { return false; }
  bool start_object(std::size_t) { return open(JsonValue::Kind::kObject); }
  bool start_array(std::size_t) { return open(JsonValue::Kind::kArray); }
  bool key(std::string& name) {
    open_.back().names_.push_back(std::move(name));
    return true;
  }
  bool end_array() { return close(); }
  bool end_object() {
    JsonValue& object = open_.back();
    std::vector<std::size_t> order(object.names_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      const int compared = object.names_[a].compare(object.names_[b]);
      return compared != 0 ? compared < 0 : a < b;
    });
    JsonValue sorted;
    sorted.kind_ = JsonValue::Kind::kObject;
    for (std::size_t i = 0; i < order.size(); ++i) {
      if (i + 1 < order.size() && object.names_[order[i]] == object.names_[order[i + 1]]) continue;
      sorted.names_.push_back(std::move(object.names_[order[i]]));
      sorted.items_.push_back(std::move(object.items_[order[i]]));
    }
    object = std::move(sorted);
    return close();
  }
  template <class Error>
  bool parse_error(std::size_t, const std::string&, const Error&) {
    return false;
  }
  JsonValue take() { return std::move(whole_); }

 private:
  bool open(JsonValue::Kind kind) {
    if (open_.size() == JsonValue::kMaxDepth) return false;
    open_.emplace_back().kind_ = kind;
    return true;
  }
  bool close() {
    JsonValue done = std::move(open_.back());
    open_.pop_back();
    return add(std::move(done));
  }
  bool add(JsonValue value) {
    (open_.empty() ? whole_ : open_.back().items_.emplace_back()) = std::move(value);
    return true;
  }
  std::vector<JsonValue> open_;
  JsonValue whole_;
};

std::optional<JsonValue> JsonValue::parse(std::string_view text) {
  JsonBuilder builder;
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) return std::nullopt;
  return builder.take();
}

const JsonValue* JsonValue::find(std::string_view name) const {
  const auto found = std::lower_bound(names_.begin(), names_.end(), name);
  return found == names_.end() || *found != name ? nullptr : &items_[static_cast<std::size_t>(found - names_.begin())];
}

}  // namespace firn
