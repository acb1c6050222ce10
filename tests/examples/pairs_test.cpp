// Two parts of a file that speak of one size: the numbers beside the tensors, the tokenizer beside the embedding. Every
// number of a good file is changed; what comes of it is refused, or runs and says only tokens that there are.
#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "engine_fixture.h"
#include "examples/llama/sampler.h"
#include "examples/llama/tokenizer.h"

namespace firn::llama {
namespace {

// The place of a 32-bit number, by its key.
std::size_t place_of(const std::vector<std::byte>& file, const std::string& key) {
  std::vector<std::byte> wanted(8 + key.size());
  const std::uint64_t length = key.size();
  std::memcpy(wanted.data(), &length, 8);
  std::memcpy(wanted.data() + 8, key.data(), key.size());
  const auto found = std::search(file.begin(), file.end(), wanted.begin(), wanted.end());
  EXPECT_NE(found, file.end()) << key;
  return static_cast<std::size_t>(found - file.begin()) + wanted.size() + 4;  // behind the type
}

// Loads it, answers a little. True: it was good.
bool answers(const std::vector<std::byte>& file) {
  Result<Gguf> parsed = Gguf::parse(file, "changed");
  if (!parsed.ok()) return false;
  const Result<Tokenizer> tokenizer = Tokenizer::create(*parsed);
  Result<Model> model = Model::load(std::move(*parsed));
  if (!tokenizer.ok() || !model.ok()) return false;
  EXPECT_LE(tokenizer->vocabulary_size(), model->geometry().vocabulary);
  EXPECT_EQ(tokenizer->vocabulary_size(), model->geometry().tokens);
  ThreadPool threads(1);
  Config config;
  config.device = "cpu";
  config.pool.budget_bytes = 16 << 20;
  Manager::Environment environment;
  environment.threads = &threads;
  const Result<std::unique_ptr<Manager>> manager = Manager::create(config, model->spec(), environment);
  if (!manager.ok()) return false;
  Engine engine(*model, **manager, threads);
  const Result<std::vector<TokenId>> prompt = tokenizer->encode("a cold block");
  EXPECT_TRUE(prompt.ok());
  Result<Sequence> sequence = engine.begin(*prompt);
  if (!sequence.ok()) return false;
  Sampler sampler = Sampler::create({.temperature = 50, .top_k = 0, .seed = 3}).value();
  for (int i = 0; i < 20; ++i) {
    if (!run_one(engine, *sequence).ok()) return false;
    EXPECT_EQ(sequence->logits().size(), tokenizer->vocabulary_size());
    const TokenId token = sampler.next(sequence->logits());
    EXPECT_LE(tokenizer->piece(token).size(), 64u);
    sequence->push(token);
  }
  return true;
}

TEST(Pairs, NumbersThatDoNotFitTheTensorsAreRefusedOrDoNoHarm) {
  const std::vector<std::byte> good = read_bytes(random_model("q4_1"));
  ASSERT_TRUE(answers(good));
  std::size_t refused = 0, ran = 0;
  for (const char* key :
       {"llama.block_count", "llama.context_length", "llama.embedding_length", "llama.feed_forward_length",
        "llama.attention.head_count", "llama.attention.head_count_kv", "llama.attention.key_length",
        "llama.rope.dimension_count", "llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"}) {
    const std::size_t at = place_of(good, key);
    std::uint32_t value = 0;
    std::memcpy(&value, &good[at], 4);
    const std::set<std::uint32_t> others = {
        0,          1,  value - 1, value + 1, value / 2,   value * 2, 63,
        64,         65, 1u << 16,  1u << 20,  0x7fffffffu, ~0u,       0x7f800000u /* infinity */,
        0x7fc00000u /* NaN */};
    for (const std::uint32_t other : others) {
      std::vector<std::byte> changed = good;
      std::memcpy(&changed[at], &other, 4);
      answers(changed) ? ++ran : ++refused;
    }
  }
  EXPECT_GT(refused, 80u);
  EXPECT_GT(ran, 10u) << "a smaller context, another end: these are good files";
}

// The number of elements of an array, and of rows of a tensor.
TEST(Pairs, ATokenizerAndAnEmbeddingOfDifferentSizesAreCompared) {
  const std::vector<std::byte> good = read_bytes(random_model("q4_1"));
  const Result<Gguf> parsed = Gguf::parse(good, "good");
  ASSERT_TRUE(parsed.ok());
  const std::size_t rows = parsed->find_tensor("token_embd.weight")->rows;
  const std::size_t at = place_of(good, "token_embd.weight") - 4 + 4 + 8;  // dimensions, columns, then rows
  std::uint64_t found = 0;
  std::memcpy(&found, &good[at], 8);
  ASSERT_EQ(found, rows);
  for (const std::uint64_t other : {rows - 1, rows / 2, std::size_t{1}}) {
    std::vector<std::byte> changed = good;
    std::memcpy(&changed[at], &other, 8);
    EXPECT_FALSE(answers(changed)) << other;
    const Result<Model> model = Model::load(Gguf::parse(changed, "changed").value());
    ASSERT_FALSE(model.ok());
    EXPECT_EQ(model.status().code(), Code::kCorrupt);
    EXPECT_NE(model.status().message().find("each token needs one"), std::string::npos) << model.status().message();
  }
}

}  // namespace
}  // namespace firn::llama
