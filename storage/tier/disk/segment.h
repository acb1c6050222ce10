// segment.h: one file of the log, open: whole pages in and out of it, and what it holds when nothing else remembers.
// Whoever holds one may read it, even after it was removed from its directory; the budget has its bytes back when the
// last of them lets go, since that is when the file system has.
// Threads: any may read; one writes.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "firn/status.h"
#include "storage/tier/disk/file_ops.h"
#include "storage/tier/disk/format.h"

namespace firn::disk {

// Bytes of a directory: those of every file there, before it grows.
class DiskBudget {
 public:
  explicit DiskBudget(std::uint64_t limit) : limit_(limit) {}
  bool reserve(std::uint64_t bytes, std::uint64_t keep_free = 0);
  void force(std::uint64_t bytes);  // of what is there already
  void refund(std::uint64_t bytes);
  std::uint64_t limit() const { return limit_; }
  std::uint64_t spent() const;
  std::uint64_t peak() const;

 private:
  mutable std::mutex mutex_;
  const std::uint64_t limit_;
  std::uint64_t spent_ = 0, peak_ = 0;
};

// Memory that direct I/O may use.
class PageBuffer {
 public:
  explicit PageBuffer(std::size_t bytes);  // whole pages
  ~PageBuffer();
  PageBuffer(const PageBuffer&) = delete;
  PageBuffer& operator=(const PageBuffer&) = delete;
  std::span<std::byte> bytes() const { return {start_, bytes_}; }

 private:
  std::byte* start_;
  std::size_t bytes_;
};

class Segment {
 public:
  // What a file system keeps of a file beside its bytes: charged with them.
  static constexpr std::uint64_t kFileOverhead = 2 * kPageBytes;
  static std::string file_name(std::uint64_t id);  // 16 hexadecimal digits and ".seg"

  // A new one of so many bytes, reserved on the disk; the budget has been asked for them and kFileOverhead, and gets
  // them back if this fails. errno of the failure: in error.
  static Result<std::shared_ptr<Segment>> create(FileOps& files, DiskBudget& budget, const std::string& directory,
                                                 const SegmentHeader& header, std::uint64_t bytes, bool direct,
                                                 int* error);
  // One that is there. kCorrupt: its header is damaged. kUnavailable: a newer firn wrote it. kNoSpace: whoever made it
  // did not come to write its header.
  static Result<std::shared_ptr<Segment>> open(FileOps& files, DiskBudget& budget, const std::string& directory,
                                               const std::string& name, bool direct, bool writable);
  ~Segment();

  const SegmentHeader& header() const { return header_; }
  const std::string& path() const { return path_; }
  std::uint64_t bytes() const { return bytes_; }
  bool direct() const { return direct_; }
  bool sealed() const { return index_pages_ != 0; }
  std::uint64_t index_offset() const { return bytes_ - std::uint64_t{index_pages_} * kPageBytes; }
  std::uint32_t index_page_count() const { return index_pages_; }
  void set_index_pages(std::uint32_t pages) { index_pages_ = pages; }

  // Whole pages, into whole pages of memory. How many bytes were there before the end; -errno.
  std::int64_t read(std::uint64_t offset, std::span<std::byte> out) const;
  int write(std::uint64_t offset, std::span<const std::byte> bytes);
  int sync();
  int resize(std::uint64_t bytes);  // within the budget; what is cut off goes back to it
  bool removed() const;             // from its directory, by us or by others
  int remove();

 private:
  Segment(FileOps& files, DiskBudget& budget) : files_(files), budget_(budget) {}
  FileOps& files_;
  DiskBudget& budget_;
  std::string path_;
  SegmentHeader header_;
  int file_ = -1;
  bool direct_ = false;
  std::atomic<std::uint64_t> bytes_{0};  // readers ask while the writer cuts it
  std::uint64_t charged_ = 0;
  std::uint32_t index_pages_ = 0;
};

// What a segment holds: from its index pages if they are whole, else by looking at every record, where those whose body
// is damaged are left out. room: some pages to work with.
struct Contents {
  std::vector<IndexEntry> entries;  // live ones, ascending
  bool indexed = false;             // they came from index pages
  std::uint64_t end = kPageBytes;   // behind the last whole record
  std::uint32_t damaged = 0;        // records whose body is not what was written, and stretches that are no records
  bool torn = false;                // the last thing in it is not whole
  int error = 0;                    // it could not be read
};
Contents read_contents(Segment& segment, std::span<std::byte> room);

}  // namespace firn::disk
