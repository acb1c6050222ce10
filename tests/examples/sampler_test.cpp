#include "examples/llama/sampler.h"

#include <cmath>

#include "llama_test_util.h"

namespace firn::llama {
namespace {

Sampler make(const SamplerOptions& options) {
  Result<Sampler> sampler = Sampler::create(options);
  EXPECT_TRUE(sampler.ok());
  return std::move(*sampler);
}

SamplerOptions warm(std::uint64_t seed) {
  SamplerOptions options;
  options.temperature = 1;
  options.top_k = 0;
  options.seed = seed;
  return options;
}

TEST(Sampler, GreedyTakesTheLikeliestAndTheLowestIdOfEquals) {
  Sampler sampler = make({});
  EXPECT_EQ(sampler.next(std::vector<float>{0, 3, 1, 3}), 1);
  EXPECT_EQ(sampler.next(std::vector<float>{-5}), 0);
}

TEST(Sampler, TheSameSeedGivesTheSameTokensAndAnotherSeedOthers) {
  const std::vector<float> logits(50, 1.0f);
  const auto draw = [&](std::uint64_t seed) {
    Sampler sampler = make(warm(seed));
    std::vector<TokenId> tokens;
    for (int i = 0; i < 20; ++i) tokens.push_back(sampler.next(logits));
    return tokens;
  };
  EXPECT_EQ(draw(7), draw(7));
  EXPECT_NE(draw(7), draw(8));
  // Fixed for ever: recorded runs are replayed by seed.
  const auto seven = draw(7);
  EXPECT_EQ(std::vector<TokenId>(seven.begin(), seven.begin() + 5), (std::vector<TokenId>{19, 0, 45, 29, 22}));
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  const std::vector<float> logits = {0.0f, std::log(2.0f), std::log(5.0f)};  // 1/8, 2/8, 5/8
  Sampler sampler = make(warm(1));
  std::vector<int> counts(3);
  for (int i = 0; i < 80000; ++i) ++counts[static_cast<std::size_t>(sampler.next(logits))];
  EXPECT_NEAR(counts[0], 10000, 400);
  EXPECT_NEAR(counts[1], 20000, 500);
  EXPECT_NEAR(counts[2], 50000, 600);
}

TEST(Sampler, TopKAndTopPCutTheTail) {
  const std::vector<float> logits = {std::log(1.0f), std::log(4.0f), std::log(3.0f), std::log(2.0f)};
  SamplerOptions options = warm(3);
  options.top_k = 2;
  Sampler two = make(options);
  options = warm(3);
  options.top_p = 0.65f;  // 0.4 + 0.3 reach it
  Sampler likeliest = make(options);
  options.top_p = 0.01f;  // always at least one
  Sampler one = make(options);
  for (int i = 0; i < 500; ++i) {
    for (Sampler* sampler : {&two, &likeliest}) {
      const TokenId token = sampler->next(logits);
      EXPECT_TRUE(token == 1 || token == 2) << token;
    }
    EXPECT_EQ(one.next(logits), 1);
  }
}

TEST(Sampler, RefusesOptionsOutOfRange) {
  SamplerOptions options;
  options.temperature = -1;
  EXPECT_EQ(Sampler::create(options).status().code(), Code::kInvalidArgument);
  options.temperature = NAN;
  EXPECT_EQ(Sampler::create(options).status().code(), Code::kInvalidArgument);
  options = {};
  options.top_p = 0;
  EXPECT_EQ(Sampler::create(options).status().code(), Code::kInvalidArgument);
}

TEST(Sampler, LogProbabilitiesAreSortedAndAddUpToOne) {
  const std::vector<float> logits = {1, 3, 2, 3};
  const auto top = top_log_probabilities(logits, 10);
  ASSERT_EQ(top.size(), 4u);
  EXPECT_EQ(top[0].token, 1);
  EXPECT_EQ(top[1].token, 3);
  EXPECT_EQ(top[2].token, 2);
  double total = 0;
  for (const auto& [token, log_probability] : top) total += std::exp(log_probability);
  EXPECT_NEAR(total, 1, 1e-12);
  EXPECT_EQ(top_log_probabilities(logits, 2).size(), 2u);
}

}  // namespace
}  // namespace firn::llama
