// naive_manager.h: what a manager without bytes has to do, in the plainest words: containers that are searched, no
// records, no hash, no links. A key is the number of a distinct (predecessor, 16 tokens); equal numbers mean equal
// prefixes.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "firn/manager.h"

namespace firn::test {

class NaiveManager {
 public:
  using Content = int;  // a named prefix; -1 - n is the root of namespace n
  static constexpr Content kUnnamed = 0;

  struct Sequence {
    int name_space = 0;
    std::vector<TokenId> tokens;
    std::vector<std::uint32_t> slots;
  };
  struct Slot {
    Content content = kUnnamed;
    std::uint32_t refs = 0;
  };
  struct Match {
    std::vector<std::uint32_t> slots;
    MissReason first_miss = MissReason::kNone;
    Content missing = kUnnamed;  // if some sequence once had it
  };
  struct Copy {
    std::uint32_t from = 0, to = 0, tokens = 0;
  };

  NaiveManager(std::uint32_t slot_count, std::uint32_t max_sequences)
      : max_sequences_(max_sequences), slots_(slot_count) {
    for (std::uint32_t i = 1; i < slot_count; ++i) free_.push_back(i);
  }

  Match match(const std::vector<TokenId>& tokens, int name_space) const {
    Match found;
    const std::size_t usable = tokens.empty() ? 0 : (tokens.size() - 1) / kBlockTokens;
    Content content = root(name_space);
    for (std::size_t i = 0; i < usable; ++i) {
      content = content_of(content, tokens, i);
      const auto holders = index_.find(content);
      if (holders == index_.end()) {
        found.missing = content;
        found.first_miss = evicted_.count(content) ? MissReason::kEvictedDevice : MissReason::kNeverStored;
        // The namespace without a name is everybody's to ask about.
        if (i == 0 && name_space != 0 && found.first_miss == MissReason::kNeverStored &&
            index_.count(content_of(root(0), tokens, 0)) != 0)
          found.first_miss = MissReason::kNamespace;
        return found;
      }
      found.slots.push_back(holders->second.front());
    }
    if (!tokens.empty()) found.first_miss = MissReason::kPartialTail;
    return found;
  }

  // Null: too many sequences. Counts the prompt's blocks as queries.
  Sequence* begin(int id, const std::vector<TokenId>& tokens, int name_space, bool read_cache) {
    if (sequences_.size() >= max_sequences_) return nullptr;
    Match found;
    if (read_cache) found = match(tokens, name_space);
    const std::size_t blocks = (tokens.size() + kBlockTokens - 1) / kBlockTokens;
    queries += blocks;
    hits += found.slots.size();
    for (std::size_t i = found.slots.size(); i < blocks; ++i)
      ++misses[static_cast<std::size_t>(reason(found, i, blocks, read_cache))];
    Sequence& seq = sequences_[id];
    seq.name_space = name_space;
    for (const std::uint32_t slot : found.slots) hold(slot);
    seq.slots = found.slots;
    seq.tokens.assign(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(found.slots.size() * kBlockTokens));
    return &seq;
  }

  // New blocks that so many tokens take, the copy of a shared tail among them.
  std::size_t blocks_needed(int id, std::uint32_t tokens) const {
    const Sequence& seq = sequences_.at(id);
    const std::size_t wanted = (seq.tokens.size() + tokens + kBlockTokens - 1) / kBlockTokens;
    const std::size_t copies = tokens != 0 && tail_is_shared(seq) ? 1 : 0;
    return (wanted > seq.slots.size() ? wanted - seq.slots.size() : 0) + copies;
  }
  // How many of so many tokens allocate() would take.
  std::uint32_t most_tokens(int id, std::uint32_t tokens) const {
    while (blocks_needed(id, tokens) > free_.size() + cached_.size()) --tokens;
    return tokens;
  }

  std::optional<std::vector<Copy>> allocate(int id, std::uint32_t tokens) {
    Sequence& seq = sequences_.at(id);
    const std::size_t wanted = (seq.tokens.size() + tokens + kBlockTokens - 1) / kBlockTokens;
    const bool copies = tokens != 0 && tail_is_shared(seq);
    if (blocks_needed(id, tokens) > free_.size() + cached_.size()) {
      ++refused;
      return std::nullopt;
    }
    std::vector<Copy> orders;
    if (copies) {
      std::uint32_t& tail = seq.slots[seq.tokens.size() / kBlockTokens];
      const std::uint32_t from = tail;
      tail = take();
      orders.push_back({from, tail, static_cast<std::uint32_t>(seq.tokens.size() % kBlockTokens)});
      release(from, /*forget=*/false);
      ++copied;
    }
    while (seq.slots.size() < wanted) seq.slots.push_back(take());
    return orders;
  }

  void commit(int id, const std::vector<TokenId>& tokens) {
    Sequence& seq = sequences_.at(id);
    const std::size_t before = seq.tokens.size() / kBlockTokens;
    seq.tokens.insert(seq.tokens.end(), tokens.begin(), tokens.end());
    for (std::size_t i = before; i < seq.tokens.size() / kBlockTokens; ++i) {
      const Content content = intern(i == 0 ? root(seq.name_space) : slots_[seq.slots[i - 1]].content, seq.tokens, i);
      slots_[seq.slots[i]].content = content;
      index_[content].push_back(seq.slots[i]);
    }
  }

  bool fork(int id, int child) {
    if (sequences_.size() >= max_sequences_) return false;
    Sequence copy = sequences_.at(id);
    copy.slots.resize((copy.tokens.size() + kBlockTokens - 1) / kBlockTokens);  // room without tokens is not shared
    for (const std::uint32_t slot : copy.slots) hold(slot);
    sequences_[child] = std::move(copy);
    return true;
  }

  void rewind(int id, std::uint32_t n) {
    Sequence& seq = sequences_.at(id);
    seq.tokens.resize(n);
    const std::size_t kept = (n + kBlockTokens - 1) / kBlockTokens;
    while (seq.slots.size() > kept) {
      release(seq.slots.back(), /*forget=*/true);
      seq.slots.pop_back();
    }
    // Of a block that is now partial, the rest was dropped like the others.
    if (n % kBlockTokens != 0 && slots_[seq.slots.back()].refs == 1) forget(seq.slots.back());
  }

  void free(int id) {
    Sequence& seq = sequences_.at(id);
    for (auto slot = seq.slots.rbegin(); slot != seq.slots.rend(); ++slot) release(*slot, /*forget=*/false);
    sequences_.erase(id);
  }

  std::uint32_t empty_pool() {
    const auto count = static_cast<std::uint32_t>(cached_.size());
    while (!cached_.empty()) free_.push_back(evict());
    return count;
  }

  bool reset() {
    if (!sequences_.empty()) return false;
    empty_pool();
    evicted_.clear();
    return true;
  }

  // Whether commit may go on without another allocate: the committed tokens end in a block that is its own.
  // The manager remembers what was evicted in a table of bounded size; a test tells here what that has forgotten.
  void forget_eviction(Content content) { evicted_.erase(content); }

  bool may_write(int id) const { return !tail_is_shared(sequences_.at(id)); }

  std::map<int, Sequence>& sequences() { return sequences_; }
  const Slot& slot(std::uint32_t i) const { return slots_[i]; }
  std::size_t free_slots() const { return free_.size(); }
  std::size_t cached_slots() const { return cached_.size(); }
  std::size_t named_blocks() const {
    std::size_t count = 0;
    for (const auto& [content, holders] : index_) count += holders.size();
    return count;
  }
  std::size_t duplicates() const { return named_blocks() - index_.size(); }

  std::uint64_t queries = 0, hits = 0, refused = 0, copied = 0, evictions = 0;
  std::array<std::uint64_t, static_cast<std::size_t>(MissReason::kCount)> misses{};

 private:
  static Content root(int name_space) { return -1 - name_space; }

  static MissReason reason(const Match& found, std::size_t block, std::size_t blocks, bool read_cache) {
    if (!read_cache) return MissReason::kNotRead;
    if (block == blocks - 1) return MissReason::kPartialTail;
    return block == found.slots.size() ? found.first_miss : MissReason::kAfterMiss;
  }

  static std::array<TokenId, kBlockTokens> block_of(const std::vector<TokenId>& tokens, std::size_t block) {
    std::array<TokenId, kBlockTokens> out{};
    std::copy_n(tokens.begin() + static_cast<std::ptrdiff_t>(block * kBlockTokens), kBlockTokens, out.begin());
    return out;
  }
  Content content_of(Content parent, const std::vector<TokenId>& tokens, std::size_t block) const {
    const auto found = contents_.find({parent, block_of(tokens, block)});
    return found == contents_.end() ? kUnnamed : found->second;
  }
  Content intern(Content parent, const std::vector<TokenId>& tokens, std::size_t block) {
    const auto next = static_cast<Content>(contents_.size() + 1);
    return contents_.emplace(std::pair{parent, block_of(tokens, block)}, next).first->second;
  }

  // A write behind the committed tokens would go into a block that others read, or can find.
  bool tail_is_shared(const Sequence& seq) const {
    if (seq.tokens.size() % kBlockTokens == 0) return false;
    const Slot& tail = slots_[seq.slots[seq.tokens.size() / kBlockTokens]];
    return tail.refs > 1 || tail.content != kUnnamed;
  }

  void hold(std::uint32_t slot) {
    if (slots_[slot].refs++ == 0) cached_.erase(std::find(cached_.begin(), cached_.end(), slot));
  }

  void release(std::uint32_t slot, bool forget_it) {
    if (--slots_[slot].refs != 0) return;
    if (forget_it) forget(slot);
    if (slots_[slot].content == kUnnamed) {
      free_.push_front(slot);
    } else {
      cached_.push_back(slot);
    }
  }

  void forget(std::uint32_t slot) {
    const Content content = slots_[slot].content;
    if (content == kUnnamed) return;
    std::vector<std::uint32_t>& holders = index_.at(content);
    holders.erase(std::find(holders.begin(), holders.end(), slot));
    if (holders.empty()) index_.erase(content);
    slots_[slot].content = kUnnamed;
  }

  std::uint32_t evict() {
    const std::uint32_t slot = cached_.front();
    cached_.pop_front();
    const Content content = slots_[slot].content;
    forget(slot);
    if (index_.count(content) == 0) evicted_.insert(content);
    ++evictions;
    return slot;
  }

  std::uint32_t take() {
    std::uint32_t slot = 0;
    if (free_.empty()) {
      slot = evict();
    } else {
      slot = free_.front();
      free_.pop_front();
    }
    slots_[slot].refs = 1;
    return slot;
  }

  std::size_t max_sequences_ = 0;
  std::vector<Slot> slots_;
  std::deque<std::uint32_t> free_;    // who is taken next, in front
  std::deque<std::uint32_t> cached_;  // nobody holds them, longest unheld in front
  std::map<std::pair<Content, std::array<TokenId, kBlockTokens>>, Content> contents_;
  std::map<Content, std::vector<std::uint32_t>> index_;  // who has it, the earliest first
  std::set<Content> evicted_;
  std::map<int, Sequence> sequences_;
};

}  // namespace firn::test
