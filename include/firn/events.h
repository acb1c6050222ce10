// events.h: what became of blocks, for routers, dashboards and caches further out.
//
// An event says in which tiers a key can be found from now on. A consumer is a map from (key, page set) to tiers:
// stored adds an entry, moved changes one, removed takes one out, cleared empties the map. Sequence numbers count up by
// one; whoever has a snapshot that is true at number n and applies the events after n has the truth. The ring is
// bounded (events.capacity, charged to the metadata budget): who comes too late is told of the gap and takes a new
// snapshot.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "firn/export.h"
#include "firn/ids.h"
#include "firn/key.h"

namespace firn {

enum class EventKind : std::uint8_t {
  kStored,   // the key was nowhere, and can be found now
  kMoved,    // it can still be found, in other tiers than before
  kRemoved,  // it cannot be found any more
  kCleared,  // reset(): nothing of this namespace can be found any more
};
FIRN_API std::string_view to_string(EventKind kind);

using TierSet = std::uint8_t;  // kOnDevice and kOnHost, added
inline constexpr TierSet kOnDevice = 1, kOnHost = 2;

// A key in a page set, and where it is.
struct EventBlock {
  Key key, parent;               // parent: of the block before it; zero for the first
  PageSetId page_set{0};         // whose layers: each page set (Manager::layout()) has its own part of a block
  TierSet tiers = 0;             // from now on; 0: removed
  std::uint32_t position = 0;    // of its first token
  std::uint32_t tokens = 0;      // kBlockTokens
  std::uint64_t name_space = 0;  // Manager::namespace_tag of its namespace: the name itself is a secret of its owner
};
struct Event {
  std::uint64_t sequence = 0;
  EventKind kind = EventKind::kStored;
  TierSet tiers_before = 0;
  EventBlock block;  // of cleared: the namespace alone
};
struct EventBatch {
  std::vector<Event> events;  // oldest first
  std::uint64_t next = 0;     // what to ask for next time: the number of the last event here
  bool gap = false;           // some events after `since` are lost: take a snapshot
};
struct EventSnapshot {
  std::uint64_t sequence = 0;  // true after this event and before the next
  std::vector<EventBlock> blocks;
};

}  // namespace firn
