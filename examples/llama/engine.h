// engine.h: runs a Model with its KV cache in a firn Manager. The engine keeps nothing of the past but the tokens: keys
// and values live in firn, and all attention goes through it. This is the file to copy from when embedding firn.
//
//   Engine engine(model, manager, threads);
//   FIRN_ASSIGN(Sequence sequence, engine.begin(prompt_tokens));       // what firn still has of it is reused
//   Sequence* sequences[] = {&sequence};
//   while (...) {
//     FIRN_TRY(engine.run(sequences));                                 // prefill at first, then one token a turn
//     sequence.push(sampler.next(sequence.logits()));
//   }
//
// Threads:  one caller at a time; the work is shared by the thread pool.
// Memory:   the constructor allocates the activations of one step; a Sequence has its tokens and one row of logits.
// Lifetime: model, manager and pool outlive the engine, and the manager outlives the Sequences.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "examples/llama/model.h"
#include "firn/manager.h"
#include "firn/status.h"
#include "firn/thread_pool.h"

namespace firn::llama {

// A conversation: all its tokens, of which firn holds the first committed() as keys and values. Destroying it lets firn
// keep or evict them as it sees fit; they stay findable for the next prompt that begins the same way.
class Sequence {
 public:
  Sequence(Sequence&& other) noexcept;
  Sequence& operator=(Sequence&& other) noexcept;
  ~Sequence();

  SeqId id() const { return id_; }
  const std::vector<TokenId>& tokens() const { return tokens_; }
  const PrefixMatch& match() const { return match_; }  // what firn had of the prompt
  std::size_t committed() const;
  std::size_t pending() const { return tokens_.size() - committed(); }

  void push(TokenId token) { tokens_.push_back(token); }     // to be run by the next Engine::run
  Status rewind(std::size_t token_count);                    // forgets all tokens but the first token_count, 1 or more
  std::span<const float> logits() const { return logits_; }  // after the last token; empty until run

 private:
  friend class Engine;
  Sequence(Manager& manager, const Begun& begun, std::span<const TokenId> tokens);

  Manager* manager_;
  SeqId id_ = SeqId::kNone;
  PrefixMatch match_;
  std::vector<TokenId> tokens_;
  std::vector<float> logits_;
};

class Engine {
 public:
  Engine(const Model& model, Manager& manager, ThreadPool& threads);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // kInvalidArgument: no tokens, one outside the vocabulary, or more than the model's context.
  Result<Sequence> begin(std::span<const TokenId> tokens, const BeginOptions& options = {});
  Result<Sequence> fork(const Sequence& sequence);

  // Runs everything that is pending, several sequences together, in steps as large as firn allows, and leaves each
  // one's logits in it. A lost cold block is computed again. on_step, if given, hears how many tokens each step ran. On
  // failure sequences keep what was committed, and run() may be called again. kNoSpace: live sequences fill the pool.
  Status run(std::span<Sequence* const> sequences, const std::function<void(std::size_t)>& on_step = {});

  // From now on hears the logits after each token at position `from` or later, as steps run: for scoring text. They
  // depend neither on the steps nor on who else runs. A token costs a fifth of the model more.
  using OnLogits = std::function<void(const Sequence& sequence, std::size_t position, std::span<const float> logits)>;
  void listen(std::size_t from, OnLogits on_logits) {
    listened_from_ = from;
    on_logits_ = std::move(on_logits);
  }

  // Asked before every step; once it says yes, run() ends with kUnavailable. What was committed stays.
  void stop_when(std::function<bool()> stop) { stop_ = std::move(stop); }

  // Counted since construction.
  struct Counters {
    std::uint64_t tokens = 0, steps = 0, recomputed_tokens = 0;
  };
  const Counters& counters() const { return counters_; }

 private:
  // One sequence's share of a step: consecutive rows of the activations.
  struct Part {
    Sequence* sequence;
    std::size_t first_row, row_count, position;
    bool ends_sequence;  // then its last row's logits are wanted
  };

  Result<std::vector<Part>> plan(std::span<Sequence* const> sequences);
  Result<std::size_t> rows_of_next_step(std::span<const StepRequest> requests);
  Status step(std::span<const Part> parts);
  Status forward_layer(std::uint32_t layer, std::span<const StepRows> rows, std::size_t row_count);
  Status compute_logits(std::span<const Part> parts);
  void tell_logits(std::span<const Part> parts);
  Status check_input(std::span<const TokenId> tokens) const;
  bool recover(std::span<const Part> parts);
  void load_rows(std::span<const Part> parts);
  void normalise(std::span<const float> weight, std::size_t row_count);
  void rotate_rows(std::size_t row_count);
  Status wait(const Result<Fence>& work);
  Status take_shared();  // once
  DeviceAddress address(std::span<const float> part) const;

  const Model& model_;
  Manager& manager_;
  ThreadPool& threads_;
  std::size_t max_rows_;
  Counters counters_;
  // Activations of one step, all [row][...]. What firn reads and writes lies where its device and the host both reach.
  std::vector<float> hidden_, normed_, gate_, up_, cosines_, sines_;
  Region shared_;
  std::span<float> query_, key_, value_, attended_;
  std::vector<float> wanted_, logits_;
  std::size_t listened_from_ = 0;
  OnLogits on_logits_;
  std::function<bool()> stop_;
};

}  // namespace firn::llama
