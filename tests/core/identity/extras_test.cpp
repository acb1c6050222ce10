// What goes into a block's key beside its tokens.
#include <gtest/gtest.h>

#include <numeric>
#include <string>

#include "firn/key.h"

namespace firn {
namespace {

std::string hex(const std::vector<std::byte>& bytes) {
  std::string text;
  for (const std::byte byte : bytes) {
    text += "0123456789abcdef"[static_cast<unsigned>(byte) >> 4];
    text += "0123456789abcdef"[static_cast<unsigned>(byte) & 15];
  }
  return text;
}

TEST(BlockExtra, HoldsTheDigestAndWhereTheItemBeginsSeenFromTheBlock) {
  const KeyExtras extras{.adapter = {}, .media = {{4, 30, "img1"}, {40, 3, "z"}}};
  EXPECT_EQ(hex(block_extra(extras, 0)),
            "02000000"
            "04000000"
            "696d6731"
            "04000000");
  EXPECT_EQ(hex(block_extra(extras, 16)),
            "02000000"
            "04000000"
            "696d6731"
            "f4ffffff")
      << "it began 12 tokens before";
  EXPECT_EQ(hex(block_extra(extras, 32)),
            "02000000"
            "04000000"
            "696d6731"
            "e4ffffff"
            "02000000"
            "01000000"
            "7a"
            "08000000");
  EXPECT_EQ(hex(block_extra(extras, 48)), "") << "nothing concerns it, so its key is that of its tokens";
}

TEST(BlockExtra, AnAdapterIsInEveryBlockBeforeTheMedia) {
  const KeyExtras extras{.adapter = "ab", .media = {{0, 1, "q"}}};
  EXPECT_EQ(hex(block_extra(extras, 0)),
            "01000000"
            "02000000"
            "6162"
            "02000000"
            "01000000"
            "71"
            "00000000");
  EXPECT_EQ(hex(block_extra(extras, 160)),
            "01000000"
            "02000000"
            "6162");
}

TEST(BlockExtra, KeysDifferWhereMediaDoAndAreTheTokensOwnElsewhere) {
  ModelSpec model;
  model.groups = {{GroupKind::kFull, 1, {Dtype::kF16, 1, 64, 64}, 0, 0}};
  const KeyChain chain(model_identity(model), "");
  std::vector<TokenId> tokens(64);
  std::iota(tokens.begin(), tokens.end(), 0);
  const KeyExtras cat{.adapter = {}, .media = {{20, 8, "cat"}}}, dog{.adapter = {}, .media = {{20, 8, "dog"}}};
  const auto plain = chain.keys(tokens), with_cat = chain.keys(tokens, cat), with_dog = chain.keys(tokens, dog);
  EXPECT_EQ(plain[0], with_cat[0]);
  EXPECT_NE(plain[1], with_cat[1]);
  EXPECT_NE(with_cat[1], with_dog[1]);
  EXPECT_NE(with_cat[3], with_dog[3]) << "the chain carries it on";
  EXPECT_EQ(with_cat, chain.keys(tokens, cat));
  EXPECT_NE(with_cat[1], chain.keys(tokens, KeyExtras{.adapter = {}, .media = {{21, 8, "cat"}}})[1]);
  EXPECT_EQ(plain, chain.keys(tokens, KeyExtras{}));
}

TEST(KeyExtras, BadOnesAreNamed) {
  const auto message = [](const KeyExtras& extras) { return validate(extras).message(); };
  EXPECT_EQ(message({.adapter = "lora", .media = {{0, 4, "a"}, {4, 4, "b"}}}), "");
  EXPECT_NE(message({.adapter = std::string(257, 'x'), .media = {}}).find("257"), std::string::npos);
  EXPECT_NE(message({.adapter = {}, .media = {{0, 0, "a"}}}).find("media[0] has no tokens"), std::string::npos);
  EXPECT_NE(message({.adapter = {}, .media = {{0, 4, "a"}, {3, 4, "b"}}}).find("media[1] begins at token 3"),
            std::string::npos);
  EXPECT_NE(message({.adapter = {}, .media = {{0, 4, ""}}}).find("digest of 0 bytes"), std::string::npos);
}

}  // namespace
}  // namespace firn
