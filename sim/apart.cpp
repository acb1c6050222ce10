#include "sim/apart.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <utility>

#include "sim/workload.h"

namespace firn::sim {
namespace {

bool is_file(const std::string& name) { return !name.empty() && !is_workload(name); }

// Which file it is; none: it is not there, or is none that could be written over.
std::optional<std::pair<dev_t, ino_t>> identity(const std::string& name, int standard) {
  struct stat info {};
  if ((name == "-" ? fstat(standard, &info) : stat(name.c_str(), &info)) != 0 || !S_ISREG(info.st_mode)) return {};
  return std::pair{info.st_dev, info.st_ino};
}

bool is_same(const std::string& a, int standard_a, const std::string& b, int standard_b) {
  const auto first = identity(a, standard_a), second = identity(b, standard_b);
  if (first || second) return first && first == second;
  if (a == "-" || b == "-") return false;
  struct stat info {};
  if (stat(a.c_str(), &info) == 0 || stat(b.c_str(), &info) == 0) return false;  // a pipe, /dev/null
  std::error_code error;
  const std::filesystem::path one = std::filesystem::weakly_canonical(a, error),
                              two = std::filesystem::weakly_canonical(b, error);
  return !error && one == two;
}

}  // namespace

Status check_apart(const std::vector<std::string>& inputs, const std::vector<std::string>& outputs) {
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (!is_file(outputs[i])) continue;
    for (const std::string& input : inputs)
      if (is_file(input) && is_same(input, STDIN_FILENO, outputs[i], STDOUT_FILENO))
        return Status(
            Code::kInvalidArgument,
            fmt::format("{}: is read as {}, and an input is never written over; give another name", outputs[i], input));
    for (std::size_t j = 0; j < i; ++j)
      if (is_file(outputs[j]) && is_same(outputs[j], STDOUT_FILENO, outputs[i], STDOUT_FILENO))
        return Status(Code::kInvalidArgument,
                      fmt::format("{} and {} are one file: give each output its own", outputs[j], outputs[i]));
  }
  return {};
}

}  // namespace firn::sim
