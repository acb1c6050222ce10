// Families, quotas and shared scopes where a block of tokens is several blocks: one full group and two page sets of a
// sliding window in one pool. And quotas that come from the configuration.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/core/manager/fixture.h"

namespace firn::test {
namespace {

constexpr std::uint32_t kSets = 3;

// A window of 33 sees two whole blocks before itself.
ModelSpec mixed_model() {
  const KvShape shape{Dtype::kF16, 1, 256, 256};
  ModelSpec model = small_model();
  model.groups = {{GroupKind::kFull, 1, shape, 0, 0}, {GroupKind::kSlidingWindow, 2, shape, 33, 0}};
  return model;
}

std::uint64_t page_bytes() { return page_layout(mixed_model())->page_bytes; }

Config books(std::uint32_t slots) {
  Config config = bookkeeping(slots, mixed_model());
  config.pool.budget_bytes = slots * page_bytes();
  return config;
}

class KeepGroups : public testing::Test {
 protected:
  void make(const Config& config) {
    manager_ = make_manager(config, mixed_model());
    ASSERT_EQ(m().layout().sets.size(), kSets);
  }
  void TearDown() override {
    if (!manager_) return;
    EXPECT_EQ(broken(m()), "");
    EXPECT_EQ(m().stats().prefix_cache_queries, total(m().stats()));
  }
  Manager& m() { return *manager_; }
  Tokens cached(std::uint32_t blocks, TokenId first, std::string_view name = {}) {
    const Tokens tokens = distinct(blocks * kBlockTokens, first);
    EXPECT_OK(m().free(prompt(m(), tokens, {.name_space = name})));
    return tokens;
  }
  // Takes so many blocks of tokens in every page set and gives them back, unkeyed.
  Status press(std::uint32_t blocks, std::string_view name = {}) {
    const auto begun = m().begin({Tokens{1}}, {.name_space = name, .read_cache = false});
    if (!begun.ok()) return begun.status();
    const Status status = m().allocate(begun->seq, blocks * kBlockTokens).status();
    EXPECT_OK(m().free(begun->seq));
    return status;
  }
  // Blocks of these keys that can be found, all page sets together.
  std::size_t present(const std::vector<Key>& keys) {
    const auto snapshot = m().event_snapshot();
    EXPECT_OK(snapshot.status());
    return static_cast<std::size_t>(std::count_if(
        snapshot->blocks.begin(), snapshot->blocks.end(),
        [&](const EventBlock& block) { return std::find(keys.begin(), keys.end(), block.key) != keys.end(); }));
  }

  std::unique_ptr<Manager> manager_;
};

TEST_F(KeepGroups, AFamilyIsEveryPageSetsBlocksOfItsKeysAndGoesAsOne) {
  Config config = books(1 + 5 * kSets);
  config.events.capacity = 256;
  make(config);
  const Tokens one = cached(1, 0), two = cached(1, 100), other = cached(1, 200);
  const std::vector<Key> keys{m().compute_keys(one)[0], m().compute_keys(two)[0]};
  ASSERT_EQ(present(keys), 2 * kSets);
  const std::vector<Key> twice{keys[0], keys[0]};
  EXPECT_EQ(m().set_family(twice).message(), "set_family: a key is given twice");
  ASSERT_OK(m().set_family(keys));
  const SeqId reader = prompt(m(), joined(two, {1}));  // one key of the family, and a block of its own
  ASSERT_OK(press(2));
  EXPECT_EQ(present(keys), 2 * kSets) << "one of them is held, so all are skipped";
  EXPECT_EQ(m().match_prefix(joined(other, {1})).tokens, 0u);
  EXPECT_EQ(press(3).code(), Code::kNoSpace);
  ASSERT_OK(m().free(reader));
  ASSERT_OK(press(4));
  EXPECT_EQ(present(keys), 0u) << "the room of one block was wanted, and all of the family went";
}

TEST_F(KeepGroups, FloorsAndCeilingsCountTheBlocksOfEveryPageSet) {
  make(books(1 + 6 * kSets));
  ASSERT_OK(m().set_quota("a", {.device_floor = 2 * kSets * page_bytes()}));
  ASSERT_OK(m().set_quota("b", {.device_ceiling = 2 * kSets * page_bytes()}));
  const Tokens mine = cached(2, 0, "a");
  EXPECT_EQ(m().usage("a").device_bytes, 2 * kSets * page_bytes());
  EXPECT_OK(press(4, "c"));
  EXPECT_EQ(press(5, "c").code(), Code::kNoSpace) << "six blocks of tokens, of which two are a's";
  EXPECT_EQ(m().match_prefix(joined(mine, {1}), "a").tokens, 32u);
  EXPECT_OK(press(2, "b"));
  const Status refused = press(3, "b");
  EXPECT_EQ(refused.code(), Code::kNoSpace);
  EXPECT_NE(refused.message().find("ceiling"), std::string::npos) << refused.message();
  const auto begun = m().begin(Tokens{1}, {.name_space = "b", .read_cache = false});
  const StepRequest request{begun->seq, 100};
  EXPECT_EQ(m().plan_step(std::span(&request, 1))->chunk_limit, 32u);
  ASSERT_OK(m().free(begun->seq));
}

TEST_F(KeepGroups, AWindowThatSlidesGivesRoomBelowACeiling) {
  make(books(1 + 8 * kSets));
  // Six blocks of tokens: six in the full group, three (two and the one being filled) in each window.
  ASSERT_OK(m().set_quota("a", {.device_ceiling = 12 * page_bytes()}));
  const auto begun = m().begin(Tokens{1}, {.name_space = "a"});
  for (TokenId block = 0; block < 6; ++block) {
    ASSERT_OK(m().allocate(begun->seq, kBlockTokens).status()) << "block " << block;
    ASSERT_OK(m().commit(begun->seq, distinct(kBlockTokens, 100 * block)));
    EXPECT_LE(m().usage("a").device_bytes, 12 * page_bytes());
  }
  ASSERT_OK(m().free(begun->seq));
}

TEST_F(KeepGroups, ASharedScopeHoldsTheSystemPromptOfEveryPageSet) {
  make(books(1 + 12 * kSets));
  const Tokens system = distinct(48, 0);
  const BeginOptions writer{.name_space = "b", .shared_scope = "public", .shared_tokens = 48, .share = true};
  const BeginOptions reader{.name_space = "a", .shared_scope = "public"};
  ASSERT_OK(m().free(prompt(m(), joined(system, distinct(17, 100)), writer)));
  EXPECT_EQ(m().usage("public").blocks + m().usage("b").blocks, 4 * kSets);
  const Tokens mine = joined(system, distinct(33, 500));
  EXPECT_EQ(m().match_prefix(mine, reader).tokens, 48u);
  EXPECT_EQ(m().match_prefix(mine, "a").tokens, 0u);
  const SeqId seq = prompt(m(), mine, reader);
  // The full group holds all of the shared blocks, the windows those they still see, and null blocks before.
  EXPECT_EQ(m().block_table(seq, PageSetId{0})[0], m().block_table(prompt(m(), mine, reader), PageSetId{0})[0]);
  EXPECT_EQ(m().block_table(seq, PageSetId{1})[0], SlotId{0});
  ASSERT_OK(m().free(seq));
  EXPECT_EQ(m().match_prefix(mine, reader).tokens, 80u) << "own blocks after the shared ones";
  EXPECT_EQ(m().match_prefix(mine, {.name_space = "b", .shared_scope = "public"}).tokens, 48u);
  EXPECT_EQ(m().match_prefix(mine, {.name_space = "c"}).tokens, 0u) << "nobody sees a's without being a";
}

TEST_F(KeepGroups, QuotasOfTheConfigurationHoldFromTheStart) {
  Config config = books(1 + 6 * kSets);
  config.quotas = "gold device=" + format_bytes(2 * kSets * page_bytes()) + "..; trial device=.." +
                  format_bytes(kSets * page_bytes());
  make(config);
  EXPECT_EQ(m().usage("gold").quota.device_floor, 2 * kSets * page_bytes());
  cached(2, 0, "gold");
  EXPECT_EQ(press(5).code(), Code::kNoSpace);
  EXPECT_EQ(press(2, "trial").code(), Code::kNoSpace);
  ASSERT_OK(m().set_quota("gold", {})) << "and may be changed";
  EXPECT_OK(press(5));

  config.quotas = "gold device=1GiB..";
  const auto refused = Manager::create(config, mixed_model());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::kInvalidArgument);
  EXPECT_EQ(refused.status().message().rfind("quotas: gold: set_quota: all floors together are 1073741824", 0), 0u)
      << refused.status().message();
}

}  // namespace
}  // namespace firn::test
