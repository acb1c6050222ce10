// kvtc_codec.h: KVTC as published: centre, project onto a basis over a stack of layers, quantise groups of coefficients
// by a plan, pack, entropy-code. Keys have their rotation taken off first. Layout: docs/frame.md, section 7.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "firn/codec.h"
#include "firn/coding.h"
#include "storage/codec/artefact.h"

namespace firn {

// Coefficients of tokens, [token][stride], to packed codes and back. Exposed for the calibration and its tests.
std::size_t packed_bytes(const StackPlan& plan, std::size_t tokens);
// False: a coefficient has no f16 range. decoded, if given, becomes what unpack will give; like coefficients.
bool pack_coefficients(const StackPlan& plan, const float* coefficients, std::size_t stride, std::size_t tokens,
                       std::span<std::byte> out, float* decoded = nullptr);
Status unpack_coefficients(const StackPlan& plan, std::span<const std::byte> from, std::size_t tokens,
                           std::size_t stride, float* coefficients);

// Processor seconds of decoding, by part: where a restore's time goes. Sums over threads.
struct KvtcTimes {
  double entropy_s = 0;  // checking and inflating sections
  double unpack_s = 0;   // codes to coefficients
  double project_s = 0;  // coefficients to keys and values: the products
  double copy_s = 0;     // mean, rotation, rounding, writing where the views say
};
// As decode, and adds to times. The codec is kvtc's.
void decode_timed(const Codec& codec, DecodeJob& job, ThreadPool* threads, KvtcTimes& times);

// What coding kernels need of a codec of kvtc: the transform of one of its frames' sections, without addresses, and
// what lies there. The codec outlives the spans.
struct StackTables {
  StackTransform transform;
  std::span<const float> mean;
  std::span<const std::uint16_t> basis;
};
StackTables stack_tables(const Codec& codec, std::uint32_t section);
// What TransformItem::turns points to; empty if keys are not rotated.
std::vector<float> key_turns(const Codec& codec, std::uint64_t first_position, std::uint32_t token_count);

}  // namespace firn
