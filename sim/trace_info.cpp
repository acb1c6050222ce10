#include "sim/trace_info.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <set>

#include "core/base/file_out.h"
#include "sim/apart.h"
#include "sim/name_table.h"

namespace firn::sim {
namespace {

struct Seen {
  std::uint32_t uses = 0;
  std::int64_t last_ms = 0;
};

// Every kEvery-th reuse, so that a long trace needs no more memory than a short one.
class ReuseTimes {
 public:
  void add(std::int64_t ms) {
    if (count_++ % every_ != 0) return;
    seconds_.push_back(static_cast<std::uint32_t>(std::clamp<std::int64_t>(ms / 1000, 0, ~0u)));
    if (seconds_.size() < kMost) return;
    for (std::size_t i = 0; i < seconds_.size() / 2; ++i) seconds_[i] = seconds_[2 * i];
    seconds_.resize(seconds_.size() / 2);
    every_ *= 2;
  }
  Spread spread() { return spread_of(std::move(seconds_)); }

 private:
  static constexpr std::size_t kMost = 1u << 20;
  std::vector<std::uint32_t> seconds_;
  std::uint64_t count_ = 0, every_ = 1;
};

}  // namespace

Spread spread_of(std::vector<std::uint32_t> values) {
  Spread spread;
  if (values.empty()) return spread;
  std::sort(values.begin(), values.end());
  const auto rank = [&values](double share) {
    const auto at = static_cast<std::size_t>(share * static_cast<double>(values.size()));
    return values[std::min(at, values.size() - 1)];
  };
  double sum = 0;
  for (const std::uint32_t value : values) sum += value;
  spread = {rank(0.1), rank(0.5), rank(0.9), rank(0.99), values.back(), sum / static_cast<double>(values.size())};
  return spread;
}

Result<TraceInfo> inspect_trace(const std::string& path, const TraceOptions& options) {
  FIRN_ASSIGN(const std::unique_ptr<TraceReader> reader, TraceReader::open(path, options));
  TraceInfo info;
  NameTable ids;
  std::vector<Seen> seen;
  std::vector<std::uint32_t> input, output;
  std::set<std::uint64_t> sessions;
  ReuseTimes reuse;
  TraceRequest request;
  std::int64_t first_ns = 0, last_ns = 0;
  while (true) {
    FIRN_ASSIGN(const bool more, reader->next(request));
    if (!more) break;
    if (info.requests++ == 0) first_ns = request.time_ns;
    last_ns = request.time_ns;
    input.push_back(request.input_tokens);
    output.push_back(request.output_tokens);
    info.input_tokens_sum += request.input_tokens;
    info.output_tokens_sum += request.output_tokens;
    if (request.session != 0) sessions.insert(request.session);
    std::uint64_t run = 0;
    const std::int64_t now_ms = request.time_ns / 1'000'000;
    for (std::size_t i = 0; i < request.blocks.size(); ++i) {
      std::uint32_t id = ids.find(request.blocks[i]);
      if (id == NameTable::kEmpty) {
        ids.insert(request.blocks[i], id = static_cast<std::uint32_t>(seen.size()));
        seen.emplace_back();
      } else {
        if (run == i) ++run;
        reuse.add(now_ms - seen[id].last_ms);
      }
      ++seen[id].uses;
      seen[id].last_ms = now_ms;
    }
    info.blocks += request.blocks.size();
    info.prefix_hits += run;
    info.hit_tokens += std::min<std::uint64_t>(run * reader->block_tokens(), request.input_tokens);
  }
  info.format = reader->format();
  info.block_tokens = reader->block_tokens();
  info.sessions = sessions.size();
  info.seconds = static_cast<double>(last_ns - first_ns) / 1e9;
  info.input_tokens = spread_of(std::move(input));
  info.output_tokens = spread_of(std::move(output));
  info.distinct_blocks = seen.size();
  for (const Seen& block : seen) info.blocks_once += block.uses == 1;
  info.reuse_seconds = reuse.spread();
  info.bad_line_count = reader->bad_line_count();
  info.out_of_order = reader->out_of_order();
  info.bad_lines = reader->bad_lines();
  return info;
}

Result<std::uint64_t> convert_trace(const std::string& path, const TraceOptions& options, const std::string& out) {
  FIRN_TRY(check_apart({path}, {out}));
  FIRN_ASSIGN(const std::unique_ptr<TraceReader> reader, TraceReader::open(path, options));
  std::optional<FileOut> file;  // none: stdout
  if (out != "-") {
    FIRN_ASSIGN(file, FileOut::create(out, Readers::kAnyone));
  }
  NameTable ids;  // numbers by first use, as Mooncake's files have them
  TraceRequest request;
  fmt::memory_buffer line;
  while (true) {
    FIRN_ASSIGN(const bool more, reader->next(request));
    if (!more) break;
    line.clear();
    fmt::format_to(
        fmt::appender(line),
        "{{\"timestamp\": {}, \"input_length\": {}, \"output_length\": {}, \"block_size\": {}, \"hash_ids\": [",
        (request.time_ns + 500'000) / 1'000'000, request.input_tokens, request.output_tokens, reader->block_tokens());
    const char* comma = "";
    for (const std::uint64_t name : request.blocks) {
      std::uint32_t id = ids.find(name);
      if (id == NameTable::kEmpty) ids.insert(name, id = static_cast<std::uint32_t>(ids.size()));
      fmt::format_to(fmt::appender(line), "{}{}", comma, id);
      comma = ", ";
    }
    fmt::format_to(fmt::appender(line), "]");
    if (request.session != 0)
      fmt::format_to(fmt::appender(line), ", \"session_id\": \"{:x}\", \"turn\": {}", request.session, request.turn);
    fmt::format_to(fmt::appender(line), "}}\n");
    if (file)
      FIRN_TRY(file->write(std::string_view(line.data(), line.size())));
    else if (std::fwrite(line.data(), 1, line.size(), stdout) != line.size())
      return Status(Code::kIo, fmt::format("stdout: {}", std::strerror(errno)));
  }
  if (file)
    FIRN_TRY(file->finish());
  else if (std::fflush(stdout) != 0)
    return Status(Code::kIo, fmt::format("stdout: {}", std::strerror(errno)));
  return reader->requests();
}

}  // namespace firn::sim
