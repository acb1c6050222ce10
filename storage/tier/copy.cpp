#include "storage/tier/copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace firn {

#if defined(__x86_64__)
namespace {

constexpr std::size_t kLine = 64;
// Below this a frame is likely read back before it would have left the cache.
constexpr std::size_t kStreamAtLeast = 4096;

struct Loops {
  void (*stream)(std::byte* to, const std::byte* from, std::size_t lines);  // to: aligned to kLine
  void (*plain)(std::byte* to, const std::byte* from, std::size_t lines);
};

__attribute__((target("avx2"))) void stream_avx2(std::byte* to, const std::byte* from, std::size_t lines) {
  for (std::size_t i = 0; i < lines; ++i, to += kLine, from += kLine) {
    _mm_prefetch(reinterpret_cast<const char*>(from) + 8 * kLine, _MM_HINT_NTA);
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), a);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 32), b);
  }
}

__attribute__((target("avx2"))) void plain_avx2(std::byte* to, const std::byte* from, std::size_t lines) {
  for (std::size_t i = 0; i < lines; ++i, to += kLine, from += kLine) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32), b);
  }
}

void stream_sse2(std::byte* to, const std::byte* from, std::size_t lines) {
  for (std::size_t i = 0; i < lines; ++i, to += kLine, from += kLine)
    for (std::size_t part = 0; part < kLine; part += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + part),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + part)));
}

void plain_sse2(std::byte* to, const std::byte* from, std::size_t lines) {
  for (std::size_t i = 0; i < lines; ++i, to += kLine, from += kLine)
    for (std::size_t part = 0; part < kLine; part += 16)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + part),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + part)));
}

const Loops& loops() {
  static const Loops chosen =
      __builtin_cpu_supports("avx2") ? Loops{stream_avx2, plain_avx2} : Loops{stream_sse2, plain_sse2};
  return chosen;
}

}  // namespace

void copy_past_caches(std::byte* to, const std::byte* from, std::size_t bytes) {
  if (bytes < kStreamAtLeast) return copy_through_caches(to, from, bytes);
  const std::size_t head = (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine;
  std::memcpy(to, from, head);
  const std::size_t lines = (bytes - head) / kLine, tail = head + lines * kLine;
  loops().stream(to + head, from + head, lines);
  std::memcpy(to + tail, from + tail, bytes - tail);
  _mm_sfence();  // streamed stores are ordered by nothing else, not even by a lock
}

void copy_through_caches(std::byte* to, const std::byte* from, std::size_t bytes) {
  const std::size_t lines = bytes / kLine, tail = lines * kLine;
  loops().plain(to, from, lines);
  std::memcpy(to + tail, from + tail, bytes - tail);
}

#else  // elsewhere memcpy has neither fault

void copy_past_caches(std::byte* to, const std::byte* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
void copy_through_caches(std::byte* to, const std::byte* from, std::size_t bytes) { std::memcpy(to, from, bytes); }

#endif

}  // namespace firn
