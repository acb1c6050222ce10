#include "storage/codec/kvtc_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <optional>
#include <string>

#include "core/base/check.h"
#include "storage/codec/bytes.h"
#include "storage/codec/codec_calls.h"
#include "storage/codec/coded_sections.h"
#include "storage/codec/entropy.h"
#include "storage/codec/firn_codec.h"
#include "storage/codec/lossy_kernels.h"
#include "storage/codec/rotation.h"
#include "storage/codec/stopwatch.h"

namespace firn {
namespace {

constexpr std::uint8_t kStored = 0, kDeflated = 1, kZstd = 2, kPacked = 3;  // coding of a section
constexpr std::size_t kScaleBytes = 4;                                      // of a group and token
constexpr std::size_t kComponentsAtATime = 256;                             // of a task that projects

Status corrupt(std::string_view what) { return Status(Code::kCorrupt, std::string(what)); }

std::size_t group_bytes(const Group& group, std::size_t tokens) {
  return group.bits == 0 ? 0 : tokens * kScaleBytes + (tokens * group.size * group.bits + 7) / 8;
}

// Codes of 2, 4 or 8 bits, the first in the lowest bits of a byte. count is a multiple of the codes in a byte.
void pack_bits(const std::uint8_t* codes, std::size_t count, std::uint32_t bits, std::byte* out) {
  if (bits == 8) {
    std::memcpy(out, codes, count);
  } else if (bits == 4) {
    for (std::size_t i = 0; i < count / 2; ++i) out[i] = static_cast<std::byte>(codes[2 * i] | codes[2 * i + 1] << 4);
  } else {
    for (std::size_t i = 0; i < count / 4; ++i)
      out[i] =
          static_cast<std::byte>(codes[4 * i] | codes[4 * i + 1] << 2 | codes[4 * i + 2] << 4 | codes[4 * i + 3] << 6);
  }
}

void unpack_bits(const std::byte* from, std::size_t count, std::uint32_t bits, std::uint8_t* codes) {
  if (bits == 8) {
    std::memcpy(codes, from, count);
  } else if (bits == 4) {
    for (std::size_t i = 0; i < count / 2; ++i) {
      const auto byte = std::to_integer<std::uint8_t>(from[i]);
      codes[2 * i] = byte & 15;
      codes[2 * i + 1] = byte >> 4;
    }
  } else {
    for (std::size_t i = 0; i < count / 4; ++i) {
      const auto byte = std::to_integer<std::uint8_t>(from[i]);
      codes[4 * i] = byte & 3;
      codes[4 * i + 1] = byte >> 2 & 3;
      codes[4 * i + 2] = byte >> 4 & 3;
      codes[4 * i + 3] = byte >> 6;
    }
  }
}

// Shifts and scales of a group, byte plane after byte plane: the high bytes are alike from token to token.
void put_scales(const std::vector<lossy::GroupScale>& scales, std::byte* out) {
  const std::size_t n = scales.size();
  for (std::size_t t = 0; t < n; ++t) {
    out[t] = static_cast<std::byte>(scales[t].shift & 255);
    out[n + t] = static_cast<std::byte>(scales[t].shift >> 8);
    out[2 * n + t] = static_cast<std::byte>(scales[t].scale & 255);
    out[3 * n + t] = static_cast<std::byte>(scales[t].scale >> 8);
  }
}

lossy::GroupScale get_scale(const std::byte* from, std::size_t n, std::size_t t) {
  const auto u16 = [&](std::size_t plane) {
    return static_cast<std::uint16_t>(std::to_integer<unsigned>(from[plane * n + t]) |
                                      std::to_integer<unsigned>(from[(plane + 1) * n + t]) << 8);
  };
  return {u16(0), u16(2)};
}

}  // namespace

std::size_t packed_bytes(const StackPlan& plan, std::size_t tokens) {
  std::size_t bytes = 0;
  for (const Group& group : plan) bytes += group_bytes(group, tokens);
  return bytes;
}

bool pack_coefficients(const StackPlan& plan, const float* coefficients, std::size_t stride, std::size_t tokens,
                       std::span<std::byte> out, float* decoded) {
  std::vector<lossy::GroupScale> scales(tokens);
  std::vector<std::uint8_t> codes;
  std::byte* at = out.data();
  std::size_t component = 0;
  for (const Group& group : plan) {
    if (group.bits == 0) {
      if (decoded != nullptr)
        for (std::size_t t = 0; t < tokens; ++t) std::fill_n(decoded + t * stride + component, group.size, 0.0f);
      component += group.size;
      continue;
    }
    codes.resize(tokens * group.size);
    for (std::size_t t = 0; t < tokens; ++t) {
      const float* values = coefficients + t * stride + component;
      scales[t] = lossy::group_scale(values, group.size, group.bits);
      if (!scales[t].finite()) return false;
      lossy::group_codes(values, group.size, group.bits, scales[t], &codes[t * group.size]);
      if (decoded != nullptr)
        lossy::group_values(&codes[t * group.size], group.size, scales[t], decoded + t * stride + component);
    }
    put_scales(scales, at);
    pack_bits(codes.data(), codes.size(), group.bits, at + tokens * kScaleBytes);
    at += group_bytes(group, tokens);
    component += group.size;
  }
  return true;
}

Status unpack_coefficients(const StackPlan& plan, std::span<const std::byte> from, std::size_t tokens,
                           std::size_t stride, float* coefficients) {
  std::vector<std::uint8_t> codes;
  const std::byte* at = from.data();
  std::size_t component = 0;
  for (const Group& group : plan) {
    codes.resize(tokens * group.size);
    if (group.bits != 0) unpack_bits(at + tokens * kScaleBytes, codes.size(), group.bits, codes.data());
    for (std::size_t t = 0; t < tokens; ++t) {
      float* values = coefficients + t * stride + component;
      if (group.bits == 0) {
        std::fill_n(values, group.size, 0.0f);
        continue;
      }
      const lossy::GroupScale scale = get_scale(at, tokens, t);
      if (!scale.finite()) return corrupt("a shift or scale is no finite number");
      lossy::group_values(&codes[t * group.size], group.size, scale, values);
    }
    at += group_bytes(group, tokens);
    component += group.size;
  }
  return {};
}

namespace {
Status check_scales(const StackPlan& plan, std::span<const std::byte> from, std::size_t tokens) {
  const std::byte* at = from.data();
  for (const Group& group : plan) {
    if (group.bits != 0)
      for (std::size_t t = 0; t < tokens; ++t)
        if (!get_scale(at, tokens, t).finite()) return corrupt("a shift or scale is no finite number");
    at += group_bytes(group, tokens);
  }
  return {};
}
}  // namespace

class KvtcCodec final : public Codec, public SectionCodec {
 public:
  KvtcCodec(std::shared_ptr<const Artefact> artefact, const KvtcPlan& plan, KeyRotation rotation, EntropyCoder entropy)
      : artefact_(std::move(artefact)), plan_(plan), rotation_(std::move(rotation)), entropy_(entropy) {}
  CodecId id() const override { return CodecId::kKvtc; }
  std::uint16_t version() const override { return 1; }
  Fidelity fidelity() const override { return Fidelity::kLossy; }
  std::uint32_t rate() const override { return plan_.report.rate; }
  Digest artefact() const override { return artefact_->digest; }
  ErrorBound error_bound() const override { return plan_.report.bound; }
  std::size_t resident_bytes() const override { return artefact_->file_bytes; }
  std::size_t bound(const ExtentShape& shape) const override;
  std::size_t scratch_bytes(const ExtentShape& shape) const override;
  void encode(std::span<EncodeJob> jobs, ThreadPool* threads) const override;
  void decode(std::span<DecodeJob> jobs, ThreadPool* threads) const override { decode_in(jobs, threads, nullptr); }
  void decode_in(std::span<DecodeJob> jobs, ThreadPool* threads, KvtcTimes* times) const;
  void seal(EncodeJob& job, std::span<const CodedSection> sections) const override;
  Result<std::vector<OpenedSection>> open(const DecodeJob& job) const override;
  StackTables tables(std::uint32_t section) const;
  std::vector<float> turns(std::uint64_t first_position, std::uint32_t token_count) const;

 private:
  // Sections: keys of stack 0, values of stack 0, keys of stack 1, ...
  struct Part {
    std::uint32_t stack = 0;
    bool values = false;
  };
  static Part part(std::size_t section) { return {static_cast<std::uint32_t>(section / 2), section % 2 == 1}; }
  std::uint32_t stacks() const { return static_cast<std::uint32_t>(artefact_->keys.size()); }
  const StackBasis& basis(Part p) const { return artefact_->of(p.values)[p.stack]; }
  const StackPlan& plan(Part p) const { return plan_.of(p.values)[p.stack]; }
  std::uint64_t raw_bytes(const ExtentShape& shape, Part p) const {
    return basis(p).layer_count * tensor_shape(shape, p.values).bytes();
  }
  std::uint32_t stack_of(std::uint32_t layer) const {
    return artefact_->stack_layers == 0 ? 0 : layer / artefact_->stack_layers;
  }
  Status check_extent(const ExtentShape& shape) const;
  Status check_frame(const FrameHeader& header, const DecodeJob& job) const;
  Status check_entry(const SectionEntry& entry, const ExtentShape& shape, Part p) const;
  void encode_one(EncodeJob& job, ThreadPool* threads) const;
  struct Coded;
  using Coder = std::function<void(std::size_t section, std::span<std::byte> place, Coded& coded)>;
  void write_frame(EncodeJob& job, ThreadPool* threads, const Coder& code) const;
  void code_section(const EncodeJob& job, Part p, const std::vector<float>& x, const std::vector<float>& coefficients,
                    std::span<std::byte> place, Coded& coded) const;
  void store_section(const EncodeJob& job, Part p, std::span<std::byte> place, Coded& coded) const;
  void place_codes(std::span<const std::byte> codes, std::span<std::byte> place, Coded& coded) const;
  void load_layer(const EncodeJob& job, std::uint32_t layer, bool values, const KeyRotation::Angles& angles,
                  std::vector<float>& x) const;
  struct Opened;
  Status open_frame(const DecodeJob& job, std::optional<FrameView>& out) const;
  Status inflate_section(const DecodeJob& job, const FrameView& frame, Part p, Opened& out,
                         std::vector<std::byte>& codes) const;
  Status open_section(const DecodeJob& job, const FrameView& frame, Part p, Opened& out, KvtcTimes* times) const;
  Status restore_layer(const DecodeJob& job, std::uint32_t layer, bool values, const Opened& section,
                       const KeyRotation::Angles& angles, KvtcTimes* times) const;

  std::shared_ptr<const Artefact> artefact_;
  const KvtcPlan& plan_;
  KeyRotation rotation_;
  EntropyCoder entropy_;
};

std::size_t KvtcCodec::bound(const ExtentShape& shape) const {
  std::uint64_t bytes = frame_head_bytes(2 * stacks());
  for (std::size_t i = 0; i < 2 * stacks(); ++i) bytes += align_frame(raw_bytes(shape, part(i)));
  return bytes;
}

// An encode holds all values and coefficients of an extent as f32; a decode the coefficients.
std::size_t KvtcCodec::scratch_bytes(const ExtentShape& shape) const {
  const std::size_t tokens = std::size_t{shape.block_count} * kBlockTokens;
  std::size_t floats = 0;
  for (std::size_t i = 0; i < 2 * stacks(); ++i)
    floats += tokens * (basis(part(i)).channels + 2 * std::size_t{plan_components(plan(part(i)))});
  return floats * sizeof(float);
}

Status KvtcCodec::check_extent(const ExtentShape& shape) const {
  FIRN_TRY(check_shape(shape));
  if (shape.kv != artefact_->kv || shape.layer_count != artefact_->layer_count)
    return invalid_call("shape", fmt::format("is not that of the artefact's model {}", artefact_->model_name));
  return {};
}

// --- encode ---
struct KvtcCodec::Coded {
  SectionEntry entry;
  double error = 0, energy = 0;
};

// One layer's keys or values of a job into x, [token][channels of the stack], centred, rotation taken off.
void KvtcCodec::load_layer(const EncodeJob& job, std::uint32_t layer, bool values, const KeyRotation::Angles& angles,
                           std::vector<float>& x) const {
  const StackBasis& stack = basis({stack_of(layer), values});
  const TensorRows rows{.shape = tensor_shape(job.shape, values),
                        .views = job.views.subspan(std::size_t{layer} * job.shape.block_count, job.shape.block_count),
                        .values = values};
  const std::size_t width = rows.shape.channels(), first = (layer - stack.first_layer) * width;
  std::vector<float> flat(rows.shape.elements());
  rows.for_each_piece([&](const std::byte* piece, std::size_t element, std::size_t count) {
    lossy::load(rows.shape.dtype, piece, count, flat.data() + element);
  });
  for (std::uint32_t t = 0; t < rows.shape.token_count; ++t) {
    float* from = flat.data() + t * width;
    float* to = x.data() + std::size_t{t} * stack.channels + first;
    if (!values) rotation_.undo(from, rows.shape.heads, angles, t);
    for (std::size_t c = 0; c < width; ++c) to[c] = from[c] - stack.mean[first + c];
  }
}

void KvtcCodec::code_section(const EncodeJob& job, Part p, const std::vector<float>& x,
                             const std::vector<float>& coefficients, std::span<std::byte> place, Coded& coded) const {
  const std::size_t tokens = std::size_t{job.shape.block_count} * kBlockTokens;
  const std::uint64_t raw = raw_bytes(job.shape, p);
  const std::size_t kept = plan_components(plan(p)), packed = packed_bytes(plan(p), tokens);
  coded.energy = lossy::energy(x.data(), x.size());
  std::vector<float> decoded(coefficients.size());
  std::vector<std::byte> codes(packed);
  if (packed >= raw || !std::isfinite(coded.energy) ||
      !pack_coefficients(plan(p), coefficients.data(), kept, tokens, codes, decoded.data()))
    return store_section(job, p, place, coded);
  // The basis is orthonormal but for its rounding, so what is left out is what the coefficients lack in energy.
  coded.error = std::max(0.0, coded.energy - lossy::energy(coefficients.data(), coefficients.size())) +
                lossy::distance(coefficients.data(), decoded.data(), coefficients.size());
  place_codes(codes, place, coded);
}

void KvtcCodec::store_section(const EncodeJob& job, Part p, std::span<std::byte> place, Coded& coded) const {
  const std::uint32_t first = basis(p).first_layer;
  const std::size_t layer_bytes = tensor_shape(job.shape, p.values).bytes();
  for (std::uint32_t i = 0; i < basis(p).layer_count; ++i)
    gather({.shape = tensor_shape(job.shape, p.values),
            .views = job.views.subspan(std::size_t{first + i} * job.shape.block_count, job.shape.block_count),
            .values = p.values},
           place.subspan(i * layer_bytes, layer_bytes));
  coded.entry.coding = kStored;
  coded.entry.encoded_bytes = raw_bytes(job.shape, p);
  if (!std::isfinite(coded.energy)) coded.energy = 0;
}

void KvtcCodec::place_codes(std::span<const std::byte> codes, std::span<std::byte> place, Coded& coded) const {
  SectionEntry& entry = coded.entry;
  const std::size_t packed = codes.size();
  const std::size_t bytes = entropy_encode(entropy_, codes, place.first(std::min<std::size_t>(packed, place.size())));
  entry.coding = entropy_ == EntropyCoder::kZstd ? kZstd : kDeflated;
  entry.encoded_bytes = bytes;
  if (bytes != 0 || packed == 0) {
    if (packed == 0) entry.coding = kPacked;
    return;
  }
  entry.coding = kPacked;
  entry.encoded_bytes = packed;
  std::memcpy(place.data(), codes.data(), packed);
}

void KvtcCodec::encode_one(EncodeJob& job, ThreadPool* threads) const {
  const std::size_t sections = 2 * stacks(), layers = job.shape.layer_count;
  const std::size_t tokens = std::size_t{job.shape.block_count} * kBlockTokens;
  const KeyRotation::Angles angles = rotation_.angles(job.label.first_position, static_cast<std::uint32_t>(tokens));
  std::vector<std::vector<float>> x(sections), coefficients(sections);
  for (std::size_t i = 0; i < sections; ++i) {
    x[i].resize(tokens * basis(part(i)).channels);
    coefficients[i].resize(tokens * plan_components(plan(part(i))));
  }
  for_each_task(threads, 2 * layers, [&](std::size_t task) {
    const auto layer = static_cast<std::uint32_t>(task / 2);
    const bool values = task % 2 == 1;
    if (tensor_shape(job.shape, values).channels() == 0) return;
    load_layer(job, layer, values, angles, x[2 * stack_of(layer) + (values ? 1 : 0)]);
  });
  struct Slice {
    std::size_t section, first, count;
  };
  std::vector<Slice> slices;
  for (std::size_t i = 0; i < sections; ++i)
    for (std::size_t first = 0, kept = plan_components(plan(part(i))); first < kept; first += kComponentsAtATime)
      slices.push_back({i, first, std::min(kComponentsAtATime, kept - first)});
  for_each_task(threads, slices.size(), [&](std::size_t task) {
    const Slice& slice = slices[task];
    const StackBasis& stack = basis(part(slice.section));
    const std::size_t kept = plan_components(plan(part(slice.section)));
    lossy::project({.a = x[slice.section].data(),
                    .a_stride = stack.channels,
                    .rows = tokens,
                    .basis = stack.basis.data() + slice.first * stack.channels,
                    .basis_stride = stack.channels,
                    .components = slice.count,
                    .channels = stack.channels,
                    .c = coefficients[slice.section].data() + slice.first,
                    .c_stride = kept});
  });
  write_frame(job, threads, [&](std::size_t i, std::span<std::byte> place, Coded& coded) {
    code_section(job, part(i), x[i], coefficients[i], place, coded);
  });
}

void KvtcCodec::write_frame(EncodeJob& job, ThreadPool* threads, const Coder& code) const {
  const std::size_t sections = 2 * stacks();
  std::vector<Coded> coded(sections);
  std::vector<std::uint64_t> offsets(sections + 1, frame_head_bytes(static_cast<std::uint32_t>(sections)));
  for (std::size_t i = 0; i < sections; ++i) offsets[i + 1] = offsets[i] + align_frame(raw_bytes(job.shape, part(i)));
  const FrameKey name = frame_key(job.label, job.shape.block_count, id(), version(), artefact(), rate());
  for_each_task(threads, sections, [&](std::size_t i) {
    const Part p = part(i);
    coded[i].entry = {.index = static_cast<std::uint16_t>(p.stack),
                      .kind = p.values ? SectionKind::kStackValues : SectionKind::kStackKeys,
                      .parameter = basis(p).first_layer,
                      .offset = offsets[i],
                      .raw_bytes = raw_bytes(job.shape, p)};
    const std::span<std::byte> place = job.out.subspan(offsets[i], offsets[i + 1] - offsets[i]);
    code(i, place, coded[i]);
    SectionEntry& entry = coded[i].entry;
    const std::span<std::byte> padded = place.first(align_frame(entry.encoded_bytes));
    std::fill(padded.begin() + static_cast<std::ptrdiff_t>(entry.encoded_bytes), padded.end(), std::byte{0});
    entry.checksum = section_checksum(name, static_cast<std::uint32_t>(i), padded);
  });
  std::vector<SectionEntry> entries;
  double error[2] = {}, energy[2] = {};
  for (std::size_t i = 0; i < sections; ++i) {
    entries.push_back(coded[i].entry);
    error[i % 2] += coded[i].error;
    energy[i % 2] += coded[i].energy;
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
  const auto relative = [&](int i) { return energy[i] > 0 ? static_cast<float>(std::sqrt(error[i] / energy[i])) : 0; };
  header.key_error = job.key_error = relative(0);
  header.value_error = job.value_error = relative(1);
  job.bytes = finish_frame(header, entries, job.out);
}

void KvtcCodec::seal(EncodeJob& job, std::span<const CodedSection> sections) const {
  FIRN_CHECK(sections.size() == 2 * stacks());
  job.bytes = 0;
  job.status = check_extent(job.shape);
  if (job.status.ok()) job.status = check_encode(job, *this, bound(job.shape));
  if (!job.status.ok()) return;
  const std::size_t tokens = std::size_t{job.shape.block_count} * kBlockTokens;
  write_frame(job, nullptr, [&](std::size_t i, std::span<std::byte> place, Coded& coded) {
    const CodedSection& section = sections[i];
    coded.energy = section.energy;
    if (section.stored || packed_bytes(plan(part(i)), tokens) >= raw_bytes(job.shape, part(i)))
      return store_section(job, part(i), place, coded);
    FIRN_CHECK(section.payload.size() == packed_bytes(plan(part(i)), tokens));
    coded.error = section.error_energy;
    place_codes(section.payload, place, coded);
  });
}

void KvtcCodec::encode(std::span<EncodeJob> jobs, ThreadPool* threads) const {
  for (EncodeJob& job : jobs) {
    job.bytes = 0;
    job.status = check_extent(job.shape);
    if (job.status.ok()) job.status = check_encode(job, *this, bound(job.shape));
    if (job.status.ok()) encode_one(job, threads);
  }
}

// --- decode ---
struct KvtcCodec::Opened {
  std::uint8_t coding = kStored;
  std::span<const std::byte> stored;
  std::vector<float> coefficients;
};

Status KvtcCodec::check_frame(const FrameHeader& header, const DecodeJob& job) const {
  FIRN_TRY(check_identity(header, job, *this));
  if (header.artefact != artefact())
    return differs("artefact", "is " + to_hex(header.artefact) + ", not " + to_hex(artefact()));
  FIRN_TRY(check_same("section_count", header.section_count, 2 * stacks()));
  FIRN_TRY(check_same("flags", header.keys_unrotated ? 1 : 0, rotation_.none() ? 0 : 1));
  FIRN_TRY(check_same("position_kind", header.position_kind, 0));
  FIRN_TRY(check_same("stack_count", header.stack_count, stacks()));
  FIRN_TRY(check_same("rate", header.rate, rate()));
  FIRN_TRY(check_error("key_error", header.key_error, false));
  return check_error("value_error", header.value_error, false);
}

Status KvtcCodec::check_entry(const SectionEntry& entry, const ExtentShape& shape, Part p) const {
  FIRN_TRY(check_same("index", entry.index, p.stack));
  FIRN_TRY(check_same("kind", static_cast<unsigned>(entry.kind),
                      static_cast<unsigned>(p.values ? SectionKind::kStackValues : SectionKind::kStackKeys)));
  FIRN_TRY(check_same("parameter", entry.parameter, basis(p).first_layer));
  FIRN_TRY(check_same("raw_bytes", entry.raw_bytes, raw_bytes(shape, p)));
  if (entry.encoded_bytes > entry.raw_bytes)
    return differs("encoded_bytes", fmt::format("is {}, more than raw_bytes", entry.encoded_bytes));
  return {};
}

Status KvtcCodec::open_frame(const DecodeJob& job, std::optional<FrameView>& out) const {
  FIRN_TRY(check_decode(job));
  FIRN_TRY(check_extent(job.shape));
  FIRN_ASSIGN(out, FrameView::open(job.frame));
  return check_frame(out->header(), job);
}

// The stored elements, or codes as they were before the entropy stage.
Status KvtcCodec::inflate_section(const DecodeJob& job, const FrameView& frame, Part p, Opened& out,
                                  std::vector<std::byte>& codes) const {
  const auto section = 2 * p.stack + (p.values ? 1 : 0);
  const SectionEntry entry = frame.section(section);
  FIRN_TRY(check_entry(entry, job.shape, p));
  FIRN_ASSIGN(const std::span<const std::byte> payload, frame.payload(section));
  out.coding = entry.coding;
  if (entry.coding == kStored) {
    if (payload.size() != entry.raw_bytes) return corrupt("stored bytes are of another size");
    out.stored = payload;
    return {};
  }
  if (entry.coding > kPacked) return corrupt(fmt::format("coding is {}, not 0 to {}", entry.coding, kPacked));
  codes.resize(packed_bytes(plan(p), std::size_t{job.shape.block_count} * kBlockTokens));
  const EntropyCoder coder = entry.coding == kDeflated ? EntropyCoder::kDeflate
                             : entry.coding == kZstd   ? EntropyCoder::kZstd
                                                       : EntropyCoder::kNone;
  return entropy_decode(coder, payload, codes);
}

Status KvtcCodec::open_section(const DecodeJob& job, const FrameView& frame, Part p, Opened& out,
                               KvtcTimes* times) const {
  Stopwatch watch(times);
  std::vector<std::byte> codes;
  FIRN_TRY(inflate_section(job, frame, p, out, codes));
  if (out.coding == kStored) return {};
  watch.lap(&KvtcTimes::entropy_s);
  const std::size_t tokens = std::size_t{job.shape.block_count} * kBlockTokens;
  const std::size_t kept = plan_components(plan(p));
  out.coefficients.resize(tokens * kept);
  const Status unpacked = unpack_coefficients(plan(p), codes, tokens, kept, out.coefficients.data());
  watch.lap(&KvtcTimes::unpack_s);
  return unpacked;
}

Result<std::vector<OpenedSection>> KvtcCodec::open(const DecodeJob& job) const {
  std::optional<FrameView> frame;
  FIRN_TRY(open_frame(job, frame));
  std::vector<OpenedSection> opened;
  if (job.layer_count == 0) return opened;
  for (std::uint32_t stack = stack_of(job.layer); stack <= stack_of(job.layer + job.layer_count - 1); ++stack)
    for (const bool values : {false, true}) {
      const Part p{stack, values};
      const std::uint32_t section = 2 * stack + (values ? 1 : 0);
      Opened out;
      std::vector<std::byte> codes;
      Status status = inflate_section(job, *frame, p, out, codes);
      if (status.ok() && out.coding != kStored)
        status = check_scales(plan(p), codes, std::size_t{job.shape.block_count} * kBlockTokens);
      if (!status.ok()) return status.with_context(fmt::format("section {}", section));
      if (out.coding == kStored) codes.assign(out.stored.begin(), out.stored.end());
      opened.push_back({section, out.coding == kStored, std::move(codes)});
    }
  return opened;
}

Status KvtcCodec::restore_layer(const DecodeJob& job, std::uint32_t layer, bool values, const Opened& section,
                                const KeyRotation::Angles& angles, KvtcTimes* times) const {
  Stopwatch watch(times);
  const StackBasis& stack = basis({stack_of(layer), values});
  const std::size_t blocks = job.shape.block_count;
  const TensorRows rows{.shape = tensor_shape(job.shape, values),
                        .views = job.views.subspan((layer - job.layer) * blocks, blocks),
                        .values = values};
  const std::size_t width = rows.shape.channels(), first = (layer - stack.first_layer) * width;
  if (width == 0) return {};
  if (section.coding == kStored)
    return scatter(section.stored.subspan((layer - stack.first_layer) * rows.shape.bytes(), rows.shape.bytes()), rows);
  const std::size_t kept = plan_components(plan({stack_of(layer), values}));
  std::vector<float> out(rows.shape.elements());
  for (std::size_t block = 0; block < blocks; ++block) {  // runs of blocks that are wanted
    if (rows.views[block].k == 0) continue;
    std::size_t end = block + 1;
    while (end < blocks && rows.views[end].k != 0) ++end;
    const std::size_t token = block * kBlockTokens, count = (end - block) * kBlockTokens;
    if (kept == 0) {
      std::fill_n(out.data() + token * width, count * width, 0.0f);
    } else {
      lossy::reconstruct({.a = section.coefficients.data() + token * kept,
                          .a_stride = kept,
                          .rows = count,
                          .basis = stack.basis.data() + first,
                          .basis_stride = stack.channels,
                          .components = kept,
                          .channels = width,
                          .c = out.data() + token * width,
                          .c_stride = width});
    }
    watch.lap(&KvtcTimes::project_s);
    for (std::size_t t = token; t < token + count; ++t) {
      float* row = out.data() + t * width;
      for (std::size_t c = 0; c < width; ++c) row[c] += stack.mean[first + c];
      if (!values) rotation_.apply(row, rows.shape.heads, angles, static_cast<std::uint32_t>(t));
    }
    block = end - 1;
  }
  rows.for_each_piece([&](std::byte* piece, std::size_t element, std::size_t count) {
    lossy::store(rows.shape.dtype, out.data() + element, count, piece);
  });
  watch.lap(&KvtcTimes::copy_s);
  return {};
}

void KvtcCodec::decode_in(std::span<DecodeJob> jobs, ThreadPool* threads, KvtcTimes* times) const {
  // A few at a time: their coefficients are in memory together.
  constexpr std::size_t kJobsAtATime = 4;
  for (std::size_t base = 0; base < jobs.size(); base += kJobsAtATime) {
    const std::span<DecodeJob> some = jobs.subspan(base, std::min(kJobsAtATime, jobs.size() - base));
    std::vector<std::optional<FrameView>> frames(some.size());
    std::vector<KeyRotation::Angles> angles(some.size());
    TaskMap sections(some.size()), layers(some.size());
    for (std::size_t j = 0; j < some.size(); ++j) {
      DecodeJob& job = some[j];
      job.status = open_frame(job, frames[j]);
      const bool wanted = job.status.ok() && job.layer_count != 0 &&
                          std::any_of(job.views.begin(), job.views.end(), [](const BlockView& v) { return v.k != 0; });
      if (wanted) angles[j] = rotation_.angles(job.label.first_position, job.shape.block_count * kBlockTokens);
      const std::size_t touched = wanted ? stack_of(job.layer + job.layer_count - 1) - stack_of(job.layer) + 1 : 0;
      sections.add_job(2 * touched);
      layers.add_job(wanted ? 2 * job.layer_count : 0);
    }
    std::vector<Opened> opened(sections.count());
    std::vector<Status> results(sections.count());
    const auto section_of = [&](std::size_t j, std::size_t local) {
      return Part{stack_of(some[j].layer) + static_cast<std::uint32_t>(local / 2), local % 2 == 1};
    };
    for_each_task(threads, sections.count(), [&](std::size_t task) {
      const std::size_t j = sections.job_of(task);
      const Part p = section_of(j, task - sections.first(j));
      const Status status = open_section(some[j], *frames[j], p, opened[task], times);
      if (!status.ok())
        results[task] = status.with_context(fmt::format("section {}", 2 * p.stack + (p.values ? 1 : 0)));
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
      const bool values = local % 2 == 1;
      const std::size_t section = 2 * (stack_of(layer) - stack_of(some[j].layer)) + (values ? 1 : 0);
      restore_layer(some[j], layer, values, opened[sections.first(j) + section], angles[j], times)
          .ok();  // sizes were checked
    });
  }
}

StackTables KvtcCodec::tables(std::uint32_t section) const {
  const Part p = part(section);
  const StackBasis& stack = basis(p);
  const std::size_t kept = plan_components(plan(p));
  StackTables out;
  out.transform.values = p.values;
  out.transform.layer_count = stack.layer_count;
  out.mean = stack.mean;
  out.basis = std::span(stack.basis).first(kept * stack.channels);
  for (const Group& group : plan(p)) out.transform.groups.push_back({group.size, group.bits});
  if (p.values || rotation_.none()) return out;
  out.transform.pairing = artefact_->rotation.pairing;
  out.transform.rotated_dims = artefact_->rotation.dims;
  out.transform.attention_factor = artefact_->rotation.attention_factor;
  return out;
}

std::vector<float> KvtcCodec::turns(std::uint64_t first_position, std::uint32_t token_count) const {
  KeyRotation::Angles angles = rotation_.angles(first_position, token_count);
  angles.cosines.insert(angles.cosines.end(), angles.sines.begin(), angles.sines.end());
  return std::move(angles.cosines);
}

StackTables stack_tables(const Codec& codec, std::uint32_t section) {
  FIRN_CHECK(codec.id() == CodecId::kKvtc);
  return static_cast<const KvtcCodec&>(codec).tables(section);
}
std::vector<float> key_turns(const Codec& codec, std::uint64_t first_position, std::uint32_t token_count) {
  FIRN_CHECK(codec.id() == CodecId::kKvtc);
  return static_cast<const KvtcCodec&>(codec).turns(first_position, token_count);
}

void decode_timed(const Codec& codec, DecodeJob& job, ThreadPool* threads, KvtcTimes& times) {
  FIRN_CHECK(codec.id() == CodecId::kKvtc);
  static_cast<const KvtcCodec&>(codec).decode_in({&job, 1}, threads, &times);
}

Result<std::unique_ptr<Codec>> make_codec(CodecId id, std::shared_ptr<const Artefact> artefact, std::uint32_t rate,
                                          const ModelSpec& model, EntropyCoder entropy) {
  const auto wrong = [&](std::string what) {
    return Status(Code::kInvalidArgument, fmt::format("codec {}: {}", to_string(id), what));
  };
  if (id != CodecId::kKvtc && id != CodecId::kFirn) return wrong("takes no artefact");
  if (!artefact) return wrong("needs an artefact; `firn calibrate` writes one");
  if (artefact->codec != id) return wrong(fmt::format("the artefact is of the codec {}", to_string(artefact->codec)));
  if (model.groups.size() != 1 || model.groups[0].kv != artefact->kv ||
      model.groups[0].layer_count != artefact->layer_count)
    return wrong(
        fmt::format("the artefact is for {} and another geometry than that of {}", artefact->model_name, model.name));
  if (artefact->weights != model.weights)
    return wrong(fmt::format("the artefact was calibrated on other weights ({}, {}) than those of {}; calibrate again",
                             artefact->model_name, to_hex(artefact->weights).substr(0, 16), model.name));
  const RotationSpec &a = artefact->rotation, &b = model.rotation;
  if (a.pairing != b.pairing || a.dims != b.dims || a.inverse_frequencies != b.inverse_frequencies ||
      a.attention_factor != b.attention_factor)
    return wrong("the artefact is for another rotation of keys; calibrate again");
  FIRN_ASSIGN(KeyRotation rotation, KeyRotation::make(model.rotation, artefact->kv.head_dim));
  if (id == CodecId::kFirn) {
    FIRN_ASSIGN(const FirnSetting setting, firn_setting(*artefact, rate));
    return make_firn_codec(std::move(artefact), std::move(rotation), setting.step, setting.bound);
  }
  std::string rates;
  for (const KvtcPlan& plan : artefact->plans) {
    if (plan.report.rate == rate)
      return std::unique_ptr<Codec>(std::make_unique<KvtcCodec>(artefact, plan, std::move(rotation), entropy));
    rates += (rates.empty() ? "" : ", ") + std::to_string(plan.report.rate);
  }
  return wrong(fmt::format("the artefact has no ratio {}; it has {}", rate, rates));
}

}  // namespace firn
