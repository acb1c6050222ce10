// model.h: what firn must know of a model: the geometry of its KV cache and everything that makes two caches different.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "firn/export.h"
#include "firn/ids.h"
#include "firn/status.h"

namespace firn {

// The values are written to frames and identities. bits8: 8-bit elements of any kind (fp8, int8), which firn stores
// exactly (ColdCache) and never computes on.
enum class Dtype : std::uint8_t { kF16 = 1, kBf16 = 2, kF32 = 3, kBits8 = 4 };
constexpr std::uint32_t bytes_of(Dtype dtype) { return dtype == Dtype::kF32 ? 4 : dtype == Dtype::kBits8 ? 1 : 2; }
FIRN_API std::string_view to_string(Dtype dtype);

// 256 bits: a block's key, a digest, a model identity. See docs/keys.md.
struct Digest {
  std::array<std::uint8_t, 32> bytes{};
  auto operator<=>(const Digest&) const = default;
  // By words: the pool asks it of every block it touches, and a call to memcmp was half its time.
  bool is_zero() const {
    std::uint64_t words[4];
    std::memcpy(words, bytes.data(), sizeof(words));
    return (words[0] | words[1] | words[2] | words[3]) == 0;
  }
};
FIRN_API std::string to_hex(const Digest& digest);  // 64 lower-case hexadecimal digits

// One token's keys and values in one layer.
struct KvShape {
  Dtype dtype = Dtype::kF16;
  std::uint32_t kv_heads = 0;
  std::uint32_t head_dim = 0;   // elements of a key head
  std::uint32_t value_dim = 0;  // elements of a value head; usually head_dim
  auto operator<=>(const KvShape&) const = default;
  std::uint64_t key_bytes() const { return std::uint64_t{kv_heads} * head_dim * bytes_of(dtype); }
  std::uint64_t value_bytes() const { return std::uint64_t{kv_heads} * value_dim * bytes_of(dtype); }
  std::uint64_t token_bytes() const { return key_bytes() + value_bytes(); }
};

enum class GroupKind : std::uint8_t { kFull = 1, kSlidingWindow = 2, kLatent = 3, kState = 4 };

// Layers that share geometry and lifetime.
struct GroupSpec {
  GroupKind kind = GroupKind::kFull;
  std::uint32_t layer_count = 0;
  KvShape kv;
  std::uint32_t window = 0;       // tokens a sliding-window layer sees; 0 elsewhere
  std::uint32_t query_heads = 0;  // sizes the attention workspace; not part of the identity; 0: eight a KV head
  std::uint64_t token_bytes() const { return layer_count * kv.token_bytes(); }
  std::uint64_t block_bytes() const { return kBlockTokens * token_bytes(); }
};

// How keys were rotated: part of the identity, and what a lossy codec needs to un-rotate them.
struct RotationSpec {
  enum class Pairing : std::uint8_t { kNone = 0, kAdjacent = 1, kHalves = 2 };  // (2i, 2i+1) or (i, i + dims / 2)
  Pairing pairing = Pairing::kNone;
  std::uint32_t dims = 0;                  // rotated leading dimensions of a head
  std::vector<float> inverse_frequencies;  // dims / 2
  float attention_factor = 1.0f;           // what some scalings multiply q and k with
};

// The model identity: any difference in it gives different keys. A zero weights digest means "unknown weights": such a
// cache is session-only and never leaves the process.
struct ModelSpec {
  std::string name;               // for people; not part of the identity
  Digest weights;                 // digest of the weights, for example of the model file
  std::string adapters;           // names and digests of active adapters; empty: none
  std::vector<GroupSpec> groups;  // 1 for plain models
  RotationSpec rotation;
  std::uint32_t shard_rank = 0, shard_count = 1;  // tensor-parallel shard

  std::uint64_t token_bytes() const;
  std::uint64_t block_bytes() const { return kBlockTokens * token_bytes(); }
};
// Bounds: every number that later multiplies is checked here. kInvalidArgument names the field.
FIRN_API Status validate(const ModelSpec& model);

// Layers that share a page. A pool has pages of one size, so that any page serves any group: every group is cut into
// page sets of the same number of layers, the largest that divides all groups. A block of one page set is what a slot
// holds. A model of one group has one page set. (Source: vLLM's hybrid KV cache manager.)
struct PageSet {
  GroupId group = GroupId{0};
  GroupKind kind = GroupKind::kFull;
  KvShape kv;
  std::uint32_t first_layer = 0, layer_count = 0;  // layers count through the groups in their order
  std::uint32_t window = 0, query_heads = 0;       // of the group
  std::uint64_t token_bytes() const { return layer_count * kv.token_bytes(); }
  std::uint64_t block_bytes() const { return kBlockTokens * token_bytes(); }
};
struct PageLayout {
  std::vector<PageSet> sets;
  std::uint64_t page_bytes = 0;  // of the largest page set; what others leave of a page is not used
  std::uint32_t layer_count = 0;
};
// kInvalidArgument: more than kMaxPageSets.
FIRN_API Result<PageLayout> page_layout(const ModelSpec& model);

inline constexpr std::uint32_t kMaxPageSets = 255;
inline constexpr std::uint32_t kMaxLayers = 1024, kMaxKvHeads = 1024, kMaxHeadDim = 1024, kMaxGroups = 16;

}  // namespace firn
