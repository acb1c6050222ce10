#include "core/cold/frame_table.h"

#include <fmt/format.h>

#include <bit>

#include "core/base/check.h"

namespace firn::cold {

FrameTable::FrameTable(std::uint32_t max_frames, std::uint32_t max_names)
    : frames_(max_frames),
      names_(std::size_t{max_names} + 1),
      buckets_(std::bit_ceil(max_names)),
      max_names_(max_names) {
  for (std::uint32_t i = max_frames; i-- > 0;) {
    frames_[i].next_free = spare_frame_;
    spare_frame_ = FrameId{i};
  }
  for (std::uint32_t i = max_names; i > 0; --i) {
    names_[i].next = spare_name_;
    spare_name_ = NameId{i};
  }
}

std::uint64_t FrameTable::metadata_bytes(std::uint32_t max_frames, std::uint32_t max_names) {
  return std::uint64_t{max_frames} * sizeof(FrameRecord) + (std::uint64_t{max_names} + 1) * sizeof(Name) +
         std::uint64_t{std::bit_ceil(max_names)} * sizeof(NameId);
}

std::uint32_t FrameTable::bucket(ColdKind kind, const Key& key) const {
  // A key is a hash already, but a caller may make up keys of its own.
  const std::uint64_t mixed =
      (static_cast<std::uint64_t>(KeyHash{}(key)) + static_cast<std::uint64_t>(kind)) * 0x9e3779b97f4a7c15u;
  return static_cast<std::uint32_t>((mixed >> 32) & (buckets_.size() - 1));
}

NameId FrameTable::find(ColdKind kind, const Key& key) const {
  NameId id = buckets_[bucket(kind, key)];
  while (id != NameId::kNone && (name(id).kind != kind || name(id).key != key)) id = name(id).next;
  return id;
}

FrameId FrameTable::add(const FrameRecord& facts) {
  FIRN_CHECK(spare_frame_ != FrameId::kNone);
  const FrameId id = spare_frame_;
  FrameRecord& record = frames_[index(id)];
  spare_frame_ = record.next_free;
  record = facts;
  record.names = {};
  record.named = 0;
  record.in_use = true;
  ++frame_count_;
  return id;
}

NameId FrameTable::add_name(FrameId frame, std::uint8_t place, const Key& key, bool bound) {
  FrameRecord& record = frames_[index(frame)];
  FIRN_CHECK(record.in_use && place < kMaxExtentBlocks && record.names[place] == NameId::kNone);
  FIRN_CHECK(spare_name_ != NameId::kNone);
  const NameId id = spare_name_;
  Name& added = name(id);
  spare_name_ = added.next;
  NameId& head = buckets_[bucket(record.kind, key)];
  added = {.key = key,
           .frame = frame,
           .next = head,
           .pins = 0,
           .place = place,
           .kind = record.kind,
           .bound = bound,
           .in_use = true};
  head = id;
  record.names[place] = id;
  ++record.named;
  ++name_count_;
  ++counts_[static_cast<std::size_t>(record.kind)];
  return id;
}

void FrameTable::forget(NameId id) {
  Name& gone = name(id);
  FIRN_CHECK(gone.in_use);
  NameId* link = &buckets_[bucket(gone.kind, gone.key)];
  while (*link != id) link = &name(*link).next;
  *link = gone.next;
  FrameRecord& record = frames_[index(gone.frame)];
  record.names[gone.place] = NameId::kNone;
  --record.named;
  --name_count_;
  --counts_[static_cast<std::size_t>(gone.kind)];
  pinned_ -= gone.pins != 0;
  gone = {};
  gone.next = spare_name_;
  spare_name_ = id;
}

void FrameTable::remove(FrameId id) {
  FrameRecord& record = frames_[index(id)];
  FIRN_CHECK(record.in_use && record.named == 0);
  record = {};
  record.next_free = spare_frame_;
  spare_frame_ = id;
  --frame_count_;
}

bool FrameTable::unpin(NameId id) {
  Name& held = name(id);
  if (held.pins == 0) return false;
  pinned_ -= --held.pins == 0;
  return true;
}

Status FrameTable::check() const {
  const auto bad = [](std::string what) { return Status(Code::kCorrupt, "frame table: " + std::move(what)); };
  std::uint32_t names = 0, pinned = 0, frames = 0, named = 0;
  for (std::size_t b = 0; b < buckets_.size(); ++b)
    for (NameId id = buckets_[b]; id != NameId::kNone; id = name(id).next) {
      const Name& one = name(id);
      if (!one.in_use || bucket(one.kind, one.key) != b) return bad(fmt::format("name {} is in a wrong bucket", names));
      const FrameRecord& record = frames_[index(one.frame)];
      if (!record.in_use || record.names[one.place] != id || record.kind != one.kind)
        return bad(fmt::format("frame {} does not know a name of its place {}", index(one.frame), one.place));
      if (++names > max_names_) return bad("more names than there is room for");
      pinned += one.pins != 0;
    }
  for (const FrameRecord& record : frames_) {
    frames += record.in_use;
    named += record.named;
  }
  if (names != name_count_ || named != names || counts_[0] + counts_[1] != names)
    return bad(fmt::format("{} names in buckets, {} in frames, {} counted", names, named, name_count_));
  if (pinned != pinned_) return bad(fmt::format("{} names are pinned, {} counted", pinned, pinned_));
  if (frames != frame_count_) return bad(fmt::format("{} frames, {} counted", frames, frame_count_));
  return {};
}

}  // namespace firn::cold
