// directory.h: what a tier's directory has beside its segments: the lock that makes one writer, and the record of whose
// frames they are. Threads: one caller at a time.
#pragma once

#include <string>
#include <vector>

#include "firn/disk_tier.h"
#include "storage/tier/disk/file_ops.h"

namespace firn::disk {

// Held as long as it lives, and not a moment longer: the kernel lets go of it when a process dies, however it dies.
class DirectoryLock {
 public:
  static Result<DirectoryLock> take(FileOps& files, const std::string& directory);
  DirectoryLock() = default;
  DirectoryLock(DirectoryLock&& other) noexcept;
  DirectoryLock& operator=(DirectoryLock&& other) noexcept;
  ~DirectoryLock();

 private:
  FileOps* files_ = nullptr;
  int file_ = -1;
};

std::string identity_text(const DiskIdentity& identity);
// What differs between the record of a directory and ours: the field's name and both values. Empty: nothing.
std::string identity_difference(const std::string& theirs, const DiskIdentity& ours);

enum class Owner : std::uint8_t { kOurs, kNobody, kAnother, kDamaged };
struct Ownership {
  Owner owner = Owner::kNobody;
  std::string difference;  // of kAnother
};
// kIo: it is there and cannot be read.
Result<Ownership> read_identity(FileOps& files, const std::string& directory, const DiskIdentity& ours);
Status write_identity(FileOps& files, const std::string& directory, const DiskIdentity& ours);

}  // namespace firn::disk
