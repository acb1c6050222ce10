// frame_fuzz.cpp: what a decoder does with bytes from anywhere. For libFuzzer (-fsanitize=fuzzer), or with
// fuzz_main.cpp. The first byte chooses the codec and whether the checksums are made to match; the rest is the frame.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <vector>

#include "core/base/check.h"
#include "storage/codec/artefact.h"
#include "storage/codec/frame.h"
#include "tests/storage/codec/reseal.h"

namespace {

using namespace firn;

constexpr std::uint64_t kMaxRawBytes = 1 << 20;  // a frame may claim more; it is then decoded by nobody

// Room for the extent that a frame claims to hold, block by block.
struct Room {
  explicit Room(const ExtentShape& shape) : bytes(shape.raw_bytes()) {
    const std::size_t layers = shape.layer_count, blocks = shape.block_count;
    std::byte* at = bytes.data();
    for (std::size_t i = 0; i < layers * blocks; ++i) {
      const auto key_bytes = static_cast<std::uint32_t>(shape.kv.key_bytes());
      const auto value_bytes = static_cast<std::uint32_t>(shape.kv.value_bytes());
      const std::uint32_t element = bytes_of(shape.kv.dtype);
      views.push_back({.k = reinterpret_cast<DeviceAddress>(at),
                       .v = reinterpret_cast<DeviceAddress>(at + kBlockTokens * key_bytes),
                       .token_stride = key_bytes,
                       .head_stride = shape.kv.head_dim * element,
                       .v_token_stride = value_bytes,
                       .v_head_stride = shape.kv.value_dim * element});
      at += kBlockTokens * (key_bytes + value_bytes);
    }
  }
  std::vector<std::byte> bytes;
  std::vector<BlockView> views;
};

Status decode(const Codec& codec, const FrameHeader& header, std::span<const std::byte> frame, Room& room) {
  DecodeJob job{.frame = frame,
                .shape = header.shape,
                .label = header.label,
                .layer = 0,
                .layer_count = header.shape.layer_count,
                .views = room.views,
                .status = {}};
  codec.decode({&job, 1}, nullptr);
  return job.status;
}

// Of a golden artefact, which is of a model of two layers.
std::unique_ptr<Codec> golden(const char* path) {
  const auto artefact = load_artefact(path).value();
  ModelSpec model;
  model.weights = artefact->weights;
  model.rotation = artefact->rotation;
  model.groups = {GroupSpec{.kind = GroupKind::kFull, .layer_count = artefact->layer_count, .kv = artefact->kv}};
  return make_codec(artefact->codec, artefact, 8, model).value();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  static const std::unique_ptr<Codec> codecs[] = {make_codec(CodecId::kRaw).value(),
                                                  make_codec(CodecId::kLossless).value(),
                                                  make_codec(CodecId::kQ8).value(),
                                                  make_codec(CodecId::kQ4).value(),
                                                  golden(FIRN_TEST_GOLDEN "/kvtc_v1.artefact"),
                                                  golden(FIRN_TEST_GOLDEN "/firn_v1.artefact")};
  const Codec& codec = *codecs[(data[0] >> 2) % std::size(codecs)];
  const auto* first = reinterpret_cast<const std::byte*>(data) + 1;
  std::vector<std::byte> frame(first, first + size - 1);
  if ((data[0] & 2) != 0) test::reseal(frame);

  const Result<FrameView> view = FrameView::open(frame);
  if (!view.ok() || view->header().shape.raw_bytes() > kMaxRawBytes) return 0;
  const FrameHeader& header = view->header();
  Room room(header.shape);
  if (const Status status = decode(codec, header, frame, room); !status.ok()) {
    // A shape that an artefact is not for is a wrong call.
    const bool has_artefact = codec.id() == CodecId::kKvtc || codec.id() == CodecId::kFirn;
    FIRN_CHECK(status.code() == Code::kCorrupt || (has_artefact && status.code() == Code::kInvalidArgument));
    return 0;
  }
  // Whatever it was, it is an extent now, and must survive the way there and back.
  std::vector<std::byte> again(codec.bound(header.shape));
  EncodeJob job{
      .shape = header.shape, .label = header.label, .views = room.views, .out = again, .bytes = 0, .status = {}};
  codec.encode({&job, 1}, nullptr);
  FIRN_CHECK(job.status.ok());  // decoding checked the shape
  Room second(header.shape);
  FIRN_CHECK(decode(codec, header, std::span(again).first(job.bytes), second).ok());
  if (codec.fidelity() == Fidelity::kExact) FIRN_CHECK(second.bytes == room.bytes);
  return 0;
}
