// state_frame.h: bytes that only an engine understands (a recurrent state, a window's checkpoint), as a frame: stored
// whole, under checksums, coded by zstd where that saves a sixteenth. The layout is docs/frame.md, section 8.
// Threads: any. Memory: one zstd context a thread, state_scratch_bytes() at most.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "firn/key.h"
#include "firn/status.h"

namespace firn {

inline constexpr std::size_t kStateHeaderBytes = 128;

struct StateHeader {
  Key key;
  std::uint64_t total_bytes = 0, raw_bytes = 0, encoded_bytes = 0;
  std::uint64_t checksum = 0;  // of the payload with its padding
  std::uint8_t coding = 0;     // 0 stored, 1 zstd
  bool bound = false;          // served only together with the block of its name
};

std::size_t state_bound(std::size_t raw_bytes);  // no frame of so many bytes is larger
std::size_t state_scratch_bytes();
// Writes the frame into out, at least state_bound bytes; how many of them.
std::size_t write_state(const Key& key, bool bound, std::span<const std::byte> raw, std::span<std::byte> out);
// kCorrupt names the field. Looks at the head alone.
Result<StateHeader> open_state(std::span<const std::byte> frame);
// The state of that name into room, which holds raw_bytes or more; how many. kCorrupt: the frame is damaged, or
// another's; room then holds unspecified bytes. kInvalidArgument: room is too small.
Result<std::size_t> read_state(std::span<const std::byte> frame, const Key& key, std::span<std::byte> room);

}  // namespace firn
