// What is the host tier's own: its budget in the eyes of the kernel, its placement on nodes, and how creation fails.
#include "storage/tier/host_tier.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <map>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <thread>

#include "tests/storage/tier/fake_topology.h"

namespace firn {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;

FrameKey key_of(std::uint64_t n) { return {~n, n}; }

Status store(MemoryTier& tier, std::uint64_t key, std::size_t bytes) {
  FIRN_ASSIGN(MemoryTier::Reservation reservation, tier.reserve(bytes));
  std::fill(reservation.bytes().begin(), reservation.bytes().end(), static_cast<std::byte>(key));
  return tier.publish(std::move(reservation), key_of(key), bytes);
}

// Anonymous memory of this process, by the kernel's own count; 0: it does not say.
std::uint64_t resident_bytes() {
  std::ifstream rollup("/proc/self/smaps_rollup");
  for (std::string line; std::getline(rollup, line);)
    if (line.rfind("Anonymous:", 0) == 0) return std::stoull(line.substr(10)) * 1024;
  return 0;
}

// Resident bytes of every mapping that shares a page with the range.
std::uint64_t resident_bytes(std::uintptr_t begin, std::uintptr_t end) {
  std::ifstream smaps("/proc/self/smaps");
  std::uint64_t total = 0;
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    std::istringstream words(line);
    std::uintptr_t from = 0, to = 0;
    char dash = 0;
    if (line.find(':') > line.find('-') && words >> std::hex >> from >> dash >> to && dash == '-') {
      inside = from < end && to > begin;
    } else if (inside && line.rfind("Rss:", 0) == 0) {
      total += std::stoull(line.substr(4)) * 1024;
    }
  }
  return total;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kShadowed = true;  // the sanitizer's own memory grows with ours
#else
constexpr bool kShadowed = false;
#endif

TEST(HostTier, IsNeverResidentBeyondItsBudgetWhileFillingAndChurning) {
  constexpr std::uint64_t kBudget = 64 * kMiB;
  std::atomic<std::uint64_t> peak{0};
  const std::uint64_t before = resident_bytes();
  std::jthread sampler([&](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      peak = std::max(peak.load(), resident_bytes());
      std::this_thread::yield();
    }
  });
  {
    Ledger ledger(0, kBudget);
    Result<std::unique_ptr<HostTier>> made = HostTier::create({.budget_bytes = kBudget}, ledger);
    ASSERT_TRUE(made.ok()) << made.status().message();
    HostTier& tier = **made;
    const std::size_t whole = tier.capabilities().max_frame_bytes;
    std::uintptr_t begin = 0;
    {
      Result<MemoryTier::Reservation> everything = tier.reserve(whole);
      ASSERT_TRUE(everything.ok());
      begin = reinterpret_cast<std::uintptr_t>(everything->bytes().data());
    }
    EXPECT_EQ(begin % (2 * kMiB), 0u);
    std::mt19937_64 random(1);
    std::vector<std::uint64_t> live;
    std::uint64_t next = 0, written = 0;
    for (int checks = 0; written < 4 * kBudget;) {
      const std::size_t bytes = 20'000 + random() % 400'000;
      const Status status = store(tier, next, bytes);
      if (status.ok()) {
        live.push_back(next++);
        written += bytes;
      } else {
        ASSERT_EQ(status.code(), Code::kNoSpace);
        const std::size_t at = random() % live.size();
        ASSERT_TRUE(tier.erase(key_of(live[at])));
        live[at] = live.back();
        live.pop_back();
      }
      const Tier::Stats stats = tier.stats();
      ASSERT_LE(stats.resident_bytes + stats.metadata_bytes, kBudget);
      if (++checks % 100 != 0) continue;
      ASSERT_LE(resident_bytes(begin, begin + whole) + stats.metadata_bytes, kBudget * 102 / 100);
    }
    EXPECT_GE(resident_bytes(begin, begin + whole), kBudget * 90 / 100) << "the test never filled the tier";
    EXPECT_TRUE(tier.verify().ok());
    EXPECT_LE(ledger.peak(Budget::kHost), kBudget);
    std::printf("metadata %llu of %llu bytes\n", static_cast<unsigned long long>(tier.stats().metadata_bytes),
                static_cast<unsigned long long>(kBudget));
  }
  sampler.request_stop();
  sampler.join();
  std::printf("peak of the whole process: %.4f of the budget\n",
              static_cast<double>(peak - before) / static_cast<double>(kBudget));
  if (!kShadowed && before != 0) {
    EXPECT_LE(peak - before, kBudget * 102 / 100);
    EXPECT_LE(resident_bytes(), before + kBudget / 50) << "memory stayed behind";
  }
}

TEST(HostTier, ChargesTheLedgerBeforeAndRefundsAfter) {
  Ledger ledger(0, 16 * kMiB);
  {
    Result<std::unique_ptr<HostTier>> tier = HostTier::create({.budget_bytes = 16 * kMiB}, ledger);
    ASSERT_TRUE(tier.ok());
    const Tier::Stats stats = (*tier)->stats();
    EXPECT_EQ(ledger.spent(Account::kHostMetadata), stats.metadata_bytes);
    EXPECT_EQ(ledger.spent(Account::kHostFrames), (*tier)->capabilities().max_frame_bytes);
    EXPECT_GT(ledger.spent(Budget::kHost), 16 * kMiB - 8192) << "budget left unused";
    EXPECT_EQ(HostTier::create({.budget_bytes = kMiB}, ledger).status().code(), Code::kNoSpace);
  }
  EXPECT_EQ(ledger.spent(Budget::kHost), 0u);
  for (std::uint64_t countdown = 1; countdown <= 2; ++countdown) {
    ledger.fail_charge(countdown);
    EXPECT_EQ(HostTier::create({.budget_bytes = kMiB}, ledger).status().code(), Code::kNoSpace);
    EXPECT_EQ(ledger.spent(Budget::kHost), 0u);
  }
  EXPECT_TRUE(HostTier::create({.budget_bytes = kMiB}, ledger).ok());
}

TEST(HostTier, FitsTinyAndOddBudgetsOrSaysWhatItNeeds) {
  Ledger ledger(0, 1ull << 40);
  for (std::uint64_t bytes = 0; bytes < 300'000; bytes += 1777) {
    Result<std::unique_ptr<HostTier>> tier = HostTier::create({.budget_bytes = bytes}, ledger);
    EXPECT_LE(ledger.spent(Budget::kHost), bytes);
    if (tier.ok()) {
      EXPECT_TRUE(store(**tier, 1, 64).ok());
      EXPECT_TRUE((*tier)->verify().ok());
    } else {
      EXPECT_EQ(tier.status().code(), Code::kInvalidArgument);
      EXPECT_NE(tier.status().message().find("give at least"), std::string::npos) << tier.status().message();
      EXPECT_LT(bytes, 128'000u);
    }
  }
  EXPECT_EQ(HostTier::create({.budget_bytes = ~std::uint64_t{0}}, ledger).status().code(), Code::kInvalidArgument);
}

TEST(HostTier, RefusesMoreFramesThanItsTablesHold) {
  Ledger ledger(0, kMiB);
  Result<std::unique_ptr<HostTier>> tier = HostTier::create({.budget_bytes = kMiB, .max_frames = 10}, ledger);
  ASSERT_TRUE(tier.ok());
  for (std::uint64_t key = 0; key < 10; ++key) ASSERT_TRUE(store(**tier, key, 100).ok());
  const Status status = store(**tier, 10, 100);
  EXPECT_EQ(status.code(), Code::kNoSpace);
  EXPECT_NE(status.message().find("max_frames"), std::string::npos) << status.message();
  EXPECT_EQ((*tier)->stats().largest_free_bytes, 0u);
  EXPECT_TRUE((*tier)->erase(key_of(3)));
  EXPECT_TRUE(store(**tier, 10, 100).ok());
  EXPECT_TRUE((*tier)->verify().ok());
}

TEST(HostTier, StopsTheProgramWhenAHandOutlivesIt) {
  const auto die_with_a_pin = [] {
    Ledger ledger(0, kMiB);
    std::unique_ptr<HostTier> tier = std::move(HostTier::create({.budget_bytes = kMiB}, ledger)).value();
    EXPECT_TRUE(store(*tier, 1, 100).ok());
    const MemoryTier::Pin pin = tier->find(key_of(1));
    tier.reset();
  };
  const auto die_with_a_reservation = [] {
    Ledger ledger(0, kMiB);
    std::unique_ptr<HostTier> tier = std::move(HostTier::create({.budget_bytes = kMiB}, ledger)).value();
    const Result<MemoryTier::Reservation> reservation = tier->reserve(100);
    tier.reset();
  };
  EXPECT_DEATH(die_with_a_pin(), "pinned_bytes_ == 0");
  EXPECT_DEATH(die_with_a_reservation(), "in_use_ == published_");
}

#if defined(__SANITIZE_ADDRESS__)
TEST(HostTier, LetsTheSanitizerSeeStrayAccessesToAnArena) {
  const auto write_behind_a_frame = [] {
    Ledger ledger(0, kMiB);
    std::unique_ptr<HostTier> tier = std::move(HostTier::create({.budget_bytes = kMiB}, ledger)).value();
    const MemoryTier::Reservation reservation = tier->reserve(100).value();
    *(reservation.bytes().data() + 100) = std::byte{1};
  };
  const auto read_an_erased_frame = [] {
    Ledger ledger(0, kMiB);
    std::unique_ptr<HostTier> tier = std::move(HostTier::create({.budget_bytes = kMiB}, ledger)).value();
    EXPECT_TRUE(store(*tier, 1, 100).ok());
    const volatile std::byte* const stale = tier->find(key_of(1)).bytes().data();
    EXPECT_TRUE(tier->erase(key_of(1)));
    (void)*stale;
  };
  EXPECT_DEATH(write_behind_a_frame(), "use-after-poison");
  EXPECT_DEATH(read_an_erased_frame(), "use-after-poison");
}
#endif

// ---- Nodes

Result<std::unique_ptr<HostTier>> make(Topology& topology, Ledger& ledger, const std::string& placement,
                                       std::uint64_t budget = 8 * kMiB) {
  return make_host_tier({.budget_bytes = budget, .placement = placement}, ledger, topology);
}

TEST(HostTierPlacement, AsksForTheNodesOfEachPolicy) {
  struct Case {
    const char* placement;
    std::map<int, double> share;  // of the frames, by node
  };
  const Case cases[] = {
      {"local", {{2, 1}}},
      {"node:5", {{5, 1}}},
      {"interleave", {{0, 1. / 3}, {2, 1. / 3}, {5, 1. / 3}}},
      {"spread:1,2,1", {{0, .25}, {2, .5}, {5, .25}}},
      {"spread:3,1", {{0, .75}, {2, .25}}},  // weights that are not given are 0
      {"spread:0,0,7", {{5, 1}}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.placement);
    FakeTopology topology({0, 2, 5}, 2);
    Ledger ledger(0, 8 * kMiB);
    Result<std::unique_ptr<HostTier>> tier = make(topology, ledger, c.placement);
    ASSERT_TRUE(tier.ok()) << tier.status().message();
    std::map<int, double> asked;
    double total = 0;
    for (const FakeTopology::Request& request : topology.requests) {
      EXPECT_FALSE(request.touch);
      asked[request.node] += static_cast<double>(request.bytes);
      total += static_cast<double>(request.bytes);
    }
    ASSERT_EQ(asked.size(), c.share.size());
    for (const auto& [node, share] : c.share) EXPECT_NEAR(asked[node] / total, share, .01) << "node " << node;
    EXPECT_LE(ledger.spent(Budget::kHost), 8 * kMiB);
    for (const NodePlacement& part : (*tier)->placement()) {
      EXPECT_EQ(part.misplaced_pages, 0u);
      EXPECT_EQ(part.verified_pages, part.bytes / 4096);
      EXPECT_TRUE(part.note.empty());
    }
  }
}

TEST(HostTierPlacement, RefusesWhatItCannotDoAndListsWhatThereIs) {
  FakeTopology topology({0, 2, 5});
  Ledger ledger(0, 8 * kMiB);
  const auto message = [&](const char* placement) {
    const Status status = make(topology, ledger, placement).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << placement;
    return status.message();
  };
  EXPECT_NE(message("node:1").find("0, 2, 5"), std::string::npos);
  EXPECT_NE(message("node:").find("not a number"), std::string::npos);
  EXPECT_NE(message("node:-1").find("not a number"), std::string::npos);
  EXPECT_NE(message("node:99999999999999999999").find("not a number"), std::string::npos);
  EXPECT_NE(message("spread:1,2,3,4").find("4 weights"), std::string::npos);
  EXPECT_NE(message("spread:").find("not a number"), std::string::npos);
  EXPECT_NE(message("spread:1,,2").find("not a number"), std::string::npos);
  EXPECT_NE(message("spread:1,2x").find("2x"), std::string::npos);
  EXPECT_NE(message("spread:0,0,0").find("every weight is 0"), std::string::npos);
  EXPECT_NE(message("everywhere").find("local, node:N, interleave"), std::string::npos);
  EXPECT_NE(message("").find("local"), std::string::npos);
  EXPECT_TRUE(topology.requests.empty());
  EXPECT_EQ(ledger.spent(Budget::kHost), 0u);
}

TEST(HostTierPlacement, FillsArenasInProportionAndUsesAllOfThem) {
  FakeTopology topology({0, 1});
  Ledger ledger(0, 8 * kMiB);
  Result<std::unique_ptr<HostTier>> made = make(topology, ledger, "spread:1,3");
  ASSERT_TRUE(made.ok());
  HostTier& tier = **made;
  const std::vector<NodePlacement> parts = tier.placement();
  ASSERT_EQ(parts.size(), 2u);
  std::uint64_t key = 0, stored = 0;
  while (store(tier, key, 20'000).ok()) ++key, stored += 20'000;
  EXPECT_GT(static_cast<double>(stored), .99 * static_cast<double>(parts[0].bytes + parts[1].bytes - 2 * 20'032));
  // A frame that only the large arena can hold finds it although the small one is emptier.
  for (std::uint64_t k = 0; k < key; ++k) tier.erase(key_of(k));
  ASSERT_TRUE(store(tier, 1, parts[0].bytes / 2).ok());
  ASSERT_TRUE(store(tier, 2, parts[0].bytes / 2).ok());
  EXPECT_TRUE(store(tier, 3, parts[0].bytes + 4096).ok());
  EXPECT_TRUE(tier.verify().ok());
}

TEST(HostTierPlacement, WithoutPermissionTouchesFromTheNodeAndSaysSo) {
  FakeTopology topology({0, 1});
  topology.prefer_fails = Status(Code::kUnavailable, "mbind: Operation not permitted");
  topology.locate_fails = Status(Code::kUnavailable, "move_pages: Operation not permitted");
  Ledger ledger(0, 8 * kMiB);
  testing::internal::CaptureStderr();
  for (int i = 0; i < 2; ++i) {
    topology.requests.clear();
    Result<std::unique_ptr<HostTier>> tier = make(topology, ledger, "interleave");
    ASSERT_TRUE(tier.ok()) << tier.status().message();
    EXPECT_EQ(std::count_if(topology.requests.begin(), topology.requests.end(), [](auto& r) { return r.touch; }), 2);
    EXPECT_TRUE(store(**tier, 1, 1000).ok());
    for (const NodePlacement& part : (*tier)->placement()) {
      EXPECT_NE(part.note.find("mbind"), std::string::npos);
      EXPECT_NE(part.note.find("move_pages"), std::string::npos);
      EXPECT_EQ(part.verified_pages, 0u);
    }
  }
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("mbind"), std::string::npos);
  EXPECT_EQ(said.find('\n'), said.size() - 1) << "said more than once: " << said;

  topology.prefer_fails = Status(Code::kIo, "mbind: Bad address");
  EXPECT_EQ(make(topology, ledger, "interleave").status().code(), Code::kIo) << "a fault is no lack of permission";
  EXPECT_EQ(ledger.spent(Budget::kHost), 0u);
}

TEST(HostTierPlacement, ReportsPagesThatLandedElsewhere) {
  FakeTopology topology({0, 1});
  topology.spilled_to = 1;
  Ledger ledger(0, 8 * kMiB);
  Result<std::unique_ptr<HostTier>> tier = make(topology, ledger, "node:0");
  ASSERT_TRUE(tier.ok());
  const NodePlacement part = (*tier)->placement().at(0);
  EXPECT_EQ(part.node, 0);
  EXPECT_EQ(part.misplaced_pages, part.verified_pages / 2);
}

TEST(HostTierPlacement, IsConfirmedByThisMachinesKernel) {
  Ledger ledger(0, 8 * kMiB);
  for (const char* placement : {"local", "interleave", "spread:1"}) {
    SCOPED_TRACE(placement);
    Result<std::unique_ptr<HostTier>> tier = make(system_topology(), ledger, placement);
    ASSERT_TRUE(tier.ok()) << tier.status().message();
    std::uint64_t key = 0;
    while (store(**tier, key, 50'000).ok()) ++key;
    for (const NodePlacement& part : (*tier)->placement()) {
      if (!part.note.empty()) continue;  // the kernel does not let this process ask
      EXPECT_EQ(part.misplaced_pages, 0u) << "node " << part.node;
      EXPECT_GT(part.verified_pages, part.bytes / 4096 / 2);
    }
  }
}

}  // namespace
}  // namespace firn
