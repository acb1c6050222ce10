// replay_bench: is the simulator right about time? The example engine takes a scaled trace through a manager with real
// bytes (SmolLM2, cpu device, host tier); a few of its steps are measured beforehand, and with those rates alone the
// virtual engine predicts the same run over device "none". Hits must be equal, request by request; the mean time to the
// first token is shown beside the prediction. Needs FIRN_SMOLLM2_GGUF, which ./run sets.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <ctime>
#include <fstream>

#include "core/base/check.h"
#include "examples/llama/engine.h"
#include "sim/replay.h"
#include "sim/virtual_engine.h"
#include "tests/sim/traces.h"

namespace firn::sim {
namespace {

// One thread and its processor time, so that who else uses the machine does not count: on an idle one it is the time
// that passes.
double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}
double seconds_since(double start) { return cpu_seconds() - start; }

struct RealEngine {
  llama::Engine& engine;
  Manager& manager;
  Result<llama::Sequence> begin(std::span<const TokenId> tokens) { return engine.begin(tokens); }
  Status turn(std::span<llama::Sequence* const> sequences) { return engine.run(sequences); }
  void pump() { manager.pump(); }
};

Config config() {
  Config made;
  made.device = "cpu";
  made.pool.budget_bytes = 64 << 20;  // about 2,000 tokens of SmolLM2 beside staging and workspace
  made.host.budget_bytes = 256 << 20;
  made.host.codec = "raw";
  made.mover.worker = false;
  made.max_sequence_tokens = 1 << 13;
  return made;
}

std::vector<TokenId> tokens(std::size_t count, std::uint64_t name) {
  const TokenMaker maker{.first = 3, .vocabulary = 40000};
  std::vector<TokenId> made(count);
  for (std::uint32_t i = 0; i < count; ++i) made[i] = maker.token((std::uint64_t{1} << 40) + name, i);
  return made;
}

double run_prompt(llama::Engine& engine, std::span<const TokenId> prompt) {
  llama::Sequence sequence = engine.begin(prompt).value();
  llama::Sequence* one[] = {&sequence};
  const auto start = cpu_seconds();
  FIRN_CHECK(engine.run(one).ok());
  return seconds_since(start);
}

// A few dozen steps of the engine, in a manager of their own.
MeasuredRates measure(const llama::Model& model, ThreadPool& threads) {
  auto manager = Manager::create(config(), model.spec(), {.threads = &threads, .device = nullptr, .clock = {}}).value();
  llama::Engine engine(model, *manager, threads);
  const std::uint32_t most = manager->config().pool.max_step_tokens;
  std::uint64_t name = 1;
  const auto mean_of_three = [&](const auto& once) { return (once() + once() + once()) / 3; };
  MeasuredRates rates;
  run_prompt(engine, tokens(most, name++));  // warm
  for (std::uint32_t rows = 1; rows <= most; rows *= 2)
    rates.step_s.emplace_back(rows, mean_of_three([&] { return run_prompt(engine, tokens(rows, name++)); }));
  const std::uint32_t steps = 6;
  const double full = rates.step_s.back().second, length = double(steps) * most;
  const double own = steps * (double(most) * most / 2), all = length * length / 2;
  rates.pair_s =
      std::max(0.0, (mean_of_three([&] { return run_prompt(engine, tokens(steps * most, name++)); }) - steps * full) /
                        (all - own));
  for (auto& [rows, seconds] : rates.step_s) seconds -= rates.pair_s * double(rows) * double(rows + 1) / 2;

  manager->pump();
  const std::uint64_t stored = manager->stats().frames_stored;
  const std::vector<TokenId> prompt = tokens(1024, name++);
  run_prompt(engine, prompt);
  const auto start = cpu_seconds();
  manager->pump();
  rates.stored_frame_s =
      seconds_since(start) / double(std::max<std::uint64_t>(1, manager->stats().frames_stored - stored));
  FIRN_CHECK(manager->empty_pool(0).ok());
  const std::vector<TokenId> again = [&] {
    std::vector<TokenId> longer = prompt;
    for (const TokenId token : tokens(16, name++)) longer.push_back(token);
    return longer;
  }();
  const PrefixMatch match = manager->match_prefix(again);
  const double with_cold = run_prompt(engine, again), rows = double(again.size() - match.tokens);
  const double cold_blocks = match.tokens_on_host / double(kBlockTokens);
  const StepCost cost = rates.cost();
  rates.cold_block_s =
      std::max(0.0, (with_cold - cost({.rows = std::uint64_t(rows), .pairs = rows * double(match.tokens)})) /
                        std::max(1.0, cold_blocks));
  return rates;
}

std::function<Result<bool>(TraceRequest&)> source(TraceReader& reader) {
  return [&reader](TraceRequest& request) { return reader.next(request); };
}

void BM_ReplayMeanFirstToken(benchmark::State& state) {
  const char* path = std::getenv("FIRN_SMOLLM2_GGUF");
  if (path == nullptr || !std::ifstream(path).good()) {
    state.SkipWithError("needs FIRN_SMOLLM2_GGUF");
    return;
  }
  ThreadPool threads(1);
  const llama::Model model = llama::Model::load(path).value();
  // The recorded slice, a thirty-second as long; or conversations that go on, so that much is found in the host tier.
  const bool chat = state.range(1) != 0;
  const std::string path_of_trace =
      chat ? "workload:chat:sessions=8,rate=0.2,turns=4,system=200,question=150,answer=40,pause=30,seed=2"
           : slice("conversation_2000.jsonl.zst");
  const TokenMaker maker{.block_tokens = chat ? kBlockTokens : 512,
                         .scaled_tokens = chat ? 0 : kBlockTokens,
                         .first = 3,
                         .vocabulary = 40000};
  const TraceOptions trace{.max_requests = 24};
  const auto places = static_cast<std::uint32_t>(state.range(0));
  for (auto _ : state) {
    const MeasuredRates rates = measure(model, threads);
    Config with = config();
    auto manager = Manager::create(with, model.spec(), {.threads = &threads, .device = nullptr, .clock = {}}).value();
    with.pool.max_step_tokens = manager->config().pool.max_step_tokens;
    const std::uint64_t slots = manager->stats().slots_total;
    llama::Engine engine(model, *manager, threads);
    RealEngine wrapped{engine, *manager};
    auto reader = TraceReader::open(path_of_trace, trace).value();
    const auto start = cpu_seconds();
    const auto wall = [start] { return Instant{static_cast<std::int64_t>(seconds_since(start) * 1e9)}; };
    const Replay real = replay(wrapped, *manager, source(*reader),
                               {.tokens = maker, .places = places, .now = wall, .wait_until = {}, .after_turn = {}})
                            .value();
    state.SetIterationTime(seconds_since(start));
    // And again: on a machine that others use too, what was measured minutes ago is not what holds now.
    const MeasuredRates after = measure(model, threads);

    with.device = "none";
    with.pool.budget_bytes = (slots + 1) * model.spec().block_bytes();
    VirtualClock clock;
    auto simulated =
        Manager::create(with, model.spec(),
                        {.threads = &threads, .device = nullptr, .clock = clock.reader(), .assumed_ratio = 1})
            .value();
    FIRN_CHECK(simulated->stats().slots_total == slots);
    const StepCost cost = [first = rates.cost(), last = after.cost()](const StepWork& work) {
      return (first(work) + last(work)) / 2;
    };
    VirtualEngine virtual_engine(*simulated, clock, {.cost = cost});
    reader = TraceReader::open(path_of_trace, trace).value();
    const Replay predicted =
        replay(virtual_engine, *simulated, source(*reader),
               {.tokens = maker, .places = places, .now = clock.reader(), .wait_until = {}, .after_turn = {}})
            .value();
    FIRN_CHECK(real.requests.size() == predicted.requests.size());
    std::uint64_t hits = 0, host = 0;
    for (std::size_t i = 0; i < real.requests.size(); ++i) {
      FIRN_CHECK(real.requests[i].hit_tokens == predicted.requests[i].hit_tokens);
      hits += real.requests[i].hit_tokens;
      host += real.requests[i].hit_tokens_host;
    }
    FIRN_CHECK(manager->stats().evictions == simulated->stats().evictions);
    const double a = real.mean_first_token_s(), b = predicted.mean_first_token_s();
    state.counters["real_ms"] = a * 1e3;
    state.counters["predicted_ms"] = b * 1e3;
    state.counters["error_percent"] = 100 * (b - a) / a;
    state.counters["hit_tokens"] = double(hits);
    state.counters["of_those_on_host"] = double(host);
  }
}
BENCHMARK(BM_ReplayMeanFirstToken)
    ->ArgNames({"places", "chat"})
    ->Args({1, 0})
    ->Args({3, 0})
    ->Args({3, 1})
    ->UseManualTime()
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace firn::sim
