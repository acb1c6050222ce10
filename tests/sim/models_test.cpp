// Shapes of models: sizes as their makers publish them, and no number where a file says more than is understood.
#include <gtest/gtest.h>

#include "sim/engine.h"
#include "sim/hardware.h"
#include "tests/sim/traces.h"

namespace firn::sim {
namespace {

ModelShape shape(const std::string& text) {
  const Result<ModelShape> model = parse_model_config(text, "config.json");
  EXPECT_TRUE(model.ok()) << model.status().message();
  return model.ok() ? *model : ModelShape{};
}
std::string refusal(const std::string& text) {
  const Result<ModelShape> model = parse_model_config(text, "config.json");
  EXPECT_FALSE(model.ok()) << text;
  return model.ok() ? std::string() : model.status().message();
}
void expect_about(double value, double published, const char* what) {
  EXPECT_NEAR(value / published, 1, 0.02) << what << ": " << value << ", published " << published;
}

// What matters of the files that the makers publish.
const std::string kMixtral = R"({"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
  "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02, "output_router_logits": false, "sliding_window": null,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 32000})";
const std::string kQwen3Moe =
    R"({"model_type": "qwen3_moe", "decoder_sparse_step": 1, "head_dim": 128, "hidden_size": 2048,
  "intermediate_size": 6144, "max_window_layers": 48, "mlp_only_layers": [], "moe_intermediate_size": 768,
  "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
  "num_key_value_heads": 4, "router_aux_loss_coef": 0.001, "sliding_window": null, "tie_word_embeddings": false,
  "torch_dtype": "bfloat16", "use_sliding_window": false, "vocab_size": 151936})";
const std::string kDeepSeekLite = R"({"model_type": "deepseek_v2", "aux_loss_alpha": 0.001, "first_k_dense_replace": 1,
  "hidden_size": 2048, "intermediate_size": 10944, "kv_lora_rank": 512, "moe_intermediate_size": 1408, "moe_layer_freq": 1,
  "n_routed_experts": 64, "n_shared_experts": 2, "num_attention_heads": 16, "num_experts_per_tok": 6,
  "num_hidden_layers": 27, "num_key_value_heads": 16, "q_lora_rank": null, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
  "seq_aux": true, "v_head_dim": 128, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 102400})";
const std::string kDeepSeek3 = R"({"model_type": "deepseek_v3", "first_k_dense_replace": 3, "hidden_size": 7168,
  "intermediate_size": 18432, "kv_lora_rank": 512, "moe_intermediate_size": 2048, "moe_layer_freq": 1,
  "n_routed_experts": 256, "n_shared_experts": 1, "num_attention_heads": 128, "num_experts_per_tok": 8,
  "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536,
  "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "tie_word_embeddings": false, "vocab_size": 129280,
  "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}})";
const std::string kGptOss = R"({"model_type": "gpt_oss", "experts_per_token": 4, "head_dim": 64, "hidden_size": 2880,
  "intermediate_size": 2880, "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24,
  "num_key_value_heads": 8, "num_local_experts": 32, "sliding_window": 128, "tie_word_embeddings": false,
  "router_aux_loss_coef": 0.9, "vocab_size": 201088, "quantization_config": {"quant_method": "mxfp4",
  "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}})";
const std::string kGemma3 = R"({"model_type": "gemma3", "text_config": {"hidden_size": 2560, "intermediate_size": 10240,
  "model_type": "gemma3_text", "num_hidden_layers": 34, "sliding_window": 1024}, "vision_config": {"hidden_size": 1152,
  "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model", "num_attention_heads": 16,
  "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": false}, "torch_dtype": "bfloat16"})";

TEST(Models, SizesAreTheMakersOwn) {
  const ModelShape llama8 = load_model_shape("llama-3.1-8b").value(),
                   llama70 = load_model_shape("llama-3.1-70b").value();
  expect_about(llama8.parameters, 8.03e9, "Llama-3.1-8B");
  expect_about(llama70.parameters, 70.55e9, "Llama-3.1-70B");
  expect_about(llama70.weight_bytes, 141.1e9, "its bytes");
  EXPECT_EQ(llama70.token_bytes(), 327680u) << "320 KiB a token";
  expect_about(load_model_shape("qwen3-8b")->parameters, 8.19e9, "Qwen3-8B");
  expect_about(load_model_shape("smollm2-135m")->parameters, 134.5e6, "SmolLM2-135M");

  const ModelShape mixtral = shape(kMixtral);
  expect_about(mixtral.parameters, 46.7e9, "Mixtral 8x7B");
  expect_about(mixtral.active_parameters + 2 * mixtral.head_parameters, 12.9e9, "active");
  expect_about(mixtral.weight_bytes, 93.4e9, "its bytes");

  const ModelShape qwen = shape(kQwen3Moe);
  expect_about(qwen.parameters, 30.5e9, "Qwen3-30B-A3B");
  expect_about(qwen.active_parameters + 2 * qwen.head_parameters, 3.35e9, "active, with embeddings");
  EXPECT_EQ(qwen.token_bytes(), 48u * 2 * 4 * 128 * 2);

  const ModelShape lite = shape(kDeepSeekLite);
  expect_about(lite.parameters, 15.7e9, "DeepSeek-V2-Lite");
  expect_about(lite.active_parameters + lite.head_parameters + 0.2e9, 2.66e9, "active");
  EXPECT_EQ(lite.token_bytes(), 27u * (512 + 64) * 2) << "one latent row a layer, of keys and values together";
  ASSERT_EQ(lite.groups.size(), 1u);
  EXPECT_EQ(lite.groups[0].kind, GroupKind::kLatent);

  const ModelShape three = shape(kDeepSeek3);
  expect_about(three.parameters, 671e9, "DeepSeek-V3");
  expect_about(three.active_parameters + three.head_parameters, 37e9, "active");
  expect_about(three.weight_bytes, 673e9, "8 bits a weight, embeddings in 16");

  const ModelShape oss = shape(kGptOss);
  expect_about(oss.parameters, 20.9e9, "gpt-oss-20b");
  expect_about(oss.active_parameters + oss.head_parameters, 3.6e9, "active");
  expect_about(oss.weight_bytes, 13.76e9, "experts in 4.25 bits");
  ASSERT_EQ(oss.groups.size(), 2u);
  EXPECT_EQ(oss.groups[0].layer_count, 12u);
  EXPECT_EQ(oss.groups[1].window, 128u);

  const ModelShape gemma = shape(kGemma3);
  expect_about(gemma.parameters, 4.30e9, "gemma-3-4b with its vision tower");
  EXPECT_EQ(gemma.groups[0].layer_count, 5u);
  EXPECT_EQ(gemma.groups[1].layer_count, 29u);
}

TEST(Models, BitsOfWeightsAreCounted) {
  const std::string base = R"("hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 128256)";
  const auto bytes = [&](const std::string& more) { return shape("{" + base + more + "}").weight_bytes; };
  const double tables = 2 * 4096.0 * 128256, rest = shape("{" + base + "}").parameters - tables;
  EXPECT_DOUBLE_EQ(bytes(""), 2 * (tables + rest));
  EXPECT_DOUBLE_EQ(bytes(R"(, "torch_dtype": "float32")"), 4 * (tables + rest));
  const auto quantised = [&](const std::string& config) {
    return bytes(", \"quantization_config\": " + config) - 2 * tables;
  };
  expect_about(quantised(R"({"quant_method": "awq", "bits": 4, "group_size": 128})"), rest * 4.156 / 8, "awq");
  expect_about(quantised(R"({"quant_method": "gptq", "bits": 8, "group_size": -1})"), rest, "gptq");
  expect_about(quantised(R"({"quant_method": "fp8"})"), rest, "fp8");
  expect_about(
      quantised(R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_use_double_quant": true})"),
      rest * 4.127 / 8, "nf4");
  expect_about(
      quantised(R"({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4,
    "group_size": 128, "symmetric": true}}}})"),
      rest * 4.125 / 8, "compressed-tensors");
  EXPECT_NE(refusal("{" + base + R"(, "quantization_config": {"quant_method": "higgs", "bits": 4}})").find("higgs"),
            std::string::npos);
  EXPECT_NE(refusal("{" + base + R"(, "quantization_config": {"quant_method": "gptq", "bits": 400}})")
                .find("\"bits\" is 400"),
            std::string::npos);
  EXPECT_NE(refusal("{" + base + R"(, "torch_dtype": "int3"})").find("int3"), std::string::npos);
}

TEST(Models, RefusesByNameWhatIsNotUnderstood) {
  const std::string base =
      R"("hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 4,
    "vocab_size": 100)";
  const auto has = [&](const std::string& more, const char* name) {
    EXPECT_NE(refusal("{" + base + more + "}").find(name), std::string::npos) << more;
  };
  has(R"(, "model_type": "jamba")", "jamba");
  has(R"(, "model_type": "mamba2")", "mamba2");
  has(R"(, "model_type": "llama", "num_local_experts": 8, "num_experts_per_tok": 2)", "num_local_experts");
  has(R"(, "model_type": "mixtral")", "num_local_experts");
  has(R"(, "model_type": "mixtral", "num_local_experts": 8)", "num_experts_per_tok");
  has(R"(, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 9)", "num_experts_per_tok");
  has(R"(, "mamba_d_state": 16)", "mamba_d_state");
  has(R"(, "attention_chunk_size": 8192)", "attention_chunk_size");
  has(R"(, "kv_lora_rank": 512)", "kv_lora_rank");
  has(R"(, "model_type": "deepseek_v2")", "kv_lora_rank");
  has(R"(, "zero_expert_num": 4)", "zero_expert_num");
  has(R"(, "layer_types": ["linear_attention", "full_attention", "full_attention", "full_attention"])",
      "linear_attention");
  has(R"(, "layer_types": ["full_attention"])", "layer_types");
  EXPECT_NE(refusal("[1]").find("config.json"), std::string::npos);
  EXPECT_NE(refusal("{}").find("num_hidden_layers"), std::string::npos);
}

// A number from a file is used only within its range, and what is refused is named.
TEST(Models, NumbersOutOfRangeAreRefusedByKey) {
  for (const char* key :
       {"hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
        "head_dim", "vocab_size", "sliding_window", "sliding_window_pattern", "max_window_layers"})
    for (const char* value : {"1e308", "-1", "4.5", "\"8\"", "1e999", "18446744073709551615", "[1]", "true", "-0.5"}) {
      std::string text =
          R"({"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 4,
        "vocab_size": 100, "num_key_value_heads": 1, "head_dim": 32, "sliding_window": 128, "sliding_window_pattern": 2})";
      const std::string quoted = std::string("\"") + key + "\": ";
      if (const std::size_t at = text.find(quoted); at != std::string::npos) {
        const std::size_t from = at + quoted.size(), to = text.find_first_of(",}", from);
        text.replace(from, to - from, value);
      } else {
        text.insert(text.size() - 1, ", " + quoted + value);
        text.replace(text.find(", \"sliding_window_pattern\": 2"),
                     std::string(", \"sliding_window_pattern\": 2").size(), "");
      }
      const std::string message = refusal(text);
      EXPECT_TRUE(message.find(key) != std::string::npos || message.find("JSON") != std::string::npos)
          << key << " " << value << ": " << message;
    }
}

TEST(Models, DevicesShareHeadsAndCopyWhatCannotBeShared) {
  const ModelShape big = load_model_shape("llama-3.1-70b").value();
  EXPECT_EQ(spread(big, 8)->token_bytes(), big.token_bytes()) << "one KV head each";
  EXPECT_EQ(spread(big, 16)->token_bytes(), 2 * big.token_bytes()) << "every KV head is on two";
  EXPECT_FALSE(spread(big, 3).ok());
  EXPECT_FALSE(spread(load_model_shape("smollm2-135m").value(), 2).ok()) << "9 heads";
  const ModelShape latent = shape(kDeepSeekLite);
  EXPECT_EQ(spread(latent, 4)->token_bytes(), 4 * latent.token_bytes()) << "every device needs every latent row";
  EXPECT_EQ(spread(latent, 4)->sequence_bytes(1000), 4 * latent.sequence_bytes(1000));
}

TEST(Models, AStepReadsTheExpertsThatItsTokensAreSentTo) {
  const ModelShape mixtral = shape(kMixtral);
  EXPECT_NEAR(mixtral.bytes_read(1) / (2 * (mixtral.active_parameters + mixtral.head_parameters)), 1, 0.01);
  EXPECT_LT(mixtral.bytes_read(1), mixtral.bytes_read(2));
  EXPECT_NEAR(mixtral.bytes_read(1000), mixtral.weight_bytes - mixtral.embedding_bytes, 1e6);
}

TEST(Physics, APoolFitsBesideTheWeightsOrIsRefusedWithTheNumbers) {
  EngineOptions o;
  o.device = load_device("rtx4090", {std::string(FIRN_SOURCE_DIR) + "/configs"}).value();
  o.model = load_model_shape("llama-3.1-8b").value();
  o.pool_bytes = std::uint64_t{6} << 30;
  EXPECT_TRUE(check_fits(o).ok()) << check_fits(o).message();
  for (const std::uint64_t gib : {7u, 22u, 900u}) {
    o.pool_bytes = gib << 30;
    const Status status = check_fits(o);
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_NE(status.message().find("RTX 4090"), std::string::npos) << status.message();
    EXPECT_NE(status.message().find("15.0 GiB"), std::string::npos) << "the weights: " << status.message();
    EXPECT_EQ(run_engine(slice("conversation_2000.jsonl.zst"), {.max_requests = 10}, o).status().code(),
              Code::kInvalidArgument);
  }
  o.model = load_model_shape("llama-3.1-70b").value();
  EXPECT_NE(check_fits(o).message().find("--devices"), std::string::npos);
  EXPECT_EQ(largest_pool(o.device, o.model), 0u);
  EngineOptions board;
  board.device = load_device("edge-board", {std::string(FIRN_SOURCE_DIR) + "/configs"}).value();
  board.model = load_model_shape("smollm2-135m").value();
  board.pool_bytes = std::uint64_t{1} << 30, board.host_bytes = std::uint64_t{8} << 30;
  EXPECT_NE(check_fits(board).message().find("same memory"), std::string::npos);
}

}  // namespace
}  // namespace firn::sim
