// trace_weka.cpp: coding-agent sessions, one JSON document each, alone or in a tar archive.
//
// A session counts its time from its own start and its block ids from 1, so two things are decided here, the same way
// for every run: sessions begin start_gap apart, in the order of the archive; pauses of the main agent
// longer than gap_cap are shortened to that. A sub-agent's requests count from the moment it was spawned. Ids of
// different sessions never meet. Requests come out in order of time; ties in order of session, then of the file.
//
// Sessions are read as late as possible: before the session that begins at time t is opened, everything before t has
// been given out. Memory: the sessions that overlap.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <queue>

#include "sim/json_scan.h"
#include "sim/trace_formats.h"

namespace firn::sim {
namespace {

constexpr std::size_t kMaxSessionBytes = std::size_t{256} << 20;

struct Pending {
  double seconds = 0;  // the order is that of the recorded doubles
  std::uint64_t session = 0, place = 0;
  TraceRequest request;
};
struct Later {
  bool operator()(const Pending& a, const Pending& b) const {
    if (a.seconds != b.seconds) return a.seconds > b.seconds;
    return a.session != b.session ? a.session > b.session : a.place > b.place;
  }
};

class WekaReader final : public TraceReader {
 public:
  WekaReader(const std::string& path, const TraceOptions& options, LineSource lines)
      : TraceReader(path, options), lines_(std::move(lines)) {
    block_tokens_ = options.block_tokens != 0 ? options.block_tokens : 64;
  }
  Status start() {
    FIRN_ASSIGN(const std::string_view head, lines_.peek(512));
    tar_ = head.size() > 262 && head.substr(257, 5) == "ustar";
    return {};
  }
  TraceFormat format() const override { return TraceFormat::kWeka; }
  // Of what was read, the part whose requests were given out: those of sessions that overlap wait here.
  std::uint64_t packed_read() const override {
    return part_of(lines_.packed_read(), TraceReader::requests(), TraceReader::requests() + waiting_.size());
  }
  std::uint64_t packed_size() const override { return lines_.source().packed_size(); }

 private:
  Result<bool> do_next(TraceRequest& request) override {
    while (!at_end_ && (waiting_.empty() || waiting_.top().seconds >= next_start())) FIRN_TRY(read_session());
    if (waiting_.empty()) return false;
    request = std::move(const_cast<Pending&>(waiting_.top()).request);  // popped at once, so its order does not matter
    waiting_.pop();
    request.turn = ++turns_[request.session];
    return true;
  }
  double next_start() const {
    return static_cast<double>(sessions_) * static_cast<double>(options_.start_gap_ms) / 1e3;
  }

  // The next document becomes waiting requests.
  Status read_session() {
    std::string text, name;
    FIRN_ASSIGN(const bool more, tar_ ? next_file(text, name) : whole_file(text));
    if (!more) {
      at_end_ = true;
      return {};
    }
    const std::uint64_t session = sessions_;
    JsonScanner scan(text);
    place_ = 0;
    const std::size_t before = waiting_.size();
    if (!document(scan, session))
      FIRN_TRY(
          bad(documents_, fmt::format("{}: not a session at byte {}", name.empty() ? path_ : name, scan.offset())));
    if (waiting_.size() != before) ++sessions_;
    return {};
  }

  bool document(JsonScanner& scan, std::uint64_t session) {
    std::string_view key;
    if (!scan.begin_object()) return false;
    while (scan.next_key(key)) {
      std::uint64_t size = 0;
      if (key == "block_size") {
        if (!scan.integer(size) || size == 0 || size > kMaxTokens) return false;
        if (options_.block_tokens == 0) block_tokens_ = static_cast<std::uint32_t>(size);
      } else if (key == "requests") {
        if (!requests(scan, session, /*spawned=*/-1)) return false;
      } else if (!scan.skip()) {
        return false;
      }
    }
    return !scan.failed();
  }

  // spawned: seconds of the sub-agent's start, or -1 for the main agent, whose pauses are capped.
  bool requests(JsonScanner& scan, std::uint64_t session, double spawned) {
    if (!scan.begin_array()) return false;
    double shift = 0, previous = 0;
    while (scan.next_element()) {
      Pending pending;
      double t = 0;
      if (!request(scan, session, spawned, shift, previous, t, pending)) return false;
    }
    return !scan.failed();
  }

  bool request(JsonScanner& scan, std::uint64_t session, double spawned, double& shift, double& previous, double& t,
               Pending& pending) {
    std::string_view key;
    bool subagent = false, timed = false;
    double now = 0, input = 0, output = 0;
    if (!scan.begin_object()) return false;
    while (scan.next_key(key)) {
      if (key == "t") {
        if (!scan.number(t) || !(t >= 0 && t < 1e9)) return false;
        now = clock(spawned, t, shift, previous);
        timed = true;
      } else if (key == "in") {
        if (!scan.number(input) || !(input >= 0 && input <= kMaxTokens)) return false;
      } else if (key == "out") {
        if (!scan.number(output) || !(output >= 0 && output <= kMaxTokens)) return false;
      } else if (key == "hash_ids") {
        if (!ids(scan, session, pending.request.blocks)) return false;
      } else if (key == "requests") {
        subagent = true;
        if (!timed || spawned >= 0 || !requests(scan, session, now)) return false;
      } else if (!scan.skip()) {
        return false;
      }
    }
    if (scan.failed() || !timed) return false;
    if (subagent) return true;
    pending.seconds = static_cast<double>(session) * static_cast<double>(options_.start_gap_ms) / 1e3 + now;
    pending.session = session;
    pending.place = place_++;
    pending.request.time_ns = std::llround(pending.seconds * 1e3) * 1'000'000;  // whole milliseconds
    pending.request.input_tokens = static_cast<std::uint32_t>(input);
    pending.request.output_tokens = static_cast<std::uint32_t>(output);
    pending.request.session = session + 1;
    waiting_.push(std::move(pending));
    return true;
  }

  double clock(double spawned, double t, double& shift, double& previous) const {
    if (spawned >= 0) return spawned + t;
    const double cap = static_cast<double>(options_.gap_cap_ms) / 1e3, pause = t - previous;
    if (pause > cap) shift += pause - cap;
    previous = std::max(previous, t);
    return t - shift;
  }

  static bool ids(JsonScanner& scan, std::uint64_t session, std::vector<std::uint64_t>& blocks) {
    if (!scan.begin_array()) return false;
    std::uint64_t id = 0;
    while (scan.next_element()) {
      if (!scan.name(id)) return false;
      const bool small = id < (std::uint64_t{1} << 40) && session + 1 < (std::uint64_t{1} << 24);
      blocks.push_back(small ? (session + 1) << 40 | id : own_name(id, session + 1));
    }
    return !scan.failed();
  }

  Result<bool> whole_file(std::string& text) {
    if (documents_ != 0) return false;
    ++documents_;
    FIRN_ASSIGN(const std::string_view all, lines_.peek(kMaxSessionBytes));
    text.assign(all);
    return true;
  }

  // Files of a tar archive, one after the other (POSIX ustar: 512-byte header with name and octal size, then the
  // bytes).
  Result<bool> next_file(std::string& text, std::string& name) {
    while (true) {
      char header[512];
      FIRN_ASSIGN(const bool more, take(header, sizeof header));
      if (!more || header[0] == '\0') return false;
      std::uint64_t size = 0;
      for (int i = 124; i < 136 && header[i] >= '0' && header[i] <= '7'; ++i)
        size = size * 8 + static_cast<std::uint64_t>(header[i] - '0');
      if (size > kMaxSessionBytes)
        return Status(Code::kInvalidArgument,
                      fmt::format("{}: a session of {} bytes is more than 256 MiB", path_, size));
      ++documents_;
      name.assign(header, strnlen(header, 100));
      text.resize(size);
      if (size > 0) FIRN_TRY(take(text.data(), size).status());
      char padding[512];
      if (size % 512 != 0) FIRN_TRY(take(padding, 512 - size % 512).status());
      const bool file = header[156] == '0' || header[156] == '\0';
      if (file && name.size() > 5 && name.substr(name.size() - 5) == ".json") return true;
    }
  }
  Result<bool> take(char* to, std::size_t bytes) {
    FIRN_ASSIGN(const std::string_view got, lines_.peek(bytes));
    if (got.size() < bytes) {
      if (got.empty()) return false;
      return Status(Code::kCorrupt, path_ + ": the archive ends too early");
    }
    std::memcpy(to, got.data(), bytes);
    lines_.skip(bytes);
    return true;
  }

  LineSource lines_;
  bool tar_ = false, at_end_ = false;
  std::uint64_t sessions_ = 0, documents_ = 0, place_ = 0;
  std::priority_queue<Pending, std::vector<Pending>, Later> waiting_;
  std::map<std::uint64_t, std::uint32_t> turns_;
};

}  // namespace

Result<std::unique_ptr<TraceReader>> open_weka(const std::string& path, const TraceOptions& options, LineSource lines) {
  auto reader = std::make_unique<WekaReader>(path, options, std::move(lines));
  FIRN_TRY(reader->start());
  return std::unique_ptr<TraceReader>(std::move(reader));
}

}  // namespace firn::sim
