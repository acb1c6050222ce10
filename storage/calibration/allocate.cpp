#include "storage/calibration/allocate.h"

#include <algorithm>
#include <limits>

#include "core/base/check.h"
#include "storage/codec/codec_calls.h"
#include "storage/codec/lossy_kernels.h"

namespace firn {
namespace {

constexpr std::uint64_t kUnitBits = 2;  // every cost is a multiple: codes of 2, 4 and 8 bits, 32 for shift and scale
constexpr std::size_t kValuesMeasured = 65536;
constexpr std::size_t kFewestTokens = 64;
constexpr std::uint8_t kDrop = 255;

std::uint64_t cost_units(std::uint32_t size, std::uint32_t bits) {
  return (std::uint64_t{size} * bits + 32) / kUnitBits;
}

}  // namespace

StackErrors measure_errors(const float* coefficients, std::size_t stride, std::size_t tokens, std::uint32_t components,
                           ThreadPool* threads) {
  StackErrors errors;
  errors.components = components;
  errors.dropped.resize(components);
  const auto n = static_cast<double>(tokens);
  for (std::size_t t = 0; t < tokens; ++t)
    for (std::uint32_t c = 0; c < components; ++c) {
      const double value = coefficients[t * stride + c];
      errors.dropped[c] += value * value / n;
    }
  for (std::size_t s = 0; s < kGroupSizes.size(); ++s) {
    const std::uint32_t size = kGroupSizes[s];
    if (size > components) break;
    const std::size_t starts = components - size + 1;
    for (auto& of_bits : errors.coded[s]) of_bits.resize(starts);
    const std::size_t used = std::min(tokens, std::max(kFewestTokens, kValuesMeasured / size));
    constexpr std::size_t kStartsAtATime = 16;
    for_each_task(threads, (starts + kStartsAtATime - 1) / kStartsAtATime, [&](std::size_t task) {
      for (std::size_t first = task * kStartsAtATime; first < std::min(starts, (task + 1) * kStartsAtATime); ++first) {
        double sums[kGroupBits.size()] = {}, energy = 0, all = 0;
        for (std::size_t i = 0; i < used; ++i) {
          const float* values = coefficients + i * tokens / used * stride + first;
          energy += lossy::energy(values, size);
          for (std::size_t b = 0; b < kGroupBits.size(); ++b) {
            if (size == 1 && b != 0) break;  // one value is its own shift, whatever the bits
            sums[b] += lossy::group_error(values, size, kGroupBits[b]);
          }
        }
        for (std::uint32_t c = 0; c < size; ++c) all += errors.dropped[first + c];
        // Few tokens may have more or less energy than all: errors of one group must compare with those of another.
        const double scale = energy > 0 ? all / energy : 0;
        for (std::size_t b = 0; b < kGroupBits.size(); ++b) errors.coded[s][b][first] = sums[size == 1 ? 0 : b] * scale;
      }
    });
  }
  return errors;
}

std::vector<StackPlan> allocate_bits(std::span<const StackErrors> stacks, std::uint64_t budget_bits) {
  std::size_t components = 0;
  std::uint64_t most = 0;  // nobody can spend more
  for (const StackErrors& stack : stacks) {
    components += stack.components;
    most += std::uint64_t{stack.components} * cost_units(1, 8);
  }
  const std::uint64_t budget = std::min(budget_bits / kUnitBits, most);
  const std::size_t width = budget + 1;
  // least[i % ring][b]: error of the first i components with at most b units. Groups look back kMaxGroup rows at most.
  const std::size_t ring = std::min<std::size_t>(components, kMaxGroup) + 1;
  std::vector<double> least(ring * width);
  std::vector<std::uint8_t> choice(components * width);
  std::size_t i = 0;
  for (const StackErrors& stack : stacks) {
    const std::size_t first = i;
    for (std::uint32_t c = 0; c < stack.components; ++c) {
      ++i;
      double* row = &least[i % ring * width];
      std::uint8_t* chosen = &choice[(i - 1) * width];
      const double* before = &least[(i - 1) % ring * width];
      for (std::size_t b = 0; b < width; ++b) row[b] = before[b] + stack.dropped[c];
      std::fill_n(chosen, width, kDrop);
      for (std::size_t s = 0; s < kGroupSizes.size() && kGroupSizes[s] <= i - first; ++s) {
        const double* base = &least[(i - kGroupSizes[s]) % ring * width];
        for (std::size_t t = 0; t < kGroupBits.size(); ++t) {
          const std::uint64_t cost = cost_units(kGroupSizes[s], kGroupBits[t]);
          const double error = stack.coded[s][t][i - kGroupSizes[s] - first];
          const auto option = static_cast<std::uint8_t>(s * kGroupBits.size() + t);
          for (std::size_t b = cost; b < width; ++b) {
            const double candidate = base[b - cost] + error;
            chosen[b] = candidate < row[b] ? option : chosen[b];
            row[b] = candidate < row[b] ? candidate : row[b];
          }
        }
      }
    }
  }
  // Back from the end, which reads the plans in reverse.
  std::vector<StackPlan> plans(stacks.size());
  std::size_t b = budget;
  for (std::size_t stack = stacks.size(); stack-- > 0;) {
    StackPlan& plan = plans[stack];
    for (std::size_t left = stacks[stack].components; left > 0;) {
      const std::uint8_t option = choice[(i - 1) * width + b];
      Group group{.size = 1, .bits = 0};
      if (option != kDrop) {
        group = {.size = kGroupSizes[option / kGroupBits.size()], .bits = kGroupBits[option % kGroupBits.size()]};
        b -= cost_units(group.size, group.bits);
      }
      i -= group.size;
      left -= group.size;
      if (group.bits == 0 && !plan.empty() && plan.back().bits == 0)
        plan.back().size += group.size;
      else if (group.bits != 0 || !plan.empty())  // bases are trimmed to the last component that is stored
        plan.push_back(group);
    }
    std::reverse(plan.begin(), plan.end());
  }
  return plans;
}

double planned_error(const StackErrors& stack, const StackPlan& plan) {
  double error = 0;
  std::size_t at = 0;
  for (const Group& group : plan) {
    if (group.bits == 0) {
      for (std::uint32_t c = 0; c < group.size; ++c) error += stack.dropped[at + c];
    } else {
      const auto s = std::find(kGroupSizes.begin(), kGroupSizes.end(), group.size) - kGroupSizes.begin();
      const auto t = std::find(kGroupBits.begin(), kGroupBits.end(), group.bits) - kGroupBits.begin();
      error += stack.coded[static_cast<std::size_t>(s)][static_cast<std::size_t>(t)][at];
    }
    at += group.size;
  }
  for (; at < stack.components; ++at) error += stack.dropped[at];
  return error;
}

}  // namespace firn
