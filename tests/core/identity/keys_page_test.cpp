// docs/keys.md is the specification: its vectors are read out of the page and held against the code, byte for byte.
#include <gtest/gtest.h>

#include <bit>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "core/identity/identity_bytes.h"
#include "firn/key.h"

namespace firn {
namespace {

using Lines = std::vector<std::pair<std::string, std::string>>;  // name, value; names repeat

std::vector<Lines> vectors_of_page() {
  std::ifstream page(FIRN_SOURCE_DIR "/docs/keys.md");
  std::vector<Lines> vectors;
  bool inside = false;
  for (std::string line; std::getline(page, line);) {
    if (line.rfind("vector = ", 0) == 0) vectors.emplace_back(), inside = true;
    if (line.rfind("```", 0) == 0) inside = false;
    const std::size_t at = line.find(" =");
    if (inside && at != std::string::npos)
      vectors.back().emplace_back(line.substr(0, at), line.substr(std::min(line.size(), at + 3)));
  }
  return vectors;
}

std::string first(const Lines& lines, const std::string& name) {
  for (const auto& [key, value] : lines)
    if (key == name) return value;
  ADD_FAILURE() << "docs/keys.md: a vector lacks " << name;
  return "";
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

Digest digest_from_hex(const std::string& hex) {
  Digest digest;
  const std::string bytes = from_hex(hex);
  EXPECT_EQ(bytes.size(), 32u) << hex;
  std::copy_n(bytes.begin(), std::min(bytes.size(), digest.bytes.size()), digest.bytes.begin());
  return digest;
}

std::vector<std::uint32_t> numbers(const std::string& text, int base) {
  std::istringstream in(text);
  std::vector<std::uint32_t> values;
  for (std::string word; in >> word;) values.push_back(static_cast<std::uint32_t>(std::stoll(word, nullptr, base)));
  return values;
}

ModelSpec model_of(const Lines& lines) {
  ModelSpec model;
  model.weights = digest_from_hex(first(lines, "weights"));
  model.adapters = from_hex(first(lines, "adapters"));
  for (const auto& [name, value] : lines) {
    if (name != "group") continue;
    const std::vector<std::uint32_t> v = numbers(value, 10);
    model.groups.push_back(
        {static_cast<GroupKind>(v.at(0)), v.at(1), {static_cast<Dtype>(v.at(2)), v.at(3), v.at(4), v.at(5)}, v.at(6)});
  }
  model.rotation.pairing = static_cast<RotationSpec::Pairing>(numbers(first(lines, "pairing"), 10).at(0));
  model.rotation.dims = numbers(first(lines, "dims"), 10).at(0);
  for (const std::uint32_t bits : numbers(first(lines, "inverse_frequencies"), 16))
    model.rotation.inverse_frequencies.push_back(std::bit_cast<float>(bits));
  model.rotation.attention_factor = std::bit_cast<float>(numbers(first(lines, "attention_factor"), 16).at(0));
  const std::vector<std::uint32_t> shard = numbers(first(lines, "shard"), 10);
  model.shard_rank = shard.at(0);
  model.shard_count = shard.at(1);
  return model;
}

TEST(KeysPage, IdentitiesAreThoseOfThePage) {
  int count = 0;
  for (const Lines& lines : vectors_of_page()) {
    if (first(lines, "vector") != "identity") continue;
    SCOPED_TRACE(first(lines, "case"));
    const ModelSpec model = model_of(lines);
    EXPECT_TRUE(validate(model).ok()) << validate(model).message();
    std::string expected;
    for (const auto& [name, value] : lines)
      if (name == "bytes") expected += from_hex(value);
    const std::vector<std::uint8_t> bytes = identity_bytes(model);
    EXPECT_EQ(std::string(bytes.begin(), bytes.end()), expected);
    EXPECT_EQ(std::to_string(bytes.size()), first(lines, "length"));
    EXPECT_EQ(to_hex(model_identity(model)), first(lines, "identity"));
    ++count;
  }
  EXPECT_EQ(count, 3) << "vectors of identities found in docs/keys.md";
}

TEST(KeysPage, ExtraBytesAndKeysOfARequestAreThoseOfThePage) {
  int requests = 0;
  for (const Lines& lines : vectors_of_page()) {
    if (first(lines, "vector") != "request") continue;
    SCOPED_TRACE(first(lines, "case"));
    KeyExtras extras{.adapter = from_hex(first(lines, "adapter")), .media = {}};
    std::vector<TokenId> tokens;
    std::vector<std::string> wanted_extras, wanted_keys;
    for (const auto& [name, value] : lines) {
      if (name == "media") {
        std::istringstream in(value);
        std::string digest;
        MediaItem item;
        in >> item.first_token >> item.token_count >> digest;
        item.digest = from_hex(digest);
        extras.media.push_back(item);
      }
      if (name == "tokens")
        for (const std::uint32_t token : numbers(value, 10)) tokens.push_back(static_cast<TokenId>(token));
      if (name == "extra") wanted_extras.push_back(from_hex(value));
      if (name == "key") wanted_keys.push_back(value);
    }
    const KeyChain chain(digest_from_hex(first(lines, "identity")), from_hex(first(lines, "salt")));
    const std::vector<Key> keys = chain.keys(tokens, extras);
    ASSERT_EQ(keys.size(), wanted_keys.size());
    ASSERT_EQ(keys.size(), wanted_extras.size());
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const std::vector<std::byte> extra = block_extra(extras, i * kBlockTokens);
      EXPECT_EQ(std::string(reinterpret_cast<const char*>(extra.data()), extra.size()), wanted_extras[i]);
      EXPECT_EQ(to_hex(keys[i]), wanted_keys[i]);
    }
    ++requests;
  }
  EXPECT_EQ(requests, 1) << "vectors of requests found in docs/keys.md";
}

TEST(KeysPage, ChainsAreThoseOfThePage) {
  int blocks = 0;
  for (const Lines& lines : vectors_of_page()) {
    if (first(lines, "vector") != "chain") continue;
    SCOPED_TRACE(first(lines, "case"));
    const KeyChain chain(digest_from_hex(first(lines, "identity")), from_hex(first(lines, "salt")));
    EXPECT_EQ(to_hex(chain.root()), first(lines, "root"));
    Key parent;
    std::vector<TokenId> tokens;
    std::string extra;
    for (const auto& [name, value] : lines) {
      if (name == "tokens") {
        tokens.clear();
        for (const std::uint32_t token : numbers(value, 10)) tokens.push_back(static_cast<TokenId>(token));
      } else if (name == "extra") {
        extra = from_hex(value);
      } else if (name == "key") {
        parent = chain.next(parent, tokens, std::as_bytes(std::span(extra)));
        EXPECT_EQ(to_hex(parent), value);
        extra.clear();
        ++blocks;
      }
    }
  }
  EXPECT_EQ(blocks, 8) << "blocks of chains found in docs/keys.md";
}

TEST(KeyChain, NamesEveryFullBlockOfASequenceAndNothingElse) {
  const KeyChain chain(Digest{}, "salt");
  std::vector<TokenId> tokens(5 * kBlockTokens + 15);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<TokenId>(i * 7);
  const std::vector<Key> keys = chain.keys(tokens);
  ASSERT_EQ(keys.size(), 5u);
  Key parent;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    parent = chain.next(parent, std::span(tokens).subspan(i * kBlockTokens, kBlockTokens));
    EXPECT_EQ(keys[i], parent);
  }
  EXPECT_TRUE(chain.keys(std::span(tokens).first(kBlockTokens - 1)).empty());
}

TEST(KeyChain, EveryInputOfABlockChangesItsKey) {
  std::vector<TokenId> tokens(kBlockTokens, 5);
  const std::byte one[] = {std::byte{0}}, two[] = {std::byte{0}, std::byte{0}}, other[] = {std::byte{1}};
  Key parent;
  parent.bytes[31] = 1;
  Digest identity;
  identity.bytes[0] = 1;
  const KeyChain chain(Digest{}, "");
  std::set<Key> keys{chain.next({}, tokens), chain.next(parent, tokens), chain.next({}, tokens, one),
                     chain.next({}, tokens, two), chain.next({}, tokens, other)};
  keys.insert(KeyChain(Digest{}, "a").next({}, tokens));
  keys.insert(KeyChain(Digest{}, std::string_view("\0", 1)).next({}, tokens));
  keys.insert(KeyChain(identity, "").next({}, tokens));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] ^= 1 << 20;
    keys.insert(chain.next({}, tokens));
    tokens[i] ^= 1 << 20;
  }
  EXPECT_EQ(keys.size(), 8u + kBlockTokens);
}

TEST(Hasher, IsPlainBlake3InAnyPieces) {
  // From the test vectors that the authors of BLAKE3 publish: no bytes, and the bytes i mod 251 for i < 1,025.
  EXPECT_EQ(to_hex(Hasher().finish()), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
  std::vector<std::byte> bytes(1025);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i % 251);
  Hasher whole, pieces;
  whole.update(bytes);
  for (std::size_t at = 0; at < bytes.size(); at += 100)
    pieces.update(std::span(bytes).subspan(at, std::min<std::size_t>(100, bytes.size() - at)));
  EXPECT_EQ(to_hex(whole.finish()), "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444");
  EXPECT_EQ(whole.finish(), pieces.finish());
}

TEST(KeyHash, IsTheFirstEightBytes) {
  Key key;
  for (std::size_t i = 0; i < 8; ++i) key.bytes[i] = static_cast<std::uint8_t>(i + 1);
  EXPECT_EQ(KeyHash{}(key), 0x0807060504030201u);
}

}  // namespace
}  // namespace firn
