#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "examples/llama/activations.cpp"
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)  // as products.cpp
#include <hwy/foreach_target.h>  // must come before highway.h

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <array>
#include <cmath>

#include "examples/llama/activations.h"
#include "examples/llama/check.h"

HWY_BEFORE_NAMESPACE();
namespace firn::llama::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void swiglu(float* HWY_RESTRICT gate, const float* HWY_RESTRICT up, std::size_t count) {
  const hn::CappedTag<float, 32> d;
  const auto one = hn::Set(d, 1.0f), most = hn::Set(d, 88.0f);  // Exp of more is not defined
  for (std::size_t i = 0; i < count; i += hn::Lanes(d)) {
    const auto g = hn::LoadU(d, gate + i);
    const auto divisor = hn::Add(one, hn::Exp(d, hn::Min(hn::Neg(g), most)));
    hn::StoreU(hn::Mul(hn::Div(g, divisor), hn::LoadU(d, up + i)), d, gate + i);
  }
}

}  // namespace firn::llama::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace firn::llama {
HWY_EXPORT(swiglu);

void rms_norm(std::span<const float> x, std::span<const float> weight, float epsilon, std::span<float> out) {
  // Eight sums of doubles in a fixed order: quick enough, and the same on every machine.
  std::array<double, 8> sums{};
  for (std::size_t i = 0; i < x.size(); ++i) sums[i % 8] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const double square = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  const double mean = square / static_cast<double>(x.size());
  const auto factor = static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(epsilon)));
  for (std::size_t i = 0; i < x.size(); ++i) out[i] = x[i] * factor * weight[i];
}

void fill_rotation(std::span<const float> inverse_frequencies, std::size_t position, std::span<float> cosines,
                   std::span<float> sines) {
  for (std::size_t i = 0; i < inverse_frequencies.size(); ++i) {
    const double angle = static_cast<double>(position) * static_cast<double>(inverse_frequencies[i]);
    cosines[i] = static_cast<float>(std::cos(angle));
    sines[i] = static_cast<float>(std::sin(angle));
  }
}

void rotate(std::span<const float> cosines, std::span<const float> sines, float* head) {
  for (std::size_t i = 0; i < cosines.size(); ++i) {
    const float a = head[2 * i], b = head[2 * i + 1];
    head[2 * i] = a * cosines[i] - b * sines[i];
    head[2 * i + 1] = a * sines[i] + b * cosines[i];
  }
}

void swiglu(std::span<float> gate, std::span<const float> up) {
  LLAMA_CHECK(gate.size() % 32 == 0 && gate.size() == up.size());
  HWY_DYNAMIC_DISPATCH(swiglu)(gate.data(), up.data(), gate.size());
}

void add(std::span<float> x, std::span<const float> more) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += more[i];
}

}  // namespace firn::llama
#endif  // HWY_ONCE
