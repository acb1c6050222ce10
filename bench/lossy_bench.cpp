// Restoring from kvtc, part by part: 24 frames of 128 tokens of a model as large as SmolLM2-135M (30 layers, 3 heads of
// 64), for stacks of several sizes. The keys and values are noise, so that no model is needed, and the
// plans keep as many components as that model's calibrations keep: the time of a component does not depend on what is
// in it (ratios do, and are of no meaning here). `firn eval` and `firn demo` measure real text.
//
// `cpu_3072`: CPU seconds for 3,072 tokens. Shares of it: `entropy` checks and inflates, `unpack` turns codes into
// coefficients, `project` multiplies, `copy` adds the mean, rotates, rounds and writes. `gflops_core` is of the
// products.
#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <time.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "core/base/check.h"
#include "firn/codec.h"
#include "firn/thread_pool.h"
#include "storage/codec/artefact.h"
#include "storage/codec/kvtc_codec.h"

namespace firn {
namespace {

using Bytes = std::vector<std::byte>;

constexpr std::uint32_t kTokens = kMaxExtentBlocks * kBlockTokens;
constexpr std::size_t kFrames = 24, kDistinct = 4;  // restored; encoded, since that takes as long again

double processor_now() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

ModelSpec bench_model() {
  ModelSpec model;
  model.name = "bench";
  model.weights.bytes[0] = 1;
  GroupSpec group;
  group.layer_count = 30;
  group.kv = {.dtype = Dtype::kF16, .kv_heads = 3, .head_dim = 64, .value_dim = 64};
  model.groups = {group};
  model.rotation.pairing = RotationSpec::Pairing::kAdjacent;
  model.rotation.dims = 64;
  for (int i = 0; i < 32; ++i)
    model.rotation.inverse_frequencies.push_back(std::pow(1e-5f, static_cast<float>(i) / 32));
  return model;
}

// A plan that spends its bits on components in falling order and keeps about as many of them as calibrations of SmolLM2
// do (1,600 at ratio 16 and 3,000 at ratio 8, of 5,760): a quarter of the bits at 8, half at 4, the rest at 2.
StackPlan make_plan(std::uint64_t bits, std::uint32_t channels) {
  StackPlan plan;
  std::uint64_t spent = 0;
  std::uint32_t components = 0;
  const auto add = [&](std::uint32_t size, std::uint32_t width) {
    const std::uint64_t cost = std::uint64_t{size} * width + 32;
    if (spent + cost > bits || components + size > channels) return false;
    plan.push_back({.size = size, .bits = width});
    spent += cost;
    components += size;
    return true;
  };
  for (std::uint64_t share = bits / 4; spent < share && add(16, 8);) {
  }
  for (std::uint64_t share = bits / 4 * 3; spent < share && add(64, 4);) {
  }
  while (add(256, 2)) {
  }
  while (add(64, 2)) {
  }
  while (add(16, 2)) {
  }
  return plan;
}

// Rows of random signs: nearly orthonormal, which is near enough for time.
std::shared_ptr<const Artefact> make_artefact(std::uint32_t stack_layers, std::uint32_t ratio) {
  const ModelSpec model = bench_model();
  Artefact artefact;
  artefact.model_name = model.name;
  artefact.weights = model.weights;
  artefact.kv = model.groups[0].kv;
  artefact.layer_count = model.groups[0].layer_count;
  artefact.rotation = model.rotation;
  artefact.stack_layers = stack_layers;
  artefact.plans.emplace_back();
  KvtcPlan& plan = artefact.plans[0];
  plan.report.rate = ratio;
  plan.report.bound = {10, 10};
  std::mt19937 random(7);
  const std::uint32_t step = stack_layers == 0 ? artefact.layer_count : stack_layers;
  for (const bool values : {false, true})
    for (std::uint32_t first = 0; first < artefact.layer_count; first += step) {
      StackBasis stack;
      stack.first_layer = first;
      stack.layer_count = std::min(step, artefact.layer_count - first);
      stack.channels = stack.layer_count * 192;
      stack.mean.resize(stack.channels);
      const StackPlan groups = make_plan(std::uint64_t{stack.channels} * 16 / ratio, stack.channels);
      stack.components = plan_components(groups);
      stack.basis.resize(std::size_t{stack.components} * stack.channels);
      const std::uint16_t one = static_cast<std::uint16_t>(
          0x3C00 - (static_cast<int>(std::lround(std::log2(std::sqrt(static_cast<double>(stack.channels))))) << 10));
      for (std::uint16_t& entry : stack.basis) entry = static_cast<std::uint16_t>(one | (random() & 1) << 15);
      (values ? artefact.values : artefact.keys).push_back(std::move(stack));
      (values ? plan.values : plan.keys).push_back(groups);
    }
  return parse_artefact(write_artefact(artefact)).value();
}

struct Extent {
  explicit Extent(std::uint32_t seed) {
    const GroupSpec group = bench_model().groups[0];
    const std::uint32_t row = static_cast<std::uint32_t>(group.kv.key_bytes());
    bytes.resize(group.layer_count * kTokens * group.kv.token_bytes());
    std::mt19937 random(seed);
    for (std::size_t i = 0; i < bytes.size(); i += 2) {  // f16 of magnitude 1/4 to 2
      const auto half = static_cast<std::uint16_t>((0x3400 + random() % 0x0C00) | (random() & 1) << 15);
      std::memcpy(&bytes[i], &half, 2);
    }
    for (std::uint32_t layer = 0; layer < group.layer_count; ++layer)
      for (std::uint32_t block = 0; block < kMaxExtentBlocks; ++block) {
        const auto k =
            reinterpret_cast<DeviceAddress>(bytes.data() + layer * kTokens * 2 * row + block * kBlockTokens * row);
        views.push_back({.k = k,
                         .v = k + kTokens * row,
                         .token_stride = row,
                         .head_stride = 128,
                         .v_token_stride = row,
                         .v_head_stride = 128});
      }
  }
  Bytes bytes;
  std::vector<BlockView> views;
};

struct Case {
  std::unique_ptr<Codec> codec;
  std::vector<Bytes> frames;
  std::uint64_t flops = 0;
};

ExtentShape shape() {
  const GroupSpec group = bench_model().groups[0];
  return {.kv = group.kv, .layer_count = group.layer_count, .block_count = kMaxExtentBlocks};
}

FrameLabel label(std::size_t frame) {
  FrameLabel label;
  label.first_position = 16 + frame * kTokens;
  label.fidelity = Fidelity::kLossy;
  return label;
}

// Made once: encoding costs as much as what is measured.
const Case& make_case(CodecId id, std::uint32_t stack, std::uint32_t ratio) {
  static std::map<std::tuple<CodecId, std::uint32_t, std::uint32_t>, Case> cases;
  Case& made = cases[{id, stack, ratio}];
  if (made.codec) return made;
  if (id == CodecId::kKvtc) {
    const auto artefact = make_artefact(stack, ratio);
    made.codec = make_codec(id, artefact, ratio, bench_model()).value();
    for (const bool values : {false, true})
      for (const StackBasis& basis : artefact->of(values))
        made.flops += std::uint64_t{2} * kTokens * kFrames * basis.components * basis.channels;
  } else {
    made.codec = make_codec(id).value();
  }
  ThreadPool threads(0);
  made.frames.resize(kDistinct);
  for (std::size_t i = 0; i < kDistinct; ++i) {
    const Extent extent(static_cast<std::uint32_t>(i));
    FrameLabel name = label(i);
    if (made.codec->fidelity() == Fidelity::kExact) name.fidelity = Fidelity::kExact;
    Bytes out(made.codec->bound(shape()));
    EncodeJob job{.shape = shape(), .label = name, .views = extent.views, .out = out, .bytes = 0, .status = {}};
    made.codec->encode({&job, 1}, &threads);
    FIRN_CHECK(job.status.ok());
    made.frames[i].assign(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(job.bytes));
  }
  return made;
}

void BM_LossyRestore(benchmark::State& state) {
  const auto id = static_cast<CodecId>(state.range(0));
  const Case& made =
      make_case(id, static_cast<std::uint32_t>(state.range(1)), static_cast<std::uint32_t>(state.range(2)));
  ThreadPool threads(static_cast<unsigned>(state.range(3)));
  Extent target(0);
  std::uint64_t frame_bytes = 0;
  for (const Bytes& frame : made.frames) frame_bytes += frame.size();
  KvtcTimes times;
  const double start = processor_now();
  for (auto _ : state) {
    for (std::size_t i = 0; i < kFrames; ++i) {  // one at a time, as the mover restores them
      FrameLabel name = label(i % kDistinct);
      if (made.codec->fidelity() == Fidelity::kExact) name.fidelity = Fidelity::kExact;
      DecodeJob job{.frame = made.frames[i % kDistinct],
                    .shape = shape(),
                    .label = name,
                    .layer = 0,
                    .layer_count = shape().layer_count,
                    .views = target.views,
                    .status = {}};
      if (id == CodecId::kKvtc)
        decode_timed(*made.codec, job, &threads, times);
      else
        made.codec->decode({&job, 1}, &threads);
      FIRN_CHECK(job.status.ok());
    }
  }
  const auto n = static_cast<double>(state.iterations());
  const double all = (processor_now() - start) / n;
  state.counters["cpu_3072"] = all;
  state.counters["ratio"] = static_cast<double>(kDistinct * shape().raw_bytes()) / static_cast<double>(frame_bytes);
  if (id != CodecId::kKvtc) return;
  const double timed = times.entropy_s + times.unpack_s + times.project_s + times.copy_s;
  state.counters["entropy_share"] = times.entropy_s / timed;
  state.counters["unpack_share"] = times.unpack_s / timed;
  state.counters["project_share"] = times.project_s / timed;
  state.counters["copy_share"] = times.copy_s / timed;
  state.counters["gflops_core"] = static_cast<double>(made.flops) * n / times.project_s * 1e-9;
}

constexpr auto kQ8 = static_cast<std::int64_t>(CodecId::kQ8), kQ4 = static_cast<std::int64_t>(CodecId::kQ4),
               kKvtc = static_cast<std::int64_t>(CodecId::kKvtc),
               kLossless = static_cast<std::int64_t>(CodecId::kLossless);

void codecs_and_stacks(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"codec", "stack", "ratio", "threads"});
  for (const std::int64_t codec : {kLossless, kQ8, kQ4}) benchmark->Args({codec, 0, 0, 1});
  for (const std::int64_t stack : {6, 0, 15, 3, 1})
    for (const std::int64_t ratio : {16, 8}) benchmark->Args({kKvtc, stack, ratio, 1});
  benchmark->Args({kKvtc, 0, 16, 2});
  benchmark->Unit(benchmark::kMillisecond)->UseRealTime()->MeasureProcessCPUTime();
}
BENCHMARK(BM_LossyRestore)->Apply(codecs_and_stacks);

}  // namespace
}  // namespace firn
