// entropy.h: whole buffers through DEFLATE or zstd. The decoded size is known beforehand; anything else is corrupt.
#pragma once

#include <cstddef>
#include <span>

#include "firn/codec.h"
#include "firn/status.h"

namespace firn {

// Bytes of out used; 0: it does not fit, or coder is kNone.
std::size_t entropy_encode(EntropyCoder coder, std::span<const std::byte> from, std::span<std::byte> out);
// Fills out exactly, from all of `from`.
Status entropy_decode(EntropyCoder coder, std::span<const std::byte> from, std::span<std::byte> out);

}  // namespace firn
