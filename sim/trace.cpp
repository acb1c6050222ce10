#include "sim/trace.h"

#include <fmt/format.h>

#include <array>

#include "sim/trace_formats.h"
#include "sim/workload.h"

namespace firn::sim {
namespace {

constexpr std::array<std::string_view, 7> kNames = {"auto", "mooncake", "azure", "burstgpt", "qwen", "weka", "csv"};

TraceFormat detect(std::string_view head) {
  const auto has = [head](std::string_view what) { return head.find(what) != std::string_view::npos; };
  if (head.size() > 262 && head.substr(257, 5) == "ustar") return TraceFormat::kWeka;
  if (has("\"hash_id_scope\"") || (has("\"block_size\"") && has("\"requests\""))) return TraceFormat::kWeka;
  if (has("\"chat_id\"")) return TraceFormat::kQwen;
  if (has("\"input_length\"")) return TraceFormat::kMooncake;
  if (has("ContextTokens")) return TraceFormat::kAzure;
  if (has("Request tokens")) return TraceFormat::kBurstGpt;
  if (has("input_length")) return TraceFormat::kCsv;
  return TraceFormat::kAuto;
}

}  // namespace

std::string_view to_string(TraceFormat format) { return kNames[static_cast<std::size_t>(format)]; }

Result<TraceFormat> parse_trace_format(std::string_view name) {
  for (std::size_t i = 0; i < kNames.size(); ++i)
    if (name == kNames[i]) return static_cast<TraceFormat>(i);
  return Status(Code::kInvalidArgument,
                fmt::format("there is no trace format \"{}\"; there are: {}", name, fmt::join(kNames, ", ")));
}

Result<std::unique_ptr<TraceReader>> TraceReader::open(const std::string& path, const TraceOptions& options) {
  if (is_workload(path)) return open_workload(path, options);
  FIRN_ASSIGN(std::unique_ptr<ByteSource> bytes, ByteSource::open(path));
  LineSource lines(std::move(bytes));
  TraceOptions known = options;
  if (known.format == TraceFormat::kAuto) {
    FIRN_ASSIGN(const std::string_view head, lines.peek(4096));
    known.format = detect(head);
    if (known.format == TraceFormat::kAuto)
      return Status(Code::kInvalidArgument,
                    path + ": this looks like no trace format we know; name it with --trace-format");
  }
  switch (known.format) {
    case TraceFormat::kWeka:
      return open_weka(path, known, std::move(lines));
    case TraceFormat::kMooncake:
    case TraceFormat::kQwen:
      return open_json_lines(path, known, std::move(lines));
    default:
      return open_csv(path, known, std::move(lines));
  }
}

Result<bool> TraceReader::next(TraceRequest& request) {
  if (options_.max_requests != 0 && requests_ == options_.max_requests) return false;
  FIRN_ASSIGN(const bool more, do_next(request));
  if (!more && requests_ == 0) return no_request();
  if (!more) return false;
  // A wall clock, seconds since 1970 or since a recorder began: all that counts is what lies between.
  if (requests_ == 0) start_ns_ = request.time_ns;
  request.time_ns -= start_ns_;
  if (request.time_ns < last_time_ns_) {
    ++out_of_order_;
    request.time_ns = last_time_ns_;
  }
  last_time_ns_ = request.time_ns;
  ++requests_;
  return true;
}

Status TraceReader::no_request() const {
  if (bad_line_count_ == 0) return Status(Code::kInvalidArgument, path_ + ": there is no request in it");
  return Status(Code::kInvalidArgument,
                fmt::format("{}: not one of its {} lines is a request; the first: {}:{}: {}", path_, bad_line_count_,
                            path_, bad_lines_.front().line, bad_lines_.front().why));
}

Status TraceReader::bad(std::uint64_t line, std::string why) {
  ++bad_line_count_;
  if (options_.strict) return Status(Code::kInvalidArgument, fmt::format("{}:{}: {}", path_, line, why));
  if (bad_lines_.size() < kKeptBadLines) bad_lines_.push_back({line, std::move(why)});
  return {};
}

}  // namespace firn::sim
