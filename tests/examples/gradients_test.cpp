// Gradients by the cache beside differences of log-likelihoods, and the forward pass beside the engine's own meaning.
#include "examples/llama/gradients.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/examples/llama_test_util.h"
#include "tests/examples/naive_llama.h"

namespace firn::llama {
namespace {

std::vector<std::int32_t> some_tokens(std::size_t count, std::uint32_t vocabulary, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::int32_t> tokens(count);
  for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(random.below(vocabulary));
  return tokens;
}

// A key's gradient is by the key before it is rotated: a change there, rotated, is what the cache sees.
void change_key(KvCache& cache, const Model& model, std::size_t layer, std::size_t token, std::size_t channel,
                double amount) {
  const Geometry& g = model.geometry();
  float* head = &cache.keys[(layer * cache.tokens + token) * g.kv_width() + channel / g.head_dim * g.head_dim];
  const std::size_t dim = channel % g.head_dim;
  if (dim >= g.rotated_dims) {
    head[dim] += static_cast<float>(amount);
    return;
  }
  const double angle = static_cast<double>(token) * static_cast<double>(model.inverse_frequencies()[dim / 2]);
  const bool odd = dim % 2 != 0;
  head[dim / 2 * 2] += static_cast<float>(amount * (odd ? -std::sin(angle) : std::cos(angle)));
  head[dim / 2 * 2 + 1] += static_cast<float>(amount * (odd ? std::cos(angle) : std::sin(angle)));
}

TEST(KvGradients, AreThoseOfFiniteDifferences) {
  LLAMA_ASSERT_OK_AND_ASSIGN(const Model model, Model::load(random_model("f32")));
  const Geometry& g = model.geometry();
  KvGradients gradients(model);
  const std::vector<std::int32_t> tokens = some_tokens(40, g.vocabulary, 3);
  const std::span<const std::int32_t> all(tokens);
  KvCache cache = gradients.cache_of(all.first(24));
  const auto choose = [&](std::size_t i, std::span<const float>) { return tokens[(7 * i + 3) % tokens.size()]; };
  const KvGradients::Gradients exact = gradients.by_cache(cache, all.subspan(24), choose);
  ASSERT_EQ(exact.keys.size(), cache.keys.size());
  Random random(4);
  double squares = 0, wrong = 0;
  for (int i = 0; i < 60; ++i) {
    const bool values = i % 2 != 0;
    const std::size_t layer = random.below(g.layers), token = random.below(24), channel = random.below(g.kv_width());
    const std::size_t at = (layer * 24 + token) * g.kv_width() + channel;
    constexpr double kStep = 0.02;
    double likelihoods[2];
    for (const int side : {0, 1}) {
      KvCache changed = cache;
      const double amount = side == 0 ? -kStep : kStep;
      if (values)
        changed.values[at] += static_cast<float>(amount);
      else
        change_key(changed, model, layer, token, channel, amount);
      likelihoods[side] = gradients.by_cache(changed, all.subspan(24), choose, true).log_likelihood;
    }
    const double expected = (likelihoods[1] - likelihoods[0]) / (2 * kStep);
    const double got = static_cast<double>((values ? exact.values : exact.keys)[at]);
    squares += expected * expected;
    wrong += (expected - got) * (expected - got);
  }
  EXPECT_GT(squares, 0);
  EXPECT_LT(std::sqrt(wrong / squares), 0.02) << "seeds 3 and 4";
}

// Behind a cache of its own, the model says what it says of all tokens at once.
TEST(KvGradients, LikelihoodIsTheModels) {
  for (const char* type : {"f32", "q4_1"}) {
    LLAMA_ASSERT_OK_AND_ASSIGN(const Model model, Model::load(random_model(type)));
    const std::vector<std::int32_t> tokens = some_tokens(20, model.geometry().vocabulary, 5);
    KvGradients gradients(model);
    const KvCache cache = gradients.cache_of(std::span(tokens).first(12));
    std::vector<float> last;
    gradients.by_cache(
        cache, std::span(tokens).subspan(12),
        [&](std::size_t, std::span<const float> probabilities) {
          last.assign(probabilities.begin(), probabilities.end());
          return 0;
        },
        true);
    const std::vector<double> logits = naive_logits(model.file(), tokens);
    double sum = 0;
    for (const double logit : logits) sum += std::exp(logit);
    for (std::size_t v = 0; v < logits.size(); ++v)
      ASSERT_NEAR(std::log(static_cast<double>(last[v])), logits[v] - std::log(sum), 0.02) << type << ", token " << v;
  }
}

}  // namespace
}  // namespace firn::llama
