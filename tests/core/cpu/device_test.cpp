// Regions, fences, and the device without bytes.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "core/cpu/host_memory.h"
#include "firn/device.h"
#include "firn/thread_pool.h"
#include "tests/core/cpu/attend_fixture.h"

namespace firn::testing {
namespace {

TEST(HostMemory, RegionsAreZeroedAlignedAndReadableBehindTheirEnd) {
  cpu::HostMemory memory;
  for (const std::uint64_t bytes : {1ull, 4096ull, 4097ull, 2097151ull, 2097152ull, 9000000ull}) {
    Result<Region> region = memory.allocate(RegionUse::kPool, bytes);
    ASSERT_TRUE(region.ok()) << region.status().message();
    EXPECT_EQ(region->bytes, bytes);
    EXPECT_EQ(region->address, reinterpret_cast<DeviceAddress>(region->host));
    EXPECT_EQ(region->address % (bytes >= 2097152 ? 2097152 : 4096), 0u) << bytes;
    std::uint64_t sum = 0;
    for (std::uint64_t i = 0; i < bytes + 64; ++i) sum += static_cast<std::uint64_t>(region->host[i]);
    EXPECT_EQ(sum, 0u) << bytes;
    std::memset(region->host, 0xAA, bytes);
    EXPECT_EQ(memory.region_bytes(), bytes);
    memory.free(*region);
    EXPECT_EQ(memory.region_bytes(), 0u);
  }
}

TEST(HostMemory, TellsWhatMayBeUsed) {
  const Memory::Info info = cpu::HostMemory().info();
  EXPECT_EQ(info.name, "cpu");
  EXPECT_TRUE(info.host_visible);
  EXPECT_GT(info.budget_bytes, 0u);
  EXPECT_GE(info.max_region_bytes, info.budget_bytes);
}

TEST(HostMemory, RefusesWhatCannotBeAndFailsWhenTold) {
  cpu::HostMemory memory;
  EXPECT_EQ(memory.allocate(RegionUse::kPool, 0).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(memory.allocate(RegionUse::kPool, ~0ull).status().code(), Code::kInvalidArgument);
  memory.fail_allocation(2);
  Result<Region> first = memory.allocate(RegionUse::kPool, 4096);
  ASSERT_TRUE(first.ok());
  const Result<Region> second = memory.allocate(RegionUse::kPool, 4096);
  EXPECT_EQ(second.status().code(), Code::kNoSpace);
  EXPECT_NE(second.status().message().find("4096 bytes"), std::string::npos);
  EXPECT_TRUE(memory.allocate(RegionUse::kPool, 4096).ok()) << "one failure was asked for; the region dies with memory";
  EXPECT_EQ(memory.region_bytes(), 8192u);
}

TEST(HostMemoryDeathTest, StopsOnARegionThatIsNotItsOwn) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  cpu::HostMemory memory;
  Result<Region> region = memory.allocate(RegionUse::kPool, 4096);
  ASSERT_TRUE(region.ok());
  Region wrong = *region;
  wrong.bytes = 4095;
  EXPECT_DEATH(memory.free(wrong), "broken invariant");
  wrong = *region;
  wrong.address += 4096;
  EXPECT_DEATH(memory.free(wrong), "broken invariant");
  memory.free(*region);
  EXPECT_DEATH(memory.free(*region), "broken invariant");
}

TEST(CpuDevice, FencesHavePassedWhenACallReturnsAndCountUp) {
  ThreadPool threads(1);
  const std::unique_ptr<Device> device = make_cpu_device(threads);
  Timeline& timeline = device->timeline();
  EXPECT_TRUE(timeline.passed(Fence{}));
  Fence before = timeline.last();
  for (int i = 0; i < 3; ++i) {
    const Result<Fence> fence = device->kernels().copy({{Dtype::kF16, 1, 64, 64}, {}});
    ASSERT_TRUE(fence.ok());
    EXPECT_GT(*fence, before);
    EXPECT_EQ(*fence, timeline.last());
    EXPECT_TRUE(timeline.passed(*fence));
    EXPECT_TRUE(timeline.wait(*fence, 0).ok());
    before = *fence;
  }
  const Fence external{Fence::Kind::kExternal, 7, 1};
  EXPECT_FALSE(timeline.passed(external));
  EXPECT_EQ(timeline.wait(external, 0).code(), Code::kInvalidArgument);
  // Nor are those of another device its own, nor those that nobody has given out.
  const std::unique_ptr<Device> other = make_cpu_device(threads);
  ASSERT_TRUE(other->kernels().copy({{Dtype::kF16, 1, 64, 64}, {}}).ok());
  Fence future = before;
  ++future.value;
  for (const Fence& fence : {other->timeline().last(), future, Fence{Fence::Kind::kTimeline, 0, 0}}) {
    EXPECT_FALSE(timeline.passed(fence));
    EXPECT_EQ(timeline.wait(fence, 0).code(), Code::kInvalidArgument);
  }
  EXPECT_EQ(device->kernels().fill(Region{}, 0, 0, 0).status().code(), Code::kInvalidArgument);
}

TEST(CpuDevice, CallersOnSeveralThreadsAndDevicesOnOnePoolDoNotDisturbEachOther) {
  ThreadPool threads(2);
  const std::unique_ptr<Device> devices[2] = {make_cpu_device(threads), make_cpu_device(threads)};
  const KvShape shape{Dtype::kF16, 3, 64, 64};
  Sequence sequence(shape, 300, 1);
  const Attention attention{.query_heads = 9};
  const std::vector<float> want = attention.run(*devices[0], {{&sequence, 285, 15}, {&sequence, 299, 1}});
  std::vector<std::jthread> callers;
  for (int caller = 0; caller < 3; ++caller)
    callers.emplace_back([&, caller] {
      for (int i = 0; i < 10; ++i) {
        Device& device = *devices[(caller + i) % 2];
        EXPECT_TRUE(same_bits(attention.run(device, {{&sequence, 285, 15}, {&sequence, 299, 1}}), want));
      }
    });
}

TEST(NullDevice, HasAddressesWithoutBytesAndRefusesWhatARealOneWould) {
  const std::unique_ptr<Device> device = make_null_device();
  EXPECT_FALSE(device->memory().info().host_visible);
  Result<Region> a = device->memory().allocate(RegionUse::kPool, 1ull << 40),
                 b = device->memory().allocate(RegionUse::kStaging, 4096);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->host, nullptr);
  EXPECT_NE(a->address, 0u);
  EXPECT_GE(b->address, a->address + a->bytes);
  EXPECT_EQ(device->memory().allocate(RegionUse::kPool, 0).status().code(), Code::kInvalidArgument);

  const KvShape shape{Dtype::kF16, 1, 64, 64};
  const CopyItem copy{{a->address, a->address, 128, 128, 128, 128}, {b->address, b->address, 128, 128, 128, 128}};
  const AppendItem append{copy.to, 0, 0, 16};
  for (const Result<Fence>& fence : {device->kernels().copy({shape, {&copy, 1}}),
                                     device->kernels().append({shape, a->address, a->address, {&append, 1}}),
                                     device->kernels().fill(*a, 0, a->bytes, 0xFF)}) {
    ASSERT_TRUE(fence.ok());
    EXPECT_TRUE(device->timeline().passed(*fence));
  }
  const CopyItem bad{copy.from, copy.to, 17};
  EXPECT_EQ(device->kernels().copy({shape, {&bad, 1}}).status().code(), Code::kInvalidArgument);
  device->memory().free(*a);
  device->memory().free(*b);
  const Result<Region> c = device->memory().allocate(RegionUse::kPool, 1);
  ASSERT_TRUE(c.ok());
  EXPECT_GT(c->address, b->address) << "addresses are not given out twice";
}

TEST(ScratchBytes, AreLinearInRowsAndDoNotGrowWithLongChunks) {
  const KvShape shape{Dtype::kF16, 3, 64, 64};
  EXPECT_EQ(Kernels::state_bytes(shape, 9, 10), 10u * 9 * 66 * 4);
  AttendBatch batch{.shape = shape, .query_heads = 9, .row_count = 300};
  EXPECT_EQ(Kernels::partial_bytes(batch), 0u);
  std::vector<AttendItem> items(16, AttendItem{.row_count = 1});
  batch.items = items;
  EXPECT_EQ(Kernels::partial_bytes(batch), 64u + 16 * 9 * 66 * 4);
  for (AttendItem& item : items) item.row_count = 256;
  EXPECT_EQ(Kernels::partial_bytes(batch), 64u) << "splits of long chunks are folded where they are attended";
}

}  // namespace
}  // namespace firn::testing
