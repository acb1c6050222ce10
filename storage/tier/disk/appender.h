// appender.h: writes records one behind the other into one segment, in large pieces, and closes it with its index.
// Threads: one caller at a time. Memory: the constructor allocates the buffer and the list of records.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "storage/tier/disk/segment.h"

namespace firn::disk {

class Appender {
 public:
  // buffer_bytes: whole pages; what one write carries at most.
  Appender(std::size_t buffer_bytes, std::uint32_t max_records, const Digest& identity);
  static std::uint64_t memory_bytes(std::size_t buffer_bytes, std::uint32_t max_records);

  void open(std::shared_ptr<Segment> segment);  // a new one
  const std::shared_ptr<Segment>& segment() const { return segment_; }
  bool is_open() const { return segment_ != nullptr; }
  // With the record, its index and the padding of a batch that ends behind it.
  bool fits(std::uint64_t frame_bytes) const;

  // A record: begin, add its frame_bytes, end. Its granule. All return -errno; then only abandon() is of use.
  int begin(const FrameKey& key, std::uint64_t frame_bytes, std::uint64_t body_checksum, std::uint32_t& granule);
  int add(std::span<const std::byte> bytes);
  int end();
  // What was ended is on the disk.
  int sync();
  bool dirty() const { return dirty_; }
  std::uint64_t written_bytes() const { return written_; }  // of all segments
  std::uint64_t unsynced_bytes() const { return flushed_ + fill_ - synced_; }

  // On the disk and in the index to come. The record has been synced.
  int erase(std::uint32_t granule);
  // Synced before. Writes the index of what is not erased into its last pages; the segment is closed, whatever comes
  // of it. live: how many records that are.
  int seal(std::uint32_t& live);
  void abandon();

 private:
  int flush();
  std::span<std::byte> free_room() { return buffer_.bytes().subspan(fill_); }

  const Digest identity_;
  const std::uint32_t max_records_;
  PageBuffer buffer_, page_;
  std::shared_ptr<Segment> segment_;
  std::vector<IndexEntry> entries_;
  // The buffer holds what comes behind flushed_, which is at a page.
  std::uint64_t flushed_ = 0, synced_ = 0, written_ = 0;
  std::size_t fill_ = 0;
  bool dirty_ = false;
};

// Marks a record as erased where it begins: its header says so from then on. room: a page.
int erase_header(Segment& segment, std::uint32_t granule, std::span<std::byte> room);
// The same in the index of a sealed segment.
int erase_in_index(Segment& segment, std::uint32_t granule, std::span<std::byte> room);

// Gives a segment its index, in its last pages: what is between them and the end of the last record is nobody's. It
// keeps its size, so that one segment that is cleaned always makes room for another.
int write_index(Segment& segment, std::span<const IndexEntry> entries, std::uint64_t end, std::span<std::byte> room);

}  // namespace firn::disk
