#include "naive_llama.h"

#include <cmath>
#include <map>
#include <string>

namespace firn::llama {
namespace {

using Row = std::vector<double>;

double round_to_half(double value) {
  if (value == 0) return 0;
  const int exponent = std::max(std::ilogb(value), -14);
  return std::ldexp(std::nearbyint(std::ldexp(value, 10 - exponent)), exponent - 10);
}

struct Naive {
  const Gguf& file;
  std::map<std::string, std::vector<Row>> weights = {};

  std::size_t count(const char* key) const { return static_cast<std::size_t>(file.unsigned_value(key).value()); }

  const std::vector<Row>& matrix(const std::string& name) {
    std::vector<Row>& rows = weights[name];
    if (!rows.empty()) return rows;
    const Tensor& tensor = *file.find_tensor(name);
    std::vector<float> row(tensor.columns);
    for (std::size_t r = 0; r < tensor.rows; ++r) {
      dequantise_row(tensor.type, tensor.row(r), row);
      rows.emplace_back(row.begin(), row.end());
    }
    return rows;
  }

  Row times(const std::string& name, const Row& x) {
    Row y;
    for (const Row& row : matrix(name)) {
      double sum = 0;
      for (std::size_t k = 0; k < x.size(); ++k) sum += row[k] * x[k];
      y.push_back(sum);
    }
    return y;
  }

  Row norm(const std::string& name, const Row& x) {
    const double epsilon = file.real_value("llama.attention.layer_norm_rms_epsilon").value();
    double square = 0;
    for (const double v : x) square += v * v;
    const double factor = 1 / std::sqrt(square / static_cast<double>(x.size()) + epsilon);
    Row y = matrix(name)[0];
    for (std::size_t i = 0; i < x.size(); ++i) y[i] *= x[i] * factor;
    return y;
  }

  void rotate(Row& heads, std::size_t head_dim, std::size_t position) const {
    const double base = file.real_value("llama.rope.freq_base").value();
    for (std::size_t i = 0; i < heads.size(); i += 2) {
      const double pair = static_cast<double>(i % head_dim / 2);
      const double angle = static_cast<double>(position) * std::pow(base, -2 * pair / static_cast<double>(head_dim));
      const double a = heads[i], b = heads[i + 1];
      heads[i] = a * std::cos(angle) - b * std::sin(angle);
      heads[i + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
  }
};

// One query head over all keys so far.
void attend(const double* q, const std::vector<Row>& keys, const std::vector<Row>& values, std::size_t offset,
            std::size_t dim, double* out) {
  std::vector<double> score;
  double most = -INFINITY, total = 0;
  for (const Row& key : keys) {
    double dot = 0;
    for (std::size_t d = 0; d < dim; ++d) dot += q[d] * key[offset + d];
    score.push_back(dot / std::sqrt(static_cast<double>(dim)));
    most = std::max(most, score.back());
  }
  for (double& s : score) total += s = std::exp(s - most);
  for (std::size_t t = 0; t < values.size(); ++t)
    for (std::size_t d = 0; d < dim; ++d) out[d] += score[t] / total * values[t][offset + d];
}

}  // namespace

std::vector<double> naive_logits(const Gguf& file, std::span<const TokenId> tokens) {
  Naive naive{file};
  const std::size_t layers = naive.count("llama.block_count"), heads = naive.count("llama.attention.head_count");
  const std::size_t kv_heads = naive.count("llama.attention.head_count_kv");
  std::vector<std::vector<Row>> keys(layers), values(layers);
  Row x;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    x = naive.matrix("token_embd.weight")[static_cast<std::size_t>(tokens[t])];
    for (std::size_t l = 0; l < layers; ++l) {
      const auto name = [l](const char* part) { return "blk." + std::to_string(l) + "." + part + ".weight"; };
      Row normed = naive.norm(name("attn_norm"), x);
      Row q = naive.times(name("attn_q"), normed), k = naive.times(name("attn_k"), normed);
      Row v = naive.times(name("attn_v"), normed), attended(q.size());
      const std::size_t dim = q.size() / heads;
      naive.rotate(q, dim, t);
      naive.rotate(k, dim, t);
      for (double& value : k) value = round_to_half(value);
      for (double& value : v) value = round_to_half(value);
      keys[l].push_back(k);
      values[l].push_back(v);
      for (std::size_t h = 0; h < heads; ++h)
        attend(&q[h * dim], keys[l], values[l], h / (heads / kv_heads) * dim, dim, &attended[h * dim]);
      const Row out = naive.times(name("attn_output"), attended);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += out[i];

      normed = naive.norm(name("ffn_norm"), x);
      Row gate = naive.times(name("ffn_gate"), normed);
      const Row up = naive.times(name("ffn_up"), normed);
      for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      const Row down = naive.times(name("ffn_down"), gate);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += down[i];
    }
  }
  return naive.times(file.find_tensor("output.weight") != nullptr ? "output.weight" : "token_embd.weight",
                     naive.norm("output_norm.weight", x));
}

}  // namespace firn::llama
