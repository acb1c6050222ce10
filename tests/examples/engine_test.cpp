#include "examples/llama/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine_fixture.h"
#include "examples/llama/sampler.h"
#include "faulty_manager.h"
#include "naive_llama.h"

namespace firn::llama {
namespace {

constexpr std::size_t kPromptTokens = 600;  // more than two splits of attention, and not a whole block

// A prompt in one go, on one thread, with room for everything: what every other way must equal.
Result<std::vector<float>> plain_logits(const std::vector<TokenId>& tokens, const std::string& type = "q4_1") {
  StandOptions options;
  options.path = random_model(type);
  FIRN_ASSIGN(Stand stand, make_stand(options));
  FIRN_ASSIGN(Sequence sequence, stand.engine->begin(tokens));
  FIRN_TRY(run_one(*stand.engine, sequence));
  return copy_logits(sequence);
}

// The tokens that greedy decoding adds.
Result<std::vector<TokenId>> generate(Engine& engine, Sequence& sequence, std::size_t count) {
  FIRN_ASSIGN(Sampler sampler, Sampler::create({}));
  std::vector<TokenId> added;
  while (added.size() < count) {
    FIRN_TRY(run_one(engine, sequence));
    added.push_back(sampler.next(sequence.logits()));
    sequence.push(added.back());
  }
  return added;
}

TEST(Engine, LogitsAreThoseOfTheNaiveModelInEveryNumberFormat) {
  for (const char* type : {"q4_1", "q4_0", "q8_0", "f16", "f32"}) {
    const std::vector<TokenId> tokens = random_tokens(270, 1);
    LLAMA_ASSERT_OK_AND_ASSIGN(const std::vector<float> logits, plain_logits(tokens, type));
    LLAMA_ASSERT_OK_AND_ASSIGN(const Gguf file, Gguf::open(random_model(type)));
    const std::vector<double> naive = naive_logits(file, tokens);
    ASSERT_EQ(logits.size(), naive.size());
    double most = 0, worst = 0;
    for (std::size_t i = 0; i < naive.size(); ++i) {
      most = std::max(most, std::abs(naive[i]));
      worst = std::max(worst, std::abs(naive[i] - static_cast<double>(logits[i])));
    }
    EXPECT_LT(worst, 5e-4 * most) << type;  // f32 against f64; a value near a tie may round to another f16
  }
}

TEST(Engine, LogitsHaveTheSameBitsForEveryStepSizeAndThreadCount) {
  const std::vector<TokenId> tokens = random_tokens(kPromptTokens, 2);
  LLAMA_ASSERT_OK_AND_ASSIGN(const std::vector<float> expected, plain_logits(tokens));
  for (const auto& [step_tokens, threads] : {std::pair{16u, 1u}, {37u, 2u}, {255u, 3u}, {1024u, 2u}}) {
    StandOptions options;
    options.max_step_tokens = step_tokens;
    options.threads = threads;
    LLAMA_ASSERT_OK_AND_ASSIGN(Stand stand, make_stand(options));
    LLAMA_ASSERT_OK_AND_ASSIGN(Sequence sequence, stand.engine->begin(tokens));
    LLAMA_ASSERT_OK(run_one(*stand.engine, sequence));
    EXPECT_EQ(copy_logits(sequence), expected) << step_tokens << " tokens a step, " << threads << " threads";
  }
}

TEST(Engine, TokenByTokenGivesWhatTheWholePromptGives) {
  const std::vector<TokenId> tokens = random_tokens(290, 3);
  LLAMA_ASSERT_OK_AND_ASSIGN(const std::vector<float> expected, plain_logits(tokens));
  LLAMA_ASSERT_OK_AND_ASSIGN(Stand stand, make_stand({}));
  LLAMA_ASSERT_OK_AND_ASSIGN(Sequence sequence, stand.engine->begin(std::span(tokens).first(200)));
  LLAMA_ASSERT_OK(run_one(*stand.engine, sequence));
  for (std::size_t i = 200; i < tokens.size(); ++i) {
    sequence.push(tokens[i]);
    LLAMA_ASSERT_OK(run_one(*stand.engine, sequence));
  }
  EXPECT_EQ(copy_logits(sequence), expected);
  EXPECT_EQ(stand.engine->counters().tokens, 290u);
}

TEST(Engine, AListenerHearsTheLogitsOfEveryTokenWhateverTheSteps) {
  const std::vector<TokenId> tokens = random_tokens(90, 17);
  for (const std::uint32_t step : {16u, 256u}) {
    LLAMA_ASSERT_OK_AND_ASSIGN(Stand stand, make_stand({.max_step_tokens = step}));
    std::vector<std::vector<float>> heard;
    stand.engine->listen(20, [&](const Sequence&, std::size_t position, std::span<const float> logits) {
      EXPECT_EQ(position, 20 + heard.size());
      heard.emplace_back(logits.begin(), logits.end());
    });
    LLAMA_ASSERT_OK_AND_ASSIGN(Sequence sequence, stand.engine->begin(tokens));
    LLAMA_ASSERT_OK(run_one(*stand.engine, sequence));
    ASSERT_EQ(heard.size(), 70u);
    stand.engine->listen(0, {});
    LLAMA_ASSERT_OK_AND_ASSIGN(Sequence alone, stand.engine->begin(std::span(tokens).first(20), {.name_space = "b"}));
    for (std::size_t i = 20; i < tokens.size(); ++i) {
      alone.push(tokens[i]);
      LLAMA_ASSERT_OK(run_one(*stand.engine, alone));
      ASSERT_EQ(copy_logits(alone), heard[i - 20]) << "token " << i << ", steps of " << step;
    }
  }
}

TEST(Engine, SequencesOfDifferentLengthShareStepsWithoutAffectingEachOther) {
  StandOptions options;
  options.max_step_tokens = 64;
  options.threads = 2;
  LLAMA_ASSERT_OK_AND_ASSIGN(Stand stand, make_stand(options));
  std::vector<std::vector<TokenId>> prompts;
  std::vector<Sequence> sequences;
  std::vector<Sequence*> pointers;
  for (const std::size_t length : {5, 130, 33, 64}) {
    prompts.push_back(random_tokens(length, length));
    LLAMA_ASSERT_OK_AND_ASSIGN(Sequence sequence, stand.engine->begin(prompts.back()));
    sequences.push_back(std::move(sequence));
  }
  for (Sequence& sequence : sequences) pointers.push_back(&sequence);
  LLAMA_ASSERT_OK(stand.engine->run(pointers));
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    LLAMA_ASSERT_OK_AND_ASSIGN(const std::vector<float> alone, plain_logits(prompts[i]));
    EXPECT_EQ(copy_logits(sequences[i]), alone) << "sequence " << i;
    sequences[i].push(7);
    prompts[i].push_back(7);
  }
  LLAMA_ASSERT_OK(stand.engine->run(pointers));
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    LLAMA_ASSERT_OK_AND_ASSIGN(const std::vector<float> alone, plain_logits(prompts[i]));
    EXPECT_EQ(copy_logits(sequences[i]), alone) << "sequence " << i << ", one token on";
  }
}

TEST(Engine, APromptThatBeginsAsOneBeforeReusesItsBlocksAndAnswersTheSame) {
  std::vector<TokenId> tokens = random_tokens(kPromptTokens, 4);
  LLAMA_ASSERT_OK_AND_ASSIGN(Stand stand, make_stand({}));
  {
    LLAMA_ASSERT_OK_AND_ASSIGN(Sequence first, stand.engine->begin(tokens));
    LLAMA_ASSERT_OK(run_one(*stand.engine, first));
  }
  tokens.push_back(42);
  LLAMA_ASSERT_OK_AND_ASSIGN(Sequence second, stand.engine->begin(tokens));
  EXPECT_EQ(second.match().tokens, kPromptTokens / kBlockTokens * kBlockTokens);
  EXPECT_EQ(second.pending(), tokens.size() - second.match().tokens);
  LLAMA_ASSERT_OK(run_one(*stand.engine, second));
  LLAMA_ASSERT_OK_AND_ASSIGN(const std::vector<float> expected, plain_logits(tokens));
  EXPECT_EQ(copy_logits(second), expected);
}

// The pool holds a fraction of the sequence: most of its blocks are in the host tier when they are attended.
TEST(Engine, ASequenceLargerThanThePoolAnswersTheSameWithAndWithoutAWorker) {
  const bool gpu = test::test_device() != nullptr;  // a software one, under validation: shorter
  const std::vector<TokenId> tokens = random_tokens(gpu ? 1400 : 2600, 5);
  const std::size_t count = gpu ? 4 : 24;
  StandOptions roomy;
  roomy.pool_bytes = 64 << 20;
  LLAMA_ASSERT_OK_AND_ASSIGN(Stand wide, make_stand(roomy));
  LLAMA_ASSERT_OK_AND_ASSIGN(Sequence all, wide.engine->begin(tokens));
  LLAMA_ASSERT_OK_AND_ASSIGN(const std::vector<TokenId> expected, generate(*wide.engine, all, count));
  for (const bool worker : {false, true}) {
    StandOptions tight;
    tight.pool_bytes = (gpu ? 700 : 1200) << 10;
    tight.host_bytes = 8 << 20;
    tight.max_step_tokens = 32;
    tight.worker = worker;
    LLAMA_ASSERT_OK_AND_ASSIGN(Stand stand, make_stand(tight));
    LLAMA_ASSERT_OK_AND_ASSIGN(Sequence sequence, stand.engine->begin(tokens));
    LLAMA_ASSERT_OK_AND_ASSIGN(const std::vector<TokenId> answer, generate(*stand.engine, sequence, count));
    EXPECT_EQ(answer, expected) << (worker ? "worker" : "pump");
    const Stats stats = stand.manager->stats();
    EXPECT_LT(stats.slots_total * kBlockTokens, tokens.size());
    EXPECT_GT(stats.blocks_staged + stats.blocks_promoted, 0u);
    EXPECT_EQ(stand.manager->verify(), Violations{});
    EXPECT_EQ(stand.engine->counters().recomputed_tokens, 0u);
  }
}

TEST(Engine, AForkAnswersLikeItsOriginAndARewindLikeAFreshStart) {
  const std::vector<TokenId> tokens = random_tokens(100, 6);
  LLAMA_ASSERT_OK_AND_ASSIGN(Stand stand, make_stand({}));
  LLAMA_ASSERT_OK_AND_ASSIGN(Sequence origin, stand.engine->begin(tokens));
  LLAMA_ASSERT_OK(run_one(*stand.engine, origin));
  LLAMA_ASSERT_OK_AND_ASSIGN(Sequence twin, stand.engine->fork(origin));
  EXPECT_EQ(copy_logits(twin), copy_logits(origin));
  for (const TokenId token : {10, 11, 12}) twin.push(token);
  origin.push(20);
  Sequence* const both[] = {&origin, &twin};
  LLAMA_ASSERT_OK(stand.engine->run(both));

  std::vector<TokenId> longer = tokens;
  longer.insert(longer.end(), {10, 11, 12});
  LLAMA_ASSERT_OK_AND_ASSIGN(const std::vector<float> expected, plain_logits(longer));
  EXPECT_EQ(copy_logits(twin), expected);

  LLAMA_ASSERT_OK(origin.rewind(tokens.size()));
  EXPECT_TRUE(origin.logits().empty());
  for (const TokenId token : {10, 11, 12}) origin.push(token);
  LLAMA_ASSERT_OK(run_one(*stand.engine, origin));
  EXPECT_EQ(copy_logits(origin), expected);
  EXPECT_EQ(origin.rewind(0).code(), Code::kInvalidArgument);
  EXPECT_EQ(origin.rewind(1000).code(), Code::kInvalidArgument);
}

TEST(Engine, LostBlocksAreComputedAgainAndTheAnswerIsTheSame) {
  const std::vector<TokenId> tokens = random_tokens(kPromptTokens, 8);
  LLAMA_ASSERT_OK_AND_ASSIGN(const std::vector<float> expected, plain_logits(tokens));
  for (const std::uint32_t usable : {0u, 16u, 200u}) {
    StandOptions options;
    options.max_step_tokens = 100;
    LLAMA_ASSERT_OK_AND_ASSIGN(Stand stand, make_stand(options));
    FaultyManager faulty(*stand.manager);
    Engine engine(*stand.model, faulty, *stand.threads);
    LLAMA_ASSERT_OK_AND_ASSIGN(Sequence sequence, engine.begin(tokens));
    faulty.lose_after(7, usable);  // in the fourth step, with 300 tokens committed, between its two layers
    LLAMA_ASSERT_OK(run_one(engine, sequence));
    EXPECT_EQ(copy_logits(sequence), expected) << "lost from " << usable;
    EXPECT_EQ(faulty.losses(), 1);
    EXPECT_EQ(engine.counters().recomputed_tokens, 300 - usable);
    EXPECT_EQ(stand.manager->verify(), Violations{});
  }
}

TEST(Engine, ALossThatTookNothingIsReportedInsteadOfRetriedForEver) {
  LLAMA_ASSERT_OK_AND_ASSIGN(Stand stand, make_stand({}));
  FaultyManager faulty(*stand.manager);
  Engine engine(*stand.model, faulty, *stand.threads);
  LLAMA_ASSERT_OK_AND_ASSIGN(Sequence sequence, engine.begin(random_tokens(50, 9)));
  faulty.lose_after(0, 10000);
  EXPECT_EQ(run_one(engine, sequence).code(), Code::kCorrupt);
}

TEST(Engine, RefusesTokensItCannotRun) {
  LLAMA_ASSERT_OK_AND_ASSIGN(Stand stand, make_stand({}));
  const auto refused = [&](const std::vector<TokenId>& tokens) { return stand.engine->begin(tokens).status(); };
  EXPECT_EQ(refused({}).code(), Code::kInvalidArgument);
  EXPECT_NE(refused({1, -1}).message().find("token 1 is -1"), std::string::npos);
  EXPECT_EQ(refused({100000}).code(), Code::kInvalidArgument);
  EXPECT_NE(refused(std::vector<TokenId>(8193, 5)).message().find("context is 8192"), std::string::npos);
  LLAMA_ASSERT_OK_AND_ASSIGN(Sequence sequence, stand.engine->begin(random_tokens(4, 1)));
  sequence.push(-7);
  EXPECT_EQ(run_one(*stand.engine, sequence).code(), Code::kInvalidArgument);
}

TEST(Engine, SaysSoWhenLiveSequencesFillThePool) {
  StandOptions options;
  options.pool_bytes = (test::test_device() != nullptr ? 700 : 1200) << 10;  // no host tier below
  options.max_step_tokens = 32;
  LLAMA_ASSERT_OK_AND_ASSIGN(Stand stand, make_stand(options));
  LLAMA_ASSERT_OK_AND_ASSIGN(Sequence sequence, stand.engine->begin(random_tokens(4000, 1)));
  const Status status = run_one(*stand.engine, sequence);
  EXPECT_EQ(status.code(), Code::kNoSpace) << status.message();
  EXPECT_GT(sequence.committed(), 0u);
  EXPECT_EQ(stand.manager->verify(), Violations{});
}

TEST(Engine, FlippedWeightsGiveNumbersOrAnErrorButNoCrash) {
  const std::vector<std::byte> whole = read_bytes(random_model("q4_1"));
  const std::vector<TokenId> tokens = random_tokens(20, 7);
  LLAMA_ASSERT_OK_AND_ASSIGN(const Gguf intact, Gguf::parse(whole, "whole.gguf"));
  const std::size_t norm =
      static_cast<std::size_t>(intact.find_tensor("output_norm.weight")->data.data() - whole.data());
  int failed = 0;
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    Random random(seed);
    std::vector<std::byte> flipped = whole;
    for (int i = 0; i < 200; ++i)
      flipped[whole.size() / 2 + random.below(whole.size() / 2)] ^= static_cast<std::byte>(1 << random.below(8));
    if (seed % 2 == 0) {  // a NaN on the way to every logit
      const float nan = NAN;
      std::memcpy(&flipped[norm], &nan, 4);
    }
    LLAMA_ASSERT_OK_AND_ASSIGN(Gguf file, Gguf::parse(flipped, "flipped.gguf"));
    LLAMA_ASSERT_OK_AND_ASSIGN(const Model model, Model::load(std::move(file)));
    ThreadPool threads(1);
    Config config;
    config.device = "cpu";
    config.pool.budget_bytes = 8 << 20;
    config.mover.worker = false;
    Manager::Environment environment;
    environment.threads = &threads;
    LLAMA_ASSERT_OK_AND_ASSIGN(const auto manager, Manager::create(config, model.spec(), environment));
    Engine engine(model, *manager, threads);
    LLAMA_ASSERT_OK_AND_ASSIGN(Sequence sequence, engine.begin(tokens));
    const Status status = run_one(engine, sequence);
    EXPECT_TRUE(status.ok() || status.message().find("not finite") != std::string::npos) << status.message();
    failed += !status.ok();
  }
  EXPECT_GE(failed, 6);
}

}  // namespace
}  // namespace firn::llama
