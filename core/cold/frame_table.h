// frame_table.h: which frames there are, what each holds, and which name each block or state of it has. Where the bytes
// of a frame are is TierStack's.
// Threads: the cache's lock. Memory: the constructor allocates everything.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "firn/cold_cache.h"
#include "firn/ids.h"

namespace firn::cold {

enum class NameId : std::uint32_t { kNone = 0 };

struct Name {
  Key key;
  FrameId frame = FrameId::kNone;
  NameId next = NameId::kNone;  // in its bucket, or among the spares
  std::uint32_t pins = 0;       // pin() less unpin()
  std::uint8_t place = 0;       // which block of the frame
  ColdKind kind = ColdKind::kBlock;
  bool bound = false;  // served only while the other kind has this name too
  bool in_use = false;
};

struct FrameRecord {
  FrameLabel label;                              // of K/V: what its header must say
  std::array<NameId, kMaxExtentBlocks> names{};  // by place; kNone: that one was erased
  std::uint64_t raw_bytes = 0;
  FrameId next_free = FrameId::kNone;
  std::uint8_t block_count = 0;
  std::uint8_t named = 0;  // names left; 0: nobody can find it, it goes when its last reader has finished
  ColdKind kind = ColdKind::kBlock;
  bool in_use = false;
};

class FrameTable {
 public:
  FrameTable(std::uint32_t max_frames, std::uint32_t max_names);
  static std::uint64_t metadata_bytes(std::uint32_t max_frames, std::uint32_t max_names);

  NameId find(ColdKind kind, const Key& key) const;
  Name& name(NameId id) { return names_[static_cast<std::uint32_t>(id)]; }
  const Name& name(NameId id) const { return names_[static_cast<std::uint32_t>(id)]; }
  const FrameRecord& frame(FrameId id) const { return frames_[index(id)]; }
  bool in_use(FrameId id) const { return frames_[index(id)].in_use; }

  bool room(std::uint32_t names) const { return spare_frame_ != FrameId::kNone && name_count_ + names <= max_names_; }
  // room(names of it) was true.
  FrameId add(const FrameRecord& facts);
  // The name was not there before.
  NameId add_name(FrameId frame, std::uint8_t place, const Key& key, bool bound);
  // Nobody finds it by this name any more.
  void forget(NameId id);
  void set_raw_bytes(FrameId id, std::uint64_t bytes) { frames_[index(id)].raw_bytes = bytes; }
  void remove(FrameId id);  // all names forgotten

  std::uint32_t frame_count() const { return frame_count_; }
  std::uint32_t count(ColdKind kind) const { return counts_[static_cast<std::size_t>(kind)]; }
  std::uint32_t pinned() const { return pinned_; }
  void pin(NameId id) { pinned_ += name(id).pins++ == 0; }
  bool unpin(NameId id);
  std::uint32_t capacity() const { return static_cast<std::uint32_t>(frames_.size()); }
  Status check() const;

 private:
  std::uint32_t bucket(ColdKind kind, const Key& key) const;

  std::vector<FrameRecord> frames_;
  std::vector<Name> names_;  // [max_names + 1]; 0 is none
  std::vector<NameId> buckets_;
  FrameId spare_frame_ = FrameId::kNone;
  NameId spare_name_ = NameId::kNone;
  std::uint32_t max_names_ = 0, frame_count_ = 0, name_count_ = 0, pinned_ = 0;
  std::array<std::uint32_t, 2> counts_{};  // names by kind
};

}  // namespace firn::cold
