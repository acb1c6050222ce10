// demo_second_device.h: the demo's last part: one short question is asked on the demo's device and again on another
// kind of device, and the tokens must agree. On a machine without a GPU the other one is lavapipe, Vulkan on the
// processor.
//
// Two devices round differently, so two tokens that are all but equally likely may change places. That, and nothing
// else, is allowed: at the first difference the margin between the two likeliest tokens must be under kTieMargin.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/session.h"

namespace firn::cli {

inline constexpr double kTieMargin = 1e-3;  // of logits

struct SecondDevice {
  std::string skipped;        // why it was not done; then nothing below is set
  std::string first, second;  // devices
  std::string question, answer;
  std::uint32_t tokens_compared = 0, tokens_equal = 0;
  std::optional<double> margin;  // between the two likeliest tokens at the first difference
  double first_s = 0, second_s = 0;
  bool agrees() const { return tokens_equal == tokens_compared || (margin && *margin < kTieMargin); }
};

// What one device said.
struct Answer {
  std::string device;
  std::vector<TokenId> tokens;  // with the end-of-sequence token, if it came
  std::vector<double> margins;  // before each token: the likeliest logit less the second
  double seconds = 0;
};
SecondDevice compare_answers(const Answer& first, const Answer& second);

// wanted: auto (lavapipe after cpu, cpu after a GPU), off, or a device by name. What is missing is a reason to skip;
// a failure on the way is an error.
Result<SecondDevice> ask_second_device(const LoadedModel& model, const Config& config, const std::string& wanted);
void print_second_device(const SecondDevice& result);
nlohmann::ordered_json second_device_json(const SecondDevice& result);

}  // namespace firn::cli
