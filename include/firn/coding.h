// coding.h: the arithmetic of q8, q4 and kvtc on a device: block slots to quantised payloads and back, in the bytes
// that the codec of the host has before its entropy stage (docs/frame.md, sections 6 and 7). Entropy coding, checksums
// and frames stay with the host, and so does what cannot be coded: sums say that, and the section is stored.
//
// An optional capability of a device: coding_kernels() finds it, or null. Like all kernels these take addresses,
// return the fence of their completion, and have one order of summation whatever the batch. Encoded bits of q8 and q4
// are those of the host; coefficients of kvtc are sums of many products, so that a code may differ by one
// (docs/codecs.md).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "firn/device.h"
#include "firn/export.h"
#include "firn/model.h"
#include "firn/status.h"

namespace firn {

// What an encode tells of one item, folded from its sums by the host.
struct CodingSums {
  bool coded = true;                    // false: a value is not finite or has no finite scale; the payload is of no use
  double error_energy = 0, energy = 0;  // squares summed: of what decoding will change, and of what there was
};

// --- q8 and q4: one layer's keys or values of an extent ---
struct IntegerItem {
  DeviceAddress payload = 0;      // payload_bytes, a multiple of 4
  DeviceAddress sums = 0;         // encode: sums_bytes, a multiple of 4
  std::uint32_t view = 0;         // index of the layer's first BlockView in views, one per block
  std::uint32_t block_count = 0;  // 1 to kMaxExtentBlocks
};
struct IntegerBatch {
  KvShape shape{};
  bool values = false;                 // of each view its V, else its K
  std::uint32_t bits = 8;              // 4 or 8
  bool mix = true;                     // Hadamard transform of each head first
  std::span<const BlockView> views{};  // decode: a block whose k is 0 takes no part
  std::span<const IntegerItem> items{};
};

// --- kvtc: the keys or values of one stack of layers of an extent ---
struct CoefficientGroup {
  std::uint32_t size = 0, bits = 0;  // bits 0, 2, 4 or 8; 0: not stored
};
// A stack's transform at one rate. The tables lie on the device for as long as batches use them.
struct StackTransform {
  bool values = false;
  std::uint32_t layer_count = 0;
  std::vector<CoefficientGroup> groups;  // from component 0 on
  // Keys alone: how they were rotated, and what their rotation was scaled by.
  RotationSpec::Pairing pairing = RotationSpec::Pairing::kNone;
  std::uint32_t rotated_dims = 0;
  float attention_factor = 1;
  DeviceAddress mean = 0;         // f32 [layer][head][dim]
  DeviceAddress basis = 0;        // f16 [component][layer][head][dim]
  DeviceAddress group_table = 0;  // group_table(groups)
};
struct TransformItem {
  DeviceAddress payload = 0;      // payload_bytes, a multiple of 4
  DeviceAddress sums = 0;         // encode: sums_bytes, a multiple of 4
  DeviceAddress turns = 0;        // rotated keys: f32 cosines, then sines, [token][rotated_dims / 2] each
  std::uint32_t view = 0;         // index of its first BlockView in views: [layer][block]
  std::uint32_t block_count = 0;  // 1 to kMaxExtentBlocks
};
struct TransformBatch {
  KvShape shape{};
  const StackTransform* stack = nullptr;
  // Layers of the stack that items' views are for. Encode needs all of them.
  std::uint32_t first_layer = 0, layer_count = 0;
  std::span<const BlockView> views{};  // decode: a block whose k is 0 takes no part in that layer
  std::span<const TransformItem> items{};
  DeviceAddress scratch = 0;  // scratch_bytes, a multiple of 4
};

class FIRN_API CodingKernels {
 public:
  virtual ~CodingKernels() = default;
  virtual Result<Fence> encode(const IntegerBatch& batch) = 0;
  virtual Result<Fence> decode(const IntegerBatch& batch) = 0;  // payloads were checked: scales are finite
  virtual Result<Fence> encode(const TransformBatch& batch) = 0;
  virtual Result<Fence> decode(const TransformBatch& batch) = 0;  // likewise

  static std::uint64_t payload_bytes(const IntegerBatch& batch, std::uint32_t block_count);
  static std::uint64_t payload_bytes(const StackTransform& stack, std::uint32_t block_count);
  static std::uint64_t sums_bytes(const IntegerBatch& batch, std::uint32_t block_count);
  static std::uint64_t sums_bytes(const StackTransform& stack, std::uint32_t block_count);
  static std::uint64_t scratch_bytes(const TransformBatch& batch);
  // u32 [group][4]: first component, size, bits, and where the group begins in a payload of one block.
  static std::vector<std::uint32_t> group_table(std::span<const CoefficientGroup> groups);
  // sums as an encode left them; of any other size they say nothing, and so does what is folded (coded: false).
  static CodingSums fold(const IntegerBatch& batch, std::uint32_t block_count, std::span<const float> sums);
  static CodingSums fold(const StackTransform& stack, std::uint32_t block_count, std::span<const float> sums);
};

// Null: the device has none, and the host codes. The cpu device is the host.
inline CodingKernels* coding_kernels(Kernels& kernels) { return dynamic_cast<CodingKernels*>(&kernels); }

}  // namespace firn
