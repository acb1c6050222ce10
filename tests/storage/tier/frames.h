// frames.h: frames whose bytes follow from their key, and ops on them, for tests of tiers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "firn/tier.h"

namespace firn::conformance {

using Bytes = std::vector<std::byte>;

// The content of a frame follows from its key and a version. Watching these stores would be most of a sanitizer's work.
__attribute__((no_sanitize("thread"))) inline Bytes content(std::uint64_t key, std::size_t bytes,
                                                            std::uint64_t version = 0) {
  Bytes result((bytes + 7) / 8 * 8);
  std::uint64_t x = (key + 1) * 0x9e3779b97f4a7c15u ^ (version + 1) * 0xbf58476d1ce4e5b9u;
  for (std::size_t at = 0; at < result.size(); at += 8) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    std::memcpy(&result[at], &x, 8);
  }
  result.resize(bytes);
  return result;
}
inline bool same(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}
inline FrameKey key_of(std::uint64_t n) { return {n * 0x9e3779b97f4a7c15u, n}; }

inline Op put_op(std::uint64_t key, std::span<const std::byte> source) {
  Op op;
  op.verb = Verb::kPut, op.key = key_of(key), op.source = source;
  return op;
}
inline Op get_op(std::uint64_t key, std::span<std::byte> destination) {
  Op op;
  op.verb = Verb::kGet, op.key = key_of(key), op.destination = destination;
  return op;
}
inline Op plain_op(Verb verb, std::uint64_t key) {
  Op op;
  op.verb = verb, op.key = key_of(key);
  return op;
}

}  // namespace firn::conformance
