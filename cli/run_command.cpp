// firn run: one prompt through the example engine and a firn cache.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/process.h"
#include "cli/session.h"
#include "cli/text.h"
#include "core/base/file_out.h"

namespace firn::cli {
namespace {

struct Arguments {
  std::string model, prompt_file, prompt, tokens_out, dump;
  std::size_t max_tokens = 256;
  llama::SamplerOptions sampling;
  bool chat = false, ignore_end = false, pump = false, json = false;
  SettingFlags settings;
};

constexpr std::size_t kMaxPromptBytes = 16 << 20;

Result<std::string> read_prompt(const Arguments& arguments) {
  std::string text;
  if (!arguments.prompt_file.empty()) {
    FIRN_ASSIGN(text, read_whole(arguments.prompt_file, kMaxPromptBytes));
  }
  text += arguments.prompt;
  if (text.empty())
    return Status(Code::kInvalidArgument, "there is no prompt; give --prompt TEXT or --prompt-file FILE, - for stdin");
  return text;
}

Result<std::vector<TokenId>> encode_prompt(const Arguments& arguments, const std::string& text,
                                           const llama::Tokenizer& tokenizer) {
  if (!arguments.chat) return tokenizer.encode(text);
  const llama::ChatMessage messages[] = {{"user", text}};
  return llama::encode_chat(tokenizer, messages);
}

// One id a line: what comparisons of two runs are made of.
std::string lines_of(const std::vector<TokenId>& tokens) {
  std::string text;
  for (const TokenId token : tokens) text += fmt::format("{}\n", token);
  return text;
}

struct Report {
  std::size_t prompt_tokens = 0;
  PrefixMatch match;
  Generated generated;
  Clock prefill, decode;
  Stats stats;
  std::string dump;
  double ms_per_token() const {
    return generated.tokens.empty() ? 0 : 1e3 * decode.wall_s / static_cast<double>(generated.tokens.size());
  }
};

void print_summary(const Report& report, const Config& config) {
  const Stats& stats = report.stats;
  tell(
      "\nprompt {} tokens in {:.2f} s ({:.0f} tokens/s); {} tokens generated, {:.2f} ms each\n"
      "pool {}: {} blocks of {} tokens; host {}: {} in frames, {} raw ({:.2f}x); {} blocks decoded for attention\n",
      grouped(report.prompt_tokens), report.prefill.wall_s,
      static_cast<double>(report.prompt_tokens - report.match.tokens) / report.prefill.wall_s,
      report.generated.tokens.size(), report.ms_per_token(), human_bytes(config.pool.budget_bytes), stats.slots_total,
      kBlockTokens, config.host.budget_bytes == 0 ? "off" : human_bytes(config.host.budget_bytes),
      human_bytes(stats.host_frame_bytes), human_bytes(stats.host_raw_bytes),
      stats.host_frame_bytes == 0
          ? 1.0
          : static_cast<double>(stats.host_raw_bytes) / static_cast<double>(stats.host_frame_bytes),
      grouped(stats.blocks_staged));
  const Generated& generated = report.generated;
  if (generated.finish == Finish::kContext)
    tell("ended early: the context is full ({} tokens; the model's, or max_sequence_tokens)\n",
         grouped(report.prompt_tokens + generated.tokens.size()));
  if (generated.finish == Finish::kInterrupted) tell("ended early: interrupted\n");
}

void print_json(const Report& report, const Config& config, const llama::Tokenizer& tokenizer) {
  const Stats& stats = report.stats;
  const nlohmann::ordered_json json{{"prompt_tokens", report.prompt_tokens},
                                    {"tokens_reused", report.match.tokens},
                                    {"tokens", report.generated.tokens},
                                    {"text", tokenizer.decode(report.generated.tokens)},
                                    {"ended", report.generated.ended()},
                                    {"finish_reason", to_string(report.generated.finish)},
                                    {"finish_message", report.generated.status.message()},
                                    {"prefill_s", report.prefill.wall_s},
                                    {"prefill_cpu_s", report.prefill.cpu_s},
                                    {"decode_s", report.decode.wall_s},
                                    {"decode_cpu_s", report.decode.cpu_s},
                                    {"ms_per_token", report.ms_per_token()},
                                    {"pool_budget_bytes", config.pool.budget_bytes},
                                    {"host_budget_bytes", config.host.budget_bytes},
                                    {"worker", config.mover.worker},
                                    {"threads", config.threads},
                                    {"slots_total", stats.slots_total},
                                    {"token_bytes", stats.token_bytes},
                                    {"host_frame_bytes", stats.host_frame_bytes},
                                    {"host_raw_bytes", stats.host_raw_bytes},
                                    {"evictions", stats.evictions},
                                    {"evictions_with_copy", stats.evictions_with_copy},
                                    {"frames_stored", stats.frames_stored},
                                    {"frames_read", stats.frames_read},
                                    {"blocks_staged", stats.blocks_staged},
                                    {"blocks_promoted", stats.blocks_promoted}};
  // A token may be half a character; whoever wants the bytes has the ids.
  fmt::print("{}\n", json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

Result<Report> answer(const Arguments& arguments, const std::string& text, const LoadedModel& model, Session& session) {
  Report report;
  FIRN_ASSIGN(const std::vector<TokenId> prompt, encode_prompt(arguments, text, model.tokenizer));
  FIRN_ASSIGN(llama::Sampler sampler, llama::Sampler::create(arguments.sampling));
  FIRN_ASSIGN(llama::Sequence sequence, session.engine->begin(prompt));
  report.prompt_tokens = prompt.size();
  report.match = sequence.match();
  Clock start = Clock::now();
  Status read;
  {
    Progress progress("reading", prompt.size());
    read = prefill(session, sequence, [&](std::size_t tokens) { progress.add(tokens); });
  }
  report.prefill = Clock::now().since(start);
  start = Clock::now();
  GenerateOptions options{
      .max_tokens = arguments.max_tokens, .stop_at_end = !arguments.ignore_end, .on_step = {}, .on_token = {}};
  if (!arguments.json) options.on_token = [&](TokenId token) { return print_now(model.tokenizer.piece(token)); };
  if (read.ok())
    report.generated = generate(session, model, sequence, sampler, options);
  else
    report.generated = {{}, finish_of(read), read};
  report.decode = Clock::now().since(start);
  report.stats = session.manager->stats();
  if (!arguments.dump.empty()) report.dump = session.manager->dump();  // while the sequence still holds its blocks
  return report;
}

// Everything that was computed is written and printed, whyever there is no more of it.
Status run_prompt(const Arguments& arguments) {
  FIRN_ASSIGN(LoadedConfig loaded, arguments.settings.load());
  if (arguments.pump) loaded.config.mover.worker = false;
  FIRN_ASSIGN(const std::string text, read_prompt(arguments));
  for (const std::string& out : {arguments.tokens_out, arguments.dump})  // a bad name is told before the work
    if (!out.empty()) FIRN_TRY(FileOut::create(out, Readers::kOwner).status());
  FIRN_ASSIGN(const std::unique_ptr<LoadedModel> model, LoadedModel::load(arguments.model));
  const Interruptible interruptible;
  FIRN_ASSIGN(Session session, Session::open(*model, loaded.config));
  FIRN_ASSIGN(const Report report, answer(arguments, text, *model, session));
  if (!arguments.tokens_out.empty())
    FIRN_TRY(write_file(arguments.tokens_out, lines_of(report.generated.tokens), Readers::kOwner));
  if (!arguments.dump.empty()) FIRN_TRY(write_file(arguments.dump, report.dump, Readers::kOwner));
  if (arguments.json)
    print_json(report, session.manager->config(), model->tokenizer);
  else
    fmt::print("\n");
  print_summary(report, session.manager->config());
  if (report.generated.finish == Finish::kInterrupted) return {};  // the exit code is the signal's
  return report.generated.status;
}

}  // namespace

void add_run_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("run", "let a model continue a prompt, with its KV cache in firn");
  auto arguments = std::make_shared<Arguments>();
  command->add_option("--model", arguments->model, "a llama-family GGUF; without it, the demo's model")
      ->type_name("FILE");
  command->add_option("--prompt-file", arguments->prompt_file, "the prompt; - is stdin")->type_name("FILE");
  command->add_option("--prompt", arguments->prompt, "the prompt, or what follows the file's")->type_name("TEXT");
  command->add_flag("--chat", arguments->chat,
                    "the prompt is what a user says; without it, the model continues the text");
  command->add_option("--max-tokens", arguments->max_tokens, "tokens to generate, at most")->capture_default_str();
  command->add_flag("--ignore-end", arguments->ignore_end, "go on when the model says that it has finished");
  command->add_option("--temperature", arguments->sampling.temperature, "0: always the likeliest token")
      ->capture_default_str();
  command->add_option("--top-k", arguments->sampling.top_k, "of the likeliest K only; 0: all")->capture_default_str();
  command->add_option("--top-p", arguments->sampling.top_p, "of those that together have this probability")
      ->capture_default_str();
  command->add_option("--seed", arguments->sampling.seed, "of sampling")->capture_default_str();
  command->add_option("--tokens-out", arguments->tokens_out, "write the generated ids, one a line")->type_name("FILE");
  command
      ->add_option("--dump", arguments->dump, "write who holds what there when the answer is there; firn dump shows it")
      ->type_name("FILE");
  command->add_flag("--pump", arguments->pump, "no mover thread: blocks move between steps, in this one");
  command->add_flag("--json", arguments->json, "one JSON object with text, tokens, times and counts");
  arguments->settings.add_to(*command);
  command->callback([arguments, &action] {
    action = [arguments] {
      const Status status = run_prompt(*arguments);
      return status.ok() ? kExitOk : fail(status);
    };
  });
}

}  // namespace firn::cli
