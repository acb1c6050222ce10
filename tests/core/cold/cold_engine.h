// cold_engine.h: an engine that owns its K/V, for tests: one allocation a group in any layout, content that follows
// from a block's name, and its blocks as views.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "firn/cold_cache.h"

namespace firn {

enum class KvLayout { kSeparate, kInterleaved };  // [2, blocks, tokens, heads, dim] a layer; K and V by turns a layer

inline ModelSpec cold_model(Dtype dtype = Dtype::kF16, std::uint32_t layers = 3, std::uint32_t heads = 2,
                            std::uint32_t dim = 16) {
  ModelSpec model;
  model.name = "cold";
  model.weights.bytes[0] = 7;
  model.groups = {{GroupKind::kFull, layers, {dtype, heads, dim, dim}, 0}};
  return model;
}

inline std::uint64_t cold_mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

inline Key cold_key(std::uint64_t name) {
  Key key;
  for (std::size_t i = 0; i < 4; ++i) {
    const std::uint64_t word = cold_mix(name * 4 + i + 1);
    std::memcpy(key.bytes.data() + 8 * i, &word, 8);
  }
  return key;
}

class ColdEngine {
 public:
  ColdEngine(const GroupSpec& group, std::uint32_t blocks, KvLayout layout = KvLayout::kSeparate)
      : group_(group), blocks_(blocks), layout_(layout), memory_(group.layer_count * layer_bytes()) {}

  std::uint64_t row_bytes() const { return group_.kv.key_bytes(); }
  std::uint64_t tensor_bytes() const { return kBlockTokens * row_bytes(); }  // of one block and layer
  std::uint64_t layer_bytes() const { return 2 * blocks_ * tensor_bytes(); }
  std::uint32_t blocks() const { return blocks_; }

  BlockView view(std::uint32_t layer, std::uint32_t block) const {
    auto* base = const_cast<std::byte*>(memory_.data()) + layer * layer_bytes();
    const auto head = static_cast<std::uint32_t>(group_.kv.head_dim * bytes_of(group_.kv.dtype));
    BlockView view;
    if (layout_ == KvLayout::kSeparate) {
      view.k = reinterpret_cast<DeviceAddress>(base + block * tensor_bytes());
      view.v = view.k + blocks_ * tensor_bytes();
      view.token_stride = view.v_token_stride = static_cast<std::uint32_t>(row_bytes());
    } else {  // a token's K, then its V
      view.k = reinterpret_cast<DeviceAddress>(base + block * 2 * tensor_bytes());
      view.v = view.k + row_bytes();
      view.token_stride = view.v_token_stride = static_cast<std::uint32_t>(2 * row_bytes());
    }
    view.head_stride = view.v_head_stride = head;
    return view;
  }
  // Of some blocks, [layer][block].
  std::vector<BlockView> views(std::span<const std::uint32_t> places) const {
    std::vector<BlockView> out;
    for (std::uint32_t layer = 0; layer < group_.layer_count; ++layer)
      for (const std::uint32_t place : places) out.push_back(view(layer, place));
    return out;
  }
  // The content of a name, whatever the layout. Small exponents, so that exact codecs have something to do.
  void fill(std::uint32_t place, std::uint64_t name) { each_word(place, name, /*write=*/true); }
  bool holds(std::uint32_t place, std::uint64_t name) { return each_word(place, name, /*write=*/false); }
  void poison() { std::memset(memory_.data(), 0xdd, memory_.size()); }

 private:
  bool each_word(std::uint32_t place, std::uint64_t name, bool write) {
    for (std::uint32_t layer = 0; layer < group_.layer_count; ++layer) {
      const BlockView at = view(layer, place);
      for (std::uint32_t token = 0; token < kBlockTokens; ++token)
        for (const bool values : {false, true}) {
          auto* row = reinterpret_cast<std::uint8_t*>((values ? at.v : at.k) +
                                                      token * (values ? at.v_token_stride : at.token_stride));
          for (std::uint64_t i = 0; i < row_bytes(); i += 2) {
            const std::uint64_t seed = cold_mix(name ^ (layer * 1000003ull + token * 4099ull + i * 2 + values));
            const auto word = static_cast<std::uint16_t>(0x3000 | (seed & 0x87ff));
            if (write)
              std::memcpy(row + i, &word, 2);
            else if (std::memcmp(row + i, &word, 2) != 0)
              return false;
          }
        }
    }
    return true;
  }

  GroupSpec group_;
  std::uint32_t blocks_;
  KvLayout layout_;
  std::vector<std::byte> memory_;
};

// Consecutive blocks of an engine, and what names them.
struct Blocks {
  std::vector<Key> keys;
  std::vector<BlockView> views;
  ColdRun run;
};
inline Blocks make_run(const ColdEngine& engine, std::uint32_t first, std::uint32_t count, std::uint64_t name,
                       std::uint64_t position = 0) {
  Blocks made;
  std::vector<std::uint32_t> places(count);
  std::iota(places.begin(), places.end(), first);
  for (std::uint32_t i = 0; i < count; ++i) made.keys.push_back(cold_key(name + i));
  made.views = engine.views(places);
  made.run.first_position = position;
  made.run.keys = made.keys;
  made.run.views = made.views;
  return made;
}

inline std::vector<Key> cold_keys(std::span<const std::uint64_t> names) {
  std::vector<Key> keys;
  for (const std::uint64_t name : names) keys.push_back(cold_key(name));
  return keys;
}

inline std::unique_ptr<ColdCache> make_cold(const ColdCacheOptions& options, const ColdEnvironment& environment = {}) {
  Result<std::unique_ptr<ColdCache>> cache = ColdCache::create(options, environment);
  EXPECT_TRUE(cache.ok()) << cache.status().message();
  return cache.ok() ? std::move(*cache) : nullptr;
}

// Runs a ticket to its end.
inline ColdDone ended(ColdCache& cache, const Result<Ticket>& ticket) {
  EXPECT_TRUE(ticket.ok()) << ticket.status().message();
  if (!ticket.ok()) return {};
  Result<ColdDone> done = cache.wait(*ticket);
  EXPECT_TRUE(done.ok()) << done.status().message();
  return done.ok() ? std::move(*done) : ColdDone{};
}

}  // namespace firn
