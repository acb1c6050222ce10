// frame_index.h: which frame is where on the disk. 32 bytes a frame and four of buckets, all allocated at construction.
// Threads: one caller at a time; the tier locks.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "firn/tier.h"

namespace firn::disk {

class FrameIndex {
 public:
  struct Place {
    std::uint32_t segment = 0;  // slot of the tier's table of segments
    std::uint32_t granule = 0;
    std::uint32_t bytes = 0;  // of the frame
    bool claimed = false;     // somebody of this process knows that it is here
    bool operator==(const Place& other) const {
      return segment == other.segment && granule == other.granule && bytes == other.bytes;
    }
  };

  explicit FrameIndex(std::uint32_t max_frames);
  static std::uint64_t table_bytes(std::uint32_t max_frames);

  std::optional<Place> find(const FrameKey& key) const;
  bool full() const { return spare_ == kNone && fresh_ > max_; }
  void add(const FrameKey& key, const Place& place);  // not there before, and not full()
  void move(const FrameKey& key, const Place& place);
  void claim(const FrameKey& key);
  bool remove(const FrameKey& key);
  std::uint32_t count() const { return count_; }
  std::uint32_t unclaimed() const { return unclaimed_; }
  void each(const std::function<void(const FrameKey&, const Place&)>& visit) const;

 private:
  static constexpr std::uint32_t kNone = 0, kClaimed = 1u << 31;
  struct Entry {
    FrameKey key;
    std::uint32_t segment = 0, granule = 0, bytes = 0, next = kNone;  // bytes 0: spare. kClaimed is in segment
  };
  std::uint32_t& bucket(const FrameKey& key) { return buckets_[FrameKeyHash{}(key) & (buckets_.size() - 1)]; }
  std::uint32_t look_up(const FrameKey& key) const;
  void set(Entry& entry, const Place& place);

  std::vector<Entry> entries_;  // [max_frames + 1]; 0 is none
  std::vector<std::uint32_t> buckets_;
  std::uint32_t max_, spare_ = kNone, fresh_ = 1, count_ = 0, unclaimed_ = 0;
};

}  // namespace firn::disk
