// sequences.cpp: begin, allocate, commit, fork, rewind, free, and the windows and references they move.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/manager_impl.h"

namespace firn {
namespace {

constexpr std::uint32_t kMaxNamespaces = 65535;
constexpr std::size_t kMaxNamespaceBytes = 4096;

std::uint32_t blocks_for(std::uint64_t tokens) {
  return static_cast<std::uint32_t>((tokens + kBlockTokens - 1) / kBlockTokens);
}

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
  if (Sequence* seq = find_sequence(id)) return seq;
  return Status(Code::kInvalidArgument,
                fmt::format("{}: sequence {} does not exist (freed already?)", call, index(id)));
}

Result<std::uint16_t> ManagerImpl::intern_namespace(std::string_view name) {
  for (std::size_t i = 0; i < namespaces_.size(); ++i)
    if (namespaces_[i].name == name) return static_cast<std::uint16_t>(i);
  if (name.size() > kMaxNamespaceBytes || namespaces_.size() >= kMaxNamespaces)
    return Status(Code::kInvalidArgument, fmt::format("namespace: at most {} of them, of at most {} bytes each",
                                                      kMaxNamespaces, kMaxNamespaceBytes));
  namespaces_.push_back({std::string(name), KeyChain(identity_, name)});
  return static_cast<std::uint16_t>(namespaces_.size() - 1);
}

Status ManagerImpl::reserve_tokens(Sequence& seq, std::uint64_t tokens) {
  if (tokens > config_.max_sequence_tokens)
    return Status(Code::kInvalidArgument, fmt::format("sequence {}: {} tokens are more than max_sequence_tokens = {}",
                                                      index(seq.id), tokens, config_.max_sequence_tokens));
  // Whole blocks, because commit may fill whatever allocate has given.
  const std::uint64_t least = std::uint64_t{blocks_for(tokens)} * kBlockTokens;
  if (least <= seq.tokens.capacity()) return {};
  const std::uint64_t most = std::uint64_t{blocks_for(config_.max_sequence_tokens)} * kBlockTokens;
  const std::uint64_t room = std::min(most, least + std::min<std::uint64_t>(least, 4096));
  FIRN_ASSIGN(Ledger::Charge charge, ledger_->charge(Account::kMetadata, sequence_bytes(room)));
  seq.tokens.reserve(room);
  seq.blocks.reserve(room / kBlockTokens + 2);
  seq.charge = std::move(charge);
  return {};
}

Result<Sequence*> ManagerImpl::make_sequence(std::uint16_t name_space) {
  if (sequences_.size() >= config_.max_sequences)
    return Status(Code::kNoSpace,
                  fmt::format("{} sequences are alive, as many as max_sequences allows", sequences_.size()));
  auto seq = std::make_unique<Sequence>();
  seq->id = SeqId{next_seq_++};
  seq->name_space = name_space;
  seq->store_next = sink_blocks();
  Sequence* made = seq.get();
  sequences_.emplace(index(made->id), std::move(seq));
  return made;
}

std::uint32_t ManagerImpl::hot_first(std::uint64_t tokens) const {
  return static_cast<std::uint32_t>((tokens - std::min<std::uint64_t>(tokens, config_.protect.recent)) / kBlockTokens);
}

void ManagerImpl::add_ref(BlockId id, bool hot) {
  Block& block = pool_->block(id);
  if (hot) ++block.hot_refs;
  if (++block.refs == 1) note_live(id, true);
  update_candidate(id);
}

void ManagerImpl::release(BlockId id, bool hot, bool forget) {
  Block& block = pool_->block(id);
  FIRN_CHECK(block.refs > 0 && (!hot || block.hot_refs > 0));
  if (hot) --block.hot_refs;
  if (--block.refs != 0) {
    update_candidate(id);
    return;
  }
  note_live(id, false);
  if (forget) forget_key(id, MissReason::kNone);
  settle(id);
}

void ManagerImpl::move_window(Sequence& seq) {
  const std::uint32_t to = std::min(hot_first(seq.tokens.size()), static_cast<std::uint32_t>(seq.blocks.size()));
  const std::uint32_t from = seq.hot_first;
  seq.hot_first = to;
  for (std::uint32_t i = std::max(std::min(from, to), sink_blocks()); i < std::max(from, to); ++i) {
    Block& block = pool_->block(seq.blocks[i]);
    if (to > from) {
      FIRN_CHECK(block.hot_refs > 0);
      --block.hot_refs;
    } else {
      ++block.hot_refs;
    }
    update_candidate(seq.blocks[i]);
  }
}

// The longest chain of full blocks that somebody has, short of the last token.
ManagerImpl::Found ManagerImpl::find_prefix(std::span<const TokenId> tokens, const KeyChain& chain,
                                            Fidelity min_fidelity) const {
  Found found;
  if (tokens.empty()) return found;
  const std::size_t usable = (tokens.size() - 1) / kBlockTokens;
  Key parent{};
  for (std::size_t i = 0; i < usable; ++i) {
    const Key key = chain.next(parent, tokens.subspan(i * kBlockTokens, kBlockTokens));
    // Of blocks with the same key that are good enough, one with its bytes in a slot is the cheapest.
    const BlockId any = index_->find(key);
    BlockId id = BlockId::kNone;
    for (BlockId other = any; other != BlockId::kNone; other = pool_->block(other).next_duplicate) {
      if (pool_->block(other).fidelity > min_fidelity) continue;
      if (id == BlockId::kNone) id = other;
      if (pool_->block(other).slot == SlotId::kNone) continue;
      id = other;
      break;
    }
    if (id == BlockId::kNone) {
      found.match.first_miss = any == BlockId::kNone ? ghosts_->reason(key) : MissReason::kFidelity;
      break;
    }
    found.blocks.push_back(id);
    parent = key;
  }
  if (found.blocks.size() == usable) found.match.first_miss = MissReason::kPartialTail;
  found.match.tokens_found = static_cast<std::uint32_t>(found.blocks.size()) * kBlockTokens;
  if (lossy_ && config_.protect.tail == "recompute") recompute_tail(found);
  for (const BlockId id : found.blocks)
    (pool_->block(id).slot != SlotId::kNone ? found.match.tokens_on_device : found.match.tokens_on_host) +=
        kBlockTokens;
  found.match.tokens = found.match.recompute_from = static_cast<std::uint32_t>(found.blocks.size()) * kBlockTokens;
  return found;
}

// The window of a matched prefix is where the next token looks most, and a live sequence's window is never lossy.
void ManagerImpl::recompute_tail(Found& found) const {
  for (std::size_t i = std::max<std::size_t>(hot_first(found.match.tokens_found), sink_blocks());
       i < found.blocks.size(); ++i) {
    if (!pool_->block(found.blocks[i]).coded) continue;
    found.blocks.resize(i);
    found.match.first_miss = MissReason::kFidelity;
    return;
  }
}

bool ManagerImpl::attends_lossy(const Sequence& seq, std::uint32_t blocks) const {
  if (!lossy_) return false;
  for (std::uint32_t i = 0; i < blocks; ++i)
    if (pool_->block(seq.blocks[i]).fidelity != Fidelity::kExact) return true;
  return false;
}

bool ManagerImpl::held_exact(BlockId id) const {
  const std::uint32_t position = pool_->block(id).position;
  for (const auto& [number, seq] : sequences_)
    if (seq->exact && position < seq->blocks.size() && seq->blocks[position] == id) return true;
  return false;
}

PrefixMatch ManagerImpl::match_prefix(std::span<const TokenId> tokens, std::string_view name_space,
                                      Fidelity min_fidelity) const {
  Lock lock(mutex_);
  for (const Namespace& known : namespaces_)
    if (known.name == name_space) return find_prefix(tokens, known.chain, min_fidelity).match;
  return find_prefix(tokens, KeyChain(identity_, name_space), min_fidelity).match;
}

Result<Begun> ManagerImpl::begin(std::span<const TokenId> tokens, const BeginOptions& options) {
  Lock lock(mutex_);
  run_deferred();
  if (tokens.empty()) return Status(Code::kInvalidArgument, "begin: a prompt has at least one token");
  FIRN_TRY(settle_lossy(lock).with_context("begin"));
  FIRN_ASSIGN(const std::uint16_t name_space, intern_namespace(options.name_space));
  Found found;
  if (options.read_cache) {
    found = find_prefix(tokens, namespaces_[name_space].chain, options.min_fidelity);
  } else {
    found.match.first_miss = MissReason::kNotRead;
  }
  FIRN_ASSIGN(Sequence * seq, make_sequence(name_space));
  if (const Status status = reserve_tokens(*seq, tokens.size()); !status.ok()) {
    sequences_.erase(index(seq->id));
    return status;
  }
  seq->tokens.assign(tokens.begin(), tokens.begin() + found.match.tokens);
  seq->blocks = found.blocks;
  seq->hot_first = hot_first(found.match.tokens);
  seq->exact = options.min_fidelity == Fidelity::kExact;
  // A sequence presses what it has computed; what it was given stays as it is, whether it has a copy yet or not.
  if (lossy_) seq->store_next = std::max(seq->store_next, static_cast<std::uint32_t>(seq->blocks.size()));
  for (std::uint32_t i = 0; i < seq->blocks.size(); ++i) add_ref(seq->blocks[i], is_hot(*seq, i));
  announce_misses(*seq, tokens);

  const std::uint64_t queried = blocks_for(tokens.size()), hits = found.blocks.size();
  counters_.prefix_cache_queries += queried;
  counters_.prefix_cache_hits += hits;
  counters_.hits_device += found.match.tokens_on_device / kBlockTokens;
  counters_.hits_host += found.match.tokens_on_host / kBlockTokens;
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

// What the prompt asked for and is not here will be computed: rules that remember what they evicted hear of it before
// allocate() has to make room.
void ManagerImpl::announce_misses(const Sequence& seq, std::span<const TokenId> tokens) {
  if (!slot_policy_->wants_misses()) return;
  const KeyChain& chain = namespaces_[seq.name_space].chain;
  Key key = seq.blocks.empty() ? Key{} : pool_->block(seq.blocks.back()).key;
  for (std::size_t i = seq.blocks.size(); i < tokens.size() / kBlockTokens; ++i) {
    key = chain.next(key, tokens.subspan(i * kBlockTokens, kBlockTokens));
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

ManagerImpl::Need ManagerImpl::blocks_needed(const Sequence& seq, std::uint64_t tokens) const {
  Need need;
  const std::uint32_t total = blocks_for(tokens), have = static_cast<std::uint32_t>(seq.blocks.size());
  need.blocks = total > have ? total - have : 0;
  const std::uint32_t tail = seq.committed_blocks();
  need.copy = tokens > seq.tokens.size() && tail < have && must_copy(seq.blocks[tail]);
  return need;
}

std::uint32_t ManagerImpl::available_slots() const {
  return pool_->free_slots() + static_cast<std::uint32_t>(slot_policy_->candidates());
}

// Tokens that the requests may have in their order, each as many as the slots left hold.
std::uint64_t ManagerImpl::tokens_that_fit(std::span<const StepRequest> requests, std::uint64_t slots) const {
  std::uint64_t tokens = 0;
  for (const StepRequest& request : requests) {
    const Sequence& seq = *find_sequence(request.seq);
    const Need need = blocks_needed(seq, seq.tokens.size() + request.new_tokens);
    if (need.slots() <= slots) {
      slots -= need.slots();
      tokens += request.new_tokens;
    } else if (!need.copy || slots != 0) {  // a tail that has to be copied first takes a slot and brings no room
      slots -= need.copy ? 1 : 0;
      tokens += seq.blocks.size() * kBlockTokens - seq.tokens.size() + slots * kBlockTokens;
      slots = 0;
    }
  }
  return tokens;
}

Result<StepPlan> ManagerImpl::plan_step(std::span<const StepRequest> requests) const {
  Lock lock(mutex_);
  StepPlan plan;
  std::uint64_t wanted = 0, cold_blocks = 0, movable = 0;
  for (const StepRequest& request : requests) {
    const Sequence* seq = find_sequence(request.seq);
    if (!seq)
      return Status(Code::kInvalidArgument, fmt::format("plan_step: sequence {} does not exist", index(request.seq)));
    plan.blocks_needed += blocks_needed(*seq, seq->tokens.size() + request.new_tokens).slots();
    wanted += request.new_tokens;
    for (const BlockId id : seq->blocks) cold_blocks += pool_->block(id).slot == SlotId::kNone;
  }
  if (host_)
    for (const auto& [number, seq] : sequences_)
      for (std::uint32_t i = sink_blocks(); i < pressable(*seq); ++i) {
        const Block& block = pool_->block(seq->blocks[i]);
        movable += block.slot != SlotId::kNone && !block.candidate && block.hot_refs == 0;
      }
  for (const Deferred& deferred : deferred_) movable += deferred.blocks.size();
  plan.staging_bytes = cold_blocks * kBlockTokens * model_.groups[0].kv.token_bytes();
  plan.workspace_bytes = workspace_.bytes;
  const auto limit = [&](std::uint64_t slots) {
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(max_rows_, tokens_that_fit(requests, slots)));
  };
  const std::uint64_t slots = available_slots();
  plan.chunk_limit = limit(slots);
  plan.chunk_limit_moved = limit(slots + movable);
  if (plan.chunk_limit == 0 && wanted != 0)
    plan.blocked =
        plan.chunk_limit_moved != 0
            ? Status(Code::kUnavailable, "blocks are on their way to the host or behind a fence: pump() or wait_room()")
            : Status(Code::kNoSpace, fmt::format("all {} slots are held by live sequences; free one or raise "
                                                 "pool.budget",
                                                 pool_->slot_count() - 1));
  return plan;
}

Result<BlockId> ManagerImpl::make_block(const Sequence& seq, std::uint32_t position) {
  const SlotId slot = take_slot();
  if (slot == SlotId::kNone || !make_record_room()) {
    if (slot != SlotId::kNone) pool_->put_free_slot(slot, /*at_head=*/true);
    return Status(Code::kNoSpace, "allocate: every block record is in use; raise metadata.budget or host.budget");
  }
  const BlockId id = pool_->make_record();
  Block& block = pool_->block(id);
  block.position = position;
  block.name_space = seq.name_space;
  if (position != 0 && position <= seq.blocks.size()) block.parent = seq.blocks[position - 1];
  pool_->bind(slot, id);
  return id;
}

Status ManagerImpl::copy_block(BlockId from, BlockId to, std::uint32_t tokens) {
  if (!bytes_) return {};
  const std::uint32_t layers = model_.groups[0].layer_count;
  const Block& source = pool_->block(from);
  const SlotId slot = pool_->block(to).slot;
  if (source.slot != SlotId::kNone) {
    std::vector<CopyItem> items;
    for (std::uint32_t layer = 0; layer < layers; ++layer)
      items.push_back({slot_view(source.slot, layer), slot_view(slot, layer), tokens});
    FIRN_ASSIGN(last_write_, device_->kernels().copy({model_.groups[0].kv, items}));
    return {};
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
                .shape = extent_shape(frame.block_count),
                .label = label_of(frame),
                .layer = 0,
                .layer_count = layers,
                .views = {},
                .status = {}};
  decode_slots(codec_for(frame), job, std::span(slots).first(frame.block_count), threads_);
  return job.status;
}

Result<std::vector<CopyOrder>> ManagerImpl::allocate(SeqId id, std::uint32_t new_tokens, std::uint32_t lookahead) {
  Lock lock(mutex_);
  run_deferred();
  FIRN_ASSIGN(Sequence * seq, get_sequence(id, "allocate"));
  if (seq->lost_from != ~0u)
    return Status(Code::kCorrupt,
                  fmt::format("allocate: sequence {} lost what follows its first {} tokens; rewind to them", index(id),
                              std::uint64_t{seq->lost_from} * kBlockTokens));
  const std::uint64_t total = seq->tokens.size() + std::uint64_t{new_tokens} + lookahead;
  const Need need = blocks_needed(*seq, total);
  if (need.slots() > available_slots()) {
    ++counters_.allocations_refused;
    press_cold();
    if (may_free_slots())
      return Status(Code::kUnavailable,
                    fmt::format("allocate: {} slots needed, {} available; cold blocks are on their way to the host, or "
                                "the fence of a freed sequence has not passed: pump() or wait_room(), then again",
                                need.slots(), available_slots()));
    return Status(
        Code::kNoSpace,
        fmt::format("allocate: {} slots needed, {} available, and live sequences hold the others; free a sequence "
                    "or raise pool.budget{}",
                    need.slots(), available_slots(), host_ ? " or host.budget" : ""));
  }
  FIRN_TRY(reserve_tokens(*seq, total));

  std::vector<CopyOrder> orders;
  const std::uint32_t had = static_cast<std::uint32_t>(seq->blocks.size()), tail = seq->committed_blocks();
  BlockId copied = BlockId::kNone;  // held until nothing can fail any more
  const auto undo = [&] {
    while (seq->blocks.size() > had) {
      const BlockId last = seq->blocks.back();
      seq->blocks.pop_back();
      release(last, /*hot=*/true, /*forget=*/true);
    }
    if (copied == BlockId::kNone) return;
    release(std::exchange(seq->blocks[tail], copied), is_hot(*seq, tail), /*forget=*/true);
  };
  if (need.copy) {
    const std::uint32_t tokens = static_cast<std::uint32_t>(seq->tokens.size()) % kBlockTokens;
    const BlockId from = seq->blocks[tail];
    FIRN_ASSIGN(const BlockId to, make_block(*seq, tail));
    add_ref(to, is_hot(*seq, tail));
    if (const Status status = copy_block(from, to, tokens); !status.ok()) {
      release(to, is_hot(*seq, tail), /*forget=*/true);
      return status;
    }
    orders.push_back({pool_->block(from).slot, pool_->block(to).slot, tokens});
    copied = std::exchange(seq->blocks[tail], to);
  }
  for (std::uint32_t i = 0; i < need.blocks; ++i) {
    const Result<BlockId> made = make_block(*seq, static_cast<std::uint32_t>(seq->blocks.size()));
    if (!made.ok()) {
      undo();
      return made.status();
    }
    add_ref(*made, /*hot=*/true);  // it is behind the committed tokens
    seq->blocks.push_back(*made);
  }
  if (copied != BlockId::kNone) {
    ++counters_.copy_on_writes;
    release(copied, is_hot(*seq, tail), /*forget=*/false);
  }
  return orders;
}

Status ManagerImpl::commit(SeqId id, std::span<const TokenId> tokens) {
  Lock lock(mutex_);
  FIRN_ASSIGN(Sequence * seq, get_sequence(id, "commit"));
  const std::uint64_t total = seq->tokens.size() + tokens.size();
  if (total > config_.max_sequence_tokens)
    return Status(Code::kInvalidArgument, fmt::format("commit: {} tokens are more than max_sequence_tokens = {}", total,
                                                      config_.max_sequence_tokens));
  if (total > seq->blocks.size() * kBlockTokens)
    return Status(Code::kInvalidArgument,
                  fmt::format("commit: {} tokens after {} do not fit the {} allocated; allocate first", tokens.size(),
                              seq->tokens.size(), seq->blocks.size() * kBlockTokens));
  const std::uint32_t first = seq->committed_blocks();
  if (!tokens.empty() && (seq->lost_from != ~0u || must_copy(seq->blocks[first])))
    return Status(Code::kInvalidArgument, "commit: the sequence's last block is shared or was lost; allocate first");
  seq->tokens.insert(seq->tokens.end(), tokens.begin(), tokens.end());
  const KeyChain& chain = namespaces_[seq->name_space].chain;
  const bool derived = attends_lossy(*seq, first);
  for (std::uint32_t i = first; i < seq->committed_blocks(); ++i) {
    Block& block = pool_->block(seq->blocks[i]);
    if (derived) block.fidelity = Fidelity::kDerived;
    const Key parent = i == 0 ? Key{} : pool_->block(seq->blocks[i - 1]).key;
    block.key = chain.next(parent, std::span(seq->tokens).subspan(std::size_t{i} * kBlockTokens, kBlockTokens));
    block.parent = i == 0 ? BlockId::kNone : seq->blocks[i - 1];
    index_->insert(seq->blocks[i]);
  }
  move_window(*seq);
  queue_cold(*seq, /*ending=*/false);
  return {};
}

Result<SeqId> ManagerImpl::fork(SeqId id) {
  Lock lock(mutex_);
  FIRN_ASSIGN(const Sequence* parent, get_sequence(id, "fork"));
  FIRN_ASSIGN(Sequence * child, make_sequence(parent->name_space));
  parent = find_sequence(id);
  if (const Status status = reserve_tokens(*child, parent->tokens.size()); !status.ok()) {
    sequences_.erase(index(child->id));
    return status;
  }
  child->tokens.assign(parent->tokens.begin(), parent->tokens.end());
  const std::uint32_t shared = blocks_for(parent->tokens.size());
  child->blocks.assign(parent->blocks.begin(), parent->blocks.begin() + shared);
  child->hot_first = std::min(parent->hot_first, shared);
  child->store_next = parent->store_next;
  child->lost_from = parent->lost_from;
  child->exact = parent->exact;
  for (std::uint32_t i = 0; i < shared; ++i) add_ref(child->blocks[i], is_hot(*child, i));
  return child->id;
}

Status ManagerImpl::rewind(SeqId id, std::uint32_t n) {
  Lock lock(mutex_);
  FIRN_ASSIGN(Sequence * seq, get_sequence(id, "rewind"));
  if (n > seq->tokens.size())
    return Status(Code::kInvalidArgument,
                  fmt::format("rewind: sequence {} has {} tokens, not {}", index(id), seq->tokens.size(), n));
  const std::uint32_t keep = blocks_for(n);
  if (keep > seq->lost_from)
    return Status(Code::kInvalidArgument, fmt::format("rewind: only the first {} tokens are left",
                                                      std::uint64_t{seq->lost_from} * kBlockTokens));
  while (seq->blocks.size() > keep) {
    const std::uint32_t last = static_cast<std::uint32_t>(seq->blocks.size()) - 1;
    const BlockId dropped = seq->blocks.back();
    const bool hot = is_hot(*seq, last);
    seq->blocks.pop_back();
    release(dropped, hot, /*forget=*/true);
  }
  seq->hot_first = std::min(seq->hot_first, keep);
  seq->tokens.resize(n);
  // The kept part of a full block is not that block any more.
  if (n % kBlockTokens != 0 && pool_->block(seq->blocks[keep - 1]).refs == 1) {
    forget_key(seq->blocks[keep - 1], MissReason::kNone);
    update_candidate(seq->blocks[keep - 1]);
  }
  move_window(*seq);
  seq->store_next = std::min(seq->store_next, std::max(sink_blocks(), seq->committed_blocks()));
  seq->lost_from = ~0u;
  return {};
}

void ManagerImpl::release_blocks(std::span<const BlockId> blocks, std::uint32_t first_hot) {
  for (std::size_t i = blocks.size(); i-- > 0;)  // the tail first, so that a prefix outlives its suffix
    release(blocks[i], i < sink_blocks() || i >= first_hot, /*forget=*/false);
}

Status ManagerImpl::free(SeqId id, const Fence& fence) {
  Lock lock(mutex_);
  run_deferred();
  FIRN_ASSIGN(Sequence * seq, get_sequence(id, "free"));
  queue_cold(*seq, /*ending=*/true);
  if (fence.kind != Fence::Kind::kNone && !device_->timeline().passed(fence)) {
    deferred_.push_back({std::move(seq->blocks), seq->hot_first, fence, std::move(seq->charge)});
  } else {
    release_blocks(seq->blocks, seq->hot_first);
  }
  sequences_.erase(index(id));
  return {};
}

void ManagerImpl::run_deferred() {
  for (std::size_t i = 0; i < deferred_.size();) {
    if (!device_->timeline().passed(deferred_[i].fence)) {
      ++i;
      continue;
    }
    release_blocks(deferred_[i].blocks, deferred_[i].hot_first);
    deferred_.erase(deferred_.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

std::uint32_t ManagerImpl::token_count(SeqId id) const {
  Lock lock(mutex_);
  const Sequence* seq = find_sequence(id);
  return seq ? static_cast<std::uint32_t>(seq->tokens.size()) : 0;
}

std::uint32_t ManagerImpl::usable_tokens(SeqId id) const {
  Lock lock(mutex_);
  const Sequence* seq = find_sequence(id);
  if (!seq) return 0;
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(seq->tokens.size(), std::uint64_t{seq->lost_from} * kBlockTokens));
}

std::vector<SlotId> ManagerImpl::block_table(SeqId id) const {
  Lock lock(mutex_);
  std::vector<SlotId> table;
  if (const Sequence* seq = find_sequence(id))
    for (const BlockId block : seq->blocks) table.push_back(pool_->block(block).slot);
  return table;
}

std::vector<Key> ManagerImpl::block_keys(SeqId id) const {
  Lock lock(mutex_);
  std::vector<Key> keys;
  if (const Sequence* seq = find_sequence(id))
    for (std::uint32_t i = 0; i < seq->committed_blocks(); ++i) keys.push_back(pool_->block(seq->blocks[i]).key);
  return keys;
}

std::vector<Key> ManagerImpl::compute_keys(std::span<const TokenId> tokens, std::string_view name_space) const {
  return KeyChain(identity_, name_space).keys(tokens);
}

}  // namespace firn
