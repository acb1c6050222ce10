#include "core/base/process.h"

#include <pthread.h>

namespace firn {

Birthplace::Birthplace() {
  // Without memory for the handler forks are not noticed, and a child is where it was before there was one.
  [[maybe_unused]] static const int counted =
      pthread_atfork(nullptr, nullptr, [] { fork_count.fetch_add(1, std::memory_order_relaxed); });
  forks_ = fork_count.load(std::memory_order_relaxed);
}

}  // namespace firn
