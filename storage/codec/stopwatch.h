// stopwatch.h: where a decode's time goes, if somebody asked.
#pragma once

#include <ctime>
#include <mutex>
#include <utility>

#include "storage/codec/kvtc_codec.h"

namespace firn {

// Each part of a task adds its thread's processor time.
class Stopwatch {
 public:
  explicit Stopwatch(KvtcTimes* times) : times_(times) {
    if (times_ != nullptr) at_ = now();
  }
  void lap(double KvtcTimes::*part) {
    if (times_ == nullptr) return;
    const double before = std::exchange(at_, now());
    static std::mutex mutex;
    const std::scoped_lock lock(mutex);
    times_->*part += at_ - before;
  }

 private:
  static double now() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  }
  KvtcTimes* times_;
  double at_ = 0;
};

}  // namespace firn
