// help.h: what there is, told to people and shells: groups and examples of `firn --help`, `firn help COMMAND`,
// completion for bash, zsh and fish, and the manual page. All of it is made from the commands' own definitions.
#pragma once

#include <string>

#include "cli/commands.h"

namespace firn::cli {

// After all other commands: adds help, version and completion, sorts all into groups and gives them their examples.
void add_help_commands(CLI::App& app, Action& action);

std::string bash_completion(const CLI::App& app);
std::string zsh_completion(const CLI::App& app);
std::string fish_completion(const CLI::App& app);
std::string manual_page(const CLI::App& app);  // troff, section 1

}  // namespace firn::cli
