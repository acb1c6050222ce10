#include "core/prefix_index.h"

#include <fmt/format.h>

#include <cstring>
#include <utility>

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

PrefixIndex::PrefixIndex(BlockPool& pool, std::uint32_t capacity) : pool_(pool), table_(table_size(capacity)) {
  FIRN_CHECK(capacity < kLink);
}

std::uint64_t PrefixIndex::metadata_bytes(std::uint32_t capacity) { return table_size(capacity) * sizeof(Entry); }

// A key is uniform, so multiplying maps it onto any table size without a division. The tag alone says where an entry
// wants to be: moving entries reads no record.
std::size_t PrefixIndex::home(std::uint32_t tag) const {
  return static_cast<std::size_t>(std::uint64_t{tag} * table_.size() >> 32);
}

// Of a link: its block's number, spread.
std::size_t PrefixIndex::home(const Entry& entry) const {
  return home(is_link(entry) ? index(entry.head) * 0x9e3779b1u : entry.tag);
}

std::size_t PrefixIndex::slot_of(const Key& key, PageSetId page_set) const {
  const std::uint32_t tag = tag_of(key, page_set);
  std::size_t at = home(tag);
  while (table_[at].head != BlockId::kNone) {
    if (table_[at].tag == tag && !is_link(table_[at])) {
      const Block& head = pool_.block(table_[at].head);
      if (head.key == key && head.page_set == page_set) return at;
    }
    if (++at == table_.size()) at = 0;
  }
  return at;
}

std::size_t PrefixIndex::link_of(BlockId id) const {
  const BlockId link{index(id) | kLink};
  std::size_t at = home(Entry{0, link});
  while (table_[at].head != link && table_[at].head != BlockId::kNone)
    if (++at == table_.size()) at = 0;
  return at;
}

BlockId PrefixIndex::find(const Key& key, PageSetId page_set) const { return table_[slot_of(key, page_set)].head; }

void PrefixIndex::insert(BlockId id) {
  Block& block = pool_.block(id);
  block.next_duplicate = BlockId::kNone;
  Entry& entry = table_[slot_of(block.key, block.page_set)];
  FIRN_CHECK(key_count_ + duplicate_count_ + 1 < table_.size());
  if (entry.head == BlockId::kNone) {
    entry = {tag_of(block.key, block.page_set), id};
    ++key_count_;
    return;
  }
  Block& head = pool_.block(entry.head);
  std::uint32_t link = index(id);  // of the second block: the last one, which is itself
  if (head.next_duplicate == BlockId::kNone) {
    head.next_duplicate = id;
  } else {
    std::uint32_t& last = table_[link_of(head.next_duplicate)].tag;
    pool_.block(BlockId{last}).next_duplicate = id;
    link = std::exchange(last, index(id));  // of any further one: the one before it
  }
  table_[link_of(id)] = {link, BlockId{index(id) | kLink}};
  ++duplicate_count_;
}

void PrefixIndex::remove(BlockId id) {
  Block& block = pool_.block(id);
  const std::size_t at = slot_of(block.key, block.page_set);
  const BlockId head = table_[at].head, next = std::exchange(block.next_duplicate, BlockId::kNone);
  FIRN_CHECK(head != BlockId::kNone);
  if (head == id && next == BlockId::kNone) {
    --key_count_;
    return erase(at);
  }
  --duplicate_count_;
  if (head == id || pool_.block(head).next_duplicate == id) {
    // The second block is the first now, or gone: the third takes over what it knew of the end.
    const std::size_t link = link_of(head == id ? next : id);
    const BlockId third = head == id ? pool_.block(next).next_duplicate : next;
    if (third != BlockId::kNone) table_[link_of(third)].tag = table_[link].tag;
    if (head == id) {
      table_[at].head = next;
    } else {
      pool_.block(head).next_duplicate = next;
    }
    return erase(link);
  }
  const std::size_t link = link_of(id);
  const BlockId before{table_[link].tag};
  pool_.block(before).next_duplicate = next;
  table_[link_of(next == BlockId::kNone ? pool_.block(head).next_duplicate : next)].tag = index(before);
  erase(link_of(id));
}

// Backward shift: pull every follower that is not at home into the hole.
void PrefixIndex::erase(std::size_t at) {
  const std::size_t size = table_.size();
  for (std::size_t probe = at + 1 == size ? 0 : at + 1; table_[probe].head != BlockId::kNone;
       probe = probe + 1 == size ? 0 : probe + 1) {
    const std::size_t wanted = home(table_[probe]);
    const std::size_t distance_hole = at >= wanted ? at - wanted : at + size - wanted;
    const std::size_t distance_probe = probe >= wanted ? probe - wanted : probe + size - wanted;
    if (distance_hole <= distance_probe) {
      table_[at] = table_[probe];
      at = probe;
    }
  }
  table_[at] = {};
}

// Every block behind the first of its key has a link, and it says what the chain says.
std::vector<std::string> PrefixIndex::check() const {
  std::vector<std::string> broken;
  std::uint32_t links = 0;
  for (const Entry& entry : table_) {
    if (entry.head == BlockId::kNone) continue;
    if (is_link(entry)) {
      ++links;
      continue;
    }
    BlockId before = entry.head, second = pool_.block(entry.head).next_duplicate;
    std::uint32_t said_last = index(entry.head);
    for (BlockId id = second; id != BlockId::kNone; before = id, id = pool_.block(id).next_duplicate) {
      const Entry& link = table_[link_of(id)];
      if (link.head == BlockId::kNone) {
        broken.push_back(fmt::format("index: duplicate block {} has no link", index(id)));
        return broken;
      }
      if (id == second) said_last = link.tag;
      if (id != second && link.tag != index(before))
        broken.push_back(fmt::format("index: duplicate block {} is behind block {}, its link says {}", index(id),
                                     index(before), link.tag));
      if (index(id) >= pool_.block_capacity() || links > table_.size()) return broken;
    }
    if (said_last != index(before))
      broken.push_back(
          fmt::format("index: block {} is the last of its key, {} is said to be", index(before), said_last));
  }
  if (links != duplicate_count_)
    broken.push_back(fmt::format("index: {} links for {} duplicates", links, duplicate_count_));
  return broken;
}

}  // namespace firn
