// The vulkan device as a device: what it says when it cannot be made, limits, memory, mistakes that must be caught,
// engines that bring their own Vulkan, and what can be shared with them.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>

#include "core/vk/convert.h"
#include "tests/core/vk/vk_fixture.h"

namespace firn::vk::testing {
namespace {

constexpr std::uint64_t kMiB = 1u << 20, kGiB = 1u << 30;

class Device : public VulkanTest {};

std::string refusal(const Hooks& hooks, const std::string& device = "lavapipe") {
  const auto made = VulkanDeviceImpl::create({.device = device}, hooks);
  EXPECT_FALSE(made.ok());
  EXPECT_NE(made.status().code(), Code::kOk);
  return made.status().message();
}

// Restores VK_DRIVER_FILES, which the loader reads whenever an instance is made.
class DriverFiles {
 public:
  explicit DriverFiles(const char* value) {
    if (const char* old = std::getenv("VK_DRIVER_FILES")) old_ = old;
    setenv("VK_DRIVER_FILES", value, 1);
  }
  ~DriverFiles() {
    if (old_.empty()) {
      unsetenv("VK_DRIVER_FILES");
    } else {
      setenv("VK_DRIVER_FILES", old_.c_str(), 1);
    }
  }

 private:
  std::string old_;
};

TEST_F(Device, SaysFourDifferentThingsWhenThereIsNone) {
  Hooks hooks;
  hooks.library = "libvulkan-that-nobody-has.so.1";
  const std::string no_loader = refusal(hooks);
  EXPECT_NE(no_loader.find("libvulkan1"), std::string::npos) << no_loader;
  hooks = {};
  std::string no_driver;
  {
    const DriverFiles nowhere("/nonexistent/driver.json");
    no_driver = refusal(hooks);
  }
  EXPECT_NE(no_driver.find("no Vulkan driver is installed"), std::string::npos) << no_driver;
  hooks.missing_feature = "timelineSemaphore";
  const std::string no_feature = refusal(hooks);
  EXPECT_NE(no_feature.find("lacks timelineSemaphore"), std::string::npos) << no_feature;
  hooks = {};
  const std::string no_gpu = refusal(hooks, "auto");
  EXPECT_NE(no_gpu.find("only when asked for"), std::string::npos) << no_gpu;
  // Not every machine has a driver for hardware that it lacks, so this one is asked for where there is.
  constexpr const char* kOtherDriver = "/usr/share/vulkan/icd.d/radeon_icd.x86_64.json";
  if (access(kOtherDriver, R_OK) != 0 || access("/dev/dri", R_OK) == 0) return;
  const DriverFiles other(kOtherDriver);
  const std::string no_device = refusal(hooks);
  EXPECT_NE(no_device.find("has no device"), std::string::npos) << no_device;
}

TEST_F(Device, IsFoundByIndexUuidAndName) {
  const auto all = vulkan_devices();
  ASSERT_TRUE(all.ok()) << all.status().message();
  ASSERT_FALSE(all->empty());
  std::uint32_t at = 0;
  while (at < all->size() && !(*all)[at].software) ++at;
  ASSERT_LT(at, all->size());
  const VulkanReport& software = (*all)[at];
  EXPECT_TRUE(software.usable());
  EXPECT_FALSE(software.heaps.empty());
  EXPECT_FALSE(software.limits.empty());
  for (const std::string& name :
       {std::to_string(at), software.uuid, std::string("LLVMpipe"), std::string("lavapipe")}) {
    const auto device = make(strict_hooks(), {.device = name});
    ASSERT_TRUE(device) << name;
    EXPECT_EQ(device->report().uuid, software.uuid) << name;
  }
  EXPECT_NE(refusal({}, "GeForce").find(software.name), std::string::npos) << "says what there is";
}

TEST_F(Device, RegionsAreZeroedAlignedAndComeBack) {
  for (const bool hidden : {false, true}) {
    Hooks hooks = strict_hooks();
    hooks.hide_host_memory = hidden;
    const auto device = make(hooks);
    ASSERT_TRUE(device);
    EXPECT_EQ(device->memory().info().host_visible, !hidden);
    for (const RegionUse use : {RegionUse::kPool, RegionUse::kStaging, RegionUse::kWorkspace})
      for (const std::uint64_t bytes : {std::uint64_t{1}, std::uint64_t{4096}, 3 * kMiB + 5}) {
        const auto region = device->memory().allocate(use, bytes);
        ASSERT_TRUE(region.ok()) << region.status().message();
        EXPECT_EQ(region->address % 4096, 0u);
        EXPECT_EQ(region->host == nullptr, hidden && use != RegionUse::kStaging);
        for (std::uint64_t i = 0; region->host && i < bytes; ++i) ASSERT_EQ(region->host[i], std::byte{0}) << i;
        device->memory().free(*region);
      }
    EXPECT_EQ(device->memory().allocate(RegionUse::kPool, 0).status().code(), Code::kInvalidArgument);
    EXPECT_EQ(device->memory().allocate(RegionUse::kPool, ~std::uint64_t{0}).status().code(), Code::kInvalidArgument);
    device->memory().fail_allocation(1);
    EXPECT_EQ(device->memory().allocate(RegionUse::kPool, 4096).status().code(), Code::kNoSpace);
    EXPECT_EQ(device->memory().region_bytes(), 0u);
  }
}

TEST_F(Device, HonoursLimitsThatThisMachineDoesNotHave) {
  Hooks hooks = strict_hooks();
  hooks.max_storage_range = 128 * kMiB;
  hooks.max_allocation_bytes = 256 * kMiB;
  hooks.heap_bytes = 512 * kMiB;
  hooks.zero_regions = false;
  auto device = make(hooks);
  ASSERT_TRUE(device);
  const Memory::Info info = device->memory().info();
  EXPECT_LT(info.max_region_bytes, 128 * kMiB);
  EXPECT_EQ(info.budget_bytes, 512 * kMiB);
  std::vector<Region> regions;
  for (;;) {
    const auto region = device->memory().allocate(RegionUse::kPool, info.max_region_bytes);
    if (!region.ok()) {
      EXPECT_EQ(region.status().code(), Code::kNoSpace) << region.status().message();
      break;
    }
    regions.push_back(*region);
    ASSERT_LT(regions.size(), 10u);
  }
  EXPECT_EQ(regions.size(), 3u) << "four and their padding are more than the heap";
  for (const Region& region : regions) device->memory().free(region);
  hooks.max_storage_range = 0;
  hooks.heap_bytes = 0;
  device = make(hooks);
  EXPECT_LE(device->memory().info().max_region_bytes, 256 * kMiB);
}

// 6 GiB in chunks, of which the driver backs only what is written: blocks at both ends and beyond 4 GiB.
TEST_F(Device, IndexesAPoolBeyondFourGiB) {
  Hooks hooks = strict_hooks();
  hooks.heap_bytes = 16 * kGiB;
  hooks.zero_regions = false;
  const auto device = make(hooks);
  ASSERT_TRUE(device);
  const KvShape shape{Dtype::kF16, 2, 64, 64};
  const std::uint64_t chunk = device->memory().info().max_region_bytes / 4096 * 4096;
  std::vector<Region> chunks;
  for (std::uint64_t have = 0; have < 6 * kGiB; have += chunk) {
    const auto region = device->memory().allocate(RegionUse::kPool, chunk);
    ASSERT_TRUE(region.ok()) << region.status().message();
    chunks.push_back(*region);
  }
  Arena arena(*device, 16 * kMiB);
  const std::uint64_t block = kBlockTokens * shape.token_bytes();
  std::vector<BlockView> views;
  for (const Region& region : chunks)
    for (const std::uint64_t at : {std::uint64_t{0}, chunk / 2 / block * block, (chunk / block - 1) * block})
      views.push_back({region.address + at, region.address + at + block / 2, 128, 2048, 128, 2048});
  const auto tokens = static_cast<std::uint32_t>(views.size()) * kBlockTokens;
  const KvRows rows(shape, tokens, 4);
  append_all(*device, arena, shape, views, rows, tokens);
  const std::vector<BlockView> back =
      place_blocks(arena, shape, static_cast<std::uint32_t>(views.size()), Layout::kHeadMajor);
  const std::vector<BlockView> want =
      place_blocks(arena, shape, static_cast<std::uint32_t>(views.size()), Layout::kHeadMajor);
  std::vector<CopyItem> items;
  for (std::size_t i = 0; i < views.size(); ++i) items.push_back({views[i], back[i]});
  wait(*device, device->kernels().copy({shape, items}));
  append_all(*device, arena, shape, want, rows, tokens);
  for (std::size_t i = 0; i < views.size(); ++i) {
    ASSERT_EQ(std::memcmp(arena.host(back[i].k), arena.host(want[i].k), block / 2), 0) << "keys of block " << i;
    ASSERT_EQ(std::memcmp(arena.host(back[i].v), arena.host(want[i].v), block / 2), 0) << "values of block " << i;
  }
  for (const Region& region : chunks) device->memory().free(region);
}

// --- mistakes that must be caught ---

struct Chain {
  explicit Chain(VulkanDeviceImpl& device) : arena(device, kMiB), shape{Dtype::kF16, 1, 64, 64} {
    a = place_blocks(arena, shape, 1, Layout::kHeadMajor);
    b = place_blocks(arena, shape, 1, Layout::kHeadMajor);
    c = place_blocks(arena, shape, 1, Layout::kHeadMajor);
    append_all(device, arena, shape, a, KvRows(shape, 16, 1), 16);
  }
  // a to b, b to c: the second reads what the first writes.
  bool run(VulkanDeviceImpl& device) {
    const CopyItem first{a[0], b[0]}, second{b[0], c[0]};
    EXPECT_TRUE(device.kernels().copy({shape, {&first, 1}}).ok());
    wait(device, device.kernels().copy({shape, {&second, 1}}));
    return std::memcmp(arena.host(a[0].k), arena.host(c[0].k), 2048) == 0;
  }
  Arena arena;
  KvShape shape;
  std::vector<BlockView> a, b, c;
};

TEST_F(Device, CatchesAMissingBarrier) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  Chain chain(*device);
  EXPECT_TRUE(chain.run(*device));
  EXPECT_TRUE(take_messages().empty());
  chain.run(*device);
  device->timeline().break_barrier(1);
  chain.run(*device);  // a software driver runs in order, so only the check can know
  const std::vector<std::string> messages = take_messages();
  ASSERT_FALSE(messages.empty());
  EXPECT_NE(messages[0].find("no barrier"), std::string::npos) << messages[0];
}

TEST_F(Device, CatchesARangeThatIsMissing) {
  bool wrong = false;
  for (std::uint64_t seed = 1; seed <= 16 && !wrong; ++seed) {
    Hooks hooks = strict_hooks();
    hooks.ordering = Ordering::kShuffle;
    hooks.seed = seed;
    const auto device = make(hooks);
    ASSERT_TRUE(device);
    Chain chain(*device);
    ASSERT_TRUE(chain.run(*device)) << "whole ranges keep their order";
    std::memset(chain.arena.host(chain.c[0].k), 0, 2048);
    std::memset(chain.arena.host(chain.b[0].k), 0, 2048);
    device->timeline().break_range(1);
    wrong = !chain.run(*device);
  }
  EXPECT_TRUE(wrong) << "the second copy never overtook the first";
}

TEST_F(Device, CatchesBytesOutsideOfEveryRegion) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  Arena arena(*device, 8192);
  const KvShape shape{Dtype::kF16, 1, 64, 64};
  // Ends 64 bytes behind the region: within the padding, so that nothing crashes.
  const DeviceAddress end = arena.region().address + 8192 + 64;
  const BlockView good{arena.region().address, 0, 128, 2048, 128, 2048}, bad{end - 2048, 0, 128, 2048, 128, 2048};
  const CopyItem item{good, bad};
  wait(*device, device->kernels().copy({shape, {&item, 1}}));
  const std::vector<std::string> messages = take_messages();
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_NE(messages[0].find("do not lie within living regions"), std::string::npos) << messages[0];
}

TEST_F(Device, CatchesLeakedRegionsAndLeakedObjects) {
  {
    auto device = make(strict_hooks());
    ASSERT_TRUE(device);
    ASSERT_TRUE(device->memory().allocate(RegionUse::kPool, 4096).ok());
  }
  std::vector<std::string> messages = take_messages();
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_NE(messages[0].find("never freed"), std::string::npos) << messages[0];
  {
    auto device = make(strict_hooks());
    ASSERT_TRUE(device);
    VkBufferCreateInfo info{};
    info.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO;
    info.size = 64;
    info.usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT;
    VkBuffer leaked{};
    ASSERT_EQ(device->context().api.CreateBuffer(device->context().device, &info, nullptr, &leaked), VK_SUCCESS);
  }
  messages = take_messages();
  ASSERT_FALSE(messages.empty()) << "the validation layer is not listening";
  EXPECT_NE(messages[0].find("VkBuffer"), std::string::npos) << messages[0];
}

// --- sharing ---

// A second firn device on the Vulkan objects of the first, which stands for an engine.
TEST_F(Device, RunsOnAnEnginesOwnVulkan) {
  const auto engine = make(strict_hooks());
  ASSERT_TRUE(engine);
  const Context& theirs = engine->context();
  void* loader = dlopen("libvulkan.so.1", RTLD_NOW);
  ASSERT_NE(loader, nullptr);
  std::uint32_t locked = 0, unlocked = 0;
  VulkanExisting existing;
  existing.get_instance_proc_addr = dlsym(loader, "vkGetInstanceProcAddr");
  existing.instance = theirs.instance;
  existing.physical_device = theirs.physical;
  existing.device = theirs.device;
  existing.queue = theirs.queue;
  existing.queue_family = theirs.family;
  existing.lock = [&] { ++locked; };
  existing.unlock = [&] { ++unlocked; };
  Hooks hooks = strict_hooks();
  {
    const auto ours = make(hooks, {.existing = &existing});
    ASSERT_TRUE(ours);
    Chain chain(*ours);
    EXPECT_TRUE(chain.run(*ours));
    EXPECT_GT(locked, 0u);
    EXPECT_EQ(locked, unlocked);

    // The engine's buffer, by its handle.
    const auto region = engine->memory().allocate(RegionUse::kStaging, kMiB);
    ASSERT_TRUE(region.ok());
    const auto place = engine->memory().find(region->address, 1);
    ASSERT_TRUE(place.has_value());
    const auto imported = ours->import_buffer(place->buffer, kMiB);
    ASSERT_TRUE(imported.ok()) << imported.status().message();
    wait(*ours, ours->kernels().fill(*imported, place->offset + 5, 1000, 0x77));
    EXPECT_EQ(region->host[4], std::byte{0});
    EXPECT_EQ(region->host[5], std::byte{0x77});
    EXPECT_EQ(region->host[1004], std::byte{0x77});
    EXPECT_EQ(region->host[1005], std::byte{0});
    ours->memory().free(*imported);
    engine->memory().free(*region);
  }
  existing.queue = nullptr;
  EXPECT_EQ(VulkanDeviceImpl::create({.existing = &existing}).status().code(), Code::kInvalidArgument);
}

TEST_F(Device, ExportsWhatTheDriverCan) {
  const auto device = make(strict_hooks(), {.device = "lavapipe", .exportable = true});
  ASSERT_TRUE(device);
  const auto region = device->memory().allocate(RegionUse::kPool, kMiB);
  ASSERT_TRUE(region.ok());
  const auto fd = device->export_region(*region);
  ASSERT_TRUE(fd.ok()) << fd.status().message();
  EXPECT_GE(*fd, 0);
  EXPECT_EQ(close(*fd), 0);
  device->memory().free(*region);
  const auto timeline = device->export_timeline();
  if (timeline.ok()) {
    EXPECT_EQ(close(*timeline), 0);
  } else {
    EXPECT_EQ(timeline.status().code(), Code::kUnavailable) << timeline.status().message();
  }
  const auto plain = make(strict_hooks());
  const auto other = plain->memory().allocate(RegionUse::kPool, 4096);
  ASSERT_TRUE(other.ok());
  EXPECT_EQ(plain->export_region(*other).status().code(), Code::kUnavailable);
  plain->memory().free(*other);
}

TEST_F(Device, ImportsHostMemoryWithoutACopy) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  constexpr std::uint64_t kBytes = 256 * 1024;
  const std::unique_ptr<std::byte, decltype(&std::free)> memory(
      static_cast<std::byte*>(std::aligned_alloc(4096, kBytes)), &std::free);
  std::memset(memory.get(), 0, kBytes);
  const auto region = device->import_host(memory.get(), kBytes);
  ASSERT_TRUE(region.ok()) << region.status().message();
  wait(*device, device->kernels().fill(*region, 3, 100'000, 0x42));
  EXPECT_EQ(memory.get()[2], std::byte{0});
  EXPECT_EQ(memory.get()[3], std::byte{0x42});
  EXPECT_EQ(memory.get()[100'002], std::byte{0x42});
  EXPECT_EQ(memory.get()[100'003], std::byte{0});
  device->memory().free(*region);
  EXPECT_EQ(device->import_host(memory.get() + 64, 4096).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(device->import_host(memory.get(), 1000).status().code(), Code::kInvalidArgument);
}

TEST_F(Device, DoesWithoutEveryOptionalExtensionWhenToldTo) {
  setenv("FIRN_VULKAN_WITHOUT", "VK_EXT_external_memory_host,VK_KHR_external_memory_fd,VK_EXT_memory_budget", 1);
  const auto device = make(strict_hooks());
  const auto exporting = VulkanDeviceImpl::create({.device = "lavapipe", .exportable = true});
  setenv("FIRN_VULKAN_WITHOUT", "VK_EXT_memory_bugdet", 1);
  const std::string typo = refusal({});
  unsetenv("FIRN_VULKAN_WITHOUT");
  ASSERT_TRUE(device);
  for (const auto& [name, there] : device->report().optional)
    if (name != "VK_KHR_external_semaphore_fd") {
      EXPECT_FALSE(there) << name;
    }
  std::byte page[4096];
  EXPECT_EQ(device->import_host(page, sizeof page).status().code(), Code::kUnavailable);
  EXPECT_EQ(exporting.status().code(), Code::kUnavailable);
  const auto region = device->memory().allocate(RegionUse::kPool, 4096);
  ASSERT_TRUE(region.ok());
  wait(*device, device->kernels().fill(*region, 0, 4096, 1));
  device->memory().free(*region);
  EXPECT_NE(typo.find("VK_EXT_memory_bugdet is not one of VK_EXT_memory_budget"), std::string::npos) << typo;
}

// Subgroups of 4, 8, 32 or 64 threads all work, because no shader knows of subgroups: none declares a capability of
// theirs.
TEST(Shaders, NeedNoSubgroupOfAnySize) {
  constexpr std::uint32_t kHeaderWords = 5, kOpCapability = 17;
  constexpr std::uint32_t kFirstGroup = 61, kLastGroup = 68;  // GroupNonUniform to GroupNonUniformQuad
  const auto of_groups = [](std::uint32_t c) {
    return c == 18 /* Groups */ || c == 4423 /* SubgroupBallotKHR */ || c == 4431 /* SubgroupVoteKHR */ ||
           (c >= kFirstGroup && c <= kLastGroup);
  };
  for (const Shader& shader : {k_append_shader, k_attend_shader, k_copy_shader, k_fill_shader, k_fold_shader}) {
    std::uint32_t capabilities = 0;
    for (std::size_t at = kHeaderWords; at < shader.bytes / 4; at += shader.words[at] >> 16) {
      ASSERT_GT(shader.words[at] >> 16, 0u);
      if ((shader.words[at] & 0xffff) != kOpCapability) break;  // they come first
      ++capabilities;
      EXPECT_FALSE(of_groups(shader.words[at + 1])) << "capability " << shader.words[at + 1];
    }
    EXPECT_GE(capabilities, 2u) << "Shader and PhysicalStorageBufferAddresses at least";
  }
}

TEST_F(Device, LostMeansThatEverythingFailsAndNothingWaits) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  const auto region = device->memory().allocate(RegionUse::kPool, 4096);
  ASSERT_TRUE(region.ok());
  const auto fence = device->kernels().fill(*region, 0, 4096, 1);
  wait(*device, fence);
  device->context().lose();
  EXPECT_TRUE(device->timeline().passed(*fence));
  EXPECT_TRUE(device->timeline().passed(device->timeline().last()));
  EXPECT_EQ(device->timeline().wait(*fence).code(), Code::kIo);
  EXPECT_EQ(device->kernels().fill(*region, 0, 4096, 1).status().code(), Code::kIo);
  EXPECT_EQ(device->memory().allocate(RegionUse::kPool, 4096).status().code(), Code::kIo);
  device->memory().free(*region);
}

TEST_F(Device, FencesPassInOrderAndStrangersAreRefused) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  Arena arena(*device, kMiB);
  std::vector<Fence> fences;
  for (int i = 0; i < 200; ++i) {  // more than may be in flight
    const auto fence = device->kernels().fill(arena.region(), 0, kMiB, static_cast<std::uint8_t>(i));
    ASSERT_TRUE(fence.ok());
    fences.push_back(*fence);
  }
  ASSERT_TRUE(device->timeline().wait(fences.back()).ok());
  for (const Fence& fence : fences) EXPECT_TRUE(device->timeline().passed(fence));
  EXPECT_EQ(arena.region().host[kMiB - 1], std::byte{199});
  EXPECT_TRUE(device->timeline().passed(Fence{}));
  Fence future = fences.back();
  ++future.value;
  Fence foreign = fences.back();
  ++foreign.handle;
  for (const Fence& fence : {Fence{Fence::Kind::kExternal, 1, 1}, future, foreign}) {
    EXPECT_FALSE(device->timeline().passed(fence));
    EXPECT_EQ(device->timeline().wait(fence).code(), Code::kInvalidArgument);
  }
}

}  // namespace
}  // namespace firn::vk::testing
