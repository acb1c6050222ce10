// append, copy and fill on the vulkan device: the same bytes as the cpu device, and no others.
#include <bit>
#include <cmath>

#include "tests/core/vk/vk_fixture.h"

namespace firn::vk::testing {
namespace {

const KvShape kShapes[] = {{Dtype::kF16, 3, 64, 64},
                           {Dtype::kF16, 2, 40, 24},
                           {Dtype::kF16, 2, 9, 7},
                           {Dtype::kBf16, 1, 80, 128},
                           {Dtype::kF32, 2, 5, 12}};
const Layout kLayouts[] = {Layout::kTokenMajor, Layout::kHeadMajor, Layout::kScattered};
constexpr std::uint64_t kMiB = 1u << 20;

class Kernels : public VulkanTest {
 protected:
  ThreadPool threads{1};
  std::unique_ptr<Device> cpu = make_cpu_device(threads);
};

// The whole of an arena after the same calls on both devices.
void expect_same(const Arena& a, const Arena& b, const std::string& what) {
  ASSERT_EQ(a.used(), b.used());
  for (std::uint64_t i = 0; i < a.used(); ++i)
    ASSERT_EQ(a.region().host[i], b.region().host[i]) << what << ", byte " << i;
}

TEST_F(Kernels, AppendWritesTheBytesThatTheCpuDeviceWrites) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  for (const KvShape& shape : kShapes)
    for (const Layout layout : kLayouts) {
      Arena ours(*device, kMiB), theirs(*cpu, kMiB);
      for (const auto& [to, arena] : {std::pair<Device*, Arena*>{device.get(), &ours}, {cpu.get(), &theirs}}) {
        const std::vector<BlockView> views = place_blocks(*arena, shape, 3, layout);
        const KvRows rows(shape, 40, 1);
        // Rows 2 to 11 become tokens 5 to 14 of block 0, rows 12 to 15 tokens 0 to 3 of block 1, row 20 the last of 2.
        std::vector<AppendItem> items{{views[0], 2, 5, 10}, {views[1], 12, 0, 4}, {views[2], 20, 15, 1}};
        items.push_back({views[2], 30, 0, 0});  // nothing
        BlockView keys_only = views[2];
        keys_only.v = 0;
        items.push_back({keys_only, 31, 3, 2});
        wait(*to, to->kernels().append({shape, arena->put(rows.k), arena->put(rows.v), items}));
      }
      expect_same(ours, theirs, fmt_shape(shape, layout));
      if (HasFatalFailure()) return;
    }
}

// Every half, and what lies between two of them.
TEST_F(Kernels, AppendRoundsEveryValueAsTheCpuDeviceDoes) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  std::vector<float> values;
  for (std::uint32_t high = 0; high < 0x10000; high += 1) {
    values.push_back(std::bit_cast<float>(high << 16 | 0x8000));                 // ties of bf16
    values.push_back(std::bit_cast<float>((high << 16) + (high % 3) * 0x1000));  // ties of f16, and neighbours
    values.push_back(std::bit_cast<float>(high << 16 | (high * 40503u & 0xFFFF)));
  }
  values.resize(values.size() / 512 * 512);
  const KvShape f16{Dtype::kF16, 1, 512, 512}, bf16{Dtype::kBf16, 1, 512, 512};
  for (const KvShape& shape : {f16, bf16}) {
    const auto tokens = static_cast<std::uint32_t>(values.size() / 512);
    Arena ours(*device, 8 * kMiB), theirs(*cpu, 8 * kMiB);
    for (const auto& [to, arena] : {std::pair<Device*, Arena*>{device.get(), &ours}, {cpu.get(), &theirs}}) {
      const std::vector<BlockView> views = place_blocks(*arena, shape, (tokens + 15) / 16, Layout::kTokenMajor);
      std::vector<AppendItem> items;
      for (std::uint32_t t = 0; t < tokens; t += 16) items.push_back({views[t / 16], t, 0, std::min(16u, tokens - t)});
      const DeviceAddress rows = arena->put(values);
      wait(*to, to->kernels().append({shape, rows, rows, items}));
    }
    expect_same(ours, theirs, std::string(to_string(shape.dtype)));
    if (HasFatalFailure()) return;
  }
}

TEST_F(Kernels, CopyGoesThroughEveryLayoutAndBackWithoutAChangedBit) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  for (const KvShape& shape : kShapes)
    for (const Layout from : kLayouts)
      for (const Layout to : kLayouts) {
        Arena ours(*device, kMiB), theirs(*cpu, kMiB);
        for (const auto& [on, arena] : {std::pair<Device*, Arena*>{device.get(), &ours}, {cpu.get(), &theirs}}) {
          const std::vector<BlockView> a = place_blocks(*arena, shape, 4, from), b = place_blocks(*arena, shape, 4, to),
                                       c = place_blocks(*arena, shape, 4, from);
          append_all(*on, *arena, shape, a, KvRows(shape, 64, 3), 64);
          std::vector<CopyItem> there, back;
          for (std::uint32_t i = 0; i < 4; ++i) {
            there.push_back({a[i], b[i], i == 3 ? 7u : kBlockTokens});
            back.push_back({b[i], c[i], i == 2 ? 0u : kBlockTokens});
          }
          there[1].from.k = there[1].to.k = 0;  // values alone
          wait(*on, on->kernels().copy({shape, there}));
          wait(*on, on->kernels().copy({shape, back}));
        }
        expect_same(ours, theirs, fmt_shape(shape, from));
        if (HasFatalFailure()) return;
      }
}

TEST_F(Kernels, FillSetsItsRangeAndNothingElse) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  Arena arena(*device, 4096);
  std::vector<std::byte> want(4096);
  std::uint8_t value = 1;
  for (const std::uint64_t offset : {0u, 1u, 2u, 3u, 4u, 1021u, 4090u})
    for (const std::uint64_t bytes : {0u, 1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u, 2048u}) {
      if (offset + bytes > 4096) {
        EXPECT_EQ(device->kernels().fill(arena.region(), offset, bytes, 1).status().code(), Code::kInvalidArgument);
        continue;
      }
      wait(*device, device->kernels().fill(arena.region(), offset, bytes, ++value));
      std::fill_n(want.begin() + static_cast<std::ptrdiff_t>(offset), bytes, std::byte{value});
      ASSERT_EQ(std::memcmp(arena.region().host, want.data(), 4096), 0) << offset << " + " << bytes;
    }
}

TEST_F(Kernels, WhatCannotBeIsRefused) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  const KvShape shape{Dtype::kF16, 1, 8, 8};
  const AppendItem append{{64, 64, 16, 16, 16, 16}, 0, 10, 7};
  EXPECT_EQ(device->kernels().append({shape, 64, 64, {&append, 1}}).status().code(), Code::kInvalidArgument);
  CopyItem copy{{64, 64, 16, 16, 16, 16}, {128, 128, 16, 16, 16, 16}, 17};
  EXPECT_EQ(device->kernels().copy({shape, {&copy, 1}}).status().code(), Code::kInvalidArgument);
  copy = {{65, 64, 16, 16, 16, 16}, {128, 128, 16, 16, 16, 16}, 16};
  const Status odd = device->kernels().copy({shape, {&copy, 1}}).status();
  EXPECT_EQ(odd.code(), Code::kInvalidArgument);
  EXPECT_NE(odd.message().find("multiples of 2"), std::string::npos) << odd.message();
}

}  // namespace
}  // namespace firn::vk::testing
