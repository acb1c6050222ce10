// settings.h: the one table of settings. Parsing, environment names, overrides, `firn config`, the JSON schema and the
// page docs/config.md all come from it, so a setting is added in one place.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "firn/config.h"
#include "firn/status.h"

namespace firn {

struct Setting {
  enum class Kind : std::uint8_t {
    kWord,   // one of words
    kText,   // checked by check
    kCount,  // a whole number
    kBytes,  // a size with a unit
    kFlag,   // true or false
  };
  // Where the value lives. Functions and not pointers to members: a pointer to a member of a member does not exist.
  using Field = std::variant<std::string& (*)(Config&), std::uint32_t& (*)(Config&), std::uint64_t& (*)(Config&),
                             bool& (*)(Config&)>;

  std::string_view key;  // "pool.budget": at most one dot
  Kind kind;
  Field field;
  std::string_view description;                  // one line, with what the number is per
  std::string_view zero = {};                    // what 0 is written as, for example "auto"; empty: 0 is a number
  std::uint64_t min = 0, max = 0;                // of a number that is not `zero`
  std::span<const std::string_view> words = {};  // of a kWord
  std::string_view form = {};                    // of a kText, for people: "local | node:N | ..."
  std::string_view pattern = {};                 // of a kText, for the schema
  Status (*check)(std::string_view text) = {};   // of a kText
};

std::span<const Setting> settings_table();
const Setting* find_setting(std::string_view key);   // null: there is none
std::string environment_name(std::string_view key);  // FIRN_POOL_BUDGET
// FIRN_ variables that are not settings and are left alone.
std::span<const std::string_view> other_environment_names();
// Named as Kubernetes and container links name what they tell every process of a service called "firn" or "firn-...".
// Such a variable is nobody's mistake; where it is a setting's name, it is the setting.
bool is_service_environment_name(std::string_view name);

// Text as a person writes it, into its field; a failure says what would be right and does not name the key.
Status set_value(const Setting& setting, std::string_view text, Config& config);
std::string format_value(const Setting& setting, const Config& config);  // set_value's inverse
// What may stand there, for messages and pages: "a size such as 16MiB, or auto".
std::string describe_values(const Setting& setting);
// The value in config, held against the table; for configurations that were not parsed.
Status check_value(const Setting& setting, const Config& config);

}  // namespace firn
