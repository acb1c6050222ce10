#include "examples/llama/model.h"

#include <cstring>

#include "llama_test_util.h"

namespace firn::llama {
namespace {

using namespace std::literals;

// Replaces the first occurrence of a text by another of the same length.
std::vector<std::byte> patched(const std::string& type, std::string_view from, std::string_view to) {
  EXPECT_EQ(from.size(), to.size());
  std::vector<std::byte> bytes = read_bytes(random_model(type));
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string_view::npos) << from;
  std::memcpy(&bytes[at], to.data(), to.size());
  return bytes;
}

// Sets the 32-bit number that follows a key and its value type.
std::vector<std::byte> with_number(std::string_view key, std::uint32_t value) {
  std::vector<std::byte> bytes = read_bytes(random_model("q4_1"));
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const std::size_t at = text.find(key);
  EXPECT_NE(at, std::string_view::npos) << key;
  std::memcpy(&bytes[at + key.size() + 4], &value, 4);
  return bytes;
}

Status load(const std::vector<std::byte>& bytes) {
  Result<Gguf> file = Gguf::parse(bytes, "model.gguf");
  return file.ok() ? Model::load(std::move(*file)).status() : file.status();
}

TEST(Model, ReadsGeometryAndSpecOfAFile) {
  LLAMA_ASSERT_OK_AND_ASSIGN(const Model model, Model::load(random_model("q4_1")));
  const Geometry& g = model.geometry();
  EXPECT_EQ(g.layers, 2u);
  EXPECT_EQ(g.hidden, 192u);
  EXPECT_EQ(g.heads, 3u);
  EXPECT_EQ(g.kv_heads, 1u);
  EXPECT_EQ(g.head_dim, 64u);
  EXPECT_EQ(g.rotated_dims, 64u);
  const ModelSpec spec = model.spec();
  LLAMA_ASSERT_OK(validate(spec));
  EXPECT_EQ(spec.token_bytes(), 2u * 2 * 64 * 2);
  EXPECT_EQ(spec.rotation.pairing, RotationSpec::Pairing::kAdjacent);
  EXPECT_FALSE(spec.weights.is_zero());
  LLAMA_ASSERT_OK_AND_ASSIGN(const Model other, Model::load(random_model("q8_0")));
  EXPECT_NE(other.spec().weights, spec.weights);
}

TEST(Model, RefusesWhatIsNotThisKindOfModelAndNamesIt) {
  const std::pair<std::vector<std::byte>, const char*> cases[] = {
      {patched("f16", "\5\0\0\0\0\0\0\0llama"sv, "\5\0\0\0\0\0\0\0qwen2"sv), "architecture 'qwen2'"},
      {patched("f16", "general.architecture", "general.arkhitecture"), "'general.architecture' is missing"},
      {patched("f16", "blk.1.ffn_up.weight", "blk.1.ffn_xp.weight"), "'blk.1.ffn_up.weight' is missing"},
      {with_number("llama.block_count", 1), "'blk.1.attn_k.weight' has no place"},
      {with_number("llama.block_count", 0), "llama.block_count is 0"},
      {with_number("llama.block_count", ~0u), "llama.block_count"},
      {with_number("llama.embedding_length", 256), "but the model needs"},
      {with_number("llama.attention.head_count", 2), "but the model needs"},
      {with_number("llama.attention.head_count_kv", 2), "evenly"},
      {with_number("llama.attention.head_count_kv", 0), "head_count_kv is 0"},
      {with_number("llama.attention.key_length", 4096), "key_length is 4096"},
      {with_number("llama.rope.dimension_count", 63), "63 rotated dimensions"},
      {with_number("llama.rope.freq_base", 0x7fc00000), "freq_base is nan"},
      {with_number("llama.attention.layer_norm_rms_epsilon", 0xbf800000), "epsilon is -1"},
  };
  for (const auto& [bytes, says] : cases) {
    const Status status = load(bytes);
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << says;
    EXPECT_NE(status.message().find(says), std::string::npos) << status.message();
    EXPECT_EQ(status.message().rfind("model.gguf", 0), 0u) << status.message();
  }
}

}  // namespace
}  // namespace firn::llama
