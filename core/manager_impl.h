// manager_impl.h: the manager. Its parts: BlockPool (records and slots), PrefixIndex (keys), FrameTable (copies below),
// one EvictionPolicy for slots and one for frames, MemoryTier (the bytes below), and a bounded queue of moves.
//
// Files: manager_impl.cpp creates; sequences.cpp is begin to free; attention.cpp is append and attend; mover.cpp moves;
// verify.cpp checks. Every function that takes a Lock runs under the manager's mutex; the ones that let go of it say
// so.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "core/attention/staging.h"
#include "core/base/owned_region.h"
#include "core/block_pool.h"
#include "core/blocks/slot_memory.h"
#include "core/event_log.h"
#include "core/frame_table.h"
#include "core/ghosts.h"
#include "core/leveled_policy.h"
#include "core/namespaces.h"
#include "core/partial_index.h"
#include "core/prefix_index.h"
#include "core/retention.h"
#include "core/trace_recorder.h"
#include "core/verdicts.h"
#include "firn/manager.h"
#include "firn/thread_pool.h"

namespace firn {

using Lock = std::unique_lock<std::mutex>;

// A weak reference to a block: a queue that holds it pins nothing.
struct BlockRef {
  BlockId id = BlockId::kNone;
  std::uint32_t generation = 0;
};

// The blocks of one sequence in one page set. Entries are BlockId::kNone (the null block) where the page set does not
// need them any more: behind its window, or between snapshots of a recurrent state.
struct Table {
  std::vector<BlockId> blocks;   // covers committed and allocated tokens
  std::uint32_t store_next = 0;  // blocks before this have been queued for storing, sinks aside
  std::uint32_t first_held = 0;  // everything before it is the null block
};

// What a request put into its keys beside tokens; a fork shares it.
struct HeldExtras {
  KeyExtras extras;
  Ledger::Charge charge;
};

struct Sequence {
  SeqId id = SeqId::kNone;
  std::uint16_t name_space = 0;
  std::vector<TokenId> tokens;    // committed
  std::vector<Table> tables;      // one a page set, all of one length
  std::uint32_t hot_first = 0;    // blocks from here on are in the recent window
  std::uint32_t lost_from = ~0u;  // first block whose only copy did not decode, or went with the device
  bool lost_device = false;       // the latter
  std::uint32_t reserved = 0;     // slots kept for it that it has not taken yet
  // Of those, the most that it may take in its own namespace, and in its shared scope.
  std::uint32_t reserved_own = 0, reserved_shared = 0;
  std::uint32_t expected = 0;                  // tokens that they are kept for; 0: it asked for no such thing
  bool preempted = false;                      // has its tokens and no blocks
  std::uint64_t step = 0;                      // the newest append or attend call that has had it among its rows
  Fidelity min_fidelity = Fidelity::kDerived;  // kExact: nothing it holds becomes lossy while it lives
  bool exact() const { return min_fidelity == Fidelity::kExact; }
  // What else it asked for when it was begun, and is held to when it is resumed.
  bool share = false, drop_last = false;
  std::uint32_t max_reuse = ~0u;   // tokens; 0: it does not read the cache
  bool small = false;              // has the room of kSmallTokens, which was charged when the manager was made
  Key last_key;                    // of the last full block
  std::uint16_t shared_space = 0;  // of its first shared_blocks blocks
  std::uint32_t shared_blocks = 0;
  std::shared_ptr<const HeldExtras> extras;  // null: none
  const KeyExtras* key_extras() const { return extras ? &extras->extras : nullptr; }
  std::vector<RetentionRange> ranges;
  Ledger::Charge ranges_charge;
  std::uint32_t prompt_tokens = 0;  // what it was begun with, and when: for trace.record
  Instant begun;
  Ledger::Charge charge;  // for tokens and blocks
  std::uint32_t committed_blocks() const { return static_cast<std::uint32_t>(tokens.size()) / kBlockTokens; }
  std::uint32_t block_count() const { return static_cast<std::uint32_t>(tables[0].blocks.size()); }
};

struct Job {
  enum class Kind : std::uint8_t { kStore, kLoad } kind = Kind::kStore;
  Ticket ticket = Ticket::kNone;
  std::array<BlockRef, kMaxExtentBlocks> blocks{};
  std::uint8_t count = 0;
  bool lossy = false;              // store: by the lossy codec
  FrameId frame = FrameId::kNone;  // load: which one
  std::uint32_t frame_generation = 0;
  Fence fence;  // store: after this the blocks' bytes are written
};

class ManagerImpl final : public Manager {
 public:
  static Result<std::unique_ptr<ManagerImpl>> create(const Config& config, const ModelSpec& model,
                                                     Environment environment);
  ~ManagerImpl() override;

  PrefixMatch match_prefix(std::span<const TokenId> tokens, std::string_view name_space,
                           Fidelity min_fidelity) const override;
  Result<Begun> begin(std::span<const TokenId> tokens, const BeginOptions& options) override;
  Result<StepPlan> plan_step(std::span<const StepRequest> requests) const override;
  Result<std::vector<CopyOrder>> allocate(SeqId seq, std::uint32_t new_tokens, std::uint32_t lookahead) override;
  Result<Fence> append(std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress k, DeviceAddress v) override;
  Result<Fence> attend(std::uint32_t layer, std::span<const StepRows> rows, const AttendParams& params, DeviceAddress q,
                       DeviceAddress out) override;
  Status commit(SeqId seq, std::span<const TokenId> tokens) override;
  Result<SeqId> fork(SeqId seq) override;
  Status rewind(SeqId seq, std::uint32_t n) override;
  Status free(SeqId seq, const Fence& fence) override;
  Status preempt(SeqId seq, const Fence& fence) override;
  Result<PrefixMatch> resume(SeqId seq) override;
  Status gather(SeqId seq, std::uint32_t layer, std::uint32_t first, std::uint32_t count, std::span<std::byte> k,
                std::span<std::byte> v) override;
  bool has_sequence(SeqId seq) const override;
  std::uint32_t token_count(SeqId seq) const override;
  std::uint32_t usable_tokens(SeqId seq) const override;
  std::vector<SlotId> block_table(SeqId seq, PageSetId page_set) const override;
  std::vector<Key> block_keys(SeqId seq) const override;
  std::vector<Key> compute_keys(std::span<const TokenId> tokens, std::string_view name_space) const override;
  Result<Ticket> prefetch(SeqId seq) override;
  bool done(Ticket ticket) const override;
  Status cancel(Ticket ticket) override;
  std::size_t pump(std::size_t max_jobs) override;
  Status wait(Ticket ticket, std::int64_t timeout_ns) override;
  Status wait_idle(std::int64_t timeout_ns) override;
  Status wait_room(SeqId seq, std::uint32_t new_tokens, std::int64_t timeout_ns) override;
  Status wait_fence(const Fence& fence, std::int64_t timeout_ns) override;
  Result<bool> fence_passed(const Fence& fence) const override;
  Result<std::uint32_t> empty_pool(std::uint8_t poison) override;
  Result<DeviceLoss> replace_device(Device* device) override;
  Result<PoolResize> resize_pool(std::uint64_t budget_bytes) override;
  Status reset() override;
  PrefixMatch match_prefix(std::span<const TokenId> tokens, const BeginOptions& options) const override;
  Status set_retention(SeqId seq, std::span<const RetentionRange> ranges) override;
  Result<PinReport> pin(std::span<const Key> keys, std::int64_t ttl_ns) override;
  std::uint32_t unpin(std::span<const Key> keys) override;
  Result<LeaseId> acquire_lease(std::string_view owner, std::span<const Key> keys, std::int64_t ttl_ns) override;
  Status renew_lease(LeaseId lease, std::int64_t ttl_ns) override;
  bool release_lease(LeaseId lease) override;
  std::vector<LeaseInfo> leases() const override;
  Status set_family(std::span<const Key> keys) override;
  Status set_quota(std::string_view name_space, const NamespaceQuota& quota) override;
  NamespaceUsage usage(std::string_view name_space) const override;
  std::uint64_t namespace_tag(std::string_view name_space) const override;
  Result<EventBatch> take_events(std::uint64_t since, std::size_t max,
                                 std::optional<std::string_view> name_space) const override;
  Result<EventSnapshot> event_snapshot(std::optional<std::string_view> name_space) const override;
  Explanation explain(std::span<const TokenId> tokens, const BeginOptions& options) const override;
  std::vector<BlockState> block_states(SeqId seq) const override;
  std::string dump() const override;
  Stats stats() const override;
  const Ledger& ledger() const override { return *ledger_; }
  const ModelSpec& model() const override { return model_; }
  const PageLayout& layout() const override { return layout_; }
  const Config& config() const override { return config_; }
  Device& device() override { return *device_; }
  std::vector<NodePlacement> host_placement() const override;
  Result<std::uint64_t> hash_slot(SlotId slot) const override;
  Result<SlotInfo> slot_info(SlotId slot) const override;
  Result<BlockView> slot_view(SlotId slot, std::uint32_t layer) const override;
  std::vector<SlotId> reuse_order() const override;
  Violations verify() const override;

 private:
  friend struct ManagerTestPeer;
  static constexpr std::uint16_t kAnyNamespace = 0xffff;  // whoever asks: no floor holds it back
  static constexpr std::uint16_t kNewNamespace = 0xfffe;  // one that has nothing yet; Namespaces names fewer
  // What begin and match_prefix find: the blocks of the longest usable chain, by page set.
  struct Found {
    std::vector<std::vector<BlockId>> tables;
    std::vector<BlockId> partial;  // by page set, the block that the prompt leaves in its middle; empty: none
    std::uint32_t shared = 0;      // blocks of the shared scope, which come first
    PrefixMatch match;
    std::uint32_t block_count() const { return static_cast<std::uint32_t>(tables[0].size()); }
  };
  // Where a request looks, block by block.
  struct Scope {
    KeyChain own;
    std::optional<KeyChain> shared = {};
    std::uint32_t shared_blocks = 0;  // the most that may be found in it, or with `share` that are
    bool share = false;
    Fidelity min_fidelity = Fidelity::kDerived;
    std::uint16_t own_space = kAnyNamespace, shared_space = kAnyNamespace;  // numbers, as far as they are known
    const KeyExtras* extras = nullptr;                                      // borrowed; null: none
    std::uint32_t max_tokens = ~0u;
    bool drop_last = false;
  };
  struct Wave;  // attention.cpp

  ManagerImpl(const Config& config, const ModelSpec& model, const Environment& environment);
  Status set_up();  // create(), after the cheap checks
  Status check_groups() const;
  Status size_pool();
  Status check_machine(std::uint64_t pool_bytes) const;
  Status make_codecs();
  Status make_host_tier();
  Status charge_metadata();

  // --- sequences.cpp ---
  Sequence* find_sequence(SeqId id);
  const Sequence* find_sequence(SeqId id) const;
  Result<Sequence*> get_sequence(SeqId id, std::string_view call);  // not a preempted one
  Status check_sequences() const;                                   // there may be one more
  Result<Sequence*> make_sequence(std::uint16_t name_space);
  Result<Sequence*> make_begun(std::size_t tokens, const BeginOptions& options);
  void drop_sequence(Sequence& seq);
  // all: the last token is not needed for its logits.
  Found find_prefix(std::span<const TokenId> tokens, const Scope& scope, bool all = false) const;
  void hold(Sequence& seq, const Found& found);  // the sequence has these blocks now
  void record_request(const Sequence& seq) noexcept;
  // What every page set has of one key.
  struct Row {
    bool ends = false, any = false;       // a page set without a window has none; some page set has one
    MissReason hole = MissReason::kNone;  // why the first that has none has none
  };
  Row look_up(const Key& key, Fidelity min_fidelity, std::vector<BlockId>& ids) const;  // ids: by page set
  static Key next_key(const KeyChain& chain, const KeyExtras* extras, const Key& before,
                      std::span<const TokenId> tokens, std::uint64_t first_token);
  // Of block i of a sequence, whose tokens may still be on their way.
  Key block_key(const Sequence& seq, std::uint32_t i, const Key& before, std::span<const TokenId> tokens) const;
  std::vector<Key> sequence_keys(const Sequence& seq, std::uint32_t blocks) const;
  std::vector<Key> keys_of(const Sequence& seq, std::uint32_t blocks) const;
  bool public_has(const Scope& scope, std::span<const TokenId> tokens) const;
  bool plain_has(const Scope& scope, const Key& before, std::span<const TokenId> tokens) const;
  Scope make_scope(const BeginOptions& options, std::size_t tokens) const;      // of names that are known or not
  KeyChain chain_of(std::string_view name_space, std::uint16_t& number) const;  // kNewNamespace: it is not known
  std::uint16_t space_of(const Sequence& seq, std::uint32_t block) const {
    return block < seq.shared_blocks ? seq.shared_space : seq.name_space;
  }
  Result<std::shared_ptr<const HeldExtras>> hold_extras(const KeyExtras& extras);
  void announce_misses(const Sequence& seq, std::span<const TokenId> tokens);
  void recompute_tail(Found& found) const;  // gives up the last matched blocks if they have been through a lossy codec
  // The cheapest of the blocks with this key that are good enough; any: whether there is one that is not.
  BlockId best_block(const Key& key, PageSetId page_set, Fidelity min_fidelity, bool& any) const;
  // The most blocks of found at which every page set can go on: windows are whole, states have a snapshot there.
  std::uint32_t resume_point(const Found& found) const;
  void cut_to_windows(Found& found) const;
  void find_partial(Found& found, std::span<const TokenId> tokens, const Scope& scope, const Key& last) const;
  std::uint64_t movable_slots() const;
  Status check_commit(const Sequence& seq, std::uint64_t total) const;
  Key last_key(const Sequence& seq) const;
  struct TakenBack {  // by a rewind behind a window
    std::uint8_t page_set = 0;
    std::uint32_t at = 0;
    BlockId id = BlockId::kNone;
  };
  Result<std::vector<TakenBack>> reach_back(const Sequence& seq, std::uint32_t n) const;
  void take_back(Sequence& seq, std::uint32_t n, std::span<const TakenBack> back);
  bool attends_lossy(const Sequence& seq) const;  // any block of its committed tokens is not exact
  // Some sequence that asked for exact context holds it.
  bool held_exact(BlockId id) const { return lossy_ && exact_refs_[index(id)] != 0; }
  // Its bytes may go through the lossy codec: nobody holds it as exact, and it has not been through one.
  bool may_be_coded(BlockId id) const { return lossy_ && !pool_->block(id).coded && !held_exact(id); }
  bool is_lossy(const Frame& frame) const { return lossy_ && frame.codec == lossy_->id(); }
  // Strict mode with a lossy codec: whatever commit has made lossy is lossy before anybody looks.
  bool strict_lossy() const { return lossy_ && config_.mode == "strict"; }
  Status settle_lossy(Lock& lock);  // lets go of the lock
  // Of a sequence's tokens and table.
  std::uint64_t sequence_bytes(std::uint64_t tokens) const {
    return tokens * sizeof(TokenId) + layout_.sets.size() * (tokens / kBlockTokens + 2) * sizeof(BlockId);
  }
  Status check_length(std::uint64_t tokens) const;  // max_sequence_tokens
  Status reserve_tokens(Sequence& seq, std::uint64_t tokens);
  static void make_room(Sequence& seq, std::uint64_t tokens);  // charged by the caller
  std::uint32_t sink_blocks() const { return (config_.protect.sinks + kBlockTokens - 1) / kBlockTokens; }
  std::uint32_t hot_first(std::uint64_t tokens) const;
  bool is_hot(const Sequence& seq, std::uint32_t block) const {
    return block < sink_blocks() || block >= seq.hot_first;
  }
  bool same_life(const BlockRef& ref) const { return pool_->generation(ref.id) == ref.generation; }
  void move_window(Sequence& seq);      // hot_refs follow the committed tokens
  void slide_out(Sequence& seq);        // blocks that no later token looks at become the null block
  void hold_for_replay(Sequence& seq);  // before it ends: what the same tokens would ask for
  BlockId block_before(const Sequence& seq, std::uint32_t block, BlockId id) const;
  // Blocks that a sequence with the same first tokens could be given of a prompt of so many.
  static std::uint64_t replay_blocks(const Sequence& seq, std::uint64_t tokens);
  // The first block that tokens after the first `tokens` ones look at.
  static std::uint32_t first_needed(const PageSet& set, std::uint64_t tokens);
  // Whether a table gets a block at this index when a step takes the sequence to `certain` tokens.
  static bool takes_block(const Sequence& seq, const PageSet& set, std::uint32_t block, std::uint64_t certain);
  bool windowed() const { return windowed_; }  // some page set gives blocks up while their sequence lives
  const PageSet& set_of(const Block& block) const { return layout_.sets[index(block.page_set)]; }
  struct Need {
    std::uint32_t blocks = 0;  // new ones behind the tables
    std::uint32_t copies = 0;  // and those to copy tails into
    std::uint32_t shared = 0;  // of all of them, in the shared scope
    std::uint32_t slots() const { return blocks + copies; }
  };
  Status refuse_allocation(const Sequence& seq, const Need& need);
  // certain: tokens that will be committed; tokens: those and the ones that may be.
  Need blocks_needed(const Sequence& seq, std::uint64_t certain, std::uint64_t tokens) const;
  // What the requests of one step may have, in their order and each as allocate() would find it.
  struct Granted {
    std::uint64_t tokens = 0;
    Status refusal;  // of the first that may not have all it wants; kNoSpace also where slots are what is missing
    bool by_slots = false;
  };
  class StepBooks;
  Granted grant(std::span<const StepRequest> requests, std::uint64_t movable) const;
  std::uint64_t metadata_left() const;
  // What growing a sequence to so many tokens has to charge; 0: it has the room.
  std::uint64_t growth_bytes(const Sequence& seq, std::uint64_t tokens, std::uint64_t* room) const;
  // Slots that a namespace could get: free ones and those whose block may go for it, and how many its ceiling allows.
  struct Reach {
    std::uint64_t slots = 0, below_ceiling = ~std::uint64_t{0};
  };
  Reach reach(std::uint16_t name_space, bool while_reading) const;
  Reach reach(std::uint16_t name_space) const { return reach(name_space, running_steps_ != 0); }
  bool has_room(const Sequence& seq, const Need& need, bool while_reading) const;
  bool has_room(const Sequence& seq, const Need& need) const { return has_room(seq, need, running_steps_ != 0); }
  bool has_records(const Sequence& seq, std::uint64_t count) const;
  std::uint32_t available_slots(const Sequence* who = nullptr) const;  // without what is kept for others
  // Slots that may be taken, or kept from being taken, without breaking into what is kept for anybody.
  std::uint64_t spare_slots() const { return spare_slots(kAnyNamespace, kAnyNamespace); }
  // By a call that has to do with the blocks of these alone.
  std::uint64_t spare_slots(std::uint16_t own, std::uint16_t shared) const;

  // --- admission.cpp ---
  std::uint32_t most_slots(const PageSet& set, std::uint64_t tokens, std::uint32_t snapshots) const;
  std::uint32_t in_slots(std::span<const BlockId> blocks) const;
  struct Parts {  // of a need, in a shared scope and in the sequence's own namespace, each at its most
    std::uint32_t scope_blocks = 0;  // given: its first blocks, which are written there
    std::uint32_t scope_most = 0, own_most = 0;
  };
  std::uint32_t whole_need(const Found& found, std::uint64_t tokens, std::uint32_t snapshots,
                           Parts* parts = nullptr) const;
  static std::uint32_t most_snapshots(bool drop_last, std::uint32_t max_reuse) {
    return 3 + (drop_last || max_reuse != ~0u ? 1 : 0);
  }
  Status admit(const Found& found, std::uint64_t prompt_tokens, const BeginOptions& options, const Scope& scope);
  std::uint32_t revived_slots(const Found& found) const;
  // find_prefix, and no more of it than leaves what is kept for others.
  Found find_spare(std::span<const TokenId> tokens, const Scope& scope, bool all = false) const;
  void keep_slots(Sequence& seq, std::uint32_t slots);  // that many are kept for it from now on
  // Of so many slots, the most that a sequence may take in its shared scope, and in its own namespace.
  std::uint32_t shared_part(const Sequence& seq, std::uint32_t slots) const;
  std::uint32_t own_part(const Sequence& seq, std::uint32_t slots) const;
  void take_reserved(Sequence& seq, std::uint32_t slots);  // of what is kept for it
  void renew_reservation(Sequence& seq);  // it has fewer blocks than it had: room for them, as far as there is
  std::uint32_t kept_need(const Sequence& seq) const;
  std::uint32_t kept_need(const Sequence& seq, std::size_t page_set, std::uint64_t n, std::uint32_t has) const;
  // What a call is about to change: slots that come free, by whose they are, and some that could be had and stay.
  struct Change {
    std::uint64_t given = 0, taken = 0;
    std::vector<std::pair<std::uint16_t, std::uint64_t>> by_space;
    std::uint64_t floored = 0;  // of given, what its namespace's floor may want back
    void give(std::uint16_t name_space, bool has_floor);
    std::uint64_t given_by(std::uint16_t name_space, bool others) const;
  };
  // more: slots, of which so many may be taken in each of the two namespaces.
  struct Keep {
    std::uint16_t own = 0, shared = 0;
    std::uint64_t more = 0, more_own = 0, more_shared = 0;
  };
  bool can_keep(const Keep& keep, const Change& change) const;
  Keep keep_more(const Sequence& seq, std::uint64_t more) const;
  Status check_fork(const Sequence& parent) const;
  Status check_rewind(const Sequence& seq, std::uint32_t n, std::span<const TakenBack> back) const;

  // --- resize.cpp ---
  struct Leaving;  // what resize_pool gives up
  Status check_growth(std::uint64_t more) const;
  Result<PoolResize> grow_pool(std::uint32_t chunks);
  Result<PoolResize> shrink_pool(std::uint32_t chunks);
  Status plan_leaving(Leaving& leaving, std::uint32_t chunks) const;
  Status copy_leaving(const Leaving& leaving);
  void free_retired();
  Result<BlockId> make_block(const Sequence& seq, PageSetId page_set, std::uint32_t position);
  // exact: for a sequence that asked for exact context, whose bytes come from no lossy frame.
  void add_ref(BlockId id, bool hot, bool exact);
  void release(BlockId id, bool hot, bool exact, bool forget);  // forget: nobody shall match it again
  bool must_copy(BlockId id) const;                             // writing into it would be seen by somebody else
  bool must_copy(const Sequence& seq, std::uint32_t block, BlockId id) const {  // or it is in another namespace's room
    return must_copy(id) || pool_->block(id).name_space != space_of(seq, block);
  }
  Status copy_block(BlockId from, BlockId to, std::uint32_t tokens);
  void run_deferred();
  void release_deferred();  // what nobody reads any more
  void release_blocks(std::span<const Table> tables, std::uint32_t first_hot, bool exact, bool forget = false);

  // --- residency (residency.cpp) ---
  void update_candidate(BlockId id);
  void drop_candidate(BlockId id);  // the policy forgets it
  void count_candidate(Block& block, bool live, bool copied, bool kept);
  void update_family(BlockId id);                   // of this block: whether its members may go
  SlotId take_slot(std::uint16_t name_space);       // free, or somebody's; kNone: nobody can go
  SlotId take_idle_slot(std::uint16_t name_space);  // free, or of a dead block with a copy: for promotion
  SlotId evict(BlockId id);                         // its slot, taken
  bool make_record_room(std::uint16_t name_space);
  void forget_key(BlockId id, MissReason reason);
  void settle(BlockId id);  // nobody holds it: candidate, or record and slot go back
  void update_frame(FrameId id);
  void detach_frame(BlockId id);               // the block has nothing to do with its frame any more
  void note_live(BlockId id, bool live);       // its first reference came, its last one went
  bool evict_frame(std::uint16_t name_space);  // the host policy's first victim, for this namespace; false: none can go
  void release_retention();                    // pins, priorities and families end
  // --- keep.cpp: retention, families, quotas; all of them free when nobody uses them ---
  void expire() const;  // what time has ended, whoever asks first
  // Before any answer about what there is: what has ended until now has ended, whoever asks first.
  void catch_up() const { const_cast<ManagerImpl*>(this)->run_deferred(); }
  void retention_changed(BlockId id);
  void reap_namespaces();
  struct Spaces {
    std::uint16_t own = 0, shared = 0;
  };
  Result<std::uint16_t> intern(std::string_view name, std::span<const std::uint16_t> stay = {});
  Result<Spaces> intern(const BeginOptions& options);
  bool make_name_room(std::span<const std::uint16_t> stay);
  BlockId choose_slot_victim(std::uint16_t name_space, bool own_only, const Filter& also);
  BlockId choose_frame_victim(std::uint16_t name_space, bool own_only);
  void erase_frame_bytes(const FrameKey& key);  // now, or when nobody reads them any more
  void sweep_erased();
  bool family_may_go(BlockId id) const;
  bool family_has_floor(BlockId id, std::uint16_t name_space, bool host) const;
  void drop_kin();                       // families that lost a member
  SlotId evict_with_family(BlockId id);  // the slots of the others become free
  std::uint32_t ceiling_slots(std::uint16_t name_space) const;
  bool host_room(std::uint16_t name_space, std::uint64_t bytes);  // below the ceiling, evicting its own if need be
  Status ensure_level(std::uint8_t priority);
  Status check_pin_budget(std::span<const BlockId> blocks) const;
  Status check_spare(std::span<const BlockId> blocks) const;
  std::uint64_t slots_of(std::vector<BlockId> staying) const;  // that can be had now, and not when these stay
  bool reservations_hold() const;  // floors, families and pins leave what is kept for sequences
  Status check_retention_room(std::span<const RetentionRange> ranges, const std::vector<BlockId>& blocks) const;
  Status apply_retention(Sequence& seq, std::uint32_t first, std::uint32_t end);
  bool frame_held(const Frame& frame) const;
  std::uint8_t frame_priority(const Frame& frame) const;
  Status find_keys(std::span<const Key> keys, bool copies, std::vector<BlockId>& found, std::uint32_t& absent) const;
  Status clear_if_foreign(SlotId slot, std::uint16_t name_space);  // pool.zero_on_free
  // --- knowing.cpp ---
  void note_named(BlockId id, const Key& parent);
  void note_tiers(BlockId id);
  std::uint64_t extra_metadata_bytes() const { return namespaces_.charged_bytes() + retention_->charged_bytes(); }
  void drop_frame(FrameId id, MissReason reason);
  void lose_block(BlockId id, bool with_device);
  static std::string_view why_lost(const Sequence& seq);  // for messages, after "lost its tokens"
  // --- device_loss.cpp ---
  void drop_queued();  // moves that nobody will ever make
  bool lose_slot(BlockId id);
  bool of_lost_device(const Fence& fence) const;
  // Whether it has passed, also of devices that were lost. kInvalidArgument: nobody here can ever tell.
  Result<bool> ask_fence(const Fence& fence) const;

  // --- slot_fences.cpp: what the device may still read where the host is going to write ---
  bool slots_ready(std::uint32_t wanted);
  bool may_run(const Job& job, bool background);
  SlotId take_free_idle_slot();
  bool copy_must_wait(const Sequence& seq) const;

  // --- mover.cpp ---
  void queue_cold(Sequence& seq, bool ending);
  void queue_cold(Sequence& seq, Table& table, bool ending);
  void press_cold(const Sequence& seq, const Table& table);
  void press_cold();  // partial groups too: somebody needs the room
  // Blocks before this may be pressed when somebody needs the room: all that are cold, but for those that strict mode
  // makes lossy by whole groups, whoever needs room.
  std::uint32_t pressable(const Sequence& seq, const Table& table) const;
  bool queue_piece(std::span<const BlockId> blocks, bool lossy);
  // What a store job has made; the guard may have turned lossy into lossless.
  struct Stored {
    const Codec* codec = nullptr;
    std::size_t bytes = 0;
    bool replaced = false;  // the slots hold what the frame decodes to
  };
  Status encode_extent(const Job& job, FrameLabel& label, std::span<const SlotId> slots, std::span<std::byte> out,
                       ThreadPool* threads, Stored& stored);
  const Codec& codec_for(const Frame& frame) const { return frame.codec == codec_->id() ? *codec_ : *lossy_; }
  bool moving() const { return !stores_.empty() || !loads_.empty() || running_ != 0; }
  // Something is under way after which more slots may be available.
  bool may_free_slots() const { return moving() || !deferred_.empty(); }
  bool run_one(Lock& lock, bool background);  // lets go of the lock; false: nothing queued
  void run_store(Lock& lock, const Job& queued, bool background);
  void run_load(Lock& lock, const Job& job);
  Result<MemoryTier::Reservation> reserve_frame(Lock& lock, std::size_t bytes, std::uint16_t name_space);
  void finish(Ticket ticket);
  void worker();
  Status wait_device(Lock& lock, const Fence& fence, std::int64_t timeout_ns);
  Status wait_blocked(Lock& lock, std::int64_t timeout_ns);  // until the first job may perhaps run
  const PageSet& set_of(const Frame& frame) const { return layout_.sets[index(frame.page_set)]; }
  FrameLabel label_of(const Frame& frame) const;
  template <class Ready>
  Status wait_until(Lock& lock, std::int64_t timeout_ns, std::string_view what, Ready ready);

  // --- attention.cpp ---
  // A step is under way from start(), under the lock, to the end of the guard, without it.
  class StepGuard {
   public:
    explicit StepGuard(ManagerImpl& manager) : manager_(manager) {}
    ~StepGuard() {
      if (number_ == 0) return;
      Lock lock(manager_.mutex_);
      end();
    }
    // Under the lock.
    void start(std::span<const StepRows> rows) {
      manager_.steps_.push_back(++manager_.last_step_);
      number_ = manager_.last_step_;
      ++manager_.running_steps_;
      for (const StepRows& part : rows) manager_.find_sequence(part.seq)->step = number_;
    }
    void end() { manager_.end_step(std::exchange(number_, 0)); }
    std::uint64_t number() const { return number_; }

   private:
    ManagerImpl& manager_;
    std::uint64_t number_ = 0;  // 0: not under way
  };
  Status check_rows(std::uint32_t layer, std::span<const StepRows> rows) const;
  // What a window has slid past is not left out in silence.
  Status check_windows(PageSetId page_set, std::span<const StepRows> rows) const;
  // Some append or attend call up to this one is under way.
  bool step_running(std::uint64_t step) const { return !steps_.empty() && steps_.front() <= step; }
  void note_cut(const Sequence& seq);  // freed, preempted or rewound: steps that have it among their rows are told
  Status check_cuts(std::string_view call, std::span<const StepRows> rows, std::uint64_t step) const;
  void end_step(std::uint64_t step);
  // The page set that a layer of the model belongs to; the layer exists.
  PageSetId set_of_layer(std::uint32_t layer) const {
    return PageSetId{static_cast<std::uint8_t>(layer / layout_.sets[0].layer_count)};
  }
  Status plan_wave(Wave& wave, PageSetId page_set, std::span<const StepRows> rows) const;
  BlockView stage(std::vector<StagedFrame>& staged, std::uint32_t at, const PageSet& set, const Block& block) const;
  Status decode_staged(const PageSet& set, std::uint32_t layer, std::vector<StagedFrame>& staged);

  Config config_;
  ModelSpec model_;
  PageLayout layout_;
  bool windowed_ = false;
  Digest identity_;
  std::function<Instant()> clock_;
  std::optional<Instant> moment_;  // of this call or job, as policies are told it: the clock is not free
  Instant moment() {
    if (!moment_) moment_ = clock_();
    return *moment_;
  }
  std::unique_ptr<TraceRecorder> recorder_;  // null: nothing is recorded
  std::unique_ptr<ThreadPool> own_threads_;
  ThreadPool* threads_ = nullptr;
  std::unique_ptr<Device> own_device_;
  std::vector<std::unique_ptr<Device>> lost_devices_;
  std::vector<std::uint64_t> lost_handles_;  // of their timelines
  Device* device_ = nullptr;
  bool bytes_ = true;               // false: bookkeeping only
  double assumed_ratio_ = 0;        // then: raw bytes by frame bytes
  std::uint64_t memory_bytes_ = 0;  // what the machine may give; 0: what it says

  std::unique_ptr<Ledger> ledger_;  // before everything that is charged to it
  std::vector<Ledger::Charge> charges_;
  std::uint64_t fixed_metadata_bytes_ = 0;
  std::uint64_t fixed_host_bytes_ = 0;  // all of the host budget is taken at creation
  std::uint64_t fail_charge_ = 0;       // tests of create(): which of its charges fails
  bool elastic_ = false;                // pool.max_budget is set
  std::uint64_t pool_overhead_ = 0;     // of the pool's budget, what is not slots
  std::uint32_t least_slots_ = 0;
  std::unique_ptr<SlotMemory> memory_;
  std::uint32_t running_steps_ = 0;   // append and attend calls under way
  std::vector<std::uint64_t> steps_;  // their numbers, ascending
  std::uint64_t last_step_ = 0;
  struct Cut {
    SeqId seq = SeqId::kNone;
    std::uint64_t step = 0;  // the newest that had begun by then
  };
  std::vector<Cut> cuts_;    // as long as such steps are under way
  bool attending_ = false;   // some attend call reads slots
  Fence attended_;           // after the newest of them
  std::mutex attend_mutex_;  // who uses staging and workspace; taken before the manager's mutex
  Staging staging_;
  OwnedRegion workspace_;
  std::uint32_t max_rows_ = 0;

  std::unique_ptr<Codec> codec_;           // exact: of windows, sinks, and all where no lossy codec was asked for
  std::unique_ptr<Codec> lossy_;           // null: everything is exact
  std::uint32_t lossy_pending_ = 0;        // store jobs by it that wait or run
  std::vector<std::uint32_t> exact_refs_;  // by block, references of sequences that asked for exact; empty: no lossy_
  std::unique_ptr<HostTier> host_;         // null: no host tier

  mutable std::mutex mutex_;
  mutable std::condition_variable moved_;
  std::condition_variable work_;
  std::unique_ptr<BlockPool> pool_;
  std::unique_ptr<PrefixIndex> index_;
  std::unique_ptr<PartialIndex> partial_;  // null: partial_reuse is off
  std::unique_ptr<FrameTable> frames_;
  std::unique_ptr<Ghosts> ghosts_;
  std::unique_ptr<LeveledPolicy> slot_policy_, frame_policy_;
  Namespaces namespaces_;
  std::unique_ptr<Retention> retention_;
  std::unique_ptr<EventLog> events_;
  Verdicts verdicts_;
  std::vector<Retention::Members> broken_families_;  // whose members are to go
  std::vector<FrameKey> erase_later_;                // dropped while somebody had them pinned
  std::vector<std::uint32_t> slot_serials_;          // pool.zero_on_free: whose bytes each slot has, by serial number
  using Sequences = std::unordered_map<std::uint64_t, std::unique_ptr<Sequence>>;
  Sequences sequences_;
  // Short sequences come and go at the rate of requests: some are kept with the room they have, for the next ones.
  static constexpr std::uint32_t kSmallSequences = 16, kSmallTokens = 512;
  std::vector<Sequences::node_type> spare_;  // ended ones
  std::uint32_t small_sequences_ = 0;        // those, and live or deferred ones that are small
  std::uint64_t next_seq_ = 1, next_ticket_ = 1;
  // Freed sequences whose fence has not passed: they hold their references until it has.
  struct Deferred {
    std::vector<Table> tables;
    std::uint32_t hot_first = 0;
    Fence fence;
    Ledger::Charge charge;
    bool small = false;  // of a small sequence
    bool exact = false;  // of one that asked for exact context
    // Nor has the last append or attend call returned that may be reading or writing them.
    std::uint64_t step = 0;
    bool forget = false;  // nobody shall match them again
  };
  std::vector<Deferred> deferred_;
  // Whoever defers asks first: afterwards nothing may fail.
  void make_deferred_room() {
    if (deferred_.size() == deferred_.capacity()) deferred_.reserve(2 * deferred_.size() + 8);
    if (cuts_.size() == cuts_.capacity()) cuts_.reserve(2 * cuts_.size() + 8);
  }
  std::uint32_t reserved_slots_ = 0;  // of all sequences
  // Candidates that are kept back, of each namespace and of all of them.
  struct KeptBack {
    std::uint32_t reader = 0, family = 0;
  };
  std::vector<KeptBack> kept_back_ = std::vector<KeptBack>(1);  // by namespace
  KeptBack all_kept_back_;
  Fence blocked_on_;                                               // what the first job of a queue waits for
  bool blocked_by_attend_ = false;                                 // or it rewrites slots that somebody attends
  std::deque<Job> stores_, loads_;                                 // bounded by config_.mover.queue each
  std::unordered_map<std::uint64_t, std::uint32_t> open_tickets_;  // jobs left
  std::uint32_t running_ = 0;                                      // jobs being done
  std::uint32_t loading_slots_ = 0;
  // Of candidates for eviction, so that nobody has to walk over a million slots to know: those of live sequences, and
  // those of none that have a copy below. Of slots that the mover reads: all.
  std::uint32_t cold_slots_ = 0, copied_slots_ = 0, storing_slots_ = 0;
  bool stop_ = false;
  Stats counters_;  // the counters of Stats; gauges are computed
  std::uint64_t host_raw_bytes_ = 0;
  std::jthread worker_;  // last: it uses all of the above
};

}  // namespace firn
