// SmolLM2-135M-Instruct itself. The golden token ids are llama.cpp's.
#include <algorithm>
#include <cmath>

#include "engine_fixture.h"
#include "examples/llama/sampler.h"
#include "examples/llama/tokenizer.h"
#include "naive_llama.h"

namespace firn::llama {
namespace {

TEST(SmolLm2, TokenIdsAreThoseOfLlamaCpp) {
  LLAMA_SKIP_WITHOUT_SMOLLM2();
  const std::pair<std::string_view, std::vector<TokenId>> golden[] = {
      {"Hello, world!", {19556, 28, 905, 17}},
      {"  two  spaces \n\n\tand tabs", {216, 827, 216, 5600, 38028, 197, 397, 29416}},
      {"I'll don't we've 'S o'clock", {57, 3060, 1326, 982, 392, 3543, 637, 67, 263, 23, 17466}},
      {"1234 5 67.89 3rd x2y \u00b2\u00bd\u2167 \u0663\u0664",
       {33,   34, 35,  36,  216,   37,    216, 38,  39,  30,  40,  41,  216, 35, 7212,
        1792, 34, 105, 216, 19133, 16738, 173, 223, 117, 216, 164, 113, 164, 114}},
      {"\u00dcn\u00efc\u00f6d\u00e9 \u00c6quations", {142, 246, 94, 25972, 83, 7466, 84, 2756, 44741, 385, 491}},
      {"\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3001\u4e2d\u6587\u3002",
       {23274, 115, 40993, 179, 120, 248, 26453, 11100, 224, 10391, 251, 10391, 134, 11100, 226, 29917, 28589, 29184,
        19076}},
      {"\U0001f44d\U0001f3fd e\u0301 \u00a0nbsp\u3000wide",
       {10813, 235, 231, 10813, 233, 138, 297, 151, 219, 216, 15442, 94, 32093, 12109, 218, 3641}},
      {"<|im_start|>user\nhi<|im_end|>\n", {1, 4093, 198, 6004, 2, 198}},
      {"def f(x):\n    return x**2  # comment\n",
       {1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 216, 907, 5189, 198}},
      {"price: $3,000.50 (50%)", {17517, 42, 1885, 35, 28, 32, 32, 32, 30, 37, 32, 365, 37, 32, 8402}},
  };
  LLAMA_ASSERT_OK_AND_ASSIGN(const Gguf file, Gguf::open(smollm2_path()));
  LLAMA_ASSERT_OK_AND_ASSIGN(const Tokenizer tokenizer, Tokenizer::create(file));
  for (const auto& [text, ids] : golden) {
    LLAMA_ASSERT_OK_AND_ASSIGN(const auto tokens, tokenizer.encode(text, Specials::kParse));
    EXPECT_EQ(tokens, ids) << text;
    EXPECT_EQ(tokenizer.decode(tokens), text);
  }
  const ChatMessage messages[] = {{"user", "What is ice?"}};
  LLAMA_ASSERT_OK_AND_ASSIGN(const auto chat, encode_chat(tokenizer, messages));
  EXPECT_EQ(chat, (std::vector<TokenId>{1,     9690, 198,  2683, 359, 253,   5356, 5646, 11173, 3365, 3511, 308,
                                        34519, 28,   7018, 411,  407, 19712, 8182, 2,    198,   1,    4093, 198,
                                        1780,  314,  3908, 47,   2,   198,   1,    520,  9531,  198}));
}

TEST(SmolLm2, ABytewithoutATokenIsAnErrorThatNamesItsPlace) {
  LLAMA_SKIP_WITHOUT_SMOLLM2();
  LLAMA_ASSERT_OK_AND_ASSIGN(const Gguf file, Gguf::open(smollm2_path()));
  LLAMA_ASSERT_OK_AND_ASSIGN(const Tokenizer tokenizer, Tokenizer::create(file));
  const Status status = tokenizer.encode("ice \x04 snow").status();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("text byte 4: the model's vocabulary has no token for byte 0x04"), std::string::npos)
      << status.message();
}

TEST(SmolLm2, ShippedDocumentsComeBackByteForByteAndAreLongEnough) {
  LLAMA_SKIP_WITHOUT_SMOLLM2();
  LLAMA_ASSERT_OK_AND_ASSIGN(const Gguf file, Gguf::open(smollm2_path()));
  LLAMA_ASSERT_OK_AND_ASSIGN(const Tokenizer tokenizer, Tokenizer::create(file));
  for (const char* name : {"opticks.txt", "persuasion.txt", "moby.txt"}) {
    const std::string text = read_text(FIRN_SOURCE_DIR "/examples/texts/" + std::string(name));
    LLAMA_ASSERT_OK_AND_ASSIGN(const auto tokens, tokenizer.encode(text));
    EXPECT_EQ(tokenizer.decode(tokens), text) << name;
    EXPECT_GE(tokens.size(), 3000u) << name;
  }
}

TEST(SmolLm2, LogitsAreThoseOfTheNaiveModel) {
  LLAMA_SKIP_WITHOUT_SMOLLM2();
  StandOptions options;
  options.path = smollm2_path();
  options.pool_bytes = 64 << 20;
  LLAMA_ASSERT_OK_AND_ASSIGN(Stand stand, make_stand(options));
  LLAMA_ASSERT_OK_AND_ASSIGN(const Tokenizer tokenizer, Tokenizer::create(stand.model->file()));
  LLAMA_ASSERT_OK_AND_ASSIGN(const auto tokens,
                             tokenizer.encode("Firn is snow that has been pressed by its own weight"));
  LLAMA_ASSERT_OK_AND_ASSIGN(Sequence sequence, stand.engine->begin(tokens));
  LLAMA_ASSERT_OK(run_one(*stand.engine, sequence));
  const std::vector<double> naive = naive_logits(stand.model->file(), tokens);
  double worst = 0;
  for (std::size_t i = 0; i < naive.size(); ++i)
    worst = std::max(worst, std::abs(naive[i] - static_cast<double>(sequence.logits()[i])));
  EXPECT_LT(worst, 0.01);
}

// What a person would check first.
TEST(SmolLm2, KnowsTheCapitalOfFranceInAnyChunkingAndOnAnyThreads) {
  LLAMA_SKIP_WITHOUT_SMOLLM2();
  std::vector<float> first;
  for (const auto& [step_tokens, threads] : {std::pair{256u, 1u}, {16u, 2u}}) {
    StandOptions options;
    options.path = smollm2_path();
    options.pool_bytes = 64 << 20;
    options.max_step_tokens = step_tokens;
    options.threads = threads;
    LLAMA_ASSERT_OK_AND_ASSIGN(Stand stand, make_stand(options));
    LLAMA_ASSERT_OK_AND_ASSIGN(const Tokenizer tokenizer, Tokenizer::create(stand.model->file()));
    const ChatMessage messages[] = {{"user", "What is the capital of France?"}};
    LLAMA_ASSERT_OK_AND_ASSIGN(const auto tokens, encode_chat(tokenizer, messages));
    LLAMA_ASSERT_OK_AND_ASSIGN(Sequence sequence, stand.engine->begin(tokens));
    LLAMA_ASSERT_OK_AND_ASSIGN(Sampler sampler, Sampler::create({}));
    std::string answer;
    std::vector<float> last;
    for (int i = 0; i < 12; ++i) {
      LLAMA_ASSERT_OK(run_one(*stand.engine, sequence));
      const TokenId token = sampler.next(sequence.logits());
      if (token == tokenizer.end_of_sequence()) break;
      answer += tokenizer.piece(token);
      last = copy_logits(sequence);
      sequence.push(token);
    }
    EXPECT_NE(answer.find("Paris"), std::string::npos) << answer;
    if (first.empty()) first = last;
    EXPECT_EQ(last, first) << step_tokens << " tokens a step, " << threads << " threads";
  }
}

}  // namespace
}  // namespace firn::llama
