// firn trace: looks at recorded requests and rewrites them.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/process.h"
#include "cli/text.h"
#include "cli/trace_flags.h"
#include "sim/trace_info.h"

namespace firn::cli {

void TraceFlags::add_to(CLI::App& command) {
  command.add_option("--trace-format", format, "auto, mooncake, azure, burstgpt, qwen, weka or csv")->type_name("NAME");
  command.add_option("--block-tokens", options.block_tokens, "tokens of the trace's blocks, where it does not say");
  command.add_option("--requests", options.max_requests, "read only the first N requests")->type_name("N");
  command.add_flag("--strict", options.strict, "the first bad line ends it");
}

Status TraceFlags::finish() {
  path = find_shipped(path, "traces");
  FIRN_ASSIGN(options.format, sim::parse_trace_format(format));
  return {};
}

void report_bad_lines(const std::string& path, std::uint64_t count, const std::vector<sim::BadLine>& lines,
                      std::uint64_t out_of_order) {
  constexpr std::size_t kShown = 3;
  if (count != 0) tell("firn: {}: {} bad lines were passed over\n", path, grouped(count));
  for (std::size_t i = 0; i < lines.size() && i < kShown; ++i)
    tell("firn: {}:{}: {}\n", path, lines[i].line, lines[i].why);
  if (out_of_order != 0)
    tell("firn: {}: {} requests are earlier than the one before; they count as simultaneous with it\n", path,
         grouped(out_of_order));
}

namespace {

using Json = nlohmann::ordered_json;

Json to_json(const sim::Spread& spread) {
  return {{"p10", spread.p10}, {"p50", spread.p50},  {"p90", spread.p90},
          {"p99", spread.p99}, {"max", spread.most}, {"mean", spread.mean}};
}

double share(std::uint64_t part, std::uint64_t all) {
  return all == 0 ? 0 : static_cast<double>(part) / static_cast<double>(all);
}

void print_json(const sim::TraceInfo& info) {
  Json bad = Json::array();
  for (const sim::BadLine& line : info.bad_lines) bad.push_back({{"line", line.line}, {"why", line.why}});
  const Json json = {{"format", sim::to_string(info.format)},
                     {"block_tokens", info.block_tokens},
                     {"requests", info.requests},
                     {"sessions", info.sessions},
                     {"seconds", info.seconds},
                     {"input_tokens", to_json(info.input_tokens)},
                     {"output_tokens", to_json(info.output_tokens)},
                     {"input_tokens_sum", info.input_tokens_sum},
                     {"output_tokens_sum", info.output_tokens_sum},
                     {"blocks", info.blocks},
                     {"distinct_blocks", info.distinct_blocks},
                     {"blocks_once", info.blocks_once},
                     {"endless_prefix_hits", info.prefix_hits},
                     {"endless_hit_tokens", info.hit_tokens},
                     {"reuse_seconds", to_json(info.reuse_seconds)},
                     {"bad_line_count", info.bad_line_count},
                     {"out_of_order", info.out_of_order},
                     {"bad_lines", bad}};
  fmt::print("{}\n", json.dump(2));
}

void print_text(const std::string& path, const sim::TraceInfo& info) {
  fmt::print("{}: {} requests in {:.1f} minutes ({:.2f} a second), format {}\n", path, grouped(info.requests),
             info.seconds / 60, info.seconds > 0 ? static_cast<double>(info.requests) / info.seconds : 0,
             sim::to_string(info.format));
  if (info.sessions != 0) fmt::print("sessions            {}\n", grouped(info.sessions));
  const auto spread = [](const char* name, const sim::Spread& s) {
    fmt::print("{:<19} mean {:.0f}, p10 {}, p50 {}, p90 {}, p99 {}, largest {}\n", name, s.mean, grouped(s.p10),
               grouped(s.p50), grouped(s.p90), grouped(s.p99), grouped(s.most));
  };
  spread("input tokens", info.input_tokens);
  spread("output tokens", info.output_tokens);
  if (info.blocks == 0) {
    fmt::print("blocks              no names: this trace says nothing about reuse\n");
    return;
  }
  fmt::print("blocks              {} accesses to {} different blocks of {} tokens; {:.0f} % are used once only\n",
             grouped(info.blocks), grouped(info.distinct_blocks), info.block_tokens,
             100 * share(info.blocks_once, info.distinct_blocks));
  fmt::print("an endless cache    would serve {:.2f} % of the blocks and {:.2f} % of the input tokens\n",
             100 * share(info.prefix_hits, info.blocks), 100 * share(info.hit_tokens, info.input_tokens_sum));
  spread("seconds to reuse", info.reuse_seconds);
}

struct Arguments {
  TraceFlags trace;
  std::string out = "-";
  bool json = false;
  std::vector<std::string> words;
};

int run_info(Arguments& arguments) {
  if (const Status status = arguments.trace.finish(); !status.ok()) return fail(status);
  const Result<sim::TraceInfo> info = sim::inspect_trace(arguments.trace.path, arguments.trace.options);
  if (!info.ok()) return fail(info.status());
  arguments.json ? print_json(*info) : print_text(arguments.trace.path, *info);
  report_bad_lines(arguments.trace.path, info->bad_line_count, info->bad_lines, info->out_of_order);
  return kExitOk;
}

int run_convert(Arguments& arguments) {
  if (const Status status = arguments.trace.finish(); !status.ok()) return fail(status);
  const Result<std::uint64_t> count = sim::convert_trace(arguments.trace.path, arguments.trace.options, arguments.out);
  if (!count.ok()) return fail(count.status());
  tell("firn: {} requests written\n", grouped(*count));
  return kExitOk;
}

// A command whose firn records: the setting trace.record reaches it by the environment.
int run_record(const std::string& out, const std::vector<std::string>& words) {
  if (words.empty())
    return fail(Status(Code::kInvalidArgument,
                       "trace record: after the file, -- and a command that uses firn and reads its settings from the "
                       "environment: firn trace record t.jsonl -- firn run ..."));
  std::error_code error;
  const std::string file = std::filesystem::absolute(out, error).string();
  setenv("FIRN_TRACE_RECORD", file.c_str(), 1);
  std::vector<char*> pointers;
  for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  execvp(pointers[0], pointers.data());
  return fail(Status(Code::kIo, fmt::format("{}: {}", words[0], std::strerror(errno))));
}

}  // namespace

void add_trace_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("trace", "recorded requests: what a file holds, and other formats of it");
  command->require_subcommand(1);
  auto arguments = std::make_shared<Arguments>();
  CLI::App* info = command->add_subcommand("info", "lengths, rates and reuse of a trace");
  info->add_option("trace", arguments->trace.path, "trace file: plain, gzip or zstd; - is stdin")->required();
  info->add_flag("--json", arguments->json, "for machines");
  arguments->trace.add_to(*info);
  info->callback([arguments, &action] { action = [arguments] { return run_info(*arguments); }; });
  CLI::App* record = command->add_subcommand("record", "run a command and record what its manager is asked");
  record->add_option("out", arguments->out, "file to write")->required();
  record->add_option("command", arguments->words, "-- and the command");
  record->prefix_command();
  record->callback([arguments, record, &action] {
    std::vector<std::string> words = arguments->words;
    for (const std::string& word : record->remaining())
      if (!(words.empty() && word == "--")) words.push_back(word);
    action = [out = arguments->out, words] { return run_record(out, words); };
  });
  CLI::App* convert = command->add_subcommand("convert", "rewrite a trace as Mooncake's lines");
  convert->add_option("trace", arguments->trace.path, "trace file")->required();
  convert->add_option("out", arguments->out, "file to write; - is stdout");
  arguments->trace.add_to(*convert);
  convert->callback([arguments, &action] { action = [arguments] { return run_convert(*arguments); }; });
}

}  // namespace firn::cli
