#include "cli/help.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <vector>

#include "cli/process.h"
#include "core/config/nearest.h"

namespace firn::cli {
namespace {

// One sentence a code. Beyond 2 they follow Code.
constexpr const char* kExitCodes[][2] = {
    {"0", "done"},
    {"1", "a problem was found"},
    {"2", "wrong arguments, configuration or file"},
    {"3", "a budget or the memory is too small"},
    {"4", "try again later"},
    {"5", "a file or frame is damaged"},
    {"6", "a device failed, or a result could not be written"},
    {"130", "Ctrl-C (143: SIGTERM); what was there until then is printed"},
};

struct Notes {
  const char *command, *group;
  std::vector<const char*> examples;
};

std::vector<Notes> notes() {
  return {
      {"doctor", "Start here", {"firn doctor", "firn doctor --verbose", "firn doctor --config consumer-24gb"}},
      {"demo", "Start here", {"firn demo", "firn demo --exact-only --json"}},
      {"run",
       "Start here",
       {"firn run --chat --prompt \"What is the capital of France?\"",
        "echo \"The capital of France is\" | firn run --prompt-file - --max-tokens 8",
        "firn run --prompt \"Once upon a time\" --pool-budget 16MiB --host-budget 256MiB --json"}},
      {"config",
       "Plan a deployment",
       {"firn config --effective consumer-24gb", "firn config --check consumer-24gb", "firn config --schema"}},
      {"plan",
       "Plan a deployment",
       {"firn plan --device h200 --model llama-3.1-8b --pool-budget 40GiB",
        "firn plan --config h200-node --workload chat:sessions=60 --slo ttft_p95=2s"}},
      {"simulate",
       "Plan a deployment",
       {"firn simulate --config consumer-24gb --workload chat:sessions=20",
        "firn simulate --config consumer-24gb --workload chat:sessions=20 --html report.html"}},
      {"trace",
       "Plan a deployment",
       {"firn trace record requests.jsonl -- firn run --prompt \"Hello\"", "firn trace info requests.jsonl"}},
      {"dump",
       "Look inside",
       {"firn run --prompt \"Hello\" --max-tokens 8 --dump blocks.json", "firn dump blocks.json"}},
      {"calibrate", "Codecs that are not exact", {"firn calibrate --text notes.txt --out kvtc.safetensors"}},
      {"eval",
       "Codecs that are not exact",
       {"firn eval --text notes.txt --codecs lossless,q8,q4",
        "firn eval --text notes.txt --codecs kvtc@16 "
        "--artefact kvtc.safetensors"}},
      {"completion",
       "About the program",
       {"firn completion bash > ~/.local/share/bash-completion/completions/firn",
        "firn completion zsh > ~/.zfunc/_firn", "firn completion fish > ~/.config/fish/completions/firn.fish"}},
      {"help", "About the program", {"firn help run", "firn help trace convert"}},
      {"version", "About the program", {}},
  };
}

using Apps = std::vector<const CLI::App*>;

Apps commands_of(const CLI::App& app) {
  Apps found;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    if (!command->get_group().empty()) found.push_back(command);
  return found;
}

std::vector<std::string> names_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : commands_of(app)) names.push_back(command->get_name());
  return names;
}

// An option as completion sees it.
struct Flag {
  std::vector<std::string> names;  // with dashes; empty: a positional
  std::string text, type, standard;
  bool takes_value = false, takes_file = false;
};

std::vector<Flag> flags_of(const CLI::App& app) {
  std::vector<Flag> flags;
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_group().empty()) continue;
    Flag flag;
    for (const std::string& name : option->get_snames()) flag.names.push_back("-" + name);
    for (const std::string& name : option->get_lnames()) flag.names.push_back("--" + name);
    flag.text = option->get_description();
    flag.takes_value = option->get_items_expected_max() != 0;
    flag.type = flag.takes_value ? option->get_type_name() : "";
    flag.standard = option->get_default_str();
    flag.takes_file = flag.takes_value && (flag.type == "FILE" || flag.type == "DIR" || flag.type == "TEXT");
    if (flag.names.empty()) flag.type = option->get_single_name();
    flags.push_back(std::move(flag));
  }
  return flags;
}

std::vector<std::string> dashed_names(const CLI::App& app, const std::function<bool(const Flag&)>& wanted) {
  std::vector<std::string> names;
  for (const Flag& flag : flags_of(app))
    if (wanted(flag)) names.insert(names.end(), flag.names.begin(), flag.names.end());
  return names;
}

// Every command with the words that lead to it, parents first: "", " run", " trace", " trace info".
using Visit = std::function<void(const std::string& path, const CLI::App& app)>;
void visit(const CLI::App& app, const std::string& path, const Visit& each) {
  each(path, app);
  for (const CLI::App* command : commands_of(app)) visit(*command, path + " " + command->get_name(), each);
}

std::string replaced(std::string text, const std::string& what, const std::string& by) {
  for (std::size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += by.size())
    text.replace(at, what.size(), by);
  return text;
}

std::string in_quotes(const std::string& text) { return "'" + replaced(text, "'", "'\\''") + "'"; }

// _arguments' own signs.
std::string for_zsh(std::string text) {
  for (const char* sign : {"\\", "[", "]", ":"}) text = replaced(std::move(text), sign, std::string("\\") + sign);
  return text;
}

std::string zsh_arguments(const CLI::App& app) {
  std::string text = "_arguments";
  for (const Flag& flag : flags_of(app))
    for (const std::string& name : flag.names)
      text += " \\\n        " + in_quotes(fmt::format("*{}[{}]{}", name, for_zsh(flag.text),
                                                      !flag.takes_value ? ""
                                                      : flag.takes_file ? ":" + for_zsh(flag.type) + ":_files"
                                                                        : ":" + for_zsh(flag.type) + ":"));
  return text + " \\\n        '*:file:_files'";
}

std::string zsh_function(const std::string& function, const CLI::App& app) {
  const Apps commands = commands_of(app);
  if (commands.empty()) return fmt::format("{}() {{\n  {}\n}}\n", function, zsh_arguments(app));
  std::string text, list, cases;
  for (const CLI::App* command : commands) {
    text += zsh_function(function + "_" + command->get_name(), *command);
    list += "        " + in_quotes(command->get_name() + ":" + for_zsh(command->get_description())) + "\n";
    cases += fmt::format("        {}) {}_{} ;;\n", command->get_name(), function, command->get_name());
  }
  return text + fmt::format(
                    "{}() {{\n  local state line\n  _arguments -C '1:command:->command' '*::argument:->argument'\n"
                    "  case $state in\n    command)\n      local -a commands\n      commands=(\n{}      )\n"
                    "      _describe -t commands command commands ;;\n"
                    "    argument)\n      case $line[1] in\n{}      esac ;;\n  esac\n}}\n",
                    function, list, cases);
}

std::string for_troff(std::string text) {
  text = replaced(replaced(std::move(text), "\\", "\\e"), "-", "\\-");
  return !text.empty() && (text[0] == '.' || text[0] == '\'') ? "\\&" + text : text;
}

std::string troff_options(const CLI::App& app) {
  std::string text;
  for (const Flag& flag : flags_of(app)) {
    if (flag.names.size() > 0 && flag.names.back() == "--help") continue;
    const std::string name = flag.names.empty() ? flag.type : fmt::format("{}", fmt::join(flag.names, ", "));
    text += fmt::format(".TP\n\\fB{}\\fR{}\n{}{}\n", for_troff(name),
                        flag.names.empty() || !flag.takes_value ? "" : " \\fI" + for_troff(flag.type) + "\\fR",
                        for_troff(flag.text),
                        flag.standard.empty() ? "" : for_troff(fmt::format(" (default {})", flag.standard)));
  }
  return text;
}

const CLI::App* find_command(const CLI::App& app, const std::vector<std::string>& words, std::string& problem) {
  const CLI::App* found = &app;
  for (const std::string& word : words) {
    const CLI::App* next = nullptr;
    for (const CLI::App* command : commands_of(*found))
      if (command->get_name() == word) next = command;
    if (next == nullptr) {
      const std::vector<std::string> names = names_of(*found);
      problem = fmt::format("there is no command \"{}\"{}", word,
                            names.empty() ? "" : "; did you mean " + nearest(word, names) + "?");
      return nullptr;
    }
    found = next;
  }
  return found;
}

std::string full_name(const CLI::App* app) {
  const CLI::App* parent = app->get_parent();
  return parent == nullptr ? app->get_name() : full_name(parent) + " " + app->get_name();
}

}  // namespace

std::string bash_completion(const CLI::App& app) {
  std::string paths, cases;
  visit(app, "", [&](const std::string& path, const CLI::App& command) {
    if (!path.empty()) paths += fmt::format("      \"{}\") path=\"{}\" ;;\n", path, path);
    cases += fmt::format(
        "    \"{}\")\n      commands=\"{}\"\n      options=\"{}\"\n      files=\"{}\"\n      values=\"{}\" ;;\n", path,
        fmt::join(names_of(command), " "), fmt::join(dashed_names(command, [](const Flag&) { return true; }), " "),
        fmt::join(dashed_names(command, [](const Flag& flag) { return flag.takes_file; }), " "),
        fmt::join(dashed_names(command, [](const Flag& flag) { return flag.takes_value && !flag.takes_file; }), " "));
  });
  return "# firn completion for bash, made by: firn completion bash\n"
         "_firn() {\n"
         "  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} path= i\n"
         "  local commands= options= files= values=\n"
         "  for ((i = 1; i < COMP_CWORD; ++i)); do\n"
         "    case \"$path ${COMP_WORDS[i]}\" in\n" +
         paths +
         "    esac\n"
         "  done\n"
         "  case $path in\n" +
         cases +
         "  esac\n"
         "  if [[ \" $files \" == *\" $previous \"* ]]; then mapfile -t COMPREPLY < <(compgen -f -- \"$current\")\n"
         "  elif [[ \" $values \" == *\" $previous \"* ]]; then COMPREPLY=()\n"
         "  elif [[ $current == -* ]]; then mapfile -t COMPREPLY < <(compgen -W \"$options\" -- \"$current\")\n"
         "  elif [[ -n $commands ]]; then mapfile -t COMPREPLY < <(compgen -W \"$commands\" -- \"$current\")\n"
         "  else mapfile -t COMPREPLY < <(compgen -f -- \"$current\")\n"
         "  fi\n"
         "}\n"
         "complete -o filenames -F _firn firn\n";
}

std::string zsh_completion(const CLI::App& app) {
  return "#compdef firn\n# firn completion for zsh, made by: firn completion zsh\n" + zsh_function("_firn", app) +
         "if [[ $funcstack[1] == _firn ]]; then _firn \"$@\"; else compdef _firn firn; fi\n";
}

std::string fish_completion(const CLI::App& app) {
  std::string text = "# firn completion for fish, made by: firn completion fish\n";
  visit(app, "", [&](const std::string& path, const CLI::App& command) {
    std::string here = path.empty() ? "__fish_use_subcommand" : "";
    for (std::size_t at = 0; at < path.size();) {  // every word of the path has been typed
      const std::size_t end = std::min(path.find(' ', at + 1), path.size());
      here += (here.empty() ? "__fish_seen_subcommand_from" : "; and __fish_seen_subcommand_from") +
              path.substr(at, end - at);
      at = end;
    }
    const std::vector<std::string> names = names_of(command);
    std::string first = here;
    if (!path.empty() && !names.empty())
      first += fmt::format("; and not __fish_seen_subcommand_from {}", fmt::join(names, " "));
    for (const CLI::App* sub : commands_of(command))
      text += fmt::format("complete -c firn -f -n {} -a {} -d {}\n", in_quotes(first), sub->get_name(),
                          in_quotes(sub->get_description()));
    for (const Flag& flag : flags_of(command)) {
      if (flag.names.empty()) continue;
      std::string spelled;
      for (const std::string& name : flag.names)
        spelled += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
      text += fmt::format("complete -c firn -n {}{}{} -d {}\n", in_quotes(here), spelled,
                          flag.takes_file    ? " -r -F"
                          : flag.takes_value ? " -x"
                                             : "",
                          in_quotes(flag.text));
    }
  });
  return text;
}

std::string manual_page(const CLI::App& app) {
  std::string text = fmt::format(
      ".TH FIRN 1 \"\" \"firn {}\" \"User Commands\"\n.SH NAME\nfirn \\- a tiered KV cache for transformer inference\n"
      ".SH SYNOPSIS\n.B firn\n\\fICOMMAND\\fR [\\fIOPTION\\fR...]\n.SH DESCRIPTION\n"
      "firn keeps the KV cache of a language model in a small pool of blocks and moves what is cold to host memory, "
      "from where it comes back bit for bit. This program shows it at work, says what a deployment would do before it "
      "is bought, and looks into one that runs.\n.PP\nResults go to standard output, all else to standard error.\n"
      ".SH COMMANDS\n",
      FIRN_VERSION);
  visit(app, "", [&](const std::string& path, const CLI::App& command) {
    if (path.empty()) return;
    text += fmt::format(".SS \"firn{}\"\n{}\n{}", for_troff(path), for_troff(command.get_description()),
                        troff_options(command));
  });
  text += ".SH EXIT STATUS\n";
  for (const auto& [code, meaning] : kExitCodes) text += fmt::format(".TP\n.B {}\n{}\n", code, for_troff(meaning));
  text +=
      ".SH ENVIRONMENT\n.TP\n.B FIRN_POOL_BUDGET, FIRN_HOST_BUDGET, ...\nEvery setting of a deployment; "
      "\\fBfirn config \\-\\-effective\\fR lists them, and flags win over them.\n"
      ".TP\n.B FIRN_CACHE_DIR\nWhere downloads and artefacts are kept; without it, firn in $XDG_CACHE_HOME or "
      "~/.cache.\n"
      ".TP\n.B FIRN_SMOLLM2_GGUF\nThe model that is taken where none is named.\n"
      ".TP\n.B FIRN_DATA_DIR\nWhere shipped configurations and device files are; without it, beside the program.\n"
      ".SH EXAMPLES\n";
  for (const Notes& note : notes())
    for (const char* example : note.examples) text += fmt::format(".PP\n.nf\n{}\n.fi\n", for_troff(example));
  return text + ".SH SEE ALSO\nThe pages in share/doc/firn, README.md first.\n";
}

void add_help_commands(CLI::App& app, Action& action) {
  const auto print_version = [] {
    fmt::print("firn {} (compiler {})\n", FIRN_VERSION, __VERSION__);
    return kExitOk;
  };
  app.set_version_flag("--version", fmt::format("firn {} (compiler {})", FIRN_VERSION, __VERSION__),
                       "print the version and exit");
  app.add_subcommand("version", "print the version")->callback([&action, print_version] { action = print_version; });
  auto words = std::make_shared<std::vector<std::string>>();
  auto manual = std::make_shared<bool>(false);
  CLI::App* help = app.add_subcommand("help", "what there is, or what a command takes");
  help->add_option("command", *words, "the command, such as: trace convert")->type_name("COMMAND");
  help->add_flag("--man", *manual, "the whole manual page, for man");
  help->callback([&app, &action, words, manual] {
    action = [&app, words, manual] {
      if (*manual) return fmt::print("{}", manual_page(app)), kExitOk;
      std::string problem;
      const CLI::App* found = find_command(app, *words, problem);
      if (found == nullptr) {
        tell("firn: {} (firn --help lists them)\n", problem);
        return kExitUsage;
      }
      // Not found->help(), which shows the command that was called: this one.
      fmt::print("{}", app.get_formatter()->make_help(found, full_name(found), CLI::AppFormatMode::Normal));
      return kExitOk;
    };
  });
  auto shell = std::make_shared<std::string>();
  CLI::App* completion = app.add_subcommand("completion", "what a shell needs to complete commands and options");
  completion->add_option("shell", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}))
      ->type_name("SHELL");
  completion->callback([&app, &action, shell] {
    action = [&app, shell] {
      fmt::print("{}", *shell == "bash"  ? bash_completion(app)
                       : *shell == "zsh" ? zsh_completion(app)
                                         : fish_completion(app));
      return kExitOk;
    };
  });
  for (const Notes& note : notes()) {
    CLI::App* command = app.get_subcommand_ptr(std::string(note.command)).get();
    command->group(note.group);
    if (!note.examples.empty())
      command->footer(
          fmt::format("Example{}:\n  {}", note.examples.size() == 1 ? "" : "s", fmt::join(note.examples, "\n  ")));
  }
  std::string codes;
  for (const auto& [code, meaning] : kExitCodes) codes += fmt::format("\n  {:<4} {}", code, meaning);
  app.footer("firn help COMMAND shows a command's options and examples.\n\nExit codes:" + codes);
}

}  // namespace firn::cli
