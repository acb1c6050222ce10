// vk_fixture.h: a software Vulkan device under validation, whose every message fails the test, and memory that both it
// and the cpu device can be given.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/vk/vulkan_device.h"
#include "firn/thread_pool.h"

namespace firn::vk::testing {

class VulkanTest : public ::testing::Test {
 protected:
  // Validation, hazard checks, and a pool that the host does not see.
  Hooks strict_hooks() {
    Hooks hooks;
    hooks.validation = true;
    hooks.check_hazards = true;
    hooks.hide_host_memory = true;
    hooks.on_message = [this](const std::string& message) {
      std::lock_guard lock(mutex_);
      messages_.push_back(message);
    };
    return hooks;
  }
  std::unique_ptr<VulkanDeviceImpl> make(const Hooks& hooks, const VulkanOptions& options = {.device = "lavapipe"}) {
    auto device = VulkanDeviceImpl::create(options, hooks);
    EXPECT_TRUE(device.ok()) << device.status().message()
                             << "\nDebian: libvulkan1 mesa-vulkan-drivers vulkan-validationlayers";
    return device.ok() ? std::move(device).value() : nullptr;
  }
  std::vector<std::string> take_messages() {
    std::lock_guard lock(mutex_);
    return std::exchange(messages_, {});
  }
  void TearDown() override {
    for (const std::string& message : take_messages()) ADD_FAILURE() << message;
  }

 private:
  std::mutex mutex_;
  std::vector<std::string> messages_;
};

inline void wait(Device& device, const Result<Fence>& fence) {
  ASSERT_TRUE(fence.ok()) << fence.status().message();
  const Status done = device.timeline().wait(*fence, 300'000'000'000);
  ASSERT_TRUE(done.ok()) << done.message();
}

// Memory that a device and the host both reach, handed out from one region.
class Arena {
 public:
  Arena(Device& device, std::uint64_t bytes) : device_(device) {
    Result<Region> region = device.memory().allocate(RegionUse::kStaging, bytes);
    EXPECT_TRUE(region.ok()) << region.status().message();
    region_ = *region;
  }
  ~Arena() { device_.memory().free(region_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  DeviceAddress take(std::uint64_t bytes, std::uint64_t lead = 0) {
    const std::uint64_t at = used_ + lead;
    used_ = (at + bytes + 63) / 64 * 64;
    EXPECT_LE(used_, region_.bytes);
    return region_.address + at;
  }
  template <class T>
  DeviceAddress put(const std::vector<T>& values) {
    const DeviceAddress at = take(values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(host(at), values.data(), values.size() * sizeof(T));
    return at;
  }
  template <class T>
  std::vector<T> get(DeviceAddress at, std::size_t count) const {
    std::vector<T> out(count);
    if (count != 0) std::memcpy(out.data(), host(at), count * sizeof(T));
    return out;
  }
  std::byte* host(DeviceAddress at) const { return region_.host + (at - region_.address); }
  const Region& region() const { return region_; }
  std::uint64_t used() const { return used_; }

 private:
  Device& device_;
  Region region_;
  std::uint64_t used_ = 0;
};

inline double uniform(std::uint64_t seed, std::uint64_t i) {
  std::uint64_t z = seed * 0x9E3779B97F4A7C15u + (i + 1) * 0xD1B54A32D192ED03u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}
inline float unit_variance(std::uint64_t seed, std::uint64_t i) {  // sum of four uniforms: nearly normal
  double sum = 0;
  for (std::uint64_t j = 0; j < 4; ++j) sum += uniform(seed, 4 * i + j) - 0.5;
  return static_cast<float>(sum * 1.7320508);
}

enum class Layout { kTokenMajor, kHeadMajor, kScattered };

// Where the blocks of a sequence are, in an arena. Gaps hold NaN in every type.
inline std::vector<BlockView> place_blocks(Arena& arena, const KvShape& shape, std::uint32_t blocks, Layout layout) {
  const std::uint32_t element = bytes_of(shape.dtype);
  std::vector<BlockView> views;
  const auto place = [&](std::uint32_t row, std::uint32_t& token_stride, std::uint32_t& head_stride) {
    head_stride = layout == Layout::kHeadMajor ? row * kBlockTokens : row;
    token_stride = layout == Layout::kHeadMajor ? row : row * shape.kv_heads;
    std::uint64_t lead = 0;
    if (layout == Layout::kScattered) {  // misaligned on purpose: multiples of an element and of nothing else
      head_stride += 5 * element;
      token_stride = head_stride * shape.kv_heads + 3 * element;
      lead = element * (views.size() % 7 + 1);
    }
    const std::uint64_t bytes =
        std::uint64_t{kBlockTokens - 1} * token_stride + std::uint64_t{shape.kv_heads - 1} * head_stride + row;
    const DeviceAddress at = arena.take(bytes, lead);
    std::memset(arena.host(at - lead), 0xFF, bytes + lead);
    return at;
  };
  for (std::uint32_t b = 0; b < blocks; ++b) {
    BlockView view;
    view.k = place(shape.head_dim * element, view.token_stride, view.head_stride);
    view.v = place(shape.value_dim * element, view.v_token_stride, view.v_head_stride);
    views.push_back(view);
  }
  return views;
}

inline std::string fmt_shape(const KvShape& shape, Layout layout) {
  return std::string(to_string(shape.dtype)) + ", " + std::to_string(shape.kv_heads) + " heads of " +
         std::to_string(shape.head_dim) + " and " + std::to_string(shape.value_dim) + ", layout " +
         std::to_string(static_cast<int>(layout));
}

// What a test hands to append: rows of f32 keys and values.
struct KvRows {
  std::vector<float> k, v;
  KvRows(const KvShape& shape, std::uint32_t rows, std::uint64_t seed)
      : k(std::size_t{rows} * shape.kv_heads * shape.head_dim),
        v(std::size_t{rows} * shape.kv_heads * shape.value_dim) {
    for (std::size_t i = 0; i < k.size(); ++i) k[i] = unit_variance(seed * 2, i);
    for (std::size_t i = 0; i < v.size(); ++i) v[i] = unit_variance(seed * 2 + 1, i);
  }
};

inline void append_all(Device& device, Arena& arena, const KvShape& shape, const std::vector<BlockView>& views,
                       const KvRows& rows, std::uint32_t tokens) {
  std::vector<AppendItem> items;
  for (std::uint32_t t = 0; t < tokens; t += kBlockTokens)
    items.push_back({views[t / kBlockTokens], t, 0, std::min(kBlockTokens, tokens - t)});
  wait(device, device.kernels().append({shape, arena.put(rows.k), arena.put(rows.v), items}));
}

}  // namespace firn::vk::testing
