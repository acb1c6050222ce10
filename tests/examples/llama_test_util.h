// llama_test_util.h: what the tests of the example engine share.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "firn/status.h"

// Unwraps a Result, or fails the test with its message.
#define LLAMA_ASSERT_OK(...)                                  \
  do {                                                        \
    const ::firn::Status llama_status = (__VA_ARGS__);        \
    ASSERT_TRUE(llama_status.ok()) << llama_status.message(); \
  } while (false)
#define LLAMA_ASSERT_OK_AND_ASSIGN(decl, ...) LLAMA_ASSIGN_(FIRN_CONCAT(llama_result_, __LINE__), decl, __VA_ARGS__)
#define LLAMA_ASSIGN_(result, decl, ...)                 \
  auto result = (__VA_ARGS__);                           \
  ASSERT_TRUE(result.ok()) << result.status().message(); \
  decl = std::move(result).value()

namespace firn::llama {

inline std::string random_model(const std::string& type) {
  return std::string(LLAMA_RANDOM_MODELS) + "/random_" + type + ".gguf";
}

// SmolLM2-135M-Instruct: from the environment, else from the cache folder that `./run build` fills.
inline std::string smollm2_path() {
  if (const char* path = std::getenv("FIRN_SMOLLM2_GGUF")) return path;
  const char* cache = std::getenv("FIRN_CACHE_DIR");
  return std::string(cache != nullptr ? cache : LLAMA_CACHE_DIR) + "/SmolLM2-135M-Instruct.Q4_1.gguf";
}
#define LLAMA_SKIP_WITHOUT_SMOLLM2()                                 \
  if (!std::ifstream(::firn::llama::smollm2_path()).good())          \
  GTEST_SKIP() << "the model file " << ::firn::llama::smollm2_path() \
               << " is missing: `./run build` fetches it, or set FIRN_SMOLLM2_GGUF"

inline std::vector<std::byte> read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const auto* start = reinterpret_cast<const std::byte*>(text.data());
  return {start, start + text.size()};
}

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

// Reproducible numbers: the same on every machine and standard library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {  // SplitMix64
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  std::size_t below(std::size_t limit) { return static_cast<std::size_t>(next() % limit); }
  float symmetric() { return static_cast<float>(static_cast<double>(next() >> 11) * 0x1p-52 - 1.0); }  // [-1, 1)

 private:
  std::uint64_t state_;
};

}  // namespace firn::llama
