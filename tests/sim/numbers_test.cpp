// Numbers that files give: each one that is read, replaced by what no such number may be. It is refused with the file's
// and the key's name, or it was not read, or it is in range; nothing is cast that does not fit (the sanitizers look).
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/config/codec_name.h"
#include "sim/bookkeeping.h"
#include "sim/codec_figures.h"
#include "sim/engine.h"
#include "sim/hardware.h"
#include "tests/sim/traces.h"

namespace firn::sim {
namespace {

using Json = nlohmann::json;

// As they stand in a file of JSON or YAML.
const char* const kBad[] = {"1e308",
                            "-1e308",
                            "-1",
                            "0",
                            "0.5",
                            "9223372036854775808",
                            "1.8446744073709552e19",
                            "18446744073709551616",
                            "1e400",
                            "\"NaN\"",
                            "\".nan\"",
                            "\"12\"",
                            "[1]",
                            "{\"a\": 1}",
                            "null",
                            "true"};

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

struct Scratch {
  Scratch() : path((std::filesystem::temp_directory_path() / ("firn_numbers_" + std::to_string(getpid()))).string()) {}
  ~Scratch() {
    std::error_code error;
    std::filesystem::remove(path, error);
  }
  void write(const std::string& text) const { std::ofstream(path, std::ios::binary) << text; }
  std::string path;
};

void expect_sane(const ModelShape& m, const std::string& what) {
  for (const double value : {m.parameters, m.active_parameters, m.weight_bytes, m.embedding_bytes, m.expert_bytes,
                             m.weight_bits, m.head_parameters})
    EXPECT_TRUE(std::isfinite(value) && value >= 0) << what << ": " << value;
  EXPECT_GT(m.weight_bytes, 0) << what;
  EXPECT_GT(m.token_bytes(), 0u) << what;
  EXPECT_LT(m.token_bytes(), std::uint64_t{1} << 50) << what;
  EXPECT_TRUE(validate(m.spec()).ok()) << what;
}

void numbers_of(const Json& json, const Json::json_pointer& at, std::vector<Json::json_pointer>& out) {
  if (json.is_number()) out.push_back(at);
  if (json.is_object())
    for (const auto& [key, value] : json.items()) numbers_of(value, at / key, out);
}

TEST(Numbers, OfAConfigJsonAreRefusedByNameOrInRange) {
  std::size_t refused = 0, tried = 0;
  for (const char* file :
       {"config.mixtral", "config.deepseek3", "config.deepseeklite", "config.gemma3", "config.gptoss"}) {
    Json whole = Json::parse(read_file(std::string(FIRN_SOURCE_DIR) + "/tests/fuzz/corpus/" + file));
    if (std::string(file) == "config.mixtral")
      whole["quantization_config"] = {{"quant_method", "awq"}, {"bits", 4}, {"group_size", 128}};
    std::vector<Json::json_pointer> numbers;
    numbers_of(whole, Json::json_pointer(), numbers);
    ASSERT_GT(numbers.size(), 3u) << file;
    ASSERT_TRUE(parse_model_config(whole.dump(), file).ok())
        << parse_model_config(whole.dump(), file).status().message();
    for (const Json::json_pointer& key : numbers)
      for (const char* bad : kBad) {
        Json changed = whole;
        changed[key] = "@@";
        std::string text = changed.dump();
        text.replace(text.find("\"@@\""), 4, bad);
        const std::string what = key.to_string() + " = " + bad + " in " + file;
        const Result<ModelShape> model = parse_model_config(text, file);
        ++tried;
        if (model.ok()) {
          expect_sane(*model, what);
          continue;
        }
        ++refused;
        const std::string said = model.status().message();
        EXPECT_NE(said.find(file), std::string::npos) << what << ": " << said;
        if (std::string(bad) == "1e400") continue;  // no JSON: a number that no double holds
        // Two keys are judged together: which of them is wrong a file does not say.
        const bool together =
            said.find("num_attention_heads") != std::string::npos || said.find("hidden_size") != std::string::npos ||
            said.find("heads") != std::string::npos || said.find("first_k_dense_replace") != std::string::npos ||
            said.find("num_experts_per_tok") != std::string::npos || said.find("moe_layer_freq") != std::string::npos;
        EXPECT_TRUE(said.find(fmt::format("\"{}\"", key.back())) != std::string::npos || together)
            << what << ": " << said;
      }
  }
  EXPECT_GT(refused, tried / 2) << "of " << tried;
  const std::string said =
      parse_model_config(R"({"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
      "num_attention_heads": 2, "vocab_size": 100, "head_dim": 1e308})",
                         "config.json")
          .status()
          .message();
  EXPECT_EQ(said, "config.json: \"head_dim\" is 1e+308: a whole number from 1 to 1024 is expected");
}

TEST(Numbers, OfADeviceFileAreRefusedByNameOrInRange) {
  const Scratch file;
  const std::vector<std::pair<std::string, std::string>> usual = {
      {"flops", "165e12"},           {"memory_bandwidth", "1e12"},   {"memory", "24GB"},
      {"prefill_efficiency", "0.5"}, {"decode_efficiency", "0.6"},   {"step_overhead_us", "300"},
      {"host_link", "25e9"},         {"disk_link", "5e9"},           {"device_link", "5e9"},
      {"price_per_hour", "0.4"},     {"host_gib_per_hour", "0.005"}, {"disk_gib_per_hour", "2e-4"}};
  for (std::size_t key = 0; key < usual.size(); ++key)
    for (const char* bad : kBad) {
      std::string text = "name: card\n";
      for (std::size_t i = 0; i < usual.size(); ++i)
        text += usual[i].first + ": " + (i == key ? bad : usual[i].second) + "\n";
      file.write(text);
      const std::string what = usual[key].first + ": " + bad;
      const Result<DeviceSpec> device = load_device(file.path, {});
      if (!device.ok()) {
        const std::string said = device.status().message();
        EXPECT_NE(said.find(usual[key].first), std::string::npos) << what << ": " << said;
        EXPECT_NE(said.find(file.path), std::string::npos) << what << ": " << said;
        continue;
      }
      for (const double value :
           {device->flops, device->memory_bandwidth, device->host_link, device->disk_link, device->device_link,
            device->price_per_hour, device->step_overhead_s, device->prefill_efficiency, device->decode_efficiency})
        EXPECT_TRUE(value >= 0 && value <= 1e18) << what << ": " << value;
      EngineOptions options;  // and a run of it ends
      options.device = *device;
      options.model = load_model_shape("smollm2-135m").value();
      options.pool_bytes = 64 << 20;
      const Result<EngineResult> run = run_engine("workload:chat:sessions=2", {}, options);
      if (run.ok()) {
        EXPECT_TRUE(std::isfinite(run->ttft_s.p95) && run->ttft_s.p95 >= 0 && std::isfinite(run->cost)) << what;
      }
    }
  for (const char* bad : {".nan", ".inf", "-.inf", "~"}) {
    file.write(std::string("flops: ") + bad + "\nmemory_bandwidth: 1e12\nmemory: 24GB\nhost_link: 25e9\n");
    EXPECT_NE(load_device(file.path, {}).status().message().find("flops"), std::string::npos) << bad;
  }
}

TEST(Numbers, OfATableOfCodecsAreRefusedByName) {
  for (const char* key : {"ratio", "encode", "decode", "kld", "kld_p99", "top1"})
    for (const char* bad : kBad) {
      Json row = {{"name", "q8"}, {"ratio", 1.9}, {"encode", 1e9}, {"decode", 1e9}};
      row[key] = "@@";
      std::string text = row.dump();
      text.replace(text.find("\"@@\""), 4, bad);
      const Result<CodecTable> table = parse_codec_table("model: m\ncodecs: [" + text + "]\n", "codecs.yaml");
      if (table.ok()) {
        EXPECT_TRUE(std::isfinite(table->codecs[0].ratio) && table->codecs[0].ratio > 0) << key << ": " << bad;
        EXPECT_GT(table->codecs[0].bytes_per_s, 0) << key << ": " << bad;
        continue;
      }
      EXPECT_NE(table.status().message().find(key), std::string::npos) << bad << ": " << table.status().message();
      EXPECT_NE(table.status().message().find("codecs.yaml"), std::string::npos) << table.status().message();
    }
  EXPECT_FALSE(parse_codec_table("model: m\ncodecs: [{name: zip@x, ratio: 2, decode: 1e9}]\n", "codecs.yaml").ok());
}

TEST(Numbers, OfMeasuredFiguresAreRefusedByName) {
  const Scratch file;
  for (const char* key : {"raw_bytes", "frame_bytes", "decode_cpu_s"})
    for (const char* bad : kBad) {
      Json row = {{"codec", "q8"}, {"raw_bytes", 2000000}, {"frame_bytes", 1000000}, {"decode_cpu_s", 0.01}};
      row[key] = "@@";
      std::string text = Json::array({row}).dump();
      text.replace(text.find("\"@@\""), 4, bad);
      file.write(text);
      const Result<CodecFigures> figures = load_codec_figures(file.path, "q8");
      if (figures.ok()) {
        EXPECT_TRUE(figures->ratio >= 1e-3 && figures->ratio <= 1e4) << key << ": " << bad;
        EXPECT_TRUE(figures->bytes_per_s >= 1 && figures->bytes_per_s <= 1e15) << key << ": " << bad;
      } else {
        EXPECT_NE(figures.status().message().find(file.path), std::string::npos) << figures.status().message();
      }
    }
}

TEST(Numbers, OfTracesAreBadLinesOrInRange) {
  const Scratch file;
  struct Form {
    const char *head, *line, *good;  // @ in line: the number that is changed
    std::vector<std::string> usual;
    TraceFormat format;
  };
  const std::vector<Form> forms = {
      {"",
       R"({"timestamp": @0, "input_length": @1, "output_length": @2, "hash_ids": [@3], "block_size": @4, "turn": @5})",
       "",
       {"1000", "500", "20", "7", "512", "1"},
       TraceFormat::kMooncake},
      {"",
       R"({"timestamp": @0, "input_length": @1, "output_length": @2, "hash_ids": [@3], "chat_id": @4, "parent_chat_id": @5})",
       "",
       {"10", "10", "20", "7", "5", "-1"},
       TraceFormat::kQwen},
      {"timestamp,input_length,output_length,turn,hash_ids\n",
       "@0,@1,@2,@3,@4",
       "",
       {"10", "10", "20", "1", "7"},
       TraceFormat::kCsv},
      {"TIMESTAMP,ContextTokens,GeneratedTokens\n",
       "@0,@1,@2",
       "",
       {"2023-11-16 18:17:03.9", "100", "20"},
       TraceFormat::kAzure},
      {"Timestamp,Request tokens,Response tokens\n", "@0,@1,@2", "", {"5", "100", "20"}, TraceFormat::kBurstGpt}};
  for (const Form& form : forms)
    for (std::size_t number = 0; number < form.usual.size(); ++number)
      for (const char* bad : kBad) {
        const auto line = [&](bool changed) {
          std::string text = form.line;
          for (std::size_t i = form.usual.size(); i-- > 0;) {
            const std::string mark = fmt::format("@{}", i);
            text.replace(text.find(mark), mark.size(), changed && i == number ? bad : form.usual[i]);
          }
          return text + "\n";
        };
        file.write(form.head + line(false) + line(true) + line(false));
        const std::string what = std::string(form.line) + " " + std::to_string(number) + " = " + bad;
        TraceOptions options;
        options.format = form.format;
        EngineOptions engine;
        engine.device = load_device("h200", {std::string(FIRN_SOURCE_DIR) + "/configs"}).value();
        engine.model = load_model_shape("smollm2-135m").value();
        engine.pool_bytes = std::uint64_t{1} << 30;
        const Result<EngineResult> run = run_engine(file.path, options, engine);
        ASSERT_TRUE(run.ok()) << what << ": " << run.status().message();
        EXPECT_EQ(run->requests + run->bad_line_count, 3u) << what;
        EXPECT_GE(run->requests, 2u) << what;
        EXPECT_TRUE(std::isfinite(run->seconds) && run->seconds >= 0) << what << ": " << run->seconds;
        for (const BadLine& line_said : run->bad_lines) {
          EXPECT_EQ(line_said.line, form.head[0] == 0 ? 2u : 3u) << what;
          EXPECT_FALSE(line_said.why.empty()) << what;
        }
        BookkeepingOptions counts;
        counts.tier_blocks = {16};
        EXPECT_TRUE(run_bookkeeping(file.path, options, counts).ok()) << what;
      }
}

TEST(CodecNames, AreOneGrammarForConfigurationsEvaluationAndFigures) {
  for (const char* name : {"raw", "lossless", "q8", "q4", "q8/q4", "q4-plain", "q8/q4-plain", "q8-keys", "q4-values",
                           "kvtc@2", "kvtc@16", "firn@24", "firn@1024"}) {
    Config::Host host;
    ASSERT_TRUE(set_codec(name, host).ok()) << name;
    EXPECT_EQ(codec_name(host), name);
  }
  for (const char* name :
       {"kvtc", "firn", "kvtc@", "kvtc@1", "kvtc@1025", "kvtc@-1", "kvtc@1e3", "kvtc@18446744073709551616", "firn@2.5",
        "raw@2", "lossless/q4", "kvtc/q4", "kvtc@8-plain", "lossless-plain"}) {
    Config::Host host;
    EXPECT_FALSE(set_codec(name, host).ok()) << name;
  }
  // host.codec: firn with host.ratio: 24, and what firn eval writes: firn@24.
  Config::Host host;
  host.codec = "firn", host.ratio = 24;
  const Scratch file;
  file.write(R"([{"codec": "firn@24", "raw_bytes": 2400, "frame_bytes": 100, "decode_cpu_s": 1e-5}])");
  const Result<CodecFigures> measured = load_codec_figures(file.path, codec_name(host));
  ASSERT_TRUE(measured.ok()) << measured.status().message();
  EXPECT_EQ(measured->ratio, 24);
  const std::string shipped = std::string(FIRN_SOURCE_DIR) + "/configs/codecs/smollm2-135m.yaml";
  const Result<CodecTable> table = parse_codec_table(read_file(shipped), shipped);
  ASSERT_TRUE(table.ok()) << table.status().message();
  EXPECT_TRUE(table->find(codec_name(host)).ok());
  EXPECT_TRUE(table->find("q8/q4-plain").ok());
  EXPECT_NE(table->find("firn@7").status().message().find("firn@24"), std::string::npos) << "says which there are";
}

}  // namespace
}  // namespace firn::sim
