// byte_source.h: a file as a stream of bytes, unpacked on the way: plain, gzip and zstd are told apart by their first
// bytes, not by their names. Memory does not grow with the file.
// Threads: one caller at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "firn/status.h"

namespace firn::sim {

// all * part / whole, rounded down: how much of `all` a part of the whole stands for. All of it where the whole is 0.
constexpr std::uint64_t part_of(std::uint64_t all, std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? all : static_cast<std::uint64_t>(static_cast<unsigned __int128>(all) * part / whole);
}

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // kIo: there is no such file, or it cannot be read. "-" is standard input.
  static Result<std::unique_ptr<ByteSource>> open(const std::string& path);
  // At least one byte, or 0 at the end. kCorrupt: the packed stream is damaged or ends too early.
  virtual Result<std::size_t> read(std::span<char> out) = 0;
  // Of the file's own bytes, packed: how many have been used, not read ahead; and how many there are (0: unknown).
  virtual std::uint64_t packed_read() const = 0;
  virtual std::uint64_t packed_size() const = 0;
};

// Lines of a source. A line longer than kMaxLine is cut off and told as an error by next().
class LineSource {
 public:
  static constexpr std::size_t kMaxLine = std::size_t{64} << 20;
  static constexpr std::size_t kMaxPeek = std::size_t{256} << 20;
  explicit LineSource(std::unique_ptr<ByteSource> source);
  // The next line without its end; false: there is none. The view is good until the next call.
  Result<bool> next(std::string_view& line);
  // What comes next, without taking it: that many bytes, kMaxPeek at most, or fewer at the end.
  Result<std::string_view> peek(std::size_t bytes);
  void skip(std::size_t bytes) { begin_ += bytes; }      // of what peek() showed
  std::uint64_t line_number() const { return number_; }  // of the line next() gave last; from 1
  bool truncated() const { return truncated_; }          // that line was too long, and its rest was skipped
  const ByteSource& source() const { return *source_; }
  // Of the source's own bytes, those whose lines were given out: what waits in the buffer does not count.
  std::uint64_t packed_read() const;

 private:
  Result<bool> fill();  // more bytes behind end_; false: the end
  std::unique_ptr<ByteSource> source_;
  std::string buffer_;
  std::size_t begin_ = 0, end_ = 0;
  std::uint64_t number_ = 0, unpacked_ = 0;
  bool truncated_ = false, done_ = false;
};

}  // namespace firn::sim
