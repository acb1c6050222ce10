// lossy_kernels.h: the arithmetic of lossy codecs over plain arrays of f32, vectorised for the machine it runs on.
//
// Every result is one chain of operations per element in an order that depends on nothing but the element: how many
// rows, columns or threads take part changes no bit. Sums of squares are kept in 8 lanes and folded in one order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "firn/model.h"

namespace firn::lossy {

void load(Dtype dtype, const std::byte* from, std::size_t count, float* to);
void store(Dtype dtype, const float* from, std::size_t count, std::byte* to);  // rounds to nearest even
std::uint16_t to_f16(float value);                                             // rounds to nearest even
float from_f16(std::uint16_t half);

double energy(const float* values, std::size_t count);               // sum of squares
double distance(const float* a, const float* b, std::size_t count);  // of differences
float largest(const float* values, std::size_t count);               // magnitude, of finite values
bool all_finite(const float* values, std::size_t count);

// Rows of `width` (a power of two) in place: orthonormal, its own inverse.
void hadamard(float* rows, std::size_t width, std::size_t row_count);

// codes[i] = clamp(round(values[i] * inverse), least, most), to nearest even.
void to_codes(const float* values, std::size_t count, float inverse, int least, int most, std::int8_t* codes);

// --- groups of coefficients: min-max integers with a shift and a scale in f16, both rounded before use ---
struct GroupScale {
  std::uint16_t shift = 0, scale = 0;  // value = shift + scale * code
  bool finite() const { return (shift & 0x7C00) != 0x7C00 && (scale & 0x7C00) != 0x7C00; }
};
GroupScale group_scale(const float* values, std::size_t count, std::uint32_t bits);
void group_codes(const float* values, std::size_t count, std::uint32_t bits, GroupScale scale, std::uint8_t* codes);
void group_values(const std::uint8_t* codes, std::size_t count, GroupScale scale, float* values);
// Sum of squares of what coding changes: what group_scale, group_codes and group_values give.
double group_error(const float* values, std::size_t count, std::uint32_t bits);

// --- projections: c += a b, each element of c one chain of fused multiply-adds over ascending k ---
// a: [rows][depth] with stride a_stride; basis: f16 [components][channels] with stride basis_stride.
// Forward: c[row][component] = sum over channels of a[row][channel] * basis[component][channel].
struct Projection {
  const float* a = nullptr;
  std::size_t a_stride = 0, rows = 0;
  const std::uint16_t* basis = nullptr;
  std::size_t basis_stride = 0;
  std::size_t components = 0, channels = 0;  // of basis, from where it points to
  float* c = nullptr;
  std::size_t c_stride = 0;
};
void project(const Projection& p);      // c: [rows][components], overwritten
void reconstruct(const Projection& p);  // a: [rows][components]; c: [rows][channels], overwritten

}  // namespace firn::lossy
