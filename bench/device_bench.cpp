// The vulkan device that `./run bench --device D` names (auto, lavapipe, an index, a UUID, a name; FIRN_BENCH_DEVICE
// does the same): attention, append and copy beside the device's own copy bandwidth, and what a submission costs.
// Without a name nothing is registered: on a machine without a GPU these numbers mean nothing.
//
// "copy_GB/s" is read plus written bytes of the copy kernel over as many bytes as what is measured reads (at most 256
// MiB), taken in turns with it, in rows that keep whole workgroups busy whatever the model: the device's bandwidth, and
// not how well small heads copy. "share" is the measured rate over that. Keys and values are filled on the device by
// append from unit-variance rows: bandwidth does not depend on what they say.
#include "bench/device_bench.h"

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "core/base/check.h"
#include "firn/vulkan.h"

namespace firn {
namespace {

constexpr std::uint64_t kMiB = 1024 * 1024;
constexpr std::uint32_t kFillRows = 4096;  // rows of keys and values that append takes at a time

struct Model {
  const char* name;
  KvShape shape;
  std::uint32_t query_heads;
};
const Model kModels[] = {{"smollm2_135m", {Dtype::kF16, 3, 64, 64}, 9}, {"llama_8b", {Dtype::kF16, 8, 128, 128}, 32}};

// Rows of 2 KiB, for copies that measure the device.
const KvShape kWide{Dtype::kF16, 1, 1024, 1024};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// One device for all benchmarks.
std::unique_ptr<VulkanDevice>& the_device() {
  static std::unique_ptr<VulkanDevice> device;
  return device;
}
VulkanDevice& device() { return *the_device(); }

// Before anything is measured: if a number surprises, this says what it was measured on.
void dump(const VulkanReport& report) {
  fmt::print(stderr, "vulkan device: {} ({}), driver {}, Vulkan {}, uuid {}\n", report.name, report.type, report.driver,
             report.api_version, report.uuid);
  for (const auto& [name, value] : report.limits) fmt::print(stderr, "  {} {}\n", name, value);
  for (const auto& [name, there] : report.optional) fmt::print(stderr, "  {} {}\n", name, there ? "yes" : "no");
  for (const auto& heap : report.heaps)
    fmt::print(stderr, "  heap {} bytes, budget {}, {}\n", heap.bytes, heap.budget_bytes,
               heap.device_local ? "device-local" : "host");
  benchmark::AddCustomContext("vulkan_device", report.name);
  benchmark::AddCustomContext("vulkan_driver", report.driver);
  benchmark::AddCustomContext("vulkan_version", report.api_version);
  for (const auto& [name, value] : report.limits) benchmark::AddCustomContext("vulkan_" + name, std::to_string(value));
}

void wait(const Result<Fence>& fence) {
  FIRN_CHECK(fence.ok());
  FIRN_CHECK(device().timeline().wait(*fence).ok());
}

// Regions that go when the benchmark ends. Skips the benchmark where the device has too little.
class Regions {
 public:
  ~Regions() {
    for (const Region& region : regions_) device().memory().free(region);
  }
  bool take(RegionUse use, std::uint64_t bytes, Region& out) {
    const Result<Region> region = device().memory().allocate(use, bytes);
    if (!region.ok()) return false;
    regions_.push_back(*region);
    out = *region;
    return true;
  }
  // Blocks of one layer as a pool has them, over as many regions as the device's limits make necessary.
  bool take_blocks(const KvShape& shape, std::uint64_t count, std::vector<BlockView>& out) {
    const std::uint64_t block = kBlockTokens * shape.token_bytes();
    const std::uint64_t most = device().memory().info().max_region_bytes / block;
    const auto k_row = shape.head_dim * bytes_of(shape.dtype), v_row = shape.value_dim * bytes_of(shape.dtype);
    while (count != 0) {
      const std::uint64_t some = std::min(count, most);
      Region region;
      if (!take(RegionUse::kPool, some * block, region)) return false;
      for (std::uint64_t i = 0; i < some; ++i) {
        const DeviceAddress at = region.address + i * block;
        out.push_back(
            {at, at + kBlockTokens * shape.key_bytes(), k_row, kBlockTokens * k_row, v_row, kBlockTokens * v_row});
      }
      count -= some;
    }
    return true;
  }

 private:
  std::vector<Region> regions_;
};

void fill_floats(const Region& region) {
  auto* values = reinterpret_cast<float*>(region.host);
  std::uint32_t x = 1;
  for (std::uint64_t i = 0; i < region.bytes / 4; ++i) {
    float sum = 0;  // four uniforms: nearly normal, variance 1
    for (int j = 0; j < 4; ++j) x = x * 1664525u + 1013904223u, sum += static_cast<float>(x >> 8) * 0x1p-24f - 0.5f;
    values[i] = sum * 1.7320508f;
  }
}

// Puts rows into every block through append.
bool fill_blocks(Regions& regions, const KvShape& shape, const std::vector<BlockView>& views) {
  Region rows;
  const std::uint32_t dim = std::max(shape.head_dim, shape.value_dim);
  if (!regions.take(RegionUse::kStaging, std::uint64_t{kFillRows} * shape.kv_heads * dim * 4, rows)) return false;
  fill_floats(rows);
  std::vector<AppendItem> items;
  for (std::size_t i = 0; i < views.size(); ++i)
    items.push_back(
        {views[i], static_cast<std::uint32_t>(i % (kFillRows / kBlockTokens)) * kBlockTokens, 0, kBlockTokens});
  wait(device().kernels().append({shape, rows.address, rows.address, items}));
  return true;
}

// Seconds of copying blocks onto others.
double copy_once(const KvShape& shape, const std::vector<CopyItem>& items) {
  const double start = now();
  wait(device().kernels().copy({shape, items}));
  return now() - start;
}

void BM_DeviceAttendDecode(benchmark::State& state) {
  const Model& model = kModels[state.range(0)];
  const auto context = static_cast<std::uint32_t>(state.range(1)),
             sequences = static_cast<std::uint32_t>(state.range(2));
  const KvShape& shape = model.shape;
  Regions regions;
  std::vector<BlockView> views, from, to;
  const std::uint64_t blocks = std::uint64_t{sequences} * context / kBlockTokens;
  const std::uint64_t wide_bytes = kBlockTokens * kWide.token_bytes();
  const std::uint64_t wide_blocks =
      std::max<std::uint64_t>(1, std::min(blocks * kBlockTokens * shape.token_bytes(), 256 * kMiB) / wide_bytes);
  Region q, out, workspace;
  AttendBatch batch{.shape = shape, .query_heads = model.query_heads};
  batch.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  batch.row_count = sequences;
  std::vector<AttendItem> items;
  for (std::uint32_t s = 0; s < sequences; ++s)
    for (std::uint32_t split = 0; split < context; split += kSplitTokens)
      items.push_back(
          {s, 1, context - 1, split, std::min(kSplitTokens, context - split), (s * context + split) / kBlockTokens});
  batch.items = items;
  const std::uint64_t state_bytes = Kernels::state_bytes(shape, model.query_heads, sequences);
  if (!regions.take_blocks(shape, blocks, views) || !regions.take_blocks(kWide, wide_blocks, from) ||
      !regions.take_blocks(kWide, wide_blocks, to) || !fill_blocks(regions, shape, views) ||
      !regions.take(RegionUse::kStaging, std::uint64_t{sequences} * model.query_heads * shape.head_dim * 4, q) ||
      !regions.take(RegionUse::kWorkspace, std::uint64_t{sequences} * model.query_heads * shape.value_dim * 4, out) ||
      !regions.take(RegionUse::kWorkspace, (state_bytes + 63) / 64 * 64 + Kernels::partial_bytes(batch), workspace)) {
    state.SkipWithError("the device has too little memory for this size");
    return;
  }
  fill_floats(q);
  batch.views = views;
  batch.q = q.address;
  batch.out = out.address;
  batch.state = workspace.address;
  batch.partials = workspace.address + (state_bytes + 63) / 64 * 64;
  std::vector<CopyItem> copies;
  for (std::uint64_t i = 0; i < wide_blocks; ++i) copies.push_back({from[i], to[i]});
  wait(device().kernels().attend(batch));  // pipelines are made at first use
  copy_once(kWide, copies);
  std::vector<double> ours, copied;
  for (auto _ : state) {
    copied.push_back(copy_once(kWide, copies));
    const double start = now();
    wait(device().kernels().attend(batch));
    ours.push_back(now() - start);
    state.SetIterationTime(ours.back());
  }
  const double bytes = static_cast<double>(blocks * kBlockTokens * shape.token_bytes());
  const double copy_rate = 2.0 * static_cast<double>(wide_blocks * wide_bytes) / median(copied);
  state.counters["GB/s"] = bytes / median(ours) / 1e9;
  state.counters["copy_GB/s"] = copy_rate / 1e9;
  state.counters["share"] = bytes / median(ours) / copy_rate;
  state.SetLabel(std::string(model.name) + ", medians");
}

void BM_DeviceCopy(benchmark::State& state) {
  const KvShape shape = kModels[state.range(0)].shape;
  const std::uint64_t blocks = static_cast<std::uint64_t>(state.range(1)) * kMiB / (kBlockTokens * shape.token_bytes());
  Regions regions;
  std::vector<BlockView> from, to;
  if (!regions.take_blocks(shape, blocks, from) || !regions.take_blocks(shape, blocks, to)) {
    state.SkipWithError("the device has too little memory for this size");
    return;
  }
  std::vector<CopyItem> items;
  for (std::uint64_t i = 0; i < blocks; ++i) items.push_back({from[i], to[i]});
  copy_once(shape, items);
  for (auto _ : state) state.SetIterationTime(copy_once(shape, items));
  state.SetBytesProcessed(
      static_cast<std::int64_t>(state.iterations() * 2 * blocks * kBlockTokens * shape.token_bytes()));
  state.SetLabel("read + written");
}

void BM_DeviceAppend(benchmark::State& state) {
  const KvShape shape = kModels[state.range(0)].shape;
  const auto tokens = static_cast<std::uint32_t>(state.range(1));
  Regions regions;
  std::vector<BlockView> views;
  Region rows;
  if (!regions.take_blocks(shape, (tokens + kBlockTokens - 1) / kBlockTokens, views) ||
      !regions.take(RegionUse::kStaging, std::uint64_t{tokens} * shape.kv_heads * shape.head_dim * 4, rows)) {
    state.SkipWithError("the device has too little memory for this size");
    return;
  }
  fill_floats(rows);
  std::vector<AppendItem> items;
  for (std::uint32_t t = 0; t < tokens; t += kBlockTokens)
    items.push_back({views[t / kBlockTokens], t, 0, std::min(kBlockTokens, tokens - t)});
  wait(device().kernels().append({shape, rows.address, rows.address, items}));
  for (auto _ : state) wait(device().kernels().append({shape, rows.address, rows.address, items}));
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * 3 * tokens * shape.token_bytes()));
  state.SetLabel("f32 read from host memory + f16 written");
}

// The smallest piece of work there and back.
void BM_DeviceSubmission(benchmark::State& state) {
  Regions regions;
  Region region;
  FIRN_CHECK(regions.take(RegionUse::kWorkspace, 4096, region));
  for (auto _ : state) wait(device().kernels().fill(region, 0, 4, 1));
}

// A software device is measured at sizes that it ends with before one loses patience; they prove the program, not it.
void register_all(bool software) {
  auto* decode = benchmark::RegisterBenchmark("BM_DeviceAttendDecode", BM_DeviceAttendDecode);
  decode->ArgNames({"model", "context", "sequences"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  if (software)
    for (const std::int64_t model : {0, 1})
      for (const auto& [context, sequences] : {std::pair{1024, 1}, {1024, 8}, {1024, 64}, {4096, 8}, {32768, 1}})
        decode->Args({model, context, sequences});
  else
    decode->ArgsProduct({{0, 1}, {1024, 4096, 16384, 32768}, {1, 8, 64}});
  benchmark::RegisterBenchmark("BM_DeviceCopy", BM_DeviceCopy)
      ->ArgNames({"model", "MiB"})
      ->ArgsProduct({{0, 1}, {16, 256}})
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
  benchmark::RegisterBenchmark("BM_DeviceAppend", BM_DeviceAppend)
      ->ArgNames({"model", "tokens"})
      ->ArgsProduct({{0, 1}, {1, 64, 4096}})
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
  benchmark::RegisterBenchmark("BM_DeviceSubmission", BM_DeviceSubmission)
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}

}  // namespace

bool bench::register_device_benchmarks(const std::string& name) {
  Result<std::unique_ptr<VulkanDevice>> made = make_vulkan_device({.device = name});
  if (!made.ok()) {
    fmt::print(stderr, "--device {}: {}\n", name, made.status().message());
    return false;
  }
  the_device() = std::move(made).value();
  dump(device().report());
  register_all(device().report().software);
  return true;
}

void bench::close_device() { the_device().reset(); }

}  // namespace firn
