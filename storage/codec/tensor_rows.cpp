#include "storage/codec/tensor_rows.h"

#include <fmt/format.h>

#include <cstring>

namespace firn {

void gather(const TensorRows& rows, std::span<std::byte> out) {
  const std::size_t element_bytes = rows.shape.element_bytes;
  rows.for_each_piece([&](const std::byte* piece, std::size_t element, std::size_t count) {
    std::memcpy(out.data() + element * element_bytes, piece, count * element_bytes);
  });
}

Status scatter(std::span<const std::byte> from, const TensorRows& rows) {
  const std::size_t element_bytes = rows.shape.element_bytes;
  if (from.size() != rows.shape.bytes())
    return Status(Code::kCorrupt, fmt::format("stored bytes are {}, not {}", from.size(), rows.shape.bytes()));
  rows.for_each_piece([&](std::byte* piece, std::size_t element, std::size_t count) {
    std::memcpy(piece, from.data() + element * element_bytes, count * element_bytes);
  });
  return {};
}

}  // namespace firn
