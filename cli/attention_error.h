// attention_error.h: what a codec does inside attention, without the model's answer to it: keys and values of an exact
// run go through the codec as they would be served, and the run's own queries read both. Errors of logits and outputs,
// layer by layer and by token position: a curve that is not flat means that the rotation is wrong.
#pragma once

#include <cstdint>
#include <vector>

#include "firn/codec.h"
#include "firn/model.h"
#include "firn/status.h"
#include "firn/thread_pool.h"

namespace firn::cli {

inline constexpr std::size_t kPositionBins = 8;

// Of one window: keys and values as the cache has them, and queries at a few positions.
struct AttentionTrace {
  std::uint32_t tokens = 0, query_heads = 0;
  std::vector<float> keys, values;      // [layer][token][kv_heads * dim]
  std::vector<std::uint32_t> asked_at;  // positions of the queries
  std::vector<float> queries;           // [layer][asked][query_heads * head_dim], rotated
};

// Sums, so that windows can be added up.
struct AttentionErrors {
  struct Sum {
    double error = 0, of = 0;  // squares
    double relative() const;
  };
  std::vector<Sum> logits, outputs, keys, values;    // per layer; logits: of all keys that went through the codec
  std::vector<Sum> logits_by_key, outputs_by_query;  // per eighth of the context
  std::uint64_t raw_bytes = 0, frame_bytes = 0, extents = 0, guarded = 0;
  double encode_cpu_s = 0, decode_cpu_s = 0;
  void add(const AttentionErrors& other);
};

// lossless: what the guard falls back to. sinks and recent: tokens that stay raw.
struct Protection {
  std::uint32_t sinks = 4, recent = 128;
};
Result<AttentionErrors> measure_attention(const AttentionTrace& trace, const ModelSpec& model, const Codec& codec,
                                          const Protection& protection, ThreadPool& threads);

}  // namespace firn::cli
