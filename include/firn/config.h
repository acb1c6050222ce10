// config.h: one deployment. Parsed once, checked whole, passed by const reference. docs/config.md has every key.
//
// Where a value comes from, strongest first: the API or a command-line flag, the environment (FIRN_POOL_BUDGET for
// pool.budget), the YAML file, the default. Unknown keys are errors that name the place and the nearest known key.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "firn/export.h"
#include "firn/status.h"

namespace firn {

struct Config {
  std::string device = "auto";  // auto | cpu | none (bookkeeping only) | lavapipe | a GPU's index, UUID or name
  std::uint32_t threads = 0;    // of the cpu device and of codecs; 0: one per usable processor
  std::string mode = "strict";  // strict | opportunistic: when a token may become lossy (docs/design.md)

  struct Pool {
    std::uint64_t budget_bytes = 0;  // slots, staging and workspace together, per process; 0: a quarter of free memory
    std::uint32_t slots = 0;         // blocks the pool holds; 0: as many as budget_bytes has room for
    std::uint64_t staging_bytes =
        0;  // of those, for decoded cold blocks on their way to attention; 0: chosen from the model
    std::uint64_t max_budget_bytes = 0;   // the most that resize_pool() may grow it to; 0: it has one size
    std::uint32_t max_step_tokens = 256;  // rows one attend call may have; sizes the workspace
    bool zero_on_free = false;            // a slot is cleared before another namespace gets it
  } pool;

  struct Protect {
    std::uint32_t sinks = 4;     // first tokens of a sequence that stay raw while it lives
    std::uint32_t recent = 128;  // last tokens that do
    // What becomes of the last window of a matched prefix that has been through a lossy codec: recompute | accept.
    std::string tail = "recompute";
  } protect;

  struct Host {
    std::uint64_t budget_bytes = 0;    // everything the host tier has, per process; 0: no host tier
    std::string codec = "lossless";    // raw | lossless, both exact; q8 | q4 | kvtc | firn, lossy
    std::string value_codec = "same";  // same | q8 | q4: of values, where host.codec is q8 or q4 and then means keys
    std::string hadamard = "both";     // q8, q4: both | keys | values | none: what is mixed before it is rounded
    std::string artefact;              // kvtc, firn: the file that firn calibrate wrote
    std::uint32_t ratio = 16;          // kvtc: one of the artefact's; firn: any between its least and largest
    bool allow_unmeasured = false;     // a lossy codec without a measured report
    std::string placement = "local";   // local | node:N | interleave | spread:W0,W1,...
    bool huge_pages = true;
  } host;

  std::string trace_record;  // trace.record: a file that firn simulate reads back; empty: nothing is recorded

  struct Mover {
    bool worker = true;        // a background thread; false: pump() does the work in the caller's thread
    std::uint32_t queue = 64;  // frames waiting to move, at most
  } mover;

  bool partial_reuse = false;  // copy what a prompt shares with the block in which it leaves a cached prefix
  // Percent of the pool that stays available when a sequence is admitted while others live.
  std::uint32_t watermark_percent = 0;
  struct Retention {
    std::uint64_t pin_budget_bytes = 0;  // what pins and leases may hold together; 0: a quarter of pool.budget
  } retention;

  // What namespaces known beforehand may have: "alice device=2GiB..8GiB host=..64GiB; bob device=..4GiB". Others, and
  // names that are not words: Manager::set_quota().
  std::string quotas;

  struct Events {
    std::uint32_t capacity = 0;  // events kept for who takes them; 0: none are made
  } events;

  std::string eviction = "lru";
  std::uint32_t max_sequences = 256;
  std::uint64_t max_sequence_tokens = 1u << 20;
  std::uint64_t metadata_budget_bytes = 0;  // metadata.budget; 0: what the other settings need
};

// Where a value came from, for `firn config --effective`.
struct ConfigOrigin {
  enum class Kind : std::uint8_t { kDefault, kFile, kEnvironment, kOverride } kind = Kind::kDefault;
  std::string where;  // "configs/demo.yaml:12", "FIRN_HOST_BUDGET", "--pool-budget"
};
struct ConfigSetting {
  std::string key;          // "host.budget"
  std::string value;        // as one would write it in the file
  std::string description;  // one line, with units and whether per process
  ConfigOrigin origin;
};

struct ConfigInput {
  std::string file = {};                                // path for messages; empty: no file
  std::string text = {};                                // its YAML
  std::map<std::string, std::string> environment = {};  // FIRN_* only
  // (key, value, where): "pool.budget", "16MiB", "--pool-budget"
  struct Override {
    std::string key, value, where;
  };
  std::vector<Override> overrides = {};
};

class FIRN_API LoadedConfig {
 public:
  Config config;
  std::vector<ConfigSetting> settings;  // every key there is, in order
  std::vector<std::string> warnings;    // legal, and probably not what somebody wants; one line each
};

// kInvalidArgument: every mistake found, one a line, each with file:line:column, what is wrong, and what would be
// right.
FIRN_API Result<LoadedConfig> load_config(const ConfigInput& input);
// The file with this process's environment. An empty path: no file.
FIRN_API Result<LoadedConfig> load_config_file(const std::string& path,
                                               const std::vector<ConfigInput::Override>& overrides = {});
// This process's variables that begin with FIRN_.
FIRN_API std::map<std::string, std::string> firn_environment();
// Cross-field checks, before anything is allocated; load_config has run them.
FIRN_API Status validate(const Config& config);
// Every key with its value in a config made by hand or filled in by a manager; where it came from is not known any
// more.
FIRN_API std::vector<ConfigSetting> settings_of(const Config& config);
FIRN_API std::string config_schema_json();  // configs/schema.json, from the one definition table

// "16MiB", "1.5GiB", "4096B": a number and a unit. Decimal units (kB, MB, GB) are 1000-based.
FIRN_API Result<std::uint64_t> parse_bytes(std::string_view text);
FIRN_API std::string format_bytes(std::uint64_t bytes);  // round trips through parse_bytes; "16MiB"

}  // namespace firn
