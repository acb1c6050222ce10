#include "core/cold/tier_stack.h"

#include <fmt/format.h>

#include <new>
#include <utility>

#include "core/base/check.h"

namespace firn::cold {

TierStack::TierStack(std::vector<TierId> tiers, std::vector<std::unique_ptr<EvictionPolicy>> policies,
                     std::uint32_t capacity)
    : tiers_(std::move(tiers)), policies_(std::move(policies)), places_(capacity) {
  FIRN_CHECK(tiers_.size() == policies_.size() && !tiers_.empty() && tiers_.size() <= kMaxLevels);
}

std::uint64_t TierStack::metadata_bytes(std::uint32_t capacity) { return std::uint64_t{capacity} * sizeof(Place); }

void TierStack::add(FrameId frame, const FrameKey& key, std::uint64_t bytes, const FrameFacts& facts) {
  Place& place = places_[index(frame)];
  FIRN_CHECK(!place.in_use);
  place = {.key = key, .bytes = bytes, .facts = facts, .readers = 0, .holds = 0, .levels = 0, .in_use = true};
}

void TierStack::forget(FrameId frame) {
  Place& place = places_[index(frame)];
  FIRN_CHECK(place.in_use && place.levels == 0 && place.readers == 0 && place.holds == 0);
  place = {};
}

void TierStack::insert(FrameId frame, Level level, Instant now) {
  const Place& place = places_[index(frame)];
  const FrameFacts& facts = place.facts;
  policies_[level]->on_insert({.id = BlockId{index(frame)},
                               .parent = BlockId{index(facts.parent)},
                               .name_space = 0,
                               .position = facts.position,
                               .bytes = place.bytes,
                               .recompute_cost = static_cast<float>(facts.tokens),
                               .has_copy = (place.levels >> (level + 1)) != 0,
                               .key_hash = facts.key_hash},
                              now);
}

void TierStack::enter(FrameId frame, Level level, Instant now) {
  Place& place = places_[index(frame)];
  FIRN_CHECK(place.in_use && !in(frame, level));
  place.levels = static_cast<std::uint8_t>(place.levels | 1u << level);
  tallies_[level].bytes += place.bytes;
  ++tallies_[level].frames;
  if (place.holds != 0) return;
  try {
    insert(frame, level, now);
    for (Level above = 0; above < level; ++above)
      if (in(frame, above)) policies_[above]->on_access(BlockId{index(frame)}, Access::kCopied, now);
  } catch (const std::bad_alloc&) {
    leave(frame, level);
    throw;
  }
}

void TierStack::leave(FrameId frame, Level level) {
  Place& place = places_[index(frame)];
  FIRN_CHECK(place.in_use && in(frame, level));
  policies_[level]->on_remove(BlockId{index(frame)});
  place.levels = static_cast<std::uint8_t>(place.levels & ~(1u << level));
  tallies_[level].bytes -= place.bytes;
  --tallies_[level].frames;
  for (Level above = 0; above < level; ++above)
    if (in(frame, above) && (place.levels >> (above + 1)) == 0)
      policies_[above]->on_access(BlockId{index(frame)}, Access::kCopyLost, {});
}

std::optional<Level> TierStack::nearest(FrameId frame) const {
  for (Level level = 0; level < levels(); ++level)
    if (in(frame, level)) return level;
  return std::nullopt;
}

void TierStack::end_read(FrameId frame) {
  Place& place = places_[index(frame)];
  FIRN_CHECK(place.readers != 0);
  --place.readers;
}

void TierStack::hold(FrameId frame) {
  if (places_[index(frame)].holds++ != 0) return;
  for (Level level = 0; level < levels(); ++level)
    if (in(frame, level)) policies_[level]->on_remove(BlockId{index(frame)});
}

void TierStack::release(FrameId frame, Instant now) {
  Place& place = places_[index(frame)];
  FIRN_CHECK(place.holds != 0);
  if (--place.holds != 0) return;
  for (Level level = 0; level < levels(); ++level)
    if (in(frame, level)) insert(frame, level, now);
}

void TierStack::accessed(FrameId frame, Instant now) {
  for (Level level = 0; level < levels(); ++level)
    if (in(frame, level)) policies_[level]->on_access(BlockId{index(frame)}, Access::kHit, now);
}

void TierStack::missed(std::uint64_t key_hash, Instant now) {
  for (const auto& policy : policies_)
    if (policy->wants_misses()) policy->on_miss(key_hash, now);
}

void TierStack::renew(FrameId frame, Instant now) {
  const Place& place = places_[index(frame)];
  if (!place.in_use || place.holds != 0) return;
  for (Level level = 0; level < levels(); ++level) {
    if (!in(frame, level)) continue;
    policies_[level]->on_remove(BlockId{index(frame)});
    insert(frame, level, now);
  }
}

FrameId TierStack::victim(Level level) const {
  BlockId best = BlockId::kNone;
  const auto may_go = [this](BlockId id) { return places_[index(id)].readers == 0; };
  if (policies_[level]->victims({.count = 1}, may_go, {&best, 1}) == 0) return FrameId::kNone;
  return FrameId{index(best)};
}

Status TierStack::check() const {
  const auto bad = [](std::string what) { return Status(Code::kCorrupt, "tier stack: " + std::move(what)); };
  for (Level level = 0; level < levels(); ++level) {
    Tally found;
    std::size_t candidates = 0;
    for (const Place& place : places_) {
      if ((place.levels >> level & 1) == 0) continue;
      if (!place.in_use) return bad("a frame that there is not is in a tier");
      found.bytes += place.bytes;
      ++found.frames;
      candidates += place.holds == 0;
    }
    if (found.bytes != tallies_[level].bytes || found.frames != tallies_[level].frames)
      return bad(fmt::format("level {}: {} frames of {} bytes, {} of {} counted", level, found.frames, found.bytes,
                             tallies_[level].frames, tallies_[level].bytes));
    if (candidates != policies_[level]->candidates())
      return bad(fmt::format("level {}: {} frames may go, the policy knows {}", level, candidates,
                             policies_[level]->candidates()));
  }
  return {};
}

}  // namespace firn::cold
