// memory.h: regions of device memory, one buffer each. Large and few: the manager cuts its pool out of regions, so a
// suballocator would only be a second one.
// Threads:  any; each call takes a short lock.
// Lifetime: regions that were never freed go back on destruction, and are reported: somebody leaked them.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <optional>

#include "core/vk/context.h"
#include "core/vk/hazards.h"
#include "core/vk/unique.h"

namespace firn::vk {

// A buffer with its memory. Members in creation order.
struct Block {
  UniqueMemory memory;  // null: somebody else's
  UniqueBuffer owned;   // null: somebody else's
  VkBuffer buffer{};
  DeviceAddress address = 0;
  std::uint64_t offset = 0;  // of the address within the buffer: drivers align buffers as they like, we to pages
  std::uint64_t bytes = 0;   // of the region; the buffer has room behind it
  std::byte* map = nullptr;
  std::uint64_t charged = 0;
  std::uint32_t heap = 0;
};

class DeviceMemory final : public Memory {
 public:
  DeviceMemory(Context& context, const VulkanOptions& options);
  ~DeviceMemory() override;
  Info info() const override;
  Result<Region> allocate(RegionUse use, std::uint64_t bytes) override;
  void free(const Region& region) override;

  // Zeroes what the host cannot reach; set once, before the first allocate.
  void set_zero(std::function<Status(const Region&)> zero) { zero_ = std::move(zero); }
  Result<Region> import_buffer(VkBuffer buffer, std::uint64_t bytes);
  Result<Region> import_host(std::byte* memory, std::uint64_t bytes) override;
  // What the probe at start-up found; a failure is the answer to every later import.
  void set_import_status(Status status) { import_status_ = std::move(status); }
  Result<int> export_region(const Region& region);

  // A block that is nobody's region: argument tables.
  Result<Block> allocate_host_block(std::uint64_t bytes);
  void release(const Block& block);

  // The buffer that holds an address, and where in it.
  struct Place {
    VkBuffer buffer{};
    std::uint64_t offset = 0;
  };
  std::optional<Place> find(DeviceAddress address, std::uint64_t bytes) const;
  // False names a range that does not lie within living regions.
  bool covers(const RangeSet& ranges, ByteRange& outside) const;
  // For tests of what happens without memory: the n-th allocation from now fails (1: the next); 0: none does.
  void fail_allocation(std::uint64_t countdown);
  std::uint64_t region_bytes() const;

 private:
  struct Candidate {
    std::uint32_t type, heap;
  };
  std::vector<Candidate> candidates(RegionUse use, std::uint32_t allowed) const;
  std::uint64_t heap_budget(std::uint32_t heap) const;
  std::uint64_t device_budget() const;
  Result<Block> make_block(RegionUse use, std::uint64_t bytes, bool exportable);
  Result<Region> publish(Block block, bool host_visible);

  Context& context_;
  const bool exportable_;
  const std::uint64_t reserve_bytes_;
  std::function<Status(const Region&)> zero_;
  Status import_status_;
  mutable std::mutex mutex_;
  std::map<DeviceAddress, Block> blocks_;
  std::uint64_t spent_[VK_MAX_MEMORY_HEAPS] = {};  // by us: the truth that a budget query only hints at
  std::uint64_t fail_countdown_ = 0;
};

}  // namespace firn::vk
