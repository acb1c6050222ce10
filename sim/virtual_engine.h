// virtual_engine.h: an engine without a model. It makes the calls that an engine makes to a firn Manager, in the same
// order, and where the engine would compute it moves a clock on. Over device "none" with that clock as the manager's,
// this is the library itself, its policies, its mover and its books, without any bytes.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "firn/manager.h"
#include "sim/hardware.h"

namespace firn::sim {

// What one step computes.
struct StepWork {
  std::uint64_t rows = 0;           // tokens
  double pairs = 0;                 // (row, token it attends to)
  std::uint64_t ends = 0;           // sequences whose next token comes out
  std::uint64_t context = 0;        // tokens of those that make one token
  std::uint64_t cold_blocks = 0;    // attended where they are, in the host tier
  std::uint64_t loaded_blocks = 0;  // brought back into the pool meanwhile
  std::uint64_t frames_stored = 0;  // pressed between this step and the one before
};
// Seconds that it takes.
using StepCost = std::function<double(const StepWork&)>;

// From a device's and a model's few numbers, as the timing model of engine.h has them. block_bytes: of the library's
// blocks; ratio: raw bytes by encoded ones.
StepCost device_cost(const DeviceSpec& device, const ModelShape& model, std::uint64_t block_bytes, double ratio);

// From measurements of a running engine: seconds of steps of so many rows at the start of a context, and the rest by
// parts. Between two measured row counts, a straight line.
struct MeasuredRates {
  std::vector<std::pair<std::uint64_t, double>> step_s;  // rows, seconds; rising rows
  double pair_s = 0;                                     // more, for each row and token it attends to
  double cold_block_s = 0, stored_frame_s = 0;
  StepCost cost() const;
};

class VirtualClock {
 public:
  Instant now() const { return {ns_}; }
  void move_on(double seconds) { ns_ += std::max<std::int64_t>(1, static_cast<std::int64_t>(seconds * 1e9)); }
  void move_to(Instant when) { ns_ = std::max(ns_, when.ns); }
  std::function<Instant()> reader() const {
    return [this] { return now(); };
  }

 private:
  std::int64_t ns_ = 0;
};

struct VirtualEngineOptions {
  StepCost cost;
  // true: a turn is one step, and prompts are read in chunks beside those that make tokens. false: a turn runs whatever
  // is pending, in as many steps as it takes, as the example engine does.
  bool one_step = false;
};

class VirtualEngine {
 public:
  class Sequence {
   public:
    Sequence(Sequence&& other) noexcept;
    Sequence& operator=(Sequence&& other) noexcept;
    ~Sequence();
    SeqId id() const { return id_; }
    const PrefixMatch& match() const { return match_; }
    const std::vector<TokenId>& tokens() const { return tokens_; }
    std::size_t pending() const { return tokens_.size() - committed_; }
    void push(TokenId token) { tokens_.push_back(token); }

   private:
    friend class VirtualEngine;
    Sequence(Manager& manager, const Begun& begun, std::span<const TokenId> tokens);
    Manager* manager_;
    SeqId id_ = SeqId::kNone;
    PrefixMatch match_;
    std::vector<TokenId> tokens_;
    std::size_t committed_ = 0;
  };

  VirtualEngine(Manager& manager, VirtualClock& clock, VirtualEngineOptions options)
      : manager_(manager),
        clock_(clock),
        options_(std::move(options)),
        max_rows_(manager.config().pool.max_step_tokens) {}

  Result<Sequence> begin(std::span<const TokenId> tokens);
  Status turn(std::span<Sequence* const> sequences);
  void pump();

  struct Counters {
    std::uint64_t tokens = 0, steps = 0, recomputed_tokens = 0;
    double busy_s = 0, prefill_s = 0;
  };
  const Counters& counters() const { return counters_; }

 private:
  struct Part {
    Sequence* sequence;
    std::size_t rows;
  };
  Result<std::size_t> rows_of_next_step(std::span<const StepRequest> requests);
  Result<std::vector<Part>> plan(std::span<Sequence* const> sequences);
  Result<std::vector<Part>> plan_lightly(const std::vector<Sequence*>& waiting,
                                         const std::vector<StepRequest>& requests);
  std::uint64_t layer_bytes() const;
  Status step(std::span<const Part> parts);

  Manager& manager_;
  VirtualClock& clock_;
  VirtualEngineOptions options_;
  std::size_t max_rows_;
  std::uint64_t cold_blocks_ = 0, loaded_blocks_ = 0, frames_stored_ = 0;
  Counters counters_;
};

}  // namespace firn::sim
