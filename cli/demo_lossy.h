// demo_lossy.h: the demo's rows of lossy codecs. The document is read with its cold blocks through each codec, thrown
// out of the pool, restored, and the text that follows it is scored token by token against the exact run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/evaluation.h"
#include "cli/session.h"
#include "cli/steps.h"

namespace firn::cli {

struct LossyRow {
  std::string codec;
  std::vector<double> wall_s, cpu_s;  // of restoring
  std::uint32_t tokens_restored = 0;
  std::uint64_t frame_bytes = 0, raw_bytes = 0;  // in the host tier
  std::uint64_t frames_lossy = 0, guarded = 0;   // guarded: stored lossless, since the error was above the bound
  double mean_kld = 0, p99_kld = 0, top1 = 0;
  std::int64_t first_differing = -1;  // token of the scored text that the model would have chosen otherwise; -1: none
  double ratio() const {
    return frame_bytes == 0 ? 1 : static_cast<double>(raw_bytes) / static_cast<double>(frame_bytes);
  }
};

struct LossyReport {
  std::uint32_t document_tokens = 0, scored_tokens = 0;
  std::string artefact;  // file of kvtc
  std::uint64_t calibration_tokens = 0;
  double calibration_s = 0;  // 0: it was there already
  std::vector<LossyRow> rows;
};

// document, and the text that follows it in its source.
// Rows come one by one, those that need calibration last. on_signal: see Steps::end_on_signal().
Status measure_lossy(const LoadedModel& model, const Config& config, std::span<const TokenId> document,
                     std::span<const TokenId> following, Steps& steps, const std::function<void()>& on_signal,
                     LossyReport& report);
std::vector<Steps::Step> lossy_steps();  // that measure_lossy() takes; the fourth calibrates
bool is_calibrated(const LoadedModel& model);

}  // namespace firn::cli
