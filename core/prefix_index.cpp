#include "core/prefix_index.h"

#include <cstring>

#include "core/base/check.h"

namespace firn {
namespace {

std::uint64_t word(const Key& key, std::size_t at) {
  std::uint64_t value;
  std::memcpy(&value, key.bytes.data() + 8 * at, sizeof(value));
  return value;
}

// The page sets of one key are spread over the table.
std::uint32_t tag_of(const Key& key, PageSetId page_set) {
  return static_cast<std::uint32_t>((word(key, 0) ^ index(page_set) * 0x9e3779b97f4a7c15ull) >> 32);
}

std::size_t table_size(std::uint32_t capacity) { return std::size_t{capacity} + capacity / 4 + 8; }

}  // namespace

PrefixIndex::PrefixIndex(BlockPool& pool, std::uint32_t capacity) : pool_(pool), table_(table_size(capacity)) {}

std::uint64_t PrefixIndex::metadata_bytes(std::uint32_t capacity) { return table_size(capacity) * sizeof(Entry); }

// A key is uniform, so multiplying maps it onto any table size without a division. The tag alone says where an entry
// wants to be: moving entries reads no record.
std::size_t PrefixIndex::home(std::uint32_t tag) const {
  return static_cast<std::size_t>(std::uint64_t{tag} * table_.size() >> 32);
}

std::size_t PrefixIndex::slot_of(const Key& key, PageSetId page_set) const {
  const std::uint32_t tag = tag_of(key, page_set);
  std::size_t at = home(tag);
  while (table_[at].head != BlockId::kNone) {
    if (table_[at].tag == tag) {
      const Block& head = pool_.block(table_[at].head);
      if (head.key == key && head.page_set == page_set) return at;
    }
    if (++at == table_.size()) at = 0;
  }
  return at;
}

BlockId PrefixIndex::find(const Key& key, PageSetId page_set) const { return table_[slot_of(key, page_set)].head; }

void PrefixIndex::insert(BlockId id) {
  const Key& key = pool_.block(id).key;
  pool_.block(id).next_duplicate = BlockId::kNone;
  Entry& entry = table_[slot_of(key, pool_.block(id).page_set)];
  if (entry.head == BlockId::kNone) {
    FIRN_CHECK(key_count_ + 1 < table_.size());
    entry = {tag_of(key, pool_.block(id).page_set), id};
    ++key_count_;
    return;
  }
  BlockId last = entry.head;
  while (pool_.block(last).next_duplicate != BlockId::kNone) last = pool_.block(last).next_duplicate;
  pool_.block(last).next_duplicate = id;
  ++duplicate_count_;
}

void PrefixIndex::remove(BlockId id) {
  Block& block = pool_.block(id);
  std::size_t at = slot_of(block.key, block.page_set);
  FIRN_CHECK(table_[at].head != BlockId::kNone);
  const BlockId next = block.next_duplicate;
  block.next_duplicate = BlockId::kNone;
  if (table_[at].head != id) {
    BlockId before = table_[at].head;
    while (pool_.block(before).next_duplicate != id) before = pool_.block(before).next_duplicate;
    pool_.block(before).next_duplicate = next;
    --duplicate_count_;
    return;
  }
  if (next != BlockId::kNone) {
    table_[at].head = next;
    --duplicate_count_;
    return;
  }
  --key_count_;
  // Backward shift: pull every follower that is not at home into the hole.
  const std::size_t size = table_.size();
  for (std::size_t probe = at + 1 == size ? 0 : at + 1; table_[probe].head != BlockId::kNone;
       probe = probe + 1 == size ? 0 : probe + 1) {
    const std::size_t wanted = home(table_[probe].tag);
    const std::size_t distance_hole = at >= wanted ? at - wanted : at + size - wanted;
    const std::size_t distance_probe = probe >= wanted ? probe - wanted : probe + size - wanted;
    if (distance_hole <= distance_probe) {
      table_[at] = table_[probe];
      at = probe;
    }
  }
  table_[at] = {};
}

}  // namespace firn
