#include "firn/ledger.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "core/base/check.h"

namespace firn {
namespace {

constexpr std::size_t kAccounts = static_cast<std::size_t>(Account::kCount);
constexpr std::size_t at(Budget budget) { return static_cast<std::size_t>(budget); }
constexpr std::size_t at(Account account) { return static_cast<std::size_t>(account); }

}  // namespace

Budget budget_of(Account account) {
  switch (account) {
    case Account::kHostFrames:
    case Account::kHostMetadata:
    case Account::kHostScratch:
      return Budget::kHost;
    case Account::kMetadata:
      return Budget::kMetadata;
    default:
      return Budget::kDevice;
  }
}

std::string_view to_string(Budget budget) {
  switch (budget) {
    case Budget::kDevice:
      return "device";
    case Budget::kHost:
      return "host";
    default:
      return "metadata";
  }
}

namespace {
// The setting that raises a budget, for the message that says it is spent.
std::string_view setting_of(Budget budget) {
  switch (budget) {
    case Budget::kDevice:
      return "pool.budget";
    case Budget::kHost:
      return "host.budget";
    default:
      return "metadata.budget";
  }
}
}  // namespace

std::string_view to_string(Account account) {
  switch (account) {
    case Account::kPool:
      return "pool";
    case Account::kStaging:
      return "staging";
    case Account::kWorkspace:
      return "workspace";
    case Account::kMetadata:
      return "metadata";
    case Account::kArtefact:
      return "artefact";
    case Account::kHostFrames:
      return "host_frames";
    case Account::kHostMetadata:
      return "host_metadata";
    case Account::kHostScratch:
      return "host_scratch";
    case Account::kCount:
      break;
  }
  return "unknown";
}

Ledger::Ledger(std::uint64_t device_bytes, std::uint64_t host_bytes, std::uint64_t metadata_bytes) {
  limit_[at(Budget::kDevice)] = device_bytes;
  limit_[at(Budget::kHost)] = host_bytes;
  limit_[at(Budget::kMetadata)] = metadata_bytes;
}

Ledger::~Ledger() {
  for (const std::uint64_t bytes : spent_) FIRN_CHECK(bytes == 0);
}

Result<Ledger::Charge> Ledger::charge(Account account, std::uint64_t bytes) {
  const Budget budget = budget_of(account);
  std::lock_guard lock(mutex_);
  const bool injected = fail_countdown_ != 0 && --fail_countdown_ == 0;
  std::uint64_t spent = 0;
  for (std::size_t a = 0; a < kAccounts; ++a)
    if (budget_of(static_cast<Account>(a)) == budget) spent += spent_[a];
  if (injected || bytes > limit_[at(budget)] - spent) {
    std::string parts;
    for (std::size_t a = 0; a < kAccounts; ++a)
      if (budget_of(static_cast<Account>(a)) == budget && spent_[a] != 0)
        parts += fmt::format("{}{} {}", parts.empty() ? "" : ", ", to_string(static_cast<Account>(a)), spent_[a]);
    return Status(Code::kNoSpace,
                  fmt::format("{} needs {} bytes, but of the {} budget of {} bytes only {} are left ({}); raise {}",
                              to_string(account), bytes, to_string(budget), limit_[at(budget)],
                              limit_[at(budget)] - spent, parts.empty() ? "nothing spent" : parts, setting_of(budget)));
  }
  spent_[at(account)] += bytes;
  peak_[at(budget)] = std::max(peak_[at(budget)], spent + bytes);
  return Charge(this, account, bytes);
}

void Ledger::refund(Account account, std::uint64_t bytes) {
  std::lock_guard lock(mutex_);
  FIRN_CHECK(spent_[at(account)] >= bytes);
  spent_[at(account)] -= bytes;
}

void Ledger::Charge::release() {
  if (ledger_ != nullptr) ledger_->refund(account_, bytes_);
  ledger_ = nullptr;
  bytes_ = 0;
}

void Ledger::Charge::swap(Charge& other) noexcept {
  std::swap(ledger_, other.ledger_);
  std::swap(account_, other.account_);
  std::swap(bytes_, other.bytes_);
}

std::uint64_t Ledger::limit(Budget budget) const {
  std::lock_guard lock(mutex_);
  return limit_[at(budget)];
}

Status Ledger::set_limit(Budget budget, std::uint64_t bytes) {
  std::lock_guard lock(mutex_);
  std::uint64_t spent = 0;
  for (std::size_t a = 0; a < kAccounts; ++a)
    if (budget_of(static_cast<Account>(a)) == budget) spent += spent_[a];
  if (spent > bytes)
    return Status(Code::kNoSpace,
                  fmt::format("the {} budget cannot become {} bytes: {} are spent", to_string(budget), bytes, spent));
  limit_[at(budget)] = bytes;
  return {};
}

std::uint64_t Ledger::spent(Budget budget) const {
  std::lock_guard lock(mutex_);
  std::uint64_t spent = 0;
  for (std::size_t a = 0; a < kAccounts; ++a)
    if (budget_of(static_cast<Account>(a)) == budget) spent += spent_[a];
  return spent;
}

std::uint64_t Ledger::spent(Account account) const {
  std::lock_guard lock(mutex_);
  return spent_[at(account)];
}

std::uint64_t Ledger::peak(Budget budget) const {
  std::lock_guard lock(mutex_);
  return peak_[at(budget)];
}

void Ledger::fail_charge(std::uint64_t countdown) {
  std::lock_guard lock(mutex_);
  fail_countdown_ = countdown;
}

}  // namespace firn
