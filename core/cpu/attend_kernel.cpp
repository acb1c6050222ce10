// attend_kernel.cpp: the arithmetic of attention, in one order.
//
// A logit is a sum over the dimensions in 16 lanes: lane j adds dimensions j, j + 16, ... by fused multiply-add, then
// the lanes are folded by halves (i with i + 8, with i + 4, with i + 2, with i + 1). Several tokens are folded
// together, which costs a third of folding each alone; the tree stays the same. Weights are exp(logit - maximum over
// the split), their sum runs in 16 lanes over the tokens and folds alike. A value is a chain of fused multiply-adds
// over the tokens a pair sees, ascending. Tokens a pair does not see never enter its chains, not even with weight zero:
// zero times infinity would. Rows are blocked in registers to share loads, which changes no chain.
//
// Infinities and NaNs give what the formula gives: a NaN among the logits that a pair sees, or one that is plus
// infinity, makes its result NaN; logits of minus infinity have weight zero, which times an infinite value is NaN; a
// pair all of whose logits are minus infinity divides zero by zero. That is told from a pair that sees nothing, whose
// result is zero, by the sign of the sum: minus zero is a sum of weights that are all zero.

#include "core/cpu/attend_kernel.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <limits>

#include "firn/ids.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/cpu/attend_kernel.cpp"
// Scalable vectors are left out: their lane count is unknown to the compiler. SSSE3: nothing has it without SSE4.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
//
#include <hwy/contrib/math/math-inl.h>

#include "core/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace firn::cpu {
namespace HWY_NAMESPACE {

constexpr std::uint32_t kRegs = kLanesOfSums / kLanes;              // registers that play 16 lanes
constexpr std::uint32_t kTileTokens = kLanes < 4 ? 1 : kLanes / 4;  // tokens whose lanes fold into one register
constexpr std::uint32_t kTiles = kLanes < 4 ? 1 : 4;                // such registers that fold into kLanes logits
constexpr std::uint32_t kMaxRows = HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON ? 4 : 2;  // what registers allow
constexpr std::uint32_t kChunkRegs = 4;          // registers of a value row worked on at a time
constexpr std::uint32_t kMaxStreamedPairs = 16;  // up to here reading takes longer than computing
constexpr std::uint32_t kStepsAhead = 12;        // heads of blocks asked for ahead
constexpr float kInfinity = __builtin_inff();
constexpr std::uint32_t kBlocksOfSplit = kSplitTokens / kBlockTokens;
static_assert(kBlocksOfSplit % kLanes == 0);

// Rows of one head of one block: token t begins at base + t * stride.
struct Rows {
  const std::byte* base;
  std::uint64_t stride;
  HWY_INLINE const std::byte* row(std::uint32_t token) const { return base + token * stride; }
};

// The last dim % 16 elements of each row, padded with zeros to 16: a full load there could leave the memory we were
// given.
struct Tail {
  alignas(64) std::byte bytes[kBlockTokens * kLanesOfSums * 4];
  void fill(const Rows& rows, std::uint32_t token_count, std::uint32_t dim, std::uint32_t element_bytes) {
    const std::uint32_t whole = dim / kLanesOfSums * kLanesOfSums;
    std::memset(bytes, 0, sizeof(bytes));
    for (std::uint32_t t = 0; t < token_count; ++t)
      std::memcpy(bytes + t * kLanesOfSums * element_bytes, rows.row(t) + whole * element_bytes,
                  (dim - whole) * element_bytes);
  }
  Rows rows(std::uint32_t element_bytes) const { return {bytes, kLanesOfSums * element_bytes}; }
};

// Memory that will be wanted soon. Kernels ask for it line by line between their multiplications: asked for all at
// once, the requests queue up and everything waits behind them.
struct Ahead {
  static constexpr std::uint32_t kLine = 64;
  const std::byte* from = nullptr;
  std::uint32_t lines = 0;
  static HWY_INLINE void ask_for(const std::byte* line) { __builtin_prefetch(line, 0, 2); }
  // Asks for one of `parts` parts.
  HWY_INLINE void ask(std::uint32_t part, std::uint32_t parts) const {
    for (std::uint32_t line = lines * part / parts; line < lines * (part + 1) / parts; ++line)
      ask_for(from + line * kLine);
  }
};

#if HWY_TARGET == HWY_SCALAR  // one lane a register: the same tree, written out
HWY_INLINE VF fold_tile(const VF (&acc)[kTileTokens][kRegs]) {
  VF lanes[kRegs];
  for (std::uint32_t i = 0; i < kRegs; ++i) lanes[i] = acc[0][i];
  for (std::uint32_t width = kRegs / 2; width != 0; width /= 2)
    for (std::uint32_t i = 0; i < width; ++i) lanes[i] = hn::Add(lanes[i], lanes[i + width]);
  return lanes[0];
}
HWY_INLINE VF fold_tiles(const VF (&y)[kTiles]) { return y[0]; }
#else
// Lanes 16 to 4 of kTileTokens tokens: 4 lanes a token, the tokens in order.
HWY_INLINE VF fold_tile(const VF (&acc)[kTileTokens][kRegs]) {
  const DF d;
  if constexpr (kLanes == 4) {
    return hn::Add(hn::Add(acc[0][0], acc[0][2]), hn::Add(acc[0][1], acc[0][3]));
  } else if constexpr (kLanes == 8) {
    const VF a = hn::Add(acc[0][0], acc[0][1]);
    const VF b = hn::Add(acc[1][0], acc[1][1]);
    return hn::Add(hn::ConcatLowerLower(d, b, a), hn::ConcatUpperUpper(d, b, a));
  } else {
    const VF a = hn::Add(hn::ConcatLowerLower(d, acc[2][0], acc[0][0]), hn::ConcatUpperUpper(d, acc[2][0], acc[0][0]));
    const VF b = hn::Add(hn::ConcatLowerLower(d, acc[3][0], acc[1][0]), hn::ConcatUpperUpper(d, acc[3][0], acc[1][0]));
    return hn::Add(hn::OddEvenBlocks(hn::SwapAdjacentBlocks(b), a), hn::OddEvenBlocks(b, hn::SwapAdjacentBlocks(a)));
  }
}

// Lanes 4 to 1: block b of y[j] holds 4 lanes of token 4 * b + j; the result holds kLanes tokens in order.
HWY_INLINE VF fold_tiles(const VF (&y)[kTiles]) {
  const DF d;
  const hn::Repartition<std::uint64_t, DF> du64;
  const VF a = hn::Add(hn::InterleaveLower(d, y[0], y[1]), hn::InterleaveUpper(d, y[0], y[1]));
  const VF b = hn::Add(hn::InterleaveLower(d, y[2], y[3]), hn::InterleaveUpper(d, y[2], y[3]));
  const auto a64 = hn::BitCast(du64, a);
  const auto b64 = hn::BitCast(du64, b);
  return hn::Add(hn::BitCast(d, hn::InterleaveLower(du64, a64, b64)),
                 hn::BitCast(d, hn::InterleaveUpper(du64, a64, b64)));
}
#endif

template <Dtype kType, std::uint32_t kRows>
HWY_INLINE void multiply_step(const std::byte* const (&key)[kTileTokens], const float* const* query,
                              std::uint32_t key_step, std::uint32_t query_step, VF (&acc)[kRows][kTileTokens][kRegs]) {
  const DF d;
  for (std::uint32_t c = 0; c < kRegs; ++c) {
    VF k[kTileTokens];
    for (std::uint32_t b = 0; b < kTileTokens; ++b)
      k[b] = load_f32<kType>(key[b] + (key_step * kLanesOfSums + c * kLanes) * bytes_of(kType));
    for (std::uint32_t r = 0; r < kRows; ++r) {
      const VF q = hn::LoadU(d, query[r] + query_step * kLanesOfSums + c * kLanes);
      for (std::uint32_t b = 0; b < kTileTokens; ++b) acc[r][b][c] = hn::MulAdd(k[b], q, acc[r][b][c]);
    }
  }
}

struct Keys {
  Rows rows;
  std::uint32_t token_count;  // 1 to 16; logits of later tokens repeat the last one's and mean nothing
  std::uint32_t steps;        // whole steps of 16 dimensions
  const Tail* tail;           // null where 16 divides head_dim
  Ahead ahead;
};

// Unscaled logits of one block for kRows pairs. kSteps: the number of whole steps, 0 where only keys.steps knows.
template <Dtype kType, std::uint32_t kSteps, std::uint32_t kRows>
HWY_NOINLINE void block_logits(const Keys& keys, const float* const* query, float* const* logits) {
  const DF d;
  const std::uint32_t steps = kSteps != 0 ? kSteps : keys.steps;
  for (std::uint32_t group = 0; group < keys.token_count; group += kLanes) {
    VF tiles[kRows][kTiles];
    for (std::uint32_t j = 0; j < kTiles; ++j) {
      keys.ahead.ask((group + j * kTileTokens) / kTileTokens, kBlockTokens / kTileTokens);
      const std::byte* key[kTileTokens];
      const std::byte* tail[kTileTokens] = {};
      for (std::uint32_t b = 0; b < kTileTokens; ++b) {
        const std::uint32_t token = std::min(group + kTiles * b + j, keys.token_count - 1);
        key[b] = keys.rows.row(token);
        if (kSteps == 0 && keys.tail != nullptr) tail[b] = keys.tail->rows(bytes_of(kType)).row(token);
      }
      VF acc[kRows][kTileTokens][kRegs];
      for (auto& row : acc)
        for (auto& token : row)
          for (VF& lanes : token) lanes = hn::Zero(d);
      for (std::uint32_t step = 0; step < steps; ++step) multiply_step<kType, kRows>(key, query, step, step, acc);
      if (kSteps == 0 && keys.tail != nullptr) multiply_step<kType, kRows>(tail, query, 0, steps, acc);
      for (std::uint32_t r = 0; r < kRows; ++r) tiles[r][j] = fold_tile(acc[r]);
    }
    for (std::uint32_t r = 0; r < kRows; ++r) hn::StoreU(fold_tiles(tiles[r]), d, logits[r] + group);
  }
}

// acc[r][dimension] += weight[r][token] * value[token][dimension] over tokens [begin, end) of a block, ascending.
template <Dtype kType, std::uint32_t kRows, std::uint32_t kCount>
HWY_INLINE void add_chunk(const Rows& values, std::uint32_t begin, std::uint32_t end, const float* const* weights,
                          float* const* accumulators, std::uint32_t offset, const Ahead& ahead = {}) {
  const DF d;
  VF acc[kRows][kCount];
  for (std::uint32_t r = 0; r < kRows; ++r)
    for (std::uint32_t c = 0; c < kCount; ++c) acc[r][c] = hn::LoadU(d, accumulators[r] + offset + c * kLanes);
  for (std::uint32_t t = begin; t < end; ++t) {
    const std::byte* row = values.row(t);
    ahead.ask(t, kBlockTokens);
    VF value[kCount];
    for (std::uint32_t c = 0; c < kCount; ++c) value[c] = load_f32<kType>(row + c * kLanes * bytes_of(kType));
    for (std::uint32_t r = 0; r < kRows; ++r) {
      const VF weight = hn::Set(d, weights[r][t]);
      for (std::uint32_t c = 0; c < kCount; ++c) acc[r][c] = hn::MulAdd(value[c], weight, acc[r][c]);
    }
  }
  for (std::uint32_t r = 0; r < kRows; ++r)
    for (std::uint32_t c = 0; c < kCount; ++c) hn::StoreU(acc[r][c], d, accumulators[r] + offset + c * kLanes);
}

struct Values {
  Rows rows;
  std::uint32_t whole;  // dimensions in whole steps of 16
  const Tail* tail;     // null where 16 divides value_dim
  Ahead ahead;
};

template <Dtype kType, std::uint32_t kRows>
HWY_NOINLINE void add_values(const Values& values, std::uint32_t begin, std::uint32_t end, const float* const* weights,
                             float* const* accumulators) {
  constexpr std::uint32_t chunk = kChunkRegs * kLanes;
  std::uint32_t dim = 0;
  if (values.whole < chunk) values.ahead.ask(0, 1);
  for (; dim + chunk <= values.whole; dim += chunk) {
    const Rows at{values.rows.base + dim * bytes_of(kType), values.rows.stride};
    add_chunk<kType, kRows, kChunkRegs>(at, begin, end, weights, accumulators, dim, dim == 0 ? values.ahead : Ahead{});
  }
  for (; dim < values.whole; dim += kLanes) {
    const Rows at{values.rows.base + dim * bytes_of(kType), values.rows.stride};
    add_chunk<kType, kRows, 1>(at, begin, end, weights, accumulators, dim);
  }
  if (values.tail == nullptr) return;
  for (std::uint32_t i = 0; i < kLanesOfSums; i += kLanes) {
    Rows at = values.tail->rows(bytes_of(kType));
    at.base += i * bytes_of(kType);
    add_chunk<kType, kRows, 1>(at, begin, end, weights, accumulators, dim + i);
  }
}

HWY_INLINE float fold_lanes(const VF (&acc)[kRegs]) {
  const DF d;
  HWY_ALIGN float lanes[kLanesOfSums];
  for (std::uint32_t c = 0; c < kRegs; ++c) hn::Store(acc[c], d, lanes + c * kLanes);
  for (std::uint32_t width = kLanesOfSums / 2; width != 0; width /= 2)
    for (std::uint32_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// Scales and bends 16 logits and hides those outside [begin, end) as minus infinity; returns the largest so far.
template <bool kEdge>
HWY_INLINE VF scale_block(const AttendBatch& batch, float* x, std::uint32_t at, std::uint32_t begin, std::uint32_t end,
                          VF top) {
  const DF d;
  const hn::RebindToSigned<DF> di;
  for (std::uint32_t t = at; t < at + kLanesOfSums; t += kLanes) {
    VF logit = hn::Mul(hn::LoadU(d, x + t), hn::Set(d, batch.scale));
    if (batch.soft_cap != 0) {
      const VF cap = hn::Set(d, batch.soft_cap);
      // Tanh takes NaN for a number.
      logit = hn::IfThenElse(hn::IsNaN(logit), logit, hn::Mul(cap, hn::Tanh(d, hn::Div(logit, cap))));
    }
    if (kEdge) {
      const auto index = hn::Iota(di, static_cast<std::int32_t>(t));
      const auto visible = hn::And(hn::Gt(index, hn::Set(di, static_cast<std::int32_t>(begin) - 1)),
                                   hn::Lt(index, hn::Set(di, static_cast<std::int32_t>(end))));
      logit = hn::IfThenElse(hn::RebindMask(d, visible), logit, hn::Set(d, -kInfinity));
    }
    hn::StoreU(logit, d, x + t);
    top = hn::Max(top, logit);
  }
  return top;
}

// Turns logits into weights exp(logit - maximum) over tokens [begin, end). False: nothing to see there.
// absent: bit b means that block b takes no part.
HWY_NOINLINE bool weigh(const AttendBatch& batch, float* x, std::uint32_t begin, std::uint32_t end,
                        std::uint32_t absent, float& maximum, float& sum) {
  const DF d;
  const std::uint32_t first = begin / kLanesOfSums * kLanesOfSums;
  VF top = hn::Set(d, -kInfinity);
  bool anything = false;
  for (std::uint32_t block = first; block < end; block += kLanesOfSums) {
    const bool gone = ((absent >> (block / kBlockTokens)) & 1u) != 0;
    anything = anything || !gone;
    if (gone)
      std::fill_n(x + block, kLanesOfSums, -kInfinity);
    else if (block < begin || block + kLanesOfSums > end)
      top = scale_block<true>(batch, x, block, begin, end, top);
    else
      top = scale_block<false>(batch, x, block, begin, end, top);
  }
  maximum = hn::GetLane(hn::MaxOfLanes(d, top));
  sum = 0;
  if (!anything) return false;
  const VF shift = hn::Set(d, maximum == -kInfinity ? 0.0f : maximum);
  VF acc[kRegs], below = hn::Zero(d);
  for (VF& lanes : acc) lanes = hn::Zero(d);
  for (std::uint32_t block = first; block < end; block += kLanesOfSums)
    for (std::uint32_t c = 0; c < kRegs; ++c) {
      float* at = x + block + c * kLanes;
      const VF exponent = hn::Sub(hn::LoadU(d, at), shift);
      const VF weight = hn::Exp(d, exponent);
      hn::StoreU(weight, d, at);
      acc[c] = hn::Add(acc[c], weight);
      // Exp takes NaN for a number, and so may the maximum. Nothing here is above zero, so no sum but NaN's is NaN.
      below = hn::Add(below, exponent);
    }
  sum = fold_lanes(acc);
  if (!hn::AllFalse(d, hn::IsNaN(below))) {
    sum = std::numeric_limits<float>::quiet_NaN();
  } else if (sum == 0) {
    sum = -0.0f;
  }
  return true;
}

// One tile over one split: where everything is.
struct Work {
  const AttendBatch& batch;
  const AttendItem& item;
  const PairTile& tile;
  AttendScratch& scratch;
  const AttendItem* next;
  std::uint32_t block_begin, block_end;  // blocks of the split that some pair sees
  std::uint32_t absent;                  // a bit for each block that has no address
  bool alike;                            // all pairs see the same tokens
  Ahead ahead{};                         // what the running step asks for

  std::uint32_t group() const { return batch.query_heads / batch.shape.kv_heads; }
  std::uint32_t kv_heads() const { return tile.kv_head_end - tile.kv_head_begin; }
  const BlockView& view(std::uint32_t block) const { return batch.views[item.view + block]; }
  std::uint32_t tokens_in(std::uint32_t block) const {
    return std::min(kBlockTokens, item.token_count - block * kBlockTokens);
  }
  bool present(std::uint32_t block) const { return ((absent >> block) & 1u) == 0; }
};

inline const std::byte* pointer(DeviceAddress address) {
  return reinterpret_cast<const std::byte*>(static_cast<std::uintptr_t>(address));
}

template <Dtype kType>
void copy_queries(Work& work) {
  const KvShape& shape = work.batch.shape;
  const float* q = reinterpret_cast<const float*>(static_cast<std::uintptr_t>(work.batch.q));
  std::uint32_t slot = 0;
  for (std::uint32_t head = work.tile.kv_head_begin; head < work.tile.kv_head_end; ++head)
    for (std::uint32_t pair = work.tile.pair_begin; pair < work.tile.pair_end; ++pair, ++slot) {
      const std::uint64_t row = pair / work.group();
      const std::uint64_t query_head = std::uint64_t{head} * work.group() + pair % work.group();
      const float* from = q + (row * work.batch.query_heads + query_head) * shape.head_dim;
      work.scratch.query[slot] = from;
      if (shape.head_dim % kLanesOfSums == 0) continue;
      float* to = work.scratch.queries.data() + std::size_t{slot} * padded(shape.head_dim);
      std::memcpy(to, from, shape.head_dim * sizeof(float));
      std::fill(to + shape.head_dim, to + padded(shape.head_dim), 0.0f);
      work.scratch.query[slot] = to;
    }
}

// Calls logits for slots [slot, slot + count) of one block; count <= kMaxRows.
template <Dtype kType, std::uint32_t kSteps>
HWY_INLINE void logits_of_slots(Work& work, const Keys& keys, std::uint32_t block, std::uint32_t slot,
                                std::uint32_t count) {
  float* out[kMaxRows];
  for (std::uint32_t r = 0; r < count; ++r)
    out[r] = work.scratch.logits.data() + (slot + r) * kLogitStride + block * kBlockTokens;
  const float* const* query = work.scratch.query.data() + slot;
  switch (count) {
    case 1:
      return block_logits<kType, kSteps, 1>(keys, query, out);
    case 2:
      return block_logits<kType, kSteps, 2>(keys, query, out);
    case 3:
      if constexpr (kMaxRows > 2) return block_logits<kType, kSteps, 3>(keys, query, out);
      break;
    default:
      if constexpr (kMaxRows > 2) return block_logits<kType, kSteps, 4>(keys, query, out);
      break;
  }
}

// Whether any of the slots sees a token of the block.
HWY_INLINE bool sees(const Work& work, std::uint32_t slot, std::uint32_t count, std::uint32_t block) {
  if (!work.present(block)) return false;
  if (work.alike) return true;  // else the block would not lie between block_begin and block_end
  const AttendScratch& scratch = work.scratch;
  for (std::uint32_t s = slot; s < slot + count; ++s)
    if (scratch.begin[s] < (block + 1) * kBlockTokens && scratch.end[s] > block * kBlockTokens) return true;
  return false;
}

template <Dtype kType, std::uint32_t kSteps>
void logits_of_blocks(Work& work, std::uint32_t head, std::uint32_t block_begin, std::uint32_t block_end) {
  const KvShape& shape = work.batch.shape;
  const std::uint32_t begin = (head - work.tile.kv_head_begin) * work.tile.pairs();
  const std::uint32_t end = begin + work.tile.pairs();
  for (std::uint32_t slot = begin; slot < end; slot += kMaxRows) {
    const std::uint32_t count = std::min(kMaxRows, end - slot);
    for (std::uint32_t block = block_begin; block < block_end; ++block) {
      if (!sees(work, slot, count, block)) continue;
      const BlockView& view = work.view(block);
      const Rows rows{pointer(view.k) + std::uint64_t{head} * view.head_stride, view.token_stride};
      Keys keys{rows, work.tokens_in(block), shape.head_dim / kLanesOfSums, nullptr,
                slot == begin ? work.ahead : Ahead{}};
      if constexpr (kSteps == 0) {
        Tail tail;
        if (shape.head_dim % kLanesOfSums != 0) {
          tail.fill(rows, keys.token_count, shape.head_dim, bytes_of(kType));
          keys.tail = &tail;
        }
        logits_of_slots<kType, kSteps>(work, keys, block, slot, count);
      } else {
        logits_of_slots<kType, kSteps>(work, keys, block, slot, count);
      }
    }
  }
}

template <Dtype kType, std::uint32_t kRows>
HWY_INLINE void values_of_rows(const Work& work, const Values& values, std::uint32_t block, std::uint32_t slot) {
  const float* weights[kRows];
  float* accumulators[kRows];
  std::uint32_t begin[kRows], end[kRows];
  std::uint32_t common_begin = 0, common_end = kBlockTokens;
  const std::uint32_t at = block * kBlockTokens;
  for (std::uint32_t r = 0; r < kRows; ++r) {
    weights[r] = work.scratch.logits.data() + (slot + r) * kLogitStride + at;
    accumulators[r] = work.scratch.values.data() + std::size_t{slot + r} * padded(work.batch.shape.value_dim);
    if (r != 0 && work.alike) continue;
    end[r] = std::clamp(work.scratch.end[slot + r], at, at + kBlockTokens) - at;
    begin[r] = std::min(std::clamp(work.scratch.begin[slot + r], at, at + kBlockTokens) - at, end[r]);
    common_begin = std::max(common_begin, begin[r]);
    common_end = std::min(common_end, end[r]);
  }
  if (kRows == 1 || work.alike) return add_values<kType, kRows>(values, begin[0], end[0], weights, accumulators);
  // Together where all pairs see the tokens, one by one before and after: each chain ascends, and holds nothing unseen.
  const bool together = common_begin < common_end;
  for (std::uint32_t r = 0; r < kRows; ++r) {
    const std::uint32_t stop = together ? common_begin : end[r];
    if (begin[r] < stop) add_values<kType, 1>(values, begin[r], stop, weights + r, accumulators + r);
  }
  if (!together) return;
  add_values<kType, kRows>(values, common_begin, common_end, weights, accumulators);
  for (std::uint32_t r = 0; r < kRows; ++r)
    if (common_end < end[r]) add_values<kType, 1>(values, common_end, end[r], weights + r, accumulators + r);
}

template <Dtype kType>
HWY_INLINE void values_of_slots(const Work& work, const Values& values, std::uint32_t block, std::uint32_t slot,
                                std::uint32_t count) {
  switch (count) {
    case 1:
      return values_of_rows<kType, 1>(work, values, block, slot);
    case 2:
      return values_of_rows<kType, 2>(work, values, block, slot);
    case 3:
      if constexpr (kMaxRows > 2) return values_of_rows<kType, 3>(work, values, block, slot);
      break;
    default:
      if constexpr (kMaxRows > 2) return values_of_rows<kType, 4>(work, values, block, slot);
      break;
  }
}

template <Dtype kType>
void values_of_blocks(Work& work, std::uint32_t head, std::uint32_t block_begin, std::uint32_t block_end) {
  const std::uint32_t dim = work.batch.shape.value_dim;
  const std::uint32_t begin = (head - work.tile.kv_head_begin) * work.tile.pairs();
  const std::uint32_t end = begin + work.tile.pairs();
  for (std::uint32_t slot = begin; slot < end; slot += kMaxRows) {
    const std::uint32_t count = std::min(kMaxRows, end - slot);
    for (std::uint32_t block = block_begin; block < block_end; ++block) {
      if (!sees(work, slot, count, block)) continue;
      const BlockView& view = work.view(block);
      const Rows rows{pointer(view.v) + std::uint64_t{head} * view.v_head_stride, view.v_token_stride};
      Values values{rows, dim / kLanesOfSums * kLanesOfSums, nullptr, slot == begin ? work.ahead : Ahead{}};
      if (values.whole == dim) {
        values_of_slots<kType>(work, values, block, slot, count);
        continue;
      }
      Tail tail;
      tail.fill(rows, work.tokens_in(block), dim, bytes_of(kType));
      values.tail = &tail;
      values_of_slots<kType>(work, values, block, slot, count);
    }
  }
}

// A task over few pairs goes in steps, each one head of one block: first the keys of all blocks, then the values, then
// perhaps the keys of the next item. Each step asks for what lies kStepsAhead further on: the machine cannot guess
// these addresses, as rows are short and a token's heads are used one after the other. Asked for in the order in which
// memory lies, and into the second cache: the first one takes few requests at a time, and whatever follows them waits.
HWY_INLINE Ahead rows_ahead(const Work& work, DeviceAddress address, std::uint64_t token_stride,
                            std::uint64_t head_stride, std::uint32_t begin, std::uint32_t end,
                            std::uint32_t row_bytes) {
  const std::byte* from = pointer(address) + begin * token_stride + work.tile.kv_head_begin * head_stride;
  const std::uint64_t token_bytes = std::uint64_t{row_bytes} * work.kv_heads();
  if (head_stride == row_bytes && token_stride == token_bytes)
    return {from, static_cast<std::uint32_t>((end - begin) * token_bytes / Ahead::kLine)};
  for (std::uint32_t t = begin; t < end; ++t, from += token_stride)  // scattered: at once rather than listing the lines
    for (std::uint32_t h = 0; h < work.kv_heads(); ++h)
      for (std::uint32_t at = 0; at < row_bytes; at += Ahead::kLine) Ahead::ask_for(from + h * head_stride + at);
  return {};
}

// A step's share of a block: all heads of some tokens, so that the requests of a block's steps run through its memory.
HWY_INLINE Ahead step_ahead(const Work& work, std::uint32_t step) {
  const KvShape& shape = work.batch.shape;
  const std::uint32_t heads = work.kv_heads();
  const std::uint32_t steps = (work.block_end - work.block_begin) * heads;
  const AttendItem* item = &work.item;
  std::uint32_t block = work.block_begin;
  const bool values = step >= steps && step < 2 * steps;
  if (values) {
    step -= steps;
  } else if (step >= 2 * steps) {
    item = work.next;
    block = 0;
    step -= 2 * steps;
  }
  block += step / heads;
  if (item == nullptr || block * kBlockTokens >= item->token_count) return {};
  const BlockView& view = work.batch.views[item->view + block];
  if (view.k == 0 || view.v == 0) return {};
  const std::uint32_t tokens = std::min(kBlockTokens, item->token_count - block * kBlockTokens);
  const std::uint32_t begin = tokens * (step % heads) / heads, end = tokens * (step % heads + 1) / heads;
  const std::uint32_t element = bytes_of(shape.dtype);
  return values
             ? rows_ahead(work, view.v, view.v_token_stride, view.v_head_stride, begin, end, shape.value_dim * element)
             : rows_ahead(work, view.k, view.token_stride, view.head_stride, begin, end, shape.head_dim * element);
}

HWY_INLINE bool streams(const Work& work) { return work.tile.pairs() <= kMaxStreamedPairs; }

// Few pairs: block by block, head by head, so that memory is read in the order it lies in. Many pairs of one head: all
// blocks for a few rows at a time, so that these stay in the first cache, and memory hardly matters.
template <void (*kStep)(Work&, std::uint32_t, std::uint32_t, std::uint32_t)>
void for_each_part(Work& work, std::uint32_t step) {
  if (!streams(work)) {
    for (std::uint32_t head = work.tile.kv_head_begin; head < work.tile.kv_head_end; ++head)
      kStep(work, head, work.block_begin, work.block_end);
    return;
  }
  for (std::uint32_t block = work.block_begin; block < work.block_end; ++block)
    for (std::uint32_t head = work.tile.kv_head_begin; head < work.tile.kv_head_end; ++head, ++step) {
      work.ahead = step_ahead(work, step + kStepsAhead);
      kStep(work, head, block, block + 1);
    }
}

template <Dtype kType>
void attend_typed(Work& work) {
  copy_queries<kType>(work);
  switch (work.batch.shape.head_dim) {
    case 64:
      for_each_part<logits_of_blocks<kType, 4>>(work, 0);
      break;
    case 128:
      for_each_part<logits_of_blocks<kType, 8>>(work, 0);
      break;
    default:
      for_each_part<logits_of_blocks<kType, 0>>(work, 0);
      break;
  }
  AttendScratch& s = work.scratch;
  for (std::uint32_t slot = 0; slot < work.tile.slots(); ++slot) {
    s.sum[slot] = 0;
    s.maximum[slot] = -kInfinity;
    if (s.begin[slot] >= s.end[slot] || !weigh(work.batch, s.logits.data() + slot * kLogitStride, s.begin[slot],
                                               s.end[slot], work.absent, s.maximum[slot], s.sum[slot]))
      s.begin[slot] = s.end[slot] = 0, work.alike = false;
  }
  std::fill_n(s.values.data(), std::size_t{work.tile.slots()} * padded(work.batch.shape.value_dim), 0.0f);
  for_each_part<values_of_blocks<kType>>(work, (work.block_end - work.block_begin) * work.kv_heads());
}

void AttendSplit(const AttendBatch& batch, const AttendItem& item, const PairTile& tile, AttendScratch& scratch,
                 const Neighbours& neighbours) {
  Work work{batch, item, tile, scratch, neighbours.next, kSplitTokens / kBlockTokens, 0, 0, true};
  const std::uint32_t split_end = item.split + item.token_count;
  for (std::uint32_t pair = tile.pair_begin; pair < tile.pair_end; ++pair) {
    const std::uint32_t position = item.position + (pair / work.group() - item.row);
    const std::uint32_t oldest = batch.window != 0 && position >= batch.window ? position + 1 - batch.window : 0;
    const std::uint32_t begin = std::max(oldest, item.split) - item.split;
    const std::uint32_t end = std::max(std::min(position + 1, split_end), item.split) - item.split;
    for (std::uint32_t slot = pair - tile.pair_begin; slot < tile.slots(); slot += tile.pairs()) {
      scratch.begin[slot] = begin;
      scratch.end[slot] = end;
    }
    work.alike = work.alike && begin == scratch.begin[0] && end == scratch.end[0];
    if (begin >= end) continue;
    work.block_begin = std::min(work.block_begin, begin / kBlockTokens);
    work.block_end = std::max(work.block_end, (end + kBlockTokens - 1) / kBlockTokens);
  }
  work.block_begin = std::min(work.block_begin, work.block_end);
  for (std::uint32_t block = work.block_begin; block < work.block_end; ++block)
    if (work.view(block).k == 0 || work.view(block).v == 0) work.absent |= 1u << block;
  switch (batch.shape.dtype) {
    case Dtype::kF16:
      return attend_typed<Dtype::kF16>(work);
    case Dtype::kBf16:
      return attend_typed<Dtype::kBf16>(work);
    case Dtype::kF32:
      return attend_typed<Dtype::kF32>(work);
    case Dtype::kBits8:
      return;  // validate() has refused it
  }
}

// Nothing was seen: plus zero, not minus zero.
HWY_INLINE bool untouched(float sum) { return std::bit_cast<std::uint32_t>(sum) == 0; }

HWY_INLINE float exp_of(float x) { return hn::GetLane(hn::Exp(DF(), hn::Set(DF(), x))); }

// Works on registers throughout, the last one through a copy, so that every dimension sees the same operations.
void Fold(float* state, const float* values, float maximum, float sum, std::uint32_t value_dim) {
  const DF d;
  if (untouched(sum)) return;
  float& state_maximum = state[value_dim];
  float& state_sum = state[value_dim + 1];
  if (untouched(state_sum)) {
    std::memcpy(state, values, value_dim * sizeof(float));
    state_maximum = maximum;
    state_sum = sum;
    return;
  }
  const float top = std::max(state_maximum, maximum);
  const float shift = top == -kInfinity ? 0.0f : top;
  const float old_factor = exp_of(state_maximum - shift);
  const float new_factor = exp_of(maximum - shift);
  const VF a = hn::Set(d, old_factor);
  const VF b = hn::Set(d, new_factor);
  std::uint32_t i = 0;
  for (; i + kLanes <= value_dim; i += kLanes)
    hn::StoreU(hn::MulAdd(hn::LoadU(d, values + i), b, hn::Mul(hn::LoadU(d, state + i), a)), d, state + i);
  if (i < value_dim) {
    HWY_ALIGN float lanes[2 * kLanes] = {};
    std::memcpy(lanes, state + i, (value_dim - i) * sizeof(float));
    std::memcpy(lanes + kLanes, values + i, (value_dim - i) * sizeof(float));
    hn::Store(hn::MulAdd(hn::Load(d, lanes + kLanes), b, hn::Mul(hn::Load(d, lanes), a)), d, lanes);
    std::memcpy(state + i, lanes, (value_dim - i) * sizeof(float));
  }
  state_maximum = top;
  const float scaled = state_sum * old_factor;
  state_sum = scaled + sum * new_factor;
}

void SumBlocks(const AttendScratch& scratch, std::uint32_t slot, float* to) {
  std::fill_n(to, kBlocksOfSplit, 0.0f);
  to[kBlocksOfSplit] = scratch.maximum[slot];
  // Weights of the blocks in between are zero where the pair does not see; others were never written.
  const float* weights = scratch.logits.data() + std::size_t{slot} * kLogitStride;
  for (std::uint32_t block = scratch.begin[slot] / kBlockTokens; block * kBlockTokens < scratch.end[slot]; ++block)
    for (std::uint32_t t = 0; t < kBlockTokens; ++t) to[block] += weights[block * kBlockTokens + t];
}

void AddMass(const float* blocks, float maximum, float sum, float* mass) {
  const DF d;
  // Nothing was seen; or nobody touched this split, which a maximum of zero above the final one gives away.
  if (untouched(sum) || blocks[kBlocksOfSplit] > maximum) return;
  const VF factor = hn::Set(d, exp_of(blocks[kBlocksOfSplit] - maximum) / sum);
  for (std::uint32_t i = 0; i < kBlocksOfSplit; i += kLanes)
    hn::StoreU(hn::MulAdd(hn::LoadU(d, blocks + i), factor, hn::LoadU(d, mass + i)), d, mass + i);
}

void Finish(const float* state, float* out, std::uint32_t value_dim) {
  const float sum = state[value_dim + 1];
  for (std::uint32_t i = 0; i < value_dim; ++i) out[i] = untouched(sum) ? 0.0f : state[i] / sum;
}

template <Dtype kType>
void append_values(const float* from, DeviceAddress to, std::uint32_t count) {
  const DF d;
  auto* out = reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(to));
  std::uint32_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_f32<kType>(hn::LoadU(d, from + i), out + i * bytes_of(kType));
  if (i == count) return;
  HWY_ALIGN float lanes[kLanes] = {};
  HWY_ALIGN std::byte rounded[kLanes * 4];
  std::memcpy(lanes, from + i, (count - i) * sizeof(float));
  store_f32<kType>(hn::Load(d, lanes), rounded);
  std::memcpy(out + i * bytes_of(kType), rounded, (count - i) * bytes_of(kType));
}

template <Dtype kType>
void append_typed(const AppendBatch& batch, const AppendItem& item) {
  const KvShape& shape = batch.shape;
  const auto* k = reinterpret_cast<const float*>(static_cast<std::uintptr_t>(batch.k));
  const auto* v = reinterpret_cast<const float*>(static_cast<std::uintptr_t>(batch.v));
  for (std::uint32_t t = 0; t < item.token_count; ++t)
    for (std::uint32_t head = 0; head < shape.kv_heads; ++head) {
      const std::uint64_t row = (std::uint64_t{item.row} + t) * shape.kv_heads + head;
      const std::uint64_t token = item.token + t;
      if (item.view.k != 0)
        append_values<kType>(k + row * shape.head_dim,
                             item.view.k + token * item.view.token_stride + std::uint64_t{head} * item.view.head_stride,
                             shape.head_dim);
      if (item.view.v != 0)
        append_values<kType>(
            v + row * shape.value_dim,
            item.view.v + token * item.view.v_token_stride + std::uint64_t{head} * item.view.v_head_stride,
            shape.value_dim);
    }
}

void AppendRows(const AppendBatch& batch, const AppendItem& item) {
  switch (batch.shape.dtype) {
    case Dtype::kF16:
      return append_typed<Dtype::kF16>(batch, item);
    case Dtype::kBf16:
      return append_typed<Dtype::kBf16>(batch, item);
    case Dtype::kF32:
      return append_typed<Dtype::kF32>(batch, item);
    case Dtype::kBits8:
      return;  // validate() has refused it
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace firn::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace firn::cpu {

HWY_EXPORT(AttendSplit);
HWY_EXPORT(Fold);
HWY_EXPORT(SumBlocks);
HWY_EXPORT(AddMass);
HWY_EXPORT(Finish);
HWY_EXPORT(AppendRows);

std::uint32_t max_pairs(const KvShape& shape) {
  return std::min(kMaxPairs, kPairFloats / padded(std::max(shape.head_dim, shape.value_dim)));
}

void attend_split(const AttendBatch& batch, const AttendItem& item, const PairTile& tile, AttendScratch& scratch,
                  const Neighbours& neighbours) {
  HWY_DYNAMIC_DISPATCH(AttendSplit)(batch, item, tile, scratch, neighbours);
}

void fold(float* state, const float* values, float maximum, float sum, std::uint32_t value_dim) {
  HWY_DYNAMIC_DISPATCH(Fold)(state, values, maximum, sum, value_dim);
}

void sum_blocks(const AttendScratch& scratch, std::uint32_t slot, float* to) {
  HWY_DYNAMIC_DISPATCH(SumBlocks)(scratch, slot, to);
}

void add_mass(const float* blocks, float maximum, float sum, float* mass) {
  HWY_DYNAMIC_DISPATCH(AddMass)(blocks, maximum, sum, mass);
}

void finish(const float* state, float* out, std::uint32_t value_dim) {
  HWY_DYNAMIC_DISPATCH(Finish)(state, out, value_dim);
}

void append_rows(const AppendBatch& batch, const AppendItem& item) { HWY_DYNAMIC_DISPATCH(AppendRows)(batch, item); }

}  // namespace firn::cpu
#endif
