// Memory that runs out at any moment: operator new of this program fails the n-th time it is asked, for every n, under
// a round of calls. After each failure the manager is whole, the same calls succeed, and at the end nothing is left
// over. No threads: which allocation is the n-th is then the same every time.
#include <gtest/gtest.h>

#include <functional>

#include "tests/core/manager/fixture.h"
#include "tests/failing_heap.h"

namespace firn::test {
namespace {

// Runs call with every n until none fails any more. after(n): what holds after each.
void for_every_failure(const std::function<void()>& call, const std::function<void(std::uint64_t)>& after) {
  for (std::uint64_t n = 1;; ++n) {
    failed = false;
    fail_at = n;
    call();
    fail_at = 0;
    const bool last = !failed;
    after(n);
    if (testing::Test::HasFatalFailure() || last) return;
    ASSERT_LT(n, 20'000u) << "there is no end to it";
  }
}

struct Case {
  const char* name;
  Config config;
  ModelSpec model;
};

void PrintTo(const Case& one, std::ostream* out) { *out << one.name; }

Config bookkeeper(const ModelSpec& model, const char* eviction) {
  Config config = bookkeeping(40, model);
  config.events.capacity = 64;
  config.eviction = eviction;
  return config;
}

Config with_host(const ModelSpec& model, const char* codec) {
  Config config;
  config.device = "cpu";
  config.threads = 1;
  config.mover.worker = false;
  config.pool.budget_bytes = 24 * model.block_bytes() + (1u << 20);
  config.pool.max_step_tokens = 16;
  config.host.budget_bytes = 8u << 20;
  config.host.codec = codec;
  config.protect.recent = 32;
  config.events.capacity = 64;
  return config;
}

ModelSpec hybrid() {
  ModelSpec model = small_model();
  model.groups = {{GroupKind::kSlidingWindow, 2, {Dtype::kF16, 1, 64, 64}, 64},
                  {GroupKind::kFull, 2, {Dtype::kF16, 1, 64, 64}, 0}};
  return model;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const char* eviction : {"lru", "fifo", "sieve", "lfu", "s3fifo", "arc", "lru_tail_first", "priority"})
    all.push_back({eviction, bookkeeper(small_model(), eviction), small_model()});
  all.push_back({"hybrid", bookkeeper(hybrid(), "lru"), hybrid()});
  Config partial = bookkeeper(small_model(), "lru");
  partial.partial_reuse = partial.pool.zero_on_free = true;
  all.push_back({"partial", partial, small_model()});
  for (const char* codec : {"raw", "lossless"}) all.push_back({codec, with_host(small_model(), codec), small_model()});
  return all;
}

class Memory : public testing::TestWithParam<Case> {
 protected:
  // A round of everything, whatever fails on the way; what it began is gone afterwards, as far as memory allows.
  void round(Manager& manager) {
    const bool bytes = manager.config().device == "cpu";
    std::vector<SeqId>& open = open_;
    const auto begin = [&](const Tokens& tokens, const BeginOptions& options) {
      const auto begun = manager.begin(tokens, options);
      if (!begun.ok()) return SeqId::kNone;
      open.push_back(begun->seq);
      const std::uint32_t hit = begun->match.tokens;
      const auto count = static_cast<std::uint32_t>(tokens.size()) - hit;
      if (!manager.allocate(begun->seq, count).ok()) return begun->seq;
      const StepRows rows{.seq = begun->seq, .row = 0, .row_count = std::min(count, 16u), .position = hit};
      if (bytes) {
        const auto at = reinterpret_cast<DeviceAddress>(values_.data());
        for (std::uint32_t layer = 0; layer < 4; ++layer) {
          manager.append(layer, {&rows, 1}, at, at).ok();
          manager
              .attend(layer, {&rows, 1}, {.query_heads = 1, .scale = 1}, at,
                      reinterpret_cast<DeviceAddress>(out_.data()))
              .ok();
        }
      }
      manager.commit(begun->seq, std::span(tokens).subspan(hit)).ok();
      return begun->seq;
    };
    const SeqId first = begin(prompt_, {.name_space = "alice"});
    if (first != SeqId::kNone) {
      if (const auto forked = manager.fork(first); forked.ok()) {
        open.push_back(*forked);
        manager.allocate(*forked, 1).ok();
        manager.rewind(*forked, 36).ok();
      }
      manager.set_retention(first, ranges_).ok();
      manager.preempt(first).ok();
      manager.resume(first).ok();
      manager.prefetch(first).ok();
    }
    begin(other_, {.name_space = "bob", .shared_scope = "all", .shared_tokens = 32, .share = true});
    manager.pin(keys_, 1'000'000'000).ok();
    const auto lease = manager.acquire_lease("somebody of a name that is long", keys_, 1'000'000'000);
    if (lease.ok()) leases_.push_back(*lease);
    manager.set_family(keys_).ok();
    manager.pump();
    manager.explain(prompt_);
    manager.match_prefix(prompt_);
    manager.stats();
    manager.dump();
    manager.take_events(0).ok();
    manager.event_snapshot().ok();
    manager.reuse_order();
    manager.usage("alice");
    manager.set_quota("carol", {.device_ceiling = 1u << 20}).ok();
    manager.set_quota("carol", {}).ok();
    for (const SeqId seq : open)
      if (!manager.free(seq).ok()) kept_.push_back(seq);
    open.clear();
    if (lease.ok() && manager.release_lease(*lease)) leases_.pop_back();
    manager.unpin(keys_);
    manager.pump();
  }
  void clean(Manager& manager) {
    for (const SeqId seq : kept_) EXPECT_OK(manager.free(seq));
    kept_.clear();
    for (const LeaseId lease : leases_) manager.release_lease(lease);
    leases_.clear();
    manager.unpin(keys_);
    manager.pump();
  }

  void SetUp() override {
    open_.reserve(64);
    kept_.reserve(64);
    leases_.reserve(64);
  }
  std::vector<SeqId> open_, kept_;
  std::vector<LeaseId> leases_;
  const Tokens prompt_ = distinct(100, 1), other_ = distinct(70, 500);
  std::vector<Key> keys_;
  std::vector<RetentionRange> ranges_{{0, 64, 80, 1'000'000'000}, {64, 100, 10, 0}};
  std::vector<float> values_ = std::vector<float>(16 * 64, 0.5f), out_ = std::vector<float>(16 * 64);
};

TEST_P(Memory, MayRunOutAnywhereInARoundOfCalls) {
  const auto manager = make_manager(GetParam().config, GetParam().model);
  ASSERT_TRUE(manager);
  keys_ = manager->compute_keys(first_of(prompt_, 48), "alice");
  for_every_failure([&] { round(*manager); },
                    [&](std::uint64_t n) {
                      ASSERT_EQ(broken(*manager), "") << "after allocation " << n << " failed";
                      clean(*manager);
                      ASSERT_EQ(broken(*manager), "") << "after allocation " << n << " failed, and all was freed";
                    });
  round(*manager);
  clean(*manager);
  EXPECT_EQ(manager->stats().sequences, 0u);
  EXPECT_OK(manager->reset());
  EXPECT_EQ(manager->stats().slots_free, manager->stats().slots_total);
  EXPECT_EQ(broken(*manager), "");
}

TEST_P(Memory, MayRunOutWhileAManagerIsMade) {
  bool made = false;
  for_every_failure(
      [&] {
        const auto manager = Manager::create(GetParam().config, GetParam().model);
        made = manager.ok();
        EXPECT_TRUE(made || manager.status().code() == Code::kNoSpace) << manager.status().message();
      },
      [](std::uint64_t) {});
  EXPECT_TRUE(made);
}

INSTANTIATE_TEST_SUITE_P(Cases, Memory, testing::ValuesIn(cases()),
                         [](const auto& one) { return std::string(one.param.name); });

}  // namespace
}  // namespace firn::test
