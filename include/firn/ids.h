// ids.h: an id is a type. Ids do not convert or add, so a BlockId cannot land where a SlotId belongs.
#pragma once

#include <compare>
#include <cstdint>
#include <string_view>

namespace firn {

enum class BlockId : std::uint32_t { kNone = ~0u };  // which block: 16 tokens of one group; fixed for the block's life
enum class SlotId : std::uint32_t { kNone = ~0u };   // where a block's raw bytes are right now; may change
enum class SeqId : std::uint64_t { kNone = 0 };      // a sequence; never reused within a manager's life
enum class GroupId : std::uint16_t {};               // layers that share geometry and lifetime
enum class PageSetId : std::uint8_t {};              // layers of one group that share a page; see PageLayout
enum class FrameId : std::uint32_t { kNone = ~0u };  // one encoded extent, in whichever tier it is
enum class Ticket : std::uint64_t { kNone = 0 };     // asynchronous work; poll, wait or cancel it
// A place for bytes, nearest first. What is counted, refused or missed by place is indexed by it.
enum class TierId : std::uint8_t { kDevice = 0, kHost = 1, kDisk = 2, kRemote = 3, kCount = 4 };

static_assert(sizeof(SlotId) == 4, "block tables are uploaded as arrays of SlotId");

// The one way out of an id.
constexpr std::uint32_t index(BlockId id) { return static_cast<std::uint32_t>(id); }
constexpr std::uint32_t index(SlotId id) { return static_cast<std::uint32_t>(id); }
constexpr std::uint64_t index(SeqId id) { return static_cast<std::uint64_t>(id); }
constexpr std::uint16_t index(GroupId id) { return static_cast<std::uint16_t>(id); }
constexpr std::uint8_t index(PageSetId id) { return static_cast<std::uint8_t>(id); }
constexpr std::uint32_t index(FrameId id) { return static_cast<std::uint32_t>(id); }
constexpr std::uint64_t index(Ticket id) { return static_cast<std::uint64_t>(id); }
constexpr std::uint8_t index(TierId id) { return static_cast<std::uint8_t>(id); }

constexpr std::string_view to_string(TierId id) {
  constexpr std::string_view names[] = {"device", "host", "disk", "remote"};
  return id < TierId::kCount ? names[index(id)] : "unknown";
}

inline constexpr std::uint32_t kBlockTokens = 16;     // tokens in a block; specified in docs/keys.md
inline constexpr std::uint32_t kMaxExtentBlocks = 8;  // blocks in one frame; specified in docs/frame.md
inline constexpr std::uint32_t kSplitTokens = 256;    // KV is attended in splits at fixed multiples of this position

// Time is passed in, never taken: a run can then be replayed. Nanoseconds since any fixed start.
struct Instant {
  std::int64_t ns = 0;
  auto operator<=>(const Instant&) const = default;
};

}  // namespace firn
