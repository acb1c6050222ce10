// Random operations on everything that a manager promises, held against a naive model after each: quotas, reservations,
// pins, leases, families, resizing, preempting and resuming, shared scopes, plans, under every policy, with one to
// three page sets, with and without a host tier, the mover as a thread or not. No bytes: what is promised of them is in
// bytes_test.cpp.
//
// The model knows what each sequence was begun with and has, who is pinned and what is kept; what can be found at all
// it asks the manager's own snapshot, and works out by trying what a prompt finds of it. Where there is no worker, a
// call that is refused has left everything as it was: tables, the order of reuse, the dump, counts, bytes.
//
// FIRN_TEST_SEED=n runs one seed alone. FIRN_RANDOM_OPERATIONS=n runs n operations in all, over FIRN_RANDOM_SEEDS seeds
// (default 100); without it a share of them. A failure prints its seed and the last operations.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <deque>
#include <map>
#include <optional>
#include <random>
#include <set>

#include "tests/core/manager/fixture.h"
#include "tests/core/manager/test_peer.h"

namespace firn::test {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;
const char* const kSpaces[] = {"", "a", "b"};
constexpr std::string_view kScope = "scope";

std::uint64_t number_of(const char* name, std::uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value ? std::strtoull(value, nullptr, 10) : otherwise;
}
std::uint64_t seeds() { return number_of("FIRN_RANDOM_SEEDS", 100); }
std::uint64_t operations() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr std::uint64_t kShare = 20'000;
#else
  constexpr std::uint64_t kShare = 60'000;
#endif
  return number_of("FIRN_RANDOM_OPERATIONS", kShare) / seeds();
}

ModelSpec model_of(unsigned seed) {
  const KvShape shape{Dtype::kF16, 1, 256, 256};
  const GroupSpec full{GroupKind::kFull, 1, shape, 0, 0}, window{GroupKind::kSlidingWindow, 1, shape, 40, 0};
  const GroupSpec narrow{GroupKind::kSlidingWindow, 1, shape, 17, 0}, state{GroupKind::kState, 1, shape, 0, 0};
  const std::vector<std::vector<GroupSpec>> models = {{full}, {full, window}, {full, narrow, state}, {full, state}};
  ModelSpec model = small_model();
  model.groups = models[seed % models.size()];
  return model;
}

// What a sequence has been promised, and what of it is there.
struct Held {
  SeqId seq = SeqId::kNone;
  std::string space;
  BeginOptions options;     // name_space points into kSpaces
  std::uint32_t scope = 0;  // blocks of the shared scope
  Tokens tokens, wanted;
  bool preempted = false;
  std::uint32_t kept_tokens = 0;  // a reservation that nothing has given up, for so many tokens
};

using Named = std::pair<Key, std::uint32_t>;  // a block of a page set

class RandomRun {
 public:
  explicit RandomRun(unsigned seed) : random_(seed), model_(model_of(seed)), layout_(page_layout(model_).value()) {
    const std::span<const std::string_view> policies = policy_names();
    Config config = bookkeeping(1, model_);
    slots_ = 24 + pick(50);
    config.eviction = std::string(policies[seed % policies.size()]);
    config.pool.budget_bytes = slots_ * layout_.page_bytes;
    config.pool.max_budget_bytes = 100 * layout_.page_bytes;
    config.pool.max_step_tokens = 256;
    config.max_sequences = 12;
    config.max_sequence_tokens = 400;
    config.events.capacity = 64;
    config.retention.pin_budget_bytes = 12 * layout_.page_bytes;
    host_ = seed / 4 % 3 != 0;
    config.mover.worker = host_ && seed % 5 == 0;
    worker_ = config.mover.worker;
    if (host_) {
      config.host.budget_bytes = 2u << 20;
      config.host.huge_pages = false;
      config.protect.sinks = 16 * pick(2);
      config.protect.recent = 16 + pick(64);
    }
    if (seed % 7 == 3) config.watermark_percent = 10;
    manager_ = make_manager(config, model_,
                            {.clock = [this] { return Instant{now_.load()}; }, .assumed_ratio = host_ ? 2.0 : 0.0});
  }
  bool ready() const { return manager_ != nullptr; }
  std::string last_operations() const {
    std::string text;
    for (const std::string& line : log_) text += "\n  " + line;
    return text;
  }

  void step() {
    const std::uint32_t what = pick(100);
    manager_->pump(0);  // names that nobody needs any more go at the next call, whoever makes it
    before_ = seen();
    if (what < 18) {
      begin();
    } else if (what < 36) {
      allocate();
    } else if (what < 52) {
      commit();
    } else if (what < 56) {
      fork();
    } else if (what < 61) {
      rewind();
    } else if (what < 68) {
      free();
    } else if (what < 76) {
      preempt_or_resume();
    } else if (what < 80) {
      keep();
    } else if (what < 82) {
      family();
    } else if (what < 85) {
      quota();
    } else if (what < 89) {
      resize();
    } else if (what < 92) {
      move();
    } else if (what < 95) {
      match();
    } else if (what < 97) {
      plan();
    } else if (what < 98) {
      now_ += pick(3) * kSecond / 2;
    } else if (what < 99) {
      ranges();
    } else if (pick(4) == 0) {
      empty();
    }
    after();
  }

  void finish() {
    EXPECT_EQ(broken(*manager_), "");
    const Stats stats = manager_->stats();
    EXPECT_EQ(stats.prefix_cache_queries, total(stats));
    for (const auto& [id, held] : live_) EXPECT_OK(manager_->free(held.seq));
    live_.clear();
    EXPECT_EQ(manager_->stats().slots_reserved, 0u);
    if (!worker_) {
      EXPECT_EQ(manager_->stats().slots_live, 0u);
    }
  }
  std::uint64_t refused() const { return refused_; }
  std::uint64_t done() const { return done_; }

 private:
  std::uint32_t pick(std::uint32_t n) { return static_cast<std::uint32_t>(random_() % n); }
  template <class... Args>
  void log(fmt::format_string<Args...> text, Args&&... args) {
    log_.push_back(fmt::format(text, std::forward<Args>(args)...));
    if (log_.size() > (only_ != 0 ? 1000u : 30u)) log_.pop_front();
  }

  // --- everything that a refusal leaves as it was ---

  // Counters of what was asked and refused aside.
  std::string everything() {
    if (worker_) return {};
    std::string text;
    for (const StatFigure& figure : figures(manager_->stats()))
      if (figure.name != "allocations_refused" && figure.name != "admissions_refused" &&
          figure.name != "retention_refused")
        text += fmt::format("{} {}\n", figure.name, figure.value);
    for (const SlotId slot : manager_->reuse_order()) text += fmt::format("{} ", index(slot));
    for (const auto& [id, held] : live_) {
      text += fmt::format("\n{}: {} tokens, {} usable", id, manager_->token_count(held.seq),
                          manager_->usable_tokens(held.seq));
      for (std::uint8_t s = 0; s < layout_.sets.size(); ++s)
        for (const SlotId slot : manager_->block_table(held.seq, PageSetId{s})) text += fmt::format(" {}", index(slot));
    }
    return text + "\n" + manager_->dump() + fmt::format("{}", manager_->stats().metadata_bytes);
  }
  template <class Result>
  bool refusal(const Result& result, const std::string& was) {
    if (is_ok(result)) {
      ++done_;
      return false;
    }
    ++refused_;
    EXPECT_EQ(everything(), was) << "a refused call has changed something: " << message(result);
    return true;
  }
  static bool is_ok(const Status& status) { return status.ok(); }
  template <class T>
  static bool is_ok(const Result<T>& result) {
    return result.ok();
  }
  static std::string message(const Status& status) { return status.message(); }
  template <class T>
  static std::string message(const Result<T>& result) {
    return result.status().message();
  }

  // --- what can be found ---

  std::set<Named> findable() {
    std::set<Named> all;
    const auto snapshot = manager_->event_snapshot();
    EXPECT_OK(snapshot.status());
    for (const EventBlock& block : snapshot->blocks) all.emplace(block.key, index(block.page_set));
    return all;
  }
  struct Seen {
    std::set<Named> named;
    std::map<std::string, NamespaceUsage> usage;
    std::uint64_t evictions = 0;
  };
  Seen seen() {
    Seen now;
    if (!worker_) now.named = findable();
    for (const std::string_view name : {std::string_view(""), std::string_view("a"), std::string_view("b"), kScope})
      now.usage[std::string(name)] = manager_->usage(name);
    return now;
  }

  KeyChain chain(std::string_view name) const { return KeyChain(model_identity(model_), name); }
  std::vector<Key> keys_of(const Held& held) const {
    std::vector<Key> keys;
    Key key{};
    const KeyChain own = chain(held.space), scope = chain(kScope);
    for (std::size_t i = 0; i < held.tokens.size() / kBlockTokens; ++i) {
      key = (i < held.scope ? scope : own).next(key, std::span(held.tokens).subspan(i * kBlockTokens, kBlockTokens));
      keys.push_back(key);
    }
    return keys;
  }

  // The longest point at which all page sets can go on, by trying each.
  std::uint32_t longest(const std::set<Named>& has, const Tokens& tokens, const BeginOptions& options,
                        std::uint32_t scope_blocks, bool share, bool all, std::uint32_t* in_scope) const {
    *in_scope = 0;
    if (!options.read_cache || tokens.empty()) return 0;
    const std::size_t usable = (tokens.size() - (all ? 0 : 1)) / kBlockTokens;
    const std::size_t most = std::min<std::size_t>(usable, options.max_reuse_tokens / kBlockTokens);
    const KeyChain own = chain(options.name_space), scope = chain(kScope);
    std::vector<Key> keys;
    Key key{};
    const auto everywhere = [&](const Key& name) {  // in every page set without a window
      for (std::uint32_t s = 0; s < layout_.sets.size(); ++s)
        if (layout_.sets[s].kind == GroupKind::kFull && !has.contains({name, s})) return false;
      return true;
    };
    for (std::size_t i = 0; i < most; ++i) {
      const auto block = std::span(tokens).subspan(i * kBlockTokens, kBlockTokens);
      const bool asks = *in_scope == i && i < scope_blocks;
      Key next = asks ? scope.next(key, block) : own.next(key, block);
      if (asks && (share || everywhere(next))) {
        ++*in_scope;
      } else if (asks) {
        next = own.next(key, block);
      }
      if (!everywhere(next)) break;
      keys.push_back(key = next);
    }
    std::size_t point = keys.size();
    if (options.drop_last_block && point != 0) --point;
    const auto can_go_on = [&](std::size_t at) {
      for (std::uint32_t s = 0; s < layout_.sets.size(); ++s) {
        const PageSet& set = layout_.sets[s];
        std::size_t from = at;
        if (set.kind == GroupKind::kState) from = at - 1;
        if (set.kind == GroupKind::kSlidingWindow) {
          const std::size_t seen_tokens = std::min<std::size_t>(at * kBlockTokens, set.window - 1);
          from = (at * kBlockTokens - seen_tokens) / kBlockTokens;
        }
        for (std::size_t i = from; i < at; ++i)
          if (!has.contains({keys[i], s})) return false;
      }
      return true;
    };
    while (point != 0 && !can_go_on(point)) --point;
    *in_scope = std::min(*in_scope, static_cast<std::uint32_t>(point));
    return static_cast<std::uint32_t>(point) * kBlockTokens;
  }

  Tokens make_prompt() {
    Tokens tokens;
    for (std::uint32_t i = 0, n = pick(9); i < n; ++i)
      tokens = joined(tokens, distinct(kBlockTokens, static_cast<TokenId>(100 * pick(2))));
    const std::uint32_t tail = pick(4) == 0 ? 0 : pick(kBlockTokens);
    if (tail != 0 || tokens.empty())
      tokens = joined(tokens, distinct(std::max(1u, tail), static_cast<TokenId>(5000 + pick(2))));
    return tokens;
  }
  Held* any(bool preempted = false) {
    std::vector<Held*> those;
    for (auto& [id, held] : live_)
      if (held.preempted == preempted) those.push_back(&held);
    return those.empty() ? nullptr : those[pick(static_cast<std::uint32_t>(those.size()))];
  }
  static std::uint32_t size_of(const Tokens& tokens) { return static_cast<std::uint32_t>(tokens.size()); }

  // --- operations ---

  void begin() {
    const Tokens tokens = make_prompt();
    BeginOptions options{.name_space = kSpaces[pick(3)]};
    options.read_cache = pick(8) != 0;
    if (pick(4) == 0) options.shared_scope = kScope, options.shared_tokens = 16 * pick(5), options.share = pick(2) == 0;
    if (pick(6) == 0) options.max_reuse_tokens = pick(100);
    options.drop_last_block = pick(6) == 0;
    if (pick(3) == 0) options.admission = static_cast<Admission>(pick(3)), options.expected_tokens = pick(160);
    log("begin {} tokens in '{}', scope {} share {} reuse {} drop {} admission {} expected {}, read {}", tokens.size(),
        options.name_space, options.shared_scope ? options.shared_tokens : 0, options.share, options.max_reuse_tokens,
        options.drop_last_block, static_cast<int>(options.admission), options.expected_tokens, options.read_cache);
    std::uint32_t in_scope = 0;
    const std::uint32_t scope_blocks =
        options.shared_scope ? std::min(options.shared_tokens, size_of(tokens)) / kBlockTokens : 0;
    const std::uint32_t expected =
        longest(before_.named, tokens, options, scope_blocks, options.share, /*all=*/false, &in_scope);
    const std::uint64_t reserved = manager_->stats().slots_reserved;
    const std::string was = everything();
    const auto begun = manager_->begin(tokens, options);
    if (refusal(begun, was)) return;
    const std::uint32_t hit = begun->match.tokens;
    if (!worker_ && reserved == 0) {
      EXPECT_EQ(hit, expected);
    } else if (!worker_) {
      EXPECT_LE(hit, expected) << "what is kept for others is not given away";
    }
    Held held;
    held.seq = begun->seq;
    held.space = std::string(options.name_space);
    held.options = options;
    held.scope = options.share ? scope_blocks : std::min(in_scope, hit / kBlockTokens);
    held.tokens = first_of(tokens, hit);
    held.wanted = tokens;
    if (options.admission == Admission::kReserve) held.kept_tokens = std::max(size_of(tokens), options.expected_tokens);
    // What it will write into the scope is that namespace's, whose ceiling others fill too.
    if (options.share && quotas_[std::string(kScope)].device_ceiling != 0) held.kept_tokens = 0;
    if (worker_ && options.shared_scope && !options.share) {  // how much of it is the scope's cannot be foretold
      EXPECT_OK(manager_->free(begun->seq));
      return;
    }
    live_[index(begun->seq)] = std::move(held);
  }

  // One to three sequences: a plan that gives all they want is kept, and one that does not gives one sequence as much.
  void plan() {
    std::vector<StepRequest> requests;
    std::uint64_t wanted = 0;
    for (std::uint32_t i = 0, n = 1 + pick(3); i < n; ++i)
      if (Held* held = any()) {
        requests.push_back({held->seq, pick(pick(3) == 0 ? 200 : 40)});
        wanted += requests.back().new_tokens;
      }
    if (requests.empty()) return;
    const auto plan = manager_->plan_step(requests);
    EXPECT_OK(plan.status());
    if (worker_ || !plan.ok() || (plan->chunk_limit < wanted && requests.size() != 1)) return;
    log("plan of {} requests, {} of {} tokens", requests.size(), plan->chunk_limit, wanted);
    std::map<std::uint64_t, std::uint32_t> sums;
    for (const StepRequest& request : requests) {
      spend(live_.at(index(request.seq)));
      std::uint32_t& sum = sums[index(request.seq)];
      sum += std::min(request.new_tokens, plan->chunk_limit);
      const auto given = manager_->allocate(request.seq, sum);
      EXPECT_OK(given.status()) << "a plan of " << plan->chunk_limit << " tokens was not kept";
    }
  }

  void allocate() {
    Held* held = any();
    if (!held) return;
    const std::uint32_t count = pick(pick(3) == 0 ? 300 : 40), lookahead = pick(4) == 0 ? pick(40) : 0;
    log("allocate {}: {} and {}", index(held->seq), count, lookahead);
    const StepRequest request{held->seq, count + lookahead};
    const auto plan = manager_->plan_step(std::span(&request, 1));
    const std::string was = everything();
    const auto given = manager_->allocate(held->seq, count, lookahead);
    spend(*held);
    if (!worker_ && lookahead == 0 && plan.ok()) {
      if (count <= 256) {
        EXPECT_EQ(given.ok(), plan->chunk_limit >= count) << given.status().message();
      }
    }
    if (refusal(given, was)) {
      EXPECT_TRUE(given.status().code() == Code::kNoSpace || given.status().code() == Code::kUnavailable ||
                  held->tokens.size() + count + lookahead > 400)
          << given.status().message();
      return;
    }
    if (lookahead == 0) commit_to(*held, count);
  }

  // Snapshots that an allocation took which was not committed are where no step ends: room is kept for one step.
  void spend(Held& held) {
    if (model_.groups.back().kind == GroupKind::kState) held.kept_tokens = 0;
  }

  void commit() {
    if (Held* held = any()) commit_to(*held, pick(48));
  }
  void commit_to(Held& held, std::uint32_t count) {
    // With states only what was allocated for can be committed.
    if (!manager_->allocate(held.seq, count).ok()) return;
    Tokens tokens;
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::size_t at = held.tokens.size() + i;
      tokens.push_back(at < held.wanted.size() ? held.wanted[at]
                                               : static_cast<TokenId>(at % kBlockTokens + 100 * pick(2)));
    }
    log("commit {}: {}", index(held.seq), count);
    const Status status = manager_->commit(held.seq, tokens);
    ASSERT_OK(status);
    held.tokens = joined(held.tokens, tokens);
  }

  void fork() {
    Held* parent = any();
    if (!parent) return;
    log("fork {}", index(parent->seq));
    const std::string was = everything();
    const auto child = manager_->fork(parent->seq);
    if (refusal(child, was)) return;
    Held held = *parent;
    held.seq = *child;
    held.kept_tokens = 0;
    held.wanted.clear();
    held.scope = std::min(held.scope, size_of(held.tokens) / kBlockTokens);
    held.options.share = false;
    live_[index(*child)] = std::move(held);
  }

  void rewind() {
    Held* held = any();
    if (!held) return;
    std::uint32_t n = pick(size_of(held->tokens) + 1);
    if (pick(2) == 0) n = n / kBlockTokens * kBlockTokens;
    log("rewind {} to {}", index(held->seq), n);
    const std::string was = everything();
    if (refusal(manager_->rewind(held->seq, n), was)) return;
    discarded_ = true;
    held->tokens = first_of(held->tokens, n);
    held->wanted.clear();
    held->scope = std::min(held->scope, n / kBlockTokens);
  }

  void free() {
    Held* held = pick(4) == 0 ? any(true) : any();
    if (!held) return;
    log("free {}", index(held->seq));
    const SeqId seq = held->seq;
    ASSERT_OK(manager_->free(seq));
    live_.erase(index(seq));
  }

  void preempt_or_resume() {
    Held* held = any(pick(2) == 0);
    if (!held) return;
    if (!held->preempted) {
      log("preempt {}", index(held->seq));
      ASSERT_OK(manager_->preempt(held->seq));
      held->preempted = true;
      held->kept_tokens = 0;
      EXPECT_EQ(manager_->token_count(held->seq), held->tokens.size());
      EXPECT_TRUE(manager_->block_table(held->seq).empty());
      return;
    }
    log("resume {}", index(held->seq));
    std::uint32_t in_scope = 0;
    BeginOptions options = held->options;
    options.name_space = held->space;
    const std::uint32_t expected =
        longest(before_.named, held->tokens, options, held->scope, /*share=*/true, /*all=*/true, &in_scope);
    const bool others = manager_->stats().slots_reserved != 0;
    const auto match = manager_->resume(held->seq);
    ASSERT_OK(match.status());
    if (!worker_ && !others) {
      EXPECT_EQ(match->tokens, expected);
    } else if (!worker_) {
      EXPECT_LE(match->tokens, expected);
    }
    held->preempted = false;
    held->wanted = held->tokens;
    held->tokens = first_of(held->tokens, match->tokens);
    if (!held->options.share) held->scope = std::min(held->scope, match->tokens / kBlockTokens);
  }

  std::vector<Key> some_keys() {
    Tokens tokens = make_prompt();
    const std::vector<Key> keys = chain(kSpaces[pick(3)]).keys(tokens);
    return {keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(keys.size(), 1 + pick(3)))};
  }
  void keep() {
    const std::vector<Key> keys = some_keys();
    const std::string was = everything();
    if (keys.empty()) return;
    if (pick(3) == 0) {
      log("unpin {} keys", keys.size());
      manager_->unpin(keys);
      for (const Key& key : keys) std::erase_if(pinned_, [&](const auto& pin) { return pin.first.first == key; });
    } else if (pick(3) == 0) {
      log("lease of {} keys", keys.size());
      const auto lease = manager_->acquire_lease("somebody", keys, 4 * kSecond);
      if (!refusal(lease, was)) leases_.push_back(*lease);
      if (lease.ok() && leases_.size() > 3) {
        EXPECT_TRUE(manager_->release_lease(leases_.front()) || true);
        leases_.pop_front();
      }
    } else {
      const std::int64_t ttl = (1 + pick(4)) * kSecond;
      log("pin {} keys", keys.size());
      if (refusal(manager_->pin(keys, ttl), was)) return;
      for (const Named& named : before_.named)
        if (std::find(keys.begin(), keys.end(), named.first) != keys.end())
          pinned_[named] = std::max(pinned_[named], now_.load() + ttl);
    }
  }

  void family() {
    std::vector<Key> keys = some_keys();
    for (const Key& key : some_keys()) keys.push_back(key);
    std::sort(keys.begin(), keys.end());
    keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
    log("family of {} keys", keys.size());
    const std::string was = everything();
    refusal(manager_->set_family(keys), was);
  }

  void quota() {
    const std::string_view name = pick(5) == 0 ? kScope : std::string_view(kSpaces[pick(3)]);
    NamespaceQuota quota;
    const std::uint64_t page = layout_.page_bytes;
    if (pick(3) == 0) quota.device_floor = pick(10) * page;
    if (pick(3) == 0) quota.device_ceiling = std::max(quota.device_floor, (1 + pick(30)) * page);
    if (host_ && pick(3) == 0) quota.host_ceiling = (1 + pick(40)) * page;
    log("quota of '{}': floor {} ceiling {}", name, quota.device_floor / page, quota.device_ceiling / page);
    const std::string was = everything();
    if (refusal(manager_->set_quota(name, quota), was)) return;
    quotas_[std::string(name)] = quota;
    before_ = seen();  // who is above a new ceiling, or below a new floor, is so by right
    for (auto& [id, held] : live_) held.kept_tokens = quota.device_ceiling != 0 ? 0 : held.kept_tokens;
  }

  void resize() {
    const std::uint64_t bytes = (5 + pick(96)) * layout_.page_bytes;
    log("resize to {}", bytes / layout_.page_bytes);
    std::map<std::pair<std::uint64_t, std::uint8_t>, std::vector<SlotId>> tables;
    for (const auto& [id, held] : live_)
      for (std::uint8_t s = 0; s < layout_.sets.size(); ++s)
        tables[{id, s}] = manager_->block_table(held.seq, PageSetId{s});
    const std::string was = everything();
    const auto done = manager_->resize_pool(bytes);
    if (refusal(done, was)) return;
    EXPECT_EQ(done->slots, manager_->stats().slots_total);
    EXPECT_LE(done->slots * layout_.page_bytes, bytes);
    if (worker_) return;
    for (auto& [id, table] : tables) {
      for (SlotId& slot : table)
        for (const SlotMove& move : done->moved)
          if (slot == move.from) {
            slot = move.to;
            break;
          }
      const std::vector<SlotId> now = manager_->block_table(SeqId{id.first}, PageSetId{id.second});
      ASSERT_EQ(now.size(), table.size());
      for (std::size_t i = 0; i < now.size(); ++i)
        EXPECT_TRUE(now[i] == table[i] || now[i] == SlotId::kNone) << "block " << i << " of " << id.first;
    }
  }

  void move() {
    if (pick(3) == 0) {
      if (Held* held = any()) {
        log("prefetch {}", index(held->seq));
        EXPECT_OK(manager_->prefetch(held->seq).status());
      }
    }
    if (!worker_) {
      log("pump");
      manager_->pump(pick(2) == 0 ? 2 : 1000);
    } else {
      EXPECT_OK(manager_->wait_idle());
    }
  }

  void match() {
    const Tokens tokens = make_prompt();
    BeginOptions options{.name_space = kSpaces[pick(3)]};
    options.drop_last_block = pick(3) == 0;
    std::uint32_t in_scope = 0;
    const std::uint32_t expected = longest(before_.named, tokens, options, 0, false, false, &in_scope);
    if (!worker_) {
      EXPECT_EQ(manager_->match_prefix(tokens, options).tokens, expected);
    }
  }

  void ranges() {
    Held* held = any();
    if (!held) return;
    log("retention of {}", index(held->seq));
    const RetentionRange range{0, 64, static_cast<std::uint8_t>(20 + 10 * pick(4)), pick(3) * kSecond};
    const std::string was = everything();
    refusal(manager_->set_retention(held->seq, std::span(&range, 1)), was);
  }

  void empty() {
    log("empty the pool");
    const std::string was = everything();
    if (!refusal(manager_->empty_pool(0), was)) before_ = seen();  // nobody's floor holds this back
  }

  // --- what holds after every operation ---

  void after() {
    const Seen now = seen();
    for (const auto& [name, quota] : quotas_) {
      const std::uint64_t was = before_.usage[name].device_bytes, is = now.usage.at(name).device_bytes;
      if (quota.device_ceiling != 0) {
        EXPECT_LE(is, std::max(quota.device_ceiling, was)) << "the ceiling of " << name;
      }
      if (quota.host_ceiling != 0 && !worker_) {
        EXPECT_LE(now.usage.at(name).host_bytes, std::max(quota.host_ceiling, before_.usage[name].host_bytes));
      }
      // Its own sequences may give blocks up (a rewind, a free of what was never full, room for their next tokens).
      if (quota.device_floor != 0 && !worker_) {
        std::uint64_t mine = 0;
        for (const auto& [id, held] : live_)
          mine += held.space == name || (name == kScope && held.options.shared_scope);
        if (mine == 0 && was_mine_[name] == 0 && !discarded_) {
          EXPECT_GE(is, std::min(was, quota.device_floor)) << "the floor of " << name;
        }
        was_mine_[name] = mine;
      }
    }
    std::erase_if(pinned_, [&](const auto& pin) { return pin.second <= now_.load(); });
    if (discarded_) std::erase_if(pinned_, [&](const auto& pin) { return !now.named.contains(pin.first); });
    for (const auto& [named, until] : pinned_) EXPECT_TRUE(worker_ || now.named.contains(named)) << "a pin is broken";
    discarded_ = false;
    std::uint64_t kept = 0;
    for (const auto& [id, held] : live_) {
      EXPECT_EQ(manager_->token_count(held.seq), held.tokens.size());
      if (held.preempted) continue;
      if (pick(8) == 0) {
        EXPECT_EQ(manager_->block_keys(held.seq), keys_of(held)) << "keys of " << id;
      }
      kept += held.kept_tokens != 0;
      // Without a host tier nothing is on its way: what is kept is there at once.
      if (host_ || held.kept_tokens <= held.tokens.size()) continue;
      const std::uint32_t rest = std::min(256u, held.kept_tokens - size_of(held.tokens));
      const StepRequest request{held.seq, rest};
      const auto plan = manager_->plan_step(std::span(&request, 1));
      EXPECT_EQ(plan->chunk_limit, rest) << "of the " << held.kept_tokens << " tokens that room is kept for, sequence "
                                         << id << " has " << held.tokens.size();
    }
    // With one it may take a while, and there has to be as much all the same.
    if (!worker_) {
      EXPECT_GE(ManagerTestPeer::reachable(*manager_), manager_->stats().slots_reserved) << "what is kept is not there";
    }
    if (pick(16) == 0 || only_ != 0) {  // one seed alone is looked at closely
      EXPECT_EQ(broken(*manager_), "");
    }
  }

  std::mt19937 random_;
  ModelSpec model_;
  PageLayout layout_;
  std::uint32_t slots_ = 0;
  bool host_ = false, worker_ = false, discarded_ = false;
  std::uint64_t only_ = number_of("FIRN_TEST_SEED", 0);
  std::atomic<std::int64_t> now_{kSecond};
  std::unique_ptr<Manager> manager_;
  std::map<std::uint64_t, Held> live_;
  std::map<Named, std::int64_t> pinned_;
  std::map<std::string, NamespaceQuota> quotas_;
  std::map<std::string, std::uint64_t> was_mine_;
  std::deque<LeaseId> leases_;
  Seen before_;
  std::uint64_t refused_ = 0, done_ = 0;
  std::deque<std::string> log_;
};

TEST(PromisesRandom, HoldAfterEveryOperation) {
  const std::uint64_t only = number_of("FIRN_TEST_SEED", 0);
  std::uint64_t refused = 0, done = 0;
  for (unsigned seed = 1; seed <= seeds(); ++seed) {
    if (only != 0 && only != seed) continue;
    RandomRun run(seed);
    ASSERT_TRUE(run.ready());
    for (std::uint64_t operation = 0; operation < operations(); ++operation) {
      run.step();
      ASSERT_FALSE(testing::Test::HasFailure())
          << "seed " << seed << ", operation " << operation << ", the last ones:" << run.last_operations();
    }
    run.finish();
    ASSERT_FALSE(testing::Test::HasFailure()) << "seed " << seed << ", at its end";
    refused += run.refused(), done += run.done();
  }
  std::printf("%llu calls that may be refused were done, %llu refused\n", static_cast<unsigned long long>(done),
              static_cast<unsigned long long>(refused));
  if (only == 0 && operations() >= 200) {
    EXPECT_GT(refused, 100u) << "a run without refusals proves little";
  }
}

}  // namespace
}  // namespace firn::test
