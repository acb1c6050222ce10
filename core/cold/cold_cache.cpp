// cold_cache.cpp: what ColdCache is made of, and the order in which a call asks its parts: check the call, open a
// ticket, hand a job to the mover. Everything else is in the rooms.
#include "firn/cold_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <new>

#include "core/base/check.h"
#include "core/base/no_throw.h"
#include "core/cold/guarded_cold_cache.h"
#include "core/cold/jobs.h"
#include "core/cold/names.h"
#include "firn/disk_tier.h"
#include "storage/codec/state_frame.h"

namespace firn {
namespace cold {
namespace {

constexpr std::uint64_t kFixedBytes = 64 << 10;  // the objects themselves, messages of failures
constexpr std::uint32_t kMaxBlocks = 1u << 28;

std::int64_t steady_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// As long as one can wait is not a time in the past. ns is not negative.
std::int64_t later(std::int64_t now, std::int64_t ns) {
  constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
  return now > kNever - ns ? kNever : now + ns;
}

Status invalid(std::string what) { return Status(Code::kInvalidArgument, "cold cache: " + std::move(what)); }

Status check_options(const ColdCacheOptions& options, const ColdEnvironment& environment) {
  FIRN_TRY(validate(options.model).with_context("cold cache: model"));
  for (const GroupSpec& group : options.model.groups)
    if (group.kind == GroupKind::kState)
      return invalid("a group of recurrent state has no K/V; store its bytes with store_state()");
  if (options.queue_blocks == 0 || options.queue_blocks > (1u << 24))
    return invalid(fmt::format("queue_blocks {} is not within 1 to {}", options.queue_blocks, 1u << 24));
  if (options.queue_tickets == 0 || options.queue_tickets > (1u << 16))
    return invalid(fmt::format("queue_tickets {} is not within 1 to {}", options.queue_tickets, 1u << 16));
  if (options.max_blocks > kMaxBlocks)
    return invalid(fmt::format("max_blocks {} is more than {}", options.max_blocks, kMaxBlocks));
  std::uint8_t last = index(TierId::kHost);
  for (std::size_t i = 0; i < options.tiers.size(); ++i) {
    const ColdTierOptions& tier = options.tiers[i];
    const auto bad = [&](std::string what) { return invalid(fmt::format("tiers[{}]: {}", i, what)); };
    if (tier.kind != "disk") return bad(fmt::format("kind \"{}\"; there is disk", tier.kind));
    if (tier.path.empty()) return bad("path is empty");
    if (tier.budget_bytes == 0) return bad("budget_bytes is 0");
    if (index(TierId::kDisk) <= last) return bad("a second disk");
    last = index(TierId::kDisk);
  }
  for (const ColdTier& tier : environment.tiers) {
    if (tier.tier == nullptr) return invalid("a tier of the environment is null");
    if (index(tier.id) <= last || tier.id >= TierId::kCount)
      return invalid("tiers below the host must be disk and remote, in this order, none twice");
    last = index(tier.id);
  }
  return {};
}

// How many names and frames the tables are made for.
struct Sizes {
  std::uint32_t blocks = 0, frames = 0;
};
Sizes sizes_of(const ColdCacheOptions& options, bool lossy) {
  std::uint64_t block_bytes = ~std::uint64_t{0};
  for (const GroupSpec& group : options.model.groups) block_bytes = std::min(block_bytes, group.block_bytes());
  Sizes sizes;
  // What the codec is expected to do at best; when the tables are full before the bytes are, frames are evicted.
  const std::uint64_t ratio = lossy ? 16 : 2;
  // Tables of some 250 bytes a block take an eighth at most, however small the blocks are.
  constexpr std::uint64_t kLeastBlockBytes = 2048;
  const std::uint64_t one = std::max(block_bytes / ratio, kLeastBlockBytes);
  // Names of what is below are kept in the same tables, which may then take a quarter of the budget; beyond that the
  // least used frames go, although their tier has room.
  std::uint64_t below = 0;
  for (const ColdTierOptions& tier : options.tiers) below += std::min(tier.budget_bytes, std::uint64_t{1} << 50);
  const std::uint64_t fit =
      std::min((options.budget_bytes + below) / one, options.budget_bytes / (below == 0 ? one : kLeastBlockBytes / 2));
  sizes.blocks = options.max_blocks != 0 ? options.max_blocks
                                         : static_cast<std::uint32_t>(std::clamp<std::uint64_t>(fit, 64, kMaxBlocks));
  sizes.frames = std::max(sizes.blocks / 2, 32u);
  return sizes;
}

DiskTierOptions disk_options(const ColdTierOptions& tier, const ColdCacheOptions& options, std::uint64_t largest) {
  DiskTierOptions disk;
  disk.path = tier.path;
  disk.budget_bytes = tier.budget_bytes;
  disk.identity = disk_identity(options.model);
  disk.largest_frame_bytes = largest;
  disk.readers = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(options.budget_bytes / (64 << 20), 1, 4));
  disk.admit_second_use = tier.admit_second_use;
  disk.daily_write_bytes = tier.daily_write_bytes;
  return disk;
}

class ColdCacheImpl final : public ColdCache {
 public:
  // Everything in the order in which it is made; destroyed the other way round.
  struct Parts {
    std::unique_ptr<Ledger> own_ledger;
    Ledger* ledger = nullptr;
    std::vector<Ledger::Charge> charges;
    std::unique_ptr<ExtentCoder> coder;
    std::unique_ptr<Tickets> tickets;
    std::vector<std::unique_ptr<Tier>> tiers;  // of the options
    std::unique_ptr<FrameStore> frames;
    std::unique_ptr<Ghosts> offers;
    std::unique_ptr<Mover> mover;
  };

  ColdCacheImpl(const ColdCacheOptions& options, const ColdEnvironment& environment, Parts parts,
                std::function<std::int64_t()> now_ns, std::uint64_t max_state_bytes, std::vector<std::uint32_t> batch,
                std::uint64_t batch_bytes)
      : budget_bytes_(options.budget_bytes),
        identity_(model_identity(options.model)),
        now_ns_(std::move(now_ns)),
        max_state_bytes_(max_state_bytes),
        timeline_(environment.device ? &environment.device->timeline() : nullptr),
        parts_(std::move(parts)),
        rooms_{.frames = *parts_.frames,
               .coder = *parts_.coder,
               .tickets = *parts_.tickets,
               .mover = *parts_.mover,
               .tally = tally_,
               .offers = parts_.offers.get(),
               .timeline = timeline_,
               .threads = environment.threads,
               .batch = std::move(batch),
               .state_batch_bytes = batch_bytes,
               .tending = &tending_} {}
  ~ColdCacheImpl() override { parts_.mover.reset(); }

  Result<Key> key(std::string_view name, std::string_view name_space) const override {
    if (name.empty() || name.size() > kMaxNameBytes)
      return invalid(fmt::format("a name of {} bytes; 1 to {}", name.size(), kMaxNameBytes));
    if (name_space.size() > kMaxNameBytes)
      return invalid(fmt::format("a namespace of {} bytes; at most {}", name_space.size(), kMaxNameBytes));
    return hash_name(identity_, name_space, name);
  }

  Result<Ticket> lookup(const ColdQuery& query, std::span<ColdFound> out) override;
  Result<Ticket> store(const ColdRun& run) override;
  Result<Ticket> load(const ColdRun& run) override;
  Result<Ticket> store_state(std::span<const ColdState> states, std::int64_t deadline_ns) override;
  Result<Ticket> load_state(std::span<const ColdState> states, std::int64_t deadline_ns) override;
  Result<Ticket> prefetch(std::span<const Key> keys, ColdKind kind, std::int64_t deadline_ns) override;

  std::uint32_t pin(std::span<const Key> keys, ColdKind kind) override {
    return count(keys, [&](const Lock& lock, const Key& key) { return parts_.frames->pin(lock, kind, key); });
  }
  std::uint32_t unpin(std::span<const Key> keys, ColdKind kind) override {
    return count(keys, [&](const Lock& lock, const Key& key) { return parts_.frames->unpin(lock, kind, key); });
  }
  std::uint32_t touch(std::span<const Key> keys, ColdKind kind) override {
    return count(keys, [&](const Lock& lock, const Key& key) { return parts_.frames->touch(lock, kind, key); });
  }
  std::uint32_t erase(std::span<const Key> keys, ColdKind kind) override {
    return count(keys, [&](const Lock& lock, const Key& key) { return parts_.frames->erase(lock, kind, key); });
  }

  std::vector<ColdDone> poll(std::size_t max) override { return parts_.tickets->poll(max); }
  Result<ColdDone> wait(Ticket ticket, std::int64_t timeout_ns) override {
    return parts_.tickets->wait(ticket, timeout_ns, pumper());
  }
  Status wait_idle(std::int64_t timeout_ns) override {
    return parts_.tickets->wait_idle(timeout_ns, pumper(), [this] { return parts_.mover->jobs() == 0; });
  }
  bool cancel(Ticket ticket) override {
    const JobId job = parts_.tickets->job(ticket);
    return job != JobId::kNone && parts_.mover->cancel(job);
  }
  int event_fd() const override { return parts_.tickets->event_fd(); }
  bool pump() override { return parts_.mover->pump(); }
  std::uint64_t max_state_bytes() const override { return max_state_bytes_; }
  ColdStats stats() const override;
  Status verify() const override {
    FIRN_TRY(parts_.frames->check());
    FIRN_TRY(parts_.tickets->check());
    return parts_.mover->check();
  }

 private:
  template <class F>
  std::uint32_t count(std::span<const Key> keys, F&& each) {
    std::uint32_t done = 0;
    {
      const Lock lock = parts_.frames->lock();
      for (const Key& key : keys) done += each(lock, key);
    }
    tend(rooms_);
    return done;
  }
  std::function<bool()> pumper() {
    if (parts_.mover->workers()) return {};
    return [this] { return parts_.mover->pump(); };
  }
  Status check_run(const ColdRun& run) const;
  Status check_states(std::span<const ColdState> states, bool store) const;
  // Opens a ticket and hands its job over; nothing is left behind where either is refused.
  template <class MakeJob>
  Result<Ticket> begin(std::size_t names, LaneId lane, std::uint8_t priority, std::int64_t deadline_ns, MakeJob make) {
    if (deadline_ns < 0) return invalid(fmt::format("deadline_ns {} is negative; 0 is none", deadline_ns));
    FIRN_ASSIGN(const Ticket ticket, parts_.tickets->open(names));
    const std::int64_t deadline = deadline_ns == 0 ? 0 : later(now_ns_(), deadline_ns);
    Result<JobId> job = JobId::kNone;
    try {
      job = parts_.mover->submit(lane, make(ticket), priority, deadline);
    } catch (const std::bad_alloc&) {
      job = out_of_memory();
    }
    if (!job.ok()) {
      parts_.tickets->drop(ticket);
      return job.status();
    }
    parts_.tickets->set_job(ticket, *job);
    return ticket;
  }

  const std::uint64_t budget_bytes_;
  const Digest identity_;
  const std::function<std::int64_t()> now_ns_;
  const std::uint64_t max_state_bytes_;
  Timeline* const timeline_;
  Tally tally_;
  std::atomic<bool> tending_{false};
  Parts parts_;
  Rooms rooms_;
};

Status ColdCacheImpl::check_run(const ColdRun& run) const {
  const std::vector<GroupSpec>& groups = parts_.coder->groups();
  if (index(run.group) >= groups.size())
    return invalid(fmt::format("group {} of a model of {}", index(run.group), groups.size()));
  if (run.keys.empty() || run.keys.size() > kMaxRunBlocks)
    return invalid(fmt::format("a run of {} blocks; 1 to {}", run.keys.size(), kMaxRunBlocks));
  if (run.first_position % kBlockTokens != 0)
    return invalid(fmt::format("first_position {} is no multiple of {}", run.first_position, kBlockTokens));
  constexpr std::uint64_t kMostTokens = ~std::uint32_t{0};
  if (run.first_position > kMostTokens - run.keys.size() * kBlockTokens)
    return invalid(
        fmt::format("first_position {} with {} blocks is beyond 2^32 tokens", run.first_position, run.keys.size()));
  const std::size_t views = run.keys.size() * groups[index(run.group)].layer_count;
  if (run.views.size() != views)
    return invalid(fmt::format("{} views for {} blocks of {} layers; {} are needed, [layer][block]", run.views.size(),
                               run.keys.size(), groups[index(run.group)].layer_count, views));
  if (!run.bound.empty() && run.bound.size() != run.keys.size())
    return invalid(fmt::format("bound has {} entries for {} blocks", run.bound.size(), run.keys.size()));
  if (run.after.kind != Fence::Kind::kNone && timeline_ == nullptr)
    return invalid("`after` is a fence, and environment.device is not set");
  if (run.after.kind != Fence::Kind::kNone)  // one that never passes is refused now
    if (const Status status = timeline_->wait(run.after, 0); status.code() == Code::kInvalidArgument)
      return status.with_context("cold cache: after");
  if (run.fidelity < Fidelity::kExact || run.fidelity > Fidelity::kDerived || run.least < Fidelity::kExact ||
      run.least > Fidelity::kDerived)
    return invalid("fidelity and least must be exact, lossy or derived");
  for (std::size_t i = 0; i < run.keys.size(); ++i)
    if (run.keys[i].is_zero()) return invalid(fmt::format("key {} is zero, which names nothing", i));
  return parts_.coder->check_views(run, run.keys.size()).with_context("cold cache");
}

Status ColdCacheImpl::check_states(std::span<const ColdState> states, bool store) const {
  for (std::size_t i = 0; i < states.size(); ++i) {
    const ColdState& state = states[i];
    if (state.key.is_zero()) return invalid(fmt::format("the key of state {} is zero, which names nothing", i));
    const std::size_t bytes = store ? state.bytes.size() : state.room.size();
    if (bytes == 0) return invalid(fmt::format("state {} has {}", i, store ? "no bytes" : "no room"));
    if (store && bytes > max_state_bytes_)
      return Status(Code::kNoSpace, fmt::format("cold cache: state {} of {} bytes; the budget has room for {} at most",
                                                i, bytes, max_state_bytes_));
  }
  return {};
}

Result<Ticket> ColdCacheImpl::lookup(const ColdQuery& query, std::span<ColdFound> out) {
  if (out.size() < query.keys.size())
    return invalid(fmt::format("room for {} answers of {} names", out.size(), query.keys.size()));
  if (query.kind == ColdKind::kBlock && index(query.group) >= parts_.coder->groups().size())
    return invalid(fmt::format("group {} of a model of {}", index(query.group), parts_.coder->groups().size()));
  const bool probes = parts_.frames->probes();
  ColdStats counted;
  bool pending = false;
  {
    const Lock lock = parts_.frames->lock();
    for (std::size_t i = 0; i < query.keys.size(); ++i) {
      ColdFound& found = out[i];
      found = parts_.frames->look(lock, query.kind, query.keys[i], query.least);
      if (found.answer == ColdAnswer::kHit) {
        ++counted.hits[index(found.tier)];
      } else if (parts_.frames->pending(lock, query.kind, query.keys[i], found)) {
        found = {.answer = ColdAnswer::kPending};
        pending = true;
        ++counted.pending;
      } else if (probes && (found.miss == ColdMiss::kNeverStored || found.miss == ColdMiss::kEvictedHost ||
                            found.miss == ColdMiss::kEvictedDisk || found.miss == ColdMiss::kEvictedRemote ||
                            found.miss == ColdMiss::kUnavailable)) {
        found = {.answer = ColdAnswer::kPending};
        pending = true;
        ++counted.pending;
      } else {
        ++counted.misses[static_cast<std::size_t>(found.miss)];
      }
    }
  }
  Result<Ticket> ticket = Ticket::kNone;
  if (pending && query.follow) {
    ticket = begin(query.keys.size(), kTierLane, 1, query.deadline_ns,
                   [&](Ticket t) { return make_probe_job(rooms_, t, query); });
    if (!ticket.ok()) return ticket;
  }
  tally_.note([&](ColdStats& s) {
    s.queries += query.keys.size();
    s.pending += counted.pending;
    for (std::size_t i = 0; i < s.hits.size(); ++i) s.hits[i] += counted.hits[i];
    for (std::size_t i = 0; i < s.misses.size(); ++i) s.misses[i] += counted.misses[i];
  });
  return ticket;
}

Result<Ticket> ColdCacheImpl::store(const ColdRun& run) {
  FIRN_TRY(check_run(run));
  return begin(run.keys.size(), kStoreLane, run.priority, run.deadline_ns,
               [&](Ticket ticket) { return make_store_job(rooms_, ticket, run); });
}

Result<Ticket> ColdCacheImpl::load(const ColdRun& run) {
  FIRN_TRY(check_run(run));
  return begin(run.keys.size(), kLoadLane, run.priority, run.deadline_ns,
               [&](Ticket ticket) { return make_load_job(rooms_, ticket, run); });
}

Result<Ticket> ColdCacheImpl::store_state(std::span<const ColdState> states, std::int64_t deadline_ns) {
  FIRN_TRY(check_states(states, /*store=*/true));
  return begin(states.size(), kStoreLane, 0, deadline_ns,
               [&](Ticket ticket) { return make_state_store_job(rooms_, ticket, states); });
}

Result<Ticket> ColdCacheImpl::load_state(std::span<const ColdState> states, std::int64_t deadline_ns) {
  FIRN_TRY(check_states(states, /*store=*/false));
  return begin(states.size(), kLoadLane, 0, deadline_ns,
               [&](Ticket ticket) { return make_state_load_job(rooms_, ticket, states); });
}

Result<Ticket> ColdCacheImpl::prefetch(std::span<const Key> keys, ColdKind kind, std::int64_t deadline_ns) {
  return begin(keys.size(), kLoadLane, 0, deadline_ns,
               [&](Ticket ticket) { return make_prefetch_job(rooms_, ticket, keys, kind); });
}

ColdStats ColdCacheImpl::stats() const {
  ColdStats stats = tally_.read();
  stats.budget_bytes = budget_bytes_;
  stats.spent_bytes = parts_.ledger->spent(Budget::kHost);
  stats.peak_bytes = parts_.ledger->peak(Budget::kHost);
  stats.queued_names = parts_.tickets->queued_names();
  stats.tickets = parts_.tickets->tickets();
  const Lock lock = parts_.frames->lock();
  const FrameTable& table = parts_.frames->table();
  const TierStack& stack = parts_.frames->stack();
  stats.frames = table.frame_count();
  stats.blocks = table.count(ColdKind::kBlock);
  stats.states = table.count(ColdKind::kState);
  stats.pinned = table.pinned();
  for (Level level = 0; level < stack.levels(); ++level) {
    const std::size_t tier = index(stack.tier(level));
    stats.frames_in[tier] = stack.tally(level).frames;
    stats.bytes_in[tier] = stack.tally(level).bytes;
    stats.evictions[tier] = stack.tally(level).evictions;
  }
  const FrameStore::Counters counters = parts_.frames->counters(lock);
  stats.raw_bytes = counters.raw_bytes;
  stats.failed_frames = counters.failed_frames;
  stats.demoted = counters.demoted;
  stats.fetched = counters.fetched;
  stats.tier_failures = counters.tier_failures;
  return stats;
}

Result<std::unique_ptr<ColdCache>> make(const ColdCacheOptions& options, const ColdEnvironment& environment) {
  FIRN_TRY(check_options(options, environment));
  FIRN_ASSIGN(CodecTable codecs,
              CodecTable::create({options.codec, options.artefact, options.allow_unmeasured}, options.model));
  const std::function<std::int64_t()> now_ns = environment.now_ns ? environment.now_ns : steady_ns;
  const Sizes sizes = sizes_of(options, codecs.lossy());
  const auto levels = static_cast<std::uint32_t>(options.tiers.size() + environment.tiers.size() + 1);

  ColdCacheImpl::Parts parts;
  parts.ledger = environment.ledger;
  if (parts.ledger == nullptr) {
    parts.own_ledger = std::make_unique<Ledger>(0, options.budget_bytes);
    parts.ledger = parts.own_ledger.get();
  }

  // Scratch: what codecs keep for each thread that codes, and what a batch needs while it is coded.
  std::size_t scratch = state_scratch_bytes();
  for (const GroupSpec& group : options.model.groups)
    scratch = std::max<std::size_t>(
        scratch, codecs.scratch_bytes({group.kv, group.layer_count, kMaxExtentBlocks}) + state_scratch_bytes());
  const std::uint64_t coding_threads = (environment.threads != nullptr ? environment.threads->size() : 1) + 1;
  const std::uint64_t resident = codecs.resident_bytes();
  parts.coder = std::make_unique<ExtentCoder>(std::move(codecs), options.model.groups, options.names,
                                              environment.regions, environment.threads);
  const std::uint64_t scratch_bytes = scratch * coding_threads + resident + 2 * parts.coder->call_bytes(kMaxBatch);

  const std::vector<Mover::Lane> lanes = {{.name = "store", .capacity = options.queue_tickets, .threads = 1},
                                          {.name = "load", .capacity = options.queue_tickets, .threads = 1},
                                          {.name = "tier", .capacity = options.queue_tickets + 1, .threads = 1}};
  std::uint64_t metadata = kFixedBytes + FrameTable::metadata_bytes(sizes.frames, sizes.blocks) +
                           TierStack::metadata_bytes(sizes.frames) + std::uint64_t{sizes.frames} * 64 +
                           Ghosts::metadata_bytes(sizes.blocks) + Coming::metadata_bytes(options.queue_blocks) +
                           std::uint64_t{options.queue_blocks} * sizeof(std::uint32_t) + Mover::metadata_bytes(lanes) +
                           Tickets::metadata_bytes(options.queue_blocks, options.queue_tickets) +
                           (levels - 1) * (TierLink::kBytes + std::uint64_t{sizes.frames} * 24);
  if (options.admit_second_use) metadata += Ghosts::metadata_bytes(sizes.blocks);
  std::vector<std::string> policy_of_level = {options.eviction};
  for (const ColdTierOptions& tier : options.tiers) policy_of_level.push_back(tier.eviction);
  for (const ColdTier& tier : environment.tiers) policy_of_level.push_back(tier.eviction);
  for (const std::string& name : policy_of_level) {
    FIRN_TRY(make_policy(name, 1).status().with_context("cold cache: eviction"));
    metadata += policy_bytes(name, sizes.frames, /*one_size=*/false);
  }
  std::uint64_t largest = 0;
  for (std::size_t g = 0; g < options.model.groups.size(); ++g)
    largest =
        std::max<std::uint64_t>(largest, parts.coder->bound(GroupId{static_cast<std::uint16_t>(g)}, kMaxExtentBlocks));
  std::vector<DiskTierOptions> disks;
  std::uint64_t disk_memory = 0;
  for (const ColdTierOptions& tier : options.tiers) {
    disks.push_back(disk_options(tier, options, largest));
    disk_memory += DiskTier::memory_bytes(disks.back());
  }
  const std::uint64_t fixed = metadata + scratch_bytes + disk_memory;
  const auto too_small = [&](std::uint64_t needed) {
    return Status(Code::kNoSpace,
                  fmt::format("cold cache: budget_bytes {} is too small: tables for {} blocks, queues and scratch take "
                              "{}, and the host tier needs {}; raise it, or lower max_blocks and queue_blocks",
                              options.budget_bytes, sizes.blocks, fixed, needed));
  };
  if (options.budget_bytes < fixed + largest) return too_small(largest);
  FIRN_ASSIGN(Ledger::Charge metadata_charge, parts.ledger->charge(Account::kHostMetadata, metadata));
  parts.charges.push_back(std::move(metadata_charge));
  FIRN_ASSIGN(Ledger::Charge scratch_charge, parts.ledger->charge(Account::kHostScratch, scratch_bytes));
  parts.charges.push_back(std::move(scratch_charge));
  // A frame and a reservation of each record, and those that are being written.
  Result<std::unique_ptr<HostTier>> host = HostTier::create({.budget_bytes = options.budget_bytes - fixed,
                                                             .placement = options.placement,
                                                             .huge_pages = options.huge_pages,
                                                             .max_frames = sizes.frames + 2 * kMaxBatch},
                                                            *parts.ledger);
  if (!host.ok())
    return host.status().code() == Code::kInvalidArgument && options.placement == "local"
               ? Status(Code::kNoSpace, "cold cache: " + host.status().message())
               : host.status().with_context("cold cache");
  const std::size_t most = (*host)->capabilities().max_frame_bytes;
  if (most < largest) return too_small(largest);

  std::vector<ColdTier> below;
  for (std::size_t i = 0; i < disks.size(); ++i) {
    Result<std::unique_ptr<DiskTier>> disk = DiskTier::create(disks[i], *parts.ledger);
    if (!disk.ok()) return disk.status().with_context(fmt::format("cold cache: tiers[{}]", i));
    parts.tiers.push_back(std::move(*disk));
    below.push_back({.id = TierId::kDisk,
                     .tier = parts.tiers.back().get(),
                     .write = options.tiers[i].write,
                     .eviction = options.tiers[i].eviction,
                     .probe = true});
  }
  below.insert(below.end(), environment.tiers.begin(), environment.tiers.end());

  std::vector<TierId> tiers = {TierId::kHost};
  std::vector<std::unique_ptr<EvictionPolicy>> policies;
  std::vector<FrameStore::Lower> lower;
  for (const ColdTier& tier : below) {
    tiers.push_back(tier.id);
    lower.push_back({tier.id, tier.write, tier.probe, std::make_unique<TierLink>(*tier.tier)});
  }
  for (std::uint32_t level = 0; level < levels; ++level) {
    FIRN_ASSIGN(std::unique_ptr<EvictionPolicy> policy, make_policy(policy_of_level[level], sizes.frames));
    policies.push_back(std::move(policy));
  }
  const std::uint64_t part = most / 8;  // a batch takes no more of the host tier at once
  std::vector<std::uint32_t> batch;
  for (std::size_t g = 0; g < options.model.groups.size(); ++g) {
    const std::uint64_t bound = parts.coder->bound(GroupId{static_cast<std::uint16_t>(g)}, kMaxExtentBlocks);
    batch.push_back(static_cast<std::uint32_t>(std::clamp<std::uint64_t>(part / bound, 1, kMaxBatch)));
  }
  parts.tickets = std::make_unique<Tickets>(options.queue_blocks, options.queue_tickets);
  FIRN_TRY(parts.tickets->open_event());
  parts.frames = std::make_unique<FrameStore>(std::move(*host), FrameTable(sizes.frames, sizes.blocks),
                                              TierStack(std::move(tiers), std::move(policies), sizes.frames),
                                              std::move(lower), sizes.blocks, options.queue_blocks, now_ns);
  if (options.admit_second_use) parts.offers = std::make_unique<Ghosts>(sizes.blocks);
  FIRN_ASSIGN(parts.mover, Mover::create({.lanes = lanes, .workers = options.workers, .now_ns = now_ns}));
  return std::unique_ptr<ColdCache>(std::make_unique<ColdCacheImpl>(
      options, environment, std::move(parts), now_ns, most - kStateHeaderBytes - 64, std::move(batch), part));
}

}  // namespace
}  // namespace cold

Result<std::unique_ptr<ColdCache>> ColdCache::create(const ColdCacheOptions& options,
                                                     const ColdEnvironment& environment) {
  return no_throw([&]() -> Result<std::unique_ptr<ColdCache>> {
    FIRN_ASSIGN(std::unique_ptr<ColdCache> cache, cold::make(options, environment));
    return std::unique_ptr<ColdCache>(std::make_unique<cold::GuardedColdCache>(std::move(cache)));
  });
}

}  // namespace firn
