// Promises that a call breaks when it believes what another one has changed: inputs as small as they get, each of which
// once gave something else than what is asked for here.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "tests/core/manager/fixture.h"
#include "tests/core/manager/test_peer.h"
#include "tests/core/manager/toy_engine.h"

namespace firn::test {
namespace {

const KvShape kShape{Dtype::kF16, 1, 256, 256};
GroupSpec full(std::uint32_t layers) { return {GroupKind::kFull, layers, kShape, 0, 0}; }
GroupSpec window(std::uint32_t layers, std::uint32_t tokens) {
  return {GroupKind::kSlidingWindow, layers, kShape, tokens, 0};
}
GroupSpec state(std::uint32_t layers) { return {GroupKind::kState, layers, kShape, 0, 0}; }

ModelSpec model_of(std::vector<GroupSpec> groups) {
  ModelSpec model = small_model();
  model.groups = std::move(groups);
  return model;
}

Config books(std::uint32_t slots, const ModelSpec& model) {
  Config config = bookkeeping(slots, model);
  config.pool.budget_bytes = slots * page_layout(model)->page_bytes;
  return config;
}

Config with_bytes() {
  Config config;
  config.device = "cpu";
  config.threads = 1;
  config.pool.budget_bytes = 16u << 20;
  config.pool.max_step_tokens = 256;
  config.host.budget_bytes = 16u << 20;
  config.mover.worker = false;
  return config;
}

std::uint64_t budget(std::uint32_t slots) { return slots * small_model().block_bytes(); }

// A prompt that is computed and goes on being held.
SeqId computed(Manager& manager, ToyEngine& engine, const Tokens& tokens) {
  const auto begun = manager.begin(tokens);
  EXPECT_OK(begun.status());
  for (std::uint32_t at = begun->match.tokens; at < tokens.size();) {
    const std::uint32_t count = std::min(128u, static_cast<std::uint32_t>(tokens.size()) - at);
    EXPECT_OK(manager.allocate(begun->seq, count).status());
    EXPECT_OK(engine.append(begun->seq, tokens, at, count));
    EXPECT_OK(manager.commit(begun->seq, std::span(tokens).subspan(at, count)));
    at += count;
  }
  return begun->seq;
}

// --- a preempted sequence has tokens and no blocks ---

TEST(Promises, FreeingAPreemptedSequenceStoresNothingOfOthers) {
  const auto manager = make_manager(with_bytes());
  ToyEngine engine(*manager, 2);
  const Tokens mine = distinct(16 * 40, 0);
  std::vector<std::pair<SeqId, Tokens>> others;
  const SeqId seq = computed(*manager, engine, mine);
  for (TokenId i = 1; i < 4; ++i) {
    const Tokens tokens = distinct(16 * 20, 10'000 * i);
    others.emplace_back(computed(*manager, engine, tokens), tokens);
  }
  std::vector<std::vector<float>> before;
  for (const auto& [other, tokens] : others) before.push_back(*engine.attend(other, tokens, 300, 20));
  ASSERT_OK(manager->preempt(seq));
  ASSERT_OK(manager->wait_idle());
  const Stats stored = manager->stats();
  ASSERT_OK(manager->free(seq));
  ASSERT_OK(manager->wait_idle());
  EXPECT_EQ(manager->stats().frames_stored, stored.frames_stored) << "it had no blocks to store";
  EXPECT_EQ(broken(*manager), "");
  for (std::size_t i = 0; i < others.size(); ++i)
    EXPECT_EQ(*engine.attend(others[i].first, others[i].second, 300, 20), before[i]);
}

// --- resizing under every policy ---

class PromisesPerPolicy : public testing::TestWithParam<std::string_view> {};

TEST_P(PromisesPerPolicy, AShrunkPoolHasNothingInMemoryThatItGaveBack) {
  Config config = bookkeeping(64);
  config.pool.max_budget_bytes = budget(64);
  config.eviction = std::string(GetParam());
  std::int64_t now = 0;
  const auto manager = make_manager(config, small_model(), {.clock = [&now] { return Instant{now}; }});
  for (int round = 0; round < 6; ++round) {
    for (TokenId i = 0; i < 9; ++i) {
      now += 1'000'000'000;
      const Tokens tokens = distinct(16 * 7, 1000 * i);
      ASSERT_OK(manager->free(prompt(*manager, tokens)));
      if (i % 3 != 0) continue;
      ASSERT_OK(manager->free(prompt(*manager, tokens)));  // used again
    }
    const auto shrunk = manager->resize_pool(budget(16));
    ASSERT_OK(shrunk.status());
    EXPECT_EQ(shrunk->slots, 16u);
    EXPECT_EQ(broken(*manager), "") << "after shrinking, round " << round;
    ASSERT_OK(manager->resize_pool(budget(64)).status());
    EXPECT_EQ(broken(*manager), "") << "after growing, round " << round;
  }
}

// What may be taken next is all of it, each once, and asking changes nothing.
TEST_P(PromisesPerPolicy, TheOrderOfReuseIsWhatAllocateTakes) {
  Config config = bookkeeping(33);
  config.eviction = std::string(GetParam());
  std::int64_t now = 0;
  const auto manager = make_manager(config, small_model(), {.clock = [&now] { return Instant{now}; }});
  for (TokenId i = 0; i < 12; ++i) {
    now += 1'000'000'000;
    ASSERT_OK(manager->free(prompt(*manager, distinct(16 * (1 + i % 4), 1000 * (i % 8)))));
  }
  const std::vector<SlotId> order = manager->reuse_order();
  EXPECT_EQ(order.size(), 32u);
  EXPECT_EQ(manager->reuse_order(), order) << "asking is no use";
  std::vector<SlotId> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(std::unique(sorted.begin(), sorted.end()), sorted.end());
  const SeqId taker = manager->begin(Tokens{1}, {.name_space = {}, .read_cache = false})->seq;
  ASSERT_OK(manager->allocate(taker, 16 * 32).status());
  EXPECT_EQ(manager->block_table(taker), order);
}

INSTANTIATE_TEST_SUITE_P(Policies, PromisesPerPolicy, testing::ValuesIn(policy_names().begin(), policy_names().end()),
                         [](const auto& rule) { return std::string(rule.param); });

// --- a refusal changes nothing, and a plan is kept ---

TEST(Promises, AnAllocationThatAFamilyRefusesHasEvictedNothing) {
  Config config = bookkeeping(11);
  config.retention.pin_budget_bytes = budget(5);
  config.events.capacity = 256;
  const auto manager = make_manager(config);
  const Tokens family = distinct(16 * 4, 0), loose = distinct(16 * 3, 1000);
  ASSERT_OK(manager->free(prompt(*manager, family)));
  ASSERT_OK(manager->free(prompt(*manager, loose)));
  const std::vector<Key> keys = manager->compute_keys(family);
  ASSERT_OK(manager->set_family(keys));
  ASSERT_OK(manager->pin(std::span(keys).first(1), 1'000'000'000).status());
  // Three are free, three are loose; four are the family's, of which one is pinned.
  const SeqId seq = manager->begin(Tokens{1}, {.name_space = {}, .read_cache = false})->seq;
  const StepRequest request{seq, 16 * 7};
  const auto plan = manager->plan_step(std::span(&request, 1));
  EXPECT_EQ(plan->chunk_limit, 16 * 6u);
  const std::vector<SlotId> before = manager->reuse_order();
  const std::uint64_t events = manager->stats().events;
  EXPECT_EQ(manager->allocate(seq, 16 * 7).status().code(), Code::kNoSpace);
  EXPECT_EQ(manager->stats().evictions, 0u);
  EXPECT_EQ(manager->stats().events, events);
  EXPECT_EQ(manager->reuse_order(), before);
  EXPECT_EQ(broken(*manager), "");
  EXPECT_OK(manager->allocate(seq, plan->chunk_limit).status());
  EXPECT_EQ(broken(*manager), "");
}

TEST(Promises, APlanKnowsTheLongestSequence) {
  Config config = bookkeeping(21);
  config.max_sequence_tokens = 100;
  config.pool.max_step_tokens = 64;
  const auto manager = make_manager(config);
  const SeqId seq = prompt(*manager, distinct(94, 0));
  const StepRequest request{seq, 16};
  const auto plan = manager->plan_step(std::span(&request, 1));
  EXPECT_EQ(plan->chunk_limit, 6u);
  EXPECT_OK(manager->allocate(seq, 6).status());
  const StepRequest full_up[] = {{seq, 6}};
  ASSERT_OK(manager->commit(seq, distinct(6, 500)));
  const auto none = manager->plan_step(full_up);
  EXPECT_EQ(none->chunk_limit, 0u);
  EXPECT_EQ(none->blocked.code(), Code::kInvalidArgument) << none->blocked.message();
}

TEST(Promises, APlanCountsASequenceThatIsNamedTwiceTwice) {
  const auto manager = make_manager(bookkeeping(5));  // four slots
  const SeqId seq = manager->begin(Tokens{1}, {.name_space = {}, .read_cache = false})->seq;
  const StepRequest twice[] = {{seq, 40}, {seq, 40}};
  const auto plan = manager->plan_step(twice);
  EXPECT_EQ(plan->blocks_needed, 5u);
  EXPECT_EQ(plan->chunk_limit, 64u);
}

TEST(Promises, APlanKnowsTheMetadataBudget) {
  Config config = bookkeeping(400);
  config.max_sequence_tokens = 1u << 20;
  config.pool.max_step_tokens = 65536;
  const auto sized = make_manager(config);
  config.metadata_budget_bytes = sized->stats().metadata_bytes + (16u << 10);
  const auto manager = make_manager(config);
  const SeqId seq = manager->begin(Tokens{1}, {.name_space = {}, .read_cache = false})->seq;
  const StepRequest request{seq, 6000};
  const auto plan = manager->plan_step(std::span(&request, 1));
  ASSERT_OK(plan.status());
  EXPECT_GT(plan->chunk_limit, 0u);
  EXPECT_LT(plan->chunk_limit, 6000u);
  EXPECT_FALSE(manager->allocate(seq, 6000).ok());
  EXPECT_OK(manager->allocate(seq, plan->chunk_limit).status());
}

TEST(Promises, WhoIsNotLetInLeavesNoName) {
  const auto manager = make_manager(bookkeeping(11));
  const Stats before = manager->stats();
  BeginOptions options{.name_space = "nobody", .shared_scope = "none", .admission = Admission::kMustFit};
  EXPECT_FALSE(manager->begin(distinct(16 * 20, 0), options).ok());
  EXPECT_EQ(manager->stats().namespaces, before.namespaces);
  EXPECT_EQ(manager->stats().metadata_bytes, before.metadata_bytes);
}

// --- quotas ---

TEST(Promises, APrefetchStaysBelowItsNamespacesCeiling) {
  Config config = with_bytes();
  const auto manager = make_manager(config);
  ToyEngine engine(*manager, 2);
  const std::uint64_t block = small_model().block_bytes();
  const Tokens tokens = distinct(16 * 12 + 3, 0);
  const auto begun = manager->begin(tokens, {.name_space = "a"});
  ASSERT_OK(manager->allocate(begun->seq, static_cast<std::uint32_t>(tokens.size())).status());
  ASSERT_OK(engine.append(begun->seq, tokens, 0, static_cast<std::uint32_t>(tokens.size())));
  ASSERT_OK(manager->commit(begun->seq, tokens));
  ASSERT_OK(manager->free(begun->seq));
  ASSERT_OK(manager->wait_idle());
  ASSERT_OK(manager->empty_pool(0).status());
  ASSERT_EQ(manager->usage("a").device_bytes, 0u);
  ASSERT_OK(manager->set_quota("a", {.device_ceiling = 3 * block}));
  const auto again = manager->begin(tokens, {.name_space = "a"});
  ASSERT_EQ(again->match.tokens_on_host, 16 * 12u);
  ASSERT_OK(manager->prefetch(again->seq).status());
  ASSERT_OK(manager->wait_idle());
  EXPECT_EQ(manager->usage("a").device_bytes, 3 * block);
  EXPECT_EQ(broken(*manager), "");
}

// --- a pin is of a key ---

TEST(Promises, APinHoldsEveryCopyAndSurvivesTheOneThatIsDiscarded) {
  Config config = bookkeeping(11);
  config.retention.pin_budget_bytes = budget(5);
  const auto manager = make_manager(config);
  const Tokens tokens = distinct(32, 0);
  const BeginOptions fresh{.name_space = {}, .read_cache = false};
  const SeqId one = prompt(*manager, tokens), two = prompt(*manager, tokens, fresh);
  const std::vector<Key> keys = manager->compute_keys(tokens);
  ASSERT_OK(manager->pin(std::span(keys).first(1), 1'000'000'000).status());
  EXPECT_EQ(manager->stats().pinned_blocks, 2u);
  const SeqId three = prompt(*manager, tokens, fresh);  // a copy that nobody has pinned
  for (const SeqId seq : {one, two}) {
    ASSERT_OK(manager->rewind(seq, 3));
    EXPECT_EQ(broken(*manager), "");
    ASSERT_OK(manager->free(seq));
  }
  ASSERT_OK(manager->free(three));
  EXPECT_EQ(manager->stats().pinned_blocks, 1u);
  const SeqId taker = manager->begin(Tokens{1}, fresh)->seq;
  ASSERT_OK(manager->allocate(taker, 16 * 9).status());
  EXPECT_EQ(manager->match_prefix(joined(tokens, {1})).tokens, 16u) << "the last copy of a pinned key has gone";
  EXPECT_EQ(manager->unpin(std::span(keys).first(1)), 1u);
  EXPECT_EQ(broken(*manager), "");
}

// --- what is kept for a sequence ---

BeginOptions reserve(std::uint32_t tokens) {
  return {.name_space = {}, .admission = Admission::kReserve, .expected_tokens = tokens};
}

TEST(Promises, RoomThatIsKeptIsKeptFromHitsPinsFloorsAndAShrink) {
  Config config = bookkeeping(20);
  config.pool.max_budget_bytes = budget(20);
  config.retention.pin_budget_bytes = budget(10);
  const auto manager = make_manager(config);
  const std::uint32_t slots = static_cast<std::uint32_t>(manager->stats().slots_total);
  const Tokens cached = distinct(16 * 8, 0);
  ASSERT_OK(manager->free(prompt(*manager, cached)));
  const SeqId owner = manager->begin(distinct(3, 9000), reserve(16 * (slots - 2)))->seq;
  const auto reader = manager->begin(joined(cached, {1}));
  ASSERT_OK(reader.status());
  EXPECT_EQ(reader->match.tokens, 32u) << "all but two slots are kept, cached blocks among them";
  EXPECT_EQ(manager->pin(manager->compute_keys(cached), 1'000'000'000).status().code(), Code::kUnavailable);
  EXPECT_EQ(manager->acquire_lease("x", manager->compute_keys(cached), 1'000'000'000).status().code(),
            Code::kUnavailable);
  EXPECT_EQ(manager->set_quota("", {.device_floor = budget(9)}).code(), Code::kOk) << "its own floor is no hindrance";
  EXPECT_EQ(manager->resize_pool(budget(slots - 4)).status().code(), Code::kNoSpace);
  EXPECT_EQ(broken(*manager), "");
  EXPECT_OK(manager->allocate(owner, 16 * (slots - 2)).status());
}

TEST(Promises, AReservationComesBackWithARewindAndAResume) {
  const auto manager = make_manager(bookkeeping(11));  // ten slots
  const SeqId owner = manager->begin(distinct(3, 0), reserve(96))->seq;
  ASSERT_OK(manager->allocate(owner, 96).status());
  ASSERT_OK(manager->commit(owner, distinct(96, 0)));
  EXPECT_EQ(manager->stats().slots_reserved, 0u);
  ASSERT_OK(manager->rewind(owner, 32));
  EXPECT_EQ(manager->stats().slots_reserved, 4u);
  const SeqId other = manager->begin(Tokens{7})->seq;
  EXPECT_FALSE(manager->allocate(other, 16 * 5).ok());
  EXPECT_OK(manager->allocate(owner, 64).status());
  ASSERT_OK(manager->preempt(owner));
  EXPECT_EQ(manager->stats().slots_reserved, 0u);
  EXPECT_EQ(manager->resume(owner)->tokens, 32u);
  EXPECT_EQ(manager->stats().slots_reserved, 4u);
  EXPECT_EQ(broken(*manager), "");
}

// Blocks that another sequence holds too give no room when they are given up: what is kept would not be there.
TEST(Promises, ARewindThatWouldBreakAReservationIsRefused) {
  const auto manager = make_manager(bookkeeping(11));  // ten slots
  const Tokens tokens = distinct(64, 0);
  const SeqId other = prompt(*manager, joined(tokens, {1}));  // five of them
  const auto owner = manager->begin(joined(tokens, {2}), reserve(80));
  ASSERT_EQ(owner->match.tokens, 64u);
  const SeqId third = manager->begin(Tokens{7})->seq;
  ASSERT_OK(manager->allocate(third, 64).status());
  EXPECT_EQ(manager->stats().slots_reserved, 1u);
  for (const std::uint32_t n : {16u, 48u, 60u}) {
    EXPECT_EQ(manager->rewind(owner->seq, n).code(), Code::kUnavailable) << n;
    EXPECT_EQ(manager->token_count(owner->seq), 64u);
    EXPECT_EQ(manager->stats().slots_reserved, 1u);
  }
  ASSERT_OK(manager->rewind(owner->seq, 64));
  ASSERT_OK(manager->free(other));
  ASSERT_OK(manager->rewind(owner->seq, 16));
  EXPECT_EQ(manager->stats().slots_reserved, 4u);
  EXPECT_OK(manager->allocate(owner->seq, 64).status());
  EXPECT_EQ(broken(*manager), "");
}

// Nor is there room for the copy of a tail that a fork shares.
TEST(Promises, AForkThatWouldBreakAReservationIsRefused) {
  const auto manager = make_manager(bookkeeping(11));  // ten slots
  const SeqId owner = manager->begin(distinct(3, 0), reserve(96))->seq;
  ASSERT_OK(manager->allocate(owner, 40).status());
  ASSERT_OK(manager->commit(owner, distinct(40, 0)));
  const SeqId third = manager->begin(Tokens{7})->seq;
  ASSERT_OK(manager->allocate(third, 64).status());
  EXPECT_EQ(manager->fork(owner).status().code(), Code::kUnavailable);
  EXPECT_EQ(manager->stats().slots_reserved, 3u);
  ASSERT_OK(manager->rewind(third, 0));
  for (int round = 0; round < 3; ++round) {
    const auto child = manager->fork(owner);
    ASSERT_OK(child.status());
    EXPECT_EQ(manager->stats().slots_reserved, 4u) << "one for the copy, however many forks there were";
    ASSERT_OK(manager->free(*child));
  }
  EXPECT_OK(manager->allocate(owner, 56).status());
  EXPECT_EQ(broken(*manager), "");
}

TEST(Promises, ACeilingThatWouldBreakAReservationIsRefused) {
  const auto manager = make_manager(bookkeeping(21));  // twenty slots
  const SeqId owner =
      manager->begin(distinct(3, 0), {.name_space = "a", .admission = Admission::kReserve, .expected_tokens = 16 * 8})
          ->seq;
  EXPECT_EQ(manager->set_quota("a", {.device_ceiling = budget(7)}).code(), Code::kUnavailable);
  EXPECT_EQ(manager->usage("a").quota.device_ceiling, 0u);
  ASSERT_OK(manager->set_quota("a", {.device_ceiling = budget(8)}));
  EXPECT_OK(manager->allocate(owner, 16 * 8).status());
  ASSERT_OK(manager->set_quota("a", {.device_ceiling = budget(3)})) << "nothing is kept any more";
  EXPECT_EQ(manager->rewind(owner, 0).code(), Code::kUnavailable) << "eight would be, and three is the most";
  ASSERT_OK(manager->set_quota("a", {}));
  EXPECT_OK(manager->rewind(owner, 0));
  EXPECT_EQ(manager->stats().slots_reserved, 8u);
}

// Another sequence's cold blocks are room that is kept, and none any more once they are in somebody's recent window.
TEST(Promises, AHitDoesNotMakeRecentWhatIsKept) {
  Config config = bookkeeping(15);  // fourteen slots
  config.pool.max_step_tokens = 16;
  config.host.budget_bytes = 2u << 20;
  config.host.huge_pages = false;
  config.mover.worker = false;
  config.protect.sinks = 0;
  config.protect.recent = 32;
  const auto manager = make_manager(config, small_model(), {.assumed_ratio = 2.0});
  const Tokens tokens = distinct(16 * 11, 0);
  const SeqId reader = prompt(*manager, tokens);
  manager->pump();
  ASSERT_EQ(ManagerTestPeer::reachable(*manager), 11u) << "three are free, and eight are cold and have a copy";
  std::vector<SeqId> owners;
  for (const std::uint32_t tokens_kept : {64u, 64u, 48u})
    owners.push_back(manager->begin(distinct(3, 9000), reserve(tokens_kept))->seq);
  ASSERT_EQ(manager->stats().slots_reserved, 11u);
  const auto newcomer = manager->begin(joined(Tokens(tokens.begin(), tokens.begin() + 64), {1}));
  ASSERT_OK(newcomer.status());
  EXPECT_EQ(ManagerTestPeer::reachable(*manager), 11u);
  EXPECT_EQ(newcomer->match.tokens, 0u);
  EXPECT_OK(manager->allocate(owners[0], 64).status());
  EXPECT_OK(manager->allocate(owners[1], 64).status());
  EXPECT_OK(manager->allocate(owners[2], 48).status());
  EXPECT_EQ(manager->token_count(reader), tokens.size());
  EXPECT_EQ(broken(*manager), "");
}

// What a sequence is going to write into a shared scope is kept below the scope's ceiling, for each that does.
TEST(Promises, ReservationsInASharedScopeAddUpBelowItsCeiling) {
  const auto manager = make_manager(bookkeeping(31));  // thirty slots
  ASSERT_OK(manager->set_quota("scope", {.device_ceiling = budget(8)}));
  BeginOptions options = reserve(16 * 6);
  options.shared_scope = "scope", options.shared_tokens = 16 * 5, options.share = true;
  const Tokens mine = distinct(96, 0), its = distinct(96, 5000);
  const SeqId owner = manager->begin(mine, options)->seq;
  EXPECT_EQ(manager->begin(its, options).status().code(), Code::kUnavailable) << "five and five are more than eight";
  const SeqId other =
      manager->begin(its, {.name_space = {}, .shared_scope = "scope", .shared_tokens = 80, .share = true})->seq;
  EXPECT_EQ(manager->allocate(other, 64).status().code(), Code::kNoSpace) << "three are left";
  EXPECT_OK(manager->allocate(other, 48).status());
  EXPECT_EQ(manager->set_quota("scope", {.device_ceiling = budget(7)}).code(), Code::kUnavailable);
  EXPECT_EQ(broken(*manager), "");
  EXPECT_OK(manager->allocate(owner, 96).status());
  ASSERT_OK(manager->commit(owner, mine));
  EXPECT_EQ(broken(*manager), "");
}

// A recurrent state is kept where a step ends, which may be behind the scope.
TEST(Promises, AStateBehindASharedScopeIsBelowItsOwnNamespacesCeiling) {
  const ModelSpec model = model_of({full(1), state(1)});
  const auto manager = make_manager(books(40, model), model);
  const std::uint64_t page = page_layout(model)->page_bytes;
  BeginOptions options = reserve(70);
  options.name_space = "a", options.shared_scope = "scope", options.shared_tokens = 48, options.share = true;
  ASSERT_OK(manager->set_quota("a", {.device_ceiling = 3 * page}));
  EXPECT_EQ(manager->begin(distinct(48, 0), options).status().code(), Code::kNoSpace) << "two blocks, two states";
  ASSERT_OK(manager->set_quota("a", {.device_ceiling = 4 * page}));
  const auto owner = manager->begin(distinct(48, 0), options);
  ASSERT_OK(owner.status());
  EXPECT_OK(manager->allocate(owner->seq, 70).status());
  EXPECT_EQ(broken(*manager), "");
}

// Room that is kept for one is not let be kept for another who alone can get at it.
TEST(Promises, AReservationIsNotLetInBehindAFloorThatHidesItFromAnother) {
  const auto manager = make_manager(bookkeeping(21));  // twenty slots
  ASSERT_OK(manager->set_quota("a", {.device_floor = budget(7)}));
  const SeqId first = manager->begin(distinct(16 * 7, 0), {.name_space = "a"})->seq;
  ASSERT_OK(manager->allocate(first, 16 * 7).status());
  ASSERT_OK(manager->commit(first, distinct(16 * 7, 0)));
  ASSERT_OK(manager->free(first));
  BeginOptions options = reserve(16 * 10);
  const SeqId owner = manager->begin(Tokens{1}, options)->seq;
  options.name_space = "a";
  EXPECT_EQ(manager->begin(Tokens{2}, options).status().code(), Code::kUnavailable);
  options.expected_tokens = 16 * 3;
  EXPECT_OK(manager->begin(Tokens{2}, options).status());
  EXPECT_OK(manager->allocate(owner, 16 * 10).status());
}

// What a floor hides from others is what its namespace takes first where they have nothing to spare.
TEST(Promises, ANamespaceWithAFloorTakesItsOwnBeforeWhatIsKeptForOthers) {
  const auto manager = make_manager(bookkeeping(21));  // twenty slots
  ASSERT_OK(manager->set_quota("b", {.device_floor = budget(7)}));
  const SeqId first = manager->begin(distinct(16 * 7, 0), {.name_space = "b"})->seq;
  ASSERT_OK(manager->allocate(first, 16 * 7).status());
  ASSERT_OK(manager->commit(first, distinct(16 * 7, 0)));
  ASSERT_OK(manager->free(first));
  const SeqId owner = manager->begin(Tokens{1}, reserve(16 * 13))->seq;
  const SeqId other = manager->begin(Tokens{2}, {.name_space = "b"})->seq;
  EXPECT_OK(manager->allocate(other, 16 * 3).status());
  EXPECT_EQ(manager->usage("b").device_bytes, budget(7));
  EXPECT_OK(manager->allocate(owner, 16 * 13).status());
  EXPECT_EQ(broken(*manager), "");
}

// A window and a state give blocks up as their sequence grows, and need as many again.
TEST(Promises, AReservationLastsAsLongAsItsSequenceGrows) {
  const ModelSpec model = model_of({full(1), window(1, 40), state(1)});
  const auto manager = make_manager(books(60, model), model);
  BeginOptions options = reserve(16 * 20);
  const SeqId owner = manager->begin(distinct(3, 0), options)->seq;
  for (std::uint32_t step = 0; step < 20; ++step) {
    const SeqId other = manager->begin(distinct(2, 100), {.name_space = {}, .read_cache = false})->seq;
    while (manager->allocate(other, 16 * 60).ok() || manager->allocate(other, 16).ok()) {
      if (manager->block_table(other).size() > 200) break;
      ASSERT_OK(manager->commit(other, distinct(16, 500)));
    }
    ASSERT_OK(manager->allocate(owner, 16).status()) << "step " << step;
    ASSERT_OK(manager->commit(owner, distinct(16, static_cast<TokenId>(1000 * step))));
    ASSERT_OK(manager->free(other));
    EXPECT_EQ(broken(*manager), "");
  }
}

TEST(Promises, ANamespacesCeilingAndAnothersReservationDoNotAddUp) {
  const auto manager = make_manager(bookkeeping(21));  // twenty slots
  ASSERT_OK(manager->set_quota("a", {.device_ceiling = budget(5)}));
  ASSERT_OK(manager->begin(distinct(3, 0), reserve(16 * 10)).status());
  const SeqId mine = manager->begin(Tokens{7}, {.name_space = "a"})->seq;
  EXPECT_OK(manager->allocate(mine, 16 * 5).status()) << "ten are kept for another namespace, and ten are left";
  EXPECT_EQ(manager->begin(distinct(3, 50), {.name_space = "a", .admission = Admission::kMustFit}).status().code(),
            Code::kUnavailable)
      << "what fits the pool and not the ceiling does not fit";
}

TEST(Promises, AResumedSequenceIsHeldToWhatItWasBegunWith) {
  const auto manager = make_manager(bookkeeping(41));
  const Tokens tokens = distinct(100, 0);
  const auto resumed = [&](const BeginOptions& options) {
    const SeqId seq = prompt(*manager, tokens, options);
    EXPECT_OK(manager->preempt(seq));
    const auto match = manager->resume(seq);
    EXPECT_OK(match.status());
    EXPECT_EQ(broken(*manager), "");
    EXPECT_OK(manager->free(seq));
    return match->tokens;
  };
  EXPECT_EQ(resumed({}), 96u);
  EXPECT_EQ(resumed({.name_space = {}, .max_reuse_tokens = 40}), 32u);
  EXPECT_EQ(resumed({.name_space = {}, .drop_last_block = true}), 80u);
  EXPECT_EQ(resumed({.name_space = {}, .read_cache = false}), 0u);
}

TEST(Promises, WhatIsSharedGoesOnBeingSharedAfterAPreemption) {
  const auto manager = make_manager(bookkeeping(11));
  const Tokens tokens = distinct(70, 0);
  const BeginOptions options{.name_space = "mine", .shared_scope = "scope", .shared_tokens = 64, .share = true};
  const SeqId seq = prompt(*manager, tokens, options);
  ASSERT_OK(manager->preempt(seq));
  const SeqId other = manager->begin(Tokens{1})->seq;
  ASSERT_OK(manager->allocate(other, 16 * 10).status());  // everything is evicted
  ASSERT_OK(manager->free(other));
  EXPECT_EQ(manager->resume(seq)->tokens, 0u);
  ASSERT_OK(manager->allocate(seq, 70).status());
  ASSERT_OK(manager->commit(seq, tokens));
  EXPECT_EQ(manager->match_prefix(tokens, "scope").tokens, 64u);
  EXPECT_EQ(manager->match_prefix(tokens, "mine").tokens, 0u) << "never in its own namespace";
  EXPECT_EQ(broken(*manager), "");
}

TEST(Promises, ACeilingOfASharedScopeIsKnownBeforehand) {
  const auto manager = make_manager(bookkeeping(21));
  ASSERT_OK(manager->set_quota("scope", {.device_ceiling = budget(2)}));
  const BeginOptions options{.name_space = "mine", .shared_scope = "scope", .shared_tokens = 64, .share = true};
  const SeqId seq = manager->begin(distinct(70, 0), options)->seq;
  const StepRequest request{seq, 70};
  EXPECT_EQ(manager->plan_step(std::span(&request, 1))->chunk_limit, 32u);
  EXPECT_FALSE(manager->allocate(seq, 70).ok());
  EXPECT_EQ(manager->stats().slots_free, 20u);
  EXPECT_OK(manager->allocate(seq, 32).status());
}

// --- what a producer keeps and a reader asks for ---

TEST(Promises, AStateIsFoundAgainByTheSamePromptWhateverItsLength) {
  for (const bool drop_last : {false, true}) {
    const ModelSpec model = model_of({full(1), state(1)});
    const auto manager = make_manager(books(400, model), model);
    for (const std::uint32_t length : {48u, 64u, 70u, 79u, 80u, 81u, 1024u}) {
      const Tokens tokens = distinct(length, static_cast<TokenId>(10'000 * length));
      const BeginOptions options{.name_space = {}, .drop_last_block = drop_last};
      ASSERT_OK(manager->free(prompt(*manager, tokens, options)));
      const std::uint32_t wanted = (length - 1) / 16 * 16 - (drop_last ? 16 : 0);
      EXPECT_EQ(manager->match_prefix(tokens, options).tokens, wanted) << length << ", drop_last " << drop_last;
      // And by who goes on behind it.
      if (!drop_last) {
        EXPECT_EQ(manager->match_prefix(joined(tokens, distinct(20, 7))).tokens, length / 16 * 16) << length;
      }
      EXPECT_EQ(broken(*manager), "");
    }
  }
}

// Room that an earlier step took and did not commit reaches further than this one, and gets no states there.
TEST(Promises, AShorterStepTakesWhatItsPlanSays) {
  const ModelSpec model = model_of({full(1), state(1)});
  const auto manager = make_manager(books(60, model), model);
  const SeqId seq = manager->begin(Tokens{1})->seq;
  ASSERT_OK(manager->allocate(seq, 300).status());
  const StepRequest request{seq, 24};
  const auto plan = manager->plan_step(std::span(&request, 1));
  const std::uint64_t free = manager->stats().slots_free;
  ASSERT_OK(manager->allocate(seq, 24).status());
  EXPECT_EQ(free - manager->stats().slots_free, plan->blocks_needed);
  EXPECT_EQ(plan->blocks_needed, 2u);
}

TEST(Promises, AStateIsFoundWhereItsReadersStop) {
  const ModelSpec model = model_of({full(1), state(1)});
  const auto manager = make_manager(books(400, model), model);
  const Tokens tokens = distinct(200, 0);
  const BeginOptions options{.name_space = {}, .max_reuse_tokens = 96};
  ASSERT_OK(manager->free(prompt(*manager, tokens, options)));
  EXPECT_EQ(manager->match_prefix(tokens, options).tokens, 96u);
  EXPECT_EQ(manager->match_prefix(tokens).tokens, 192u);
}

// What slid out of a window while its sequence lived is what the same prompt asks for first.
TEST(Promises, WindowsAndStatesAreFoundAgainInTheHostTier) {
  const std::vector<std::vector<GroupSpec>> models = {
      {full(1), window(1, 33)}, {full(1), window(2, 20)}, {full(1), state(1)}};
  for (const auto& groups : models)
    for (const bool drop_last : {false, true})
      for (const std::uint32_t length : {63u, 64u, 65u, 160u}) {
        const ModelSpec model = model_of(groups);
        Config config = books(100, model);
        config.host.budget_bytes = 8u << 20;
        config.protect.sinks = 0;
        config.protect.recent = 256;
        const auto manager = make_manager(config, model, {.clock = {}, .assumed_ratio = 2});
        const Tokens tokens = distinct(length, 0);
        const BeginOptions options{.name_space = {}, .drop_last_block = drop_last};
        ASSERT_OK(manager->free(prompt(*manager, tokens, options)));
        ASSERT_OK(manager->wait_idle());
        ASSERT_OK(manager->empty_pool(0).status());
        EXPECT_EQ(manager->match_prefix(tokens, options).tokens, (length - 1) / 16 * 16 - (drop_last ? 16 : 0))
            << length << ", drop_last " << drop_last << ", groups of kind " << static_cast<int>(groups[1].kind);
        EXPECT_EQ(broken(*manager), "");
      }
}

}  // namespace
}  // namespace firn::test
