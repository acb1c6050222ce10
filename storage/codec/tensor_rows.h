// tensor_rows.h: the keys or the values of one layer of one extent, in the order of a frame ([token][head][dim]),
// wherever the blocks that hold them are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "firn/device.h"
#include "firn/ids.h"
#include "firn/status.h"

namespace firn {

struct TensorShape {
  std::uint32_t heads = 0, dim = 0, element_bytes = 0, token_count = 0;
  Dtype dtype = Dtype::kF16;
  std::size_t channels() const { return std::size_t{heads} * dim; }
  std::size_t row_bytes() const { return channels() * element_bytes; }
  std::size_t elements() const { return channels() * token_count; }
  std::size_t bytes() const { return elements() * element_bytes; }
};

struct TensorRows {
  TensorShape shape;
  std::span<const BlockView> views;  // one per block; k == 0: the block takes no part
  bool values = false;               // V, else K

  // Calls f(bytes, element, count) for each longest contiguous piece within a block: `count` elements at `bytes`, of
  // which the first is number `element` of the tensor. A piece is whole rows or lies within one.
  template <class F>
  void for_each_piece(F&& f) const {
    const std::size_t head_bytes = std::size_t{shape.dim} * shape.element_bytes;
    for (std::size_t block = 0; block < views.size(); ++block) {
      const BlockView& view = views[block];
      if (view.k == 0 || shape.dim == 0) continue;
      auto* base = reinterpret_cast<std::byte*>(values ? view.v : view.k);
      const std::size_t token_stride = values ? view.v_token_stride : view.token_stride;
      const std::size_t head_stride = values ? view.v_head_stride : view.head_stride;
      const std::size_t first = block * kBlockTokens * shape.channels();
      const bool whole_rows = shape.heads == 1 || head_stride == head_bytes;
      if (whole_rows && token_stride == shape.row_bytes()) {
        f(base, first, kBlockTokens * shape.channels());
        continue;
      }
      for (std::uint32_t token = 0; token < kBlockTokens; ++token) {
        std::byte* row = base + token * token_stride;
        const std::size_t element = first + token * shape.channels();
        if (whole_rows) {
          f(row, element, shape.channels());
          continue;
        }
        for (std::uint32_t head = 0; head < shape.heads; ++head)
          f(row + head * head_stride, element + std::size_t{head} * shape.dim, std::size_t{shape.dim});
      }
    }
  }
};

// All elements, in the order of a frame. out holds rows.shape.bytes().
void gather(const TensorRows& rows, std::span<std::byte> out);
// kCorrupt: from has another size.
Status scatter(std::span<const std::byte> from, const TensorRows& rows);

}  // namespace firn
