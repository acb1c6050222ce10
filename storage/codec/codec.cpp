// The codecs by name, and their makers.
#include "firn/codec.h"

#include <fmt/format.h>

#include <array>
#include <string>

#include "storage/codec/layer_codec.h"

namespace firn {
namespace {
constexpr std::array kCodecs = {CodecId::kRaw, CodecId::kLossless, CodecId::kQ8,
                                CodecId::kQ4,  CodecId::kKvtc,     CodecId::kFirn};
}

std::vector<BlockView> Codec::stored_views(const ExtentShape&, DeviceAddress) const { return {}; }

std::string_view to_string(CodecId id) {
  switch (id) {
    case CodecId::kRaw:
      return "raw";
    case CodecId::kLossless:
      return "lossless";
    case CodecId::kQ8:
      return "q8";
    case CodecId::kQ4:
      return "q4";
    case CodecId::kKvtc:
      return "kvtc";
    case CodecId::kFirn:
      return "firn";
  }
  return "unknown codec";
}

Result<CodecId> codec_from_name(std::string_view name) {
  std::string names;
  for (const CodecId id : kCodecs) {
    if (to_string(id) == name) return id;
    names += (names.empty() ? "" : ", ") + std::string(to_string(id));
  }
  return Status(Code::kInvalidArgument, fmt::format("no codec is called '{}'; there are {}", name, names));
}

std::string_view to_string(Fidelity fidelity) {
  switch (fidelity) {
    case Fidelity::kExact:
      return "exact";
    case Fidelity::kLossy:
      return "lossy";
    case Fidelity::kDerived:
      return "derived";
  }
  return "unknown fidelity";
}

Result<std::unique_ptr<Codec>> make_codec(CodecId id) {
  if (id == CodecId::kRaw) return make_raw_codec();
  if (id == CodecId::kLossless) return make_lossless_codec();
  if (id == CodecId::kQ8) return make_integer_codec({.key_bits = 8, .value_bits = 8});
  if (id == CodecId::kQ4) return make_integer_codec({.key_bits = 4, .value_bits = 4});
  return Status(
      Code::kInvalidArgument,
      fmt::format("codec {} cannot be made from its name alone; raw, lossless, q8 and q4 can", to_string(id)));
}

}  // namespace firn
