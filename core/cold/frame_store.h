// frame_store.h: the life of a frame: room is made for it, it is published under its names, found, read, moved between
// tiers, evicted, dropped. Owns the lock of the cache's books (frame table, tier stack, ghosts) and the order in which
// they are asked; knows nothing of codecs, jobs and tickets.
//
// The lock is never held while a tier below the host works, nor while bytes are copied or coded: what is written
// belongs to its reservation, and what is read has a reader, so nobody takes it away.
// Threads: any. Methods that take a Lock want it held, by the Lock that lock() gave; the others take it themselves.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "core/cold/coming.h"
#include "core/cold/frame_table.h"
#include "core/cold/tier_link.h"
#include "core/cold/tier_stack.h"
#include "core/ghosts.h"
#include "firn/cold_cache.h"
#include "firn/tier.h"

namespace firn::cold {

using Lock = std::unique_lock<std::mutex>;

class FrameStore {
 public:
  struct Lower {
    TierId id = TierId::kDisk;
    ColdWrite write = ColdWrite::kBack;
    bool probe = false;
    std::unique_ptr<TierLink> link;
  };
  struct Counters {
    std::uint64_t raw_bytes = 0;  // gauge: of frames in the host tier
    std::uint64_t failed_frames = 0, demoted = 0, fetched = 0, tier_failures = 0;
  };
  // What becomes findable: names[i] is the block at place i; a zero key leaves the place without a name.
  struct NewFrame {
    FrameKey key;
    FrameLabel label;
    ColdKind kind = ColdKind::kBlock;
    std::uint8_t block_count = 1;
    std::array<Key, kMaxExtentBlocks> names{};
    std::uint8_t bound = 0;  // bit by place
    std::uint64_t bytes = 0, raw_bytes = 0;
    FrameFacts facts;
  };
  // A frame with a reader: it stays, wherever it is, until end_read().
  struct Reading {
    FrameId frame = FrameId::kNone;
    std::uint32_t life = 0;  // of the frame; see arrived()
    FrameKey key;
    FrameLabel label;
    std::uint8_t block_count = 0;
    std::uint64_t bytes = 0;
  };
  enum class Verdict : std::uint8_t { kGood, kBad };

  FrameStore(std::unique_ptr<HostTier> host, FrameTable table, TierStack stack, std::vector<Lower> lower,
             std::uint32_t ghosts, std::uint32_t max_coming, std::function<std::int64_t()> now_ns);
  ~FrameStore();  // waits for what is under way in tiers below

  Lock lock() const { return Lock(mutex_); }
  Instant now() const { return Instant{now_ns_()}; }

  // --- finding ---
  ColdFound look(const Lock& lock, ColdKind kind, const Key& key, Fidelity least) const;
  // Of what look() said: is that about to change, because a store under way brings the name, or its other half?
  bool pending(const Lock& lock, ColdKind kind, const Key& key, const ColdFound& found) const;
  std::uint32_t expect(const Lock&, ColdKind kind, const Key& key) { return coming_.add(kind, key); }
  void expect_no_more(const Lock&, std::uint32_t name) { coming_.remove(name); }
  const FrameTable& table() const { return table_; }
  bool pin(const Lock& lock, ColdKind kind, const Key& key);
  bool unpin(const Lock& lock, ColdKind kind, const Key& key);
  bool touch(const Lock& lock, ColdKind kind, const Key& key);
  // False: not here, or pinned.
  bool erase(const Lock& lock, ColdKind kind, const Key& key);

  // --- storing ---
  // Bytes in the host tier, at the expense of frames that nobody reads or pins. kNoSpace: they all are read or pinned,
  // or it never fits. kUnavailable: frames are on their way down to make room; try again when room_changes() differs.
  Result<MemoryTier::Reservation> reserve(std::size_t bytes);
  std::uint64_t room_changes() const { return room_changes_.load(std::memory_order_acquire); }
  // Names that are there already are left to the frames that have them; kNone and ok: all were. kNoSpace: every record
  // is read or pinned.
  Result<FrameId> publish(Lock& lock, MemoryTier::Reservation reservation, const NewFrame& frame);
  void missed(const Lock& lock, const Key& key) {
    stack_.missed(policy_name(key), now());
    (void)lock;
  }
  // Copies to the first tier below where that is written through. Frames that have gone since are left out.
  void write_through(std::span<const std::pair<FrameId, std::uint32_t>> frames);
  std::uint32_t life(const Lock&, FrameId frame) const { return lives_[index(frame)].life; }
  void renew(const Lock& lock, FrameId frame) {
    stack_.renew(frame, now());
    (void)lock;
  }

  // --- reading ---
  // Empty: no such name.
  std::optional<Reading> begin_read(const Lock& lock, ColdKind kind, const Key& key);
  bool in_host(const Lock& lock, const Reading& reading) const;
  MemoryTier::Pin bytes_of(const Reading& reading) { return host_->find(reading.key); }
  // kBad: it did not decode. It goes from every tier, and its names are misses with that reason.
  void end_read(Lock& lock, const Reading& reading, Verdict verdict);
  // Starts bringing a frame that is being read into the host tier; once for everybody who asks. kOk: it is there, or
  // on its way until fetching() says otherwise. Others as reserve().
  Status fetch(const Reading& reading);
  bool fetching(const Lock& lock, const Reading& reading) const;
  // Of a frame that was adopted without knowing: what it decodes to.
  void learn(const Lock& lock, const Reading& reading, std::uint64_t raw_bytes);
  // How the last fetch of it ended; ok: it is in the host tier, or none was made.
  Status fetch_status(const Lock& lock, const Reading& reading) const;

  // --- tiers below ---
  bool probes() const;
  const std::vector<Lower>& lower() const { return lower_; }
  // Asks the tiers that are probed, nearest first, for a frame of that name: told in some other thread, once.
  using Told = std::function<void(std::optional<Level>, std::uint64_t bytes, Status)>;
  void probe(const FrameKey& key, Told told);
  // A frame that a tier below has and the table did not know. kNone: its names are taken by now.
  FrameId adopt(Lock& lock, Level level, const NewFrame& frame);
  // What has ended below is settled. False: nothing had.
  bool poll();
  std::uint32_t under_way() const;  // ops in tiers below

  // --- knowing ---
  Counters counters(const Lock&) const { return counters_; }
  const TierStack& stack() const { return stack_; }
  const HostTier& host() const { return *host_; }
  Status check() const;

 private:
  // The ghosts count reasons of a manager; both enumerations are small and agree on what is not remembered.
  static_assert(static_cast<int>(ColdMiss::kNeverStored) == static_cast<int>(MissReason::kNeverStored) &&
                static_cast<int>(ColdMiss::kCount) <= 16);
  void remember(const Key& key, ColdMiss why) { ghosts_.remember(key, static_cast<MissReason>(why)); }

  struct Life {
    std::uint32_t life = 0;
    bool fetching = false, putting = false;
    Status fetched;
  };

  ColdMiss evicted_from(Level level) const;
  std::optional<Level> demotion_level(FrameId frame) const;
  void drop_names(FrameId frame, ColdMiss why);
  void leave_host(FrameId frame);
  void leave_lower(FrameId frame, Level level);
  void drop(FrameId frame, ColdMiss why);
  void drop_if_done(FrameId frame);
  bool evict_for_record();
  struct Put {
    FrameId frame = FrameId::kNone;
    FrameKey key;
    Level level = 1;
    bool keep = false;  // in the host tier too
    int tries = 0;
    MemoryTier::Pin bytes;  // let go before the reader that guards it
  };
  bool begin_put(std::vector<std::shared_ptr<Put>>& puts, FrameId frame, Level level, bool keep);
  void submit_puts(std::vector<std::shared_ptr<Put>> puts);
  void put_ended(const std::shared_ptr<Put>& put, const Done& done);
  struct Fetch {
    Reading reading;
    Level level = 0;  // from where
    MemoryTier::Reservation room;
  };
  void fetch_ended(Fetch& fetch, const Done& done);
  void probe_level(const FrameKey& key, Level level, std::shared_ptr<Told> told);
  void submit_erasures();
  bool is(FrameId frame, std::uint32_t life) const { return lives_[index(frame)].life == life && table_.in_use(frame); }
  TierLink& link(Level level) const { return *lower_[level - 1u].link; }
  // One that does not fit would have the tier refuse the others of its batch too.
  bool takes(Level level, std::uint64_t bytes) const {
    return bytes <= link(level).tier().capabilities().max_frame_bytes;
  }

  mutable std::mutex mutex_;
  std::unique_ptr<HostTier> host_;
  FrameTable table_;
  TierStack stack_;
  std::vector<Lower> lower_;  // by level - 1
  Ghosts ghosts_;             // holds numbers of ColdMiss, which are as few
  Coming coming_;
  std::vector<Life> lives_;  // by FrameId
  const std::function<std::int64_t()> now_ns_;
  Counters counters_;
  std::vector<std::pair<FrameKey, Level>> erasures_;  // to be submitted when the lock is let go
  std::atomic<std::uint64_t> room_changes_{0};
  std::uint64_t demoting_bytes_ = 0;
};

}  // namespace firn::cold
