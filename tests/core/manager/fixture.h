// fixture.h: managers small enough to run out of everything, and what their tests say over and over.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "firn/manager.h"

namespace firn::test {

// The status is in the failure's text; more can be streamed after it.
inline testing::AssertionResult is_ok(const Status& status) {
  if (status.ok()) return testing::AssertionSuccess();
  return testing::AssertionFailure() << to_string(status.code()) << ": " << status.message();
}
#define ASSERT_OK(...) ASSERT_TRUE(::firn::test::is_ok(__VA_ARGS__))
#define EXPECT_OK(...) EXPECT_TRUE(::firn::test::is_ok(__VA_ARGS__))

inline ModelSpec small_model(std::uint32_t layers = 4, std::uint32_t kv_heads = 1, std::uint32_t head_dim = 64) {
  ModelSpec model;
  model.name = std::string("small");
  model.weights.bytes.fill(1);
  model.groups = {{GroupKind::kFull, layers, {Dtype::kF16, kv_heads, head_dim, head_dim}, 0}};
  return model;
}

// A manager without bytes: slot 0 is the null block, so slots - 1 can be used.
inline Config bookkeeping(std::uint32_t slots, const ModelSpec& model = small_model()) {
  Config config;
  config.device = "none";
  config.threads = 1;
  config.pool.budget_bytes = slots * model.block_bytes();
  config.mover.worker = false;
  return config;
}

inline std::unique_ptr<Manager> make_manager(const Config& config, const ModelSpec& model = small_model(),
                                             const Manager::Environment& environment = {}) {
  auto manager = Manager::create(config, model, environment);
  EXPECT_TRUE(manager.ok()) << manager.status().message();
  return manager.ok() ? std::move(manager).value() : nullptr;
}

using Tokens = std::vector<TokenId>;
using Slots = std::vector<std::uint32_t>;

// count tokens that no other first gives.
inline Tokens distinct(std::uint32_t count, TokenId first) {
  Tokens tokens(count);
  for (std::uint32_t i = 0; i < count; ++i) tokens[i] = first + static_cast<TokenId>(i);
  return tokens;
}

inline Tokens joined(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

inline Tokens first_of(const Tokens& tokens, std::size_t count) {
  return Tokens(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count));
}

inline Slots table(const Manager& manager, SeqId seq) {
  Slots slots;
  for (const SlotId slot : manager.block_table(seq)) slots.push_back(index(slot));
  return slots;
}

// A prompt as an engine brings it: begin, allocate and commit what is not there.
inline SeqId prompt(Manager& manager, const Tokens& tokens, const BeginOptions& options = {}) {
  const auto begun = manager.begin(tokens, options);
  EXPECT_TRUE(begun.ok()) << begun.status().message();
  if (!begun.ok()) return SeqId::kNone;
  const std::uint32_t hit = begun->match.tokens;
  const auto allocated = manager.allocate(begun->seq, static_cast<std::uint32_t>(tokens.size()) - hit);
  EXPECT_TRUE(allocated.ok()) << allocated.status().message();
  if (!allocated.ok()) return begun->seq;
  EXPECT_OK(manager.commit(begun->seq, std::span(tokens).subspan(hit)));
  return begun->seq;
}

// Decodes: tokens one at a time, each a step.
inline void decode(Manager& manager, SeqId seq, const Tokens& tokens) {
  for (const TokenId token : tokens) {
    const auto allocated = manager.allocate(seq, 1);
    ASSERT_TRUE(allocated.ok()) << allocated.status().message();
    ASSERT_OK(manager.commit(seq, std::span(&token, 1)));
  }
}

inline std::uint64_t total(const Stats& stats) {
  std::uint64_t misses = 0;
  for (const std::uint64_t count : stats.misses) misses += count;
  return stats.prefix_cache_hits + misses;
}

inline std::uint64_t missed(const Stats& stats, MissReason reason) {
  return stats.misses[static_cast<std::size_t>(reason)];
}

// What verify() says, as one text; empty is sound.
inline std::string broken(const Manager& manager) {
  std::string text;
  for (const std::string& line : manager.verify()) text += line + "\n";
  return text;
}

}  // namespace firn::test
