#include "storage/tier/disk/appender.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "core/base/check.h"

namespace firn::disk {

Appender::Appender(std::size_t buffer_bytes, std::uint32_t max_records, const Digest& identity)
    : identity_(identity), max_records_(max_records), buffer_(buffer_bytes), page_(kPageBytes) {
  entries_.reserve(max_records);
}

std::uint64_t Appender::memory_bytes(std::size_t buffer_bytes, std::uint32_t max_records) {
  return buffer_bytes + kPageBytes + std::uint64_t{max_records} * sizeof(IndexEntry);
}

void Appender::open(std::shared_ptr<Segment> segment) {
  FIRN_CHECK(segment_ == nullptr && fill_ == 0);
  segment_ = std::move(segment);
  entries_.clear();
  flushed_ = synced_ = kPageBytes;
  dirty_ = false;
}

bool Appender::fits(std::uint64_t frame_bytes) const {
  if (segment_ == nullptr || entries_.size() >= max_records_) return false;
  const std::uint64_t end = round_up(flushed_ + fill_ + record_bytes(frame_bytes), kPageBytes);
  return end + index_pages(static_cast<std::uint32_t>(entries_.size()) + 1) * kPageBytes <= segment_->bytes();
}

int Appender::begin(const FrameKey& key, std::uint64_t frame_bytes, std::uint64_t body_checksum,
                    std::uint32_t& granule) {
  FIRN_CHECK(fits(frame_bytes));
  const std::uint64_t offset = flushed_ + fill_;
  FIRN_CHECK(offset % kGranuleBytes == 0);
  granule = static_cast<std::uint32_t>(offset / kGranuleBytes);
  entries_.push_back({.key = key,
                      .granule = granule,
                      .frame_bytes = static_cast<std::uint32_t>(frame_bytes),
                      .state = RecordState::kLive});
  std::byte header[kRecordHeaderBytes];
  write_record_header({.key = key,
                       .state = RecordState::kLive,
                       .frame_bytes = frame_bytes,
                       .offset = offset,
                       .body_checksum = body_checksum,
                       .identity = identity_},
                      segment_->header(), header);
  return add(header);
}

int Appender::add(std::span<const std::byte> bytes) {
  dirty_ = true;
  while (!bytes.empty()) {
    const std::span<std::byte> room = free_room();
    const std::size_t count = std::min(room.size(), bytes.size());
    std::memcpy(room.data(), bytes.data(), count);
    fill_ += count;
    bytes = bytes.subspan(count);
    if (fill_ == buffer_.bytes().size())
      if (const int result = flush(); result < 0) return result;
  }
  return 0;
}

int Appender::end() {
  const std::size_t padding = round_up(fill_, kGranuleBytes) - fill_;
  std::memset(free_room().data(), 0, padding);  // the buffer is whole pages, so there is room for it
  fill_ += padding;
  return fill_ == buffer_.bytes().size() ? flush() : 0;
}

int Appender::flush() {
  const std::size_t whole = round_up(fill_, kPageBytes);
  std::memset(free_room().data(), 0, whole - fill_);
  const int result = segment_->write(flushed_, buffer_.bytes().first(whole));
  if (result < 0) return result;
  flushed_ += whole;
  written_ += whole;
  fill_ = 0;
  return 0;
}

int Appender::sync() {
  if (!dirty_) return 0;
  if (fill_ != 0)
    if (const int result = flush(); result < 0) return result;
  if (const int result = segment_->sync(); result < 0) return result;
  synced_ = flushed_;
  dirty_ = false;
  return 0;
}

int Appender::erase(std::uint32_t granule) {
  const auto at = std::lower_bound(entries_.begin(), entries_.end(), granule,
                                   [](const IndexEntry& entry, std::uint32_t g) { return entry.granule < g; });
  FIRN_CHECK(at != entries_.end() && at->granule == granule);
  at->state = RecordState::kErased;
  dirty_ = true;
  return erase_header(*segment_, granule, page_.bytes());
}

int Appender::seal(std::uint32_t& live) {
  FIRN_CHECK(segment_ != nullptr && fill_ == 0);
  const std::shared_ptr<Segment> segment = std::move(segment_);
  segment_ = nullptr;
  entries_.erase(std::remove_if(entries_.begin(), entries_.end(),
                                [](const IndexEntry& entry) { return entry.state != RecordState::kLive; }),
                 entries_.end());
  live = static_cast<std::uint32_t>(entries_.size());
  if (live == 0) return 0;
  const int result = write_index(*segment, entries_, flushed_, page_.bytes());
  if (result == 0) written_ += std::uint64_t{segment->index_page_count()} * kPageBytes;
  return result;
}

void Appender::abandon() {
  segment_ = nullptr;
  fill_ = 0;
  dirty_ = false;
  entries_.clear();
}

int erase_header(Segment& segment, std::uint32_t granule, std::span<std::byte> room) {
  const std::uint64_t offset = std::uint64_t{granule} * kGranuleBytes, page = offset / kPageBytes * kPageBytes;
  const std::int64_t got = segment.read(page, room.first(kPageBytes));
  if (got < 0) return static_cast<int>(got);
  const std::span<std::byte> bytes = room.subspan(offset - page, kRecordHeaderBytes);
  auto header = read_record_header(bytes, segment.header(), offset, segment.bytes());
  if (got != static_cast<std::int64_t>(kPageBytes) || !header) return 0;  // nobody will take it for a record
  header->state = RecordState::kErased;
  write_record_header(*header, segment.header(), bytes);
  return segment.write(page, room.first(kPageBytes));
}

int erase_in_index(Segment& segment, std::uint32_t granule, std::span<std::byte> room) {
  room = room.first(kPageBytes);
  std::uint32_t low = 0, high = segment.index_page_count();
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    const std::uint64_t at = segment.index_offset() + std::uint64_t{middle} * kPageBytes;
    const std::int64_t got = segment.read(at, room);
    if (got < 0) return static_cast<int>(got);
    const auto page =
        got == static_cast<std::int64_t>(kPageBytes) ? read_index_page(room, segment.header()) : std::nullopt;
    if (!page) return erase_header(segment, granule, room);  // damaged meanwhile: the records are asked then
    if (granule < read_index_entry(room, 0).granule) {
      high = middle;
    } else if (granule > read_index_entry(room, page->entry_count - 1).granule) {
      low = middle + 1;
    } else {
      std::array<IndexEntry, kEntriesPerPage> entries;
      for (std::uint32_t i = 0; i < page->entry_count; ++i) {
        entries[i] = read_index_entry(room, i);
        if (entries[i].granule == granule) entries[i].state = RecordState::kErased;
      }
      write_index_page(*page, std::span(entries).first(page->entry_count), segment.header(), room);
      return segment.write(at, room);
    }
  }
  return 0;
}

int write_index(Segment& segment, std::span<const IndexEntry> entries, std::uint64_t end, std::span<std::byte> room) {
  room = room.first(kPageBytes);
  const auto live = static_cast<std::uint32_t>(entries.size());
  const std::uint32_t pages = index_pages(live);
  const std::uint64_t least = round_up(end, kPageBytes) + std::uint64_t{pages} * kPageBytes;
  const std::uint64_t bytes = std::max(least, round_up(segment.bytes(), kPageBytes));
  if (bytes != segment.bytes())  // it was cut by others
    if (const int result = segment.resize(bytes); result < 0) return result;
  const std::uint64_t first_at = bytes - std::uint64_t{pages} * kPageBytes;
  for (std::uint32_t page = 0; page < pages; ++page) {
    const std::uint32_t first = page * kEntriesPerPage, count = std::min(kEntriesPerPage, live - first);
    write_index_page({.page = page, .page_count = pages, .entry_count = count}, entries.subspan(first, count),
                     segment.header(), room);
    const int result = segment.write(first_at + std::uint64_t{page} * kPageBytes, room);
    if (result < 0) return result;
  }
  if (const int result = segment.sync(); result < 0) return result;
  segment.set_index_pages(pages);
  return 0;
}

}  // namespace firn::disk
