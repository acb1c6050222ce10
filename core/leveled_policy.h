// leveled_policy.h: priorities on top of any eviction policy. Victims come from the lowest priority that has
// candidates, and within a priority in the order of the policy, for each priority in use has a policy of its own. While
// everything has the default priority there is one, and every call goes straight to it.
//
// Also counts candidates by namespace, which is what quotas need to know before they promise anything.
// Threads: the manager's lock. Memory: a level is made by ensure_level(), which its caller charges for.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/block_pool.h"
#include "firn/policy.h"
#include "firn/retention.h"

namespace firn {

class LeveledPolicy final : public EvictionPolicy {
 public:
  // one_size: all candidates are of one size.
  LeveledPolicy(std::unique_ptr<EvictionPolicy> base, std::string config_name, std::uint32_t capacity, bool one_size,
                const BlockPool& pool)
      : config_name_(std::move(config_name)), capacity_(capacity), one_size_(one_size), pool_(pool) {
    levels_[kDefaultPriority] = std::move(base);
  }
  // What one more level takes: its policy, and with the first one the level of each id.
  std::uint64_t level_bytes(bool first = true) const {
    return policy_bytes(config_name_, capacity_, one_size_) + (first && level_of_.empty() ? capacity_ : 0);
  }
  bool has_level(std::uint8_t priority) const { return levels_[priority] != nullptr; }
  Status ensure_level(std::uint8_t priority) {
    if (has_level(priority)) return {};
    FIRN_ASSIGN(levels_[priority], make_policy(config_name_, capacity_));
    if (level_of_.empty()) level_of_.assign(capacity_, kDefaultPriority);
    return {};
  }

  std::string_view name() const override { return levels_[kDefaultPriority]->name(); }
  bool wants_misses() const override { return levels_[kDefaultPriority]->wants_misses(); }
  void on_insert(const BlockFacts& facts, Instant now) override {
    on_remove(facts.id);
    EvictionPolicy& level = *levels_[facts.priority];
    if (!level_of_.empty()) level_of_[index(facts.id)] = facts.priority;
    level.on_insert(facts, now);
    ++count_;
    ++by_namespace_[facts.name_space];
  }
  void on_access(BlockId id, Access access, Instant now) override { level_of(id).on_access(id, access, now); }
  void on_miss(std::uint64_t key_hash, Instant now) override {
    for (const auto& level : levels_)
      if (level) level->on_miss(key_hash, now);
  }
  void on_remove(BlockId id) override {
    EvictionPolicy& level = level_of(id);
    const std::size_t before = level.candidates();
    level.on_remove(id);
    if (level.candidates() == before) return;
    --count_;
    --by_namespace_[pool_.block(id).name_space];
  }
  // need.bytes and need.look are asked of each level anew: more than needed may be named, never less.
  std::size_t victims(Need need, const Filter& filter, std::span<BlockId> out) override {
    if (level_of_.empty()) return levels_[kDefaultPriority]->victims(need, filter, out);
    std::size_t found = 0;
    for (const auto& level : levels_) {
      if (!level || level->candidates() == 0) continue;
      found +=
          level->victims({.count = need.count > found ? need.count - found : 0, .bytes = need.bytes, .look = need.look},
                         filter, out.subspan(found));
      if (found == out.size() || (found >= need.count && need.bytes == 0)) break;
    }
    return found;
  }
  // Its levels are copied, or it is no copy.
  std::unique_ptr<EvictionPolicy> clone() const override {
    auto copy = std::make_unique<LeveledPolicy>(nullptr, config_name_, capacity_, one_size_, pool_);
    for (std::size_t i = 0; i < levels_.size(); ++i)
      if (levels_[i] && !(copy->levels_[i] = levels_[i]->clone())) return nullptr;
    copy->level_of_ = level_of_;
    copy->by_namespace_ = by_namespace_;
    copy->count_ = count_;
    return copy;
  }
  // Before a candidate of a namespace below this number comes.
  void ensure_namespaces(std::uint32_t count) {
    if (by_namespace_.size() < count) by_namespace_.resize(count);
  }
  std::size_t candidates() const override { return count_; }
  std::uint32_t candidates(std::uint16_t name_space) const {
    return name_space < by_namespace_.size() ? by_namespace_[name_space] : 0;
  }

 private:
  EvictionPolicy& level_of(BlockId id) { return *levels_[level_of_.empty() ? kDefaultPriority : level_of_[index(id)]]; }

  std::string config_name_;
  std::uint32_t capacity_ = 0;
  bool one_size_ = false;
  const BlockPool& pool_;
  std::array<std::unique_ptr<EvictionPolicy>, kMaxPriority + 1> levels_;  // by priority; null: not in use
  std::vector<std::uint8_t> level_of_;                                    // by id; empty: one level
  std::vector<std::uint32_t> by_namespace_;
  std::size_t count_ = 0;
};

}  // namespace firn
