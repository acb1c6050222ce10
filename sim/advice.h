// advice.h: what held a run up, and what would help. What held it up is read from the windows in which somebody waited,
// not from the whole run, whose quiet hours say nothing. What would help is tried: each change is simulated, and one
// that gains nothing is not given as advice.
#pragma once

#include <string>
#include <vector>

#include "sim/capacity.h"
#include "sim/codec_figures.h"
#include "sim/engine.h"

namespace firn::sim {

enum class Bottleneck : std::uint8_t { kNone, kLength, kLink, kMemory, kPlaces, kPrompts, kDecoding };

struct Diagnosis {
  Bottleneck what = Bottleneck::kNone;
  // All that is at its limit while somebody waits, what names the first of them. Which of several others wait for, a
  // share of time cannot say: advise() runs it.
  std::vector<Bottleneck> limits = {};
  bool overload = false;  // more comes than is done: the queue decides the wait
  // Shares of the time in which somebody waited, weighted by how many; of the whole run where nobody did.
  double busy = 0, memory = 0, places = 0, link = 0;
  std::string text;  // a few sentences
};
std::string to_string(Bottleneck what);  // link, memory, places, prompts, decoding, length, none
Diagnosis diagnose(const EngineOptions& options, const EngineResult& result);

struct Tried {
  std::string change;    // the flags that make it, such as "--host-budget 2000GiB": with them the program runs the same
  std::string note;      // what must be known of it, such as a codec's loss
  bool complete = true;  // false: given up, because too many were too late for it to help
  double ttft_p50 = 0, ttft_p95 = 0;
  std::uint64_t refused = 0;  // longer than the pool
  bool gains = false;
};
struct WhatIf {  // twice of something, whether or not it can be had
  Bottleneck what = Bottleneck::kNone;
  double ttft_p95 = 0;  // of what was first run where it is no quicker
  bool gains = false;
};
struct Advice {
  Diagnosis diagnosis;          // with what was found out by running
  std::vector<WhatIf> what_if;  // what gains most first
  std::vector<Tried> tried;     // what gains most first
  Objective objective;          // what "carries" means
  HighestRate rate;
  Load load;
  std::string next;  // one or two sentences; empty where nothing was tried
};
struct AdviceOptions {
  std::uint32_t most_devices = 8;
  double seconds = 2;  // within which a first token is wanted; where prompts alone take longer, what is near that
  std::vector<CodecFigures> codecs = {};  // others to try below the pool
  std::uint32_t codec_threads = 1;
};
// result is of options, run to its end. Some twenty-five runs; the same advice for the same run.
Result<Advice> advise(const std::string& path, const TraceOptions& trace, const EngineOptions& options,
                      const EngineResult& result, const AdviceOptions& how, const Tick& tick = {});

}  // namespace firn::sim
