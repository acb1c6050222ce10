#include "storage/codec/planes.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/base/check.h"
#include "firn/ids.h"

namespace firn {
namespace {

constexpr std::size_t kMaxRows = kMaxExtentBlocks * kBlockTokens;

void split_16(const std::byte* elements, std::size_t count, std::uint8_t* __restrict low,
              std::uint8_t* __restrict high) {
  for (std::size_t i = 0; i < count; ++i) {
    low[i] = static_cast<std::uint8_t>(elements[2 * i]);
    high[i] = static_cast<std::uint8_t>(elements[2 * i + 1]);
  }
}

void split_32(const std::byte* elements, std::size_t count, std::uint8_t* planes, std::size_t stride) {
  for (std::size_t p = 0; p < 4; ++p)
    for (std::size_t i = 0; i < count; ++i) planes[p * stride + i] = static_cast<std::uint8_t>(elements[4 * i + p]);
}

void merge_8(const std::uint8_t* bytes, const std::uint8_t* reference, std::size_t count, std::byte* __restrict out) {
  if (reference == nullptr) {
    std::memcpy(out, bytes, count);
    return;
  }
  for (std::size_t i = 0; i < count; ++i)
    out[i] = static_cast<std::byte>(static_cast<std::uint8_t>(bytes[i] + reference[i]));
}

// Top-plane bytes come in already restored.
void merge_16(const std::uint8_t* low, const std::uint8_t* high, std::size_t count, std::byte* __restrict out) {
  for (std::size_t i = 0; i < count; ++i) {
    out[2 * i] = static_cast<std::byte>(low[i]);
    out[2 * i + 1] = static_cast<std::byte>(high[i]);
  }
}

void merge_16_add(const std::uint8_t* low, const std::uint8_t* high, const std::uint8_t* reference, std::size_t count,
                  std::byte* __restrict out) {
  for (std::size_t i = 0; i < count; ++i) {
    out[2 * i] = static_cast<std::byte>(low[i]);
    out[2 * i + 1] = static_cast<std::byte>(static_cast<std::uint8_t>(high[i] + reference[i]));
  }
}

void merge_32(const PlaneViews& planes, std::size_t first, const std::uint8_t* reference, std::size_t count,
              std::byte* __restrict out) {
  const std::uint8_t *p0 = planes.plane[0] + first, *p1 = planes.plane[1] + first, *p2 = planes.plane[2] + first,
                     *p3 = planes.plane[3] + first;
  for (std::size_t i = 0; i < count; ++i) {
    out[4 * i] = static_cast<std::byte>(p0[i]);
    out[4 * i + 1] = static_cast<std::byte>(p1[i]);
    out[4 * i + 2] = static_cast<std::byte>(p2[i]);
    const std::uint8_t add = reference != nullptr ? reference[i] : std::uint8_t{0};
    out[4 * i + 3] = static_cast<std::byte>(static_cast<std::uint8_t>(p3[i] + add));
  }
}

// log2(n) times 256, between powers of two by a straight line: an estimate that is the same on every machine.
std::uint64_t log2_x256(std::uint64_t n) {
  const auto floor = static_cast<unsigned>(std::bit_width(n) - 1);
  return std::uint64_t{floor} * 256 + (((n << 8) >> floor) - 256);
}

}  // namespace

void split_planes(const std::byte* elements, std::size_t count, std::size_t element_bytes, std::uint8_t* planes,
                  std::size_t stride) {
  FIRN_DCHECK(element_bytes == 1 || element_bytes == 2 || element_bytes == 4);
  if (element_bytes == 1)
    std::memcpy(planes, elements, count);
  else if (element_bytes == 2)
    split_16(elements, count, planes, planes + stride);
  else
    split_32(elements, count, planes, stride);
}

void merge_planes(const PlaneViews& planes, std::size_t first, std::size_t count, const std::uint8_t* reference,
                  std::size_t channels, std::byte* elements) {
  while (count > 0) {  // a row at a time: the reference starts again with each
    const std::size_t channel = first % channels;
    const std::size_t n = reference == nullptr ? count : std::min(count, channels - channel);
    const std::uint8_t* add = reference == nullptr ? nullptr : reference + channel;
    if (planes.element_bytes == 1)
      merge_8(planes.plane[0] + first, add, n, elements);
    else if (planes.element_bytes == 4)
      merge_32(planes, first, add, n, elements);
    else if (add != nullptr)
      merge_16_add(planes.plane[0] + first, planes.plane[1] + first, add, n, elements);
    else
      merge_16(planes.plane[0] + first, planes.plane[1] + first, n, elements);
    first += n;
    count -= n;
    elements += n * planes.element_bytes;
  }
}

void reference_row(std::span<const std::uint8_t> plane, std::size_t channels, std::uint16_t* sums, std::uint8_t* row) {
  const std::size_t rows = plane.size() / channels;
  FIRN_DCHECK(rows > 0 && rows <= kMaxRows);  // 128 * 127 fits 16 bits
  std::uint16_t* signs = sums + channels;
  std::fill(sums, sums + 2 * channels, std::uint16_t{0});
  for (std::size_t r = 0; r < rows; ++r) {
    const std::uint8_t* bytes = plane.data() + r * channels;
    for (std::size_t c = 0; c < channels; ++c) {
      sums[c] = static_cast<std::uint16_t>(sums[c] + (bytes[c] & 0x7f));
      signs[c] = static_cast<std::uint16_t>(signs[c] + (bytes[c] >> 7));
    }
  }
  for (std::size_t c = 0; c < channels; ++c) {
    const std::size_t mean = (sums[c] + rows / 2) / rows;
    row[c] = static_cast<std::uint8_t>(mean | (2u * signs[c] > rows ? 0x80u : 0u));
  }
}

void subtract_row(std::span<const std::uint8_t> plane, std::size_t channels, const std::uint8_t* row,
                  std::uint8_t* out) {
  for (std::size_t at = 0; at < plane.size(); at += channels)
    for (std::size_t c = 0; c < channels; ++c) out[at + c] = static_cast<std::uint8_t>(plane[at + c] - row[c]);
}

std::uint64_t estimate_bits_x256(std::span<const std::uint8_t> bytes) {
  // 64 runs of 64 bytes, spread over the whole: enough to tell noise from a plane that codes to 15/16 or less.
  constexpr std::size_t kRun = 64, kRuns = 64;
  if (bytes.empty()) return 0;
  std::array<std::uint32_t, 256> counts{}, more{};  // two, so that equal neighbours do not wait for each other
  std::uint64_t sampled = 0;
  const bool sample = bytes.size() > kRun * kRuns;
  const std::size_t run = sample ? kRun : bytes.size();
  for (std::size_t i = 0; i < (sample ? kRuns : 1); ++i) {
    const std::size_t first = sample ? i * (bytes.size() - kRun) / (kRuns - 1) : 0;
    for (std::size_t k = 0; k + 1 < run; k += 2) ++counts[bytes[first + k]], ++more[bytes[first + k + 1]];
    if (run % 2 != 0) ++counts[bytes[first + run - 1]];
    sampled += run;
  }
  std::uint64_t bits = sampled * log2_x256(sampled), saved = 0;
  for (std::size_t b = 0; b < counts.size(); ++b)
    if (const std::uint64_t n = counts[b] + more[b]; n != 0) saved += n * log2_x256(n);
  bits -= std::min(bits, saved);
  return bits * bytes.size() / sampled;
}

bool rows_repeat(std::span<const std::uint8_t> plane, std::size_t channels) {
  const std::size_t rows = plane.size() / channels;
  FIRN_DCHECK(rows <= kMaxRows);
  std::array<std::uint64_t, kMaxRows> hashes;
  for (std::size_t r = 0; r < rows; ++r) hashes[r] = XXH3_64bits(plane.data() + r * channels, channels);
  const auto end = hashes.begin() + static_cast<std::ptrdiff_t>(rows);
  std::sort(hashes.begin(), end);
  const auto distinct = static_cast<std::size_t>(std::unique(hashes.begin(), end) - hashes.begin());
  return (rows - distinct) * 8 >= rows && rows > 1;
}

}  // namespace firn
