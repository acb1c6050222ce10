#include "cli/session.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <ctime>

#include "cli/process.h"
#include "cli/steps.h"
#include "cli/text.h"

namespace firn::cli {
namespace {

double seconds(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

Clock Clock::now() { return {seconds(CLOCK_MONOTONIC), seconds(CLOCK_PROCESS_CPUTIME_ID)}; }

Result<std::unique_ptr<LoadedModel>> LoadedModel::load(const std::string& chosen) {
  const std::string path = chosen.empty() ? demo_model_path() : chosen;
  if (chosen.empty() && access(path.c_str(), R_OK) != 0)
    return Status(Code::kInvalidArgument, path + " is not there; ./run build fetches it, or name another with --model");
  FIRN_ASSIGN(llama::Model model, llama::Model::load(path));
  FIRN_ASSIGN(llama::Tokenizer tokenizer, llama::Tokenizer::create(model.file()));
  return std::make_unique<LoadedModel>(LoadedModel{std::move(model), std::move(tokenizer)});
}

Result<Session> Session::open(const LoadedModel& model, const Config& config) {
  Session session;
  session.threads = std::make_unique<ThreadPool>(config.threads);
  Manager::Environment environment;
  environment.threads = session.threads.get();
  FIRN_ASSIGN(session.manager, Manager::create(config, model.model.spec(), environment));
  session.engine = std::make_unique<llama::Engine>(model.model, *session.manager, *session.threads);
  session.engine->stop_when([] { return stop_signal() != 0; });
  return session;
}

Status prefill(Session& session, llama::Sequence& sequence, const std::function<void(std::size_t)>& on_step) {
  llama::Sequence* sequences[] = {&sequence};
  return session.engine->run(sequences, [&](std::size_t tokens) {
    if (!session.manager->config().mover.worker) session.manager->pump();
    if (on_step) on_step(tokens);
  });
}

std::string_view to_string(Finish finish) {
  switch (finish) {
    case Finish::kStop:
      return "stop";
    case Finish::kLength:
      return "length";
    case Finish::kContext:
      return "context";
    case Finish::kNoSpace:
      return "no_space";
    case Finish::kInterrupted:
      return "interrupted";
    case Finish::kClosed:
      return "closed";
    case Finish::kFailed:
      return "failed";
  }
  return "failed";
}

Finish finish_of(const Status& status) {
  if (stop_signal() != 0) return Finish::kInterrupted;
  return status.code() == Code::kNoSpace ? Finish::kNoSpace : Finish::kFailed;
}

Generated generate(Session& session, const LoadedModel& model, llama::Sequence& sequence, llama::Sampler& sampler,
                   const GenerateOptions& options) {
  const std::size_t longest =
      std::min<std::size_t>(model.model.geometry().context_tokens, session.manager->config().max_sequence_tokens);
  Generated generated;
  while (generated.tokens.size() < options.max_tokens) {
    if (sequence.tokens().size() > longest) {
      generated.finish = Finish::kContext;
      return generated;
    }
    if (generated.status = prefill(session, sequence, options.on_step); !generated.status.ok()) {
      generated.finish = finish_of(generated.status);
      return generated;
    }
    const TokenId token = sampler.next(sequence.logits());
    if (token == model.tokenizer.end_of_sequence() && options.stop_at_end) {
      generated.finish = Finish::kStop;
      return generated;
    }
    generated.tokens.push_back(token);
    sequence.push(token);
    if (options.on_token && !options.on_token(token)) {
      generated.finish = Finish::kClosed;
      return generated;
    }
  }
  return generated;  // kLength
}

Progress::Progress(std::string what, std::size_t total)
    : what_(std::move(what)), total_(total), shown_s_(start_.wall_s), terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() {
  if (Steps::current() == nullptr && (shown_ != done_ || terminal_)) show(true);
}

void Progress::add(std::size_t tokens) {
  constexpr double kTerminalPeriod = 0.2, kLogPeriod = 3;
  done_ += tokens;
  if (Steps* const steps = Steps::current())
    return steps->note(fmt::format("{}, {} of {} tokens", what_, grouped(done_), grouped(total_)));
  const double now = Clock::now().wall_s;
  if (now - shown_s_ < (terminal_ ? kTerminalPeriod : kLogPeriod)) return;
  shown_s_ = now;
  show(false);
}

void Progress::show(bool last) {
  shown_ = done_;
  const double elapsed = Clock::now().since(start_).wall_s;
  const double rate = elapsed > 0 ? static_cast<double>(done_) / elapsed : 0;
  tell("{}{}: {} of {} tokens, {:.0f} tokens/s{}", terminal_ ? "\r" : "", what_, grouped(done_), grouped(total_), rate,
       terminal_ && !last ? "   "
       : terminal_        ? "   \n"
                          : "\n");
}

}  // namespace firn::cli
