// toy_engine.h: an engine whose "model" is a hash: the keys, values and queries of a token are a function of all tokens
// up to it, of the layer and of nothing else. As with a real model, the same prefix then has the same cache, whoever
// computes it, and two different prefixes never have the same bytes.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "tests/core/manager/fixture.h"

namespace firn::test {

inline std::uint64_t mixed(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// A tensor of one token in one layer, filled from the token's prefix.
enum class Part : std::uint64_t { kKey = 1, kValue = 2, kQuery = 3 };
inline void fill(std::span<float> out, std::uint64_t prefix, std::uint32_t layer, Part part) {
  std::uint64_t state = mixed(prefix ^ (static_cast<std::uint64_t>(part) << 56) ^ (std::uint64_t{layer} << 40));
  for (float& value : out) {
    state += 0x9e3779b97f4a7c15ull;
    value = static_cast<float>(static_cast<std::int32_t>(mixed(state) >> 32)) * 0x1p-31f;
  }
}

// Hash of each prefix of tokens: entry i is that of tokens[0..i].
inline std::vector<std::uint64_t> prefix_hashes(std::span<const TokenId> tokens) {
  std::vector<std::uint64_t> hashes;
  std::uint64_t hash = 0x5eed;
  for (const TokenId token : tokens)
    hashes.push_back(hash = mixed(hash + 0x9e3779b97f4a7c15ull + static_cast<std::uint64_t>(token)));
  return hashes;
}

class ToyEngine {
 public:
  ToyEngine(Manager& manager, std::uint32_t query_heads)
      : manager_(&manager),
        kv_(manager.model().groups[0].kv),
        layers_(manager.layout().layer_count),
        query_heads_(query_heads) {}

  std::uint32_t out_size() const { return query_heads_ * kv_.value_dim; }

  // Puts rows [from, from + count) of these tokens into every layer; they are allocated.
  Status append(SeqId seq, std::span<const TokenId> tokens, std::uint32_t from, std::uint32_t count) {
    const std::vector<std::uint64_t> hashes = prefix_hashes(tokens);
    const std::size_t k_size = kv_.kv_heads * kv_.head_dim, v_size = kv_.kv_heads * kv_.value_dim;
    k_.resize(count * k_size);
    v_.resize(count * v_size);
    const StepRows rows{seq, 0, count, from};
    for (std::uint32_t layer = 0; layer < layers_; ++layer) {
      for (std::uint32_t i = 0; i < count; ++i) {
        fill(std::span(k_).subspan(i * k_size, k_size), hashes[from + i], layer, Part::kKey);
        fill(std::span(v_).subspan(i * v_size, v_size), hashes[from + i], layer, Part::kValue);
      }
      const auto fence = manager_->append(layer, std::span(&rows, 1), address(k_), address(v_));
      if (!fence.ok()) return fence.status();
      FIRN_TRY(manager_->device().timeline().wait(*fence));
    }
    return {};
  }

  // The outputs of these rows, [layer][row][out_size()].
  Result<std::vector<float>> attend(SeqId seq, std::span<const TokenId> tokens, std::uint32_t from,
                                    std::uint32_t count) {
    const std::vector<std::uint64_t> hashes = prefix_hashes(tokens);
    const std::size_t q_size = query_heads_ * kv_.head_dim, layer_size = std::size_t{count} * out_size();
    q_.resize(count * q_size);
    std::vector<float> out(layers_ * layer_size);
    AttendParams asked = params();
    asked.mass_blocks = (from + count + kBlockTokens - 1) / kBlockTokens;
    mass_.assign(std::size_t{layers_} * count * asked.mass_blocks, std::numeric_limits<float>::quiet_NaN());
    mass_scratch_.resize(Kernels::mass_bytes(query_heads_, count, asked.mass_blocks) / sizeof(float));
    asked.mass_scratch = address(mass_scratch_);
    const StepRows rows{seq, 0, count, from};
    for (std::uint32_t layer = 0; layer < layers_; ++layer) {
      for (std::uint32_t i = 0; i < count; ++i)
        fill(std::span(q_).subspan(i * q_size, q_size), hashes[from + i], layer, Part::kQuery);
      asked.mass = address(mass_) + std::size_t{layer} * count * asked.mass_blocks * sizeof(float);
      const auto fence = manager_->attend(layer, std::span(&rows, 1), asked, address(q_),
                                          reinterpret_cast<DeviceAddress>(out.data() + layer * layer_size));
      if (!fence.ok()) return fence.status();
      FIRN_TRY(manager_->device().timeline().wait(*fence));
    }
    return out;
  }

  // What the last attend() gave each block: [layer][row][block of the sequence].
  const std::vector<float>& mass() const { return mass_; }

  AttendParams params() const { return {.query_heads = query_heads_, .scale = 0.5f, .soft_cap = 0}; }

 private:
  static DeviceAddress address(const std::vector<float>& values) {
    return reinterpret_cast<DeviceAddress>(values.data());
  }

  Manager* manager_ = nullptr;
  KvShape kv_;
  std::uint32_t layers_ = 0, query_heads_ = 0;
  std::vector<float> k_, v_, q_, mass_, mass_scratch_;
};

}  // namespace firn::test
