// name_table.h: a hash table from a block's name to its BlockId, by open addressing with linear probing. Names are 64
// bits; 12 bytes a place at half load or more, no allocation per entry. Removal shifts the run back, so that there are
// no tombstones and a lookup after millions of evictions is as short as the first.
#pragma once

#include <cstdint>
#include <vector>

#include "firn/ids.h"

namespace firn::sim {

// Spreads a trace's dense numbers over all bits (the finaliser of SplitMix64): a bijection, so it makes no collisions.
constexpr std::uint64_t mix_name(std::uint64_t name) {
  name += 0x9e3779b97f4a7c15;
  name = (name ^ name >> 30) * 0xbf58476d1ce4e5b9;
  name = (name ^ name >> 27) * 0x94d049bb133111eb;
  return name ^ name >> 31;
}

// A trace's names are any pattern of 64 bits. Policies take 0 for "unknown", so names move up by one, and the last one
// to where no counted or structured name lies.
constexpr std::uint64_t cache_name(std::uint64_t name) {
  return name == ~std::uint64_t{0} ? mix_name(0x6c617374206e616d) : name + 1;
}
// For what the trace gives no name: the number-th name of its own kind, spread over all bits so that it meets no name
// that a trace is likely to have.
constexpr std::uint64_t own_name(std::uint64_t number, std::uint64_t kind = 0) {
  return mix_name(mix_name(number + 0x6e616d656c657373) ^ mix_name(kind + 0x6b696e64));
}

class NameTable {
 public:
  // capacity: entries at most, if known; it grows when that was too little.
  explicit NameTable(std::size_t capacity = 0) {
    std::size_t places = 16;
    while (places * 3 < capacity * 4) places *= 2;
    resize(places);
  }
  std::size_t size() const { return size_; }
  std::size_t bytes() const { return names_.size() * (sizeof(std::uint64_t) + sizeof(std::uint32_t)); }
  std::uint32_t find(std::uint64_t name) const {
    for (std::size_t at = home(name);; at = (at + 1) & mask_) {
      if (ids_[at] == kEmpty) return kEmpty;
      if (names_[at] == name) return ids_[at];
    }
  }
  void prefetch(std::uint64_t name) const {
    const std::size_t at = home(name);
    __builtin_prefetch(&ids_[at]);
    __builtin_prefetch(&names_[at]);
  }
  // The name is not there yet.
  void insert(std::uint64_t name, std::uint32_t id) {
    if ((size_ + 1) * 4 > names_.size() * 3) grow();
    put(name, id);
    ++size_;
  }
  void erase(std::uint64_t name) {
    std::size_t at = home(name);
    while (names_[at] != name || ids_[at] == kEmpty) {
      if (ids_[at] == kEmpty) return;
      at = (at + 1) & mask_;
    }
    --size_;
    for (std::size_t next = (at + 1) & mask_; ids_[next] != kEmpty; next = (next + 1) & mask_) {
      // next may move to `at` unless its home lies behind `at`.
      if (((next - home(names_[next])) & mask_) < ((next - at) & mask_)) continue;
      names_[at] = names_[next];
      ids_[at] = ids_[next];
      at = next;
    }
    ids_[at] = kEmpty;
  }
  static constexpr std::uint32_t kEmpty = ~0u;

 private:
  std::size_t home(std::uint64_t name) const { return mix_name(name) & mask_; }
  void put(std::uint64_t name, std::uint32_t id) {
    std::size_t at = home(name);
    while (ids_[at] != kEmpty) at = (at + 1) & mask_;
    names_[at] = name;
    ids_[at] = id;
  }
  void resize(std::size_t places) {
    names_.assign(places, 0);
    ids_.assign(places, kEmpty);
    mask_ = places - 1;
  }
  void grow() {
    std::vector<std::uint64_t> names;
    std::vector<std::uint32_t> ids;
    names.swap(names_);
    ids.swap(ids_);
    resize(names.size() * 2);
    for (std::size_t i = 0; i < names.size(); ++i)
      if (ids[i] != kEmpty) put(names[i], ids[i]);
  }
  std::vector<std::uint64_t> names_;
  std::vector<std::uint32_t> ids_;
  std::size_t size_ = 0, mask_ = 0;
};

}  // namespace firn::sim
