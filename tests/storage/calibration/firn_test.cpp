// The codec firn from calibration to frame and back: ratios as asked for, errors as told, sinks within texts found
// where there are any, every part of a frame like the whole, and frames from anywhere.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>

#include "storage/codec/frame.h"
#include "tests/storage/calibration/toy_firn.h"
#include "tests/storage/codec/reseal.h"

#include <blake3.h>

namespace firn {
namespace {

using namespace test;
using Pairing = RotationSpec::Pairing;

std::unique_ptr<Codec> firn_codec(const std::shared_ptr<const Artefact>& artefact, std::uint32_t ratio,
                                  const ModelSpec& model) {
  Result<std::unique_ptr<Codec>> codec = make_codec(CodecId::kFirn, artefact, ratio, model);
  EXPECT_TRUE(codec.ok()) << codec.status().message();
  return std::move(codec).value();
}

FrameLabel label_at(std::uint64_t position) {
  FrameLabel label = lossy_label();
  label.first_position = position;
  return label;
}

EncodeJob encoded(const Codec& codec, const Extent& source, const FrameLabel& label, Bytes& out) {
  out.resize(codec.bound(source.shape()));
  EncodeJob job{.shape = source.shape(), .label = label, .views = source.views, .out = out, .bytes = 0, .status = {}};
  codec.encode({&job, 1}, nullptr);
  EXPECT_TRUE(job.status.ok()) << job.status.message();
  out.resize(job.bytes);
  return job;
}

TEST(Firn, RatiosAreThoseAskedForAndThoseBetween) {
  const ModelSpec model = toy_model();
  const auto artefact = loaded(toy_firn_artefact(model));
  const ArtefactInfo info = describe(*artefact);
  EXPECT_EQ(info.codec, CodecId::kFirn);
  ASSERT_EQ(info.rates.size(), 3u);
  for (const ArtefactRate& rate : info.rates)
    EXPECT_NEAR(rate.realised_ratio, rate.rate, 0.08 * rate.rate) << "ratio " << rate.rate;
  ToyCache cache(model, 31);
  const Extent source = toy_extent(model, toy_window(cache, model, 512, 128, true));
  std::size_t before = ~std::size_t{0};
  std::uint32_t step = 0;
  for (std::uint32_t ratio = 4; ratio <= 16; ++ratio) {
    const auto codec = firn_codec(artefact, ratio, model);
    EXPECT_GT(codec->rate(), step);
    step = codec->rate();
    Bytes frame;
    encoded(*codec, source, label_at(512), frame);
    EXPECT_LE(frame.size(), before);
    before = frame.size();
    EXPECT_NEAR(static_cast<double>(source.shape().raw_bytes()) / static_cast<double>(frame.size()), ratio,
                0.2 * ratio);
  }
  for (const std::uint32_t ratio : {3u, 17u}) {
    const auto refused = make_codec(CodecId::kFirn, artefact, ratio, model);
    ASSERT_FALSE(refused.ok());
    EXPECT_NE(refused.status().message().find("4 to 16"), std::string::npos) << refused.status().message();
  }
}

// One artefact serves all rates: the step is the frame's.
TEST(Firn, AFrameIsReadAtWhateverStepItWasWritten) {
  const ModelSpec model = toy_model();
  const auto artefact = loaded(toy_firn_artefact(model));
  ToyCache cache(model, 32);
  const Extent source = toy_extent(model, toy_window(cache, model, 512, 128, true));
  const auto coarse = firn_codec(artefact, 16, model);
  for (const std::uint32_t ratio : {4u, 7u, 16u}) {
    const auto writer = firn_codec(artefact, ratio, model);
    const Bytes frame = encode(*writer, source, label_at(512));
    Extent own(source.shape(), Layout::kPacked), other(source.shape(), Layout::kPacked);
    ASSERT_TRUE(decode(*writer, frame, own, label_at(512)).ok());
    const Status status = decode(*coarse, frame, other, label_at(512));
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_TRUE(own.bytes() == other.bytes());
  }
}

TEST(Firn, ComesBackAlikeAtEveryPosition) {
  for (const Pairing pairing : {Pairing::kNone, Pairing::kAdjacent, Pairing::kHalves}) {
    const ModelSpec model = toy_model(4, pairing);
    const auto codec = firn_codec(loaded(toy_firn_artefact(model)), 8, model);
    ToyCache cache(model, 50);
    double first_keys = 0;
    for (const std::uint64_t position : {256u, 4096u, 100000u}) {  // flat, or the rotation is wrong
      const Extent source = toy_extent(model, toy_window(cache, model, position, 128, true));
      Bytes frame;
      const EncodeJob job = encoded(*codec, source, label_at(position), frame);
      EXPECT_LT(job.key_error, codec->error_bound().keys);
      EXPECT_LT(job.value_error, codec->error_bound().values);
      Extent target(source.shape(), Layout::kHeadMajor);
      const Status status = decode(*codec, frame, target, label_at(position));
      ASSERT_TRUE(status.ok()) << status.message();
      const Result<FrameView> view = FrameView::open(frame);
      ASSERT_TRUE(view.ok());
      EXPECT_EQ(view->header().keys_unrotated, pairing != Pairing::kNone);
      EXPECT_EQ(view->header().key_error, job.key_error);
      const double keys = relative_error(source.shape(), source.bytes(), target.bytes(), false);
      EXPECT_LT(keys, 0.2);
      EXPECT_LT(relative_error(source.shape(), source.bytes(), target.bytes(), true), 0.5);
      if (first_keys == 0) first_keys = keys;
      EXPECT_NEAR(keys, first_keys, 0.2 * first_keys) << "position " << position;
    }
  }
}

TEST(Firn, SinksWithinTextsAreFoundWhereThereAreAny) {
  const ModelSpec model = toy_model();
  ThreadPool threads(2);
  for (const bool sinks : {true, false}) {
    auto calibrator = toy_firn_calibrator(model, {.sinks = sinks}, threads);
    ASSERT_TRUE(calibrator.ok()) << calibrator.status().message();
    const FirnFindings& found = (*calibrator)->findings();
    EXPECT_EQ(found.detector_layers, sinks ? (std::vector<std::uint32_t>{1, 2}) : std::vector<std::uint32_t>{});
    const Result<Artefact> artefact = (*calibrator)->finish({});
    ASSERT_TRUE(artefact.ok()) << artefact.status().message();
    EXPECT_EQ((*calibrator)->findings().sink_rows != 0, sinks);
    EXPECT_EQ(artefact->firn.stacks[0].sinks.empty(), !sinks);
  }
}

// Their flags stand in the frame, and what they need stays small.
TEST(Firn, SinksAreFlaggedInTheFrame) {
  const ModelSpec model = toy_model();
  const auto codec = firn_codec(loaded(toy_firn_artefact(model)), 8, model);
  ToyCache cache(model, 33);
  const Bytes frame = encode(*codec, toy_extent(model, toy_window(cache, model, 512, 128, true)), label_at(512));
  const Result<FrameView> view = FrameView::open(frame);
  ASSERT_TRUE(view.ok());
  for (std::uint32_t i = 0; i < view->header().section_count; ++i) {
    const auto payload = view->payload(i);
    ASSERT_TRUE(payload.ok());
    EXPECT_EQ(view->section(i).coding, 1);
    for (std::uint32_t t = 0; t < 128; ++t)
      EXPECT_EQ(std::to_integer<unsigned>((*payload)[t / 8]) >> (t % 8) & 1, is_toy_sink(512 + t) ? 1u : 0u) << t;
  }
}

TEST(Firn, APartDecodesToTheBytesOfTheWhole) {
  ThreadPool threads(3);
  const ModelSpec model = toy_model(5, Pairing::kHalves);
  for (const std::uint32_t stack : {0u, 2u}) {
    const auto codec = firn_codec(loaded(toy_firn_artefact(model, {.stack_layers = stack})), 8, model);
    ToyCache cache(model, 52);
    const Extent source = toy_extent(model, toy_window(cache, model, 1024, 128, true), Layout::kPadded);
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

TEST(Firn, ForeignTextIsAboveTheBound) {
  const ModelSpec model = toy_model();
  const auto codec = firn_codec(loaded(toy_firn_artefact(model)), 8, model);
  ToyCache cache(model, 53);
  for (const bool foreign : {false, true}) {
    Bytes frame;
    const EncodeJob job =
        encoded(*codec, toy_extent(model, toy_window(cache, model, 512, 128, true, foreign)), label_at(512), frame);
    EXPECT_EQ(job.key_error > codec->error_bound().keys || job.value_error > codec->error_bound().values, foreign);
  }
}

TEST(Firn, WhatCannotBeCodedIsStoredBitForBit) {
  const ModelSpec model = toy_model();
  const auto codec = firn_codec(loaded(toy_firn_artefact(model)), 4, model);
  ToyCache cache(model, 54);
  Extent source = toy_extent(model, toy_window(cache, model, 512, 128, true));
  Bytes bytes = source.bytes();
  bytes[1] = std::byte{0x7e};  // a NaN among the keys of layer 0
  source.set_bytes(bytes);
  Extent target(source.shape(), Layout::kPacked);
  ASSERT_TRUE(decode(*codec, encode(*codec, source, label_at(512)), target, label_at(512)).ok());
  const Bytes out = target.bytes();
  const std::size_t stack = 2 * 2 * 128 * 64 * 2;
  EXPECT_EQ(std::memcmp(out.data(), bytes.data(), stack), 0);
  EXPECT_NE(std::memcmp(out.data() + stack, bytes.data() + stack, stack), 0);
  // The first tokens of a text are like no others: an extent that has them is stored as it is.
  const Extent first = toy_extent(model, toy_window(cache, model, 0, 128, true));
  ASSERT_TRUE(decode(*codec, encode(*codec, first, label_at(0)), target, label_at(0)).ok());
  EXPECT_TRUE(target.bytes() == first.bytes());
}

TEST(Firn, EveryNumberOfBlocksAndEveryTypeComesBack) {
  for (const Dtype dtype : {Dtype::kF16, Dtype::kBf16, Dtype::kF32}) {
    ModelSpec model = toy_model();
    model.groups[0].kv.dtype = dtype;
    const auto codec = firn_codec(loaded(toy_firn_artefact(model)), 8, model);
    ToyCache cache(model, 56);
    for (std::uint32_t blocks = 1; blocks <= kMaxExtentBlocks; ++blocks) {
      const Extent source =
          toy_extent(model, toy_window(cache, model, 512, blocks * kBlockTokens, true), Layout::kPadded);
      Extent target(source.shape(), Layout::kHeadMajor);
      ASSERT_TRUE(decode(*codec, encode(*codec, source, label_at(512)), target, label_at(512)).ok());
      EXPECT_LT(relative_error(source.shape(), source.bytes(), target.bytes(), true), 0.5) << blocks << " blocks";
    }
  }
}

// All tokens sinks, as no text has them: the frame has no mean and no rows, and comes back.
TEST(Firn, AnExtentOfSinksAloneComesBack) {
  const ModelSpec model = toy_model();
  const auto codec = firn_codec(loaded(toy_firn_artefact(model)), 8, model);
  ToyCache cache(model, 57);
  ToyCache::Window window = cache.window(512, 32);
  const std::size_t w = cache.width();
  for (std::size_t i = w * 32; i < 3 * w * 32; ++i) window.values[i] *= 0.1f;
  const Extent source = toy_extent(model, window);
  Extent target(source.shape(), Layout::kPacked);
  const Status status = decode(*codec, encode(*codec, source, label_at(512)), target, label_at(512));
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_LT(relative_error(source.shape(), source.bytes(), target.bytes(), false), 0.5);
}

// What a frame shares is worth its bytes, and what is left of the mean is told apart.
TEST(Firn, FrameMeansTakeTheSharedErrorAway) {
  const ModelSpec model = toy_model();
  ToyCache cache(model, 58);
  ToyCache::Window window = toy_window(cache, model, 512, 128, true);
  for (std::size_t i = 0; i < window.values.size(); ++i) window.values[i] += 0.05f * static_cast<float>(i % 5);
  const Extent source = toy_extent(model, window);
  float shared[2];
  for (const bool means : {false, true}) {
    Bytes frame;
    shared[means ? 1 : 0] = encoded(*firn_codec(loaded(toy_firn_artefact(model, {.use_means = means})), 8, model),
                                    source, label_at(512), frame)
                                .value_error;
  }
  EXPECT_LT(shared[1], 0.5f * shared[0]);
}

TEST(Firn, CalibrationIsDeterministic) {
  const ModelSpec model = toy_model();
  Artefact a = toy_firn_artefact(model), b = toy_firn_artefact(model);
  EXPECT_TRUE(write_artefact(a) == write_artefact(b));
}

TEST(Firn, CalibrationSaysWhatItLacks) {
  ThreadPool threads(1);
  ModelSpec model = toy_model();
  const auto message = [](const auto& result) { return result.status().message(); };
  EXPECT_NE(message(FirnCalibrator::make(model, {.stack_layers = 2, .ratios = {}}, threads)).find("ratios"),
            std::string::npos);
  EXPECT_NE(message(FirnCalibrator::make(model, {.stack_layers = 9}, threads)).find("stacks of 9"), std::string::npos);
  auto calibrator = FirnCalibrator::make(model, {.stack_layers = 2}, threads);
  ASSERT_TRUE(calibrator.ok());
  ToyCache cache(model);
  ToyCache::Window window = cache.window(0, 144);
  const Status status = (*calibrator)->add_window(0, 144, window.keys, window.values, false);
  EXPECT_NE(status.message().find("gradients"), std::string::npos) << status.message();
  EXPECT_EQ((*toy_firn_calibrator(model, {.ratios = {4, 1000}}, threads))->finish({}).status().code(),
            Code::kInvalidArgument);
  model.groups[0].kind = GroupKind::kLatent;
  model.groups[0].kv.value_dim = 0;
  EXPECT_NE(message(FirnCalibrator::make(model, {}, threads)).find("latent"), std::string::npos);
}

TEST(Firn, AnArtefactOfAnotherCodecIsRefused) {
  const ModelSpec model = toy_model();
  const auto of_firn = loaded(toy_firn_artefact(model)), of_kvtc = loaded(toy_artefact(model));
  for (const bool firn : {true, false}) {
    const auto refused = make_codec(firn ? CodecId::kFirn : CodecId::kKvtc, firn ? of_kvtc : of_firn, 8, model);
    ASSERT_FALSE(refused.ok());
    EXPECT_NE(refused.status().message().find(firn ? "kvtc" : "firn"), std::string::npos);
  }
}

// What version 1 wrote, with the artefact it was written with: read for ever.
TEST(Firn, FramesOfVersionOneAreReadForever) {
  const ModelSpec model = toy_model(2, Pairing::kHalves);
  const std::string artefact_path = FIRN_TEST_GOLDEN "/firn_v1.artefact",
                    frame_path = FIRN_TEST_GOLDEN "/firn_v1.frame", bytes_path = FIRN_TEST_GOLDEN "/firn_v1.bytes";
  ToyCache cache(model, 60);
  const Extent source = toy_extent(model, toy_window(cache, model, 512, 64, true));
  if (std::getenv("FIRN_WRITE_GOLDEN") != nullptr) {
    Artefact made = toy_firn_artefact(model, {.ratios = {4, 8}, .stack_layers = 1});
    const auto write = [](const std::string& path, const Bytes& bytes) {
      std::ofstream(path, std::ios::binary)
          .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    };
    write(artefact_path, write_artefact(made));
    const auto codec = firn_codec(loaded(std::move(made)), 8, model);
    const Bytes frame = encode(*codec, source, label_at(512));
    Extent decoded(source.shape(), Layout::kPacked);
    ASSERT_TRUE(decode(*codec, frame, decoded, label_at(512)).ok());
    write(frame_path, frame);
    write(bytes_path, decoded.bytes());
  }
  const auto artefact = load_artefact(artefact_path);
  ASSERT_TRUE(artefact.ok()) << artefact.status().message();
  Extent target(source.shape(), Layout::kPadded);
  const Status status = decode(*firn_codec(*artefact, 4, model), read_file(frame_path), target, label_at(512));
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_TRUE(target.bytes() == read_file(bytes_path));  // bit by bit, on every machine
}

// --- hostile frames and artefacts ---
struct FirnHostile : testing::Test {
  ModelSpec model = toy_model(3);
  std::shared_ptr<const Artefact> artefact = loaded(toy_firn_artefact(model, {.ratios = {4, 8}}));
  std::unique_ptr<Codec> codec = firn_codec(artefact, 8, model);
  ToyCache cache{model, 55};
  Extent source = toy_extent(model, toy_window(cache, model, 512, 32, true));
  Bytes frame = encode(*codec, source, label_at(512));
  Status read(const Bytes& bytes) {
    Extent target(source.shape(), Layout::kPacked);
    return decode(*codec, bytes, target, label_at(512));
  }
};

TEST_F(FirnHostile, EveryTruncationIsCorrupt) {
  ASSERT_TRUE(read(frame).ok());
  for (std::size_t n = 0; n < frame.size(); ++n) {
    Bytes cut(frame.begin(), frame.begin() + static_cast<std::ptrdiff_t>(n));
    ASSERT_EQ(read(cut).code(), Code::kCorrupt) << n;
    if (n < kFrameHeaderBytes) continue;
    store_le(cut.data() + 24, std::uint64_t{n});
    reseal(cut);
    ASSERT_EQ(read(cut).code(), Code::kCorrupt) << n;
  }
}

TEST_F(FirnHostile, TenThousandCorruptionsAreFound) {
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

// With checksums that match, it is the coder that finds what was changed behind the head.
TEST_F(FirnHostile, CodedBytesThatWereChangedAreFoundBehindTheirChecksums) {
  const std::size_t first = FrameView::open(frame)->section(0).offset;
  std::mt19937_64 random(19);
  for (int i = 0; i < 2000; ++i) {
    Bytes broken = frame;
    const std::uint32_t section = static_cast<std::uint32_t>(random() % 2);
    const SectionEntry entry = FrameView::open(frame)->section(section);
    const std::size_t at = entry.offset + 4 + random() % (entry.encoded_bytes - 4);  // behind the flags
    ASSERT_GE(at, first);
    broken[at] ^= static_cast<std::byte>(1 + random() % 255);
    reseal(broken);
    ASSERT_EQ(read(broken).code(), Code::kCorrupt) << i << ", seed 19";
  }
}

TEST_F(FirnHostile, AnotherArtefactIsRefused) {
  const auto other = loaded(toy_firn_artefact(model, {.ratios = {4, 9}}));
  ASSERT_NE(other->digest, artefact->digest);
  Extent target(source.shape(), Layout::kPacked);
  const Status status = decode(*firn_codec(other, 8, model), frame, target, label_at(512));
  EXPECT_EQ(status.code(), Code::kCorrupt);
  EXPECT_NE(status.message().find("artefact"), std::string::npos);
}

void reseal_artefact(Bytes& file) {
  blake3_hasher state;
  blake3_hasher_init(&state);
  blake3_hasher_update(&state, file.data(), file.size() - 32);
  blake3_hasher_finalize(&state, reinterpret_cast<std::uint8_t*>(file.data() + file.size() - 32), 32);
}

TEST(FirnArtefact, IsReadAsItWasWrittenAndDamageIsFound) {
  const ModelSpec model = toy_model();
  Artefact made = toy_firn_artefact(model);
  const Bytes file = write_artefact(made);
  const auto artefact = parse_artefact(file);
  ASSERT_TRUE(artefact.ok()) << artefact.status().message();
  Artefact again = **artefact;
  EXPECT_TRUE(write_artefact(again) == file);
  for (std::size_t n = 0; n < file.size(); n += n < 6000 ? 7 : 997)
    ASSERT_EQ(parse_artefact(std::span(file).first(n)).status().code(), Code::kCorrupt) << n << " bytes";
  std::mt19937_64 random(21);
  int survived = 0;
  for (int i = 0; i < 3000; ++i) {
    Bytes broken = file;
    // Half of the damage in the description, where there is most to get wrong.
    const std::size_t range = i % 2 == 0 ? 8000 : broken.size() - 32;
    for (std::size_t n = random() % 3 + 1; n > 0; --n) broken[random() % range] = static_cast<std::byte>(random());
    if (broken == file) continue;
    ASSERT_EQ(parse_artefact(broken).status().code(), Code::kCorrupt) << i;
    reseal_artefact(broken);
    const auto read = parse_artefact(broken);
    if (!read.ok()) {
      ASSERT_EQ(read.status().code(), Code::kCorrupt) << i << ": " << read.status().message();
      continue;
    }
    ++survived;  // a number among numbers: it is another artefact now, and must work as one
    const auto codec = make_codec(CodecId::kFirn, *read, 8, model);
    if (!codec.ok()) {
      ASSERT_EQ(codec.status().code(), Code::kInvalidArgument);
      continue;
    }
    if (survived % 20 != 0) continue;
    ToyCache cache(model, 61);
    const Extent source = toy_extent(model, toy_window(cache, model, 512, 16, true));
    Extent target(source.shape(), Layout::kPacked);
    const Bytes frame = encode(**codec, source, label_at(512));
    ASSERT_TRUE(decode(**codec, frame, target, label_at(512)).ok()) << i << ", seed 21";
  }
  EXPECT_GT(survived, 500);
}

}  // namespace
}  // namespace firn
