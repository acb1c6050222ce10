// coding_fixture.h: an extent's slots in memory that a device and the host both reach, for kernels that code blocks.
#pragma once

#include <bit>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "core/base/coding.h"
#include "core/cpu/half.h"
#include "firn/codec.h"
#include "storage/codec/coded_sections.h"
#include "storage/codec/host_coding.h"
#include "tests/core/vk/vk_fixture.h"

namespace firn::vk::testing {

inline void put_value(Dtype dtype, float value, std::byte* to) {
  if (dtype == Dtype::kF32) {
    std::memcpy(to, &value, 4);
  } else {
    cpu::store_u16(to, dtype == Dtype::kF16 ? cpu::f16_of(value)
                                            : static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16));
  }
}
// Written here anew, in double precision.
inline double half_value(std::uint16_t half) {
  const int exponent = half >> 10 & 31, significand = half & 1023;
  if (exponent == 31) return significand != 0 ? std::nan("") : half & 0x8000 ? -INFINITY : INFINITY;
  const double value = exponent == 0 ? std::ldexp(significand, -24) : std::ldexp(1024 + significand, exponent - 25);
  return half & 0x8000 ? -value : value;
}
inline double get_value(Dtype dtype, const std::byte* from) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, from, bytes_of(dtype));
  if (dtype == Dtype::kF16) return half_value(static_cast<std::uint16_t>(bits));
  return static_cast<double>(std::bit_cast<float>(dtype == Dtype::kBf16 ? bits << 16 : bits));
}

// One extent in a region of its own: [layer][block] views, as the device sees them and as the host does.
class Slots {
 public:
  Slots(Device& device, const ExtentShape& extent, Layout layout)
      : shape(extent), arena_(device, 3 * extent.raw_bytes() + 65536) {
    views = place_blocks(arena_, shape.kv, shape.layer_count * shape.block_count, layout);
    for (BlockView view : views) {
      view.k = reinterpret_cast<DeviceAddress>(arena_.host(view.k));
      view.v = reinterpret_cast<DeviceAddress>(arena_.host(view.v));
      host_views.push_back(view);
    }
  }
  // [layer][token][head][dim] of one tensor.
  template <class F>
  void for_each(bool values, F&& f) const {
    const std::uint32_t dim = coded_dim(shape.kv, values);
    for (std::uint32_t layer = 0; layer < shape.layer_count; ++layer)
      for (std::uint32_t t = 0; t < shape.block_count * kBlockTokens; ++t) {
        const BlockView& view = host_views[layer * shape.block_count + t / kBlockTokens];
        for (std::uint32_t h = 0; h < shape.kv.kv_heads; ++h)
          for (std::uint32_t d = 0; d < dim; ++d)
            f(layer, t, h, d,
              reinterpret_cast<std::byte*>(values ? view.v : view.k) +
                  t % kBlockTokens * (values ? view.v_token_stride : view.token_stride) +
                  h * (values ? view.v_head_stride : view.head_stride) + d * bytes_of(shape.kv.dtype));
      }
  }
  using Value = std::function<float(std::uint32_t layer, std::uint32_t token, std::uint32_t head, std::uint32_t dim)>;
  void set(bool values, const Value& value) {
    for_each(values, [&](std::uint32_t l, std::uint32_t t, std::uint32_t h, std::uint32_t d, std::byte* at) {
      put_value(shape.kv.dtype, value(l, t, h, d), at);
    });
  }
  std::vector<double> get(bool values) const {
    std::vector<double> out;
    for_each(values, [&](auto, auto, auto, auto, std::byte* at) { out.push_back(get_value(shape.kv.dtype, at)); });
    return out;
  }
  // Everything, also between rows.
  std::vector<std::byte> bytes() const { return {arena_.region().host, arena_.region().host + arena_.used()}; }

  ExtentShape shape;
  std::vector<BlockView> views, host_views;

 private:
  Arena arena_;
};

inline FrameLabel lossy_label(std::uint64_t position) {
  FrameLabel label;
  label.last_key.bytes[0] = 1;
  label.first_position = position;
  label.fidelity = Fidelity::kLossy;
  return label;
}

inline ExtentShape extent_shape(const KvShape& kv, std::uint32_t layers, std::uint32_t blocks) {
  return {.kv = kv, .layer_count = layers, .block_count = blocks};
}

// A frame that fill(job) writes.
template <class Fill>
std::vector<std::byte> make_frame(const Codec& codec, const Slots& slots, std::uint64_t position, EncodeJob* told,
                                  Fill fill) {
  std::vector<std::byte> out(codec.bound(slots.shape));
  EncodeJob job{.shape = slots.shape,
                .label = lossy_label(position),
                .views = slots.host_views,
                .out = out,
                .bytes = 0,
                .status = {}};
  fill(job);
  EXPECT_TRUE(job.status.ok()) << job.status.message();
  if (told != nullptr) *told = job;
  out.resize(job.bytes);
  return out;
}
// By the host's own codec, and from sections that somebody else has coded.
inline std::vector<std::byte> encode_frame(const Codec& codec, const Slots& slots, std::uint64_t position,
                                           EncodeJob* told = nullptr) {
  return make_frame(codec, slots, position, told, [&](EncodeJob& job) { codec.encode({&job, 1}, nullptr); });
}
inline std::vector<std::byte> seal_frame(const Codec& codec, const Slots& slots, std::uint64_t position,
                                         std::span<const CodedSection> sections, EncodeJob* told = nullptr) {
  return make_frame(codec, slots, position, told, [&](EncodeJob& job) { section_codec(codec)->seal(job, sections); });
}
inline DecodeJob decode_job(std::span<const std::byte> frame, const Slots& slots, std::uint64_t position) {
  return {.frame = frame,
          .shape = slots.shape,
          .label = lossy_label(position),
          .layer = 0,
          .layer_count = slots.shape.layer_count,
          .views = slots.host_views,
          .status = {}};
}
inline void decode_frame(const Codec& codec, std::span<const std::byte> frame, const Slots& slots,
                         std::uint64_t position) {
  DecodeJob job = decode_job(frame, slots, position);
  codec.decode({&job, 1}, nullptr);
  EXPECT_TRUE(job.status.ok()) << job.status.message();
}
inline std::vector<OpenedSection> open_frame(const Codec& codec, std::span<const std::byte> frame, const Slots& slots,
                                             std::uint64_t position) {
  Result<std::vector<OpenedSection>> opened = section_codec(codec)->open(decode_job(frame, slots, position));
  EXPECT_TRUE(opened.ok()) << opened.status().message();
  return opened.ok() ? std::move(opened).value() : std::vector<OpenedSection>{};
}

}  // namespace firn::vk::testing
