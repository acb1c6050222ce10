#include "cli/break_even.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "firn/ids.h"

namespace firn::cli {

BreakEven break_even(const Measured& short_one, const Measured& long_one) {
  BreakEven result;
  const double step = long_one.tokens - short_one.tokens;
  // Noise may tilt the line; neither part of it can be negative.
  result.restore_token_s = std::max(0.0, (long_one.restore_s - short_one.restore_s) / step);
  result.restore_fixed_s = std::max(0.0, short_one.restore_s - short_one.tokens * result.restore_token_s);
  result.recompute_token_s = short_one.recompute_s / short_one.tokens;
  const double gain = result.recompute_token_s - result.restore_token_s;
  if (gain <= 0) return result;
  const double blocks = std::ceil(result.restore_fixed_s / gain / kBlockTokens);
  result.tokens = kBlockTokens * static_cast<std::uint32_t>(std::clamp(blocks, 1.0, 1e6));
  return result;
}

double median(std::span<const double> values) {
  std::vector<double> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  const std::size_t middle = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

}  // namespace firn::cli
