// ColdCache as an engine uses it, in bytes of raw keys and values a second: store and load of 64 blocks a ticket, and
// wait for it; beside copies (anchors.h) of the same bytes. codec_bench has the codecs alone.
//
// The values are captured ones (tests/data/README.md): three layers of 128 tokens of SmolLM2-135M. Extents are visited
// in turn through 68 MiB on either side.
#include <benchmark/benchmark.h>

#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

#include "bench/anchors.h"
#include "core/base/check.h"
#include "firn/cold_cache.h"

namespace firn {
namespace {

constexpr std::uint32_t kLayers = 3, kExtents = 240, kBatch = 8;  // extents
constexpr KvShape kKv = {.dtype = Dtype::kF16, .kv_heads = 3, .head_dim = 64, .value_dim = 64};
constexpr std::uint64_t kExtentBytes = std::uint64_t{kLayers} * kMaxExtentBlocks * kBlockTokens * 2 * 3 * 64 * 2;

struct Engine {
  Engine() : memory(kExtents * kExtentBytes), other(kExtents * kExtentBytes) {
    std::ifstream in(FIRN_TEST_DATA "/smollm2_kv_3x128.f16", std::ios::binary);
    in.read(reinterpret_cast<char*>(memory.data()), static_cast<std::streamsize>(kExtentBytes));
    FIRN_CHECK(in.good());
    for (std::size_t e = 1; e < kExtents; ++e)
      std::memcpy(memory.data() + e * kExtentBytes, memory.data(), kExtentBytes);
    for (std::uint32_t i = 0; i < kExtents * kMaxExtentBlocks; ++i) {
      Key key;
      std::memcpy(key.bytes.data(), &i, sizeof(i));
      key.bytes[31] = 1;
      keys.push_back(key);
    }
  }
  // 64 blocks from an extent on, [layer][block]; extents lie one after another as the capture has them.
  std::vector<BlockView> views(std::vector<std::byte>& from, std::size_t first) const {
    const auto stride = static_cast<std::uint32_t>(kKv.key_bytes());
    const std::size_t tensor = kBlockTokens * kMaxExtentBlocks * kKv.key_bytes();
    std::vector<BlockView> out;
    for (std::size_t layer = 0; layer < kLayers; ++layer)
      for (std::size_t block = 0; block < kBatch * kMaxExtentBlocks; ++block) {
        const auto k =
            reinterpret_cast<DeviceAddress>(from.data() + (first + block / kMaxExtentBlocks) * kExtentBytes +
                                            2 * layer * tensor + block % kMaxExtentBlocks * kBlockTokens * stride);
        out.push_back({k, k + tensor, stride, 128, stride, 128});
      }
    return out;
  }
  std::vector<std::byte> memory, other;
  std::vector<Key> keys;
};

std::unique_ptr<ColdCache> make_cache(const benchmark::State& state, ThreadPool& threads) {
  ColdCacheOptions options;
  options.model.groups = {{GroupKind::kFull, kLayers, kKv, 0}};
  options.budget_bytes = std::uint64_t{192} << 20;
  options.codec = state.range(0) == 0 ? "raw" : "lossless";
  Result<std::unique_ptr<ColdCache>> cache = ColdCache::create(options, {.threads = &threads});
  FIRN_CHECK(cache.ok());
  return std::move(*cache);
}

void finish(benchmark::State& state, const ColdCache& cache) {
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * kBatch *
                          static_cast<std::int64_t>(kExtentBytes));
  const ColdStats stats = cache.stats();
  state.counters["ratio"] =
      static_cast<double>(stats.raw_bytes) / static_cast<double>(stats.bytes_in[index(TierId::kHost)]);
}

void move(ColdCache& cache, const ColdRun& run, bool load) {
  const Result<Ticket> ticket = load ? cache.load(run) : cache.store(run);
  FIRN_CHECK(ticket.ok());
  const Result<ColdDone> done = cache.wait(*ticket);
  FIRN_CHECK(done.ok() && done->found == run.keys.size());
}

void run(benchmark::State& state, bool load) {
  Engine engine;
  ThreadPool threads(static_cast<unsigned>(state.range(1)));
  const auto cache = make_cache(state, threads);
  std::vector<std::vector<BlockView>> views;
  const auto run_of = [&](std::size_t first, const std::vector<BlockView>& at) {
    ColdRun run;
    run.keys = std::span(engine.keys).subspan(first * kMaxExtentBlocks, kBatch * kMaxExtentBlocks);
    run.views = at;
    return run;
  };
  for (std::size_t first = 0; first < kExtents; first += kBatch) {
    const std::vector<BlockView> from = engine.views(engine.memory, first);
    move(*cache, run_of(first, from), false);
    views.push_back(engine.views(load ? engine.other : engine.memory, first));
  }
  std::size_t at = 0;
  for (auto _ : state) {
    const ColdRun next = run_of(at * kBatch, views[at]);
    if (!load) cache->erase(next.keys);
    move(*cache, next, load);
    at = (at + 1) % views.size();
  }
  FIRN_CHECK(!load || std::memcmp(engine.memory.data(), engine.other.data(), kBatch * kExtentBytes) == 0);
  finish(state, *cache);
}

void BM_ColdStore(benchmark::State& state) { run(state, false); }
void BM_ColdLoad(benchmark::State& state) { run(state, true); }
BENCHMARK(BM_ColdStore)->ArgNames({"lossless", "threads"})->ArgsProduct({{0, 1}, {1, 2}})->UseRealTime();
BENCHMARK(BM_ColdLoad)->ArgNames({"lossless", "threads"})->ArgsProduct({{0, 1}, {1, 2}})->UseRealTime();

void BM_ColdCopy(benchmark::State& state) {
  Engine engine;
  std::size_t first = 0;
  for (auto _ : state) {
    bench::copy_all(static_cast<std::size_t>(state.range(0)), engine.other.data() + first * kExtentBytes,
                    engine.memory.data() + first * kExtentBytes, kBatch * kExtentBytes);
    benchmark::ClobberMemory();
    first = (first + kBatch) % kExtents;
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * kBatch *
                          static_cast<std::int64_t>(kExtentBytes));
}
BENCHMARK(BM_ColdCopy)->ArgName("way")->DenseRange(0, bench::kCopyWays - 1)->UseRealTime();

// Names that are here, and names that are not.
void BM_ColdLookup(benchmark::State& state) {
  Engine engine;
  ThreadPool threads(1);
  const auto cache = make_cache(state, threads);
  const std::vector<BlockView> views = engine.views(engine.memory, 0);
  ColdRun run;
  run.keys = std::span(engine.keys).first(kBatch * kMaxExtentBlocks);
  run.views = views;
  move(*cache, run, false);
  std::vector<ColdFound> found(2 * run.keys.size());
  for (auto _ : state) FIRN_CHECK(cache->lookup({.keys = std::span(engine.keys).first(found.size())}, found).ok());
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations() * found.size()));
}
BENCHMARK(BM_ColdLookup)->ArgName("lossless")->Arg(0);

}  // namespace
}  // namespace firn
