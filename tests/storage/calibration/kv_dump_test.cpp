// The dump of keys and values: what is read is what was written, a calibration from it is a calibration, and a damaged
// header is refused.
#include "storage/calibration/kv_dump.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <random>

#include "storage/codec/lossy_kernels.h"
#include "tests/storage/calibration/toy_cache.h"

namespace firn {
namespace {

using namespace test;

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

// Values as the cache would have them.
std::vector<float> rounded(const std::vector<float>& values) {
  std::vector<float> out;
  for (const float value : values) out.push_back(lossy::from_f16(lossy::to_f16(value)));
  return out;
}

class Dump : public testing::Test {
 protected:
  void SetUp() override {
    ToyCache cache(model);
    for (int i = 0; i < 6; ++i) windows.push_back(cache.window(i == 3 ? 1000 : 0, i == 4 ? 144 : 272));
    std::vector<KvWindow> shapes;
    for (const ToyCache::Window& w : windows) shapes.push_back({w.first_position, w.tokens});
    auto writer = KvDumpWriter::create(path, model, shapes);
    ASSERT_TRUE(writer.ok()) << writer.status().message();
    for (const ToyCache::Window& w : windows) ASSERT_TRUE((*writer)->add(w.keys, w.values).ok());
    ASSERT_TRUE((*writer)->close().ok());
  }
  ModelSpec model = toy_model();
  std::vector<ToyCache::Window> windows;
  const std::string path = FIRN_BINARY_DIR "/kv_dump_test.safetensors";
};

TEST_F(Dump, ComesBackAsTheCacheWouldHaveIt) {
  auto dump = KvDumpReader::open(path);
  ASSERT_TRUE(dump.ok()) << dump.status().message();
  const ModelSpec& read = (*dump)->model();
  EXPECT_EQ(read.name, model.name);
  EXPECT_EQ(read.weights, model.weights);
  EXPECT_EQ(read.groups[0].kv, model.groups[0].kv);
  EXPECT_EQ(read.groups[0].layer_count, model.groups[0].layer_count);
  EXPECT_EQ(read.rotation.pairing, model.rotation.pairing);
  EXPECT_EQ(read.rotation.dims, model.rotation.dims);
  EXPECT_EQ(read.rotation.inverse_frequencies, model.rotation.inverse_frequencies);
  ASSERT_EQ((*dump)->windows().size(), windows.size());
  std::vector<float> keys, values;
  for (const std::size_t i : {4u, 0u, 5u, 3u}) {  // in any order
    ASSERT_TRUE((*dump)->read(i, keys, values).ok());
    EXPECT_EQ((*dump)->windows()[i].first_position, windows[i].first_position);
    EXPECT_TRUE(keys == rounded(windows[i].keys));
    EXPECT_TRUE(values == rounded(windows[i].values));
  }
}

TEST_F(Dump, CalibratesTheModelItSaysItIsOf) {
  auto dump = KvDumpReader::open(path);
  ASSERT_TRUE(dump.ok());
  ThreadPool threads(1);
  auto calibrator = Calibrator::make((*dump)->model(), {.ratios = {8}}, threads);
  ASSERT_TRUE(calibrator.ok());
  std::vector<float> keys, values;
  for (std::size_t i = 0; i < windows.size(); ++i) {
    ASSERT_TRUE((*dump)->read(i, keys, values).ok());
    const KvWindow& w = (*dump)->windows()[i];
    ASSERT_TRUE((*calibrator)->add_window(w.first_position, w.tokens, keys, values, i % 3 == 2).ok());
  }
  Result<Artefact> artefact = (*calibrator)->finish({});
  ASSERT_TRUE(artefact.ok()) << artefact.status().message();
  EXPECT_TRUE(make_codec(CodecId::kKvtc, loaded(std::move(*artefact)), 8, model).ok());
}

TEST_F(Dump, EveryTruncationOfItsHeaderIsCorruptAndSoIsOneOfItsData) {
  const std::string whole = read_file(path), other = path + ".cut";
  std::uint64_t json_bytes = 0;
  std::memcpy(&json_bytes, whole.data(), 8);
  for (std::size_t n = 0; n <= 8 + json_bytes; ++n) {
    write_file(other, whole.substr(0, n));
    ASSERT_EQ(KvDumpReader::open(other).status().code(), Code::kCorrupt) << n << " bytes";
  }
  write_file(other, whole.substr(0, whole.size() - 1));
  EXPECT_EQ(KvDumpReader::open(other).status().code(), Code::kCorrupt);
}

TEST_F(Dump, DamageToItsHeaderNeverReadsBeyondIt) {
  const std::string whole = read_file(path), other = path + ".damaged";
  std::uint64_t json_bytes = 0;
  std::memcpy(&json_bytes, whole.data(), 8);
  std::mt19937 random(11);
  std::vector<float> keys, values;
  for (int i = 0; i < 500; ++i) {
    std::string damaged = whole;
    for (int n = 0; n < 3; ++n)
      damaged[random() % (8 + json_bytes)] = static_cast<char>(n == 0 ? '0' + random() % 10 : random() % 256);
    write_file(other, damaged);
    auto dump = KvDumpReader::open(other);
    if (!dump.ok()) {
      ASSERT_EQ(dump.status().code(), Code::kCorrupt) << dump.status().message();
      continue;
    }
    for (std::size_t w = 0; w < (*dump)->windows().size(); ++w) ASSERT_TRUE((*dump)->read(w, keys, values).ok());
  }
}

TEST(DumpWriter, SaysWhatItLacks) {
  const std::string path = FIRN_BINARY_DIR "/kv_dump_lacks.safetensors";
  EXPECT_FALSE(KvDumpWriter::create(path, toy_model(), {}).ok());
  EXPECT_EQ(KvDumpWriter::create("/nowhere/at/all", toy_model(), {{0, 16}}).status().code(), Code::kInvalidArgument);
  auto writer = KvDumpWriter::create(path, toy_model(), {{0, 16}});
  ASSERT_TRUE(writer.ok());
  EXPECT_EQ((*writer)->add({1.0f}, {1.0f}).code(), Code::kInvalidArgument);
  EXPECT_EQ((*writer)->close().code(), Code::kInvalidArgument);
  EXPECT_EQ(KvDumpReader::open("/nowhere/at/all").status().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace firn
