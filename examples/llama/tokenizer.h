// tokenizer.h: byte-level BPE from the vocabulary and merges inside a GGUF ("gpt2" model, "smollm" pre-tokenizer).
// Text becomes tokens in three steps: cut out special tokens; split the rest into words (every digit alone, then the
// GPT-2 pattern); inside each word, merge the adjacent pair of lowest rank until none is left. Threads:  const calls
// from any thread. Memory:   copies what it needs; the Gguf may go away afterwards.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "examples/llama/gguf.h"
#include "firn/key.h"
#include "firn/status.h"

namespace firn::llama {

inline constexpr std::size_t kMaxVocabulary = 1 << 20, kMaxWordBytes = 1 << 16;

// What "<|im_end|>" in a text means. Text from people is kPlain: what they type must not end their own turn.
enum class Specials { kPlain, kParse };

class Tokenizer {
 public:
  static Result<Tokenizer> create(const Gguf& file);

  std::size_t vocabulary_size() const { return pieces_.size(); }
  TokenId end_of_sequence() const { return end_of_sequence_; }
  // The special token of exactly this text, such as "<|im_start|>".
  Result<TokenId> special(std::string_view text) const;

  // kInvalidArgument names the offset of a byte that the vocabulary cannot spell (a few control bytes and bytes that
  // never occur in UTF-8); it is not dropped silently, since the answer would then be to another question.
  Result<std::vector<TokenId>> encode(std::string_view text, Specials specials = Specials::kPlain) const;

  // The bytes of a token; part of a UTF-8 character, at times. Special tokens give their name. TokenId <
  // vocabulary_size().
  std::string_view piece(TokenId token) const;
  std::string decode(std::span<const TokenId> tokens) const;

 private:
  struct Merge {
    std::uint32_t rank = 0;
    TokenId merged = 0;
  };

  Tokenizer() = default;
  Status read_vocabulary(const Gguf& file);
  Status read_merges(const Gguf& file);
  Status encode_plain(std::string_view text, std::size_t offset, std::vector<TokenId>& out) const;
  Status encode_word(std::string_view word, std::size_t offset, std::vector<TokenId>& out) const;
  // The longest special token at the start of text; its length is 0 if there is none.
  std::pair<TokenId, std::size_t> special_at(std::string_view text) const;

  std::vector<std::string> pieces_;  // bytes of each token
  std::array<TokenId, 256> byte_tokens_{};
  std::unordered_map<std::uint64_t, Merge> merges_;  // by left token << 32 | right token
  std::vector<TokenId> specials_;                    // longest first
  TokenId end_of_sequence_ = 0;
};

// A text cut into the words that BPE never merges across. Exposed for its own tests.
std::vector<std::string_view> split_words(std::string_view text);

struct ChatMessage {
  std::string_view role, content;  // "system", "user" or "assistant"
};
// SmolLM2's own chat template, up to where the assistant begins to speak. A conversation that does not begin with a
// system message gets the one the model was trained with. Contents are plain text whatever they contain.
Result<std::vector<TokenId>> encode_chat(const Tokenizer& tokenizer, std::span<const ChatMessage> messages);

}  // namespace firn::llama
