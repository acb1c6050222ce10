#include "cli/demo_lossy.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "cli/calibration.h"
#include "cli/embedded.h"
#include "cli/process.h"
#include "cli/text.h"
#include "core/base/file_out.h"
#include "storage/calibration/calibrator.h"

namespace firn::cli {
namespace {

constexpr std::uint32_t kStackLayers = 15;  // docs/codecs.md, section 6, says why
constexpr std::uint32_t kWindow = 512;      // short, so that there are several to hold out
constexpr std::size_t kWindowsOfEach = 5;
constexpr int kRestores = 3;
std::array<std::string_view, 6> texts() { return {kMoby, kPersuasion, kLicence, kKeysPage, kDesignPage, kSource}; }

// On the demo's other books, and on law, pages and code: the document is new to the codec, and not unlike everything.
Result<Artefact> calibrate(const LoadedModel& model, std::uint32_t thread_count) {
  std::vector<std::vector<TokenId>> windows;
  for (const std::string_view text : texts()) {
    FIRN_ASSIGN(const std::vector<TokenId> tokens, model.tokenizer.encode(text));
    const std::size_t end = std::min<std::size_t>(tokens.size(), kWindowsOfEach * kWindow);
    for (std::size_t at = 0; at + kWindow <= end; at += kWindow)
      windows.emplace_back(tokens.begin() + static_cast<std::ptrdiff_t>(at),
                           tokens.begin() + static_cast<std::ptrdiff_t>(at + kWindow));
  }
  shuffle_windows(windows);
  const ModelSpec spec = model.model.spec();
  CalibrationOptions options;
  const std::uint32_t layers = spec.groups[0].layer_count;
  options.stack_layers = layers > kStackLayers ? kStackLayers : 0;
  options.ratios = {8, 16};
  options.calibrated_on = "the demo's Moby Dick and Persuasion, and firn's licence, pages and code";
  ThreadPool threads(thread_count);
  FIRN_ASSIGN(const std::unique_ptr<Calibrator> calibrator, Calibrator::make(spec, options, threads));
  std::size_t number = 0;
  FIRN_TRY(capture(model, windows, kWindow, thread_count,
                   [&](const KvWindow& window, const std::vector<float>& keys, const std::vector<float>& values) {
                     return calibrator->add_window(window.first_position, window.tokens, keys, values,
                                                   is_held_out(number++));
                   }));
  return calibrator->finish([](std::string_view what, double share) {
    if (Steps* const steps = Steps::current()) steps->note(fmt::format("{:.0f} %, {}", 100 * share, what));
  });
}

// By the model and by everything that calibrate() makes it of.
std::string artefact_path(const LoadedModel& model) {
  std::uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const std::string_view text : texts())
    for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return fmt::format("{}/demo-kvtc-{}-{}-{}-{:016x}.safetensors", cache_folder(),
                     to_hex(model.model.spec().weights).substr(0, 16), kStackLayers, kWindow * kWindowsOfEach, hash);
}

// The artefact in the cache folder; calibrated now where there is none that fits.
Status find_artefact(const LoadedModel& model, std::uint32_t threads, LossyReport& report) {
  report.artefact = artefact_path(model);
  const Result<std::shared_ptr<const Artefact>> found = load_artefact(report.artefact);
  if (found.ok() && make_codec(CodecId::kKvtc, *found, 16, model.model.spec()).ok()) {
    report.calibration_tokens = describe(**found).tokens;
    return {};
  }
  const Clock start = Clock::now();
  FIRN_ASSIGN(Artefact artefact, calibrate(model, threads));
  std::error_code ignored;
  std::filesystem::create_directories(cache_folder(), ignored);
  FIRN_TRY(write_file(report.artefact, write_artefact(artefact), Readers::kAnyone));
  report.calibration_tokens = artefact.tokens;
  report.calibration_s = Clock::now().since(start).wall_s;
  return {};
}

class LossyDemo {
 public:
  LossyDemo(const LoadedModel& model, const Config& config, std::span<const TokenId> document,
            std::span<const TokenId> following, LossyReport& report)
      : model_(model), document_(document), following_(following), report_(report) {
    // Whatever the demo's pool is: what is measured here is the codec.
    const std::uint64_t bytes = (document.size() + following.size() + 512) * model.model.spec().token_bytes();
    config_ = config;
    config_.device = "cpu";
    config_.pool.budget_bytes = bytes + bytes / 4 + (64u << 20);
    config_.host.budget_bytes = 2 * bytes + (384u << 20);
    config_.host.value_codec = "same";
    config_.host.hadamard = "both";
    config_.mover.worker = true;
    config_.host.allow_unmeasured = true;  // it is measured now
  }

  Status run(const std::string& codec) {
    const bool exact = codec == "exact";
    Config config = config_;
    const std::size_t at = codec.find('@');
    config.host.codec = exact ? "lossless" : codec.substr(0, at);
    config.host.artefact = at == std::string::npos ? "" : report_.artefact;
    if (at != std::string::npos) config.host.ratio = static_cast<std::uint32_t>(std::stoul(codec.substr(at + 1)));
    FIRN_ASSIGN(Session session, Session::open(model_, config));
    Progress progress(codec, document_.size() + following_.size());
    LossyRow row;
    row.codec = codec;
    {
      FIRN_ASSIGN(llama::Sequence sequence, session.engine->begin(document_, {.name_space = {}, .read_cache = false}));
      FIRN_TRY(prefill(session, sequence, [&](std::size_t tokens) { progress.add(tokens); }));
    }
    for (int i = 0; i < kRestores; ++i) FIRN_TRY(restore(session, row));
    const Stats stats = session.manager->stats();
    row.frame_bytes = stats.host_frame_bytes;
    row.raw_bytes = stats.host_raw_bytes;
    row.frames_lossy = stats.frames_lossy;
    row.guarded = stats.frames_guarded;
    FIRN_ASSIGN(llama::Sequence sequence, session.engine->begin(document_));
    FIRN_TRY(prefill(session, sequence));
    FIRN_ASSIGN(Scores scores, score(session, sequence, following_.first(following_.size() - 1), progress));
    if (exact)
      reference_ = std::move(scores);
    else
      count(scores, row);
    report_.rows.push_back(std::move(row));
    return {};
  }

 private:
  // Throws the document out of the pool and gets it back.
  Status restore(Session& session, LossyRow& row) {
    FIRN_TRY(session.manager->wait_idle());
    FIRN_TRY(session.manager->empty_pool(0xff).status());
    const Clock start = Clock::now();
    FIRN_ASSIGN(const llama::Sequence sequence, session.engine->begin(document_));
    FIRN_ASSIGN(const Ticket ticket, session.manager->prefetch(sequence.id()));
    if (ticket != Ticket::kNone) FIRN_TRY(session.manager->wait(ticket));
    const Clock time = Clock::now().since(start);
    row.wall_s.push_back(time.wall_s);
    row.cpu_s.push_back(time.cpu_s);
    row.tokens_restored = sequence.match().tokens;
    return {};
  }

  void count(const Scores& scores, LossyRow& row) {
    TokenScores s = compare(reference_, scores, following_.subspan(1));
    const auto n = static_cast<double>(s.klds.size());
    for (std::size_t i = 0; i < s.klds.size(); ++i) {
      row.mean_kld += static_cast<double>(s.klds[i]) / n;
      row.top1 += s.agreed[i] / n;
      if (s.agreed[i] == 0 && row.first_differing < 0) row.first_differing = static_cast<std::int64_t>(i);
    }
    std::sort(s.klds.begin(), s.klds.end());
    row.p99_kld = static_cast<double>(s.klds[static_cast<std::size_t>(0.99 * (n - 1))]);
  }

  const LoadedModel& model_;
  std::span<const TokenId> document_, following_;
  LossyReport& report_;
  Config config_;
  Scores reference_;
};

}  // namespace

std::vector<Steps::Step> lossy_steps() {
  return {{"lossless, for comparison", 1.6}, {"q8", 1.6}, {"q4", 1.6}, {"calibrating kvtc, once", 9}, {"kvtc", 4}};
}

bool is_calibrated(const LoadedModel& model) {
  std::error_code error;
  return std::filesystem::exists(artefact_path(model), error);
}

Status measure_lossy(const LoadedModel& model, const Config& config, std::span<const TokenId> document,
                     std::span<const TokenId> following, Steps& steps, const std::function<void()>& on_signal,
                     LossyReport& report) {
  report.document_tokens = static_cast<std::uint32_t>(document.size());
  report.scored_tokens = static_cast<std::uint32_t>(following.size() - 1);
  LossyDemo demo(model, config, document, following, report);
  for (const char* codec : {"exact", "q8", "q4"}) {
    steps.next();
    FIRN_TRY(demo.run(codec).with_context(codec));
  }
  steps.next();
  steps.end_on_signal(on_signal);  // linear algebra is not asked to stop
  const Status found = find_artefact(model, config.threads, report);
  steps.end_on_signal({});
  FIRN_TRY(found);
  steps.next();
  for (const char* codec : {"kvtc@8", "kvtc@16"}) FIRN_TRY(demo.run(codec).with_context(codec));
  return {};
}

}  // namespace firn::cli
