#include "core/base/file_out.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <random>
#include <utility>

namespace firn {
namespace {

constexpr std::size_t kBufferBytes = 64 << 10;

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

// What a path's links lead to, and whether that can be replaced by another file.
struct Target {
  std::string path;
  bool there = false, replaceable = true;
  mode_t mode = 0;
  int error = 0;  // of links that lead nowhere
};

Target resolve(std::string path) {
  constexpr int kMaxLinks = 40;  // as the kernel has it
  struct stat found {};
  for (int i = 0; i < kMaxLinks && lstat(path.c_str(), &found) == 0 && S_ISLNK(found.st_mode); ++i) {
    // /dev/stdout and /dev/fd/N lead through /proc to a file that is open already: it is written, never replaced.
    struct statfs system {};
    if (statfs(folder_of(path).c_str(), &system) == 0 && system.f_type == PROC_SUPER_MAGIC)
      return {std::move(path), true, false};
    char to[PATH_MAX];
    const ssize_t length = readlink(path.c_str(), to, sizeof to);
    if (length <= 0 || static_cast<std::size_t>(length) == sizeof to) break;
    std::string next(to, static_cast<std::size_t>(length));
    path = next[0] == '/' ? std::move(next) : folder_of(path) + "/" + next;
  }
  if (stat(path.c_str(), &found) != 0) return {std::move(path), false, true, 0, errno == ENOENT ? 0 : errno};
  return {std::move(path), true, S_ISREG(found.st_mode), found.st_mode & 0777u};
}

std::string random_name(const std::string& target) {
  std::random_device random;
  std::string name = fmt::format(".new-{:08x}{:08x}", random(), random());
  // A name has NAME_MAX bytes at most, and the target's may have all of them.
  const std::size_t slash = target.rfind('/') + 1;  // npos + 1 is 0
  return target.substr(0, slash) + target.substr(slash, NAME_MAX - name.size()) + name;
}

}  // namespace

Result<FileOut> FileOut::create(const std::string& path, Readers readers) {
  const auto refuse = [&](const std::string& why) {
    return Status(Code::kInvalidArgument, fmt::format("{}: cannot be written ({})", path, why));
  };
  if (path.empty()) return refuse("the name is empty");
  FileOut out;
  out.path_ = path;
  Target target = resolve(path);
  if (target.error != 0) return refuse(std::strerror(target.error));
  out.target_ = target.path;
  if (!target.replaceable) {
    out.file_ = open(target.path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY);
    if (out.file_ < 0) return refuse(std::strerror(errno));
    return out;
  }
  // A rename asks only the folder; a file that was made read-only is not to be replaced either.
  if (target.there && faccessat(AT_FDCWD, target.path.c_str(), W_OK, AT_EACCESS) != 0)
    return refuse(std::strerror(errno));
  constexpr int kTries = 16;
  for (int i = 0; i < kTries && out.file_ < 0; ++i) {
    out.beside_ = random_name(target.path);
    out.file_ = open(out.beside_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                     readers == Readers::kOwner || target.there ? 0600 : 0644);
    if (out.file_ < 0 && errno != EEXIST) break;
  }
  if (out.file_ < 0) {
    const int error = errno;
    out.beside_.clear();
    return refuse(target.there ? fmt::format("no file can be made beside it: {}", std::strerror(error))
                               : std::strerror(error));
  }
  if (readers == Readers::kAnyone && target.there && fchmod(out.file_, target.mode) != 0)
    return refuse(std::strerror(errno));
  return out;
}

FileOut::FileOut(FileOut&& other) noexcept
    : path_(std::move(other.path_)),
      target_(std::move(other.target_)),
      beside_(std::exchange(other.beside_, {})),
      file_(std::exchange(other.file_, -1)),
      buffer_(std::move(other.buffer_)),
      failure_(std::move(other.failure_)) {}

FileOut& FileOut::operator=(FileOut&& other) noexcept {
  if (this == &other) return *this;
  drop();
  path_ = std::move(other.path_);
  target_ = std::move(other.target_);
  beside_ = std::exchange(other.beside_, {});
  file_ = std::exchange(other.file_, -1);
  buffer_ = std::move(other.buffer_);
  failure_ = std::move(other.failure_);
  return *this;
}

FileOut::~FileOut() { drop(); }

void FileOut::drop() {
  if (const int file = std::exchange(file_, -1); file >= 0) close(file);
  if (!beside_.empty()) unlink(beside_.c_str());
  beside_.clear();
}

Status FileOut::failed(const char* what, int error) {
  failure_ = Status(Code::kIo, fmt::format("{}: {} ({}){}", path_, what, std::strerror(error),
                                           beside_.empty() ? "" : "; the file is as it was before"));
  drop();
  return failure_;
}

Status FileOut::flush() {
  for (std::size_t done = 0; done < buffer_.size();) {
    const ssize_t wrote = ::write(file_, buffer_.data() + done, buffer_.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return failed("cannot be written", wrote == 0 ? EIO : errno);
    done += static_cast<std::size_t>(wrote);
  }
  buffer_.clear();
  return {};
}

Status FileOut::write(std::span<const std::byte> bytes) {
  if (!failure_.ok()) return failure_;
  if (file_ < 0) return Status(Code::kInvalidArgument, path_ + ": is finished already");
  while (!bytes.empty()) {
    const std::size_t part = std::min(bytes.size(), kBufferBytes - buffer_.size());
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(part));
    bytes = bytes.subspan(part);
    if (buffer_.size() == kBufferBytes) FIRN_TRY(flush());
  }
  return {};
}

Status FileOut::finish() {
  if (!failure_.ok()) return failure_;
  if (file_ < 0) return Status(Code::kInvalidArgument, path_ + ": is finished already");
  FIRN_TRY(flush());
  // Before the rename: a machine that stops may otherwise leave the new name on an empty file. Pipes cannot be synced.
  if (!beside_.empty() && fsync(file_) != 0 && errno != EINVAL && errno != ENOTSUP)
    return failed("cannot be synced", errno);
  if (close(std::exchange(file_, -1)) != 0) return failed("cannot be closed", errno);
  if (beside_.empty()) return {};
  if (rename(beside_.c_str(), target_.c_str()) != 0) return failed("cannot be replaced", errno);
  beside_.clear();
  // The name, too. A folder that cannot be opened or synced keeps what it has sooner or later, as any other file's.
  if (const int folder = open(folder_of(target_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); folder >= 0) {
    fsync(folder);
    close(folder);
  }
  return {};
}

Status write_file(const std::string& path, std::span<const std::byte> bytes, Readers readers) {
  FIRN_ASSIGN(FileOut out, FileOut::create(path, readers));
  FIRN_TRY(out.write(bytes));
  return out.finish();
}

}  // namespace firn
