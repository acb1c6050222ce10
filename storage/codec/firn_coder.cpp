#include "storage/codec/firn_coder.h"

#include <fmt/format.h>

#include <bit>
#include <cstdlib>
#include <string>

#include "core/base/check.h"
#include "storage/codec/bytes.h"

namespace firn {
namespace {

constexpr std::uint32_t kTotal = 1u << kFirnTotalBits;
constexpr std::uint32_t kTop = 1u << 24;  // a range is never smaller when a symbol is coded
constexpr std::int32_t kMost = 15;        // largest magnitude with a symbol
constexpr std::uint32_t kEscape = 31;
constexpr std::uint32_t kLengthBits = 5;  // of the length of what follows an escape
constexpr std::size_t kDirectoryBytes = 4 * (kFirnStreams - 1);

Status corrupt(std::string what) { return Status(Code::kCorrupt, std::move(what)); }

}  // namespace

Result<FirnModels> FirnModels::make(std::span<const std::uint16_t> frequencies) {
  if (frequencies.size() != std::size_t{kFirnClasses} * kFirnSymbols) return corrupt("models are of another number");
  FirnModels models;
  models.classes_.resize(kFirnClasses);
  for (std::uint32_t k = 0; k < kFirnClasses; ++k) {
    Class& model = models.classes_[k];
    std::uint32_t sum = 0;
    for (std::uint32_t s = 0; s < kFirnSymbols; ++s) {
      const std::uint32_t share = frequencies[k * kFirnSymbols + s];
      if (share == 0 || share >= kTotal) return corrupt(fmt::format("class {}: symbol {} has no share", k, s));
      model.first[s] = static_cast<std::uint16_t>(sum);
      sum += share;
      if (sum > kTotal) break;
    }
    if (sum != kTotal) return corrupt(fmt::format("class {} does not sum to {}", k, kTotal));
    model.first[kFirnSymbols] = kTotal;
    std::uint32_t symbol = 0;
    for (std::uint32_t i = 0; i < 256; ++i) {
      while (model.first[symbol + 1] <= i << (kFirnTotalBits - 8)) ++symbol;
      model.guess[i] = static_cast<std::uint8_t>(symbol);
    }
  }
  return models;
}

// --- encoding ---
void FirnEncoder::Stream::shift() {
  if (static_cast<std::uint32_t>(low) < 0xFF000000u || low >> 32 != 0) {
    const auto carry = static_cast<std::uint8_t>(low >> 32);
    if (begun) bytes.push_back(static_cast<std::byte>(held + carry));
    for (; pending > 1; --pending) bytes.push_back(static_cast<std::byte>(0xFF + carry));
    begun = true;
    held = static_cast<std::uint8_t>(low >> 24);
    pending = 0;
  }
  ++pending;
  low = (low & 0x00FFFFFFu) << 8;
}

void FirnEncoder::Stream::narrow(std::uint32_t first, std::uint32_t share, std::uint32_t bits) {
  const std::uint32_t unit = range >> bits;
  low += std::uint64_t{unit} * first;
  range = unit * share;
  while (range < kTop) {
    range <<= 8;
    shift();
  }
}

void FirnEncoder::Stream::put_bits(std::uint32_t value, std::uint32_t bits) {
  for (; bits > 8; bits -= 8) narrow(value >> (bits - 8) & 255, 1, 8);
  if (bits != 0) narrow(value & ((1u << bits) - 1), 1, bits);
}

bool FirnEncoder::put(std::uint32_t stream, const FirnModels::Class& model, std::uint32_t low_bits,
                      std::int32_t number) {
  if (number > kFirnLargest || number < -kFirnLargest) return false;
  Stream& to = streams_[stream];
  const std::int32_t high = number >> low_bits;
  const std::uint32_t symbol = std::abs(high) <= kMost ? static_cast<std::uint32_t>(high + kMost) : kEscape;
  to.narrow(model.first[symbol], static_cast<std::uint32_t>(model.first[symbol + 1] - model.first[symbol]),
            kFirnTotalBits);
  if (symbol == kEscape) {
    const auto beyond = static_cast<std::uint32_t>(std::abs(high) - kMost);  // 1 or more
    const std::uint32_t coded = 2 * beyond + (high < 0 ? 1 : 0);
    const auto length = static_cast<std::uint32_t>(std::bit_width(coded)) - 1;  // 1 to 25
    to.put_bits(length, kLengthBits);
    to.put_bits(coded - (1u << length), length);
  }
  to.put_bits(static_cast<std::uint32_t>(number), low_bits);
  return true;
}

std::vector<std::byte> FirnEncoder::finish() {
  std::vector<std::byte> out(kDirectoryBytes);
  for (std::uint32_t i = 0; i < kFirnStreams; ++i) {
    Stream& stream = streams_[i];
    for (int k = 0; k < 5; ++k) stream.shift();
    if (i + 1 < kFirnStreams) store_le(out.data() + 4 * i, static_cast<std::uint32_t>(stream.bytes.size()));
    out.insert(out.end(), stream.bytes.begin(), stream.bytes.end());
  }
  return out;
}

// --- decoding ---
Result<FirnDecoder> FirnDecoder::open(std::span<const std::byte> bytes) {
  if (bytes.size() < kDirectoryBytes) return corrupt("streams have no sizes");
  FirnDecoder decoder;
  std::span<const std::byte> rest = bytes.subspan(kDirectoryBytes);
  for (std::uint32_t i = 0; i < kFirnStreams; ++i) {
    const std::size_t size =
        i + 1 < kFirnStreams ? load_le<std::uint32_t>(bytes.data() + std::size_t{4} * i) : rest.size();
    if (size < 4 || size > rest.size()) return corrupt("a stream reaches beyond the section");
    Stream& stream = decoder.streams_[i];
    stream.at = reinterpret_cast<const std::uint8_t*>(rest.data());
    stream.end = stream.at + size;
    for (int k = 0; k < 4; ++k) stream.code = stream.code << 8 | *stream.at++;
    rest = rest.subspan(size);
  }
  return decoder;
}

inline void FirnDecoder::Stream::refill() {
  while (range < kTop) {
    range <<= 8;
    std::uint32_t byte = 0;
    if (at != end)
      byte = *at++;
    else
      broken = 1;
    code = code << 8 | byte;
  }
}

inline std::uint32_t FirnDecoder::Stream::get_bits(std::uint32_t bits) {
  std::uint32_t value = 0;
  while (bits != 0) {
    const std::uint32_t some = bits > 8 ? 8 : bits;
    range >>= some;
    std::uint32_t part = code / range;
    if (part >> some != 0) {
      part = (1u << some) - 1;
      broken = 1;
    }
    code -= part * range;
    value = value << some | part;
    bits -= some;
    refill();
  }
  return value;
}

inline std::uint32_t FirnDecoder::Stream::symbol(const FirnModels::Class& model) {
  const std::uint32_t unit = range >> kFirnTotalBits;
  std::uint32_t place = code / unit;
  if (place >= kTotal) {
    place = kTotal - 1;
    broken = 1;
  }
  std::uint32_t found = model.guess[place >> (kFirnTotalBits - 8)];
  while (model.first[found + 1] <= place) ++found;
  code -= unit * model.first[found];
  range = unit * static_cast<std::uint32_t>(model.first[found + 1] - model.first[found]);
  refill();
  return found;
}

inline std::int32_t FirnDecoder::Stream::number(const FirnModels::Class& model, std::uint32_t low_bits) {
  const std::uint32_t found = symbol(model);
  std::int32_t high = static_cast<std::int32_t>(found) - kMost;
  if (found == kEscape) {
    std::uint32_t length = get_bits(kLengthBits);
    if (length < 1 || length > 25) {
      length = 1;
      broken = 1;
    }
    const std::uint32_t coded = (1u << length) + get_bits(length);
    high = static_cast<std::int32_t>(coded >> 1) + kMost;
    if ((coded & 1) != 0) high = -high;
  }
  if (low_bits == 0 && found != kEscape) return high;
  const std::int64_t all =
      std::int64_t{high} * (std::int64_t{1} << low_bits) + (low_bits == 0 ? 0 : std::int64_t{get_bits(low_bits)});
  if (all > kFirnLargest || all < -kFirnLargest) {
    broken = 1;
    return 0;
  }
  return static_cast<std::int32_t>(all);
}

std::int32_t FirnDecoder::get(std::uint32_t stream, const FirnModels::Class& model, std::uint32_t low_bits) {
  return streams_[stream].number(model, low_bits);
}

void FirnDecoder::get_four(const FirnModels::Class& model, std::uint32_t low_bits, std::int32_t* numbers) {
  for (std::uint32_t i = 0; i < kFirnStreams; ++i) numbers[i] = streams_[i].number(model, low_bits);
}

Status FirnDecoder::finish() const {
  for (const Stream& stream : streams_)
    if (stream.broken != 0 || stream.at != stream.end || stream.code != 0)
      return corrupt("the coded numbers do not end where their bytes do");
  return {};
}

}  // namespace firn
