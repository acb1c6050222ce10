// artefact.h: a calibration file in memory, and the way from and to bytes. The file is safetensors (docs/codecs.md,
// section 3); its last tensor is the BLAKE3 of everything before it, which is also the artefact's name. Reading
// believes nothing: bytes from anywhere earn kCorrupt and a reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "firn/codec.h"
#include "firn/model.h"
#include "firn/status.h"
#include "storage/codec/firn_artefact.h"

namespace firn {

// A stack's transform of one tensor: coefficients = basis (values - mean).
struct StackBasis {
  std::uint32_t first_layer = 0, layer_count = 0;
  std::uint32_t channels = 0, components = 0;  // channels: [layer][head][dim]
  std::vector<float> mean;                     // [channels]
  std::vector<std::uint16_t> basis;            // f16 [components][channels], by falling energy
};

// Consecutive components coded alike: one shift and one scale a token. bits 0: they are not stored.
struct Group {
  std::uint32_t size = 0, bits = 0;
  bool operator==(const Group&) const = default;
};
using StackPlan = std::vector<Group>;  // from component 0 on; no group without bits at the end

// One rate. Of firn, whose rates are steps (FirnModel::rates), the report alone.
struct KvtcPlan {
  ArtefactRate report;
  std::vector<StackPlan> keys, values;  // one per stack
  const std::vector<StackPlan>& of(bool value_plans) const { return value_plans ? values : keys; }
};

class Artefact {
 public:
  Digest digest;  // of its bytes
  CodecId codec = CodecId::kKvtc;
  std::string model_name, calibrated_on;  // for people
  Digest weights;                         // of the model it was calibrated on
  KvShape kv;
  std::uint32_t layer_count = 0;
  RotationSpec rotation;
  std::uint32_t stack_layers = 0;  // 0: all
  std::uint64_t tokens = 0;        // calibrated on
  std::vector<StackBasis> keys, values;
  std::vector<KvtcPlan> plans;
  FirnModel firn;  // of the codec firn, which has no keys and values here
  std::uint64_t file_bytes = 0;
  const std::vector<StackBasis>& of(bool value_stacks) const { return value_stacks ? values : keys; }
};

inline constexpr std::uint32_t kMaxGroup = 1024;

// Bits of a coded token: codes, and 32 for the shift and scale of each group that has any.
std::uint64_t plan_bits(const StackPlan& plan);
std::uint32_t plan_components(const StackPlan& plan);  // components up to the last one stored

// The bytes of the file; sets artefact.digest and file_bytes.
std::vector<std::byte> write_artefact(Artefact& artefact);

}  // namespace firn
