#include "core/retention.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/check.h"
#include "core/base/no_throw.h"

namespace firn {
namespace {

// An entry with its nodes in the map and in the set of ends.
constexpr std::uint64_t kEntryBytes = 192;
constexpr std::uint64_t kLeaseBytes = 256;  // beside its blocks

}  // namespace

Result<Retention::Entry*> Retention::entry(BlockId id) {
  const auto found = entries_.find(firn::index(id));
  if (found != entries_.end()) return &found->second;
  FIRN_ASSIGN(Ledger::Charge charged, ledger_.charge(Account::kMetadata, kEntryBytes));
  Entry& made = entries_[firn::index(id)];
  charged_bytes_ += charged.bytes();
  made.charge = std::move(charged);
  return &made;
}

std::uint64_t Retention::bytes_for(const std::vector<BlockId>& blocks) const {
  std::uint64_t bytes = 0;
  for (const BlockId id : blocks) bytes += find(id) ? 0 : kEntryBytes;
  return bytes;
}

// Keeps the counts and the time of its next end; an entry that says nothing any more goes.
void Retention::settle(BlockId id, Entry& entry, bool was_held) {
  std::int64_t next = entry.priority_until;
  if (entry.pinned_until != 0) next = next == 0 ? entry.pinned_until : std::min(next, entry.pinned_until);
  if (next != entry.due) {
    if (entry.due == 0) {
      due_.insert({next, firn::index(id)});  // the only thing here that needs memory
    } else {
      auto node = due_.extract({entry.due, firn::index(id)});
      node.value().first = next;
      if (next != 0) due_.insert(std::move(node));
    }
    entry.due = next;
  }
  if (entry.held() != was_held) held_count_ += entry.held() ? 1 : -1u;
  if (entry.says_something()) return;
  refund(entry.charge);
  if (entry.due != 0) due_.erase({entry.due, firn::index(id)});
  entries_.erase(firn::index(id));
}

template <class Change>
void Retention::change(BlockId id, Entry& entry, Change change) {
  const std::uint8_t priority = entry.priority;
  const std::int64_t priority_until = entry.priority_until, pinned_until = entry.pinned_until;
  const std::uint32_t leases = entry.leases;
  const bool was = entry.held();
  change(entry);
  try {
    settle(id, entry, was);
  } catch (...) {
    entry.priority = priority;
    entry.priority_until = priority_until;
    entry.pinned_until = pinned_until;
    entry.leases = leases;
    settle(id, entry, was);
    throw;
  }
}

Status Retention::set_priority(BlockId id, std::uint8_t priority, std::int64_t expires_ns) {
  if (priority == kDefaultPriority && !find(id)) return {};
  FIRN_ASSIGN(Entry * changed, entry(id));
  change(id, *changed, [&](Entry& entry) {
    entry.priority = priority;
    entry.priority_until = priority == kDefaultPriority ? 0 : expires_ns;
  });
  return {};
}

Status Retention::pin(BlockId id, std::int64_t until_ns) {
  FIRN_ASSIGN(Entry * changed, entry(id));
  change(id, *changed, [&](Entry& entry) { entry.pinned_until = std::max(entry.pinned_until, until_ns); });
  return {};
}

bool Retention::unpin(BlockId id) {
  const auto found = entries_.find(firn::index(id));
  if (found == entries_.end() || found->second.pinned_until == 0) return false;
  found->second.pinned_until = 0;
  settle(id, found->second, /*was_held=*/true);
  return true;
}

Result<LeaseId> Retention::acquire(std::string_view owner, std::vector<BlockId> blocks, Instant now,
                                   std::int64_t deadline_ns) {
  if (leases_.size() >= kMaxLeases)
    return Status(Code::kNoSpace, fmt::format("{} leases are held, as many as there may be; leases() lists who holds "
                                              "them",
                                              leases_.size()));
  FIRN_ASSIGN(Ledger::Charge charged,
              ledger_.charge(Account::kMetadata, kLeaseBytes + owner.size() + blocks.size() * sizeof(BlockId)));
  std::size_t made = 0;
  const std::uint64_t id = next_lease_;
  const auto undo = [&] {
    while (made-- > 0) {
      Entry& undone = entries_.at(firn::index(blocks[made]));
      --undone.leases;
      settle(blocks[made], undone, /*was_held=*/true);
    }
    deadlines_.erase({deadline_ns, id});
    leases_.erase(id);
  };
  try {
    deadlines_.insert({deadline_ns, id});
    Lease& lease = leases_[id];
    lease.owner = owner;
    for (; made < blocks.size(); ++made) {
      const Result<Entry*> held = entry(blocks[made]);
      if (!held.ok()) {
        undo();
        return held.status();
      }
      change(blocks[made], **held, [](Entry& entry) { ++entry.leases; });
    }
    lease.blocks = std::move(blocks);
    lease.acquired = now;
    lease.deadline_ns = deadline_ns;
    charged_bytes_ += charged.bytes();
    lease.charge = std::move(charged);
  } catch (...) {
    undo();
    throw;
  }
  ++next_lease_;
  return LeaseId{id};
}

Status Retention::renew(LeaseId lease, std::int64_t deadline_ns) {
  const auto found = leases_.find(firn::index(lease));
  if (found == leases_.end())
    return Status(Code::kUnavailable, fmt::format("lease {} has ended; acquire a new one", firn::index(lease)));
  auto node = deadlines_.extract({found->second.deadline_ns, found->first});
  node.value().first = found->second.deadline_ns = deadline_ns;
  deadlines_.insert(std::move(node));
  return {};
}

bool Retention::move_hold(BlockId from, BlockId to) {
  const Entry* held = find(from);
  if (!held || !held->held()) return false;
  const Result<Entry*> made = no_throw([&] { return entry(to); });  // the map may move, and its entries do not
  if (!made.ok()) return false;
  Entry &old = entries_.at(firn::index(from)), &heir = **made;
  const bool was = heir.held();
  if (old.leases != 0)
    for (auto& [number, lease] : leases_) {
      const auto at = std::find(lease.blocks.begin(), lease.blocks.end(), from);
      if (at == lease.blocks.end()) continue;
      if (std::find(lease.blocks.begin(), lease.blocks.end(), to) != lease.blocks.end()) continue;  // it is its already
      *at = to;
      --old.leases;
      ++heir.leases;
    }
  if (heir.pinned_until < old.pinned_until) {
    heir.pinned_until = old.pinned_until;
    if (heir.due == 0) {  // the node for its end comes along: this is no place to run out of memory
      auto node = due_.extract({old.due, firn::index(from)});
      old.due = old.priority_until = 0;
      old.priority = kDefaultPriority;
      node.value() = {heir.due = heir.pinned_until, firn::index(to)};
      due_.insert(std::move(node));
    }
  }
  old.pinned_until = 0;
  settle(to, heir, was);
  settle(from, old, /*was_held=*/true);
  return true;
}

std::vector<LeaseInfo> Retention::leases(std::uint64_t block_bytes) const {
  std::vector<LeaseInfo> list;
  for (const auto& [id, lease] : leases_)
    list.push_back({LeaseId{id}, lease.owner, static_cast<std::uint32_t>(lease.blocks.size()),
                    lease.blocks.size() * block_bytes, lease.acquired, Instant{lease.deadline_ns}});
  return list;
}

std::vector<std::pair<BlockId, std::int64_t>> Retention::pins() const {
  std::vector<std::pair<BlockId, std::int64_t>> all;
  for (const auto& [id, entry] : entries_)
    if (entry.pinned_until != 0) all.emplace_back(BlockId{id}, entry.pinned_until);
  return all;
}

std::vector<std::pair<std::uint64_t, std::vector<BlockId>>> Retention::families() const {
  std::vector<std::pair<std::uint64_t, std::vector<BlockId>>> all;
  for (const auto& [id, family] : families_) all.emplace_back(id, family.members.blocks);
  return all;
}

Status Retention::make_family(Members members) {
  FIRN_ASSIGN(Ledger::Charge charged,
              ledger_.charge(Account::kMetadata, kLeaseBytes + members.blocks.size() * sizeof(BlockId)));
  const std::uint64_t family = next_family_;
  const auto undo = [&] {
    for (const BlockId made : members.blocks)
      if (const auto found = entries_.find(firn::index(made)); found != entries_.end())
        settle(made, found->second, found->second.held());
    families_.erase(family);
  };
  try {
    families_[family];
    for (const BlockId id : members.blocks) {  // the entries first: they are what can fail
      const Result<Entry*> member = entry(id);
      if (member.ok()) continue;
      undo();
      return member.status();
    }
  } catch (...) {
    undo();
    throw;
  }
  for (const BlockId id : members.blocks) entries_.at(firn::index(id)).family = family;
  charged_bytes_ += charged.bytes();
  families_[family] = Family{std::move(members), std::move(charged)};
  ++next_family_;
  return {};
}

Retention::Members Retention::end_family(std::uint64_t family) {
  const auto found = families_.find(family);
  FIRN_CHECK(found != families_.end());
  Members members = std::move(found->second.members);
  refund(found->second.charge);
  families_.erase(found);
  for (const BlockId id : members.blocks) {
    Entry& member = entries_.at(firn::index(id));
    member.family = 0;
    settle(id, member, member.held());
  }
  return members;
}

void Retention::end_due(BlockId id, Instant now) {
  Entry& ended = entries_.at(firn::index(id));
  const bool was = ended.held();
  if (ended.pinned_until != 0 && ended.pinned_until <= now.ns) {
    ended.pinned_until = 0;
    ++counters_.pins_expired;
  }
  if (ended.priority_until != 0 && ended.priority_until <= now.ns) {
    ended.priority = kDefaultPriority;
    ended.priority_until = 0;
    ++counters_.priorities_expired;
  }
  settle(id, ended, was);
}

Retention::Members Retention::forget(BlockId id) {
  Members others;
  auto found = entries_.find(firn::index(id));
  if (found == entries_.end()) return others;
  if (found->second.family != 0) {
    others = end_family(found->second.family);
    for (std::size_t i = 0; i < others.blocks.size(); ++i) {
      if (others.blocks[i] != id) continue;
      others.blocks.erase(others.blocks.begin() + static_cast<std::ptrdiff_t>(i));
      others.generations.erase(others.generations.begin() + static_cast<std::ptrdiff_t>(i));
      break;
    }
    found = entries_.find(firn::index(id));  // it may have gone with the family
    if (found == entries_.end()) return others;
  }
  Entry& gone = found->second;
  const bool was = gone.held();
  if (gone.leases != 0)  // its number may name another block soon
    for (auto& [number, lease] : leases_) std::erase(lease.blocks, id);
  gone.priority = kDefaultPriority;
  gone.priority_until = gone.pinned_until = 0;
  gone.leases = 0;
  settle(id, gone, was);
  return others;
}

void Retention::clear() {
  FIRN_CHECK(leases_.empty());
  entries_.clear();
  families_.clear();
  due_.clear();
  charged_bytes_ = 0;
  held_count_ = 0;
}

std::vector<std::string> Retention::check() const {
  std::vector<std::string> broken;
  std::uint32_t held = 0, due = 0;
  std::uint64_t bytes = 0;
  std::unordered_map<std::uint32_t, std::uint32_t> leased;
  for (const auto& [id, lease] : leases_) {
    bytes += lease.charge.bytes();
    for (const BlockId block : lease.blocks) ++leased[firn::index(block)];
  }
  for (const auto& [id, family] : families_) bytes += family.charge.bytes();
  for (const auto& [id, entry] : entries_) {
    held += entry.held();
    due += entry.due != 0;
    bytes += entry.charge.bytes();
    const auto found = leased.find(id);
    if (entry.leases != (found == leased.end() ? 0 : found->second))
      broken.push_back(fmt::format("retention: block {} counts {} leases, {} name it", id, entry.leases,
                                   found == leased.end() ? 0 : found->second));
    if (entry.family != 0 && !families_.contains(entry.family))
      broken.push_back(fmt::format("retention: block {} is of a family that has ended", id));
  }
  if (held != held_count_) broken.push_back(fmt::format("retention: {} blocks held, {} counted", held, held_count_));
  if (due != due_.size())
    broken.push_back(fmt::format("retention: {} ends queued, {} entries have one", due_.size(), due));
  if (bytes != charged_bytes_)
    broken.push_back(fmt::format("retention: {} bytes charged, {} counted", bytes, charged_bytes_));
  return broken;
}

}  // namespace firn
