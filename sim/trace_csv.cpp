// trace_csv.cpp: comma-separated files with a header line. Which column is which is told by its name:
//
//   azure     TIMESTAMP (2023-11-16 18:17:03.9799600), ContextTokens, GeneratedTokens
//   burstgpt  Timestamp (s), Request tokens, Response tokens, and perhaps Session ID; failed requests have 0 responses
//   csv       timestamp (s), input_length, output_length, and perhaps session_id, turn, hash_ids (separated by spaces)
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "sim/trace_formats.h"
#include "sim/trace_names.h"

namespace firn::sim {
namespace {

enum Column : std::size_t { kTime, kInput, kOutput, kSession, kTurn, kIds, kColumns };

std::string lower(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(),
                 [](unsigned char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c); });
  return result;
}

// Which of ours a header's name means; kColumns: none.
std::size_t column_of(const std::string& name) {
  static constexpr std::array<std::array<std::string_view, 4>, kColumns> kNames = {{
      {"timestamp", "time", "arrival", "arrived_at"},
      {"input_length", "contexttokens", "request tokens", "input_tokens"},
      {"output_length", "generatedtokens", "response tokens", "output_tokens"},
      {"session_id", "session id", "session", "conversation_id"},
      {"turn", "turn_index", "", ""},
      {"hash_ids", "block_ids", "", ""},
  }};
  for (std::size_t column = 0; column < kColumns; ++column)
    if (std::find(kNames[column].begin(), kNames[column].end(), name) != kNames[column].end()) return column;
  return kColumns;
}

// Fields of a line; a quoted one loses its quotes.
void split(std::string_view line, std::vector<std::string_view>& fields) {
  fields.clear();
  while (true) {
    if (!line.empty() && line.front() == '"') {
      const std::size_t end = std::min(line.find('"', 1), line.size());
      fields.push_back(line.substr(1, end - 1));
      line.remove_prefix(std::min(end + 1, line.size()));
      if (line.empty()) return;
      line.remove_prefix(1);
      continue;
    }
    const std::size_t comma = line.find(',');
    fields.push_back(line.substr(0, comma));
    if (comma == std::string_view::npos) return;
    line.remove_prefix(comma + 1);
  }
}

template <class Number>
bool parse(std::string_view text, Number& value) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && rest == text.data() + text.size();
}

// Days since 1970-01-01 of a date of the Gregorian calendar.
std::int64_t days_of(std::int64_t year, std::int64_t month, std::int64_t day) {
  year -= month <= 2;
  const std::int64_t era = (year >= 0 ? year : year - 399) / 400, yoe = year - era * 400;
  const std::int64_t doy = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
  return era * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719468;
}

// Seconds as a number, or a wall clock such as 2023-11-16 18:17:03.9799600 (or with a T).
bool parse_time(std::string_view text, std::int64_t& ns) {
  if (text.size() < 19 || text[4] != '-') {
    double seconds = 0;
    if (!parse(text, seconds) || !(seconds >= 0 && seconds < 9e9)) return false;
    ns = std::llround(seconds * 1e9);
    return true;
  }
  std::int64_t year = 0, month = 0, day = 0, hour = 0, minute = 0;
  double second = 0;
  std::string_view rest = text.substr(17);
  while (!rest.empty() && (rest.back() < '0' || rest.back() > '9')) rest.remove_suffix(1);
  if (const std::size_t zone = rest.find('+'); zone != std::string_view::npos) rest = rest.substr(0, zone);
  if (!parse(text.substr(0, 4), year) || !parse(text.substr(5, 2), month) || !parse(text.substr(8, 2), day) ||
      !parse(text.substr(11, 2), hour) || !parse(text.substr(14, 2), minute) || !parse(rest, second))
    return false;
  if (month < 1 || month > 12 || day < 1 || day > 31 || hour > 23 || minute > 59 || !(second >= 0 && second < 61))
    return false;
  if (year < 1970 || year > 2200) return false;  // what 64 bits of nanoseconds hold, and a clock shows
  ns = ((days_of(year, month, day) * 24 + hour) * 60 + minute) * 60'000'000'000 + std::llround(second * 1e9);
  return true;
}

class CsvReader final : public TraceReader {
 public:
  CsvReader(const std::string& path, const TraceOptions& options, LineSource lines)
      : TraceReader(path, options), lines_(std::move(lines)) {
    block_tokens_ = options.block_tokens != 0 ? options.block_tokens : 16;
    columns_.fill(kNowhere);
  }
  Status read_header() {
    std::string_view line;
    FIRN_ASSIGN(const bool more, lines_.next(line));
    if (!more) return Status(Code::kInvalidArgument, path_ + ": the file is empty");
    if (line.substr(0, 3) == "\xef\xbb\xbf") line.remove_prefix(3);
    split(line, fields_);
    for (std::size_t i = 0; i < fields_.size(); ++i)
      if (const std::size_t column = column_of(lower(fields_[i])); column != kColumns) columns_[column] = i;
    if (columns_[kTime] == kNowhere || columns_[kInput] == kNowhere || columns_[kOutput] == kNowhere)
      return Status(Code::kInvalidArgument,
                    path_ + ":1: the header must name timestamp, input_length and output_length");
    return {};
  }
  TraceFormat format() const override { return options_.format; }
  std::uint64_t packed_read() const override { return lines_.packed_read(); }
  std::uint64_t packed_size() const override { return lines_.source().packed_size(); }

 private:
  static constexpr std::size_t kNowhere = ~std::size_t{0};
  Result<bool> do_next(TraceRequest& request) override {
    std::string_view line;
    while (true) {
      FIRN_ASSIGN(const bool more, lines_.next(line));
      if (!more) return false;
      if (line.empty()) continue;
      split(line, fields_);
      std::string why = lines_.truncated() ? "the line is longer than 64 MiB" : row(request);
      if (why.empty()) return true;
      FIRN_TRY(bad(lines_.line_number(), std::move(why)));
    }
  }
  std::string_view field(Column column) const {
    return columns_[column] < fields_.size() ? fields_[columns_[column]] : std::string_view();
  }
  std::string row(TraceRequest& request) {
    std::int64_t ns = 0;
    double input = 0, output = 0;
    if (!parse_time(field(kTime), ns)) return fmt::format("\"{}\" is no time", field(kTime).substr(0, 40));
    if (!parse(field(kInput), input) || !(input >= 0 && input <= kMaxTokens))
      return fmt::format("\"{}\" is no number of input tokens from 0 to {}", field(kInput).substr(0, 40), kMaxTokens);
    if (!parse(field(kOutput), output) || !(output >= 0 && output <= kMaxTokens))
      return fmt::format("\"{}\" is no number of output tokens from 0 to {}", field(kOutput).substr(0, 40), kMaxTokens);
    request.time_ns = ns;
    request.input_tokens = static_cast<std::uint32_t>(input);
    request.output_tokens = static_cast<std::uint32_t>(output);
    request.session = field(kSession).empty() ? 0 : session_name(hash_text(field(kSession)));
    request.turn = 0;
    if (!field(kTurn).empty() && !parse(field(kTurn), request.turn)) return "the turn is no number";
    return ids(request.blocks) ? "" : "hash_ids are not numbers of 64 bits, or 0x and hex digits, separated by spaces";
  }
  bool ids(std::vector<std::uint64_t>& blocks) const {
    blocks.clear();
    std::string_view text = field(kIds);
    while (true) {
      const std::size_t from = text.find_first_not_of(" ;");
      if (from == std::string_view::npos) return true;
      text.remove_prefix(from);
      const std::size_t length = std::min(text.find_first_of(" ;"), text.size());
      if (!parse_name(text.substr(0, length), blocks.emplace_back())) return false;
      text.remove_prefix(length);
    }
  }

  LineSource lines_;
  std::array<std::size_t, kColumns> columns_{};
  std::vector<std::string_view> fields_;
};

}  // namespace

Result<std::unique_ptr<TraceReader>> open_csv(const std::string& path, const TraceOptions& options, LineSource lines) {
  auto reader = std::make_unique<CsvReader>(path, options, std::move(lines));
  FIRN_TRY(reader->read_header());
  return std::unique_ptr<TraceReader>(std::move(reader));
}

}  // namespace firn::sim
