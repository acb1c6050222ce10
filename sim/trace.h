// trace.h: recorded requests, whatever file they were recorded in. docs/simulate.md describes the formats.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "firn/status.h"

namespace firn::sim {

// One request. blocks: the name of each prompt block, first one first. A name stands for the block and everything
// before it; the same name is the same prefix. Empty where a trace knows only lengths.
struct TraceRequest {
  std::int64_t time_ns = 0;  // arrival, from the start of the trace
  std::uint32_t input_tokens = 0, output_tokens = 0;
  std::uint64_t session = 0;  // 0: unknown
  std::uint32_t turn = 0;
  std::vector<std::uint64_t> blocks = {};
};

enum class TraceFormat : std::uint8_t { kAuto, kMooncake, kAzure, kBurstGpt, kQwen, kWeka, kCsv };
std::string_view to_string(TraceFormat format);
Result<TraceFormat> parse_trace_format(std::string_view name);

struct TraceOptions {
  TraceFormat format = TraceFormat::kAuto;
  std::uint32_t block_tokens = 0;     // 0: the format's own; mooncake takes it from the first long line
  bool strict = false;                // the first bad line ends the reading
  std::int64_t start_gap_ms = 60000;  // weka: sessions begin this far apart
  std::int64_t gap_cap_ms = 1800000;  // weka: longer pauses are shortened to this
  std::uint64_t max_requests = 0;     // 0: all
};

struct BadLine {
  std::uint64_t line = 0;
  std::string why;
};

// A trace, front to back. Memory: one request, and for weka the requests of the sessions that overlap.
// Threads: one caller at a time.
class TraceReader {
 public:
  static constexpr std::size_t kKeptBadLines = 20;
  static constexpr std::uint32_t kMaxTokens = 1u << 28;  // of one request; a longer one is a bad line

  virtual ~TraceReader() = default;
  static Result<std::unique_ptr<TraceReader>> open(const std::string& path, const TraceOptions& options);
  // The next request; false: there is none. Bad lines are counted and passed over, unless strict. Times count from the
  // first request, whatever the file's clock. kInvalidArgument: the trace ends without one request.
  Result<bool> next(TraceRequest& request);

  virtual TraceFormat format() const = 0;
  virtual std::uint64_t packed_read()
      const = 0;  // bytes of the file whose requests were given, and in all (0: unknown)
  virtual std::uint64_t packed_size() const = 0;
  std::uint32_t block_tokens() const { return block_tokens_; }
  std::uint64_t requests() const { return requests_; }
  std::uint64_t bad_line_count() const { return bad_line_count_; }
  const std::vector<BadLine>& bad_lines() const { return bad_lines_; }  // the first kKeptBadLines of them
  std::uint64_t out_of_order() const { return out_of_order_; }          // their times were moved up to the one before

 protected:
  TraceReader(std::string path, const TraceOptions& options) : path_(std::move(path)), options_(options) {}
  virtual Result<bool> do_next(TraceRequest& request) = 0;
  Status bad(std::uint64_t line, std::string why);  // counts it; a failure if strict

  std::string path_;
  TraceOptions options_;
  std::uint32_t block_tokens_ = 0;

 private:
  Status no_request() const;
  std::uint64_t requests_ = 0, bad_line_count_ = 0, out_of_order_ = 0;
  std::int64_t start_ns_ = 0, last_time_ns_ = 0;
  std::vector<BadLine> bad_lines_;
};

}  // namespace firn::sim
