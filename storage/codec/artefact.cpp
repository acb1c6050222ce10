#include "storage/codec/artefact.h"

#include <blake3.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/base/check.h"
#include "core/base/json_value.h"
#include "storage/codec/artefact_tensors.h"
#include "storage/codec/bytes.h"

namespace firn {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "firn artefact 1";
constexpr const char* kMetadata = "__metadata__";
constexpr const char* kDescription = "firn";  // key of the metadata that has it
constexpr const char* kChecksum = "zz.blake3";
constexpr std::uint64_t kMaxFileBytes = std::uint64_t{16} << 30, kMaxHeaderBytes = 16u << 20;
constexpr std::size_t kMaxRates = 64;

Status corrupt(std::string_view field, std::string_view what) { return corrupt_artefact(field, what); }

Digest hash(std::span<const std::byte> bytes) {
  blake3_hasher state;
  blake3_hasher_init(&state);
  blake3_hasher_update(&state, bytes.data(), bytes.size());
  Digest digest;
  blake3_hasher_finalize(&state, digest.bytes.data(), digest.bytes.size());
  return digest;
}

// --- fields of the description; every one is checked ---
Result<std::uint64_t> number(const JsonValue& object, const char* field, std::uint64_t least, std::uint64_t most) {
  const JsonValue* const found = object.find(field);
  if (found == nullptr || !found->is_unsigned()) return corrupt(field, "is not a number of 0 or more");
  const auto value = found->as_unsigned();
  if (value < least || value > most) return corrupt(field, fmt::format("is {}, not {} to {}", value, least, most));
  return value;
}

Result<double> real(const JsonValue& object, const char* field) {
  const JsonValue* const found = object.find(field);
  if (found == nullptr || !found->is_number()) return corrupt(field, "is not a number");
  const auto value = found->as_real();
  if (!std::isfinite(value) || value < 0) return corrupt(field, "is not a finite number of 0 or more");
  return value;
}

Result<std::string> text(const JsonValue& object, const char* field) {
  const JsonValue* const found = object.find(field);
  if (found == nullptr || !found->is_text()) return corrupt(field, "is not a text");
  return found->as_text();
}

Result<Digest> digest_of_hex(const std::string& hex, const char* field) {
  Digest digest;
  if (hex.size() != 64) return corrupt(field, "is not 64 hexadecimal digits");
  for (std::size_t i = 0; i < 64; ++i) {
    const char c = hex[i];
    const int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (value < 0) return corrupt(field, "is not 64 hexadecimal digits");
    digest.bytes[i / 2] = static_cast<std::uint8_t>(digest.bytes[i / 2] << 4 | value);
  }
  return digest;
}

// --- tensors ---
using Tensor = ArtefactTensor;
using Tensors = ArtefactTensors;

std::size_t element_size(const std::string& dtype) {
  return dtype == "F32" || dtype == "U32" ? 4 : dtype == "F16" || dtype == "U16" ? 2 : dtype == "U8" ? 1 : 0;
}

Result<Tensor> read_tensor(const JsonValue& entry, std::span<const std::byte> data, std::uint64_t& begin) {
  Tensor tensor;
  FIRN_ASSIGN(tensor.dtype, text(entry, "dtype"));
  const std::size_t size = element_size(tensor.dtype);
  if (size == 0) return corrupt("dtype", "is '" + tensor.dtype.substr(0, 16) + "', which no artefact has");
  const JsonValue *const shape = entry.find("shape"), *const offsets = entry.find("data_offsets");
  if (shape == nullptr || !shape->is_array() || shape->items().size() > 2)
    return corrupt("shape", "is not 0 to 2 numbers");
  std::uint64_t bytes = size;
  for (const JsonValue& extent : shape->items()) {
    if (!extent.is_unsigned() || extent.as_unsigned() > kMaxFileBytes) return corrupt("shape", "is not of numbers");
    tensor.shape.push_back(extent.as_unsigned());
    if (tensor.shape.back() != 0 && bytes > kMaxFileBytes / tensor.shape.back())
      return corrupt("shape", "is larger than any file");
    bytes *= tensor.shape.back();
  }
  if (offsets == nullptr || !offsets->is_array() || offsets->items().size() != 2 ||
      !offsets->items()[0].is_unsigned() || !offsets->items()[1].is_unsigned())
    return corrupt("data_offsets", "are not two numbers");
  begin = offsets->items()[0].as_unsigned();
  const std::uint64_t end = offsets->items()[1].as_unsigned();
  if (begin > end || end > data.size() || end - begin != bytes)
    return corrupt("data_offsets", "do not fit the shape and the file");
  tensor.bytes = data.subspan(begin, bytes);
  return tensor;
}

// The header's JSON, and all tensors: they follow each other without gap or overlap to the end of the file.
Status read_tensors(const JsonValue& header, std::span<const std::byte> data, Tensors& tensors) {
  std::map<std::uint64_t, std::uint64_t> ranges;
  std::size_t empty = 0;
  for (std::size_t i = 0; i < header.names().size(); ++i) {
    const std::string& name = header.names()[i];
    const JsonValue& entry = header.items()[i];
    if (name == kMetadata) continue;
    if (!entry.is_object()) return corrupt("tensor", "is not described by an object");
    std::uint64_t begin = 0;
    Result<Tensor> tensor = read_tensor(entry, data, begin);
    if (!tensor.ok()) return tensor.status().with_context("tensor " + name.substr(0, 64));
    if (tensor->bytes.empty())
      ++empty;
    else if (!ranges.emplace(begin, begin + tensor->bytes.size()).second)
      return corrupt("data_offsets", "overlap");
    tensors.emplace(name, *std::move(tensor));
  }
  std::uint64_t at = 0;
  for (const auto& [begin, end] : ranges) {
    if (begin != at) return corrupt("data_offsets", "overlap or leave a gap");
    at = end;
  }
  if (at != data.size()) return corrupt("data_offsets", "do not reach the end of the file");
  return {};
}

Result<std::span<const std::byte>> take(Tensors& tensors, const std::string& name, const char* dtype,
                                        std::vector<std::uint64_t> shape) {
  return take_tensor(tensors, name, dtype, std::move(shape));
}

std::string tensor_name(bool values, std::size_t stack, const char* part) {
  return fmt::format("{}.{}.{}", values ? "values" : "keys", stack, part);
}
std::string plan_name(std::uint32_t rate, bool values, std::size_t stack) {
  return fmt::format("plan.{}.{}.{}", rate, values ? "values" : "keys", stack);
}

Status read_stacks(Tensors& tensors, bool values, Artefact& artefact) {
  const std::uint32_t width = artefact.kv.kv_heads * (values ? artefact.kv.value_dim : artefact.kv.head_dim);
  const std::uint32_t step = artefact.stack_layers == 0 ? artefact.layer_count : artefact.stack_layers;
  for (std::uint32_t first = 0; first < artefact.layer_count; first += step) {
    StackBasis stack;
    stack.first_layer = first;
    stack.layer_count = std::min(step, artefact.layer_count - first);
    stack.channels = stack.layer_count * width;
    const std::size_t i = first / step;
    FIRN_ASSIGN(stack.mean, take_floats(tensors, tensor_name(values, i, "mean"), stack.channels));
    const std::string name = tensor_name(values, i, "basis");
    const auto basis = tensors.find(name);
    if (basis == tensors.end()) return corrupt(name, "is missing");
    if (basis->second.shape.size() != 2 || basis->second.shape[0] > stack.channels)
      return corrupt(name, "has more components than channels");
    stack.components = static_cast<std::uint32_t>(basis->second.shape[0]);
    FIRN_ASSIGN(stack.basis, take_halves(tensors, name, {stack.components, stack.channels}));
    (values ? artefact.values : artefact.keys).push_back(std::move(stack));
  }
  return {};
}

Result<StackPlan> read_plan(Tensors& tensors, const std::string& name, std::uint32_t components) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) return corrupt(name, "is missing");
  if (found->second.shape.size() != 2) return corrupt(name, "is no table");
  const std::uint64_t groups = found->second.shape[0];
  FIRN_ASSIGN(const std::span<const std::byte> bytes, take(tensors, name, "U32", {groups, 2}));
  StackPlan plan;
  std::uint64_t at = 0;
  for (std::uint64_t i = 0; i < groups; ++i) {
    const Group group{.size = load_le<std::uint32_t>(bytes.data() + 8 * i),
                      .bits = load_le<std::uint32_t>(bytes.data() + 8 * i + 4)};
    const bool known_size = group.size == 1 || group.size == 16 || group.size == 64 || group.size == 256 ||
                            group.size == 1024 || (group.bits == 0 && group.size != 0);
    if (!known_size || (group.bits != 0 && group.bits != 2 && group.bits != 4 && group.bits != 8))
      return corrupt(name, fmt::format("group {} is no group: {} components of {} bits", i, group.size, group.bits));
    at += group.size;
    if (at > components) return corrupt(name, "reaches beyond the components");
    plan.push_back(group);
  }
  if (!plan.empty() && plan.back().bits == 0) return corrupt(name, "ends with a group without bits");
  return plan;
}

Result<std::vector<double>> reals(const JsonValue& object, const char* field, std::size_t most) {
  const JsonValue* const found = object.find(field);
  if (found == nullptr || !found->is_array() || found->items().size() > most)
    return corrupt(field, "is no list of numbers");
  std::vector<double> values;
  for (const JsonValue& value : found->items()) {
    if (!value.is_number() || !std::isfinite(value.as_real())) return corrupt(field, "is no list of numbers");
    values.push_back(value.as_real());
  }
  return values;
}

// The guard compares errors with it: infinity would let everything pass.
Result<float> error_bound(const JsonValue& object, const char* field) {
  FIRN_ASSIGN(const double value, real(object, field));
  constexpr double kMost = std::numeric_limits<float>::max();
  const float bound = value <= kMost ? static_cast<float>(value) : -1.0f;
  if (!std::isfinite(bound) || bound < 0) return corrupt(field, fmt::format("is {}, which bounds nothing", value));
  return bound;
}

Result<ArtefactRate> read_rate(const JsonValue& from, std::uint32_t layers) {
  if (!from.is_object()) return corrupt("rates", "are not objects");
  ArtefactRate rate;
  FIRN_ASSIGN(const std::uint64_t value, number(from, "rate", 1, 1u << 20));
  rate.rate = static_cast<std::uint32_t>(value);
  FIRN_ASSIGN(rate.realised_ratio, real(from, "realised_ratio"));
  FIRN_ASSIGN(rate.payload_bits, real(from, "payload_bits"));
  FIRN_ASSIGN(rate.target_bits, real(from, "target_bits"));
  FIRN_ASSIGN(rate.bound.keys, error_bound(from, "key_bound"));
  FIRN_ASSIGN(rate.bound.values, error_bound(from, "value_bound"));
  FIRN_ASSIGN(rate.measured_tokens, number(from, "measured_tokens", 0, ~std::uint64_t{0} >> 1));
  rate.measured = rate.measured_tokens != 0;
  FIRN_ASSIGN(rate.mean_kld, real(from, "mean_kld"));
  FIRN_ASSIGN(rate.p99_kld, real(from, "p99_kld"));
  FIRN_ASSIGN(rate.top1, real(from, "top1"));
  FIRN_ASSIGN(rate.key_errors, reals(from, "key_errors", layers));
  FIRN_ASSIGN(rate.value_errors, reals(from, "value_errors", layers));
  return rate;
}

Json rate_json(const ArtefactRate& rate) {
  return {{"rate", rate.rate},
          {"realised_ratio", rate.realised_ratio},
          {"payload_bits", rate.payload_bits},
          {"target_bits", rate.target_bits},
          {"key_bound", rate.bound.keys},
          {"value_bound", rate.bound.values},
          {"measured_tokens", rate.measured ? rate.measured_tokens : 0},
          {"mean_kld", rate.mean_kld},
          {"p99_kld", rate.p99_kld},
          {"top1", rate.top1},
          {"key_errors", rate.key_errors},
          {"value_errors", rate.value_errors}};
}

Status read_description(const JsonValue& from, Artefact& artefact) {
  FIRN_ASSIGN(const std::string format, text(from, "format"));
  if (format != kFormat) return corrupt("format", fmt::format("is '{}', not '{}'", format.substr(0, 32), kFormat));
  FIRN_ASSIGN(const std::string codec, text(from, "codec"));
  if (codec != to_string(CodecId::kKvtc) && codec != to_string(CodecId::kFirn))
    return corrupt("codec", "is neither kvtc nor firn");
  artefact.codec = codec == to_string(CodecId::kKvtc) ? CodecId::kKvtc : CodecId::kFirn;
  FIRN_ASSIGN(artefact.model_name, text(from, "model"));
  FIRN_ASSIGN(artefact.calibrated_on, text(from, "calibrated_on"));
  FIRN_ASSIGN(const std::string weights, text(from, "weights"));
  FIRN_ASSIGN(artefact.weights, digest_of_hex(weights, "weights"));
  const auto u32 = [&](const char* field, std::uint64_t least, std::uint64_t most, std::uint32_t& out) -> Status {
    FIRN_ASSIGN(const std::uint64_t value, number(from, field, least, most));
    out = static_cast<std::uint32_t>(value);
    return {};
  };
  std::uint32_t dtype = 0, pairing = 0, factor = 0;
  FIRN_TRY(u32("dtype", 1, 3, dtype));
  FIRN_TRY(u32("kv_heads", 1, kMaxKvHeads, artefact.kv.kv_heads));
  FIRN_TRY(u32("head_dim", 1, kMaxHeadDim, artefact.kv.head_dim));
  FIRN_TRY(u32("value_dim", 0, kMaxHeadDim, artefact.kv.value_dim));
  FIRN_TRY(u32("layers", 1, kMaxLayers, artefact.layer_count));
  FIRN_TRY(u32("stack_layers", 0, artefact.layer_count, artefact.stack_layers));
  FIRN_TRY(u32("pairing", 0, 2, pairing));
  FIRN_TRY(u32("rotated_dims", 0, artefact.kv.head_dim, artefact.rotation.dims));
  FIRN_TRY(u32("attention_factor_bits", 0, ~0u, factor));
  FIRN_ASSIGN(artefact.tokens, number(from, "tokens", 0, ~std::uint64_t{0} >> 1));
  artefact.kv.dtype = static_cast<Dtype>(dtype);
  artefact.rotation.pairing = static_cast<RotationSpec::Pairing>(pairing);
  artefact.rotation.attention_factor = std::bit_cast<float>(factor);
  const JsonValue* const rates = from.find("rates");
  if (rates == nullptr || !rates->is_array() || rates->items().size() > kMaxRates)
    return corrupt("rates", "are no list");
  for (const JsonValue& entry : rates->items()) {
    FIRN_ASSIGN(ArtefactRate rate, read_rate(entry, artefact.layer_count));
    for (const KvtcPlan& other : artefact.plans)
      if (other.report.rate == rate.rate) return corrupt("rates", "have one rate twice");
    artefact.plans.push_back({.report = std::move(rate), .keys = {}, .values = {}});
  }
  return {};
}

// What an artefact of firn says beside what all of them say.
Status read_firn_description(const JsonValue& from, Artefact& artefact) {
  FirnModel& model = artefact.firn;
  const auto u32 = [&](const JsonValue& object, const char* field, std::uint64_t least, std::uint64_t most,
                       std::uint32_t& out) -> Status {
    FIRN_ASSIGN(const std::uint64_t value, number(object, field, least, most));
    out = static_cast<std::uint32_t>(value);
    return {};
  };
  FIRN_ASSIGN(model.sensitivity, text(from, "sensitivity"));
  FIRN_TRY(u32(from, "exact_tokens", 0, 1u << 16, model.exact_tokens));
  std::uint32_t threshold = 0, mean_step = 0, sink_step = 0;
  FIRN_TRY(u32(from, "detector_threshold_bits", 0, ~0u, threshold));
  FIRN_TRY(u32(from, "mean_step", 0, 2 * kMaxFirnStepOffset, mean_step));
  FIRN_TRY(u32(from, "sink_step", 0, 2 * kMaxFirnStepOffset, sink_step));
  model.detector_threshold = std::bit_cast<float>(threshold);
  if (!std::isfinite(model.detector_threshold)) return corrupt("detector_threshold_bits", "are no finite number");
  model.mean_step = static_cast<std::int32_t>(mean_step) - kMaxFirnStepOffset;
  model.sink_step = static_cast<std::int32_t>(sink_step) - kMaxFirnStepOffset;
  const JsonValue* const layers = from.find("detector_layers");
  if (layers == nullptr || !layers->is_array() || layers->items().size() > artefact.layer_count)
    return corrupt("detector_layers", "are no list of layers");
  for (const JsonValue& layer : layers->items()) {
    if (!layer.is_unsigned() || layer.as_unsigned() >= artefact.layer_count)
      return corrupt("detector_layers", "are not of this model");
    model.detector_layers.push_back(static_cast<std::uint32_t>(layer.as_unsigned()));
  }
  if (!model.detector_layers.empty() && artefact.kv.value_dim == 0)
    return corrupt("detector_layers", "need values, which this model does not have");
  for (const JsonValue& entry : from.find("rates")->items()) {  // which were read
    FirnRate rate;
    FIRN_TRY(u32(entry, "step", kFirnFirstStep, kFirnLastStep, rate.step));
    const std::size_t i = model.rates.size();
    if (i != 0 &&
        (rate.step <= model.rates.back().step || artefact.plans[i].report.rate <= artefact.plans[i - 1].report.rate))
      return corrupt("rates", "do not grow");
    model.rates.push_back(rate);
  }
  return {};
}

}  // namespace

Status corrupt_artefact(std::string_view field, std::string_view what) {
  return Status(Code::kCorrupt, fmt::format("artefact: {} {}", field, what));
}

Result<std::span<const std::byte>> take_tensor(ArtefactTensors& tensors, const std::string& name, const char* dtype,
                                               std::vector<std::uint64_t> shape) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) return corrupt(name, "is missing");
  if (found->second.dtype != dtype || found->second.shape != shape)
    return corrupt(name, fmt::format("is not {} of the expected shape", dtype));
  const std::span<const std::byte> bytes = found->second.bytes;
  tensors.erase(found);
  return bytes;
}

Result<std::vector<float>> take_floats(ArtefactTensors& tensors, const std::string& name, std::uint64_t count) {
  FIRN_ASSIGN(const std::span<const std::byte> bytes, take_tensor(tensors, name, "F32", {count}));
  std::vector<float> values(count);
  if (count != 0) std::memcpy(values.data(), bytes.data(), bytes.size());  // an empty vector may have no address
  for (const float value : values)
    if (!std::isfinite(value)) return corrupt(name, "has a value that is not finite");
  return values;
}

Result<std::vector<std::uint16_t>> take_halves(ArtefactTensors& tensors, const std::string& name,
                                               std::vector<std::uint64_t> shape) {
  FIRN_ASSIGN(const std::span<const std::byte> bytes, take_tensor(tensors, name, "F16", std::move(shape)));
  std::vector<std::uint16_t> values(bytes.size() / 2);
  if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  for (const std::uint16_t half : values)
    if ((half & 0x7C00) == 0x7C00) return corrupt(name, "has a value that is not finite");
  return values;
}

std::uint64_t plan_bits(const StackPlan& plan) {
  std::uint64_t bits = 0;
  for (const Group& group : plan) bits += group.bits == 0 ? 0 : std::uint64_t{group.size} * group.bits + 32;
  return bits;
}

std::uint32_t plan_components(const StackPlan& plan) {
  std::uint32_t components = 0;
  for (const Group& group : plan) components += group.size;
  return components;
}

Result<std::shared_ptr<const Artefact>> parse_artefact(std::span<const std::byte> file) {
  if (file.size() < 8 || file.size() > kMaxFileBytes) return corrupt("size", "is not that of an artefact");
  const auto header_bytes = load_le<std::uint64_t>(file.data());
  if (header_bytes > kMaxHeaderBytes || header_bytes > file.size() - 8)
    return corrupt("header", "reaches beyond the file");
  // Everything is under the checksum, so it comes first: no damage gets any further.
  const std::size_t covered = file.size() - sizeof(Digest::bytes);
  if (covered < 8 + header_bytes) return corrupt("checksum", "is missing");
  auto artefact = std::make_shared<Artefact>();
  artefact->digest = hash(file.first(covered));
  artefact->file_bytes = file.size();
  if (std::memcmp(file.data() + covered, artefact->digest.bytes.data(), sizeof(Digest::bytes)) != 0)
    return corrupt("checksum", "does not match");
  const std::optional<JsonValue> header =
      JsonValue::parse({reinterpret_cast<const char*>(file.data() + 8), static_cast<std::size_t>(header_bytes)});
  if (!header || !header->is_object()) return corrupt("header", "is no JSON object");
  const JsonValue* const metadata = header->find(kMetadata);
  if (metadata == nullptr || !metadata->is_object()) return corrupt(kMetadata, "is missing");
  FIRN_ASSIGN(const std::string description, text(*metadata, kDescription));
  const std::optional<JsonValue> fields = JsonValue::parse(description);
  if (!fields || !fields->is_object()) return corrupt(kDescription, "is no JSON object");
  FIRN_TRY(read_description(*fields, *artefact));
  const bool is_firn = artefact->codec == CodecId::kFirn;
  if (is_firn) FIRN_TRY(read_firn_description(*fields, *artefact));

  Tensors tensors;
  FIRN_TRY(read_tensors(*header, file.subspan(8 + header_bytes), tensors));
  FIRN_TRY(take(tensors, kChecksum, "U8", {sizeof(Digest::bytes)}).status());
  FIRN_ASSIGN(artefact->rotation.inverse_frequencies,
              take_floats(tensors, "rotation.inverse_frequencies", artefact->rotation.dims / 2));
  if (is_firn)
    FIRN_TRY(read_firn_tensors(tensors, artefact->kv, artefact->layer_count, artefact->stack_layers, artefact->firn));
  for (const bool values : {false, true})
    if (!is_firn) FIRN_TRY(read_stacks(tensors, values, *artefact));
  for (KvtcPlan& plan : artefact->plans)
    for (const bool values : {false, true})
      for (std::size_t i = 0; i < artefact->keys.size(); ++i) {
        FIRN_ASSIGN(StackPlan stack,
                    read_plan(tensors, plan_name(plan.report.rate, values, i), artefact->of(values)[i].components));
        (values ? plan.values : plan.keys).push_back(std::move(stack));
      }
  if (!tensors.empty()) return corrupt(tensors.begin()->first.substr(0, 64), "is no tensor of an artefact");
  return std::shared_ptr<const Artefact>(std::move(artefact));
}

Result<std::shared_ptr<const Artefact>> load_artefact(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr)
    return Status(Code::kInvalidArgument,
                  fmt::format("artefact {}: cannot be opened; `firn calibrate` writes one", path));
  std::vector<std::byte> bytes;
  std::vector<std::byte> piece(1 << 20);
  std::size_t got = 0;
  while ((got = std::fread(piece.data(), 1, piece.size(), file)) != 0 && bytes.size() <= kMaxFileBytes)
    bytes.insert(bytes.end(), piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(got));
  const int error = std::ferror(file) != 0 ? errno : 0;
  std::fclose(file);
  if (error != 0)
    return Status(error == EISDIR ? Code::kInvalidArgument : Code::kIo,
                  fmt::format("artefact {}: cannot be read ({})", path, std::strerror(error)));
  Result<std::shared_ptr<const Artefact>> artefact = parse_artefact(bytes);
  return artefact.ok() ? std::move(artefact) : artefact.status().with_context(path);
}

ArtefactInfo describe(const Artefact& artefact) {
  ArtefactInfo info{.codec = artefact.codec,
                    .digest = artefact.digest,
                    .model = artefact.model_name,
                    .calibrated_on = artefact.calibrated_on,
                    .layer_count = artefact.layer_count,
                    .stack_layers = artefact.stack_layers,
                    .tokens = artefact.tokens,
                    .file_bytes = artefact.file_bytes,
                    .rates = {}};
  for (const KvtcPlan& plan : artefact.plans) info.rates.push_back(plan.report);
  return info;
}

std::vector<std::byte> write_artefact(Artefact& artefact) {
  Json description = {{"format", kFormat},
                      {"codec", std::string(to_string(artefact.codec))},
                      {"model", artefact.model_name},
                      {"calibrated_on", artefact.calibrated_on},
                      {"weights", to_hex(artefact.weights)},
                      {"dtype", static_cast<unsigned>(artefact.kv.dtype)},
                      {"kv_heads", artefact.kv.kv_heads},
                      {"head_dim", artefact.kv.head_dim},
                      {"value_dim", artefact.kv.value_dim},
                      {"layers", artefact.layer_count},
                      {"stack_layers", artefact.stack_layers},
                      {"pairing", static_cast<unsigned>(artefact.rotation.pairing)},
                      {"rotated_dims", artefact.rotation.dims},
                      {"attention_factor_bits", std::bit_cast<std::uint32_t>(artefact.rotation.attention_factor)},
                      {"tokens", artefact.tokens},
                      {"rates", Json::array()}};
  for (const KvtcPlan& plan : artefact.plans) description["rates"].push_back(rate_json(plan.report));
  if (artefact.codec == CodecId::kFirn) {
    const FirnModel& firn = artefact.firn;
    description["sensitivity"] = firn.sensitivity;
    description["exact_tokens"] = firn.exact_tokens;
    description["detector_layers"] = firn.detector_layers;
    description["detector_threshold_bits"] = std::bit_cast<std::uint32_t>(firn.detector_threshold);
    description["mean_step"] = firn.mean_step + kMaxFirnStepOffset;
    description["sink_step"] = firn.sink_step + kMaxFirnStepOffset;
    for (std::size_t i = 0; i < firn.rates.size(); ++i) description["rates"][i]["step"] = firn.rates[i].step;
  }

  Json header;
  std::vector<std::byte> data;
  const auto add = [&](const std::string& name, const char* dtype, std::vector<std::uint64_t> shape, const void* from,
                       std::size_t bytes) {
    header[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {data.size(), data.size() + bytes}}};
    const auto* first = static_cast<const std::byte*>(from);
    data.insert(data.end(), first, first + bytes);
  };
  const std::vector<float>& frequencies = artefact.rotation.inverse_frequencies;
  add("rotation.inverse_frequencies", "F32", {frequencies.size()}, frequencies.data(), frequencies.size() * 4);
  if (artefact.codec == CodecId::kFirn) for_each_firn_tensor(artefact.firn, add);
  for (const bool values : {false, true})
    for (std::size_t i = 0; i < artefact.of(values).size(); ++i) {
      const StackBasis& stack = artefact.of(values)[i];
      add(tensor_name(values, i, "mean"), "F32", {stack.channels}, stack.mean.data(), stack.mean.size() * 4);
      add(tensor_name(values, i, "basis"), "F16", {stack.components, stack.channels}, stack.basis.data(),
          stack.basis.size() * 2);
    }
  for (const KvtcPlan& plan : artefact.plans)
    for (const bool values : {false, true})
      for (std::size_t i = 0; i < plan.of(values).size(); ++i) {
        std::vector<std::uint32_t> rows;
        for (const Group& group : plan.of(values)[i]) rows.insert(rows.end(), {group.size, group.bits});
        add(plan_name(plan.report.rate, values, i), "U32", {rows.size() / 2, 2}, rows.data(), rows.size() * 4);
      }
  header[kChecksum] = {{"dtype", "U8"},
                       {"shape", {sizeof(Digest::bytes)}},
                       {"data_offsets", {data.size(), data.size() + sizeof(Digest::bytes)}}};
  header[kMetadata] = {{kDescription, description.dump()}};
  std::string json = header.dump();
  json.append((8 - json.size() % 8) % 8, ' ');

  std::vector<std::byte> file(8);
  store_le(file.data(), std::uint64_t{json.size()});
  const auto* first = reinterpret_cast<const std::byte*>(json.data());
  file.insert(file.end(), first, first + json.size());
  file.insert(file.end(), data.begin(), data.end());
  artefact.digest = hash(file);
  const auto* digest = reinterpret_cast<const std::byte*>(artefact.digest.bytes.data());
  file.insert(file.end(), digest, digest + sizeof(Digest::bytes));
  artefact.file_bytes = file.size();
  return file;
}

}  // namespace firn
