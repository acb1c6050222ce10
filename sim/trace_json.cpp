// trace_json.cpp: Mooncake's and Qwen's lines, one JSON object each.
//
// Mooncake: timestamp in ms, 512 tokens a block unless a line says otherwise: with n ids, input_length lies in
// ((n - 1) * block, n * block] (the last, partly filled block has an id) or input_length / block == n (it has none).
// Qwen: timestamp in s, 16 tokens a block, chat_id and parent_chat_id name turns of a session.
#include <fmt/format.h>

#include <array>
#include <cmath>
#include <optional>
#include <unordered_map>

#include "sim/json_scan.h"
#include "sim/trace_formats.h"

namespace firn::sim {
namespace {

struct Line {
  double timestamp = -1;
  std::optional<double> input, output;
  std::optional<std::uint64_t> chat, parent;
};

class JsonLinesReader final : public TraceReader {
 public:
  JsonLinesReader(const std::string& path, const TraceOptions& options, LineSource lines)
      : TraceReader(path, options), lines_(std::move(lines)) {
    block_tokens_ = options.block_tokens;
    if (block_tokens_ == 0 && options.format == TraceFormat::kQwen) block_tokens_ = 16;
  }
  // A run wants the size of blocks with its first request, and a line without ids does not say it: looks ahead, without
  // taking anything.
  Status look_ahead() {
    constexpr std::size_t kFirst = std::size_t{256} << 10, kMost = std::size_t{8} << 20;
    for (std::size_t wanted = kFirst; block_tokens_ == 0 && wanted <= kMost; wanted *= 4) {
      FIRN_ASSIGN(const std::string_view head, lines_.peek(wanted));
      TraceRequest request;
      for (std::size_t at = 0; block_tokens_ == 0 && at < head.size();) {
        const std::size_t end = head.find('\n', at);
        if (end == std::string_view::npos && head.size() >= wanted) break;  // cut off here
        parse(head.substr(at, end - at), request);
        at = end == std::string_view::npos ? head.size() : end + 1;
      }
      if (head.size() < wanted) break;
    }
    sessions_.clear();
    if (block_tokens_ == 0) block_tokens_ = 16;  // no names anywhere near: lengths alone
    return {};
  }
  TraceFormat format() const override { return options_.format; }
  std::uint64_t packed_read() const override { return lines_.packed_read(); }
  std::uint64_t packed_size() const override { return lines_.source().packed_size(); }

 private:
  Result<bool> do_next(TraceRequest& request) override {
    std::string_view text;
    while (true) {
      FIRN_ASSIGN(const bool more, lines_.next(text));
      if (!more) return false;
      if (text.find_first_not_of(" \t") == std::string_view::npos) continue;
      std::string why = lines_.truncated() ? "the line is longer than 64 MiB" : parse(text, request);
      if (why.empty()) return true;
      FIRN_TRY(bad(lines_.line_number(), std::move(why)));
    }
  }

  std::string parse(std::string_view text, TraceRequest& request) {
    Line line;
    request.blocks.clear();
    request.session = 0;
    request.turn = 0;
    JsonScanner scan(text);
    std::string_view key;
    if (!scan.begin_object()) return "not a JSON object";
    while (scan.next_key(key))
      if (!member(scan, key, line, request))
        return fmt::format("\"{}\" is not what it should be, at byte {}", key, scan.offset());
    if (scan.failed() || !scan.at_end()) return fmt::format("not JSON at byte {}", scan.offset());
    return finish(line, request);
  }

  bool member(JsonScanner& scan, std::string_view key, Line& line, TraceRequest& request) {
    const auto count = [&scan](std::optional<double>& value) {
      value = 0;
      return scan.number(*value);
    };
    // Of chats and sessions: numbers, or any text.
    const auto label = [&scan](std::uint64_t& value) {
      std::string_view text;
      if (scan.peek() != '"') return scan.name(value);
      if (!scan.string(text)) return false;
      value = hash_text(text);
      return true;
    };
    if (key == "timestamp") return scan.number(line.timestamp);
    if (key == "input_length") return count(line.input);
    if (key == "output_length") return count(line.output);
    if (key == "hash_ids") return ids(scan, request.blocks);
    if (key == "block_size") {  // firn's own recordings say it
      double tokens = 0;
      if (!scan.number(tokens) || !(tokens >= 1 && tokens <= 1 << 20)) return false;
      if (block_tokens_ == 0) block_tokens_ = static_cast<std::uint32_t>(tokens);
      return true;
    }
    if (key == "chat_id" && scan.peek() != 'n') return label(line.chat.emplace());
    if (key == "parent_chat_id" && scan.peek() == '-') {  // a chat that begins has the parent -1
      std::uint64_t none = 0;
      return scan.name(none);
    }
    if (key == "parent_chat_id" && scan.peek() != 'n') return label(line.parent.emplace());
    if (key == "session_id" && scan.peek() != 'n') {
      std::uint64_t name = 0;
      if (!label(name)) return false;
      request.session = session_name(name);
      return true;
    }
    if (key == "turn" && scan.peek() != 'n') {
      std::uint64_t turn = 0;
      if (!scan.integer(turn) || turn > ~std::uint32_t{0}) return false;
      request.turn = static_cast<std::uint32_t>(turn);
      return true;
    }
    return scan.skip();
  }

  static bool ids(JsonScanner& scan, std::vector<std::uint64_t>& blocks) {
    if (!scan.begin_array()) return false;
    std::uint64_t id = 0;
    while (scan.next_element()) {
      if (!scan.name(id)) return false;
      blocks.push_back(id);
    }
    return !scan.failed();
  }

  std::string finish(const Line& line, TraceRequest& request) {
    const double unit_ns = options_.format == TraceFormat::kQwen ? 1e9 : 1e6;
    if (!(line.timestamp >= 0 && line.timestamp * unit_ns < 9e18))
      return "\"timestamp\" is missing, or no time from 0 on that 64 bits of nanoseconds hold";
    if (!line.input || !(*line.input >= 0 && *line.input <= kMaxTokens))
      return fmt::format("\"input_length\" is missing, or not from 0 to {}", kMaxTokens);
    const double output = line.output.value_or(0);
    if (!(output >= 0 && output <= kMaxTokens)) return fmt::format("\"output_length\" is not from 0 to {}", kMaxTokens);
    request.time_ns = std::llround(line.timestamp * unit_ns);
    request.input_tokens = static_cast<std::uint32_t>(*line.input);
    request.output_tokens = static_cast<std::uint32_t>(output);
    if (line.chat) name_session(line, request);
    if (request.blocks.empty()) return "";
    if (block_tokens_ == 0) block_tokens_ = guess_block_tokens(request);
    const std::uint64_t n = request.blocks.size(), tokens = request.input_tokens;
    if (n > (tokens + block_tokens_ - 1) / block_tokens_ || n < tokens / block_tokens_)
      return fmt::format("{} block ids for {} tokens do not go with {} tokens a block", n, tokens, block_tokens_);
    return "";
  }

  // The power of two that fits: 16 to 4,096.
  static std::uint32_t guess_block_tokens(const TraceRequest& request) {
    const std::uint64_t n = request.blocks.size(), tokens = request.input_tokens;
    for (const std::uint32_t size : {512u, 64u, 16u, 32u, 128u, 256u, 1024u, 2048u, 4096u})
      if (n >= tokens / size && n <= (tokens + size - 1) / size) return size;
    return 512;
  }

  // A turn belongs to its parent's session. Only the last turns are remembered, so that memory stays bounded.
  void name_session(const Line& line, TraceRequest& request) {
    constexpr std::size_t kMost = 1u << 20;
    const auto parent = line.parent ? sessions_.find(*line.parent) : sessions_.end();
    request.session = parent != sessions_.end() ? parent->second : session_name(*line.chat);
    if (sessions_.size() >= kMost) sessions_.clear();
    sessions_[*line.chat] = request.session;
  }

  LineSource lines_;
  std::unordered_map<std::uint64_t, std::uint64_t> sessions_;
};

}  // namespace

Result<std::unique_ptr<TraceReader>> open_json_lines(const std::string& path, const TraceOptions& options,
                                                     LineSource lines) {
  auto reader = std::make_unique<JsonLinesReader>(path, options, std::move(lines));
  FIRN_TRY(reader->look_ahead());
  return std::unique_ptr<TraceReader>(std::move(reader));
}

}  // namespace firn::sim
