// firn_bench: every benchmark of this folder, with what they ran on in the JSON's context. `./run bench` writes
// build/release/bench.json; any Google Benchmark flag works.
#include <benchmark/benchmark.h>

#include <string>

#include "bench/machine_context.h"

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  for (const auto& [key, value] : firn::bench::machine_context()) benchmark::AddCustomContext(key, value);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
