// ColdCache against a naive model under seeded random operations, over a tier below that fails, delays, truncates,
// flips and loses. The model knows what bytes a name has, and nothing else: a hit must give these, a miss must say why,
// and the budget holds at every moment.
#include <cstdlib>
#include <map>
#include <random>

#include "firn/policy.h"
#include "storage/tier/faulty_tier.h"
#include "tests/core/cold/cold_engine.h"

namespace firn {
namespace {

std::uint64_t operations(std::uint64_t usual) {
  const char* text = std::getenv("FIRN_COLD_OPERATIONS");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : usual;
}

constexpr std::uint32_t kNames = 600, kPlaces = 24;

struct Pressure {
  FaultyTier::Rates rates;
  ColdWrite write = ColdWrite::kBack;
  bool below = true;
};

class Model {
 public:
  Model(std::uint64_t seed, const Pressure& pressure)
      : random_(seed), ledger_(0, std::uint64_t{64} << 20), pressure_(pressure) {
    options_.model = cold_model(Dtype::kF16, 2, 1, 16);
    options_.max_blocks = 400;
    options_.queue_blocks = 256;
    options_.queue_tickets = 32;
    options_.workers = false;
    options_.huge_pages = false;
    options_.codec = seed % 2 == 0 ? "raw" : "lossless";
    const std::span<const std::string_view> policies = policy_names();
    do options_.eviction = policies[random_() % policies.size()];
    while (options_.eviction == "optimal");
    ColdEnvironment environment{.ledger = &ledger_, .now_ns = [this] { return now_; }};
    if (pressure.below) {
      Result<std::unique_ptr<HostTier>> below =
          HostTier::create({.budget_bytes = 700 << 10, .huge_pages = false, .max_frames = 300}, below_ledger_);
      EXPECT_TRUE(below.ok());
      below_ = std::move(*below);
      faulty_ = std::make_unique<FaultyTier>(*below_, FaultyTier::Options::all(seed, pressure.rates));
      environment.tiers = {{.id = TierId::kDisk, .tier = faulty_.get(), .write = pressure.write}};
    }
    // The least that there can be, and room for some ten extents.
    for (options_.budget_bytes = 1 << 20; !ColdCache::create(options_).ok();) options_.budget_bytes += 64 << 10;
    options_.budget_bytes += 300 << 10;
    cache_ = make_cold(options_, environment);
    engine_ = std::make_unique<ColdEngine>(options_.model.groups[0], kPlaces);
    room_.resize(5000);
  }

  void step() {
    switch (random_() % 12) {
      case 0:
      case 1:
      case 2:
        return store();
      case 3:
      case 4:
      case 5:
        return load();
      case 6:
        return lookup();
      case 7:
        return store_state();
      case 8:
        return load_state();
      case 9:
        return pins();
      case 10:
        return erase_or_prefetch();
      default:
        now_ += static_cast<std::int64_t>(random_() % 1000);
        if (random_() % 50 == 0) check();
        while (random_() % 3 != 0 && cache_->pump()) {
        }
    }
  }

  void check() {
    const Status status = cache_->verify();
    ASSERT_TRUE(status.ok()) << status.message();
    const ColdStats stats = cache_->stats();
    ASSERT_LE(stats.peak_bytes, options_.budget_bytes);
    std::uint64_t answers = stats.pending;
    for (const std::uint64_t hits : stats.hits) answers += hits;
    for (const std::uint64_t misses : stats.misses) answers += misses;
    ASSERT_EQ(answers, stats.queries);
    const bool may_fail =
        pressure_.below && (pressure_.rates.flip > 0 || pressure_.rates.truncate > 0 || pressure_.rates.lose > 0);
    if (!may_fail) {
      ASSERT_EQ(stats.failed_frames, 0u);
    }
  }
  void finish() {
    ASSERT_TRUE(cache_->wait_idle(std::int64_t{60} * 1'000'000'000).ok());
    for (const auto& [key, pins] : pinned_)
      for (int i = 0; i < pins; ++i) cache_->unpin({&key, 1});
    check();
    loaded_ = cache_->stats().blocks_loaded;
    stats_ = cache_->stats();
    cache_.reset();
    faulty_.reset();
    below_.reset();
    ASSERT_EQ(ledger_.spent(Budget::kHost), 0u) << "everything that was charged has come back";
  }
  ColdStats stats_;
  std::uint64_t loaded_ = 0;

 private:
  // A run of names with a bounded number of starts, so that they meet again.
  std::uint64_t start() { return random_() % (kNames / 8) * 8 + (random_() % 4 == 0 ? random_() % 8 : 0); }
  Blocks some(std::uint32_t& count, std::uint64_t& name) {
    count = 1 + static_cast<std::uint32_t>(random_() % kPlaces);
    name = start();
    Blocks blocks = make_run(*engine_, 0, count, name, name * kBlockTokens);
    if (random_() % 8 == 0) blocks.run.deadline_ns = 1 + static_cast<std::int64_t>(random_() % 500);
    blocks.run.priority = static_cast<std::uint8_t>(random_() % 3);
    return blocks;
  }
  ColdDone finish_ticket(const Result<Ticket>& ticket) {
    EXPECT_TRUE(ticket.ok()) << ticket.status().message();
    if (!ticket.ok()) return {};
    if (random_() % 16 == 0) {
      if (random_() % 2 == 0) cache_->pump();
      cache_->cancel(*ticket);
    }
    if (random_() % 8 == 0) now_ += 300;
    return ended(*cache_, ticket);
  }
  void judge(const ColdResult& result, bool stored_before) {
    if (result.found) {
      EXPECT_TRUE(stored_before) << "nobody ever stored it";
      return;
    }
    EXPECT_TRUE(result.miss != ColdMiss::kNone) << "a miss without a reason";
    if (result.status.code() == Code::kCorrupt) {
      EXPECT_EQ(result.miss, ColdMiss::kLoadFailed);
    }
  }

  void store() {
    std::uint32_t count;
    std::uint64_t name;
    const Blocks blocks = some(count, name);
    for (std::uint32_t i = 0; i < count; ++i) engine_->fill(i, name + i);
    const ColdDone done = finish_ticket(cache_->store(blocks.run));
    for (std::uint32_t i = 0; i < count && i < done.results.size(); ++i) {
      known_[name + i] = true;  // a cancelled one may have been stored in part
      if (!done.results[i].found) {
        const Code code = done.results[i].status.code();
        EXPECT_TRUE(code == Code::kUnavailable || code == Code::kNoSpace) << done.results[i].status.message();
      }
    }
  }
  void load() {
    std::uint32_t count;
    std::uint64_t name;
    const Blocks blocks = some(count, name);
    engine_->poison();
    const ColdDone done = finish_ticket(cache_->load(blocks.run));
    for (std::uint32_t i = 0; i < count && i < done.results.size(); ++i) {
      judge(done.results[i], known_.contains(name + i));
      if (done.results[i].found) {
        ASSERT_TRUE(engine_->holds(i, name + i)) << "wrong bytes of name " << name + i;
      }
    }
  }
  void lookup() {
    const std::uint64_t name = start();
    std::vector<Key> keys;
    for (std::uint32_t i = 0; i < 10; ++i) keys.push_back(cold_key(name + i));
    std::vector<ColdFound> found(keys.size());
    ASSERT_TRUE(cache_->lookup({.keys = keys}, found).ok());
    for (std::uint32_t i = 0; i < 10; ++i) {
      if (found[i].answer == ColdAnswer::kHit) {
        EXPECT_TRUE(known_.contains(name + i));
      } else {
        EXPECT_NE(found[i].miss, ColdMiss::kNone);
      }
    }
  }
  std::vector<std::byte> blob(std::uint64_t name) const {
    std::vector<std::byte> bytes(1 + cold_mix(name) % 4000);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(cold_mix(name * 31 + i / 3));
    return bytes;
  }
  void store_state() {
    const std::uint64_t name = start();
    const std::vector<std::byte> bytes = blob(name);
    const ColdState state = {.key = cold_key(name), .bytes = bytes, .bound = cold_mix(name) % 4 == 0};
    finish_ticket(cache_->store_state({&state, 1}));
    states_[name] = true;
  }
  void load_state() {
    const std::uint64_t name = start();
    const std::vector<std::byte> bytes = blob(name);
    const ColdState state = {.key = cold_key(name), .room = room_};
    const ColdDone done = finish_ticket(cache_->load_state({&state, 1}));
    if (done.results.empty()) return;
    judge(done.results[0], states_.contains(name));
    if (!done.results[0].found) return;
    ASSERT_EQ(done.results[0].bytes, bytes.size());
    ASSERT_TRUE(std::equal(bytes.begin(), bytes.end(), room_.begin())) << "wrong bytes of state " << name;
  }
  void pins() {
    if (pinned_.size() > 12 || (random_() % 2 == 0 && !pinned_.empty())) {
      const Key key = pinned_.begin()->first;
      const std::uint32_t here = cache_->unpin({&key, 1});
      EXPECT_LE(here, 1u);  // a damaged frame goes although it was pinned
      if (--pinned_.begin()->second == 0) pinned_.erase(pinned_.begin());
      return;
    }
    const Key key = cold_key(start());
    if (cache_->pin({&key, 1}) == 1) ++pinned_[key];
  }
  void erase_or_prefetch() {
    std::vector<Key> keys = {cold_key(start()), cold_key(start() + 1)};
    if (random_() % 3 == 0) {
      std::vector<ColdFound> found(2);
      const bool pinned = pinned_.contains(keys[0]) || pinned_.contains(keys[1]);
      cache_->erase(keys);
      ASSERT_TRUE(cache_->lookup({.keys = keys}, found).ok());
      if (!pinned) {
        EXPECT_EQ(found[0].answer, ColdAnswer::kMiss);
        EXPECT_EQ(found[1].answer, ColdAnswer::kMiss);
      }
      return;
    }
    const ColdDone done = finish_ticket(cache_->prefetch(keys));
    for (const ColdResult& result : done.results) judge(result, true);
  }

  std::mt19937_64 random_;
  std::int64_t now_ = 1;
  Ledger ledger_, below_ledger_{0, std::uint64_t{64} << 20};
  ColdCacheOptions options_;
  Pressure pressure_;
  std::unique_ptr<HostTier> below_;
  std::unique_ptr<FaultyTier> faulty_;
  std::unique_ptr<ColdCache> cache_;
  std::unique_ptr<ColdEngine> engine_;
  std::vector<std::byte> room_;
  std::map<std::uint64_t, bool> known_, states_;
  std::map<Key, int> pinned_;
};

void run_model(std::uint64_t seed, const Pressure& pressure, std::uint64_t count, ColdStats* stats = nullptr) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  Model model(seed, pressure);
  for (std::uint64_t i = 0; i < count && !testing::Test::HasFailure(); ++i) model.step();
  model.finish();
  if (stats != nullptr) *stats = model.stats_;
}

TEST(ColdModel, ManyOperationsOverAHealthyTierGiveTheBytesTheNamesHave) {
  const std::uint64_t count = operations(40'000) / 4;
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    ColdStats stats;
    run_model(seed, {.rates = {}, .write = seed % 2 == 0 ? ColdWrite::kBack : ColdWrite::kThrough}, count, &stats);
    EXPECT_GT(stats.demoted, 0u);
    EXPECT_GT(stats.fetched, 0u);
    EXPECT_GT(stats.evictions[index(TierId::kHost)], 0u);
    EXPECT_GT(stats.evictions[index(TierId::kDisk)], 0u);
  }
}

TEST(ColdModel, WithoutATierBelow) { run_model(11, {.rates = {}, .below = false}, operations(40'000) / 8); }

TEST(ColdModel, EveryKindOfFaultIsAMissWithItsReason) {
  const std::uint64_t count = operations(40'000) / 8;
  const FaultyTier::Rates kinds[] = {
      {.fail = 0.2}, {.delay = 0.5}, {.truncate = 0.2},
      {.flip = 0.2}, {.lose = 0.2},  {.fail = 0.1, .delay = 0.3, .truncate = 0.1, .flip = 0.1, .lose = 0.1}};
  std::uint64_t seed = 20;
  for (const FaultyTier::Rates& rates : kinds)
    for (const ColdWrite write : {ColdWrite::kBack, ColdWrite::kThrough}) {
      ColdStats stats;
      run_model(++seed, {.rates = rates, .write = write}, count, &stats);
      if (rates.flip > 0 || rates.truncate > 0 || rates.lose > 0) {
        EXPECT_GT(stats.failed_frames, 0u) << seed;
      }
      if (rates.fail > 0) {
        EXPECT_GT(stats.tier_failures, 0u) << seed;
      }
    }
}

}  // namespace
}  // namespace firn
