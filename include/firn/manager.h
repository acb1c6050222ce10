// manager.h: the KV cache of one model: sequences on top of blocks on top of a device pool and the tiers below it.
//
// A step of an engine:
//   begin(tokens)                          what of this prompt is already here?
//   plan_step({seq, n})                    how many tokens can go at once?
//   allocate(seq, n)                       slots for them, all or nothing
//   for each layer: append(k, v), attend(q, out)
//   commit(seq, tokens)                    now they are part of the sequence, and others may share full blocks
//   free(seq)
//
// Threads:  any number of callers, each with sequences of its own. Of two calls about one sequence at once, free,
// preempt
//           and rewind end what append or attend are doing with it: those return kInvalidArgument, and what they read
//           or write is given to nobody before. Any other two are a mistake. Each call takes the manager's lock;
//           kernels, codecs and copies run without it, and attend() calls take turns. The mover's worker runs beside
//           them. Without a worker (mover.worker: false) nothing happens outside your calls: pump() moves what waits. A
//           lossy codec in strict mode rewrites blocks at commit(): fork()ed sequences are then for one thread.
// Memory:   create() takes the pool, staging, workspace and tables; what grows later is charged to the metadata budget.
// Blocking: no call waits for the mover or a device unless it is named wait_*. One exception: with a lossy host.codec
//           in strict mode, begin, resume, attend and rewind code what commit has made lossy, or wait for the mover to
//           finish it. In the child of a fork() every call of a manager made before it answers kUnavailable.
// Failures: nothing throws. Memory that runs out is kNoSpace; calls without a status answer with nothing then.
//           A call that fails leaves every reference, queue and byte as it was, unless it says otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "firn/codec.h"
#include "firn/config.h"
#include "firn/device.h"
#include "firn/events.h"
#include "firn/explain.h"
#include "firn/export.h"
#include "firn/ids.h"
#include "firn/key.h"
#include "firn/ledger.h"
#include "firn/model.h"
#include "firn/policy.h"
#include "firn/retention.h"
#include "firn/stats.h"
#include "firn/status.h"
#include "firn/tier.h"

namespace firn {

class ThreadPool;

// A key whose frames fail to decode this often is not stored again for this long, so that no request goes round in a
// circle of computing, storing and failing to load.
inline constexpr std::uint32_t kLoadAttempts = 2;
inline constexpr std::int64_t kLoadVerdictNs = 60'000'000'000;

// What a prompt finds. Nothing is held: by the time begin() is called it may be gone.
struct PrefixMatch {
  std::uint32_t tokens = 0;  // reusable tokens from the start, at most tokens - 1: whole blocks, and tokens_partial
  std::uint32_t tokens_partial = 0;    // of those, in a block that the prompt leaves in its middle (partial_reuse)
  std::uint32_t tokens_on_device = 0;  // of those, resident in slots
  std::uint32_t tokens_on_host = 0;    // of those, only in host frames
  // With a lossy codec and protect.tail: recompute, matched tokens in the last window that have been through the codec
  // are given up: tokens_found were there, computing starts at recompute_from (= tokens).
  std::uint32_t tokens_found = 0, recompute_from = 0;
  // What the groups without a window have. More than `tokens`: a partial hit, which a window with holes or a missing
  // snapshot of a recurrent state cuts short (first_miss says so).
  std::uint32_t tokens_full = 0;
  MissReason first_miss = MissReason::kNone;  // why the block after them is not usable
};

// Whether a sequence is let in. expected_tokens: all it will have in the end, prompt and answer; 0: the prompt.
enum class Admission : std::uint8_t {
  kAlways,   // room is looked for when it is allocated
  kMustFit,  // begin() refuses unless all of it has room now: kUnavailable (later, perhaps), kNoSpace (never)
  kReserve,  // and that room is kept for it, through every call: what would break it is refused (kUnavailable)
};

struct BeginOptions {
  std::string_view name_space;  // tenants do not see each other's blocks; a part of every key
  bool read_cache = true;       // false: compute everything, store as usual
  // The least that is reused. kExact: nothing lossy or derived, and nothing this sequence holds becomes lossy while it
  // lives. Anything less exact: whatever the configured codec does.
  Fidelity min_fidelity = Fidelity::kDerived;
  // A scope that others read too, for what is nobody's secret: a system prompt. Blocks that lie wholly within the first
  // shared_tokens tokens are looked for there first, as far as they are found; what follows is this namespace's own.
  // share: they are stored there as well, and never in name_space. Whoever reads a scope can tell what is in it.
  std::optional<std::string_view> shared_scope = {};
  std::uint32_t shared_tokens = ~0u;
  bool share = false;
  // What decides beside the tokens what the prompt means; part of the keys of the blocks it concerns.
  KeyExtras extras = {};
  // The most that is reused. Ranks of one model agree on it: tokens_on_all_ranks() of what each of them matched.
  std::uint32_t max_reuse_tokens = ~0u;
  bool drop_last_block = false;  // speculative decoders that need the last matched block's hidden states compute it
  Admission admission = Admission::kAlways;
  std::uint32_t expected_tokens = 0;
};
// Tensor parallel: as many tokens as every rank can reuse. Each rank matches, all begin() with this max_reuse_tokens.
inline std::uint32_t tokens_on_all_ranks(std::span<const PrefixMatch> ranks) {
  std::uint32_t tokens = ranks.empty() ? 0 : ~0u;
  for (const PrefixMatch& match : ranks) tokens = match.tokens < tokens ? match.tokens : tokens;
  return tokens;
}

struct Begun {
  SeqId seq = SeqId::kNone;
  PrefixMatch match;  // match.tokens are committed already
};

// Copy-on-write: the first `tokens` tokens of slot `from` belong into slot `to`. firn has done it already where it owns
// the bytes; an engine that owns them does it before it writes to `to`.
struct CopyOrder {
  SlotId from = SlotId::kNone, to = SlotId::kNone;
  std::uint32_t tokens = 0;
  PageSetId page_set{0};
};

// What resize_pool() did.
struct SlotMove {
  SlotId from = SlotId::kNone, to = SlotId::kNone;
  PageSetId page_set{0};
};
struct PoolResize {
  std::uint64_t budget_bytes = 0;  // what the pool may use from now on
  std::uint32_t slots = 0;
  std::uint32_t evicted = 0;    // cached blocks that had no room any more
  std::vector<SlotMove> moved;  // blocks that had to leave their slots: block tables taken before are out of date
};

// What replace_device() found.
struct DeviceLoss {
  std::uint64_t blocks_kept = 0;    // were in the pool and have a frame in the host tier
  std::uint64_t blocks_lost = 0;    // had none; who asks for them hears MissReason::kDeviceLost
  std::uint64_t sequences_cut = 0;  // live ones that held such a block
};

struct StepRequest {
  SeqId seq = SeqId::kNone;
  std::uint32_t new_tokens = 0;
};
struct StepPlan {
  std::uint32_t chunk_limit = 0;  // new tokens the whole step may have now; 0: make room first, `blocked` says why
  std::uint32_t chunk_limit_moved = 0;  // and once what is cold has moved to the host: wait_room() if this is worth it
  std::uint32_t blocks_needed = 0;      // slots that allocate() will take for what was asked
  std::uint64_t staging_bytes = 0;      // cold bytes one layer decodes
  std::uint64_t workspace_bytes = 0;
  // Why chunk_limit is 0, as allocate() would say of the first request that may have nothing: kUnavailable (moving, or
  // the device is behind: pump or wait_room), kNoSpace (slots, records, metadata, a ceiling), kInvalidArgument
  // (max_sequence_tokens), kCorrupt (it has lost blocks: rewind to usable_tokens).
  Status blocked;
};

// Rows of one sequence within append and attend: consecutive tokens, allocated and perhaps not yet committed.
struct StepRows {
  SeqId seq = SeqId::kNone;
  std::uint32_t row = 0;  // first row of q, k, v and out
  std::uint32_t row_count = 0;
  std::uint32_t position = 0;  // of the first row's token
};

struct AttendParams {
  std::uint32_t query_heads = 0;
  float scale = 0;
  float soft_cap = 0;
  // What each block was worth to each row, for whoever ranks them; 0: not asked, at no cost. As AttendBatch's fields of
  // these names (firn/device.h), with b the block of the row's sequence. Both buffers are the engine's.
  DeviceAddress mass = 0;
  std::uint32_t mass_blocks = 0;
  DeviceAddress mass_scratch = 0;
};

// A slot of the pool, for schedulers and tests.
struct SlotInfo {
  Key key;                       // of the block in it; zero: empty, or not full yet
  std::uint32_t references = 0;  // entries of live sequences' tables
  PageSetId page_set{0};
  bool empty = false;  // no block is in it
};

// What verify() found broken; empty: nothing.
using Violations = std::vector<std::string>;

// What a manager stands on. Null members are made from the configuration; others are borrowed and must outlive it.
struct ManagerEnvironment {
  ThreadPool* threads = nullptr;
  Device* device = nullptr;
  std::function<Instant()> clock = {};  // default: the steady clock
  // Device "none" with a host tier, for simulations: raw bytes by frame bytes, since there is nothing to encode. The
  // tier's books are kept in full, and its memory is never touched. 0: device "none" has no host tier.
  double assumed_ratio = 0;
  // What pool, host tier and tables may have of the machine's memory together; create() and resize_pool() refuse more
  // (kNoSpace), whether it would be touched or not. 0: what the system and the cgroup say is available.
  std::uint64_t memory_bytes = 0;
};

class FIRN_API Manager {
 public:
  using Environment = ManagerEnvironment;
  static Result<std::unique_ptr<Manager>> create(const Config& config, const ModelSpec& model,
                                                 Environment environment = {});
  virtual ~Manager() = default;  // waits for the worker; sequences need not be freed

  // --- sequences ---
  // Read-only: what begin() would reuse. At most tokens.size() - 1 tokens, because the last one's logits are needed.
  virtual PrefixMatch match_prefix(std::span<const TokenId> tokens, std::string_view name_space = {},
                                   Fidelity min_fidelity = Fidelity::kDerived) const = 0;
  virtual PrefixMatch match_prefix(std::span<const TokenId> tokens, const BeginOptions& options) const = 0;
  virtual Result<Begun> begin(std::span<const TokenId> tokens, const BeginOptions& options = {}) = 0;
  virtual Result<StepPlan> plan_step(std::span<const StepRequest> requests) const = 0;
  // Room for new_tokens (and `lookahead` more) behind the committed ones. kUnavailable: cold blocks are on their way to
  // the host, a fence has not passed, or a step of another thread reads what would be taken; pump() or wait_room(),
  // then again. kNoSpace: live sequences, reservations, quotas, families or pins hold everything, or records or
  // metadata are used up. kInvalidArgument: more than max_sequence_tokens. kCorrupt: it has lost blocks; rewind to
  // usable_tokens(seq).
  virtual Result<std::vector<CopyOrder>> allocate(SeqId seq, std::uint32_t new_tokens, std::uint32_t lookahead = 0) = 0;
  // layer counts through the model's groups in their order. k, v: f32 [rows][kv_heads][dim], device addresses. Rows are
  // allocated and uncommitted.
  virtual Result<Fence> append(std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress k,
                               DeviceAddress v) = 0;
  // q: f32 [rows][query_heads][head_dim]; out: f32 [rows][query_heads][value_dim]. Causal over the whole sequence,
  // wherever its blocks are. kCorrupt: a frame did not decode; usable_tokens(seq) says what is left, rewind to it and
  // compute again.
  virtual Result<Fence> attend(std::uint32_t layer, std::span<const StepRows> rows, const AttendParams& params,
                               DeviceAddress q, DeviceAddress out) = 0;
  // The next tokens of the sequence, appended in every layer. Full blocks get their keys and can be found from now on;
  // what leaves the recent window is queued to be pressed into the host tier.
  virtual Status commit(SeqId seq, std::span<const TokenId> tokens) = 0;
  // A second sequence with the same tokens. Blocks are shared; the first write into a shared tail copies it. kNoSpace:
  // max_sequences, or metadata. kUnavailable: no room is left for that copy, and the parent's is kept (kReserve).
  virtual Result<SeqId> fork(SeqId seq) = 0;
  // Keeps the first n committed tokens. Dropped tokens that no other sequence shares are never matched again.
  // kInvalidArgument: more than it has or is usable, or within a block whose recurrent state was not kept.
  // kUnavailable: what slid out of a window is gone (free it and begin() again), or what is kept for sequences
  // (kReserve) would not be there any more, its own share of it too where others hold the same blocks; try again when a
  // sequence has ended.
  virtual Status rewind(SeqId seq, std::uint32_t n) = 0;
  // Blocks stay findable until evicted, the tail first. Slots are reused only after fence has passed. kInvalidArgument:
  // a fence that this manager's device did not give out or cannot wait for (an external one, on the devices of this
  // library); nothing has changed.
  virtual Status free(SeqId seq, const Fence& fence = {}) = 0;

  // Gives up every block of a sequence that stays in being with its tokens: for a while, others need the room more.
  // Full blocks stay findable and are stored as at free(); slots are reused only after fence has passed. Until resume()
  // the sequence takes no call but free() and token_count().
  virtual Status preempt(SeqId seq, const Fence& fence = {}) = 0;
  // Takes back what can still be found; the sequence then has match.tokens committed tokens, and the engine computes
  // the others again. May match all of its tokens if they end with a block.
  virtual Result<PrefixMatch> resume(SeqId seq) = 0;

  // The keys and values of committed tokens [first, first + count) of one layer, bit by bit as attention sees them, out
  // of slots or frames, into host memory: k: [count][kv_heads][head_dim], v: [count][kv_heads][value_dim] in the
  // group's dtype, of just these sizes in bytes. Waits for what was appended and takes turns with attend().
  // kUnavailable: some have slid out of the layer's window, or the host does not reach this device's memory; kCorrupt:
  // as attend(). What was written before a failure stays written.
  virtual Status gather(SeqId seq, std::uint32_t layer, std::uint32_t first, std::uint32_t count,
                        std::span<std::byte> k, std::span<std::byte> v) = 0;

  virtual bool has_sequence(SeqId seq) const = 0;            // begun and not freed
  virtual std::uint32_t token_count(SeqId seq) const = 0;    // committed
  virtual std::uint32_t usable_tokens(SeqId seq) const = 0;  // of those, before the first block that was lost
  // Slots of a sequence in one page set (layout()). kNone: not resident; SlotId{0}, the null block: behind the window.
  virtual std::vector<SlotId> block_table(SeqId seq, PageSetId page_set = PageSetId{0}) const = 0;
  virtual std::vector<Key> block_keys(SeqId seq) const = 0;  // of full blocks
  virtual std::vector<Key> compute_keys(std::span<const TokenId> tokens, std::string_view name_space = {}) const = 0;

  // --- moving ---
  // Brings the sequence's blocks back into free slots, sinks and recent window first, as far as slots reach; a ticket
  // to wait for, kNone if there is nothing to do. Blocks that find no slot are decoded into staging when attended.
  virtual Result<Ticket> prefetch(SeqId seq) = 0;
  virtual bool done(Ticket ticket) const = 0;
  virtual Status cancel(Ticket ticket) = 0;  // idempotent; queued work is dropped, running work completes
  // Does up to max_jobs waiting moves in this thread; how many it did. The only mover when mover.worker is false.
  virtual std::size_t pump(std::size_t max_jobs = ~std::size_t{0}) = 0;
  virtual Status wait(Ticket ticket, std::int64_t timeout_ns = 30'000'000'000) = 0;
  virtual Status wait_idle(std::int64_t timeout_ns = 30'000'000'000) = 0;  // nothing queued, nothing running
  // Until allocate(seq, new_tokens) can succeed or cannot any more. Pumps when there is no worker.
  virtual Status wait_room(SeqId seq, std::uint32_t new_tokens, std::int64_t timeout_ns = 30'000'000'000) = 0;
  // Until what append() and attend() have given the device up to this fence is done. kUnavailable: not yet, the timeout
  // went by; kIo: the device is lost; kInvalidArgument: not a fence of this manager's device, or none that it can wait
  // for. Fences of a device that was replaced have passed.
  virtual Status wait_fence(const Fence& fence, std::int64_t timeout_ns = 30'000'000'000) = 0;
  virtual Result<bool> fence_passed(const Fence& fence) const = 0;
  // Gives up every slot that no live sequence needs (those with a copy below stay findable). kUnavailable: something is
  // on its way, wait_idle() first, or a step is being computed. Every free slot is overwritten with poison. For tests
  // and demonstrations: nothing of the past is left in the pool.
  virtual Result<std::uint32_t> empty_pool(std::uint8_t poison) = 0;
  // The pool grows or shrinks to this budget, by whole chunks, at most to pool.max_budget. Shrinking moves what live
  // sequences hold and evicts what only cached blocks do; it does all of it or nothing. kNoSpace: live blocks do not
  // fit; kUnavailable: a step is being computed or blocks are on their way, try again. Between steps only: an engine
  // whose own kernels read slots waits for them first. The memory goes back to the device when nothing reads it.
  virtual Result<PoolResize> resize_pool(std::uint64_t budget_bytes) = 0;
  // When the device was lost (calls fail with kIo): the pool moves to this one, borrowed, or to a cpu device of the
  // manager's own, and is empty. Blocks with a frame in the host tier are found and attended as before. Sequences that
  // held others are as after kCorrupt: rewind to usable_tokens(seq) and compute the rest again. Nobody else calls
  // meanwhile; regions that the engine took on the old device are of no use, and go back to it first. The ledger keeps
  // its budgets. kNoSpace: the new device has no room; nothing has changed.
  virtual Result<DeviceLoss> replace_device(Device* device = nullptr) = 0;
  virtual Status reset() = 0;  // forgets everything cached; kUnavailable while sequences live

  // --- keeping --- (firn/retention.h)
  // Replaces the sequence's ranges; blocks it has already get their priority now, later ones when they are committed.
  virtual Status set_retention(SeqId seq, std::span<const RetentionRange> ranges) = 0;
  // No tier evicts these for ttl_ns; a second pin extends the first. kNoSpace: more than retention.pin_budget, or no
  // metadata; kUnavailable: it would hold what is kept for sequences (kReserve). Nothing was pinned then.
  virtual Result<PinReport> pin(std::span<const Key> keys, std::int64_t ttl_ns) = 0;
  virtual std::uint32_t unpin(std::span<const Key> keys) = 0;  // how many were pinned
  // All of the keys or none: kUnavailable names how many of the first are here, or says that it would hold what is kept
  // for sequences (kReserve); kNoSpace: retention.pin_budget, kMaxLeases, or no metadata. A lease ends at its deadline
  // or when it is released, whichever is first.
  virtual Result<LeaseId> acquire_lease(std::string_view owner, std::span<const Key> keys, std::int64_t ttl_ns) = 0;
  virtual Status renew_lease(LeaseId lease, std::int64_t ttl_ns) = 0;  // from now; kUnavailable: it has ended
  virtual bool release_lease(LeaseId lease) = 0;                       // false: it had ended already
  virtual std::vector<LeaseInfo> leases() const = 0;
  // From now on the blocks of these keys are evicted together, and kept while any one of them cannot go: parts that are
  // worth nothing without each other, such as the ranks or groups of one chunk. All of them are here; a block is in at
  // most one family. A family ends when one of its blocks is gone. kUnavailable: some are not here, or what would be
  // kept with them is kept for sequences (kReserve).
  virtual Status set_family(std::span<const Key> keys) = 0;

  // --- namespaces ---
  // Takes effect at once; who is above a new ceiling gets no new slots until it is below. kInvalidArgument: the floors
  // of all namespaces together are more than a tier has. kUnavailable: with this floor or ceiling, what is kept for
  // sequences (kReserve) could not be had any more. Nothing has changed then.
  virtual Status set_quota(std::string_view name_space, const NamespaceQuota& quota) = 0;
  virtual NamespaceUsage usage(std::string_view name_space) const = 0;
  // What events call a namespace: a hash that tells nothing to whoever does not know the name.
  virtual std::uint64_t namespace_tag(std::string_view name_space) const = 0;

  // --- knowing ---
  // Events after number `since` (0: from the first one), at most max. With a namespace: its events alone, by numbers of
  // their own, so that nobody can count what others do. kUnavailable: events.capacity is 0.
  virtual Result<EventBatch> take_events(std::uint64_t since, std::size_t max = ~std::size_t{0},
                                         std::optional<std::string_view> name_space = {}) const = 0;
  // Everything that can be found now, parents before children.
  virtual Result<EventSnapshot> event_snapshot(std::optional<std::string_view> name_space = {}) const = 0;
  // For each block of the prompt: a hit and where, or the reason. Changes nothing and counts nothing.
  virtual Explanation explain(std::span<const TokenId> tokens, const BeginOptions& options = {}) const = 0;
  virtual std::vector<BlockState> block_states(SeqId seq) const = 0;
  // Who holds what, as JSON: leases, pins, sequences, budgets and counters. `firn dump FILE` prints it for people.
  virtual std::string dump() const = 0;
  virtual Stats stats() const = 0;
  virtual const Ledger& ledger() const = 0;
  virtual const ModelSpec& model() const = 0;
  virtual const PageLayout& layout() const = 0;  // how the model's groups share pages
  virtual const Config& config() const = 0;      // with every automatic value filled in
  virtual Device& device() = 0;
  virtual std::vector<NodePlacement> host_placement() const = 0;
  // Hash (XXH3-64) of a resident block's raw bytes; kUnavailable if it is not resident.
  virtual Result<std::uint64_t> hash_slot(SlotId slot) const = 0;
  virtual Result<SlotInfo> slot_info(SlotId slot) const = 0;
  // Where one layer of what is in a slot lies on the device, for an engine's own kernels; whole blocks of kBlockTokens.
  // True until resize_pool() or replace_device(). kInvalidArgument: there is no such slot or layer, or the block in it
  // is of a page set that the layer is not in; kUnavailable: device none has no bytes.
  virtual Result<BlockView> slot_view(SlotId slot, std::uint32_t layer) const = 0;
  // The slots that allocate() would take, the next one first: empty ones, then evictable ones in the policy's order,
  // each once. Changes nothing. O(slots), and a copy of the policy: for tests and tools.
  virtual std::vector<SlotId> reuse_order() const = 0;
  // Every invariant the manager has, checked from scratch. O(blocks); leave it on in debug builds.
  virtual Violations verify() const = 0;
};

}  // namespace firn
