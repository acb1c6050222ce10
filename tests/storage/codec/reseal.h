// reseal.h: gives a damaged frame checksums that match, so that tests reach what lies behind them, as an attacker
// would.
#pragma once

#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "storage/codec/bytes.h"
#include "storage/codec/frame.h"

namespace firn::test {

inline void reseal_head(std::span<std::byte> frame) {
  if (frame.size() < kFrameHeaderBytes) return;
  const auto sections = load_le<std::uint32_t>(frame.data() + 12);
  if (sections > kMaxSections || frame_head_bytes(sections) > frame.size()) return;
  const std::size_t covered = frame_head_bytes(sections) - 8;
  store_le(frame.data() + covered, static_cast<std::uint64_t>(XXH3_64bits(frame.data(), covered)));
}

// Head and sections, as far as the head makes sense.
inline void reseal(std::span<std::byte> frame) {
  reseal_head(frame);
  const Result<FrameView> view = FrameView::open(frame);
  if (!view.ok()) return;
  const FrameKey name = frame_key(view->header());
  for (std::uint32_t i = 0; i < view->header().section_count; ++i) {
    const SectionEntry entry = view->section(i);
    const std::span<const std::byte> padded = frame.subspan(entry.offset, align_frame(entry.encoded_bytes));
    store_le(frame.data() + kFrameHeaderBytes + i * kSectionEntryBytes + 32, section_checksum(name, i, padded));
  }
  reseal_head(frame);
}

}  // namespace firn::test
