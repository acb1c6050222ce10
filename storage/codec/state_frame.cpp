#define ZSTD_STATIC_LINKING_ONLY  // for estimates of context sizes
#include "storage/codec/state_frame.h"

#include <fmt/format.h>
#include <xxhash.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "core/base/check.h"
#include "storage/codec/bytes.h"
#include "storage/codec/entropy.h"
#include "storage/codec/frame.h"

namespace firn {
namespace {

constexpr std::array<std::byte, 8> kMagic = {std::byte{0x89}, std::byte{'F'},  std::byte{'I'},  std::byte{'R'},
                                             std::byte{'S'},  std::byte{0x0d}, std::byte{0x0a}, std::byte{0x1a}};
constexpr std::uint16_t kStateVersion = 1;
constexpr int kZstdLevel = 3;  // entropy.cpp's

namespace at {
constexpr std::size_t kVersion = 8, kHeaderBytes = 10, kCoding = 12, kFlags = 13, kZero = 14, kTotalBytes = 16,
                      kRawBytes = 24, kEncodedBytes = 32, kKey = 40, kChecksum = 72, kReserved = 80,
                      kHeadChecksum = 120;
}

Status corrupt(std::string_view what) { return Status(Code::kCorrupt, fmt::format("state frame: {}", what)); }

// Seeded with the name: right bytes under a wrong name fail like wrong bytes.
std::uint64_t payload_checksum(const Key& key, std::span<const std::byte> padded) {
  return XXH3_64bits_withSeed(padded.data(), padded.size(), XXH3_64bits(key.bytes.data(), key.bytes.size()));
}

}  // namespace

std::size_t state_bound(std::size_t raw_bytes) { return kStateHeaderBytes + align_frame(raw_bytes); }

std::size_t state_scratch_bytes() { return ZSTD_estimateCCtxSize(kZstdLevel) + ZSTD_estimateDCtxSize(); }

std::size_t write_state(const Key& key, bool bound, std::span<const std::byte> raw, std::span<std::byte> out) {
  FIRN_CHECK(!raw.empty() && out.size() >= state_bound(raw.size()));
  const std::span<std::byte> body = out.subspan(kStateHeaderBytes);
  const std::size_t worth = raw.size() - raw.size() / 16;  // coding has to save a sixteenth
  std::size_t encoded = raw.size() < 64 ? 0 : entropy_encode(EntropyCoder::kZstd, raw, body.first(worth));
  const std::uint8_t coding = encoded != 0 ? 1 : 0;
  if (encoded == 0) {
    std::memcpy(body.data(), raw.data(), raw.size());
    encoded = raw.size();
  }
  const std::span<std::byte> padded = body.first(align_frame(encoded));
  std::fill(padded.begin() + static_cast<std::ptrdiff_t>(encoded), padded.end(), std::byte{0});

  std::byte* head = out.data();
  std::memset(head, 0, kStateHeaderBytes);
  std::copy(kMagic.begin(), kMagic.end(), head);
  store_le(head + at::kVersion, kStateVersion);
  store_le(head + at::kHeaderBytes, static_cast<std::uint16_t>(kStateHeaderBytes));
  store_le(head + at::kCoding, coding);
  store_le(head + at::kFlags, static_cast<std::uint8_t>(bound ? 1 : 0));
  store_le(head + at::kTotalBytes, std::uint64_t{kStateHeaderBytes + padded.size()});
  store_le(head + at::kRawBytes, std::uint64_t{raw.size()});
  store_le(head + at::kEncodedBytes, std::uint64_t{encoded});
  std::memcpy(head + at::kKey, key.bytes.data(), sizeof(Digest::bytes));
  store_le(head + at::kChecksum, payload_checksum(key, padded));
  store_le(head + at::kHeadChecksum, std::uint64_t{XXH3_64bits(head, at::kHeadChecksum)});
  return kStateHeaderBytes + padded.size();
}

Result<StateHeader> open_state(std::span<const std::byte> frame) {
  if (frame.size() < kStateHeaderBytes) return corrupt("shorter than a header");
  const std::byte* head = frame.data();
  if (!std::equal(kMagic.begin(), kMagic.end(), head)) return corrupt("magic is not that of a state");
  if (load_le<std::uint16_t>(head + at::kVersion) != kStateVersion) return corrupt("format_version is unknown");
  if (load_le<std::uint16_t>(head + at::kHeaderBytes) != kStateHeaderBytes) return corrupt("header_bytes is not 128");
  if (load_le<std::uint64_t>(head + at::kHeadChecksum) != XXH3_64bits(head, at::kHeadChecksum))
    return corrupt("head checksum does not match");
  StateHeader header;
  std::memcpy(header.key.bytes.data(), head + at::kKey, sizeof(Digest::bytes));
  header.coding = std::to_integer<std::uint8_t>(head[at::kCoding]);
  header.bound = (std::to_integer<unsigned>(head[at::kFlags]) & 1) != 0;
  header.total_bytes = load_le<std::uint64_t>(head + at::kTotalBytes);
  header.raw_bytes = load_le<std::uint64_t>(head + at::kRawBytes);
  header.encoded_bytes = load_le<std::uint64_t>(head + at::kEncodedBytes);
  header.checksum = load_le<std::uint64_t>(head + at::kChecksum);
  if (header.coding > 1) return corrupt("coding is unknown");
  if ((std::to_integer<unsigned>(head[at::kFlags]) & ~1u) != 0) return corrupt("flags are unknown");
  if (load_le<std::uint16_t>(head + at::kZero) != 0) return corrupt("zero is not zero");
  for (std::size_t i = at::kReserved; i < at::kHeadChecksum; ++i)
    if (head[i] != std::byte{0}) return corrupt("reserved is not zero");
  if (header.total_bytes != frame.size()) return corrupt("total_bytes is not the frame's size");
  if (header.encoded_bytes == 0 || header.encoded_bytes > frame.size() - kStateHeaderBytes ||
      kStateHeaderBytes + align_frame(header.encoded_bytes) != frame.size())
    return corrupt("encoded_bytes does not end where the frame does");
  if (header.raw_bytes == 0 || (header.coding == 0 && header.raw_bytes != header.encoded_bytes))
    return corrupt("raw_bytes is not what is stored");
  return header;
}

Result<std::size_t> read_state(std::span<const std::byte> frame, const Key& key, std::span<std::byte> room) {
  FIRN_ASSIGN(const StateHeader header, open_state(frame));
  if (header.key != key) return corrupt("key is another's");
  if (room.size() < header.raw_bytes)
    return Status(Code::kInvalidArgument,
                  fmt::format("room of {} bytes for a state of {}", room.size(), header.raw_bytes));
  const std::span<const std::byte> padded = frame.subspan(kStateHeaderBytes);
  if (payload_checksum(key, padded) != header.checksum) return corrupt("payload checksum does not match");
  for (std::size_t i = header.encoded_bytes; i < padded.size(); ++i)
    if (padded[i] != std::byte{0}) return corrupt("padding is not zero");
  const std::span<const std::byte> payload = padded.first(header.encoded_bytes);
  if (header.coding == 0)
    std::memcpy(room.data(), payload.data(), payload.size());
  else
    FIRN_TRY(entropy_decode(EntropyCoder::kZstd, payload, room.first(header.raw_bytes)).with_context("state frame"));
  return static_cast<std::size_t>(header.raw_bytes);
}

}  // namespace firn
