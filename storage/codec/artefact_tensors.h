// artefact_tensors.h: the tensors of an artefact's file while it is read. Each is taken once, with the shape it must
// have; what nobody has taken is no tensor of an artefact.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "firn/status.h"

namespace firn {

struct ArtefactTensor {
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::span<const std::byte> bytes;
};
using ArtefactTensors = std::map<std::string, ArtefactTensor>;

Status corrupt_artefact(std::string_view field, std::string_view what);
// The bytes of a tensor of exactly this type and shape.
Result<std::span<const std::byte>> take_tensor(ArtefactTensors& tensors, const std::string& name, const char* dtype,
                                               std::vector<std::uint64_t> shape);
Result<std::vector<float>> take_floats(ArtefactTensors& tensors, const std::string& name, std::uint64_t count);
// binary16, all finite.
Result<std::vector<std::uint16_t>> take_halves(ArtefactTensors& tensors, const std::string& name,
                                               std::vector<std::uint64_t> shape);

}  // namespace firn
