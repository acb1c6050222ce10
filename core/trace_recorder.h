// trace_recorder.h: writes what a manager is asked as a trace that `firn simulate` reads back: one line a sequence,
// with the time of its begin, the lengths of prompt and answer, and a name for each full block of the prompt. A name
// says which blocks are equal and nothing of what is in them. Lines are written when sequences end, in the order in
// which they began as far as kPending of them can tell; what is still alive when the manager goes is not in the trace.
// Threads: the manager's lock. Memory: kPending lines at most.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "firn/ids.h"
#include "firn/key.h"
#include "firn/status.h"

namespace firn {

class TraceRecorder {
 public:
  static constexpr std::size_t kPending = 1024;
  static Result<std::unique_ptr<TraceRecorder>> create(const std::string& file);
  ~TraceRecorder();
  // keys: of the prompt's full blocks.
  void record(SeqId seq, Instant begun, std::uint32_t prompt_tokens, std::uint32_t output_tokens,
              std::span<const Key> keys);

 private:
  explicit TraceRecorder(const std::string& file) : out_(file, std::ios::binary | std::ios::trunc) {}
  void write_first();
  std::ofstream out_;
  struct Line {
    Instant begun;
    std::string rest;
  };
  std::map<std::uint64_t, Line> pending_;  // by sequence: they are numbered in order of begin
  std::int64_t start_ns_ = -1;
};

}  // namespace firn
