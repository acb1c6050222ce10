// Random operations on a manager without bytes, held against NaiveManager after every one: tables, keys, matches,
// counts. FIRN_TEST_SEED=n runs one seed alone; a failure prints its seed and the last operations.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <deque>
#include <random>

#include "tests/core/manager/fixture.h"
#include "tests/core/manager/naive_manager.h"

namespace firn::test {
namespace {

constexpr int kSeeds = 20;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kOperations = 10'000;  // per seed: 200,000 in all
#else
constexpr int kOperations = 50'000;  // per seed: 1,000,000 in all
#endif
constexpr std::uint32_t kMaxSequences = 9;
constexpr const char* kNames[] = {"", "tenant"};

class RandomRun {
 public:
  explicit RandomRun(unsigned seed) : random_(seed), slot_count_(8 + pick(57)), naive_(slot_count_, kMaxSequences) {
    Config config = bookkeeping(slot_count_);
    config.max_sequences = kMaxSequences;
    manager_ = make_manager(config);
  }

  bool ready() const { return manager_ != nullptr; }

  void step() {
    const std::uint32_t what = pick(100);
    if (what < 22) {
      begin();
    } else if (what < 40) {
      allocate();
    } else if (what < 68) {
      commit();
    } else if (what < 74) {
      fork();
    } else if (what < 81) {
      rewind();
    } else if (what < 92) {
      free();
    } else if (what < 99) {
      match();
    } else if (pick(4) == 0) {
      empty_pool();
    } else {
      reset();
    }
  }

  void compare() {
    for (const auto& [id, seq] : naive_.sequences()) compare(id, seq);
    const Stats stats = manager_->stats();
    EXPECT_EQ(stats.sequences, naive_.sequences().size());
    EXPECT_EQ(stats.slots_total, slot_count_ - 1);
    EXPECT_EQ(stats.slots_free, naive_.free_slots());
    EXPECT_EQ(stats.slots_cached, naive_.cached_slots());
    EXPECT_EQ(stats.slots_live, slot_count_ - 1 - naive_.free_slots() - naive_.cached_slots());
    EXPECT_EQ(stats.slots_cold, 0u);
    EXPECT_EQ(stats.slots_in_flight, 0u);
    EXPECT_EQ(stats.blocks, stats.slots_live + stats.slots_cached);
    EXPECT_EQ(stats.duplicate_blocks, naive_.duplicates());
    EXPECT_EQ(stats.prefix_cache_queries, naive_.queries);
    EXPECT_EQ(stats.prefix_cache_hits, naive_.hits);
    EXPECT_EQ(stats.misses, naive_.misses);
    EXPECT_EQ(stats.prefix_cache_queries, total(stats));
    EXPECT_EQ(stats.evictions, naive_.evictions);
    EXPECT_EQ(stats.copy_on_writes, naive_.copied);
    EXPECT_EQ(stats.allocations_refused, naive_.refused);
  }

  void finish() {
    verify();
    EXPECT_LE(forgotten_ * 10, remembered_) << "evictions are remembered nearly always";
    // A run that did not do these proves little.
    EXPECT_GT(naive_.hits, kOperations / 50u);
    EXPECT_GT(naive_.evictions, kOperations / 50u);
    EXPECT_GT(naive_.copied, kOperations / 500u);
    EXPECT_GT(naive_.refused, 0u);
    EXPECT_GT(remembered_, kOperations / 200u);
  }

  void verify() { EXPECT_EQ(broken(*manager_), ""); }

  std::string last_operations() const {
    std::string text;
    for (const std::string& line : log_) text += "\n  " + line;
    return text;
  }

 private:
  std::uint32_t pick(std::uint32_t n) { return static_cast<std::uint32_t>(random_() % n); }

  template <class... Args>
  void log(fmt::format_string<Args...> text, Args&&... args) {
    log_.push_back(fmt::format(text, std::forward<Args>(args)...));
    if (log_.size() > 40) log_.pop_front();
  }

  // Blocks mostly repeat one of two tokens, so that different prompts have prefixes, and whole blocks, in common.
  void extend(std::vector<TokenId>& tokens, std::uint32_t count) {
    for (std::uint32_t i = 0; i < count; ++i) {
      const bool fresh = tokens.size() % kBlockTokens == 0 || pick(64) == 0;
      tokens.push_back(fresh ? static_cast<TokenId>(pick(2)) : tokens.back());
    }
  }

  // What a match has to be. Both sides may have evicted the missing block, and the manager no longer know it.
  NaiveManager::Match expected_match(const std::vector<TokenId>& tokens, int name_space) {
    const NaiveManager::Match expected = naive_.match(tokens, name_space);
    const PrefixMatch match = manager_->match_prefix(tokens, kNames[name_space]);
    EXPECT_EQ(match.tokens, expected.slots.size() * kBlockTokens);
    EXPECT_EQ(match.tokens_on_device, match.tokens);
    EXPECT_EQ(match.tokens_on_host, 0u);
    if (expected.first_miss == MissReason::kEvictedDevice) {
      if (match.first_miss == expected.first_miss) {
        ++remembered_;
        return expected;
      }
      ++forgotten_;
      naive_.forget_eviction(expected.missing);
      return expected_match(tokens, name_space);
    }
    EXPECT_EQ(match.first_miss, expected.first_miss);
    return expected;
  }

  // A live sequence's tokens, cut and continued, or a new prompt.
  std::vector<TokenId> make_prompt(int name_space) {
    std::vector<TokenId> tokens;
    if (pick(2) == 0 && !naive_.sequences().empty()) {
      const NaiveManager::Sequence& other = naive_.sequences().at(any());
      if (other.name_space == name_space) {
        tokens = other.tokens;
        tokens.resize(pick(static_cast<std::uint32_t>(tokens.size()) + 1));
      }
    }
    extend(tokens, pick(pick(4) == 0 ? 16 * slot_count_ : 70));
    if (tokens.empty()) tokens.push_back(0);
    return tokens;
  }

  int any() {
    auto it = naive_.sequences().begin();
    std::advance(it, pick(static_cast<std::uint32_t>(naive_.sequences().size())));
    return it->first;
  }

  void begin() {
    const int name_space = static_cast<int>(pick(2));
    const bool read = pick(8) != 0;
    const std::vector<TokenId> tokens = make_prompt(name_space);
    const NaiveManager::Match expected = expected_match(tokens, name_space);
    const int id = next_++;
    log("begin {}: {} tokens, namespace {}, read {}", id, tokens.size(), name_space, read);
    const bool accepted = naive_.begin(id, tokens, name_space, read) != nullptr;
    BeginOptions options;
    options.name_space = kNames[name_space];
    options.read_cache = read;
    const auto begun = manager_->begin(tokens, options);
    ASSERT_EQ(begun.ok(), accepted) << begun.status().message();
    if (!accepted) return;
    ids_[id] = begun->seq;
    wanted_[id] = tokens;
    EXPECT_EQ(begun->match.tokens, naive_.sequences().at(id).tokens.size());
    EXPECT_EQ(begun->match.tokens_on_device, begun->match.tokens);
    EXPECT_EQ(begun->match.tokens_on_host, 0u);
    EXPECT_EQ(begun->match.first_miss, read ? expected.first_miss : MissReason::kNotRead);
  }

  void allocate() {
    if (naive_.sequences().empty()) return;
    const int id = any();
    const std::uint32_t count = pick(pick(3) == 0 ? 200 : 24), lookahead = pick(4) == 0 ? pick(20) : 0;
    log("allocate {}: {} tokens and {}", id, count, lookahead);
    plan(id, count + lookahead);
    const auto expected = naive_.allocate(id, count + lookahead);
    const auto orders = manager_->allocate(ids_.at(id), count, lookahead);
    ASSERT_EQ(orders.ok(), expected.has_value()) << orders.status().message();
    if (!orders.ok()) {
      EXPECT_EQ(orders.status().code(), Code::kNoSpace);
      return;
    }
    ASSERT_EQ(orders->size(), expected->size());
    for (std::size_t i = 0; i < orders->size(); ++i) {
      EXPECT_EQ(index((*orders)[i].from), (*expected)[i].from);
      EXPECT_EQ(index((*orders)[i].to), (*expected)[i].to);
      EXPECT_EQ((*orders)[i].tokens, (*expected)[i].tokens);
    }
  }

  // A plan says exactly how many tokens would fit, and allocate() agrees.
  void plan(int id, std::uint32_t count) {
    const std::uint32_t fit = naive_.most_tokens(id, count);
    const StepRequest request{ids_.at(id), count};
    const auto plan = manager_->plan_step(std::span(&request, 1));
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    EXPECT_EQ(plan->chunk_limit, std::min(fit, manager_->config().pool.max_step_tokens));
    EXPECT_EQ(plan->blocked.code(), count != 0 && fit == 0 ? Code::kNoSpace : Code::kOk) << plan->blocked.message();
    EXPECT_EQ(plan->blocks_needed, naive_.blocks_needed(id, count));
  }

  // Tokens for room that is there: first those of its prompt, then any.
  void commit() {
    if (naive_.sequences().empty()) return;
    const int id = any();
    const NaiveManager::Sequence& seq = naive_.sequences().at(id);
    if (!naive_.may_write(id)) return;
    const auto room = static_cast<std::uint32_t>(seq.slots.size() * kBlockTokens - seq.tokens.size());
    std::vector<TokenId> tokens = seq.tokens;
    const std::uint32_t count = pick(3) == 0 ? room : pick(room + 1);
    const std::vector<TokenId>& wanted = wanted_.at(id);
    while (tokens.size() < std::min<std::size_t>(seq.tokens.size() + count, wanted.size()))
      tokens.push_back(wanted[tokens.size()]);
    extend(tokens, static_cast<std::uint32_t>(seq.tokens.size() + count - tokens.size()));
    tokens.erase(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(seq.tokens.size()));
    log("commit {}: {} tokens", id, tokens.size());
    naive_.commit(id, tokens);
    const Status status = manager_->commit(ids_.at(id), tokens);
    ASSERT_TRUE(status.ok()) << status.message();
  }

  void fork() {
    if (naive_.sequences().empty()) return;
    const int id = any(), child = next_++;
    log("fork {} into {}", id, child);
    const bool accepted = naive_.fork(id, child);
    const auto forked = manager_->fork(ids_.at(id));
    ASSERT_EQ(forked.ok(), accepted) << forked.status().message();
    if (!accepted) return;
    ids_[child] = *forked;
    wanted_[child] = {};
  }

  void rewind() {
    if (naive_.sequences().empty()) return;
    const int id = any();
    const auto n = pick(static_cast<std::uint32_t>(naive_.sequences().at(id).tokens.size()) + 1);
    log("rewind {} to {}", id, n);
    naive_.rewind(id, n);
    wanted_[id].clear();
    const Status status = manager_->rewind(ids_.at(id), n);
    ASSERT_TRUE(status.ok()) << status.message();
  }

  void free() {
    if (naive_.sequences().empty()) return;
    const int id = any();
    log("free {}", id);
    naive_.free(id);
    const Status status = manager_->free(ids_.at(id));
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_TRUE(manager_->block_table(ids_.at(id)).empty());
    ids_.erase(id);
    wanted_.erase(id);
  }

  void match() {
    const int name_space = static_cast<int>(pick(2));
    expected_match(make_prompt(name_space), name_space);
  }

  void empty_pool() {
    log("empty_pool");
    const std::uint32_t expected = naive_.empty_pool();
    const auto emptied = manager_->empty_pool(0xee);
    ASSERT_TRUE(emptied.ok()) << emptied.status().message();
    EXPECT_EQ(*emptied, expected);
  }

  void reset() {
    if (pick(4) == 0)
      while (!naive_.sequences().empty()) free();
    log("reset");
    const bool accepted = naive_.reset();
    const Status status = manager_->reset();
    ASSERT_EQ(status.ok(), accepted) << status.message();
    if (!accepted) {
      EXPECT_EQ(status.code(), Code::kUnavailable);
    }
  }

  void compare(int id, const NaiveManager::Sequence& seq) {
    const SeqId real = ids_.at(id);
    EXPECT_EQ(table(*manager_, real), seq.slots) << "table of " << id;
    EXPECT_EQ(manager_->token_count(real), seq.tokens.size());
    EXPECT_EQ(manager_->usable_tokens(real), seq.tokens.size());
    EXPECT_EQ(manager_->block_keys(real), keys_of(id, seq)) << "keys of " << id;
  }

  // The keys that docs/keys.md gives these tokens, computed once per named prefix.
  const std::vector<Key>& keys_of(int id, const NaiveManager::Sequence& seq) {
    Cached& cached = keys_[id];
    const std::size_t full = seq.tokens.size() / kBlockTokens;
    if (cached.tokens.size() / kBlockTokens != full ||
        !std::equal(cached.tokens.begin(), cached.tokens.begin() + static_cast<std::ptrdiff_t>(full * kBlockTokens),
                    seq.tokens.begin())) {
      cached.tokens = first_of(seq.tokens, full * kBlockTokens);
      cached.keys = KeyChain(model_identity(small_model()), kNames[seq.name_space]).keys(cached.tokens);
    }
    return cached.keys;
  }

  struct Cached {
    std::vector<TokenId> tokens;
    std::vector<Key> keys;
  };

  std::mt19937 random_;
  std::uint32_t slot_count_ = 0;
  NaiveManager naive_;
  std::unique_ptr<Manager> manager_;
  std::map<int, SeqId> ids_;
  std::map<int, std::vector<TokenId>> wanted_;
  std::map<int, Cached> keys_;
  int next_ = 0;
  std::uint64_t remembered_ = 0, forgotten_ = 0;
  std::deque<std::string> log_;
};

class ManagerRandom : public testing::TestWithParam<unsigned> {};

TEST_P(ManagerRandom, AgreesWithTheNaiveModelAfterEveryOperation) {
  if (const char* only = std::getenv("FIRN_TEST_SEED");
      only != nullptr && GetParam() != std::strtoul(only, nullptr, 10))
    GTEST_SKIP() << "FIRN_TEST_SEED asks for seed " << only;
  RandomRun run(GetParam());
  ASSERT_TRUE(run.ready());
  for (int operation = 0; operation < kOperations; ++operation) {
    run.step();
    run.compare();
    if (operation % 50 == 0) run.verify();
    ASSERT_FALSE(testing::Test::HasFailure())
        << "seed " << GetParam() << ", operation " << operation << ", the last ones:" << run.last_operations();
  }
  run.finish();
}
INSTANTIATE_TEST_SUITE_P(Seeds, ManagerRandom, testing::Range(1u, 1u + kSeeds));

}  // namespace
}  // namespace firn::test
