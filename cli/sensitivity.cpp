#include "cli/sensitivity.h"

#include <algorithm>
#include <random>

#include "cli/calibration.h"
#include "examples/llama/gradients.h"

namespace firn::cli {
namespace {

constexpr std::uint32_t kRecent = 128;  // tokens before those that ask, which a cache keeps exact

// The first `kept` tokens of each layer.
std::vector<float> first_tokens(const std::vector<float>& from, std::size_t layers, std::size_t tokens,
                                std::size_t kept) {
  const std::size_t width = from.size() / layers / tokens;
  std::vector<float> to;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    const auto at = from.begin() + static_cast<std::ptrdiff_t>(layer * tokens * width);
    to.insert(to.end(), at, at + static_cast<std::ptrdiff_t>(kept * width));
  }
  return to;
}

}  // namespace

Status add_sensitivity(const LoadedModel& model, const std::vector<std::vector<TokenId>>& windows, std::uint32_t most,
                       FirnCalibrator& calibrator) {
  std::vector<const std::vector<TokenId>*> chosen;
  for (std::size_t i = 0; i < windows.size() && chosen.size() < most; ++i)
    if (!is_held_out(i)) chosen.push_back(&windows[i]);
  if (chosen.empty()) return Status(Code::kInvalidArgument, "--gradients: no window of text is left for them");
  llama::KvGradients gradients(model.model);
  std::mt19937_64 random(5);
  const llama::KvGradients::Choose draw = [&](std::size_t, std::span<const float> probabilities) {
    double left = static_cast<double>(random() >> 11) * 0x1p-53;
    for (std::size_t v = 0; v < probabilities.size(); ++v)
      if ((left -= static_cast<double>(probabilities[v])) < 0) return static_cast<std::int32_t>(v);
    return static_cast<std::int32_t>(probabilities.size() - 1);
  };
  Progress progress("gradients", chosen.size() * chosen[0]->size());
  for (const std::vector<TokenId>* window : chosen) {
    const std::size_t past = window->size() / 2, kept = past > 2 * kRecent ? past - kRecent : past;
    const std::size_t layers = model.model.geometry().layers;
    const std::span<const TokenId> text(*window);
    const llama::KvCache cache = gradients.cache_of(text.first(past));
    const llama::KvGradients::Gradients felt = gradients.by_cache(cache, text.subspan(past), draw);
    FIRN_TRY(calibrator.add_sensitivity(
        0, static_cast<std::uint32_t>(kept), first_tokens(cache.values, layers, past, kept),
        first_tokens(felt.keys, layers, past, kept), first_tokens(felt.values, layers, past, kept)));
    progress.add(window->size());
  }
  return {};
}

}  // namespace firn::cli
