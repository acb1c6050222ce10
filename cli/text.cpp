#include "cli/text.h"

#include <fmt/format.h>

#include <array>
#include <cstdlib>

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

std::string cache_folder() {
  if (const std::string folder = environment("FIRN_CACHE_DIR"); !folder.empty()) return folder;
  if (const std::string folder = environment("XDG_CACHE_HOME"); !folder.empty()) return folder + "/firn";
  return environment("HOME") + "/.cache/firn";
}

std::string demo_model_path() {
  if (const std::string path = environment("FIRN_SMOLLM2_GGUF"); !path.empty()) return path;
  return cache_folder() + "/SmolLM2-135M-Instruct.Q4_1.gguf";
}

}  // namespace firn::cli
