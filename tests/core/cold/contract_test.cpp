// What ColdCache promises one caller: the verbs, their answers and their refusals.
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "firn/policy.h"
#include "tests/core/cold/cold_engine.h"

namespace firn {
namespace {

ColdCacheOptions small(std::uint64_t budget = 8 << 20, bool workers = false) {
  ColdCacheOptions options;
  options.model = cold_model();
  options.budget_bytes = budget;
  options.queue_blocks = 1024;
  options.workers = workers;
  options.huge_pages = false;
  return options;
}

bool readable(int fd) {
  pollfd poll{.fd = fd, .events = POLLIN, .revents = 0};
  return ::poll(&poll, 1, 0) == 1;
}

TEST(ColdCache, GivesBackTheBytesItTookInEveryTypeLayoutAndCodec) {
  for (const Dtype dtype : {Dtype::kF16, Dtype::kBf16, Dtype::kF32, Dtype::kBits8})
    for (const KvLayout layout : {KvLayout::kSeparate, KvLayout::kInterleaved})
      for (const char* codec : {"raw", "lossless"}) {
        SCOPED_TRACE(std::string(to_string(dtype)) + " " + codec);
        ColdCacheOptions options = small();
        options.model = cold_model(dtype);
        options.codec = codec;
        const auto cache = make_cold(options);
        ASSERT_NE(cache, nullptr);
        ColdEngine engine(options.model.groups[0], 21, layout);
        for (std::uint32_t i = 0; i < 21; ++i) engine.fill(i, 100 + i);
        const Blocks run = make_run(engine, 0, 21, 100);
        const ColdDone stored = ended(*cache, cache->store(run.run));
        EXPECT_TRUE(stored.status.ok()) << stored.status.message();
        EXPECT_EQ(stored.found, 21u);
        EXPECT_EQ(cache->stats().frames, 3u) << "two extents of eight and one of five";
        engine.poison();
        std::vector<ColdFound> found(21);
        const Result<Ticket> pending = cache->lookup({.keys = run.keys}, found);
        ASSERT_TRUE(pending.ok());
        EXPECT_EQ(*pending, Ticket::kNone);
        for (const ColdFound& one : found) {
          EXPECT_EQ(one.answer, ColdAnswer::kHit);
          EXPECT_EQ(one.tier, TierId::kHost);
          EXPECT_EQ(one.fidelity, Fidelity::kExact);
        }
        const ColdDone loaded = ended(*cache, cache->load(run.run));
        EXPECT_TRUE(loaded.status.ok()) << loaded.status.message();
        EXPECT_EQ(loaded.found, 21u);
        for (std::uint32_t i = 0; i < 21; ++i) EXPECT_TRUE(engine.holds(i, 100 + i)) << i;
        EXPECT_TRUE(cache->verify().ok()) << cache->verify().message();
      }
}

TEST(ColdCache, LoadsAnyBlocksOfAFrameAnywhereAndSaysWhichAreMissing) {
  const ColdCacheOptions options = small();
  const auto cache = make_cold(options);
  ColdEngine engine(options.model.groups[0], 16);
  for (std::uint32_t i = 0; i < 16; ++i) engine.fill(i, i);
  const Blocks run = make_run(engine, 0, 16, 0);
  ended(*cache, cache->store(run.run));
  engine.poison();
  const std::vector<std::uint64_t> names = {12, 3, 99, 3, 4};  // another order, one unknown, one twice
  const std::vector<std::uint32_t> places = {0, 1, 2, 3, 4};
  const std::vector<Key> keys = cold_keys(names);
  const std::vector<BlockView> views = engine.views(places);
  ColdRun some;
  some.keys = keys;
  some.views = views;
  const ColdDone done = ended(*cache, cache->load(some));
  EXPECT_TRUE(done.status.ok()) << "a miss is an answer: " << done.status.message();
  EXPECT_EQ(done.found, 4u);
  for (std::uint32_t i = 0; i < 5; ++i) {
    EXPECT_EQ(done.results[i].found, i != 2) << i;
    EXPECT_EQ(done.results[i].miss, i == 2 ? ColdMiss::kNeverStored : ColdMiss::kNone) << i;
    if (i != 2) {
      EXPECT_TRUE(engine.holds(i, names[i])) << i;
    }
  }
}

TEST(ColdCache, StoresANameOnceAndCutsExtentsAtPositions) {
  const ColdCacheOptions options = small();
  const auto cache = make_cold(options);
  ColdEngine engine(options.model.groups[0], 16);
  for (std::uint32_t i = 0; i < 16; ++i) engine.fill(i, i);
  // From the third block of an eight: 6, 8, 2.
  const Blocks run = make_run(engine, 0, 16, 0, 2 * kBlockTokens);
  EXPECT_EQ(ended(*cache, cache->store(run.run)).found, 16u);
  EXPECT_EQ(cache->stats().frames, 3u);
  const ColdDone again = ended(*cache, cache->store(run.run));
  EXPECT_EQ(again.found, 16u);
  for (const ColdResult& result : again.results) EXPECT_TRUE(result.already);
  EXPECT_EQ(cache->stats().frames, 3u);
  EXPECT_EQ(cache->stats().blocks_stored, 16u);
}

TEST(ColdCache, NeverSpendsMoreThanItsBudgetAndEvictsByPolicy) {
  for (const std::string_view policy : policy_names()) {
    if (policy == "optimal") continue;
    SCOPED_TRACE(policy);
    ColdCacheOptions options = small(16 << 20);
    options.codec = "raw";
    options.eviction = policy;
    options.max_blocks = 200;  // the tables of some policies are large
    options.queue_blocks = 64;
    Ledger ledger(0, options.budget_bytes);
    {
      const auto cache = make_cold(options, {.ledger = &ledger});
      ASSERT_NE(cache, nullptr);
      ColdEngine engine(options.model.groups[0], 16);
      for (std::uint64_t round = 0; round < 60; ++round) {
        for (std::uint32_t i = 0; i < 16; ++i) engine.fill(i, round * 16 + i);
        const Blocks run = make_run(engine, 0, 16, round * 16);
        const ColdDone done = ended(*cache, cache->store(run.run));
        EXPECT_EQ(done.found, 16u) << done.status.message();
      }
      const ColdStats stats = cache->stats();
      EXPECT_GT(stats.evictions[index(TierId::kHost)], 0u);
      EXPECT_LE(ledger.peak(Budget::kHost), options.budget_bytes);
      EXPECT_LE(stats.bytes_in[index(TierId::kHost)], options.budget_bytes);
      std::uint64_t evicted = 0, hits = 0;
      for (std::uint64_t name = 0; name < 60 * 16; ++name) {
        const Key key = cold_key(name);
        ColdFound found;
        ASSERT_TRUE(cache->lookup({.keys = {&key, 1}}, {&found, 1}).ok());
        hits += found.answer == ColdAnswer::kHit;
        evicted += found.miss == ColdMiss::kEvictedHost;
      }
      EXPECT_EQ(hits, stats.blocks);
      EXPECT_GT(evicted, 0u);
      EXPECT_TRUE(cache->verify().ok()) << cache->verify().message();
    }
    EXPECT_EQ(ledger.spent(Budget::kHost), 0u);
  }
}

TEST(ColdCache, KeepsThePrefixOfARunLongestWhereLruDecides) {
  ColdCacheOptions options = small(6 << 20);
  options.codec = "raw";
  options.queue_blocks = 1024;
  const auto cache = make_cold(options);
  ASSERT_NE(cache, nullptr);
  ColdEngine engine(options.model.groups[0], 64);
  const Blocks first = make_run(engine, 0, 64, 0);
  EXPECT_EQ(ended(*cache, cache->store(first.run)).found, 64u);
  for (std::uint64_t n = 1000; cache->stats().evictions[index(TierId::kHost)] < 4; n += 64) {
    const Blocks next = make_run(engine, 0, 8, n);
    ASSERT_EQ(ended(*cache, cache->store(next.run)).found, 8u);
  }
  std::vector<ColdFound> found(64);
  ASSERT_TRUE(cache->lookup({.keys = first.keys}, found).ok());
  EXPECT_EQ(found.front().answer, ColdAnswer::kHit);
  EXPECT_EQ(found.back().miss, ColdMiss::kEvictedHost);
}

TEST(ColdCache, PinnedNamesStayAndErasedNamesGo) {
  ColdCacheOptions options = small(6 << 20);
  options.codec = "raw";
  const auto cache = make_cold(options);
  ASSERT_NE(cache, nullptr);
  ColdEngine engine(options.model.groups[0], 16);
  for (std::uint32_t i = 0; i < 8; ++i) engine.fill(i, i);
  const Blocks kept = make_run(engine, 0, 8, 0);
  ended(*cache, cache->store(kept.run));
  EXPECT_EQ(cache->pin(kept.keys), 8u);
  EXPECT_EQ(cache->erase(kept.keys), 0u) << "pinned";
  for (std::uint64_t round = 1; round < 60; ++round) {
    const Blocks run = make_run(engine, 8, 8, round * 16);
    EXPECT_EQ(ended(*cache, cache->store(run.run)).found, 8u);
  }
  engine.poison();
  EXPECT_EQ(ended(*cache, cache->load(kept.run)).found, 8u);
  for (std::uint32_t i = 0; i < 8; ++i) EXPECT_TRUE(engine.holds(i, i));
  EXPECT_EQ(cache->unpin(kept.keys), 8u);
  EXPECT_EQ(cache->unpin(kept.keys), 0u);
  EXPECT_EQ(cache->erase(std::span(kept.keys).first(3)), 3u);
  std::vector<ColdFound> found(8);
  ASSERT_TRUE(cache->lookup({.keys = kept.keys}, found).ok());
  for (std::uint32_t i = 0; i < 8; ++i) EXPECT_EQ(found[i].miss, i < 3 ? ColdMiss::kErased : ColdMiss::kNone);
  EXPECT_EQ(cache->erase(kept.keys), 5u);
  EXPECT_TRUE(cache->verify().ok()) << cache->verify().message();
}

TEST(ColdCache, RefusesWhatEveryPinnedByteLeavesNoRoomFor) {
  ColdCacheOptions options = small(6 << 20);
  options.codec = "raw";
  const auto cache = make_cold(options);
  ColdEngine engine(options.model.groups[0], 8);
  ColdDone done;
  for (std::uint64_t round = 0; round < 400 && done.status.ok(); ++round) {
    const Blocks run = make_run(engine, 0, 8, round * 8);
    done = ended(*cache, cache->store(run.run));
    cache->pin(run.keys);
  }
  EXPECT_EQ(done.status.code(), Code::kNoSpace) << done.status.message();
  EXPECT_GT(cache->stats().refused, 0u);
  EXPECT_TRUE(cache->verify().ok()) << cache->verify().message();
}

TEST(ColdCache, StatesComeBackWholeAndCompressedWhereThatPays) {
  const auto cache = make_cold(small());
  ASSERT_NE(cache, nullptr);
  std::vector<std::byte> flat(100'000, std::byte{3}), noise(10'001);
  for (std::size_t i = 0; i < noise.size(); ++i) noise[i] = static_cast<std::byte>(cold_mix(i));
  std::vector<std::byte> one(1, std::byte{9});
  const std::vector<ColdState> states = {
      {.key = cold_key(1), .bytes = flat}, {.key = cold_key(2), .bytes = noise}, {.key = cold_key(3), .bytes = one}};
  const ColdDone stored = ended(*cache, cache->store_state(states));
  EXPECT_EQ(stored.found, 3u) << stored.status.message();
  EXPECT_LT(cache->stats().bytes_in[index(TierId::kHost)], 12'000u);
  std::vector<Key> keys = {cold_key(1), cold_key(2), cold_key(3), cold_key(4)};
  std::vector<ColdFound> found(4);
  ASSERT_TRUE(cache->lookup({.keys = keys, .kind = ColdKind::kState}, found).ok());
  EXPECT_EQ(found[0].bytes, flat.size());
  EXPECT_EQ(found[1].bytes, noise.size());
  EXPECT_EQ(found[2].bytes, 1u);
  EXPECT_EQ(found[3].miss, ColdMiss::kNeverStored);
  ASSERT_TRUE(cache->lookup({.keys = keys}, found).ok());
  EXPECT_EQ(found[0].miss, ColdMiss::kNeverStored) << "blocks and states have names of their own";
  std::vector<std::vector<std::byte>> rooms = {std::vector<std::byte>(flat.size()),
                                               std::vector<std::byte>(noise.size() + 5), std::vector<std::byte>(1)};
  std::vector<ColdState> loads;
  for (std::size_t i = 0; i < 3; ++i) loads.push_back({.key = keys[i], .room = rooms[i]});
  const ColdDone loaded = ended(*cache, cache->load_state(loads));
  EXPECT_EQ(loaded.found, 3u) << loaded.status.message();
  EXPECT_EQ(rooms[0], flat);
  EXPECT_TRUE(std::equal(noise.begin(), noise.end(), rooms[1].begin()));
  EXPECT_EQ(loaded.results[1].bytes, noise.size());
  EXPECT_EQ(rooms[2], one);
  std::vector<std::byte> little(10);
  const ColdState tight = {.key = keys[0], .room = little};
  const ColdDone refused = ended(*cache, cache->load_state({&tight, 1}));
  EXPECT_EQ(refused.status.code(), Code::kInvalidArgument);
  EXPECT_EQ(cache->stats().states, 3u) << "the frame is as good as before";
}

TEST(ColdCache, BoundStatesAndBlocksAreServedTogetherOrNotAtAll) {
  const ColdCacheOptions options = small();
  const auto cache = make_cold(options);
  ColdEngine engine(options.model.groups[0], 8);
  const Blocks run = make_run(engine, 0, 8, 0);
  std::vector<std::uint8_t> bound(8, 0);
  bound[7] = 1;
  ColdRun with = run.run;
  with.bound = bound;
  ended(*cache, cache->store(with));
  std::vector<ColdFound> found(8);
  ASSERT_TRUE(cache->lookup({.keys = run.keys}, found).ok());
  EXPECT_EQ(found[6].answer, ColdAnswer::kHit);
  EXPECT_EQ(found[7].miss, ColdMiss::kUnbound) << "its state has not come yet";
  EXPECT_EQ(ended(*cache, cache->load(with)).found, 7u);
  std::vector<std::byte> bytes(1000, std::byte{1});
  std::vector<ColdState> states = {{.key = run.keys[7], .bytes = bytes, .bound = true},
                                   {.key = cold_key(500), .bytes = bytes, .bound = true}};
  ended(*cache, cache->store_state(states));
  ASSERT_TRUE(cache->lookup({.keys = run.keys}, found).ok());
  EXPECT_EQ(found[7].answer, ColdAnswer::kHit);
  const std::vector<Key> names = {run.keys[7], cold_key(500)};
  ASSERT_TRUE(cache->lookup({.keys = names, .kind = ColdKind::kState}, found).ok());
  EXPECT_EQ(found[0].answer, ColdAnswer::kHit);
  EXPECT_EQ(found[1].miss, ColdMiss::kUnbound) << "its block is not here";
  EXPECT_EQ(cache->erase({&run.keys[7], 1}, ColdKind::kState), 1u);
  ASSERT_TRUE(cache->lookup({.keys = run.keys}, found).ok());
  EXPECT_EQ(found[7].miss, ColdMiss::kUnbound);
  EXPECT_EQ(found[0].answer, ColdAnswer::kHit) << "the others of its frame are not bound";
  EXPECT_TRUE(cache->verify().ok()) << cache->verify().message();
}

TEST(ColdCache, LossyCodecsHaveToBeNamedAndSayWhatTheyAre) {
  ColdCacheOptions options = small();
  options.model = cold_model(Dtype::kF16, 2, 2, 64);
  options.codec = "q8/q4";
  const auto cache = make_cold(options);
  ASSERT_NE(cache, nullptr);
  ColdEngine engine(options.model.groups[0], 16);
  for (std::uint32_t i = 0; i < 16; ++i) engine.fill(i, i);
  const Blocks lossy = make_run(engine, 0, 8, 0);
  Blocks exact = make_run(engine, 8, 8, 8, 8 * kBlockTokens);
  exact.run.exact = true;
  ended(*cache, cache->store(lossy.run));
  ended(*cache, cache->store(exact.run));
  std::vector<Key> keys = {cold_key(0), cold_key(8)};
  std::vector<ColdFound> found(2);
  ASSERT_TRUE(cache->lookup({.keys = keys}, found).ok());
  EXPECT_EQ(found[0].fidelity, Fidelity::kLossy);
  EXPECT_EQ(found[1].fidelity, Fidelity::kExact);
  ASSERT_TRUE(cache->lookup({.keys = keys, .least = Fidelity::kExact}, found).ok());
  EXPECT_EQ(found[0].miss, ColdMiss::kFidelity);
  EXPECT_EQ(found[1].answer, ColdAnswer::kHit);
  engine.poison();
  EXPECT_EQ(ended(*cache, cache->load(exact.run)).found, 8u);
  EXPECT_EQ(ended(*cache, cache->load(lossy.run)).found, 8u);
  EXPECT_TRUE(engine.holds(8, 8));
  EXPECT_FALSE(engine.holds(0, 0));
  options.codec = "q7";
  EXPECT_NE(ColdCache::create(options).status().message().find("q8"), std::string::npos) << "names what there is";
}

TEST(ColdCache, LossyCodecsRefuseElementsOfEightBits) {
  for (const char* codec : {"q8", "q4", "q8/q4"}) {
    ColdCacheOptions options = small(32 << 20);
    options.model = cold_model(Dtype::kBits8);
    options.codec = codec;
    const auto refused = ColdCache::create(options);
    EXPECT_EQ(refused.status().code(), Code::kInvalidArgument);
    EXPECT_NE(refused.status().message().find("8 bits"), std::string::npos) << refused.status().message();
  }
}

TEST(ColdCache, NamesOfAnEngineAreHashedWithTheirLengthsNamespaceAndModel) {
  const auto cache = make_cold(small());
  ColdCacheOptions other_model = small();
  other_model.model.weights.bytes[0] = 8;
  const auto other = make_cold(other_model);
  const auto key = [](const ColdCache& c, std::string_view name, std::string_view space) {
    return *c.key(name, space);
  };
  EXPECT_EQ(key(*cache, "abc", "n"), key(*cache, "abc", "n"));
  EXPECT_NE(key(*cache, "abc", "n"), key(*cache, "bc", "na"));
  EXPECT_NE(key(*cache, "abc", "n"), key(*cache, "abc", ""));
  EXPECT_NE(key(*cache, "abc", "n"), key(*other, "abc", "n"));
  EXPECT_TRUE(cache->key(std::string(256, 'x')).ok());
  EXPECT_FALSE(cache->key(std::string(257, 'x')).ok());
  EXPECT_FALSE(cache->key("").ok());
}

TEST(ColdCache, TheDescriptorIsReadableWhileEndedTicketsWait) {
  const ColdCacheOptions options = small();
  const auto cache = make_cold(options);
  ColdEngine engine(options.model.groups[0], 8);
  const Blocks run = make_run(engine, 0, 8, 0), more = make_run(engine, 0, 8, 50);
  EXPECT_FALSE(readable(cache->event_fd()));
  ASSERT_TRUE(cache->store(run.run).ok());
  ASSERT_TRUE(cache->store(more.run).ok());
  EXPECT_FALSE(readable(cache->event_fd()));
  while (cache->pump()) {
  }
  EXPECT_TRUE(readable(cache->event_fd()));
  EXPECT_EQ(cache->poll(1).size(), 1u);
  EXPECT_TRUE(readable(cache->event_fd()));
  EXPECT_EQ(cache->poll().size(), 1u);
  EXPECT_FALSE(readable(cache->event_fd()));
}

TEST(ColdCache, DeadlinesGoByTheClockItWasGivenAndLeaveNothingBehind) {
  std::int64_t now = 1000;
  ColdCacheOptions options = small();
  const auto cache = make_cold(options, {.now_ns = [&now] { return now; }});
  ColdEngine engine(options.model.groups[0], 8);
  Blocks run = make_run(engine, 0, 8, 0);
  run.run.deadline_ns = 500;
  const Result<Ticket> late = cache->store(run.run);
  now = 1500;
  const ColdDone done = ended(*cache, late);
  EXPECT_EQ(done.status.code(), Code::kUnavailable);
  EXPECT_EQ(done.found, 0u);
  EXPECT_EQ(cache->stats().expired, 8u);
  EXPECT_EQ(cache->stats().frames, 0u);
  EXPECT_EQ(cache->stats().queued_names, 0u);
  const Result<Ticket> in_time = cache->store(run.run);
  now = 1999;
  EXPECT_EQ(ended(*cache, in_time).found, 8u);
  EXPECT_TRUE(cache->verify().ok()) << cache->verify().message();
}

TEST(ColdCache, CancelledTicketsEndAndLeaveNothingBehind) {
  const ColdCacheOptions options = small();
  const auto cache = make_cold(options);
  ColdEngine engine(options.model.groups[0], 8);
  const Blocks run = make_run(engine, 0, 8, 0);
  const Result<Ticket> ticket = cache->store(run.run);
  ASSERT_TRUE(ticket.ok());
  EXPECT_TRUE(cache->cancel(*ticket));
  EXPECT_FALSE(cache->cancel(*ticket));
  const ColdDone done = ended(*cache, ticket);
  EXPECT_EQ(done.status.code(), Code::kUnavailable);
  EXPECT_EQ(done.status.message(), "cancelled");
  EXPECT_EQ(cache->stats().frames, 0u);
  EXPECT_FALSE(cache->wait(*ticket).ok());
}

TEST(ColdCache, AFullQueueIsUnavailableAndRefusalsChangeNothing) {
  ColdCacheOptions options = small();
  options.queue_blocks = 16;
  options.queue_tickets = 4;
  const auto cache = make_cold(options);
  ColdEngine engine(options.model.groups[0], 17);
  const Blocks eight = make_run(engine, 0, 8, 0), seventeen = make_run(engine, 0, 17, 100);
  EXPECT_EQ(cache->store(seventeen.run).status().code(), Code::kInvalidArgument);
  ASSERT_TRUE(cache->store(eight.run).ok());
  ASSERT_TRUE(cache->load(eight.run).ok());
  EXPECT_EQ(cache->store(eight.run).status().code(), Code::kUnavailable);
  EXPECT_EQ(cache->stats().queued_names, 16u);
  while (cache->pump()) {
  }
  EXPECT_EQ(cache->store(eight.run).status().code(), Code::kUnavailable) << "not collected yet";
  EXPECT_EQ(cache->poll().size(), 2u);
  EXPECT_TRUE(cache->store(eight.run).ok());
}

TEST(ColdCache, WrongCallsAreRefusedByName) {
  const ColdCacheOptions options = small();
  const auto cache = make_cold(options);
  ColdEngine engine(options.model.groups[0], 8);
  const Blocks good = make_run(engine, 0, 8, 0);
  const auto message = [&](auto change) {
    Blocks run = make_run(engine, 0, 8, 0);
    change(run);
    const Result<Ticket> ticket = cache->store(run.run);
    EXPECT_FALSE(ticket.ok());
    EXPECT_EQ(ticket.status().code(), Code::kInvalidArgument);
    return ticket.ok() ? std::string() : ticket.status().message();
  };
  const auto has = [](const std::string& text, const char* word) { return text.find(word) != std::string::npos; };
  EXPECT_TRUE(has(message([](Blocks& r) { r.run.group = GroupId{1}; }), "group"));
  EXPECT_TRUE(has(message([](Blocks& r) { r.run.keys = {}; }), "blocks"));
  EXPECT_TRUE(has(message([](Blocks& r) { r.run.views = r.run.views.first(3); }), "views"));
  EXPECT_TRUE(has(message([](Blocks& r) { r.run.first_position = 7; }), "first_position"));
  EXPECT_TRUE(has(message([](Blocks& r) { r.views[9].k = 0; }), "layer 1, block 1"));
  EXPECT_TRUE(has(message([](Blocks& r) { r.keys[2] = {}; }), "key 2"));
  EXPECT_TRUE(has(message([](Blocks& r) { r.run.after = {Fence::Kind::kTimeline, 1, 1}; }), "device"));
  EXPECT_TRUE(has(message([](Blocks& r) { r.run.deadline_ns = -1; }), "deadline_ns"));
  EXPECT_TRUE(has(message([](Blocks& r) { r.run.device_addresses = true; }), "region"));
  EXPECT_EQ(cache->stats().tickets, 0u);
  std::vector<std::byte> large(cache->max_state_bytes() + 1);
  const ColdState state = {.key = cold_key(1), .bytes = large};
  EXPECT_EQ(cache->store_state({&state, 1}).status().code(), Code::kNoSpace) << "larger than the budget";
}

TEST(ColdCache, DeviceAddressesAreTakenWhereTheHostReachesThem) {
  ColdCacheOptions options = small();
  ColdEngine engine(options.model.groups[0], 8);
  for (std::uint32_t i = 0; i < 8; ++i) engine.fill(i, i);
  constexpr std::uint64_t kApart = std::uint64_t{1} << 44;
  const BlockView first = engine.view(0, 0);
  const std::uint64_t bytes = 3 * engine.layer_bytes();
  const auto cache = make_cold(options, {.regions = {{first.k + kApart, bytes, reinterpret_cast<std::byte*>(first.k)},
                                                     {first.k, bytes, nullptr}}});
  Blocks run = make_run(engine, 0, 8, 0);
  run.run.device_addresses = true;
  EXPECT_NE(cache->store(run.run).status().message().find("view of layer 0, block 0"), std::string::npos);
  for (BlockView& view : run.views) view.k += kApart, view.v += kApart;
  EXPECT_EQ(ended(*cache, cache->store(run.run)).found, 8u);
  engine.poison();
  EXPECT_EQ(ended(*cache, cache->load(run.run)).found, 8u);
  for (std::uint32_t i = 0; i < 8; ++i) EXPECT_TRUE(engine.holds(i, i));
}

TEST(ColdCache, WaitsForTheFenceOfWhoWroteTheBlocks) {
  struct Late final : Timeline {
    Fence last() const override { return {Fence::Kind::kTimeline, 1, 2}; }
    bool passed(const Fence& fence) const override { return fence.value <= now; }
    Status wait(const Fence& fence, std::int64_t) override {
      if (fence.handle != 1) return Status(Code::kInvalidArgument, "another timeline's fence");
      return passed(fence) ? Status() : Status(Code::kUnavailable, "not yet");
    }
    std::uint64_t now = 1;
  };
  struct FakeDevice final : Device {
    Memory& memory() override { std::abort(); }
    Kernels& kernels() override { std::abort(); }
    Timeline& timeline() override { return late; }
    Late late;
  } device;
  const ColdCacheOptions options = small();
  const auto cache = make_cold(options, {.device = &device});
  ColdEngine engine(options.model.groups[0], 8);
  Blocks run = make_run(engine, 0, 8, 0);
  run.run.after = device.late.last();
  run.run.after.handle = 2;
  EXPECT_EQ(cache->store(run.run).status().code(), Code::kInvalidArgument) << "it would never pass";
  run.run.after.handle = 1;
  const Result<Ticket> ticket = cache->store(run.run);
  EXPECT_FALSE(cache->pump()) << "its fence has not passed";
  for (std::uint32_t i = 0; i < 8; ++i) engine.fill(i, i);
  device.late.now = 2;
  EXPECT_EQ(ended(*cache, ticket).found, 8u);
  engine.poison();
  run.run.after = {};
  ended(*cache, cache->load(run.run));
  EXPECT_TRUE(engine.holds(0, 0)) << "it read what was there after the fence";
}

TEST(ColdCache, SecondUseAdmissionRemembersFirstOffersAlone) {
  ColdCacheOptions options = small();
  options.admit_second_use = true;
  const auto cache = make_cold(options);
  ColdEngine engine(options.model.groups[0], 8);
  const Blocks run = make_run(engine, 0, 8, 0);
  const ColdDone first = ended(*cache, cache->store(run.run));
  EXPECT_EQ(first.found, 0u);
  EXPECT_TRUE(first.status.ok());
  EXPECT_EQ(first.results[0].miss, ColdMiss::kFiltered);
  EXPECT_EQ(cache->stats().frames, 0u);
  EXPECT_EQ(ended(*cache, cache->store(run.run)).found, 8u);
}

TEST(ColdCache, CreateWithoutMemoryIsNoSpaceAndLeavesNothingCharged) {
  const ColdCacheOptions options = small();
  std::uint64_t charges = 0;
  for (std::uint64_t n = 1;; ++n) {
    Ledger ledger(0, options.budget_bytes);
    ledger.fail_charge(n);
    const auto cache = ColdCache::create(options, {.ledger = &ledger});
    if (cache.ok()) break;
    EXPECT_EQ(cache.status().code(), Code::kNoSpace) << cache.status().message();
    EXPECT_EQ(ledger.spent(Budget::kHost), 0u);
    ++charges;
  }
  EXPECT_GE(charges, 4u);
  ColdCacheOptions tiny = options;
  tiny.budget_bytes = 100'000;
  EXPECT_EQ(ColdCache::create(tiny).status().code(), Code::kNoSpace);
}

TEST(ColdCache, ALookUpDuringAStoreIsPendingAndBecomesAHit) {
  const ColdCacheOptions options = small();  // nothing is worked before somebody waits
  const auto cache = make_cold(options);
  ColdEngine engine(options.model.groups[0], 16);
  const Blocks run = make_run(engine, 0, 16, 0);
  std::vector<ColdFound> found(16);
  const auto answers = [&](ColdAnswer answer) {
    return std::all_of(found.begin(), found.end(), [&](const ColdFound& one) { return one.answer == answer; });
  };
  const Result<Ticket> storing = cache->store(run.run);
  const Result<Ticket> pending = cache->lookup({.keys = run.keys}, found);
  ASSERT_TRUE(storing.ok() && pending.ok());
  EXPECT_NE(*pending, Ticket::kNone);
  EXPECT_TRUE(answers(ColdAnswer::kPending));
  EXPECT_EQ(cache->stats().pending, 16u);
  const Result<Ticket> unfollowed = cache->lookup({.keys = run.keys, .follow = false}, found);
  ASSERT_TRUE(unfollowed.ok());
  EXPECT_EQ(*unfollowed, Ticket::kNone);
  EXPECT_TRUE(answers(ColdAnswer::kPending));
  const ColdDone decided = ended(*cache, pending);
  EXPECT_EQ(decided.found, 16u);
  for (const ColdResult& result : decided.results) EXPECT_EQ(result.tier, TierId::kHost);
  ASSERT_TRUE(cache->lookup({.keys = run.keys}, found).ok());
  EXPECT_TRUE(answers(ColdAnswer::kHit));
  EXPECT_EQ(ended(*cache, storing).found, 16u);

  // A store that comes to nothing decides them too; and so does one of the state that a block is bound to.
  const Blocks more = make_run(engine, 0, 16, 100);
  const Result<Ticket> cancelled = cache->store(more.run);
  const Result<Ticket> waiting = cache->lookup({.keys = more.keys}, found);
  ASSERT_TRUE(cancelled.ok() && waiting.ok());
  EXPECT_TRUE(answers(ColdAnswer::kPending));
  cache->cancel(*cancelled);
  const ColdDone nothing = ended(*cache, waiting);
  EXPECT_EQ(nothing.found, 0u);
  for (const ColdResult& result : nothing.results) EXPECT_EQ(result.miss, ColdMiss::kNeverStored);
  ended(*cache, cancelled);
  const std::vector<std::uint8_t> bound(16, 1);
  Blocks tied = make_run(engine, 0, 16, 200);
  tied.run.bound = bound;
  ended(*cache, cache->store(tied.run));
  const std::vector<std::byte> bytes(100, std::byte{1});
  const ColdState state = {.key = tied.keys[0], .bytes = bytes, .bound = true};
  const Result<Ticket> states = cache->store_state({&state, 1});
  ASSERT_TRUE(cache->lookup({.keys = tied.keys, .follow = false}, found).ok());
  EXPECT_EQ(found[0].answer, ColdAnswer::kPending);
  EXPECT_EQ(found[1].miss, ColdMiss::kUnbound);
  ended(*cache, states);
  ASSERT_TRUE(cache->lookup({.keys = tied.keys, .follow = false}, found).ok());
  EXPECT_EQ(found[0].answer, ColdAnswer::kHit);
  EXPECT_TRUE(cache->wait_idle().ok());
  EXPECT_EQ(cache->stats().tickets, 0u);
  EXPECT_TRUE(cache->verify().ok());
}

TEST(ColdCache, TwoLoadsOfOneFrameAreOneReadOfTheTierBelow) {
  Ledger below_ledger(0, std::uint64_t{64} << 20);
  auto below = HostTier::create({.budget_bytes = 4 << 20, .huge_pages = false, .max_frames = 300}, below_ledger);
  ASSERT_TRUE(below.ok());
  ColdCacheOptions options = small(6 << 20);
  options.codec = "raw";
  options.max_blocks = 1000;
  options.queue_blocks = 256;
  const auto cache = make_cold(options, {.tiers = {{.id = TierId::kDisk, .tier = below->get()}}});
  ASSERT_NE(cache, nullptr);
  ColdEngine engine(options.model.groups[0], 16);
  std::vector<ColdFound> found(8);
  std::uint64_t name = 0;
  const auto store = [&] {  // eight blocks that are nowhere yet
    for (std::uint32_t i = 0; i < 8; ++i) engine.fill(i, name + i);
    const Blocks blocks = make_run(engine, 0, 8, name);
    ended(*cache, cache->store(blocks.run));
    name += 8;
  };
  store();
  const Blocks first = make_run(engine, 0, 8, 0), again = make_run(engine, 8, 8, 0);
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(cache->wait_idle().ok());
    ASSERT_TRUE(cache->lookup({.keys = first.keys}, found).ok());
    ASSERT_EQ(found[0].answer, ColdAnswer::kHit);
    if (found[0].tier == TierId::kDisk) break;
    store();
  }
  ASSERT_EQ(found[0].tier, TierId::kDisk);
  engine.poison();
  const std::uint64_t gets = (*below)->stats().gets, fetched = cache->stats().fetched;
  const Result<Ticket> one = cache->load(first.run), two = cache->load(again.run);
  EXPECT_EQ(ended(*cache, one).found, 8u);
  EXPECT_EQ(ended(*cache, two).found, 8u);
  EXPECT_EQ((*below)->stats().gets - gets, 1u);
  EXPECT_EQ(cache->stats().fetched - fetched, 1u);
  for (std::uint32_t i = 0; i < 16; ++i) EXPECT_TRUE(engine.holds(i, i % 8)) << i;
}

TEST(ColdCache, AChildOfForkIsToldSoAndEnds) {
  const ColdCacheOptions options = small(8 << 20, /*workers=*/true);
  auto cache = make_cold(options);
  ColdEngine engine(options.model.groups[0], 8);
  const Blocks run = make_run(engine, 0, 8, 0);
  const Result<Ticket> ticket = cache->store(run.run);
  ASSERT_TRUE(ticket.ok());
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::vector<ColdFound> found(8);
    int told = cache->store(run.run).status().code() == Code::kUnavailable;
    told += cache->lookup({.keys = run.keys}, found).status().code() == Code::kUnavailable;
    told += cache->wait(*ticket).status().code() == Code::kUnavailable;
    told += cache->wait_idle().code() == Code::kUnavailable;
    told += cache->verify().code() == Code::kUnavailable;
    told += cache->poll().empty() && cache->pin(run.keys) == 0 && !cache->pump() && cache->event_fd() == -1;
    cache.reset();
    _exit(told);
  }
  int state = 0;
  ASSERT_EQ(waitpid(child, &state, 0), child);
  EXPECT_TRUE(WIFEXITED(state) && WEXITSTATUS(state) == 6) << state;
  EXPECT_EQ(ended(*cache, ticket).found, 8u);
}

}  // namespace
}  // namespace firn
