#include "cli/attention_error.h"

#include <algorithm>
#include <cmath>

#include "cli/session.h"
#include "storage/calibration/extent_views.h"
#include "storage/codec/lossy_kernels.h"

namespace firn::cli {
namespace {

constexpr std::uint32_t kExtentTokens = kMaxExtentBlocks * kBlockTokens;

// A window's extent in the cache's type, [layer][keys, values][token][head][dim], and views of its blocks.
struct ExtentBytes {
  explicit ExtentBytes(const GroupSpec& group)
      : bytes(group.layer_count * kExtentTokens * group.kv.token_bytes()), views(extent_views(group, bytes.data())) {}
  std::vector<std::byte> bytes;
  std::vector<BlockView> views;
};

struct Coder {
  const GroupSpec& group;
  const Codec& codec;
  ThreadPool& threads;
  ExtentBytes from{group}, to{group};
  std::vector<std::byte> out = std::vector<std::byte>(codec.bound(shape()));

  ExtentShape shape() const {
    return {.kv = group.kv, .layer_count = group.layer_count, .block_count = kMaxExtentBlocks};
  }
  std::size_t width(bool values) const { return group.kv.kv_heads * (values ? group.kv.value_dim : group.kv.head_dim); }

  // Copies tokens [first, first + 128) between f32 arrays and an extent.
  template <class F>
  void for_each_tensor(std::uint32_t tokens, std::uint32_t first, std::byte* at, F&& f) const {
    for (std::uint32_t layer = 0; layer < group.layer_count; ++layer)
      for (const bool values : {false, true}) {
        const std::size_t count = kExtentTokens * width(values);
        f(layer, values, (std::size_t{layer} * tokens + first) * width(values), count, at);
        at += count * bytes_of(group.kv.dtype);
      }
  }

  // Through the codec; false: the guard would have stored it lossless.
  Result<bool> code(const AttentionTrace& trace, std::uint32_t first, std::vector<float>& keys,
                    std::vector<float>& values, AttentionErrors& errors) {
    for_each_tensor(trace.tokens, first, from.bytes.data(),
                    [&](std::uint32_t, bool of_values, std::size_t at, std::size_t count, std::byte* bytes) {
                      lossy::store(group.kv.dtype, &(of_values ? trace.values : trace.keys)[at], count, bytes);
                    });
    FrameLabel label;
    label.first_position = first;
    label.fidelity = codec.fidelity();
    EncodeJob job{.shape = shape(), .label = label, .views = from.views, .out = out, .bytes = 0, .status = {}};
    const Clock start = Clock::now();
    codec.encode({&job, 1}, &threads);
    FIRN_TRY(job.status);
    errors.encode_cpu_s += Clock::now().since(start).cpu_s;
    ++errors.extents;
    errors.raw_bytes += shape().raw_bytes();
    errors.frame_bytes += job.bytes;
    const ErrorBound bound = codec.error_bound();
    DecodeJob back{.frame = std::span(out).first(job.bytes),
                   .shape = shape(),
                   .label = label,
                   .layer = 0,
                   .layer_count = group.layer_count,
                   .views = to.views,
                   .status = {}};
    const Clock middle = Clock::now();
    codec.decode({&back, 1}, &threads);
    FIRN_TRY(back.status);
    errors.decode_cpu_s += Clock::now().since(middle).cpu_s;
    for_each_tensor(trace.tokens, first, to.bytes.data(),
                    [&](std::uint32_t layer, bool of_values, std::size_t at, std::size_t count, std::byte* bytes) {
                      std::vector<float>& decoded = of_values ? values : keys;
                      const float* exact = &(of_values ? trace.values : trace.keys)[at];
                      lossy::load(group.kv.dtype, bytes, count, &decoded[at]);
                      AttentionErrors::Sum& sum = (of_values ? errors.values : errors.keys)[layer];
                      sum.error += lossy::distance(exact, &decoded[at], count);
                      sum.of += lossy::energy(exact, count);
                    });
    return job.key_error <= bound.keys && job.value_error <= bound.values;
  }
};

float dot(const float* a, const float* b, std::size_t n) {
  float lanes[8] = {};
  for (std::size_t i = 0; i + 8 <= n; i += 8)
    for (std::size_t j = 0; j < 8; ++j) lanes[j] += a[i + j] * b[i + j];
  for (std::size_t i = n / 8 * 8; i < n; ++i) lanes[0] += a[i] * b[i];
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

// softmax(logits) values, one head.
void read_values(std::vector<float>& logits, const float* values, std::size_t stride, std::size_t dim, float* out) {
  const float most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  std::vector<double> total(dim);
  for (std::size_t t = 0; t < logits.size(); ++t) {
    const double weight = std::exp(static_cast<double>(logits[t] - most));
    sum += weight;
    for (std::size_t c = 0; c < dim; ++c) total[c] += weight * static_cast<double>(values[t * stride + c]);
  }
  for (std::size_t c = 0; c < dim; ++c) out[c] = static_cast<float>(total[c] / sum);
}

}  // namespace

double AttentionErrors::Sum::relative() const { return of > 0 ? std::sqrt(error / of) : 0; }

void AttentionErrors::add(const AttentionErrors& other) {
  const auto merge = [](std::vector<Sum>& to, const std::vector<Sum>& from) {
    to.resize(std::max(to.size(), from.size()));
    for (std::size_t i = 0; i < from.size(); ++i) {
      to[i].error += from[i].error;
      to[i].of += from[i].of;
    }
  };
  merge(logits, other.logits);
  merge(outputs, other.outputs);
  merge(keys, other.keys);
  merge(values, other.values);
  merge(logits_by_key, other.logits_by_key);
  merge(outputs_by_query, other.outputs_by_query);
  raw_bytes += other.raw_bytes;
  frame_bytes += other.frame_bytes;
  extents += other.extents;
  guarded += other.guarded;
  encode_cpu_s += other.encode_cpu_s;
  decode_cpu_s += other.decode_cpu_s;
}

Result<AttentionErrors> measure_attention(const AttentionTrace& trace, const ModelSpec& model, const Codec& codec,
                                          const Protection& protection, ThreadPool& threads) {
  const GroupSpec& group = model.groups[0];
  const KvShape& kv = group.kv;
  AttentionErrors errors;
  for (auto* sums : {&errors.logits, &errors.outputs, &errors.keys, &errors.values}) sums->resize(group.layer_count);
  errors.logits_by_key.resize(kPositionBins);
  errors.outputs_by_query.resize(kPositionBins);
  // As strict mode does it: behind the sinks' block, whole groups, as soon as they have left the window.
  const std::uint32_t first = (protection.sinks + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
  std::vector<float> keys = trace.keys, values = trace.values;
  Coder coder{.group = group, .codec = codec, .threads = threads};
  for (std::uint32_t at = first; at + kExtentTokens + protection.recent <= trace.tokens; at += kExtentTokens) {
    FIRN_ASSIGN(const bool within, coder.code(trace, at, keys, values, errors));
    if (within) continue;
    ++errors.guarded;
    const auto restore = [&](std::vector<float>& decoded, const std::vector<float>& exact, std::size_t width) {
      for (std::uint32_t layer = 0; layer < group.layer_count; ++layer)
        std::copy_n(&exact[(std::size_t{layer} * trace.tokens + at) * width], kExtentTokens * width,
                    &decoded[(std::size_t{layer} * trace.tokens + at) * width]);
    };
    restore(keys, trace.keys, coder.width(false));
    restore(values, trace.values, coder.width(true));
  }

  struct Task {
    AttentionErrors::Sum logits, output;
    std::vector<AttentionErrors::Sum> by_key = std::vector<AttentionErrors::Sum>(kPositionBins);
  };
  const std::size_t asked = trace.asked_at.size();
  std::vector<Task> tasks(group.layer_count * asked);
  const float scale = 1.0f / std::sqrt(static_cast<float>(kv.head_dim));
  threads.parallel_for(tasks.size(), [&](std::size_t i) {
    const std::size_t layer = i / asked, q = i % asked;
    const std::uint32_t position = trace.asked_at[q];
    const std::uint32_t cold = position < first + protection.recent
                                   ? first
                                   : first + (position - first - protection.recent) / kExtentTokens * kExtentTokens;
    std::vector<float> exact(position + 1), coded(position + 1), out(kv.value_dim), coded_out(kv.value_dim);
    const std::size_t k_width = coder.width(false), v_width = coder.width(true);
    // What is hot is raw: the decoded arrays are used below `cold` alone.
    std::vector<float> mixed(
        trace.values.begin() + static_cast<std::ptrdiff_t>(layer * trace.tokens * v_width),
        trace.values.begin() + static_cast<std::ptrdiff_t>((layer * trace.tokens + position + 1) * v_width));
    std::copy_n(&values[(layer * trace.tokens + first) * v_width], (cold - first) * v_width, &mixed[first * v_width]);
    for (std::uint32_t head = 0; head < trace.query_heads; ++head) {
      const std::size_t kv_head = head / (trace.query_heads / kv.kv_heads);
      const float* query = &trace.queries[((layer * asked + q) * trace.query_heads + head) * kv.head_dim];
      const std::size_t k_at = layer * trace.tokens * k_width + kv_head * kv.head_dim;
      const std::size_t v_at = layer * trace.tokens * v_width + kv_head * kv.value_dim;
      for (std::uint32_t t = 0; t <= position; ++t) {
        exact[t] = scale * dot(query, &trace.keys[k_at + t * k_width], kv.head_dim);
        coded[t] = exact[t];
        if (t < first || t >= cold) continue;
        coded[t] = scale * dot(query, &keys[k_at + t * k_width], kv.head_dim);
        const double d = static_cast<double>(coded[t]) - exact[t];
        AttentionErrors::Sum& bin = tasks[i].by_key[t * kPositionBins / trace.tokens];
        bin.error += d * d;
        bin.of += 1;
        tasks[i].logits.error += d * d;
        tasks[i].logits.of += 1;
      }
      read_values(exact, &trace.values[v_at], v_width, kv.value_dim, out.data());
      read_values(coded, mixed.data() + kv_head * kv.value_dim, v_width, kv.value_dim, coded_out.data());
      tasks[i].output.error += lossy::distance(out.data(), coded_out.data(), out.size());
      tasks[i].output.of += lossy::energy(out.data(), out.size());
    }
  });
  const auto add = [](AttentionErrors::Sum& to, const AttentionErrors::Sum& from) {
    to.error += from.error;
    to.of += from.of;
  };
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    add(errors.logits[i / asked], tasks[i].logits);
    add(errors.outputs[i / asked], tasks[i].output);
    add(errors.outputs_by_query[trace.asked_at[i % asked] * kPositionBins / trace.tokens], tasks[i].output);
    for (std::size_t b = 0; b < kPositionBins; ++b) add(errors.logits_by_key[b], tasks[i].by_key[b]);
  }
  return errors;
}

}  // namespace firn::cli
