// raw: bytes as they are, in the frame's order.
#include <fmt/format.h>

#include "storage/codec/layer_codec.h"

namespace firn {

class RawCodec final : public LayerCodec {
 public:
  CodecId id() const override { return CodecId::kRaw; }
  std::uint16_t version() const override { return 1; }
  std::size_t scratch_bytes(const ExtentShape&) const override { return 0; }
  std::vector<BlockView> stored_views(const ExtentShape& shape, DeviceAddress frame) const override;

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

std::vector<BlockView> RawCodec::stored_views(const ExtentShape& shape, DeviceAddress frame) const {
  const auto row = static_cast<std::uint32_t>(bytes_of(shape.kv.dtype));
  const std::uint32_t k_head = shape.kv.head_dim * row, v_head = shape.kv.value_dim * row;
  BlockView view{.token_stride = shape.kv.kv_heads * k_head,
                 .head_stride = k_head,
                 .v_token_stride = shape.kv.kv_heads * v_head,
                 .v_head_stride = v_head};
  std::vector<BlockView> views;
  for (std::uint32_t layer = 0; layer < shape.layer_count; ++layer)
    for (std::uint64_t block = 0; block < shape.block_count; ++block) {
      view.k = frame + section_offset(shape, 2 * layer) + block * kBlockTokens * view.token_stride;
      view.v = frame + section_offset(shape, 2 * layer + 1) + block * kBlockTokens * view.v_token_stride;
      views.push_back(view);
    }
  return views;
}

std::unique_ptr<Codec> make_raw_codec() { return std::make_unique<RawCodec>(); }

}  // namespace firn
