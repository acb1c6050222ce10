#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "examples/llama/products.cpp"
// No scalable vectors: the tiles below keep arrays of vectors in registers, which needs a size known to the compiler.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#include <hwy/foreach_target.h>  // must come before highway.h; compiles this file once per instruction set

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "examples/llama/check.h"
#include "examples/llama/products.h"

// How a panel's block (kPanelRows rows x kQuantBlock columns) is packed. Every part is a multiple of 64 bytes.
//   scales    f16 [32 rows]                      Q types
//   minima    f16 [32 rows]                      Q4_1
//   weights   u32 [4][32 rows], column 8g + i of a row in bits 4i of its word g     Q4 types
//             i8, f16 or f32 [32 columns][32 rows]                                  the others
HWY_BEFORE_NAMESPACE();
namespace firn::llama::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr std::size_t kRows = Matrix::kPanelRows;
constexpr std::size_t kMaxDepth = 768;  // columns expanded at a time: 96 KiB, which lives in the second-level cache
// Tokens multiplied at a time: two vectors of sums for each, as many as the registers hold.
constexpr std::size_t kTileTokens = HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON ? 12 : 6;

using D = hn::CappedTag<float, kRows / 2>;
using V = hn::Vec<D>;

HWY_INLINE V load_half(D d, const std::byte* from) {
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from)));
}

// Expands one block for two vectors of rows from `row` on, and hands use(column, weights0, weights1) every column in
// ascending order. Both paths below go through here, so a weight has the same bits in both.
template <TensorType kType, class Use>
HWY_INLINE void expand_q4(const std::byte* block, std::size_t row, Use& use) {
  const D d;
  const hn::Rebind<std::int32_t, D> di;
  const std::size_t n = hn::Lanes(d);
  constexpr bool kHasMinimum = kType == TensorType::kQ4_1;
  const V scale0 = load_half(d, block + 2 * row), scale1 = load_half(d, block + 2 * (row + n));
  const std::byte* minima = block + 2 * kRows;
  const V minimum0 = kHasMinimum ? load_half(d, minima + 2 * row) : hn::Zero(d);
  const V minimum1 = kHasMinimum ? load_half(d, minima + 2 * (row + n)) : hn::Zero(d);
  const auto* words = reinterpret_cast<const std::int32_t*>(block + 2 * kRows * (kHasMinimum ? 2 : 1)) + row;
  const auto low = hn::Set(di, 15), eight = hn::Set(di, 8);
  for (std::size_t g = 0; g < kQuantBlock / 8; ++g, words += kRows) {
    auto word0 = hn::LoadU(di, words), word1 = hn::LoadU(di, words + n);
    HWY_UNROLL(8)
    for (std::size_t i = 0; i < 8; ++i) {
      const auto nibble0 = hn::And(word0, low), nibble1 = hn::And(word1, low);
      if constexpr (kHasMinimum)
        use(8 * g + i, hn::MulAdd(scale0, hn::ConvertTo(d, nibble0), minimum0),
            hn::MulAdd(scale1, hn::ConvertTo(d, nibble1), minimum1));
      else
        use(8 * g + i, hn::Mul(scale0, hn::ConvertTo(d, hn::Sub(nibble0, eight))),
            hn::Mul(scale1, hn::ConvertTo(d, hn::Sub(nibble1, eight))));
      word0 = hn::ShiftRight<4>(word0);
      word1 = hn::ShiftRight<4>(word1);
    }
  }
}

template <class Use>
HWY_INLINE void expand_q8(const std::byte* block, std::size_t row, Use& use) {
  const D d;
  const hn::Rebind<std::int32_t, D> di;
  const hn::Rebind<std::int8_t, D> d8;
  const std::size_t n = hn::Lanes(d);
  const V scale0 = load_half(d, block + 2 * row), scale1 = load_half(d, block + 2 * (row + n));
  const auto* codes = reinterpret_cast<const std::int8_t*>(block + 2 * kRows) + row;
  for (std::size_t k = 0; k < kQuantBlock; ++k, codes += kRows)
    use(k, hn::Mul(scale0, hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, codes)))),
        hn::Mul(scale1, hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, codes + n)))));
}

template <TensorType kType, class Use>
HWY_INLINE void expand_plain(const std::byte* block, std::size_t row, Use& use) {
  const D d;
  const std::size_t n = hn::Lanes(d);
  for (std::size_t k = 0; k < kQuantBlock; ++k) {
    if constexpr (kType == TensorType::kF16) {
      use(k, load_half(d, block + 2 * (k * kRows + row)), load_half(d, block + 2 * (k * kRows + row + n)));
    } else {
      const auto* weights = reinterpret_cast<const float*>(block) + k * kRows + row;
      use(k, hn::LoadU(d, weights), hn::LoadU(d, weights + n));
    }
  }
}

template <TensorType kType, class Use>
HWY_INLINE void expand(const std::byte* block, std::size_t row, Use& use) {
  if constexpr (kType == TensorType::kQ4_0 || kType == TensorType::kQ4_1) expand_q4<kType>(block, row, use);
  if constexpr (kType == TensorType::kQ8_0) expand_q8(block, row, use);
  if constexpr (kType == TensorType::kF16 || kType == TensorType::kF32) expand_plain<kType>(block, row, use);
}

// A few tokens: weights are used the moment they are expanded.
template <std::size_t kTokens>
struct Accumulate {
  const float* x;
  std::size_t x_stride;
  V sum0[kTokens], sum1[kTokens];
  HWY_INLINE void operator()(std::size_t k, V weights0, V weights1) {
    for (std::size_t t = 0; t < kTokens; ++t) {
      const V value = hn::Set(D(), x[t * x_stride + k]);
      sum0[t] = hn::MulAdd(weights0, value, sum0[t]);
      sum1[t] = hn::MulAdd(weights1, value, sum1[t]);
    }
  }
};

template <TensorType kType, std::size_t kTokens>
void panel_times_few(const std::byte* panel, std::size_t block_bytes, std::size_t columns, const float* x, float* y,
                     std::size_t y_stride) {
  const D d;
  const std::size_t n = hn::Lanes(d);
  for (std::size_t row = 0; row < kRows; row += 2 * n) {
    Accumulate<kTokens> use;
    use.x = x;
    use.x_stride = columns;
    for (std::size_t t = 0; t < kTokens; ++t) use.sum0[t] = use.sum1[t] = hn::Zero(d);
    const std::byte* block = panel;
    for (std::size_t k = 0; k < columns; k += kQuantBlock, block += block_bytes, use.x += kQuantBlock)
      expand<kType>(block, row, use);
    for (std::size_t t = 0; t < kTokens; ++t) {
      hn::StoreU(use.sum0[t], d, y + t * y_stride + row);
      hn::StoreU(use.sum1[t], d, y + t * y_stride + row + n);
    }
  }
}

// Many tokens: up to kMaxDepth columns of a panel are expanded once, then every tile of tokens runs over them.
struct Spill {
  float* out;  // [column][kRows], at the row being expanded
  HWY_INLINE void operator()(std::size_t k, V weights0, V weights1) {
    const D d;
    hn::StoreU(weights0, d, out + k * kRows);
    hn::StoreU(weights1, d, out + k * kRows + hn::Lanes(d));
  }
};

template <TensorType kType>
void expand_panel(const std::byte* panel, std::size_t block_bytes, std::size_t depth, float* out) {
  const std::size_t n = hn::Lanes(D());
  for (std::size_t k = 0; k < depth; k += kQuantBlock, panel += block_bytes)
    for (std::size_t row = 0; row < kRows; row += 2 * n) {
      Spill use{out + k * kRows + row};
      expand<kType>(panel, row, use);
    }
}

// y[t][row] (+)= sum over k of weights[k][row] * x[t][k], for kTokens tokens. resume: go on from the sums in y.
template <std::size_t kTokens>
HWY_NOINLINE void tile(const float* HWY_RESTRICT weights, std::size_t depth, const float* HWY_RESTRICT x,
                       std::size_t x_stride, float* HWY_RESTRICT y, std::size_t y_stride, bool resume) {
  const D d;
  const std::size_t n = hn::Lanes(d);
  for (std::size_t row = 0; row < kRows; row += 2 * n) {
    V sum0[kTokens], sum1[kTokens];
    for (std::size_t t = 0; t < kTokens; ++t) {
      sum0[t] = resume ? hn::LoadU(d, y + t * y_stride + row) : hn::Zero(d);
      sum1[t] = resume ? hn::LoadU(d, y + t * y_stride + row + n) : hn::Zero(d);
    }
    const float* w = weights + row;
    for (std::size_t k = 0; k < depth; ++k, w += kRows) {
      const V weights0 = hn::Load(d, w), weights1 = hn::Load(d, w + n);
      HWY_UNROLL(12)
      for (std::size_t t = 0; t < kTokens; ++t) {
        const V value = hn::Set(d, x[t * x_stride + k]);
        sum0[t] = hn::MulAdd(weights0, value, sum0[t]);
        sum1[t] = hn::MulAdd(weights1, value, sum1[t]);
      }
    }
    for (std::size_t t = 0; t < kTokens; ++t) {
      hn::StoreU(sum0[t], d, y + t * y_stride + row);
      hn::StoreU(sum1[t], d, y + t * y_stride + row + n);
    }
  }
}

void tiles(const float* weights, std::size_t depth, const float* x, std::size_t x_stride, float* y,
           std::size_t y_stride, std::size_t tokens, bool resume) {
  std::size_t t = 0;
  for (; t + kTileTokens <= tokens; t += kTileTokens)
    tile<kTileTokens>(weights, depth, x + t * x_stride, x_stride, y + t * y_stride, y_stride, resume);
  for (; t + 4 <= tokens; t += 4)
    tile<4>(weights, depth, x + t * x_stride, x_stride, y + t * y_stride, y_stride, resume);
  for (; t + 2 <= tokens; t += 2)
    tile<2>(weights, depth, x + t * x_stride, x_stride, y + t * y_stride, y_stride, resume);
  if (t < tokens) tile<1>(weights, depth, x + t * x_stride, x_stride, y + t * y_stride, y_stride, resume);
}

template <TensorType kType>
void panel_times_many(const std::byte* panel, std::size_t block_bytes, std::size_t columns, const float* x, float* y,
                      std::size_t y_stride, std::size_t tokens) {
  alignas(64) float weights[kMaxDepth * kRows];
  for (std::size_t k = 0; k < columns; k += kMaxDepth) {
    const std::size_t depth = std::min(kMaxDepth, columns - k);
    expand_panel<kType>(panel + k / kQuantBlock * block_bytes, block_bytes, depth, weights);
    tiles(weights, depth, x + k, columns, y, y_stride, tokens, k != 0);
  }
}

template <TensorType kType>
void run_panel(const std::byte* panel, std::size_t block_bytes, std::size_t columns, const float* x, float* y,
               std::size_t y_stride, std::size_t tokens) {
  switch (tokens) {
    case 1:
      return panel_times_few<kType, 1>(panel, block_bytes, columns, x, y, y_stride);
    case 2:
      return panel_times_few<kType, 2>(panel, block_bytes, columns, x, y, y_stride);
    case 3:
      return panel_times_few<kType, 3>(panel, block_bytes, columns, x, y, y_stride);
    case 4:
      return panel_times_few<kType, 4>(panel, block_bytes, columns, x, y, y_stride);
    default:
      return panel_times_many<kType>(panel, block_bytes, columns, x, y, y_stride, tokens);
  }
}

// y[t][0 .. kPanelRows) = panel * x[t]: one type switch per panel, none inside.
void multiply_panel(TensorType type, const std::byte* panel, std::size_t block_bytes, std::size_t columns,
                    const float* x, float* y, std::size_t y_stride, std::size_t tokens) {
  switch (type) {
    case TensorType::kF32:
      return run_panel<TensorType::kF32>(panel, block_bytes, columns, x, y, y_stride, tokens);
    case TensorType::kF16:
      return run_panel<TensorType::kF16>(panel, block_bytes, columns, x, y, y_stride, tokens);
    case TensorType::kQ4_0:
      return run_panel<TensorType::kQ4_0>(panel, block_bytes, columns, x, y, y_stride, tokens);
    case TensorType::kQ4_1:
      return run_panel<TensorType::kQ4_1>(panel, block_bytes, columns, x, y, y_stride, tokens);
    case TensorType::kQ8_0:
      return run_panel<TensorType::kQ8_0>(panel, block_bytes, columns, x, y, y_stride, tokens);
  }
}

}  // namespace firn::llama::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace firn::llama {
HWY_EXPORT(multiply_panel);

namespace {

constexpr std::size_t kPanelRows = Matrix::kPanelRows;
constexpr std::size_t kItemTokens = 192;  // tokens that share one expansion of a panel: a multiple of every tile

std::size_t packed_block_bytes(TensorType type) {
  switch (type) {
    case TensorType::kF32:
      return kPanelRows * kQuantBlock * 4;
    case TensorType::kF16:
      return kPanelRows * kQuantBlock * 2;
    case TensorType::kQ4_0:
      return kPanelRows * (2 + kQuantBlock / 2);
    case TensorType::kQ4_1:
      return kPanelRows * (4 + kQuantBlock / 2);
    case TensorType::kQ8_0:
      return kPanelRows * (2 + kQuantBlock);
  }
  LLAMA_CHECK(false);
}

// Moves one block of one row to its places in the packed block; see the layout at the top.
void pack_block(TensorType type, const std::byte* from, std::size_t row, std::byte* to) {
  const bool plain = type == TensorType::kF32 || type == TensorType::kF16;
  const std::size_t width = type == TensorType::kF32 ? 4 : type == TensorType::kF16 ? 2 : 1;
  const std::size_t headers = plain ? 0 : type == TensorType::kQ4_1 ? 2 : 1;  // scale, minimum
  for (std::size_t h = 0; h < headers; ++h) std::memcpy(to + 2 * (h * kPanelRows + row), from + 2 * h, 2);
  from += 2 * headers;
  to += 2 * headers * kPanelRows;
  if (type != TensorType::kQ4_0 && type != TensorType::kQ4_1) {
    for (std::size_t k = 0; k < kQuantBlock; ++k)
      std::memcpy(to + width * (k * kPanelRows + row), from + width * k, width);
    return;
  }
  for (std::size_t g = 0; g < kQuantBlock / 8; ++g) {
    std::uint32_t word = 0;
    for (std::size_t i = 0; i < 8; ++i) {
      const std::size_t k = 8 * g + i;
      const auto byte = static_cast<std::uint32_t>(from[k % 16]);
      word |= (k < 16 ? byte & 15u : byte >> 4) << (4 * i);
    }
    std::memcpy(to + 4 * (g * kPanelRows + row), &word, 4);
  }
}

}  // namespace

struct MatrixAccess {
  static const std::byte* panel(const Matrix& matrix, std::size_t i) {
    return matrix.packed_.data()->bytes + i * matrix.columns_ / kQuantBlock * packed_block_bytes(matrix.type_);
  }

  // One panel for some of the tokens. The last panel may be wider than the matrix, so it goes through a buffer.
  static void run(const Product& product, std::size_t panel_index, std::size_t first_token, std::size_t tokens) {
    const Matrix& matrix = *product.weights;
    const std::size_t first_row = panel_index * kPanelRows, rows = std::min(kPanelRows, matrix.rows_ - first_row);
    const std::size_t block_bytes = packed_block_bytes(matrix.type_);
    const float* x = product.x + first_token * matrix.columns_;
    float* y = product.y + first_token * matrix.rows_ + first_row;
    if (rows == kPanelRows) {
      HWY_DYNAMIC_DISPATCH(multiply_panel)
      (matrix.type_, panel(matrix, panel_index), block_bytes, matrix.columns_, x, y, matrix.rows_, tokens);
      return;
    }
    float whole[kItemTokens * kPanelRows];
    HWY_DYNAMIC_DISPATCH(multiply_panel)
    (matrix.type_, panel(matrix, panel_index), block_bytes, matrix.columns_, x, whole, kPanelRows, tokens);
    for (std::size_t t = 0; t < tokens; ++t) std::copy_n(whole + t * kPanelRows, rows, y + t * matrix.rows_);
  }
};

Result<Matrix> Matrix::pack(const Tensor& tensor) {
  if (tensor.columns % kQuantBlock != 0)
    return Status(Code::kInvalidArgument, "tensor '" + std::string(tensor.name) + "' has " +
                                              std::to_string(tensor.columns) +
                                              " columns; the products need a multiple of 32");
  Matrix matrix;
  matrix.type_ = tensor.type;
  matrix.rows_ = tensor.rows;
  matrix.columns_ = tensor.columns;
  const std::size_t blocks = tensor.columns / kQuantBlock, block_bytes = packed_block_bytes(tensor.type);
  const std::size_t from_bytes = row_bytes(tensor.type, kQuantBlock);
  matrix.packed_.resize(matrix.panels() * blocks * block_bytes / sizeof(Line));  // zeros: absent rows have weight 0
  for (std::size_t r = 0; r < tensor.rows; ++r) {
    std::byte* panel = matrix.packed_.data()->bytes + r / kPanelRows * blocks * block_bytes;
    for (std::size_t b = 0; b < blocks; ++b)
      pack_block(tensor.type, tensor.row(r).data() + b * from_bytes, r % kPanelRows, panel + b * block_bytes);
  }
  return matrix;
}

void multiply(ThreadPool& threads, std::size_t tokens, std::span<const Product> products) {
  if (tokens == 0) return;
  // One token: items are several panels, since one alone takes a microsecond. Else: one panel for some of the tokens.
  const std::size_t item_panels = tokens == 1 ? 4 : 1;
  const std::size_t groups = (tokens + kItemTokens - 1) / kItemTokens;
  std::size_t panels = 0;
  for (const Product& product : products) panels += product.weights->panels();
  const std::size_t panel_items = (panels + item_panels - 1) / item_panels;

  threads.parallel_for(panel_items * groups, [&](std::size_t item) {
    const std::size_t first = item % panel_items * item_panels, last = std::min(first + item_panels, panels);
    const std::size_t first_token = item / panel_items * kItemTokens;
    const std::size_t item_tokens = std::min(kItemTokens, tokens - first_token);
    for (std::size_t global = first; global < last; ++global) {
      std::size_t panel = global;
      const Product* product = products.data();
      for (; panel >= product->weights->panels(); ++product) panel -= product->weights->panels();
      MatrixAccess::run(*product, panel, first_token, item_tokens);
    }
  });
}

}  // namespace firn::llama
#endif  // HWY_ONCE
