#include "storage/calibration/firn_calibrator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "core/base/check.h"
#include "storage/calibration/extent_views.h"
#include "storage/calibration/linear_algebra.h"
#include "storage/codec/codec_calls.h"
#include "storage/codec/firn_codec.h"
#include "storage/codec/firn_coder.h"
#include "storage/codec/lossy_kernels.h"

namespace firn {
namespace {

// All of these were measured (docs/codec.md); none is of one model.
constexpr float kBoundMargin = 1.15f;     // as kvtc has it
constexpr double kShrink = 0.05;          // of a channel's sensitivity to that of its head: few windows tell it
constexpr double kMeanShrink = 0.5;       // likewise for frame means and sinks, of which there are fewer
constexpr double kEnergyPower = -0.2;     // draws the weighted energies of heads together
constexpr std::int32_t kMeanStep = -58;   // 0.08 of a step
constexpr std::int32_t kSinkStep = 25;    // three steps
constexpr double kLowNorm = 0.5;          // of the median: a token that may be a sink
constexpr double kMostSinks = 0.05;       // of all tokens
constexpr double kSinkSensitivity = 0.5;  // of a layer's, that its sinks have at least
constexpr std::size_t kLeastSinkRows = 32;
constexpr std::size_t kSpreadExtents = 24;  // held-out extents that spreads and models are learnt on, at most
constexpr std::size_t kRateExtents = 6;     // that the sizes of frames at a step are looked up on

Status wrong(std::string what) { return Status(Code::kInvalidArgument, "calibration: " + what); }

void to_halves(const std::vector<float>& from, std::vector<std::uint16_t>& to) {
  to.resize(from.size());
  lossy::store(Dtype::kF16, from.data(), from.size(), reinterpret_cast<std::byte*>(to.data()));
}

}  // namespace

struct FirnCalibrator::Stack {
  FirnStack out;
  std::size_t offset = 0;  // of its first channel in a row
  Covariance covariance;   // of rows less their frame's mean
  std::vector<double> variances;
  explicit Stack(std::size_t channels) : covariance(channels) {}
};

FirnCalibrator::FirnCalibrator(const ModelSpec& model, FirnCalibrationOptions options, KeyRotation rotation,
                               ThreadPool& threads)
    : model_(model), options_(std::move(options)), rotation_(std::move(rotation)), threads_(threads) {}
FirnCalibrator::~FirnCalibrator() = default;

std::uint32_t FirnCalibrator::width(bool values) const {
  const KvShape& kv = model_.groups[0].kv;
  return kv.kv_heads * (values ? kv.value_dim : kv.head_dim);
}
std::size_t FirnCalibrator::channels() const {
  return std::size_t{model_.groups[0].layer_count} * (width(false) + width(true));
}

Result<std::unique_ptr<FirnCalibrator>> FirnCalibrator::make(const ModelSpec& model, FirnCalibrationOptions options,
                                                             ThreadPool& threads) {
  FIRN_TRY(load_linear_algebra().status());
  FIRN_TRY(validate(model));
  if (model.groups.size() != 1 || model.groups[0].kind != GroupKind::kFull || model.groups[0].kv.value_dim == 0)
    return wrong("firn codes one group of full attention; windows, states and latent rows are not coded yet");
  const std::uint32_t layers = model.groups[0].layer_count;
  if (options.stack_layers > layers)
    return wrong(fmt::format("stacks of {} layers, but the model has {}", options.stack_layers, layers));
  std::sort(options.ratios.begin(), options.ratios.end());
  options.ratios.erase(std::unique(options.ratios.begin(), options.ratios.end()), options.ratios.end());
  if (options.ratios.empty() || options.ratios.front() < 2 || options.ratios.back() > 1024)
    return wrong("ratios must be numbers from 2 to 1024");
  FIRN_ASSIGN(KeyRotation rotation, KeyRotation::make(model.rotation, model.groups[0].kv.head_dim));
  if (options.stack_layers == layers) options.stack_layers = 0;
  const std::uint32_t step = options.stack_layers == 0 ? layers : options.stack_layers;
  std::unique_ptr<FirnCalibrator> made(new FirnCalibrator(model, std::move(options), std::move(rotation), threads));
  std::size_t offset = 0;
  for (std::uint32_t first = 0; first < layers; first += step) {
    const std::uint32_t count = std::min(step, layers - first);
    const std::size_t keys = std::size_t{count} * made->width(false), all = keys + count * made->width(true);
    if (all > kMaxGram) return wrong(fmt::format("{} channels of a stack are more than {}", all, kMaxGram));
    auto stack = std::make_unique<Stack>(all);
    stack->out.first_layer = first;
    stack->out.layer_count = count;
    stack->out.key_channels = static_cast<std::uint32_t>(keys);
    stack->out.channels = static_cast<std::uint32_t>(all);
    stack->offset = offset;
    offset += all;
    made->stacks_.push_back(std::move(stack));
  }
  made->sums_.resize(made->channels());
  return made;
}

// Rows of all channels, [token][channels], rotation taken off; without the first `skip` tokens.
std::vector<float> FirnCalibrator::rows_of(std::uint64_t first_position, std::uint32_t skip, std::uint32_t token_count,
                                           const std::vector<float>& keys, const std::vector<float>& values) const {
  const std::size_t all = channels();
  const KeyRotation::Angles angles = rotation_.angles(first_position, token_count);
  std::vector<float> rows((token_count - skip) * all);
  threads_.parallel_for(stacks_.size(), [&](std::size_t i) {
    const FirnStack& s = stacks_[i]->out;
    for (std::uint32_t l = 0; l < s.layer_count; ++l)
      for (const bool is_values : {false, true}) {
        const std::size_t w = width(is_values);
        const std::size_t to = stacks_[i]->offset + (is_values ? s.key_channels : 0) + l * w;
        for (std::uint32_t t = skip; t < token_count; ++t) {
          float* row = &rows[(t - skip) * all + to];
          const std::vector<float>& from = is_values ? values : keys;
          std::memcpy(row, &from[(std::size_t{s.first_layer + l} * token_count + t) * w], w * sizeof(float));
          if (!is_values) rotation_.undo(row, model_.groups[0].kv.kv_heads, angles, t);
        }
      }
  });
  return rows;
}

Status FirnCalibrator::add_sensitivity(std::uint64_t first_position, std::uint32_t token_count,
                                       const std::vector<float>& values, const std::vector<float>& key_gradients,
                                       const std::vector<float>& value_gradients) {
  FIRN_CHECK(!found_);
  const std::size_t layers = model_.groups[0].layer_count, k = width(false), v = width(true), all = channels();
  if (values.size() != layers * token_count * v || value_gradients.size() != values.size() ||
      key_gradients.size() != layers * token_count * k)
    return wrong("a window's gradients are not [layer][token][heads * dim]");
  for (const std::vector<float>* of : {&values, &key_gradients, &value_gradients})
    if (!lossy::all_finite(of->data(), of->size())) return wrong("a gradient is not finite");
  const auto skip =
      static_cast<std::uint32_t>(first_position < options_.exact_tokens ? options_.exact_tokens - first_position : 0);
  for (std::uint32_t t = skip; t < token_count; ++t) {
    std::vector<float> felt(all);
    std::vector<double> norms(layers);
    for (const std::unique_ptr<Stack>& stack : stacks_) {
      const FirnStack& s = stack->out;
      for (std::uint32_t l = 0; l < s.layer_count; ++l) {
        const std::size_t row = std::size_t{s.first_layer + l} * token_count + t;
        float* to = &felt[stack->offset + l * k];
        for (std::size_t c = 0; c < k; ++c) to[c] = key_gradients[row * k + c] * key_gradients[row * k + c];
        to = &felt[stack->offset + s.key_channels + l * v];
        for (std::size_t c = 0; c < v; ++c) to[c] = value_gradients[row * v + c] * value_gradients[row * v + c];
        norms[s.first_layer + l] = std::sqrt(lossy::energy(&values[row * v], v));
      }
    }
    felt_.push_back(std::move(felt));
    felt_norms_.push_back(std::move(norms));
  }
  return {};
}

// Layers where a few tokens of small values have most of the sensitivity, and the threshold that finds those tokens.
Status FirnCalibrator::find_sinks() {
  found_ = true;
  if (felt_.empty()) return wrong("there are no windows with gradients, from which firn's weights come");
  const std::size_t layers = model_.groups[0].layer_count, count = felt_.size(), v = width(true);
  std::vector<double> medians(layers);
  std::vector<std::vector<double>> sensitivity(layers, std::vector<double>(count));
  for (std::size_t l = 0; l < layers; ++l) {
    std::vector<double> norms(count);
    for (std::size_t t = 0; t < count; ++t) norms[t] = felt_norms_[t][l];
    std::nth_element(norms.begin(), norms.begin() + static_cast<std::ptrdiff_t>(count / 2), norms.end());
    medians[l] = norms[count / 2];
  }
  for (const std::unique_ptr<Stack>& stack : stacks_)
    for (std::uint32_t l = 0; l < stack->out.layer_count; ++l)
      for (std::size_t t = 0; t < count; ++t) {
        const float* from = &felt_[t][stack->offset + stack->out.key_channels + l * v];
        sensitivity[stack->out.first_layer + l][t] = std::accumulate(from, from + v, 0.0);
      }
  for (std::size_t l = 0; l < layers && options_.sinks; ++l) {
    std::size_t low = 0;
    double held = 0, all = 0;
    for (std::size_t t = 0; t < count; ++t) {
      all += sensitivity[l][t];
      if (felt_norms_[t][l] >= kLowNorm * medians[l]) continue;
      ++low;
      held += sensitivity[l][t];
    }
    const bool few = static_cast<double>(low) <= kMostSinks * static_cast<double>(count);
    if (medians[l] > 0 && low != 0 && few && held > kSinkSensitivity * all) {
      firn_.detector_layers.push_back(static_cast<std::uint32_t>(l));
      firn_.detector_medians.push_back(static_cast<float>(medians[l]));
    }
  }
  if (!firn_.detector_layers.empty()) {
    // Of thresholds the lowest that finds nearly all that the highest does.
    std::vector<double> scores(count), felt(count);
    double all = 0;
    for (std::size_t t = 0; t < count; ++t) {
      std::vector<double> norms;
      for (const std::uint32_t layer : firn_.detector_layers) {
        norms.push_back(felt_norms_[t][layer]);
        felt[t] += sensitivity[layer][t];
      }
      scores[t] = sink_score(firn_, norms);
      all += felt[t];
    }
    const auto found_below = [&](double threshold) {
      std::pair<double, double> found{0, 0};
      for (std::size_t t = 0; t < count; ++t)
        if (scores[t] < threshold) found = {found.first + 1, found.second + felt[t]};
      return found;
    };
    const double most = found_below(0.6).second;
    for (const double threshold : {0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6}) {
      const auto [tokens, share] = found_below(threshold);
      findings_.threshold = threshold;
      findings_.sink_share = tokens / static_cast<double>(count);
      findings_.sink_sensitivity = all > 0 ? share / all : 0;
      if (share >= 0.97 * most) break;
    }
    if (findings_.sink_share > kMostSinks || findings_.sink_sensitivity < kSinkSensitivity) {
      firn_.detector_layers.clear();
      firn_.detector_medians.clear();
    } else {
      firn_.detector_threshold = static_cast<float>(findings_.threshold);
    }
  }
  findings_.detector_layers = firn_.detector_layers;
  std::uint64_t counts[2] = {};
  for (std::vector<double>& feels : feels_) feels.assign(channels(), 0);
  for (std::size_t t = 0; t < count; ++t) {
    std::vector<double> norms;
    for (const std::uint32_t layer : firn_.detector_layers) norms.push_back(felt_norms_[t][layer]);
    const int klass = is_sink(firn_, sink_score(firn_, norms)) ? 1 : 0;
    ++counts[klass];
    for (std::size_t c = 0; c < channels(); ++c) feels_[klass][c] += static_cast<double>(felt_[t][c]);
  }
  for (const int klass : {0, 1})
    for (double& value : feels_[klass]) value /= static_cast<double>(std::max<std::uint64_t>(1, counts[klass]));
  felt_ = {};
  felt_norms_ = {};
  return {};
}

// Of a row of all channels.
bool FirnCalibrator::detect(const float* row) const {
  if (firn_.detector_layers.empty()) return false;
  std::vector<double> norms;
  for (const std::uint32_t layer : firn_.detector_layers) {
    const Stack& stack = *stacks_[options_.stack_layers == 0 ? 0 : layer / options_.stack_layers];
    const std::size_t at =
        stack.offset + stack.out.key_channels + (layer - stack.out.first_layer) * std::size_t{width(true)};
    norms.push_back(std::sqrt(lossy::energy(row + at, width(true))));
  }
  return is_sink(firn_, sink_score(firn_, norms));
}

void FirnCalibrator::hold_out(std::uint64_t first_position, std::uint32_t skip, std::uint32_t token_count,
                              const std::vector<float>& keys, const std::vector<float>& values) {
  const GroupSpec& group = model_.groups[0];
  for (std::uint32_t at = skip; at + kExtentTokens <= token_count && held_out_.size() < options_.held_out_extents;
       at += kExtentTokens) {
    Extent extent{.first_position = first_position + at, .bytes = {}};
    extent.bytes.resize(group.layer_count * kExtentTokens * group.kv.token_bytes());
    std::byte* to = extent.bytes.data();
    for (std::uint32_t layer = 0; layer < group.layer_count; ++layer)
      for (const bool is_values : {false, true}) {
        const std::size_t w = width(is_values);
        const float* from = &(is_values ? values : keys)[(std::size_t{layer} * token_count + at) * w];
        lossy::store(group.kv.dtype, from, kExtentTokens * w, to);
        to += kExtentTokens * w * bytes_of(group.kv.dtype);
      }
    held_out_.push_back(std::move(extent));
  }
}

Status FirnCalibrator::add_window(std::uint64_t first_position, std::uint32_t token_count,
                                  const std::vector<float>& keys, const std::vector<float>& values, bool held_out) {
  if (!found_) FIRN_TRY(find_sinks());
  const std::size_t layers = model_.groups[0].layer_count, all = channels();
  if (keys.size() != layers * token_count * width(false) || values.size() != layers * token_count * width(true))
    return wrong("a window's keys or values are not [layer][token][heads * dim]");
  if (!lossy::all_finite(keys.data(), keys.size()) || !lossy::all_finite(values.data(), values.size()))
    return wrong("a key or value is not finite");
  const std::uint64_t exact = options_.exact_tokens;
  const auto skip = static_cast<std::uint32_t>(
      first_position < exact ? std::min<std::uint64_t>(token_count, exact - first_position) : 0);
  if (skip == token_count) return {};
  if (held_out) {
    hold_out(first_position, skip, token_count, keys, values);
    return {};
  }
  std::vector<float> rows = rows_of(first_position, skip, token_count, keys, values);
  const std::size_t count = token_count - skip;
  for (std::size_t first = 0; first < count; first += kExtentTokens) {
    const std::size_t end = std::min(first + kExtentTokens, count);
    std::vector<float*> plain;
    for (std::size_t t = first; t < end; ++t) {
      float* row = &rows[t * all];
      if (detect(row))
        sink_rows_.emplace_back(row, row + all);
      else
        plain.push_back(row);
    }
    if (plain.size() < kExtentTokens / 2) continue;  // no frame will be that short
    std::vector<double> sum(all);
    for (const float* row : plain)
      for (std::size_t c = 0; c < all; ++c) sum[c] += static_cast<double>(row[c]);
    std::vector<float> mean(all);
    for (std::size_t c = 0; c < all; ++c) {
      sums_[c] += sum[c];
      mean[c] = static_cast<float>(sum[c] / static_cast<double>(plain.size()));
    }
    const bool centred = options_.means;
    for (std::size_t i = 0; i < plain.size(); ++i) {
      float* to = &rows[(first + i) * all];  // closes up where sinks were
      for (std::size_t c = 0; c < all; ++c) to[c] = plain[i][c] - (centred ? mean[c] : 0);
    }
    threads_.parallel_for(stacks_.size(), [&](std::size_t i) {
      stacks_[i]->covariance.add(&rows[first * all + stacks_[i]->offset], all, plain.size());
    });
    frame_means_.push_back(std::move(mean));
    plain_tokens_ += plain.size();
  }
  tokens_ += count;
  return {};
}

// Weights of channels: what predictions feel, evened out within heads and between them, in units in which all channels'
// weighted variances are 1 on average.
void FirnCalibrator::find_weights() {
  const KvShape& kv = model_.groups[0].kv;
  std::vector<double> metric(channels()), sinks(channels()), means(channels());
  double energy = 0, log_scale = 0;
  std::size_t heads_seen = 0;
  const auto each_head = [&](auto&& f) {
    for (const std::unique_ptr<Stack>& stack : stacks_)
      for (const auto& [first, dim] : firn_heads(stack->out, kv)) f(*stack, first, dim);
  };
  each_head([&](Stack& stack, std::size_t first, std::size_t dim) {
    const std::size_t at = stack.offset + first;
    const auto mean_of = [&](const std::vector<double>& of) {
      return std::accumulate(&of[at], &of[at] + dim, 0.0) / static_cast<double>(dim);
    };
    const double mean = mean_of(feels_[0]), sink_mean = mean_of(feels_[1]);
    double of_head = 0;
    for (std::size_t c = 0; c < dim; ++c) {
      metric[at + c] = options_.weights ? (1 - kShrink) * feels_[0][at + c] + kShrink * mean : 1;
      sinks[at + c] = (1 - kMeanShrink) * feels_[1][at + c] + kMeanShrink * sink_mean;
      of_head += metric[at + c] * stack.variances[first + c];
    }
    const double even = options_.weights && of_head > 0 ? std::pow(of_head, kEnergyPower) : 1;
    for (std::size_t c = 0; c < dim; ++c) {
      metric[at + c] *= even;
      energy += metric[at + c] * stack.variances[first + c];
    }
    const double metric_mean = mean_of(metric);
    if (mean > 0 && metric_mean > 0) {
      log_scale += std::log(metric_mean / mean);
      ++heads_seen;
    }
    for (std::size_t c = 0; c < dim; ++c)
      means[at + c] = (1 - kMeanShrink) * metric[at + c] + kMeanShrink * metric_mean;
  });
  const double unit = energy > 0 ? static_cast<double>(channels()) / energy : 1;
  const double scale = std::exp(log_scale / static_cast<double>(std::max<std::size_t>(1, heads_seen)));
  double least = 0;  // nothing is felt less than this: a channel without gradients is not without use
  for (const double value : metric) least += value;
  least *= 1e-6 / static_cast<double>(channels());
  for (const std::unique_ptr<Stack>& stack : stacks_) {
    FirnStack& s = stack->out;
    for (std::size_t c = 0; c < s.channels; ++c) {
      const std::size_t at = stack->offset + c;
      const auto weight = [&](double felt) {
        return static_cast<float>(std::clamp(std::sqrt(std::max(felt, least) * unit), 1e-10, 1e10));
      };
      s.weights.push_back(weight(metric[at]));
      s.means.weights.push_back(weight(means[at]));
      if (!firn_.detector_layers.empty()) s.sinks.weights.push_back(weight(sinks[at] * scale));
    }
  }
}

namespace {

// Orthonormal bases of each head, of rows less `centre`, weighted; spreads of what they are to code.
Status find_head_bases(const FirnStack& stack, std::size_t offset, const KvShape& kv,
                       const std::vector<std::vector<float>>& rows, const std::vector<float>& centre,
                       HeadTransform& out) {
  constexpr double kRidge = 0.02;  // of the mean variance: there are few rows
  std::vector<float> bases;
  for (const auto& [first, dim] : firn_heads(stack, kv)) {
    std::vector<double> matrix(std::size_t{dim} * dim), row(dim);
    for (const std::vector<float>& from : rows) {
      for (std::size_t c = 0; c < dim; ++c)
        row[c] = static_cast<double>(out.weights[first + c]) *
                 static_cast<double>(from[offset + first + c] - centre[first + c]);
      for (std::size_t a = 0; a < dim; ++a)
        for (std::size_t b = 0; b < dim; ++b) matrix[a * dim + b] += row[a] * row[b];
    }
    double trace = 0;
    for (double& value : matrix) value /= static_cast<double>(std::max<std::size_t>(1, rows.size()));
    for (std::size_t c = 0; c < dim; ++c) trace += matrix[c * dim + c];
    for (std::size_t c = 0; c < dim; ++c) matrix[c * dim + c] += kRidge * trace / static_cast<double>(dim) + 1e-12;
    FIRN_ASSIGN(const Components components, principal_components(matrix, dim, dim));
    bases.insert(bases.end(), components.basis.begin(), components.basis.end());
    for (const double variance : components.variances) out.spreads.push_back(firn_spread(std::sqrt(variance)));
  }
  to_halves(bases, out.bases);
  return {};
}

}  // namespace

// The basis of a stack's weighted channels, all components of it for now.
Status FirnCalibrator::find_basis(std::size_t i) {
  Stack& stack = *stacks_[i];
  FirnStack& s = stack.out;
  const std::size_t n = s.channels;
  std::vector<double> matrix = stack.covariance.matrix();
  for (std::size_t a = 0; a < n; ++a)
    for (std::size_t b = 0; b < n; ++b)
      matrix[a * n + b] *= static_cast<double>(s.weights[a]) * static_cast<double>(s.weights[b]);
  FIRN_ASSIGN(const Components components, principal_components(matrix, n, n));
  s.components = s.channels;
  to_halves(components.basis, s.basis);
  return {};
}

// Held-out rows that are no sinks, less the calibrated mean and (with means) the frame's.
std::vector<float> FirnCalibrator::held_out_rows(const Extent& extent) const {
  const GroupSpec& group = model_.groups[0];
  std::vector<float> keys, values;
  const std::byte* from = extent.bytes.data();
  for (std::uint32_t layer = 0; layer < group.layer_count; ++layer)
    for (const bool is_values : {false, true}) {
      std::vector<float>& to = is_values ? values : keys;
      const std::size_t count = kExtentTokens * std::size_t{width(is_values)}, at = to.size();
      to.resize(at + count);
      lossy::load(group.kv.dtype, from, count, &to[at]);
      from += count * bytes_of(group.kv.dtype);
    }
  const std::size_t all = channels();
  const std::vector<float> rows = rows_of(extent.first_position, 0, kExtentTokens, keys, values);
  std::vector<float> plain;
  for (std::size_t t = 0; t < kExtentTokens; ++t)
    if (!detect(&rows[t * all])) plain.insert(plain.end(), &rows[t * all], &rows[t * all] + all);
  const std::size_t count = plain.size() / all;
  std::vector<double> centre(all);
  for (std::size_t c = 0; c < all; ++c) {
    if (options_.means)
      for (std::size_t r = 0; r < count; ++r)
        centre[c] += static_cast<double>(plain[r * all + c]) / static_cast<double>(count);
    else
      centre[c] = sums_[c] / static_cast<double>(plain_tokens_);
    for (std::size_t r = 0; r < count; ++r) plain[r * all + c] -= static_cast<float>(centre[c]);
  }
  return plain;
}

// Spreads of components on held-out text, which order them, and the models of what is left after dividing by them.
Status FirnCalibrator::find_spreads(const Report& progress) {
  constexpr std::size_t kEveryRow = 4;  // that models are learnt on
  const std::size_t all = channels(), extents = std::min(kSpreadExtents, held_out_.size());
  std::vector<std::vector<double>> energies(stacks_.size());
  std::vector<std::vector<float>> samples(stacks_.size());  // [row][component] of a stack
  std::size_t count = 0;
  for (std::size_t i = 0; i < stacks_.size(); ++i) energies[i].resize(stacks_[i]->out.channels);
  for (std::size_t e = 0; e < extents; ++e) {
    const Extent& extent = held_out_[e * held_out_.size() / extents];
    const std::vector<float> rows = held_out_rows(extent);
    const std::size_t some = rows.size() / all;
    if (progress) progress("spreads of components", 0.7 + 0.1 * static_cast<double>(e) / static_cast<double>(extents));
    threads_.parallel_for(stacks_.size(), [&](std::size_t i) {
      const FirnStack& s = stacks_[i]->out;
      const std::size_t n = s.channels;
      std::vector<float> y(some * n), coefficients(some * n);
      for (std::size_t r = 0; r < some; ++r)
        for (std::size_t c = 0; c < n; ++c) y[r * n + c] = rows[r * all + stacks_[i]->offset + c] * s.weights[c];
      lossy::project({.a = y.data(),
                      .a_stride = n,
                      .rows = some,
                      .basis = s.basis.data(),
                      .basis_stride = n,
                      .components = n,
                      .channels = n,
                      .c = coefficients.data(),
                      .c_stride = n});
      for (std::size_t r = 0; r < some; ++r) {
        const float* row = &coefficients[r * n];
        for (std::size_t c = 0; c < n; ++c) energies[i][c] += static_cast<double>(row[c]) * static_cast<double>(row[c]);
        if (r % kEveryRow == e % kEveryRow) samples[i].insert(samples[i].end(), row, row + n);
      }
    });
    count += some;
  }
  if (count == 0) return wrong("held-out text has sinks only");
  std::vector<double> spreads;                 // of all components of all stacks
  std::vector<std::vector<float>> normalised;  // of each
  for (std::size_t i = 0; i < stacks_.size(); ++i) {
    FirnStack& s = stacks_[i]->out;
    const std::size_t n = s.channels;
    std::vector<std::size_t> order(n);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return energies[i][a] > energies[i][b]; });
    std::vector<std::uint16_t> basis(s.basis.size());
    for (std::size_t c = 0; c < n; ++c) {
      const std::size_t from = order[c];
      std::copy_n(&s.basis[from * n], n, &basis[c * n]);
      const double spread = std::sqrt(energies[i][from] / static_cast<double>(count));
      s.spreads.push_back(firn_spread(spread));
      if (spread <= 1e-9) continue;
      spreads.push_back(spread);
      std::vector<float>& to = normalised.emplace_back();
      for (std::size_t r = 0; r < samples[i].size() / n; ++r)
        to.push_back(samples[i][r * n + from] / static_cast<float>(spread));
    }
    s.basis = std::move(basis);
    samples[i] = {};
  }
  if (spreads.empty()) return wrong("held-out text does not vary");
  // Steps that keep from one component in seventy to three in five: what rates will be made of.
  std::vector<double> sorted = spreads;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  const double finest = sorted[sorted.size() * 6 / 10] / 0.4, coarsest = sorted[sorted.size() / 70] / 0.4;
  firn_.frequencies.resize(std::size_t{kFirnClasses} * kFirnSymbols);
  firn_.centroids.assign(std::size_t{kFirnClasses} * kFirnCentroids, 0.0f);
  threads_.parallel_for(kFirnClasses, [&](std::size_t k) {
    const double ratio = std::exp2((4.0 * static_cast<double>(k) - 24 + 1.5) / 16);
    const auto low_bits = firn_low_bits(static_cast<std::uint32_t>(k));
    std::vector<std::size_t> use;
    for (std::size_t c = 0; c < spreads.size(); ++c)
      if (spreads[c] / ratio >= finest && spreads[c] / ratio <= coarsest) use.push_back(c);
    if (use.size() < 100) {  // what will hardly be met takes the shape of all
      use.resize(spreads.size());
      std::iota(use.begin(), use.end(), std::size_t{0});
    }
    const std::size_t stride = std::max<std::size_t>(1, use.size() / 1500);
    std::vector<double> counts(kFirnSymbols, 0.02), sums(kFirnCentroids), weights(kFirnCentroids, 1e-9);
    for (std::size_t u = 0; u < use.size(); u += stride)
      for (const float z : normalised[use[u]]) {
        const float in_steps = z * static_cast<float>(ratio);
        const std::int32_t number = firn_number(in_steps, 1.0f), high = number >> low_bits;
        counts[std::abs(high) <= 15 ? static_cast<std::size_t>(high + 15) : kFirnSymbols - 1] += 1;
        const auto magnitude = static_cast<std::uint32_t>(std::abs(number));
        if (magnitude == 0 || magnitude > kFirnCentroids) continue;
        sums[magnitude - 1] += static_cast<double>(std::fabs(in_steps)) - magnitude;
        weights[magnitude - 1] += 1;
      }
    if (low_bits == 0)  // as many below zero as above
      for (std::size_t s = 0; s < 15; ++s) counts[s] = counts[30 - s] = (counts[s] + counts[30 - s]) / 2;
    const double all_counts = std::accumulate(counts.begin(), counts.end(), 0.0);
    constexpr std::uint32_t kTotal = 1u << kFirnTotalBits;
    std::uint32_t sum = 0;
    std::uint16_t* to = &firn_.frequencies[k * kFirnSymbols];
    for (std::size_t s = 0; s < kFirnSymbols; ++s) {
      to[s] = static_cast<std::uint16_t>(1 + std::floor(counts[s] / all_counts * (kTotal - kFirnSymbols)));
      sum += to[s];
    }
    *std::max_element(to, to + kFirnSymbols) += static_cast<std::uint16_t>(kTotal - sum);
    for (std::size_t m = 0; m < kFirnCentroids; ++m)
      firn_.centroids[k * kFirnCentroids + m] =
          static_cast<float>(std::clamp(sums[m] / weights[m], -0.5, 0.5)) * (low_bits == 0 ? 1.0f : 0.0f);
  });
  return {};
}

// The step of each ratio, looked up in the sizes of frames, and what it does to all that was held out.
Status FirnCalibrator::find_rates(Artefact& artefact, const Report& progress) {
  const GroupSpec& group = model_.groups[0];
  const ExtentShape shape{.kv = group.kv, .layer_count = group.layer_count, .block_count = kMaxExtentBlocks};
  const auto read_back = [&]() -> Result<std::shared_ptr<const Artefact>> {
    const std::vector<std::byte> file = write_artefact(artefact);
    return parse_artefact(file);
  };
  struct Measured {
    std::uint64_t frame_bytes = 0;
    float rows = 0, mean = 0;
  };
  std::vector<std::byte> out, restored(shape.raw_bytes());
  const auto label_of = [](const Extent& extent) {
    FrameLabel label;
    label.first_position = extent.first_position;
    label.fidelity = Fidelity::kLossy;
    return label;
  };
  const auto encode = [&](const Codec& codec, Extent& extent, Measured& sum) -> Status {
    out.resize(codec.bound(shape));
    const std::vector<BlockView> views = extent_views(group, extent.bytes.data());
    EncodeJob job{.shape = shape, .label = label_of(extent), .views = views, .out = out, .bytes = 0, .status = {}};
    codec.encode({&job, 1}, &threads_);
    FIRN_TRY(job.status);
    sum.frame_bytes += job.bytes;
    sum.rows = std::max(sum.rows, job.key_error);
    sum.mean = std::max(sum.mean, job.value_error);
    return {};
  };

  // Finer than any ratio asked for, then coarser and coarser until there is a ratio above all.
  FIRN_ASSIGN(const std::shared_ptr<const Artefact> whole, read_back());
  const std::size_t some = std::min(kRateExtents, held_out_.size());
  std::vector<std::pair<std::uint32_t, double>> sizes;  // step, ratio
  constexpr std::uint32_t kStride = 8;
  for (std::uint32_t step = kFirnFirstStep + 80; step <= kFirnLastStep; step += kStride) {
    FIRN_ASSIGN(const std::unique_ptr<Codec> codec, make_firn_codec(whole, rotation_, step, {}));
    Measured sum;
    for (std::size_t e = 0; e < some; ++e) FIRN_TRY(encode(*codec, held_out_[e * held_out_.size() / some], sum));
    const double ratio = static_cast<double>(some * shape.raw_bytes()) / static_cast<double>(sum.frame_bytes);
    if (progress) progress(fmt::format("step {}: ratio {:.1f}", step, ratio), 0.8);
    if (!sizes.empty() && ratio <= sizes.back().second) continue;  // stored, or all is dropped
    if (!sizes.empty() && ratio < options_.ratios.front()) sizes.clear();
    sizes.emplace_back(step, ratio);
    if (ratio > options_.ratios.back()) break;
  }
  if (sizes.size() < 2 || sizes.front().second > options_.ratios.front() ||
      sizes.back().second < options_.ratios.back())
    return wrong(sizes.empty()
                     ? "no step codes held-out text"
                     : fmt::format("ratios can be {:.1f} to {:.1f}", sizes.front().second, sizes.back().second));
  for (const std::uint32_t ratio : options_.ratios) {
    std::size_t next = 1;
    while (next + 1 < sizes.size() && sizes[next].second < ratio) ++next;
    const auto [low, low_ratio] = sizes[next - 1];
    const auto [high, high_ratio] = sizes[next];
    const double share = (std::log(ratio) - std::log(low_ratio)) / (std::log(high_ratio) - std::log(low_ratio));
    const auto step = static_cast<std::uint32_t>(std::lround(low + share * (high - low)));
    if (!artefact.firn.rates.empty() && step <= artefact.firn.rates.back().step)
      return wrong(fmt::format("ratios {} and the one below it need the same step", ratio));
    artefact.firn.rates.push_back({step});
    artefact.plans.emplace_back();
    artefact.plans.back().report.rate = ratio;
    artefact.plans.back().report.bound = {0, 0};  // until it is measured
  }
  for (FirnStack& stack : artefact.firn.stacks) {  // what the finest of them does not code, none does
    std::uint32_t kept = 0;
    while (kept < stack.components && firn_ratio(stack.spreads[kept], artefact.firn.rates.front().step) >= kFirnDropped)
      ++kept;
    stack.components = kept;
    stack.spreads.resize(kept);
    stack.basis.resize(std::size_t{kept} * stack.channels);
  }
  FIRN_ASSIGN(const std::shared_ptr<const Artefact> trimmed, read_back());
  for (std::size_t i = 0; i < artefact.plans.size(); ++i) {
    ArtefactRate& report = artefact.plans[i].report;
    if (progress)
      progress("measuring", 0.85 + 0.15 * static_cast<double>(i) / static_cast<double>(artefact.plans.size()));
    FIRN_ASSIGN(const std::unique_ptr<Codec> codec,
                make_firn_codec(trimmed, rotation_, artefact.firn.rates[i].step, {}));
    Measured sum;
    std::vector<double> error[2], energy[2];
    for (int tensor : {0, 1}) {
      error[tensor].resize(group.layer_count);
      energy[tensor].resize(group.layer_count);
    }
    for (Extent& extent : held_out_) {
      const std::uint64_t before = sum.frame_bytes;
      FIRN_TRY(encode(*codec, extent, sum));
      const std::vector<BlockView> targets = extent_views(group, restored.data());
      DecodeJob back{.frame = std::span(out).first(sum.frame_bytes - before),
                     .shape = shape,
                     .label = label_of(extent),
                     .layer = 0,
                     .layer_count = group.layer_count,
                     .views = targets,
                     .status = {}};
      codec->decode({&back, 1}, &threads_);
      FIRN_TRY(back.status);
      const std::byte *a = extent.bytes.data(), *b = restored.data();
      for (std::uint32_t layer = 0; layer < group.layer_count; ++layer)
        for (int tensor : {0, 1}) {
          const std::size_t count = kExtentTokens * std::size_t{width(tensor == 1)};
          std::vector<float> x(count), y(count);
          lossy::load(group.kv.dtype, a, count, x.data());
          lossy::load(group.kv.dtype, b, count, y.data());
          error[tensor][layer] += lossy::distance(x.data(), y.data(), count);
          energy[tensor][layer] += lossy::energy(x.data(), count);
          a += count * bytes_of(group.kv.dtype);
          b += count * bytes_of(group.kv.dtype);
        }
    }
    report.realised_ratio =
        static_cast<double>(held_out_.size() * shape.raw_bytes()) / static_cast<double>(sum.frame_bytes);
    report.bound = {sum.rows * kBoundMargin, sum.mean * kBoundMargin};
    report.payload_bits =
        static_cast<double>(sum.frame_bytes) * 8 / static_cast<double>(held_out_.size() * kExtentTokens);
    report.target_bits = 8.0 * static_cast<double>(shape.raw_bytes()) / kExtentTokens / report.rate;
    for (std::uint32_t layer = 0; layer < group.layer_count; ++layer) {
      const auto relative = [&](int t) {
        return energy[t][layer] > 0 ? std::sqrt(error[t][layer] / energy[t][layer]) : 0;
      };
      report.key_errors.push_back(relative(0));
      report.value_errors.push_back(relative(1));
    }
  }
  return {};
}

Result<Artefact> FirnCalibrator::finish(const Report& progress) {
  if (held_out_.empty())
    return wrong(fmt::format("no text was held out; {} consecutive tokens at least are needed", kExtentTokens));
  if (plain_tokens_ < 64) return wrong(fmt::format("{} tokens are too few", plain_tokens_));
  if (!firn_.detector_layers.empty() && sink_rows_.size() < kLeastSinkRows)
    return wrong(fmt::format("{} sinks within texts are too few to learn from; give it more text", sink_rows_.size()));
  findings_.sink_rows = sink_rows_.size();
  const std::size_t all = channels();
  std::vector<float> mean(all), sink_mean(all);
  for (std::size_t c = 0; c < all; ++c) {
    mean[c] = static_cast<float>(sums_[c] / static_cast<double>(plain_tokens_));
    double sum = 0;
    for (const std::vector<float>& row : sink_rows_) sum += static_cast<double>(row[c]);
    sink_mean[c] = sink_rows_.empty() ? 0 : static_cast<float>(sum / static_cast<double>(sink_rows_.size()));
  }
  for (const std::unique_ptr<Stack>& stack : stacks_) {
    const std::vector<double> matrix = stack->covariance.matrix();
    for (std::size_t c = 0; c < stack->out.channels; ++c)
      stack->variances.push_back(matrix[c * stack->out.channels + c]);
  }
  find_weights();
  const KvShape& kv = model_.groups[0].kv;
  for (std::size_t i = 0; i < stacks_.size(); ++i) {
    FirnStack& s = stacks_[i]->out;
    const auto first = static_cast<std::ptrdiff_t>(stacks_[i]->offset);
    s.mean.assign(mean.begin() + first, mean.begin() + first + s.channels);
    FIRN_TRY(find_head_bases(s, stacks_[i]->offset, kv, frame_means_, s.mean, s.means));
    if (!firn_.detector_layers.empty()) {
      s.sinks.mean.assign(sink_mean.begin() + first, sink_mean.begin() + first + s.channels);
      FIRN_TRY(find_head_bases(s, stacks_[i]->offset, kv, sink_rows_, s.sinks.mean, s.sinks));
    }
    if (progress) progress("components", 0.1 + 0.6 * static_cast<double>(i) / static_cast<double>(stacks_.size()));
    FIRN_TRY(find_basis(i));
  }
  FIRN_TRY(find_spreads(progress));
  Artefact artefact;
  artefact.codec = CodecId::kFirn;
  artefact.model_name = model_.name;
  artefact.calibrated_on = options_.calibrated_on;
  artefact.weights = model_.weights;
  artefact.kv = kv;
  artefact.layer_count = model_.groups[0].layer_count;
  artefact.rotation = model_.rotation;
  if (artefact.rotation.pairing == RotationSpec::Pairing::kNone) artefact.rotation = {};
  artefact.stack_layers = options_.stack_layers;
  artefact.tokens = tokens_;
  artefact.firn = std::move(firn_);
  artefact.firn.exact_tokens = options_.exact_tokens;
  artefact.firn.sensitivity = options_.weights ? "gradients" : "none";
  artefact.firn.mean_step = options_.means ? kMeanStep : kMaxFirnStepOffset;
  artefact.firn.sink_step = kSinkStep;
  for (const std::unique_ptr<Stack>& stack : stacks_) artefact.firn.stacks.push_back(std::move(stack->out));
  stacks_.clear();
  FIRN_TRY(find_rates(artefact, progress));
  write_artefact(artefact);  // its name, now that the report is complete
  return artefact;
}

}  // namespace firn
