#include "examples/llama/gradients.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "examples/llama/check.h"
#include "examples/llama/quant.h"
#include "storage/calibration/linear_algebra.h"

namespace firn::llama {
namespace {

int blas(std::size_t n) { return static_cast<int>(n); }

// y[r][c] = x[r][c] * weight[c] / root mean square of the row; factors: one over the root, a row.
void normalise(const std::vector<float>& x, std::span<const float> weight, float epsilon, std::vector<float>& y,
               std::vector<float>& factors) {
  const std::size_t width = weight.size(), rows = x.size() / width;
  y.resize(x.size());
  factors.resize(rows);
  for (std::size_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (std::size_t c = 0; c < width; ++c) sum += static_cast<double>(x[r * width + c]) * x[r * width + c];
    factors[r] = static_cast<float>(1 / std::sqrt(sum / static_cast<double>(width) + static_cast<double>(epsilon)));
    for (std::size_t c = 0; c < width; ++c) y[r * width + c] = x[r * width + c] * factors[r] * weight[c];
  }
}

// dx += what dy, the gradient by normalise's y, says of its x.
void normalise_back(const std::vector<float>& dy, const std::vector<float>& x, std::span<const float> weight,
                    const std::vector<float>& factors, std::vector<float>& dx) {
  const std::size_t width = weight.size();
  for (std::size_t r = 0; r < factors.size(); ++r) {
    const float *d = &dy[r * width], *from = &x[r * width];
    float* to = &dx[r * width];
    double dot = 0;
    for (std::size_t c = 0; c < width; ++c) dot += static_cast<double>(d[c]) * weight[c] * from[c];
    const double f = factors[r];
    const auto share = static_cast<float>(f * f * f * dot / static_cast<double>(width));
    for (std::size_t c = 0; c < width; ++c) to[c] += factors[r] * d[c] * weight[c] - from[c] * share;
  }
}

void round_to_half(std::vector<float>& values) {
  // Through the two rounding additions that leave 11 bits: what a cache of f16 keeps of numbers of its range.
  for (float& value : values) {
    int exponent = 0;
    if (value == 0) continue;
    std::frexp(value, &exponent);
    const float unit = std::ldexp(1.0f, std::max(exponent - 11, -24));
    value = std::nearbyint(value / unit) * unit;
  }
}

// Rows of scores [count * repeat][columns] to weights; row i of a repetition sees first + i + 1 columns.
void softmax(std::vector<float>& scores, std::size_t rows, std::size_t count, std::size_t columns, std::size_t first) {
  for (std::size_t r = 0; r < rows; ++r) {
    float* row = &scores[r * columns];
    const std::size_t seen = first + r % count + 1;
    const float most = *std::max_element(row, row + seen);
    float sum = 0;
    for (std::size_t c = 0; c < seen; ++c) sum += row[c] = std::exp(row[c] - most);
    const float scale = 1 / sum;
    for (std::size_t c = 0; c < seen; ++c) row[c] *= scale;
    std::fill(row + seen, row + columns, 0.0f);
  }
}

}  // namespace

struct KvGradients::Saved {
  std::vector<float> before, attended, middle;  // rows of the residual stream, heads' outputs
  std::vector<float> factors, middle_factors;   // of the norms
  std::vector<float> query, keys, values;       // rotated; keys and values of past and of the rows
  std::vector<float> gate, up;
};

void KvGradients::unpack(const char* part, std::uint32_t layer, std::size_t rows, std::size_t columns) {
  const std::string name = layer == ~0u ? fmt::format("{}.weight", part) : fmt::format("blk.{}.{}.weight", layer, part);
  const Tensor* tensor = model_.file().find_tensor(name);
  if (tensor == nullptr) tensor = model_.file().find_tensor("token_embd.weight");  // an output that is tied to it
  LLAMA_CHECK(tensor != nullptr && tensor->rows == rows && tensor->columns == columns);
  rows_ = rows;
  columns_ = columns;
  weights_.resize(rows * columns);
  for (std::size_t r = 0; r < rows; ++r)
    dequantise_row(tensor->type, tensor->row(r), std::span(weights_).subspan(r * columns, columns));
}

void KvGradients::product(const float* x, std::size_t count, float* y, bool add) {
  linear_algebra().sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, blas(count), blas(rows_), blas(columns_), 1.0f, x,
                         blas(columns_), weights_.data(), blas(columns_), add ? 1.0f : 0.0f, y, blas(rows_));
}

void KvGradients::back_product(const float* y, std::size_t count, float* x, bool add) {
  linear_algebra().sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, blas(count), blas(columns_), blas(rows_), 1.0f, y,
                         blas(rows_), weights_.data(), blas(columns_), add ? 1.0f : 0.0f, x, blas(columns_));
}

void KvGradients::embed(std::span<const std::int32_t> tokens, std::vector<float>& x) const {
  const std::size_t hidden = model_.geometry().hidden;
  x.resize(tokens.size() * hidden);
  for (std::size_t t = 0; t < tokens.size(); ++t) model_.embed(tokens[t], std::span(x).subspan(t * hidden, hidden));
}

// Adjacent pairs, as the engine turns them; sign -1 takes the rotation off.
void KvGradients::rotate(std::vector<float>& rows, std::size_t heads, std::size_t first_position, float sign) const {
  const Geometry& g = model_.geometry();
  const std::size_t count = rows.size() / (heads * g.head_dim);
  for (std::size_t t = 0; t < count; ++t)
    for (std::size_t i = 0; i < g.rotated_dims / 2; ++i) {
      const double angle =
          static_cast<double>(first_position + t) * static_cast<double>(model_.inverse_frequencies()[i]);
      const auto c = static_cast<float>(std::cos(angle)), s = sign * static_cast<float>(std::sin(angle));
      for (std::size_t h = 0; h < heads; ++h) {
        float* pair = &rows[(t * heads + h) * g.head_dim + 2 * i];
        const float a = pair[0], b = pair[1];
        pair[0] = a * c - b * s;
        pair[1] = a * s + b * c;
      }
    }
}

// Rows of the residual stream through one layer; saved.keys and values become those of past, then of the rows.
void KvGradients::forward_layer(std::uint32_t layer, const KvCache* past, std::size_t count, std::vector<float>& x,
                                Saved& saved) {
  const Geometry& g = model_.geometry();
  const Layer& weights = model_.layers()[layer];
  const std::size_t first = past == nullptr ? 0 : past->tokens, all = first + count;
  const std::size_t kv = g.kv_width(), group = g.heads / g.kv_heads, d = g.head_dim;
  std::vector<float> normed, key(count * kv), value(count * kv);
  saved.before = x;
  normalise(x, weights.attention_norm, g.norm_epsilon, normed, saved.factors);
  saved.query.resize(count * g.query_width());
  unpack("attn_q", layer, g.query_width(), g.hidden);
  product(normed.data(), count, saved.query.data(), false);
  unpack("attn_k", layer, kv, g.hidden);
  product(normed.data(), count, key.data(), false);
  unpack("attn_v", layer, kv, g.hidden);
  product(normed.data(), count, value.data(), false);
  rotate(saved.query, g.heads, first, 1);
  rotate(key, g.kv_heads, first, 1);
  saved.keys.clear();
  saved.values.clear();
  if (past != nullptr) {
    const std::size_t at = layer * past->tokens * kv, size = past->tokens * kv;
    saved.keys.assign(past->keys.begin() + static_cast<std::ptrdiff_t>(at),
                      past->keys.begin() + static_cast<std::ptrdiff_t>(at + size));
    saved.values.assign(past->values.begin() + static_cast<std::ptrdiff_t>(at),
                        past->values.begin() + static_cast<std::ptrdiff_t>(at + size));
  }
  saved.keys.insert(saved.keys.end(), key.begin(), key.end());
  saved.values.insert(saved.values.end(), value.begin(), value.end());
  saved.attended.assign(count * g.query_width(), 0.0f);
  const float scale = 1 / std::sqrt(static_cast<float>(d));
  std::vector<float> query(group * count * d), scores(group * count * all), out(group * count * d);
  for (std::size_t h = 0; h < g.kv_heads; ++h) {
    for (std::size_t q = 0; q < group; ++q)
      for (std::size_t t = 0; t < count; ++t)
        std::memcpy(&query[(q * count + t) * d], &saved.query[(t * g.heads + h * group + q) * d], d * sizeof(float));
    linear_algebra().sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, blas(group * count), blas(all), blas(d), scale,
                           query.data(), blas(d), &saved.keys[h * d], blas(kv), 0.0f, scores.data(), blas(all));
    softmax(scores, group * count, count, all, first);
    linear_algebra().sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, blas(group * count), blas(d), blas(all), 1.0f,
                           scores.data(), blas(all), &saved.values[h * d], blas(kv), 0.0f, out.data(), blas(d));
    for (std::size_t q = 0; q < group; ++q)
      for (std::size_t t = 0; t < count; ++t)
        std::memcpy(&saved.attended[(t * g.heads + h * group + q) * d], &out[(q * count + t) * d], d * sizeof(float));
  }
  unpack("attn_output", layer, g.hidden, g.query_width());
  product(saved.attended.data(), count, x.data(), true);
  saved.middle = x;
  normalise(x, weights.feed_forward_norm, g.norm_epsilon, normed, saved.middle_factors);
  saved.gate.resize(count * g.feed_forward);
  saved.up.resize(count * g.feed_forward);
  unpack("ffn_gate", layer, g.feed_forward, g.hidden);
  product(normed.data(), count, saved.gate.data(), false);
  unpack("ffn_up", layer, g.feed_forward, g.hidden);
  product(normed.data(), count, saved.up.data(), false);
  std::vector<float> inner(saved.gate.size());
  for (std::size_t i = 0; i < inner.size(); ++i)
    inner[i] = saved.gate[i] / (1 + std::exp(-saved.gate[i])) * saved.up[i];
  unpack("ffn_down", layer, g.hidden, g.feed_forward);
  product(inner.data(), count, x.data(), true);
}

KvCache KvGradients::cache_of(std::span<const std::int32_t> tokens) {
  KvCache cache{.tokens = static_cast<std::uint32_t>(tokens.size()), .keys = {}, .values = {}};
  std::vector<float> x;
  embed(tokens, x);
  Saved saved;
  for (std::uint32_t layer = 0; layer < model_.geometry().layers; ++layer) {
    forward_layer(layer, nullptr, tokens.size(), x, saved);
    cache.keys.insert(cache.keys.end(), saved.keys.begin(), saved.keys.end());
    cache.values.insert(cache.values.end(), saved.values.begin(), saved.values.end());
  }
  round_to_half(cache.keys);
  round_to_half(cache.values);
  return cache;
}

KvGradients::Gradients KvGradients::by_cache(const KvCache& past, std::span<const std::int32_t> tokens,
                                             const Choose& choose, bool only_likelihood) {
  const Geometry& g = model_.geometry();
  const std::size_t count = tokens.size(), first = past.tokens, all = first + count, vocabulary = g.vocabulary;
  const std::size_t kv = g.kv_width(), group = g.heads / g.kv_heads, d = g.head_dim;
  std::vector<float> x;
  embed(tokens, x);
  std::vector<Saved> saved(only_likelihood ? 1 : g.layers);
  for (std::uint32_t layer = 0; layer < g.layers; ++layer)
    forward_layer(layer, &past, count, x, saved[only_likelihood ? 0 : layer]);
  std::vector<float> normed, factors, logits(count * vocabulary);
  normalise(x, model_.output_norm(), g.norm_epsilon, normed, factors);
  unpack("output", ~0u, vocabulary, g.hidden);
  product(normed.data(), count, logits.data(), false);
  Gradients result;
  for (std::size_t t = 0; t < count; ++t) {  // logits become the gradient by them
    float* row = &logits[t * vocabulary];
    const float most = *std::max_element(row, row + vocabulary);
    double sum = 0;
    for (std::size_t v = 0; v < vocabulary; ++v) sum += static_cast<double>(row[v] = std::exp(row[v] - most));
    for (std::size_t v = 0; v < vocabulary; ++v) row[v] = static_cast<float>(row[v] / sum);
    const auto chosen = static_cast<std::size_t>(choose(t, {row, vocabulary}));
    result.log_likelihood += std::log(std::max(1e-30, static_cast<double>(row[chosen])));
    for (std::size_t v = 0; v < vocabulary; ++v) row[v] = -row[v];
    row[chosen] += 1;
  }
  if (only_likelihood) return result;

  std::vector<float> dnormed(count * g.hidden), dx(count * g.hidden);
  back_product(logits.data(), count, dnormed.data(), false);
  normalise_back(dnormed, x, model_.output_norm(), factors, dx);
  result.keys.resize(std::size_t{g.layers} * first * kv);
  result.values.resize(result.keys.size());
  std::vector<float> dinner(count * g.feed_forward), dup(dinner.size()), dgate(dinner.size());
  std::vector<float> dattended(count * g.query_width()), dquery(dattended.size()), dkeys(all * kv), dvalues(all * kv);
  std::vector<float> query(group * count * d), dout(query.size()), scores(group * count * all), dscores(scores.size());
  const float scale = 1 / std::sqrt(static_cast<float>(d));
  for (std::uint32_t layer = g.layers; layer-- > 0;) {
    const Layer& weights = model_.layers()[layer];
    const Saved& s = saved[layer];
    // The feed-forward half.
    unpack("ffn_down", layer, g.hidden, g.feed_forward);
    back_product(dx.data(), count, dinner.data(), false);
    for (std::size_t i = 0; i < dinner.size(); ++i) {
      const float sigmoid = 1 / (1 + std::exp(-s.gate[i]));
      dup[i] = dinner[i] * s.gate[i] * sigmoid;
      dgate[i] = dinner[i] * s.up[i] * sigmoid * (1 + s.gate[i] * (1 - sigmoid));
    }
    unpack("ffn_gate", layer, g.feed_forward, g.hidden);
    back_product(dgate.data(), count, dnormed.data(), false);
    unpack("ffn_up", layer, g.feed_forward, g.hidden);
    back_product(dup.data(), count, dnormed.data(), true);
    normalise_back(dnormed, s.middle, weights.feed_forward_norm, s.middle_factors, dx);
    // Attention.
    unpack("attn_output", layer, g.hidden, g.query_width());
    back_product(dx.data(), count, dattended.data(), false);
    std::fill(dkeys.begin(), dkeys.end(), 0.0f);
    std::fill(dvalues.begin(), dvalues.end(), 0.0f);
    for (std::size_t h = 0; h < g.kv_heads; ++h) {
      std::vector<float> dots(group * count);
      for (std::size_t q = 0; q < group; ++q)
        for (std::size_t t = 0; t < count; ++t) {
          const std::size_t from = (t * g.heads + h * group + q) * d, to = (q * count + t) * d;
          std::memcpy(&query[to], &s.query[from], d * sizeof(float));
          std::memcpy(&dout[to], &dattended[from], d * sizeof(float));
          for (std::size_t c = 0; c < d; ++c) dots[q * count + t] += dattended[from + c] * s.attended[from + c];
        }
      const int m = blas(group * count), n = blas(all), k = blas(d), stride = blas(kv);
      linear_algebra().sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, scale, query.data(), k, &s.keys[h * d],
                             stride, 0.0f, scores.data(), n);
      softmax(scores, group * count, count, all, first);
      linear_algebra().sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, n, k, m, 1.0f, scores.data(), n, dout.data(), k,
                             0.0f, &dvalues[h * d], stride);
      linear_algebra().sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1.0f, dout.data(), k, &s.values[h * d],
                             stride, 0.0f, dscores.data(), n);
      for (std::size_t r = 0; r < group * count; ++r)
        for (std::size_t c = 0; c < all; ++c)
          dscores[r * all + c] = scale * scores[r * all + c] * (dscores[r * all + c] - dots[r]);
      linear_algebra().sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, n, k, m, 1.0f, dscores.data(), n, query.data(), k,
                             0.0f, &dkeys[h * d], stride);
      linear_algebra().sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, k, n, 1.0f, dscores.data(), n,
                             &s.keys[h * d], stride, 0.0f, dout.data(), k);
      for (std::size_t q = 0; q < group; ++q)
        for (std::size_t t = 0; t < count; ++t)
          std::memcpy(&dquery[(t * g.heads + h * group + q) * d], &dout[(q * count + t) * d], d * sizeof(float));
    }
    rotate(dkeys, g.kv_heads, 0, -1);
    rotate(dquery, g.heads, first, -1);
    std::copy_n(dkeys.begin(), first * kv, result.keys.begin() + static_cast<std::ptrdiff_t>(layer * first * kv));
    std::copy_n(dvalues.begin(), first * kv, result.values.begin() + static_cast<std::ptrdiff_t>(layer * first * kv));
    unpack("attn_q", layer, g.query_width(), g.hidden);
    back_product(dquery.data(), count, dnormed.data(), false);
    unpack("attn_k", layer, kv, g.hidden);
    back_product(&dkeys[first * kv], count, dnormed.data(), true);
    unpack("attn_v", layer, kv, g.hidden);
    back_product(&dvalues[first * kv], count, dnormed.data(), true);
    normalise_back(dnormed, s.before, weights.attention_norm, s.factors, dx);
  }
  return result;
}

}  // namespace firn::llama
