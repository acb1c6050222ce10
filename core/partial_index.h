// partial_index.h: which blocks follow a key, and with which tokens, so that a prompt that leaves a cached block in the
// middle can copy what it shares with it. The index of whole blocks cannot say: a key names all sixteen tokens.
//
// Blocks hang in buckets by the key before them. A 64-bit piece of that key is kept to tell strangers apart, and
// whoever reuses a block checks its name in full. Threads: the manager's lock. Memory: create() allocates everything.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "firn/ids.h"
#include "firn/key.h"

namespace firn {

class PartialIndex {
 public:
  explicit PartialIndex(std::uint32_t capacity) : entries_(capacity), buckets_(capacity, BlockId::kNone) {}
  static std::uint64_t metadata_bytes(std::uint32_t capacity) {
    return std::uint64_t{capacity} * (sizeof(Entry) + sizeof(BlockId));
  }

  void insert(BlockId id, const Key& before, std::span<const TokenId> tokens);  // kBlockTokens of them
  void remove(BlockId id);                                                      // ignored if it is not in here
  std::span<const TokenId> tokens(BlockId id) const { return entries_[index(id)].tokens; }
  bool contains(BlockId id) const { return entries_[index(id)].present; }
  // Calls visit(id) for every block that may follow this key.
  template <class Visit>
  void for_each_after(const Key& before, Visit visit) const {
    const std::uint64_t piece = piece_of(before);
    for (BlockId id = buckets_[piece % buckets_.size()]; id != BlockId::kNone; id = entries_[index(id)].next)
      if (entries_[index(id)].before == piece) visit(id);
  }

 private:
  struct Entry {
    std::array<TokenId, kBlockTokens> tokens{};
    std::uint64_t before = 0;
    BlockId next = BlockId::kNone;
    bool present = false;
  };
  static std::uint64_t piece_of(const Key& key) { return KeyHash{}(key); }

  std::vector<Entry> entries_;  // by block
  std::vector<BlockId> buckets_;
};

}  // namespace firn
