// The disk tier on a disk that fails: what the caller sees, that it is said once, and that nothing wrong is served
// before, during or after. Errors come from a file system in memory that does as it is told.
#include <atomic>
#include <condition_variable>
#include <mutex>

#include "tests/storage/tier/disk_fixture.h"
#include "tests/storage/tier/memory_files.h"

namespace firn::disk {
namespace {

using Call = MemoryFiles::Call;

DiskTierOptions options_in_memory(std::uint64_t budget = 2 << 20) {
  DiskTierOptions options = test_options("tier", budget);
  options.readers = 1;
  return options;
}

// Stores until one is refused; how many were stored.
std::uint64_t fill(Tier& tier, std::uint64_t first, std::uint64_t most, Done& last) {
  for (std::uint64_t key = first; key < first + most; ++key) {
    last = put(tier, key, 50'000);
    if (!last.status.ok()) return key - first;
  }
  return most;
}

TEST(DiskFaults, AFullFileSystemCostsTheOldestFramesOnceAndThenWrites) {
  std::atomic<int> refusals{1};
  MemoryFiles files;
  Opened tier(options_in_memory(), files);
  Done last;
  ASSERT_EQ(fill(*tier, 0, 12, last), 12u);
  files.fault = [&](Call call, const std::string&) -> std::int64_t {
    return call == Call::kAllocate && refusals > 0 && refusals-- > 0 ? -ENOSPC : 0;
  };
  EXPECT_EQ(fill(*tier, 100, 8, last), 8u) << last.status.message() << ": one refusal is got over";
  EXPECT_EQ(tier->report().state, DiskState::kOn);
  EXPECT_GT(tier->report().dropped, 0u);
  for (std::uint64_t key = 100; key < 108; ++key) EXPECT_EQ(look(*tier, key, 50'000), Found::kRight);
  refusals = 1000;
  testing::internal::CaptureStderr();
  fill(*tier, 200, 30, last);
  EXPECT_EQ(last.status.code(), Code::kUnavailable);
  EXPECT_EQ(put(*tier, 300, 1000).status.code(), Code::kUnavailable);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
  EXPECT_NE(said.find("read-only"), std::string::npos) << said;
  EXPECT_NE(said.find("No space left"), std::string::npos) << said;
  EXPECT_EQ(tier->report().state, DiskState::kReadOnly);
  EXPECT_EQ(look(*tier, 107, 50'000), Found::kRight) << "what is there is still read";
  EXPECT_TRUE(tier->verify().ok()) << tier->verify().message();
}

TEST(DiskFaults, AWriteOrASyncThatFailsIsTriedInANewSegmentAndAcknowledgedFramesStay) {
  for (const Call failing : {Call::kWrite, Call::kSync}) {
    std::atomic<int> failures{1};
    MemoryFiles files;
    Opened tier(options_in_memory(), files);
    for (std::uint64_t key = 0; key < 3; ++key) ASSERT_TRUE(put(*tier, key, 20'000).status.ok());
    files.fault = [&](Call call, const std::string&) -> std::int64_t {
      return call == failing && failures > 0 && failures-- > 0 ? -EIO : 0;
    };
    EXPECT_TRUE(put(*tier, 3, 20'000).status.ok());
    EXPECT_EQ(tier->report().state, DiskState::kOn);
    failures = 1000;
    testing::internal::CaptureStderr();
    EXPECT_FALSE(put(*tier, 4, 20'000).status.ok());
    EXPECT_FALSE(put(*tier, 5, 20'000).status.ok());
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
    EXPECT_EQ(tier->report().state, DiskState::kReadOnly);
    for (std::uint64_t key = 0; key < 4; ++key) EXPECT_EQ(look(*tier, key, 20'000), Found::kRight) << key;
    EXPECT_EQ(look(*tier, 4, 20'000), Found::kNo) << "what was not acknowledged is not found";
    tier.tier.reset();
    files.fault = nullptr;
    Opened again(options_in_memory(), files);
    for (std::uint64_t key = 0; key < 4; ++key) EXPECT_EQ(look(*again, key, 20'000), Found::kRight) << key;
  }
}

TEST(DiskFaults, ShortReadsAndWritesAreGoneOnWith) {
  MemoryFiles files;
  files.fault = [](Call call, const std::string& path) -> std::int64_t {
    return (call == Call::kRead || call == Call::kWrite) && path.ends_with(".seg") ? 5000 : 0;
  };
  Opened tier(options_in_memory(), files);
  for (std::uint64_t key = 0; key < 5; ++key) ASSERT_TRUE(put(*tier, key, 30'000 + key).status.ok());
  for (std::uint64_t key = 0; key < 5; ++key) EXPECT_EQ(look(*tier, key, 30'000 + key), Found::kRight);
  tier.tier.reset();
  Opened again(options_in_memory(), files);
  for (std::uint64_t key = 0; key < 5; ++key) EXPECT_EQ(look(*again, key, 30'000 + key), Found::kRight);
}

TEST(DiskFaults, AReadThatFailsIsAFailureAndMayWorkLater) {
  std::atomic<bool> failing{true};
  MemoryFiles files;
  Opened tier(options_in_memory(), files);
  ASSERT_TRUE(put(*tier, 1, 20'000).status.ok());
  files.fault = [&](Call call, const std::string&) -> std::int64_t {
    return call == Call::kRead && failing ? -EIO : 0;
  };
  EXPECT_EQ(look(*tier, 1, 20'000), Found::kFailed);
  failing = false;
  EXPECT_EQ(look(*tier, 1, 20'000), Found::kRight);
  failing = true;
  testing::internal::CaptureStderr();
  for (int i = 0; i < 10; ++i) look(*tier, 1, 20'000);
  testing::internal::GetCapturedStderr();
  EXPECT_EQ(tier->report().state, DiskState::kOff) << "nothing has been read for a while";
  EXPECT_EQ(look(*tier, 1, 20'000), Found::kNo);
  EXPECT_EQ(put(*tier, 2, 1000).status.code(), Code::kUnavailable);
  EXPECT_TRUE(tier->verify().ok()) << tier->verify().message();
}

TEST(DiskFaults, AVanishedDirectoryTurnsItOffAndNothingIsAcknowledgedInto) {
  MemoryFiles files;
  Opened tier(options_in_memory(), files);
  ASSERT_TRUE(put(*tier, 1, 20'000).status.ok());
  files.vanish();
  testing::internal::CaptureStderr();
  EXPECT_FALSE(put(*tier, 2, 20'000).status.ok());
  EXPECT_FALSE(put(*tier, 3, 20'000).status.ok());
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
  EXPECT_NE(said.find("vanished"), std::string::npos) << said;
  EXPECT_EQ(tier->report().state, DiskState::kOff);
  EXPECT_NE(look(*tier, 1, 20'000), Found::kWrong);
}

TEST(DiskFaults, AReadOnlyFileSystemIsReadOnly) {
  MemoryFiles files;
  {
    Opened tier(options_in_memory(), files);
    ASSERT_TRUE(put(*tier, 1, 20'000).status.ok());
  }
  Opened tier(options_in_memory(), files);
  files.fault = [](Call call, const std::string&) -> std::int64_t { return call == Call::kCreate ? -EROFS : 0; };
  testing::internal::CaptureStderr();
  EXPECT_EQ(put(*tier, 2, 20'000).status.code(), Code::kUnavailable);
  EXPECT_NE(testing::internal::GetCapturedStderr().find("Read-only file system"), std::string::npos);
  EXPECT_EQ(look(*tier, 1, 20'000), Found::kRight);
}

// A disk that hangs: ops end on their deadline, and what comes later touches nobody's memory.
TEST(DiskFaults, OpsEndOnTimeWhileTheDiskHangs) {
  std::mutex mutex;
  std::condition_variable changed;
  bool hangs = false;
  MemoryFiles files;
  Opened tier(options_in_memory(), files);
  ASSERT_TRUE(put(*tier, 1, 20'000).status.ok());
  hangs = true;
  files.fault = [&](Call call, const std::string&) -> std::int64_t {
    std::unique_lock lock(mutex);
    if (call == Call::kRead || call == Call::kWrite) changed.wait(lock, [&] { return !hangs; });
    return 0;
  };
  auto room = std::make_unique<Bytes>(20'000, std::byte{0x5a});
  auto frame = std::make_unique<Bytes>(content(2, 20'000));
  Op batch[] = {get_op(1, *room), put_op(2, *frame)};
  for (Op& op : batch) op.deadline_ns = 20'000'000;
  for (const Done& done : run(*tier, batch)) EXPECT_EQ(done.status.code(), Code::kUnavailable) << done.status.message();
  EXPECT_EQ(*room, Bytes(20'000, std::byte{0x5a}));
  room.reset();
  frame.reset();  // both are the caller's again: a sanitizer sees who touches them
  {
    std::lock_guard lock(mutex);
    hangs = false;
  }
  changed.notify_all();
  EXPECT_EQ(look(*tier, 1, 20'000), Found::kRight);
  EXPECT_NE(look(*tier, 2, 20'000), Found::kWrong);
}

TEST(DiskFaults, WritesOnTheSecondUseAndNoMoreThanADaysShare) {
  MemoryFiles files;
  DiskTierOptions options = options_in_memory();
  options.admit_second_use = true;
  {
    Opened tier(options, files);
    EXPECT_EQ(put(*tier, 1, 1000).status.code(), Code::kUnavailable);
    EXPECT_TRUE(put(*tier, 1, 1000).status.ok());
    EXPECT_EQ(look(*tier, 1, 1000), Found::kRight);
    EXPECT_EQ(tier->report().filtered, 1u);
  }
  options.admit_second_use = false;
  options.daily_write_bytes = 100'000;
  Opened tier(options, files);
  Done last;
  EXPECT_EQ(fill(*tier, 10, 5, last), 1u);
  EXPECT_EQ(last.status.code(), Code::kUnavailable);
  EXPECT_EQ(tier->report().over_daily, 1u);
}

}  // namespace
}  // namespace firn::disk
