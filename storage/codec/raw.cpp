// raw: bytes as they are, in the frame's order.
#include <fmt/format.h>

#include "storage/codec/layer_codec.h"

namespace firn {

class RawCodec final : public LayerCodec {
 public:
  CodecId id() const override { return CodecId::kRaw; }
  std::uint16_t version() const override { return 1; }
  std::size_t scratch_bytes(const ExtentShape&) const override { return 0; }

 private:
  Encoded encode_section(const TensorRows& rows, std::span<std::byte> out) const override;
  Status decode_section(std::uint8_t coding, std::span<const std::byte> payload, const TensorRows& rows) const override;
};

LayerCodec::Encoded RawCodec::encode_section(const TensorRows& rows, std::span<std::byte> out) const {
  gather(rows, out);
  return {kStored, out.size()};
}

Status RawCodec::decode_section(std::uint8_t coding, std::span<const std::byte> payload, const TensorRows& rows) const {
  if (coding != kStored) return Status(Code::kCorrupt, fmt::format("frame: coding is {}, not {}", coding, kStored));
  return scatter(payload, rows);
}

std::unique_ptr<Codec> make_raw_codec() { return std::make_unique<RawCodec>(); }

}  // namespace firn
