// planes.h: elements apart into byte planes and together again, and what tells whether a plane is worth coding. Plain
// loops over bytes, written so that compilers vectorise them; everything is integer arithmetic, so that every machine
// decides alike.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace firn {

inline constexpr std::size_t kMaxElementBytes = 4;

// Byte planes of one tensor: plane[p][i] is byte p of element i.
struct PlaneViews {
  std::size_t element_bytes = 0;
  std::array<const std::uint8_t*, kMaxElementBytes> plane{};
};

// Byte p of elements[i] goes to planes[p * stride + i].
void split_planes(const std::byte* elements, std::size_t count, std::size_t element_bytes, std::uint8_t* planes,
                  std::size_t stride);
// Elements [first, first + count) of the planes. reference: null, or one byte per channel to add to the top plane.
void merge_planes(const PlaneViews& planes, std::size_t first, std::size_t count, const std::uint8_t* reference,
                  std::size_t channels, std::byte* elements);

// The row that top-plane bytes of one tensor cluster around: the channel's usual sign, and the mean of the other seven
// bits. plane: rows of channels bytes. sums: 2 * channels of scratch.
void reference_row(std::span<const std::uint8_t> plane, std::size_t channels, std::uint16_t* sums, std::uint8_t* row);
// out[i] = plane[i] - row[i mod channels].
void subtract_row(std::span<const std::uint8_t> plane, std::size_t channels, const std::uint8_t* row,
                  std::uint8_t* out);

// Order-0 entropy of bytes in bits, times 256; of some of them, when there are many.
std::uint64_t estimate_bits_x256(std::span<const std::uint8_t> bytes);
// At least an eighth of the rows are copies of others, as values of the first layer are where tokens repeat.
bool rows_repeat(std::span<const std::uint8_t> plane, std::size_t channels);

}  // namespace firn
