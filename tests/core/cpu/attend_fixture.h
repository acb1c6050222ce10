// attend_fixture.h: sequences with random keys and values in blocks of exact size, attention over them through the
// device, and the same in double precision one token at a time.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "firn/device.h"
#include "tests/core/cpu/half_reference.h"

namespace firn::testing {

enum class Layout { kTokenMajor, kHeadMajor, kScattered };

// A splitmix step: q must not depend on which other rows are asked for, so each element is a hash of where it is.
inline double uniform(std::uint64_t seed, std::uint64_t i) {
  std::uint64_t z = seed * 0x9E3779B97F4A7C15u + (i + 1) * 0xD1B54A32D192ED03u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}
inline double unit_variance(std::uint64_t seed, std::uint64_t i) {  // sum of four uniforms: nearly normal
  double sum = 0;
  for (std::uint64_t j = 0; j < 4; ++j) sum += uniform(seed, 4 * i + j) - 0.5;
  return sum * std::sqrt(3.0);
}

// The keys and values of one sequence in one layer. Every block's K and V are allocations of their own that end with
// the last token's last element, so that under ASan a read of anything later is an error.
class Sequence {
 public:
  Sequence(const KvShape& shape, std::uint32_t tokens, std::uint64_t seed, Layout layout = Layout::kTokenMajor)
      : shape_(shape), tokens_(tokens), seed_(seed) {
    for (std::uint32_t first = 0; first < tokens; first += kBlockTokens)
      add_block(first, std::min(kBlockTokens, tokens - first), layout);
  }

  const KvShape& shape() const { return shape_; }
  std::uint32_t tokens() const { return tokens_; }
  std::uint64_t seed() const { return seed_; }
  std::vector<BlockView>& views() { return views_; }
  const std::vector<BlockView>& views() const { return views_; }

  std::byte* key(std::uint32_t token, std::uint32_t head) {
    const BlockView& view = views_[token / kBlockTokens];
    return at(view.k, token, view.token_stride, head, view.head_stride);
  }
  std::byte* value(std::uint32_t token, std::uint32_t head) {
    const BlockView& view = views_[token / kBlockTokens];
    return at(view.v, token, view.v_token_stride, head, view.v_head_stride);
  }

 private:
  static std::byte* at(DeviceAddress base, std::uint32_t token, std::uint64_t token_stride, std::uint32_t head,
                       std::uint64_t head_stride) {
    return reinterpret_cast<std::byte*>(base) + token % kBlockTokens * token_stride + head * head_stride;
  }

  DeviceAddress allocate(std::uint32_t tokens, std::uint32_t row, Layout layout, std::uint32_t& token_stride,
                         std::uint32_t& head_stride) {
    head_stride = layout == Layout::kHeadMajor ? row * kBlockTokens : row;
    token_stride = layout == Layout::kHeadMajor ? row : row * shape_.kv_heads;
    if (layout == Layout::kScattered) head_stride += 10, token_stride = head_stride * shape_.kv_heads + 6;
    const std::size_t lead = layout == Layout::kScattered ? 2 * (storage_.size() % 7 + 1) : 0;  // misaligned on purpose
    const std::size_t bytes =
        lead + std::size_t{tokens - 1} * token_stride + std::size_t{shape_.kv_heads - 1} * head_stride + row;
    storage_.push_back(std::make_unique<std::byte[]>(bytes));
    std::memset(storage_.back().get(), 0xFF, bytes);  // gaps hold NaN in every type
    return reinterpret_cast<DeviceAddress>(storage_.back().get()) + lead;
  }

  void add_block(std::uint32_t first, std::uint32_t count, Layout layout) {
    const std::uint32_t element = bytes_of(shape_.dtype);
    BlockView view;
    view.k = allocate(count, shape_.head_dim * element, layout, view.token_stride, view.head_stride);
    view.v = allocate(count, shape_.value_dim * element, layout, view.v_token_stride, view.v_head_stride);
    views_.push_back(view);
    for (std::uint32_t t = first; t < first + count; ++t)
      for (std::uint32_t h = 0; h < shape_.kv_heads; ++h) {
        const std::uint64_t row = std::uint64_t{t} * shape_.kv_heads + h;
        for (std::uint32_t i = 0; i < shape_.head_dim; ++i)
          store(shape_.dtype, unit_variance(seed_ * 3 + 1, row * shape_.head_dim + i), key(t, h) + i * element);
        for (std::uint32_t i = 0; i < shape_.value_dim; ++i)
          store(shape_.dtype, unit_variance(seed_ * 3 + 2, row * shape_.value_dim + i), value(t, h) + i * element);
      }
  }

  KvShape shape_;
  std::uint32_t tokens_;
  std::uint64_t seed_;
  std::vector<std::unique_ptr<std::byte[]>> storage_;
  std::vector<BlockView> views_;
};

// Rows asked of one sequence: tokens [position, position + rows), which see at most tokens() of it.
struct Rows {
  Sequence* sequence;
  std::uint32_t position, rows;
};

struct Attention {
  std::uint32_t query_heads = 1;
  float soft_cap = 0;
  std::uint32_t window = 0;
  std::uint32_t splits_a_wave = ~0u;
  bool skip_unseen_splits = false;  // leave out items that the window hides from every row
  std::uint32_t mass_blocks = 0;    // not 0: run() leaves attention mass [all rows][mass_blocks] in mass
  mutable std::vector<float> mass = {};

  float scale(const KvShape& shape) const { return 1.0f / std::sqrt(static_cast<float>(shape.head_dim)); }
  static float query(const Sequence& sequence, std::uint32_t position, std::uint32_t query_head, std::uint32_t i) {
    return static_cast<float>(
        unit_variance(sequence.seed() * 3, (std::uint64_t{position} * 1024 + query_head) * 1024 + i));
  }

  // Through the device. The result is [all rows][query head][value_dim].
  std::vector<float> run(Device& device, const std::vector<Rows>& rows) const {
    const KvShape shape = rows.front().sequence->shape();
    AttendBatch batch{
        .shape = shape, .query_heads = query_heads, .scale = scale(shape), .soft_cap = soft_cap, .window = window};
    std::vector<float> q;
    std::vector<BlockView> views;
    std::vector<AttendItem> items;
    std::uint32_t splits = 0;
    for (const Rows& part : rows) {
      for (std::uint32_t p = part.position; p < part.position + part.rows; ++p)
        for (std::uint32_t h = 0; h < query_heads; ++h)
          for (std::uint32_t i = 0; i < shape.head_dim; ++i) q.push_back(query(*part.sequence, p, h, i));
      const std::uint32_t end = std::min(part.sequence->tokens(), part.position + part.rows);
      for (std::uint32_t split = 0; split < end; split += kSplitTokens) {
        const std::uint32_t count = std::min(kSplitTokens, end - split);
        if (skip_unseen_splits && window != 0 && split + count + window <= part.position + 1) continue;
        items.push_back({batch.row_count, part.rows, part.position, split, count,
                         static_cast<std::uint32_t>(views.size()) + split / kBlockTokens});
        splits = std::max(splits, split / kSplitTokens + 1);
      }
      views.insert(views.end(), part.sequence->views().begin(), part.sequence->views().end());
      batch.row_count += part.rows;
    }
    batch.q = address(q);
    batch.views = views;
    return run_waves(device, batch, items, splits);
  }

  // By the definition, in double.
  std::vector<double> reference(const std::vector<Rows>& rows) const {
    std::vector<double> out;
    for (const Rows& part : rows)
      for (std::uint32_t p = part.position; p < part.position + part.rows; ++p)
        for (std::uint32_t h = 0; h < query_heads; ++h) {
          const std::vector<double> row = reference_row(*part.sequence, p, h);
          out.insert(out.end(), row.begin(), row.end());
        }
    return out;
  }
  // Attention mass by its definition: [all rows][mass_blocks].
  std::vector<double> mass_reference(const std::vector<Rows>& rows) const {
    std::vector<double> out;
    for (const Rows& part : rows)
      for (std::uint32_t p = part.position; p < part.position + part.rows; ++p) {
        std::vector<double> row(mass_blocks);
        for (std::uint32_t h = 0; h < query_heads; ++h) reference_row(*part.sequence, p, h, &row);
        out.insert(out.end(), row.begin(), row.end());
      }
    return out;
  }

 private:
  template <class T>
  static DeviceAddress address(std::vector<T>& data) {
    return reinterpret_cast<DeviceAddress>(data.data());
  }

  std::vector<float> run_waves(Device& device, AttendBatch batch, const std::vector<AttendItem>& items,
                               std::uint32_t splits) const {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> state(Kernels::state_bytes(batch.shape, query_heads, batch.row_count) / 4, nan);
    std::vector<float> out(std::size_t{batch.row_count} * query_heads * batch.shape.value_dim, nan);
    batch.state = address(state);
    batch.out = address(out);
    std::vector<float> mass_scratch(Kernels::mass_bytes(query_heads, batch.row_count, mass_blocks) / 4, nan);
    if (mass_blocks != 0) {
      mass.assign(std::size_t{batch.row_count} * mass_blocks, nan);
      batch.mass = address(mass);
      batch.mass_blocks = mass_blocks;
      batch.mass_scratch = address(mass_scratch);
    }
    const std::uint32_t wave = std::min(splits_a_wave, std::max(1u, splits));
    for (std::uint32_t first = 0; first == 0 || first < splits; first += wave) {
      std::vector<AttendItem> some;
      for (const AttendItem& item : items)
        if (item.split / kSplitTokens >= first && item.split / kSplitTokens < first + wave) some.push_back(item);
      batch.items = some;
      batch.first = first == 0;
      batch.last = first + wave >= splits;
      std::vector<std::byte> partials(Kernels::partial_bytes(batch), std::byte{0xFF});
      batch.partials = address(partials);
      const Result<Fence> fence = device.kernels().attend(batch);
      EXPECT_TRUE(fence.ok()) << fence.status().message();
      EXPECT_TRUE(!fence.ok() || device.timeline().passed(*fence));
    }
    return out;
  }

  std::vector<double> reference_row(Sequence& sequence, std::uint32_t position, std::uint32_t query_head,
                                    std::vector<double>* block_mass = nullptr) const {
    const KvShape& shape = sequence.shape();
    const std::uint32_t head = query_head / (query_heads / shape.kv_heads), element = bytes_of(shape.dtype);
    const std::uint32_t end = std::min(position + 1, sequence.tokens());
    const std::uint32_t begin = window != 0 && position + 1 > window ? position + 1 - window : 0;
    const auto present = [&](std::uint32_t t) { return sequence.views()[t / kBlockTokens].k != 0; };
    std::vector<double> q, logits, out(shape.value_dim);
    for (std::uint32_t i = 0; i < shape.head_dim; ++i) q.push_back(query(sequence, position, query_head, i));
    double maximum = -std::numeric_limits<double>::infinity(), sum = 0;
    for (std::uint32_t t = begin; t < end; ++t) {
      double dot = 0;
      for (std::uint32_t i = 0; present(t) && i < shape.head_dim; ++i)
        dot += q[i] * load(shape.dtype, sequence.key(t, head) + i * element);
      dot *= scale(shape);
      if (soft_cap != 0) dot = soft_cap * std::tanh(dot / soft_cap);
      logits.push_back(present(t) ? dot : -std::numeric_limits<double>::infinity());
      maximum = std::max(maximum, logits.back());
    }
    for (std::uint32_t t = begin; t < end; ++t) {
      if (!present(t)) continue;
      const double weight = std::exp(logits[t - begin] - maximum);
      sum += weight;
      for (std::uint32_t i = 0; i < shape.value_dim; ++i)
        out[i] += weight * load(shape.dtype, sequence.value(t, head) + i * element);
    }
    for (double& value : out) value = sum != 0 ? value / sum : 0;
    for (std::uint32_t t = begin; block_mass && t < end; ++t)
      if (present(t)) (*block_mass)[t / kBlockTokens] += std::exp(logits[t - begin] - maximum) / sum;
    return out;
  }
};

inline double largest_difference(const std::vector<float>& got, const std::vector<double>& want) {
  EXPECT_EQ(got.size(), want.size());
  double largest = 0;
  for (std::size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    if (std::isnan(got[i])) return std::numeric_limits<double>::infinity();
    largest = std::max(largest, std::fabs(got[i] - want[i]));
  }
  return largest;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline std::string describe(const KvShape& shape, const Attention& attention) {
  return std::string(to_string(shape.dtype)) + ", " + std::to_string(attention.query_heads) + " query heads on " +
         std::to_string(shape.kv_heads) + ", dimensions " + std::to_string(shape.head_dim) + " and " +
         std::to_string(shape.value_dim) + ", window " + std::to_string(attention.window) + ", soft cap " +
         std::to_string(attention.soft_cap);
}

}  // namespace firn::testing
