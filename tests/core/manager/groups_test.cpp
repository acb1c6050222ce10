// Several groups of layers in one manager: page sets that share a pool, windows that slide, states that are snapshots,
// and the one point at which all of them can go on.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>

#include "tests/core/manager/fixture.h"
#include "tests/core/manager/toy_engine.h"

namespace firn::test {
namespace {

const KvShape kSmall{Dtype::kF16, 1, 256, 256};

ModelSpec model_of(std::vector<GroupSpec> groups) {
  ModelSpec model = small_model();
  model.groups = std::move(groups);
  return model;
}

GroupSpec full(std::uint32_t layers) { return {GroupKind::kFull, layers, kSmall, 0, 0}; }
GroupSpec window(std::uint32_t layers, std::uint32_t tokens) {
  return {GroupKind::kSlidingWindow, layers, kSmall, tokens, 0};
}
GroupSpec state(std::uint32_t layers) { return {GroupKind::kState, layers, kSmall, 0, 0}; }

Config books(std::uint32_t slots, const ModelSpec& model) {
  Config config = bookkeeping(slots, model);
  config.pool.budget_bytes = slots * page_layout(model)->page_bytes;
  return config;
}

Slots table(const Manager& manager, SeqId seq, std::uint8_t set) {
  Slots slots;
  for (const SlotId slot : manager.block_table(seq, PageSetId{set})) slots.push_back(index(slot));
  return slots;
}

std::uint32_t held(const Manager& manager, SeqId seq, std::uint8_t set) {
  const Slots slots = table(manager, seq, set);
  return static_cast<std::uint32_t>(std::count_if(slots.begin(), slots.end(), [](auto slot) { return slot != 0; }));
}

void expect_sound(const Manager& manager) {
  EXPECT_EQ(broken(manager), "");
  EXPECT_EQ(manager.stats().prefix_cache_queries, total(manager.stats()));
}

TEST(PageLayout, CutsGroupsIntoPagesOfEqualLayerCount) {
  // gemma-3's pattern: five local layers for each global one.
  const auto layout = page_layout(model_of({window(15, 512), full(3)}));
  ASSERT_TRUE(layout.ok());
  ASSERT_EQ(layout->sets.size(), 6u);
  EXPECT_EQ(layout->page_bytes, 16u * 3 * kSmall.token_bytes());
  EXPECT_EQ(layout->layer_count, 18u);
  for (std::size_t s = 0; s < 6; ++s) {
    EXPECT_EQ(layout->sets[s].layer_count, 3u);
    EXPECT_EQ(layout->sets[s].first_layer, 3 * s);
    EXPECT_EQ(layout->sets[s].window, s < 5 ? 512u : 0u);
  }
  EXPECT_EQ(page_layout(model_of({full(30)}))->sets.size(), 1u) << "one group is one page set";
  EXPECT_EQ(page_layout(model_of({full(4), state(28)}))->sets.size(), 8u);
}

TEST(PageLayout, RefusesMorePageSetsThanItCanName) {
  const auto layout = page_layout(model_of({full(1), window(255, 64)}));
  ASSERT_FALSE(layout.ok());
  EXPECT_NE(layout.status().message().find("256 page sets"), std::string::npos) << layout.status().message();
}

// vLLM's case of one full and two window groups: hits in all three, out-of-window entries are the null block.
TEST(Groups, AHitTakesWhatEveryGroupNeedsAndTheNullBlockForTheRest) {
  const ModelSpec model = model_of({full(1), window(2, 33)});  // a window of 33 sees two whole blocks before itself
  const auto manager = make_manager(books(31, model), model);
  const Tokens common = distinct(48, 0);
  const SeqId first = prompt(*manager, joined(common, distinct(7, 500)));
  EXPECT_EQ(table(*manager, first, 0), (Slots{1, 2, 3, 4}));
  EXPECT_EQ(table(*manager, first, 1), (Slots{0, 6, 7, 8})) << "55 tokens: the next one sees tokens 23 to 54";
  EXPECT_EQ(table(*manager, first, 2), (Slots{0, 10, 11, 12}));
  ASSERT_OK(manager->free(first));
  const PrefixMatch match = manager->match_prefix(joined(common, distinct(4, 900)));
  EXPECT_EQ(match.tokens, 48u);
  EXPECT_EQ(match.tokens_full, 48u);
  const SeqId second = prompt(*manager, joined(common, distinct(4, 900)));
  const Slots full_table = table(*manager, second, 0), window_table = table(*manager, second, 1);
  EXPECT_EQ(Slots(full_table.begin(), full_table.begin() + 3), (Slots{1, 2, 3}));
  EXPECT_EQ(Slots(window_table.begin(), window_table.begin() + 3), (Slots{0, 6, 7}));
  const Slots other = table(*manager, second, 2);
  EXPECT_EQ(Slots(other.begin(), other.begin() + 3), (Slots{0, 10, 11}));
  expect_sound(*manager);
}

TEST(Groups, AHoleInAWindowMovesTheHitBackAndSaysSo) {
  const ModelSpec model = model_of({full(1), window(1, 17)});
  // 12 slots, all taken by the prompt. Ten for somebody else: the two unkeyed ones, the four that slid out of the
  // window, and only then, from the tail, what the next hit would need.
  const auto manager = make_manager(books(13, model), model);
  const Tokens tokens = distinct(81, 0);
  ASSERT_OK(manager->free(prompt(*manager, tokens)));
  EXPECT_EQ(manager->match_prefix(tokens).tokens, 80u);
  const SeqId other = prompt(*manager, distinct(70, 7000));
  const PrefixMatch match = manager->match_prefix(tokens);
  EXPECT_LT(match.tokens, 80u);
  EXPECT_EQ(match.first_miss, MissReason::kEvictedDevice);
  EXPECT_GE(match.tokens_full, match.tokens);
  ASSERT_OK(manager->free(other));
  expect_sound(*manager);
}

TEST(Groups, AKeyCountsAsCachedOnlyWhereItsPageSetHasIt) {
  const ModelSpec model = model_of({full(1), full(1)});
  ASSERT_EQ(page_layout(model)->sets.size(), 2u);
  const auto manager = make_manager(books(8, model), model);  // 7 slots
  const Tokens tokens = distinct(49, 0);                      // 3 full blocks in each of two sets, and a partial one
  const SeqId seq = [&] {
    const auto begun = manager->begin(first_of(tokens, 48));
    EXPECT_TRUE(manager->allocate(begun->seq, 48).ok());
    EXPECT_OK(manager->commit(begun->seq, first_of(tokens, 48)));
    return begun->seq;
  }();
  ASSERT_OK(manager->free(seq));
  EXPECT_EQ(manager->match_prefix(tokens).tokens, 48u);
  // One block more than is free: the tail of the second set goes, and with it the whole third block.
  const SeqId taker = prompt(*manager, distinct(10, 900));
  EXPECT_EQ(manager->match_prefix(tokens).tokens, 32u);
  EXPECT_EQ(manager->match_prefix(tokens).first_miss, MissReason::kEvictedDevice);
  ASSERT_OK(manager->free(taker));
  expect_sound(*manager);
}

TEST(Groups, AWindowHoldsNoMoreThanItSeesHoweverLongTheSequence) {
  const ModelSpec model = model_of({window(15, 512), full(3)});
  const auto manager = make_manager(books(2000, model), model);
  const SeqId seq = prompt(*manager, distinct(2000, 0));
  decode(*manager, seq, distinct(100, 90'000));
  EXPECT_EQ(held(*manager, seq, 5), (2100 + 15) / 16u);
  for (std::uint8_t s = 0; s < 5; ++s) EXPECT_LE(held(*manager, seq, s), 512 / 16 + 1u);
  const Stats stats = manager->stats();
  EXPECT_EQ(stats.slots_live, held(*manager, seq, 5) + 5 * held(*manager, seq, 0));
  expect_sound(*manager);
}

TEST(Groups, AModelOfWindowsOnlyRunsForeverInASmallPool) {
  const ModelSpec model = model_of({window(2, 64)});
  const auto manager = make_manager(books(8, model), model);  // seven slots; a window takes at most five and one more
  const SeqId seq = prompt(*manager, distinct(60, 0));
  decode(*manager, seq, distinct(3000, 1000));
  EXPECT_EQ(manager->token_count(seq), 3060u);
  EXPECT_LE(held(*manager, seq, 0), 5u);
  expect_sound(*manager);
  // Its last window is found again, though everything before it is long gone.
  ASSERT_OK(manager->free(seq));
  const Tokens all = joined(distinct(60, 0), distinct(3000, 1000));
  const PrefixMatch match = manager->match_prefix(joined(all, {5}));
  EXPECT_EQ(match.tokens, 3056u);
  const SeqId again = prompt(*manager, joined(all, {5}));
  EXPECT_EQ(held(*manager, again, 0), 5u);
  expect_sound(*manager);
}

TEST(Groups, LatentAttentionIsABlockLikeAnyOther) {
  // MLA of DeepSeek: one row of 576 of which 512 also serve as value.
  const ModelSpec model = model_of({{GroupKind::kLatent, 61, {Dtype::kBf16, 1, 576, 0}, 0, 128}});
  ASSERT_OK(validate(model));
  EXPECT_EQ(page_layout(model)->page_bytes, 61u * 576 * 2 * 16);
  const auto manager = make_manager(books(11, model), model);
  const SeqId seq = prompt(*manager, distinct(55, 0));
  EXPECT_EQ(table(*manager, seq, 0), (Slots{1, 2, 3, 4}));
  ASSERT_OK(manager->free(seq));
  EXPECT_EQ(manager->match_prefix(distinct(55, 0)).tokens, 48u);
  expect_sound(*manager);
}

TEST(Groups, AStateIsFoundOnlyWhereASnapshotWasTaken) {
  const ModelSpec model = model_of({full(1), state(1)});
  const auto manager = make_manager(books(31, model), model);
  const Tokens tokens = distinct(96, 0);
  // One step of 70 tokens: the state is kept after 64 of them and, running, in the fifth block.
  const auto begun = manager->begin(tokens);
  ASSERT_TRUE(manager->allocate(begun->seq, 70).ok());
  EXPECT_EQ(held(*manager, begun->seq, 1), 2u);
  ASSERT_OK(manager->commit(begun->seq, first_of(tokens, 70)));
  EXPECT_EQ(held(*manager, begun->seq, 1), 1u) << "the snapshot is cached, the sequence holds the running state";
  ASSERT_OK(manager->free(begun->seq));
  const PrefixMatch match = manager->match_prefix(tokens);
  EXPECT_EQ(match.tokens, 64u);
  EXPECT_EQ(match.first_miss, MissReason::kNeverStored);
  const PrefixMatch shorter = manager->match_prefix(first_of(tokens, 60));
  EXPECT_EQ(shorter.tokens, 0u) << "no snapshot at 48, 32 or 16";
  EXPECT_EQ(shorter.tokens_full, 48u) << "a partial hit is reported";
  EXPECT_EQ(shorter.first_miss, MissReason::kGroup);
  expect_sound(*manager);
}

TEST(Groups, DecodingKeepsASnapshotAtEveryBlock) {
  const ModelSpec model = model_of({full(1), state(1)});
  const auto manager = make_manager(books(41, model), model);
  const Tokens tokens = distinct(100, 0);
  const SeqId seq = prompt(*manager, first_of(tokens, 20));
  decode(*manager, seq, Tokens(tokens.begin() + 20, tokens.end()));
  EXPECT_EQ(held(*manager, seq, 1), 1u);
  for (const std::uint32_t cut : {33u, 49u, 97u})
    EXPECT_EQ(manager->match_prefix(first_of(tokens, cut)).tokens, cut - 1);
  ASSERT_OK(manager->free(seq));
  expect_sound(*manager);
}

TEST(Groups, AForkOfAStateCopiesAllOfIt) {
  const ModelSpec model = model_of({full(1), state(1)});
  const auto manager = make_manager(books(21, model), model);
  const SeqId parent = prompt(*manager, distinct(20, 0));
  const auto child = manager->fork(parent);
  ASSERT_TRUE(child.ok());
  const auto orders = manager->allocate(*child, 1);
  ASSERT_TRUE(orders.ok());
  ASSERT_EQ(orders->size(), 2u);
  EXPECT_EQ((*orders)[0].tokens, 4u);
  EXPECT_EQ((*orders)[0].page_set, PageSetId{0});
  EXPECT_EQ((*orders)[1].tokens, kBlockTokens) << "a state is no row of tokens";
  EXPECT_EQ((*orders)[1].page_set, PageSetId{1});
  ASSERT_OK(manager->free(parent));
  ASSERT_OK(manager->free(*child));
  expect_sound(*manager);
}

TEST(Groups, ARewindReachesBackForWhatSlidOutOrSaysThatItCannot) {
  const ModelSpec model = model_of({full(1), window(1, 32)});
  const auto manager = make_manager(books(41, model), model);
  const Tokens tokens = distinct(200, 0);
  const SeqId seq = prompt(*manager, tokens);
  EXPECT_EQ(table(*manager, seq, 1)[5], 0u);
  ASSERT_OK(manager->rewind(seq, 100)) << "the blocks are cached still";
  EXPECT_NE(table(*manager, seq, 1)[5], 0u);
  EXPECT_EQ(manager->token_count(seq), 100u);
  expect_sound(*manager);
  decode(*manager, seq, distinct(3, 5000));
  expect_sound(*manager);

  // With the pool full of others, what slid out is gone, and the rewind changes nothing.
  const SeqId other = prompt(*manager, distinct(16 * 8, 9000));
  const SeqId more = prompt(*manager, distinct(16 * 8, 20'000));
  const Slots before = table(*manager, seq, 1);
  const Status status = manager->rewind(seq, 40);
  EXPECT_EQ(status.code(), Code::kUnavailable);
  EXPECT_NE(status.message().find("begin() again"), std::string::npos) << status.message();
  EXPECT_EQ(table(*manager, seq, 1), before);
  EXPECT_EQ(manager->token_count(seq), 103u);
  expect_sound(*manager);
  ASSERT_OK(manager->free(other));
  ASSERT_OK(manager->free(more));
}

TEST(Groups, AStateRewindsToWholeBlocksOnly) {
  const ModelSpec model = model_of({full(1), state(1)});
  const auto manager = make_manager(books(41, model), model);
  const SeqId seq = prompt(*manager, distinct(20, 0));
  decode(*manager, seq, distinct(30, 1000));
  const Status status = manager->rewind(seq, 37);
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("rewind to 32"), std::string::npos) << status.message();
  EXPECT_OK(manager->rewind(seq, 50)) << "nothing to do";
  EXPECT_OK(manager->rewind(seq, 32));
  decode(*manager, seq, distinct(5, 3000));
  expect_sound(*manager);
}

TEST(Groups, ARefusedAllocationLeavesEveryTableAsItWas) {
  const ModelSpec model = model_of({full(2), window(2, 48), state(2)});
  const auto manager = make_manager(books(12, model), model);
  const SeqId seq = prompt(*manager, distinct(40, 0));
  const auto child = manager->fork(seq);
  ASSERT_TRUE(child.ok());
  const std::array<Slots, 3> before = {table(*manager, *child, 0), table(*manager, *child, 1),
                                       table(*manager, *child, 2)};
  const Stats stats = manager->stats();
  const auto refused = manager->allocate(*child, 200);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::kNoSpace);
  for (std::uint8_t s = 0; s < 3; ++s) EXPECT_EQ(table(*manager, *child, s), before[s]);
  EXPECT_EQ(manager->stats().slots_free, stats.slots_free);
  expect_sound(*manager);
}

// Attention over a model with a global and a local group, against sums in double precision, while the pool is so small
// that most of the global group is in the host tier.
TEST(Groups, AttendSeesItsWindowWhereverBlocksAre) {
  const KvShape kv{Dtype::kF16, 1, 64, 64};
  constexpr std::uint32_t kWindow = 300, kTokens = 1000, kStep = 50;
  const ModelSpec model = model_of({{GroupKind::kFull, 2, kv, 0, 2}, {GroupKind::kSlidingWindow, 4, kv, kWindow, 2}});
  const Tokens tokens = distinct(kTokens, 0);
  std::vector<std::vector<float>> outputs;
  for (const std::uint64_t budget : {64u << 20, 900u << 10}) {
    Config config;
    config.device = "cpu";
    config.threads = 1;
    config.pool.budget_bytes = budget;
    config.pool.max_step_tokens = 64;
    config.host.budget_bytes = 32u << 20;
    config.mover.worker = false;
    const auto manager = make_manager(config, model);
    ToyEngine engine(*manager, 2);
    const auto begun = manager->begin(tokens);
    ASSERT_TRUE(begun.ok());
    std::vector<float> out;
    for (std::uint32_t from = 0; from < kTokens; from += kStep) {
      ASSERT_OK(manager->wait_room(begun->seq, kStep));
      ASSERT_TRUE(manager->allocate(begun->seq, kStep).ok());
      ASSERT_OK(engine.append(begun->seq, tokens, from, kStep));
      const auto attended = engine.attend(begun->seq, tokens, from, kStep);
      ASSERT_TRUE(attended.ok()) << attended.status().message();
      if (from + kStep == kTokens) out = *attended;
      ASSERT_OK(manager->commit(begun->seq, std::span(tokens).subspan(from, kStep)));
      manager->pump();
    }
    EXPECT_EQ(broken(*manager), "");
    if (budget < (8u << 20)) {
      EXPECT_GT(manager->stats().blocks_staged, 0u) << "nothing was cold: the pool is too large";
    }
    outputs.push_back(std::move(out));
  }
  EXPECT_EQ(outputs[0], outputs[1]) << "the same bits wherever blocks are";

  const std::vector<std::uint64_t> hashes = prefix_hashes(tokens);
  std::vector<float> k(64), v(64), q(128);
  for (const std::uint32_t layer : {0u, 3u}) {
    const std::uint32_t row = kTokens - 1, first = layer < 2 ? 0 : kTokens - kWindow;
    fill(q, hashes[row], layer, Part::kQuery);
    for (std::uint32_t head = 0; head < 2; ++head) {
      std::vector<double> sum(64);
      double weight = 0;
      for (std::uint32_t t = first; t < kTokens; ++t) {
        fill(k, hashes[t], layer, Part::kKey);
        fill(v, hashes[t], layer, Part::kValue);
        double dot = 0;
        for (std::uint32_t d = 0; d < 64; ++d) dot += double{k[d]} * q[head * 64 + d];
        const double w = std::exp(0.5 * dot);
        weight += w;
        for (std::uint32_t d = 0; d < 64; ++d) sum[d] += w * v[d];
      }
      for (std::uint32_t d = 0; d < 64; ++d)
        EXPECT_NEAR(outputs[0][(layer * kStep + kStep - 1) * 128 + head * 64 + d], sum[d] / weight, 1e-3)
            << "layer " << layer << " head " << head << " element " << d;
    }
  }
}

TEST(Groups, BytesOfAStateOrALatentRowAreTheEngines) {
  for (const ModelSpec& model :
       {model_of({full(1), state(1)}), model_of({{GroupKind::kLatent, 4, {Dtype::kF16, 1, 576, 0}, 0, 0}})}) {
    Config config = books(64, model);
    config.device = "cpu";
    config.pool.budget_bytes = 64u << 20;
    const auto manager = Manager::create(config, model);
    ASSERT_FALSE(manager.ok());
    EXPECT_NE(manager.status().message().find("device: none"), std::string::npos) << manager.status().message();
  }
}

// Random operations on a hybrid model: verify() holds after each, reuse never exceeds what a naive set of prefixes says
// was ever computed, and what is freed comes back.
class GroupsRandom : public testing::TestWithParam<int> {};

TEST_P(GroupsRandom, StaySound) {
  std::mt19937 random(static_cast<unsigned>(GetParam()));
  const auto below = [&](std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); };
  const std::vector<std::vector<GroupSpec>> models = {
      {full(1), window(2, 40)}, {window(3, 64)}, {full(2), state(4)}, {full(1), window(1, 17), state(1)}};
  const ModelSpec model = model_of(models[static_cast<std::size_t>(GetParam()) % models.size()]);
  const bool has_state = model.groups.back().kind == GroupKind::kState;
  const auto manager = make_manager(books(60, model), model);
  std::map<std::uint64_t, Tokens> live;
  std::set<Tokens> computed;  // prefixes of whole blocks that some sequence committed
  const auto pick = [&] { return std::next(live.begin(), below(static_cast<std::uint32_t>(live.size()))); };
  const auto note = [&](const Tokens& tokens) {
    for (std::size_t n = kBlockTokens; n <= tokens.size(); n += kBlockTokens) computed.insert(first_of(tokens, n));
  };
  for (int step = 0; step < 400; ++step) {
    const std::uint32_t what = below(10);
    if (live.empty() || (what < 3 && live.size() < 6)) {
      // Prompts from a small tree of prefixes, so that they are found again.
      Tokens tokens;
      for (std::uint32_t i = 0, n = 1 + below(6); i < n; ++i)
        tokens = joined(tokens, distinct(kBlockTokens, static_cast<TokenId>(100 * below(2))));
      tokens = joined(tokens, distinct(1 + below(15), 50'000));
      const auto begun = manager->begin(tokens);
      ASSERT_TRUE(begun.ok());
      const std::uint32_t hit = begun->match.tokens;
      ASSERT_LT(hit, tokens.size());
      if (hit != 0) {
        ASSERT_TRUE(computed.count(first_of(tokens, hit))) << "a prefix nobody computed";
      }
      live[index(begun->seq)] = first_of(tokens, hit);
      if (manager->allocate(begun->seq, static_cast<std::uint32_t>(tokens.size()) - hit).ok()) {
        ASSERT_OK(manager->commit(begun->seq, std::span(tokens).subspan(hit)));
        live[index(begun->seq)] = tokens;
        note(tokens);
      }
    } else if (what < 6) {
      auto& [number, tokens] = *pick();
      const Tokens more = distinct(1 + below(40), static_cast<TokenId>(100 * below(2)));
      const std::uint32_t lookahead = below(3) == 0 ? below(20) : 0;
      if (manager->allocate(SeqId{number}, static_cast<std::uint32_t>(more.size()), lookahead).ok()) {
        ASSERT_OK(manager->commit(SeqId{number}, more));
        tokens = joined(tokens, more);
        note(tokens);
      }
    } else if (what < 7 && live.size() < 6) {
      const auto& [number, tokens] = *pick();
      const Tokens copy = tokens;
      const auto child = manager->fork(SeqId{number});
      ASSERT_TRUE(child.ok());
      live[index(*child)] = copy;
    } else if (what < 8) {
      auto& [number, tokens] = *pick();
      const std::uint32_t most = static_cast<std::uint32_t>(tokens.size());
      const std::uint32_t n = has_state ? (most - below(std::min(most, 40u) + 1)) / kBlockTokens * kBlockTokens
                                        : most - below(std::min(most, 40u) + 1);
      const Status status = manager->rewind(SeqId{number}, n);
      if (status.ok()) tokens = first_of(tokens, n);
      ASSERT_TRUE(status.ok() || status.code() == Code::kUnavailable) << status.message();
    } else {
      const auto gone = pick();
      ASSERT_OK(manager->free(SeqId{gone->first}));
      live.erase(gone);
    }
    ASSERT_EQ(broken(*manager), "") << "step " << step;
    for (const auto& [number, tokens] : live) ASSERT_EQ(manager->token_count(SeqId{number}), tokens.size());
  }
  for (const auto& [number, tokens] : live) ASSERT_OK(manager->free(SeqId{number}));
  EXPECT_EQ(manager->stats().slots_live, 0u);
  EXPECT_GT(manager->stats().prefix_cache_hits, 0u) << "the run never met a prefix again";
  EXPECT_OK(manager->reset());
  EXPECT_EQ(manager->stats().slots_free, manager->stats().slots_total);
  expect_sound(*manager);
}

INSTANTIATE_TEST_SUITE_P(Seeds, GroupsRandom, testing::Range(0, 16));

}  // namespace
}  // namespace firn::test
