#include "storage/tier/disk/frame_index.h"

#include <algorithm>
#include <bit>

#include "core/base/check.h"

namespace firn::disk {
namespace {

std::size_t bucket_count(std::uint32_t max_frames) { return std::bit_ceil(std::max<std::size_t>(max_frames, 16)); }

}  // namespace

FrameIndex::FrameIndex(std::uint32_t max_frames)
    : entries_(std::size_t{max_frames} + 1), buckets_(bucket_count(max_frames), kNone), max_(max_frames) {}

std::uint64_t FrameIndex::table_bytes(std::uint32_t max_frames) {
  return (std::uint64_t{max_frames} + 1) * sizeof(Entry) + bucket_count(max_frames) * sizeof(std::uint32_t);
}

std::uint32_t FrameIndex::look_up(const FrameKey& key) const {
  std::uint32_t at = buckets_[FrameKeyHash{}(key) & (buckets_.size() - 1)];
  while (at != kNone && entries_[at].key != key) at = entries_[at].next;
  return at;
}

std::optional<FrameIndex::Place> FrameIndex::find(const FrameKey& key) const {
  const std::uint32_t at = look_up(key);
  if (at == kNone) return std::nullopt;
  const Entry& entry = entries_[at];
  return Place{.segment = entry.segment & ~kClaimed,
               .granule = entry.granule,
               .bytes = entry.bytes,
               .claimed = (entry.segment & kClaimed) != 0};
}

void FrameIndex::set(Entry& entry, const Place& place) {
  FIRN_CHECK(place.bytes != 0 && (place.segment & kClaimed) == 0);
  entry.segment = place.segment | (place.claimed ? kClaimed : 0);
  entry.granule = place.granule;
  entry.bytes = place.bytes;
  unclaimed_ += !place.claimed;
}

void FrameIndex::add(const FrameKey& key, const Place& place) {
  FIRN_CHECK(!full());
  std::uint32_t at = spare_;
  if (at != kNone)
    spare_ = entries_[at].next;
  else
    at = fresh_++;
  Entry& entry = entries_[at];
  entry.key = key;
  set(entry, place);
  entry.next = bucket(key);
  bucket(key) = at;
  ++count_;
}

void FrameIndex::move(const FrameKey& key, const Place& place) {
  const std::uint32_t at = look_up(key);
  FIRN_CHECK(at != kNone);
  unclaimed_ -= (entries_[at].segment & kClaimed) == 0;
  set(entries_[at], place);
}

void FrameIndex::claim(const FrameKey& key) {
  const std::uint32_t at = look_up(key);
  if (at == kNone || (entries_[at].segment & kClaimed) != 0) return;
  entries_[at].segment |= kClaimed;
  --unclaimed_;
}

bool FrameIndex::remove(const FrameKey& key) {
  std::uint32_t* link = &bucket(key);
  while (*link != kNone && entries_[*link].key != key) link = &entries_[*link].next;
  if (*link == kNone) return false;
  const std::uint32_t at = *link;
  Entry& entry = entries_[at];
  *link = entry.next;
  unclaimed_ -= (entry.segment & kClaimed) == 0;
  entry = {};
  entry.next = spare_;
  spare_ = at;
  --count_;
  return true;
}

void FrameIndex::each(const std::function<void(const FrameKey&, const Place&)>& visit) const {
  for (std::uint32_t at = 1; at < fresh_; ++at)
    if (const Entry& entry = entries_[at]; entry.bytes != 0)
      visit(entry.key, Place{.segment = entry.segment & ~kClaimed,
                             .granule = entry.granule,
                             .bytes = entry.bytes,
                             .claimed = (entry.segment & kClaimed) != 0});
}

}  // namespace firn::disk
