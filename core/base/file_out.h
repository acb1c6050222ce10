// file_out.h: an output that is there whole or not at all. What is written goes to a new file beside the target, which
// is synced and renamed over it at the end: a full disk, a kill or a failure half-way leaves the old file as it was.
// The file beside is made with a name nobody could have laid a link under (O_EXCL, O_NOFOLLOW) and is removed when the
// FileOut goes without finish(); after a kill -9 it stays, named NAME.new-XXXXXXXXXXXXXXXX.
//
// A target that is a link stays one: the file it leads to is replaced. What is no regular file (a pipe, /dev/stdout,
// /dev/null) is written straight, as it cannot be replaced.
// Errors: kInvalidArgument where the target cannot be made (its folder is not there, is read-only, is a folder itself),
// kIo where writing failed; both with the path and the system's reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "firn/status.h"

namespace firn {

// Who may read it. Files that hold keys, values, prompts or tokens are their owner's alone (0600); others are made as
// the umask says, and one that is replaced keeps its mode.
enum class Readers : std::uint8_t { kOwner, kAnyone };

class FileOut {
 public:
  static Result<FileOut> create(const std::string& path, Readers readers);
  FileOut(FileOut&& other) noexcept;
  FileOut& operator=(FileOut&& other) noexcept;
  ~FileOut();

  // Buffered. After a failure every later call returns it again, so that it is enough to look at finish().
  Status write(std::span<const std::byte> bytes);
  Status write(std::string_view text) { return write(std::as_bytes(std::span(text))); }
  // Syncs and renames; the target is the new file when this is ok, and the old one when it is not. Once.
  Status finish();

 private:
  FileOut() = default;
  Status flush();
  Status failed(const char* what, int error);
  void drop();

  std::string path_;    // as the caller named it, for people
  std::string target_;  // where its links lead
  std::string beside_;  // empty: written straight
  int file_ = -1;
  std::vector<std::byte> buffer_;
  Status failure_;
};

// All of it at once.
Status write_file(const std::string& path, std::span<const std::byte> bytes, Readers readers);
inline Status write_file(const std::string& path, std::string_view text, Readers readers) {
  return write_file(path, std::as_bytes(std::span(text)), readers);
}

}  // namespace firn
