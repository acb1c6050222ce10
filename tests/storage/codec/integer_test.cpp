// q8 and q4: as close as their bits allow, on captured keys and values and on whatever else.
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "firn/thread_pool.h"
#include "storage/codec/frame.h"
#include "tests/storage/codec/extents.h"

namespace firn {
namespace {

using namespace test;

std::unique_ptr<Codec> integer(const IntegerCoding& coding) {
  Result<std::unique_ptr<Codec>> codec = make_integer_codec(coding);
  EXPECT_TRUE(codec.ok());
  return std::move(codec).value();
}

struct Errors {
  double keys = 0, values = 0, bits = 0;  // bits an element
};
Errors errors_on(const Codec& codec, const ExtentShape& shape, const Bytes& bytes) {
  Extent source(shape, Layout::kPacked), target(shape, Layout::kHeadMajor);
  source.set_bytes(bytes);
  const Bytes frame = encode(codec, source, lossy_label());
  EXPECT_LE(frame.size(), codec.bound(shape));
  const Status status = decode(codec, frame, target, lossy_label());
  EXPECT_TRUE(status.ok()) << status.message();
  const Result<FrameView> view = FrameView::open(frame);
  EXPECT_TRUE(view.ok());
  const Errors errors{.keys = relative_error(shape, bytes, target.bytes(), false),
                      .values = relative_error(shape, bytes, target.bytes(), true),
                      .bits = 8.0 * static_cast<double>(frame.size()) / static_cast<double>(shape.raw_bytes()) *
                              bytes_of(shape.kv.dtype)};
  // The header says what decoding changed, but for the rounding to the type.
  const double rounding = shape.kv.dtype == Dtype::kF32 ? 1e-6 : shape.kv.dtype == Dtype::kF16 ? 5e-4 : 4e-3;
  EXPECT_NEAR(errors.keys, view->header().key_error, rounding);
  EXPECT_NEAR(errors.values, view->header().value_error, rounding);
  return errors;
}

TEST(Integer, CapturedKeysAndValuesComeBackAsCloseAsTheBitsAllow) {
  const ExtentShape shape = shape_of(Dtype::kF16, 3, 8, 3, 64, 64);
  const Bytes bytes = captured_bytes(3, 8);
  const Errors q8 = errors_on(*integer({}), shape, bytes);
  EXPECT_LT(q8.keys, 0.008);
  EXPECT_LT(q8.values, 0.008);
  EXPECT_LT(q8.bits, 8.6);
  const Errors q4 = errors_on(*integer({.key_bits = 4, .value_bits = 4}), shape, bytes);
  EXPECT_LT(q4.keys, 0.11);
  EXPECT_LT(q4.values, 0.11);
  EXPECT_LT(q4.bits, 4.6);
  EXPECT_GT(q4.keys, 4 * q8.keys);
  for (const auto& [name, errors] : {std::pair{"q8", q8}, std::pair{"q4", q4}}) {
    RecordProperty(std::string(name) + "_keys", std::to_string(errors.keys));
    RecordProperty(std::string(name) + "_values", std::to_string(errors.values));
  }
  // Each tensor by its own setting.
  const Errors mixed = errors_on(*integer({.key_bits = 8, .value_bits = 4}), shape, bytes);
  EXPECT_EQ(mixed.keys, q8.keys);
  EXPECT_EQ(mixed.values, q4.values);
  EXPECT_NEAR(mixed.bits, 6.5, 0.1);
}

TEST(Integer, MixingSpreadsAnOutlier) {
  const ExtentShape shape = shape_of(Dtype::kF16, 1, 2, 2, 64, 64);
  Bytes bytes = cache_like_bytes(shape, 5);
  // One channel in each head is 60 times as large as the others: without mixing it takes its block's scale.
  for (std::size_t i = 0; i < bytes.size() / 2; ++i)
    put_element(Dtype::kF16, i % 64 == 7 ? 60.0f : static_cast<float>(i % 13) - 6.0f, &bytes[2 * i]);
  const Errors plain =
      errors_on(*integer({.key_bits = 4, .value_bits = 4, .mix_keys = false, .mix_values = false}), shape, bytes);
  const Errors mixed = errors_on(*integer({.key_bits = 4, .value_bits = 4}), shape, bytes);
  EXPECT_LT(mixed.keys, plain.keys);
  const Errors keys_alone =
      errors_on(*integer({.key_bits = 4, .value_bits = 4, .mix_keys = true, .mix_values = false}), shape, bytes);
  EXPECT_EQ(keys_alone.keys, mixed.keys);
  EXPECT_EQ(keys_alone.values, plain.values);
}

TEST(Integer, OverShapesAndTypes) {
  const std::vector<ExtentShape> shapes = {
      shape_of(Dtype::kF32, 2, 3, 2, 80, 80),  shape_of(Dtype::kBf16, 1, 1, 1, 576, 0),
      shape_of(Dtype::kF16, 1, 2, 5, 7, 3),    shape_of(Dtype::kF16, 2, 1, 1, 1, 1),
      shape_of(Dtype::kF32, 1, 8, 4, 192, 33),
  };
  for (std::size_t i = 0; i < shapes.size(); ++i)
    for (const bool mix : {false, true}) {
      SCOPED_TRACE("shape " + std::to_string(i) + (mix ? ", mixed" : ""));
      const Bytes bytes = cache_like_bytes(shapes[i], i);
      const Errors q8 = errors_on(*integer({.mix_keys = mix, .mix_values = mix}), shapes[i], bytes);
      EXPECT_LT(std::max(q8.keys, q8.values), 0.02);
      const Errors q4 =
          errors_on(*integer({.key_bits = 4, .value_bits = 4, .mix_keys = mix, .mix_values = mix}), shapes[i], bytes);
      EXPECT_LT(std::max(q4.keys, q4.values), 0.2);
    }
}

// What has no scale is stored bit for bit; the rest of the frame is coded.
TEST(Integer, ASectionThatCannotBeScaledIsStored) {
  const float huge = 3e38f, infinite = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  for (const float value : {huge, infinite, -infinite, nan}) {
    const ExtentShape shape = shape_of(Dtype::kF32, 2, 1, 2, 64, 64);
    Bytes bytes = cache_like_bytes(shape, 3);
    const std::size_t tensor = bytes.size() / 4;
    put_element(Dtype::kF32, value, &bytes[tensor + 400]);  // values of layer 0
    Extent source(shape, Layout::kPacked), target(shape, Layout::kPacked);
    source.set_bytes(bytes);
    const auto codec = integer({.key_bits = 4, .value_bits = 4});
    const Bytes frame = encode(*codec, source, lossy_label());
    ASSERT_TRUE(decode(*codec, frame, target, lossy_label()).ok());
    const Bytes out = target.bytes();
    EXPECT_EQ(std::memcmp(&out[tensor], &bytes[tensor], tensor), 0);
    EXPECT_NE(std::memcmp(&out[0], &bytes[0], tensor), 0);
    EXPECT_LT(frame.size(), bytes.size() / 2);
  }
}

TEST(Integer, ZerosAndTheSmallestNumbers) {
  const ExtentShape shape = shape_of(Dtype::kF32, 1, 1, 1, 32, 32);
  Bytes bytes(shape.raw_bytes());
  put_element(Dtype::kF32, 1e-42f, &bytes[0]);
  put_element(Dtype::kF32, 1e-7f, &bytes[128]);
  for (const std::uint32_t bits : {4u, 8u}) {
    Extent source(shape, Layout::kPacked), target(shape, Layout::kPacked);
    source.set_bytes(bytes);
    const auto codec = integer({.key_bits = bits, .value_bits = bits, .mix_keys = false});
    ASSERT_TRUE(decode(*codec, encode(*codec, source, lossy_label()), target, lossy_label()).ok());
    for (std::size_t i = 0; i < bytes.size(); i += 4)
      EXPECT_NEAR(element_at(Dtype::kF32, &target.bytes()[i]), element_at(Dtype::kF32, &bytes[i]), 1.1e-7f);
  }
}

TEST(Integer, NeitherExactContentNorOtherBits) {
  const ExtentShape shape = shape_of(Dtype::kF16, 1, 1, 1, 32, 32);
  Extent extent(shape, Layout::kPacked);
  extent.set_bytes(cache_like_bytes(shape, 1));
  const auto q8 = integer({});
  Bytes out(q8->bound(shape));
  EncodeJob job{.shape = shape, .label = some_label(), .views = extent.views, .out = out, .bytes = 0, .status = {}};
  q8->encode({&job, 1}, nullptr);
  EXPECT_EQ(job.status.code(), Code::kInvalidArgument);
  EXPECT_EQ(make_integer_codec({.key_bits = 6}).status().code(), Code::kInvalidArgument);
  // A frame of another choice of bits is another encoding.
  const Bytes frame = encode(*q8, extent, lossy_label());
  EXPECT_EQ(decode(*integer({.key_bits = 8, .value_bits = 4}), frame, extent, lossy_label()).code(), Code::kCorrupt);
}

TEST(Integer, ThreadsChangeNoBit) {
  const ExtentShape shape = shape_of(Dtype::kF16, 3, 8, 3, 64, 64);
  Extent source(shape, Layout::kPacked);
  source.set_bytes(captured_bytes(3, 8));
  ThreadPool threads(4);
  const auto q4 = integer({.key_bits = 4, .value_bits = 4});
  EXPECT_TRUE(encode(*q4, source, lossy_label()) == encode(*q4, source, lossy_label(), &threads));
}

}  // namespace
}  // namespace firn
