// Bookkeeping alone: what a block costs to take, to name, to find and to give back, on a manager without bytes.
// The counter "each" is the time of one block, or of one token where the benchmark is named after tokens.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/check.h"
#include "core/block_pool.h"
#include "core/prefix_index.h"
#include "firn/manager.h"

namespace firn {
namespace {

ModelSpec bench_model() {
  ModelSpec model;
  model.name = std::string("bench");
  model.weights.bytes.fill(1);
  model.groups = {{GroupKind::kFull, 30, {Dtype::kF16, 3, 64, 64}, 0}};
  return model;
}

std::unique_ptr<Manager> bench_manager(std::uint32_t blocks) {
  const ModelSpec model = bench_model();
  Config config;
  config.device = "none";
  config.threads = 1;
  config.mover.worker = false;
  config.max_sequence_tokens = 1u << 24;
  config.pool.budget_bytes = (std::uint64_t{blocks} + 1) * model.block_bytes();
  auto manager = Manager::create(config, model);
  FIRN_CHECK(manager.ok());
  return std::move(manager).value();
}

std::vector<TokenId> bench_tokens(std::uint32_t blocks, TokenId first = 0) {
  std::vector<TokenId> tokens(std::size_t{blocks} * kBlockTokens + 1);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = first + static_cast<TokenId>(i);
  return tokens;
}

// The time of one of so many in an iteration.
void report_each(benchmark::State& state, double per_iteration) {
  state.counters["each"] =
      benchmark::Counter(per_iteration, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

// A sequence that takes so many blocks and gives them back, never naming one: the queue and the references alone.
void BM_AllocateFree(benchmark::State& state) {
  const auto blocks = static_cast<std::uint32_t>(state.range(0));
  const auto manager = bench_manager(blocks + 16);
  const TokenId token = 0;
  for (auto _ : state) {
    const auto begun = manager->begin(std::span(&token, 1));
    FIRN_CHECK(begun.ok());
    FIRN_CHECK(manager->allocate(begun->seq, blocks * kBlockTokens).ok());
    FIRN_CHECK(manager->free(begun->seq).ok());
  }
  FIRN_CHECK(manager->stats().slots_free == manager->stats().slots_total);
  report_each(state, blocks);
}
BENCHMARK(BM_AllocateFree)->ArgName("blocks")->Arg(16)->Arg(256)->Arg(4096);

// The same in a pool that is full of cached blocks: each block taken evicts another, key and index entry with it.
void BM_AllocateEvictFree(benchmark::State& state) {
  const auto blocks = static_cast<std::uint32_t>(state.range(0));
  const auto manager = bench_manager(blocks);
  TokenId first = 0;
  for (auto _ : state) {
    state.PauseTiming();
    const std::vector<TokenId> tokens = bench_tokens(blocks, first += 1);
    state.ResumeTiming();
    const auto begun = manager->begin(tokens);
    FIRN_CHECK(begun.ok());
    FIRN_CHECK(manager->allocate(begun->seq, blocks * kBlockTokens).ok());
    FIRN_CHECK(manager->commit(begun->seq, std::span(tokens).first(blocks * kBlockTokens)).ok());
    FIRN_CHECK(manager->free(begun->seq).ok());
  }
  FIRN_CHECK(manager->stats().slots_cached == blocks);
  report_each(state, blocks);
}
BENCHMARK(BM_AllocateEvictFree)->ArgName("blocks")->Arg(256)->Arg(4096);

// Tokens become part of a sequence: keys, index and windows.
void BM_Commit(benchmark::State& state) {
  const auto blocks = static_cast<std::uint32_t>(state.range(0));
  const auto manager = bench_manager(blocks + 16);
  const std::vector<TokenId> tokens = bench_tokens(blocks);
  for (auto _ : state) {
    state.PauseTiming();
    const auto begun = manager->begin(std::span(tokens).first(1));
    FIRN_CHECK(begun.ok());
    FIRN_CHECK(manager->allocate(begun->seq, blocks * kBlockTokens).ok());
    state.ResumeTiming();
    FIRN_CHECK(manager->commit(begun->seq, std::span(tokens).first(blocks * kBlockTokens)).ok());
    state.PauseTiming();
    FIRN_CHECK(manager->rewind(begun->seq, 0).ok());
    FIRN_CHECK(manager->free(begun->seq).ok());
    state.ResumeTiming();
  }
  report_each(state, blocks);
}
BENCHMARK(BM_Commit)->ArgName("blocks")->Arg(256)->Arg(4096);

// One token of decode: allocate and commit, a new block every sixteenth time.
void BM_DecodeToken(benchmark::State& state) {
  constexpr std::uint32_t kTokens = 4096;
  const auto manager = bench_manager(512);
  const std::vector<TokenId> tokens = bench_tokens(300);
  for (auto _ : state) {
    const auto begun = manager->begin(std::span(tokens).first(1));
    FIRN_CHECK(begun.ok());
    for (std::uint32_t i = 0; i < kTokens; ++i) {
      FIRN_CHECK(manager->allocate(begun->seq, 1).ok());
      FIRN_CHECK(manager->commit(begun->seq, std::span(tokens).subspan(i, 1)).ok());
    }
    FIRN_CHECK(manager->rewind(begun->seq, 0).ok());
    FIRN_CHECK(manager->free(begun->seq).ok());
  }
  report_each(state, kTokens);
}
BENCHMARK(BM_DecodeToken);

// Keys of a prompt, by themselves: what a scheduler pays before it knows anything. Per token.
void BM_HashTokens(benchmark::State& state) {
  const KeyChain chain(model_identity(bench_model()), {});
  const std::vector<TokenId> tokens = bench_tokens(static_cast<std::uint32_t>(state.range(0)) / kBlockTokens);
  for (auto _ : state) benchmark::DoNotOptimize(chain.keys(tokens));
  report_each(state, static_cast<double>(tokens.size()));
}
BENCHMARK(BM_HashTokens)->ArgName("tokens")->Arg(50'000);

// match_prefix over a prompt of which everything is cached, in a pool with so many blocks alive. keys are computed
// from tokens, as they are for a prompt; BM_FindKeys is the same lookup without the hashing.
void BM_MatchPrefix(benchmark::State& state) {
  const auto blocks = static_cast<std::uint32_t>(state.range(0)), others = static_cast<std::uint32_t>(state.range(1));
  const auto manager = bench_manager(blocks + others + 16);
  const auto compute = [&](const std::vector<TokenId>& tokens) {
    const auto begun = manager->begin(tokens);
    FIRN_CHECK(begun.ok());
    const auto count = static_cast<std::uint32_t>(tokens.size()) - 1;
    FIRN_CHECK(manager->allocate(begun->seq, count).ok());
    FIRN_CHECK(manager->commit(begun->seq, std::span(tokens).first(count)).ok());
  };
  // Live ones: they stay whatever happens, 10,000 blocks a sequence.
  for (std::uint32_t done = 0; done < others; done += 10'000)
    compute(bench_tokens(std::min(10'000u, others - done), 1'000'000'000 + static_cast<TokenId>(done)));
  const std::vector<TokenId> tokens = bench_tokens(blocks);
  compute(tokens);
  for (auto _ : state) {
    const PrefixMatch match = manager->match_prefix(tokens);
    FIRN_CHECK(match.tokens == blocks * kBlockTokens);
  }
  report_each(state, blocks);
  state.counters["pool_blocks"] = blocks + others;
}
BENCHMARK(BM_MatchPrefix)
    ->ArgNames({"blocks", "others"})
    ->Args({300, 0})
    ->Args({700, 0})
    ->Args({1300, 0})
    ->Args({2300, 0})
    ->Args({10'000, 0})
    ->Args({300, 1'000'000})
    ->Args({10'000, 1'000'000});

// A further turn of a conversation whose sequence lives on: sixteen blocks behind so many, whatever those were. Beside
// it what begin() takes to find the same prefix again after the sequence was freed.
void BM_TurnOfLiveSequence(benchmark::State& state) {
  const auto blocks = static_cast<std::uint32_t>(state.range(0));
  constexpr std::uint32_t kTurn = 16;
  const auto manager = bench_manager(blocks + 2 * kTurn);
  const std::vector<TokenId> tokens = bench_tokens(blocks);
  const auto turn = std::span(tokens).first(kTurn * kBlockTokens);
  const auto begun = manager->begin(std::span(tokens).first(1));
  FIRN_CHECK(begun.ok());
  FIRN_CHECK(manager->allocate(begun->seq, blocks * kBlockTokens).ok());
  FIRN_CHECK(manager->commit(begun->seq, std::span(tokens).first(blocks * kBlockTokens)).ok());
  for (auto _ : state) {
    FIRN_CHECK(manager->allocate(begun->seq, kTurn * kBlockTokens).ok());
    FIRN_CHECK(manager->commit(begun->seq, turn).ok());
    state.PauseTiming();
    FIRN_CHECK(manager->rewind(begun->seq, blocks * kBlockTokens).ok());
    state.ResumeTiming();
  }
  report_each(state, kTurn);
}
BENCHMARK(BM_TurnOfLiveSequence)->ArgName("blocks")->Arg(300)->Arg(10'000);

void BM_TurnBegunAgain(benchmark::State& state) {
  const auto blocks = static_cast<std::uint32_t>(state.range(0));
  const auto manager = bench_manager(blocks + 16);
  const std::vector<TokenId> tokens = bench_tokens(blocks);
  const auto first = manager->begin(tokens);
  FIRN_CHECK(first.ok());
  FIRN_CHECK(manager->allocate(first->seq, blocks * kBlockTokens).ok());
  FIRN_CHECK(manager->commit(first->seq, std::span(tokens).first(blocks * kBlockTokens)).ok());
  FIRN_CHECK(manager->free(first->seq).ok());
  for (auto _ : state) {
    const auto begun = manager->begin(tokens);
    FIRN_CHECK(begun.ok() && begun->match.tokens == blocks * kBlockTokens);
    FIRN_CHECK(manager->free(begun->seq).ok());
  }
  report_each(state, blocks);
}
BENCHMARK(BM_TurnBegunAgain)->ArgName("blocks")->Arg(300)->Arg(10'000);

// What a pool of so many blocks takes in firn's own tables, tokens aside.
void BM_MetadataPerBlock(benchmark::State& state) {
  const auto blocks = static_cast<std::uint32_t>(state.range(0));
  const auto manager = bench_manager(blocks);
  for (auto _ : state) benchmark::DoNotOptimize(manager->stats().metadata_bytes);
  state.counters["bytes_per_block"] = static_cast<double>(manager->stats().metadata_bytes) / blocks;
}
BENCHMARK(BM_MetadataPerBlock)->ArgName("blocks")->Arg(1'000'000)->Iterations(1);

// The index alone: keys that are known already, in an index with so many others.
void BM_FindKeys(benchmark::State& state) {
  const auto blocks = static_cast<std::uint32_t>(state.range(0)), others = static_cast<std::uint32_t>(state.range(1));
  BlockPool pool(2, blocks + others);
  PrefixIndex index(pool, blocks + others);
  const KeyChain chain(model_identity(bench_model()), {});
  const auto insert = [&](const std::vector<Key>& keys) {
    for (const Key& key : keys) {
      const BlockId id = pool.make_record();
      pool.block(id).key = key;
      index.insert(id);
    }
  };
  const std::vector<Key> keys = chain.keys(bench_tokens(blocks));
  if (others != 0) insert(chain.keys(bench_tokens(others, 1'000'000'000)));
  insert(keys);
  for (auto _ : state)
    for (const Key& key : keys) FIRN_CHECK(index.find(key) != BlockId::kNone);
  report_each(state, blocks);
}
BENCHMARK(BM_FindKeys)
    ->ArgNames({"blocks", "others"})
    ->Args({300, 0})
    ->Args({10'000, 0})
    ->Args({300, 1'000'000})
    ->Args({10'000, 1'000'000});

// A prompt that hits nothing: one key, one lookup.
void BM_MatchNothing(benchmark::State& state) {
  const auto manager = bench_manager(1024);
  const std::vector<TokenId> tokens = bench_tokens(1000);
  for (auto _ : state) benchmark::DoNotOptimize(manager->match_prefix(tokens));
  report_each(state, 1);
}
BENCHMARK(BM_MatchNothing);

}  // namespace
}  // namespace firn
