// nearest.h: what somebody probably meant.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace firn {

// Letters to insert, delete, replace or swap with a neighbour to get from a to b.
std::size_t edit_distance(std::string_view a, std::string_view b);
// The closest of candidates, the first of equals. For dotted keys the last part counts alone too, so that "budget"
// finds "pool.budget". Empty only if there are no candidates.
std::string nearest(std::string_view word, std::span<const std::string> candidates);

}  // namespace firn
