// demo.h: the demonstration, as numbers. A model reads a document and answers a question; other sequences push the
// document out of the pool, which is then emptied and overwritten; the question is asked again, and the document comes
// back from the host tier. Nothing here is assumed: every number is measured in this run.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/break_even.h"
#include "cli/demo_lossy.h"
#include "cli/demo_second_device.h"
#include "cli/session.h"

namespace firn::cli {

// How a prefix can become usable, and what each way takes. Times of one kind, in the order measured.
struct Way {
  std::vector<double> wall_s, cpu_s;
  std::uint64_t tokens_reused = 0, pool_hits = 0, frames_read = 0;  // of one time
  void add(const Clock& time);
};

struct DemoReport {
  std::string model_name;
  std::uint32_t threads = 0;
  std::uint64_t token_bytes = 0;
  std::uint64_t pool_bytes = 0, pool_tokens = 0;  // pool_tokens: raw, in slots
  std::uint64_t host_bytes = 0;
  std::uint64_t frame_bytes = 0, raw_bytes = 0;        // in the host tier after the document was pushed out
  std::uint32_t prompt_tokens = 0, prefix_tokens = 0;  // prefix: what the second question reuses
  std::uint32_t other_tokens = 0;                      // of the sequences that push it out
  std::uint64_t slots_evicted = 0, slots_poisoned = 0;
  std::uint32_t blocks_compared = 0, blocks_equal = 0;  // hashes before demotion and after restore
  std::string question, answer;
  std::uint32_t answer_tokens = 0;
  bool answers_equal = false;          // first, restored, and recomputed without a host tier
  Clock first_read;                    // with demotion going on beside it
  Way recompute, restore, pool;        // of prefix_tokens
  Way short_recompute, short_restore;  // of short_tokens
  std::uint32_t short_tokens = 0;
  std::uint64_t decode_tokens_compared = 0;
  double decode_first_ms = 0, decode_restored_ms = 0;  // per token, before and after
  std::string device;                                  // that all this ran on
  SecondDevice second_device;
  LossyReport lossy;      // no rows: not asked for
  bool complete = false;  // false: a signal ended it before all was measured

  std::uint64_t host_tokens() const;  // that would fit at the ratio measured
  double ratio() const;
  BreakEven break_even() const;
};

struct DemoOptions {
  std::string model;
  Config config;
  int repeats = 5;
  std::uint32_t document_tokens = 3000;  // at least; whole paragraphs
  std::string second_device = "auto";
  bool lossy = true;
  // Prints what is in the report so far. Where a signal cannot be waited for, this is called, and the process ends.
  std::function<void()> on_signal;
};
// The parts in the order in which they are known.
enum class DemoPart : std::uint8_t { kFit, kStory, kTimes, kSecondDevice, kLossy };
// Hears of each part as soon as it is in the report. What was measured before a failure stays in it.
Status run_demo(const DemoOptions& options, const std::function<void(DemoPart)>& on_part, DemoReport& report);

}  // namespace firn::cli
