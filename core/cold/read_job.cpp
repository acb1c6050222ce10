// read_job.cpp: frames back into somebody's memory. A step: find a batch of frames and give each a reader, have those
// that are only in tiers below brought up, decode what is there, let go. Frames that are still on their way do not keep
// the others of the batch waiting.
#include <algorithm>

#include "core/cold/ticket_job.h"
#include "firn/thread_pool.h"
#include "storage/codec/state_frame.h"

namespace firn::cold {
namespace {

class ReadJob : public TicketJob {
 public:
  ReadJob(Rooms& rooms, Ticket ticket, std::span<const Key> keys, ColdKind kind, Fidelity least, std::uint32_t batch)
      : TicketJob(rooms, ticket, keys.size()), keys_(keys), kind_(kind), least_(least), batch_(batch) {}

  bool ready() override {
    if (items_.empty()) return true;
    look_after(rooms_);
    const Lock lock = rooms_.frames.lock();
    return std::any_of(items_.begin(), items_.end(), [&](const Item& item) {
      if (rooms_.frames.in_host(lock, item.reading)) return true;
      return item.fetch_begun ? !rooms_.frames.fetching(lock, item.reading) : rooms_.frames.room_changes() != seen_;
    });
  }

  bool step() override {
    if (items_.empty()) {
      if (next_ == keys_.size()) {
        settle_order();
        return end();
      }
      gather();
    }
    bring_up();
    std::size_t waiting = 0;  // those that are still on their way stay in front
    {
      const Lock lock = rooms_.frames.lock();
      const auto here = std::stable_partition(
          items_.begin(), items_.end(), [&](const Item& item) { return !rooms_.frames.in_host(lock, item.reading); });
      waiting = static_cast<std::size_t>(here - items_.begin());
    }
    if (waiting != items_.size()) take(std::span(items_).subspan(waiting));
    items_.resize(waiting);
    return false;
  }

 protected:
  struct Item {
    FrameStore::Reading reading;
    std::uint32_t first = 0, count = 0;                   // names of the ticket
    std::array<std::int64_t, kMaxExtentBlocks> target{};  // by place
    TierId tier = TierId::kHost;                          // where it was found
    bool fetch_begun = false;
    bool let_go = false;  // it has no reader of ours any more
  };

  // Reads what is in the host tier, decides its names and lets go of it.
  virtual void take(std::span<Item> items) = 0;

  void let_go() override {
    Lock lock = rooms_.frames.lock();
    for (const Item& item : items_)
      if (!item.let_go) rooms_.frames.end_read(lock, item.reading, FrameStore::Verdict::kGood);
    items_.clear();
  }

  void let_go(Item& item, const Status& status) {
    Lock lock = rooms_.frames.lock();
    item.let_go = true;
    rooms_.frames.end_read(lock, item.reading,
                           status.code() == Code::kCorrupt ? FrameStore::Verdict::kBad : FrameStore::Verdict::kGood);
  }

  // All names of an item end alike.
  void decide_all(const Item& item, const ColdResult& result) {
    for (const std::int64_t name : item.target)
      if (name >= 0) decide(static_cast<std::size_t>(name), result);
  }
  static ColdResult good(const Item& item) {
    return {.found = true, .tier = item.tier, .fidelity = item.reading.label.fidelity};
  }
  static ColdResult bad(const Status& status) { return {.miss = ColdMiss::kLoadFailed, .status = status}; }

 private:
  void gather() {
    items_.reserve(batch_);  // before any of them has a reader
    const Lock lock = rooms_.frames.lock();
    while (next_ < keys_.size() && items_.size() < batch_) {
      const ColdFound found = rooms_.frames.look(lock, kind_, keys_[next_], least_);
      if (found.answer != ColdAnswer::kHit) {
        decide(next_, {.miss = found.miss});
        ++next_;
        continue;
      }
      Item item;
      item.reading = *rooms_.frames.begin_read(lock, kind_, keys_[next_]);
      item.first = static_cast<std::uint32_t>(next_);
      item.target.fill(-1);
      item.tier = found.tier;
      // As many of the next names as are in this frame, each once.
      for (; next_ < keys_.size(); ++next_) {
        const NameId id = rooms_.frames.table().find(kind_, keys_[next_]);
        if (id == NameId::kNone || rooms_.frames.table().name(id).frame != item.reading.frame) break;
        std::int64_t& place = item.target[rooms_.frames.table().name(id).place];
        if (place >= 0) break;
        if (item.count != 0 && rooms_.frames.look(lock, kind_, keys_[next_], least_).answer != ColdAnswer::kHit) break;
        place = static_cast<std::int64_t>(next_);
        ++item.count;
      }
      items_.push_back(item);
    }
  }

  // Frames that are only below start on their way up. One that cannot come ends here.
  void bring_up() {
    seen_ = rooms_.frames.room_changes();
    Status no_room;
    for (std::size_t i = 0; i < items_.size();) {
      Item& item = items_[i];
      Status status;
      bool ended = false;
      if (item.fetch_begun) {
        const Lock lock = rooms_.frames.lock();
        ended = !rooms_.frames.fetching(lock, item.reading) && !rooms_.frames.in_host(lock, item.reading);
        if (ended) status = rooms_.frames.fetch_status(lock, item.reading);
        if (ended && status.ok()) ended = item.fetch_begun = false;  // it came and went again: once more
      }
      if (!ended && !item.fetch_begun) {
        status = rooms_.frames.fetch(item.reading);
        item.fetch_begun = status.ok();
        // No room, while other frames of ours may hold some: later, when they are done.
        if (status.code() == Code::kNoSpace && no_room.ok()) no_room = status;
        ended = !status.ok() && status.code() != Code::kUnavailable && status.code() != Code::kNoSpace;
      }
      if (ended)
        fail(i, status);
      else
        ++i;
    }
    if (!no_room.ok() && !any_moves()) fail(0, no_room);  // and nothing of ours will ever make any
    tend(rooms_);
  }

  bool any_moves() const {
    const Lock lock = rooms_.frames.lock();
    return std::any_of(items_.begin(), items_.end(),
                       [&](const Item& item) { return item.fetch_begun || rooms_.frames.in_host(lock, item.reading); });
  }

  void fail(std::size_t i, const Status& status) {
    Item& item = items_[i];
    let_go(item, status);
    decide_all(item, {.miss = status.code() == Code::kCorrupt ? ColdMiss::kLoadFailed : ColdMiss::kUnavailable,
                      .status = status});
    items_.erase(items_.begin() + static_cast<std::ptrdiff_t>(i));
  }

  // Read in order, yet what comes first is to outlive what comes after it.
  void settle_order() {
    const Lock lock = rooms_.frames.lock();
    FrameId last = FrameId::kNone;
    for (std::size_t i = keys_.size(); i-- > 0;) {
      if (!results_[i].found) continue;
      const NameId id = rooms_.frames.table().find(kind_, keys_[i]);
      if (id == NameId::kNone || rooms_.frames.table().name(id).frame == last) continue;
      last = rooms_.frames.table().name(id).frame;
      rooms_.frames.touch(lock, kind_, keys_[i]);
    }
  }

 protected:
  const std::span<const Key> keys_;
  const ColdKind kind_;

 private:
  const Fidelity least_;
  const std::uint32_t batch_;
  std::vector<Item> items_;  // each has a reader until it is let go
  std::size_t next_ = 0;
  std::uint64_t seen_ = 0;
};

class LoadJob final : public ReadJob {
 public:
  LoadJob(Rooms& rooms, Ticket ticket, const ColdRun& run)
      : ReadJob(rooms, ticket, run.keys, ColdKind::kBlock, run.least, rooms.batch[index(run.group)]),
        run_(run),
        after_(run.after) {}

  bool ready() override {
    if (after_.kind != Fence::Kind::kNone) {
      if (!rooms_.timeline->passed(after_)) return false;
      after_ = {};
    }
    return ReadJob::ready();
  }

 private:
  void take(std::span<Item> items) override {
    std::vector<ExtentCoder::Decode> extents(items.size());
    std::vector<MemoryTier::Pin> pins(items.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
      pins[i] = rooms_.frames.bytes_of(items[i].reading);
      extents[i].frame = pins[i].bytes();
      extents[i].label = items[i].reading.label;
      extents[i].block_count = items[i].reading.block_count;
      extents[i].target = items[i].target;
    }
    rooms_.coder.decode(run_, extents);
    pins.clear();  // before the readers that guard them
    std::uint64_t blocks = 0, bytes = 0;
    for (std::size_t i = 0; i < items.size(); ++i) {
      let_go(items[i], extents[i].status);
      decide_all(items[i], extents[i].status.ok() ? good(items[i]) : bad(extents[i].status));
      if (!extents[i].status.ok()) continue;
      blocks += items[i].count;
      bytes += items[i].reading.bytes;
    }
    rooms_.tally.note([&](ColdStats& s) {
      s.blocks_loaded += blocks;
      s.loaded_bytes += bytes;
    });
  }

  const ColdRun run_;
  Fence after_;
};

class PrefetchJob final : public ReadJob {
 public:
  PrefetchJob(Rooms& rooms, Ticket ticket, std::span<const Key> keys, ColdKind kind)
      : ReadJob(rooms, ticket, keys, kind, Fidelity::kDerived, 1) {}

 private:
  void take(std::span<Item> items) override {
    for (Item& item : items) {
      if (kind_ == ColdKind::kState) {
        const MemoryTier::Pin pin = rooms_.frames.bytes_of(item.reading);
        const Result<StateHeader> header = open_state(pin.bytes());
        const Lock lock = rooms_.frames.lock();
        if (header.ok()) rooms_.frames.learn(lock, item.reading, header->raw_bytes);
      }
      let_go(item, {});
      decide_all(item, good(item));
    }
  }
};

class StateLoadJob final : public ReadJob {
 public:
  StateLoadJob(Rooms& rooms, Ticket ticket, std::span<const ColdState> states, std::vector<Key> keys)
      : ReadJob(rooms, ticket, keys, ColdKind::kState, Fidelity::kDerived, kMaxBatch),
        states_(states.begin(), states.end()),
        names_(std::move(keys)) {}

 private:
  void take(std::span<Item> items) override {
    std::vector<ColdResult> results(items.size());
    std::vector<MemoryTier::Pin> pins(items.size());
    for (std::size_t i = 0; i < items.size(); ++i) pins[i] = rooms_.frames.bytes_of(items[i].reading);
    const auto read = [&](std::size_t i) {
      const ColdState& state = states_[items[i].first];
      const Result<std::size_t> bytes = read_state(pins[i].bytes(), state.key, state.room);
      if (!bytes.ok()) {
        results[i].status = bytes.status();
        if (bytes.status().code() == Code::kCorrupt) results[i].miss = ColdMiss::kLoadFailed;
        return;
      }
      results[i] = good(items[i]);
      results[i].bytes = *bytes;
    };
    if (rooms_.threads != nullptr)
      rooms_.threads->parallel_for(items.size(), read);
    else
      for (std::size_t i = 0; i < items.size(); ++i) read(i);
    pins.clear();
    std::uint64_t count = 0, bytes = 0;
    for (std::size_t i = 0; i < items.size(); ++i) {
      count += results[i].found;
      bytes += results[i].found ? items[i].reading.bytes : 0;
      let_go(items[i], results[i].status);
      decide(items[i].first, std::move(results[i]));
    }
    rooms_.tally.note([&](ColdStats& s) {
      s.states_loaded += count;
      s.loaded_bytes += bytes;
    });
  }

  const std::vector<ColdState> states_;  // what they point at is the caller's
  const std::vector<Key> names_;
};

}  // namespace

std::unique_ptr<Mover::Job> make_load_job(Rooms& rooms, Ticket ticket, const ColdRun& run) {
  return std::make_unique<LoadJob>(rooms, ticket, run);
}
std::unique_ptr<Mover::Job> make_prefetch_job(Rooms& rooms, Ticket ticket, std::span<const Key> keys, ColdKind kind) {
  return std::make_unique<PrefetchJob>(rooms, ticket, keys, kind);
}
std::unique_ptr<Mover::Job> make_state_load_job(Rooms& rooms, Ticket ticket, std::span<const ColdState> states) {
  std::vector<Key> keys;
  for (const ColdState& state : states) keys.push_back(state.key);
  return std::make_unique<StateLoadJob>(rooms, ticket, states, std::move(keys));
}

}  // namespace firn::cold
