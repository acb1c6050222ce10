#include "storage/codec/firn_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "core/base/check.h"
#include "storage/codec/bytes.h"
#include "storage/codec/codec_calls.h"
#include "storage/codec/firn_coder.h"
#include "storage/codec/lossy_kernels.h"
#include "storage/codec/stopwatch.h"

namespace firn {
namespace {

constexpr std::uint8_t kStored = 0, kCoded = 1;  // coding of a section

Status corrupt(std::string_view what) { return Status(Code::kCorrupt, std::string(what)); }

// A component of a head that is coded at some step.
struct HeadComponent {
  std::uint32_t channel = 0;  // component i of a head stands at the head's first channel + i
  std::uint8_t klass = 0;
};
// What of a stack is coded at one step, and with which models.
struct SteppedStack {
  std::vector<std::uint8_t> classes;  // of the components that are kept
  std::vector<HeadComponent> means, sinks;
};
struct Stepped {
  std::uint32_t step = 0, mean_step = 0, sink_step = 0;
  std::vector<SteppedStack> stacks;
};

std::uint32_t offset_step(std::uint32_t step, std::int32_t offset) {
  return static_cast<std::uint32_t>(std::clamp(static_cast<std::int32_t>(step) + offset, 0, 1023));
}

std::vector<HeadComponent> kept_of(const HeadTransform& heads, std::uint32_t step) {
  std::vector<HeadComponent> kept;
  for (std::uint32_t c = 0; c < heads.spreads.size(); ++c) {
    const std::int32_t ratio = firn_ratio(heads.spreads[c], step);
    if (ratio >= kFirnDropped) kept.push_back({c, static_cast<std::uint8_t>(firn_class(ratio))});
  }
  return kept;
}

Stepped stepped(const FirnModel& model, std::uint32_t step) {
  Stepped out{.step = step,
              .mean_step = offset_step(step, model.mean_step),
              .sink_step = offset_step(step, model.sink_step),
              .stacks = {}};
  for (const FirnStack& stack : model.stacks) {
    SteppedStack s;
    for (const std::uint8_t spread : stack.spreads) {
      const std::int32_t ratio = firn_ratio(spread, step);
      if (ratio < kFirnDropped) break;  // spreads fall
      s.classes.push_back(static_cast<std::uint8_t>(firn_class(ratio)));
    }
    s.means = kept_of(stack.means, out.mean_step);
    s.sinks = kept_of(stack.sinks, out.sink_step);
    out.stacks.push_back(std::move(s));
  }
  return out;
}

// Rows of a class of numbers to coefficients: where numbers of that magnitude are on average, times the step.
struct Dequantiser {
  const float* centroids;
  float step;
  float operator()(std::int32_t number) const {
    if (number == 0) return 0;
    const std::int32_t magnitude = number < 0 ? -number : number;
    float value = static_cast<float>(magnitude);
    if (magnitude <= static_cast<std::int32_t>(kFirnCentroids)) value += centroids[magnitude - 1];
    value *= step;
    return number < 0 ? -value : value;
  }
};

// Rows [count][channels] of weighted channels to coefficients of each head, and back.
void heads_forward(const HeadTransform& t, const std::vector<std::pair<std::uint32_t, std::uint32_t>>& heads,
                   const float* rows, std::size_t count, std::size_t channels, float* coefficients) {
  const std::uint16_t* basis = t.bases.data();
  for (const auto& [first, width] : heads) {
    lossy::project({.a = rows + first,
                    .a_stride = channels,
                    .rows = count,
                    .basis = basis,
                    .basis_stride = width,
                    .components = width,
                    .channels = width,
                    .c = coefficients + first,
                    .c_stride = channels});
    basis += std::size_t{width} * width;
  }
}
void heads_back(const HeadTransform& t, const std::vector<std::pair<std::uint32_t, std::uint32_t>>& heads,
                const float* coefficients, std::size_t count, std::size_t channels, float* rows) {
  const std::uint16_t* basis = t.bases.data();
  for (const auto& [first, width] : heads) {
    lossy::reconstruct({.a = coefficients + first,
                        .a_stride = channels,
                        .rows = count,
                        .basis = basis,
                        .basis_stride = width,
                        .components = width,
                        .channels = width,
                        .c = rows + first,
                        .c_stride = channels});
    basis += std::size_t{width} * width;
  }
}

// What every token that is no sink has in common: the calibrated mean and the frame's.
std::vector<float> frame_base(const FirnStack& stack, const std::vector<std::pair<std::uint32_t, std::uint32_t>>& heads,
                              const std::vector<float>& coefficients) {
  std::vector<float> base(stack.channels);
  heads_back(stack.means, heads, coefficients.data(), 1, stack.channels, base.data());
  for (std::size_t c = 0; c < stack.channels; ++c) base[c] = stack.mean[c] + base[c] / stack.means.weights[c];
  return base;
}

}  // namespace

double sink_score(const FirnModel& model, std::span<const double> norms) {
  double sum = 0;
  for (std::size_t i = 0; i < norms.size(); ++i)
    sum += std::log(norms[i] / static_cast<double>(model.detector_medians[i]) + 1e-4);
  return std::exp(sum / static_cast<double>(std::max<std::size_t>(1, norms.size())));
}

class FirnCodec final : public Codec {
 public:
  FirnCodec(std::shared_ptr<const Artefact> artefact, FirnModels models, KeyRotation rotation, std::uint32_t step,
            ErrorBound bound)
      : artefact_(std::move(artefact)),
        models_(std::move(models)),
        rotation_(std::move(rotation)),
        bound_(bound),
        stepped_(stepped(artefact_->firn, step)) {
    for (const FirnStack& stack : artefact_->firn.stacks) heads_.push_back(firn_heads(stack, artefact_->kv));
  }
  CodecId id() const override { return CodecId::kFirn; }
  std::uint16_t version() const override { return 1; }
  Fidelity fidelity() const override { return Fidelity::kLossy; }
  std::uint32_t rate() const override { return stepped_.step; }
  Digest artefact() const override { return artefact_->digest; }
  ErrorBound error_bound() const override { return bound_; }
  std::size_t resident_bytes() const override { return artefact_->file_bytes; }
  std::size_t bound(const ExtentShape& shape) const override;
  std::size_t scratch_bytes(const ExtentShape& shape) const override;
  void encode(std::span<EncodeJob> jobs, ThreadPool* threads) const override;
  void decode(std::span<DecodeJob> jobs, ThreadPool* threads) const override { decode_in(jobs, threads, nullptr); }
  void decode_in(std::span<DecodeJob> jobs, ThreadPool* threads, KvtcTimes* times) const;

 private:
  const FirnModel& model() const { return artefact_->firn; }
  std::uint32_t stacks() const { return static_cast<std::uint32_t>(model().stacks.size()); }
  const FirnStack& stack(std::size_t i) const { return model().stacks[i]; }
  std::uint32_t stack_of(std::uint32_t layer) const {
    return artefact_->stack_layers == 0 ? 0 : layer / artefact_->stack_layers;
  }
  std::uint64_t raw_bytes(const ExtentShape& shape, std::size_t i) const {
    return stack(i).layer_count * (tensor_shape(shape, false).bytes() + tensor_shape(shape, true).bytes());
  }
  Dequantiser dequantiser(std::uint8_t klass, std::uint32_t step) const {
    return {model().centroids.data() + std::size_t{klass} * kFirnCentroids, firn_step(step)};
  }
  Status check_extent(const ExtentShape& shape) const;
  Status check_frame(const FrameHeader& header, const DecodeJob& job) const;
  Status check_entry(const SectionEntry& entry, const ExtentShape& shape, std::uint32_t i) const;
  TensorRows rows_of(const EncodeJob& job, std::uint32_t layer, bool values) const {
    return {.shape = tensor_shape(job.shape, values),
            .views = job.views.subspan(std::size_t{layer} * job.shape.block_count, job.shape.block_count),
            .values = values};
  }
  void load_layer(const EncodeJob& job, std::uint32_t layer, bool values, const KeyRotation::Angles& angles,
                  std::vector<float>& x) const;
  std::vector<std::uint8_t> find_sinks(const ExtentShape& shape, const std::vector<std::vector<float>>& x) const;
  struct Coded;
  void encode_one(EncodeJob& job, ThreadPool* threads) const;
  void code_section(const EncodeJob& job, std::size_t i, const std::vector<float>& x,
                    const std::vector<std::uint8_t>& sinks, std::span<std::byte> place, Coded& coded) const;
  void store_section(const EncodeJob& job, std::size_t i, std::span<std::byte> place, Coded& coded) const;
  struct Opened;
  Status open_frame(const DecodeJob& job, std::optional<FrameView>& out) const;
  Status open_section(const DecodeJob& job, const FrameView& frame, const Stepped& at, std::uint32_t i, Opened& out,
                      KvtcTimes* times) const;
  void restore_layer(const DecodeJob& job, std::uint32_t layer, bool values, const Opened& section,
                     const KeyRotation::Angles& angles, KvtcTimes* times) const;

  std::shared_ptr<const Artefact> artefact_;
  FirnModels models_;
  KeyRotation rotation_;
  ErrorBound bound_;
  Stepped stepped_;
  std::vector<std::vector<std::pair<std::uint32_t, std::uint32_t>>> heads_;  // of each stack
};

std::size_t FirnCodec::bound(const ExtentShape& shape) const {
  std::uint64_t bytes = frame_head_bytes(stacks());
  for (std::size_t i = 0; i < stacks(); ++i) bytes += align_frame(raw_bytes(shape, i));
  return bytes;
}

// An encode holds all values, weighted values, coefficients and numbers of an extent; a decode less.
std::size_t FirnCodec::scratch_bytes(const ExtentShape& shape) const {
  const std::size_t tokens = std::size_t{shape.block_count} * kBlockTokens;
  std::size_t floats = 0;
  for (std::size_t i = 0; i < stacks(); ++i)
    floats += tokens * (4 * std::size_t{stack(i).channels} + 2 * stepped_.stacks[i].classes.size());
  return floats * sizeof(float);
}

Status FirnCodec::check_extent(const ExtentShape& shape) const {
  FIRN_TRY(check_shape(shape));
  if (shape.kv != artefact_->kv || shape.layer_count != artefact_->layer_count)
    return invalid_call("shape", fmt::format("is not that of the artefact's model {}", artefact_->model_name));
  return {};
}

// --- encode ---
struct FirnCodec::Coded {
  SectionEntry entry;
  // Weighted sums of squares: of what changes in all rows, and in the mean of a frame.
  double rows = 0, mean = 0;
};

// One layer's keys or values of a job into x, [token][channels of the stack], rotation taken off.
void FirnCodec::load_layer(const EncodeJob& job, std::uint32_t layer, bool values, const KeyRotation::Angles& angles,
                           std::vector<float>& x) const {
  const FirnStack& s = stack(stack_of(layer));
  const TensorRows rows = rows_of(job, layer, values);
  const std::size_t width = rows.shape.channels();
  const std::size_t first = (layer - s.first_layer) * width + (values ? s.key_channels : 0);
  rows.for_each_piece([&](const std::byte* piece, std::size_t element, std::size_t count) {
    const std::size_t element_bytes = rows.shape.element_bytes;
    for (std::size_t done = 0; done < count;) {  // a piece may be many rows
      const std::size_t column = (element + done) % width, run = std::min(width - column, count - done);
      float* to = x.data() + (element + done) / width * s.channels + first + column;
      lossy::load(rows.shape.dtype, piece + done * element_bytes, run, to);
      done += run;
    }
  });
  if (values) return;
  for (std::uint32_t t = 0; t < rows.shape.token_count; ++t)
    rotation_.undo(x.data() + std::size_t{t} * s.channels + first, rows.shape.heads, angles, t);
}

std::vector<std::uint8_t> FirnCodec::find_sinks(const ExtentShape& shape,
                                                const std::vector<std::vector<float>>& x) const {
  const std::size_t tokens = std::size_t{shape.block_count} * kBlockTokens;
  std::vector<std::uint8_t> sinks(tokens);
  if (model().detector_layers.empty()) return sinks;
  const std::size_t width = tensor_shape(shape, true).channels();
  std::vector<double> norms(model().detector_layers.size());
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t d = 0; d < norms.size(); ++d) {
      const std::uint32_t layer = model().detector_layers[d], i = stack_of(layer);
      const float* row = &x[i][t * stack(i).channels + stack(i).key_channels + (layer - stack(i).first_layer) * width];
      norms[d] = std::sqrt(lossy::energy(row, width));
    }
    sinks[t] = is_sink(model(), sink_score(model(), norms)) ? 1 : 0;
  }
  return sinks;
}

void FirnCodec::store_section(const EncodeJob& job, std::size_t i, std::span<std::byte> place, Coded& coded) const {
  std::size_t at = 0;
  for (std::uint32_t layer = 0; layer < stack(i).layer_count; ++layer)
    for (const bool values : {false, true}) {
      const TensorRows rows = rows_of(job, stack(i).first_layer + layer, values);
      gather(rows, place.subspan(at, rows.shape.bytes()));
      at += rows.shape.bytes();
    }
  coded.entry.coding = kStored;
  coded.entry.encoded_bytes = at;
  coded.rows = coded.mean = 0;
}

void FirnCodec::code_section(const EncodeJob& job, std::size_t i, const std::vector<float>& x,
                             const std::vector<std::uint8_t>& sinks, std::span<std::byte> place, Coded& coded) const {
  const FirnStack& s = stack(i);
  const SteppedStack& at = stepped_.stacks[i];
  const auto& heads = heads_[i];
  const std::size_t tokens = sinks.size(), channels = s.channels, kept = at.classes.size();
  if (job.label.first_position < model().exact_tokens || !lossy::all_finite(x.data(), x.size()))
    return store_section(job, i, place, coded);
  FirnEncoder encoder;
  bool fits = true;
  const std::size_t sink_count = static_cast<std::size_t>(std::count(sinks.begin(), sinks.end(), 1));
  const std::size_t rows = tokens - sink_count;
  if (rows != 0) {
    // The mean of the frame first: everything after is coded without what it decodes to.
    std::vector<double> sums(channels);
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t c = 0; c < channels && sinks[t] == 0; ++c)
        sums[c] += static_cast<double>(x[t * channels + c]) - static_cast<double>(s.mean[c]);
    std::vector<float> weighted(channels), coefficients(channels), coded_means(channels);
    for (std::size_t c = 0; c < channels; ++c)
      weighted[c] = static_cast<float>(sums[c] / static_cast<double>(rows)) * s.means.weights[c];
    heads_forward(s.means, heads, weighted.data(), 1, channels, coefficients.data());
    const float inverse = 1.0f / firn_step(stepped_.mean_step);
    for (std::size_t k = 0; k < at.means.size(); ++k) {
      const auto [channel, klass] = at.means[k];
      const std::int32_t number = firn_number(coefficients[channel], inverse);
      fits &= encoder.put(k % kFirnStreams, models_.of(klass), firn_low_bits(klass), number);
      coded_means[channel] = dequantiser(klass, stepped_.mean_step)(number);
    }
    const std::vector<float> base = frame_base(s, heads, coded_means);
    std::vector<float> y(rows * channels);
    for (std::size_t t = 0, r = 0; t < tokens; ++t) {
      if (sinks[t] != 0) continue;
      for (std::size_t c = 0; c < channels; ++c) y[r * channels + c] = s.weights[c] * (x[t * channels + c] - base[c]);
      ++r;
    }
    if (!lossy::all_finite(y.data(), y.size())) return store_section(job, i, place, coded);
    std::vector<float> projected(rows * kept), decoded(rows * kept);
    if (kept != 0)
      lossy::project({.a = y.data(),
                      .a_stride = channels,
                      .rows = rows,
                      .basis = s.basis.data(),
                      .basis_stride = channels,
                      .components = kept,
                      .channels = channels,
                      .c = projected.data(),
                      .c_stride = kept});
    const float inverse_step = 1.0f / firn_step(stepped_.step);
    for (std::size_t k = 0; k < kept; ++k) {
      const std::uint8_t klass = at.classes[k];
      const FirnModels::Class& coder = models_.of(klass);
      const std::uint32_t low_bits = firn_low_bits(klass);
      const Dequantiser value = dequantiser(klass, stepped_.step);
      for (std::size_t r = 0; r < rows; ++r) {
        const std::int32_t number = firn_number(projected[r * kept + k], inverse_step);
        fits &= encoder.put(r % kFirnStreams, coder, low_bits, number);
        decoded[r * kept + k] = value(number);
      }
    }
    // The basis is orthonormal but for its rounding, so what it leaves out is what the coefficients lack in energy.
    coded.rows += std::max(0.0, lossy::energy(y.data(), y.size()) - lossy::energy(projected.data(), projected.size())) +
                  lossy::distance(projected.data(), decoded.data(), projected.size());
    const auto mean_of = [rows](const std::vector<float>& of, std::size_t width) {
      std::vector<double> sum(width);
      for (std::size_t r = 0; r < rows; ++r)
        for (std::size_t c = 0; c < width; ++c) sum[c] += static_cast<double>(of[r * width + c]);
      for (double& value : sum) value /= static_cast<double>(rows);
      return sum;
    };
    const std::vector<double> y_mean = mean_of(y, channels), c_mean = mean_of(projected, kept),
                              d_mean = mean_of(decoded, kept);
    double outside = 0, changed = 0;
    for (const double value : y_mean) outside += value * value;
    for (std::size_t k = 0; k < kept; ++k) {
      outside -= c_mean[k] * c_mean[k];
      changed += (c_mean[k] - d_mean[k]) * (c_mean[k] - d_mean[k]);
    }
    coded.mean = std::max(0.0, outside) + changed;
  }
  if (sink_count != 0) {
    std::vector<float> y(sink_count * channels), coefficients(sink_count * channels);
    for (std::size_t t = 0, r = 0; t < tokens; ++t) {
      if (sinks[t] == 0) continue;
      for (std::size_t c = 0; c < channels; ++c)
        y[r * channels + c] = s.sinks.weights[c] * (x[t * channels + c] - s.sinks.mean[c]);
      ++r;
    }
    if (!lossy::all_finite(y.data(), y.size())) return store_section(job, i, place, coded);
    heads_forward(s.sinks, heads, y.data(), sink_count, channels, coefficients.data());
    coded.rows += lossy::energy(coefficients.data(), coefficients.size());
    const float inverse = 1.0f / firn_step(stepped_.sink_step);
    for (const auto& [channel, klass] : at.sinks) {
      const Dequantiser value = dequantiser(klass, stepped_.sink_step);
      for (std::size_t r = 0; r < sink_count; ++r) {
        const float coefficient = coefficients[r * channels + channel];
        const std::int32_t number = firn_number(coefficient, inverse);
        fits &= encoder.put(r % kFirnStreams, models_.of(klass), firn_low_bits(klass), number);
        const double left = static_cast<double>(coefficient) - static_cast<double>(value(number));
        coded.rows += left * left - static_cast<double>(coefficient) * static_cast<double>(coefficient);
      }
    }
  }
  const std::vector<std::byte> streams = encoder.finish();
  const std::size_t bytes = tokens / 8 + streams.size();
  if (!fits || bytes >= raw_bytes(job.shape, i)) return store_section(job, i, place, coded);
  for (std::size_t b = 0; b < tokens / 8; ++b) {
    unsigned flags = 0;
    for (std::size_t bit = 0; bit < 8; ++bit) flags |= static_cast<unsigned>(sinks[8 * b + bit]) << bit;
    place[b] = static_cast<std::byte>(flags);
  }
  std::memcpy(place.data() + tokens / 8, streams.data(), streams.size());
  coded.entry.coding = kCoded;
  coded.entry.encoded_bytes = bytes;
}

void FirnCodec::encode_one(EncodeJob& job, ThreadPool* threads) const {
  const std::size_t tokens = std::size_t{job.shape.block_count} * kBlockTokens;
  const KeyRotation::Angles angles = rotation_.angles(job.label.first_position, static_cast<std::uint32_t>(tokens));
  std::vector<std::vector<float>> x(stacks());
  for (std::size_t i = 0; i < stacks(); ++i) x[i].resize(tokens * stack(i).channels);
  for_each_task(threads, 2 * job.shape.layer_count, [&](std::size_t task) {
    const auto layer = static_cast<std::uint32_t>(task / 2);
    const bool values = task % 2 == 1;
    if (tensor_shape(job.shape, values).channels() != 0) load_layer(job, layer, values, angles, x[stack_of(layer)]);
  });
  const std::vector<std::uint8_t> sinks = find_sinks(job.shape, x);
  std::vector<Coded> coded(stacks());
  std::vector<std::uint64_t> offsets(stacks() + 1, frame_head_bytes(stacks()));
  for (std::size_t i = 0; i < stacks(); ++i) offsets[i + 1] = offsets[i] + align_frame(raw_bytes(job.shape, i));
  const FrameKey name = frame_key(job.label, job.shape.block_count, id(), version(), artefact(), rate());
  for_each_task(threads, stacks(), [&](std::size_t i) {
    SectionEntry& entry = coded[i].entry;
    entry = {.index = static_cast<std::uint16_t>(i),
             .kind = SectionKind::kStack,
             .parameter = stack(i).first_layer,
             .offset = offsets[i],
             .raw_bytes = raw_bytes(job.shape, i)};
    const std::span<std::byte> place = job.out.subspan(offsets[i], offsets[i + 1] - offsets[i]);
    code_section(job, i, x[i], sinks, place, coded[i]);
    const std::span<std::byte> padded = place.first(align_frame(entry.encoded_bytes));
    std::fill(padded.begin() + static_cast<std::ptrdiff_t>(entry.encoded_bytes), padded.end(), std::byte{0});
    entry.checksum = section_checksum(name, static_cast<std::uint32_t>(i), padded);
  });
  std::vector<SectionEntry> entries;
  double rows = 0, mean = 0;
  std::size_t channels = 0;
  for (std::size_t i = 0; i < stacks(); ++i) {
    entries.push_back(coded[i].entry);
    rows += coded[i].rows;
    mean += coded[i].mean;
    channels += stack(i).channels;
  }
  FrameHeader header;
  header.label = job.label;
  header.artefact = artefact();
  header.codec = id();
  header.codec_version = version();
  header.rate = rate();
  header.shape = job.shape;
  header.keys_unrotated = !rotation_.none();
  header.stack_count = static_cast<std::uint16_t>(stacks());
  header.raw_bytes = job.shape.raw_bytes();
  const auto root = [](double sum, std::size_t count) {
    constexpr double kMost = 1e30;  // a header's numbers are finite
    return static_cast<float>(std::min(kMost, std::sqrt(std::max(0.0, sum) / static_cast<double>(count))));
  };
  header.key_error = job.key_error = root(rows, tokens * channels);
  header.value_error = job.value_error = root(mean, channels);
  job.bytes = finish_frame(header, entries, job.out);
}

void FirnCodec::encode(std::span<EncodeJob> jobs, ThreadPool* threads) const {
  for (EncodeJob& job : jobs) {
    job.bytes = 0;
    job.status = check_extent(job.shape);
    if (job.status.ok()) job.status = check_encode(job, *this, bound(job.shape));
    if (job.status.ok()) encode_one(job, threads);
  }
}

// --- decode ---
struct FirnCodec::Opened {
  std::uint8_t coding = kStored;
  std::span<const std::byte> stored;
  std::vector<std::uint32_t> row_of;  // [token + 1]: rows before it that are no sinks
  std::size_t kept = 0, stride = 0;
  std::vector<float> coefficients;  // [row][stride]
  std::vector<float> base;          // [channels]
  std::vector<float> sinks;         // [sink][channels], as values
};

Status FirnCodec::check_frame(const FrameHeader& header, const DecodeJob& job) const {
  FIRN_TRY(check_identity(header, job, *this));
  if (header.artefact != artefact())
    return differs("artefact", "is " + to_hex(header.artefact) + ", not " + to_hex(artefact()));
  FIRN_TRY(check_same("section_count", header.section_count, stacks()));
  FIRN_TRY(check_same("flags", header.keys_unrotated ? 1 : 0, rotation_.none() ? 0 : 1));
  FIRN_TRY(check_same("position_kind", header.position_kind, 0));
  FIRN_TRY(check_same("stack_count", header.stack_count, stacks()));
  if (header.rate < kFirnFirstStep || header.rate > kFirnLastStep)
    return differs("rate", fmt::format("is {}, which is no step", header.rate));
  FIRN_TRY(check_error("key_error", header.key_error, false));
  return check_error("value_error", header.value_error, false);
}

Status FirnCodec::check_entry(const SectionEntry& entry, const ExtentShape& shape, std::uint32_t i) const {
  FIRN_TRY(check_same("index", entry.index, i));
  FIRN_TRY(check_same("kind", static_cast<unsigned>(entry.kind), static_cast<unsigned>(SectionKind::kStack)));
  FIRN_TRY(check_same("parameter", entry.parameter, stack(i).first_layer));
  FIRN_TRY(check_same("raw_bytes", entry.raw_bytes, raw_bytes(shape, i)));
  if (entry.encoded_bytes > entry.raw_bytes)
    return differs("encoded_bytes", fmt::format("is {}, more than raw_bytes", entry.encoded_bytes));
  return {};
}

Status FirnCodec::open_frame(const DecodeJob& job, std::optional<FrameView>& out) const {
  FIRN_TRY(check_decode(job));
  FIRN_TRY(check_extent(job.shape));
  FIRN_ASSIGN(out, FrameView::open(job.frame));
  return check_frame(out->header(), job);
}

Status FirnCodec::open_section(const DecodeJob& job, const FrameView& frame, const Stepped& stepped, std::uint32_t i,
                               Opened& out, KvtcTimes* times) const {
  Stopwatch watch(times);
  const SectionEntry entry = frame.section(i);
  FIRN_TRY(check_entry(entry, job.shape, i));
  FIRN_ASSIGN(const std::span<const std::byte> payload, frame.payload(i));
  out.coding = entry.coding;
  if (entry.coding == kStored) {
    if (payload.size() != entry.raw_bytes) return corrupt("stored bytes are of another size");
    out.stored = payload;
    return {};
  }
  if (entry.coding != kCoded) return corrupt(fmt::format("coding is {}, not 0 or 1", entry.coding));
  const FirnStack& s = stack(i);
  const SteppedStack& at = stepped.stacks[i];
  const std::size_t tokens = std::size_t{job.shape.block_count} * kBlockTokens, channels = s.channels;
  if (payload.size() < tokens / 8) return corrupt("there are no flags");
  out.row_of.resize(tokens + 1);
  for (std::size_t t = 0; t < tokens; ++t)
    out.row_of[t + 1] = out.row_of[t] + (~std::to_integer<unsigned>(payload[t / 8]) >> (t % 8) & 1);
  const std::size_t rows = out.row_of[tokens], sink_count = tokens - rows;
  if (sink_count != 0 && s.sinks.empty()) return corrupt("a token is flagged, and the model has no such tokens");
  FIRN_ASSIGN(FirnDecoder decoder, FirnDecoder::open(payload.subspan(tokens / 8)));
  std::vector<float> means(rows != 0 ? channels : 0), sinks(sink_count * channels);
  for (std::size_t k = 0; k < at.means.size() && rows != 0; ++k) {
    const auto [channel, klass] = at.means[k];
    means[channel] =
        dequantiser(klass, stepped.mean_step)(decoder.get(k % kFirnStreams, models_.of(klass), firn_low_bits(klass)));
  }
  // Rows that lie apart by a multiple of a page would share their places in the cache.
  out.kept = at.classes.size();
  out.stride = (out.kept + 15) / 16 * 16 + 16;
  out.coefficients.resize(rows * out.stride);
  for (std::size_t k = 0; k < out.kept; ++k) {
    const std::uint8_t klass = at.classes[k];
    const FirnModels::Class& coder = models_.of(klass);
    const std::uint32_t low_bits = firn_low_bits(klass);
    const Dequantiser value = dequantiser(klass, stepped.step);
    float* to = out.coefficients.data() + k;
    std::size_t r = 0;
    for (std::int32_t numbers[kFirnStreams]; r + kFirnStreams <= rows; r += kFirnStreams) {
      decoder.get_four(coder, low_bits, numbers);
      for (std::size_t j = 0; j < kFirnStreams; ++j) to[(r + j) * out.stride] = value(numbers[j]);
    }
    for (; r < rows; ++r)
      to[r * out.stride] = value(decoder.get(static_cast<std::uint32_t>(r % kFirnStreams), coder, low_bits));
  }
  for (const auto& [channel, klass] : at.sinks) {
    const Dequantiser value = dequantiser(klass, stepped.sink_step);
    for (std::size_t r = 0; r < sink_count; ++r)
      sinks[r * channels + channel] =
          value(decoder.get(static_cast<std::uint32_t>(r % kFirnStreams), models_.of(klass), firn_low_bits(klass)));
  }
  FIRN_TRY(decoder.finish());
  watch.lap(&KvtcTimes::entropy_s);
  if (rows != 0) out.base = frame_base(s, heads_[i], means);
  if (sink_count != 0) {
    out.sinks.resize(sinks.size());
    heads_back(s.sinks, heads_[i], sinks.data(), sink_count, channels, out.sinks.data());
    for (std::size_t r = 0; r < sink_count; ++r)
      for (std::size_t c = 0; c < channels; ++c) {
        float& value = out.sinks[r * channels + c];
        value = s.sinks.mean[c] + value / s.sinks.weights[c];
      }
  }
  watch.lap(&KvtcTimes::unpack_s);
  return {};
}

void FirnCodec::restore_layer(const DecodeJob& job, std::uint32_t layer, bool values, const Opened& section,
                              const KeyRotation::Angles& angles, KvtcTimes* times) const {
  Stopwatch watch(times);
  const FirnStack& s = stack(stack_of(layer));
  const std::size_t blocks = job.shape.block_count, local = layer - s.first_layer;
  const TensorRows rows{.shape = tensor_shape(job.shape, values),
                        .views = job.views.subspan((layer - job.layer) * blocks, blocks),
                        .values = values};
  const std::size_t width = rows.shape.channels(), first = local * width + (values ? s.key_channels : 0);
  if (width == 0) return;
  if (section.coding == kStored) {
    const std::size_t keys = tensor_shape(job.shape, false).bytes(),
                      both = keys + tensor_shape(job.shape, true).bytes();
    scatter(section.stored.subspan(local * both + (values ? keys : 0), rows.shape.bytes()), rows).ok();  // it fits
    return;
  }
  std::vector<float> out(rows.shape.elements());
  std::vector<float> inverse(width);
  for (std::size_t c = 0; c < width; ++c) inverse[c] = 1.0f / s.weights[first + c];
  for (std::size_t block = 0; block < blocks; ++block) {  // runs of blocks that are wanted
    if (rows.views[block].k == 0) continue;
    std::size_t end = block + 1;
    while (end < blocks && rows.views[end].k != 0) ++end;
    const std::size_t token = block * kBlockTokens, last = end * kBlockTokens;
    const std::size_t row = section.row_of[token], count = section.row_of[last] - row;
    // Rows without sinks first, where the run begins; then each to its place, from behind.
    float* run = out.data() + token * width;
    if (section.kept != 0 && count != 0)
      lossy::reconstruct({.a = section.coefficients.data() + row * section.stride,
                          .a_stride = section.stride,
                          .rows = count,
                          .basis = s.basis.data() + first,
                          .basis_stride = s.channels,
                          .components = section.kept,
                          .channels = width,
                          .c = run,
                          .c_stride = width});
    else
      std::fill_n(run, count * width, 0.0f);
    watch.lap(&KvtcTimes::project_s);
    for (std::size_t t = last; t-- > token;) {
      float* to = out.data() + t * width;
      const std::size_t r = section.row_of[t];
      if (section.row_of[t + 1] == r) {
        std::copy_n(&section.sinks[(t - r) * s.channels + first], width, to);
      } else {
        const float* from = run + (r - row) * width;
        for (std::size_t c = 0; c < width; ++c) to[c] = section.base[first + c] + from[c] * inverse[c];
      }
      if (!values) rotation_.apply(to, rows.shape.heads, angles, static_cast<std::uint32_t>(t));
    }
    block = end - 1;
  }
  rows.for_each_piece([&](std::byte* piece, std::size_t element, std::size_t count) {
    lossy::store(rows.shape.dtype, out.data() + element, count, piece);
  });
  watch.lap(&KvtcTimes::copy_s);
}

void FirnCodec::decode_in(std::span<DecodeJob> jobs, ThreadPool* threads, KvtcTimes* times) const {
  // A few at a time: their coefficients are in memory together.
  constexpr std::size_t kJobsAtATime = 4;
  for (std::size_t base = 0; base < jobs.size(); base += kJobsAtATime) {
    const std::span<DecodeJob> some = jobs.subspan(base, std::min(kJobsAtATime, jobs.size() - base));
    std::vector<std::optional<FrameView>> frames(some.size());
    std::vector<KeyRotation::Angles> angles(some.size());
    std::vector<Stepped> others(some.size());  // where a frame's step is not this codec's own
    TaskMap sections(some.size()), layers(some.size());
    for (std::size_t j = 0; j < some.size(); ++j) {
      DecodeJob& job = some[j];
      job.status = open_frame(job, frames[j]);
      const bool wanted = job.status.ok() && job.layer_count != 0 &&
                          std::any_of(job.views.begin(), job.views.end(), [](const BlockView& v) { return v.k != 0; });
      if (wanted) {
        angles[j] = rotation_.angles(job.label.first_position, job.shape.block_count * kBlockTokens);
        if (frames[j]->header().rate != stepped_.step) others[j] = stepped(model(), frames[j]->header().rate);
      }
      sections.add_job(wanted ? stack_of(job.layer + job.layer_count - 1) - stack_of(job.layer) + 1 : 0);
      layers.add_job(wanted ? 2 * job.layer_count : 0);
    }
    std::vector<Opened> opened(sections.count());
    std::vector<Status> results(sections.count());
    for_each_task(threads, sections.count(), [&](std::size_t task) {
      const std::size_t j = sections.job_of(task);
      const auto i = stack_of(some[j].layer) + static_cast<std::uint32_t>(task - sections.first(j));
      const Stepped& at = others[j].stacks.empty() ? stepped_ : others[j];
      const Status status = open_section(some[j], *frames[j], at, i, opened[task], times);
      if (!status.ok()) results[task] = status.with_context(fmt::format("section {}", i));
    });
    for (std::size_t task = 0; task < results.size(); ++task) {
      Status& status = some[sections.job_of(task)].status;  // the first failure in frame order
      if (status.ok() && !results[task].ok()) status = std::move(results[task]);
    }
    for_each_task(threads, layers.count(), [&](std::size_t task) {
      const std::size_t j = layers.job_of(task);
      if (!some[j].status.ok()) return;
      const std::size_t local = task - layers.first(j);
      const auto layer = some[j].layer + static_cast<std::uint32_t>(local / 2);
      const std::size_t section = stack_of(layer) - stack_of(some[j].layer);
      restore_layer(some[j], layer, local % 2 == 1, opened[sections.first(j) + section], angles[j], times);
    });
  }
}

Result<std::unique_ptr<Codec>> make_firn_codec(std::shared_ptr<const Artefact> artefact, KeyRotation rotation,
                                               std::uint32_t step, ErrorBound bound) {
  FIRN_CHECK(artefact->codec == CodecId::kFirn && step >= kFirnFirstStep && step <= kFirnLastStep);
  FIRN_ASSIGN(FirnModels models, FirnModels::make(artefact->firn.frequencies));
  return std::unique_ptr<Codec>(
      std::make_unique<FirnCodec>(std::move(artefact), std::move(models), std::move(rotation), step, bound));
}

Result<FirnSetting> firn_setting(const Artefact& artefact, std::uint32_t ratio) {
  const std::vector<KvtcPlan>& plans = artefact.plans;
  if (plans.empty() || ratio < plans.front().report.rate || ratio > plans.back().report.rate)
    return Status(Code::kInvalidArgument,
                  plans.empty() ? "codec firn: the artefact has no rates"
                                : fmt::format("codec firn: the artefact has no ratio {}; it has {} to {}", ratio,
                                              plans.front().report.rate, plans.back().report.rate));
  std::size_t next = 0;
  while (plans[next].report.rate < ratio) ++next;
  const auto bound_at = [&](std::size_t i) { return plans[i].report.bound; };
  if (plans[next].report.rate == ratio) return FirnSetting{artefact.firn.rates[next].step, bound_at(next)};
  // Between two, in proportion to the logarithms. Rounded down: rather a little more than fewer bytes. The bounds are
  // those of the next coarser.
  const double low = std::log(plans[next - 1].report.rate), high = std::log(plans[next].report.rate);
  const double share = (std::log(ratio) - low) / (high - low);
  const double first = artefact.firn.rates[next - 1].step, last = artefact.firn.rates[next].step;
  return FirnSetting{static_cast<std::uint32_t>(first + share * (last - first)), bound_at(next)};
}

void decode_firn_timed(const Codec& codec, DecodeJob& job, ThreadPool* threads, KvtcTimes& times) {
  FIRN_CHECK(codec.id() == CodecId::kFirn);
  static_cast<const FirnCodec&>(codec).decode_in({&job, 1}, threads, &times);
}

}  // namespace firn
