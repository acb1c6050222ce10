// codec.h: turns an extent (1 to 8 consecutive blocks, all layers of a group) into a frame and back. Bound, encode,
// decode: always over batches of extents, because one block a call starves every codec worth having. A frame says what
// it is (docs/frame.md); a decoder believes none of it before it has checked it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "firn/device.h"
#include "firn/export.h"
#include "firn/ids.h"
#include "firn/key.h"
#include "firn/model.h"
#include "firn/status.h"

namespace firn {

class ThreadPool;

enum class CodecId : std::uint16_t { kRaw = 1, kLossless = 2, kQ8 = 3, kQ4 = 4, kKvtc = 5, kFirn = 6 };  // on disk
FIRN_API std::string_view to_string(CodecId id);
FIRN_API Result<CodecId> codec_from_name(std::string_view name);  // kInvalidArgument lists the names there are

// How a copy relates to what the model computed.
enum class Fidelity : std::uint8_t {
  kExact = 1,    // bit for bit
  kLossy = 2,    // decoded from a lossy frame
  kDerived = 3,  // computed by the model while it attended lossy context
};
FIRN_API std::string_view to_string(Fidelity fidelity);

struct ExtentShape {
  KvShape kv;
  std::uint32_t layer_count = 0;
  std::uint32_t block_count = 0;  // 1 to kMaxExtentBlocks
  auto operator<=>(const ExtentShape&) const = default;
  std::uint64_t raw_bytes() const { return std::uint64_t{layer_count} * block_count * kBlockTokens * kv.token_bytes(); }
};

// What a frame holds and for whom: written into its header by encode, compared on every read.
struct FrameLabel {
  Key last_key;  // key of the extent's last block: names all tokens up to there, model and namespace
  GroupId group{};
  std::uint64_t first_position = 0;      // position of the extent's first token; the tokens are consecutive
  Fidelity fidelity = Fidelity::kExact;  // of the content
  auto operator<=>(const FrameLabel&) const = default;
};

struct EncodeJob {
  ExtentShape shape;
  FrameLabel label;
  std::span<const BlockView> views;  // [layer][block], host-readable
  std::span<std::byte> out;          // at least bound(shape) bytes, 64-byte aligned
  // Results:
  std::size_t bytes = 0;  // of out used
  Status status;
  // What decoding will change, measured: root of (squares of the changes / squares of the values, less the artefact's
  // mean where there is one). 0 for exact codecs.
  float key_error = 0, value_error = 0;
};

struct DecodeJob {
  std::span<const std::byte> frame;
  ExtentShape shape;                         // what the caller expects; a frame of another shape is kCorrupt
  FrameLabel label;                          // likewise
  std::uint32_t layer = 0, layer_count = 0;  // which layers to decode
  std::span<const BlockView> views;  // [layer_count][block_count] destinations, host-writable; k == 0: skip this block
  Status status;                     // result; on failure the destinations hold unspecified bytes
};

struct ErrorBound {
  float keys = std::numeric_limits<float>::infinity(), values = std::numeric_limits<float>::infinity();
};

class FIRN_API Codec {
 public:
  virtual ~Codec() = default;
  virtual CodecId id() const = 0;
  virtual std::uint16_t version() const = 0;
  virtual Fidelity fidelity() const = 0;            // of what it decodes to, given exact input
  virtual std::uint32_t rate() const { return 0; }  // in every frame's header and name; 0: it has none
  virtual Digest artefact() const { return {}; }    // likewise
  // An extent whose measured errors exceed these is not what the codec was measured on: store it lossless.
  virtual ErrorBound error_bound() const { return {}; }
  // Bytes that the codec itself holds as long as it lives, charged by whoever made it.
  virtual std::size_t resident_bytes() const { return 0; }
  // No frame of this shape is larger.
  virtual std::size_t bound(const ExtentShape& shape) const = 0;
  // Where a frame at this address has the extent's elements as they are, [layer][block]: a device can copy them there
  // itself, or from there; encode, whose views these are, then leaves them, and decode only checks them. Empty: this
  // codec codes them.
  virtual std::vector<BlockView> stored_views(const ExtentShape& shape, DeviceAddress frame) const;
  // Bytes of scratch one encode or decode call needs per thread, charged by the caller.
  virtual std::size_t scratch_bytes(const ExtentShape& shape) const = 0;
  // Each job's status tells how it ended. threads may be null: all in the calling thread. Same bytes either way.
  virtual void encode(std::span<EncodeJob> jobs, ThreadPool* threads) const = 0;
  virtual void decode(std::span<DecodeJob> jobs, ThreadPool* threads) const = 0;
};

// raw, lossless, q8 and q4 need nothing else; the transform codecs take an artefact and have makers of their own.
FIRN_API Result<std::unique_ptr<Codec>> make_codec(CodecId id);

// q8 and q4: blocks of 32 values with one scale each. The codec is called q8 if its keys have 8 bits.
struct IntegerCoding {
  std::uint32_t key_bits = 8, value_bits = 8;  // 4 or 8
  bool mix_keys = true, mix_values = true;     // Hadamard transform of each head first: outliers spread over all values
};
FIRN_API Result<std::unique_ptr<Codec>> make_integer_codec(const IntegerCoding& coding);

// --- artefacts: what a transform codec learnt of a model (docs/codecs.md) ---
// What was measured of one rate, on text that took no part in the calibration.
struct ArtefactRate {
  std::uint32_t rate = 0;     // the codec's rate setting; of kvtc the target ratio, before entropy coding
  double realised_ratio = 0;  // raw bytes / frame bytes
  double payload_bits = 0;    // bits a token and tensor before entropy coding, keys and values together...
  double target_bits = 0;     // ...of this many allowed
  ErrorBound bound;           // above: not what it was measured on
  bool measured = false;      // the figures below are there
  double mean_kld = 0, p99_kld = 0, top1 = 0;
  std::uint64_t measured_tokens = 0;
  std::vector<double> key_errors, value_errors;  // relative, per layer
};
struct ArtefactInfo {
  CodecId codec = CodecId::kKvtc;
  Digest digest;
  std::string model, calibrated_on;
  std::uint32_t layer_count = 0, stack_layers = 0;  // stack_layers 0: all
  std::uint64_t tokens = 0, file_bytes = 0;
  std::vector<ArtefactRate> rates;
};
class Artefact;
// kCorrupt: the file is not what it says it is. Everything is checked before it is used.
FIRN_API Result<std::shared_ptr<const Artefact>> load_artefact(const std::string& path);
FIRN_API Result<std::shared_ptr<const Artefact>> parse_artefact(std::span<const std::byte> bytes);
FIRN_API ArtefactInfo describe(const Artefact& artefact);

enum class EntropyCoder : std::uint8_t { kNone = 0, kDeflate = 1, kZstd = 2 };
// kInvalidArgument: the artefact is of another model or codec, or has no such rate; the message lists what it has.
FIRN_API Result<std::unique_ptr<Codec>> make_codec(CodecId id, std::shared_ptr<const Artefact> artefact,
                                                   std::uint32_t rate, const ModelSpec& model,
                                                   EntropyCoder entropy = EntropyCoder::kDeflate);

}  // namespace firn
