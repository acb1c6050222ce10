// The engine with a virtual clock: what must hold whatever the numbers, and that the same run is the same bytes.
#include "sim/engine.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "sim/advice.h"
#include "sim/report.h"
#include "tests/sim/traces.h"

namespace firn::sim {
namespace {

EngineOptions options(std::uint64_t pool_gib = 40, std::uint64_t host_gib = 0) {
  EngineOptions made;
  made.device = load_device("h200", {std::string(FIRN_SOURCE_DIR) + "/configs"}).value();
  made.model = load_model_shape("llama-3.1-8b").value();
  made.device.memory_bytes = 0;  // not known: pools of any size
  made.pool_bytes = pool_gib << 30;
  made.host_bytes = host_gib << 30;
  return made;
}

EngineResult run(const EngineOptions& engine, const std::string& trace = "conversation_2000.jsonl.zst") {
  const Result<EngineResult> result = run_engine(slice(trace), {}, engine);
  EXPECT_TRUE(result.ok()) << result.status().message();
  return result.ok() ? *result : EngineResult{};
}

void expect_consistent(const EngineResult& r) {
  EXPECT_EQ(r.requests, r.finished + r.refused);
  EXPECT_EQ(r.blocks, r.hits_pool + r.hits_host + r.hits_disk + r.miss_never_stored + r.miss_evicted +
                          r.miss_after_miss + r.miss_recompute_cheaper + r.miss_tail)
      << "every block of a prompt is a hit or has one reason";
  EXPECT_LE(r.compute_busy_s, r.seconds * 1.0001);
  EXPECT_LE(r.ttft_s.p50, r.ttft_s.p95);
  EXPECT_GE(r.ttft_s.p50, r.queue_s.p50) << "the queue is a part of the wait";
  for (const Sample& sample : r.samples) {
    EXPECT_LE(sample.pool_live + sample.pool_cached, 1.0001);
    EXPECT_LE(sample.host, 1.0001);
  }
}

TEST(Engine, AccountsForEveryRequestAndBlock) {
  for (const bool swap : {false, true}) {
    for (const std::uint64_t host : {0u, 64u}) {
      EngineOptions engine = options(12, host);
      engine.swap = swap;
      SCOPED_TRACE(testing::Message() << "swap " << swap << " host " << host);
      const EngineResult r = run(engine);
      expect_consistent(r);
      EXPECT_EQ(r.hits_host == 0, host == 0);
    }
  }
}

TEST(Engine, MakesEveryTokenThatWasAskedFor) {
  const EngineResult r = run(options(300), "weka_4.tar.zst");
  expect_consistent(r);
  EXPECT_EQ(r.requests, 22u);
  EXPECT_EQ(r.refused, 0u);
  std::uint64_t tokens = 0;
  const std::unique_ptr<TraceReader> reader = TraceReader::open(slice("weka_4.tar.zst"), {}).value();
  for (TraceRequest request; reader->next(request).value();) tokens += std::max(1u, request.output_tokens);
  EXPECT_EQ(r.output_tokens, tokens);
}

TEST(Engine, AnUnhurriedPoolHitsWhatAnEndlessCacheHits) {
  EngineOptions engine = options(20000);
  engine.time_scale = 0.01;  // nobody waits for anybody
  const EngineResult r = run(engine);
  const Result<BookkeepingResult> endless = run_bookkeeping(
      slice("conversation_2000.jsonl.zst"), {}, {.policy = "lru", .tier_blocks = {1000000}, .block_tokens = 512});
  ASSERT_TRUE(endless.ok());
  // The engine always computes the last token, so it cannot use a last block that is wholly there; and a partly filled
  // block is no full block. Both differ by at most one block a request.
  EXPECT_LE(r.hits_pool, endless->counts.prefix_hits);
  EXPECT_GE(r.hits_pool + r.requests, endless->counts.prefix_hits);
  EXPECT_EQ(r.miss_evicted, 0u);
}

TEST(Engine, AHostTierHelpsWhereThePoolIsSmallAndNeverHurtsTheFirstToken) {
  EngineOptions engine = options(24);
  engine.time_scale = 0.25;
  const EngineResult without = run(engine);
  engine.host_bytes = std::uint64_t{800} << 30;
  const EngineResult with = run(engine);
  expect_consistent(with);
  EXPECT_GT(with.hits_host, 0u);
  EXPECT_GT(with.hits_pool + with.hits_host, without.hits_pool);
  EXPECT_LT(with.ttft_s.mean, without.ttft_s.mean);
  EXPECT_GT(with.host_down_bytes, with.host_up_bytes) << "more is stored than read back";
}

TEST(Engine, DecidesByThePolicyItIsGiven) {
  EngineOptions engine = options(16, 100);
  const EngineResult lru = run(engine);
  engine.policy = "lfu";
  const EngineResult lfu = run(engine);
  EXPECT_NE(lru.hits_pool + lru.hits_host, lfu.hits_pool + lfu.hits_host);
}

TEST(Engine, RefusesWhatIsLongerThanThePoolAndGoesOn) {
  const EngineResult r = run(options(4));
  expect_consistent(r);
  EXPECT_GT(r.refused, 0u);
  EXPECT_GT(r.finished, 1000u);
  EXPECT_NE(diagnose(options(4), r).text.find("longer than"), std::string::npos);
}

// Blocks are missing all the time and the device is busy all the time: of the two, the one of which twice helps is the
// bottleneck, and a larger pool, which gains nothing here, is not called one.
TEST(Advice, TheBottleneckIsThatOfWhichTwiceHelps) {
  EngineOptions o;
  o.device = load_device("rtx4060", {std::string(FIRN_SOURCE_DIR) + "/configs"}).value();
  o.model = load_model_shape("smollm2-135m").value();
  o.pool_bytes = std::uint64_t{4} << 30, o.host_bytes = std::uint64_t{16} << 30, o.max_sequences = 32;
  const std::string trace = slice("conversation_2000.jsonl.zst");
  const EngineResult r = run_engine(trace, {}, o).value();
  const Diagnosis seen = diagnose(o, r);
  ASSERT_GE(seen.limits.size(), 2u) << seen.text;
  EXPECT_EQ(seen.text.find("is the bottleneck"), std::string::npos) << "two are full, nothing was run: " << seen.text;
  const Advice advice = advise(trace, {}, o, r, {}).value();
  ASSERT_EQ(advice.what_if.size(), seen.limits.size());
  EXPECT_EQ(advice.diagnosis.what, advice.what_if.front().what);
  EXPECT_TRUE(advice.what_if.front().gains);
  for (const WhatIf& one : advice.what_if) EXPECT_LE(advice.what_if.front().ttft_p95, one.ttft_p95);
  for (const Tried& tried : advice.tried)
    if (tried.change.rfind("--pool-budget", 0) == 0 && !tried.gains) {
      EXPECT_NE(advice.diagnosis.what, Bottleneck::kMemory) << advice.diagnosis.text << tried.change;
    }
  EXPECT_EQ(advice.next.find("\n"), std::string::npos);
  ASSERT_TRUE(advice.rate.carried) << advice.next;
  EXPECT_EQ(advice.rate.carried->rate, std::stod(fmt::format("{:.3g}", advice.rate.carried->rate)))
      << "as it is said, so it was run";
}

TEST(Engine, TheSameRunIsTheSameBytes) {
  const EngineOptions engine = options(12, 64);
  const EngineResult a = run(engine), b = run(engine);
  EXPECT_EQ(report_json(engine, a), report_json(engine, b));
  EXPECT_EQ(report_html("t", engine, a), report_html("t", engine, b));
}

TEST(Engine, StopsWhereItIsToldTo) {
  const Result<EngineResult> r = run_engine(slice("conversation_2000.jsonl.zst"), {}, options(),
                                            [](const Progress& progress) { return progress.requests < 500; });
  ASSERT_TRUE(r.ok());
  EXPECT_FALSE(r->complete);
  EXPECT_GE(r->requests, 400u);
  EXPECT_LT(r->finished, 2000u);
}

TEST(Engine, NamesWhatCannotBe) {
  EngineOptions engine = options();
  engine.pool_bytes = 1000;
  EXPECT_NE(run_engine(slice("conversation_2000.jsonl.zst"), {}, engine).status().message().find("--pool-budget"),
            std::string::npos);
  engine = options();
  engine.codec_ratio = 0;
  EXPECT_EQ(run_engine(slice("conversation_2000.jsonl.zst"), {}, engine).status().code(), Code::kInvalidArgument);
}

TEST(Report, ThePageHoldsTheJsonAndNeedsNoNetwork) {
  const EngineOptions engine = options(12, 64);
  const EngineResult r = run(engine, "weka_4.tar.zst");
  const std::string page = report_html("</script>", engine, r);
  EXPECT_EQ(page.find("http://"), page.find("http://www.w3.org/2000/svg")) << "a name, not an address";
  EXPECT_EQ(page.find("https://"), std::string::npos);
  const std::string open = "id=\"data\">";
  const std::size_t from = page.find(open) + open.size();
  const nlohmann::json inside = nlohmann::json::parse(page.substr(from, page.find("</script>", from) - from));
  EXPECT_EQ(inside["trace"], "</script>") << "and it did not end the element";
  EXPECT_EQ(inside["report"], nlohmann::json::parse(report_json(engine, r)));
}

TEST(Hardware, EveryShippedDeviceLoads) {
  std::size_t count = 0;
  for (const auto& file : std::filesystem::directory_iterator(std::string(FIRN_SOURCE_DIR) + "/configs/devices")) {
    const Result<DeviceSpec> device = load_device(file.path().string(), {});
    EXPECT_TRUE(device.ok()) << device.status().message();
    ++count;
  }
  EXPECT_GE(count, 5u);
}

TEST(Hardware, SaysWhatIsWrongWithADeviceOrAModel) {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("firn_device_" + std::to_string(getpid()))).string();
  const auto message = [&path](const char* text) {
    std::ofstream(path) << text;
    const Result<DeviceSpec> device = load_device(path, {});
    return device.ok() ? std::string() : device.status().message();
  };
  EXPECT_NE(message("flops: 1e12\n").find("memory_bandwidth"), std::string::npos);
  EXPECT_NE(message("flopps: 1e12\n").find("flopps"), std::string::npos);
  EXPECT_NE(message("flops: many\nmemory_bandwidth: 1\nhost_link: 1\n").find(":1"), std::string::npos);
  EXPECT_NE(message("[1, 2").find(path), std::string::npos);
  std::filesystem::remove(path);
  EXPECT_NE(load_device("abacus", {"configs"}).status().message().find("configs"), std::string::npos);
  EXPECT_NE(load_model_shape("gpt-0").status().message().find("llama-3.1-8b"), std::string::npos);
  EXPECT_EQ(load_model_shape("llama-3.1-8b")->token_bytes(), 131072u) << "128 KiB a token";
}

}  // namespace
}  // namespace firn::sim
