// Ending what another thread is doing: a request that is cancelled while its step is computed. What the step reads and
// writes stays its own until it is over, and then it is told.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "firn/thread_pool.h"
#include "tests/core/manager/hand_device.h"
#include "tests/core/manager/toy_engine.h"

namespace firn::test {
namespace {

constexpr std::uint32_t kQueryHeads = 2;

ModelSpec model_of_tests(std::uint32_t window = 0) {
  ModelSpec model = small_model(2, 2, 32);
  model.groups[0].query_heads = kQueryHeads;
  if (window != 0) model.groups[0].kind = GroupKind::kSlidingWindow, model.groups[0].window = window;
  return model;
}

Config config_of(std::uint32_t blocks, bool worker = false) {
  Config config;
  config.device = "cpu";
  config.threads = 1;
  config.protect.recent = 32;
  config.pool.max_step_tokens = 64;
  config.pool.staging_bytes = kSplitTokens * model_of_tests().groups[0].kv.token_bytes();
  config.pool.budget_bytes = config.pool.staging_bytes + (160u << 10) + blocks * model_of_tests().block_bytes();
  config.host.budget_bytes = 8u << 20;
  config.host.huge_pages = false;
  config.mover.worker = worker;
  return config;
}

void compute(Manager& manager, SeqId seq, const Tokens& tokens, std::uint32_t from = 0) {
  ToyEngine engine(manager, kQueryHeads);
  for (std::uint32_t at = from; at < tokens.size();) {
    const std::uint32_t count = std::min<std::uint32_t>(64, static_cast<std::uint32_t>(tokens.size()) - at);
    if (!manager.allocate(seq, count).ok()) {
      ASSERT_OK(manager.wait_room(seq, count));
      ASSERT_TRUE(manager.allocate(seq, count).ok());
    }
    ASSERT_OK(engine.append(seq, tokens, at, count));
    ASSERT_OK(manager.commit(seq, std::span(tokens).subspan(at, count)));
    at += count;
  }
}

// --- rows that a window has slid past ---

TEST(CommittedRows, OfAWindowAreRightWhereTheyAreHeldAndRefusedWhereNot) {
  constexpr std::uint32_t kWindow = 40, kTokens = 207;
  const auto manager = make_manager(config_of(60), model_of_tests(kWindow));
  ASSERT_TRUE(manager);
  const Tokens tokens = distinct(kTokens, 5);
  const SeqId seq = manager->begin(tokens)->seq;
  compute(*manager, seq, tokens);
  ToyEngine engine(*manager, kQueryHeads);
  std::uint32_t right = 0, refused = 0;
  for (std::uint32_t position = 0; position < kTokens; ++position) {
    const auto out = engine.attend(seq, tokens, position, 1);
    // Its window begins in a block that the next token's window reaches too.
    const bool held = position + 1 >= (kTokens + 1 - kWindow) / kBlockTokens * kBlockTokens + kWindow;
    EXPECT_EQ(out.ok(), held) << position;
    if (!out.ok()) {
      ++refused;
      EXPECT_EQ(out.status().code(), Code::kInvalidArgument);
      EXPECT_NE(out.status().message().find("position " + std::to_string(position)), std::string::npos)
          << out.status().message();
      EXPECT_NE(out.status().message().find("rewind("), std::string::npos) << out.status().message();
      continue;
    }
    ++right;
    // The same row in a sequence that has just come so far.
    const auto fresh = make_manager(config_of(60), model_of_tests(kWindow));
    ASSERT_TRUE(fresh);
    const Tokens shorter = first_of(tokens, position + 1);
    const SeqId other = fresh->begin(shorter)->seq;
    compute(*fresh, other, first_of(tokens, position));
    ASSERT_TRUE(fresh->allocate(other, 1).ok());
    ToyEngine fresh_engine(*fresh, kQueryHeads);
    ASSERT_OK(fresh_engine.append(other, shorter, position, 1));
    const auto want = fresh_engine.attend(other, shorter, position, 1);
    ASSERT_TRUE(want.ok()) << want.status().message();
    EXPECT_EQ(*out, *want) << position;
  }
  EXPECT_GE(right, 8u);
  EXPECT_GE(refused, 140u);
  // The way out: the sequence takes back what is still cached.
  ASSERT_OK(manager->rewind(seq, 100));
  EXPECT_TRUE(engine.attend(seq, tokens, 99, 1).ok());
}

// --- one thread attends or appends, another ends the sequence ---

// In the middle of the kernel, when the step has been planned and its result is not there yet.
class HookedDevice final : public Device, public Kernels {
 public:
  explicit HookedDevice(ThreadPool& threads) : cpu_(make_cpu_device(threads)) {}
  Memory& memory() override { return cpu_->memory(); }
  Kernels& kernels() override { return *this; }
  Timeline& timeline() override { return cpu_->timeline(); }
  Result<Fence> append(const AppendBatch& batch) override {
    if (on_append) std::exchange(on_append, nullptr)();
    return cpu_->kernels().append(batch);
  }
  Result<Fence> copy(const CopyBatch& batch) override { return cpu_->kernels().copy(batch); }
  Result<Fence> fill(const Region& region, std::uint64_t offset, std::uint64_t bytes, std::uint8_t value) override {
    return cpu_->kernels().fill(region, offset, bytes, value);
  }
  Result<Fence> attend(const AttendBatch& batch) override {
    if (on_attend) std::exchange(on_attend, nullptr)();
    ++waves;
    return cpu_->kernels().attend(batch);
  }
  std::function<void()> on_append, on_attend;
  int waves = 0;

 private:
  std::unique_ptr<Device> cpu_;
};

enum class End { kFree, kPreempt, kRewind, kRewindLittle };

Status end(Manager& manager, SeqId seq, End how, std::uint32_t tokens) {
  switch (how) {
    case End::kFree:
      return manager.free(seq);
    case End::kPreempt:
      return manager.preempt(seq);
    case End::kRewind:
      return manager.rewind(seq, 20);
    case End::kRewindLittle:
      return manager.rewind(seq, tokens - 3);
  }
  return {};
}

TEST(Cancel, SlotsOfAStepAreNobodysBeforeItIsOver) {
  for (const bool during_append : {false, true})
    for (const End how : {End::kFree, End::kPreempt, End::kRewind, End::kRewindLittle}) {
      SCOPED_TRACE((during_append ? "append " : "attend ") + std::to_string(static_cast<int>(how)));
      ThreadPool threads(1);
      HookedDevice device(threads);
      Config config = config_of(30);
      config.host.budget_bytes = 0;
      const auto manager = make_manager(config, model_of_tests(), {&threads, &device, {}});
      ASSERT_TRUE(manager);
      const Tokens tokens = distinct(200, 5), others = distinct(400, 7000);
      const SeqId seq = manager->begin(tokens)->seq;
      compute(*manager, seq, first_of(tokens, 190));
      ASSERT_TRUE(manager->allocate(seq, 10).ok());
      const Slots read = table(*manager, seq);
      // Another sequence takes every slot it can get, and fills it.
      SeqId greedy = SeqId::kNone;
      const auto cut = [&] {
        EXPECT_OK(end(*manager, seq, how, 190));
        greedy = manager->begin(others)->seq;
        std::uint32_t got = 0;
        while (got < others.size() && manager->allocate(greedy, 16).ok()) {
          ToyEngine engine(*manager, kQueryHeads);
          EXPECT_OK(engine.append(greedy, others, got, 16));
          EXPECT_OK(manager->commit(greedy, std::span(others).subspan(got, 16)));
          got += 16;
        }
        for (const std::uint32_t slot : table(*manager, greedy))
          EXPECT_EQ(std::count(read.begin(), read.end(), slot), 0) << "slot " << slot << " is being read";
        EXPECT_EQ(broken(*manager), "");
      };
      ToyEngine engine(*manager, kQueryHeads);
      Status status;
      if (during_append) {
        device.on_append = cut;
        status = engine.append(seq, tokens, 190, 10);
      } else {
        ASSERT_OK(engine.append(seq, tokens, 190, 10));
        device.on_attend = cut;
        status = engine.attend(seq, tokens, 190, 10).status();
      }
      EXPECT_EQ(status.code(), Code::kInvalidArgument) << status.message();
      EXPECT_NE(status.message().find("another thread"), std::string::npos) << status.message();
      EXPECT_EQ(broken(*manager), "");
      // What the other sequence has is what it wrote.
      const std::uint32_t got = manager->token_count(greedy);
      const auto flat = make_manager(config_of(60), model_of_tests());
      ASSERT_TRUE(flat);
      const SeqId copy = flat->begin(others)->seq;
      compute(*flat, copy, first_of(others, got));
      const std::vector<SlotId> ours = manager->block_table(greedy), theirs = flat->block_table(copy);
      for (std::uint32_t i = 0; i < got / kBlockTokens; ++i)
        EXPECT_EQ(*manager->hash_slot(ours[i]), *flat->hash_slot(theirs[i])) << "block " << i;
      EXPECT_OK(manager->free(greedy));
      // And the step's slots are free again, now that it is over.
      if (how != End::kFree) {
        EXPECT_OK(manager->free(seq));
      }
      EXPECT_EQ(manager->stats().slots_live, 0u);
      EXPECT_EQ(broken(*manager), "");
    }
}

TEST(Cancel, ALaterWaveOfAStepIsRefused) {
  for (const End how : {End::kFree, End::kPreempt, End::kRewind}) {
    ThreadPool threads(1);
    HookedDevice device(threads);
    const auto manager = make_manager(config_of(24), model_of_tests(), {&threads, &device, {}});
    ASSERT_TRUE(manager);
    const Tokens tokens = distinct(900, 5);
    const SeqId seq = manager->begin(tokens)->seq;
    compute(*manager, seq, tokens);
    ASSERT_OK(manager->wait_idle());
    ASSERT_TRUE(manager->empty_pool(0xff).ok());
    ToyEngine engine(*manager, kQueryHeads);
    device.waves = 0;
    ASSERT_TRUE(engine.attend(seq, tokens, 899, 1).ok());
    ASSERT_GT(device.waves, 4) << "two layers of several waves";
    device.on_attend = [&] { EXPECT_OK(end(*manager, seq, how, 900)); };
    EXPECT_EQ(engine.attend(seq, tokens, 899, 1).status().code(), Code::kInvalidArgument);
    EXPECT_EQ(broken(*manager), "");
  }
}

// Threads that cancel each other's requests whenever they please.
TEST(Cancel, AtAnyTimeIsAnAnswerAndNeverBytesOfAnotherSequence) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  constexpr int kRounds = 40;
#else
  constexpr int kRounds = 150;
#endif
  for (const char* codec : {"lossless", "q4"}) {
    Config config = config_of(70, /*worker=*/true);
    config.threads = 2;
    config.host.codec = codec;
    config.host.allow_unmeasured = true;
    const auto manager = make_manager(config, model_of_tests());
    const auto flat = make_manager(config_of(200), model_of_tests());
    ASSERT_TRUE(manager && flat);
    const Tokens tokens = distinct(300, 5);
    std::vector<float> want;  // of the last row
    {
      const SeqId seq = flat->begin(tokens)->seq;
      compute(*flat, seq, tokens);
      want = *ToyEngine(*flat, kQueryHeads).attend(seq, tokens, 299, 1);
    }
    std::atomic<int> answered{0}, cut{0};
    const auto engine = [&](unsigned seed) {
      std::mt19937 random(seed);
      for (int round = 0; round < kRounds; ++round) {
        BeginOptions options;
        options.min_fidelity = Fidelity::kExact;
        options.name_space = seed % 2 ? "one" : "two";
        const Result<Begun> begun = manager->begin(tokens, options);
        if (!begun.ok()) continue;
        const SeqId seq = begun->seq;
        const int how = static_cast<int>(random() % 5);  // 4: nobody does
        const std::uint32_t wait_us = static_cast<std::uint32_t>(random() % 3000);
        std::jthread canceller([&, how, wait_us] {
          if (how == 4) return;
          std::this_thread::sleep_for(std::chrono::microseconds(wait_us));
          end(*manager, seq, static_cast<End>(how), 100).ok();
        });
        ToyEngine toy(*manager, kQueryHeads);
        std::uint32_t at = begun->match.tokens;
        bool going = true;
        while (going && at < tokens.size()) {
          const std::uint32_t count = std::min<std::uint32_t>(64, static_cast<std::uint32_t>(tokens.size()) - at);
          going = manager->allocate(seq, count).ok() ||
                  (manager->wait_room(seq, count, 20'000'000).ok() && manager->allocate(seq, count).ok());
          going = going && toy.append(seq, tokens, at, count).ok();
          if (going && at + count == tokens.size()) {
            const auto out = toy.attend(seq, tokens, at, count);
            going = out.ok();
            for (std::uint32_t layer = 0; going && layer < 2; ++layer) {
              const auto size = static_cast<std::ptrdiff_t>(toy.out_size());
              EXPECT_TRUE(std::equal(out->end() - (1 - layer) * count * size - size,
                                     out->end() - (1 - layer) * count * size, want.begin() + layer * size));
            }
            answered += going;
          }
          going = going && manager->commit(seq, std::span(tokens).subspan(at, count)).ok();
          at += count;
        }
        cut += !going;
        canceller.join();
        manager->free(seq).ok();
      }
    };
    std::vector<std::jthread> threads;
    for (unsigned seed = 1; seed <= 3; ++seed) threads.emplace_back(engine, seed);
    threads.clear();
    ASSERT_OK(manager->wait_idle());
    EXPECT_EQ(broken(*manager), "");
    EXPECT_EQ(manager->stats().sequences, 0u);
    EXPECT_GT(cut, 0);
    EXPECT_GT(answered, 0);
  }
}

}  // namespace
}  // namespace firn::test
