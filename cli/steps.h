// steps.h: where a long command is, on stderr: "[4 of 9, 40 s left] recomputing, 2 of 5: 512 of 3,072 tokens". In one
// line on a terminal; elsewhere a line a step, and another one every few seconds while it lasts.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cli/session.h"

namespace firn::cli {

// One at a time; Progress writes through it while it is there. Threads: any.
class Steps {
 public:
  struct Step {
    std::string name;
    double weight = 1;  // in what all others are measured in: how long it takes beside them
  };
  explicit Steps(std::vector<Step> steps);
  ~Steps();
  Steps(const Steps&) = delete;
  Steps& operator=(const Steps&) = delete;
  // The next step begins; what the steps before took says how long the rest will take.
  void next();
  // What is being done in this step, for instance how far it is.
  void note(std::string what);
  // So that what is printed to stdout does not share a line with what is here.
  void clear_line();
  // How long a step will take is known better; counted from 0.
  void reweigh(std::size_t step, double weight);
  // While work goes on that cannot be asked to stop, a signal calls this, in a thread of its own, and ends the process.
  // Empty: no longer.
  void end_on_signal(std::function<void()> print);
  static Steps* current();  // null: there is none

 private:
  std::string text() const;  // at most 79 columns
  void show(bool always);
  void run();

  std::vector<Step> steps_;
  std::function<void()> on_signal_;
  std::size_t at_ = 0;  // 0: none has begun
  std::string note_, shown_;
  double start_s_, step_s_ = 0, shown_s_ = 0, done_weight_ = 0;
  bool terminal_, stop_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::thread clock_;  // last: uses all the others
};

}  // namespace firn::cli
