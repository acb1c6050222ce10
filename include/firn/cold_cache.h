// cold_cache.h: the cold side alone, for engines that own their KV memory. You name blocks and say where their bytes
// are; ColdCache encodes them into frames, keeps the frames in tiers within one budget, and brings the bytes back to
// wherever you want them, or says why it cannot. It holds no pool, computes nothing and never looks at tokens.
//
// What it promises: bytes that come back are the bytes that went in (exact codecs) or within the codec's bound (lossy
// ones, if you opted in); a frame that is damaged is a miss with its reason and is dropped; the budget holds frames,
// tables, queues and scratch and is never exceeded; a call that is refused has changed nothing.
//
// Work is asynchronous: store, load and their like return a ticket at once, poll() or wait() tells how it ended, name
// by name, and event_fd() becomes readable when something has. Until its ticket has ended, what you passed by pointer
// (keys, views, bytes, and the memory that views point at) must stay where it is.
// Threads:  any thread may call. Calls that only look take a short lock, which is never held over a codec or a tier. In
//           the child of a fork() every call of a cache made before it answers kUnavailable, or nothing.
// Memory:   create() charges and allocates everything that grows with blocks or work; what a call allocates later
//           (messages, the answers of a ticket) is bounded by queue_blocks and charged for in advance. No call throws.
// Lifetime: outlives nothing: the destructor cancels what is queued and waits for what runs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "firn/codec.h"
#include "firn/device.h"
#include "firn/export.h"
#include "firn/ids.h"
#include "firn/key.h"
#include "firn/ledger.h"
#include "firn/model.h"
#include "firn/stats.h"
#include "firn/status.h"
#include "firn/thread_pool.h"
#include "firn/tier.h"

namespace firn {

// --- what it stands on ---

// When a frame goes to the tier below the one that has it.
enum class ColdWrite : std::uint8_t {
  kBack,     // when it is evicted above
  kThrough,  // as soon as it is stored; evicting it above then costs nothing
  kNever,    // only what is there already is read
};
FIRN_API std::string_view to_string(ColdWrite write);

// A tier below the host's. The cache does not own it; it outlives the cache, and nobody else submits to it.
struct ColdTier {
  TierId id = TierId::kDisk;  // tiers ascend, none twice
  Tier* tier = nullptr;
  ColdWrite write = ColdWrite::kBack;
  std::string eviction = "lru";  // who goes when it is full, of policy_names()
  // Ask it for names that the cache does not know: frames that another process, or an earlier one, put there. Those
  // look-ups are pending until it has answered.
  bool probe = false;
};

// A tier below the host's that the cache makes for itself.
struct ColdTierOptions {
  std::string kind = "disk";       // disk: a directory, found again by the next process (docs/disk.md)
  std::string path = {};           // of the directory; one cache a directory
  std::uint64_t budget_bytes = 0;  // of disk, every file of the directory in it. Hard
  ColdWrite write = ColdWrite::kThrough;
  std::string eviction = "lru";         // of what this process knows; what an earlier one left goes before
  bool admit_second_use = false;        // a frame is written the second time it is offered
  std::uint64_t daily_write_bytes = 0;  // 0: any
};

enum class ColdNames : std::uint8_t {
  // A name says nothing of its neighbours: each frame is named by all the names in it.
  kIndependent,
  // firn's keys (KeyChain): each names everything before it, so a frame is named by its last one, as a Manager's are.
  kChained,
};

struct ColdCacheOptions {
  // Geometry (groups) and identity: caches of different models never serve each other. weights, adapters and the rest
  // matter where frames leave the process, and for a name's hash.
  ModelSpec model = {};
  std::uint64_t budget_bytes = 0;  // of host memory, everything: frames, tables, queues, scratch. Hard.
  // How K/V is coded: raw | lossless (both exact), or, if you accept that the bytes change, q8 | q4 | q8/q4 |
  // kvtc@RATE.
  std::string codec = "lossless";
  std::string artefact = {};      // kvtc: the file that firn calibrate wrote
  bool allow_unmeasured = false;  // kvtc: an artefact without a measured report
  ColdNames names = ColdNames::kIndependent;
  std::string eviction = "lru";     // of the host tier, of policy_names()
  bool admit_second_use = false;    // a name is stored the second time it is offered; the first is only remembered
  std::string placement = "local";  // of the host tier's memory: local | node:N | interleave | spread:W0,W1,...
  bool huge_pages = true;
  // Nearest first. Their tables and buffers (some MiB a disk tier) are charged to budget_bytes.
  std::vector<ColdTierOptions> tiers = {};
  std::uint32_t max_blocks = 0;       // names at once; 0: from the budget
  std::uint32_t queue_blocks = 8192;  // names in tickets that nobody has collected; the next is kUnavailable
  std::uint32_t queue_tickets = 256;  // such tickets
  bool workers = true;                // threads of its own; false: pump() and wait() do the work in the caller's thread
};

// What belongs to somebody else. All optional; all outlive the cache.
struct ColdEnvironment {
  Ledger* ledger = nullptr;          // budget_bytes of its host budget are charged; null: one of its own
  ThreadPool* threads = nullptr;     // codecs spread batches of extents over it; null: one thread codes
  Device* device = nullptr;          // whose fences `after` names
  std::vector<Region> regions = {};  // what views with device addresses may point into; host: where we reach it
  std::vector<ColdTier> tiers = {};  // below the host, nearest first; after those of the options
  std::function<std::int64_t()> now_ns = {};  // for deadlines and policies; empty: the steady clock
};

// --- asking ---

// Blocks hold K/V, states hold bytes that only the engine understands. A name may have one of each.
enum class ColdKind : std::uint8_t { kBlock, kState };

// Why a name was not served.
enum class ColdMiss : std::uint8_t {
  kNone,
  kNeverStored,    // nobody stored it here, or it is older than we remember
  kEvictedHost,    // room was needed, and no tier below took it
  kEvictedDisk,    // it went to the disk tier, and was evicted there
  kEvictedRemote,  // likewise of the remote tier
  kErased,         // erase()
  kFiltered,       // store: offered for the first time, and options.admit_second_use is set
  kLoadFailed,     // its frame was damaged, or a tier failed: dropped
  kFidelity,       // what there is of it is less exact than was asked for
  kUnbound,        // the state it is bound to, or the block this state is bound to, is not here
  kUnavailable,    // the tier that has it did not answer in time; it may later
  kCount,
};
FIRN_API std::string_view to_string(ColdMiss miss);  // "never_stored", "evicted:host", ...

// Pending: a store under way brings it, or a tier below is asked for it.
enum class ColdAnswer : std::uint8_t { kMiss, kHit, kPending };
struct ColdFound {
  ColdAnswer answer = ColdAnswer::kMiss;
  ColdMiss miss = ColdMiss::kNone;       // of a miss
  TierId tier = TierId::kHost;           // of a hit: the nearest that has it
  Fidelity fidelity = Fidelity::kExact;  // of a hit
  std::uint64_t bytes = 0;               // of a hit that is a state: how many load_state writes
};

struct ColdQuery {
  std::span<const Key> keys = {};
  ColdKind kind = ColdKind::kBlock;
  Fidelity least = Fidelity::kDerived;  // what is less exact is a miss
  // Used where tiers are probed: which frames would have these blocks, were they stored by somebody else.
  GroupId group{};
  std::uint64_t first_position = 0;
  std::int64_t deadline_ns = 0;  // from now; 0: none
  bool follow = true;            // pending answers make a ticket, which has to be collected; false: ask again
};

// --- moving ---

// Consecutive blocks of one group: names, and where their K/V is.
struct ColdRun {
  GroupId group{};
  std::uint64_t first_position = 0;  // token position of the first block; a multiple of kBlockTokens
  std::span<const Key> keys = {};    // one a block
  // [layer][block], all layers of the group: where each block's rows are, in host memory. Store reads, load writes.
  std::span<const BlockView> views = {};
  bool device_addresses = false;  // views are addresses of the device, each within a region that the host reaches
  // Empty, or one a block: nonzero: this block is served only together with the state of its name.
  std::span<const std::uint8_t> bound = {};
  Fidelity fidelity = Fidelity::kExact;  // store: how the content relates to what the model computed
  Fidelity least = Fidelity::kDerived;   // load: what is less exact is a miss
  bool exact = false;                    // store: by an exact codec whatever options.codec says (sinks, windows)
  Fence after{};                         // not before this has passed
  std::int64_t deadline_ns = 0;          // from now; 0: none. What has not begun by then ends as kUnavailable
  std::uint8_t priority = 0;             // higher goes first
};

struct ColdState {
  Key key = {};
  std::span<const std::byte> bytes = {};  // store_state: 1 byte to max_state_bytes()
  std::span<std::byte> room = {};         // load_state: at least as many as were stored
  bool bound = false;                     // store_state: to the block of this name; neither is served without the other
};

// How one name of a ticket ended.
struct ColdResult {
  // store: it can be found now. load: its bytes are in your memory. prefetch: it is in the host tier. look-up: a hit.
  bool found = false;
  bool already = false;             // store: it was there before
  ColdMiss miss = ColdMiss::kNone;  // why not found, where that is nobody's failure
  TierId tier = TierId::kHost;      // where it was found
  Fidelity fidelity = Fidelity::kExact;
  std::uint64_t bytes = 0;  // load_state: written
  // Not ok: what went wrong, in a sentence. kNoSpace: no room could be made. kUnavailable: cancelled or too late.
  // kCorrupt: the frame was damaged (miss: load_failed). kIo: the device or a tier failed.
  Status status = {};
};
struct ColdDone {
  Ticket ticket = Ticket::kNone;
  Status status = {};                    // the first of the results that is not ok
  std::uint32_t found = 0;               // how many of them were
  std::vector<ColdResult> results = {};  // in the order of the names
};

struct ColdStats {
  // Gauges.
  std::uint64_t budget_bytes = 0, spent_bytes = 0, peak_bytes = 0;  // of the host budget
  std::uint64_t frames = 0, blocks = 0, states = 0, pinned = 0;
  std::array<std::uint64_t, static_cast<std::size_t>(TierId::kCount)> frames_in{}, bytes_in{};  // by tier
  std::uint64_t raw_bytes = 0;  // what frames in the host tier decode to
  std::uint64_t queued_names = 0, tickets = 0;
  // Counters. queries = hits + pending + misses, always; pending ones are not counted again.
  std::uint64_t queries = 0, pending = 0;
  std::array<std::uint64_t, static_cast<std::size_t>(TierId::kCount)> hits{};      // by tier
  std::array<std::uint64_t, static_cast<std::size_t>(ColdMiss::kCount)> misses{};  // by reason
  std::uint64_t blocks_stored = 0, blocks_loaded = 0, states_stored = 0, states_loaded = 0;
  std::uint64_t stored_bytes = 0, loaded_bytes = 0;     // encoded
  std::uint64_t refused = 0;                            // names that found no room
  std::uint64_t failed_frames = 0, guarded_frames = 0;  // damaged; stored lossless since the lossy error was too large
  std::array<std::uint64_t, static_cast<std::size_t>(TierId::kCount)> evictions{};  // frames, by tier
  std::uint64_t demoted = 0, fetched = 0, tier_failures = 0;  // frames written below, read from below; failed ops
  std::uint64_t cancelled = 0, expired = 0;                   // names
};
FIRN_API std::vector<StatFigure> figures(const ColdStats& stats);
FIRN_API std::string stats_json(const ColdStats& stats);

class FIRN_API ColdCache {
 public:
  static constexpr std::size_t kMaxNameBytes = 256;  // of an engine's own name; likewise of a namespace
  static constexpr std::uint32_t kMaxRunBlocks = 65536;

  // kInvalidArgument names the option. kNoSpace: the ledger, or a budget too small for one frame and the tables.
  static Result<std::unique_ptr<ColdCache>> create(const ColdCacheOptions& options,
                                                   const ColdEnvironment& environment = {});
  virtual ~ColdCache() = default;

  // An engine's own name, hashed into firn's key space under a namespace and the model's identity, each with its
  // length.
  virtual Result<Key> key(std::string_view name, std::string_view name_space = {}) const = 0;

  // One answer a name, at once; out has room for them. kNone: none is pending, or query.follow is not set; else a
  // ticket that ends when all are decided, with the answers again.
  virtual Result<Ticket> lookup(const ColdQuery& query, std::span<ColdFound> out) = 0;
  // kInvalidArgument: the run; kUnavailable: the queue is full, poll() first. Nothing was taken then.
  virtual Result<Ticket> store(const ColdRun& run) = 0;
  virtual Result<Ticket> load(const ColdRun& run) = 0;
  virtual Result<Ticket> store_state(std::span<const ColdState> states, std::int64_t deadline_ns = 0) = 0;
  virtual Result<Ticket> load_state(std::span<const ColdState> states, std::int64_t deadline_ns = 0) = 0;
  // From the tiers below into the host's.
  virtual Result<Ticket> prefetch(std::span<const Key> keys, ColdKind kind = ColdKind::kBlock,
                                  std::int64_t deadline_ns = 0) = 0;

  // Pinned names are not evicted and not erased; pins count. How many were here.
  virtual std::uint32_t pin(std::span<const Key> keys, ColdKind kind = ColdKind::kBlock) = 0;
  virtual std::uint32_t unpin(std::span<const Key> keys, ColdKind kind = ColdKind::kBlock) = 0;
  virtual std::uint32_t touch(std::span<const Key> keys, ColdKind kind = ColdKind::kBlock) = 0;
  // From all tiers. What is being read is gone at once for everybody else, and its bytes when the reader has finished.
  virtual std::uint32_t erase(std::span<const Key> keys, ColdKind kind = ColdKind::kBlock) = 0;

  // Tickets that have ended, oldest first; each is handed out once.
  virtual std::vector<ColdDone> poll(std::size_t max = 64) = 0;
  // Blocks until the ticket has ended. kUnavailable: timeout, nothing is lost. kInvalidArgument: no such ticket.
  virtual Result<ColdDone> wait(Ticket ticket, std::int64_t timeout_ns = std::numeric_limits<std::int64_t>::max()) = 0;
  virtual Status wait_idle(std::int64_t timeout_ns = std::numeric_limits<std::int64_t>::max()) = 0;
  // What of it has not begun ends as kUnavailable; the ticket still ends, and must be collected. False: it has ended.
  virtual bool cancel(Ticket ticket) = 0;
  // Readable while ended tickets wait to be collected. The cache's; do not read or close it.
  virtual int event_fd() const = 0;
  // workers: false. Works one step of what is queued; false: nothing could be done.
  virtual bool pump() = 0;

  virtual std::uint64_t max_state_bytes() const = 0;
  virtual ColdStats stats() const = 0;
  // Every owner's own tables against each other. A failure is a bug in firn and says where. Work may be under way.
  virtual Status verify() const = 0;
};

}  // namespace firn
