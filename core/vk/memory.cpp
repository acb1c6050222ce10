#include "core/vk/memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "core/base/check.h"

namespace firn::vk {
namespace {

// Behind every region: the 64 readable bytes of the promise, a page for drivers whose vector loads reach further, and a
// page to align the region's beginning with.
constexpr std::uint64_t kTailBytes = 64 + 2 * kPageBytes;
constexpr std::uint64_t kMinReserve = 128u << 20;
constexpr VkBufferUsageFlags kUsage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                                      VK_BUFFER_USAGE_TRANSFER_DST_BIT | VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT;
constexpr VkMemoryPropertyFlags kLocal = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
constexpr VkMemoryPropertyFlags kVisible = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
constexpr VkMemoryPropertyFlags kCached = VK_MEMORY_PROPERTY_HOST_CACHED_BIT;

constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t to) { return (value + to - 1) / to * to; }

}  // namespace

DeviceMemory::DeviceMemory(Context& context, const VulkanOptions& options)
    : context_(context), exportable_(options.exportable && context.exports), reserve_bytes_(options.reserve_bytes) {}

DeviceMemory::~DeviceMemory() {
  for (const auto& [address, block] : blocks_)
    context_.complain(fmt::format("firn: a region of {} bytes was never freed", block.bytes));
}

// What may be in a heap in all, by us: the driver's budget where it tells one, never more than the heap, less a reserve
// for others and for the driver itself.
std::uint64_t DeviceMemory::heap_budget(std::uint32_t heap) const {
  if (context_.hooks.heap_bytes != 0) return context_.hooks.heap_bytes;
  const std::uint64_t size = context_.memory.memoryHeaps[heap].size;
  std::uint64_t budget = size;
  if (context_.has_budget) {
    VkPhysicalDeviceMemoryBudgetPropertiesEXT told{};
    told.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT;
    VkPhysicalDeviceMemoryProperties2 properties{};
    properties.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2;
    properties.pNext = &told;
    context_.instance_api.GetPhysicalDeviceMemoryProperties2(context_.physical, &properties);
    // heapBudget counts what this process has; counters of some drivers are wrong, so it only ever lowers.
    if (told.heapBudget[heap] != 0) budget = std::min(budget, told.heapBudget[heap]);
  }
  const std::uint64_t reserve = reserve_bytes_ != 0 ? reserve_bytes_ : std::max(kMinReserve, budget / 20);
  return budget > reserve ? budget - reserve : 0;
}

std::uint64_t DeviceMemory::device_budget() const {
  std::uint64_t sum = 0;
  for (std::uint32_t heap = 0; heap < context_.memory.memoryHeapCount; ++heap)
    if ((context_.memory.memoryHeaps[heap].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) != 0) sum += heap_budget(heap);
  return sum;
}

Memory::Info DeviceMemory::info() const {
  const std::uint64_t largest = std::min(context_.limits.allocation_bytes, context_.limits.buffer_bytes);
  return {.name = context_.report.name,
          .host_visible = context_.unified && !context_.hooks.hide_host_memory,
          .max_region_bytes = largest - round_up(kTailBytes, kPageBytes),
          .budget_bytes = device_budget()};
}

// Memory types in the order of preference; of equals, the heap with the most room.
std::vector<DeviceMemory::Candidate> DeviceMemory::candidates(RegionUse use, std::uint32_t allowed) const {
  const VkPhysicalDeviceMemoryProperties& memory = context_.memory;
  const auto score = [&](std::uint32_t type) {
    const VkMemoryPropertyFlags flags = memory.memoryTypes[type].propertyFlags;
    const bool local = (flags & kLocal) != 0, visible = (flags & kVisible) == kVisible, cached = (flags & kCached) != 0;
    if ((flags & (VK_MEMORY_PROPERTY_PROTECTED_BIT | VK_MEMORY_PROPERTY_LAZILY_ALLOCATED_BIT)) != 0) return -1;
    if (use == RegionUse::kStaging) {
      if (!visible) return -1;
      return (cached ? 4 : 0) + (local == context_.unified ? 2 : 0);  // not in the card's small window
    }
    if (!local) return -1;
    if (context_.unified) return visible ? (cached ? 3 : 2) : 1;
    return visible ? 1 : 2;
  };
  std::vector<Candidate> out;
  for (std::uint32_t type = 0; type < memory.memoryTypeCount; ++type)
    if ((allowed >> type & 1u) != 0 && score(type) >= 0) out.push_back({type, memory.memoryTypes[type].heapIndex});
  const auto room = [&](const Candidate& c) {
    const std::uint64_t budget = heap_budget(c.heap);
    return budget > spent_[c.heap] ? budget - spent_[c.heap] : 0;
  };
  std::stable_sort(out.begin(), out.end(), [&](const Candidate& a, const Candidate& b) {
    return score(a.type) != score(b.type) ? score(a.type) > score(b.type) : room(a) > room(b);
  });
  return out;
}

Result<Block> DeviceMemory::make_block(RegionUse use, std::uint64_t bytes, bool exportable) {
  const DeviceApi& api = context_.api;
  if (context_.lost()) return Context::lost_status();
  Block block;
  block.bytes = bytes;
  VkExternalMemoryBufferCreateInfo external{};
  external.sType = VK_STRUCTURE_TYPE_EXTERNAL_MEMORY_BUFFER_CREATE_INFO;
  external.handleTypes = VK_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD_BIT;
  VkBufferCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO;
  info.pNext = exportable ? &external : nullptr;
  info.size = round_up(bytes + kTailBytes, kPageBytes);
  info.usage = kUsage;
  VkBuffer buffer{};
  FIRN_TRY(context_.check(api.CreateBuffer(context_.device, &info, nullptr, &buffer), "vkCreateBuffer"));
  block.owned = UniqueBuffer(buffer, {&api, context_.device});
  block.buffer = buffer;
  VkMemoryRequirements needs{};
  api.GetBufferMemoryRequirements(context_.device, buffer, &needs);

  std::lock_guard lock(mutex_);
  const bool injected = fail_countdown_ != 0 && --fail_countdown_ == 0;
  std::string refusal = injected ? "injected failure" : "no heap has room";
  for (const Candidate& candidate : candidates(use, needs.memoryTypeBits)) {
    if (injected) break;
    if (needs.size > context_.limits.allocation_bytes ||
        spent_[candidate.heap] + needs.size > heap_budget(candidate.heap))
      continue;
    VkExportMemoryAllocateInfo export_info{};
    export_info.sType = VK_STRUCTURE_TYPE_EXPORT_MEMORY_ALLOCATE_INFO;
    export_info.handleTypes = VK_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD_BIT;
    VkMemoryAllocateFlagsInfo flags{};
    flags.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO;
    flags.pNext = exportable ? &export_info : nullptr;
    flags.flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT;
    VkMemoryAllocateInfo allocate_info{};
    allocate_info.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO;
    allocate_info.pNext = &flags;
    allocate_info.allocationSize = needs.size;
    allocate_info.memoryTypeIndex = candidate.type;
    VkDeviceMemory memory{};
    const VkResult result = api.AllocateMemory(context_.device, &allocate_info, nullptr, &memory);
    if (result == VK_ERROR_DEVICE_LOST) return context_.check(result, "vkAllocateMemory");
    if (result < 0) {  // another heap may have room that this one only said it had
      refusal = to_string(result);
      continue;
    }
    block.memory = UniqueMemory(memory, {&api, context_.device});
    FIRN_TRY(context_.check(api.BindBufferMemory(context_.device, buffer, memory, 0), "vkBindBufferMemory"));
    if ((context_.memory.memoryTypes[candidate.type].propertyFlags & kVisible) == kVisible &&
        (use == RegionUse::kStaging || context_.unified)) {
      void* map = nullptr;
      FIRN_TRY(context_.check(api.MapMemory(context_.device, memory, 0, VK_WHOLE_SIZE, 0, &map), "vkMapMemory"));
      block.map = static_cast<std::byte*>(map);
    }
    VkBufferDeviceAddressInfo address{};
    address.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO;
    address.buffer = buffer;
    const DeviceAddress base = api.GetBufferDeviceAddress(context_.device, &address);
    block.address = round_up(base, kPageBytes);
    block.offset = block.address - base;
    if (block.map) block.map += block.offset;
    block.heap = candidate.heap;
    block.charged = needs.size;
    spent_[candidate.heap] += needs.size;
    return block;
  }
  return Status(Code::kNoSpace, fmt::format("{} refused {} bytes of memory ({}); lower the budget",
                                            context_.report.name, bytes, refusal));
}

Result<Region> DeviceMemory::publish(Block block, bool host_visible) {
  const Region region{block.address, block.bytes, host_visible ? block.map : nullptr};
  std::lock_guard lock(mutex_);
  FIRN_CHECK(blocks_.emplace(region.address, std::move(block)).second);
  return region;
}

Result<Region> DeviceMemory::allocate(RegionUse use, std::uint64_t bytes) {
  const std::uint64_t largest = info().max_region_bytes;
  if (bytes == 0 || bytes > largest)
    return Status(Code::kInvalidArgument, fmt::format("a region of {} bytes: must be 1 to {}", bytes, largest));
  FIRN_ASSIGN(Block block, make_block(use, bytes, exportable_ && use == RegionUse::kPool));
  std::byte* map = block.map;
  const bool visible = use == RegionUse::kStaging || !context_.hooks.hide_host_memory;
  FIRN_ASSIGN(const Region region, publish(std::move(block), visible));
  if (!context_.hooks.zero_regions) return region;
  if (map) {
    std::memset(map, 0, bytes);
  } else if (const Status zeroed = zero_(region); !zeroed.ok()) {
    free(region);
    return zeroed;
  }
  return region;
}

void DeviceMemory::free(const Region& region) {
  std::lock_guard lock(mutex_);
  const auto it = blocks_.find(region.address);
  FIRN_CHECK(it != blocks_.end() && it->second.bytes == region.bytes);  // ours, whole, and not freed before
  spent_[it->second.heap] -= it->second.charged;
  blocks_.erase(it);
}

Result<Block> DeviceMemory::allocate_host_block(std::uint64_t bytes) {
  return make_block(RegionUse::kStaging, bytes, false);
}

void DeviceMemory::release(const Block& block) {
  std::lock_guard lock(mutex_);
  spent_[block.heap] -= block.charged;
}

Result<Region> DeviceMemory::import_buffer(VkBuffer buffer, std::uint64_t bytes) {
  Block block;
  block.buffer = buffer;
  block.bytes = bytes;
  VkBufferDeviceAddressInfo address{};
  address.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO;
  address.buffer = buffer;
  block.address = context_.api.GetBufferDeviceAddress(context_.device, &address);
  if (block.address == 0 || bytes == 0)
    return Status(Code::kInvalidArgument,
                  "import_buffer: the buffer has no address; make it with VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT");
  return publish(std::move(block), false);
}

Result<Region> DeviceMemory::import_host(std::byte* memory, std::uint64_t bytes) {
  FIRN_TRY(import_status_);
  const DeviceApi& api = context_.api;
  const std::uint64_t alignment = context_.limits.import_alignment;
  if (alignment == 0 || !api.GetMemoryHostPointerPropertiesEXT)
    return Status(Code::kUnavailable, context_.report.name + " cannot import host memory; use a staging region");
  // Some drivers take what they must not: we check ourselves.
  if (bytes == 0 || reinterpret_cast<std::uintptr_t>(memory) % alignment != 0 || bytes % alignment != 0)
    return Status(Code::kInvalidArgument,
                  fmt::format("import_host: address and size must be multiples of {}", alignment));
  constexpr auto kHandle = VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT;
  VkMemoryHostPointerPropertiesEXT pointer{};
  pointer.sType = VK_STRUCTURE_TYPE_MEMORY_HOST_POINTER_PROPERTIES_EXT;
  if (api.GetMemoryHostPointerPropertiesEXT(context_.device, kHandle, memory, &pointer) < 0)
    return Status(Code::kUnavailable, context_.report.name + " refused to import host memory; use a staging region");
  VkExternalMemoryBufferCreateInfo external{};
  external.sType = VK_STRUCTURE_TYPE_EXTERNAL_MEMORY_BUFFER_CREATE_INFO;
  external.handleTypes = kHandle;
  VkBufferCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO;
  info.pNext = &external;
  info.size = bytes;
  info.usage = kUsage;
  Block block;
  FIRN_TRY(context_.check(api.CreateBuffer(context_.device, &info, nullptr, &block.buffer), "vkCreateBuffer"));
  block.owned = UniqueBuffer(block.buffer, {&api, context_.device});
  VkMemoryRequirements needs{};
  api.GetBufferMemoryRequirements(context_.device, block.buffer, &needs);
  const std::uint32_t types = needs.memoryTypeBits & pointer.memoryTypeBits;
  VkImportMemoryHostPointerInfoEXT import{};
  import.sType = VK_STRUCTURE_TYPE_IMPORT_MEMORY_HOST_POINTER_INFO_EXT;
  import.handleType = kHandle;
  import.pHostPointer = memory;
  VkMemoryAllocateFlagsInfo flags{};
  flags.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO;
  flags.pNext = &import;
  flags.flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT;
  VkMemoryAllocateInfo allocate_info{};
  allocate_info.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO;
  allocate_info.pNext = &flags;
  allocate_info.allocationSize = bytes;
  for (std::uint32_t type = 0; type < context_.memory.memoryTypeCount; ++type) {
    if ((types >> type & 1u) == 0 || needs.size > bytes) continue;
    if ((context_.memory.memoryTypes[type].propertyFlags & VK_MEMORY_PROPERTY_HOST_COHERENT_BIT) == 0) continue;
    allocate_info.memoryTypeIndex = type;
    VkDeviceMemory imported{};
    if (api.AllocateMemory(context_.device, &allocate_info, nullptr, &imported) < 0) continue;
    block.memory = UniqueMemory(imported, {&api, context_.device});
    FIRN_TRY(context_.check(api.BindBufferMemory(context_.device, block.buffer, imported, 0), "vkBindBufferMemory"));
    VkBufferDeviceAddressInfo address{};
    address.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO;
    address.buffer = block.buffer;
    block.address = api.GetBufferDeviceAddress(context_.device, &address);
    block.bytes = bytes;
    block.map = memory;
    return publish(std::move(block), true);
  }
  return Status(Code::kUnavailable, context_.report.name + " refused to import host memory; use a staging region");
}

Result<int> DeviceMemory::export_region(const Region& region) {
  std::lock_guard lock(mutex_);
  const auto it = blocks_.find(region.address);
  if (!exportable_ || !context_.api.GetMemoryFdKHR || it == blocks_.end() || !it->second.memory)
    return Status(Code::kUnavailable, "export_region: only pool regions of a device made exportable can be");
  VkMemoryGetFdInfoKHR info{};
  info.sType = VK_STRUCTURE_TYPE_MEMORY_GET_FD_INFO_KHR;
  info.memory = it->second.memory.get();
  info.handleType = VK_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD_BIT;
  int fd = -1;
  FIRN_TRY(context_.check(context_.api.GetMemoryFdKHR(context_.device, &info, &fd), "vkGetMemoryFdKHR"));
  return fd;
}

std::optional<DeviceMemory::Place> DeviceMemory::find(DeviceAddress address, std::uint64_t bytes) const {
  std::lock_guard lock(mutex_);
  auto it = blocks_.upper_bound(address);
  if (it == blocks_.begin()) return std::nullopt;
  --it;
  const std::uint64_t offset = address - it->first;
  if (offset > it->second.bytes || bytes > it->second.bytes - offset) return std::nullopt;
  return Place{it->second.buffer, it->second.offset + offset};
}

bool DeviceMemory::covers(const RangeSet& ranges, ByteRange& outside) const {
  for (const ByteRange& range : ranges.ranges()) {
    DeviceAddress at = range.begin;
    while (at < range.end) {  // a range may span neighbouring regions
      std::lock_guard lock(mutex_);
      auto it = blocks_.upper_bound(at);
      if (it == blocks_.begin() || (--it, at >= it->first + it->second.bytes)) {
        outside = range;
        return false;
      }
      at = it->first + it->second.bytes;
    }
  }
  return true;
}

void DeviceMemory::fail_allocation(std::uint64_t countdown) {
  std::lock_guard lock(mutex_);
  fail_countdown_ = countdown;
}

std::uint64_t DeviceMemory::region_bytes() const {
  std::lock_guard lock(mutex_);
  std::uint64_t sum = 0;
  for (const auto& [address, block] : blocks_) sum += block.bytes;
  return sum;
}

}  // namespace firn::vk
