#include "core/trace_recorder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <string_view>
#include <utility>

namespace firn {
namespace {

constexpr std::string_view kTimestamp = "{\"timestamp\":";

std::string with_process(std::string name) {
  for (std::size_t at; (at = name.find("%p")) != std::string::npos;) name.replace(at, 2, std::to_string(getpid()));
  return name;
}

}  // namespace

TraceRecorder::TraceRecorder(int file, std::string name) : file_(file) { report_.file = std::move(name); }

Result<std::unique_ptr<TraceRecorder>> TraceRecorder::open(const std::string& file) {
  const std::string name = with_process(file);
  const int opened = ::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY, 0600);
  if (opened < 0)
    return Status(Code::kIo, fmt::format("trace.record: {} cannot be written: {}", name, std::strerror(errno)));
  std::unique_ptr<TraceRecorder> made(new TraceRecorder(opened, name));
  if (flock(opened, LOCK_EX | LOCK_NB) != 0)
    return Status(Code::kUnavailable,
                  fmt::format("trace.record: another manager writes {} at this moment; give each its own file, with %p "
                              "in the name for the process's number",
                              name));
  FIRN_TRY(made->go_on());
  return made;
}

// Finds the last whole line in what the file ends with.
Status TraceRecorder::go_on() {
  struct stat found;
  seeks_ = fstat(file_, &found) == 0 && S_ISREG(found.st_mode);
  if (!seeks_ || found.st_size == 0) return {};
  const auto size = static_cast<std::uint64_t>(found.st_size);
  std::string tail;
  for (std::uint64_t take = 4096;; take *= 2) {
    take = std::min(take, size);
    tail.resize(take);
    if (pread(file_, tail.data(), take, static_cast<off_t>(size - take)) != static_cast<ssize_t>(take))
      return Status(Code::kIo, fmt::format("trace.record: {} cannot be read: {}", report_.file, std::strerror(errno)));
    const std::size_t end = tail.rfind('\n');
    if (end == std::string::npos && take < size) continue;
    const std::size_t line_end = end == std::string::npos ? 0 : end + 1;
    settled_bytes_ = size - take + line_end;
    if (settled_bytes_ != size && ftruncate(file_, static_cast<off_t>(settled_bytes_)) != 0)
      return Status(Code::kIo, fmt::format("trace.record: {} ends in half a line that cannot be cut off: {}",
                                           report_.file, std::strerror(errno)));
    if (line_end == 0) return {};
    const std::size_t before = line_end < 2 ? std::string::npos : tail.rfind('\n', line_end - 2);
    if (before == std::string::npos && take < size) continue;
    const std::string_view line = std::string_view(tail).substr(before == std::string::npos ? 0 : before + 1);
    if (line.starts_with(kTimestamp))
      std::from_chars(line.data() + kTimestamp.size(), line.data() + line.size(), first_ms_);
    return {};
  }
}

TraceRecorder::~TraceRecorder() { close(file_); }

void TraceRecorder::record(SeqId seq, Instant begun, std::uint32_t prompt_tokens, std::uint32_t output_tokens,
                           std::span<const Key> keys) noexcept {
  try {
    start(begun);
    constexpr std::size_t kLongestName = 17;  // with its comma
    constexpr std::int64_t kNsPerMs = 1'000'000;
    std::string line;
    line.reserve(160 + keys.size() * kLongestName);
    auto to = std::back_inserter(line);
    fmt::format_to(to, "{}{},\"input_length\":{},\"output_length\":{},\"block_size\":{},\"hash_ids\":[", kTimestamp,
                   first_ms_ + std::max<std::int64_t>(0, begun.ns - start_ns_) / kNsPerMs, prompt_tokens, output_tokens,
                   kBlockTokens);
    // 53 bits: every reader of JSON has these exactly.
    for (std::size_t i = 0; i < keys.size(); ++i)
      fmt::format_to(to, "{}{}", i == 0 ? "" : ",", policy_name(keys[i]) >> 11);
    line += "]}\n";
    if (!seeks_ || line.size() > kReorderedBytes) {
      settle(0);
      if (const std::size_t wrote = write_at(settled_bytes_, line); wrote == line.size()) {
        settled_bytes_ += wrote;
        ++report_.lines;
      }
      return;
    }
    settle(kReorderedBytes - line.size());
    // What is behind it moves.
    std::uint64_t offset = settled_bytes_ + kept_bytes_;
    std::string text;
    const auto behind = kept_.upper_bound(index(seq));
    for (auto at = behind; at != kept_.end(); ++at) offset -= at->second.size();
    if (behind != kept_.end()) {
      text = line;
      for (auto at = behind; at != kept_.end(); ++at) text += at->second;
    }
    const auto mine = kept_.emplace(index(seq), std::move(line)).first;
    kept_bytes_ += mine->second.size();
    const std::string_view all = text.empty() ? std::string_view(mine->second) : std::string_view(text);
    std::size_t whole = write_at(offset, all);
    ++report_.lines;
    if (whole == all.size()) return;
    // Those at the end are not in the file now.
    for (auto at = mine; at != kept_.end();) {
      if (whole >= at->second.size()) {
        whole -= at->second.size();
        ++at;
        continue;
      }
      kept_bytes_ -= at->second.size();
      --report_.lines;
      at = kept_.erase(at);
      whole = 0;
    }
  } catch (...) {
    lose(1, "out of memory");
  }
}

void TraceRecorder::settle(std::size_t bytes) {
  while (!kept_.empty() && (kept_bytes_ > bytes || kept_.size() >= kReordered)) {
    const std::size_t first = kept_.begin()->second.size();
    settled_bytes_ += first;
    kept_bytes_ -= first;
    kept_.erase(kept_.begin());
  }
}

// Whole lines: where not all of it fits, what is behind the last one goes again, and is counted as lost.
std::size_t TraceRecorder::write_at(std::uint64_t offset, std::string_view text) {
  std::size_t done = 0;
  int error = 0;
  while (done < text.size()) {
    const ssize_t wrote = seeks_
                              ? pwrite(file_, text.data() + done, text.size() - done, static_cast<off_t>(offset + done))
                              : write(file_, text.data() + done, text.size() - done);
    if (wrote > 0) {
      done += static_cast<std::size_t>(wrote);
    } else if (wrote == 0 || errno != EINTR) {
      error = wrote == 0 ? ENOSPC : errno;
      break;
    }
  }
  if (done == text.size()) return done;
  const std::size_t last = done == 0 ? std::string_view::npos : text.rfind('\n', done - 1);
  const std::size_t whole = last == std::string_view::npos ? 0 : last + 1;
  if (seeks_ && ftruncate(file_, static_cast<off_t>(offset + whole)) != 0) error = errno;
  lose(static_cast<std::uint64_t>(std::count(text.begin() + static_cast<std::ptrdiff_t>(whole), text.end(), '\n')),
       std::strerror(error));
  return whole;
}

void TraceRecorder::lose(std::uint64_t lines, const char* why) noexcept {
  report_.lost += lines;
  try {
    report_.last_error = why;
  } catch (...) {
  }
  if (std::exchange(said_, true)) return;
  std::fprintf(stderr, "firn: trace.record: %s: requests could not be written: %s\n", report_.file.c_str(), why);
}

}  // namespace firn
