// A manager and the process it is in: memory that the machine does not have, threads that the system refuses, fork(),
// recordings, and figures of a server that does nothing. fork() and TSan do not go together: this is no part of its
// runs.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <new>

#include "firn/thread_pool.h"
#include "tests/core/manager/fixture.h"

namespace firn::test {
namespace {

// What body returns in a child process; 99: it did not end within 20 s.
int in_child(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    _exit(body());
  }
  int state = 0;
  EXPECT_EQ(waitpid(child, &state, 0), child);
  return WIFEXITED(state) ? WEXITSTATUS(state) : WTERMSIG(state) == SIGALRM ? 99 : 100 + WTERMSIG(state);
}

Config with_bytes(const ModelSpec& model) {
  Config config;
  config.device = "cpu";
  config.threads = 2;
  config.pool.budget_bytes = 64 * model.block_bytes() + (4u << 20);
  config.pool.max_step_tokens = 16;
  config.host.budget_bytes = 16u << 20;
  return config;
}

// --- memory of the machine ---

TEST(Machine, ABudgetThatItDoesNotHaveIsRefusedWithTheNumbers) {
  const ModelSpec model = small_model();
  Config config = with_bytes(model);
  config.pool.budget_bytes = std::uint64_t{470} << 30;
  const Status pool = Manager::create(config, model, {.memory_bytes = std::uint64_t{23} << 30}).status();
  EXPECT_EQ(pool.code(), Code::kNoSpace);
  EXPECT_NE(pool.message().find("pool.budget 470GiB"), std::string::npos) << pool.message();
  EXPECT_NE(pool.message().find("23GiB"), std::string::npos) << pool.message();
}

TEST(Machine, BudgetsAreRefusedTogetherAlsoWhereNobodyTouchesThem) {
  const ModelSpec model = small_model();
  Config config = with_bytes(model);
  const auto create = [&](std::uint64_t memory) {
    return Manager::create(config, model, {.memory_bytes = memory}).status();
  };
  config.pool.budget_bytes = config.host.budget_bytes = 64u << 20;
  EXPECT_OK(create(256u << 20));
  EXPECT_EQ(create(100u << 20).code(), Code::kNoSpace);  // each alone would do
  config.host.budget_bytes = std::uint64_t{1} << 40;     // only mapped, never touched
  EXPECT_EQ(create(0).code(), Code::kNoSpace);
}

TEST(Machine, ABookkeepersPoolIsNobodysMemory) {
  const ModelSpec model = small_model();
  Config config = bookkeeping(64, model);
  config.pool.budget_bytes = std::uint64_t{1} << 40;  // of an engine's GPUs
  ModelSpec large = model;
  large.groups[0].layer_count = 256;
  large.groups[0].kv.kv_heads = 64;
  EXPECT_OK(Manager::create(config, large, {.memory_bytes = 64u << 20}).status());
}

TEST(Machine, APoolDoesNotGrowPastIt) {
  const ModelSpec model = small_model();
  Config config = with_bytes(model);
  config.pool.budget_bytes = 64u << 20;
  config.pool.max_budget_bytes = 512u << 20;
  const auto manager = make_manager(config, model, {.memory_bytes = 192u << 20});
  ASSERT_TRUE(manager);
  const std::uint64_t slots = manager->stats().slots_total;
  EXPECT_EQ(manager->resize_pool(400u << 20).status().code(), Code::kNoSpace);
  EXPECT_EQ(manager->stats().slots_total, slots);
  EXPECT_OK(manager->resize_pool(128u << 20).status());
  EXPECT_EQ(broken(*manager), "");
}

// --- threads ---

// In a process of a user who may have few; root may have any number, so it becomes somebody else.
int with_few_threads(const std::function<int()>& body) {
  return in_child([&] {
    const rlimit few{4, 4};
    if (setrlimit(RLIMIT_NPROC, &few) != 0 || (getuid() == 0 && setuid(65534) != 0)) return 77;
    return body();
  });
}

TEST(Threads, APoolHasAsManyAsThereMayBe) {
  EXPECT_EQ(with_few_threads([] {
              ThreadPool threads(64);
              std::atomic<int> sum{0};
              threads.parallel_for(100, [&](std::size_t) { ++sum; });
              return sum == 100 && threads.size() >= 1 && threads.size() < 64 ? 0 : 1;
            }),
            0);
}

TEST(Threads, AManagerThatDoesNotGetThemIsRefusedWithTheLimit) {
  EXPECT_EQ(with_few_threads([] {
              Config config = with_bytes(small_model());
              config.threads = 64;
              const Status status = Manager::create(config, small_model()).status();
              if (status.code() != Code::kUnavailable) return 1;
              return status.message().find("RLIMIT_NPROC (ulimit -u) is 4") != std::string::npos ? 0 : 2;
            }),
            0);
  EXPECT_EQ(with_few_threads([] {  // none at all, not even for the mover
              const rlimit none{1, 1};
              if (setrlimit(RLIMIT_NPROC, &none) != 0) return 77;
              Config config = with_bytes(small_model());
              config.threads = 1;
              const Status status = Manager::create(config, small_model()).status();
              if (status.code() != Code::kUnavailable) return 1;
              config.mover.worker = false;
              return Manager::create(config, small_model()).ok() ? 0 : 2;
            }),
            0);
}

TEST(Threads, WhatABodyThrowsComesToTheCallerWhenEverybodyHasLeft) {
  ThreadPool threads(3);
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(threads.parallel_for(50,
                                      [&](std::size_t i) {
                                        if (i % 7 == 3) throw std::bad_alloc();
                                      }),
                 std::bad_alloc);
    std::atomic<int> sum{0};
    threads.parallel_for(50, [&](std::size_t) { ++sum; });
    ASSERT_EQ(sum, 50);
  }
}

// --- fork() ---

TEST(Fork, AThreadPoolRunsInlineInTheChildAndGoes) {
  auto threads = std::make_unique<ThreadPool>(3);
  EXPECT_EQ(in_child([&] {
              int sum = 0;
              threads->parallel_for(100, [&](std::size_t) { ++sum; });
              threads.reset();
              return sum == 100 ? 0 : 1;
            }),
            0);
}

TEST(Fork, AManagerOfTheParentAnswersUnavailableAndGoes) {
  const ModelSpec model = small_model();
  auto manager = make_manager(with_bytes(model), model);
  const SeqId seq = prompt(*manager, distinct(40, 1));
  EXPECT_EQ(in_child([&] {
              const StepRows rows{.seq = seq, .row = 0, .row_count = 1, .position = 39};
              float q[64] = {}, out[64] = {};
              const Status attend =
                  manager
                      ->attend(0, {&rows, 1}, {.query_heads = 1, .scale = 1}, reinterpret_cast<DeviceAddress>(q),
                               reinterpret_cast<DeviceAddress>(out))
                      .status();
              if (attend.code() != Code::kUnavailable) return 1;
              if (attend.message().find("before fork()") == std::string::npos) return 2;
              if (manager->begin(distinct(4, 9)).status().code() != Code::kUnavailable) return 3;
              if (manager->free(seq).code() != Code::kUnavailable) return 4;
              if (manager->match_prefix(distinct(40, 1)).tokens != 0) return 5;
              if (manager->wait_idle().code() != Code::kUnavailable || manager->pump() != 0) return 6;
              if (manager->verify().size() != 1) return 7;
              manager.reset();
              // One of its own works.
              const auto own = Manager::create(with_bytes(model), model);
              return own.ok() && (*own)->begin(distinct(4, 9)).ok() ? 0 : 8;
            }),
            0);
  EXPECT_OK(manager->free(seq));  // and the parent's goes on
  EXPECT_OK(manager->wait_idle());
  EXPECT_EQ(broken(*manager), "");
}

// --- figures of a server that does nothing ---

TEST(IdleServer, ItsFiguresSayWhatHasEnded) {
  std::int64_t now_ns = 1000;
  const ModelSpec model = small_model();
  const auto manager = make_manager(bookkeeping(64, model), model, {.clock = [&] { return Instant{now_ns}; }});
  const SeqId seq = prompt(*manager, distinct(64, 1));
  const std::vector<Key> keys = manager->block_keys(seq);
  ASSERT_OK(manager->pin(keys, 500).status());
  ASSERT_OK(manager->acquire_lease("somebody", std::span(keys).first(2), 700).status());
  ASSERT_OK(manager->free(seq));
  EXPECT_EQ(manager->stats().pinned_blocks, 4u);
  now_ns += 600;
  EXPECT_EQ(manager->stats().pinned_blocks, 2u);
  EXPECT_EQ(manager->stats().pins_expired, 4u);
  now_ns += 600;
  const Stats stats = manager->stats();
  EXPECT_EQ(stats.pinned_blocks, 0u);
  EXPECT_EQ(stats.pinned_bytes, 0u);
  EXPECT_EQ(stats.leases, 0u);
  EXPECT_EQ(stats.leases_expired, 1u);
}

TEST(IdleServer, PinnedBytesOfAHybridAreThoseOfItsPages) {
  ModelSpec model = small_model();
  model.groups = {{GroupKind::kSlidingWindow, 4, {Dtype::kF16, 1, 64, 64}, 64},
                  {GroupKind::kFull, 2, {Dtype::kF16, 1, 64, 64}, 0}};
  const auto manager = make_manager(bookkeeping(64, model), model);
  const SeqId seq = prompt(*manager, distinct(32, 1));
  const auto pinned = manager->pin(manager->block_keys(seq), 1'000'000'000);
  ASSERT_OK(pinned.status());
  EXPECT_EQ(manager->stats().pinned_bytes, pinned->pinned_bytes);
  EXPECT_EQ(pinned->pinned_bytes, 2u * 3 * manager->layout().page_bytes);  // two keys, three page sets
}

// --- names ---

// A salt a request, as a server has it that lets nobody see whether somebody else asked the same.
TEST(Names, ThoseThatNobodyNeedsMakeRoomForNewOnes) {
  Config config = bookkeeping(70'001);
  const auto manager = make_manager(config);
  const Tokens tokens = distinct(16, 1);
  const SeqId alive = prompt(*manager, tokens, {.name_space = "alive"});
  ASSERT_OK(manager->set_quota("quota", {.device_floor = small_model().block_bytes()}));
  for (std::uint32_t i = 0; i < 66'000; ++i) {
    const std::string salt = "salt " + std::to_string(i);
    const auto begun = manager->begin(tokens, {.name_space = salt});
    ASSERT_TRUE(begun.ok()) << i << ": " << begun.status().message();
    ASSERT_OK(manager->allocate(begun->seq, 16).status());
    ASSERT_OK(manager->commit(begun->seq, tokens));
    ASSERT_OK(manager->free(begun->seq));
  }
  // The last ones are still there, the first are not, and who is alive or has a quota has stayed.
  const Tokens asked = joined(tokens, {7});
  EXPECT_EQ(manager->match_prefix(asked, "salt 65999").tokens, 16u);
  EXPECT_EQ(manager->match_prefix(asked, "salt 0").tokens, 0u);
  EXPECT_EQ(manager->match_prefix(asked, "alive").tokens, 16u);
  EXPECT_EQ(manager->usage("quota").quota.device_floor, small_model().block_bytes());
  EXPECT_OK(manager->free(alive));
  EXPECT_EQ(broken(*manager), "");
}

TEST(Names, TheScopeOfTheSameCallStays) {
  Config config = bookkeeping(4'001);
  config.metadata_budget_bytes = 0;
  const auto probe = make_manager(config);
  config.metadata_budget_bytes = probe->ledger().spent(Budget::kMetadata) + (64u << 10);  // some tens of names
  const auto manager = make_manager(config);
  const Tokens tokens = distinct(16, 1);
  for (std::uint32_t i = 0; i < 1000; ++i) {
    const std::string own = "own " + std::to_string(i), shared = "shared " + std::to_string(i);
    const auto begun = manager->begin(tokens, {.name_space = own, .shared_scope = shared, .share = true});
    ASSERT_TRUE(begun.ok()) << i << ": " << begun.status().message();
    ASSERT_OK(manager->allocate(begun->seq, 16).status());
    ASSERT_OK(manager->commit(begun->seq, tokens));
    ASSERT_OK(manager->free(begun->seq));
  }
  EXPECT_EQ(broken(*manager), "");
}

// --- numbers of a caller ---

TEST(Limits, AreCheckedBeforeAnybodyCounts) {
  ModelSpec model = small_model();
  model.groups = {{GroupKind::kState, 4, {Dtype::kF16, 1, 64, 64}, 0}};
  Config config = bookkeeping(64, model);
  config.max_sequence_tokens = 4096;
  const auto manager = make_manager(config, model);
  const SeqId seq = prompt(*manager, distinct(20, 1));
  constexpr std::uint32_t kHuge = 1u << 31;
  EXPECT_EQ(manager->allocate(seq, kHuge).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(manager->allocate(seq, 1, kHuge).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(manager->wait_room(seq, kHuge).code(), Code::kInvalidArgument);
  const StepRequest request{seq, kHuge};
  EXPECT_OK(manager->plan_step({&request, 1}).status());
  EXPECT_EQ(manager->begin(distinct(4097, 1)).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(manager->token_count(seq), 20u);
  EXPECT_EQ(manager->stats().allocations_refused, 0u);
  EXPECT_EQ(broken(*manager), "");
}

// --- trace.record ---

class Recording : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directory(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  Config config(const std::string& file) const {
    Config config = bookkeeping(64);
    config.trace_record = file;
    return config;
  }
  std::vector<std::string> lines() const {
    std::ifstream in(file_);
    std::vector<std::string> all;
    for (std::string line; std::getline(in, line);) all.push_back(line);
    return all;
  }
  static void request(Manager& manager, std::uint32_t tokens) {
    ASSERT_OK(manager.free(prompt(manager, distinct(tokens, 1))));
  }
  static std::uint64_t time_of(const std::string& line) { return std::stoull(line.substr(line.find(':') + 1)); }

  std::string folder_ =
      (std::filesystem::temp_directory_path() / ("firn_recording_" + std::to_string(getpid()))).string();
  std::string file_ = folder_ + "/t.jsonl";
};

TEST_F(Recording, AFileHasOneWriterAndTheSecondIsToldSo) {
  const auto first = make_manager(config(file_));
  const Status second = Manager::create(config(file_), small_model()).status();
  EXPECT_EQ(second.code(), Code::kUnavailable);
  EXPECT_NE(second.message().find("%p"), std::string::npos) << second.message();
  request(*first, 40);
  EXPECT_EQ(lines().size(), 1u);
}

TEST_F(Recording, RanksOfOneConfigurationHaveAFileEach) {
  for (int rank = 0; rank < 3; ++rank)
    EXPECT_EQ(in_child([&] {
                const auto manager = Manager::create(config(folder_ + "/rank-%p.jsonl"), small_model());
                if (!manager.ok()) return 1;
                request(**manager, 40);
                return 0;
              }),
              0);
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) files += entry.file_size() > 0;
  EXPECT_EQ(files, 3);
}

TEST_F(Recording, WhatTheFileHasStaysAndTimeGoesOn) {
  std::int64_t now_ns = 5'000'000'000;
  const auto run = [&] {
    const auto manager =
        make_manager(config(file_), small_model(), {.clock = [&] { return Instant{now_ns += 3'000'000}; }});
    request(*manager, 40);
    request(*manager, 40);
  };
  run();
  std::ofstream(file_, std::ios::app) << "{\"timestamp\":99,\"input_le";  // of a process that was killed
  run();
  const std::vector<std::string> all = lines();
  ASSERT_EQ(all.size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(all[i].back(), '}');
    EXPECT_GE(time_of(all[i]), i == 0 ? 0 : time_of(all[i - 1]));
  }
  EXPECT_EQ(time_of(all[0]), 0u);
  EXPECT_EQ(time_of(all[2]), time_of(all[1]));
}

TEST_F(Recording, IsItsOwnersAloneAndLeftAloneByAManagerThatIsNotMade) {
  {
    const auto manager = make_manager(config(file_));
    request(*manager, 40);
  }
  struct stat found {};
  ASSERT_EQ(stat(file_.c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0600u);
  Config wrong = config(file_);
  wrong.pool.budget_bytes = 1;
  EXPECT_FALSE(Manager::create(wrong, small_model()).ok());
  wrong = config(file_);
  wrong.quotas = "alice device=1TiB..2TiB";
  EXPECT_FALSE(Manager::create(wrong, small_model()).ok());
  EXPECT_EQ(lines().size(), 1u);
}

TEST_F(Recording, APromptThatBeganEarlierIsEarlierInTheFile) {
  const auto manager = make_manager(config(file_));
  const SeqId first = prompt(*manager, distinct(33, 100));
  for (std::uint32_t i = 0; i < 5; ++i) request(*manager, 40 + i);
  EXPECT_EQ(lines().size(), 5u);  // nothing waits for it
  ASSERT_OK(manager->free(first));
  const std::vector<std::string> all = lines();
  ASSERT_EQ(all.size(), 6u);
  EXPECT_NE(all[0].find("\"input_length\":33"), std::string::npos) << all[0];
  for (std::uint32_t i = 0; i < 5; ++i)
    EXPECT_NE(all[i + 1].find("\"input_length\":" + std::to_string(40 + i)), std::string::npos) << all[i + 1];
}

TEST_F(Recording, AProcessThatIsKilledLosesNothing) {
  EXPECT_EQ(in_child([&] {
              const auto manager = Manager::create(config(file_), small_model());
              const SeqId alive = prompt(**manager, distinct(20, 7));
              (void)alive;
              for (int i = 0; i < 500; ++i) request(**manager, 40);
              raise(SIGTERM);
              return 0;
            }),
            100 + SIGTERM);
  EXPECT_EQ(lines().size(), 500u);
}

TEST_F(Recording, AFullDiskIsCountedAndSaid) {
  testing::internal::CaptureStderr();
  const auto manager = make_manager(config("/dev/full"));
  request(*manager, 40);
  request(*manager, 40);
  EXPECT_EQ(manager->stats().trace_lines, 0u);
  EXPECT_EQ(manager->stats().trace_lines_lost, 2u);
  EXPECT_NE(manager->dump().find("No space left on device"), std::string::npos);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("trace.record: /dev/full"), std::string::npos) << said;
  EXPECT_EQ(said.find("trace.record", said.find("trace.record") + 1), std::string::npos) << "once: " << said;
}

// A file that may not grow past a limit: whole lines stay, what did not fit is counted, and later ones are tried.
TEST_F(Recording, WhereNotAllOfALineFitsNoneOfItStays) {
  EXPECT_EQ(in_child([&] {
              signal(SIGXFSZ, SIG_IGN);
              const rlimit small{1000, 1000};
              if (setrlimit(RLIMIT_FSIZE, &small) != 0) return 77;
              const auto manager = Manager::create(config(file_), small_model());
              if (!manager.ok()) return 1;
              for (int i = 0; i < 20; ++i) request(**manager, 40);
              const Stats stats = (*manager)->stats();
              return stats.trace_lines + stats.trace_lines_lost == 20 && stats.trace_lines != 0 &&
                             stats.trace_lines_lost != 0
                         ? 0
                         : 2;
            }),
            0);
  const std::vector<std::string> all = lines();
  EXPECT_GT(all.size(), 3u);
  for (const std::string& line : all) EXPECT_EQ(line.back(), '}');
}

}  // namespace
}  // namespace firn::test
