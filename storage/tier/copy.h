// copy.h: how frames travel between a caller's memory and an arena.
// Not memcpy: it goes through the caches for all sizes a frame has, which costs a read of every line it writes, and on
// some processors it collapses when source and destination differ by 8 or 16 bytes modulo 4 KiB.
#pragma once

#include <cstddef>

namespace firn {

// For bytes that nobody reads soon: past the caches, and visible to other threads when it returns (given a lock or a
// release store after it). to: aligned to 64 for the speed, any alignment works.
void copy_past_caches(std::byte* to, const std::byte* from, std::size_t bytes);
// For bytes that the caller reads next.
void copy_through_caches(std::byte* to, const std::byte* from, std::size_t bytes);

}  // namespace firn
