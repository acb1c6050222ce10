// Attention and the movers of keys and values on the cpu device, beside what the same memory gives to plain code.
//
// attend in decode reads every key and value once, so it stands beside a read-only sum of the same bytes by the same
// threads; "share" is the first rate over the second, taken in turns within one run so that both see the same machine,
// and of processor time, because a busy neighbour takes the processor from one and not from the other.
// Sums and copies are limits (anchors.h): a share above 1 fails.
// Working sets are 256 MiB and more: nothing is served from a cache.
#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "bench/anchors.h"
#include "core/base/check.h"
#include "firn/device.h"
#include "firn/thread_pool.h"

namespace firn {
namespace {

constexpr std::uint64_t kMiB = 1024 * 1024;
constexpr std::uint64_t kWorkingSet = 256 * kMiB;

struct Model {
  const char* name;
  KvShape shape;
  std::uint32_t query_heads;
};
const Model kModels[] = {{"smollm2_135m", {Dtype::kF16, 3, 64, 64}, 9}, {"llama_8b", {Dtype::kF16, 8, 128, 128}, 32}};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Seconds of processor time that this process has used on all its threads: what a busy neighbour does not distort.
double processor_now() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// A device on its own pool, and regions that go when it goes.
struct Bench {
  explicit Bench(unsigned threads) : pool(threads), device(make_cpu_device(pool)) {}
  ThreadPool pool;
  std::unique_ptr<Device> device;

  Region allocate(std::uint64_t bytes) {
    Result<Region> region = device->memory().allocate(RegionUse::kPool, bytes);
    FIRN_CHECK(region.ok());
    return *region;
  }
  // Floats in [-1, 1) from a fixed sequence.
  Region floats(std::uint64_t count) {
    const Region region = allocate(count * 4);
    auto* values = reinterpret_cast<float*>(region.host);
    std::uint32_t x = 1;
    for (std::uint64_t i = 0; i < count; ++i)
      x = x * 1664525u + 1013904223u, values[i] = static_cast<float>(x >> 8) * 0x1p-23f - 1.0f;
    return region;
  }
};

// Blocks one behind the other, keys of a block before its values, as in a pool slot of one layer.
std::vector<BlockView> slot_views(const Region& region, const KvShape& shape) {
  const std::uint64_t block = kBlockTokens * shape.token_bytes();
  const auto element = bytes_of(shape.dtype);
  std::vector<BlockView> views;
  for (std::uint64_t at = 0; at + block <= region.bytes; at += block)
    views.push_back({region.address + at, region.address + at + kBlockTokens * shape.key_bytes(),
                     static_cast<std::uint32_t>(shape.key_bytes()), shape.head_dim * element,
                     static_cast<std::uint32_t>(shape.value_bytes()), shape.value_dim * element});
  return views;
}

// Fills all blocks with the rounding of the same 16 rows, through append.
void fill_blocks(Bench& bench, const KvShape& shape, const std::vector<BlockView>& views) {
  const Region rows =
      bench.floats(std::uint64_t{kBlockTokens} * shape.kv_heads * std::max(shape.head_dim, shape.value_dim));
  std::vector<AppendItem> items;
  for (const BlockView& view : views) items.push_back({view, 0, 0, kBlockTokens});
  FIRN_CHECK(bench.device->kernels().append({shape, rows.address, rows.address, items}).ok());
}

// Calls part(first byte, bytes) for pieces of a region, by all threads; returns seconds.
template <class Part>
double in_pieces(ThreadPool& pool, std::uint64_t bytes, const Part& part) {
  constexpr std::uint64_t kPiece = kMiB;
  const double start = now();
  pool.parallel_for((bytes + kPiece - 1) / kPiece,
                    [&](std::size_t i) { part(i * kPiece, std::min(kPiece, bytes - i * kPiece)); });
  return now() - start;
}

double read_only_sum(ThreadPool& pool, const Region& region, std::size_t way) {
  return in_pieces(pool, region.bytes, [&](std::uint64_t at, std::uint64_t bytes) {
    benchmark::DoNotOptimize(bench::read_all(way, region.host + at, bytes / 64 * 64));
  });
}

struct AttendRun {
  AttendRun(Bench& on, const Model& model, const std::vector<BlockView>& all, std::uint32_t context,
            std::uint32_t sequences, std::uint32_t rows_each)
      : bench(on), views(all) {
    batch.shape = model.shape;
    batch.query_heads = model.query_heads;
    batch.scale = 1.0f / std::sqrt(static_cast<float>(model.shape.head_dim));
    batch.row_count = sequences * rows_each;
    for (std::uint32_t s = 0; s < sequences; ++s)
      for (std::uint32_t split = 0; split < context; split += kSplitTokens)
        items.push_back({s * rows_each, rows_each, context - rows_each, split, std::min(kSplitTokens, context - split),
                         (s * context + split) / kBlockTokens});
    batch.views = views;
    batch.items = items;
    q = bench.floats(std::uint64_t{batch.row_count} * model.query_heads * model.shape.head_dim);
    out = bench.allocate(std::uint64_t{batch.row_count} * model.query_heads * model.shape.value_dim * 4);
    batch.q = q.address;
    batch.out = out.address;
    batch.state = bench.allocate(Kernels::state_bytes(batch.shape, batch.query_heads, batch.row_count)).address;
    batch.partials = bench.allocate(Kernels::partial_bytes(batch)).address;
  }
  double run() {
    const double start = now();
    FIRN_CHECK(bench.device->kernels().attend(batch).ok());
    return now() - start;
  }
  // The first and last row in double precision: all blocks hold the same 16 rows, which the reference does not know.
  bool matches_reference() const;

  Bench& bench;
  const std::vector<BlockView>& views;
  AttendBatch batch;
  std::vector<AttendItem> items;
  Region q, out;
};

double half(const std::byte* from) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, from, 2);
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

bool AttendRun::matches_reference() const {
  const KvShape& shape = batch.shape;
  for (const std::uint32_t row : {0u, batch.row_count - 1}) {
    const AttendItem& any = *std::find_if(items.begin(), items.end(), [&](const AttendItem& item) {
      return item.row <= row && row < item.row + item.row_count;
    });
    const std::uint32_t tokens = any.position + (row - any.row) + 1, query_head = batch.query_heads - 1;
    const std::uint32_t head = shape.kv_heads - 1;
    const float* query =
        reinterpret_cast<const float*>(q.host) + (std::uint64_t{row} * batch.query_heads + query_head) * shape.head_dim;
    std::vector<double> want(shape.value_dim);
    double sum = 0;
    for (std::uint32_t t = 0; t < tokens; ++t) {
      const BlockView& view = views[any.view + t / kBlockTokens];
      const auto* k =
          reinterpret_cast<const std::byte*>(view.k) + t % kBlockTokens * view.token_stride + head * view.head_stride;
      const auto* v = reinterpret_cast<const std::byte*>(view.v) + t % kBlockTokens * view.v_token_stride +
                      head * view.v_head_stride;
      double dot = 0;
      for (std::uint32_t i = 0; i < shape.head_dim; ++i) dot += query[i] * half(k + 2 * i);
      const double weight = std::exp(dot * batch.scale);  // inputs are within 1: no overflow
      sum += weight;
      for (std::uint32_t i = 0; i < shape.value_dim; ++i) want[i] += weight * half(v + 2 * i);
    }
    const float* got = reinterpret_cast<const float*>(out.host) +
                       (std::uint64_t{row} * batch.query_heads + query_head) * shape.value_dim;
    for (std::uint32_t i = 0; i < shape.value_dim; ++i)
      if (!(std::fabs(got[i] - want[i] / sum) < 1e-4)) return false;
  }
  return true;
}

// One token each for as many sequences of a length as fill the working set.
void BM_AttendDecode(benchmark::State& state) {
  const Model& model = kModels[state.range(0)];
  const auto context = static_cast<std::uint32_t>(state.range(1));
  Bench bench(static_cast<unsigned>(state.range(2)));
  const std::uint64_t sequence_bytes = context * model.shape.token_bytes();
  const auto sequences = static_cast<std::uint32_t>((kWorkingSet + sequence_bytes - 1) / sequence_bytes);
  const Region kv = bench.allocate(sequences * sequence_bytes);
  const std::vector<BlockView> views = slot_views(kv, model.shape);
  fill_blocks(bench, model.shape, views);
  AttendRun attend(bench, model, views, context, sequences, 1);

  std::vector<double> ours, ours_processor;
  bench::Anchor<bench::kReadWays> sums, sums_processor;
  for (auto _ : state) {
    for (std::size_t way = 0; way < bench::kReadWays; ++way) {
      const double start = processor_now();
      sums.add(way, read_only_sum(bench.pool, kv, way));
      sums_processor.add(way, processor_now() - start);
    }
    const double start = processor_now();
    ours.push_back(attend.run());
    ours_processor.push_back(processor_now() - start);
    state.SetIterationTime(ours.back());
  }
  FIRN_CHECK(attend.matches_reference());
  const double attend_s = bench::median(ours), sum_s = sums.seconds();
  const auto bytes = static_cast<double>(kv.bytes);
  state.counters["GB/s"] = bytes / attend_s / 1e9;
  state.counters["sum_GB/s"] = bytes / sum_s / 1e9;
  state.counters["wall_share"] = sum_s / attend_s;
  state.SetLabel(std::string(model.name) + ", medians");
  bench::report_share(state, sums_processor.seconds() / bench::median(ours_processor));
}
BENCHMARK(BM_AttendDecode)
    ->ArgNames({"model", "context", "threads"})
    ->ArgsProduct({{0, 1}, {1024, 8192}, {1, 2}})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->MinTime(1);

// One sequence, small enough for the caches: what a token costs beside reading memory, waking threads included.
void BM_AttendOneToken(benchmark::State& state) {
  const Model& model = kModels[state.range(0)];
  const auto context = static_cast<std::uint32_t>(state.range(1));
  Bench bench(static_cast<unsigned>(state.range(2)));
  const Region kv = bench.allocate(context * model.shape.token_bytes());
  const std::vector<BlockView> views = slot_views(kv, model.shape);
  fill_blocks(bench, model.shape, views);
  AttendRun attend(bench, model, views, context, 1, 1);
  for (auto _ : state) attend.run();
  FIRN_CHECK(attend.matches_reference());
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * kv.bytes));
  state.SetLabel(model.name);
}
BENCHMARK(BM_AttendOneToken)
    ->ArgNames({"model", "context", "threads"})
    ->ArgsProduct({{0}, {16, 256, 1536}, {1, 2}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

// A chunk of 256 rows that ends a context; the operations of the tokens that rows see: one multiply and one add for
// each dimension of each key and value.
void BM_AttendPrefill(benchmark::State& state) {
  const Model& model = kModels[state.range(0)];
  const auto context = static_cast<std::uint32_t>(state.range(1));
  constexpr std::uint32_t kRows = 256;
  Bench bench(static_cast<unsigned>(state.range(2)));
  const Region kv = bench.allocate(context * model.shape.token_bytes());
  const std::vector<BlockView> views = slot_views(kv, model.shape);
  fill_blocks(bench, model.shape, views);
  AttendRun attend(bench, model, views, context, 1, kRows);
  const double start = processor_now();
  for (auto _ : state) attend.run();
  const double processor_s = processor_now() - start;
  FIRN_CHECK(attend.matches_reference());
  const double seen = kRows * (context - kRows) + kRows * (kRows + 1) / 2.0;
  const double operations = 2 * seen * model.query_heads * (model.shape.head_dim + model.shape.value_dim);
  using benchmark::Counter;
  state.counters["GFLOP/s"] = Counter(operations / 1e9, Counter::kIsIterationInvariantRate);
  state.counters["GFLOP/processor_s"] = operations / 1e9 * static_cast<double>(state.iterations()) / processor_s;
  state.SetLabel(model.name);
}
BENCHMARK(BM_AttendPrefill)
    ->ArgNames({"model", "context", "threads"})
    ->ArgsProduct({{0, 1}, {256, 1536}, {1, 2}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

// Copies every block of a working set: slot to slot, or slot to an engine's [2, blocks, tokens, heads, dim].
void BM_Copy(benchmark::State& state) {
  const Model& model = kModels[state.range(0)];
  const bool engine = state.range(1) != 0;
  const std::uint64_t block = kBlockTokens * model.shape.token_bytes();
  Bench bench(static_cast<unsigned>(state.range(2)));
  const Region from = bench.allocate(kWorkingSet / block * block), to = bench.allocate(from.bytes);
  const std::vector<BlockView> sources = slot_views(from, model.shape);
  std::vector<BlockView> targets = slot_views(to, model.shape);
  if (engine)
    for (std::size_t b = 0; b < targets.size(); ++b) {
      targets[b].k = to.address + b * block / 2;
      targets[b].v = targets[b].k + to.bytes / 2;
    }
  fill_blocks(bench, model.shape, sources);
  std::vector<CopyItem> items;
  for (std::size_t b = 0; b < sources.size(); ++b) items.push_back({sources[b], targets[b]});
  std::vector<double> ours, ours_processor;
  bench::Anchor<bench::kCopyWays> plain, plain_processor;
  for (auto _ : state) {
    for (std::size_t way = 0; way < bench::kCopyWays; ++way) {
      const double start = processor_now();
      plain.add(way, in_pieces(bench.pool, from.bytes, [&](std::uint64_t at, std::uint64_t bytes) {
                  bench::copy_all(way, to.host + at, from.host + at, bytes);
                }));
      plain_processor.add(way, processor_now() - start);
    }
    const double start = now(), processor = processor_now();
    FIRN_CHECK(bench.device->kernels().copy({model.shape, items}).ok());
    ours.push_back(now() - start);
    ours_processor.push_back(processor_now() - processor);
    state.SetIterationTime(ours.back());
  }
  const auto* last_v = reinterpret_cast<const std::byte*>(targets.back().v);
  FIRN_CHECK(std::memcmp(last_v, reinterpret_cast<const std::byte*>(sources.back().v), block / 2) == 0);
  state.counters["GB/s"] = static_cast<double>(from.bytes) / bench::median(ours) / 1e9;
  state.counters["plain_GB/s"] = static_cast<double>(from.bytes) / plain.seconds() / 1e9;
  state.SetLabel(std::string(model.name) + (engine ? ", to an engine's layout" : ", slot to slot") + ", medians");
  bench::report_share(state, plain_processor.seconds() / bench::median(ours_processor));
}
BENCHMARK(BM_Copy)
    ->ArgNames({"model", "engine", "threads"})
    ->ArgsProduct({{0, 1}, {0, 1}, {1, 2}})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

// Rounds f32 rows into f16 slots; bytes are those read and written. Beside: as many bytes read, and half as many
// written.
void BM_Append(benchmark::State& state) {
  const Model& model = kModels[state.range(0)];
  Bench bench(static_cast<unsigned>(state.range(1)));
  const std::uint32_t tokens =
      static_cast<std::uint32_t>(64 * kMiB / model.shape.token_bytes() / kBlockTokens * kBlockTokens);
  const Region kv = bench.allocate(tokens * model.shape.token_bytes());
  const std::vector<BlockView> views = slot_views(kv, model.shape);
  const Region rows = bench.floats(2 * std::uint64_t{tokens} * model.shape.kv_heads * model.shape.head_dim);
  const DeviceAddress values = rows.address + rows.bytes / 2;
  const Region spare = bench.allocate(kv.bytes);
  std::vector<AppendItem> items;
  for (std::uint32_t b = 0; b < views.size(); ++b) items.push_back({views[b], b * kBlockTokens, 0, kBlockTokens});
  std::vector<double> ours, ours_processor;
  bench::Anchor<bench::kFoldWays> plain, plain_processor;
  for (auto _ : state) {
    for (std::size_t way = 0; way < bench::kFoldWays; ++way) {
      const double start = processor_now();
      plain.add(way, in_pieces(bench.pool, kv.bytes, [&](std::uint64_t at, std::uint64_t bytes) {
                  bench::fold_all(way, spare.host + at, rows.host + 2 * at, 2 * bytes);
                }));
      plain_processor.add(way, processor_now() - start);
    }
    const double start = now(), processor = processor_now();
    FIRN_CHECK(bench.device->kernels().append({model.shape, rows.address, values, items}).ok());
    ours.push_back(now() - start);
    ours_processor.push_back(processor_now() - processor);
    state.SetIterationTime(ours.back());
  }
  const auto* source = reinterpret_cast<const float*>(rows.host);
  for (std::uint32_t i = 0; i < model.shape.head_dim; ++i)
    FIRN_CHECK(std::fabs(half(kv.host + 2 * i) - source[i]) <= std::fabs(source[i]) * 0x1p-11);
  state.counters["GB/s"] = 3 * static_cast<double>(kv.bytes) / bench::median(ours) / 1e9;
  state.counters["plain_GB/s"] = 3 * static_cast<double>(kv.bytes) / plain.seconds() / 1e9;
  state.SetLabel(std::string(model.name) + ", read + written, medians");
  bench::report_share(state, plain_processor.seconds() / bench::median(ours_processor));
}
BENCHMARK(BM_Append)
    ->ArgNames({"model", "threads"})
    ->ArgsProduct({{0, 1}, {1, 2}})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace firn
