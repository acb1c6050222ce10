// file_ops.h: what the disk tier asks of the file system. An interface, so that tests can make any call fail, tear or
// take its time; the real one adds nothing to the system calls. Threads: any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace firn::disk {

// All return -errno for a failure. Reads and writes may be short.
class FileOps {
 public:
  virtual ~FileOps() = default;
  virtual int make_directory(const std::string& path) = 0;  // 0700; parents are made too
  virtual int list(const std::string& path, std::vector<std::string>& names) = 0;
  virtual int open(const std::string& path, int flags, unsigned mode) = 0;
  virtual void close(int file) = 0;
  virtual std::int64_t read(int file, void* to, std::size_t bytes, std::uint64_t offset) = 0;
  virtual std::int64_t write(int file, const void* from, std::size_t bytes, std::uint64_t offset) = 0;
  virtual int sync(int file) = 0;                           // fdatasync
  virtual int allocate(int file, std::uint64_t bytes) = 0;  // blocks for all of it
  virtual int truncate(int file, std::uint64_t bytes) = 0;
  virtual std::int64_t size(int file) = 0;
  virtual std::int64_t links(int file) = 0;  // 0: it was removed while open
  virtual int remove(const std::string& path) = 0;
  virtual int rename(const std::string& from, const std::string& to) = 0;
  virtual int sync_directory(const std::string& path) = 0;
  virtual int lock(int file) = 0;  // for one writer; -EWOULDBLOCK: somebody has it
};

FileOps& system_files();

}  // namespace firn::disk
