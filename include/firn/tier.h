// tier.h: where frames live below the device. A tier stores exactly the bytes it is given under a FrameKey and gives
// the same bytes back, or a miss, or an error; never other bytes.
//
// One interface for memory that answers at once and stores that do not: submit takes a batch and returns a ticket, poll
// returns what has ended. Public calls check bounds and count; a new tier writes only the private ones.
// Threads: any thread may call; a tier locks for itself.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "firn/codec.h"
#include "firn/export.h"
#include "firn/ids.h"
#include "firn/ledger.h"
#include "firn/status.h"

namespace firn {

// The name of a frame: 128 bits over (last key, group, block count, frame identity); see docs/frame.md. Two frames with
// one name hold the same content in the same encoding.
struct FrameKey {
  std::uint64_t hi = 0, lo = 0;
  auto operator<=>(const FrameKey&) const = default;
};
struct FrameKeyHash {
  std::size_t operator()(const FrameKey& key) const { return static_cast<std::size_t>(key.lo); }
};
FIRN_API FrameKey frame_key(const FrameLabel& label, std::uint32_t block_count, CodecId codec,
                            std::uint16_t codec_version, const Digest& artefact = {}, std::uint32_t rate = 0);

enum class Verb : std::uint8_t { kPut, kGet, kErase, kContains };
std::string_view to_string(Verb verb);

struct Op {
  Verb verb = Verb::kGet;
  FrameKey key;
  std::span<const std::byte> source;  // put: the whole frame; valid until the op is done
  std::span<std::byte> destination;   // get: room for it; valid until the op is done
  std::int64_t deadline_ns = 0;       // from submission; 0: the tier's default
};

struct Done {
  Ticket ticket = Ticket::kNone;
  std::uint32_t op = 0;   // index within the submitted batch
  Status status;          // how the op ended; an absent frame is no failure, see found
  bool found = false;     // get, contains, erase: the frame was there
  std::size_t bytes = 0;  // put: stored; get: written to destination; contains: the frame's size
};

class FIRN_API Tier {
 public:
  struct Capabilities {
    bool immediate = false;    // every op is done when submit returns
    bool addressable = false;  // frames can be read in place (MemoryTier)
    bool durable = false;      // frames outlive the process
    std::size_t max_frame_bytes = 0;
    std::uint32_t max_batch = 64;
  };
  // Gauges and counters since creation. capacity >= resident + metadata, always.
  struct Stats {
    std::uint64_t capacity_bytes = 0, resident_bytes = 0, metadata_bytes = 0, pinned_bytes = 0;
    std::uint64_t frames = 0, puts = 0, put_bytes = 0, gets = 0, get_bytes = 0, hits = 0, misses = 0, erases = 0;
    std::uint64_t refused_no_space = 0, failures = 0;
    std::uint64_t largest_free_bytes = 0;  // fragmentation: what the largest single frame could be now
  };

  // Ops submitted whose Done entries nobody has taken yet; one more batch beyond this is kUnavailable: poll first.
  static constexpr std::uint32_t kMaxInFlight = 512;

  virtual ~Tier();
  virtual std::string_view name() const = 0;
  virtual Capabilities capabilities() const = 0;
  // On error nothing was taken. Bounds: 1 to max_batch ops, sizes within max_frame_bytes. The ops of a batch are
  // independent: they may take effect in any order.
  Result<Ticket> submit(std::span<const Op> batch);
  // Moves ended ops into out, oldest first; how many. Those of a ticket that somebody waits for are left to them.
  std::size_t poll(std::span<Done> out);
  // Blocks until every op of the ticket has ended; their Done entries, in op order. kUnavailable: timeout, nothing is
  // lost. kInvalidArgument: no such ticket, or (some of) its entries were already taken.
  Result<std::vector<Done>> wait(Ticket ticket, std::int64_t timeout_ns);
  Stats stats() const;
  // Checks the tier's own tables against each other. A failure is a bug in firn and says where.
  Status verify() const;

 protected:
  Tier();

 private:
  virtual Result<Ticket> do_submit(std::span<const Op> batch) = 0;
  virtual std::size_t do_poll(std::span<Done> out) = 0;  // never blocks
  virtual Stats do_stats() const = 0;                    // submitted ops are counted by the public calls, not here
  virtual Status do_verify() const { return {}; }

  struct Books;  // tickets, ended ops that nobody has taken, counters
  std::unique_ptr<Books> books_;
};

// Frames in host memory, one arena per NUMA node. Two-phase: reserve gives writable bytes that nobody can find, publish
// makes them findable and gives back what was not needed. A put through submit does both. A put or reserve that does
// not fit is kNoSpace: who may go is decided elsewhere (policy), the tier only says no.
class FIRN_API MemoryTier : public Tier {
 public:
  // Bytes reserved and not yet published. Dies unpublished: everything goes back.
  class FIRN_API Reservation {
   public:
    Reservation() = default;
    Reservation(Reservation&& other) noexcept;
    Reservation& operator=(Reservation&& other) noexcept;
    ~Reservation();
    std::span<std::byte> bytes() const { return bytes_; }

   private:
    friend class MemoryTier;
    friend class HostTier;
    MemoryTier* tier_ = nullptr;
    std::uint64_t handle_ = 0;
    std::span<std::byte> bytes_;
  };
  // A published frame that stays where it is while this lives.
  class FIRN_API Pin {
   public:
    Pin() = default;
    Pin(Pin&& other) noexcept;
    Pin& operator=(Pin&& other) noexcept;
    ~Pin();
    std::span<const std::byte> bytes() const { return bytes_; }
    explicit operator bool() const { return tier_ != nullptr; }

   private:
    friend class MemoryTier;
    friend class HostTier;
    MemoryTier* tier_ = nullptr;
    std::uint64_t handle_ = 0;
    std::span<const std::byte> bytes_;
  };

  virtual Result<Reservation> reserve(std::size_t bytes) = 0;
  // The first `bytes` of the reservation become the frame. An existing frame of that name is kept and the new one
  // dropped.
  virtual Status publish(Reservation reservation, const FrameKey& key, std::size_t bytes) = 0;
  virtual Pin find(const FrameKey& key) = 0;  // empty: not here
  // False while pinned (nothing happens then) or absent.
  virtual bool erase(const FrameKey& key) = 0;
  virtual bool contains(const FrameKey& key) const = 0;

 protected:
  // For implementations: the two are made by the tier and, when they die, come back to it by handle.
  Reservation make_reservation(std::uint64_t handle, std::span<std::byte> bytes);
  Pin make_pin(std::uint64_t handle, std::span<const std::byte> bytes);
  // Disarms a reservation of this tier; its handle. Empty: it is not one of ours, or moved from.
  std::optional<std::uint64_t> take(Reservation& reservation);

 private:
  friend class Reservation;
  friend class Pin;
  virtual void release_reservation(std::uint64_t handle) = 0;
  virtual void release_pin(std::uint64_t handle) = 0;
};

struct HostTierOptions {
  std::uint64_t budget_bytes = 0;  // everything: frames, tables, reservations. Hard.
  // Where the arenas are: "local" (the node of the creating thread), "node:N", "interleave" (equal arenas on all
  // nodes), "spread:W0,W1,..." (arenas by weight per node).
  std::string placement = "local";
  bool huge_pages = true;  // advised, never required
  // Frames and reservations at once; their tables are part of the budget. 0: one per 16 KiB of budget, or one per 4 KiB
  // up to 65,536.
  std::uint32_t max_frames = 0;
};
struct NodePlacement {
  int node = -1;                                          // asked for
  std::uint64_t bytes = 0;                                // of the arena
  std::uint64_t verified_pages = 0, misplaced_pages = 0;  // of the pages touched so far, by the kernel's own answer;
                                                          // large arenas are sampled
  std::string note;  // why the kernel could not be asked for the node, or for its answer; empty: it could
};
class FIRN_API HostTier : public MemoryTier {
 public:
  // kInvalidArgument: placement names a node that does not exist (the message lists those that do). kNoSpace: the
  // ledger.
  static Result<std::unique_ptr<HostTier>> create(const HostTierOptions& options, Ledger& ledger);
  virtual std::vector<NodePlacement> placement() const = 0;  // asks the kernel
  // The memory that all frames lie in, for devices that import it: reservations and pins point into it. Whole pages;
  // lives as long as the tier. Touching it in any other way would break frames.
  virtual std::vector<std::span<std::byte>> arenas() const = 0;
};

}  // namespace firn
