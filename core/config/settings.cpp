#include "core/config/settings.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>

#include "core/config/quotas.h"

namespace firn {
namespace {

using Kind = Setting::Kind;
using std::string_view;

constexpr std::uint64_t kTiB = 1ull << 40;
constexpr std::array<string_view, 2> kModes{"strict", "opportunistic"};
constexpr std::array<string_view, 6> kHostCodecs{"raw", "lossless", "q8", "q4", "kvtc", "firn"};
constexpr std::array<string_view, 3> kValueCodecs{"same", "q8", "q4"};
constexpr std::array<string_view, 4> kHadamards{"both", "keys", "values", "none"};
constexpr std::array<string_view, 2> kTails{"recompute", "accept"};
// policy_names(), which this part must not know; a test of the command line compares the two.
constexpr std::array<string_view, 14> kEvictions{
    "lru",    "lru_tail_first", "fifo", "lfu",     "length_aware", "sieve",      "slru",
    "s3fifo", "s3fifo_fill",    "arc",  "session", "suffix_first", "cost_aware", "priority"};

bool parse_count(string_view text, std::uint64_t& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

Status check_spread(string_view weights) {
  constexpr std::size_t kMaxNodes = 64;
  constexpr std::uint64_t kMaxWeight = 1'000'000;
  std::size_t count = 0;
  std::uint64_t sum = 0;
  for (std::size_t begin = 0; begin <= weights.size(); ++count) {
    const std::size_t end = std::min(weights.find(',', begin), weights.size());
    std::uint64_t weight = 0;
    if (!parse_count(weights.substr(begin, end - begin), weight) || weight > kMaxWeight)
      return Status(Code::kInvalidArgument,
                    fmt::format("weight {} of spread is not a whole number from 0 to {}; write spread:2,1", count + 1,
                                kMaxWeight));
    sum += weight;
    begin = end + 1;
  }
  if (count > kMaxNodes)
    return Status(Code::kInvalidArgument, fmt::format("spread has {} weights, {} are the most", count, kMaxNodes));
  if (sum == 0) return Status(Code::kInvalidArgument, "all weights of spread are 0; write spread:2,1");
  return {};
}

// Which devices there are is asked when one is made: a file may be checked on another machine. Three letters are no
// name, which catches slips of the common words.
Status check_device(string_view text) {
  constexpr std::size_t kLeastName = 4, kMostName = 256;
  for (const string_view word : {"auto", "cpu", "none", "lavapipe"})
    if (text == word) return {};
  std::uint64_t index = 0;
  if (parse_count(text, index) && index < 1000) return {};
  if (text.size() >= kLeastName && text.size() <= kMostName) return {};
  return Status(Code::kInvalidArgument,
                fmt::format("\"{}\" is no device; write auto, cpu, none, lavapipe, or a GPU's index, UUID or name "
                            "(firn doctor lists them)",
                            text.substr(0, kMostName)));
}

// Which nodes there are is asked when the arenas are made: a file may be checked on another machine.
Status check_placement(string_view text) {
  constexpr string_view kNode = "node:", kSpread = "spread:";
  if (text == "local" || text == "interleave") return {};
  if (text.starts_with(kSpread)) return check_spread(text.substr(kSpread.size()));
  std::uint64_t node = 0;
  if (text.starts_with(kNode) && parse_count(text.substr(kNode.size()), node) && node < 1024) return {};
  return Status(Code::kInvalidArgument,
                fmt::format("\"{}\" is no placement; write local, node:0, interleave or spread:2,1", text));
}

Status check_path(string_view) { return {}; }
Status check_quotas(string_view text) { return parse_quotas(text).status(); }

constexpr Setting word(string_view key, Setting::Field field, std::span<const string_view> words,
                       string_view description) {
  return {.key = key, .kind = Kind::kWord, .field = field, .description = description, .words = words};
}
constexpr Setting count(string_view key, Setting::Field field, std::uint64_t min, std::uint64_t max, string_view zero,
                        string_view description) {
  return {.key = key,
          .kind = Kind::kCount,
          .field = field,
          .description = description,
          .zero = zero,
          .min = min,
          .max = max};
}
constexpr Setting bytes(string_view key, Setting::Field field, std::uint64_t min, string_view zero,
                        string_view description) {
  return {.key = key,
          .kind = Kind::kBytes,
          .field = field,
          .description = description,
          .zero = zero,
          .min = min,
          .max = 1024 * kTiB};
}
constexpr Setting flag(string_view key, Setting::Field field, string_view description) {
  return {.key = key, .kind = Kind::kFlag, .field = field, .description = description};
}

#define FIRN_FIELD(path) (+[](Config & c) -> auto& { return c.path; })

const Setting kSettings[] = {
    {.key = "device",
     .kind = Kind::kText,
     .field = FIRN_FIELD(device),
     .description = "where the pool is and attention runs; auto: a GPU, else cpu; none: bookkeeping without bytes",
     .form = "auto, cpu, none, lavapipe, or a GPU's index, UUID or name",
     .pattern = "^([0-9]{1,3}|cpu|.{4,256})$",
     .check = check_device},
    count("threads", FIRN_FIELD(threads), 1, 1024, "auto",
          "threads of the cpu device and of codecs, per process; auto: one per usable processor"),
    word("mode", FIRN_FIELD(mode), kModes, "when a token may become lossy; exact codecs give the same output in both"),
    bytes("pool.budget", FIRN_FIELD(pool.budget_bytes), 64 << 10, "auto",
          "slots, staging and workspace together, per process; auto: a quarter of free memory"),
    count("pool.slots", FIRN_FIELD(pool.slots), 2, (64u << 20) - 2, "auto",
          "blocks of 16 tokens that the pool holds, and pool.budget is what they need; auto: what pool.budget has room "
          "for"),
    bytes("pool.max_budget", FIRN_FIELD(pool.max_budget_bytes), 64 << 10, "fixed",
          "the most that the pool may be grown to while it is used, per process; fixed: it keeps its size"),
    bytes(
        "pool.staging", FIRN_FIELD(pool.staging_bytes), 1 << 10, "auto",
        "of pool.budget, for cold blocks decoded on their way to attention, per process; auto: chosen from the model"),
    count("pool.max_step_tokens", FIRN_FIELD(pool.max_step_tokens), 1, 65536, "",
          "tokens one attend call may bring; sizes the workspace"),
    flag("pool.zero_on_free", FIRN_FIELD(pool.zero_on_free),
         "clear a slot on the device before another namespace gets it"),
    count("protect.sinks", FIRN_FIELD(protect.sinks), 0, 1 << 20, "",
          "first tokens that stay raw while their sequence lives; rounded up to whole blocks of 16"),
    count("protect.recent", FIRN_FIELD(protect.recent), 0, 1 << 20, "",
          "last tokens that stay raw while their sequence lives; rounded up to whole blocks of 16"),
    word("protect.tail", FIRN_FIELD(protect.tail), kTails,
         "last window of a matched prefix that has been through a lossy codec: computed again, or taken as it is"),
    bytes("host.budget", FIRN_FIELD(host.budget_bytes), 64 << 10, "off",
          "everything the host tier has: frames, tables and scratch, per process; off: no host tier"),
    word("host.codec", FIRN_FIELD(host.codec), kHostCodecs,
         "how cold blocks are written into the host tier; raw and lossless are exact, q8, q4, kvtc and firn are not"),
    word("host.value_codec", FIRN_FIELD(host.value_codec), kValueCodecs,
         "of values, where host.codec is q8 or q4: then host.codec is that of keys alone"),
    word("host.hadamard", FIRN_FIELD(host.hadamard), kHadamards,
         "of host.codec q8 and q4: what a Hadamard transform of each head spreads outliers of before rounding"),
    {.key = "host.artefact",
     .kind = Kind::kText,
     .field = FIRN_FIELD(host.artefact),
     .description = "calibration file of host.codec kvtc or firn, as firn calibrate writes it",
     .form = "a path",
     .pattern = "^.*$",
     .check = check_path},
    count("host.ratio", FIRN_FIELD(host.ratio), 2, 1024, "",
          "of host.codec kvtc: one of the ratios in its artefact; of firn: any between its least and largest"),
    flag("host.allow_unmeasured", FIRN_FIELD(host.allow_unmeasured),
         "accept a lossy codec that has no measured report of what it does to the model"),
    {.key = "host.placement",
     .kind = Kind::kText,
     .field = FIRN_FIELD(host.placement),
     .description = "NUMA nodes of the host tier; spread gives each node a weight, node 0 first",
     .form = "local, node:N, interleave or spread:W0,W1,...",
     .pattern = "^(local|interleave|node:[0-9]{1,4}|spread:[0-9]{1,7}(,[0-9]{1,7})*)$",
     .check = check_placement},
    flag("host.huge_pages", FIRN_FIELD(host.huge_pages), "advise the kernel to back the host tier with huge pages"),
    flag("mover.worker", FIRN_FIELD(mover.worker), "move blocks in a background thread; false: only pump() moves them"),
    count("mover.queue", FIRN_FIELD(mover.queue), 1, 65536, "", "frames that may wait to be moved"),
    {.key = "trace.record",
     .kind = Kind::kText,
     .field = FIRN_FIELD(trace_record),
     .description = "writes lengths, times and block names of all requests there, behind what it has, for firn "
                    "simulate; %p: the process number; empty: off",
     .form = "a path",
     .pattern = "^.*$",
     .check = check_path},
    flag("partial_reuse", FIRN_FIELD(partial_reuse),
         "copy the tokens that a prompt shares with the cached block in which it leaves a known prefix"),
    count("admission.watermark", FIRN_FIELD(watermark_percent), 0, 90, "",
          "percent of the pool that stays available when a sequence is admitted while others live"),
    bytes("retention.pin_budget", FIRN_FIELD(retention.pin_budget_bytes), 1 << 10, "auto",
          "raw bytes that pins and leases may hold together, per process; auto: a quarter of pool.budget"),
    {.key = "quotas",
     .kind = Kind::kText,
     .field = FIRN_FIELD(quotas),
     .description = "floor and ceiling of namespaces in raw bytes of the pool and frame bytes of the host tier",
     .form = "NAME device=FLOOR..CEILING host=FLOOR..CEILING; NAME ...; each end may be left out",
     .pattern = "^.*$",
     .check = check_quotas},
    count("events.capacity", FIRN_FIELD(events.capacity), 16, 1 << 24, "off",
          "events kept for take_events, 112 bytes each and 33 more a block record; off: none are made"),
    word("eviction", FIRN_FIELD(eviction), kEvictions, "who leaves the pool and the host tier first"),
    count("max_sequences", FIRN_FIELD(max_sequences), 1, 1 << 20, "", "sequences that may live at once"),
    count("max_sequence_tokens", FIRN_FIELD(max_sequence_tokens), 16, 1 << 26, "", "tokens one sequence may have"),
    bytes("metadata.budget", FIRN_FIELD(metadata_budget_bytes), 64 << 10, "auto",
          "firn's own tables in host memory, per process; auto: what the other settings need"),
};
#undef FIRN_FIELD

// FIRN_ variables that are no settings of a deployment: places, and what tests are asked to do.
constexpr std::array<string_view, 10> kOtherEnvironment{
    "FIRN_CACHE_DIR",    "FIRN_SMOLLM2_GGUF",  "FIRN_BLAKE3_DIR",   "FIRN_DATA_DIR",    "FIRN_FULL_MATRIX",
    "FIRN_FUZZ_SECONDS", "FIRN_UPDATE_GOLDEN", "FIRN_BENCH_DEVICE", "FIRN_TEST_DEVICE", "FIRN_VULKAN_WITHOUT"};

Status mismatch(const Setting& setting, string_view text) {
  constexpr std::size_t kMaxShown = 80;
  return Status(Code::kInvalidArgument,
                fmt::format("\"{}\" is not {}", text.substr(0, kMaxShown), describe_values(setting)));
}

// In a Config 0 stands for its word. As text only "off" may be written so: a budget of 0 that became "auto" would be a
// quarter of the machine.
bool zero_is_a_number(const Setting& setting) { return setting.zero.empty() || setting.zero == "off"; }

bool in_range(const Setting& setting, std::uint64_t number) {
  if (number == 0 && !setting.zero.empty()) return true;
  return number >= setting.min && number <= setting.max;
}

std::string shown(const Setting& setting, std::uint64_t number) {
  return setting.kind == Kind::kBytes ? format_bytes(number) : std::to_string(number);
}

Status out_of_range(const Setting& setting, std::uint64_t number) {
  return Status(Code::kInvalidArgument,
                fmt::format("{} is out of range; write {}", shown(setting, number), describe_values(setting)));
}

Result<std::uint64_t> parse_number(const Setting& setting, string_view text) {
  if (!setting.zero.empty() && text == setting.zero) return std::uint64_t{0};
  std::uint64_t number = 0;
  if (setting.kind == Kind::kBytes) {
    FIRN_ASSIGN(number, parse_bytes(text));
  } else if (!parse_count(text, number)) {
    return mismatch(setting, text);
  }
  if (!in_range(setting, number) || (number == 0 && !zero_is_a_number(setting))) return out_of_range(setting, number);
  return number;
}

Status check_text(const Setting& setting, string_view text) {
  if (setting.kind == Kind::kText) return setting.check(text);
  return std::find(setting.words.begin(), setting.words.end(), text) == setting.words.end() ? mismatch(setting, text)
                                                                                            : Status();
}

}  // namespace

std::span<const Setting> settings_table() { return kSettings; }

const Setting* find_setting(string_view key) {
  for (const Setting& setting : kSettings)
    if (setting.key == key) return &setting;
  return nullptr;
}

std::string environment_name(string_view key) {
  std::string name = "FIRN_";
  for (const char c : key) name += c == '.' ? '_' : c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  return name;
}

std::span<const string_view> other_environment_names() { return kOtherEnvironment; }

// FIRN_SERVICE_HOST, FIRN_SERVICE_PORT, FIRN_SERVICE_PORT_HTTP, FIRN_PORT, FIRN_PORT_8080_TCP, FIRN_PORT_8080_TCP_ADDR
// (_PORT, _PROTO), the same of firn-cache as FIRN_CACHE_..., and FIRN_NAME, FIRN_ENV_... of links.
bool is_service_environment_name(string_view name) {
  constexpr string_view kPrefix = "FIRN_";
  if (!name.starts_with(kPrefix)) return false;
  if (name == "FIRN_NAME" || name.starts_with("FIRN_ENV_")) return true;
  if (name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.ends_with("_PORT")) return true;
  if (name.find("_SERVICE_PORT_") != name.npos) return true;
  for (const string_view end : {"_ADDR", "_PROTO"})
    if (name.ends_with(end)) name.remove_suffix(end.size());
  std::size_t digits = 0;
  for (const string_view protocol : {"_TCP", "_UDP", "_SCTP"})
    if (name.ends_with(protocol)) {
      name.remove_suffix(protocol.size());
      for (; !name.empty() && name.back() >= '0' && name.back() <= '9'; ++digits) name.remove_suffix(1);
      return digits != 0 && name.ends_with("_PORT_");
    }
  return false;
}

std::string describe_values(const Setting& setting) {
  const std::string zero = setting.zero.empty() ? "" : fmt::format(", or {}", setting.zero);
  switch (setting.kind) {
    case Kind::kWord:
      return fmt::format("{}", fmt::join(setting.words, " or "));
    case Kind::kText:
      return std::string(setting.form);
    case Kind::kFlag:
      return "true or false";
    case Kind::kCount:
      return fmt::format("a whole number from {} to {}{}", setting.min, setting.max, zero);
    case Kind::kBytes:
      return fmt::format("a size of at least {}{}", format_bytes(setting.min), zero);
  }
  return {};
}

Status set_value(const Setting& setting, string_view text, Config& config) {
  switch (setting.kind) {
    case Kind::kWord:
    case Kind::kText:
      FIRN_TRY(check_text(setting, text));
      std::get<0>(setting.field)(config) = text;
      return {};
    case Kind::kFlag:
      if (text != "true" && text != "false") return mismatch(setting, text);
      std::get<3>(setting.field)(config) = text == "true";
      return {};
    case Kind::kCount:
    case Kind::kBytes: {
      FIRN_ASSIGN(const std::uint64_t number, parse_number(setting, text));
      if (setting.field.index() == 1)
        std::get<1>(setting.field)(config) = static_cast<std::uint32_t>(number);  // max is below 2^32: tested
      else
        std::get<2>(setting.field)(config) = number;
      return {};
    }
  }
  return {};
}

namespace {
std::uint64_t number_of(const Setting& setting, Config& config) {
  return setting.field.index() == 1 ? std::get<1>(setting.field)(config) : std::get<2>(setting.field)(config);
}
}  // namespace

std::string format_value(const Setting& setting, const Config& config) {
  Config copy = config;  // the fields hand out references to what they are given
  switch (setting.kind) {
    case Kind::kWord:
    case Kind::kText:
      return std::get<0>(setting.field)(copy);
    case Kind::kFlag:
      return std::get<3>(setting.field)(copy) ? "true" : "false";
    case Kind::kCount:
    case Kind::kBytes:
      break;
  }
  const std::uint64_t number = number_of(setting, copy);
  return number == 0 && !setting.zero.empty() ? std::string(setting.zero) : shown(setting, number);
}

Status check_value(const Setting& setting, const Config& config) {
  Config copy = config;
  if (setting.kind == Kind::kWord || setting.kind == Kind::kText)
    return check_text(setting, std::get<0>(setting.field)(copy));
  if (setting.kind == Kind::kFlag) return {};
  const std::uint64_t number = number_of(setting, copy);
  return in_range(setting, number) ? Status() : out_of_range(setting, number);
}

}  // namespace firn
