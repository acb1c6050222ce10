// disk_tier.h: frames in a directory, as a log of segments that outlives the process: after a kill at any instant the
// frames that were acknowledged are found again, and none of them is wrong. docs/disk.md has the bytes and the life of
// a frame; docs/tiers.md what a tier is.
//
// A put has ended when its frame is on the disk (fdatasync); before that nobody finds it. What does not have the bytes
// that were written is never served: it ends as kCorrupt, once, and is a miss from then on. A disk that fails turns
// the tier read-only or off, said once on stderr and in report(): puts are then kUnavailable, gets are misses.
// Threads:  any may call. The tier has one thread that writes and some that read.
// Memory:   memory_bytes() at creation, charged to the ledger's host budget; a call allocates its tickets' entries.
// Lifetime: one tier a directory, in one process; the destructor finishes what was submitted.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "firn/export.h"
#include "firn/ledger.h"
#include "firn/model.h"
#include "firn/status.h"
#include "firn/tier.h"

namespace firn {

// Whose frames a directory holds. A tier of another model finds nothing in it and writes nothing into it, and says
// which field differs.
struct DiskIdentity {
  Digest digest;                                            // zero: not known; then nothing outlives the tier
  std::vector<std::pair<std::string, std::string>> fields;  // for people: names and values, in order
};
// Of a model; zero where its weights are not known.
FIRN_API DiskIdentity disk_identity(const ModelSpec& model);

struct DiskTierOptions {
  std::string path;                // of the directory; made (0700) with its parents if it is not there
  std::uint64_t budget_bytes = 0;  // of disk, every file of the directory in it. Hard
  DiskIdentity identity = {};
  std::uint32_t max_frames = 0;           // 0: one per 4 KiB of budget up to 65,536, then one per 64 KiB
  std::uint64_t largest_frame_bytes = 0;  // a segment has room for one of these at least
  std::uint64_t segment_bytes = 0;      // 0: a sixteenth of the budget, 256 KiB to 64 MiB, and no more than 512 of them
  std::uint32_t readers = 4;            // threads; each has 1 MiB
  bool direct = true;                   // past the page cache where the file system permits it
  bool admit_second_use = false;        // a frame is written the second time it is offered
  std::uint64_t daily_write_bytes = 0;  // of puts in 24 hours; 0: any
  std::int64_t sync_age_ns = 50'000'000;  // nothing written waits longer for its fdatasync while more comes in
};

enum class DiskState : std::uint8_t { kOn, kReadOnly, kOff };
FIRN_API std::string_view to_string(DiskState state);

struct DiskReport {
  DiskState state = DiskState::kOn;
  std::string reason;                                              // why it is not on
  bool direct = false;                                             // reads and writes go past the page cache
  bool session_only = false;                                       // the identity is not known
  std::uint64_t budget_bytes = 0, disk_bytes = 0, peak_bytes = 0;  // of disk
  std::uint64_t live_bytes = 0;                                    // records that can be found
  std::uint64_t memory_bytes = 0, bytes_a_frame = 0;               // of memory: all of it; of the index, each frame
  std::uint64_t segments = 0, frames = 0, unclaimed = 0;  // unclaimed: of an earlier process, not asked for since
  // Counters.
  std::uint64_t recovered = 0;    // frames found at the start
  std::uint64_t torn = 0;         // segments whose last record was not whole then, and was cut off
  std::uint64_t quarantined = 0;  // records that were damaged: never served
  std::uint64_t syncs = 0, written_bytes = 0, moved_bytes = 0;  // written: everything; moved: by cleaning, part of it
  std::uint64_t evicted_unclaimed = 0, dropped = 0;  // to make room; dropped: the disk was fuller than the budget says
  std::uint64_t filtered = 0, over_daily = 0;        // puts that were not admitted
};

class FIRN_API DiskTier : public Tier {
 public:
  // kInvalidArgument: the options, or a directory that cannot be made or is none. kUnavailable: another tier has it
  // (the message says whose). kNoSpace: the ledger, or a budget too small for its segments. kIo: the disk. A directory
  // of another model, or of a newer firn, is opened and off.
  static Result<std::unique_ptr<DiskTier>> create(const DiskTierOptions& options, Ledger& ledger);
  static std::uint64_t memory_bytes(const DiskTierOptions& options);
  virtual DiskReport report() const = 0;
};

}  // namespace firn
