// kvtc from calibration to frame and back: bits as promised, errors as told, every part of a frame like the whole.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>

#include "storage/codec/frame.h"
#include "storage/codec/kvtc_codec.h"
#include "tests/storage/calibration/toy_cache.h"
#include "tests/storage/codec/reseal.h"

namespace firn {
namespace {

using namespace test;
using Pairing = RotationSpec::Pairing;

std::unique_ptr<Codec> kvtc(const std::shared_ptr<const Artefact>& artefact, std::uint32_t rate, const ModelSpec& model,
                            EntropyCoder entropy = EntropyCoder::kDeflate) {
  Result<std::unique_ptr<Codec>> codec = make_codec(CodecId::kKvtc, artefact, rate, model, entropy);
  EXPECT_TRUE(codec.ok()) << codec.status().message();
  return std::move(codec).value();
}

FrameLabel label_at(std::uint64_t position) {
  FrameLabel label = lossy_label();
  label.first_position = position;
  return label;
}

TEST(Kvtc, BitsAreThoseOfTheTargetAndErrorsGrowWithTheRatio) {
  for (const std::uint32_t stack : {0u, 1u, 3u}) {
    const ModelSpec model = toy_model();
    const Artefact artefact = toy_artefact(model, {4, 8, 16}, stack);
    double before = 0;
    for (const KvtcPlan& plan : artefact.plans) {
      EXPECT_LE(plan.report.payload_bits, plan.report.target_bits);
      // Within 2 %, or what is left is too little for one more group of either tensor.
      EXPECT_GE(plan.report.payload_bits, std::min(0.98 * plan.report.target_bits, plan.report.target_bits - 2 * 34))
          << "stacks of " << stack << " layers, ratio " << plan.report.rate;
      EXPECT_EQ(plan.report.target_bits, 2.0 * 4 * 64 * 16 / plan.report.rate);
      EXPECT_GT(plan.report.bound.keys, before);
      before = plan.report.bound.keys;
    }
  }
}

TEST(Kvtc, ComesBackAsCloseAsItsHeaderSays) {
  for (const Pairing pairing : {Pairing::kNone, Pairing::kAdjacent, Pairing::kHalves}) {
    const ModelSpec model = toy_model(4, pairing);
    const auto artefact = loaded(toy_artefact(model));
    const auto codec = kvtc(artefact, 4, model);
    ToyCache cache(model, 50);
    double first_error = 0;
    for (const std::uint64_t position : {256u, 4096u, 100000u}) {  // flat, or the rotation is wrong
      const Extent source = toy_extent(model, cache.window(position, 128));
      const Bytes frame = encode(*codec, source, label_at(position));
      Extent target(source.shape(), Layout::kHeadMajor);
      const Status status = decode(*codec, frame, target, label_at(position));
      ASSERT_TRUE(status.ok()) << status.message();
      const Result<FrameView> view = FrameView::open(frame);
      ASSERT_TRUE(view.ok());
      EXPECT_EQ(view->header().keys_unrotated, pairing != Pairing::kNone);
      const double values = relative_error(source.shape(), source.bytes(), target.bytes(), true);
      EXPECT_NEAR(values, view->header().value_error, 2e-3);  // values have next to no mean
      // Keys' errors are told relative to what is left after centring.
      const double keys = relative_error(source.shape(), source.bytes(), target.bytes(), false);
      EXPECT_LT(keys, view->header().key_error);
      EXPECT_LT(view->header().key_error, codec->error_bound().keys);
      if (first_error == 0) first_error = keys;
      EXPECT_NEAR(keys, first_error, 0.15 * first_error) << "position " << position;
      // Bits a value as planned, less what DEFLATE saves, head and padding aside.
      EXPECT_LT(frame.size(), source.shape().raw_bytes() / 4 + 1024);
    }
  }
}

TEST(Kvtc, EveryEntropyCoderGivesTheSameValues) {
  const ModelSpec model = toy_model();
  const auto artefact = loaded(toy_artefact(model, {8}, 2));
  ToyCache cache(model, 51);
  const Extent source = toy_extent(model, cache.window(640, 64));
  Bytes expected;
  for (const EntropyCoder entropy : {EntropyCoder::kNone, EntropyCoder::kDeflate, EntropyCoder::kZstd}) {
    const auto writer = kvtc(artefact, 8, model, entropy), reader = kvtc(artefact, 8, model);
    Extent target(source.shape(), Layout::kPacked);
    ASSERT_TRUE(decode(*reader, encode(*writer, source, label_at(640)), target, label_at(640)).ok());
    if (expected.empty()) expected = target.bytes();
    EXPECT_TRUE(target.bytes() == expected);
  }
}

TEST(Kvtc, APartDecodesToTheBytesOfTheWhole) {
  ThreadPool threads(3);
  const ModelSpec model = toy_model(5, Pairing::kHalves);
  for (const std::uint32_t stack : {0u, 2u}) {
    const auto artefact = loaded(toy_artefact(model, {4}, stack));
    const auto codec = kvtc(artefact, 4, model);
    ToyCache cache(model, 52);
    const Extent source = toy_extent(model, cache.window(1024, 128), Layout::kPadded);
    const Bytes frame = encode(*codec, source, label_at(1024));
    EXPECT_TRUE(frame == encode(*codec, source, label_at(1024), &threads));
    Extent whole(source.shape(), Layout::kPacked);
    ASSERT_TRUE(decode(*codec, frame, whole, label_at(1024), &threads).ok());
    const Bytes all = whole.bytes();
    const std::size_t layer_bytes = all.size() / source.shape().layer_count;
    for (std::uint32_t layer = 0; layer < source.shape().layer_count; ++layer)
      for (const std::uint32_t skipped : {99u, 0u, 3u, 7u}) {
        ExtentShape one_shape = source.shape();
        one_shape.layer_count = 1;
        Extent one(one_shape, Layout::kHeadMajor);
        Bytes expected(all.begin() + static_cast<std::ptrdiff_t>(layer * layer_bytes),
                       all.begin() + static_cast<std::ptrdiff_t>((layer + 1) * layer_bytes));
        std::vector<BlockView> views = one.views;
        if (skipped < views.size()) {
          views[skipped].k = 0;
          const std::size_t row = 64 * 2, block = kBlockTokens * row;
          for (const std::size_t tensor : {std::size_t{0}, 128 * row})
            std::fill_n(expected.begin() + static_cast<std::ptrdiff_t>(tensor + skipped * block), block, std::byte{0});
        }
        DecodeJob job{.frame = frame,
                      .shape = source.shape(),
                      .label = label_at(1024),
                      .layer = layer,
                      .layer_count = 1,
                      .views = views,
                      .status = {}};
        codec->decode({&job, 1}, nullptr);
        ASSERT_TRUE(job.status.ok()) << job.status.message();
        EXPECT_TRUE(one.bytes() == expected) << "layer " << layer << ", without block " << skipped;
      }
  }
}

TEST(Kvtc, ForeignTextIsAboveTheBound) {
  const ModelSpec model = toy_model();
  const auto codec = kvtc(loaded(toy_artefact(model)), 8, model);
  ToyCache cache(model, 53);
  for (const bool foreign : {false, true}) {
    const Extent source = toy_extent(model, cache.window(512, 128, foreign));
    Bytes out(codec->bound(source.shape()));
    EncodeJob job{
        .shape = source.shape(), .label = label_at(512), .views = source.views, .out = out, .bytes = 0, .status = {}};
    codec->encode({&job, 1}, nullptr);
    ASSERT_TRUE(job.status.ok());
    EXPECT_EQ(job.key_error > codec->error_bound().keys, foreign);
    EXPECT_EQ(job.value_error > codec->error_bound().values, foreign);
  }
}

TEST(Kvtc, WhatCannotBeCodedIsStoredBitForBit) {
  const ModelSpec model = toy_model();
  const auto codec = kvtc(loaded(toy_artefact(model, {4}, 2)), 4, model);
  ToyCache cache(model, 54);
  Extent source = toy_extent(model, cache.window(512, 32));
  Bytes bytes = source.bytes();
  bytes[1] = std::byte{0x7e};  // a NaN among the keys of layer 0
  source.set_bytes(bytes);
  Extent target(source.shape(), Layout::kPacked);
  ASSERT_TRUE(decode(*codec, encode(*codec, source, label_at(512)), target, label_at(512)).ok());
  const Bytes out = target.bytes();
  const std::size_t tensor = 32 * 64 * 2;
  EXPECT_EQ(std::memcmp(out.data(), bytes.data(), tensor), 0);
  EXPECT_EQ(std::memcmp(out.data() + 2 * tensor, bytes.data() + 2 * tensor, tensor), 0);  // same stack
  EXPECT_NE(std::memcmp(out.data() + 4 * tensor, bytes.data() + 4 * tensor, tensor), 0);  // the other stack
}

TEST(Kvtc, RandomisedComponentsServeAsWell) {
  const ModelSpec model = toy_model();
  const Artefact exact = toy_artefact(model, {8}), randomised = toy_artefact(model, {8}, 0, 16);
  EXPECT_NEAR(randomised.plans[0].report.bound.values, exact.plans[0].report.bound.values,
              0.1 * exact.plans[0].report.bound.values);
}

TEST(Kvtc, CalibrationIsDeterministic) {
  const ModelSpec model = toy_model();
  Artefact a = toy_artefact(model), b = toy_artefact(model);
  EXPECT_TRUE(write_artefact(a) == write_artefact(b));
}

TEST(Kvtc, CalibrationSaysWhatItLacks) {
  ThreadPool threads(1);
  ModelSpec model = toy_model();
  const auto message = [](const auto& result) { return result.status().message(); };
  EXPECT_NE(message(Calibrator::make(model, {.ratios = {}}, threads)).find("ratios"), std::string::npos);
  EXPECT_NE(message(Calibrator::make(model, {.stack_layers = 5}, threads)).find("stacks of 5"), std::string::npos);
  auto calibrator = Calibrator::make(model, {}, threads);
  ASSERT_TRUE(calibrator.ok());
  ToyCache cache(model);
  ToyCache::Window window = cache.window(0, 144);
  ASSERT_TRUE((*calibrator)->add_window(0, 144, window.keys, window.values, false).ok());
  EXPECT_NE(message((*calibrator)->finish({})).find("held out"), std::string::npos);
  window.keys[5] = std::nanf("");
  EXPECT_EQ((*calibrator)->add_window(0, 144, window.keys, window.values, false).code(), Code::kInvalidArgument);
  model.rotation.attention_factor = 0;
  EXPECT_FALSE(Calibrator::make(model, {}, threads).ok());
}

// What version 1 wrote, with the artefact it was written with: read for ever.
TEST(Kvtc, FramesOfVersionOneAreReadForever) {
  const ModelSpec model = toy_model(2, Pairing::kHalves);
  const std::string artefact_path = FIRN_TEST_GOLDEN "/kvtc_v1.artefact",
                    frame_path = FIRN_TEST_GOLDEN "/kvtc_v1.frame";
  ToyCache cache(model, 60);
  const Extent source = toy_extent(model, cache.window(512, 32));
  if (std::getenv("FIRN_WRITE_GOLDEN") != nullptr) {
    Artefact made = toy_artefact(model, {8});
    const auto write = [](const std::string& path, const Bytes& bytes) {
      std::ofstream(path, std::ios::binary)
          .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    };
    write(artefact_path, write_artefact(made));
    write(frame_path, encode(*kvtc(loaded(std::move(made)), 8, model), source, label_at(512)));
  }
  const auto artefact = load_artefact(artefact_path);
  ASSERT_TRUE(artefact.ok()) << artefact.status().message();
  const Bytes frame = read_file(frame_path);
  Extent target(source.shape(), Layout::kPadded);
  const Status status = decode(*kvtc(*artefact, 8, model), frame, target, label_at(512));
  ASSERT_TRUE(status.ok()) << status.message();
  const Result<FrameView> view = FrameView::open(frame);
  ASSERT_TRUE(view.ok());
  EXPECT_NEAR(relative_error(source.shape(), source.bytes(), target.bytes(), true), view->header().value_error, 2e-3);
  EXPECT_LT(relative_error(source.shape(), source.bytes(), target.bytes(), false), view->header().key_error);
}

// --- hostile frames ---
struct Hostile : testing::Test {
  ModelSpec model = toy_model(3);
  std::shared_ptr<const Artefact> artefact = loaded(toy_artefact(model, {8}, 2));
  std::unique_ptr<Codec> codec = kvtc(artefact, 8, model);
  Extent source = toy_extent(model, ToyCache(model, 55).window(512, 32));
  Bytes frame = encode(*codec, source, label_at(512));
  Status read(const Bytes& bytes) {
    Extent target(source.shape(), Layout::kPacked);
    return decode(*codec, bytes, target, label_at(512));
  }
};

TEST_F(Hostile, EveryTruncationIsCorrupt) {
  for (std::size_t n = 0; n < frame.size(); ++n) {
    Bytes cut(frame.begin(), frame.begin() + static_cast<std::ptrdiff_t>(n));
    ASSERT_EQ(read(cut).code(), Code::kCorrupt) << n;
    if (n < kFrameHeaderBytes) continue;
    store_le(cut.data() + 24, std::uint64_t{n});
    reseal(cut);
    ASSERT_EQ(read(cut).code(), Code::kCorrupt) << n;
  }
}

TEST_F(Hostile, TenThousandCorruptionsAreFound) {
  std::mt19937_64 random(9);
  for (int i = 0; i < 10000; ++i) {
    Bytes broken = frame;
    for (std::size_t n = random() % 4 + 1; n > 0; --n)
      broken[random() % broken.size()] = static_cast<std::byte>(random());
    if (broken == frame) continue;
    ASSERT_EQ(read(broken).code(), Code::kCorrupt) << i;
    reseal(broken);
    const Status status = read(broken);
    ASSERT_TRUE(status.ok() || status.code() == Code::kCorrupt) << i;
  }
}

TEST_F(Hostile, AnotherArtefactOrRateIsRefused) {
  ToyCache cache(model, 77);
  const auto other = loaded(toy_artefact(model, {8, 4}, 2));
  ASSERT_NE(other->digest, artefact->digest);
  Extent target(source.shape(), Layout::kPacked);
  const Status status = decode(*kvtc(other, 8, model), frame, target, label_at(512));
  EXPECT_EQ(status.code(), Code::kCorrupt);
  EXPECT_NE(status.message().find("artefact"), std::string::npos);
  EXPECT_EQ(decode(*codec, encode(*kvtc(other, 4, model), source, label_at(512)), target, label_at(512)).code(),
            Code::kCorrupt);
  EXPECT_EQ(read(frame).code(), Code::kOk);
}

}  // namespace
}  // namespace firn
