#include "firn/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

namespace firn {
namespace {

// Bounds of what has none in model.h.
constexpr std::size_t kMaxAdapterBytes = 64 * 1024, kMaxNameBytes = 1024;
constexpr std::uint32_t kMaxShards = 4096, kMaxWindow = 1u << 30;

Status wrong(std::string_view field, std::string_view what) {
  return Status(Code::kInvalidArgument, fmt::format("model: {} {}", field, what));
}

Status check_range(std::string_view field, std::uint64_t value, std::uint64_t least, std::uint64_t most) {
  if (value >= least && value <= most) return {};
  return wrong(field, fmt::format("is {}; it must be {} to {}", value, least, most));
}

bool has_value_rows(GroupKind kind) { return kind != GroupKind::kLatent; }  // a latent row serves as key and value
bool is_rotated(GroupKind kind) { return kind != GroupKind::kState; }

Status validate_group(const GroupSpec& group, std::string_view at) {
  const auto field = [&](std::string_view name) { return fmt::format("{}.{}", at, name); };
  const auto kind = static_cast<unsigned>(group.kind);
  FIRN_TRY(check_range(field("kind"), kind, static_cast<unsigned>(GroupKind::kFull),
                       static_cast<unsigned>(GroupKind::kState)));
  FIRN_TRY(check_range(field("kv.dtype"), static_cast<unsigned>(group.kv.dtype), static_cast<unsigned>(Dtype::kF16),
                       static_cast<unsigned>(Dtype::kBits8)));
  FIRN_TRY(check_range(field("layer_count"), group.layer_count, 1, kMaxLayers));
  FIRN_TRY(check_range(field("kv.kv_heads"), group.kv.kv_heads, 1, kMaxKvHeads));
  FIRN_TRY(check_range(field("kv.head_dim"), group.kv.head_dim, 1, kMaxHeadDim));
  FIRN_TRY(check_range(field("kv.value_dim"), group.kv.value_dim, has_value_rows(group.kind) ? 1 : 0, kMaxHeadDim));
  if (group.kind == GroupKind::kSlidingWindow) return check_range(field("window"), group.window, 1, kMaxWindow);
  if (group.window != 0) return wrong(field("window"), "must be 0: only a sliding-window group has one");
  return {};
}

Status validate_rotation(const RotationSpec& rotation, std::span<const GroupSpec> groups) {
  FIRN_TRY(check_range("rotation.pairing", static_cast<unsigned>(rotation.pairing), 0,
                       static_cast<unsigned>(RotationSpec::Pairing::kHalves)));
  if (!std::isfinite(rotation.attention_factor) || rotation.attention_factor <= 0)
    return wrong("rotation.attention_factor", "must be finite and above 0");
  if (rotation.pairing == RotationSpec::Pairing::kNone) {
    if (rotation.dims != 0) return wrong("rotation.dims", "must be 0 where nothing is rotated");
    if (!rotation.inverse_frequencies.empty())
      return wrong("rotation.inverse_frequencies", "must be empty where nothing is rotated");
    return {};
  }
  std::uint32_t most = kMaxHeadDim;
  for (const GroupSpec& group : groups)
    if (is_rotated(group.kind)) most = std::min(most, group.kv.head_dim);
  FIRN_TRY(check_range("rotation.dims", rotation.dims, 2, most));
  if (rotation.dims % 2 != 0) return wrong("rotation.dims", "must be even: dimensions rotate in pairs");
  if (rotation.inverse_frequencies.size() != rotation.dims / 2)
    return wrong("rotation.inverse_frequencies",
                 fmt::format("has {} entries; {} dims need {}", rotation.inverse_frequencies.size(), rotation.dims,
                             rotation.dims / 2));
  for (const float frequency : rotation.inverse_frequencies)
    if (!std::isfinite(frequency)) return wrong("rotation.inverse_frequencies", "must be finite");
  return {};
}

}  // namespace

std::string_view to_string(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF16:
      return "f16";
    case Dtype::kBf16:
      return "bf16";
    case Dtype::kF32:
      return "f32";
    case Dtype::kBits8:
      return "bits8";
  }
  return "unknown dtype";
}

std::string to_hex(const Digest& digest) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * digest.bytes.size());
  for (const std::uint8_t byte : digest.bytes) text += {kDigits[byte >> 4], kDigits[byte & 15]};
  return text;
}

std::uint64_t ModelSpec::token_bytes() const {
  std::uint64_t bytes = 0;
  for (const GroupSpec& group : groups) bytes += group.token_bytes();
  return bytes;
}

Result<PageLayout> page_layout(const ModelSpec& model) {
  std::uint32_t shared = 0;
  for (const GroupSpec& group : model.groups) shared = std::gcd(shared, group.layer_count);
  PageLayout layout;
  for (std::size_t g = 0; g < model.groups.size(); ++g) {
    const GroupSpec& group = model.groups[g];
    for (std::uint32_t done = 0; done < group.layer_count; done += shared) {
      layout.sets.push_back({.group = GroupId{static_cast<std::uint16_t>(g)},
                             .kind = group.kind,
                             .kv = group.kv,
                             .first_layer = layout.layer_count,
                             .layer_count = shared,
                             .window = group.window,
                             .query_heads = group.query_heads != 0 ? group.query_heads : group.kv.kv_heads * 8});
      layout.page_bytes = std::max(layout.page_bytes, layout.sets.back().block_bytes());
      layout.layer_count += shared;
    }
  }
  if (layout.sets.size() > kMaxPageSets)
    return wrong("groups", fmt::format("share pages of {} layers, which makes {} page sets; at most {} are supported: "
                                       "choose groups whose layer counts have a larger common divisor",
                                       shared, layout.sets.size(), kMaxPageSets));
  return layout;
}

Status validate(const ModelSpec& model) {
  FIRN_TRY(check_range("name length", model.name.size(), 0, kMaxNameBytes));
  FIRN_TRY(check_range("adapters length", model.adapters.size(), 0, kMaxAdapterBytes));
  FIRN_TRY(check_range("number of groups", model.groups.size(), 1, kMaxGroups));
  std::uint64_t layers = 0;
  for (std::size_t g = 0; g < model.groups.size(); ++g) {
    FIRN_TRY(validate_group(model.groups[g], fmt::format("groups[{}]", g)));
    layers += model.groups[g].layer_count;
  }
  FIRN_TRY(check_range("sum of layer_count", layers, 1, kMaxLayers));
  FIRN_TRY(validate_rotation(model.rotation, model.groups));
  FIRN_TRY(check_range("shard_count", model.shard_count, 1, kMaxShards));
  return check_range("shard_rank", model.shard_rank, 0, model.shard_count - 1);
}

}  // namespace firn
