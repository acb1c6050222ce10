// The ledger: a budget is never overspent, a charge comes back exactly once, and a refusal says why.
#include "firn/ledger.h"

#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace firn {
namespace {

constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();

TEST(Ledger, EveryAccountBelongsToABudgetAndHasAName) {
  for (int a = 0; a < static_cast<int>(Account::kCount); ++a) {
    const auto account = static_cast<Account>(a);
    EXPECT_NE(to_string(account), "unknown");
    const Budget expected = to_string(account).substr(0, 5) == "host_" ? Budget::kHost
                            : account == Account::kMetadata            ? Budget::kMetadata
                                                                       : Budget::kDevice;
    EXPECT_EQ(budget_of(account), expected) << to_string(account);
  }
}

TEST(Ledger, SpendsToTheLastByteAndNotOneMore) {
  Ledger ledger(100, 50);
  Result<Ledger::Charge> pool = ledger.charge(Account::kPool, 60);
  ASSERT_TRUE(pool.ok());
  Result<Ledger::Charge> staging = ledger.charge(Account::kStaging, 40);
  ASSERT_TRUE(staging.ok());
  EXPECT_EQ(ledger.spent(Budget::kDevice), 100u);
  EXPECT_EQ(ledger.charge(Account::kWorkspace, 1).status().code(), Code::kNoSpace);
  EXPECT_TRUE(ledger.charge(Account::kWorkspace, 0).ok());
  EXPECT_TRUE(ledger.charge(Account::kHostFrames, 50).ok()) << "budgets do not share";
  staging->release();
  EXPECT_EQ(ledger.spent(Account::kStaging), 0u);
  EXPECT_TRUE(ledger.charge(Account::kArtefact, 40).ok());
  EXPECT_EQ(ledger.peak(Budget::kDevice), 100u);
  EXPECT_EQ(ledger.spent(Budget::kDevice), 60u);
  EXPECT_EQ(ledger.limit(Budget::kHost), 50u);
}

TEST(Ledger, SumsThatWouldOverflowAreRefused) {
  Ledger ledger(1000, kMost);
  Result<Ledger::Charge> some = ledger.charge(Account::kPool, 999);
  ASSERT_TRUE(some.ok());
  EXPECT_EQ(ledger.charge(Account::kPool, kMost).status().code(), Code::kNoSpace);
  EXPECT_EQ(ledger.charge(Account::kPool, kMost - 998).status().code(), Code::kNoSpace);
  Result<Ledger::Charge> all = ledger.charge(Account::kHostFrames, kMost);
  ASSERT_TRUE(all.ok());
  EXPECT_EQ(ledger.charge(Account::kHostScratch, 1).status().code(), Code::kNoSpace);
}

TEST(Ledger, ARefusalNamesWhoAskedWhoSpentAndWhatToRaise) {
  Ledger ledger(0, 1000);
  Result<Ledger::Charge> frames = ledger.charge(Account::kHostFrames, 700);
  Result<Ledger::Charge> tables = ledger.charge(Account::kHostMetadata, 100);
  const std::string message = ledger.charge(Account::kHostScratch, 201).status().message();
  for (const char* part : {"host_scratch needs 201", "budget of 1000", "200 are left", "host_frames 700",
                           "host_metadata 100", "raise host.budget"})
    EXPECT_NE(message.find(part), std::string::npos) << part << " is missing from: " << message;
}

TEST(Ledger, AChargeMovesAndComesBackOnce) {
  Ledger ledger(100, 0);
  {
    Result<Ledger::Charge> made = ledger.charge(Account::kPool, 30);
    ASSERT_TRUE(made.ok());
    Ledger::Charge a = std::move(made).value();
    Ledger::Charge b = std::move(a);
    EXPECT_FALSE(a);
    EXPECT_TRUE(b);
    EXPECT_EQ(b.bytes(), 30u);
    EXPECT_EQ(ledger.spent(Account::kPool), 30u);
    b = ledger.charge(Account::kStaging, 20).value();  // what b held goes back
    EXPECT_EQ(ledger.spent(Account::kPool), 0u);
    EXPECT_EQ(ledger.spent(Account::kStaging), 20u);
    b.release();
    b.release();
    EXPECT_EQ(ledger.spent(Budget::kDevice), 0u);
  }
  EXPECT_EQ(ledger.spent(Budget::kDevice), 0u);
}

TEST(Ledger, FailsTheChargeItWasToldToFail) {
  Ledger ledger(100, 100);
  ledger.fail_charge(2);
  EXPECT_TRUE(ledger.charge(Account::kPool, 1).ok());
  EXPECT_EQ(ledger.charge(Account::kHostFrames, 1).status().code(), Code::kNoSpace);
  EXPECT_TRUE(ledger.charge(Account::kPool, 1).ok()) << "one failure only";
  ledger.fail_charge(1);
  ledger.fail_charge(0);
  EXPECT_TRUE(ledger.charge(Account::kPool, 1).ok());
}

TEST(Ledger, StopsTheProgramWhenAChargeOutlivesIt) {
  EXPECT_DEATH(
      {
        auto ledger = std::make_unique<Ledger>(100, 100);
        const Result<Ledger::Charge> charge = ledger->charge(Account::kPool, 1);
        ledger.reset();
      },
      "bytes == 0");
}

TEST(Ledger, AgreesWithASumUnderRandomCharges) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    constexpr std::uint64_t kLimit[] = {10'000, 20'000, 5'000};
    Ledger ledger(kLimit[0], kLimit[1], kLimit[2]);
    std::vector<std::pair<Account, Ledger::Charge>> held;
    for (int i = 0; i < 5000; ++i) {
      std::uint64_t spent[3] = {0, 0, 0};
      for (const auto& [account, charge] : held) spent[static_cast<int>(budget_of(account))] += charge.bytes();
      for (int budget = 0; budget < 3; ++budget) ASSERT_EQ(ledger.spent(static_cast<Budget>(budget)), spent[budget]);
      if (held.empty() || random() % 5 < 3) {
        const auto account = static_cast<Account>(random() % static_cast<std::uint64_t>(Account::kCount));
        const std::uint64_t bytes = random() % 2000;
        const int budget = static_cast<int>(budget_of(account));
        Result<Ledger::Charge> charge = ledger.charge(account, bytes);
        ASSERT_EQ(charge.ok(), spent[budget] + bytes <= kLimit[budget]);
        if (charge.ok()) held.emplace_back(account, std::move(charge).value());
      } else {
        std::swap(held[random() % held.size()], held.back());
        held.pop_back();
      }
    }
  }
}

TEST(Ledger, ConcurrentChargesNeverPassTheLimit) {
  static constexpr Account kDeviceAccounts[] = {Account::kPool, Account::kStaging, Account::kWorkspace,
                                                Account::kArtefact};
  Ledger ledger(1000, 1000);
  std::atomic<std::uint64_t> outside{0};  // what the charges of all threads add up to, counted without the ledger
  std::vector<std::thread> threads;
  for (std::uint64_t seed = 1; seed <= 4; ++seed)
    threads.emplace_back([&ledger, &outside, seed] {
      std::mt19937_64 random(seed);
      for (int i = 0; i < 3000; ++i) {
        Result<Ledger::Charge> charge = ledger.charge(kDeviceAccounts[random() % 4], random() % 400);
        if (!charge.ok()) continue;
        EXPECT_LE(outside += charge->bytes(), 1000u);
        outside -= charge->bytes();
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ledger.spent(Budget::kDevice), 0u);
  EXPECT_LE(ledger.peak(Budget::kDevice), 1000u);
  EXPECT_GT(ledger.peak(Budget::kDevice), 0u);
}

}  // namespace
}  // namespace firn
