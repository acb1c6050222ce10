// The pages that are made from the table of settings: configs/schema.json and the table in docs/config.md.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/config/settings.h"

namespace firn {
namespace {

std::string read(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return std::move(text).str();
}

TEST(Schema, IsTheOneInTheTree) {
  EXPECT_EQ(read(FIRN_SOURCE_DIR "/configs/schema.json"), config_schema_json())
      << "write it anew: firn config --schema > configs/schema.json";
}

TEST(Schema, KnowsEverySettingAndNothingElse) {
  const nlohmann::json schema = nlohmann::json::parse(config_schema_json());
  std::size_t count = 0;
  for (const auto& [name, entry] : schema["properties"].items()) {
    if (!entry.contains("properties")) {
      EXPECT_NE(find_setting(name), nullptr) << name;
      ++count;
      continue;
    }
    EXPECT_EQ(entry["additionalProperties"], false);
    for (const auto& [inner, _] : entry["properties"].items()) {
      EXPECT_NE(find_setting(name + "." + inner), nullptr) << name << "." << inner;
      ++count;
    }
  }
  EXPECT_EQ(count, settings_table().size());
}

TEST(ConfigPage, HasARowForEverySetting) {
  const std::string page = read(FIRN_SOURCE_DIR "/docs/config.md");
  std::string rows;
  for (const Setting& setting : settings_table())
    rows += fmt::format("| `{}` | `{}` | {} | {} |\n", setting.key, format_value(setting, Config{}),
                        describe_values(setting), setting.description);
  EXPECT_NE(page.find(rows), std::string::npos) << "docs/config.md should have this table:\n" << rows;
}

}  // namespace
}  // namespace firn
