#include "storage/tier/disk/file_ops.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace firn::disk {
namespace {

template <class Call>
auto retried(Call call) -> decltype(call()) {
  for (;;) {
    const auto result = call();
    if (result >= 0) return result;
    if (errno != EINTR) return static_cast<decltype(call())>(-errno);
  }
}

class SystemFiles final : public FileOps {
 public:
  int make_directory(const std::string& path) override {
    for (std::size_t at = 1; at != std::string::npos;) {
      at = path.find('/', at);
      const std::string part = path.substr(0, at);
      if (at != std::string::npos) ++at;
      if (::mkdir(part.c_str(), 0700) != 0 && errno != EEXIST) {
        const int error = errno;
        struct stat info {};  // a parent that may not be written to but is there
        if (::stat(part.c_str(), &info) != 0) return -error;
      }
    }
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0) return -errno;
    return S_ISDIR(info.st_mode) ? 0 : -ENOTDIR;
  }
  int list(const std::string& path, std::vector<std::string>& names) override {
    DIR* directory = ::opendir(path.c_str());
    if (directory == nullptr) return -errno;
    while (const dirent* entry = ::readdir(directory)) names.emplace_back(entry->d_name);
    ::closedir(directory);
    return 0;
  }
  int open(const std::string& path, int flags, unsigned mode) override {
    return retried([&] { return ::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, mode); });
  }
  void close(int file) override { ::close(file); }
  std::int64_t read(int file, void* to, std::size_t bytes, std::uint64_t offset) override {
    return retried([&] { return ::pread(file, to, bytes, static_cast<off_t>(offset)); });
  }
  std::int64_t write(int file, const void* from, std::size_t bytes, std::uint64_t offset) override {
    return retried([&] { return ::pwrite(file, from, bytes, static_cast<off_t>(offset)); });
  }
  int sync(int file) override {
    return retried([&] { return ::fdatasync(file); });
  }
  int allocate(int file, std::uint64_t bytes) override {
    return retried([&] { return ::fallocate(file, 0, 0, static_cast<off_t>(bytes)); });
  }
  int truncate(int file, std::uint64_t bytes) override {
    return retried([&] { return ::ftruncate(file, static_cast<off_t>(bytes)); });
  }
  std::int64_t size(int file) override {
    struct stat info {};
    return ::fstat(file, &info) != 0 ? -errno : info.st_size;
  }
  std::int64_t links(int file) override {
    struct stat info {};
    return ::fstat(file, &info) != 0 ? -errno : static_cast<std::int64_t>(info.st_nlink);
  }
  int remove(const std::string& path) override { return ::unlink(path.c_str()) != 0 ? -errno : 0; }
  int rename(const std::string& from, const std::string& to) override {
    return std::rename(from.c_str(), to.c_str()) != 0 ? -errno : 0;
  }
  int sync_directory(const std::string& path) override {
    const int file = open(path, O_RDONLY | O_DIRECTORY, 0);
    if (file < 0) return file;
    const int result = retried([&] { return ::fsync(file); });
    ::close(file);
    return result;
  }
  int lock(int file) override {
    return retried([&] { return ::flock(file, LOCK_EX | LOCK_NB); });
  }
};

}  // namespace

FileOps& system_files() {
  static SystemFiles files;
  return files;
}

}  // namespace firn::disk
