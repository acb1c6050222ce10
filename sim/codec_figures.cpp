#include "sim/codec_figures.h"

#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "firn/codec.h"

namespace firn::sim {
namespace {

using Json = nlohmann::json;

double number(const Json& row, const char* key) {
  return row.is_object() && row.contains(key) && row[key].is_number() ? row[key].get<double>() : 0;
}
std::string text(const Json& row, const char* key) {
  return row.is_object() && row.contains(key) && row[key].is_string() ? row[key].get<std::string>() : "";
}

struct Row {
  std::string codec;
  CodecFigures figures;
};

// Rows of firn eval: one a codec. With --fast they have no bytes and seconds.
std::vector<Row> rows_of_eval(const Json& json) {
  std::vector<Row> rows;
  for (const Json& row : json) {
    const double raw = number(row, "raw_bytes"), frames = number(row, "frame_bytes"),
                 seconds = number(row, "decode_cpu_s");
    if (raw > 0 && frames > 0 && seconds > 0) rows.push_back({text(row, "codec"), {raw / frames, raw / seconds}});
  }
  return rows;
}

// Rows of the benchmark's decoders on one thread: BM_CodecDecode/codec:1/threads:1/...
std::vector<Row> rows_of_bench(const Json& json) {
  std::vector<Row> rows;
  for (const auto& [codec, id] : {std::pair{"raw", CodecId::kRaw}, {"lossless", CodecId::kLossless}}) {
    const std::string wanted = fmt::format("BM_CodecDecode/codec:{}/threads:1", static_cast<int>(id));
    for (const Json& row : json["benchmarks"]) {
      const std::string name = text(row, "name"), statistic = text(row, "aggregate_name");
      if (name.rfind(wanted, 0) != 0 || (!statistic.empty() && statistic != "median")) continue;
      if (number(row, "ratio") > 0 && number(row, "bytes_per_second") > 0) {
        rows.push_back({codec, {number(row, "ratio"), number(row, "bytes_per_second")}});
        break;
      }
    }
  }
  return rows;
}

}  // namespace

Result<CodecFigures> load_codec_figures(const std::string& file, const std::string& codec) {
  std::ifstream in(file);
  if (!in) return Status(Code::kInvalidArgument, file + ": cannot be read");
  const Json json = Json::parse(in, nullptr, /*allow_exceptions=*/false);
  std::vector<Row> rows;
  if (json.is_array()) {
    rows = rows_of_eval(json);
  } else if (json.is_object() && json.contains("benchmarks") && json["benchmarks"].is_array()) {
    rows = rows_of_bench(json);
  } else {
    return Status(Code::kInvalidArgument, file + ": neither from firn eval --json nor from ./run bench");
  }
  std::string names;
  for (const Row& row : rows) {
    if (row.codec == codec) return row.figures;
    names += (names.empty() ? "" : ", ") + row.codec;
  }
  return Status(Code::kInvalidArgument,
                fmt::format("{}: no bytes and seconds of codec \"{}\"; there are: {} (firn eval: not with --fast, and "
                            "with a context long enough to have cold blocks)",
                            file, codec, names.empty() ? "none" : names));
}

}  // namespace firn::sim
