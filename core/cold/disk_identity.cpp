// disk_identity.cpp: what a directory says of the model whose frames it holds, field by field, for people; the digest
// decides.
#include <fmt/format.h>

#include "firn/disk_tier.h"
#include "firn/key.h"

namespace firn {
namespace {

std::string_view kind_of(GroupKind kind) {
  switch (kind) {
    case GroupKind::kFull:
      return "full";
    case GroupKind::kSlidingWindow:
      return "window";
    case GroupKind::kLatent:
      return "latent";
    case GroupKind::kState:
      return "state";
  }
  return "unknown";
}

std::string hex_of(std::span<const float> values) {
  Hasher hasher;
  hasher.update(std::as_bytes(values));
  return to_hex(hasher.finish()).substr(0, 16);
}

}  // namespace

DiskIdentity disk_identity(const ModelSpec& model) {
  DiskIdentity identity;
  const bool known = !model.weights.is_zero();
  if (known) identity.digest = model_identity(model);
  auto& fields = identity.fields;
  fields.emplace_back("weights", known ? to_hex(model.weights) : "unknown");
  fields.emplace_back("adapters", model.adapters);
  const RotationSpec& rotation = model.rotation;
  fields.emplace_back("rotation",
                      fmt::format("pairing {} dims {} frequencies {} factor {}", static_cast<int>(rotation.pairing),
                                  rotation.dims, hex_of(rotation.inverse_frequencies), rotation.attention_factor));
  std::string dtype, geometry;
  for (const GroupSpec& group : model.groups) {
    const std::string_view comma = geometry.empty() ? "" : ", ";
    dtype += fmt::format("{}{}", comma, to_string(group.kv.dtype));
    geometry += fmt::format("{}{} layers {} heads {} dims {}/{} window {}", comma, kind_of(group.kind),
                            group.layer_count, group.kv.kv_heads, group.kv.head_dim, group.kv.value_dim, group.window);
  }
  fields.emplace_back("dtype", dtype);
  fields.emplace_back("geometry", geometry);
  fields.emplace_back("block_tokens", std::to_string(kBlockTokens));
  fields.emplace_back("shard", fmt::format("{}/{}", model.shard_rank, model.shard_count));
  return identity;
}

}  // namespace firn
