// sampler.h: from logits to the next token. The same options, seed and logits give the same tokens on every machine.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "firn/key.h"
#include "firn/status.h"

namespace firn::llama {

struct SamplerOptions {
  float temperature = 0;     // 0: greedy, and nothing below matters
  std::uint32_t top_k = 40;  // only the k likeliest; 0: all
  float top_p = 1;           // of those, the likeliest that together have this probability
  std::uint64_t seed = 0;
};

class Sampler {
 public:
  static Result<Sampler> create(const SamplerOptions& options);  // kInvalidArgument names the option and its range
  TokenId next(std::span<const float> logits);  // not empty, all finite; of equal ones the lowest id wins

 private:
  explicit Sampler(const SamplerOptions& options) : options_(options), state_(options.seed) {}
  double uniform();  // [0, 1)

  SamplerOptions options_;
  std::uint64_t state_;
  std::vector<TokenId> candidates_;
  std::vector<double> weights_;
};

struct TokenLogProbability {
  TokenId token = 0;
  double log_probability = 0;
};
// The n likeliest next tokens, likeliest first.
std::vector<TokenLogProbability> top_log_probabilities(std::span<const float> logits, std::size_t n);

}  // namespace firn::llama
