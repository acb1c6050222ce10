// The disk tier and what becomes of it: reopened at any time, cut at every byte, flipped bit by bit, killed at random
// instants, on a disk that fails. Prints its seeds. FIRN_KILLS=n kills so many times instead of the suite's 20.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <map>
#include <random>
#include <set>

#include "tests/storage/tier/disk_fixture.h"
#include "tests/storage/tier/memory_files.h"

namespace firn::disk {
namespace {

TEST(DiskTier, FindsItsFramesAgainAndNothingElse) {
  TemporaryDirectory directory(/*real_disk=*/true);
  {
    Opened tier(test_options(directory.path()));
    ASSERT_NE(tier.tier, nullptr) << tier.status.message();
    for (std::uint64_t key = 0; key < 40; ++key) ASSERT_TRUE(put(*tier, key, 1 + key * 1000).status.ok());
    for (std::uint64_t key = 0; key < 40; key += 3) EXPECT_TRUE(erase(*tier, key));
  }
  Opened tier(test_options(directory.path()));
  ASSERT_NE(tier.tier, nullptr) << tier.status.message();
  EXPECT_EQ(tier->report().recovered, 26u);
  EXPECT_EQ(tier->report().torn + tier->report().quarantined, 0u);
  for (std::uint64_t key = 0; key < 40; ++key)
    EXPECT_EQ(look(*tier, key, 1 + key * 1000), key % 3 == 0 ? Found::kNo : Found::kRight) << key;
  EXPECT_TRUE(tier->verify().ok());
}

TEST(DiskTier, IsForItsOwnerAlone) {
  TemporaryDirectory directory;
  const mode_t before = ::umask(0);
  Opened tier(test_options(directory.path()));
  ASSERT_NE(tier.tier, nullptr);
  EXPECT_TRUE(put(*tier, 1, 1000).status.ok());
  ::umask(before);
  struct stat info {};
  ASSERT_EQ(::stat(directory.path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777u, 0700u);
  for (const auto& entry : std::filesystem::directory_iterator(directory.path())) {
    ASSERT_EQ(::stat(entry.path().c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777u, 0600u) << entry.path();
  }
}

TEST(DiskTier, HasOneWriterAndALockThatDiesWithIt) {
  TemporaryDirectory directory;
  std::unique_ptr<Opened> first = std::make_unique<Opened>(test_options(directory.path()));
  ASSERT_NE(first->tier, nullptr);
  const Opened second(test_options(directory.path()));
  EXPECT_EQ(second.status.code(), Code::kUnavailable);
  EXPECT_NE(second.status.message().find(std::to_string(::getpid())), std::string::npos) << second.status.message();
  first.reset();
  EXPECT_TRUE(std::filesystem::exists(directory.path() + "/lock")) << "what is left behind is no lock";
  const Opened third(test_options(directory.path()));
  EXPECT_NE(third.tier, nullptr) << third.status.message();
}

TEST(DiskTier, ServesNoOtherModelAndNamesTheField) {
  TemporaryDirectory directory;
  {
    Opened tier(test_options(directory.path()));
    ASSERT_TRUE(put(*tier, 1, 1000).status.ok());
  }
  DiskTierOptions options = test_options(directory.path());
  options.identity = test_identity(2);
  {
    testing::internal::CaptureStderr();
    Opened other(options);
    ASSERT_NE(other.tier, nullptr);
    EXPECT_EQ(look(*other, 1, 1000), Found::kNo);
    EXPECT_EQ(put(*other, 2, 1000).status.code(), Code::kUnavailable);
    EXPECT_EQ(other->report().state, DiskState::kOff);
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("weights is \"1\" there and \"2\" here"), std::string::npos) << said;
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1);
  }
  Opened again(test_options(directory.path()));
  EXPECT_EQ(look(*again, 1, 1000), Found::kRight) << "what another model cannot read it does not destroy";
}

TEST(DiskTier, KeepsNothingOfAModelThatItDoesNotKnow) {
  TemporaryDirectory directory;
  DiskTierOptions options = test_options(directory.path());
  options.identity = test_identity(0);
  {
    Opened tier(options);
    ASSERT_TRUE(put(*tier, 1, 1000).status.ok());
    EXPECT_EQ(look(*tier, 1, 1000), Found::kRight);
    EXPECT_TRUE(tier->report().session_only);
  }
  EXPECT_TRUE(segments_of(directory.path()).empty());
  Opened tier(options);
  EXPECT_EQ(look(*tier, 1, 1000), Found::kNo);
}

// A naive map beside it, and closing and opening among the operations.
TEST(DiskTier, AgreesWithAModelThatIsReopened) {
  for (const std::uint64_t seed : {1, 2}) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    MemoryFiles files;
    const DiskTierOptions options = test_options("tier", 3 << 20);
    std::mt19937_64 random(seed);
    std::map<std::uint64_t, std::size_t> there;
    auto tier = std::make_unique<Opened>(options, files);
    std::uint64_t full = 0, moved = 0;
    for (int step = 0; step < 600 && !HasFailure(); ++step) {
      const std::uint64_t key = random() % 150, dice = random() % 100;
      const std::size_t bytes = key % 5 == 0 ? 1 + key : 1 + key * 7919 % 90'000;
      if (dice < 55) {
        const Done done = put(**tier, key, bytes);
        if (done.status.ok()) {
          there[key] = bytes;
        } else {
          ASSERT_EQ(done.status.code(), Code::kNoSpace) << done.status.message();
          ++full;
        }
      } else if (dice < 80) {
        EXPECT_EQ(look(**tier, key, bytes), there.count(key) != 0 ? Found::kRight : Found::kNo) << "step " << step;
      } else if (dice < 97) {
        EXPECT_EQ(erase(**tier, key), there.erase(key) != 0) << "step " << step;
      } else {
        EXPECT_TRUE((*tier)->verify().ok()) << (*tier)->verify().message();
        EXPECT_EQ((*tier)->report().frames, there.size());
        EXPECT_LE((*tier)->report().peak_bytes, options.budget_bytes);
        moved += (*tier)->report().moved_bytes;
        tier.reset();
        tier = std::make_unique<Opened>(options, files);
        ASSERT_NE(tier->tier, nullptr) << tier->status.message();
        EXPECT_EQ((*tier)->report().recovered, there.size());
        for (const auto& [k, size] : there) look(**tier, k, size);  // ours, so nobody evicts them
      }
      ASSERT_LE(files.total_bytes(), options.budget_bytes) << "step " << step;
    }
    EXPECT_GT(full, 0u);
    EXPECT_GT(moved, 0u) << "nothing was cleaned";
  }
}

// Frames of an earlier process that nobody asked for make room for new ones; those that somebody asked for do not.
TEST(DiskTier, EvictsWhatNobodyOfThisProcessKnows) {
  TemporaryDirectory directory;
  const DiskTierOptions options = test_options(directory.path());
  std::uint64_t stored = 0;
  {
    Opened tier(options);
    while (put(*tier, stored, 50'000).status.ok()) ++stored;
    ASSERT_GT(stored, 30u);
  }
  Opened tier(options);
  for (std::uint64_t key = 0; key < stored; key += 2) EXPECT_TRUE(run(*tier, plain_op(Verb::kContains, key)).found);
  std::uint64_t more = 0;
  while (put(*tier, 1000 + more, 50'000).status.ok()) ++more;
  EXPECT_GE(more, stored / 2 - 2);
  EXPECT_GT(tier->report().evicted_unclaimed, 0u);
  EXPECT_EQ(tier->report().unclaimed, 0u);
  for (std::uint64_t key = 0; key < stored; key += 2) EXPECT_EQ(look(*tier, key, 50'000), Found::kRight) << key;
  for (std::uint64_t key = 0; key < more; ++key) EXPECT_EQ(look(*tier, 1000 + key, 50'000), Found::kRight) << key;
  EXPECT_TRUE(tier->verify().ok()) << tier->verify().message();
}

// A small log, written by a tier that closed it (sealed) or did not (as a kill leaves it). Its records share pages.
struct SmallLog {
  static constexpr std::size_t kSizes[] = {1, 300, 700, 5000, 512 - 128, 2000};
  MemoryFiles files;
  std::string segment, bytes;
  std::size_t end = 0;  // behind the last record

  explicit SmallLog(bool sealed) {
    Opened tier(options(), files);
    std::vector<Bytes> frames;
    std::vector<Op> batch;
    for (const std::size_t size : kSizes) frames.push_back(content(frames.size(), size));
    for (std::uint64_t key = 0; key < std::size(kSizes); ++key) batch.push_back(put_op(key, frames[key]));
    for (const Done& done : run(*tier, batch)) EXPECT_TRUE(done.status.ok()) << done.status.message();
    segment = files.paths(".seg").front();
    if (!sealed) bytes = files.bytes(segment);
    tier.tier.reset();
    if (sealed) bytes = files.bytes(segment);
    for (end = bytes.size() - (sealed ? kPageBytes : 0); bytes[end - 1] == 0;) --end;
  }
  static DiskTierOptions options() {
    DiskTierOptions options = test_options("tier", 1 << 20);
    options.segment_bytes = 64 << 10;
    options.readers = 1;
    return options;
  }
  // What a tier finds in a segment of these bytes: the frames that came back right. Wrong ones fail the test.
  std::vector<bool> found(const std::string& changed) {
    files.set_bytes(segment, changed);
    Opened tier(options(), files);
    EXPECT_NE(tier.tier, nullptr) << tier.status.message();
    std::vector<bool> right;
    for (std::uint64_t key = 0; key < std::size(kSizes); ++key) {
      const Found answer = look(*tier, key, kSizes[key]);
      EXPECT_TRUE(answer == Found::kRight || answer == Found::kNo || answer == Found::kCorrupt);
      right.push_back(answer == Found::kRight);
    }
    EXPECT_TRUE(tier->verify().ok()) << tier->verify().message();
    tier.tier.reset();
    for (const std::string& path : files.paths(".seg")) files.remove(path);
    return right;
  }
};

TEST(DiskTier, GivesBackWholeFramesOfALogThatWasCutAnywhere) {
  for (const bool sealed : {false, true}) {
    SmallLog log(sealed);
    ASSERT_GT(log.end, 12'000u);
    std::size_t before = 0;
    for (std::size_t cut = 0; cut <= log.end + 600 && !testing::Test::HasFailure(); ++cut) {
      // Every byte of the first record and around the ends of pages and granules; then every 37th.
      const bool close = cut >= kPageBytes && cut < kPageBytes + 1100;
      if (!close && cut % 37 != 0 && cut % kGranuleBytes > 1 && cut % kGranuleBytes < 511) continue;
      const std::vector<bool> found = log.found(log.bytes.substr(0, cut));
      const auto count = static_cast<std::size_t>(std::count(found.begin(), found.end(), true));
      EXPECT_TRUE(std::is_sorted(found.rbegin(), found.rend()))
          << "cut at " << cut << ": a frame is missing before the cut";
      EXPECT_GE(count, before) << "cut at " << cut;
      before = count;
    }
    EXPECT_EQ(before, std::size(SmallLog::kSizes));
  }
}

TEST(DiskTier, ServesNothingThatWasFlipped) {
  for (const bool sealed : {false, true}) {
    SmallLog log(sealed);
    std::mt19937_64 random(7);
    int lost = 0, tried = 0;
    const auto flip = [&](std::size_t at) {
      std::string changed = log.bytes;
      changed[at] = static_cast<char>(changed[at] ^ (1 << random() % 8));
      const std::vector<bool> found = log.found(changed);
      const auto missing = std::count(found.begin(), found.end(), false);
      if (at >= kSegmentHeaderBytes) {
        EXPECT_LE(missing, 1) << "flip at " << at << ": it cost more than its own frame";
      }
      if (at >= log.end) {
        EXPECT_EQ(missing, 0) << "flip at " << at << ", in the index: the records are still there";
      }
      lost += missing != 0;
      ++tried;
    };
    for (std::size_t at = 0; at < log.end; at += at % kGranuleBytes < 130 ? 7 : 97) flip(at);
    for (std::size_t at = log.bytes.size() - kPageBytes; at < log.bytes.size(); at += at % kPageBytes < 300 ? 7 : 397)
      flip(at);
    EXPECT_GT(lost, 20);
    EXPECT_GT(tried, 200);
  }
}

TEST(DiskTier, QuarantinesWhatIsDamagedUnderIt) {
  TemporaryDirectory directory;
  Opened tier(test_options(directory.path()));
  for (std::uint64_t key = 0; key < 3; ++key) ASSERT_TRUE(put(*tier, key, 50'000).status.ok());
  const std::string segment = segments_of(directory.path()).front();
  {
    const int file = ::open(segment.c_str(), O_RDWR);
    ASSERT_EQ(::pwrite(file, "x", 1, 4096 + 128 + 20'000), 1);
    ASSERT_EQ(::fsync(file), 0);
    ::close(file);
  }
  EXPECT_EQ(look(*tier, 0, 50'000), Found::kCorrupt);
  EXPECT_EQ(look(*tier, 0, 50'000), Found::kNo) << "said once, then a miss";
  EXPECT_EQ(look(*tier, 1, 50'000), Found::kRight);
  EXPECT_EQ(tier->report().quarantined, 1u);
  EXPECT_TRUE(put(*tier, 0, 50'000).status.ok()) << "the name is free again";
  EXPECT_EQ(look(*tier, 0, 50'000), Found::kRight);
  tier.tier.reset();
  Opened again(test_options(directory.path()));
  for (std::uint64_t key = 0; key < 3; ++key) EXPECT_EQ(look(*again, key, 50'000), Found::kRight) << key;
}

// A child writes and erases without end and says over a pipe what was acknowledged; it is killed whenever.
struct Said {
  char what = 0;  // p: put acknowledged; E: about to erase; e: erasure acknowledged
  std::uint64_t key = 0;
};
std::size_t killed_size(std::uint64_t key) { return 1 + key * 7919 % 200'000; }

[[noreturn]] void write_until_killed(const std::string& path, std::uint64_t seed, std::uint64_t first, int out) {
  Opened tier(test_options(path, 24 << 20));
  if (tier.tier == nullptr) ::_exit(3);
  const auto say = [&](char what, std::uint64_t key) {
    const Said said{what, key};
    if (::write(out, &said, sizeof said) != sizeof said) ::_exit(4);
  };
  std::mt19937_64 random(seed);
  std::uint64_t oldest = first;
  for (std::uint64_t key = first;;) {
    std::vector<Bytes> frames;
    std::vector<Op> batch;
    const std::uint64_t start = key;
    for (std::uint64_t i = 1 + random() % 8; i > 0; --i, ++key) frames.push_back(content(key, killed_size(key)));
    for (std::uint64_t k = start; k < key; ++k) batch.push_back(put_op(k, frames[k - start]));
    const std::vector<Done> done = run(*tier, batch);
    for (const Done& entry : done)
      if (entry.status.ok()) say('p', start + entry.op);
    const bool full = std::any_of(done.begin(), done.end(), [](const Done& d) { return !d.status.ok(); });
    for (int i = 0; i < (full ? 12 : random() % 4 == 0 ? 1 : 0) && oldest < start; ++i) {
      const std::uint64_t gone = random() % 3 != 0 ? oldest++ : oldest + random() % (start - oldest);
      say('E', gone);
      run(*tier, plain_op(Verb::kErase, gone));
      say('e', gone);
    }
  }
}

TEST(DiskTier, FindsEveryAcknowledgedFrameAfterAKillAtAnyInstant) {
  const char* wish = std::getenv("FIRN_KILLS");
  const int kills = wish != nullptr ? std::atoi(wish) : 20;
  const std::uint64_t seed = 20261201;
  std::printf("seed %llu, %d kills\n", static_cast<unsigned long long>(seed), kills);
  std::mt19937_64 random(seed);
  TemporaryDirectory directory;
  std::map<std::uint64_t, bool> there;  // acknowledged keys; false: about to be erased, may be gone or not
  std::set<std::uint64_t> gone;
  std::uint64_t next = 0, checked = 0, written = 0, torn = 0, kill_us = 0;
  for (int kill = 0; kill < kills && !HasFailure(); ++kill) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::close(ends[0]);
      write_until_killed(directory.path(), random() + static_cast<std::uint64_t>(kill), next, ends[1]);
    }
    ::close(ends[1]);
    const useconds_t wait_us = 5'000 + static_cast<useconds_t>(random() % 120'000);
    ::usleep(wait_us);
    kill_us += wait_us;
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself: " << WEXITSTATUS(status);
    Said said;
    while (::read(ends[0], &said, sizeof said) == static_cast<ssize_t>(sizeof said)) {
      if (said.what == 'p')
        there[said.key] = true, written += killed_size(said.key), gone.erase(said.key);
      else if (said.what == 'E' && there.count(said.key) != 0)
        there[said.key] = false;
      else if (said.what == 'e')
        there.erase(said.key), gone.insert(said.key);
      next = std::max(next, said.key + 1);
    }
    ::close(ends[0]);
    next += 8;  // a batch that was under way may be there, unacknowledged

    Opened tier(test_options(directory.path(), 24 << 20));
    ASSERT_NE(tier.tier, nullptr) << tier.status.message();
    ASSERT_EQ(tier->report().state, DiskState::kOn) << tier->report().reason;
    torn += tier->report().torn;
    EXPECT_LE(disk_bytes(directory.path()), 24u << 20);
    for (const auto& [key, sure] : there) {
      const Found found = look(*tier, key, killed_size(key));
      EXPECT_TRUE(found == Found::kRight || (!sure && found == Found::kNo))
          << "kill " << kill << ", key " << key << ": " << static_cast<int>(found);
      ++checked;
    }
    for (const std::uint64_t key : gone) EXPECT_EQ(look(*tier, key, killed_size(key)), Found::kNo) << "kill " << kill;
    EXPECT_EQ(tier->report().quarantined, 0u);
    EXPECT_TRUE(tier->verify().ok()) << tier->verify().message();
    for (std::uint64_t key = 0; key < next; ++key) erase(*tier, key);  // the next child starts with room
    there.clear();
    gone.clear();
  }
  std::printf("%llu frames checked, %.1f MB acknowledged in %.2f s of children, %llu torn tails\n",
              static_cast<unsigned long long>(checked), static_cast<double>(written) / 1e6,
              static_cast<double>(kill_us) / 1e6, static_cast<unsigned long long>(torn));
}

}  // namespace
}  // namespace firn::disk
