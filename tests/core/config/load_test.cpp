#include <gtest/gtest.h>

#include <algorithm>

#include "core/config/quotas.h"
#include "core/config/settings.h"
#include "firn/config.h"

namespace firn {
namespace {

ConfigInput file(std::string text) { return {.file = "my.yaml", .text = std::move(text)}; }

LoadedConfig load(const ConfigInput& input) {
  auto loaded = load_config(input);
  EXPECT_TRUE(loaded.ok()) << loaded.status().message();
  return loaded.ok() ? std::move(loaded).value() : LoadedConfig{};
}

std::string failure(const ConfigInput& input) {
  const auto loaded = load_config(input);
  if (loaded.ok()) return "(accepted)";
  EXPECT_EQ(loaded.status().code(), Code::kInvalidArgument);
  return loaded.status().message();
}

const ConfigSetting& setting(const LoadedConfig& loaded, std::string_view key) {
  const auto found = std::find_if(loaded.settings.begin(), loaded.settings.end(),
                                  [&](const ConfigSetting& entry) { return entry.key == key; });
  EXPECT_NE(found, loaded.settings.end()) << key;
  return *found;
}

TEST(LoadConfig, WithoutAnySourceGivesTheDefaults) {
  const LoadedConfig loaded = load({});
  const Config defaults;
  ASSERT_EQ(loaded.settings.size(), settings_table().size());
  for (const Setting& entry : settings_table()) {
    EXPECT_EQ(format_value(entry, loaded.config), format_value(entry, defaults)) << entry.key;
    EXPECT_EQ(setting(loaded, entry.key).value, format_value(entry, defaults));
    EXPECT_EQ(setting(loaded, entry.key).origin.kind, ConfigOrigin::Kind::kDefault);
  }
  EXPECT_TRUE(loaded.warnings.empty());
}

TEST(LoadConfig, ReadsEverySettingIntoItsOwnField) {
  const Config config = load(file(R"(
device: cpu
threads: 3
mode: opportunistic
pool: {budget: 1MiB, staging: 64KiB, max_step_tokens: 17}
protect: {sinks: 5, recent: 99}
host: {budget: 2MiB, codec: raw, placement: "spread:1,0,2", huge_pages: false}
mover: {worker: false, queue: 9}
quotas: a device=1MiB..
eviction: lru
max_sequences: 11
max_sequence_tokens: 4096
metadata: {budget: 3MiB}
)"))
                            .config;
  EXPECT_EQ(config.device, "cpu");
  EXPECT_EQ(config.threads, 3u);
  EXPECT_EQ(config.mode, "opportunistic");
  EXPECT_EQ(config.pool.budget_bytes, 1u << 20);
  EXPECT_EQ(config.pool.staging_bytes, 64u << 10);
  EXPECT_EQ(config.pool.max_step_tokens, 17u);
  EXPECT_EQ(config.protect.sinks, 5u);
  EXPECT_EQ(config.protect.recent, 99u);
  EXPECT_EQ(config.host.budget_bytes, 2u << 20);
  EXPECT_EQ(config.host.codec, "raw");
  EXPECT_EQ(config.host.placement, "spread:1,0,2");
  EXPECT_FALSE(config.host.huge_pages);
  EXPECT_FALSE(config.mover.worker);
  EXPECT_EQ(config.mover.queue, 9u);
  EXPECT_EQ(config.quotas, "a device=1MiB..");
  EXPECT_EQ(config.eviction, "lru");
  EXPECT_EQ(config.max_sequences, 11u);
  EXPECT_EQ(config.max_sequence_tokens, 4096u);
  EXPECT_EQ(config.metadata_budget_bytes, 3u << 20);
}

TEST(LoadConfig, TheStrongerSourceWinsAndTheOriginSaysWhich) {
  ConfigInput input = file("threads: 1\npool:\n  budget: 1GiB\nhost:\n  budget: 2GiB\n  codec: raw\n");
  input.environment = {{"FIRN_POOL_BUDGET", "3GiB"}, {"FIRN_HOST_BUDGET", "4GiB"}};
  input.overrides = {{"host.budget", "5GiB", "--host-budget"}};
  const LoadedConfig loaded = load(input);
  EXPECT_EQ(setting(loaded, "host.budget").value, "5GiB");
  EXPECT_EQ(setting(loaded, "host.budget").origin.kind, ConfigOrigin::Kind::kOverride);
  EXPECT_EQ(setting(loaded, "host.budget").origin.where, "--host-budget");
  EXPECT_EQ(setting(loaded, "pool.budget").value, "3GiB");
  EXPECT_EQ(setting(loaded, "pool.budget").origin.kind, ConfigOrigin::Kind::kEnvironment);
  EXPECT_EQ(setting(loaded, "pool.budget").origin.where, "FIRN_POOL_BUDGET");
  EXPECT_EQ(setting(loaded, "host.codec").value, "raw");
  EXPECT_EQ(setting(loaded, "host.codec").origin.kind, ConfigOrigin::Kind::kFile);
  EXPECT_EQ(setting(loaded, "host.codec").origin.where, "my.yaml:6:10");
  EXPECT_EQ(setting(loaded, "device").origin.kind, ConfigOrigin::Kind::kDefault);
}

TEST(LoadConfig, OneSizeInTheEnvironmentIsEnoughToStart) {
  ConfigInput input;
  input.environment = {{"FIRN_HOST_BUDGET", "8GiB"}, {"FIRN_CACHE_DIR", "/somewhere"}};
  EXPECT_EQ(load(input).config.host.budget_bytes, 8ull << 30);
}

TEST(LoadConfig, ReportsEveryMistakeWithItsPlaceAndTheNearestKey) {
  ConfigInput input = file(
      "device: gpu\n"
      "thread: 4\n"
      "pool:\n"
      "  bugdet: 16MiB\n"
      "  staging: 16\n"
      "host:\n"
      "  placement: node:x\n"
      "mover:\n"
      "  worker: yes\n"
      "threads: -1\n");
  input.environment = {{"FIRN_POOL_BUGET", "1GiB"}, {"FIRN_HOST_BUDGET", "lots"}};
  input.overrides = {{"host.codek", "raw", "--set host.codek=raw"}};
  EXPECT_EQ(
      failure(input),
      "my.yaml:1:9: device: \"gpu\" is no device; write auto, cpu, none, lavapipe, or a GPU's index, UUID or name "
      "(firn doctor lists them)\n"
      "my.yaml:2:1: there is no setting \"thread\"; did you mean threads?\n"
      "my.yaml:4:3: there is no setting \"pool.bugdet\"; did you mean pool.budget?\n"
      "my.yaml:5:12: pool.staging: \"16\" is not a size: it has no unit; write it like 16MiB or 1.5GiB\n"
      "my.yaml:7:14: host.placement: \"node:x\" is no placement; write local, node:0, interleave or spread:2,1\n"
      "my.yaml:9:11: mover.worker: \"yes\" is not true or false\n"
      "my.yaml:10:10: threads: \"-1\" is not a whole number from 1 to 1024, or auto\n"
      "FIRN_HOST_BUDGET: host.budget: \"lots\" is not a size: it does not begin with a number; write it like 16MiB or "
      "1.5GiB\n"
      "FIRN_POOL_BUGET: there is no such variable; did you mean FIRN_POOL_BUDGET?\n"
      "--set host.codek=raw: there is no setting \"host.codek\"; did you mean host.codec?");
}

TEST(LoadConfig, RefusesShapesThatAreNotADeployment) {
  const std::pair<const char*, const char*> cases[] = {
      {"threads: 1\nthreads: 2\n", "my.yaml:2:1: threads is here a second time; keep one"},
      {"pool:\n  budget: 1GiB\npool:\n  staging: 1MiB\n", "my.yaml:3:1: pool is here a second time; keep one"},
      {"pool:\n  budget: 1GiB\n  budget: 1GiB\n", "my.yaml:3:3: pool.budget is here a second time; keep one"},
      {"pool.budget: 1GiB\n",
       "my.yaml:1:1: write pool.budget in two lines: \"pool:\", and below it, indented, \"budget: ...\""},
      {"pool: {budget: 1GiB}\npool.budget: 1GiB\n",
       "my.yaml:2:1: write pool.budget in two lines: \"pool:\", and below it, indented, \"budget: ...\""},
      {"pool: 16MiB\n", "my.yaml:1:7: pool holds lines of \"key: value\", nothing else"},
      {"- threads\n", "my.yaml:1:1: a deployment holds lines of \"key: value\", nothing else"},
      {"just words\n", "my.yaml:1:1: a deployment holds lines of \"key: value\", nothing else"},
      {"threads:\n", "my.yaml:1:1: threads has no value; write a whole number from 1 to 1024, or auto"},
      {"threads: [1, 2]\n", "my.yaml:1:10: threads takes one value: a whole number from 1 to 1024, or auto"},
      {"? [a, b]\n: 1\n", "my.yaml:1:3: this key is not a word"},
      {"threads: 1\n---\nthreads: 2\n", "my.yaml:2:1: a second document begins here; a deployment is one"},
      {", threads: 1\n", "my.yaml:1:1: a second document begins here; a deployment is one"},
  };
  for (const auto& [text, message] : cases) EXPECT_EQ(failure(file(text)), message) << text;
}

TEST(LoadConfig, NamesThePlaceOfASyntaxError) {
  EXPECT_EQ(failure(file("pool:\n  budget: [1GiB\n")).substr(0, 8), "my.yaml:");
  EXPECT_EQ(failure(file("pool:\n\tbudget: 1GiB\n")).substr(0, 10), "my.yaml:2:");
  EXPECT_NE(failure(file(std::string("threads: 1\0threads: 2", 21))).find("zero byte"), std::string::npos);
  EXPECT_NE(failure(file(std::string(300 << 10, '#'))).find("bytes"), std::string::npos);
}

TEST(LoadConfig, AcceptsEmptyFilesAndSectionsWhoseLinesAreComments) {
  for (const char* text : {"", "# nothing\n", "---\n", "pool:\n  # budget: 1GiB\nthreads: 2\n", "{}"}) load(file(text));
}

TEST(LoadConfig, StopsListingMistakesAfterAPage) {
  std::string text;
  for (int i = 0; i < 70; ++i) text += "key_" + std::to_string(i) + ": 1\n";
  const std::string message = failure(file(text));
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 50);
  EXPECT_NE(message.find("and 20 more"), std::string::npos);
}

TEST(LoadConfig, ChecksFieldsAgainstEachOther) {
  EXPECT_EQ(failure(file("pool: {budget: 1MiB, staging: 1MiB}\n")),
            "pool.staging: 1MiB leaves no room for slots in pool.budget 1MiB; lower it or write auto");
  EXPECT_EQ(failure(file("pool: {slots: 64, budget: 1MiB, max_budget: 2MiB}\n")),
            "pool.slots: a pool that grows (pool.max_budget) does so by chunks of many slots; set pool.budget instead");
  EXPECT_EQ(load(file("pool: {slots: 64}\n")).config.pool.slots, 64u);
  EXPECT_EQ(failure(file("max_sequence_tokens: 64\n")),
            "pool.max_step_tokens: 256 is more than max_sequence_tokens 64");
}

TEST(LoadConfig, DeviceNoneHasNoHostTier) {
  EXPECT_EQ(failure(file("device: none\nhost: {budget: 1GiB}\n")),
            "host.budget: device none has no bytes to store; write off, or another device");
}

TEST(LoadConfig, WarnsOfWhatIsLegalAndUseless) {
  const auto warnings = [](const char* text) { return load(file(text)).warnings; };
  EXPECT_EQ(warnings("pool: {budget: 2GiB}\nhost: {budget: 1GiB}\n").size(), 1u);
  EXPECT_EQ(warnings("host: {codec: raw}\n"), std::vector<std::string>{"host.codec has no effect: host.budget is off"});
  EXPECT_EQ(warnings("protect: {recent: 4096}\nmax_sequence_tokens: 4096\n").size(), 1u);
  EXPECT_TRUE(warnings("pool: {budget: 1GiB}\nhost: {budget: 2GiB, codec: raw}\n").empty());
  EXPECT_EQ(warnings("quotas: a host=..1MiB\n"),
            std::vector<std::string>{"quotas: what they say of the host has no effect: host.budget is off"});
  EXPECT_EQ(warnings("pool: {budget: 1GiB}\nhost: {budget: 2GiB, hadamard: keys}\n"),
            std::vector<std::string>{"host.hadamard has no effect: host.codec lossless is not q8 or q4"});
  EXPECT_TRUE(
      warnings("pool: {budget: 1GiB}\nhost: {budget: 2GiB, codec: q8, value_codec: q4, hadamard: keys}\n").empty());
}

TEST(Validate, HoldsAConfigurationThatWasNeverTextAgainstTheSameTable) {
  EXPECT_TRUE(validate(Config{}).ok());
  const auto broken = [](auto change) {
    Config config;
    change(config);
    return validate(config).message();
  };
  EXPECT_EQ(broken([](Config& c) { c.device = "gpu"; }),
            "device: \"gpu\" is no device; write auto, cpu, none, lavapipe, or a GPU's index, UUID or name (firn "
            "doctor lists them)");
  EXPECT_EQ(broken([](Config& c) { c.host.codec = "zip"; }),
            "host.codec: \"zip\" is not raw or lossless or q8 or q4 or kvtc or firn");
  EXPECT_EQ(broken([](Config& c) { c.host.value_codec = "q4"; }),
            "host.value_codec: \"q4\" goes with host.codec q8 or q4, not with lossless; leave it out");
  EXPECT_EQ(broken([](Config& c) { c.host.codec = "q8", c.host.value_codec = "q4"; }), "");
  EXPECT_EQ(broken([](Config& c) { c.mover.queue = 0; }),
            "mover.queue: 0 is out of range; write a whole number from 1 to 65536");
  EXPECT_EQ(broken([](Config& c) { c.host.budget_bytes = 1; }),
            "host.budget: 1B is out of range; write a size of at least 64KiB, or off");
  EXPECT_NE(broken([](Config& c) { c.host.placement = "spread:0,0"; }), "");
  EXPECT_NE(broken([](Config& c) { c.host.placement = "spread:1,,1"; }), "");
  EXPECT_NE(broken([](Config& c) { c.host.placement = "spread:"; }), "");
  EXPECT_NE(broken([](Config& c) { c.host.placement = "node:"; }), "");
  EXPECT_NE(broken([](Config& c) { c.host.placement = ""; }), "");
  EXPECT_EQ(broken([](Config& c) { c.host.placement = "node:12"; }), "");
  EXPECT_EQ(broken([](Config& c) { c.threads = 5000, c.max_sequences = 0; }),
            "threads: 5000 is out of range; write a whole number from 1 to 1024, or auto\n"
            "max_sequences: 0 is out of range; write a whole number from 1 to 1048576");
}

// A Kubernetes service called "firn" tells every pod beside it where it is, in variables that begin as ours do.
TEST(Environment, OfAServiceThatIsCalledFirnIsPassedOverWithOneWarning) {
  ConfigInput input;
  for (const char* name :
       {"FIRN_SERVICE_HOST", "FIRN_SERVICE_PORT", "FIRN_SERVICE_PORT_HTTP", "FIRN_SERVICE_PORT_METRICS_2", "FIRN_PORT",
        "FIRN_PORT_8080_TCP", "FIRN_PORT_8080_TCP_ADDR", "FIRN_PORT_8080_TCP_PORT", "FIRN_PORT_8080_TCP_PROTO",
        "FIRN_PORT_53_UDP", "FIRN_PORT_53_UDP_PROTO", "FIRN_PORT_132_SCTP", "FIRN_CACHE_SERVICE_HOST", "FIRN_POOL_PORT",
        "FIRN_POOL_PORT_8080_TCP_ADDR", "FIRN_NAME", "FIRN_ENV_PATH"})
    input.environment[name] = "tcp://10.0.0.1:8080";
  input.environment["FIRN_POOL_BUDGET"] = "2MiB";  // beside them, a setting is a setting
  const Result<LoadedConfig> loaded = load_config(input);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(loaded->config.pool.budget_bytes, 2u << 20);
  ASSERT_EQ(loaded->warnings.size(), 1u);
  EXPECT_NE(loaded->warnings[0].find("FIRN_CACHE_SERVICE_HOST and 16 more"), std::string::npos) << loaded->warnings[0];
  // What only resembles them is a slip, and says so.
  for (const char* name : {"FIRN_SERVICE", "FIRN_PORTS", "FIRN_PORT_TCP", "FIRN_PORT_8080", "FIRN_PORT_8080_TCP_NAME",
                           "FIRN_POOL_BUDGT", "FIRN_8080_TCP", "FIRN_ADDR"}) {
    ConfigInput slip;
    slip.environment[name] = "1";
    EXPECT_FALSE(load_config(slip).ok()) << name;
  }
  for (const Setting& setting : settings_table()) {
    ConfigInput known;  // no setting is ever passed over, whatever it is called one day
    known.environment[environment_name(setting.key)] = format_value(setting, Config{});
    const Result<LoadedConfig> read = load_config(known);
    ASSERT_TRUE(read.ok()) << setting.key << ": " << read.status().message();
    for (const ConfigSetting& one : read->settings) {
      if (one.key != setting.key) continue;
      EXPECT_EQ(one.origin.kind, ConfigOrigin::Kind::kEnvironment) << one.key;
    }
  }
}

// "auto" is a share of the machine. Whoever writes 0 wants none, or made a slip.
TEST(Numbers, ZeroIsNotAuto) {
  std::size_t refused = 0;
  for (const Setting& setting : settings_table()) {
    if (setting.zero.empty()) continue;
    for (const char* zero : {"0", "0B", "0 MiB"}) {
      if (setting.kind == Setting::Kind::kCount && zero != std::string("0")) continue;
      ConfigInput input;
      input.overrides = {{std::string(setting.key), zero, "--set"}};
      const Result<LoadedConfig> loaded = load_config(input);
      EXPECT_EQ(loaded.ok(), setting.zero == "off") << setting.key << " " << zero;
      if (loaded.ok()) continue;
      EXPECT_NE(loaded.status().message().find("or " + std::string(setting.zero)), std::string::npos)
          << loaded.status().message();
      ++refused;
    }
  }
  EXPECT_GT(refused, 4u);
}

// A number that no such setting may be is refused with the key's name, wherever it stands, and never cast.
TEST(Numbers, ThatNoSettingMayBeAreRefusedByName) {
  std::size_t refused = 0;
  for (const Setting& setting : settings_table()) {
    if (setting.kind != Setting::Kind::kCount && setting.kind != Setting::Kind::kBytes) continue;
    const std::string key(setting.key), section = key.substr(0, key.find('.')),
                                        name = key.find('.') == std::string::npos ? "" : key.substr(key.find('.') + 1);
    for (const char* bad : {"1e308", "-1", "-1B", "9223372036854775808GiB", "18446744073709551616", "1e400", ".nan",
                            ".inf", "NaN", "[1]", "{a: 1}", "0x10000000000000000"}) {
      ConfigInput input;
      input.file = "c.yaml";
      input.text = name.empty() ? key + ": " + bad + "\n" : section + ":\n  " + name + ": " + bad + "\n";
      const Result<LoadedConfig> loaded = load_config(input);
      EXPECT_FALSE(loaded.ok()) << input.text;
      if (loaded.ok()) continue;
      EXPECT_NE(loaded.status().message().find(key), std::string::npos) << loaded.status().message();
      EXPECT_NE(loaded.status().message().find("c.yaml:"), std::string::npos) << loaded.status().message();
      ++refused;
    }
  }
  EXPECT_GT(refused, 100u);
}

TEST(Quotas, AreOneLineOfNamesAndRanges) {
  const auto quotas =
      parse_quotas(" alice device=2GiB..8GiB  host=..64GiB ;bob device=1MiB..; a/b:c@d device=..4096B;");
  ASSERT_TRUE(quotas.ok()) << quotas.status().message();
  ASSERT_EQ(quotas->size(), 3u);
  const auto& [alice, bob, other] = std::tie((*quotas)[0], (*quotas)[1], (*quotas)[2]);
  EXPECT_EQ(alice.name_space, "alice");
  EXPECT_EQ(alice.quota.device_floor, 2ull << 30);
  EXPECT_EQ(alice.quota.device_ceiling, 8ull << 30);
  EXPECT_EQ(alice.quota.host_floor, 0u);
  EXPECT_EQ(alice.quota.host_ceiling, 64ull << 30);
  EXPECT_EQ(bob.quota.device_floor, 1u << 20);
  EXPECT_EQ(bob.quota.device_ceiling, 0u);
  EXPECT_EQ(other.name_space, "a/b:c@d");
  EXPECT_EQ(other.quota.device_ceiling, 4096u);
  EXPECT_TRUE(parse_quotas("")->empty());
}

TEST(Quotas, AMistakeIsNamed) {
  const auto wrong = [](const char* text) { return parse_quotas(text).status().message(); };
  EXPECT_NE(wrong("alice").find("alice has no range; write NAME device=FLOOR..CEILING"), std::string::npos);
  EXPECT_NE(wrong("device=..1GiB").find("\"device=..1GiB\" is no name"), std::string::npos);
  EXPECT_NE(wrong("a device=..1GiB;; b device=..1GiB").find("\"\" is no name"), std::string::npos);
  EXPECT_NE(wrong("a disk=..1GiB").find("a: \"disk=..1GiB\" is no range"), std::string::npos);
  EXPECT_NE(wrong("a device=1GiB").find("is no range"), std::string::npos);
  EXPECT_NE(wrong("a device=..").find("is no range"), std::string::npos);
  EXPECT_NE(wrong("a device=..5").find("a: \"5\" is not a size"), std::string::npos) << wrong("a device=..5");
  EXPECT_NE(wrong("a device=0B..").find("0 bytes are no quota"), std::string::npos);
  EXPECT_EQ(wrong("a device=2GiB..1GiB"), "a: the floor 2GiB is above the ceiling 1GiB");
  EXPECT_EQ(wrong("a device=..1GiB device=1MiB.."), "a: device is here a second time; keep one");
  EXPECT_EQ(wrong("a device=..1GiB; a host=..1GiB"), "a is here a second time; keep one");
  EXPECT_NE(wrong((std::string(kMaxQuotaName + 1, 'n') + " device=..1GiB").c_str()).find("is no name"),
            std::string::npos);
  ConfigInput input;
  input.file = "my.yaml";
  input.text = "quotas: >-\n  gold device=1MiB..\n  trial\n";
  EXPECT_NE(load_config(input).status().message().find("my.yaml:1:9: quotas: gold: \"trial\" is no range"),
            std::string::npos)
      << load_config(input).status().message();
}

TEST(SettingsTable, IsConsistent) {
  for (const Setting& entry : settings_table()) {
    EXPECT_EQ(find_setting(entry.key), &entry) << entry.key << " is there twice";
    EXPECT_LE(std::count(entry.key.begin(), entry.key.end(), '.'), 1) << entry.key;
    if (entry.field.index() == 1) {
      EXPECT_LE(entry.max, ~0u) << entry.key;
    }
    Config config;
    EXPECT_TRUE(check_value(entry, config).ok()) << entry.key << ": the default is not allowed";
    const std::string text = format_value(entry, config);
    EXPECT_TRUE(set_value(entry, text, config).ok()) << entry.key << ": " << text;
    EXPECT_EQ(format_value(entry, config), text) << entry.key;
    const auto others = other_environment_names();
    EXPECT_EQ(std::find(others.begin(), others.end(), environment_name(entry.key)), others.end()) << entry.key;
  }
}

TEST(LoadConfigFile, SaysWhyAFileCannotBeRead) {
  const auto loaded = load_config_file("/no/such/file.yaml");
  ASSERT_FALSE(loaded.ok());
  EXPECT_EQ(loaded.status().code(), Code::kInvalidArgument);
  EXPECT_EQ(loaded.status().message(), "/no/such/file.yaml: cannot be read (No such file or directory)");
  EXPECT_FALSE(load_config_file("/").ok());
}

}  // namespace
}  // namespace firn
