// lossless: byte planes, each stored, constant, or one zstd frame; the top plane perhaps as differences to a row that
// says where each channel's values lie. Layout and measurements: docs/frame.md, section 5.
//
// The low mantissa bytes of real keys and values are noise, so a quick estimate decides whether a plane is worth coding
// at all. Order [token][head][dim] is kept: putting a channel's tokens side by side gains nothing once the reference
// row has taken the channels' scales out, and would cost a transposition on either side.
#define ZSTD_STATIC_LINKING_ONLY  // for estimates of context sizes and for literals-only coding
#include <fmt/format.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <cstring>
#include <memory>
#include <new>

#include "core/base/check.h"
#include "storage/codec/bytes.h"
#include "storage/codec/layer_codec.h"
#include "storage/codec/planes.h"

namespace firn {
namespace {

constexpr std::uint8_t kPlanes = 1;  // coding of a section
constexpr std::size_t kDirectoryEntryBytes = 8;
constexpr std::uint8_t kFlagReferenced = 1;
// Planes are coded as literals alone: on exponents, short matches are accidents that cost more than they save and take
// most of the time. Where rows repeat, level 1 looks for them; matches of 7 bytes and more are not accidents. Higher
// levels find no more. The lowest level steps over everything without looking.
constexpr int kLiteralsOnlyLevel = -131072, kMatchingLevel = 1, kMinMatch = 7;
constexpr std::size_t kZstdMagicBytes = 4;

enum class PlaneCoding : std::uint8_t { kStored = 0, kZstd = 1, kConstant = 2 };

struct PlaneEntry {
  PlaneCoding coding = PlaneCoding::kStored;
  std::uint8_t value = 0, flags = 0;
  std::uint32_t encoded_bytes = 0;
};

void write_plane_entry(const PlaneEntry& entry, std::byte* out) {
  out[0] = static_cast<std::byte>(entry.coding);
  out[1] = static_cast<std::byte>(entry.value);
  out[2] = static_cast<std::byte>(entry.flags);
  out[3] = std::byte{0};
  store_le(out + 4, entry.encoded_bytes);
}

Status corrupt(std::string_view what) { return Status(Code::kCorrupt, std::string(what)); }

Result<PlaneEntry> read_plane_entry(const std::byte* from, bool top) {
  PlaneEntry entry{.coding = static_cast<PlaneCoding>(from[0]),
                   .value = std::to_integer<std::uint8_t>(from[1]),
                   .flags = std::to_integer<std::uint8_t>(from[2]),
                   .encoded_bytes = load_le<std::uint32_t>(from + 4)};
  if (std::to_integer<unsigned>(from[0]) > static_cast<unsigned>(PlaneCoding::kConstant))
    return corrupt("plane_coding is unknown");
  if (entry.value != 0 && entry.coding != PlaneCoding::kConstant) return corrupt("value of a plane that has none");
  if (entry.flags != 0 && !(top && entry.flags == kFlagReferenced)) return corrupt("plane_flags are unknown");
  if (from[3] != std::byte{0}) return corrupt("zero of a plane is not zero");
  return entry;
}

std::size_t fifteen_sixteenths(std::size_t bytes) { return bytes - bytes / 16 - (bytes % 16 != 0 ? 1 : 0); }

// Bytes of scratch besides zstd's contexts: planes, one more for the differences, sums and reference row.
std::size_t buffer_bytes(const TensorShape& shape) {
  return shape.bytes() + shape.elements() + 5 * shape.channels() + 1;
}

// One per thread, kept from call to call: making zstd contexts costs more than coding a section.
class Scratch {
 public:
  static Scratch& of_this_thread() {
    thread_local Scratch scratch;
    return scratch;
  }
  std::uint8_t* bytes(std::size_t count) {
    if (count > capacity_) {
      bytes_.reset();  // first, so that there are never two
      capacity_ = 0;   // and where there is none, the next call knows
      bytes_ = std::make_unique_for_overwrite<std::uint8_t[]>(count);
      capacity_ = count;
    }
    return bytes_.get();
  }
  ZSTD_CCtx* encoder(bool matching) {
    if (!encoder_) encoder_.reset(ZSTD_createCCtx());
    if (!encoder_) throw std::bad_alloc();
    const auto set = [this](ZSTD_cParameter parameter, int value) {
      return !ZSTD_isError(ZSTD_CCtx_setParameter(encoder_.get(), parameter, value));
    };
    FIRN_CHECK(set(ZSTD_c_minMatch, kMinMatch));
    // A release of zstd without this parameter codes a little worse, and its frames are as good as any.
    const bool literals = set(ZSTD_c_literalCompressionMode, ZSTD_ps_enable);
    FIRN_CHECK(set(ZSTD_c_compressionLevel, matching || !literals ? kMatchingLevel : kLiteralsOnlyLevel));
    return encoder_.get();
  }
  ZSTD_DCtx* decoder() {
    if (!decoder_) decoder_.reset(ZSTD_createDCtx());
    if (!decoder_) throw std::bad_alloc();
    return decoder_.get();
  }
  std::size_t held_bytes() const {
    return capacity_ + ZSTD_sizeof_CCtx(encoder_.get()) + ZSTD_sizeof_DCtx(decoder_.get());
  }

 private:
  struct Free {
    void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  std::unique_ptr<std::uint8_t[]> bytes_;
  std::size_t capacity_ = 0;
  std::unique_ptr<ZSTD_CCtx, Free> encoder_;
  std::unique_ptr<ZSTD_DCtx, Free> decoder_;
};

// Codes one plane into out, which may be too small for it. 0 bytes and kStored: storing it is better.
PlaneEntry encode_plane(Scratch& scratch, std::span<const std::uint8_t> plane, bool repeats, std::span<std::byte> out) {
  if (std::memcmp(plane.data(), plane.data() + 1, plane.size() - 1) == 0)
    return {.coding = PlaneCoding::kConstant, .value = plane[0]};
  const std::size_t limit = std::min(fifteen_sixteenths(plane.size()), out.size());
  if (!repeats && estimate_bits_x256(plane) / (8 * 256) > limit) return {};
  const std::size_t bytes = ZSTD_compress2(scratch.encoder(repeats), out.data(), limit, plane.data(), plane.size());
  if (ZSTD_getErrorCode(bytes) == ZSTD_error_memory_allocation) throw std::bad_alloc();
  if (ZSTD_isError(bytes)) return {};  // it did not fit into the limit
  return {.coding = PlaneCoding::kZstd, .encoded_bytes = static_cast<std::uint32_t>(bytes)};
}

// Decodes one plane: where its bytes are, either in the payload or in room.
Result<const std::uint8_t*> decode_plane(const PlaneEntry& entry, std::span<const std::byte> bytes,
                                         std::span<std::uint8_t> room, Scratch& scratch) {
  if (entry.coding == PlaneCoding::kStored) {
    if (bytes.size() != room.size()) return corrupt("encoded_bytes of a stored plane is not its size");
    return reinterpret_cast<const std::uint8_t*>(bytes.data());
  }
  if (entry.coding == PlaneCoding::kConstant) {
    if (!bytes.empty()) return corrupt("encoded_bytes of a constant plane is not 0");
    std::memset(room.data(), entry.value, room.size());
    return room.data();
  }
  // Exactly one ordinary zstd frame of exactly this size: no older formats, no second frame behind it.
  if (bytes.size() < kZstdMagicBytes || load_le<std::uint32_t>(bytes.data()) != ZSTD_MAGICNUMBER)
    return corrupt("a plane is no zstd frame");
  if (ZSTD_getFrameContentSize(bytes.data(), bytes.size()) != room.size())
    return corrupt("a plane's zstd frame is of another size");
  if (ZSTD_findFrameCompressedSize(bytes.data(), bytes.size()) != bytes.size())
    return corrupt("a plane's zstd frame has another end");
  const std::size_t decoded =
      ZSTD_decompressDCtx(scratch.decoder(), room.data(), room.size(), bytes.data(), bytes.size());
  if (ZSTD_getErrorCode(decoded) == ZSTD_error_memory_allocation) throw std::bad_alloc();
  if (ZSTD_isError(decoded) || decoded != room.size()) return corrupt("a plane does not decode");
  return room.data();
}

}  // namespace

class LosslessCodec final : public LayerCodec {
 public:
  CodecId id() const override { return CodecId::kLossless; }
  std::uint16_t version() const override { return 1; }
  std::size_t scratch_bytes(const ExtentShape& shape) const override;

 private:
  Encoded encode_section(const TensorRows& rows, std::span<std::byte> out) const override;
  Status decode_section(std::uint8_t coding, std::span<const std::byte> payload, const TensorRows& rows) const override;
};

std::size_t LosslessCodec::scratch_bytes(const ExtentShape& shape) const {
  const TensorShape largest{.heads = shape.kv.kv_heads,
                            .dim = std::max(shape.kv.head_dim, shape.kv.value_dim),
                            .element_bytes = bytes_of(shape.kv.dtype),
                            .token_count = shape.block_count * kBlockTokens,
                            .dtype = shape.kv.dtype};
  return buffer_bytes(largest) + ZSTD_estimateCCtxSize(kMatchingLevel) + ZSTD_estimateDCtxSize();
}

LayerCodec::Encoded LosslessCodec::encode_section(const TensorRows& rows, std::span<std::byte> out) const {
  const TensorShape& shape = rows.shape;
  const std::size_t n = shape.elements(), channels = shape.channels(), planes = shape.element_bytes;
  const auto stored = [&]() -> Encoded {
    gather(rows, out);
    return {kStored, out.size()};
  };
  const std::size_t limit = fifteen_sixteenths(out.size());
  std::size_t at = planes * kDirectoryEntryBytes;
  if (n == 0 || limit <= at + channels) return stored();

  Scratch& scratch = Scratch::of_this_thread();
  std::uint8_t* const split = scratch.bytes(buffer_bytes(shape));
  std::uint8_t* const differences = split + planes * n;
  std::uint8_t* const reference = differences + n;
  auto* const sums = reinterpret_cast<std::uint16_t*>(split + (planes + 1) * n + channels + (channels % 2));
  rows.for_each_piece([&](const std::byte* piece, std::size_t element, std::size_t count) {
    split_planes(piece, count, planes, split + element, n);
  });
  const bool repeats = rows_repeat({split, n}, channels);

  for (std::size_t p = planes; p-- > 0;) {
    std::span<const std::uint8_t> plane(split + p * n, n);
    PlaneEntry entry;
    if (p == planes - 1) {
      reference_row(plane, channels, sums, reference);
      subtract_row(plane, channels, reference, differences);
      const std::uint64_t row_bits_x256 =
          (channels + 16) * 8 * 256;  // with a margin: an estimate must not decide a tie
      if (estimate_bits_x256({differences, n}) + row_bits_x256 < estimate_bits_x256(plane)) {
        plane = {differences, n};
        entry.flags = kFlagReferenced;
        std::memcpy(out.data() + at, reference, channels);
        at += channels;
      }
    }
    const std::uint8_t flags = entry.flags;
    entry = encode_plane(scratch, plane, repeats, out.subspan(at, limit - at));
    entry.flags = flags;
    if (entry.coding == PlaneCoding::kStored) {
      if (limit - at < n) return stored();
      std::memcpy(out.data() + at, plane.data(), n);
      entry.encoded_bytes = static_cast<std::uint32_t>(n);
    }
    write_plane_entry(entry, out.data() + p * kDirectoryEntryBytes);
    at += entry.encoded_bytes;
  }
  return {kPlanes, at};
}

Status LosslessCodec::decode_section(std::uint8_t coding, std::span<const std::byte> payload,
                                     const TensorRows& rows) const {
  if (coding == kStored) return scatter(payload, rows);
  if (coding != kPlanes) return corrupt(fmt::format("coding is {}, not 0 or 1", coding));
  const TensorShape& shape = rows.shape;
  const std::size_t n = shape.elements(), channels = shape.channels(), planes = shape.element_bytes;
  std::size_t at = planes * kDirectoryEntryBytes;
  if (n == 0 || payload.size() < at) return corrupt("payload is shorter than its plane directory");

  Scratch& scratch = Scratch::of_this_thread();
  std::uint8_t* const room = scratch.bytes(buffer_bytes(shape));
  PlaneViews views{.element_bytes = planes};
  const std::uint8_t* reference = nullptr;
  for (std::size_t p = planes; p-- > 0;) {
    FIRN_ASSIGN(const PlaneEntry entry, read_plane_entry(payload.data() + p * kDirectoryEntryBytes, p == planes - 1));
    if ((entry.flags & kFlagReferenced) != 0) {
      if (payload.size() - at < channels) return corrupt("reference row reaches beyond the section");
      reference = reinterpret_cast<const std::uint8_t*>(payload.data() + at);
      at += channels;
    }
    if (entry.encoded_bytes > payload.size() - at)
      return corrupt("encoded_bytes of a plane reaches beyond the section");
    FIRN_ASSIGN(views.plane[p],
                decode_plane(entry, payload.subspan(at, entry.encoded_bytes), {room + p * n, n}, scratch));
    at += entry.encoded_bytes;
  }
  if (at != payload.size()) return corrupt("bytes behind the last plane");
  rows.for_each_piece([&](std::byte* piece, std::size_t element, std::size_t count) {
    merge_planes(views, element, count, reference, channels, piece);
  });
  return {};
}

std::size_t lossless_scratch_held() { return Scratch::of_this_thread().held_bytes(); }

std::unique_ptr<Codec> make_lossless_codec() { return std::make_unique<LosslessCodec>(); }

}  // namespace firn
