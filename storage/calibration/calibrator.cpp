#include "storage/calibration/calibrator.h"
#include "storage/calibration/extent_views.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/base/check.h"
#include "storage/calibration/allocate.h"
#include "storage/calibration/linear_algebra.h"
#include "storage/codec/codec_calls.h"
#include "storage/codec/lossy_kernels.h"

namespace firn {
namespace {

// The guard stores an extent lossless when its error is above the largest met on held-out text, with this margin.
constexpr float kBoundMargin = 1.15f;
// Components looked at: no plan keeps more than its bits allow at 2 bits each, and none near that many.
constexpr double kComponentsPerBit = 0.25;

Status wrong(std::string what) { return Status(Code::kInvalidArgument, "calibration: " + what); }

std::uint32_t components_for(double share, const std::vector<double>& variances) {
  double all = 0, sum = 0;
  for (const double variance : variances) all += variance;
  for (std::uint32_t i = 0; i < variances.size(); ++i) {
    sum += variances[i];
    if (sum >= share * all) return i + 1;
  }
  return static_cast<std::uint32_t>(variances.size());
}

}  // namespace

struct Calibrator::Sum {
  std::uint32_t first_layer = 0, layer_count = 0;
  std::size_t channels = 0;
  Covariance covariance;
  std::vector<float> rows;  // kept only where there are too many channels for their matrix
  double energy = 0;        // of all values, not centred
  explicit Sum(std::size_t c) : channels(c), covariance(c) {}
};

Calibrator::Calibrator(const ModelSpec& model, CalibrationOptions options, KeyRotation rotation, ThreadPool& threads)
    : model_(model), options_(std::move(options)), rotation_(std::move(rotation)), threads_(threads) {}
Calibrator::~Calibrator() = default;

std::uint32_t Calibrator::width(bool values) const {
  const KvShape& kv = model_.groups[0].kv;
  return kv.kv_heads * (values ? kv.value_dim : kv.head_dim);
}

Result<std::unique_ptr<Calibrator>> Calibrator::make(const ModelSpec& model, CalibrationOptions options,
                                                     ThreadPool& threads) {
  FIRN_TRY(validate(model));
  if (model.groups.size() != 1 || model.groups[0].kind != GroupKind::kFull)
    return wrong("kvtc codes one group of full attention");
  const std::uint32_t layers = model.groups[0].layer_count;
  if (options.stack_layers > layers)
    return wrong(fmt::format("stacks of {} layers, but the model has {}", options.stack_layers, layers));
  std::sort(options.ratios.begin(), options.ratios.end());
  options.ratios.erase(std::unique(options.ratios.begin(), options.ratios.end()), options.ratios.end());
  if (options.ratios.empty() || options.ratios.front() < 2 || options.ratios.back() > 1024)
    return wrong("ratios must be numbers from 2 to 1024");
  FIRN_TRY(load_linear_algebra().status());
  FIRN_ASSIGN(KeyRotation rotation, KeyRotation::make(model.rotation, model.groups[0].kv.head_dim));
  std::unique_ptr<Calibrator> made(new Calibrator(model, std::move(options), std::move(rotation), threads));
  const std::uint32_t step = made->options_.stack_layers == 0 ? layers : made->options_.stack_layers;
  if (made->options_.stack_layers == layers) made->options_.stack_layers = 0;
  for (const bool values : {false, true})
    for (std::uint32_t first = 0; first < layers; first += step) {
      const std::uint32_t count = std::min(step, layers - first);
      auto sum = std::make_unique<Sum>(std::size_t{count} * made->width(values));
      sum->first_layer = first;
      sum->layer_count = count;
      made->sums_[values ? 1 : 0].push_back(std::move(sum));
    }
  return made;
}

Status Calibrator::add_window(std::uint64_t first_position, std::uint32_t token_count, const std::vector<float>& keys,
                              const std::vector<float>& values, bool held_out) {
  const std::uint32_t layers = model_.groups[0].layer_count;
  if (keys.size() != std::size_t{layers} * token_count * width(false) ||
      values.size() != std::size_t{layers} * token_count * width(true))
    return wrong("a window's keys or values are not [layer][token][heads * dim]");
  if (!lossy::all_finite(keys.data(), keys.size()) || !lossy::all_finite(values.data(), values.size()))
    return wrong("a key or value is not finite");
  const std::uint32_t skip = first_position < options_.sinks
                                 ? std::min(token_count, static_cast<std::uint32_t>(options_.sinks - first_position))
                                 : 0;
  if (skip == token_count) return {};
  if (held_out) {
    hold_out(first_position, token_count, keys, values);
    return {};
  }
  const KeyRotation::Angles angles = rotation_.angles(first_position, token_count);
  const std::uint32_t heads = model_.groups[0].kv.kv_heads;
  std::vector<float> rows;
  for (const bool is_values : {false, true})
    for (const std::unique_ptr<Sum>& sum : sums_[is_values ? 1 : 0]) {
      if (sum->channels == 0) continue;  // latent rows have no values
      const std::size_t w = width(is_values);
      const std::vector<float>& from = is_values ? values : keys;
      rows.resize(token_count * sum->channels);
      threads_.parallel_for(sum->layer_count, [&](std::size_t i) {
        for (std::uint32_t t = 0; t < token_count; ++t) {
          float* to = &rows[t * sum->channels + i * w];
          std::memcpy(to, &from[((sum->first_layer + i) * token_count + t) * w], w * sizeof(float));
          if (!is_values) rotation_.undo(to, heads, angles, t);
        }
      });
      const float* first = rows.data() + skip * sum->channels;
      const std::size_t count = token_count - skip;
      sum->energy += lossy::energy(first, count * sum->channels);
      if (sum->channels <= options_.max_gram)
        sum->covariance.add(first, sum->channels, count);
      else
        sum->rows.insert(sum->rows.end(), first, first + count * sum->channels);
    }
  tokens_ += token_count - skip;
  return {};
}

void Calibrator::hold_out(std::uint64_t first_position, std::uint32_t token_count, const std::vector<float>& keys,
                          const std::vector<float>& values) {
  const GroupSpec& group = model_.groups[0];
  const std::uint32_t skip = first_position == 0 ? kBlockTokens : 0;  // the block that has the sinks
  const std::size_t element = bytes_of(group.kv.dtype);
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
        to += kExtentTokens * w * element;
      }
    held_out_.push_back(std::move(extent));
  }
}

Status Calibrator::note_spectrum(const std::vector<double>& variances, bool values, bool is_stack, std::uint32_t layer,
                                 double mean_share) {
  spectra_.push_back({.values = values,
                      .is_stack = is_stack,
                      .first_layer = layer,
                      .channels = static_cast<std::uint32_t>(variances.size()),
                      .mean_share = mean_share,
                      .half = components_for(0.5, variances),
                      .ninety = components_for(0.9, variances),
                      .ninety_nine = components_for(0.99, variances)});
  return {};
}

Result<StackBasis> Calibrator::find_basis(Sum& sum, bool values) {
  StackBasis stack;
  stack.first_layer = sum.first_layer;
  stack.layer_count = sum.layer_count;
  stack.channels = static_cast<std::uint32_t>(sum.channels);
  if (sum.channels == 0) return stack;
  const double budget = 16.0 * static_cast<double>(sum.channels) / options_.ratios.front();
  const std::size_t most = std::min<std::size_t>(
      {sum.channels, tokens_ - 1, std::max<std::size_t>(64, static_cast<std::size_t>(kComponentsPerBit * budget))});
  Components components;
  if (!sum.rows.empty()) {
    stack.mean.resize(sum.channels);
    const std::size_t count = sum.rows.size() / sum.channels;
    for (std::size_t c = 0; c < sum.channels; ++c) {
      double mean = 0;
      for (std::size_t r = 0; r < count; ++r) mean += sum.rows[r * sum.channels + c];
      stack.mean[c] = static_cast<float>(mean / static_cast<double>(count));
    }
    for (std::size_t i = 0; i < sum.rows.size(); ++i) sum.rows[i] -= stack.mean[i % sum.channels];
    FIRN_ASSIGN(components, randomised_components(sum.rows.data(), count, sum.channels, most));
    sum.rows = {};
  } else {
    stack.mean = sum.covariance.mean();
    std::vector<double> matrix = sum.covariance.matrix();
    double variance = 0;
    for (std::size_t c = 0; c < sum.channels; ++c) variance += matrix[c * sum.channels + c];
    const double mean_share = 1 - variance / std::max(1e-300, sum.energy / static_cast<double>(tokens_));
    const std::size_t w = width(values);
    for (std::uint32_t i = 0; i < sum.layer_count && sum.layer_count > 1; ++i) {
      std::vector<double> block(w * w);
      double of_layer = 0, mean_energy = 0;
      for (std::size_t a = 0; a < w; ++a) {
        std::copy_n(&matrix[(i * w + a) * sum.channels + i * w], w, &block[a * w]);
        of_layer += block[a * w + a];
        mean_energy += static_cast<double>(stack.mean[i * w + a]) * stack.mean[i * w + a];
      }
      FIRN_ASSIGN(const std::vector<double> variances, spectrum(block, w));
      FIRN_TRY(note_spectrum(variances, values, false, sum.first_layer + i,
                             mean_energy / std::max(1e-300, mean_energy + of_layer)));
    }
    FIRN_ASSIGN(components, principal_components(matrix, sum.channels, most));
    // What the components do not hold is spread over the rest, for the spectrum's sake.
    std::vector<double> all = components.variances;
    double rest = variance;
    for (const double v : all) rest -= v;
    all.resize(sum.channels, std::max(0.0, rest) / std::max<double>(1, static_cast<double>(sum.channels - most)));
    FIRN_TRY(note_spectrum(all, values, true, sum.first_layer, mean_share));
  }
  stack.components = static_cast<std::uint32_t>(components.variances.size());
  stack.basis.resize(components.basis.size());
  lossy::store(Dtype::kF16, components.basis.data(), components.basis.size(),
               reinterpret_cast<std::byte*>(stack.basis.data()));
  return stack;
}

// Coefficients of all held-out tokens, [token][components], with the basis as it will be stored.
std::vector<float> Calibrator::project_held_out(const StackBasis& stack, bool values) const {
  const GroupSpec& group = model_.groups[0];
  const std::size_t w = width(values), element = bytes_of(group.kv.dtype);
  std::vector<float> coefficients(held_out_.size() * kExtentTokens * stack.components);
  threads_.parallel_for(held_out_.size(), [&](std::size_t e) {
    const KeyRotation::Angles angles = rotation_.angles(held_out_[e].first_position, kExtentTokens);
    std::vector<float> x(kExtentTokens * std::size_t{stack.channels}), row(w);
    for (std::uint32_t i = 0; i < stack.layer_count; ++i) {
      const std::byte* from =
          held_out_[e].bytes.data() +
          kExtentTokens * ((stack.first_layer + i) * group.kv.token_bytes() + (values ? group.kv.key_bytes() : 0));
      for (std::uint32_t t = 0; t < kExtentTokens; ++t) {
        lossy::load(group.kv.dtype, from + t * w * element, w, row.data());
        if (!values) rotation_.undo(row.data(), group.kv.kv_heads, angles, t);
        for (std::size_t c = 0; c < w; ++c) x[t * stack.channels + i * w + c] = row[c] - stack.mean[i * w + c];
      }
    }
    lossy::project({.a = x.data(),
                    .a_stride = stack.channels,
                    .rows = kExtentTokens,
                    .basis = stack.basis.data(),
                    .basis_stride = stack.channels,
                    .components = stack.components,
                    .channels = stack.channels,
                    .c = &coefficients[e * kExtentTokens * stack.components],
                    .c_stride = stack.components});
  });
  return coefficients;
}

Status Calibrator::allocate(Artefact& artefact, bool values, const Report& progress, double done) {
  std::vector<StackErrors> errors;
  std::uint64_t channels = 0;
  for (const StackBasis& stack : artefact.of(values)) {
    channels += stack.channels;
    if (stack.channels == 0) {
      errors.emplace_back();
      continue;
    }
    const std::vector<float> coefficients = project_held_out(stack, values);
    errors.push_back(measure_errors(coefficients.data(), stack.components, held_out_.size() * kExtentTokens,
                                    stack.components, &threads_));
  }
  if (progress) progress("allocating bits", done);
  threads_.parallel_for(artefact.plans.size(), [&](std::size_t i) {
    KvtcPlan& plan = artefact.plans[i];
    const std::uint64_t budget = channels * bytes_of(artefact.kv.dtype) * 8 / plan.report.rate;
    std::vector<StackPlan> stacks = allocate_bits(errors, budget);
    double spent = 0;
    for (const StackPlan& stack : stacks) spent += static_cast<double>(plan_bits(stack));
    plan.report.target_bits += static_cast<double>(budget);
    plan.report.payload_bits += spent;
    (values ? plan.values : plan.keys) = std::move(stacks);
  });
  return {};
}

void Calibrator::trim(Artefact& artefact, bool values) {
  std::vector<StackBasis>& stacks = values ? artefact.values : artefact.keys;
  for (std::size_t i = 0; i < stacks.size(); ++i) {
    std::uint32_t kept = 0;
    for (const KvtcPlan& plan : artefact.plans) kept = std::max(kept, plan_components(plan.of(values)[i]));
    stacks[i].components = kept;
    stacks[i].basis.resize(std::size_t{kept} * stacks[i].channels);
  }
}

// Frames of the held-out extents, written and read as they will be: errors, bounds and realised ratios.
Status Calibrator::measure(Artefact& artefact, const Report& progress) {
  const std::vector<std::byte> file = write_artefact(artefact);
  FIRN_ASSIGN(const std::shared_ptr<const Artefact> written, parse_artefact(file));
  const GroupSpec& group = model_.groups[0];
  const ExtentShape shape{.kv = group.kv, .layer_count = group.layer_count, .block_count = kMaxExtentBlocks};
  for (std::size_t i = 0; i < artefact.plans.size(); ++i) {
    ArtefactRate& report = artefact.plans[i].report;
    FIRN_ASSIGN(const std::unique_ptr<Codec> codec, make_codec(CodecId::kKvtc, written, report.rate, model_));
    if (progress)
      progress("measuring", 0.8 + 0.2 * static_cast<double>(i) / static_cast<double>(artefact.plans.size()));
    std::vector<std::byte> out(codec->bound(shape)), restored(shape.raw_bytes());
    std::vector<double> error[2], energy[2];
    for (int tensor : {0, 1}) {
      error[tensor].resize(group.layer_count);
      energy[tensor].resize(group.layer_count);
    }
    std::uint64_t frame_bytes = 0;
    float key_worst = 0, value_worst = 0;
    for (Extent& extent : held_out_) {
      FrameLabel label;
      label.first_position = extent.first_position;
      label.fidelity = Fidelity::kLossy;
      const std::vector<BlockView> views = extent_views(group, extent.bytes.data()),
                                   targets = extent_views(group, restored.data());
      EncodeJob job{.shape = shape, .label = label, .views = views, .out = out, .bytes = 0, .status = {}};
      codec->encode({&job, 1}, &threads_);
      FIRN_TRY(job.status);
      frame_bytes += job.bytes;
      key_worst = std::max(key_worst, job.key_error);
      value_worst = std::max(value_worst, job.value_error);
      DecodeJob back{.frame = std::span(out).first(job.bytes),
                     .shape = shape,
                     .label = label,
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
        static_cast<double>(held_out_.size() * shape.raw_bytes()) / static_cast<double>(frame_bytes);
    report.bound = {key_worst * kBoundMargin, value_worst * kBoundMargin};
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

Result<Artefact> Calibrator::finish(const Report& progress) {
  if (held_out_.empty())
    return wrong(fmt::format("no text was held out; {} consecutive tokens at least are needed to allocate bits on",
                             kExtentTokens));
  if (tokens_ < 64) return wrong(fmt::format("{} tokens are too few", tokens_));
  Artefact artefact;
  artefact.model_name = model_.name;
  artefact.calibrated_on = options_.calibrated_on;
  artefact.weights = model_.weights;
  artefact.kv = model_.groups[0].kv;
  artefact.layer_count = model_.groups[0].layer_count;
  artefact.rotation = model_.rotation;
  if (artefact.rotation.pairing == RotationSpec::Pairing::kNone) artefact.rotation = {};
  artefact.stack_layers = options_.stack_layers;
  artefact.tokens = tokens_;
  for (const std::uint32_t ratio : options_.ratios) {
    artefact.plans.emplace_back();
    artefact.plans.back().report.rate = ratio;
    artefact.plans.back().report.bound = {0, 0};  // until it is measured
  }
  for (const bool values : {false, true}) {
    std::vector<StackBasis>& stacks = values ? artefact.values : artefact.keys;
    const std::size_t all = sums_[0].size();
    for (std::size_t i = 0; i < all; ++i) {
      if (progress)
        progress(values ? "components of values" : "components of keys",
                 (values ? 0.4 : 0.0) + 0.3 * static_cast<double>(i) / static_cast<double>(all));
      FIRN_ASSIGN(StackBasis stack, find_basis(*sums_[values ? 1 : 0][i], values));
      stacks.push_back(std::move(stack));
      sums_[values ? 1 : 0][i].reset();
    }
    if (progress) progress("errors of quantising", values ? 0.7 : 0.3);
    FIRN_TRY(allocate(artefact, values, progress, values ? 0.78 : 0.38));
    trim(artefact, values);
  }
  FIRN_TRY(measure(artefact, progress));
  write_artefact(artefact);  // its name, now that the report is complete
  return artefact;
}

}  // namespace firn
