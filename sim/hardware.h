// hardware.h: what a machine can do and what a model asks of it: the few numbers the timing model needs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "firn/status.h"

namespace firn::sim {

// A device file: configs/devices/*.yaml; docs/simulate.md has every key.
struct DeviceSpec {
  std::string name;
  double flops = 0, memory_bandwidth = 0;  // a second
  std::uint64_t memory_bytes = 0;
  double prefill_efficiency = 0.5, decode_efficiency = 0.65;
  double step_overhead_s = 250e-6;
  double host_link = 0, disk_link = 0;  // bytes a second, each way
  double price_per_hour = 0;
};
// A name such as rtx4090 (looked for in configs/devices of `folders`) or a path. kInvalidArgument says what is missing.
Result<DeviceSpec> load_device(const std::string& name, const std::vector<std::string>& folders);

struct ModelShape {
  std::string name;
  double parameters = 0;
  double weight_bytes = 0;  // of all weights
  std::uint32_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  std::uint32_t kv_element_bytes = 2;
  std::uint64_t token_bytes() const { return std::uint64_t{2} * layers * kv_heads * head_dim * kv_element_bytes; }
};
// llama-3.1-8b, llama-3.1-70b, qwen3-8b, smollm2-135m, or a path to a Hugging Face config.json.
Result<ModelShape> load_model_shape(const std::string& name);

}  // namespace firn::sim
