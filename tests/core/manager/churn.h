// churn.h: threads that do to one manager everything an engine does, at random, and give up in the middle as often as
// not. Keys and values follow from token and position alone, so what attention gives can be checked whoever computed
// the blocks, wherever they have been since.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "firn/manager.h"

namespace firn::test {

struct ChurnShape {
  static constexpr std::uint32_t kLayers = 2, kHeads = 2, kDim = 32;
  static constexpr float kScale = 0.15f;
};

inline ModelSpec churn_model() {
  ModelSpec model;
  model.name = std::string("churn");
  model.weights.bytes.fill(1);
  model.groups = {{GroupKind::kFull,
                   ChurnShape::kLayers,
                   {Dtype::kF16, ChurnShape::kHeads, ChurnShape::kDim, ChurnShape::kDim},
                   0,
                   ChurnShape::kHeads}};
  return model;
}

// A pool of some tens of blocks and a host tier that is too small as well: everything is evicted all the time.
inline Config churn_config() {
  Config config;
  config.device = "cpu";
  config.threads = 1;
  config.pool.budget_bytes = 1u << 20;
  config.pool.max_step_tokens = 64;
  config.protect.recent = 32;
  config.host.budget_bytes = 6u << 20;
  config.host.huge_pages = false;
  config.mover.queue = 8;
  config.max_sequences = 32;
  config.max_sequence_tokens = 4096;
  return config;
}

class Churn {
 public:
  struct Counts {
    std::atomic<std::uint64_t> sequences{0}, aborted{0}, refused{0}, steps{0}, reused_tokens{0}, forks{0}, rewinds{0},
        preemptions{0}, cancels{0}, lost{0}, kept{0};
  };

  // keeping: priorities, pins, leases, families, quotas, shared scopes and events too, all at random.
  Churn(Manager& manager, std::uint64_t seed, bool keeping = false)
      : manager_(manager), seed_(seed), keeping_(keeping) {}

  // Turns until stop() is asked for or `turns` each; 0: without end. Every failure that is no answer is in problems().
  void run(std::uint32_t threads, std::uint64_t turns) {
    std::vector<std::thread> workers;
    for (std::uint32_t i = 0; i < threads; ++i)
      workers.emplace_back([this, i, turns] {
        Worker worker(*this, seed_ * 1000 + i);
        for (std::uint64_t turn = 0; !stop_ && (turns == 0 || turn < turns); ++turn) worker.turn();
      });
    for (std::thread& worker : workers) worker.join();
  }
  void stop() { stop_ = true; }
  const Counts& counts() const { return counts_; }
  std::vector<std::string> problems() const {
    std::lock_guard lock(mutex_);
    return problems_;
  }

 private:
  using Rng = std::mt19937_64;

  // The number at (token, position, layer, element) of K or V: small multiples of 1/64, which f16 holds exactly.
  static float number(TokenId token, std::uint32_t position, std::uint32_t salt) {
    std::uint32_t x = static_cast<std::uint32_t>(token) * 2654435761u ^ position * 40503u ^ salt * 2246822519u;
    x ^= x >> 15;
    x *= 2654435761u;
    x ^= x >> 13;
    return (static_cast<float>(x & 127u) - 64.0f) / 64.0f;
  }

  class Worker {
   public:
    Worker(Churn& churn, std::uint64_t seed) : churn_(churn), manager_(churn.manager_), random_(seed) {}

    ~Worker() {
      for (const LeaseId lease : leases_) manager_.release_lease(lease);
    }

    void turn() {
      make_prompt();
      BeginOptions options;
      options.name_space = chance(3) ? "other" : "";
      options.read_cache = !chance(10);
      if (churn_.keeping_ && chance(4)) {
        options.shared_scope = "shared";
        options.shared_tokens = 64;
        options.share = chance(2);
      }
      const Result<Begun> begun = manager_.begin(tokens_, options);
      if (!begun.ok()) return refused("begin", begun.status());
      ++churn_.counts_.sequences;
      churn_.counts_.reused_tokens += begun->match.tokens;
      live(begun->seq, begun->match.tokens);
    }

   private:
    bool chance(std::uint32_t one_in) { return random_() % one_in == 0; }
    std::uint32_t below(std::uint32_t n) { return static_cast<std::uint32_t>(random_() % n); }

    // One of a few documents, cut anywhere, and some tokens that nobody else has.
    void make_prompt() {
      const std::uint32_t document = below(6), length = 1 + below(240), own = below(24);
      tokens_.clear();
      for (std::uint32_t i = 0; i < length; ++i) tokens_.push_back(static_cast<TokenId>(document * 10'000 + i));
      for (std::uint32_t i = 0; i < own; ++i) tokens_.push_back(static_cast<TokenId>(below(1u << 30)));
    }

    // `done` tokens are committed: computes the others, decodes, and frees; or gives up wherever it pleases.
    void live(SeqId seq, std::uint32_t done) {
      while (done < tokens_.size()) {
        if (chance(40)) return abort(seq);
        if (chance(30) && prefetch(seq)) return;
        const std::uint32_t count =
            std::min<std::uint32_t>(static_cast<std::uint32_t>(tokens_.size()) - done, 1 + below(64));
        if (!step(seq, done, count)) return abort(seq);
        done += count;
      }
      for (std::uint32_t i = below(20); i > 0; --i) {
        if (chance(60)) return abort(seq);
        tokens_.push_back(static_cast<TokenId>(below(1000)));
        if (!step(seq, done, 1)) return abort(seq);
        ++done;
      }
      if (churn_.keeping_) keep(seq);
      if (chance(8)) fork(seq, done);
      if (chance(8)) {
        const std::uint32_t keep = below(done + 1);
        ++churn_.counts_.rewinds;
        if (!answered("rewind", manager_.rewind(seq, keep))) return abort(seq);
        tokens_.resize(std::max(keep, 1u));
        done = keep;
        while (done < tokens_.size())
          if (!step(seq, done, 1))
            return abort(seq);
          else
            ++done;
      }
      if (chance(12)) preempt(seq);
      expect_ok("free", manager_.free(seq, chance(2) ? manager_.device().timeline().last() : Fence{}));
    }

    // Something that keeps blocks, or stops keeping them. That what it names has gone meanwhile is an answer.
    void keep(SeqId seq) {
      ++churn_.counts_.kept;
      constexpr std::int64_t kMillisecond = 1'000'000;
      std::vector<Key> keys = manager_.block_keys(seq);
      keys.resize(std::min<std::size_t>(keys.size(), 1 + below(6)));
      switch (below(9)) {
        case 0: {
          const RetentionRange range{.first = 0,
                                     .end = below(200),
                                     .priority = static_cast<std::uint8_t>(25 * below(5)),
                                     .duration_ns = chance(2) ? 0 : 2 * kMillisecond};
          answered("set_retention", manager_.set_retention(seq, std::span(&range, range.end > 0 ? 1 : 0)));
          break;
        }
        case 1:
          answered("pin", manager_.pin(keys, 1 + below(3 * kMillisecond)).status());
          break;
        case 2:
          manager_.unpin(keys);
          break;
        case 3:
          if (const auto lease = manager_.acquire_lease("a worker", keys, (1 + below(5)) * kMillisecond); lease.ok())
            leases_.push_back(*lease);
          break;
        case 4:
          if (!leases_.empty() && chance(2)) {
            answered("renew_lease", manager_.renew_lease(leases_.back(), kMillisecond));
          } else if (!leases_.empty()) {
            manager_.release_lease(leases_.back());
            leases_.pop_back();
          }
          break;
        case 5:
          manager_.set_family(keys).ok();  // in one already, or not here
          break;
        case 6: {
          const std::uint64_t block = manager_.stats().block_bytes;
          NamespaceQuota quota;
          quota.device_floor = chance(2) ? 0 : below(6) * block;
          quota.device_ceiling = chance(2) ? 0 : (8 + below(24)) * block;
          quota.host_ceiling = chance(2) ? 0 : 1u << 20;
          expect_ok("set_quota", manager_.set_quota("other", quota));
          break;
        }
        case 7:
          manager_.usage("other");
          manager_.leases();
          answered("event_snapshot", manager_.event_snapshot().status());
          break;
        case 8:
          answered("take_events", manager_.take_events(0, 64, "other").status());
          break;
      }
    }

    void fork(SeqId seq, std::uint32_t done) {
      const Result<SeqId> child = manager_.fork(seq);
      if (!child.ok()) return refused("fork", child.status());
      ++churn_.counts_.forks;
      const std::vector<TokenId> kept = tokens_;
      tokens_.push_back(static_cast<TokenId>(below(1000)));
      step(*child, done, 1);
      expect_ok("free of a fork", manager_.free(*child));
      tokens_ = kept;
    }

    void preempt(SeqId seq) {
      ++churn_.counts_.preemptions;
      if (!answered("preempt", manager_.preempt(seq)) || chance(3)) return;
      const Result<PrefixMatch> match = manager_.resume(seq);
      if (!match.ok()) refused("resume", match.status());
    }

    bool prefetch(SeqId seq) {
      const Result<Ticket> ticket = manager_.prefetch(seq);
      if (!ticket.ok()) return refused("prefetch", ticket.status()), false;
      if (chance(2)) {
        ++churn_.counts_.cancels;
        expect_ok("cancel", manager_.cancel(*ticket));
      } else if (chance(2)) {
        answered("wait", manager_.wait(*ticket, 1'000'000'000));
      }
      return false;
    }

    // Allocates, appends, attends and commits tokens [done, done + count). False: it has to be given up.
    bool step(SeqId seq, std::uint32_t done, std::uint32_t count) {
      Result<std::vector<CopyOrder>> allocated = manager_.allocate(seq, count, chance(4) ? below(8) : 0);
      for (int tries = 0; !allocated.ok() && tries < 3; ++tries) {
        if (allocated.status().code() != Code::kUnavailable) break;
        manager_.wait_room(seq, count, 20'000'000).ok();
        allocated = manager_.allocate(seq, count);
      }
      if (!allocated.ok()) return refused("allocate", allocated.status()), false;
      const StepRows rows[] = {{seq, 0, count, done}};
      const std::uint32_t row_size = ChurnShape::kHeads * ChurnShape::kDim;
      for (std::uint32_t layer = 0; layer < ChurnShape::kLayers; ++layer) {
        k_.resize(count * row_size), v_.resize(count * row_size), q_.resize(count * row_size),
            out_.resize(count * row_size);
        for (std::uint32_t row = 0; row < count; ++row)
          for (std::uint32_t i = 0; i < row_size; ++i) {
            k_[row * row_size + i] = number(tokens_[done + row], done + row, 3 * (layer * row_size + i));
            v_[row * row_size + i] = number(tokens_[done + row], done + row, 3 * (layer * row_size + i) + 1);
            q_[row * row_size + i] = number(tokens_[done + row], done + row, 3 * (layer * row_size + i) + 2);
          }
        const auto at = [](std::vector<float>& values) { return reinterpret_cast<DeviceAddress>(values.data()); };
        if (!answered("append", manager_.append(layer, rows, at(k_), at(v_)).status())) return false;
        const Result<Fence> attended = manager_.attend(
            layer, rows, {.query_heads = ChurnShape::kHeads, .scale = ChurnShape::kScale}, at(q_), at(out_));
        if (!answered("attend", attended.status())) return false;
        check_last_row(layer, done, count);
      }
      ++churn_.counts_.steps;
      return answered("commit", manager_.commit(seq, std::span(tokens_).subspan(done, count)));
    }

    // The last row's attention over everything, from the tokens alone.
    void check_last_row(std::uint32_t layer, std::uint32_t done, std::uint32_t count) {
      constexpr std::uint32_t row_size = ChurnShape::kHeads * ChurnShape::kDim;
      const std::uint32_t last = done + count - 1, head = below(ChurnShape::kHeads);
      const float* q = q_.data() + (count - 1) * row_size + head * ChurnShape::kDim;
      const float* out = out_.data() + (count - 1) * row_size + head * ChurnShape::kDim;
      double sum = 0, value = 0;
      const std::uint32_t element = below(ChurnShape::kDim);
      for (std::uint32_t t = 0; t <= last; ++t) {
        double dot = 0;
        for (std::uint32_t d = 0; d < ChurnShape::kDim; ++d)
          dot += q[d] * number(tokens_[t], t, 3 * (layer * row_size + head * ChurnShape::kDim + d));
        const double weight = std::exp(dot * ChurnShape::kScale);
        sum += weight;
        value += weight * number(tokens_[t], t, 3 * (layer * row_size + head * ChurnShape::kDim + element) + 1);
      }
      if (std::abs(out[element] - value / sum) > 1e-3)
        churn_.problem("attention over " + std::to_string(last + 1) + " tokens gives " + std::to_string(out[element]) +
                       ", not " + std::to_string(value / sum));
    }

    void abort(SeqId seq) {
      ++churn_.counts_.aborted;
      expect_ok("free of an aborted sequence", manager_.free(seq));
    }
    void refused(const char* call, const Status& status) {
      ++churn_.counts_.refused;
      answered(call, status);
    }
    // Full and busy are answers, and so is a block that lost its only copy; anything else is a problem.
    bool answered(const char* call, const Status& status) {
      if (status.ok()) return true;
      if (status.code() == Code::kCorrupt) ++churn_.counts_.lost;
      if (status.code() != Code::kNoSpace && status.code() != Code::kUnavailable && status.code() != Code::kCorrupt)
        expect_ok(call, status);
      return false;
    }
    void expect_ok(const char* call, const Status& status) {
      if (!status.ok()) churn_.problem(std::string(call) + ": " + status.message());
    }

    Churn& churn_;
    Manager& manager_;
    Rng random_;
    std::vector<TokenId> tokens_;
    std::vector<LeaseId> leases_;
    std::vector<float> k_, v_, q_, out_;
  };

  void problem(std::string text) {
    std::lock_guard lock(mutex_);
    if (problems_.size() < 20) problems_.push_back(std::move(text));
    stop_ = true;
  }

  Manager& manager_;
  std::uint64_t seed_ = 0;
  bool keeping_ = false;
  std::atomic<bool> stop_{false};
  Counts counts_;
  mutable std::mutex mutex_;
  std::vector<std::string> problems_;
};

}  // namespace firn::test
