// trace_recorder.h: writes what a manager is asked as a trace that `firn simulate` reads back: one line a sequence,
// with the time of its begin, the lengths of prompt and answer, and a name for each full block of the prompt. A name
// says which blocks are equal and nothing of what is in them. What is still alive when the manager goes is not in the
// trace.
//
// The file belongs to one recorder at a time (flock): a second one is refused, and "%p" in the name is the process's
// number, for ranks that share a configuration. What the file has stays: a recording goes on behind it, in time too,
// and half a line at its end, of a process that was killed, is cut off. Readable by its owner alone.
//
// A line is in the file when its sequence has ended: a process that is killed loses nothing. Lines are in the order in
// which sequences began as far as the last kReordered of them, or kReorderedBytes, can tell: those are kept, and a line
// that belongs before some of them is written there, with them behind it.
// What cannot be written is counted and said once on stderr; the file keeps whole lines, and later ones are tried anew.
// Threads: the manager's lock. Memory: metadata_bytes(), and for a moment one line that is longer than that.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "firn/ids.h"
#include "firn/key.h"
#include "firn/status.h"

namespace firn {

class TraceRecorder {
 public:
  static constexpr std::size_t kReordered = 1024, kReorderedBytes = 1u << 20;
  // kUnavailable: another recorder has the file. kIo: it cannot be written.
  static Result<std::unique_ptr<TraceRecorder>> open(const std::string& file);
  ~TraceRecorder();
  static constexpr std::uint64_t metadata_bytes() { return 2 * kReorderedBytes + kReordered * 128; }

  // The first sequence begins: times count from here.
  void start(Instant now) {
    if (start_ns_ < 0) start_ns_ = now.ns;
  }
  // A sequence has ended. keys: of the prompt's full blocks. No call of an engine fails because of a recording.
  void record(SeqId seq, Instant begun, std::uint32_t prompt_tokens, std::uint32_t output_tokens,
              std::span<const Key> keys) noexcept;

  struct Report {
    std::string file;
    std::uint64_t lines = 0, lost = 0;  // written; not written
    std::string last_error;             // empty: none
  };
  const Report& report() const { return report_; }
  void lose(std::uint64_t lines, const char* why) noexcept;

 private:
  TraceRecorder(int file, std::string name);
  Status go_on();                                                     // behind what the file has
  void settle(std::size_t bytes);                                     // keeps no more than these
  std::size_t write_at(std::uint64_t offset, std::string_view text);  // how much of it

  int file_;
  bool seeks_ = false;  // a regular file; another is only appended to
  bool said_ = false;
  Report report_;
  std::uint64_t settled_bytes_ = 0;            // of the file: whole lines before the kept ones
  std::map<std::uint64_t, std::string> kept_;  // by sequence: they are numbered in order of begin
  std::size_t kept_bytes_ = 0;
  std::int64_t start_ns_ = -1, first_ms_ = 0;  // first_ms_: where the time of what the file has ends
};

}  // namespace firn
