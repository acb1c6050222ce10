#include "core/event_log.h"

namespace firn {

std::string_view to_string(EventKind kind) {
  switch (kind) {
    case EventKind::kStored:
      return "stored";
    case EventKind::kMoved:
      return "moved";
    case EventKind::kRemoved:
      return "removed";
    case EventKind::kCleared:
      return "cleared";
  }
  return "unknown";
}

TierSet EventLog::tiers(const BlockPool& pool, BlockId head) const {
  TierSet all = 0;
  for (BlockId id = head; id != BlockId::kNone; id = pool.block(id).next_duplicate) all |= told_[index(id)];
  return all;
}

EventBlock EventLog::describe(const Block& block, BlockId id, std::uint64_t tag) const {
  return {.key = block.key,
          .parent = parents_[index(id)],
          .page_set = block.page_set,
          .tiers = 0,
          .position = block.position * kBlockTokens,
          .tokens = kBlockTokens,
          .name_space = tag};
}

void EventLog::tell(const BlockPool& pool, const PrefixIndex& index, BlockId id, TierSet now_here, std::uint64_t tag,
                    Instant now) {
  const BlockId head = index.find(pool.block(id).key, pool.block(id).page_set);
  const TierSet before = tiers(pool, head);
  told_[firn::index(id)] = now_here;
  const TierSet after = tiers(pool, head);
  if (before == after) return;
  EventBlock block = describe(pool.block(id), id, tag);
  block.tiers = after;
  append(before == 0 ? EventKind::kStored : after == 0 ? EventKind::kRemoved : EventKind::kMoved, before, block, now);
}

void EventLog::named(const BlockPool& pool, const PrefixIndex& index, BlockId id, const Key& parent, std::uint64_t tag,
                     Instant now) {
  if (!on()) return;
  parents_[firn::index(id)] = parent;
  told_[firn::index(id)] = 0;
  tell(pool, index, id, tiers_of(pool.block(id)), tag, now);
}

void EventLog::changed(const BlockPool& pool, const PrefixIndex& index, BlockId id, std::uint64_t tag, Instant now) {
  if (!on() || clearing_ || !pool.block(id).full()) return;
  tell(pool, index, id, tiers_of(pool.block(id)), tag, now);
}

void EventLog::forgotten(const BlockPool& pool, const PrefixIndex& index, BlockId id, std::uint64_t tag, Instant now) {
  if (!on()) return;
  if (clearing_) {
    told_[firn::index(id)] = 0;
  } else {
    tell(pool, index, id, 0, tag, now);
  }
}

void EventLog::end_clear(Instant now) {
  clearing_ = false;
  std::vector<std::uint64_t>& tags = cleared_;
  tags.clear();
  for (auto& [tag, scope] : scopes_) {
    if (scope.keys != 0) tags.push_back(tag);
    scope.keys = 0;
  }
  std::sort(tags.begin(), tags.end());
  for (const std::uint64_t tag : tags) {
    EventBlock block;
    block.name_space = tag;
    append(EventKind::kCleared, 0, block, now);
  }
}

EventLog::Scope& EventLog::scope(std::uint64_t tag, Instant now) {
  const auto [found, fresh] = scopes_.try_emplace(tag);
  if (fresh) {
    found->second.last = std::max(static_cast<std::uint64_t>(std::max<std::int64_t>(now.ns, 0)), highest_);
    found->second.lost = passed_;
  }
  return found->second;
}

// Where a consumer of this namespace stands who knows everything.
std::uint64_t EventLog::scoped_number(std::uint64_t tag, Instant now) const {
  const auto found = scopes_.find(tag);
  if (found != scopes_.end()) return found->second.last;
  return std::max(static_cast<std::uint64_t>(std::max<std::int64_t>(now.ns, 0)), highest_);
}

void EventLog::append(EventKind kind, TierSet before, const EventBlock& block, Instant now) {
  Entry& entry = ring_[++last_ % ring_.size()];
  if (last_ > ring_.size()) {  // what was there is lost to whoever has not taken it
    lost_ = entry.event.sequence;
    passed_ = std::max(passed_, entry.scoped);
    const auto losing = scopes_.find(entry.event.block.name_space);
    if (losing != scopes_.end()) losing->second.lost = std::max(losing->second.lost, entry.scoped);
  }
  Scope& own = scope(block.name_space, now);
  if (kind == EventKind::kStored) ++own.keys;
  if (kind == EventKind::kRemoved) --own.keys;
  entry = {{.sequence = last_, .kind = kind, .tiers_before = before, .block = block}, ++own.last};
  highest_ = std::max(highest_, own.last);
}

EventBatch EventLog::take(std::uint64_t since, std::size_t max, std::optional<std::uint64_t> tag) const {
  EventBatch batch{.events = {}, .next = since, .gap = false};
  if (!tag) {
    batch.gap = since < lost_ || since > last_;
  } else {
    const auto found = scopes_.find(*tag);
    batch.gap = found == scopes_.end() ? since < passed_ : since < found->second.lost || since > found->second.last;
  }
  if (batch.gap) {  // what is left is of no use without what is lost
    return batch;
  }
  const std::uint64_t oldest = tag ? lost_ + 1 : since + 1;
  for (std::uint64_t number = oldest; number <= last_ && batch.events.size() < max; ++number) {
    const Entry& entry = ring_[number % ring_.size()];
    if (tag && (entry.event.block.name_space != *tag || entry.scoped <= since)) continue;
    batch.events.push_back(entry.event);
    if (tag) batch.events.back().sequence = entry.scoped;
    batch.next = batch.events.back().sequence;
  }
  return batch;
}

}  // namespace firn
