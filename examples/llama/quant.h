// quant.h: the number formats of a GGUF tensor, and the plain meaning of each. Everything fast is tested against this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace firn::llama {

// The values are those of the file format. Q4 and Q8 code 32 consecutive weights of a row together:
//   Q4_0  f16 scale, 16 bytes of nibbles           weight = scale * (nibble - 8)
//   Q4_1  f16 scale, f16 minimum, 16 nibble bytes  weight = scale * nibble + minimum
//   Q8_0  f16 scale, 32 signed bytes               weight = scale * byte
// The low nibbles of the 16 bytes are weights 0 to 15, the high ones are 16 to 31.
enum class TensorType : std::uint32_t { kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8 };

inline constexpr std::size_t kQuantBlock = 32;  // weights coded together by the Q types

std::string_view to_string(TensorType type);
bool is_supported(TensorType type);

// Bytes of a row of `columns` weights; for the Q types columns is a multiple of kQuantBlock.
std::size_t row_bytes(TensorType type, std::size_t columns);
// Weights coded together: kQuantBlock, or 1 for the plain types.
std::size_t block_columns(TensorType type);

float half_to_float(std::uint16_t half);
// One row, as numbers: row is row_bytes(type, out.size()) long.
void dequantise_row(TensorType type, std::span<const std::byte> row, std::span<float> out);

}  // namespace firn::llama
