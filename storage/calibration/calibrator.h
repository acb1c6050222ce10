// calibrator.h: turns keys and values of text into an artefact for kvtc. Windows of text go in one after the other:
// some shape the basis, others are held out, on which bits are allocated, errors bounded and ratios reported.
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

struct CalibrationOptions {
  std::uint32_t stack_layers = 0;  // layers coded together; 0: all
  std::vector<std::uint32_t> ratios = {8, 16, 32};
  std::uint32_t sinks = 4;              // first positions of a text, which are nothing like the others
  std::uint32_t held_out_extents = 64;  // of 128 tokens, at most; more windows marked as held out are ignored
  std::size_t max_gram = kMaxGram;      // channels above which components are found by randomised iteration
  std::string calibrated_on = {};       // for people: what the text was
};

// Variances of centred, un-rotated keys or values: what there is to be pressed.
struct Spectrum {
  bool values = false;
  bool is_stack = false;  // else one layer
  std::uint32_t first_layer = 0, channels = 0;
  double mean_share = 0;                                // of all energy that the mean holds
  std::uint32_t half = 0, ninety = 0, ninety_nine = 0;  // components that hold 50, 90 and 99 % of the variance
};

class Calibrator {
 public:
  static Result<std::unique_ptr<Calibrator>> make(const ModelSpec& model, CalibrationOptions options,
                                                  ThreadPool& threads);
  ~Calibrator();

  // Keys as the model rotated them, and values, [layer][token][kv_heads * dim], of consecutive positions.
  Status add_window(std::uint64_t first_position, std::uint32_t token_count, const std::vector<float>& keys,
                    const std::vector<float>& values, bool held_out);
  std::uint64_t tokens() const { return tokens_; }
  std::uint64_t held_out_tokens() const { return held_out_.size() * kExtentTokens; }

  // progress: what is being done, and how much of all is done (0 to 1).
  using Report = std::function<void(std::string_view what, double share)>;
  Result<Artefact> finish(const Report& progress);
  const std::vector<Spectrum>& spectra() const { return spectra_; }

  static constexpr std::uint32_t kExtentTokens = kMaxExtentBlocks * kBlockTokens;

 private:
  // Held-out keys and values of 128 tokens as a cache has them: [layer][keys, values][token][head][dim].
  struct Extent {
    std::uint64_t first_position = 0;
    std::vector<std::byte> bytes;
  };
  struct Sum;  // of one stack of one tensor
  Calibrator(const ModelSpec& model, CalibrationOptions options, KeyRotation rotation, ThreadPool& threads);
  std::uint32_t width(bool values) const;
  void hold_out(std::uint64_t first_position, std::uint32_t token_count, const std::vector<float>& keys,
                const std::vector<float>& values);
  Result<StackBasis> find_basis(Sum& sum, bool values);
  Status note_spectrum(const std::vector<double>& variances, bool values, bool is_stack, std::uint32_t layer,
                       double mean_share);
  std::vector<float> project_held_out(const StackBasis& stack, bool values) const;
  Status allocate(Artefact& artefact, bool values, const Report& progress, double done);
  void trim(Artefact& artefact, bool values);
  Status measure(Artefact& artefact, const Report& progress);

  ModelSpec model_;
  CalibrationOptions options_;
  KeyRotation rotation_;
  ThreadPool& threads_;
  std::vector<std::unique_ptr<Sum>> sums_[2];
  std::vector<Extent> held_out_;
  std::vector<Spectrum> spectra_;
  std::uint64_t tokens_ = 0;
};

}  // namespace firn
