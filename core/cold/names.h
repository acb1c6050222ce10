// names.h: from an engine's own names to keys, and from keys to the names of frames. docs/cold_cache.md has the bytes.
#pragma once

#include <span>
#include <string_view>

#include "firn/cold_cache.h"
#include "firn/key.h"
#include "firn/tier.h"

namespace firn::cold {

// name under name_space and a model identity, each bound in with its length.
Key hash_name(const Digest& identity, std::string_view name_space, std::string_view name);
// What a frame of these blocks is labelled with: the last key of a chain, else a digest of all of them.
Key extent_key(ColdNames names, std::span<const Key> keys);
// The name of a state's frame in its tier.
FrameKey state_key(const Key& key);

}  // namespace firn::cold
