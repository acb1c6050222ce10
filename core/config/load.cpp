// Reads a deployment from its four sources, weakest first, and reports every mistake at once: somebody who mends a file
// should not have to run it once per line.
#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <set>
#include <sstream>

#include "core/config/nearest.h"
#include "core/config/settings.h"

extern char** environ;

namespace firn {
namespace {

constexpr std::size_t kMaxFileBytes = 256 << 10;  // a deployment is a page; more is the wrong file
constexpr std::size_t kMaxProblems = 50;

class Problems {
 public:
  void add(std::string_view where, std::string_view what) {
    if (++count_ > kMaxProblems) return;
    text_ += fmt::format("{}{}: {}", text_.empty() ? "" : "\n", where, what);
  }
  Status status() const {
    if (count_ == 0) return {};
    const std::string more = count_ > kMaxProblems ? fmt::format("\nand {} more", count_ - kMaxProblems) : "";
    return Status(Code::kInvalidArgument, text_ + more);
  }

 private:
  std::size_t count_ = 0;
  std::string text_;
};

std::vector<std::string> known_keys() {
  std::vector<std::string> keys;
  for (const Setting& setting : settings_table()) keys.emplace_back(setting.key);
  return keys;
}

bool is_section(std::string_view name) {
  for (const Setting& setting : settings_table())
    if (setting.key.starts_with(std::string(name) + ".")) return true;
  return false;
}

std::string unknown_key(std::string_view key) {
  constexpr std::size_t kMaxShown = 80;
  return fmt::format("there is no setting \"{}\"; did you mean {}?", key.substr(0, kMaxShown),
                     nearest(key, known_keys()));
}

// What has been read so far: values, and where each came from.
struct Reading {
  LoadedConfig loaded;
  Problems problems;

  Reading() {
    for (const Setting& setting : settings_table())
      loaded.settings.push_back({std::string(setting.key), {}, std::string(setting.description), {}});
  }
  void set(const Setting& setting, std::string_view text, ConfigOrigin::Kind kind, const std::string& where) {
    const Status status = set_value(setting, text, loaded.config);
    if (!status.ok()) return problems.add(where, fmt::format("{}: {}", setting.key, status.message()));
    for (ConfigSetting& entry : loaded.settings)
      if (entry.key == setting.key) entry.origin = {kind, where};
  }
};

// Where documents begin. YAML::Load reads the first and drops the rest without a word, and YAML::LoadAll never returns
// from some texts (one that begins with a comma): it takes a null document and stays where it is.
class DocumentStarts : public YAML::EventHandler {
 public:
  std::vector<YAML::Mark> marks;
  void OnDocumentStart(const YAML::Mark& mark) override { marks.push_back(mark); }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t, const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}
};

class FileReader {
 public:
  FileReader(std::string file, Reading& reading) : file_(std::move(file)), reading_(reading) {}

  void read(const std::string& text) {
    if (text.size() > kMaxFileBytes)
      return reading_.problems.add(file_,
                                   fmt::format("has more than {} bytes, which no deployment has", kMaxFileBytes));
    if (text.find('\0') != std::string::npos)  // the parser would take it for the end and the rest for nothing
      return reading_.problems.add(file_, "holds a zero byte, so it is not a YAML text");
    try {
      DocumentStarts starts;
      std::istringstream stream(text);
      YAML::Parser parser(stream);
      while (starts.marks.size() < 2 && parser.HandleNextDocument(starts)) {
      }
      if (starts.marks.size() > 1)
        return reading_.problems.add(place(starts.marks[1]), "a second document begins here; a deployment is one");
      const YAML::Node document = YAML::Load(text);
      if (!document.IsNull()) read_map(document, "");
    } catch (const YAML::Exception& error) {  // the parser speaks in exceptions; they end here
      reading_.problems.add(place(error.mark), error.msg);
    }
  }

 private:
  std::string place(const YAML::Mark& mark) const {
    if (mark.is_null()) return file_;
    return fmt::format("{}:{}:{}", file_, mark.line + 1, mark.column + 1);
  }

  void read_map(const YAML::Node& map, const std::string& section) {
    const std::string what = section.empty() ? "a deployment" : section;
    if (!map.IsMap())
      return reading_.problems.add(place(map.Mark()),
                                   fmt::format("{} holds lines of \"key: value\", nothing else", what));
    for (const auto& pair : map) {
      if (!pair.first.IsScalar()) {
        reading_.problems.add(place(pair.first.Mark()), "this key is not a word");
        continue;
      }
      const std::string key = section.empty() ? pair.first.Scalar() : section + "." + pair.first.Scalar();
      const std::string where = place(pair.first.Mark());
      if (section.empty() && key.find('.') != std::string::npos) {
        // "pool.budget: 1GiB" would be a second spelling of one setting; there is only the nested one.
        reading_.problems.add(
            where, find_setting(key) == nullptr
                       ? unknown_key(key)
                       : fmt::format("write {} in two lines: \"{}:\", and below it, indented, \"{}: ...\"", key,
                                     key.substr(0, key.find('.')), key.substr(key.find('.') + 1)));
      } else if (!seen_.insert(key).second) {
        reading_.problems.add(where, fmt::format("{} is here a second time; keep one", key));
      } else if (section.empty() && is_section(key)) {
        if (!pair.second.IsNull())
          read_map(pair.second, key);  // a section whose lines are all comments is an empty one
      } else {
        read_value(key, where, pair.second);
      }
    }
  }

  void read_value(const std::string& key, const std::string& where, const YAML::Node& value) {
    const Setting* setting = find_setting(key);
    if (setting == nullptr) return reading_.problems.add(where, unknown_key(key));
    if (value.IsNull())
      return reading_.problems.add(where, fmt::format("{} has no value; write {}", key, describe_values(*setting)));
    if (!value.IsScalar())
      return reading_.problems.add(place(value.Mark()),
                                   fmt::format("{} takes one value: {}", key, describe_values(*setting)));
    reading_.set(*setting, value.Scalar(), ConfigOrigin::Kind::kFile, place(value.Mark()));
  }

  const std::string file_;
  Reading& reading_;
  std::set<std::string> seen_;
};

void read_environment(const std::map<std::string, std::string>& environment, Reading& reading) {
  std::vector<std::string> names;
  for (const Setting& setting : settings_table()) names.push_back(environment_name(setting.key));
  const auto others = other_environment_names();
  std::vector<std::string> of_services;
  for (const auto& [name, value] : environment) {
    if (std::find(others.begin(), others.end(), name) != others.end()) continue;
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end() && is_service_environment_name(name)) {
      of_services.push_back(name);
      continue;
    }
    if (found == names.end()) {
      reading.problems.add(name, fmt::format("there is no such variable; did you mean {}?", nearest(name, names)));
      continue;
    }
    reading.set(settings_table()[static_cast<std::size_t>(found - names.begin())], value,
                ConfigOrigin::Kind::kEnvironment, name);
  }
  if (!of_services.empty())
    reading.loaded.warnings.push_back(fmt::format(
        "{}{}: passed over, since that is what Kubernetes sets in every pod beside a service called firn; "
        "enableServiceLinks: false keeps it out",
        of_services[0], of_services.size() == 1 ? "" : fmt::format(" and {} more", of_services.size() - 1)));
}

void read_overrides(const std::vector<ConfigInput::Override>& overrides, Reading& reading) {
  for (const ConfigInput::Override& override_ : overrides) {
    const Setting* setting = find_setting(override_.key);
    if (setting == nullptr)
      reading.problems.add(override_.where, unknown_key(override_.key));
    else
      reading.set(*setting, override_.value, ConfigOrigin::Kind::kOverride, override_.where);
  }
}

// No more than is looked at: a path may be a device or a pipe that has no end.
Result<std::string> read_file(const std::string& path) {
  std::string text(kMaxFileBytes + 1, '\0');
  std::FILE* const file = std::fopen(path.c_str(), "rb");
  if (file != nullptr) text.resize(std::fread(text.data(), 1, text.size(), file));
  const int error = file == nullptr || std::ferror(file) != 0 ? errno : 0;
  if (file != nullptr) std::fclose(file);
  if (error != 0)
    return Status(Code::kInvalidArgument, fmt::format("{}: cannot be read ({})", path, std::strerror(error)));
  return text;
}

bool was_set(const LoadedConfig& loaded, std::string_view key) {
  for (const ConfigSetting& setting : loaded.settings)
    if (setting.key == key) return setting.origin.kind != ConfigOrigin::Kind::kDefault;
  return false;
}

// Legal, and probably not what somebody wants.
std::vector<std::string> find_warnings(const LoadedConfig& loaded) {
  const Config& config = loaded.config;
  std::vector<std::string> warnings;
  const std::uint64_t host = config.host.budget_bytes, pool = config.pool.budget_bytes;
  if (host != 0 && pool != 0 && host < pool)
    warnings.push_back(
        fmt::format("host.budget {} is smaller than pool.budget {}: the host tier will forget blocks before "
                    "the pool does, so it will rarely help",
                    format_bytes(host), format_bytes(pool)));
  if (host == 0)
    for (const std::string_view key : {"host.codec", "host.placement", "host.huge_pages"})
      if (was_set(loaded, key)) warnings.push_back(fmt::format("{} has no effect: host.budget is off", key));
  if (host != 0 && config.host.codec != "q8" && config.host.codec != "q4" && config.host.hadamard != "both")
    warnings.push_back(fmt::format("host.hadamard has no effect: host.codec {} is not q8 or q4", config.host.codec));
  if (host == 0 && config.quotas.find("host=") != std::string::npos)
    warnings.push_back("quotas: what they say of the host has no effect: host.budget is off");
  if (config.protect.recent >= config.max_sequence_tokens)
    warnings.push_back(
        fmt::format("protect.recent {} covers whole sequences (max_sequence_tokens {}): nothing ever gets cold",
                    config.protect.recent, config.max_sequence_tokens));
  return warnings;
}

}  // namespace

Status validate(const Config& config) {
  Problems problems;
  for (const Setting& setting : settings_table()) {
    const Status status = check_value(setting, config);
    if (!status.ok()) problems.add(setting.key, status.message());
  }
  if (config.host.value_codec != "same" && config.host.codec != "q8" && config.host.codec != "q4")
    problems.add("host.value_codec", fmt::format("\"{}\" goes with host.codec q8 or q4, not with {}; leave it out",
                                                 config.host.value_codec, config.host.codec));
  const Config::Pool& pool = config.pool;
  if (pool.max_budget_bytes != 0 && pool.max_budget_bytes < pool.budget_bytes)
    problems.add("pool.max_budget", fmt::format("{} is less than pool.budget {}; raise it, or leave it out",
                                                format_bytes(pool.max_budget_bytes), format_bytes(pool.budget_bytes)));
  if (pool.max_budget_bytes != 0 && pool.slots != 0)
    problems.add("pool.slots",
                 "a pool that grows (pool.max_budget) does so by chunks of many slots; set pool.budget instead");
  if (pool.max_budget_bytes != 0 && pool.budget_bytes == 0)
    problems.add("pool.max_budget", "needs a size to start from: set pool.budget");
  if (pool.budget_bytes != 0 && pool.staging_bytes >= pool.budget_bytes)
    problems.add("pool.staging", fmt::format("{} leaves no room for slots in pool.budget {}; lower it or write auto",
                                             format_bytes(pool.staging_bytes), format_bytes(pool.budget_bytes)));
  if (pool.max_step_tokens > config.max_sequence_tokens)
    problems.add("pool.max_step_tokens", fmt::format("{} is more than max_sequence_tokens {}", pool.max_step_tokens,
                                                     config.max_sequence_tokens));
  if (config.device == "none" && config.host.budget_bytes != 0)
    problems.add("host.budget", "device none has no bytes to store; write off, or another device");
  return problems.status();
}

Result<LoadedConfig> load_config(const ConfigInput& input) {
  Reading reading;
  FileReader(input.file.empty() ? "config" : input.file, reading).read(input.text);
  read_environment(input.environment, reading);
  read_overrides(input.overrides, reading);
  FIRN_TRY(reading.problems.status());
  FIRN_TRY(validate(reading.loaded.config));
  LoadedConfig loaded = std::move(reading.loaded);
  for (std::size_t i = 0; i < loaded.settings.size(); ++i)
    loaded.settings[i].value = format_value(settings_table()[i], loaded.config);
  for (std::string& warning : find_warnings(loaded)) loaded.warnings.push_back(std::move(warning));
  return loaded;
}

std::vector<ConfigSetting> settings_of(const Config& config) {
  std::vector<ConfigSetting> settings = Reading().loaded.settings;
  for (std::size_t i = 0; i < settings.size(); ++i) settings[i].value = format_value(settings_table()[i], config);
  return settings;
}

std::map<std::string, std::string> firn_environment() {
  std::map<std::string, std::string> found;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::size_t equals = text.find('=');
    if (text.starts_with("FIRN_") && equals != std::string_view::npos)
      found.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return found;
}

Result<LoadedConfig> load_config_file(const std::string& path, const std::vector<ConfigInput::Override>& overrides) {
  ConfigInput input;
  input.file = path;
  if (!path.empty()) {
    FIRN_ASSIGN(input.text, read_file(path));
  }
  input.environment = firn_environment();
  input.overrides = overrides;
  return load_config(input);
}

}  // namespace firn
