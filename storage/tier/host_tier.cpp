// The host tier in three parts: a plan (which arenas, how large, on which node), a table of frames with an index by
// key, and the calls. Everything is mapped and charged at creation; no later call allocates, except messages and Done
// entries. One lock guards arenas and tables and is never held while bytes are copied: a frame being written belongs to
// its reservation, a frame being read is pinned.
#include "storage/tier/host_tier.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstdio>
#include <list>
#include <mutex>
#include <new>
#include <utility>

#include "core/base/check.h"
#include "storage/tier/arena.h"
#include "storage/tier/copy.h"
#include "storage/tier/mapping.h"

namespace firn {
namespace {

constexpr std::uint64_t kFixedBytes = 64 << 10;  // the tier itself and its Done entries, at most kMaxInFlight
constexpr std::uint32_t kMaxFrames = 1u << 30;
constexpr std::uint64_t kMaxWeight = 65535;
constexpr std::uint64_t kMaxBudget = std::uint64_t{64} << 40;
constexpr std::uint32_t kNone = 0;  // entry numbers begin at 1

std::uint64_t page_bytes() {
  static const auto bytes = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}
std::uint64_t round_up(std::uint64_t bytes, std::uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

// ---- The plan

struct Share {
  int node = 0;
  std::uint64_t weight = 1;
};

std::string list(const std::vector<int>& nodes) {
  std::string text;
  for (const int node : nodes) text += fmt::format("{}{}", text.empty() ? "" : ", ", node);
  return text;
}

Result<std::uint64_t> parse_number(std::string_view text, std::uint64_t most, std::string_view placement) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number > most)
    return Status(Code::kInvalidArgument,
                  fmt::format("placement \"{}\": \"{}\" is not a number from 0 to {}", placement, text, most));
  return number;
}

Result<std::vector<Share>> parse_spread(std::string_view weights, std::string_view placement,
                                        const std::vector<int>& nodes) {
  std::vector<Share> shares;
  std::size_t given = 0;
  for (std::size_t begin = 0; begin <= weights.size(); ++given) {
    const std::size_t end = std::min(weights.find(',', begin), weights.size());
    FIRN_ASSIGN(const std::uint64_t weight, parse_number(weights.substr(begin, end - begin), kMaxWeight, placement));
    if (given < nodes.size() && weight != 0) shares.push_back({nodes[given], weight});
    begin = end + 1;
  }
  if (given > nodes.size())
    return Status(Code::kInvalidArgument, fmt::format("placement \"{}\" has {} weights, but there are {} nodes: {}",
                                                      placement, given, nodes.size(), list(nodes)));
  if (shares.empty())
    return Status(Code::kInvalidArgument, fmt::format("placement \"{}\": every weight is 0", placement));
  return shares;
}

Result<std::vector<Share>> parse_placement(std::string_view placement, const Topology& topology) {
  const std::vector<int> nodes = topology.nodes();
  constexpr std::string_view kNode = "node:", kSpread = "spread:";
  if (placement == "local") {
    // A processor beside no memory of its own gets the first node that has some.
    const int local = topology.local_node();
    return std::vector<Share>{{std::find(nodes.begin(), nodes.end(), local) != nodes.end() ? local : nodes.front(), 1}};
  }
  if (placement == "interleave") {
    std::vector<Share> shares;
    for (const int node : nodes) shares.push_back({node, 1});
    return shares;
  }
  if (placement.substr(0, kNode.size()) == kNode) {
    FIRN_ASSIGN(const std::uint64_t number, parse_number(placement.substr(kNode.size()), 65535, placement));
    const int node = static_cast<int>(number);
    if (std::find(nodes.begin(), nodes.end(), node) == nodes.end())
      return Status(Code::kInvalidArgument, fmt::format("placement \"{}\": there is no such memory node; there are: {}",
                                                        placement, list(nodes)));
    return std::vector<Share>{{node, 1}};
  }
  if (placement.substr(0, kSpread.size()) == kSpread)
    return parse_spread(placement.substr(kSpread.size()), placement, nodes);
  return Status(Code::kInvalidArgument,
                fmt::format("placement \"{}\" is none of local, node:N, interleave, spread:W0,W1,...", placement));
}

// A frame or a reservation.
struct Entry {
  FrameKey key;
  BlobHandle blob;
  std::uint32_t bytes;  // of the frame; the blob is whole granules
  std::uint32_t pins;
  std::uint32_t next;        // in its bucket, or in the list of spares
  std::uint32_t generation;  // counts up whenever the entry changes hands
  std::uint16_t arena;
  enum class State : std::uint8_t { kSpare, kReserved, kPublished } state;
};

struct Plan {
  struct Part {
    int node = 0;
    std::uint64_t bytes = 0;
    std::uint32_t max_blobs = 0;
  };
  std::vector<Part> parts;
  std::uint32_t max_frames = 0;
  std::uint32_t bucket_count = 0;
  std::uint64_t table_bytes = 0;  // mapped
  std::uint64_t frame_bytes = 0;
  std::uint64_t metadata_bytes() const { return table_bytes + kFixedBytes; }
};

std::uint32_t default_max_frames(std::uint64_t budget) {
  const std::uint64_t frames = std::max(budget / 16384, std::min<std::uint64_t>(budget / 4096, 65536));
  return static_cast<std::uint32_t>(std::clamp<std::uint64_t>(frames, 1, kMaxFrames));
}

// Tables first, then frames from what the budget leaves.
Result<Plan> make_plan(const HostTierOptions& options, const Topology& topology) {
  if (options.max_frames > kMaxFrames)
    return Status(Code::kInvalidArgument, fmt::format("max_frames {} is more than {}", options.max_frames, kMaxFrames));
  if (options.budget_bytes > kMaxBudget)
    return Status(Code::kInvalidArgument,
                  fmt::format("a host budget of {} bytes is more than {}", options.budget_bytes, kMaxBudget));
  FIRN_ASSIGN(const std::vector<Share> shares, parse_placement(options.placement, topology));
  std::uint64_t weights = 0;
  for (const Share& share : shares) weights += share.weight;

  Plan plan;
  plan.max_frames = options.max_frames != 0 ? options.max_frames : default_max_frames(options.budget_bytes);
  plan.bucket_count = std::bit_ceil(plan.max_frames);
  std::uint64_t tables =
      (std::uint64_t{plan.max_frames} + 1) * sizeof(Entry) + plan.bucket_count * sizeof(std::uint32_t);
  std::vector<double> fractions;
  for (const Share& share : shares) {
    const double fraction = static_cast<double>(share.weight) / static_cast<double>(weights);
    const auto pieces =
        static_cast<std::uint64_t>(static_cast<double>(options.budget_bytes) * fraction / Arena::kMaxBytes) + 1;
    for (std::uint64_t piece = 0; piece < pieces; ++piece) {
      fractions.push_back(fraction / static_cast<double>(pieces));
      const auto blobs = static_cast<std::uint32_t>(plan.max_frames * fractions.back()) + 1;
      plan.parts.push_back({share.node, 0, blobs});
      tables += round_up(Arena::table_bytes(blobs), alignof(Entry));
    }
  }
  plan.table_bytes = round_up(tables, page_bytes());
  const std::uint64_t least = plan.metadata_bytes() + plan.parts.size() * page_bytes();
  if (options.budget_bytes < least || plan.parts.size() > 65535)
    return Status(
        Code::kInvalidArgument,
        fmt::format("a host budget of {} bytes cannot hold its own tables ({} bytes for {} frames) and one page "
                    "for each of {} arenas; give at least {} bytes, or a smaller max_frames",
                    options.budget_bytes, plan.metadata_bytes(), plan.max_frames, plan.parts.size(), least));
  const std::uint64_t left = options.budget_bytes - plan.metadata_bytes();
  for (std::size_t i = 0; i < plan.parts.size(); ++i) {
    const auto bytes = static_cast<std::uint64_t>(static_cast<double>(left) * fractions[i]);
    plan.parts[i].bytes = std::clamp(bytes / page_bytes() * page_bytes(), page_bytes(), Arena::kMaxBytes);
    plan.frame_bytes += plan.parts[i].bytes;
  }
  // A page per arena at least, after rounding: tiny budgets with skewed weights only.
  while (plan.frame_bytes > left) {
    auto& largest =
        *std::max_element(plan.parts.begin(), plan.parts.end(), [](auto& a, auto& b) { return a.bytes < b.bytes; });
    largest.bytes -= page_bytes();
    plan.frame_bytes -= page_bytes();
  }
  return plan;
}

// ---- The tier

class ArenaHostTier final : public HostTier {
 public:
  ArenaHostTier(Plan plan, const HostTierOptions& options, Topology& topology, Ledger::Charge frames,
                Ledger::Charge metadata)
      : plan_(std::move(plan)),
        budget_bytes_(options.budget_bytes),
        topology_(topology),
        frame_charge_(std::move(frames)),
        metadata_charge_(std::move(metadata)) {}
  ~ArenaHostTier() override;
  Status map(bool huge_pages);  // once, before anything else

  std::string_view name() const override { return "host"; }
  Capabilities capabilities() const override;
  Result<Reservation> reserve(std::size_t bytes) override;
  Status publish(Reservation reservation, const FrameKey& key, std::size_t bytes) override;
  Pin find(const FrameKey& key) override;
  bool erase(const FrameKey& key) override;
  bool contains(const FrameKey& key) const override;
  std::vector<NodePlacement> placement() const override;
  std::vector<std::span<std::byte>> arenas() const override;

 private:
  struct Part {
    int node = 0;
    Mapping memory;
    std::unique_ptr<Arena> arena;
    std::string note;
  };

  Result<Ticket> do_submit(std::span<const Op> batch) override;
  std::size_t do_poll(std::span<Done> out) override;
  Stats do_stats() const override;
  Status do_verify() const override;
  void release_reservation(std::uint64_t handle) override;
  void release_pin(std::uint64_t handle) override;

  Status place(Part& part, std::size_t node_count);
  void put(const Op& op, Done& done);
  void get(const Op& op, Done& done);
  void erase(const Op& op, Done& done);
  void contains(const Op& op, Done& done) const;

  // Everything below needs mutex_ held.
  std::uint64_t handle_of(std::uint32_t entry) const { return std::uint64_t{entries_[entry].generation} << 32 | entry; }
  std::uint32_t entry_of(std::uint64_t handle, Entry::State state) const;
  std::span<std::byte> bytes_of(const Entry& entry) const;
  std::uint32_t& bucket_of(const FrameKey& key) const;
  std::uint32_t look_up(const FrameKey& key) const;
  Result<std::uint32_t> take(std::size_t bytes);
  void give_back(std::uint32_t entry);
  void publish_entry(std::uint32_t entry, const FrameKey& key, std::uint32_t bytes);
  bool erase_entry(std::uint32_t entry);
  void pin_entry(std::uint32_t entry);
  void unpin_entry(std::uint32_t entry);
  std::uint64_t used_bytes() const;
  std::uint64_t largest_free_bytes() const;
  Status no_space(std::size_t bytes) const;

  const Plan plan_;
  const std::uint64_t budget_bytes_;
  Topology& topology_;
  const Ledger::Charge frame_charge_, metadata_charge_;  // refunded after the mappings below are gone
  Mapping tables_;
  std::vector<Part> parts_;
  Entry* entries_ = nullptr;          // [max_frames + 1]; 0 is no entry
  std::uint32_t* buckets_ = nullptr;  // [bucket_count], heads of chains

  mutable std::mutex mutex_;
  std::uint32_t spare_ = kNone, fresh_ = 1;  // entries given back; the first never used
  std::uint32_t in_use_ = 0, published_ = 0;
  std::uint64_t pinned_bytes_ = 0;
  Stats direct_;  // what came by the direct calls; the base counts the submitted

  std::mutex done_mutex_;
  std::uint64_t last_ticket_ = 0;
  std::list<Done> done_;
};

Status ArenaHostTier::map(bool huge_pages) {
  FIRN_ASSIGN(tables_, Mapping::create(plan_.table_bytes));
  std::span<std::byte> rest = tables_.bytes();
  const auto cut = [&rest](std::size_t bytes) {
    const std::span<std::byte> piece = rest.first(bytes);
    rest = rest.subspan(round_up(bytes, alignof(Entry)));
    return piece;
  };
  const std::size_t node_count = topology_.nodes().size();
  for (const Plan::Part& planned : plan_.parts) {
    Part part;
    part.node = planned.node;
    FIRN_ASSIGN(part.memory, Mapping::create(planned.bytes));
    if (huge_pages) part.memory.advise_huge_pages();
    FIRN_TRY(place(part, node_count));
    forbid_access(part.memory.bytes());
    part.arena = std::make_unique<Arena>(planned.bytes, planned.max_blobs, cut(Arena::table_bytes(planned.max_blobs)));
    parts_.push_back(std::move(part));
  }
  entries_ = reinterpret_cast<Entry*>(cut((std::size_t{plan_.max_frames} + 1) * sizeof(Entry)).data());
  buckets_ = reinterpret_cast<std::uint32_t*>(cut(plan_.bucket_count * sizeof(std::uint32_t)).data());
  return {};
}

// Where the kernel does not let us choose, first touch decides: from a thread on the node, if there is a choice at all.
Status ArenaHostTier::place(Part& part, std::size_t node_count) {
  Status status = topology_.prefer(part.memory.bytes(), part.node);
  if (status.ok() || status.code() != Code::kUnavailable) return status.with_context("placing the host tier");
  part.note = status.message();
  if (node_count > 1) {
    status = topology_.touch_from(part.memory.bytes(), part.node);
    if (!status.ok()) part.note += "; " + status.message();
  }
  static std::once_flag said;
  std::call_once(said, [&] {
    fmt::print(stderr,
               "firn: host tier: the kernel does not let this process place memory ({}); pages come from where "
               "they are first touched\n",
               part.note);
  });
  return {};
}

ArenaHostTier::~ArenaHostTier() {
  FIRN_CHECK(in_use_ == published_);  // a reservation outlives the tier
  FIRN_CHECK(pinned_bytes_ == 0);     // so does a pin
}

Tier::Capabilities ArenaHostTier::capabilities() const {
  Capabilities result{.immediate = true, .addressable = true};
  for (const Plan::Part& part : plan_.parts)
    result.max_frame_bytes = std::max<std::size_t>(result.max_frame_bytes, part.bytes);
  result.max_frame_bytes = std::min<std::size_t>(result.max_frame_bytes, ~std::uint32_t{0} - Arena::kGranuleBytes);
  return result;
}

// ---- Entries and their index

std::uint32_t ArenaHostTier::entry_of(std::uint64_t handle, Entry::State state) const {
  const auto entry = static_cast<std::uint32_t>(handle);
  FIRN_CHECK(entry != kNone && entry < fresh_ && handle_of(entry) == handle && entries_[entry].state == state);
  return entry;
}

std::span<std::byte> ArenaHostTier::bytes_of(const Entry& entry) const {
  const Part& part = parts_[entry.arena];
  const auto blob = part.arena->find(entry.blob);
  FIRN_CHECK(blob.has_value() && entry.bytes <= blob->bytes);
  return part.memory.bytes().subspan(blob->offset, entry.bytes);
}

// Frame keys are hashes, but those of tests need not be.
std::uint32_t& ArenaHostTier::bucket_of(const FrameKey& key) const {
  const std::uint64_t mixed = (key.lo ^ std::rotl(key.hi, 32)) * 0x9e3779b97f4a7c15u;
  return buckets_[(mixed >> 32) & (plan_.bucket_count - 1)];
}

std::uint32_t ArenaHostTier::look_up(const FrameKey& key) const {
  std::uint32_t entry = bucket_of(key);
  while (entry != kNone && entries_[entry].key != key) entry = entries_[entry].next;
  return entry;
}

// The emptiest arena first, so that arenas fill in proportion to their sizes, whatever the weights.
Result<std::uint32_t> ArenaHostTier::take(std::size_t bytes) {
  if (spare_ == kNone && fresh_ > plan_.max_frames) return no_space(bytes);
  BlobHandle blob = BlobHandle::kNone;
  std::size_t best = 0;
  double best_fill = 2;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const Arena& arena = *parts_[i].arena;
    const double fill = static_cast<double>(arena.used_bytes()) / static_cast<double>(arena.capacity_bytes());
    if (fill < best_fill) best = i, best_fill = fill;
  }
  for (std::size_t i = 0; i < parts_.size() && blob == BlobHandle::kNone; ++i) {
    blob = parts_[best].arena->allocate(bytes);
    if (blob == BlobHandle::kNone) best = (best + 1) % parts_.size();
  }
  if (blob == BlobHandle::kNone) return no_space(bytes);

  std::uint32_t entry = spare_;
  if (entry != kNone) {
    spare_ = entries_[entry].next;
  } else {
    entry = fresh_++;
  }
  Entry& e = entries_[entry];
  e.blob = blob;
  e.arena = static_cast<std::uint16_t>(best);
  e.bytes = static_cast<std::uint32_t>(bytes);
  e.pins = 0;
  ++e.generation;
  e.state = Entry::State::kReserved;
  ++in_use_;
  allow_access(bytes_of(e));
  return entry;
}

void ArenaHostTier::give_back(std::uint32_t entry) {
  Entry& e = entries_[entry];
  forbid_access(bytes_of(e));
  parts_[e.arena].arena->free(e.blob);
  ++e.generation;
  e.state = Entry::State::kSpare;
  e.next = spare_;
  spare_ = entry;
  --in_use_;
}

void ArenaHostTier::publish_entry(std::uint32_t entry, const FrameKey& key, std::uint32_t bytes) {
  Entry& e = entries_[entry];
  forbid_access(bytes_of(e).subspan(bytes));
  parts_[e.arena].arena->shrink(e.blob, bytes);
  e.bytes = bytes;
  e.key = key;
  e.state = Entry::State::kPublished;
  ++e.generation;  // the reservation's handle ends here
  std::uint32_t& bucket = bucket_of(key);
  e.next = bucket;
  bucket = entry;
  ++published_;
}

bool ArenaHostTier::erase_entry(std::uint32_t entry) {
  if (entries_[entry].pins != 0) return false;
  std::uint32_t* link = &bucket_of(entries_[entry].key);
  while (*link != entry) link = &entries_[*link].next;
  *link = entries_[entry].next;
  --published_;
  give_back(entry);
  return true;
}

void ArenaHostTier::pin_entry(std::uint32_t entry) {
  if (entries_[entry].pins++ == 0) pinned_bytes_ += entries_[entry].bytes;
}

void ArenaHostTier::unpin_entry(std::uint32_t entry) {
  FIRN_CHECK(entries_[entry].pins != 0);
  if (--entries_[entry].pins == 0) pinned_bytes_ -= entries_[entry].bytes;
}

std::uint64_t ArenaHostTier::used_bytes() const {
  std::uint64_t bytes = 0;
  for (const Part& part : parts_) bytes += part.arena->used_bytes();
  return bytes;
}

std::uint64_t ArenaHostTier::largest_free_bytes() const {
  if (spare_ == kNone && fresh_ > plan_.max_frames) return 0;
  std::uint64_t largest = 0;
  for (const Part& part : parts_) largest = std::max(largest, part.arena->largest_free_bytes());
  return largest;
}

Status ArenaHostTier::no_space(std::size_t bytes) const {
  const std::uint64_t free_bytes = plan_.frame_bytes - used_bytes();
  if (spare_ == kNone && fresh_ > plan_.max_frames)
    return Status(Code::kNoSpace,
                  fmt::format("host tier: all {} frame records are in use ({} bytes are free); erase frames or "
                              "raise max_frames",
                              plan_.max_frames, free_bytes));
  return Status(
      Code::kNoSpace,
      fmt::format("host tier: no hole for a frame of {} bytes: {} of {} bytes are free, the largest hole is {}; erase "
                  "frames or raise host.budget",
                  bytes, free_bytes, plan_.frame_bytes, largest_free_bytes()));
}

// ---- Direct calls

Result<MemoryTier::Reservation> ArenaHostTier::reserve(std::size_t bytes) {
  const std::size_t most = capabilities().max_frame_bytes;
  if (bytes == 0 || bytes > most)
    return Status(Code::kInvalidArgument,
                  fmt::format("host tier: reserving {} bytes; 1 to {} are possible", bytes, most));
  std::lock_guard lock(mutex_);
  Result<std::uint32_t> entry = take(bytes);
  if (!entry.ok()) {
    ++direct_.refused_no_space;
    return entry.status();
  }
  return make_reservation(handle_of(*entry), bytes_of(entries_[*entry]));
}

Status ArenaHostTier::publish(Reservation reservation, const FrameKey& key, std::size_t bytes) {
  const std::size_t reserved = reservation.bytes().size();
  if (bytes == 0 || bytes > reserved)  // the reservation dies here and gives everything back
    return Status(Code::kInvalidArgument,
                  fmt::format("host tier: publishing {} bytes of a reservation of {}", bytes, reserved));
  const std::optional<std::uint64_t> handle = MemoryTier::take(reservation);
  if (!handle.has_value()) return Status(Code::kInvalidArgument, "host tier: publishing a reservation of another tier");
  std::lock_guard lock(mutex_);
  const std::uint32_t entry = entry_of(*handle, Entry::State::kReserved);
  if (look_up(key) != kNone) {
    give_back(entry);
    return {};
  }
  publish_entry(entry, key, static_cast<std::uint32_t>(bytes));
  ++direct_.puts;
  direct_.put_bytes += bytes;
  return {};
}

MemoryTier::Pin ArenaHostTier::find(const FrameKey& key) {
  std::lock_guard lock(mutex_);
  ++direct_.gets;
  const std::uint32_t entry = look_up(key);
  if (entry == kNone) {
    ++direct_.misses;
    return {};
  }
  ++direct_.hits;
  direct_.get_bytes += entries_[entry].bytes;
  pin_entry(entry);
  return make_pin(handle_of(entry), bytes_of(entries_[entry]));
}

bool ArenaHostTier::erase(const FrameKey& key) {
  std::lock_guard lock(mutex_);
  const std::uint32_t entry = look_up(key);
  const bool erased = entry != kNone && erase_entry(entry);
  direct_.erases += erased;
  return erased;
}

bool ArenaHostTier::contains(const FrameKey& key) const {
  std::lock_guard lock(mutex_);
  return look_up(key) != kNone;
}

void ArenaHostTier::release_reservation(std::uint64_t handle) {
  std::lock_guard lock(mutex_);
  give_back(entry_of(handle, Entry::State::kReserved));
}

void ArenaHostTier::release_pin(std::uint64_t handle) {
  std::lock_guard lock(mutex_);
  unpin_entry(entry_of(handle, Entry::State::kPublished));
}

// ---- Submitted ops: all ended when submit returns

Result<Ticket> ArenaHostTier::do_submit(std::span<const Op> batch) {
  std::list<Done> done(batch.size());  // all that this needs: they move over to done_ as they are
  std::uint32_t next = 0;
  for (Done& entry : done) {
    const Op& op = batch[next];
    entry.op = next++;
    try {
      switch (op.verb) {
        case Verb::kPut:
          put(op, entry);
          break;
        case Verb::kGet:
          get(op, entry);
          break;
        case Verb::kErase:
          erase(op, entry);
          break;
        case Verb::kContains:
          contains(op, entry);
          break;
      }
    } catch (const std::bad_alloc&) {  // for a sentence; the op has changed nothing then
      entry.status = Status(Code::kUnavailable, "out of memory");
    }
  }
  std::lock_guard lock(done_mutex_);
  const auto ticket = static_cast<Ticket>(++last_ticket_);
  for (Done& entry : done) entry.ticket = ticket;
  done_.splice(done_.end(), done);
  return ticket;
}

std::size_t ArenaHostTier::do_poll(std::span<Done> out) {
  std::lock_guard lock(done_mutex_);
  const std::size_t count = std::min(out.size(), done_.size());
  const auto end = std::next(done_.begin(), static_cast<std::ptrdiff_t>(count));
  std::move(done_.begin(), end, out.begin());
  done_.erase(done_.begin(), end);
  return count;
}

void ArenaHostTier::put(const Op& op, Done& done) {
  std::uint32_t entry = kNone;
  std::span<std::byte> room;
  {
    std::lock_guard lock(mutex_);
    if (const std::uint32_t old = look_up(op.key); old != kNone) {  // one name, one content: stored already
      done.bytes = entries_[old].bytes;
      return;
    }
    Result<std::uint32_t> taken = take(op.source.size());
    if (!taken.ok()) {
      done.status = taken.status();
      return;
    }
    entry = *taken;
    room = bytes_of(entries_[entry]);
  }
  copy_past_caches(room.data(), op.source.data(), room.size());
  std::lock_guard lock(mutex_);
  if (const std::uint32_t old = look_up(op.key); old != kNone) {  // another thread was faster
    done.bytes = entries_[old].bytes;
    give_back(entry);
    return;
  }
  publish_entry(entry, op.key, static_cast<std::uint32_t>(room.size()));
  done.bytes = room.size();
}

void ArenaHostTier::get(const Op& op, Done& done) {
  std::uint32_t entry = kNone;
  std::span<const std::byte> frame;
  {
    std::lock_guard lock(mutex_);
    entry = look_up(op.key);
    if (entry == kNone) return;
    done.found = true;
    done.bytes = entries_[entry].bytes;
    if (done.bytes > op.destination.size()) {
      done.status = Status(Code::kInvalidArgument, fmt::format("host tier: the frame has {} bytes, the destination {}",
                                                               done.bytes, op.destination.size()));
      return;
    }
    frame = bytes_of(entries_[entry]);
    pin_entry(entry);
  }
  copy_through_caches(op.destination.data(), frame.data(), frame.size());
  std::lock_guard lock(mutex_);
  unpin_entry(entry);
}

void ArenaHostTier::erase(const Op& op, Done& done) {
  std::lock_guard lock(mutex_);
  const std::uint32_t entry = look_up(op.key);
  if (entry == kNone) return;
  done.found = true;
  const std::uint32_t pins = entries_[entry].pins;
  if (!erase_entry(entry))
    done.status = Status(Code::kUnavailable, fmt::format("host tier: the frame is being read ({} pins)", pins));
}

void ArenaHostTier::contains(const Op& op, Done& done) const {
  std::lock_guard lock(mutex_);
  const std::uint32_t entry = look_up(op.key);
  done.found = entry != kNone;
  done.bytes = done.found ? entries_[entry].bytes : 0;
}

// ---- Knowing

Tier::Stats ArenaHostTier::do_stats() const {
  std::lock_guard lock(mutex_);
  Stats stats = direct_;
  stats.capacity_bytes = budget_bytes_;
  stats.resident_bytes = used_bytes();
  stats.metadata_bytes = plan_.metadata_bytes();
  stats.pinned_bytes = pinned_bytes_;
  stats.frames = published_;
  stats.largest_free_bytes = std::min<std::uint64_t>(largest_free_bytes(), capabilities().max_frame_bytes);
  return stats;
}

Status ArenaHostTier::do_verify() const {
  const auto fail = [](std::string what) { return Status(Code::kCorrupt, "host tier: " + std::move(what)); };
  std::lock_guard lock(mutex_);
  std::vector<std::uint64_t> bytes(parts_.size());
  std::vector<std::vector<BlobHandle>> blobs(parts_.size());
  std::uint64_t pinned = 0, in_use = 0, published = 0, spares = 0, chained = 0;
  for (std::uint32_t entry = 1; entry < fresh_; ++entry) {
    const Entry& e = entries_[entry];
    if (e.state == Entry::State::kSpare) continue;
    const auto blob = e.arena < parts_.size() ? parts_[e.arena].arena->find(e.blob) : std::nullopt;
    if (!blob.has_value() || round_up(e.bytes, Arena::kGranuleBytes) != blob->bytes)
      return fail(fmt::format("entry {} has no blob of its {} bytes", entry, e.bytes));
    bytes[e.arena] += blob->bytes;
    blobs[e.arena].push_back(e.blob);
    ++in_use;
    pinned += e.pins != 0 ? e.bytes : 0;
    if (e.state != Entry::State::kPublished) continue;
    ++published;
    if (look_up(e.key) != entry) return fail(fmt::format("entry {} is not found under its key", entry));
  }
  for (std::uint32_t bucket = 0; bucket < plan_.bucket_count; ++bucket)
    for (std::uint32_t entry = buckets_[bucket]; entry != kNone; entry = entries_[entry].next)
      if (++chained > published) return fail("the index holds more than the published frames");
  for (std::uint32_t entry = spare_; entry != kNone; entry = entries_[entry].next)
    if (++spares >= fresh_) return fail("the list of spare entries does not end");
  if (in_use != in_use_ || published != published_ || chained != published || pinned != pinned_bytes_ ||
      in_use + spares + 1 != fresh_)
    return fail(
        fmt::format("counts disagree: in use {}/{}, published {}/{}, in the index {}, pinned {}/{}, spare {} of {}",
                    in_use, in_use_, published, published_, chained, pinned, pinned_bytes_, spares, fresh_));
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    FIRN_TRY(parts_[i].arena->verify());
    std::sort(blobs[i].begin(), blobs[i].end());
    const bool twice = std::adjacent_find(blobs[i].begin(), blobs[i].end()) != blobs[i].end();
    if (twice || bytes[i] != parts_[i].arena->used_bytes() || blobs[i].size() != parts_[i].arena->blob_count())
      return fail(fmt::format("arena {} has blobs that no entry, or more than one, owns", i));
  }
  if (frame_charge_.bytes() != plan_.frame_bytes || metadata_charge_.bytes() != plan_.metadata_bytes())
    return fail("the ledger was charged for something else");
  return {};
}

// At most so many pages of an arena are asked for: 64 MiB of them, or as many spread over more.
std::vector<std::span<std::byte>> ArenaHostTier::arenas() const {
  std::vector<std::span<std::byte>> arenas;
  for (const Part& part : parts_) arenas.push_back(part.memory.bytes());
  return arenas;
}

std::vector<NodePlacement> ArenaHostTier::placement() const {
  constexpr std::uint64_t kSample = 16384, kBatch = 1024;
  std::vector<NodePlacement> result;
  for (const Part& part : parts_) {
    NodePlacement found{.node = part.node, .bytes = part.memory.bytes().size(), .note = part.note};
    const std::uint64_t pages = found.bytes / page_bytes(), step = std::max<std::uint64_t>(1, pages / kSample);
    std::vector<void*> addresses;
    for (std::uint64_t page = 0; page < pages; page += step)
      addresses.push_back(part.memory.bytes().data() + page * page_bytes());
    std::vector<int> nodes(addresses.size(), -1);
    for (std::size_t at = 0; at < addresses.size(); at += kBatch) {
      const std::size_t count = std::min<std::size_t>(kBatch, addresses.size() - at);
      const Status status =
          topology_.locate(std::span(addresses).subspan(at, count), std::span(nodes).subspan(at, count));
      if (status.ok()) continue;
      found.note += (found.note.empty() ? "" : "; ") + status.message();
      break;
    }
    for (const int node : nodes) {
      found.verified_pages += node >= 0;
      found.misplaced_pages += node >= 0 && node != part.node;
    }
    result.push_back(std::move(found));
  }
  return result;
}

}  // namespace

Result<std::unique_ptr<HostTier>> make_host_tier(const HostTierOptions& options, Ledger& ledger, Topology& topology) {
  FIRN_ASSIGN(Plan plan, make_plan(options, topology));
  FIRN_ASSIGN(Ledger::Charge metadata, ledger.charge(Account::kHostMetadata, plan.metadata_bytes()));
  FIRN_ASSIGN(Ledger::Charge frames, ledger.charge(Account::kHostFrames, plan.frame_bytes));
  auto tier =
      std::make_unique<ArenaHostTier>(std::move(plan), options, topology, std::move(frames), std::move(metadata));
  FIRN_TRY(tier->map(options.huge_pages));
  return std::unique_ptr<HostTier>(std::move(tier));
}

Result<std::unique_ptr<HostTier>> HostTier::create(const HostTierOptions& options, Ledger& ledger) {
  return make_host_tier(options, ledger, system_topology());
}

}  // namespace firn
