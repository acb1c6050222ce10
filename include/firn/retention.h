// retention.h: what shall be kept longer than its last use alone would keep it.
//
// Priorities order victims: lowest first, and within a priority as the policy says. A pin or a lease forbids eviction
// until it ends; both count against retention.pin_budget, so that no caller can pin the pool away from the others, and
// neither takes room that is kept for a sequence (Admission::kReserve). All of them end by themselves, by the manager's
// clock. Blocks of live sequences are never evicted in any case.
#pragma once

#include <cstdint>
#include <string>

#include "firn/ids.h"

namespace firn {

inline constexpr std::uint8_t kDefaultPriority = 35, kMaxPriority = 100;
inline constexpr std::uint32_t kMaxRetentionRanges = 64;           // of a sequence
inline constexpr std::int64_t kMaxPinNs = 24 * 3'600'000'000'000;  // of a pin or a lease: a day
inline constexpr std::uint32_t kMaxLeases = 1024, kMaxFamilyBlocks = 256;

// Blocks that begin within [first, end) of a sequence, those it has and those it will commit.
struct RetentionRange {
  std::uint32_t first = 0, end = ~0u;
  std::uint8_t priority = kDefaultPriority;  // 0 to 100
  std::int64_t duration_ns = 0;              // after this kDefaultPriority again; 0: as long as the block is here
};

// Not an error: what is not here cannot be pinned, and is counted.
struct PinReport {
  std::uint32_t pinned = 0, absent = 0;              // of the keys given
  std::uint64_t pinned_bytes = 0, budget_bytes = 0;  // of all pins and leases together, and their most
};

enum class LeaseId : std::uint64_t { kNone = 0 };
constexpr std::uint64_t index(LeaseId id) { return static_cast<std::uint64_t>(id); }
struct LeaseInfo {
  LeaseId id = LeaseId::kNone;
  std::string owner;
  std::uint32_t blocks = 0;
  std::uint64_t bytes = 0;  // raw
  Instant acquired, deadline;
};

// Bytes that a namespace may have, by tier. Floor: what others cannot push it below. Ceiling: what it cannot exceed; at
// it, its own cached blocks make room. 0: none.
struct NamespaceQuota {
  std::uint64_t device_floor = 0, device_ceiling = 0;  // raw bytes in slots
  std::uint64_t host_floor = 0, host_ceiling = 0;      // bytes of frames
};
struct NamespaceUsage {
  NamespaceQuota quota;
  std::uint64_t device_bytes = 0, host_bytes = 0;
  std::uint32_t sequences = 0, blocks = 0;
};

// Where a block of a sequence is, for whoever has to decide what to do about it.
enum class BlockState : std::uint8_t {
  kFilling,   // not full yet
  kResident,  // in a slot
  kStored,    // only in a frame below
  kLoading,   // on its way back from there
  kLost,      // its only copy did not decode: tokens from here on have to be computed again
};

}  // namespace firn
