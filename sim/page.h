// page.h: one self-contained page of numbers, tables and charts: no network, light and dark, readable on a phone. What
// it shows was made text where it was computed; the page's own script draws charts with axes, and values on hover.
#pragma once

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace firn::sim {

struct PageCard {
  std::string id, name, value;
};
struct PageRow {
  std::string name, value, id = {};
  double share = 0;  // of the bar beside it
};
struct PageBars {  // names, values and bars
  std::string title;
  std::vector<PageRow> rows;
};
struct PageTable {
  std::string title;
  std::vector<std::string> heads;
  std::vector<std::vector<std::string>> rows;
};
enum class PageUnit : std::uint8_t { kCount, kShare, kSeconds, kBytes, kDollars };
struct PageSeries {
  std::string name;
  std::vector<double> y = {};  // one for each x; NaN: nothing there
};
struct PageChart {
  std::string title, x_name, y_name;
  PageUnit x_unit = PageUnit::kSeconds, y_unit = PageUnit::kCount;
  std::vector<double> x = {};
  std::vector<PageSeries> series = {};
  bool log_x = false, dots = false;
};
struct Page {
  std::string title, say;
  std::vector<PageCard> cards;
  std::vector<PageBars> bars;
  std::vector<PageTable> tables;
  std::vector<PageChart> charts;
  std::vector<std::pair<std::string, std::string>> settings;
  std::vector<std::string> assumptions;
};

// data: a JSON object that the page carries for programs, in the element "data"; it may be empty.
std::string render(const Page& page, const std::string& data);

// As people read them: thousands separated, a unit, few digits.
std::string grouped_number(std::uint64_t number);
std::string short_time(double seconds);
std::string short_bytes(double bytes);
std::string short_share(double share);

}  // namespace firn::sim
