// Bytes: whatever moves where, every sequence reads what it wrote.
//
// A tiered manager whose pool is far too small runs random operations. Beside it a flat manager, whose pool is large
// enough for everything and which moves nothing, is given the same tokens. Two claims are compared bit by bit: the raw
// bytes of each resident full block (hash_slot), and attention over the whole sequence, which reads every block
// wherever it is. The flat one is itself compared with attention in double precision. FIRN_TEST_SEED=n runs one seed
// alone.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <random>

#include "firn/thread_pool.h"
#include "tests/core/manager/hand_device.h"
#include "tests/core/manager/toy_engine.h"

namespace firn::test {
namespace {

constexpr std::uint32_t kLayers = 2, kHeads = 2, kQueryHeads = 4;

// The flat manager never has a copy, so it never moves a byte.
Config flat_config() {
  Config config;
  config.device = "cpu";
  config.pool.budget_bytes = 64u << 20;
  config.pool.max_step_tokens = 64;
  config.mover.worker = false;
  return config;
}

ModelSpec toy_model(std::uint32_t head_dim = 32) {
  ModelSpec model = small_model(kLayers, kHeads, head_dim);
  model.groups[0].query_heads = kQueryHeads;
  return model;
}

// Rounded to the cache's type the slow way: through a manager the value is f16.
float to_f16(float value) {
  if (value == 0) return value;
  int exponent = 0;
  std::frexp(value, &exponent);
  const int step = std::max(exponent - 11, -24);
  return static_cast<float>(std::ldexp(std::nearbyint(std::ldexp(static_cast<double>(value), -step)), step));
}

// One row of attention as the textbook has it.
std::vector<double> naive_attention(const Tokens& tokens, std::uint32_t position, std::uint32_t layer,
                                    const KvShape& kv, const AttendParams& params) {
  const std::vector<std::uint64_t> hashes = prefix_hashes(tokens);
  std::vector<float> q(std::size_t{params.query_heads} * kv.head_dim), k(std::size_t{kv.kv_heads} * kv.head_dim),
      v(std::size_t{kv.kv_heads} * kv.value_dim);
  fill(q, hashes[position], layer, Part::kQuery);
  std::vector<double> out(std::size_t{params.query_heads} * kv.value_dim), sums(params.query_heads);
  for (std::uint32_t t = 0; t <= position; ++t) {  // values are below 1, so that no maximum has to be taken off
    fill(k, hashes[t], layer, Part::kKey);
    fill(v, hashes[t], layer, Part::kValue);
    for (std::uint32_t head = 0; head < params.query_heads; ++head) {
      const std::uint32_t shared = head / (params.query_heads / kv.kv_heads);
      double dot = 0;
      for (std::uint32_t d = 0; d < kv.head_dim; ++d)
        dot += static_cast<double>(q[head * kv.head_dim + d]) * to_f16(k[shared * kv.head_dim + d]);
      const double weight = std::exp(dot * params.scale);
      sums[head] += weight;
      for (std::uint32_t d = 0; d < kv.value_dim; ++d)
        out[head * kv.value_dim + d] += weight * to_f16(v[shared * kv.value_dim + d]);
    }
  }
  for (std::size_t i = 0; i < out.size(); ++i) out[i] /= sums[i / kv.value_dim];
  return out;
}

// Computes tokens [from, all) of a sequence in chunks, without a doubt about room.
void compute(Manager& manager, ToyEngine& engine, SeqId seq, const Tokens& tokens, std::uint32_t from) {
  for (std::uint32_t at = from; at < tokens.size();) {
    const std::uint32_t count =
        std::min(manager.config().pool.max_step_tokens, static_cast<std::uint32_t>(tokens.size()) - at);
    auto allocated = manager.allocate(seq, count);
    if (!allocated.ok() && allocated.status().code() == Code::kUnavailable) {
      ASSERT_OK(manager.wait_room(seq, count));
      allocated = manager.allocate(seq, count);
    }
    ASSERT_TRUE(allocated.ok()) << allocated.status().message();
    ASSERT_OK(engine.append(seq, tokens, at, count));
    ASSERT_OK(manager.commit(seq, std::span(tokens).subspan(at, count)));
    at += count;
  }
}

TEST(FlatManager, AttendsWhatTheTextbookSays) {
  const ModelSpec model = toy_model();
  const auto manager = make_manager(flat_config(), model);
  ASSERT_TRUE(manager);
  ToyEngine engine(*manager, kQueryHeads);
  const Tokens tokens = distinct(700, 3);
  const auto begun = manager->begin(tokens);
  ASSERT_TRUE(begun.ok());
  compute(*manager, engine, begun->seq, tokens, 0);
  for (const std::uint32_t position : {0u, 15u, 16u, 255u, 256u, 257u, 699u}) {
    const auto out = engine.attend(begun->seq, tokens, position, 1);
    ASSERT_TRUE(out.ok()) << out.status().message();
    for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
      const std::vector<double> expected =
          naive_attention(tokens, position, layer, model.groups[0].kv, engine.params());
      for (std::size_t i = 0; i < expected.size(); ++i)
        ASSERT_NEAR((*out)[layer * expected.size() + i], expected[i], 2e-6) << "position " << position << ", " << i;
      const std::size_t blocks = position / kBlockTokens + 1;
      double mass = 0;
      for (std::size_t b = 0; b < blocks; ++b) mass += static_cast<double>(engine.mass()[layer * blocks + b]);
      ASSERT_NEAR(mass, kQueryHeads, 1e-5) << "position " << position;
    }
  }
}

struct Setting {
  const char* name;
  const char* codec;
  bool worker;
  std::uint32_t recent, sinks;
  enum Where { kCpu, kLazy, kLazyAndHidden } where = kCpu;  // what the tiered manager runs on
};

// The two managers under the same random operations.
class Twins {
 public:
  Twins(unsigned seed, const Setting& setting) : random_(seed) {
    const ModelSpec model = toy_model();
    Config config;
    config.device = "cpu";
    config.threads = 2;
    config.protect.recent = setting.recent;
    config.protect.sinks = setting.sinks;
    config.pool.max_step_tokens = 16 + 16 * pick(2);
    config.pool.staging_bytes = kSplitTokens * model.groups[0].kv.token_bytes();
    // A window, a split's worth of staging, workspace, and a handful of slots.
    const std::uint64_t blocks = 6 + (setting.recent + setting.sinks) / kBlockTokens + 2 + pick(16);
    config.pool.budget_bytes = config.pool.staging_bytes + blocks * model.block_bytes() + (64u << 10);
    if (setting.where == Setting::kLazyAndHidden) config.pool.budget_bytes += kMaxExtentBlocks * model.block_bytes();
    config.host.budget_bytes = 4u << 20;
    config.host.codec = setting.codec;
    config.host.huge_pages = false;
    config.mover.worker = setting.worker;
    config.mover.queue = 1 + pick(8);
    config.max_sequences = 32;
    device_.hide_pool = setting.where == Setting::kLazyAndHidden;
    device_.lazy = true;
    Manager::Environment environment{&threads_, nullptr, {}};
    if (setting.where != Setting::kCpu) environment.device = &device_;
    tiered_ = make_manager(config, model, environment);
    flat_ = make_manager(flat_config(), model);
    if (!tiered_ || !flat_) return;
    engine_.emplace(*tiered_, kQueryHeads);
    flat_engine_.emplace(*flat_, kQueryHeads);
  }

  bool ready() const { return tiered_ && flat_; }

  void step() {
    const std::uint32_t what = pick(100);
    if (what < 18) {
      begin();
    } else if (what < 60) {
      advance();
    } else if (what < 66) {
      fork();
    } else if (what < 72) {
      rewind();
    } else if (what < 82) {
      free();
    } else if (what < 88) {
      prefetch();
    } else if (what < 94) {
      log("pump");
      tiered_->pump(1 + pick(4));
    } else if (what < 98) {
      read_back();
    } else {
      empty_pool();
    }
  }

  void read_back() {
    for (const auto& [id, seq] : seqs_) {
      if (seq.tokens.empty()) continue;
      const auto last = static_cast<std::uint32_t>(seq.tokens.size()) - 1;
      compare_rows(id, seq, last - std::min(last, pick(4)), 1);
      compare_slots(id, seq);
    }
  }

  void verify() {
    EXPECT_EQ(broken(*tiered_), "");
    const Stats stats = tiered_->stats();
    EXPECT_EQ(stats.prefix_cache_queries, total(stats));
    EXPECT_EQ(stats.frames_failed, 0u);
    EXPECT_LE(tiered_->ledger().peak(Budget::kDevice), tiered_->ledger().limit(Budget::kDevice));
    EXPECT_LE(tiered_->ledger().peak(Budget::kHost), tiered_->ledger().limit(Budget::kHost));
  }

  void add_to(Stats& sum) const {
    const Stats stats = tiered_->stats();
    sum.frames_stored += stats.frames_stored;
    sum.hits_host += stats.hits_host;
    sum.hits_device += stats.hits_device;
    sum.blocks_promoted += stats.blocks_promoted;
    sum.blocks_staged += stats.blocks_staged;
    sum.host_evictions += stats.host_evictions;
    sum.evictions_with_copy += stats.evictions_with_copy;
    sum.copy_on_writes += stats.copy_on_writes;
  }

  std::string last_operations() const {
    std::string text;
    for (const std::string& line : log_) text += "\n  " + line;
    return text;
  }

 private:
  struct Pair {
    SeqId tiered = SeqId::kNone, flat = SeqId::kNone;
    Tokens tokens;  // committed
    Tokens wanted;  // of its prompt
  };

  std::uint32_t pick(std::uint32_t n) { return static_cast<std::uint32_t>(random_() % n); }

  template <class... Args>
  void log(fmt::format_string<Args...> text, Args&&... args) {
    log_.push_back(fmt::format(text, std::forward<Args>(args)...));
    if (log_.size() > 40) log_.pop_front();
  }

  void extend(Tokens& tokens, std::uint32_t count) {
    for (std::uint32_t i = 0; i < count; ++i) {
      const bool fresh = tokens.size() % (4 * kBlockTokens) == 0 || pick(200) == 0;
      tokens.push_back(fresh ? static_cast<TokenId>(pick(2)) : tokens.back());
    }
  }

  int any() {
    auto it = seqs_.begin();
    std::advance(it, pick(static_cast<std::uint32_t>(seqs_.size())));
    return it->first;
  }

  void begin() {
    if (seqs_.size() >= 5) return;
    Pair seq;
    if (pick(2) == 0 && !seqs_.empty()) {
      seq.wanted = seqs_.at(any()).tokens;
      seq.wanted.resize(pick(static_cast<std::uint32_t>(seq.wanted.size()) + 1));
    }
    extend(seq.wanted, 1 + pick(pick(3) == 0 ? 600 : 150));
    const auto begun = tiered_->begin(seq.wanted);
    ASSERT_TRUE(begun.ok()) << begun.status().message();
    seq.tiered = begun->seq;
    seq.tokens = first_of(seq.wanted, begun->match.tokens);
    const int id = next_++;
    log("begin {}: {} tokens, {} on the device, {} on the host", id, seq.wanted.size(), begun->match.tokens_on_device,
        begun->match.tokens_on_host);
    begin_flat(seq);
    seqs_[id] = seq;
    if (begun->match.tokens_on_host != 0 && pick(2) == 0) prefetch(id);
    if (!seq.tokens.empty()) compare_rows(id, seq, static_cast<std::uint32_t>(seq.tokens.size()) - 1, 1);
  }

  // The flat side computes everything again.
  void begin_flat(Pair& seq) {
    BeginOptions options;
    options.read_cache = false;
    const auto begun = flat_->begin(seq.tokens.empty() ? Tokens{0} : seq.tokens, options);
    ASSERT_TRUE(begun.ok()) << begun.status().message();
    seq.flat = begun->seq;
    compute(*flat_, *flat_engine_, seq.flat, seq.tokens, 0);
  }

  // One step of an engine, as manager.h describes it.
  void advance() {
    if (seqs_.empty()) return;
    const int id = any();
    Pair& seq = seqs_.at(id);
    Tokens tokens = seq.tokens;
    const auto from = static_cast<std::uint32_t>(tokens.size());
    std::uint32_t count = 1 + pick(pick(2) == 0 ? 4 : 64);
    while (tokens.size() < from + count && tokens.size() < seq.wanted.size())
      tokens.push_back(seq.wanted[tokens.size()]);
    extend(tokens, static_cast<std::uint32_t>(from + count - tokens.size()));

    const StepRequest request{seq.tiered, count};
    auto plan = tiered_->plan_step(std::span(&request, 1));
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    if (plan->chunk_limit == 0) {
      ASSERT_FALSE(plan->blocked.ok());
      const Status room = tiered_->wait_room(seq.tiered, 1);
      log("advance {}: waits for room: {}", id, room.message());
      if (!room.ok()) {
        ASSERT_EQ(room.code(), Code::kNoSpace) << room.message();
        free_some();
        return;
      }
      plan = tiered_->plan_step(std::span(&request, 1));
      ASSERT_TRUE(plan.ok());
      ASSERT_NE(plan->chunk_limit, 0u) << plan->blocked.message();
    }
    count = std::min(count, plan->chunk_limit);
    tokens.resize(from + count);
    const auto allocated = tiered_->allocate(seq.tiered, count);
    log("advance {}: {} tokens from {}", id, count, from);
    ASSERT_TRUE(allocated.ok()) << "a planned chunk was refused: " << allocated.status().message();
    ASSERT_TRUE(flat_->allocate(seq.flat, count).ok());
    ASSERT_OK(engine_->append(seq.tiered, tokens, from, count));
    ASSERT_OK(flat_engine_->append(seq.flat, tokens, from, count));
    seq.tokens = tokens;
    if (pick(2) == 0) compare_rows(id, seq, from, count);
    ASSERT_OK(tiered_->commit(seq.tiered, std::span(tokens).subspan(from)));
    ASSERT_OK(flat_->commit(seq.flat, std::span(tokens).subspan(from)));
  }

  void fork() {
    if (seqs_.empty() || seqs_.size() >= 5) return;
    const int id = any(), child = next_++;
    const auto forked = tiered_->fork(seqs_.at(id).tiered);
    log("fork {} into {}", id, child);
    ASSERT_TRUE(forked.ok()) << forked.status().message();
    Pair seq{*forked, SeqId::kNone, seqs_.at(id).tokens, {}};
    begin_flat(seq);
    seqs_[child] = seq;
  }

  void rewind() {
    if (seqs_.empty()) return;
    const int id = any();
    Pair& seq = seqs_.at(id);
    const auto n = pick(static_cast<std::uint32_t>(seq.tokens.size()) + 1);
    log("rewind {} from {} to {}", id, seq.tokens.size(), n);
    seq.tokens.resize(n);
    seq.wanted.clear();
    ASSERT_OK(tiered_->rewind(seq.tiered, n));
    ASSERT_OK(flat_->rewind(seq.flat, n));
  }

  void free() {
    if (!seqs_.empty()) free(any());
  }
  void free_some() {
    while (seqs_.size() > 2) free(any());
    if (!seqs_.empty()) free(any());
  }
  void free(int id) {
    const Pair& seq = seqs_.at(id);
    log("free {}", id);
    ASSERT_OK(tiered_->free(seq.tiered));
    ASSERT_OK(flat_->free(seq.flat));
    seqs_.erase(id);
  }

  void prefetch() {
    if (!seqs_.empty()) prefetch(any());
  }
  void prefetch(int id) {
    const auto ticket = tiered_->prefetch(seqs_.at(id).tiered);
    log("prefetch {}", id);
    ASSERT_TRUE(ticket.ok()) << ticket.status().message();
    if (pick(3) == 0) {
      log("  cancelled");
      ASSERT_OK(tiered_->cancel(*ticket));
      ASSERT_OK(tiered_->cancel(*ticket));
    } else if (pick(2) == 0) {
      ASSERT_OK(tiered_->wait(*ticket));
      EXPECT_TRUE(tiered_->done(*ticket));
    }
  }

  void empty_pool() {
    ASSERT_OK(tiered_->wait_idle());
    const auto emptied = tiered_->empty_pool(0xa5);
    log("empty_pool");
    ASSERT_TRUE(emptied.ok()) << emptied.status().message();
    const Stats stats = tiered_->stats();
    EXPECT_EQ(stats.slots_cached, 0u);
    EXPECT_EQ(stats.slots_cold, 0u);
    read_back();
  }

  void compare_rows(int id, const Pair& seq, std::uint32_t from, std::uint32_t count) {
    const auto a = engine_->attend(seq.tiered, seq.tokens, from, count);
    ASSERT_TRUE(a.ok()) << "attend " << id << ": " << a.status().message();
    const auto b = flat_engine_->attend(seq.flat, seq.tokens, from, count);
    ASSERT_TRUE(b.ok()) << b.status().message();
    ASSERT_EQ(std::memcmp(a->data(), b->data(), a->size() * sizeof(float)), 0)
        << "sequence " << id << " attends something else at " << from << ", " << count << " rows";
    const std::vector<float>&ours = engine_->mass(), &theirs = flat_engine_->mass();
    ASSERT_EQ(std::memcmp(ours.data(), theirs.data(), ours.size() * sizeof(float)), 0)
        << "sequence " << id << " gives its blocks other mass at " << from << ", " << count << " rows";
  }

  void compare_slots(int id, const Pair& seq) {
    const std::vector<SlotId> tiered = tiered_->block_table(seq.tiered), flat = flat_->block_table(seq.flat);
    for (std::size_t i = 0; i < seq.tokens.size() / kBlockTokens; ++i) {
      if (tiered[i] == SlotId::kNone) continue;
      const auto a = tiered_->hash_slot(tiered[i]), b = flat_->hash_slot(flat[i]);
      ASSERT_TRUE(b.ok()) << b.status().message();
      if (!a.ok()) continue;  // the worker moved it meanwhile
      ASSERT_EQ(*a, *b) << "block " << i << " of sequence " << id << " in slot " << index(tiered[i]);
    }
  }

  std::mt19937 random_;
  ThreadPool threads_{2};
  HandDevice device_{threads_};
  std::unique_ptr<Manager> tiered_, flat_;
  std::optional<ToyEngine> engine_, flat_engine_;
  std::map<int, Pair> seqs_;
  int next_ = 0;
  std::deque<std::string> log_;
};

#if defined(__SANITIZE_THREAD__)
constexpr int kSteps = 150;
#elif defined(__SANITIZE_ADDRESS__)
constexpr int kSteps = 300;
#else
constexpr int kSteps = 1000;
#endif
constexpr unsigned kSeeds = 6;

class Bytes : public testing::TestWithParam<Setting> {};

TEST_P(Bytes, AreTheSameWhereverABlockHasBeen) {
  const char* only = std::getenv("FIRN_TEST_SEED");
  Stats sum;
  for (unsigned seed = 1; seed <= kSeeds; ++seed) {
    if (only != nullptr && seed != std::strtoul(only, nullptr, 10)) continue;
    Twins twins(seed, GetParam());
    ASSERT_TRUE(twins.ready());
    for (int step = 0; step < kSteps; ++step) {
      twins.step();
      if (step % 8 == 0) twins.verify();
      ASSERT_FALSE(testing::Test::HasFailure())
          << "seed " << seed << ", step " << step << ", the last operations:" << twins.last_operations();
    }
    twins.read_back();
    twins.verify();
    ASSERT_FALSE(testing::Test::HasFailure()) << "seed " << seed << ", at the end" << twins.last_operations();
    twins.add_to(sum);
  }
  if (only != nullptr) return;
  // What the run has to have done, or it proves little.
  EXPECT_GT(sum.frames_stored, kSteps / 4u);
  EXPECT_GT(sum.hits_host, kSteps / 20u);
  EXPECT_GT(sum.hits_device, kSteps / 20u);
  EXPECT_GE(sum.blocks_promoted, kSteps / 40u);  // free slots to come back to are rare in a pool this small
  EXPECT_GT(sum.blocks_staged, kSteps / 4u);
  EXPECT_GT(sum.evictions_with_copy, kSteps / 20u);
  EXPECT_GT(sum.copy_on_writes, kSteps / 40u);
}
INSTANTIATE_TEST_SUITE_P(Settings, Bytes,
                         testing::Values(Setting{"pump_lossless", "lossless", false, 32, 4},
                                         Setting{"pump_raw", "raw", false, 48, 0},
                                         Setting{"worker_lossless", "lossless", true, 32, 20},
                                         Setting{"worker_raw", "raw", true, 16, 4},
                                         Setting{"lazy_pump", "lossless", false, 32, 4, Setting::kLazy},
                                         Setting{"lazy_worker", "raw", true, 32, 4, Setting::kLazy},
                                         Setting{"hidden_pump", "raw", false, 16, 4, Setting::kLazyAndHidden},
                                         Setting{"hidden_worker", "lossless", true, 16, 4, Setting::kLazyAndHidden}),
                         [](const auto& setting) { return std::string(setting.param.name); });

// A sequence's sinks and recent window leave the device with its end and come back bit for bit.
class Restore : public testing::TestWithParam<Setting> {};

TEST_P(Restore, HashesOfProtectedSlotsAreTheSameAfterTheyCameBack) {
  const ModelSpec model = toy_model();
  Config config;
  config.device = "cpu";
  config.threads = 2;
  config.protect.recent = GetParam().recent;
  config.protect.sinks = GetParam().sinks;
  config.pool.max_step_tokens = 64;
  config.pool.budget_bytes = 1u << 20;
  config.host.budget_bytes = 8u << 20;
  config.host.codec = GetParam().codec;
  config.host.huge_pages = false;
  config.mover.worker = GetParam().worker;
  const auto manager = make_manager(config, model);
  ASSERT_TRUE(manager);
  ToyEngine engine(*manager, kQueryHeads);
  std::mt19937 random(11);
  std::uint32_t compared = 0;
  for (int round = 0; round < 100; ++round) {
    SCOPED_TRACE(fmt::format("sequence {}", round));
    const Tokens tokens = distinct(20 + random() % 700, static_cast<TokenId>(random() % 1'000'000'000));
    const auto begun = manager->begin(tokens);
    ASSERT_TRUE(begun.ok());
    ASSERT_EQ(begun->match.tokens, 0u);
    compute(*manager, engine, begun->seq, tokens, 0);
    const auto full = static_cast<std::uint32_t>((tokens.size() - 1) / kBlockTokens);
    const std::uint32_t sinks = (config.protect.sinks + kBlockTokens - 1) / kBlockTokens;
    const auto window = static_cast<std::uint32_t>(
        (tokens.size() - std::min<std::size_t>(tokens.size(), config.protect.recent)) / kBlockTokens);
    std::map<std::uint32_t, std::uint64_t> hashes;
    const std::vector<SlotId> before = manager->block_table(begun->seq);
    for (std::uint32_t i = 0; i < full; ++i) {
      if (i >= sinks && i < window) continue;
      ASSERT_NE(before[i], SlotId::kNone) << "block " << i << " is protected and not resident";
      const auto hash = manager->hash_slot(before[i]);
      ASSERT_TRUE(hash.ok()) << hash.status().message();
      hashes[i] = *hash;
    }
    ASSERT_OK(manager->free(begun->seq));
    ASSERT_OK(manager->wait_idle());
    ASSERT_TRUE(manager->empty_pool(0x5a).ok());
    ASSERT_EQ(manager->stats().slots_cached, 0u);
    ASSERT_EQ(manager->stats().slots_live, 0u);

    const auto again = manager->begin(tokens);
    ASSERT_TRUE(again.ok());
    ASSERT_EQ(again->match.tokens, full * kBlockTokens) << "everything came back but the last token";
    ASSERT_EQ(again->match.tokens_on_device, 0u);
    const auto ticket = manager->prefetch(again->seq);
    ASSERT_TRUE(ticket.ok());
    ASSERT_OK(manager->wait(*ticket));
    const std::vector<SlotId> after = manager->block_table(again->seq);
    for (const auto& [i, hash] : hashes) {
      ASSERT_NE(after[i], SlotId::kNone) << "block " << i << " did not come back";
      const auto restored = manager->hash_slot(after[i]);
      ASSERT_TRUE(restored.ok()) << restored.status().message();
      ASSERT_EQ(*restored, hash) << "block " << i << " of " << full;
      ++compared;
    }
    ASSERT_OK(manager->free(again->seq));
    ASSERT_EQ(broken(*manager), "");
  }
  EXPECT_GT(compared, 300u);
}
INSTANTIATE_TEST_SUITE_P(Settings, Restore,
                         testing::Values(Setting{"pump_lossless", "lossless", false, 128, 4},
                                         Setting{"worker_raw", "raw", true, 40, 30}),
                         [](const auto& setting) { return std::string(setting.param.name); });

// Sinks, window and a staging of one split are all that a sequence needs of the device, whatever its length.
TEST(LongSequence, RunsInAPoolThatHoldsAFractionOfIt) {
  const ModelSpec model = toy_model();
  Config config;
  config.device = "cpu";
  config.threads = 2;
  config.protect.recent = 32;
  config.pool.max_step_tokens = 16;
  config.pool.staging_bytes = kSplitTokens * model.groups[0].kv.token_bytes();
  config.pool.budget_bytes = config.pool.staging_bytes + 14 * model.block_bytes() + (32u << 10);
  config.host.budget_bytes = 8u << 20;
  config.host.huge_pages = false;
  config.mover.worker = false;
  const auto manager = make_manager(config, model);
  const auto flat = make_manager(flat_config(), model);
  ASSERT_TRUE(manager && flat);
  ToyEngine engine(*manager, kQueryHeads), flat_engine(*flat, kQueryHeads);
  const Tokens tokens = distinct(3000, 1);
  const auto begun = manager->begin(tokens), flat_begun = flat->begin(tokens);
  ASSERT_TRUE(begun.ok() && flat_begun.ok());
  ASSERT_LT(manager->stats().slots_total * kBlockTokens, tokens.size() / 8);
  compute(*manager, engine, begun->seq, tokens, 0);
  compute(*flat, flat_engine, flat_begun->seq, tokens, 0);
  ASSERT_FALSE(HasFailure());
  for (const std::uint32_t from : {2999u, 2995u, 2984u}) {
    const auto a = engine.attend(begun->seq, tokens, from, 3000 - from);
    const auto b = flat_engine.attend(flat_begun->seq, tokens, from, 3000 - from);
    ASSERT_TRUE(a.ok()) << a.status().message();
    ASSERT_TRUE(b.ok()) << b.status().message();
    EXPECT_EQ(*a, *b);
  }
  EXPECT_EQ(broken(*manager), "");
  EXPECT_EQ(manager->usable_tokens(begun->seq), 3000u);
}

// Staging of two waves in one call: several sequences at once, rows of different lengths, each as if it were alone.
TEST(ManySequences, AttendTogetherAsTheyDoAlone) {
  const ModelSpec model = toy_model();
  Config config = flat_config();
  config.protect.recent = 16;
  config.host.budget_bytes = 8u << 20;
  config.host.huge_pages = false;
  config.pool.staging_bytes = kSplitTokens * model.groups[0].kv.token_bytes();
  const auto manager = make_manager(config, model);
  ASSERT_TRUE(manager);
  ToyEngine engine(*manager, kQueryHeads);
  std::vector<Tokens> tokens;
  std::vector<SeqId> seqs;
  std::vector<std::vector<float>> alone;
  constexpr std::uint32_t kRows[] = {1, 3, 11, 1};
  for (std::uint32_t i = 0; i < 4; ++i) {
    tokens.push_back(distinct(100 + 260 * i, static_cast<TokenId>(10'000 * i)));
    const auto begun = manager->begin(tokens[i]);
    ASSERT_TRUE(begun.ok());
    seqs.push_back(begun->seq);
    compute(*manager, engine, seqs[i], tokens[i], 0);
  }
  ASSERT_OK(manager->wait_idle());
  ASSERT_TRUE(manager->empty_pool(0xff).ok());
  for (std::uint32_t i = 0; i < 4; ++i) {
    const auto out =
        engine.attend(seqs[i], tokens[i], static_cast<std::uint32_t>(tokens[i].size()) - kRows[i], kRows[i]);
    ASSERT_TRUE(out.ok()) << out.status().message();
    alone.push_back(*out);
  }
  const KvShape& kv = model.groups[0].kv;
  const std::size_t q_size = kQueryHeads * kv.head_dim;
  for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
    std::vector<StepRows> rows;
    std::vector<float> q, out(16 * q_size);
    std::uint32_t row = 0;
    for (std::uint32_t i = 0; i < 4; ++i) {
      const auto from = static_cast<std::uint32_t>(tokens[i].size()) - kRows[i];
      rows.push_back({seqs[i], row, kRows[i], from});
      const std::vector<std::uint64_t> hashes = prefix_hashes(tokens[i]);
      for (std::uint32_t r = 0; r < kRows[i]; ++r) {
        q.resize(q.size() + q_size);
        fill(std::span(q).last(q_size), hashes[from + r], layer, Part::kQuery);
      }
      row += kRows[i];
    }
    const auto fence = manager->attend(layer, rows, engine.params(), reinterpret_cast<DeviceAddress>(q.data()),
                                       reinterpret_cast<DeviceAddress>(out.data()));
    ASSERT_TRUE(fence.ok()) << fence.status().message();
    std::size_t at = 0;
    for (std::uint32_t i = 0; i < 4; ++i) {
      const std::size_t size = kRows[i] * q_size;
      EXPECT_EQ(std::memcmp(out.data() + at, alone[i].data() + layer * size, size * sizeof(float)), 0)
          << "sequence " << i << ", layer " << layer;
      at += size;
    }
  }
}

}  // namespace
}  // namespace firn::test
