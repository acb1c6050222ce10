// keep.cpp: retention, families and quotas, as far as they decide who may leave a slot or a frame. All of it costs one
// comparison while nobody uses it.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "core/base/no_throw.h"
#include "core/manager_impl.h"

namespace firn {
namespace {

constexpr std::size_t kMaxOwnerBytes = 256;
constexpr std::size_t kMaxKeysPerCall = 1u << 20;

Status check_ttl(std::int64_t ttl_ns, std::string_view call) {
  if (ttl_ns > 0 && ttl_ns <= kMaxPinNs) return {};
  return Status(Code::kInvalidArgument, fmt::format("{}: {} ns is not a time from 1 ns to a day", call, ttl_ns));
}

}  // namespace

// --- what time ends ---

// Whoever asks first sees what has ended until now, which is no change of what is true.
void ManagerImpl::expire() const {
  if (retention_->unused()) return;
  const Instant now = clock_();
  if (!retention_->due(now)) return;
  ManagerImpl& self = const_cast<ManagerImpl&>(*this);
  self.moment_ = now;
  retention_->advance(now, [&](BlockId id) { self.retention_changed(id); });
}

// Its priority or hold is another than before: the policies hear of it.
void ManagerImpl::retention_changed(BlockId id) {
  const Block& block = pool_->block(id);
  if (!block.in_use) return;
  update_candidate(id);
  if (block.frame == FrameId::kNone) return;
  Frame& frame = frames_->frame(block.frame);
  if (frame.candidate) {
    frame_policy_->on_remove(frame.policy_id);
    frame.candidate = false;
  }
  update_frame(block.frame);
}

bool ManagerImpl::frame_held(const Frame& frame) const {
  if (retention_->held_count() == 0) return false;
  return std::any_of(frame.blocks.begin(), frame.blocks.begin() + frame.block_count,
                     [this](BlockId id) { return id != BlockId::kNone && retention_->held(id); });
}

// Of a frame: that of its most valuable block.
std::uint8_t ManagerImpl::frame_priority(const Frame& frame) const {
  if (retention_->unused()) return kDefaultPriority;
  std::uint8_t most = 0;
  for (std::uint8_t i = 0; i < frame.block_count; ++i)
    if (frame.blocks[i] != BlockId::kNone) most = std::max(most, retention_->priority(frame.blocks[i]));
  return most;
}

void ManagerImpl::release_retention() {
  std::vector<BlockId> held;
  for (std::uint32_t i = 0; i < pool_->block_capacity(); ++i)
    if (pool_->block(BlockId{i}).in_use && retention_->held(BlockId{i})) held.push_back(BlockId{i});
  retention_->clear();
  for (const BlockId id : held) retention_changed(id);
  for (std::uint32_t i = 0; i < pool_->block_capacity() && all_kept_back_.family != 0; ++i)
    if (Block& block = pool_->block(BlockId{i}); block.kept_by_family)
      count_candidate(block, block.counted_live, block.counted_copied, /*kept=*/false);
}

// Its number, with room for everything that will be counted by it. stay: namespaces that no room is made of.
Result<std::uint16_t> ManagerImpl::intern(std::string_view name, std::span<const std::uint16_t> stay) {
  if (const std::optional<std::uint16_t> known = namespaces_.find(name)) return *known;
  Result<std::uint16_t> id = namespaces_.intern(name, *ledger_, *pool_);
  if (!id.ok() && name.size() <= Namespaces::kMaxBytes && make_name_room(stay))
    id = namespaces_.intern(name, *ledger_, *pool_);
  if (!id.ok()) return id;
  slot_policy_->ensure_namespaces(namespaces_.end());
  frame_policy_->ensure_namespaces(namespaces_.end());
  if (kept_back_.size() < namespaces_.end()) kept_back_.resize(namespaces_.end());
  events_->open(namespaces_[*id].tag, clock_);
  return id;
}

// What was found for the request is in one of these two: neither goes to make room for the other.
Result<ManagerImpl::Spaces> ManagerImpl::intern(const BeginOptions& options) {
  std::array<std::uint16_t, 2> stay{};
  stay[0] = namespaces_.find(options.name_space).value_or(0);
  if (options.shared_scope) stay[1] = namespaces_.find(*options.shared_scope).value_or(0);
  Spaces spaces;
  FIRN_ASSIGN(spaces.own, intern(options.name_space, stay));
  stay[0] = spaces.shared = spaces.own;
  if (options.shared_scope) {
    FIRN_ASSIGN(spaces.shared, intern(*options.shared_scope, stay));
  }
  return spaces;
}

// Names are as many as there may be, or as the metadata budget has room for: of those that no sequence and no quota
// needs, whose blocks are only cached, the ones that were used last the longest ago go with all they have. Many at
// once, because looking for their blocks is a walk over all of them.
bool ManagerImpl::make_name_room(std::span<const std::uint16_t> stay) {
  constexpr std::size_t kAtOnce = 1024;
  std::vector<std::uint8_t> going = namespaces_.idle_longest(kAtOnce);
  if (going.empty()) return false;
  for (const std::uint16_t id : stay)
    if (id < going.size()) going[id] = 0;
  const auto goes = [&](const Block& block) {
    return block.in_use && block.name_space < going.size() && going[block.name_space] != 0;
  };
  const auto all_go = [&](std::span<const BlockId> ids) {
    return std::all_of(ids.begin(), ids.end(),
                       [&](BlockId id) { return id == BlockId::kNone || goes(pool_->block(id)); });
  };
  for (std::uint32_t i = 0; i < pool_->block_capacity(); ++i) {
    const BlockId id{i};
    if (!goes(pool_->block(id)) || pool_->block(id).refs != 0 || !family_may_go(id)) continue;
    if (const std::vector<BlockId>* family = retention_->family(id); family && !all_go(*family)) continue;
    // The frame first: what it is the only copy of goes with it.
    if (const FrameId at = pool_->block(id).frame; at != FrameId::kNone && frames_->frame(at).candidate) {
      const Frame& frame = frames_->frame(at);
      if (!all_go(std::span(frame.blocks).first(frame.block_count))) continue;
      ++counters_.host_evictions;
      drop_frame(at, MissReason::kEvictedHost);
    }
    if (goes(pool_->block(id)) && pool_->block(id).candidate) pool_->put_free_slot(evict(id), /*at_head=*/true);
  }
  drop_kin();
  const std::uint32_t before = namespaces_.count();
  reap_namespaces();
  return namespaces_.count() < before;
}

void ManagerImpl::reap_namespaces() {
  namespaces_.reap(*pool_, [this](std::uint64_t tag) { events_->close(tag); });
}

// --- who may go ---

bool ManagerImpl::family_may_go(BlockId id) const {
  const std::vector<BlockId>* family = retention_->family(id);
  return !family || std::all_of(family->begin(), family->end(), [this](BlockId member) {
    const Block& block = pool_->block(member);
    return block.refs == 0 && block.in_flight == 0 && !retention_->held(member);
  });
}

// A family leaves as one, and a floor is kept block by block: where a member's namespace has a floor, others let the
// whole of it stay.
bool ManagerImpl::family_has_floor(BlockId id, std::uint16_t name_space, bool host) const {
  const std::vector<BlockId>* family = retention_->family(id);
  return family && std::any_of(family->begin(), family->end(), [&](BlockId member) {
           const std::uint16_t owner = pool_->block(member).name_space;
           const NamespaceQuota& quota = namespaces_[owner].quota;
           return owner != name_space && (host ? quota.host_floor : quota.device_floor) != 0;
         });
}

// Victims are looked for one by one past those that a floor or a family protects, which is why this is asked for only
// where there is one. reach() says beforehand how many there are: the two have the same rules.
BlockId ManagerImpl::choose_slot_victim(std::uint16_t name_space, bool own_only, const Filter& also) {
  const bool quotas = namespaces_.any_quota() && name_space != kAnyNamespace, families = retention_->any_family();
  // While another thread computes a step, what live sequences hold may be read this very moment.
  const bool reading = running_steps_ != 0;
  Filter filter = also;
  if (own_only || quotas || families || reading) {
    filter = [&](BlockId id) {
      const Block& block = pool_->block(id);
      if (block.kept_by_family || (reading && block.refs != 0)) return false;
      const std::uint16_t owner = block.name_space;
      if (owner != name_space) {
        if (own_only) return false;
        const std::uint64_t floor = quotas ? namespaces_[owner].quota.device_floor : 0;
        if (floor != 0 && (pool_->tally(owner).slots - 1) * layout_.page_bytes < floor) return false;
      }
      return (!also || also(id)) && !(families && quotas && family_has_floor(id, name_space, /*host=*/false));
    };
  }
  // Whoever is choosy can do without, and does not walk through a million blocks under the lock.
  constexpr std::size_t kChoosyLook = 4096;
  BlockId victim;
  const firn::Need need{.look = also ? kChoosyLook : ~std::size_t{0}};
  return slot_policy_->victims(need, filter, {&victim, 1}) == 0 ? BlockId::kNone : victim;
}

BlockId ManagerImpl::choose_frame_victim(std::uint16_t name_space, bool own_only) {
  const bool quotas = namespaces_.any_quota() && name_space != kAnyNamespace, families = retention_->any_family();
  Filter filter;
  if (own_only || quotas || families) {
    filter = [&](BlockId id) {
      const Frame& frame = frames_->frame(pool_->block(id).frame);
      if (frame.name_space != name_space) {
        if (own_only) return false;
        const Namespace& owner = namespaces_[frame.name_space];
        if (quotas && owner.quota.host_floor != 0 && owner.host_bytes - frame.bytes < owner.quota.host_floor)
          return false;
      }
      return !families ||
             std::all_of(frame.blocks.begin(), frame.blocks.begin() + frame.block_count, [&](BlockId other) {
               return other == BlockId::kNone ||
                      (family_may_go(other) && !(quotas && (family_has_floor(other, name_space, /*host=*/true) ||
                                                            family_has_floor(other, name_space, /*host=*/false))));
             });
    };
  }
  BlockId victim;
  return frame_policy_->victims({}, filter, {&victim, 1}) == 0 ? BlockId::kNone : victim;
}

SlotId ManagerImpl::evict_with_family(BlockId id) {
  std::vector<BlockId> family;
  if (const std::vector<BlockId>* all = retention_->family(id)) family = *all;
  const SlotId slot = evict(id);
  for (const BlockId member : family)
    if (member != id && pool_->block(member).candidate) pool_->put_free_slot(evict(member), /*at_head=*/false);
  return slot;
}

// What is left of a family that has lost a member is worth nothing: it goes, unless somebody holds it.
void ManagerImpl::drop_kin() {
  while (!broken_families_.empty()) {
    const Retention::Members kin = std::move(broken_families_.back());
    broken_families_.pop_back();
    for (std::size_t i = 0; i < kin.blocks.size(); ++i) {
      const BlockRef ref{kin.blocks[i], kin.generations[i]};
      const Block& block = pool_->block(ref.id);
      if (!block.in_use || !same_life(ref) || block.refs != 0 || block.in_flight != 0 || !block.full() ||
          retention_->held(ref.id))
        continue;
      ++counters_.family_evictions;
      forget_key(ref.id, block.slot != SlotId::kNone ? MissReason::kEvictedDevice : MissReason::kEvictedHost);
      settle(ref.id);
    }
  }
}

// --- quotas ---

std::uint32_t ManagerImpl::ceiling_slots(std::uint16_t name_space) const {
  if (!namespaces_.any_quota() || name_space == kAnyNamespace || name_space == kNewNamespace) return ~0u;
  const std::uint64_t ceiling = namespaces_[name_space].quota.device_ceiling;
  return ceiling == 0 ? ~0u : static_cast<std::uint32_t>(std::min<std::uint64_t>(ceiling / layout_.page_bytes, ~0u));
}

// while_reading: a step is computed, so what live sequences hold stays. Exact: so many calls of take_slot() succeed,
// and each lowers both numbers by one, whomever it evicts.
ManagerImpl::Reach ManagerImpl::reach(std::uint16_t name_space, bool while_reading) const {
  const std::uint64_t free = pool_->free_slots();
  const auto may_go = [&](std::uint64_t candidates, const KeptBack& back) {
    return candidates - back.family - (while_reading ? back.reader : 0);
  };
  if (!namespaces_.any_quota() || name_space == kAnyNamespace)
    return {.slots = free + may_go(slot_policy_->candidates(), all_kept_back_)};
  std::uint64_t floored = 0;              // of families that stay for somebody's floor
  std::vector<std::uint32_t> floored_of;  // by namespace; empty: none
  if (retention_->any_family()) {
    floored_of.resize(namespaces_.end());
    retention_->for_each_family([&](const std::vector<BlockId>& family) {
      if (!family_has_floor(family[0], name_space, /*host=*/false)) return;
      for (const BlockId member : family) {
        const Block& block = pool_->block(member);
        const bool counts = block.candidate && !block.kept_by_family;
        floored_of[block.name_space] += counts;
        floored += counts;
      }
    });
  }
  const auto goes = [&](std::uint16_t owner) {
    return may_go(slot_policy_->candidates(owner), kept_back_[owner]) - (floored_of.empty() ? 0 : floored_of[owner]);
  };
  Reach found{.slots = free + may_go(slot_policy_->candidates(), all_kept_back_) - floored};
  for (const std::uint16_t owner : namespaces_.with_quota()) {  // what their floors keep of it
    if (owner == name_space) continue;
    const std::uint64_t has = pool_->tally(owner).slots, block_bytes = layout_.page_bytes;
    const std::uint64_t kept = (namespaces_[owner].quota.device_floor + block_bytes - 1) / block_bytes;
    const std::uint64_t going = goes(owner);
    found.slots -= going - std::min(going, has > kept ? has - kept : 0);
  }
  if (const std::uint64_t ceiling = ceiling_slots(name_space); ceiling != ~0u) {
    const std::uint64_t has = pool_->tally(name_space).slots, going = goes(name_space);
    found.below_ceiling = ceiling + going > has ? ceiling + going - has : 0;
  }
  return found;
}

// Of what is kept for others, nothing. A namespace that has a reservation must go on reaching all of them.
std::uint64_t ManagerImpl::spare_slots(std::uint16_t own, std::uint16_t shared) const {
  const auto beyond = [](std::uint64_t slots, std::uint64_t kept) { return slots - std::min(slots, kept); };
  std::uint64_t spare = beyond(reach(kAnyNamespace).slots, reserved_slots_);
  if (reserved_slots_ == 0 || !namespaces_.any_quota()) return spare;
  for (std::uint32_t i = 0; i < namespaces_.end(); ++i) {
    const std::uint16_t id = static_cast<std::uint16_t>(i);
    if (!namespaces_.in_use(id) || namespaces_[id].kept() == 0) continue;
    const Reach its = reach(id);
    spare = std::min(spare, beyond(its.slots, reserved_slots_));
    if (own == kAnyNamespace || id == own || id == shared || retention_->any_family())
      spare = std::min(spare, beyond(its.below_ceiling, namespaces_[id].kept()));
  }
  return spare;
}

bool ManagerImpl::host_room(std::uint16_t name_space, std::uint64_t bytes) {
  if (!namespaces_.any_quota()) return true;
  const Namespace& space = namespaces_[name_space];
  while (space.quota.host_ceiling != 0 && space.host_bytes + bytes > space.quota.host_ceiling) {
    const BlockId own = choose_frame_victim(name_space, /*own_only=*/true);
    if (own == BlockId::kNone) return false;
    ++counters_.host_evictions;
    drop_frame(pool_->block(own).frame, MissReason::kEvictedHost);
    drop_kin();
  }
  return true;
}

Status ManagerImpl::set_quota(std::string_view name_space, const NamespaceQuota& quota) {
  Lock lock(mutex_);
  run_deferred();
  const auto above = [](std::uint64_t floor, std::uint64_t ceiling) { return ceiling != 0 && floor > ceiling; };
  if (above(quota.device_floor, quota.device_ceiling) || above(quota.host_floor, quota.host_ceiling))
    return Status(Code::kInvalidArgument, "set_quota: a floor is above its ceiling");
  if (quota.device_ceiling != 0 && quota.device_ceiling < layout_.page_bytes)
    return Status(Code::kInvalidArgument, fmt::format("set_quota: a ceiling of {} bytes is less than one block of {}; "
                                                      "0 is no ceiling",
                                                      quota.device_ceiling, layout_.page_bytes));
  std::uint64_t device = quota.device_floor, host = quota.host_floor;
  const std::optional<std::uint16_t> known = namespaces_.find(name_space);
  for (const std::uint16_t other : namespaces_.with_quota()) {
    if (other == known) continue;
    device += namespaces_[other].quota.device_floor;
    host += namespaces_[other].quota.host_floor;
  }
  const std::uint64_t pool_bytes = pool_->slot_total() * layout_.page_bytes;
  if (device > pool_bytes || host > config_.host.budget_bytes)
    return Status(Code::kInvalidArgument,
                  fmt::format("set_quota: all floors together are {} of {} bytes of slots and {} of {} bytes of the "
                              "host tier; lower one",
                              device, pool_bytes, host, config_.host.budget_bytes));
  FIRN_ASSIGN(const std::uint16_t id, intern(name_space));
  const NamespaceQuota before = namespaces_[id].quota;
  const bool kept = reservations_hold();
  namespaces_.set_quota(id, quota);
  if (!kept || reservations_hold()) return {};
  namespaces_.set_quota(id, before);
  reap_namespaces();
  return Status(
      Code::kUnavailable,
      fmt::format("set_quota: {} slots are kept for sequences, and with these bounds they could not have them; "
                  "try again when they have ended",
                  reserved_slots_));
}

NamespaceUsage ManagerImpl::usage(std::string_view name_space) const {
  Lock lock(mutex_);
  catch_up();
  const std::optional<std::uint16_t> known = namespaces_.find(name_space);
  if (!known) return {};
  const Namespace& space = namespaces_[*known];
  const BlockPool::Tally& tally = pool_->tally(*known);
  NamespaceUsage usage{.quota = space.quota,
                       .device_bytes = tally.slots * layout_.page_bytes,
                       .host_bytes = space.host_bytes,
                       .sequences = 0,
                       .blocks = tally.blocks};
  for (const auto& [number, seq] : sequences_) usage.sequences += seq->name_space == *known;
  return usage;
}

std::uint64_t ManagerImpl::namespace_tag(std::string_view name_space) const { return namespaces_.tag(name_space); }

// --- pool.zero_on_free ---

// Before a slot with another namespace's bytes is anybody else's. The device does its work in order: whoever still
// reads the old bytes goes first, and whoever writes new ones comes after.
Status ManagerImpl::clear_if_foreign(SlotId slot, std::uint16_t name_space) {
  if (slot_serials_.empty()) return {};
  std::uint32_t& serial = slot_serials_[index(slot)];
  const std::uint32_t own = namespaces_[name_space].serial;
  if (serial != 0 && serial != own && bytes_) {
    FIRN_TRY(memory_->fill(slot, 0));
    ++counters_.slots_cleared;
  }
  serial = own;
  return {};
}

// --- priorities ---

Status ManagerImpl::ensure_level(std::uint8_t priority) {
  if (slot_policy_->has_level(priority)) return {};
  const std::uint64_t bytes = slot_policy_->level_bytes() + (host_ ? frame_policy_->level_bytes() : 0);
  FIRN_ASSIGN(Ledger::Charge charge, ledger_->charge(Account::kMetadata, bytes));
  FIRN_TRY(slot_policy_->ensure_level(priority));
  if (host_) FIRN_TRY(frame_policy_->ensure_level(priority));
  charges_.push_back(std::move(charge));
  fixed_metadata_bytes_ += bytes;
  return {};
}

// All levels that these ranges ask for, and the entries of these blocks: whether there is memory for them.
Status ManagerImpl::check_retention_room(std::span<const RetentionRange> ranges,
                                         const std::vector<BlockId>& blocks) const {
  std::uint64_t bytes = ranges.size_bytes() + retention_->bytes_for(blocks);
  std::array<bool, kMaxPriority + 1> counted{};
  bool first = true;
  for (const RetentionRange& range : ranges) {
    if (std::exchange(counted[range.priority], true) || slot_policy_->has_level(range.priority)) continue;
    bytes += slot_policy_->level_bytes(first) + (host_ ? frame_policy_->level_bytes(first) : 0);
    first = false;
  }
  if (bytes <= metadata_left()) return {};
  return Status(Code::kNoSpace, fmt::format("{} bytes are needed, and of metadata.budget {} are left; raise it", bytes,
                                            metadata_left()));
}

// The last range that a block begins in says what it is worth.
Status ManagerImpl::apply_retention(Sequence& seq, std::uint32_t first, std::uint32_t end) {
  if (seq.ranges.empty()) return {};
  const std::int64_t now_ns = clock_().ns;
  std::vector<std::tuple<BlockId, std::uint8_t, std::int64_t>> before;
  before.reserve(std::size_t{end - first} * seq.tables.size());
  Status status;
  for (std::uint32_t i = first; status.ok() && i < end; ++i) {
    const std::uint32_t position = i * kBlockTokens;
    const auto range = std::find_if(seq.ranges.rbegin(), seq.ranges.rend(), [&](const RetentionRange& candidate) {
      return candidate.first <= position && position < candidate.end;
    });
    if (range == seq.ranges.rend()) continue;
    for (const Table& table : seq.tables) {
      const BlockId id = table.blocks[i];
      if (id == BlockId::kNone) continue;
      const auto [priority, until_ns] = retention_->priority_until(id);
      status = no_throw([&] {
        return retention_->set_priority(id, range->priority, range->duration_ns == 0 ? 0 : now_ns + range->duration_ns);
      });
      if (!status.ok()) break;
      before.emplace_back(id, priority, until_ns);
    }
  }
  if (!status.ok()) {
    ++counters_.retention_refused;
    for (const auto& [id, priority, until_ns] : before)
      no_throw([&] { return retention_->set_priority(id, priority, until_ns); }).ok();
    return status;  // and no policy has heard of it
  }
  for (const auto& entry : before) retention_changed(std::get<0>(entry));
  return {};
}

Status ManagerImpl::set_retention(SeqId id, std::span<const RetentionRange> ranges) {
  Lock lock(mutex_);
  run_deferred();
  FIRN_ASSIGN(Sequence * seq, get_sequence(id, "set_retention"));
  if (ranges.size() > kMaxRetentionRanges)
    return Status(Code::kInvalidArgument,
                  fmt::format("set_retention: {} ranges, {} are the most", ranges.size(), kMaxRetentionRanges));
  for (const RetentionRange& range : ranges)
    if (range.first >= range.end || range.priority > kMaxPriority || range.duration_ns < 0 ||
        range.duration_ns > std::int64_t{1} << 60)
      return Status(Code::kInvalidArgument,
                    fmt::format("set_retention: tokens [{}, {}) with priority {} for {} ns; a range has a token, a "
                                "priority from 0 to {} and a duration of 0 or more",
                                range.first, range.end, range.priority, range.duration_ns, kMaxPriority));
  std::vector<BlockId> held;
  for (const Table& table : seq->tables)
    for (const BlockId block : std::span(table.blocks).first(seq->committed_blocks()))
      if (block != BlockId::kNone) held.push_back(block);
  FIRN_TRY(check_retention_room(ranges, held).with_context("set_retention: nothing was changed"));
  for (const RetentionRange& range : ranges) FIRN_TRY(ensure_level(range.priority).with_context("set_retention"));
  FIRN_ASSIGN(Ledger::Charge charge, ledger_->charge(Account::kMetadata, ranges.size_bytes()));
  std::vector<RetentionRange> before(ranges.begin(), ranges.end());
  std::swap(before, seq->ranges);
  const Status status = apply_retention(*seq, 0, seq->committed_blocks());
  if (status.ok()) {
    seq->ranges_charge = std::move(charge);
  } else {
    std::swap(before, seq->ranges);
  }
  return status.ok() ? status : status.with_context("set_retention: nothing was changed");
}

// --- pins, leases, families ---

// The blocks of each key, of every page set that has it the best one, or with `copies` all that have it, each once; how
// many keys there is none for.
Status ManagerImpl::find_keys(std::span<const Key> keys, bool copies, std::vector<BlockId>& found,
                              std::uint32_t& absent) const {
  if (keys.size() > kMaxKeysPerCall)
    return Status(Code::kInvalidArgument, fmt::format("{} keys, {} are the most", keys.size(), kMaxKeysPerCall));
  std::vector<BlockId> ids;
  for (const Key& key : keys) {
    if (key.is_zero()) {
      ++absent;
      continue;
    }
    absent += !look_up(key, Fidelity::kDerived, ids).any;
    for (const BlockId id : ids) {
      if (id == BlockId::kNone) continue;
      if (!copies) found.push_back(id);
      for (BlockId copy = copies ? index_->find(key, pool_->block(id).page_set) : BlockId::kNone;
           copy != BlockId::kNone; copy = pool_->block(copy).next_duplicate)
        found.push_back(copy);
    }
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return {};
}

Status ManagerImpl::check_pin_budget(std::span<const BlockId> blocks) const {
  const auto fresh = static_cast<std::uint64_t>(
      std::count_if(blocks.begin(), blocks.end(), [this](BlockId id) { return !retention_->held(id); }));
  const std::uint64_t wanted = (retention_->held_count() + fresh) * layout_.page_bytes;
  if (fresh == 0 || wanted <= config_.retention.pin_budget_bytes) return {};
  return Status(Code::kNoSpace,
                fmt::format("{} bytes would be pinned, retention.pin_budget is {}; unpin or release something, or "
                            "raise it",
                            wanted, config_.retention.pin_budget_bytes));
}

std::uint64_t ManagerImpl::slots_of(std::vector<BlockId> staying) const {
  for (std::size_t i = 0, count = staying.size(); i < count && retention_->any_family(); ++i)
    if (const std::vector<BlockId>* family = retention_->family(staying[i]))
      staying.insert(staying.end(), family->begin(), family->end());
  std::sort(staying.begin(), staying.end());
  staying.erase(std::unique(staying.begin(), staying.end()), staying.end());
  return static_cast<std::uint64_t>(std::count_if(staying.begin(), staying.end(), [this](BlockId id) {
    return pool_->block(id).candidate && !pool_->block(id).kept_by_family;
  }));
}

// Blocks that stay from now on, and with them what stays for them, are no room that is kept for a sequence.
Status ManagerImpl::check_spare(std::span<const BlockId> blocks) const {
  if (reserved_slots_ == 0) return {};
  const std::uint64_t taken = slots_of({blocks.begin(), blocks.end()});
  if (taken <= spare_slots()) return {};
  return Status(Code::kUnavailable,
                fmt::format("{} slots would be held by it, and {} can be: the others are kept for sequences (reserve); "
                            "try again when one has ended",
                            taken, spare_slots()));
}

bool ManagerImpl::reservations_hold() const {
  if (reserved_slots_ == 0) return true;
  if (reach(kAnyNamespace).slots < reserved_slots_) return false;
  for (std::uint32_t i = 0; i < namespaces_.end(); ++i) {
    const std::uint16_t id = static_cast<std::uint16_t>(i);
    if (!namespaces_.in_use(id) || namespaces_[id].kept() == 0) continue;
    const Reach its = reach(id);
    if (its.slots < reserved_slots_ || its.below_ceiling < namespaces_[id].kept()) return false;
  }
  return true;
}

Result<PinReport> ManagerImpl::pin(std::span<const Key> keys, std::int64_t ttl_ns) {
  Lock lock(mutex_);
  run_deferred();
  FIRN_TRY(check_ttl(ttl_ns, "pin"));
  PinReport report{.budget_bytes = config_.retention.pin_budget_bytes};
  std::vector<BlockId> blocks;
  FIRN_TRY(find_keys(keys, /*copies=*/true, blocks, report.absent).with_context("pin"));
  report.pinned = static_cast<std::uint32_t>(keys.size()) - report.absent;
  FIRN_TRY(check_pin_budget(blocks).with_context("pin"));
  FIRN_TRY(check_spare(blocks).with_context("pin"));
  // Those that need memory first, so that a refusal changes nothing.
  const auto fresh_end =
      std::stable_partition(blocks.begin(), blocks.end(), [this](BlockId id) { return !retention_->held(id); });
  const auto fresh_count = static_cast<std::size_t>(fresh_end - blocks.begin());
  const std::int64_t until_ns = clock_().ns + ttl_ns;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (const Status status = no_throw([&] { return retention_->pin(blocks[i], until_ns); }); !status.ok()) {
      for (std::size_t undone = 0; undone < std::min(i, fresh_count); ++undone) retention_->unpin(blocks[undone]);
      return status.with_context("pin");
    }
  }
  for (const BlockId id : blocks) retention_changed(id);
  report.pinned_bytes = retention_->held_count() * layout_.page_bytes;
  return report;
}

std::uint32_t ManagerImpl::unpin(std::span<const Key> keys) {
  Lock lock(mutex_);
  run_deferred();
  std::uint32_t unpinned = 0;
  for (const Key& key : keys) {
    bool any = false;
    for (std::uint8_t s = 0; s < layout_.sets.size() && !key.is_zero(); ++s)
      for (BlockId id = index_->find(key, PageSetId{s}); id != BlockId::kNone; id = pool_->block(id).next_duplicate)
        if (retention_->unpin(id)) {
          any = true;
          retention_changed(id);
        }
    unpinned += any;
  }
  return unpinned;
}

Result<LeaseId> ManagerImpl::acquire_lease(std::string_view owner, std::span<const Key> keys, std::int64_t ttl_ns) {
  Lock lock(mutex_);
  run_deferred();
  FIRN_TRY(check_ttl(ttl_ns, "acquire_lease"));
  if (owner.empty() || owner.size() > kMaxOwnerBytes || keys.empty())
    return Status(Code::kInvalidArgument,
                  fmt::format("acquire_lease: an owner of 1 to {} bytes and at least one key", kMaxOwnerBytes));
  std::vector<BlockId> blocks;
  std::uint32_t absent = 0;
  FIRN_TRY(find_keys(keys, /*copies=*/true, blocks, absent).with_context("acquire_lease"));
  if (absent != 0) {
    std::size_t first = 0;
    std::vector<BlockId> ids;
    while (!keys[first].is_zero() && look_up(keys[first], Fidelity::kDerived, ids).any) ++first;
    return Status(Code::kUnavailable, fmt::format("acquire_lease: {} of {} keys are not here; the first {} are", absent,
                                                  keys.size(), first));
  }
  FIRN_TRY(check_pin_budget(blocks).with_context("acquire_lease"));
  FIRN_TRY(check_spare(blocks).with_context("acquire_lease"));
  const Instant now = clock_();
  const std::vector<BlockId> changed = blocks;
  FIRN_ASSIGN(const LeaseId lease, retention_->acquire(owner, std::move(blocks), now, now.ns + ttl_ns));
  for (const BlockId id : changed) retention_changed(id);
  return lease;
}

Status ManagerImpl::renew_lease(LeaseId lease, std::int64_t ttl_ns) {
  Lock lock(mutex_);
  run_deferred();
  FIRN_TRY(check_ttl(ttl_ns, "renew_lease"));
  return retention_->renew(lease, clock_().ns + ttl_ns);
}

bool ManagerImpl::release_lease(LeaseId lease) {
  Lock lock(mutex_);
  run_deferred();
  return retention_->release(lease, [this](BlockId id) { retention_changed(id); });
}

std::vector<LeaseInfo> ManagerImpl::leases() const {
  Lock lock(mutex_);
  catch_up();
  return retention_->leases(layout_.page_bytes);
}

Status ManagerImpl::set_family(std::span<const Key> keys) {
  Lock lock(mutex_);
  run_deferred();
  if (keys.size() < 2 || keys.size() > kMaxFamilyBlocks)
    return Status(Code::kInvalidArgument,
                  fmt::format("set_family: {} keys; a family has 2 to {}", keys.size(), kMaxFamilyBlocks));
  std::vector<BlockId> blocks;
  std::uint32_t absent = 0;
  FIRN_TRY(find_keys(keys, /*copies=*/false, blocks, absent));
  if (absent != 0)
    return Status(Code::kUnavailable, fmt::format("set_family: {} of {} keys are not here", absent, keys.size()));
  std::vector<Key> sorted(keys.begin(), keys.end());
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
    return Status(Code::kInvalidArgument, "set_family: a key is given twice");
  for (const BlockId id : blocks)
    if (retention_->family(id)) return Status(Code::kInvalidArgument, "set_family: a block is in a family already");
  FIRN_TRY(check_spare(blocks).with_context("set_family"));
  const BlockId first = blocks[0];
  Retention::Members members{std::move(blocks), {}};
  for (const BlockId id : members.blocks) members.generations.push_back(pool_->generation(id));
  if (broken_families_.capacity() <= retention_->family_count())
    broken_families_.reserve(2 * retention_->family_count() + 8);
  FIRN_TRY(retention_->make_family(std::move(members)));
  update_family(first);
  return {};
}

// --- bytes that somebody is reading ---

void ManagerImpl::erase_frame_bytes(const FrameKey& key) {
  if (!host_->erase(key) && host_->contains(key)) erase_later_.push_back(key);
}

void ManagerImpl::sweep_erased() {
  std::erase_if(erase_later_, [this](const FrameKey& key) { return host_->erase(key) || !host_->contains(key); });
}

}  // namespace firn
