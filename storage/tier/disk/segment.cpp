#include "storage/tier/disk/segment.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "core/base/check.h"

#ifndef O_DIRECT
#define O_DIRECT 0
#endif

namespace firn::disk {
namespace {

Status io(const std::string& path, const char* what, int error) {
  return Status(Code::kIo, fmt::format("{}: {}: {}", path, what, std::strerror(error)));
}

}  // namespace

bool DiskBudget::reserve(std::uint64_t bytes, std::uint64_t keep_free) {
  std::lock_guard lock(mutex_);
  if (spent_ > limit_ || bytes + keep_free > limit_ - spent_) return false;
  spent_ += bytes;
  peak_ = std::max(peak_, spent_);
  return true;
}
void DiskBudget::force(std::uint64_t bytes) {
  std::lock_guard lock(mutex_);
  spent_ += bytes;
  peak_ = std::max(peak_, spent_);
}
void DiskBudget::refund(std::uint64_t bytes) {
  std::lock_guard lock(mutex_);
  FIRN_CHECK(bytes <= spent_);
  spent_ -= bytes;
}
std::uint64_t DiskBudget::spent() const {
  std::lock_guard lock(mutex_);
  return spent_;
}
std::uint64_t DiskBudget::peak() const {
  std::lock_guard lock(mutex_);
  return peak_;
}

PageBuffer::PageBuffer(std::size_t bytes)
    : start_(static_cast<std::byte*>(::operator new(bytes, std::align_val_t(kPageBytes)))), bytes_(bytes) {}
PageBuffer::~PageBuffer() { ::operator delete(start_, std::align_val_t(kPageBytes)); }

std::string Segment::file_name(std::uint64_t id) { return fmt::format("{:016x}.seg", id); }

Result<std::shared_ptr<Segment>> Segment::create(FileOps& files, DiskBudget& budget, const std::string& directory,
                                                 const SegmentHeader& header, std::uint64_t bytes, bool direct,
                                                 int* error) {
  std::shared_ptr<Segment> segment(new Segment(files, budget));
  segment->path_ = directory + "/" + file_name(header.id);
  segment->header_ = header;
  segment->charged_ = bytes + kFileOverhead;
  segment->bytes_ = bytes;
  const auto failed = [&](const char* what, int result) {
    *error = -result;
    if (segment->file_ >= 0) files.remove(segment->path_);
    return io(segment->path_, what, -result);
  };
  int flags = O_CREAT | O_EXCL | O_RDWR;
  int file = files.open(segment->path_, flags | (direct ? O_DIRECT : 0), 0600);
  segment->direct_ = direct;
  if (file == -EINVAL && direct) {  // a file system without it
    files.remove(segment->path_);
    file = files.open(segment->path_, flags, 0600);
    segment->direct_ = false;
  }
  if (file < 0) return failed("creating it", file);
  segment->file_ = file;
  if (const int result = files.allocate(file, bytes); result == -EOPNOTSUPP) {
    if (const int grown = files.truncate(file, bytes); grown < 0) return failed("giving it its size", grown);
  } else if (result < 0) {
    return failed("reserving its bytes", result);
  }
  PageBuffer page(kPageBytes);
  std::memset(page.bytes().data(), 0, kPageBytes);
  write_segment_header(header, page.bytes());
  if (const int result = segment->write(0, page.bytes()); result < 0) return failed("writing its header", result);
  if (const int result = segment->sync(); result < 0) return failed("syncing it", result);
  if (const int result = files.sync_directory(directory); result < 0) return failed("syncing its directory", result);
  return segment;
}

Result<std::shared_ptr<Segment>> Segment::open(FileOps& files, DiskBudget& budget, const std::string& directory,
                                               const std::string& name, bool direct, bool writable) {
  std::shared_ptr<Segment> segment(new Segment(files, budget));
  segment->path_ = directory + "/" + name;
  const int flags = writable ? O_RDWR : O_RDONLY;
  int file = files.open(segment->path_, flags | (direct ? O_DIRECT : 0), 0);
  segment->direct_ = direct;
  if (file == -EINVAL && direct) {
    file = files.open(segment->path_, flags, 0);
    segment->direct_ = false;
  }
  if (file < 0) return io(segment->path_, "opening it", -file);
  segment->file_ = file;
  const std::int64_t size = files.size(file);
  if (size < 0) return io(segment->path_, "asking for its size", static_cast<int>(-size));
  segment->bytes_ = static_cast<std::uint64_t>(size);
  segment->charged_ = segment->bytes_ + kFileOverhead;
  budget.force(segment->charged_);
  PageBuffer page(kPageBytes);
  const std::int64_t got = segment->read(0, page.bytes());
  if (got < 0) return io(segment->path_, "reading its header", static_cast<int>(-got));
  const std::span<const std::byte> head =
      page.bytes().first(std::min<std::size_t>(static_cast<std::size_t>(got), kSegmentHeaderBytes));
  if (std::all_of(head.begin(), head.end(), [](std::byte b) { return b == std::byte{0}; }))
    return Status(Code::kNoSpace, segment->path_ + ": nothing was ever written into it");
  switch (read_segment_header(page.bytes().first(static_cast<std::size_t>(got)), segment->header_)) {
    case HeaderError::kNone:
      break;
    case HeaderError::kNewer:
      return Status(Code::kUnavailable, segment->path_ + ": a newer version of firn wrote it");
    case HeaderError::kDamaged:
      return Status(Code::kCorrupt, segment->path_ + ": its header is damaged");
  }
  if (file_name(segment->header_.id) != name)
    return Status(Code::kCorrupt,
                  fmt::format("{}: its header says that it is {}", segment->path_, file_name(segment->header_.id)));
  return segment;
}

Segment::~Segment() {
  if (file_ >= 0) files_.close(file_);
  if (charged_ != 0) budget_.refund(charged_);
}

std::int64_t Segment::read(std::uint64_t offset, std::span<std::byte> out) const {
  std::size_t done = 0;
  int stuck = 0;
  while (done < out.size()) {
    const std::int64_t got = files_.read(file_, out.data() + done, out.size() - done, offset + done);
    if (got < 0) return got;
    if (got == 0) break;
    const std::size_t all = done + static_cast<std::size_t>(got);
    if (offset + all >= bytes_) return static_cast<std::int64_t>(all);
    const std::size_t whole = all / kPageBytes * kPageBytes;  // direct reads begin at pages
    if (whole == done && ++stuck == 8) return -EIO;
    done = whole;
  }
  return static_cast<std::int64_t>(done);
}

int Segment::write(std::uint64_t offset, std::span<const std::byte> bytes) {
  FIRN_CHECK(offset % kPageBytes == 0 && bytes.size() % kPageBytes == 0 && offset + bytes.size() <= bytes_);
  std::size_t done = 0;
  int stuck = 0;
  while (done < bytes.size()) {
    const std::int64_t put = files_.write(file_, bytes.data() + done, bytes.size() - done, offset + done);
    if (put < 0) return static_cast<int>(put);
    const std::size_t whole = (done + static_cast<std::size_t>(put)) / kPageBytes * kPageBytes;
    if (whole == done && ++stuck == 8) return -EIO;
    done = whole;
  }
  return 0;
}

int Segment::sync() { return files_.sync(file_); }

int Segment::resize(std::uint64_t bytes) {
  if (bytes > bytes_ && !budget_.reserve(bytes - bytes_)) return -ENOSPC;
  if (const int result = files_.truncate(file_, bytes); result < 0) {
    if (bytes > bytes_) budget_.refund(bytes - bytes_);
    return result;
  }
  if (bytes < bytes_) budget_.refund(bytes_ - bytes);
  charged_ = bytes + kFileOverhead;
  bytes_ = bytes;
  return 0;
}

bool Segment::removed() const { return files_.links(file_) <= 0; }

int Segment::remove() { return files_.remove(path_); }

// ---- Reading what is there

namespace {

// A stretch of the segment in memory, which moves along.
class Window {
 public:
  Window(const Segment& segment, std::span<std::byte> room) : segment_(segment), room_(room) {}
  // The bytes from offset on: at least so many, unless the file ends before; at most as many as there is room for.
  std::span<const std::byte> at(std::uint64_t offset, std::size_t least) {
    if (offset < first_ || offset + least > first_ + held_) {
      first_ = offset / kPageBytes * kPageBytes;
      held_ = 0;
      const std::int64_t got = segment_.read(first_, room_);
      if (got < 0)
        error = static_cast<int>(-got);
      else
        held_ = static_cast<std::size_t>(got);
    }
    if (offset >= first_ + held_) return {};
    return std::span<const std::byte>(room_).subspan(offset - first_, first_ + held_ - offset);
  }
  int error = 0;

 private:
  const Segment& segment_;
  std::span<std::byte> room_;
  std::uint64_t first_ = 0;
  std::size_t held_ = 0;
};

bool body_is_whole(Window& window, const RecordHeader& header) {
  BodyChecksum sum;
  sum.reset(header.key);
  std::uint64_t at = header.offset + kRecordHeaderBytes, left = header.frame_bytes;
  while (left != 0) {
    const std::span<const std::byte> some = window.at(at, 1);
    if (some.empty()) return false;
    const std::span<const std::byte> part = some.first(std::min<std::uint64_t>(some.size(), left));
    sum.add(part);
    at += part.size();
    left -= part.size();
  }
  return sum.value() == header.body_checksum;
}

bool read_index(Segment& segment, Window& window, Contents& contents) {
  if (segment.bytes() % kPageBytes != 0 || segment.bytes() < 2 * kPageBytes) return false;
  const std::uint64_t last_at = segment.bytes() - kPageBytes;
  const auto page_at = [&](std::uint64_t at) { return window.at(at, kPageBytes); };
  std::span<const std::byte> bytes = page_at(last_at);
  const auto last = read_index_page(bytes, segment.header());
  if (!last || last->page + 1 != last->page_count) return false;
  const std::uint64_t pages = last->page_count;
  if (pages * kPageBytes > segment.bytes() - kPageBytes) return false;
  const std::uint64_t first_at = segment.bytes() - pages * kPageBytes;
  std::uint64_t end = kPageBytes;
  for (std::uint32_t i = 0; i < pages; ++i) {
    bytes = page_at(first_at + i * kPageBytes);
    const auto page = read_index_page(bytes, segment.header());
    if (!page || page->page != i || page->page_count != pages) return false;
    for (std::uint32_t e = 0; e < page->entry_count; ++e) {
      const IndexEntry entry = read_index_entry(bytes, e);
      const std::uint64_t offset = std::uint64_t{entry.granule} * kGranuleBytes;
      if (offset < end || entry.frame_bytes == 0 || offset + record_bytes(entry.frame_bytes) > first_at) return false;
      end = offset + record_bytes(entry.frame_bytes);
      if (entry.state == RecordState::kLive) contents.entries.push_back(entry);
    }
  }
  contents.end = end;
  contents.indexed = true;
  segment.set_index_pages(static_cast<std::uint32_t>(pages));
  return true;
}

}  // namespace

Contents read_contents(Segment& segment, std::span<std::byte> room) {
  FIRN_CHECK(room.size() >= kPageBytes && room.size() % kPageBytes == 0);
  Contents contents;
  Window window(segment, room);
  segment.set_index_pages(0);
  if (read_index(segment, window, contents)) return contents;
  contents = {};
  // Record by record. Where none begins, one may still begin later: a batch begins at a page, and a damaged header must
  // not hide what is behind it. Only the nonce makes bytes a record, so nothing within a frame can pass for one.
  bool gap = false;
  for (std::uint64_t at = kPageBytes; at + kRecordHeaderBytes <= segment.bytes() && window.error == 0;) {
    const std::span<const std::byte> bytes = window.at(at, kRecordHeaderBytes);
    const auto header = read_record_header(bytes, segment.header(), at, segment.bytes());
    if (!header) {
      for (std::size_t i = 0; i < std::min<std::size_t>(bytes.size(), kGranuleBytes) && !gap; ++i)
        gap = bytes[i] != std::byte{0};  // zeros are padding, or nothing written yet
      at += kGranuleBytes;
      continue;
    }
    contents.damaged += gap;
    gap = false;
    const std::uint64_t next = at + record_bytes(header->frame_bytes);
    if (header->state == RecordState::kErased) {
      at = next;
      contents.end = next;
      continue;
    }
    if (contents.entries.size() < kMaxRecords && body_is_whole(window, *header)) {
      contents.entries.push_back({.key = header->key,
                                  .granule = static_cast<std::uint32_t>(at / kGranuleBytes),
                                  .frame_bytes = static_cast<std::uint32_t>(header->frame_bytes),
                                  .state = RecordState::kLive});
      at = contents.end = next;
    } else {
      gap = true;
      at += kGranuleBytes;
    }
  }
  contents.torn = gap;
  contents.error = window.error;
  return contents;
}

}  // namespace firn::disk
