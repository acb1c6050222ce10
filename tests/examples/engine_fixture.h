// engine_fixture.h: a model, a manager and an engine that stand together for one test.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "examples/llama/engine.h"
#include "llama_test_util.h"
#include "tests/device/test_device.h"

namespace firn::llama {

struct Stand {
  std::unique_ptr<ThreadPool> threads;
  std::unique_ptr<Model> model;
  std::unique_ptr<Manager> manager;
  std::unique_ptr<Engine> engine;
};

struct StandOptions {
  std::string path = random_model("q4_1");
  unsigned threads = 1;
  std::uint64_t pool_bytes = 8 << 20, host_bytes = 0;
  std::uint32_t max_step_tokens = 256;
  bool worker = false;
};

inline Result<Stand> make_stand(const StandOptions& options) {
  Stand stand;
  stand.threads = std::make_unique<ThreadPool>(options.threads);
  FIRN_ASSIGN(Model model, Model::load(options.path));
  stand.model = std::make_unique<Model>(std::move(model));
  Config config;
  config.device = "cpu";
  config.pool.budget_bytes = options.pool_bytes;
  config.pool.max_step_tokens = options.max_step_tokens;
  config.host.budget_bytes = options.host_bytes;
  config.mover.worker = options.worker;
  Manager::Environment environment;
  environment.threads = stand.threads.get();
  environment.device = test::test_device();  // null: cpu
  FIRN_ASSIGN(stand.manager, Manager::create(config, stand.model->spec(), environment));
  stand.engine = std::make_unique<Engine>(*stand.model, *stand.manager, *stand.threads);
  return stand;
}

// Tokens that are no specials of a random model (259 of them are bytes and specials).
inline std::vector<TokenId> random_tokens(std::size_t count, std::uint64_t seed) {
  Random random(seed);
  std::vector<TokenId> tokens(count);
  for (TokenId& token : tokens) token = static_cast<TokenId>(3 + random.below(290));
  return tokens;
}

inline Status run_one(Engine& engine, Sequence& sequence) {
  Sequence* const one = &sequence;
  return engine.run({&one, 1});
}

inline std::vector<float> copy_logits(const Sequence& sequence) {
  return {sequence.logits().begin(), sequence.logits().end()};
}

}  // namespace firn::llama
