// No kernel allocates: the ledger's promise would be worth nothing if scratch memory came from elsewhere.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "firn/thread_pool.h"
#include "tests/core/cpu/attend_fixture.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"  // ours are a pair; inlining one hides that
#endif

namespace {
std::atomic<std::uint64_t> allocations{0};
}
void* operator new(std::size_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(bytes);
  if (memory == nullptr) std::abort();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace firn::testing {
namespace {

TEST(Allocation, KernelsAllocateNothing) {
  ThreadPool threads(2);
  const std::unique_ptr<Device> device = make_cpu_device(threads);
  const KvShape shape{Dtype::kF16, 3, 72, 72};
  Sequence sequence(shape, 600, 1), copy(shape, 600, 1);
  std::vector<float> q(40 * 9 * 72), out(q.size()), state(40 * 9 * 74), partials(3 * 9 * 74 + 16);
  AttendBatch batch{.shape = shape, .query_heads = 9, .scale = 0.1f, .row_count = 40, .views = sequence.views()};
  batch.q = reinterpret_cast<DeviceAddress>(q.data());
  batch.out = reinterpret_cast<DeviceAddress>(out.data());
  batch.state = reinterpret_cast<DeviceAddress>(state.data());
  batch.partials = reinterpret_cast<DeviceAddress>(partials.data());
  const AttendItem items[] = {{0, 1, 599, 0, 256, 0},  {0, 1, 599, 256, 256, 16},  {0, 1, 599, 512, 88, 32},
                              {1, 39, 561, 0, 256, 0}, {1, 39, 561, 256, 256, 16}, {1, 39, 561, 512, 88, 32}};
  batch.items = items;
  ASSERT_LE(Kernels::partial_bytes(batch), partials.size() * 4);
  std::vector<CopyItem> copies;
  std::vector<AppendItem> appends;
  for (std::uint32_t b = 0; b < 37; ++b) {
    copies.push_back({sequence.views()[b], copy.views()[b]});
    appends.push_back({copy.views()[b], 0, 0, 16});
  }
  std::vector<float> rows(16 * 3 * 72);
  const AppendBatch append{shape, reinterpret_cast<DeviceAddress>(rows.data()),
                           reinterpret_cast<DeviceAddress>(rows.data()), appends};
  const std::uint64_t before = allocations.load();
  const bool ok = device->kernels().attend(batch).ok() && device->kernels().copy({shape, copies}).ok() &&
                  device->kernels().append(append).ok();
  EXPECT_EQ(allocations.load(), before);
  EXPECT_TRUE(ok);
}

}  // namespace
}  // namespace firn::testing
