// disk_fixture.h: directories and tiers for tests of the disk tier, and frames whose bytes follow from their key.
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "storage/tier/disk/disk_tier.h"
#include "storage/tier/disk/format.h"
#include "tests/storage/tier/frames.h"

namespace firn::disk {

using conformance::Bytes;
using conformance::content;
using conformance::get_op;
using conformance::key_of;
using conformance::plain_op;
using conformance::put_op;

// Where tests put their directories. FIRN_DISK_DIR says where; else in memory, where there is such a file system, since
// a busy disk takes milliseconds a sync and these tests sync a lot. What a real disk does is asked by few of them.
inline std::string test_root(bool real_disk) {
  if (const char* wish = std::getenv("FIRN_DISK_DIR"); wish != nullptr) return wish;
  return !real_disk && ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : testing::TempDir();
}

inline constexpr std::int64_t kPatience = 30'000'000'000;  // ns; a hang becomes a failure, a slow machine does not

class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(bool real_disk = false) {
    std::string name = test_root(real_disk) + "/firn_disk_XXXXXX";
    path_ = ::mkdtemp(name.data());
  }
  ~TemporaryDirectory() {
    std::error_code error;
    std::filesystem::permissions(path_, std::filesystem::perms::owner_all, error);
    std::filesystem::remove_all(path_, error);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  std::string path(const std::string& name = "tier") const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline DiskIdentity test_identity(std::uint8_t model = 1) {
  DiskIdentity identity;
  identity.digest.bytes[0] = model;
  identity.fields = {{"weights", model == 0 ? "unknown" : std::to_string(model)}, {"dtype", "f16"}};
  return identity;
}
inline DiskTierOptions test_options(const std::string& path, std::uint64_t budget = 4 << 20) {
  DiskTierOptions options;
  options.path = path;
  options.budget_bytes = budget;
  options.identity = test_identity();
  options.readers = 2;
  return options;
}

// A tier and its ledger.
struct Opened {
  std::unique_ptr<Ledger> ledger = std::make_unique<Ledger>(0, 1 << 30);
  std::unique_ptr<DiskTier> tier;
  Status status;

  explicit Opened(const DiskTierOptions& options, FileOps& files = system_files()) {
    Result<std::unique_ptr<DiskTier>> made = make_disk_tier(options, *ledger, files, [] {
      return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count();
    });
    if (made.ok())
      tier = std::move(*made);
    else
      status = made.status();
  }
  DiskTier& operator*() const { return *tier; }
  DiskTier* operator->() const { return tier.get(); }
};

inline std::vector<Done> run(Tier& tier, std::span<const Op> batch) {
  Result<Ticket> ticket = tier.submit(batch);
  EXPECT_TRUE(ticket.ok()) << ticket.status().message();
  if (!ticket.ok()) return std::vector<Done>(batch.size());
  Result<std::vector<Done>> done = tier.wait(*ticket, kPatience);
  EXPECT_TRUE(done.ok()) << done.status().message();
  return done.ok() ? std::move(*done) : std::vector<Done>(batch.size());
}
inline Done run(Tier& tier, const Op& op) { return run(tier, std::span(&op, 1)).front(); }
inline Done put(Tier& tier, std::uint64_t key, std::size_t bytes, std::uint64_t version = 0) {
  const Bytes frame = content(key, bytes, version);
  return run(tier, put_op(key, frame));
}
enum class Found { kNo, kRight, kWrong, kCorrupt, kFailed };
inline Found look(Tier& tier, std::uint64_t key, std::size_t bytes, std::uint64_t version = 0) {
  Bytes room(bytes);
  const Done done = run(tier, get_op(key, room));
  if (done.status.code() == Code::kCorrupt) return Found::kCorrupt;
  if (!done.status.ok()) return Found::kFailed;
  if (!done.found) return Found::kNo;
  return done.bytes == bytes && room == content(key, bytes, version) ? Found::kRight : Found::kWrong;
}
inline bool erase(Tier& tier, std::uint64_t key) { return run(tier, plain_op(Verb::kErase, key)).found; }

inline std::vector<std::string> segments_of(const std::string& path) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(path))
    if (entry.path().extension() == ".seg") names.push_back(entry.path());
  std::sort(names.begin(), names.end());
  return names;
}
inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
inline void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}
inline std::uint64_t disk_bytes(const std::string& path) {
  std::uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    struct stat info {};
    if (::stat(entry.path().c_str(), &info) == 0) bytes += static_cast<std::uint64_t>(info.st_blocks) * 512;
  }
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0) bytes += static_cast<std::uint64_t>(info.st_blocks) * 512;
  return bytes;
}

}  // namespace firn::disk
