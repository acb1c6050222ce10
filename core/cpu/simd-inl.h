// simd-inl.h: loads and rounding shared by the kernels, compiled once for each instruction set (Highway's convention:
// the guard toggles so that every pass over a kernel file sees this text anew).
#if defined(FIRN_CORE_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FIRN_CORE_CPU_SIMD_INL_H_
#undef FIRN_CORE_CPU_SIMD_INL_H_
#else
#define FIRN_CORE_CPU_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

#include "core/cpu/half.h"
#include "firn/model.h"

HWY_BEFORE_NAMESPACE();
namespace firn::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DU = hn::RebindToUnsigned<DF>;
using DU16 = hn::Rebind<std::uint16_t, DF>;
using DF16 = hn::Rebind<hwy::float16_t, DF>;
using VF = hn::Vec<DF>;

inline constexpr std::uint32_t kLanes = static_cast<std::uint32_t>(hn::MaxLanes(DF()));
static_assert(kLanes == 1 || kLanes == 4 || kLanes == 8 || kLanes == 16,
              "16 lanes of a sum must fall on whole registers");

// Where the machine converts f16 itself, Highway uses that; its emulation elsewhere knows no infinities.
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
inline constexpr bool kHasF16 = true;
#else
inline constexpr bool kHasF16 = false;
#endif

template <Dtype kType>
HWY_INLINE VF load_f32(const std::byte* from) {
  const DF df;
  const DU du;
  if constexpr (kType == Dtype::kF32) {
    return hn::LoadU(df, reinterpret_cast<const float*>(from));
  } else if constexpr (kType == Dtype::kF16 && kHasF16) {
    return hn::PromoteTo(df, hn::LoadU(DF16(), reinterpret_cast<const hwy::float16_t*>(from)));
  } else {
    const auto bits = hn::PromoteTo(du, hn::LoadU(DU16(), reinterpret_cast<const std::uint16_t*>(from)));
    if constexpr (kType == Dtype::kBf16) return hn::BitCast(df, hn::ShiftLeft<16>(bits));
    // f16: moves the magnitude into place and multiplies by 2^112, which is exact, subnormals included.
    const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(du, 0x8000u)));
    const auto magnitude = hn::ShiftLeft<13>(hn::And(bits, hn::Set(du, 0x7FFFu)));
    const auto value = hn::BitCast(du, hn::Mul(hn::BitCast(df, magnitude), hn::Set(df, 0x1p112f)));
    const auto exponent = hn::Set(du, 0x7C00u);
    const auto infinite = hn::IfThenElseZero(hn::Eq(hn::And(bits, exponent), exponent), hn::Set(du, 0x7F800000u));
    return hn::BitCast(df, hn::Or(hn::Or(value, infinite), sign));
  }
}

// Rounds to nearest even and stores kLanes elements.
template <Dtype kType>
HWY_INLINE void store_f32(VF value, std::byte* to) {
  const DF df;
  const DU du;
  if constexpr (kType == Dtype::kF32) {
    hn::StoreU(value, df, reinterpret_cast<float*>(to));
  } else if constexpr (kType == Dtype::kF16 && kHasF16) {
    hn::StoreU(hn::DemoteTo(DF16(), value), DF16(), reinterpret_cast<hwy::float16_t*>(to));
  } else if constexpr (kType == Dtype::kF16) {
    HWY_ALIGN float lanes[kLanes];
    hn::Store(value, df, lanes);
    for (std::uint32_t i = 0; i < kLanes; ++i) store_u16(to + 2 * i, f16_of(lanes[i]));
  } else {  // bf16: half an ulp, less the odd bit, carries into the part that stays; a NaN stays one
    const auto bits = hn::BitCast(du, value);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
    const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFFu)));
    const auto quiet = hn::Or(bits, hn::Set(du, 0x400000u));
    const auto is_nan = hn::RebindMask(du, hn::IsNaN(value));
    const auto result = hn::And(hn::IfThenElse(is_nan, quiet, rounded), hn::Set(du, 0xFFFF0000u));
    const hn::Rebind<hwy::bfloat16_t, DF> db;
    hn::StoreU(hn::DemoteTo(db, hn::BitCast(df, result)), db, reinterpret_cast<hwy::bfloat16_t*>(to));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace firn::cpu
HWY_AFTER_NAMESPACE();

#endif
