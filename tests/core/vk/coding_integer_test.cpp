// q8 and q4 on the vulkan device: the payloads that the host's codec has and that a plain quantiser gives, bit by bit,
// and back; frames of either side decoded by the other.
#include <algorithm>

#include "tests/core/vk/coding_fixture.h"

namespace firn::vk::testing {
namespace {

const KvShape kShapes[] = {{Dtype::kF16, 3, 64, 64},   {Dtype::kF16, 2, 40, 24}, {Dtype::kF16, 2, 9, 7},
                           {Dtype::kBf16, 1, 80, 128}, {Dtype::kF32, 2, 5, 96},  {Dtype::kF16, 1, 1024, 33}};
const Layout kLayouts[] = {Layout::kTokenMajor, Layout::kHeadMajor, Layout::kScattered};

// Ordinary values, and heads of zeros, of one constant, of an outlier, of the smallest and of the largest numbers.
float some_value(const KvShape& kv, std::uint64_t seed, std::uint32_t t, std::uint32_t h, std::uint32_t d) {
  const float value = unit_variance(seed, (std::uint64_t{t} * kv.kv_heads + h) * 1024 + d);
  switch (t % 16) {
    case 3:
      return 0.0f;
    case 4:
      return -0.0f;
    case 5:
      return -1.5f;
    case 6:
      return d == 7 ? -200.0f : value;
    case 7:
      return value * 3e-7f;
    case 8:
      return value * 15000.0f;
    case 9:
      return d % 2 == 0 ? 2.0f : -2.0f;  // who is largest is decided by the order
    default:
      return value * static_cast<float>(1 + d % 5);
  }
}

void fill(Slots& slots, std::uint64_t seed) {
  for (const bool values : {false, true})
    slots.set(values, [&](std::uint32_t l, std::uint32_t t, std::uint32_t h, std::uint32_t d) {
      return some_value(slots.shape.kv, 7 * seed + 2 * l + (values ? 1 : 0), t, h, d);
    });
}

// Payload and sums of every item of a batch, at addresses of the one who codes.
struct Coded {
  std::vector<std::byte> payload;
  std::vector<float> sums;
};

// As docs/frame.md has it, one value after the other; dims of up to 1024, no transform unless mixed.
std::vector<std::byte> naive_payload(const Slots& slots, std::uint32_t layer, bool values, std::uint32_t bits,
                                     bool mix) {
  const std::uint32_t dim = coded_dim(slots.shape.kv, values);
  std::vector<std::uint16_t> scales;
  std::vector<std::byte> codes;
  std::vector<float> head;
  const auto finish_head = [&] {
    std::uint32_t width = 1;
    while (mix && dim % (2 * width) == 0) width *= 2;
    for (std::uint32_t step = 1; step < width; step *= 2)
      for (std::uint32_t i = 0; i < dim; ++i)
        if ((i & step) == 0) {
          const float a = head[i], b = head[i + step];
          head[i] = a + b;
          head[i + step] = a - b;
        }
    if (width > 1)
      for (float& x : head) x *= 1.0f / std::sqrt(static_cast<float>(width));
    std::vector<int> ints;
    for (std::uint32_t first = 0; first < dim; first += 32) {
      const std::uint32_t end = std::min(dim, first + 32);
      float top = head[first];
      for (std::uint32_t i = first; i < end; ++i)
        if (std::fabs(head[i]) > std::fabs(top)) top = head[i];
      scales.push_back(cpu::f16_of(bits == 8 ? std::fabs(top) / 127.0f : top / -8.0f));
      const auto scale = static_cast<float>(half_value(scales.back()));
      for (std::uint32_t i = first; i < end; ++i) {
        const float inverse = scale == 0 ? 0.0f : 1.0f / scale;
        const double rounded = std::nearbyint(static_cast<double>(head[i] * inverse));
        ints.push_back(static_cast<int>(std::clamp(rounded, bits == 8 ? -127.0 : -8.0, bits == 8 ? 127.0 : 7.0)));
      }
    }
    if (bits == 4 && dim % 2 == 1) ints.push_back(0);
    for (std::size_t i = 0; i < ints.size(); i += bits == 8 ? 1 : 2)
      codes.push_back(static_cast<std::byte>(bits == 8 ? ints[i] & 255 : (ints[i] & 15) | (ints[i + 1] & 15) << 4));
    head.clear();
  };
  slots.for_each(values, [&](std::uint32_t l, auto, auto, auto, const std::byte* at) {
    if (l != layer) return;
    head.push_back(static_cast<float>(get_value(slots.shape.kv.dtype, at)));
    if (head.size() == dim) finish_head();
  });
  std::vector<std::byte> out(scales.size() * 2);
  std::memcpy(out.data(), scales.data(), out.size());
  out.insert(out.end(), codes.begin(), codes.end());
  return out;
}

class IntegerCoding : public VulkanTest {
 protected:
  // All layers of all extents in one call, on the device.
  std::vector<Coded> encode_on(Device& device, const std::vector<const Slots*>& extents, bool values,
                               std::uint32_t bits, bool mix) {
    IntegerBatch batch{.shape = extents[0]->shape.kv, .values = values, .bits = bits, .mix = mix};
    std::vector<BlockView> views;
    std::vector<IntegerItem> items;
    std::uint64_t bytes = 4096;
    for (const Slots* slots : extents)
      bytes += slots->shape.layer_count * (CodingKernels::payload_bytes(batch, slots->shape.block_count) +
                                           CodingKernels::sums_bytes(batch, slots->shape.block_count) + 128);
    Arena out(device, bytes);
    for (const Slots* slots : extents)
      for (std::uint32_t layer = 0; layer < slots->shape.layer_count; ++layer) {
        const std::uint32_t blocks = slots->shape.block_count;
        items.push_back({.payload = out.take(CodingKernels::payload_bytes(batch, blocks), 4),
                         .sums = out.take(CodingKernels::sums_bytes(batch, blocks)),
                         .view = static_cast<std::uint32_t>(views.size()),
                         .block_count = blocks});
        views.insert(views.end(), slots->views.begin() + layer * blocks, slots->views.begin() + (layer + 1) * blocks);
      }
    batch.views = views;
    batch.items = items;
    std::memset(out.region().host, 0xA5, out.region().bytes);
    wait(device, coding_kernels(device.kernels())->encode(batch));
    std::vector<Coded> coded;
    for (const IntegerItem& item : items) {
      coded.push_back({out.get<std::byte>(item.payload, CodingKernels::payload_bytes(batch, item.block_count)),
                       out.get<float>(item.sums, CodingKernels::sums_bytes(batch, item.block_count) / 4)});
      // Nothing before and behind.
      for (const DeviceAddress at : {item.payload - 1, item.payload + coded.back().payload.size()})
        EXPECT_EQ(*out.host(at), std::byte{0xA5});
    }
    return coded;
  }
  static std::vector<Coded> encode_on_host(const std::vector<const Slots*>& extents, bool values, std::uint32_t bits,
                                           bool mix) {
    IntegerBatch batch{.shape = extents[0]->shape.kv, .values = values, .bits = bits, .mix = mix};
    std::vector<Coded> coded;
    for (const Slots* slots : extents)
      for (std::uint32_t layer = 0; layer < slots->shape.layer_count; ++layer) {
        const std::uint32_t blocks = slots->shape.block_count;
        Coded one{std::vector<std::byte>(CodingKernels::payload_bytes(batch, blocks)),
                  std::vector<float>(CodingKernels::sums_bytes(batch, blocks) / 4)};
        const IntegerItem item{.payload = reinterpret_cast<DeviceAddress>(one.payload.data()),
                               .sums = reinterpret_cast<DeviceAddress>(one.sums.data()),
                               .view = layer * blocks,
                               .block_count = blocks};
        batch.views = slots->host_views;
        batch.items = {&item, 1};
        EXPECT_TRUE(HostCoding().encode(batch).ok());
        coded.push_back(std::move(one));
      }
    return coded;
  }
  void decode_on(Device& device, const std::vector<std::vector<std::byte>>& payloads, const Slots& slots, bool values,
                 std::uint32_t bits, bool mix, const std::vector<BlockView>& views) {
    IntegerBatch batch{.shape = slots.shape.kv, .values = values, .bits = bits, .mix = mix, .views = views};
    Arena in(device, payloads.size() * (payloads[0].size() + 128) + 4096);
    std::vector<IntegerItem> items;
    for (std::uint32_t layer = 0; layer < payloads.size(); ++layer)
      items.push_back({.payload = in.put(payloads[layer]),
                       .view = layer * slots.shape.block_count,
                       .block_count = slots.shape.block_count});
    batch.items = items;
    wait(device, coding_kernels(device.kernels())->decode(batch));
  }
  static void decode_on_host(const std::vector<std::vector<std::byte>>& payloads, const Slots& slots, bool values,
                             std::uint32_t bits, bool mix, const std::vector<BlockView>& views) {
    IntegerBatch batch{.shape = slots.shape.kv, .values = values, .bits = bits, .mix = mix, .views = views};
    std::vector<IntegerItem> items;
    for (std::uint32_t layer = 0; layer < payloads.size(); ++layer)
      items.push_back({.payload = reinterpret_cast<DeviceAddress>(payloads[layer].data()),
                       .view = layer * slots.shape.block_count,
                       .block_count = slots.shape.block_count});
    batch.items = items;
    ASSERT_TRUE(HostCoding().decode(batch).ok());
  }
};

std::string what(const KvShape& kv, Layout layout, bool values, std::uint32_t bits, bool mix) {
  return fmt_shape(kv, layout) + (values ? ", values" : ", keys") + ", " + std::to_string(bits) + " bits" +
         (mix ? ", mixed" : "");
}

TEST_F(IntegerCoding, PayloadsAreTheHostsAndThePlainQuantisersBitForBit) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  for (const KvShape& kv : kShapes)
    for (const Layout layout : kLayouts) {
      Slots whole(*device, extent_shape(kv, 2, kv.head_dim == 64 ? 8 : 2), layout),
          ragged(*device, extent_shape(kv, 1, 1), layout);
      fill(whole, 1);
      fill(ragged, 2);
      const std::vector<const Slots*> extents{&whole, &ragged};
      for (const bool values : {false, true})
        for (const std::uint32_t bits : {4u, 8u})
          for (const bool mix : {false, true}) {
            if (mix != (layout != Layout::kHeadMajor)) continue;  // each once is enough
            SCOPED_TRACE(what(kv, layout, values, bits, mix));
            const std::vector<Coded> ours = encode_on(*device, extents, values, bits, mix),
                                     theirs = encode_on_host(extents, values, bits, mix);
            for (std::size_t i = 0; i < ours.size(); ++i) {
              ASSERT_TRUE(ours[i].payload == theirs[i].payload) << "item " << i;
              const Slots& slots = i < 2 ? whole : ragged;
              ASSERT_TRUE(ours[i].payload == naive_payload(slots, i % 2, values, bits, mix)) << "item " << i;
              const IntegerBatch batch{.shape = kv, .values = values, .bits = bits, .mix = mix};
              const CodingSums a = CodingKernels::fold(batch, slots.shape.block_count, ours[i].sums),
                               b = CodingKernels::fold(batch, slots.shape.block_count, theirs[i].sums);
              EXPECT_TRUE(a.coded && b.coded);
              EXPECT_NEAR(a.error_energy, b.error_energy, 1e-5 * b.error_energy);
              EXPECT_NEAR(a.energy, b.energy, 1e-5 * b.energy);
              EXPECT_GT(b.error_energy, 0);
            }
          }
    }
}

TEST_F(IntegerCoding, DecodesToTheHostsBytesAndLeavesWhatTakesNoPart) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  for (const KvShape& kv : kShapes)
    for (const Layout layout : kLayouts)
      for (const bool values : {false, true})
        for (const std::uint32_t bits : {4u, 8u}) {
          const bool mix = layout != Layout::kScattered || kv.head_dim == 64;
          SCOPED_TRACE(what(kv, layout, values, bits, mix));
          Slots source(*device, extent_shape(kv, 2, 3), layout), ours(*device, source.shape, layout),
              theirs(*device, source.shape, layout);
          fill(source, 3);
          std::vector<std::vector<std::byte>> payloads;
          for (const Coded& coded : encode_on_host({&source}, values, bits, mix)) payloads.push_back(coded.payload);
          std::vector<BlockView> views = ours.views, host_views = theirs.host_views;
          views[4].k = host_views[4].k = 0;  // layer 1, block 1
          decode_on(*device, payloads, ours, values, bits, mix, views);
          decode_on_host(payloads, theirs, values, bits, mix, host_views);
          ASSERT_TRUE(ours.bytes() == theirs.bytes());
          ASSERT_FALSE(ours.bytes() == Slots(*device, source.shape, layout).bytes());
        }
}

// Every scale there is: heads of 32 values whose largest is every finite half, and every kind of f32 beside.
TEST_F(IntegerCoding, EveryScaleIsDividedAsTheHostDoes) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  for (const Dtype dtype : {Dtype::kF16, Dtype::kF32}) {
    const KvShape kv{dtype, 512, 32, 1};  // 8 blocks have 65,536 heads
    Slots slots(*device, extent_shape(kv, 1, 8), Layout::kTokenMajor);
    slots.set(false, [&](std::uint32_t, std::uint32_t t, std::uint32_t h, std::uint32_t d) {
      const std::uint32_t bits = t * 512 + h;
      const auto half = static_cast<std::uint16_t>((bits & 0x7C00) == 0x7C00 ? bits & 0x3FF : bits);
      auto top = static_cast<float>(half_value(half));
      if (dtype == Dtype::kF32) top *= 1.0f + static_cast<float>(uniform(5, bits)) * 0.9f;
      return d == bits % 32 ? top : top * static_cast<float>(2 * uniform(6, std::uint64_t{bits} * 32 + d) - 1);
    });
    for (const std::uint32_t bits : {4u, 8u}) {
      const std::vector<Coded> ours = encode_on(*device, {&slots}, false, bits, false),
                               theirs = encode_on_host({&slots}, false, bits, false);
      ASSERT_TRUE(ours[0].payload == theirs[0].payload) << to_string(dtype) << ", " << bits;
      Slots back(*device, slots.shape, Layout::kTokenMajor), host_back(*device, slots.shape, Layout::kTokenMajor);
      decode_on(*device, {ours[0].payload}, back, false, bits, false, back.views);
      decode_on_host({ours[0].payload}, host_back, false, bits, false, host_back.host_views);
      ASSERT_TRUE(back.bytes() == host_back.bytes()) << to_string(dtype) << ", " << bits;
    }
  }
}

TEST_F(IntegerCoding, FramesOfEitherSideAreDecodedByTheOther) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  const KvShape kv{Dtype::kF16, 3, 64, 40};
  for (const std::uint32_t key_bits : {8u, 4u})
    for (const std::uint32_t blocks : {8u, 3u}) {  // whole, and the ragged last one
      const auto codec = make_integer_codec({.key_bits = key_bits, .value_bits = 4, .mix_values = false});
      ASSERT_TRUE(codec.ok());
      Slots source(*device, extent_shape(kv, 2, blocks), Layout::kHeadMajor);
      fill(source, 4);
      // Layer 1 has a NaN among its keys and layer 0 an infinity among its values: both are stored.
      source.for_each(false, [&](std::uint32_t l, std::uint32_t t, std::uint32_t h, std::uint32_t d, std::byte* at) {
        if (l == 1 && t == 17 && h == 1 && d == 3) put_value(Dtype::kF16, std::nanf(""), at);
      });
      source.for_each(true, [&](std::uint32_t l, std::uint32_t t, std::uint32_t h, std::uint32_t d, std::byte* at) {
        if (l == 0 && t == 2 && h == 0 && d == 39) put_value(Dtype::kF16, -INFINITY, at);
      });
      const std::vector<Coded> keys = encode_on(*device, {&source}, false, key_bits, true),
                               values = encode_on(*device, {&source}, true, 4, false);
      std::vector<CodedSection> sections;
      for (std::uint32_t layer = 0; layer < 2; ++layer)
        for (const bool of_values : {false, true}) {
          const Coded& coded = (of_values ? values : keys)[layer];
          const CodingSums sums =
              CodingKernels::fold(IntegerBatch{.shape = kv, .values = of_values}, blocks, coded.sums);
          EXPECT_EQ(sums.coded, (layer == 1) == of_values);
          sections.push_back({!sums.coded, coded.payload, sums.error_energy, sums.energy});
        }
      EncodeJob told, by_codec_too;
      const std::vector<std::byte> sealed = seal_frame(**codec, source, 512, sections, &told),
                                   frame = encode_frame(**codec, source, 512, &by_codec_too);
      EXPECT_GT(told.key_error, 0);
      EXPECT_NEAR(told.key_error, by_codec_too.key_error, 1e-5 * static_cast<double>(by_codec_too.key_error));
      EXPECT_NEAR(told.value_error, by_codec_too.value_error, 1e-5 * static_cast<double>(by_codec_too.value_error));
      // The same but for the errors in the head, which are summed in another order.
      ASSERT_EQ(sealed.size(), frame.size());
      const std::vector<OpenedSection> a = open_frame(**codec, sealed, source, 512),
                                       b = open_frame(**codec, frame, source, 512);
      ASSERT_EQ(a.size(), 4u);
      for (std::size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(a[i].section, i);
        EXPECT_EQ(a[i].stored, b[i].stored);
        EXPECT_EQ(a[i].stored, sections[i].stored);
        EXPECT_TRUE(a[i].payload == b[i].payload);
      }
      // The device's frame by the codec, the codec's frame by the device.
      Slots by_codec(*device, source.shape, Layout::kTokenMajor), by_device(*device, source.shape, Layout::kTokenMajor);
      decode_frame(**codec, sealed, by_codec, 512);
      for (const OpenedSection& section : b) {
        const std::uint32_t layer = section.section / 2;
        const bool of_values = section.section % 2 == 1;
        if (section.stored) continue;
        const auto first = by_device.views.begin() + layer * blocks;
        decode_on(*device, {section.payload}, by_device, of_values, of_values ? 4 : key_bits, !of_values,
                  {first, first + blocks});
      }
      for (const bool of_values : {false, true}) {
        const std::vector<double> x = by_codec.get(of_values), y = by_device.get(of_values);
        const std::size_t half = x.size() / 2, from = of_values ? half : 0;  // the layer that is not stored
        EXPECT_TRUE(std::equal(x.begin() + static_cast<std::ptrdiff_t>(from),
                               x.begin() + static_cast<std::ptrdiff_t>(from + half),
                               y.begin() + static_cast<std::ptrdiff_t>(from)));
      }
    }
}

TEST_F(IntegerCoding, NoBarrierAndNoRangeIsMissing) {
  const KvShape kv{Dtype::kF16, 2, 32, 32};
  std::vector<std::byte> expected;
  for (const Ordering ordering : {Ordering::kPlain, Ordering::kEverything, Ordering::kShuffle}) {
    Hooks hooks = strict_hooks();
    hooks.ordering = ordering;
    const auto device = make(hooks);
    ASSERT_TRUE(device);
    Slots source(*device, extent_shape(kv, 2, 2), Layout::kTokenMajor),
        target(*device, source.shape, Layout::kTokenMajor);
    fill(source, 5);
    Arena arena(*device, 1 << 16);
    // Encoded, decoded elsewhere, encoded from there over the first payload, decoded again: each waits for the one
    // before.
    IntegerBatch batch{.shape = kv, .bits = 4};
    std::vector<IntegerItem> items;
    for (std::uint32_t layer = 0; layer < 2; ++layer)
      items.push_back({arena.take(CodingKernels::payload_bytes(batch, 2)),
                       arena.take(CodingKernels::sums_bytes(batch, 2)), layer * 2, 2});
    batch.items = items;
    Result<Fence> last = Fence{};
    for (int round = 0; round < 2; ++round) {
      batch.views = round == 0 ? source.views : target.views;
      ASSERT_TRUE(device->kernels().encode(batch).ok());
      batch.views = target.views;
      last = device->kernels().decode(batch);
    }
    wait(*device, last);
    if (expected.empty()) expected = target.bytes();
    EXPECT_TRUE(target.bytes() == expected) << static_cast<int>(ordering);
  }
}

TEST_F(IntegerCoding, WhatCannotBeIsRefused) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  EXPECT_EQ(coding_kernels(static_cast<Device&>(*device).kernels()), &device->kernels());
  ThreadPool threads(1);
  EXPECT_EQ(coding_kernels(make_cpu_device(threads)->kernels()), nullptr);
  const std::vector<BlockView> views(2, {64, 64, 16, 16, 16, 16});
  const auto refused = [&](IntegerBatch batch, IntegerItem item, const char* part, bool encoding = true) {
    batch.views = views;
    batch.items = {&item, 1};
    const Status status =
        encoding ? device->kernels().encode(batch).status() : device->kernels().decode(batch).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
  };
  const KvShape kv{Dtype::kF16, 1, 8, 8};
  const IntegerItem item{.payload = 64, .sums = 64, .view = 0, .block_count = 2};
  refused({.shape = kv, .bits = 6}, item, "bits 6");
  refused({.shape = {Dtype::kF16, 1, 8, 0}, .values = true}, item, "value_dim 0");
  refused({.shape = kv}, {.payload = 64, .sums = 64, .view = 1, .block_count = 2}, "views 1 to 3");
  refused({.shape = kv}, {.payload = 64, .sums = 64, .view = 0, .block_count = 9}, "block_count 9");
  refused({.shape = kv}, {.payload = 66, .sums = 64, .view = 0, .block_count = 1}, "multiples of 4");
  refused({.shape = kv}, {.payload = 64, .sums = 0, .view = 0, .block_count = 1}, "sums must be set");
  refused({.shape = kv}, {.payload = 0, .sums = 64, .view = 0, .block_count = 1}, "payload must be set", false);
}

}  // namespace
}  // namespace firn::vk::testing
