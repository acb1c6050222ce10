// session.h: a model and a cache for it, ready to run: what `firn run` and `firn demo` have in common.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "examples/llama/engine.h"
#include "examples/llama/model.h"
#include "examples/llama/sampler.h"
#include "examples/llama/tokenizer.h"
#include "firn/config.h"
#include "firn/manager.h"
#include "firn/thread_pool.h"

namespace firn::cli {

// A model with its tokenizer. Lifetime: outlives the Sessions that run it.
struct LoadedModel {
  llama::Model model;
  llama::Tokenizer tokenizer;
  static Result<std::unique_ptr<LoadedModel>> load(const std::string& path);  // empty: the demo's model
};

struct Session {
  // Members in order of creation: the engine stands on all the others.
  std::unique_ptr<ThreadPool> threads;
  std::unique_ptr<Manager> manager;
  std::unique_ptr<llama::Engine> engine;
  static Result<Session> open(const LoadedModel& model, const Config& config);
};

// Why there is no further token.
enum class Finish : std::uint8_t {
  kStop,         // the model has finished
  kLength,       // max_tokens
  kContext,      // the model's context, or max_sequence_tokens, is full
  kNoSpace,      // no room in the pool for another token
  kInterrupted,  // a signal
  kClosed,       // nobody reads any more
  kFailed,       // see status
};
std::string_view to_string(Finish finish);

struct Generated {
  std::vector<TokenId> tokens;  // without the end-of-sequence token
  Finish finish = Finish::kLength;
  Status status;  // of kNoSpace, kInterrupted and kFailed; ok otherwise
  bool ended() const { return finish == Finish::kStop; }
};
// Why a step that failed with this status was the last.
Finish finish_of(const Status& status);

// Runs what is pending and then one token a turn. on_token hears each token as it is chosen, and says whether to go on.
// Without a mover thread the waiting moves are pumped after every step. What was generated until something failed is
// always returned.
struct GenerateOptions {
  std::size_t max_tokens = 0;
  bool stop_at_end = true;
  std::function<void(std::size_t tokens)> on_step;
  std::function<bool(TokenId)> on_token;
};
Generated generate(Session& session, const LoadedModel& model, llama::Sequence& sequence, llama::Sampler& sampler,
                   const GenerateOptions& options);
// Runs what is pending.
Status prefill(Session& session, llama::Sequence& sequence, const std::function<void(std::size_t)>& on_step = {});

// Wall and processor time of this process.
struct Clock {
  double wall_s = 0, cpu_s = 0;
  static Clock now();
  Clock since(const Clock& start) const { return {wall_s - start.wall_s, cpu_s - start.cpu_s}; }
};

// "reading: 512 of 3,312 tokens, 231 tokens/s" on stderr: in one line on a terminal, now and then elsewhere.
class Progress {
 public:
  Progress(std::string what, std::size_t total);
  ~Progress();
  void add(std::size_t tokens);

 private:
  void show(bool last);
  std::string what_;
  std::size_t total_, done_ = 0, shown_ = 0;
  Clock start_ = Clock::now();
  double shown_s_;
  bool terminal_;
};

}  // namespace firn::cli
