// An artefact is a file from anywhere: what was written is read, and whatever happens to it in between is found.
#include "storage/codec/artefact.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "storage/codec/bytes.h"
#include "tests/storage/calibration/toy_cache.h"

#include <blake3.h>

namespace firn {
namespace {

using namespace test;

const Bytes& toy_file() {
  static const Bytes file = [] {
    Artefact artefact = toy_artefact(toy_model(), {4, 8}, 2);
    artefact.plans[0].report.measured = true;
    artefact.plans[0].report.measured_tokens = 100;
    artefact.plans[0].report.mean_kld = 0.25;
    return write_artefact(artefact);
  }();
  return file;
}

void reseal_artefact(Bytes& file) {
  if (file.size() < 32) return;
  blake3_hasher state;
  blake3_hasher_init(&state);
  blake3_hasher_update(&state, file.data(), file.size() - 32);
  blake3_hasher_finalize(&state, reinterpret_cast<std::uint8_t*>(file.data() + file.size() - 32), 32);
}

TEST(ArtefactFile, IsReadAsItWasWritten) {
  const auto read = parse_artefact(toy_file());
  ASSERT_TRUE(read.ok()) << read.status().message();
  Artefact again = **read;
  EXPECT_TRUE(write_artefact(again) == toy_file());
  EXPECT_EQ(again.digest, (*read)->digest);
  const ArtefactInfo info = describe(**read);
  EXPECT_EQ(info.model, "toy");
  EXPECT_EQ(info.calibrated_on, "toy text");
  EXPECT_EQ(info.stack_layers, 2u);
  ASSERT_EQ(info.rates.size(), 2u);
  EXPECT_EQ(info.rates[0].rate, 4u);
  EXPECT_TRUE(info.rates[0].measured);
  EXPECT_EQ(info.rates[0].mean_kld, 0.25);
  EXPECT_FALSE(info.rates[1].measured);
  EXPECT_EQ(info.rates[1].key_errors.size(), 4u);
}

// Found by the fuzzer: a number that JSON can hold and a float cannot became infinity, and the guard let everything
// pass.
TEST(ArtefactFile, ABoundThatIsNoneIsCorrupt) {
  for (const char* bound : {"1e39", "-0.5"}) {
    Bytes file = toy_file();
    const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
    const std::size_t at = text.find(':', text.find("key_bound")) + 1;
    const std::size_t end = text.find_first_of(",}", at);
    ASSERT_GT(end - at, 4u);
    std::string padded(bound);
    padded.resize(end - at, ' ');
    std::memcpy(file.data() + at, padded.data(), padded.size());
    reseal_artefact(file);
    const auto read = parse_artefact(file);
    ASSERT_FALSE(read.ok()) << bound;
    EXPECT_EQ(read.status().code(), Code::kCorrupt);
    EXPECT_NE(read.status().message().find("key_bound"), std::string::npos) << read.status().message();
  }
}

TEST(ArtefactFile, EveryTruncationIsCorrupt) {
  const Bytes& file = toy_file();
  for (std::size_t n = 0; n < file.size(); n += n < 6000 ? 1 : 97) {
    const Bytes cut(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(n));
    ASSERT_EQ(parse_artefact(cut).status().code(), Code::kCorrupt) << n << " bytes";
    Bytes sealed = cut;
    reseal_artefact(sealed);
    ASSERT_EQ(parse_artefact(sealed).status().code(), Code::kCorrupt) << n << " bytes, sealed";
  }
}

TEST(ArtefactFile, TenThousandCorruptionsAreFound) {
  const Bytes& file = toy_file();
  const auto header = load_le<std::uint64_t>(file.data());
  std::mt19937_64 random(8);
  for (int i = 0; i < 10000; ++i) {
    Bytes broken = file;
    for (std::size_t n = random() % 3 + 1; n > 0; --n) {
      const std::size_t at = random() % (random() % 2 == 0 ? header + 8 : file.size());
      broken[at] = static_cast<std::byte>(random());
    }
    if (broken == file) continue;
    ASSERT_EQ(parse_artefact(broken).status().code(), Code::kCorrupt) << i;
    if (i % 4 != 0) continue;
    reseal_artefact(broken);  // an enemy's own artefact may be well formed; then it can be used without harm
    const auto read = parse_artefact(broken);
    ASSERT_TRUE(read.ok() || read.status().code() == Code::kCorrupt) << i;
  }
}

TEST(ArtefactFile, IsForOneModelAndItsRates) {
  const auto artefact = *parse_artefact(toy_file());
  const ModelSpec model = toy_model();
  EXPECT_TRUE(make_codec(CodecId::kKvtc, artefact, 8, model).ok());
  const auto refused = [&](const ModelSpec& other, std::uint32_t rate, const char* what) {
    const Status status = make_codec(CodecId::kKvtc, artefact, rate, other).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << what;
    EXPECT_NE(status.message().find(what), std::string::npos) << status.message();
  };
  refused(model, 16, "no ratio 16; it has 4, 8");
  ModelSpec other = model;
  other.weights.bytes[31] = 1;
  refused(other, 8, "other weights");
  other = model;
  other.groups[0].layer_count = 3;
  refused(other, 8, "another geometry");
  other = model;
  other.rotation.inverse_frequencies[2] *= 2;
  refused(other, 8, "another rotation");
  EXPECT_EQ(make_codec(CodecId::kKvtc, nullptr, 8, model).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(make_codec(CodecId::kQ8, artefact, 8, model).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(load_artefact("/nowhere/a.safetensors").status().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace firn
