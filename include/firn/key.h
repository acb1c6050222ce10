// key.h: the name of a block. A key names tokens under a model and a namespace, never an encoding: the raw block, its
// lossless frame and its lossy frame have one key. Specified byte for byte in docs/keys.md, with test vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "firn/export.h"
#include "firn/model.h"

namespace firn {

using TokenId = std::int32_t;
using Key = Digest;

// BLAKE3 of some bytes, for model files and the like.
class FIRN_API Hasher {
 public:
  Hasher();
  void update(std::span<const std::byte> bytes);
  Digest finish() const;

 private:
  alignas(8) std::byte state_[1920];  // BLAKE3's own state, kept out of the public headers
};

// What decides, beside the tokens, what a prompt means: goes into the keys of the blocks it concerns (docs/keys.md,
// section 4).
struct MediaItem {  // an image, a piece of audio: placeholder tokens that mean something else each time
  std::uint32_t first_token = 0, token_count = 0;
  std::string digest;  // of the content, 1 to 64 bytes
};
struct KeyExtras {
  std::string adapter;           // of this request alone, for example a LoRA's digest; at most 256 bytes
  std::vector<MediaItem> media;  // by first token, none overlapping another
  bool empty() const { return adapter.empty() && media.empty(); }
};
// The extra bytes of the block whose first token is this one; empty: nothing concerns it.
FIRN_API std::vector<std::byte> block_extra(const KeyExtras& extras, std::uint64_t first_token);
// kInvalidArgument names the item.
FIRN_API Status validate(const KeyExtras& extras);

// The digest of everything in a ModelSpec that two caches must agree on.
FIRN_API Digest model_identity(const ModelSpec& model);

// Names the blocks of token sequences of one model in one namespace. Cheap to copy; immutable; any thread.
class FIRN_API KeyChain {
 public:
  // salt: the namespace's secret; an empty one is the public namespace.
  KeyChain(const Digest& identity, std::string_view salt);
  // The key of one full block: kBlockTokens tokens after parent (zero for the first block of a sequence).
  // extra: adapter, media hash with offset, whatever else decides what the tokens mean; at most 4,096 bytes. Other
  // counts than these name nothing: zero.
  Key next(const Key& parent, std::span<const TokenId> tokens, std::span<const std::byte> extra = {}) const;
  // Keys of all full blocks of a sequence: tokens.size() / kBlockTokens of them.
  std::vector<Key> keys(std::span<const TokenId> tokens) const;
  std::vector<Key> keys(std::span<const TokenId> tokens, const KeyExtras& extras) const;
  const Digest& root() const { return root_; }

 private:
  Digest root_;
};

// Hash for tables: a key is uniform already.
struct KeyHash {
  std::size_t operator()(const Key& key) const {
    std::uint64_t word = 0;
    for (int i = 7; i >= 0; --i) word = word << 8 | key.bytes[static_cast<std::size_t>(i)];
    return static_cast<std::size_t>(word);
  }
};

// What a policy knows a key by (BlockFacts::key_hash): never 0, which says "unknown".
inline std::uint64_t policy_name(const Key& key) {
  const std::uint64_t name = KeyHash{}(key);
  return name != 0 ? name : 1;
}

}  // namespace firn
