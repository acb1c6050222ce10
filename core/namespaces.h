// namespaces.h: who may find a block. Owns the names: a name lives while a sequence, a block or a quota needs it, is
// charged to the metadata budget meanwhile, and its number is given to another name afterwards. The serial number tells
// two lives of one number apart.
// Threads: the manager's lock.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/block_pool.h"
#include "firn/key.h"
#include "firn/ledger.h"
#include "firn/retention.h"

namespace firn {

struct Namespace {
  Namespace(std::string_view text, const Digest& identity) : name(text), chain(identity, text) {}
  std::string name;
  KeyChain chain;
  std::uint64_t tag = 0;
  std::uint64_t host_bytes = 0;  // of frames
  std::uint32_t serial = 0;
  std::uint32_t sequences = 0;  // live, or waiting for a fence
  std::uint32_t reserved = 0;   // slots kept for them
  std::uint32_t reserved_shared =
      0;  // and of those kept for other namespaces' sequences, that may be taken in this one
  std::uint32_t kept() const { return reserved + reserved_shared; }
  bool has_quota = false;
  bool idle = false;       // in the list of those that may go
  std::uint64_t used = 0;  // counts up: the last time that a sequence came or went
  NamespaceQuota quota;
  Ledger::Charge charge;
};

class Namespaces {
 public:
  static constexpr std::uint32_t kMaxCount = 65534;
  static constexpr std::size_t kMaxBytes = 4096;

  explicit Namespaces(const Digest& identity) : identity_(identity) {}
  // Its number. kInvalidArgument: too long, or too many. kNoSpace: the metadata budget.
  Result<std::uint16_t> intern(std::string_view name, Ledger& ledger, BlockPool& pool);
  std::optional<std::uint16_t> find(std::string_view name) const;
  Namespace& operator[](std::uint16_t id) { return *all_[id]; }
  const Namespace& operator[](std::uint16_t id) const { return *all_[id]; }
  bool in_use(std::uint16_t id) const { return id < all_.size() && all_[id] != nullptr; }
  std::uint32_t end() const { return static_cast<std::uint32_t>(all_.size()); }  // numbers are below it
  std::uint32_t count() const { return static_cast<std::uint32_t>(by_name_.size()); }
  std::uint64_t charged_bytes() const;
  // Drops the names that nobody needs any more, calling gone(tag) for each. O(names that lost their last block).
  template <class Gone>
  void reap(BlockPool& pool, Gone gone) {
    pool.take_emptied([&](std::uint16_t id) { consider(id, pool, gone); });
    for (const std::uint16_t id : idle_) {
      if (in_use(id)) all_[id]->idle = false;
      consider(id, pool, gone);
    }
    idle_.clear();
  }
  void add_sequence(std::uint16_t id) {
    ++all_[id]->sequences;
    all_[id]->used = ++clock_;
  }
  void drop_sequence(std::uint16_t id) {
    all_[id]->used = ++clock_;
    if (--all_[id]->sequences == 0) note_idle(id);
  }
  // By number, 1: one of so many that no sequence and no quota needs, for the longest time. Empty: there is none.
  std::vector<std::uint8_t> idle_longest(std::size_t most) const;
  void set_quota(std::uint16_t id, const NamespaceQuota& quota);
  bool any_quota() const { return !quotas_.empty(); }
  std::span<const std::uint16_t> with_quota() const { return quotas_; }
  std::uint64_t tag(std::string_view name) const;

 private:
  template <class Gone>
  void consider(std::uint16_t id, const BlockPool& pool, Gone& gone) {
    if (id == 0 || !in_use(id)) return;  // the public namespace is always there
    const Namespace& space = *all_[id];
    if (space.sequences != 0 || space.has_quota || pool.tally(id).blocks != 0 || pool.tally(id).slots != 0) return;
    gone(space.tag);
    by_name_.erase(space.name);
    all_[id].reset();
    free_.push_back(id);
  }

  void note_idle(std::uint16_t id) {
    if (!std::exchange(all_[id]->idle, true)) idle_.push_back(id);
  }

  Digest identity_;
  std::uint64_t clock_ = 0;
  std::vector<std::unique_ptr<Namespace>> all_;  // by number; null: free
  std::vector<std::uint16_t> free_, idle_;       // idle: lost their last sequence
  std::vector<std::uint16_t> quotas_;            // those that have one
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view name) const { return std::hash<std::string_view>{}(name); }
  };
  std::unordered_map<std::string, std::uint16_t, Hash, std::equal_to<>> by_name_;
  std::uint32_t next_serial_ = 1;
};

}  // namespace firn
