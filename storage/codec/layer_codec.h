// layer_codec.h: what raw, lossless, q8 and q4 share: one section per layer and tensor, each coded alone. This class
// checks the call and the frame, places sections, and spreads them over threads; a codec codes one section.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "firn/codec.h"
#include "firn/status.h"
#include "storage/codec/tensor_rows.h"

namespace firn {

class LayerCodec : public Codec {
 public:
  Fidelity fidelity() const override { return Fidelity::kExact; }
  std::size_t bound(const ExtentShape& shape) const final;
  void encode(std::span<EncodeJob> jobs, ThreadPool* threads) const final;
  void decode(std::span<DecodeJob> jobs, ThreadPool* threads) const final;

 protected:
  static std::uint64_t section_offset(const ExtentShape& shape, std::uint32_t section);  // where encode codes it
  static constexpr std::uint8_t kStored = 0;  // coding of a section that holds the elements as they are
  struct Encoded {
    std::uint8_t coding = kStored;
    std::size_t bytes = 0;
    double error_energy = 0, energy = 0;  // squares summed: of what decoding will change, and of what there was
  };
  // Codes one section, or takes what is coded already, into out; looks at one section's payload.
  using Coder = std::function<Encoded(std::uint32_t section, const TensorRows& rows, std::span<std::byte> out)>;
  using Reader = std::function<Status(std::uint32_t section, std::uint8_t coding, std::span<const std::byte> payload,
                                      const TensorRows& rows)>;
  void encode_with(std::span<EncodeJob> jobs, ThreadPool* threads, const Coder& code) const;
  void decode_with(std::span<DecodeJob> jobs, ThreadPool* threads, const Reader& read) const;

 private:
  // out holds rows.shape.bytes() bytes, and no section is larger. Threads: several at once.
  virtual Encoded encode_section(const TensorRows& rows, std::span<std::byte> out) const = 0;
  // kCorrupt: what is wrong with payload, which nobody has looked into yet. Blocks that take no part are not written.
  virtual Status decode_section(std::uint8_t coding, std::span<const std::byte> payload,
                                const TensorRows& rows) const = 0;
};

std::unique_ptr<Codec> make_raw_codec();
std::unique_ptr<Codec> make_lossless_codec();
// Scratch that lossless keeps for the calling thread right now: never more than scratch_bytes of the largest shape so
// far.
std::size_t lossless_scratch_held();

}  // namespace firn
