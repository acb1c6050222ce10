#include "storage/tier/disk/directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace firn::disk {
namespace {

constexpr std::string_view kFirstLine = "firn disk identity 1";
constexpr std::size_t kMaxIdentityBytes = 64 << 10;

Status io(const std::string& path, const char* what, int result) {
  return Status(Code::kIo, fmt::format("{}: {}: {}", path, what, std::strerror(-result)));
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

std::string checksum_line(const std::string& text) {
  return fmt::format("checksum {:016x}\n", XXH3_64bits(text.data(), text.size()));
}

// Values are for people and for one line each.
std::string printable(const std::string& value) {
  std::string out;
  for (const char c : value.substr(0, 1024)) out += c >= ' ' && c != 0x7f ? c : '?';
  return out;
}

}  // namespace

Result<DirectoryLock> DirectoryLock::take(FileOps& files, const std::string& directory) {
  DirectoryLock lock;
  const std::string path = directory + "/lock";
  lock.file_ = files.open(path, O_CREAT | O_RDWR, 0600);
  if (lock.file_ < 0) return io(path, "opening it", std::exchange(lock.file_, -1));
  lock.files_ = &files;
  const int result = files.lock(lock.file_);
  std::array<char, 32> holder{};
  if (result == -EWOULDBLOCK) {
    files.read(lock.file_, holder.data(), holder.size() - 1, 0);
    std::string who(holder.data());
    who.erase(std::find_if(who.begin(), who.end(), [](char c) { return c < '0' || c > '9'; }), who.end());
    return Status(Code::kUnavailable,
                  fmt::format("{} is in use by process {}; one process writes to a directory, give this one its own",
                              directory, who.empty() ? "?" : who));
  }
  if (result < 0) return io(path, "locking it", result);
  const std::string us = fmt::format("{}\n", ::getpid());
  files.truncate(lock.file_, 0);
  files.write(lock.file_, us.data(), us.size(), 0);  // for people; the lock holds without it
  return lock;
}

DirectoryLock::DirectoryLock(DirectoryLock&& other) noexcept
    : files_(std::exchange(other.files_, nullptr)), file_(std::exchange(other.file_, -1)) {}
DirectoryLock& DirectoryLock::operator=(DirectoryLock&& other) noexcept {
  std::swap(files_, other.files_);
  std::swap(file_, other.file_);
  return *this;
}
DirectoryLock::~DirectoryLock() {
  if (file_ >= 0) files_->close(file_);
}

std::string identity_text(const DiskIdentity& identity) {
  std::string text = fmt::format("{}\ndigest {}\n", kFirstLine, to_hex(identity.digest));
  for (const auto& [name, value] : identity.fields) text += fmt::format("{} {}\n", name, printable(value));
  return text + checksum_line(text);
}

std::string identity_difference(const std::string& theirs, const DiskIdentity& ours) {
  const std::vector<std::string> a = lines_of(theirs), b = lines_of(identity_text(ours));
  if (a.size() < 2 || a[1] == b[1]) return {};
  for (std::size_t i = 2; i + 1 < std::max(a.size(), b.size()); ++i) {
    const std::string left = i + 1 < a.size() ? a[i] : "", right = i + 1 < b.size() ? b[i] : "";
    if (left == right) continue;
    const std::string name = (right.empty() ? left : right).substr(0, (right.empty() ? left : right).find(' '));
    const auto value = [&](const std::string& line) {
      return line.rfind(name + " ", 0) == 0 ? line.substr(name.size() + 1) : std::string("(none)");
    };
    return fmt::format("{} is \"{}\" there and \"{}\" here", name, value(left), value(right));
  }
  return fmt::format("{} there and {} here", a[1], b[1]);
}

Result<Ownership> read_identity(FileOps& files, const std::string& directory, const DiskIdentity& ours) {
  const std::string path = directory + "/identity";
  const int file = files.open(path, O_RDONLY, 0);
  if (file == -ENOENT) return Ownership{};
  if (file < 0) return io(path, "opening it", file);
  std::string text(kMaxIdentityBytes, '\0');
  const std::int64_t got = files.read(file, text.data(), text.size(), 0);
  files.close(file);
  if (got < 0) return io(path, "reading it", static_cast<int>(got));
  text.resize(static_cast<std::size_t>(got));
  const std::size_t last = text.rfind("checksum ");
  if (last == std::string::npos || text.substr(last) != checksum_line(text.substr(0, last)))
    return Ownership{Owner::kDamaged, {}};
  if (text.rfind(std::string(kFirstLine) + "\n", 0) != 0)
    return Ownership{Owner::kAnother, "a newer version of firn wrote it"};
  const std::string difference = identity_difference(text, ours);
  return Ownership{difference.empty() ? Owner::kOurs : Owner::kAnother, difference};
}

Status write_identity(FileOps& files, const std::string& directory, const DiskIdentity& ours) {
  const std::string path = directory + "/identity", beside = path + ".new", text = identity_text(ours);
  files.remove(beside);
  const int file = files.open(beside, O_CREAT | O_EXCL | O_WRONLY, 0600);
  if (file < 0) return io(beside, "creating it", file);
  const std::int64_t put = files.write(file, text.data(), text.size(), 0);
  int result = put < 0 ? static_cast<int>(put) : put != static_cast<std::int64_t>(text.size()) ? -EIO : 0;
  if (result == 0) result = files.sync(file);
  files.close(file);
  if (result == 0) result = files.rename(beside, path);
  if (result == 0) result = files.sync_directory(directory);
  if (result == 0) return {};
  files.remove(beside);
  return io(path, "writing it", result);
}

}  // namespace firn::disk
