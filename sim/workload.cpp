// workload.cpp: four kinds of load.
//
//   chat    sessions begin at random (Poisson); each turn asks with the whole conversation so far, after a pause
//   agents  the same with tens of turns, a long beginning, tool results in place of questions, and shorter pauses
//   rag     single requests: the opening, some documents by popularity (Zipf), a question of its own
//   batch   single requests at once: one of a few templates and a tail of its own
//
// Lengths and pauses are log-normal about their mean with the spread of recorded traces. All randomness is one
// SplitMix64 a session, seeded from the workload's seed and the session's number: the same seed is the same requests,
// whatever was read before, and memory is that of the sessions that overlap.
#include "sim/workload.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <queue>

#include "sim/name_table.h"

namespace firn::sim {
namespace {

constexpr double kSpread = 0.8;  // sigma of the logarithm

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() { return mix_name(state_++); }
  double uniform() { return (static_cast<double>(next() >> 11) + 0.5) * 0x1p-53; }
  double exponential(double mean) { return -mean * std::log(uniform()); }
  // Log-normal with this mean.
  double around(double mean) {
    const double normal = std::sqrt(-2 * std::log(uniform())) * std::cos(2 * 3.14159265358979323846 * uniform());
    return mean * std::exp(kSpread * normal - kSpread * kSpread / 2);
  }
  std::uint32_t tokens(double mean) { return static_cast<std::uint32_t>(std::clamp(around(mean), 1.0, 1e6)); }

 private:
  std::uint64_t state_;
};

const std::vector<WorkloadKind> kKinds = {
    {"chat",
     "conversations of several turns behind a common system prompt",
     {{"sessions", 500, "conversations in all"},
      {"rate", 0.5, "that begin a second"},
      {"turns", 5, "of a conversation, mean"},
      {"system", 800, "tokens of the common opening"},
      {"question", 250, "tokens a turn adds, mean"},
      {"answer", 350, "tokens an answer has, mean"},
      {"pause", 60, "seconds between an answer and the next turn, mean"},
      {"seed", 1, "of everything random"}}},
    {"rag",
     "questions about documents that many ask about",
     {{"requests", 2000, "in all"},
      {"rate", 2, "a second"},
      {"documents", 2000, "there are"},
      {"zipf", 0.9, "how unequal their popularity is"},
      {"each", 3, "documents of a request"},
      {"system", 300, "tokens of the common opening"},
      {"document", 1500, "tokens of a document, mean"},
      {"question", 60, "tokens, mean"},
      {"answer", 250, "tokens, mean"},
      {"seed", 1, "of everything random"}}},
    {"agents",
     "coding agents: tens of turns over a long, growing context, with pauses while tools run",
     {{"sessions", 60, "in all"},
      {"rate", 0.02, "that begin a second"},
      {"turns", 40, "of a session, mean"},
      {"system", 12000, "tokens of the common opening: instructions and tools"},
      {"context", 20000, "tokens a session begins with, mean"},
      {"question", 1200, "tokens a tool's result adds, mean"},
      {"answer", 400, "tokens, mean"},
      {"pause", 12, "seconds a tool takes, mean"},
      {"seed", 1, "of everything random"}}},
    {"batch",
     "independent prompts from a few templates, all there at once",
     {{"requests", 2000, "in all"},
      {"rate", 0, "a second; 0: all at the start"},
      {"templates", 4, "there are"},
      {"template", 1200, "tokens of a template, mean"},
      {"question", 800, "tokens of its own, mean"},
      {"answer", 150, "tokens, mean"},
      {"seed", 1, "of everything random"}}},
};

// What a prompt is made of, front to back: pieces that others may share.
struct Piece {
  std::uint64_t name;
  std::uint32_t tokens;
};

// Names of full blocks: each stands for everything before it. A block that holds several pieces is named after all.
void name_blocks(const std::vector<Piece>& pieces, std::uint32_t block_tokens, TraceRequest& request) {
  std::uint64_t chain = 0x66697264;
  std::uint32_t filled = 0, total = 0;
  request.blocks.clear();
  for (const Piece& piece : pieces) {
    for (std::uint32_t at = 0; at < piece.tokens;) {
      const std::uint32_t take = std::min(piece.tokens - at, block_tokens - filled);
      chain = mix_name(chain ^ mix_name(piece.name ^ mix_name(std::uint64_t{at} << 32 | take)));
      filled += take;
      at += take;
      if (filled < block_tokens) continue;
      request.blocks.push_back(chain >> 2);  // below what others use for names of their own
      filled = 0;
    }
    total += piece.tokens;
  }
  request.input_tokens = std::max(1u, total);
}

class WorkloadReader final : public TraceReader {
 public:
  WorkloadReader(const std::string& path, const TraceOptions& options, const WorkloadKind& kind,
                 std::vector<double> values)
      : TraceReader(path, options), kind_(kind), values_(std::move(values)) {
    block_tokens_ = options.block_tokens != 0 ? options.block_tokens : 16;
    seed_ = mix_name(static_cast<std::uint64_t>(value("seed")));
    arrivals_ = Random(mix_name(seed_ ^ 0xa1));
    sessions_ = kind.name == "chat" || kind.name == "agents";
    count_ = static_cast<std::uint64_t>(value(sessions_ ? "sessions" : "requests"));
    if (kind.name == "rag") make_documents();
  }
  TraceFormat format() const override { return TraceFormat::kAuto; }
  std::uint64_t packed_read() const override { return begun_ - running_.size(); }  // sessions that are over
  std::uint64_t packed_size() const override { return count_; }

 private:
  struct Session {
    Random random{0};
    std::uint64_t number = 0;
    std::uint32_t turn = 0, turns = 1;
    std::vector<Piece> pieces;
    std::int64_t due_ns = 0;
    bool operator<(const Session& other) const {  // the queue gives the earliest first
      return due_ns != other.due_ns ? due_ns > other.due_ns : number > other.number;
    }
  };

  double value(std::string_view name) const {
    for (std::size_t i = 0; i < kind_.parameters.size(); ++i)
      if (kind_.parameters[i].name == name) return values_[i];
    return 0;
  }
  std::int64_t next_arrival() {
    if (value("rate") > 0) clock_s_ += arrivals_.exponential(1 / value("rate"));
    return static_cast<std::int64_t>(clock_s_ * 1e9);
  }
  Result<bool> do_next(TraceRequest& request) override {
    if (!sessions_) return next_single(request);
    // Sessions whose beginning lies before the next turn of those that run are begun first.
    while (begun_ < count_ && (running_.empty() || coming_ns_ < 0 || coming_ns_ <= running_.top().due_ns)) {
      if (coming_ns_ < 0) coming_ns_ = next_arrival();
      if (!running_.empty() && running_.top().due_ns < coming_ns_) break;
      running_.push(begin_session());
      coming_ns_ = -1;
      ++begun_;
    }
    if (running_.empty()) return false;
    Session session = running_.top();
    running_.pop();
    Random& random = session.random;
    session.pieces.push_back(
        {mix_name(seed_ ^ mix_name(session.number * 4096 + session.turn * 2 + 2)), random.tokens(value("question"))});
    const std::uint32_t answer = random.tokens(value("answer"));
    request = {.time_ns = session.due_ns,
               .output_tokens = answer,
               .session = session.number + 1,
               .turn = session.turn,
               .blocks = std::move(request.blocks)};
    name_blocks(session.pieces, block_tokens_, request);
    // The answer is part of what the next turn asks with.
    session.pieces.push_back({mix_name(seed_ ^ mix_name(session.number * 4096 + session.turn * 2 + 3)), answer});
    constexpr double kTokenSeconds = 0.03;  // somebody reads along while it is made
    session.due_ns += static_cast<std::int64_t>((random.around(value("pause")) + kTokenSeconds * answer) * 1e9);
    if (++session.turn < session.turns) running_.push(std::move(session));
    return true;
  }
  Session begin_session() {
    Session session;
    session.number = begun_;
    session.random = Random(mix_name(seed_ ^ mix_name(begun_ + 0x5e55)));
    session.due_ns = coming_ns_;
    // Geometric: whether a conversation goes on does not depend on how long it was.
    session.turns = static_cast<std::uint32_t>(
        std::clamp(1 + session.random.exponential(std::max(0.0, value("turns") - 1)), 1.0, 2000.0));
    session.pieces.push_back({mix_name(seed_ ^ 1), static_cast<std::uint32_t>(value("system"))});
    if (value("context") > 0)
      session.pieces.push_back(
          {mix_name(seed_ ^ mix_name(begun_ * 4096 + 1)), session.random.tokens(value("context"))});
    return session;
  }
  Result<bool> next_single(TraceRequest& request) {
    if (begun_ == count_) return false;
    Random random(mix_name(seed_ ^ mix_name(begun_ + 0x5e55)));
    std::vector<Piece> pieces;
    if (kind_.name == "rag") {
      pieces.push_back({mix_name(seed_ ^ 1), static_cast<std::uint32_t>(value("system"))});
      for (int i = 0; i < static_cast<int>(value("each")); ++i) {
        const double at = random.uniform() * popularity_.back();
        const auto document = static_cast<std::uint64_t>(std::lower_bound(popularity_.begin(), popularity_.end(), at) -
                                                         popularity_.begin());
        pieces.push_back({mix_name(seed_ ^ mix_name(document + 0xd0c0)), document_tokens_[document]});
      }
    } else {
      const auto which = random.next() % std::max<std::uint64_t>(1, static_cast<std::uint64_t>(value("templates")));
      Random own(mix_name(seed_ ^ (which + 0x7e)));
      pieces.push_back({own.next(), own.tokens(value("template"))});
    }
    pieces.push_back({random.next(), random.tokens(value("question"))});
    request = {.time_ns = next_arrival(),
               .output_tokens = random.tokens(value("answer")),
               .blocks = std::move(request.blocks)};
    name_blocks(pieces, block_tokens_, request);
    ++begun_;
    return true;
  }
  void make_documents() {
    const auto count = std::clamp<std::size_t>(static_cast<std::size_t>(value("documents")), 1, 10'000'000);
    Random random(mix_name(seed_ ^ 0xd0));
    double sum = 0;
    for (std::size_t i = 0; i < count; ++i) {
      popularity_.push_back(sum += std::pow(static_cast<double>(i + 1), -value("zipf")));
      document_tokens_.push_back(random.tokens(value("document")));
    }
  }

  const WorkloadKind& kind_;
  std::vector<double> values_;
  std::uint64_t seed_ = 0, count_ = 0, begun_ = 0;
  Random arrivals_{0};
  double clock_s_ = 0;
  bool sessions_ = false;
  std::int64_t coming_ns_ = -1;
  std::priority_queue<Session> running_;
  std::vector<double> popularity_;  // summed
  std::vector<std::uint32_t> document_tokens_;
};

Status set_parameters(const std::string& path, std::string_view text, const WorkloadKind& kind,
                      std::vector<double>& values) {
  while (!text.empty()) {
    const std::string_view item = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), item.size() + 1));
    const std::size_t equals = std::min(item.find('='), item.size());
    const std::string_view name = item.substr(0, equals), number = item.substr(std::min(item.size(), equals + 1));
    std::string names;
    std::size_t at = kind.parameters.size();
    for (std::size_t i = 0; i < kind.parameters.size(); ++i) {
      if (kind.parameters[i].name == name) at = i;
      names += fmt::format("{}{}", i == 0 ? "" : ", ", kind.parameters[i].name);
    }
    if (at == kind.parameters.size())
      return Status(Code::kInvalidArgument,
                    fmt::format("{}: {} has no parameter \"{}\"; there are: {}", path, kind.name, name, names));
    double value = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
    if (error != std::errc() || end != number.data() + number.size() || !(value >= 0 && value <= 1e9))
      return Status(Code::kInvalidArgument,
                    fmt::format("{}: {}={}: a number from 0 to 1e9 is expected", path, name, number));
    values[at] = value;
  }
  return {};
}

}  // namespace

const std::vector<WorkloadKind>& workload_kinds() { return kKinds; }

bool is_workload(std::string_view path) { return path.substr(0, kWorkloadPrefix.size()) == kWorkloadPrefix; }

Result<std::unique_ptr<TraceReader>> open_workload(const std::string& path, const TraceOptions& options) {
  std::string_view text = path;
  if (is_workload(text)) text.remove_prefix(kWorkloadPrefix.size());
  const std::string_view name = text.substr(0, text.find(':'));
  text.remove_prefix(std::min(text.size(), name.size() + 1));
  std::string names;
  for (const WorkloadKind& kind : kKinds) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", kind.name);
    if (kind.name != name) continue;
    std::vector<double> values;
    for (const WorkloadParameter& parameter : kind.parameters) values.push_back(parameter.value);
    FIRN_TRY(set_parameters(path, text, kind, values));
    return std::unique_ptr<TraceReader>(std::make_unique<WorkloadReader>(path, options, kind, std::move(values)));
  }
  return Status(Code::kInvalidArgument, fmt::format("there is no workload \"{}\"; there are: {}", name, names));
}

}  // namespace firn::sim
