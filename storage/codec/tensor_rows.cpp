#include "storage/codec/tensor_rows.h"

#include <fmt/format.h>

#include <cstring>

namespace firn {

void gather(const TensorRows& rows, std::span<std::byte> out) {
  const std::size_t element_bytes = rows.shape.element_bytes;
  rows.for_each_piece([&](const std::byte* piece, std::size_t element, std::size_t count) {
    std::byte* to = out.data() + element * element_bytes;
    if (to != piece) std::memcpy(to, piece, count * element_bytes);  // a device may have put it there already
  });
}

Status scatter(std::span<const std::byte> from, const TensorRows& rows) {
  const std::size_t element_bytes = rows.shape.element_bytes;
  if (from.size() != rows.shape.bytes())
    return Status(Code::kCorrupt, fmt::format("stored bytes are {}, not {}", from.size(), rows.shape.bytes()));
  rows.for_each_piece([&](std::byte* piece, std::size_t element, std::size_t count) {
    const std::byte* at = from.data() + element * element_bytes;
    if (piece != at) std::memcpy(piece, at, count * element_bytes);  // a device may take it from there
  });
  return {};
}

}  // namespace firn
