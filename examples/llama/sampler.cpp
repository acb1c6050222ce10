#include "examples/llama/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "examples/llama/check.h"

namespace firn::llama {
namespace {

// Moves the n likeliest ids to the front, in order; ids break ties, so the order is total.
void sort_likeliest(std::span<const float> logits, std::size_t n, std::vector<TokenId>& ids) {
  ids.resize(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto likelier = [logits](TokenId a, TokenId b) {
    const float la = logits[static_cast<std::size_t>(a)], lb = logits[static_cast<std::size_t>(b)];
    return la != lb ? la > lb : a < b;
  };
  n = std::min(n, ids.size());
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(n), ids.end(), likelier);
  ids.resize(n);
}

}  // namespace

Result<Sampler> Sampler::create(const SamplerOptions& options) {
  if (!(options.temperature >= 0 && options.temperature <= 100))
    return Status(Code::kInvalidArgument, "temperature is " + std::to_string(options.temperature) + "; 0 to 100");
  if (!(options.top_p > 0 && options.top_p <= 1))
    return Status(Code::kInvalidArgument, "top_p is " + std::to_string(options.top_p) + "; more than 0, at most 1");
  return Sampler(options);
}

// SplitMix64: ours, since the standard library's distributions differ between implementations.
double Sampler::uniform() {
  std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

TokenId Sampler::next(std::span<const float> logits) {
  LLAMA_CHECK(!logits.empty());
  if (options_.temperature == 0)
    return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());

  sort_likeliest(logits, options_.top_k == 0 ? logits.size() : options_.top_k, candidates_);
  const auto logit = [&](TokenId token) { return static_cast<double>(logits[static_cast<std::size_t>(token)]); };
  const double most = logit(candidates_[0]);
  weights_.clear();
  double total = 0;
  for (const TokenId token : candidates_) {
    weights_.push_back(std::exp((logit(token) - most) / static_cast<double>(options_.temperature)));
    total += weights_.back();
  }
  double kept = 0;
  std::size_t count = 0;
  while (count < weights_.size() && (count == 0 || kept < static_cast<double>(options_.top_p) * total))
    kept += weights_[count++];
  double at = uniform() * kept;
  std::size_t chosen = 0;
  while (chosen + 1 < count && at >= weights_[chosen]) at -= weights_[chosen++];
  return candidates_[chosen];
}

std::vector<TokenLogProbability> top_log_probabilities(std::span<const float> logits, std::size_t n) {
  std::vector<TokenId> ids;
  sort_likeliest(logits, n, ids);
  if (ids.empty()) return {};
  const auto most = static_cast<double>(logits[static_cast<std::size_t>(ids[0])]);
  double total = 0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit) - most);
  std::vector<TokenLogProbability> top;
  for (const TokenId id : ids)
    top.push_back({id, static_cast<double>(logits[static_cast<std::size_t>(id)]) - most - std::log(total)});
  return top;
}

}  // namespace firn::llama
