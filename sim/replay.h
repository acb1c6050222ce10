// replay.h: takes a trace's requests through an engine in turns, as a small server would: whoever has arrived is begun
// while there is a place, everybody runs, everybody who has logits gets its next token. The engine is the example
// engine (examples/llama) with real bytes, or VirtualEngine with none: what both do to their manager is then the same
// sequence of calls, and their counts must be the same.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "firn/manager.h"
#include "sim/trace_tokens.h"

namespace firn::sim {

struct ReplayOptions {
  TokenMaker tokens;
  TraceRequest first = {};   // read already, because a trace knows its block size only then...
  bool has_first = false;    // ...if so
  std::uint32_t places = 4;  // sequences at once
  // false: each next request arrives when a place is free, so that counts depend on no clock. true: when it is due.
  bool by_clock = false;
  double time_scale = 1.0;  // arrivals this much faster
  // Tokens of all sequences at once, as an engine admits that wants nobody's context outside the pool; 0: no limit.
  std::uint64_t live_tokens_most = 0;
  bool decode_first = false;                // in a turn, those that make tokens go before those that read prompts
  std::function<Instant()> now;             // required
  std::function<void(Instant)> wait_until;  // required by the clock: nobody has anything to do before that
  std::function<bool(std::size_t waiting, std::size_t running)> after_turn;  // false: stop; may be empty
};

struct ReplayedRequest {
  std::uint64_t number = 0;
  std::uint32_t prompt_tokens = 0, hit_tokens = 0, hit_tokens_host = 0;  // at its first admission
  double queued_s = 0, first_token_s = 0, each_token_s = 0;              // from its arrival; each: after the first
  std::uint32_t output_tokens = 0;
};

struct Replay {
  std::vector<ReplayedRequest> requests;  // finished ones, in that order
  std::uint64_t arrived = 0, refused = 0, preempted = 0;
  bool complete = true;
  double mean_first_token_s() const {
    double sum = 0;
    for (const ReplayedRequest& request : requests) sum += request.first_token_s;
    return requests.empty() ? 0 : sum / static_cast<double>(requests.size());
  }
};

// next: the trace's next request; false: there is none.
template <class Engine>
Result<Replay> replay(Engine& engine, Manager& manager, const std::function<Result<bool>(TraceRequest&)>& next,
                      const ReplayOptions& options) {
  using Sequence = std::decay_t<decltype(engine.begin(std::span<const TokenId>()).value())>;
  struct Running {
    ReplayedRequest request;
    std::vector<TokenId> tokens;  // to begin with: the prompt, and what was made before a preemption
    std::int64_t arrival_ns = 0, first_ns = -1;
    std::uint32_t wanted = 1, made = 0;
    std::optional<Sequence> sequence;
  };
  Replay result;
  std::deque<Running> waiting;
  std::vector<Running> running;
  std::optional<Running> coming;
  std::uint64_t number = 0;
  const auto pull = [&]() -> Status {
    TraceRequest request;
    coming.reset();
    if (number == 0 && options.has_first) {
      request = options.first;
    } else {
      FIRN_ASSIGN(const bool more, next(request));
      if (!more) return {};
    }
    Running made;
    made.request.number = number;
    made.tokens = options.tokens.prompt(request, number++);
    made.request.prompt_tokens = static_cast<std::uint32_t>(made.tokens.size());
    made.wanted = options.tokens.scale(request.output_tokens);
    made.arrival_ns = static_cast<std::int64_t>(static_cast<double>(request.time_ns) / options.time_scale);
    coming = std::move(made);
    return {};
  };
  const auto seconds_since = [&](std::int64_t ns) { return static_cast<double>(options.now().ns - ns) / 1e9; };
  FIRN_TRY(pull());
  while (coming || !waiting.empty() || !running.empty()) {
    while (coming && (options.by_clock ? coming->arrival_ns <= options.now().ns
                                       : waiting.size() + running.size() < options.places)) {
      if (!options.by_clock) coming->arrival_ns = options.now().ns;
      ++result.arrived;
      waiting.push_back(std::move(*coming));
      FIRN_TRY(pull());
    }
    if (waiting.empty() && running.empty()) {
      options.wait_until({coming->arrival_ns});
      continue;
    }
    while (!waiting.empty() && running.size() < options.places) {
      Running& first = waiting.front();
      if (options.live_tokens_most != 0) {
        std::uint64_t live = first.tokens.size() + first.wanted;
        for (const Running& one : running) live += one.sequence->tokens().size() + one.wanted - one.made;
        if (live > options.live_tokens_most) {
          if (!running.empty()) break;
          ++result.refused;
          waiting.pop_front();
          continue;
        }
      }
      Result<Sequence> begun = engine.begin(first.tokens);
      if (!begun.ok()) {
        if (begun.status().code() != Code::kInvalidArgument) {
          if (running.empty()) return begun.status();
          break;
        }
        ++result.refused;  // longer than any sequence may be
        waiting.pop_front();
        continue;
      }
      if (first.made == 0 && first.request.hit_tokens == 0) {
        first.request.hit_tokens = begun->match().tokens;
        first.request.hit_tokens_host = begun->match().tokens_on_host;
        first.request.queued_s = seconds_since(first.arrival_ns);
      }
      first.sequence.emplace(std::move(*begun));
      running.push_back(std::move(first));
      waiting.pop_front();
    }
    std::vector<Sequence*> sequences;
    for (const bool prompts : {false, true})
      for (Running& one : running)
        if (!options.decode_first ? !prompts : prompts == (one.made == 0)) sequences.push_back(&*one.sequence);
    const Status status = engine.turn(sequences);
    if (status.code() == Code::kNoSpace && !running.empty()) {  // the youngest gives way, and comes again
      Running youngest = std::move(running.back());
      running.pop_back();
      youngest.tokens.assign(youngest.sequence->tokens().begin(), youngest.sequence->tokens().end());
      youngest.sequence.reset();
      if (running.empty()) {
        ++result.refused;  // alone, and still it does not fit
      } else {
        ++result.preempted;
        waiting.push_front(std::move(youngest));
      }
      manager.pump();
      continue;
    }
    FIRN_TRY(status);
    for (std::size_t i = 0; i < running.size();) {
      Running& one = running[i];
      if (one.sequence->pending() != 0) {
        ++i;
        continue;
      }
      if (one.first_ns < 0) {
        one.first_ns = options.now().ns;
        one.request.first_token_s = seconds_since(one.arrival_ns);
      }
      if (++one.made < one.wanted) {
        one.sequence->push(options.tokens.output(one.request.number, one.made));
        ++i;
        continue;
      }
      one.request.output_tokens = one.made;
      if (one.made > 1) one.request.each_token_s = seconds_since(one.first_ns) / (one.made - 1);
      one.sequence.reset();  // freed: its blocks may go to the host
      result.requests.push_back(one.request);
      running.erase(running.begin() + static_cast<std::ptrdiff_t>(i));
    }
    engine.pump();
    if (options.after_turn && !options.after_turn(waiting.size(), running.size())) {
      result.complete = false;
      break;
    }
  }
  return result;
}

}  // namespace firn::sim
