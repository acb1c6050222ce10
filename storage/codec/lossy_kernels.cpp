#include "storage/codec/lossy_kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/cpu/half.h"

namespace firn::lossy {
#ifndef FIRN_STORAGE_CODEC_RANGE_
#define FIRN_STORAGE_CODEC_RANGE_
struct Range {
  float least, most;
};
#endif
}  // namespace firn::lossy

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "storage/codec/lossy_kernels.cpp"
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
//
#include "core/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace firn::lossy {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using cpu::HWY_NAMESPACE::DF;
using cpu::HWY_NAMESPACE::kLanes;
using cpu::HWY_NAMESPACE::VF;

template <Dtype kType>
void load_as(const std::byte* from, std::size_t count, float* to) {
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    hn::StoreU(cpu::HWY_NAMESPACE::load_f32<kType>(from + i * bytes_of(kType)), DF(), to + i);
  if (i == count) return;
  alignas(64) std::byte piece[kLanes * 4] = {};
  alignas(64) float lanes[kLanes];
  std::memcpy(piece, from + i * bytes_of(kType), (count - i) * bytes_of(kType));
  hn::Store(cpu::HWY_NAMESPACE::load_f32<kType>(piece), DF(), lanes);
  std::memcpy(to + i, lanes, (count - i) * sizeof(float));
}

template <Dtype kType>
void store_as(const float* from, std::size_t count, std::byte* to) {
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    cpu::HWY_NAMESPACE::store_f32<kType>(hn::LoadU(DF(), from + i), to + i * bytes_of(kType));
  if (i == count) return;
  alignas(64) float lanes[kLanes] = {};
  alignas(64) std::byte piece[kLanes * 4];
  std::memcpy(lanes, from + i, (count - i) * sizeof(float));
  cpu::HWY_NAMESPACE::store_f32<kType>(hn::Load(DF(), lanes), piece);
  std::memcpy(to + i * bytes_of(kType), piece, (count - i) * bytes_of(kType));
}

void load_any(Dtype dtype, const std::byte* from, std::size_t count, float* to) {
  if (dtype == Dtype::kF16) return load_as<Dtype::kF16>(from, count, to);
  if (dtype == Dtype::kBf16) return load_as<Dtype::kBf16>(from, count, to);
  load_as<Dtype::kF32>(from, count, to);
}

void store_any(Dtype dtype, const float* from, std::size_t count, std::byte* to) {
  if (dtype == Dtype::kF16) return store_as<Dtype::kF16>(from, count, to);
  if (dtype == Dtype::kBf16) return store_as<Dtype::kBf16>(from, count, to);
  store_as<Dtype::kF32>(from, count, to);
}

// The compiler vectorises the plain loops below for each target; lanes are written out where an order must be kept.
double energy_of(const float* values, std::size_t count) {
  double lanes[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (std::size_t j = 0; j < 8; ++j) lanes[j] += static_cast<double>(values[i + j]) * values[i + j];
  for (std::size_t j = 0; i < count; ++i, ++j) lanes[j] += static_cast<double>(values[i]) * values[i];
  for (std::size_t half = 4; half != 0; half /= 2)
    for (std::size_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  return lanes[0];
}

double distance_of(const float* a, const float* b, std::size_t count) {
  double lanes[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (std::size_t j = 0; j < 8; ++j) {
      const double d = static_cast<double>(a[i + j]) - b[i + j];
      lanes[j] += d * d;
    }
  for (std::size_t j = 0; i < count; ++i, ++j) {
    const double d = static_cast<double>(a[i]) - b[i];
    lanes[j] += d * d;
  }
  for (std::size_t half = 4; half != 0; half /= 2)
    for (std::size_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  return lanes[0];
}

void hadamard_rows(float* rows, std::size_t width, std::size_t row_count) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  for (std::size_t r = 0; r < row_count; ++r) {
    float* row = rows + r * width;
    for (std::size_t half = 1; half < width; half *= 2)
      for (std::size_t first = 0; first < width; first += 2 * half)
        for (std::size_t i = first; i < first + half; ++i) {
          const float a = row[i], b = row[i + half];
          row[i] = a + b;
          row[i + half] = a - b;
        }
    for (std::size_t i = 0; i < width; ++i) row[i] *= scale;
  }
}

void codes_of(const float* values, std::size_t count, float inverse, int least, int most, std::int8_t* codes) {
  for (std::size_t i = 0; i < count; ++i) {
    // Adding and taking away 1.5 * 2^23 rounds to nearest even; clamped first, so that it always can.
    const float scaled = std::min(std::max(values[i] * inverse, static_cast<float>(least)), static_cast<float>(most));
    const float rounded = (scaled + 12582912.0f) - 12582912.0f;
    codes[i] = static_cast<std::int8_t>(static_cast<int>(rounded));
  }
}

Range range_of(const float* values, std::size_t count) {
  float least[8], most[8];
  for (std::size_t j = 0; j < 8; ++j) least[j] = most[j] = values[0];
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (std::size_t j = 0; j < 8; ++j) {
      least[j] = values[i + j] < least[j] ? values[i + j] : least[j];
      most[j] = values[i + j] > most[j] ? values[i + j] : most[j];
    }
  for (; i < count; ++i) {
    least[0] = std::min(least[0], values[i]);
    most[0] = std::max(most[0], values[i]);
  }
  for (std::size_t j = 1; j < 8; ++j) {
    least[0] = std::min(least[0], least[j]);
    most[0] = std::max(most[0], most[j]);
  }
  return {least[0], most[0]};
}

void codes_in_range(const float* values, std::size_t count, float shift, float inverse, float most,
                    std::uint8_t* codes) {
  for (std::size_t i = 0; i < count; ++i) {
    const float scaled = (values[i] - shift) * inverse;
    const float clamped = scaled < 0.0f ? 0.0f : scaled > most ? most : scaled;
    codes[i] = static_cast<std::uint8_t>(static_cast<int>((clamped + 12582912.0f) - 12582912.0f));
  }
}

void values_of(const std::uint8_t* codes, std::size_t count, float shift, float scale, float* values) {
  for (std::size_t i = 0; i < count; ++i) values[i] = shift + scale * static_cast<float>(codes[i]);
}

double error_in_range(const float* values, std::size_t count, float shift, float scale, float inverse, float most) {
  float lanes[8] = {};
  std::size_t i = 0;
  const auto error = [&](float value) {
    const float scaled = (value - shift) * inverse;
    const float clamped = scaled < 0.0f ? 0.0f : scaled > most ? most : scaled;
    const float d = value - (shift + scale * ((clamped + 12582912.0f) - 12582912.0f));
    return d * d;
  };
  for (; i + 8 <= count; i += 8)
    for (std::size_t j = 0; j < 8; ++j) lanes[j] += error(values[i + j]);
  for (std::size_t j = 0; i < count; ++i, ++j) lanes[j] += error(values[i]);
  double sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

// --- products ---
constexpr std::size_t kRows = 6, kVectors = 2, kColumns = kVectors * kLanes, kDepth = 256;

// c[rows][kColumns] = (first ? 0 : c) + a[rows][depth] * panel[depth][kColumns].
template <std::size_t kRowCount>
HWY_INLINE void tile(const float* a, std::size_t a_stride, const float* panel, std::size_t depth, float* c,
                     std::size_t c_stride, bool first) {
  VF sum[kRowCount][kVectors];
  for (std::size_t r = 0; r < kRowCount; ++r)
    for (std::size_t v = 0; v < kVectors; ++v)
      sum[r][v] = first ? hn::Zero(DF()) : hn::LoadU(DF(), c + r * c_stride + v * kLanes);
  for (std::size_t k = 0; k < depth; ++k) {
    const VF b0 = hn::Load(DF(), panel + k * kColumns), b1 = hn::Load(DF(), panel + k * kColumns + kLanes);
    for (std::size_t r = 0; r < kRowCount; ++r) {
      const VF x = hn::Set(DF(), a[r * a_stride + k]);
      sum[r][0] = hn::MulAdd(x, b0, sum[r][0]);
      sum[r][1] = hn::MulAdd(x, b1, sum[r][1]);
    }
  }
  for (std::size_t r = 0; r < kRowCount; ++r)
    for (std::size_t v = 0; v < kVectors; ++v) hn::StoreU(sum[r][v], DF(), c + r * c_stride + v * kLanes);
}

void tile_rows(const float* a, std::size_t a_stride, std::size_t rows, const float* panel, std::size_t depth, float* c,
               std::size_t c_stride, bool first) {
  std::size_t r = 0;
  for (; r + kRows <= rows; r += kRows)
    tile<kRows>(a + r * a_stride, a_stride, panel, depth, c + r * c_stride, c_stride, first);
  for (; r + 2 <= rows; r += 2) tile<2>(a + r * a_stride, a_stride, panel, depth, c + r * c_stride, c_stride, first);
  if (r < rows) tile<1>(a + r * a_stride, a_stride, panel, depth, c + r * c_stride, c_stride, first);
}

// Columns [column, column + count) of depth [k, k + depth) of the matrix on the right, as f32, zeros behind.
// basis: [components][channels]; right-hand side of a projection is its transpose.
void pack_transposed(const Projection& p, std::size_t column, std::size_t count, std::size_t k, std::size_t depth,
                     float* panel) {
  alignas(64) float row[kDepth];
  if (count < kColumns) std::memset(panel, 0, depth * kColumns * sizeof(float));
  for (std::size_t j = 0; j < count; ++j) {
    load_as<Dtype::kF16>(reinterpret_cast<const std::byte*>(p.basis + (column + j) * p.basis_stride + k), depth, row);
    for (std::size_t i = 0; i < depth; ++i) panel[i * kColumns + j] = row[i];
  }
}

void pack(const Projection& p, std::size_t column, std::size_t count, std::size_t k, std::size_t depth, float* panel) {
  if (count < kColumns) std::memset(panel, 0, depth * kColumns * sizeof(float));
  for (std::size_t i = 0; i < depth; ++i)
    load_as<Dtype::kF16>(reinterpret_cast<const std::byte*>(p.basis + (k + i) * p.basis_stride + column), count,
                         panel + i * kColumns);
}

template <class Pack>
void multiply(const Projection& p, std::size_t columns, std::size_t total_depth, Pack&& pack_panel) {
  alignas(64) static thread_local float panel[kDepth * kColumns];
  for (std::size_t k = 0; k < total_depth; k += kDepth) {
    const std::size_t depth = std::min(kDepth, total_depth - k);
    for (std::size_t column = 0; column < columns; column += kColumns) {
      const std::size_t count = std::min(kColumns, columns - column);
      pack_panel(p, column, count, k, depth, panel);
      if (count == kColumns) {
        tile_rows(p.a + k, p.a_stride, p.rows, panel, depth, p.c + column, p.c_stride, k == 0);
        continue;
      }
      for (std::size_t r = 0; r < p.rows; ++r) {  // the last columns, through a row that has room
        alignas(64) float c[kColumns] = {};
        std::memcpy(c, p.c + r * p.c_stride + column, count * sizeof(float));
        tile<1>(p.a + k + r * p.a_stride, p.a_stride, panel, depth, c, kColumns, k == 0);
        std::memcpy(p.c + r * p.c_stride + column, c, count * sizeof(float));
      }
    }
  }
}

void project_rows(const Projection& p) { multiply(p, p.components, p.channels, pack_transposed); }
void reconstruct_rows(const Projection& p) { multiply(p, p.channels, p.components, pack); }

}  // namespace HWY_NAMESPACE
}  // namespace firn::lossy
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace firn::lossy {
HWY_EXPORT(load_any);
HWY_EXPORT(store_any);
HWY_EXPORT(energy_of);
HWY_EXPORT(distance_of);
HWY_EXPORT(hadamard_rows);
HWY_EXPORT(codes_of);
HWY_EXPORT(range_of);
HWY_EXPORT(codes_in_range);
HWY_EXPORT(values_of);
HWY_EXPORT(error_in_range);
HWY_EXPORT(project_rows);
HWY_EXPORT(reconstruct_rows);

void load(Dtype dtype, const std::byte* from, std::size_t count, float* to) {
  HWY_DYNAMIC_DISPATCH(load_any)(dtype, from, count, to);
}
void store(Dtype dtype, const float* from, std::size_t count, std::byte* to) {
  HWY_DYNAMIC_DISPATCH(store_any)(dtype, from, count, to);
}
std::uint16_t to_f16(float value) { return cpu::f16_of(value); }
float from_f16(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16, magnitude = half & 0x7FFFu;
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const std::uint32_t infinite = (magnitude & 0x7C00u) == 0x7C00u ? 0x7F800000u : 0;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | infinite | sign);
}
double energy(const float* values, std::size_t count) { return HWY_DYNAMIC_DISPATCH(energy_of)(values, count); }
double distance(const float* a, const float* b, std::size_t count) {
  return HWY_DYNAMIC_DISPATCH(distance_of)(a, b, count);
}
float largest(const float* values, std::size_t count) {
  float most = 0;
  for (std::size_t i = 0; i < count; ++i) most = std::max(most, std::fabs(values[i]));
  return most;
}
bool all_finite(const float* values, std::size_t count) {
  std::uint32_t infinite = 0;
  for (std::size_t i = 0; i < count; ++i)
    infinite |= (std::bit_cast<std::uint32_t>(values[i]) & 0x7F800000u) == 0x7F800000u ? 1 : 0;
  return infinite == 0;
}
void hadamard(float* rows, std::size_t width, std::size_t row_count) {
  HWY_DYNAMIC_DISPATCH(hadamard_rows)(rows, width, row_count);
}
void to_codes(const float* values, std::size_t count, float inverse, int least, int most, std::int8_t* codes) {
  HWY_DYNAMIC_DISPATCH(codes_of)(values, count, inverse, least, most, codes);
}
GroupScale group_scale(const float* values, std::size_t count, std::uint32_t bits) {
  const auto range = HWY_DYNAMIC_DISPATCH(range_of)(values, count);
  const std::uint16_t shift = to_f16(range.least);
  const float steps = static_cast<float>((1u << bits) - 1);
  return {shift, to_f16(std::max(0.0f, range.most - from_f16(shift)) / steps)};
}

namespace {
float inverse_of(GroupScale scale) {
  const float width = from_f16(scale.scale);
  return width == 0 ? 0 : 1.0f / width;  // the smallest f16 has a reciprocal in f32
}
float most_of(std::uint32_t bits) { return static_cast<float>((1u << bits) - 1); }
}  // namespace

void group_codes(const float* values, std::size_t count, std::uint32_t bits, GroupScale scale, std::uint8_t* codes) {
  HWY_DYNAMIC_DISPATCH(codes_in_range)(values, count, from_f16(scale.shift), inverse_of(scale), most_of(bits), codes);
}
void group_values(const std::uint8_t* codes, std::size_t count, GroupScale scale, float* values) {
  HWY_DYNAMIC_DISPATCH(values_of)(codes, count, from_f16(scale.shift), from_f16(scale.scale), values);
}
double group_error(const float* values, std::size_t count, std::uint32_t bits) {
  const GroupScale scale = group_scale(values, count, bits);
  return HWY_DYNAMIC_DISPATCH(error_in_range)(values, count, from_f16(scale.shift), from_f16(scale.scale),
                                              inverse_of(scale), most_of(bits));
}
void project(const Projection& p) { HWY_DYNAMIC_DISPATCH(project_rows)(p); }
void reconstruct(const Projection& p) { HWY_DYNAMIC_DISPATCH(reconstruct_rows)(p); }

}  // namespace firn::lossy
#endif
