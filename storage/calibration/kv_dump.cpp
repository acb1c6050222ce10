#include "storage/calibration/kv_dump.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/base/json_value.h"
#include "storage/codec/bytes.h"
#include "storage/codec/lossy_kernels.h"

namespace firn {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "firn kv 1";
constexpr const char* kFrequencies = "rotation.inverse_frequencies";
constexpr std::uint64_t kMaxHeaderBytes = 64u << 20, kMaxWindows = 1u << 20, kMaxWindowTokens = 1u << 20;

const char* dtype_name(Dtype dtype) { return dtype == Dtype::kF16 ? "F16" : dtype == Dtype::kBf16 ? "BF16" : "F32"; }

std::string tensor_name(std::size_t window, bool values) {
  return fmt::format("window.{}.{}", window, values ? "values" : "keys");
}

std::uint64_t tensor_elements(const GroupSpec& group, const KvWindow& window, bool values) {
  return std::uint64_t{group.layer_count} * window.tokens * group.kv.kv_heads *
         (values ? group.kv.value_dim : group.kv.head_dim);
}

Json tensor_entry(const GroupSpec& group, const KvWindow& window, bool values, std::uint64_t& at) {
  const std::uint64_t bytes = tensor_elements(group, window, values) * bytes_of(group.kv.dtype);
  Json entry = {
      {"dtype", dtype_name(group.kv.dtype)},
      {"shape", {group.layer_count, window.tokens, group.kv.kv_heads, values ? group.kv.value_dim : group.kv.head_dim}},
      {"data_offsets", {at, at + bytes}}};
  at += bytes;
  return entry;
}

// Everything in the file but the windows' bytes.
std::vector<std::byte> head_of(const ModelSpec& model, const std::vector<KvWindow>& windows) {
  const GroupSpec& group = model.groups[0];
  const RotationSpec& rotation = model.rotation;
  Json description = {{"format", kFormat},
                      {"model", model.name},
                      {"weights", to_hex(model.weights)},
                      {"pairing", static_cast<unsigned>(rotation.pairing)},
                      {"rotated_dims", rotation.dims},
                      {"attention_factor", rotation.attention_factor},
                      {"first_positions", Json::array()}};
  for (const KvWindow& window : windows) description["first_positions"].push_back(window.first_position);
  Json header;
  std::uint64_t at = rotation.inverse_frequencies.size() * sizeof(float);
  header[kFrequencies] = {
      {"dtype", "F32"}, {"shape", {rotation.inverse_frequencies.size()}}, {"data_offsets", {0, at}}};
  for (std::size_t i = 0; i < windows.size(); ++i)
    for (const bool values : {false, true})
      header[tensor_name(i, values)] = tensor_entry(group, windows[i], values, at);
  header["__metadata__"] = {{"firn", description.dump()}};
  std::string json = header.dump();
  json.append((8 - json.size() % 8) % 8, ' ');
  std::vector<std::byte> head(8 + json.size() + rotation.inverse_frequencies.size() * sizeof(float));
  store_le(head.data(), std::uint64_t{json.size()});
  std::memcpy(head.data() + 8, json.data(), json.size());
  if (!rotation.inverse_frequencies.empty())
    std::memcpy(head.data() + 8 + json.size(), rotation.inverse_frequencies.data(),
                rotation.inverse_frequencies.size() * sizeof(float));
  return head;
}

Status corrupt(std::string what) { return Status(Code::kCorrupt, "kv dump: " + what); }

Result<std::uint64_t> number(const JsonValue& object, const char* field, std::uint64_t most) {
  const JsonValue* const found = object.find(field);
  if (found == nullptr || !found->is_unsigned() || found->as_unsigned() > most)
    return corrupt(fmt::format("{} is not a number of 0 to {}", field, most));
  return found->as_unsigned();
}

Result<Digest> digest_of(const JsonValue& description) {
  const JsonValue* const found = description.find("weights");
  Digest digest;
  const std::string hex = found != nullptr && found->is_text() ? found->as_text() : "";
  if (hex.size() != 64 || hex.find_first_not_of("0123456789abcdef") != std::string::npos)
    return corrupt("weights are not 64 hexadecimal digits");
  for (std::size_t i = 0; i < 32; ++i)
    digest.bytes[i] = static_cast<std::uint8_t>(std::stoul(hex.substr(2 * i, 2), nullptr, 16));
  return digest;
}

struct Entry {
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0, end = 0;
};

Result<Entry> entry_of(const JsonValue& header, const std::string& name) {
  const JsonValue* const found = header.find(name);
  if (found == nullptr || !found->is_object()) return corrupt(name + " is missing");
  const JsonValue *const dtype = found->find("dtype"), *const shape = found->find("shape"),
                         *const offsets = found->find("data_offsets");
  if (dtype == nullptr || !dtype->is_text() || shape == nullptr || !shape->is_array() || shape->items().size() > 4 ||
      offsets == nullptr || !offsets->is_array() || offsets->items().size() != 2)
    return corrupt(name + " is not described as a tensor is");
  Entry entry;
  entry.dtype = dtype->as_text();
  for (const JsonValue& extent : shape->items()) {
    if (!extent.is_unsigned()) return corrupt(name + ": shape is not of numbers");
    entry.shape.push_back(extent.as_unsigned());
  }
  if (!offsets->items()[0].is_unsigned() || !offsets->items()[1].is_unsigned())
    return corrupt(name + ": data_offsets are not numbers");
  entry.begin = offsets->items()[0].as_unsigned();
  entry.end = offsets->items()[1].as_unsigned();
  return entry;
}

}  // namespace

Result<std::unique_ptr<KvDumpWriter>> KvDumpWriter::create(const std::string& path, const ModelSpec& model,
                                                           std::vector<KvWindow> windows) {
  FIRN_TRY(validate(model));
  if (model.groups.size() != 1 || model.groups[0].kind != GroupKind::kFull)
    return Status(Code::kInvalidArgument, "kv dump: the model must have one group of full attention");
  if (windows.empty()) return Status(Code::kInvalidArgument, "kv dump: there are no windows");
  FIRN_ASSIGN(FileOut file, FileOut::create(path, Readers::kOwner));
  std::unique_ptr<KvDumpWriter> writer(new KvDumpWriter(std::move(file)));
  writer->group_ = model.groups[0];
  writer->windows_ = std::move(windows);
  FIRN_TRY(writer->file_.write(head_of(model, writer->windows_)));
  return writer;
}

Status KvDumpWriter::add(const std::vector<float>& keys, const std::vector<float>& values) {
  if (next_ == windows_.size()) return Status(Code::kInvalidArgument, "kv dump: all windows are there already");
  for (const bool is_values : {false, true}) {
    const std::vector<float>& from = is_values ? values : keys;
    if (from.size() != tensor_elements(group_, windows_[next_], is_values))
      return Status(Code::kInvalidArgument, "kv dump: a window is not [layer][token][kv_heads * dim]");
    std::vector<std::byte> bytes(from.size() * bytes_of(group_.kv.dtype));
    lossy::store(group_.kv.dtype, from.data(), from.size(), bytes.data());
    FIRN_TRY(file_.write(bytes));
  }
  ++next_;
  return {};
}

Status KvDumpWriter::close() {
  if (next_ != windows_.size())
    return Status(Code::kInvalidArgument,
                  fmt::format("kv dump: {} of {} windows are missing", windows_.size() - next_, windows_.size()));
  return file_.finish();
}

Result<std::unique_ptr<KvDumpReader>> KvDumpReader::open(const std::string& path) {
  std::unique_ptr<KvDumpReader> reader(new KvDumpReader);
  reader->path_ = path;
  reader->file_ = std::fopen(path.c_str(), "rb");
  if (reader->file_ == nullptr) return Status(Code::kInvalidArgument, path + " cannot be opened");
  FIRN_TRY(reader->read_header().with_context(path));
  return reader;
}

KvDumpReader::~KvDumpReader() {
  if (file_ != nullptr) std::fclose(file_);
}

Status KvDumpReader::read_header() {
  std::byte size_bytes[8];
  std::fseek(file_, 0, SEEK_END);
  const long end = std::ftell(file_);
  std::rewind(file_);
  if (end < 8 || std::fread(size_bytes, 1, 8, file_) != 8) return corrupt("shorter than its header");
  const auto file_bytes = static_cast<std::uint64_t>(end);
  const auto json_bytes = load_le<std::uint64_t>(size_bytes);
  if (json_bytes > kMaxHeaderBytes || json_bytes > file_bytes - 8) return corrupt("its header reaches beyond the file");
  std::string json(json_bytes, '\0');
  if (std::fread(json.data(), 1, json.size(), file_) != json.size()) return corrupt("cannot be read");
  const std::optional<JsonValue> parsed = JsonValue::parse(json);
  const JsonValue header = parsed.value_or(JsonValue());
  const JsonValue* const metadata = header.find("__metadata__");
  const JsonValue* const firn = metadata != nullptr ? metadata->find("firn") : nullptr;
  if (firn == nullptr || !firn->is_text()) return corrupt("it has no metadata `firn`");
  const JsonValue description = JsonValue::parse(firn->as_text()).value_or(JsonValue());
  const auto text = [&](std::string_view name) {
    const JsonValue* const found = description.find(name);
    return found != nullptr && found->is_text() ? &found->as_text() : nullptr;
  };
  if (text("format") == nullptr || *text("format") != kFormat)
    return corrupt(fmt::format("format is not '{}'", kFormat));
  if (text("model") == nullptr) return corrupt("model is not a text");
  model_.name = *text("model");
  FIRN_ASSIGN(model_.weights, digest_of(description));
  FIRN_ASSIGN(const std::uint64_t pairing, number(description, "pairing", 2));
  FIRN_ASSIGN(const std::uint64_t dims, number(description, "rotated_dims", kMaxHeadDim));
  const JsonValue* const factor = description.find("attention_factor");
  const JsonValue* const positions = description.find("first_positions");
  if (factor == nullptr || !factor->is_number() || positions == nullptr || !positions->is_array() ||
      positions->items().empty() || positions->items().size() > kMaxWindows)
    return corrupt("attention_factor or first_positions are not there");
  const std::vector<JsonValue>& first = positions->items();
  model_.rotation.pairing = static_cast<RotationSpec::Pairing>(pairing);
  model_.rotation.dims = static_cast<std::uint32_t>(dims);
  constexpr double kMostFactor = 1e30;  // a float holds it
  if (const auto value = factor->as_real(); !(value > 0 && value <= kMostFactor))
    return corrupt(fmt::format("attention_factor is {:g}, not above 0 and at most {:g}", value, kMostFactor));
  model_.rotation.attention_factor = static_cast<float>(factor->as_real());

  const std::uint64_t base = 8 + json_bytes;
  FIRN_ASSIGN(const Entry frequencies, entry_of(header, kFrequencies));
  if (frequencies.dtype != "F32" || frequencies.begin > frequencies.end ||
      frequencies.shape != std::vector<std::uint64_t>{dims / 2} ||
      frequencies.end - frequencies.begin != dims / 2 * 4 || frequencies.end > file_bytes - base)
    return corrupt("rotation.inverse_frequencies are not rotated_dims / 2 numbers");
  model_.rotation.inverse_frequencies.resize(dims / 2);
  if (dims >= 2) {
    std::fseek(file_, static_cast<long>(base + frequencies.begin), SEEK_SET);
    if (std::fread(model_.rotation.inverse_frequencies.data(), 4, dims / 2, file_) != dims / 2)
      return corrupt("cannot be read");
  }
  GroupSpec group;
  for (std::size_t i = 0; i < first.size(); ++i) {
    if (!first[i].is_unsigned()) return corrupt("first_positions are not numbers");
    KvWindow window{.first_position = first[i].as_unsigned(), .tokens = 0};
    for (const bool values : {false, true}) {
      const std::string name = tensor_name(i, values);
      FIRN_ASSIGN(const Entry entry, entry_of(header, name));
      if (entry.shape.size() != 4) return corrupt(name + " is not [layer][token][head][dim]");
      if (i == 0 && !values) {
        group.layer_count = static_cast<std::uint32_t>(std::min<std::uint64_t>(entry.shape[0], ~0u));
        group.kv.kv_heads = static_cast<std::uint32_t>(std::min<std::uint64_t>(entry.shape[2], ~0u));
        group.kv.head_dim = static_cast<std::uint32_t>(std::min<std::uint64_t>(entry.shape[3], ~0u));
        group.kv.dtype = entry.dtype == "F16" ? Dtype::kF16 : entry.dtype == "BF16" ? Dtype::kBf16 : Dtype::kF32;
      }
      if (i == 0 && values)
        group.kv.value_dim = static_cast<std::uint32_t>(std::min<std::uint64_t>(entry.shape[3], ~0u));
      if (group.layer_count > kMaxLayers || group.kv.kv_heads > kMaxKvHeads || group.kv.head_dim > kMaxHeadDim ||
          group.kv.value_dim > kMaxHeadDim || entry.shape[1] == 0 || entry.shape[1] > kMaxWindowTokens)
        return corrupt(name + ": its shape is larger than any model's");
      if (!values) window.tokens = static_cast<std::uint32_t>(entry.shape[1]);
      const std::vector<std::uint64_t> expected = {group.layer_count, window.tokens, group.kv.kv_heads,
                                                   values ? group.kv.value_dim : group.kv.head_dim};
      if (entry.shape != expected || entry.dtype != dtype_name(group.kv.dtype))
        return corrupt(name + " differs in type or shape from the others");
      if (entry.begin > entry.end || entry.end > file_bytes - base ||
          entry.end - entry.begin != tensor_elements(group, window, values) * bytes_of(group.kv.dtype))
        return corrupt(name + ": data_offsets do not fit the shape and the file");
      (values ? values_at_ : keys_at_).push_back(base + entry.begin);
    }
    windows_.push_back(window);
  }
  model_.groups = {group};
  const Status valid = validate(model_);
  return valid.ok() ? Status() : corrupt(valid.message());
}

Status KvDumpReader::read_tensor(std::uint64_t offset, std::size_t count, std::vector<float>& values) {
  std::vector<std::byte> bytes(count * bytes_of(model_.groups[0].kv.dtype));
  std::fseek(file_, static_cast<long>(offset), SEEK_SET);
  if (std::fread(bytes.data(), 1, bytes.size(), file_) != bytes.size())
    return Status(Code::kIo, path_ + " cannot be read");
  values.resize(count);
  lossy::load(model_.groups[0].kv.dtype, bytes.data(), count, values.data());
  return {};
}

Status KvDumpReader::read(std::size_t window, std::vector<float>& keys, std::vector<float>& values) {
  const GroupSpec& group = model_.groups[0];
  FIRN_TRY(read_tensor(keys_at_[window], tensor_elements(group, windows_[window], false), keys));
  return read_tensor(values_at_[window], tensor_elements(group, windows_[window], true), values);
}

}  // namespace firn
