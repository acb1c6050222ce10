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

// Slots that a sequence of so many tokens needs at once, beyond what it was found to have in slots.
std::uint32_t ManagerImpl::whole_need(const Found& found, std::uint64_t tokens, std::uint32_t snapshots) const {
  std::uint32_t need = 0;
  for (std::size_t s = 0; s < layout_.sets.size(); ++s) {
    const PageSet& set = layout_.sets[s];
    std::uint32_t most = blocks_for(tokens);
    const std::uint32_t step = blocks_for(max_rows_) + 1;
    if (set.kind == GroupKind::kSlidingWindow) most = std::min(most, blocks_for(set.window - 1) + step);
    if (set.kind == GroupKind::kState) most = std::min(most, snapshots);
    // With a host tier, what is cold makes room.
    if (host_) most = std::min(most, sink_blocks() + blocks_for(config_.protect.recent) + step);
    std::uint32_t has = 0;
    for (const BlockId id : found.tables[s]) has += id != BlockId::kNone && pool_->block(id).slot != SlotId::kNone;
    need += most - std::min(most, has) + (found.partial.empty() ? 0 : 1);
  }
  return need;
}

// Slots of cached blocks that it would hold: they are available now, and not any more once it does. What is of one
// family with them is not either.
std::uint32_t ManagerImpl::revived_slots(const Found& found) const {
  std::uint32_t revived = 0;
  std::vector<BlockId> kin;
  const auto count = [&](BlockId id) {
    if (id == BlockId::kNone) return;
    const Block& block = pool_->block(id);
    if (const std::vector<BlockId>* family = retention_->family(id); family && !block.kept_by_family) {
      kin.insert(kin.end(), family->begin(), family->end());
    } else {
      revived += block.candidate && !block.counted_live && !block.kept_by_family;
    }
  };
  for (const auto& table : found.tables) std::for_each(table.begin(), table.end(), count);
  std::for_each(found.partial.begin(), found.partial.end(), count);
  std::sort(kin.begin(), kin.end());
  kin.erase(std::unique(kin.begin(), kin.end()), kin.end());
  for (const BlockId id : kin) revived += pool_->block(id).candidate && !pool_->block(id).counted_live;
  return revived;
}

// Who finds more cached blocks than may be taken finds fewer: the others are room that is kept for somebody.
ManagerImpl::Found ManagerImpl::find_spare(std::span<const TokenId> tokens, const Scope& scope, bool all) const {
  Found found = find_prefix(tokens, scope, all);
  while (reserved_slots_ != 0 && found.match.tokens != 0) {
    const std::uint64_t revived = revived_slots(found), spare = spare_slots();
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
  const std::uint32_t need =
      whole_need(found, options.admission == Admission::kAlways ? prompt_tokens : whole,
                 most_snapshots(options.drop_last_block, options.read_cache ? options.max_reuse_tokens : 0));
  // What it writes into a shared scope is that namespace's.
  const std::uint64_t elsewhere =
      scope.share ? std::uint64_t{scope.shared_blocks - found.shared} * layout_.sets.size() : 0;
  const std::uint64_t own = need - std::min<std::uint64_t>(need, elsewhere), revived = revived_slots(found);
  const std::optional<std::uint16_t> known = namespaces_.find(options.name_space);
  const Reach has = reach(known.value_or(kNewNamespace));
  const auto beyond = [](std::uint64_t slots, std::uint64_t taken) { return slots - std::min(slots, taken); };
  const std::uint64_t available = beyond(has.slots, reserved_slots_ + revived);
  const std::uint64_t below_ceiling = beyond(has.below_ceiling, revived + (known ? namespaces_[*known].reserved : 0));
  bool fits = need + watermark <= available && own <= below_ceiling;
  if (own != need) {
    const std::optional<std::uint16_t> shared = namespaces_.find(*options.shared_scope);
    const Reach its = reach(shared.value_or(kNewNamespace));
    fits = fits && need + watermark <= beyond(its.slots, reserved_slots_ + revived) &&
           need - own <= beyond(its.below_ceiling, revived + (shared ? namespaces_[*shared].reserved : 0));
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

void ManagerImpl::keep_slots(Sequence& seq, std::uint32_t slots) {
  reserved_slots_ += slots - seq.reserved;
  namespaces_[seq.name_space].reserved += slots - seq.reserved;
  seq.reserved = slots;
}

void ManagerImpl::take_reserved(Sequence& seq, std::uint32_t slots) {
  if (seq.reserved != 0) keep_slots(seq, seq.reserved - std::min(seq.reserved, slots));
}

void ManagerImpl::renew_reservation(Sequence& seq) {
  if (seq.expected == 0 || seq.preempted) return;
  Found has;
  for (const Table& table : seq.tables) has.tables.push_back(table.blocks);
  const std::uint32_t need = whole_need(has, std::max<std::uint64_t>(seq.expected, seq.tokens.size()),
                                        most_snapshots(seq.drop_last, seq.max_reuse));
  if (need <= seq.reserved) return;
  keep_slots(seq, static_cast<std::uint32_t>(std::min<std::uint64_t>(need, seq.reserved + spare_slots())));
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
