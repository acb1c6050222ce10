// firn_count: one hot path at a time, for counting its instructions: ./run bench --instructions. Time varies with the
// machine and what else it does; instructions do not, so a change of one percent shows.
//
// Everything that is not measured happens outside of firn_count_measured(), the only function that callgrind looks
// into. One thread, seeds fixed by the code: two runs of one build count the same.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "firn/manager.h"

// Unmangled, so that its name can be told to callgrind.
extern "C" __attribute__((noinline)) void firn_count_measured(const std::function<void()>& work) { work(); }

namespace firn {
namespace {

constexpr std::uint32_t kRounds = 8;  // of the measured work, after as many to warm up

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "firn_count: %s\n", what);
  std::exit(1);
}

std::unique_ptr<Manager> make(std::uint32_t blocks, bool bytes) {
  ModelSpec model;
  model.name = std::string("count");
  model.weights.bytes.fill(1);
  model.groups = {
      {.kind = GroupKind::kFull, .layer_count = 4, .kv = {Dtype::kF16, 3, 64, 64}, .window = 0, .query_heads = 9}};
  Config config;
  config.device = bytes ? "cpu" : "none";
  config.threads = 1;
  config.mover.worker = false;
  config.max_sequence_tokens = 1u << 24;
  config.pool.budget_bytes = (std::uint64_t{blocks} + 64) * model.block_bytes();
  auto manager = Manager::create(config, model);
  require(manager.ok(), "no manager");
  return std::move(manager).value();
}

std::vector<TokenId> tokens(std::uint32_t count) {
  std::vector<TokenId> all(count);
  for (std::uint32_t i = 0; i < count; ++i) all[i] = static_cast<TokenId>(i * 7 + 1);
  return all;
}

void measure(const std::function<void()>& once) {
  for (std::uint32_t i = 0; i < kRounds; ++i) once();
  firn_count_measured([&] {
    for (std::uint32_t i = 0; i < kRounds; ++i) once();
  });
}

// begin, allocate and free; no block is named.
void allocate_free(std::uint32_t blocks) {
  const auto manager = make(blocks, false);
  const TokenId token = 0;
  measure([&] {
    const auto begun = manager->begin(std::span(&token, 1));
    require(begun.ok() && manager->allocate(begun->seq, blocks * kBlockTokens).ok() && manager->free(begun->seq).ok(),
            "allocate and free");
  });
}

void match(std::uint32_t blocks) {
  const auto manager = make(blocks, false);
  const std::vector<TokenId> prompt = tokens(blocks * kBlockTokens + 1);
  const auto begun = manager->begin(prompt);
  require(begun.ok() && manager->allocate(begun->seq, static_cast<std::uint32_t>(prompt.size())).ok() &&
              manager->commit(begun->seq, prompt).ok() && manager->free(begun->seq).ok(),
          "a prompt to be matched");
  measure([&] { require(manager->match_prefix(prompt).tokens == blocks * kBlockTokens, "all of it is there"); });
}

// One token of one sequence of 600 tokens: allocate, append and attend in every layer, commit.
void decode() {
  const auto manager = make(256, true);
  const auto begun = manager->begin(tokens(1));
  require(begun.ok(), "begin");
  std::vector<float> k(600 * 3 * 64, 0.25f), v(k), q(600 * 9 * 64, 0.125f), out(q.size());
  const auto at = [](std::vector<float>& values) { return reinterpret_cast<DeviceAddress>(values.data()); };
  std::uint32_t has = 0;
  const auto step = [&](std::uint32_t rows) {
    require(manager->allocate(begun->seq, rows).ok(), "allocate");
    const StepRows part{.seq = begun->seq, .row = 0, .row_count = rows, .position = has};
    for (std::uint32_t layer = 0; layer < 4; ++layer)
      require(manager->append(layer, {&part, 1}, at(k), at(v)).ok() &&
                  manager->attend(layer, {&part, 1}, {.query_heads = 9, .scale = 0.125f}, at(q), at(out)).ok(),
              "append and attend");
    require(manager->commit(begun->seq, tokens(rows)).ok(), "commit");
    has += rows;
  };
  while (has < 600) step(100);
  measure([&] { step(1); });
}

struct Case {
  const char* name;
  std::function<void()> run;
};

}  // namespace
}  // namespace firn

int main(int argc, char** argv) {
  using namespace firn;
  const Case cases[] = {
      {"allocate_free_16", [] { allocate_free(16); }},
      {"allocate_free_256", [] { allocate_free(256); }},
      {"allocate_free_4096", [] { allocate_free(4096); }},
      {"match_300", [] { match(300); }},
      {"match_10000", [] { match(10000); }},
      {"decode_step", decode},
  };
  if (argc == 1) {
    for (const Case& one : cases) std::puts(one.name);
    return 0;
  }
  for (const Case& one : cases)
    if (std::string_view(argv[1]) == one.name) return one.run(), 0;
  std::fprintf(stderr, "firn_count: there is no case %s\n", argv[1]);
  return 2;
}
