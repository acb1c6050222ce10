// run and demo from end to end, on a random model small enough for the sanitizers. It says nonsense, and must say the
// same nonsense wherever its cache is.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <vector>

#include "core/config/settings.h"
#include "firn/policy.h"
#include "tests/cli/program.h"

namespace firn::cli {
namespace {

nlohmann::json run_json(const std::string& line) {
  const Ran ran = run_line(line, /*with_stderr=*/false);
  EXPECT_EQ(ran.exit_code, 0) << line << "\n" << run_line(line, true).output;
  nlohmann::json json = nlohmann::json::parse(ran.output, nullptr, /*allow_exceptions=*/false);
  EXPECT_FALSE(json.is_discarded()) << ran.output;
  return json;
}

const std::string kRun =
    "firn run --model " FIRN_RANDOM_MODEL " --prompt-file tests/cli/prompt.txt --max-tokens 24 --ignore-end --json ";

TEST(RunCommand, SaysTheSameAtEveryBudgetAndWhoeverMovesTheBlocks) {
  const nlohmann::json roomy = run_json(kRun + "--pool-budget 64MiB");
  ASSERT_EQ(roomy["tokens"].size(), 24u);
  EXPECT_GT(roomy["prompt_tokens"], 700);
  EXPECT_EQ(roomy["evictions"], 0);
  // The least pool there can be: sinks, recent window and one block to grow into.
  const std::string tight =
      "--pool-budget 400KiB --host-budget 8MiB --set pool.staging=64KiB --set pool.max_step_tokens=32 ";
  const nlohmann::json worker = run_json(kRun + tight);
  EXPECT_GT(worker["evictions"], 0);
  EXPECT_GT(worker["blocks_staged"], 0);
  EXPECT_EQ(worker["tokens"], roomy["tokens"]);
  const nlohmann::json pump = run_json(kRun + tight + "--pump --threads 1");
  EXPECT_EQ(pump["worker"], false);
  EXPECT_EQ(pump["threads"], 1);
  EXPECT_GT(pump["evictions"], 0);
  EXPECT_EQ(pump["tokens"], roomy["tokens"]);
}

TEST(RunCommand, ASeedGivesTheSameSampleAndAnotherSeedAnother) {
  const std::string sampled = kRun + "--pool-budget 64MiB --temperature 1 --seed ";
  const nlohmann::json seven = run_json(sampled + "7");
  EXPECT_EQ(run_json(sampled + "7")["tokens"], seven["tokens"]);
  EXPECT_NE(run_json(sampled + "8")["tokens"], seven["tokens"]);
}

TEST(RunCommand, WritesTheTokensOneALine) {
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("firn_tokens_" + std::to_string(getpid()));
  const nlohmann::json json = run_json(kRun + "--pool-budget 64MiB --tokens-out " + file.string());
  std::ifstream in(file);
  std::vector<int> tokens;
  for (int token; in >> token;) tokens.push_back(token);
  std::filesystem::remove(file);
  EXPECT_EQ(nlohmann::json(tokens), json["tokens"]);
}

TEST(DemoCommand, RestoresTheSameBlocksAndTheSameAnswer) {
  const nlohmann::json demo = run_json("firn demo --json --model " FIRN_RANDOM_MODEL
                                       " --document-tokens 500 --repeats 1 --pool-budget 1MiB --host-budget 8MiB"
                                       " --set pool.max_step_tokens=64 --second-device off");
  EXPECT_EQ(demo["answers_equal"], true);
  EXPECT_EQ(demo["second_device"]["skipped"], "not asked for (--second-device off)");
  EXPECT_GT(demo["blocks_compared"], 20);
  EXPECT_EQ(demo["blocks_equal"], demo["blocks_compared"]);
  EXPECT_GT(demo["prefix_tokens"], 400);
  EXPECT_EQ(demo["restore"]["tokens_reused"], demo["prefix_tokens"]);
  EXPECT_EQ(demo["restore"]["pool_hits"], 0);
  EXPECT_GT(demo["restore"]["frames_read"], 0);
  EXPECT_EQ(demo["recompute"]["tokens_reused"], 0);
  EXPECT_GT(demo["found_in_pool"]["pool_hits"], 20);
  EXPECT_GT(demo["slots_evicted"], 0);
  EXPECT_GT(demo["slots_poisoned"], 0);
}

TEST(DemoCommand, TellsItsStoryToPeople) {
  const Ran ran = run_line("firn demo --model " FIRN_RANDOM_MODEL
                           " --document-tokens 300 --repeats 1 --pool-budget 1MiB --host-budget 8MiB"
                           " --set pool.max_step_tokens=64 --second-device off",
                           /*with_stderr=*/false);
  EXPECT_EQ(ran.exit_code, 0);
  for (const char* part :
       {"A token has 512 bytes of keys and values", "compute them again", "restore from the host tier",
        "find them in the pool", "the same,", "=> Nothing was lost", "=> Restoring is", "=> Nothing is gained while"})
    EXPECT_NE(ran.output.find(part), std::string::npos) << part << " is missing in:\n" << ran.output;
  std::istringstream lines(ran.output);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 80u) << line;
}

// Drivers leave a few bytes of their own behind, so leaks are not looked for in these lines.
const std::string kShortDemo =
    "ASAN_OPTIONS=detect_leaks=0 firn demo --json --model " FIRN_RANDOM_MODEL
    " --document-tokens 300 --repeats 1 --pool-budget 1MiB --host-budget 8MiB --set pool.max_step_tokens=64";

TEST(DemoCommand, RepeatsAShortQuestionOnLavapipe) {
  const nlohmann::json demo = run_json(kShortDemo);
  EXPECT_EQ(demo["device"], "cpu");
  const nlohmann::json& second = demo["second_device"];
  if (second.contains("skipped")) GTEST_SKIP() << second["skipped"];
  EXPECT_EQ(second["first"], "cpu");
  EXPECT_NE(std::string(second["second"]).find("llvmpipe"), std::string::npos) << second;
  EXPECT_EQ(second["agrees"], true) << second;
  EXPECT_GT(second["tokens_compared"], 0);
  if (second["tokens_equal"] == second["tokens_compared"]) {
    EXPECT_TRUE(second["margin_at_difference"].is_null());
  } else {
    EXPECT_LT(second["margin_at_difference"], 1e-3);
  }
}

TEST(DemoCommand, SaysWhatIsMissingForASecondDevice) {
  const nlohmann::json demo = run_json("VK_DRIVER_FILES=/nonexistent/driver.json " + kShortDemo);
  const std::string why = demo["second_device"].value("skipped", "");
  EXPECT_TRUE(why.find("driver is installed") != std::string::npos || why.find("libvulkan") != std::string::npos ||
              why.find("built without Vulkan") != std::string::npos)
      << demo["second_device"];
}

TEST(DoctorCommand, ListsVulkanDevicesOrSaysWhyThereAreNone) {
  const nlohmann::json with = run_json("ASAN_OPTIONS=detect_leaks=0 firn doctor --json")["vulkan"];
  if (with["devices"].empty()) {
    EXPECT_FALSE(std::string(with["why_none"]).empty());
  } else {
    for (const nlohmann::json& device : with["devices"]) {
      EXPECT_FALSE(device["heaps"].empty()) << device;
      EXPECT_GT(device["limits"]["max_allocation_bytes"], 0) << device;
      EXPECT_FALSE(std::string(device["driver"]).empty()) << device;
      EXPECT_EQ(device["usable"], device["missing"].empty()) << device;
    }
  }
  const nlohmann::json without =
      run_json("ASAN_OPTIONS=detect_leaks=0 VK_DRIVER_FILES=/nonexistent/driver.json firn doctor --json")["vulkan"];
  EXPECT_TRUE(without["devices"].empty());
  EXPECT_NE(std::string(without["why_none"]).find("device cpu"), std::string::npos) << without;
}

TEST(ConfigCommand, PrintsWhatItCanReadBack) {
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("firn_effective_" + std::to_string(getpid()) + ".yaml");
  const std::string show = "firn config --effective ";
  const Ran first = run_line(show + "configs/server-cpu.yaml | tee " + file.string(), /*with_stderr=*/false);
  const Ran again = run_line(show + file.string(), /*with_stderr=*/true);
  std::filesystem::remove(file);
  EXPECT_EQ(again.exit_code, 0) << again.output;
  const auto values = [](const std::string& text) {  // without the origins
    std::string kept;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) kept += line.substr(0, line.find('#')) + "\n";
    return kept;
  };
  EXPECT_EQ(values(again.output), values(first.output));
}

// Every shipped deployment: good by firn's own check, and with a comment that says what it is for.
TEST(ConfigCommand, ShippedDeploymentsAreGoodAndSaySoWhatFor) {
  std::vector<std::string> wanted = {
      "laptop-igpu", "consumer-8gb", "consumer-24gb",         "server-cpu",  "h200-node", "cxl-two-socket",
      "redis-fleet", "edge-board",   "long-context-research", "multi-tenant"};
  for (const auto& entry : std::filesystem::directory_iterator(FIRN_SOURCE_DIR "/configs")) {
    if (entry.path().extension() != ".yaml") continue;
    const std::string name = entry.path().stem();
    const Ran ran = run_line("firn config --check configs/" + name + ".yaml", /*with_stderr=*/true);
    EXPECT_EQ(ran.exit_code, 0) << ran.output;
    EXPECT_NE(ran.output.find(": good"), std::string::npos) << ran.output;
    std::ifstream in(entry.path());
    std::string first, second;
    std::getline(in, first);
    std::getline(in, second);
    EXPECT_NE(first.find("$schema=schema.json"), std::string::npos) << name;
    EXPECT_EQ(second.rfind("# ", 0), 0u) << name << " does not say what it is for";
    std::erase(wanted, name);
  }
  EXPECT_TRUE(wanted.empty()) << wanted.front() << " is not there";
}

// What a new user types, with no other argument, ends in a bottleneck and the next thing to try.
TEST(SimulateCommand, AnswersInOneScreen) {
  for (const char* name : {"laptop-igpu", "consumer-8gb", "consumer-24gb", "server-cpu", "h200-node", "cxl-two-socket",
                           "redis-fleet", "edge-board", "long-context-research", "multi-tenant"}) {
    const Ran ran = run_line(std::string("firn simulate --config configs/") + name +
                                 ".yaml --trace tests/data/traces/conversation_2000.jsonl.zst",
                             /*with_stderr=*/false);
    EXPECT_EQ(ran.exit_code, 0) << name << run_line("true", true).output;
    EXPECT_LE(std::count(ran.output.begin(), ran.output.end(), '\n'), 24) << ran.output;
    EXPECT_NE(ran.output.find("first token"), std::string::npos) << name << ran.output;
    EXPECT_NE(ran.output.rfind("ry "), std::string::npos) << "no advice for " << name << ":\n" << ran.output;
  }
}

// A deployment brings an example that fits it: all of it is answered, nobody waits long, and a rate is named.
TEST(SimulateCommand, TheExampleOfEachDeploymentFitsIt) {
  std::size_t deployments = 0;
  for (const auto& entry : std::filesystem::directory_iterator(FIRN_SOURCE_DIR "/configs")) {
    if (entry.path().extension() != ".yaml") continue;
    ++deployments;
    const std::string name = entry.path().stem();
    const nlohmann::json run = run_json("firn simulate --config configs/" + name + ".yaml --json -");
    EXPECT_EQ(run["finished"], run["requests"]) << name;
    EXPECT_GE(run["requests"], 50) << name;
    EXPECT_FALSE(run["advice"]["overload"].get<bool>()) << name << run["advice"]["bottleneck"];
    EXPECT_LE(run["ttft_s"]["p95"], 2) << name;
    EXPECT_GE(run["advice"]["carried_requests_per_s"], run["advice"]["asked_requests_per_s"]) << name;
  }
  EXPECT_GE(deployments, 13u);
}

// Whatever is advised is a line of flags, and with them the program does what the advice said.
TEST(SimulateCommand, WhatItAdvisesIsWhatItThenDoes) {
  const std::string slice = " --trace tests/data/traces/conversation_2000.jsonl.zst";
  std::size_t advised = 0;
  std::vector<std::string> lines = {
      "firn simulate --config configs/consumer-24gb.yaml --workload chat:sessions=150",
      "firn simulate --config configs/consumer-8gb.yaml" + slice,
      "firn simulate --config configs/h200-node.yaml" + slice,
      "firn simulate --config configs/h200-node.yaml --trace tests/data/traces/agentic_60.jsonl.zst"};
#ifdef FIRN_SANITIZED
  lines = {lines[1]};  // some twenty-five runs each
#endif
  for (const std::string& line : lines) {
    const nlohmann::json run = run_json(line + " --json -"), &advice = run["advice"];
    std::size_t of_this = 0;
    for (const nlohmann::json& tried : advice["tried"]) {
      if (!tried["gains"].get<bool>() || of_this++ >= 2) continue;
      const nlohmann::json after = run_json(line + " --no-advice --json - " + tried["change"].get<std::string>());
      EXPECT_EQ(after["ttft_s"]["p50"], tried["ttft_p50_s"]) << line << tried;
      EXPECT_EQ(after["ttft_s"]["p95"], tried["ttft_p95_s"]) << line << tried;
      EXPECT_LE(after["refused"], run["refused"]) << line << tried;
      ++advised;
    }
    if (advice["carried_requests_per_s"].is_null()) continue;
    std::ostringstream rate;
    rate << advice["carried_requests_per_s"].get<double>();
    const nlohmann::json after = run_json(line + " --no-advice --json - --rate " + rate.str());
    const std::string objective = advice["objective"];  // ttft_p95=20s
    const double within = std::stod(objective.substr(objective.find('=') + 1)) * (objective.ends_with("ms") ? 1e-3 : 1);
    EXPECT_LE(after["ttft_s"][objective.substr(5, 3)], within) << line << " --rate " << rate.str();
  }
  EXPECT_GE(advised, lines.size());
}

TEST(PlanCommand, TakesAModelFromGgufAndFromConfigJson) {
  const nlohmann::json gguf =
      run_json("firn plan --device rtx4090 --pool-budget 1GiB --model " FIRN_RANDOM_MODEL " --json -");
  EXPECT_EQ(gguf["token_bytes"], 512) << "as the demo says of the same file";
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("firn_config_" + std::to_string(getpid()) + ".json");
  std::ofstream(file) << R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 128256})";
  const nlohmann::json json =
      run_json("firn plan --device rtx4090 --pool-budget 1GiB --model " + file.string() + " --json -");
  EXPECT_EQ(json["token_bytes"], 131072) << "Llama-3.1-8B";
  std::ofstream(file) << "{\"hidden_size\": 4096}";
  EXPECT_NE(run_line("firn plan --pool-budget 1GiB --model " + file.string(), true).output.find("num_hidden_layers"),
            std::string::npos);
  std::filesystem::remove(file);
}

// As Gemma 3's own file is: 34 layers, every sixth sees everything, the others 1,024 tokens.
constexpr const char* kGemma = R"({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text",
  "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}})";

TEST(PlanCommand, SaysWhatEachGroupOfLayersTakes) {
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("firn_gemma_" + std::to_string(getpid()) + ".json");
  const std::string line = "firn plan --device rtx4090 --pool-budget 1GiB --host-budget 8GiB --model " + file.string();
  std::ofstream(file) << kGemma;
  const nlohmann::json plan = run_json(line + " --json -");
  ASSERT_EQ(plan["groups"].size(), 2u);
  const std::uint64_t layer = 2 * 2 * 4 * 256;  // keys and values, 16 bits, 4 heads of 256
  EXPECT_EQ(plan["groups"][0]["token_bytes"], 5 * layer);
  EXPECT_EQ(plan["groups"][1]["token_bytes"], 29 * layer);
  EXPECT_EQ(plan["groups"][1]["window"], 1024);
  EXPECT_EQ(plan["groups"][1]["page_sets"], 29) << "5 and 29 share no divisor";
  EXPECT_EQ(plan["page_bytes"], 16 * layer);
  EXPECT_EQ(plan["session_bytes"], 8192 * 5 * layer + (1024 + 16) * 29 * layer) << "a window and a block";
  const std::uint64_t sessions = (std::uint64_t{1} << 30) / plan["session_bytes"].get<std::uint64_t>();
  EXPECT_EQ(plan["tiers"][0]["sessions"], sessions);
  // The hot tokens are still raw, so the gain is less than the ratio.
  for (const nlohmann::json& row : plan["codecs"]) {
    const double gain = row["host_tokens"].get<double>() / plan["codecs"][0]["host_tokens"].get<double>();
    EXPECT_LE(gain, row["ratio"].get<double>() * 1.001) << row;
    EXPECT_GE(gain, row["ratio"].get<double>() / 2) << row;
  }
  EXPECT_EQ(plan["codecs"][0]["codec"], "raw");
  EXPECT_GT(plan["codecs"].back()["kld"], 0.01) << "quality beside users, as it was measured";
  const Ran text = run_line(line, /*with_stderr=*/false);
  EXPECT_LE(std::count(text.output.begin(), text.output.end(), '\n'), 24) << text.output;
  EXPECT_NE(text.output.find("29 layers see the last 1,024 tokens"), std::string::npos) << text.output;
  std::ofstream(file) << R"({"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "vocab_size": 100,
    "num_attention_heads": 2, "sliding_window": 128, "layer_types": ["full_attention", "sliding_attention",
    "sliding_attention", "sliding_attention"]})";
  const nlohmann::json listed = run_json(line + " --json -");
  EXPECT_EQ(listed["groups"][0]["layers"], 1);
  EXPECT_EQ(listed["groups"][1]["layers"], 3);
  std::ofstream(file) << R"({"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "layer_types": ["linear_attention"]})";
  EXPECT_NE(run_line(line, true).output.find("linear_attention"), std::string::npos) << "no wrong number for it";
  std::filesystem::remove(file);
}

TEST(PlanCommand, ReadsWindowsFromAGguf) {
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("firn_gemma_" + std::to_string(getpid()) + ".gguf");
  std::string bytes = "GGUF";
  const auto put = [&bytes](auto value) { bytes.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
  const auto text = [&](const std::string& value) { put(std::uint64_t{value.size()}), bytes += value; };
  const std::vector<std::pair<const char*, std::uint32_t>> numbers = {
      {"block_count", 26},        {"attention.head_count", 4},   {"attention.head_count_kv", 1},
      {"embedding_length", 1152}, {"attention.key_length", 256}, {"attention.sliding_window", 512}};
  put(std::uint32_t{3}), put(std::uint64_t{0}), put(std::uint64_t{numbers.size() + 1});
  text("general.architecture"), put(std::uint32_t{8}), text("gemma3");
  for (const auto& [key, value] : numbers) text(std::string("gemma3.") + key), put(std::uint32_t{4}), put(value);
  bytes.resize((bytes.size() + 31) / 32 * 32);
  std::ofstream(file, std::ios::binary) << bytes;
  const nlohmann::json plan =
      run_json("firn plan --device rtx4090 --pool-budget 1GiB --model " + file.string() + " --json -");
  std::filesystem::remove(file);
  ASSERT_EQ(plan["groups"].size(), 2u);
  EXPECT_EQ(plan["groups"][0]["layers"], 4);
  EXPECT_EQ(plan["groups"][1]["layers"], 22);
  EXPECT_EQ(plan["groups"][1]["window"], 512);
  EXPECT_EQ(plan["groups"][1]["page_sets"], 11) << "pages of two layers";
}

// Each number of a GGUF's directory, replaced by what it may not be, is refused with file and key.
TEST(PlanCommand, RefusesNumbersOfAGgufByName) {
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("firn_numbers_" + std::to_string(getpid()) + ".gguf");
  std::string bytes;
  const auto put = [&bytes](auto value) { bytes.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
  const auto text = [&](const std::string& value) { put(std::uint64_t{value.size()}), bytes += value; };
  const std::vector<std::pair<std::string, std::uint32_t>> numbers = {
      {"block_count", 26},        {"attention.head_count", 4},   {"attention.head_count_kv", 1},
      {"embedding_length", 1152}, {"attention.key_length", 256}, {"attention.sliding_window", 512},
      {"expert_count", 8},        {"expert_used_count", 2}};
  const std::vector<std::function<void()>> bad = {
      [&] { put(std::uint32_t{10}), put(std::uint64_t{1} << 63); },
      [&] { put(std::uint32_t{10}), put(~std::uint64_t{0}); },
      [&] { put(std::uint32_t{11}), put(std::int64_t{-1}); },
      [&] { put(std::uint32_t{12}), put(1e308); },
      [&] { put(std::uint32_t{6}), put(std::numeric_limits<float>::quiet_NaN()); },
      [&] { put(std::uint32_t{8}), text("NaN"); },
      [&] { put(std::uint32_t{9}), put(std::uint32_t{8}), put(std::uint64_t{1}), text("12"); }};
  for (const auto& [changed, usual] : numbers)
    for (std::size_t i = 0; i < bad.size(); ++i) {
      bytes = "GGUF";
      put(std::uint32_t{3}), put(std::uint64_t{0}), put(std::uint64_t{numbers.size() + 1});
      text("general.architecture"), put(std::uint32_t{8}), text("gemma3");
      for (const auto& [key, value] : numbers) {
        text("gemma3." + key);
        if (key == changed)
          bad[i]();
        else
          put(std::uint32_t{4}), put(value);
      }
      bytes.resize((bytes.size() + 31) / 32 * 32);
      std::ofstream(file, std::ios::binary) << bytes;
      const Ran ran = run_line("firn plan --device rtx4090 --pool-budget 1GiB --model " + file.string(), true);
      EXPECT_EQ(ran.exit_code, 2) << changed << " " << i << ": " << ran.output;
      EXPECT_NE(ran.output.find("gemma3." + changed), std::string::npos) << i << ": " << ran.output;
      EXPECT_NE(ran.output.find(file.string()), std::string::npos) << changed << ": " << ran.output;
    }
  std::filesystem::remove(file);
}

TEST(PlanCommand, FindsTheCheapestSizesOfPoolHostAndDisk) {
  const std::string line = "firn plan --device h200 --pool-budget 40GiB --workload chat:sessions=60,rate=2 --seed 4";
  const nlohmann::json all = run_json(line + " --slo ttft_p95=300ms --json -");
  ASSERT_FALSE(all["cheapest"].is_null()) << all;
  double least = 1e9;
  for (const nlohmann::json& point : all["points"])
    if (point["meets"]) least = std::min(least, point["price_per_hour"].get<double>());
  EXPECT_EQ(all["cheapest"]["price_per_hour"], least);
  EXPECT_LE(all["cheapest"]["ttft_p95_s"], 0.3);
  for (const nlohmann::json& point : all["points"])  // an H200 is rented whole
    EXPECT_GE(point["price_per_hour"], 3.5 * point["devices"].get<double>());
  EXPECT_GT(all["carried"]["requests_per_s"], 0);
  EXPECT_GT(std::set<std::uint64_t>({all["points"].front()["pool_bytes"], all["points"].back()["pool_bytes"]}).size(),
            1u);
  EXPECT_EQ(all["prices"]["source"], "assumed");
  const Ran text = run_line(line + " --host-budget 32GiB --slo ttft_p95=300ms", /*with_stderr=*/false);
  EXPECT_LE(std::count(text.output.begin(), text.output.end(), '\n'), 24) << text.output;
  EXPECT_NE(text.output.find("Prices are assumed"), std::string::npos) << text.output;
  EXPECT_NE(run_line("firn plan --device h200 --slo ttft_p95=1s", false).output.find("--workload"), std::string::npos)
      << "without requests there is nothing to search with, and it says so";
  const nlohmann::json none = run_json(line + " --slo ttft_p95=1ms --json -");
  EXPECT_TRUE(none["cheapest"].is_null());
  std::map<std::uint64_t, std::size_t> runs;  // by number of devices
  for (const nlohmann::json& point : none["points"]) ++runs[point["devices"].get<std::uint64_t>()];
  EXPECT_EQ(runs.size(), 4u) << "1, 2, 4 and 8";
  for (const auto& [devices, count] : runs)
    EXPECT_EQ(count, 3u) << devices << ": the pool as given and the largest one without a host tier, and all there can "
                         << "be with one; as that fails, so do those between";
}

TEST(SimulateCommand, TakesMeasuredFiguresOfTheCodec) {
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("firn_figures_" + std::to_string(getpid()) + ".json");
  const std::string line = "firn simulate --config configs/consumer-24gb.yaml --workload chat:sessions=20 --json -";
  const nlohmann::json shipped = run_json(line);
  EXPECT_EQ(shipped["codec"], "lossless");
  EXPECT_EQ(shipped["codec_ratio"], 1.179) << "host.codec as it was measured, not 1.00";
  EXPECT_NE(shipped["codec_source"].get<std::string>().find("SmolLM2-135M"), std::string::npos);
  EXPECT_EQ(run_json(line + " --set host.codec=q8")["codec_ratio"], 1.88);
  const nlohmann::json assumed = run_json(line + " --codec-ratio 1");
  EXPECT_EQ(assumed["codec_source"], "assumed");
  std::ofstream(file) << R"([{"codec": "q8", "raw_bytes": 100, "frame_bytes": 50, "decode_cpu_s": 1},
    {"codec": "lossless", "raw_bytes": 3000000000, "frame_bytes": 2000000000, "decode_cpu_s": 2}])";
  const nlohmann::json eval = run_json(line + " --codec-figures " + file.string());
  EXPECT_EQ(eval["codec_ratio"], 1.5) << "the row of host.codec, which is lossless there";
  EXPECT_EQ(eval["codec_bytes_per_s"], 1.5e9);
  EXPECT_EQ(eval["host_blocks"], assumed["host_blocks"].get<std::uint64_t>() * 3 / 2);
  EXPECT_NE(eval["codec_source"].get<std::string>().find(file.string()), std::string::npos);
  EXPECT_EQ(run_json(line + " --codec-threads 2 --codec-figures " + file.string())["codec_bytes_per_s"], 3e9);
  std::ofstream(file) << R"([{"codec": "kvtc@8", "raw_bytes": 160, "frame_bytes": 10, "decode_cpu_s": 1}])";
  const std::string kvtc = " --set host.codec=kvtc --set host.artefact=a --set host.ratio=8 --codec-figures ";
  EXPECT_EQ(run_json(line + kvtc + file.string())["codec_ratio"], 16);
  std::ofstream(file) << R"({"benchmarks": [{"name": "BM_CodecDecode/codec:2/threads:1/process_time/real_time",
    "ratio": 1.25, "bytes_per_second": 4e9}]})";
  EXPECT_EQ(run_json(line + " --codec-figures " + file.string())["codec_ratio"], 1.25);
  std::ofstream(file) << R"([{"codec": "q8", "raw_bytes": 100, "frame_bytes": 50, "decode_cpu_s": 1}])";
  EXPECT_NE(run_line(line + " --codec-figures " + file.string(), true).output.find("there are: q8"), std::string::npos);
  std::ofstream(file) << "{}";
  EXPECT_NE(run_line(line + " --codec-figures " + file.string(), true).output.find("firn eval"), std::string::npos);
  std::filesystem::remove(file);
}

TEST(PlanCommand, TakesAMadeUpWorkload) {
  const nlohmann::json plan = run_json(
      "firn plan --config configs/h200-node.yaml --workload chat:sessions=60 --seed 4 --slo ttft_p95=2s --json -");
  ASSERT_FALSE(plan["points"].empty());
  EXPECT_GT(plan["points"].back()["token_hit_ratio"], 0.5);
}

TEST(SettingsTable, KnowsEveryEvictionPolicy) {
  const auto words = find_setting("eviction")->words;
  const auto names = policy_names();
  EXPECT_TRUE(std::equal(words.begin(), words.end(), names.begin(), names.end()));
}

}  // namespace
}  // namespace firn::cli
