// extents.h: extents for codec tests: what a cache looks like, where its blocks may lie, and jobs over them.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "firn/codec.h"

namespace firn::test {

using Bytes = std::vector<std::byte>;

inline Bytes read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const auto* first = reinterpret_cast<const std::byte*>(text.data());
  return Bytes(first, first + text.size());
}

// IEEE 754 binary16 of a binary32, towards zero: tests need some value, not the nearest.
inline std::uint16_t to_f16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
  if (exponent <= 0) return static_cast<std::uint16_t>(bits >> 16 & 0x8000);
  return static_cast<std::uint16_t>((bits >> 16 & 0x8000) | static_cast<std::uint32_t>(exponent) << 10 |
                                    (bits >> 13 & 0x3ff));
}

inline float from_f16(std::uint16_t half) {
  const std::uint32_t exponent = half >> 10 & 31;
  std::uint32_t bits = static_cast<std::uint32_t>(half & 0x8000) << 16;
  if (exponent != 0) bits |= (exponent + 112) << 23 | static_cast<std::uint32_t>(half & 0x3ff) << 13;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void put_element(Dtype dtype, float value, std::byte* out) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const std::uint16_t short_bits = dtype == Dtype::kF16 ? to_f16(value) : static_cast<std::uint16_t>(bits >> 16);
  if (dtype == Dtype::kBits8)
    *out = static_cast<std::byte>(bits >> 24);
  else if (dtype == Dtype::kF32)
    std::memcpy(out, &bits, 4);
  else
    std::memcpy(out, &short_bits, 2);
}

// Where a block's rows lie.
enum class Layout {
  kPacked,     // [token][head][dim], what firn's own pools have
  kHeadMajor,  // [head][token][dim]
  kPadded,     // [token][head][dim] with gaps behind heads and behind tokens
};

// One extent in memory. Every block of every layer has allocations of its own of exactly the bytes it needs, so that a
// sanitizer sees one byte too many.
class Extent {
 public:
  Extent(const ExtentShape& shape, Layout layout) : shape_(shape), layout_(layout) {
    for (std::uint32_t i = 0; i < shape.layer_count * shape.block_count; ++i) {
      BlockView view;
      view.k = allocate(shape.kv.head_dim, view.token_stride, view.head_stride);
      view.v = allocate(shape.kv.value_dim, view.v_token_stride, view.v_head_stride);
      views.push_back(view);
    }
  }

  // All elements in frame order: [layer][keys, values][token][head][dim].
  Bytes bytes() const {
    Bytes out;
    for_each_head([&out](std::byte* at, std::size_t count) { out.insert(out.end(), at, at + count); });
    return out;
  }
  void set_bytes(const Bytes& from) {
    std::size_t at = 0;
    for_each_head([&](std::byte* to, std::size_t count) {
      std::memcpy(to, from.data() + at, count);
      at += count;
    });
    ASSERT_EQ(at, from.size());
  }
  const ExtentShape& shape() const { return shape_; }

  std::vector<BlockView> views;  // [layer][block]

 private:
  DeviceAddress allocate(std::uint32_t dim, std::uint32_t& token_stride, std::uint32_t& head_stride) {
    if (dim == 0) return 0;
    const std::uint32_t bytes = dim * bytes_of(shape_.kv.dtype), heads = shape_.kv.kv_heads;
    head_stride = layout_ == Layout::kHeadMajor ? kBlockTokens * bytes : layout_ == Layout::kPadded ? bytes + 4 : bytes;
    token_stride = layout_ == Layout::kHeadMajor ? bytes
                   : layout_ == Layout::kPadded  ? heads * head_stride + 8
                                                 : heads * bytes;
    const std::size_t size = (kBlockTokens - 1) * token_stride + (heads - 1) * head_stride + bytes;
    memory_.push_back(std::make_unique<std::byte[]>(size));
    return reinterpret_cast<DeviceAddress>(memory_.back().get());
  }
  template <class F>
  void for_each_head(F&& f) const {
    for (std::uint32_t layer = 0; layer < shape_.layer_count; ++layer)
      for (const bool values : {false, true})
        for (std::uint32_t token = 0; token < shape_.block_count * kBlockTokens; ++token)
          for (std::uint32_t head = 0; head < shape_.kv.kv_heads; ++head) {
            const BlockView& view = views[layer * shape_.block_count + token / kBlockTokens];
            const std::size_t at = values ? token % kBlockTokens * view.v_token_stride + head * view.v_head_stride
                                          : token % kBlockTokens * view.token_stride + head * view.head_stride;
            const std::uint32_t dim = values ? shape_.kv.value_dim : shape_.kv.head_dim;
            if (dim != 0)
              f(reinterpret_cast<std::byte*>(values ? view.v : view.k) + at, dim * bytes_of(shape_.kv.dtype));
          }
  }
  ExtentShape shape_;
  Layout layout_;
  std::vector<std::unique_ptr<std::byte[]>> memory_;
};

inline ExtentShape shape_of(Dtype dtype, std::uint32_t layers, std::uint32_t blocks, std::uint32_t heads,
                            std::uint32_t head_dim, std::uint32_t value_dim) {
  return {.kv = {.dtype = dtype, .kv_heads = heads, .head_dim = head_dim, .value_dim = value_dim},
          .layer_count = layers,
          .block_count = blocks};
}

// Values that look like a cache: every channel with a scale and an offset of its own, roughly normal around it.
inline Bytes cache_like_bytes(const ExtentShape& shape, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto uniform = [&random] { return static_cast<float>(random() >> 40) / 16777216.0f - 0.5f; };
  Bytes out(shape.raw_bytes());
  std::byte* at = out.data();
  for (std::uint32_t tensor = 0; tensor < 2 * shape.layer_count; ++tensor) {
    const std::uint32_t channels = shape.kv.kv_heads * (tensor % 2 == 0 ? shape.kv.head_dim : shape.kv.value_dim);
    std::vector<float> scale(channels), offset(channels);
    for (std::uint32_t c = 0; c < channels; ++c) {
      scale[c] = static_cast<float>(1 << random() % 6) / 8.0f;
      offset[c] = random() % 3 == 0 ? uniform() * 16.0f : 0.0f;
    }
    for (std::uint32_t token = 0; token < shape.block_count * kBlockTokens; ++token)
      for (std::uint32_t c = 0; c < channels; ++c, at += bytes_of(shape.kv.dtype))
        put_element(shape.kv.dtype, offset[c] + scale[c] * (uniform() + uniform() + uniform() + uniform()), at);
  }
  return out;
}

// Keys and values captured from SmolLM2-135M (tests/data/README.md), three layers of 128 tokens: a part of them.
inline Bytes captured_bytes(std::uint32_t layers, std::uint32_t blocks) {
  const Bytes all = read_file(FIRN_TEST_DATA "/smollm2_kv_3x128.f16");
  Bytes out;
  for (std::uint32_t tensor = 0; tensor < 2 * layers; ++tensor) {
    const auto first = all.begin() + tensor * 128 * 3 * 64 * 2;
    out.insert(out.end(), first, first + blocks * kBlockTokens * 3 * 64 * 2);
  }
  return out;
}

inline FrameLabel some_label() {
  FrameLabel label;
  for (std::size_t i = 0; i < label.last_key.bytes.size(); ++i)
    label.last_key.bytes[i] = static_cast<std::uint8_t>(i + 1);
  label.group = static_cast<GroupId>(2);
  label.first_position = 1024;
  return label;
}

inline FrameLabel lossy_label() {
  FrameLabel label = some_label();
  label.fidelity = Fidelity::kLossy;
  return label;
}

inline float element_at(Dtype dtype, const std::byte* at) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, at, bytes_of(dtype));
  if (dtype == Dtype::kF16) return from_f16(static_cast<std::uint16_t>(bits));
  if (dtype == Dtype::kBf16) bits <<= 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Root of (squares of differences / squares of a) over the keys or the values of all layers; both in frame order.
inline double relative_error(const ExtentShape& shape, const Bytes& a, const Bytes& b, bool values) {
  const std::size_t tokens = shape.block_count * kBlockTokens;
  const std::size_t key_bytes = tokens * shape.kv.key_bytes(), value_bytes = tokens * shape.kv.value_bytes();
  double error = 0, all = 0;
  for (std::uint32_t layer = 0; layer < shape.layer_count; ++layer) {
    const std::size_t first = layer * (key_bytes + value_bytes) + (values ? key_bytes : 0);
    for (std::size_t i = first; i < first + (values ? value_bytes : key_bytes); i += bytes_of(shape.kv.dtype)) {
      const double x = element_at(shape.kv.dtype, &a[i]), y = element_at(shape.kv.dtype, &b[i]);
      error += (x - y) * (x - y);
      all += x * x;
    }
  }
  return all > 0 ? std::sqrt(error / all) : 0;
}

inline std::unique_ptr<Codec> codec_of(CodecId id) {
  Result<std::unique_ptr<Codec>> codec = make_codec(id);
  EXPECT_TRUE(codec.ok());
  return std::move(codec).value();
}

// The frame of an extent, exactly as long as it is.
inline Bytes encode(const Codec& codec, const Extent& extent, const FrameLabel& label, ThreadPool* threads = nullptr) {
  Bytes out(codec.bound(extent.shape()), std::byte{0xee});
  EncodeJob job{.shape = extent.shape(), .label = label, .views = extent.views, .out = out, .bytes = 0, .status = {}};
  codec.encode({&job, 1}, threads);
  EXPECT_TRUE(job.status.ok()) << job.status.message();
  return Bytes(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(job.bytes));
}

inline Status decode(const Codec& codec, std::span<const std::byte> frame, Extent& into, const FrameLabel& label,
                     ThreadPool* threads = nullptr) {
  DecodeJob job{.frame = frame,
                .shape = into.shape(),
                .label = label,
                .layer = 0,
                .layer_count = into.shape().layer_count,
                .views = into.views,
                .status = {}};
  codec.decode({&job, 1}, threads);
  return job.status;
}

}  // namespace firn::test
