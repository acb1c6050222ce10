// Exact codecs beside copies (anchors.h) and zstd -1 of the same bytes, in bytes of raw keys and values a second.
//
// The values are captured ones (tests/data/README.md): three layers of 128 tokens of SmolLM2-135M, repeated to the
// model's 30 layers. Extents are visited in turn through a working set of at least 64 MiB on either side, since cold
// blocks come from memory and go to memory. "ratio" is raw bytes over bytes of frames.
#include <benchmark/benchmark.h>
#include <time.h>
#include <zstd.h>

#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

#include "bench/anchors.h"
#include "core/base/check.h"
#include "firn/codec.h"
#include "firn/key.h"
#include "firn/thread_pool.h"

namespace firn {
namespace {

using Bytes = std::vector<std::byte>;

constexpr ExtentShape kShape = {.kv = {.dtype = Dtype::kF16, .kv_heads = 3, .head_dim = 64, .value_dim = 64},
                                .layer_count = 3,
                                .block_count = kMaxExtentBlocks};
constexpr std::size_t kBatch = 8, kExtents = 240;  // of 288 KiB

Bytes captured_extent() {
  std::ifstream in(FIRN_TEST_DATA "/smollm2_kv_3x128.f16", std::ios::binary);
  Bytes extent(kShape.raw_bytes());
  in.read(reinterpret_cast<char*>(extent.data()), static_cast<std::streamsize>(extent.size()));
  FIRN_CHECK(in.good());
  return extent;
}

// Seconds of processor time of all threads.
double processor_now() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// Runs f(extent) for a batch of extents an iteration, round and round, and reports.
template <class F>
void run(benchmark::State& state, std::size_t frame_bytes, F&& f) {
  const double start = processor_now();
  std::size_t first = 0;
  for (auto _ : state) {
    f(first);
    first = (first + kBatch) % kExtents;
  }
  const double bytes = static_cast<double>(state.iterations()) * kBatch * static_cast<double>(kShape.raw_bytes());
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes));
  state.counters["ratio"] = static_cast<double>(kShape.raw_bytes()) / static_cast<double>(frame_bytes);
  state.counters["per_core"] =
      benchmark::Counter(bytes / (processor_now() - start), benchmark::Counter::kDefaults, benchmark::Counter::kIs1000);
}

// Extents in memory, [layer][keys, values][token][head][dim], and views over them.
struct Extents {
  Extents() : bytes(kExtents, captured_extent()), views(kExtents) {
    const auto stride = static_cast<std::uint32_t>(kShape.kv.key_bytes());
    const std::size_t tensor_bytes = kBlockTokens * kShape.block_count * kShape.kv.key_bytes();
    for (std::size_t e = 0; e < kExtents; ++e)
      for (std::size_t layer = 0; layer < kShape.layer_count; ++layer)
        for (std::size_t block = 0; block < kShape.block_count; ++block) {
          const auto k = reinterpret_cast<DeviceAddress>(bytes[e].data() + 2 * layer * tensor_bytes +
                                                         block * kBlockTokens * stride);
          views[e].push_back({k, k + tensor_bytes, stride, 128, stride, 128});
        }
  }
  EncodeJob encode_job(std::size_t e, Bytes& out) const {
    return {.shape = kShape, .label = {}, .views = views[e], .out = out, .bytes = 0, .status = {}};
  }
  DecodeJob decode_job(std::size_t e, std::span<const std::byte> frame) const {
    return {.frame = frame,
            .shape = kShape,
            .label = {},
            .layer = 0,
            .layer_count = kShape.layer_count,
            .views = views[e],
            .status = {}};
  }
  std::vector<Bytes> bytes;
  std::vector<std::vector<BlockView>> views;
};

std::unique_ptr<Codec> codec_of(const benchmark::State& state) {
  return make_codec(static_cast<CodecId>(state.range(0))).value();
}

// Frames of all extents, and how long one is.
std::size_t encode_all(const Codec& codec, const Extents& extents, std::size_t first, std::size_t count,
                       std::vector<Bytes>& frames, ThreadPool& threads) {
  std::vector<EncodeJob> jobs;
  for (std::size_t e = first; e < first + count; ++e) jobs.push_back(extents.encode_job(e, frames[e]));
  codec.encode(jobs, &threads);
  for (const EncodeJob& job : jobs) FIRN_CHECK(job.status.ok());
  return jobs[0].bytes;
}

void BM_CodecEncode(benchmark::State& state) {
  const Extents extents;
  const auto codec = codec_of(state);
  ThreadPool threads(static_cast<unsigned>(state.range(1)));
  std::vector<Bytes> frames(kExtents, Bytes(codec->bound(kShape)));
  const std::size_t frame_bytes = encode_all(*codec, extents, 0, kExtents, frames, threads);
  run(state, frame_bytes, [&](std::size_t first) { encode_all(*codec, extents, first, kBatch, frames, threads); });
}

void BM_CodecDecode(benchmark::State& state) {
  const Extents source, target;
  const auto codec = codec_of(state);
  ThreadPool threads(static_cast<unsigned>(state.range(1)));
  std::vector<Bytes> frames(kExtents, Bytes(codec->bound(kShape)));
  const std::size_t frame_bytes = encode_all(*codec, source, 0, kExtents, frames, threads);
  for (std::size_t e = 0; e < kExtents; ++e) {
    frames[e].resize(frame_bytes);
    std::memset(reinterpret_cast<void*>(target.views[e][0].k), 0, kShape.raw_bytes());
  }
  const auto decode = [&](std::size_t first) {
    std::vector<DecodeJob> jobs;
    for (std::size_t e = first; e < first + kBatch; ++e) jobs.push_back(target.decode_job(e, frames[e]));
    codec->decode(jobs, &threads);
    for (const DecodeJob& job : jobs) FIRN_CHECK(job.status.ok());
  };
  run(state, frame_bytes, decode);
  FIRN_CHECK(target.bytes[0] == source.bytes[0]);  // a fast wrong answer is not a result
}

void BM_CodecCopy(benchmark::State& state) {
  const std::vector<Bytes> source(kExtents, captured_extent());
  std::vector<Bytes> target = source;
  run(state, kShape.raw_bytes(), [&](std::size_t first) {
    for (std::size_t e = first; e < first + kBatch; ++e)
      bench::copy_all(static_cast<std::size_t>(state.range(0)), target[e].data(), source[e].data(), source[e].size());
    benchmark::ClobberMemory();
  });
}

void BM_CodecZstd1Encode(benchmark::State& state) {
  const std::vector<Bytes> source(kExtents, captured_extent());
  std::vector<Bytes> frames(kExtents, Bytes(ZSTD_compressBound(kShape.raw_bytes())));
  const std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> context(ZSTD_createCCtx(), ZSTD_freeCCtx);
  const auto encode = [&](std::size_t e) {
    return ZSTD_compressCCtx(context.get(), frames[e].data(), frames[e].size(), source[e].data(), source[e].size(), 1);
  };
  run(state, encode(0), [&](std::size_t first) {
    for (std::size_t e = first; e < first + kBatch; ++e) FIRN_CHECK(!ZSTD_isError(encode(e)));
  });
}

void BM_CodecZstd1Decode(benchmark::State& state) {
  std::vector<Bytes> target(kExtents, captured_extent());
  Bytes frame(ZSTD_compressBound(kShape.raw_bytes()));
  frame.resize(ZSTD_compress(frame.data(), frame.size(), target[0].data(), target[0].size(), 1));
  const std::vector<Bytes> frames(kExtents, frame);
  const std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> context(ZSTD_createDCtx(), ZSTD_freeDCtx);
  run(state, frame.size(), [&](std::size_t first) {
    for (std::size_t e = first; e < first + kBatch; ++e)
      FIRN_CHECK(ZSTD_decompressDCtx(context.get(), target[e].data(), target[e].size(), frames[e].data(),
                                     frames[e].size()) == target[e].size());
  });
}

// Keys of all blocks of a prompt.
void BM_KeyChain(benchmark::State& state) {
  std::vector<TokenId> tokens(static_cast<std::size_t>(state.range(0)));
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<TokenId>(i * 7919 % 49152);
  const KeyChain chain(Digest{}, "");
  for (auto _ : state) benchmark::DoNotOptimize(chain.keys(tokens));
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()) * state.range(0));
}

constexpr auto kRaw = static_cast<std::int64_t>(CodecId::kRaw),
               kLossless = static_cast<std::int64_t>(CodecId::kLossless);
void codecs_and_threads(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"codec", "threads"})->ArgsProduct({{kRaw, kLossless}, {1, 2}});
  benchmark->MeasureProcessCPUTime()->UseRealTime();
}

BENCHMARK(BM_CodecCopy)->ArgName("way")->DenseRange(0, bench::kCopyWays - 1)->MeasureProcessCPUTime()->UseRealTime();
BENCHMARK(BM_CodecEncode)->Apply(codecs_and_threads);
BENCHMARK(BM_CodecDecode)->Apply(codecs_and_threads);
BENCHMARK(BM_CodecZstd1Encode)->MeasureProcessCPUTime()->UseRealTime();
BENCHMARK(BM_CodecZstd1Decode)->MeasureProcessCPUTime()->UseRealTime();
BENCHMARK(BM_KeyChain)->ArgName("tokens")->Arg(50000)->MeasureProcessCPUTime()->UseRealTime();

}  // namespace
}  // namespace firn
