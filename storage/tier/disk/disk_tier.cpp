// disk_tier.cpp: ops, threads and decisions of the disk tier. One thread writes: it alone changes what is on the disk,
// so puts, erasures, cleaning and sealing are in one order. Some threads read. One mutex guards the tables (which frame
// is where, which op has ended) and is never held over a read, a write or a copy.
#include "storage/tier/disk/disk_tier.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <mutex>
#include <new>
#include <random>
#include <system_error>
#include <thread>

#include "core/base/check.h"
#include "storage/tier/disk/appender.h"
#include "storage/tier/disk/directory.h"
#include "storage/tier/disk/frame_index.h"
#include "storage/tier/disk/segment.h"

namespace firn {

std::string_view to_string(DiskState state) {
  switch (state) {
    case DiskState::kOn:
      return "on";
    case DiskState::kReadOnly:
      return "read-only";
    case DiskState::kOff:
      return "off";
  }
  return "unknown";
}

namespace disk {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::uint64_t kFixedDisk = 64 << 10;  // the directory itself, its lock, its identity and the one beside it
constexpr std::uint64_t kFixedMemory = 64 << 10;
constexpr std::size_t kReadBytes = kMiB;
constexpr std::uint64_t kMaxSegments = 512;  // files open at once
constexpr std::uint64_t kSyncBytes = 32 * kMiB;
constexpr std::int64_t kDefaultDeadlineNs = 10'000'000'000, kDayNs = 86'400'000'000'000;
constexpr int kReadErrorsMax = 8;  // in a row, then the disk is gone

struct Plan {
  std::uint64_t segment_bytes = 0, segments = 0, largest_frame = 0, live_most = 0;
  std::uint32_t max_frames = 0, max_records = 0;
  std::size_t write_bytes = 0;
  std::uint64_t memory = 0;
};

Plan plan_of(const DiskTierOptions& options) {
  Plan plan;
  const std::uint64_t budget = options.budget_bytes - std::min(options.budget_bytes, kFixedDisk);
  std::uint64_t segment = options.segment_bytes;
  if (segment == 0) {
    segment = std::clamp<std::uint64_t>(budget / 16, 256 << 10, 64 * kMiB);
    segment = std::max(segment, budget / kMaxSegments);
  }
  const std::uint64_t needed =
      round_up(kPageBytes + record_bytes(options.largest_frame_bytes), kPageBytes) + kPageBytes;
  segment = std::max(segment / kPageBytes * kPageBytes, options.largest_frame_bytes == 0 ? 0 : needed);
  plan.segment_bytes = std::min(segment, kMaxSegmentBytes - kPageBytes);
  plan.segments = plan.segment_bytes == 0 ? 0 : budget / (plan.segment_bytes + Segment::kFileOverhead);
  const std::uint64_t overhead = 2 * kPageBytes + kRecordHeaderBytes + kGranuleBytes + kPageBytes;
  plan.largest_frame = plan.segment_bytes > overhead ? plan.segment_bytes - overhead : 0;
  // One segment is kept free for cleaning. Of the others an eighth stays unused, so that cleaning one is sure to give
  // some room and moves a bounded number of bytes for each it gains.
  plan.live_most = plan.segments < 2 ? 0 : (plan.segments - 1) * plan.segment_bytes / 8 * 7;
  plan.max_frames =
      options.max_frames != 0
          ? options.max_frames
          : static_cast<std::uint32_t>(std::clamp<std::uint64_t>(
                options.budget_bytes / (64 << 10),
                std::min<std::uint64_t>(std::max<std::uint64_t>(options.budget_bytes / 4096, 16), 65536), 1u << 28));
  plan.max_records = static_cast<std::uint32_t>(
      std::clamp<std::uint64_t>(plan.segment_bytes / 4096, 64, std::min(kMaxRecords, std::max(plan.max_frames, 64u))));
  plan.write_bytes = static_cast<std::size_t>(std::clamp<std::uint64_t>(plan.segment_bytes / 4, 64 << 10, 4 * kMiB) /
                                              kPageBytes * kPageBytes);
  plan.memory = kFixedMemory + FrameIndex::table_bytes(plan.max_frames) +
                Appender::memory_bytes(plan.write_bytes, plan.max_records) + kReadBytes +  // of the writer, to move
                std::uint64_t{options.readers} * kReadBytes +
                (options.admit_second_use ? std::bit_ceil(std::uint64_t{plan.max_frames}) * 8 : 0);
  return plan;
}

std::string reason_of(int error) { return std::strerror(error); }

class LogTier final : public DiskTier {
 public:
  LogTier(const DiskTierOptions& options, const Plan& plan, FileOps& files, std::function<std::int64_t()> now_ns,
          Ledger::Charge charge)
      : options_(options),
        plan_(plan),
        files_(files),
        now_ns_(std::move(now_ns)),
        charge_(std::move(charge)),
        budget_(options.budget_bytes),
        index_(plan.max_frames),
        appender_(plan.write_bytes, plan.max_records, options.identity.digest),
        room_(kReadBytes),
        start_ns_(now_ns_()) {
    budget_.force(kFixedDisk);
    batch_.reserve(2 * kMaxInFlight);
    marks_.reserve(2 * kMaxInFlight);
    if (options.admit_second_use) offers_.resize(std::bit_ceil(std::size_t{plan.max_frames}));
  }
  ~LogTier() override;

  Status open();
  Status start();

  std::string_view name() const override { return "disk"; }
  Capabilities capabilities() const override {
    return {.immediate = false,
            .addressable = false,
            .durable = true,
            .max_frame_bytes = static_cast<std::size_t>(plan_.largest_frame),
            .max_batch = 64};
  }
  DiskReport report() const override;

 private:
  struct Task {
    Op op;
    Done done;
    std::int64_t deadline = 0;  // by now_ns_
    std::uint32_t place = 0;    // in live_
    bool busy = false;          // a thread is in the caller's memory
    bool ended = false;
    bool retried = false;
  };
  using TaskPtr = std::shared_ptr<Task>;
  using Guard = std::unique_lock<std::mutex>;
  struct Slot {
    std::shared_ptr<Segment> segment;  // null: free
    std::uint64_t live_bytes = 0;
    std::uint32_t live_records = 0;
  };
  struct Written {  // since the last sync
    TaskPtr task;
    FrameKey key;
    FrameIndex::Place place;
  };

  // Ops.
  Result<Ticket> do_submit(std::span<const Op> batch) override;
  std::size_t do_poll(std::span<Done> out) override;
  Stats do_stats() const override;
  Status do_verify() const override;
  void end(const Guard&, Task& task, Status status, bool found = false, std::size_t bytes = 0);
  bool answer(const Guard& guard, Task& task);
  void expire(const Guard& guard);

  // Reading.
  struct Reader {
    PageBuffer room{kReadBytes};
    BodyChecksum sum;
  };
  void read_loop(Reader& reader);
  void get(Task& task, Reader& reader);
  void quarantine(const Guard& guard, const FrameKey& key, const FrameIndex::Place& place);

  // Writing: the writer's thread, or open().
  void write_loop();
  void put(const TaskPtr& task);
  void erase(const TaskPtr& task);
  bool admitted(const FrameKey& key, std::uint64_t bytes);
  Status make_room(std::uint64_t frame_bytes);
  Status open_segment(bool spare);
  void seal();
  bool clean(std::uint64_t frame_bytes);
  int move_record(const Segment& from, const IndexEntry& entry, std::uint32_t to_slot);
  bool evict_unclaimed();
  bool drop_oldest();
  void forget_segment(std::uint32_t slot);
  bool remove_if_empty(std::uint32_t slot);
  int commit();
  int mark_erased();
  void fail_batch(int error, const char* what);
  void gain(const Guard&, const FrameIndex::Place& place);
  void lose(const Guard&, const FrameIndex::Place& place);
  void degrade(DiskState state, const std::string& reason);
  std::uint32_t take_slot(std::shared_ptr<Segment> segment);
  void recover(const std::string& name);

  const DiskTierOptions options_;
  const Plan plan_;
  FileOps& files_;
  const std::function<std::int64_t()> now_ns_;
  Ledger::Charge charge_;
  DirectoryLock lock_;
  DiskBudget budget_;  // outlives the segments

  mutable std::mutex mutex_;  // of what follows, to the next blank line
  std::condition_variable writes_come_, reads_come_;
  FrameIndex index_;
  std::vector<Slot> slots_;
  std::uint64_t live_bytes_ = 0;
  std::deque<TaskPtr> writes_, reads_;
  std::vector<TaskPtr> live_;
  std::deque<Done> ended_;
  std::uint64_t last_ticket_ = 0;
  std::int64_t next_deadline_ = 0;
  std::vector<std::pair<std::shared_ptr<Segment>, std::uint32_t>> bad_;  // granules: quarantined, not marked yet
  int read_errors_ = 0;
  bool stop_ = false;
  DiskReport report_;

  std::atomic<DiskState> state_{DiskState::kOn};  // changes under the mutex

  // The writer's alone.
  Appender appender_;
  std::uint32_t active_ = 0;  // its slot, while the appender is open
  PageBuffer room_;
  std::vector<Written> batch_;
  std::vector<TaskPtr> erased_;  // to be ended with the batch
  std::vector<std::pair<std::shared_ptr<Segment>, std::uint32_t>> marks_;
  std::uint64_t batch_bytes_ = 0;
  std::int64_t batch_since_ = 0;
  std::uint64_t next_id_ = 1;
  std::vector<std::uint64_t> offers_;
  const std::int64_t start_ns_;
  std::int64_t day_ = 0;
  std::uint64_t day_bytes_ = 0;
  std::mt19937_64 nonces_{std::random_device{}()};

  std::vector<std::unique_ptr<Reader>> rooms_;
  std::thread writer_;
  std::vector<std::thread> readers_;
};

// ---- Ops

Result<Ticket> LogTier::do_submit(std::span<const Op> batch) {
  std::vector<TaskPtr> tasks;
  tasks.reserve(batch.size());
  const std::int64_t now = now_ns_();
  Guard guard(mutex_);
  const auto ticket = static_cast<Ticket>(++last_ticket_);
  for (std::size_t i = 0; i < batch.size(); ++i) {
    auto task = std::make_shared<Task>();
    task->op = batch[i];
    task->done.ticket = ticket;
    task->done.op = static_cast<std::uint32_t>(i);
    task->deadline = now + (batch[i].deadline_ns != 0 ? batch[i].deadline_ns : kDefaultDeadlineNs);
    task->place = static_cast<std::uint32_t>(live_.size());
    live_.push_back(task);
    if (answer(guard, *task)) continue;
    next_deadline_ = std::min(next_deadline_, task->deadline);
    (task->op.verb == Verb::kGet ? reads_ : writes_).push_back(std::move(task));
  }
  if (!writes_.empty()) writes_come_.notify_one();
  if (!reads_.empty()) reads_come_.notify_all();
  return ticket;
}

// What needs no disk. The caller's memory is not touched.
bool LogTier::answer(const Guard& guard, Task& task) {
  const auto place = index_.find(task.op.key);
  const auto refuse = [&] {
    end(guard, task,
        Status(Code::kUnavailable,
               fmt::format("disk tier: {} is {}: {}", options_.path, to_string(state_.load()), report_.reason)));
    return true;
  };
  switch (task.op.verb) {
    case Verb::kContains:
      if (place) index_.claim(task.op.key);
      end(guard, task, {}, place.has_value(), place ? place->bytes : 0);
      return true;
    case Verb::kErase:
      if (place) return false;
      end(guard, task, {});
      return true;
    case Verb::kPut:
      if (place) {
        index_.claim(task.op.key);
        end(guard, task, {}, false, place->bytes);
        return true;
      }
      return state_ != DiskState::kOn ? refuse() : false;
    case Verb::kGet:
      if (!place) {
        end(guard, task, {});
        return true;
      }
      index_.claim(task.op.key);
      if (place->bytes <= task.op.destination.size()) return false;
      end(guard, task,
          Status(Code::kInvalidArgument, fmt::format("disk tier: the frame has {} bytes, the destination {}",
                                                     place->bytes, task.op.destination.size())),
          true, place->bytes);
      return true;
  }
  return false;
}

void LogTier::end(const Guard&, Task& task, Status status, bool found, std::size_t bytes) {
  if (task.ended) return;
  task.ended = true;
  task.done.status = std::move(status);
  task.done.found = found;
  task.done.bytes = bytes;
  ended_.push_back(task.done);
  live_[task.place] = live_.back();
  live_[task.place]->place = task.place;
  live_.pop_back();
}

// An op that is not in the caller's memory ends on time, whatever the disk does; the thread that works for it finds
// that out before it touches the caller's memory again.
void LogTier::expire(const Guard& guard) {
  if (live_.empty()) return;
  const std::int64_t now = now_ns_();
  if (now < next_deadline_) return;
  next_deadline_ = now + kDayNs;
  const std::vector<TaskPtr> tasks = live_;
  for (const TaskPtr& task : tasks) {
    if (task->deadline <= now && !task->busy)
      end(guard, *task, Status(Code::kUnavailable, "disk tier: the deadline went by"));
    else
      next_deadline_ = std::min(next_deadline_, task->deadline);
  }
}

std::size_t LogTier::do_poll(std::span<Done> out) {
  Guard guard(mutex_);
  expire(guard);
  const std::size_t count = std::min(out.size(), ended_.size());
  std::move(ended_.begin(), ended_.begin() + static_cast<std::ptrdiff_t>(count), out.begin());
  ended_.erase(ended_.begin(), ended_.begin() + static_cast<std::ptrdiff_t>(count));
  return count;
}

// ---- Reading

void LogTier::read_loop(Reader& reader) {
  for (;;) {
    TaskPtr task;
    {
      Guard guard(mutex_);
      reads_come_.wait(guard, [&] { return stop_ || !reads_.empty(); });
      if (reads_.empty()) return;
      task = std::move(reads_.front());
      reads_.pop_front();
      if (task->ended) continue;
    }
    get(*task, reader);
  }
}

// The frame may move, or go, while it is read; a place that does not hold it any more says nothing about it.
void LogTier::get(Task& task, Reader& reader) {
  const std::span<std::byte> room = reader.room.bytes();
  BodyChecksum& sum = reader.sum;
  for (int tries = 0;; ++tries) {
    std::shared_ptr<Segment> segment;
    FrameIndex::Place place;
    {
      Guard guard(mutex_);
      const auto found = index_.find(task.op.key);
      if (!found) return end(guard, task, {});
      place = *found;
      segment = slots_[place.segment].segment;
    }
    const std::uint64_t offset = std::uint64_t{place.granule} * kGranuleBytes,
                        finish = offset + kRecordHeaderBytes + place.bytes;
    sum.reset(task.op.key);
    std::optional<RecordHeader> header;
    std::size_t copied = 0;
    int error = 0;
    bool good = true;
    const bool at_once = finish - offset / kPageBytes * kPageBytes <= room.size();
    for (std::uint64_t at = offset / kPageBytes * kPageBytes; at < finish && good; at += room.size()) {
      const std::size_t want = std::min<std::uint64_t>(room.size(), round_up(finish - at, kPageBytes));
      const std::int64_t got = segment->read(at, room.first(want));
      if (got < 0) error = static_cast<int>(-got);
      good = got >= 0 && at + static_cast<std::uint64_t>(got) >= std::min(finish, at + want);
      if (!good) break;
      std::span<const std::byte> part = room.first(std::min<std::uint64_t>(want, finish - at));
      if (!header) {
        header = read_record_header(part.subspan(offset - at), segment->header(), offset, segment->bytes());
        good = header && header->state == RecordState::kLive && header->key == task.op.key &&
               header->frame_bytes == place.bytes && header->identity == options_.identity.digest;
        if (!good) break;
        part = part.subspan(offset - at + kRecordHeaderBytes);
      }
      sum.add(part);
      if (at_once && sum.value() != header->body_checksum) {  // so nothing of it reaches the caller
        good = false;
        break;
      }
      {
        Guard guard(mutex_);
        if (task.ended) return;
        task.busy = true;
      }
      std::memcpy(task.op.destination.data() + copied, part.data(), part.size());
      copied += part.size();
      Guard guard(mutex_);
      task.busy = false;
    }
    good = good && header && sum.value() == header->body_checksum;
    Guard guard(mutex_);
    if (good) {
      read_errors_ = 0;
      return end(guard, task, {}, true, copied);
    }
    const auto now_at = index_.find(task.op.key);
    if (!now_at) return end(guard, task, {});
    if (!(*now_at == place) && tries < 8) continue;
    if (error != 0) {
      if (++read_errors_ == kReadErrorsMax) {
        guard.unlock();
        degrade(DiskState::kOff, fmt::format("{} reads in a row failed: {}", kReadErrorsMax, reason_of(error)));
        guard.lock();
      }
      return end(guard, task,
                 Status(Code::kIo, fmt::format("disk tier: reading {}: {}", segment->path(), reason_of(error))));
    }
    quarantine(guard, task.op.key, place);
    return end(guard, task,
               Status(Code::kCorrupt, fmt::format("disk tier: the record at {} of {} is damaged; it is out of use",
                                                  offset, segment->path())));
  }
}

// Out of the index at once; the writer marks it on the disk.
void LogTier::quarantine(const Guard& guard, const FrameKey& key, const FrameIndex::Place& place) {
  index_.remove(key);
  lose(guard, place);
  ++report_.quarantined;
  bad_.emplace_back(slots_[place.segment].segment, place.granule);
  writes_come_.notify_one();
}

// ---- Writing

void LogTier::write_loop() {
  for (;;) {
    TaskPtr task;
    bool idle = false;
    {
      Guard guard(mutex_);
      const auto unsettled = [&] { return !batch_.empty() || !erased_.empty() || !marks_.empty(); };
      writes_come_.wait(guard, [&] { return stop_ || !writes_.empty() || !bad_.empty() || unsettled(); });
      marks_.insert(marks_.end(), bad_.begin(), bad_.end());
      bad_.clear();
      if (!writes_.empty()) {
        task = std::move(writes_.front());
        writes_.pop_front();
        idle = writes_.empty();
      } else {
        if (!unsettled() && stop_) break;
        idle = true;
      }
    }
    if (task != nullptr) task->op.verb == Verb::kPut ? put(task) : erase(task);
    // One sync for all that came while the last one ran; under steady traffic, a bounded wait for it.
    if (idle || appender_.unsynced_bytes() >= kSyncBytes ||
        (batch_since_ != 0 && now_ns_() - batch_since_ >= options_.sync_age_ns))
      commit();
  }
  if (appender_.is_open() && state_ == DiskState::kOn) seal();
}

bool LogTier::admitted(const FrameKey& key, std::uint64_t bytes) {
  if (!offers_.empty()) {
    const std::uint64_t print = key.hi | 1;
    std::uint64_t& offer = offers_[key.lo & (offers_.size() - 1)];
    if (offer != print) {
      offer = print;
      Guard guard(mutex_);
      ++report_.filtered;
      return false;
    }
  }
  if (options_.daily_write_bytes != 0) {
    const std::int64_t day = (now_ns_() - start_ns_) / kDayNs;
    if (day != day_) day_ = day, day_bytes_ = 0;
    if (day_bytes_ + bytes > options_.daily_write_bytes) {
      Guard guard(mutex_);
      ++report_.over_daily;
      return false;
    }
    day_bytes_ += bytes;
  }
  return true;
}

void LogTier::put(const TaskPtr& task) {
  const FrameKey key = task->op.key;
  const std::uint64_t bytes = task->op.source.size();
  const auto refuse = [&](Status status) {
    Guard guard(mutex_);
    end(guard, *task, std::move(status));
  };
  {
    Guard guard(mutex_);
    if (task->ended) return;
    if (answer(guard, *task)) return;
  }
  const auto twin = std::find_if(batch_.begin(), batch_.end(), [&](const Written& w) { return w.key == key; });
  if (twin != batch_.end()) {
    batch_.push_back({task, key, twin->place});
    return;
  }
  if (!task->retried && !admitted(key, record_bytes(bytes)))
    return refuse(Status(Code::kUnavailable, "disk tier: not admitted (second use, or the day's writes are used up)"));
  if (const Status room = make_room(bytes); !room.ok()) return refuse(room);
  {
    Guard guard(mutex_);
    if (task->ended) return;
    task->busy = true;
  }
  FrameIndex::Place place{
      .segment = active_, .granule = 0, .bytes = static_cast<std::uint32_t>(bytes), .claimed = true};
  int result = appender_.begin(key, bytes, body_checksum(key, task->op.source), place.granule);
  if (result == 0) result = appender_.add(task->op.source);
  if (result == 0) result = appender_.end();
  {
    Guard guard(mutex_);
    task->busy = false;
  }
  batch_.push_back({task, key, place});
  batch_bytes_ += record_bytes(bytes);
  if (batch_since_ == 0) batch_since_ = now_ns_();
  if (result < 0) fail_batch(-result, "writing");
}

void LogTier::erase(const TaskPtr& task) {
  const FrameKey key = task->op.key;
  if (std::any_of(batch_.begin(), batch_.end(), [&](const Written& w) { return w.key == key; })) commit();
  FrameIndex::Place place;
  std::shared_ptr<Segment> segment;
  {
    Guard guard(mutex_);
    const auto found = index_.find(key);
    if (!found) return end(guard, *task, {});
    place = *found;
    segment = slots_[place.segment].segment;
    index_.remove(key);
    lose(guard, place);
  }
  if (remove_if_empty(place.segment)) {
    Guard guard(mutex_);
    return end(guard, *task, {}, true);
  }
  marks_.emplace_back(std::move(segment), place.granule);
  erased_.push_back(task);
  if (batch_since_ == 0) batch_since_ = now_ns_();
}

// Everything since the last commit is on the disk, findable and answered; or none of it.
int LogTier::commit() {
  int result = appender_.is_open() ? appender_.sync() : 0;
  if (result == 0 && appender_.is_open() && !batch_.empty() && appender_.segment()->removed()) {
    degrade(DiskState::kOff, "its directory has vanished");
    result = -ENOENT;
  }
  if (result < 0) {
    fail_batch(-result, "syncing");
  } else {
    Guard guard(mutex_);
    report_.syncs += !batch_.empty();
    for (const Written& written : batch_) {
      if (state_ != DiskState::kOff && !index_.find(written.key)) {
        index_.add(written.key, written.place);
        gain(guard, written.place);
      }
      end(guard, *written.task, {}, false, written.place.bytes);
    }
    batch_.clear();
    batch_bytes_ = 0;
  }
  if (const int marked = mark_erased(); marked < 0 && state_ == DiskState::kOn)
    degrade(marked == -ENOENT ? DiskState::kOff : DiskState::kReadOnly,
            "marking an erased frame: " + reason_of(-marked));
  Guard guard(mutex_);
  for (const TaskPtr& task : erased_) end(guard, *task, {}, true);
  erased_.clear();
  batch_since_ = 0;
  return result;
}

int LogTier::mark_erased() {
  if (marks_.empty()) return 0;
  int worst = 0;
  std::vector<std::shared_ptr<Segment>> touched;
  if (state_ == DiskState::kOn)
    for (const auto& [segment, granule] : marks_) {
      const int result = appender_.is_open() && segment == appender_.segment() ? appender_.erase(granule)
                         : segment->sealed() ? erase_in_index(*segment, granule, room_.bytes())
                                             : erase_header(*segment, granule, room_.bytes());
      if (result < 0) worst = result;
      if (std::find(touched.begin(), touched.end(), segment) == touched.end()) touched.push_back(segment);
    }
  for (const std::shared_ptr<Segment>& segment : touched)
    if (const int result = segment->sync(); result < 0) worst = result;
  marks_.clear();
  return worst;
}

// The segment that is being written cannot be trusted any more: what was acknowledged stays where it is, the rest is
// tried once more in a new one.
void LogTier::fail_batch(int error, const char* what) {
  const bool open = appender_.is_open();
  appender_.abandon();
  if (open) remove_if_empty(active_);
  std::vector<Written> failed = std::move(batch_);
  batch_.clear();
  batch_bytes_ = 0;
  batch_since_ = 0;
  bool again = false;
  Guard guard(mutex_);
  for (auto at = failed.rbegin(); at != failed.rend(); ++at) {
    Task& task = *at->task;
    if (task.ended) continue;
    if (!task.retried && state_ == DiskState::kOn) {
      task.retried = true;
      writes_.push_front(at->task);
      continue;
    }
    again = true;
    end(guard, task, Status(Code::kIo, fmt::format("disk tier: {}: {}", what, reason_of(error))));
  }
  guard.unlock();
  if (again) degrade(DiskState::kReadOnly, fmt::format("{} failed twice: {}", what, reason_of(error)));
}

void LogTier::degrade(DiskState state, const std::string& reason) {
  {
    Guard guard(mutex_);
    if (state <= state_) return;
    state_ = state;
    report_.reason = reason;
    if (state == DiskState::kOff) {  // misses from now on
      std::vector<FrameKey> keys;
      index_.each([&](const FrameKey& key, const FrameIndex::Place&) { keys.push_back(key); });
      for (const FrameKey& key : keys) index_.remove(key);
      for (Slot& slot : slots_) slot.live_bytes = slot.live_records = 0;
      live_bytes_ = 0;
    }
  }
  fmt::print(stderr, "firn: disk tier {} is {}: {}\n", options_.path, to_string(state), reason);
}

// ---- Room

void LogTier::gain(const Guard&, const FrameIndex::Place& place) {
  Slot& slot = slots_[place.segment];
  slot.live_bytes += record_bytes(place.bytes);
  ++slot.live_records;
  live_bytes_ += record_bytes(place.bytes);
}

void LogTier::lose(const Guard&, const FrameIndex::Place& place) {
  Slot& slot = slots_[place.segment];
  FIRN_CHECK(slot.live_records != 0);
  slot.live_bytes -= record_bytes(place.bytes);
  --slot.live_records;
  live_bytes_ -= record_bytes(place.bytes);
}

std::uint32_t LogTier::take_slot(std::shared_ptr<Segment> segment) {
  Guard guard(mutex_);
  std::uint32_t slot = 0;
  while (slot < slots_.size() && slots_[slot].segment != nullptr) ++slot;
  if (slot == slots_.size()) slots_.emplace_back();
  slots_[slot] = {std::move(segment), 0};
  return slot;
}

void LogTier::forget_segment(std::uint32_t slot) {
  std::shared_ptr<Segment> segment;
  {
    Guard guard(mutex_);
    segment = std::move(slots_[slot].segment);
    slots_[slot] = {};
  }
  segment->remove();  // and with its last reader its bytes go
}

bool LogTier::remove_if_empty(std::uint32_t slot) {
  if ((appender_.is_open() && slot == active_) || state_ != DiskState::kOn) return false;
  {
    Guard guard(mutex_);
    if (slots_[slot].segment == nullptr || slots_[slot].live_records != 0) return false;
  }
  forget_segment(slot);
  return true;
}

// spare: the last one, which is for cleaning.
Status LogTier::open_segment(bool spare) {
  FIRN_CHECK(!appender_.is_open());
  const std::uint64_t bytes = plan_.segment_bytes + Segment::kFileOverhead;
  if (!budget_.reserve(bytes, spare ? 0 : bytes)) return Status(Code::kNoSpace, "the budget is in use");
  for (bool again = false;; again = true) {
    int error = 0;
    Result<std::shared_ptr<Segment>> segment = Segment::create(
        files_, budget_, options_.path, {.id = next_id_++, .nonce = nonces_(), .identity = options_.identity.digest},
        plan_.segment_bytes, options_.direct, &error);
    if (segment.ok()) {
      active_ = take_slot(*segment);
      appender_.open(std::move(*segment));
      Guard guard(mutex_);
      report_.direct = appender_.segment()->direct();
      return {};
    }
    const bool full = error == ENOSPC || error == EDQUOT;
    const bool passing = error == EMFILE || error == ENFILE || error == ENOMEM || error == EEXIST;
    // Other files have filled the disk: frames make room for what is new, once.
    if (!again && (full ? drop_oldest() : error == EIO) && budget_.reserve(bytes)) continue;
    if (!passing)
      degrade(error == ENOENT ? DiskState::kOff : DiskState::kReadOnly,
              error == ENOENT ? "its directory has vanished" : segment.status().message());
    return Status(Code::kUnavailable, "disk tier: " + segment.status().message());
  }
}

void LogTier::seal() {
  if (!appender_.is_open()) return;
  if (commit() < 0 || !appender_.is_open()) return;
  const std::uint32_t slot = active_;
  std::uint32_t live = 0;
  const int result = appender_.seal(live);
  if (result < 0) {
    degrade(result == -ENOENT ? DiskState::kOff : DiskState::kReadOnly,
            "writing the index of a segment: " + reason_of(-result));
  } else {
    remove_if_empty(slot);
  }
}

Status LogTier::make_room(std::uint64_t frame_bytes) {
  const std::uint64_t bytes = record_bytes(frame_bytes);
  for (;;) {
    {
      Guard guard(mutex_);
      if (state_ != DiskState::kOn)
        return Status(Code::kUnavailable,
                      fmt::format("disk tier: {} is {}: {}", options_.path, to_string(state_.load()), report_.reason));
    }
    bool room = false;
    {
      Guard guard(mutex_);
      room = index_.count() + batch_.size() < plan_.max_frames && live_bytes_ + batch_bytes_ + bytes <= plan_.live_most;
    }
    if (room) {
      if (appender_.fits(frame_bytes)) return {};
      seal();
      const Status opened = open_segment(/*spare=*/false);
      if (opened.ok()) continue;
      if (opened.code() != Code::kNoSpace) return opened;
      if (clean(frame_bytes)) {
        FIRN_CHECK(appender_.fits(frame_bytes));
        continue;
      }
    }
    if (evict_unclaimed()) continue;
    Guard guard(mutex_);
    return Status(
        Code::kNoSpace,
        fmt::format("disk tier: no room for a frame of {} bytes: {} bytes of {} are on the disk in {} frames, "
                    "{} of them live; erase frames or raise the budget",
                    frame_bytes, budget_.spent(), options_.budget_bytes, index_.count(), live_bytes_));
  }
}

// The segment with the least in it goes: what lives there moves into a new one, which then has room for the frame.
bool LogTier::clean(std::uint64_t frame_bytes) {
  std::uint32_t victim = 0;
  std::shared_ptr<Segment> from;
  {
    Guard guard(mutex_);
    std::uint64_t least = ~std::uint64_t{0};
    for (std::uint32_t slot = 0; slot < slots_.size(); ++slot)
      if (slots_[slot].segment != nullptr && slots_[slot].live_bytes < least)
        victim = slot, least = slots_[slot].live_bytes;
    if (least == ~std::uint64_t{0}) return false;
    const std::uint32_t records = slots_[victim].live_records + 1;
    const std::uint64_t end =
        kPageBytes + round_up(least, kPageBytes) + round_up(record_bytes(frame_bytes), kPageBytes);
    if (records > plan_.max_records || end + index_pages(records) * kPageBytes > plan_.segment_bytes) return false;
    from = slots_[victim].segment;
  }
  const Contents contents = read_contents(*from, room_.bytes());
  if (!open_segment(/*spare=*/true).ok()) return false;
  int result = contents.error == 0 ? 0 : -contents.error;
  for (const IndexEntry& entry : contents.entries) {
    if (result < 0) break;
    {
      Guard guard(mutex_);
      const auto place = index_.find(entry.key);
      if (!place || place->segment != victim || place->granule != entry.granule) continue;
    }
    result = move_record(*from, entry, active_);
  }
  if (result == 0) result = appender_.sync();
  if (result < 0) {
    degrade(DiskState::kReadOnly, "moving frames out of a segment: " + reason_of(-result));
    appender_.abandon();
    batch_.clear();
    forget_segment(active_);
    return false;
  }
  {
    Guard guard(mutex_);
    for (const Written& written : batch_) {
      const auto place = index_.find(written.key);
      if (!place || place->segment != victim) {  // gone meanwhile: nobody else removes but quarantine
        marks_.emplace_back(appender_.segment(), written.place.granule);
        continue;
      }
      FrameIndex::Place to = written.place;
      to.claimed = place->claimed;
      index_.move(written.key, to);
      lose(guard, *place);
      gain(guard, to);
      report_.moved_bytes += record_bytes(to.bytes);
    }
    batch_.clear();
    // What no record was found for is not there: damaged since.
    if (slots_[victim].live_records != 0) {
      std::vector<std::pair<FrameKey, FrameIndex::Place>> lost;
      index_.each([&](const FrameKey& key, const FrameIndex::Place& place) {
        if (place.segment == victim) lost.emplace_back(key, place);
      });
      for (const auto& [key, place] : lost) {
        index_.remove(key);
        lose(guard, place);
        ++report_.quarantined;
      }
    }
  }
  forget_segment(victim);
  // Or the victim could be back after a power cut, and its frames twice, where no room is left to clean.
  files_.sync_directory(options_.path);
  return true;
}

// As it is, checksum and all: a record that was damaged stays damaged, and its next reader finds out.
int LogTier::move_record(const Segment& from, const IndexEntry& entry, std::uint32_t to_slot) {
  const std::uint64_t offset = std::uint64_t{entry.granule} * kGranuleBytes,
                      finish = offset + kRecordHeaderBytes + entry.frame_bytes;
  FrameIndex::Place place{.segment = to_slot, .granule = 0, .bytes = entry.frame_bytes, .claimed = true};
  bool begun = false;
  const std::span<std::byte> room = room_.bytes();
  for (std::uint64_t at = offset / kPageBytes * kPageBytes; at < finish; at += room.size()) {
    const std::size_t want = std::min<std::uint64_t>(room.size(), round_up(finish - at, kPageBytes));
    const std::int64_t got = from.read(at, room.first(want));
    if (got < 0) return static_cast<int>(got);
    std::span<const std::byte> part = room.first(std::min<std::uint64_t>(want, finish - at));
    if (!begun) {
      const auto header = read_record_header(part.subspan(offset - at), from.header(), offset, from.bytes());
      if (!header || header->key != entry.key || header->frame_bytes != entry.frame_bytes) return 0;  // left behind
      if (const int result = appender_.begin(entry.key, entry.frame_bytes, header->body_checksum, place.granule);
          result < 0)
        return result;
      begun = true;
      part = part.subspan(offset - at + kRecordHeaderBytes);
    }
    if (const int result = appender_.add(part); result < 0) return result;
  }
  if (const int result = appender_.end(); result < 0) return result;
  batch_.push_back({nullptr, entry.key, place});
  return 0;
}

// Frames that an earlier process left and nobody has asked for since, the oldest segment's first.
bool LogTier::evict_unclaimed() {
  {
    Guard guard(mutex_);
    if (index_.unclaimed() == 0) return false;
  }
  if (!batch_.empty() || !marks_.empty()) commit();
  std::vector<std::pair<FrameKey, FrameIndex::Place>> going;
  std::uint32_t oldest = 0;
  {
    Guard guard(mutex_);
    std::uint64_t least = ~std::uint64_t{0};
    index_.each([&](const FrameKey&, const FrameIndex::Place& place) {
      if (place.claimed || slots_[place.segment].segment->header().id >= least) return;
      oldest = place.segment;
      least = slots_[oldest].segment->header().id;
    });
    if (least == ~std::uint64_t{0}) return false;
    index_.each([&](const FrameKey& key, const FrameIndex::Place& place) {
      if (!place.claimed && place.segment == oldest) going.emplace_back(key, place);
    });
    for (const auto& [key, place] : going) {
      index_.remove(key);
      lose(guard, place);
      ++report_.evicted_unclaimed;
    }
    if (slots_[oldest].live_records != 0)
      for (const auto& [key, place] : going) marks_.emplace_back(slots_[oldest].segment, place.granule);
  }
  remove_if_empty(oldest);
  commit();
  return true;
}

// The disk is fuller than our budget says: the oldest segment goes with all that is in it.
bool LogTier::drop_oldest() {
  std::uint32_t oldest = 0;
  {
    Guard guard(mutex_);
    std::uint64_t least = ~std::uint64_t{0};
    for (std::uint32_t slot = 0; slot < slots_.size(); ++slot)
      if (slots_[slot].segment != nullptr && slots_[slot].segment->header().id < least)
        oldest = slot, least = slots_[slot].segment->header().id;
    if (least == ~std::uint64_t{0}) return false;
    std::vector<std::pair<FrameKey, FrameIndex::Place>> going;
    index_.each([&](const FrameKey& key, const FrameIndex::Place& place) {
      if (place.segment == oldest) going.emplace_back(key, place);
    });
    for (const auto& [key, place] : going) {
      index_.remove(key);
      lose(guard, place);
      ++report_.dropped;
    }
    FIRN_CHECK(slots_[oldest].live_records == 0);
  }
  forget_segment(oldest);
  return true;
}

// ---- The start

Status LogTier::open() {
  if (const int result = files_.make_directory(options_.path); result < 0)
    return Status(Code::kInvalidArgument,
                  fmt::format("disk tier: {} cannot be made: {}", options_.path, reason_of(-result)));
  Result<DirectoryLock> lock = DirectoryLock::take(files_, options_.path);
  if (!lock.ok()) {
    const bool not_ours = lock.status().code() == Code::kUnavailable;
    return Status(not_ours ? Code::kUnavailable : Code::kInvalidArgument, "disk tier: " + lock.status().message());
  }
  lock_ = std::move(*lock);
  report_.session_only = options_.identity.digest.is_zero();
  FIRN_ASSIGN(const Ownership found, read_identity(files_, options_.path, options_.identity));
  if (found.owner == Owner::kAnother) {
    degrade(DiskState::kOff, "it holds frames of another model: " + found.difference);
    return {};
  }
  std::vector<std::string> names, segments;
  if (const int result = files_.list(options_.path, names); result < 0)
    return Status(Code::kIo, fmt::format("disk tier: listing {}: {}", options_.path, reason_of(-result)));
  for (const std::string& name : names)
    if (name.size() == 20 && name.ends_with(".seg") && name.find_first_not_of("0123456789abcdef") == 16)
      segments.push_back(name);
  std::sort(segments.begin(), segments.end());
  if (report_.session_only)
    for (const std::string& name : segments) files_.remove(options_.path + "/" + name);
  else
    for (const std::string& name : segments) recover(name);
  if (state_ != DiskState::kOn) return {};
  if (found.owner != Owner::kOurs) FIRN_TRY(write_identity(files_, options_.path, options_.identity));
  // A smaller budget than before, or larger segments: the oldest frames go.
  while (budget_.spent() + plan_.segment_bytes + Segment::kFileOverhead > options_.budget_bytes && drop_oldest()) {
  }
  report_.recovered = index_.count();
  return {};
}

// Segments come oldest first. A frame that was being moved when the process died is in two; the older one is whole, as
// it goes only after the newer is, so what was begun is dropped and its segment is free again.
void LogTier::recover(const std::string& name) {
  if (state_ == DiskState::kOff) return;
  const std::string path = options_.path + "/" + name;
  next_id_ = std::max(next_id_, std::uint64_t{std::stoull(name.substr(0, 16), nullptr, 16)} + 1);
  Result<std::shared_ptr<Segment>> opened =
      Segment::open(files_, budget_, options_.path, name, options_.direct, /*writable=*/true);
  if (!opened.ok()) {
    if (opened.status().code() == Code::kUnavailable) return degrade(DiskState::kOff, opened.status().message());
    const bool unfinished = opened.status().code() == Code::kNoSpace;
    if (!unfinished && opened.status().code() != Code::kCorrupt)
      return degrade(DiskState::kReadOnly, opened.status().message());
    ++(unfinished ? report_.torn : report_.quarantined);
    files_.remove(path);
    return;
  }
  const std::shared_ptr<Segment> segment = std::move(*opened);
  if (segment->header().identity != options_.identity.digest)
    return degrade(DiskState::kOff, path + " holds frames of another model");
  report_.direct = segment->direct();
  const Contents contents = read_contents(*segment, room_.bytes());
  report_.quarantined += contents.damaged;
  report_.torn += contents.torn;
  if (contents.error != 0) return degrade(DiskState::kReadOnly, path + ": " + reason_of(contents.error));
  if (!contents.indexed && !contents.entries.empty() && state_ == DiskState::kOn) {
    if (const int result = write_index(*segment, contents.entries, contents.end, room_.bytes());
        result < 0 && result != -ENOSPC)  // no room for an index: its records are asked again next time
      degrade(DiskState::kReadOnly, path + ": " + reason_of(-result));
  }
  const std::uint32_t slot = take_slot(segment);
  for (const IndexEntry& entry : contents.entries) {
    const FrameIndex::Place place{
        .segment = slot, .granule = entry.granule, .bytes = entry.frame_bytes, .claimed = false};
    if (index_.find(entry.key)) {
      marks_.emplace_back(segment, entry.granule);
      continue;
    }
    if (index_.full()) continue;
    Guard guard(mutex_);
    index_.add(entry.key, place);
    gain(guard, place);
  }
  mark_erased();
  remove_if_empty(slot);
}

Status LogTier::start() {
  next_deadline_ = now_ns_() + kDayNs;
  try {
    writer_ = std::thread([this] { write_loop(); });
    for (std::uint32_t i = 0; i < options_.readers; ++i) rooms_.push_back(std::make_unique<Reader>());
    for (const std::unique_ptr<Reader>& reader : rooms_) readers_.emplace_back([this, &reader] { read_loop(*reader); });
  } catch (const std::system_error& error) {
    return Status(Code::kUnavailable, fmt::format("disk tier: no threads: {}", error.what()));
  }
  return {};
}

LogTier::~LogTier() {
  {
    Guard guard(mutex_);
    stop_ = true;
  }
  writes_come_.notify_all();
  reads_come_.notify_all();
  if (writer_.joinable()) writer_.join();
  for (std::thread& reader : readers_) reader.join();
  if (report_.session_only)
    for (Slot& slot : slots_)
      if (slot.segment != nullptr) slot.segment->remove();
}

// ---- Knowing

DiskReport LogTier::report() const {
  Guard guard(mutex_);
  DiskReport report = report_;
  report.state = state_;
  report.budget_bytes = options_.budget_bytes;
  report.disk_bytes = budget_.spent();
  report.peak_bytes = budget_.peak();
  report.live_bytes = live_bytes_;
  report.memory_bytes = plan_.memory;
  report.bytes_a_frame = (FrameIndex::table_bytes(plan_.max_frames) + plan_.max_frames - 1) / plan_.max_frames;
  for (const Slot& slot : slots_) report.segments += slot.segment != nullptr;
  report.frames = index_.count();
  report.unclaimed = index_.unclaimed();
  return report;
}

Tier::Stats LogTier::do_stats() const {
  Guard guard(mutex_);
  Stats stats;
  stats.capacity_bytes = options_.budget_bytes;
  stats.metadata_bytes = kFixedDisk;
  stats.resident_bytes = budget_.spent() - kFixedDisk;
  stats.frames = index_.count();
  const std::uint64_t free_live = plan_.live_most - std::min(plan_.live_most, live_bytes_);
  stats.largest_free_bytes = state_ == DiskState::kOn && index_.count() < plan_.max_frames
                                 ? std::min<std::uint64_t>(free_live, plan_.largest_frame)
                                 : 0;
  return stats;
}

Status LogTier::do_verify() const {
  const auto fail = [](std::string what) { return Status(Code::kCorrupt, "disk tier: " + std::move(what)); };
  Guard guard(mutex_);
  std::vector<std::uint64_t> live(slots_.size());
  std::uint64_t all = 0, frames = 0;
  bool lost = false;
  index_.each([&](const FrameKey&, const FrameIndex::Place& place) {
    ++frames;
    lost = lost || place.segment >= slots_.size() || slots_[place.segment].segment == nullptr;
    if (lost) return;
    live[place.segment] += record_bytes(place.bytes);
    all += record_bytes(place.bytes);
  });
  if (lost) return fail("a frame is in a segment that there is not");
  for (std::size_t slot = 0; slot < slots_.size(); ++slot)
    if (live[slot] != slots_[slot].live_bytes)
      return fail(fmt::format("segment {}: {} live bytes, {} counted", slot, live[slot], slots_[slot].live_bytes));
  if (all != live_bytes_ || frames != index_.count())
    return fail(fmt::format("{} live bytes in {} frames, {} in {} counted", all, frames, live_bytes_, index_.count()));
  if (budget_.peak() > options_.budget_bytes && report_.dropped == 0)
    return fail(fmt::format("{} bytes were on the disk, {} are allowed", budget_.peak(), options_.budget_bytes));
  return {};
}

}  // namespace

Result<std::unique_ptr<DiskTier>> make_disk_tier(const DiskTierOptions& options, Ledger& ledger, FileOps& files,
                                                 std::function<std::int64_t()> now_ns) {
  const auto bad = [](std::string what) { return Status(Code::kInvalidArgument, "disk tier: " + std::move(what)); };
  if (options.path.empty()) return bad("path is empty");
  if (options.readers == 0 || options.readers > 64)
    return bad(fmt::format("readers {} is not within 1 to 64", options.readers));
  if (options.segment_bytes > kMaxSegmentBytes - kPageBytes ||
      (options.segment_bytes != 0 && options.segment_bytes < 64 << 10))
    return bad(fmt::format("segment_bytes {} is not within 64 KiB and 4 GiB", options.segment_bytes));
  if (options.largest_frame_bytes > kMaxSegmentBytes / 2)
    return bad(fmt::format("largest_frame_bytes {} is more than 2 GiB", options.largest_frame_bytes));
  if (options.sync_age_ns < 0) return bad("sync_age_ns is negative");
  const Plan plan = plan_of(options);
  if (plan.segments < 3)
    return Status(
        Code::kNoSpace,
        fmt::format("disk tier: budget_bytes {} is too small: three segments of {} bytes take {}", options.budget_bytes,
                    plan.segment_bytes, kFixedDisk + 3 * (plan.segment_bytes + Segment::kFileOverhead)));
  FIRN_ASSIGN(Ledger::Charge charge, ledger.charge(Account::kHostMetadata, plan.memory));
  try {
    auto tier = std::make_unique<LogTier>(options, plan, files, std::move(now_ns), std::move(charge));
    FIRN_TRY(tier->open());
    FIRN_TRY(tier->start());
    return std::unique_ptr<DiskTier>(std::move(tier));
  } catch (const std::bad_alloc&) {
    return Status(Code::kNoSpace, "disk tier: the machine has no memory for its tables");
  }
}

}  // namespace disk

Result<std::unique_ptr<DiskTier>> DiskTier::create(const DiskTierOptions& options, Ledger& ledger) {
  return disk::make_disk_tier(options, ledger, disk::system_files(), [] {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  });
}

std::uint64_t DiskTier::memory_bytes(const DiskTierOptions& options) { return disk::plan_of(options).memory; }

}  // namespace firn
