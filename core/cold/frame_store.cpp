#include "core/cold/frame_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <thread>
#include <utility>

#include "core/base/check.h"
#include "core/base/no_throw.h"

namespace firn::cold {
namespace {

// A tier that does not answer by then has failed the op.
constexpr std::int64_t kTierDeadlineNs = 2'000'000'000;
// A write holds on to its own frame alone and is worth waiting for.
constexpr std::int64_t kPutDeadlineNs = 30'000'000'000;
constexpr int kPutTries = 8;  // victims in a full tier below, before a frame goes without a copy
// Frames on their way down are not there for anybody else: more than this part of the host tier at once, and victims
// go without a copy, so that a slow tier costs hits and never stands in the way.
constexpr std::uint64_t kDemotingPart = 4;

// What is to be said, or that there is no memory to say it.
template <class Say>
Status said(Say say) {
  try {
    return say();
  } catch (const std::bad_alloc&) {
    return Status(Code::kUnavailable, "out of memory");
  }
}

}  // namespace

FrameStore::FrameStore(std::unique_ptr<HostTier> host, FrameTable table, TierStack stack, std::vector<Lower> lower,
                       std::uint32_t ghosts, std::uint32_t max_coming, std::function<std::int64_t()> now_ns)
    : host_(std::move(host)),
      table_(std::move(table)),
      stack_(std::move(stack)),
      lower_(std::move(lower)),
      ghosts_(ghosts),
      coming_(max_coming),
      lives_(table_.capacity()),
      now_ns_(std::move(now_ns)) {
  if (!lower_.empty()) erasures_.reserve(table_.capacity());
}

FrameStore::~FrameStore() {
  while (under_way() != 0)
    if (!poll()) std::this_thread::sleep_for(std::chrono::microseconds(50));
}

// ---- Finding

ColdFound FrameStore::look(const Lock&, ColdKind kind, const Key& key, Fidelity least) const {
  const auto miss = [](ColdMiss why) { return ColdFound{.answer = ColdAnswer::kMiss, .miss = why}; };
  const NameId id = table_.find(kind, key);
  if (id == NameId::kNone) return miss(static_cast<ColdMiss>(ghosts_.reason(key)));
  const Name& name = table_.name(id);
  const ColdKind other = kind == ColdKind::kBlock ? ColdKind::kState : ColdKind::kBlock;
  if (name.bound && table_.find(other, key) == NameId::kNone) return miss(ColdMiss::kUnbound);
  const FrameRecord& frame = table_.frame(name.frame);
  if (frame.label.fidelity > least) return miss(ColdMiss::kFidelity);
  const auto level = stack_.nearest(name.frame);
  FIRN_CHECK(level.has_value());
  return {.answer = ColdAnswer::kHit,
          .miss = ColdMiss::kNone,
          .tier = stack_.tier(*level),
          .fidelity = frame.label.fidelity,
          .bytes = kind == ColdKind::kState ? frame.raw_bytes : 0};
}

bool FrameStore::pending(const Lock&, ColdKind kind, const Key& key, const ColdFound& found) const {
  if (found.answer == ColdAnswer::kHit || found.miss == ColdMiss::kFidelity) return false;  // a name is stored once
  const ColdKind other = kind == ColdKind::kBlock ? ColdKind::kState : ColdKind::kBlock;
  return coming_.contains(found.miss == ColdMiss::kUnbound ? other : kind, key);
}

bool FrameStore::pin(const Lock&, ColdKind kind, const Key& key) {
  const NameId id = table_.find(kind, key);
  if (id == NameId::kNone) return false;
  if (table_.name(id).pins == 0) stack_.hold(table_.name(id).frame);
  table_.pin(id);
  return true;
}

bool FrameStore::unpin(const Lock&, ColdKind kind, const Key& key) {
  const NameId id = table_.find(kind, key);
  if (id == NameId::kNone || !table_.unpin(id)) return false;
  if (table_.name(id).pins == 0) stack_.release(table_.name(id).frame, now());
  return true;
}

bool FrameStore::touch(const Lock&, ColdKind kind, const Key& key) {
  const NameId id = table_.find(kind, key);
  if (id == NameId::kNone) return false;
  stack_.accessed(table_.name(id).frame, now());
  return true;
}

bool FrameStore::erase(const Lock&, ColdKind kind, const Key& key) {
  const NameId id = table_.find(kind, key);
  if (id == NameId::kNone || table_.name(id).pins != 0) return false;
  const FrameId frame = table_.name(id).frame;
  remember(key, ColdMiss::kErased);
  table_.forget(id);
  drop_if_done(frame);
  return true;
}

// ---- Evicting

ColdMiss FrameStore::evicted_from(Level level) const {
  switch (stack_.tier(level)) {
    case TierId::kDisk:
      return ColdMiss::kEvictedDisk;
    case TierId::kRemote:
      return ColdMiss::kEvictedRemote;
    default:
      return ColdMiss::kEvictedHost;
  }
}

// Nobody finds it any more. A state that is bound to a block of it is of no use to anybody either.
void FrameStore::drop_names(FrameId frame, ColdMiss why) {
  const FrameRecord record = table_.frame(frame);
  for (const NameId id : record.names) {
    if (id == NameId::kNone) continue;
    const Name name = table_.name(id);
    remember(name.key, why);
    if (name.pins != 0) stack_.release(frame, now());
    table_.forget(id);
    if (name.kind != ColdKind::kBlock || !name.bound) continue;
    const NameId state = table_.find(ColdKind::kState, name.key);
    if (state == NameId::kNone || !table_.name(state).bound || table_.name(state).pins != 0) continue;
    drop(table_.name(state).frame, why);
  }
}

void FrameStore::leave_host(FrameId frame) {
  FIRN_CHECK(host_->erase(stack_.key(frame)));
  stack_.leave(frame, kHostLevel);
  counters_.raw_bytes -= table_.frame(frame).raw_bytes;
  room_changes_.fetch_add(1, std::memory_order_release);
}

void FrameStore::leave_lower(FrameId frame, Level level) {
  stack_.leave(frame, level);
  erasures_.emplace_back(stack_.key(frame), level);
}

void FrameStore::drop(FrameId frame, ColdMiss why) {
  drop_names(frame, why);
  drop_if_done(frame);
}

// A frame without names goes as soon as nobody reads it.
void FrameStore::drop_if_done(FrameId frame) {
  if (table_.frame(frame).named != 0 || stack_.being_read(frame)) return;
  for (Level level = stack_.levels(); level-- > 1;)
    if (stack_.in(frame, level)) leave_lower(frame, level);
  if (stack_.in(frame, kHostLevel)) leave_host(frame);
  stack_.forget(frame);
  table_.remove(frame);
  ++lives_[index(frame)].life;
  lives_[index(frame)].fetched = {};
}

// Where a victim of the host tier would go; empty: nowhere, or it is somewhere already.
std::optional<Level> FrameStore::demotion_level(FrameId frame) const {
  if (lower_.empty() || lower_.front().write == ColdWrite::kNever) return std::nullopt;
  for (Level level = 1; level < stack_.levels(); ++level)
    if (stack_.in(frame, level)) return std::nullopt;
  if (lives_[index(frame)].putting || !takes(1, stack_.bytes(frame))) return std::nullopt;
  const std::uint64_t most = host_->stats().capacity_bytes / kDemotingPart;
  return demoting_bytes_ + stack_.bytes(frame) <= most ? std::optional<Level>(1) : std::nullopt;
}

bool FrameStore::evict_for_record() {
  for (Level level = stack_.levels(); level-- > 0;) {
    const FrameId victim = stack_.victim(level);
    if (victim == FrameId::kNone) continue;
    stack_.evicted(level);
    drop(victim, evicted_from(level));
    return true;
  }
  return false;
}

Result<MemoryTier::Reservation> FrameStore::reserve(std::size_t bytes) {
  for (;;) {
    Result<MemoryTier::Reservation> room = host_->reserve(bytes);
    if (room.ok() || room.status().code() != Code::kNoSpace) return room;
    std::vector<std::shared_ptr<Put>> puts;
    std::uint64_t coming = 0;
    bool freed = false, more = true;
    Lock lock(mutex_);
    while (!freed && more && coming < bytes) {
      const FrameId victim = stack_.victim(kHostLevel);
      more = victim != FrameId::kNone;
      if (!more) break;
      if (const auto level = demotion_level(victim); level && begin_put(puts, victim, *level, /*keep=*/false)) {
        coming += stack_.bytes(victim);
        continue;
      }
      stack_.evicted(kHostLevel);
      leave_host(victim);
      if (stack_.nowhere(victim)) drop(victim, ColdMiss::kEvictedHost);
      freed = true;
    }
    const bool moving = demoting_bytes_ != 0;
    lock.unlock();
    if (!puts.empty()) submit_puts(std::move(puts));
    if (freed) continue;
    if (moving) return Status(Code::kUnavailable, "frames are on their way to the tier below to make room");
    return Status(Code::kNoSpace,
                  fmt::format("{}; the other frames are being read or pinned", room.status().message()));
  }
}

// ---- Publishing

Result<FrameId> FrameStore::publish(Lock&, MemoryTier::Reservation reservation, const NewFrame& frame) {
  const auto wanted = [&](std::uint8_t place) {
    return !frame.names[place].is_zero() && table_.find(frame.kind, frame.names[place]) == NameId::kNone;
  };
  for (;;) {
    std::uint32_t missing = 0;
    for (std::uint8_t i = 0; i < frame.block_count; ++i) missing += wanted(i);
    if (missing == 0) return FrameId::kNone;  // somebody else was faster; the reservation gives its bytes back
    if (table_.room(missing)) break;
    if (!evict_for_record())
      return Status(Code::kNoSpace, "every frame record is in use by a frame that is being read or pinned");
  }
  FrameKey key = frame.key;
  while (host_->contains(key)) ++key.hi;  // of a frame that lost its names while somebody reads it
  FIRN_TRY(host_->publish(std::move(reservation), key, frame.bytes));
  FrameRecord record;
  record.label = frame.label;
  record.raw_bytes = frame.raw_bytes;
  record.block_count = frame.block_count;
  record.kind = frame.kind;
  const FrameId id = table_.add(record);
  stack_.add(id, key, frame.bytes, frame.facts);
  const ColdKind other = frame.kind == ColdKind::kBlock ? ColdKind::kState : ColdKind::kBlock;
  for (std::uint8_t i = 0; i < frame.block_count; ++i) {
    if (!wanted(i)) continue;
    bool bound = (frame.bound >> i & 1) != 0;
    // Bound on either side is bound on both.
    if (const NameId partner = table_.find(other, frame.names[i]); partner != NameId::kNone) {
      if (bound) table_.name(partner).bound = true;
      bound = bound || table_.name(partner).bound;
    }
    table_.add_name(id, i, frame.names[i], bound);
  }
  try {
    stack_.enter(id, kHostLevel, now());
  } catch (const std::bad_alloc&) {  // a policy had no memory: as if it had never come
    for (const NameId name : table_.frame(id).names)
      if (name != NameId::kNone) table_.forget(name);
    stack_.forget(id);
    FIRN_CHECK(host_->erase(key));
    table_.remove(id);
    throw;
  }
  counters_.raw_bytes += frame.raw_bytes;
  return id;
}

// ---- Reading

std::optional<FrameStore::Reading> FrameStore::begin_read(const Lock&, ColdKind kind, const Key& key) {
  const NameId id = table_.find(kind, key);
  if (id == NameId::kNone) return std::nullopt;
  const FrameId frame = table_.name(id).frame;
  stack_.begin_read(frame);
  return Reading{.frame = frame,
                 .life = lives_[index(frame)].life,
                 .key = stack_.key(frame),
                 .label = table_.frame(frame).label,
                 .block_count = table_.frame(frame).block_count,
                 .bytes = stack_.bytes(frame)};
}

bool FrameStore::in_host(const Lock&, const Reading& reading) const { return stack_.in(reading.frame, kHostLevel); }

void FrameStore::end_read(Lock&, const Reading& reading, Verdict verdict) {
  FIRN_CHECK(is(reading.frame, reading.life));
  stack_.end_read(reading.frame);
  if (verdict == Verdict::kBad) {
    ++counters_.failed_frames;
    drop_names(reading.frame, ColdMiss::kLoadFailed);
  }
  drop_if_done(reading.frame);
  room_changes_.fetch_add(1, std::memory_order_release);
}

Status FrameStore::fetch(const Reading& reading) {
  {
    Lock lock(mutex_);
    if (stack_.in(reading.frame, kHostLevel) || lives_[index(reading.frame)].fetching) return {};
  }
  Result<MemoryTier::Reservation> reserved = reserve(reading.bytes);
  if (!reserved.ok()) return reserved.status();
  // What needs memory comes before anything is changed.
  auto fetch = std::make_shared<Fetch>(Fetch{reading, 0, std::move(*reserved)});
  TierLink::Request request{.op = {.verb = Verb::kGet,
                                   .key = reading.key,
                                   .source = {},
                                   .destination = fetch->room.bytes(),
                                   .deadline_ns = kTierDeadlineNs},
                            .end = [this, fetch](const Done& done) { fetch_ended(*fetch, done); }};
  Level level = 0;
  {
    Lock lock(mutex_);
    Life& life = lives_[index(reading.frame)];
    if (stack_.in(reading.frame, kHostLevel) || life.fetching) return {};
    level = stack_.nearest(reading.frame).value_or(kHostLevel);
    FIRN_CHECK(level != kHostLevel);  // it has a reader, so it is somewhere
    life.fetching = true;
    life.fetched = {};
    stack_.begin_read(reading.frame);
    fetch->level = level;
  }
  Status refused;
  if (link(level).submit({&request, 1}, &refused) == 1) return {};
  Lock lock(mutex_);
  lives_[index(reading.frame)].fetching = false;
  stack_.end_read(reading.frame);
  drop_if_done(reading.frame);
  if (refused.code() == Code::kNoSpace) throw std::bad_alloc();
  return refused.code() == Code::kUnavailable ? refused : Status(Code::kIo, refused.message());
}

void FrameStore::fetch_ended(Fetch& fetch, const Done& done) {
  const Reading& reading = fetch.reading;
  Status status = said([&]() -> Status {
    const std::string_view tier = to_string(stack_.tier(fetch.level));
    if (!done.status.ok()) return done.status.with_context(fmt::format("reading from the {} tier", tier));
    if (!done.found) return Status(Code::kCorrupt, fmt::format("the {} tier has lost the frame", tier));
    if (done.bytes != reading.bytes)
      return Status(Code::kCorrupt,
                    fmt::format("the {} tier gave {} bytes of a frame of {}", tier, done.bytes, reading.bytes));
    return {};
  });
  Lock lock(mutex_);
  Life& life = lives_[index(reading.frame)];
  life.fetching = false;
  counters_.tier_failures += !done.status.ok();
  if (status.ok() && table_.frame(reading.frame).named != 0) {
    status = host_->publish(std::move(fetch.room), reading.key, reading.bytes);
    if (status.ok()) {
      try {
        stack_.enter(reading.frame, kHostLevel, now());
        counters_.raw_bytes += table_.frame(reading.frame).raw_bytes;
        ++counters_.fetched;
      } catch (const std::bad_alloc&) {
        FIRN_CHECK(host_->erase(reading.key));
        status = Status(Code::kUnavailable, "out of memory");
      }
    }
  } else {
    fetch.room = {};
  }
  life.fetched = std::move(status);
  stack_.end_read(reading.frame);
  drop_if_done(reading.frame);
  room_changes_.fetch_add(1, std::memory_order_release);
}

bool FrameStore::fetching(const Lock&, const Reading& reading) const { return lives_[index(reading.frame)].fetching; }

Status FrameStore::fetch_status(const Lock&, const Reading& reading) const {
  return lives_[index(reading.frame)].fetched;
}

void FrameStore::learn(const Lock&, const Reading& reading, std::uint64_t raw_bytes) {
  if (stack_.in(reading.frame, kHostLevel)) counters_.raw_bytes += raw_bytes - table_.frame(reading.frame).raw_bytes;
  table_.set_raw_bytes(reading.frame, raw_bytes);
}

// ---- Tiers below

// With the lock held: the frame gets a reader, which put_ended() takes away. False: there is no memory for it.
bool FrameStore::begin_put(std::vector<std::shared_ptr<Put>>& puts, FrameId frame, Level level, bool keep) {
  std::shared_ptr<Put> put;
  try {
    put = std::make_shared<Put>();
    puts.push_back(put);
  } catch (const std::bad_alloc&) {
    return false;
  }
  stack_.begin_read(frame);
  lives_[index(frame)].putting = true;
  if (!keep) demoting_bytes_ += stack_.bytes(frame);
  put->frame = frame;
  put->key = stack_.key(frame);
  put->level = level;
  put->keep = keep;
  put->bytes = host_->find(put->key);
  FIRN_CHECK(static_cast<bool>(put->bytes));
  return true;
}

void FrameStore::submit_puts(std::vector<std::shared_ptr<Put>> puts) {
  Status refused;
  std::size_t taken = 0;
  try {
    std::vector<TierLink::Request> requests;
    requests.reserve(puts.size());
    for (const std::shared_ptr<Put>& put : puts)
      requests.push_back({.op = {.verb = Verb::kPut,
                                 .key = put->key,
                                 .source = put->bytes.bytes(),
                                 .destination = {},
                                 .deadline_ns = kPutDeadlineNs},
                          .end = [this, put](const Done& done) { put_ended(put, done); }});
    taken = link(puts.front()->level).submit(requests, &refused);
  } catch (const std::bad_alloc&) {
    refused = out_of_memory();
  }
  for (std::size_t i = taken; i < puts.size(); ++i) {
    Done done;  // not for want of room in the tier, which put_ended() would make
    done.status = Status(Code::kUnavailable, "not submitted");
    put_ended(puts[i], done);
  }
}

void FrameStore::write_through(std::span<const std::pair<FrameId, std::uint32_t>> frames) {
  if (lower_.empty() || lower_.front().write != ColdWrite::kThrough) return;
  std::vector<std::shared_ptr<Put>> puts;
  {
    Lock lock(mutex_);
    for (const auto& [frame, life] : frames)
      if (is(frame, life) && table_.frame(frame).named != 0 && stack_.in(frame, kHostLevel) && !stack_.in(frame, 1) &&
          takes(1, stack_.bytes(frame)) && !lives_[index(frame)].putting)
        begin_put(puts, frame, 1, /*keep=*/true);
  }
  if (!puts.empty()) submit_puts(std::move(puts));
}

void FrameStore::put_ended(const std::shared_ptr<Put>& put, const Done& done) {
  bool again = false;
  {
    Lock lock(mutex_);
    // A full tier: its own policy says who goes. The erase is submitted before the next try, though a tier may take
    // them in any order; then the try after that finds the room.
    if (done.status.code() == Code::kNoSpace && put->tries < kPutTries) {
      const FrameId victim = stack_.victim(put->level);
      if (victim != FrameId::kNone) {
        stack_.evicted(put->level);
        leave_lower(victim, put->level);
        if (stack_.nowhere(victim)) drop(victim, evicted_from(put->level));
        ++put->tries;
        again = true;
      }
    }
    if (!again) {
      put->bytes = {};
      const FrameId frame = put->frame;
      lives_[index(frame)].putting = false;
      if (!put->keep) demoting_bytes_ -= stack_.bytes(frame);
      stack_.end_read(frame);
      bool written = done.status.ok();
      if (written) try {
          stack_.enter(frame, put->level, now());
        } catch (const std::bad_alloc&) {  // nobody would ever find it there
          erasures_.emplace_back(put->key, put->level);
          written = false;
        }
      ++(written ? counters_.demoted : counters_.tier_failures);
      const bool named = table_.frame(frame).named != 0;
      // It was chosen to go; a hit or a pin in the meantime keeps it.
      const bool pinned = [&] {
        for (const NameId id : table_.frame(frame).names)
          if (id != NameId::kNone && table_.name(id).pins != 0) return true;
        return false;
      }();
      if (!put->keep && named && !stack_.being_read(frame) && !pinned) {
        stack_.evicted(kHostLevel);
        leave_host(frame);
        if (stack_.nowhere(frame)) drop_names(frame, ColdMiss::kEvictedHost);
      }
      drop_if_done(frame);
      room_changes_.fetch_add(1, std::memory_order_release);
    }
  }
  if (!again) return;
  submit_erasures();
  try {
    submit_puts({put});
  } catch (const std::bad_alloc&) {  // the list itself; what it is given to does not throw
    put->tries = kPutTries;
    Done given_up;
    given_up.status = Status(Code::kUnavailable, "out of memory");
    put_ended(put, given_up);
  }
}

bool FrameStore::probes() const {
  return std::any_of(lower_.begin(), lower_.end(), [](const Lower& lower) { return lower.probe; });
}

void FrameStore::probe(const FrameKey& key, Told told) { probe_level(key, 1, std::make_shared<Told>(std::move(told))); }

void FrameStore::probe_level(const FrameKey& key, Level level, std::shared_ptr<Told> told) {
  while (level < stack_.levels() && !lower_[level - 1u].probe) ++level;
  if (level == stack_.levels()) {
    (*told)(std::nullopt, 0, {});
    return;
  }
  TierLink::Request request{
      .op = {.verb = Verb::kContains, .key = key, .source = {}, .destination = {}, .deadline_ns = kTierDeadlineNs},
      .end = [this, key, level, told](const Done& done) {
        if (!done.status.ok()) {
          Lock lock(mutex_);
          ++counters_.tier_failures;
        }
        if (!done.status.ok() || done.found) {
          (*told)(done.found ? std::optional<Level>(level) : std::nullopt, done.bytes,
                  said([&] { return done.status; }));
          return;
        }
        try {
          probe_level(key, static_cast<Level>(level + 1), told);
        } catch (const std::bad_alloc&) {
          (*told)(std::nullopt, 0, out_of_memory());
        }
      }};
  Status refused;
  if (link(level).submit({&request, 1}, &refused) == 0) (*told)(std::nullopt, 0, std::move(refused));
}

FrameId FrameStore::adopt(Lock&, Level level, const NewFrame& frame) {
  std::uint32_t names = 0;
  for (std::uint8_t i = 0; i < frame.block_count; ++i) {
    if (frame.names[i].is_zero()) continue;
    if (table_.find(frame.kind, frame.names[i]) != NameId::kNone) return FrameId::kNone;
    ++names;
  }
  while (!table_.room(names))
    if (!evict_for_record()) return FrameId::kNone;
  FrameRecord record;
  record.label = frame.label;
  record.raw_bytes = frame.raw_bytes;
  record.block_count = frame.block_count;
  record.kind = frame.kind;
  const FrameId id = table_.add(record);
  stack_.add(id, frame.key, frame.bytes, frame.facts);
  for (std::uint8_t i = 0; i < frame.block_count; ++i)
    if (!frame.names[i].is_zero()) table_.add_name(id, i, frame.names[i], (frame.bound >> i & 1) != 0);
  stack_.enter(id, level, now());
  return id;
}

void FrameStore::submit_erasures() {
  for (;;) {
    std::pair<FrameKey, Level> gone;
    {
      Lock lock(mutex_);
      if (erasures_.empty()) return;
      gone = erasures_.back();
      erasures_.pop_back();
    }
    TierLink::Request request{.op = {.verb = Verb::kErase,
                                     .key = gone.first,
                                     .source = {},
                                     .destination = {},
                                     .deadline_ns = kTierDeadlineNs},
                              .end = [this](const Done& done) {
                                Lock lock(mutex_);
                                counters_.tier_failures += !done.status.ok();
                              }};
    if (link(gone.second).submit({&request, 1}) == 1) continue;
    Lock lock(mutex_);
    erasures_.push_back(gone);  // later
    return;
  }
}

bool FrameStore::poll() {
  if (lower_.empty()) return false;
  submit_erasures();
  bool any = false;
  for (const Lower& lower : lower_) any = lower.link->poll() || any;
  return any;
}

std::uint32_t FrameStore::under_way() const {
  std::uint32_t ops = 0;
  for (const Lower& lower : lower_) ops += lower.link->in_flight();
  Lock lock(mutex_);
  return ops + static_cast<std::uint32_t>(erasures_.size());
}

// ---- Knowing

Status FrameStore::check() const {
  Lock lock(mutex_);
  FIRN_TRY(table_.check());
  FIRN_TRY(stack_.check());
  std::uint64_t raw = 0;
  const auto bad = [](std::string what) { return Status(Code::kCorrupt, "frames: " + std::move(what)); };
  for (std::uint32_t i = 0; i < table_.capacity(); ++i) {
    const FrameId id{i};
    if (!table_.in_use(id)) continue;
    const FrameRecord& record = table_.frame(id);
    if (record.named == 0 && !stack_.being_read(id)) return bad(fmt::format("frame {} has no name and no reader", i));
    if (stack_.nowhere(id)) return bad(fmt::format("frame {} is in no tier", i));
    const bool host = stack_.in(id, kHostLevel);
    if (host != host_->contains(stack_.key(id)))
      return bad(fmt::format("frame {}: the books {} it in the host tier, the tier does not agree", i,
                             host ? "have" : "do not have"));
    raw += host ? record.raw_bytes : 0;
  }
  if (raw != counters_.raw_bytes) return bad(fmt::format("{} raw bytes, {} counted", raw, counters_.raw_bytes));
  return host_->verify();
}

}  // namespace firn::cold
