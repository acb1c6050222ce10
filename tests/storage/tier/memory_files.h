// memory_files.h: a file system in memory that fails when it is told to: for tests of the disk tier that open it
// thousands of times, or need an error that no real disk gives on demand. Threads: any.
#pragma once

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "storage/tier/disk/file_ops.h"

namespace firn::disk {

class MemoryFiles final : public FileOps {
 public:
  enum class Call {
    kMakeDirectory,
    kList,
    kOpen,
    kCreate,
    kRead,
    kWrite,
    kSync,
    kAllocate,
    kTruncate,
    kRemove,
    kRename
  };
  // Asked before each call; 0: go on. Negative: -errno. Of a read or write, positive: so many bytes at most. It may
  // block.
  std::function<std::int64_t(Call, const std::string& path)> fault;

  std::string bytes(const std::string& path) const {
    std::lock_guard lock(mutex_);
    const auto at = names_.find(path);
    return at == names_.end() ? std::string() : at->second->bytes;
  }
  void set_bytes(const std::string& path, std::string bytes) {
    std::lock_guard lock(mutex_);
    auto& inode = names_[path];
    if (inode == nullptr) inode = std::make_shared<Inode>();
    inode->bytes = std::move(bytes);
  }
  std::vector<std::string> paths(const std::string& suffix = {}) const {
    std::lock_guard lock(mutex_);
    std::vector<std::string> paths;
    for (const auto& [path, inode] : names_)
      if (path.ends_with(suffix)) paths.push_back(path);
    return paths;
  }
  std::uint64_t total_bytes() const {  // of files that are removed and still open, too
    std::lock_guard lock(mutex_);
    std::uint64_t bytes = 0;
    for (const auto& [path, inode] : names_) bytes += (inode->bytes.size() + 4095) / 4096 * 4096;
    for (const auto& [file, open] : files_)
      if (open.inode->links == 0) bytes += (open.inode->bytes.size() + 4095) / 4096 * 4096;
    return bytes;
  }
  // rm -rf.
  void vanish() {
    std::lock_guard lock(mutex_);
    for (auto& [path, inode] : names_) inode->links = 0;
    names_.clear();
    gone_ = true;
  }

  int make_directory(const std::string& path) override { return ask(Call::kMakeDirectory, path); }
  int list(const std::string& path, std::vector<std::string>& names) override {
    if (const int result = ask(Call::kList, path); result < 0) return result;
    std::lock_guard lock(mutex_);
    for (const auto& [name, inode] : names_)
      if (name.rfind(path + "/", 0) == 0) names.push_back(name.substr(path.size() + 1));
    return 0;
  }
  int open(const std::string& path, int flags, unsigned) override {
    if (const int result = ask((flags & O_CREAT) != 0 ? Call::kCreate : Call::kOpen, path); result < 0) return result;
    std::lock_guard lock(mutex_);
    if (gone_) return -ENOENT;
    auto at = names_.find(path);
    if (at == names_.end()) {
      if ((flags & O_CREAT) == 0) return -ENOENT;
      at = names_.emplace(path, std::make_shared<Inode>()).first;
    } else if ((flags & O_EXCL) != 0) {
      return -EEXIST;
    }
    files_[++last_] = {path, at->second};
    return last_;
  }
  void close(int file) override {
    std::lock_guard lock(mutex_);
    const auto at = files_.find(file);
    if (at->second.inode->holder == file) at->second.inode->holder = 0;
    files_.erase(at);
  }
  std::int64_t read(int file, void* to, std::size_t bytes, std::uint64_t offset) override {
    if (const std::int64_t most = ask_bytes(Call::kRead, file); most < 0)
      return most;
    else if (most > 0)
      bytes = std::min(bytes, static_cast<std::size_t>(most));
    std::lock_guard lock(mutex_);
    const std::string& data = files_.at(file).inode->bytes;
    if (offset >= data.size()) return 0;
    bytes = std::min(bytes, data.size() - offset);
    std::memcpy(to, data.data() + offset, bytes);
    return static_cast<std::int64_t>(bytes);
  }
  std::int64_t write(int file, const void* from, std::size_t bytes, std::uint64_t offset) override {
    if (const std::int64_t most = ask_bytes(Call::kWrite, file); most < 0)
      return most;
    else if (most > 0)
      bytes = std::min(bytes, static_cast<std::size_t>(most));
    std::lock_guard lock(mutex_);
    std::string& data = files_.at(file).inode->bytes;
    if (offset + bytes > data.size()) data.resize(offset + bytes);
    std::memcpy(data.data() + offset, from, bytes);
    return static_cast<std::int64_t>(bytes);
  }
  int sync(int file) override { return static_cast<int>(ask_bytes(Call::kSync, file)); }
  int allocate(int file, std::uint64_t bytes) override {
    if (const auto result = ask_bytes(Call::kAllocate, file); result < 0) return static_cast<int>(result);
    std::lock_guard lock(mutex_);
    std::string& data = files_.at(file).inode->bytes;
    if (bytes > data.size()) data.resize(bytes);
    return 0;
  }
  int truncate(int file, std::uint64_t bytes) override {
    if (const auto result = ask_bytes(Call::kTruncate, file); result < 0) return static_cast<int>(result);
    std::lock_guard lock(mutex_);
    files_.at(file).inode->bytes.resize(bytes);
    return 0;
  }
  std::int64_t size(int file) override {
    std::lock_guard lock(mutex_);
    return static_cast<std::int64_t>(files_.at(file).inode->bytes.size());
  }
  std::int64_t links(int file) override {
    std::lock_guard lock(mutex_);
    return files_.at(file).inode->links;
  }
  int remove(const std::string& path) override {
    if (const int result = ask(Call::kRemove, path); result < 0) return result;
    std::lock_guard lock(mutex_);
    const auto at = names_.find(path);
    if (at == names_.end()) return -ENOENT;
    at->second->links = 0;
    names_.erase(at);
    return 0;
  }
  int rename(const std::string& from, const std::string& to) override {
    if (const int result = ask(Call::kRename, from); result < 0) return result;
    std::lock_guard lock(mutex_);
    const auto at = names_.find(from);
    if (at == names_.end()) return -ENOENT;
    names_[to] = at->second;
    names_.erase(from);
    return 0;
  }
  int sync_directory(const std::string& path) override { return ask(Call::kSync, path); }
  int lock(int file) override {
    std::lock_guard lock(mutex_);
    Inode& inode = *files_.at(file).inode;
    if (inode.holder != 0 && inode.holder != file) return -EWOULDBLOCK;
    inode.holder = file;
    return 0;
  }

 private:
  struct Inode {
    std::string bytes;
    int links = 1, holder = 0;
  };
  struct OpenFile {
    std::string path;
    std::shared_ptr<Inode> inode;
  };
  int ask(Call call, const std::string& path) { return fault ? static_cast<int>(fault(call, path)) : 0; }
  std::int64_t ask_bytes(Call call, int file) {
    if (!fault) return 0;
    std::string path;
    {
      std::lock_guard lock(mutex_);
      path = files_.at(file).path;
    }
    return fault(call, path);
  }

  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Inode>> names_;
  std::map<int, OpenFile> files_;
  int last_ = 0;
  bool gone_ = false;
};

}  // namespace firn::disk
