#include "examples/llama/tokenizer.h"

#include "llama_test_util.h"

namespace firn::llama {
namespace {

using Words = std::vector<std::string_view>;

Result<Tokenizer> open_tokenizer() {
  FIRN_ASSIGN(const Gguf file, Gguf::open(random_model("q4_1")));
  return Tokenizer::create(file);
}

TEST(Tokenizer, WordsFollowThePatternWithEveryDigitAlone) {
  EXPECT_EQ(split_words("Hello, world!"), (Words{"Hello", ",", " world", "!"}));
  EXPECT_EQ(split_words("a 12 b3c"), (Words{"a", " ", "1", "2", " b", "3", "c"}));
  EXPECT_EQ(split_words("a  5"), (Words{"a", "  ", "5"}));
  EXPECT_EQ(split_words("  two  spaces "), (Words{" ", " two", " ", " spaces", " "}));
  EXPECT_EQ(split_words("x\n\n y"), (Words{"x", "\n\n", " y"}));
  EXPECT_EQ(split_words("x \n\ty"), (Words{"x", " \n", "\t", "y"}));
  EXPECT_EQ(split_words("I'll don't 'S"), (Words{"I", "'ll", " don", "'t", " '", "S"}));
  EXPECT_EQ(split_words("''s"), (Words{"''", "s"}));
  EXPECT_EQ(split_words("\u00c6 \u65e5\u672c\uff01 \u00bd"),
            (Words{"\u00c6", " \u65e5\u672c", "\uff01", " ", "\u00bd"}));
  EXPECT_EQ(split_words("e\u0301"), (Words{"e", "\u0301"}));
  EXPECT_EQ(split_words(""), Words{});
}

TEST(Tokenizer, WordsOfAnyBytesAddUpToTheText) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed);
    std::string text(random.below(80), ' ');
    for (char& c : text)
      c = static_cast<char>(random.below(4) == 0 ? random.below(256) : " a1'\n\xc3\xa9"[random.below(7)]);
    std::string joined;
    for (const std::string_view word : split_words(text)) {
      EXPECT_FALSE(word.empty()) << "seed " << seed;
      joined += word;
    }
    EXPECT_EQ(joined, text) << "seed " << seed;
  }
}

TEST(Tokenizer, MergesLowestRankFirst) {
  LLAMA_ASSERT_OK_AND_ASSIGN(const Tokenizer tokenizer, open_tokenizer());
  LLAMA_ASSERT_OK_AND_ASSIGN(const auto tokens, tokenizer.encode("the cold block firn"));
  std::vector<std::string> pieces;
  for (const TokenId token : tokens) pieces.emplace_back(tokenizer.piece(token));
  // "h e" is rank 1, and "t he" is no merge: only " t he" is. In " cold", " c" comes before "l d", "o ld" and " c old".
  EXPECT_EQ(pieces, (std::vector<std::string>{"t", "he", " cold", " block", " firn"}));
}

TEST(Tokenizer, EveryTextComesBackByteForByte) {
  LLAMA_ASSERT_OK_AND_ASSIGN(const Tokenizer tokenizer, open_tokenizer());
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed);
    std::string text(random.below(200), ' ');
    for (char& c : text)
      c = static_cast<char>(random.below(2) == 0 ? random.below(256) : "the cold block"[random.below(14)]);
    LLAMA_ASSERT_OK_AND_ASSIGN(const auto tokens, tokenizer.encode(text));
    EXPECT_EQ(tokenizer.decode(tokens), text) << "seed " << seed;
  }
  for (const char* name : {"opticks.txt", "persuasion.txt", "moby.txt"}) {
    const std::string text = read_text(FIRN_SOURCE_DIR "/examples/texts/" + std::string(name));
    LLAMA_ASSERT_OK_AND_ASSIGN(const auto tokens, tokenizer.encode(text));
    EXPECT_EQ(tokenizer.decode(tokens), text) << name;
  }
}

TEST(Tokenizer, SpecialTokensAreParsedOnlyWhenAskedFor) {
  LLAMA_ASSERT_OK_AND_ASSIGN(const Tokenizer tokenizer, open_tokenizer());
  LLAMA_ASSERT_OK_AND_ASSIGN(const TokenId end, tokenizer.special("<|im_end|>"));
  EXPECT_EQ(end, tokenizer.end_of_sequence());
  LLAMA_ASSERT_OK_AND_ASSIGN(const auto parsed, tokenizer.encode("a<|im_end|>b<|im_end", Specials::kParse));
  EXPECT_EQ(std::count(parsed.begin(), parsed.end(), end), 1);
  EXPECT_EQ(parsed[1], end);
  LLAMA_ASSERT_OK_AND_ASSIGN(const auto plain, tokenizer.encode("a<|im_end|>b"));
  EXPECT_EQ(std::count(plain.begin(), plain.end(), end), 0);
  EXPECT_EQ(tokenizer.decode(plain), "a<|im_end|>b");
  EXPECT_EQ(tokenizer.special("<|im_en").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(tokenizer.special("").status().code(), Code::kInvalidArgument);
}

TEST(Tokenizer, AChatFollowsTheModelsTemplateAndContentCannotEndATurn) {
  LLAMA_ASSERT_OK_AND_ASSIGN(const Tokenizer tokenizer, open_tokenizer());
  const ChatMessage messages[] = {{"user", "hi<|im_end|>"}};
  LLAMA_ASSERT_OK_AND_ASSIGN(const auto tokens, encode_chat(tokenizer, messages));
  EXPECT_EQ(tokenizer.decode(tokens),
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nhi<|im_end|><|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), tokenizer.end_of_sequence()), 2) << "the typed one is plain text";

  const ChatMessage own_system[] = {{"system", "s"}, {"user", "u"}};
  LLAMA_ASSERT_OK_AND_ASSIGN(const auto own, encode_chat(tokenizer, own_system));
  EXPECT_EQ(tokenizer.decode(own),
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n");
}

TEST(Tokenizer, AWordWithoutEndIsRefusedAndALongOneIsQuick) {
  LLAMA_ASSERT_OK_AND_ASSIGN(const Tokenizer tokenizer, open_tokenizer());
  LLAMA_ASSERT_OK_AND_ASSIGN(const auto tokens, tokenizer.encode(std::string(kMaxWordBytes, 'l')));
  EXPECT_EQ(tokens.size(), kMaxWordBytes / 2);
  const Status refused = tokenizer.encode("ok " + std::string(kMaxWordBytes, 'l')).status();
  EXPECT_EQ(refused.code(), Code::kInvalidArgument);
  EXPECT_NE(refused.message().find("text byte 2"), std::string::npos) << refused.message();
}

}  // namespace
}  // namespace firn::llama
