#include "cli/demo_second_device.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "firn/vulkan.h"

namespace firn::cli {
namespace {

constexpr const char* kShortQuestion = "What is the capital of France? Answer in one sentence.";
constexpr std::size_t kShortAnswerTokens = 24;

double margin_of(std::span<const float> logits) {
  float best = -std::numeric_limits<float>::infinity(), second = best;
  for (const float logit : logits) {
    if (logit > best) {
      second = best;
      best = logit;
    } else {
      second = std::max(second, logit);
    }
  }
  return double{best} - double{second};
}

Result<Answer> answer_on(const LoadedModel& model, Config config, const std::string& device,
                         std::span<const TokenId> prompt) {
  config.device = device;
  FIRN_ASSIGN(const Session session, Session::open(model, config));
  Answer answer;
  answer.device = session.manager->device().memory().info().name;
  const Clock start = Clock::now();
  FIRN_ASSIGN(llama::Sequence sequence, session.engine->begin(prompt, {.name_space = {}, .read_cache = false}));
  FIRN_ASSIGN(llama::Sampler sampler, llama::Sampler::create({}));
  Progress progress(answer.device, kShortAnswerTokens);
  llama::Sequence* sequences[] = {&sequence};
  while (answer.tokens.size() < kShortAnswerTokens) {
    FIRN_TRY(session.engine->run(sequences));
    if (!config.mover.worker) session.manager->pump();
    answer.margins.push_back(margin_of(sequence.logits()));
    answer.tokens.push_back(sampler.next(sequence.logits()));
    progress.add(1);
    if (answer.tokens.back() == model.tokenizer.end_of_sequence()) break;
    sequence.push(answer.tokens.back());
  }
  answer.seconds = Clock::now().since(start).wall_s;
  return answer;
}

// Empty: there is a software device.
std::string why_no_lavapipe() {
  const Result<std::vector<VulkanReport>> devices = vulkan_devices();
  if (!devices.ok()) return devices.status().message();
  for (const VulkanReport& device : *devices)
    if (device.software) return device.usable() ? "" : fmt::format("{} lacks {}", device.name, device.missing.front());
  return "there is no software Vulkan driver (Debian: mesa-vulkan-drivers)";
}

}  // namespace

SecondDevice compare_answers(const Answer& first, const Answer& second) {
  SecondDevice result;
  result.first = first.device;
  result.second = second.device;
  result.first_s = first.seconds;
  result.second_s = second.seconds;
  const auto [a, b] =
      std::mismatch(first.tokens.begin(), first.tokens.end(), second.tokens.begin(), second.tokens.end());
  const auto equal = static_cast<std::size_t>(a - first.tokens.begin());
  result.tokens_equal = result.tokens_compared = static_cast<std::uint32_t>(equal);
  if (a == first.tokens.end() && b == second.tokens.end()) return result;
  ++result.tokens_compared;  // what follows another token is another text
  result.margin = first.margins.empty() ? kTieMargin : first.margins[std::min(equal, first.margins.size() - 1)];
  return result;
}

Result<SecondDevice> ask_second_device(const LoadedModel& model, const Config& config, const std::string& wanted) {
  SecondDevice result;
  if (wanted == "off") {
    result.skipped = "not asked for (--second-device off)";
    return result;
  }
  ThreadPool threads(1);
  FIRN_ASSIGN(const std::unique_ptr<Device> main, make_device(config.device, threads));
  const bool on_cpu = main->memory().info().name == "cpu";
  const std::string other = wanted != "auto" ? wanted : on_cpu ? "lavapipe" : "cpu";
  if (other == "lavapipe") result.skipped = why_no_lavapipe();
  if (!result.skipped.empty()) return result;
  const llama::ChatMessage messages[] = {{"user", kShortQuestion}};
  FIRN_ASSIGN(const std::vector<TokenId> prompt, llama::encode_chat(model.tokenizer, messages));
  FIRN_ASSIGN(Answer first, answer_on(model, config, config.device, prompt));
  FIRN_ASSIGN(const Answer second, answer_on(model, config, other, prompt));
  result = compare_answers(first, second);
  result.question = kShortQuestion;
  if (!first.tokens.empty() && first.tokens.back() == model.tokenizer.end_of_sequence()) first.tokens.pop_back();
  result.answer = model.tokenizer.decode(first.tokens);
  return result;
}

void print_second_device(const SecondDevice& r) {
  if (!r.skipped.empty()) {
    fmt::print("Not repeated on a second device: {}\n\n", r.skipped);
    return;
  }
  fmt::print("A short question, on {} ({:.2f} s)\nand on {} ({:.2f} s):\nQ: {}\nA: {}\n", r.first, r.first_s, r.second,
             r.second_s, r.question, r.answer);
  if (!r.margin) {
    fmt::print("=> All {} tokens agree.\n\n", r.tokens_compared);
    return;
  }
  fmt::print("=> {} tokens agree; at the first difference the two likeliest tokens are\n{:.3g} apart: {}.\n\n",
             r.tokens_equal, *r.margin,
             r.agrees() ? "a tie, which rounding may settle either way"
                        : "NOT A TIE, this is a bug in firn, please report it");
}

nlohmann::ordered_json second_device_json(const SecondDevice& r) {
  if (!r.skipped.empty()) return {{"skipped", r.skipped}};
  return {{"first", r.first},
          {"second", r.second},
          {"question", r.question},
          {"answer", r.answer},
          {"tokens_compared", r.tokens_compared},
          {"tokens_equal", r.tokens_equal},
          {"margin_at_difference", r.margin ? nlohmann::ordered_json(*r.margin) : nlohmann::ordered_json(nullptr)},
          {"agrees", r.agrees()},
          {"first_seconds", r.first_s},
          {"second_seconds", r.second_s}};
}

}  // namespace firn::cli
