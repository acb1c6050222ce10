// firn_bench: every benchmark of this folder, with what they ran on in the JSON's context. `./run bench` writes
// build/release/bench.json; any Google Benchmark flag works. --device D measures a Vulkan device, and only that unless
// a --benchmark_filter says otherwise. Exit code 1 where something was quicker than its limit.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "bench/anchors.h"
#include "bench/device_bench.h"
#include "bench/machine_context.h"

namespace {

constexpr std::string_view kDevice = "--device";

// Takes --device D or --device=D out of the arguments.
std::string take_device(std::vector<char*>& arguments) {
  const char* environment = std::getenv("FIRN_BENCH_DEVICE");
  std::string device = environment != nullptr ? environment : "";
  for (std::size_t i = 1; i < arguments.size(); ++i) {
    const std::string_view argument = arguments[i];
    if (!argument.starts_with(kDevice)) continue;
    if (argument == kDevice && i + 1 < arguments.size()) {
      device = arguments[i + 1];
      arguments.erase(arguments.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    } else if (argument.substr(kDevice.size()).starts_with("=")) {
      device = argument.substr(kDevice.size() + 1);
    } else {
      continue;
    }
    arguments.erase(arguments.begin() + static_cast<std::ptrdiff_t>(i--));
  }
  return device;
}

bool has_filter(const std::vector<char*>& arguments) {
  for (const std::string_view argument : arguments)
    if (argument.starts_with("--benchmark_filter")) return true;
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<char*> arguments(argv, argv + argc);
  const std::string device = take_device(arguments);
  std::string only_device = "--benchmark_filter=^BM_Device";
  if (!device.empty() && !has_filter(arguments)) arguments.push_back(only_device.data());
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 2;
  for (const auto& [key, value] : firn::bench::machine_context()) benchmark::AddCustomContext(key, value);
  if (!device.empty() && !firn::bench::register_device_benchmarks(device)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  firn::bench::close_device();
  benchmark::Shutdown();
  return firn::bench::any_beyond_its_limit() ? 1 : 0;
}
