// firn dump: who holds what in a manager, from the JSON that Manager::dump() (firn_dump_json, manager.dump(), --dump of
// run and simulate) wrote. The file may come from anywhere, so nothing in it is believed before it is looked at.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/text.h"

namespace firn::cli {
namespace {

using Json = nlohmann::json;  // not the ordered one, whose objects of a million names take for ever

constexpr std::size_t kMaxDumpBytes = 64 << 20;

Result<Json> read_dump(const std::string& path) {
  FIRN_ASSIGN(const std::string text, read_whole(path, kMaxDumpBytes));
  Json all = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!all.is_object()) return Status(Code::kCorrupt, fmt::format("{}: is no JSON object, or was cut short", path));
  if (const auto format = all.find("format"); format == all.end() || *format != "firn-dump-1")
    return Status(Code::kCorrupt, fmt::format("{}: is no dump of a firn manager (\"format\": \"firn-dump-1\")", path));
  return all;
}

// What is not there, or is something else, reads as 0: a dump of a later version may have left it out.
std::uint64_t number(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_number_unsigned() ? found->get<std::uint64_t>() : 0;
}
std::int64_t signed_number(const Json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end() || !found->is_number_integer()) return 0;
  if (!found->is_number_unsigned()) return found->get<std::int64_t>();
  constexpr std::uint64_t kMost = std::numeric_limits<std::int64_t>::max();
  return static_cast<std::int64_t>(std::min(found->get<std::uint64_t>(), kMost));
}
const Json& part(const Json& object, const char* name) {
  static const Json kNone = Json::object();
  const auto found = object.find(name);
  return found != object.end() ? *found : kNone;
}
// As many as a manager writes. Pointers, because a copy of what is nested deeply takes the whole stack.
std::vector<const Json*> entries(const Json& object, const char* name) {
  constexpr std::size_t kMost = 10'000;
  std::vector<const Json*> found;
  for (const Json& entry : part(object, name))
    if (entry.is_object() && found.size() < kMost) found.push_back(&entry);
  return found;
}

// For a terminal: an owner's name is anything its caller wrote, escape sequences too, of one byte (below 0x20) or of
// two (U+0080 to U+009F); and it may be very long.
std::string plain(std::string text) {
  constexpr std::size_t kMost = 80;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool second = i != 0 && static_cast<unsigned char>(text[i - 1]) == 0xc2 && byte >= 0x80 && byte < 0xa0;
    if (byte < 0x20 || byte == 0x7f || second) text[i] = '?';
    if (second) text[i - 1] = '?';
  }
  if (text.size() > kMost) text = text.substr(0, kMost) + "...";
  return text;
}
std::string plain(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? plain(found->get<std::string>()) : std::string("?");
}

std::string time_text(std::int64_t ns) {
  const double seconds = static_cast<double>(ns) / 1e9;
  if (seconds < 120) return fmt::format("{:.1f} s", seconds);
  return seconds < 7200 ? fmt::format("{:.1f} min", seconds / 60) : fmt::format("{:.1f} h", seconds / 3600);
}

std::string quota_text(std::uint64_t floor, std::uint64_t ceiling) {
  if (floor == 0 && ceiling == 0) return "";
  return fmt::format(" ({}..{})", floor == 0 ? "" : human_bytes(floor), ceiling == 0 ? "" : human_bytes(ceiling));
}

// Rows of text under their names, as wide as the widest; numbers to the right.
class Table {
 public:
  Table(std::string title, std::vector<std::string> names) : title_(std::move(title)) {
    rows_.push_back(std::move(names));
  }
  void row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  void print(std::uint64_t left_out) const {
    if (rows_.size() == 1) return fmt::print("\n{}: none\n", title_);
    fmt::print("\n{}: {}\n", title_, rows_.size() - 1 + left_out);
    std::vector<std::size_t> widths;
    for (const std::vector<std::string>& cells : rows_) {
      widths.resize(std::max(widths.size(), cells.size()));
      for (std::size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], cells[i].size());
    }
    for (const std::vector<std::string>& cells : rows_) {
      std::string line;
      for (std::size_t i = 0; i < cells.size(); ++i)
        line += i == 0 ? fmt::format("  {:<{}}", cells[i], widths[i]) : fmt::format("  {:>{}}", cells[i], widths[i]);
      fmt::print("{}\n", line.substr(0, line.find_last_not_of(' ') + 1));
    }
    if (left_out != 0) fmt::print("  and {} more, which the dump left out\n", grouped(left_out));
  }

 private:
  std::string title_;
  std::vector<std::vector<std::string>> rows_;
};

void print_head(const Json& all) {
  const Json &slots = part(all, "slots"), &host = part(all, "host"), &pinned = part(all, "pinned");
  const std::uint64_t block_bytes = number(all, "block_bytes");
  fmt::print("model \"{}\", blocks of {}\n", plain(all, "model"), human_bytes(block_bytes));
  fmt::print("pool    {} slots: {} live, {} cached, {} free\n", grouped(number(slots, "total")),
             grouped(number(slots, "live")), grouped(number(slots, "cached")), grouped(number(slots, "free")));
  fmt::print("host    {} frames, {} of {} raw\n", grouped(number(host, "frames")),
             human_bytes(number(host, "frame_bytes")), human_bytes(number(host, "raw_bytes")));
  fmt::print("pinned  {} blocks, {} of {}\n", grouped(number(pinned, "blocks")), human_bytes(number(pinned, "bytes")),
             human_bytes(number(pinned, "budget_bytes")));
  fmt::print("asked   {} blocks, {} of them found", grouped(number(all, "queries")), grouped(number(all, "hits")));
  std::vector<std::pair<std::uint64_t, std::string>> misses;
  for (const auto& [name, count] : part(all, "misses").items())
    if (const std::uint64_t many = number(part(all, "misses"), name.c_str()); many != 0)
      misses.emplace_back(many, plain(name));
  std::stable_sort(misses.begin(), misses.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  for (const auto& [many, name] : misses) fmt::print("; {} {}", grouped(many), name);
  fmt::print("\n");
}

void print_kept(const Json& all) {
  const Json& left_out = part(all, "left_out");
  Table leases("leases", {"owner", "lease", "blocks", "bytes", "held for", "ends in"});
  for (const Json* const one : entries(all, "leases"))
    leases.row({plain(*one, "owner"), std::to_string(number(*one, "id")), grouped(number(*one, "blocks")),
                human_bytes(number(*one, "bytes")), time_text(signed_number(*one, "held_ns")),
                time_text(signed_number(*one, "left_ns"))});
  leases.print(number(left_out, "leases"));
  Table pins("pins", {"namespace", "blocks", "bytes", "ends in"});
  for (const Json* const one : entries(all, "pins"))
    pins.row({plain(*one, "namespace"), grouped(number(*one, "blocks")), human_bytes(number(*one, "bytes")),
              time_text(signed_number(*one, "left_ns"))});
  pins.print(number(left_out, "pins"));
  Table families("families", {"namespace", "family", "blocks", "bytes", "on device", "held"});
  for (const Json* const one : entries(all, "families"))
    families.row({plain(*one, "namespace"), std::to_string(number(*one, "id")), grouped(number(*one, "blocks")),
                  human_bytes(number(*one, "bytes")), grouped(number(*one, "on_device")),
                  grouped(number(*one, "held"))});
  families.print(number(left_out, "families"));
}

void print_users(const Json& all) {
  Table spaces("namespaces", {"tag", "sequences", "blocks", "device (quota)", "host (quota)"});
  for (const Json* const one : entries(all, "namespaces"))
    spaces.row({plain(*one, "tag"), grouped(number(*one, "sequences")), grouped(number(*one, "blocks")),
                human_bytes(number(*one, "device_bytes")) +
                    quota_text(number(*one, "device_floor"), number(*one, "device_ceiling")),
                human_bytes(number(*one, "host_bytes")) +
                    quota_text(number(*one, "host_floor"), number(*one, "host_ceiling"))});
  spaces.print(number(part(all, "left_out"), "namespaces"));
  Table sequences("sequences", {"namespace", "sequence", "tokens", "blocks", ""});
  for (const Json* const one : entries(all, "sequences"))
    sequences.row({plain(*one, "namespace"), std::to_string(number(*one, "id")), grouped(number(*one, "tokens")),
                   grouped(number(*one, "blocks")), part(*one, "preempted") == true ? "preempted" : ""});
  sequences.print(number(part(all, "left_out"), "sequences"));
}

}  // namespace

void add_dump_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("dump", "who holds what: leases, pins, families, namespaces, sequences");
  auto path = std::make_shared<std::string>();
  command->add_option("file", *path, "what Manager::dump(), firn_dump_json() or --dump of run and simulate wrote")
      ->required()
      ->type_name("FILE");
  command->callback([path, &action] {
    action = [path] {
      const Result<Json> all = read_dump(*path);
      if (!all.ok()) return fail(all.status());
      print_head(*all);
      print_kept(*all);
      print_users(*all);
      return kExitOk;
    };
  });
}

}  // namespace firn::cli
