// firn_calibrator.h: turns keys, values and what predictions feel of them into an artefact for the codec firn. First
// windows with gradients, out of which come weights and whether there are sinks within texts; then windows of keys and
// values, some of which are held out: spreads, models, steps and bounds are those of text that shaped no basis.
//
// Deterministic for the same windows, machine and number of threads of the linear algebra.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "firn/model.h"
#include "firn/status.h"
#include "firn/thread_pool.h"
#include "storage/calibration/components.h"
#include "storage/codec/artefact.h"
#include "storage/codec/rotation.h"

namespace firn {

struct FirnCalibrationOptions {
  std::uint32_t stack_layers = 5;  // layers coded together; 0: all
  std::vector<std::uint32_t> ratios = {8, 16, 24, 32, 48, 64, 96};
  std::uint32_t exact_tokens = 4;       // first positions of a text, which are nothing like the others
  std::uint32_t held_out_extents = 56;  // of 128 tokens, at most
  bool sinks = true;                    // look for sinks within texts
  bool means = true;                    // code what all tokens of a frame share
  bool weights = true;                  // by what predictions feel; else all channels count alike
  std::string calibrated_on = {};       // for people: what the text was
};

// What was found on the way.
struct FirnFindings {
  std::vector<std::uint32_t> detector_layers;
  double threshold = 0;
  double sink_share = 0;        // of the tokens of windows with gradients
  double sink_sensitivity = 0;  // share of the sensitivity of the detector's layers that these have
  std::uint64_t sink_rows = 0;  // calibrated on
};

class FirnCalibrator {
 public:
  static Result<std::unique_ptr<FirnCalibrator>> make(const ModelSpec& model, FirnCalibrationOptions options,
                                                      ThreadPool& threads);
  ~FirnCalibrator();

  // Values of cold tokens, all [layer][token][width], and what the log-likelihood of later tokens feels of their keys
  // before they were rotated, and of their values. All of these before the first add_window.
  Status add_sensitivity(std::uint64_t first_position, std::uint32_t token_count, const std::vector<float>& values,
                         const std::vector<float>& key_gradients, const std::vector<float>& value_gradients);
  // Keys as the model rotated them, and values, of consecutive positions.
  Status add_window(std::uint64_t first_position, std::uint32_t token_count, const std::vector<float>& keys,
                    const std::vector<float>& values, bool held_out);
  std::uint64_t tokens() const { return tokens_; }

  // progress: what is being done, and how much of all is done (0 to 1).
  using Report = std::function<void(std::string_view what, double share)>;
  Result<Artefact> finish(const Report& progress);
  const FirnFindings& findings() const { return findings_; }

  static constexpr std::uint32_t kExtentTokens = kMaxExtentBlocks * kBlockTokens;

 private:
  struct Extent {  // held out, as a cache has it: [layer][keys, values][token][head][dim]
    std::uint64_t first_position = 0;
    std::vector<std::byte> bytes;
  };
  struct Stack;
  FirnCalibrator(const ModelSpec& model, FirnCalibrationOptions options, KeyRotation rotation, ThreadPool& threads);
  std::uint32_t width(bool values) const;
  std::size_t channels() const;
  Status find_sinks();
  bool detect(const float* row) const;
  std::vector<float> rows_of(std::uint64_t first_position, std::uint32_t skip, std::uint32_t token_count,
                             const std::vector<float>& keys, const std::vector<float>& values) const;
  void hold_out(std::uint64_t first_position, std::uint32_t skip, std::uint32_t token_count,
                const std::vector<float>& keys, const std::vector<float>& values);
  std::vector<float> held_out_rows(const Extent& extent) const;
  void find_weights();
  Status find_basis(std::size_t i);
  Status find_spreads(const Report& progress);
  Status find_rates(Artefact& artefact, const Report& progress);

  ModelSpec model_;
  FirnCalibrationOptions options_;
  KeyRotation rotation_;
  ThreadPool& threads_;
  // A row has all channels of a token: stack after stack, in each keys of its layers, then values.
  std::vector<std::unique_ptr<Stack>> stacks_;
  std::vector<std::vector<float>> felt_;         // squared gradients of a token, [channels]
  std::vector<std::vector<double>> felt_norms_;  // value norms of a token, [layer]
  bool found_ = false;
  FirnModel firn_;
  FirnFindings findings_;
  std::vector<double> feels_[2];  // mean squared gradients of tokens that are no sinks, and of sinks
  std::vector<double> sums_;      // of rows that are no sinks
  std::vector<std::vector<float>> frame_means_, sink_rows_;
  std::vector<Extent> held_out_;
  std::uint64_t tokens_ = 0, plain_tokens_ = 0;
};

}  // namespace firn
