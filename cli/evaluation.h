// evaluation.h: what a codec does to a model, teacher-forced over held-out text and served as it would be: cold tokens
// through the codec, sinks and window raw. Every codec sees the same windows, and is compared with exact context.
//
// The unit of work is one codec on one window. What a unit found goes into a file as soon as it is done, so that an
// evaluation that was killed goes on where it was and ends with the same report.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/attention_error.h"
#include "cli/session.h"

namespace firn::cli {

struct EvaluatedCodec {
  std::string name;      // raw, lossless, q8, q4, q8/q4 (keys/values), q4-plain (not mixed), kvtc@16, firn@16
  std::string artefact;  // of kvtc or firn
  std::string label;     // in reports; empty: the name
};
struct Interval {
  double low = 0, high = 0;  // 95 %
};
struct Evaluation {
  std::string codec;
  std::uint64_t tokens = 0;         // scored
  std::size_t windows = 0;          // measured: fewer than were given where a signal ended it
  double bits = 0;                  // realised, an element of cold blocks, by the codec alone
  double served_bits = 0;           // of all frames written while serving: what the guard stored lossless too
  double loss = 0, exact_loss = 0;  // mean, nats a token
  double mean_kld = 0, p99_kld = 0, max_kld = 0, top1 = 0;
  Interval kld_95, loss_change_95, top1_95;  // bootstrap over pieces of kPieceTokens, drawn alike for every codec
  std::uint64_t frames = 0, guarded = 0;     // while served
  double seconds = 0;                        // of serving, wall
  AttentionErrors attention;                 // and bytes and seconds of coding alone
  double perplexity() const;
  double exact_perplexity() const;
};
inline constexpr std::size_t kPieceTokens = 64;  // long enough that neighbouring pieces are nearly independent

struct EvaluationOptions {
  // Tokens of a window, of which the last are scored; both become multiples of a block, so that scoring a block at a
  // time gives the bits that scoring a token at a time gives.
  std::uint32_t context = 1024, scored = 128;
  std::uint32_t threads = 0;
  std::string state;       // file that remembers finished units; empty: none
  bool attention = false;  // measure logits and outputs too
};

// windows: each of options.context + 1 tokens or more.
Result<std::vector<Evaluation>> evaluate(const LoadedModel& model, const std::vector<std::vector<TokenId>>& windows,
                                         const std::vector<EvaluatedCodec>& codecs, const EvaluationOptions& options);

// Per scored token, against reference log-probabilities. For the demo too.
using Scores = std::vector<std::vector<float>>;  // log-probabilities after each scored token
struct TokenScores {
  std::vector<float> klds, losses, exact_losses;
  std::vector<std::uint8_t> agreed;
};
// next[i]: the token that truly follows.
TokenScores compare(const Scores& reference, const Scores& scores, std::span<const TokenId> next);
// Runs `text` behind what the sequence has, a block at a time, and returns the log-probabilities after each of its
// tokens.
Result<Scores> score(Session& session, llama::Sequence& sequence, std::span<const TokenId> text, Progress& progress);

// The texts in windows of `tokens` tokens, the first of every file, then the second of every file, so that a limit on
// windows leaves no file out; what is left of a file is. kInvalidArgument: a file cannot be read.
Result<std::vector<std::vector<TokenId>>> windows_of(const LoadedModel& model, const std::vector<std::string>& files,
                                                     std::uint32_t tokens, std::size_t most);

}  // namespace firn::cli
