#include "storage/codec/frame.h"

#include <blake3.h>
#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "core/base/check.h"
#include "storage/codec/bytes.h"

namespace firn {
namespace {

constexpr std::array<std::byte, 8> kMagic = {std::byte{0x89}, std::byte{'F'},  std::byte{'I'},  std::byte{'R'},
                                             std::byte{'N'},  std::byte{0x0d}, std::byte{0x0a}, std::byte{0x1a}};

// Offsets of docs/frame.md, sections 1 and 2.
namespace at {
constexpr std::size_t kVersion = 8, kHeaderBytes = 10, kSectionCount = 12, kHeadBytes = 16, kFlags = 20,
                      kTotalBytes = 24, kRawBytes = 32, kLastKey = 40, kArtefact = 72, kCodec = 104,
                      kCodecVersion = 106, kFidelity = 108, kDtype = 109, kGroup = 110, kBlockTokens = 112,
                      kBlockCount = 114, kLayerCount = 116, kKvHeads = 118, kHeadDim = 120, kValueDim = 122,
                      kTokenCount = 124, kFirstPosition = 128, kPositionKind = 136, kStackCount = 138, kRate = 140,
                      kKeyError = 144, kValueError = 148, kReserved = 152;
constexpr std::size_t kIndex = 0, kKind = 2, kCoding = 3, kParameter = 4, kOffset = 8, kEncodedBytes = 16,
                      kSectionRawBytes = 24, kChecksum = 32;
}  // namespace at
constexpr std::uint32_t kFlagUnrotated = 1;
// 2^40: the raw bytes of the largest extent that the bounds below allow. No sum over sections can overflow.
constexpr std::uint64_t kMaxRawBytes =
    std::uint64_t{kMaxExtentBlocks} * kBlockTokens * kMaxLayers * kMaxKvHeads * (2 * kMaxHeadDim) * 4;

Status corrupt(std::string_view field, std::string_view what) {
  return Status(Code::kCorrupt, fmt::format("frame: {} {}", field, what));
}

Status check_equal(std::string_view field, std::uint64_t value, std::uint64_t expected) {
  if (value == expected) return {};
  return corrupt(field, fmt::format("is {}, not {}", value, expected));
}

Status check_range(std::string_view field, std::uint64_t value, std::uint64_t least, std::uint64_t most) {
  if (value >= least && value <= most) return {};
  return corrupt(field, fmt::format("is {}, not {} to {}", value, least, most));
}

bool all_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

// What has to hold before the checksum can be computed. Version first: a later version may move everything else.
Status check_outline(std::span<const std::byte> frame) {
  if (frame.size() < kFrameHeaderBytes)
    return corrupt("size", fmt::format("is {} bytes, less than a header", frame.size()));
  if (!std::equal(kMagic.begin(), kMagic.end(), frame.begin())) return corrupt("magic", "is not that of a frame");
  const std::byte* head = frame.data();
  FIRN_TRY(check_equal("format_version", load_le<std::uint16_t>(head + at::kVersion), kFrameVersion));
  FIRN_TRY(check_equal("header_bytes", load_le<std::uint16_t>(head + at::kHeaderBytes), kFrameHeaderBytes));
  const auto sections = load_le<std::uint32_t>(head + at::kSectionCount);
  FIRN_TRY(check_range("section_count", sections, 1, kMaxSections));
  FIRN_TRY(check_equal("head_bytes", load_le<std::uint32_t>(head + at::kHeadBytes), frame_head_bytes(sections)));
  FIRN_TRY(check_equal("total_bytes", load_le<std::uint64_t>(head + at::kTotalBytes), frame.size()));
  return check_range("total_bytes", frame.size(), frame_head_bytes(sections), ~std::uint64_t{0});
}

Status check_head_checksum(std::span<const std::byte> head) {
  const std::size_t covered = head.size() - 8;
  if (XXH3_64bits(head.data(), covered) == load_le<std::uint64_t>(head.data() + covered)) return {};
  return corrupt("head checksum", "does not match");
}

Status check_shape(const std::byte* head) {
  const auto field = [head](std::size_t offset) { return load_le<std::uint16_t>(head + offset); };
  FIRN_TRY(check_range("fidelity", std::to_integer<unsigned>(head[at::kFidelity]), 1, 3));
  FIRN_TRY(check_range("dtype", std::to_integer<unsigned>(head[at::kDtype]), 1, 4));
  FIRN_TRY(check_equal("block_tokens", field(at::kBlockTokens), kBlockTokens));
  FIRN_TRY(check_range("block_count", field(at::kBlockCount), 1, kMaxExtentBlocks));
  FIRN_TRY(check_range("layer_count", field(at::kLayerCount), 1, kMaxLayers));
  FIRN_TRY(check_range("kv_heads", field(at::kKvHeads), 1, kMaxKvHeads));
  FIRN_TRY(check_range("head_dim", field(at::kHeadDim), 1, kMaxHeadDim));
  FIRN_TRY(check_range("value_dim", field(at::kValueDim), 0, kMaxHeadDim));
  FIRN_TRY(check_equal("token_count", load_le<std::uint32_t>(head + at::kTokenCount),
                       std::uint64_t{field(at::kBlockCount)} * kBlockTokens));
  FIRN_TRY(check_range("position_kind", field(at::kPositionKind), 0, 1));
  FIRN_TRY(check_range("stack_count", field(at::kStackCount), 0, field(at::kLayerCount)));
  FIRN_TRY(check_range("flags", load_le<std::uint32_t>(head + at::kFlags), 0, kFlagUnrotated));
  if (!all_zero({head + at::kReserved, kFrameHeaderBytes - at::kReserved})) return corrupt("reserved", "is not zero");
  return {};
}

FrameHeader read_header(const std::byte* head) {
  FrameHeader header;
  header.section_count = load_le<std::uint32_t>(head + at::kSectionCount);
  header.keys_unrotated = (load_le<std::uint32_t>(head + at::kFlags) & kFlagUnrotated) != 0;
  header.total_bytes = load_le<std::uint64_t>(head + at::kTotalBytes);
  header.raw_bytes = load_le<std::uint64_t>(head + at::kRawBytes);
  std::memcpy(header.label.last_key.bytes.data(), head + at::kLastKey, sizeof(Digest::bytes));
  std::memcpy(header.artefact.bytes.data(), head + at::kArtefact, sizeof(Digest::bytes));
  header.codec = static_cast<CodecId>(load_le<std::uint16_t>(head + at::kCodec));
  header.codec_version = load_le<std::uint16_t>(head + at::kCodecVersion);
  header.label.fidelity = static_cast<Fidelity>(head[at::kFidelity]);
  header.shape.kv.dtype = static_cast<Dtype>(head[at::kDtype]);
  header.label.group = static_cast<GroupId>(load_le<std::uint16_t>(head + at::kGroup));
  header.shape.block_count = load_le<std::uint16_t>(head + at::kBlockCount);
  header.shape.layer_count = load_le<std::uint16_t>(head + at::kLayerCount);
  header.shape.kv.kv_heads = load_le<std::uint16_t>(head + at::kKvHeads);
  header.shape.kv.head_dim = load_le<std::uint16_t>(head + at::kHeadDim);
  header.shape.kv.value_dim = load_le<std::uint16_t>(head + at::kValueDim);
  header.label.first_position = load_le<std::uint64_t>(head + at::kFirstPosition);
  header.position_kind = load_le<std::uint16_t>(head + at::kPositionKind);
  header.stack_count = load_le<std::uint16_t>(head + at::kStackCount);
  header.rate = load_le<std::uint32_t>(head + at::kRate);
  header.key_error = std::bit_cast<float>(load_le<std::uint32_t>(head + at::kKeyError));
  header.value_error = std::bit_cast<float>(load_le<std::uint32_t>(head + at::kValueError));
  return header;
}

SectionEntry read_entry(const std::byte* entry) {
  return {.index = load_le<std::uint16_t>(entry + at::kIndex),
          .kind = static_cast<SectionKind>(entry[at::kKind]),
          .coding = std::to_integer<std::uint8_t>(entry[at::kCoding]),
          .parameter = load_le<std::uint32_t>(entry + at::kParameter),
          .offset = load_le<std::uint64_t>(entry + at::kOffset),
          .encoded_bytes = load_le<std::uint64_t>(entry + at::kEncodedBytes),
          .raw_bytes = load_le<std::uint64_t>(entry + at::kSectionRawBytes),
          .checksum = load_le<std::uint64_t>(entry + at::kChecksum)};
}

void write_entry(const SectionEntry& entry, std::byte* out) {
  store_le(out + at::kIndex, entry.index);
  store_le(out + at::kKind, static_cast<std::uint8_t>(entry.kind));
  store_le(out + at::kCoding, entry.coding);
  store_le(out + at::kParameter, entry.parameter);
  store_le(out + at::kOffset, entry.offset);
  store_le(out + at::kEncodedBytes, entry.encoded_bytes);
  store_le(out + at::kSectionRawBytes, entry.raw_bytes);
  store_le(out + at::kChecksum, entry.checksum);
}

// The sections follow each other without gap or overlap and end where the frame ends.
Status check_sections(const FrameView& frame) {
  const FrameHeader& header = frame.header();
  std::uint64_t offset = frame_head_bytes(header.section_count), raw_bytes = 0;
  for (std::uint32_t i = 0; i < header.section_count; ++i) {
    const SectionEntry entry = frame.section(i);
    const auto field = [i](std::string_view name) { return fmt::format("section {} {}", i, name); };
    if (entry.offset != offset) return check_equal(field("offset"), entry.offset, offset);
    if (entry.encoded_bytes > header.total_bytes - offset)
      return check_range(field("encoded_bytes"), entry.encoded_bytes, 0, header.total_bytes - offset);
    offset = align_frame(offset + entry.encoded_bytes);
    if (offset > header.total_bytes) return corrupt(field("encoded_bytes"), "reaches beyond the frame");
    if (entry.raw_bytes > kMaxRawBytes - raw_bytes)
      return check_range(field("raw_bytes"), entry.raw_bytes, 0, kMaxRawBytes - raw_bytes);
    raw_bytes += entry.raw_bytes;
  }
  FIRN_TRY(check_equal("total_bytes", header.total_bytes, offset));
  return check_equal("raw_bytes", header.raw_bytes, raw_bytes);
}

void store_name(const FrameKey& name, std::byte* out) {
  store_le(out, name.lo);
  store_le(out + 8, name.hi);
}

}  // namespace

FrameKey frame_key(const FrameLabel& label, std::uint32_t block_count, CodecId codec, std::uint16_t codec_version,
                   const Digest& artefact, std::uint32_t rate) {
  std::array<std::byte, 60> message;  // fits one BLAKE3 block
  std::memcpy(message.data(), "firnfrm1", 8);
  store_le(message.data() + 8, std::uint32_t{index(label.group)});
  store_le(message.data() + 12, block_count);
  store_le(message.data() + 16, static_cast<std::uint16_t>(codec));
  store_le(message.data() + 18, codec_version);
  store_le(message.data() + 20, static_cast<std::uint32_t>(label.fidelity));
  store_le(message.data() + 24, rate);
  std::memcpy(message.data() + 28, artefact.bytes.data(), sizeof(Digest::bytes));
  blake3_hasher state;
  blake3_hasher_init_keyed(&state, label.last_key.bytes.data());
  blake3_hasher_update(&state, message.data(), message.size());
  std::array<std::byte, 16> name;
  blake3_hasher_finalize(&state, reinterpret_cast<std::uint8_t*>(name.data()), name.size());
  return {.hi = load_le<std::uint64_t>(name.data() + 8), .lo = load_le<std::uint64_t>(name.data())};
}

FrameKey frame_key(const FrameHeader& header) {
  return frame_key(header.label, header.shape.block_count, header.codec, header.codec_version, header.artefact,
                   header.rate);
}

std::uint64_t section_checksum(const FrameKey& name, std::uint32_t section, std::span<const std::byte> padded) {
  std::array<std::byte, 20> place;
  store_name(name, place.data());
  store_le(place.data() + 16, section);
  return XXH3_64bits_withSeed(padded.data(), padded.size(), XXH3_64bits(place.data(), place.size()));
}

void write_frame_head(const FrameHeader& header, std::span<const SectionEntry> entries, std::span<std::byte> frame) {
  const auto sections = static_cast<std::uint32_t>(entries.size());
  const std::uint64_t head_bytes = frame_head_bytes(sections);
  FIRN_CHECK(entries.size() <= kMaxSections && frame.size() >= head_bytes);
  std::byte* head = frame.data();
  std::memset(head, 0, head_bytes);
  std::copy(kMagic.begin(), kMagic.end(), head);
  const auto u16 = [head](std::size_t offset, auto value) {
    store_le(head + offset, static_cast<std::uint16_t>(value));
  };
  const auto u32 = [head](std::size_t offset, std::uint32_t value) { store_le(head + offset, value); };
  const auto u64 = [head](std::size_t offset, std::uint64_t value) { store_le(head + offset, value); };
  u16(at::kVersion, kFrameVersion);
  u16(at::kHeaderBytes, kFrameHeaderBytes);
  u32(at::kSectionCount, sections);
  u32(at::kHeadBytes, static_cast<std::uint32_t>(head_bytes));
  u32(at::kFlags, header.keys_unrotated ? kFlagUnrotated : 0);
  u64(at::kTotalBytes, header.total_bytes);
  u64(at::kRawBytes, header.raw_bytes);
  std::memcpy(head + at::kLastKey, header.label.last_key.bytes.data(), sizeof(Digest::bytes));
  std::memcpy(head + at::kArtefact, header.artefact.bytes.data(), sizeof(Digest::bytes));
  u16(at::kCodec, header.codec);
  u16(at::kCodecVersion, header.codec_version);
  head[at::kFidelity] = static_cast<std::byte>(header.label.fidelity);
  head[at::kDtype] = static_cast<std::byte>(header.shape.kv.dtype);
  u16(at::kGroup, index(header.label.group));
  u16(at::kBlockTokens, kBlockTokens);
  u16(at::kBlockCount, header.shape.block_count);
  u16(at::kLayerCount, header.shape.layer_count);
  u16(at::kKvHeads, header.shape.kv.kv_heads);
  u16(at::kHeadDim, header.shape.kv.head_dim);
  u16(at::kValueDim, header.shape.kv.value_dim);
  u32(at::kTokenCount, header.shape.block_count * kBlockTokens);
  u64(at::kFirstPosition, header.label.first_position);
  u16(at::kPositionKind, header.position_kind);
  u16(at::kStackCount, header.stack_count);
  u32(at::kRate, header.rate);
  u32(at::kKeyError, std::bit_cast<std::uint32_t>(header.key_error));
  u32(at::kValueError, std::bit_cast<std::uint32_t>(header.value_error));
  for (std::size_t i = 0; i < entries.size(); ++i)
    write_entry(entries[i], head + kFrameHeaderBytes + i * kSectionEntryBytes);
  u64(head_bytes - 8, XXH3_64bits(head, head_bytes - 8));
}

Result<FrameView> FrameView::open(std::span<const std::byte> frame) {
  FIRN_TRY(check_outline(frame));
  const std::uint64_t head_bytes = frame_head_bytes(load_le<std::uint32_t>(frame.data() + at::kSectionCount));
  FIRN_TRY(check_head_checksum(frame.first(head_bytes)));
  FIRN_TRY(check_shape(frame.data()));
  FrameView view(frame);
  view.header_ = read_header(frame.data());
  const std::size_t table_end = kFrameHeaderBytes + view.header_.section_count * kSectionEntryBytes;
  if (!all_zero(frame.subspan(table_end, head_bytes - 8 - table_end))) return corrupt("head padding", "is not zero");
  FIRN_TRY(check_sections(view));
  view.name_ = frame_key(view.header_);
  return view;
}

SectionEntry FrameView::section(std::uint32_t index) const {
  FIRN_DCHECK(index < header_.section_count);
  return read_entry(frame_.data() + kFrameHeaderBytes + std::size_t{index} * kSectionEntryBytes);
}

Result<std::span<const std::byte>> FrameView::payload(std::uint32_t index) const {
  const SectionEntry entry = section(index);
  const std::span<const std::byte> padded = frame_.subspan(entry.offset, align_frame(entry.encoded_bytes));
  if (section_checksum(name_, index, padded) != entry.checksum)
    return corrupt(fmt::format("section {} checksum", index), "does not match");
  const std::span<const std::byte> padding = padded.subspan(entry.encoded_bytes);
  if (!all_zero(padding)) return corrupt(fmt::format("section {} padding", index), "is not zero");
  return padded.first(entry.encoded_bytes);
}

}  // namespace firn
