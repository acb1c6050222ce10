// owned_region.h: memory of a device that goes back to it with whoever holds it. The holder sees to it that the last
// user's fence has passed, and that the device lives longer.
#pragma once

#include <utility>

#include "firn/device.h"

namespace firn {

class OwnedRegion {
 public:
  OwnedRegion() = default;
  OwnedRegion(Memory& memory, const Region& region) : memory_(&memory), region_(region) {}
  // Of 0 bytes: none, which is no refusal.
  static Result<OwnedRegion> allocate(Memory& memory, RegionUse use, std::uint64_t bytes) {
    if (bytes == 0) return OwnedRegion();
    FIRN_ASSIGN(const Region region, memory.allocate(use, bytes));
    return OwnedRegion(memory, region);
  }
  OwnedRegion(OwnedRegion&& from) noexcept
      : memory_(std::exchange(from.memory_, nullptr)), region_(std::exchange(from.region_, {})) {}
  OwnedRegion& operator=(OwnedRegion&& from) noexcept {
    if (this == &from) return *this;
    give_back();
    memory_ = std::exchange(from.memory_, nullptr);
    region_ = std::exchange(from.region_, {});
    return *this;
  }
  ~OwnedRegion() { give_back(); }

  const Region& operator*() const { return region_; }
  const Region* operator->() const { return &region_; }
  void give_back() {
    if (memory_ != nullptr) memory_->free(region_);
    memory_ = nullptr;
    region_ = {};
  }

 private:
  Memory* memory_ = nullptr;  // null: none
  Region region_;
};

}  // namespace firn
