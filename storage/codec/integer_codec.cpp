// q8 and q4: blocks of 32 values with one f16 scale, perhaps after a Hadamard transform of each head. The baselines
// that everybody knows. Layout: docs/frame.md, section 6. Keys keep their rotation.
//
// A scale is rounded to f16 before anything is divided by it, so that encoder and decoder multiply by one number. What
// has no such scale (infinities, NaNs, f32 beyond its range) is stored as it is, a section at a time.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/base/check.h"
#include "storage/codec/bytes.h"
#include "storage/codec/coded_sections.h"
#include "storage/codec/integer_codec.h"
#include "storage/codec/layer_codec.h"
#include "storage/codec/lossy_kernels.h"

namespace firn {
namespace {

constexpr std::uint8_t kInteger8 = 1, kInteger4 = 2;  // coding of a section
constexpr std::size_t kBlockValues = 32;

// What a rate says: bits of keys and values, and whether each is mixed.
constexpr std::uint32_t rate_of(const IntegerCoding& coding) {
  return coding.key_bits | coding.value_bits << 8 | (coding.mix_keys ? 1u << 16 : 0) |
         (coding.mix_values ? 1u << 17 : 0);
}

// Blocks do not reach over heads: the last of a head may be shorter.
std::size_t blocks_of_head(std::size_t dim) { return (dim + kBlockValues - 1) / kBlockValues; }

// Scales of all blocks, then codes of all heads, each head padded to whole bytes.
struct Layout {
  Layout(const TensorShape& shape, std::uint32_t code_bits)
      : bits(code_bits),
        head_count(std::size_t{shape.token_count} * shape.heads),
        dim(shape.dim),
        head_blocks(blocks_of_head(shape.dim)),
        head_bytes((shape.dim * std::size_t{code_bits} + 7) / 8) {}
  std::size_t bits, head_count, dim, head_blocks, head_bytes;
  std::size_t scale_bytes() const { return head_count * head_blocks * 2; }
  std::size_t bytes() const { return scale_bytes() + head_count * head_bytes; }
};

// Widest power of two that divides a head: what the transform works on.
std::size_t mixed_width(std::size_t dim) { return dim & (~dim + 1); }

// One block: its scale (0: all codes are 0) and its codes. False: it has none.
bool quantise(const float* values, std::size_t count, std::size_t bits, std::uint16_t& scale, std::int8_t* codes) {
  if (!lossy::all_finite(values, count)) return false;
  // 4 bits have one more code below zero than above: the largest magnitude takes it, whatever its sign.
  const float* top =
      std::max_element(values, values + count, [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  scale = lossy::to_f16(bits == 8 ? std::fabs(*top) / 127.0f : *top / -8.0f);
  const float rounded = lossy::from_f16(scale);
  if (!std::isfinite(rounded)) return false;
  const float inverse = rounded == 0 ? 0 : 1.0f / rounded;
  if (!std::isfinite(inverse)) {  // the smallest scales have no reciprocal in f32
    scale = 0;
    std::memset(codes, 0, count);
    return true;
  }
  lossy::to_codes(values, count, inverse, bits == 8 ? -127 : -8, bits == 8 ? 127 : 7, codes);
  return true;
}

void dequantise(const std::int8_t* codes, std::size_t count, float scale, float* values) {
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(codes[i]) * scale;
}

void pack_codes(const std::int8_t* codes, std::size_t count, std::size_t bits, std::byte* out) {
  if (bits == 8) {
    std::memcpy(out, codes, count);
    return;
  }
  for (std::size_t i = 0; i < count; i += 2) {  // the first value in the low half
    const unsigned low = static_cast<unsigned>(codes[i]) & 15;
    const unsigned high = i + 1 < count ? static_cast<unsigned>(codes[i + 1]) & 15 : 0;
    out[i / 2] = static_cast<std::byte>(low | high << 4);
  }
}

void unpack_codes(const std::byte* from, std::size_t count, std::size_t bits, std::int8_t* codes) {
  if (bits == 8) {
    std::memcpy(codes, from, count);
    return;
  }
  const auto sign_extend = [](unsigned half) { return static_cast<std::int8_t>(static_cast<int>(half ^ 8) - 8); };
  for (std::size_t i = 0; i < count; ++i) {
    const auto byte = std::to_integer<unsigned>(from[i / 2]);
    codes[i] = sign_extend(i % 2 == 0 ? byte & 15 : byte >> 4);
  }
}

Status corrupt(std::string_view what) { return Status(Code::kCorrupt, std::string(what)); }

}  // namespace

bool code_integers(const TensorRows& rows, const IntegerTensor& tensor, std::span<std::byte> out, IntegerSums& sums,
                   std::span<float> head_sums) {
  const TensorShape& shape = rows.shape;
  const Layout layout(shape, tensor.bits);
  std::vector<float> values(shape.elements());
  rows.for_each_piece([&](const std::byte* piece, std::size_t element, std::size_t count) {
    lossy::load(shape.dtype, piece, count, values.data() + element);
  });
  sums = {.energy = lossy::energy(values.data(), values.size())};
  const std::size_t width = mixed_width(layout.dim);
  if (tensor.mix) lossy::hadamard(values.data(), width, values.size() / width);
  std::vector<std::int8_t> codes(layout.dim);
  std::vector<float> decoded(layout.dim);
  std::byte* scales = out.data();
  std::byte* packed = out.data() + layout.scale_bytes();
  bool scaled = true;
  for (std::size_t head = 0; head < layout.head_count; ++head) {
    const float* row = values.data() + head * layout.dim;
    bool head_scaled = true;
    for (std::size_t at = 0; at < layout.dim; at += kBlockValues, scales += 2) {
      const std::size_t count = std::min(kBlockValues, layout.dim - at);
      std::uint16_t scale = 0;
      head_scaled = quantise(row + at, count, layout.bits, scale, codes.data() + at) && head_scaled;
      if (!head_scaled && head_sums.empty()) return false;
      store_le(scales, scale);
      dequantise(codes.data() + at, count, lossy::from_f16(scale), decoded.data() + at);
    }
    const double error = lossy::distance(row, decoded.data(), layout.dim);  // the transform keeps distances
    sums.error_energy += error;
    if (!head_sums.empty()) {
      head_sums[2 * head] = head_scaled ? static_cast<float>(error) : -1.0f;
      head_sums[2 * head + 1] = head_scaled ? static_cast<float>(lossy::energy(row, layout.dim)) : 0.0f;
    }
    scaled = scaled && head_scaled;
    pack_codes(codes.data(), layout.dim, layout.bits, packed);
    packed += layout.head_bytes;
  }
  return scaled;
}

Status check_integers(const TensorShape& shape, std::uint32_t bits, std::span<const std::byte> payload) {
  const Layout layout(shape, bits);
  if (payload.size() != layout.bytes())
    return corrupt(fmt::format("codes are {} bytes, not {}", payload.size(), layout.bytes()));
  for (std::size_t at = 0; at < layout.scale_bytes(); at += 2)
    if (!std::isfinite(lossy::from_f16(load_le<std::uint16_t>(payload.data() + at))))
      return corrupt("a scale is no finite number");
  return {};
}

void decode_integers(std::span<const std::byte> payload, const IntegerTensor& tensor, const TensorRows& rows) {
  const TensorShape& shape = rows.shape;
  const Layout layout(shape, tensor.bits);
  const std::size_t width = mixed_width(layout.dim);
  std::vector<float> values(layout.head_count * layout.dim);
  std::vector<std::int8_t> codes(layout.dim);
  const std::byte* scales = payload.data();
  const std::byte* packed = payload.data() + layout.scale_bytes();
  for (std::size_t head = 0; head < layout.head_count; ++head, packed += layout.head_bytes) {
    unpack_codes(packed, layout.dim, layout.bits, codes.data());
    float* row = values.data() + head * layout.dim;
    for (std::size_t at = 0; at < layout.dim; at += kBlockValues, scales += 2)
      dequantise(codes.data() + at, std::min(kBlockValues, layout.dim - at),
                 lossy::from_f16(load_le<std::uint16_t>(scales)), row + at);
  }
  if (tensor.mix) lossy::hadamard(values.data(), width, values.size() / width);
  rows.for_each_piece([&](std::byte* piece, std::size_t element, std::size_t count) {
    lossy::store(shape.dtype, values.data() + element, count, piece);
  });
}

class IntegerCodec final : public LayerCodec, public SectionCodec {
 public:
  explicit IntegerCodec(const IntegerCoding& coding) : coding_(coding) {}
  CodecId id() const override { return coding_.key_bits == 8 ? CodecId::kQ8 : CodecId::kQ4; }
  std::uint16_t version() const override { return 1; }
  Fidelity fidelity() const override { return Fidelity::kLossy; }
  std::uint32_t rate() const override { return rate_of(coding_); }
  std::size_t scratch_bytes(const ExtentShape& shape) const override {
    return std::size_t{2} * shape.block_count * kBlockTokens * shape.kv.kv_heads *
           std::max(shape.kv.head_dim, shape.kv.value_dim) * sizeof(float);
  }
  void seal(EncodeJob& job, std::span<const CodedSection> sections) const override;
  Result<std::vector<OpenedSection>> open(const DecodeJob& job) const override;

 private:
  Encoded encode_section(const TensorRows& rows, std::span<std::byte> out) const override;
  Status decode_section(std::uint8_t coding, std::span<const std::byte> payload, const TensorRows& rows) const override;
  Status check_payload(std::uint8_t coding, std::span<const std::byte> payload, const TensorRows& rows) const;
  IntegerTensor tensor(const TensorRows& rows) const {
    return rows.values ? IntegerTensor{coding_.value_bits, coding_.mix_values}
                       : IntegerTensor{coding_.key_bits, coding_.mix_keys};
  }
  static std::uint8_t coding_of(std::uint32_t bits) { return bits == 8 ? kInteger8 : kInteger4; }

  IntegerCoding coding_;
};

LayerCodec::Encoded IntegerCodec::encode_section(const TensorRows& rows, std::span<std::byte> out) const {
  const IntegerTensor how = tensor(rows);
  const std::size_t bytes = Layout(rows.shape, how.bits).bytes();
  IntegerSums sums;
  if (bytes >= out.size() || !code_integers(rows, how, out.first(bytes), sums)) {
    gather(rows, out);
    return {kStored, out.size()};
  }
  return {coding_of(how.bits), bytes, sums.error_energy, sums.energy};
}

Status IntegerCodec::check_payload(std::uint8_t coding, std::span<const std::byte> payload,
                                   const TensorRows& rows) const {
  const std::uint32_t bits = tensor(rows).bits;
  if (coding == kStored) {
    if (payload.size() != rows.shape.bytes()) return corrupt("stored elements are of another size");
    return {};
  }
  if (coding != coding_of(bits)) return corrupt(fmt::format("coding is {}, not 0 or {}", coding, coding_of(bits)));
  return check_integers(rows.shape, bits, payload);
}

Status IntegerCodec::decode_section(std::uint8_t coding, std::span<const std::byte> payload,
                                    const TensorRows& rows) const {
  if (coding == kStored) return scatter(payload, rows);
  FIRN_TRY(check_payload(coding, payload, rows));
  decode_integers(payload, tensor(rows), rows);
  return {};
}

void IntegerCodec::seal(EncodeJob& job, std::span<const CodedSection> sections) const {
  FIRN_CHECK(sections.size() == 2 * job.shape.layer_count);
  encode_with({&job, 1}, nullptr, [&](std::uint32_t i, const TensorRows& rows, std::span<std::byte> out) -> Encoded {
    const CodedSection& section = sections[i];
    if (section.stored || section.payload.size() >= out.size()) {
      gather(rows, out);
      return {kStored, out.size()};
    }
    const std::uint32_t bits = tensor(rows).bits;
    FIRN_CHECK(section.payload.size() == Layout(rows.shape, bits).bytes());
    std::memcpy(out.data(), section.payload.data(), section.payload.size());
    return {coding_of(bits), section.payload.size(), section.error_energy, section.energy};
  });
}

Result<std::vector<OpenedSection>> IntegerCodec::open(const DecodeJob& wanted) const {
  DecodeJob job = wanted;
  std::vector<OpenedSection> opened;
  decode_with({&job, 1}, nullptr,
              [&](std::uint32_t i, std::uint8_t coding, std::span<const std::byte> payload, const TensorRows& rows) {
                const Status status = check_payload(coding, payload, rows);
                if (status.ok()) opened.push_back({i, coding == kStored, {payload.begin(), payload.end()}});
                return status;
              });
  FIRN_TRY(job.status);
  return opened;
}

Result<std::unique_ptr<Codec>> make_integer_codec(const IntegerCoding& coding) {
  for (const auto& [field, bits] : {std::pair{"key_bits", coding.key_bits}, std::pair{"value_bits", coding.value_bits}})
    if (bits != 4 && bits != 8)
      return Status(Code::kInvalidArgument, fmt::format("q8 and q4: {} is {}; it must be 4 or 8", field, bits));
  return std::unique_ptr<Codec>(std::make_unique<IntegerCodec>(coding));
}

}  // namespace firn
