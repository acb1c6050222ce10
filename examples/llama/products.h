// products.h: y = W x with W still quantised, for one token or a thousand.
//
// The promise is batch invariance: a token's result has the same bits whatever else is in the batch, however a prompt
// was cut into chunks, and on however many threads. Without it a prefix that comes back from a cache could not be
// compared, token by token, with one that was recomputed. It holds because every output is one chain, from the first
// column to the last, of  sum = fma(weight, x, sum),  and every path below keeps that chain: vectors run across
// outputs, never along a sum. It even holds across vector widths. OpenBLAS and its kin are not used for this very
// reason: they choose blocking, and with it the order of a sum, from the shape of the batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "examples/llama/gguf.h"
#include "firn/status.h"
#include "firn/thread_pool.h"

namespace firn::llama {

// A weight matrix, repacked so that kPanelRows outputs lie side by side. As large as in the file, but for the last
// panel. Threads: const calls from any thread.
class Matrix {
 public:
  static constexpr std::size_t kPanelRows = 32;

  Matrix() = default;
  // Copies the tensor, which may then go away. Its columns must be a multiple of kQuantBlock.
  static Result<Matrix> pack(const Tensor& tensor);

  std::size_t rows() const { return rows_; }
  std::size_t columns() const { return columns_; }
  std::size_t bytes() const { return packed_.size() * sizeof(Line); }
  std::size_t panels() const { return (rows_ + kPanelRows - 1) / kPanelRows; }

 private:
  friend struct MatrixAccess;  // products.cpp
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  TensorType type_ = TensorType::kF32;
  std::size_t rows_ = 0, columns_ = 0;
  std::vector<Line> packed_;  // panel after panel; in each, block after block of kQuantBlock columns
};

// One product of a batch. x is [token][columns], y is [token][rows]; they do not overlap.
struct Product {
  const Matrix* weights = nullptr;
  const float* x = nullptr;
  float* y = nullptr;
};

// Computes all products for the same number of tokens; together, because several small ones keep all threads busy.
void multiply(ThreadPool& threads, std::size_t tokens, std::span<const Product> products);

}  // namespace firn::llama
