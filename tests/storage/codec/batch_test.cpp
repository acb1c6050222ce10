// Batches over threads: the same bytes as one job in one thread, and one bad job harms no other.
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "firn/thread_pool.h"
#include "tests/storage/codec/extents.h"

namespace firn {
namespace {

using namespace test;

constexpr CodecId kExactCodecs[] = {CodecId::kRaw, CodecId::kLossless};

TEST(Batch, GivesTheSameBytesWithAndWithoutThreads) {
  ThreadPool threads(4);
  const ExtentShape shapes[] = {shape_of(Dtype::kF16, 7, 8, 3, 64, 64), shape_of(Dtype::kF32, 2, 1, 2, 80, 80),
                                shape_of(Dtype::kBf16, 1, 3, 1, 128, 128)};
  for (const CodecId id : kExactCodecs) {
    SCOPED_TRACE(to_string(id));
    const auto codec = codec_of(id);
    std::vector<Extent> sources, targets;
    std::vector<Bytes> frames;
    std::vector<EncodeJob> encodes;
    std::vector<DecodeJob> decodes;
    for (const ExtentShape& shape : shapes) {
      sources.emplace_back(shape, Layout::kPacked);
      sources.back().set_bytes(cache_like_bytes(shape, frames.size()));
      targets.emplace_back(shape, Layout::kPacked);
      frames.emplace_back(codec->bound(shape));
    }
    for (std::size_t i = 0; i < sources.size(); ++i)
      encodes.push_back({.shape = shapes[i],
                         .label = some_label(),
                         .views = sources[i].views,
                         .out = frames[i],
                         .bytes = 0,
                         .status = {}});
    codec->encode(encodes, &threads);
    for (std::size_t i = 0; i < sources.size(); ++i) {
      ASSERT_TRUE(encodes[i].status.ok()) << encodes[i].status.message();
      frames[i].resize(encodes[i].bytes);
      EXPECT_TRUE(frames[i] == encode(*codec, sources[i], some_label()));
      decodes.push_back({.frame = frames[i],
                         .shape = shapes[i],
                         .label = some_label(),
                         .layer = 0,
                         .layer_count = shapes[i].layer_count,
                         .views = targets[i].views,
                         .status = {}});
    }
    codec->decode(decodes, &threads);
    for (std::size_t i = 0; i < sources.size(); ++i) {
      ASSERT_TRUE(decodes[i].status.ok()) << decodes[i].status.message();
      EXPECT_TRUE(targets[i].bytes() == sources[i].bytes());
    }
  }
}

TEST(Batch, OneBadJobDoesNotTouchTheOthers) {
  ThreadPool threads(2);
  const auto codec = codec_of(CodecId::kLossless);
  const ExtentShape shape = shape_of(Dtype::kF16, 2, 2, 2, 64, 64);
  Extent source(shape, Layout::kPacked), a(shape, Layout::kPacked), b(shape, Layout::kPacked);
  source.set_bytes(cache_like_bytes(shape, 1));
  const Bytes frame = encode(*codec, source, some_label());
  Bytes broken = frame;
  broken.back() ^= std::byte{1};
  std::vector<DecodeJob> jobs;
  for (Extent* target : {&a, &b})
    jobs.push_back({.frame = target == &a ? broken : frame,
                    .shape = shape,
                    .label = some_label(),
                    .layer = 0,
                    .layer_count = 2,
                    .views = target->views,
                    .status = {}});
  codec->decode(jobs, &threads);
  EXPECT_EQ(jobs[0].status.code(), Code::kCorrupt);
  EXPECT_TRUE(jobs[1].status.ok());
  EXPECT_TRUE(b.bytes() == source.bytes());

  Bytes room(codec->bound(shape)), too_small(codec->bound(shape) - 1);
  std::vector<EncodeJob> encodes;
  for (Bytes* out : {&too_small, &room})
    encodes.push_back(
        {.shape = shape, .label = some_label(), .views = source.views, .out = *out, .bytes = 0, .status = {}});
  codec->encode(encodes, &threads);
  EXPECT_EQ(encodes[0].status.code(), Code::kInvalidArgument);
  EXPECT_TRUE(encodes[1].status.ok());
  room.resize(encodes[1].bytes);
  EXPECT_TRUE(room == frame);
}

TEST(Batch, OneCodecServesSeveralThreadsAtOnce) {
  const auto codec = codec_of(CodecId::kLossless);
  const auto work = [&codec](std::uint64_t seed) {
    const ExtentShape shape = shape_of(Dtype::kF16, 2, 2, 2, 64, 64);
    Extent source(shape, Layout::kPacked), target(shape, Layout::kPacked);
    for (int round = 0; round < 4; ++round) {
      source.set_bytes(cache_like_bytes(shape, seed + round));
      const Bytes frame = encode(*codec, source, some_label());
      EXPECT_TRUE(decode(*codec, frame, target, some_label()).ok());
      EXPECT_TRUE(target.bytes() == source.bytes());
    }
  };
  std::thread other(work, 100);
  work(200);
  other.join();
}

}  // namespace
}  // namespace firn
