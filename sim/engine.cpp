#include "sim/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <deque>
#include <memory>
#include <optional>

#include "core/base/check.h"
#include "sim/byte_source.h"
#include "sim/name_table.h"

namespace firn::sim {

Percentiles percentiles(std::vector<float> values) {
  Percentiles result;
  if (values.empty()) return result;
  std::sort(values.begin(), values.end());
  const auto rank = [&values](double share) {
    return static_cast<double>(
        values[std::min(values.size() - 1, static_cast<std::size_t>(share * static_cast<double>(values.size())))]);
  };
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value);
  return {sum / static_cast<double>(values.size()), rank(0.5), rank(0.9), rank(0.95), rank(0.99),
          static_cast<double>(values.back())};
}

Sample merged(const Sample& first, const Sample& second) {
  Sample both = second;
  both.host_up_bytes += first.host_up_bytes;
  both.host_down_bytes += first.host_down_bytes;
  both.disk_up_bytes += first.disk_up_bytes;
  both.disk_down_bytes += first.disk_down_bytes;
  both.input_tokens += first.input_tokens;
  both.hit_tokens += first.hit_tokens;
  both.first_tokens += first.first_tokens;
  both.ttft_sum_s += first.ttft_sum_s;
  both.length_s += first.length_s;
  both.busy_s += first.busy_s;
  both.memory_s += first.memory_s;
  both.places_s += first.places_s;
  both.link_s += first.link_s;
  return both;
}

std::uint64_t largest_pool(const DeviceSpec& device, const ModelShape& model) {
  const double left = 0.9 * static_cast<double>(device.memory_bytes) - model.weight_bytes;
  return left >= 1 ? static_cast<std::uint64_t>(left) : 0;
}

Status check_fits(const EngineOptions& o) {
  if (o.device.memory_bytes == 0) return {};
  constexpr double kGib = 1024.0 * 1024 * 1024, kUsable = 0.95;  // the rest is the driver's, and what a step needs
  const double usable = kUsable * static_cast<double>(o.device.memory_bytes);
  const double host = o.device.shared_memory ? static_cast<double>(o.host_bytes) : 0;
  const double taken = o.model.weight_bytes + static_cast<double>(o.pool_bytes) + host;
  if (taken <= usable) return {};
  if (o.model.weight_bytes > usable)
    return Status(
        Code::kInvalidArgument,
        fmt::format("{} does not fit: its weights take {:.1f} GiB, and {} has {:.1f} GiB for use; take more devices "
                    "(--devices), or a smaller --model",
                    o.model.name, o.model.weight_bytes / kGib, o.device.name, usable / kGib));
  return Status(
      Code::kInvalidArgument,
      fmt::format("a pool of {:.1f} GiB{} does not fit: {} has {:.1f} GiB for use, of which the weights of {} take "
                  "{:.1f} GiB; that leaves {:.1f} GiB (--pool-budget, --devices)",
                  static_cast<double>(o.pool_bytes) / kGib,
                  host > 0 ? fmt::format(" and a host tier of {:.1f} GiB in the same memory", host / kGib) : "",
                  o.device.name, usable / kGib, o.model.name, o.model.weight_bytes / kGib,
                  (usable - o.model.weight_bytes) / kGib));
}

Result<EngineOptions> spread(const EngineOptions& one, std::uint32_t count) {
  EngineOptions all = one;
  FIRN_ASSIGN(all.model, spread(one.model, count));
  all.device = spread(one.device, count);
  return all;
}

namespace {

constexpr std::int64_t kSecond = 1'000'000'000;
// So long after: at the end of time (285 years) it stands still, however slow a device is said to be.
std::int64_t after(std::int64_t ns, double seconds) {
  constexpr std::int64_t kEnd = 9'000'000'000'000'000'000;
  const double more = seconds * 1e9;
  return more >= static_cast<double>(kEnd - ns) ? kEnd : ns + static_cast<std::int64_t>(more);
}
double to_s(std::int64_t ns) { return static_cast<double>(ns) / 1e9; }

// The device's pool: named blocks that sequences hold or that wait to be used again, and nameless ones that are being
// filled. Held blocks are no candidates, as in the library.
class Pool {
 public:
  struct Entry {
    BlockFacts facts;
    std::uint32_t refs = 0;
    std::int64_t used_ns = 0;
    bool used_again = false;  // since it came in
  };
  Pool(std::uint32_t capacity, std::unique_ptr<EvictionPolicy> policy)
      : capacity_(capacity), policy_(std::move(policy)), table_(capacity) {}

  std::uint32_t find(std::uint64_t name) const { return table_.find(name); }
  Entry& entry(std::uint32_t id) { return entries_[id]; }
  std::uint64_t room() const { return capacity_ - table_.size() - nameless_ + policy_->candidates(); }
  std::uint64_t live() const { return table_.size() + nameless_ - policy_->candidates(); }
  std::uint64_t cached() const { return policy_->candidates(); }
  std::uint32_t capacity() const { return capacity_; }

  void hold(std::uint32_t id) {
    if (entries_[id].refs++ == 0) policy_->on_remove(BlockId{id});
  }
  void release(std::uint32_t id, std::int64_t now) {
    Entry& entry = entries_[id];
    FIRN_CHECK(entry.refs > 0);
    entry.used_ns = now;
    if (--entry.refs == 0) policy_->on_insert(entry.facts, {now});
  }
  // Room for one more, evicting if needed. false: everything is held.
  bool take(std::int64_t now, std::vector<float>& ages, std::uint64_t& evictions) {
    if (table_.size() + nameless_ == capacity_) {
      BlockId victim = BlockId::kNone;
      if (policy_->victims({}, {}, {&victim, 1}) == 0) return false;
      policy_->on_remove(victim);
      Entry& entry = entries_[index(victim)];
      table_.erase(entry.facts.key_hash);
      free_.push_back(index(victim));
      if (evicted_) evicted_(entry);
      ages.push_back(static_cast<float>(to_s(now - entry.used_ns)));
      ++evictions;
    }
    ++nameless_;
    return true;
  }
  void give_back(std::uint64_t count) { nameless_ -= count; }
  void on_evicted(std::function<void(const Entry&)> hear) { evicted_ = std::move(hear); }
  // Somebody asked for it and it is not here: for rules that remember.
  void missed(std::uint64_t name, std::int64_t now) { policy_->on_miss(name, {now}); }
  // A nameless block that is full now gets its name and is held once.
  std::uint32_t name(const BlockFacts& facts) {
    std::uint32_t id = static_cast<std::uint32_t>(entries_.size());
    if (free_.empty()) {
      entries_.emplace_back();
    } else {
      id = free_.back();
      free_.pop_back();
    }
    --nameless_;
    entries_[id] = {facts, 1, 0, false};
    entries_[id].facts.id = BlockId{id};
    table_.insert(facts.key_hash, id);
    return id;
  }
  void set_copy(std::uint32_t id, bool copy, std::int64_t now) {
    entries_[id].facts.has_copy = copy;
    policy_->on_access(BlockId{id}, copy ? Access::kCopied : Access::kCopyLost, {now});
  }

 private:
  std::uint32_t capacity_;
  std::unique_ptr<EvictionPolicy> policy_;
  NameTable table_;
  std::vector<Entry> entries_;
  std::vector<std::uint32_t> free_;
  std::uint64_t nameless_ = 0;
  std::function<void(const Entry&)> evicted_;
};

struct Sequence {
  TraceRequest request;
  std::int64_t arrival_ns = 0, admitted_ns = -1, first_ns = -1, ready_ns = 0;
  std::uint64_t prompt =
      0;  // tokens to have before the next one can be made: input, and what was made before a preemption
  std::uint64_t done = 0;           // of those
  std::uint64_t generated = 0;      // all told
  std::vector<std::uint32_t> held;  // named blocks, first to last
  std::uint64_t nameless = 0;
  bool swapped = false;
};

// Work of one direction of a link, one after the other.
struct Link {
  double bytes_per_s = 1;
  std::int64_t free_ns = 0;
  double busy_s = 0;
  std::int64_t send(double seconds, std::int64_t now) {
    free_ns = after(std::max(free_ns, now), seconds);
    busy_s += seconds;
    return free_ns;
  }
};

class Engine {
 public:
  Engine(const EngineOptions& options, TraceReader& reader) : o_(options), reader_(reader) {}
  Status set_up();
  Status run(const Tick& tick);
  EngineResult result();

 private:
  Status pull();  // the next request of the trace, if there is room for it
  Status take_arrivals();
  void admit_waiting();
  bool admit(Sequence& seq);
  std::size_t find_prefix(const Sequence& seq, std::array<std::size_t, 3>& from);
  void count_first_lookup(const Sequence& seq, std::size_t run, const std::array<std::size_t, 3>& from,
                          std::size_t cheaper);
  void step();
  void finish_prompt(Sequence& seq);
  bool grow(std::size_t at);
  void leave(Sequence& seq, bool store);
  void preempt(std::size_t at);
  void store(std::uint32_t id);
  void store_facts(const BlockFacts& facts);
  double prefill_seconds(std::uint64_t tokens, std::uint64_t context) const;
  void sample(bool last = false);

  const EngineOptions& o_;
  TraceReader& reader_;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<BlockTier> host_, disk_;
  std::uint64_t host_used_ = 0, disk_used_ = 0;
  Link up_, down_, disk_up_, disk_down_;
  std::int64_t now_ = 0, sampled_ns_ = 0, interval_ns_ = kSecond;
  std::uint64_t sampled_up_ = 0, sampled_down_ = 0, sampled_disk_up_ = 0, sampled_disk_down_ = 0;
  std::optional<Sequence> coming_;
  bool at_end_ = false, short_of_memory_ = false;
  std::deque<Sequence> waiting_;
  std::vector<Sequence> running_;  // in order of admission
  NameTable seen_, read_again_;
  std::uint32_t seen_count_ = 0;
  std::uint64_t fresh_ = 0;  // blocks so far that the trace gives no name
  std::vector<float> ttft_, tpot_, queue_, ages_;
  double ttft_sum_ = 0;
  std::uint64_t late_ttft_ = 0, late_tpot_ = 0, admitted_tokens_ = 0;
  Sample sampled_;  // what has been counted up to the last one
  EngineResult r_;
};

Status Engine::set_up() {
  FIRN_TRY(check_fits(o_));
  FIRN_TRY(pull());  // the block size is known once a request has been read
  r_.block_tokens = std::max(1u, reader_.block_tokens());
  r_.block_bytes = r_.block_tokens * o_.model.token_bytes();
  r_.pool_blocks = o_.pool_bytes / r_.block_bytes;
  const double encoded = static_cast<double>(r_.block_bytes) / o_.codec_ratio;
  r_.host_blocks = static_cast<std::uint64_t>(static_cast<double>(o_.host_bytes) / encoded);
  r_.disk_blocks = static_cast<std::uint64_t>(static_cast<double>(o_.disk_bytes) / encoded);
  constexpr std::uint64_t kMost = 1u << 30;
  if (r_.pool_blocks < 2 || r_.pool_blocks > kMost || r_.host_blocks > kMost || r_.disk_blocks > kMost)
    return Status(Code::kInvalidArgument,
                  fmt::format("a pool of {} bytes holds {} blocks of {} bytes ({} tokens of {}): it must hold 2 to {}; "
                              "give a larger --pool-budget or a smaller --model",
                              o_.pool_bytes, r_.pool_blocks, r_.block_bytes, r_.block_tokens, o_.model.name, kMost));
  const auto tier = [this](std::uint64_t blocks) -> Result<std::unique_ptr<BlockTier>> {
    const auto capacity = static_cast<std::uint32_t>(blocks);
    FIRN_ASSIGN(std::unique_ptr<EvictionPolicy> policy,
                make_policy(o_.host_policy.empty() ? o_.policy : o_.host_policy, capacity));
    return std::make_unique<BlockTier>(capacity, std::move(policy));
  };
  FIRN_ASSIGN(std::unique_ptr<EvictionPolicy> policy,
              make_policy(o_.policy, static_cast<std::uint32_t>(r_.pool_blocks)));
  pool_ = std::make_unique<Pool>(static_cast<std::uint32_t>(r_.pool_blocks), std::move(policy));
  if (r_.host_blocks > 0) {
    FIRN_ASSIGN(host_, tier(r_.host_blocks));
    if (o_.exclusive)
      pool_->on_evicted([this](const Pool::Entry& entry) {
        if (!o_.admit_second_use || entry.used_again) store_facts(entry.facts);
      });
  }
  if (r_.disk_blocks > 0 && host_) {
    FIRN_ASSIGN(disk_, tier(r_.disk_blocks));
  }
  up_.bytes_per_s = down_.bytes_per_s = o_.device.host_link;
  disk_up_.bytes_per_s = disk_down_.bytes_per_s = std::max(1.0, o_.device.disk_link);
  return {};
}

Status Engine::pull() {
  Sequence seq;
  FIRN_ASSIGN(const bool more, reader_.next(seq.request));
  if (!more) {
    at_end_ = true;
    coming_.reset();
    return {};
  }
  TraceRequest& request = seq.request;
  const std::uint64_t size = std::max(1u, reader_.block_tokens());
  if (request.blocks.empty())
    for (std::uint64_t t = 0; t + size <= request.input_tokens; t += size) request.blocks.push_back(own_name(++fresh_));
  for (std::uint64_t& name : request.blocks) name = cache_name(name);
  request.input_tokens = std::max(1u, request.input_tokens);
  request.output_tokens = std::max(1u, request.output_tokens);
  constexpr double kMostNs = 8e18;
  const double arrival = static_cast<double>(request.time_ns) / o_.time_scale;
  if (!(arrival < kMostNs))
    return Status(Code::kInvalidArgument, "simulate: at this time scale the trace takes more than 250 years");
  seq.arrival_ns = static_cast<std::int64_t>(arrival);
  seq.prompt = request.input_tokens;
  coming_ = std::move(seq);
  return {};
}

Status Engine::take_arrivals() {
  while (coming_ && coming_->arrival_ns <= now_) {
    ++r_.requests;
    r_.input_tokens += coming_->request.input_tokens;
    const std::uint64_t all = coming_->prompt + coming_->request.output_tokens;
    if ((all + r_.block_tokens - 1) / r_.block_tokens + 1 > pool_->capacity()) {
      ++r_.refused;
    } else {
      waiting_.push_back(std::move(*coming_));
    }
    FIRN_TRY(pull());
  }
  return {};
}

// Leading blocks that some tier has; from: how many of them come from pool, host, disk.
std::size_t Engine::find_prefix(const Sequence& seq, std::array<std::size_t, 3>& from) {
  const std::size_t usable = (seq.prompt - 1) / r_.block_tokens;  // the last token is always computed
  std::size_t run = 0;
  for (; run < std::min(usable, seq.request.blocks.size()); ++run) {
    const std::uint64_t name = seq.request.blocks[run];
    if (pool_->find(name) != NameTable::kEmpty) {
      ++from[0];
    } else if (host_ && host_->find(name) != BlockId::kNone) {
      ++from[1];
    } else if (disk_ && disk_->find(name) != BlockId::kNone) {
      ++from[2];
    } else {
      break;
    }
  }
  return run;
}

double Engine::prefill_seconds(std::uint64_t tokens, std::uint64_t context) const {
  const double n = static_cast<double>(tokens), c = static_cast<double>(context);
  const double linear = 2 * o_.model.active_parameters * n, attention = o_.model.pair_flops() * n * (c + n / 2);
  return (linear + attention) / (o_.device.flops * o_.device.prefill_efficiency);
}

void Engine::count_first_lookup(const Sequence& seq, std::size_t run, const std::array<std::size_t, 3>& from,
                                std::size_t cheaper) {
  const std::vector<std::uint64_t>& names = seq.request.blocks;
  r_.blocks += names.size();
  r_.hits_pool += from[0];
  r_.hits_host += from[1];
  r_.hits_disk += from[2];
  r_.hit_tokens_pool += from[0] * r_.block_tokens;
  r_.hit_tokens_host += from[1] * r_.block_tokens;
  r_.hit_tokens_disk += from[2] * r_.block_tokens;
  r_.miss_recompute_cheaper += cheaper;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const bool known = seen_.find(names[i]) != NameTable::kEmpty;
    if (i < run + cheaper) continue;
    if (i >= (seq.prompt - 1) / r_.block_tokens) {
      ++r_.miss_tail;
    } else if (!known) {
      ++r_.miss_never_stored;
    } else if (i == run + cheaper) {
      ++r_.miss_evicted;
    } else {
      const bool here =
          pool_->find(names[i]) != NameTable::kEmpty || (host_ && host_->find(names[i]) != BlockId::kNone);
      ++(here ? r_.miss_after_miss : r_.miss_evicted);
    }
  }
}

bool Engine::admit(Sequence& seq) {
  std::array<std::size_t, 3> from{};
  std::size_t run = find_prefix(seq, from);
  // Loading must beat computing: never slower than recomputing. What lies behind a block that is not loaded is lost
  // too, so it is all or the part before the first block that is not in the pool.
  const double raw = static_cast<double>((from[1] + from[2]) * r_.block_bytes), encoded = raw / o_.codec_ratio;
  const double load_s = std::max(encoded / up_.bytes_per_s, raw / o_.codec_bytes_per_s);
  const double disk_s = static_cast<double>(from[2] * r_.block_bytes) / o_.codec_ratio / disk_up_.bytes_per_s;
  std::size_t cheaper = 0;
  if (from[1] + from[2] > 0) {
    const std::int64_t wait = std::max<std::int64_t>(0, up_.free_ns - now_);
    const double compute_s = prefill_seconds((from[1] + from[2]) * r_.block_tokens, from[0] * r_.block_tokens);
    if (to_s(wait) + load_s + disk_s > compute_s) {
      const std::size_t all = run;
      run = 0;
      while (run < all && pool_->find(seq.request.blocks[run]) != NameTable::kEmpty) ++run;
      cheaper = all - run;
      from = {run, 0, 0};
    }
  }
  // The pool's hits are held first, so that making room does not take them.
  std::size_t held_free = 0;
  for (std::size_t i = 0; i < run; ++i)
    if (const std::uint32_t id = pool_->find(seq.request.blocks[i]); id != NameTable::kEmpty)
      held_free += pool_->entry(id).refs == 0;
  const std::uint64_t slots = (seq.prompt + r_.block_tokens - 1) / r_.block_tokens - from[0];
  const auto spare = static_cast<std::uint64_t>(o_.watermark * static_cast<double>(pool_->capacity()));
  if (pool_->room() < held_free + slots + (running_.empty() ? 0 : spare)) return false;

  if (seq.admitted_ns < 0) {
    count_first_lookup(seq, run, from, cheaper);
    admitted_tokens_ += seq.request.input_tokens;
    queue_.push_back(static_cast<float>(to_s(now_ - seq.arrival_ns)));
    seq.admitted_ns = now_;
  }
  std::vector<std::uint32_t> ids(run, NameTable::kEmpty);
  for (std::size_t i = 0; i < run; ++i) {
    ids[i] = pool_->find(seq.request.blocks[i]);
    if (ids[i] == NameTable::kEmpty) continue;
    pool_->hold(ids[i]);
    pool_->entry(ids[i]).used_again = true;
  }
  std::vector<bool> from_host(run);
  for (std::size_t i = 0; i < run; ++i) {
    if (ids[i] != NameTable::kEmpty || !host_) continue;
    const BlockId there = host_->find(seq.request.blocks[i]);
    from_host[i] = there != BlockId::kNone;
    if (!from_host[i] || !o_.exclusive) continue;
    host_->remove(there);  // before the pool pushes others down, which could push this one out
    --host_used_;
  }
  for (std::size_t i = run; i < seq.request.blocks.size(); ++i) pool_->missed(seq.request.blocks[i], now_);
  for (std::uint64_t i = 0; i < slots; ++i) FIRN_CHECK(pool_->take(now_, ages_, r_.pool_evictions));
  seq.nameless = slots;
  for (std::size_t i = 0; i < run; ++i) {
    const std::uint64_t name = seq.request.blocks[i];
    if (ids[i] == NameTable::kEmpty) {
      const bool in_host = from_host[i];
      if (in_host) {
        if (!o_.exclusive) host_->touch(host_->find(name), {now_});
        if (read_again_.find(name) == NameTable::kEmpty) {
          read_again_.insert(name, 0);
          ++r_.stored_read_again;
        }
      } else if (disk_) {
        disk_->touch(disk_->find(name), {now_});
      }
      ids[i] = pool_->name({.parent = i == 0 ? BlockId::kNone : BlockId{ids[i - 1]},
                            .position = static_cast<std::uint32_t>(i) * r_.block_tokens,
                            .bytes = r_.block_bytes,
                            .has_copy = in_host && !o_.exclusive,
                            .key_hash = name});
      --seq.nameless;
    }
    seq.held.push_back(ids[i]);
  }
  seq.ready_ns = now_;
  if (from[1] + from[2] > 0) {
    if (from[2] > 0) disk_up_.send(disk_s, now_);
    seq.ready_ns = after(up_.send(load_s, now_), disk_s);
    r_.host_up_bytes += static_cast<std::uint64_t>(encoded);
    r_.disk_up_bytes += static_cast<std::uint64_t>(static_cast<double>(from[2] * r_.block_bytes) / o_.codec_ratio);
  }
  seq.done = run * r_.block_tokens;
  if (seq.swapped) {
    const double bytes = static_cast<double>(seq.prompt * o_.model.token_bytes());
    seq.ready_ns = std::max(seq.ready_ns, up_.send(bytes / up_.bytes_per_s, now_));
    r_.host_up_bytes += static_cast<std::uint64_t>(bytes);
    seq.done = seq.prompt - 1;
    seq.swapped = false;
  }
  return true;
}

void Engine::admit_waiting() {
  short_of_memory_ = false;
  while (!waiting_.empty() && running_.size() < o_.max_sequences) {
    if (!admit(waiting_.front())) {
      short_of_memory_ = true;
      return;
    }
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

// Its full blocks can be found by others from now on.
void Engine::finish_prompt(Sequence& seq) {
  const std::vector<std::uint64_t>& names = seq.request.blocks;
  for (const std::uint64_t name : names)
    if (seen_.find(name) == NameTable::kEmpty) seen_.insert(name, seen_count_++);
  for (std::size_t i = seq.held.size(); i < names.size(); ++i) {
    if (seq.nameless == 0) break;
    if (const std::uint32_t other = pool_->find(names[i]); other != NameTable::kEmpty) {
      pool_->hold(other);  // somebody was faster: theirs is shared, ours goes back
      pool_->give_back(1);
      --seq.nameless;
      seq.held.push_back(other);
      continue;
    }
    const std::uint32_t parent = i == 0 ? NameTable::kEmpty : seq.held[i - 1];
    seq.held.push_back(pool_->name({.parent = i == 0 ? BlockId::kNone : BlockId{parent},
                                    .position = static_cast<std::uint32_t>(i) * r_.block_tokens,
                                    .bytes = r_.block_bytes,
                                    .has_copy = host_ && !o_.exclusive && host_->find(names[i]) != BlockId::kNone,
                                    .key_hash = names[i]}));
    --seq.nameless;
  }
}

void Engine::store(std::uint32_t id) {
  const BlockFacts facts = pool_->entry(id).facts;
  if (facts.has_copy) return;
  if (const BlockId there = host_->find(facts.key_hash); there != BlockId::kNone) {
    pool_->set_copy(id, true, now_);
    return;
  }
  store_facts(facts);
  pool_->set_copy(id, true, now_);
}

// Into the host tier; what that pushes out goes to the disk.
void Engine::store_facts(const BlockFacts& facts) {
  if (const BlockId there = host_->find(facts.key_hash); there != BlockId::kNone) return host_->touch(there, {now_});
  const double encoded = static_cast<double>(r_.block_bytes) / o_.codec_ratio;
  BlockFacts into = facts, pushed;
  into.parent = BlockId::kNone;
  into.has_copy = false;
  BlockId at = BlockId::kNone;
  ++r_.stored_blocks;
  read_again_.erase(facts.key_hash);
  down_.send(encoded / down_.bytes_per_s, now_);
  r_.host_down_bytes += static_cast<std::uint64_t>(encoded);
  if (!host_->insert(into, {now_}, at, pushed)) {
    ++host_used_;
    return;
  }
  ++r_.host_evictions;
  if (const std::uint32_t above = pool_->find(pushed.key_hash); above != NameTable::kEmpty)
    pool_->set_copy(above, false, now_);
  if (!disk_ || disk_->find(pushed.key_hash) != BlockId::kNone) return;
  disk_down_.send(encoded / disk_down_.bytes_per_s, now_);
  r_.disk_down_bytes += static_cast<std::uint64_t>(encoded);
  const BlockFacts falling = pushed;
  if (!disk_->insert(falling, {now_}, at, pushed)) ++disk_used_;
}

void Engine::leave(Sequence& seq, bool keep) {
  if (keep && host_ && !o_.exclusive) {
    for (const std::uint32_t id : seq.held)
      if (!o_.admit_second_use || pool_->entry(id).used_again) store(id);
  }
  for (std::size_t i = seq.held.size(); i-- > 0;) pool_->release(seq.held[i], now_);
  pool_->give_back(seq.nameless);
  seq.held.clear();
  seq.nameless = 0;
}

// The youngest gives way: its prompt stays cached while there is room, and it goes to the head of the queue.
void Engine::preempt(std::size_t at) {
  Sequence seq = std::move(running_[at]);
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(at));
  ++r_.preemptions;
  seq.prompt = seq.request.input_tokens + seq.generated;
  if (o_.swap) {
    const double bytes = static_cast<double>(seq.prompt * o_.model.token_bytes());
    down_.send(bytes / down_.bytes_per_s, now_);
    r_.host_down_bytes += static_cast<std::uint64_t>(bytes);
    seq.swapped = true;
  } else {
    r_.recomputed_tokens += seq.done;
  }
  leave(seq, false);
  seq.done = 0;
  waiting_.push_front(std::move(seq));
}

// A slot for the next token of running_[at], if it begins a block. false: it was preempted itself.
bool Engine::grow(std::size_t at) {
  const std::uint64_t tokens = running_[at].request.input_tokens + running_[at].generated;
  if (tokens / r_.block_tokens < running_[at].held.size() + running_[at].nameless) return true;
  while (!pool_->take(now_, ages_, r_.pool_evictions)) {
    const std::size_t youngest = running_.size() - 1;
    preempt(youngest);
    if (youngest == at) return false;
  }
  ++running_[at].nameless;
  return true;
}

void Engine::step() {
  std::uint64_t decoding = 0, context = 0;
  for (const Sequence& seq : running_) {
    if (seq.done < seq.prompt) continue;
    ++decoding;
    context += seq.request.input_tokens + seq.generated;
  }
  std::uint64_t budget = o_.max_step_tokens > decoding ? o_.max_step_tokens - decoding : 0, chunk_tokens = 0,
                prompts_end = 0;
  double prefill = 0;
  std::int64_t next_ready = -1;
  std::vector<std::pair<std::size_t, std::uint64_t>> chunks;
  for (std::size_t i = 0; i < running_.size() && budget > 0; ++i) {
    Sequence& seq = running_[i];
    if (seq.done >= seq.prompt) continue;
    if (seq.ready_ns > now_) {
      next_ready = next_ready < 0 ? seq.ready_ns : std::min(next_ready, seq.ready_ns);
      continue;
    }
    const std::uint64_t tokens = std::min(budget, seq.prompt - seq.done);
    prefill += prefill_seconds(tokens, seq.done);
    prompts_end += tokens == seq.prompt - seq.done;
    chunks.emplace_back(i, tokens);
    budget -= tokens;
    chunk_tokens += tokens;
  }
  if (decoding == 0 && chunk_tokens == 0) {  // nothing to compute: to the next event
    std::int64_t next = next_ready;
    if (coming_ && (next < 0 || coming_->arrival_ns < next)) next = coming_->arrival_ns;
    if (next > now_) now_ = next;
    return;
  }
  const double made = static_cast<double>(decoding), rows = made + static_cast<double>(chunk_tokens);
  const double matrix =
      prefill +
      2 * (o_.model.active_parameters * made + o_.model.head_parameters * (made + static_cast<double>(prompts_end))) /
          (o_.device.flops * o_.device.prefill_efficiency);
  const double memory = (o_.model.bytes_read(rows) + static_cast<double>(context * o_.model.token_bytes())) /
                        (o_.device.memory_bandwidth * o_.device.decode_efficiency);
  const double seconds =
      std::max(matrix, memory) + sharing_seconds(o_.device, o_.model, rows) + o_.device.step_overhead_s;
  now_ = std::max(now_ + 1, after(now_, seconds));
  r_.compute_busy_s += seconds;
  r_.prefill_s += std::min(seconds, prefill);
  if (short_of_memory_) r_.waiting_for_memory_s += seconds;
  if (!waiting_.empty() && running_.size() >= o_.max_sequences) r_.waiting_for_places_s += seconds;

  std::vector<bool> ends(running_.size());
  for (std::size_t i = 0; i < running_.size(); ++i) ends[i] = running_[i].done >= running_[i].prompt;
  for (const auto& [i, tokens] : chunks) {
    Sequence& seq = running_[i];
    seq.done += tokens;
    if (seq.done < seq.prompt) continue;
    finish_prompt(seq);
    ends[i] = true;  // the step that ends a prompt makes its next token
  }
  // Oldest first; a preemption takes from the end, so the indices before it stay.
  for (std::size_t i = 0; i < running_.size() && i < ends.size(); ++i) {
    if (!ends[i]) continue;
    if (!grow(i)) continue;
    Sequence& seq = running_[i];
    ++seq.generated;
    ++r_.output_tokens;
    if (seq.first_ns < 0) {
      seq.first_ns = now_;
      const double wait = to_s(now_ - seq.arrival_ns);
      ttft_.push_back(static_cast<float>(wait));
      ttft_sum_ += wait;
      late_ttft_ += o_.late_ttft_s > 0 && wait > o_.late_ttft_s;
    }
  }
  for (std::size_t i = running_.size(); i-- > 0;) {
    Sequence& seq = running_[i];
    if (seq.generated < seq.request.output_tokens) continue;
    if (seq.generated > 1) {
      const double each = to_s(now_ - seq.first_ns) / static_cast<double>(seq.generated - 1);
      tpot_.push_back(static_cast<float>(each));
      late_tpot_ += o_.late_tpot_s > 0 && each > o_.late_tpot_s;
    }
    leave(seq, true);
    ++r_.finished;
    running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

void Engine::sample(bool last) {
  while (now_ - sampled_ns_ >= interval_ns_ || (last && now_ > sampled_ns_)) {
    // Long quiet stretches give one sample each, at their end.
    sampled_ns_ = last ? now_ : sampled_ns_ + (now_ - sampled_ns_) / interval_ns_ * interval_ns_;
    Sample s;
    s.seconds = to_s(sampled_ns_);
    const double capacity = static_cast<double>(pool_->capacity());
    s.pool_live = static_cast<double>(pool_->live()) / capacity;
    s.pool_cached = static_cast<double>(pool_->cached()) / capacity;
    s.host = r_.host_blocks == 0 ? 0 : static_cast<double>(host_used_) / static_cast<double>(r_.host_blocks);
    s.disk = r_.disk_blocks == 0 ? 0 : static_cast<double>(disk_used_) / static_cast<double>(r_.disk_blocks);
    s.waiting = waiting_.size();
    s.running = running_.size();
    s.host_up_bytes = r_.host_up_bytes - sampled_up_;
    s.host_down_bytes = r_.host_down_bytes - sampled_down_;
    s.disk_up_bytes = r_.disk_up_bytes - sampled_disk_up_;
    s.disk_down_bytes = r_.disk_down_bytes - sampled_disk_down_;
    sampled_up_ = r_.host_up_bytes;
    sampled_down_ = r_.host_down_bytes;
    sampled_disk_up_ = r_.disk_up_bytes;
    sampled_disk_down_ = r_.disk_down_bytes;
    const double link = std::max(up_.busy_s, down_.busy_s);
    const Sample all = {.input_tokens = admitted_tokens_,
                        .hit_tokens = r_.hit_tokens_pool + r_.hit_tokens_host + r_.hit_tokens_disk,
                        .first_tokens = ttft_.size(),
                        .ttft_sum_s = ttft_sum_,
                        .length_s = s.seconds,
                        .busy_s = r_.compute_busy_s,
                        .memory_s = r_.waiting_for_memory_s,
                        .places_s = r_.waiting_for_places_s,
                        .link_s = link};
    s.input_tokens = all.input_tokens - sampled_.input_tokens;
    s.hit_tokens = all.hit_tokens - sampled_.hit_tokens;
    s.first_tokens = all.first_tokens - sampled_.first_tokens;
    s.ttft_sum_s = all.ttft_sum_s - sampled_.ttft_sum_s;
    s.length_s = all.length_s - sampled_.length_s;
    s.busy_s = all.busy_s - sampled_.busy_s;
    s.memory_s = all.memory_s - sampled_.memory_s;
    s.places_s = all.places_s - sampled_.places_s;
    s.link_s = all.link_s - sampled_.link_s;
    sampled_ = all;
    r_.samples.push_back(s);
    if (r_.samples.size() < 2 * std::size_t{o_.samples}) continue;
    std::vector<Sample> halved;
    for (std::size_t i = 1; i < r_.samples.size(); i += 2) halved.push_back(merged(r_.samples[i - 1], r_.samples[i]));
    r_.samples = std::move(halved);
    interval_ns_ *= 2;
  }
}

Status Engine::run(const Tick& tick) {
  for (std::uint64_t steps = 1; coming_ || !waiting_.empty() || !running_.empty(); ++steps) {
    FIRN_TRY(take_arrivals());
    admit_waiting();
    if (running_.empty() && !waiting_.empty()) {  // nobody holds anything and still it does not fit
      waiting_.pop_front();
      ++r_.refused;
      continue;
    }
    step();
    sample();
    if (std::max(late_ttft_, late_tpot_) > o_.late_most) {
      r_.complete = false;
      r_.too_late = true;
      break;
    }
    constexpr std::uint64_t kTickEvery = 256;
    if (tick && steps % kTickEvery == 0 &&
        !tick({reader_.requests(), part_of(reader_.packed_read(), r_.finished + r_.refused, reader_.requests()),
               reader_.packed_size(), now_})) {
      r_.complete = false;
      r_.cut_short = running_.size() + waiting_.size();
      break;
    }
  }
  return {};
}

EngineResult Engine::result() {
  sample(/*last=*/true);
  r_.seconds = to_s(now_);
  r_.host_up_busy_s = up_.busy_s;
  r_.host_down_busy_s = down_.busy_s;
  r_.disk_busy_s = disk_up_.busy_s + disk_down_.busy_s;
  r_.ttft_s = percentiles(std::move(ttft_));
  r_.tpot_s = percentiles(std::move(tpot_));
  r_.queue_s = percentiles(std::move(queue_));
  r_.eviction_age_s = percentiles(std::move(ages_));
  r_.cost = o_.device.price_per_hour * r_.seconds / 3600;
  r_.bad_line_count = reader_.bad_line_count();
  r_.out_of_order = reader_.out_of_order();
  r_.bad_lines = reader_.bad_lines();
  return std::move(r_);
}

}  // namespace

Result<EngineResult> run_engine(const std::string& path, const TraceOptions& trace, const EngineOptions& options,
                                const Tick& tick) {
  if (!(options.codec_ratio >= 1e-3 && options.codec_ratio < 1e6) ||
      !(options.codec_bytes_per_s > 0 && options.codec_bytes_per_s < 1e18) ||
      !(options.time_scale >= 1e-9 && options.time_scale <= 1e9) ||
      !(options.watermark >= 0 && options.watermark < 1) || options.max_sequences == 0 || options.max_step_tokens == 0)
    return Status(
        Code::kInvalidArgument,
        "simulate: codec ratio and speed, time scale, sequences and step tokens must be above 0, the watermark "
        "at least 0 and below 1");
  FIRN_ASSIGN(const std::unique_ptr<TraceReader> reader, TraceReader::open(path, trace));
  Engine engine(options, *reader);
  FIRN_TRY(engine.set_up());
  FIRN_TRY(engine.run(tick));
  return engine.result();
}

}  // namespace firn::sim
