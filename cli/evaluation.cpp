#include "cli/evaluation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>

namespace firn::cli {
namespace {

// Log-probabilities out of logits, in place.
void to_log_probabilities(std::vector<float>& logits) {
  const float most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit - most));
  const auto shift = static_cast<float>(most + std::log(sum));
  for (float& logit : logits) logit -= shift;
}

std::size_t best(const std::vector<float>& values) {
  return static_cast<std::size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

using Scores = std::vector<std::vector<float>>;  // log-probabilities after each scored token

Result<Config> config_for(const LoadedModel& model, const EvaluatedCodec& codec, const EvaluationOptions& options) {
  Config config;
  config.device = "cpu";
  config.threads = options.threads;
  const std::uint64_t token_bytes = model.model.spec().token_bytes();
  config.pool.budget_bytes = 2 * options.context * token_bytes + (64u << 20);
  if (codec.name == "exact") return config;
  const std::size_t at = codec.name.find('@');
  config.host.codec = codec.name.substr(0, at);
  config.host.budget_bytes = 2 * options.context * token_bytes + (512u << 20);
  config.host.artefact = codec.artefact;
  config.host.allow_unmeasured = true;
  if (at != std::string::npos) config.host.ratio = static_cast<std::uint32_t>(std::stoul(codec.name.substr(at + 1)));
  FIRN_TRY(validate(config));
  return config;
}

Result<Scores> score(Session& session, const std::vector<TokenId>& window, const EvaluationOptions& options,
                     Progress& progress) {
  const std::span<const TokenId> prefix = std::span(window).first(options.context - options.scored);
  BeginOptions begin;
  begin.read_cache = false;
  FIRN_ASSIGN(llama::Sequence sequence, session.engine->begin(prefix, begin));
  FIRN_TRY(prefill(session, sequence, [&](std::size_t tokens) { progress.add(tokens); }));
  Scores scores;
  for (std::size_t i = prefix.size(); i < options.context; ++i) {
    sequence.push(window[i]);
    FIRN_TRY(prefill(session, sequence, [&](std::size_t tokens) { progress.add(tokens); }));
    scores.emplace_back(sequence.logits().begin(), sequence.logits().end());
    to_log_probabilities(scores.back());
  }
  return scores;
}

// 95 % of the means of windows drawn anew.
void bootstrap(const std::vector<double>& of_windows, Evaluation& result) {
  std::mt19937 random(1);
  std::vector<double> means;
  for (int draw = 0; draw < 1000; ++draw) {
    double sum = 0;
    for (std::size_t i = 0; i < of_windows.size(); ++i) sum += of_windows[random() % of_windows.size()];
    means.push_back(sum / static_cast<double>(of_windows.size()));
  }
  std::sort(means.begin(), means.end());
  result.low_kld = means[25];
  result.high_kld = means[974];
}

}  // namespace

Result<std::vector<Evaluation>> evaluate(const LoadedModel& model, const std::vector<std::vector<TokenId>>& windows,
                                         const std::vector<EvaluatedCodec>& codecs, const EvaluationOptions& options) {
  struct Sums {
    std::vector<double> klds, of_windows;
    std::uint64_t agreed = 0, frame_bytes = 0, raw_bytes = 0;
  };
  std::vector<Evaluation> results(codecs.size());
  std::vector<Sums> sums(codecs.size());
  FIRN_ASSIGN(const Config exact_config, config_for(model, {"exact", ""}, options));
  Progress progress("evaluating", windows.size() * (codecs.size() + 1) * options.context);
  for (const std::vector<TokenId>& window : windows) {
    FIRN_ASSIGN(Session exact, Session::open(model, exact_config));
    FIRN_ASSIGN(const Scores reference, score(exact, window, options, progress));
    for (std::size_t c = 0; c < codecs.size(); ++c) {
      Evaluation& result = results[c];
      result.codec = codecs[c].name;
      FIRN_ASSIGN(const Config config, config_for(model, codecs[c], options));
      FIRN_ASSIGN(Session session, Session::open(model, config));
      const Clock start = Clock::now();
      FIRN_ASSIGN(const Scores scores, score(session, window, options, progress));
      FIRN_TRY(session.manager->wait_idle());
      result.seconds += Clock::now().since(start).wall_s;
      const Stats stats = session.manager->stats();
      sums[c].frame_bytes += stats.kv_offload_bytes_store;
      sums[c].raw_bytes += stats.host_raw_bytes;
      result.frames += stats.frames_stored;
      result.guarded += stats.frames_guarded;
      double window_kld = 0;
      for (std::size_t i = 0; i < scores.size(); ++i) {
        double kld = 0;
        for (std::size_t v = 0; v < scores[i].size(); ++v)
          kld += std::exp(static_cast<double>(reference[i][v])) *
                 (static_cast<double>(reference[i][v]) - static_cast<double>(scores[i][v]));
        kld = std::max(0.0, kld);
        sums[c].klds.push_back(kld);
        window_kld += kld;
        sums[c].agreed += best(reference[i]) == best(scores[i]);
        const auto next = static_cast<std::size_t>(window[options.context - options.scored + i + 1]);
        result.loss -= static_cast<double>(scores[i][next]);
        result.exact_loss -= static_cast<double>(reference[i][next]);
      }
      sums[c].of_windows.push_back(window_kld / static_cast<double>(scores.size()));
    }
  }
  for (std::size_t c = 0; c < codecs.size(); ++c) {
    Evaluation& result = results[c];
    std::vector<double>& klds = sums[c].klds;
    const auto n = static_cast<double>(klds.size());
    result.tokens = klds.size();
    result.loss /= n;
    result.exact_loss /= n;
    for (const double kld : klds) result.mean_kld += kld / n;
    std::sort(klds.begin(), klds.end());
    result.p99_kld = klds[static_cast<std::size_t>(0.99 * (n - 1))];
    result.max_kld = klds.back();
    result.top1 = static_cast<double>(sums[c].agreed) / n;
    result.bits = sums[c].raw_bytes == 0
                      ? 16
                      : 16.0 * static_cast<double>(sums[c].frame_bytes) / static_cast<double>(sums[c].raw_bytes);
    bootstrap(sums[c].of_windows, result);
  }
  return results;
}

Result<std::vector<std::vector<TokenId>>> windows_of(const LoadedModel& model, const std::vector<std::string>& files,
                                                     std::uint32_t tokens, std::size_t most) {
  std::vector<std::vector<TokenId>> windows;
  for (const std::string& file : files) {
    std::ifstream in(file, std::ios::binary);
    if (!in) return Status(Code::kInvalidArgument, fmt::format("--text {}: cannot be read", file));
    const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    // No more of it than is needed: a token is rarely more than 8 bytes.
    FIRN_ASSIGN(const std::vector<TokenId> all,
                model.tokenizer.encode(std::string_view(text).substr(0, std::min(text.size(), most * tokens * 8))));
    for (std::size_t at = 0; at + tokens <= all.size() && windows.size() < most; at += tokens)
      windows.emplace_back(all.begin() + static_cast<std::ptrdiff_t>(at),
                           all.begin() + static_cast<std::ptrdiff_t>(at + tokens));
  }
  if (windows.empty())
    return Status(Code::kInvalidArgument,
                  fmt::format("--text: there are less than {} tokens in any of the files", tokens));
  return windows;
}

}  // namespace firn::cli
