// hardware.h: what a machine can do and what a model asks of it: the few numbers the timing model needs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "firn/model.h"
#include "firn/status.h"

namespace firn::sim {

// A device file: configs/devices/*.yaml; docs/simulate.md has every key. With count above 1 it is several of them that
// share one model by tensor parallelism: flops, bandwidth, memory, host link and price are then of all together.
struct DeviceSpec {
  std::string name;
  double flops = 0, memory_bandwidth = 0;  // a second
  std::uint64_t memory_bytes = 0;          // 0: not known, and nothing is checked against it
  double prefill_efficiency = 0.5, decode_efficiency = 0.65;
  double step_overhead_s = 250e-6;
  double host_link = 0, disk_link = 0;  // bytes a second, each way
  double device_link = 0;               // from one device to another, each way; 0: over the host links
  bool shared_memory = false;           // the host tier lies in the same memory
  double price_per_hour = 0;
  // Dollars an hour of a GiB, where the file does not say: roughly what clouds ask for memory and local flash. Assumed.
  double host_gib_per_hour = 0.005, disk_gib_per_hour = 0.0002;
  std::uint32_t count = 1;
};
// A name such as rtx4090 (looked for in the folder devices of `folders`) or a path. kInvalidArgument says what is
// missing.
Result<DeviceSpec> load_device(const std::string& name, const std::vector<std::string>& folders);
// count of them as one.
DeviceSpec spread(const DeviceSpec& one, std::uint32_t count);

struct ModelShape {
  std::string name;
  double parameters = 0;         // all of them
  double active_parameters = 0;  // that each token is multiplied with; of routed experts, those it is sent to
  double head_parameters = 0;    // of the output matrix: of each token that is made
  double weight_bytes = 0;       // of all weights, as they are stored
  double embedding_bytes = 0;  // of these, a table that is looked up and not read through; 0 where the head is the same
  double expert_bytes = 0;     // of these, routed experts
  std::uint32_t experts = 0, experts_per_token = 0;
  double weight_bits = 16;  // of most weights, on average
  std::uint32_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0, hidden = 0;
  std::uint32_t kv_element_bytes = 2;
  std::vector<GroupSpec> groups = {};  // empty: every layer sees everything
  // What a token is charged in a run; 0: every layer's bytes. Less where windows let go of old tokens.
  std::uint64_t charged_token_bytes = 0;
  std::uint32_t copies = 1;  // of each key and value, where more devices share the model than it has KV heads
  // Latent attention: one row a layer serves as key and value of all heads; elements of it. 0: keys and values.
  std::uint32_t latent_dim = 0;

  std::uint64_t all_layers_token_bytes() const;
  std::uint64_t token_bytes() const {
    return charged_token_bytes != 0 ? charged_token_bytes : all_layers_token_bytes();
  }
  // Weights that a step of so many tokens reads: of the routed experts those that at least one token is sent to, if all
  // are as likely.
  double bytes_read(double tokens) const;
  // The groups, or the one there is; as the library's page_layout() takes them.
  ModelSpec spec() const;
  // Layers that see `window` tokens, beside those that see all; window 0: none.
  void set_windows(std::uint32_t full_layers, std::uint32_t window);
  // A sequence of so many tokens: a window keeps only its last ones, in whole blocks.
  std::uint64_t sequence_bytes(std::uint64_t tokens) const;
  // Of one token that attends to one other, in all layers.
  double pair_flops() const { return 4.0 * layers * heads * head_dim; }
};
// llama-3.1-8b, llama-3.1-70b, llama-3.2-1b, qwen3-8b, smollm2-135m, or a path to a Hugging Face config.json. What the
// file says of experts, quantisation, windows and latent attention is counted; kInvalidArgument names what is not
// understood.
Result<ModelShape> load_model_shape(const std::string& name);
// The same of the text of a config.json; name stands for it in messages.
Result<ModelShape> parse_model_config(const std::string& text, const std::string& name);
// What sharing costs a step of so many tokens: two sums over all devices in each layer. 0 on one device.
double sharing_seconds(const DeviceSpec& device, const ModelShape& model, double tokens);
// The model on `count` devices. kInvalidArgument: its heads cannot be divided so.
Result<ModelShape> spread(const ModelShape& model, std::uint32_t count);

}  // namespace firn::sim
