#include "storage/codec/host_coding.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "core/base/coding.h"
#include "storage/codec/artefact.h"
#include "storage/codec/integer_codec.h"
#include "storage/codec/kvtc_codec.h"
#include "storage/codec/lossy_kernels.h"
#include "storage/codec/rotation.h"
#include "storage/codec/tensor_rows.h"

namespace firn {
namespace {

template <class T>
T* pointer(DeviceAddress address) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address));
}

TensorRows rows_of(const KvShape& shape, bool values, std::span<const BlockView> views) {
  return {.shape = {.heads = shape.kv_heads,
                    .dim = coded_dim(shape, values),
                    .element_bytes = bytes_of(shape.dtype),
                    .token_count = static_cast<std::uint32_t>(views.size()) * kBlockTokens,
                    .dtype = shape.dtype},
          .views = views,
          .values = values};
}

}  // namespace

Result<Fence> HostCoding::encode(const IntegerBatch& batch) {
  FIRN_TRY(validate(batch, true));
  for (const IntegerItem& item : batch.items) {
    IntegerSums sums;
    code_integers(rows_of(batch.shape, batch.values, batch.views.subspan(item.view, item.block_count)),
                  {batch.bits, batch.mix}, {pointer<std::byte>(item.payload), payload_bytes(batch, item.block_count)},
                  sums, {pointer<float>(item.sums), sums_bytes(batch, item.block_count) / sizeof(float)});
  }
  return Fence{};
}

Result<Fence> HostCoding::decode(const IntegerBatch& batch) {
  FIRN_TRY(validate(batch, false));
  for (const IntegerItem& item : batch.items)
    decode_integers({pointer<const std::byte>(item.payload), payload_bytes(batch, item.block_count)},
                    {batch.bits, batch.mix},
                    rows_of(batch.shape, batch.values, batch.views.subspan(item.view, item.block_count)));
  return Fence{};
}

namespace {

// One item of a transform batch: its tables as the codec's code takes them.
struct Stack {
  const TransformBatch& batch;
  const StackTransform& stack;
  StackPlan plan;
  std::size_t width, channels, kept;  // channels: of all the stack's layers
  const float* mean;
  const std::uint16_t* basis;
  KeyRotation rotation;

  static Result<Stack> make(const TransformBatch& batch, bool encoding) {
    FIRN_TRY(validate(batch, encoding));
    const StackTransform& stack = *batch.stack;
    const std::uint32_t dim = coded_dim(batch.shape, stack.values);
    RotationSpec spec{stack.pairing, stack.rotated_dims, std::vector<float>(stack.rotated_dims / 2),
                      stack.attention_factor};
    if (stack.values) spec = {};
    FIRN_ASSIGN(KeyRotation rotation, KeyRotation::make(spec, dim));
    const std::size_t width = std::size_t{batch.shape.kv_heads} * dim;
    Stack out{batch,
              stack,
              {},
              width,
              stack.layer_count * width,
              component_count(stack),
              pointer<const float>(stack.mean),
              pointer<const std::uint16_t>(stack.basis),
              std::move(rotation)};
    for (const CoefficientGroup& group : stack.groups) out.plan.push_back({group.size, group.bits});
    return out;
  }
  KeyRotation::Angles angles(const TransformItem& item) const {
    if (rotation.none()) return {};
    const std::size_t count = std::size_t{item.block_count} * kBlockTokens * (stack.rotated_dims / 2);
    const auto* turns = pointer<const float>(item.turns);
    return {{turns, turns + count}, {turns + count, turns + 2 * count}};
  }
  // layer counts from the batch's first.
  TensorRows rows(const TransformItem& item, std::uint32_t layer) const {
    return rows_of(batch.shape, stack.values,
                   batch.views.subspan(item.view + std::size_t{layer} * item.block_count, item.block_count));
  }
};

// Centred values of a layer into their columns of x, and each token's squares.
void centre(const Stack& s, const TransformItem& item, std::uint32_t layer, const KeyRotation::Angles& angles, float* x,
            float* energies) {
  const TensorRows rows = s.rows(item, layer);
  std::vector<float> flat(rows.shape.elements());
  rows.for_each_piece([&](const std::byte* piece, std::size_t element, std::size_t count) {
    lossy::load(rows.shape.dtype, piece, count, flat.data() + element);
  });
  for (std::uint32_t t = 0; t < rows.shape.token_count; ++t) {
    float* from = flat.data() + t * s.width;
    float* to = x + t * s.channels + layer * s.width;
    const bool finite = lossy::all_finite(from, s.width);
    if (!s.stack.values) s.rotation.undo(from, rows.shape.heads, angles, t);
    for (std::size_t c = 0; c < s.width; ++c) to[c] = from[c] - s.mean[layer * s.width + c];
    energies[t] = finite ? static_cast<float>(lossy::energy(to, s.width)) : std::numeric_limits<float>::quiet_NaN();
  }
}

// Each slice of groups and token: squares of the coefficients, and of what coding changed.
void sum_slices(const Stack& s, std::size_t tokens, const float* coefficients, const float* decoded, bool packed,
                float* sums) {
  std::size_t component = 0;
  for (std::size_t g = 0; g < s.plan.size(); g += kGroupsOfSlice) {
    std::size_t count = 0;
    for (std::size_t i = g; i < std::min<std::size_t>(g + kGroupsOfSlice, s.plan.size()); ++i) count += s.plan[i].size;
    for (std::size_t t = 0; t < tokens; ++t, sums += 2) {
      const float* row = coefficients + t * s.kept + component;
      const float nan = std::numeric_limits<float>::quiet_NaN();
      sums[0] = packed ? static_cast<float>(lossy::energy(row, count)) : nan;
      sums[1] = packed ? static_cast<float>(lossy::distance(row, decoded + t * s.kept + component, count)) : nan;
    }
    component += count;
  }
}

}  // namespace

Result<Fence> HostCoding::encode(const TransformBatch& batch) {
  FIRN_ASSIGN(const Stack s, Stack::make(batch, true));
  for (const TransformItem& item : batch.items) {
    const std::size_t tokens = std::size_t{item.block_count} * kBlockTokens;
    const KeyRotation::Angles angles = s.angles(item);
    auto* sums = pointer<float>(item.sums);
    std::vector<float> x(tokens * s.channels), coefficients(tokens * s.kept), decoded(tokens * s.kept);
    for (std::uint32_t layer = 0; layer < s.stack.layer_count; ++layer)
      centre(s, item, layer, angles, x.data(), sums + layer * tokens);
    if (s.kept != 0)
      lossy::project({.a = x.data(),
                      .a_stride = s.channels,
                      .rows = tokens,
                      .basis = s.basis,
                      .basis_stride = s.channels,
                      .components = s.kept,
                      .channels = s.channels,
                      .c = coefficients.data(),
                      .c_stride = s.kept});
    const bool packed =
        pack_coefficients(s.plan, coefficients.data(), s.kept, tokens,
                          {pointer<std::byte>(item.payload), payload_bytes(s.stack, item.block_count)}, decoded.data());
    sum_slices(s, tokens, coefficients.data(), decoded.data(), packed, sums + energy_floats(s.stack, item.block_count));
  }
  return Fence{};
}

Result<Fence> HostCoding::decode(const TransformBatch& batch) {
  FIRN_ASSIGN(const Stack s, Stack::make(batch, false));
  const std::size_t channels = batch.layer_count * s.width;
  for (const TransformItem& item : batch.items) {
    const std::size_t tokens = std::size_t{item.block_count} * kBlockTokens;
    const KeyRotation::Angles angles = s.angles(item);
    std::vector<float> coefficients(tokens * s.kept), out(tokens * channels);
    FIRN_TRY(unpack_coefficients(s.plan,
                                 {pointer<const std::byte>(item.payload), payload_bytes(s.stack, item.block_count)},
                                 tokens, s.kept, coefficients.data()));
    if (s.kept != 0)
      lossy::reconstruct({.a = coefficients.data(),
                          .a_stride = s.kept,
                          .rows = tokens,
                          .basis = s.basis + batch.first_layer * s.width,
                          .basis_stride = s.channels,
                          .components = s.kept,
                          .channels = channels,
                          .c = out.data(),
                          .c_stride = channels});
    std::vector<float> flat(tokens * s.width);
    for (std::uint32_t layer = 0; layer < batch.layer_count; ++layer) {
      const TensorRows rows = s.rows(item, layer);
      const float* mean = s.mean + (batch.first_layer + layer) * s.width;
      for (std::uint32_t t = 0; t < tokens; ++t) {
        float* row = flat.data() + t * s.width;
        for (std::size_t c = 0; c < s.width; ++c) row[c] = out[t * channels + layer * s.width + c] + mean[c];
        if (!s.stack.values) s.rotation.apply(row, rows.shape.heads, angles, t);
      }
      rows.for_each_piece([&](std::byte* piece, std::size_t element, std::size_t count) {
        lossy::store(rows.shape.dtype, flat.data() + element, count, piece);
      });
    }
  }
  return Fence{};
}

}  // namespace firn
