// A cache over host memory and disk that outlives its process: one process stores and is killed, another one looks up
// and loads, bit for bit, with its states.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "cold_engine.h"

namespace firn {
namespace {

class Directory {
 public:
  Directory() {
    std::string name = (::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : testing::TempDir()) + "/firn_cold_XXXXXX";
    path_ = ::mkdtemp(name.data());
  }
  ~Directory() { std::filesystem::remove_all(path_); }
  std::string path() const { return path_ + "/cache"; }

 private:
  std::string path_;
};

ColdCacheOptions with_disk(const std::string& path, const ModelSpec& model = cold_model()) {
  ColdCacheOptions options;
  options.model = model;
  options.budget_bytes = 32 << 20;
  ColdTierOptions disk;
  disk.path = path;
  disk.budget_bytes = 32 << 20;
  options.tiers = {disk};
  return options;
}

constexpr std::uint32_t kBlocks = 40;
constexpr std::uint64_t kName = 1000;
std::vector<std::byte> state_of(std::uint64_t name) {
  std::vector<std::byte> state(3000 + name % 100);
  for (std::size_t i = 0; i < state.size(); ++i) state[i] = static_cast<std::byte>(cold_mix(name + i / 16));
  return state;
}

void store_all(ColdCache& cache, ColdEngine& engine, std::uint64_t name) {
  for (std::uint32_t i = 0; i < kBlocks; ++i) engine.fill(i, name + i);
  const Blocks made = make_run(engine, 0, kBlocks, name);
  EXPECT_EQ(ended(cache, cache.store(made.run)).found, kBlocks);
  std::vector<std::vector<std::byte>> bytes;
  std::vector<ColdState> states;
  for (std::uint32_t i = 7; i < kBlocks; i += 8) bytes.push_back(state_of(name + i));
  for (std::uint32_t i = 7; i < kBlocks; i += 8)
    states.push_back({.key = cold_key(name + i), .bytes = bytes[i / 8], .bound = true});
  EXPECT_EQ(ended(cache, cache.store_state(states)).found, states.size());
}

TEST(ColdRestart, AnotherProcessFindsWhatAKilledOneStored) {
  const Directory directory;
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const std::unique_ptr<ColdCache> cache = make_cold(with_disk(directory.path()));
    ColdEngine engine(cold_model().groups[0], kBlocks);
    if (cache == nullptr) ::_exit(3);
    store_all(*cache, engine, kName);
    const bool on_disk = cache->wait_idle().ok() && cache->stats().frames_in[index(TierId::kDisk)] == kBlocks / 4;
    if (::write(ends[1], on_disk ? "y" : "n", 1) != 1) ::_exit(4);
    for (std::uint64_t name = 5000;; name += kBlocks) store_all(*cache, engine, name);  // until it is killed
  }
  ::close(ends[1]);
  char said = 0;
  ASSERT_EQ(::read(ends[0], &said, 1), 1) << "the child ended by itself";
  ::usleep(20'000);
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  ::close(ends[0]);
  EXPECT_EQ(said, 'y') << "what wait_idle() waited for was not all on the disk";

  const std::unique_ptr<ColdCache> cache = make_cold(with_disk(directory.path()));
  ASSERT_NE(cache, nullptr);
  ColdEngine engine(cold_model().groups[0], kBlocks);
  engine.poison();
  const Blocks made = make_run(engine, 0, kBlocks, kName);
  std::vector<ColdFound> found(kBlocks);
  const Result<Ticket> asked = cache->lookup({.keys = made.keys}, found);
  EXPECT_EQ(found[0].answer, ColdAnswer::kPending);
  const ColdDone looked = ended(*cache, asked);
  EXPECT_EQ(looked.found, kBlocks);
  for (const ColdResult& result : looked.results) EXPECT_EQ(result.tier, TierId::kDisk);
  EXPECT_EQ(ended(*cache, cache->load(made.run)).found, kBlocks);
  for (std::uint32_t i = 0; i < kBlocks; ++i) EXPECT_TRUE(engine.holds(i, kName + i)) << "block " << i;

  std::vector<Key> keys;
  for (std::uint32_t i = 7; i < kBlocks; i += 8) keys.push_back(cold_key(kName + i));
  std::vector<ColdFound> states_found(keys.size());
  EXPECT_EQ(ended(*cache, cache->lookup({.keys = keys, .kind = ColdKind::kState}, states_found)).found, keys.size());
  std::vector<std::vector<std::byte>> rooms(keys.size(), std::vector<std::byte>(4000));
  std::vector<ColdState> states;
  for (std::size_t i = 0; i < keys.size(); ++i) states.push_back({.key = keys[i], .room = rooms[i]});
  const ColdDone loaded = ended(*cache, cache->load_state(states));
  EXPECT_EQ(loaded.found, keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    rooms[i].resize(loaded.results[i].bytes);
    EXPECT_EQ(rooms[i], state_of(kName + 7 + 8 * i)) << "state " << i;
  }
  EXPECT_TRUE(cache->verify().ok()) << cache->verify().message();
}

TEST(ColdRestart, OfAnotherModelNothingIsFound) {
  const Directory directory;
  ColdEngine engine(cold_model().groups[0], kBlocks);
  {
    const std::unique_ptr<ColdCache> cache = make_cold(with_disk(directory.path()));
    store_all(*cache, engine, kName);
    ASSERT_TRUE(cache->wait_idle().ok());
    const Result<std::unique_ptr<ColdCache>> second = ColdCache::create(with_disk(directory.path()));
    EXPECT_EQ(second.status().code(), Code::kUnavailable) << "a directory has one cache";
    EXPECT_NE(second.status().message().find("tiers[0]"), std::string::npos) << second.status().message();
  }
  ModelSpec other = cold_model();
  other.weights.bytes[3] = 9;
  testing::internal::CaptureStderr();
  const std::unique_ptr<ColdCache> cache = make_cold(with_disk(directory.path(), other));
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_NE(line.find("weights is"), std::string::npos) << line;
  const Blocks made = make_run(engine, 0, kBlocks, kName);
  std::vector<ColdFound> found(kBlocks);
  EXPECT_EQ(ended(*cache, cache->lookup({.keys = made.keys}, found)).found, 0u);
  store_all(*cache, engine, 7000);  // and the host tier works as ever
}

TEST(ColdRestart, RefusesTiersThatAreNoTiers) {
  const Directory directory;
  const auto refused = [](const ColdCacheOptions& options, const char* what) {
    const Result<std::unique_ptr<ColdCache>> cache = ColdCache::create(options);
    ASSERT_FALSE(cache.ok()) << what;
    EXPECT_NE(cache.status().message().find(what), std::string::npos) << cache.status().message();
  };
  ColdCacheOptions options = with_disk(directory.path());
  options.tiers[0].kind = "tape";
  refused(options, "tape");
  options = with_disk("");
  refused(options, "path");
  options = with_disk(directory.path());
  options.tiers[0].budget_bytes = 0;
  refused(options, "budget_bytes");
  options.tiers[0].budget_bytes = 1 << 16;
  refused(options, "too small");
  options = with_disk(directory.path());
  options.tiers.push_back(options.tiers[0]);
  refused(options, "tiers[1]");
  options = with_disk("/proc/firn");
  refused(options, "/proc/firn");
}

}  // namespace
}  // namespace firn
