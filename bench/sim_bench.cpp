// sim_bench: how fast the simulator counts. Items are block accesses; the trace is the whole conversation trace where
// it is there (FIRN_TRACES or ../shared/data/traces), else the shipped slice. It is read before the clock starts.
#include <benchmark/benchmark.h>
#include <malloc.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/base/check.h"
#include "sim/bookkeeping.h"
#include "sim/library_run.h"
#include "tests/sim/traces.h"

namespace firn::sim {
namespace {

std::string trace_path(bool agentic) {
  const std::string path =
      whole_trace(agentic ? "weka-kv-cache-tester/agentic_A.jsonl.zst" : "mooncake-fast25/conversation_trace.jsonl");
  return !path.empty() ? path : slice(agentic ? "agentic_60.jsonl.zst" : "conversation_2000.jsonl.zst");
}

std::vector<TraceRequest> load(const std::string& path) {
  std::unique_ptr<TraceReader> reader = TraceReader::open(path, {}).value();
  std::vector<TraceRequest> requests;
  TraceRequest request;
  while (reader->next(request).value()) requests.push_back(request);
  return requests;
}

void BM_Bookkeeping(benchmark::State& state, const std::string& policy, bool agentic) {
  const std::vector<TraceRequest> requests = load(trace_path(agentic));
  const auto blocks = static_cast<std::uint32_t>(state.range(0));
  Counts counts;
  std::size_t bytes = 0;
  for (auto _ : state) {
    const std::size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
    const std::unique_ptr<Bookkeeping> run =
        Bookkeeping::create({.policy = policy, .tier_blocks = {blocks}, .block_tokens = agentic ? 64u : 512u}).value();
    for (const TraceRequest& request : requests) run->run(request);
    counts = run->counts();
    bytes = mallinfo2().uordblks + mallinfo2().hblkhd - before;
  }
  FIRN_CHECK(counts.access_hits <= counts.blocks && counts.member_hits >= counts.prefix_hits);
  state.SetItemsProcessed(static_cast<std::int64_t>(counts.blocks) * state.iterations());
  state.counters["prefix_ratio"] = static_cast<double>(counts.prefix_hits) / static_cast<double>(counts.blocks);
  // Distinct blocks cannot be fewer than those that came in and stayed.
  const std::uint64_t inside = std::min<std::uint64_t>(blocks, counts.blocks - counts.access_hits);
  state.counters["bytes_per_block"] = static_cast<double>(bytes) / static_cast<double>(inside);
}
BENCHMARK_CAPTURE(BM_Bookkeeping, lru_conversation, "lru", false)
    ->Arg(10000)
    ->Arg(200000)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Bookkeeping, lru_agentic, "lru", true)->Arg(10000)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Bookkeeping, arc_conversation, "arc", false)->Arg(10000)->Unit(benchmark::kMillisecond);

// The whole conversation trace with its clock: real requests in simulated time.
void BM_TimingModel(benchmark::State& state) {
  EngineOptions options;
  options.device = load_device("h200", {std::string(FIRN_SOURCE_DIR) + "/configs"}).value();
  options.model = load_model_shape("llama-3.1-8b").value();
  options.pool_bytes = std::uint64_t{100} << 30;
  options.host_bytes = std::uint64_t{500} << 30;
  EngineResult result;
  for (auto _ : state)
    result = state.range(0) != 0 ? run_through_manager(trace_path(false), {}, options).value()
                                 : run_engine(trace_path(false), {}, options).value();
  FIRN_CHECK(result.finished + result.refused == result.requests);
  state.SetItemsProcessed(static_cast<std::int64_t>(result.requests) * state.iterations());
  state.counters["requests"] = static_cast<double>(result.requests);
  state.counters["simulated_min"] = result.seconds / 60;
  state.counters["token_hit_percent"] = 100.0 * static_cast<double>(result.hit_tokens_pool + result.hit_tokens_host) /
                                        static_cast<double>(result.input_tokens);
}
BENCHMARK(BM_TimingModel)->ArgName("through_manager")->Arg(0)->Arg(1)->Iterations(1)->Unit(benchmark::kMillisecond);

// The same stream through libCacheSim's own loop, where python3 has its package.
void BM_LibCacheSimLru(benchmark::State& state) {
  // libCacheSim's fastest format, "oracleGeneral": u32 time, u64 id, u32 size, i64 next access, packed.
  const std::string file = "/tmp/firn_bench_stream_" + std::to_string(getpid()) + ".bin";
  std::FILE* out = std::fopen(file.c_str(), "wb");
  FIRN_CHECK(out != nullptr);
  std::uint64_t accesses = 0;
  for (const TraceRequest& request : load(trace_path(false))) {
    for (const std::uint64_t block : request.blocks) {
      char record[24] = {};
      const std::uint32_t time = static_cast<std::uint32_t>(accesses++), size = 1;
      const std::uint64_t id = block + 1;
      std::memcpy(record, &time, 4);
      std::memcpy(record + 4, &id, 8);
      std::memcpy(record + 12, &size, 4);
      std::fwrite(record, 1, sizeof record, out);
    }
  }
  std::fclose(out);
  const std::string command = std::string("python3 ") + FIRN_SOURCE_DIR + "/bench/time_libcachesim.py " + file + " " +
                              std::to_string(state.range(0)) + " 2>/dev/null";
  double seconds = 0, ratio = 0;
  for (auto _ : state) {
    std::FILE* pipe = popen(command.c_str(), "r");
    const int got = pipe == nullptr ? 0 : std::fscanf(pipe, "%lf %lf", &seconds, &ratio);
    if (pipe != nullptr) pclose(pipe);
    if (got != 2) {
      state.SkipWithError("python3 has no module libcachesim (pip install libcachesim)");
      break;
    }
    state.SetIterationTime(seconds);
  }
  std::remove(file.c_str());
  state.SetItemsProcessed(static_cast<std::int64_t>(accesses) * state.iterations());
  state.counters["miss_ratio"] = ratio;
}
BENCHMARK(BM_LibCacheSimLru)->Arg(10000)->UseManualTime()->Iterations(3)->Unit(benchmark::kMillisecond);

void BM_ReadTrace(benchmark::State& state) {
  const std::string path = trace_path(state.range(0) != 0);
  std::uint64_t blocks = 0;
  for (auto _ : state) {
    blocks = 0;
    std::unique_ptr<TraceReader> reader = TraceReader::open(path, {}).value();
    TraceRequest request;
    while (reader->next(request).value()) blocks += request.blocks.size();
  }
  FIRN_CHECK(blocks > 0);
  state.SetItemsProcessed(static_cast<std::int64_t>(blocks) * state.iterations());
}
BENCHMARK(BM_ReadTrace)->ArgName("agentic")->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace firn::sim
