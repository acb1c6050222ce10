// gguf.h: reads a GGUF file, version 2 or 3, in place. The file is input from outside: every count, length and offset
// is checked before it is used, and an error names the file, the byte and the key or tensor. Threads:  const calls from
// any thread. Memory:   open() maps the file and allocates the directory; spans and string_views point into the
// mapping. Lifetime: spans and views die with the Gguf. The file must not be cut short while it is mapped (no reader of
// a mapping
//           can survive that); replacing it by rename, as package managers do, is fine.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "examples/llama/quant.h"
#include "firn/status.h"

namespace firn::llama {

// Bounds that no real model comes near; a file beyond them is refused before anything is allocated for it.
inline constexpr std::uint64_t kMaxGgufKeys = 1 << 14, kMaxGgufTensors = 1 << 16, kMaxGgufArray = 1 << 22;
inline constexpr std::uint64_t kMaxGgufName = 1 << 12, kMaxGgufString = 1 << 22, kMaxGgufDimension = 1u << 30;

// A tensor of up to 4 dimensions, seen as rows: columns is the dimension that is contiguous in the file.
struct Tensor {
  std::string_view name;
  TensorType type = TensorType::kF32;
  std::size_t columns = 0, rows = 0;
  std::span<const std::byte> data;

  std::span<const std::byte> row(std::size_t i) const {
    const std::size_t bytes = row_bytes(type, columns);
    return data.subspan(i * bytes, bytes);
  }
};

// kWeights: only number formats that this reader can multiply with. kDirectory: of any format whose size is known, for
// those who only count bytes; such a tensor's rows must not be read.
enum class GgufUse : std::uint8_t { kWeights, kDirectory };

class Gguf {
 public:
  static Result<Gguf> open(const std::string& path, GgufUse use = GgufUse::kWeights);
  // The same for bytes already in memory, which the caller keeps alive; name stands for the file in messages.
  static Result<Gguf> parse(std::span<const std::byte> bytes, std::string name, GgufUse use = GgufUse::kWeights);

  const std::string& name() const { return name_; }
  std::span<const std::byte> bytes() const { return bytes_; }  // the whole file

  bool contains(std::string_view key) const { return values_.count(key) != 0; }
  // A missing key or one of another type is kInvalidArgument. Integers of any width convert when the value fits.
  Result<std::uint64_t> unsigned_value(std::string_view key) const;
  Result<double> real_value(std::string_view key) const;
  Result<bool> bool_value(std::string_view key) const;
  Result<std::string_view> string_value(std::string_view key) const;
  Result<std::vector<std::string_view>> string_array(std::string_view key) const;
  Result<std::vector<std::int64_t>> integer_array(std::string_view key) const;

  const std::map<std::string_view, Tensor>& tensors() const { return tensors_; }
  const Tensor* find_tensor(std::string_view tensor) const;  // null: not in the file
  Result<Tensor> get_tensor(std::string_view tensor, std::size_t rows,
                            std::size_t columns) const;  // exactly this shape

 private:
  friend class GgufParser;
  struct Unmap {
    std::size_t size;
    void operator()(const std::byte* start) const;
  };
  struct Array {
    std::uint32_t type = 0;
    std::uint64_t count = 0;
    std::span<const std::byte> bytes;  // the elements as they lie in the file, already walked once by the parser
  };
  using Value = std::variant<std::uint64_t, std::int64_t, double, bool, std::string_view, Array>;

  Result<const Value*> value(std::string_view key) const;
  Status wrong_type(std::string_view key, std::string_view wanted) const;

  std::string name_;
  std::unique_ptr<const std::byte, Unmap> mapping_;  // empty for parse()
  std::span<const std::byte> bytes_;
  std::map<std::string_view, Value> values_;
  std::map<std::string_view, Tensor> tensors_;
};

}  // namespace firn::llama
