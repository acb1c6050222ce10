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
std::uint32_t ManagerImpl::whole_need(const Found& found, std::uint64_t tokens) const {
  std::uint32_t need = 0;
  for (std::size_t s = 0; s < layout_.sets.size(); ++s) {
    const PageSet& set = layout_.sets[s];
    std::uint32_t most = blocks_for(tokens);
    const std::uint32_t step = blocks_for(max_rows_) + 1;
    if (set.kind == GroupKind::kSlidingWindow) most = std::min(most, blocks_for(set.window - 1) + step);
    if (set.kind == GroupKind::kState) most = std::min(most, 3u);
    // With a host tier, what is cold makes room.
    if (host_) most = std::min(most, sink_blocks() + blocks_for(config_.protect.recent) + step);
    std::uint32_t has = 0;
    for (const BlockId id : found.tables[s]) has += id != BlockId::kNone && pool_->block(id).slot != SlotId::kNone;
    need += most - std::min(most, has) + (found.partial.empty() ? 0 : 1);
  }
  return need;
}

Status ManagerImpl::admit(const Found& found, std::uint64_t prompt_tokens, const BeginOptions& options) {
  const std::uint32_t watermark =
      sequences_.empty() ? 0 : pool_->slot_total() * std::uint64_t{config_.watermark_percent} / 100;
  if (options.admission == Admission::kAlways && watermark == 0) return {};
  // Cached blocks that it will hold are available now and not any more once it is let in.
  std::uint32_t revived = 0;
  const auto count = [&](BlockId id) {
    if (id == BlockId::kNone) return;
    const Block& block = pool_->block(id);
    revived += block.candidate && block.refs == 0;
  };
  for (const auto& table : found.tables) std::for_each(table.begin(), table.end(), count);
  std::for_each(found.partial.begin(), found.partial.end(), count);
  const std::uint32_t available = available_slots() - std::min(available_slots(), revived);
  const std::uint64_t whole = std::max<std::uint64_t>(prompt_tokens, options.expected_tokens);
  const std::uint32_t need = whole_need(found, options.admission == Admission::kAlways ? prompt_tokens : whole);
  if (need + watermark <= available) return {};
  ++counters_.admissions_refused;
  if (need > pool_->slot_total())
    return Status(Code::kNoSpace, fmt::format("begin: {} tokens need {} slots and the pool has {}; raise pool.budget",
                                              whole, need, pool_->slot_total()));
  return Status(
      Code::kUnavailable,
      fmt::format("begin: {} slots are needed{}, {} are available; try again when a sequence has ended", need,
                  watermark ? fmt::format(" and {} must stay available (admission.watermark)", watermark) : "",
                  available));
}

void ManagerImpl::take_reserved(Sequence& seq, std::uint32_t slots) {
  const std::uint32_t taken = std::min(seq.reserved, slots);
  seq.reserved -= taken;
  reserved_slots_ -= taken;
}

Status ManagerImpl::preempt(SeqId id, const Fence& fence) {
  Lock lock(mutex_);
  run_deferred();
  FIRN_ASSIGN(Sequence * seq, get_sequence(id, "preempt"));
  const Result<bool> passed = ask_fence(fence);
  if (!passed.ok()) return passed.status().with_context("preempt");
  const bool waits = !*passed;
  Ledger::Charge charge;
  if (waits) {
    if (sequences_.size() + deferred_.size() >= kMostHolders)
      return Status(Code::kNoSpace, "preempt: too many sequences wait for their fences");
    FIRN_ASSIGN(charge, ledger_->charge(Account::kMetadata, sequence_bytes(seq->block_count() * kBlockTokens)));
  }
  queue_cold(*seq, /*ending=*/true);
  if (waits) {
    deferred_.push_back({seq->tables, seq->hot_first, fence, std::move(charge), false, seq->exact()});
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
                    .extras = seq->key_extras()};
  const Found found = find_prefix(seq->tokens, scope, /*all=*/true);
  seq->preempted = false;
  seq->tokens.resize(found.match.tokens);
  seq->shared_blocks = std::min(seq->shared_blocks, seq->committed_blocks());
  hold(*seq, found);
  return found.match;
}

}  // namespace firn
