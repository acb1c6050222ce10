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

struct FoldFactors {
  float maximum, sum;  // of the accumulator afterwards
  float kept, added;   // what its values and the new ones are multiplied with
};

// sum is not 0: somebody saw something.
FoldFactors fold_factors(float state_maximum, float state_sum, float maximum, float sum) {
  if (state_sum == 0.0) return FoldFactors(maximum, sum, 0.0, 1.0);
  const float top = max(state_maximum, maximum);
  const float kept = exp(state_maximum - top);
  const float added = exp(maximum - top);
  return FoldFactors(top, fma(sum, added, times(state_sum, kept)), kept, added);
}
float fold_value(float state_value, float value, FoldFactors f) {
  if (f.kept == 0.0 && f.added == 1.0) return value;
  return fma(value, f.added, times(state_value, f.kept));
}
