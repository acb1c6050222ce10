// codec_table.h: the codecs that a cache has, side by side: one that it codes with, and all that it can decode by. A
// frame is decoded by the codec that its header names (id, version, artefact, rate), whatever codes now.
// Threads: any; immutable after create.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "firn/codec.h"
#include "firn/model.h"
#include "firn/status.h"

namespace firn {

class CodecTable {
 public:
  struct Options {
    std::string codec = "lossless";  // raw | lossless | q8 | q4 | q8/q4 | q4/q8 (keys/values) | kvtc@RATE
    std::string artefact;            // kvtc
    bool allow_unmeasured = false;   // kvtc
  };
  // kInvalidArgument names what is wrong with the codec, its artefact or the model.
  static Result<CodecTable> create(const Options& options, const ModelSpec& model);

  const Codec& exact() const { return *exact_; }  // what codes when bytes must not change
  const Codec& usual() const { return *usual_; }  // what codes otherwise
  bool lossy() const { return usual_->fidelity() != Fidelity::kExact; }
  // kCorrupt: its head is damaged, or no codec here is the one that it names.
  Result<const Codec*> of_frame(std::span<const std::byte> frame) const;

  std::size_t bound(const ExtentShape& shape) const;          // of whichever codes
  std::size_t scratch_bytes(const ExtentShape& shape) const;  // per thread, of all
  std::size_t resident_bytes() const;

 private:
  std::vector<std::unique_ptr<Codec>> codecs_;
  const Codec* exact_ = nullptr;
  const Codec* usual_ = nullptr;
};

}  // namespace firn
