// coded_sections.h: a frame's sections apart from the frame: payloads as they are before an entropy stage, which is
// what a device's coding kernels make and read (firn/coding.h). The host seals payloads into a frame and opens a frame
// into payloads; nobody can tell such a frame from one that was coded here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "firn/codec.h"
#include "firn/status.h"

namespace firn {

struct CodedSection {
  bool stored = false;                  // it could not be coded: the job's views are gathered instead
  std::span<const std::byte> payload;   // else
  double error_energy = 0, energy = 0;  // squares summed: of what decoding will change, and of what there was
};
struct OpenedSection {
  std::uint32_t section = 0;       // its number in the frame: keys, then values of each layer or stack
  bool stored = false;             // payload holds the elements as they are
  std::vector<std::byte> payload;  // checked: a device may decode it
};

// What q8, q4 and kvtc can do besides encode and decode.
class SectionCodec {
 public:
  virtual ~SectionCodec() = default;
  // As encode, with sections that are coded already, one for each of the frame's. job.views are read for those alone
  // that are stored.
  virtual void seal(EncodeJob& job, std::span<const CodedSection> sections) const = 0;
  // The sections that decoding the job needs, in the frame's order. Views say which layers and blocks are wanted; what
  // they point to is not touched.
  virtual Result<std::vector<OpenedSection>> open(const DecodeJob& job) const = 0;
};
// Null: the codec's payloads are no device's business.
inline const SectionCodec* section_codec(const Codec& codec) { return dynamic_cast<const SectionCodec*>(&codec); }

}  // namespace firn
