// admission.cpp: who is let in, what is kept for whom, and who steps aside for a while.
#include <fmt/format.h>

#include <algorithm>

#include "core/manager_impl.h"

namespace firn {
namespace {

std::uint32_t blocks_for(std::uint64_t tokens) {
  return static_cast<std::uint32_t>((tokens + kBlockTokens - 1) / kBlockTokens);
}

}  // namespace

// Slots that a sequence of so many tokens needs at once in one page set.
std::uint32_t ManagerImpl::most_slots(const PageSet& set, std::uint64_t tokens, std::uint32_t snapshots) const {
  std::uint32_t most = blocks_for(tokens);
  const std::uint32_t step = blocks_for(max_rows_) + 1;
  if (set.kind == GroupKind::kSlidingWindow) most = std::min(most, blocks_for(set.window - 1) + step);
  if (set.kind == GroupKind::kState) most = std::min(most, snapshots);
  // With a host tier, what is cold makes room.
  return host_ ? std::min(most, sink_blocks() + blocks_for(config_.protect.recent) + step) : most;
}

std::uint32_t ManagerImpl::in_slots(std::span<const BlockId> blocks) const {
  return static_cast<std::uint32_t>(std::count_if(blocks.begin(), blocks.end(), [this](BlockId id) {
    return id != BlockId::kNone && pool_->block(id).slot != SlotId::kNone;
  }));
}

// And in all of them, beyond what it was found to have in slots.
std::uint32_t ManagerImpl::whole_need(const Found& found, std::uint64_t tokens, std::uint32_t snapshots,
                                      Parts* parts) const {
  std::uint32_t need = 0;
  const std::uint32_t copy = found.partial.empty() ? 0 : 1;
  for (std::size_t s = 0; s < layout_.sets.size(); ++s) {
    const std::uint32_t most = most_slots(layout_.sets[s], tokens, snapshots);
    const std::uint32_t lacks = most - std::min(most, in_slots(found.tables[s])) + copy;
    need += lacks;
    if (!parts) continue;
    // Which of a window's or a state's blocks are in the scope changes as it grows.
    const std::uint32_t in_scope = parts->scope_blocks - std::min(parts->scope_blocks, found.shared);
    const std::uint32_t behind = blocks_for(tokens) - std::min(blocks_for(tokens), parts->scope_blocks);
    parts->scope_most += std::min(lacks, in_scope + (in_scope != 0 ? copy : 0));
    parts->own_most += std::min(lacks, behind + (in_scope != 0 ? 0 : copy));
  }
  return need;
}

// Slots of cached blocks that it would hold: they are available now, and not any more once it does. What is of one
// family with them is not either, nor are another sequence's cold blocks where they would be in its recent window or
// are to come back from no lossy frame.
std::uint32_t ManagerImpl::revived_slots(const Found& found) const {
  std::uint32_t revived = 0;
  std::vector<BlockId> kin;
  const auto count = [&](BlockId id, bool hot) {
    if (id == BlockId::kNone) return;
    const Block& block = pool_->block(id);
    if (const std::vector<BlockId>* family = retention_->family(id); family && !block.kept_by_family) {
      kin.insert(kin.end(), family->begin(), family->end());
    } else {
      revived += block.candidate && !block.kept_by_family &&
                 (!block.counted_live || hot || is_lossy(frames_->frame(block.frame)));
    }
  };
  const std::uint32_t recent = hot_first(found.match.tokens), sinks = sink_blocks();
  for (const auto& table : found.tables)
    for (std::uint32_t i = 0; i < table.size(); ++i) count(table[i], i < sinks || i >= recent);
  for (const BlockId id : found.partial) count(id, /*hot=*/true);
  std::sort(kin.begin(), kin.end());
  kin.erase(std::unique(kin.begin(), kin.end()), kin.end());
  for (const BlockId id : kin) revived += pool_->block(id).candidate && !pool_->block(id).counted_live;
  return revived;
}

// Who finds more cached blocks than may be taken finds fewer: the others are room that is kept for somebody.
ManagerImpl::Found ManagerImpl::find_spare(std::span<const TokenId> tokens, const Scope& scope, bool all) const {
  Found found = find_prefix(tokens, scope, all);
  while (reserved_slots_ != 0 && found.match.tokens != 0) {
    const std::uint64_t revived = revived_slots(found), spare = spare_slots(scope.own_space, scope.shared_space);
    if (revived <= spare) break;
    const std::uint64_t blocks =
        found.partial.empty() ? (revived - spare + layout_.sets.size() - 1) / layout_.sets.size() : 0;
    const std::uint32_t had = found.block_count();
    Scope less = scope;
    less.max_tokens = static_cast<std::uint32_t>(had - std::min<std::uint64_t>(had, blocks)) * kBlockTokens;
    found = find_prefix(tokens, less, all);
  }
  return found;
}

Status ManagerImpl::admit(const Found& found, std::uint64_t prompt_tokens, const BeginOptions& options,
                          const Scope& scope) {
  const std::uint32_t watermark =
      sequences_.empty() ? 0 : pool_->slot_total() * std::uint64_t{config_.watermark_percent} / 100;
  if (options.admission == Admission::kAlways && watermark == 0) return {};
  const std::uint64_t whole = std::max<std::uint64_t>(prompt_tokens, options.expected_tokens);
  Parts parts{.scope_blocks = scope.share ? scope.shared_blocks : 0};  // what it writes there is that namespace's
  const std::uint32_t need =
      whole_need(found, options.admission == Admission::kAlways ? prompt_tokens : whole,
                 most_snapshots(options.drop_last_block, options.read_cache ? options.max_reuse_tokens : 0), &parts);
  const std::uint64_t own = parts.own_most, revived = revived_slots(found);
  const std::optional<std::uint16_t> known = namespaces_.find(options.name_space);
  const Reach has = reach(known.value_or(kNewNamespace));
  const auto beyond = [](std::uint64_t slots, std::uint64_t taken) { return slots - std::min(slots, taken); };
  const std::uint64_t available = beyond(has.slots, reserved_slots_ + revived);
  const std::uint64_t below_ceiling = beyond(has.below_ceiling, revived + (known ? namespaces_[*known].kept() : 0));
  bool fits = need + watermark <= available && own <= below_ceiling;
  if (parts.scope_most != 0) {
    const std::optional<std::uint16_t> shared = namespaces_.find(*options.shared_scope);
    const Reach its = reach(shared.value_or(kNewNamespace));
    fits = fits && need + watermark <= beyond(its.slots, reserved_slots_ + revived) &&
           parts.scope_most <= beyond(its.below_ceiling, revived + (shared ? namespaces_[*shared].kept() : 0));
  }
  // What is kept for others, whose floors it may be behind, has to stay as well.
  if (fits && options.admission == Admission::kReserve) {
    Change change;
    change.taken = revived;
    fits = can_keep({scope.own_space, scope.shared_space, need, own, parts.scope_most}, change);
  }
  if (fits) return {};
  ++counters_.admissions_refused;
  if (need > pool_->slot_total())
    return Status(Code::kNoSpace, fmt::format("begin: {} tokens need {} slots and the pool has {}; raise pool.budget",
                                              whole, need, pool_->slot_total()));
  if (known && own > ceiling_slots(*known))
    return Status(Code::kNoSpace, fmt::format("begin: {} tokens need {} slots and the ceiling of their namespace is {}",
                                              whole, own, ceiling_slots(*known)));
  return Status(
      Code::kUnavailable,
      fmt::format("begin: {} slots are needed{}, {} are available; try again when a sequence has ended", need,
                  watermark ? fmt::format(" and {} must stay available (admission.watermark)", watermark) : "",
                  std::min(available, below_ceiling)));
}

std::uint32_t ManagerImpl::shared_part(const Sequence& seq, std::uint32_t slots) const {
  if (!seq.share || seq.shared_space == seq.name_space) return 0;
  // Its tail may be copied there too, and a state be kept where a table has none yet.
  const bool open = windowed_ || seq.tokens.size() % kBlockTokens != 0;
  const std::uint32_t from = std::min(seq.shared_blocks, open ? seq.committed_blocks() : seq.block_count());
  return std::min<std::uint32_t>(slots, (seq.shared_blocks - from) * static_cast<std::uint32_t>(layout_.sets.size()));
}

std::uint32_t ManagerImpl::own_part(const Sequence& seq, std::uint32_t slots) const {
  if (shared_part(seq, 1) == 0) return slots;
  const std::uint32_t blocks = blocks_for(std::max<std::uint64_t>(seq.expected, seq.tokens.size()));
  const std::uint32_t behind = blocks - std::min(blocks, seq.shared_blocks);
  return std::min<std::uint32_t>(slots, behind * static_cast<std::uint32_t>(layout_.sets.size()));
}

void ManagerImpl::keep_slots(Sequence& seq, std::uint32_t slots) {
  const std::uint32_t own = own_part(seq, slots), shared = shared_part(seq, slots);
  reserved_slots_ += slots - seq.reserved;
  namespaces_[seq.name_space].reserved += own - seq.reserved_own;
  namespaces_[seq.shared_space].reserved_shared += shared - seq.reserved_shared;
  seq.reserved = slots;
  seq.reserved_own = own;
  seq.reserved_shared = shared;
}

void ManagerImpl::take_reserved(Sequence& seq, std::uint32_t slots) {
  if (seq.reserved != 0) keep_slots(seq, seq.reserved - std::min(seq.reserved, slots));
}

// What has to be kept for a sequence that has so many slots of a page set for n tokens.
std::uint32_t ManagerImpl::kept_need(const Sequence& seq, std::size_t page_set, std::uint64_t n,
                                     std::uint32_t has) const {
  const std::uint32_t most = most_slots(layout_.sets[page_set], std::max<std::uint64_t>(seq.expected, n),
                                        most_snapshots(seq.drop_last, seq.max_reuse));
  return most - std::min(most, has);
}

// And in all of them, as it is.
std::uint32_t ManagerImpl::kept_need(const Sequence& seq) const {
  std::uint32_t need = 0;
  const std::uint32_t tail = seq.committed_blocks();
  for (std::size_t s = 0; s < seq.tables.size(); ++s) {
    const std::vector<BlockId>& blocks = seq.tables[s].blocks;
    need += kept_need(seq, s, seq.tokens.size(), in_slots(blocks));
    if (tail >= blocks.size() || blocks[tail] == BlockId::kNone) continue;
    need += pool_->block(blocks[tail]).slot != SlotId::kNone && must_copy(seq, tail, blocks[tail]);
  }
  return need;
}

void ManagerImpl::renew_reservation(Sequence& seq) {
  if (seq.expected == 0 || seq.preempted) return;
  const std::uint32_t need = kept_need(seq);
  if (need <= seq.reserved) return keep_slots(seq, seq.reserved);
  keep_slots(seq, static_cast<std::uint32_t>(std::min<std::uint64_t>(need, seq.reserved + spare_slots())));
}

// Whether what is kept for sequences is still there when so many slots more are kept for one of this namespace, after
// others came free and some cannot be had any more. What makes nothing worse is always let through.
bool ManagerImpl::can_keep(const Keep& keep, const Change& change) const {
  const auto fits = [](std::uint64_t slots, std::uint64_t given, std::uint64_t taken, std::uint64_t kept,
                       std::uint64_t more) { return given >= more + taken || slots + given >= kept + more + taken; };
  if (!fits(reach(kAnyNamespace).slots, change.given, change.taken, reserved_slots_, keep.more)) return false;
  if (!namespaces_.any_quota()) return true;
  for (std::uint32_t i = 0; i < namespaces_.end(); ++i) {
    const std::uint16_t id = static_cast<std::uint16_t>(i);
    const std::uint64_t more =
        (id == keep.own ? keep.more_own : 0) + (id == keep.shared && id != keep.own ? keep.more_shared : 0);
    if (!namespaces_.in_use(id) || namespaces_[id].kept() + more == 0) continue;
    const Reach its = reach(id);
    if (!fits(its.slots, change.given_by(id, /*others=*/true), change.taken, reserved_slots_, keep.more)) return false;
    if (its.below_ceiling == ~std::uint64_t{0}) continue;
    // One that is above its ceiling has to come below it first.
    const std::uint64_t own = its.below_ceiling == 0 ? 0 : change.given_by(id, /*others=*/false);
    const std::uint64_t taken = id == keep.own || id == keep.shared || retention_->any_family() ? change.taken : 0;
    if (!fits(its.below_ceiling, own, taken, namespaces_[id].kept(), more)) return false;
  }
  return true;
}

ManagerImpl::Keep ManagerImpl::keep_more(const Sequence& seq, std::uint64_t more) const {
  const auto all = static_cast<std::uint32_t>(seq.reserved + more);
  const auto beyond = [](std::uint32_t slots, std::uint32_t has) { return slots - std::min(slots, has); };
  return {.own = seq.name_space,
          .shared = seq.shared_space,
          .more = more,
          .more_own = beyond(own_part(seq, all), seq.reserved_own),
          .more_shared = beyond(shared_part(seq, all), seq.reserved_shared)};
}

void ManagerImpl::Change::give(std::uint16_t name_space, bool has_floor) {
  ++given;
  floored += has_floor;
  for (auto& [id, slots] : by_space)
    if (id == name_space) {
      ++slots;
      return;
    }
  by_space.emplace_back(name_space, 1);
}

// A slot that a namespace with a floor gives up is a free one, and one less that the floor lets others have.
std::uint64_t ManagerImpl::Change::given_by(std::uint16_t name_space, bool others) const {
  std::uint64_t own = 0;
  for (const auto& [id, slots] : by_space)
    if (id == name_space) own = slots;
  return others ? std::max(given - floored, own) : own;
}

// Whoever writes first into a tail that is shared copies it: of what is kept for the parent that may be one a table
// more.
Status ManagerImpl::check_fork(const Sequence& parent) const {
  if (parent.expected == 0 || parent.tokens.size() % kBlockTokens == 0) return {};
  std::uint32_t need = 0;
  for (std::size_t s = 0; s < parent.tables.size(); ++s) {
    const std::vector<BlockId>& blocks = parent.tables[s].blocks;
    need += kept_need(parent, s, parent.tokens.size(), in_slots(blocks)) +
            (blocks[parent.committed_blocks()] != BlockId::kNone ? 1 : 0);
  }
  const std::uint64_t more = need - std::min(need, parent.reserved);
  if (can_keep(keep_more(parent, more), {})) return {};
  return Status(Code::kUnavailable,
                fmt::format("fork: {} slots more would have to be kept for sequence {}, which copies its last block "
                            "before it goes on, and there is no room for them; try again when a sequence has ended",
                            more, index(parent.id)));
}

// A rewind gives blocks up, and room for them is kept from then on: those that others hold too give none. What becomes
// recent again, or is taken back, is no room any more that was kept for others.
Status ManagerImpl::check_rewind(const Sequence& seq, std::uint32_t n, std::span<const TakenBack> back) const {
  if (seq.expected == 0 && reserved_slots_ == 0) return {};
  if (seq.lost_from != ~0u) return {};  // it can do nothing else, and a copy that is lost is no call's doing
  const std::uint32_t keep = blocks_for(n);
  const bool attended = step_running(seq.step);
  Change change;
  std::uint32_t need = 0;
  std::vector<BlockId> staying;
  const auto forgotten = [&](BlockId id) {  // a pin goes to the other copy
    if (!retention_->held(id)) return false;
    for (BlockId other = index_->find(pool_->block(id).key, pool_->block(id).page_set); other != BlockId::kNone;
         other = pool_->block(other).next_duplicate)
      if (other != id) staying.push_back(other);
    return true;
  };
  for (std::size_t s = 0; s < seq.tables.size(); ++s) {
    const Table& table = seq.tables[s];
    std::uint32_t has = in_slots(std::span(table.blocks).first(std::min<std::size_t>(keep, table.blocks.size())));
    for (const TakenBack& one : back) has += one.page_set == s && pool_->block(one.id).slot != SlotId::kNone;
    need += kept_need(seq, s, n, has);
    for (std::size_t i = keep; i < table.blocks.size(); ++i) {
      if (table.blocks[i] == BlockId::kNone) continue;
      const Block& block = pool_->block(table.blocks[i]);
      if (block.refs != 1) continue;
      if (!forgotten(table.blocks[i]) && !attended && block.slot != SlotId::kNone && !block.candidate &&
          block.in_flight == 0)
        change.give(block.name_space, namespaces_[block.name_space].quota.device_floor != 0);
    }
    for (std::uint32_t i = std::max(std::min(hot_first(n), keep), sink_blocks()); i < std::min(seq.hot_first, keep);
         ++i)
      if (table.blocks[i] != BlockId::kNone) staying.push_back(table.blocks[i]);
    if (n % kBlockTokens == 0 || table.blocks[keep - 1] == BlockId::kNone) continue;
    const Block& tail = pool_->block(table.blocks[keep - 1]);
    if (tail.refs == 1) forgotten(table.blocks[keep - 1]);
    need += tail.slot != SlotId::kNone && (attended || tail.refs != 1 || tail.frame != FrameId::kNone ||
                                           tail.in_flight != 0 || tail.name_space != seq.name_space);
  }
  for (const TakenBack& one : back) staying.push_back(one.id);
  change.taken = slots_of(std::move(staying));
  if (seq.expected == 0) need = 0;
  const std::uint64_t more = need - std::min(need, seq.reserved);
  // What it goes on with is its own.
  if (can_keep({seq.name_space, seq.shared_space, more, need - std::min(need, seq.reserved_own), 0}, change)) return {};
  return Status(Code::kUnavailable,
                fmt::format("rewind: {} slots are kept for sequences (reserve), {} more would be for what this one "
                            "gives up, and there is no room for them, because others hold its blocks too or no step "
                            "has ended that reads them; try again when a sequence has ended",
                            reserved_slots_, more));
}

Status ManagerImpl::preempt(SeqId id, const Fence& fence) {
  Lock lock(mutex_);
  run_deferred();
  FIRN_ASSIGN(Sequence * seq, get_sequence(id, "preempt"));
  const Result<bool> passed = ask_fence(fence);
  if (!passed.ok()) return passed.status().with_context("preempt");
  const bool waits = !*passed || step_running(seq->step);
  Ledger::Charge charge;
  std::vector<Table> held;
  if (waits) {
    if (sequences_.size() + deferred_.size() >= kMostHolders)
      return Status(Code::kNoSpace, "preempt: too many sequences wait for their fences");
    FIRN_ASSIGN(charge, ledger_->charge(Account::kMetadata, sequence_bytes(seq->block_count() * kBlockTokens)));
    make_deferred_room();
    held = seq->tables;
  }
  hold_for_replay(*seq);
  queue_cold(*seq, /*ending=*/true);
  if (waits) {
    note_cut(*seq);
    deferred_.push_back({std::move(held), seq->hot_first, *passed ? Fence{} : fence, std::move(charge), false,
                         seq->exact(), seq->step});
  } else {
    release_blocks(seq->tables, seq->hot_first, seq->exact());
  }
  for (Table& table : seq->tables) {
    table.blocks.clear();  // its room stays reserved
    table.first_held = 0;
    table.store_next = sink_blocks();
  }
  take_reserved(*seq, seq->reserved);
  seq->hot_first = 0;
  seq->lost_from = ~0u;
  seq->last_key = {};
  seq->preempted = true;
  ++counters_.preemptions;
  return {};
}

Result<PrefixMatch> ManagerImpl::resume(SeqId id) {
  Lock lock(mutex_);
  run_deferred();
  Sequence* seq = find_sequence(id);
  if (!seq || !seq->preempted)
    return Status(Code::kInvalidArgument, fmt::format("resume: sequence {} is not preempted", index(id)));
  FIRN_TRY(settle_lossy(lock).with_context("resume"));
  seq = find_sequence(id);  // settling lets go of the lock
  if (!seq || !seq->preempted)
    return Status(Code::kInvalidArgument, fmt::format("resume: sequence {} was freed meanwhile", index(id)));
  const Scope scope{.own = namespaces_[seq->name_space].chain,
                    .shared = namespaces_[seq->shared_space].chain,
                    .shared_blocks = seq->shared_blocks,
                    .share = true,  // its blocks there have their names already
                    .min_fidelity = seq->min_fidelity,
                    .own_space = seq->name_space,
                    .shared_space = seq->shared_space,
                    .extras = seq->key_extras(),
                    .max_tokens = seq->max_reuse,
                    .drop_last = seq->drop_last};
  const Found found = find_spare(seq->tokens, scope, /*all=*/true);
  seq->preempted = false;
  seq->tokens.resize(found.match.tokens);
  // What it said that it shares, it goes on sharing; who only read the scope goes on with blocks of its own.
  if (!seq->share) seq->shared_blocks = std::min(seq->shared_blocks, seq->committed_blocks());
  hold(*seq, found);
  apply_retention(*seq, 0, seq->committed_blocks()).ok();  // as at commit
  renew_reservation(*seq);
  return found.match;
}

}  // namespace firn
