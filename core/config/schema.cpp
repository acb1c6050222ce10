// The JSON schema of a deployment, for editors that complete and check YAML as it is typed.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/config/settings.h"

namespace firn {
namespace {

using Json = nlohmann::ordered_json;
using Kind = Setting::Kind;

// What parse_bytes takes, without a bare 0, which has a word.
constexpr const char* kBytesPattern = "^[0-9]+(\\.[0-9]{1,9})? *(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)$";

Json default_value(const Setting& setting) {
  const std::string text = format_value(setting, Config{});
  if (setting.kind == Kind::kFlag) return text == "true";
  if (setting.kind == Kind::kCount && text != setting.zero) return std::stoull(text);
  return text;
}

Json value_schema(const Setting& setting) {
  switch (setting.kind) {
    case Kind::kWord:
      return {{"enum", setting.words}};
    case Kind::kText:
      return {{"type", "string"}, {"pattern", setting.pattern}};
    case Kind::kFlag:
      return {{"type", "boolean"}};
    case Kind::kCount:
      return {{"type", "integer"}, {"minimum", setting.min}, {"maximum", setting.max}};
    case Kind::kBytes:
      return {{"pattern", kBytesPattern}};
  }
  return {};
}

Json setting_schema(const Setting& setting) {
  Json schema{{"description", setting.description}, {"default", default_value(setting)}};
  if (setting.zero.empty()) {
    schema.update(value_schema(setting));
  } else {
    // 0 stands for "off", and YAML reads it as a number; for no other word.
    Json words = Json::array({setting.zero});
    if (setting.zero == "off") words.push_back(0);
    schema["anyOf"] = Json::array({Json{{"enum", words}}, value_schema(setting)});
  }
  return schema;
}

}  // namespace

std::string config_schema_json() {
  Json properties = Json::object();
  for (const Setting& setting : settings_table()) {
    const std::size_t dot = setting.key.find('.');
    if (dot == std::string_view::npos) {
      properties[std::string(setting.key)] = setting_schema(setting);
      continue;
    }
    Json& section = properties[std::string(setting.key.substr(0, dot))];
    if (section.is_null())
      section = {
          {"type", Json::array({"object", "null"})}, {"additionalProperties", false}, {"properties", Json::object()}};
    section["properties"][std::string(setting.key.substr(dot + 1))] = setting_schema(setting);
  }
  const Json schema{{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                    {"title", "a firn deployment"},
                    {"type", "object"},
                    {"additionalProperties", false},
                    {"properties", properties}};
  return schema.dump(2) + "\n";
}

}  // namespace firn
