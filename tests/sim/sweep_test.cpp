// Sweeps: the same report on one thread or two, and after a kill; curves: equal to runs; workloads: what they promise.
#include "sim/sweep.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "sim/curve.h"
#include "sim/trace_info.h"
#include "sim/workload.h"
#include "tests/sim/traces.h"

namespace firn::sim {
namespace {

const std::string kTrace = "conversation_2000.jsonl.zst";

std::vector<SweepPoint> points() {
  EngineOptions options;
  options.device = load_device("h200", {std::string(FIRN_SOURCE_DIR) + "/configs"}).value();
  options.model = load_model_shape("llama-3.1-8b").value();
  options.pool_bytes = std::uint64_t{24} << 30;
  return engine_points(slice(kTrace), {.max_requests = 400}, options,
                       {{"host.budget", {"0", "16GiB", "200GiB"}}, {"policy", {"lru", "lfu"}}})
      .value();
}

std::string temporary(const char* name) {
  return (std::filesystem::temp_directory_path() / (std::string(name) + std::to_string(getpid()))).string();
}

TEST(Sweep, GivesTheSameReportOnOneThreadAndOnTwo) {
  const SweepResult one = run_sweep(points(), 1, "").value(), two = run_sweep(points(), 2, "").value();
  EXPECT_EQ(one.lines, two.lines);
  ASSERT_EQ(one.lines.size(), 6u);
  EXPECT_NE(one.lines[0], one.lines[4]) << "the host tier changes something";
  for (const std::string& line : one.lines) EXPECT_EQ(nlohmann::json::parse(line)["finished"], 400);
}

TEST(Sweep, KilledAndResumedGivesTheSameReport) {
  const std::string state = temporary("firn_sweep_");
  std::filesystem::remove(state);
  std::vector<SweepPoint> slow = points();
  for (SweepPoint& point : slow)
    point.result = [inner = point.result](const Tick& tick) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      return inner(tick);
    };
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const bool done = run_sweep(slow, 1, state).ok();
    _exit(done ? 0 : 1);
  }
  const auto lines = [&state] {
    std::ifstream in(state);
    std::size_t count = 0;
    for (std::string line; std::getline(in, line);) ++count;
    return count;
  };
  while (lines() < 2 && waitpid(child, nullptr, WNOHANG) == 0)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  {  // as if it had been killed in the middle of a line
    std::ofstream out(state, std::ios::app);
    out << points()[5].name << "\t{\"fin";
  }
  const SweepResult resumed = run_sweep(points(), 2, state).value();
  EXPECT_GE(resumed.reused, 2u);
  EXPECT_GE(resumed.done, 1u) << "the half line does not count";
  EXPECT_EQ(resumed.lines, run_sweep(points(), 1, "").value().lines);
  EXPECT_EQ(run_sweep(points(), 1, state).value().done, 0u);
  std::filesystem::remove(state);
}

TEST(Sweep, KeepsNothingOfARunThatWasStopped) {
  const std::string state = temporary("firn_sweep_stopped_");
  std::filesystem::remove(state);
  int ticks = 0;
  const SweepResult stopped = run_sweep(points(), 1, state, [&ticks](const Progress&) { return ++ticks < 20; }).value();
  EXPECT_FALSE(stopped.complete);
  EXPECT_EQ(run_sweep(points(), 1, state).value().lines, run_sweep(points(), 1, "").value().lines);
  std::filesystem::remove(state);
}

std::string bytes_of(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

// The disk is full while a result is kept: what was there stays, byte for byte, and the sweep says so.
TEST(Sweep, AFullDiskLeavesTheStateAsItWas) {
  const std::string state = temporary("firn_sweep_full_");
  std::filesystem::remove(state);
  const std::vector<SweepPoint> all = points();
  ASSERT_TRUE(run_sweep({all[0], all[1]}, 1, state).ok());
  const std::string before = bytes_of(state);
  ASSERT_FALSE(before.empty());
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{before.size() + 100, before.size() + 100};
    setrlimit(RLIMIT_FSIZE, &limit);
    _exit(run_sweep(all, 1, state).status().code() == Code::kIo ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_EQ(bytes_of(state), before);
  EXPECT_EQ(run_sweep(all, 2, state).value().reused, 2u);
  std::filesystem::remove(state);
}

TEST(Sweep, NeverWritesOverAFileThatItDidNotWrite) {
  const std::string other = temporary("firn_sweep_other_");
  for (const std::string& text : {std::string("{\"timestamp\": 0}\n"), std::string("a\tb\n"),
                                  std::string("no end of a line"), bytes_of(slice(kTrace))}) {
    std::ofstream(other, std::ios::binary) << text;
    EXPECT_EQ(run_sweep(points(), 1, other).status().code(), Code::kInvalidArgument);
    EXPECT_EQ(bytes_of(other), text);
  }
  std::filesystem::remove(other);
}

// How far all runs are together: it never goes back, and ends where everything is done.
TEST(Sweep, ProgressIsOfTheWholeSweep) {
  std::vector<double> shares;
  run_sweep(points(), 1, "", [&shares](const Progress& progress) {
    shares.push_back(static_cast<double>(progress.packed_read) / static_cast<double>(progress.packed_size));
    return true;
  }).value();
  ASSERT_GT(shares.size(), 12u);
  EXPECT_TRUE(std::is_sorted(shares.begin(), shares.end()));
  EXPECT_GT(shares.back(), 0.8) << "asked every few hundred steps";
  EXPECT_LE(shares.back(), 1.0);
}

TEST(Sweep, NamesWhatCannotBe) {
  EngineOptions options;
  EXPECT_NE(set_option(options, "hots.budget", "1GiB").message().find("host.budget"), std::string::npos);
  EXPECT_NE(set_option(options, "host.budget", "much").message().find("host.budget"), std::string::npos);
  EXPECT_NE(set_option(options, "policy", "best").message().find("lru"), std::string::npos);
  EXPECT_NE(set_option(options, "time-scale", "0").message().find("time-scale=0"), std::string::npos);
  EXPECT_FALSE(parse_axis("host.budget").ok());
  EXPECT_FALSE(parse_axis("=1").ok());
}

TEST(Curve, OfLruIsWhatRunsAtEachCapacityCount) {
  const std::vector<std::uint32_t> capacities = {1, 7, 100, 1000, 5000, 30000};
  for (const char* name : {"conversation_2000.jsonl.zst", "agentic_60.jsonl.zst"}) {
    const Curve curve = miss_ratio_curve(slice(name), {}, {.capacities = capacities}).value();
    EXPECT_TRUE(curve.exact);
    for (std::size_t i = 0; i < capacities.size(); ++i) {
      const Counts counts =
          run_bookkeeping(slice(name), {}, {.policy = "lru", .tier_blocks = {capacities[i]}, .block_tokens = 512})
              .value()
              .counts;
      EXPECT_EQ(curve.accesses, counts.blocks);
      EXPECT_DOUBLE_EQ(curve.points[i].prefix_ratio * double(counts.blocks), double(counts.prefix_hits))
          << name << " at " << capacities[i];
      EXPECT_DOUBLE_EQ(curve.points[i].access_ratio * double(counts.blocks), double(counts.access_hits));
    }
  }
}

TEST(Curve, SamplesComeAsNearAsTheySay) {
  for (const char* policy : {"lru", "arc", "fifo"}) {
    const Curve curve = miss_ratio_curve(slice(kTrace), {},
                                         {.policy = policy, .capacities = {1000, 5000}, .rate = 0.1, .sampled = true})
                            .value();
    EXPECT_FALSE(curve.exact);
    for (const CurvePoint& point : curve.points) {
      const Counts counts =
          run_bookkeeping(slice(kTrace), {}, {.policy = policy, .tier_blocks = {point.blocks}, .block_tokens = 512})
              .value()
              .counts;
      EXPECT_GT(point.access_error, 0);
      EXPECT_NEAR(point.access_ratio, double(counts.access_hits) / double(counts.blocks),
                  4 * point.access_error + 0.005)
          << policy << " at " << point.blocks;
    }
  }
}

TEST(Curve, NamesWhatCannotBe) {
  EXPECT_FALSE(miss_ratio_curve(slice(kTrace), {}, {.policy = "optimal"}).ok());
  EXPECT_FALSE(miss_ratio_curve(slice(kTrace), {}, {.policy = "best"}).ok());
  EXPECT_FALSE(miss_ratio_curve(slice(kTrace), {}, {.rate = 0}).ok());
}

std::vector<TraceRequest> all_of(const std::string& workload) {
  const Result<std::unique_ptr<TraceReader>> reader = TraceReader::open(workload, {});
  EXPECT_TRUE(reader.ok()) << reader.status().message();
  std::vector<TraceRequest> requests;
  for (TraceRequest request; (*reader)->next(request).value();) requests.push_back(request);
  EXPECT_EQ((*reader)->out_of_order(), 0u);
  return requests;
}

TEST(Workload, ASeedIsARequestStream) {
  for (const WorkloadKind& kind : workload_kinds()) {
    const std::string few = kind.name == "agents" ? "sessions=12," : "";
    const std::string name = "workload:" + std::string(kind.name) + ":" + few + "seed=";
    const std::vector<TraceRequest> a = all_of(name + "5"), b = all_of(name + "5"), other = all_of(name + "6");
    ASSERT_GT(a.size(), 100u) << kind.name;
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i].time_ns, b[i].time_ns);
      EXPECT_EQ(a[i].blocks, b[i].blocks);
      EXPECT_EQ(a[i].blocks.size(), a[i].input_tokens / 16) << "full blocks have names";
    }
    EXPECT_NE(a[1].blocks, other[1].blocks);
  }
}

// A name stands for everything before it: it has one predecessor, whoever uses it.
TEST(Workload, NamesArePrefixes) {
  for (const WorkloadKind& kind : workload_kinds()) {
    std::map<std::uint64_t, std::uint64_t> before;
    for (const TraceRequest& request :
         all_of("workload:" + std::string(kind.name) + (kind.name == "agents" ? ":sessions=12" : ""))) {
      std::uint64_t last = 0;
      for (const std::uint64_t name : request.blocks) {
        EXPECT_EQ(before.emplace(name, last).first->second, last) << kind.name;
        last = name;
      }
    }
  }
}

TEST(Workload, ReusesWhatItsKindReuses) {
  const auto share = [](const std::string& name) {
    const TraceInfo info = inspect_trace("workload:" + name, {}).value();
    return double(info.hit_tokens) / double(info.input_tokens_sum);
  };
  EXPECT_GT(share("agents"), 0.9) << "agents reuse more than nine tenths";
  EXPECT_GT(share("chat"), 0.6);
  EXPECT_GT(share("rag"), 0.1);
  EXPECT_LT(share("rag"), 0.7);
  EXPECT_NEAR(share("batch:template=1200,question=800"), 0.5, 0.2);
}

TEST(Workload, SaysWhichParametersThereAre) {
  const auto message = [](const std::string& name) {
    const auto reader = TraceReader::open("workload:" + name, {});
    return reader.ok() ? std::string() : reader.status().message();
  };
  EXPECT_NE(message("cat").find("chat, rag, agents, batch"), std::string::npos);
  EXPECT_NE(message("chat:turn=3").find("turns"), std::string::npos);
  EXPECT_NE(message("chat:turns=many").find("turns=many"), std::string::npos);
}

}  // namespace
}  // namespace firn::sim
