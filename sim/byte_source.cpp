#include "sim/byte_source.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

namespace firn::sim {
namespace {

constexpr std::size_t kChunk = std::size_t{1} << 18;

struct FileCloser {
  void operator()(std::FILE* file) const {
    if (file != stdin) std::fclose(file);
  }
};
using File = std::unique_ptr<std::FILE, FileCloser>;

// The file's own bytes, in chunks.
struct Packed {
  File file;
  std::string path;
  std::uint64_t size = 0, read = 0;
  std::vector<char> bytes = std::vector<char>(kChunk);
  std::size_t begin = 0, end = 0;

  std::uint64_t used() const { return read - (end - begin); }
  Result<bool> fill() {
    if (begin < end) return true;
    begin = 0;
    end = std::fread(bytes.data(), 1, bytes.size(), file.get());
    read += end;
    if (end == 0 && std::ferror(file.get()) != 0)
      return Status(Code::kIo, fmt::format("{}: {}", path, std::strerror(errno)));
    return end > 0;
  }
};

class PlainSource final : public ByteSource {
 public:
  explicit PlainSource(Packed packed) : packed_(std::move(packed)) {}
  Result<std::size_t> read(std::span<char> out) override {
    FIRN_ASSIGN(const bool more, packed_.fill());
    if (!more) return std::size_t{0};
    const std::size_t count = std::min(out.size(), packed_.end - packed_.begin);
    std::memcpy(out.data(), packed_.bytes.data() + packed_.begin, count);
    packed_.begin += count;
    return count;
  }
  std::uint64_t packed_read() const override { return packed_.used(); }
  std::uint64_t packed_size() const override { return packed_.size; }

 private:
  Packed packed_;
};

class GzipSource final : public ByteSource {
 public:
  explicit GzipSource(Packed packed) : packed_(std::move(packed)) {
    // 32: zlib or gzip by their headers; 15: the largest window.
    ready_ = inflateInit2(&stream_, 15 + 32) == Z_OK;
  }
  ~GzipSource() override {
    if (ready_) inflateEnd(&stream_);
  }
  Result<std::size_t> read(std::span<char> out) override {
    if (!ready_) return Status(Code::kNoSpace, packed_.path + ": no memory to unpack gzip");
    while (true) {
      FIRN_ASSIGN(const bool more, packed_.fill());
      if (!more) {
        if (inside_) return Status(Code::kCorrupt, packed_.path + ": the gzip stream ends too early");
        return std::size_t{0};
      }
      if (!inside_) {  // another member begins
        inflateReset(&stream_);
        inside_ = true;
      }
      stream_.next_in = reinterpret_cast<Bytef*>(packed_.bytes.data() + packed_.begin);
      stream_.avail_in = static_cast<uInt>(packed_.end - packed_.begin);
      stream_.next_out = reinterpret_cast<Bytef*>(out.data());
      stream_.avail_out = static_cast<uInt>(std::min<std::size_t>(out.size(), 1u << 30));
      const uInt room = stream_.avail_out;
      const int code = inflate(&stream_, Z_NO_FLUSH);
      packed_.begin = packed_.end - stream_.avail_in;
      if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR)
        return Status(Code::kCorrupt, fmt::format("{}: the gzip stream is damaged near byte {}", packed_.path,
                                                  packed_.read - stream_.avail_in));
      if (code == Z_STREAM_END) inside_ = false;
      if (room != stream_.avail_out) return std::size_t{room - stream_.avail_out};
    }
  }
  std::uint64_t packed_read() const override { return packed_.used(); }
  std::uint64_t packed_size() const override { return packed_.size; }

 private:
  Packed packed_;
  z_stream stream_{};
  bool ready_ = false, inside_ = false;
};

class ZstdSource final : public ByteSource {
 public:
  explicit ZstdSource(Packed packed) : packed_(std::move(packed)), stream_(ZSTD_createDStream()) {}
  ~ZstdSource() override { ZSTD_freeDStream(stream_); }
  Result<std::size_t> read(std::span<char> out) override {
    if (stream_ == nullptr) return Status(Code::kNoSpace, packed_.path + ": no memory to unpack zstd");
    while (true) {
      FIRN_ASSIGN(const bool more, packed_.fill());
      ZSTD_inBuffer in{packed_.bytes.data(), packed_.end, packed_.begin};
      ZSTD_outBuffer to{out.data(), out.size(), 0};
      if (!more && !inside_) return std::size_t{0};
      // Memory that is not there is no damage of the file.
      const auto no_memory = [&] { return Status(Code::kNoSpace, packed_.path + ": no memory to unpack it"); };
      const std::size_t code = ZSTD_decompressStream(stream_, &to, &in);
      if (ZSTD_getErrorCode(code) == ZSTD_error_memory_allocation) return no_memory();
      if (ZSTD_isError(code) != 0)
        return Status(Code::kCorrupt, fmt::format("{}: the zstd stream is damaged near byte {}: {}", packed_.path,
                                                  packed_.read - (in.size - in.pos), ZSTD_getErrorName(code)));
      packed_.begin = in.pos;
      inside_ = code != 0;
      if (to.pos != 0) return to.pos;
      if (!more) return Status(Code::kCorrupt, packed_.path + ": the zstd stream ends too early");
    }
  }
  std::uint64_t packed_read() const override { return packed_.used(); }
  std::uint64_t packed_size() const override { return packed_.size; }

 private:
  Packed packed_;
  ZSTD_DStream* stream_;
  bool inside_ = false;  // within a frame
};

bool starts_with(const Packed& packed, std::string_view magic) {
  return std::string_view(packed.bytes.data(), packed.end).substr(0, magic.size()) == magic;
}

}  // namespace

Result<std::unique_ptr<ByteSource>> ByteSource::open(const std::string& path) {
  Packed packed;
  packed.path = path;
  struct stat info {};
  if (path != "-" && stat(path.c_str(), &info) == 0) {
    if (S_ISDIR(info.st_mode)) return Status(Code::kInvalidArgument, path + ": is a folder, not a trace file");
    packed.size = static_cast<std::uint64_t>(info.st_size);
  }
  packed.file.reset(path == "-" ? stdin : std::fopen(path.c_str(), "rb"));
  if (!packed.file) return Status(Code::kInvalidArgument, fmt::format("{}: {}", path, std::strerror(errno)));
  FIRN_TRY(packed.fill().status());
  if (starts_with(packed, "\x1f\x8b")) return std::unique_ptr<ByteSource>(new GzipSource(std::move(packed)));
  if (starts_with(packed, "\x28\xb5\x2f\xfd")) return std::unique_ptr<ByteSource>(new ZstdSource(std::move(packed)));
  return std::unique_ptr<ByteSource>(new PlainSource(std::move(packed)));
}

LineSource::LineSource(std::unique_ptr<ByteSource> source) : source_(std::move(source)), buffer_(kChunk, '\0') {}

Result<bool> LineSource::fill() {
  if (done_) return false;
  if (begin_ > 0) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  if (end_ == buffer_.size()) buffer_.resize(std::min(2 * buffer_.size(), kMaxPeek + kChunk));
  FIRN_ASSIGN(const std::size_t count, source_->read({buffer_.data() + end_, buffer_.size() - end_}));
  end_ += count;
  unpacked_ += count;
  done_ = count == 0;
  return !done_;
}

std::uint64_t LineSource::packed_read() const {
  return part_of(source_->packed_read(), unpacked_ - (end_ - begin_), unpacked_);
}

Result<std::string_view> LineSource::peek(std::size_t bytes) {
  while (end_ - begin_ < bytes) {
    FIRN_ASSIGN(const bool more, fill());
    if (!more) break;
  }
  return std::string_view(buffer_.data() + begin_, std::min(bytes, end_ - begin_));
}

Result<bool> LineSource::next(std::string_view& line) {
  truncated_ = false;
  std::size_t looked = 0;
  while (true) {
    const char* from = buffer_.data() + begin_;
    const void* newline = std::memchr(from + looked, '\n', end_ - begin_ - looked);
    std::size_t length = end_ - begin_, used = length;
    if (newline != nullptr) {
      length = static_cast<std::size_t>(static_cast<const char*>(newline) - from);
      used = length + 1;
    } else {
      looked = length;
      if (length >= kMaxLine) {  // skip its rest; what is kept says where it was
        truncated_ = true;
        begin_ += length;
        looked = 0;
        FIRN_ASSIGN(const bool more, fill());
        if (more) continue;
        length = used = 0;
      } else {
        FIRN_ASSIGN(const bool more, fill());
        if (more) continue;
        if (length == 0 && !truncated_) return false;
      }
    }
    const char* start = buffer_.data() + begin_;
    begin_ += used;
    ++number_;
    if (length > 0 && start[length - 1] == '\r') --length;
    line = std::string_view(start, length);
    return true;
  }
}

}  // namespace firn::sim
