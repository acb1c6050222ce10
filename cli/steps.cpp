#include "cli/steps.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <system_error>

#include "cli/process.h"

namespace firn::cli {
namespace {
std::atomic<Steps*> active{nullptr};
constexpr double kLogPeriodS = 4;
constexpr std::size_t kColumns = 79;
}  // namespace

Steps* Steps::current() { return active.load(); }

Steps::Steps(std::vector<Step> steps)
    : steps_(std::move(steps)), start_s_(Clock::now().wall_s), terminal_(isatty(STDERR_FILENO) != 0) {
  active = this;
  try {
    clock_ = std::thread([this] { run(); });
  } catch (const std::system_error&) {  // without a clock of its own it is told less often
  }
}

Steps::~Steps() {
  active = nullptr;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (clock_.joinable()) clock_.join();
  clear_line();
}

void Steps::next() {
  const std::lock_guard lock(mutex_);
  if (at_ != 0) done_weight_ += steps_[at_ - 1].weight;
  at_ = std::min(at_ + 1, steps_.size());
  step_s_ = Clock::now().wall_s;
  note_.clear();
  show(true);
}

void Steps::note(std::string what) {
  const std::lock_guard lock(mutex_);
  note_ = std::move(what);
  show(false);
}

void Steps::clear_line() {
  const std::lock_guard lock(mutex_);
  if (terminal_ && !shown_.empty()) tell("\r\033[K");
  shown_.clear();
}

void Steps::reweigh(std::size_t step, double weight) {
  const std::lock_guard lock(mutex_);
  steps_[step].weight = weight;
}

void Steps::end_on_signal(std::function<void()> print) {
  const std::lock_guard lock(mutex_);
  on_signal_ = std::move(print);
}

std::string Steps::text() const {
  const double now = Clock::now().wall_s;
  std::string left;
  if (done_weight_ > 0) {
    const double unit = (step_s_ - start_s_) / done_weight_;
    double rest = std::max(0.0, unit * steps_[at_ - 1].weight - (now - step_s_));
    for (std::size_t i = at_; i < steps_.size(); ++i) rest += unit * steps_[i].weight;
    left = rest < 90 ? fmt::format(", {:.0f} s left", rest) : fmt::format(", {:.0f} min left", std::ceil(rest / 60));
  }
  std::string line = fmt::format("[{} of {}{}] {}", at_, steps_.size(), left, steps_[at_ - 1].name);
  if (!note_.empty()) line += ": " + note_;
  return line.size() <= kColumns ? line : line.substr(0, kColumns - 3) + "...";
}

void Steps::show(bool always) {
  if (at_ == 0) return;
  const double now = Clock::now().wall_s;
  if (!always && now - shown_s_ < (terminal_ ? 0.2 : kLogPeriodS)) return;
  shown_s_ = now;
  shown_ = text();
  tell("{}{}{}", terminal_ ? "\r" : "", shown_, terminal_ ? "\033[K" : "\n");
}

void Steps::run() {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, std::chrono::seconds(1), [this] { return stop_; })) {
    show(false);
    if (stop_signal() == 0 || !on_signal_) continue;
    if (terminal_) tell("\n");
    on_signal_();
    std::fflush(stdout);
    _exit(128 + stop_signal());
  }
}

}  // namespace firn::cli
