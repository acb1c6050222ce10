// budgets_test.cpp: what a model says does not depend on how much memory its cache was given, nor on who moves the
// blocks.
//
// Three documents, four pool budgets (the smallest holds about 500 tokens raw), the mover as a thread and as pump():
// every run must generate the same tokens as the run that had room for everything. The sizes are small enough for every
// test run; FIRN_FULL_MATRIX=1 takes 3,000 tokens of each document and generates 256. --device lavapipe runs it on a
// software GPU under validation, shorter.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>

#include "examples/llama/engine.h"
#include "examples/llama/sampler.h"
#include "examples/llama/tokenizer.h"
#include "tests/device/test_device.h"

namespace firn::llama {
namespace {

constexpr std::uint64_t kMiB = 1u << 20;

struct Sizes {
  std::size_t prompt_tokens, generated;
};

Sizes sizes() {
  if (test::test_device() != nullptr) return {560, 4};  // a software GPU under validation: just more than fits
  const char* full = std::getenv("FIRN_FULL_MATRIX");
  return full != nullptr && *full == '1' ? Sizes{3000, 256} : Sizes{1100, 16};
}

std::string model_path() {
  const char* path = std::getenv("FIRN_SMOLLM2_GGUF");
  return path != nullptr && std::ifstream(path).good() ? path : "";
}

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

struct Generation {
  std::vector<TokenId> tokens;
  double ms_per_token = 0;
  Stats stats;
};

Result<Generation> generate(const Model& model, ThreadPool& threads, std::span<const TokenId> prompt,
                            std::uint64_t pool_bytes, bool worker, std::size_t count) {
  Config config;
  config.pool.budget_bytes = pool_bytes;
  config.host.budget_bytes = 256 * kMiB;
  config.mover.worker = worker;
  FIRN_ASSIGN(const std::unique_ptr<Manager> manager,
              Manager::create(config, model.spec(), {.threads = &threads, .device = test::test_device(), .clock = {}}));
  Engine engine(model, *manager, threads);
  FIRN_ASSIGN(Sequence sequence, engine.begin(prompt));
  FIRN_ASSIGN(Sampler sampler, Sampler::create({}));
  Sequence* sequences[] = {&sequence};
  FIRN_TRY(engine.run(sequences));
  Generation run;
  const auto start = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < count; ++i) {
    run.tokens.push_back(sampler.next(sequence.logits()));
    sequence.push(run.tokens.back());
    FIRN_TRY(engine.run(sequences));
  }
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  run.ms_per_token = took.count() / static_cast<double>(count);
  run.stats = manager->stats();
  const Violations broken = manager->verify();
  if (!broken.empty()) return Status(Code::kCorrupt, broken.front());
  return run;
}

TEST(Budgets, GenerateTheSameTokensWhateverThePoolHoldsAndWhoeverMoves) {
  if (model_path().empty()) GTEST_SKIP() << "needs a model: set FIRN_SMOLLM2_GGUF to SmolLM2-135M-Instruct.Q4_1.gguf";
  Result<Model> model = Model::load(model_path());
  ASSERT_TRUE(model.ok()) << model.status().message();
  Result<Tokenizer> tokenizer = Tokenizer::create(model->file());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  ThreadPool threads;
  const Sizes size = sizes();
  for (const std::string document : {"opticks", "persuasion", "moby"}) {
    if (test::test_device() != nullptr && document != "opticks") continue;
    const Result<std::vector<TokenId>> tokens =
        tokenizer->encode(read_file(FIRN_SOURCE_DIR "/examples/texts/" + document + ".txt"));
    ASSERT_TRUE(tokens.ok()) << tokens.status().message();
    ASSERT_GE(tokens->size(), size.prompt_tokens) << document;
    const std::span<const TokenId> prompt = std::span(*tokens).first(size.prompt_tokens);
    const std::uint64_t everything =
        (size.prompt_tokens + size.generated + 64) * model->spec().token_bytes() + 32 * kMiB;
    Result<Generation> reference = generate(*model, threads, prompt, everything, true, size.generated);
    ASSERT_TRUE(reference.ok()) << reference.status().message();
    EXPECT_EQ(reference->stats.blocks_staged, 0u) << "the reference never needed a cold block";
    fmt::print("{:10} {:>10} {:7} {:6.1f} ms/token\n", document, "everything", "threads", reference->ms_per_token);
    for (const std::uint64_t budget : {16 * kMiB, 24 * kMiB, 64 * kMiB, everything})
      for (const bool worker : {true, false}) {
        if (budget == everything && worker) continue;  // the reference
        if (test::test_device() != nullptr && budget != 16 * kMiB) continue;
        const Result<Generation> run = generate(*model, threads, prompt, budget, worker, size.generated);
        ASSERT_TRUE(run.ok()) << document << ", " << budget << " bytes: " << run.status().message();
        EXPECT_EQ(run->tokens, reference->tokens) << document << ", " << budget << " bytes, worker " << worker;
        if (prompt.size() * model->spec().token_bytes() > budget) {
          EXPECT_GT(run->stats.blocks_staged, 0u) << "this budget was meant to be too small";
        }
        fmt::print("{:10} {:>10} {:7} {:6.1f} ms/token, {} layer blocks staged\n", document,
                   budget == everything ? "everything" : format_bytes(budget), worker ? "threads" : "pump",
                   run->ms_per_token, run->stats.blocks_staged);
        std::fflush(stdout);
      }
  }
}

}  // namespace
}  // namespace firn::llama
