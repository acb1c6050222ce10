// break_even.h: from which prompt length on restoring beats recomputing, out of measured times.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace firn::cli {

// One length at which both were measured.
struct Measured {
  std::uint32_t tokens = 0;
  double restore_s = 0, recompute_s = 0;
};

struct BreakEven {
  double restore_fixed_s = 0, restore_token_s = 0;  // restoring n tokens takes fixed + n * token
  double recompute_token_s = 0;                     // recomputing takes n * token, at short lengths
  // In tokens, a multiple of the block; nothing: restoring never pays here.
  std::optional<std::uint32_t> tokens;
};

// A line through the two restores; recomputing is taken at its cheapest, the short one, because attention makes long
// ones dearer per token. short_one.tokens < long_one.tokens.
BreakEven break_even(const Measured& short_one, const Measured& long_one);

double median(std::span<const double> values);  // not empty

}  // namespace firn::cli
