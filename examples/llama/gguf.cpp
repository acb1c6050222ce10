#include "examples/llama/gguf.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <iterator>

namespace firn::llama {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is little-endian and is read in place");

enum ValueType : std::uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32Value,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64Value,
  kValueTypeCount
};

// Bytes of one element; 0 for those whose size is in the file.
std::size_t fixed_bytes(std::uint32_t type) {
  constexpr std::size_t kBytes[kValueTypeCount] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return type < kValueTypeCount ? kBytes[type] : 0;
}

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

bool is_unsigned(std::uint32_t type) { return type == kU8 || type == kU16 || type == kU32 || type == kU64; }
bool is_signed(std::uint32_t type) { return type == kI8 || type == kI16 || type == kI32 || type == kI64; }

std::uint64_t load_unsigned(std::uint32_t type, const std::byte* from) {
  switch (type) {
    case kU8:
      return load<std::uint8_t>(from);
    case kU16:
      return load<std::uint16_t>(from);
    case kU32:
      return load<std::uint32_t>(from);
    default:
      return load<std::uint64_t>(from);
  }
}

std::int64_t load_signed(std::uint32_t type, const std::byte* from) {
  switch (type) {
    case kI8:
      return load<std::int8_t>(from);
    case kI16:
      return load<std::int16_t>(from);
    case kI32:
      return load<std::int32_t>(from);
    default:
      return load<std::int64_t>(from);
  }
}

// Weights that are coded together, and their bytes, of every number format that GGUF has; 0: there is none.
struct BlockSize {
  std::uint32_t weights = 0, bytes = 0;
};
BlockSize block_size(std::uint32_t type) {
  constexpr BlockSize kSizes[] = {
      {1, 4},    {1, 2},     {32, 18},   {32, 20},   {0, 0},     {0, 0},     {32, 22},  {32, 24},  {32, 34},  {32, 36},
      {256, 84}, {256, 110}, {256, 144}, {256, 176}, {256, 210}, {256, 292}, {256, 66}, {256, 74}, {256, 98}, {256, 50},
      {32, 18},  {256, 110}, {256, 82},  {256, 136}, {1, 1},     {1, 2},     {1, 4},    {1, 8},    {1, 8},    {256, 56},
      {1, 2},    {0, 0},     {0, 0},     {0, 0},     {256, 54},  {256, 66},  {0, 0},    {0, 0},    {0, 0},    {32, 17}};
  return type < std::size(kSizes) ? kSizes[type] : BlockSize{};
}

}  // namespace

// Walks the file once, front to back. `what_` says what is being read, for messages.
class GgufParser {
 public:
  GgufParser(std::span<const std::byte> bytes, std::string name, GgufUse use) : use_(use) {
    file_.name_ = std::move(name);
    file_.bytes_ = bytes;
  }

  Result<Gguf> run() {
    FIRN_TRY(read_header());
    for (std::uint64_t i = 0; i < key_count_; ++i) FIRN_TRY(read_key(i));
    FIRN_TRY(read_alignment());
    for (std::uint64_t i = 0; i < tensor_count_; ++i) FIRN_TRY(read_tensor(i));
    FIRN_TRY(place_tensors());
    return std::move(file_);
  }

 private:
  struct Placed {
    Tensor* tensor;
    std::uint64_t offset;      // from the start of the data section
    std::size_t described_at;  // where the directory says so
  };

  Status failure(Code code, std::size_t at, std::string_view problem) const {
    return Status(code, fmt::format("{}: byte {}: {}: {}", file_.name_, at, what_, problem));
  }
  Status corrupt(std::size_t at, std::string_view problem) const { return failure(Code::kCorrupt, at, problem); }

  std::size_t left() const { return file_.bytes_.size() - offset_; }

  Result<std::span<const std::byte>> take(std::uint64_t bytes) {
    if (bytes > left())
      return corrupt(offset_, fmt::format("needs {} bytes, but the file ends after {}", bytes, left()));
    const auto taken = file_.bytes_.subspan(offset_, static_cast<std::size_t>(bytes));
    offset_ += taken.size();
    return taken;
  }

  template <class T>
  Result<T> read() {
    FIRN_ASSIGN(const auto bytes, take(sizeof(T)));
    return load<T>(bytes.data());
  }

  Result<std::string_view> read_string(std::uint64_t max_bytes) {
    const std::size_t at = offset_;
    FIRN_ASSIGN(const auto length, read<std::uint64_t>());
    if (length > max_bytes) return corrupt(at, fmt::format("a string of {} bytes; at most {}", length, max_bytes));
    FIRN_ASSIGN(const auto bytes, take(length));
    return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }

  Status read_header() {
    what_ = "header";
    FIRN_ASSIGN(const auto magic, take(4));
    if (std::memcmp(magic.data(), "GGUF", 4) != 0)
      return failure(Code::kInvalidArgument, 0, "not a GGUF file: it does not begin with the letters GGUF");
    FIRN_ASSIGN(const auto version, read<std::uint32_t>());
    if (version != 2 && version != 3)
      return failure(Code::kInvalidArgument, 4, fmt::format("GGUF version {}; this reader knows 2 and 3", version));
    FIRN_ASSIGN(tensor_count_, read<std::uint64_t>());
    if (tensor_count_ > kMaxGgufTensors)
      return corrupt(8, fmt::format("{} tensors; at most {}", tensor_count_, kMaxGgufTensors));
    FIRN_ASSIGN(key_count_, read<std::uint64_t>());
    if (key_count_ > kMaxGgufKeys) return corrupt(16, fmt::format("{} keys; at most {}", key_count_, kMaxGgufKeys));
    return {};
  }

  Status read_key(std::uint64_t i) {
    what_ = fmt::format("key {}", i);
    const std::size_t at = offset_;
    FIRN_ASSIGN(const auto key, read_string(kMaxGgufName));
    what_ = fmt::format("key '{}'", key);
    FIRN_ASSIGN(const auto type, read<std::uint32_t>());
    FIRN_ASSIGN(auto value, read_value(type));
    if (!file_.values_.emplace(key, std::move(value)).second) return corrupt(at, "the key appears twice");
    return {};
  }

  Result<Gguf::Value> read_value(std::uint32_t type) {
    if (type == kString) {
      FIRN_ASSIGN(const auto text, read_string(kMaxGgufString));
      return Gguf::Value(text);
    }
    if (type == kArray) return read_array();
    if (type >= kValueTypeCount) return corrupt(offset_ - 4, fmt::format("unknown value type {}", type));
    const std::size_t at = offset_;
    FIRN_ASSIGN(const auto bytes, take(fixed_bytes(type)));
    if (is_unsigned(type)) return Gguf::Value(load_unsigned(type, bytes.data()));
    if (is_signed(type)) return Gguf::Value(load_signed(type, bytes.data()));
    if (type == kF32Value) return Gguf::Value(static_cast<double>(load<float>(bytes.data())));
    if (type == kF64Value) return Gguf::Value(load<double>(bytes.data()));
    const auto flag = static_cast<unsigned>(bytes[0]);
    if (flag > 1) return corrupt(at, fmt::format("a bool of value {}", flag));
    return Gguf::Value(flag == 1);
  }

  Result<Gguf::Value> read_array() {
    const std::size_t at = offset_;
    FIRN_ASSIGN(const auto type, read<std::uint32_t>());
    FIRN_ASSIGN(const auto count, read<std::uint64_t>());
    if (type == kArray) return corrupt(at, "an array of arrays, which no llama model has");
    if (type >= kValueTypeCount) return corrupt(at, fmt::format("unknown element type {}", type));
    if (count > kMaxGgufArray) return corrupt(at + 4, fmt::format("{} elements; at most {}", count, kMaxGgufArray));
    const std::size_t start = offset_;
    if (type == kString) {
      for (std::uint64_t i = 0; i < count; ++i) {
        FIRN_ASSIGN([[maybe_unused]] const auto text, read_string(kMaxGgufString));
      }
    } else {
      FIRN_ASSIGN([[maybe_unused]] const auto elements, take(count * fixed_bytes(type)));
    }
    return Gguf::Value(Gguf::Array{type, count, file_.bytes_.subspan(start, offset_ - start)});
  }

  Status read_alignment() {
    if (!file_.contains("general.alignment")) return {};
    FIRN_ASSIGN(alignment_, file_.unsigned_value("general.alignment"));
    if (alignment_ < 8 || alignment_ > 65536 || !std::has_single_bit(alignment_))
      return Status(Code::kCorrupt, fmt::format("{}: key 'general.alignment': {} is not a power of two in [8, 65536]",
                                                file_.name_, alignment_));
    return {};
  }

  Status read_tensor(std::uint64_t i) {
    what_ = fmt::format("tensor {}", i);
    const std::size_t at = offset_;
    FIRN_ASSIGN(const auto name, read_string(kMaxGgufName));
    what_ = fmt::format("tensor '{}'", name);
    Tensor tensor;
    tensor.name = name;
    FIRN_TRY(read_shape(tensor));
    const std::size_t type_at = offset_;
    FIRN_ASSIGN(const auto type, read<std::uint32_t>());
    tensor.type = static_cast<TensorType>(type);
    const BlockSize block = block_size(type);
    if (use_ == GgufUse::kDirectory && block.weights == 0)
      return failure(Code::kInvalidArgument, type_at, fmt::format("number format {}, whose size is not known", type));
    if (use_ == GgufUse::kWeights && !is_supported(tensor.type))
      return failure(Code::kInvalidArgument, type_at,
                     fmt::format("number format {}; this reader knows F32, F16, Q4_0, Q4_1 and Q8_0", type));
    if (tensor.columns % block.weights != 0)
      return corrupt(at, fmt::format("{} columns in {}, not a multiple of {}", tensor.columns, to_string(tensor.type),
                                     block.weights));
    FIRN_ASSIGN(const auto offset, read<std::uint64_t>());
    const auto [entry, is_new] = file_.tensors_.emplace(name, tensor);
    if (!is_new) return corrupt(at, "the tensor appears twice");
    placed_.push_back({&entry->second, offset, type_at + 4});
    return {};
  }

  Status read_shape(Tensor& tensor) {
    const std::size_t at = offset_;
    FIRN_ASSIGN(const auto dimensions, read<std::uint32_t>());
    if (dimensions < 1 || dimensions > 4) return corrupt(at, fmt::format("{} dimensions; 1 to 4", dimensions));
    std::uint64_t rows = 1;
    for (std::uint32_t d = 0; d < dimensions; ++d) {
      const std::size_t size_at = offset_;
      FIRN_ASSIGN(const auto size, read<std::uint64_t>());
      if (size < 1 || size > kMaxGgufDimension)
        return corrupt(size_at, fmt::format("a dimension of {}; 1 to {}", size, kMaxGgufDimension));
      if (d == 0) tensor.columns = static_cast<std::size_t>(size);
      if (d > 0) rows *= size;  // at most 2^60 here, because of the check below
      if (rows > kMaxGgufDimension) return corrupt(at, fmt::format("more than {} rows", kMaxGgufDimension));
    }
    tensor.rows = static_cast<std::size_t>(rows);
    return {};
  }

  // The data section begins at the first aligned byte after the directory.
  Status place_tensors() {
    const std::uint64_t start = (offset_ + alignment_ - 1) / alignment_ * alignment_;
    const std::uint64_t section = start <= file_.bytes_.size() ? file_.bytes_.size() - start : 0;
    for (const Placed& placed : placed_) {
      Tensor& tensor = *placed.tensor;
      what_ = fmt::format("tensor '{}'", tensor.name);
      const BlockSize block = block_size(static_cast<std::uint32_t>(tensor.type));
      const std::uint64_t bytes =
          tensor.columns / block.weights * block.bytes * tensor.rows;  // < 2^63: both are bounded
      if (placed.offset % alignment_ != 0)
        return corrupt(placed.described_at,
                       fmt::format("offset {} is not a multiple of {}", placed.offset, alignment_));
      if (placed.offset > section || bytes > section - placed.offset)
        return corrupt(placed.described_at,
                       fmt::format("{} bytes at {} of a data section of {} bytes: the file is too short", bytes,
                                   placed.offset, section));
      tensor.data =
          file_.bytes_.subspan(static_cast<std::size_t>(start + placed.offset), static_cast<std::size_t>(bytes));
    }
    return {};
  }

  Gguf file_;
  GgufUse use_;
  std::size_t offset_ = 0;
  std::string what_;
  std::uint64_t tensor_count_ = 0, key_count_ = 0, alignment_ = 32;
  std::vector<Placed> placed_;
};

void Gguf::Unmap::operator()(const std::byte* start) const { munmap(const_cast<std::byte*>(start), size); }

Result<Gguf> Gguf::open(const std::string& path, GgufUse use) {
  const auto io_failure = [&](std::string_view doing) {
    return Status(Code::kIo, fmt::format("{}: {}: {}", path, doing, std::strerror(errno)));
  };
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0)
    return Status(Code::kInvalidArgument,
                  fmt::format("{}: cannot open the model file: {}", path, std::strerror(errno)));
  struct stat facts {};
  void* start = MAP_FAILED;
  Status status;
  if (fstat(file, &facts) != 0 || !S_ISREG(facts.st_mode)) {
    status = Status(Code::kInvalidArgument, path + ": not a regular file");
  } else if (facts.st_size == 0) {
    status = Status(Code::kCorrupt, path + ": byte 0: header: the file is empty");
  } else {
    start = mmap(nullptr, static_cast<std::size_t>(facts.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    if (start == MAP_FAILED) status = io_failure("cannot map the model file");
  }
  ::close(file);  // the mapping stays
  FIRN_TRY(status);

  const auto size = static_cast<std::size_t>(facts.st_size);
  std::unique_ptr<const std::byte, Unmap> mapping(static_cast<const std::byte*>(start), Unmap{size});
  FIRN_ASSIGN(Gguf parsed, parse({mapping.get(), size}, path, use));
  parsed.mapping_ = std::move(mapping);
  return parsed;
}

Result<Gguf> Gguf::parse(std::span<const std::byte> bytes, std::string name, GgufUse use) {
  return GgufParser(bytes, std::move(name), use).run();
}

Result<const Gguf::Value*> Gguf::value(std::string_view key) const {
  const auto found = values_.find(key);
  if (found == values_.end())
    return Status(Code::kInvalidArgument, fmt::format("{}: the key '{}' is missing", name_, key));
  return &found->second;
}

Status Gguf::wrong_type(std::string_view key, std::string_view wanted) const {
  return Status(Code::kInvalidArgument, fmt::format("{}: the key '{}' is not {}", name_, key, wanted));
}

Result<std::uint64_t> Gguf::unsigned_value(std::string_view key) const {
  FIRN_ASSIGN(const Value* found, value(key));
  if (const auto* number = std::get_if<std::uint64_t>(found)) return *number;
  if (const auto* number = std::get_if<std::int64_t>(found); number != nullptr && *number >= 0)
    return static_cast<std::uint64_t>(*number);
  return wrong_type(key, "an integer of 0 or more");
}

Result<double> Gguf::real_value(std::string_view key) const {
  FIRN_ASSIGN(const Value* found, value(key));
  if (const auto* number = std::get_if<double>(found)) return *number;
  return wrong_type(key, "a floating-point number");
}

Result<bool> Gguf::bool_value(std::string_view key) const {
  FIRN_ASSIGN(const Value* found, value(key));
  if (const auto* flag = std::get_if<bool>(found)) return *flag;
  return wrong_type(key, "a bool");
}

Result<std::string_view> Gguf::string_value(std::string_view key) const {
  FIRN_ASSIGN(const Value* found, value(key));
  if (const auto* text = std::get_if<std::string_view>(found)) return *text;
  return wrong_type(key, "a string");
}

Result<std::vector<std::string_view>> Gguf::string_array(std::string_view key) const {
  FIRN_ASSIGN(const Value* found, value(key));
  const auto* array = std::get_if<Array>(found);
  if (array == nullptr || array->type != kString) return wrong_type(key, "an array of strings");
  std::vector<std::string_view> texts;
  texts.reserve(static_cast<std::size_t>(array->count));
  const std::byte* at = array->bytes.data();  // the parser checked every length on its way
  for (std::uint64_t i = 0; i < array->count; ++i) {
    const auto length = static_cast<std::size_t>(load<std::uint64_t>(at));
    texts.emplace_back(reinterpret_cast<const char*>(at + 8), length);
    at += 8 + length;
  }
  return texts;
}

Result<std::vector<std::int64_t>> Gguf::integer_array(std::string_view key) const {
  FIRN_ASSIGN(const Value* found, value(key));
  const auto* array = std::get_if<Array>(found);
  if (array == nullptr || (!is_signed(array->type) && !is_unsigned(array->type)))
    return wrong_type(key, "an array of integers");
  const std::size_t width = fixed_bytes(array->type);
  std::vector<std::int64_t> numbers(static_cast<std::size_t>(array->count));
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const std::byte* at = array->bytes.data() + i * width;
    numbers[i] = is_signed(array->type) ? load_signed(array->type, at)
                                        : static_cast<std::int64_t>(load_unsigned(array->type, at));
  }
  return numbers;
}

const Tensor* Gguf::find_tensor(std::string_view tensor) const {
  const auto found = tensors_.find(tensor);
  return found == tensors_.end() ? nullptr : &found->second;
}

Result<Tensor> Gguf::get_tensor(std::string_view tensor, std::size_t rows, std::size_t columns) const {
  const Tensor* found = find_tensor(tensor);
  if (found == nullptr)
    return Status(Code::kInvalidArgument, fmt::format("{}: the tensor '{}' is missing", name_, tensor));
  if (found->rows != rows || found->columns != columns)
    return Status(Code::kInvalidArgument, fmt::format("{}: tensor '{}' is {} x {}, but the model needs {} x {}", name_,
                                                      tensor, found->rows, found->columns, rows, columns));
  return *found;
}

}  // namespace firn::llama
