// ledger.h: what every byte budget has spent. A byte is charged before it is allocated and refunded after it is freed,
// so that a budget is a promise and not a report. Threads:  any; each call takes a short lock. Memory:   nothing is
// allocated after construction.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <string_view>

#include "firn/export.h"
#include "firn/status.h"

namespace firn {

// device: what the pool's budget buys. host: what the host tier's budget buys. metadata: firn's own tables in host
// memory, sized when the manager is created and reported beside the other two.
enum class Budget : std::uint8_t { kDevice, kHost, kMetadata, kCount };
// What the bytes are. Each account belongs to one budget.
enum class Account : std::uint8_t {
  kPool,          // device: raw block slots
  kStaging,       // device: decoded cold sections on their way to attention
  kWorkspace,     // device: accumulators and partial results of attention
  kArtefact,      // device: calibration data resident for projection
  kHostFrames,    // host: the arenas that hold encoded frames
  kHostMetadata,  // host: the arenas' own tables
  kHostScratch,   // host: encoder and decoder scratch
  kMetadata,      // metadata: block records, index, frame records, sequence tables, queues
  kCount,
};
FIRN_API Budget budget_of(Account account);
FIRN_API std::string_view to_string(Budget budget);
FIRN_API std::string_view to_string(Account account);

class FIRN_API Ledger {
 public:
  // Bytes of a budget held by an account until the charge dies.
  class [[nodiscard]] Charge {
   public:
    Charge() = default;
    Charge(Charge&& other) noexcept { swap(other); }
    Charge& operator=(Charge&& other) noexcept {
      release();
      swap(other);
      return *this;
    }
    ~Charge() { release(); }
    void release();
    std::uint64_t bytes() const { return bytes_; }
    explicit operator bool() const { return ledger_ != nullptr; }

   private:
    friend class Ledger;
    Charge(Ledger* ledger, Account account, std::uint64_t bytes) : ledger_(ledger), account_(account), bytes_(bytes) {}
    void swap(Charge& other) noexcept;
    Ledger* ledger_ = nullptr;
    Account account_{};
    std::uint64_t bytes_ = 0;
  };

  Ledger(std::uint64_t device_bytes, std::uint64_t host_bytes, std::uint64_t metadata_bytes = ~std::uint64_t{0});
  ~Ledger();  // checks that every charge has come back

  // kNoSpace names the account, what was asked for, what is spent on what, and the setting to raise.
  Result<Charge> charge(Account account, std::uint64_t bytes);
  std::uint64_t limit(Budget budget) const;
  // kNoSpace: more than that is spent already.
  Status set_limit(Budget budget, std::uint64_t bytes);
  std::uint64_t spent(Budget budget) const;
  std::uint64_t spent(Account account) const;
  std::uint64_t peak(Budget budget) const;
  // For tests of what happens without memory: the n-th charge from now fails (1: the next); 0: none does.
  void fail_charge(std::uint64_t countdown);

 private:
  void refund(Account account, std::uint64_t bytes);

  mutable std::mutex mutex_;
  std::array<std::uint64_t, static_cast<std::size_t>(Budget::kCount)> limit_{}, peak_{};
  std::array<std::uint64_t, static_cast<std::size_t>(Account::kCount)> spent_{};
  std::uint64_t fail_countdown_ = 0;
};

}  // namespace firn
