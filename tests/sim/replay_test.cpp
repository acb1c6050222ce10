// The library and its simulation make the same counts: the example engine with real bytes on the cpu device, and the
// virtual engine over device "none", take the same scaled trace through a manager each; and what the simulated manager
// decides is the library's own policy's.
#include "sim/replay.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "examples/llama/engine.h"
#include "sim/library_run.h"
#include "sim/virtual_engine.h"
#include "tests/sim/traces.h"

namespace firn::sim {
namespace {

constexpr std::uint64_t kRequests = 40;

TokenMaker small_tokens() {
  return {.block_tokens = 512, .scaled_tokens = kBlockTokens, .first = 3, .vocabulary = 290};
}

std::function<Result<bool>(TraceRequest&)> source(TraceReader& reader) {
  return [&reader](TraceRequest& request) -> Result<bool> {
    FIRN_ASSIGN(const bool more, reader.next(request));
    request.output_tokens = std::min(request.output_tokens, 200u);  // decoding changes no hits; a few steps do
    return more;
  };
}

std::unique_ptr<TraceReader> open_slice() {
  return TraceReader::open(slice("conversation_2000.jsonl.zst"), {.max_requests = kRequests}).value();
}

struct Outcome {
  Replay replay;
  Stats stats;
};

void expect_the_same(const Outcome& real, const Outcome& simulated) {
  ASSERT_EQ(real.replay.requests.size(), simulated.replay.requests.size());
  for (std::size_t i = 0; i < real.replay.requests.size(); ++i) {
    const ReplayedRequest &a = real.replay.requests[i], &b = simulated.replay.requests[i];
    EXPECT_EQ(a.number, b.number);
    EXPECT_EQ(a.prompt_tokens, b.prompt_tokens);
    EXPECT_EQ(a.hit_tokens, b.hit_tokens) << "request " << a.number;
    EXPECT_EQ(a.hit_tokens_host, b.hit_tokens_host) << "request " << a.number;
  }
  EXPECT_EQ(real.replay.preempted, simulated.replay.preempted);
  const Stats &a = real.stats, &b = simulated.stats;
  EXPECT_EQ(a.prefix_cache_hits, b.prefix_cache_hits);
  EXPECT_EQ(a.misses, b.misses);
  EXPECT_EQ(a.evictions, b.evictions);
  EXPECT_EQ(a.evictions_with_copy, b.evictions_with_copy);
  EXPECT_EQ(a.frames_stored, b.frames_stored);
  EXPECT_EQ(a.host_evictions, b.host_evictions);
  EXPECT_EQ(a.host_frame_bytes, b.host_frame_bytes);
}

// The real one: a small random model, all bytes, one thread, blocks moved by pump().
struct RealEngine {
  llama::Engine& engine;
  Manager& manager;
  Result<llama::Sequence> begin(std::span<const TokenId> tokens) { return engine.begin(tokens); }
  Status turn(std::span<llama::Sequence* const> sequences) { return engine.run(sequences); }
  void pump() { manager.pump(); }
};

// Conversations that go on, so that what the pool has lost is found in the host tier.
constexpr const char* kChat =
    "workload:chat:sessions=16,rate=0.2,turns=5,system=64,question=60,answer=30,pause=40,seed=3";

struct Setting {
  std::uint64_t pool_bytes, host_bytes;
  const char* policy;
  const char* workload = nullptr;  // in place of the recorded slice
  std::unique_ptr<TraceReader> open() const {
    return workload == nullptr ? open_slice() : TraceReader::open(workload, {}).value();
  }
  TokenMaker tokens() const {
    return workload == nullptr ? small_tokens()
                               : TokenMaker{.block_tokens = kBlockTokens, .first = 3, .vocabulary = 290};
  }
};

class SameCounts : public testing::TestWithParam<Setting> {};

TEST_P(SameCounts, InTheExampleEngineAndInItsSimulation) {
  ThreadPool threads(1);
  const Result<llama::Model> model = llama::Model::load(FIRN_RANDOM_MODEL);
  ASSERT_TRUE(model.ok()) << model.status().message();
  Config config;
  config.device = "cpu";
  config.pool.budget_bytes = GetParam().pool_bytes;
  config.pool.max_step_tokens = 64;
  config.pool.staging_bytes = 64 << 10;
  config.protect.recent = 32;
  config.host.budget_bytes = GetParam().host_bytes;
  config.host.codec = "raw";
  config.mover.worker = false;
  config.eviction = GetParam().policy;
  config.max_sequence_tokens = 1 << 14;

  Outcome real;
  std::uint64_t slots = 0;
  {
    auto manager =
        Manager::create(config, model->spec(), {.threads = &threads, .device = nullptr, .clock = {}}).value();
    config.pool.max_step_tokens = manager->config().pool.max_step_tokens;
    slots = manager->stats().slots_total;
    llama::Engine engine(*model, *manager, threads);
    RealEngine wrapped{engine, *manager};
    const auto reader = GetParam().open();
    std::int64_t turns = 0;
    const auto ran = replay(wrapped, *manager, source(*reader),
                            {.tokens = GetParam().tokens(),
                             .places = 3,
                             .now = [&turns] { return Instant{++turns}; },
                             .wait_until = {},
                             .after_turn = {}});
    ASSERT_TRUE(ran.ok()) << ran.status().message();
    real = {*ran, manager->stats()};
  }
  Outcome simulated;
  {
    config.device = "none";
    config.pool.budget_bytes = (slots + 1) * model->spec().block_bytes();  // without staging and workspace
    VirtualClock clock;
    const auto created = Manager::create(
        config, model->spec(), {.threads = &threads, .device = nullptr, .clock = clock.reader(), .assumed_ratio = 1});
    ASSERT_TRUE(created.ok()) << created.status().message();
    Manager* const manager = created->get();
    ASSERT_EQ(manager->stats().slots_total, slots);
    VirtualEngine engine(*manager, clock, {.cost = [](const StepWork& work) { return 1e-3 * double(work.rows); }});
    const auto reader = GetParam().open();
    const auto ran =
        replay(engine, *manager, source(*reader),
               {.tokens = GetParam().tokens(), .places = 3, .now = clock.reader(), .wait_until = {}, .after_turn = {}});
    ASSERT_TRUE(ran.ok()) << ran.status().message();
    simulated = {*ran, manager->stats()};
    EXPECT_TRUE(manager->verify().empty());
  }
  EXPECT_GT(real.stats.evictions, 0u);
  EXPECT_GT(real.stats.prefix_cache_hits, 0u);
  EXPECT_EQ(real.stats.frames_stored == 0, GetParam().host_bytes == 0);
  expect_the_same(real, simulated);
  if (GetParam().workload == nullptr) return;
  EXPECT_GT(real.stats.hits_host, 20u) << "meant to find much in the host tier";
  EXPECT_GT(real.stats.hits_device, 20u);
}

INSTANTIATE_TEST_SUITE_P(Settings, SameCounts,
                         testing::Values(Setting{2 << 20, 0, "lru"}, Setting{1 << 20, 4 << 20, "lru"},
                                         Setting{2 << 20, 2 << 20, "lru"}, Setting{1 << 20, 4 << 20, "arc"},
                                         Setting{2 << 20, 3 << 20, "s3fifo"}, Setting{900 << 10, 4 << 20, "lru", kChat},
                                         Setting{900 << 10, 1 << 20, "arc", kChat}));

// The whole point of simulating with production code: another rule in the library is another count here.
std::uint64_t simulated_hits(const std::string& policy) {
  ModelSpec model;
  model.name = "small";
  model.weights.bytes.fill(1);
  model.groups = {{GroupKind::kFull, 1, {Dtype::kF16, 1, 8, 8}, 0}};
  Config config;
  config.device = "none";
  config.pool.budget_bytes = 4000 * model.block_bytes();
  config.mover.worker = false;
  config.eviction = policy;
  VirtualClock clock;
  auto manager =
      Manager::create(config, model, {.threads = nullptr, .device = nullptr, .clock = clock.reader()}).value();
  VirtualEngine engine(*manager, clock, {.cost = [](const StepWork&) { return 1e-3; }, .one_step = true});
  const auto reader = TraceReader::open(slice("conversation_2000.jsonl.zst"), {.max_requests = 600}).value();
  const auto ran = replay(engine, *manager, source(*reader),
                          {.tokens = small_tokens(),
                           .by_clock = true,
                           .decode_first = true,
                           .now = clock.reader(),
                           .wait_until = [&clock](Instant when) { clock.move_to(when); },
                           .after_turn = {}});
  EXPECT_TRUE(ran.ok()) << ran.status().message();
  EXPECT_EQ(ran->requests.size() + ran->refused, 600u);
  return manager->stats().prefix_cache_hits;
}

TEST(VirtualEngine, DecidesByTheLibrarysOwnPolicies) {
  const std::uint64_t lru = simulated_hits("lru");
  EXPECT_EQ(simulated_hits("lru"), lru) << "the same run, the same counts";
  EXPECT_GT(lru, 0u);
  EXPECT_NE(simulated_hits("lfu"), lru);
  EXPECT_NE(simulated_hits("s3fifo"), lru);
}

TEST(MeasuredRates, AreStraightLinesBetweenWhatWasMeasured) {
  const StepCost cost =
      MeasuredRates{.step_s = {{1, 1.0}, {11, 2.0}}, .pair_s = 0.5, .cold_block_s = 10, .stored_frame_s = 100}.cost();
  EXPECT_DOUBLE_EQ(cost({.rows = 1}), 1.0);
  EXPECT_DOUBLE_EQ(cost({.rows = 6}), 1.5);
  EXPECT_DOUBLE_EQ(cost({.rows = 99}), 2.0) << "no step was larger than the largest measured";
  EXPECT_DOUBLE_EQ(cost({.rows = 1, .pairs = 2, .cold_blocks = 1, .frames_stored = 1}), 112.0);
}

// The same report as the timing model's own, from the library's counts: near it where both model the same.
TEST(ThroughManager, ReportsWhatTheLibraryDid) {
  EngineOptions options;
  options.device = load_device("h200", {std::string(FIRN_SOURCE_DIR) + "/configs"}).value();
  options.model = load_model_shape("llama-3.1-8b").value();
  options.pool_bytes = std::uint64_t{40} << 30;
  options.host_bytes = std::uint64_t{100} << 30;
  const TraceOptions trace{.max_requests = 400};
  const Result<EngineResult> ran = run_through_manager(slice("conversation_2000.jsonl.zst"), trace, options);
  ASSERT_TRUE(ran.ok()) << ran.status().message();
  EXPECT_EQ(ran->requests, 400u);
  EXPECT_EQ(ran->finished + ran->refused, 400u);
  EXPECT_GT(ran->hits_pool, 0u);
  EXPECT_GT(ran->hits_host, 0u);
  EXPECT_GT(ran->host_down_bytes, ran->host_up_bytes);
  EXPECT_FALSE(ran->samples.empty());
  const EngineResult own = run_engine(slice("conversation_2000.jsonl.zst"), trace, options).value();
  const auto share = [](const EngineResult& r) {
    return double(r.hit_tokens_pool + r.hit_tokens_host) / double(r.input_tokens);
  };
  EXPECT_NEAR(share(*ran), share(own), 0.08) << "16-token blocks find a little more than 512-token ones";
  options.pool_bytes = std::uint64_t{100} << 30;
  options.host_bytes = 0;
  options.time_scale = 0.05;
  const EngineResult lru = run_through_manager(slice("conversation_2000.jsonl.zst"), trace, options).value();
  options.policy = "s3fifo";
  const EngineResult other = run_through_manager(slice("conversation_2000.jsonl.zst"), trace, options).value();
  EXPECT_NE(other.hits_pool, lru.hits_pool) << "another policy, another count";
  options.swap = true;
  EXPECT_EQ(run_through_manager(slice("conversation_2000.jsonl.zst"), trace, options).status().code(),
            Code::kInvalidArgument);
}

// What a manager writes is what it was asked: replayed, the same prompts find the same prefixes.
TEST(TraceRecord, ReadBackGivesTheSameHits) {
  const std::string file =
      (std::filesystem::temp_directory_path() / ("firn_record_" + std::to_string(getpid()) + ".jsonl")).string();
  ModelSpec model;
  model.name = "small";
  model.weights.bytes.fill(1);
  model.groups = {{GroupKind::kFull, 1, {Dtype::kF16, 1, 8, 8}, 0}};
  Config config;
  config.device = "none";
  config.pool.budget_bytes = 3000 * model.block_bytes();
  config.mover.worker = false;
  const auto run = [&](const std::function<Result<bool>(TraceRequest&)>& requests, const TokenMaker& tokens,
                       const std::string& record) {
    config.trace_record = record;
    VirtualClock clock;
    auto manager =
        Manager::create(config, model, {.threads = nullptr, .device = nullptr, .clock = clock.reader()}).value();
    VirtualEngine engine(*manager, clock, {.cost = [](const StepWork&) { return 1e-3; }});
    const auto ran = replay(engine, *manager, requests,
                            {.tokens = tokens, .places = 1, .now = clock.reader(), .wait_until = {}, .after_turn = {}});
    EXPECT_TRUE(ran.ok()) << ran.status().message();
    return *ran;
  };
  const auto reader = TraceReader::open(slice("conversation_2000.jsonl.zst"), {.max_requests = 300}).value();
  const Replay first = run(source(*reader), small_tokens(), file);
  const auto again = TraceReader::open(file, {.strict = true}).value();
  const Replay second = run(source(*again), {.block_tokens = kBlockTokens}, "");
  EXPECT_EQ(again->block_tokens(), kBlockTokens);
  std::filesystem::remove(file);
  ASSERT_EQ(first.requests.size(), 300u);
  ASSERT_EQ(second.requests.size(), first.requests.size());
  std::uint64_t hits = 0;
  for (std::size_t i = 0; i < first.requests.size(); ++i) {
    EXPECT_EQ(first.requests[i].prompt_tokens, second.requests[i].prompt_tokens);
    EXPECT_EQ(first.requests[i].hit_tokens, second.requests[i].hit_tokens) << "request " << i;
    hits += first.requests[i].hit_tokens;
  }
  EXPECT_GT(hits, 0u);
  config.trace_record = "/nowhere/at/all.jsonl";
  EXPECT_EQ(Manager::create(config, model).status().code(), Code::kIo);
}

}  // namespace
}  // namespace firn::sim
