#include "core/manager_impl.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <system_error>

#include "core/base/no_throw.h"
#include "core/config/host_codec.h"
#include "core/config/machine.h"
#include "core/config/quotas.h"
#include "core/guarded_manager.h"

namespace firn {
namespace {

Instant steady_now() {
  return {std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
              .count()};
}

// A clock of somebody else may say anything. Within these bounds no sum with a time to live, and no difference of two,
// overflows; steady and Unix nanoseconds stay far inside them.
std::function<Instant()> bounded(std::function<Instant()> clock) {
  static constexpr std::int64_t kFirst = -(std::int64_t{1} << 61), kLast = std::int64_t{1} << 62;
  return [clock = std::move(clock)] { return Instant{std::clamp(clock().ns, kFirst, kLast)}; };
}

// Frames compress; how far is not known before. Records are sized for this ratio, and a host tier that holds more
// blocks than that evicts frames early instead of growing its tables.
constexpr std::uint64_t kAssumedRatio = 4;
constexpr std::uint32_t kMaxRecords = 64u << 20;
constexpr std::uint64_t kMaxAutoStagingBytes = 64u << 20;
constexpr std::int64_t kLastWaitNs = 10'000'000'000;
constexpr std::uint64_t kSequenceAllowanceBytes = 256u << 20;
constexpr std::uint64_t kKeepAllowanceBytes = 16u << 20;  // of names, leases and what retention says of blocks

}  // namespace

Result<std::unique_ptr<Manager>> Manager::create(const Config& config, const ModelSpec& model,
                                                 Environment environment) {
  return no_throw([&]() -> Result<std::unique_ptr<Manager>> {
    FIRN_ASSIGN(std::unique_ptr<ManagerImpl> manager, ManagerImpl::create(config, model, std::move(environment)));
    return std::unique_ptr<Manager>(std::make_unique<GuardedManager>(std::move(manager)));
  });
}

Result<std::unique_ptr<ManagerImpl>> ManagerImpl::create(const Config& config, const ModelSpec& model,
                                                         Environment environment) {
  Config checked = config;
  if (config.device == "none" && environment.assumed_ratio > 0) checked.device = "cpu";  // its host tier is meant
  FIRN_TRY(validate(checked));
  FIRN_TRY(validate(model));
  std::unique_ptr<ManagerImpl> manager(new ManagerImpl(config, model, environment));
  FIRN_TRY(manager->set_up());
  FIRN_ASSIGN(const std::vector<NamedQuota> quotas, parse_quotas(config.quotas));
  for (NamedQuota one : quotas) {
    if (config.host.budget_bytes == 0) one.quota.host_floor = 0;  // of no tier nothing is kept; loading it has warned
    FIRN_TRY(manager->set_quota(one.name_space, one.quota).with_context("quotas: " + one.name_space));
  }
  // The last thing: a manager that is not made has not touched the file.
  if (!config.trace_record.empty()) {
    FIRN_ASSIGN(manager->recorder_, TraceRecorder::open(config.trace_record));
  }
  return manager;
}

ManagerImpl::ManagerImpl(const Config& config, const ModelSpec& model, const Environment& environment)
    : config_(config),
      model_(model),
      identity_(model_identity(model)),
      clock_(environment.clock ? bounded(environment.clock) : steady_now),
      threads_(environment.threads),
      device_(environment.device),
      assumed_ratio_(environment.assumed_ratio),
      memory_bytes_(environment.memory_bytes),
      namespaces_(identity_) {}

ManagerImpl::~ManagerImpl() {
  {
    Lock lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
  if (worker_.joinable()) worker_.join();
  if (!device_) return;
  // What was started and never waited for may still read and write all of this.
  device_->timeline().wait(device_->timeline().last(), kLastWaitNs).ok();
  memory_.reset();  // the arenas as the device knows them, before the host tier that they are of
}

// Groups whose blocks this library only keeps books of: their engine owns the kernels and the bytes.
Status ManagerImpl::check_groups() const {
  for (std::size_t g = 0; g < model_.groups.size(); ++g) {
    const GroupKind kind = model_.groups[g].kind;
    if (bytes_ && kind != GroupKind::kFull && kind != GroupKind::kSlidingWindow)
      return Status(
          Code::kInvalidArgument,
          fmt::format("model {}: groups[{}] is {}; on a device with bytes this version manages full attention "
                      "and sliding windows. Use device: none to have its blocks managed and run your own "
                      "kernels on block_table()",
                      model_.name, g, kind == GroupKind::kLatent ? "latent (MLA)" : "a recurrent state"));
    if (bytes_ && model_.groups[g].kv.dtype == Dtype::kBits8)
      return Status(Code::kInvalidArgument,
                    fmt::format("model {}: groups[{}] has elements of 8 bits, which no kernel of this library computes "
                                "on. Use device: none, and ColdCache for their bytes",
                                model_.name, g));
  }
  if (lossy_ && (layout_.sets.size() != 1 || windowed_))
    return Status(Code::kInvalidArgument,
                  fmt::format("host.codec {}: lossy codecs know models with one group of full attention; this one has "
                              "{} page sets{}. Use lossless",
                              config_.host.codec, layout_.sets.size(), windowed_ ? ", some with a window" : ""));
  return {};
}

Status ManagerImpl::set_up() {
  bytes_ = config_.device != "none";
  FIRN_ASSIGN(layout_, page_layout(model_));
  windowed_ = std::any_of(layout_.sets.begin(), layout_.sets.end(), [](const PageSet& set) {
    return set.kind == GroupKind::kSlidingWindow || set.kind == GroupKind::kState;
  });
  if (!threads_) {
    own_threads_ = std::make_unique<ThreadPool>(bytes_ ? config_.threads : 1);
    threads_ = own_threads_.get();
    // Where the number was ours to choose, as many as there may be will do.
    if (bytes_ && threads_->size() < config_.threads)
      return Status(Code::kUnavailable,
                    fmt::format("threads: {} were asked for, and the system lets this process have {}: {}; lower "
                                "threads or raise the limit",
                                config_.threads, threads_->size(), inspect_machine().process_text()));
  }
  config_.threads = threads_->size();
  if (!device_) {
    FIRN_ASSIGN(own_device_, make_device(config_.device, *threads_));
    device_ = own_device_.get();
  }
  if (config_.device == "auto") config_.device = device_->memory().info().name;
  if (!bytes_ && config_.host.budget_bytes != 0 && !(assumed_ratio_ > 0 && assumed_ratio_ <= 1024))
    return Status(
        Code::kInvalidArgument,
        "host.budget is set, but device 'none' keeps books only and has no bytes to store; remove host.budget or "
        "choose another device");
  if (config_.host.budget_bytes != 0) FIRN_TRY(make_codecs());
  FIRN_TRY(check_groups());
  FIRN_TRY(size_pool());
  FIRN_TRY(make_host_tier());
  FIRN_TRY(intern(std::string_view()).status());  // number 0, always there
  if (!host_ || !config_.mover.worker) return {};
  try {
    worker_ = std::jthread([this] { worker(); });
  } catch (const std::system_error&) {
    return Status(Code::kUnavailable,
                  fmt::format("mover.worker: the system refuses this process a thread: {}; raise the limit, or set "
                              "mover.worker: false and call pump()",
                              inspect_machine().process_text()));
  }
  return {};
}

// Memory that is only address space until it is touched is a promise like any other: the kernel would keep it by ending
// a process. So the sums are held against the machine before anything is taken.
Status ManagerImpl::check_machine(std::uint64_t pool_bytes) const {
  const std::uint64_t pool = bytes_ && device_->memory().info().name == "cpu" ? pool_bytes : 0;
  const std::uint64_t host = bytes_ ? config_.host.budget_bytes : 0;  // else its memory is never touched
  const std::uint64_t wanted = pool + host + fixed_metadata_bytes_;
  if (memory_bytes_ != 0 && wanted <= memory_bytes_) return {};
  const Machine machine = memory_bytes_ != 0 ? Machine{} : inspect_machine();
  const std::uint64_t usable = memory_bytes_ != 0 ? memory_bytes_ : machine.usable_bytes();
  if (usable == 0 || wanted <= usable) return {};  // 0: the system does not tell
  return Status(
      Code::kNoSpace,
      fmt::format("pool.budget {} + host.budget {} + tables {} are {} of this machine's memory, which has {}; lower "
                  "one of them",
                  format_bytes(pool), format_bytes(host), format_bytes(fixed_metadata_bytes_), format_bytes(wanted),
                  memory_bytes_ != 0 ? format_bytes(memory_bytes_) + " for this manager" : machine.memory_text()));
}

// Splits pool.budget into workspace, staging and slots, then takes them.
Status ManagerImpl::size_pool() {
  const std::uint64_t block_bytes = layout_.page_bytes;
  // Of the page set that needs most.
  const auto state_bytes = [&](std::uint32_t rows) {
    std::uint64_t most = 0;
    for (const PageSet& set : layout_.sets) most = std::max(most, Kernels::state_bytes(set.kv, set.query_heads, rows));
    return most;
  };
  std::uint64_t layer_token_bytes = 0;
  for (const PageSet& set : layout_.sets) layer_token_bytes = std::max(layer_token_bytes, set.kv.token_bytes());
  // A number of slots without a budget: staging and workspace are cut as if the slots were three quarters of one, and
  // the budget is what all of them come to. Without bytes the null slot is within the budget.
  const std::uint64_t wanted_slots = config_.pool.slots == 0 ? 0 : std::uint64_t{config_.pool.slots} + (bytes_ ? 0 : 1);
  const bool by_slots = wanted_slots != 0 && config_.pool.budget_bytes == 0;
  if (by_slots)
    config_.pool.budget_bytes = wanted_slots * block_bytes / 3 * 4;
  else if (config_.pool.budget_bytes == 0)
    config_.pool.budget_bytes = device_->memory().info().budget_bytes / 4;
  std::uint64_t budget = config_.pool.budget_bytes;
  max_rows_ = std::max(1u, config_.pool.max_step_tokens);
  std::uint64_t workspace_bytes = 0, staging_bytes = 0;
  std::uint32_t staging_blocks = 0;
  if (bytes_) {
    // Accumulators of every row, and the partial results of at least one split for every row.
    while (max_rows_ > 16 && 2 * state_bytes(max_rows_) > budget / 8) max_rows_ /= 2;
    workspace_bytes = 2 * state_bytes(max_rows_);
    if (config_.host.budget_bytes != 0) {
      // One split of one layer is the least that attention can work with.
      const std::uint64_t split_bytes = kSplitTokens * layer_token_bytes;
      const std::uint64_t wanted =
          config_.pool.staging_bytes != 0 ? config_.pool.staging_bytes : std::min(budget / 8, kMaxAutoStagingBytes);
      staging_bytes = std::max(split_bytes, wanted / split_bytes * split_bytes);
      staging_blocks = static_cast<std::uint32_t>(staging_bytes / (kBlockTokens * layer_token_bytes));
    }
  }
  config_.pool.max_step_tokens = max_rows_;
  config_.pool.staging_bytes = staging_bytes;
  // Where the host does not reach the pool, an extent at a time passes through memory that it does reach.
  const std::uint64_t transfer_bytes =
      bytes_ && config_.host.budget_bytes != 0 && !device_->memory().info().host_visible
          ? kMaxExtentBlocks * block_bytes
          : 0;
  const std::uint64_t taken = workspace_bytes + staging_bytes + transfer_bytes;
  pool_overhead_ = taken;
  elastic_ = config_.pool.max_budget_bytes != 0;
  if (by_slots) config_.pool.budget_bytes = budget = taken + wanted_slots * block_bytes;
  std::uint64_t slots = budget > taken ? (budget - taken) / block_bytes : 0;
  if (wanted_slots > slots)
    return Status(Code::kInvalidArgument,
                  fmt::format("pool.slots: {} of {} bytes, and {} for staging and workspace, are more than pool.budget "
                              "{}; set at least {}, or leave it out",
                              config_.pool.slots, block_bytes, format_bytes(taken), format_bytes(budget),
                              format_bytes(taken + wanted_slots * block_bytes)));
  if (wanted_slots != 0) slots = wanted_slots;
  std::uint64_t most_slots = slots;
  std::uint32_t chunk_slots = 0;
  if (elastic_) {
    constexpr std::uint64_t kElasticChunkBytes = 16u << 20;
    const std::uint64_t chunk_bytes =
        std::min({kElasticChunkBytes, slots * block_bytes / 8, device_->memory().info().max_region_bytes});
    chunk_slots = static_cast<std::uint32_t>(std::max<std::uint64_t>(1, chunk_bytes / block_bytes));
    slots = slots / chunk_slots * chunk_slots;
    most_slots = (config_.pool.max_budget_bytes - taken) / block_bytes / chunk_slots * chunk_slots;
  }
  // A sequence's sinks, its recent window wherever it starts within a block, and a block to grow into.
  // A lossy codec in strict mode takes whole groups: what is cold and no group yet stays too.
  const std::uint64_t group_blocks = strict_lossy() ? kMaxExtentBlocks : 0;
  const std::uint64_t least =
      bytes_ ? layout_.sets.size() *
                   (sink_blocks() + (config_.protect.recent + kBlockTokens - 1) / kBlockTokens + 2 + group_blocks)
             : 2;
  least_slots_ = static_cast<std::uint32_t>(least);
  if (slots < least)
    return Status(
        Code::kInvalidArgument,
        fmt::format("pool.budget: {} holds {} blocks of {} bytes beside {} for staging and workspace, but one "
                    "sequence needs {}; set at least {}",
                    format_bytes(budget), slots, block_bytes, format_bytes(taken), least,
                    format_bytes(taken + least * block_bytes)));
  if (most_slots >= kMaxRecords)
    return Status(
        Code::kInvalidArgument,
        fmt::format("pool.{}: {} would make {} blocks; at most {} are supported", elastic_ ? "max_budget" : "budget",
                    format_bytes(elastic_ ? config_.pool.max_budget_bytes : budget), most_slots, kMaxRecords));
  // The null slot has no bytes; a pool of one size that has none counts it within its budget.
  const std::uint32_t null_slot = bytes_ || elastic_ ? 1 : 0;
  const std::uint32_t slot_count = static_cast<std::uint32_t>(most_slots) + null_slot;

  const std::uint64_t framed = config_.host.budget_bytes * kAssumedRatio / block_bytes;
  const std::uint32_t frame_count =
      config_.host.budget_bytes == 0 ? 1
                                     : static_cast<std::uint32_t>(std::clamp<std::uint64_t>(framed, 64, kMaxRecords));
  const std::uint32_t block_count = slot_count + (config_.host.budget_bytes == 0 ? 0 : frame_count);
  const std::uint32_t ghost_count = std::max(4096u, block_count);
  // A slot is a page, whatever is in it; frames are of any size.
  const bool has_host = config_.host.budget_bytes != 0;
  const std::uint64_t policies = policy_bytes(config_.eviction, block_count, /*one_size=*/true) +
                                 (has_host ? policy_bytes(config_.eviction, block_count, /*one_size=*/false) : 0);
  fixed_metadata_bytes_ = BlockPool::metadata_bytes(slot_count, block_count, has_host) +
                          PrefixIndex::metadata_bytes(block_count) + FrameTable::metadata_bytes(frame_count) +
                          Ghosts::metadata_bytes(ghost_count) + policies +
                          kSmallSequences * sequence_bytes(kSmallTokens) + 2 * config_.mover.queue * sizeof(Job) +
                          Verdicts::metadata_bytes() + EventLog::metadata_bytes(config_.events.capacity, block_count) +
                          (config_.pool.zero_on_free ? slot_count * sizeof(std::uint32_t) : 0) +
                          (lossy_ ? block_count * sizeof(std::uint32_t) : 0);
  if (config_.retention.pin_budget_bytes == 0) config_.retention.pin_budget_bytes = budget / 4;
  // A state is whole or nothing.
  const bool partial_reuse =
      config_.partial_reuse && std::none_of(layout_.sets.begin(), layout_.sets.end(),
                                            [](const PageSet& set) { return set.kind == GroupKind::kState; });
  if (partial_reuse) fixed_metadata_bytes_ += PartialIndex::metadata_bytes(block_count);
  if (config_.metadata_budget_bytes == 0)
    config_.metadata_budget_bytes =
        fixed_metadata_bytes_ +
        // One sequence more than there may be: one that grows holds its old and its new table for a moment.
        std::min(kSequenceAllowanceBytes,
                 (config_.max_sequences + 1) * sequence_bytes(config_.max_sequence_tokens + kBlockTokens)) +
        kKeepAllowanceBytes;
  if (!config_.trace_record.empty()) fixed_metadata_bytes_ += TraceRecorder::metadata_bytes();
  FIRN_TRY(check_machine(budget));
  ledger_ = std::make_unique<Ledger>(budget, config_.host.budget_bytes, config_.metadata_budget_bytes);
  if (fail_charge_ != 0) ledger_->fail_charge(fail_charge_);
  FIRN_TRY(charge_metadata());

  pool_ = std::make_unique<BlockPool>(slot_count, block_count, static_cast<std::uint32_t>(slots) + null_slot, has_host);
  index_ = std::make_unique<PrefixIndex>(*pool_, block_count);
  if (partial_reuse) partial_ = std::make_unique<PartialIndex>(block_count);
  frames_ = std::make_unique<FrameTable>(frame_count);
  ghosts_ = std::make_unique<Ghosts>(ghost_count);
  FIRN_ASSIGN(auto slot_policy, make_policy(config_.eviction, block_count));
  slot_policy_ =
      std::make_unique<LeveledPolicy>(std::move(slot_policy), config_.eviction, block_count, /*one_size=*/true, *pool_);
  const std::uint32_t framed_blocks = has_host ? block_count : 1;  // without a host tier there are no frames
  FIRN_ASSIGN(auto frame_policy, make_policy(config_.eviction, framed_blocks));
  frame_policy_ = std::make_unique<LeveledPolicy>(std::move(frame_policy), config_.eviction, framed_blocks,
                                                  /*one_size=*/false, *pool_);
  retention_ = std::make_unique<Retention>(*ledger_);
  // What grows while nothing may fail has its room from here on.
  spare_.reserve(kSmallSequences);
  constexpr std::size_t kOtherPins = 64;
  if (config_.host.budget_bytes != 0) erase_later_.reserve(staging_blocks + kOtherPins);
  events_ = std::make_unique<EventLog>(config_.events.capacity, block_count);
  if (config_.pool.zero_on_free) slot_serials_.assign(slot_count, 0);
  if (lossy_) exact_refs_.assign(block_count, 0);
  memory_ = std::make_unique<SlotMemory>(layout_, *ledger_, *device_, bytes_, assumed_ratio_);
  const auto take = [&](Account account, RegionUse use, std::uint64_t bytes) -> Result<OwnedRegion> {
    FIRN_ASSIGN(Ledger::Charge charge, ledger_->charge(account, bytes));
    FIRN_ASSIGN(OwnedRegion region, OwnedRegion::allocate(device_->memory(), use, bytes));
    charges_.push_back(std::move(charge));
    return region;
  };
  if (bytes_) {
    FIRN_ASSIGN(workspace_, take(Account::kWorkspace, RegionUse::kWorkspace, workspace_bytes));
  }
  if (staging_bytes != 0) {
    FIRN_ASSIGN(OwnedRegion region, take(Account::kStaging, RegionUse::kStaging, staging_bytes));
    staging_ = Staging(std::move(region), staging_blocks);
  }
  if (transfer_bytes != 0) FIRN_TRY(memory_->take_transfer());
  if (!elastic_) return memory_->take(static_cast<std::uint32_t>(slots));
  memory_->plan_chunks(chunk_slots, static_cast<std::uint32_t>(most_slots / chunk_slots));
  for (std::uint32_t at = 0; at < slots / chunk_slots; ++at) FIRN_TRY(memory_->take_chunk(at));
  return {};
}

Status ManagerImpl::charge_metadata() {
  FIRN_ASSIGN(Ledger::Charge charge, ledger_->charge(Account::kMetadata, fixed_metadata_bytes_));
  charges_.push_back(std::move(charge));
  return {};
}

// host.codec, and beside a lossy one the exact codec of everything that is not lossy.
Status ManagerImpl::make_codecs() {
  const Config::Host& host = config_.host;
  FIRN_ASSIGN(const CodecId id, codec_from_name(host.codec));
  if (id == CodecId::kRaw || id == CodecId::kLossless) {
    FIRN_ASSIGN(codec_, make_codec(id));
    return {};
  }
  FIRN_ASSIGN(codec_, make_codec(CodecId::kLossless));
  const auto refused = [&](std::string_view what) {
    return Status(Code::kInvalidArgument,
                  fmt::format("host.codec {}: {}; calibrate and measure it with firn calibrate, or set "
                              "host.allow_unmeasured: true",
                              host.codec, what));
  };
  if (id == CodecId::kQ8 || id == CodecId::kQ4) {
    if (!host.allow_unmeasured) return refused("is lossy, and nothing says what it does to this model");
    FIRN_ASSIGN(lossy_, make_integer_codec(integer_coding(host)));
    return {};
  }
  FIRN_ASSIGN(const std::shared_ptr<const Artefact> artefact, load_artefact(host.artefact));
  FIRN_ASSIGN(lossy_, make_codec(id, artefact, host.ratio, model_));
  // firn has ratios between those of its report; the next larger one says what is lost at most.
  const ArtefactInfo info = describe(*artefact);
  const ArtefactRate* report = nullptr;
  for (const ArtefactRate& rate : info.rates)
    if (rate.rate >= host.ratio && (report == nullptr || rate.rate < report->rate)) report = &rate;
  if (!host.allow_unmeasured && (report == nullptr || !report->measured))
    return refused(fmt::format("the artefact {} has no measured report of ratio {}", host.artefact, host.ratio));
  return {};
}

Status ManagerImpl::make_host_tier() {
  if (config_.host.budget_bytes == 0) return {};
  std::size_t scratch_bytes = 0, resident_bytes = 0, bound = 0;
  for (const PageSet& set : layout_.sets) {
    const ExtentShape shape = extent_shape(set, kMaxExtentBlocks);
    scratch_bytes = std::max(scratch_bytes, codec_->scratch_bytes(shape));
    bound = std::max(bound, codec_->bound(shape));
  }
  if (lossy_) {
    const ExtentShape shape = extent_shape(layout_.sets[0], kMaxExtentBlocks);
    scratch_bytes = std::max(scratch_bytes, lossy_->scratch_bytes(shape));
    resident_bytes = lossy_->resident_bytes();
    bound = std::max(bound, lossy_->bound(shape));
  }
  // Every thread of the pool may code, and the worker beside them.
  FIRN_ASSIGN(Ledger::Charge scratch,
              ledger_->charge(Account::kHostScratch, scratch_bytes * (threads_->size() + 1) + resident_bytes));
  const std::uint64_t left = config_.host.budget_bytes - scratch.bytes();
  charges_.push_back(std::move(scratch));
  FIRN_ASSIGN(host_,
              HostTier::create(
                  {.budget_bytes = left, .placement = config_.host.placement, .huge_pages = config_.host.huge_pages},
                  *ledger_));
  if (host_->capabilities().max_frame_bytes < bound)
    return Status(
        Code::kInvalidArgument,
        fmt::format("host.budget: {} leaves room for frames of at most {} bytes, but one of {} tokens may need {}; "
                    "raise it",
                    format_bytes(config_.host.budget_bytes), host_->capabilities().max_frame_bytes,
                    kMaxExtentBlocks * kBlockTokens, bound));
  fixed_host_bytes_ = ledger_->spent(Budget::kHost);
  memory_->import_arenas(host_->arenas(), *codec_);
  return {};
}

Stats ManagerImpl::stats() const {
  Lock lock(mutex_);
  catch_up();
  Stats s = counters_;
  s.slots_total = pool_->slot_total();
  s.slots_reserved = reserved_slots_;
  s.slots_free = pool_->free_slots();
  s.slots_in_flight = loading_slots_ + storing_slots_;
  s.slots_live = pool_->live_slots();
  s.slots_cached = pool_->bound_slots() - s.slots_live;
  s.slots_cold = cold_slots_;
  for (const Deferred& deferred : deferred_)
    for (const Table& table : deferred.tables)
      for (const BlockId id : table.blocks)
        s.slots_in_flight +=
            id != BlockId::kNone && pool_->block(id).slot != SlotId::kNone && pool_->block(id).refs == 1;
  s.blocks = pool_->block_count();
  s.frames = frames_->count();
  s.sequences = sequences_.size();
  s.duplicate_blocks = index_->duplicate_count();
  s.block_bytes = layout_.page_bytes;
  s.token_bytes = model_.token_bytes();
  s.host_raw_bytes = host_raw_bytes_;
  if (host_) s.host_frame_bytes = host_->stats().resident_bytes;
  s.namespaces = namespaces_.count();
  s.leases = retention_->lease_count();
  s.pinned_blocks = retention_->held_count();
  s.pinned_bytes = s.pinned_blocks * layout_.page_bytes;
  s.priorities_expired = retention_->counters().priorities_expired;
  s.pins_expired = retention_->counters().pins_expired;
  s.leases_expired = retention_->counters().leases_expired;
  s.events = events_->last();
  s.events_lost = events_->lost();
  if (recorder_) {
    s.trace_lines = recorder_->report().lines;
    s.trace_lines_lost = recorder_->report().lost;
  }
  s.host_imported_bytes = memory_->imported_bytes();
  s.blocks_direct = memory_->blocks_direct();
  s.pool_bytes = ledger_->spent(Account::kPool);
  s.staging_bytes = ledger_->spent(Account::kStaging);
  s.workspace_bytes = ledger_->spent(Account::kWorkspace);
  s.metadata_bytes = ledger_->spent(Account::kMetadata);
  s.kv_cache_usage_perc = static_cast<double>(s.slots_live) / static_cast<double>(s.slots_total);
  return s;
}

std::vector<NodePlacement> ManagerImpl::host_placement() const {
  return host_ ? host_->placement() : std::vector<NodePlacement>{};
}

Result<std::uint64_t> ManagerImpl::hash_slot(SlotId slot) const {
  Lock lock(mutex_);
  if (index(slot) == 0 || index(slot) >= pool_->slot_count() || pool_->state(slot) != BlockPool::SlotState::kBound)
    return Status(Code::kUnavailable, "hash_slot: no block is resident in that slot");
  if (!memory_->readable())
    return Status(Code::kUnavailable, "hash_slot: this device's memory is not visible to the host");
  return memory_->hash(set_of(pool_->block(pool_->owner(slot))), slot);
}

std::string_view to_string(MissReason reason) {
  switch (reason) {
    case MissReason::kNone:
      return "none";
    case MissReason::kNeverStored:
      return "never_stored";
    case MissReason::kEvictedDevice:
      return "evicted:device";
    case MissReason::kEvictedHost:
      return "evicted:host";
    case MissReason::kAfterMiss:
      return "after_miss";
    case MissReason::kPartialTail:
      return "partial_tail";
    case MissReason::kLoadFailed:
      return "load_failed";
    case MissReason::kNotRead:
      return "not_read";
    case MissReason::kFidelity:
      return "fidelity";
    case MissReason::kGroup:
      return "group";
    case MissReason::kNamespace:
      return "namespace";
    case MissReason::kFiltered:
      return "filtered";
    case MissReason::kDeviceLost:
      return "device_lost";
    case MissReason::kIdentity:
      return "identity";
    case MissReason::kCount:
      break;
  }
  return "unknown";
}

}  // namespace firn
