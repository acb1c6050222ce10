// prefix_index.h: what a key maps to. Owns one truth: which blocks of which page set carry which key.
//
// Open addressing over (tag, block) pairs of 8 bytes at a load of at most 0.8; the key itself stays in the block's
// record, which is read once a lookup, and a 32-bit tag keeps other records out of the cache: its high bits say where
// in the table an entry wants to be, its low ones tell neighbours apart. Deleting shifts back instead of leaving
// tombstones, so the table never degrades. Blocks of one page set with equal keys (two sequences computed the same
// tokens) are kept and chained through Block::next_duplicate, the earliest first. However many there are, inserting and
// removing one takes constant time: each block behind the first of its key has an entry of its own, a link, found by
// its number. It names the block before it; that of the second block, whose predecessor is the first, names the last
// one instead. Keys and links together are as many as blocks, so the table need not grow for them. Threads: the
// manager's lock. Memory: create() allocates everything.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/block_pool.h"
#include "firn/ids.h"
#include "firn/key.h"

namespace firn {

class PrefixIndex {
 public:
  PrefixIndex(BlockPool& pool, std::uint32_t capacity);
  static std::uint64_t metadata_bytes(std::uint32_t capacity);

  void insert(BlockId id);  // its key is set
  void remove(BlockId id);  // ditto, and it is in here
  // The earliest block of the page set with this key; kNone: a miss.
  BlockId find(const Key& key, PageSetId page_set = PageSetId{0}) const;
  std::uint32_t key_count() const { return key_count_; }
  std::uint32_t duplicate_count() const { return duplicate_count_; }
  // For verify(): calls visit(head) for every key's chain.
  template <class Visit>
  void for_each(Visit visit) const {
    for (const Entry& entry : table_)
      if (entry.head != BlockId::kNone && !is_link(entry)) visit(entry.head);
  }
  std::vector<std::string> check() const;  // for verify(): the links; empty if sound

 private:
  friend struct ManagerTestPeer;
  struct Entry {
    std::uint32_t tag = 0;          // of a link: the block it names
    BlockId head = BlockId::kNone;  // of a link: its block's number with kLink
  };
  static constexpr std::uint32_t kLink = 1u << 31;
  static bool is_link(const Entry& entry) { return (index(entry.head) & kLink) != 0 && entry.head != BlockId::kNone; }
  std::size_t home(std::uint32_t tag) const;
  std::size_t home(const Entry& entry) const;
  std::size_t link_of(BlockId id) const;  // where it is, or the empty entry where it would go
  void erase(std::size_t at);
  // Where it is, or the empty entry where it would go.
  std::size_t slot_of(const Key& key, PageSetId page_set) const;

  BlockPool& pool_;
  std::vector<Entry> table_;
  std::uint32_t key_count_ = 0, duplicate_count_ = 0;
};

}  // namespace firn
