#include "cli/demo.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/embedded.h"
#include "cli/steps.h"
#include "cli/text.h"

namespace firn::cli {
namespace {

constexpr const char* kQuestion = "What does the text say that the angle of reflexion is equal to?";
constexpr std::size_t kAnswerTokens = 48;
constexpr std::uint32_t kShortTokens = kMaxExtentBlocks * kBlockTokens;
constexpr std::uint8_t kPoison = 0xff;  // as f16: NaN, so that a single wrong read spoils every answer after it

// Whole paragraphs of text from its beginning, until they are `tokens` tokens.
Result<std::string> first_paragraphs(const llama::Tokenizer& tokenizer, std::string_view text, std::size_t tokens) {
  for (std::size_t at = 0;;) {
    const std::size_t end = std::min(text.find("\n\n", at), text.size());
    const std::string_view part = text.substr(0, end);
    FIRN_ASSIGN(const std::vector<TokenId> encoded, tokenizer.encode(part));
    if (encoded.size() >= tokens || end == text.size()) return std::string(part);
    at = end + 2;
  }
}

// The same document without the question, and the text behind it.
Status add_lossy_rows(const LoadedModel& model, const DemoOptions& options, Steps& steps, DemoReport& report) {
  constexpr std::size_t kScored = 512;
  FIRN_ASSIGN(const std::string document, first_paragraphs(model.tokenizer, kOpticks, options.document_tokens));
  FIRN_ASSIGN(const std::vector<TokenId> all, model.tokenizer.encode(kOpticks));
  FIRN_ASSIGN(const std::vector<TokenId> first, model.tokenizer.encode(document));
  const std::size_t behind = std::min(kScored + 1, all.size() - std::min(all.size(), first.size()));
  if (behind < 2) return {};  // the document is the whole text
  const std::span<const TokenId> tokens(all);
  return measure_lossy(model, options.config, tokens.first(first.size()), tokens.subspan(first.size(), behind), steps,
                       options.on_signal, report.lossy);
}

class Demo {
 public:
  using OnPart = std::function<void(DemoPart)>;
  Demo(const DemoOptions& options, const LoadedModel& model, const OnPart& on_part, Steps& steps, DemoReport& report)
      : options_(options), model_(model), on_part_(on_part), steps_(steps), report_(report) {}

  // In the order of kSteps.
  Status run() {
    FIRN_TRY(prepare());
    steps_.next();
    FIRN_TRY(ask_first());
    steps_.next();
    FIRN_TRY(push_out());
    on_part_(DemoPart::kFit);
    steps_.next();
    FIRN_TRY(ask_again());
    FIRN_TRY(ask_without_firn());
    report_.answers_equal = first_.tokens == restored_.tokens && first_.tokens == recomputed_.tokens;
    on_part_(DemoPart::kStory);
    steps_.next();
    FIRN_TRY(measure());
    on_part_(DemoPart::kTimes);
    return {};
  }

 private:
  Status prepare() {
    FIRN_ASSIGN(session_, Session::open(model_, options_.config));
    Config plain = options_.config;  // the same engine and pool, and nothing below it
    plain.host.budget_bytes = 0;
    FIRN_ASSIGN(plain_, Session::open(model_, plain));
    FIRN_ASSIGN(const std::string document, first_paragraphs(model_.tokenizer, kOpticks, options_.document_tokens));
    const std::string text = document + "\n\n" + kQuestion;
    const llama::ChatMessage messages[] = {{"user", text}};
    FIRN_ASSIGN(prompt_, llama::encode_chat(model_.tokenizer, messages));
    const Config& config = session_.manager->config();
    const Stats stats = session_.manager->stats();
    report_.model_name = model_.model.spec().name;
    report_.threads = config.threads;
    report_.device = session_.manager->device().memory().info().name;
    report_.token_bytes = stats.token_bytes;
    report_.pool_bytes = config.pool.budget_bytes;
    report_.host_bytes = config.host.budget_bytes;
    report_.pool_tokens = stats.slots_total * kBlockTokens;
    report_.prompt_tokens = static_cast<std::uint32_t>(prompt_.size());
    report_.question = kQuestion;
    if (report_.pool_tokens < prompt_.size() + kAnswerTokens)
      return Status(Code::kInvalidArgument,
                    fmt::format("the demo restores {} tokens into a pool of {}; raise pool.budget", prompt_.size(),
                                report_.pool_tokens));
    return {};
  }

  // Reads the prompt and answers it. time, if given, becomes that of reading.
  Result<Generated> ask(Session& session, llama::Sequence& sequence, std::string what, Clock* time,
                        double* ms_per_token) {
    FIRN_ASSIGN(llama::Sampler sampler, llama::Sampler::create({}));
    const Clock start = Clock::now();
    {
      Progress progress(std::move(what), sequence.pending());
      FIRN_TRY(prefill(session, sequence, [&](std::size_t tokens) { progress.add(tokens); }));
    }
    const Clock read = Clock::now();
    if (time != nullptr) *time = read.since(start);
    // One sentence: what a small model says after it is rarely worth reading.
    const auto goes_on = [&](TokenId token) { return !model_.tokenizer.piece(token).ends_with('.'); };
    Generated generated =
        generate(session, model_, sequence, sampler,
                 {.max_tokens = kAnswerTokens, .stop_at_end = true, .on_step = {}, .on_token = goes_on});
    FIRN_TRY(generated.status);
    if (ms_per_token != nullptr && !generated.tokens.empty())
      *ms_per_token = 1e3 * Clock::now().since(read).wall_s / static_cast<double>(generated.tokens.size());
    return generated;
  }

  Status ask_first() {
    FIRN_ASSIGN(llama::Sequence sequence, session_.engine->begin(prompt_));
    FIRN_ASSIGN(first_, ask(session_, sequence, "for the first time", &report_.first_read, &report_.decode_first_ms));
    report_.answer = model_.tokenizer.decode(first_.tokens) + (first_.finish == Finish::kLength ? " ..." : "");
    report_.answer_tokens = static_cast<std::uint32_t>(first_.tokens.size());
    FIRN_ASSIGN(hashes_, hashes(sequence));
    return {};
  }

  // Of the blocks that are resident, by place in the sequence; nothing for the others.
  Result<std::vector<std::optional<std::uint64_t>>> hashes(const llama::Sequence& sequence) {
    std::vector<std::optional<std::uint64_t>> found;
    for (const SlotId slot : session_.manager->block_table(sequence.id())) {
      found.emplace_back();
      if (slot == SlotId::kNone) continue;
      FIRN_ASSIGN(found.back(), session_.manager->hash_slot(slot));
    }
    return found;
  }

  Status settle() {
    if (!session_.manager->config().mover.worker) session_.manager->pump();
    return session_.manager->wait_idle();
  }

  // Other documents take the pool; what is left in it of ours is thrown away, and every free slot overwritten.
  Status push_out() {
    const std::uint64_t evictions = session_.manager->stats().evictions;
    const std::pair<const char*, const char*> others[] = {{"Moby Dick", kMoby}, {"Persuasion", kPersuasion}};
    for (const auto& [name, text] : others) {
      FIRN_ASSIGN(std::vector<TokenId> tokens, model_.tokenizer.encode(text));
      tokens.resize(std::min<std::size_t>(tokens.size(), (report_.pool_tokens / 2 + kBlockTokens)));
      report_.other_tokens += static_cast<std::uint32_t>(tokens.size());
      FIRN_ASSIGN(llama::Sequence sequence, session_.engine->begin(tokens));
      Progress progress(name, sequence.pending());
      FIRN_TRY(prefill(session_, sequence, [&](std::size_t n) { progress.add(n); }));
    }
    FIRN_TRY(empty_pool());
    const Stats stats = session_.manager->stats();
    report_.slots_evicted = stats.evictions - evictions;
    report_.slots_poisoned = stats.slots_free;
    report_.frame_bytes = stats.host_frame_bytes;
    report_.raw_bytes = stats.host_raw_bytes;
    return {};
  }

  Status empty_pool() {
    FIRN_TRY(settle());
    const Result<std::uint32_t> emptied = session_.manager->empty_pool(kPoison);
    return emptied.ok() ? Status() : emptied.status();
  }

  Status restore(const llama::Sequence& sequence) {
    FIRN_ASSIGN(const Ticket ticket, session_.manager->prefetch(sequence.id()));
    if (ticket == Ticket::kNone) return {};
    if (!session_.manager->config().mover.worker) session_.manager->pump();
    return session_.manager->wait(ticket);
  }

  Status ask_again() {
    FIRN_ASSIGN(llama::Sequence sequence, session_.engine->begin(prompt_));
    report_.prefix_tokens = sequence.match().tokens;
    if (sequence.match().tokens_on_device != 0 || sequence.match().tokens == 0) {
      const Stats stats = session_.manager->stats();
      return Status(
          Code::kCorrupt,
          fmt::format("after the pool was emptied {} tokens were found in it and {} below ({}); {} frames there, "
                      "{} failed, {} evicted, {} blocks not stored because the queue was full; this is a bug in "
                      "firn",
                      sequence.match().tokens_on_device, sequence.match().tokens_on_host,
                      to_string(sequence.match().first_miss), stats.frames, stats.frames_failed, stats.host_evictions,
                      stats.ending_dropped));
    }
    FIRN_TRY(restore(sequence));
    FIRN_ASSIGN(const auto now, hashes(sequence));
    for (std::size_t i = 0; i < std::min(hashes_.size(), now.size()); ++i) {
      if (!hashes_[i] || !now[i] || (i + 1) * kBlockTokens > report_.prefix_tokens) continue;
      ++report_.blocks_compared;
      report_.blocks_equal += *hashes_[i] == *now[i] ? 1 : 0;
    }
    FIRN_ASSIGN(restored_, ask(session_, sequence, "from the host tier", nullptr, &report_.decode_restored_ms));
    return {};
  }

  Status ask_without_firn() {
    FIRN_ASSIGN(llama::Sequence sequence, plain_.engine->begin(prompt_, {.name_space = {}, .read_cache = false}));
    FIRN_ASSIGN(recomputed_, ask(plain_, sequence, "without it", nullptr, nullptr));
    return {};
  }

  Status time_recompute(std::span<const TokenId> tokens, const std::string& what, Way& way) {
    FIRN_TRY(plain_.manager->reset());
    const Clock start = Clock::now();
    FIRN_ASSIGN(llama::Sequence sequence, plain_.engine->begin(tokens, {.name_space = {}, .read_cache = false}));
    {
      Progress progress(what, tokens.size());
      FIRN_TRY(prefill(plain_, sequence, [&](std::size_t n) { progress.add(n); }));
    }
    way.add(Clock::now().since(start));
    return {};
  }

  // tokens: the prefix and one more, which is never reused.
  Status time_restore(std::span<const TokenId> tokens, Way& way) {
    FIRN_TRY(empty_pool());
    const Stats before = session_.manager->stats();
    const Clock start = Clock::now();
    FIRN_ASSIGN(const llama::Sequence sequence, session_.engine->begin(tokens));
    FIRN_TRY(restore(sequence));
    way.add(Clock::now().since(start));
    return count(sequence, before, way);
  }

  Status time_pool(std::span<const TokenId> tokens, Way& way) {
    const Stats before = session_.manager->stats();
    const Clock start = Clock::now();
    FIRN_ASSIGN(const llama::Sequence sequence, session_.engine->begin(tokens));
    way.add(Clock::now().since(start));
    return count(sequence, before, way);
  }

  Status count(const llama::Sequence& sequence, const Stats& before, Way& way) {
    const Stats after = session_.manager->stats();
    way.tokens_reused = sequence.match().tokens;
    way.pool_hits = after.hits_device - before.hits_device;
    way.frames_read = after.frames_read - before.frames_read;
    return {};
  }

  // In pairs whose order alternates, so that a machine that warms up or tires favours neither.
  Status measure() {
    const std::span<const TokenId> prefix = std::span(prompt_).first(report_.prefix_tokens);
    const std::span<const TokenId> longer = std::span(prompt_).first(report_.prefix_tokens + 1);
    report_.short_tokens = std::min(kShortTokens, report_.prefix_tokens / 2 / kBlockTokens * kBlockTokens);
    for (int i = 0; i < options_.repeats; ++i) {
      const std::string what = fmt::format("{} of {}", i + 1, options_.repeats);
      if (i % 2 == 0) FIRN_TRY(time_recompute(prefix, what, report_.recompute));
      FIRN_TRY(time_restore(longer, report_.restore));
      FIRN_TRY(time_pool(longer, report_.pool));
      if (i % 2 == 1) FIRN_TRY(time_recompute(prefix, what, report_.recompute));
      FIRN_TRY(time_recompute(prefix.first(report_.short_tokens), what, report_.short_recompute));
      FIRN_TRY(time_restore(longer.first(report_.short_tokens + 1), report_.short_restore));
    }
    return {};
  }

  const DemoOptions& options_;
  const LoadedModel& model_;
  const OnPart& on_part_;
  Steps& steps_;
  DemoReport& report_;
  Session session_, plain_;
  std::vector<TokenId> prompt_;
  std::vector<std::optional<std::uint64_t>> hashes_;
  Generated first_, restored_, recomputed_;
};

}  // namespace

void Way::add(const Clock& time) {
  wall_s.push_back(time.wall_s);
  cpu_s.push_back(time.cpu_s);
}

double DemoReport::ratio() const {
  return frame_bytes == 0 ? 1.0 : static_cast<double>(raw_bytes) / static_cast<double>(frame_bytes);
}

std::uint64_t DemoReport::host_tokens() const {
  return static_cast<std::uint64_t>(static_cast<double>(host_bytes) * ratio() / static_cast<double>(token_bytes));
}

BreakEven DemoReport::break_even() const {
  return cli::break_even({short_tokens, median(short_restore.wall_s), median(short_recompute.wall_s)},
                         {prefix_tokens, median(restore.wall_s), median(recompute.wall_s)});
}

Status run_demo(const DemoOptions& options, const std::function<void(DemoPart)>& on_part, DemoReport& report) {
  FIRN_ASSIGN(const std::unique_ptr<LoadedModel> model, LoadedModel::load(options.model));
  // Weights are in readings of the document.
  std::vector<Steps::Step> plan = {{"reading a document", 1.2},
                                   {"other documents take the pool", 1.1},
                                   {"asking again", 1.3},
                                   {"measuring", 1.2 * options.repeats},
                                   {"a short question on two devices", 0.3}};
  if (options.lossy)
    for (Steps::Step& step : lossy_steps()) plan.push_back(std::move(step));
  Steps steps(std::move(plan));
  constexpr std::size_t kCalibration = 8;
  if (options.lossy && is_calibrated(*model)) steps.reweigh(kCalibration, 0.1);
  FIRN_TRY(Demo(options, *model, on_part, steps, report).run());
  steps.next();
  FIRN_ASSIGN(report.second_device, ask_second_device(*model, options.config, options.second_device));
  on_part(DemoPart::kSecondDevice);
  if (options.lossy) FIRN_TRY(add_lossy_rows(*model, options, steps, report));
  on_part(DemoPart::kLossy);
  report.complete = true;
  return {};
}

}  // namespace firn::cli
