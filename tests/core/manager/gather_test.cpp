// Reading keys and values back: what gather() gives is what was appended, wherever the blocks are by now.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "tests/core/manager/toy_engine.h"

namespace firn::test {
namespace {

constexpr std::uint32_t kLayers = 4, kHeads = 2, kDim = 32, kValueDim = 16;

ModelSpec model_of(Dtype dtype) {
  ModelSpec model = small_model(kLayers, kHeads, kDim);
  model.groups[0].kv = {dtype, kHeads, kDim, kValueDim};
  return model;
}

Config tiered(const char* codec) {
  Config config;
  config.device = "cpu";
  config.threads = 1;
  config.pool.budget_bytes = 4u << 20;
  config.pool.max_step_tokens = 64;
  config.protect = {.sinks = 4, .recent = 16};
  config.host.budget_bytes = 8u << 20;
  config.host.codec = codec;
  config.host.huge_pages = false;
  config.mover.worker = false;
  return config;
}

struct Bytes {
  std::vector<std::byte> k, v;
  bool operator==(const Bytes&) const = default;
};

Bytes room(const Manager& manager, std::uint32_t layer, std::uint32_t count) {
  for (const PageSet& set : manager.layout().sets)
    if (layer < set.first_layer + set.layer_count)
      return {std::vector<std::byte>(count * set.kv.key_bytes()), std::vector<std::byte>(count * set.kv.value_bytes())};
  return {};
}

Bytes gathered(Manager& manager, SeqId seq, std::uint32_t layer, std::uint32_t first, std::uint32_t count) {
  Bytes bytes = room(manager, layer, count);
  EXPECT_OK(manager.gather(seq, layer, first, count, bytes.k, bytes.v));
  return bytes;
}

// A sequence of these tokens, computed.
SeqId computed(Manager& manager, const Tokens& tokens) {
  ToyEngine engine(manager, kHeads);
  const auto begun = manager.begin(tokens);
  EXPECT_TRUE(begun.ok());
  for (std::uint32_t at = begun->match.tokens; at < tokens.size();) {
    const std::uint32_t count =
        std::min(manager.config().pool.max_step_tokens, static_cast<std::uint32_t>(tokens.size()) - at);
    EXPECT_OK(manager.allocate(begun->seq, count).status());
    EXPECT_OK(engine.append(begun->seq, tokens, at, count));
    EXPECT_OK(manager.commit(begun->seq, std::span(tokens).subspan(at, count)));
    at += count;
  }
  return begun->seq;
}

TEST(Gather, GivesWhatWasAppended) {
  const auto manager = make_manager(tiered("raw"), model_of(Dtype::kF32));
  const Tokens tokens = distinct(333, 7);
  const SeqId seq = computed(*manager, tokens);
  const std::vector<std::uint64_t> hashes = prefix_hashes(tokens);
  for (const auto& [first, count] : {std::pair{0u, 333u}, {0u, 1u}, {15u, 2u}, {17u, 300u}, {332u, 1u}})
    for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
      const Bytes got = gathered(*manager, seq, layer, first, count);
      for (std::uint32_t i = 0; i < count; ++i) {
        std::vector<float> k(kHeads * kDim), v(kHeads * kValueDim);
        fill(k, hashes[first + i], layer, Part::kKey);
        fill(v, hashes[first + i], layer, Part::kValue);
        ASSERT_EQ(std::memcmp(got.k.data() + i * 4 * k.size(), k.data(), 4 * k.size()), 0) << first << " + " << i;
        ASSERT_EQ(std::memcmp(got.v.data() + i * 4 * v.size(), v.data(), 4 * v.size()), 0) << first << " + " << i;
      }
    }
}

TEST(Gather, IsTheSameOutOfFrames) {
  for (const char* codec : {"raw", "lossless"})
    for (const Dtype dtype : {Dtype::kF16, Dtype::kBf16, Dtype::kF32}) {
      const auto manager = make_manager(tiered(codec), model_of(dtype));
      const Tokens tokens = distinct(700, 7);
      const SeqId seq = computed(*manager, tokens);
      std::vector<Bytes> hot;
      for (std::uint32_t layer = 0; layer < kLayers; ++layer) hot.push_back(gathered(*manager, seq, layer, 3, 690));
      ASSERT_OK(manager->wait_idle());
      ASSERT_TRUE(manager->empty_pool(0xA5).ok());
      const auto slots = manager->block_table(seq);
      ASSERT_GT(std::count(slots.begin(), slots.end(), SlotId::kNone), 20) << "most of it is below";
      for (std::uint32_t layer = 0; layer < kLayers; ++layer)
        EXPECT_EQ(gathered(*manager, seq, layer, 3, 690), hot[layer]) << codec << " layer " << layer;
      EXPECT_EQ(broken(*manager), "");
    }
}

TEST(Gather, RefusesWhatIsNotThere) {
  const auto manager = make_manager(tiered("raw"), model_of(Dtype::kF16));
  const SeqId seq = computed(*manager, distinct(40, 7));
  Bytes bytes = room(*manager, 0, 40);
  EXPECT_EQ(manager->gather(seq, kLayers, 0, 40, bytes.k, bytes.v).code(), Code::kInvalidArgument);
  EXPECT_EQ(manager->gather(seq, 0, 1, 40, bytes.k, bytes.v).code(), Code::kInvalidArgument) << "41 tokens";
  EXPECT_EQ(manager->gather(seq, 0, ~0u, 40, bytes.k, bytes.v).code(), Code::kInvalidArgument);
  EXPECT_EQ(manager->gather(seq, 0, 0, 39, bytes.k, bytes.v).code(), Code::kInvalidArgument) << "sizes";
  EXPECT_EQ(manager->gather(seq, 0, 0, 40, bytes.k, {}).code(), Code::kInvalidArgument);
  EXPECT_EQ(manager->gather(SeqId{99}, 0, 0, 40, bytes.k, bytes.v).code(), Code::kInvalidArgument);
  EXPECT_OK(manager->gather(seq, 0, 40, 0, {}, {})) << "nothing of it";
  EXPECT_OK(manager->gather(seq, 0, 0, 40, bytes.k, bytes.v));
  EXPECT_TRUE(manager->has_sequence(seq));
  ASSERT_OK(manager->preempt(seq));
  EXPECT_EQ(manager->gather(seq, 0, 0, 40, bytes.k, bytes.v).code(), Code::kInvalidArgument);
  EXPECT_TRUE(manager->has_sequence(seq));
  ASSERT_OK(manager->free(seq));
  EXPECT_EQ(manager->gather(seq, 0, 0, 40, bytes.k, bytes.v).code(), Code::kInvalidArgument);
  EXPECT_FALSE(manager->has_sequence(seq));
  const auto books = make_manager(bookkeeping(8));
  EXPECT_EQ(books->gather(prompt(*books, distinct(20, 1)), 0, 0, 0, {}, {}).code(), Code::kUnavailable);
}

TEST(Gather, SaysWhatHasSlidOutOfAWindow) {
  ModelSpec model = model_of(Dtype::kF32);
  model.groups[0].layer_count = 2;
  model.groups.push_back({GroupKind::kSlidingWindow, 2, model.groups[0].kv, 32, 0});
  const auto manager = make_manager(tiered("raw"), model);
  const Tokens tokens = distinct(200, 7);
  const SeqId seq = computed(*manager, tokens);
  EXPECT_EQ(gathered(*manager, seq, 0, 0, 200).k.size(), 200 * manager->layout().sets[0].kv.key_bytes());
  Bytes bytes = room(*manager, 2, 200);
  const Status refused = manager->gather(seq, 2, 0, 200, bytes.k, bytes.v);
  EXPECT_EQ(refused.code(), Code::kUnavailable);
  EXPECT_NE(refused.message().find("window"), std::string::npos) << refused.message();
  const Bytes window = gathered(*manager, seq, 3, 170, 30);
  std::vector<float> k(kHeads * kDim);
  fill(k, prefix_hashes(tokens)[170], 3, Part::kKey);
  EXPECT_EQ(std::memcmp(window.k.data(), k.data(), 4 * k.size()), 0);
  // Where a slot lies: only in the layers of its block's page set.
  const SlotId slot = manager->block_table(seq, PageSetId{1}).back();
  ASSERT_TRUE(manager->slot_view(slot, 3).ok());
  EXPECT_EQ(manager->slot_view(slot, 0).status().code(), Code::kInvalidArgument);
}

TEST(SlotView, IsWhereTheBytesAre) {
  const auto manager = make_manager(tiered("raw"), model_of(Dtype::kF16));
  const SeqId seq = computed(*manager, distinct(40, 7));
  for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
    const Bytes got = gathered(*manager, seq, layer, 16, 16);
    const auto view = manager->slot_view(manager->block_table(seq)[1], layer);
    ASSERT_TRUE(view.ok());
    for (std::uint32_t token = 0; token < kBlockTokens; ++token)
      for (std::uint32_t head = 0; head < kHeads; ++head) {
        const auto* k =
            reinterpret_cast<const std::byte*>(view->k + token * view->token_stride + head * view->head_stride);
        const auto* v =
            reinterpret_cast<const std::byte*>(view->v + token * view->v_token_stride + head * view->v_head_stride);
        EXPECT_EQ(std::memcmp(got.k.data() + (token * kHeads + head) * 2 * kDim, k, 2 * kDim), 0);
        EXPECT_EQ(std::memcmp(got.v.data() + (token * kHeads + head) * 2 * kValueDim, v, 2 * kValueDim), 0);
      }
  }
  EXPECT_EQ(manager->slot_view(SlotId{0}, 0).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(manager->slot_view(SlotId::kNone, 0).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(manager->slot_view(SlotId{1}, kLayers).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(make_manager(bookkeeping(8))->slot_view(SlotId{1}, 0).status().code(), Code::kUnavailable);
}

// One thread reads its sequence back, all of it cold sooner or later, while others fill the pool again and again.
TEST(Gather, BesideThreadsThatTakeTheRoom) {
  Config config = tiered("lossless");
  config.pool.budget_bytes = 1u << 20;
  config.mover.worker = true;
  const auto manager = make_manager(config, model_of(Dtype::kF16));
  const Tokens tokens = distinct(200, 7);
  const SeqId seq = computed(*manager, tokens);
  const Bytes before = gathered(*manager, seq, 1, 0, 200);
  std::atomic<bool> stop{false};
  std::vector<std::jthread> others;
  for (TokenId number = 1; number <= 2; ++number)
    others.emplace_back([&, number] {
      ToyEngine engine(*manager, kHeads);
      for (TokenId round = 0; !stop; ++round) {
        const Tokens mine = distinct(30, (number * 1000 + round) * 100);
        const auto begun = manager->begin(mine);
        if (!begun.ok()) continue;
        if (manager->allocate(begun->seq, 30).ok() && engine.append(begun->seq, mine, 0, 30).ok())
          manager->commit(begun->seq, mine).ok();
        manager->free(begun->seq).ok();
      }
    });
  for (int round = 0; round < 50; ++round) ASSERT_EQ(gathered(*manager, seq, 1, 0, 200), before) << round;
  stop = true;
  others.clear();
  EXPECT_OK(manager->wait_idle());
  EXPECT_EQ(broken(*manager), "");
}

TEST(PoolSlots, ArePreciselyAsMany) {
  for (const std::uint32_t slots : {20u, 57u, 1000u})
    for (const char* device : {"none", "cpu"}) {
      Config config = tiered("raw");
      config.device = device;
      config.pool.budget_bytes = 0;
      config.pool.slots = slots;
      if (config.device == "none") config.host.budget_bytes = 0;
      const auto manager = make_manager(config, model_of(Dtype::kF16));
      ASSERT_TRUE(manager);
      EXPECT_EQ(manager->stats().slots_total, slots) << device;
      EXPECT_EQ(manager->reuse_order().size(), slots) << device;
      EXPECT_LE(manager->ledger().spent(Budget::kDevice), manager->config().pool.budget_bytes);
      // What it says of itself makes the same again.
      const auto again = make_manager(manager->config(), model_of(Dtype::kF16));
      ASSERT_TRUE(again);
      EXPECT_EQ(again->stats().slots_total, slots) << device;
    }
}

TEST(PoolSlots, BesideABudgetTheyFitOrAreRefused) {
  Config config = tiered("raw");
  config.pool.slots = 20;
  EXPECT_EQ(make_manager(config, model_of(Dtype::kF16))->stats().slots_total, 20u);
  config.pool.slots = 60000;
  const auto refused = Manager::create(config, model_of(Dtype::kF16));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::kInvalidArgument);
  EXPECT_NE(refused.status().message().find("pool.slots"), std::string::npos) << refused.status().message();
  config.pool.slots = 2;
  EXPECT_FALSE(Manager::create(config, model_of(Dtype::kF16)).ok()) << "one sequence needs more";
}

}  // namespace
}  // namespace firn::test
