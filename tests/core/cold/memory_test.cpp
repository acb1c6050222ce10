// Memory that runs out at any moment of a job: operator new of this program fails the n-th time it is asked, for every
// n, from the begin of stores, loads, look-ups and states to their end. Every ticket ends, says so name by name, and
// leaves nothing behind; what is found has its bytes; and the same calls succeed afterwards. No threads: which
// allocation is the n-th is then the same every time.
#include "tests/core/cold/cold_engine.h"
#include "tests/failing_heap.h"

namespace firn {
namespace {

using test::fail_at;
using test::failed;

constexpr std::uint32_t kBlocks = 12, kStates = 3;

class Round {
 public:
  Round(const std::string& codec, std::string_view policy, bool below, ColdWrite write) : ledger_(0, 64 << 20) {
    options_.model = cold_model(Dtype::kF16, 2, 1, 16);
    options_.max_blocks = 200;
    options_.queue_blocks = 256;
    options_.queue_tickets = 32;
    options_.workers = false;
    options_.huge_pages = false;
    options_.codec = codec;
    options_.eviction = policy;
    for (options_.budget_bytes = 1 << 20; !ColdCache::create(options_).ok();) options_.budget_bytes += 64 << 10;
    options_.budget_bytes += 160 << 10;  // room for some six extents: the older ones go
    ColdEnvironment environment{.ledger = &ledger_, .now_ns = [this] { return ++now_; }};
    if (below) {
      Result<std::unique_ptr<HostTier>> tier =
          HostTier::create({.budget_bytes = 300 << 10, .huge_pages = false, .max_frames = 100}, below_ledger_);
      EXPECT_TRUE(tier.ok());
      below_ = std::move(*tier);
      environment.tiers = {{.id = TierId::kDisk, .tier = below_.get(), .write = write}};
    }
    cache_ = make_cold(options_, environment);
    engine_ = std::make_unique<ColdEngine>(options_.model.groups[0], kBlocks);
    for (auto& room : rooms_) room.resize(3000);
  }

  // Stores, looks up and loads blocks and states of new names, while the n-th allocation fails; then once more.
  void run(std::uint64_t n) {
    const std::uint64_t name = n * 100;
    for (std::uint32_t i = 0; i < kBlocks; ++i) engine_->fill(i, name + i);
    const Blocks blocks = make_run(*engine_, 0, kBlocks, name);
    std::vector<ColdState> states(kStates);
    std::vector<std::vector<std::byte>> blobs(kStates);
    for (std::uint32_t i = 0; i < kStates; ++i) {
      blobs[i].resize(2000 + 100 * i);
      for (std::size_t b = 0; b < blobs[i].size(); ++b)
        blobs[i][b] = static_cast<std::byte>(cold_mix(name + i + b / 5));
      states[i] = {.key = blocks.keys[i], .bytes = blobs[i], .room = rooms_[i], .bound = i == 1};
    }
    std::vector<ColdFound> found(kBlocks);
    tickets_.reserve(16);
    for (const bool failing : {true, false}) {
      failed = false;
      fail_at = failing ? n : 0;
      begin(cache_->store(blocks.run));
      begin(cache_->lookup({.keys = blocks.keys}, found));
      begin(cache_->store_state(states));
      collect(failing);
      fail_at_pause([&] { engine_->poison(); });
      begin(cache_->load(blocks.run));
      const Ticket loading = tickets_.empty() ? Ticket::kNone : tickets_.back();
      begin(cache_->load_state(states));
      begin(cache_->prefetch(blocks.keys));
      cache_->touch(blocks.keys);
      cache_->pin({blocks.keys.data(), 2});
      cache_->unpin({blocks.keys.data(), 2});
      collect(failing, loading, name);
      const std::uint64_t left = std::exchange(fail_at, 0);
      ASSERT_TRUE(cache_->wait_idle(std::int64_t{30} * 1'000'000'000).ok()) << "after allocation " << n;
      ASSERT_TRUE(cache_->poll().empty());
      const Status whole = cache_->verify();
      ASSERT_TRUE(whole.ok()) << "after allocation " << n << ": " << whole.message();
      ASSERT_EQ(cache_->stats().tickets, 0u) << n;
      ASSERT_EQ(cache_->stats().queued_names, 0u) << n;
      ASSERT_EQ(cache_->stats().failed_frames, 0u) << "no frame is to blame: allocation " << n;
      ASSERT_LE(ledger_.peak(Budget::kHost), options_.budget_bytes);
      if (failing) ever_failed_ = failed && left == 0;
      if (!failing) {
        // Some policies would rather evict what is new.
        ASSERT_TRUE(loaded_ == kBlocks || options_.eviction != "lru") << loaded_ << " after allocation " << n;
      }
      for (std::uint32_t i = 0; i < kBlocks; ++i) engine_->fill(i, name + i);
    }
  }
  bool ever_failed() const { return ever_failed_; }
  void finish() {
    cache_.reset();
    ASSERT_EQ(ledger_.spent(Budget::kHost), 0u);
  }

 private:
  template <class Body>
  void fail_at_pause(Body body) {
    const std::uint64_t left = std::exchange(fail_at, 0);
    body();
    fail_at = left;
  }
  void begin(const Result<Ticket>& ticket) {
    const std::uint64_t left = std::exchange(fail_at, 0);
    if (!ticket.ok()) {
      EXPECT_EQ(ticket.status().code(), Code::kNoSpace) << ticket.status().message();
    } else if (*ticket != Ticket::kNone) {
      tickets_.push_back(*ticket);
    }
    fail_at = left;
  }
  void collect(bool failing, Ticket loading = Ticket::kNone, std::uint64_t name = 0) {
    loaded_ = 0;
    for (const Ticket ticket : tickets_) {
      Result<ColdDone> done = cache_->wait(ticket);
      const std::uint64_t left = std::exchange(fail_at, 0);
      if (!done.ok()) {  // waiting itself had no memory: nothing is lost
        EXPECT_EQ(done.status().code(), Code::kNoSpace) << done.status().message();
        done = cache_->wait(ticket);
      }
      ASSERT_TRUE(done.ok()) << done.status().message();
      for (std::size_t i = 0; i < done->results.size(); ++i) {
        const ColdResult& result = done->results[i];
        EXPECT_TRUE(failing || result.status.ok()) << result.status.message();
        if (ticket == loading && result.found) {
          ++loaded_;
          EXPECT_TRUE(engine_->holds(static_cast<std::uint32_t>(i), name + i)) << "wrong bytes";
        }
        if (result.found) continue;
        const Code code = result.status.code();
        EXPECT_TRUE(result.miss != ColdMiss::kNone || code == Code::kNoSpace || code == Code::kUnavailable ||
                    code == Code::kIo)
            << result.status.message();
      }
      fail_at = left;
    }
    tickets_.clear();
  }

  Ledger ledger_, below_ledger_{0, 64 << 20};
  ColdCacheOptions options_;
  std::int64_t now_ = 0;
  std::unique_ptr<HostTier> below_;
  std::unique_ptr<ColdCache> cache_;
  std::unique_ptr<ColdEngine> engine_;
  std::array<std::vector<std::byte>, kStates> rooms_;
  std::vector<Ticket> tickets_;
  std::uint32_t loaded_ = 0;
  bool ever_failed_ = false;
};

void run_all(const std::string& codec, std::string_view policy, bool below = false,
             ColdWrite write = ColdWrite::kBack) {
  SCOPED_TRACE(codec + ", " + std::string(policy) + (below ? ", a tier below" : ""));
  Round round(codec, policy, below, write);
  for (std::uint64_t n = 1; !testing::Test::HasFailure(); ++n) {
    ASSERT_LT(n, 20'000u);
    round.run(n);
    if (!round.ever_failed() && n > 30) break;
  }
  round.finish();
}

TEST(ColdMemory, MayRunOutAtAnyMomentOfAJob) {
  run_all("raw", "lru");
  run_all("lossless", "lru");
}

// Those that allocate everything when they are made. The others remember names, and a name that finds no memory leaves
// them half done (docs/status.md).
TEST(ColdMemory, MayRunOutUnderPoliciesThatAllocateNothingLater) {
  for (const std::string_view policy : {"fifo", "sieve"}) run_all("raw", policy);
}

TEST(ColdMemory, MayRunOutWhileFramesMoveBetweenTiers) {
  run_all("raw", "lru", true, ColdWrite::kBack);
  run_all("raw", "lru", true, ColdWrite::kThrough);
}

}  // namespace
}  // namespace firn
