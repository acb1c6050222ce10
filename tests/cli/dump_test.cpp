// firn dump: what a manager writes is what the program shows, and what is no dump is refused.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/cli/program.h"
#include "tests/core/manager/fixture.h"

namespace firn::cli {
namespace {

using test::distinct;
using test::joined;
using test::prompt;

constexpr std::int64_t kSecond = 1'000'000'000;

class Dump : public testing::Test {
 protected:
  ~Dump() override { std::filesystem::remove(path_); }
  std::string shown(const std::string& text) {
    std::ofstream(path_, std::ios::binary) << text;
    const Ran ran = run_line("firn dump " + path_.string(), true);
    exit_code_ = ran.exit_code;
    std::string output = ran.output;
    if (const std::size_t at = output.find(path_.string()); at != std::string::npos)
      output.replace(at, path_.string().size(), "FILE");
    return output;
  }
  std::filesystem::path path_ = std::filesystem::temp_directory_path() / ("firn_dump_" + std::to_string(getpid()));
  int exit_code_ = -1;
};

TEST_F(Dump, ListsWhoHoldsWhat) {
  Config config = test::bookkeeping(101);
  Instant now{kSecond};
  const auto manager = test::make_manager(config, test::small_model(), {.clock = [&now] { return now; }});
  const auto cached = [&](std::uint32_t blocks, TokenId first, std::string_view name) {
    const auto tokens = distinct(blocks * kBlockTokens, first);
    EXPECT_TRUE(manager->free(prompt(*manager, tokens, {.name_space = name})).ok());
    return manager->compute_keys(tokens, name);
  };
  const std::vector<Key> routed = cached(4, 0, ""), pinned = cached(3, 1000, "a"), kin = cached(2, 2000, "a");
  ASSERT_TRUE(manager->acquire_lease("router \x1b[31m7", routed, 90 * kSecond).ok());
  ASSERT_TRUE(manager->pin(pinned, 600 * kSecond).ok());
  ASSERT_TRUE(manager->set_family(kin).ok());
  ASSERT_TRUE(manager->set_quota("a", {.device_floor = 65536, .device_ceiling = 1 << 20}).ok());
  const SeqId live = prompt(*manager, joined(distinct(32, 1000), distinct(9, 5000)), {.name_space = "a"});
  const SeqId away = prompt(*manager, distinct(20, 9000));
  ASSERT_TRUE(manager->preempt(away).ok());
  now.ns += 30 * kSecond;
  EXPECT_EQ(shown(manager->dump()), R"(model "small", blocks of 16.0 KiB
pool    100 slots: 3 live, 8 cached, 89 free
host    0 frames, 0 B of 0 B raw
pinned  7 blocks, 112.0 KiB of 404.0 KiB
asked   14 blocks, 2 of them found; 5 partial_tail; 4 never_stored; 3 after_miss

leases: 1
  owner          lease  blocks     bytes  held for  ends in
  router ?[31m7      1       4  64.0 KiB    30.0 s   60.0 s

pins: 1
  namespace         blocks     bytes  ends in
  19582ffc0c4ce37d       3  48.0 KiB  9.5 min

families: 1
  namespace         family  blocks     bytes  on device  held
  19582ffc0c4ce37d       1       2  32.0 KiB          2     0

namespaces: 2
  tag               sequences  blocks                device (quota)  host (quota)
  3735bcc14f47dc30          1       5                      80.0 KiB           0 B
  19582ffc0c4ce37d          1       6  96.0 KiB (64.0 KiB..1.0 MiB)           0 B

sequences: 2
  namespace         sequence  tokens  blocks
  19582ffc0c4ce37d         4      41       3
  3735bcc14f47dc30         5      20       0  preempted
)");
  EXPECT_EQ(exit_code_, 0);
  ASSERT_TRUE(manager->free(live).ok());
}

TEST_F(Dump, WhatIsNoDumpIsRefused) {
  EXPECT_EQ(shown("{\"format\": \"firn-du"), "firn: FILE: is no JSON object, or was cut short\n");
  EXPECT_EQ(exit_code_, 5);
  EXPECT_EQ(shown("{\"format\": 1}"), "firn: FILE: is no dump of a firn manager (\"format\": \"firn-dump-1\")\n");
  EXPECT_EQ(exit_code_, 5);
  EXPECT_EQ(run_line("firn dump /no/such/file", true).output,
            "firn: /no/such/file: cannot be read (No such file or directory)\n");
  // Whatever else it holds: it is shown as far as it goes, and nothing breaks.
  for (const char* odd :
       {R"({"format":"firn-dump-1"})", R"({"format":"firn-dump-1","leases":[1,{"owner":3}],"slots":[]})",
        R"({"format":"firn-dump-1","misses":[7],"pins":"x","left_out":9,"namespaces":{"a":{"tag":1e99}}})"}) {
    shown(odd);
    EXPECT_EQ(exit_code_, 0) << odd;
  }
}

TEST_F(Dump, RunAndSimulateWriteOne) {
  const std::string file = path_.string();
  const Ran run = run_line("firn run --model " FIRN_RANDOM_MODEL
                           " --prompt-file tests/cli/prompt.txt --max-tokens 4 --json --pool-budget 64MiB --dump " +
                               file,
                           false);
  ASSERT_EQ(run.exit_code, 0);
  std::string text = run_line("firn dump " + file, true).output;
  EXPECT_NE(text.find("sequences: 1\n"), std::string::npos) << text;
  const Ran simulated = run_line(
      "firn simulate --through-manager --workload chat:sessions=4,rate=1,turns=2 --requests 8 --device rtx4060 --model "
      "smollm2-135m --pool-budget 1GiB --json - --dump " +
          file,
      true);
  ASSERT_EQ(simulated.exit_code, 0) << simulated.output;
  text = run_line("firn dump " + file, true).output;
  EXPECT_NE(text.find("sequences: none\n"), std::string::npos) << text;
  EXPECT_NE(text.find("namespaces: 1\n"), std::string::npos) << text;
  EXPECT_EQ(run_line("firn simulate --workload chat --dump x", true).exit_code, 2);
}

TEST_F(Dump, PinsOfOneCallAreOneThingWhateverTheClockDoesMeanwhile) {
  Instant now{kSecond};
  const auto manager = test::make_manager(test::bookkeeping(101), test::small_model(), {.clock = [&now] {
                                            now.ns += 1000;
                                            return now;
                                          }});
  const auto tokens = distinct(5 * kBlockTokens, 0);
  ASSERT_TRUE(manager->free(prompt(*manager, tokens)).ok());
  ASSERT_TRUE(manager->pin(manager->compute_keys(tokens, ""), 600 * kSecond).ok());
  EXPECT_NE(shown(manager->dump()).find("pins: 1\n"), std::string::npos);
}

TEST_F(Dump, BelievesNothingOfAFile) {
  const std::string deep = std::string(200'000, '[') + std::string(200'000, ']');
  const std::string out = shown(R"({"format":"firn-dump-1","leases":[{"owner":"\u009b2J","x":)" + deep +
                                R"(}],"misses":{"\u001b]0;title\u0007":3}})");
  EXPECT_EQ(exit_code_, 0) << out;
  EXPECT_NE(out.find("leases: 1"), std::string::npos) << out;
  EXPECT_NE(out.find("3 ?]0;title?"), std::string::npos) << out;
  EXPECT_EQ(out.find("\xc2\x9b"), std::string::npos);
}

}  // namespace
}  // namespace firn::cli
