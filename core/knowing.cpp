// knowing.cpp: events, explain and dump: what a manager says about itself.
#include <fmt/format.h>

#include <algorithm>

#include "core/manager_impl.h"

namespace firn {
namespace {

Status events_off() {
  return Status(Code::kUnavailable, "events are off; set events.capacity to how many of them to keep");
}

// What somebody could do about it.
std::string_view advice(MissReason reason) {
  switch (reason) {
    case MissReason::kNone:
    case MissReason::kCount:
      break;
    case MissReason::kNeverStored:
      return "nobody has computed these tokens here, or it is too long ago to be remembered";
    case MissReason::kEvictedDevice:
      return "it was evicted from the pool and had no copy below; raise pool.budget or host.budget, or pin it";
    case MissReason::kEvictedHost:
      return "its frame was evicted from the host tier; raise host.budget, or pin it";
    case MissReason::kAfterMiss:
      return "a block before it is missing";
    case MissReason::kPartialTail:
      return "the prompt ends in this block, and its last token is always computed";
    case MissReason::kLoadFailed:
      return "its frame did not decode; it has to be computed again";
    case MissReason::kNotRead:
      return "the request asked not to read the cache";
    case MissReason::kFidelity:
      return "what there is of it is less exact than was asked for, or is in a lossy tail that is computed again";
    case MissReason::kGroup:
      return "a group of layers cannot resume there: its window has a hole, or no snapshot of its state was kept";
    case MissReason::kNamespace:
      return "the namespace without a name has these tokens, and the request did not look there; set shared_scope";
    case MissReason::kFiltered:
      return "its frames failed to decode again and again, so it was not stored any more, and then left the pool";
    case MissReason::kIdentity:
      return "these tokens are here without this request's adapter or media, which make them another block";
    case MissReason::kDeviceLost:
      return "it was in the pool of a device that was lost, and had no copy below; it has to be computed again";
  }
  return "";
}

}  // namespace

// --- events ---

void ManagerImpl::note_named(BlockId id, const Key& parent) {
  if (events_->on())
    events_->named(*pool_, *index_, id, parent, namespaces_[pool_->block(id).name_space].tag, clock_());
}

void ManagerImpl::note_tiers(BlockId id) {
  if (events_->on()) events_->changed(*pool_, *index_, id, namespaces_[pool_->block(id).name_space].tag, clock_());
}

Result<EventBatch> ManagerImpl::take_events(std::uint64_t since, std::size_t max,
                                            std::optional<std::string_view> name_space) const {
  Lock lock(mutex_);
  if (!events_->on()) return events_off();
  std::optional<std::uint64_t> tag;
  if (name_space) tag = namespaces_.tag(*name_space);
  return events_->take(since, max, tag);
}

Result<EventSnapshot> ManagerImpl::event_snapshot(std::optional<std::string_view> name_space) const {
  Lock lock(mutex_);
  if (!events_->on()) return events_off();
  std::optional<std::uint64_t> tag;
  if (name_space) tag = namespaces_.tag(*name_space);
  return events_->snapshot(*pool_, *index_, tag, clock_(), [this](std::uint16_t id) { return namespaces_[id].tag; });
}

// --- explain ---

Explanation ManagerImpl::explain(std::span<const TokenId> tokens, const BeginOptions& options) const {
  Lock lock(mutex_);
  Explanation all;
  if (tokens.empty()) {
    all.text = "a prompt without tokens has no blocks";
    return all;
  }
  if (const Status status = check_length(tokens.size()); !status.ok()) {
    all.text = status.message();
    return all;
  }
  const Scope scope = make_scope(options, tokens.size());
  Found found;
  if (options.read_cache) {
    found = find_prefix(tokens, scope);
  } else {
    found.match.first_miss = MissReason::kNotRead;
  }
  const std::size_t count = (tokens.size() + kBlockTokens - 1) / kBlockTokens;
  const std::size_t usable = (tokens.size() - 1) / kBlockTokens, hits = options.read_cache ? found.block_count() : 0;
  all.first_miss = static_cast<std::uint32_t>(hits);
  Key key{};
  for (std::size_t i = 0; i < count; ++i) {
    BlockVerdict verdict;
    const bool in_shared = i < found.shared || (scope.share && i < scope.shared_blocks);
    if ((i + 1) * kBlockTokens <= tokens.size())
      verdict.key = key = next_key(in_shared ? *scope.shared : scope.own, scope.extras, key,
                                   tokens.subspan(i * kBlockTokens, kBlockTokens), i * std::uint64_t{kBlockTokens});
    if (i < hits) {
      verdict.shared = in_shared;
      verdict.tiers = kOnDevice | kOnHost;  // what all parts of it have in common
      for (const std::vector<BlockId>& table : found.tables) {
        if (table[i] == BlockId::kNone) continue;
        const Block& block = pool_->block(table[i]);
        verdict.tiers &= EventLog::tiers_of(block);
        verdict.fidelity = std::max(verdict.fidelity, block.fidelity);
      }
      if (verdict.tiers == 0) verdict.tiers = kOnHost;  // some parts are below
    } else {
      verdict.reason = !options.read_cache ? MissReason::kNotRead
                       : i >= usable       ? MissReason::kPartialTail
                       : i == hits         ? found.match.first_miss
                                           : MissReason::kAfterMiss;
    }
    all.blocks.push_back(verdict);
  }
  const MissReason why = all.blocks[hits].reason;
  all.text = fmt::format(
      "{} of {} tokens are reused ({} on the device, {} in the host tier); block {} at token {} is "
      "not: {}: {}",
      found.match.tokens, tokens.size(), found.match.tokens_on_device, found.match.tokens_on_host, hits,
      hits * kBlockTokens, to_string(why), advice(why));
  return all;
}

std::vector<BlockState> ManagerImpl::block_states(SeqId id) const {
  Lock lock(mutex_);
  std::vector<BlockState> states;
  const Sequence* seq = find_sequence(id);
  if (!seq) return states;
  // Of a block in several page sets: the state of the part that is furthest away.
  const auto state = [](const Block& block) {
    if (block.lost) return BlockState::kLost;
    if (block.slot == SlotId::kNone) return block.load_queued ? BlockState::kLoading : BlockState::kStored;
    return block.full() ? BlockState::kResident : BlockState::kFilling;
  };
  for (std::uint32_t i = 0; i < seq->block_count(); ++i) {
    BlockState worst = i < seq->committed_blocks() ? BlockState::kResident : BlockState::kFilling;
    for (const Table& table : seq->tables)
      if (table.blocks[i] != BlockId::kNone) worst = std::max(worst, state(pool_->block(table.blocks[i])));
    states.push_back(worst);
  }
  return states;
}

}  // namespace firn
