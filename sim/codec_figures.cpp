#include "sim/codec_figures.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/config/codec_name.h"
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

// As a run takes them: what is beyond is no measurement.
bool is_plausible(const CodecFigures& f) {
  return f.ratio >= 1e-3 && f.ratio <= 1e4 && f.bytes_per_s >= 1 && f.bytes_per_s <= 1e15;
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
    if (!(raw > 0 && frames > 0 && seconds > 0)) continue;
    rows.push_back({text(row, "codec"), {.ratio = raw / frames, .bytes_per_s = raw / seconds}});
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
        rows.push_back({codec, {.ratio = number(row, "ratio"), .bytes_per_s = number(row, "bytes_per_second")}});
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
    if (row.codec == codec && !is_plausible(row.figures))
      return Status(Code::kInvalidArgument,
                    fmt::format("{}: codec \"{}\" has a ratio of {:g} and {:g} bytes a second: no codec does that",
                                file, codec, row.figures.ratio, row.figures.bytes_per_s));
    if (row.codec == codec) return row.figures;
    names += (names.empty() ? "" : ", ") + row.codec;
  }
  return Status(Code::kInvalidArgument,
                fmt::format("{}: no bytes and seconds of codec \"{}\"; there are: {} (firn eval: not with --fast, and "
                            "with a context long enough to have cold blocks)",
                            file, codec, names.empty() ? "none" : names));
}

namespace {

Status wrong_at(const std::string& source, const YAML::Node& node, const std::string& what) {
  return Status(Code::kInvalidArgument, fmt::format("{}:{}: {}", source, node.Mark().line + 1, what));
}

Status read(const YAML::Node& row, const std::string& source, const char* key, double least, double most,
            std::optional<double>& value) {
  if (!row[key]) return {};
  double number = 0;
  if (!row[key].IsScalar() || !YAML::convert<double>::decode(row[key], number) || !(number >= least && number <= most))
    return wrong_at(source, row, fmt::format("\"{}\" must be a number from {:g} to {:g}", key, least, most));
  value = number;
  return {};
}

Result<CodecFigures> read_row(const YAML::Node& row, const std::string& source) {
  constexpr std::string_view kKeys[] = {"name", "ratio", "encode", "decode", "kld", "kld_p99", "top1", "text"};
  if (!row.IsMap()) return wrong_at(source, row, "a codec is a map: {name: q8, ratio: 1.9, decode: 1e9}");
  for (const auto& pair : row) {
    const std::string key = pair.first.IsScalar() ? pair.first.Scalar() : "?";
    if (std::find(std::begin(kKeys), std::end(kKeys), key) == std::end(kKeys))
      return wrong_at(source, row, fmt::format("there is no key \"{}\"; there are: {}", key, fmt::join(kKeys, ", ")));
  }
  if (!row["name"] || !row["name"].IsScalar() || row["name"].Scalar().empty())
    return wrong_at(source, row, "a codec has no name");
  CodecFigures figures;
  figures.name = row["name"].Scalar();
  if (Config::Host host; !set_codec(figures.name, host).ok() || codec_name(host) != figures.name)
    return wrong_at(source, row, fmt::format("\"{}\" is no codec's name", figures.name.substr(0, 40)));
  if (row["text"] && row["text"].IsScalar()) figures.text = row["text"].Scalar();
  std::optional<double> ratio, encode, decode;
  FIRN_TRY(read(row, source, "ratio", 1e-3, 1e4, ratio));
  FIRN_TRY(read(row, source, "encode", 1, 1e15, encode));
  FIRN_TRY(read(row, source, "decode", 1, 1e15, decode));
  FIRN_TRY(read(row, source, "kld", 0, 1e6, figures.kld));
  FIRN_TRY(read(row, source, "kld_p99", 0, 1e6, figures.kld_p99));
  FIRN_TRY(read(row, source, "top1", 0, 1, figures.top1));
  if (!ratio || !decode)
    return wrong_at(source, row, fmt::format("{}: \"ratio\" and \"decode\" are needed", figures.name));
  figures.ratio = *ratio, figures.bytes_per_s = *decode, figures.encode_bytes_per_s = encode.value_or(0);
  return figures;
}

}  // namespace

Result<CodecTable> parse_codec_table(const std::string& text, const std::string& source) {
  YAML::Node node;
  try {
    node = YAML::Load(text);
  } catch (const YAML::Exception& error) {  // yaml-cpp speaks in exceptions; they end here
    return Status(Code::kInvalidArgument, fmt::format("{}: {}", source, error.what()));
  }
  if (!node.IsMap())
    return Status(Code::kInvalidArgument, source + ": no table of codecs: keys and values are expected");
  CodecTable table;
  table.source = source;
  for (const auto& pair : node) {
    const std::string key = pair.first.IsScalar() ? pair.first.Scalar() : "?";
    std::string* word = key == "model"    ? &table.model
                        : key == "text"   ? &table.text
                        : key == "commit" ? &table.commit
                                          : nullptr;
    if (word != nullptr && pair.second.IsScalar()) {
      *word = pair.second.Scalar();
    } else if (key == "codecs" && pair.second.IsSequence()) {
      for (const YAML::Node& row : pair.second) {
        FIRN_ASSIGN(CodecFigures figures, read_row(row, source));
        for (const CodecFigures& other : table.codecs)
          if (other.name == figures.name) return wrong_at(source, row, fmt::format("{} is there twice", figures.name));
        table.codecs.push_back(std::move(figures));
      }
    } else {
      return wrong_at(source, pair.first,
                      fmt::format("\"{}\": model, text, commit and a list codecs are expected", key));
    }
  }
  if (table.codecs.empty()) return Status(Code::kInvalidArgument, source + ": has no codecs");
  if (table.model.empty())
    return Status(Code::kInvalidArgument, source + ": does not say of which model its figures are");
  return table;
}

Result<CodecFigures> CodecTable::find(const std::string& codec) const {
  std::string names;
  for (const CodecFigures& row : codecs) {
    if (row.name == codec) return row;
    names += (names.empty() ? "" : ", ") + row.name;
  }
  if (const std::size_t dash = codec.rfind('-'); dash != std::string::npos && dash != 0) {
    FIRN_ASSIGN(CodecFigures same, find(codec.substr(0, dash)));
    same.name = codec;
    same.kld = same.kld_p99 = same.top1 = std::nullopt;
    return same;
  }
  if (const std::size_t slash = codec.find('/');
      slash != std::string::npos && codec.find('/', slash + 1) == std::string::npos) {
    FIRN_ASSIGN(const CodecFigures keys, find(codec.substr(0, slash)));
    FIRN_ASSIGN(const CodecFigures values, find(codec.substr(slash + 1)));
    CodecFigures both;  // half of the bytes each
    both.name = codec;
    both.ratio = 2 / (1 / keys.ratio + 1 / values.ratio);
    both.bytes_per_s = 2 / (1 / keys.bytes_per_s + 1 / values.bytes_per_s);
    return both;
  }
  return Status(
      Code::kInvalidArgument,
      fmt::format(
          "{}: no figures of codec \"{}\"; there are: {}. Measure it (firn eval --json, then --codec-figures), or "
          "give --codec-ratio and --codec-speed",
          source, codec, names));
}

std::string CodecTable::origin() const {
  return fmt::format("measured on {}{} ({})", model, commit.empty() ? "" : " at commit " + commit, source);
}

}  // namespace firn::sim
