#include "core/config/machine.h"

#include <dirent.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <memory>
#include <sstream>

#include "firn/config.h"

namespace firn {
namespace {

constexpr std::size_t kMaxCgroupDepth = 64, kMaxNodes = 1024;

// The whole of a small kernel file; empty if it is not there, which on some machine is true of each of them.
std::string read_text(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream text;
  if (in) text << in.rdbuf();
  return std::move(text).str();
}

std::string first_line(const std::string& path) {
  const std::string text = read_text(path);
  return text.substr(0, text.find('\n'));
}

std::optional<std::uint64_t> parse_number(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end == text.data()) return std::nullopt;
  return number;
}

// The number behind "name" in lines of "name 123" or "name: 123 kB".
std::optional<std::uint64_t> find_number(const std::string& text, std::string_view name) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const std::size_t at = line.find(name);
    if (at == std::string::npos) continue;
    const std::size_t end = at + name.size();
    if (end >= line.size() || (line[end] != ':' && line[end] != ' ')) continue;
    return parse_number(std::string_view(line).substr(end + 1));
  }
  return std::nullopt;
}

std::string find_text(const std::string& text, std::string_view name) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(name)) continue;
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return {};
}

// How many numbers "0-3,8" names.
std::uint32_t count_list(std::string_view list) {
  std::uint64_t count = 0;
  for (std::size_t begin = 0; begin < list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    const std::string_view part = list.substr(begin, end - begin);
    const std::size_t dash = part.find('-');
    const auto first = parse_number(part), last = dash == part.npos ? first : parse_number(part.substr(dash + 1));
    if (first && last && *first <= *last && *last < 1u << 20) count += *last - *first + 1;
    begin = end + 1;
  }
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(count, 1u << 20));
}

void read_processor(const std::string& root, Machine& machine) {
  const std::string cpuinfo = read_text(root + "/proc/cpuinfo");
  machine.cpu_model = find_text(cpuinfo, "model name");
  const std::string flags = fmt::format(" {}{} ", find_text(cpuinfo, "flags"), find_text(cpuinfo, "Features"));
  for (const char* flag : {"sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512_fp16", "asimd", "asimdhp", "sve"})
    if (flags.find(fmt::format(" {} ", flag)) != std::string::npos) machine.simd.emplace_back(flag);
  machine.processors = count_list(find_text(read_text(root + "/proc/self/status"), "Cpus_allowed_list"));
}

void read_memory(const std::string& root, Machine& machine) {
  constexpr std::uint64_t kKib = 1024;
  const std::string meminfo = read_text(root + "/proc/meminfo");
  machine.memory_bytes = find_number(meminfo, "MemTotal").value_or(0) * kKib;
  machine.available_bytes = find_number(meminfo, "MemAvailable").value_or(0) * kKib;
}

// A cgroup's folder below its mount, from /proc/self/cgroup: version 2 has the line "0::/path", version 1 a line per
// controller.
std::string cgroup_folder(const std::string& cgroups, std::string_view controller) {
  std::istringstream lines(cgroups);
  for (std::string line; std::getline(lines, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = fmt::format(",{},", line.substr(first + 1, second - first - 1));
    const bool wanted = controller.empty() ? controllers == ",,"
                                           : controllers.find(fmt::format(",{},", controller)) != std::string::npos;
    if (wanted) return line.substr(second + 1);
  }
  return {};
}

void take_limit(const std::string& folder, std::optional<std::uint64_t> limit, std::uint64_t used,
                std::uint64_t droppable, Machine& machine) {
  constexpr std::uint64_t kNoLimit = 1ull << 60;  // version 1 writes a number close to 2^63 for "none"
  if (!limit || *limit >= kNoLimit) return;
  used -= std::min(used, droppable);
  const std::uint64_t left = *limit - std::min(*limit, used);
  if (!machine.cgroup_available_bytes || left < *machine.cgroup_available_bytes) {
    machine.cgroup_available_bytes = left;
    machine.cgroup_limit_bytes = limit;
    machine.cgroup_path = folder;
  }
}

void read_quota(const std::string& text, Machine& machine) {
  std::istringstream in(text);  // "max 100000" or "150000 100000"
  double quota = 0, period = 0;
  if (in >> quota >> period && period > 0)
    machine.cpu_quota = std::min(machine.cpu_quota.value_or(1e9), quota / period);
}

void take_process_limit(const std::string& folder, Machine& machine) {
  const std::optional<std::uint64_t> limit = parse_number(read_text(folder + "/pids.max"));  // or "max"
  if (!limit || (machine.cgroup_process_limit && *machine.cgroup_process_limit <= *limit)) return;
  machine.cgroup_process_limit = limit;
  machine.cgroup_processes = parse_number(read_text(folder + "/pids.current")).value_or(0);
}

// Calls visit(folder) for the cgroup and each of its parents up to the mount: any of them may set the limit. In a
// container the path may be that of the host and missing here; then the mount itself is ours.
template <class Visit>
void visit_cgroups(const std::string& mount, std::string path, const Visit& visit) {
  for (std::size_t depth = 0; depth < kMaxCgroupDepth; ++depth) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    visit(mount + path);
    if (path.empty()) return;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

void read_cgroups(const std::string& root, Machine& machine) {
  const std::string cgroups = read_text(root + "/proc/self/cgroup"), mount = root + "/sys/fs/cgroup";
  visit_cgroups(mount, cgroup_folder(cgroups, ""), [&](const std::string& folder) {
    take_limit(folder, parse_number(read_text(folder + "/memory.max")),
               parse_number(read_text(folder + "/memory.current")).value_or(0),
               find_number(read_text(folder + "/memory.stat"), "inactive_file").value_or(0), machine);
    read_quota(first_line(folder + "/cpu.max"), machine);
    take_process_limit(folder, machine);
  });
  visit_cgroups(mount + "/pids", cgroup_folder(cgroups, "pids"),
                [&](const std::string& folder) { take_process_limit(folder, machine); });
  visit_cgroups(mount + "/memory", cgroup_folder(cgroups, "memory"), [&](const std::string& folder) {
    take_limit(folder, parse_number(read_text(folder + "/memory.limit_in_bytes")),
               parse_number(read_text(folder + "/memory.usage_in_bytes")).value_or(0),
               find_number(read_text(folder + "/memory.stat"), "total_inactive_file").value_or(0), machine);
  });
  visit_cgroups(mount + "/cpu", cgroup_folder(cgroups, "cpu"), [&](const std::string& folder) {
    const std::string quota = first_line(folder + "/cpu.cfs_quota_us");
    if (!quota.starts_with("-")) read_quota(quota + " " + first_line(folder + "/cpu.cfs_period_us"), machine);
  });
}

std::optional<std::uint64_t> find_limit(const std::string& limits, std::string_view name) {
  const std::size_t at = limits.find(name);
  return at == std::string::npos ? std::nullopt : parse_number(std::string_view(limits).substr(at + name.size()));
}

void read_limits(const std::string& root, Machine& machine) {
  const std::string limits = read_text(root + "/proc/self/limits");
  machine.memlock_bytes = find_limit(limits, "Max locked memory");
  machine.process_limit = find_limit(limits, "Max processes");
  // "always [madvise] never": the one in brackets is on.
  const std::string pages = first_line(root + "/sys/kernel/mm/transparent_hugepage/enabled");
  const std::size_t open = pages.find('['), close = pages.find(']');
  if (open != std::string::npos && close != std::string::npos && open < close)
    machine.huge_pages = pages.substr(open + 1, close - open - 1);
  machine.allowed_nodes = find_text(read_text(root + "/proc/self/status"), "Mems_allowed_list");
}

// Numbers may have gaps, and there may be a thousand of them: only those in the folder are asked for.
void read_nodes(const std::string& root, Machine& machine) {
  constexpr std::uint64_t kKib = 1024;
  const std::string nodes = root + "/sys/devices/system/node";
  // Not std::filesystem, whose iterators end the process when memory runs out.
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(::opendir(nodes.c_str()), ::closedir);
  while (const dirent* const entry = listing ? ::readdir(listing.get()) : nullptr) {
    const std::string name = entry->d_name, folder = nodes + "/" + name;
    std::size_t node = 0;
    const auto [rest, error] =
        std::from_chars(name.data() + std::min<std::size_t>(4, name.size()), name.data() + name.size(), node);
    if (!name.starts_with("node") || error != std::errc() || rest != name.data() + name.size() || node >= kMaxNodes)
      continue;
    const std::string meminfo = read_text(folder + "/meminfo");
    if (meminfo.empty()) continue;
    machine.nodes.push_back({.node = static_cast<int>(node),
                             .total_bytes = find_number(meminfo, "MemTotal").value_or(0) * kKib,
                             .free_bytes = find_number(meminfo, "MemFree").value_or(0) * kKib,
                             .cpus = first_line(folder + "/cpulist")});
  }
  std::sort(machine.nodes.begin(), machine.nodes.end(), [](const auto& a, const auto& b) { return a.node < b.node; });
}

}  // namespace

std::uint64_t Machine::usable_bytes() const {
  return std::min(available_bytes, cgroup_available_bytes.value_or(available_bytes));
}

std::string Machine::memory_text() const {
  std::string text =
      fmt::format("{}, of which {} are available", format_bytes(memory_bytes), format_bytes(available_bytes));
  if (cgroup_limit_bytes && cgroup_available_bytes)
    text += fmt::format("; the cgroup {} allows {}, of which {} are left", cgroup_path,
                        format_bytes(*cgroup_limit_bytes), format_bytes(*cgroup_available_bytes));
  return text;
}

std::string Machine::process_text() const {
  const std::string own = process_limit ? std::to_string(*process_limit) : "unlimited";
  if (!cgroup_process_limit) return fmt::format("RLIMIT_NPROC (ulimit -u) is {}", own);
  return fmt::format("RLIMIT_NPROC (ulimit -u) is {}, the cgroup's pids.max {} with {} in use", own,
                     *cgroup_process_limit, cgroup_processes);
}

Machine inspect_machine(const std::string& root) {
  Machine machine;
  read_processor(root, machine);
  read_memory(root, machine);
  read_cgroups(root, machine);
  read_limits(root, machine);
  read_nodes(root, machine);
  return machine;
}

}  // namespace firn
