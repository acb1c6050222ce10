// hardware.h: what a machine can do and what a model asks of it: the few numbers the timing model needs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "firn/model.h"
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
  // Dollars an hour of a GiB, where the file does not say: roughly what clouds ask for memory and local flash. Assumed.
  double host_gib_per_hour = 0.005, disk_gib_per_hour = 0.0002;
};
// A name such as rtx4090 (looked for in configs/devices of `folders`) or a path. kInvalidArgument says what is missing.
Result<DeviceSpec> load_device(const std::string& name, const std::vector<std::string>& folders);

struct ModelShape {
  std::string name;
  double parameters = 0;
  double weight_bytes = 0;  // of all weights
  std::uint32_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  std::uint32_t kv_element_bytes = 2;
  std::vector<GroupSpec> groups = {};  // empty: every layer sees everything
  // What a token is charged in a run; 0: every layer's bytes. Less where windows let go of old tokens.
  std::uint64_t charged_token_bytes = 0;

  std::uint64_t all_layers_token_bytes() const {
    return std::uint64_t{2} * layers * kv_heads * head_dim * kv_element_bytes;
  }
  std::uint64_t token_bytes() const {
    return charged_token_bytes != 0 ? charged_token_bytes : all_layers_token_bytes();
  }
  // The groups, or the one there is; as the library's page_layout() takes them.
  ModelSpec spec() const;
  // Layers that see `window` tokens, beside those that see all; window 0: none.
  void set_windows(std::uint32_t full_layers, std::uint32_t window);
  // A sequence of so many tokens: a window keeps only its last ones, in whole blocks.
  std::uint64_t sequence_bytes(std::uint64_t tokens) const;
};
// llama-3.1-8b, llama-3.1-70b, qwen3-8b, smollm2-135m, or a path to a Hugging Face config.json, whose sliding_window
// and layer_types make groups. kInvalidArgument: layers of a kind that is not known, such as latent attention.
Result<ModelShape> load_model_shape(const std::string& name);

}  // namespace firn::sim
