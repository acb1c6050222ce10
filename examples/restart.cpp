// restart.cpp: a cache that survives kill -9. One process stores the K/V of 2,048 tokens, with a state of its own, and
// is killed; another one opens the same directory, looks the tokens up and has every byte back. Prints seconds.
//   firn_restart DIRECTORY
#include <firn/cold_cache.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr std::uint32_t kBlocks = 128, kLayers = 8;
constexpr std::uint64_t kRow = 8 * 64 * 2, kBlock = firn::kBlockTokens * kRow;  // 8 heads of 64 elements of 2 bytes

// What an engine would hold: K and V of each layer and block, and something of its own.
struct Engine {
  std::vector<unsigned char> kv = std::vector<unsigned char>(2 * kLayers * kBlocks * kBlock);
  std::vector<unsigned char> state = std::vector<unsigned char>(100'000);
  std::vector<firn::Key> keys;
  std::vector<firn::BlockView> views;
  firn::ColdRun run;

  void place(const firn::ColdCache& cache) {
    for (std::uint32_t i = 0; i < kBlocks; ++i) keys.push_back(*cache.key("document, block " + std::to_string(i)));
    for (std::uint32_t i = 0; i < kLayers * kBlocks; ++i) {
      const auto at = reinterpret_cast<firn::DeviceAddress>(kv.data()) + 2 * i * kBlock;
      views.push_back({.k = at,
                       .v = at + kBlock,
                       .token_stride = kRow,
                       .head_stride = 128,
                       .v_token_stride = kRow,
                       .v_head_stride = 128});
    }
    run.keys = keys;
    run.views = views;
  }
  void compute() {  // stands for a model
    std::uint32_t x = 1;
    for (auto* bytes : {&kv, &state})
      for (unsigned char& byte : *bytes) byte = static_cast<unsigned char>((x = x * 1664525 + 1013904223) >> 28);
  }
};

std::unique_ptr<firn::ColdCache> open_cache(const char* directory) {
  firn::ColdCacheOptions options;
  options.model.weights.bytes[0] = 1;  // the digest of the model's file: without it nothing would outlive the process
  options.model.groups = {{firn::GroupKind::kFull, kLayers, {firn::Dtype::kF16, 8, 64, 64}, 0}};
  options.budget_bytes = 128 << 20;
  options.tiers = {{.kind = "disk", .path = directory, .budget_bytes = 1 << 30}};
  auto cache = firn::ColdCache::create(options);
  if (!cache.ok()) std::fprintf(stderr, "%s\n", cache.status().message().c_str()), std::exit(1);
  return std::move(*cache);
}

template <class Submitted>
std::uint32_t found(firn::ColdCache& cache, const Submitted& ticket) {
  const auto done = ticket.ok() ? cache.wait(*ticket) : firn::Result<firn::ColdDone>(ticket.status());
  if (!done.ok()) std::fprintf(stderr, "%s\n", done.status().message().c_str()), std::exit(1);
  return done->found;
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

[[noreturn]] void first_process(const char* directory) {
  const double start = now();
  const auto cache = open_cache(directory);
  Engine engine;
  engine.place(*cache);
  engine.compute();
  const firn::ColdState state{
      .key = engine.keys.back(), .bytes = std::as_bytes(std::span(engine.state)), .bound = true};
  found(*cache, cache->store(engine.run));
  found(*cache, cache->store_state({&state, 1}));
  (void)cache->wait_idle();  // what was stored is on the disk
  std::printf("stored in %.3f s; killed\n", now() - start);
  std::fflush(stdout);
  std::raise(SIGKILL);
  std::abort();
}

}  // namespace

int main(int count, char** words) {
  if (count != 2) return std::fprintf(stderr, "firn_restart DIRECTORY\n"), 2;
  const pid_t child = fork();
  if (child == 0) first_process(words[1]);
  int status = 0;
  waitpid(child, &status, 0);
  if (!WIFSIGNALED(status)) return 1;

  Engine engine, expected;
  expected.compute();
  const double start = now();
  const auto cache = open_cache(words[1]);
  const double opened = now();
  engine.place(*cache);
  std::vector<firn::ColdFound> answers(kBlocks);
  const std::uint32_t hits = found(*cache, cache->lookup({.keys = engine.keys}, answers));
  const std::uint32_t loaded = found(*cache, cache->load(engine.run));
  firn::ColdState state{.key = engine.keys.back(), .room = std::as_writable_bytes(std::span(engine.state))};
  firn::ColdFound state_answer;
  found(*cache, cache->lookup({.keys = {&state.key, 1}, .kind = firn::ColdKind::kState}, {&state_answer, 1}));
  const std::uint32_t states = found(*cache, cache->load_state({&state, 1}));
  const double end = now();
  const bool same = engine.kv == expected.kv && engine.state == expected.state;
  std::printf("%u of %u blocks found, %u loaded, %u state: %s; opened in %.3f s, %.1f MB back in %.3f s\n", hits,
              kBlocks, loaded, states, same ? "bit for bit" : "OTHER BYTES", opened - start,
              static_cast<double>(engine.kv.size() + engine.state.size()) / 1e6, end - opened);
  return same && loaded == kBlocks && states == 1 ? 0 : 1;
}
