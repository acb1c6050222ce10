// Every member of Stats is a figure, so that nobody adds a counter that no surface shows.
#include "firn/stats.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <string>

namespace firn {
namespace {

std::set<std::string> members_of_stats() {
  std::ifstream file(FIRN_SOURCE_DIR "/include/firn/stats.h");
  std::string text{std::istreambuf_iterator<char>(file), {}};
  text = std::regex_replace(text, std::regex("//[^\n]*"), "");
  const std::size_t begin = text.find("struct Stats {"), end = text.find("\n};", begin);
  text = text.substr(begin, end - begin);
  std::set<std::string> names;
  const std::regex member("(\\w+)(\\{\\}| = 0)[,;]");
  for (std::sregex_iterator at(text.begin(), text.end(), member), last; at != last; ++at) names.insert((*at)[1]);
  return names;
}

TEST(Stats, EveryMemberIsAFigure) {
  const std::set<std::string> members = members_of_stats();
  ASSERT_GT(members.size(), 30u);
  std::set<std::string> shown;
  for (const StatFigure& figure : figures({})) shown.insert(figure.name.substr(0, figure.name.find('.')));
  EXPECT_EQ(shown, members) << "core/stats.cpp lacks a line";
}

TEST(Stats, FiguresCarryTheirValues) {
  Stats stats;
  stats.slots_free = 3;
  stats.kv_cache_usage_perc = 0.25;
  stats.misses[static_cast<std::size_t>(MissReason::kNotRead)] = 7;
  const auto value = [&](std::string_view name) {
    const std::vector<StatFigure> all = figures(stats);
    const auto found = std::find_if(all.begin(), all.end(), [&](const StatFigure& one) { return one.name == name; });
    return found == all.end() ? -1.0 : found->value;
  };
  EXPECT_EQ(value("slots_free"), 3);
  EXPECT_EQ(value("kv_cache_usage_perc"), 0.25);
  EXPECT_EQ(value("misses.not_read"), 7);
  EXPECT_EQ(value("misses.never_stored"), 0);
  const std::string json = stats_json(stats);
  EXPECT_NE(json.find("\"slots_free\": 3,"), std::string::npos) << json;
  EXPECT_NE(json.find("\"kv_cache_usage_perc\": 0.25"), std::string::npos) << json;
}

}  // namespace
}  // namespace firn
