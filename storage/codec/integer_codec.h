// integer_codec.h: the arithmetic of q8 and q4 over one tensor, apart from frames. Layout: docs/frame.md, section 6.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "firn/status.h"
#include "storage/codec/tensor_rows.h"

namespace firn {

struct IntegerTensor {
  std::uint32_t bits = 8;  // 4 or 8
  bool mix = false;        // Hadamard transform of each head first
};
struct IntegerSums {
  double error_energy = 0, energy = 0;  // squares summed: of the changes, and of the values
};
// False: a block has no scale, and out is of no use. head_sums, if given, is [token][head][2]: each head's changes and
// values, or -1 and 0 if it has no scale; then all heads are gone through.
bool code_integers(const TensorRows& rows, const IntegerTensor& tensor, std::span<std::byte> out, IntegerSums& sums,
                   std::span<float> head_sums = {});
// kCorrupt: of another size, or a scale is no number.
Status check_integers(const TensorShape& shape, std::uint32_t bits, std::span<const std::byte> payload);
// payload was checked. Blocks that take no part are not written.
void decode_integers(std::span<const std::byte> payload, const IntegerTensor& tensor, const TensorRows& rows);

}  // namespace firn
