#include "examples/llama/gguf.h"

#include <cstring>
#include <functional>

#include "examples/llama/model.h"
#include "examples/llama/tokenizer.h"
#include "llama_test_util.h"

namespace firn::llama {
namespace {

// A GGUF written by hand, one field at a time, so that each can be wrong.
class Writer {
 public:
  template <class T>
  Writer& number(T value) {
    const auto* start = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), start, start + sizeof(T));
    return *this;
  }
  Writer& u32(std::uint32_t value) { return number(value); }
  Writer& u64(std::uint64_t value) { return number(value); }
  Writer& raw(std::string_view text) {
    const auto* start = reinterpret_cast<const std::byte*>(text.data());
    bytes_.insert(bytes_.end(), start, start + text.size());
    return *this;
  }
  Writer& string(std::string_view text) { return u64(text.size()).raw(text); }
  Writer& header(std::uint64_t tensors, std::uint64_t keys) { return raw("GGUF").u32(3).u64(tensors).u64(keys); }
  // One-dimensional F32 tensor unless said otherwise.
  Writer& tensor(std::string_view name, std::uint64_t size, std::uint64_t offset, std::uint32_t type = 0) {
    return string(name).u32(1).u64(size).u32(type).u64(offset);
  }
  Writer& pad(std::size_t bytes) {
    bytes_.resize((bytes_.size() + 31) / 32 * 32 + bytes);
    return *this;
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

constexpr std::uint32_t kUint32 = 4, kBool = 7, kString = 8, kArray = 9;

Status parse(const Writer& writer) { return Gguf::parse(writer.bytes(), "test.gguf").status(); }

TEST(Gguf, ReadsKeysAndTensorsOfAFile) {
  LLAMA_ASSERT_OK_AND_ASSIGN(const Gguf file, Gguf::open(random_model("q4_1")));
  LLAMA_ASSERT_OK_AND_ASSIGN(const auto architecture, file.string_value("general.architecture"));
  EXPECT_EQ(architecture, "llama");
  LLAMA_ASSERT_OK_AND_ASSIGN(const auto layers, file.unsigned_value("llama.block_count"));
  EXPECT_EQ(layers, 2u);
  LLAMA_ASSERT_OK_AND_ASSIGN(const auto base, file.real_value("llama.rope.freq_base"));
  EXPECT_EQ(base, 10000.0);
  LLAMA_ASSERT_OK_AND_ASSIGN(const auto add_bos, file.bool_value("tokenizer.ggml.add_bos_token"));
  EXPECT_FALSE(add_bos);
  LLAMA_ASSERT_OK_AND_ASSIGN(const auto tokens, file.string_array("tokenizer.ggml.tokens"));
  EXPECT_EQ(tokens[1], "<|im_start|>");
  LLAMA_ASSERT_OK_AND_ASSIGN(const auto types, file.integer_array("tokenizer.ggml.token_type"));
  EXPECT_EQ(types.size(), tokens.size());
  EXPECT_EQ(types[1], 3);

  LLAMA_ASSERT_OK_AND_ASSIGN(const Tensor down, file.get_tensor("blk.1.ffn_down.weight", 192, 256));
  EXPECT_EQ(down.type, TensorType::kQ4_1);
  EXPECT_EQ(down.data.size(), 192u * 256 / 32 * 20);
  EXPECT_EQ(file.tensors().size(), 2u + 2 * 9);
  EXPECT_EQ(file.find_tensor("output.weight"), nullptr);
}

TEST(Gguf, SaysWhichKeyOrTensorIsMissingOrOfAnotherKind) {
  LLAMA_ASSERT_OK_AND_ASSIGN(const Gguf file, Gguf::open(random_model("f32")));
  EXPECT_NE(file.unsigned_value("no.such").status().message().find("'no.such' is missing"), std::string::npos);
  EXPECT_EQ(file.unsigned_value("general.architecture").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(file.string_value("llama.block_count").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(file.real_value("llama.block_count").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(file.bool_value("llama.block_count").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(file.string_array("tokenizer.ggml.token_type").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(file.integer_array("tokenizer.ggml.tokens").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(file.get_tensor("no.such", 1, 1).status().code(), Code::kInvalidArgument);
  const Status shape = file.get_tensor("output_norm.weight", 1, 576).status();
  EXPECT_NE(shape.message().find("'output_norm.weight' is 1 x 192, but the model needs 1 x 576"), std::string::npos);
}

TEST(Gguf, OpenSaysWhatIsWrongWithThePath) {
  // A name that does not exist is the caller's to mend; a file that cannot be read is not.
  EXPECT_EQ(Gguf::open("/no/such/model.gguf").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(Gguf::open("/dev/null").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(Gguf::open("/").status().code(), Code::kInvalidArgument);
}

// What is wrong, and what the message must say: the place and the reason.
struct Hostile {
  const char* what;
  Writer file;
  Code code;
  std::vector<std::string> says;
};

std::vector<Hostile> hostile_headers() {
  const Code corrupt = Code::kCorrupt, invalid = Code::kInvalidArgument;
  return {
      {"magic", Writer().raw("GGML").u32(3).u64(0).u64(0), invalid, {"byte 0", "not a GGUF file"}},
      {"version", Writer().raw("GGUF").u32(1).u64(0).u64(0), invalid, {"byte 4", "version 1"}},
      {"byte order", Writer().raw("GGUF").u32(3u << 24).u64(0).u64(0), invalid, {"byte 4"}},
      {"tensor count", Writer().header(~0ull, 0), corrupt, {"byte 8", "tensors; at most"}},
      {"key count", Writer().header(0, 1ull << 40), corrupt, {"byte 16", "keys; at most"}},
      {"keys that are not there", Writer().header(0, 2), corrupt, {"key 0", "byte 24", "the file ends after 0"}},
  };
}

std::vector<Hostile> hostile_keys() {
  const Code corrupt = Code::kCorrupt;
  return {
      {"key length", Writer().header(0, 1).u64(~0ull).raw("k"), corrupt, {"key 0", "byte 24"}},
      {"key beyond the end", Writer().header(0, 1).u64(100).raw("k"), corrupt, {"key 0", "needs 100 bytes"}},
      {"value type", Writer().header(0, 1).string("k").u32(13).u64(0), corrupt, {"key 'k'", "value type 13"}},
      {"bool", Writer().header(0, 1).string("k").u32(kBool).raw("\2"), corrupt, {"key 'k'", "bool of value 2"}},
      {"string value",
       Writer().header(0, 1).string("k").u32(kString).u64(1ull << 63),
       corrupt,
       {"key 'k'", "a string of"}},
      {"array of arrays",
       Writer().header(0, 1).string("k").u32(kArray).u32(kArray).u64(1),
       corrupt,
       {"key 'k'", "array of arrays"}},
      {"element type", Writer().header(0, 1).string("k").u32(kArray).u32(77).u64(1), corrupt, {"element type 77"}},
      {"array count",
       Writer().header(0, 1).string("k").u32(kArray).u32(kUint32).u64(1ull << 62),
       corrupt,
       {"key 'k'", "elements; at most"}},
      {"array beyond the end",
       Writer().header(0, 1).string("k").u32(kArray).u32(kUint32).u64(3).u32(0).u32(0),
       corrupt,
       {"key 'k'", "needs 12 bytes"}},
      {"string in array",
       Writer().header(0, 1).string("k").u32(kArray).u32(kString).u64(2).string("a").u64(9).raw("b"),
       corrupt,
       {"key 'k'", "needs 9 bytes"}},
      {"key twice",
       Writer().header(0, 2).string("k").u32(kUint32).u32(1).string("k").u32(kUint32).u32(1),
       corrupt,
       {"key 'k'", "twice"}},
      {"alignment",
       Writer().header(0, 1).string("general.alignment").u32(kUint32).u32(48),
       corrupt,
       {"general.alignment", "48"}},
      {"alignment 0",
       Writer().header(0, 1).string("general.alignment").u32(kUint32).u32(0),
       corrupt,
       {"general.alignment"}},
  };
}

std::vector<Hostile> hostile_tensors() {
  const Code corrupt = Code::kCorrupt, invalid = Code::kInvalidArgument;
  return {
      {"no dimension", Writer().header(1, 0).string("t").u32(0), corrupt, {"tensor 't'", "0 dimensions"}},
      {"5 dimensions", Writer().header(1, 0).string("t").u32(5), corrupt, {"tensor 't'", "5 dimensions"}},
      {"dimension 0", Writer().header(1, 0).string("t").u32(1).u64(0), corrupt, {"tensor 't'", "a dimension of 0"}},
      {"huge dimension",
       Writer().header(1, 0).string("t").u32(1).u64(~0ull),
       corrupt,
       {"tensor 't'", "a dimension of"}},
      {"overflowing dimensions",
       Writer().header(1, 0).string("t").u32(4).u64(2).u64(1 << 30).u64(1 << 30).u64(1 << 30),
       corrupt,
       {"tensor 't'", "rows"}},
      {"number format", Writer().header(1, 0).tensor("t", 256, 0, 14), invalid, {"tensor 't'", "number format 14"}},
      {"broken quant row", Writer().header(1, 0).tensor("t", 33, 0, 3), corrupt, {"tensor 't'", "33 columns in Q4_1"}},
      {"crooked offset", Writer().header(1, 0).tensor("t", 4, 8).pad(64), corrupt, {"tensor 't'", "offset 8"}},
      {"offset beyond the end", Writer().header(1, 0).tensor("t", 4, 64).pad(64), corrupt, {"tensor 't'", "too short"}},
      {"offset that wraps", Writer().header(1, 0).tensor("t", 4, ~31ull).pad(64), corrupt, {"tensor 't'", "too short"}},
      {"data beyond the end", Writer().header(1, 0).tensor("t", 17, 0).pad(64), corrupt, {"tensor 't'", "68 bytes"}},
      {"tensor twice",
       Writer().header(2, 0).tensor("t", 4, 0).tensor("t", 4, 0).pad(64),
       corrupt,
       {"tensor 't'", "twice"}},
  };
}

void expect_refusals(const std::vector<Hostile>& cases) {
  for (const Hostile& hostile : cases) {
    const Status status = parse(hostile.file);
    EXPECT_EQ(status.code(), hostile.code) << hostile.what << ": " << status.message();
    EXPECT_EQ(status.message().rfind("test.gguf: ", 0), 0u) << hostile.what << ": " << status.message();
    for (const std::string& part : hostile.says)
      EXPECT_NE(status.message().find(part), std::string::npos) << hostile.what << ": " << status.message();
  }
}

TEST(Gguf, HostileHeadersAreRefusedWithPlaceAndReason) { expect_refusals(hostile_headers()); }
TEST(Gguf, HostileKeysAreRefusedWithPlaceAndReason) { expect_refusals(hostile_keys()); }
TEST(Gguf, HostileTensorsAreRefusedWithPlaceAndReason) { expect_refusals(hostile_tensors()); }

TEST(Gguf, TheSameFieldsWithoutTheFaultAreAccepted) {
  const Writer good = Writer().header(1, 1).string("k").u32(kBool).raw("\1").tensor("t", 16, 0).pad(64);
  LLAMA_ASSERT_OK_AND_ASSIGN(const Gguf file, Gguf::parse(good.bytes(), "test.gguf"));
  EXPECT_EQ(file.tensors().at("t").data.size(), 64u);
}

// Where the directory ends and data begins.
std::size_t directory_bytes(const Gguf& file) {
  std::size_t first = file.bytes().size();
  for (const auto& [name, tensor] : file.tensors())
    first = std::min(first, static_cast<std::size_t>(tensor.data.data() - file.bytes().data()));
  return first;
}

TEST(Gguf, EveryTruncationIsAnError) {
  const std::vector<std::byte> whole = read_bytes(random_model("q4_1"));
  LLAMA_ASSERT_OK_AND_ASSIGN(const Gguf file, Gguf::parse(whole, "whole.gguf"));
  const std::size_t directory = directory_bytes(file);
  for (std::size_t n = 0; n < whole.size(); n += n < directory ? 1 : 997) {
    const std::vector<std::byte> cut(whole.data(), whole.data() + n);  // exact size: ASan sees a one-byte overread
    const Status status = Gguf::parse(cut, "cut.gguf").status();
    ASSERT_EQ(status.code(), Code::kCorrupt) << "prefix of " << n << " bytes";
    ASSERT_EQ(status.message().rfind("cut.gguf: byte ", 0), 0u) << status.message();
  }
}

// A flipped bit may leave a file that is still well-formed. What must not happen is a crash, here or further up.
TEST(Gguf, NoFlippedBitCrashesReaderTokenizerOrModel) {
  const std::vector<std::byte> whole = read_bytes(random_model("q4_0"));
  LLAMA_ASSERT_OK_AND_ASSIGN(const Gguf file, Gguf::parse(whole, "whole.gguf"));
  const std::size_t directory = directory_bytes(file);
  int refused = 0;
  for (std::uint64_t seed = 0; seed < 1500; ++seed) {
    Random random(seed);
    std::vector<std::byte> flipped = whole;
    const std::size_t at = random.below(directory);
    flipped[at] ^= static_cast<std::byte>(1u << random.below(8));
    Result<Gguf> parsed = Gguf::parse(flipped, "flipped.gguf");
    if (parsed.ok()) {
      const Status tokenizer = Tokenizer::create(*parsed).status();
      const Status model = seed % 10 == 0 ? Model::load(std::move(*parsed)).status() : Status();
      refused += !tokenizer.ok() || !model.ok();
      for (const Status& status : {tokenizer, model})
        EXPECT_TRUE(status.ok() || status.message().find("flipped.gguf") != std::string::npos) << status.message();
    } else {
      ++refused;
      EXPECT_EQ(parsed.status().message().rfind("flipped.gguf: ", 0), 0u) << "seed " << seed;
    }
  }
  EXPECT_GT(refused, 300) << "flips that change structure are noticed";
}

}  // namespace
}  // namespace firn::llama
