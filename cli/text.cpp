#include "cli/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <vector>

namespace firn::cli {
namespace {
std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}
}  // namespace

std::string human_bytes(std::uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  double number = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (number >= 1024 && unit + 1 < kUnits.size()) number /= 1024, ++unit;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", number, kUnits[unit]);
}

std::string grouped(std::uint64_t number) {
  if (number < 1000) return std::to_string(number);
  return fmt::format("{},{:03}", grouped(number / 1000), number % 1000);
}

std::string wrapped(const std::string& text, const std::string& indent) {
  constexpr std::size_t kColumns = 80;
  std::string out;
  std::size_t column = 0;
  for (std::size_t at = 0; at < text.size();) {
    if (text[at] == '\n') {
      out += text[at++];
      column = 0;
      continue;
    }
    const std::size_t end = std::min(text.find_first_of(" \n", at + 1), text.size());
    if (column + end - at > kColumns && column > indent.size()) {
      out += "\n" + indent;
      column = indent.size();
      if (text[at] == ' ') ++at;
    }
    out += text.substr(at, end - at);
    column += end - at;
    at = end;
  }
  return out;
}

std::string cache_folder() {
  if (const std::string folder = environment("FIRN_CACHE_DIR"); !folder.empty()) return folder;
  if (const std::string folder = environment("XDG_CACHE_HOME"); !folder.empty()) return folder + "/firn";
  return environment("HOME") + "/.cache/firn";
}

std::string demo_model_path() {
  if (const std::string path = environment("FIRN_SMOLLM2_GGUF"); !path.empty()) return path;
  return cache_folder() + "/SmolLM2-135M-Instruct.Q4_1.gguf";
}

std::vector<std::string> data_folders() {
  if (const std::string folder = environment("FIRN_DATA_DIR"); !folder.empty()) return {folder};
  std::vector<std::string> folders;
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) folders.push_back((program.parent_path().parent_path() / "share/firn").string());
#ifdef FIRN_DATA_FOLDER
  folders.emplace_back(FIRN_DATA_FOLDER);
#endif
  return folders;
}

std::string find_shipped(const std::string& name, const std::string& kind) {
  std::error_code error;
  if (name.empty() || name == "-" || name[0] == '/' || std::filesystem::exists(name, error)) return name;
  for (const std::string& folder : data_folders())
    for (const std::string& file : {fmt::format("{}/{}", folder, name), fmt::format("{}/{}/{}", folder, kind, name),
                                    fmt::format("{}/{}/{}.yaml", folder, kind, name)})
      if (std::filesystem::is_regular_file(file, error)) return file;
  return name;
}

// Not by a std::ifstream, which tells nothing of why it failed and throws where it is read through its buffer.
Result<std::string> read_whole(const std::string& path, std::size_t most) {
  const std::string name = path == "-" ? "stdin" : path;
  const auto refuse = [&](int error) {
    return Status(Code::kInvalidArgument, fmt::format("{}: cannot be read ({})", name, std::strerror(error)));
  };
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> opened(path == "-" ? nullptr : std::fopen(path.c_str(), "rb"),
                                                               [](std::FILE* file) { return std::fclose(file); });
  std::FILE* const in = path == "-" ? stdin : opened.get();
  if (in == nullptr) return refuse(errno);
  std::string text;
  std::vector<char> piece(64 << 10);
  for (std::size_t n; (n = std::fread(piece.data(), 1, piece.size(), in)) != 0;) {
    text.append(piece.data(), n);
    if (text.size() > most)
      return Status(Code::kInvalidArgument, fmt::format("{}: more than {} bytes are not read", name, grouped(most)));
  }
  if (std::ferror(in) != 0) return refuse(errno);
  return text;
}

}  // namespace firn::cli
