#include "sim/sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <thread>

#include "core/base/file_out.h"
#include "firn/config.h"
#include "sim/report.h"
#include "sim/workload.h"

namespace firn::sim {
namespace {

// What a sweep keeps. A line is "name<TAB>result"; each new state is another file, which takes the old one's place when
// it is whole, so that a kill or a full disk leaves one of the two.
class State {
 public:
  Status open(const std::string& file) {
    file_ = file;
    std::ifstream in(file, std::ios::binary);
    for (std::string line; std::getline(in, line);) {
      const std::size_t tab = line.find('\t');
      const bool ours = tab != std::string::npos && line.find("{\"", tab) == tab + 1;
      if (in.eof() && (ours || !known_.empty())) break;  // a half line of somebody who was killed
      if (!ours)                                         // whatever it is, it is not ours to write over
        return Status(Code::kInvalidArgument,
                      file + ": holds something that no sweep wrote; give another file to --resume");
      known_[line.substr(0, tab)] = line.substr(tab + 1);
    }
    if (in.bad()) return Status(Code::kIo, file + ": cannot be read");
    return FileOut::create(file, Readers::kAnyone).status();  // a bad name is told before the first run
  }
  const std::string* find(const std::string& name) const {
    const auto it = known_.find(name);
    return it == known_.end() ? nullptr : &it->second;
  }
  Status add(const std::string& name, const std::string& line) {
    known_[name] = line;
    return write();
  }

 private:
  Status write() const {
    FIRN_ASSIGN(FileOut out, FileOut::create(file_, Readers::kAnyone));
    for (const auto& [name, line] : known_) FIRN_TRY(out.write(name + '\t' + line + '\n'));
    return out.finish();
  }
  std::string file_;
  std::map<std::string, std::string> known_;
};

Result<double> number_of(const std::string& key, const std::string& value, double least, double most) {
  double number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc() || end != value.data() + value.size() || !(number >= least && number <= most))
    return Status(Code::kInvalidArgument,
                  fmt::format("--sweep {}={}: a number from {} to {} is expected", key, value, least, most));
  return number;
}

Result<std::uint64_t> bytes_of(const std::string& key, const std::string& value) {
  if (value == "0") return std::uint64_t{0};
  const Result<std::uint64_t> bytes = parse_bytes(value);
  if (!bytes.ok()) return bytes.status().with_context("--sweep " + key);
  return bytes;
}

}  // namespace

Result<SweepResult> run_sweep(const std::vector<SweepPoint>& points, std::size_t threads, const std::string& state_file,
                              const Tick& tick) {
  SweepResult result;
  result.lines.resize(points.size());
  std::vector<std::size_t> open;
  State state;
  if (!state_file.empty()) FIRN_TRY(state.open(state_file));
  for (std::size_t i = 0; i < points.size(); ++i) {
    const std::string* line = state.find(points[i].name);
    if (line == nullptr) {
      open.push_back(i);
    } else {
      result.lines[i] = *line;
      ++result.reused;
    }
  }
  std::mutex mutex;
  std::atomic<std::size_t> next{0};
  std::atomic<bool> stop{false};
  std::optional<Status> failure;
  std::vector<std::uint64_t> bytes(open.size());  // of each run, as far as it is
  std::uint64_t run_bytes = 0;
  const auto work = [&] {
    for (std::size_t at; !stop && (at = next++) < open.size();) {
      const Tick one_at_a_time = [&, at](const Progress& progress) {
        if (stop) return false;
        if (!tick) return true;
        std::lock_guard lock(mutex);
        bytes[at] = progress.packed_read, run_bytes = progress.packed_size;
        Progress all = progress;
        all.packed_read = std::accumulate(bytes.begin(), bytes.end(), std::uint64_t{0});
        all.packed_size = progress.packed_size * open.size();
        if (!tick(all)) stop = true;
        return !stop;
      };
      const Result<std::string> line = points[open[at]].result(one_at_a_time);
      std::lock_guard lock(mutex);
      if (stop) return;  // what it has may be a part
      if (!line.ok()) {
        if (!failure) failure = line.status().with_context(points[open[at]].name);
        stop = true;
        return;
      }
      result.lines[open[at]] = *line;
      bytes[at] = run_bytes;
      ++result.done;
      if (state_file.empty()) continue;
      if (Status kept = state.add(points[open[at]].name, *line); !kept.ok()) {
        failure = std::move(kept);
        stop = true;
        return;
      }
    }
  };
  {
    std::vector<std::jthread> others;
    for (std::size_t i = 1; i < std::min(threads, open.size()); ++i) others.emplace_back(work);
    work();
  }
  if (failure) return *failure;
  result.complete = !stop;
  return result;
}

Result<SweepAxis> parse_axis(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size())
    return Status(Code::kInvalidArgument,
                  fmt::format("--sweep {}: write KEY=VALUE,VALUE such as host.budget=0,8GiB,16GiB", text));
  SweepAxis axis{text.substr(0, equals), {}};
  for (std::size_t from = equals + 1; from <= text.size();) {
    const std::size_t to = std::min(text.find(',', from), text.size());
    axis.values.push_back(text.substr(from, to - from));
    from = to + 1;
  }
  return axis;
}

Status set_option(EngineOptions& options, const std::string& key, const std::string& value) {
  std::uint64_t* bytes = key == "host.budget"   ? &options.host_bytes
                         : key == "pool.budget" ? &options.pool_bytes
                         : key == "disk.budget" ? &options.disk_bytes
                                                : nullptr;
  if (bytes != nullptr) {
    FIRN_ASSIGN(*bytes, bytes_of(key, value));
    return {};
  }
  if (key == "policy" || key == "host-policy") {
    FIRN_TRY(make_policy(value, 1).status());
    (key == "policy" ? options.policy : options.host_policy) = value;
    return {};
  }
  struct Number {
    const char* key;
    double* value;
    double least, most;
  };
  for (const Number& number :
       {Number{"codec-ratio", &options.codec_ratio, 1e-3, 1e3}, Number{"time-scale", &options.time_scale, 1e-6, 1e6},
        Number{"watermark", &options.watermark, 0, 0.99}})
    if (key == number.key) {
      FIRN_ASSIGN(*number.value, number_of(key, value, number.least, number.most));
      return {};
    }
  if (key == "step-tokens") {
    FIRN_ASSIGN(const double tokens, number_of(key, value, 1, 1e6));
    options.max_step_tokens = static_cast<std::uint32_t>(tokens);
    return {};
  }
  if (key == "swap" || key == "second-use" || key == "exclusive") {
    if (value != "true" && value != "false")
      return Status(Code::kInvalidArgument, fmt::format("--sweep {}={}: true or false", key, value));
    (key == "swap"        ? options.swap
     : key == "exclusive" ? options.exclusive
                          : options.admit_second_use) = value == "true";
    return {};
  }
  return Status(Code::kInvalidArgument,
                fmt::format("--sweep: there is no key \"{}\"; there are: host.budget, pool.budget, disk.budget, "
                            "policy, host-policy, codec-ratio, time-scale, watermark, step-tokens, swap, second-use, "
                            "exclusive",
                            key));
}

namespace {

std::string name_of(const std::vector<SweepAxis>& axes, const std::vector<std::string>& values) {
  std::string name;
  for (std::size_t i = 0; i < axes.size(); ++i)
    name += fmt::format("{}{}={}", i == 0 ? "" : " ", axes[i].key, values[i]);
  return name;
}

// What else a result depends on: a state file of another trace or device must not be taken for this one's.
std::string origin_of(const std::string& path, const TraceOptions& trace) {
  std::error_code error;
  const std::uintmax_t bytes = is_workload(path) ? 0 : std::filesystem::file_size(path, error);
  return fmt::format("{} {} {} {} {} {}", path, error ? 0 : bytes, to_string(trace.format), trace.block_tokens,
                     trace.max_requests, trace.strict);
}

std::string text_of(const EngineOptions& o) {
  const DeviceSpec& d = o.device;
  return fmt::format(
      "{} {} {} {} {} {} {} {} {} {} {} {} {} | {} {} {} {} {} {} {} {} | {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} "
      "{}",
      d.name, d.flops, d.memory_bandwidth, d.memory_bytes, d.prefill_efficiency, d.decode_efficiency, d.step_overhead_s,
      d.host_link, d.disk_link, d.price_per_hour, d.count, d.device_link, o.model.active_parameters, o.model.name,
      o.model.parameters, o.model.weight_bytes, o.model.layers, o.model.heads, o.model.kv_heads, o.model.head_dim,
      o.model.kv_element_bytes, o.pool_bytes, o.host_bytes, o.disk_bytes, o.policy, o.host_policy, o.exclusive,
      o.codec_ratio, o.codec_bytes_per_s, o.max_step_tokens, o.max_sequences, o.watermark, o.swap, o.admit_second_use,
      o.time_scale, o.samples, o.codec_source);
}

}  // namespace

Result<std::vector<SweepPoint>> engine_points(const std::string& path, const TraceOptions& trace,
                                              const EngineOptions& options, const std::vector<SweepAxis>& axes) {
  std::vector<SweepPoint> points;
  for (const std::vector<std::string>& values : combinations(axes)) {
    EngineOptions point = options;
    for (std::size_t i = 0; i < axes.size(); ++i) FIRN_TRY(set_option(point, axes[i].key, values[i]));
    points.push_back({fmt::format("{} | {} | {}", name_of(axes, values), origin_of(path, trace), text_of(point)),
                      [path, trace, point](const Tick& tick) -> Result<std::string> {
                        FIRN_ASSIGN(const EngineResult result, run_engine(path, trace, point, tick));
                        return nlohmann::ordered_json::parse(report_json(point, result)).dump();
                      }});
  }
  return points;
}

Result<std::vector<SweepPoint>> bookkeeping_points(const std::string& path, const TraceOptions& trace,
                                                   const BookkeepingOptions& options,
                                                   const std::vector<SweepAxis>& axes) {
  std::vector<SweepPoint> points;
  for (const std::vector<std::string>& values : combinations(axes)) {
    BookkeepingOptions point = options;
    for (std::size_t i = 0; i < axes.size(); ++i) {
      if (axes[i].key == "policy") {
        point.policy = values[i];
      } else if (axes[i].key == "capacity-blocks") {
        FIRN_ASSIGN(const double blocks, number_of(axes[i].key, values[i], 1, 1e9));
        point.tier_blocks = {static_cast<std::uint32_t>(blocks)};
      } else {
        return Status(Code::kInvalidArgument,
                      fmt::format("--sweep {}: without a clock there are policy and capacity-blocks", axes[i].key));
      }
    }
    FIRN_TRY(Bookkeeping::create(point).status());
    points.push_back({fmt::format("{} | {} | {} {}", name_of(axes, values), origin_of(path, trace), point.policy,
                                  fmt::join(point.tier_blocks, ",")),
                      [path, trace, point](const Tick& tick) -> Result<std::string> {
                        FIRN_ASSIGN(const BookkeepingResult result, run_bookkeeping(path, trace, point, tick));
                        const Counts& c = result.counts;
                        const auto share = [](std::uint64_t part, std::uint64_t all) {
                          return all == 0 ? 0 : static_cast<double>(part) / static_cast<double>(all);
                        };
                        return nlohmann::ordered_json{{"policy", point.policy},
                                                      {"tiers", point.tier_blocks},
                                                      {"blocks", c.blocks},
                                                      {"access_hits", c.access_hits},
                                                      {"member_hits", c.member_hits},
                                                      {"prefix_hits", c.prefix_hits},
                                                      {"hit_tokens", c.hit_tokens},
                                                      {"input_tokens", c.input_tokens},
                                                      {"promotions", c.promotions},
                                                      {"demotions", c.demotions},
                                                      {"drops", c.drops},
                                                      {"prefix_ratio", share(c.prefix_hits, c.blocks)},
                                                      {"token_ratio", share(c.hit_tokens, c.input_tokens)},
                                                      {"access_ratio", share(c.access_hits, c.blocks)}}
                            .dump();
                      }});
  }
  return points;
}

std::vector<std::vector<std::string>> combinations(const std::vector<SweepAxis>& axes) {
  std::vector<std::vector<std::string>> all = {{}};
  for (const SweepAxis& axis : axes) {
    std::vector<std::vector<std::string>> longer;
    for (const std::vector<std::string>& before : all)
      for (const std::string& value : axis.values) {
        longer.push_back(before);
        longer.back().push_back(value);
      }
    all = std::move(longer);
  }
  return all;
}

}  // namespace firn::sim
