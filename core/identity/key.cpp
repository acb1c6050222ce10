#include "firn/key.h"

#include <blake3.h>
#include <fmt/format.h>

#include <bit>
#include <cstring>
#include <new>

#include "core/base/check.h"
#include "core/identity/identity_bytes.h"

namespace firn {
namespace {

// Frozen by docs/keys.md; another value is another version of it.
constexpr char kIdentityContext[] = "firn 2026-11 model identity v1";
constexpr std::string_view kRootTag = "firn namespace root v1";
constexpr std::uint32_t kIdentityVersion = 1;
constexpr std::size_t kMaxExtraBytes = 4096;
constexpr std::size_t kKeyBytes = sizeof(Digest::bytes);
static_assert(kKeyBytes == BLAKE3_KEY_LEN && kKeyBytes == BLAKE3_OUT_LEN);

std::uint8_t* put_u32(std::uint8_t* at, std::uint32_t value) {
  for (int i = 0; i < 4; ++i) *at++ = static_cast<std::uint8_t>(value >> 8 * i);
  return at;
}

class Writer {
 public:
  void u32(std::uint32_t value) {
    std::uint8_t bytes[4];
    put_u32(bytes, value);
    raw(bytes, sizeof bytes);
  }
  void f32(float value) { u32(std::bit_cast<std::uint32_t>(value)); }
  void raw(const void* data, std::size_t size) {
    const auto* bytes = static_cast<const std::uint8_t*>(data);
    out_.insert(out_.end(), bytes, bytes + size);
  }
  std::vector<std::uint8_t> take() { return std::move(out_); }

 private:
  std::vector<std::uint8_t> out_;
};

// BLAKE3 looks the processor up at its first use and caches the answer in a plain global. Every thread writes the same
// value, but it is a data race all the same, so the first use is here, before there are threads.
[[maybe_unused]] const bool processor_known = [] {
  blake3_hasher state;
  std::uint8_t byte = 0;
  blake3_hasher_init(&state);
  blake3_hasher_finalize(&state, &byte, 1);
  return true;
}();

Digest finalize(const blake3_hasher& state) {
  Digest digest;
  blake3_hasher_finalize(&state, digest.bytes.data(), digest.bytes.size());
  return digest;
}

}  // namespace

static_assert(sizeof(blake3_hasher) <= 1920 && alignof(blake3_hasher) <= 8, "Hasher::state_ holds one");

Hasher::Hasher() { blake3_hasher_init(new (state_) blake3_hasher); }

void Hasher::update(std::span<const std::byte> bytes) {
  blake3_hasher_update(std::launder(reinterpret_cast<blake3_hasher*>(state_)), bytes.data(), bytes.size());
}

Digest Hasher::finish() const { return finalize(*std::launder(reinterpret_cast<const blake3_hasher*>(state_))); }

std::vector<std::uint8_t> identity_bytes(const ModelSpec& model) {
  Writer out;
  out.u32(kIdentityVersion);
  out.u32(kBlockTokens);
  out.raw(model.weights.bytes.data(), kKeyBytes);
  out.u32(static_cast<std::uint32_t>(model.adapters.size()));
  out.raw(model.adapters.data(), model.adapters.size());
  out.u32(static_cast<std::uint32_t>(model.groups.size()));
  for (const GroupSpec& group : model.groups) {
    out.u32(static_cast<std::uint32_t>(group.kind));
    out.u32(group.layer_count);
    out.u32(static_cast<std::uint32_t>(group.kv.dtype));
    out.u32(group.kv.kv_heads);
    out.u32(group.kv.head_dim);
    out.u32(group.kv.value_dim);
    out.u32(group.window);
  }
  out.u32(static_cast<std::uint32_t>(model.rotation.pairing));
  out.u32(model.rotation.dims);
  out.u32(static_cast<std::uint32_t>(model.rotation.inverse_frequencies.size()));
  for (const float frequency : model.rotation.inverse_frequencies) out.f32(frequency);
  out.f32(model.rotation.attention_factor);
  out.u32(model.shard_rank);
  out.u32(model.shard_count);
  return out.take();
}

Digest model_identity(const ModelSpec& model) {
  const std::vector<std::uint8_t> bytes = identity_bytes(model);
  blake3_hasher state;
  blake3_hasher_init_derive_key(&state, kIdentityContext);
  blake3_hasher_update(&state, bytes.data(), bytes.size());
  return finalize(state);
}

KeyChain::KeyChain(const Digest& identity, std::string_view salt) {
  std::uint8_t length[4];
  put_u32(length, static_cast<std::uint32_t>(salt.size()));
  blake3_hasher state;
  blake3_hasher_init_keyed(&state, identity.bytes.data());
  blake3_hasher_update(&state, kRootTag.data(), kRootTag.size());
  blake3_hasher_update(&state, length, sizeof length);
  blake3_hasher_update(&state, salt.data(), salt.size());
  root_ = finalize(state);
}

Key KeyChain::next(const Key& parent, std::span<const TokenId> tokens, std::span<const std::byte> extra) const {
  if (tokens.size() != kBlockTokens || extra.size() > kMaxExtraBytes) return {};
  // One buffer, one update: the hasher sees two whole 64-byte blocks at once instead of pieces to collect.
  std::uint8_t message[kKeyBytes + 4 + 4 * kBlockTokens + 4];
  std::memcpy(message, parent.bytes.data(), kKeyBytes);
  std::uint8_t* at = put_u32(message + kKeyBytes, kBlockTokens);
  for (const TokenId token : tokens) at = put_u32(at, static_cast<std::uint32_t>(token));
  put_u32(at, static_cast<std::uint32_t>(extra.size()));
  blake3_hasher state;
  blake3_hasher_init_keyed(&state, root_.bytes.data());
  blake3_hasher_update(&state, message, sizeof message);
  blake3_hasher_update(&state, extra.data(), extra.size());
  return finalize(state);
}

std::vector<Key> KeyChain::keys(std::span<const TokenId> tokens, const KeyExtras& extras) const {
  if (extras.empty()) return keys(tokens);
  std::vector<Key> keys(tokens.size() / kBlockTokens);
  Key parent;
  for (std::size_t i = 0; i < keys.size(); ++i)
    parent = keys[i] = next(parent, tokens.subspan(i * kBlockTokens, kBlockTokens),
                            block_extra(extras, i * std::uint64_t{kBlockTokens}));
  return keys;
}

// Parts one after the other, each behind its kind: the adapter in every block, a media item in the blocks that it
// touches, with the place where it begins seen from the block's first token, below 0 if it began before.
std::vector<std::byte> block_extra(const KeyExtras& extras, std::uint64_t first_token) {
  constexpr std::uint32_t kAdapter = 1, kMedia = 2;
  Writer out;
  const auto part = [&](std::uint32_t kind, const std::string& bytes) {
    out.u32(kind);
    out.u32(static_cast<std::uint32_t>(bytes.size()));
    out.raw(bytes.data(), bytes.size());
  };
  if (!extras.adapter.empty()) part(kAdapter, extras.adapter);
  for (const MediaItem& item : extras.media) {
    if (item.first_token >= first_token + kBlockTokens) break;
    if (std::uint64_t{item.first_token} + item.token_count <= first_token) continue;
    part(kMedia, item.digest);
    out.u32(static_cast<std::uint32_t>(static_cast<std::int64_t>(item.first_token) -
                                       static_cast<std::int64_t>(first_token)));
  }
  const std::vector<std::uint8_t> bytes = out.take();
  const std::span<const std::byte> view = std::as_bytes(std::span(bytes));
  return {view.begin(), view.end()};
}

Status validate(const KeyExtras& extras) {
  constexpr std::size_t kMostAdapterBytes = 256, kMostDigestBytes = 64, kMostItems = 65536;
  if (extras.adapter.size() > kMostAdapterBytes)
    return Status(Code::kInvalidArgument,
                  fmt::format("extras: an adapter's name of {} bytes; at most {}: give its digest",
                              extras.adapter.size(), kMostAdapterBytes));
  if (extras.media.size() > kMostItems)
    return Status(Code::kInvalidArgument,
                  fmt::format("extras: {} media items; at most {}", extras.media.size(), kMostItems));
  std::uint64_t end = 0;
  for (std::size_t i = 0; i < extras.media.size(); ++i) {
    const MediaItem& item = extras.media[i];
    const auto wrong = [&](std::string_view what) {
      return Status(Code::kInvalidArgument, fmt::format("extras: media[{}] {}", i, what));
    };
    if (item.token_count == 0) return wrong("has no tokens");
    if (item.digest.empty() || item.digest.size() > kMostDigestBytes)
      return wrong(
          fmt::format("has a digest of {} bytes; 1 to {} say what it shows", item.digest.size(), kMostDigestBytes));
    if (i != 0 && item.first_token < end)
      return wrong(fmt::format("begins at token {}, before the one ahead of it ends at {}", item.first_token, end));
    end = std::uint64_t{item.first_token} + item.token_count;
  }
  return {};
}

std::vector<Key> KeyChain::keys(std::span<const TokenId> tokens) const {
  std::vector<Key> keys(tokens.size() / kBlockTokens);
  Key parent;
  for (std::size_t i = 0; i < keys.size(); ++i)
    parent = keys[i] = next(parent, tokens.subspan(i * kBlockTokens, kBlockTokens));
  return keys;
}

}  // namespace firn
