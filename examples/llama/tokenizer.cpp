#include "examples/llama/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <queue>

#include "examples/llama/check.h"
#include "examples/llama/unicode.h"

namespace firn::llama {
namespace {

constexpr TokenId kNoToken = -1;
constexpr std::int64_t kControlType = 3, kUserDefinedType = 4;  // tokenizer.ggml.token_type

constexpr std::uint64_t pair_key(TokenId left, TokenId right) {
  return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
}

// GPT-2 writes bytes as printable characters: those that print stand for themselves, the others, in order, for U+0100
// on.
bool prints_as_itself(unsigned byte) { return (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173); }

// The byte that each of those characters stands for.
std::array<int, 512> make_byte_of_character() {
  std::array<int, 512> byte_of{};
  byte_of.fill(-1);
  unsigned next = 256;
  for (int byte = 0; byte < 256; ++byte)
    byte_of[prints_as_itself(static_cast<unsigned>(byte)) ? static_cast<unsigned>(byte) : next++] = byte;
  return byte_of;
}

// From the printable spelling to the bytes; false if some character stands for no byte.
bool spelling_to_bytes(std::string_view spelling, std::string& bytes) {
  static const std::array<int, 512> kByteOf = make_byte_of_character();
  bytes.clear();
  while (!spelling.empty()) {
    const CodePoint c = decode_utf8(spelling);
    if (c.value >= kByteOf.size() || kByteOf[c.value] < 0) return false;
    bytes.push_back(static_cast<char>(kByteOf[c.value]));
    spelling.remove_prefix(c.bytes);
  }
  return true;
}

enum class Class { kEnd, kLetter, kNumber, kSpace, kOther };

// Reads a text one classified character at a time; at the end it keeps answering kEnd.
struct Reader {
  std::string_view rest;

  CodePoint peek() const { return rest.empty() ? CodePoint{kNotText, 0} : decode_utf8(rest); }
  Class next_class() const {
    if (rest.empty()) return Class::kEnd;
    const std::uint32_t c = decode_utf8(rest).value;
    return is_letter(c)       ? Class::kLetter
           : is_number(c)     ? Class::kNumber
           : is_whitespace(c) ? Class::kSpace
                              : Class::kOther;
  }
  void skip() { rest.remove_prefix(peek().bytes); }
  void skip_all(Class wanted) {
    while (next_class() == wanted) skip();
  }
};

// 's 't 're 've 'm 'll 'd, in this order; 0 if none is next.
std::size_t contraction_bytes(std::string_view text) {
  for (const std::string_view ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
    if (text.substr(0, ending.size()) == ending) return ending.size();
  return 0;
}

// Bytes of the first word of a text that holds no number:  's|'t|... | ?\p{L}+ | ?[^\s\p{L}\p{N}]+ |\s+(?!\S)|\s+
std::size_t word_bytes(std::string_view text) {
  if (const std::size_t bytes = contraction_bytes(text)) return bytes;
  Reader reader{text};
  if (reader.next_class() == Class::kSpace) {
    Reader after{text};
    after.skip();
    const bool joins = text[0] == ' ' && (after.next_class() == Class::kLetter || after.next_class() == Class::kOther);
    if (!joins) {  // a run of spaces, which leaves its last one to the word that follows
      std::size_t last = 0, count = 0;
      for (; reader.next_class() == Class::kSpace; ++count) {
        last = text.size() - reader.rest.size();
        reader.skip();
      }
      return reader.rest.empty() || count == 1 ? text.size() - reader.rest.size() : last;
    }
    reader = after;
  }
  reader.skip_all(reader.next_class());
  return text.size() - reader.rest.size();
}

void split_without_numbers(std::string_view text, std::vector<std::string_view>& words) {
  while (!text.empty()) {
    const std::size_t bytes = word_bytes(text);
    words.push_back(text.substr(0, bytes));
    text.remove_prefix(bytes);
  }
}

}  // namespace

std::vector<std::string_view> split_words(std::string_view text) {
  std::vector<std::string_view> words;
  std::size_t start = 0;
  for (Reader reader{text}; !reader.rest.empty();) {
    const std::size_t at = text.size() - reader.rest.size();
    const bool number = reader.next_class() == Class::kNumber;
    reader.skip();
    if (!number) continue;
    // The pattern sees only what lies between numbers, so "a  5" gives "a", two spaces, "5".
    split_without_numbers(text.substr(start, at - start), words);
    start = text.size() - reader.rest.size();
    words.push_back(text.substr(at, start - at));
  }
  split_without_numbers(text.substr(start), words);
  return words;
}

Result<Tokenizer> Tokenizer::create(const Gguf& file) {
  FIRN_ASSIGN(const auto model, file.string_value("tokenizer.ggml.model"));
  FIRN_ASSIGN(const auto pre, file.string_value("tokenizer.ggml.pre"));
  if (model != "gpt2" || pre != "smollm")
    return Status(Code::kInvalidArgument,
                  fmt::format("{}: tokenizer '{}' with pre-tokenizer '{}'; this engine knows 'gpt2' with 'smollm'",
                              file.name(), model, pre));
  Tokenizer tokenizer;
  FIRN_TRY(tokenizer.read_vocabulary(file));
  FIRN_TRY(tokenizer.read_merges(file));
  FIRN_ASSIGN(const auto end, file.unsigned_value("tokenizer.ggml.eos_token_id"));
  if (end >= tokenizer.vocabulary_size())
    return Status(Code::kCorrupt, fmt::format("{}: tokenizer.ggml.eos_token_id {} is not below the vocabulary size {}",
                                              file.name(), end, tokenizer.vocabulary_size()));
  tokenizer.end_of_sequence_ = static_cast<TokenId>(end);
  return tokenizer;
}

Status Tokenizer::read_vocabulary(const Gguf& file) {
  FIRN_ASSIGN(const auto spellings, file.string_array("tokenizer.ggml.tokens"));
  FIRN_ASSIGN(const auto types, file.integer_array("tokenizer.ggml.token_type"));
  if (spellings.empty() || spellings.size() > kMaxVocabulary || types.size() != spellings.size())
    return Status(Code::kCorrupt, fmt::format("{}: {} tokens with {} token types; both counts must be equal, 1 to {}",
                                              file.name(), spellings.size(), types.size(), kMaxVocabulary));
  byte_tokens_.fill(kNoToken);
  pieces_.resize(spellings.size());
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    if (types[i] == kControlType || types[i] == kUserDefinedType) {
      pieces_[i] = spellings[i];
      if (!pieces_[i].empty()) specials_.push_back(static_cast<TokenId>(i));
      continue;
    }
    if (!spelling_to_bytes(spellings[i], pieces_[i]))
      return Status(Code::kCorrupt, fmt::format("{}: token {}: '{}' is not written in GPT-2's byte characters",
                                                file.name(), i, spellings[i]));
    if (pieces_[i].size() == 1) byte_tokens_[static_cast<unsigned char>(pieces_[i][0])] = static_cast<TokenId>(i);
  }
  std::stable_sort(specials_.begin(), specials_.end(),
                   [this](TokenId a, TokenId b) { return piece(a).size() > piece(b).size(); });
  return {};
}

Status Tokenizer::read_merges(const Gguf& file) {
  FIRN_ASSIGN(const auto spellings, file.string_array("tokenizer.ggml.tokens"));
  FIRN_ASSIGN(const auto merges, file.string_array("tokenizer.ggml.merges"));
  std::unordered_map<std::string_view, TokenId> tokens;
  for (std::size_t i = 0; i < spellings.size(); ++i) tokens.emplace(spellings[i], static_cast<TokenId>(i));
  const auto find = [&](std::string_view spelling) {
    const auto found = tokens.find(spelling);
    return found == tokens.end() ? kNoToken : found->second;
  };
  merges_.reserve(merges.size());
  for (std::uint32_t rank = 0; rank < merges.size(); ++rank) {
    const std::size_t space = merges[rank].find(' ');
    if (space == std::string_view::npos)
      return Status(Code::kCorrupt, fmt::format("{}: merge {}: '{}' has no space", file.name(), rank, merges[rank]));
    const std::string_view left = merges[rank].substr(0, space), right = merges[rank].substr(space + 1);
    const TokenId a = find(left), b = find(right), merged = find(std::string(left) + std::string(right));
    if (a == kNoToken || b == kNoToken || merged == kNoToken)
      return Status(Code::kCorrupt, fmt::format("{}: merge {}: '{}' names a token that the vocabulary lacks",
                                                file.name(), rank, merges[rank]));
    merges_.emplace(pair_key(a, b), Merge{rank, merged});
  }
  return {};
}

Result<TokenId> Tokenizer::special(std::string_view text) const {
  const auto [token, bytes] = special_at(text);
  if (bytes == 0 || bytes != text.size())
    return Status(Code::kInvalidArgument, fmt::format("the vocabulary has no special token '{}'", text));
  return token;
}

std::pair<TokenId, std::size_t> Tokenizer::special_at(std::string_view text) const {
  for (const TokenId token : specials_)
    if (text.substr(0, piece(token).size()) == piece(token)) return {token, piece(token).size()};
  return {kNoToken, 0};
}

Result<std::vector<TokenId>> Tokenizer::encode(std::string_view text, Specials specials) const {
  std::vector<TokenId> tokens;
  tokens.reserve(text.size() / 3);
  if (specials == Specials::kPlain) {
    FIRN_TRY(encode_plain(text, 0, tokens));
    return tokens;
  }
  std::size_t start = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto [token, bytes] = special_at(text.substr(at));
    if (bytes == 0) {
      ++at;
      continue;
    }
    FIRN_TRY(encode_plain(text.substr(start, at - start), start, tokens));
    tokens.push_back(token);
    start = at += bytes;
  }
  FIRN_TRY(encode_plain(text.substr(start), start, tokens));
  return tokens;
}

Status Tokenizer::encode_plain(std::string_view text, std::size_t offset, std::vector<TokenId>& out) const {
  for (const std::string_view word : split_words(text))
    FIRN_TRY(encode_word(word, offset + static_cast<std::size_t>(word.data() - text.data()), out));
  return {};
}

// The symbols of a word form a linked list; a heap holds the merges that are possible in it. A stale entry (one of its
// two symbols was merged meanwhile) is recognised by the token it was made for. O(n log n), so a long word is no
// attack.
Status Tokenizer::encode_word(std::string_view word, std::size_t offset, std::vector<TokenId>& out) const {
  if (word.size() > kMaxWordBytes)
    return Status(Code::kInvalidArgument, fmt::format("text byte {}: a word of {} bytes without a space; at most {}",
                                                      offset, word.size(), kMaxWordBytes));
  struct Symbol {
    TokenId token;
    std::size_t previous, next;
  };
  const std::size_t end = word.size();  // as an index: no symbol
  std::vector<Symbol> symbols(word.size());
  for (std::size_t i = 0; i < word.size(); ++i) {
    const auto byte = static_cast<unsigned char>(word[i]);
    if (byte_tokens_[byte] == kNoToken)
      return Status(Code::kInvalidArgument,
                    fmt::format("text byte {}: the model's vocabulary has no token for byte 0x{:02x}; remove it",
                                offset + i, static_cast<unsigned>(byte)));
    symbols[i] = {byte_tokens_[byte], i == 0 ? end : i - 1, i + 1};
  }

  struct Candidate {
    std::uint32_t rank;
    std::size_t left;
    TokenId left_token, right_token, merged;
    bool operator<(const Candidate& other) const {  // std heaps put the largest first: lowest rank, then leftmost
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  std::priority_queue<Candidate> candidates;
  const auto propose = [&](std::size_t left) {
    if (left == end || symbols[left].next == end) return;
    const TokenId a = symbols[left].token, b = symbols[symbols[left].next].token;
    if (const auto merge = merges_.find(pair_key(a, b)); merge != merges_.end())
      candidates.push({merge->second.rank, left, a, b, merge->second.merged});
  };
  for (std::size_t i = 0; i + 1 < word.size(); ++i) propose(i);

  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Symbol& left = symbols[best.left];
    if (left.token != best.left_token || left.next == end || symbols[left.next].token != best.right_token) continue;
    Symbol& right = symbols[left.next];
    left.token = best.merged;
    left.next = right.next;
    right.token = kNoToken;  // dead: no candidate names it again
    if (left.next != end) symbols[left.next].previous = best.left;
    propose(left.previous);
    propose(best.left);
  }
  for (std::size_t i = 0; i < end; i = symbols[i].next) out.push_back(symbols[i].token);
  return {};
}

std::string_view Tokenizer::piece(TokenId token) const {
  LLAMA_CHECK(token >= 0 && static_cast<std::size_t>(token) < pieces_.size());
  return pieces_[static_cast<std::size_t>(token)];
}

std::string Tokenizer::decode(std::span<const TokenId> tokens) const {
  std::string text;
  for (const TokenId token : tokens) text += piece(token);
  return text;
}

Result<std::vector<TokenId>> encode_chat(const Tokenizer& tokenizer, std::span<const ChatMessage> messages) {
  constexpr ChatMessage kDefaultSystem{"system",
                                       "You are a helpful AI assistant named SmolLM, trained by Hugging Face"};
  FIRN_ASSIGN(const TokenId start, tokenizer.special("<|im_start|>"));
  FIRN_ASSIGN(const TokenId end, tokenizer.special("<|im_end|>"));
  std::vector<TokenId> tokens;
  const auto append = [&](std::string_view text) -> Status {
    FIRN_ASSIGN(const auto encoded, tokenizer.encode(text));
    tokens.insert(tokens.end(), encoded.begin(), encoded.end());
    return {};
  };
  const auto say = [&](const ChatMessage& message) -> Status {
    tokens.push_back(start);
    FIRN_TRY(append(std::string(message.role) + "\n" + std::string(message.content)));
    tokens.push_back(end);
    return append("\n");
  };
  if (messages.empty() || messages[0].role != "system") FIRN_TRY(say(kDefaultSystem));
  for (const ChatMessage& message : messages) FIRN_TRY(say(message));
  tokens.push_back(start);
  FIRN_TRY(append("assistant\n"));
  return tokens;
}

}  // namespace firn::llama
