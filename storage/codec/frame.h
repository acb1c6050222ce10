// frame.h: writes and reads the head of a frame, and finds its sections. The layout is docs/frame.md; what a section
// holds is its codec's business. A FrameView has been checked from end to end of its head: offsets lie inside the
// frame, sections do not overlap, every number is within its bound. What it cannot know is whether the frame is the one
// that was asked for. Threads: a FrameView is immutable. Memory: nothing is allocated but the message of a failure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "firn/codec.h"
#include "firn/status.h"
#include "firn/tier.h"

namespace firn {

inline constexpr std::uint16_t kFrameVersion = 1;
inline constexpr std::size_t kFrameAlignment = 64;
inline constexpr std::size_t kFrameHeaderBytes = 192, kSectionEntryBytes = 40;
inline constexpr std::uint32_t kMaxSections = 4096;

constexpr std::uint64_t align_frame(std::uint64_t bytes) {
  return (bytes + kFrameAlignment - 1) / kFrameAlignment * kFrameAlignment;
}
// Bytes of header, table and checksum: where the first section begins.
constexpr std::uint64_t frame_head_bytes(std::uint32_t section_count) {
  return align_frame(kFrameHeaderBytes + std::uint64_t{section_count} * kSectionEntryBytes + 8);
}

enum class SectionKind : std::uint8_t {
  kLayerKeys = 1,
  kLayerValues = 2,
  kStackKeys = 3,
  kStackValues = 4,
  kPositions = 5,
  kSideData = 6,
  kStack = 7,  // keys and values together
};

struct FrameHeader {
  std::uint32_t section_count = 0;
  bool keys_unrotated = false;
  std::uint64_t total_bytes = 0, raw_bytes = 0;
  FrameLabel label;
  Digest artefact;
  CodecId codec{};
  std::uint16_t codec_version = 0;
  ExtentShape shape;
  std::uint16_t position_kind = 0, stack_count = 0;
  std::uint32_t rate = 0;
  float key_error = 0, value_error = 0;
};

struct SectionEntry {
  std::uint16_t index = 0;  // layer or stack
  SectionKind kind{};
  std::uint8_t coding = 0;
  std::uint32_t parameter = 0;
  std::uint64_t offset = 0, encoded_bytes = 0, raw_bytes = 0;
  std::uint64_t checksum = 0;
};

FrameKey frame_key(const FrameHeader& header);
// The checksum of a section: of its bytes and the padding behind them, in its place in the frame of that name.
std::uint64_t section_checksum(const FrameKey& name, std::uint32_t section, std::span<const std::byte> padded);
// Writes header, table and checksum into the first frame_head_bytes(entries.size()) bytes of frame.
void write_frame_head(const FrameHeader& header, std::span<const SectionEntry> entries, std::span<std::byte> frame);

class FrameView {
 public:
  // kCorrupt names the field. Reads the head alone; the frame outlives the view.
  static Result<FrameView> open(std::span<const std::byte> frame);

  const FrameHeader& header() const { return header_; }
  SectionEntry section(std::uint32_t index) const;  // index < header().section_count
  // The section's encoded bytes, compared with their checksum.
  Result<std::span<const std::byte>> payload(std::uint32_t index) const;

 private:
  explicit FrameView(std::span<const std::byte> frame) : frame_(frame) {}
  std::span<const std::byte> frame_;
  FrameHeader header_;
  FrameKey name_;
};

}  // namespace firn
