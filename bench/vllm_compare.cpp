// vllm_compare: the C++ side of vllm_compare.py: a trace's requests through a manager without bytes, as that script
// takes them through vLLM's block manager and through firn's Python module. One JSON object on standard output.
//
//   firn_vllm_compare TRACE REQUESTS BLOCKS LIVE ANSWERS REPEATS
//
// BLOCKS counts the null block; LIVE sequences are alive at once, the oldest is freed first; ANSWERS 1: each request's
// answer is decoded token by token, too.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <deque>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/base/check.h"
#include "firn/manager.h"
#include "sim/trace.h"
#include "sim/trace_tokens.h"

namespace firn {
namespace {

// Of this process: who else uses the machine does not count. One thread runs, so on an idle machine it is the time.
double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

struct Request {
  std::vector<TokenId> prompt, answer;  // of the answer all that is computed again: not its last token
};

struct Shape {
  std::uint32_t blocks = 0, live = 0;
  bool answers = false;
};

std::vector<Request> read(const std::string& path, std::uint64_t most, bool answers) {
  sim::TraceOptions options;
  options.max_requests = most;
  auto reader = sim::TraceReader::open(path, options).value();
  const sim::TokenMaker maker{.vocabulary = 128'000};  // vllm_compare.py makes the same ones
  std::vector<Request> requests;
  for (sim::TraceRequest request; reader->next(request).value();) {
    Request made;
    made.prompt = maker.prompt(request, requests.size());
    for (std::uint32_t i = 0; answers && i + 1 < request.output_tokens; ++i)
      made.answer.push_back(maker.output(requests.size(), i));
    requests.push_back(std::move(made));
  }
  return requests;
}

ModelSpec model() {
  ModelSpec made;
  made.name = "compare";
  made.weights.bytes.fill(1);
  made.groups = {{.layer_count = 32, .kv = {.kv_heads = 8, .head_dim = 128, .value_dim = 128}}};
  return made;
}

// Hit tokens of each request.
std::vector<std::uint32_t> replay(Manager& manager, const std::vector<Request>& requests, const Shape& shape) {
  std::vector<std::uint32_t> hits;
  hits.reserve(requests.size());
  std::deque<SeqId> live;
  for (const Request& request : requests) {
    if (live.size() == shape.live) {
      FIRN_CHECK(manager.free(live.front()).ok());
      live.pop_front();
    }
    const Begun begun = manager.begin(request.prompt).value();
    const std::span<const TokenId> rest = std::span(request.prompt).subspan(begun.match.tokens);
    FIRN_CHECK(manager.allocate(begun.seq, static_cast<std::uint32_t>(rest.size())).ok());
    FIRN_CHECK(manager.commit(begun.seq, rest).ok());
    for (const TokenId& token : request.answer) {
      FIRN_CHECK(manager.allocate(begun.seq, 1).ok());
      FIRN_CHECK(manager.commit(begun.seq, std::span(&token, 1)).ok());
    }
    live.push_back(begun.seq);
    hits.push_back(begun.match.tokens);
  }
  for (const SeqId seq : live) FIRN_CHECK(manager.free(seq).ok());
  return hits;
}

int run(const std::string& path, std::uint64_t most, const Shape& shape, int repeats) {
  const std::vector<Request> requests = read(path, most, shape.answers);
  Config config;
  config.device = "none";
  config.threads = 1;
  config.mover.worker = false;
  config.pool.budget_bytes = shape.blocks * model().block_bytes();
  nlohmann::ordered_json out{{"seconds", nlohmann::json::array()}, {"hash_seconds", nlohmann::json::array()}};
  const KeyChain chain(model_identity(model()), {});
  for (int i = 0; i < repeats; ++i) {
    const auto manager = Manager::create(config, model()).value();
    FIRN_CHECK(manager->stats().slots_total + 1 == shape.blocks);
    double start = cpu_seconds();
    out["hits"] = replay(*manager, requests, shape);
    out["seconds"].push_back(cpu_seconds() - start);
    out["evictions"] = manager->stats().evictions;
    FIRN_CHECK(manager->verify().empty());
    // What of it is hashing, as the library does it where nothing else is done: prompts, and answers behind them.
    start = cpu_seconds();
    Key last{};
    for (const Request& request : requests) {
      for (const Key& key : chain.keys(request.prompt)) last = key;
      const std::span<const TokenId> answer = request.answer;
      for (std::size_t at = 0; at + kBlockTokens <= answer.size(); at += kBlockTokens)
        last = chain.next(last, answer.subspan(at, kBlockTokens));
    }
    out["hash_seconds"].push_back(cpu_seconds() - start);
    out["last_key_byte"] = last.bytes[0];  // so that nobody leaves the loop out
  }
  out["blocks"] = shape.blocks;
  fmt::print("{}\n", out.dump());
  return 0;
}

}  // namespace
}  // namespace firn

int main(int argc, char** argv) {
  if (argc != 7) {
    fmt::print(stderr, "usage: firn_vllm_compare TRACE REQUESTS BLOCKS LIVE ANSWERS REPEATS\n");
    return 2;
  }
  const auto number = [&](int i) { return std::strtoul(argv[i], nullptr, 10); };
  return firn::run(argv[1], number(2),
                   {static_cast<std::uint32_t>(number(3)), static_cast<std::uint32_t>(number(4)), number(5) != 0},
                   static_cast<int>(number(6)));
}
