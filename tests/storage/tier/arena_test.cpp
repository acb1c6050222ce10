// Arena: against a naive model under seeded random operations, and its utilisation on the workloads it was chosen for.
#include "storage/tier/arena.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace firn {
namespace {

constexpr std::uint64_t kGranule = Arena::kGranuleBytes;
std::uint64_t rounded(std::uint64_t bytes) { return (bytes + kGranule - 1) / kGranule * kGranule; }

struct OwnedArena {
  OwnedArena(std::uint64_t bytes, std::uint32_t max_blobs)
      : tables(Arena::table_bytes(max_blobs)), arena(bytes, max_blobs, tables) {}
  std::vector<std::byte> tables;
  Arena arena;
};

// Blobs by offset. What is not a blob is free: holes are computed, never kept.
class Model {
 public:
  explicit Model(std::uint64_t bytes) : end_(bytes) {}
  bool add(std::uint64_t offset, std::uint64_t bytes) {  // false: overlaps, or leaves the arena
    const auto next = blobs_.lower_bound(offset);
    if (next != blobs_.end() && offset + bytes > next->first) return false;
    if (next != blobs_.begin() && std::prev(next)->first + std::prev(next)->second > offset) return false;
    if (offset + bytes > end_) return false;
    used_ += bytes;
    return blobs_.emplace(offset, bytes).second;
  }
  void remove(std::uint64_t offset) {
    used_ -= blobs_.at(offset);
    blobs_.erase(offset);
  }
  std::vector<std::uint64_t> holes() const {
    std::vector<std::uint64_t> sizes;
    std::uint64_t at = 0;
    for (const auto& [offset, bytes] : blobs_) {
      if (offset > at) sizes.push_back(offset - at);
      at = offset + bytes;
    }
    if (end_ > at) sizes.push_back(end_ - at);
    return sizes;
  }
  std::uint64_t used() const { return used_; }

 private:
  std::uint64_t end_, used_ = 0;
  std::map<std::uint64_t, std::uint64_t> blobs_;
};

std::uint64_t random_size(std::mt19937_64& random, std::uint64_t capacity) {
  switch (random() % 8) {
    case 0:
      return 1 + random() % kGranule;
    case 1:
      return 1 + random() % (capacity / 8);
    case 2:
      return kGranule * (1 + random() % 40);
    default:
      return 1 + random() % (capacity / 128);
  }
}

class RandomOperations : public testing::TestWithParam<std::uint64_t> {};

TEST_P(RandomOperations, NeverOverlapAndAlwaysCoalesce) {
  SCOPED_TRACE("seed " + std::to_string(GetParam()));
  std::mt19937_64 random(GetParam());
  constexpr std::uint64_t kCapacity = 1 << 20;
  const std::uint32_t max_blobs = GetParam() % 2 == 0 ? 300 : 20000;  // with and without running out of records
  OwnedArena owned(kCapacity, max_blobs);
  Arena& arena = owned.arena;
  Model model(kCapacity);
  struct Live {
    BlobHandle handle;
    std::uint64_t offset;
  };
  std::vector<Live> live;
  std::vector<BlobHandle> stale;
  for (int op = 0; op < 60000; ++op) {
    // Phases of growth and of decay, so that both a full and an empty arena are seen.
    const bool grow = random() % 100 < ((op / 5000) % 2 == 0 ? 65u : 40u);
    if (grow) {
      const std::uint64_t bytes = random_size(random, kCapacity);
      const std::uint64_t promised = arena.largest_free_bytes();
      const BlobHandle handle = arena.allocate(bytes);
      if (handle == BlobHandle::kNone) {
        ASSERT_LT(promised, rounded(bytes)) << "op " << op << ": less was granted than promised";
        if (live.size() < max_blobs) {  // a refusal for want of a hole: no hole is a bin (1/32) larger
          for (const std::uint64_t hole : model.holes())
            ASSERT_LT(hole, rounded(bytes) + rounded(bytes) / 32 + kGranule);
        }
        continue;
      }
      const auto blob = arena.find(handle);
      ASSERT_TRUE(blob.has_value());
      ASSERT_EQ(blob->bytes, rounded(bytes));
      ASSERT_TRUE(model.add(blob->offset, blob->bytes)) << "op " << op << ": overlap";
      live.push_back({handle, blob->offset});
    } else if (!live.empty()) {
      const std::size_t at = random() % live.size();
      if (random() % 4 == 0) {
        const std::uint64_t before = arena.find(live[at].handle)->bytes, bytes = 1 + random() % before;
        arena.shrink(live[at].handle, bytes);
        model.remove(live[at].offset);
        ASSERT_TRUE(model.add(live[at].offset, rounded(bytes)));
        ASSERT_EQ(arena.find(live[at].handle)->bytes, rounded(bytes));
        ASSERT_EQ(arena.find(live[at].handle)->offset, live[at].offset) << "shrink moved a blob";
      } else {
        arena.free(live[at].handle);
        model.remove(live[at].offset);
        stale.push_back(live[at].handle);
        live[at] = live.back();
        live.pop_back();
      }
    }
    ASSERT_EQ(arena.used_bytes(), model.used()) << "op " << op;
    ASSERT_EQ(arena.blob_count(), live.size());
    if (op % 500 == 0) {
      const std::vector<std::uint64_t> holes = model.holes();  // of the model: maximal, so equality means coalesced
      ASSERT_EQ(arena.hole_count(), holes.size()) << "op " << op;
      const std::uint64_t largest =
          holes.empty() || live.size() == max_blobs ? 0 : *std::max_element(holes.begin(), holes.end());
      ASSERT_LE(arena.largest_free_bytes(), largest);
      ASSERT_GE(arena.largest_free_bytes(), largest - largest / 32);
      const Status status = arena.verify();
      ASSERT_TRUE(status.ok()) << "op " << op << ": " << status.message();
    }
  }
  for (const BlobHandle handle : stale)
    ASSERT_FALSE(arena.find(handle).has_value()) << "a freed handle came back to life";
  for (const Live& blob : live) arena.free(blob.handle);
  EXPECT_EQ(arena.largest_free_bytes(), kCapacity) << "everything freed, but not one hole";
  EXPECT_EQ(arena.hole_count(), 1u);
  EXPECT_TRUE(arena.verify().ok());
}
INSTANTIATE_TEST_SUITE_P(Seeds, RandomOperations, testing::Range<std::uint64_t>(1, 7));  // 360,000 operations

TEST(Arena, GrantsWhatItPromisesInEveryState) {
  std::mt19937_64 random(5);
  OwnedArena owned(1 << 20, 4000);
  std::vector<BlobHandle> live;
  for (int round = 0; round < 3000; ++round) {
    const std::uint64_t promised = owned.arena.largest_free_bytes();
    if (promised > 0) {
      const BlobHandle whole = owned.arena.allocate(promised);
      ASSERT_NE(whole, BlobHandle::kNone) << "round " << round << ", " << promised << " bytes";
      owned.arena.free(whole);
    }
    const BlobHandle handle = owned.arena.allocate(random_size(random, 1 << 16));
    if (handle != BlobHandle::kNone) live.push_back(handle);
    if (handle == BlobHandle::kNone || random() % 3 == 0) {
      const std::size_t at = random() % live.size();
      owned.arena.free(live[at]);
      live[at] = live.back();
      live.pop_back();
    }
  }
}

TEST(Arena, TakesTheWholeAndRefusesMore) {
  OwnedArena owned(10 * kGranule + 63, 10);  // what is no whole granule is not used
  EXPECT_EQ(owned.arena.capacity_bytes(), 10 * kGranule);
  EXPECT_EQ(owned.arena.allocate(0), BlobHandle::kNone);
  EXPECT_EQ(owned.arena.allocate(10 * kGranule + 1), BlobHandle::kNone);
  EXPECT_EQ(owned.arena.allocate(~std::uint64_t{0}), BlobHandle::kNone);
  const BlobHandle whole = owned.arena.allocate(9 * kGranule + 1);
  ASSERT_NE(whole, BlobHandle::kNone);
  EXPECT_EQ(owned.arena.largest_free_bytes(), 0u);
  EXPECT_EQ(owned.arena.allocate(1), BlobHandle::kNone);
  owned.arena.free(whole);
  EXPECT_EQ(owned.arena.largest_free_bytes(), 10 * kGranule);
}

TEST(Arena, RefusesMoreBlobsThanItsTablesHold) {
  OwnedArena owned(1 << 16, 3);
  const BlobHandle a = owned.arena.allocate(1), b = owned.arena.allocate(1), c = owned.arena.allocate(1);
  EXPECT_EQ(owned.arena.allocate(1), BlobHandle::kNone);
  EXPECT_EQ(owned.arena.largest_free_bytes(), 0u) << "a promise that allocate would not keep";
  owned.arena.free(b);
  EXPECT_NE(owned.arena.allocate(1), BlobHandle::kNone);
  EXPECT_TRUE(owned.arena.find(a).has_value() && owned.arena.find(c).has_value());
  EXPECT_TRUE(owned.arena.verify().ok());
}

TEST(Arena, HoldsTheLargestSizes) {
  OwnedArena owned(Arena::kMaxBytes, 8);  // offsets only: no memory behind it
  const BlobHandle most = owned.arena.allocate(Arena::kMaxBytes - kGranule);
  ASSERT_NE(most, BlobHandle::kNone);
  const BlobHandle last = owned.arena.allocate(1);
  ASSERT_NE(last, BlobHandle::kNone);
  EXPECT_EQ(owned.arena.find(last)->offset, Arena::kMaxBytes - kGranule);
  owned.arena.free(most);
  owned.arena.free(last);
  EXPECT_NE(owned.arena.allocate(Arena::kMaxBytes), BlobHandle::kNone);
  EXPECT_TRUE(owned.arena.verify().ok());
}

TEST(Arena, KnowsStaleHandles) {
  OwnedArena owned(1 << 16, 16);
  const BlobHandle first = owned.arena.allocate(100);
  owned.arena.free(first);
  const BlobHandle second = owned.arena.allocate(100);  // same record, same place, another generation
  EXPECT_NE(first, second);
  EXPECT_FALSE(owned.arena.find(first).has_value());
  EXPECT_FALSE(owned.arena.find(BlobHandle::kNone).has_value());
  EXPECT_FALSE(owned.arena.find(static_cast<BlobHandle>(std::uint64_t{1} << 32)).has_value()) << "record 0 is no blob";
  EXPECT_FALSE(owned.arena.find(static_cast<BlobHandle>(~std::uint64_t{0})).has_value());
  EXPECT_DEATH(owned.arena.free(first), "find");
  EXPECT_DEATH(owned.arena.shrink(first, 1), "find");
}

TEST(Arena, NoticesEveryDamageToItsRing) {
  OwnedArena owned(1 << 16, 64);
  std::vector<BlobHandle> live;
  for (int i = 0; i < 40; ++i) live.push_back(owned.arena.allocate(64 + 40 * i));
  for (int i = 0; i < 40; i += 2)
    owned.arena.free(live[i]);  // a border between two blobs is known to their owners only
  ASSERT_TRUE(owned.arena.verify().ok());
  // Behind the bins: records of six words; offset, previous, next, generation (its lowest bit says blob or hole).
  auto* words = reinterpret_cast<std::uint32_t*>(owned.tables.data()) + 28 * 32;
  for (std::uint32_t record = 1; record <= 40; ++record) {
    for (std::uint32_t field = 0; field < 4; ++field) {
      std::uint32_t& word = words[record * 6 + field];
      word ^= 1;
      EXPECT_FALSE(owned.arena.verify().ok()) << "record " << record << " field " << field;
      word ^= 1;
    }
  }
  for (std::uint32_t bin = 0; bin < 28 * 32; ++bin) {
    std::uint32_t& head = reinterpret_cast<std::uint32_t*>(owned.tables.data())[bin];
    const std::uint32_t kept = head;
    head = kept == 0 ? 1 : 0;
    EXPECT_FALSE(owned.arena.verify().ok()) << "bin " << bin;
    head = kept;
  }
  EXPECT_TRUE(owned.arena.verify().ok());
}

// The five workloads of the note that chose this allocator: bytes live over arena bytes once full, random eviction
// until the next blob fits, 12 turnovers, mean over insertions.
struct Utilisation {
  double mean = 0, worst = 1;
};
using SizeOf = std::uint64_t (*)(std::mt19937_64&, double progress);

Utilisation turn_over(SizeOf size_of, std::uint64_t seed) {
  constexpr std::uint64_t kCapacity = 256 << 20;
  std::mt19937_64 random(seed);
  OwnedArena owned(kCapacity, 1 << 20);
  struct Live {
    BlobHandle handle;
    std::uint64_t bytes;
  };
  std::vector<Live> live;
  std::uint64_t payload = 0, inserted = 0, samples = 0;
  Utilisation result;
  bool full = false;
  while (inserted < 12 * kCapacity) {
    const std::uint64_t bytes = size_of(random, static_cast<double>(inserted) / (12.0 * kCapacity));
    BlobHandle handle = owned.arena.allocate(bytes);
    while (handle == BlobHandle::kNone) {
      full = true;
      const std::size_t at = random() % live.size();
      owned.arena.free(live[at].handle);
      payload -= live[at].bytes;
      live[at] = live.back();
      live.pop_back();
      handle = owned.arena.allocate(bytes);
    }
    live.push_back({handle, bytes});
    payload += bytes;
    inserted += bytes;
    if (!full) continue;
    const double utilisation = static_cast<double>(payload) / static_cast<double>(kCapacity);
    result.mean += utilisation;
    result.worst = std::min(result.worst, utilisation);
    ++samples;
  }
  EXPECT_TRUE(owned.arena.verify().ok());
  result.mean /= static_cast<double>(samples);
  return result;
}

std::uint64_t log_normal(std::mt19937_64& random, double mean) {
  constexpr double kSigma = 0.35;
  std::lognormal_distribution<double> sizes(std::log(mean) - kSigma * kSigma / 2, kSigma);
  return static_cast<std::uint64_t>(std::clamp(sizes(random), 64.0, 1e6));
}

TEST(Arena, StaysFullOnTheWorkloadsItWasChosenFor) {
  struct Workload {
    const char* name;
    SizeOf size_of;
    double mean_at_least, worst_at_least;
  };
  const Workload workloads[] = {
      {"A log-normal 11 KiB", [](std::mt19937_64& r, double) { return log_normal(r, 11 * 1024); }, .93, .85},
      {"B step 16 to 6 KiB", [](std::mt19937_64& r, double at) { return log_normal(r, at < .5 ? 16384 : 6144); }, .93,
       .85},
      {"C step 6 to 16 KiB", [](std::mt19937_64& r, double at) { return log_normal(r, at < .5 ? 6144 : 16384); }, .93,
       .60},
      {"D 4 and 24 KiB", [](std::mt19937_64& r, double) { return std::uint64_t{r() % 10 < 7 ? 4096u : 24576u}; }, .93,
       .80},
      {"E log-normal 900 B", [](std::mt19937_64& r, double) { return log_normal(r, 900); }, .93, .85},
  };
  for (const Workload& workload : workloads) {
    const Utilisation got = turn_over(workload.size_of, 1);
    std::printf("%-20s mean %.3f worst %.3f\n", workload.name, got.mean, got.worst);
    EXPECT_GE(got.mean, workload.mean_at_least) << workload.name;
    EXPECT_GE(got.worst, workload.worst_at_least) << workload.name;
  }
}

}  // namespace
}  // namespace firn
