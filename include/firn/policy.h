// policy.h: deciding. A policy sees facts about blocks and names victims; it never touches bytes and knows no tier.
// Pure and deterministic: time comes in as an argument, so that a recorded trace replays to exact counts, and the
// simulator runs these very objects.
// Threads: one caller at a time (the manager's lock).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "firn/export.h"
#include "firn/ids.h"
#include "firn/status.h"

namespace firn {

// What a policy may know of a candidate for eviction. In a tier of frames, one id stands for a whole frame: that of its
// first block.
struct BlockFacts {
  BlockId id = BlockId::kNone;
  BlockId parent = BlockId::kNone;  // the block before it in its sequence
  std::uint32_t name_space = 0;
  std::uint32_t position = 0;  // first token's position
  std::uint64_t bytes = 0;     // what evicting it would free
  float recompute_cost = 0;    // relative cost of computing it again; grows with position
  std::uint8_t priority = 35;  // 0 to 100, the engine's own mark
  bool live = false;           // some live sequence still reads it (it is cold there)
  bool has_copy = false;       // the tier below holds its bytes: evicting it loses nothing
  std::uint64_t key_hash =
      0;  // names its tokens; same tokens, same name. 0: unknown, and rules with a memory have none
};

enum class Access : std::uint8_t {
  kHit,       // a sequence took it as part of its prefix
  kRead,      // attended
  kCopied,    // the tier below has its bytes from now on
  kCopyLost,  // and from now on not any more
};

struct Need {
  std::size_t count = 1;               // victims wanted
  std::uint64_t bytes = 0;             // or as many as free this much, whichever is more
  std::size_t look = ~std::size_t{0};  // and look at no more candidates than this, vetoed ones among them
};
// Vetoes a victim. Empty: everybody may go.
using Filter = std::function<bool(BlockId)>;

class FIRN_API EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  virtual std::string_view name() const = 0;
  virtual void on_insert(const BlockFacts& facts, Instant now) = 0;  // becomes a candidate; ignored beyond the capacity
  virtual void on_access(BlockId id, Access access, Instant now) = 0;  // ignored if not a candidate
  // A block that is not here was asked for and will be inserted: told before victims() makes room for it. Several may
  // be told before the first of them is inserted.
  virtual void on_miss(std::uint64_t /*key_hash*/, Instant) {}
  virtual bool wants_misses() const { return false; }  // on_miss changes something: worth naming what is missing
  virtual void on_remove(BlockId id) = 0;              // pinned or freed; ignored if not a candidate
  // Best victims first, at most out.size(); how many. They stay candidates until on_remove.
  virtual std::size_t victims(Need need, const Filter& filter, std::span<BlockId> out) = 0;
  virtual std::size_t candidates() const = 0;
  // The same candidates in the same order, for a look at what would go that changes nothing. Null: it cannot.
  virtual std::unique_ptr<EvictionPolicy> clone() const { return nullptr; }
};

inline constexpr std::uint32_t kMaxPolicyIds = (1u << 30) - 8;

// Least recently used. Dead blocks go first, then those of live sequences; within each in order of insertion, which for
// a freed sequence is tail first, so that a prefix outlives its suffix. capacity: ids are below it; at most
// kMaxPolicyIds, else it is null. Everything is O(1); memory is allocated here, and once more when the first candidate
// of another size comes.
FIRN_API std::unique_ptr<EvictionPolicy> make_lru_policy(std::uint32_t capacity);
// By name, for configuration; docs/policies.md says what each does. kInvalidArgument lists the names there are. Memory
// is allocated here, once more when the first block of a live sequence comes, and for names that a rule remembers.
FIRN_API Result<std::unique_ptr<EvictionPolicy>> make_policy(std::string_view name, std::uint32_t capacity);
// What such a policy takes at most, in bytes. one_size: all its candidates are of one size. 0: no such policy.
FIRN_API std::uint64_t policy_bytes(std::string_view name, std::uint32_t capacity, bool one_size);
FIRN_API std::span<const std::string_view> policy_names();

}  // namespace firn
