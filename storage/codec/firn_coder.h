// firn_coder.h: quantised coefficients to bytes and back. Four range coders side by side, each with bytes of its own,
// so that a decoder works on four numbers at a time; the models are static and come with the artefact, by the ratio of
// a coefficient's spread to the step. Integers only: the same bytes and the same numbers on every machine.
// Layout: docs/frame.md, section 9.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "firn/status.h"

namespace firn {

inline constexpr std::uint32_t kFirnClasses = 56;    // quarter octaves of spread / step, from 2^-1.5 on
inline constexpr std::uint32_t kFirnSymbols = 32;    // -15 to 15, and one that says that a number follows
inline constexpr std::uint32_t kFirnTotalBits = 14;  // frequencies of a class sum to 2^14
inline constexpr std::uint32_t kFirnCentroids = 4;   // magnitudes 1 to 4 decode to where they are on average
inline constexpr std::uint32_t kFirnStreams = 4;
inline constexpr std::int32_t kFirnLargest = 1 << 24;  // no quantised coefficient is larger

// Spread over step in sixteenths of an octave to the class that codes it; below -21 a coefficient is not coded at all.
inline constexpr std::int32_t kFirnDropped = -21;
constexpr std::uint32_t firn_class(std::int32_t sixteenths) {
  const std::int32_t quarter = (sixteenths + 24) / 4;  // sixteenths is -21 or more
  return quarter >= static_cast<std::int32_t>(kFirnClasses) ? kFirnClasses - 1 : static_cast<std::uint32_t>(quarter);
}
// Low bits of a class that are as good as random, and stand in the stream as they are.
constexpr std::uint32_t firn_low_bits(std::uint32_t klass) { return klass < 14 ? 0 : (klass - 10) / 4; }

// What all coefficients of all classes are coded with.
class FirnModels {
 public:
  // frequencies: [class][symbol]; kCorrupt: a class does not sum to 2^14, or has a symbol without a share.
  static Result<FirnModels> make(std::span<const std::uint16_t> frequencies);

  struct Class {
    std::array<std::uint16_t, kFirnSymbols + 1> first;  // cumulative
    std::array<std::uint8_t, 256> guess;                // by the upper 8 bits: no symbol before this one
  };
  const Class& of(std::uint32_t klass) const { return classes_[klass]; }

 private:
  std::vector<Class> classes_;
};

class FirnEncoder {
 public:
  // False: the number is too large to be coded.
  bool put(std::uint32_t stream, const FirnModels::Class& model, std::uint32_t low_bits, std::int32_t number);
  // Sizes of the first three streams, 4 bytes each, then the streams. Nothing may be put after.
  std::vector<std::byte> finish();

 private:
  struct Stream {
    std::uint64_t low = 0;
    std::uint32_t range = 0xFFFFFFFFu;
    std::uint8_t held = 0;      // the last byte before those that a carry may yet run through
    std::uint64_t pending = 1;  // it, and how many bytes of 255 follow it
    bool begun = false;         // the first byte held is none
    std::vector<std::byte> bytes;
    void shift();
    void narrow(std::uint32_t first, std::uint32_t share, std::uint32_t bits);
    void put_bits(std::uint32_t value, std::uint32_t bits);
  };
  std::array<Stream, kFirnStreams> streams_;
};

class FirnDecoder {
 public:
  // kCorrupt: the sizes do not fit.
  static Result<FirnDecoder> open(std::span<const std::byte> bytes);
  std::int32_t get(std::uint32_t stream, const FirnModels::Class& model, std::uint32_t low_bits);
  // One number of each stream.
  void get_four(const FirnModels::Class& model, std::uint32_t low_bits, std::int32_t* numbers);
  // All numbers were those of an encoder, and all bytes were used: kCorrupt if not. What get gave before is a number
  // within its bounds in any case.
  Status finish() const;

 private:
  struct Stream {
    const std::uint8_t* at = nullptr;
    const std::uint8_t* end = nullptr;
    std::uint32_t code = 0, range = 0xFFFFFFFFu;
    std::uint32_t broken = 0;  // read beyond the end, or met a number that nobody codes
    void refill();
    std::uint32_t get_bits(std::uint32_t bits);
    std::uint32_t symbol(const FirnModels::Class& model);
    std::int32_t number(const FirnModels::Class& model, std::uint32_t low_bits);
  };
  std::array<Stream, kFirnStreams> streams_;
};

}  // namespace firn
