#include "core/cold/names.h"

#include <array>
#include <cstring>

namespace firn::cold {
namespace {

void update(Hasher& hasher, std::string_view text) { hasher.update(std::as_bytes(std::span(text))); }
void update(Hasher& hasher, std::uint32_t number) {
  std::array<std::byte, 4> bytes;
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(number >> (8 * i));
  hasher.update(bytes);
}
void update(Hasher& hasher, const Digest& digest) { hasher.update(std::as_bytes(std::span(digest.bytes))); }

}  // namespace

Key hash_name(const Digest& identity, std::string_view name_space, std::string_view name) {
  Hasher hasher;
  update(hasher, "firn cold name 1");
  update(hasher, identity);
  update(hasher, static_cast<std::uint32_t>(name_space.size()));
  update(hasher, name_space);
  update(hasher, static_cast<std::uint32_t>(name.size()));
  update(hasher, name);
  return hasher.finish();
}

Key extent_key(ColdNames names, std::span<const Key> keys) {
  if (names == ColdNames::kChained) return keys.back();
  Hasher hasher;
  update(hasher, "firn cold extent 1");
  update(hasher, static_cast<std::uint32_t>(keys.size()));
  for (const Key& key : keys) update(hasher, key);
  return hasher.finish();
}

FrameKey state_key(const Key& key) {
  Hasher hasher;
  update(hasher, "firn cold state 1");
  update(hasher, key);
  const Digest digest = hasher.finish();
  FrameKey name;
  for (unsigned i = 0; i < 8; ++i) {
    name.lo |= std::uint64_t{digest.bytes[i]} << (8 * i);
    name.hi |= std::uint64_t{digest.bytes[8 + i]} << (8 * i);
  }
  return name;
}

}  // namespace firn::cold
