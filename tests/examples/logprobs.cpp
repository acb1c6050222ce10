// llama_logprobs MODEL COUNT < tokens: for each input line of token ids, prints the COUNT likeliest next tokens as
// "id:log-probability". Driven by tests/tools/compare_logprobs.py.
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>

#include "examples/llama/engine.h"
#include "examples/llama/sampler.h"

namespace firn::llama {
namespace {

Status run(const std::string& path, std::size_t count) {
  FIRN_ASSIGN(const Model model, Model::load(path));
  ThreadPool threads;
  Config config;
  config.device = "cpu";
  config.pool.budget_bytes = 128 << 20;
  Manager::Environment environment;
  environment.threads = &threads;
  FIRN_ASSIGN(const auto manager, Manager::create(config, model.spec(), environment));
  Engine engine(model, *manager, threads);
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::vector<TokenId> tokens;
    for (TokenId token = 0; words >> token;) tokens.push_back(token);
    FIRN_ASSIGN(Sequence sequence, engine.begin(tokens));
    Sequence* const one = &sequence;
    FIRN_TRY(engine.run({&one, 1}));
    for (const auto& [token, log_probability] : top_log_probabilities(sequence.logits(), count))
      std::printf("%d:%.9g ", token, log_probability);
    std::printf("\n");
  }
  return {};
}

}  // namespace
}  // namespace firn::llama

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: llama_logprobs MODEL COUNT < tokens\n"), 2;
  const firn::Status status = firn::llama::run(argv[1], std::stoul(argv[2]));
  if (!status.ok()) std::fprintf(stderr, "llama_logprobs: %s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}
