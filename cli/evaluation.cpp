#include "cli/evaluation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>

#include "cli/process.h"
#include "cli/text.h"
#include "core/base/file_out.h"
#include "core/config/codec_name.h"
#include "core/config/host_codec.h"
#include "examples/llama/capture.h"
#include "firn/codec.h"
#include "storage/codec/lossy_kernels.h"

namespace firn::cli {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kAsked = 16;  // queries of a window that attention errors are measured with

// Log-probabilities out of logits, in place.
void to_log_probabilities(std::vector<float>& logits) {
  const float most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += static_cast<double>(std::exp(logit - most));
  const auto shift = static_cast<float>(most + std::log(sum));
  for (float& logit : logits) logit -= shift;
}

std::size_t best(const std::vector<float>& values) {
  return static_cast<std::size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

Result<Config> config_for(const LoadedModel& model, const EvaluatedCodec& codec, const EvaluationOptions& options) {
  Config config;
  config.device = "cpu";
  config.threads = options.threads;
  const std::uint64_t token_bytes = model.model.spec().token_bytes();
  config.pool.budget_bytes = 2 * options.context * token_bytes + (64u << 20);
  if (codec.name == "exact") return config;
  FIRN_TRY(set_codec(codec.name, config.host));
  config.host.budget_bytes = 2 * options.context * token_bytes + (512u << 20);
  config.host.artefact = codec.artefact;
  config.host.allow_unmeasured = true;
  FIRN_TRY(validate(config).with_context("codec " + codec.name));
  return config;
}

// The codec alone, as the manager makes it.
Result<std::unique_ptr<Codec>> codec_for(const LoadedModel& model, const EvaluatedCodec& codec, const Config& config) {
  FIRN_ASSIGN(const CodecId id, codec_from_name(config.host.codec));
  if (id == CodecId::kQ8 || id == CodecId::kQ4) return make_integer_codec(integer_coding(config.host));
  if (id != CodecId::kKvtc && id != CodecId::kFirn) return make_codec(id);
  FIRN_ASSIGN(const std::shared_ptr<const Artefact> artefact, load_artefact(codec.artefact));
  return make_codec(id, artefact, config.host.ratio, model.model.spec());
}

// --- one unit: one codec, one window ---
struct Unit {
  TokenScores scores;
  std::uint64_t frames = 0, guarded = 0, frame_bytes = 0, raw_bytes = 0;
  double seconds = 0;
  AttentionErrors attention;
};

Json sums_json(const std::vector<AttentionErrors::Sum>& sums) {
  Json json = Json::array();
  for (const AttentionErrors::Sum& sum : sums) json.push_back({sum.error, sum.of});
  return json;
}

std::vector<AttentionErrors::Sum> sums_of(const Json& json) {
  std::vector<AttentionErrors::Sum> sums;
  for (const Json& sum : json) sums.push_back({sum.at(0).get<double>(), sum.at(1).get<double>()});
  return sums;
}

Json unit_json(const Unit& u) {
  const AttentionErrors& a = u.attention;
  return {{"klds", u.scores.klds},
          {"losses", u.scores.losses},
          {"exact_losses", u.scores.exact_losses},
          {"agreed", u.scores.agreed},
          {"frames", u.frames},
          {"guarded", u.guarded},
          {"frame_bytes", u.frame_bytes},
          {"raw_bytes", u.raw_bytes},
          {"seconds", u.seconds},
          {"attention",
           {{"logits", sums_json(a.logits)},
            {"outputs", sums_json(a.outputs)},
            {"keys", sums_json(a.keys)},
            {"values", sums_json(a.values)},
            {"logits_by_key", sums_json(a.logits_by_key)},
            {"outputs_by_query", sums_json(a.outputs_by_query)},
            {"numbers", {a.raw_bytes, a.frame_bytes, a.extents, a.guarded}},
            {"cpu_s", {a.encode_cpu_s, a.decode_cpu_s}}}}};
}

Unit unit_of(const Json& json) {
  Unit u;
  json.at("klds").get_to(u.scores.klds);
  json.at("losses").get_to(u.scores.losses);
  json.at("exact_losses").get_to(u.scores.exact_losses);
  json.at("agreed").get_to(u.scores.agreed);
  json.at("frames").get_to(u.frames);
  json.at("guarded").get_to(u.guarded);
  json.at("frame_bytes").get_to(u.frame_bytes);
  json.at("raw_bytes").get_to(u.raw_bytes);
  json.at("seconds").get_to(u.seconds);
  const Json& a = json.at("attention");
  u.attention.logits = sums_of(a.at("logits"));
  u.attention.outputs = sums_of(a.at("outputs"));
  u.attention.keys = sums_of(a.at("keys"));
  u.attention.values = sums_of(a.at("values"));
  u.attention.logits_by_key = sums_of(a.at("logits_by_key"));
  u.attention.outputs_by_query = sums_of(a.at("outputs_by_query"));
  a.at("numbers").at(0).get_to(u.attention.raw_bytes);
  a.at("numbers").at(1).get_to(u.attention.frame_bytes);
  a.at("numbers").at(2).get_to(u.attention.extents);
  a.at("numbers").at(3).get_to(u.attention.guarded);
  a.at("cpu_s").at(0).get_to(u.attention.encode_cpu_s);
  a.at("cpu_s").at(1).get_to(u.attention.decode_cpu_s);
  return u;
}

// Finished units by name, in a file that is replaced whole each time: a kill leaves the old or the new one.
class State {
 public:
  explicit State(std::string path) : path_(std::move(path)) {
    if (path_.empty()) return;
    std::ifstream in(path_);
    Json read = Json::parse(in, nullptr, /*allow_exceptions=*/false);
    if (read.is_object()) units_ = std::move(read);  // else it was never finished: start anew
  }
  // A unit that is not as this program writes them is computed again.
  bool find(const std::string& name, Unit& unit) const {
    const auto found = units_.find(name);
    if (found == units_.end()) return false;
    try {
      unit = unit_of(*found);
    } catch (const Json::exception&) {
      return false;
    }
    return true;
  }
  Status add(const std::string& name, const Unit& unit) {
    if (path_.empty()) return {};
    units_[name] = unit_json(unit);
    return write_file(path_, units_.dump(), Readers::kOwner);  // what each token of a text cost tells of the text
  }

 private:
  std::string path_;
  Json units_ = Json::object();
};

// Everything that a unit's result follows from.
Result<std::string> unit_name(const LoadedModel& model, const EvaluatedCodec& codec, const EvaluationOptions& options,
                              const std::vector<TokenId>& window) {
  std::uint64_t hash = 14695981039346656037u;  // FNV-1a of the tokens
  for (const TokenId token : window) hash = (hash ^ static_cast<std::uint32_t>(token)) * 1099511628211u;
  std::string artefact;
  if (!codec.artefact.empty()) {
    FIRN_ASSIGN(const std::shared_ptr<const Artefact> loaded, load_artefact(codec.artefact));
    artefact = " of " + to_hex(describe(*loaded).digest);
  }
  // 2: frames are counted before the sequence ends.
  return fmt::format("2: {}{}, {} of {} tokens {:016x}, model {}{}", codec.name, artefact, options.scored,
                     options.context, hash, to_hex(model.model.spec().weights).substr(0, 16),
                     options.attention ? ", attention" : "");
}

// The exact run of a window: what codecs are compared with. Computed when the first of them asks.
struct Reference {
  Scores scores;
  AttentionTrace trace;
};

// A mover without a thread is pumped by whoever runs the model; here it has one.
Result<Scores> score_with(llama::Engine& engine, llama::Sequence& sequence, std::span<const TokenId> text,
                          Progress& progress) {
  Scores scores;
  const std::size_t first = sequence.tokens().size();
  engine.listen(first, [&](const llama::Sequence&, std::size_t position, std::span<const float> logits) {
    scores.resize(position - first + 1);
    scores.back().assign(logits.begin(), logits.end());
    to_log_probabilities(scores.back());
  });
  llama::Sequence* sequences[] = {&sequence};
  Status status;
  for (std::size_t i = 0; i < text.size() && status.ok(); ++i) {
    sequence.push(text[i]);
    if ((first + i + 1) % kBlockTokens == 0 || i + 1 == text.size())
      status = engine.run(sequences, [&](std::size_t tokens) { progress.add(tokens); });
  }
  engine.listen(0, {});
  FIRN_TRY(status);
  return scores;
}

// What was stored is counted while the sequence lives: what it leaves behind when it ends is stored at leisure.
Result<Scores> serve(Session& session, llama::Engine& engine, const std::vector<TokenId>& window,
                     const EvaluationOptions& options, Progress& progress, Stats* stored = nullptr) {
  BeginOptions begin;
  begin.read_cache = false;
  const std::span<const TokenId> text = std::span(window).first(options.context);
  FIRN_ASSIGN(llama::Sequence sequence, engine.begin(text.first(options.context - options.scored), begin));
  llama::Sequence* sequences[] = {&sequence};
  FIRN_TRY(engine.run(sequences, [&](std::size_t tokens) { progress.add(tokens); }));
  FIRN_ASSIGN(Scores scores, score_with(engine, sequence, text.last(options.scored), progress));
  FIRN_TRY(session.manager->wait_idle());
  if (stored != nullptr) *stored = session.manager->stats();
  return scores;
}

Result<Reference> exact_run(const LoadedModel& model, const std::vector<TokenId>& window,
                            const EvaluationOptions& options, Progress& progress) {
  Reference reference;
  FIRN_ASSIGN(const Config config, config_for(model, {"exact", "", ""}, options));
  FIRN_ASSIGN(Session session, Session::open(model, config));
  if (!options.attention) {
    FIRN_ASSIGN(reference.scores, serve(session, *session.engine, window, options, progress));
    return reference;
  }
  const ModelSpec spec = model.model.spec();
  const GroupSpec& group = spec.groups[0];
  const std::size_t k_width = group.kv.kv_heads * group.kv.head_dim, v_width = group.kv.kv_heads * group.kv.value_dim;
  AttentionTrace& trace = reference.trace;
  trace.tokens = options.context;
  trace.query_heads = model.model.geometry().heads;
  const std::size_t q_width = std::size_t{trace.query_heads} * group.kv.head_dim;
  trace.keys.resize(group.layer_count * trace.tokens * k_width);
  trace.values.resize(group.layer_count * trace.tokens * v_width);
  for (std::uint32_t i = 1; i <= kAsked; ++i) trace.asked_at.push_back(trace.tokens * i / kAsked - 1);
  trace.queries.resize(group.layer_count * kAsked * q_width);
  llama::ListeningManager listening(
      *session.manager,
      [&](std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress k, DeviceAddress v) {
        for (const StepRows& part : rows) {  // the cpu device's addresses are the host's
          const std::size_t to = std::size_t{layer} * trace.tokens + part.position;
          std::memcpy(&trace.keys[to * k_width], reinterpret_cast<const float*>(k) + part.row * k_width,
                      part.row_count * k_width * sizeof(float));
          std::memcpy(&trace.values[to * v_width], reinterpret_cast<const float*>(v) + part.row * v_width,
                      part.row_count * v_width * sizeof(float));
        }
      },
      [&](std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress q) {
        for (const StepRows& part : rows)
          for (std::size_t i = 0; i < kAsked; ++i)
            if (trace.asked_at[i] >= part.position && trace.asked_at[i] < part.position + part.row_count)
              std::memcpy(&trace.queries[(layer * kAsked + i) * q_width],
                          reinterpret_cast<const float*>(q) + (part.row + trace.asked_at[i] - part.position) * q_width,
                          q_width * sizeof(float));
      });
  llama::Engine engine(model.model, listening, *session.threads);
  engine.stop_when([] { return stop_signal() != 0; });
  FIRN_ASSIGN(reference.scores, serve(session, engine, window, options, progress));
  for (std::vector<float>* tensor : {&trace.keys, &trace.values}) {  // as the cache has them
    std::vector<std::byte> bytes(tensor->size() * bytes_of(group.kv.dtype));
    lossy::store(group.kv.dtype, tensor->data(), tensor->size(), bytes.data());
    lossy::load(group.kv.dtype, bytes.data(), tensor->size(), tensor->data());
  }
  return reference;
}

Result<Unit> run_unit(const LoadedModel& model, const EvaluatedCodec& codec, const EvaluationOptions& options,
                      const std::vector<TokenId>& window, const Reference& reference, Progress& progress) {
  Unit unit;
  FIRN_ASSIGN(const Config config, config_for(model, codec, options));
  FIRN_ASSIGN(Session session, Session::open(model, config));
  const Clock start = Clock::now();
  Stats stats;
  FIRN_ASSIGN(const Scores scores, serve(session, *session.engine, window, options, progress, &stats));
  unit.seconds = Clock::now().since(start).wall_s;
  unit.frame_bytes = stats.kv_offload_bytes_store;
  unit.raw_bytes = stats.host_raw_bytes;
  unit.frames = stats.frames_stored;
  unit.guarded = stats.frames_guarded;
  unit.scores = compare(reference.scores, scores,
                        std::span(window).subspan(options.context - options.scored + 1, options.scored));
  if (options.attention) {
    FIRN_ASSIGN(const std::unique_ptr<Codec> alone, codec_for(model, codec, config));
    FIRN_ASSIGN(unit.attention,
                measure_attention(reference.trace, model.model.spec(), *alone,
                                  {.sinks = config.protect.sinks, .recent = config.protect.recent}, *session.threads));
  }
  return unit;
}

// --- sums over windows ---
// Means of pieces drawn anew, the same draws for every codec.
Interval bootstrap(const std::vector<double>& pieces) {
  std::mt19937 random(1);
  std::vector<double> means;
  for (int draw = 0; draw < 1000; ++draw) {
    double sum = 0;
    for (std::size_t i = 0; i < pieces.size(); ++i) sum += pieces[random() % pieces.size()];
    means.push_back(sum / static_cast<double>(pieces.size()));
  }
  std::sort(means.begin(), means.end());
  return {means[25], means[974]};
}

Evaluation summarise(const std::string& name, const std::vector<Unit>& units) {
  Evaluation result;
  result.codec = name;
  result.windows = units.size();
  std::vector<float> klds;
  std::vector<double> kld_pieces, loss_pieces, top1_pieces;
  std::uint64_t frame_bytes = 0, raw_bytes = 0;
  for (const Unit& unit : units) {
    const TokenScores& s = unit.scores;
    for (std::size_t first = 0; first < s.klds.size(); first += kPieceTokens) {
      const std::size_t end = std::min(first + kPieceTokens, s.klds.size());
      double kld = 0, change = 0, agreed = 0;
      for (std::size_t i = first; i < end; ++i) {
        kld += static_cast<double>(s.klds[i]);
        change += static_cast<double>(s.losses[i]) - static_cast<double>(s.exact_losses[i]);
        agreed += s.agreed[i];
        result.loss += static_cast<double>(s.losses[i]);
        result.exact_loss += static_cast<double>(s.exact_losses[i]);
      }
      result.mean_kld += kld;
      result.top1 += agreed;
      const auto n = static_cast<double>(end - first);
      kld_pieces.push_back(kld / n);
      loss_pieces.push_back(change / n);
      top1_pieces.push_back(agreed / n);
    }
    klds.insert(klds.end(), s.klds.begin(), s.klds.end());
    result.frames += unit.frames;
    result.guarded += unit.guarded;
    result.seconds += unit.seconds;
    frame_bytes += unit.frame_bytes;
    raw_bytes += unit.raw_bytes;
    result.attention.add(unit.attention);
  }
  const auto n = static_cast<double>(klds.size());
  result.tokens = klds.size();
  result.loss /= n;
  result.exact_loss /= n;
  result.mean_kld /= n;
  result.top1 /= n;
  std::sort(klds.begin(), klds.end());
  result.p99_kld = static_cast<double>(klds[static_cast<std::size_t>(0.99 * (n - 1))]);
  result.max_kld = static_cast<double>(klds.back());
  result.kld_95 = bootstrap(kld_pieces);
  result.loss_change_95 = bootstrap(loss_pieces);
  result.top1_95 = bootstrap(top1_pieces);
  const auto bits = [](std::uint64_t frame, std::uint64_t raw) {
    return raw == 0 ? 16 : 16.0 * static_cast<double>(frame) / static_cast<double>(raw);
  };
  result.served_bits = bits(frame_bytes, raw_bytes);
  // Of the codec's own frames where they were measured alone; what a sequence leaves behind is stored lossless.
  if (result.attention.raw_bytes != 0) {
    frame_bytes = result.attention.frame_bytes;
    raw_bytes = result.attention.raw_bytes;
  }
  result.bits = bits(frame_bytes, raw_bytes);
  return result;
}

}  // namespace

double Evaluation::perplexity() const { return std::exp(loss); }
double Evaluation::exact_perplexity() const { return std::exp(exact_loss); }

TokenScores compare(const Scores& reference, const Scores& scores, std::span<const TokenId> next) {
  TokenScores out;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    double kld = 0;
    for (std::size_t v = 0; v < scores[i].size(); ++v)
      kld += static_cast<double>(std::exp(reference[i][v])) *
             (static_cast<double>(reference[i][v]) - static_cast<double>(scores[i][v]));
    const auto token = static_cast<std::size_t>(next[i]);
    out.klds.push_back(static_cast<float>(std::max(0.0, kld)));
    out.losses.push_back(-scores[i][token]);
    out.exact_losses.push_back(-reference[i][token]);
    out.agreed.push_back(best(reference[i]) == best(scores[i]) ? 1 : 0);
  }
  return out;
}

Result<Scores> score(Session& session, llama::Sequence& sequence, std::span<const TokenId> text, Progress& progress) {
  return score_with(*session.engine, sequence, text, progress);
}

Result<std::vector<Evaluation>> evaluate(const LoadedModel& model, const std::vector<std::vector<TokenId>>& windows,
                                         const std::vector<EvaluatedCodec>& codecs, const EvaluationOptions& asked) {
  EvaluationOptions options = asked;
  options.context = options.context / kBlockTokens * kBlockTokens;
  options.scored = std::max(kBlockTokens, options.scored / kBlockTokens * kBlockTokens);
  if (options.scored >= options.context)
    return Status(Code::kInvalidArgument, "fewer tokens must be scored than a window has");
  for (const EvaluatedCodec& codec : codecs) FIRN_TRY(config_for(model, codec, options).status());
  State state(options.state);
  std::vector<std::vector<Unit>> units(codecs.size());
  Progress progress("evaluating", windows.size() * (codecs.size() + 1) * options.context);
  const auto measure_window = [&](const std::vector<TokenId>& window) -> Result<std::vector<Unit>> {
    std::unique_ptr<Reference> reference;
    std::vector<Unit> measured;
    for (const EvaluatedCodec& codec : codecs) {
      FIRN_ASSIGN(const std::string name, unit_name(model, codec, options, window));
      Unit unit;
      if (state.find(name, unit)) {
        progress.add(options.context);
      } else {
        if (!reference) {
          FIRN_ASSIGN(Reference run, exact_run(model, window, options, progress));
          reference = std::make_unique<Reference>(std::move(run));
        }
        FIRN_ASSIGN(unit, run_unit(model, codec, options, window, *reference, progress));
        FIRN_TRY(state.add(name, unit));
      }
      measured.push_back(std::move(unit));
    }
    if (!reference) progress.add(options.context);
    return measured;
  };
  for (const std::vector<TokenId>& window : windows) {
    Result<std::vector<Unit>> measured = measure_window(window);
    if (!measured.ok()) {
      if (stop_signal() == 0 || units[0].empty()) return measured.status();
      break;  // what has been measured of all codecs alike is still an answer
    }
    for (std::size_t c = 0; c < codecs.size(); ++c) units[c].push_back(std::move((*measured)[c]));
  }
  std::vector<Evaluation> results;
  for (std::size_t c = 0; c < codecs.size(); ++c)
    results.push_back(summarise(codecs[c].label.empty() ? codecs[c].name : codecs[c].label, units[c]));
  return results;
}

namespace {

// At most `most` windows of one file, from its beginning.
Result<std::vector<std::vector<TokenId>>> windows_of_file(const LoadedModel& model, const std::string& file,
                                                          std::uint32_t tokens, std::size_t most) {
  constexpr std::size_t kMaxTextBytes = std::size_t{1} << 30;
  const Result<std::string> read = read_whole(file, kMaxTextBytes);
  if (!read.ok()) return read.status().with_context("--text");
  const std::string& text = *read;
  // No more of it than is needed: a token is rarely more than 8 bytes.
  FIRN_ASSIGN(const std::vector<TokenId> all,
              model.tokenizer.encode(std::string_view(text).substr(0, std::min(text.size(), most * tokens * 8))));
  std::vector<std::vector<TokenId>> windows;
  for (std::size_t at = 0; at + tokens <= all.size() && windows.size() < most; at += tokens)
    windows.emplace_back(all.begin() + static_cast<std::ptrdiff_t>(at),
                         all.begin() + static_cast<std::ptrdiff_t>(at + tokens));
  return windows;
}

}  // namespace

Result<std::vector<std::vector<TokenId>>> windows_of(const LoadedModel& model, const std::vector<std::string>& files,
                                                     std::uint32_t tokens, std::size_t most) {
  std::vector<std::vector<std::vector<TokenId>>> of_files;
  std::size_t longest = 0;
  for (const std::string& file : files) {
    FIRN_ASSIGN(auto windows, windows_of_file(model, file, tokens, most));
    longest = std::max(longest, windows.size());
    of_files.push_back(std::move(windows));
  }
  std::vector<std::vector<TokenId>> windows;
  for (std::size_t i = 0; i < longest; ++i)
    for (auto& of_file : of_files)
      if (i < of_file.size() && windows.size() < most) windows.push_back(std::move(of_file[i]));
  if (windows.empty())
    return Status(Code::kInvalidArgument,
                  fmt::format("--text: there are less than {} tokens in any of the files", tokens));
  return windows;
}

}  // namespace firn::cli
