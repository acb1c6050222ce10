// evaluation.h: what a codec does to a model, teacher-forced over held-out text and served as it would be: cold tokens
// through the codec, sinks and window raw. Every codec sees the same windows, and is compared with exact context.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/session.h"

namespace firn::cli {

struct EvaluatedCodec {
  std::string name;  // raw, lossless, q8, q4, kvtc@16
  std::string artefact;
};
struct Evaluation {
  std::string codec;
  std::uint64_t tokens = 0;         // scored
  double bits = 0;                  // realised, an element of cold blocks
  double loss = 0, exact_loss = 0;  // mean, nats a token
  double mean_kld = 0, p99_kld = 0, max_kld = 0, top1 = 0;
  double low_kld = 0, high_kld = 0;  // 95 % interval of the mean, bootstrap over windows
  std::uint64_t frames = 0, guarded = 0;
  double seconds = 0;
};
struct EvaluationOptions {
  std::uint32_t context = 1024, scored = 128;  // tokens of a window, of which the last are scored
  std::uint32_t threads = 0;
};

// windows: each of options.context + 1 tokens or more.
Result<std::vector<Evaluation>> evaluate(const LoadedModel& model, const std::vector<std::vector<TokenId>>& windows,
                                         const std::vector<EvaluatedCodec>& codecs, const EvaluationOptions& options);

// The text in windows of `tokens` tokens; the rest is left out. kInvalidArgument: a file cannot be read.
Result<std::vector<std::vector<TokenId>>> windows_of(const LoadedModel& model, const std::vector<std::string>& files,
                                                     std::uint32_t tokens, std::size_t most);

}  // namespace firn::cli
