#include "storage/tier/disk/format.h"

#include <xxhash.h>

#include <cstring>
#include <new>

#include "core/base/check.h"

namespace firn::disk {
namespace {

constexpr std::uint64_t kSegmentMagic = 0x3147'4553'4e52'4946;  // "FIRNSEG1"
constexpr std::uint32_t kRecordMagic = 0x4345'5246;             // "FREC"
constexpr std::uint32_t kIndexMagic = 0x5844'4946;              // "FIDX"
constexpr std::size_t kChecksumAt = 120;

// Little-endian, wherever we run.
template <class T>
void put(std::span<std::byte> out, std::size_t at, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) out[at + i] = static_cast<std::byte>(value >> (8 * i) & 0xff);
}
template <class T>
T get(std::span<const std::byte> in, std::size_t at) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i)
    value = static_cast<T>(value | static_cast<T>(static_cast<T>(in[at + i]) << (8 * i)));
  return value;
}
void put_digest(std::span<std::byte> out, std::size_t at, const Digest& digest) {
  std::memcpy(out.data() + at, digest.bytes.data(), digest.bytes.size());
}
Digest get_digest(std::span<const std::byte> in, std::size_t at) {
  Digest digest;
  std::memcpy(digest.bytes.data(), in.data() + at, digest.bytes.size());
  return digest;
}
std::uint64_t checksum(std::span<const std::byte> bytes, std::uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}
std::uint64_t body_seed(const FrameKey& key) { return key.hi ^ (key.lo << 1 | key.lo >> 63); }

}  // namespace

std::uint64_t body_checksum(const FrameKey& key, std::span<const std::byte> frame) {
  return checksum(frame, body_seed(key));
}

BodyChecksum::BodyChecksum() : state_(XXH3_createState()) {
  if (state_ == nullptr) throw std::bad_alloc();
  reset({});
}
void BodyChecksum::reset(const FrameKey& key) {
  XXH3_64bits_reset_withSeed(static_cast<XXH3_state_t*>(state_), body_seed(key));
}
BodyChecksum::~BodyChecksum() { XXH3_freeState(static_cast<XXH3_state_t*>(state_)); }
void BodyChecksum::add(std::span<const std::byte> bytes) {
  XXH3_64bits_update(static_cast<XXH3_state_t*>(state_), bytes.data(), bytes.size());
}
std::uint64_t BodyChecksum::value() const { return XXH3_64bits_digest(static_cast<const XXH3_state_t*>(state_)); }

void write_segment_header(const SegmentHeader& header, std::span<std::byte> out) {
  FIRN_CHECK(out.size() >= kSegmentHeaderBytes);
  std::memset(out.data(), 0, kSegmentHeaderBytes);
  put(out, 0, kSegmentMagic);
  put(out, 8, kDiskVersion);
  put(out, 10, static_cast<std::uint16_t>(kGranuleBytes));
  put(out, 12, static_cast<std::uint32_t>(kPageBytes));
  put(out, 16, header.id);
  put(out, 24, header.nonce);
  put_digest(out, 32, header.identity);
  put(out, kChecksumAt, checksum(out.first(kChecksumAt), 0));
}

HeaderError read_segment_header(std::span<const std::byte> bytes, SegmentHeader& header) {
  if (bytes.size() < kSegmentHeaderBytes || get<std::uint64_t>(bytes, 0) != kSegmentMagic ||
      get<std::uint64_t>(bytes, kChecksumAt) != checksum(bytes.first(kChecksumAt), 0))
    return HeaderError::kDamaged;
  if (get<std::uint16_t>(bytes, 8) > kDiskVersion) return HeaderError::kNewer;
  if (get<std::uint16_t>(bytes, 8) != kDiskVersion || get<std::uint16_t>(bytes, 10) != kGranuleBytes ||
      get<std::uint32_t>(bytes, 12) != kPageBytes)
    return HeaderError::kDamaged;
  header = {
      .id = get<std::uint64_t>(bytes, 16), .nonce = get<std::uint64_t>(bytes, 24), .identity = get_digest(bytes, 32)};
  return HeaderError::kNone;
}

void write_record_header(const RecordHeader& header, const SegmentHeader& segment, std::span<std::byte> out) {
  FIRN_CHECK(out.size() >= kRecordHeaderBytes);
  std::memset(out.data(), 0, kRecordHeaderBytes);
  put(out, 0, kRecordMagic);
  put(out, 4, kDiskVersion);
  put(out, 6, static_cast<std::uint16_t>(header.state));
  put(out, 8, header.key.hi);
  put(out, 16, header.key.lo);
  put(out, 24, header.frame_bytes);
  put(out, 32, header.offset);
  put(out, 40, segment.id);
  put(out, 48, header.body_checksum);
  put_digest(out, 56, header.identity);
  put(out, kChecksumAt, checksum(out.first(kChecksumAt), segment.nonce));
}

std::optional<RecordHeader> read_record_header(std::span<const std::byte> bytes, const SegmentHeader& segment,
                                               std::uint64_t offset, std::uint64_t segment_bytes) {
  if (bytes.size() < kRecordHeaderBytes || get<std::uint32_t>(bytes, 0) != kRecordMagic ||
      get<std::uint16_t>(bytes, 4) != kDiskVersion ||
      get<std::uint64_t>(bytes, kChecksumAt) != checksum(bytes.first(kChecksumAt), segment.nonce))
    return std::nullopt;
  RecordHeader header{.key = {get<std::uint64_t>(bytes, 8), get<std::uint64_t>(bytes, 16)},
                      .state = static_cast<RecordState>(get<std::uint16_t>(bytes, 6)),
                      .frame_bytes = get<std::uint64_t>(bytes, 24),
                      .offset = get<std::uint64_t>(bytes, 32),
                      .body_checksum = get<std::uint64_t>(bytes, 48),
                      .identity = get_digest(bytes, 56)};
  const bool sane = (header.state == RecordState::kLive || header.state == RecordState::kErased) &&
                    header.offset == offset && get<std::uint64_t>(bytes, 40) == segment.id && header.frame_bytes != 0 &&
                    offset <= segment_bytes && header.frame_bytes <= segment_bytes - offset &&
                    kRecordHeaderBytes + header.frame_bytes <= segment_bytes - offset;
  return sane ? std::optional(header) : std::nullopt;
}

void write_index_page(const IndexPage& page, std::span<const IndexEntry> entries, const SegmentHeader& segment,
                      std::span<std::byte> out) {
  FIRN_CHECK(out.size() >= kPageBytes && entries.size() <= kEntriesPerPage && entries.size() == page.entry_count);
  std::memset(out.data(), 0, kPageBytes);
  put(out, 0, kIndexMagic);
  put(out, 4, kDiskVersion);
  put(out, 6, static_cast<std::uint16_t>(page.entry_count));
  put(out, 8, page.page);
  put(out, 12, page.page_count);
  put(out, 16, segment.id);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::size_t at = 32 + i * kIndexEntryBytes;
    put(out, at, entries[i].key.hi);
    put(out, at + 8, entries[i].key.lo);
    put(out, at + 16, entries[i].granule);
    put(out, at + 20, entries[i].frame_bytes);
    put(out, at + 24, static_cast<std::uint16_t>(entries[i].state));
  }
  put(out, 24, checksum(out.first(kPageBytes), segment.nonce));  // with this field still zero
}

std::optional<IndexPage> read_index_page(std::span<const std::byte> page, const SegmentHeader& segment) {
  if (page.size() < kPageBytes || get<std::uint32_t>(page, 0) != kIndexMagic ||
      get<std::uint16_t>(page, 4) != kDiskVersion || get<std::uint64_t>(page, 16) != segment.id)
    return std::nullopt;
  std::byte copy[kPageBytes];
  std::memcpy(copy, page.data(), kPageBytes);
  std::memset(copy + 24, 0, 8);
  if (get<std::uint64_t>(page, 24) != checksum(copy, segment.nonce)) return std::nullopt;
  const IndexPage found{.page = get<std::uint32_t>(page, 8),
                        .page_count = get<std::uint32_t>(page, 12),
                        .entry_count = get<std::uint16_t>(page, 6)};
  const bool sane = found.page_count != 0 && found.page_count <= index_pages(kMaxRecords) &&
                    found.page < found.page_count && found.entry_count != 0 && found.entry_count <= kEntriesPerPage;
  return sane ? std::optional(found) : std::nullopt;
}

IndexEntry read_index_entry(std::span<const std::byte> page, std::uint32_t entry) {
  FIRN_CHECK(entry < kEntriesPerPage);
  const std::size_t at = 32 + entry * kIndexEntryBytes;
  return {.key = {get<std::uint64_t>(page, at), get<std::uint64_t>(page, at + 8)},
          .granule = get<std::uint32_t>(page, at + 16),
          .frame_bytes = get<std::uint32_t>(page, at + 20),
          .state = static_cast<RecordState>(get<std::uint16_t>(page, at + 24))};
}

}  // namespace firn::disk
