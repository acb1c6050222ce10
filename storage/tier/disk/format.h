// format.h: the bytes of a segment, version 1 (docs/disk.md has the tables): its header, the headers of its records,
// and the index pages at the end of one that is sealed. Everything read here is hostile until its checksum says
// otherwise. Threads: any. Memory: nothing is allocated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "firn/model.h"
#include "firn/tier.h"

namespace firn::disk {

inline constexpr std::uint16_t kDiskVersion = 1;
inline constexpr std::uint64_t kPageBytes = 4096;    // of every read and write; a segment's header is one page
inline constexpr std::uint64_t kGranuleBytes = 512;  // records begin at multiples
inline constexpr std::size_t kSegmentHeaderBytes = 128, kRecordHeaderBytes = 128, kIndexEntryBytes = 32;
inline constexpr std::uint32_t kEntriesPerPage = (kPageBytes - 32) / kIndexEntryBytes;
inline constexpr std::uint32_t kMaxRecords = 65536;  // of a segment
inline constexpr std::uint64_t kMaxSegmentBytes = std::uint64_t{1} << 32;

constexpr std::uint64_t round_up(std::uint64_t bytes, std::uint64_t unit) { return (bytes + unit - 1) / unit * unit; }
constexpr std::uint64_t record_bytes(std::uint64_t frame_bytes) {
  return round_up(kRecordHeaderBytes + frame_bytes, kGranuleBytes);
}
constexpr std::uint32_t index_pages(std::uint32_t records) { return (records + kEntriesPerPage - 1) / kEntriesPerPage; }

struct SegmentHeader {
  std::uint64_t id = 0;     // ascending; of a directory no two
  std::uint64_t nonce = 0;  // at random: what belongs to another segment, or was made up, has another checksum
  Digest identity;          // of the model
};
enum class RecordState : std::uint16_t { kLive = 1, kErased = 2 };
struct RecordHeader {
  FrameKey key;
  RecordState state = RecordState::kLive;
  std::uint64_t frame_bytes = 0;
  std::uint64_t offset = 0;  // of the record in its segment
  std::uint64_t body_checksum = 0;
  Digest identity;
};
struct IndexEntry {
  FrameKey key;
  std::uint32_t granule = 0;  // offset / kGranuleBytes
  std::uint32_t frame_bytes = 0;
  RecordState state = RecordState::kLive;
};
struct IndexPage {
  std::uint32_t page = 0, page_count = 0, entry_count = 0;
};

std::uint64_t body_checksum(const FrameKey& key, std::span<const std::byte> frame);
// The same, of a frame that comes in parts.
class BodyChecksum {
 public:
  BodyChecksum();
  ~BodyChecksum();
  BodyChecksum(const BodyChecksum&) = delete;
  BodyChecksum& operator=(const BodyChecksum&) = delete;
  void reset(const FrameKey& key);
  void add(std::span<const std::byte> bytes);
  std::uint64_t value() const;

 private:
  void* state_;
};

void write_segment_header(const SegmentHeader& header, std::span<std::byte> out);  // kSegmentHeaderBytes
enum class HeaderError : std::uint8_t { kNone, kDamaged, kNewer };
HeaderError read_segment_header(std::span<const std::byte> bytes, SegmentHeader& header);

void write_record_header(const RecordHeader& header, const SegmentHeader& segment, std::span<std::byte> out);
// Empty: no record of this segment begins here. What it says fits within segment_bytes.
std::optional<RecordHeader> read_record_header(std::span<const std::byte> bytes, const SegmentHeader& segment,
                                               std::uint64_t offset, std::uint64_t segment_bytes);

// Writes a whole page.
void write_index_page(const IndexPage& page, std::span<const IndexEntry> entries, const SegmentHeader& segment,
                      std::span<std::byte> out);
std::optional<IndexPage> read_index_page(std::span<const std::byte> page, const SegmentHeader& segment);
IndexEntry read_index_entry(std::span<const std::byte> page, std::uint32_t entry);

}  // namespace firn::disk
