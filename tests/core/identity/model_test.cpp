// A ModelSpec: every field that changes K or V changes the identity, and every number is bounded before anything uses
// it.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "firn/key.h"
#include "firn/model.h"

namespace firn {
namespace {

ModelSpec two_groups() {
  ModelSpec model;
  model.name = std::string("test");
  model.weights.bytes.fill(7);
  model.adapters = std::string("a");
  model.groups = {{GroupKind::kFull, 4, {Dtype::kF16, 2, 64, 64}, 0},
                  {GroupKind::kSlidingWindow, 4, {Dtype::kF16, 2, 64, 64}, 128}};
  model.rotation = {RotationSpec::Pairing::kAdjacent, 4, {1.0f, 0.5f}, 1.0f};
  model.shard_rank = 0;
  model.shard_count = 2;
  return model;
}

struct Change {
  const char* what;
  std::function<void(ModelSpec&)> apply;
};

TEST(ModelIdentity, EachFieldChangesIt) {
  const std::vector<Change> changes = {
      {"weights", [](ModelSpec& m) { m.weights.bytes[31] ^= 1; }},
      {"adapters", [](ModelSpec& m) { m.adapters = std::string("b"); }},
      {"no adapters", [](ModelSpec& m) { m.adapters.clear(); }},
      {"kind", [](ModelSpec& m) { m.groups[0].kind = GroupKind::kLatent; }},
      {"layer_count", [](ModelSpec& m) { m.groups[0].layer_count = 5; }},
      {"dtype", [](ModelSpec& m) { m.groups[0].kv.dtype = Dtype::kBf16; }},
      {"kv_heads", [](ModelSpec& m) { m.groups[1].kv.kv_heads = 4; }},
      {"head_dim", [](ModelSpec& m) { m.groups[1].kv.head_dim = 32; }},
      {"value_dim", [](ModelSpec& m) { m.groups[1].kv.value_dim = 32; }},
      {"window", [](ModelSpec& m) { m.groups[1].window = 129; }},
      {"one group less", [](ModelSpec& m) { m.groups.pop_back(); }},
      {"order of groups", [](ModelSpec& m) { std::swap(m.groups[0], m.groups[1]); }},
      {"pairing", [](ModelSpec& m) { m.rotation.pairing = RotationSpec::Pairing::kHalves; }},
      {"dims", [](ModelSpec& m) { m.rotation.dims = 6; }},
      {"frequencies", [](ModelSpec& m) { m.rotation.inverse_frequencies[1] = std::nextafter(0.5f, 1.0f); }},
      {"number of frequencies", [](ModelSpec& m) { m.rotation.inverse_frequencies.push_back(0.25f); }},
      {"attention_factor", [](ModelSpec& m) { m.rotation.attention_factor = 1.5f; }},
      {"shard_rank", [](ModelSpec& m) { m.shard_rank = 1; }},
      {"shard_count", [](ModelSpec& m) { m.shard_count = 4; }},
  };
  std::set<Digest> seen{model_identity(two_groups())};
  for (const Change& change : changes) {
    ModelSpec model = two_groups();
    change.apply(model);
    EXPECT_TRUE(seen.insert(model_identity(model)).second) << change.what << " does not change the identity";
  }
}

TEST(ModelIdentity, LeavesOutWhatNoCacheDependsOn) {
  ModelSpec model = two_groups();
  model.name = std::string("another");
  model.groups[0].query_heads = 9;
  EXPECT_EQ(model_identity(model), model_identity(two_groups()));
}

TEST(ModelSpec, CountsBytesOverItsGroups) {
  const ModelSpec model = two_groups();
  EXPECT_EQ(model.groups[0].kv.token_bytes(), 2u * (64 + 64) * 2);
  EXPECT_EQ(model.token_bytes(), 2u * 4 * 512);
  EXPECT_EQ(model.block_bytes(), 16 * model.token_bytes());
}

TEST(Validate, AcceptsWhatModelsAre) {
  EXPECT_TRUE(validate(two_groups()).ok()) << validate(two_groups()).message();
  ModelSpec model = two_groups();
  model.groups = {{GroupKind::kLatent, 61, {Dtype::kBf16, 1, 576, 0}, 0}};
  EXPECT_TRUE(validate(model).ok()) << validate(model).message();
  model = two_groups();
  model.rotation = {};
  EXPECT_TRUE(validate(model).ok()) << validate(model).message();
}

TEST(Validate, NamesTheFieldThatIsOutOfBounds) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const std::vector<Change> changes = {
      {"number of groups", [](ModelSpec& m) { m.groups.clear(); }},
      {"number of groups", [](ModelSpec& m) { m.groups.assign(kMaxGroups + 1, m.groups[0]); }},
      {"groups[0].kind", [](ModelSpec& m) { m.groups[0].kind = static_cast<GroupKind>(0); }},
      {"groups[0].kind", [](ModelSpec& m) { m.groups[0].kind = static_cast<GroupKind>(5); }},
      {"groups[1].kv.dtype", [](ModelSpec& m) { m.groups[1].kv.dtype = static_cast<Dtype>(5); }},
      {"groups[1].layer_count", [](ModelSpec& m) { m.groups[1].layer_count = 0; }},
      {"groups[1].layer_count", [](ModelSpec& m) { m.groups[1].layer_count = kMaxLayers + 1; }},
      {"sum of layer_count", [](ModelSpec& m) { m.groups[0].layer_count = m.groups[1].layer_count = kMaxLayers; }},
      {"groups[0].kv.kv_heads", [](ModelSpec& m) { m.groups[0].kv.kv_heads = 0; }},
      {"groups[0].kv.kv_heads", [](ModelSpec& m) { m.groups[0].kv.kv_heads = kMaxKvHeads + 1; }},
      {"groups[0].kv.head_dim", [](ModelSpec& m) { m.groups[0].kv.head_dim = 0; }},
      {"groups[0].kv.head_dim", [](ModelSpec& m) { m.groups[0].kv.head_dim = kMaxHeadDim + 1; }},
      {"groups[0].kv.value_dim", [](ModelSpec& m) { m.groups[0].kv.value_dim = 0; }},
      {"groups[0].kv.value_dim", [](ModelSpec& m) { m.groups[0].kv.value_dim = ~0u; }},
      {"groups[0].window", [](ModelSpec& m) { m.groups[0].window = 1; }},
      {"groups[1].window", [](ModelSpec& m) { m.groups[1].window = 0; }},
      {"rotation.pairing", [](ModelSpec& m) { m.rotation.pairing = static_cast<RotationSpec::Pairing>(3); }},
      {"rotation.dims", [](ModelSpec& m) { m.rotation.dims = 66; }},
      {"rotation.dims", [](ModelSpec& m) { m.rotation.dims = 5; }},
      {"rotation.dims",
       [](ModelSpec& m) {
         m.rotation = {RotationSpec::Pairing::kNone, 4, {}, 1.0f};
       }},
      {"rotation.inverse_frequencies", [](ModelSpec& m) { m.rotation.inverse_frequencies.pop_back(); }},
      {"rotation.inverse_frequencies", [inf](ModelSpec& m) { m.rotation.inverse_frequencies[0] = inf; }},
      {"rotation.inverse_frequencies",
       [](ModelSpec& m) {
         m.rotation = {RotationSpec::Pairing::kNone, 0, {1}, 1.0f};
       }},
      {"rotation.attention_factor", [nan](ModelSpec& m) { m.rotation.attention_factor = nan; }},
      {"rotation.attention_factor", [](ModelSpec& m) { m.rotation.attention_factor = 0; }},
      {"shard_count", [](ModelSpec& m) { m.shard_count = 0; }},
      {"shard_rank", [](ModelSpec& m) { m.shard_rank = 2; }},
      {"adapters length", [](ModelSpec& m) { m.adapters.resize(1 << 20); }},
      {"name length", [](ModelSpec& m) { m.name.resize(1 << 20); }},
  };
  for (const Change& change : changes) {
    ModelSpec model = two_groups();
    change.apply(model);
    const Status status = validate(model);
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << change.what;
    EXPECT_NE(status.message().find(change.what), std::string::npos) << change.what << " in: " << status.message();
  }
}

TEST(ModelWords, HaveNames) {
  EXPECT_EQ(to_string(Dtype::kF16), "f16");
  EXPECT_EQ(to_string(Dtype::kBf16), "bf16");
  EXPECT_EQ(to_string(Dtype::kF32), "f32");
  Digest digest;
  digest.bytes[0] = 0xaf;
  EXPECT_EQ(to_hex(digest), "af" + std::string(62, '0'));
}

}  // namespace
}  // namespace firn
