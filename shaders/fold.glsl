// fold.glsl: adds a partial result to an accumulator: the arithmetic that both ways of folding share, so that a row's
// bits do not depend on which way it went.

// One rounding each: a driver that fused them would round a row differently from one pipeline to the next.
float plus(float a, float b) {
  precise float c = a + b;
  return c;
}
float times(float a, float b) {
  precise float c = a * b;
  return c;
}

// By their bits: a driver may take a NaN for a number, and assume that there are none.
bool is_nan(float x) { return (floatBitsToUint(x) & 0x7FFFFFFFu) > 0x7F800000u; }
float nan() { return uintBitsToFloat(0x7FC00000u); }
// Sums of weights. Plus zero: nothing was seen. Minus zero: something was, and every weight is zero.
bool untouched(float sum) { return floatBitsToUint(sum) == 0u; }
float all_zero() { return uintBitsToFloat(0x80000000u); }
bool is_all_zero(float sum) { return floatBitsToUint(sum) == 0x80000000u; }

const float kNothingKept = -1.0;  // a factor of values that are none, and are not looked at
struct FoldFactors {
  float maximum, sum;  // of the accumulator afterwards
  float kept, added;   // what its values and the new ones are multiplied with
};

// sum is not untouched: somebody saw something. A maximum of minus zero weights is that of nothing, and not looked at.
FoldFactors fold_factors(float state_maximum, float state_sum, float maximum, float sum) {
  if (untouched(state_sum)) return FoldFactors(maximum, sum, kNothingKept, 1.0);
  if (is_nan(state_sum) || is_nan(sum)) return FoldFactors(state_maximum, nan(), 1.0, 1.0);
  // Zero times what has weight zero: 0 of a number, NaN of an infinity.
  if (is_all_zero(sum)) return FoldFactors(state_maximum, state_sum, 1.0, 0.0);
  if (is_all_zero(state_sum)) return FoldFactors(maximum, sum, 0.0, 1.0);
  const float top = max(state_maximum, maximum);
  const float kept = exp(state_maximum - top);
  const float added = exp(maximum - top);
  return FoldFactors(top, fma(sum, added, times(state_sum, kept)), kept, added);
}
// What a row's result is.
float normalised(float value, float sum) {
  if (untouched(sum)) return 0.0;
  return is_nan(sum) || is_nan(value) || is_all_zero(sum) ? nan() : value / sum;
}
float fold_value(float state_value, float value, FoldFactors f) {
  if (f.kept == kNothingKept) return value;
  return fma(value, f.added, times(state_value, f.kept));
}
