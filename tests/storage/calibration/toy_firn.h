// toy_firn.h: the toy cache of toy_cache.h with what the codec firn looks for: predictions that feel some channels more
// than others, a mean that a whole text shares, and, if asked for, tokens of small values that are felt most.
#pragma once

#include "storage/calibration/firn_calibrator.h"
#include "storage/codec/firn_codec.h"
#include "tests/storage/calibration/toy_cache.h"

namespace firn::test {

constexpr std::uint32_t kToySinkEvery = 41;  // tokens; in layers 1 and 2

inline bool is_toy_sink(std::uint64_t position) { return position % kToySinkEvery == 17; }

// Windows as ToyCache has them, with sinks.
inline ToyCache::Window toy_window(ToyCache& cache, const ModelSpec& model, std::uint64_t first_position,
                                   std::uint32_t tokens, bool sinks, bool foreign = false) {
  ToyCache::Window window = cache.window(first_position, tokens, foreign);
  const std::size_t w = cache.width();
  for (std::uint32_t layer = 1; layer < std::min(3u, model.groups[0].layer_count) && sinks; ++layer)
    for (std::uint32_t t = 0; t < tokens; ++t)
      if (is_toy_sink(first_position + t))
        for (std::size_t c = 0; c < w; ++c) window.values[(layer * tokens + t) * w + c] *= 0.1f;
  return window;
}

struct ToyFirn {
  std::vector<std::uint32_t> ratios = {4, 8, 16};
  std::uint32_t stack_layers = 2;
  bool sinks = true;  // in the data
  bool use_sinks = true, use_means = true;
};

inline Result<std::unique_ptr<FirnCalibrator>> toy_firn_calibrator(const ModelSpec& model, const ToyFirn& toy,
                                                                   ThreadPool& threads) {
  auto calibrator = FirnCalibrator::make(model,
                                         {.stack_layers = toy.stack_layers,
                                          .ratios = toy.ratios,
                                          .sinks = toy.use_sinks,
                                          .means = toy.use_means,
                                          .calibrated_on = "toy text"},
                                         threads);
  if (!calibrator.ok()) return calibrator;
  ToyCache cache(model);
  std::mt19937_64 random(5);
  const auto uniform = [&] { return static_cast<float>(random() >> 40) / 8388608.0f - 1; };
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t tokens = 400;
    const ToyCache::Window window = toy_window(cache, model, 0, tokens, toy.sinks);
    std::vector<float> keys(window.keys.size()), values(window.values.size());
    const std::size_t w = cache.width();
    for (std::size_t at = 0; at < keys.size(); ++at) {
      const std::size_t layer = at / w / tokens, token = at / w % tokens, channel = at % w;
      const float amount = 0.1f + static_cast<float>(channel % 8) / 8;
      const bool sink = toy.sinks && (layer == 1 || layer == 2) && is_toy_sink(token);
      keys[at] = amount * uniform();
      values[at] = (sink ? 40 : 1) * amount * uniform();
    }
    FIRN_TRY((*calibrator)->add_sensitivity(0, tokens, window.values, keys, values));
  }
  for (int i = 0; i < 9; ++i) {
    const ToyCache::Window window = toy_window(cache, model, 0, 512 + 16, toy.sinks);
    FIRN_TRY((*calibrator)->add_window(0, window.tokens, window.keys, window.values, i % 3 == 2));
  }
  return calibrator;
}

inline Artefact toy_firn_artefact(const ModelSpec& model, const ToyFirn& toy = {}) {
  ThreadPool threads(2);
  auto calibrator = toy_firn_calibrator(model, toy, threads);
  EXPECT_TRUE(calibrator.ok()) << calibrator.status().message();
  Result<Artefact> artefact = (*calibrator)->finish({});
  EXPECT_TRUE(artefact.ok()) << artefact.status().message();
  return std::move(artefact).value();
}

}  // namespace firn::test
