// append, copy and fill: which bytes they write, and that they write no others.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "core/cpu/half.h"
#include "firn/thread_pool.h"
#include "tests/core/cpu/attend_fixture.h"

namespace firn::testing {
namespace {

struct KernelsTest : ::testing::Test {
  ThreadPool threads{2};
  std::unique_ptr<Device> device = make_cpu_device(threads);
};

// What append stores for values, as one row of one head.
std::vector<std::byte> appended(Device& device, Dtype dtype, std::vector<float> values) {
  const auto dim = static_cast<std::uint32_t>(values.size());
  std::vector<std::byte> k(values.size() * bytes_of(dtype)), v(k.size());
  AppendItem item{.view = {reinterpret_cast<DeviceAddress>(k.data()), reinterpret_cast<DeviceAddress>(v.data())}};
  item.token_count = 1;
  AppendBatch batch{.shape = {dtype, 1, dim, dim}, .items = {&item, 1}};
  batch.k = batch.v = reinterpret_cast<DeviceAddress>(values.data());
  EXPECT_TRUE(device.kernels().append(batch).ok());
  EXPECT_EQ(k, v);
  return k;
}

// In rows of up to the longest head.
std::vector<std::uint16_t> rounded(Device& device, Dtype dtype, const std::vector<float>& values) {
  std::vector<std::uint16_t> out;
  for (std::size_t i = 0; i < values.size(); i += 1000) {  // no multiple of any register: tails are met too
    const std::size_t end = std::min(values.size(), i + 1000);
    const std::vector<std::byte> bytes = appended(device, dtype, {values.begin() + i, values.begin() + end});
    out.resize(end);
    std::memcpy(out.data() + i, bytes.data(), bytes.size());
  }
  return out;
}

TEST_F(KernelsTest, AppendKeepsEveryHalfAndRoundsTiesToEven) {
  for (const Dtype dtype : {Dtype::kF16, Dtype::kBf16}) {
    const HalfFormat format = format_of(dtype);
    std::vector<float> values;
    std::vector<std::uint16_t> want;
    const auto expect = [&](float value, std::uint16_t bits) {
      values.push_back(value);
      want.push_back(bits);
    };
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
      const double exact = decode(format, static_cast<std::uint16_t>(bits));
      if (std::isnan(exact)) continue;
      expect(static_cast<float>(exact), static_cast<std::uint16_t>(bits));
      const double next = decode(format, static_cast<std::uint16_t>(bits + 1));
      if (std::isinf(exact) || !std::isfinite(next) || (bits & 0x7FFF) == 0x7FFF) continue;
      const auto middle = static_cast<float>((exact + next) / 2);
      for (const float value : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, middle * 2)})
        expect(value, encode(format, value));
    }
    for (const float value : {1e-8f, -1e-8f, 65519.99f, 65520.0f, 65536.0f, 3.4e38f, -3.4e38f, 3.389e38f, INFINITY,
                              -INFINITY, 0.0f, -0.0f, 1e-40f, -1e-45f})
      expect(value, encode(format, value));
    const std::vector<std::uint16_t> got = rounded(*device, dtype, values);
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i], want[i]) << to_string(dtype) << " of " << std::hexfloat << values[i];
      ASSERT_TRUE(dtype != Dtype::kF16 || cpu::f16_of(values[i]) == want[i]) << std::hexfloat << values[i];
    }
  }
}

TEST_F(KernelsTest, AppendKeepsNanANumberThatIsNone) {
  for (const std::uint32_t bits : {0x7F800001u, 0x7FC00000u, 0x7FFFFFFFu, 0xFF800001u, 0xFFFFFFFFu}) {
    const auto value = std::bit_cast<float>(bits);
    for (const Dtype dtype : {Dtype::kF16, Dtype::kBf16})
      EXPECT_TRUE(std::isnan(decode(format_of(dtype), rounded(*device, dtype, {value})[0]))) << std::hex << bits;
    EXPECT_TRUE(std::isnan(decode(kF16, cpu::f16_of(value)))) << std::hex << bits;
  }
}

TEST_F(KernelsTest, AppendOfF32CopiesBits) {
  const std::vector<float> values{1.5f, -0.0f, 1e-40f, INFINITY, 0x1.fffffep127f};
  const std::vector<std::byte> bytes = appended(*device, Dtype::kF32, values);
  EXPECT_EQ(std::memcmp(bytes.data(), values.data(), bytes.size()), 0);
}

// The engine-owned layout [2, blocks, tokens, heads, dim]: keys of all blocks, then values of all blocks.
std::vector<BlockView> engine_views(std::vector<std::byte>& memory, const KvShape& shape, std::uint32_t blocks) {
  const auto base = reinterpret_cast<DeviceAddress>(memory.data());
  const std::uint32_t element = bytes_of(shape.dtype);
  std::vector<BlockView> views;
  for (std::uint32_t b = 0; b < blocks; ++b)
    views.push_back({base + b * kBlockTokens * shape.key_bytes(),
                     base + blocks * kBlockTokens * shape.key_bytes() + b * kBlockTokens * shape.value_bytes(),
                     static_cast<std::uint32_t>(shape.key_bytes()), shape.head_dim * element,
                     static_cast<std::uint32_t>(shape.value_bytes()), shape.value_dim * element});
  return views;
}

std::vector<std::byte> noise(std::size_t bytes, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> out(bytes);
  for (std::byte& byte : out) byte = static_cast<std::byte>(random());
  return out;
}

TEST_F(KernelsTest, AppendWritesItsTokensAndNothingElse) {
  const KvShape shape{Dtype::kF16, 3, 40, 24};
  for (const Layout layout : {Layout::kTokenMajor, Layout::kHeadMajor, Layout::kScattered}) {
    Sequence want(shape, 32, 1, layout), got(shape, 32, 1, layout);
    std::vector<float> k(20 * 3 * 40), v(20 * 3 * 24);
    for (std::size_t i = 0; i < k.size(); ++i) k[i] = static_cast<float>(unit_variance(7, i));
    for (std::size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(unit_variance(8, i));
    // Rows 2 to 11 become tokens 5 to 14: 5 to 14 of the first block; rows 12 to 15 tokens 16 to 19.
    const AppendItem items[] = {{got.views()[0], 2, 5, 10}, {got.views()[1], 12, 0, 4}};
    AppendBatch batch{.shape = shape, .items = items};
    batch.k = reinterpret_cast<DeviceAddress>(k.data());
    batch.v = reinterpret_cast<DeviceAddress>(v.data());
    ASSERT_TRUE(device->kernels().append(batch).ok());
    for (std::uint32_t t = 0; t < 32; ++t)
      for (std::uint32_t h = 0; h < 3; ++h) {
        const bool written = (t >= 5 && t < 15) || (t >= 16 && t < 20);
        const std::uint32_t row = t < 15 ? t - 3 : t - 4;
        for (std::uint32_t i = 0; i < 40; ++i)
          if (written) store(Dtype::kF16, k[(row * 3 + h) * 40 + i], want.key(t, h) + 2 * i);
        for (std::uint32_t i = 0; i < 24; ++i)
          if (written) store(Dtype::kF16, v[(row * 3 + h) * 24 + i], want.value(t, h) + 2 * i);
        ASSERT_EQ(std::memcmp(got.key(t, h), want.key(t, h), 80), 0) << "token " << t << ", head " << h;
        ASSERT_EQ(std::memcmp(got.value(t, h), want.value(t, h), 48), 0) << "token " << t << ", head " << h;
      }
  }
}

TEST_F(KernelsTest, CopyGoesThroughEveryLayoutAndBackWithoutAChangedBit) {
  for (const Dtype dtype : {Dtype::kF16, Dtype::kF32})
    for (const std::uint32_t dim : {64u, 40u, 9u})
      for (const std::uint32_t heads : {1u, 3u}) {
        const KvShape shape{dtype, heads, dim, dim + 1};
        constexpr std::uint32_t kBlocks = 40;  // enough for several tasks
        std::vector<std::byte> engine = noise(kBlocks * kBlockTokens * shape.token_bytes(), dim), back(engine.size());
        const std::vector<BlockView> from = engine_views(engine, shape, kBlocks),
                                     to = engine_views(back, shape, kBlocks);
        for (const Layout layout : {Layout::kTokenMajor, Layout::kHeadMajor, Layout::kScattered}) {
          Sequence pool(shape, kBlocks * kBlockTokens, 1, layout), again(shape, kBlocks * kBlockTokens, 1, layout);
          std::fill(back.begin(), back.end(), std::byte{0});
          std::vector<CopyItem> in, within, out;
          for (std::uint32_t b = 0; b < kBlocks; ++b) {
            in.push_back({from[b], pool.views()[b]});
            within.push_back({pool.views()[b], again.views()[b]});
            out.push_back({again.views()[b], to[b]});
          }
          ASSERT_TRUE(device->kernels().copy({shape, in}).ok());
          ASSERT_TRUE(device->kernels().copy({shape, within}).ok());
          ASSERT_TRUE(device->kernels().copy({shape, out}).ok());
          ASSERT_EQ(engine, back) << "layout " << static_cast<int>(layout) << ", dimension " << dim;
        }
      }
}

TEST_F(KernelsTest, CopyTakesTheFirstTokensOnly) {
  const KvShape shape{Dtype::kF16, 2, 64, 64};
  for (std::uint32_t tokens = 0; tokens <= kBlockTokens; ++tokens) {
    std::vector<std::byte> a = noise(kBlockTokens * shape.token_bytes(), 1), b = noise(a.size(), 2), want = b;
    CopyItem item{engine_views(a, shape, 1)[0], engine_views(b, shape, 1)[0], tokens};
    ASSERT_TRUE(device->kernels().copy({shape, {&item, 1}}).ok());
    std::copy_n(a.begin(), tokens * 256, want.begin());
    std::copy_n(a.begin() + 16 * 256, tokens * 256, want.begin() + 16 * 256);
    ASSERT_EQ(b, want) << tokens << " tokens";
  }
}

TEST_F(KernelsTest, CopyMayLeaveOutKeysOrValues) {
  const KvShape shape{Dtype::kF16, 1, 64, 64};
  std::vector<std::byte> a = noise(kBlockTokens * shape.token_bytes(), 1), b(a.size()), want(a.size());
  CopyItem item{engine_views(a, shape, 1)[0], engine_views(b, shape, 1)[0]};
  item.from.k = item.to.k = 0;
  ASSERT_TRUE(device->kernels().copy({shape, {&item, 1}}).ok());
  std::copy_n(a.begin() + a.size() / 2, a.size() / 2, want.begin() + a.size() / 2);
  EXPECT_EQ(b, want);
  item.to.k = reinterpret_cast<DeviceAddress>(b.data());
  const Result<Fence> lopsided = device->kernels().copy({shape, {&item, 1}});
  EXPECT_EQ(lopsided.status().code(), Code::kInvalidArgument);
  EXPECT_NE(lopsided.status().message().find("copy: item 0"), std::string::npos);
}

TEST_F(KernelsTest, ItemsThatDoNotFitABlockAreRefused) {
  float memory[64] = {};
  const auto address = reinterpret_cast<DeviceAddress>(memory);
  const AppendItem append{{address, address}, 0, 10, 7};
  EXPECT_EQ(device->kernels().append({{Dtype::kF16, 1, 8, 8}, address, address, {&append, 1}}).status().code(),
            Code::kInvalidArgument);
  const CopyItem copy{{address, address}, {address, address}, 17};
  EXPECT_EQ(device->kernels().copy({{Dtype::kF16, 1, 8, 8}, {&copy, 1}}).status().code(), Code::kInvalidArgument);
}

TEST_F(KernelsTest, FillSetsItsRangeAndRefusesWhatLiesOutside) {
  Result<Region> region = device->memory().allocate(RegionUse::kPool, 5'000'000);
  ASSERT_TRUE(region.ok());
  ASSERT_TRUE(device->kernels().fill(*region, 3, 4'000'000, 0xAB).ok());
  for (std::uint64_t i = 0; i < region->bytes; ++i)
    ASSERT_EQ(region->host[i], i >= 3 && i < 4'000'003 ? std::byte{0xAB} : std::byte{0}) << i;
  EXPECT_TRUE(device->kernels().fill(*region, 5'000'000, 0, 1).ok());
  EXPECT_EQ(device->kernels().fill(*region, 5'000'001, 0, 1).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(device->kernels().fill(*region, 1, 5'000'000, 1).status().code(), Code::kInvalidArgument);
  device->memory().free(*region);
}

}  // namespace
}  // namespace firn::testing
