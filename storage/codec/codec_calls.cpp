#include "storage/codec/codec_calls.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <string>

namespace firn {
namespace {

static_assert(std::endian::native == std::endian::little, "elements go into frames as they lie in memory");

// may_skip: a view without keys means that its block is not wanted.
Status check_views(const ExtentShape& shape, std::span<const BlockView> views, std::uint32_t layers, bool may_skip) {
  const std::size_t expected = std::size_t{layers} * shape.block_count;
  FIRN_TRY(check_call("number of views", views.size(), expected, expected));
  for (std::size_t i = 0; i < views.size(); ++i) {
    if (views[i].k == 0 && may_skip) continue;
    if (views[i].k == 0 || (views[i].v == 0 && shape.kv.value_dim != 0))
      return invalid_call(fmt::format("view {}", i), "has no address");
  }
  return {};
}

}  // namespace

TensorShape tensor_shape(const ExtentShape& shape, bool values) {
  return {.heads = shape.kv.kv_heads,
          .dim = values ? shape.kv.value_dim : shape.kv.head_dim,
          .element_bytes = bytes_of(shape.kv.dtype),
          .token_count = shape.block_count * kBlockTokens,
          .dtype = shape.kv.dtype};
}

Status invalid_call(std::string_view field, std::string_view what) {
  return Status(Code::kInvalidArgument, fmt::format("codec: {} {}", field, what));
}

Status check_call(std::string_view field, std::uint64_t value, std::uint64_t least, std::uint64_t most) {
  if (value >= least && value <= most) return {};
  return invalid_call(field, fmt::format("is {}; it must be {} to {}", value, least, most));
}

Status check_shape(const ExtentShape& shape) {
  FIRN_TRY(check_call("dtype", static_cast<unsigned>(shape.kv.dtype), 1, 4));
  FIRN_TRY(check_call("kv_heads", shape.kv.kv_heads, 1, kMaxKvHeads));
  FIRN_TRY(check_call("head_dim", shape.kv.head_dim, 1, kMaxHeadDim));
  FIRN_TRY(check_call("value_dim", shape.kv.value_dim, 0, kMaxHeadDim));
  FIRN_TRY(check_call("layer_count", shape.layer_count, 1, kMaxLayers));
  return check_call("block_count", shape.block_count, 1, kMaxExtentBlocks);
}

Status check_encode(const EncodeJob& job, const Codec& codec, std::size_t bound) {
  FIRN_TRY(check_views(job.shape, job.views, job.shape.layer_count, false));
  FIRN_TRY(check_call("fidelity", static_cast<unsigned>(job.label.fidelity), 1, 3));
  if (codec.fidelity() != Fidelity::kExact && job.label.fidelity == Fidelity::kExact)
    return invalid_call("fidelity", fmt::format("is exact, which {} is not", to_string(codec.id())));
  if (codec.fidelity() != Fidelity::kExact && job.shape.kv.dtype == Dtype::kBits8)
    return invalid_call("dtype", fmt::format("is bits8, whose values {} does not know", to_string(codec.id())));
  return check_call("bytes of out", job.out.size(), bound, ~std::uint64_t{0});
}

Status check_decode(const DecodeJob& job) {
  FIRN_TRY(check_shape(job.shape));
  FIRN_TRY(check_call("layer", job.layer, 0, job.shape.layer_count));
  FIRN_TRY(check_call("layer_count of the job", job.layer_count, 0, job.shape.layer_count - job.layer));
  return check_views(job.shape, job.views, job.layer_count, true);
}

Status differs(std::string_view field, std::string_view what) {
  return Status(Code::kCorrupt, fmt::format("frame: {} {}", field, what));
}

Status check_same(std::string_view field, std::uint64_t value, std::uint64_t expected) {
  if (value == expected) return {};
  return differs(field, fmt::format("is {}, not {}", value, expected));
}

Status check_identity(const FrameHeader& header, const DecodeJob& job, const Codec& codec) {
  const auto number = [](auto id) { return static_cast<std::uint64_t>(id); };
  FIRN_TRY(check_same("codec", number(header.codec), number(codec.id())));
  FIRN_TRY(check_same("codec_version", header.codec_version, codec.version()));
  if (header.label.last_key != job.label.last_key)
    return differs("last_key", "is " + to_hex(header.label.last_key) + ", not " + to_hex(job.label.last_key));
  FIRN_TRY(check_same("group", index(header.label.group), index(job.label.group)));
  FIRN_TRY(check_same("first_position", header.label.first_position, job.label.first_position));
  FIRN_TRY(check_same("fidelity", number(header.label.fidelity), number(job.label.fidelity)));
  if (codec.fidelity() != Fidelity::kExact && header.label.fidelity == Fidelity::kExact)
    return differs("fidelity", "is exact, which this codec is not");
  if (codec.fidelity() != Fidelity::kExact && header.shape.kv.dtype == Dtype::kBits8)
    return differs("dtype", "is bits8, which this codec does not code");
  FIRN_TRY(check_same("dtype", number(header.shape.kv.dtype), number(job.shape.kv.dtype)));
  FIRN_TRY(check_same("kv_heads", header.shape.kv.kv_heads, job.shape.kv.kv_heads));
  FIRN_TRY(check_same("head_dim", header.shape.kv.head_dim, job.shape.kv.head_dim));
  FIRN_TRY(check_same("value_dim", header.shape.kv.value_dim, job.shape.kv.value_dim));
  FIRN_TRY(check_same("layer_count", header.shape.layer_count, job.shape.layer_count));
  return check_same("block_count", header.shape.block_count, job.shape.block_count);
}

Status check_error(std::string_view field, float error, bool exact) {
  if (exact && error != 0) return differs(field, "is not zero");
  if (!std::isfinite(error) || error < 0) return differs(field, "is not a finite number of 0 or more");
  return {};
}

std::uint64_t finish_frame(FrameHeader header, std::span<SectionEntry> entries, std::span<std::byte> out) {
  std::uint64_t at = frame_head_bytes(static_cast<std::uint32_t>(entries.size()));
  for (SectionEntry& entry : entries) {
    if (entry.offset != at) std::memmove(out.data() + at, out.data() + entry.offset, align_frame(entry.encoded_bytes));
    entry.offset = at;
    at += align_frame(entry.encoded_bytes);
  }
  header.total_bytes = at;
  write_frame_head(header, entries, out);
  return at;
}

}  // namespace firn
