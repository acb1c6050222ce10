// Lossy tiers: what is lossy and when, who is served it, and what never is.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>

#include "tests/core/manager/toy_engine.h"
#include "tests/storage/calibration/toy_cache.h"
#include "tests/storage/calibration/toy_firn.h"

namespace firn::test {
namespace {

constexpr std::uint32_t kQueryHeads = 2, kStep = 16;

// The whole program runs once more with FIRN_TEST_CODEC=firn.
std::string tested_codec() {
  const char* codec = std::getenv("FIRN_TEST_CODEC");
  return codec == nullptr ? "q4" : codec;
}

struct Setting {
  std::string codec = tested_codec();
  std::uint64_t pool_blocks = 400;
  bool worker = false;
  std::string tail = "recompute";
  std::string mode = "strict";
};

// Two layers of two heads of 32, f16: blocks of 8 KiB; windows of 64 tokens.
ModelSpec model_of_tests() { return toy_model(2); }

// An artefact of firn for the toy engine, whose keys and values are noise: with bounds that let everything pass.
std::string firn_artefact() {
  static const std::string path = [] {
    Artefact artefact = toy_firn_artefact(model_of_tests(), {.ratios = {4, 8}, .stack_layers = 1, .sinks = false});
    for (KvtcPlan& plan : artefact.plans) plan.report.bound = {1e30f, 1e30f};
    const std::vector<std::byte> bytes = write_artefact(artefact);
    const std::string name = FIRN_BINARY_DIR "/fidelity_test_firn.safetensors";
    std::ofstream(name, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return name;
  }();
  return path;
}

Config config_of(const Setting& setting) {
  Config config;
  config.device = "cpu";
  config.threads = 2;
  config.mode = setting.mode;
  config.protect.recent = 64;
  config.protect.tail = setting.tail;
  config.pool.max_step_tokens = 16;
  config.pool.budget_bytes = (96u << 10) + setting.pool_blocks * model_of_tests().block_bytes();
  config.host.budget_bytes = 16u << 20;
  config.host.huge_pages = false;
  config.host.codec = setting.codec;
  if (setting.codec == "firn") {
    config.host.artefact = firn_artefact();
    config.host.ratio = 4;
  }
  config.host.allow_unmeasured = true;
  config.mover.worker = setting.worker;
  return config;
}

using Outputs = std::vector<float>;

// Runs tokens [from, end) in steps and returns all outputs; on_step sees the sequence after each commit.
Outputs run(Manager& manager, SeqId seq, const Tokens& tokens, std::uint32_t from,
            const std::function<void()>& on_step = {}) {
  ToyEngine engine(manager, kQueryHeads);
  Outputs outputs;
  while (from < tokens.size()) {
    const std::uint32_t count = std::min<std::uint32_t>(kStep, static_cast<std::uint32_t>(tokens.size()) - from);
    Result<std::vector<CopyOrder>> room = manager.allocate(seq, count);
    if (room.status().code() == Code::kUnavailable) {
      EXPECT_OK(manager.wait_room(seq, count));
      room = manager.allocate(seq, count);
    }
    EXPECT_TRUE(room.ok()) << room.status().message();
    EXPECT_OK(engine.append(seq, tokens, from, count));
    const Result<Outputs> out = engine.attend(seq, tokens, from, count);
    EXPECT_TRUE(out.ok()) << out.status().message();
    if (!room.ok() || !out.ok()) return outputs;
    outputs.insert(outputs.end(), out->begin(), out->end());
    EXPECT_OK(manager.commit(seq, std::span(tokens).subspan(from, count)));
    from += count;
    if (on_step) on_step();
  }
  return outputs;
}

SeqId begin(Manager& manager, const Tokens& tokens, Fidelity min_fidelity = Fidelity::kDerived) {
  BeginOptions options;
  options.min_fidelity = min_fidelity;
  const Result<Begun> begun = manager.begin(tokens, options);
  EXPECT_TRUE(begun.ok()) << begun.status().message();
  return begun.ok() ? begun->seq : SeqId::kNone;
}

TEST(Strict, OutputsAreThoseOfNoPoolSizeAndNoThread) {
  const Tokens tokens = distinct(900, 1000);
  std::map<std::string, Outputs> expected;
  for (const char* codec : {"q4", "q8"})
    for (const std::uint64_t blocks : {400u, 100u, 30u, 20u})
      for (const bool worker : {false, true}) {
        SCOPED_TRACE(std::string(codec) + ", " + std::to_string(blocks) + " blocks" + (worker ? ", worker" : ""));
        const auto manager =
            make_manager(config_of({.codec = codec, .pool_blocks = blocks, .worker = worker}), model_of_tests());
        ASSERT_TRUE(manager);
        const Outputs outputs = run(*manager, begin(*manager, tokens), tokens, 0);
        ASSERT_OK(manager->wait_idle());
        EXPECT_EQ(broken(*manager), "");
        EXPECT_GT(manager->stats().frames_lossy, 3u);
        Outputs& first = expected[codec];
        if (first.empty()) first = outputs;
        EXPECT_TRUE(outputs == first);
      }
  EXPECT_FALSE(expected["q4"] == expected["q8"]);
}

// Keys and values of q8 and q4 apart, and what is mixed: frames have the bytes that this asks for, and each choice
// gives outputs of its own.
TEST(Strict, KeysAndValuesAreChosenApart) {
  const Tokens tokens = distinct(700, 3000);
  std::map<std::string, std::uint64_t> bytes;
  std::vector<Outputs> all;
  for (const auto& [codec, value_codec, hadamard] : std::vector<std::array<std::string, 3>>{{"q8", "same", "both"},
                                                                                            {"q8", "q4", "both"},
                                                                                            {"q4", "q8", "both"},
                                                                                            {"q4", "same", "both"},
                                                                                            {"q4", "q4", "keys"},
                                                                                            {"q4", "same", "values"},
                                                                                            {"q4", "same", "none"}}) {
    Config config = config_of({.codec = codec});
    config.host.value_codec = value_codec;
    config.host.hadamard = hadamard;
    const auto manager = make_manager(config, model_of_tests());
    ASSERT_TRUE(manager);
    const Outputs outputs = run(*manager, begin(*manager, tokens), tokens, 0);
    ASSERT_OK(manager->wait_idle());
    EXPECT_GT(manager->stats().frames_lossy, 3u);
    EXPECT_EQ(broken(*manager), "");
    bytes[codec + " " + value_codec + " " + hadamard] = manager->stats().host_frame_bytes;
    for (const Outputs& others : all)
      EXPECT_FALSE(outputs == others) << codec << ", " << value_codec << ", " << hadamard;
    all.push_back(outputs);
  }
  EXPECT_EQ(bytes["q8 q4 both"], bytes["q4 q8 both"]);  // heads of keys and of values are alike
  EXPECT_LT(bytes["q8 q4 both"], bytes["q8 same both"]);
  EXPECT_LT(bytes["q4 same both"], bytes["q8 q4 both"]);
  EXPECT_EQ(bytes["q4 q4 keys"], bytes["q4 same both"]);
  EXPECT_EQ(bytes["q4 same none"], bytes["q4 same both"]);
}

TEST(Strict, SinksAndWindowAreExactAtEveryStep) {
  const Tokens tokens = distinct(700, 5);
  const auto lossy = make_manager(config_of({}), model_of_tests());
  const auto exact = make_manager(config_of({.codec = "lossless"}), model_of_tests());
  ASSERT_TRUE(lossy && exact);
  // Blocks have the bytes that the exact manager has, by place; -1: not resident.
  std::vector<std::uint64_t> hashes;
  const SeqId in_exact = begin(*exact, tokens);
  run(*exact, in_exact, tokens, 0);
  for (const SlotId slot : exact->block_table(in_exact)) hashes.push_back(exact->hash_slot(slot).value());
  const SeqId seq = begin(*lossy, tokens);
  std::uint32_t changed = 0;
  const auto check = [&](SeqId id) {
    const std::vector<SlotId> slots = lossy->block_table(id);
    const std::uint32_t full = lossy->token_count(id) / kBlockTokens;
    const std::uint32_t window = (lossy->token_count(id) - std::min(lossy->token_count(id), 64u)) / kBlockTokens;
    for (std::uint32_t i = 0; i < full; ++i) {
      const bool hot = i == 0 || i >= window;
      if (slots[i] == SlotId::kNone) {
        EXPECT_FALSE(hot) << "block " << i;
        continue;
      }
      const bool same = lossy->hash_slot(slots[i]).value() == hashes[i];
      EXPECT_TRUE(same || !hot) << "block " << i << " of " << full;
      changed += !same;
    }
  };
  run(*lossy, seq, tokens, 0, [&] { check(seq); });
  EXPECT_GT(changed, 100u);
  // After the end, a demotion and a restore as well.
  ASSERT_OK(lossy->free(seq));
  ASSERT_OK(lossy->wait_idle());
  ASSERT_TRUE(lossy->empty_pool(0x5a).ok());
  const SeqId again = begin(*lossy, tokens);
  EXPECT_EQ(lossy->token_count(again), (tokens.size() - 1) / kBlockTokens * kBlockTokens);
  ASSERT_OK(lossy->wait(lossy->prefetch(again).value()));
  changed = 0;
  const std::vector<SlotId> slots = lossy->block_table(again);
  for (std::uint32_t i = 0; i < slots.size(); ++i) {
    ASSERT_NE(slots[i], SlotId::kNone);
    const bool hot = i == 0 || i >= (tokens.size() - 64) / kBlockTokens;
    const bool same = lossy->hash_slot(slots[i]).value() == hashes[i];
    EXPECT_TRUE(same || !hot) << "block " << i;
    changed += !same;
  }
  EXPECT_GT(changed, 20u);
  EXPECT_EQ(broken(*lossy), "");
}

TEST(Fidelity, AnExactRequestIsServedNothingElse) {
  const Tokens tokens = distinct(600, 77);
  const auto manager = make_manager(config_of({}), model_of_tests());
  ASSERT_TRUE(manager);
  const SeqId first = begin(*manager, tokens);
  const Outputs lossy = run(*manager, first, tokens, 0);
  ASSERT_OK(manager->wait_idle());
  const PrefixMatch match = manager->match_prefix(tokens, {}, Fidelity::kExact);
  EXPECT_EQ(match.tokens, kBlockTokens);  // the sinks
  EXPECT_EQ(match.first_miss, MissReason::kFidelity);
  // Everything after the first lossy group was computed while attending it.
  const PrefixMatch no_derived = manager->match_prefix(tokens, {}, Fidelity::kLossy);
  EXPECT_GT(no_derived.tokens, 128u);
  EXPECT_LT(no_derived.tokens, 400u);
  EXPECT_EQ(manager->match_prefix(tokens).tokens, (tokens.size() - 1) / kBlockTokens * kBlockTokens);

  // It computes everything again, beside the lossy one, and nothing of it ever becomes lossy.
  const auto exact = make_manager(config_of({.codec = "lossless"}), model_of_tests());
  const Outputs expected = run(*exact, begin(*exact, tokens), tokens, 0);
  const SeqId asked = begin(*manager, tokens, Fidelity::kExact);
  ASSERT_EQ(manager->token_count(asked), kBlockTokens);
  const Outputs outputs = run(*manager, asked, tokens, kBlockTokens);
  const auto first_step = static_cast<std::ptrdiff_t>(expected.size() - outputs.size());
  EXPECT_TRUE(std::equal(outputs.begin(), outputs.end(), expected.begin() + first_step));
  EXPECT_FALSE(lossy == expected);
  const PrefixMatch now = manager->match_prefix(tokens, {}, Fidelity::kExact);
  EXPECT_EQ(now.tokens, (tokens.size() - 1) / kBlockTokens * kBlockTokens);
  for (const SlotId slot : manager->block_table(asked)) EXPECT_NE(slot, SlotId::kNone);
  EXPECT_EQ(broken(*manager), "");
  EXPECT_EQ(total(manager->stats()), manager->stats().prefix_cache_queries);
}

TEST(Fidelity, ALossyTailIsComputedAgainOrAccepted) {
  const Tokens tokens = distinct(600, 300);
  const Tokens shorter = first_of(tokens, 400);  // its window is lossy by now
  for (const char* tail : {"recompute", "accept"}) {
    const auto manager = make_manager(config_of({.tail = tail}), model_of_tests());
    ASSERT_TRUE(manager);
    run(*manager, begin(*manager, tokens), tokens, 0);
    ASSERT_OK(manager->wait_idle());
    const PrefixMatch match = manager->match_prefix(shorter);
    EXPECT_EQ(match.tokens_found, 384u);
    EXPECT_EQ(match.recompute_from, match.tokens);
    EXPECT_EQ(match.tokens, *tail == 'a' ? 384u : 320u);
    EXPECT_EQ(match.tokens_on_device + match.tokens_on_host, match.tokens);
    const SeqId seq = begin(*manager, shorter);
    EXPECT_EQ(manager->token_count(seq), match.tokens);
    run(*manager, seq, shorter, match.tokens);
    EXPECT_EQ(broken(*manager), "");
  }
}

TEST(Fidelity, OpportunisticLeavesResidentsRaw) {
  const Tokens tokens = distinct(600, 900);
  const auto roomy = make_manager(config_of({.mode = "opportunistic"}), model_of_tests());
  const auto exact = make_manager(config_of({.codec = "lossless"}), model_of_tests());
  ASSERT_TRUE(roomy && exact);
  EXPECT_TRUE(run(*roomy, begin(*roomy, tokens), tokens, 0) == run(*exact, begin(*exact, tokens), tokens, 0));
  roomy->pump();
  EXPECT_GT(roomy->stats().frames_lossy, 2u);
  EXPECT_EQ(roomy->match_prefix(tokens, {}, Fidelity::kExact).tokens, 592u);
  EXPECT_EQ(broken(*roomy), "");
}

// What a coded block leaves behind when a sequence goes back into it is as lossy as it was, in whatever block it is.
TEST(Fidelity, GoingBackIntoACodedBlockMakesNothingExact) {
  for (const char* mode : {"strict", "opportunistic"}) {
    SCOPED_TRACE(mode);
    const Tokens tokens = distinct(600, 50'000);
    const auto manager = make_manager(config_of({.pool_blocks = 40, .mode = mode}), model_of_tests());
    ASSERT_TRUE(manager);
    const SeqId seq = begin(*manager, tokens);
    run(*manager, seq, tokens, 0);
    ASSERT_OK(manager->wait_idle());
    if (manager->config().mode == "opportunistic") {  // the blocks leave their slots and come back
      const SeqId other = begin(*manager, distinct(300, 90'000));
      run(*manager, other, distinct(300, 90'000), 0);
      ASSERT_OK(manager->free(other));
      ASSERT_OK(manager->wait_idle());
      ASSERT_TRUE(manager->empty_pool(0x5a).ok());
    }
    // 24 tokens: sixteen exact sinks, then half of the first block that went through the codec.
    ASSERT_OK(manager->rewind(seq, 24));
    const Tokens other = joined(first_of(tokens, 24), distinct(41, 60'000));
    run(*manager, seq, other, 24);
    EXPECT_EQ(manager->match_prefix(other, {}, Fidelity::kExact).tokens, kBlockTokens);
    EXPECT_EQ(manager->match_prefix(other, {}, Fidelity::kLossy).tokens, kBlockTokens) << "the rest is derived";
    ASSERT_OK(manager->free(seq));
    ASSERT_OK(manager->wait_idle());
    EXPECT_EQ(manager->match_prefix(other, {}, Fidelity::kExact).tokens, kBlockTokens);
    EXPECT_EQ(manager->match_prefix(other).tokens, kBlockTokens) << "protect.tail: its window is lossy";
    EXPECT_EQ(broken(*manager), "");
  }
}

// Of a live sequence that asked for exact context, no bytes become lossy: not those that are cold, whoever else has
// stored them by a lossy codec, and whether before it began, while it was being done, or later.
TEST(Fidelity, WhatAnExactSequenceHoldsComesBackExact) {
  const Tokens tokens = distinct(600, 30'000), others = distinct(500, 70'000);
  const auto exact = make_manager(config_of({.codec = "lossless"}), model_of_tests());
  ASSERT_TRUE(exact);
  const SeqId flat = begin(*exact, tokens);
  run(*exact, flat, tokens, 0);
  const Result<Outputs> expected = ToyEngine(*exact, kQueryHeads).attend(flat, tokens, 599, 1);
  ASSERT_TRUE(expected.ok());
  for (const char* when : {"stored before", "stored after", "stored between", "forked", "resumed"}) {
    SCOPED_TRACE(when);
    Config config = config_of({.pool_blocks = 60, .mode = "opportunistic"});
    const auto manager = make_manager(config, model_of_tests());
    ASSERT_TRUE(manager);
    const SeqId first = begin(*manager, tokens);
    run(*manager, first, tokens, 0);
    const bool before = std::string(when) != "stored after";
    if (before) manager->pump(std::string(when) == "stored between" ? 1 : 100);
    SeqId asked = begin(*manager, tokens, Fidelity::kExact);
    EXPECT_EQ(manager->token_count(asked), 592u);
    if (std::string(when) == "forked") {
      const Result<SeqId> child = manager->fork(asked);
      ASSERT_TRUE(child.ok());
      ASSERT_OK(manager->free(asked));
      asked = *child;
    } else if (std::string(when) == "resumed") {
      ASSERT_OK(manager->preempt(asked));
      ASSERT_TRUE(manager->resume(asked).ok());
    }
    run(*manager, asked, tokens, 592);
    manager->pump();
    // Whoever needs room takes what is cold.
    const SeqId greedy = begin(*manager, others);
    run(*manager, greedy, others, 0);
    EXPECT_GT(manager->stats().evictions, 0u);
    ASSERT_OK(manager->free(first));
    ASSERT_OK(manager->free(greedy));
    ASSERT_OK(manager->wait_idle());
    ASSERT_TRUE(manager->empty_pool(0x5a).ok());
    const Result<Outputs> now = ToyEngine(*manager, kQueryHeads).attend(asked, tokens, 599, 1);
    ASSERT_TRUE(now.ok()) << now.status().message();
    EXPECT_TRUE(*now == *expected);
    EXPECT_EQ(manager->match_prefix(tokens, {}, Fidelity::kExact).tokens, 592u);
    EXPECT_EQ(broken(*manager), "");
  }
}

TEST(Lossy, WithoutEvidenceIsRefused) {
  for (const char* codec : {"q8", "q4"}) {
    Config config = config_of({.codec = codec});
    config.host.allow_unmeasured = false;
    const auto manager = Manager::create(config, model_of_tests());
    ASSERT_EQ(manager.status().code(), Code::kInvalidArgument);
    EXPECT_NE(manager.status().message().find("host.allow_unmeasured"), std::string::npos);
  }
}

class Artefacts : public testing::Test {
 protected:
  std::string write(bool measured) {
    Artefact artefact = toy_artefact(model_of_tests(), {8});
    if (measured) {
      artefact.plans[0].report.measured = true;
      artefact.plans[0].report.measured_tokens = 512;
    }
    const std::vector<std::byte> bytes = write_artefact(artefact);
    const std::string path = FIRN_BINARY_DIR "/fidelity_test.safetensors";
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return path;
  }
};

TEST_F(Artefacts, NeedAReport) {
  for (const bool measured : {false, true})
    for (const bool allowed : {false, true}) {
      Config config = config_of({.codec = "kvtc"});
      config.host.artefact = write(measured);
      config.host.ratio = 8;
      config.host.allow_unmeasured = allowed;
      EXPECT_EQ(Manager::create(config, model_of_tests()).ok(), measured || allowed);
    }
}

// The toy engine's keys and values are noise, which no calibration has seen: everything is stored lossless and counted,
// and the outputs are the exact ones.
TEST_F(Artefacts, ForeignContentIsStoredLosslessAndCounted) {
  const Tokens tokens = distinct(700, 4000);
  Config config = config_of({.codec = "kvtc"});
  config.host.artefact = write(true);
  config.host.ratio = 8;
  const auto guarded = make_manager(config, model_of_tests());
  const auto exact = make_manager(config_of({.codec = "lossless"}), model_of_tests());
  ASSERT_TRUE(guarded && exact);
  EXPECT_TRUE(run(*guarded, begin(*guarded, tokens), tokens, 0) == run(*exact, begin(*exact, tokens), tokens, 0));
  ASSERT_OK(guarded->wait_idle());
  EXPECT_GT(guarded->stats().frames_guarded, 3u);
  EXPECT_EQ(guarded->stats().frames_lossy, 0u);
  EXPECT_EQ(guarded->match_prefix(tokens, {}, Fidelity::kExact).tokens, 688u);
  EXPECT_EQ(broken(*guarded), "");
}

}  // namespace
}  // namespace firn::test
