// tier_stack.h: which tiers there are, nearest first, and which of them have a frame; who reads or holds it, and who
// goes next. Level 0 is the host's, the only one whose bytes are read and written in place. It keeps the tiers' books
// and calls no tier: FrameStore moves bytes and tells it.
// Threads: the cache's lock. Memory: the constructor allocates everything but what policies say they allocate later.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/cold/tier_link.h"
#include "firn/cold_cache.h"
#include "firn/ids.h"
#include "firn/policy.h"

namespace firn::cold {

using Level = std::uint8_t;
inline constexpr Level kHostLevel = 0;
inline constexpr std::size_t kMaxLevels = static_cast<std::size_t>(TierId::kCount);

// What a policy is told of a frame beside its size.
struct FrameFacts {
  FrameId parent = FrameId::kNone;  // the frame before it in the run that stored it
  std::uint32_t position = 0;
  std::uint32_t tokens = 0;
  std::uint64_t key_hash = 0;
};

class TierStack {
 public:
  struct Tally {
    std::uint64_t bytes = 0, evictions = 0;
    std::uint32_t frames = 0;
  };

  // policies: by level. capacity: FrameIds are below it.
  TierStack(std::vector<TierId> tiers, std::vector<std::unique_ptr<EvictionPolicy>> policies, std::uint32_t capacity);
  static std::uint64_t metadata_bytes(std::uint32_t capacity);

  Level levels() const { return static_cast<Level>(tiers_.size()); }
  TierId tier(Level level) const { return tiers_[level]; }
  const Tally& tally(Level level) const { return tallies_[level]; }

  // A frame's bytes are in no tier yet; after forget() they are in none any more.
  void add(FrameId frame, const FrameKey& key, std::uint64_t bytes, const FrameFacts& facts);
  void forget(FrameId frame);
  void enter(FrameId frame, Level level, Instant now);  // a policy's bad_alloc comes out, and nothing has changed
  void leave(FrameId frame, Level level);
  void evicted(Level level) { ++tallies_[level].evictions; }

  const FrameKey& key(FrameId frame) const { return places_[index(frame)].key; }
  std::uint64_t bytes(FrameId frame) const { return places_[index(frame)].bytes; }
  bool in(FrameId frame, Level level) const { return (places_[index(frame)].levels >> level & 1) != 0; }
  bool nowhere(FrameId frame) const { return places_[index(frame)].levels == 0; }
  std::optional<Level> nearest(FrameId frame) const;

  // Read: nothing of it goes until everybody has finished. Hold: it stays a hit; counted apart, since it lasts.
  void begin_read(FrameId frame) { ++places_[index(frame)].readers; }
  void end_read(FrameId frame);
  bool being_read(FrameId frame) const { return places_[index(frame)].readers != 0; }
  void hold(FrameId frame);
  void release(FrameId frame, Instant now);
  void accessed(FrameId frame, Instant now);
  void missed(std::uint64_t key_hash, Instant now);
  // As if it had come into its tiers now: a run's frames are put in order tail first, so that what comes before a
  // block outlives it.
  void renew(FrameId frame, Instant now);

  // The level's best victim that nobody reads or holds, and, below the host, that is in no nearer tier's way; kNone.
  FrameId victim(Level level) const;
  Status check() const;

 private:
  struct Place {
    FrameKey key;
    std::uint64_t bytes = 0;
    FrameFacts facts;
    std::uint32_t readers = 0, holds = 0;
    std::uint8_t levels = 0;
    bool in_use = false;
  };
  void insert(FrameId frame, Level level, Instant now);

  std::vector<TierId> tiers_;
  std::vector<std::unique_ptr<EvictionPolicy>> policies_;
  std::vector<Place> places_;
  std::array<Tally, kMaxLevels> tallies_{};
};

}  // namespace firn::cold
