// guard_test.cpp: kvtc on real text and on text that no calibration prepares for. The model reads prose: cold blocks
// become lossy. It reads the same prose with the vocabulary shuffled, every word another one: errors are above what the
// artefact was measured with, extents are stored lossless, and the counters say so.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>

#include "examples/llama/capture.h"
#include "examples/llama/engine.h"
#include "examples/llama/tokenizer.h"
#include "storage/calibration/calibrator.h"

namespace firn::llama {
namespace {

constexpr std::uint32_t kWindow = 400, kWindows = 4, kServed = 440;

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

class Guard : public testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("FIRN_SMOLLM2_GGUF");
    if (path == nullptr || !std::ifstream(path).good())
      GTEST_SKIP() << "needs a model: set FIRN_SMOLLM2_GGUF to SmolLM2-135M-Instruct.Q4_1.gguf";
    Result<Model> loaded = Model::load(path);
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    model_ = std::make_unique<Model>(std::move(loaded).value());
  }

  Result<std::vector<TokenId>> tokens_of(const std::string& text) const {
    FIRN_ASSIGN(const Tokenizer tokenizer, Tokenizer::create(model_->file()));
    return tokenizer.encode(read_file(FIRN_SOURCE_DIR "/examples/texts/" + text + ".txt"));
  }

  // An artefact from a book's first windows, the last of them held out.
  Status calibrate(std::span<const TokenId> text, const std::string& artefact) {
    const ModelSpec spec = model_->spec();
    const GroupSpec& group = spec.groups[0];
    const std::size_t width = group.kv.kv_heads * group.kv.head_dim;
    CalibrationOptions options;
    options.stack_layers = 1;
    options.ratios = {8};
    FIRN_ASSIGN(const std::unique_ptr<Calibrator> calibrator, Calibrator::make(spec, options, threads_));
    std::vector<float> keys(std::size_t{group.layer_count} * kWindow * width), values(keys.size());
    Config config;
    config.pool.budget_bytes = 128u << 20;
    FIRN_ASSIGN(const std::unique_ptr<Manager> manager,
                Manager::create(config, spec, {.threads = &threads_, .device = nullptr, .clock = {}}));
    ListeningManager listening(
        *manager, [&](std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress k, DeviceAddress v) {
          for (const StepRows& part : rows) {
            const std::size_t to = (std::size_t{layer} * kWindow + part.position) * width;
            std::memcpy(&keys[to], reinterpret_cast<const float*>(k) + part.row * width,
                        part.row_count * width * sizeof(float));
            std::memcpy(&values[to], reinterpret_cast<const float*>(v) + part.row * width,
                        part.row_count * width * sizeof(float));
          }
        });
    Engine engine(*model_, listening, threads_);
    for (std::uint32_t i = 0; i < kWindows; ++i) {
      BeginOptions begin;
      begin.read_cache = false;
      FIRN_ASSIGN(Sequence sequence, engine.begin(text.subspan(std::size_t{i} * kWindow, kWindow), begin));
      Sequence* sequences[] = {&sequence};
      FIRN_TRY(engine.run(sequences));
      FIRN_TRY(calibrator->add_window(0, kWindow, keys, values, i + 1 == kWindows));
    }
    FIRN_ASSIGN(Artefact made, calibrator->finish({}));
    const std::vector<std::byte> bytes = write_artefact(made);
    std::ofstream(artefact, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return {};
  }

  // The text read through the codec; what became of its cold blocks.
  Result<Stats> serve(std::span<const TokenId> text, const std::string& artefact) {
    Config config;
    config.pool.budget_bytes = 128u << 20;
    config.host.budget_bytes = 192u << 20;
    config.host.codec = "kvtc";
    config.host.artefact = artefact;
    config.host.ratio = 8;
    config.host.allow_unmeasured = true;
    config.mover.worker = false;
    FIRN_ASSIGN(const std::unique_ptr<Manager> manager,
                Manager::create(config, model_->spec(), {.threads = &threads_, .device = nullptr, .clock = {}}));
    Engine engine(*model_, *manager, threads_);
    FIRN_ASSIGN(Sequence sequence, engine.begin(text));
    Sequence* sequences[] = {&sequence};
    FIRN_TRY(engine.run(sequences));
    FIRN_TRY(manager->wait_idle());
    const Violations broken = manager->verify();
    if (!broken.empty()) return Status(Code::kCorrupt, broken.front());
    return manager->stats();
  }

  ThreadPool threads_;
  std::unique_ptr<Model> model_;
};

TEST_F(Guard, ProseBecomesLossyAndAShuffledVocabularyDoesNot) {
  const Result<std::vector<TokenId>> text = tokens_of("persuasion");
  ASSERT_TRUE(text.ok()) << text.status().message();
  ASSERT_GE(text->size(), kWindow * kWindows + kServed);
  const std::string artefact = FIRN_BINARY_DIR "/guard_test.safetensors";
  const Status calibrated = calibrate(*text, artefact);
  ASSERT_TRUE(calibrated.ok()) << calibrated.message();

  const std::vector<TokenId> prose(text->end() - kServed, text->end());
  const Result<Stats> served = serve(prose, artefact);
  ASSERT_TRUE(served.ok()) << served.status().message();
  EXPECT_EQ(served->frames_guarded, 0u);
  EXPECT_GE(served->frames_lossy, 2u);

  // The same text in another vocabulary: how often each token comes is kept, what it says is not.
  std::vector<TokenId> other(model_->geometry().vocabulary);
  std::iota(other.begin(), other.end(), TokenId{0});
  std::mt19937 random(1);
  for (std::size_t i = other.size(); i > 1; --i) std::swap(other[i - 1], other[random() % i]);
  std::vector<TokenId> shuffled;
  for (const TokenId token : prose) shuffled.push_back(other[static_cast<std::size_t>(token)]);
  const Result<Stats> guarded = serve(shuffled, artefact);
  ASSERT_TRUE(guarded.ok()) << guarded.status().message();
  EXPECT_EQ(guarded->frames_lossy, 0u);
  EXPECT_EQ(guarded->frames_guarded, served->frames_lossy);
}

}  // namespace
}  // namespace firn::llama
