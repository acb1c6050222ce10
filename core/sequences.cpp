// sequences.cpp: begin, allocate, commit, fork, rewind, free, and the windows and references they move.
#include <fmt/format.h>

#include <algorithm>
#include <new>
#include <utility>

#include "core/base/no_throw.h"
#include "core/manager_impl.h"

namespace firn {
namespace {

std::uint32_t blocks_for(std::uint64_t tokens) {
  return static_cast<std::uint32_t>((tokens + kBlockTokens - 1) / kBlockTokens);
}

bool is_windowed(const PageSet& set) { return set.kind == GroupKind::kSlidingWindow || set.kind == GroupKind::kState; }

}  // namespace

Sequence* ManagerImpl::find_sequence(SeqId id) {
  const auto found = sequences_.find(index(id));
  return found == sequences_.end() ? nullptr : found->second.get();
}

const Sequence* ManagerImpl::find_sequence(SeqId id) const {
  const auto found = sequences_.find(index(id));
  return found == sequences_.end() ? nullptr : found->second.get();
}

Result<Sequence*> ManagerImpl::get_sequence(SeqId id, std::string_view call) {
  Sequence* seq = find_sequence(id);
  if (seq && seq->preempted)
    return Status(Code::kInvalidArgument,
                  fmt::format("{}: sequence {} is preempted; resume() it first", call, index(id)));
  if (seq) return seq;
  return Status(Code::kInvalidArgument,
                fmt::format("{}: sequence {} does not exist (freed already?)", call, index(id)));
}

// Before anything walks over that many.
Status ManagerImpl::check_length(std::uint64_t tokens) const {
  if (tokens <= config_.max_sequence_tokens) return {};
  return Status(Code::kInvalidArgument,
                fmt::format("{} tokens are more than max_sequence_tokens = {}", tokens, config_.max_sequence_tokens));
}

std::uint64_t ManagerImpl::metadata_left() const {
  const std::uint64_t limit = ledger_->limit(Budget::kMetadata), spent = ledger_->spent(Budget::kMetadata);
  return limit - std::min(limit, spent);
}

std::uint64_t ManagerImpl::growth_bytes(const Sequence& seq, std::uint64_t tokens, std::uint64_t* room) const {
  // Whole blocks, because commit may fill whatever allocate has given.
  const std::uint64_t least = std::uint64_t{blocks_for(tokens)} * kBlockTokens;
  if (least <= seq.tokens.capacity()) return 0;
  const std::uint64_t most = std::uint64_t{blocks_for(config_.max_sequence_tokens)} * kBlockTokens;
  *room = std::min(most, least + std::min<std::uint64_t>(least, 4096));
  return sequence_bytes(*room);
}

Status ManagerImpl::reserve_tokens(Sequence& seq, std::uint64_t tokens) {
  if (tokens > config_.max_sequence_tokens)
    return check_length(tokens).with_context(fmt::format("sequence {}", index(seq.id)));
  std::uint64_t room = 0;
  const std::uint64_t bytes = growth_bytes(seq, tokens, &room);
  if (bytes == 0) return {};
  FIRN_ASSIGN(Ledger::Charge charge, ledger_->charge(Account::kMetadata, bytes));
  make_room(seq, room);
  seq.charge = std::move(charge);
  if (seq.small) --small_sequences_;
  seq.small = false;
  return {};
}

Status ManagerImpl::check_sequences() const {
  if (sequences_.size() + deferred_.size() >= kMostHolders)
    return Status(Code::kNoSpace,
                  fmt::format("{} sequences are alive and {} wait for their fences, as many as can be counted",
                              sequences_.size(), deferred_.size()));
  if (sequences_.size() >= config_.max_sequences)
    return Status(Code::kNoSpace,
                  fmt::format("{} sequences are alive, as many as max_sequences allows", sequences_.size()));
  return {};
}

Result<Sequence*> ManagerImpl::make_sequence(std::uint16_t name_space) {
  FIRN_TRY(check_sequences());
  const SeqId id{next_seq_++};
  if (spare_.empty()) {
    auto fresh = std::make_unique<Sequence>();
    fresh->tables.resize(layout_.sets.size());
    const bool small = small_sequences_ < kSmallSequences;
    if (small) make_room(*fresh, kSmallTokens);
    fresh->small = small;
    sequences_.emplace(index(id), std::move(fresh));
    small_sequences_ += small;
  } else {
    // Rehashed here or not at all, so that the node is not lost on its way.
    if (static_cast<float>(sequences_.size() + 1) >
        static_cast<float>(sequences_.bucket_count()) * sequences_.max_load_factor())
      sequences_.reserve(2 * (sequences_.size() + 1));
    Sequences::node_type node = std::move(spare_.back());
    spare_.pop_back();
    node.key() = index(id);
    sequences_.insert(std::move(node));
  }
  Sequence& seq = *find_sequence(id);
  seq.id = id;
  seq.name_space = name_space;
  for (Table& table : seq.tables) table.store_next = sink_blocks();
  namespaces_.add_sequence(name_space);
  return &seq;
}

void ManagerImpl::make_room(Sequence& seq, std::uint64_t tokens) {
  seq.tokens.reserve(tokens);
  for (Table& table : seq.tables) table.blocks.reserve(tokens / kBlockTokens + 2);
}

std::uint32_t ManagerImpl::hot_first(std::uint64_t tokens) const {
  return static_cast<std::uint32_t>((tokens - std::min<std::uint64_t>(tokens, config_.protect.recent)) / kBlockTokens);
}

void ManagerImpl::add_ref(BlockId id, bool hot, bool exact) {
  Block& block = pool_->block(id);
  // In opportunistic mode a resident block may be exact and its frame is not: nothing is to come back from there.
  if (lossy_ && exact && exact_refs_[index(id)]++ == 0 && block.frame != FrameId::kNone &&
      is_lossy(frames_->frame(block.frame)))
    detach_frame(id);
  if (hot) ++block.hot_refs;
  if (++block.refs == 1) note_live(id, true);
  if (block.full()) update_candidate(id);  // else it is none, and becomes none
}

void ManagerImpl::release(BlockId id, bool hot, bool exact, bool forget) {
  Block& block = pool_->block(id);
  FIRN_CHECK(block.refs > 0 && (!hot || block.hot_refs > 0));
  if (lossy_ && exact) --exact_refs_[index(id)];
  if (hot) --block.hot_refs;
  if (--block.refs != 0) {
    update_candidate(id);
    return;
  }
  note_live(id, false);
  memory_->note_left(block.slot);
  if (forget) forget_key(id, MissReason::kNone);
  settle(id);
}

void ManagerImpl::move_window(Sequence& seq) {
  const std::uint32_t to = std::min(hot_first(seq.tokens.size()), seq.block_count());
  const std::uint32_t from = seq.hot_first;
  seq.hot_first = to;
  for (std::uint32_t i = std::max(std::min(from, to), sink_blocks()); i < std::max(from, to); ++i)
    for (const Table& table : seq.tables) {
      if (table.blocks[i] == BlockId::kNone) continue;
      Block& block = pool_->block(table.blocks[i]);
      if (to > from) {
        FIRN_CHECK(block.hot_refs > 0);
        --block.hot_refs;
      } else {
        ++block.hot_refs;
      }
      update_candidate(table.blocks[i]);
    }
}

std::uint32_t ManagerImpl::first_needed(const PageSet& set, std::uint64_t tokens) {
  switch (set.kind) {
    case GroupKind::kSlidingWindow:  // the next token sees window - 1 tokens before itself
      return static_cast<std::uint32_t>((tokens - std::min<std::uint64_t>(tokens, set.window - 1)) / kBlockTokens);
    case GroupKind::kState:  // the newest state, which is in the block of the last token
      return tokens == 0 ? 0 : static_cast<std::uint32_t>((tokens - 1) / kBlockTokens);
    case GroupKind::kFull:
    case GroupKind::kLatent:
      break;
  }
  return 0;
}

std::uint64_t ManagerImpl::replay_blocks(const Sequence& seq, std::uint64_t tokens) {
  const std::uint64_t most = std::min<std::uint64_t>(tokens == 0 ? 0 : tokens - 1, seq.max_reuse) / kBlockTokens;
  return most - (seq.drop_last && most != 0 ? 1 : 0);
}

// A recurrent state is kept where a step ends, at the last whole block before, which others may find, and where a
// reader with the same options stops: never behind the last token but one, which is computed for its logits. Not at
// every block that a long step passes.
bool ManagerImpl::takes_block(const Sequence& seq, const PageSet& set, std::uint32_t block, std::uint64_t certain) {
  if (set.kind != GroupKind::kState) return true;
  return block + 1 >= (certain == 0 ? 0 : certain - 1) / kBlockTokens || block + 1 == replay_blocks(seq, certain);
}

void ManagerImpl::slide_out(Sequence& seq) {
  if (!windowed_ || step_running(seq.step)) return;  // what somebody attends stays until the next commit
  for (std::size_t s = 0; s < seq.tables.size(); ++s) {
    Table& table = seq.tables[s];
    const std::uint32_t needed =
        std::min(first_needed(layout_.sets[s], seq.tokens.size()), static_cast<std::uint32_t>(table.blocks.size()));
    for (; table.first_held < needed; ++table.first_held) {
      const BlockId id = std::exchange(table.blocks[table.first_held], BlockId::kNone);
      if (id != BlockId::kNone) release(id, is_hot(seq, table.first_held), seq.exact(), /*forget=*/false);
    }
  }
}

// The block before this one of the sequence's, which slid out: where it was computed it was this one's parent, and if
// it still is what it was, this one's key says so.
BlockId ManagerImpl::block_before(const Sequence& seq, std::uint32_t block, BlockId id) const {
  if (id == BlockId::kNone || !pool_->block(id).full()) return BlockId::kNone;
  const Block& next = pool_->block(id);
  if (next.parent == BlockId::kNone || index(next.parent) >= pool_->block_capacity()) return BlockId::kNone;
  const Block& before = pool_->block(next.parent);
  if (!before.in_use || !before.full() || before.page_set != next.page_set || before.position != block - 1 ||
      block_key(seq, block, before.key,
                std::span(seq.tokens).subspan(std::size_t{block} * kBlockTokens, kBlockTokens)) != next.key)
    return BlockId::kNone;
  return next.parent;
}

// A sequence that ends is asked for again one block earlier than it came, because the last token is computed anew, or
// two. What the windows and states there need has slid out and waits for eviction: it is held once more, so that it is
// stored and let go like the rest.
void ManagerImpl::hold_for_replay(Sequence& seq) {
  if (!windowed_ || seq.preempted || seq.lost_from != ~0u) return;
  std::uint64_t point = seq.tokens.empty() ? 0 : (seq.tokens.size() - 1) / kBlockTokens;
  if (seq.drop_last && point != 0) --point;
  if (point == 0) return;
  for (std::uint8_t s = 0; s < seq.tables.size(); ++s) {
    Table& table = seq.tables[s];
    if (!is_windowed(layout_.sets[s]) || table.blocks.empty()) continue;
    const std::uint32_t from = first_needed(layout_.sets[s], point * kBlockTokens);
    std::uint32_t at = std::min(table.first_held, seq.committed_blocks());
    while (at > from) {
      BlockId before = BlockId::kNone;
      if (at == seq.committed_blocks()) {
        bool any = false;
        before = best_block(seq.last_key, PageSetId{s}, seq.min_fidelity, any);
      } else {
        before = block_before(seq, at, table.blocks[at]);
      }
      if (before == BlockId::kNone || table.blocks[--at] != BlockId::kNone) break;
      table.blocks[at] = before;
      table.first_held = at;
      add_ref(before, is_hot(seq, at), seq.exact());
    }
  }
}

BlockId ManagerImpl::best_block(const Key& key, PageSetId page_set, Fidelity min_fidelity, bool& any) const {
  // Of blocks with the same key that are good enough, one with its bytes in a slot is the cheapest.
  BlockId best = BlockId::kNone;
  for (BlockId id = index_->find(key, page_set); id != BlockId::kNone; id = pool_->block(id).next_duplicate) {
    any = true;
    if (pool_->block(id).fidelity > min_fidelity) continue;
    if (best == BlockId::kNone) best = id;
    if (pool_->block(id).slot != SlotId::kNone) return id;
  }
  return best;
}

std::uint32_t ManagerImpl::resume_point(const Found& found) const {
  std::uint32_t point = found.block_count();
  for (bool moved = windowed_; moved;) {  // each page set may only lower it
    moved = false;
    for (std::size_t s = 0; s < found.tables.size(); ++s) {
      if (!is_windowed(layout_.sets[s])) continue;
      // The window that ends at the point, from its end: a hole ends every window that has it, so go before it.
      std::uint32_t from = first_needed(layout_.sets[s], std::uint64_t{point} * kBlockTokens);
      for (std::uint32_t i = point; i > from;) {
        if (found.tables[s][--i] != BlockId::kNone) continue;
        point = i;
        from = first_needed(layout_.sets[s], std::uint64_t{point} * kBlockTokens);
        moved = true;
      }
    }
  }
  return point;
}

ManagerImpl::Row ManagerImpl::look_up(const Key& key, Fidelity min_fidelity, std::vector<BlockId>& ids) const {
  Row row;
  ids.clear();
  for (std::uint8_t s = 0; s < layout_.sets.size(); ++s) {
    bool any = false;
    const BlockId id = best_block(key, PageSetId{s}, min_fidelity, any);
    row.any = row.any || id != BlockId::kNone;
    row.ends = row.ends || (id == BlockId::kNone && !is_windowed(layout_.sets[s]));
    ids.push_back(id);
    if (id == BlockId::kNone && row.hole == MissReason::kNone)
      row.hole = any ? MissReason::kFidelity : ghosts_->reason(key);
  }
  return row;
}

// The longest chain of full blocks that somebody has, short of the last token.
ManagerImpl::Found ManagerImpl::find_prefix(std::span<const TokenId> tokens, const Scope& scope, bool all) const {
  Found found;
  found.tables.resize(layout_.sets.size());
  if (tokens.empty()) return found;
  const std::size_t usable = (tokens.size() - (all ? 0 : 1)) / kBlockTokens;
  const std::size_t most =
      std::min({usable, std::size_t{scope.max_tokens} / kBlockTokens,
                static_cast<std::size_t>(config_.max_sequence_tokens / kBlockTokens)});  // no sequence may have more
  if (usable == 0 && !partial_) {
    found.match.first_miss = MissReason::kPartialTail;
    return found;
  }
  const bool all_windowed =
      std::all_of(layout_.sets.begin(), layout_.sets.end(), [](const PageSet& set) { return is_windowed(set); });
  std::uint32_t run = 0;  // blocks that every page set without a window has
  std::vector<MissReason> holes;
  std::vector<BlockId> ids;
  Key parent{}, last{}, before_last{};
  for (std::size_t i = 0; i < most; ++i) {
    const auto block = tokens.subspan(i * kBlockTokens, kBlockTokens);
    const Key before = parent;
    Row row;
    bool in_shared = found.shared == i && i < scope.shared_blocks;
    if (in_shared) {
      parent = next_key(*scope.shared, scope.extras, before, block, i * std::uint64_t{kBlockTokens});
      row = look_up(parent, scope.min_fidelity, ids);
      in_shared = scope.share || (row.any && !row.ends);  // with share it is computed for that scope if it is not there
      found.shared += in_shared;
    }
    if (!in_shared) {
      parent = next_key(scope.own, scope.extras, before, block, i * std::uint64_t{kBlockTokens});
      row = look_up(parent, scope.min_fidelity, ids);
    }
    for (std::size_t s = 0; s < ids.size(); ++s) found.tables[s].push_back(ids[s]);
    if (windowed_ || row.ends || scope.drop_last) {
      holes.resize(i, MissReason::kNotRead);
      holes.push_back(row.hole);
    }
    if (row.ends) break;
    if (!row.any && all_windowed) continue;
    run = static_cast<std::uint32_t>(i) + 1;
    before_last = before;
    last = parent;
  }
  // What the request itself gives up was not read.
  if (holes.size() <= run) holes.resize(run + 1, MissReason::kNotRead);
  if (scope.drop_last && run != 0) {
    holes[--run] = MissReason::kNotRead;
    last = before_last;
  }
  for (std::vector<BlockId>& table : found.tables) table.resize(run);
  found.match.tokens_full = run * kBlockTokens;
  if (windowed_) cut_to_windows(found);
  const std::uint32_t point = found.block_count();
  found.match.first_miss = point == usable ? MissReason::kPartialTail : holes[point];
  if (point < run && found.match.first_miss == MissReason::kNeverStored) found.match.first_miss = MissReason::kGroup;
  if (point == 0 && usable != 0 && found.match.first_miss == MissReason::kNeverStored &&
      public_has(scope, tokens.first(kBlockTokens)))
    found.match.first_miss = MissReason::kNamespace;
  if (point == run && found.match.first_miss == MissReason::kNeverStored && scope.extras &&
      plain_has(scope, last, tokens.subspan(point * kBlockTokens, kBlockTokens)))
    found.match.first_miss = MissReason::kIdentity;
  found.match.tokens_found = found.block_count() * kBlockTokens;
  if (lossy_ && config_.protect.tail == "recompute") recompute_tail(found);
  for (std::uint32_t i = 0; i < found.block_count(); ++i) {
    const bool on_device = std::all_of(found.tables.begin(), found.tables.end(), [&](const auto& table) {
      return table[i] == BlockId::kNone || pool_->block(table[i]).slot != SlotId::kNone;
    });
    (on_device ? found.match.tokens_on_device : found.match.tokens_on_host) += kBlockTokens;
  }
  found.match.tokens = found.block_count() * kBlockTokens;
  found.shared = std::min(found.shared, found.block_count());
  if (partial_ && !all && !scope.drop_last && found.block_count() == run) find_partial(found, tokens, scope, last);
  found.match.recompute_from = found.match.tokens;
  return found;
}

// The prompt leaves the cached chain at a block boundary; perhaps some cached block goes on with the same tokens for a
// while. The one that does so longest is shared like a fork's tail: allocate() copies it before anybody writes to it.
void ManagerImpl::find_partial(Found& found, std::span<const TokenId> tokens, const Scope& scope,
                               const Key& last) const {
  const bool in_shared = found.shared == found.block_count() && found.shared < scope.shared_blocks;
  const KeyChain& chain = in_shared ? *scope.shared : scope.own;
  const Fidelity min_fidelity = scope.min_fidelity;
  const std::size_t most = std::min<std::size_t>(tokens.size() - 1, scope.max_tokens);
  const std::span<const TokenId> rest = tokens.subspan(found.match.tokens, most - found.match.tokens);
  const auto in_full = [&](std::span<const TokenId> has) {
    return next_key(chain, scope.extras, last, has, found.match.tokens);
  };
  std::uint32_t longest = 0;
  // First blocks hang under their namespace's root: how many there are elsewhere takes nobody's time.
  partial_->for_each_after(last.is_zero() ? chain.root() : last, [&](BlockId id) {
    const std::span<const TokenId> has = partial_->tokens(id);
    std::uint32_t same = 0;
    while (same < std::min<std::size_t>(rest.size(), kBlockTokens) && has[same] == rest[same]) ++same;
    if (same <= longest) return;
    const Block& block = pool_->block(id);
    if (block.coded || block.fidelity > min_fidelity || in_full(has) != block.key) return;
    std::vector<BlockId> blocks;
    for (std::uint8_t s = 0; s < layout_.sets.size(); ++s) {
      bool any = false;
      blocks.push_back(best_block(block.key, PageSetId{s}, min_fidelity, any));
      if (blocks.back() == BlockId::kNone || pool_->block(blocks.back()).coded) return;
    }
    longest = same;
    found.partial = std::move(blocks);
  });
  if (longest == 0) return;
  const bool on_device = std::all_of(found.partial.begin(), found.partial.end(),
                                     [&](BlockId id) { return pool_->block(id).slot != SlotId::kNone; });
  (on_device ? found.match.tokens_on_device : found.match.tokens_on_host) += longest;
  found.match.tokens += longest;
  found.match.tokens_partial = longest;
}

// Whether the namespace without a name, which everybody may read, has what this request did not look for there.
bool ManagerImpl::public_has(const Scope& scope, std::span<const TokenId> tokens) const {
  const KeyChain& open = namespaces_[0].chain;
  if (scope.own.root() == open.root() || (scope.shared_blocks != 0 && scope.shared->root() == open.root()))
    return false;
  std::vector<BlockId> ids;
  return look_up(next_key(open, scope.extras, {}, tokens, 0), Fidelity::kDerived, ids).any;
}

// Whether this namespace has the block as it is without the request's adapter and media.
bool ManagerImpl::plain_has(const Scope& scope, const Key& before, std::span<const TokenId> tokens) const {
  std::vector<BlockId> ids;
  return look_up(scope.own.next(before, tokens), Fidelity::kDerived, ids).any;
}

KeyChain ManagerImpl::chain_of(std::string_view name_space, std::uint16_t& number) const {
  const std::optional<std::uint16_t> known = namespaces_.find(name_space);
  number = known.value_or(kNewNamespace);
  return known ? namespaces_[*known].chain : KeyChain(identity_, name_space);
}

ManagerImpl::Scope ManagerImpl::make_scope(const BeginOptions& options, std::size_t tokens) const {
  std::uint16_t number = kNewNamespace;
  Scope scope{.own = chain_of(options.name_space, number),
              .min_fidelity = options.min_fidelity,
              .extras = options.extras.empty() ? nullptr : &options.extras,
              .max_tokens = options.max_reuse_tokens,
              .drop_last = options.drop_last_block};
  scope.own_space = number;
  if (!options.shared_scope) return scope;
  scope.shared = chain_of(*options.shared_scope, scope.shared_space);
  scope.shared_blocks = static_cast<std::uint32_t>(std::min<std::size_t>(options.shared_tokens, tokens) / kBlockTokens);
  scope.share = options.share;
  return scope;
}

Key ManagerImpl::next_key(const KeyChain& chain, const KeyExtras* extras, const Key& before,
                          std::span<const TokenId> tokens, std::uint64_t first_token) {
  return extras ? chain.next(before, tokens, block_extra(*extras, first_token)) : chain.next(before, tokens);
}

Key ManagerImpl::block_key(const Sequence& seq, std::uint32_t i, const Key& before,
                           std::span<const TokenId> tokens) const {
  return next_key(namespaces_[space_of(seq, i)].chain, seq.key_extras(), before, tokens,
                  i * std::uint64_t{kBlockTokens});
}

// The names of a sequence's first full blocks, from its tokens.
std::vector<Key> ManagerImpl::sequence_keys(const Sequence& seq, std::uint32_t blocks) const {
  std::vector<Key> keys;
  Key key{};
  for (std::uint32_t i = 0; i < blocks; ++i) {
    key = block_key(seq, i, key, std::span(seq.tokens).subspan(std::size_t{i} * kBlockTokens, kBlockTokens));
    keys.push_back(key);
  }
  return keys;
}

// Leaves what every page set can go on from; what a window does not reach is the null block.
void ManagerImpl::cut_to_windows(Found& found) const {
  const std::uint32_t point = resume_point(found);
  for (std::size_t s = 0; s < found.tables.size(); ++s) {
    found.tables[s].resize(point);
    const std::uint32_t needed = first_needed(layout_.sets[s], std::uint64_t{point} * kBlockTokens);
    std::fill_n(found.tables[s].begin(), needed, BlockId::kNone);
  }
}

// The window of a matched prefix is where the next token looks most, and a live sequence's window is never lossy.
void ManagerImpl::recompute_tail(Found& found) const {
  for (std::size_t i = std::max<std::size_t>(hot_first(found.match.tokens_found), sink_blocks());
       i < found.block_count(); ++i) {
    if (!pool_->block(found.tables[0][i]).coded) continue;
    found.tables[0].resize(i);
    found.match.first_miss = MissReason::kFidelity;
    return;
  }
}

bool ManagerImpl::attends_lossy(const Sequence& seq) const {
  if (!lossy_) return false;
  for (std::uint32_t i = 0; i < blocks_for(seq.tokens.size()); ++i)
    if (pool_->block(seq.tables[0].blocks[i]).fidelity != Fidelity::kExact) return true;
  return false;
}

PrefixMatch ManagerImpl::match_prefix(std::span<const TokenId> tokens, std::string_view name_space,
                                      Fidelity min_fidelity) const {
  return match_prefix(tokens, BeginOptions{.name_space = name_space, .min_fidelity = min_fidelity});
}

PrefixMatch ManagerImpl::match_prefix(std::span<const TokenId> tokens, const BeginOptions& options) const {
  Lock lock(mutex_);
  if (options.read_cache && validate(options.extras).ok())
    return find_prefix(tokens, make_scope(options, tokens.size())).match;
  PrefixMatch nothing;
  nothing.first_miss = options.read_cache ? MissReason::kNeverStored : MissReason::kNotRead;
  return nothing;
}

void ManagerImpl::hold(Sequence& seq, const Found& found) {
  seq.hot_first = hot_first(found.match.tokens);
  for (std::size_t s = 0; s < seq.tables.size(); ++s) {
    Table& table = seq.tables[s];
    table.blocks.assign(found.tables[s].begin(), found.tables[s].end());  // assign: its room is reserved
    if (!found.partial.empty()) table.blocks.push_back(found.partial[s]);
    table.first_held = first_needed(layout_.sets[s], std::uint64_t{found.block_count()} * kBlockTokens);
    // A sequence presses what it has computed; what it was given stays as it is, whether it has a copy yet or not.
    if (lossy_) table.store_next = std::max(table.store_next, found.block_count());
    for (std::uint32_t i = table.first_held; i < table.blocks.size(); ++i)
      add_ref(table.blocks[i], is_hot(seq, i), seq.exact());
  }
  seq.last_key = last_key(seq);
  if (!found.partial.empty()) slide_out(seq);
}

Result<std::shared_ptr<const HeldExtras>> ManagerImpl::hold_extras(const KeyExtras& extras) {
  if (extras.empty()) return std::shared_ptr<const HeldExtras>();
  std::uint64_t bytes = sizeof(HeldExtras) + extras.adapter.size();
  for (const MediaItem& item : extras.media) bytes += sizeof(MediaItem) + item.digest.size();
  auto held = std::make_shared<HeldExtras>();
  FIRN_ASSIGN(held->charge, ledger_->charge(Account::kMetadata, bytes));
  held->extras = extras;
  return std::shared_ptr<const HeldExtras>(std::move(held));
}

// A sequence with its names, its extras and room for its prompt.
Result<Sequence*> ManagerImpl::make_begun(std::size_t tokens, const BeginOptions& options) {
  FIRN_TRY(check_sequences());
  FIRN_ASSIGN(std::shared_ptr<const HeldExtras> extras, hold_extras(options.extras));
  FIRN_ASSIGN(const Spaces spaces, intern(options));
  FIRN_ASSIGN(Sequence * seq, make_sequence(spaces.own));
  seq->extras = std::move(extras);
  namespaces_.add_sequence(spaces.shared);
  seq->shared_space = spaces.shared;
  if (const Status status = no_throw([&] { return reserve_tokens(*seq, tokens); }); !status.ok()) {
    drop_sequence(*seq);
    return status;
  }
  return seq;
}

Result<Begun> ManagerImpl::begin(std::span<const TokenId> tokens, const BeginOptions& options) {
  Lock lock(mutex_);
  run_deferred();
  if (tokens.empty()) return Status(Code::kInvalidArgument, "begin: a prompt has at least one token");
  FIRN_TRY(check_length(tokens.size()).with_context("begin"));
  FIRN_TRY(validate(options.extras).with_context("begin"));
  FIRN_TRY(settle_lossy(lock).with_context("begin"));
  const Scope scope = make_scope(options, tokens.size());
  Found found;
  if (options.read_cache) {
    found = find_spare(tokens, scope);
  } else {
    found.tables.resize(layout_.sets.size());
    found.match.first_miss = MissReason::kNotRead;
  }
  FIRN_TRY(admit(found, tokens.size(), options, scope));
  const Result<Sequence*> made = make_begun(tokens.size(), options);
  if (!made.ok()) {
    reap_namespaces();  // whoever is not let in leaves no name
    return made.status();
  }
  Sequence* seq = *made;
  seq->shared_blocks = scope.share ? scope.shared_blocks : found.shared;
  seq->share = scope.share;
  seq->max_reuse = options.read_cache ? options.max_reuse_tokens : 0;
  seq->drop_last = options.drop_last_block;
  if (options.admission == Admission::kReserve)
    seq->expected = std::max(static_cast<std::uint32_t>(tokens.size()), options.expected_tokens);
  seq->tokens.assign(tokens.begin(), tokens.begin() + found.match.tokens);
  seq->min_fidelity = options.min_fidelity;
  hold(*seq, found);
  if (seq->expected != 0)
    keep_slots(*seq, whole_need(found, seq->expected, most_snapshots(seq->drop_last, seq->max_reuse)));
  announce_misses(*seq, tokens);
  seq->prompt_tokens = static_cast<std::uint32_t>(tokens.size());
  if (recorder_) recorder_->start(seq->begun = clock_());

  const std::uint64_t queried = blocks_for(tokens.size()), hits = found.block_count();
  counters_.prefix_cache_queries += queried;
  counters_.prefix_cache_hits += hits;
  counters_.hits_device += found.match.tokens_on_device / kBlockTokens;
  counters_.hits_host += found.match.tokens_on_host / kBlockTokens;
  counters_.partial_hit_tokens += found.match.tokens_partial;
  const std::uint64_t usable = (tokens.size() - 1) / kBlockTokens;
  const auto miss = [&](MissReason reason, std::uint64_t count) {
    counters_.misses[static_cast<std::size_t>(reason)] += count;
  };
  if (!options.read_cache) {
    miss(MissReason::kNotRead, queried);
  } else {
    if (hits < usable) {
      miss(found.match.first_miss, 1);
      miss(MissReason::kAfterMiss, usable - hits - 1);
    }
    miss(MissReason::kPartialTail, queried - usable);
  }
  return Begun{seq->id, found.match};
}

// The names of its first full blocks, as their records have them where they have.
std::vector<Key> ManagerImpl::keys_of(const Sequence& seq, std::uint32_t blocks) const {
  if (windowed_ || seq.preempted || seq.lost_from < blocks) return sequence_keys(seq, blocks);
  std::vector<Key> keys(blocks);
  for (std::uint32_t i = 0; i < blocks; ++i) keys[i] = pool_->block(seq.tables[0].blocks[i]).key;
  return keys;
}

// What was computed of it: a prompt that was given up half-way is recorded as far as it came.
void ManagerImpl::record_request(const Sequence& seq) noexcept {
  const std::size_t prompt = std::min<std::size_t>(seq.prompt_tokens, seq.tokens.size());
  if (!recorder_ || prompt == 0) return;
  try {
    recorder_->record(seq.id, seq.begun, static_cast<std::uint32_t>(prompt),
                      static_cast<std::uint32_t>(seq.tokens.size() - prompt),
                      keys_of(seq, static_cast<std::uint32_t>(prompt / kBlockTokens)));
  } catch (const std::bad_alloc&) {
    recorder_->lose(1, "out of memory");
  }
}

// What the prompt asked for and is not here will be computed: rules that remember what they evicted hear of it before
// allocate() has to make room.
void ManagerImpl::announce_misses(const Sequence& seq, std::span<const TokenId> tokens) {
  if (!slot_policy_->wants_misses()) return;
  Key key = seq.last_key;
  for (std::size_t i = seq.committed_blocks(); i < tokens.size() / kBlockTokens; ++i) {
    key = block_key(seq, static_cast<std::uint32_t>(i), key, tokens.subspan(i * kBlockTokens, kBlockTokens));
    slot_policy_->on_miss(policy_name(key), clock_());
  }
}

// Bytes of a block may change only while one sequence, and nobody else, can see them. A full block never changes; after
// a rewind into one that nobody else holds its key is gone, but its frame and the mover may still be looking at it.
bool ManagerImpl::must_copy(BlockId id) const {
  const Block& block = pool_->block(id);
  return block.refs > 1 || block.full() || block.slot == SlotId::kNone || block.frame != FrameId::kNone ||
         block.in_flight != 0;
}

ManagerImpl::Need ManagerImpl::blocks_needed(const Sequence& seq, std::uint64_t certain, std::uint64_t tokens) const {
  Need need;
  const std::uint32_t total = blocks_for(tokens), have = seq.block_count(), tail = seq.committed_blocks();
  // Of new blocks [from, to), those of the shared scope.
  const auto shared = [&](std::uint32_t from, std::uint32_t to) {
    return std::min(to, seq.shared_blocks) - std::min(from, std::min(to, seq.shared_blocks));
  };
  const bool shares = seq.shared_space != seq.name_space && tail < seq.shared_blocks;
  for (std::size_t s = 0; s < seq.tables.size(); ++s) {
    if (layout_.sets[s].kind != GroupKind::kState) {
      need.blocks += total > have ? total - have : 0;
      if (shares) need.shared += shared(have, std::max(have, total));
    } else {
      const auto takes = [&](std::uint32_t i) {
        need.blocks += 1;
        need.shared += shares && i < seq.shared_blocks;
      };
      for (std::uint32_t i = std::min(tail, have); i < std::min(have, total); ++i)
        if (seq.tables[s].blocks[i] == BlockId::kNone && takes_block(seq, layout_.sets[s], i, certain)) takes(i);
      // Behind the table: a run up to the end, and perhaps one more before it.
      const std::uint64_t whole = (certain == 0 ? 0 : certain - 1) / kBlockTokens, stop = replay_blocks(seq, certain);
      const auto first = static_cast<std::uint32_t>(std::max<std::uint64_t>(have, whole == 0 ? 0 : whole - 1));
      if (total > first) {
        need.blocks += total - first;
        if (shares) need.shared += shared(first, total);
      }
      if (stop > have && stop < whole) takes(static_cast<std::uint32_t>(stop - 1));
    }
    if (tokens > seq.tokens.size() && tail < have && seq.tables[s].blocks[tail] != BlockId::kNone &&
        must_copy(seq, tail, seq.tables[s].blocks[tail])) {
      ++need.copies;
      need.shared += shares;
    }
  }
  return need;
}

bool ManagerImpl::has_room(const Sequence& seq, const Need& need, bool while_reading) const {
  const std::uint64_t all = need.slots(), others = reserved_slots_ - seq.reserved;
  const auto fits = [&](std::uint16_t name_space, std::uint64_t slots, std::uint64_t own_reserved) {
    const Reach has = reach(name_space, while_reading);
    if (all + others > has.slots) return false;
    return has.below_ceiling == ~std::uint64_t{0} ||
           slots + namespaces_[name_space].kept() - own_reserved <= has.below_ceiling;
  };
  if (all == 0) return true;
  if (need.shared != 0 && !fits(seq.shared_space, need.shared, seq.reserved_shared)) return false;
  return need.shared == all || fits(seq.name_space, all - need.shared, seq.reserved_own);
}

// Records for new blocks: free ones, or those of blocks that are only in frames which may go. Counted one by one only
// where free ones do not do.
bool ManagerImpl::has_records(const Sequence& seq, std::uint64_t count) const {
  std::uint64_t records = pool_->free_records();
  if (records >= count) return true;
  // Whoever is evicted from a slot and has no copy leaves a record.
  const std::uint64_t evicted = count - std::min<std::uint64_t>(count, pool_->free_slots());
  std::uint64_t framed = 0;
  for (std::uint32_t i = 1; i < pool_->slot_count(); ++i) {
    if (pool_->state(SlotId{i}) != BlockPool::SlotState::kBound) continue;
    const Block& block = pool_->block(pool_->owner(SlotId{i}));
    framed += block.candidate && block.frame != FrameId::kNone;
  }
  records += evicted - std::min(evicted, framed);
  const bool quotas = namespaces_.any_quota(), families = retention_->any_family();
  for (std::uint32_t i = 0; i < frames_->capacity() && records < count; ++i) {
    const Frame& frame = frames_->frame(FrameId{i});
    if (!frame.in_use || !frame.candidate) continue;
    if (quotas && frame.name_space != seq.name_space && namespaces_[frame.name_space].quota.host_floor != 0) continue;
    std::uint64_t only = 0;
    bool stays = false;
    for (std::uint8_t j = 0; j < frame.block_count; ++j) {
      if (frame.blocks[j] == BlockId::kNone) continue;
      only += pool_->block(frame.blocks[j]).slot == SlotId::kNone;
      stays = stays || (families && retention_->family(frame.blocks[j]));
    }
    records += stays ? 0 : only;
  }
  return records >= count;
}

std::uint32_t ManagerImpl::available_slots(const Sequence* who) const {
  const auto beyond = [](std::uint64_t slots, std::uint64_t kept) { return slots - std::min(slots, kept); };
  if (!who) return static_cast<std::uint32_t>(beyond(reach(kAnyNamespace).slots, reserved_slots_));
  const Reach has = reach(who->name_space);
  const std::uint64_t slots = beyond(has.slots, reserved_slots_ - who->reserved);
  return static_cast<std::uint32_t>(
      std::min(slots, beyond(has.below_ceiling, namespaces_[who->name_space].kept() - who->reserved_own)));
}

// What the requests of a step have been given so far: each finds what those before it have left.
class ManagerImpl::StepBooks {
 public:
  StepBooks(const ManagerImpl& manager, std::uint64_t movable)
      : manager_(manager),
        movable_(movable),
        reserved_(manager.reserved_slots_),
        bytes_left_(manager.metadata_left()) {}

  // Of `wanted` more tokens for the sequence as many as allocate() would give; why not all of them.
  std::uint64_t give(const Sequence& seq, std::uint64_t wanted, Granted& granted) {
    One& one = of(seq);
    const std::uint64_t base = seq.tokens.size() + one.tokens;
    const auto refuse = [&](std::uint64_t given, const Status& status, bool by_slots = false) {
      if (granted.refusal.ok()) granted.refusal = status, granted.by_slots = by_slots;
      return given;
    };
    if (seq.lost_from != ~0u)
      return refuse(0, Status(Code::kCorrupt,
                              fmt::format("sequence {} lost what follows its first {} tokens {}; rewind "
                                          "to them",
                                          index(seq.id), std::uint64_t{seq.lost_from} * kBlockTokens, why_lost(seq))));
    if (manager_.copy_must_wait(seq) && manager_.blocks_needed(seq, base + wanted, base + wanted).copies != 0)
      return refuse(0, Status(Code::kUnavailable,
                              "the block to copy from is in a frame, and the device is behind: "
                              "wait_room()"));
    const std::uint64_t most = manager_.config_.max_sequence_tokens;
    std::uint64_t tokens = wanted;
    if (base + tokens > most) {
      refuse(0, manager_.check_length(base + tokens).with_context(fmt::format("sequence {}", index(seq.id))));
      tokens = most - std::min(most, base);
    }
    // The room of its tokens and tables, which grows with them.
    std::uint64_t room = 0;
    const auto bytes = [&](std::uint64_t count) { return manager_.growth_bytes(seq, base + count, &room); };
    if (bytes(tokens) > bytes_left_) {
      refuse(0, Status(Code::kNoSpace, fmt::format("{} bytes for the sequence's tokens and tables, and of "
                                                   "metadata.budget {} are left; raise it",
                                                   bytes(tokens), bytes_left_)));
      std::uint64_t fits = 0, too_many = tokens;  // by blocks: growth_bytes counts these
      while (too_many - fits > 1) {
        const std::uint64_t middle = fits + (too_many - fits) / 2;
        (bytes(middle) <= bytes_left_ ? fits : too_many) = middle;
      }
      if (bytes(fits) > bytes_left_) return 0;
      tokens = fits;
    }
    const std::uint64_t given = by_slots(seq, one, tokens);
    if (given < tokens) refuse(given, Status(Code::kNoSpace, ""), /*by_slots=*/true);
    take(seq, one, given);
    bytes_left_ -= bytes(given);
    return given;
  }

 private:
  struct One {
    SeqId seq = SeqId::kNone;
    std::uint64_t tokens = 0;
    Need need;  // for them
    std::uint64_t reserved = 0, reserved_own = 0, reserved_shared = 0;
    bool again = false;  // named before
  };
  struct Space {
    std::uint16_t id = 0;
    std::uint64_t taken = 0, reserved = 0;
    Reach reach;
  };
  One& of(const Sequence& seq) {
    for (One& one : sequences_)
      if (one.seq == seq.id) {
        one.again = true;
        return one;
      }
    sequences_.push_back({.seq = seq.id,
                          .tokens = 0,
                          .need = {},
                          .reserved = seq.reserved,
                          .reserved_own = seq.reserved_own,
                          .reserved_shared = seq.reserved_shared,
                          .again = false});
    return sequences_.back();
  }
  Space& space(std::uint16_t id) {
    for (Space& at : spaces_)
      if (at.id == id) return at;
    spaces_.push_back({id, 0, manager_.namespaces_[id].kept(), manager_.reach(id)});
    return spaces_.back();
  }
  // What one more grant takes. A state that ends elsewhere meanwhile may take blocks that it would not at once.
  Need more(const Sequence& seq, const One& one, std::uint64_t tokens) const {
    const std::uint64_t total = seq.tokens.size() + one.tokens + tokens;
    Need need = manager_.blocks_needed(seq, total, total);
    const auto minus = [&](std::uint32_t a, std::uint32_t b) {
      return one.again && manager_.windowed_ ? a : a - std::min(a, b);
    };
    need.blocks = minus(need.blocks, one.need.blocks);
    need.copies = minus(need.copies, one.need.copies);
    need.shared = minus(need.shared, one.need.shared);
    return need;
  }
  bool fits(const Sequence& seq, const One& one, std::uint64_t tokens) {
    const Need need = more(seq, one, tokens);
    const std::uint64_t all = need.slots(), others = reserved_ - one.reserved;
    if (all == 0) return true;
    const auto fits_in = [&](std::uint16_t id, std::uint64_t slots, std::uint64_t own) {
      const Space& at = space(id);
      if (taken_ + all + others > at.reach.slots + movable_) return false;
      return at.reach.below_ceiling == ~std::uint64_t{0} ||
             at.taken + slots + at.reserved - own <= at.reach.below_ceiling + movable_;
    };
    if (need.shared != 0 && !fits_in(seq.shared_space, need.shared, one.reserved_shared)) return false;
    if (need.shared != all && !fits_in(seq.name_space, all - need.shared, one.reserved_own)) return false;
    return manager_.has_records(seq, taken_ + all);
  }
  std::uint64_t by_slots(const Sequence& seq, const One& one, std::uint64_t tokens) {
    if (tokens == 0 || fits(seq, one, tokens)) return tokens;
    // Ends of blocks, the last one first: a state takes fewer where a step ends with a block. Whole halves are left out
    // where even the groups that take every block have no room.
    const std::uint64_t base = seq.tokens.size() + one.tokens;
    std::uint64_t low = base / kBlockTokens, high = (base + tokens) / kBlockTokens + 1;
    while (high - low > 4) {
      const std::uint64_t middle = low + (high - low) / 2;
      (middle * kBlockTokens <= base || fits(seq, one, middle * kBlockTokens - base) ? low : high) = middle;
    }
    for (std::uint64_t block = high; block > low; --block)
      if (block * kBlockTokens > base && block * kBlockTokens < base + tokens &&
          fits(seq, one, block * kBlockTokens - base))
        return block * kBlockTokens - base;
    if (low * kBlockTokens > base && fits(seq, one, low * kBlockTokens - base)) return low * kBlockTokens - base;
    return 0;
  }
  void take(const Sequence& seq, One& one, std::uint64_t tokens) {
    if (tokens == 0) return;
    const Need need = more(seq, one, tokens);
    // What is kept for it afterwards, as keep_slots() has it.
    const std::uint64_t left = one.reserved - std::min<std::uint64_t>(one.reserved, need.slots());
    const bool open = manager_.windowed_ || seq.tokens.size() % kBlockTokens != 0;
    const std::uint64_t shared =
        one.reserved_shared - (open ? 0 : std::min<std::uint64_t>(one.reserved_shared, need.shared));
    const std::uint64_t left_own = std::min(one.reserved_own, left), left_shared = std::min(shared, left);
    taken_ += need.slots();
    if (need.shared != 0) space(seq.shared_space).taken += need.shared;
    if (need.shared != need.slots()) space(seq.name_space).taken += need.slots() - need.shared;
    reserved_ -= one.reserved - left;
    for (Space& at : spaces_) {
      if (at.id == seq.name_space) at.reserved -= one.reserved_own - left_own;
      if (at.id == seq.shared_space) at.reserved -= one.reserved_shared - left_shared;
    }
    one.reserved = left;
    one.reserved_own = left_own;
    one.reserved_shared = left_shared;
    one.tokens += tokens;
    one.need.blocks += need.blocks;
    one.need.copies += need.copies;
    one.need.shared += need.shared;
  }

  const ManagerImpl& manager_;
  const std::uint64_t movable_;
  std::uint64_t reserved_ = 0, taken_ = 0, bytes_left_ = 0;
  std::deque<One> sequences_;
  std::vector<Space> spaces_;
};

// Each request has as many as what is left holds, in their order, and no more than a step has rows.
ManagerImpl::Granted ManagerImpl::grant(std::span<const StepRequest> requests, std::uint64_t movable) const {
  Granted granted;
  StepBooks books(*this, movable);
  for (const StepRequest& request : requests)
    granted.tokens += books.give(*find_sequence(request.seq),
                                 std::min<std::uint64_t>(request.new_tokens, max_rows_ - granted.tokens), granted);
  return granted;
}

// Slots that pressing cold blocks, or a fence that passes, may still give.
std::uint64_t ManagerImpl::movable_slots() const {
  std::uint64_t movable = 0;
  if (host_)
    for (const auto& [number, seq] : sequences_)
      for (const Table& table : seq->tables)
        for (std::uint32_t i = std::max(sink_blocks(), table.first_held); i < pressable(*seq, table); ++i) {
          if (table.blocks[i] == BlockId::kNone) continue;
          const Block& block = pool_->block(table.blocks[i]);
          movable += block.slot != SlotId::kNone && !block.candidate && block.hot_refs == 0;
        }
  for (const Deferred& deferred : deferred_)
    for (const Table& table : deferred.tables) movable += table.blocks.size() - table.first_held;
  return movable;
}

Result<StepPlan> ManagerImpl::plan_step(std::span<const StepRequest> requests) const {
  Lock lock(mutex_);
  catch_up();
  StepPlan plan;
  std::uint64_t wanted = 0, cold_bytes = 0;
  std::unordered_map<std::uint64_t, std::uint64_t> named;  // tokens of each sequence
  for (const StepRequest& request : requests) {
    const Sequence* seq = find_sequence(request.seq);
    if (!seq || seq->preempted)
      return Status(Code::kInvalidArgument, fmt::format("plan_step: sequence {} {}", index(request.seq),
                                                        seq ? "is preempted; resume() it first" : "does not exist"));
    const auto [of, first] = named.try_emplace(index(request.seq), 0);
    const std::uint64_t before = seq->tokens.size() + of->second, after = before + request.new_tokens;
    const std::uint32_t had = blocks_needed(*seq, before, before).slots(),
                        has = blocks_needed(*seq, after, after).slots();
    plan.blocks_needed += first ? has : has - std::min(has, had);
    of->second += request.new_tokens;
    wanted += request.new_tokens;
    for (std::size_t s = 0; s < seq->tables.size(); ++s)
      for (const BlockId id : seq->tables[s].blocks)
        if (first && id != BlockId::kNone && pool_->block(id).slot == SlotId::kNone)
          cold_bytes += kBlockTokens * layout_.sets[s].kv.token_bytes();
  }
  const Granted now = grant(requests, 0);
  // What could move is counted only where what is there does not do: it takes a walk over all that lives.
  const Granted moved =
      now.tokens < std::min<std::uint64_t>(wanted, max_rows_) ? grant(requests, movable_slots()) : now;
  plan.staging_bytes = cold_bytes;
  plan.workspace_bytes = workspace_->bytes;
  plan.chunk_limit = static_cast<std::uint32_t>(now.tokens);
  plan.chunk_limit_moved = static_cast<std::uint32_t>(std::max(now.tokens, moved.tokens));
  if (plan.chunk_limit != 0 || wanted == 0) return plan;
  if (plan.chunk_limit_moved != 0) {
    plan.blocked =
        Status(Code::kUnavailable, "blocks are on their way to the host or behind a fence: pump() or wait_room()");
  } else if (!now.by_slots) {
    plan.blocked = now.refusal;
  } else {
    plan.blocked = Status(Code::kNoSpace, fmt::format("all {} slots are held by live sequences; free one or raise "
                                                      "pool.budget",
                                                      pool_->slot_total()));
  }
  return plan;
}

Result<BlockId> ManagerImpl::make_block(const Sequence& seq, PageSetId page_set, std::uint32_t position) {
  const std::uint16_t name_space = space_of(seq, position);
  const SlotId slot = take_slot(name_space);
  if (slot == SlotId::kNone && running_steps_ != 0)
    return Status(
        Code::kUnavailable,
        "allocate: cold blocks could make room, but a step of another thread may be reading them; wait_room(), "
        "then again");
  if (slot == SlotId::kNone)
    return Status(Code::kNoSpace, "allocate: what could be evicted is kept by a family, a quota or a pin");
  struct Taken {  // goes back to the free ones, whatever fails
    BlockPool& pool;
    SlotId slot;
    ~Taken() {
      if (slot != SlotId::kNone) pool.put_free_slot(slot, /*at_head=*/true);
    }
  } taken{*pool_, slot};
  if (!make_record_room(name_space))
    return Status(Code::kNoSpace, "allocate: every block record is in use; raise metadata.budget or host.budget");
  if (!slot_serials_.empty())
    if (const Status status = clear_if_foreign(slot, name_space); !status.ok())
      return status.with_context("allocate: clearing a slot that was another namespace's");
  taken.slot = SlotId::kNone;
  const BlockId id = pool_->make_record();
  pool_->set_namespace(id, name_space);
  Block& block = pool_->block(id);
  block.position = position;
  block.page_set = page_set;
  const std::vector<BlockId>& table = seq.tables[index(page_set)].blocks;
  if (position != 0 && position <= table.size()) block.parent = table[position - 1];
  pool_->bind(slot, id);
  return id;
}

Status ManagerImpl::copy_block(BlockId from, BlockId to, std::uint32_t tokens) {
  if (!bytes_) return {};
  const Block& source = pool_->block(from);
  const PageSet& set = set_of(source);
  const SlotId slot = pool_->block(to).slot;
  if (source.slot != SlotId::kNone) {
    std::vector<CopyItem> items;
    for (std::uint32_t layer = 0; layer < set.layer_count; ++layer)
      items.push_back({memory_->view(set, source.slot, layer), memory_->view(set, slot, layer), tokens});
    return memory_->copy(set.kv, items);
  }
  // Its bytes are in a frame: decode that one block straight into the new slot.
  if (source.frame == FrameId::kNone)
    return Status(Code::kCorrupt, "the block to copy from was lost; rewind and recompute");
  const Frame& frame = frames_->frame(source.frame);
  const MemoryTier::Pin pin = host_->find(frame.key);
  if (!pin) return Status(Code::kCorrupt, "the frame of the block to copy from is gone; rewind and recompute");
  std::array<SlotId, kMaxExtentBlocks> slots;
  slots.fill(SlotId::kNone);
  slots[source.frame_index] = slot;
  DecodeJob job{.frame = pin.bytes(),
                .shape = extent_shape(set, frame.block_count),
                .label = label_of(frame),
                .layer = 0,
                .layer_count = set.layer_count,
                .views = {},
                .status = {}};
  memory_->decode(codec_for(frame), job, set, std::span(slots).first(frame.block_count), threads_);
  return job.status;
}

Status ManagerImpl::refuse_allocation(const Sequence& seq, const Need& need) {
  const std::uint32_t available = available_slots(&seq);
  ++counters_.allocations_refused;
  if (running_steps_ != 0 && has_room(seq, need, /*while_reading=*/false))
    return Status(
        Code::kUnavailable,
        "allocate: cold blocks could make room, but a step of another thread may be reading them; wait_room(), "
        "then again");
  const std::uint32_t slots = need.slots();
  press_cold();
  if (may_free_slots())
    return Status(Code::kUnavailable,
                  fmt::format("allocate: {} slots needed, {} available; cold blocks are on their way to the host, or "
                              "the fence of a freed sequence has not passed: pump() or wait_room(), then again",
                              slots, available));
  const std::string pinned =
      retention_->held_count() == 0 ? "" : fmt::format(" ({} blocks are pinned)", retention_->held_count());
  return Status(Code::kNoSpace,
                fmt::format("allocate: {} slots needed, {} available, and live sequences hold the others{}{}; free a "
                            "sequence or raise pool.budget{}",
                            slots, available, pinned,
                            ceiling_slots(seq.name_space) == ~0u ? "" : " (the namespace has a ceiling)",
                            host_ ? " or host.budget" : ""));
}

Result<std::vector<CopyOrder>> ManagerImpl::allocate(SeqId id, std::uint32_t new_tokens, std::uint32_t lookahead) {
  Lock lock(mutex_);
  run_deferred();
  FIRN_ASSIGN(Sequence * seq, get_sequence(id, "allocate"));
  if (seq->lost_from != ~0u)
    return Status(Code::kCorrupt,
                  fmt::format("allocate: sequence {} lost what follows its first {} tokens {}; rewind to them",
                              index(id), std::uint64_t{seq->lost_from} * kBlockTokens, why_lost(*seq)));
  const std::uint64_t certain = seq->tokens.size() + std::uint64_t{new_tokens}, total = certain + lookahead;
  if (total > config_.max_sequence_tokens)
    return check_length(total).with_context(fmt::format("allocate: sequence {}", index(id)));
  // Everything that could refuse is asked before anything is changed: after this only the device can, or a frame.
  const Need need = blocks_needed(*seq, certain, total);
  if (!has_room(*seq, need)) return refuse_allocation(*seq, need);
  if (!has_records(*seq, need.slots()))
    return Status(Code::kNoSpace, "allocate: every block record is in use; raise metadata.budget or host.budget");
  if (need.copies != 0 && copy_must_wait(*seq))
    return Status(Code::kUnavailable,
                  "allocate: the block to copy from is in a frame, and the device is behind: wait_room(), then again");
  if (need.copies != 0 && step_running(seq->step))
    return Status(Code::kUnavailable,
                  "allocate: the last block would be copied, and a step of another thread is reading it: wait_room(), "
                  "then again");
  FIRN_TRY(reserve_tokens(*seq, total));

  std::vector<CopyOrder> orders;
  std::vector<BlockId> copied;  // tails that were copied, by page set; held until nothing can fail any more
  const std::uint32_t had = seq->block_count(), tail = seq->committed_blocks();
  std::vector<BlockId*> filled;  // entries that were the null block
  // From here on only what makes a block may fail, for want of memory too; and then nothing has changed.
  orders.reserve(need.copies);
  if (windowed_) filled.reserve(need.blocks);
  const auto undo = [&](const Status& status) {
    for (std::size_t s = seq->tables.size(); s-- > 0;)
      for (std::vector<BlockId>& blocks = seq->tables[s].blocks; blocks.size() > had;) {
        const BlockId last = blocks.back();
        blocks.pop_back();
        if (last != BlockId::kNone) release(last, /*hot=*/true, seq->exact(), /*forget=*/true);
      }
    for (BlockId* entry : filled)
      release(std::exchange(*entry, BlockId::kNone), /*hot=*/true, seq->exact(), /*forget=*/true);
    for (std::size_t s = 0; s < copied.size(); ++s)
      if (copied[s] != BlockId::kNone)
        release(std::exchange(seq->tables[s].blocks[tail], copied[s]), is_hot(*seq, tail), seq->exact(),
                /*forget=*/true);
    return status;
  };
  if (need.copies != 0) copied.resize(seq->tables.size(), BlockId::kNone);
  for (std::uint8_t s = 0; s < copied.size(); ++s) {
    const BlockId from = seq->tables[s].blocks[tail];
    if (from == BlockId::kNone || !must_copy(*seq, tail, from)) continue;
    // A state is one thing, not rows of tokens.
    const std::uint32_t tokens = layout_.sets[s].kind == GroupKind::kState
                                     ? kBlockTokens
                                     : static_cast<std::uint32_t>(seq->tokens.size()) % kBlockTokens;
    const Result<BlockId> to = no_throw([&] { return make_block(*seq, PageSetId{s}, tail); });
    if (!to.ok()) return undo(to.status());
    add_ref(*to, is_hot(*seq, tail), seq->exact());
    // A copy is as exact as what it was copied from, and so is the block that it becomes a part of.
    pool_->block(*to).fidelity = pool_->block(from).fidelity;
    pool_->block(*to).coded = pool_->block(from).coded;
    if (const Status status = no_throw([&] { return copy_block(from, *to, tokens); }); !status.ok()) {
      release(*to, is_hot(*seq, tail), seq->exact(), /*forget=*/true);
      return undo(status);
    }
    orders.push_back({pool_->block(from).slot, pool_->block(*to).slot, tokens, PageSetId{s}});
    copied[s] = std::exchange(seq->tables[s].blocks[tail], *to);
  }
  const std::uint32_t blocks = std::max(had, blocks_for(total));
  for (std::uint8_t s = 0; s < seq->tables.size(); ++s) {
    Table& table = seq->tables[s];
    const PageSet& set = layout_.sets[s];
    for (std::uint32_t i = set.kind == GroupKind::kState ? std::min(tail, had) : had; i < blocks; ++i) {
      const bool hole = i < had;
      // A table may reach further than this step does, from an earlier one that was not committed.
      const bool beyond = i >= blocks_for(total);
      if ((hole && (beyond || table.blocks[i] != BlockId::kNone)) || !takes_block(*seq, set, i, certain)) {
        if (!hole) table.blocks.push_back(BlockId::kNone);
        continue;
      }
      const Result<BlockId> made = no_throw([&] { return make_block(*seq, PageSetId{s}, i); });
      if (!made.ok()) return undo(made.status());
      add_ref(*made, /*hot=*/true, seq->exact());  // it is behind the committed tokens
      if (hole) {
        table.blocks[i] = *made;
        filled.push_back(&table.blocks[i]);
      } else {
        table.blocks.push_back(*made);
      }
    }
  }
  for (const BlockId block : copied) {
    if (block == BlockId::kNone) continue;
    ++counters_.copy_on_writes;
    release(block, is_hot(*seq, tail), seq->exact(), /*forget=*/false);
  }
  take_reserved(*seq, need.slots());
  return orders;
}

Status ManagerImpl::check_commit(const Sequence& seq, std::uint64_t total) const {
  if (total == seq.tokens.size()) return {};
  const std::uint32_t first = seq.committed_blocks(), last = static_cast<std::uint32_t>((total - 1) / kBlockTokens);
  for (const Table& table : seq.tables) {
    if (seq.lost_from != ~0u || (table.blocks[first] != BlockId::kNone && must_copy(seq, first, table.blocks[first])))
      return Status(Code::kInvalidArgument, "commit: the sequence's last block is shared or was lost; allocate first");
    if (table.blocks[last] == BlockId::kNone)
      return Status(Code::kInvalidArgument,
                    fmt::format("commit: no block was allocated for the recurrent state after {} tokens; commit what "
                                "was allocated, and give allocate() what may be discarded as lookahead",
                                total));
  }
  return {};
}

Status ManagerImpl::commit(SeqId id, std::span<const TokenId> tokens) {
  Lock lock(mutex_);
  moment_.reset();
  FIRN_ASSIGN(Sequence * seq, get_sequence(id, "commit"));
  const std::uint64_t total = seq->tokens.size() + tokens.size();
  FIRN_TRY(check_length(total).with_context("commit"));
  if (total > std::uint64_t{seq->block_count()} * kBlockTokens)
    return Status(Code::kInvalidArgument,
                  fmt::format("commit: {} tokens after {} do not fit the {} allocated; allocate first", tokens.size(),
                              seq->tokens.size(), std::uint64_t{seq->block_count()} * kBlockTokens));
  const std::uint32_t first = seq->committed_blocks();
  FIRN_TRY(check_commit(*seq, total));
  const bool derived = !tokens.empty() && attends_lossy(*seq);
  seq->tokens.insert(seq->tokens.end(), tokens.begin(), tokens.end());
  Key key = seq->last_key;
  for (std::uint32_t i = first; i < seq->committed_blocks(); ++i) {
    const Key before = key;
    const std::uint16_t space = space_of(*seq, i);
    key = block_key(*seq, i, before, std::span(seq->tokens).subspan(std::size_t{i} * kBlockTokens, kBlockTokens));
    for (const Table& table : seq->tables) {
      if (table.blocks[i] == BlockId::kNone) continue;
      Block& block = pool_->block(table.blocks[i]);
      FIRN_CHECK(block.name_space == space);  // else it was copied: must_copy()
      if (derived) block.fidelity = Fidelity::kDerived;
      block.key = key;
      block.parent = i == 0 ? BlockId::kNone : table.blocks[i - 1];
      index_->insert(table.blocks[i]);
      if (partial_ && index(block.page_set) == 0)
        partial_->insert(table.blocks[i], before.is_zero() ? namespaces_[space].chain.root() : before,
                         std::span(seq->tokens).subspan(std::size_t{i} * kBlockTokens, kBlockTokens));
      note_named(table.blocks[i], before);
    }
  }
  if (derived && total % kBlockTokens != 0)
    pool_->block(seq->tables[0].blocks[seq->committed_blocks()]).fidelity = Fidelity::kDerived;
  seq->last_key = key;
  if (!seq->ranges.empty())  // without memory for it they have none: counted
    no_throw([&] { return apply_retention(*seq, first, seq->committed_blocks()); }).ok();
  move_window(*seq);
  slide_out(*seq);
  queue_cold(*seq, /*ending=*/false);
  if (windowed_ || host_ || seq->reserved_shared != 0)
    renew_reservation(*seq);  // what slid out or went below is not its room any more
  return {};
}

Result<SeqId> ManagerImpl::fork(SeqId id) {
  Lock lock(mutex_);
  moment_.reset();
  FIRN_ASSIGN(const Sequence* parent, get_sequence(id, "fork"));
  FIRN_TRY(check_fork(*parent));
  FIRN_ASSIGN(Sequence * child, make_sequence(parent->name_space));
  parent = find_sequence(id);
  namespaces_.add_sequence(parent->shared_space);
  child->shared_space = parent->shared_space;
  child->shared_blocks = std::min(parent->shared_blocks, parent->committed_blocks());
  const Status status = no_throw([&]() -> Status {
    if (!parent->ranges.empty()) {
      FIRN_ASSIGN(child->ranges_charge,
                  ledger_->charge(Account::kMetadata, parent->ranges.size() * sizeof(RetentionRange)));
    }
    child->ranges = parent->ranges;
    return reserve_tokens(*child, parent->tokens.size());
  });
  if (!status.ok()) {
    drop_sequence(*child);
    return status;
  }
  child->tokens.assign(parent->tokens.begin(), parent->tokens.end());
  child->prompt_tokens = static_cast<std::uint32_t>(parent->tokens.size());
  child->begun = clock_();
  const std::uint32_t shared = blocks_for(parent->tokens.size());
  child->hot_first = std::min(parent->hot_first, shared);
  child->lost_from = parent->lost_from;
  child->lost_device = parent->lost_device;
  child->min_fidelity = parent->min_fidelity;
  child->max_reuse = parent->max_reuse;
  child->drop_last = parent->drop_last;
  child->extras = parent->extras;
  child->last_key = parent->last_key;
  for (std::size_t s = 0; s < child->tables.size(); ++s) {
    Table& table = child->tables[s];
    const Table& from = parent->tables[s];
    table.blocks.assign(from.blocks.begin(), from.blocks.begin() + shared);
    table.store_next = from.store_next;
    table.first_held = std::min(from.first_held, shared);
    for (std::uint32_t i = table.first_held; i < shared; ++i)
      if (table.blocks[i] != BlockId::kNone) add_ref(table.blocks[i], is_hot(*child, i), child->exact());
  }
  // Whoever writes first copies the tail: room that is kept for the parent has to do for that too.
  renew_reservation(*find_sequence(id));
  return child->id;
}

Status ManagerImpl::rewind(SeqId id, std::uint32_t n) {
  Lock lock(mutex_);
  moment_.reset();
  FIRN_ASSIGN(Sequence * seq, get_sequence(id, "rewind"));
  if (n > seq->tokens.size())
    return Status(Code::kInvalidArgument,
                  fmt::format("rewind: sequence {} has {} tokens, not {}", index(id), seq->tokens.size(), n));
  if (strict_lossy()) {  // what commit has made lossy stays that: none of it is to be kept raw by being quick
    FIRN_TRY(settle_lossy(lock).with_context("rewind"));
    FIRN_ASSIGN(seq, get_sequence(id, "rewind"));  // settling lets go of the lock
    if (n > seq->tokens.size()) return Status(Code::kInvalidArgument, "rewind: another thread has rewound it further");
  }
  const std::uint32_t keep = blocks_for(n);
  if (keep > seq->lost_from)
    return Status(Code::kInvalidArgument, fmt::format("rewind: only the first {} tokens are left",
                                                      std::uint64_t{seq->lost_from} * kBlockTokens));
  // A step of another thread may be reading what is dropped, and writing behind what is kept: both stay until it is
  // over, and this sequence goes on in a copy.
  Deferred held{.tables = std::vector<Table>(seq->tables.size()),
                .hot_first = seq->hot_first,
                .fence = {},
                .charge = {},
                .small = false,
                .exact = seq->exact(),
                .step = seq->step,
                .forget = true};
  const bool attended = step_running(seq->step);
  if (attended) {
    FIRN_ASSIGN(held.charge, ledger_->charge(Account::kMetadata, sequence_bytes(seq->block_count() * kBlockTokens)));
    make_deferred_room();
    for (Table& table : held.tables) {
      table.blocks.assign(seq->block_count(), BlockId::kNone);
      table.first_held = n % kBlockTokens == 0 ? keep : keep - 1;
    }
  }
  FIRN_ASSIGN(const std::vector<TakenBack> back, reach_back(*seq, n));
  FIRN_TRY(check_rewind(*seq, n, back));
  take_back(*seq, n, back);
  for (std::size_t s = seq->tables.size(); s-- > 0;) {
    std::vector<BlockId>& blocks = seq->tables[s].blocks;
    while (blocks.size() > keep) {
      const std::uint32_t last = static_cast<std::uint32_t>(blocks.size()) - 1;
      const BlockId dropped = blocks.back();
      const bool hot = is_hot(*seq, last);
      blocks.pop_back();
      if (dropped == BlockId::kNone) continue;
      if (!attended) {
        release(dropped, hot, seq->exact(), /*forget=*/true);
        continue;
      }
      held.tables[s].blocks[last] = dropped;
      if (pool_->block(dropped).refs != 1) continue;
      forget_key(dropped, MissReason::kNone);
      update_candidate(dropped);
    }
  }
  seq->hot_first = std::min(seq->hot_first, keep);
  seq->tokens.resize(n);
  for (Table& table : seq->tables) {
    table.first_held = std::min(table.first_held, keep);
    // The kept part of a full block is not that block any more.
    if (n % kBlockTokens == 0 || table.blocks[keep - 1] == BlockId::kNone) continue;
    if (pool_->block(table.blocks[keep - 1]).refs != 1) continue;
    forget_key(table.blocks[keep - 1], MissReason::kNone);
    update_candidate(table.blocks[keep - 1]);
  }
  if (attended) {
    for (std::size_t s = 0; s < seq->tables.size() && n % kBlockTokens != 0; ++s) {
      const BlockId tail = seq->tables[s].blocks[keep - 1];
      if (tail == BlockId::kNone) continue;
      held.tables[s].blocks[keep - 1] = tail;
      add_ref(tail, keep - 1 < sink_blocks() || keep - 1 >= held.hot_first, seq->exact());
    }
    note_cut(*seq);
    deferred_.push_back(std::move(held));
  }
  move_window(*seq);
  // What follows is the engine's own affair and nobody's prompt, unless it computes again what was lost.
  if (!seq->share || n != std::uint64_t{seq->lost_from} * kBlockTokens)
    seq->shared_blocks = std::min(seq->shared_blocks, seq->committed_blocks());
  seq->last_key = last_key(*seq);
  for (Table& table : seq->tables)
    table.store_next = std::min(table.store_next, std::max(sink_blocks(), seq->committed_blocks()));
  seq->lost_from = ~0u;
  drop_kin();
  renew_reservation(*seq);
  return {};
}

// The key of the last full block, from any table that has it, else from the tokens.
Key ManagerImpl::last_key(const Sequence& seq) const {
  const std::uint32_t count = seq.committed_blocks();
  if (count == 0) return {};
  for (const Table& table : seq.tables)
    if (table.blocks[count - 1] != BlockId::kNone && pool_->block(table.blocks[count - 1]).full())
      return pool_->block(table.blocks[count - 1]).key;
  Key key{};  // one after the other: this is no place to run out of memory
  for (std::uint32_t i = 0; i < count; ++i)
    key = block_key(seq, i, key, std::span(seq.tokens).subspan(std::size_t{i} * kBlockTokens, kBlockTokens));
  return key;
}

// Before a rewind to n tokens: windows reach further back than they do now, so blocks that slid out are to be taken
// back, where they can still be found.
Result<std::vector<ManagerImpl::TakenBack>> ManagerImpl::reach_back(const Sequence& seq, std::uint32_t n) const {
  std::vector<TakenBack> back;
  if (!windowed_) return back;
  std::vector<Key> keys;
  const std::uint32_t keep = blocks_for(n);
  for (std::uint8_t s = 0; s < seq.tables.size(); ++s) {
    const Table& table = seq.tables[s];
    if (layout_.sets[s].kind == GroupKind::kState && n % kBlockTokens != 0 && n != seq.tokens.size())
      return Status(
          Code::kInvalidArgument,
          fmt::format("rewind: the recurrent state of group {} was kept after whole blocks only; rewind to {}",
                      index(layout_.sets[s].group), n / kBlockTokens * kBlockTokens));
    for (std::uint32_t i = std::min(first_needed(layout_.sets[s], n), keep); i < keep; ++i) {
      if (table.blocks[i] != BlockId::kNone) continue;
      if (keys.empty()) keys = sequence_keys(seq, seq.committed_blocks());
      bool any = false;
      const BlockId id = i < keys.size() ? best_block(keys[i], PageSetId{s}, seq.min_fidelity, any) : BlockId::kNone;
      if (id == BlockId::kNone)
        return Status(
            Code::kUnavailable,
            fmt::format("rewind: sequence {} has given up what {} tokens need in group {}, and it was evicted "
                        "or never kept; free it and begin() again",
                        index(seq.id), n, index(layout_.sets[s].group)));
      back.push_back({.page_set = s, .at = i, .id = id});
    }
  }
  return back;
}

void ManagerImpl::take_back(Sequence& seq, std::uint32_t n, std::span<const TakenBack> back) {
  for (const TakenBack& one : back) {
    seq.tables[one.page_set].blocks[one.at] = one.id;
    add_ref(one.id, is_hot(seq, one.at), seq.exact());
  }
  for (std::size_t s = 0; s < seq.tables.size() && windowed_; ++s)
    seq.tables[s].first_held = std::min(seq.tables[s].first_held, first_needed(layout_.sets[s], n));
}

void ManagerImpl::release_blocks(std::span<const Table> tables, std::uint32_t first_hot, bool exact, bool forget) {
  for (std::size_t i = tables[0].blocks.size(); i-- > 0;)  // the tail first, so that a prefix outlives its suffix
    for (std::size_t s = tables.size(); s-- > 0;)
      if (tables[s].blocks[i] != BlockId::kNone)
        release(tables[s].blocks[i], i < sink_blocks() || i >= first_hot, exact, forget);
}

Status ManagerImpl::free(SeqId id, const Fence& fence) {
  Lock lock(mutex_);
  run_deferred();
  Sequence* seq = find_sequence(id);
  if (!seq) return get_sequence(id, "free").status();
  const Result<bool> passed = ask_fence(fence);
  if (!passed.ok()) return passed.status().with_context("free");
  if (!*passed || step_running(seq->step)) make_deferred_room();
  record_request(*seq);
  take_reserved(*seq, seq->reserved);
  hold_for_replay(*seq);
  queue_cold(*seq, /*ending=*/true);
  if (!*passed || step_running(seq->step)) {
    note_cut(*seq);
    deferred_.push_back({std::move(seq->tables), seq->hot_first, *passed ? Fence{} : fence, std::move(seq->charge),
                         seq->small, seq->exact(), seq->step});
    seq->small = false;
  } else {
    release_blocks(seq->tables, seq->hot_first, seq->exact());
  }
  drop_sequence(*seq);
  reap_namespaces();
  return {};
}

void ManagerImpl::drop_sequence(Sequence& seq) {
  namespaces_.drop_sequence(seq.name_space);
  namespaces_.drop_sequence(seq.shared_space);
  if (!seq.small) {
    sequences_.erase(index(seq.id));
    return;
  }
  const SeqId id = seq.id;
  Sequence kept;  // nothing but its room
  kept.small = true;
  kept.tokens = std::move(seq.tokens);
  kept.tokens.clear();
  kept.tables = std::move(seq.tables);
  for (Table& table : kept.tables) {
    table.blocks.clear();
    table.store_next = table.first_held = 0;
  }
  seq = std::move(kept);
  spare_.push_back(sequences_.extract(index(id)));
}

void ManagerImpl::release_deferred() {
  for (std::size_t i = 0; i < deferred_.size();) {
    if (step_running(deferred_[i].step) || !device_->timeline().passed(deferred_[i].fence)) {
      ++i;
      continue;
    }
    release_blocks(deferred_[i].tables, deferred_[i].hot_first, deferred_[i].exact, deferred_[i].forget);
    small_sequences_ -= deferred_[i].small ? 1 : 0;
    deferred_.erase(deferred_.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

void ManagerImpl::run_deferred() {
  moment_.reset();
  free_retired();
  release_deferred();
  drop_kin();
  expire();
  reap_namespaces();
  if (!erase_later_.empty()) sweep_erased();
}

bool ManagerImpl::has_sequence(SeqId id) const {
  Lock lock(mutex_);
  return find_sequence(id) != nullptr;
}

std::uint32_t ManagerImpl::token_count(SeqId id) const {
  Lock lock(mutex_);
  const Sequence* seq = find_sequence(id);
  return seq ? static_cast<std::uint32_t>(seq->tokens.size()) : 0;
}

std::uint32_t ManagerImpl::usable_tokens(SeqId id) const {
  Lock lock(mutex_);
  const Sequence* seq = find_sequence(id);
  if (!seq || seq->preempted) return 0;
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(seq->tokens.size(), std::uint64_t{seq->lost_from} * kBlockTokens));
}

std::vector<SlotId> ManagerImpl::block_table(SeqId id, PageSetId page_set) const {
  Lock lock(mutex_);
  std::vector<SlotId> table;
  const Sequence* seq = find_sequence(id);
  if (!seq || index(page_set) >= seq->tables.size()) return table;
  for (const BlockId block : seq->tables[index(page_set)].blocks)
    table.push_back(block == BlockId::kNone ? SlotId{0} : pool_->block(block).slot);
  return table;
}

std::vector<Key> ManagerImpl::block_keys(SeqId id) const {
  Lock lock(mutex_);
  std::vector<Key> keys;
  const Sequence* seq = find_sequence(id);
  if (!seq || seq->preempted) return keys;
  if (windowed_) return sequence_keys(*seq, seq->committed_blocks());
  for (std::uint32_t i = 0; i < seq->committed_blocks(); ++i)
    keys.push_back(pool_->block(seq->tables[0].blocks[i]).key);
  return keys;
}

std::vector<Key> ManagerImpl::compute_keys(std::span<const TokenId> tokens, std::string_view name_space) const {
  return KeyChain(identity_, name_space).keys(tokens);
}

}  // namespace firn
