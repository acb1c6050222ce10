#include "storage/codec/entropy.h"

#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "core/base/check.h"
#include "storage/codec/bytes.h"

namespace firn {
namespace {

constexpr int kWindowBits = -15;  // raw DEFLATE: sections have a checksum of their own
constexpr int kDeflateLevel = 6, kZstdLevel = 3;

// One each per thread, kept from call to call. One that cannot be made throws, and is made by the next call.
struct Deflater {
  z_stream stream{};
  Deflater() {
    if (deflateInit2(&stream, kDeflateLevel, Z_DEFLATED, kWindowBits, 8, Z_DEFAULT_STRATEGY) != Z_OK)
      throw std::bad_alloc();
  }
  ~Deflater() { deflateEnd(&stream); }
  Deflater(const Deflater&) = delete;
  Deflater& operator=(const Deflater&) = delete;
};
struct Inflater {
  z_stream stream{};
  Inflater() {
    if (inflateInit2(&stream, kWindowBits) != Z_OK) throw std::bad_alloc();
  }
  ~Inflater() { inflateEnd(&stream); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
};

template <class From, class To>
bool point(z_stream& stream, std::span<From> from, std::span<To> out) {
  constexpr std::size_t kMost = std::numeric_limits<uInt>::max();
  if (from.size() > kMost || out.size() > kMost) return false;
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(from.data()));
  stream.avail_in = static_cast<uInt>(from.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  return true;
}

Status corrupt(const char* what) { return Status(Code::kCorrupt, what); }

Status inflate_all(std::span<const std::byte> from, std::span<std::byte> out) {
  thread_local Inflater inflater;
  z_stream& stream = inflater.stream;
  FIRN_CHECK(inflateReset(&stream) == Z_OK);
  if (!point(stream, from, out)) return corrupt("a DEFLATE stream is too large");
  const int result = inflate(&stream, Z_FINISH);
  if (result == Z_MEM_ERROR) throw std::bad_alloc();
  if (result != Z_STREAM_END || stream.avail_out != 0) return corrupt("a DEFLATE stream does not decode to its size");
  if (stream.avail_in != 0) return corrupt("bytes behind a DEFLATE stream");
  return {};
}

Status unzstd_all(std::span<const std::byte> from, std::span<std::byte> out) {
  struct Free {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  thread_local std::unique_ptr<ZSTD_DCtx, Free> context;
  if (!context) context.reset(ZSTD_createDCtx());
  if (!context) throw std::bad_alloc();
  if (from.size() < 4 || load_le<std::uint32_t>(from.data()) != ZSTD_MAGICNUMBER) return corrupt("no zstd frame");
  if (ZSTD_getFrameContentSize(from.data(), from.size()) != out.size()) return corrupt("a zstd frame of another size");
  if (ZSTD_findFrameCompressedSize(from.data(), from.size()) != from.size())
    return corrupt("a zstd frame has another end");
  const std::size_t got = ZSTD_decompressDCtx(context.get(), out.data(), out.size(), from.data(), from.size());
  if (ZSTD_getErrorCode(got) == ZSTD_error_memory_allocation) throw std::bad_alloc();
  if (ZSTD_isError(got) || got != out.size()) return corrupt("a zstd frame does not decode");
  return {};
}

}  // namespace

std::size_t entropy_encode(EntropyCoder coder, std::span<const std::byte> from, std::span<std::byte> out) {
  if (coder == EntropyCoder::kZstd) {
    struct Free {
      void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
    };
    thread_local std::unique_ptr<ZSTD_CCtx, Free> context;
    if (!context) context.reset(ZSTD_createCCtx());
    if (!context) throw std::bad_alloc();
    const std::size_t bytes =
        ZSTD_compressCCtx(context.get(), out.data(), out.size(), from.data(), from.size(), kZstdLevel);
    if (ZSTD_getErrorCode(bytes) == ZSTD_error_memory_allocation) throw std::bad_alloc();
    return ZSTD_isError(bytes) ? 0 : bytes;
  }
  if (coder != EntropyCoder::kDeflate) return 0;
  thread_local Deflater deflater;
  z_stream& stream = deflater.stream;
  FIRN_CHECK(deflateReset(&stream) == Z_OK);
  if (!point(stream, from, out)) return 0;
  return deflate(&stream, Z_FINISH) == Z_STREAM_END ? out.size() - stream.avail_out : 0;
}

Status entropy_decode(EntropyCoder coder, std::span<const std::byte> from, std::span<std::byte> out) {
  if (coder == EntropyCoder::kDeflate) return inflate_all(from, out);
  if (coder == EntropyCoder::kZstd) return unzstd_all(from, out);
  if (from.size() != out.size()) return corrupt("packed codes are of another size");
  if (!from.empty()) std::memcpy(out.data(), from.data(), from.size());
  return {};
}

}  // namespace firn
