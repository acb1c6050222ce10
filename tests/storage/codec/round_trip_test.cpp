// What goes in comes out, bit for bit, whatever the shape, the layout and the values.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "storage/codec/frame.h"
#include "storage/codec/layer_codec.h"
#include "tests/storage/codec/extents.h"

namespace firn {
namespace {

using namespace test;

constexpr CodecId kLayerCodecs[] = {CodecId::kRaw, CodecId::kLossless};
constexpr Layout kLayouts[] = {Layout::kPacked, Layout::kHeadMajor, Layout::kPadded};

void expect_round_trip(const Codec& codec, const Extent& source, Layout layout) {
  const Bytes frame = encode(codec, source, some_label());
  EXPECT_LE(frame.size(), codec.bound(source.shape()));
  EXPECT_EQ(frame.size() % kFrameAlignment, 0u);
  Extent target(source.shape(), layout);
  const Status status = decode(codec, frame, target, some_label());
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_TRUE(target.bytes() == source.bytes());
}

TEST(RoundTrip, OverShapesLayoutsAndTypes) {
  std::vector<ExtentShape> shapes;
  for (std::uint32_t blocks = 1; blocks <= kMaxExtentBlocks; ++blocks)
    shapes.push_back(shape_of(Dtype::kF16, 2, blocks, 3, 64, 64));
  for (const Dtype dtype : {Dtype::kF16, Dtype::kBf16, Dtype::kF32, Dtype::kBits8})
    for (const std::uint32_t dim : {64u, 80u, 128u}) shapes.push_back(shape_of(dtype, 1, 3, 2, dim, dim));
  shapes.push_back(shape_of(Dtype::kF16, 30, 2, 3, 64, 64));
  shapes.push_back(shape_of(Dtype::kBf16, 2, 2, 1, 576, 0));  // a latent row: no values
  shapes.push_back(shape_of(Dtype::kF16, 1, 2, 1, 1, 1));     // less than any overhead
  shapes.push_back(shape_of(Dtype::kF32, 2, 1, 5, 7, 3));
  shapes.push_back(shape_of(Dtype::kBits8, 2, 3, 5, 7, 3));
  shapes.push_back(shape_of(Dtype::kBits8, 1, 1, 1, 1, 0));
  shapes.push_back(shape_of(Dtype::kF16, 1, 8, 16, 192, 128));
  for (std::size_t i = 0; i < shapes.size(); ++i)
    for (const CodecId id : kLayerCodecs)
      for (const Layout layout : kLayouts) {
        SCOPED_TRACE(std::string(to_string(id)) + ", shape " + std::to_string(i));
        Extent source(shapes[i], layout);
        source.set_bytes(cache_like_bytes(shapes[i], i));
        expect_round_trip(*codec_of(id), source, kLayouts[(i + 1) % 3]);
      }
}

// Values a codec might be tempted to touch or to stumble over.
Bytes pattern(const ExtentShape& shape, const std::string& name) {
  std::mt19937_64 random(7);
  Bytes bytes(shape.raw_bytes());
  const std::size_t size = bytes_of(shape.kv.dtype);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (name == "noise") bytes[i] = static_cast<std::byte>(random());
    if (name == "ones") bytes[i] = std::byte{0xff};
    if (name == "counting") bytes[i] = static_cast<std::byte>(i);
    if (name == "low plane only" && i % size == 0) bytes[i] = static_cast<std::byte>(random());
  }
  if (name == "special values") {
    const std::uint16_t f16[] = {0x7e01, 0xfdff, 0x7c00, 0xfc00,
                                 0x0001, 0x83ff, 0x8000, 0x7bff};  // NaN, inf, denormal...
    for (std::size_t i = 0; i + 1 < bytes.size(); i += 2) std::memcpy(&bytes[i], &f16[random() % 8], 2);
  }
  if (name == "repeated rows")
    for (std::size_t i = 0; i < bytes.size(); ++i)
      bytes[i] = i < 1024 ? static_cast<std::byte>(random()) : bytes[i - 1024];
  if (name == "one odd byte") bytes[bytes.size() / 2] = std::byte{1};
  return bytes;
}

TEST(RoundTrip, KeepsEveryBitOfStrangeValues) {
  for (const Dtype dtype : {Dtype::kF16, Dtype::kBf16, Dtype::kF32, Dtype::kBits8})
    for (const char* name :
         {"zeros", "noise", "ones", "counting", "low plane only", "special values", "repeated rows", "one odd byte"})
      for (const CodecId id : kLayerCodecs) {
        SCOPED_TRACE(std::string(name) + ", " + std::string(to_string(dtype)) + ", " + std::string(to_string(id)));
        const ExtentShape shape = shape_of(dtype, 2, 3, 2, 64, 64);
        Extent source(shape, Layout::kPacked);
        source.set_bytes(pattern(shape, name));
        expect_round_trip(*codec_of(id), source, Layout::kHeadMajor);
      }
}

TEST(Lossless, StoresNoiseAsItIsAndShrinksWhatCanShrink) {
  const ExtentShape shape = shape_of(Dtype::kF16, 2, 8, 2, 64, 64);
  const auto lossless = codec_of(CodecId::kLossless), raw = codec_of(CodecId::kRaw);
  const auto bytes = [&](const char* name) {
    Extent extent(shape, Layout::kPacked);
    extent.set_bytes(pattern(shape, name));
    return encode(*lossless, extent, some_label()).size();
  };
  EXPECT_EQ(bytes("noise"), raw->bound(shape));  // no larger than raw, to the byte
  EXPECT_EQ(bytes("zeros"), frame_head_bytes(4) + 4 * 64);
  EXPECT_LT(bytes("repeated rows"), raw->bound(shape) / 4);
}

TEST(Lossless, SavesWhatItIsKnownToSaveOnCapturedKeysAndValues) {
  const ExtentShape shape = shape_of(Dtype::kF16, 3, 8, 3, 64, 64);
  Extent extent(shape, Layout::kPacked);
  extent.set_bytes(captured_bytes(3, 8));
  const Bytes frame = encode(*codec_of(CodecId::kLossless), extent, some_label());
  const double ratio = static_cast<double>(shape.raw_bytes()) / static_cast<double>(frame.size());
  RecordProperty("ratio", std::to_string(ratio));
  EXPECT_GT(ratio, 1.17);
}

TEST(Decode, OneLayerTouchesItsOwnSectionsAlone) {
  const ExtentShape shape = shape_of(Dtype::kF16, 6, 4, 3, 64, 64);
  Extent source(shape, Layout::kPacked);
  source.set_bytes(cache_like_bytes(shape, 3));
  const Bytes all = source.bytes();
  const std::size_t layer_bytes = all.size() / shape.layer_count;
  for (const CodecId id : kLayerCodecs) {
    const auto codec = codec_of(id);
    const Bytes frame = encode(*codec, source, some_label());
    for (std::uint32_t layer = 0; layer < shape.layer_count; ++layer) {
      SCOPED_TRACE(std::string(to_string(id)) + ", layer " + std::to_string(layer));
      Bytes others_broken = frame;
      const Result<FrameView> view = FrameView::open(frame);
      ASSERT_TRUE(view.ok());
      for (std::uint32_t section = 0; section < view->header().section_count; ++section)
        if (section / 2 != layer) others_broken[view->section(section).offset] ^= std::byte{1};
      Extent one(shape_of(Dtype::kF16, 1, 4, 3, 64, 64), Layout::kPadded);
      DecodeJob job{.frame = others_broken,
                    .shape = shape,
                    .label = some_label(),
                    .layer = layer,
                    .layer_count = 1,
                    .views = one.views,
                    .status = {}};
      codec->decode({&job, 1}, nullptr);
      ASSERT_TRUE(job.status.ok()) << job.status.message();
      EXPECT_TRUE(one.bytes() == Bytes(all.begin() + static_cast<std::ptrdiff_t>(layer * layer_bytes),
                                       all.begin() + static_cast<std::ptrdiff_t>((layer + 1) * layer_bytes)));
    }
  }
}

TEST(Decode, LeavesBlocksThatTakeNoPartAlone) {
  const ExtentShape shape = shape_of(Dtype::kF16, 3, 8, 2, 64, 80);
  Extent source(shape, Layout::kPacked);
  source.set_bytes(cache_like_bytes(shape, 4));
  for (const CodecId id : kLayerCodecs) {
    SCOPED_TRACE(to_string(id));
    const auto codec = codec_of(id);
    const Bytes frame = encode(*codec, source, some_label());
    Extent target(shape, Layout::kPacked), expected(shape, Layout::kPacked);
    target.set_bytes(Bytes(shape.raw_bytes(), std::byte{0x5a}));
    expected.set_bytes(source.bytes());
    std::vector<BlockView> views = target.views;
    for (std::size_t i = 0; i < views.size(); ++i) {
      if (i % 8 != 1 && i % 8 != 6 && i / 8 != 2) continue;  // two blocks of every layer and the whole last layer
      views[i].k = 0;
      const BlockView& skipped = expected.views[i];
      std::memset(reinterpret_cast<void*>(skipped.k), 0x5a, 16 * 2 * 64 * 2);
      std::memset(reinterpret_cast<void*>(skipped.v), 0x5a, 16 * 2 * 80 * 2);
    }
    DecodeJob job{.frame = frame,
                  .shape = shape,
                  .label = some_label(),
                  .layer = 0,
                  .layer_count = 3,
                  .views = views,
                  .status = {}};
    codec->decode({&job, 1}, nullptr);
    ASSERT_TRUE(job.status.ok()) << job.status.message();
    EXPECT_TRUE(target.bytes() == expected.bytes());
  }
}

void expect_scratch_is_no_more_than_was_said() {
  const auto codec = codec_of(CodecId::kLossless);
  std::size_t promised = 0;
  for (const ExtentShape& shape : {shape_of(Dtype::kF16, 1, 1, 3, 64, 64), shape_of(Dtype::kF32, 1, 8, 3, 65, 64),
                                   shape_of(Dtype::kF16, 1, 8, 32, 128, 128)}) {
    Extent source(shape, Layout::kPacked), target(shape, Layout::kPacked);
    source.set_bytes(cache_like_bytes(shape, 1));
    const Bytes frame = encode(*codec, source, some_label());
    ASSERT_TRUE(decode(*codec, frame, target, some_label()).ok());
    promised = std::max(promised, codec->scratch_bytes(shape));
    EXPECT_LE(lossless_scratch_held(), promised);
  }
  EXPECT_EQ(codec_of(CodecId::kRaw)->scratch_bytes(shape_of(Dtype::kF16, 1, 8, 3, 64, 64)), 0u);
}

TEST(Scratch, IsNoMoreThanWasSaid) {
  std::thread(expect_scratch_is_no_more_than_was_said).join();  // scratch is the thread's: a fresh one has none
}

TEST(Codec, RefusesCallsThatCannotBeMeant) {
  const auto codec = codec_of(CodecId::kLossless);
  const ExtentShape good = shape_of(Dtype::kF16, 2, 2, 2, 64, 64);
  Extent source(good, Layout::kPacked);
  Bytes out(codec->bound(good));
  const auto message = [&](const ExtentShape& shape, std::span<const BlockView> views) {
    EncodeJob job{.shape = shape, .label = some_label(), .views = views, .out = out, .bytes = 0, .status = {}};
    codec->encode({&job, 1}, nullptr);
    DecodeJob decode{.frame = out,
                     .shape = shape,
                     .label = some_label(),
                     .layer = 0,
                     .layer_count = shape.layer_count,
                     .views = views,
                     .status = {}};
    codec->decode({&decode, 1}, nullptr);
    EXPECT_EQ(job.status.code(), Code::kInvalidArgument);
    EXPECT_EQ(decode.status.code(), Code::kInvalidArgument);
    EXPECT_EQ(job.status.message(), decode.status.message());
    return job.status.message();
  };
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  EXPECT_TRUE(has(message(shape_of(static_cast<Dtype>(9), 2, 2, 2, 64, 64), source.views), "dtype"));
  EXPECT_TRUE(has(message(shape_of(Dtype::kF16, 2, 2, 0, 64, 64), source.views), "kv_heads"));
  EXPECT_TRUE(has(message(shape_of(Dtype::kF16, 2, 2, 2, ~0u, 64), source.views), "head_dim"));
  EXPECT_TRUE(has(message(shape_of(Dtype::kF16, 2, 2, 2, 64, ~0u), source.views), "value_dim"));
  EXPECT_TRUE(has(message(shape_of(Dtype::kF16, 0, 2, 2, 64, 64), source.views), "layer_count"));
  EXPECT_TRUE(has(message(shape_of(Dtype::kF16, 2, 9, 2, 64, 64), source.views), "block_count"));
  EXPECT_TRUE(has(message(good, std::span(source.views).first(3)), "number of views"));
  std::vector<BlockView> no_values = source.views;
  no_values[1].v = 0;
  EXPECT_TRUE(has(message(good, no_values), "view 1"));

  std::vector<BlockView> no_keys = source.views;
  no_keys[2].k = 0;
  EncodeJob job{.shape = good, .label = some_label(), .views = no_keys, .out = out, .bytes = 0, .status = {}};
  codec->encode({&job, 1}, nullptr);
  EXPECT_EQ(job.status.code(), Code::kInvalidArgument) << "only a decoder may skip blocks";

  DecodeJob beyond{.frame = out,
                   .shape = good,
                   .label = some_label(),
                   .layer = 1,
                   .layer_count = 2,
                   .views = source.views,
                   .status = {}};
  codec->decode({&beyond, 1}, nullptr);
  EXPECT_EQ(beyond.status.code(), Code::kInvalidArgument);
  EXPECT_TRUE(has(beyond.status.message(), "layer_count of the job"));
}

TEST(CodecNames, AreKnownBothWays) {
  for (const char* name : {"raw", "lossless", "q8", "q4", "kvtc", "firn"}) {
    const Result<CodecId> id = codec_from_name(name);
    ASSERT_TRUE(id.ok());
    EXPECT_EQ(to_string(*id), name);
  }
  const Result<CodecId> unknown = codec_from_name("zip");
  EXPECT_EQ(unknown.status().code(), Code::kInvalidArgument);
  EXPECT_NE(unknown.status().message().find("raw, lossless"), std::string::npos);
  EXPECT_FALSE(make_codec(CodecId::kKvtc).ok());
  EXPECT_EQ(codec_of(CodecId::kRaw)->fidelity(), Fidelity::kExact);
  EXPECT_EQ(to_string(Fidelity::kDerived), "derived");
}

}  // namespace
}  // namespace firn
