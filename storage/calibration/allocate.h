// allocate.h: which components get how many bits. Dynamic programming over (first components, bits spent) on errors
// that were measured by quantising held-out coefficients, scales and shifts rounded as in a frame. Optimal for the
// errors it is given: the tests compare it with trying everything.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "firn/thread_pool.h"
#include "storage/codec/artefact.h"

namespace firn {

inline constexpr std::array<std::uint32_t, 5> kGroupSizes = {1, 16, 64, 256, 1024};
inline constexpr std::array<std::uint32_t, 3> kGroupBits = {2, 4, 8};

// Of one stack: what coding a group, or leaving a component out, costs in squared error a token.
struct StackErrors {
  std::uint32_t components = 0;
  std::vector<double> dropped;  // [component]
  // [size][bits][first component]; groups that reach beyond the components are absent (the vector is shorter).
  std::array<std::array<std::vector<double>, kGroupBits.size()>, kGroupSizes.size()> coded;
};

// coefficients: [tokens][stride], held out from the basis. Large groups are measured on fewer tokens, scaled by energy.
StackErrors measure_errors(const float* coefficients, std::size_t stride, std::size_t tokens, std::uint32_t components,
                           ThreadPool* threads);

// The plans of all stacks of a tensor, together at most budget_bits a token, with the least total error. Groups do not
// reach over stacks.
std::vector<StackPlan> allocate_bits(std::span<const StackErrors> stacks, std::uint64_t budget_bits);
double planned_error(const StackErrors& stack, const StackPlan& plan);

}  // namespace firn
